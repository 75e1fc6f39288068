//! Annotations of our own, as `docs/extensions.md` has them.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::config::extensions::KEYS;
use mesh_control::config::load::Scan;
use mesh_control::config::support::ObjectKind;

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/extensions.md")).unwrap()
}

/// What is said of an object of this kind with this annotation, and of nothing else.
fn said(kind: ObjectKind, annotation: &str) -> Vec<String> {
    let (version, spec) = match kind {
        ObjectKind::VirtualService => {
            ("networking.istio.io/v1", "{hosts: [a.com], http: [{directResponse: {status: 200}}]}")
        }
        ObjectKind::DestinationRule => ("networking.istio.io/v1", "{host: a.com}"),
        ObjectKind::Service => ("v1", "{ports: [{port: 80}]}"),
        other => panic!("{other:?} has no example here"),
    };
    let text = format!(
        "apiVersion: {version}\nkind: {}\nmetadata:\n  name: x\n  annotations:\n    {annotation}\nspec: {spec}\n",
        kind.name()
    );
    let found = validate([("t.yaml", text.as_str())]);
    found.iter().map(ToString::to_string).filter(|line| line.contains("annotations")).collect()
}

/// What the examples of the document are about: its services, and the subsets that they name.
fn of_document(example: &str) -> String {
    let services =
        [("reviews", 9080), ("catalog", 8080), ("recommendations", 8080), ("bestsellers", 8080), ("offers", 8080)];
    let services = services.map(|(name, port)| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{app: {name}}}, \
             ports: [{{name: http, port: {port}}}]}}\n---\n"
        )
    });
    let subsets = [("reviews", "v1"), ("reviews", "v2"), ("bestsellers", "stable")];
    let subsets = subsets.into_iter().filter(|(_, subset)| {
        example.contains(&format!("subset: {subset}")) || example.contains(&format!("subset={subset}"))
    });
    let rules = subsets.map(|(host, subset)| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}-{subset}, namespace: shop}}\n\
             spec: {{host: {host}, subsets: [{{name: {subset}, labels: {{version: {subset}}}}}]}}\n---\n"
        )
    });
    services.into_iter().chain(rules).collect()
}

#[test]
fn every_annotation_has_a_section_with_an_example_that_is_right() {
    let document = document();
    for (key, kinds) in KEYS {
        let heading = format!("\n## `{key}`");
        let section = document.split_once(&heading).unwrap_or_else(|| panic!("no section {key}")).1;
        let section = section.split("\n## ").next().unwrap();
        let examples: Vec<&str> =
            section.split("```yaml\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
        assert!(examples.iter().any(|example| example.contains(key)), "{key} has no example");
        for example in examples {
            let others = of_document(example);
            let found = validate([("example.yaml", example), ("document.yaml", others.as_str())]);
            let found: Vec<_> =
                found.iter().map(ToString::to_string).filter(|line| line.contains("example.yaml:")).collect();
            assert!(found.is_empty(), "{key}: {found:?}");
            assert!(kinds.iter().any(|kind| example.contains(&format!("kind: {}\n", kind.name()))), "{key}: {kinds:?}");
        }
        assert!(document.contains(&format!("\n| `{key}` |")), "{key} has no row in the table");
    }
}

#[test]
fn a_mistyped_annotation_is_an_error_that_names_the_nearest_one_and_its_object_is_wrong() {
    use ObjectKind::{DestinationRule, Service, VirtualService};
    for (kind, annotation, expected) in [
        (
            VirtualService,
            "mesh-control/sticky-splt: header=x",
            "t.yaml:6:5: error[unknown-field]: VirtualService default/x: metadata.annotations.mesh-control/sticky-splt: \
             unknown annotation; did you mean `mesh-control/sticky-split`?",
        ),
        (
            VirtualService,
            "mesh-control/sticky-split: heder=x",
            "t.yaml:6:32: error[invalid-value]: VirtualService default/x: metadata.annotations.mesh-control/sticky-split: \
             `heder` is not known; did you mean `header`?",
        ),
        (
            DestinationRule,
            "mesh-control/sticky-split: header=x",
            "t.yaml:6:5: error[unknown-field]: DestinationRule default/x: metadata.annotations.mesh-control/sticky-split: \
             belongs to a VirtualService",
        ),
        (
            DestinationRule,
            "mesh-control/sticky-splits: header=x",
            "t.yaml:6:5: error[unknown-field]: DestinationRule default/x: metadata.annotations.mesh-control/sticky-splits: \
             unknown annotation; `mesh-control/sticky-split` belongs to a VirtualService",
        ),
        (
            Service,
            "mesh-control/sticky-split: 7",
            "t.yaml:6:32: error[wrong-type]: Service default/x: metadata.annotations[mesh-control/sticky-split]: expected a \
             string, found a number; quote it",
        ),
    ] {
        assert_eq!(said(kind, annotation), [expected], "{annotation}");
    }
    let found = said(Service, "mesh-control/colour: blue");
    assert!(
        found.len() == 1 && found[0].contains("error[unknown-field]") && found[0].contains("none for a Service"),
        "{found:?}"
    );
    assert!(said(VirtualService, "example.com/sticky-splt: x").is_empty(), "of others, everything passes");
}

/// What is said of a rule for `a.com` that is split by this among these destinations, under these other objects.
fn said_of_split(by: &str, destinations: &str, others: &str) -> Vec<String> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: x\n  annotations:\n    \
         mesh-control/sticky-split: {by}\nspec: {{hosts: [a.com], http: [{{route: [{destinations}]}}]}}\n---\n{others}"
    );
    let found = validate([("t.yaml", text.as_str())]);
    found.iter().map(ToString::to_string).filter(|line| line.contains("sticky-split")).collect()
}

#[test]
fn a_sticky_split_without_effect_is_told() {
    let two = "{destination: {host: a.com, port: {number: 1}}, weight: 1}, {destination: {host: a.com, port: {number: 2}}, weight: 1}";
    assert_eq!(
        said_of_split("header=x-user", "{destination: {host: a.com}}", ""),
        [
            "t.yaml:6:5: warning[ignored]: VirtualService default/x: metadata.annotations.mesh-control/sticky-split: without \
          effect: no rule has several destinations"
        ]
    );
    let hashed_by = |hash: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec: {{host: a.com, \
             trafficPolicy: {{loadBalancer: {{consistentHash: {{{hash}}}}}}}}}\n"
        )
    };
    let other = "by something else: it counts";
    for (by, hash, expected) in [
        ("header=x-user", "httpHeaderName: x-user", None),
        ("header=x-user", "httpHeaderName: X-User", None),
        ("header=x-user", "httpHeaderName: x-session", Some(other)),
        ("cookie=user", "httpCookie: {name: user}", None),
        ("cookie=user", "httpCookie: {name: user, ttl: 300s}", None),
        ("cookie=user", "httpCookie: {name: user, ttl: 0s}", None),
        ("cookie=user", "httpCookie: {name: session, ttl: 300s}", Some(other)),
    ] {
        let found = said_of_split(by, two, &hashed_by(hash));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{by}, {hash}: {found:?}");
        assert!(expected.is_none_or(|expected| found[0].contains(expected)), "{by}, {hash}: {found:?}");
    }
}

#[test]
fn a_split_of_sessions_by_chance_is_told_of_the_sticky_one() {
    let said = |annotation: &str, weights: [u32; 2], hash: &str| {
        let [first, second] = weights;
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, annotations: {{{annotation}}}}}\n\
             spec: {{hosts: [a.com], gateways: [g], http: [{{route: [{{destination: {{host: a.com, subset: v1}}, weight: {first}}}, \
             {{destination: {{host: a.com, subset: v2}}, weight: {second}}}]}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec: {{host: a.com, \
             subsets: [{{name: v1}}, {{name: v2}}], trafficPolicy: {{loadBalancer: {{consistentHash: {{{hash}}}}}}}}}\n"
        );
        let found = validate([("t.yaml", text.as_str())]);
        let found = found.iter().map(ToString::to_string);
        found.filter(|line| line.contains("keeps a session at an endpoint")).collect::<Vec<_>>()
    };
    let cookie = "httpCookie: {name: user, ttl: 300s}";
    let told = said("", [90, 10], cookie);
    assert!(
        told.len() == 1 && told[0].contains("info[advice]: VirtualService default/x: http[0].route: the cookie `user`"),
        "{told:?}"
    );
    for (annotation, weights, hash) in [
        ("mesh-control/sticky-split: cookie=user", [90, 10], cookie),
        ("", [100, 0], cookie),
        ("", [90, 10], "httpHeaderName: x-user"),
    ] {
        let told = said(annotation, weights, hash);
        assert!(told.is_empty(), "{annotation} {weights:?} {hash}: {told:?}");
    }
}

#[test]
fn a_hedge_without_effect_is_told() {
    const HEDGE: &str = "mesh-control/hedge: on-per-try-timeout";
    let said = |rule: &str| -> Vec<String> {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: x\n  annotations:\n    {HEDGE}\n\
             spec: {{hosts: [a.com], http: [{{route: [{{destination: {{host: a.com}}}}]{rule}}}]}}\n{SERVICE}"
        );
        let found = validate([("t.yaml", text.as_str())]);
        found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect()
    };
    for rule in ["", ", retries: {attempts: 2}", ", retries: {attempts: 0}"] {
        assert_eq!(
            said(rule),
            [
                "t.yaml:6:5: warning[ignored]: VirtualService default/x: metadata.annotations.mesh-control/hedge: without effect: \
              no rule has retries with a `perTryTimeout`"
            ],
            "{rule}"
        );
    }
    assert_eq!(said(", retries: {attempts: 1, perTryTimeout: 50ms}"), [""; 0]);
}

/// What is said of a text of this mesh, which has gRPC clients.
fn said_for_grpc(text: &str) -> Vec<String> {
    let mut scan = Scan::default();
    scan.files.insert("t.yaml".into(), Ok(text.into()));
    let found = validate_scan(scan, Mesh { has_grpc: true, ..Mesh::default() }).diagnostics;
    found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect()
}

const SERVICE: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.com]
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  endpoints: [{address: 10.0.0.1}]
";

#[test]
fn grpc_clients_are_told_that_their_calls_are_split_by_chance() {
    let text = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: x
  annotations:
    mesh-control/sticky-split: header=x-user
spec:
  hosts: [a.com]
  http:
  - route:
    - {destination: {host: a.com, port: {number: 80}}, weight: 1}
    - {destination: {host: b.com, port: {number: 80}}, weight: 1}
";
    assert_eq!(
        said_for_grpc(&format!("{text}{SERVICE}")),
        [
            "t.yaml:10:5: warning[degraded]: VirtualService default/x: http[0].route: a gRPC client cannot do this: calls are \
          split by chance, whoever makes them (mesh-control/sticky-split)"
        ]
    );
}

/// A rule for `a.com`, which is a service at port 80, with this fallback, and the service `b.com`.
fn falling_back(fallback: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: x\n  annotations:\n    \
         mesh-control/fallback: {fallback}\nspec:\n  host: a.com\n  trafficPolicy: {{loadBalancer: {{simple: \
         LEAST_REQUEST}}}}\n{SERVICE}{}",
        SERVICE.replace("a.com", "b.com").replace("{name: a}", "{name: b}")
    )
}

#[test]
fn a_stand_in_that_there_is_not_is_an_error() {
    let said = |fallback: &str| -> Vec<String> {
        let found = validate([("t.yaml", falling_back(fallback).as_str())]);
        found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect()
    };
    for right in ["host=b.com", "host=b.com:80", "status=503"] {
        assert_eq!(said(right), [""; 0], "{right}");
    }
    for (wrong, what) in [
        ("host=c.com:81", "is not a service that this namespace can call"),
        ("host=b.com:81", "the host b.com has no port 81, it has port 80: nothing stands in for port 80"),
        ("'host=b.com, subset=v1'", "the service has no such subset"),
        ("host=a.com", "it is the service itself"),
    ] {
        let found = said(wrong);
        assert!(found.len() == 1 && found[0].contains("t.yaml:6:5: error[unknown-reference]"), "{wrong}: {found:?}");
        assert!(found[0].contains(what), "{wrong}: {found:?}");
    }
}

/// The clusters that an aggregate is of.
fn parts_of(aggregate: envoy_types::pb::envoy::config::cluster::v3::Cluster) -> Vec<String> {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
    use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;
    use prost::Message;
    let Some(ClusterDiscoveryType::ClusterType(custom)) = aggregate.cluster_discovery_type else { panic!() };
    ClusterConfig::decode(custom.typed_config.unwrap().value.as_slice()).unwrap().clusters
}

#[test]
fn a_service_is_stood_in_for_at_the_same_port_or_at_the_only_one_and_at_no_other() {
    use crate::support::{Seen, client, plane_from};
    const ONE: &str = "[{number: 80, name: grpc, protocol: GRPC}]";
    let two = |other: u16| format!("{}, {{number: {other}, name: http, protocol: HTTP}}]", ONE.trim_end_matches(']'));
    // That of `a.com` is written first.
    let with_81 = falling_back("host=b.com").replacen(ONE, &two(81), 1);
    let seen = Seen::new(&plane_from(&with_81), client("default"));
    assert_eq!(parts_of(seen.cluster("fallback|81||a.com")), ["outbound|81||a.com", "outbound|80||b.com"]);
    let said = |text: &str| -> Vec<String> {
        let found = validate([("t.yaml", text)]);
        found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect()
    };
    assert_eq!(said(&with_81), [""; 0]);
    let (start, end) = with_81.rsplit_once(ONE).unwrap();
    let with_82 = format!("{start}{}{end}", two(82));
    assert_eq!(
        said(&with_82),
        [
            "t.yaml:6:5: error[unknown-reference]: DestinationRule default/x: metadata.annotations.mesh-control/fallback: the host \
          b.com has no port 81, it has ports 80, 82: nothing stands in for port 81"
        ]
    );
    let seen = Seen::new(&plane_from(&with_82), client("default"));
    assert!(format!("{:?}", seen.routes_of("a.com:80")).contains("fallback|80||a.com"));
    assert!(!format!("{:?}", seen.routes_of("a.com:81")).contains("fallback|"), "port 80 is another one");
}

#[test]
fn an_answer_with_a_body_that_its_status_has_none_of_is_told() {
    for (fallback, is_told) in [
        ("'status=204, body=x'", true),
        ("'status=304, body=x'", true),
        ("status=204", false),
        ("'status=200, body=x'", false),
    ] {
        let found = validate([("t.yaml", falling_back(fallback).as_str())]);
        let found: Vec<String> =
            found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/fallback")).collect();
        assert_eq!(found.len(), usize::from(is_told), "{fallback}: {found:?}");
        let is_meant = |line: &String| line.starts_with("t.yaml:6:5: warning[ignored]") && line.contains("has no body");
        assert!(found.iter().all(is_meant), "{fallback}: {found:?}");
    }
}

#[test]
fn a_fallback_is_an_aggregate_for_every_kind_of_client_and_an_answer_is_lost_on_grpc() {
    use crate::support::{Seen, client, grpc_client, plane_from};
    use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy;
    let plane = plane_from(&falling_back("host=b.com"));
    for (client, policy) in
        [(client("default"), LbPolicy::ClusterProvided), (grpc_client("default"), LbPolicy::RoundRobin)]
    {
        let seen = Seen::new(&plane, client);
        let routes = format!("{:?}", seen.routes_of("a.com:80"));
        assert!(routes.contains("fallback|80||a.com"), "{routes}");
        let aggregate = seen.cluster("fallback|80||a.com");
        assert_eq!(aggregate.lb_policy(), policy);
        assert_eq!(aggregate.load_balancing_policy.is_some(), policy == LbPolicy::RoundRobin);
        assert_eq!(parts_of(aggregate), ["outbound|80||a.com", "outbound|80||b.com"]);
        seen.cluster("outbound|80||b.com");
    }
    // Routes that a client still has are led somewhere when the rule is gone.
    let plane = plane_from(SERVICE);
    let seen = Seen::new(&plane, client("default"));
    assert!(!format!("{:?}", seen.routes_of("a.com:80")).contains("fallback|"));
    seen.cluster("fallback|80||a.com");
    assert_eq!(
        said_for_grpc(&falling_back("status=503")),
        [
            "t.yaml:6:5: warning[degraded]: DestinationRule default/x: metadata.annotations.mesh-control/fallback: a gRPC client \
          cannot do this: calls fail where nothing is healthy, and are not answered with 503"
        ]
    );
    assert_eq!(said_for_grpc(&falling_back("host=b.com")), [""; 0]);
}

#[test]
fn a_balancer_of_the_applications_own_is_asked_for_every_endpoint() {
    let annotations = "mesh-control/load-balancer: policy=acme.Last\n    mesh-control/endpoint-subset: size=2";
    let text = falling_back("status=503").replace("mesh-control/fallback: status=503", annotations);
    let found = validate([("t.yaml", text.as_str())]);
    let found: Vec<_> = found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect();
    assert_eq!(
        found,
        [
            "t.yaml:7:5: warning[ignored]: DestinationRule default/x: metadata.annotations.mesh-control/endpoint-subset: without \
          effect: acme.Last of the annotation mesh-control/load-balancer is asked for every endpoint"
        ]
    );
}

#[test]
fn of_two_rules_for_a_host_the_first_annotation_counts() {
    let other = falling_back("status=404").replace("name: x", "name: z");
    let two = format!("{}---\n{}", falling_back("status=503"), other.split("---").next().unwrap());
    let found = validate([("t.yaml", two.as_str())]);
    let found: Vec<_> = found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect();
    assert!(
        found.len() == 1
            && found[0].contains("has its annotation mesh-control/fallback from DestinationRule default/x"),
        "{found:?}"
    );
}
