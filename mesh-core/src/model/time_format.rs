//! A time as an access log writes it (`%START_TIME(%d/%b/%Y:%T %z)%`): the conversions of C's `strftime`, and Envoy's of parts of a
//! second. All of it is UTC.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a time is written.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use mesh_core::model::TimeFormat;
///
/// let at = UNIX_EPOCH + Duration::from_millis(1_795_939_200_123);
/// assert_eq!(TimeFormat::parse("%d/%b/%Y:%T %z").unwrap().write(at), "29/Nov/2026:08:00:00 +0000");
/// assert_eq!(TimeFormat::parse("%s.%3f").unwrap().write(at), "1795939200.123");
/// assert!(TimeFormat::parse("%Q").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(char),
    Conversion(char),
    /// So many digits of the part of a second.
    Fraction(usize),
}

/// Those of `strftime` that are known.
const CONVERSIONS: &str = "%aAbBdDeFhHImMpRsSTyYzZ";
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl TimeFormat {
    /// Reads a format; `None` where there is a conversion in it that is not known.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut parts, mut rest) = (Vec::new(), text.chars());
        while let Some(next) = rest.next() {
            parts.push(match next {
                '%' => match rest.next()? {
                    'f' => Part::Fraction(9),
                    digits @ '1'..='9' if rest.next() == Some('f') => {
                        Part::Fraction(usize::try_from(digits.to_digit(10)?).ok()?)
                    }
                    conversion if CONVERSIONS.contains(conversion) => Part::Conversion(conversion),
                    _ => return None,
                },
                text => Part::Text(text),
            });
        }
        Some(TimeFormat(parts))
    }

    /// The text for a time.
    pub fn write(&self, at: SystemTime) -> String {
        let (time, mut text) = (Civil::of(at), String::with_capacity(32));
        for part in &self.0 {
            match part {
                Part::Text(one) => text.push(*one),
                Part::Conversion(conversion) => time.write(*conversion, &mut text),
                Part::Fraction(digits) => {
                    let nanoseconds = format!("{:09}", time.since.subsec_nanos());
                    text.push_str(nanoseconds.get(..*digits).unwrap_or(&nanoseconds));
                }
            }
        }
        text
    }

    /// A time as Envoy writes it where nothing else is said: `2026-11-29T08:00:00.123Z`.
    pub(crate) fn usual(at: SystemTime) -> String {
        let Civil { since, year, month, day } = Civil::of(at);
        let [hour, minute, second] = clock(since);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
    }
}

/// A time by the calendar.
struct Civil {
    /// Since 1970.
    since: Duration,
    year: u64,
    /// From 1 on.
    month: u64,
    day: u64,
}

const A_DAY: u64 = 86_400;

fn clock(since: Duration) -> [u64; 3] {
    let seconds = since.as_secs() % A_DAY;
    [seconds / 3600, seconds / 60 % 60, seconds % 60]
}

fn name(names: &[&'static str], place: u64) -> &'static str {
    usize::try_from(place).ok().and_then(|place| names.get(place)).copied().unwrap_or_default()
}

fn short(name: &str) -> &str {
    name.get(..3).unwrap_or(name)
}

impl Civil {
    fn of(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Howard Hinnant's days to a civil date, for the years from 1970 on.
        let shifted = since.as_secs() / A_DAY + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Civil { since, year, month, day }
    }

    /// A text takes everything.
    fn write(&self, conversion: char, text: &mut String) {
        let Civil { since, year, month, day } = self;
        let [hour, minute, second] = clock(*since);
        // 1970 began on a Thursday.
        let (day_name, month_name) = (name(&DAYS, (since.as_secs() / A_DAY + 4) % 7), name(&MONTHS, month - 1));
        _ = match conversion {
            'a' => write!(text, "{}", short(day_name)),
            'A' => write!(text, "{day_name}"),
            'b' | 'h' => write!(text, "{}", short(month_name)),
            'B' => write!(text, "{month_name}"),
            'd' => write!(text, "{day:02}"),
            'D' => write!(text, "{month:02}/{day:02}/{:02}", year % 100),
            'e' => write!(text, "{day:2}"),
            'F' => write!(text, "{year}-{month:02}-{day:02}"),
            'H' => write!(text, "{hour:02}"),
            'I' => write!(text, "{:02}", (hour + 11) % 12 + 1),
            'm' => write!(text, "{month:02}"),
            'M' => write!(text, "{minute:02}"),
            'p' => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            'R' => write!(text, "{hour:02}:{minute:02}"),
            's' => write!(text, "{}", since.as_secs()),
            'S' => write!(text, "{second:02}"),
            'T' => write!(text, "{hour:02}:{minute:02}:{second:02}"),
            'y' => write!(text, "{:02}", year % 100),
            'Y' => write!(text, "{year}"),
            'z' => write!(text, "+0000"),
            'Z' => write!(text, "UTC"),
            other => write!(text, "{other}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_conversion_is_that_of_c() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::new(seconds, 7_008_009);
        for (format, seconds, expected) in [
            ("%Y/%m/%dT%H:%M:%S%z %s", 1_795_939_200, "2026/11/29T08:00:00+0000 1795939200"),
            ("%a %A %b %h %B %e %y", 1_795_939_200, "Sun Sunday Nov Nov November 29 26"),
            ("%F %T %D %R %Z", 951_782_399, "2000-02-28 23:59:59 02/28/00 23:59 UTC"),
            ("%F %e", 951_868_800, "2000-03-01  1"),
            ("%I %p", 0, "12 AM"),
            ("%I %p", 13 * 3600, "01 PM"),
            ("%f %1f %3f %6f %9f", 0, "007008009 0 007 007008 007008009"),
            ("100%% ü", 0, "100% ü"),
            ("", 0, ""),
        ] {
            assert_eq!(TimeFormat::parse(format).map(|format| format.write(at(seconds))).as_deref(), Some(expected));
        }
        for unknown in ["%", "%Q", "%E3S", "%0f", "%3", "%3s", "%10f", "%n"] {
            assert_eq!(TimeFormat::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_time_is_a_date_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(TimeFormat::usual(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
