//! Consistent hashing: a ring (gRFC A42) and Maglev's table, filled as Envoy fills them, so that its clients and ours find
//! the same endpoint for a key. Both are built once for a set of endpoints, and again where these are hashed otherwise; a pick looks
//! one entry up.

use std::any::Any;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::{EndpointSet, HashedEndpoints, LoadBalancer, PickArgs, Picker};
use crate::model::{ConsistentHashing, HashFunction};

/// How far a pick goes for an endpoint that was not tried yet.
const MOST_STEPS: usize = 4096;

/// How many hashes a ring has at most, whatever is asked for: they are made where configuration is taken in, which waits for them. Envoy
/// and gRPC allow eight times as many.
pub const MOST_POINTS: u64 = 1 << 20;

/// The next endpoint on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHash {
    /// So many hashes at least.
    pub min_size: u64,
    /// So many at most, and no more than 1,048,576.
    pub max_size: u64,
    /// How they are made.
    pub function: HashFunction,
    /// What is hashed, and how much one endpoint may get.
    pub hashing: ConsistentHashing,
}

/// The endpoint of an entry in Maglev's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maglev {
    /// How many entries, a prime.
    pub table_size: u64,
    /// What is hashed, and how much one endpoint may get.
    pub hashing: ConsistentHashing,
}

/// Hashes in order, each with the position of its endpoint.
#[derive(Debug)]
struct Ring {
    points: Arc<[(u64, u32)]>,
    policy: RingHash,
    of: HashedEndpoints,
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Table {
    entries: Arc<[u32]>,
    policy: Maglev,
    of: HashedEndpoints,
    bound: Option<Bound>,
}

impl LoadBalancer for RingHash {
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
        let known = previous.and_then(|previous| (previous as &dyn Any).downcast_ref::<Ring>());
        let points = match known.filter(|known| known.policy == *self && known.of.is_of(set)) {
            Some(known) => Arc::clone(&known.points),
            None => self.points(set).into(),
        };
        Box::new(Ring { points, policy: *self, of: set.hashed(), bound: Bound::new(self.hashing, set) })
    }
}

impl RingHash {
    /// How many hashes all endpoints have together, where the lightest has this share. That one has a whole number of them, unless
    /// the ring would be too large.
    fn scale(&self, least: f64) -> f64 {
        let (min, max) = (self.min_size.max(1) as f64, self.max_size.clamp(1, MOST_POINTS) as f64);
        ((least * min).ceil() / least).min(max)
    }

    fn points(&self, set: &EndpointSet) -> Box<[(u64, u32)]> {
        let shares = shares(set);
        let Some(least) = shares.iter().copied().reduce(f64::min) else { return Box::default() };
        let scale = self.scale(least);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut made, mut wanted) = (0.0, 0.0);
        for (position, share) in shares.iter().enumerate() {
            let mut key = set.hash_key(position, self.hashing.by_hostname);
            key.push('_');
            let prefix = key.len();
            // Fractions add up over all endpoints, so that none are lost.
            wanted += scale * share;
            let mut index = 0u64;
            while made < wanted {
                key.truncate(prefix);
                key.push_str(itoa(index, &mut [0; 20]));
                let hash = match self.function {
                    HashFunction::Xx => xxh64(key.as_bytes(), 0),
                    HashFunction::Murmur2 => murmur2(key.as_bytes()),
                };
                points.push((hash, position as u32));
                made += 1.0;
                index += 1;
            }
        }
        points.sort_unstable_by_key(|(hash, _)| *hash);
        points.into_boxed_slice()
    }
}

impl Picker for Ring {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let hash = args.hash.unwrap_or_else(|| args.random.u64(..));
        let next = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at(next);
        let mut around = after.iter().chain(before).map(|(_, position)| *position as usize);
        let first = around.next()?;
        // What failed moves on to its neighbour, and always to the same one.
        let picked = match passes_over(set, first, args) {
            true => around.take(MOST_STEPS).find(|position| !passes_over(set, *position, args)).unwrap_or(first),
            false => first,
        };
        Some(bounded(self.bound.as_ref(), set, picked, hash))
    }

    fn goes_by_hash(&self) -> bool {
        true
    }
}

impl LoadBalancer for Maglev {
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
        let known = previous.and_then(|previous| (previous as &dyn Any).downcast_ref::<Table>());
        let entries = match known.filter(|known| known.policy == *self && known.of.is_of(set)) {
            Some(known) => Arc::clone(&known.entries),
            None => self.entries(set).into(),
        };
        Box::new(Table { entries, policy: *self, of: set.hashed(), bound: Bound::new(self.hashing, set) })
    }
}

impl Maglev {
    fn entries(&self, set: &EndpointSet) -> Box<[u32]> {
        struct Row {
            position: u32,
            next: u64,
            skip: u64,
            share: f64,
            turn: f64,
        }
        const FREE: u32 = u32::MAX;
        let size = self.table_size.max(2);
        let shares = shares(set);
        let Some(most) = shares.iter().copied().reduce(f64::max) else { return Box::default() };
        // By their keys, so that the order in which a control plane lists them does not count.
        let mut keys: Vec<(String, usize)> =
            (0..set.len()).map(|position| (set.hash_key(position, self.hashing.by_hostname), position)).collect();
        keys.sort_unstable();
        let mut rows: Vec<Row> = keys
            .iter()
            .map(|(key, position)| Row {
                position: *position as u32,
                next: xxh64(key.as_bytes(), 0) % size,
                skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                share: shares.get(*position).copied().unwrap_or(most),
                turn: 0.0,
            })
            .collect();
        let mut entries = vec![FREE; usize::try_from(size).unwrap_or(usize::MAX)];
        let mut left = entries.len();
        let mut round = 1.0;
        while left > 0 {
            let before = left;
            for row in &mut rows {
                // The heaviest has a turn in every round.
                if round * row.share < row.turn {
                    continue;
                }
                row.turn += most;
                // The size is a prime, so that each row comes by every entry, and one is free.
                for _ in 0..size {
                    let at = row.next as usize;
                    row.next = (row.next + row.skip) % size;
                    if let Some(entry) = entries.get_mut(at).filter(|entry| **entry == FREE) {
                        *entry = row.position;
                        left -= 1;
                        break;
                    }
                }
                if left == 0 {
                    break;
                }
            }
            if left == before {
                // A size that is no prime: no row comes by what is left.
                entries.iter_mut().filter(|entry| **entry == FREE).for_each(|entry| *entry = 0);
                break;
            }
            round += 1.0;
        }
        entries.into_boxed_slice()
    }
}

impl Picker for Table {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let hash = args.hash.unwrap_or_else(|| args.random.u64(..));
        let size = self.entries.len() as u64;
        let at = |hash: u64| self.entries.get(hash.checked_rem(size)? as usize).map(|position| *position as usize);
        let first = at(hash)?;
        // Another entry for each try after a failure, as in Envoy.
        let others = (0..8u64).filter_map(|attempt| at(hash ^ (u64::MAX - attempt)));
        let picked = match passes_over(set, first, args) {
            true => others.into_iter().find(|position| !passes_over(set, *position, args)).unwrap_or(first),
            false => first,
        };
        Some(bounded(self.bound.as_ref(), set, picked, hash))
    }

    fn goes_by_hash(&self) -> bool {
        true
    }
}

/// How many requests in flight an endpoint may have, by its share (Envoy's `hash_balance_factor`).
#[derive(Debug)]
struct Bound {
    percent: u64,
    shares: Vec<f64>,
}

impl Bound {
    fn new(hashing: ConsistentHashing, set: &EndpointSet) -> Option<Bound> {
        Some(Bound { percent: hashing.balance_percent?.into(), shares: shares(set) })
    }

    /// Requests in flight at an endpoint, by what it may have: more than 1 is too much.
    fn load(&self, set: &EndpointSet, position: usize, all: u64) -> f64 {
        let slots = ((all + 1) * self.percent).div_ceil(100) as f64;
        let share = self.shares.get(position).copied().unwrap_or(1.0);
        let own = (slots * share).ceil().max(1.0);
        set.get(position).map_or(0.0, |endpoint| f64::from(endpoint.in_flight())) / own
    }
}

/// The endpoint itself, or where it has too much to do, the first that has not, in an order that each hash has of its own;
/// at last the one with the least to do. Linear in the number of endpoints, as in Envoy.
fn bounded(bound: Option<&Bound>, set: &EndpointSet, picked: usize, hash: u64) -> usize {
    let Some(bound) = bound else { return picked };
    let all: u64 = (0..set.len()).filter_map(|at| set.get(at)).map(|endpoint| u64::from(endpoint.in_flight())).sum();
    let load = bound.load(set, picked, all);
    if load <= 1.0 {
        return picked;
    }
    let mut least = (load, picked);
    let count = set.len().max(1);
    let mut order = fastrand::Rng::with_seed(hash);
    let from = order.usize(0..count);
    // A stride that shares no factor with the count comes by every endpoint.
    let stride = (order.usize(0..count)..).find(|stride| gcd(*stride, count) == 1).unwrap_or(1);
    for step in 0..count {
        let other = (from + step * stride) % count;
        let load = bound.load(set, other, all);
        if load <= 1.0 && other != picked {
            return other;
        }
        if load < least.0 {
            least = (load, other);
        }
    }
    least.1
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Each endpoint's part of the whole.
fn shares(set: &EndpointSet) -> Vec<f64> {
    let total: f64 = (0..set.len()).map(|position| set.exact_weight(position) as f64).sum();
    (0..set.len()).map(|position| set.exact_weight(position) as f64 / total).collect()
}

fn passes_over(set: &EndpointSet, position: usize, args: &PickArgs<'_>) -> bool {
    set.get(position).is_some_and(|picked| args.passes_over(picked))
}

/// A number in decimal.
fn itoa(mut number: u64, digits: &mut [u8; 20]) -> &str {
    let mut from = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        from -= 1;
        if number == 0 {
            break;
        }
    }
    digits.get(from..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
}

/// MurmurHash2 of 64 bits, with the seed of libstdc++'s `std::hash`.
fn murmur2(key: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(MUL);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let data = rest.iter().rev().fold(0u64, |data, byte| (data << 8) | u64::from(*byte));
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::HashNames;
    use crate::id::EndpointId;
    use crate::state::{ClusterState, EndpointState};

    fn set(hosts: impl IntoIterator<Item = (u16, u64)>) -> EndpointSet {
        let cluster = Arc::new(ClusterState::default());
        let endpoint =
            |port: u16| cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))), false);
        let endpoints = hosts.into_iter().map(|(port, weight)| (endpoint(port), weight)).collect();
        EndpointSet::new(endpoints, Arc::clone(&cluster))
    }

    fn ring() -> RingHash {
        let (function, hashing) = (HashFunction::Xx, ConsistentHashing::default());
        RingHash { min_size: 1024, max_size: 8 << 20, function, hashing }
    }

    fn maglev() -> Maglev {
        Maglev { table_size: 65537, hashing: ConsistentHashing::default() }
    }

    fn policies() -> [Box<dyn LoadBalancer>; 3] {
        [Box::new(ring()), Box::new(RingHash { function: HashFunction::Murmur2, ..ring() }), Box::new(maglev())]
    }

    /// Whom each of these keys goes to, by port.
    fn picks(picker: &dyn Picker, set: &EndpointSet, keys: u64, tried: &[Arc<EndpointState>]) -> Vec<String> {
        let mut random = fastrand::Rng::with_seed(1);
        let pick = |key: u64| {
            let hash = Some(xxh64(&key.to_le_bytes(), 0));
            let mut args = PickArgs { hash, tried, ..PickArgs::new(&mut random) };
            set.get(picker.pick(set, &mut args).unwrap()).unwrap().id().to_string()
        };
        (0..keys).map(pick).collect()
    }

    /// A ring has as many hashes as before when a host goes, so the others have new ones, which take keys from each other:
    /// as many again as were on it. It is so in Envoy and gRPC; a table moves little more than what has to move.
    #[test]
    fn one_of_ten_hosts_that_goes_takes_few_keys_along() {
        for (policy, most) in policies().into_iter().zip([2_200, 2_200, 1_200]) {
            let all = set((1..=10).map(|port| (port, 1)));
            let fewer = set((1..=10).filter(|port| *port != 4).map(|port| (port, 1)));
            let before = picks(&*policy.build(&all, None), &all, 10_000, &[]);
            let after = picks(&*policy.build(&fewer, None), &fewer, 10_000, &[]);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            let gone = before.iter().filter(|id| id.ends_with(":4")).count();
            assert!((gone..=most).contains(&moved), "{policy:?}: {moved} moved, {gone} were on it");
        }
    }

    #[test]
    fn keys_are_shared_by_weight() {
        for policy in policies() {
            let weighted = set([(1, 1), (2, 2), (3, 7)]);
            let picked = picks(&*policy.build(&weighted, None), &weighted, 20_000, &[]);
            for (port, share) in [(":1", 0.1), (":2", 0.2), (":3", 0.7)] {
                let part = picked.iter().filter(|id| id.ends_with(port)).count() as f64 / 20_000.0;
                // A ring is no more even than its number of hashes makes it.
                assert!((part - share).abs() < 0.05, "{policy:?}: {part} for {share}");
            }
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_count_and_their_keys_do() {
        for policy in policies() {
            let (one, other) = (set([(1, 1), (2, 1), (3, 1)]), set([(3, 1), (1, 1), (2, 1)]));
            let first = picks(&*policy.build(&one, None), &one, 1_000, &[]);
            assert_eq!(first, picks(&*policy.build(&other, None), &other, 1_000, &[]), "{policy:?}");
            // The names of 1 and 2 are exchanged, and with them their keys.
            let name = |name: &str| HashNames { key: Some(name.into()), hostname: None };
            let named = set([(1, 1), (2, 1), (3, 1)]).with_names(vec![
                name("10.0.0.1:2"),
                name("10.0.0.1:1"),
                HashNames::default(),
            ]);
            let exchanged = picks(&*policy.build(&named, None), &named, 1_000, &[]);
            let turned = |id: &String| match id.as_str() {
                "10.0.0.1:1" => "10.0.0.1:2".to_owned(),
                "10.0.0.1:2" => "10.0.0.1:1".to_owned(),
                other => other.to_owned(),
            };
            assert_eq!(exchanged, first.iter().map(turned).collect::<Vec<_>>(), "{policy:?}");
        }
    }

    #[test]
    fn another_try_goes_to_another_endpoint_and_always_to_the_same() {
        for policy in policies() {
            let set = set((1..=5).map(|port| (port, 1)));
            let picker = policy.build(&set, None);
            let tried = [Arc::clone(set.get(0).unwrap()), Arc::clone(set.get(1).unwrap())];
            let (first, again) = (picks(&*picker, &set, 500, &tried), picks(&*picker, &set, 500, &tried));
            assert_eq!(first, again);
            let untried = picks(&*picker, &set, 500, &[]);
            for (with, without) in first.iter().zip(&untried) {
                let was_tried = without.ends_with(":1") || without.ends_with(":2");
                assert!(was_tried || with == without, "{policy:?}: {with} {without}");
            }
            let once = first.iter().filter(|id| id.ends_with(":1") || id.ends_with(":2")).count();
            assert!(once <= 5, "{policy:?}: {once} of 500 found no other");
        }
    }

    #[test]
    fn an_endpoint_with_more_than_its_bound_is_stood_in_for() {
        let hashing = ConsistentHashing { balance_percent: Some(150), ..ConsistentHashing::default() };
        let policies: [Box<dyn LoadBalancer>; 2] =
            [Box::new(RingHash { hashing, ..ring() }), Box::new(Maglev { hashing, ..maglev() })];
        for policy in policies {
            let set = set((1..=4).map(|port| (port, 1)));
            let picker = policy.build(&set, None);
            let (mut random, mut held) = (fastrand::Rng::with_seed(1), Vec::new());
            for _ in 0..400 {
                // One key for all.
                let mut args = PickArgs { hash: Some(42), ..PickArgs::new(&mut random) };
                held.push(set.get(picker.pick(&set, &mut args).unwrap()).unwrap().enter());
            }
            let most = (0..4).map(|at| set.get(at).unwrap().in_flight()).max().unwrap();
            assert!(most <= 151, "{policy:?}: {most} of 400, where the mean is 100");
        }
    }

    #[test]
    fn sizes_of_the_ring_are_kept_to() {
        let size = |min_size, max_size, weights: &[u64]| {
            let hosts = (1..).zip(weights.iter().copied());
            RingHash { min_size, max_size, ..ring() }.points(&set(hosts)).len()
        };
        assert_eq!(size(1024, 8 << 20, &[1; 3]), 1026, "each has 342");
        assert_eq!(size(1, 8 << 20, &[1; 3]), 3);
        assert_eq!(size(1024, 100, &[1; 3]), 100);
        assert_eq!(size(10, 8 << 20, &[1, 9]), 10);
        assert_eq!(size(1024, 1024, &[]), 0);
        let scale = |min_size, least| RingHash { min_size, ..ring() }.scale(least) as u64;
        assert_eq!([scale(8 << 20, 0.25), scale(1, 1.0 / 4_000_000.0)], [MOST_POINTS; 2], "whatever is asked for");
    }

    /// A picker after another, and whether it has the table of that.
    fn after(
        policy: &dyn LoadBalancer,
        set: &EndpointSet,
        before: (&dyn LoadBalancer, &EndpointSet),
    ) -> (Box<dyn Picker>, bool) {
        let previous = before.0.build(before.1, None);
        let picker = policy.build(set, Some(&*previous));
        let (one, other) = (&*previous as &dyn Any, &*picker as &dyn Any);
        let rings = one.downcast_ref::<Ring>().zip(other.downcast_ref::<Ring>());
        let tables = one.downcast_ref::<Table>().zip(other.downcast_ref::<Table>());
        let is_shared = rings.is_some_and(|(one, other)| Arc::ptr_eq(&one.points, &other.points))
            || tables.is_some_and(|(one, other)| Arc::ptr_eq(&one.entries, &other.entries));
        (picker, is_shared)
    }

    #[test]
    fn a_table_is_made_anew_where_endpoints_are_hashed_otherwise_and_only_there() {
        let name = |name: &str| HashNames { key: Some(name.into()), hostname: None };
        let named = || set([(1, 1), (2, 2)]).with_names(vec![name("a"), name("b")]);
        // (before, after, whether they are hashed alike)
        let cases = [
            (set([(1, 1), (2, 1)]), set([(1, 1), (2, 1)]), true),
            (set([(1, 3), (2, 4)]), set([(1, 3), (2, 4)]), true),
            (named(), named(), true),
            (set([(1, 1), (2, 1)]), set([(2, 1), (1, 1)]), false),
            (set([(1, 1), (2, 1)]), set([(1, 1), (3, 1)]), false),
            (set([(1, 1), (2, 1)]), set([(1, 1), (2, 1), (3, 1)]), false),
            (set([(1, 1), (2, 1)]), set([(1, 1), (2, 2)]), false),
            (set([(1, 1), (2, 2)]), set([(1, 1), (2, 3)]), false),
            (set([(1, 1), (2, 2)]), named(), false),
        ];
        for policy in policies() {
            for (before, now, is_alike) in &cases {
                let (picker, is_shared) = after(&*policy, now, (&*policy, before));
                assert_eq!(is_shared, *is_alike, "{policy:?}");
                let from_nothing = policy.build(now, None);
                assert_eq!(picks(&*picker, now, 200, &[]), picks(&*from_nothing, now, 200, &[]), "{policy:?}");
            }
        }
        let [ring, murmur, table] = policies();
        let smaller: Box<dyn LoadBalancer> = Box::new(RingHash { min_size: 10, ..self::ring() });
        let set = set([(1, 1), (2, 1)]);
        for other in [&smaller, &murmur, &table] {
            assert!(!after(&**other, &set, (&*ring, &set)).1, "{other:?}");
        }
    }

    #[test]
    fn a_table_of_any_size_is_filled() {
        let set = set((1..=5).map(|port| (port, u64::from(port))));
        for table_size in 0..40 {
            let entries = Maglev { table_size, ..maglev() }.entries(&set);
            assert!(
                entries.len() as u64 == table_size.max(2) && entries.iter().all(|entry| *entry < 5),
                "{table_size}"
            );
        }
    }

    /// As the C++ standard library of GCC hashes strings.
    #[test]
    fn murmur2_is_that_of_libstdcxx() {
        assert_eq!(murmur2(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur2(b"hello"), 2_762_169_579_135_187_400);
        assert_eq!(murmur2(b"12345678"), 10_113_836_418_918_046_885);
        assert_eq!(murmur2(b"10.0.0.1:80_17"), 4_437_040_220_721_654_695);
    }
}
