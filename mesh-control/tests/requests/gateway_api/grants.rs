//! Who may refer to whom, whose routes are for whom, and what a route is attached to.

use super::{V1, V2, echo, grpc_route, http_route, object, who, world};
use crate::support::{World, server};

fn grant(namespace: &str, from: &str, to: &str) -> String {
    let spec = format!("  from: [{{{from}}}]\n  to: [{{{to}}}]");
    object("ReferenceGrant", namespace, "grant", "", &spec)
}

#[tokio::test]
async fn a_backend_of_another_namespace_is_reached_where_a_grant_there_says_so() {
    let services = echo().await;
    let route = object(
        "HTTPRoute",
        "other",
        "route",
        "",
        "  parentRefs: [{group: '', kind: Service, name: front}]\n  rules:\n  - backendRefs: [{name: echo-v1, namespace: mesh, port: 80}]",
    );
    let front = "---\napiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: other}\nspec: {selector: {app: front}, ports: [{name: http, port: 80}]}\n";
    let from = "group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other";
    for (grant, expected) in [
        (String::new(), "500"),
        (grant("mesh", from, "group: '', kind: Service"), "v1"),
        (grant("mesh", from, "group: '', kind: Service, name: echo-v1"), "v1"),
        (grant("mesh", from, "group: '', kind: Service, name: echo-v2"), "500"),
        (grant("mesh", from, "group: '', kind: Secret"), "500"),
        (grant("other", from, "group: '', kind: Service"), "500"),
        (grant("mesh", &from.replace("other", "third"), "group: '', kind: Service"), "500"),
        (grant("mesh", &from.replace("HTTPRoute", "GRPCRoute"), "group: '', kind: Service"), "500"),
        (grant("mesh", &from.replace("gateway.networking.k8s.io", "''"), "group: '', kind: Service"), "500"),
    ] {
        let world = World::of("other", &[], &format!("{services}{front}{route}{grant}")).await;
        assert_eq!(who(world.get("http://front/").await), expected, "{grant}");
    }
}

#[tokio::test]
async fn a_consumers_routes_take_the_place_of_all_of_the_producers() {
    let to = |namespace: &str, rules: &str| {
        object(
            "HTTPRoute",
            namespace,
            "route",
            "",
            &format!("  parentRefs: [{{group: '', kind: Service, name: echo, namespace: mesh}}]\n  rules:\n{rules}"),
        )
    };
    let redirect = "filters: [{type: RequestRedirect, requestRedirect: {hostname: consumers.own}}]";
    let consumer = to("consumer", &format!("  - matches: [{{path: {{value: /a}}}}]\n    {redirect}"));
    let yaml = echo().await + &http_route("producer", "echo", &format!("  - {V2}")) + &consumer;
    for (namespace, path, expected) in
        [("mesh", "/a", "v2"), ("third", "/a", "v2"), ("consumer", "/a", "302"), ("consumer", "/b", "404")]
    {
        let world = World::of(namespace, &[], &yaml).await;
        assert_eq!(who(world.get(&format!("http://echo.mesh{path}")).await), expected, "{namespace} {path}");
    }
}

#[tokio::test]
async fn a_route_is_for_the_port_of_its_parent_by_number_or_name() {
    let services = echo().await;
    for (parent, main, other) in [
        ("echo-v1, port: 80", "v2", "v1"),
        ("echo-v1, sectionName: http-alt", "v1", "v2"),
        ("echo-v1, sectionName: http, port: 80", "v2", "v1"),
        ("echo-v1, sectionName: http, port: 8080", "v1", "v1"),
        ("echo-v1, port: 9", "v1", "v1"),
        ("echo-v1", "v2", "v2"),
        ("nobody", "v1", "v1"),
        ("echo-v1, namespace: mesh", "v2", "v2"),
    ] {
        let world = world(&(services.clone() + &http_route("r", parent, &format!("  - {V2}")))).await;
        for (uri, expected) in [("http://echo-v1/", main), ("http://echo-v1:8080/", other)] {
            assert_eq!(who(world.get(uri).await), expected, "{parent} {uri}");
        }
    }
}

#[tokio::test]
async fn service_entries_are_parents_and_hosts_backends_as_in_istio() {
    let outside = server("outside").await;
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: mesh}}\n\
         spec: {{hosts: [api.example.com, '*.wild.example.com'], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], \
         endpoints: [{{address: {}, ports: {{http: {}}}}}]}}\n",
        outside.ip(),
        outside.port()
    );
    let routes = object(
        "HTTPRoute",
        "mesh",
        "api",
        "",
        &format!(
            "  parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: api}}]\n  rules:\n  - matches: [{{path: {{value: /v1}}}}]\n    {V1}\n  \
         - backendRefs: [{{group: networking.istio.io, kind: Hostname, name: api.example.com, port: 80}}]"
        ),
    );
    let world = world(&(echo().await + &entry + &routes)).await;
    for (uri, expected) in [
        ("http://api.example.com/", "outside"),
        ("http://api.example.com/v1/x", "v1"),
        ("http://a.wild.example.com/v1", "v1"),
    ] {
        assert_eq!(who(world.get(uri).await), expected, "{uri}");
    }
}

#[tokio::test]
async fn where_there_are_grpc_routes_http_routes_for_the_same_port_do_not_count() {
    let grpc = |parent: &str| {
        grpc_route(
            "calls",
            parent,
            "  - matches: [{method: {service: pkg.Echo}}]\n    backendRefs: [{name: echo-v2, port: 7070}]",
        )
    };
    let http = http_route("requests", "echo", &format!("  - {V1}"));
    for (parent, of_80, of_7070) in [("echo", "404", "404"), ("echo, port: 7070", "v1", "404")] {
        let world = world(&(echo().await + &http + &grpc(parent))).await;
        assert_eq!(who(world.get("http://echo/").await), of_80, "{parent}");
        assert_eq!(who(world.get("http://echo:7070/").await), of_7070, "{parent}");
    }
}

#[tokio::test]
async fn of_a_virtual_service_and_a_route_for_one_host_the_older_counts_and_a_consumers_route_always() {
    let services = echo().await;
    let rules = |name: &str, created: &str, more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: mesh{created}}}\n\
             spec: {{hosts: [echo]{more}, http: [{{directResponse: {{status: 201}}}}]}}\n"
        )
    };
    let old = ", creationTimestamp: '2024-01-01T00:00:00Z'";
    let new = ", creationTimestamp: '2025-01-01T00:00:00Z'";
    let route = |created: &str| {
        object(
            "HTTPRoute",
            "mesh",
            "m",
            created,
            &format!("  parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n  - {V1}"),
        )
    };
    for (objects, expected) in [
        (rules("m", old, "") + &route(new), "201"),
        (rules("m", new, "") + &route(old), "v1"),
        // Files have no age: the name decides, and of equal names the route.
        (rules("a", "", "") + &route(""), "201"),
        (rules("z", "", "") + &route(""), "v1"),
        (rules("m", "", "") + &route(""), "v1"),
        // What only the own namespace sees goes before what all see.
        (rules("z", "", ", exportTo: ['.']") + &route(""), "201"),
    ] {
        assert_eq!(who(world(&format!("{services}{objects}")).await.get("http://echo/").await), expected, "{objects}");
    }
    let consumer = object(
        "HTTPRoute",
        "consumer",
        "z",
        new,
        "  parentRefs: [{group: '', kind: Service, name: echo, namespace: mesh}]\n  rules:\n  - filters: [{type: RequestRedirect, requestRedirect: {port: 81}}]",
    );
    let world = World::of("consumer", &[], &format!("{services}{}{consumer}", rules("a", old, ""))).await;
    assert_eq!(who(world.get("http://echo.mesh/").await), "302");
}
