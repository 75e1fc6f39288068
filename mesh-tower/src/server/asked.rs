//! A request that authorizers are asked about: what they are asked, how much of its body they are shown, and where it goes on
//! from when they have answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesh_core::authz::external::Denial;
use mesh_core::jwt::Claims;
use mesh_core::view::RouteTable;

use crate::listeners::ListenerState;
use crate::mesh::Mesh;
use crate::server::authorizer::{AuthorizationRequest, Own};
use crate::server::check::{self, Answers, Question};
use crate::server::request_body::{Unread, Wanted};

/// How long a client may take to send what is shown of a body: a few MiB over a slow line take less.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request that authorizers are asked about.
pub(super) struct Asked {
    pub(super) routes: Arc<RouteTable>,
    pub(super) listener: Arc<ListenerState>,
    /// What the tokens of the request say.
    pub(super) tokens: Box<[Claims]>,
    /// What is asked by policies.
    pub(super) questions: Vec<Question>,
    /// What the application's own authorizer for every request is asked.
    pub(super) own: Option<(Own, AuthorizationRequest)>,
}

impl Asked {
    /// How much of the body is needed, where somebody is shown it.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let mut bodies = self.questions.iter().filter_map(Question::body).peekable();
        bodies.peek()?;
        Some(bodies.fold(Wanted::default(), |wanted, body| match body.allow_partial {
            true => Wanted { part: wanted.part.max(body.most), ..wanted },
            false => Wanted { whole: Some(wanted.whole.map_or(body.most, |most| most.min(body.most))), ..wanted },
        }))
    }

    /// Shows the body to those who want to see it: its first bytes, so many at most, and whether they are not all.
    pub(super) fn show(&mut self, shown: impl Fn(usize) -> (Bytes, bool)) {
        self.questions.iter_mut().for_each(|question| question.show(&shown));
    }

    /// Asks all of them.
    pub(super) fn ask(&mut self, mesh: &Mesh) -> Answers {
        let (questions, own) = (std::mem::take(&mut self.questions), self.own.take());
        check::ask(mesh.clone(), self.listener.name().clone(), questions, own)
    }

    /// Says what the application has to do for bodies to be shown.
    pub(super) fn tell_of_unknown(&self) {
        tracing::warn!(
            listener = %self.listener.name(),
            "an authorizer is to be shown bodies of requests (includeRequestBodyInCheck), and this server does not say how they are \
             read: requests that have one are answered with 503. Serve with `serve(..).readable_bodies()`, or tell the layer by \
             `ServerLayer::bodies_by`"
        );
    }

    /// Asks nobody, since there is no body to be shown: for this reason.
    pub(super) fn refuse(&self, why: NotShown) -> Answers {
        let (status, why) = why.told();
        tracing::debug!(listener = %self.listener.name(), why, "authorizers are not asked about a request, which is refused");
        let mut denial = Denial::new(status);
        denial.body = Bytes::from_static(why.as_bytes());
        Box::pin(std::future::ready(Err(Box::new(denial))))
    }
}

/// Why authorizers are not shown a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotShown {
    /// It cannot be read.
    Unread(Unread),
    /// It did not come in time.
    Late,
    /// Nobody knows how bodies of its type are read.
    UnknownType,
}

impl NotShown {
    fn told(self) -> (StatusCode, &'static str) {
        match self {
            NotShown::Unread(Unread::Broken) => (StatusCode::BAD_REQUEST, "the body broke off"),
            NotShown::Unread(Unread::TooLarge) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is longer than what an authorizer is shown, which has to see all of it",
            ),
            NotShown::Unread(Unread::NoRoom) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too much of other bodies is held for authorizers, of this client's or of all",
            ),
            NotShown::Late => {
                (StatusCode::REQUEST_TIMEOUT, "the body that an authorizer is to be shown did not come in time")
            }
            NotShown::UnknownType => (
                StatusCode::SERVICE_UNAVAILABLE,
                "an authorizer is to be shown the body, and this server does not say how it is read (`Serve::readable_bodies`, \
                 `ServerLayer::bodies_by`)",
            ),
        }
    }
}
