//! `mesh-control validate`: everything there is to say about some files, without serving them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::config::{Diagnostic, Report, Severity, load, validate, validate_dir};

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
    let diagnostics = examine(&args.paths)?;
    let count = |severity| diagnostics.iter().filter(|one| one.severity == severity).count();
    let summary =
        Summary { errors: count(Severity::Error), warnings: count(Severity::Warning), diagnostics: &diagnostics };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        for finding in &diagnostics {
            println!("{}\n", finding.render());
        }
        println!("{} errors, {} warnings", summary.errors, summary.warnings);
    }
    Ok(if summary.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Serialize)]
struct Summary<'a> {
    errors: usize,
    warnings: usize,
    diagnostics: &'a [Diagnostic],
}

fn examine(paths: &[PathBuf]) -> anyhow::Result<Vec<Diagnostic>> {
    if let [path] = paths
        && path.is_dir()
    {
        let report: Report = validate_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(report.diagnostics);
    }
    let mut texts = Vec::new();
    let mut diagnostics = Vec::new();
    for path in paths {
        read(path, &mut texts, &mut diagnostics)?;
    }
    diagnostics.extend(validate(texts.iter().map(|(name, text)| (&**name, &**text))));
    Ok(diagnostics)
}

fn read(path: &Path, texts: &mut Vec<(String, String)>, diagnostics: &mut Vec<Diagnostic>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        texts.push((path.display().to_string(), fs::read_to_string(path).with_context(context)?));
        return Ok(());
    }
    let scan = load::scan(path).with_context(context)?;
    diagnostics.extend(scan.diagnostics);
    for (name, text) in scan.files {
        let name = path.join(&*name).display().to_string();
        match text {
            Ok(text) => texts.push((name, text.to_string())),
            Err(error) => bail!("cannot read {name}: {error}"),
        }
    }
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
        assert_eq!(examine(&[service.clone(), rule.clone()]).expect("readable"), []);
        assert!(!examine(std::slice::from_ref(&rule)).expect("readable").is_empty(), "a rule for nobody");
        let found = examine(&[service, bad]).expect("readable");
        assert!(found.iter().any(|one| one.severity == Severity::Error), "{found:?}");
        assert!(examine(&[dir.path().join("missing.yaml")]).is_err());
    }
}
