//! `mesh-control explain`: why a request goes where it goes, and where each of the reasons is written.

use std::process::ExitCode;

use anyhow::bail;
use http::{Method, Uri};
use mesh_core::request::RequestHead;

use super::directory::Configuration;
use super::{Format, Printing, tell};
use crate::explain::seen::{client, gateway};
use crate::explain::workload::{Workload, WorkloadName};
use crate::explain::{explain, request};

/// Says why a request goes where it goes, from a workload or at a gateway: the route that it takes, the first condition that each
/// route before does not hold by, the clusters with their weights, and the settings in force, each with the file and the line that it
/// comes from.
///
/// It is what is published, decided on by the library's own matcher. Endpoints are not looked at. The exit code is 1 where the
/// request fails.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    configuration: Configuration,
    /// Who asks: NAMESPACE/NAME. Its labels are those that the service of its name selects, those of the WorkloadGroup of its
    /// name, or `app: NAME` where an object selects that.
    #[arg(long, value_name = "NAMESPACE/NAME", required_unless_present = "gateway")]
    from: Option<WorkloadName>,
    /// The gateway that somebody outside asks, in place of --from: NAMESPACE/NAME of a Gateway, of Istio's or of Gateway API, or of a
    /// workload that is one. What is asked for is said by the port that clients know.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "from")]
    gateway: Option<WorkloadName>,
    /// A label of the workload, in place of those: KEY=VALUE. May be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A header: NAME:VALUE. May be given several times.
    #[arg(short = 'H', long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// The method.
    #[arg(value_name = "METHOD")]
    method: Method,
    /// Where to: http://HOST[:PORT]/PATH.
    #[arg(value_name = "URL")]
    url: Uri,
    #[command(flatten)]
    printing: Printing,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let _entered = runtime.enter();
    let plane = args.configuration.plane()?;
    let snapshot = plane.snapshot();
    let asked = match (&args.gateway, &args.from) {
        (Some(name), _) => gateway(&Workload::gateway("--gateway", name, &args.label, &snapshot)?),
        (None, Some(from)) => client(&tell(Workload::caller("--from", from, &args.label, &snapshot)?).workload),
        (None, None) => bail!("--from or --gateway is needed"),
    };
    let head = request(&args.method, &args.url, &args.header)?;
    let head = RequestHead::of(&head)?;
    // As for the plane: it may be about thousands of routes, and the process ends.
    let explained = &*Box::leak(Box::new(explain(&snapshot, &asked, &head)?));
    match args.printing.format() {
        Format::Text => super::say(&explained.to_string())?,
        Format::Json => super::say_json(explained)?,
    }
    Ok(if explained.is_failure() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
