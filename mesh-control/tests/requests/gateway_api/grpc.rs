//! Calls of gRPC, as a GRPCRoute wants them.

use super::{call, echo, grpc_route, who, world};

/// A rule with this condition, for a backend.
fn rule(condition: &str, backend: &str) -> String {
    format!("  - matches: [{{{condition}}}]\n    backendRefs: [{{name: {backend}, port: 7070}}]\n")
}

#[tokio::test]
async fn calls_are_told_apart_by_service_method_and_headers() {
    let rules = [
        rule("method: {service: pkg.A}", "echo-v1"),
        rule("method: {service: pkg.A, method: Two}", "echo-v2"),
        rule("method: {method: Any}", "echo-v2"),
        rule("method: {type: RegularExpression, service: 'pkg\\.B[0-9]+'}", "echo-v1"),
        rule("method: {type: RegularExpression, method: 'Get.*|List'}", "echo-v2"),
        rule("method: {service: pkg.A}, headers: [{name: version, value: two}]", "echo-v2"),
        rule("headers: [{name: X-Only, type: RegularExpression, value: 'a+'}]", "echo-v1"),
        // An expression is longer than the name that it stands for, and goes behind it.
        rule("method: {type: RegularExpression, service: 'pkg\\.[D-F]', method: '[A-Z][a-z]+'}", "echo-v1"),
        rule("method: {service: pkg.D, method: One}", "echo-v2"),
        rule("method: {service: pkg.E}", "echo-v2"),
    ]
    .concat();
    let world = world(&(echo().await + &grpc_route("calls", "echo", &rules))).await;
    for (path, headers, expected) in [
        ("pkg.A/One", &[][..], Some("v1")),
        ("pkg.A/Two", &[], Some("v2")),
        ("pkg.A/Twofold", &[], Some("v1")),
        ("pkg.A/One", &[("version", "two")], Some("v2")),
        ("pkg.AB/One", &[], None),
        ("other.S/Any", &[], Some("v2")),
        ("other.S/Many", &[], None),
        ("pkg.B12/X", &[], Some("v1")),
        ("pkgxB12/X", &[], None),
        ("pkg.C/GetAll", &[], Some("v2")),
        ("pkg.C/Lists", &[], None),
        ("pkg.C/X", &[("x-only", "aa")], Some("v1")),
        ("pkg.D/One", &[], Some("v2")),
        ("pkg.D/Two", &[], Some("v1")),
        ("pkg.E/One", &[], Some("v2")),
    ] {
        let answer = world.ask(call(&format!("http://echo:7070/{path}"), headers)).await;
        match expected {
            Some(version) => assert_eq!(who(answer), version, "{path} {headers:?}"),
            // UNIMPLEMENTED is what stands for it.
            None => assert_eq!(who(answer), "404", "{path} {headers:?}"),
        }
    }
}

#[tokio::test]
async fn calls_without_a_good_backend_are_unavailable() {
    let services = echo().await;
    for (backends, reason) in [
        ("[]", "there are no backendRefs"),
        ("[{name: nobody, port: 7070}]", "there is no Service mesh/nobody"),
        ("[{name: echo-v1, port: 7070, weight: 0}]", "no backend has a weight above 0"),
    ] {
        let rules = format!("  - backendRefs: {backends}");
        let world = world(&(services.clone() + &grpc_route("calls", "echo", &rules))).await;
        let answer = world.ask(call("http://echo:7070/pkg.A/One", &[])).await.unwrap();
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("14")), "{backends}: {answer:?}");
        assert!(answer.header("grpc-message").unwrap().contains(reason), "{backends}: {answer:?}");
    }
    // A share of the calls.
    let half = "  - backendRefs: [{name: echo-v1, port: 7070}, {name: nobody, port: 7070}]";
    let world = world(&(services + &grpc_route("calls", "echo", half))).await;
    let mut refused = 0;
    for _ in 0..400 {
        let answer = world.ask(call("http://echo:7070/pkg.A/One", &[])).await.unwrap();
        refused += usize::from(answer.header("grpc-status") == Some("14"));
    }
    assert!((150..=250).contains(&refused), "{refused} of 400");
}
