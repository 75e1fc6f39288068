//! Sessions that stay at their endpoint (`istio.io/persistent-session` of a service), and `mesh-control/endpoint-subset`: by
//! which server answers.

use std::net::SocketAddr;

use mesh_control::analysis::validate;

use crate::support::{World, server, service};

const NAMES: [&str; 5] = ["v1", "v2", "v3", "v4", "v5"];

async fn servers() -> Vec<(&'static str, SocketAddr)> {
    let mut servers = Vec::new();
    for name in NAMES {
        servers.push((name, server(name).await));
    }
    servers
}

fn labelled(servers: &[(&str, SocketAddr)], label: &str) -> String {
    let entry = "kind: ServiceEntry\nmetadata: {name: web}";
    service("web", servers).replace(entry, &format!("kind: ServiceEntry\nmetadata: {{name: web, labels: {{{label}}}}}"))
}

/// Which servers answer some requests with these headers, and the value of a header of the first answer.
async fn answers(world: &World, headers: &[(&str, &str)], header: &str) -> (Vec<String>, Option<String>) {
    let (mut names, mut value) = (Vec::new(), None);
    for _ in 0..12 {
        let answer = world.with("http://web.example.com/", headers).await.unwrap();
        value = value.or_else(|| answer.header(header).map(str::to_owned));
        names.push(answer.body.lines().next().unwrap().to_owned());
    }
    (names, value)
}

#[tokio::test]
async fn requests_with_the_cookie_or_the_header_of_an_answer_go_where_that_came_from() {
    let servers = servers().await;
    for (label, carrier, given) in [
        ("istio.io/persistent-session: 'at:/'", "cookie", "set-cookie"),
        ("istio.io/persistent-session-header: x-at", "x-at", "x-at"),
    ] {
        let world = World::new(&labelled(&servers, label)).await;
        let (first, value) = answers(&world, &[], given).await;
        let value = value.unwrap();
        let sent = value.split(';').next().unwrap();
        let (again, _) = answers(&world, &[(carrier, sent)], given).await;
        assert!(again.iter().all(|name| *name == first[0]), "{label}: {first:?} {again:?}");
        let mut all = first;
        all.sort();
        all.dedup();
        assert!(all.len() > 1, "{label}: others go anywhere");
    }
    let wrong = labelled(&servers, "istio.io/persistent-session: 'a b'");
    let found = validate([("t.yaml", wrong.as_str())]);
    let found: Vec<_> = found.iter().map(ToString::to_string).filter(|line| line.contains("error[")).collect();
    assert!(found.len() == 1 && found[0].contains("`a b` is not a cookie: `name`, or `name:/path`"), "{found:?}");
}

#[tokio::test]
async fn a_client_calls_as_many_servers_as_its_rule_says() {
    let servers = servers().await;
    for (policy, size) in
        [("{}", 2), ("{loadBalancer: {simple: ROUND_ROBIN}}", 3), ("{loadBalancer: {simple: RANDOM}}", 1)]
    {
        let yaml = service("web", &servers)
            .replace(
                "kind: DestinationRule\nmetadata: {name: web}",
                &format!(
                    "kind: DestinationRule\nmetadata: {{name: web, annotations: {{mesh-control/endpoint-subset: size={size}}}}}"
                ),
            )
            .replace("  host: web.example.com\n", &format!("  host: web.example.com\n  trafficPolicy: {policy}\n"));
        let world = World::new(&yaml).await;
        let mut called = Vec::new();
        for _ in 0..4 {
            called.extend(answers(&world, &[], "x").await.0);
        }
        called.sort();
        called.dedup();
        assert_eq!(called.len(), size, "{policy}: {called:?}");
    }
}
