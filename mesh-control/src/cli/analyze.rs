//! `mesh-control analyze`: what `validate` finds, and what works and is better said otherwise, with the codes of Istio's analyzers,
//! in the forms that CI takes, and with the clear faults put right.

mod forms;
mod repair;

use std::path::PathBuf;
use std::process::ExitCode;

use mesh_core::identity::TrustDomain;

use self::repair::repair;
use super::validate::{Clients, read};
use crate::analysis::{Mesh, validate_scan};
use crate::config::file::mesh_file_name;
use crate::config::load::{self, Reach, Scan};
use crate::config::{Diagnostic, Severity};

/// Examines configuration files against each other, with the codes of Istio's analyzers (docs/analyze.md).
///
/// The findings are those of `validate`, and what works and is better said otherwise. `galley.istio.io/analyze-suppress: IST0118`
/// on an object leaves its findings of that code out, as -S does; what is left out is not put right by --fix either.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files and directories; all of them together are one configuration.
    #[arg(required_unless_present = "filename", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The same, as `kubectl` has it.
    #[arg(short = 'f', long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Reads directories below these, too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// As for `serve`: a file with the settings of the mesh.
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// As for `serve`: the trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// As for `serve`: the control plane issues certificates, so that mutual TLS can be asked for.
    #[arg(long)]
    dev: bool,
    /// For whom, besides this project's own library: says what these clients cannot do, too.
    #[arg(long = "for", value_enum, value_name = "CLIENTS")]
    clients: Option<Clients>,
    /// Leaves out findings of a code, of one object where it is named (`IST0118=Service shop/web`, or `Service web.shop`); `*` is
    /// anything.
    #[arg(short = 'S', long, value_name = "CODE[=OBJECT]")]
    suppress: Vec<String>,
    /// The least severe findings that are told.
    #[arg(long, value_enum, default_value_t = Level::Info, value_name = "LEVEL")]
    output_threshold: Level,
    /// The least severe findings for which the exit code is 1.
    #[arg(long, value_enum, default_value_t = Level::Error, value_name = "LEVEL")]
    failure_threshold: Level,
    /// Writes what is clear into the files, comments and all else as they are, and tells the rest.
    #[arg(long)]
    fix: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Info,
    Warning,
    Error,
}

impl From<Level> for Severity {
    fn from(level: Level) -> Severity {
        match level {
            Level::Info => Severity::Info,
            Level::Warning => Severity::Warning,
            Level::Error => Severity::Error,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// To be read by people.
    #[default]
    Text,
    /// JSON; one finding a line.
    Json,
    /// SARIF 2.1.0, which code hosts show.
    Sarif,
    /// Annotations of GitHub's workflows.
    Github,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut found = match args.fix {
        false => examine(args)?,
        true => {
            let (found, repaired) = repair(|| examine(args))?;
            eprintln!("mesh-control: {repaired}");
            found
        }
    };
    let worst = Severity::from(args.failure_threshold);
    let is_fine = found.iter().all(|finding| finding.severity < worst);
    let least = Severity::from(args.output_threshold);
    found.retain(|finding| finding.severity >= least);
    super::say(&match args.output {
        Form::Text => forms::text(&found),
        Form::Json => forms::json(&found),
        Form::Sarif => forms::sarif(&found),
        Form::Github => forms::github(&found),
    })?;
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(args: &Args) -> anyhow::Result<Vec<Diagnostic>> {
    let mut scan = Scan::default();
    for path in args.paths.iter().chain(&args.filename) {
        read(path, Reach::recursive(args.recursive), &mut scan)?;
    }
    if let Some(path) = &args.mesh_config {
        scan.files.insert(mesh_file_name(path), load::read_named(path));
    }
    let mesh = Mesh {
        has_grpc: args.clients == Some(Clients::Grpc),
        has_envoys: args.clients == Some(Clients::Envoy),
        issues_certificates: args.dev,
        trust_domain: args.trust_domain.clone(),
        takes_advice: true,
        suppress: args.suppress.clone(),
        ..Mesh::default()
    };
    Ok(validate_scan(scan, mesh).diagnostics)
}
