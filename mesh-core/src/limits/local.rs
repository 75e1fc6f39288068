//! Local limits: the buckets that a request takes from, and what becomes of it (Envoy's `LocalRateLimiterImpl`).
//!
//! Of each descriptor of a request the rule with these very values counts, else one that takes any value and keeps a bucket for
//! each. The strictest of those that are found comes first. A request that one of them has no room for takes nothing from
//! the others, unlike in Envoy. Rules lie together by their keys, and which of them a descriptor may find is known before there is a
//! request: what is left to do is to hash its values, and one look-up, however many rules there are. What is told of a bucket takes
//! longer than to take from it, and is worked out for one of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::bucket::{Bucket, Drawn, Epoch, KeyedBuckets, Rate, Taken, Ticks};
use super::descriptor::{DescriptorMaker, Entries, LimitedRequest, Values};
use crate::model::{LocalRateLimit, LocalRule};
use crate::state::{LimitCounts, lock};

/// The buckets of one limit, which outlive its configuration: each is found again by the descriptor that it is for.
#[derive(Debug)]
pub struct LocalBuckets {
    epoch: Epoch,
    /// So that nobody can choose keys that meet in one place.
    hasher: RandomState,
    kept: Mutex<HashMap<BucketKey, Kept>>,
}

/// Which bucket it is: the entries of its rule, none for that of the whole limit; and whether connections have their own.
type BucketKey = (Vec<(Arc<str>, Arc<str>)>, bool);

#[derive(Debug)]
struct Kept {
    rate: Rate,
    keys: u32,
    buckets: Buckets,
}

/// The bucket of a rule, or those of its keys.
#[derive(Clone, Debug)]
enum Buckets {
    One(Arc<Bucket>),
    Keyed(Arc<KeyedBuckets>),
}

impl LocalBuckets {
    /// None yet; time begins now.
    pub fn new(now: Instant) -> Self {
        LocalBuckets { epoch: Epoch::new(now), hasher: RandomState::default(), kept: Mutex::default() }
    }

    /// The buckets of a rule, as full as they were.
    fn of(&self, key: BucketKey, rate: Rate, keys: Option<u32>, now: Ticks) -> Buckets {
        let mut kept = lock(&self.kept);
        if let Some(present) = kept.get_mut(&key).filter(|present| present.keys == keys.unwrap_or(0)) {
            if present.rate.config() != rate.config() {
                match &present.buckets {
                    Buckets::One(bucket) => bucket.change(&present.rate, &rate, now),
                    Buckets::Keyed(buckets) => buckets.change(&present.rate, &rate, now),
                }
                present.rate = rate;
            }
            return present.buckets.clone();
        }
        let buckets = match keys {
            None => Buckets::One(Arc::default()),
            Some(keys) => Buckets::Keyed(Arc::new(KeyedBuckets::new(keys))),
        };
        kept.insert(key, Kept { rate, keys: keys.unwrap_or(0), buckets: buckets.clone() });
        buckets
    }

    /// Forgets those that no rule is for any more.
    fn retain(&self, is_used: impl Fn(&BucketKey) -> bool) {
        lock(&self.kept).retain(|key, _| is_used(key));
    }
}

/// A local limit, ready to be asked.
#[derive(Debug)]
pub struct LocalLimiter {
    buckets: Arc<LocalBuckets>,
    default: Option<Rule>,
    is_for_all: bool,
    per_connection: bool,
    groups: Box<[Group]>,
}

/// The rules with the same keys.
#[derive(Debug)]
struct Group {
    keys: Box<[Arc<str>]>,
    /// First those that are for one value of each key.
    rules: Vec<Rule>,
    /// Those by the hash of their values.
    exact: HashMap<u64, SmallVec<[u32; 1]>, BuildHasherDefault<Hashed>>,
    /// How many they are.
    fixed: usize,
}

/// So many rules are looked through faster than values are hashed.
const FEW_RULES: usize = 4;

#[derive(Debug)]
struct Rule {
    config: LocalRule,
    rate: Rate,
    /// How many others are stricter.
    rank: usize,
    /// Whether any value does, of every entry.
    takes_all: bool,
    buckets: Buckets,
    counts: Arc<LimitCounts>,
}

/// What descriptors of a route's requests are made of, and which rules those may find.
#[derive(Debug)]
pub struct LocalPlan {
    planned: Box<[Planned]>,
    needs_authority: bool,
}

impl LocalPlan {
    /// Whether whom a request is for is asked for. Else nobody has to find it out.
    #[inline]
    pub fn needs_authority(&self) -> bool {
        self.needs_authority
    }
}

#[derive(Debug)]
struct Planned {
    maker: DescriptorMaker,
    hits: u64,
    /// The group of its keys; `None` where these differ from request to request.
    group: Option<usize>,
    values: PlannedValues,
}

/// What has to be done for the values of a descriptor.
#[derive(Clone, Copy, Debug)]
enum PlannedValues {
    /// There is one, which is the request's or the configuration's own.
    One,
    /// There are several of these.
    Plain,
    /// They are written, with their keys.
    Made,
}

/// What a limit says of a request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LocalVerdict<'l> {
    /// Whether it is within the limit.
    pub is_within: bool,
    /// The rule that has no room for it, or the strictest of those that have.
    pub rule: &'l LocalRule,
    /// What became of its bucket.
    pub taken: Taken,
}

/// A rule that is for a request.
struct Found<'l> {
    rule: &'l Rule,
    bucket: &'l Bucket,
    hits: u64,
    is_taken: bool,
}

impl LocalLimiter {
    /// By this configuration, with buckets that may be there already. `counts` makes or finds what a rule counts by.
    pub fn new(
        config: &LocalRateLimit,
        buckets: &Arc<LocalBuckets>,
        counts: impl Fn(&str) -> Arc<LimitCounts>,
        now: Instant,
    ) -> Self {
        let now = buckets.epoch.ticks(now);
        let rule = |rule: LocalRule, rank: usize| {
            let rate = Rate::from(rule.bucket);
            let is_keyed = config.per_connection || rule.is_keyed();
            let keys = is_keyed.then_some(config.most_keys);
            let buckets = buckets.of((rule.entries.clone(), config.per_connection), rate, keys, now);
            let takes_all = rule.entries.iter().all(|(_, value)| value.is_empty());
            Rule { rate, rank, takes_all, buckets, counts: counts(&rule.name), config: rule }
        };
        let default = config.bucket.map(|bucket| rule(LocalRule::new("", Vec::new(), bucket), 0));
        let mut groups = Vec::<Group>::new();
        let mut rules: Vec<_> = config.rules.iter().zip(ranks(&config.rules)).collect();
        rules.sort_by_key(|(rule, _)| rule.is_keyed());
        for (one, rank) in rules {
            let is_of = |group: &Group| group.keys.iter().eq(one.entries.iter().map(|(key, _)| key));
            let at = groups.iter().position(is_of).unwrap_or_else(|| {
                groups.push(Group::new(one));
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(at) {
                group.add(rule(one.clone(), rank), buckets);
            }
        }
        let used: Vec<_> = config.rules.iter().map(|rule| &rule.entries).collect();
        let is_used = |entries: &Vec<_>| used.contains(&entries) || (entries.is_empty() && default.is_some());
        buckets.retain(|(entries, per_connection)| *per_connection == config.per_connection && is_used(entries));
        LocalLimiter {
            default,
            buckets: Arc::clone(buckets),
            is_for_all: config.is_for_all,
            per_connection: config.per_connection,
            groups: groups.into(),
        }
    }

    /// What requests are counted by, without what no rule is for.
    pub fn plan(&self, makers: impl IntoIterator<Item = DescriptorMaker>) -> LocalPlan {
        let planned = makers.into_iter().filter_map(|maker| {
            let config = maker.config();
            let hits = config.hits.unwrap_or(1);
            // Envoy's local limits give nothing back, either.
            if config.gives_back || self.groups.is_empty() {
                return None;
            }
            let group = match maker.keys() {
                Some(keys) => Some(self.group(keys)?),
                None => None,
            };
            let values = match (maker.is_plain(), maker.len()) {
                (true, 1) => PlannedValues::One,
                (true, 2..) => PlannedValues::Plain,
                _ => PlannedValues::Made,
            };
            Some(Planned { maker, hits, group, values })
        });
        let planned: Box<[Planned]> = planned.collect();
        LocalPlan { needs_authority: planned.iter().any(|planned| planned.maker.needs_authority()), planned }
    }

    /// Takes from the buckets that are for a request, which came over this connection; `None` where no bucket is.
    pub fn take<'l>(
        &'l self,
        plan: &LocalPlan,
        request: &LimitedRequest<'_>,
        connection: Option<SocketAddr>,
        now: Instant,
    ) -> Option<LocalVerdict<'l>> {
        let now = self.buckets.epoch.ticks(now);
        // The connection is a part of each key.
        let connection =
            connection.filter(|_| self.per_connection).map_or(0, |peer| self.buckets.hasher.hash_one(peer));
        let mut found: SmallVec<[Found<'_>; 4]> = SmallVec::new();
        for planned in &plan.planned {
            if let Some((rule, bucket)) = self.find(planned, request, connection) {
                found.push(Found { rule, bucket, hits: planned.hits, is_taken: false });
            }
        }
        // As a rule they are in order, which takes less time to see than to bring about.
        if !found.is_sorted_by_key(|found| found.rule.rank) {
            found.sort_by_key(|found| found.rule.rank);
        }
        if let Some(rule) = self.default.as_ref().filter(|_| self.is_for_all || found.is_empty()) {
            let bucket = rule.bucket(std::iter::empty(), connection, &self.buckets, None);
            found.push(Found { rule, bucket, hits: 1, is_taken: false });
        }
        let verdict = |drawn: Drawn, rule: &'l Rule, hits| {
            let taken = drawn.told(&rule.rate, hits, now);
            LocalVerdict { is_within: drawn.is_within, rule: &rule.config, taken }
        };
        let found = found.as_mut_slice();
        // What it has left, and what is told of it if none has less.
        let mut strictest = None::<(u32, Drawn, &'l Rule, u64)>;
        for at in 0..found.len() {
            let Some(Found { rule, bucket, hits, is_taken }) = found.get_mut(at) else { break };
            let (rule, hits) = (*rule, *hits);
            let drawn = bucket.draw(&rule.rate, hits, now);
            *is_taken = drawn.is_within;
            let is_shadow = rule.config.is_shadow;
            if !drawn.is_within && !is_shadow {
                for Found { rule, bucket, hits, .. } in found.iter().take(at).filter(|found| found.is_taken) {
                    bucket.give_back(&rule.rate, *hits);
                }
                rule.counts.note_over();
                return Some(verdict(drawn, rule, hits));
            }
            match drawn.is_within {
                true => rule.counts.note_within(),
                false => rule.counts.note_shadow(),
            }
            if !is_shadow {
                let left = drawn.left(&rule.rate, now);
                if strictest.as_ref().is_none_or(|(least, ..)| left < *least) {
                    strictest = Some((left, drawn, rule, hits));
                }
            }
        }
        strictest.map(|(_, drawn, rule, hits)| verdict(drawn, rule, hits))
    }

    /// The rule and the bucket for one descriptor of a request.
    #[inline]
    fn find<'l>(
        &'l self,
        planned: &Planned,
        request: &LimitedRequest<'_>,
        connection: u64,
    ) -> Option<(&'l Rule, &'l Bucket)> {
        let group = planned.group.and_then(|group| self.groups.get(group));
        match (planned.values, group) {
            (PlannedValues::One, Some(group)) => {
                group.find(std::iter::once(planned.maker.value(request)?), connection, &self.buckets)
            }
            _ => self.find_by_several(planned, group, request, connection),
        }
    }

    /// The same for a descriptor that is more than one value. Apart, so that the usual one is short.
    #[inline(never)]
    fn find_by_several<'l>(
        &'l self,
        Planned { maker, values, .. }: &Planned,
        group: Option<&'l Group>,
        request: &LimitedRequest<'_>,
        connection: u64,
    ) -> Option<(&'l Rule, &'l Bucket)> {
        if let (PlannedValues::Plain, Some(group)) = (values, group) {
            let mut values = Values::new();
            let is_one = maker.values(request, &mut values);
            return is_one.then(|| group.find(values.iter().copied(), connection, &self.buckets)).flatten();
        }
        let mut entries = Entries::new();
        if !maker.fill(request, &mut entries) {
            return None;
        }
        let of_keys = || self.groups.get(self.group(entries.iter().map(|entry| entry.key))?);
        let group = group.or_else(of_keys)?;
        group.find(entries.iter().map(|entry| entry.value.as_bytes()), connection, &self.buckets)
    }

    /// The group of these keys.
    fn group<'k>(&self, keys: impl Iterator<Item = &'k str> + Clone) -> Option<usize> {
        self.groups.iter().position(|group| group.keys.iter().map(|key| &**key).eq(keys.clone()))
    }
}

/// For each rule how many are stricter.
fn ranks(rules: &[LocalRule]) -> Vec<usize> {
    let rates: Vec<Rate> = rules.iter().map(|rule| rule.bucket.into()).collect();
    let rate = |at: &usize| rates.get(*at);
    let is_stricter =
        |one: &usize, other: &usize| rate(one).zip(rate(other)).is_some_and(|(one, other)| one.is_stricter_than(other));
    let mut order: Vec<usize> = (0..rules.len()).collect();
    order.sort_by(|one, other| is_stricter(other, one).cmp(&is_stricter(one, other)));
    let (mut ranks, mut rank, mut before) = (vec![0; rules.len()], 0, None);
    for (position, at) in order.iter().enumerate() {
        if before.is_some_and(|before| is_stricter(before, at)) {
            rank = position;
        }
        before = Some(at);
        if let Some(of_this) = ranks.get_mut(*at) {
            *of_this = rank;
        }
    }
    ranks
}

impl Group {
    /// None yet, with the keys of a rule.
    fn new(rule: &LocalRule) -> Self {
        let keys = rule.entries.iter().map(|(key, _)| Arc::clone(key)).collect();
        Group { keys, rules: Vec::new(), exact: HashMap::default(), fixed: 0 }
    }

    /// One more; those that are for one value of each key come first.
    fn add(&mut self, rule: Rule, buckets: &LocalBuckets) {
        if !rule.config.is_keyed() {
            let place = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
            let hash = buckets.hash(rule.config.entries.iter().map(|(_, value)| value.as_bytes()));
            self.exact.entry(hash).or_default().push(place);
            self.fixed += 1;
        }
        self.rules.push(rule);
    }

    /// The rule for these values, and the bucket that they have of it.
    #[inline]
    fn find<'v>(
        &self,
        values: impl Iterator<Item = &'v [u8]> + Clone,
        connection: u64,
        buckets: &LocalBuckets,
    ) -> Option<(&Rule, &Bucket)> {
        let is_for = |rule: &&Rule| rule.is_for(values.clone());
        let (rule, hash) = if self.rules.len() <= FEW_RULES {
            (self.rules.iter().find(is_for)?, None)
        } else {
            let hash = buckets.hash(values.clone());
            let places = self.exact.get(&hash).map_or(&[][..], SmallVec::as_slice);
            let exact = places.iter().filter_map(|place| self.rules.get(*place as usize)).find(is_for);
            (exact.or_else(|| self.rules.iter().skip(self.fixed).find(is_for))?, Some(hash))
        };
        Some((rule, rule.bucket(values, connection, buckets, hash)))
    }
}

impl Rule {
    /// Whether it is for these values, whose keys are its own.
    #[inline]
    fn is_for<'v>(&self, values: impl Iterator<Item = &'v [u8]>) -> bool {
        let is_one =
            |(value, (_, meant)): (&[u8], &(Arc<str>, Arc<str>))| meant.is_empty() || value == meant.as_bytes();
        self.takes_all || values.zip(&self.config.entries).all(is_one)
    }

    /// The bucket of these values, of which this is the hash, if it is known.
    #[inline]
    fn bucket<'v>(
        &self,
        values: impl Iterator<Item = &'v [u8]>,
        connection: u64,
        all: &LocalBuckets,
        hash: Option<u64>,
    ) -> &Bucket {
        match &self.buckets {
            Buckets::One(bucket) => bucket,
            Buckets::Keyed(buckets) if self.takes_all => {
                buckets.get(hash.unwrap_or_else(|| all.hash(values)) ^ connection)
            }
            Buckets::Keyed(buckets) => {
                let any = values.zip(&self.config.entries).filter(|(_, (_, meant))| meant.is_empty());
                buckets.get(all.hash(any.map(|(value, _)| value)) ^ connection)
            }
        }
    }
}

impl LocalBuckets {
    #[inline]
    fn hash<'b>(&self, values: impl Iterator<Item = &'b [u8]>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for value in values {
            hasher.write(value);
            // Where one ends is a part of it: `ab` and `c` are not `a` and `bc`.
            hasher.write_usize(value.len());
        }
        hasher.finish()
    }
}

/// The hash of what is a hash already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only numbers are hashed by it.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::model::{DescriptorAction, RateLimit, TokenBucket};
    use crate::request::RequestHead;

    const MINUTE: Duration = Duration::from_secs(60);

    fn bucket(tokens: u32) -> TokenBucket {
        TokenBucket::new(tokens, tokens, MINUTE).unwrap()
    }

    fn rule(entries: &[(&str, &str)], tokens: u32) -> LocalRule {
        let name: Vec<_> = entries.iter().map(|(_, value)| *value).collect();
        let entries = entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        LocalRule::new(name.join("/"), entries, bucket(tokens))
    }

    fn described(entries: &[(&str, &str)]) -> RateLimit {
        let action =
            |(key, value): &(&str, &str)| DescriptorAction::Constant { key: (*key).into(), value: (*value).into() };
        RateLimit::by(entries.iter().map(action).collect())
    }

    /// What becomes of a request with these descriptors.
    fn take(
        limiter: &LocalLimiter,
        descriptors: impl IntoIterator<Item = RateLimit>,
        peer: Option<SocketAddr>,
        now: Instant,
    ) -> bool {
        let plan = limiter.plan(descriptors.into_iter().map(|one| DescriptorMaker::new(&Arc::new(one)).unwrap()));
        let parts = Request::get("http://h/").body(()).unwrap().into_parts().0;
        let request = LimitedRequest::new(RequestHead::of(&parts).unwrap());
        limiter.take(&plan, &request, peer, now).is_none_or(|verdict| verdict.is_within)
    }

    fn limiter(config: &LocalRateLimit, buckets: &Arc<LocalBuckets>, now: Instant) -> LocalLimiter {
        LocalLimiter::new(config, buckets, |_| Arc::default(), now)
    }

    /// How many of so many requests pass.
    fn passed(limiter: &LocalLimiter, entries: &[(&str, &str)], asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| take(limiter, [described(entries)], None, now)).count()
    }

    #[test]
    fn the_rule_of_these_values_counts_else_one_for_any_else_the_bucket_for_all() {
        let now = Instant::now();
        let buckets = Arc::new(LocalBuckets::new(now));
        let mut config = LocalRateLimit::new("l", Some(bucket(5)));
        config.is_for_all = false;
        config.rules = vec![rule(&[("user", "jo")], 3), rule(&[("user", "")], 2)];
        let limiter = limiter(&config, &buckets, now);
        assert_eq!(passed(&limiter, &[("user", "jo")], 10, now), 3);
        assert_eq!(passed(&limiter, &[("user", "a")], 10, now), 2);
        assert_eq!(passed(&limiter, &[("user", "b")], 10, now), 2, "another value has a bucket of its own");
        assert_eq!(passed(&limiter, &[("user", "a")], 10, now), 0);
        assert_eq!(passed(&limiter, &[("other", "a")], 10, now), 5);
        assert_eq!(passed(&limiter, &[("user", "jo"), ("more", "x")], 10, now), 0, "there is no half of a descriptor");
    }

    #[test]
    fn the_bucket_for_all_is_taken_from_besides_and_who_is_refused_takes_nothing() {
        let now = Instant::now();
        let buckets = Arc::new(LocalBuckets::new(now));
        let mut config = LocalRateLimit::new("l", Some(bucket(5)));
        config.rules = vec![rule(&[("user", "jo")], 3), rule(&[("user", "mo")], 100)];
        let limiter = limiter(&config, &buckets, now);
        assert_eq!(passed(&limiter, &[("user", "jo")], 10, now), 3);
        assert_eq!(passed(&limiter, &[("user", "mo")], 10, now), 2, "those that were refused took none of the five");
        let later = now + MINUTE;
        let both = || [described(&[("user", "jo")]), described(&[("user", "mo")])];
        assert_eq!((0..10).filter(|_| take(&limiter, both(), None, later)).count(), 3);
    }

    #[test]
    fn buckets_outlive_their_configuration_and_are_as_full_at_another_limit() {
        let now = Instant::now();
        let buckets = Arc::new(LocalBuckets::new(now));
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![rule(&[("user", "jo")], 10), rule(&[("user", "")], 10)];
        let old = limiter(&config, &buckets, now);
        assert_eq!(passed(&old, &[("user", "jo")], 10, now), 10);
        assert_eq!(passed(&old, &[("user", "a")], 5, now), 5);
        assert_eq!(passed(&limiter(&config, &buckets, now), &[("user", "jo")], 1, now), 0);
        config.rules = vec![rule(&[("user", "jo")], 100), rule(&[("user", "")], 100)];
        let new = limiter(&config, &buckets, now);
        assert_eq!(passed(&new, &[("user", "jo")], 1, now), 0, "empty is empty");
        assert_eq!(passed(&new, &[("user", "a")], 100, now), 50, "half is half");
        config.rules.clear();
        limiter(&config, &buckets, now);
        assert!(lock(&buckets.kept).is_empty(), "nothing is kept that no rule is for");
    }

    #[test]
    fn connections_have_buckets_of_their_own_where_that_is_said() {
        let now = Instant::now();
        let mut config = LocalRateLimit::new("l", Some(bucket(2)));
        config.per_connection = true;
        let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
        let passed = |port: u16| {
            let peer = Some(SocketAddr::from(([127, 0, 0, 1], port)));
            (0..5).filter(|_| take(&limiter, [], peer, now)).count()
        };
        assert_eq!((passed(1), passed(2), passed(1)), (2, 2, 0));
    }

    #[test]
    fn a_rule_that_is_only_tried_counts_and_refuses_nobody() {
        let now = Instant::now();
        let counts = Arc::new(LimitCounts::default());
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![LocalRule { is_shadow: true, ..rule(&[("user", "jo")], 3) }];
        let buckets = Arc::new(LocalBuckets::new(now));
        let limiter = LocalLimiter::new(&config, &buckets, |_| Arc::clone(&counts), now);
        assert_eq!(passed(&limiter, &[("user", "jo")], 10, now), 10);
        assert_eq!((counts.within(), counts.over(), counts.shadow()), (3, 0, 7));
    }

    #[test]
    fn a_rule_that_is_only_tried_gets_nothing_back_that_it_did_not_give() {
        let now = Instant::now();
        let counts = Arc::new(LimitCounts::default());
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![
            LocalRule { is_shadow: true, ..rule(&[("user", "jo")], 2) },
            rule(&[("path", "/"), ("user", "jo")], 4),
        ];
        let buckets = Arc::new(LocalBuckets::new(now));
        let of_rule = |name: &str| if name == "jo" { Arc::clone(&counts) } else { Arc::default() };
        let limiter = LocalLimiter::new(&config, &buckets, of_rule, now);
        let both = || [described(&[("user", "jo")]), described(&[("path", "/"), ("user", "jo")])];
        assert_eq!((0..20).filter(|_| take(&limiter, both(), None, now)).count(), 4);
        assert_eq!((counts.within(), counts.shadow()), (2, 18));
    }

    #[test]
    fn a_request_counts_for_as_many_as_its_route_says() {
        let now = Instant::now();
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![rule(&[("user", "jo")], 10)];
        let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
        let three = || RateLimit { hits: Some(3), ..described(&[("user", "jo")]) };
        assert_eq!((0..10).filter(|_| take(&limiter, [three()], None, now)).count(), 3);
    }

    #[test]
    fn rules_of_the_same_keys_are_told_apart_by_their_values_however_many_of_them_are_fixed() {
        let now = Instant::now();
        for more in [0, FEW_RULES * 3] {
            let mut config = LocalRateLimit::new("l", None);
            config.rules = vec![
                rule(&[("user", ""), ("path", "/a")], 2),
                rule(&[("user", "jo"), ("path", "")], 3),
                rule(&[("user", "jo"), ("path", "/a")], 5),
                rule(&[("path", ""), ("user", "")], 7),
            ];
            let users: Vec<String> = (0..more).map(|number| format!("user-{number}")).collect();
            config.rules.extend(users.iter().map(|user| rule(&[("user", user.as_str()), ("path", "/a")], 6)));
            let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
            for (entries, expected) in [
                ([("user", "jo"), ("path", "/a")], 5),
                ([("user", "jo"), ("path", "/b")], 3),
                ([("user", "jo"), ("path", "/c")], 3),
                ([("user", "mo"), ("path", "/a")], 2),
                ([("user", "o"), ("path", "/a")], 2),
                ([("user", "mo"), ("path", "/b")], 10),
                ([("path", "/a"), ("user", "jo")], 7),
                ([("user", "user-7"), ("path", "/a")], if more == 0 { 2 } else { 6 }),
            ] {
                assert_eq!(passed(&limiter, &entries, 10, now), expected, "{entries:?} and {more} more");
            }
        }
    }

    #[test]
    fn a_rule_for_any_value_keeps_them_apart_however_many_others_there_are() {
        let now = Instant::now();
        for more in [0, FEW_RULES * 3] {
            let mut config = LocalRateLimit::new("l", None);
            config.rules = vec![rule(&[("user", "")], 2)];
            let users: Vec<String> = (0..more).map(|number| format!("user-{number}")).collect();
            config.rules.extend(users.iter().map(|user| rule(&[("user", user.as_str())], 6)));
            let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
            for user in ["a", "b", "jo"] {
                assert_eq!(passed(&limiter, &[("user", user)], 10, now), 2, "{user} and {more} more");
            }
            for user in &users {
                assert_eq!(passed(&limiter, &[("user", user.as_str())], 10, now), 6, "{user}");
            }
        }
    }

    #[test]
    fn what_is_told_is_of_the_rule_that_has_least_left_else_of_the_one_that_refuses() {
        let now = Instant::now();
        let mut config = LocalRateLimit::new("l", Some(bucket(8)));
        config.rules = vec![
            rule(&[("user", "jo")], 3),
            rule(&[("path", "/"), ("user", "jo")], 5),
            LocalRule { is_shadow: true, ..rule(&[("tried", "")], 1) },
        ];
        let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
        let descriptors: [&[(&str, &str)]; 3] =
            [&[("path", "/"), ("user", "jo")], &[("user", "jo")], &[("tried", "x")]];
        let makers = descriptors.map(|one| DescriptorMaker::new(&Arc::new(described(one))).unwrap());
        let plan = limiter.plan(makers);
        let parts = Request::get("http://h/").body(()).unwrap().into_parts().0;
        let request = LimitedRequest::new(RequestHead::of(&parts).unwrap());
        let told = |after: Duration| {
            let verdict = limiter.take(&plan, &request, None, now + after).unwrap();
            (verdict.is_within, &*verdict.rule.name, verdict.taken.left, verdict.taken.enough_in)
        };
        assert_eq!(told(Duration::ZERO), (true, "jo", 2, Duration::ZERO));
        assert_eq!(told(Duration::ZERO), (true, "jo", 1, Duration::ZERO));
        assert_eq!(told(Duration::ZERO), (true, "jo", 0, Duration::ZERO));
        assert_eq!(told(Duration::ZERO), (false, "jo", 0, MINUTE / 3));
        assert_eq!(told(MINUTE / 3), (true, "jo", 0, Duration::ZERO), "who was refused took nothing");
    }

    #[test]
    fn who_may_have_entries_or_not_is_counted_by_those_that_it_has() {
        let now = Instant::now();
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![rule(&[("user", "")], 2), rule(&[("user", ""), ("group", "")], 3)];
        let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
        let header =
            |key: &str, skip_if_absent| DescriptorAction::Header { key: key.into(), name: key.into(), skip_if_absent };
        let limit = Arc::new(RateLimit::by(vec![header("user", false), header("group", true)]));
        let plan = limiter.plan([DescriptorMaker::new(&limit).unwrap()]);
        let passed = |headers: &[(&str, &str)]| {
            let request =
                headers.iter().fold(Request::get("http://h/"), |request, (name, value)| request.header(*name, *value));
            let parts = request.body(()).unwrap().into_parts().0;
            let request = LimitedRequest::new(RequestHead::of(&parts).unwrap());
            (0..5).filter(|_| limiter.take(&plan, &request, None, now).is_none_or(|verdict| verdict.is_within)).count()
        };
        assert_eq!((passed(&[("user", "jo")]), passed(&[("user", "jo"), ("group", "a")]), passed(&[])), (2, 3, 5));
    }
}
