//! What data planes note of a request, where somebody is told of it in the end.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version};
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::{CallCounter, Heads, Messages, RequestInfo, grpc_status};
use crate::error::{ErrorKind, MeshError};
use crate::id::ClusterName;
use crate::identity::SpiffeId;
use crate::jwt::Claims;
use crate::live_trace::{Hop, Place, Stage};
use crate::model::{AccessLog, BLACK_HOLE_CLUSTER, MetricRules, ServiceNames};
use crate::response_flags::ResponseFlags;
use crate::state::EndpointState;
use crate::workload::Peer;

impl RequestInfo {
    /// Notes what was asked for.
    #[inline]
    pub fn note_authority(&mut self, authority: &str) {
        if let Some(record) = &mut self.record {
            record.authority = SmallVec::from_slice(authority.as_bytes());
        }
    }

    /// Notes who asks, on a server.
    #[inline]
    pub fn note_peer(&mut self, peer: SocketAddr) {
        if let Some(record) = &mut self.record {
            record.peer = Some(peer);
        }
    }

    /// Notes who its client has shown to be, and what its tokens say, on a server.
    pub fn note_client(&mut self, client: Option<&SpiffeId>, tokens: &[Claims]) {
        if let Some(record) = &mut self.record {
            (record.client, record.tokens) = (client.cloned(), tokens.into());
        }
    }

    /// Notes who is at the other end: on a server, the client. `is_secured`, as mutual TLS has shown.
    #[inline]
    pub fn note_source(&mut self, source: Option<Arc<Peer>>, is_secured: bool) {
        if let Some(record) = &mut self.record {
            (record.source, record.is_secured) = (source, is_secured);
        }
    }

    /// Notes that it is one that a gateway has from outside of the mesh, whose words are a stranger's.
    pub fn note_edge(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_at_edge = true;
        }
    }

    /// Notes that the present try goes over mutual TLS, or not.
    #[inline]
    pub fn note_secured(&mut self, is_secured: bool) {
        if let Some(record) = &mut self.record {
            record.is_secured = is_secured;
        }
    }

    /// Notes where it goes.
    #[inline]
    pub fn note_route(&mut self, route: &Arc<str>, cluster: Option<&ClusterName>) {
        if let Some(record) = &mut self.record {
            record.route = Some(Arc::clone(route));
            record.cluster = cluster.cloned();
        }
    }

    /// Notes that it leads nowhere: its target does not exist, or may not be called.
    pub fn note_nowhere(&mut self, route: &'static str) {
        self.note_route(&route.into(), Some(&BLACK_HOLE_CLUSTER.into()));
    }

    /// Notes the service that it is for.
    #[inline]
    pub fn note_service(&mut self, service: Option<&Arc<ServiceNames>>) {
        if let Some(record) = &mut self.record {
            record.service = service.cloned();
        }
    }

    /// Notes the head of the request as it came, where somebody wants to know.
    pub fn note_head(&mut self, path: &str, version: Version, headers: &HeaderMap) {
        if let Some(record) = &mut self.record {
            let (path, request) = (path.into(), headers.clone());
            record.heads = Some(Box::new(Heads { path, version, request, ..Heads::default() }));
        }
    }

    /// Notes where its connection ends, on a server, who has connected, and the name that its client asked for in TLS.
    pub fn note_connection(&mut self, local: SocketAddr, direct: SocketAddr, server_name: Option<&Arc<str>>) {
        if let Some(heads) = self.heads() {
            (heads.local, heads.direct, heads.server_name) = (Some(local), Some(direct), server_name.cloned());
        }
    }

    /// Notes that it is a connection that is not HTTP: it has no method, no path and no status.
    pub fn note_bytes(&mut self) {
        if let Some(record) = &mut self.record {
            (record.is_bytes, record.heads) = (true, Some(Box::default()));
        }
    }

    /// Notes how many bytes such a connection's client sent, and was sent.
    pub fn note_passed(&mut self, received: u64, sent: u64) {
        if let Some(record) = &mut self.record {
            (record.request_bytes, record.response_bytes) = (received, sent);
        }
    }

    /// Notes that the configuration wants it in these access logs.
    pub fn note_logs(&mut self, logs: &Arc<[AccessLog]>) {
        if let Some(record) = &mut self.record {
            record.logs = Some(Arc::clone(logs));
        }
    }

    /// Follows it from here on, for somebody who asks why it goes where it goes.
    pub fn follow(&mut self, hop: Box<Hop>) {
        if let Some(record) = &mut self.record {
            record.hop = Some(hop);
        }
    }

    /// Has it seen while it is under way.
    pub fn take_place(&mut self, place: Place) {
        if let Some(record) = &mut self.record {
            record.place = Some(place);
        }
    }

    /// Says what it waits for from here on.
    #[inline]
    pub fn waits_for(&self, stage: Stage) {
        if let Some(place) = self.record.as_ref().and_then(|record| record.place.as_ref()) {
            place.waits_for(stage);
        }
    }

    /// Whether who follows it is told the values of a header.
    pub fn tells_header(&self, name: &str) -> bool {
        let hop = self.record.as_ref().and_then(|record| record.hop.as_ref());
        hop.is_some_and(|hop| hop.tells_header(name))
    }

    /// Tells who follows it what happens now, as an object.
    #[inline]
    pub fn note_event(&mut self, what: &str, of_it: impl FnOnce() -> Value) {
        if let Some(hop) = self.record.as_mut().and_then(|record| record.hop.as_mut()) {
            hop.note(what, of_it());
        }
    }

    /// Counts it as a call of gRPC, by the names that gRPC has for that.
    pub fn note_call(&mut self, call: Box<dyn CallCounter>) {
        if let Some(record) = &mut self.record {
            record.call = Some(call);
        }
    }

    #[inline]
    pub(super) fn call_mut(&mut self) -> Option<&mut (dyn CallCounter + 'static)> {
        self.record.as_mut()?.call.as_deref_mut()
    }

    /// Notes that it is counted in another way than usual.
    pub fn note_metric_rules(&mut self, rules: &Arc<MetricRules>) {
        if let Some(record) = &mut self.record {
            record.metrics = Some(Arc::clone(rules));
        }
    }

    fn heads(&mut self) -> Option<&mut Heads> {
        self.record.as_mut()?.heads.as_deref_mut()
    }

    /// Notes Envoy's flags, besides those of its error.
    #[inline]
    pub fn note_flags(&mut self, flags: ResponseFlags) {
        if let Some(record) = &mut self.record {
            record.flags |= flags;
        }
    }

    /// Notes why it was answered as it was. What was noted first counts.
    pub fn note_details(&mut self, details: impl Into<Cow<'static, str>>) {
        if let Some(record) = &mut self.record {
            record.details.get_or_insert_with(|| details.into());
        }
    }

    /// Notes how much of the request's body was sent, or on a server read.
    #[inline]
    pub fn note_request_body(&mut self, bytes: u64, messages: Messages) {
        if let Some(record) = &mut self.record {
            (record.request_bytes, record.request_messages) = (bytes, messages);
        }
    }

    /// Notes a try, and the endpoint that it goes to.
    #[inline]
    pub fn note_attempt(&mut self, endpoint: &Arc<EndpointState>) {
        self.attempts = self.attempts.saturating_add(1);
        if let Some(record) = &mut self.record {
            record.endpoint = Some(Arc::clone(endpoint));
            if let Some(place) = &record.place {
                place.goes_to(endpoint.id());
            }
            if let Some(heads) = &mut record.heads {
                heads.attempts.push((self.attempts, Instant::now()));
                heads.transport_failure = None;
                if let Some(hop) = &mut record.hop {
                    hop.note("picked", json!({"attempt": self.attempts, "endpoint": endpoint.id().to_string()}));
                }
            }
        }
        let number = self.attempts;
        if let Some(call) = self.call_mut() {
            call.attempt(number, endpoint, Instant::now());
        }
        if self.spans.is_some() {
            self.note_attempt_span(endpoint);
        }
    }

    /// Notes why the present try got no connection, as Envoy writes it: without blanks, since lines are split at them.
    pub fn note_transport_failure(&mut self, error: &MeshError) {
        const LONGEST: usize = 256;
        if let Some(heads) = self.heads() {
            let text: String = format!("{error:#}").chars().take(LONGEST).collect();
            heads.transport_failure = Some(text.replace(' ', "_").into());
        }
    }

    /// Notes that the answer is that of an earlier try, by its number, which went to this endpoint.
    pub fn note_winner(&mut self, number: u32, endpoint: &Arc<EndpointState>) {
        if let Some(spans) = &mut self.spans {
            spans.winner = number;
        }
        if let Some(record) = &mut self.record {
            record.endpoint = Some(Arc::clone(endpoint));
            if let Some(heads) = &mut record.heads {
                heads.attempts.retain(|(begun, _)| *begun == number);
            }
        }
    }

    /// Notes the head of the response. Where it is all of it, as `is_end` says, its headers are a gRPC response's
    /// trailers (trailers-only).
    #[inline]
    pub fn note_response(&mut self, status: StatusCode, headers: &HeaderMap, is_end: bool) {
        if let Some(record) = &mut self.record {
            record.status = Some(status);
            if is_end {
                record.grpc_status = grpc_status(headers);
            }
            if let Some(place) = &record.place {
                place.waits_for(Stage::Body);
            }
            if let Some(heads) = &mut record.heads {
                heads.response = headers.clone();
                heads.upstream_time = heads.attempts.last().map(|(_, began)| began.elapsed());
                if let Some(hop) = &mut record.hop {
                    hop.note("answered", json!({"status": status.as_u16()}));
                }
            }
        }
    }

    /// Notes data of the response's body.
    #[inline]
    pub fn note_response_data(&mut self, data: &Bytes) {
        let is_grpc = self.is_grpc;
        if let Some(record) = &mut self.record {
            record.response_bytes = record.response_bytes.saturating_add(data.len() as u64);
            if is_grpc {
                record.response_messages.pass(data);
            }
        }
    }

    /// Notes the trailers of the response.
    #[inline]
    pub fn note_trailers(&mut self, trailers: &HeaderMap) {
        if let Some(record) = &mut self.record {
            record.grpc_status = grpc_status(trailers).or(record.grpc_status);
            if let Some(heads) = &mut record.heads {
                heads.trailers = trailers.clone();
            }
        }
    }

    /// Notes that it failed, or that its response broke off.
    pub fn note_error(&mut self, error: ErrorKind) {
        if let Some(record) = &mut self.record {
            record.error = Some(error);
        }
    }

    /// Notes that an authorizer gave no answer about it, and that it passes all the same.
    pub fn note_unchecked(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_unchecked = true;
        }
    }

    /// Notes that the response came to its end.
    #[inline]
    pub fn note_complete(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_complete = true;
        }
    }
}
