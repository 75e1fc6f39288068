//! `mesh-control explain`: why a request goes where it goes, and where each of the reasons is written.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use http::{Method, Request, Uri};
use mesh_core::model::{Forward, RouteAction};
use mesh_core::request::{RequestHead, host_and_port, split_authority};
use mesh_core::rewrite::complete_path;
use mesh_core::view::Explanation;

use super::directory::Configuration;
use super::seen::{Seen, client};
use super::workload::{Workload, pair};
use super::{Format, Printing};
use crate::catalog::Client;
use crate::config::file::is_namespace;
use crate::plane::{Plane, Snapshot};
use crate::policy::route::Written;

/// Says why a request goes where it goes: the route that it takes, the first condition that each route before does not hold by,
/// the clusters with their weights, and the settings in force, each with the file and the line that it comes from.
///
/// It is what is published, decided on by the library's own matcher. Endpoints are not looked at.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    configuration: Configuration,
    /// Who asks: NAMESPACE/NAME. Its labels are those that the service of its name selects, those of the WorkloadGroup of its
    /// name, or `app: NAME` where an object selects that.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    from: String,
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
    let workload = caller(args, &plane)?;
    let mut request = Request::builder().method(&args.method).uri(&args.url);
    for text in &args.header {
        let (name, value) = pair(text, ':')?;
        request = request.header(name, value);
    }
    let (mut head, ()) = request.body(()).context("malformed header")?.into_parts();
    if head.uri.authority().is_none() {
        return Err(anyhow!("{}: a host is needed, as in http://reviews:9080/", args.url));
    }
    complete_path(&mut head.uri);
    let head = RequestHead::of(&head)?;
    let explained = explain(&plane.snapshot(), &client(&workload), &head)?;
    match args.printing.format() {
        Format::Text => super::say(&explained.to_string())?,
        Format::Json => super::say(&format!("{:#}\n", explained.to_json()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Who asks. Nobody has to describe who only calls others.
fn caller(args: &Args, plane: &Plane) -> anyhow::Result<Workload> {
    let given = Workload::named("--from", &args.from, &args.label, plane);
    match (given, args.from.split_once('/')) {
        (Ok((_, workload)), _) => Ok(workload),
        (Err(unknown), Some((namespace, name)))
            if is_namespace(namespace) && !name.is_empty() && !name.contains('/') && args.label.is_empty() =>
        {
            eprintln!("mesh-control: {unknown}; taken for a workload without labels");
            Ok(Workload { namespace: namespace.to_owned(), labels: Default::default() })
        }
        (Err(error), _) => Err(error),
    }
}

/// Why a client's request goes where it goes.
fn explain(snapshot: &Snapshot, client: &Client, head: &RequestHead<'_>) -> anyhow::Result<Explanation> {
    let target = host_and_port(head.authority, head.scheme)?;
    let seen = match Seen::of_target(snapshot, client, &target) {
        Ok(seen) => seen,
        Err(error) => {
            let request = format!("{} {}{}", head.method, head.authority, head.path_and_query);
            return Ok(Explanation::failed(request, error));
        }
    };
    // TLS that the application makes itself is looked at by the name of its server.
    let connections = seen.connections.as_ref().filter(|_| head.scheme == "https");
    let name = split_authority(head.authority).map_or(head.authority, |(host, _)| host);
    let mut by_name = *head;
    by_name.authority = name;
    let mut explained = match connections {
        Some(connections) => connections.explain(&by_name, &mut fastrand::Rng::new()),
        None => seen.table.explain(head, &mut fastrand::Rng::new()),
    };
    for choice in &mut explained.clusters {
        choice.leaves = seen.clusters.get(&choice.name).map(|told| told.leaves().to_vec()).unwrap_or_default();
        choice.problem = seen.problem(&choice.name).map(Arc::from);
        choice.origins = shared(snapshot.settings_of_cluster(client, choice.name.as_str()));
    }
    let rules = explained.route_configuration.as_deref().map(|name| snapshot.rules_of(client, name));
    let rules = rules.unwrap_or_default();
    let rule_at = |position: usize| rules.get(position).and_then(Option::as_ref);
    for over in &mut explained.passed_over {
        over.origin = rule_at(over.position).map(origin);
    }
    if let Some(choice) = &mut explained.route {
        let rule = rule_at(choice.position);
        let of_connection = || snapshot.rule_on_connections(client, &target, &choice.route.name).map(Arc::from);
        choice.origin = rule.map(origin).or_else(|| connections.and_then(|_| of_connection()));
        choice.origins = match (rule, &choice.route.action) {
            (Some(rule), _) => shared(snapshot.settings_of_rule(rule)),
            (None, RouteAction::Forward(Forward { retry: Some(_), .. })) if !rules.is_empty() => {
                shared(vec![("retry", snapshot.default_retry())])
            }
            _ => Vec::new(),
        };
        if let RouteAction::Forward(forward) = &choice.route.action {
            choice.time_limit = forward.time_limit(head.is_grpc(), seen.max_stream);
        }
    }
    Ok(explained)
}

fn origin(rule: &Written) -> Arc<str> {
    format!("{}, {} {}", rule.origin, rule.object, rule.field).into()
}

fn shared(origins: Vec<(&'static str, String)>) -> Vec<(&'static str, Arc<str>)> {
    origins.into_iter().map(|(name, origin)| (name, origin.into())).collect()
}
