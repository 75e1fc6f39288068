//! `mesh-control validate`: everything there is to say about some files, without serving them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::analysis::{Report, validate_dir, validate_scan};
use crate::config::load::{self, Scan, text_of};
use crate::config::{Diagnostic, Severity};

/// Checks configuration files. The exit code is 1 if there is an error in them.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files and directories; all of them together are one configuration.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Prints the findings as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = examine(&args.paths)?;
    let summary = Summary {
        objects: report.objects,
        errors: report.count(Severity::Error),
        warnings: report.count(Severity::Warning),
        diagnostics: &report.diagnostics,
    };
    match args.json {
        true => super::say(&format!("{}\n", serde_json::to_string_pretty(&summary)?))?,
        false => super::say(&text(&summary))?,
    }
    Ok(if summary.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What asks for nothing is one line each; the rest comes with its place in the file.
fn text(summary: &Summary<'_>) -> String {
    let mut text = String::new();
    for finding in summary.diagnostics {
        match finding.severity {
            Severity::Info => text += &format!("{finding}\n"),
            Severity::Warning | Severity::Error => text += &format!("{}\n\n", finding.render().trim_end()),
        }
    }
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let Summary { objects, errors, warnings, .. } = *summary;
    text + &format!("{}: {}, {}\n", count(objects, "object"), count(errors, "error"), count(warnings, "warning"))
}

#[derive(Serialize)]
struct Summary<'a> {
    objects: usize,
    errors: usize,
    warnings: usize,
    diagnostics: &'a [Diagnostic],
}

fn examine(paths: &[PathBuf]) -> anyhow::Result<Report> {
    if let [path] = paths
        && path.is_dir()
    {
        return validate_dir(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut scan = Scan::default();
    for path in paths {
        read(path, &mut scan)?;
    }
    Ok(validate_scan(scan))
}

fn read(path: &Path, into: &mut Scan) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        into.files.insert(path.display().to_string().into(), text_of(fs::read(path).with_context(context)?));
        return Ok(());
    }
    let scan = load::scan(path).with_context(context)?;
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
        let examine = |paths: &[&PathBuf]| examine(&paths.iter().map(|path| (*path).clone()).collect::<Vec<_>>());
        let both = examine(&[&service, &rule]).expect("readable");
        assert_eq!((both.objects, both.diagnostics), (2, vec![]));
        assert!(!examine(&[&rule]).expect("readable").diagnostics.is_empty(), "a rule for nobody");
        assert_eq!(examine(&[&service, &bad]).expect("readable").count(Severity::Error), 1);
        fs::write(&bad, b"a: 1\nb: \xff\n").expect("written");
        let found = examine(&[&service, &bad]).expect("readable");
        assert_eq!((found.objects, found.count(Severity::Error)), (1, 1), "the rest is looked at all the same");
        assert!(text_of(fs::read(&bad).expect("readable")).is_err_and(|error| error.contains("line 2")));
        assert!(examine(&[&dir.path().join("missing.yaml")]).is_err());
    }
}
