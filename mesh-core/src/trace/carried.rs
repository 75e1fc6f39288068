//! What a request carries of a trace: read from its headers, handed on to the requests that are made for it, told in theirs.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::b3::{self, B3};
use super::text::{header_value, write_hex};
use super::{SpanId, TraceContext, TraceId};
use crate::model::{Fraction, TraceHeaders, Tracing};

/// W3C's header of a trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What everything that is done for one request of a user has in common (Envoy's).
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const B3_SINGLE: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// Who asks for a trace (Envoy's).
const CLIENT_TRACE_ID: &str = "x-client-trace-id";

/// How much of other headers is handed on, in bytes and in number: W3C asks for 512 bytes of `tracestate`, and 8,192 of
/// `baggage`.
const MOST_BYTES: usize = 8192 + 1024;
const MOST_HEADERS: usize = 24;

/// What a request carries of a trace. A server's layer finds it in the headers of a request, and the requests that are made
/// meanwhile tell it in theirs, whether anything is recorded here or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    parent: Parent,
    is_b3_single: bool,
    is_b3_multi: bool,
    /// `traceparent` is told.
    is_w3c: bool,
    request_id: Option<RequestId>,
    /// Handed on as they came: `tracestate`, `baggage`, and B3's as long as no span of this process stands in their place.
    rest: Option<Arc<[(HeaderName, HeaderValue)]>>,
}

/// The id of a request. One that was made here is written once somebody is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RequestId {
    Told(HeaderValue),
    Made([u64; 2]),
}

impl RequestId {
    fn to_value(&self) -> HeaderValue {
        match self {
            RequestId::Told(value) => value.clone(),
            RequestId::Made(chance) => header_value(&uuid(*chance)),
        }
    }
}

/// What was decided before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parent {
    ids: Option<(TraceId, SpanId)>,
    flags: u8,
    /// `None`: nothing yet.
    is_sampled: Option<bool>,
}

/// What becomes of values that are new with each request, in the tables that both sides of an HTTP/2 connection keep of headers
/// (HPACK). There they are of no use to later requests: each is looked for among all that came before, and drives out what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// They go in, as others do, and with them the names, by which later requests are shorter. So it is of a connection's first
    /// request, and wherever there are no tables.
    Kept,
    /// They are sent by their names, and stay out (RFC 7541, 6.2.3).
    Spared,
}

impl Tables {
    #[inline]
    fn new_value(self, mut value: HeaderValue) -> HeaderValue {
        value.set_sensitive(self == Tables::Spared);
        value
    }
}

/// A span that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Begun {
    /// What it is.
    pub context: TraceContext,
    /// The span that it is a part of; `None` for the first of a trace.
    pub parent: Option<SpanId>,
}

impl Trace {
    /// Whether a header of this name may be one of a trace. Few are: the starts of names tell.
    #[inline]
    pub fn may_have(name: &HeaderName) -> bool {
        matches!(
            name.as_str().as_bytes(),
            [b't', b'r', b'a', b'c', b'e', ..]
                | [b'x', b'-', b'r' | b'b', ..]
                | [b'b', b'3', ..]
                | [b'b', b'a', b'g', ..]
        )
    }

    /// What these headers say. What cannot be understood says nothing.
    pub fn of_headers(headers: &HeaderMap) -> Self {
        let mut trace = Trace::default();
        let (mut parents, mut parent, mut single, mut is_multi, mut is_rest) = (0, None, None, false, false);
        for (name, value) in headers {
            match name.as_str() {
                "traceparent" => (parents, parent) = (parents + 1, TraceContext::parse(value.as_bytes())),
                "x-request-id" => _ = trace.request_id.get_or_insert_with(|| RequestId::Told(value.clone())),
                "b3" => single = b3::single(value.as_bytes()),
                "tracestate" | "baggage" => is_rest = true,
                name => is_multi |= name.starts_with("x-b3-"),
            }
        }
        // Of several, none is the right one.
        if let Some(context) = parent.filter(|_| parents == 1) {
            trace.take(context);
        }
        let multi = is_multi.then(|| b3::multi(headers)).flatten();
        (trace.is_b3_single, trace.is_b3_multi) = (single.is_some(), multi.is_some());
        if let (false, Some(B3 { ids, is_sampled })) = (trace.is_w3c, single.or(multi)) {
            trace.parent = Parent { ids, flags: 0, is_sampled };
        }
        if is_rest || trace.is_b3_single || trace.is_b3_multi {
            trace.keep_rest(headers);
        }
        trace
    }

    /// Keeps what is handed on as it came.
    fn keep_rest(&mut self, headers: &HeaderMap) {
        // Where it is too much, a trace goes on without its baggage, or without that and its state.
        for (has_baggage, has_state) in [(true, true), (false, true), (false, false)] {
            let is_handed_on = |name: &HeaderName| match name.as_str() {
                "tracestate" => has_state && self.is_w3c,
                "baggage" => has_baggage,
                "b3" => self.is_b3_single,
                name => self.is_b3_multi && name.starts_with("x-b3-"),
            };
            let rest = || headers.iter().filter(|(name, _)| is_handed_on(name));
            let (bytes, count) = rest().fold((0, 0), |(bytes, count), (_, value)| (bytes + value.len(), count + 1));
            if count <= MOST_HEADERS && bytes <= MOST_BYTES {
                let rest: Arc<[_]> = rest().map(|(name, value)| (name.clone(), value.clone())).collect();
                self.rest = (count > 0).then_some(rest);
                return;
            }
        }
    }

    fn take(&mut self, context: TraceContext) {
        let TraceContext { trace_id, span_id, flags } = context;
        self.parent = Parent { ids: Some((trace_id, span_id)), flags, is_sampled: Some(context.is_sampled()) };
        self.is_w3c = true;
    }

    /// Whether it says nothing at all.
    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        let Trace { parent, is_b3_single, is_b3_multi, is_w3c, request_id, rest } = self;
        let is_any = *is_b3_single || *is_b3_multi || *is_w3c || request_id.is_some() || rest.is_some();
        !is_any && *parent == Parent::default()
    }

    /// Whether there is anything to be told.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.is_w3c && self.request_id.is_none() && self.rest.is_none()
    }

    /// The step of a trace that requests are made for; `None` where there is none, or nobody has said whether it is recorded.
    pub fn context(&self) -> Option<TraceContext> {
        let ((trace_id, span_id), is_sampled) = (self.parent.ids?, self.parent.is_sampled?);
        let sampled = if is_sampled { TraceContext::SAMPLED } else { 0 };
        Some(TraceContext { trace_id, span_id, flags: self.parent.flags | sampled })
    }

    /// The request's id (`x-request-id`).
    pub fn request_id(&self) -> Option<HeaderValue> {
        self.request_id.as_ref().map(RequestId::to_value)
    }

    /// A request of this process, which says some of it itself: that goes before what it inherits.
    pub fn or_own(&mut self, headers: &HeaderMap) {
        if !headers.keys().any(Trace::may_have) {
            return;
        }
        let own = Trace::of_headers(headers);
        if own.parent == Parent::default() {
            self.request_id = own.request_id.or(self.request_id.take());
        } else {
            let request_id = own.request_id.clone().or(self.request_id.take());
            *self = Trace { request_id, ..own };
        }
    }

    /// Decides whether a span begins: as its parent was decided on, and else by chance. Where none does, what is told is not
    /// changed, but for a trace that begins here without being recorded, so that nobody further on begins another one.
    /// `headers` are the request's.
    #[inline]
    pub fn begin(&mut self, tracing: &Tracing, headers: &HeaderMap, random: &mut fastrand::Rng) -> Option<Begun> {
        if self.request_id.is_none() {
            self.request_id = Some(RequestId::Made([random.u64(..), random.u64(..)]));
        }
        let (trace_id, parent) = match self.parent.ids {
            Some((trace_id, span_id)) => (trace_id, Some(span_id)),
            None => (TraceId::random(random), None),
        };
        let position = trace_id.position();
        let is_within = |share: Fraction| share.contains(position);
        let is_wanted = self
            .parent
            .is_sampled
            .unwrap_or_else(|| is_within(tracing.random) || asks(headers) && is_within(tracing.client));
        let flags = if parent.is_none() { TraceContext::RANDOM } else { self.parent.flags & TraceContext::RANDOM };
        let mut context = TraceContext { trace_id, span_id: SpanId::random(random), flags };
        if !is_wanted || !is_within(tracing.overall) {
            if self.parent == Parent::default() {
                self.take(context);
            }
            return None;
        }
        context.flags |= TraceContext::SAMPLED;
        self.enter(context, tracing.headers, parent.is_none());
        Some(Begun { context, parent })
    }

    /// From here on, requests are made for this span.
    fn enter(&mut self, context: TraceContext, headers: TraceHeaders, is_first: bool) {
        if is_first && headers == TraceHeaders::B3 && !self.is_b3_single {
            self.is_b3_multi = true;
        }
        self.take(context);
        let is_of_b3 = |name: &HeaderName| name.as_str() == "b3" || name.as_str().starts_with("x-b3-");
        if let Some(rest) = self.rest.as_ref().filter(|rest| rest.iter().any(|(name, _)| is_of_b3(name))) {
            let others: Arc<[_]> = rest.iter().filter(|(name, _)| !is_of_b3(name)).cloned().collect();
            self.rest = (!others.is_empty()).then_some(others);
        }
    }

    /// Tells a request of it. `step` is the span that it is made for, where that is one of this process; what the
    /// application has set otherwise stays.
    #[inline]
    pub fn tell(&self, step: Option<TraceContext>, tables: Tables, headers: &mut HeaderMap) {
        if !self.is_empty() || step.is_some() {
            self.tell_all(step, tables, headers);
        }
    }

    fn tell_all(&self, step: Option<TraceContext>, tables: Tables, headers: &mut HeaderMap) {
        if self.rest.is_none() && !headers.keys().any(Trace::may_have) {
            // As nearly always: there is nothing that could stand in the way.
            if let Some(id) = self.request_id() {
                headers.insert(REQUEST_ID, tables.new_value(id));
            }
            match (step, self.context()) {
                (Some(step), _) => self.tell_step(step, tables, headers),
                (None, Some(context)) if self.is_w3c => {
                    headers.insert(TRACEPARENT, tables.new_value(context.to_value()));
                }
                _ => {}
            }
            return;
        }
        self.tell_request_id(headers);
        let has_own = headers.contains_key(TRACEPARENT)
            || headers.contains_key(B3_SINGLE)
            || headers.contains_key(B3_TRACE_ID)
            || headers.contains_key(B3_SAMPLED);
        // Looked up before any is added: one may come several times.
        let mut missing = 0_u32;
        for (index, (name, _)) in self.rest.iter().flat_map(|rest| rest.iter()).enumerate() {
            let is_apart = name.as_str() == "baggage";
            missing |= u32::from((is_apart || step.is_some() || !has_own) && !headers.contains_key(name)) << index;
        }
        for (index, (name, value)) in self.rest.iter().flat_map(|rest| rest.iter()).enumerate() {
            if missing & (1 << index) != 0 {
                headers.append(name, value.clone());
            }
        }
        match (step, self.context()) {
            (Some(step), _) => self.tell_step(step, tables, headers),
            (None, Some(context)) if self.is_w3c && !has_own => {
                headers.insert(TRACEPARENT, tables.new_value(context.to_value()));
            }
            _ => {}
        }
    }

    /// Gives a request its id, unless it has one.
    pub fn tell_request_id(&self, headers: &mut HeaderMap) {
        if let Some(id) = self.request_id.as_ref().filter(|_| !headers.contains_key(REQUEST_ID)) {
            headers.insert(REQUEST_ID, id.to_value());
        }
    }

    /// Tells the span that a request is made for, in each form that whoever came before speaks.
    fn tell_step(&self, step: TraceContext, tables: Tables, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, tables.new_value(step.to_value()));
        let decision = if step.is_sampled() { "1" } else { "0" };
        if self.is_b3_single {
            headers
                .insert(B3_SINGLE, header_value(format!("{}-{}-{decision}", step.trace_id, step.span_id).as_bytes()));
        }
        if self.is_b3_multi {
            headers.insert(B3_TRACE_ID, header_value(step.trace_id.to_string().as_bytes()));
            headers.insert(B3_SPAN_ID, header_value(step.span_id.to_string().as_bytes()));
            headers.insert(B3_SAMPLED, HeaderValue::from_static(decision));
            headers.remove(B3_FLAGS);
            match self.parent.ids.filter(|(_, span)| *span != step.span_id) {
                Some((_, parent)) => _ = headers.insert(B3_PARENT_ID, header_value(parent.to_string().as_bytes())),
                None => _ = headers.remove(B3_PARENT_ID),
            }
        }
    }
}

/// Whether a request asks for a trace. Looking the header up costs more than looking at the few that there are.
fn asks(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str() == CLIENT_TRACE_ID)
}

/// The id of a request that has none, or none that counts.
pub fn new_request_id(random: &mut fastrand::Rng) -> HeaderValue {
    RequestId::Made([random.u64(..), random.u64(..)]).to_value()
}

/// A UUID of version 4 of this chance.
fn uuid([high, low]: [u64; 2]) -> [u8; 36] {
    let (high, low) = (high & !0xf000 | 0x4000, low & !(0x3 << 62) | 0x2 << 62);
    let mut uuid = [b'-'; 36];
    // Each part has as many digits of the end of a number as there is room for.
    write_hex(high >> 32, &mut uuid[..8]);
    write_hex(high >> 16, &mut uuid[9..13]);
    write_hex(high, &mut uuid[14..18]);
    write_hex(low >> 48, &mut uuid[19..23]);
    write_hex(low, &mut uuid[24..]);
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    const B3: &str = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn tracing(percent: u32) -> Tracing {
        Tracing { random: Fraction::new(percent, 100), ..Tracing::default() }
    }

    fn told(trace: &Trace, step: Option<TraceContext>, own: &[(&'static str, &str)]) -> Vec<(String, String)> {
        let mut told = headers(own);
        trace.tell(step, Tables::Kept, &mut told);
        let text = |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        let mut told: Vec<_> = told.iter().map(text).collect();
        told.sort();
        told
    }

    #[test]
    fn what_comes_is_handed_on_unchanged_where_nothing_is_recorded() {
        for fields in [
            vec![],
            vec![("x-request-id", "anything at all")],
            vec![("traceparent", W3C), ("tracestate", "a=b,c=d"), ("x-request-id", "1")],
            vec![("traceparent", UNSAMPLED), ("baggage", "user=7")],
            vec![("b3", B3)],
            vec![("b3", "0"), ("baggage", "user=7")],
            vec![("x-b3-sampled", "0")],
            vec![
                ("x-b3-flags", "1"),
                ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
                ("x-b3-spanid", "e457b5a2e4d86bd1"),
                ("x-b3-traceid", "64fe8b2a57d3eff7"),
            ],
        ] {
            let trace = Trace::of_headers(&headers(&fields));
            let mut expected: Vec<_> =
                fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            expected.sort();
            assert_eq!(told(&trace, None, &[]), expected, "{fields:?}");
            assert_eq!(trace.is_empty(), fields.is_empty());
        }
        // Several headers of one name stay several.
        let mut several = headers(&[("traceparent", W3C)]);
        several.append("tracestate", "a=b".parse().unwrap());
        several.append("tracestate", "c=d".parse().unwrap());
        let mut out = HeaderMap::new();
        Trace::of_headers(&several).tell(None, Tables::Kept, &mut out);
        assert_eq!(out.get_all("tracestate").iter().count(), 2);
    }

    #[test]
    fn what_cannot_be_understood_or_is_too_much_is_not_handed_on() {
        let long = "a".repeat(10_000);
        for fields in [
            vec![("traceparent", "x"), ("tracestate", "a=b")],
            vec![("b3", "perhaps")],
            vec![("x-b3-traceid", "80f198ee56343ba8")],
            vec![("baggage", long.as_str())],
        ] {
            assert!(told(&Trace::of_headers(&headers(&fields)), None, &[]).is_empty(), "{fields:?}");
        }
        // Somebody else's baggage is no end of a trace.
        for trace in [vec![("b3", B3)], vec![("traceparent", W3C), ("tracestate", "a=b")], vec![("x-b3-sampled", "0")]]
        {
            let came = [trace.clone(), vec![("baggage", long.as_str())]].concat();
            let expected: Vec<_> = trace.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(told(&Trace::of_headers(&headers(&came)), None, &[]), expected, "{trace:?}");
        }
        let mut two = headers(&[("traceparent", W3C)]);
        two.append("traceparent", UNSAMPLED.parse().unwrap());
        assert_eq!(Trace::of_headers(&two).context(), None, "of two, none is the right one");
    }

    #[test]
    fn a_parents_decision_counts_and_else_chance() {
        let mut random = fastrand::Rng::with_seed(7);
        for (fields, percent, expected) in [
            (vec![("traceparent", W3C)], 0, 1000),
            (vec![("b3", B3)], 0, 1000),
            (vec![("traceparent", UNSAMPLED)], 100, 0),
            (vec![("b3", "0")], 100, 0),
            (vec![("b3", "1")], 0, 1000),
            (vec![], 0, 0),
            (vec![], 100, 1000),
            // Who asks for a trace gets one (client_sampling).
            (vec![("x-client-trace-id", "x")], 0, 1000),
        ] {
            let headers = headers(&fields);
            let begin = |_: &u32| Trace::of_headers(&headers).begin(&tracing(percent), &headers, &mut random).is_some();
            let begun = (0..1000).filter(begin).count();
            assert_eq!(begun, expected, "{fields:?} at {percent} %");
        }
        let none = HeaderMap::new();
        let begun = (0..10_000).filter(|_| Trace::default().begin(&tracing(25), &none, &mut random).is_some()).count();
        assert!((2200..2800).contains(&begun), "{begun}");
        // What caps all of it caps parents' decisions, too.
        let parent = headers(&[("traceparent", W3C)]);
        let off = Tracing { overall: Fraction::new(0, 1), ..tracing(100) };
        let mut trace = Trace::of_headers(&parent);
        assert_eq!(trace.begin(&off, &parent, &mut random), None);
        assert_eq!(trace.context().unwrap().to_string(), W3C, "it is handed on all the same");
    }

    #[test]
    fn the_next_hop_of_a_trace_that_is_not_recorded_does_not_begin_one() {
        let (mut random, mut trace) = (fastrand::Rng::with_seed(7), Trace::default());
        assert_eq!(trace.begin(&tracing(0), &HeaderMap::new(), &mut random), None);
        let mut next = HeaderMap::new();
        trace.tell(None, Tables::Kept, &mut next);
        assert!(!TraceContext::parse(next["traceparent"].as_bytes()).unwrap().is_sampled());
        assert_eq!(Trace::of_headers(&next).begin(&tracing(100), &next, &mut random), None);
        let id = next["x-request-id"].to_str().unwrap();
        let dashes: Vec<usize> = id.match_indices('-').map(|(at, _)| at).collect();
        assert_eq!((id.len(), dashes, &id[14..15]), (36, vec![8, 13, 18, 23], "4"), "{id}");
    }

    #[test]
    fn the_id_of_a_request_is_a_uuid_of_its_chance() {
        for (chance, expected) in [
            ([0, 0], "00000000-0000-4000-8000-000000000000"),
            ([u64::MAX; 2], "ffffffff-ffff-4fff-bfff-ffffffffffff"),
            ([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], "01234567-89ab-4def-bedc-ba9876543210"),
        ] {
            assert_eq!(std::str::from_utf8(&uuid(chance)), Ok(expected));
        }
    }

    #[test]
    fn a_span_takes_the_place_of_its_parent_in_every_form_that_came() {
        let mut random = fastrand::Rng::with_seed(7);
        for fields in [
            vec![("traceparent", W3C), ("tracestate", "a=b")],
            vec![("b3", B3), ("baggage", "a=b")],
            vec![
                ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
                ("x-b3-spanid", "e457b5a2e4d86bd1"),
                ("x-b3-sampled", "1"),
            ],
        ] {
            let came = headers(&fields);
            let mut trace = Trace::of_headers(&came);
            let parent = trace.context().unwrap();
            let begun = trace.begin(&tracing(0), &came, &mut random).unwrap();
            assert_eq!((begun.context.trace_id, begun.parent), (parent.trace_id, Some(parent.span_id)));
            let step = begun.context.step(SpanId::random(&mut random));
            let mut told = HeaderMap::new();
            trace.tell(Some(step), Tables::Kept, &mut told);
            // Every form that came says the step, and what is no form of it is as it was.
            assert_eq!(Trace::of_headers(&told).context().map(|it| it.span_id), Some(step.span_id));
            assert_eq!(TraceContext::parse(told["traceparent"].as_bytes()), Some(step));
            for (name, value) in &fields {
                assert_eq!(
                    told[*name] == *value,
                    ["tracestate", "baggage", "x-b3-sampled", "x-b3-traceid"].contains(name)
                );
            }
            assert_eq!(told.contains_key("b3"), came.contains_key("b3"));
        }
    }

    #[test]
    fn new_values_stay_out_of_the_tables_of_connections_that_are_spared_and_others_go_in() {
        for (tables, stays_out) in [(Tables::Kept, false), (Tables::Spared, true)] {
            let (mut random, mut trace) = (fastrand::Rng::with_seed(7), Trace::default());
            let mut told = headers(&[("x-own", "1")]);
            trace.begin(&tracing(0), &told, &mut random);
            trace.tell(None, tables, &mut told);
            let out = |name: &str| told[name].is_sensitive();
            let seen = (out("traceparent"), out("x-request-id"), out("x-own"));
            assert_eq!(seen, (stays_out, stays_out, false), "{tables:?}");
        }
    }

    #[test]
    fn what_the_application_sets_itself_stays() {
        let mut trace =
            Trace::of_headers(&headers(&[("traceparent", W3C), ("tracestate", "a=b"), ("x-request-id", "1")]));
        let own = [("traceparent", UNSAMPLED), ("x-request-id", "2")];
        assert_eq!(told(&trace, None, &own).len(), 2, "another trace has another state");
        trace.or_own(&headers(&own));
        assert_eq!(
            (trace.context().unwrap().to_string().as_str(), trace.request_id().unwrap()),
            (UNSAMPLED, "2".parse::<HeaderValue>().unwrap())
        );
    }
}
