//! Live requests on the wire: workloads that tell what they see of them, and whoever asks over the port of the status.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_core::xds::live_trace::{FOLLOW, Followed, MAX_MESSAGE, Orders, SERVICE};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::live_trace::{Gathering, Traced, Wanted};
use crate::serve::clients::clock::now;
use crate::serve::clients::following::{Armed, Told};
use crate::serve::clients::node::About;
use crate::serve::clients::state::ServerState;
use crate::serve::clients::status::Inspect;
use crate::serve::io::guest::Guest;
use crate::serve::io::server::Server;

/// So long others are waited for after the first hop of a request told what it saw.
const GRACE: Duration = Duration::from_secs(2);

/// The service that workloads tell.
#[derive(Clone)]
pub(crate) struct LiveTraces(pub(crate) Arc<ServerState>);

impl NamedService for LiveTraces {
    const NAME: &'static str = SERVICE;
}

impl tonic::codegen::Service<http::Request<Body>> for LiveTraces {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != FOLLOW {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let codec = ProstCodec::<Orders, Followed>::default();
            Ok(Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).streaming(Streams(state), request).await)
        })
    }
}

struct Streams(Arc<ServerState>);

impl StreamingService<Followed> for Streams {
    type Response = Orders;
    type ResponseStream = ReceiverStream<Result<Orders, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Followed>>) -> Self::Future {
        let guest = match Guest::enter(&self.0, &request) {
            Ok(guest) => guest,
            Err(status) => return std::future::ready(Err(status)),
        };
        let (sender, receiver) = mpsc::channel(1);
        let state = Arc::clone(&self.0);
        // It ends with the stream, and with the server.
        tokio::spawn(async move {
            if let Err(status) = exchange(&state, &guest, request.into_inner(), &sender).await {
                // Whoever is gone is not told.
                _ = sender.send(Err(status)).await;
            }
        });
        std::future::ready(Ok(Response::new(ReceiverStream::new(receiver))))
    }
}

async fn exchange(
    state: &ServerState,
    guest: &Guest,
    mut messages: Streaming<Followed>,
    sender: &mpsc::Sender<Result<Orders, Status>>,
) -> Result<(), Status> {
    let Some(first) = guest.first(&mut messages).await? else { return Ok(()) };
    let (client, node) = guest.client(first.node)?;
    let mut ready = state.following.enter(Arc::new(client), About::read(&node).name, now());
    let mut is_news = true;
    let mut over = std::pin::pin!(guest.over());
    loop {
        tokio::select! {
            biased;
            status = &mut over => return Err(status),
            () = sender.closed() => return Ok(()),
            // Who does not read is told what there is when it does.
            permit = sender.reserve(), if is_news => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(Ok(ready.orders.borrow_and_update().clone()));
                is_news = false;
            }
            changed = ready.orders.changed(), if !is_news => match changed {
                Ok(()) => is_news = true,
                Err(_) => return Ok(()),
            },
            message = messages.message() => match message? {
                Some(message) if message.heard > 0 => ready.hear(message.heard, now()),
                Some(message) => ready.take(&message.hop),
                None => return Ok(()),
            },
        }
    }
}

/// Live requests that somebody waits for. Nothing is followed any more when it is dropped.
pub struct LiveTrace {
    armed: Armed,
    inspect: Arc<dyn Inspect>,
    gathering: Gathering,
    left: u32,
}

impl LiveTrace {
    /// Follows what is wanted, from now on.
    ///
    /// # Errors
    /// With a sentence for whoever asks, where it makes no sense, or too many ask.
    pub fn start(server: &Server, inspect: Arc<dyn Inspect>, wanted: Wanted) -> Result<LiveTrace, String> {
        let left = wanted.next;
        let armed = server.state().following.arm(wanted, now())?;
        Ok(LiveTrace { armed, inspect, gathering: Gathering::default(), left })
    }

    /// How many processes follow, and the requests of how many are looked at.
    pub fn processes(&self) -> (usize, usize) {
        self.armed.processes
    }

    /// The next request; `None` when there were as many as were asked for, or the time is over.
    pub async fn next(&mut self) -> Option<Traced> {
        let mut has_to_do_at = None;
        let Armed { until, begins_by, .. } = self.armed;
        let mut has_begun = false;
        while self.left > 0 {
            if let Some(traced) = self.gathering.next(has_to_do_at.is_some_and(|at| at <= now())) {
                self.left -= 1;
                return Some(traced);
            }
            if self.gathering.has_begun() {
                has_to_do_at.get_or_insert_with(|| now() + GRACE);
            }
            let wake = has_to_do_at.unwrap_or(until);
            tokio::select! {
                told = self.armed.hops.recv() => {
                    let Told { client, process, mut hop } = told?;
                    self.inspect.locate(&client, &mut hop);
                    self.gathering.add(process, hop);
                }
                () = tokio::time::sleep_until(begins_by.into()), if !has_begun => {
                    has_begun = true;
                    self.armed.begin(now());
                }
                // The time is over, or what is there has to do.
                () = tokio::time::sleep_until(wake.into()) => {
                    has_to_do_at?;
                }
            }
        }
        None
    }
}

impl std::fmt::Debug for LiveTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveTrace").field("left", &self.left).finish_non_exhaustive()
    }
}

/// What is followed, line by line of JSON: first how many processes follow, then each request, then why it is over.
pub(super) fn lines(mut trace: LiveTrace) -> ReceiverStream<Result<String, Infallible>> {
    let (sender, receiver) = mpsc::channel(1);
    // It ends when nobody reads any more, or by itself.
    tokio::spawn(async move {
        let line = |value: Value| Ok(format!("{value}\n"));
        let (processes, looked_at) = trace.processes();
        let first = json!({"armed": {"processes": processes, "looked_at": looked_at}});
        if sender.send(line(first)).await.is_err() {
            return;
        }
        loop {
            let next = tokio::select! {
                next = trace.next() => next,
                () = sender.closed() => return,
            };
            let Some(traced) = next else { break };
            if sender.send(line(json!({"request": traced}))).await.is_err() {
                return;
            }
        }
        let why = if trace.left == 0 { "all were seen" } else { "the time is over" };
        _ = sender.send(line(json!({"end": why, "missing": trace.left}))).await;
    });
    ReceiverStream::new(receiver)
}
