//! What a request inherits from the one that it is made for: how much time is left, whether it is being retried already,
//! how much it matters, and which trace it is a part of. Each hop reads it from the headers of the request that it serves, and tells it with the
//! requests that it makes meanwhile.
//!
//! The headers are the field's own where there are any. Nothing in them can do more than take away from the request that
//! has them (time, retries), so they are believed whoever sends them.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::grpc_timeout::{self, GRPC_TIMEOUT};
use crate::live_trace::Mark;
use crate::trace::Trace;

/// How long an answer is waited for, in milliseconds (Envoy's).
pub const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Which attempt it is, from 1 on (Envoy's). Told from the second on.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// How many attempts of a gRPC call there were before (gRFC A6). Told where there were some.
pub const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// How much a request matters; nobody else has a header for it. Told where that is less than usual.
pub const CRITICALITY: HeaderName = HeaderName::from_static("x-mesh-criticality");

/// How much a request matters, next to others. Put it into a request's extensions, as a part of [`Inherited`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Criticality {
    /// It can be left out: prefetching, a batch that comes again. It gives way first where a cluster has few retries
    /// left.
    Sheddable,
    /// Somebody waits for it.
    #[default]
    Critical,
}

impl Criticality {
    /// What the headers of a request say that arrives.
    #[inline]
    pub fn of_headers(headers: &HeaderMap) -> Self {
        match headers.get(CRITICALITY).is_some_and(|value| value.as_bytes() == SHEDDABLE.as_bytes()) {
            true => Criticality::Sheddable,
            false => Criticality::Critical,
        }
    }
}

/// What a request inherits from the one that it is made for. A server's layer finds it in the headers of a request and
/// hands it on to all that its handler calls in the same task; for calls of other tasks, put it into their extensions.
///
/// ```
/// use mesh_core::request_info::{Criticality, Inherited};
///
/// let mut prefetching = Inherited::default();
/// prefetching.criticality = Criticality::Sheddable;
/// let request = http::Request::get("http://reviews/next-page").extension(prefetching).body(())?;
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inherited {
    /// When nobody waits any more, for any of it.
    pub deadline: Option<Instant>,
    /// When nobody waits any more for the head of the answer.
    pub answer_by: Option<Instant>,
    /// Which attempt it is, of the hop before or of any before that; 1 for the first.
    pub attempt: u32,
    /// How much it matters.
    pub criticality: Criticality,
    /// The live trace that it belongs to, where somebody follows it.
    pub mark: Option<Mark>,
    /// The trace that it is a part of.
    pub trace: Trace,
}

/// Of a request that nobody waits for with a limit, and that is not retried.
impl Default for Inherited {
    fn default() -> Self {
        Inherited {
            deadline: None,
            answer_by: None,
            attempt: 1,
            criticality: Criticality::default(),
            mark: None,
            trace: Trace::default(),
        }
    }
}

impl Inherited {
    /// What the headers of a request say that arrives now; `None` where there is no header of those that say something. What cannot
    /// be understood says nothing.
    #[inline]
    pub fn of_headers(headers: &HeaderMap, is_grpc: impl FnOnce() -> bool, now: impl Fn() -> Instant) -> Option<Self> {
        // Few requests have any of them: looking at the starts of names beats four look-ups.
        let may_be_one = |name: &HeaderName| {
            matches!(name.as_str().as_bytes(), [b'x', b'-', b'e' | b'm', ..] | [b'g', b'r', b'p', b'c', b'-', ..])
        };
        let (mut is_any, mut is_traced) = (false, false);
        for name in headers.keys() {
            is_any |= may_be_one(name);
            is_traced |= Trace::may_have(name);
        }
        if !is_any && !is_traced {
            return None;
        }
        let trace = if is_traced { Trace::of_headers(headers) } else { Trace::default() };
        if !is_any {
            return Some(Inherited { trace, ..Inherited::default() });
        }
        let is_grpc = is_grpc();
        let number =
            |name: HeaderName| -> Option<u64> { std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?.parse().ok() };
        let after = |time: Option<Duration>| time.and_then(|time| now().checked_add(time));
        let count = |number: Option<u64>| number.map_or(1, |number| u32::try_from(number).unwrap_or(u32::MAX));
        Some(Inherited {
            deadline: after(
                headers.get(GRPC_TIMEOUT).filter(|_| is_grpc).and_then(|it| grpc_timeout::parse(it.as_bytes())),
            ),
            answer_by: after(number(EXPECTED_TIMEOUT).map(Duration::from_millis)),
            attempt: count(number(ATTEMPT_COUNT))
                .max(count(number(PREVIOUS_ATTEMPTS).filter(|_| is_grpc).map(|before| before.saturating_add(1)))),
            criticality: Criticality::of_headers(headers),
            // Whether it is one is asked only where somebody follows.
            mark: None,
            trace,
        })
    }

    /// Tells a server, with the headers of try number `attempts`, what it is to pass on. Time is told by the data plane, which
    /// knows the try's own.
    #[inline]
    pub fn tell(&self, attempts: u32, is_grpc: bool, headers: &mut HeaderMap) {
        let attempt = attempts.max(self.attempt);
        if attempt > 1 {
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempt));
            if is_grpc {
                headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(attempt - 1));
            }
        }
        if self.criticality == Criticality::Sheddable {
            headers.insert(CRITICALITY, HeaderValue::from_static(SHEDDABLE));
        }
    }

    /// Whether it is nothing that anybody would inherit.
    #[inline]
    pub fn is_nothing(&self) -> bool {
        let Inherited { deadline, answer_by, attempt, criticality, mark, trace } = self;
        deadline.is_none()
            && answer_by.is_none()
            && *attempt <= 1
            && *criticality == Criticality::default()
            && mark.is_none()
            && trace.is_nothing()
    }

    /// Whether one of its times is over.
    pub fn has_passed(&self, now: Instant) -> bool {
        self.deadline.into_iter().chain(self.answer_by).any(|by| by <= now)
    }

    /// Whether some hop further out is retrying already: whoever works for it does not retry what that will.
    #[inline]
    pub fn is_retried(&self) -> bool {
        self.attempt > 1
    }
}

const SHEDDABLE: &str = "sheddable";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_cannot_be_understood_says_nothing() {
        let now = Instant::now();
        for fields in [
            &[][..],
            &[("x-envoy-attempt-count", "soon"), ("grpc-previous-rpc-attempts", "-1")],
            &[("x-envoy-attempt-count", "0"), ("x-envoy-expected-rq-timeout-ms", "")],
            &[("x-envoy-expected-rq-timeout-ms", "1e3"), ("x-mesh-criticality", "most"), ("grpc-timeout", "1s")],
            &[("x-envoy-expected-rq-timeout-ms", "18446744073709551615")],
            &[("x-envoy-expected-rq-timeout-ms", "18446744073709551616")],
        ] {
            let inherited = Inherited::of_headers(&headers(fields), || true, || now).unwrap_or_default();
            assert_eq!(
                (inherited.is_retried(), inherited.clone()),
                (false, Inherited { ..Inherited::default() }.with(&inherited))
            );
            assert!(inherited.answer_by.is_none_or(|by| by > now + Duration::from_secs(1 << 40)), "{fields:?}");
        }
    }

    impl Inherited {
        /// The same but for the time, which a clock may be able to say or not.
        fn with(self, other: &Inherited) -> Self {
            Inherited { answer_by: other.answer_by, ..self }
        }
    }

    #[test]
    fn attempts_are_those_of_any_hop_further_out() {
        let cases = [
            (vec![("x-envoy-attempt-count", "1")], false, 1),
            (vec![("x-envoy-attempt-count", "3")], false, 3),
            (vec![("x-envoy-attempt-count", "99999999999")], false, u32::MAX),
            (vec![("grpc-previous-rpc-attempts", "2")], true, 3),
            (vec![("grpc-previous-rpc-attempts", "2")], false, 1),
            (vec![("grpc-previous-rpc-attempts", "1"), ("x-envoy-attempt-count", "4")], true, 4),
            (vec![("grpc-previous-rpc-attempts", "18446744073709551615")], true, u32::MAX),
        ];
        for (fields, is_grpc, attempt) in cases {
            let inherited = Inherited::of_headers(&headers(&fields), || is_grpc, Instant::now).unwrap_or_default();
            assert_eq!(inherited.attempt, attempt, "{fields:?}");
            // The first try of the next hop says it, and a later one that is more.
            let mut told = HeaderMap::new();
            inherited.tell(1, is_grpc, &mut told);
            assert_eq!(Inherited::of_headers(&told, || is_grpc, Instant::now).unwrap_or_default().attempt, attempt);
            inherited.tell(5, is_grpc, &mut told);
            assert_eq!(
                Inherited::of_headers(&told, || is_grpc, Instant::now).unwrap_or_default().attempt,
                attempt.max(5)
            );
        }
    }

    #[test]
    fn the_first_try_of_a_usual_request_has_no_header_more() {
        let mut told = HeaderMap::new();
        Inherited::default().tell(1, true, &mut told);
        assert!(told.is_empty());
        let sheddable = Inherited { criticality: Criticality::Sheddable, ..Inherited::default() };
        sheddable.tell(1, false, &mut told);
        assert_eq!(Inherited::of_headers(&told, || false, Instant::now).unwrap_or_default(), sheddable);
    }

    #[test]
    fn time_is_of_all_of_a_grpc_call_and_else_until_the_head() {
        let now = Instant::now();
        let told = headers(&[("grpc-timeout", "2S"), ("x-envoy-expected-rq-timeout-ms", "1500")]);
        let at = |millis| Some(now + Duration::from_millis(millis));
        for (is_grpc, deadline) in [(true, at(2000)), (false, None)] {
            let inherited = Inherited::of_headers(&told, || is_grpc, || now).unwrap_or_default();
            assert_eq!((inherited.deadline, inherited.answer_by), (deadline, at(1500)));
        }
    }
}
