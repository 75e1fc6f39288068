//! B3 (Zipkin), in one header or in several.

use http::HeaderMap;

use super::{SpanId, TraceId, hex};

/// What such headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct B3 {
    pub(super) ids: Option<(TraceId, SpanId)>,
    /// `None`: whoever reads it is to decide.
    pub(super) is_sampled: Option<bool>,
}

/// Reads the value of a `b3`; `None` for what is none.
pub(super) fn single(value: &[u8]) -> Option<B3> {
    let mut parts = value.split(|byte| *byte == b'-');
    let (first, second, third, fourth) = (parts.next()?, parts.next(), parts.next(), parts.next());
    let Some(second) = second else { return Some(B3 { ids: None, is_sampled: Some(sampled(first)?) }) };
    let is_sampled = third.map(|third| sampled(third).ok_or(())).transpose().ok()?;
    if let Some(parent) = fourth {
        span_id(parent)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(B3 { ids: Some((trace_id(first)?, span_id(second)?)), is_sampled })
}

/// Reads several headers; `None` where they say nothing, or not all.
pub(super) fn multi(headers: &HeaderMap) -> Option<B3> {
    let value = |name: &str| headers.get(name).map(|value| value.as_bytes());
    let is_debug = value("x-b3-flags") == Some(b"1");
    let is_sampled = match value("x-b3-sampled") {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        Some(text) => Some(sampled(text)?),
        None => None,
    };
    let is_sampled = if is_debug { Some(true) } else { is_sampled };
    match (value("x-b3-traceid"), value("x-b3-spanid")) {
        (None, None) => is_sampled.map(|is_sampled| B3 { ids: None, is_sampled: Some(is_sampled) }),
        (Some(trace), Some(span)) => Some(B3 { ids: Some((trace_id(trace)?, span_id(span)?)), is_sampled }),
        _ => None,
    }
}

fn sampled(text: &[u8]) -> Option<bool> {
    match text {
        // Somebody looks for a fault: more than sampled.
        b"1" | b"d" => Some(true),
        b"0" => Some(false),
        _ => None,
    }
}

/// One of 64 bits, too, as older tracers have them.
fn trace_id(text: &[u8]) -> Option<TraceId> {
    matches!(text.len(), 16 | 32).then(|| hex(text)).flatten().and_then(TraceId::new)
}

fn span_id(text: &[u8]) -> Option<SpanId> {
    (text.len() == 16).then(|| hex(text)).flatten().and_then(|id| SpanId::new(u64::try_from(id).ok()?))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";

    #[test]
    fn one_header_has_ids_a_decision_or_both() {
        for (text, expected) in [
            (format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"), Some((true, Some(true)))),
            (format!("{TRACE}-{SPAN}-d"), Some((true, Some(true)))),
            (format!("{TRACE}-{SPAN}-0"), Some((true, Some(false)))),
            (format!("{TRACE}-{SPAN}"), Some((true, None))),
            (format!("{SPAN}-{SPAN}-1"), Some((true, Some(true)))),
            ("0".into(), Some((false, Some(false)))),
            ("d".into(), Some((false, Some(true)))),
            ("2".into(), None),
            (format!("{TRACE}-{SPAN}-"), None),
            (format!("{TRACE}-{SPAN}-1-"), None),
            (format!("{TRACE}-{SPAN}-1-{SPAN}-1"), None),
            (format!("{TRACE}-0000000000000000-1"), None),
            (TRACE.into(), None),
            (String::new(), None),
        ] {
            let said = single(text.as_bytes()).map(|said| (said.ids.is_some(), said.is_sampled));
            assert_eq!(said, expected, "{text:?}");
        }
    }

    #[test]
    fn several_headers_say_the_same() {
        for (fields, expected) in [
            (vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")], Some((true, Some(true)))),
            (vec![("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN)], Some((true, None))),
            (vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")], Some((true, Some(true)))),
            (vec![("x-b3-sampled", "false")], Some((false, Some(false)))),
            (vec![("x-b3-traceid", TRACE)], None),
            (vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "perhaps")], None),
            (vec![("x-b3-traceid", "x"), ("x-b3-spanid", SPAN)], None),
            (vec![], None),
        ] {
            let headers: HeaderMap =
                fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
            let said = multi(&headers).map(|said| (said.ids.is_some(), said.is_sampled));
            assert_eq!(said, expected, "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = single(&value);
        }
    }
}
