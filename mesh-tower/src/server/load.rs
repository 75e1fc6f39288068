//! Tells clients the load of a server with each answer (ORCA, gRFC A51), by which those that balance by load choose among its
//! like: in the trailers of gRPC, and in a header of any other answer.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_core::load_report::{BINARY, LoadReport, TEXT};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Says what the load is: asked once for each answer, so it must be quick and must not block.
type Load = Arc<dyn Fn() -> LoadReport + Send + Sync>;

/// A layer around a service, HTTP or gRPC, that reports its load with each answer. What the application says of a single
/// request, as an extension [`LoadReport`] of its response, goes before.
///
/// ```
/// use mesh_core::load_report::LoadReport;
/// use mesh_tower::server::ReportLoad;
/// use tower::{ServiceExt, service_fn};
/// use tower_layer::Layer;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let load = || {
///     let mut report = LoadReport::default();
///     // As measured over the last second, say.
///     (report.application_utilization, report.requests_per_second) = (0.7, 350.0);
///     report
/// };
/// let hello = service_fn(|_| async { Ok::<_, std::io::Error>(http::Response::new("hello".to_owned())) });
/// let service = ReportLoad::new(load).layer(hello);
/// let answer = service.oneshot(http::Request::new(())).await?;
/// assert_eq!(answer.headers()["endpoint-load-metrics"], "TEXT application_utilization=0.7,rps_fractional=350");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ReportLoad {
    load: Load,
}

impl ReportLoad {
    /// Reports what this says.
    pub fn new(load: impl Fn() -> LoadReport + Send + Sync + 'static) -> Self {
        ReportLoad { load: Arc::new(load) }
    }
}

impl fmt::Debug for ReportLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportLoad")
    }
}

impl<S> Layer<S> for ReportLoad {
    type Service = LoadService<S>;

    fn layer(&self, inner: S) -> LoadService<S> {
        LoadService { load: Arc::clone(&self.load), inner }
    }
}

/// A service that reports its load.
#[derive(Clone)]
pub struct LoadService<S> {
    load: Load,
    inner: S,
}

impl<S> fmt::Debug for LoadService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadService")
    }
}

impl<S, Q, B> Service<Q> for LoadService<S>
where
    S: Service<Q, Response = Response<B>>,
{
    type Response = Response<LoadBody<B>>;
    type Error = S::Error;
    type Future = LoadFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Q) -> LoadFuture<S::Future> {
        LoadFuture { future: self.inner.call(request), load: Arc::clone(&self.load) }
    }
}

pin_project! {
    /// A response to come.
    pub struct LoadFuture<F> {
        #[pin]
        future: F,
        load: Load,
    }
}

impl<F> fmt::Debug for LoadFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadFuture")
    }
}

impl<F, B, E> Future for LoadFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<LoadBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (mut head, body) = ready!(this.future.poll(cx))?.into_parts();
        let own = head.extensions.remove::<LoadReport>();
        let media = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let mut at_the_end = None;
        match media.is_some_and(|media| media.starts_with(b"application/grpc")) {
            // Its head is its trailers.
            true if head.headers.contains_key("grpc-status") => {
                put(&mut head.headers, &own.unwrap_or_else(|| (this.load)()));
            }
            true => at_the_end = Some((own, Arc::clone(this.load))),
            false if head.headers.contains_key(TEXT) => {}
            false => {
                let report = own.unwrap_or_else(|| (this.load)());
                if let Ok(text) = HeaderValue::try_from(report.to_text()) {
                    head.headers.insert(TEXT, text);
                }
            }
        }
        Poll::Ready(Ok(Response::from_parts(head, LoadBody { body, at_the_end })))
    }
}

/// What the application put there itself stays.
fn put(trailers: &mut HeaderMap, report: &LoadReport) {
    if !trailers.contains_key(BINARY) {
        trailers.insert(BINARY, report.to_header());
    }
}

pin_project! {
    /// The body of an answer; the report is in its trailers, where it has some.
    pub struct LoadBody<B> {
        #[pin]
        body: B,
        at_the_end: Option<(Option<LoadReport>, Load)>,
    }
}

impl<B> fmt::Debug for LoadBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadBody")
    }
}

/// An empty body, for services that make answers of their own.
impl<B: Default> Default for LoadBody<B> {
    fn default() -> Self {
        LoadBody { body: B::default(), at_the_end: None }
    }
}

impl<B: Body> Body for LoadBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let mut frame = ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some((own, load)) = this.at_the_end.take()
        {
            put(trailers, &own.unwrap_or_else(|| load()));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
