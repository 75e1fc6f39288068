//! Envoy's access log service: workloads tell who called them ([`Calls`]), ours in reports, sidecars call by call.
//!
//! Who reports is known as on a stream of xDS: by the certificate, which the node may not contradict. A report of ours is
//! answered when all of it was taken; a sidecar never ends its stream.

use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use mesh_core::calls::seconds;
use mesh_core::xds::access_log::{Entry, decode};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::calls::{Calls, Workload};
use crate::serve::clients::clock::now;
use crate::serve::clients::node::About;
use crate::serve::clients::refusals::Reason;
use crate::serve::clients::state::ServerState;
use crate::serve::io::ads::{identify, still_holds};
use crate::serve::io::server::Peer;

/// The most bytes of who reports: each line of its record repeats them.
const MOST_WHO: usize = 8 << 10;
/// The most entries of one message. Ours have 500, and Envoy sends what fits into 16 KiB unless it is told otherwise.
const MOST_ENTRIES: usize = 4096;

/// The service.
pub(crate) struct AccessLogs {
    state: Arc<ServerState>,
    calls: Arc<Calls>,
}

impl AccessLogs {
    /// `None` where no records are kept.
    pub(crate) fn service(state: &Arc<ServerState>) -> Option<AccessLogServiceServer<AccessLogs>> {
        let calls = state.calls.clone()?;
        Some(AccessLogServiceServer::new(AccessLogs { state: state.clone(), calls }))
    }

    /// Who reports.
    fn reporter(&self, message: &StreamAccessLogsMessage, peer: &Peer) -> Result<Workload, Status> {
        let node = message.identifier.as_ref().and_then(|identifier| identifier.node.as_ref());
        let node = node.ok_or_else(|| Status::invalid_argument("the first message has no identifier with a node"))?;
        workload(node, peer).map_err(|(reason, status)| {
            self.state.refusals.note(peer.ip, reason, &node.id, status.message(), now());
            status
        })
    }
}

#[async_trait]
impl AccessLogService for AccessLogs {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("a connection without an address"));
        };
        let mut messages = request.into_inner();
        let mut stop = self.state.stop.clone();
        let mut reporter = None;
        loop {
            let message = tokio::select! {
                message = messages.message() => message?,
                _ = stop.wait_for(|stop| *stop) => return Err(Status::unavailable("the server stops")),
            };
            let Some(message) = message else { return Ok(Response::new(StreamAccessLogsResponse {})) };
            let wall = SystemTime::now();
            // Somebody is who their certificate says for as long as that holds.
            if peer.expires.is_some_and(|expires| expires <= wall) {
                return Err(Status::unauthenticated("the client certificate has expired: come back with the next one"));
            }
            still_holds(&self.state, &peer)?;
            let workload = match &reporter {
                Some(workload) => Arc::clone(workload),
                None => Arc::new(self.reporter(&message, &peer)?),
            };
            reporter = Some(Arc::clone(&workload));
            let Some(LogEntries::HttpLogs(logs)) = message.log_entries else { continue };
            if logs.log_entry.len() > MOST_ENTRIES {
                return Err(Status::invalid_argument(format!("more than {MOST_ENTRIES} entries in one message")));
            }
            let (calls, from) = (Arc::clone(&self.calls), peer.ip);
            let taken = tokio::task::spawn_blocking(move || {
                let entries = logs.log_entry.iter().filter_map(|entry| decode(entry, seconds(wall)));
                calls.take(&workload, from, &entries.collect::<Vec<Entry>>())
            });
            let taken = taken.await.map_err(|_| Status::unavailable("the server stops"))?;
            taken.map_err(|error| {
                tracing::warn!(%error, "a report of calls was not taken: the workload keeps it and tells it again");
                Status::resource_exhausted(error.to_string())
            })?;
        }
    }
}

/// The workload on the other end, by its certificate where it has one.
fn workload(node: &Node, peer: &Peer) -> Result<Workload, (Reason, Status)> {
    let client = identify(node, peer)?;
    let about = About::read(node);
    let proven = client.identity.as_ref().and_then(|identity| identity.workload());
    let account = proven.map_or(about.service_account.as_str(), |(_, account)| account);
    let workload = Workload::new(&client.namespace, &about.name, account, proven.is_some());
    let workload = workload.labelled(&client.labels).group(client.group);
    if workload.len() > MOST_WHO {
        let why =
            format!("the node's names and labels have more than {MOST_WHO} bytes: no record of its calls is kept");
        return Err((Reason::Node, Status::invalid_argument(why)));
    }
    Ok(workload)
}
