//! `ClusterLoadAssignment`, the same for every kind of client.

use std::collections::{BTreeMap, HashSet};

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;

use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_core::workload::{canonical_name, canonical_revision};
use prost::Message;

use super::proto::{OrderedMetadata, address, number, socket_address, text_metadata};
use crate::policy::Cluster;
use crate::policy::locality::{Locality as LocalityParts, Nearness, Place};
use crate::registry::service::is_subset;
use crate::registry::{Endpoint, Health, WrittenEndpoint};

/// Shares of localities are multiplied by this: a share of several is divided among them without much loss.
const SHARE_UNIT: u64 = 100;

/// The endpoints of a cluster that have these labels, grouped by locality. Every locality has a weight:
/// without one, gRPC passes over it (gRFC A27). Near ones go first, or have their share, where that counts.
pub fn load_assignment(
    name: &str,
    endpoints: &[Endpoint],
    labels: Option<&BTreeMap<String, String>>,
    nearness: Option<&Nearness>,
    speaks_tls: impl Fn(&Endpoint) -> Option<bool>,
) -> pb::ClusterLoadAssignment {
    let chosen = endpoints.iter().filter(|endpoint| has_labels(&endpoint.labels, labels));
    let chosen = chosen.filter_map(|endpoint| {
        let rendered = lb_endpoint(endpoint, speaks_tls(endpoint)?);
        let distance = nearness.map_or(0, |nearness| nearness.distance(place_of(endpoint)));
        Some(((distance, &endpoint.locality), endpoint.weight, rendered))
    });
    let mut assignment = grouped(name, chosen);
    if let Some(nearness) = nearness {
        share_out(&mut assignment, nearness);
    }
    assignment
}

/// Where an endpoint is.
pub fn place_of(endpoint: &Endpoint) -> Place<'_> {
    Place { locality: &endpoint.locality, labels: &endpoint.labels }
}

/// Gives each of the nearest localities its share: an entry's is divided among the localities that it covers by their weight.
/// Where there are shares and no order, what no entry covers is left out (Istio: loadbalancer.go).
fn share_out(assignment: &mut pb::ClusterLoadAssignment, nearness: &Nearness) {
    let has_order = matches!(nearness, Nearness::Order { .. });
    let share_of = |endpoints: &pb::LocalityLbEndpoints| {
        let Locality { region, zone, sub_zone } = endpoints.locality.clone().unwrap_or_default();
        nearness.share(&[region.into(), zone.into(), sub_zone.into()]).filter(|_| endpoints.priority == 0)
    };
    let weight_of = |endpoints: &pb::LocalityLbEndpoints| {
        endpoints.load_balancing_weight.map_or(1, |weight| u64::from(weight.value))
    };
    let mut totals: BTreeMap<usize, u64> = BTreeMap::new();
    for endpoints in &assignment.endpoints {
        if let Some((entry, _)) = share_of(endpoints) {
            *totals.entry(entry).or_default() += weight_of(endpoints);
        }
    }
    assignment.endpoints.retain_mut(|endpoints| {
        let Some((entry, share)) = share_of(endpoints) else { return has_order };
        let total = totals.get(&entry).copied().unwrap_or(1).max(1);
        let part = u128::from(weight_of(endpoints)) * u128::from(u64::from(share) * SHARE_UNIT);
        let part = part.div_ceil(u128::from(total));
        endpoints.load_balancing_weight = number(u32::try_from(part).unwrap_or(u32::MAX));
        true
    });
}

/// A set of endpoints as bytes: the same set is the same bytes, so its maps are sorted.
pub fn encoded(assignment: &pb::ClusterLoadAssignment) -> Vec<u8> {
    let ordered = OrderedAssignment {
        cluster_name: assignment.cluster_name.clone(),
        endpoints: assignment.endpoints.iter().map(OrderedLocality::of).collect(),
    };
    ordered.encode_to_vec()
}

/// The fields of `envoy.config.endpoint.v3.ClusterLoadAssignment` that are ever set.
#[derive(Clone, PartialEq, Message)]
struct OrderedAssignment {
    #[prost(string, tag = "1")]
    cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<OrderedLocality>,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedLocality {
    #[prost(message, optional, tag = "1")]
    locality: Option<Locality>,
    #[prost(message, repeated, tag = "2")]
    lb_endpoints: Vec<OrderedEndpoint>,
    #[prost(message, optional, tag = "3")]
    load_balancing_weight: Option<UInt32Value>,
    #[prost(uint32, tag = "5")]
    priority: u32,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedEndpoint {
    #[prost(message, optional, tag = "1")]
    endpoint: Option<pb::Endpoint>,
    #[prost(int32, tag = "2")]
    health_status: i32,
    #[prost(message, optional, tag = "3")]
    metadata: Option<OrderedMetadata>,
    #[prost(message, optional, tag = "4")]
    load_balancing_weight: Option<UInt32Value>,
}

impl OrderedLocality {
    fn of(locality: &pb::LocalityLbEndpoints) -> OrderedLocality {
        let endpoints = locality.lb_endpoints.iter().map(|endpoint| OrderedEndpoint {
            endpoint: match &endpoint.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => Some(endpoint.clone()),
                _ => None,
            },
            health_status: endpoint.health_status,
            metadata: endpoint.metadata.as_ref().map(OrderedMetadata::of_texts),
            load_balancing_weight: endpoint.load_balancing_weight,
        });
        OrderedLocality {
            locality: locality.locality.clone(),
            lb_endpoints: endpoints.collect(),
            load_balancing_weight: locality.load_balancing_weight,
            priority: locality.priority,
        }
    }
}

/// The endpoints that a client finds by DNS: names, and the port of each.
pub fn dns_assignment(cluster: &Cluster<'_>, endpoints: &[(&WrittenEndpoint, u16)]) -> pb::ClusterLoadAssignment {
    let name = cluster.key.to_string();
    // Written twice is there once: clients refuse the same address twice.
    let mut seen = HashSet::new();
    let endpoints = endpoints.iter().filter(|(written, port)| seen.insert((&written.address, *port)));
    let endpoints = endpoints.map(|(written, port)| {
        let mut endpoint = plain(&written.address, *port, written.weight);
        endpoint.metadata = written.mutual_tls.then(speaks_mutual_tls);
        ((0, &written.locality), written.weight, endpoint)
    });
    grouped(&name, endpoints)
}

/// One name and port.
pub fn single_assignment(name: &str, host: &str, port: u16) -> pb::ClusterLoadAssignment {
    grouped(name, [((0, &LocalityParts::default()), 1, plain(host, port, 1))].into_iter())
}

/// Whether an endpoint has the labels that a subset asks for.
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: Option<&BTreeMap<String, String>>) -> bool {
    wanted.is_none_or(|wanted| is_subset(wanted, labels))
}

/// By how far away they are, and by locality. Distances become priorities, which have no gaps.
fn grouped<'a>(
    name: &str,
    endpoints: impl Iterator<Item = ((u32, &'a LocalityParts), u32, pb::LbEndpoint)>,
) -> pb::ClusterLoadAssignment {
    let mut localities: BTreeMap<(u32, &LocalityParts), (u64, Vec<pb::LbEndpoint>)> = BTreeMap::new();
    let mut total: u64 = 0;
    for (locality, weight, endpoint) in endpoints {
        let (sum, endpoints) = localities.entry(locality).or_default();
        *sum += u64::from(weight);
        total += u64::from(weight);
        endpoints.push(endpoint);
    }
    // Sums beyond 32 bits are rejected by every client: keep the proportions, and shrink the numbers.
    let shrink = total / u64::from(u32::MAX / 2) + 1;
    let (mut priority, mut nearest) = (0, localities.keys().next().map(|(distance, _)| *distance));
    let endpoints = localities.into_iter().map(|((distance, locality), (sum, mut endpoints))| {
        if nearest.is_some_and(|nearest| nearest != distance) {
            (priority, nearest) = (priority + 1, Some(distance));
        }
        if shrink > 1 {
            for endpoint in &mut endpoints {
                if let Some(weight) = &mut endpoint.load_balancing_weight {
                    weight.value = shrunk(weight.value.into(), shrink);
                }
            }
        }
        let [region, zone, sub_zone] = locality.each_ref().map(|part| part.to_string());
        pb::LocalityLbEndpoints {
            locality: Some(Locality { region, zone, sub_zone }),
            lb_endpoints: endpoints,
            load_balancing_weight: number(shrunk(sum, shrink)),
            priority,
            ..Default::default()
        }
    });
    pb::ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: endpoints.collect(), ..Default::default() }
}

fn shrunk(weight: u64, by: u64) -> u32 {
    u32::try_from(weight / by).unwrap_or(u32::MAX).max(1)
}

fn lb_endpoint(endpoint: &Endpoint, speaks_tls: bool) -> pb::LbEndpoint {
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Unknown,
        Health::Draining => HealthStatus::Draining,
        Health::Unhealthy => HealthStatus::Unhealthy,
    };
    let mut metadata = text_metadata("istio", "workload", workload(endpoint));
    if speaks_tls {
        metadata.filter_metadata.extend(speaks_mutual_tls().filter_metadata);
    }
    pb::LbEndpoint {
        health_status: health.into(),
        metadata: Some(metadata),
        load_balancing_weight: number(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(socket_address(endpoint.address)),
            ..Default::default()
        })),
    }
}

/// The mark by which a client's cluster tells them (Istio: endpoint_builder.go).
fn speaks_mutual_tls() -> Metadata {
    text_metadata("envoy.transport_socket_match", "tlsMode", "istio".to_owned())
}

fn plain(host: &str, port: u16, weight: u32) -> pb::LbEndpoint {
    pb::LbEndpoint {
        load_balancing_weight: number(weight),
        host_identifier: Some(HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address(host, port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// `workload;namespace;canonical name;canonical revision;cluster` (Istio: networking/util/util.go, with
/// the labels of pkg/kube/labels).
fn workload(endpoint: &Endpoint) -> String {
    let label = |key: &str| endpoint.labels.get(key).map(String::as_str);
    let name = canonical_name(label).map(|(_, name)| name);
    format!(
        "{};{};{};{};{}",
        endpoint.workload,
        endpoint.namespace,
        name.unwrap_or(&endpoint.workload),
        canonical_revision(label).unwrap_or("latest"),
        endpoint.cluster
    )
}
