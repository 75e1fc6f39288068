//! `mesh-control describe`: everything that a running server knows of one service, workload or object, in the manner of
//! `istioctl experimental describe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, bail};
use mesh_core::printable::printable;
use serde::Deserialize;
use serde_json::{Value, json};

use super::status::{StatusServer, get, path, short};
use super::top::graph;
use super::{Format, Printing};
use crate::config::spelling::nearest;
use crate::config::support::ObjectKind;
use crate::explain::workload::WorkloadName;
use crate::serve::status::{DiagnosticStatus, Edge, ObjectStatus, ServiceStatus, Status, WorkloadStatus};

/// Says what a running server knows of one service, workload or object of the configuration.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Of what kind it is.
    #[arg(value_name = "KIND")]
    what: What,
    /// A service: its host, NAME.NAMESPACE, or NAME. A workload: its name or that with its namespace, NAME.NAMESPACE, also without
    /// the random end of a Pod's name, or the id of its node. An object: KIND/NAMESPACE/NAME, where Gateway API's Gateway is Gateway or
    /// KubernetesGateway.
    #[arg(value_name = "NAME")]
    name: String,
    /// As whom the routes of a service are looked at: NAMESPACE/NAME. Somebody in the namespace `default` whom nothing describes,
    /// unless it is said.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    from: Option<WorkloadName>,
    #[command(flatten)]
    server: StatusServer,
    #[command(flatten)]
    printing: Printing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    #[value(alias = "svc")]
    Service,
    #[value(alias = "pod")]
    Workload,
    Object,
}

/// What `/api/objects` says.
#[derive(Deserialize)]
struct Known {
    objects: Vec<ObjectStatus>,
    services: Vec<ServiceStatus>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let server = args.server.status_addr.as_str();
    let status: Status = serde_json::from_str(&get(server, "/status").await?).context("not a status report")?;
    let known: Known = serde_json::from_str(&get(server, "/api/objects").await?).context("no list of objects")?;
    let edges = graph(server).await?.edges;
    let described = match args.what {
        What::Service => service(args, &status, &known, &edges).await?,
        What::Workload => workload(args, &status, &edges)?,
        What::Object => object(args, &status, &known)?,
    };
    Ok(super::say(&match args.printing.format() {
        Format::Json => format!("{described:#}\n"),
        Format::Text => text(&described),
    })?)
}

async fn service(args: &Args, status: &Status, known: &Known, edges: &[Edge]) -> anyhow::Result<Value> {
    let name = args.name.as_str();
    let fits = |host: &str| host == name || host.starts_with(&format!("{name}."));
    let fitting: Vec<_> = known.services.iter().filter(|service| fits(&service.host)).collect();
    let service = match fitting.as_slice() {
        [only] => only,
        [] => bail!("{}", unknown("service", name, known.services.iter().map(|service| service.host.as_str()))),
        [first, ..] => match fitting.iter().find(|service| service.host == name) {
            Some(exact) => exact,
            None => {
                bail!("{name} may be {} or another of {} services: say its namespace, too", first.host, fitting.len())
            }
        },
    };
    let from = args.from.as_ref().map_or_else(|| "default/client".to_owned(), WorkloadName::to_string);
    let (mut routes, mut notes, mut rules) = (Vec::new(), BTreeSet::new(), BTreeSet::from([service.object.clone()]));
    for port in &service.ports {
        let path = path("/api/routes", &[("from", &from), ("target", &format!("{}:{port}", service.host))]);
        let mut of_port: Value =
            serde_json::from_str(&get(&args.server.status_addr, &path).await?).context("no routes")?;
        let mut take = |name: &str| of_port.as_object_mut().and_then(|fields| fields.remove(name));
        let (note, ruled_by) = (take("note"), take("rules"));
        let ruled_by = ruled_by.as_ref().and_then(Value::as_array).into_iter().flatten();
        rules.extend(ruled_by.filter_map(Value::as_str).map(str::to_owned));
        notes.extend(note.as_ref().and_then(Value::as_str).filter(|_| args.from.is_some()).map(str::to_owned));
        routes.push(of_port);
    }
    for note in notes {
        eprintln!("mesh-control: {}", printable(&note));
    }
    let serves = |of: &WorkloadStatus| {
        of.serves.iter().any(|served| served.rsplit_once(':').is_some_and(|(host, _)| host == service.host))
    };
    // Whom it selects that gets none of its requests is there, too, with the reason.
    let is_one = |of: &&WorkloadStatus| serves(of) || of.selected_by.contains(&service.host);
    let elsewhere = "it serves no port of this service";
    let workloads = status.workloads.iter().filter(is_one).map(|workload| {
        let gets_none = (!serves(workload)).then(|| workload.note.as_deref().unwrap_or(elsewhere));
        json!({
            "name": short(&workload.node),
            "address": workload.address,
            "certificate": workload.certificate,
            "connected": workload.connected,
            "health": workload.health,
            "gets_nothing": gets_none,
        })
    });
    Ok(json!({
        "service": service.host,
        "namespace": service.namespace,
        "written": format!("{}, {}", service.written, service.object),
        "ports": service.ports,
        "endpoints": service.endpoints,
        "workloads": workloads.collect::<Vec<_>>(),
        "routes": routes,
        "called_by": edges.iter().filter(|edge| edge.service == service.host).map(told).collect::<Vec<_>>(),
        "findings": findings(status, |object| rules.contains(object)),
    }))
}

fn workload(args: &Args, status: &Status, edges: &[Edge]) -> anyhow::Result<Value> {
    let name = args.name.as_str();
    let node = node_of(name, status.clients.iter().map(|client| client.node.as_str()))?;
    let Some(client) = status.clients.iter().find(|client| node == Some(client.node.as_str())) else {
        let all: Vec<String> = status.clients.iter().map(|client| short(&client.node)).collect();
        bail!("{}", unknown("connected workload", name, all.iter().map(String::as_str)));
    };
    let registered: Vec<_> = status.workloads.iter().filter(|workload| workload.node == client.node).collect();
    let kinds: BTreeMap<&str, &str> = client.kinds.iter().map(|kind| (&*kind.kind, &*kind.state)).collect();
    let refusals = client.kinds.iter().filter_map(|kind| {
        let nack = kind.last_nack.as_ref()?;
        Some(json!({ "kind": kind.kind, "text": nack.text, "names": nack.names, "seconds_ago": nack.seconds_ago }))
    });
    Ok(json!({
        "workload": short(&client.node),
        "node": client.node,
        "namespace": client.namespace,
        "labels": registered.first().map_or(&client.labels, |one| &one.labels),
        "group": client.group,
        "health": registered.iter().find_map(|one| one.health.as_ref()),
        "client": format!("{} ({})", client.class, client.user_agent),
        "identity": client.identity,
        "certificate_expires": client.certificate_expires,
        "configuration": kinds,
        "refused": refusals.collect::<Vec<_>>(),
        "serves": registered.iter().flat_map(|one| one.serves.clone()).collect::<Vec<_>>(),
        "notes": registered.iter().filter_map(|one| one.note.clone()).collect::<Vec<_>>(),
        "calls": edges.iter().filter(|edge| edge.workload == client.workload).map(told).collect::<Vec<_>>(),
    }))
}

fn object(args: &Args, status: &Status, known: &Known) -> anyhow::Result<Value> {
    let is_known = |name: &str| {
        let is_wrong = status.wrong.iter().any(|wrong| wrong.object.as_deref() == Some(name));
        is_wrong || known.objects.iter().any(|object| object.object == name)
    };
    let (wanted, namesake) = meant(&args.name, is_known);
    let found = known.objects.iter().find(|object| object.object == wanted);
    let wrong = status.wrong.iter().find(|wrong| wrong.object.as_ref().is_some_and(|object| *object == wanted));
    let (name, written, standing) = match (found, wrong) {
        (Some(object), _) => (object.object.clone(), object.written.clone(), object.standing.clone()),
        (None, Some(wrong)) => (wanted.clone(), wrong.file.clone(), wrong.standing.clone()),
        (None, None) => {
            bail!("{}", unknown("object", &wanted, known.objects.iter().map(|object| object.object.as_str())))
        }
    };
    Ok(json!({
        "object": name,
        "written": written,
        "standing": standing,
        "reason": wrong.map(|wrong| wrong.reason.clone()),
        "namesake": namesake,
        "findings": findings(status, |object| object == name),
    }))
}

/// The object that is meant by a name, and another one that may be: Istio and Gateway API have each a kind `Gateway`.
fn meant(name: &str, is_known: impl Fn(&str) -> bool) -> (String, Option<String>) {
    let wanted = if is_known(name) { name.to_owned() } else { name.replacen('/', " ", 1) };
    let other = wanted.strip_prefix("Gateway ").map(|rest| format!("{} {rest}", ObjectKind::KubernetesGateway.title()));
    match other.filter(|other| is_known(other)) {
        Some(other) if !is_known(&wanted) => (other, None),
        other => (wanted, other),
    }
}

/// The node that is meant by a name, of those that are connected: by its id, by the name of its workload, with or without its
/// namespace, or by that without the random end that an orchestrator gives it, where only one is called so.
fn node_of<'n>(name: &str, nodes: impl Iterator<Item = &'n str> + Clone) -> anyhow::Result<Option<&'n str>> {
    let parts = |node: &str| {
        let short = short(node);
        let (first, namespace) = short.rsplit_once('.').unwrap_or((short.as_str(), ""));
        (first.to_owned(), namespace.to_owned())
    };
    let is_it = |node: &&str| *node == name || short(node) == name || parts(node).0 == name;
    if let Some(node) = nodes.clone().find(is_it) {
        return Ok(Some(node));
    }
    let is_random = |end: &str| {
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        end.strip_prefix('-').is_some_and(|end| end.split('-').count() <= 2 && end.split('-').all(is_part))
    };
    let begins = |node: &&str| {
        let (first, namespace) = parts(node);
        let without = |base: &str| first.strip_prefix(base).is_some_and(is_random);
        without(name) || name.strip_suffix(&*format!(".{namespace}")).is_some_and(without)
    };
    let found: BTreeSet<&str> = nodes.filter(begins).collect();
    let mut all = found.iter().copied();
    match (all.next(), all.next()) {
        (Some(first), Some(_)) => {
            bail!("{name} may be {} or another of {} workloads: say all of its name", short(first), found.len())
        }
        (first, _) => Ok(first),
    }
}

fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let known: Vec<&str> = known.collect();
    let meant = match nearest(name, &known) {
        Some(near) => format!("; did you mean {near}?"),
        None if known.len() <= 10 => format!("; known are: {}", known.join(", ")),
        None => String::new(),
    };
    format!("no {what} is called {name}{meant}")
}

fn findings(status: &Status, is_it: impl Fn(&str) -> bool) -> Vec<String> {
    status.diagnostics.iter().filter(|one| one.object.as_deref().is_some_and(&is_it)).map(finding).collect()
}

/// As `validate` has it.
fn finding(one: &DiagnosticStatus) -> String {
    let place = match (&one.file, one.line) {
        (Some(file), Some(line)) => format!("{file}:{line}: "),
        _ => String::new(),
    };
    let object = one.object.as_deref().unwrap_or_default();
    let field = one.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
    format!("{place}{}[{}]: {object}: {field}{}", one.severity, one.code, one.message)
}

fn told(edge: &Edge) -> Value {
    json!({
        "source": edge.source,
        "destination": edge.destination,
        "requests_per_second": edge.requests_per_second,
        "error_rate": edge.error_rate,
        "p50_ms": edge.p50_ms,
        "p99_ms": edge.p99_ms,
        "mutual_tls": edge.mutual_tls,
    })
}

/// What is said in lists of several columns, and which.
const TABLES: [(&str, &[&str]); 4] = [
    ("workloads", &["name", "address", "certificate", "connected", "health", "gets_nothing"]),
    ("called_by", &CALLS),
    ("calls", &CALLS),
    ("refused", &["kind", "seconds_ago", "text"]),
];
const CALLS: [&str; 7] =
    ["source", "destination", "requests_per_second", "error_rate", "p50_ms", "p99_ms", "mutual_tls"];
/// What is said line by line, last.
const LISTS: [&str; 2] = ["notes", "findings"];

/// The same to read: what it is, a fact a line; then tables and lists, each below its title.
fn text(described: &Value) -> String {
    let fields = || described.as_object().into_iter().flatten();
    let is_more =
        |name: &str| name == "routes" || LISTS.contains(&name) || TABLES.iter().any(|(table, _)| *table == name);
    let facts = fields().filter(|(name, _)| !is_more(name)).map(|(name, value)| [title(name), line(value)]);
    // What is described comes first.
    let mut facts: Vec<[String; 2]> = facts.filter(|[_, value]| !value.is_empty()).collect();
    facts.sort_by_key(|[name, _]| !matches!(&**name, "Service" | "Workload" | "Object"));
    let mut out = String::new();
    columns(facts.into_iter().map(Vec::from).collect(), &mut out);
    for routes in described["routes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "\nROUTES TO {}", line(&routes["target"]));
        if let Some(why) = routes["error"].as_str() {
            let _ = writeln!(out, "  {}", printable(why));
        }
        for (at, route) in routes["routes"].as_array().into_iter().flatten().enumerate() {
            let _ = writeln!(out, "{:>3}. {}", at + 1, route_line(route));
            for setting in route["settings"].as_array().into_iter().flatten() {
                let _ = writeln!(out, "     {}", line(setting));
            }
        }
        passed("callers pass", &routes["passes"], &mut out);
        let server = &routes["server"];
        if let Some(name) = server["name"].as_str() {
            let _ = writeln!(out, "  server {}", printable(name));
            passed("  passes", &server["passes"], &mut out);
            if let Some(problem) = server["problem"].as_str() {
                let _ = writeln!(out, "    problem: {}", printable(problem));
            }
        }
    }
    for (name, heads) in TABLES {
        let Some(rows) = described[name].as_array().filter(|rows| !rows.is_empty()) else { continue };
        let _ = writeln!(out, "\n{}", title(name).to_uppercase());
        let head = heads.iter().map(|head| title(head)).collect();
        let cells = |row: &Value| heads.iter().map(|head| cell(head, &row[*head])).collect();
        columns([head].into_iter().chain(rows.iter().map(cells)).collect(), &mut out);
    }
    for name in LISTS {
        let Some(lines) = described[name].as_array().filter(|lines| !lines.is_empty()) else { continue };
        let _ = writeln!(out, "\n{}", title(name).to_uppercase());
        for one in lines {
            let _ = writeln!(out, "  {}", line(one));
        }
    }
    out
}

/// What requests pass, a line each.
fn passed(title: &str, passes: &Value, out: &mut String) {
    for one in passes.as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {title} {}", line(one));
    }
}

/// Rows in columns as wide as they need to be.
fn columns(rows: Vec<Vec<String>>, out: &mut String) {
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// A value of a table, in the units of its title.
fn cell(head: &str, value: &Value) -> String {
    match (head, value.as_f64()) {
        (_, None) if value.is_null() => "-".to_owned(),
        ("error_rate" | "mutual_tls", Some(share)) => format!("{:.1}%", share * 100.0),
        ("requests_per_second" | "p50_ms" | "p99_ms", Some(number)) => format!("{number:.1}"),
        _ => line(value),
    }
}

fn title(name: &str) -> String {
    let words = name.replace('_', " ");
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn line(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| format!("{}={}", printable(name), line(value))).collect::<Vec<_>>().join(" ")
        }
        Value::Array(all) => all.iter().map(line).collect::<Vec<_>>().join(", "),
        value => value.to_string(),
    }
}

fn route_line(route: &Value) -> String {
    let clusters = route["clusters"].as_array().into_iter().flatten().map(|cluster| {
        let subset = cluster["subset"].as_str().filter(|subset| !subset.is_empty());
        let subset = subset.map(|subset| format!(" subset {subset}")).unwrap_or_default();
        let host = cluster["host"].as_str().or(cluster["name"].as_str()).unwrap_or_default();
        format!("{:.0}% {host}{subset}", cluster["percent"].as_f64().unwrap_or_default())
    });
    let clusters = clusters.collect::<Vec<_>>().join(", ");
    let to = if clusters.is_empty() { line(&route["action"]) } else { clusters };
    let written = route["origin"].as_str().map(|origin| format!(" ({origin})")).unwrap_or_default();
    printable(&format!("{} -> {to}{written}", line(&route["conditions"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_of_either_api_and_the_other_one_is_told() {
        for (name, known, expected) in [
            ("Gateway/shop/edge", &["Gateway shop/edge"][..], ("Gateway shop/edge", None)),
            ("Gateway/shop/edge", &["KubernetesGateway shop/edge"], ("KubernetesGateway shop/edge", None)),
            ("KubernetesGateway/shop/edge", &["KubernetesGateway shop/edge"], ("KubernetesGateway shop/edge", None)),
            (
                "Gateway/shop/edge",
                &["Gateway shop/edge", "KubernetesGateway shop/edge"],
                ("Gateway shop/edge", Some("KubernetesGateway shop/edge")),
            ),
            ("Gateway shop/edge", &["Gateway shop/edge"], ("Gateway shop/edge", None)),
            ("Gateway/shop/none", &["Gateway shop/edge"], ("Gateway shop/none", None)),
            ("Service/shop/edge", &["KubernetesGateway shop/edge"], ("Service shop/edge", None)),
        ] {
            let (wanted, namesake) = meant(name, |object| known.contains(&object));
            assert_eq!((wanted.as_str(), namesake.as_deref()), expected, "{name} {known:?}");
        }
    }

    #[test]
    fn a_workload_is_found_without_the_random_end_of_its_name_where_only_one_is_called_so() {
        let node = |name: &str| format!("mesh~10.0.0.1~{name}~shop.svc.cluster.local");
        let nodes = [
            "web-1.shop",
            "api-7d9c5b6f4-x2x4z.shop",
            "db-0.shop",
            "db-1.shop",
            "db-main-2.shop",
            "one-a.eu",
            "one-b.us",
        ]
        .map(node);
        for (name, expected) in [
            ("web-1", Some("web-1.shop")),
            ("web-1.shop", Some("web-1.shop")),
            ("web", Some("web-1.shop")),
            ("web.shop", Some("web-1.shop")),
            ("web.other", None),
            ("api", Some("api-7d9c5b6f4-x2x4z.shop")),
            ("api-7d9c5b6f4", Some("api-7d9c5b6f4-x2x4z.shop")),
            ("ap", None),
            ("db-main", Some("db-main-2.shop")),
            ("one.us", Some("one-b.us")),
            ("nobody", None),
        ] {
            let found = node_of(name, nodes.iter().map(String::as_str)).unwrap();
            assert_eq!(found.map(short).as_deref(), expected, "{name}");
        }
        for name in ["db", "one"] {
            let error = node_of(name, nodes.iter().map(String::as_str)).unwrap_err().to_string();
            assert!(error.contains("say all of its name"), "{name}: {error}");
        }
    }

    #[test]
    fn a_finding_names_its_field() {
        let of = |more: Value| {
            let mut written =
                json!({"severity": "error", "code": "invalid-value", "message": "no", "object": "Sidecar a/b"});
            written.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            finding(&serde_json::from_value(written).unwrap())
        };
        let place = json!({"file": "a.yaml", "line": 7, "field": "egress[0].port"});
        assert_eq!(of(place), "a.yaml:7: error[invalid-value]: Sidecar a/b: egress[0].port: no");
        assert_eq!(of(json!({})), "error[invalid-value]: Sidecar a/b: no");
    }
}
