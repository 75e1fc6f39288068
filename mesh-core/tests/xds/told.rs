//! What an operator reads: once, and with the reason.
#![cfg(feature = "testing")]

#[allow(dead_code, reason = "shared with tests that need more of it")]
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::Client;
use mesh_core::error::ErrorKind;
use mesh_core::resources::ResourceType::{Cluster, Route};
use mesh_core::store::{Source, Store};
use mesh_core::testing::resources::{eds_cluster, routes_to};
use mesh_core::testing::{Asked, ManagementServer, Mode};
use mesh_core::view::Extensions;
use mesh_core::xds::{Bootstrap, XdsSource};

/// The lines of this test's thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.with_max_level(tracing::Level::INFO).finish()))
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_field_without_effect_is_said_once_for_each_resource_and_counted() {
    let (log, _default) = Log::start();
    let server = ManagementServer::start();
    let with_breakers = |name: &str, service: &str| {
        let mut cluster = eds_cluster(name);
        cluster.preconnect_policy = Some(Default::default());
        cluster.eds_cluster_config.as_mut().unwrap().service_name = service.into();
        cluster
    };
    server.put("a", &with_breakers("a", "1"));
    server.put("b", &with_breakers("b", "1"));
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Cluster, "a"), (Cluster, "b")]);
    client.learns(2).await;
    server.put("a", &with_breakers("a", "2"));
    client.learns(3).await;
    // The same field in another route of a list that moved; and one that is new.
    let mut routes = routes_to("r", "c");
    routes.virtual_hosts[0].routes[0].tracing = Some(Default::default());
    server.put("r", &routes);
    client.want(&[(Route, "r")]);
    client.learns(4).await;
    let first = routes_to("r", "d").virtual_hosts[0].routes[0].clone();
    routes.virtual_hosts[0].routes.insert(0, first);
    server.put("r", &routes);
    client.learns(5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let said = log.lines("without effect here");
    assert_eq!(said.len(), 3, "{said:#?}");
    assert_eq!(log.lines("WARN").len(), 3);
    for part in ["cluster a: set", "cluster b: set", "route configuration r: set"] {
        assert!(said.iter().any(|line| line.contains(part) && line.contains("node-1")), "{part}: {said:#?}");
    }
    assert_eq!(client.status.get().ignored_fields, 3);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_what_is_said_of_fields_without_effect_is_said_once() {
    let (log, _default) = Log::start();
    let server = ManagementServer::start();
    let names: Vec<String> = (0..2_501).map(|number| number.to_string()).collect();
    server.put_all(names.iter().map(|name| {
        let mut cluster = eds_cluster(name);
        cluster.lrs_report_endpoint_metrics = vec!["cpu_utilization".to_owned()];
        cluster.track_cluster_stats = Some(Default::default());
        cluster.close_connections_on_host_health_failure = true;
        cluster.connection_pool_per_downstream_connection = true;
        (name.clone(), cluster)
    }));
    let mut client = Client::of(&server, &["delta"]);
    client.want(&names.iter().map(|name| (Cluster, name.as_str())).collect::<Vec<_>>());
    client.learns(names.len()).await;
    assert_eq!(log.lines("further fields without effect").len(), 1);
    assert_eq!(log.lines("without effect here").len(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn fields_without_effect_that_have_no_name_any_more_are_counted_in_the_log() {
    let (log, _default) = Log::start();
    let server = ManagementServer::start();
    let mut routes = routes_to("r", "c");
    routes.virtual_hosts[0].routes[0].tracing = Some(Default::default());
    let route = routes.virtual_hosts[0].routes[0].clone();
    routes.virtual_hosts[0].routes = vec![route; 100];
    server.put("r", &routes);
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Route, "r")]);
    client.learns(1).await;
    let said = log.lines("WARN");
    assert!(said.len() == 2 && said[1].contains("route configuration r: set and without effect here: and 36 more"));
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_goes_away_is_one_warning_and_one_line_when_it_is_back() {
    for features in [&["delta"] as &[&str], &[]] {
        let (log, _default) = Log::start();
        let server = ManagementServer::start();
        server.put("c", &eds_cluster("c"));
        let mut client = Client::of(&server, features);
        client.want(&[(Cluster, "c")]);
        client.learns(1).await;
        assert!(log.lines("WARN").is_empty());
        server.set_mode(Mode::Refuse);
        server.cut();
        tokio::time::sleep(Duration::from_secs(120)).await;
        let said = log.lines("WARN");
        assert_eq!(said.len(), 1, "{said:#?}");
        for part in ["mesh:1", "node-1", "no connection to the management server", "stays in use"] {
            assert!(said[0].contains(part), "{part}: {said:#?}");
        }
        server.set_mode(Mode::Serve);
        let mut changed = eds_cluster("c");
        changed.eds_cluster_config.as_mut().unwrap().service_name = "other".into();
        server.put("c", &changed);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((log.lines("WARN").len(), log.lines("answers again").len()), (1, 1));
    }
}

#[tokio::test]
async fn who_waits_in_vain_learns_which_server_was_asked_and_why_it_did_not_answer() {
    // A port that was free a moment ago, so that nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = Arc::new(XdsSource::new(Bootstrap::new(nobody.to_string()).node_id("node-1")));
    let (store, sink) = Store::new(source.clone(), Extensions::default(), Duration::from_secs(60));
    tokio::spawn(source.clone().run(sink));
    let entry = store.target("reviews:9080").unwrap();
    let failed = async {
        while source.status().get().servers.iter().all(|server| server.error.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap();
    let error = entry.wait(std::time::Instant::now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTarget);
    let start = format!(
        "listener reviews:9080: no configuration yet (no answer from the control plane {nobody}: cannot connect: "
    );
    assert!(error.to_string().starts_with(&start) && error.to_string().contains("refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn client_rule_33_a_reconnect_with_more_names_than_one_request_may_have_is_divided() {
    let server = ManagementServer::start();
    let names: Vec<String> = (0..10_000).map(|number| format!("{number:0>300}")).collect();
    server.put_all(names.iter().map(|name| (name.clone(), eds_cluster(name))));
    let mut client = Client::of(&server, &["delta"]);
    let wanted: Vec<_> = names.iter().map(|name| (Cluster, name.as_str())).collect();
    client.want(&wanted);
    client.learns(names.len()).await;
    server.forget_asked();
    server.cut();
    server.put(&names[7], &{
        let mut changed = eds_cluster(&names[7]);
        changed.eds_cluster_config.as_mut().unwrap().service_name = "other".into();
        changed
    });
    client.learns(names.len() + 1).await;
    let subscribed = |asked: &[Asked]| -> usize {
        let names = asked.iter().map(|asked| match asked {
            Asked::Delta(_, request) => request.resource_names_subscribe.len(),
            Asked::Sotw(..) => 0,
        });
        names.sum()
    };
    server.wait_for("every name", |asked| subscribed(asked) == names.len()).await;
    let (mut subscribed, mut brought, mut largest) = (0, 0, 0);
    for asked in server.asked() {
        let Asked::Delta(_, request) = asked else { panic!() };
        subscribed += request.resource_names_subscribe.len();
        brought += request.initial_resource_versions.len();
        largest = largest.max(prost::Message::encoded_len(&request));
    }
    assert_eq!((subscribed, brought), (names.len(), names.len()));
    assert!(largest <= 3 << 20, "{largest}");
    assert_eq!(client.status.get().servers[0].failures, 0);
}
