//! The two halves of a request that a gateway has: how it came, and how it went on. An access log has one line for it, as
//! Envoy's has, and that is of the first half: it is told where the second went.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Direction, RequestInfo};
use crate::error::ErrorKind;
use crate::id::ClusterName;
use crate::response_flags::ResponseFlags;
use crate::state::EndpointState;

/// What the half that goes on tells the half that came. The data plane gives it to both, and the one that goes on ends first.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<OnceLock<Told>>);

#[derive(Clone, Debug)]
struct Told {
    route: Option<Arc<str>>,
    cluster: Option<ClusterName>,
    endpoint: Option<Arc<EndpointState>>,
    attempts: u32,
    flags: ResponseFlags,
    /// Of gRPC.
    grpc_status: Option<u32>,
    /// Only where the mesh answered itself.
    details: Option<String>,
    time: Option<Duration>,
    transport_failure: Option<Box<str>>,
}

impl Upstream {
    /// Whether the request went on.
    pub(super) fn is_told(&self) -> bool {
        self.0.get().is_some()
    }
}

impl RequestInfo {
    /// Notes that it is one half of a request of a gateway, and what it shares with the other.
    pub fn note_upstream(&mut self, upstream: &Upstream) {
        if let Some(record) = &mut self.record {
            record.upstream = Some(upstream.clone());
        }
    }

    /// It is over: tells the other half, or has been told by it.
    #[cold]
    pub(super) fn end_half(&mut self, upstream: &Upstream) {
        match self.direction() {
            Some(Direction::Outbound) => {
                // A program that sends one request on twice has the first of them told.
                _ = self.told().map(|told| upstream.0.set(told));
            }
            _ => {
                if let Some(told) = upstream.0.get() {
                    self.take_in(told);
                }
            }
        }
    }

    fn told(&self) -> Option<Told> {
        let record = self.record.as_ref()?;
        // Whether the caller is still there is the other half's to say.
        let (error, is_own) = (record.error, record.error.is_some() || record.details.is_some());
        Some(Told {
            route: record.route.clone(),
            cluster: record.cluster.clone(),
            endpoint: record.endpoint.clone(),
            attempts: self.attempts,
            flags: record.flags | error.map_or(ResponseFlags::NONE, ErrorKind::response_flags),
            grpc_status: self.grpc_response_status(),
            details: is_own.then(|| self.response_details().to_owned()),
            time: record.heads.as_ref().and_then(|heads| heads.upstream_time),
            transport_failure: record.heads.as_ref().and_then(|heads| heads.transport_failure.clone()),
        })
    }

    fn take_in(&mut self, told: &Told) {
        self.attempts = told.attempts;
        // Browsers speak it in a form of their own (gRPC-Web), of which nothing but the answer's body has the status.
        self.is_grpc |= told.grpc_status.is_some();
        let Some(record) = &mut self.record else { return };
        record.route = told.route.clone().or(record.route.take());
        record.cluster.clone_from(&told.cluster);
        record.endpoint.clone_from(&told.endpoint);
        record.flags |= told.flags;
        record.grpc_status = record.grpc_status.or(told.grpc_status);
        if record.error.is_none() && record.details.is_none() {
            record.details = told.details.clone().map(Cow::Owned);
        }
        if let Some(heads) = &mut record.heads {
            heads.upstream_time = told.time;
            heads.transport_failure.clone_from(&told.transport_failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use http::{HeaderMap, HeaderValue, Method, StatusCode};

    use super::*;
    use crate::request_info::{Observer, Observers};

    #[derive(Debug, Default)]
    struct Ended(Mutex<Vec<String>>);

    impl Observer for Ended {
        fn on_end(&self, request: &RequestInfo) {
            let (cluster, flags) = (request.cluster(), request.response_flags());
            let told = format!(
                "{:?} {cluster:?} {} {flags} {} {} {:?}",
                request.route(),
                request.attempts,
                request.response_details(),
                request.was_sent_on(),
                request.grpc_response_status()
            );
            self.0.lock().unwrap().push(told);
        }
    }

    fn half(ended: &Arc<Ended>, direction: Direction, upstream: &Upstream) -> RequestInfo {
        let observers: Observers = Arc::from([Arc::clone(ended) as Arc<dyn Observer>]);
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&observers, direction, &Method::GET);
        request.note_upstream(upstream);
        request
    }

    #[test]
    fn the_half_that_came_ends_with_what_the_other_one_came_to() {
        const UNHEALTHY: Option<ErrorKind> = Some(ErrorKind::NoHealthyEndpoint);
        for (error, grpc_status, expected) in [
            (None, None, "Some(\"r\") Some(\"c\") 2 - via_upstream true None"),
            (UNHEALTHY, None, "Some(\"r\") Some(\"c\") 2 UH no_healthy_upstream true None"),
            // As of gRPC-Web.
            (None, Some(5), "Some(\"r\") Some(\"c\") 2 - via_upstream true Some(5)"),
        ] {
            let (ended, upstream) = (Arc::new(Ended::default()), Upstream::default());
            let mut came = half(&ended, Direction::Inbound, &upstream);
            let mut on = half(&Arc::default(), Direction::Outbound, &upstream);
            on.note_route(&"r".into(), Some(&"c".into()));
            on.attempts = 2;
            if let Some(status) = grpc_status {
                on.is_grpc = true;
                on.note_trailers(&[("grpc-status".parse().unwrap(), HeaderValue::from(status))].into_iter().collect());
            }
            if let Some(error) = error {
                on.note_error(error);
            }
            on.note_complete();
            drop(on);
            came.note_response(StatusCode::OK, &HeaderMap::new(), true);
            came.note_complete();
            drop(came);
            assert_eq!(*ended.0.lock().unwrap(), [expected]);
        }
        // What was answered at once went nowhere.
        let ended = Arc::new(Ended::default());
        let mut alone = half(&ended, Direction::Inbound, &Upstream::default());
        alone.note_details("direct_response");
        alone.note_complete();
        drop(alone);
        assert_eq!(*ended.0.lock().unwrap(), ["None None 0 - direct_response false None"]);
    }
}
