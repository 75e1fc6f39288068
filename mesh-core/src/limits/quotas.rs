//! The buckets of all quotas of a process, by domain and ID: they outlive the configuration that made them, and all who count by
//! the same ID share one. Requests take from them; whoever talks to the service ([`QuotaDomain::due`]) reports what they took.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use super::descriptor::Entry;
use super::quota::{QuotaBucket, QuotaUsage, QuotaVerdict};
use crate::model::QuotaSettings;
use crate::state::lock;

/// The domains of all quotas.
#[derive(Debug)]
pub struct Quotas {
    domains: watch::Sender<BTreeMap<Arc<str>, Arc<QuotaDomain>>>,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas { domains: watch::Sender::new(BTreeMap::new()) }
    }
}

impl Quotas {
    /// The buckets of a domain, which are kept from now on.
    pub fn domain(&self, name: &Arc<str>) -> Arc<QuotaDomain> {
        if let Some(known) = self.domains.borrow().get(name) {
            return Arc::clone(known);
        }
        let mut found = None;
        self.domains.send_modify(|domains| {
            let domain = domains.entry(Arc::clone(name)).or_insert_with(|| Arc::new(QuotaDomain::new(name)));
            found = Some(Arc::clone(domain));
        });
        found.expect("it was put there")
    }

    /// All domains, and those that come.
    pub fn domains(&self) -> watch::Receiver<BTreeMap<Arc<str>, Arc<QuotaDomain>>> {
        self.domains.subscribe()
    }
}

/// How many buckets a domain has at most. What comes beyond that is decided as the settings say before the first assignment, and
/// is not counted.
pub const MOST_BUCKETS: usize = 100_000;

/// The part of them that one rule has at most: whoever makes identities up for it leaves room for those of others.
const PART_OF_RULE: usize = 2;

/// Into how many parts they are divided, each with a lock of its own.
const PARTS: usize = 32;

/// The object and the rule of a quota.
type RuleName = (Arc<str>, Arc<str>);

/// The buckets of a domain.
#[derive(Debug)]
pub struct QuotaDomain {
    name: Arc<str>,
    hasher: RandomState,
    parts: [Mutex<HashMap<u64, Arc<Kept>>>; PARTS],
    count: AtomicUsize,
    /// How many there are of each rule.
    of_rules: Mutex<HashMap<RuleName, Arc<AtomicUsize>>>,
    /// Those that the service should hear of before they are due; each is there once, since it asks once.
    urgent: Mutex<Vec<Arc<Kept>>>,
    news: Notify,
}

/// A bucket that is kept, with its ID.
#[derive(Debug)]
pub struct Kept {
    id: Box<[(Arc<str>, Box<str>)]>,
    bucket: Mutex<QuotaBucket>,
    /// How many there are of its rule.
    of_rule: Arc<AtomicUsize>,
}

impl Kept {
    /// Its ID, in the order of the keys.
    pub fn id(&self) -> impl Iterator<Item = (&str, &str)> {
        self.id.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Works on the bucket.
    pub fn with<R>(&self, work: impl FnOnce(&mut QuotaBucket) -> R) -> R {
        work(&mut lock(&self.bucket))
    }
}

/// A bucket and what is to be reported of it.
pub type Due = (Arc<Kept>, QuotaUsage);

impl QuotaDomain {
    fn new(name: &Arc<str>) -> Self {
        QuotaDomain {
            name: Arc::clone(name),
            hasher: RandomState::default(),
            parts: Default::default(),
            count: AtomicUsize::new(0),
            of_rules: Mutex::default(),
            urgent: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How many buckets it has.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides about a request by the bucket of this ID, whose keys are in order; `None` where there is no room for another one.
    pub fn take(&self, id: &[Entry<'_>], settings: &Arc<QuotaSettings>, now: Instant) -> Option<QuotaVerdict> {
        let texts: SmallVec<[(&str, Cow<'_, str>); 8]> =
            id.iter().map(|entry| (entry.key, entry.value.to_text())).collect();
        let hash = self.hash(texts.iter().map(|(key, value)| (*key, value)));
        let kept = {
            let mut part = lock(self.part(hash));
            match part.get(&hash) {
                Some(kept) => Arc::clone(kept),
                None => {
                    let of_rule = self.admit(settings)?;
                    let id = texts.iter().map(|(key, value)| ((*key).into(), Box::from(&**value))).collect();
                    let kept = Arc::new(Kept { id, bucket: Mutex::new(QuotaBucket::new(settings, now)), of_rule });
                    part.insert(hash, Arc::clone(&kept));
                    kept
                }
            }
        };
        // Nobody can choose IDs that meet, and by chance they do not.
        if !kept.id().eq(texts.iter().map(|(key, value)| (*key, &**value))) {
            return None;
        }
        let verdict = kept.with(|bucket| bucket.take(settings, now));
        if verdict.is_urgent {
            lock(&self.urgent).push(kept);
            self.news.notify_one();
        }
        Some(verdict)
    }

    /// Counts one more bucket, where there is room for it; how many there are of its rule.
    fn admit(&self, settings: &QuotaSettings) -> Option<Arc<AtomicUsize>> {
        let of_rule = Arc::clone(lock(&self.of_rules).entry(settings.name.clone()).or_default());
        if of_rule.fetch_add(1, Ordering::Relaxed) >= MOST_BUCKETS / PART_OF_RULE {
            of_rule.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= MOST_BUCKETS {
            self.count.fetch_sub(1, Ordering::Relaxed);
            of_rule.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(of_rule)
    }

    /// The bucket of an ID, in whichever order its keys are.
    pub fn find<'i>(&self, id: impl IntoIterator<Item = (&'i str, &'i str)>) -> Option<Arc<Kept>> {
        let mut id: Vec<(&str, &str)> = id.into_iter().collect();
        id.sort_unstable();
        let hash = self.hash(id.iter().copied());
        let kept = lock(self.part(hash)).get(&hash).cloned();
        kept.filter(|kept| kept.id().eq(id.iter().copied()))
    }

    /// Waits until the service should hear of something. Whoever waits is alone in it.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What the service should hear of now.
    pub fn urgent(&self, now: Instant) -> Vec<Due> {
        let urgent = std::mem::take(&mut *lock(&self.urgent));
        urgent.into_iter().map(|kept| due(kept, now)).collect()
    }

    /// What is due by its interval; what nobody needs any more is forgotten.
    pub fn due(&self, now: Instant) -> Vec<Due> {
        let mut found = Vec::new();
        self.each(|kept, bucket| {
            let is_due = bucket.is_due(now);
            if is_due {
                found.push((Arc::clone(kept), bucket.report(now)));
            }
            is_due || !bucket.is_idle(now)
        });
        found
    }

    /// All that was not reported yet.
    pub fn rest(&self, now: Instant) -> Vec<Due> {
        let mut found = Vec::new();
        self.each(|kept, bucket| {
            if bucket.has_news() {
                found.push((Arc::clone(kept), bucket.report(now)));
            }
            true
        });
        found
    }

    /// What a service should hear of first that knows of nothing.
    pub fn restart(&self, now: Instant) -> Vec<Due> {
        lock(&self.urgent).clear();
        let mut found = Vec::new();
        self.each(|kept, bucket| {
            if bucket.restart(now) {
                found.push((Arc::clone(kept), bucket.report(now)));
            }
            true
        });
        found
    }

    /// Looks at all buckets, and keeps those that are to be kept.
    fn each(&self, mut look: impl FnMut(&Arc<Kept>, &mut QuotaBucket) -> bool) {
        for part in &self.parts {
            let mut part = lock(part);
            let before = part.len();
            part.retain(|_, kept| {
                let is_kept = look(kept, &mut lock(&kept.bucket));
                if !is_kept {
                    kept.of_rule.fetch_sub(1, Ordering::Relaxed);
                }
                is_kept
            });
            self.count.fetch_sub(before - part.len(), Ordering::Relaxed);
        }
    }

    fn part(&self, hash: u64) -> &Mutex<HashMap<u64, Arc<Kept>>> {
        self.parts.get((hash >> 32) as usize % PARTS).expect("a position within")
    }

    fn hash<'i, V: AsRef<str>>(&self, id: impl Iterator<Item = (&'i str, V)>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for (key, value) in id {
            for text in [key, value.as_ref()] {
                hasher.write_usize(text.len());
                hasher.write(text.as_bytes());
            }
        }
        hasher.finish()
    }
}

fn due(kept: Arc<Kept>, now: Instant) -> Due {
    let usage = kept.with(|bucket| bucket.report(now));
    (kept, usage)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::Value;
    use crate::model::{DescriptorAction, QuotaStrategy, RateLimit};

    fn settings() -> Arc<QuotaSettings> {
        let id = RateLimit::by(vec![DescriptorAction::Constant { key: "name".into(), value: "all".into() }]);
        Arc::new(QuotaSettings::new(id, Duration::from_secs(1)))
    }

    fn id(user: &str) -> [Entry<'_>; 2] {
        [("name", "users"), ("user", user)].map(|(key, value)| Entry { key, value: Value::Borrowed(value.as_bytes()) })
    }

    #[test]
    fn buckets_are_found_by_their_ids_and_those_that_are_not_used_are_forgotten() {
        let (quotas, settings, start) = (Quotas::default(), settings(), Instant::now());
        let domain = quotas.domain(&"shop".into());
        assert!(Arc::ptr_eq(&domain, &quotas.domain(&"shop".into())));
        assert!(domain.take(&id("ada"), &settings, start).unwrap().is_urgent);
        assert!(!domain.take(&id("ada"), &settings, start).unwrap().is_urgent);
        domain.take(&id("bob"), &settings, start);
        assert_eq!(domain.urgent(start).iter().map(|(_, usage)| usage.allowed).collect::<Vec<_>>(), [2, 1]);
        let ada = domain.find([("user", "ada"), ("name", "users")]).unwrap();
        ada.with(|bucket| bucket.assign(QuotaStrategy::DenyAll, Some(Duration::from_secs(3600)), start));
        assert!(!domain.take(&id("ada"), &settings, start).unwrap().is_within);
        assert!(domain.take(&id("bob"), &settings, start).unwrap().is_within);
        let later = start + Duration::from_secs(61);
        assert_eq!((domain.due(later).len(), domain.len()), (2, 2), "what was not reported is kept");
        assert_eq!((domain.due(later).len(), domain.len()), (0, 1), "what is assigned, too");
        assert!(domain.find([("name", "users"), ("user", "bob")]).is_none());
        assert_eq!(domain.restart(later).len(), 0);
        assert_eq!((domain.due(start + Duration::from_secs(3700)).len(), domain.len()), (0, 0));
    }

    #[test]
    fn there_are_so_many_at_most_and_those_of_one_rule_leave_room_for_others() {
        let (domain, now) = (Quotas::default().domain(&"shop".into()), Instant::now());
        let of = |rule: &str| Arc::new(QuotaSettings { name: ("shop".into(), rule.into()), ..(*settings()).clone() });
        let counted = |rule: &str, count: usize, now: Instant| {
            let settings = of(rule);
            let users = (0..count).map(|user| format!("{rule}-{user}"));
            users.filter(|user| domain.take(&id(user), &settings, now).is_some()).count()
        };
        assert_eq!(counted("flooded", MOST_BUCKETS, now), MOST_BUCKETS / PART_OF_RULE);
        assert_eq!(counted("other", 10, now), 10);
        assert_eq!(counted("third", MOST_BUCKETS, now), MOST_BUCKETS / PART_OF_RULE - 10);
        assert_eq!(domain.len(), MOST_BUCKETS);
        // Those that are forgotten make room again.
        let later = now + Duration::from_secs(61);
        domain.due(later);
        domain.due(later);
        assert!(domain.is_empty());
        assert_eq!(counted("flooded", 10, later), 10);
    }
}
