//! Filters that a request passes before it is said who may do what: plugins that stand before the filters which look at tokens,
//! or before those of policies (Istio's phases AUTHN and AUTHZ). They may be what makes the headers good that policies go by.
//!
//! They are the listener's, since there is no route yet, and off the way of every other request.

use std::borrow::Cow;
use std::sync::Arc;

use http::Request;
use mesh_core::error::MeshError;
use mesh_core::filter::Resume;
use mesh_core::jwt::{Authenticated, Claims};
use mesh_core::path::PathNormalization;
use mesh_core::recycled::Recycled;
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::view::RouteTable;

use crate::connection::ConnectionInfo;
use crate::filters::{self, Passage};
use crate::listeners::ListenerState;
use crate::reply;
use crate::server::observe::facts_of;
use crate::server::request::{Admission, ServerContext, answer, authenticate, with_parts};
use crate::server::response::Facts;
use crate::uri::set_path;

/// How far a request came among them.
pub(super) struct Early {
    routes: Arc<RouteTable>,
    listener: Arc<ListenerState>,
    paths: PathNormalization,
    /// How many of them have seen it, before its tokens were looked at and after.
    entered: [usize; 2],
    /// What its tokens say, once that is known.
    tokens: Option<Box<[Claims]>>,
    /// Whether it has passed all of them.
    is_through: bool,
}

impl Early {
    /// Whether one of them holds the request back.
    pub(super) fn is_under_way(&self) -> bool {
        !self.is_through
    }

    /// Passes them on the way back.
    pub(super) fn on_response(&self, info: &mut RequestInfo, head: &mut http::response::Parts) {
        let Some([first, second]) = self.routes.early() else { return };
        filters::on_response(second, self.entered[1], info, head);
        filters::on_response(first, self.entered[0], info, head);
    }

    /// Tells them that the request is over.
    pub(super) fn on_end(&self, info: &RequestInfo) {
        for (filters, entered) in self.routes.early().into_iter().flatten().zip(self.entered) {
            filters::on_end(filters, entered, info);
        }
    }
}

impl ServerContext {
    /// A request reaches the first of them.
    #[cold]
    pub(super) fn enter_early<B>(
        &self,
        routes: &Arc<RouteTable>,
        listener: &Arc<ListenerState>,
        paths: PathNormalization,
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Admission, MeshError> {
        let facts_of_it = facts.get_or_insert_with(|| facts_of(request));
        if !facts_of_it.info.is_observed() {
            self.observe(&mut facts_of_it.info, request);
            facts_of_it.info.note_authority(RequestHead::received(request)?.authority);
        }
        let connection = self.connection(request);
        facts_of_it.info.note_client(connection.as_deref().and_then(ConnectionInfo::peer_identity), &[]);
        let (routes, listener) = (Arc::clone(routes), Arc::clone(listener));
        let early = Early { routes, listener, paths, entered: [0, 0], tokens: None, is_through: false };
        facts_of_it.early = Some(Box::new(early));
        self.pass_early(None, request, facts)
    }

    /// It goes on, or one that held it back decides first.
    pub(super) fn pass_early<B>(
        &self,
        mut decide: Option<Resume>,
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Admission, MeshError> {
        let facts_of_it = facts.get_or_insert_with(|| facts_of(request));
        let Facts { info, early, .. } = &mut **facts_of_it;
        let early = early.as_mut().expect("a request that has come to them");
        let all = early.routes.early().expect("the table has some");
        loop {
            let stage = usize::from(early.tokens.is_some());
            let (filters, entered) = (&all[stage], &mut early.entered[stage]);
            let passage = with_parts(request, |head| match decide.take() {
                Some(decide) => filters::resume(decide, filters, entered, info, head),
                None => filters::on_request(filters, entered, info, head),
            });
            match passage {
                Passage::Passed if stage == 1 => break,
                Passage::Passed => {
                    // Whoever looks at the path sees the same one, also where a filter has written it.
                    canonical(early.paths, request)?;
                    let connection = self.connection(request);
                    let tokens = authenticate(&early.routes, &early.listener, request)?;
                    let tokens = tokens.as_ref().map_or(&[][..], Authenticated::claims_of_all);
                    info.note_client(connection.as_deref().and_then(ConnectionInfo::peer_identity), tokens);
                    early.tokens = Some(tokens.into());
                }
                Passage::Answered(reply) => {
                    let is_grpc = info.is_grpc;
                    return Ok(answer(request, reply::filter(reply, is_grpc)));
                }
                Passage::Held(callout) => return Ok(Admission::Held(callout)),
            }
        }
        early.is_through = true;
        canonical(early.paths, request)?;
        let (routes, listener) = (Arc::clone(&early.routes), Arc::clone(&early.listener));
        let tokens = early.tokens.clone().unwrap_or_default();
        self.authorize(&routes, &listener, &tokens, request, facts)
    }
}

/// Gives the path the form in which everybody sees it.
fn canonical<B>(paths: PathNormalization, request: &mut Request<B>) -> Result<(), MeshError> {
    let head = RequestHead::received(request)?;
    if let Cow::Owned(path) = paths.canonical(head.path(), true)? {
        set_path(request.uri_mut(), &path)?;
    }
    Ok(())
}
