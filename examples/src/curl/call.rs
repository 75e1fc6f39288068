//! One call: sent, read to its end, and judged.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use mesh_core::error::MeshError;
use mesh_core::request_info::{Deadline, Observer, RequestInfo};
use mesh_tonic::Channel;
use mesh_tower::{Client, Mesh};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::metadata::MetadataMap;
use tonic::{Code, Streaming};

use super::wire::describe;
use super::{Call, Target};
use crate::echo::BACKEND;
use crate::echo::proto::{EchoReply, SERVICE};

/// What stands for the number of a call in its headers.
const NUMBER: &str = "{n}";

/// The most of a response's body that is read.
const MAX_BODY: usize = 64 << 20;

/// What became of a call, in the words of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The status of the response, or the one that the mesh answers such a failure with.
    Http(StatusCode),
    /// gRPC.
    Grpc(Code),
    /// A connection for bytes.
    Tcp(Connection),
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The bytes went out, and the other side closed it after its answer.
    Answered,
    /// There was none, or it broke off.
    Failed,
}

impl Connection {
    /// Its name in what is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Connection::Answered => "OK",
            Connection::Failed => "FAILED",
        }
    }
}

impl Status {
    /// Whether the call succeeded: HTTP below 400, gRPC `OK`, a connection to its end.
    pub fn is_ok(self) -> bool {
        match self {
            Status::Http(status) => status.as_u16() < 400,
            Status::Grpc(code) => code == Code::Ok,
            Status::Tcp(connection) => connection == Connection::Answered,
        }
    }
}

/// What became of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its status.
    pub status: Status,
    /// From when it was due to the end of the response.
    pub took: Duration,
    /// Who answered: what the backend calls itself, else the endpoint.
    pub backend: Option<String>,
    /// The response's headers, or gRPC metadata.
    pub headers: HeaderMap,
    /// What came after the body.
    pub trailers: HeaderMap,
    /// The response's body as text; for gRPC, its messages.
    pub body: String,
    /// What the mesh says, where it failed the call.
    pub error: Option<String>,
}

impl Outcome {
    /// A call of which nothing but its status is known.
    pub fn new(status: Status) -> Outcome {
        Outcome {
            status,
            took: Duration::ZERO,
            backend: None,
            headers: HeaderMap::new(),
            trailers: HeaderMap::new(),
            body: String::new(),
            error: None,
        }
    }

    /// Whether the call succeeded.
    pub fn is_ok(&self) -> bool {
        self.status.is_ok() && self.error.is_none()
    }
}

tokio::task_local! {
    /// The endpoint of the call that this task makes.
    static ENDPOINT: RefCell<Option<String>>;
}

/// Notes the endpoint of each call. Put it among the observers of the mesh, and backends that do not name
/// themselves are named by their address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoints;

impl Observer for Endpoints {
    fn on_end(&self, request: &RequestInfo) {
        if let Some(endpoint) = request.endpoint() {
            // Outside of a call of this tool there is nobody to tell.
            _ = ENDPOINT.try_with(|seen| seen.replace(Some(endpoint.id().to_string())));
        }
    }
}

/// Sends one call again and again.
pub(super) struct Sender {
    call: Call,
    way: Way,
    /// How many calls were begun.
    begun: AtomicU64,
}

/// How it is sent.
enum Way {
    Http(Client, Uri),
    Grpc(Channel, PathAndQuery),
    Tcp { mesh: Mesh, host: String, port: u16 },
}

impl Sender {
    pub(super) fn new(mesh: &Mesh, call: Call) -> Self {
        let way = match &call.target {
            Target::Http(uri) => Way::Http(mesh.client(), uri.clone()),
            Target::Grpc { channel, method } => Way::Grpc(mesh_tonic::channel(mesh, channel), method.clone()),
            Target::Tcp { host, port } => Way::Tcp { mesh: mesh.clone(), host: host.clone(), port: *port },
        };
        Sender { call, way, begun: AtomicU64::new(0) }
    }

    /// Sends it once; its time counts from `due`.
    pub(super) async fn send(&self, due: tokio::time::Instant) -> Outcome {
        let deadline = Deadline(Instant::now() + self.call.timeout);
        let sent = ENDPOINT.scope(RefCell::default(), async {
            let mut outcome = match &self.way {
                Way::Http(client, uri) => self.http(client, uri, deadline).await,
                Way::Grpc(channel, method) => self.grpc(channel, method, deadline).await,
                Way::Tcp { mesh, host, port } => self.tcp(mesh, host, *port, deadline).await,
            };
            outcome.backend = outcome.backend.or_else(|| ENDPOINT.with(RefCell::take));
            outcome
        });
        let mut outcome = sent.await;
        outcome.took = due.elapsed();
        outcome
    }

    /// The headers of the next call.
    fn headers(&self) -> HeaderMap {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let mut headers = self.call.headers.clone();
        for value in headers.values_mut() {
            let numbered = value
                .to_str()
                .ok()
                .filter(|text| text.contains(NUMBER))
                .map(|text| text.replace(NUMBER, &number.to_string()));
            if let Some(numbered) = numbered.and_then(|text| HeaderValue::try_from(text).ok()) {
                *value = numbered;
            }
        }
        headers
    }

    async fn http(&self, client: &Client, uri: &Uri, deadline: Deadline) -> Outcome {
        let mut request = Request::new(Full::new(self.call.body.clone()));
        *request.uri_mut() = uri.clone();
        *request.method_mut() = self.call.method.clone();
        *request.headers_mut() = self.headers();
        if self.call.http2 {
            *request.version_mut() = http::Version::HTTP_2;
        }
        request.extensions_mut().insert(deadline);
        let response = match client.request(request).await {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        let (head, body) = response.into_parts();
        let (trailers, body, error) = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => {
                let trailers = body.trailers().cloned().unwrap_or_default();
                (trailers, String::from_utf8_lossy(&body.to_bytes()).into_owned(), None)
            }
            Err(error) => (HeaderMap::new(), String::new(), Some(error.to_string())),
        };
        let backend = named(&head.headers).or_else(|| {
            let answer: serde_json::Value = serde_json::from_str(&body).ok()?;
            Some(answer.get("backend")?.as_str()?.to_owned())
        });
        let status = Status::Http(head.status);
        Outcome { backend, headers: head.headers, trailers, body, error, ..Outcome::new(status) }
    }

    async fn grpc(&self, channel: &Channel, method: &PathAndQuery, deadline: Deadline) -> Outcome {
        let message = tokio_stream::once(self.call.body.clone());
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers());
        request.extensions_mut().insert(deadline);
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        // As a stream of messages, a method of any kind can be called.
        let answer = match grpc.streaming(request, method.clone(), mesh_tonic::codec::Raw).await {
            Ok(response) => {
                let (headers, messages, _) = response.into_parts();
                let (messages, ended) = read(messages).await;
                (headers.into_headers(), messages, ended)
            }
            Err(status) => (status.metadata().clone().into_headers(), Vec::new(), Err(status)),
        };
        let (headers, messages, ended) = answer;
        let is_echo = method.path().trim_start_matches('/').split('/').next() == Some(SERVICE);
        let replies: Vec<EchoReply> = match is_echo {
            true => messages.iter().filter_map(|message| EchoReply::decode(&**message).ok()).collect(),
            false => Vec::new(),
        };
        let shown: Vec<String> = match replies.is_empty() {
            true => messages.iter().map(|message| describe(message)).collect(),
            false => replies.iter().map(|reply| reply.body.clone()).collect(),
        };
        let backend = named(&headers).or_else(|| replies.first().map(|reply| reply.backend.clone()));
        let (code, trailers, error) = match ended {
            Ok(trailers) => (Code::Ok, trailers, None),
            Err(status) => (status.code(), status.metadata().clone().into_headers(), Some(status.message().to_owned())),
        };
        Outcome { backend, headers, trailers, body: shown.join("\n"), error, ..Outcome::new(Status::Grpc(code)) }
    }

    /// Sends the bytes, says that there are no more, and reads what comes back to its end.
    async fn tcp(&self, mesh: &Mesh, host: &str, port: u16, Deadline(deadline): Deadline) -> Outcome {
        let exchange = async {
            let mut stream = mesh.connect(host, port).await.map_err(|error| format!("{error:#}"))?;
            let mut answer = Vec::new();
            let exchanged = async {
                stream.write_all(&self.call.body).await?;
                stream.shutdown().await?;
                (&mut stream).take(MAX_BODY as u64).read_to_end(&mut answer).await
            };
            exchanged.await.map_err(|error| error.to_string())?;
            Ok(answer)
        };
        let exchanged = tokio::time::timeout_at(deadline.into(), exchange).await;
        match exchanged.unwrap_or_else(|_| Err("no answer to its end in time".to_owned())) {
            Ok(answer) => Outcome {
                body: String::from_utf8_lossy(&answer).into_owned(),
                ..Outcome::new(Status::Tcp(Connection::Answered))
            },
            Err(error) => Outcome { error: Some(error), ..Outcome::new(Status::Tcp(Connection::Failed)) },
        }
    }
}

/// The messages of a response, and how it ended: with these trailers, or with an error.
async fn read(mut messages: Streaming<Bytes>) -> (Vec<Bytes>, Result<HeaderMap, tonic::Status>) {
    let mut seen = Vec::new();
    while let Some(message) = messages.next().await {
        match message {
            Ok(message) => seen.push(message),
            Err(status) => return (seen, Err(status)),
        }
    }
    let trailers = messages.trailers().await.map(|trailers| trailers.unwrap_or_default().into_headers());
    (seen, trailers)
}

/// What the backend calls itself.
fn named(headers: &HeaderMap) -> Option<String> {
    headers.get(BACKEND)?.to_str().ok().map(str::to_owned)
}

/// A call that the mesh failed: the status is the one that it answers such a failure with.
fn failed(error: &MeshError) -> Outcome {
    Outcome { error: Some(format!("{error:#}")), ..Outcome::new(Status::Http(error.kind().http_status())) }
}
