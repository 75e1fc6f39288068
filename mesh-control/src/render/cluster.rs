//! One cluster, for each kind of client: as it is, with one that stands in for it, passed on to as it is, or leading nowhere.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use mesh_core::identity::SpiffeId;
use mesh_core::resources::ResourceType;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::judge::Judge;
use super::tls::{self, Security};
use super::{
    BLACK_HOLE, Degraded, Found, PASSTHROUGH, Rendered, encode, encoded, endpoints, envoy, found_by, grpc,
    has_endpoints_resource, judge, library, plain, proto,
};
use crate::catalog::{ClientClass, Encoded};
use crate::policy::route::{ClusterKey, Fallback, FallbackName, ServerName};
use crate::policy::traffic::{CONNECT_TIMEOUT, Tls};
use crate::policy::view::View;
use crate::policy::{Cluster, Policy};
use crate::registry::{Service, WrittenEndpoint};

/// The cluster of this name, `outbound|port|subset|host`.
/// `may_have_certificate` says whether the client is told to call by mutual TLS, for which its word is enough; `identities` are those who serve it by mutual TLS.
pub fn render_cluster(
    judge: &Judge,
    policy: &Policy,
    class: ClientClass,
    view: &View,
    name: &str,
    may_have_certificate: bool,
    identities: &[SpiffeId],
) -> Option<Rendered> {
    if class == ClientClass::Envoy
        && let Some(special) = envoy::special(name)
    {
        return Some(plain(encode(name, &special)));
    }
    if name == BLACK_HOLE {
        return Some(plain(encode(name, &nowhere(name))));
    }
    if name == PASSTHROUGH && class == ClientClass::Library {
        return Some(plain(encode(name, &library::passthrough())));
    }
    if let Some(key) = FallbackName::parse(name) {
        return render_fallback(judge, policy, class, view, name, key);
    }
    if let Some(key) = ServerName::parse(name) {
        return render_passed_on(judge, policy, class, view, name, key);
    }
    let key = ClusterKey::parse(name)?;
    let is_destination = policy.is_destination(&key);
    // An Envoy may know where a connection to one of many hosts was going.
    let is_callable = |seen: &Cluster<'_>| {
        class == ClientClass::Envoy || found_by(seen) != Found::Host || !seen.key.host.starts_with('*')
    };
    let whole = ClusterKey { subset: "".into(), ..key.clone() };
    let seen = policy.cluster(key, view).filter(is_callable);
    let Some(seen) = seen else {
        // A client waits for what it is not told of, and with it for every route beside: gRPC's clients for 15 s. Told
        // that there is no endpoint, it fails what this route takes, and nothing else. An Envoy waits for nothing.
        let whole = policy.cluster(whole, view);
        let encoded = nowhere_of(name, class, whole.map(|seen| seen.service));
        let is_good = is_destination
            && class != ClientClass::Envoy
            && judge.verdict(ResourceType::Cluster, &encoded.body).is_ok();
        return is_good.then(|| plain(encoded));
    };
    let (written, unknown) = dns_endpoints(policy, &seen, identities);
    if written.is_empty() && unknown > 0 {
        return Some(plain(nowhere_of(name, class, Some(seen.service))));
    }
    let mut degraded = Vec::new();
    let peers = policy.mesh.with_aliases(identities);
    let rendered = match class {
        ClientClass::Library => {
            let security = tls::upstream(&seen, &written, may_have_certificate, &peers);
            library::render_cluster(&seen, &written, security)
        }
        ClientClass::Grpc => {
            let security = tls::of_grpc(&seen, &written, may_have_certificate, &peers);
            grpc::render_cluster(&seen, &written, security, &mut degraded)
        }
        ClientClass::Envoy => envoy::cluster(&seen, &written, may_have_certificate, &peers, &mut degraded),
    };
    // The metadata comes last and by hand: it is a map of several entries, which has to be sorted.
    let mut metadata = proto::service_metadata(seen.service);
    match (&seen.fallback, class) {
        (Some(Fallback::Respond(answer)), ClientClass::Grpc) => {
            if let Some(rule) = seen.rule {
                let what = format!("calls fail where nothing is healthy, and are not answered with {}", answer.status);
                degraded.push(Degraded::of_annotation(rule, "mesh-control/fallback", what));
            }
        }
        (Some(Fallback::Respond(answer)), ClientClass::Library) => metadata.add_fallback(answer),
        _ => {}
    }
    if class == ClientClass::Library && may_have_certificate && tls::is_by_endpoints(&seen) {
        metadata.add_own("peers", "endpoints".to_owned());
    }
    let metadata = ClusterMetadata { metadata: Some(metadata) };
    let with_metadata = |rendered: &cluster::Cluster| encode_with(name, rendered, &metadata);
    let mut encoded = with_metadata(&rendered);
    if may_have_certificate && seen.service.takes_registrations() {
        // Who may answer is known when the workloads are: until they have come back, nobody is told of fewer. One more than
        // there are: who has nothing is told of the cluster at once, which may have endpoints that are written down.
        let told = identities.len() + 1;
        let version = Encoded::version_of(xxh3_64(&encoded.body), told);
        (encoded.version, encoded.endpoints, encoded.self_registered) = (version.into(), told, true);
    }
    // What the library would not take of what is said, Envoy would not either. Hosts that stand for many are Envoy's alone.
    let judged = match class {
        ClientClass::Envoy if seen.key.host.starts_with('*') => with_metadata(&nowhere(name)).body,
        ClientClass::Envoy => with_metadata(&library::render_cluster(&seen, &written, Security::default())).body,
        ClientClass::Library | ClientClass::Grpc => encoded.body.clone(),
    };
    let Err(invalid) = judge.verdict(ResourceType::Cluster, &judged) else {
        return Some(Rendered { encoded, degraded, refused: Vec::new() });
    };
    let encoded = with_metadata(&nowhere(name));
    let refused = vec![judge::of_cluster(&seen, &invalid)];
    judge.verdict(ResourceType::Cluster, &encoded.body).is_ok().then_some(Rendered { encoded, degraded, refused })
}

/// A cluster and the one that stands in for it, where there still is one (gRFC A37).
fn render_fallback(
    judge: &Judge,
    policy: &Policy,
    class: ClientClass,
    view: &View,
    name: &str,
    key: ClusterKey,
) -> Option<Rendered> {
    let mut clusters = vec![key.to_string()];
    let seen = policy.cluster(key, view)?;
    if let Some(Fallback::To(other)) = &seen.fallback {
        clusters.push(other.to_string());
    }
    let mut aggregate = aggregate(name, clusters);
    if class == ClientClass::Grpc {
        // gRFC A37: older clients take the policy of the aggregate for all of it, and know none that a cluster provides.
        let own = grpc::render_cluster(&seen, &[], Some(Security::default()), &mut Vec::new());
        (aggregate.lb_policy, aggregate.load_balancing_policy) = (own.lb_policy, own.load_balancing_policy);
    }
    let encoded = encode(name, &aggregate);
    judge.verdict(ResourceType::Cluster, &encoded.body).is_ok().then(|| plain(encoded))
}

/// A cluster that connections of mutual TLS are passed on to as they are: what is said of its TLS and of its HTTP is for those who
/// make them.
fn render_passed_on(
    judge: &Judge,
    policy: &Policy,
    class: ClientClass,
    view: &View,
    name: &str,
    key: ClusterKey,
) -> Option<Rendered> {
    let seen = policy.cluster(key, view).filter(has_endpoints_resource)?;
    if class == ClientClass::Grpc || seen.is_refused {
        return Some(plain(encode(name, &nowhere(name))));
    }
    let mut rendered = library::render_cluster(&seen, &[], Security::default());
    rendered.name = name.to_owned();
    if let Some(eds) = &mut rendered.eds_cluster_config {
        name.clone_into(&mut eds.service_name);
    }
    rendered.load_balancing_policy = None;
    rendered.typed_extension_protocol_options.clear();
    rendered.health_checks.clear();
    if class == ClientClass::Envoy {
        rendered.lrs_server = None;
    }
    let metadata = ClusterMetadata { metadata: Some(proto::service_metadata(seen.service)) };
    let encoded = encode_with(name, &rendered, &metadata);
    judge.verdict(ResourceType::Cluster, &encoded.body).is_ok().then(|| plain(encoded))
}

/// The first of these clusters that has anything healthy.
fn aggregate(name: &str, clusters: Vec<String>) -> cluster::Cluster {
    use cluster::cluster::{ClusterDiscoveryType, CustomClusterType, LbPolicy};
    use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;
    let custom = CustomClusterType {
        name: "envoy.clusters.aggregate".to_owned(),
        typed_config: Some(proto::any(&ClusterConfig { clusters })),
    };
    cluster::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(proto::duration(CONNECT_TIMEOUT)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)),
        ..Default::default()
    }
}

/// What is looked up, and how many endpoints are not, since they must not be called in plaintext and nobody knows who may
/// answer for them.
fn dns_endpoints<'p>(
    policy: &'p Policy,
    seen: &Cluster<'_>,
    identities: &[SpiffeId],
) -> (Vec<(&'p WrittenEndpoint, u16)>, usize) {
    let all = policy.services.written(seen.id);
    let all = all.filter(|written| endpoints::has_labels(&written.labels, seen.labels.as_deref()));
    let all = all.filter_map(|written| Some((written, written.port_for(&seen.port)?)));
    let is_automatic = policy.trust_domain.is_some() && seen.traffic.tls == Tls::Automatic;
    let (unknown, known): (Vec<_>, Vec<_>) =
        all.partition(|(written, _)| is_automatic && written.mutual_tls && identities.is_empty());
    (known, unknown.len())
}

/// The cluster with the endpoints of calls that go nowhere: none.
pub(super) fn nowhere(name: &str) -> cluster::Cluster {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
    cluster::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(proto::duration(CONNECT_TIMEOUT)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(proto::ads()),
            service_name: BLACK_HOLE.to_owned(),
        }),
        ..Default::default()
    }
}

/// The same, of which it is known whose it would be: calls that fail there are reported as failures of its service.
fn nowhere_of(name: &str, class: ClientClass, service: Option<&Arc<Service>>) -> Encoded {
    let mut rendered = nowhere(name);
    if class != ClientClass::Envoy {
        rendered.lrs_server = Some(proto::its_own_server());
    }
    let metadata = service.map(|service| proto::service_metadata(service));
    encode_with(name, &rendered, &ClusterMetadata { metadata })
}

/// A cluster of which nothing can be called.
pub fn leads_nowhere(name: &str) -> Encoded {
    encode(name, &nowhere(name))
}

/// The one field of `envoy.config.cluster.v3.Cluster` that is encoded apart.
#[derive(Clone, PartialEq, Message)]
struct ClusterMetadata {
    #[prost(message, optional, tag = "25")]
    metadata: Option<proto::OrderedMetadata>,
}

fn encode_with(name: &str, rendered: &cluster::Cluster, metadata: &ClusterMetadata) -> Encoded {
    let mut bytes = rendered.encode_to_vec();
    bytes.extend(metadata.encode_to_vec());
    encoded(name, bytes)
}
