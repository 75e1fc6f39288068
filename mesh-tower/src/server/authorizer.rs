//! The application's own word on who is let in: an [`Authorizer`] in this process, in the place where policies ask those
//! outside of it (CUSTOM), about every request or about those that policies name it for. What it does not decide in time, fails
//! at or panics at, is refused.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mesh_core::authz::Connection;
use mesh_core::authz::external::{Answer, CheckedChanges, Denial, MOST_CHECKS, is_fixed};
use mesh_core::id::ListenerName;
use mesh_core::identity::SpiffeId;
use mesh_core::jwt::Claims;
use mesh_core::model::{HeaderChange, HeaderText};
use mesh_core::request::{RequestHead, is_grpc};
use tokio::sync::Semaphore;

/// Why an authorizer has no answer: for the log, never for the client.
pub type AuthorizerError = Box<dyn Error + Send + Sync>;

/// Decides about requests in the application's own words; see [`super::ServerLayer::authorizer`] and
/// [`super::ServerLayer::named_authorizer`]. Any async function or closure
/// of an [`AuthorizationRequest`] is one.
pub trait Authorizer: Send + Sync + 'static {
    /// Decides about a request. Dropped where the caller has gone or the time is over.
    ///
    /// # Errors
    /// Why there is no decision. The request is then refused with 403.
    fn authorize(
        &self,
        request: AuthorizationRequest,
    ) -> impl Future<Output = Result<Decision, AuthorizerError>> + Send;

    /// How long a decision may take, the wait for a turn included: 1,024 are under way at a time. 5 s unless it says otherwise:
    /// longer than a look-up takes, and shorter than callers wait.
    fn timeout(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Headers that only this authorizer sets: they are taken off every request before it is asked, whoever sent them.
    fn own_headers(&self) -> &[HeaderName] {
        &[]
    }
}

impl<F, D> Authorizer for F
where
    F: Fn(AuthorizationRequest) -> D + Send + Sync + 'static,
    D: Future<Output = Result<Decision, AuthorizerError>> + Send,
{
    fn authorize(
        &self,
        request: AuthorizationRequest,
    ) -> impl Future<Output = Result<Decision, AuthorizerError>> + Send {
        self(request)
    }
}

/// What is known of a request that an [`Authorizer`] decides about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuthorizationRequest {
    /// The method.
    pub method: Method,
    /// The host that is asked for, with its port where it has one.
    pub authority: String,
    /// The path in the canonical form that routes, policies and the application see, with the query.
    pub path_and_query: String,
    /// The headers, as the application will see them, but for those that authorizers set: what a client sent under their names
    /// is taken off.
    pub headers: HeaderMap,
    /// Whether it is a call of gRPC.
    pub is_grpc: bool,
    /// Who asks, as mutual TLS has proven; nobody in plaintext.
    pub identity: Option<SpiffeId>,
    /// Where the connection comes from, where that is known.
    pub source: Option<SocketAddr>,
    /// What its good tokens say.
    pub claims: Vec<Claims>,
    /// Its body, where the provider by which a policy asks wants it to be shown (`includeRequestBodyInCheck`).
    pub body: Option<ShownBody>,
}

/// What is shown of a body.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShownBody {
    /// Its first bytes.
    pub bytes: Bytes,
    /// Whether they are not all of it.
    pub is_partial: bool,
}

/// What an [`Authorizer`] says.
#[derive(Clone, Debug)]
pub enum Decision {
    /// The request goes on: to the policies, which may refuse it all the same, and then to the application.
    Allow(Allow),
    /// It is refused.
    Deny(Deny),
}

/// Lets a request go on.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Allow {
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Allow {
    /// Lets it go on as it is.
    pub fn new() -> Allow {
        Allow::default()
    }

    /// Sets a header of the request for policies and the application, in the place of what the client sent.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Allow {
        self.headers.push((name, value));
        self
    }
}

/// Refuses a request.
#[derive(Clone, Debug)]
#[must_use]
pub struct Deny {
    denial: Denial,
    detail: String,
}

impl Deny {
    /// Refuses it with this status: 403 is PERMISSION_DENIED to a gRPC client, and so on. One that says that all went well is
    /// no refusal, and becomes 403.
    pub fn new(status: StatusCode) -> Deny {
        Deny { denial: Denial::new(status), detail: String::new() }
    }

    /// With this body, which is the message of the status to a gRPC client.
    pub fn body(mut self, body: impl Into<Bytes>) -> Deny {
        self.denial.body = body.into();
        self
    }

    /// With this header, such as `location`. A gRPC client is shown none.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Deny {
        self.denial.headers.append(name, value);
        self
    }

    /// Why, for the log alone.
    pub fn detail(mut self, detail: impl Into<String>) -> Deny {
        self.detail = detail.into();
        self
    }
}

impl From<Allow> for Decision {
    fn from(allow: Allow) -> Decision {
        Decision::Allow(allow)
    }
}

impl From<Deny> for Decision {
    fn from(deny: Deny) -> Decision {
        Decision::Deny(deny)
    }
}

type Decided<'a> = Pin<Box<dyn Future<Output = Result<Decision, AuthorizerError>> + Send + 'a>>;

/// An authorizer of any type.
trait AnyAuthorizer: Send + Sync {
    fn decide(&self, request: AuthorizationRequest) -> Decided<'_>;
}

impl<A: Authorizer> AnyAuthorizer for A {
    fn decide(&self, request: AuthorizationRequest) -> Decided<'_> {
        // What the call itself does is part of the future: it may panic, too.
        Box::pin(async move { self.authorize(request).await })
    }
}

/// A layer's authorizers.
#[derive(Clone, Debug, Default)]
pub(super) struct Authorizers {
    /// The one that is asked about every request.
    pub(super) every: Option<Own>,
    /// Those that policies ask, by the names that these know them by, in small letters.
    pub(super) named: BTreeMap<String, Own>,
}

impl Authorizers {
    pub(super) fn is_empty(&self) -> bool {
        self.every.is_none() && self.named.is_empty()
    }

    /// Takes off what only they set.
    pub(super) fn strip(&self, headers: &mut HeaderMap) {
        self.every.iter().chain(self.named.values()).for_each(|own| own.strip(headers));
    }
}

/// One of a layer's authorizers.
#[derive(Clone)]
pub(super) struct Own {
    authorizer: Arc<dyn AnyAuthorizer>,
    permits: Arc<Semaphore>,
    timeout: Duration,
    headers: Arc<[HeaderName]>,
}

impl Own {
    pub(super) fn new(authorizer: impl Authorizer) -> Own {
        let (timeout, headers) = (authorizer.timeout(), authorizer.own_headers().into());
        Own { authorizer: Arc::new(authorizer), permits: Arc::new(Semaphore::new(MOST_CHECKS)), timeout, headers }
    }

    /// Takes off what only the authorizer sets.
    fn strip(&self, headers: &mut HeaderMap) {
        self.headers.iter().for_each(|name| drop(headers.remove(name)));
    }

    /// What it is to be asked about a request.
    pub(super) fn question(
        &self,
        head: &RequestHead<'_>,
        connection: Option<&Connection<'_>>,
        tokens: &[Claims],
    ) -> (Own, AuthorizationRequest) {
        let request = AuthorizationRequest {
            method: head.method.clone(),
            authority: head.authority.to_owned(),
            path_and_query: head.path_and_query.to_owned(),
            is_grpc: is_grpc(head.headers),
            headers: head.headers.clone(),
            identity: connection.and_then(|connection| connection.peer.cloned()),
            source: connection.map(|connection| connection.remote),
            claims: tokens.to_vec(),
            body: None,
        };
        (self.clone(), request)
    }

    /// What it says within its time, and within this one.
    ///
    /// # Errors
    /// It has no word on the request, for this reason.
    pub(super) async fn word(
        &self,
        request: AuthorizationRequest,
        limit: Duration,
        listener: &ListenerName,
    ) -> Result<Answer, String> {
        let decided = async {
            // It is never closed.
            let _turn = self.permits.acquire().await?;
            caught(self.authorizer.decide(request)).await
        };
        let limit = limit.min(self.timeout);
        let decided = match tokio::time::timeout(limit, decided).await {
            Ok(decided) => decided.and_then(read),
            Err(_) => Err(format!("no decision within {limit:?}").into()),
        };
        match decided.map_err(|why| why.to_string())? {
            Ok(changes) => Ok(Answer::Allow(changes)),
            Err(Deny { denial, detail }) => {
                tracing::debug!(%listener, status = %denial.status, detail, "the application refused a request");
                Ok(Answer::Deny(denial))
            }
        }
    }

    /// Asks it about a request that no policy asks it about, and which is refused without its word.
    pub(super) async fn ask(
        &self,
        request: AuthorizationRequest,
        listener: &ListenerName,
    ) -> Result<CheckedChanges, Box<Denial>> {
        match self.word(request, self.timeout, listener).await {
            Ok(Answer::Allow(changes)) => Ok(changes),
            Ok(Answer::Deny(denial)) => Err(Box::new(denial)),
            Err(why) => {
                tracing::warn!(%listener, %why, "the application's authorizer has no word on a request, which is refused");
                let body = &b"authorization failed"[..];
                Err(Box::new(Denial::without_answer(StatusCode::FORBIDDEN, body, why)))
            }
        }
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorizer")
    }
}

/// A decision that can be carried out.
fn read(decision: Decision) -> Result<Result<CheckedChanges, Deny>, AuthorizerError> {
    let fixed = |name: &HeaderName| format!("it sets {name}, which is not for it to set").into();
    match decision {
        Decision::Allow(Allow { headers }) => {
            let mut changes = CheckedChanges::default();
            for (name, value) in headers {
                if is_fixed(&name) {
                    return Err(fixed(&name));
                }
                changes.request.push(HeaderChange::Set(name, HeaderText::Fixed(value)));
            }
            Ok(Ok(changes))
        }
        Decision::Deny(deny) => {
            if let Some(name) = deny.denial.headers.keys().find(|name| is_fixed(name)) {
                return Err(fixed(name));
            }
            let status = deny.denial.status;
            if status.is_success() || status.is_informational() {
                return Err(format!("it refuses with {status}").into());
            }
            Ok(Err(deny))
        }
    }
}

/// A future whose panic is an error. It is dropped with what it left behind, and nobody looks at that.
async fn caught(mut decided: Decided<'_>) -> Result<Decision, AuthorizerError> {
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| decided.as_mut().poll(cx))) {
        Ok(polled) => polled,
        Err(_) => Poll::Ready(Err("it panicked".into())),
    })
    .await
}
