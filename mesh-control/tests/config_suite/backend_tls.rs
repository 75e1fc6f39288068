//! BackendTLSPolicies of Gateway API: which Services are called by TLS, and which are not called at all. That a gateway does so over
//! sockets is shown by `mesh-tower/tests/sidecar/gateway_api.rs`.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::catalog::{Catalog, ClientClass, Kind};
use mesh_control::config::load::Scan;
use mesh_control::config::{Diagnostic, Severity};
use mesh_control::plane::{Plane, PlaneOptions};
use prost::Message;

use crate::support::{Seen, client, client_of, grpc_client, made_in, plane_from, policy_reasons};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: other, port: 81}]}\n---\n";
const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
const OTHER: &str = "outbound|81||web.shop.svc.cluster.local";
const BY_US: &str = "hostname: web.internal, caCertificateRefs: [{group: '', kind: ConfigMap, name: ours}]";
const BY_SYSTEM: &str = "hostname: web.internal, wellKnownCACertificates: System";

/// A ConfigMap with an authority.
pub(crate) fn authorities(name: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let pem = pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\ndata:\n  ca.crt: |\n{pem}---\n"
    )
}

/// A policy for a target, made in this year; of no age without any.
fn policy(name: &str, year: &str, target: &str, validation: &str) -> String {
    let created = made_in(year);
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: shop{created}}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{{validation}}}}}\n---\n"
    )
}

fn context(cluster: Cluster) -> Option<tls_pb::UpstreamTlsContext> {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = cluster.transport_socket?.config_type else {
        panic!("a socket of another form")
    };
    Some(tls_pb::UpstreamTlsContext::decode(&*config.value).unwrap())
}

fn validation(context: &tls_pb::UpstreamTlsContext) -> tls_pb::CertificateValidationContext {
    match context.common_tls_context.as_ref().unwrap().validation_context_type.as_ref() {
        Some(ValidationContextType::ValidationContext(validation)) => validation.clone(),
        other => panic!("{other:?}"),
    }
}

/// What a client is told of the requests for port 80.
fn told(plane: &Plane) -> String {
    let found = plane.snapshot().resource(&client("shop"), Kind::Route, WEB).unwrap();
    String::from_utf8_lossy(&found.body).into_owned()
}

#[test]
fn a_service_is_called_by_tls_as_the_policy_for_its_port_says_unless_a_rule_does() {
    let names = "subjectAltNames: [{type: Hostname, hostname: a.internal}, {type: URI, uri: 'spiffe://internal/a'}]";
    let text = [
        SERVICE.to_owned(),
        authorities("ours"),
        policy("all", "", "name: web", BY_US),
        policy("port", "", "name: web, sectionName: other", &format!("{BY_SYSTEM}, {names}")),
    ]
    .concat();
    let plane = plane_from(&text);
    for class in [ClientClass::Library, ClientClass::Envoy] {
        let seen = Seen::new(&plane, client_of(class, "shop", &[]));
        let all = context(seen.cluster(WEB)).expect("TLS");
        assert_eq!((all.sni.as_str(), all.auto_sni_san_validation), ("web.internal", true), "{class:?}");
        let roots = validation(&all).trusted_ca.and_then(|roots| roots.specifier);
        let Some(core::data_source::Specifier::InlineString(pem)) = &roots else { panic!("{class:?}: {roots:?}") };
        assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 1);
        let port = context(seen.cluster(OTHER)).expect("TLS");
        assert!(!port.auto_sni_san_validation, "{class:?}: names take the place of the host");
        assert_eq!(validation(&port).match_typed_subject_alt_names.len(), 2);
    }
    let system = context(Seen::new(&plane, client("shop")).cluster(OTHER)).expect("TLS");
    assert!(validation(&system).system_root_certs.is_some());
    let grpc = Seen::new(&plane, grpc_client("shop")).cluster(WEB);
    assert_eq!(grpc.eds_cluster_config.expect("EDS").service_name, "BlackHoleCluster");
    let mut scan = Scan::default();
    scan.files.insert("a.yaml".into(), Ok(text.as_str().into()));
    let said = validate_scan(scan, Mesh { has_grpc: true, ..Mesh::default() }).diagnostics;
    let of_grpc = said.iter().filter(|one| one.message.contains("they do not call these Services"));
    assert_eq!(of_grpc.count(), 2, "{said:#?}");
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec: {host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}\n";
    let ruled = plane_from(&[text.as_str(), rule].concat());
    let seen = Seen::new(&ruled, client("shop"));
    assert!(context(seen.cluster(WEB)).is_none() && context(seen.cluster(OTHER)).is_some());
}

#[test]
fn a_policy_that_cannot_be_honoured_closes_its_service_and_says_why() {
    let refer = |to: &str| format!("hostname: web.internal, caCertificateRefs: [{to}]");
    let ours = "{group: '', kind: ConfigMap, name: ours}";
    for (validation, accepted, resolved) in [
        (refer("{group: '', kind: ConfigMap, name: nobody}"), "NoValidCACertificate", "InvalidCACertificateRef"),
        (
            refer(&format!("{ours}, {{group: '', kind: ConfigMap, name: nobody}}")),
            "NoValidCACertificate",
            "InvalidCACertificateRef",
        ),
        (refer("{group: example.com, kind: Bundle, name: ours}"), "NoValidCACertificate", "InvalidKind"),
        (refer("{group: '', kind: Secret, name: ours}"), "NoValidCACertificate", "InvalidKind"),
        ("hostname: web.internal, wellKnownCACertificates: Company".to_owned(), "Invalid", "ResolvedRefs"),
    ] {
        let plane = plane_from(&[SERVICE, &authorities("ours"), &policy("p", "", "name: web", &validation)].concat());
        assert_eq!(policy_reasons(&plane), [("p".to_owned(), vec![accepted, resolved])], "{validation}");
        assert!(told(&plane).contains("BackendTLSPolicy shop/p cannot be honoured"), "{validation}");
        assert!(Seen::new(&plane, client("shop")).cluster(WEB).transport_socket.is_none());
    }
    let options = policy("p", "", "name: web", BY_SYSTEM).replace("spec: {", "spec: {options: {example.com/a: b}, ");
    assert!(told(&plane_from(&[SERVICE, &options].concat())).contains("cannot be honoured: option example.com/a"));
    let good = plane_from(&[SERVICE, &authorities("ours"), &policy("p", "", "name: web", BY_US)].concat());
    assert!(!told(&good).contains("cannot be honoured"));
}

#[test]
fn of_two_policies_for_a_target_the_older_counts_and_each_says_what_became_of_it() {
    let named = |name: &str| BY_SYSTEM.replace("web.internal", name);
    let text = [
        SERVICE.to_owned(),
        policy("a", "2026", "name: web", &named("a.internal")),
        policy("ageless", "", "name: web", &named("ageless.internal")),
        policy("b", "2025", "name: web", &named("b.internal")),
        policy("missing", "2024", "name: nobody", BY_SYSTEM),
        policy("port", "2024", "name: web, sectionName: none", BY_SYSTEM),
    ];
    let plane = plane_from(&text.concat());
    let expected = [
        ("a", "Conflicted"),
        ("ageless", "Conflicted"),
        ("b", "Accepted"),
        ("missing", "TargetNotFound"),
        ("port", "TargetNotFound"),
    ];
    assert_eq!(policy_reasons(&plane), expected.map(|(name, reason)| (name.to_owned(), vec![reason, "ResolvedRefs"])));
    let context = context(Seen::new(&plane, client("shop")).cluster(WEB)).expect("TLS");
    assert_eq!(context.sni, "b.internal");
}

#[tokio::test]
async fn a_wrong_policy_without_a_good_state_closes_the_services_that_it_may_be_for() {
    let good = policy("p", "", "name: web", BY_SYSTEM);
    for wrong in [good.replace("validation:", "validaton:"), good.replace("name: web}", "nmae: [web]}")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("good.yaml"), SERVICE).unwrap();
        std::fs::write(dir.path().join("wrong.yaml"), &wrong).unwrap();
        let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
        assert_eq!(plane.wrong().len(), 1, "{wrong}");
        assert!(told(&plane).contains("BackendTLSPolicy shop/p is wrong"), "{wrong}: {}", told(&plane));
    }
}

#[test]
fn a_policy_that_misses_its_service_by_a_typo_closes_it_and_is_an_error() {
    for (target, reason) in [
        ("kind: Service, name: web, sectionName: htpt", "no port of it of this name"),
        ("kind: service, name: web", "service shop/web is no Service"),
        ("kind: Servcie, name: web", "Servcie shop/web is no Service"),
    ] {
        let wrong = policy("p", "", "name: web", BY_SYSTEM).replace("kind: Service, name: web", target);
        let plane = plane_from(&[SERVICE, &wrong].concat());
        assert!(told(&plane).contains("BackendTLSPolicy shop/p cannot be honoured"), "{target}: {}", told(&plane));
        assert_eq!(policy_reasons(&plane), [("p".to_owned(), vec!["TargetNotFound", "ResolvedRefs"])], "{target}");
        let said = plane.diagnostics();
        let is_error = |one: &Diagnostic| one.severity == Severity::Error && one.message.contains(reason);
        assert!(said.iter().any(is_error), "{target}: {said:#?}");
        // What another one says of the whole Service stays.
        let beside = plane_from(&[SERVICE, &wrong, &policy("q", "", "name: web", BY_SYSTEM)].concat());
        assert!(context(Seen::new(&beside, client("shop")).cluster(WEB)).is_some(), "{target}");
    }
    // Nobody there could be called in plaintext.
    let nobody = plane_from(&[SERVICE, &policy("p", "", "name: wbe", BY_SYSTEM)].concat());
    assert!(!told(&nobody).contains("cannot be honoured"));
}
