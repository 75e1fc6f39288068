//! Why a request goes where it goes, and which routes a workload has to a service: as it is published, decided on by the
//! library's own matcher, with the places where it is written. For `mesh-control explain`, and for those who look at a server.

pub(crate) mod seen;
pub(crate) mod workload;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use http::request::Parts;
use http::{Method, Request, Uri};
use mesh_core::error::MeshError;
use mesh_core::id::ClusterName;
use mesh_core::matcher::conditions;
use mesh_core::model::{Clusters, Forward, RouteAction, RouteConfiguration, SplitBy};
use mesh_core::request::{RequestHead, host_and_port, split_authority};
use mesh_core::rewrite::complete_path;
use mesh_core::view::{ClusterChoice, Explanation, Passed, RouteChoice, ServerChoice};
use serde_json::{Value, json};

use crate::catalog::Client;
use crate::plane::Snapshot;
use crate::policy::route::{ClusterKey, FallbackName, Written};
use seen::{OPAQUE, Seen, canonical, client, listener_for, not_by_tls};
use workload::{Named, Workload, WorkloadName, pair};

/// A request that is asked about, of headers `NAME:VALUE`.
pub(crate) fn request(method: &Method, url: &Uri, headers: &[String]) -> anyhow::Result<Parts> {
    let mut request = Request::builder().method(method).uri(url);
    for text in headers {
        let (name, value) = pair(text, ':')?;
        request = request.header(name, value);
    }
    let (mut head, ()) = request.body(()).context("malformed header")?.into_parts();
    if head.uri.authority().is_none() {
        return Err(anyhow!("{url}: a host is needed, as in http://reviews:9080/"));
    }
    complete_path(&mut head.uri);
    Ok(head)
}

/// Who NAMESPACE/NAME is, as far as the configuration says, and what whoever asks should know of that; whom it does not know has
/// no labels.
pub(crate) fn asker(snapshot: &Snapshot, from: &str) -> anyhow::Result<(Client, Option<String>)> {
    let name: WorkloadName = from.parse().map_err(|why| anyhow!("from {from:?}: {why}"))?;
    let Named { workload, note, .. } = Workload::caller("from", &name, &[], snapshot)?;
    Ok((client(&workload), note))
}

/// Why a client's request goes where it goes; of a gateway, a request that comes to it.
pub(crate) fn explain(snapshot: &Snapshot, client: &Client, head: &RequestHead<'_>) -> anyhow::Result<Explanation> {
    if !["http", "https"].contains(&head.scheme) {
        return Err(anyhow!(
            "{:?} is no scheme of the mesh: http is, and https where the application speaks TLS itself",
            head.scheme
        ));
    }
    let target = host_and_port(head.authority, head.scheme)?;
    let decided = match client.is_gateway {
        true => at_gateway(snapshot, client, head, &target),
        false => from_workload(snapshot, client, head, &target),
    };
    let decided = decided.and_then(|mut decided| {
        let names = decided.explained.clusters.iter().map(|choice| &choice.name);
        decided.seen.learn(snapshot, client, names)?;
        Ok(decided)
    });
    let Decided { seen, mut explained, rules, is_by_connection, bound } = match decided {
        Ok(decided) => decided,
        Err(error) => {
            let request = format!("{} {}{}", head.method, head.authority, head.path_and_query);
            return Ok(Explanation::failed(request, error));
        }
    };
    tell_known(&seen, head, &mut explained);
    for choice in &mut explained.clusters {
        choice.origins = shared(snapshot.settings_of_cluster(client, choice.name.as_str()));
    }
    let rule_at = |position: usize| rules.get(position).and_then(Option::as_ref);
    for over in &mut explained.passed_over {
        over.origin = rule_at(over.position).map(origin);
    }
    if let Some(choice) = &mut explained.route {
        let rule = rule_at(choice.position);
        let of_connection = || snapshot.rule_on_connections(client, &target, &choice.route.name).map(Arc::from);
        let is_of_workload = is_by_connection && !client.is_gateway;
        choice.origin = rule.map(origin).or_else(|| is_of_workload.then(of_connection).flatten());
        place(snapshot, &mut choice.passes, bound.map(|port| (client, port)));
        choice.origins = match (rule, &choice.route.action) {
            (Some(rule), _) => shared(snapshot.settings_of_rule(rule)),
            (None, RouteAction::Forward(Forward { retry: Some(_), .. })) if !rules.is_empty() => {
                shared(vec![("retry", snapshot.default_retry())])
            }
            _ => Vec::new(),
        };
        if let RouteAction::Forward(forward) = &choice.route.action
            && forward.split_by == SplitBy::HashPolicies
        {
            let origin = rule.and_then(|rule| snapshot.origin_of_split(rule));
            choice.origins.extend(shared(origin.into_iter().collect()));
        }
    }
    // Of bytes, nobody there looks at requests.
    if !is_by_connection {
        explained.servers = servers(snapshot, client, &explained.clusters);
    }
    Ok(explained)
}

/// What was decided of a request, and by what.
struct Decided {
    seen: Seen,
    explained: Explanation,
    /// The rules that the routes of its host are made of.
    rules: Vec<Option<Written>>,
    /// Whether nobody looks into it: it goes by its connection.
    is_by_connection: bool,
    /// Of a gateway, the port that it came in at.
    bound: Option<u16>,
}

/// Where a workload sends a request.
fn from_workload(
    snapshot: &Snapshot,
    client: &Client,
    head: &RequestHead<'_>,
    target: &str,
) -> Result<Decided, MeshError> {
    let is_tls = head.scheme == "https";
    let mut seen = Seen::of_target(snapshot, client, target)?;
    if is_tls {
        seen.learn_all(snapshot, client)?;
    }
    // TLS that the application makes itself is looked at by the name of its server.
    let connections = seen.connections.as_ref().filter(|_| is_tls);
    let mut by_name = *head;
    by_name.authority = split_authority(head.authority).map_or(head.authority, |(host, _)| host);
    let mut explained = match connections {
        Some(connections) => connections.explain(&by_name, &mut fastrand::Rng::new()),
        None => seen.table.explain(head, &mut fastrand::Rng::new()),
    };
    let is_by_connection = connections.is_some();
    if is_tls && !is_by_connection && !explained.is_failure() && !seen.passes_through(&seen.table) {
        explained.error = Some(not_by_tls());
    }
    explained.notes.extend(seen.hidden.clone());
    let rules = explained.route_configuration.as_deref().map(|name| snapshot.rules_of(client, name));
    let rules = rules.unwrap_or_default();
    Ok(Decided { seen, explained, rules, is_by_connection, bound: None })
}

/// Where a gateway sends a request of somebody outside, who has asked for this host and port.
fn at_gateway(
    snapshot: &Snapshot,
    client: &Client,
    head: &RequestHead<'_>,
    target: &str,
) -> Result<Decided, MeshError> {
    let (host, port) = split_authority(target).unwrap_or((target, None));
    let port = port.and_then(|port| port.parse::<u16>().ok()).unwrap_or_default();
    let (listener, bound) = listener_for(snapshot, client, port)?;
    let seen = Seen::of_gateway(snapshot, client, &listener, (head.scheme == "https").then_some(host))?;
    let mut explained = match &seen.connections {
        Some(connections) => {
            let mut explained = connections.explain(head, &mut fastrand::Rng::new());
            // There are no hosts in bytes.
            (explained.virtual_host, explained.route_configuration) = (None, None);
            if let Some(choice) = &mut explained.route {
                choice.passes = seen.table.passed();
            }
            explained.notes.push(OPAQUE.to_owned());
            explained
        }
        None => {
            // As its server sees it.
            let path = canonical(head, seen.paths, &seen.table)?;
            let mut head = *head;
            head.path_and_query = &path;
            seen.table.explain(&head, &mut fastrand::Rng::new())
        }
    };
    let labels: Vec<String> = client.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let named = format!("{} with {}", client.namespace, labels.join(","));
    explained.notes.push(format!("it comes in at {listener}, of gateways of namespace {named}"));
    let rules = match (&explained.route_configuration, &explained.virtual_host) {
        (Some(table), Some(host)) => snapshot.gateway_rules(client, table, &host.name),
        _ => Vec::new(),
    };
    let is_by_connection = seen.connections.is_some();
    Ok(Decided { seen, explained, rules, is_by_connection, bound: Some(bound) })
}

/// What the clusters of a request are that are known, and how long it may take.
fn tell_known(seen: &Seen, head: &RequestHead<'_>, explained: &mut Explanation) {
    for choice in &mut explained.clusters {
        choice.leaves = seen.clusters.get(&choice.name).map(|told| told.leaves().to_vec()).unwrap_or_default();
        choice.problem = seen.problem(&choice.name).map(Arc::from);
    }
    if let Some(choice) = &mut explained.route
        && let RouteAction::Forward(forward) = &choice.route.action
    {
        choice.time_limit = forward.time_limit(head.is_grpc(), seen.max_stream);
    }
}

/// How a request is treated on its way, by the names that [`explain`] has for it, and without the places where it is written: to
/// be compared with how another version of the files has it treated. All clusters have to be known.
pub(crate) fn treatment(
    snapshot: &Snapshot,
    client: &Client,
    seen: &Seen,
    head: &RequestHead<'_>,
) -> BTreeMap<&'static str, Value> {
    let mut explained = seen.table.explain(head, &mut fastrand::Rng::with_seed(0));
    tell_known(seen, head, &mut explained);
    if let Some(choice) = &mut explained.route {
        place(snapshot, &mut choice.passes, None);
    }
    let told = explained.to_json();
    let mut all: BTreeMap<&'static str, Value> = BTreeMap::new();
    let route = ["timeout", "retry", "per_try_timeout", "split_by", "coalesce", "cors"];
    all.extend(route.into_iter().filter_map(|name| Some((name, told.get("route")?.get(name)?.clone()))));
    let of_clusters = [
        "balancer",
        "outlier_detection",
        "circuit_breakers",
        "connections",
        "protocol",
        "tls",
        "health_check",
        "fallback",
    ];
    for name in of_clusters {
        let clusters = told.get("clusters").and_then(Value::as_array).into_iter().flatten();
        let mut values: Vec<&Value> = clusters.filter_map(|cluster| cluster.get(name)).collect();
        values.dedup();
        match values.as_slice() {
            [] => {}
            [only] => _ = all.insert(name, (*only).clone()),
            several => _ = all.insert(name, several.iter().copied().cloned().collect()),
        }
    }
    let passes = explained.route.as_ref().map(|choice| choice.passes.as_slice()).unwrap_or_default();
    all.insert("passes", treated(passes));
    let servers = servers(snapshot, client, &explained.clusters);
    let treated_by =
        |server: &ServerChoice| json!({ "passes": treated(&server.passes), "problem": server.problem.as_deref() });
    all.insert("servers", servers.iter().map(treated_by).collect());
    all.retain(|_, value| !value.is_null() && *value != json!([]));
    all
}

/// What a server makes of requests, as [`treatment`].
pub(crate) fn treatment_of_server(snapshot: &Snapshot, seen: &Seen) -> BTreeMap<&'static str, Value> {
    let mut passes = seen.table.passed();
    place(snapshot, &mut passes, None);
    if passes.is_empty() { BTreeMap::new() } else { [("passes", treated(&passes))].into() }
}

/// Limits, rules and policies without the names of their filters, which say in which order they are written.
fn treated(passes: &[Passed]) -> Value {
    passes.iter().map(|passed| json!({ "kind": passed.kind, "settings": passed.settings })).collect()
}

/// Says where filters are written, with those by which a server at a port is guarded, and what of them processes are not told.
fn place(snapshot: &Snapshot, passes: &mut [Passed], guarded: Option<(&Client, u16)>) {
    for passed in passes {
        let guard = || {
            let (client, port) = guarded?;
            snapshot.guard_origin(client, port, passed.kind)
        };
        passed.origin = snapshot.filter_origin(&passed.name).or_else(guard).map(Arc::from);
        if let Some((limit, settings)) = snapshot.quota_of_filter(&passed.name).zip(passed.settings.as_object_mut()) {
            settings.insert("limit".to_owned(), limit.into());
        }
    }
}

/// The servers that clusters lead to: the same ones in a row once.
fn servers(snapshot: &Snapshot, caller: &Client, clusters: &[ClusterChoice]) -> Vec<ServerChoice> {
    let mut servers: Vec<ServerChoice> =
        clusters.iter().filter_map(|choice| server(snapshot, caller, choice.name.as_str())).collect();
    servers.dedup();
    servers
}

/// The servers that a cluster leads to, where anything is known of what they do to requests. They are taken to have what
/// certificate they need.
fn server(snapshot: &Snapshot, caller: &Client, cluster: &str) -> Option<ServerChoice> {
    let served = snapshot.served_as(caller, cluster)?;
    let bound = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), served.port);
    let mut choice = ServerChoice::new(served.to_string());
    let client = served.client();
    match Seen::of_server(snapshot, &client, bound) {
        Ok(seen) => {
            choice.passes = seen.table.passed();
            place(snapshot, &mut choice.passes, Some((&client, bound.port())));
            choice.problem = refusal(seen.table.config());
        }
        Err(error) => choice.problem = Some(error.to_string().into()),
    }
    (!choice.passes.is_empty() || choice.problem.is_some()).then_some(choice)
}

/// What a server answers to everybody, where it lets nobody in.
fn refusal(routes: &RouteConfiguration) -> Option<Arc<str>> {
    match &routes.virtual_hosts.first()?.routes.first()?.action {
        RouteAction::Direct(direct) => {
            let reason = String::from_utf8_lossy(&direct.body);
            Some(format!("every request is answered with {}: {reason}", direct.status.as_u16()).into())
        }
        _ => None,
    }
}

/// The routes of a client to `HOST:PORT`, in the order in which they are looked at.
pub(crate) fn routes(snapshot: &Snapshot, client: &Client, target: &str) -> Value {
    let seen = match Seen::whole_of_target(snapshot, client, target) {
        Ok(seen) => seen,
        Err(error) => return json!({ "target": target, "error": error.to_string(), "routes": [] }),
    };
    let config = seen.table.config();
    let name = config.name.as_ref().map(|name| name.as_str().to_owned());
    let rules = name.as_deref().map(|name| snapshot.rules_of(client, name)).unwrap_or_default();
    let routes =
        seen.table.choices().map(|choice| shown(&seen, &choice, rules.get(choice.position).and_then(Option::as_ref)));
    let mut passes = seen.table.passed();
    place(snapshot, &mut passes, None);
    // Routes are called as the cluster of the whole service is.
    let server = name.as_deref().and_then(|name| server(snapshot, client, name));
    json!({
        "target": target,
        "route_configuration": name,
        "routes": routes.collect::<Vec<_>>(),
        "passes": words(&passes),
        "server": server.map(|server| json!({
            "name": &*server.name,
            "passes": words(&server.passes),
            "problem": server.problem.as_deref(),
        })),
    })
}

fn words(passes: &[Passed]) -> Vec<String> {
    passes.iter().map(Passed::to_string).collect()
}

fn shown(seen: &Seen, choice: &RouteChoice, rule: Option<&Written>) -> Value {
    let route = &choice.route;
    let (action, clusters) = match &route.action {
        RouteAction::Forward(forward) => ("forward".to_owned(), shares(seen, forward)),
        RouteAction::Redirect(redirect) => (format!("redirect with {}", redirect.status.as_u16()), Vec::new()),
        RouteAction::Direct(direct) => (format!("answer {}", direct.status.as_u16()), Vec::new()),
        RouteAction::NonForwarding => ("the application answers".to_owned(), Vec::new()),
        RouteAction::Unusable(why) => (format!("fails: {why}"), Vec::new()),
    };
    json!({
        "name": &*route.name,
        "origin": rule.map(Written::place),
        "conditions": conditions(&route.matches),
        "action": action,
        "clusters": clusters,
        "settings": choice.said(),
    })
}

fn shares(seen: &Seen, forward: &Forward) -> Vec<Value> {
    let weighted = match &forward.clusters {
        Clusters::One(name) => vec![(name, 1)],
        Clusters::Weighted(all) => all.iter().map(|one| (&one.name, one.weight)).collect(),
        _ => Vec::new(),
    };
    let all: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    // A sticky split has several parts of one cluster.
    let mut merged: Vec<(&ClusterName, u32)> = Vec::new();
    for (name, weight) in weighted {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.saturating_add(weight),
            None => merged.push((name, weight)),
        }
    }
    let shares = merged.into_iter().map(|(name, weight)| {
        let key = ClusterKey::parse(name.as_str()).or_else(|| FallbackName::parse(name.as_str()));
        json!({
            "name": name.as_str(),
            "host": key.as_ref().map(|key| &*key.host),
            "subset": key.as_ref().map(|key| &*key.subset),
            "percent": f64::from(weight) * 100.0 / all.max(1) as f64,
            "problem": seen.problem(name),
        })
    });
    shares.collect()
}

fn origin(rule: &Written) -> Arc<str> {
    rule.place().into()
}

fn shared(origins: Vec<(&'static str, String)>) -> Vec<(&'static str, Arc<str>)> {
    origins.into_iter().map(|(name, origin)| (name, origin.into())).collect()
}

#[cfg(test)]
mod tests {
    use mesh_core::resources::{Resource, ResourceType};
    use mesh_core::xds::decode::{Options, decode};

    use super::*;
    use crate::catalog::{Catalog, Kind};
    use crate::plane::Plane;
    use crate::render::RENDERED;
    use crate::render::judge::JUDGED;

    /// The routes of the service `s0`.
    const ROUTES: &str = "outbound|80||s0.shop.svc.cluster.local";

    /// So many services of so many routes each, and one more for all that those do not take.
    fn plane(services: usize, routes: usize) -> Plane {
        let one = |at: usize| {
            let rules = (0..routes).map(|rule| {
                format!("  - match: [{{uri: {{prefix: /r{rule}/}}}}]\n    route: [{{destination: {{host: s{at}}}}}]\n")
            });
            let (head, rules) = ("apiVersion: networking.istio.io/v1\nkind: VirtualService", rules.collect::<String>());
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{at}, namespace: shop}}\nspec: {{selector: {{app: s{at}}}, ports: [{{name: http, port: 80}}]}}\n---\n\
                 {head}\nmetadata: {{name: s{at}, namespace: shop}}\nspec:\n  hosts: [s{at}]\n  http:\n{rules}  - route: [{{destination: {{host: s{at}}}}}]\n---\n"
            )
        };
        Plane::from_yaml(&(0..services).map(one).collect::<String>()).unwrap_or_else(|why| panic!("{why}"))
    }

    fn rendered(what: impl FnOnce()) -> usize {
        RENDERED.set(0);
        what();
        RENDERED.get()
    }

    #[test]
    fn a_route_that_was_judged_when_it_was_read_is_not_judged_again_when_it_is_published() {
        let plane = plane(2, 50);
        let snapshot = plane.snapshot();
        let (client, _) = asker(&snapshot, "shop/s1").unwrap();
        JUDGED.set(0);
        assert!(snapshot.resource(&client, Kind::Route, ROUTES).is_some());
        // The configuration without its routes.
        assert!(JUDGED.get() <= 1, "{}", JUDGED.get());
        let shown = routes(&snapshot, &client, "s0:80");
        assert_eq!(shown["routes"].as_array().map(Vec::len), Some(51));
        // The listener and the cluster.
        assert!(JUDGED.get() <= 3, "{}", JUDGED.get());
    }

    #[test]
    fn what_is_read_in_routes_is_what_a_client_reads_in_the_bytes_that_it_is_sent() {
        let rules = |value: &str| {
            [
                "  - match: [{uri: {exact: /a}, method: {exact: GET}, headers: {x-tier: {regex: g.*}}, queryParams: {v: {exact: x}}}]\n    timeout: 2s\n",
                "    retries: {attempts: 3, perTryTimeout: 1s, retryOn: '5xx,503'}\n    rewrite: {uri: /b}\n    mirrors: [{destination: {host: s1}}]\n",
                "    fault: {delay: {percentage: {value: 10}, fixedDelay: 220ms}}\n    corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET]}\n",
                &format!("    headers: {{request: {{set: {{x-a: '{value}'}}, remove: [x-b]}}}}\n"),
                "    route: [{destination: {host: s0}, weight: 60}, {destination: {host: s1}, weight: 40, headers: {response: {add: {x-c: d}}}}]\n",
                "  - match: [{uri: {prefix: /old}}]\n    redirect: {uri: /new, redirectCode: 302}\n",
                "  - match: [{uri: {prefix: /tea}}]\n    directResponse: {status: 418, body: {string: tea}}\n",
            ]
            .concat()
        };
        for (value, is_refused) in [("b", false), ("%START_TIME%", true)] {
            let service = |name: &str| {
                format!(
                    "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n"
                )
            };
            let object = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: s0, namespace: shop}\nspec:\n  hosts: [s0]\n  http:\n";
            let yaml = [service("s0"), service("s1"), object.to_owned(), rules(value)].concat();
            let plane = Plane::from_yaml(&yaml).unwrap_or_else(|why| panic!("{why}"));
            let snapshot = plane.snapshot();
            let (client, _) = asker(&snapshot, "shop/s1").unwrap();
            let sent = snapshot.resource(&client, Kind::Route, ROUTES).unwrap();
            let sent = decode(ResourceType::Route, &sent.body, &Options::default()).unwrap().resource;
            let read = snapshot.read_routes(&client, ROUTES).map(Resource::Route);
            assert_eq!(read, (!is_refused).then_some(sent), "{value}");
            let shown = routes(&snapshot, &client, "s0:80");
            let action = if is_refused { "answer 503" } else { "forward" };
            assert_eq!(shown["routes"].as_array().map(Vec::len), Some(3));
            assert_eq!(shown["routes"][0]["action"], action);
        }
    }

    #[test]
    fn routes_are_shown_with_what_they_make_of_requests_and_splits_with_whole_shares() {
        let subset = |name: &str| format!("{{name: {name}, labels: {{v: {name}}}}}");
        let to = |name: &str, weight: u32| {
            format!("    - {{destination: {{host: s0, subset: {name}}}, weight: {weight}}}\n")
        };
        let rule = [
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: s0, namespace: shop, annotations: {mesh-control/sticky-split: header=x-user}}\nspec:\n  hosts: [s0]\n  http:\n",
            "  - timeout: 250ms\n    fault: {delay: {percentage: {value: 100}, fixedDelay: 220ms}}\n    rewrite: {uri: /x}\n    headers: {request: {set: {x-a: b}}}\n",
            "    mirrors: [{destination: {host: s1}}]\n    route:\n",
            &[to("v1", 50), to("v2", 30), to("v3", 20)].concat(),
        ]
        .concat();
        let service = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n"
            )
        };
        let subsets = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s0, namespace: shop, annotations: {{mesh-control/fallback: host=s1}}}}\nspec: {{host: s0, subsets: [{}, {}, {}]}}\n",
            subset("v1"),
            subset("v2"),
            subset("v3")
        );
        let yaml = [service("s0"), service("s1"), rule, subsets].concat();
        let plane = Plane::from_yaml(&yaml).unwrap_or_else(|why| panic!("{why}"));
        let snapshot = plane.snapshot();
        let (client, _) = asker(&snapshot, "shop/s1").unwrap();
        let shown = routes(&snapshot, &client, "s0:80");
        let clusters = shown["routes"][0]["clusters"].as_array().unwrap();
        let mut shares: Vec<String> = clusters
            .iter()
            .map(|one| format!("{} {} {}", one["host"], one["subset"], one["percent"]).replace('"', ""))
            .collect();
        shares.sort_unstable();
        let host = "s0.shop.svc.cluster.local";
        assert_eq!(
            shares,
            [format!("{host} v1 50.0"), format!("{host} v2 30.0"), format!("{host} v3 20.0")],
            "{shown:#}"
        );
        let settings: Vec<&str> =
            shown["routes"][0]["settings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for expected in [
            "fault: ",
            "path: ",
            "timeout: 250ms",
            "retry: attempts 2, ",
            "mirrors: ",
            "request headers: set x-a: b",
            "split by: header x-user",
        ] {
            assert!(settings.iter().any(|one| one.starts_with(expected)), "{expected}: {settings:?}");
        }
        assert_eq!(settings.len(), 7, "{settings:?}");
    }

    #[test]
    fn of_the_routes_of_a_mesh_those_of_the_host_are_rendered_that_is_asked_about_and_each_once() {
        let plane = plane(20, 50);
        let snapshot = plane.snapshot();
        let (client, _) = asker(&snapshot, "shop/s1").unwrap();
        let asked = |url: &str| {
            let head = request(&Method::GET, &url.parse().unwrap(), &[]).unwrap();
            let explained = explain(&snapshot, &client, &RequestHead::of(&head).unwrap()).unwrap();
            assert!(!explained.is_failure(), "{explained}");
        };
        assert_eq!(rendered(|| asked("http://s7/r49/x")), 51);
        assert_eq!(rendered(|| asked("http://s7/r2/x")), 0, "they are known by now");
        assert_eq!(rendered(|| asked("http://s8/")), 51);
    }
}
