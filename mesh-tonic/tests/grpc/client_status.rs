//! The client status discovery service: what a process was told by its control plane, for whoever asks it over gRPC.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::fixed::Fixed;
use mesh_core::xds::Bootstrap;
use mesh_tonic::client_status::ClientStatusService;
use mesh_tonic::codec::Raw;
use mesh_tower::Mesh;
use prost::Message;
use tonic::transport::Server;
use tonic::{Code, Request};

use crate::support::within;

/// `envoy.service.status.v3.ClientStatusResponse`, as far as it is looked at.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    config: Vec<ClientConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ClientConfig {
    #[prost(message, repeated, tag = "3")]
    resources: Vec<Resource>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(message, optional, tag = "4")]
    content: Option<Any>,
    #[prost(int32, tag = "7")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

const ACKED: i32 = 3;
const YAML: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1}]
";

/// The resources in an answer, once all that there are have come: from a listener to endpoints.
fn told(answer: &Bytes) -> Option<Vec<Resource>> {
    let mut config = Response::decode(answer.clone()).unwrap().config;
    let resources = config.pop().unwrap().resources;
    let has_all = resources.iter().any(|resource| resource.type_url.ends_with(".ClusterLoadAssignment"));
    (has_all && resources.iter().all(|resource| resource.state == ACKED)).then_some(resources)
}

#[tokio::test]
async fn a_tool_is_told_over_grpc_what_a_process_was_told() {
    let control = Embedded::start(Config::yaml(YAML), Options::default()).await.unwrap_or_else(|why| panic!("{why}"));
    let source = control.source(Bootstrap::new("embedded"));
    let asked = Mesh::builder().source(source).lame_duck(Duration::ZERO).start().unwrap();
    within(asked.store().target("shop.example.com:80").unwrap().wait(Instant::now() + Duration::from_secs(20)))
        .await
        .unwrap();

    let server = Mesh::builder().source(Fixed::new()).lame_duck(Duration::ZERO).start().unwrap();
    let listener = server.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let mut stack = Server::builder().layer(mesh_tonic::server_layer(&server));
    let ended = tokio::spawn(mesh_tonic::serve(listener, stack.add_service(ClientStatusService::new(&asked))));
    let tool = Mesh::builder().source(Fixed::new().service("csds:80", [address])).start().unwrap();
    let mut grpc = tonic::client::Grpc::new(mesh_tonic::channel(&tool, "xds:///csds:80"));
    let method = |name: &str| {
        PathAndQuery::try_from(format!("/envoy.service.status.v3.ClientStatusDiscoveryService/{name}")).unwrap()
    };

    let resources = within(async {
        loop {
            let answer = grpc.unary(Request::new(Bytes::new()), method("FetchClientStatus"), Raw).await.unwrap();
            match told(&answer.into_inner()) {
                Some(resources) => return resources,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    let listener = resources.iter().find(|resource| resource.type_url.ends_with(".Listener")).unwrap();
    assert_eq!(listener.name, "shop.example.com:80");
    let content = listener.content.as_ref().unwrap();
    assert!(!listener.version.is_empty() && content.type_url == listener.type_url && !content.value.is_empty());

    // As often as it is asked on one stream, which does not hold up the end of the process.
    let questions = tokio_stream::iter([Bytes::new(), Bytes::new()]);
    let questions = tokio_stream::StreamExt::chain(questions, tokio_stream::pending());
    let stream = grpc.streaming(Request::new(questions), method("StreamClientStatus"), Raw).await.unwrap();
    let mut answers = stream.into_inner();
    for _ in 0..2 {
        assert_eq!(told(&within(answers.message()).await.unwrap().unwrap()), Some(resources.clone()));
    }
    // One process knows of no others.
    let matching = Bytes::from_static(&[0x0a, 0]);
    let refused = grpc.unary(Request::new(matching), method("FetchClientStatus"), Raw).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    asked.drain().begin().await;
    assert_eq!(within(answers.message()).await.unwrap(), None);
    server.drain().begin().await;
    within(ended).await.unwrap().unwrap();
}
