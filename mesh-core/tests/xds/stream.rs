//! Whole streams against a management server, good and bad. Time is virtual: a test of minutes takes milliseconds.
#![cfg(feature = "testing")]

use std::time::Duration;

use crate::support::{Client, bootstrap};
use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use mesh_core::resources::ResourceType::{Cluster, Endpoints, Listener};
use mesh_core::resources::{Progress, ResourceKey, Update};
use mesh_core::testing::resources::{api_listener, eds_cluster, endpoints};
use mesh_core::testing::{Asked, Flaw, ManagementServer, Mode};
use mesh_core::xds::bootstrap::Server;
use mesh_core::xds::client_status::ResourceState;
use mesh_core::xds::{Bootstrap, Consumer, XdsSource};
use tokio::time::Instant;

/// Both variants of the protocol.
const VARIANTS: [&[&str]; 2] = [&[], &["delta"]];

fn cluster(name: &str, service: &str) -> PbCluster {
    let mut cluster = eds_cluster(name);
    cluster.eds_cluster_config.as_mut().unwrap().service_name = service.into();
    cluster
}

#[tokio::test(start_paused = true)]
async fn client_rule_01_everything_goes_over_one_stream_whose_first_request_alone_has_the_node() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        server.put("c", &eds_cluster("c"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        client.learns(1).await;
        client.want(&[(Cluster, "c"), (Endpoints, "e")]);
        assert_eq!(client.learns(2).await, ["put l", "put c"]);
        server.put("e", &endpoints("e", &[("10.0.0.1", 1)]));
        client.learns(3).await;
        assert_eq!((server.connections(), server.streams()), (1, 1));
        let nodes: Vec<Option<String>> = server
            .asked()
            .into_iter()
            .map(|asked| match asked {
                Asked::Sotw(_, request) => request.node.map(|node| node.id),
                Asked::Delta(_, request) => request.node.map(|node| node.id),
            })
            .collect();
        assert_eq!(nodes[0].as_deref(), Some("node-1"));
        assert!(nodes[1..].iter().all(Option::is_none), "{nodes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_09_a_server_that_closes_every_stream_is_tried_less_and_less() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.set_mode(Mode::CloseStreams);
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        assert_eq!(client.learns(1).await, ["absent l"]);
        tokio::time::sleep(Duration::from_secs(120)).await;
        let streams = server.streams();
        assert!((7..=13).contains(&streams), "{streams} streams in two minutes");
        server.set_mode(Mode::Serve);
        assert_eq!(client.learns(2).await, ["absent l", "put l"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_down_for_long_has_its_clients_back_within_five_seconds() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        client.learns(1).await;
        for down in [3, 77, 600] {
            server.set_mode(Mode::Refuse);
            server.cut();
            tokio::time::sleep(Duration::from_secs(down)).await;
            server.set_mode(Mode::Serve);
            server.put("l", &api_listener("l", &format!("r{down}")));
            let (back, before) = (Instant::now(), client.told().len());
            client.learns(before + 1).await;
            assert!(back.elapsed() < Duration::from_secs(5), "{:?} after {down} s", back.elapsed());
        }
        assert!(client.told().iter().all(|told| told == "put l"), "{:?}", client.told());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_stopped_for_a_minute_is_noticed_and_blanks_nothing() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        client.learns(1).await;
        server.freeze(true);
        tokio::time::sleep(Duration::from_secs(16)).await;
        assert!(!client.status.get().servers[0].connected, "a hung server is noticed within 15 s");
        tokio::time::sleep(Duration::from_secs(44)).await;
        server.put("l", &api_listener("l", "r2"));
        server.freeze(false);
        let back = Instant::now();
        assert_eq!(client.learns(2).await, ["put l", "put l"]);
        assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn hazard_x4_a_server_that_accepts_and_says_nothing_is_tried_again() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.set_mode(Mode::Mute);
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        let start = Instant::now();
        client.learns(1).await;
        // The first attempt is given up after 5 s, and 15 s later the application is told.
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(client.reason("l").contains("no HTTP/2 conversation within 5 s"), "{}", client.reason("l"));
        server.set_mode(Mode::Serve);
        assert_eq!(client.learns(2).await, ["absent l", "put l"]);
    }
}

/// A consumer that takes as long as the test wants.
struct Slow {
    wanted: Option<Progress>,
    applied: std::sync::mpsc::SyncSender<Update>,
    go_on: std::sync::mpsc::Receiver<()>,
}

impl Consumer for Slow {
    fn apply(&mut self, update: Update) -> Progress {
        self.applied.send(update).unwrap();
        // When the test is over there is nobody to wait for.
        let _ = self.go_on.recv();
        Progress::default()
    }

    async fn changed(&mut self) -> Option<Progress> {
        match self.wanted.take() {
            Some(wanted) => Some(wanted),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn client_rule_11_a_response_is_applied_before_it_is_acknowledged_and_before_the_next_one_is_read() {
    let server = ManagementServer::start();
    server.put("c", &cluster("c", "1"));
    let (applied, updates) = std::sync::mpsc::sync_channel(16);
    let (release, go_on) = std::sync::mpsc::sync_channel(16);
    let mut wanted = Progress::default();
    wanted.subscribe = vec![ResourceKey::new(Cluster, "c")];
    let source = XdsSource::new(bootstrap(&["delta"])).connector(server.connector());
    // On a thread of its own: it is going to be blocked.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let slow = Slow { wanted: Some(wanted), applied, go_on };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), source.run_for(slow)).await })
    });
    let answers = |asked: &[Asked]| {
        let is_answer = |asked: &&Asked| match asked {
            Asked::Delta(_, request) => !request.response_nonce.is_empty(),
            Asked::Sotw(..) => false,
        };
        asked.iter().filter(is_answer).count()
    };
    let updates = std::sync::Arc::new(std::sync::Mutex::new(updates));
    for turn in 1..5 {
        let updates = std::sync::Arc::clone(&updates);
        let update = tokio::task::spawn_blocking(move || updates.lock().unwrap().recv_timeout(Duration::from_secs(10)));
        assert_eq!(update.await.unwrap().unwrap().changes.len(), 1);
        // The next one is on its way while this one is being applied.
        server.put("c", &cluster("c", &(turn + 1).to_string()));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(answers(&server.asked()), turn - 1);
        release.send(()).unwrap();
        server.wait_for("an answer", |asked| answers(asked) == turn).await;
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_13_a_server_that_never_answers_has_none_after_15_s() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.set_mode(Mode::Silent);
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l"), (Cluster, "c")]);
        let start = Instant::now();
        client.learns(2).await;
        assert_eq!(start.elapsed().as_secs(), 15);
        for part in ["cluster c", "15 s", "mesh:1", "node-1"] {
            assert!(client.reason("c").contains(part), "{}", client.reason("c"));
        }
        assert_eq!(server.streams(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_14_a_slow_server_is_believed_when_it_answers_at_last() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.set_delay(Duration::from_secs(40));
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        assert_eq!(client.learns(2).await, ["absent l", "put l"]);
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_32_a_stream_that_ends_after_a_response_is_replaced_without_a_word() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        client.learns(1).await;
        for round in 0..5 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            server.close_streams();
            server.put("l", &api_listener("l", &format!("r{round}")));
            let (ended, before) = (Instant::now(), client.told().len());
            client.learns(before + 1).await;
            assert!(ended.elapsed() < Duration::from_millis(300), "{:?}", ended.elapsed());
        }
        assert!(client.told().iter().all(|told| told == "put l"));
        assert_eq!(client.status.get().servers[0].failures, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_33_an_incremental_client_that_comes_back_is_sent_only_what_changed() {
    let server = ManagementServer::start();
    server.put("a", &cluster("a", "1"));
    server.put("b", &cluster("b", "1"));
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Cluster, "a"), (Cluster, "b")]);
    client.learns(2).await;
    server.cut();
    server.put("b", &cluster("b", "2"));
    assert_eq!(client.learns(3).await[2], "put b");
    // A connection that is lost after a response is no failure of the server (gRFC A57).
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.status.get().servers[0].failures, 0);
    let first = server.asked().into_iter().find(|asked| asked.stream() == 2).unwrap();
    let Asked::Delta(_, first) = first else { panic!() };
    assert_eq!(
        first.initial_resource_versions,
        [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into()
    );
}

#[tokio::test(start_paused = true)]
async fn client_rule_23_a_server_that_reports_what_it_lacks_is_believed_at_once() {
    let server = ManagementServer::start();
    server.report_missing();
    let mut client = Client::of(&server, &[]);
    client.want(&[(Endpoints, "e")]);
    let start = Instant::now();
    client.learns(1).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(client.reason("e").contains("code 5): there is none"), "{}", client.reason("e"));
}

#[tokio::test(start_paused = true)]
async fn hazard_x8_a_bad_response_leaves_everything_as_it_is_and_the_next_good_one_is_taken() {
    for features in VARIANTS {
        for flaw in [Flaw::DuplicateNames, Flaw::WrongType, Flaw::BadBytes, Flaw::UnknownType, Flaw::Lost] {
            let server = ManagementServer::start();
            server.put("c", &cluster("c", "1"));
            let mut client = Client::of(&server, features);
            client.want(&[(Cluster, "c")]);
            client.learns(1).await;
            let is_answered = !matches!(flaw, Flaw::UnknownType | Flaw::Lost);
            server.forget_asked();
            server.spoil(flaw.clone());
            server.put("c", &cluster("c", "2"));
            if is_answered {
                server.wait_for("a NACK", |asked| asked.iter().any(|asked| asked.rejection().is_some())).await;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(client.told(), ["put c"], "{flaw:?} {features:?}");
            assert_eq!(server.asked().len(), usize::from(is_answered), "{flaw:?} {features:?}");
            server.put("c", &cluster("c", "3"));
            client.learns(2).await;
            assert_eq!(client.told(), ["put c", "put c"], "{flaw:?} {features:?}");
            assert_eq!(server.streams(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_incomplete_late_or_carry_an_old_nonce_do_no_harm() {
    for features in VARIANTS {
        for flaw in [Flaw::Partial, Flaw::StaleNonce, Flaw::AfterTheNext] {
            let server = ManagementServer::start();
            let endpoints = |port| endpoints("e", &[("10.0.0.1", port)]);
            server.put("e", &endpoints(1));
            let mut client = Client::of(&server, features);
            client.want(&[(Endpoints, "e")]);
            client.learns(1).await;
            server.spoil(flaw.clone());
            server.put("e", &endpoints(2));
            tokio::time::sleep(Duration::from_secs(1)).await;
            server.put("e", &endpoints(3));
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(client.told().iter().all(|told| told == "put e"), "{flaw:?} {:?}", client.told());
            // Whatever happened to one response, the next change arrives.
            let before = client.told().len();
            server.put("e", &endpoints(4));
            client.learns(before + 1).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hazard_x5_a_response_above_64_mib_is_refused_and_what_worked_stays() {
    let server = ManagementServer::start();
    server.put("c", &cluster("c", "1"));
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Cluster, "c")]);
    client.learns(1).await;
    server.spoil(Flaw::Padded(64 << 20));
    server.put("c", &cluster("c", "2"));
    // The stream is given up; the next one brings the change without the padding.
    assert_eq!(client.learns(2).await, ["put c", "put c"]);
    assert_eq!(server.streams(), 2);
    assert_eq!(client.status.get().servers[0].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_of_five_mib_is_taken() {
    let server = ManagementServer::start();
    server.put("c", &cluster("c", "1"));
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Cluster, "c")]);
    client.learns(1).await;
    server.spoil(Flaw::Padded(5 << 20));
    server.put("c", &cluster("c", "2"));
    assert_eq!(client.learns(2).await, ["put c", "put c"]);
    assert_eq!(server.streams(), 1);
}

#[tokio::test(start_paused = true)]
async fn client_rule_31_a_client_falls_back_and_returns() {
    let (first, second) = (ManagementServer::start(), ManagementServer::start());
    first.set_mode(Mode::Refuse);
    first.put("l", &api_listener("l", "from-first"));
    second.put("l", &api_listener("l", "from-second"));
    let bootstrap = bootstrap(&["delta"]).fallback(Server::new("backup:1"));
    let connector = ManagementServer::connector_to(&[("mesh:1", &first), ("backup:1", &second)]);
    let mut client = Client::run(XdsSource::new(bootstrap).connector(connector));
    client.want(&[(Listener, "l")]);
    assert_eq!(client.learns(1).await, ["put l"]);
    assert_eq!((first.streams(), second.open_streams()), (0, 1));
    first.set_mode(Mode::Serve);
    assert_eq!(client.learns(2).await, ["put l", "put l"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((first.open_streams(), second.open_streams()), (1, 0));
    let uris: Vec<_> =
        client.status.get().servers.iter().map(|server| (server.uri.clone(), server.connected)).collect();
    assert_eq!(uris, [("mesh:1".to_owned(), true), ("backup:1".to_owned(), false)]);
}

#[tokio::test(start_paused = true)]
async fn client_rule_30_authorities_have_their_own_servers_and_equal_ones_share_a_stream() {
    let (own, east) = (ManagementServer::start(), ManagementServer::start());
    let name = |authority: &str| format!("xdstp://{authority}/envoy.config.listener.v3.Listener/l");
    let names: Vec<String> = ["east", "east-too", "own"].iter().map(|authority| name(authority)).collect();
    for name in &names {
        own.put(name, &api_listener(name, "r"));
        east.put(name, &api_listener(name, "r"));
    }
    own.put("l", &api_listener("l", "r"));
    let bootstrap = bootstrap(&["delta"])
        .authority("east", vec![Server::new("east:1")])
        .authority("east-too", vec![Server::new("east:1")])
        .authority("own", vec![]);
    let connector = ManagementServer::connector_to(&[("mesh:1", &own), ("east:1", &east)]);
    let mut client = Client::run(XdsSource::new(bootstrap).connector(connector));
    let strange = name("strange");
    let mut wanted: Vec<_> = names.iter().map(|name| (Listener, name.as_str())).collect();
    wanted.extend([(Listener, "l"), (Listener, strange.as_str())]);
    client.want(&wanted);
    client.learns(5).await;
    assert!(client.reason(&strange).contains("\"strange\" is not in the xDS bootstrap"));
    assert_eq!(client.known().values().filter(|known| known.is_some()).count(), 4);
    assert_eq!((own.streams(), east.streams()), (1, 1));
    let asked_of_east: Vec<_> = east.asked();
    assert!(asked_of_east.iter().all(|asked| matches!(asked, Asked::Sotw(..))));
    assert_eq!(own.asked().iter().filter(|asked| matches!(asked, Asked::Sotw(..))).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_cannot_be_asked_for_is_absent_at_once() {
    let server = ManagementServer::start();
    let mut client = Client::of(&server, &["delta"]);
    client.want(&[(Cluster, "*"), (Cluster, "")]);
    let mut learned = client.learns(2).await;
    learned.sort();
    assert_eq!(learned, ["absent ", "absent *"]);
    assert_eq!(server.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_unsubscribes_first() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l")]);
        client.learns(1).await;
        server.forget_asked();
        client.stop().await;
        let asked = server.asked();
        match asked.last().unwrap() {
            Asked::Sotw(_, request) => assert!(request.resource_names.is_empty()),
            Asked::Delta(_, request) => assert_eq!(request.resource_names_unsubscribe, ["l"]),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(server.open_streams(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsubscription_is_sent_at_once() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        server.put("l", &api_listener("l", "r"));
        let mut client = Client::of(&server, features);
        client.want(&[(Listener, "l"), (Listener, "m")]);
        client.learns(1).await;
        server.forget_asked();
        let start = Instant::now();
        client.drop_interest(&[(Listener, "l")]);
        let is_unsubscription = |asked: &Asked| match asked {
            Asked::Sotw(_, request) => request.resource_names == ["m"],
            Asked::Delta(_, request) => request.resource_names_unsubscribe == ["l"],
        };
        server.wait_for("an unsubscription", |asked| asked.iter().any(is_unsubscription)).await;
        assert!(start.elapsed() < Duration::from_millis(10));
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_36_the_status_has_every_resource_as_it_was_received() {
    for features in VARIANTS {
        let server = ManagementServer::start();
        let mut good = cluster("a", "1");
        good.preconnect_policy = Some(Default::default());
        server.put("a", &good);
        server.put("b", &PbCluster { name: "b".into(), ..Default::default() });
        let mut client = Client::of(&server, features);
        client.want(&[(Cluster, "a"), (Cluster, "b"), (Endpoints, "e")]);
        client.learns(2).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = client.status.get();
        assert_eq!(status.node_id, "node-1");
        let [a, b, e] = status.resources.as_slice() else { panic!("{status:#?}") };
        assert_eq!((a.state, a.key.to_string()), (ResourceState::Acked, "cluster a".to_owned()));
        assert!(a.last_updated.is_some());
        assert_eq!(*a.raw.as_ref().unwrap().value, *prost::Message::encode_to_vec(&good));
        assert_eq!(*a.ignored, ["preconnect_policy".to_owned()]);
        assert_eq!((b.state, b.version.as_str(), b.raw.is_none()), (ResourceState::Nacked, "", true));
        let error = b.error.as_ref().unwrap();
        assert!(error.details.contains("load_assignment: missing") && error.raw.is_some());
        // The incremental server says at once that there is none; the other one keeps silent.
        let expected = if features.is_empty() { ResourceState::Requested } else { ResourceState::DoesNotExist };
        assert_eq!(e.state, expected);
        let server = &status.servers[0];
        assert!(server.connected && server.last_ack.is_some());
        assert_eq!((server.accepted, server.rejected), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn hazard_x6_ten_thousand_resources_in_one_response() {
    let server = ManagementServer::start();
    let names: Vec<String> = (0..10_000).map(|n| format!("c{n}")).collect();
    server.put_all(names.iter().map(|name| (name.clone(), eds_cluster(name))));
    let mut client = Client::of(&server, &["delta"]);
    let wanted: Vec<_> = names.iter().map(|name| (Cluster, name.as_str())).collect();
    client.want(&wanted);
    client.learns(10_000).await;
    assert!(client.known().values().all(Option::is_some));
}

#[tokio::test]
async fn over_tcp_and_on_a_thread_of_its_own() {
    let server = ManagementServer::start();
    server.put("l", &api_listener("l", "r"));
    let address = server.listen().await.unwrap();
    let bootstrap = Bootstrap::new(address.to_string()).node_id("node-1");
    let mut client = Client::run(XdsSource::new(bootstrap));
    client.want(&[(Listener, "l")]);
    assert_eq!(client.learns(1).await, ["put l"]);
    server.cut();
    server.put("l", &api_listener("l", "r2"));
    assert_eq!(client.learns(2).await, ["put l", "put l"]);
    client.stop().await;
}
