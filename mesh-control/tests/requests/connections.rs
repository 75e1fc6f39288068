//! Connections whose bytes are not HTTP, as `tls` and `tcp` of a VirtualService want them: which server a connection reaches, by
//! what that server says first.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_control::config::support::{ObjectKind, Support, is_own_row, row};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_tower::client::MeshStream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::{World, virtual_service};

/// A server that says its name, and then what it hears.
async fn speaker(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                _ = stream.write_all(format!("{name}\n").as_bytes()).await;
                let (mut reader, mut writer) = stream.split();
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

/// `db.example.com` of two versions, at a port of bytes and at one of TLS, and `other.example.com`.
async fn services() -> String {
    let (v1, v2, other) = (speaker("v1").await, speaker("v2").await, speaker("other").await);
    let endpoint = |version: &str, at: SocketAddr| {
        let (port, second) = (at.port(), other.port());
        format!(
            "  - {{address: 127.0.0.1, ports: {{tcp: {port}, tls: {port}, second: {second}}}, labels: {{v: {version}}}}}\n"
        )
    };
    let entry = |name: &str, endpoints: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.example.com]
  resolution: STATIC
  ports:
  - {{number: 5432, name: tcp, protocol: TCP}}
  - {{number: 5433, name: tls, protocol: TLS}}
  - {{number: 5434, name: second, protocol: TCP}}
  endpoints:
{endpoints}"
        )
    };
    let subsets = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec: {host: db.example.com, subsets: [{name: v1, labels: {v: v1}}, {name: v2, labels: {v: v2}}]}
";
    let db = entry("db", &format!("{}{}", endpoint("v1", v1), endpoint("v2", v2)));
    [db, subsets.to_owned(), entry("other", &endpoint("v1", other))].concat()
}

fn rules(spec: &str) -> String {
    virtual_service("db", &format!("  hosts: [db.example.com, '*.db.example.com', 192.0.2.7]\n  {spec}\n"))
}

/// The first line that a server says.
async fn first_line(stream: &mut MeshStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}

/// Where a connection is to go: a host, a port, and the name of a server.
#[derive(Clone, Copy)]
struct To(&'static str, u16, Option<&'static str>);

const DB: To = To("db.example.com", 5432, None);
const REPLICA: To = To("db.example.com", 5433, Some("replica.db.example.com"));

async fn connect(world: &World, To(host, port, name): To) -> Result<MeshStream, MeshError> {
    match name {
        Some(name) => world.mesh.connect_by_name(host, port, name).await,
        None => world.mesh.connect(host, port).await,
    }
}

/// Whom some connections reach.
async fn reached(world: &World, to: To) -> String {
    let mut by = BTreeSet::new();
    for _ in 0..24 {
        by.insert(match connect(world, to).await {
            Ok(mut stream) => first_line(&mut stream).await,
            Err(error) => format!("{:?}", error.kind()),
        });
    }
    by.into_iter().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn every_enforced_field_of_a_rule_on_connections_makes_its_difference_to_one() {
    let services = services().await;
    let to_v2 = "route: [{destination: {host: db.example.com, subset: v2}}]";
    let tcp = |condition: &str| rules(&format!("tcp: [{{match: [{{{condition}}}], {to_v2}}}]"));
    let tcp_to = |route: &str| rules(&format!("tcp: [{{route: [{route}]}}]"));
    let tls =
        |condition: &str| rules(&format!("tls: [{{match: [{{sniHosts: ['*.db.example.com']{condition}}}], {to_v2}}}]"));
    let tls_to =
        |route: &str| rules(&format!("tls: [{{match: [{{sniHosts: ['*.db.example.com']}}], route: [{route}]}}]"));
    let mut cases: Vec<(&str, String, To, &str)> = vec![
        ("", String::new(), DB, "v1 v2"),
        ("", String::new(), REPLICA, "v1 v2"),
        ("tcp.match.destinationSubnets", tcp("destinationSubnets: [192.0.2.0/24]"), To("192.0.2.7", 5432, None), "v2"),
        ("tcp.match.destinationSubnets", tcp("destinationSubnets: [192.0.2.0/24]"), DB, "v1 v2"),
        ("tcp.match.destinationSubnets", tcp("destinationSubnets: [0.0.0.0/0]"), DB, "v2"),
        ("tls.match.destinationSubnets", tls(", destinationSubnets: [198.51.100.0/24]"), REPLICA, "v1 v2"),
        ("tls.match.destinationSubnets", tls(", destinationSubnets: [0.0.0.0/0]"), REPLICA, "v2"),
        ("tls.match.sniHosts", tls(""), REPLICA, "v2"),
        ("tls.match.sniHosts", tls(""), To("db.example.com", 5433, Some("REPLICA.db.example.com")), "v2"),
        ("tls.match.sniHosts", tls(""), To("db.example.com", 5433, Some("db.example.com")), "NoRoute"),
        ("tls.match.sniHosts", tls(""), To("db.example.com", 5433, None), "NoRoute"),
        // Of the two kinds of rules, the protocol of the port says which is meant.
        ("tls.match.sniHosts", tls(""), To("db.example.com", 5432, Some("replica.db.example.com")), "v1 v2"),
        ("", tcp(""), REPLICA, "v1 v2"),
    ];
    for (field, met, missed) in [
        ("port", ["port: 5432", "port: 5433"], "port: 1"),
        ("sourceLabels", ["sourceLabels: {app: caller}"; 2], "sourceLabels: {app: other}"),
        ("sourceNamespace", ["sourceNamespace: default"; 2], "sourceNamespace: other"),
        ("gateways", ["gateways: [mesh]"; 2], "gateways: [edge]"),
    ] {
        let [of_tcp, of_tls] = met;
        let name = |kind: &str| -> &'static str { format!("{kind}.match.{field}").leak() };
        cases.push((name("tcp"), tcp(of_tcp), DB, "v2"));
        cases.push((name("tcp"), tcp(missed), DB, "v1 v2"));
        cases.push((name("tls"), tls(&format!(", {of_tls}")), REPLICA, "v2"));
        cases.push((name("tls"), tls(&format!(", {missed}")), REPLICA, "v1 v2"));
    }
    for (field, route, expected) in [
        ("destination.host", "{destination: {host: other.example.com}}", "other"),
        ("destination.subset", "{destination: {host: db.example.com, subset: v1}}", "v1"),
        ("destination.port.number", "{destination: {host: db.example.com, port: {number: 5434}}}", "other"),
        (
            "weight",
            "{destination: {host: db.example.com, subset: v1}, weight: 0}, {destination: {host: db.example.com, subset: v2}, weight: 1}",
            "v2",
        ),
        (
            "weight",
            "{destination: {host: other.example.com}, weight: 1}, {destination: {host: db.example.com, subset: v2}, weight: 1}",
            "other v2",
        ),
    ] {
        let name = |kind: &str| -> &'static str { format!("{kind}.route.{field}").leak() };
        cases.push((name("tcp"), tcp_to(route), DB, expected));
        cases.push((name("tls"), tls_to(route), REPLICA, expected));
    }
    let fields = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fields/VirtualService.txt");
    let fields = std::fs::read_to_string(fields).unwrap();
    let tested: BTreeSet<&str> = cases.iter().map(|(field, ..)| *field).collect();
    let kind = ObjectKind::VirtualService;
    let enforced = fields.lines().filter(|field| {
        let row = row(kind, field).filter(|row| is_own_row(row, field));
        (field.starts_with("tcp.") || field.starts_with("tls."))
            && row.is_some_and(|row| matches!(row.library, Support::Enforced | Support::Partly(_)))
    });
    let untested: Vec<&str> = enforced.filter(|field| !tested.contains(field)).collect();
    assert!(untested.is_empty(), "enforced, and no connection says so: {untested:#?}");
    let mut wrong = Vec::new();
    for (field, rules, to, expected) in cases {
        let world = World::of("default", &[("app", "caller")], &format!("{services}{rules}")).await;
        let reached = reached(&world, to).await;
        if reached != expected {
            wrong.push(format!("{field}: {reached}, not {expected}, under\n{rules}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_name_of_a_server_finds_the_rule_that_is_for_it_most_closely() {
    let to = |subset: &str| format!("route: [{{destination: {{host: db.example.com, subset: {subset}}}}}]");
    let yaml = format!(
        "{}{}",
        services().await,
        rules(&format!(
            "tls:\n  - {{match: [{{sniHosts: ['*.db.example.com']}}], {}}}\n  - {{match: [{{sniHosts: [replica.db.example.com]}}], {}}}",
            to("v1"),
            to("v2")
        ))
    );
    let world = World::new(&yaml).await;
    assert_eq!(reached(&world, REPLICA).await, "v2", "exactly, wherever it is written");
    assert_eq!(reached(&world, To("db.example.com", 5433, Some("a.db.example.com"))).await, "v1");
    for (to, expected) in [
        (To("db.example.com", 5433, Some("x.example.com")), "\"x.example.com\""),
        (To("db.example.com", 5433, None), "connect_by_name"),
    ] {
        let error = connect(&world, to).await.unwrap_err();
        assert!(error.kind() == ErrorKind::NoRoute && error.to_string().contains(expected), "{error}");
    }
}

/// Nobody knows what a wrong rule would have said of connections, so they lead nowhere, as requests do.
#[tokio::test]
async fn connections_to_what_a_wrong_rule_is_for_lead_nowhere() {
    let services = services().await;
    let route = |rules: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: db}}\nspec:\n  \
             parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: db}}]\n  rules: [{rules}]\n"
        )
    };
    let to_other = "{backendRefs: [{group: networking.istio.io, kind: Hostname, name: other.example.com, port: 5432}]}";
    for (rule, expected) in
        [(route(to_other), "v1 v2"), (route("{backends: []}"), "NoRoute"), (rules("htpt: []"), "NoRoute")]
    {
        let world = World::of_file(&format!("{services}{rule}")).await;
        for to in [DB, REPLICA, To("db.example.com", 5433, None), To("db.example.com", 5434, None)] {
            let expected = if to.1 == 5434 && expected == "v1 v2" { "other" } else { expected };
            assert_eq!(reached(&world, to).await, expected, "{rule}");
        }
        assert_eq!(reached(&world, To("other.example.com", 5432, None)).await, "other", "{rule}");
    }
}

#[tokio::test]
async fn limits_of_tcp_hold_for_connections() {
    let rule = |pool: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: limits}}\n\
             spec: {{host: other.example.com, trafficPolicy: {{connectionPool: {{tcp: {{{pool}}}}}}}}}\n"
        )
    };
    let services = services().await;
    let other = To("other.example.com", 5432, None);
    let world = World::new(&format!("{services}{}", rule("maxConnections: 1"))).await;
    let first = connect(&world, other).await.unwrap();
    assert_eq!(connect(&world, other).await.unwrap_err().kind(), ErrorKind::Overflow);
    drop(first);
    assert_eq!(reached(&world, other).await, "other");
    let world = World::new(&format!("{services}{}", rule("idleTimeout: 50ms"))).await;
    let mut idle = connect(&world, other).await.unwrap();
    assert_eq!(first_line(&mut idle).await, "other");
    idle.write_all(b"a").await.unwrap();
    assert_eq!(idle.read_u8().await.unwrap(), b'a');
    let error = idle.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    // An endpoint that refuses is passed over.
    let dead = super::support::nobody().await;
    let with_dead = services.replacen(
        "  endpoints:\n",
        &format!("  endpoints:\n  - {{address: 127.0.0.1, ports: {{tcp: {}, tls: 1, second: 1}}}}\n", dead.port()),
        1,
    );
    let world = World::new(&with_dead).await;
    assert_eq!(reached(&world, DB).await, "v1 v2");
}

#[tokio::test]
async fn a_connection_goes_on_for_a_while_where_its_rule_leads_elsewhere_by_now_and_is_closed_then() {
    let services = services().await;
    let to = |subset: &str| {
        let rules = rules(&format!("tcp: [{{route: [{{destination: {{host: db.example.com, subset: {subset}}}}}]}}]"));
        format!("{services}{rules}")
    };
    let world = World::of_file(&to("v1")).await;
    let mut stays = connect(&world, DB).await.unwrap();
    assert_eq!(first_line(&mut stays).await, "v1");
    world.rewrite(&to("v2"));
    let moved = async {
        while reached(&world, DB).await != "v2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), moved).await.unwrap();
    stays.write_all(b"a").await.unwrap();
    assert_eq!(stays.read_u8().await.unwrap(), b'a', "it is in use, and is not cut off");
    // From here on time passes where nobody has anything to do.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let mut rest = Vec::new();
    assert_eq!(stays.read_to_end(&mut rest).await.unwrap(), 0);
    let took = begun.elapsed().as_secs();
    assert!((40..=50).contains(&took), "{took} s");
}

#[tokio::test]
async fn who_asks_for_an_address_of_a_service_reaches_the_service() {
    let services = services().await.replacen(
        "  resolution: STATIC\n",
        "  resolution: STATIC\n  addresses: [192.0.2.9, 198.51.100.0/24]\n",
        1,
    );
    let world = World::new(&services).await;
    for address in ["192.0.2.9", "198.51.100.7"] {
        assert_eq!(reached(&world, To(address, 5432, None)).await, "v1 v2", "{address}");
    }
    // What the service is at, a condition on subnets is told of.
    let to_v2 = "route: [{destination: {host: db.example.com, subset: v2}}]";
    for (subnet, expected) in [("192.0.2.0/24", "v2"), ("203.0.113.0/24", "v1 v2")] {
        let rules = rules(&format!("tcp: [{{match: [{{destinationSubnets: [{subnet}]}}], {to_v2}}}]"))
            .replace(", 192.0.2.7]", "]");
        let world = World::new(&format!("{services}{rules}")).await;
        assert_eq!(reached(&world, DB).await, expected, "{subnet}");
        assert_eq!(reached(&world, To("192.0.2.9", 5432, None)).await, expected, "{subnet}");
    }
    // An address that another object has as its host is that one's.
    let own = rules(&format!("tcp: [{{{to_v2}}}]")).replace("192.0.2.7", "192.0.2.9");
    let world = World::new(&format!("{services}{own}")).await;
    assert_eq!(reached(&world, To("192.0.2.9", 5432, None)).await, "v2");
}
