//! Envoy's access log service: workloads tell who called them ([`Calls`]), ours in reports, sidecars call by call.
//!
//! Who reports is known as on a stream of xDS: by the certificate, which the node may not contradict. A report of ours is
//! answered when all of it was taken; a sidecar never ends its stream.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{HttpAccessLogEntries, LogEntries};
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use mesh_core::calls::seconds;
use mesh_core::xds::access_log::{Entry, decode};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::calls::{Calls, Workload};
use crate::serve::clients::node::About;
use crate::serve::clients::refusals::Reason;
use crate::serve::clients::state::ServerState;
use crate::serve::io::guest::Guest;

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
}

#[async_trait]
impl AccessLogService for AccessLogs {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let guest = Guest::enter(&self.state, &request)?;
        let mut messages = request.into_inner();
        let Some(mut message) = guest.first(&mut messages).await? else {
            return Ok(Response::new(StreamAccessLogsResponse {}));
        };
        let node = message.identifier.take().and_then(|identifier| identifier.node);
        let reporter = Arc::new(reporter(&guest, node)?);
        let mut over = std::pin::pin!(guest.over());
        loop {
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                self.take(logs, &reporter, guest.ip()).await?;
            }
            let next = tokio::select! {
                biased;
                status = &mut over => return Err(status),
                next = messages.message() => next?,
            };
            match next {
                Some(next) => message = next,
                None => return Ok(Response::new(StreamAccessLogsResponse {})),
            }
        }
    }
}

impl AccessLogs {
    async fn take(&self, logs: HttpAccessLogEntries, reporter: &Arc<Workload>, from: IpAddr) -> Result<(), Status> {
        if logs.log_entry.len() > MOST_ENTRIES {
            return Err(Status::invalid_argument(format!("more than {MOST_ENTRIES} entries in one message")));
        }
        let (calls, reporter, wall) = (Arc::clone(&self.calls), Arc::clone(reporter), SystemTime::now());
        let taken = tokio::task::spawn_blocking(move || {
            let entries = logs.log_entry.iter().filter_map(|entry| decode(entry, seconds(wall)));
            calls.take(&reporter, from, &entries.collect::<Vec<Entry>>())
        });
        let taken = taken.await.map_err(|_| Status::unavailable("the server stops"))?;
        taken.map_err(|error| {
            tracing::warn!(%error, "a report of calls was not taken: the workload keeps it and tells it again");
            Status::resource_exhausted(error.to_string())
        })
    }
}

/// The workload on the other end, by its certificate where it has one.
fn reporter(guest: &Guest, node: Option<Node>) -> Result<Workload, Status> {
    let (client, node) = guest.client(node)?;
    let about = About::read(&node);
    let proven = client.identity.as_ref().and_then(|identity| identity.workload());
    let account = proven.map_or(about.service_account.as_str(), |(_, account)| account);
    let workload = Workload::new(&client.namespace, &about.name, account, proven.is_some());
    let workload = workload.labelled(&client.labels).group(client.group);
    if workload.len() > MOST_WHO {
        let why =
            format!("the node's names and labels have more than {MOST_WHO} bytes: no record of its calls is kept");
        return Err(guest.refused(Reason::Node, &node, Status::invalid_argument(why)));
    }
    Ok(workload)
}
