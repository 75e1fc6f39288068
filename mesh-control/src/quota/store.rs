//! Where quotas are kept: in this process, in its state directory besides, or in a Redis that several replicas share.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::account::{Account, Ask, FEW, Lease, MOST_DEMAND, PART, Settled};
use super::{Identity, Key};
use crate::hex::hex;
use crate::journal::Journal;
use crate::period::Period;
use crate::ratelimit::{NotCounted, RedisUrl, Scripted};

/// The file in the state directory.
const FILE: &str = "quotas.jsonl";

/// Where quotas are kept.
#[derive(Debug)]
pub struct Store(Kept);

#[derive(Debug)]
enum Kept {
    Memory(Arc<Mutex<Accounts>>),
    Redis(Box<InRedis>),
}

/// A Redis, and how far its clock is ahead of this machine's, in milliseconds: all replicas go by the one of Redis.
#[derive(Debug)]
struct InRedis {
    redis: Scripted,
    ahead: AtomicI64,
}

/// The accounts of this process, and their journal, where there is one.
#[derive(Debug)]
struct Accounts {
    room: Taken,
    by_key: HashMap<Key, Entry>,
    /// What is taken, of all and of each rule, by its quota and its name.
    taken: Taken,
    of_rules: HashMap<(String, String), Taken>,
    /// When room was looked for last.
    swept: Option<u64>,
    journal: Option<Journal>,
}

/// How many accounts there are, and how many bytes of names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    pub(super) accounts: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// As it is shown.
    identity: Arc<Identity>,
    account: Account,
    /// Whether the journal has it, so that changes are enough.
    is_written: bool,
}

/// How many identities are kept, and how many bytes of names. When there are more, those whose time is over make room; else no more come.
const ROOM: Taken = Taken { accounts: 1_000_000, bytes: 256 << 20 };
/// The part of either that one rule has at most: whoever makes identities up for it takes nothing from other quotas.
pub(super) const PART_OF_RULE: usize = 2;
/// Looking for room is looking at all of them, so it is done so often at most, in milliseconds.
const SWEEP: u64 = 10_000;
/// How far the clocks of a replica and of Redis may be apart before what the replica says is put off, in milliseconds.
const APART: u64 = 1000;

/// What is written down: an account, or what one report made of it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    key: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Identity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<Account>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Change {
    period: Period,
    used: u64,
    lease: u64,
    /// What the lease is; `None` as it was given back.
    has: Option<Lease>,
}

/// A key as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hex(Key);

/// What is asked about whom.
pub(crate) type Question = (Key, Arc<Identity>, Ask);

impl Store {
    /// In this process: gone with it.
    pub fn in_memory() -> Store {
        Store(Kept::Memory(Arc::new(Mutex::new(Accounts::new(ROOM)))))
    }

    /// In this process, and in a file of this directory, which is written before anything is granted: what was used is known to
    /// the next process, and what clients hold. A machine that fails may lose what it had not yet put on its disk.
    ///
    /// # Errors
    /// The directory cannot be read, or not be written to.
    pub fn in_dir(dir: &Path, now: Duration) -> io::Result<Store> {
        let (mut journal, records) = Journal::open::<Record>(dir, FILE)?;
        let now = millis(now);
        let mut accounts = Accounts::new(ROOM);
        records.into_iter().for_each(|record| accounts.replay(record));
        accounts.by_key.values_mut().for_each(|entry| entry.account.prune(now));
        accounts.sweep(now);
        journal.rewrite(&accounts.records())?;
        accounts.by_key.values_mut().for_each(|entry| entry.is_written = true);
        accounts.journal = Some(journal);
        Ok(Store(Kept::Memory(Arc::new(Mutex::new(accounts)))))
    }

    /// In a Redis, which replicas share. It is dialled in the background, for as long as there is this store. To be called
    /// inside a runtime.
    pub fn in_redis(url: RedisUrl) -> Store {
        let redis = Scripted::new(url, include_str!("settle.lua"), "quotas");
        Store(Kept::Redis(Box::new(InRedis { redis, ahead: AtomicI64::new(0) })))
    }

    /// `memory`, `file` or `redis`.
    pub(super) fn name(&self) -> &'static str {
        match &self.0 {
            Kept::Memory(accounts) if lock(accounts).journal.is_some() => "file",
            Kept::Memory(_) => "memory",
            Kept::Redis(_) => "redis",
        }
    }

    /// Whether quotas can be settled now.
    pub(super) fn is_reached(&self) -> bool {
        match &self.0 {
            Kept::Memory(_) => true,
            Kept::Redis(kept) => kept.redis.is_connected(),
        }
    }

    /// What is kept in this process.
    pub(super) fn known(&self) -> Vec<(Key, Arc<Identity>, Account)> {
        match &self.0 {
            Kept::Memory(accounts) => {
                let one = |(key, entry): (&Key, &Entry)| (*key, Arc::clone(&entry.identity), entry.account.clone());
                lock(accounts).by_key.iter().map(one).collect()
            }
            Kept::Redis(_) => Vec::new(),
        }
    }

    /// The time that quotas go by, where this machine's clock says so.
    pub(super) fn time(&self, clock: Duration) -> Duration {
        match &self.0 {
            Kept::Memory(_) => clock,
            Kept::Redis(kept) => match kept.ahead.load(Ordering::Relaxed) {
                behind @ ..0 => clock.saturating_sub(Duration::from_millis(behind.unsigned_abs())),
                ahead => clock.saturating_add(Duration::from_millis(ahead.unsigned_abs())),
            },
        }
    }

    /// Settles, in order.
    pub(super) async fn settle(&self, asked: Vec<Question>, now: Duration) -> Vec<Result<Settled, NotCounted>> {
        match &self.0 {
            Kept::Memory(accounts) => {
                let (count, accounts) = (asked.len(), Arc::clone(accounts));
                let has_journal = lock(&accounts).journal.is_some();
                let settle = move || lock(&accounts).settle(&asked, millis(now));
                if !has_journal {
                    return settle();
                }
                // It writes to a disk.
                let settled = tokio::task::spawn_blocking(settle).await;
                settled.unwrap_or_else(|_| vec![Err(NotCounted::Busy); count])
            }
            Kept::Redis(kept) => join_all(asked.iter().map(|(key, _, ask)| kept.settle(key, ask, now))).await,
        }
    }
}

impl Accounts {
    fn new(room: Taken) -> Accounts {
        Accounts {
            room,
            by_key: HashMap::new(),
            taken: Taken::default(),
            of_rules: HashMap::new(),
            swept: None,
            journal: None,
        }
    }

    fn settle(&mut self, asked: &[Question], now: u64) -> Vec<Result<Settled, NotCounted>> {
        let (mut settled, mut before) = (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
        for (key, identity, ask) in asked {
            if !self.by_key.contains_key(key) && !self.admit(*key, identity, now) {
                settled.push(Err(NotCounted::Busy));
                continue;
            }
            let Some(entry) = self.by_key.get_mut(key) else { continue };
            if self.journal.is_some() {
                before.push((*key, entry.account.clone()));
            }
            settled.push(Ok(entry.account.settle(ask, now)));
        }
        if let Err(error) = self.write(asked, now) {
            tracing::error!("quotas cannot be written down, and none is granted: {error}");
            // It is settled again when it can be.
            for (key, before) in before.into_iter().rev() {
                if let Some(entry) = self.by_key.get_mut(&key) {
                    (entry.account, entry.is_written) = (before, false);
                }
            }
            settled.fill(Err(NotCounted::Away("the state directory cannot be written to".to_owned())));
        }
        settled
    }

    /// Opens an account, where there is room for one more.
    fn admit(&mut self, key: Key, identity: &Arc<Identity>, now: u64) -> bool {
        let rule = (identity.quota.clone(), identity.rule.clone());
        let is_full = |all: &Accounts| {
            let of_rule = all.of_rules.get(&rule).copied().unwrap_or_default();
            all.taken.is_full(all.room, 1) || of_rule.is_full(all.room, PART_OF_RULE)
        };
        if is_full(self) && self.swept.is_none_or(|swept| now.abs_diff(swept) >= SWEEP) {
            self.sweep(now);
        }
        if is_full(self) {
            return false;
        }
        self.taken.add(identity);
        self.of_rules.entry(rule).or_default().add(identity);
        let identity = Identity::shown(identity);
        self.by_key.insert(key, Entry { identity, account: Account::default(), is_written: false });
        true
    }

    /// Forgets accounts that say nothing any more.
    fn sweep(&mut self, now: u64) {
        self.swept = Some(now);
        self.by_key.retain(|_, entry| !entry.account.is_over(now));
        (self.taken, self.of_rules) = (Taken::default(), HashMap::new());
        for Entry { identity, .. } in self.by_key.values() {
            self.taken.add(identity);
            self.of_rules.entry((identity.quota.clone(), identity.rule.clone())).or_default().add(identity);
        }
    }

    fn write(&mut self, asked: &[Question], now: u64) -> io::Result<()> {
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        let records = asked.iter().filter_map(|(key, _, ask)| Some(self.by_key.get(key)?.record(*key, ask.lease)));
        let mut written = journal.append(records);
        if written.is_ok() {
            for (key, ..) in asked {
                self.by_key.entry(*key).and_modify(|entry| entry.is_written = true);
            }
        }
        if written.is_ok() && journal.is_long() {
            self.sweep(now);
            written = journal.rewrite(&self.records());
        }
        self.journal = Some(journal);
        written
    }

    fn records(&self) -> Vec<Record> {
        self.by_key.iter().map(|(key, entry)| entry.whole(*key)).collect()
    }

    /// Takes in what was written down.
    fn replay(&mut self, record: Record) {
        let Hex(key) = record.key;
        if let (Some(identity), Some(account)) = (record.identity, record.account) {
            let identity = Identity::shown(&Arc::new(identity));
            self.by_key.insert(key, Entry { identity, account, is_written: false });
        }
        // Of an account whose beginning cannot be read, nobody can tell whose it is.
        if let (Some(change), Some(Entry { account, .. })) = (record.change, self.by_key.get_mut(&key)) {
            (account.period, account.used) = (change.period, change.used);
            match change.has {
                Some(has) => drop(account.leases.insert(change.lease, has)),
                None => drop(account.leases.remove(&change.lease)),
            }
        }
    }
}

impl Taken {
    pub(super) fn add(&mut self, identity: &Identity) {
        self.accounts += 1;
        self.bytes += identity.bytes();
    }

    pub(super) fn take_out(&mut self, identity: &Identity) {
        self.accounts = self.accounts.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(identity.bytes());
    }

    /// Whether there is no more room in one of so many parts of all.
    pub(super) fn is_full(self, room: Taken, parts: usize) -> bool {
        self.accounts >= room.accounts / parts || self.bytes >= room.bytes / parts
    }
}

impl Entry {
    /// What is to be written after a report of who has this lease.
    fn record(&self, key: Key, lease: u64) -> Record {
        if !self.is_written {
            return self.whole(key);
        }
        let Account { period, used, leases } = &self.account;
        let change = Change { period: *period, used: *used, lease, has: leases.get(&lease).copied() };
        Record { key: Hex(key), identity: None, account: None, change: Some(change) }
    }

    fn whole(&self, key: Key) -> Record {
        let (identity, account) = (Identity::clone(&self.identity), self.account.clone());
        Record { key: Hex(key), identity: Some(identity), account: Some(account), change: None }
    }
}

impl From<Hex> for String {
    fn from(Hex(key): Hex) -> String {
        hex(&key)
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Hex, Self::Error> {
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number.map(|number| Hex(number.to_be_bytes())).ok_or("no key of an account")
    }
}

impl InRedis {
    async fn settle(&self, key: &Key, ask: &Ask, now: Duration) -> Result<Settled, NotCounted> {
        // In braces: what decides where it lies in a cluster.
        let name = format!("mesh-quota:{{{}}}", String::from(Hex(*key)));
        let now = millis(now);
        // Beyond its period and all of its leases.
        let kept = ask.period.end.saturating_mul(1000).max(ask.until).saturating_sub(now).saturating_add(60_000);
        let (used, leased, granted): (i64, i64, i64) = self
            .redis
            .run(async |link, script| {
                let mut script = script.prepare_invoke();
                script.key(name).arg(now).arg(ask.lease).arg(ask.period.start).arg(ask.limit).arg(ask.used);
                script.arg(ask.holds).arg(u8::from(ask.wants)).arg(ask.demand).arg(ask.until).arg(kept).arg(FEW);
                script.arg(MOST_DEMAND).arg(PART).arg(ask.period.end).arg(ask.shown).arg(APART);
                link.invoke(&script).await
            })
            .await?;
        let number = |said: i64| u64::try_from(said);
        let (Ok(leased), Ok(granted)) = (number(leased), number(granted)) else {
            return Err(NotCounted::Away("Redis answered something else than was asked".to_owned()));
        };
        match number(used) {
            Ok(used) => Ok(Settled { used, leased, granted }),
            Err(_) => {
                self.go_by(leased);
                Err(NotCounted::Away("the clock here was not that of Redis".to_owned()))
            }
        }
    }

    /// From now on, what the clock here says is moved to what Redis says.
    fn go_by(&self, there: u64) {
        let here = millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let signed = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX);
        let ahead = signed(there).saturating_sub(signed(here));
        let before = self.ahead.swap(ahead, Ordering::Relaxed);
        // Several reports may have found it at once.
        if before.abs_diff(ahead) > APART / 2 {
            let by = Duration::from_millis(ahead.unsigned_abs());
            tracing::warn!("the clocks of this machine and of Redis are {by:?} apart: quotas go by that of Redis");
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn lock(accounts: &Mutex<Accounts>) -> std::sync::MutexGuard<'_, Accounts> {
    accounts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn question(rule: &str, user: &str, now: u64) -> Question {
        let by = BTreeMap::from([("x-user".to_owned(), user.to_owned())]);
        let identity = Arc::new(Identity { quota: "Quota shop/all".to_owned(), rule: rule.to_owned(), by });
        let start = now / 60_000 * 60;
        let period = Period { start, end: start + 60 };
        let (limit, until) = (100, now + 10_000);
        let ask = Ask { lease: 1, period, limit, used: 1, holds: 0, wants: true, demand: 0, shown: 4, until };
        (identity.key(), identity, ask)
    }

    #[test]
    fn identities_that_somebody_makes_up_leave_room_for_those_of_other_rules_and_go_when_their_time_is_over() {
        let mut accounts = Accounts::new(Taken { accounts: 100, bytes: 1 << 20 });
        let mut asks = |rule: &str, count: usize, now: u64| {
            let asked: Vec<Question> = (0..count).map(|user| question(rule, &user.to_string(), now)).collect();
            accounts.settle(&asked, now).iter().filter(|settled| settled.is_ok()).count()
        };
        assert_eq!(asks("made-up", 1000, NOW), 50);
        assert_eq!(asks("other", 30, NOW), 30);
        assert_eq!(asks("made-up", 1000, NOW + 1000), 50, "those that there were");
        assert_eq!(asks("third", 1000, NOW + 2000), 20);
        let later = NOW + 120_000;
        assert_eq!(asks("third", 40, later), 40, "what was before is over");
    }

    #[test]
    fn a_few_long_names_are_as_much_as_many_short_ones() {
        let mut accounts = Accounts::new(Taken { accounts: 1000, bytes: 20_000 });
        let long = |user: usize| question("long", &format!("{user:01000}"), NOW);
        let asked: Vec<Question> = (0..100).map(long).collect();
        assert_eq!(accounts.settle(&asked, NOW).iter().filter(|settled| settled.is_ok()).count(), 10);
    }

    #[test]
    fn a_report_writes_what_it_changes_and_not_what_others_hold() {
        let dir = tempfile::tempdir().unwrap();
        let now = Duration::from_millis(NOW);
        let Store(Kept::Memory(accounts)) = Store::in_dir(dir.path(), now).unwrap() else { panic!("in memory") };
        let size = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        let of = |lease: u64| {
            let (key, identity, ask) = question("each", "ada", NOW);
            (key, identity, Ask { lease, limit: 1 << 30, ..ask })
        };
        for lease in 0..100 {
            assert!(lock(&accounts).settle(&[of(lease)], NOW)[0].is_ok());
        }
        let before = size();
        let settled = lock(&accounts).settle(&[of(100)], NOW);
        assert!(size() - before < 300, "{} bytes", size() - before);
        // All of it is known to the next one.
        let known = Store::in_dir(dir.path(), now).unwrap().known();
        let [(_, _, account)] = &known[..] else { panic!("{known:?}") };
        assert_eq!((account.used, account.leases.len()), (101, 101));
        assert_eq!(account.leases[&100].tokens, settled[0].as_ref().unwrap().granted);
        // Before the next one, those that are over are gone.
        let later = now + Duration::from_secs(11);
        let known = Store::in_dir(dir.path(), later).unwrap().known();
        assert_eq!((known[0].2.used, known[0].2.leases.len()), (101, 0));
    }
}
