//! How often the status of an object is written, or an entry of ours: once over each version of it, until another one is seen; and the
//! same words a few times at most, for where they are gone again each time, somebody else takes them for its own. Plain decisions,
//! with `now` as an argument.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// So often the same is written within this time.
const MOST: u32 = 3;
const WITHIN: Duration = Duration::from_secs(600);
/// How soon it is tried again where the API server refused it: permissions are granted, and kinds installed, at any time.
const REFUSED: Duration = Duration::from_secs(60);

/// What was written, and over what.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    of: HashMap<Arc<str>, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    over: String,
    words: Value,
    times: u32,
    since: Instant,
    /// When it was refused.
    refused: Option<Instant>,
}

/// Whether something is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    Write,
    /// What came of the last time has not been seen yet, or it was refused a moment ago.
    Wait,
    /// Somebody else writes over it: this is the last time, for a while.
    LastTime,
    /// It was.
    Never,
}

impl Attempts {
    /// Whether these words may be written over this version of an object. If so, they count as written.
    pub(super) fn may(&mut self, name: &Arc<str>, version: &str, words: &Value, now: Instant) -> May {
        let Some(known) = self.of.get_mut(name) else {
            let first = Attempt { over: version.to_owned(), words: words.clone(), times: 1, since: now, refused: None };
            self.of.insert(name.clone(), first);
            return May::Write;
        };
        if let Some(refused) = known.refused {
            if known.over == version && now.saturating_duration_since(refused) < REFUSED {
                return May::Wait;
            }
            known.refused = None;
        } else if known.over == version {
            return May::Wait;
        }
        if known.words != *words || now.saturating_duration_since(known.since) >= WITHIN {
            *known = Attempt { over: version.to_owned(), words: words.clone(), times: 1, since: now, refused: None };
            return May::Write;
        }
        if known.times >= MOST {
            return May::Never;
        }
        known.over = version.to_owned();
        known.times += 1;
        if known.times == MOST { May::LastTime } else { May::Write }
    }

    /// What was to be written was not: the API server does not want it.
    pub(super) fn refused(&mut self, name: &str, now: Instant) {
        if let Some(known) = self.of.get_mut(name) {
            (known.refused, known.times) = (Some(now), known.times.saturating_sub(1));
        }
    }

    /// Nobody knows what came of it: it is tried again over the same version, which says whether that was in vain.
    pub(super) fn lost(&mut self, name: &str) {
        self.of.remove(name);
    }

    /// Another version is already there: it was not written, and will be over that one.
    pub(super) fn outdated(&mut self, name: &str) {
        if let Some(known) = self.of.get_mut(name) {
            known.times = known.times.saturating_sub(1);
        }
    }

    /// Forgets objects that are gone.
    pub(super) fn retain(&mut self, names: &HashSet<&str>) {
        self.of.retain(|name, _| names.contains(&**name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_is_written_over_once_and_who_writes_over_it_again_and_again_has_the_last_word() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let name: Arc<str> = "a".into();
        let (one, two) = (json!("one"), json!("two"));
        for (seconds, version, words, expected) in [
            (0, "1", &one, May::Write),
            (1, "1", &one, May::Wait),
            (2, "2", &one, May::Write),
            (3, "3", &one, May::LastTime),
            (4, "4", &one, May::Never),
            (5, "5", &one, May::Never),
            (6, "6", &two, May::Write),
            (7, "7", &two, May::Write),
            (606, "8", &two, May::Write),
            (607, "9", &two, May::Write),
        ] {
            assert_eq!(attempts.may(&name, version, words, at(seconds)), expected, "{version}");
        }
        attempts.retain(&HashSet::new());
        assert_eq!(attempts.may(&name, "9", &two, at(608)), May::Write);
    }

    #[test]
    fn what_was_refused_is_tried_again_later_and_what_was_lost_or_came_too_late_at_once() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (name, words): (Arc<str>, _) = ("a".into(), json!("one"));
        let mut seconds = 0;
        for _ in 0..9 {
            assert_eq!(attempts.may(&name, "1", &words, at(seconds)), May::Write);
            attempts.refused(&name, at(seconds));
            assert_eq!(attempts.may(&name, "1", &words, at(seconds + 59)), May::Wait);
            seconds += 60;
        }
        assert_eq!(attempts.may(&name, "1", &words, at(seconds)), May::Write);
        attempts.lost(&name);
        assert_eq!(attempts.may(&name, "1", &words, at(seconds)), May::Write);
        for version in 2..9 {
            attempts.outdated(&name);
            assert_eq!(attempts.may(&name, &version.to_string(), &words, at(seconds)), May::Write);
        }
    }
}
