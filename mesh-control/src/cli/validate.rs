//! `mesh-control validate`: everything there is to say about some files, without serving them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use mesh_core::identity::TrustDomain;

use super::{Format, Printing};
use crate::analysis::{Mesh, Report, validate_scan};
use crate::config::load::{self, Reach, Scan};
use crate::config::node::MAX_FILE_BYTES;
use crate::config::{Code, Diagnostic, Severity};
use crate::{ca, ratelimit};

/// Checks configuration files. The exit code is 1 if there is an error in them.
///
/// As JSON, each finding is one line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files and directories, `-` for stdin; all of them together are one configuration.
    #[arg(required_unless_present_any = ["ca_dir", "ratelimit_config"], value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Reads directories below these, too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// For whom, besides this project's own library: says what these clients cannot do, too.
    #[arg(long = "for", value_enum, value_name = "CLIENTS")]
    clients: Option<Clients>,
    /// As for `serve`: the control plane issues certificates, so that mutual TLS can be asked for. The directory is looked at as
    /// `serve` would: keys, chain, constraints, ends, lists of revoked certificates.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// As for `serve`: the trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// As for `serve`: the control plane issues certificates, so that mutual TLS can be asked for.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// As for `serve`: the control plane issues certificates, so that mutual TLS can be asked for.
    #[arg(long)]
    dev: bool,
    /// As for `serve`: the rule files of the rate limit service, which are looked at as it would.
    #[arg(long, value_name = "DIR")]
    ratelimit_config: Option<PathBuf>,
    /// Exits with 1 for warnings, too.
    #[arg(long)]
    deny_warnings: bool,
    #[command(flatten)]
    printing: Printing,
}

/// Clients that can do less than the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Clients {
    /// gRPC's own xDS clients.
    Grpc,
    /// Envoys beside workloads in other languages.
    Envoy,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let issues_certificates = args.dev || args.ca_dir.is_some() || args.state_dir.is_some();
    let trust_domain = args.trust_domain.clone();
    // As for `serve`: an authority that only has a place asks nobody for a certificate.
    let permissive = !args.dev && args.ca_dir.is_none();
    let (has_grpc, has_envoys) = (args.clients == Some(Clients::Grpc), args.clients == Some(Clients::Envoy));
    let mesh = Mesh { has_grpc, has_envoys, issues_certificates, permissive, trust_domain, ..Mesh::default() };
    let mut report = examine(&args.paths, Reach::recursive(args.recursive), mesh)?;
    if let Some(dir) = &args.ca_dir {
        let found = ca::findings(dir, &report.trust_domain, SystemTime::now()).into_iter().map(|finding| {
            let severity = if finding.is_error { Severity::Error } else { Severity::Warning };
            Diagnostic::of_file(finding.path.display().to_string(), severity, Code::File, finding.message)
        });
        report.diagnostics.extend(found);
    }
    if let Some(dir) = &args.ratelimit_config {
        let found = ratelimit::findings(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        report.diagnostics.extend(found.into_iter().map(|finding| finding.below(dir)));
    }
    match args.printing.format() {
        Format::Json => {
            let mut lines = String::new();
            for finding in &report.diagnostics {
                lines += &format!("{}\n", serde_json::to_string(finding)?);
            }
            super::say(&lines)?;
        }
        Format::Text => super::say(&text(&report))?,
    }
    let worst = if args.deny_warnings { Severity::Warning } else { Severity::Error };
    let is_fine = report.diagnostics.iter().all(|finding| finding.severity < worst);
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What asks for nothing is one line each; the rest comes with its place in the file.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.diagnostics {
        match finding.severity {
            Severity::Info => text += &format!("{finding}\n"),
            Severity::Warning | Severity::Error => text += &format!("{}\n\n", finding.render().trim_end()),
        }
    }
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let amounts = [(report.wrong, "wrong"), (report.unreadable, "unreadable")];
    let amounts = amounts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}, "));
    let (objects, amounts) = (count(report.objects + report.wrong, "object"), amounts.collect::<String>());
    text + &format!("{objects}: {amounts}{}, {}\n", count(errors, "error"), count(warnings, "warning"))
}

fn examine(paths: &[PathBuf], reach: Reach, mesh: Mesh) -> anyhow::Result<Report> {
    let mut scan = Scan::default();
    if let [path] = paths
        && path.is_dir()
    {
        scan = load::scan(path, reach).with_context(|| format!("cannot read {}", path.display()))?;
        say_if_empty(path, scan.files.len(), &mut scan.diagnostics);
    } else {
        for path in paths {
            read(path, reach, &mut scan)?;
        }
    }
    Ok(validate_scan(scan, mesh))
}

fn say_if_empty(dir: &Path, files: usize, found: &mut Vec<Diagnostic>) {
    if files == 0 {
        let message = "nothing to check: the directory has no file *.yaml, *.yml or *.json";
        let name = dir.display().to_string();
        found.push(Diagnostic::of_file(name, Severity::Warning, Code::File, message));
    }
}

/// Adds a file, or what a directory holds, by its path; for `-`, what stdin says.
pub(super) fn read(path: &Path, reach: Reach, into: &mut Scan) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).context("cannot read stdin")?;
        into.files.insert("stdin".into(), load::text_of(bytes));
        return Ok(());
    }
    let context = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        fs::metadata(path).with_context(context)?;
        into.files.insert(path.display().to_string().into(), load::read_named(path));
        return Ok(());
    }
    let scan = load::scan(path, reach).with_context(context)?;
    say_if_empty(path, scan.files.len(), &mut into.diagnostics);
    into.diagnostics.extend(scan.diagnostics);
    let files = scan.files.into_iter();
    into.files.extend(files.map(|(name, text)| (path.join(&*name).display().to_string().into(), text)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_paths_are_one_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let service = write(
            "service.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n",
        );
        let rule = write(
            "rule.yaml",
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web}\n",
        );
        let bad = write("bad.yaml", "kind: [\n");
        let examine = |paths: &[&PathBuf]| {
            examine(&paths.iter().map(|path| (*path).clone()).collect::<Vec<_>>(), Reach::Directory, Mesh::default())
        };
        let both = examine(&[&service, &rule]).expect("readable");
        assert_eq!((both.objects, both.diagnostics), (2, vec![]));
        assert!(!examine(&[&rule]).expect("readable").diagnostics.is_empty(), "a rule for nobody");
        assert_eq!(examine(&[&service, &bad]).expect("readable").count(Severity::Error), 1);
        fs::write(&bad, b"a: 1\nb: \xff\n").expect("written");
        let found = examine(&[&service, &bad]).expect("readable");
        assert_eq!((found.objects, found.unreadable), (1, 1), "the rest is looked at all the same");
        assert!(load::read_named(&bad).is_err_and(|error| error.why.contains("line 2")));
        assert!(examine(&[&dir.path().join("missing.yaml")]).is_err());
    }
}
