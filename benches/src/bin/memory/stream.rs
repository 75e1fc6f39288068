//! One incremental ADS stream that accepts whatever comes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use mesh_benches::Result;
use mesh_control::catalog::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Far longer than any response takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream of a client of its own connection.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Stream {
    /// Connects as a workload of the namespace `shop`, with the label `app` if there is one.
    pub(crate) async fn open(server: SocketAddr, name: &str, app: Option<&str>) -> Result<Self> {
        let channel = Endpoint::new(format!("http://{server}"))?.connect().await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let (requests, stream) = mpsc::channel(16);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        let labels = app.map(|app| text("app", app)).unwrap_or_default();
        let labels = Value { kind: Some(value::Kind::StructValue(labels)) };
        let metadata = Struct { fields: [("LABELS".to_owned(), labels)].into() };
        let node = Node {
            id: format!("mesh~127.0.0.1~{name}.shop~shop.svc.cluster.local"),
            user_agent_name: "mesh-core".to_owned(),
            metadata: Some(metadata),
            ..Node::default()
        };
        Ok(Stream { requests, responses, node: Some(node) })
    }

    /// Subscribes and unsubscribes.
    pub(crate) async fn ask(&mut self, kind: Kind, subscribe: Vec<String>, unsubscribe: Vec<String>) -> Result {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        };
        Ok(self.requests.send(request).await?)
    }

    /// The next response, accepted; how many resources it had, removed ones included.
    pub(crate) async fn take(&mut self) -> Result<usize> {
        tokio::time::timeout(PATIENCE, self.wait()).await?
    }

    /// The same, however long it takes.
    pub(crate) async fn wait(&mut self) -> Result<usize> {
        let response = self.responses.message().await?;
        let response = response.context("the stream has ended")?;
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await?;
        Ok(response.resources.len() + response.removed_resources.len())
    }
}

fn text(key: &str, text: &str) -> Struct {
    let value = Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    Struct { fields: [(key.to_owned(), value)].into() }
}
