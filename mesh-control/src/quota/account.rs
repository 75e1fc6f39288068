//! What of a quota is used, and who may use how much of the rest: pure, `now` is the time since 1970 in milliseconds.
//!
//! A client of the service gets a *lease*: so many requests, until then. What it used is told later; the rest is free again when
//! the lease is over, or given back. At any time what is used and what is leased is the quota at most, but for what clients
//! let pass without a lease. `settle.lua` does the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::period::Period;

/// The quota of one identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// The period that is counted.
    pub period: Period,
    /// What was used in it.
    pub used: u64,
    /// Who may use more, by the number of the lease.
    pub leases: BTreeMap<u64, Lease>,
}

/// What a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// How many requests.
    pub tokens: u64,
    /// Until when.
    pub until: u64,
    /// How many it has, in relation to others.
    pub demand: u64,
    /// How many of them are more than it has shown that it uses.
    pub claimed: u64,
}

/// What a client has used, and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Its lease.
    pub lease: u64,
    /// The period.
    pub period: Period,
    /// The quota.
    pub limit: u64,
    /// How many requests it let pass since it told of them last.
    pub used: u64,
    /// How many more it may let pass by what it was told.
    pub holds: u64,
    /// Whether it wants another share, in the place of what it holds.
    pub wants: bool,
    /// How many requests it has, in relation to others; 0 where that is not known yet.
    pub demand: u64,
    /// How large a share is by what it has used: what goes beyond it is a mere claim.
    pub shown: u64,
    /// Until when it may use what it holds and is granted; in the past, it gives it back.
    pub until: u64,
}

/// How a quota stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// How much of it is used.
    pub used: u64,
    /// How much of it clients may use besides, whoever asks among them.
    pub leased: u64,
    /// What is granted to who asks.
    pub granted: u64,
}

/// The part of what nobody has that one client gets at once; and of what is left, that all have together who have not shown that
/// they use it.
pub(super) const PART: u64 = 4;
/// So few are not divided.
pub(super) const FEW: u64 = 16;
/// The highest demand.
pub(super) const MOST_DEMAND: u64 = 1_000_000;

impl Account {
    /// Takes in what a client used, and grants it a share: as much of what is left as it has of the demand, and a part of
    /// what nobody has at most, for whoever may come.
    pub(super) fn settle(&mut self, ask: &Ask, now: u64) -> Settled {
        // A clock may be a little behind the one that counted before. All else is another period, of whatever length.
        if ask.period != self.period && ask.period.end != self.period.start {
            (self.period, self.used) = (ask.period, 0);
        }
        self.used = self.used.saturating_add(ask.used);
        self.leases.retain(|number, lease| *number != ask.lease && lease.until > now);
        let sum = |part: fn(&Lease) -> u64| self.leases.values().map(part).fold(0, u64::saturating_add);
        let (others, demands) = (sum(|lease| lease.tokens), sum(|lease| lease.demand));
        let left = ask.limit.saturating_sub(self.used);
        let free = left.saturating_sub(others).saturating_sub(ask.holds);
        let demand = match (ask.demand, self.leases.len() as u64) {
            (0, 0) => 1,
            (0, others) => (demands / others).max(1),
            (demand, _) => demand.min(MOST_DEMAND),
        };
        let all = u128::from(demand) + u128::from(demands);
        let share = (u128::from(left) * u128::from(demand)).div_ceil(all);
        let some = if left <= FEW { free } else { free.div_ceil(PART) };
        // Who only says that it wants much, has little: claims of all together are a part of what is left, and one request each.
        let claims = if left <= FEW { left } else { left.div_ceil(PART) };
        let claims = claims.saturating_sub(sum(|lease| lease.claimed));
        let believed = ask.shown.saturating_add(claims).max(1);
        let granted = u64::try_from(share).unwrap_or(u64::MAX).min(some).min(believed);
        // It takes the place of what is held: less of it helps nobody.
        let granted = if ask.wants && granted > ask.holds { granted } else { 0 };
        let tokens = ask.holds.saturating_add(granted);
        let is_kept = ask.until > now;
        if is_kept {
            let claimed = tokens.saturating_sub(ask.shown);
            self.leases.insert(ask.lease, Lease { tokens, until: ask.until, demand, claimed });
        }
        let leased = others.saturating_add(if is_kept { tokens } else { 0 });
        Settled { used: self.used, leased, granted: if is_kept { granted } else { 0 } }
    }

    /// Forgets leases that are over.
    pub(super) fn prune(&mut self, now: u64) {
        self.leases.retain(|_, lease| lease.until > now);
    }

    /// Whether it says nothing that still counts.
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.period.end.saturating_mul(1000) <= now && self.leases.values().all(|lease| lease.until <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Period = Period { start: 0, end: 60 };

    fn ask(lease: u64, used: u64, holds: u64, until: u64) -> Ask {
        Ask { lease, period: MINUTE, limit: 100, used, holds, wants: true, demand: 0, shown: 4 * used, until }
    }

    #[test]
    fn each_client_gets_a_part_of_the_rest_by_its_demand_and_gives_it_back_in_the_end() {
        let mut account = Account::default();
        assert_eq!(account.settle(&ask(1, 0, 0, 10), 0), Settled { used: 0, leased: 25, granted: 25 });
        assert_eq!(
            account.settle(&ask(2, 0, 0, 10), 0).granted,
            1,
            "who has used nothing yet has a quarter with all others"
        );
        let busy = Ask { demand: 9, ..ask(2, 19, 0, 10) };
        assert_eq!(account.settle(&busy, 0), Settled { used: 19, leased: 39, granted: 14 });
        assert_eq!(account.settle(&ask(1, 5, 20, 10), 0).granted, 0, "less than it has");
        let later = Settled { used: 24, leased: 19, granted: 19 };
        assert_eq!(account.settle(&ask(3, 0, 0, 20), 10), later, "what others had is free after its time");
        assert_eq!(account.settle(&ask(3, 10, 9, 0), 10), Settled { used: 34, leased: 0, granted: 0 }, "given back");
    }

    #[test]
    fn the_last_ones_are_given_away_and_then_there_is_nothing_until_the_next_period() {
        let mut account = Account::default();
        assert_eq!(account.settle(&ask(1, 90, 0, 9), 0).granted, 10);
        assert_eq!(account.settle(&ask(1, 10, 0, 9), 0).granted, 0);
        let next = Ask { period: Period { start: 60, end: 120 }, ..ask(1, 0, 0, 60_009) };
        assert_eq!(account.settle(&next, 60_000), Settled { used: 0, leased: 25, granted: 25 });
        let behind = Ask { shown: 100, ..ask(2, 1, 0, 60_009) };
        assert_eq!(account.settle(&behind, 59_999), Settled { used: 1, leased: 44, granted: 19 }, "a clock behind");
        let hour = Ask { period: Period { start: 0, end: 3600 }, ..ask(2, 1, 0, 60_009) };
        assert_eq!(account.settle(&hour, 60_000).used, 1, "of another length");
    }

    proptest! {
        #[test]
        fn equal_clients_get_equal_parts(count in 2_u64..6, limit in 200_u64..2000) {
            let mut account = Account::default();
            let mut used = vec![0_u64; usize::try_from(count).unwrap()];
            let mut has = used.clone();
            for round in 0..1000 {
                for client in 0..count {
                    let at = usize::try_from(client).unwrap();
                    let now = round * 100;
                    // Each has ten requests in the time of a round.
                    let spent = has[at].min(10);
                    has[at] -= spent;
                    used[at] += spent;
                    let ask = Ask {
                        lease: client + 1, period: Period { start: 0, end: 1000 }, limit, used: spent, holds: has[at],
                        wants: true, demand: 100, shown: 40, until: now + 1000,
                    };
                    let granted = account.settle(&ask, now).granted;
                    if granted > 0 {
                        has[at] = granted;
                        account.settle(&Ask { used: 0, holds: granted, wants: false, ..ask }, now);
                    }
                }
            }
            let sum: u64 = used.iter().sum();
            prop_assert_eq!(sum, limit, "all of it is used");
            let fair = limit / count;
            prop_assert!(used.iter().all(|used| used.abs_diff(fair) <= fair / 4 + FEW), "{:?}", used);
        }
    }
}
