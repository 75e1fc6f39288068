//! The periods of quotas, and dates, as a calendar of UTC has them. Pure; times are since 1970.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a period is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A minute.
    #[default]
    Minute,
    /// An hour.
    Hour,
    /// A day, from midnight UTC.
    Day,
    /// A month, from its first day.
    Month,
}

/// A period: from its first second to the first one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Period {
    /// Its first second.
    pub start: u64,
    /// The first second of the next one.
    pub end: u64,
}

const DAY: u64 = 24 * 60 * 60;

impl Unit {
    /// The period that a time is in.
    pub(crate) fn period(self, now: Duration) -> Period {
        let now = now.as_secs();
        let of = |length: u64| {
            let start = now - now % length;
            Period { start, end: start.saturating_add(length) }
        };
        match self {
            Unit::Minute => of(60),
            Unit::Hour => of(60 * 60),
            Unit::Day => of(DAY),
            Unit::Month => {
                let (year, month) = month_of(now / DAY);
                let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                Period { start: first_day(year, month) * DAY, end: first_day(next_year, next) * DAY }
            }
        }
    }

    /// `a minute`, `an hour`, `a day` or `a month`.
    pub(crate) const fn with_article(self) -> &'static str {
        match self {
            Unit::Minute => "a minute",
            Unit::Hour => "an hour",
            Unit::Day => "a day",
            Unit::Month => "a month",
        }
    }

    /// `minute`, `hour`, `day` or `month`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Minute => "minute",
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Month => "month",
        }
    }
}

/// Days from March 1st of the year 0 to 1970 (Howard Hinnant's algorithms on dates, for days from 1970 on).
const SHIFT: u64 = 719_468;
/// Days of 400 years.
const ERA: u64 = 146_097;

/// `2026-11-28T22:05:00Z` (RFC 3339).
pub(crate) fn date(seconds: u64) -> String {
    let (day, second) = (seconds / DAY, seconds % DAY);
    let (year, month) = month_of(day);
    let of_month = day - first_day(year, month) + 1;
    format!("{year:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// A time of RFC 3339 as a text that is compared with others as the times are: in UTC, to the nanosecond. `None` where it is none, or
/// before 1970.
pub(crate) fn comparable(text: &str) -> Option<String> {
    let is_one_of = |at: usize, marks: &[u8]| text.as_bytes().get(at).is_some_and(|byte| marks.contains(byte));
    let is_formed =
        is_one_of(4, b"-") && is_one_of(7, b"-") && is_one_of(10, b"Tt ") && is_one_of(13, b":") && is_one_of(16, b":");
    let (year, month, day) = (digits(text, 0..4)?, digits(text, 5..7)?, digits(text, 8..10)?);
    let (hour, minute, second) = (digits(text, 11..13)?, digits(text, 14..16)?, digits(text, 17..19)?);
    // A leap second is the one after it.
    let is_time = hour < 24 && minute < 60 && second <= 60;
    if !is_formed || !is_time || year < 1970 || !(1..=12).contains(&month) {
        return None;
    }
    let first = first_day(year, month);
    let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    if day == 0 || day > first_day(next_year, next) - first {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    if rest.starts_with('.') && fraction.is_empty() {
        return None;
    }
    let local = (first + day - 1) * DAY + hour * 3600 + minute * 60 + second;
    let utc = match zone.as_bytes() {
        [b'Z' | b'z'] => local,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (digits(zone, 1..3)?, digits(zone, 4..6)?);
            let ahead = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            if *sign == b'+' { local.checked_sub(ahead)? } else { local + ahead }
        }
        _ => return None,
    };
    let is_of_four_digits = utc < first_day(10_000, 1) * DAY;
    is_of_four_digits.then(|| format!("{}.{fraction:0<9.9}Z", date(utc).trim_end_matches('Z')))
}

/// The number that these bytes of a text are, if they are digits.
fn digits(text: &str, range: Range<usize>) -> Option<u64> {
    let digits = text.get(range)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The year and the month of a day.
fn month_of(day: u64) -> (u64, u64) {
    let shifted = day + SHIFT;
    let (era, of_era) = (shifted / ERA, shifted % ERA);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year + era * 400 + u64::from(month <= 2), month)
}

/// The first day of a month.
fn first_day(year: u64, month: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted_month + 2) / 5;
    (era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year).saturating_sub(SHIFT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        // As `date -u` says them.
        for (now, start, end) in [
            (0, 0, 2_678_400),
            (951_782_400, 949_363_200, 951_868_800),
            (1_796_083_199, 1_793_491_200, 1_796_083_200),
            (1_798_761_599, 1_796_083_200, 1_798_761_600),
            (1_798_761_600, 1_798_761_600, 1_801_440_000),
            (4_107_542_400, 4_107_542_400, 4_110_220_800),
        ] {
            assert_eq!(Unit::Month.period(Duration::from_secs(now)), Period { start, end }, "{now}");
        }
    }

    #[test]
    fn times_compare_as_texts_once_they_are_utc() {
        for (text, expected) in [
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000000000Z"),
            ("2024-02-29t23:59:60z", "2024-03-01T00:00:00.000000000Z"),
            ("2024-01-01T00:30:00.5+01:00", "2023-12-31T23:30:00.500000000Z"),
            ("2024-12-31T23:30:00.1234567891-01:00", "2025-01-01T00:30:00.123456789Z"),
        ] {
            assert_eq!(comparable(text).as_deref(), Some(expected), "{text}");
        }
        for wrong in [
            "",
            "0",
            "yesterday",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+1:00",
            "2024-01-01T00:00:00Z ",
            "2024-01-01",
            "+024-01-01T00:00:00Z",
            "1969-12-31T00:00:00Z",
            "1970-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2024-01-0\u{e9}T00:00:00Z",
        ] {
            assert_eq!(comparable(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_date_is_read_as_it_is_written(seconds in 0_u64..200_000_000_000) {
            let written = date(seconds);
            prop_assert_eq!(comparable(&written), Some(written.replace('Z', ".000000000Z")));
        }

        #[test]
        fn each_second_is_in_one_period_and_they_follow_each_other(now in 0_u64..8_000_000_000) {
            for unit in [Unit::Minute, Unit::Hour, Unit::Day, Unit::Month] {
                let Period { start, end } = unit.period(Duration::from_secs(now));
                prop_assert!(start <= now && now < end);
                prop_assert_eq!(unit.period(Duration::from_secs(start)), Period { start, end });
                prop_assert_eq!(unit.period(Duration::from_secs(end)).start, end);
            }
        }
    }
}
