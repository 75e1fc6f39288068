//! Identical GETs that are under way at the same time, as one request where their route wants it.
//!
//! The first of them makes the request, in a task of its own, and the others wait for its answer; who goes away does not end
//! it, until nobody is left. Requests are identical when everything of them is, but for headers that tell single requests
//! apart for tracing: so whatever an answer may depend on (credentials, cookies, `accept`, `range`, what routes look at) is the
//! same. An answer that is for one of them, or too long to be kept, goes to one, and the others make their own requests. Nothing
//! is kept when the answer is complete.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request::{RequestHead, has_port, host_and_port};
use mesh_core::request_info::{Deadline, Inherited, Repeat};
use mesh_core::view::{SelectedRoute, TargetView};
use tokio::sync::watch;

use super::coalesced::{Key, OF_ONE_REQUEST, Shared, SharedOutcome, shared_outcome};
use super::placement::Follow;
use super::request::OutboundContext;
use super::response_body::{Content, ResponseBody};
use super::route::inherited_by;
use super::{Concluded, Waiting, send};
use crate::body::Body;
use crate::transport::pooled;

/// What a request is to be shared by; `None` where it goes its own way.
#[inline]
pub(crate) fn key(context: &OutboundContext, head: &Parts, body: &Body) -> Option<Key> {
    if context.is_gateway || !context.coalescer.is_wanted() || head.method != Method::GET || !body.is_end_stream() {
        return None;
    }
    let view = match (&context.target, head.uri.authority().map_or("", |authority| authority.as_str())) {
        (Some(target), _) => target.entry.view()?,
        (None, authority) if authority.contains('@') => return None,
        (None, authority) if has_port(authority) => context.store.view(authority)?,
        (None, authority) => {
            let scheme = head.uri.scheme_str().unwrap_or("http");
            context.store.find(&host_and_port(authority, scheme).ok()?)?.view()?
        }
    };
    key_of(context, &view, head)
}

fn key_of(context: &OutboundContext, view: &Arc<TargetView>, head: &Parts) -> Option<Key> {
    let is_of_one =
        [CONNECTION, UPGRADE, CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
    if is_of_one || head.extensions.get::<Follow>().is_some() || head.extensions.get::<Repeat>().is_some() {
        return None;
    }
    let authority = match &context.target {
        Some(target) => target.authority.as_str(),
        None => head.uri.authority()?.as_str(),
    };
    let request = RequestHead::with_authority(head, authority);
    // Whichever of several destinations it is: the route says so for all of them.
    let (_, route) = SelectedRoute::find(view, &request, &mut fastrand::Rng::with_seed(0)).ok()?;
    if !route.coalesces() {
        return None;
    }
    // What is retried already is retried less, and what can be left out gives way: a request is as good as those it is for.
    let Inherited { attempt, criticality, .. } = inherited_by(head).unwrap_or_default();
    let mut key = String::new();
    _ = write!(key, "{}\n{authority}\n{}\n{:?}\n", view.target(), head.uri, head.version);
    _ = write!(key, "{attempt}\n{criticality:?}\n");
    let mut key = key.into_bytes();
    let mut headers: Vec<(&[u8], &[u8])> =
        head.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    headers.retain(|(name, _)| !OF_ONE_REQUEST.iter().any(|other| other.as_bytes() == *name));
    // Stable: several values of one header stay in order.
    headers.sort_by_key(|(name, _)| *name);
    for (name, value) in headers {
        // Lengths keep what is in one header from looking like two.
        for part in [name, value] {
            key.extend((part.len() as u64).to_be_bytes());
            key.extend(part);
        }
    }
    Some(key.into())
}

/// Waits for the answer to a request that may be under way already, and else makes it.
pub(crate) fn join(context: &Arc<OutboundContext>, key: Key, head: Parts) -> Waiting<Incoming> {
    let inherited = inherited_by(&head).unwrap_or_default();
    let own = head.extensions.get::<Deadline>().map(|deadline| deadline.0);
    let deadline = own.into_iter().chain(inherited.deadline).chain(inherited.answer_by).min();
    let shared = shared(context, key, &head, inherited);
    let context = Arc::clone(context);
    Box::pin(async move {
        let answered = answer(&context, shared, head);
        match deadline {
            None => answered.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answered).await.unwrap_or_else(|_| {
                let what = "the deadline passed while an identical request was under way";
                Err(MeshError::new(ErrorKind::Timeout, what))
            }),
        }
    })
}

/// The request that is under way, or a new one.
fn shared(context: &Arc<OutboundContext>, key: Key, head: &Parts, mut inherited: Inherited) -> Arc<Shared> {
    let of = Arc::clone(&context.coalescer);
    let mut all = of.lock();
    if let Some(shared) = all.get(&key).and_then(Weak::upgrade) {
        return shared;
    }
    let (tell, outcome) = watch::channel(None);
    let mut own = head.clone();
    // The time of one caller is not that of the others. The rest is the same for all, and a task inherits nothing by itself.
    own.extensions.remove::<Deadline>();
    (inherited.deadline, inherited.answer_by) = (None, None);
    own.extensions.insert(inherited);
    let (request_context, request_key, request_of) = (Arc::clone(context), Arc::clone(&key), Arc::clone(&of));
    let task = tokio::spawn(async move {
        let outcome = shared_outcome(send(&request_context, pooled(), own, Body::empty()).await).await;
        request_of.close(&request_key);
        tell.send_replace(Some(outcome));
    });
    let shared = Arc::new(Shared { key: Arc::clone(&key), of: Arc::clone(&of), outcome, task: task.abort_handle() });
    all.insert(key, Arc::downgrade(&shared));
    drop(all);
    shared
}

async fn answer(context: &Arc<OutboundContext>, shared: Arc<Shared>, head: Parts) -> Concluded<Incoming> {
    let mut outcome = shared.outcome.clone();
    // A task that was ended with its runtime tells nothing.
    let told = outcome.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
    match told {
        Some(SharedOutcome::Answer(answer)) => {
            let (head, bytes) = &*answer;
            let body = ResponseBody::new(Content::Local { bytes: bytes.clone() }, None, false);
            Ok(Response::from_parts(head.clone(), body))
        }
        Some(SharedOutcome::Failed(error)) => Err(error),
        Some(SharedOutcome::OfOne(answer)) if let Some(answer) = take(&answer) => Ok(answer),
        Some(SharedOutcome::OfOne(_)) | None => send(context, pooled(), head, Body::empty()).await,
    }
}

fn take<T>(from: &Mutex<Option<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).take()
}
