//! The client status discovery service, answered for the whole fleet: what mesh-control knows of its
//! clients' acceptance, in the form that xDS tools read (gRFC A40 has the same for one client).

use std::sync::Arc;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::serve::clients::fleet::ClientStream;
use crate::serve::clients::state::ServerState;
use crate::serve::io::guest::Guest;
use crate::serve::protocol::ledger::Report;

/// See the [module](self).
pub(crate) struct Csds(Arc<ServerState>);

impl Csds {
    pub(crate) fn service(state: Arc<ServerState>) -> ClientStatusDiscoveryServiceServer<Csds> {
        ClientStatusDiscoveryServiceServer::new(Csds(state))
    }
}

type Answers = mpsc::Sender<Result<ClientStatusResponse, Status>>;

#[async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = ReceiverStream<Result<ClientStatusResponse, Status>>;

    async fn stream_client_status(
        &self,
        requests: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let guest = Guest::enter(&self.0, &requests)?;
        let (answers, receiver) = mpsc::channel(1);
        let state = self.0.clone();
        tokio::spawn(async move {
            if let Err(status) = converse(&state, &guest, requests.into_inner(), &answers).await {
                // The client may be gone: then there is nobody to tell.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let _guest = Guest::enter(&self.0, &request)?;
        answer(&self.0, request.get_ref()).map(Response::new)
    }
}

/// The life of one stream: an answer to each request.
async fn converse(
    state: &ServerState,
    guest: &Guest,
    mut requests: Streaming<ClientStatusRequest>,
    answers: &Answers,
) -> Result<(), Status> {
    let Some(mut request) = guest.first(&mut requests).await? else { return Ok(()) };
    let mut over = std::pin::pin!(guest.over());
    loop {
        // Who does not read what it is told is not told more, and may not stay for that.
        let place = tokio::select! {
            biased;
            status = &mut over => return Err(status),
            place = answers.reserve() => place,
        };
        let Ok(place) = place else { return Ok(()) };
        place.send(Ok(answer(state, &request)?));
        let next = tokio::select! {
            biased;
            status = &mut over => return Err(status),
            () = answers.closed() => return Ok(()),
            next = requests.message() => next,
        };
        let Ok(Some(next)) = next else { return Ok(()) };
        request = next;
    }
}

fn answer(state: &ServerState, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
    if !request.node_matchers.is_empty() {
        // As gRPC's own clients answer (gRFC A40).
        return Err(Status::invalid_argument("node_matchers are not supported"));
    }
    Ok(ClientStatusResponse { config: state.fleet.all().iter().map(|stream| config(stream)).collect() })
}

fn config(stream: &ClientStream) -> ClientConfig {
    let (id, reports) = {
        let session = stream.session();
        (session.client().node_id.to_string(), session.reports())
    };
    ClientConfig {
        node: Some(Node { id, user_agent_name: stream.about.user_agent.clone(), ..Node::default() }),
        generic_xds_configs: reports.iter().flat_map(resources).collect(),
        ..ClientConfig::default()
    }
}

fn resources(report: &Report) -> impl Iterator<Item = GenericXdsConfig> + '_ {
    report.names.iter().map(|name| {
        let (config, client) = if name.refused {
            (ConfigStatus::Error, ClientResourceStatus::Nacked)
        } else if name.absent {
            (ConfigStatus::NotSent, ClientResourceStatus::DoesNotExist)
        } else if name.version.is_none() {
            (ConfigStatus::NotSent, ClientResourceStatus::Requested)
        } else if name.pending || report.pending_since.is_some() {
            (ConfigStatus::Stale, ClientResourceStatus::Requested)
        } else {
            (ConfigStatus::Synced, ClientResourceStatus::Acked)
        };
        let refusal = report.nack.as_ref().filter(|_| name.refused);
        GenericXdsConfig {
            type_url: report.kind.type_url().to_owned(),
            name: name.name.to_string(),
            version_info: name.version.as_deref().unwrap_or_default().to_owned(),
            config_status: config.into(),
            client_status: client.into(),
            error_state: refusal.map(|nack| UpdateFailureState {
                details: nack.text.clone(),
                version_info: report.sent_version.clone(),
                ..UpdateFailureState::default()
            }),
            ..GenericXdsConfig::default()
        }
    })
}
