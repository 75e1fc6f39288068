//! What the socket tests of the ADS server share: a catalog made by hand, a registry that remembers, and
//! clients over the stubs of envoy-types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use mesh_control::catalog::{Catalog, Client, Encoded, Kind};
use mesh_control::serve::{Feed, Options, Server, Workload, WorkloadKey, Workloads, status};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Generous: it only bounds a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
pub(crate) struct Shelf(pub(crate) BTreeMap<(Kind, Arc<str>), Encoded>);

impl Shelf {
    pub(crate) fn put(&mut self, kind: Kind, name: &str, version: &str) {
        let name: Arc<str> = name.into();
        let resource = Encoded::new(name.clone(), version, Bytes::copy_from_slice(version.as_bytes()));
        self.0.insert((kind, name), resource);
    }

    pub(crate) fn with(mut self, kind: Kind, name: &str, version: &str) -> Self {
        self.put(kind, name, version);
        self
    }
}

impl Catalog for Shelf {
    fn resource(&self, _client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        self.0.get(&(kind, name.into())).cloned()
    }

    fn everything(&self, _client: &Client, kind: Kind) -> Vec<Arc<str>> {
        self.0.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }
}

/// A registry that remembers what it was told, and publishes the listener of whoever registers.
pub(crate) struct Registry {
    pub(crate) told: Mutex<Vec<String>>,
    shelf: watch::Sender<Arc<Shelf>>,
}

impl Workloads for Registry {
    fn register(&self, workload: Workload) {
        self.told.lock().unwrap().push(format!("+{}", workload.address));
        self.shelf.send_modify(|shelf| {
            let name = format!("xds.istio.io/grpc/lds/inbound/{}", workload.address);
            let mut next = Shelf::clone(shelf);
            next.put(Kind::Listener, &name, "registered");
            *shelf = Arc::new(next);
        });
    }

    fn unregister(&self, key: &WorkloadKey) {
        self.told.lock().unwrap().push(format!("-{}", key.address));
    }
}

/// What has nothing to say in a status report.
pub(crate) struct Quiet;

impl status::Inspect for Quiet {}

/// A server with everything around it.
pub(crate) struct Fixture {
    pub(crate) server: Arc<Server>,
    pub(crate) shelf: watch::Sender<Arc<Shelf>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) address: SocketAddr,
}

impl Fixture {
    pub(crate) async fn start(shelf: Shelf, options: Options) -> Fixture {
        let (sender, receiver) = watch::channel(Arc::new(shelf));
        let feed = Feed::new(receiver, |shelf: &Arc<Shelf>| shelf.clone() as Arc<dyn Catalog>);
        let registry = Arc::new(Registry { told: Mutex::default(), shelf: sender.clone() });
        let server = Arc::new(Server::new(feed, registry.clone(), &options));
        let address = server.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        Fixture { server, shelf: sender, registry, address }
    }

    pub(crate) fn report(&self) -> status::Status {
        status::report(&self.server, &Quiet, true)
    }

    pub(crate) fn metrics(&self) -> String {
        status::metrics(&self.server, &Quiet)
    }

    pub(crate) async fn plain(shelf: Shelf) -> Fixture {
        Fixture::start(shelf, settled()).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub(crate) fn publish(&self, edit: impl FnOnce(&mut Shelf)) {
        self.shelf.send_modify(|shelf| {
            let mut next = Shelf::clone(shelf);
            edit(&mut next);
            *shelf = Arc::new(next);
        });
    }
}

/// Options of a server that has been running for a while.
pub(crate) fn settled() -> Options {
    Options::default().settle(Duration::ZERO)
}

pub(crate) fn node(user_agent: &str) -> Node {
    Node {
        id: "mesh~127.0.0.1~web.shop~shop.svc.cluster.local".to_owned(),
        user_agent_name: user_agent.to_owned(),
        ..Node::default()
    }
}

/// One delta stream.
pub(crate) struct Delta {
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Delta {
    pub(crate) async fn open(channel: Channel, node: Node) -> Result<Delta, Status> {
        let (requests, stream) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Delta { requests, responses, node: Some(node) })
    }

    pub(crate) async fn send(&mut self, kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Asks for a resource that an earlier stream brought.
    pub(crate) async fn resume(&mut self, kind: Kind, name: &str, version: &str) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            initial_resource_versions: [(name.to_owned(), version.to_owned())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The same for many, in one request.
    pub(crate) async fn resume_all(&mut self, kind: Kind, names: &[String], version: &str) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.to_vec(),
            initial_resource_versions: names.iter().map(|name| (name.clone(), version.to_owned())).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time");
        message.expect("no error").expect("a response")
    }

    pub(crate) async fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|text| rpc::Status { code: 3, message: text.to_owned(), details: vec![] }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, accepted, as `name=version` and `!name`.
    pub(crate) async fn take(&mut self) -> Vec<String> {
        let response = self.next().await;
        self.answer(&response, None).await;
        said(&response)
    }
}

pub(crate) fn said(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let given = response.resources.iter().map(|one| format!("{}={}", one.name, one.version));
    given.chain(response.removed_resources.iter().map(|name| format!("!{name}"))).collect()
}

/// One state-of-the-world stream.
pub(crate) struct Sotw {
    pub(crate) requests: mpsc::Sender<DiscoveryRequest>,
    pub(crate) responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl Sotw {
    pub(crate) async fn open(channel: Channel, node: Node) -> Result<Sotw, Status> {
        let (requests, stream) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Sotw { requests, responses, node: Some(node) })
    }

    pub(crate) async fn send(
        &mut self,
        kind: Kind,
        names: &[&str],
        after: Option<&DiscoveryResponse>,
        error: Option<&str>,
    ) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            version_info: after.map(|response| response.version_info.clone()).unwrap_or_default(),
            response_nonce: after.map(|response| response.nonce.clone()).unwrap_or_default(),
            error_detail: error.map(|text| rpc::Status { code: 3, message: text.to_owned(), details: vec![] }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time");
        message.expect("no error").expect("a response")
    }
}

pub(crate) fn bodies(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|any| String::from_utf8_lossy(&any.value).into_owned()).collect()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// A connector from a closure, as tonic wants it.
#[derive(Clone)]
pub(crate) struct ServiceFn<F>(pub(crate) F);

impl<F, Fut, T> tonic::codegen::Service<http::Uri> for ServiceFn<F>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = std::io::Result<T>> + Send + 'static,
{
    type Response = T;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<T>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin((self.0)())
    }
}
