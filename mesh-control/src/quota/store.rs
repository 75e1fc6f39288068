//! Where quotas are kept: in this process, in its state directory besides, or in a Redis that several replicas share.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::account::{Account, Ask, FEW, MOST_DEMAND, PART, Settled};
use super::{Identity, Key};
use crate::journal::Journal;
use crate::ratelimit::{NotCounted, RedisUrl, Scripted};

/// The file in the state directory.
const FILE: &str = "quotas.jsonl";

/// Where quotas are kept.
#[derive(Debug)]
pub struct Store(Kept);

#[derive(Debug)]
enum Kept {
    Memory(Arc<Mutex<Accounts>>),
    Redis(Scripted),
}

/// The accounts of this process, and their journal, where there is one.
#[derive(Debug, Default)]
struct Accounts {
    by_key: HashMap<Key, (Arc<Identity>, Account)>,
    journal: Option<Journal>,
}

/// How many identities are kept. When there are more, those whose time is over make room; else no more come.
const MOST_ACCOUNTS: usize = 1_000_000;

/// An account, as it is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    identity: Identity,
    account: Account,
}

/// What is asked about whom.
pub(crate) type Question = (Key, Arc<Identity>, Ask);

impl Store {
    /// In this process: gone with it.
    pub fn in_memory() -> Store {
        Store(Kept::Memory(Arc::default()))
    }

    /// In this process, and in a file of this directory, which is written before anything is granted: what was used is known to
    /// the next process, and what clients hold. A machine that fails may lose what it had not yet put on its disk.
    ///
    /// # Errors
    /// The directory cannot be read, or not be written to.
    pub fn in_dir(dir: &Path, now: Duration) -> io::Result<Store> {
        let (mut journal, records) = Journal::open::<Record>(dir, FILE)?;
        let now = millis(now);
        let mut accounts = Accounts::default();
        for Record { identity, account } in records {
            accounts.by_key.insert(identity.key(), (Arc::new(identity), account));
        }
        accounts.by_key.retain(|_, (_, account)| !account.is_over(now));
        journal.rewrite(&accounts.records())?;
        accounts.journal = Some(journal);
        Ok(Store(Kept::Memory(Arc::new(Mutex::new(accounts)))))
    }

    /// In a Redis, which replicas share. It is dialled in the background, for as long as there is this store. To be called
    /// inside a runtime.
    pub fn in_redis(url: RedisUrl) -> Store {
        Store(Kept::Redis(Scripted::new(url, include_str!("settle.lua"), "quotas")))
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
            Kept::Redis(redis) => redis.is_connected(),
        }
    }

    /// What is kept in this process.
    pub(super) fn known(&self) -> Vec<(Arc<Identity>, Account)> {
        match &self.0 {
            Kept::Memory(accounts) => lock(accounts).by_key.values().cloned().collect(),
            Kept::Redis(_) => Vec::new(),
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
            Kept::Redis(redis) => join_all(asked.iter().map(|(key, _, ask)| in_redis(redis, key, ask, now))).await,
        }
    }
}

impl Accounts {
    fn settle(&mut self, asked: &[Question], now: u64) -> Vec<Result<Settled, NotCounted>> {
        if self.by_key.len() + asked.len() > MOST_ACCOUNTS {
            self.by_key.retain(|_, (_, account)| !account.is_over(now));
        }
        let (mut settled, mut before) = (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
        for (key, identity, ask) in asked {
            if self.by_key.len() >= MOST_ACCOUNTS && !self.by_key.contains_key(key) {
                settled.push(Err(NotCounted::Busy));
                continue;
            }
            let (_, account) = self.by_key.entry(*key).or_insert_with(|| (Arc::clone(identity), Account::default()));
            if self.journal.is_some() {
                before.push((*key, account.clone()));
            }
            settled.push(Ok(account.settle(ask, now)));
        }
        if let Err(error) = self.write(asked, now) {
            tracing::error!("quotas cannot be written down, and none is granted: {error}");
            // It is settled again when it can be.
            for (key, before) in before.into_iter().rev() {
                if let Some((_, account)) = self.by_key.get_mut(&key) {
                    *account = before;
                }
            }
            settled.fill(Err(NotCounted::Away("the state directory cannot be written to".to_owned())));
        }
        settled
    }

    fn write(&mut self, asked: &[Question], now: u64) -> io::Result<()> {
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        let changed = asked.iter().filter_map(|(key, ..)| self.by_key.get(key));
        let mut written = journal.append(changed.map(|(identity, account)| Record::of(identity, account)));
        if written.is_ok() && journal.is_long() {
            self.by_key.retain(|_, (_, account)| !account.is_over(now));
            written = journal.rewrite(&self.records());
        }
        self.journal = Some(journal);
        written
    }

    fn records(&self) -> Vec<Record> {
        self.by_key.values().map(|(identity, account)| Record::of(identity, account)).collect()
    }
}

impl Record {
    fn of(identity: &Identity, account: &Account) -> Record {
        Record { identity: identity.clone(), account: account.clone() }
    }
}

async fn in_redis(redis: &Scripted, key: &Key, ask: &Ask, now: Duration) -> Result<Settled, NotCounted> {
    // In braces: what decides where it lies in a cluster.
    let name = key.iter().fold("mesh-quota:{".to_owned(), |name, byte| format!("{name}{byte:02x}")) + "}";
    let now = millis(now);
    // Beyond its period and all of its leases.
    let kept = ask.period.end.saturating_mul(1000).max(ask.until).saturating_sub(now).saturating_add(60_000);
    let settled: (u64, u64, u64) = redis
        .run(async |link, script| {
            let mut script = script.prepare_invoke();
            script.key(name).arg(now).arg(ask.lease).arg(ask.period.start).arg(ask.limit).arg(ask.used).arg(ask.holds);
            script.arg(u8::from(ask.wants)).arg(ask.demand).arg(ask.until).arg(kept).arg(FEW).arg(MOST_DEMAND);
            script.arg(PART).arg(ask.period.end);
            link.invoke(&script).await
        })
        .await?;
    let (used, leased, granted) = settled;
    Ok(Settled { used, leased, granted })
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
