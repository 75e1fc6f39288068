//! Reports of load out of band (gRFC A51): one stream of `xds.service.orca.v3.OpenRcaService` to each endpoint of a cluster that
//! is balanced by them, over the connections of requests, for as long as the endpoint is listed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request};
use http_body_util::BodyExt;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::EndpointId;
use mesh_core::load_report::LoadReport;
use mesh_core::model::{Cluster, Endpoints, LoadWeights};
use mesh_core::request_info::{RequestInfo, grpc_status};
use mesh_core::state::EndpointState;
use mesh_core::view::Leaf;
use tokio::task::{AbortHandle, JoinSet};

use super::HttpVersion;
use super::check::{uri, without_limits};
use super::pool::exchange;
use crate::body::Body;
use crate::grpc_wire::{framed, note_call, put_field, put_varint, take_message};

/// The pause before a stream that ended is opened again, and the longest one (gRPC's back-off).
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// The largest report that is taken, in bytes.
const LARGEST: usize = 64 << 10;

/// `UNIMPLEMENTED`: the server has no such service, and will not get one.
const UNIMPLEMENTED: u32 = 12;

/// The streams of all clusters. They end with this.
#[derive(Default)]
pub(super) struct Reports {
    tasks: JoinSet<()>,
    /// By where their states are.
    clusters: HashMap<usize, Followed>,
}

/// The streams of one cluster.
struct Followed {
    /// What they were opened for.
    of: (Arc<Cluster>, Arc<Endpoints>),
    streams: HashMap<(EndpointId, bool), AbortHandle>,
}

impl Reports {
    /// Opens the streams that these clusters want and closes all others.
    pub(super) fn follow(&mut self, leaves: Vec<(Leaf, Arc<LoadWeights>, Duration)>) {
        while self.tasks.try_join_next().is_some() {}
        let mut wanted = HashSet::new();
        for (leaf, config, period) in leaves {
            let Some(endpoints) = &leaf.endpoints else { continue };
            let key = Arc::as_ptr(&leaf.state).addr();
            wanted.insert(key);
            let before = self.clusters.get(&key);
            let is_known = before
                .is_some_and(|before| Arc::ptr_eq(&before.of.0, &leaf.cluster) && Arc::ptr_eq(&before.of.1, endpoints));
            if is_known {
                continue;
            }
            // Another configuration may ask for another period, or for other connections.
            let same_cluster = before.is_some_and(|before| Arc::ptr_eq(&before.of.0, &leaf.cluster));
            let mut old = self.clusters.remove(&key).map(|before| before.streams).unwrap_or_default();
            let mut streams = HashMap::new();
            for endpoint in endpoints.iter() {
                let who = (endpoint.id.clone(), endpoint.mutual_tls);
                let kept = if same_cluster { old.remove(&who) } else { None };
                let (cluster, config) = (Arc::clone(&leaf.cluster), Arc::clone(&config));
                let state = leaf.state.endpoint(&who.0, who.1);
                let stream = kept.unwrap_or_else(|| self.tasks.spawn(listen(cluster, config, period, state)));
                streams.insert(who, stream);
            }
            old.into_values().for_each(|stream| stream.abort());
            let of = (Arc::clone(&leaf.cluster), Arc::clone(endpoints));
            self.clusters.insert(key, Followed { of, streams });
        }
        self.clusters.retain(|key, followed| {
            let is_wanted = wanted.contains(key);
            if !is_wanted {
                followed.streams.values().for_each(AbortHandle::abort);
            }
            is_wanted
        });
    }
}

/// Listens to one endpoint until it has no such service.
async fn listen(cluster: Arc<Cluster>, config: Arc<LoadWeights>, period: Duration, endpoint: Arc<EndpointState>) {
    let mut pause = PAUSE.0;
    loop {
        let began = Instant::now();
        match stream(&cluster, &config, period, &endpoint).await {
            Ok(Some(UNIMPLEMENTED)) => {
                tracing::warn!(cluster = %cluster.name, endpoint = %endpoint.id(), "an endpoint does not report its load out of band: those that do not take turns");
                return;
            }
            Ok(status) => {
                tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), ?status, "a stream of load reports ended");
            }
            Err(error) => {
                tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), error = %format_args!("{error:#}"), "a stream of load reports failed");
            }
        }
        // One that went well for a while begins anew.
        if began.elapsed() > PAUSE.1 {
            pause = PAUSE.0;
        }
        tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One stream to its end: its gRPC status.
async fn stream(
    cluster: &Arc<Cluster>,
    config: &LoadWeights,
    period: Duration,
    endpoint: &Arc<EndpointState>,
) -> Result<Option<u32>, MeshError> {
    let uri = uri(cluster, endpoint, None, "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics")?;
    let request = Request::builder().method(Method::POST).uri(uri).body(Body::from(asks_every(period)));
    let unsendable = |error| MeshError::new(ErrorKind::BadRequest, "the call is no request").caused_by(error);
    let mut request = request.map_err(unsendable)?;
    note_call(request.headers_mut());
    let unlimited = Arc::new(without_limits(cluster, HttpVersion::Http2));
    let info = RequestInfo::new(Instant::now(), fastrand::Rng::new());
    let (response, _connection) = exchange(&unlimited, endpoint, &info, true, request).await?;
    let mut status = grpc_status(response.headers());
    let (mut body, mut buffer) = (response.into_body(), BytesMut::new());
    let unreadable = |why: String| MeshError::new(ErrorKind::ConnectionLost, why);
    while let Some(frame) = body.frame().await {
        let lost = |error| MeshError::new(ErrorKind::ConnectionLost, "the stream broke off").caused_by(error);
        let frame = frame.map_err(lost)?;
        if let Some(trailers) = frame.trailers_ref() {
            status = grpc_status(trailers).or(status);
        }
        if let Some(data) = frame.data_ref() {
            buffer.extend_from_slice(data);
            while let Some(message) = take_message(&mut buffer, LARGEST).map_err(unreadable)? {
                if let Some(report) = LoadReport::from_binary(&message) {
                    endpoint.note_load(config, &report, Instant::now());
                }
            }
        }
    }
    Ok(status)
}

/// `OrcaLoadReportRequest { report_interval = 1 }`, as one message of gRPC.
fn asks_every(period: Duration) -> Bytes {
    let mut interval = BytesMut::new();
    for (field, value) in [(1u8, period.as_secs()), (2, u64::from(period.subsec_nanos()))] {
        if value > 0 {
            interval.put_u8(field << 3);
            put_varint(&mut interval, value);
        }
    }
    let mut message = BytesMut::new();
    put_field(&mut message, 1, &interval);
    framed(&message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_how_often() {
        assert_eq!(&asks_every(Duration::from_secs(10))[..], [0, 0, 0, 0, 4, 0x0a, 2, 8, 10]);
        assert_eq!(&asks_every(Duration::from_millis(1500))[5..], [0x0a, 8, 8, 1, 0x10, 0x80, 0xca, 0xb5, 0xee, 1]);
    }
}
