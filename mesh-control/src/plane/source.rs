//! How old a configuration is whose source went away: what it held stays in force, and people have to know since when.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is said again.
const AGAIN: Duration = Duration::from_secs(600);

/// What is known of a source from one look at it to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    gone: Option<Gone>,
}

#[derive(Clone, Debug)]
struct Gone {
    why: String,
    /// When it was found gone.
    since: Instant,
    /// When that was said last.
    said: Instant,
}

/// A part of the configuration that is as old as this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// What became of its source.
    pub(crate) why: String,
    /// For how long it has been gone.
    pub(crate) age: Duration,
}

impl Source {
    /// Takes in why it is gone now, if it is. Returns its age where that is to be said again.
    pub(super) fn look(&mut self, gone: Option<String>, now: Instant) -> Option<Stale> {
        let Some(why) = gone else {
            self.gone = None;
            return None;
        };
        let known = self.gone.get_or_insert_with(|| Gone { why: String::new(), since: now, said: now });
        known.why = why;
        if now < known.said + AGAIN {
            return None;
        }
        known.said = now;
        self.stale(now)
    }

    /// For how long it has been gone, if it is.
    pub(super) fn stale(&self, now: Instant) -> Option<Stale> {
        let Gone { why, since, .. } = self.gone.as_ref()?;
        Some(Stale { why: why.clone(), age: now.saturating_duration_since(*since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_gone_is_said_to_be_so_again_and_its_age_counts_from_the_first_look() {
        let start = Instant::now();
        let mut source = Source::default();
        for (after, is_gone, said, age) in [
            (0, false, None, None),
            (10, true, None, Some(0)),
            (12, true, None, Some(2)),
            (610, true, Some(600), Some(600)),
            (612, true, None, Some(602)),
            (1300, true, Some(1290), Some(1290)),
            (1302, false, None, None),
            (1304, true, None, Some(0)),
        ] {
            let now = start + Duration::from_secs(after);
            let seconds = |stale: Option<Stale>| stale.map(|stale| stale.age.as_secs());
            assert_eq!(seconds(source.look(is_gone.then(|| "gone".to_owned()), now)), said, "{after}");
            assert_eq!(seconds(source.stale(now)), age, "{after}");
        }
    }
}
