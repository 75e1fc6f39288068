//! Somebody else is shown the heads of requests and of their answers, and says what is to be changed, or answers himself
//! (`envoy.extensions.filters.http.ext_proc.v3`, headers alone). Who carries that is for the data plane ([`ProcessorService`]).
//!
//! What he has no word on in time does not pass, unless the configuration says so.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version, request, response};
use serde_json::json;

use super::{Decision, Filter, Reply, ResponseCallout, ResponseResume, Resume};
use crate::authz::external::is_fixed;
use crate::model::{ExtProc, HeaderChange};
use crate::request::RequestHead;
use crate::request_info::RequestInfo;
use crate::rewrite::{apply_to_request, apply_to_response};
use crate::seldom::Seldom;
use crate::state::lock;

/// The longest reason of a processor that is told in logs and metrics, in bytes.
const LONGEST_DETAILS: usize = 256;

/// A head that a processor is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShownHead {
    /// Whether it is an answer's.
    pub is_response: bool,
    /// Its headers in order, what is said by others in HTTP/1.1 by those of HTTP/2.
    pub headers: Vec<(String, Bytes)>,
    /// Whether it is known that no body follows.
    pub is_end: bool,
}

/// What a processor says of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed {
    /// It passes, so changed; an answer with another status, where one is said.
    Pass(Vec<HeaderChange>, Option<StatusCode>),
    /// This is the answer, for this reason.
    Answer(Reply, Option<String>),
}

/// What a processor says of a head, and what of that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What becomes of the head.
    pub processed: Processed,
    /// What else it asked for, which is passed over as Envoy does; for people.
    pub passed_over: Vec<String>,
}

impl From<Processed> for Said {
    fn from(processed: Processed) -> Self {
        Said { processed, passed_over: Vec::new() }
    }
}

/// What a processor says, and with whom to go on, if it wants to see more; or why there is no word from it.
pub type Processing = Pin<Box<dyn Future<Output = Result<(Said, Option<Box<dyn Exchange>>), String>> + Send>>;

/// What is said between a data plane and a processor about one request. Dropped, it is over.
pub trait Exchange: Send {
    /// Shows the next head, about which there is a word in this time.
    fn show(self: Box<Self>, head: ShownHead, timeout: Duration) -> Processing;
}

/// Carries heads to processors.
pub trait ProcessorService: Send + Sync {
    /// Begins with a request, at the processor at `target` (`host:port`); nothing is sent yet.
    fn begin(&self, target: &Arc<str>) -> Box<dyn Exchange>;
}

impl ShownHead {
    fn of_request(head: &request::Parts) -> ShownHead {
        let seen = RequestHead::of_parts(&head.method, &head.uri, &head.headers);
        let first = [
            (":method", seen.method.as_str()),
            (":scheme", seen.scheme),
            (":authority", seen.authority),
            (":path", seen.path_and_query),
        ];
        // Over HTTP/2, a request without a length may have a body all the same.
        let is_bare = !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING);
        let is_end = is_told_to_be_empty(&head.headers) || (is_bare && head.version <= Version::HTTP_11);
        ShownHead { is_response: false, headers: shown(&first, &head.headers), is_end }
    }

    fn of_response(method: Option<&Method>, head: &response::Parts) -> ShownHead {
        let is_end = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || method == Some(&Method::HEAD)
            || is_told_to_be_empty(&head.headers);
        ShownHead { is_response: true, headers: shown(&[(":status", head.status.as_str())], &head.headers), is_end }
    }
}

fn is_told_to_be_empty(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0")
}

/// Headers without those of the connection, which end here.
fn shown(first: &[(&str, &str)], headers: &HeaderMap) -> Vec<(String, Bytes)> {
    let first = first.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes())));
    let rest = headers.iter().filter(|(name, _)| !is_fixed(name) || *name == CONTENT_LENGTH);
    first
        .chain(rest.map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes()))))
        .collect()
}

/// Shows heads to one processor.
#[derive(Clone)]
pub struct ExtProcFilter(Arc<Shared>);

struct Shared {
    config: Arc<ExtProc>,
    /// Who carries heads; nobody where the data plane cannot.
    service: Option<Arc<dyn ProcessorService>>,
    /// When the log last had a head without a word.
    failed: Seldom,
    /// When the log last had what was passed over.
    passed_over: Seldom,
}

/// What goes on with the answer to a request.
struct Begun {
    of: Arc<Shared>,
    exchange: Mutex<Option<Box<dyn Exchange>>>,
}

impl ExtProcFilter {
    /// By this configuration.
    pub fn new(config: &Arc<ExtProc>, service: Option<Arc<dyn ProcessorService>>) -> Self {
        ExtProcFilter(Arc::new(Shared {
            config: Arc::clone(config),
            service,
            failed: Seldom::default(),
            passed_over: Seldom::default(),
        }))
    }

    fn begin(&self) -> Result<Box<dyn Exchange>, String> {
        let service = self.0.service.as_ref().ok_or("this process calls no processor")?;
        Ok(service.begin(&self.0.config.target))
    }
}

impl Shared {
    /// What becomes of a head: it has passed, or this is the answer.
    fn carry_out(
        &self,
        said: Result<Said, String>,
        request: &mut RequestInfo,
        change: impl FnOnce(Vec<HeaderChange>, Option<StatusCode>),
    ) -> Option<Reply> {
        let said = said.map(|Said { processed, passed_over }| {
            if !passed_over.is_empty() {
                self.pass_over(&passed_over, request);
            }
            processed
        });
        match said {
            Ok(Processed::Pass(changes, status)) => {
                change(changes, status);
                None
            }
            Ok(Processed::Answer(reply, why)) if self.config.may_answer => {
                request.note_details(why.map_or(Cow::Borrowed("ext_proc_immediate_response"), |mut why| {
                    why.truncate(why.floor_char_boundary(LONGEST_DETAILS));
                    Cow::Owned(why)
                }));
                request.note_event("processor", || json!({"answers": reply.status.as_u16()}));
                Some(reply)
            }
            Ok(Processed::Answer(..)) => self.fail("it answers requests itself, which is turned off", request),
            Err(why) => self.fail(&why, request),
        }
    }

    #[cold]
    fn pass_over(&self, what: &[String], request: &mut RequestInfo) {
        request.note_event("processor", || json!({"passed over": what}));
        if self.passed_over.is_due(request.started) {
            let target = &*self.config.target;
            tracing::warn!(target, ?what, "a processor asks for what it may not have or is not done here: passed over");
        }
    }

    #[cold]
    fn fail(&self, why: &str, request: &mut RequestInfo) -> Option<Reply> {
        let (target, passes) = (&*self.config.target, self.config.fail_open);
        request.note_event("processor", || json!({"no word": why, "passes": passes}));
        if self.failed.is_due(request.started) {
            tracing::warn!(target, why, passes, "a processor had no word on a request: its failure mode decides");
        }
        if passes {
            return None;
        }
        request.note_details("ext_proc_error");
        Some(Reply::new(self.config.status_on_error, Bytes::new()))
    }
}

impl Filter for ExtProcFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let shared = Arc::clone(&self.0);
        if !shared.config.request {
            return Decision::Continue;
        }
        let exchange = match self.begin() {
            Ok(exchange) => exchange,
            Err(why) => return shared.fail(&why, request).map_or(Decision::Continue, Decision::Reply),
        };
        let word = exchange.show(ShownHead::of_request(head), shared.config.timeout);
        Decision::Callout(Box::pin(async move {
            let (said, exchange) = apart(word.await);
            Box::new(move |request: &mut RequestInfo, head: &mut request::Parts| {
                let reply = shared.carry_out(said, request, |changes, _| apply_to_request(&[changes], head));
                if reply.is_none() && exchange.is_some() && shared.config.response {
                    request.hold(Begun { of: shared, exchange: Mutex::new(exchange) });
                }
                reply.map_or(Decision::Continue, Decision::Reply)
            }) as Resume
        }))
    }

    fn hold_response(&self, request: &mut RequestInfo, head: &response::Parts) -> Option<ResponseCallout> {
        let shared = Arc::clone(&self.0);
        if !shared.config.response {
            return None;
        }
        let exchange = if shared.config.request {
            // Where it failed, and the request passed, nothing more is said about it.
            let begun = request.held::<Begun>().find(|begun| Arc::ptr_eq(&begun.of, &shared))?;
            Ok(lock(&begun.exchange).take()?)
        } else {
            self.begin()
        };
        let shown = ShownHead::of_response(request.method(), head);
        Some(Box::pin(async move {
            let said = match exchange {
                Ok(exchange) => apart(exchange.show(shown, shared.config.timeout).await).0,
                Err(why) => Err(why),
            };
            Box::new(move |request: &mut RequestInfo, head: &mut response::Parts| {
                shared.carry_out(said, request, |changes, status| {
                    apply_to_response(&[changes], head);
                    head.status = status.unwrap_or(head.status);
                })
            }) as ResponseResume
        }))
    }

    fn holds_responses(&self) -> bool {
        self.0.config.response
    }
}

type Word = (Result<Said, String>, Option<Box<dyn Exchange>>);

/// What was said, and with whom to go on.
fn apart(word: Result<(Said, Option<Box<dyn Exchange>>), String>) -> Word {
    match word {
        Ok((said, exchange)) => (Ok(said), exchange),
        Err(why) => (Err(why), None),
    }
}

impl std::fmt::Debug for ExtProcFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtProcFilter").field("config", &self.0.config).finish_non_exhaustive()
    }
}
