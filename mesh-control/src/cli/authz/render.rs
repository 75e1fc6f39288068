//! `mesh-control authz render`: the policies that are for a workload, as filters for an Envoy that is configured by hand.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::anyhow;

use crate::catalog::{Client, ClientClass};
use crate::cli::directory::Directory;
use crate::cli::tell;
use crate::explain::workload::{Workload, WorkloadName};

/// Prints the policies that are for a workload as Envoy's filters: the part of a connection manager, as JSON, that decides
/// what `authz test` says. Where Envoy cannot tell for sure, it lets nobody in.
///
/// Who asks is known by mutual TLS, which the Envoy has to ask for; `connection.sni` needs a TLS inspector in its listener.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    directory: Directory,
    /// As for `authz test`.
    #[arg(long)]
    federated: bool,
    /// Who is asked: NAMESPACE/NAME. Its labels are those that the service of its name selects, those of the WorkloadGroup
    /// of its name, or `app: NAME` where an object selects that. What no object knows is an error.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    to: WorkloadName,
    /// A label of the workload, in place of those: KEY=VALUE. May be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// The port that the workload bound.
    #[arg(long, value_name = "PORT")]
    port: u16,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = super::super::runtime()?;
    let _entered = runtime.enter();
    let plane = args.directory.plane(super::options(args.federated))?;
    let workload = tell(Workload::named("--to", &args.to, &args.label, &plane.snapshot())?).workload;
    let labels = workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    // It has a certificate, as the library does.
    let client = Client::new("authz", ClientClass::Library, IpAddr::V4(Ipv4Addr::LOCALHOST))
        .namespace(&*workload.namespace)
        .labels(labels);
    let guards =
        plane.snapshot().envoy_guards(&client, args.port).map_err(|reason| anyhow!("{}: {reason}", args.to))?;
    super::super::say(&format!("{guards:#}\n"))?;
    Ok(())
}
