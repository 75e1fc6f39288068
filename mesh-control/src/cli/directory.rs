//! A directory of configuration, as commands look at it that serve nobody.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::config::{Code, Diagnostic, Severity, load};
use crate::plane::{Plane, PlaneOptions};

/// A directory that a command needs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Directory {
    /// The directory of the configuration.
    #[arg(long, value_name = "DIR")]
    pub(super) config: PathBuf,
    /// As for `serve`: reads the directories below it, too.
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
}

impl Directory {
    /// A plane of it. What is wrong there, or not read, is told: the answers are without it.
    pub(super) fn plane(&self, options: PlaneOptions) -> anyhow::Result<Plane> {
        let plane = self.started(options)?;
        tell(&plane);
        Ok(plane)
    }

    /// The same, and nothing is told.
    pub(super) fn started(&self, options: PlaneOptions) -> anyhow::Result<Plane> {
        started(&self.config, options.recursive(self.recursive))
    }
}

/// What a configuration is that requests are looked at by: a directory, what a cluster has, or both.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Configuration {
    /// The directory of the configuration.
    #[arg(long, value_name = "DIR", required_unless_present = "dump")]
    pub(super) config: Option<PathBuf>,
    /// As for `serve`: reads the directories below it, too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The objects of a cluster as `kubectl get KINDS -A -o yaml` prints them. Those of --config go before them.
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// As for `serve`: a file with the settings of the mesh.
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
}

impl Configuration {
    /// A plane of it. What is wrong, or not read, is told. It stays to the end of the process, which is near: to take thousands of
    /// objects apart takes time, and gives nothing back.
    pub(super) fn plane(&self) -> anyhow::Result<&'static Plane> {
        let options = PlaneOptions { mesh_config: self.mesh_config.clone(), ..PlaneOptions::default() };
        let options = options.recursive(self.recursive);
        let plane = match &self.config {
            Some(config) => started(config, options)?,
            None => Plane::start(everybody(options)).context("cannot start without a directory")?,
        };
        if let Some(dump) = &self.dump {
            let name = dump.display();
            let text =
                load::read_named(dump).map_err(|unreadable| anyhow!("cannot read {name}: {}", unreadable.why))?;
            // Of the same object, the text whose name is the last one counts, and this is before all names of files.
            plane.set_yaml(&format!(" {name}"), &text)?;
        }
        tell(&plane);
        Ok(Box::leak(Box::new(plane)))
    }

    /// The same with another directory.
    pub(super) fn at(&self, config: &Path) -> Configuration {
        Configuration { config: Some(config.to_owned()), ..self.clone() }
    }
}

fn tell(plane: &Plane) {
    let is_told = |finding: &Diagnostic| finding.severity == Severity::Error || finding.code == Code::NotRead;
    for finding in plane.diagnostics().iter().filter(|finding| is_told(finding)) {
        eprintln!("mesh-control: {finding}");
    }
}

/// A plane of a directory, which it follows in the background. Everybody is taken to have a certificate.
fn started(config: &Path, options: PlaneOptions) -> anyhow::Result<Plane> {
    Plane::start(everybody(options.config_dir(config))).with_context(|| format!("cannot read {}", config.display()))
}

fn everybody(options: PlaneOptions) -> PlaneOptions {
    options.issues_certificates(true).trust_claims(true)
}
