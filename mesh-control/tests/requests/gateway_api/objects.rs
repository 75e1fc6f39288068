//! Objects that are wrong: the last good state stays, else what they govern fails with the reason.

use super::{V1, V2, call, echo, grpc_route, http_route, object, who};
use crate::support::World;

#[tokio::test]
async fn a_route_that_is_wrong_fails_what_it_is_attached_to_and_nothing_else() {
    let services = echo().await;
    let wrong =
        http_route("wrong", "echo-v1", &format!("  - matches: [{{path: {{type: Prefix, value: /}}}}]\n    {V2}"));
    let good = http_route("good", "echo-v2", &format!("  - {V1}"));
    let world = World::of_file_in("mesh", &format!("{services}{wrong}{good}")).await;
    let answer = world.get("http://echo-v1/").await.unwrap();
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("HTTPRoute mesh/wrong is wrong"), "{answer:?}");
    assert_eq!(who(world.get("http://echo-v2/").await), "v1");
    assert_eq!(who(world.get("http://echo/").await).len(), 2);

    let wrong = grpc_route("wrong", "echo-v1", "  - matches: [{method: {service: a/b}}]");
    let world = World::of_file_in("mesh", &format!("{services}{wrong}")).await;
    let answer = world.ask(call("http://echo-v1:7070/a/b", &[])).await.unwrap();
    assert_eq!(answer.header("grpc-status"), Some("14"));
    assert!(answer.header("grpc-message").unwrap().contains("GRPCRoute mesh/wrong is wrong"), "{answer:?}");
}

/// Nobody breaks a service for others.
#[tokio::test]
async fn a_consumers_route_that_is_wrong_fails_the_consumers_alone() {
    let services = echo().await;
    for parent in [
        "parentRefs: [{group: '', kind: Service, name: echo-v1, namespace: mesh}]",
        "parentRefs: {group: '', kind: Service, name: echo-v1, namespace: mesh}",
    ] {
        let wrong = object("HTTPRoute", "consumer", "wrong", "", &format!("  {parent}\n  rules: [{{backends: []}}]"));
        for (namespace, expected) in [("consumer", "500"), ("mesh", "v1"), ("third", "v1")] {
            let world = World::of_file_in(namespace, &format!("{services}{wrong}")).await;
            assert_eq!(who(world.get("http://echo-v1.mesh/").await), expected, "{namespace} {parent}");
        }
    }
}

#[tokio::test]
async fn the_last_good_state_of_a_route_stays() {
    let services = echo().await;
    let route = |rules: &str| http_route("route", "echo", rules);
    let world = World::of_file_in("mesh", &format!("{services}{}", route(&format!("  - {V1}")))).await;
    assert_eq!(who(world.get("http://echo/").await), "v1");
    // The other object of the file says when it was read.
    let marker = http_route("marker", "echo-v2", &format!("  - {V1}"));
    world.rewrite(&format!("{services}{}{marker}", route("  - backendRefs: [{name: echo-v2}]")));
    let read = async {
        while who(world.get("http://echo-v2/").await) != "v1" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("the new file is read");
    for _ in 0..10 {
        assert_eq!(who(world.get("http://echo/").await), "v1");
    }
}
