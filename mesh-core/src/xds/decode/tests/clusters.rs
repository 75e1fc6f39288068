use std::time::Duration;

use core::RuntimeDouble;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints;
use envoy_types::pb::envoy::extensions::clusters::{aggregate::v3::ClusterConfig, dns::v3::DnsCluster};
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    common::v3::ConsistentHashingLbConfig, least_request::v3::LeastRequest, maglev::v3::Maglev,
    pick_first::v3::PickFirst, ring_hash::v3::RingHash, round_robin::v3::RoundRobin, subset::v3::Subset,
    wrr_locality::v3::WrrLocality,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    self as tls_pb, UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{self, Any, Duration as PbDuration, UInt32Value, UInt64Value, value::Kind};
use pb::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    SlowStartConfig,
};

use super::{Case, accept, all_rejected, reject};
use crate::id::Address;
use crate::model::{
    BalancerPolicy, CircuitBreakers, Cluster, ClusterKind, ClusterProtocol, ClusterTls, Consecutive, ConsistentHashing,
    FailurePercentage, HashFunction, OutlierDetection, ServiceNames, SuccessRate,
};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{eds_cluster, inline_cluster, lb_endpoint, pack};
use crate::xds::decode::{Options, common::TypedStruct, decode};

fn decoded(cluster: &pb::Cluster) -> Cluster {
    match accept(ResourceType::Cluster, cluster).resource {
        Resource::Cluster(cluster) => Cluster::clone(&cluster),
        other => panic!("{other:?}"),
    }
}

fn eds() -> pb::Cluster {
    eds_cluster("c")
}

pub(super) fn with(change: impl FnOnce(&mut pb::Cluster)) -> Cluster {
    let mut cluster = eds();
    change(&mut cluster);
    decoded(&cluster)
}

fn custom(name: &str, config: Any) -> Option<ClusterDiscoveryType> {
    let custom = pb::cluster::CustomClusterType { name: name.into(), typed_config: Some(config) };
    Some(ClusterDiscoveryType::ClusterType(custom))
}

fn policies(configs: Vec<Any>) -> pb::LoadBalancingPolicy {
    let policy = |config| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(core::TypedExtensionConfig { name: "p".into(), typed_config: Some(config) }),
    };
    pb::LoadBalancingPolicy { policies: configs.into_iter().map(policy).collect() }
}

pub(super) fn tls(name: &str, config: Any) -> core::TransportSocket {
    let config = core::transport_socket::ConfigType::TypedConfig(config);
    core::TransportSocket { name: name.into(), config_type: Some(config) }
}

fn too_much() -> Option<UInt32Value> {
    Some(UInt32Value { value: 101 })
}

fn negative() -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds: 0, nanos: -1 })
}

#[test]
fn client_rule_41_clusters_that_are_rejected() {
    all_rejected(
        ResourceType::Cluster,
        &eds(),
        &[
            ("name: the name is empty", |cluster| cluster.name.clear()),
            ("\"c\": lb_policy: not a known value", |cluster| cluster.lb_policy = 99),
            ("lb_policy: CLUSTER_PROVIDED is not supported for this type of cluster", |cluster| {
                cluster.lb_policy = LbPolicy::ClusterProvided as i32
            }),
            ("load_balancing_policy: missing", |cluster| cluster.lb_policy = 7),
            ("least_request_lb_config.choice_count: 1 is less than 2", |cluster| {
                cluster.lb_policy = LbPolicy::LeastRequest as i32;
                cluster.lb_config =
                    Some(pb::cluster::LbConfig::LeastRequestLbConfig(pb::cluster::LeastRequestLbConfig {
                        choice_count: Some(UInt32Value { value: 1 }),
                        ..Default::default()
                    }));
            }),
            ("lrs_server: must be self", |cluster| cluster.lrs_server = Some(Default::default())),
            ("eds_cluster_config: missing", |cluster| cluster.eds_cluster_config = None),
            ("eds_cluster_config.eds_config: must be ads or self", |cluster| {
                cluster.eds_cluster_config = Some(Default::default());
            }),
            ("eds_cluster_config.service_name: must be set", |cluster| {
                cluster.name = "xdstp://a/envoy.config.cluster.v3.Cluster/c".into();
            }),
            ("cluster_type.clusters: an aggregate needs at least one", |cluster| {
                cluster.cluster_discovery_type = custom("envoy.clusters.aggregate", pack(&ClusterConfig::default()));
            }),
            ("cluster_type: the cluster type \"odd\"", |cluster| {
                cluster.cluster_discovery_type = custom("odd", pack(&core::Node::default()));
            }),
            ("type: not a known value", |cluster| {
                cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(99));
            }),
            (
                "transport_socket_matches: only a match on tlsMode: istio, followed by plaintext for the rest, is supported",
                |cluster| {
                    cluster.transport_socket_matches.push(Default::default());
                },
            ),
            ("transport_socket.typed_config.sni: longer than 255", |cluster| {
                let context = UpstreamTlsContext { sni: "a".repeat(256), ..Default::default() };
                cluster.transport_socket = Some(tls("tls", pack(&context)));
            }),
            ("outlier_detection.max_ejection_percent: more than 100", |cluster| {
                cluster.outlier_detection =
                    Some(pb::OutlierDetection { max_ejection_percent: too_much(), ..Default::default() });
            }),
            ("outlier_detection.enforcing_success_rate: more than 100", |cluster| {
                cluster.outlier_detection =
                    Some(pb::OutlierDetection { enforcing_success_rate: too_much(), ..Default::default() });
            }),
            ("outlier_detection.failure_percentage_threshold: more than 100", |cluster| {
                cluster.outlier_detection =
                    Some(pb::OutlierDetection { failure_percentage_threshold: too_much(), ..Default::default() });
            }),
            ("outlier_detection.interval: a negative", |cluster| {
                cluster.outlier_detection = Some(pb::OutlierDetection { interval: negative(), ..Default::default() });
            }),
            ("outlier_detection.max_ejection_time: a negative", |cluster| {
                cluster.outlier_detection =
                    Some(pb::OutlierDetection { max_ejection_time: negative(), ..Default::default() });
            }),
            ("health_checks[0].timeout: missing", |cluster| cluster.health_checks.push(Default::default())),
            ("connect_timeout: must be more than zero", |cluster| cluster.connect_timeout = Some(Default::default())),
            ("common_lb_config.healthy_panic_threshold", |cluster| {
                let panic = Some(Percent { value: f64::NAN });
                cluster.common_lb_config =
                    Some(pb::cluster::CommonLbConfig { healthy_panic_threshold: panic, ..Default::default() });
            }),
            ("max_concurrent_streams: must be from 1", |cluster| {
                let streams = Some(UInt32Value { value: 0 });
                cluster.http2_protocol_options =
                    Some(core::Http2ProtocolOptions { max_concurrent_streams: streams, ..Default::default() });
            }),
            ("typed_extension_protocol_options[\"h\"]: no known protocol", |cluster| {
                let options = pack(&http::HttpProtocolOptions::default());
                cluster.typed_extension_protocol_options.insert("h".into(), options);
            }),
            ("HTTP/3 is not supported yet", |cluster| {
                use http::http_protocol_options::explicit_http_config::ProtocolConfig;
                protocol(cluster, Some(ProtocolConfig::Http3ProtocolOptions(Default::default())));
            }),
        ],
    );
}

#[test]
fn client_rule_41_logical_dns_is_one_host() {
    let logical = inline_cluster("c", DiscoveryType::LogicalDns, &[("db.example", 1)]);
    assert!(matches!(decoded(&logical).kind, ClusterKind::LogicalDns(_)));
    let cases: &[Case<pb::Cluster>] = &[
        ("load_assignment: missing", |cluster| cluster.load_assignment = None),
        ("exactly one locality", |cluster| cluster.load_assignment.as_mut().unwrap().endpoints.clear()),
        ("exactly one locality", |cluster| {
            let second = LocalityLbEndpoints { priority: 1, ..Default::default() };
            cluster.load_assignment.as_mut().unwrap().endpoints.push(second);
        }),
        ("exactly one endpoint", |cluster| {
            cluster.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints.push(lb_endpoint("b", 1));
        }),
        ("resolver_name: not supported", |cluster| {
            use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
            let endpoint = &mut cluster.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints[0];
            let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier else { panic!() };
            let address = endpoint.address.as_mut().unwrap().address.as_mut().unwrap();
            let core::address::Address::SocketAddress(address) = address else { panic!() };
            address.resolver_name = "x".into();
        }),
    ];
    all_rejected(ResourceType::Cluster, &logical, cases);
}

#[test]
fn where_endpoints_come_from() {
    assert_eq!(decoded(&eds()).kind, ClusterKind::Eds { service_name: "c".into() });
    let named = with(|cluster| cluster.eds_cluster_config.as_mut().unwrap().service_name = "e".into());
    assert_eq!(named.kind, ClusterKind::Eds { service_name: "e".into() });
    let fixed = decoded(&inline_cluster("c", DiscoveryType::Static, &[("10.0.0.1", 1)]));
    assert!(matches!(fixed.kind, ClusterKind::Static(endpoints) if endpoints.len() == 1));
    let mut strict = inline_cluster("c", DiscoveryType::StrictDns, &[("db.example", 1), ("10.0.0.1", 2)]);
    strict.dns_refresh_rate = Some(protobuf::Duration { seconds: 60, nanos: 0 });
    let ClusterKind::StrictDns { endpoints, refresh } = decoded(&strict).kind else { panic!() };
    assert_eq!(refresh, Duration::from_secs(60));
    let first = &endpoints.localities[0].endpoints[0].id.addresses()[0];
    assert_eq!(*first, Address::Host("db.example".into(), 1));
    strict.cluster_discovery_type = custom("envoy.cluster.dns", pack(&DnsCluster::default()));
    assert!(matches!(decoded(&strict).kind, ClusterKind::StrictDns { .. }));
    let aggregate = with(|cluster| {
        let config = ClusterConfig { clusters: vec!["a".into(), "b".into()] };
        cluster.cluster_discovery_type = custom("envoy.clusters.aggregate", pack(&config));
    });
    assert!(matches!(aggregate.kind, ClusterKind::Aggregate(clusters) if clusters.len() == 2));
    // Envoy insists on it.
    let aggregate = with(|cluster| {
        let config = ClusterConfig { clusters: vec!["a".into()] };
        cluster.cluster_discovery_type = custom("envoy.clusters.aggregate", pack(&config));
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    });
    assert!(matches!(aggregate.kind, ClusterKind::Aggregate(_)));
    let through = with(|cluster| {
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    });
    assert_eq!(through.kind, ClusterKind::PassThrough);
    let hosts = inline_cluster("c", DiscoveryType::Static, &[("db.example", 1)]);
    assert!(super::reject(ResourceType::Cluster, &hosts).reason.contains("not an IP address"));
}

#[test]
fn the_first_supported_policy_counts() {
    let unsupported = || pack(&Subset::default());
    let chosen = |configs| with(|cluster| cluster.load_balancing_policy = Some(policies(configs))).balancer;
    assert_eq!(chosen(vec![unsupported(), pack(&RoundRobin::default())]), BalancerPolicy::RoundRobin);
    let inner = Some(policies(vec![pack(&PickFirst::default()), pack(&LeastRequest::default())]));
    let wrapped = pack(&WrrLocality { endpoint_picking_policy: inner });
    assert_eq!(chosen(vec![wrapped]), BalancerPolicy::least_request(2));
    let many = pack(&LeastRequest { choice_count: Some(UInt32Value { value: 50 }), ..Default::default() });
    assert_eq!(chosen(vec![many]), BalancerPolicy::least_request(10));
    let reject = |configs| {
        let mut cluster = eds();
        cluster.load_balancing_policy = Some(policies(configs));
        super::reject(ResourceType::Cluster, &cluster).to_string()
    };
    assert!(reject(vec![unsupported()]).ends_with("Subset is not supported yet"));
    assert!(reject(vec![]).ends_with("no policy is given"));
    let mut nested = pack(&RoundRobin::default());
    for _ in 0..17 {
        nested = pack(&WrrLocality { endpoint_picking_policy: Some(policies(vec![nested])) });
    }
    assert!(reject(vec![nested]).ends_with("nested deeper than 16"));
}

#[test]
fn the_older_policies() {
    let chosen = |policy: LbPolicy| with(|cluster| cluster.lb_policy = policy as i32).balancer;
    assert_eq!(chosen(LbPolicy::RoundRobin), BalancerPolicy::RoundRobin);
    assert_eq!(chosen(LbPolicy::LeastRequest), BalancerPolicy::least_request(2));
    assert_eq!(chosen(LbPolicy::Random), BalancerPolicy::Random);
}

#[test]
fn rings_and_tables() {
    let size = |value| Some(UInt64Value { value });
    let newer = |config| with(|cluster| cluster.load_balancing_policy = Some(policies(vec![config]))).balancer;
    let (by_hostname, balance_percent) = (true, Some(150));
    let hashing = ConsistentHashing { by_hostname, balance_percent, ..ConsistentHashing::default() };
    let config = || {
        let hash_balance_factor = Some(UInt32Value { value: 150 });
        Some(ConsistentHashingLbConfig { use_hostname_for_hashing: true, hash_balance_factor, ..Default::default() })
    };
    let ring = RingHash {
        hash_function: 2,
        minimum_ring_size: size(3),
        maximum_ring_size: size(9),
        consistent_hashing_lb_config: config(),
        ..Default::default()
    };
    let function = HashFunction::Murmur2;
    assert_eq!(newer(pack(&ring)), BalancerPolicy::RingHash { min_size: 3, max_size: 9, function, hashing });
    let table = Maglev { table_size: size(7), consistent_hashing_lb_config: config(), ..Default::default() };
    assert_eq!(newer(pack(&table)), BalancerPolicy::Maglev { table_size: 7, hashing });

    let older = |policy: LbPolicy, config| {
        with(|cluster| (cluster.lb_policy, cluster.lb_config) = (policy as i32, config)).balancer
    };
    let murmur = RingHashLbConfig { hash_function: 1, maximum_ring_size: size(2048), ..Default::default() };
    let hashing = ConsistentHashing::default();
    let ring = BalancerPolicy::RingHash { min_size: 1024, max_size: 2048, function, hashing };
    assert_eq!(older(LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(murmur))), ring);
    let function = HashFunction::Xx;
    let ring = BalancerPolicy::RingHash { min_size: 1024, max_size: 8 << 20, function, hashing };
    assert_eq!(older(LbPolicy::RingHash, None), ring);
    assert_eq!(older(LbPolicy::Maglev, None), BalancerPolicy::Maglev { table_size: 65_537, hashing });

    let refused = |policy: LbPolicy, config| {
        let mut cluster = eds();
        (cluster.lb_policy, cluster.lb_config) = (policy as i32, Some(config));
        super::reject(ResourceType::Cluster, &cluster).field
    };
    let ring = |min, max| {
        let (minimum_ring_size, maximum_ring_size) = (size(min), size(max));
        LbConfig::RingHashLbConfig(RingHashLbConfig { minimum_ring_size, maximum_ring_size, ..Default::default() })
    };
    let table = |table| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: size(table) });
    for (policy, config, field) in [
        (LbPolicy::RingHash, ring(9, 3), "ring_hash_lb_config.minimum_ring_size"),
        (LbPolicy::RingHash, ring(1, (8 << 20) + 1), "ring_hash_lb_config.maximum_ring_size"),
        (LbPolicy::Maglev, table(6), "maglev_lb_config.table_size"),
        (LbPolicy::Maglev, table(0), "maglev_lb_config.table_size"),
        (LbPolicy::Maglev, table(5_000_077), "maglev_lb_config.table_size"),
    ] {
        assert_eq!(refused(policy, config), field);
    }
    let told = |min| {
        let mut cluster = eds();
        (cluster.lb_policy, cluster.lb_config) = (LbPolicy::RingHash as i32, Some(ring(min, 8 << 20)));
        super::accept(ResourceType::Cluster, &cluster).ignored
    };
    assert!(told(1 << 20).is_empty());
    assert_eq!(told((1 << 20) + 1), ["ring_hash_lb_config.minimum_ring_size (above 1048576)"]);
}

#[test]
fn slow_starts_and_biases() {
    let double = |default_value| Some(RuntimeDouble { default_value, ..Default::default() });
    let config = |aggression, least| SlowStartConfig {
        slow_start_window: Some(PbDuration { seconds: 30, nanos: 0 }),
        aggression: double(aggression),
        min_weight_percent: Some(Percent { value: least }),
    };
    let set = |aggression, least, bias| {
        let least = LeastRequestLbConfig {
            slow_start_config: Some(config(aggression, least)),
            active_request_bias: double(bias),
            ..Default::default()
        };
        let mut cluster = eds();
        (cluster.lb_policy, cluster.lb_config) =
            (LbPolicy::LeastRequest as i32, Some(LbConfig::LeastRequestLbConfig(least)));
        cluster
    };
    let good = decoded(&set(2.0, 20.0, 0.5));
    assert_eq!(good.balancer, BalancerPolicy::LeastRequest { choices: 2, bias: 500 });
    let slow_start = good.slow_start.unwrap();
    assert_eq!((slow_start.window.as_secs(), slow_start.aggression, slow_start.min_percent), (30, 2000, 20));
    for (wrong, field) in [
        (set(0.0, 20.0, 1.0), "slow_start_config.aggression"),
        (set(f64::NAN, 20.0, 1.0), "slow_start_config.aggression.default_value"),
        (set(1.0, 101.0, 1.0), "slow_start_config.min_weight_percent"),
        (set(1.0, 1.0, -1.0), "active_request_bias.default_value"),
    ] {
        let refused = super::reject(ResourceType::Cluster, &wrong).field;
        assert_eq!(refused, format!("least_request_lb_config.{field}"));
    }
}

#[test]
fn an_applications_own_balancer() {
    let typed = TypedStruct { type_url: "type.googleapis.com/acme.Sticky".into(), value: None };
    let typed = Any {
        type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(),
        value: prost::Message::encode_to_vec(&typed),
    };
    let mut cluster = eds();
    cluster.load_balancing_policy = Some(policies(vec![typed]));
    let bytes = prost::Message::encode_to_vec(&cluster);
    assert!(decode(ResourceType::Cluster, &bytes, &Options::default()).is_err());
    let options = Options { custom_balancers: ["acme.Sticky".into()].into(), ..Options::default() };
    let Resource::Cluster(cluster) = decode(ResourceType::Cluster, &bytes, &options).unwrap().resource else {
        panic!()
    };
    assert_eq!(cluster.balancer, BalancerPolicy::Custom("acme.Sticky".into()));
}

#[test]
fn tls_that_cannot_be_provided_is_never_plaintext() {
    let secured = |socket| with(|cluster| cluster.transport_socket = Some(socket)).tls;
    assert!(matches!(secured(tls("tls", pack(&UpstreamTlsContext::default()))), ClusterTls::Unusable(_)));
    assert!(matches!(secured(tls("odd", pack(&core::Node::default()))), ClusterTls::Unusable(_)));
    assert!(matches!(secured(core::TransportSocket::default()), ClusterTls::Unusable(_)));
    assert_eq!(secured(tls("raw", pack(&RawBuffer {}))), ClusterTls::None);
    assert_eq!(decoded(&eds()).tls, ClusterTls::None);
}

#[test]
fn peers_are_named_for_being_endpoints_where_mesh_control_says_so() {
    let instance = |name: &str| tls_pb::CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        certificate_name: name.to_owned(),
    };
    let validation = tls_pb::CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance("ROOTCA")),
        ..Default::default()
    };
    let common = tls_pb::CommonTlsContext {
        tls_certificate_provider_instance: Some(instance("default")),
        validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
        ..Default::default()
    };
    let context = UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
    let said = |namespace: &str, text: &str| {
        let value = protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(text.to_owned())) };
        let fields = protobuf::Struct { fields: [("peers".to_owned(), value)].into() };
        core::Metadata { filter_metadata: [(namespace.to_owned(), fields)].into(), ..Default::default() }
    };
    let of = |metadata| {
        with(|cluster| {
            cluster.transport_socket = Some(tls("tls", pack(&context)));
            cluster.metadata = metadata;
        })
        .tls
    };
    let ClusterTls::Mutual(nobody) = of(Some(said("mesh-control", "endpoints"))) else { panic!() };
    assert!(nobody.by_endpoints && nobody.peers.is_empty());
    // A rule that names nobody is no rule.
    for other in [None, Some(said("istio", "endpoints")), Some(said("mesh-control", "rule"))] {
        assert!(matches!(of(other), ClusterTls::Unusable(_)));
    }
}

fn protocol(
    cluster: &mut pb::Cluster,
    config: Option<http::http_protocol_options::explicit_http_config::ProtocolConfig>,
) {
    let explicit = http::http_protocol_options::ExplicitHttpConfig { protocol_config: config };
    let options = http::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(protobuf::Duration { seconds: 9, nanos: 0 }),
            max_requests_per_connection: Some(UInt32Value { value: 5 }),
            ..Default::default()
        }),
        upstream_protocol_options: Some(http::http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
            explicit,
        )),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options.insert("http".into(), pack(&options));
}

#[test]
fn protocols_and_limits_of_connections() {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    let streams = Some(UInt32Value { value: 7 });
    let options = core::Http2ProtocolOptions { max_concurrent_streams: streams, ..Default::default() };
    let http2 = with(|cluster| protocol(cluster, Some(ProtocolConfig::Http2ProtocolOptions(options.clone()))));
    assert_eq!((http2.protocol, http2.max_concurrent_streams), (ClusterProtocol::Http2, Some(7)));
    assert_eq!((http2.idle_timeout, http2.max_requests_per_connection), (Some(Duration::from_secs(9)), Some(5)));
    let http1 = with(|cluster| protocol(cluster, Some(ProtocolConfig::HttpProtocolOptions(Default::default()))));
    assert_eq!(http1.protocol, ClusterProtocol::Http1);
    let older = with(|cluster| cluster.http2_protocol_options = Some(options));
    assert_eq!((older.protocol, older.max_concurrent_streams), (ClusterProtocol::Http2, Some(7)));
    let caller = with(|cluster| {
        let options = http::HttpProtocolOptions {
            upstream_protocol_options: Some(
                http::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default()),
            ),
            ..Default::default()
        };
        cluster.typed_extension_protocol_options.insert("http".into(), pack(&options));
    });
    assert_eq!(caller.protocol, ClusterProtocol::AsCaller);
    let forever = with(|cluster| {
        cluster.common_http_protocol_options =
            Some(core::HttpProtocolOptions { idle_timeout: Some(Default::default()), ..Default::default() });
    });
    assert_eq!(forever.idle_timeout, None);
    assert_eq!(decoded(&eds()).idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn what_is_validated_and_not_yet_built_is_listed() {
    let mut cluster = eds();
    let limit = |value| Some(UInt32Value { value });
    // Istio's way to say that there is no limit is honoured.
    let thresholds = pb::circuit_breakers::Thresholds {
        max_retries: limit(u32::MAX),
        max_connection_pools: limit(5),
        ..Default::default()
    };
    cluster.circuit_breakers = Some(pb::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    assert_eq!(
        accept(ResourceType::Cluster, &cluster).ignored,
        ["circuit_breakers.thresholds[0].max_connection_pools"]
    );
}

#[test]
fn panic_threshold_and_istios_service_name() {
    let text = |value: &str| protobuf::Value { kind: Some(Kind::StringValue(value.into())) };
    let service = protobuf::Struct {
        fields: [("host".into(), text("r.default")), ("name".into(), text("r")), ("namespace".into(), text("default"))]
            .into(),
    };
    let services = protobuf::ListValue { values: vec![protobuf::Value { kind: Some(Kind::StructValue(service)) }] };
    let services = protobuf::Value { kind: Some(Kind::ListValue(services)) };
    let cluster = with(|cluster| {
        cluster.metadata = Some(core::Metadata {
            filter_metadata: [("istio".into(), protobuf::Struct { fields: [("services".into(), services)].into() })]
                .into(),
            ..Default::default()
        });
        cluster.common_lb_config = Some(pb::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        });
    });
    assert_eq!(cluster.priorities.panic_percent, 0);
    assert_eq!(*cluster.service.unwrap(), ServiceNames::new("r.default", "r", "default"));
}

#[test]
fn circuit_breakers_are_envoys_where_nothing_is_said() {
    use pb::circuit_breakers::Thresholds;
    let limit = |value| Some(UInt32Value { value });
    let breakers = |thresholds: Vec<Thresholds>, per_host_thresholds: Vec<Thresholds>| {
        let breakers = pb::CircuitBreakers { thresholds, per_host_thresholds };
        let found = with(|cluster| cluster.circuit_breakers = Some(breakers)).circuit_breakers;
        [found.max_connections, found.max_pending_requests, found.max_requests, found.max_connections_per_host]
    };
    assert_eq!(decoded(&eds()).circuit_breakers, CircuitBreakers::ENVOY);
    assert_eq!(breakers(vec![], vec![]), [1024, 1024, 1024, u32::MAX]);
    let high = Thresholds { priority: 1, max_requests: limit(7), ..Default::default() };
    let some = Thresholds { max_requests: limit(3), max_connections: limit(u32::MAX), ..Default::default() };
    let host = Thresholds { max_connections: limit(2), ..Default::default() };
    assert_eq!(breakers(vec![high, some], vec![host]), [u32::MAX, 1024, 3, 2]);
    assert_eq!(breakers(vec![high], vec![]), [1024, 1024, 1024, u32::MAX], "no request has that priority");
    let mut cluster = eds();
    cluster.circuit_breakers = Some(pb::CircuitBreakers { thresholds: vec![], per_host_thresholds: vec![some] });
    let refused = reject(ResourceType::Cluster, &cluster).to_string();
    assert!(refused.contains("circuit_breakers.per_host_thresholds[0].max_requests"), "{refused}");
}

#[test]
fn outlier_detection_has_every_field_of_envoys() {
    let (count, seconds) =
        (|value| Some(UInt32Value { value }), |seconds| Some(protobuf::Duration { seconds, nanos: 0 }));
    let detection =
        |detection: pb::OutlierDetection| with(|cluster| cluster.outlier_detection = Some(detection)).outlier_detection;
    assert_eq!(decoded(&eds()).outlier_detection, None);
    assert_eq!(detection(Default::default()), Some(OutlierDetection::default()));
    let every = pb::OutlierDetection {
        consecutive_5xx: count(1),
        enforcing_consecutive_5xx: count(2),
        consecutive_gateway_failure: count(3),
        enforcing_consecutive_gateway_failure: count(4),
        consecutive_local_origin_failure: count(5),
        enforcing_consecutive_local_origin_failure: count(6),
        split_external_local_origin_errors: true,
        interval: seconds(7),
        base_ejection_time: seconds(8),
        max_ejection_time: seconds(9),
        max_ejection_time_jitter: seconds(10),
        max_ejection_percent: count(11),
        always_eject_one_host: Some(protobuf::BoolValue { value: true }),
        success_rate_minimum_hosts: count(12),
        success_rate_request_volume: count(13),
        success_rate_stdev_factor: count(14),
        enforcing_success_rate: count(15),
        enforcing_local_origin_success_rate: count(16),
        failure_percentage_threshold: count(17),
        failure_percentage_minimum_hosts: count(18),
        failure_percentage_request_volume: count(19),
        enforcing_failure_percentage: count(20),
        enforcing_failure_percentage_local_origin: count(21),
        ..Default::default()
    };
    let seconds = Duration::from_secs;
    let mut expected = OutlierDetection {
        consecutive_5xx: Consecutive { failures: 1, enforcing: 2 },
        consecutive_gateway_failure: Consecutive { failures: 3, enforcing: 4 },
        consecutive_local_origin_failure: Consecutive { failures: 5, enforcing: 6 },
        split_external_local_origin_errors: true,
        ..OutlierDetection::default()
    };
    (expected.interval, expected.base_ejection_time) = (seconds(7), seconds(8));
    (expected.max_ejection_time, expected.max_ejection_time_jitter) = (seconds(9), seconds(10));
    (expected.max_ejection_percent, expected.always_eject_one_host) = (11, true);
    expected.success_rate = SuccessRate {
        minimum_hosts: 12,
        request_volume: 13,
        stdev_factor: 14,
        enforcing: 15,
        enforcing_local_origin: 16,
    };
    expected.failure_percentage = FailurePercentage {
        threshold: 17,
        minimum_hosts: 18,
        request_volume: 19,
        enforcing: 20,
        enforcing_local_origin: 21,
    };
    assert_eq!(detection(every), Some(expected));
}

#[test]
fn the_answer_where_nothing_is_healthy_is_read_from_metadata() {
    let of = |texts: &[(&str, &str)]| {
        let value = |text: &str| protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(text.to_owned())) };
        let fields = texts.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        core::Metadata {
            filter_metadata: [("mesh-control".to_owned(), protobuf::Struct { fields })].into(),
            ..Default::default()
        }
    };
    let metadata = of(&[("fallback.status", "203"), ("fallback.body", "later")]);
    let answer = with(|cluster| cluster.metadata = Some(metadata)).fallback.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (203, &b"later"[..]));
    assert!(with(|cluster| cluster.metadata = Some(of(&[]))).fallback.is_none());
    for wrong in ["", "ok", "99", "199", "600", "65536"] {
        let mut cluster = eds();
        cluster.metadata = Some(of(&[("fallback.status", wrong)]));
        let text = reject(ResourceType::Cluster, &cluster).to_string();
        assert!(text.contains("metadata.mesh-control.fallback.status"), "{wrong}: {text}");
    }
}
