//! `traceparent` (W3C Trace Context).

use super::{SpanId, TraceContext, TraceId, hex};

/// How long one of version 00 is.
pub(super) const LENGTH: usize = 55;

/// Reads a `traceparent`: strictly, but for versions that are not known, of which the beginning counts.
pub(super) fn parse(value: &[u8]) -> Option<TraceContext> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let mut parts = known.split(|byte| *byte == b'-');
    let mut part = |length: usize| parts.next().filter(|part| part.len() == length).and_then(hex);
    let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.first().is_none_or(|byte| *byte == b'-'),
    };
    let (trace_id, span_id) = (TraceId::new(trace_id)?, SpanId::new(u64::try_from(span_id).ok()?)?);
    let context = TraceContext { trace_id, span_id, flags: u8::try_from(flags).ok()? };
    (is_whole && parts.next().is_none()).then_some(context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_traceparent_is_none() {
        const IDS: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        for (text, is_one) in [
            (format!("00-{IDS}-01"), true),
            (format!("00-{IDS}-00"), true),
            (format!("00-{IDS}-ff"), true),
            (format!("cc-{IDS}-01"), true),
            (format!("cc-{IDS}-01-what-the-future-will-be-like"), true),
            (format!("cc-{IDS}-01.x"), false),
            (format!("ff-{IDS}-01"), false),
            (format!("00-{IDS}-01-x"), false),
            (format!("00-{IDS}-1"), false),
            (format!("00-{IDS}-0g"), false),
            (format!("0-{IDS}-001"), false),
            (format!("00-{}-01", IDS.to_uppercase()), false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01".into(), false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".into(), false),
            ("00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(parse(text.as_bytes()).is_some(), is_one, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(context) = parse(&value) {
                prop_assert_eq!(parse(context.to_string().as_bytes()), Some(context));
            }
        }

        #[test]
        fn what_is_told_is_read_again(trace in 1_u128.., span in 1_u64.., flags: u8) {
            let (trace_id, span_id) = (TraceId::new(trace).unwrap(), SpanId::new(span).unwrap());
            let context = TraceContext { trace_id, span_id, flags };
            prop_assert_eq!(parse(context.to_string().as_bytes()), Some(context));
        }
    }
}
