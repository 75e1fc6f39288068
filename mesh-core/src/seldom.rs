//! Bounds how often the log has a line that every request could cause.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When the log last had something: at once, and then now and then, is enough.
///
/// ```
/// use mesh_core::seldom::Seldom;
/// use std::time::{Duration, Instant};
///
/// let (told, now) = (Seldom::default(), Instant::now());
/// assert!(told.is_due(now));
/// assert!(!told.is_due(now + Duration::from_secs(9)));
/// assert!(told.is_due(now + Duration::from_secs(10)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Seldom(Arc<Mutex<Option<Instant>>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether it is to be told again; then it counts as told.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_now_and_then() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let told = (0..1000).filter(|tenths| seldom.is_due(start + Duration::from_millis(100 * tenths))).count();
        assert_eq!(told, 10);
    }
}
