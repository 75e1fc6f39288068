//! `grpc-timeout`, as the specification of gRPC over HTTP/2 has it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// How long the caller will wait, in a request's headers.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The most that eight digits can say, which is as many as there may be.
const MAX: u128 = 99_999_999;

/// Units of `grpc-timeout` in nanoseconds, the finest first.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The duration that a `grpc-timeout` says: one to eight digits and a unit; `None` if it is malformed.
///
/// ```
/// use std::time::Duration;
/// use mesh_core::grpc_timeout::parse;
///
/// assert_eq!(parse(b"250m"), Some(Duration::from_millis(250)));
/// assert_eq!(parse(b"250"), None);
/// ```
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'n' => Duration::from_nanos(number),
        b'u' => Duration::from_micros(number),
        b'm' => Duration::from_millis(number),
        b'S' => Duration::from_secs(number),
        b'M' => Duration::from_secs(number * 60),
        b'H' => Duration::from_secs(number * 3600),
        _ => return None,
    })
}

/// A duration as a `grpc-timeout`, in the finest unit that has room for it and never longer than it is. More
/// than 11,415 years are cut to that.
///
/// ```
/// use std::time::Duration;
/// use mesh_core::grpc_timeout::format;
///
/// assert_eq!(format(Duration::from_millis(250)), "250000u");
/// ```
pub fn format(timeout: Duration) -> HeaderValue {
    let nanos = timeout.as_nanos();
    let [.., (hours, hour)] = UNITS;
    let (unit, size) = UNITS.into_iter().find(|(_, size)| nanos / size <= MAX).unwrap_or((hours, hour));
    let number = u64::try_from((nanos / size).min(MAX)).unwrap_or_default();
    let mut text = [0; 9];
    let mut start = text.len() - 1;
    text[start] = unit;
    let mut rest = number;
    loop {
        // At most eight digits, so the first one stands at 0.
        start -= 1;
        text[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[start..]).expect("digits and a letter are a valid value")
}

/// Tells a server how long its caller will wait from now, unless the request says less already (gRFC A31: a
/// route's limit shortens the call's own).
pub fn tell(headers: &mut HeaderMap, left: Duration) {
    let own = headers.get(GRPC_TIMEOUT).and_then(|own| parse(own.as_bytes()));
    if own.is_none_or(|own| own > left) {
        headers.insert(GRPC_TIMEOUT, format(left));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_as_the_specification_has_them() {
        let second = Duration::from_secs(1);
        let table: [(&str, Option<Duration>); 24] = [
            ("1n", Some(Duration::from_nanos(1))),
            ("1u", Some(Duration::from_micros(1))),
            ("1m", Some(Duration::from_millis(1))),
            ("1S", Some(second)),
            ("1M", Some(60 * second)),
            ("1H", Some(3600 * second)),
            ("0S", Some(Duration::ZERO)),
            ("00000001S", Some(second)),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("000000001S", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("1h", None),
            ("1x", None),
            ("+1S", None),
            ("-1S", None),
            (" 1S", None),
            ("1S ", None),
            ("1.5S", None),
            ("1 S", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(parse(&[0xff, b'S']), None);
        assert_eq!(parse("١S".as_bytes()), None, "digits of other scripts");
    }

    #[test]
    fn durations_as_timeouts() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(1), "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_000), "100000u"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(10), "10000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(99_999_999), "99999999S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(6_000_000_000), "1666666H"),
            (Duration::MAX, "99999999H"),
        ];
        for (duration, expected) in table {
            assert_eq!(format(duration), expected, "{duration:?}");
        }
    }

    proptest! {
        #[test]
        fn a_timeout_survives_the_way_and_never_grows(nanos in 0u128..=99_999_999 * 3_600_000_000_000, shift in 0u32..60) {
            let nanos = nanos >> shift;
            let secs = u64::try_from(nanos / 1_000_000_000).unwrap();
            let duration = Duration::new(secs, u32::try_from(nanos % 1_000_000_000).unwrap());
            let parsed = parse(format(duration).as_bytes()).expect("what is formatted can be parsed");
            prop_assert!(parsed <= duration);
            // A change of unit leaves six digits.
            prop_assert!(duration - parsed <= duration / 100_000, "{duration:?} became {parsed:?}");
        }

        #[test]
        fn whatever_is_parsed_says_the_same_again(text in "[0-9]{1,8}[numSMH]") {
            let duration = parse(text.as_bytes()).expect("well formed");
            let again = parse(format(duration).as_bytes()).unwrap();
            prop_assert!(again <= duration && duration - again <= duration / 100_000);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            parse(&bytes);
        }
    }

    #[test]
    fn a_server_is_told_the_lesser_of_what_the_caller_says_and_what_is_left() {
        let cases = [(None, "200000u"), (Some("1S"), "200000u"), (Some("100m"), "100m"), (Some("soon"), "200000u")];
        for (own, expected) in cases {
            let mut headers = HeaderMap::new();
            own.map(|own| headers.insert(GRPC_TIMEOUT, own.parse().unwrap()));
            tell(&mut headers, Duration::from_millis(200));
            assert_eq!(headers[GRPC_TIMEOUT], expected, "{own:?}");
        }
    }
}
