//! Local limits: the buckets that a request takes from, and what becomes of it (Envoy's `LocalRateLimiterImpl`).
//!
//! Of each descriptor of a request the rule with these very values counts, else one that takes any value and keeps a bucket for
//! each. The strictest of those that are found comes first. A request that one of them has no room for takes nothing from
//! the others, unlike in Envoy. Finding them is two look-ups a descriptor, however many rules there are.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::bucket::{Bucket, Epoch, KeyedBuckets, Rate, Taken, Ticks};
use super::descriptor::{Descriptor, Entry};
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
    rules: Box<[Rule]>,
    /// Rules by the hash of their keys and values, and those that take any value by the hash of their keys.
    exact: HashMap<u64, SmallVec<[u32; 1]>, RandomState>,
    any: HashMap<u64, SmallVec<[u32; 1]>, RandomState>,
}

#[derive(Debug)]
struct Rule {
    config: LocalRule,
    rate: Rate,
    buckets: Buckets,
    counts: Arc<LimitCounts>,
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

impl LocalLimiter {
    /// By this configuration, with buckets that may be there already. `counts` makes or finds what a rule counts by.
    pub fn new(
        config: &LocalRateLimit,
        buckets: &Arc<LocalBuckets>,
        counts: impl Fn(&str) -> Arc<LimitCounts>,
        now: Instant,
    ) -> Self {
        let now = buckets.epoch.ticks(now);
        let rule = |rule: LocalRule| {
            let rate = Rate::from(rule.bucket);
            let is_keyed = config.per_connection || rule.is_keyed();
            let keys = is_keyed.then_some(config.most_keys);
            let buckets = buckets.of((rule.entries.clone(), config.per_connection), rate, keys, now);
            Rule { rate, buckets, counts: counts(&rule.name), config: rule }
        };
        let default = config.bucket.map(|bucket| rule(LocalRule::new("", Vec::new(), bucket)));
        let mut limiter = LocalLimiter {
            default,
            rules: config.rules.iter().cloned().map(rule).collect(),
            buckets: Arc::clone(buckets),
            is_for_all: config.is_for_all,
            per_connection: config.per_connection,
            exact: HashMap::default(),
            any: HashMap::default(),
        };
        for (position, rule) in limiter.rules.iter().enumerate() {
            let entries = || rule.config.entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
            let takes_any = rule.config.is_keyed();
            let (map, hash) = match takes_any {
                true => (&mut limiter.any, limiter.buckets.hash(entries().map(|(key, _)| (key, &[][..])))),
                false => (&mut limiter.exact, limiter.buckets.hash(entries())),
            };
            map.entry(hash).or_default().push(u32::try_from(position).unwrap_or(u32::MAX));
        }
        let used: Vec<_> = limiter.rules.iter().chain(&limiter.default).map(|rule| &rule.config.entries).collect();
        buckets.retain(|(entries, per_connection)| *per_connection == config.per_connection && used.contains(&entries));
        limiter
    }

    /// Takes from the buckets that are for a request, which came over this connection; `None` where no bucket is.
    pub fn take<'l, 'r>(
        &'l self,
        descriptors: impl Iterator<Item = Descriptor<'r>>,
        connection: Option<SocketAddr>,
        now: Instant,
    ) -> Option<LocalVerdict<'l>> {
        let now = self.buckets.epoch.ticks(now);
        // The connection is a part of each key.
        let connection =
            connection.filter(|_| self.per_connection).map_or(0, |peer| self.buckets.hasher.hash_one(peer));
        let mut found: SmallVec<[(&Rule, &Bucket, u64); 4]> = SmallVec::new();
        for descriptor in descriptors {
            let hits = descriptor.hits.unwrap_or(1);
            // Envoy's local limits give nothing back, either.
            if !descriptor.gives_back
                && let Some(rule) = self.rule_of(&descriptor.entries)
            {
                found.push((rule, self.bucket(rule, &descriptor.entries, connection), hits));
            }
        }
        if found.len() > 1 {
            found.sort_by(|one, other| {
                other.0.rate.is_stricter_than(&one.0.rate).cmp(&one.0.rate.is_stricter_than(&other.0.rate))
            });
        }
        let default = self.default.as_ref().filter(|_| self.is_for_all || found.is_empty());
        found.extend(default.map(|rule| (rule, self.bucket(rule, &[], connection), 1)));
        let mut verdict = None::<LocalVerdict<'l>>;
        let mut given: SmallVec<[(&Rule, &Bucket, u64); 4]> = SmallVec::new();
        for (rule, bucket, hits) in &found {
            let taken = bucket.take(&rule.rate, *hits, now);
            let is_shadow = rule.config.is_shadow;
            if !taken.is_within && !is_shadow {
                for (rule, bucket, hits) in given {
                    bucket.give_back(&rule.rate, hits);
                }
                rule.counts.note_over();
                return Some(LocalVerdict { is_within: false, rule: &rule.config, taken });
            }
            match taken.is_within {
                true => {
                    given.push((rule, bucket, *hits));
                    rule.counts.note_within();
                }
                false => rule.counts.note_shadow(),
            }
            if !is_shadow && verdict.as_ref().is_none_or(|strictest| taken.left < strictest.taken.left) {
                verdict = Some(LocalVerdict { is_within: true, rule: &rule.config, taken });
            }
        }
        verdict
    }

    #[inline]
    fn rule_of(&self, entries: &[Entry<'_>]) -> Option<&Rule> {
        let find = |map: &HashMap<u64, SmallVec<[u32; 1]>, RandomState>, hash| {
            let positions = map.get(&hash)?;
            positions.iter().filter_map(|position| self.rules.get(*position as usize)).find(|rule| rule.is_for(entries))
        };
        let exact = || {
            find(
                &self.exact,
                self.buckets.hash(entries.iter().map(|entry| (entry.key.as_bytes(), entry.value.as_bytes()))),
            )
        };
        let any = || find(&self.any, self.buckets.hash(entries.iter().map(|entry| (entry.key.as_bytes(), &[][..]))));
        let exact = if self.exact.is_empty() { None } else { exact() };
        exact.or_else(|| if self.any.is_empty() { None } else { any() })
    }

    #[inline]
    fn bucket<'l>(&'l self, rule: &'l Rule, entries: &[Entry<'_>], connection: u64) -> &'l Bucket {
        match &rule.buckets {
            Buckets::One(bucket) => bucket,
            Buckets::Keyed(buckets) => {
                let values = entries.iter().zip(&rule.config.entries).filter(|(_, (_, value))| value.is_empty());
                let hash = self.buckets.hash(values.map(|(entry, _)| (&[][..], entry.value.as_bytes())));
                buckets.get(hash ^ connection)
            }
        }
    }
}

impl LocalBuckets {
    #[inline]
    fn hash<'b>(&self, entries: impl Iterator<Item = (&'b [u8], &'b [u8])>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for (key, value) in entries {
            hasher.write(key);
            // Where one ends is a part of it: `ab` and `c` are not `a` and `bc`.
            hasher.write_usize(key.len());
            hasher.write(value);
            hasher.write_usize(value.len());
        }
        hasher.finish()
    }
}

impl Rule {
    fn is_for(&self, entries: &[Entry<'_>]) -> bool {
        let is_one = |(entry, (key, value)): (&Entry<'_>, &(Arc<str>, Arc<str>))| {
            entry.key == &**key && (value.is_empty() || entry.value.as_bytes() == value.as_bytes())
        };
        entries.len() == self.config.entries.len() && entries.iter().zip(&self.config.entries).all(is_one)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::Value;
    use crate::model::TokenBucket;

    const MINUTE: Duration = Duration::from_secs(60);

    fn bucket(tokens: u32) -> TokenBucket {
        TokenBucket::new(tokens, tokens, MINUTE).unwrap()
    }

    fn rule(entries: &[(&str, &str)], tokens: u32) -> LocalRule {
        let name: Vec<_> = entries.iter().map(|(_, value)| *value).collect();
        let entries = entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        LocalRule::new(name.join("/"), entries, bucket(tokens))
    }

    fn described<'r>(entries: &[(&'r str, &'r str)]) -> Descriptor<'r> {
        let entry = |(key, value): &(&'r str, &'r str)| Entry { key, value: Value::Borrowed(value.as_bytes()) };
        Descriptor { entries: entries.iter().map(entry).collect(), hits: None, gives_back: false, limit: None }
    }

    fn limiter(config: &LocalRateLimit, buckets: &Arc<LocalBuckets>, now: Instant) -> LocalLimiter {
        LocalLimiter::new(config, buckets, |_| Arc::default(), now)
    }

    /// How many of so many requests pass.
    fn passed(limiter: &LocalLimiter, entries: &[(&str, &str)], asked: usize, now: Instant) -> usize {
        let is_within =
            || limiter.take([described(entries)].into_iter(), None, now).is_none_or(|verdict| verdict.is_within);
        (0..asked).filter(|_| is_within()).count()
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
        let both = || [described(&[("user", "jo")]), described(&[("user", "mo")])].into_iter();
        assert_eq!((0..10).filter(|_| limiter.take(both(), None, later).unwrap().is_within).count(), 3);
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
            (0..5).filter(|_| limiter.take(std::iter::empty(), peer, now).unwrap().is_within).count()
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
        let both = || [described(&[("user", "jo")]), described(&[("path", "/"), ("user", "jo")])].into_iter();
        assert_eq!((0..20).filter(|_| limiter.take(both(), None, now).unwrap().is_within).count(), 4);
        assert_eq!((counts.within(), counts.shadow()), (2, 18));
    }

    #[test]
    fn a_request_counts_for_as_many_as_its_route_says() {
        let now = Instant::now();
        let mut config = LocalRateLimit::new("l", None);
        config.rules = vec![rule(&[("user", "jo")], 10)];
        let limiter = limiter(&config, &Arc::new(LocalBuckets::new(now)), now);
        let three = || Descriptor { hits: Some(3), ..described(&[("user", "jo")]) };
        assert_eq!((0..10).filter(|_| limiter.take([three()].into_iter(), None, now).unwrap().is_within).count(), 3);
    }
}
