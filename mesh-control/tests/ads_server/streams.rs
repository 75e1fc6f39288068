//! The ADS server over real sockets, with the client stubs of envoy-types.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{self, Delta, Fixture, Quiet, ServiceFn, Shelf, Sotw, bodies, node, said, settled, until};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use hyper_util::rt::TokioIo;
use mesh_control::catalog::Kind;
use mesh_control::serve::status;

use Kind::{Cluster, Endpoints, Listener, Route};

#[tokio::test]
async fn a_delta_client_walks_from_listener_to_endpoints_and_sees_a_change() {
    let shelf = Shelf::default()
        .with(Listener, "reviews:9080", "1")
        .with(Route, "r", "1")
        .with(Cluster, "c", "1")
        .with(Endpoints, "c", "1");
    let fixture = Fixture::plain(shelf).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    for (kind, name) in [(Listener, "reviews:9080"), (Route, "r"), (Cluster, "c"), (Endpoints, "c")] {
        client.send(kind, &[name], &[]).await;
        assert_eq!(client.take().await, [format!("{name}=1")]);
    }
    fixture.publish(|shelf| shelf.put(Endpoints, "c", "2"));
    assert_eq!(client.take().await, ["c=2"]);
}

/// A workload that registered a moment ago is among the endpoints that somebody asks for.
#[tokio::test]
async fn what_is_asked_for_is_told_as_it_is_and_not_as_it_was_when_streams_were_last_told_of_a_change() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "c", "1").with(Endpoints, "c", "1")).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["c"], &[]).await;
    assert_eq!(client.take().await, ["c=1"]);
    // The first change is told at once, and the next one not for a while.
    fixture.publish(|shelf| shelf.put(Cluster, "c", "2"));
    assert_eq!(client.take().await, ["c=2"]);
    fixture.publish(|shelf| shelf.put(Endpoints, "c", "2"));
    client.send(Endpoints, &["c"], &[]).await;
    assert_eq!(client.take().await, ["c=2"]);
}

#[tokio::test]
async fn a_sotw_client_is_served_over_the_same_listener_and_its_refusal_is_reported() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1").with(Cluster, "b", "1")).await;
    let mut client = Sotw::open(fixture.channel().await, node("gRPC C-core")).await.unwrap();
    client.send(Cluster, &["a", "b", "missing"], None, None).await;
    let response = client.next().await;
    assert_eq!(bodies(&response), ["1", "1"]);
    assert_eq!(response.resource_errors.len(), 1);
    client.send(Cluster, &["a", "b", "missing"], Some(&response), Some("cluster \"b\": unknown policy")).await;

    let report = || status::report(&fixture.server, &Quiet, true);
    until("the refusal is known", || report().clients[0].kinds[0].state == "refused").await;
    let client = report().clients.remove(0);
    assert_eq!((&*client.class, &*client.protocol, &*client.namespace), ("grpc", "sotw", "shop"));
    let nack = client.kinds[0].last_nack.clone().expect("a refusal");
    assert_eq!((&*nack.text, &*nack.names), ("cluster \"b\": unknown policy", &["b".to_owned()][..]));
    let metrics = status::metrics(&fixture.server, &Quiet);
    assert!(metrics.contains("pilot_total_xds_rejects 1"), "{metrics}");
    assert!(metrics.contains("mesh_xds_connections{class=\"grpc\",protocol=\"sotw\"} 1"), "{metrics}");
}

#[tokio::test]
async fn server_rule_17_the_fleet_is_told_over_csds() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1")).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    client.take().await;
    let mut csds = ClientStatusDiscoveryServiceClient::new(fixture.channel().await);
    let synced = async {
        loop {
            let response = csds.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
            let resource = response.config[0].generic_xds_configs[0].clone();
            if resource.config_status == i32::from(ConfigStatus::Synced) {
                return (response.config[0].node.clone().unwrap().id, resource.name, resource.version_info);
            }
        }
    };
    let synced = tokio::time::timeout(support::PATIENCE, synced).await.unwrap();
    assert_eq!(synced, (node("").id, "a".to_owned(), "1".to_owned()));
}

#[tokio::test]
async fn server_rule_19_load_reports_are_taken_from_any_number_of_streams_of_a_node() {
    let long = "a".repeat(513);
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1").with(Cluster, &long, "1")).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    client.take().await;
    for feature in ["envoy.lrs.supports_send_all_clusters", ""] {
        let node = Node { client_features: vec![feature.to_owned()], ..node("mesh-core") };
        let first = LoadStatsRequest { node: Some(node), ..LoadStatsRequest::default() };
        let locality = UpstreamLocalityStats { total_issued_requests: 5, ..UpstreamLocalityStats::default() };
        let cluster = ClusterStats {
            cluster_name: "a".to_owned(),
            upstream_locality_stats: vec![locality],
            ..ClusterStats::default()
        };
        // What nobody has, and what nobody can have done, does not count.
        let named = |name: &str| ClusterStats { cluster_name: name.to_owned(), ..cluster.clone() };
        let invented = (0..4990).map(|n| named(&format!("outbound|80||invented-{n}.shop.svc.cluster.local")));
        let too_many = ClusterStats { total_dropped_requests: u64::MAX, ..cluster.clone() };
        let lies = [named(&long), too_many].into_iter().chain(invented);
        let report =
            LoadStatsRequest { cluster_stats: lies.chain([cluster.clone()]).collect(), ..LoadStatsRequest::default() };
        let requests = tokio_stream::iter([first, report]);
        let mut lrs = LoadReportingServiceClient::new(fixture.channel().await);
        let mut answers = lrs.stream_load_stats(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.load_reporting_interval.unwrap().seconds, 2);
        assert_eq!(answer.send_all_clusters, !feature.is_empty());
        assert_eq!(answer.clusters, if feature.is_empty() { vec!["a"] } else { vec![] });
    }
    let sum = "mesh_reported_requests_total{cluster=\"a\",outcome=\"issued\"} 10";
    until("both reports are counted", || status::metrics(&fixture.server, &Quiet).contains(sum)).await;
    let metrics = fixture.metrics();
    assert_eq!(metrics.matches("mesh_reported_requests_total{").count(), 4, "of one cluster");
    for lost in ["{reason=\"unknown_cluster\"} 9982\n", "{reason=\"too_many\"} 2\n"] {
        assert!(metrics.contains(&format!("mesh_reports_lost_total{lost}")), "{lost}");
    }
    assert!(metrics.contains("mesh_traffic_edges 0\n"), "{metrics}");
}

#[tokio::test]
async fn server_rule_11_a_reconnect_may_name_a_hundred_thousand_resources_in_one_request_or_in_several() {
    let names: Vec<String> = (0..100_000).map(|number| format!("{number:0>90}")).collect();
    let mut shelf = Shelf::default().with(Cluster, "probe", "1");
    names.iter().for_each(|name| shelf.put(Cluster, name, "1"));
    let fixture = Fixture::plain(shelf).await;
    for size in [100_000, 40_000] {
        let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
        for part in names.chunks(size) {
            client.resume_all(Cluster, part, "1").await;
        }
        client.send(Cluster, &["probe"], &[]).await;
        // Nothing of what the client has is sent again.
        assert_eq!(client.take().await, ["probe=1"]);
    }
}

#[tokio::test]
async fn a_workload_registers_by_asking_for_its_listener_and_goes_by_giving_it_up() {
    let fixture = Fixture::plain(Shelf::default()).await;
    let told = || fixture.registry.told.lock().unwrap().clone();
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    let name = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
    client.send(Listener, &[name], &[]).await;
    assert_eq!(client.take().await, [format!("{name}=registered")], "the answer knows of the registration");
    assert_eq!(told(), ["+127.0.0.1:9080"]);
    client.send(Listener, &[], &[name]).await;
    until("it is gone", || told() == ["+127.0.0.1:9080", "-127.0.0.1:9080"]).await;
}

#[tokio::test]
async fn a_workload_whose_stream_breaks_stays_for_the_grace_unless_it_comes_back() {
    let options = settled().grace(Duration::from_millis(300));
    let fixture = Fixture::start(Shelf::default(), options).await;
    let told = || fixture.registry.told.lock().unwrap().clone();
    let name = "xds.istio.io/grpc/lds/inbound/0.0.0.0:9080";
    for _ in 0..2 {
        let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
        client.send(Listener, &[name], &[]).await;
        client.next().await;
        drop(client);
    }
    until("the grace is over", || told().len() == 2).await;
    assert_eq!(told(), ["+127.0.0.1:9080", "-127.0.0.1:9080"], "registered once: the second stream came in time");
}

#[tokio::test]
async fn an_in_memory_connection_is_served_by_the_same_server() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1")).await;
    let server = fixture.server.clone();
    let connector = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://embedded");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = Delta::open(channel, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    assert_eq!(client.take().await, ["a=1"]);
}

#[tokio::test]
async fn server_rule_16_a_stop_ends_streams_without_an_error_and_connections_after_them() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1")).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    client.take().await;
    let server = fixture.server.clone();
    let stopped = tokio::spawn(async move { server.shutdown().await });
    let end = tokio::time::timeout(support::PATIENCE, client.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "the stream ended well: {end:?}");
    drop(client);
    tokio::time::timeout(support::PATIENCE, stopped).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(fixture.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn server_rule_16_a_stream_ends_at_its_age_with_jitter() {
    let options = settled().max_stream_age(Duration::from_millis(200));
    let fixture = Fixture::start(Shelf::default(), options).await;
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    assert_eq!(client.take().await, ["!a"]);
    let end = tokio::time::timeout(support::PATIENCE, client.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "{end:?}");
}

#[tokio::test]
async fn streams_beyond_the_rate_wait_and_a_crowd_is_told_to_come_back_later() {
    let options = settled().stream_rate(1, 1);
    let fixture = Fixture::start(Shelf::default(), options).await;
    let channel = fixture.channel().await;
    let mut codes = Vec::new();
    for _ in 0..30 {
        codes.push(Delta::open(channel.clone(), node("mesh-core")).await.err().map(|status| status.code()));
    }
    assert_eq!(codes[0], None);
    assert_eq!(codes.last().unwrap(), &Some(tonic::Code::Unavailable));
}

#[tokio::test]
async fn server_rule_13_a_client_that_does_not_read_holds_up_nobody_and_then_gets_the_newest() {
    let mut shelf = Shelf::default();
    let names: Vec<String> = (0..200).map(|n| format!("cluster-{n}")).collect();
    let big = "x".repeat(10_000);
    names.iter().for_each(|name| shelf.put(Cluster, name, &format!("0{big}")));
    let fixture = Fixture::plain(shelf).await;
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut slow = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    slow.send(Cluster, &all, &[]).await;
    let mut quick = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    quick.send(Cluster, &["cluster-7"], &[]).await;
    quick.take().await;
    for version in 1..=5 {
        fixture.publish(|shelf| shelf.put(Cluster, "cluster-7", &format!("{version}{big}")));
        assert_eq!(quick.take().await, [format!("cluster-7={version}{big}")]);
    }
    let mut newest = std::collections::BTreeMap::new();
    while newest.len() < names.len() || !newest.get("cluster-7").is_some_and(|v: &String| v.starts_with('5')) {
        let response = slow.next().await;
        slow.answer(&response, None).await;
        newest.extend(response.resources.into_iter().map(|one| (one.name, one.version)));
    }
}

#[tokio::test]
async fn a_malformed_first_request_is_served_as_an_unknown_client() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1")).await;
    let mut client = Delta::open(fixture.channel().await, Default::default()).await.unwrap();
    client.send(Cluster, &["a", "", "\u{0}"], &[]).await;
    let response = client.next().await;
    assert!(said(&response).contains(&"a=1".to_owned()));
}

#[tokio::test]
async fn the_status_page_answers_over_http_and_only_reads() {
    let fixture = Fixture::plain(Shelf::default()).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let inspect = Arc::new(Quiet);
    let bound =
        status::listen(([127, 0, 0, 1], 0).into(), Vec::new(), fixture.server.clone(), inspect, stopped).await.unwrap();
    let _client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    for (request, status, content) in [
        ("GET /healthz", "200", "ok"),
        ("GET /ready", "200", "ready"),
        ("GET /status", "200", "\"ready\":true"),
        ("GET /metrics", "200", "pilot_proxy_convergence_time_count"),
        ("GET /debug/syncz", "200", "["),
        ("POST /status", "405", ""),
        ("GET /etc/passwd", "404", ""),
    ] {
        let answer = http(bound.0, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {status}")) && answer.contains(content), "{request}: {answer}");
    }
    stop.send_replace(true);
    bound.1.await.unwrap();
}

#[tokio::test]
async fn x23_a_page_that_lets_its_name_point_here_reads_nothing_and_no_request_changes_anything() {
    let fixture = Fixture::plain(Shelf::default().with(Cluster, "a", "1")).await;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let names = vec!["control.example".to_owned()];
    let bound = status::listen(([127, 0, 0, 1], 0).into(), names, fixture.server.clone(), Arc::new(Quiet), stopped);
    let (address, _task) = bound.await.unwrap();
    let mut client = Delta::open(fixture.channel().await, node("mesh-core")).await.unwrap();
    client.send(Cluster, &["a"], &[]).await;
    client.take().await;
    let paths = ["/status", "/metrics", "/calls", "/debug/syncz", "/healthz", "/ready", "/anything"];
    let before = fixture.report().clients.len();
    for path in paths {
        for host in ["evil.example", "evil.example:15014", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            let answer =
                asked(address, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 421"), "{path} {host:?}: {answer}");
            assert!(!answer.contains("pilot_xds") && !answer.contains("\"ready\""), "{answer}");
        }
        for twisted in ["host: localhost\r\nhost: evil.example", "x: y"] {
            let answer =
                asked(address, &format!("GET {path} HTTP/1.1\r\n{twisted}\r\nconnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{path} {twisted:?}: {answer}");
        }
        let absolute =
            format!("GET http://evil.example{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = asked(address, &absolute).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{path}: {answer}");
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = http(address, &format!("{method} {path}")).await;
            assert!(
                answer.starts_with("HTTP/1.0 405") || answer.starts_with("HTTP/1.0 404"),
                "{method} {path}: {answer}"
            );
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:15014", "control.example", "control.example:15014"] {
        let answer =
            asked(address, &format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert_eq!(fixture.report().clients.len(), before);
    fixture.publish(|shelf| shelf.put(Cluster, "a", "2"));
    assert_eq!(client.take().await, ["a=2"], "the client's stream is as it was");
}

#[tokio::test]
async fn connections_to_the_status_that_say_nothing_take_nothing_from_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let fixture = Fixture::plain(Shelf::default()).await;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let bound =
        status::listen(([127, 0, 0, 1], 0).into(), Vec::new(), fixture.server.clone(), Arc::new(Quiet), stopped);
    let (address, _task) = bound.await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..140 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: loc").await.unwrap();
        silent.push(stream);
    }
    assert!(http(address, "GET /healthz").await.starts_with("HTTP/1.0 200"));
    // Who came first of those that are too many is let go, so that no file is held for them.
    let mut first = silent.swap_remove(0);
    let ended = tokio::time::timeout(Duration::from_secs(5), first.read_to_end(&mut Vec::new())).await;
    _ = ended.expect("it ends");
}

async fn http(address: std::net::SocketAddr, request: &str) -> String {
    asked(address, &format!("{request} HTTP/1.0\r\nhost: {address}\r\n\r\n")).await
}

async fn asked(address: std::net::SocketAddr, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(support::PATIENCE, stream.read_to_string(&mut answer));
    read.await.unwrap().unwrap();
    answer
}
