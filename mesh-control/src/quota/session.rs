//! One stream of a client: the buckets that it reports, the share of each that it was sent, and what it is to be sent next. Pure:
//! `now` is the time since 1970, and what is to be settled is handed out as [`Ask`]s.
//!
//! A share is a token bucket that is filled no more before it is over. It takes the place of the one before, and until the client
//! has said that it goes by it, both are held for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::rate_limit_quota::v3::BucketId;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::{
    AbandonAction, BucketAction as Kind, QuotaAssignmentAction,
};
use envoy_types::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, Strategy};
use envoy_types::pb::envoy::r#type::v3::{RateLimitStrategy, TokenBucket};
use envoy_types::pb::google::protobuf;
use mesh_core::xds::quota::Usage;

use super::account::{Ask, Settled};
use super::store::{PART_OF_RULE, Question, Taken};
use super::{Identity, Key};
use crate::catalog::QuotaLimit;

/// Buckets of one stream, and bytes of their names.
const ROOM: Taken = Taken { accounts: 100_000, bytes: 16 << 20 };
/// Whoever used so much of a share shows that he could use one that is so many times as large.
const GROWTH: u64 = 4;
/// No report has more requests.
const MOST_USED: u64 = 1 << 32;
/// A share holds for so many intervals of reports, within these bounds.
const INTERVALS: u32 = 10;
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);
/// So much longer it is held for a client, whose clock begins later, and whose last report comes later still.
const MARGIN: Duration = Duration::from_secs(3);
/// A token bucket of a share is filled after so many days, when it is long over; each has another time, since a client goes on
/// with a bucket that is the same as before.
const REFILL_DAYS: u64 = 1000;

/// The buckets of a stream.
#[derive(Debug, Default)]
pub(crate) struct Session {
    buckets: BTreeMap<Key, Bucket>,
    /// What is taken by all, and by each rule, by its quota and its name.
    taken: Taken,
    of_rules: HashMap<(String, String), Taken>,
    seed: u64,
}

#[derive(Debug)]
struct Bucket {
    identity: Arc<Identity>,
    limit: QuotaLimit,
    lease: u64,
    /// What the client has told that it let pass, and that is not settled yet.
    unsettled: u64,
    /// What it may let pass by the share that it goes by.
    holds: u64,
    /// A share that it may not go by yet.
    coming: Option<Coming>,
    /// What it used since its last share was sent, and before that since the one before.
    used: u64,
    used_before: u64,
    /// How many assignments it was sent.
    sent: u64,
    said: Said,
    /// Until when that holds for it.
    until: Duration,
    /// Requests a second.
    rate: f64,
    /// When it told of requests last, and whether it had to refuse some.
    told: Duration,
    is_short: bool,
    /// When it was settled last.
    settled: Duration,
    /// Whether the client does not say by which assignment it goes.
    is_envoy: bool,
}

#[derive(Clone, Copy, Debug)]
struct Coming {
    number: u64,
    tokens: u64,
    /// Whether what the client holds has it in: of one that does not say by which it goes, together with what it had before.
    is_met: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// So many, by the number of the assignment.
    Share(u64, u64),
    /// None: others have the rest, or there is none.
    None,
}

impl Session {
    /// A session whose leases are told from those of others by this.
    pub(crate) fn new(seed: u64) -> Session {
        Session { seed, ..Session::default() }
    }

    /// Takes in what was used of a bucket; what is to be settled for it. `limit` says what is in force for it.
    pub(crate) fn hear(
        &mut self,
        usage: &Usage,
        limit: impl FnOnce(&Identity) -> Option<QuotaLimit>,
        now: Duration,
    ) -> Option<Question> {
        let identity = Identity::of(&usage.bucket_id.as_ref()?.bucket)?;
        let key = identity.key();
        let limit = limit(&identity)?;
        if !self.buckets.contains_key(&key) {
            let of_rule = self.of_rules.entry((identity.quota.clone(), identity.rule.clone())).or_default();
            if self.taken.is_full(ROOM, 1) || of_rule.is_full(ROOM, PART_OF_RULE) {
                return None;
            }
            self.taken.add(&identity);
            of_rule.add(&identity);
        }
        let seed = &mut self.seed;
        let bucket = self.buckets.entry(key).or_insert_with(|| {
            // 53 bits: what a script of Redis can count with.
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            Bucket::new(identity, limit, *seed >> 11, now)
        });
        bucket.set(limit);
        bucket.hear(usage, now);
        Some(bucket.question(key, now))
    }

    /// What there is to do without a word of the client: what is to be settled, and what it is to forget.
    pub(crate) fn due(
        &mut self,
        mut limit: impl FnMut(&Identity) -> Option<QuotaLimit>,
        now: Duration,
    ) -> (Vec<Question>, Vec<BucketAction>) {
        let (mut asked, mut abandoned) = (Vec::new(), Vec::new());
        let (taken, of_rules) = (&mut self.taken, &mut self.of_rules);
        self.buckets.retain(|key, bucket| {
            let mut forget = |bucket: &Bucket| {
                taken.take_out(&bucket.identity);
                let rule = (bucket.identity.quota.clone(), bucket.identity.rule.clone());
                of_rules.entry(rule).and_modify(|of_rule| of_rule.take_out(&bucket.identity));
                abandoned.push(bucket.action(Kind::AbandonAction(AbandonAction {})));
            };
            let Some(limit) = limit(&bucket.identity) else {
                forget(bucket);
                return false;
            };
            bucket.set(limit);
            if bucket.is_idle(now) {
                forget(bucket);
                return false;
            }
            if bucket.is_due(now) {
                asked.push(bucket.question(*key, now));
            }
            true
        });
        (asked, abandoned)
    }

    /// Takes in how a quota stands; what the client is to be told of it.
    pub(crate) fn settled(&mut self, question: &Question, settled: &Settled, now: Duration) -> Vec<BucketAction> {
        let (key, _, ask) = question;
        self.buckets.get_mut(key).map(|bucket| bucket.settled(ask, settled, now)).unwrap_or_default()
    }

    /// The client has told all and leaves: its leases are given back.
    pub(crate) fn leave(&mut self, now: Duration) -> Vec<Question> {
        (self.taken, self.of_rules) = Default::default();
        let buckets = std::mem::take(&mut self.buckets).into_iter();
        buckets
            .map(|(key, bucket)| {
                let (_, identity, ask) = bucket.question(key, now);
                (key, identity, Ask { holds: 0, wants: false, until: 0, ..ask })
            })
            .collect()
    }

    /// The stream broke: what the client has told and what is not settled yet. What it may use stays with it until that is over.
    pub(crate) fn rest(&mut self, now: Duration) -> Vec<Question> {
        (self.taken, self.of_rules) = Default::default();
        let told = std::mem::take(&mut self.buckets).into_iter().filter(|(_, bucket)| bucket.unsettled > 0);
        told.map(|(key, bucket)| {
            let (_, identity, ask) = bucket.question(key, now);
            (key, identity, Ask { wants: false, until: held(bucket.until), ..ask })
        })
        .collect()
    }
}

impl Bucket {
    fn new(identity: Identity, limit: QuotaLimit, lease: u64, now: Duration) -> Bucket {
        Bucket {
            identity: Arc::new(identity),
            limit,
            lease,
            unsettled: 0,
            holds: 0,
            coming: None,
            used: 0,
            used_before: 0,
            sent: 0,
            said: Said::Nothing,
            until: now,
            rate: 0.0,
            told: now,
            is_short: false,
            settled: now,
            is_envoy: false,
        }
    }

    /// Goes by what is in force now.
    fn set(&mut self, limit: QuotaLimit) {
        if self.limit != limit {
            self.limit = limit;
            // As if nothing had been said, so that something is.
            self.said = Said::Nothing;
        }
    }

    fn hear(&mut self, usage: &Usage, now: Duration) {
        self.is_envoy = usage.heard == 0;
        if usage.allowed > 0 || usage.denied > 0 {
            (self.told, self.is_short) = (now, usage.denied > 0);
        }
        // Nobody uses up more than all of it, whatever he says.
        let used = usage.allowed.min(MOST_USED).min(self.limit.requests);
        self.unsettled = self.unsettled.saturating_add(used);
        self.used = self.used.saturating_add(used);
        let elapsed = usage.time_elapsed.as_ref().map_or(0.0, |time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
        let interval = self.limit.interval.as_secs_f64();
        // Whoever is refused wants more than he has, but how much more is only said: twice as much, at most.
        let requests = used.saturating_add(usage.denied.min(used.max(1))) as f64;
        // Reports that come soon after each other say little each.
        let weight = if self.rate > 0.0 { (elapsed / interval).clamp(0.0, 1.0) } else { 1.0 };
        if weight > 0.0 {
            let rate = requests / elapsed.max(if self.rate > 0.0 { 0.0 } else { interval / 2.0 });
            self.rate = self.rate * (1.0 - weight) + rate * weight;
        }
        self.holds = match (self.coming, usage.heard.checked_sub(1)) {
            // It goes by the new share by now. What it used before was of the old one, so that the new one is whole.
            (Some(coming), Some(applied)) if applied >= coming.number => {
                self.coming = None;
                coming.tokens
            }
            // It does not say by which share it goes. The first report may have been on its way, or be of both.
            (Some(coming), None) if !coming.is_met => {
                self.coming = Some(Coming { is_met: true, ..coming });
                self.holds.saturating_add(coming.tokens).saturating_sub(used)
            }
            (Some(coming), None) => {
                self.coming = None;
                self.holds.min(coming.tokens).saturating_sub(used)
            }
            _ => self.holds.saturating_sub(used),
        };
    }

    /// How long a share holds.
    fn ttl(&self) -> Duration {
        self.limit.interval.saturating_mul(INTERVALS).clamp(SHORTEST, LONGEST)
    }

    /// Nobody used it for the most part of the time for which its share holds, or the refused did not come back.
    fn is_idle(&self, now: Duration) -> bool {
        let unused = now.saturating_sub(self.told);
        let is_over = match self.said {
            Said::Nothing => false,
            Said::Share(..) => unused >= self.ttl() * 2 / 3,
            Said::None => unused >= self.ttl() * 2 / 3 && self.until <= now,
        };
        is_over && self.unsettled == 0
    }

    fn is_due(&self, now: Duration) -> bool {
        let is_waiting = match self.said {
            Said::Nothing => true,
            Said::Share(..) => false,
            // Others may have given something back.
            Said::None => {
                let is_held = self.is_short && self.until <= now + self.ttl();
                self.until <= now || (is_held && self.settled + self.limit.interval <= now)
            }
        };
        self.unsettled > 0 || is_waiting
    }

    fn question(&self, key: Key, now: Duration) -> Question {
        let coming = self.coming.filter(|coming| !coming.is_met);
        let holds = self.holds.saturating_add(coming.map_or(0, |coming| coming.tokens));
        let is_low = match self.said {
            Said::Nothing | Said::None => true,
            Said::Share(share, _) => self.holds <= share / 2 || self.until.saturating_sub(now) < self.ttl() / 2,
        };
        let wants = coming.is_none() && is_low;
        let until = if wants { now + self.ttl() } else { self.until };
        let ask = Ask {
            lease: self.lease,
            period: self.limit.unit.period(now),
            limit: self.limit.requests,
            used: self.unsettled,
            holds,
            wants,
            // In thousandths; one that was only seen once is like the others.
            demand: if self.sent == 0 { 0 } else { (self.rate * 1000.0) as u64 + 1 },
            shown: self.used.max(self.used_before).saturating_mul(GROWTH),
            until: held(until),
        };
        (key, Arc::clone(&self.identity), ask)
    }

    fn settled(&mut self, ask: &Ask, settled: &Settled, now: Duration) -> Vec<BucketAction> {
        self.unsettled = self.unsettled.saturating_sub(ask.used);
        self.settled = now;
        if !ask.wants {
            return Vec::new();
        }
        let ttl = self.ttl();
        if settled.granted > 0 {
            self.sent += 1;
            self.used_before = std::mem::take(&mut self.used);
            self.coming = Some(Coming { number: self.sent, tokens: settled.granted, is_met: false });
            // Envoy makes a token bucket that takes the place of another one as empty as that was (seen with 1.40). In between it
            // is told of none, in the same message.
            let is_in_place = self.is_envoy && matches!(self.said, Said::Share(..));
            (self.said, self.until) = (Said::Share(settled.granted, self.sent), now + ttl);
            let share = self.share(settled.granted, self.sent, ttl);
            return is_in_place.then(|| self.none(ttl)).into_iter().chain([share]).collect();
        }
        match self.said {
            // It goes on with what it has.
            Said::Share(tokens, number) if self.holds > 0 => {
                if self.until.saturating_sub(now) >= ttl / 2 {
                    return Vec::new();
                }
                (self.sent, self.until) = (self.sent + 1, now + ttl);
                vec![self.share(tokens, number, ttl)]
            }
            _ => {
                let is_used_up = settled.used >= self.limit.requests;
                let end = Duration::from_secs(ask.period.end);
                let until = if is_used_up { end } else { (now + ttl).min(end) };
                if self.said == Said::None && (self.until == until || (!is_used_up && self.until > now + ttl / 2)) {
                    return Vec::new();
                }
                self.sent += 1;
                (self.said, self.until) = (Said::None, until);
                vec![self.none(until.saturating_sub(now))]
            }
        }
    }

    fn share(&self, tokens: u64, number: u64, ttl: Duration) -> BucketAction {
        let refill = Duration::from_secs(REFILL_DAYS * 24 * 60 * 60) + Duration::from_micros(number);
        let bucket = TokenBucket {
            max_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            tokens_per_fill: Some(protobuf::UInt32Value { value: 1 }),
            fill_interval: Some(duration(refill)),
        };
        self.assigned(RateLimitStrategy { strategy: Some(Strategy::TokenBucket(bucket)) }, ttl)
    }

    fn none(&self, ttl: Duration) -> BucketAction {
        self.assigned(RateLimitStrategy { strategy: Some(Strategy::BlanketRule(BlanketRule::DenyAll.into())) }, ttl)
    }

    fn assigned(&self, strategy: RateLimitStrategy, ttl: Duration) -> BucketAction {
        self.action(Kind::QuotaAssignmentAction(QuotaAssignmentAction {
            assignment_time_to_live: Some(duration(ttl)),
            rate_limit_strategy: Some(strategy),
        }))
    }

    fn action(&self, action: Kind) -> BucketAction {
        let bucket = self.identity.bucket().collect();
        BucketAction { bucket_id: Some(BucketId { bucket }), bucket_action: Some(action) }
    }
}

/// Until when a share is held that is good until then.
fn held(until: Duration) -> u64 {
    u64::try_from((until + MARGIN).as_millis()).unwrap_or(u64::MAX)
}

fn duration(time: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    }
}
