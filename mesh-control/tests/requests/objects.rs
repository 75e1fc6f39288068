//! What single objects mean, where that is easily misread: who has a host, who sees an object, how a name is written.

use std::net::SocketAddr;

use crate::support::{World, rules, server};

/// A ServiceEntry `web` in a namespace, for this host and endpoint.
fn entry(namespace: &str, host: &str, more: &str, at: SocketAddr) -> String {
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: {namespace}{more}}}
spec:
  hosts: [{host}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
",
        at.ip(),
        at.port()
    )
}

#[tokio::test]
async fn of_two_entries_for_a_host_the_one_of_the_clients_namespace_counts_else_the_oldest() {
    let (one, two) = (server("one").await, server("two").await);
    let old = ", creationTimestamp: '2024-01-01T00:00:00Z'";
    let new = ", creationTimestamp: '2025-01-01T00:00:00Z'";
    let both = entry("a", "web.example.com", new, one) + &entry("b", "web.example.com", old, two);
    for (client, expected) in [("a", "one"), ("b", "two"), ("c", "two")] {
        let answer = World::of(client, &[], &both).await.get("http://web.example.com/").await.unwrap();
        assert!(answer.body.starts_with(expected), "{client}: {answer:?}");
    }
}

/// Rules of which nobody can tell whom they are for are for everybody, and wrong.
#[tokio::test]
async fn rules_whose_export_to_says_nothing_fail_for_everybody() {
    let up = server("up").await;
    for export_to in ["['*', prod]", "[./]", "[..]", "['~', default]"] {
        let deny = rules("  - directResponse: {status: 403}\n")
            .replace("  http:", &format!("  exportTo: {export_to}\n  http:"));
        let world = World::of_file(&(entry("default", "web.example.com", "", up) + &deny)).await;
        let answer = world.get("http://web.example.com/").await.unwrap();
        assert_eq!(answer.status, 503, "{export_to}: {answer:?}");
        assert!(answer.body.contains("VirtualService default/web is wrong"), "{export_to}: {answer:?}");
    }
}
