//! How old a configuration is whose directory went away: what it held stays in force, and people have to know since when.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is said again.
const AGAIN: Duration = Duration::from_secs(600);

/// What is known of a directory from one look at it to the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Source {
    /// When it was found gone, and when that was said last.
    gone: Option<(Instant, Instant)>,
}

impl Source {
    /// Takes in whether it is gone now. Returns its age where that is to be said again.
    pub(super) fn look(&mut self, is_gone: bool, now: Instant) -> Option<Duration> {
        let Some((since, said)) = self.gone.filter(|_| is_gone) else {
            self.gone = is_gone.then_some((now, now));
            return None;
        };
        if now < said + AGAIN {
            return None;
        }
        self.gone = Some((since, now));
        Some(now - since)
    }

    /// For how long it has been gone, if it is.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.gone.map(|(since, _)| now.saturating_duration_since(since))
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
            let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
            assert_eq!(source.look(is_gone, now), seconds(said), "{after}");
            assert_eq!(source.age(now), seconds(age), "{after}");
        }
    }
}
