//! Streams that last, and the endpoints that they are on: when one should move to another endpoint.
//!
//! A request is balanced when it begins. A stream that lasts for hours stays where the first moment put it, so that servers which
//! come later get nothing. Nobody but the application can move a stream, so it is advised to (`mesh_tonic::streams`). Each
//! stream looks by itself, now and then, at what its client has under way on each endpoint, and moves with a likelihood such
//! that what is above a fair share is gone after a few looks.

use std::time::Duration;

use super::Levels;
use crate::state::EndpointState;

/// How streams are levelled out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Leveling {
    /// The mean time from one look to the next; each is half as long to half as long again, by chance.
    pub interval: Duration,
    /// How old a stream has to be before it moves.
    pub min_age: Duration,
    /// How long a stream that has moved stays, whatever the loads are.
    pub between_moves: Duration,
    /// How much more than its fair share an endpoint may have, in percent.
    pub tolerance_percent: u32,
}

impl Default for Leveling {
    /// A look every 5 s, from an age of 10 s on; a move in 10 minutes at most; a tenth above the fair share is none.
    fn default() -> Self {
        Leveling {
            interval: Duration::from_secs(5),
            min_age: Duration::from_secs(10),
            between_moves: Duration::from_secs(600),
            tolerance_percent: 10,
        }
    }
}

/// What a client has under way on a stream's endpoint, and beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loads {
    /// The endpoint takes requests.
    Among {
        /// What is under way there, and not about to leave.
        here: u32,
        /// What would be there if everything lay by weight.
        fair: f64,
    },
    /// The endpoint takes no more requests (it leaves, fails or is gone), and others do.
    Leaving,
    /// There is nowhere else to go.
    Alone,
}

impl Loads {
    /// Of a stream on this endpoint, among those that take load now. Of a level that has none of it, it is `Leaving`.
    pub fn of(endpoint: &EndpointState, levels: &Levels) -> Loads {
        let mut is_any = false;
        for level in levels.taking_load() {
            let endpoints = &level.endpoints;
            is_any |= !endpoints.is_empty();
            if !endpoints.contains(endpoint) {
                continue;
            }
            let (mut sum, mut weights, mut own) = (0_u64, 0_u64, 0_u64);
            for position in 0..endpoints.len() {
                let Some(other) = endpoints.get(position) else { continue };
                sum += u64::from(other.staying());
                let weight = endpoints.weight(position);
                weights += weight;
                if std::ptr::eq(&**other, endpoint) {
                    own = weight;
                }
            }
            if endpoints.len() < 2 {
                return Loads::Alone;
            }
            let fair = sum as f64 * own as f64 / (weights as f64).max(1.0);
            return Loads::Among { here: endpoint.staying(), fair };
        }
        if is_any { Loads::Leaving } else { Loads::Alone }
    }
}

/// So long is as good as for ever: 30 years, which any clock can add to the present.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

impl Leveling {
    /// The time to a stream's next look. What no clock can add to the present is as good as never.
    pub fn pause(&self, random: &mut fastrand::Rng) -> Duration {
        self.interval.min(NEVER).mul_f64(0.5 + random.f64())
    }

    /// Whether a stream should move now. `age` is that of the stream, `since_move` the time since it moved last, if it ever
    /// did.
    ///
    /// What is above the fair share is divided among all who may look at the same time: of 300 streams where 100 would be
    /// fair, each moves with a likelihood of a third, so that no more than are too many move before the next look shows what
    /// has become of it. One whose endpoint leaves moves at its next look, since its stream would end there.
    pub fn should_move(
        &self,
        loads: Loads,
        age: Duration,
        since_move: Option<Duration>,
        random: &mut fastrand::Rng,
    ) -> bool {
        let (here, fair) = match loads {
            Loads::Leaving => return true,
            Loads::Alone => return false,
            Loads::Among { here, fair } => (f64::from(here), fair),
        };
        if age < self.min_age || since_move.is_some_and(|time| time < self.between_moves) {
            return false;
        }
        // Where a fair share is a part of a stream, there is nothing to be levelled.
        let allowed = (fair * (1.0 + f64::from(self.tolerance_percent) / 100.0)).max(fair.ceil());
        here > allowed && random.f64() * here < (here - fair) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stream {
        server: usize,
        opened: Duration,
        moved: Option<Duration>,
        next_look: Duration,
        moves: u32,
    }

    /// A client with streams on the first of these servers, all of which take load from now on. `picks` is the balancer. What
    /// each server has after this time, and the most moves that a stream has made.
    fn level(
        leveling: Leveling,
        (streams, servers_before, servers): (usize, usize, usize),
        time: Duration,
        picks: impl Fn(&[u32], &mut fastrand::Rng) -> usize,
    ) -> (Vec<u32>, u32) {
        let mut random = fastrand::Rng::with_seed(11);
        let mut loads = vec![0; servers];
        let mut all = Vec::new();
        for number in 0..streams {
            let server = number % servers_before;
            loads[server] += 1;
            let next_look = leveling.pause(&mut random);
            all.push(Stream { server, opened: Duration::ZERO, moved: None, next_look, moves: 0 });
        }
        // They have lasted when the new servers come.
        let started = Duration::from_secs(3600);
        all.iter_mut().for_each(|stream| stream.next_look += started);
        loop {
            let next = all.iter_mut().min_by_key(|stream| stream.next_look).unwrap();
            let now = next.next_look;
            if now > started + time {
                return (loads, all.iter().map(|stream| stream.moves).max().unwrap());
            }
            next.next_look += leveling.pause(&mut random);
            let fair = streams as f64 / servers as f64;
            let seen = Loads::Among { here: loads[next.server], fair };
            let since_move = next.moved.map(|moved| now - moved);
            if leveling.should_move(seen, now - next.opened, since_move, &mut random) {
                // The new stream is there before the old one ends.
                let to = picks(&loads, &mut random);
                loads[to] += 1;
                loads[next.server] -= 1;
                (next.server, next.opened, next.moved) = (to, now, Some(now));
                next.moves += 1;
            }
        }
    }

    fn least_loaded(loads: &[u32], random: &mut fastrand::Rng) -> usize {
        let (a, b) = (random.usize(0..loads.len()), random.usize(0..loads.len()));
        if loads[a] <= loads[b] { a } else { b }
    }

    fn any(loads: &[u32], random: &mut fastrand::Rng) -> usize {
        random.usize(0..loads.len())
    }

    fn ratio(loads: &[u32]) -> f64 {
        let mean = f64::from(loads.iter().sum::<u32>()) / loads.len() as f64;
        f64::from(*loads.iter().max().unwrap()) / mean
    }

    #[test]
    fn a_thousand_streams_on_three_servers_are_level_on_ten_within_a_minute_with_one_move_each_at_most() {
        let minute = Duration::from_secs(60);
        let (loads, moves) = level(Leveling::default(), (1000, 3, 10), minute, least_loaded);
        assert!(ratio(&loads) <= 1.2, "{loads:?}");
        assert_eq!(moves, 1);
        // A balancer that does not look at loads needs its tolerance.
        let (loads, moves) = level(Leveling::default(), (1000, 3, 10), minute, any);
        assert!(ratio(&loads) <= 1.3, "{loads:?}");
        assert_eq!(moves, 1);
    }

    #[test]
    fn an_interval_that_is_too_long_for_any_clock_is_never() {
        let leveling = Leveling { interval: Duration::MAX, ..Leveling::default() };
        let pause = leveling.pause(&mut fastrand::Rng::with_seed(1));
        assert!(pause > Duration::from_secs(10 * 365 * 24 * 60 * 60));
        assert!(std::time::Instant::now().checked_add(pause).is_some());
    }

    #[test]
    fn level_loads_and_few_streams_move_nobody() {
        let hour = Duration::from_secs(3600);
        for (streams, before, servers) in [(1000, 10, 10), (1, 1, 10), (3, 3, 10), (10, 1, 1)] {
            let (_, moves) = level(Leveling::default(), (streams, before, servers), hour, least_loaded);
            assert_eq!(moves, 0, "{streams} streams on {before} of {servers}");
        }
    }

    #[test]
    fn who_has_just_come_or_moved_stays_unless_its_endpoint_leaves() {
        let (mut random, leveling) = (fastrand::Rng::with_seed(1), Leveling::default());
        let mut moves = |loads, age: u64, since: Option<u64>| {
            let (age, since) = (Duration::from_secs(age), since.map(Duration::from_secs));
            (0..200).filter(|_| leveling.should_move(loads, age, since, &mut random)).count()
        };
        let crowded = Loads::Among { here: 300, fair: 100.0 };
        assert!((40..95).contains(&moves(crowded, 60, None)), "a third");
        assert_eq!(moves(crowded, 9, None), 0);
        assert_eq!(moves(crowded, 60, Some(599)), 0);
        assert!(moves(crowded, 700, Some(600)) > 0);
        assert_eq!(moves(Loads::Leaving, 0, Some(1)), 200);
        assert_eq!(moves(Loads::Alone, 60, None), 0);
        assert_eq!(moves(Loads::Among { here: 110, fair: 100.0 }, 60, None), 0);
    }
}
