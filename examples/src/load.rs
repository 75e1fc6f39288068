//! Makes many calls, at a rate or as fast as they are answered.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// When calls are made, and how many.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many in all; without end if `None`.
    pub count: Option<u64>,
    /// For how long they are made; without end if `None`.
    pub time: Option<Duration>,
    /// Calls a second, whether or not earlier ones were answered (an open loop). As fast as `concurrency`
    /// allows if `None` (a closed loop).
    pub rate: Option<f64>,
    /// How many at most are under way at once.
    pub concurrency: usize,
}

impl Pace {
    /// Whether the call of this number may be made at this time after the start.
    fn allows(&self, number: u64, elapsed: Duration) -> bool {
        self.count.is_none_or(|count| number < count) && self.time.is_none_or(|time| elapsed < time)
    }

    /// When the call of this number is due after the start; `None`: at once.
    fn due(&self, number: u64) -> Option<Duration> {
        let seconds = number as f64 / self.rate?.max(f64::MIN_POSITIVE);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

/// Makes calls until the pace or `stop` ends it, and hands each result to `each` as it comes. Calls under way
/// are waited for.
///
/// A call is told its number, counted from 0, and when it was due: in an open loop, latencies from there on do
/// not hide the calls that a stall held back.
pub async fn run<T, F>(
    pace: &Pace,
    stop: impl Future<Output = ()>,
    mut call: impl FnMut(u64, Instant) -> F,
    mut each: impl FnMut(T),
) where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let start = Instant::now();
    let mut calls = JoinSet::new();
    let mut number = 0;
    let mut stopped = false;
    tokio::pin!(stop);
    loop {
        let now = Instant::now();
        let due = pace.due(number).map_or(now, |after| start + after.min(FAR));
        let more = !stopped && pace.allows(number, due.max(now).duration_since(start));
        if !more && calls.is_empty() {
            return;
        }
        tokio::select! {
            // Results before calls: they make room.
            biased;
            () = &mut stop, if !stopped => stopped = true,
            Some(result) = calls.join_next() => match result {
                Ok(result) => each(result),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = reached(due), if more && calls.len() < pace.concurrency.max(1) => {
                calls.spawn(call(number, due));
                number += 1;
            }
        }
    }
}

/// Ready at this time. A timer would be late by up to its tick of 1 ms; for what is due already none is needed.
async fn reached(due: Instant) {
    if due > Instant::now() {
        sleep_until(due).await;
    }
}

/// A time that is never reached, and that an `Instant` can hold.
const FAR: Duration = Duration::from_secs(86_400 * 365);

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: Pace = Pace { count: Some(10), time: None, rate: None, concurrency: 3 };

    async fn numbers(pace: Pace, takes: Duration) -> Vec<(u64, Duration)> {
        let start = Instant::now();
        let mut seen = Vec::new();
        let call = |number, due: Instant| async move {
            tokio::time::sleep(takes).await;
            (number, due - start)
        };
        run(&pace, std::future::pending(), call, |result| seen.push(result)).await;
        seen.sort_unstable();
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_makes_every_call_once_and_keeps_to_its_concurrency() {
        let start = Instant::now();
        let seen = numbers(CLOSED, Duration::from_secs(1)).await;
        assert_eq!(seen.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        // Four rounds of three.
        assert_eq!(start.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_never_waits_for_a_timer() {
        // Between two ticks of the timer, where whoever waits for "now" waits for the next tick.
        tokio::time::advance(Duration::from_micros(500)).await;
        let start = Instant::now();
        let mut seen = 0;
        run(&Pace { concurrency: 1, ..CLOSED }, std::future::pending(), |_, _| async {}, |()| seen += 1).await;
        assert_eq!((seen, start.elapsed()), (10, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_keeps_its_rate_while_answers_are_late() {
        let pace = Pace { rate: Some(10.0), concurrency: 1000, ..CLOSED };
        let start = Instant::now();
        let seen = numbers(pace, Duration::from_secs(5)).await;
        assert_eq!(seen.last(), Some(&(9, Duration::from_millis(900))));
        assert!(start.elapsed() < Duration::from_millis(6000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_had_to_wait_for_others_counts_from_when_it_was_due() {
        let pace = Pace { rate: Some(10.0), concurrency: 1, count: Some(3), ..CLOSED };
        let start = Instant::now();
        let seen = numbers(pace, Duration::from_secs(1)).await;
        assert_eq!(seen.last(), Some(&(2, Duration::from_millis(200))));
        assert!(start.elapsed() >= Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_limit_ends_it() {
        let pace = Pace { count: None, time: Some(Duration::from_secs(1)), rate: Some(10.0), concurrency: 1 };
        assert_eq!(numbers(pace, Duration::ZERO).await.len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_what_is_under_way() {
        let pace = Pace { count: None, ..CLOSED };
        let mut seen = 0;
        let call = |_, _| tokio::time::sleep(Duration::from_secs(2));
        run(&pace, tokio::time::sleep(Duration::from_secs(1)), call, |()| seen += 1).await;
        assert_eq!(seen, 3);
    }
}
