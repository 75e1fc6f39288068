//! Enforces the deadlines of the calls that a server answers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_core::request::is_grpc;
use mesh_tower::inherited::{self, Inheriting, Shared};
use mesh_tower::server::ConnectionInfo;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tonic::Status;
use tonic::transport::server::TcpConnectInfo;
use tower_layer::Layer;
use tower_service::Service;

use super::{Deadline, of_headers, until};

/// Ends calls at the deadline that their `grpc-timeout` sets, streams included, with DEADLINE_EXCEEDED; puts
/// the [`Deadline`] into the request's extensions and makes it the [`super::current`] one. A `grpc-timeout` that
/// is malformed is answered with INTERNAL. Requests that are not gRPC pass. [`crate::server_layer`] includes it.
///
/// ```
/// use std::time::Duration;
/// use mesh_tonic::deadline::DeadlineLayer;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let slow = service_fn(|_: http::Request<()>| async {
///     tokio::time::sleep(Duration::from_secs(60)).await;
///     Ok::<_, std::io::Error>(http::Response::new(tonic::body::Body::empty()))
/// });
/// let request = http::Request::post("/greeter.Greeter/Hello")
///     .header("content-type", "application/grpc")
///     .header("grpc-timeout", "10m")
///     .body(())?;
/// let response = DeadlineLayer.layer(slow).oneshot(request).await?;
/// assert_eq!(response.headers()["grpc-status"], "4");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner }
    }
}

/// A service whose calls end at their deadlines.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<DeadlineBody<R>>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> DeadlineFuture<S::Future> {
        let deadline = match is_grpc(request.headers()) {
            true => of_headers(request.headers(), Instant::now()),
            false => Ok(None),
        };
        let Ok(deadline) = deadline else { return DeadlineFuture { state: State::Malformed } };
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        // tonic knows a peer's address by its own type only.
        if let Some(connection) = request.extensions().get::<Arc<ConnectionInfo>>() {
            let ends = TcpConnectInfo { local_addr: Some(connection.local), remote_addr: Some(connection.peer) };
            request.extensions_mut().insert(ends);
        }
        let until = Shared::from(until(deadline));
        let call = inherited::scope(until.clone(), inherited::sync_scope(until, || self.inner.call(request)));
        let sleep = deadline.map(|deadline| tokio::time::sleep_until(deadline.0.into()));
        DeadlineFuture { state: State::Running { call, sleep, deadline } }
    }
}

pin_project! {
    /// A response to come, before the deadline.
    pub struct DeadlineFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Running {
            #[pin]
            call: Inheriting<F>,
            #[pin]
            sleep: Option<Sleep>,
            deadline: Option<Deadline>,
        },
        Malformed,
    }
}

impl<F, R, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<DeadlineBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let StateProjection::Running { call, mut sleep, deadline } = self.project().state.project() else {
            return Poll::Ready(Ok(Status::internal("malformed grpc-timeout").into_http()));
        };
        if let Poll::Ready(response) = call.poll(cx) {
            return Poll::Ready(response.map(|response| {
                response.map(|body| DeadlineBody { body: Some(body), deadline: *deadline, sleep: None })
            }));
        }
        let Some(sleep) = sleep.as_mut().as_pin_mut() else { return Poll::Pending };
        ready!(sleep.poll(cx));
        Poll::Ready(Ok(Status::deadline_exceeded("no response by the deadline").into_http()))
    }
}

impl<F> fmt::Debug for DeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeadlineFuture")
    }
}

pin_project! {
    /// A response's body that ends at the deadline.
    pub struct DeadlineBody<B> {
        #[pin]
        body: Option<B>,
        deadline: Option<Deadline>,
        sleep: Option<Pin<Box<Sleep>>>,
    }
}

impl<B> Default for DeadlineBody<B> {
    fn default() -> Self {
        DeadlineBody { body: None, deadline: None, sleep: None }
    }
}

impl<B: Body<Data = Bytes>> Body for DeadlineBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let Some(deadline) = *this.deadline else { return body.poll_frame(cx) };
        // The stream of the handler is polled here, and may make calls.
        if let Poll::Ready(frame) = inherited::sync_scope(until(Some(deadline)), || body.poll_frame(cx)) {
            return Poll::Ready(frame);
        }
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.0.into())));
        ready!(sleep.as_mut().poll(cx));
        // Whatever the handler was doing ends here.
        this.body.set(None);
        Poll::Ready(Some(Ok(Frame::trailers(deadline_exceeded()))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

fn deadline_exceeded() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("4"));
    trailers.insert(Status::GRPC_MESSAGE, HeaderValue::from_static("the stream did not end by the deadline"));
    trailers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, StreamBody};
    use tokio_stream::StreamExt;
    use tower::{ServiceExt, service_fn};

    use super::*;

    fn request(timeout: Option<&str>) -> Request<()> {
        let request = Request::post("/s/m").header("content-type", "application/grpc");
        match timeout {
            Some(timeout) => request.header("grpc-timeout", timeout).body(()).unwrap(),
            None => request.body(()).unwrap(),
        }
    }

    /// The status that the layer answers with, or the message that the handler saw.
    async fn call(timeout: Option<&str>, takes: Duration) -> Result<String, String> {
        let service = service_fn(move |request: Request<()>| async move {
            tokio::time::sleep(takes).await;
            let handed = request.extensions().get::<Deadline>().copied();
            assert_eq!(handed, super::super::current());
            let left = handed.map(|deadline| deadline.0.duration_since(tokio::time::Instant::now().into_std()));
            let frame = Frame::data(Bytes::from(format!("{left:?}")));
            Ok::<_, std::convert::Infallible>(Response::new(StreamBody::new(tokio_stream::once(Ok::<_, Status>(
                frame,
            )))))
        });
        let response = DeadlineLayer.layer(service).oneshot(request(timeout)).await.unwrap();
        if let Some(status) = response.headers().get("grpc-status") {
            return Err(status.to_str().unwrap().to_owned());
        }
        Ok(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_and_knows_it() {
        let millis = Duration::from_millis;
        assert_eq!(call(None, millis(100)).await, Ok("None".into()));
        assert!(call(Some("1S"), millis(100)).await.unwrap().starts_with("Some("));
        assert_eq!(call(Some("50m"), millis(100)).await, Err("4".into()));
        assert_eq!(call(Some("0n"), millis(100)).await, Err("4".into()));
        assert_eq!(call(Some("99999999H"), millis(100)).await.map(|_| ()), Ok(()));
        assert_eq!(call(Some("nonsense"), millis(0)).await, Err("13".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_the_deadline_with_the_status_in_its_trailers() {
        let service = service_fn(|_: Request<()>| async {
            let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(30)));
            let frames = ticks.map(|_| Ok::<_, Status>(Frame::data(Bytes::from_static(b"tick"))));
            Ok::<_, std::convert::Infallible>(Response::new(StreamBody::new(frames)))
        });
        let response = DeadlineLayer.layer(service).oneshot(request(Some("100m"))).await.unwrap();
        assert!(response.headers().get("grpc-status").is_none());
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
        assert_eq!(collected.to_bytes(), "tick".repeat(4));
    }

    #[tokio::test]
    async fn what_is_not_grpc_has_no_deadline() {
        let service = service_fn(|_: Request<()>| async {
            Ok::<_, std::convert::Infallible>(Response::new(tonic::body::Body::empty()))
        });
        let request = Request::get("/").header("grpc-timeout", "nonsense").body(()).unwrap();
        assert_eq!(DeadlineLayer.layer(service).oneshot(request).await.unwrap().status(), 200);
    }
}
