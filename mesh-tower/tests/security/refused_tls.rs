//! A version of a listener or a cluster that is refused, or accepted and not complete yet, and asks for TLS: its predecessor
//! does not go on in plaintext; nor by its policies, where the later one has others. With a management server that sends what it likes, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::mtls_support::{SERVER, id, permissive, with_tls};
use crate::server_support::{listener, serve_all, within};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{DownstreamTlsContext, UpstreamTlsContext};
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::fixed::route_to;
use mesh_core::model::{
    ApiListener, Cluster as ClusterModel, ClusterKind, ClusterTls, Endpoints, FilterChain, FilterConfig,
    HeadersWithUnderscores, HttpManager, Listener as ListenerModel, NamedFilter, Rbac, RbacAction, RbacRules,
    RouteConfiguration, RouteSource, ServerTls, UpstreamTls, VirtualHost,
};
use mesh_core::path::PathNormalization;
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType};
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{
    eds_cluster, endpoints, inline_listener, pack, route_to_application, routes, routes_to, server_listener,
    virtual_host,
};
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::health::Health;
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_layer::Layer;

fn mesh(server: &ManagementServer) -> Mesh {
    let source = XdsSource::new(Bootstrap::new("mesh:1").node_id("node-1")).connector(server.connector());
    Mesh::builder().source(source).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

fn socket(config: Any) -> Option<TransportSocket> {
    Some(TransportSocket { name: "tls".to_owned(), config_type: Some(ConfigType::TypedConfig(config)) })
}

fn on() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

/// Waits until the client has refused one more version.
async fn refusals(server: &ManagementServer, count: usize) {
    let refused = |asked: &[mesh_core::testing::Asked]| asked.iter().filter(|one| one.rejection().is_some()).count();
    within(server.wait_for("a rejection", |asked| refused(asked) == count)).await;
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";

/// Whether a request over this connection is answered.
async fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    // What is closed with a request unread may be reset.
    _ = stream.write_all(GET).await;
    while !answer.ends_with(b"hello") {
        match within(stream.read_buf(&mut answer)).await {
            Ok(1..) => {}
            _ => return false,
        }
    }
    true
}

#[tokio::test]
async fn a_server_stops_serving_in_plaintext_when_a_listener_is_refused_that_asks_for_tls() {
    let control = ManagementServer::start();
    let mesh = mesh(&control);
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let (address, name) = (bound.local_addr(), bound.name().as_str().to_owned());
    let all = || routes("r", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
    let plaintext = || server_listener(&name, address, all());
    let with = |change: &dyn Fn(&mut Listener)| {
        let mut listener = plaintext();
        change(&mut listener);
        control.put(&name, &listener);
    };
    with(&|_| {});
    within(bound.serving()).await.unwrap();
    let app = tower::service_fn(|_| std::future::ready(Ok::<_, MeshError>(http::Response::new("hello".to_owned()))));
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    let connect = || async { TcpStream::connect(address).await.unwrap() };
    let mut kept = connect().await;
    assert!(is_answered(&mut kept).await);

    // What asks for no TLS is refused, and no more.
    with(&|listener| listener.use_original_dst = on());
    refusals(&control, 1).await;
    assert!(is_answered(&mut kept).await);

    let secured = |context: &DownstreamTlsContext| {
        let socket = socket(pack(context));
        move |listener: &mut Listener| {
            listener.default_filter_chain.as_mut().unwrap().transport_socket.clone_from(&socket);
        }
    };
    let unusable = secured(&DownstreamTlsContext { require_sni: on(), ..Default::default() });
    let beside_another_fault =
        secured(&DownstreamTlsContext { require_client_certificate: on(), ..Default::default() });
    let refused: [&dyn Fn(&mut Listener); 2] = [&unusable, &|listener| {
        beside_another_fault(listener);
        listener.use_original_dst = on();
    }];
    for (before, refused) in (1..).step_by(2).zip(refused) {
        with(refused);
        refusals(&control, before + 1).await;
        // The connection that was there is closed, and no other one is let in.
        assert_eq!(within(kept.read(&mut [0; 1])).await.unwrap_or(0), 0);
        assert!(!is_answered(&mut connect().await).await);
        // Nor by a version after it of which nobody knows what it says of TLS.
        with(&|listener| listener.use_original_dst = on());
        refusals(&control, before + 2).await;
        assert!(!is_answered(&mut connect().await).await);
        // Until one is good.
        with(&|_| {});
        kept = within(async {
            loop {
                let mut stream = connect().await;
                if is_answered(&mut stream).await {
                    break stream;
                }
            }
        })
        .await;
    }
}

/// What a configuration is made of, which is there or not.
fn put(kind: ResourceType, name: &str, resource: Resource) -> Change {
    Change::Put(ResourceKey::new(kind, name), resource)
}

#[tokio::test]
async fn a_server_stops_serving_in_plaintext_when_a_listener_asks_for_tls_whose_routes_are_not_there_yet() {
    for first in [with_tls, |address, _| permissive(address)] {
        let (mut player, mesh) = crate::server_support::mesh();
        let bound = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = bound.local_addr();
        player.send(first(address, ServerTls::None));
        within(bound.serving()).await.unwrap();
        let app =
            tower::service_fn(|_| std::future::ready(Ok::<_, MeshError>(http::Response::new("hello".to_owned()))));
        tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
        let connect = || async { TcpStream::connect(address).await.unwrap() };
        let mut kept = connect().await;
        assert!(is_answered(&mut kept).await);

        let waiting = |routes: &str, tls: ServerTls| {
            let mut only = FilterChain::new("chain", HttpManager::new(RouteSource::Named(routes.into())));
            only.tls = tls;
            listener(address, vec![only])
        };
        // What asks for no TLS waits for its routes, and what there is serves on.
        player.send(waiting("elsewhere", ServerTls::None));
        within(player.asks_for(ResourceKey::new(ResourceType::Route, "elsewhere"))).await;
        assert!(is_answered(&mut kept).await);
        player.send(waiting("nowhere", ServerTls::Mutual));
        within(player.asks_for(ResourceKey::new(ResourceType::Route, "nowhere"))).await;
        assert_eq!(within(kept.read(&mut [0; 1])).await.unwrap_or(0), 0, "closed");
        assert!(!is_answered(&mut connect().await).await);
    }
}

/// RBAC that lets nobody in.
fn nobody() -> NamedFilter {
    let mut rbac = Rbac::default();
    rbac.rules = Some(RbacRules::new(RbacAction::Allow));
    NamedFilter::new("rbac", FilterConfig::Rbac(Arc::new(rbac)))
}

#[tokio::test]
async fn a_server_lets_nobody_in_by_old_policies_when_a_listener_has_others_whose_routes_are_not_there_yet() {
    let status = |text: &[u8]| String::from_utf8_lossy(text).split(' ').nth(1).map(str::to_owned);
    let named = |routes: &str, filters: &[NamedFilter]| {
        let mut http = HttpManager::new(RouteSource::Named(routes.into()));
        http.filters = filters.to_vec();
        http
    };
    let mut canonical = named("nowhere", &[]);
    canonical.paths = PathNormalization::BASE;
    let mut no_underscores = named("nowhere", &[]);
    no_underscores.underscores = HeadersWithUnderscores::Reject;
    let from_here = |http: HttpManager| {
        let mut chain = FilterChain::new("here", http);
        chain.matches.source_is_local = Some(true);
        chain
    };
    let all = |http: HttpManager| FilterChain::new("chain", http);
    let cases = [
        ("a policy that is new", vec![all(named("nowhere", &[nobody()]))]),
        ("paths that are made canonical", vec![all(canonical)]),
        ("names of headers that are refused", vec![all(no_underscores)]),
        ("a chain with a policy", vec![from_here(named("nowhere", &[nobody()])), all(named("nowhere", &[]))]),
    ];
    for (what, chains) in cases {
        let (mut player, mesh) = crate::server_support::mesh();
        let bound = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = bound.local_addr();
        player.send(serve_all(address));
        within(bound.serving()).await.unwrap();
        let mut health = mesh.health();
        let app =
            tower::service_fn(|_| std::future::ready(Ok::<_, MeshError>(http::Response::new("hello".to_owned()))));
        tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
        let mut kept = TcpStream::connect(address).await.unwrap();
        assert!(is_answered(&mut kept).await);

        // One with the same filters waits for its routes, and what there is serves on.
        player.send(listener(address, vec![from_here(named("elsewhere", &[])), all(named("elsewhere", &[]))]));
        within(player.asks_for(ResourceKey::new(ResourceType::Route, "elsewhere"))).await;
        assert!(is_answered(&mut kept).await, "{what}");

        player.send(listener(address, chains));
        within(player.asks_for(ResourceKey::new(ResourceType::Route, "nowhere"))).await;
        while !matches!(health.now(), Health::NotServing(_)) {
            within(health.changed()).await;
        }
        kept.write_all(GET).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"not known yet") {
            let count = within(kept.read_buf(&mut answer)).await.unwrap();
            assert!(count > 0, "{what}: {}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(status(&answer).as_deref(), Some("503"), "{what}");
        assert!(!is_answered(&mut TcpStream::connect(address).await.unwrap()).await, "{what}");

        // With the version before, it serves again.
        player.send(serve_all(address));
        within(mesh.serving()).await.unwrap();
        assert!(is_answered(&mut kept).await, "{what}");
    }
}

#[tokio::test]
async fn a_client_sends_no_plaintext_when_a_cluster_asks_for_tls_whose_endpoints_are_not_there_yet() {
    const SERVICE: &str = "app:80";
    let upstream = || Arc::new(UpstreamTls::with([id(SERVER)]));
    let address = plain_server().await;
    let secured = [ClusterTls::Mutual(upstream()), ClusterTls::MutualWhereMarked(upstream())];
    // The cluster itself asks for it, or one that takes its place.
    for (tls, is_itself) in secured.iter().flat_map(|tls| [(tls, true), (tls, false)]) {
        let (mut player, mesh) = crate::server_support::mesh();
        let config = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route_to(SERVICE)])]);
        let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
        let listener = ListenerModel::Api(ApiListener::new(SERVICE, http));
        player.send(put(ResourceType::Listener, SERVICE, Resource::Listener(Arc::new(listener))));
        let endpoints = Resource::Endpoints(Arc::new(Endpoints::fixed([address])));
        player.send(put(ResourceType::Endpoints, "known", endpoints));
        let named = |name: &str, kind: ClusterKind, tls: ClusterTls| {
            let mut cluster = ClusterModel::new(name, kind);
            cluster.tls = tls;
            put(ResourceType::Cluster, name, Resource::Cluster(Arc::new(cluster)))
        };
        let eds = |service: &str, tls| named(SERVICE, ClusterKind::Eds { service_name: service.into() }, tls);
        let client = mesh.client();
        let ask = || within(client.get("http://app/"));
        player.send(eds("known", ClusterTls::None));
        assert!(ask().await.is_ok());
        // What asks for no TLS waits for its endpoints, and those that there are serve on.
        player.send(eds("elsewhere", ClusterTls::None));
        within(player.asks_for(ResourceKey::new(ResourceType::Endpoints, "elsewhere"))).await;
        assert!(ask().await.is_ok());
        if is_itself {
            player.send(eds("nowhere", tls.clone()));
        } else {
            player.send(named("other", ClusterKind::Eds { service_name: "nowhere".into() }, tls.clone()));
            player.send(named(SERVICE, ClusterKind::Aggregate(vec!["other".into()]), ClusterTls::None));
        }
        within(player.asks_for(ResourceKey::new(ResourceType::Endpoints, "nowhere"))).await;
        let error = ask().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Security);
        let reason = "cluster app:80: TLS is asked for, and its endpoints are not known yet";
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// Answers every request, in plaintext.
async fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_client_sends_no_plaintext_when_a_cluster_is_refused_that_asks_for_tls() {
    let control = ManagementServer::start();
    let mesh = mesh(&control);
    let address = plain_server().await;
    let cluster = |change: &dyn Fn(&mut Cluster)| {
        let mut cluster = eds_cluster("c");
        change(&mut cluster);
        control.put("c", &cluster);
    };
    control.put("app:80", &inline_listener("app:80", routes_to("r", "c")));
    control.put("c", &endpoints("c", &[("127.0.0.1", address.port())]));
    cluster(&|_| {});
    let client = mesh.client();
    let ask = || within(client.get("http://app/"));
    assert!(ask().await.is_ok());
    cluster(&|cluster| cluster.transport_socket_matcher = Some(Default::default()));
    refusals(&control, 1).await;
    assert!(ask().await.is_ok());

    let tls = || socket(pack(&UpstreamTlsContext::default()));
    let refused: [&dyn Fn(&mut Cluster); 2] = [
        &|cluster| {
            let one = TransportSocketMatch { transport_socket: tls(), ..Default::default() };
            cluster.transport_socket_matches = vec![one];
        },
        &|cluster| {
            cluster.transport_socket = tls();
            cluster.transport_socket_matcher = Some(Default::default());
        },
    ];
    for (before, refused) in (1..).zip(refused) {
        cluster(refused);
        refusals(&control, before + 1).await;
        let error = ask().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Security);
        assert!(error.to_string().contains("cluster c: rejected: "), "{error}");
        cluster(&|_| {});
        let recovers = async {
            while ask().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        within(recovers).await;
    }
}
