//! What is observed of a request: its facts, for whoever is told of requests, and what is noted of it for spans, access logs and
//! those who follow it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{Request, Version};
use mesh_core::identity::SpiffeId;
use mesh_core::live_trace::{MARK, Mark, Side};
use mesh_core::model::{AccessLog, Tracing};
use mesh_core::recycled::Recycled;
use mesh_core::request::{RequestHead, is_grpc};
use mesh_core::request_info::{Deadline, Direction, Interest, Messages, RequestInfo, interest_of};
use mesh_core::trace::{Begun, Tables, Trace};
use mesh_core::workload::{Peer, Workload};
use serde_json::json;

use crate::connection::ConnectionInfo;
use crate::server::request::{ServerContext, sender_of};
use crate::server::response::Facts;

impl ServerContext {
    /// The facts of a request, where somebody is told of them.
    #[inline]
    pub(super) fn observed<B>(&self, request: &mut Request<B>) -> Option<Recycled<Facts>> {
        let is_looking = self.live_traces.is_looking();
        let interest = interest_of(self.mesh.observers());
        if interest == Interest::Nothing {
            return if is_looking { self.follow(None, request) } else { None };
        }
        let (mut facts, connection) = (facts_of(request), self.connection(request));
        self.observe_by(&mut facts.info, request, connection.as_deref(), interest);
        if let Some(telemetry) = self.mesh.telemetry() {
            let began = facts.info.started;
            let (source, is_secured, wants) = telemetry.source(request.headers_mut(), connection.as_deref(), began);
            facts.info.note_source(source, is_secured);
            facts.introduces = wants.then(|| Arc::clone(telemetry));
            if let Some(grpc) = telemetry.grpc().filter(|_| facts.info.is_grpc) {
                facts.info.note_call(Box::new(grpc.server(request.uri().path())));
            }
        }
        if is_looking { self.follow(Some(facts), request) } else { Some(facts) }
    }

    /// Somebody looks at requests: at all of them, as the admin port does, or at some, of which this may be one.
    #[inline(never)]
    fn follow<B>(&self, facts: Option<Recycled<Facts>>, request: &Request<B>) -> Option<Recycled<Facts>> {
        // Whether it is well formed is asked later, and is of interest here, too.
        let head = RequestHead::of_parts(request.method(), request.uri(), request.headers());
        let started = facts.as_ref().map_or_else(Instant::now, |facts| facts.info.started);
        let place = self.live_traces.enter(Side::Server, &head, started);
        let hop = self.live_traces.begin(Side::Server, &head, || {
            let mark = request.headers().get(MARK).and_then(|mark| Mark::parse(mark.as_bytes()));
            (mark, Instant::now(), SystemTime::now())
        });
        if place.is_none() && hop.is_none() {
            return facts;
        }
        let mut facts = facts.unwrap_or_else(|| facts_of(request));
        let info = &mut facts.info;
        if !info.is_observed() {
            self.observe(info, request);
        }
        if let Some(place) = place {
            info.take_place(place);
        }
        let Some(hop) = hop else { return Some(facts) };
        let connection = self.connection(request);
        if info.head().is_none() {
            self.note_head(info, request, connection.as_deref());
        }
        info.follow(hop);
        info.note_event("received", || {
            let peer = connection.as_deref().and_then(ConnectionInfo::peer_identity);
            json!({
                "peer": peer.map(SpiffeId::as_str),
                "from": connection.as_deref().map(|connection| sender_of(connection, request).to_string()),
                "at": connection.as_deref().map(|connection| connection.local.to_string()),
            })
        });
        Some(facts)
    }

    /// Notes from here on what becomes of the request.
    pub(super) fn observe<B>(&self, info: &mut RequestInfo, request: &Request<B>) {
        let interest = interest_of(self.mesh.observers());
        self.observe_by(info, request, self.connection(request).as_deref(), interest);
    }

    /// The same, where it is known who is at the other end, and what the observers want to know.
    fn observe_by<B>(
        &self,
        info: &mut RequestInfo,
        request: &Request<B>,
        connection: Option<&ConnectionInfo>,
        interest: Interest,
    ) {
        info.observe(self.mesh.observers(), Direction::Inbound, request.method());
        if let Some(connection) = connection {
            info.note_peer(sender_of(connection, request));
        }
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        info.note_request_body(length.unwrap_or(0), Messages::default());
        if interest == Interest::Head {
            self.note_head(info, request, connection);
        }
    }

    /// Spans of a request are recorded, or its head is: who is told of it is told its id, and so is the application, which sees
    /// the span that it works for.
    #[cold]
    pub(super) fn trace<B>(
        &self,
        begun: Option<(Begun, &Arc<Tracing>)>,
        trace: &Trace,
        facts: &mut Option<Recycled<Facts>>,
        request: &mut Request<B>,
    ) {
        trace.tell_request_id(request.headers_mut());
        if let Some((begun, tracing)) = begun {
            trace.tell(Some(begun.context), Tables::Kept, request.headers_mut());
            let facts = facts.get_or_insert_with(|| facts_of(request));
            if !facts.info.is_observed() {
                self.observe(&mut facts.info, request);
                facts.info.note_authority(RequestHead::received(request).map_or("", |head| head.authority));
            }
            facts.info.note_span(begun, tracing);
        }
        if let Some(facts) = facts
            && (begun.is_some() || facts.info.head().is_some())
        {
            facts.info.inherited.trace.clone_from(trace);
            self.note_head(&mut facts.info, request, self.connection(request).as_deref());
        }
    }

    /// The configuration wants it in these access logs.
    #[cold]
    pub(super) fn log<B>(&self, logs: &Arc<[AccessLog]>, facts: &mut Facts, request: &Request<B>) {
        if !facts.info.is_observed() {
            self.observe(&mut facts.info, request);
            facts.info.note_authority(RequestHead::received(request).map_or("", |head| head.authority));
        }
        facts.info.note_logs(logs);
        if facts.info.source().is_none() {
            let connection = self.connection(request);
            let id = connection.as_deref().and_then(ConnectionInfo::peer_identity).cloned();
            let is_secured = id.is_some();
            facts.info.note_source(id.map(|id| Arc::new(Peer::new(Workload::default(), Some(id)))), is_secured);
        }
        if facts.info.head().is_none() {
            self.note_head(&mut facts.info, request, self.connection(request).as_deref());
        }
    }

    pub(super) fn note_head<B>(
        &self,
        info: &mut RequestInfo,
        request: &Request<B>,
        connection: Option<&ConnectionInfo>,
    ) {
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        info.note_head(path, request.version(), request.headers());
        if let Some(connection) = connection {
            let name = connection.tls().and_then(|tls| tls.sni.as_ref());
            info.note_connection(connection.local, connection.direct, name);
        }
    }
}

/// The facts of a request that arrives now.
pub(super) fn facts_of<B>(request: &Request<B>) -> Recycled<Facts> {
    let (now, random) = (Instant::now(), fastrand::Rng::new());
    let mut facts = Recycled::new(|| Facts::new(now, random));
    facts.info.is_grpc = is_grpc(request.headers());
    facts.info.is_http2 = request.version() == Version::HTTP_2;
    facts.info.deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    facts
}
