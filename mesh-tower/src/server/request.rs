//! The second station of a server: a request finds its route, passes the filters, and goes on to the
//! application, or is answered here.
//!
//! Each request sees the configuration of its moment, so that a change bites on the next request of a live
//! connection. On the way to the application nothing is allocated unless the configuration or an observer asks
//! for it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::{Extensions, HeaderValue, Method, Request, Response, StatusCode, Version};
use mesh_core::authz::external::{CheckedChanges, Denial};
use mesh_core::authz::{Connection, Verdict};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::{Callout, Resume};
use mesh_core::id::ListenerName;
use mesh_core::identity::SpiffeId;
use mesh_core::jwt::{Authenticated, Claims, Refusal};
use mesh_core::live_trace::{LiveTraces, Stage};
use mesh_core::model::{HeadersWithUnderscores, Route, RouteAction, ServerTls};
use mesh_core::recycled::Recycled;
use mesh_core::request::{RequestHead, is_grpc};
use mesh_core::request_info::{Criticality, Inherited, Upstream};
use mesh_core::response_flags::ResponseFlags;
use mesh_core::rewrite;
use mesh_core::seldom::Seldom;
use mesh_core::state::{Decided, Decision};
use mesh_core::store::{ChainView, Secured, ServerState, ServerView};
use mesh_core::view::{Destination, Found, RouteTable};
use serde_json::json;

use crate::connection::{ClientAddress, ConnectionInfo};
use crate::drain::InFlight;
use crate::filters::{self, Passage};
use crate::listeners::{ListenerState, UNKNOWN_CONNECTION, find};
use crate::mesh::Mesh;
use crate::onward::Onward;
use crate::server::asked::Asked;
use crate::server::authorizer::Authorizers;
use crate::server::calls;
use crate::server::check;
use crate::server::layer::look_at_connection;
use crate::server::observe::facts_of;
use crate::server::request_body::Bodies;
use crate::server::response::Facts;
use crate::server::unseen;
use crate::server::untold::instead;
use crate::uri::set_path;
use crate::{followed, headers, reply};

/// Finds a request's connection in its extensions.
pub(super) type ConnectionOf = fn(&Extensions) -> Option<Arc<ConnectionInfo>>;

/// What the requests of one layer have in common.
#[derive(Clone, Debug)]
pub(super) struct ServerContext {
    pub(super) mesh: Mesh,
    pub(super) listener: Option<Arc<ListenerState>>,
    pub(super) connection_of: ConnectionOf,
    pub(super) trusted_proxies: Arc<[SpiffeId]>,
    pub(super) underscores: HeadersWithUnderscores,
    /// The application's own word on who is let in.
    pub(super) authorizers: Authorizers,
    /// Which bodies can be shown to authorizers.
    pub(super) bodies: Bodies,
    /// When refusals that clients were not told the reason of were last told of in the log.
    pub(super) untold: Seldom,
    /// Which requests somebody follows.
    pub(super) live_traces: Arc<LiveTraces>,
}

/// How much is told of an answer of the configuration's own, in characters.
const LONGEST_REASON: usize = 1024;

/// What whoever is outside is told by a gateway.
const NO_ANSWER: &str = "the gateway has no answer";

/// Why they are there.
pub(super) const HAS_FACTS: &str = "a request that a filter holds back has facts";

/// What becomes of a request.
pub(super) enum Admission {
    /// It goes on to the application.
    Admit,
    /// It is answered here.
    Answer(Box<Response<Bytes>>),
    /// A filter holds it back.
    Held(Callout),
    /// Authorizers are asked about it.
    Asked(Box<Asked>),
}

impl ServerContext {
    /// A request begins.
    #[inline]
    pub(super) fn in_flight(&self) -> InFlight {
        self.mesh.drain().enter()
    }

    /// A request has come to the layer, so that it may be answered.
    #[inline]
    pub(super) fn note_seen(&self, extensions: &Extensions) {
        if unseen::note() {
            return;
        }
        let noted = look_at_connection(extensions, ConnectionInfo::note_seen)
            .or_else(|| (self.connection_of)(extensions).map(|connection| connection.note_seen()));
        if noted != Some(true) {
            self.mesh.listeners().note_unknown();
        }
    }

    pub(super) fn connection<B>(&self, request: &Request<B>) -> Option<Arc<ConnectionInfo>> {
        ConnectionInfo::current().or_else(|| (self.connection_of)(request.extensions()))
    }

    /// Whether a request comes from a proxy whose headers are believed.
    #[cold]
    fn is_trusted_proxy<B>(&self, request: &Request<B>) -> bool {
        let connection = self.connection(request);
        let peer = connection.as_deref().and_then(ConnectionInfo::peer_identity);
        peer.is_some_and(|peer| self.trusted_proxies.contains(peer))
    }

    #[inline]
    pub(super) fn route<B>(
        &self,
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
        inherited: &mut Option<Inherited>,
    ) -> Admission {
        let admission = self.find_and_filter(request, facts, inherited);
        admission.unwrap_or_else(|error| self.failed(&error, facts.as_deref_mut(), request))
    }

    fn find_and_filter<B>(
        &self,
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
        inherited: &mut Option<Inherited>,
    ) -> Result<Admission, MeshError> {
        if headers::are_reserved(request.headers()) {
            // Whoever says that of himself can only lose by it.
            if Criticality::of_headers(request.headers()) == Criticality::Sheddable {
                facts.get_or_insert_with(|| facts_of(request)).info.inherited.criticality = Criticality::Sheddable;
            }
            if !self.is_trusted_proxy(request) {
                headers::strip_reserved(request.headers_mut());
            }
        }
        one_host(request);
        // A server that does not serve says so first, whatever it was asked.
        let mut head = RequestHead::received(request);
        if let (Some(facts), Ok(head)) = (&mut *facts, &head) {
            facts.info.note_authority(head.authority);
        }
        // Asked for only where there is a choice.
        let connection = || self.connection(request);
        let all;
        let listener = match &self.listener {
            Some(listener) => listener,
            None => {
                all = self.mesh.listeners().load();
                match all.as_slice() {
                    [only] => only,
                    all => find(all, connection().as_deref())?,
                }
            }
        };
        let state = listener.state();
        let view = match &**state {
            ServerState::Serving(view) => view,
            ServerState::NotServing(reason) => return Err(MeshError::new(ErrorKind::NotServing, Arc::clone(reason))),
            ServerState::Waiting => {
                let place = format_args!("listener {}", listener.name());
                return Err(MeshError::new(ErrorKind::NotServingYet, "no configuration yet").within(place));
            }
        };
        if let Some(facts) = facts {
            facts.info.note_service(view.listener.service.as_ref());
        }
        let chain = chain(view, connection)?;
        let is_logged = !chain.access_logs.is_empty() || facts.as_ref().is_some_and(|it| it.info.head().is_some());
        let upstream = (chain.onward.is_some() && is_logged).then(Upstream::default);
        if let Some(entry) = &chain.onward {
            request.extensions_mut().insert(Onward {
                entry: Arc::clone(entry),
                upstream: upstream.clone(),
                metrics: chain.metrics.clone(),
                tracing: chain.tracing.clone(),
            });
            if let Some(facts) = facts {
                facts.info.note_edge();
            }
            head = RequestHead::received(request);
            if view.asks_for_names()
                && let (Ok(head), Some(connection)) = (&head, self.connection(request))
                && chain_of_host(view, &connection, head).is_some_and(|other| other.tls != chain.tls)
            {
                // What that asks of clients was not asked of this one.
                return Err(MeshError::new(ErrorKind::NoRoute, "its host has TLS of its own, by another name"));
            }
        }
        let ChainView { routes, paths, underscores, access_logs, metrics, tracing, .. } = chain;
        let head = match self.mesh.tracer() {
            None => head,
            Some(tracer) => {
                let tracing = tracing.as_ref().unwrap_or(tracer.tracing());
                let trace = &mut inherited.get_or_insert_default().trace;
                let begun = match &mut *facts {
                    Some(facts) => trace.begin(tracing, request.headers(), &mut facts.info.random),
                    None => trace.begin(tracing, request.headers(), &mut fastrand::Rng::new()),
                };
                if begun.is_some() || is_logged {
                    self.trace(begun.map(|begun| (begun, tracing)), trace, facts, request);
                    RequestHead::received(request)
                } else {
                    head
                }
            }
        };
        if !access_logs.is_empty() {
            let facts = facts.get_or_insert_with(|| facts_of(request));
            if let Some(inherited) = inherited {
                facts.info.inherited.trace.clone_from(&inherited.trace);
            }
            self.log(access_logs, facts, request);
        }
        if let (Some(upstream), Some(facts)) = (upstream, facts.as_mut()) {
            facts.info.note_upstream(&upstream);
        }
        if let (Some(rules), Some(facts)) = (metrics, facts.as_mut().filter(|facts| facts.info.is_observed())) {
            facts.info.note_metric_rules(rules);
            if rules.needs_head() && facts.info.head().is_none() {
                self.note_head(&mut facts.info, request, self.connection(request).as_deref());
            }
        }
        let mut head = head?;
        match self.underscores.max(*underscores) {
            HeadersWithUnderscores::Allow => {}
            _ if !headers::have_underscores(request.headers()) => {}
            HeadersWithUnderscores::Drop => {
                headers::strip_underscores(request.headers_mut());
                head = RequestHead::received(request)?;
            }
            HeadersWithUnderscores::Reject => {
                return Err(MeshError::new(ErrorKind::BadRequest, "the name of a header has an underscore"));
            }
        }
        // From here on, everybody sees the path that the rules see, and the application, too.
        let is_guarded = routes.is_guarded() || self.authorizers.every.is_some();
        if let Cow::Owned(path) = paths.canonical(head.path(), is_guarded)? {
            set_path(request.uri_mut(), &path)?;
            head = RequestHead::received(request)?;
        }
        // Rules decide by a path, and CONNECT has none, but where it opens a WebSocket (RFC 8441).
        if is_guarded && *head.method == Method::CONNECT && request.uri().path_and_query().is_none() {
            return Err(MeshError::new(ErrorKind::AccessDenied, "CONNECT has no path, which policies decide by"));
        }
        if routes.early().is_some() {
            return self.enter_early(routes, listener, *paths, request, facts);
        }
        // Where nobody looks at tokens and nobody is asked, the request is still as it was seen.
        if routes.authenticator().is_none() && !self.may_ask(routes) {
            let found = self.admit(routes, listener, &head, &[], request, facts.as_deref_mut())?;
            return self.enter(routes, found, &[], request, facts);
        }
        let tokens = authenticate(routes, listener, request)?;
        let tokens = tokens.as_ref().map_or(&[][..], Authenticated::claims_of_all);
        self.authorize(routes, listener, tokens, request, facts)
    }

    /// Whether there are authorizers that may have to be asked, or whose headers have to be taken off.
    #[inline]
    fn may_ask(&self, routes: &RouteTable) -> bool {
        !self.authorizers.is_empty() || !routes.askers().is_empty()
    }

    /// It is said who may do what, of a request whose tokens are known: by authorizers, if there are any, and by policies.
    pub(super) fn authorize<B>(
        &self,
        routes: &Arc<RouteTable>,
        listener: &Arc<ListenerState>,
        tokens: &[Claims],
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Admission, MeshError> {
        match self.ask(routes, listener, tokens, request, facts)? {
            Some(asked) => Ok(asked),
            None => self.let_in(routes, listener, tokens, request, facts),
        }
    }

    /// Asks authorizers about a request, where they have to be: those of policies, and the application's own.
    fn ask<B>(
        &self,
        routes: &Arc<RouteTable>,
        listener: &Arc<ListenerState>,
        tokens: &[Claims],
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Option<Admission>, MeshError> {
        if !self.may_ask(routes) {
            return Ok(None);
        }
        // Also where none of them is asked: what only they set is from nobody else.
        self.authorizers.strip(request.headers_mut());
        let peer = self.connection(request);
        let connection = peer.as_deref().map(|connection| ends_of(connection, request));
        let mut head = RequestHead::received(request)?;
        let mut asked = Vec::new();
        let is_asked = |is_asked| asked.push(is_asked);
        let mut questions = check::questions(routes, &head, request.version(), connection.as_ref(), tokens, is_asked);
        // From here on, what only authorizers set is from them.
        for (asker, is_asked) in routes.askers().iter().zip(asked) {
            asker.strip(request.headers_mut(), is_asked);
        }
        head = RequestHead::received(request)?;
        questions.iter_mut().for_each(|question| {
            question.resolve(&self.authorizers, &head, connection.as_ref(), tokens);
        });
        let own = self.authorizers.every.as_ref().map(|own| own.question(&head, connection.as_ref(), tokens));
        if !questions.is_empty() || own.is_some() {
            facts.get_or_insert_with(|| facts_of(request)).info.waits_for(Stage::Authorizer);
            let (routes, listener) = (Arc::clone(routes), Arc::clone(listener));
            return Ok(Some(Admission::Asked(Box::new(Asked {
                routes,
                listener,
                tokens: tokens.into(),
                questions,
                own,
            }))));
        }
        Ok(None)
    }

    /// Who is let in by the policies, which is told and written down, learns of its route.
    #[inline]
    fn admit<'r, B>(
        &self,
        routes: &'r RouteTable,
        listener: &ListenerState,
        head: &RequestHead<'_>,
        tokens: &[Claims],
        request: &Request<B>,
        facts: Option<&mut Facts>,
    ) -> Result<Found<'r>, MeshError> {
        let mut random = fastrand::Rng::new();
        // Who the peer is, and from where, is asked only where somebody decides by it, or calls are recorded.
        let needs_peer = routes.needs_verdict() || self.mesh.store().calls().is_on();
        // Where nobody decides and nobody wants to know, there is only a route to be found.
        if !needs_peer && facts.is_none() {
            return routes.admit(head, None, tokens, &mut random).into_route();
        }
        let peer = if needs_peer { self.connection(request) } else { None };
        let peer = peer.as_deref();
        let ends = peer.map(|connection| ends_of(connection, request));
        let admission = routes.admit(head, ends, tokens, &mut random);
        tell(admission.verdict(), self.mesh.store().decided(), listener.name(), peer);
        let verdict = *admission.verdict();
        if let Some(facts) = facts {
            facts.info.note_event("policy", || json!({"allowed": verdict.is_allowed, "policy": verdict.policy}));
            if !verdict.is_allowed {
                let policy = verdict.policy.unwrap_or("none");
                facts.info.note_details(format!("rbac_access_denied_matched_policy[{policy}]"));
            }
        }
        let found = admission.into_route();
        calls::record(&self.mesh, head, &verdict, &found, (listener.port(), peer), &mut random);
        found
    }

    /// What the authorizers said of a request is there: it goes on as they want it, or is refused.
    pub(super) fn answered<B>(
        &self,
        asked: &Asked,
        answer: Result<CheckedChanges, Box<Denial>>,
        facts: &mut Option<Recycled<Facts>>,
        request: &mut Request<B>,
    ) -> Admission {
        let facts_of_it = facts.get_or_insert_with(|| facts_of(request));
        let changes = match answer {
            Ok(changes) => changes,
            Err(denial) => {
                facts_of_it.info.note_error(ErrorKind::AccessDenied);
                facts_of_it.info.note_flags(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
                let no_answer = denial.no_answer.as_deref();
                facts_of_it.info.note_details(match no_answer {
                    None => "ext_authz_denied",
                    Some(_) => "ext_authz_error",
                });
                let event = || json!({"allowed": false, "status": denial.status.as_u16(), "no_answer": no_answer});
                facts_of_it.info.note_event("authorizer", event);
                calls::record_refused(&self.mesh, request, asked.listener.port(), || self.connection(request));
                return self::answer(request, check::refusal(*denial, facts_of_it.info.is_grpc));
            }
        };
        facts_of_it.checked = changes.response;
        if changes.is_unchecked {
            self.mesh.count_unchecked();
            facts_of_it.info.note_unchecked();
        }
        with_parts(request, |head| rewrite::apply_to_request(std::slice::from_ref(&changes.request), head));
        let Asked { routes, listener, tokens, .. } = asked;
        let admission = self.let_in(routes, listener, tokens, request, facts);
        admission.unwrap_or_else(|error| self.failed(&error, facts.as_deref_mut(), request))
    }

    /// Nobody is to be asked any more: policies decide.
    fn let_in<B>(
        &self,
        routes: &Arc<RouteTable>,
        listener: &Arc<ListenerState>,
        tokens: &[Claims],
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Admission, MeshError> {
        let head = RequestHead::received(request)?;
        let found = self.admit(routes, listener, &head, tokens, request, facts.as_deref_mut())?;
        self.enter(routes, found, tokens, request, facts)
    }

    /// A request that is let in passes the filters of its route.
    #[inline]
    fn enter<B>(
        &self,
        routes: &Arc<RouteTable>,
        (position, route, destination): Found<'_>,
        tokens: &[Claims],
        request: &mut Request<B>,
        facts: &mut Option<Recycled<Facts>>,
    ) -> Result<Admission, MeshError> {
        if facts.is_none() && destination.filters().is_empty() && destination.response_changes().is_empty() {
            return self.forward(route, destination, request);
        }
        let facts = facts.get_or_insert_with(|| facts_of(request));
        if destination.is_noted() && !facts.info.is_observed() {
            self.observe(&mut facts.info, request);
            facts.info.note_authority(RequestHead::received(request)?.authority);
        }
        let is_labelled = facts.info.metric_rules().is_some_and(|rules| rules.needs_token());
        if destination.is_noted() || is_labelled {
            let connection = self.connection(request);
            facts.info.note_client(connection.as_deref().and_then(ConnectionInfo::peer_identity), tokens);
        }
        facts.info.note_route(&route.name, None);
        facts.info.waits_for(Stage::Application);
        facts.info.note_event("let in", || json!({"route": &*route.name}));
        if let Some(hop) = facts.info.hop() {
            // Its end may be far, and whoever made it may give it up before.
            hop.tell_so_far();
        }
        // Where nothing is done on the way back, nobody looks the route up again.
        if !destination.filters().is_empty() || !destination.response_changes().is_empty() {
            facts.route = Some((Arc::clone(routes), position));
        }
        if let RouteAction::Direct(direct) = &route.action {
            facts.info.note_details("direct_response");
            facts.info.note_event("answered by the configuration", || {
                let body: String = String::from_utf8_lossy(&direct.body).chars().take(LONGEST_REASON).collect();
                json!({"status": direct.status.as_u16(), "body": body})
            });
        }
        if destination.filters().is_empty() {
            return self.forward(route, destination, request);
        }
        let Facts { info, filters_entered, .. } = &mut **facts;
        let passage =
            with_parts(request, |head| filters::on_request(destination.filters(), filters_entered, info, head));
        let is_grpc = info.is_grpc;
        self.passed(passage, is_grpc, route, destination, request)
    }

    /// The filter that held a request back knows more.
    pub(super) fn resume<B>(
        &self,
        decide: Resume,
        facts: &mut Option<Recycled<Facts>>,
        request: &mut Request<B>,
    ) -> Admission {
        if facts.as_ref().and_then(|facts| facts.early.as_ref()).is_some_and(|early| early.is_under_way()) {
            let admission = self.pass_early(Some(decide), request, facts);
            return admission.unwrap_or_else(|error| self.failed(&error, facts.as_deref_mut(), request));
        }
        let facts = facts.as_deref_mut().expect(HAS_FACTS);
        let Facts { info, filters_entered, route, .. } = facts;
        let found = route.as_ref().and_then(|(routes, position)| routes.at(*position));
        let (route, destination) = found.expect("a request that is held back passes the filters of its route");
        let passage =
            with_parts(request, |head| filters::resume(decide, destination.filters(), filters_entered, info, head));
        let admission = self.passed(passage, info.is_grpc, route, destination, request);
        admission.unwrap_or_else(|error| self.failed(&error, Some(facts), request))
    }

    /// The deadline has passed while a filter held the request back.
    pub(super) fn too_late<B>(&self, facts: &mut Facts, request: &Request<B>) -> Admission {
        let error = MeshError::new(ErrorKind::Timeout, "the deadline passed while a filter held the request back");
        self.failed(&error, Some(facts), request)
    }

    fn passed<B>(
        &self,
        passage: Passage,
        is_grpc: bool,
        route: &Route,
        destination: &Destination,
        request: &mut Request<B>,
    ) -> Result<Admission, MeshError> {
        match passage {
            Passage::Passed => self.forward(route, destination, request),
            Passage::Answered(reply) => Ok(answer(request, reply::filter(reply, is_grpc))),
            Passage::Held(callout) => Ok(Admission::Held(callout)),
        }
    }

    /// It is answered with what went wrong.
    fn failed<B>(&self, error: &MeshError, facts: Option<&mut Facts>, request: &Request<B>) -> Admission {
        if let Some(facts) = facts {
            facts.info.note_error(error.kind());
            facts.info.note_event("failed", || followed::failure(error));
        }
        let told = self.keep_from_stranger(error, request);
        let mut response = reply::error(told.as_ref().unwrap_or(error), is_grpc(request.headers()));
        // Who wrote what cannot be understood, or can be in two ways, may mean what follows otherwise, too (RFC 9112, 11.2).
        if error.kind() == ErrorKind::BadRequest && request.version() <= Version::HTTP_11 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if error.kind() == ErrorKind::NoRoute && self.is_misdirected(request) {
            *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        }
        answer(request, response)
    }

    /// Whether a request came to a gateway over a connection for another host: a client that knows them by one certificate has a
    /// chain of its own for this one (RFC 9110, 15.5.20).
    #[cold]
    fn is_misdirected<B>(&self, request: &Request<B>) -> bool {
        let (Some(listener), Some(connection)) = (&self.listener, self.connection(request)) else { return false };
        let (ServerState::Serving(view), Ok(head)) = (&**listener.state(), RequestHead::received(request)) else {
            return false;
        };
        if !view.asks_for_names() || request.extensions().get::<Onward>().is_none() {
            return false;
        }
        let (own, other) = (connection.chain(view), chain_of_host(view, &connection, &head));
        !matches!((own, other), (Some(own), Some(other)) if std::ptr::eq(own, other)) && other.is_some()
    }

    /// What a client is told in the place of a reason that is none of its business: objects, files and lines of the
    /// configuration are for peers that have shown who they are. A server that has no identity itself cannot tell them from
    /// others, and tells everybody. Who runs the server reads it in the log.
    #[cold]
    fn keep_from_stranger<B>(&self, error: &MeshError, request: &Request<B>) -> Option<MeshError> {
        let mut instead = instead(error.kind())?;
        match request.extensions().get::<Onward>() {
            // A gateway is for strangers.
            Some(_) => instead = NO_ANSWER,
            None => _ = self.mesh.certificates().current()?,
        }
        let connection = self.connection(request);
        if connection.as_deref().is_some_and(|connection| connection.peer_identity().is_some()) {
            return None;
        }
        if self.untold.is_due(Instant::now()) {
            let reason = format!("{error:#}");
            match connection {
                Some(_) => {
                    tracing::warn!(reason, "a request was refused; its client has no identity, and was not told why");
                }
                None => tracing::warn!(
                    reason,
                    "a request was refused; who its client is cannot be told without its connection, and it was not told why"
                ),
            }
        }
        Some(MeshError::new(error.kind(), instead))
    }

    /// The last thing before the application.
    #[inline]
    fn forward<B>(
        &self,
        route: &Route,
        destination: &Destination,
        request: &mut Request<B>,
    ) -> Result<Admission, MeshError> {
        // The configuration's own answer.
        if let RouteAction::Direct(direct) = &route.action {
            let reply = reply::direct(direct, is_grpc(request.headers()));
            // So a control plane keeps a server from serving: with the reason, which counts as one of the mesh's own.
            if direct.status == StatusCode::SERVICE_UNAVAILABLE {
                let reason = MeshError::new(ErrorKind::NotServing, &*String::from_utf8_lossy(&direct.body));
                if self.keep_from_stranger(&reason, request).is_some() {
                    return Err(reason);
                }
            }
            return Ok(answer(request, reply));
        }
        // What its route says of it is done where it goes on.
        if goes_on(route) && request.extensions().get::<Onward>().is_some() {
            return Ok(Admission::Admit);
        }
        check_action(route)?;
        let changes = destination.request_changes();
        if !changes.is_empty() {
            with_parts(request, |head| rewrite::apply_to_request(changes, head));
        }
        Ok(Admission::Admit)
    }
}

/// What policies ask of a connection.
pub(super) fn ends(connection: &ConnectionInfo) -> Connection<'_> {
    Connection {
        peer: connection.peer_identity(),
        source: connection.direct,
        remote: connection.peer,
        destination: connection.local,
        server_name: connection.server_name(),
    }
}

/// The same for a request, which a proxy in front may have sent for somebody else.
fn ends_of<'c, B>(connection: &'c ConnectionInfo, request: &Request<B>) -> Connection<'c> {
    Connection { remote: sender_of(connection, request), ..ends(connection) }
}

/// Who has sent a request.
pub(super) fn sender_of<B>(connection: &ConnectionInfo, request: &Request<B>) -> SocketAddr {
    request.extensions().get().map_or(connection.peer, |ClientAddress(client)| *client)
}

/// What the tokens of a request say, where somebody looks at them. What decides from here on sees what the application will see.
pub(super) fn authenticate<'r, B>(
    routes: &'r RouteTable,
    listener: &ListenerState,
    request: &mut Request<B>,
) -> Result<Option<Authenticated<'r>>, MeshError> {
    let Some(authenticator) = routes.authenticator() else { return Ok(None) };
    let head = RequestHead::received(request)?;
    let known = authenticator.authenticate(&head, SystemTime::now());
    let known = known.inspect_err(|why| tell_of_token(why, listener.name()))?;
    if known.changes() {
        with_parts(request, |head| known.apply(head));
    }
    Ok(Some(known))
}

/// Says why a token was refused.
fn tell_of_token(why: &Refusal, listener: &ListenerName) {
    tracing::debug!(%listener, ?why, "the token of a request is no good");
}

/// Says who was refused by which policy, and what those would have done that are only tried; and counts it.
#[inline]
pub(super) fn tell(
    verdict: &Verdict<'_>,
    decided: &Decided,
    listener: &ListenerName,
    connection: Option<&ConnectionInfo>,
) {
    if verdict.is_allowed && verdict.shadow.is_none() && verdict.logged.is_none() {
        return;
    }
    let peer = connection.and_then(ConnectionInfo::peer_identity).map_or("unknown", SpiffeId::as_str);
    let named = |policy: Option<&str>| policy.unwrap_or("no policy is for it").to_owned();
    if !verdict.is_allowed {
        decided.note(verdict.policy, Decision::Denied);
        tracing::debug!(%listener, peer, policy = named(verdict.policy), "a policy refused");
    }
    if let Some(shadow) = &verdict.shadow {
        let would = if shadow.is_allowed { Decision::WouldAllow } else { Decision::WouldDeny };
        decided.note(shadow.policy, would);
        tracing::debug!(%listener, peer, policy = named(shadow.policy), would = would.as_str(), "a policy that is only tried");
    }
    if let Some(policy) = verdict.logged {
        decided.note(Some(policy), Decision::Audited);
        tracing::info!(%listener, peer, policy, is_allowed = verdict.is_allowed, "audit");
    }
}

/// The mesh answers itself.
pub(super) fn answer<B>(request: &Request<B>, response: Response<Bytes>) -> Admission {
    Admission::Answer(Box::new(reply::to(request.method(), response)))
}

/// The chain of a gateway that a client would be given which asked for a request's host by name.
fn chain_of_host<'v>(
    view: &'v ServerView,
    connection: &ConnectionInfo,
    head: &RequestHead<'_>,
) -> Option<&'v ChainView> {
    let host = head.authority.rsplit_once(':').map_or(head.authority, |(host, _)| host);
    view.chain(connection.local, connection.peer, connection.tls().is_some(), Some(host))
}

/// A connection's filter chain. Where the connection is not known, the only one.
fn chain(view: &ServerView, connection: impl Fn() -> Option<Arc<ConnectionInfo>>) -> Result<&ChainView, MeshError> {
    let refused = |kind, what: &str| MeshError::new(kind, format!("listener {}: {what}", view.listener.name));
    let chain = match (view.listener.filter_chains.as_slice(), view.chains.as_slice()) {
        // The default chain alone.
        ([], [only]) if !view.asks_for_tls() => only,
        (_, chains) => match (connection(), chains) {
            (Some(connection), _) => {
                let chain = connection
                    .chain(view)
                    .ok_or_else(|| refused(ErrorKind::NoRoute, "no filter chain matches the connection"))?;
                chain.admits(connection.security()).map_err(|reason| refused(ErrorKind::Security, &reason))?;
                return Ok(chain);
            }
            (None, [only]) if !view.asks_for_tls() => only,
            (None, [only]) => {
                let reason = only.admits(Secured::Plaintext).err().unwrap_or_else(|| "it asks for TLS".into());
                let what = match only.tls {
                    ServerTls::Mutual | ServerTls::Edge(_) => format!("{reason}, and {UNKNOWN_CONNECTION}"),
                    ServerTls::None | ServerTls::Unusable(_) => reason.to_string(),
                };
                return Err(refused(ErrorKind::Security, &what));
            }
            (None, _) => {
                let what = format!("several filter chains, and {UNKNOWN_CONNECTION}");
                return Err(refused(ErrorKind::NoListener, &what));
            }
        },
    };
    // The connection may be older than what is asked of it.
    chain.admits(Secured::Plaintext).map_err(|reason| refused(ErrorKind::Security, &reason))?;
    Ok(chain)
}

/// Where the target names an authority, that is the host of the request, whatever its `Host` says (RFC 9112, 3.2.2; RFC 9113,
/// 8.3.1): everybody who decides sees the one that the application sees. What is malformed stays, to be refused.
#[inline]
fn one_host<B>(request: &mut Request<B>) {
    let Some(authority) = request.uri().authority() else { return };
    let differs = |host: &HeaderValue| host.as_bytes() != authority.as_str().as_bytes();
    if request.headers().get(HOST).is_some_and(differs)
        && RequestHead::received(request).is_ok()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
}

/// Does something with the parts of a request that stays in its place.
pub(super) fn with_parts<B, T>(request: &mut Request<B>, change: impl FnOnce(&mut Parts) -> T) -> T {
    let (mut parts, ()) = Request::new(()).into_parts();
    let mut swap = |parts: &mut Parts| {
        std::mem::swap(&mut parts.method, request.method_mut());
        std::mem::swap(&mut parts.uri, request.uri_mut());
        std::mem::swap(&mut parts.version, request.version_mut());
        std::mem::swap(&mut parts.headers, request.headers_mut());
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
    };
    swap(&mut parts);
    let result = change(&mut parts);
    swap(&mut parts);
    result
}

/// Whether a gateway sends its requests on, or elsewhere.
pub(super) fn goes_on(route: &Route) -> bool {
    matches!(route.action, RouteAction::Forward(_) | RouteAction::Redirect(_))
}

/// A server's route has no other action (gRFC A36), but for the answer that is given at once.
fn check_action(route: &Route) -> Result<(), MeshError> {
    let reason = match &route.action {
        RouteAction::NonForwarding => return Ok(()),
        RouteAction::Unusable(reason) => Arc::clone(reason),
        _ => "a server's route must have a non-forwarding action".into(),
    };
    Err(MeshError::new(ErrorKind::NoRoute, reason).within(format_args!("route {}", route.name)))
}
