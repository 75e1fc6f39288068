//! Carries heads to external processors by the mesh's own client: a stream of gRPC for each request, which ends with it. So many
//! heads for each processor wait for a word at a time; waiting for a turn is waiting for a word, and there is a time for that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use mesh_core::filter::{Exchange, Processed, Processing, ProcessorService, Said, ShownHead};
use mesh_core::xds::ext_proc::{PROCESS, decode, encode};
use tokio::sync::{Semaphore, mpsc};

use crate::body::{Body, BoxError};
use crate::grpc_wire::{framed, take_message};
use crate::outbound::{self, ResponseBody};
use crate::transport::pooled;
use crate::unary::{self, MeshClient, Turns};

/// Heads that wait for a word of one processor at a time.
const MOST_SHOWN: usize = 1000;
/// The longest word: more is not read.
const MOST_BYTES: usize = 64 << 10;

/// See the [module](self).
pub(crate) struct Processors(Arc<Shared>);

struct Shared {
    client: MeshClient,
    turns: Turns,
}

impl Processors {
    /// Calls processors so.
    pub(crate) fn new(client: MeshClient) -> Processors {
        Processors(Arc::new(Shared { client, turns: Turns::new(MOST_SHOWN) }))
    }
}

impl ProcessorService for Processors {
    fn begin(&self, target: &Arc<str>) -> Box<dyn Exchange> {
        let turns = self.0.turns.of(target);
        Box::new(OfRequest {
            shared: Arc::clone(&self.0),
            target: Arc::clone(target),
            turns,
            stream: None,
            has_spoken: false,
        })
    }
}

/// What is said about one request.
struct OfRequest {
    shared: Arc<Shared>,
    target: Arc<str>,
    turns: Arc<Semaphore>,
    /// Once something is.
    stream: Option<Stream>,
    /// Whether the processor has said anything of this request.
    has_spoken: bool,
}

impl Exchange for OfRequest {
    fn show(mut self: Box<Self>, head: ShownHead, timeout: Duration) -> Processing {
        Box::pin(async move {
            let word = match tokio::time::timeout(timeout, self.word(head)).await {
                Ok(word) => word,
                Err(_) => Err(format!("no word within {timeout:?}")),
            };
            match word {
                Ok(Some(said)) => Ok((said, Some(self as Box<dyn Exchange>))),
                // It wants to see no more of this request, which goes on without it.
                Ok(None) => Ok((Processed::Pass(Vec::new(), None).into(), None)),
                Err(why) => Err(format!("{}: {why}", self.target)),
            }
        })
    }
}

impl OfRequest {
    /// What is said of a head; `None` where the processor has spoken before, and has ended the call well. (Envoy takes the end alone for
    /// consent. Whoever stops is not asked to consent.)
    async fn word(&mut self, head: ShownHead) -> Result<Option<Said>, String> {
        let (shared, turns) = (Arc::clone(&self.shared), Arc::clone(&self.turns));
        let _turn = turns.acquire().await.map_err(|error| error.to_string())?;
        let is_response = head.is_response;
        let message = framed(&encode(head));
        let stream = match &mut self.stream {
            Some(stream) => {
                // Where the call is over, what comes next says how.
                let _ = stream.messages.send(message).await;
                stream
            }
            none => none.insert(Stream::open(&shared, &self.target, message).await?),
        };
        loop {
            let Some(message) = stream.next().await? else {
                return if self.has_spoken { Ok(None) } else { Err("the call ended without a word".to_owned()) };
            };
            let said = decode(&message, is_response)?;
            if said.is_some() {
                self.has_spoken = true;
                return Ok(said);
            }
        }
    }
}

/// A call that is under way.
struct Stream {
    messages: mpsc::Sender<Bytes>,
    /// Of the answer, which may say how it ended.
    head: HeaderMap,
    words: Pin<Box<ResponseBody>>,
    /// Of the next one, what is there.
    read: BytesMut,
}

impl Stream {
    async fn open(shared: &Shared, target: &str, first: Bytes) -> Result<Stream, String> {
        let context = shared.client.to(target)?;
        let (messages, sent) = mpsc::channel(1);
        // There is room for one.
        messages.try_send(first).map_err(|error| error.to_string())?;
        let (head, body) = unary::stream(target, PROCESS, Body::new(Messages(sent)))?.into_parts();
        let response = outbound::send(&context, pooled(), head, body).await.map_err(|error| format!("{error:#}"))?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("the answer is {}", head.status));
        }
        Ok(Stream { messages, head: head.headers, words: Box::pin(body), read: BytesMut::new() })
    }

    /// The next message; `None` where the call has ended well.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(message) = take_message(&mut self.read, MOST_BYTES)? {
                return Ok(Some(message));
            }
            match self.words.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.read.extend_from_slice(&data),
                    Err(last) => return self.ended(last.trailers_ref()),
                },
                Some(Err(error)) => return Err(format!("its word: {error}")),
                None => return self.ended(None),
            }
        }
    }

    fn ended(&self, trailers: Option<&HeaderMap>) -> Result<Option<Bytes>, String> {
        if !self.read.is_empty() {
            return Err("the call ended within a word".to_owned());
        }
        unary::ended(trailers, &self.head).map(|()| None)
    }
}

/// The messages of a call, as they come.
struct Messages(mpsc::Receiver<Bytes>);

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}
