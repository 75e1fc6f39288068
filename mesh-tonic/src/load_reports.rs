//! Reports of load out of band (ORCA, gRFC A51): the service `xds.service.orca.v3.OpenRcaService`, for clients that balance by
//! load and ask for it on a stream of their own. `mesh_tower::server::ReportLoad` reports with each answer instead.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use mesh_core::load_report::{LoadReport, asked_interval};
use mesh_tower::Mesh;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tower_service::Service;

use crate::codec::Raw;

const NAME: &str = "xds.service.orca.v3.OpenRcaService";
const METHOD: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";

/// Clients get no more reports than one in this time, where nothing else is said (gRFC A51).
const LEAST_INTERVAL: Duration = Duration::from_secs(30);
/// The longest time between two, whatever a client asks for.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest request that is read, in bytes.
const LARGEST: usize = 4096;

/// Says what the load is: asked once for each report, so it must be quick and must not block.
type Load = Arc<dyn Fn() -> LoadReport + Send + Sync>;

/// The service that tells clients the load of this server: at once, and then as often as each asks for, but no more often than
/// [`LoadReports::least_interval`]. Its streams end with the drain of the mesh, so that they do not hold it up.
///
/// ```
/// use std::time::Duration;
///
/// use mesh_core::fixed::Fixed;
/// use mesh_core::load_report::LoadReport;
/// use mesh_tonic::load_reports::LoadReports;
/// use mesh_tower::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let load = || {
///     let mut report = LoadReport::default();
///     // As measured over the last second, say.
///     (report.application_utilization, report.requests_per_second) = (0.7, 350.0);
///     report
/// };
/// let reports = LoadReports::new(&mesh, load).least_interval(Duration::from_secs(10));
/// let server = tonic::transport::Server::builder().add_service(reports);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LoadReports {
    mesh: Mesh,
    load: Load,
    least_interval: Duration,
}

impl LoadReports {
    /// Reports what this says, every 30 s at most.
    pub fn new(mesh: &Mesh, load: impl Fn() -> LoadReport + Send + Sync + 'static) -> Self {
        LoadReports { mesh: mesh.clone(), load: Arc::new(load), least_interval: LEAST_INTERVAL }
    }

    /// The time between two reports to a client that asks for more of them. One of less than a millisecond is taken for that.
    pub fn least_interval(mut self, interval: Duration) -> Self {
        self.least_interval = interval.clamp(Duration::from_millis(1), LONGEST_INTERVAL);
        self
    }
}

impl fmt::Debug for LoadReports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadReports").field("least_interval", &self.least_interval).finish_non_exhaustive()
    }
}

impl NamedService for LoadReports {
    const NAME: &'static str = NAME;
}

impl<B> Service<http::Request<B>> for LoadReports
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let reports = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            Ok(Grpc::new(Raw).max_decoding_message_size(LARGEST).server_streaming(reports, request).await)
        })
    }
}

impl ServerStreamingService<Bytes> for LoadReports {
    type Response = Bytes;
    type ResponseStream = Reports;
    type Future = Ready<Result<Response<Reports>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Some(asked) = asked_interval(request.get_ref()) else {
            return ready(Err(Status::invalid_argument("no OrcaLoadReportRequest")));
        };
        let mut ticks = interval(asked.clamp(self.least_interval, LONGEST_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drained = Box::pin(self.mesh.drained());
        ready(Ok(Response::new(Reports { ticks, load: Arc::clone(&self.load), drained })))
    }
}

/// The reports to one client.
pub struct Reports {
    ticks: Interval,
    load: Load,
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stream for Reports {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        ready!(self.ticks.poll_tick(cx));
        Poll::Ready(Some(Ok((self.load)().to_binary().into())))
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}
