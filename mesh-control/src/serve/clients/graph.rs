//! The mesh as a graph, as people and tools see it: services and workloads, and what goes between them now.
//!
//! A caller that is an endpoint of a service stands for that service, at its version, so that calls through several services are
//! one path. Which that is, the registry says; who called, the reports of load.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::serve::clients::status::ServiceStatus;
use crate::serve::clients::traffic::{Callee, Caller, EdgeNow};

/// Services and workloads, and what goes between them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Graph {
    /// Every service, and everybody who called one lately.
    pub nodes: Vec<Node>,
    /// Who called whom lately, the busiest first.
    pub edges: Vec<Edge>,
}

/// A service, a version of one, or a workload that is an endpoint of none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// `HOST` of a service, `HOST/VERSION` of a version, `NAMESPACE/NAME` of a workload. Without a blank.
    pub id: String,
    /// `service`, `version` or `workload`.
    pub kind: String,
    /// The short name of the service or of the workload.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The host of the service, for a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The version, or the name of the subset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What goes from one node to another: of the last 15 seconds, unless it says otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Edge {
    /// The node that calls.
    pub source: String,
    /// The node that is called.
    pub destination: String,
    /// The workload that calls, `NAMESPACE/NAME`.
    pub workload: String,
    /// The host that is called.
    pub service: String,
    /// The subset of it, where the rules split it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// What the caller runs: `library`, `grpc` or `envoy`.
    pub class: String,
    /// Requests since the edge is known.
    pub requests: u64,
    /// Those of them that failed, as `error_rate` has it.
    #[serde(default)]
    pub failures: u64,
    /// Requests that were sent, per second.
    pub requests_per_second: f64,
    /// The share of those that ended which failed, 0 to 1: answered with 5xx or a gRPC status other than OK, not answered at all, or
    /// kept back by a limit.
    pub error_rate: f64,
    /// The time within which half of them ended, in milliseconds; `null` where the caller does not say.
    pub p50_ms: Option<f64>,
    /// The same for 99 of 100.
    pub p99_ms: Option<f64>,
    /// The share that went by TLS, 0 to 1; `null` where the caller does not say.
    pub mutual_tls: Option<f64>,
}

/// Puts the graph together. `serves` is the host of which a workload (namespace and name) is an endpoint.
pub(crate) fn graph(
    edges: &[EdgeNow],
    serves: &BTreeMap<(Arc<str>, Arc<str>), String>,
    services: &[ServiceStatus],
) -> Graph {
    let mut nodes = BTreeMap::new();
    for service in services {
        let node = service_node(&service.host, Some(&service.namespace));
        nodes.insert(node.id.clone(), node);
    }
    let mut shown: BTreeMap<(String, String), Edge> = BTreeMap::new();
    for edge in edges {
        let ends = [caller_node(&edge.caller, serves), callee_node(&edge.callee)];
        let [source, destination] = ends.map(|node| {
            let id = node.id.clone();
            if let Some(host) = &node.service {
                nodes.entry(host.clone()).or_insert_with(|| service_node(host, Some(&node.namespace)));
            }
            nodes.entry(id.clone()).or_insert(node);
            id
        });
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let figures = &edge.figures;
        let more = Edge {
            source: source.clone(),
            destination: destination.clone(),
            workload: edge.caller.to_string(),
            service: edge.callee.host.to_string(),
            subset: Some(edge.callee.subset.to_string()).filter(|subset| !subset.is_empty()),
            class: edge.class.name().to_owned(),
            requests: edge.requests,
            failures: edge.failures,
            requests_per_second: round(edge.rate),
            error_rate: round(figures.error_rate().unwrap_or_default()),
            p50_ms: figures.quantile(0.5).map(round),
            p99_ms: figures.quantile(0.99).map(round),
            mutual_tls: figures.secured_share().map(round),
        };
        // Two workloads may be endpoints of one service: the busier one is told of, with what both asked for and what failed of it.
        shown
            .entry((source, destination))
            .and_modify(|present| {
                let Edge { requests, failures, requests_per_second: rate, error_rate, .. } = *present;
                let failing = error_rate * rate + more.error_rate * more.requests_per_second;
                if more.requests_per_second > rate {
                    *present = more.clone();
                }
                present.requests = requests.saturating_add(more.requests);
                present.failures = failures.saturating_add(more.failures);
                present.requests_per_second = round(rate + more.requests_per_second);
                if present.requests_per_second > 0.0 {
                    present.error_rate = round(failing / present.requests_per_second);
                }
            })
            .or_insert(more);
    }
    let mut edges: Vec<Edge> = shown.into_values().collect();
    edges.sort_by(|a, b| b.requests_per_second.total_cmp(&a.requests_per_second));
    Graph { nodes: nodes.into_values().collect(), edges }
}

fn service_node(host: &str, namespace: Option<&str>) -> Node {
    let mut parts = host.split('.');
    let (name, second) = (parts.next().unwrap_or(host), parts.next().unwrap_or_default());
    let is_of_cluster = host.contains(".svc.");
    Node {
        id: host.to_owned(),
        kind: "service".to_owned(),
        name: if is_of_cluster { name } else { host }.to_owned(),
        namespace: namespace.unwrap_or(if is_of_cluster { second } else { "" }).to_owned(),
        service: None,
        version: None,
    }
}

fn version_node(host: &str, version: &str, namespace: Option<&str>) -> Node {
    let of = service_node(host, namespace);
    Node {
        id: format!("{host}/{}", plain(version)),
        kind: "version".to_owned(),
        service: Some(host.to_owned()),
        version: Some(version.to_owned()),
        ..of
    }
}

fn callee_node(callee: &Callee) -> Node {
    match &*callee.subset {
        "" => service_node(&callee.host, None),
        subset => version_node(&callee.host, subset, None),
    }
}

fn caller_node(caller: &Caller, serves: &BTreeMap<(Arc<str>, Arc<str>), String>) -> Node {
    let Caller { namespace, name, version } = caller;
    match (serves.get(&(namespace.clone(), name.clone())), &**version) {
        (Some(host), "") => service_node(host, Some(namespace)),
        (Some(host), version) => version_node(host, version, Some(namespace)),
        (None, version) => Node {
            id: match version {
                "" => format!("{namespace}/{}", plain(name)),
                version => format!("{namespace}/{}/{}", plain(name), plain(version)),
            },
            kind: "workload".to_owned(),
            name: name.to_string(),
            namespace: namespace.to_string(),
            service: None,
            version: Some(version.to_owned()).filter(|version| !version.is_empty()),
        },
    }
}

/// What clients call themselves, without what would end a word.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ClientClass;
    use crate::serve::clients::traffic::Figures;

    fn edge(from: (&str, &str), to: (&str, &str), requests: u64, rate: f64) -> EdgeNow {
        EdgeNow {
            caller: Caller { namespace: "shop".into(), name: from.0.into(), version: from.1.into() },
            callee: Callee { host: to.0.into(), subset: to.1.into() },
            class: ClientClass::Library,
            requests,
            failures: 0,
            rate,
            figures: Figures::default(),
        }
    }

    const REVIEWS: &str = "reviews.shop.svc.cluster.local";
    const RATINGS: &str = "ratings.shop.svc.cluster.local";

    #[test]
    fn calls_through_several_services_are_one_path() {
        let serves = BTreeMap::from([(("shop".into(), "reviews".into()), REVIEWS.to_owned())]);
        let edges = [
            edge(("web", ""), (REVIEWS, "v2"), 10, 1.0),
            edge(("web", ""), (REVIEWS, "v1"), 90, 9.0),
            edge(("reviews", "v2"), (RATINGS, ""), 10, 1.0),
            edge(("a b\u{1b}", "v 1"), (RATINGS, ""), 1, 0.0),
        ];
        let services =
            [ServiceStatus { host: "idle.example".to_owned(), namespace: "shop".to_owned(), ..Default::default() }];
        let graph = graph(&edges, &serves, &services);
        let ends: Vec<_> = graph.edges.iter().map(|edge| (&*edge.source, &*edge.destination)).collect();
        let (v1, v2) = (format!("{REVIEWS}/v1"), format!("{REVIEWS}/v2"));
        assert_eq!(ends[0], ("shop/web", &*v1), "the busiest first");
        assert!(ends.contains(&("shop/web", &v2)) && ends.contains(&(&v2, RATINGS)));
        assert!(ends.contains(&("shop/a_b_/v_1", RATINGS)), "an ID has no blank: {ends:?}");
        let kinds: Vec<_> = graph.nodes.iter().map(|node| (&*node.id, &*node.kind)).collect();
        assert!(kinds.contains(&(REVIEWS, "service")) && kinds.contains(&(&v2, "version")), "{kinds:?}");
        assert!(kinds.contains(&("idle.example", "service")) && kinds.contains(&("shop/web", "workload")));
    }

    #[test]
    fn workloads_of_one_service_are_one_edge() {
        let serves = ["a", "b"].map(|name| (("shop".into(), name.into()), REVIEWS.to_owned())).into();
        let mut edges = [edge(("a", ""), (RATINGS, ""), 1, 1.0), edge(("b", ""), (RATINGS, ""), 5, 2.0)];
        (edges[0].failures, edges[0].figures.failed) = (1, 1.0);
        let graph = graph(&edges, &serves, &[]);
        assert_eq!(graph.edges.len(), 1);
        let only = &graph.edges[0];
        assert_eq!((only.requests, only.requests_per_second, &*only.workload), (6, 3.0, "shop/b"));
        assert_eq!((only.failures, only.error_rate), (1, 0.333), "nothing that fails is hidden behind what is busier");
    }
}
