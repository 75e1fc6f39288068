//! Objects in etcd, read and changed: a set of changes is one transaction, with its author in the history, and holds only if nobody
//! has changed anything since it was looked at.

use std::sync::Arc;
use std::time::SystemTime;

use super::follow::list;
use super::keys::Prefix;
use super::link::{Client, Failure};
use super::proto::{
    Compare, DeleteRangeRequest, KeyValue, MOD, Op, PutRequest, RangeRequest, RequestOp, Target, TxnRequest,
};
use crate::changes::{All, Author, Change, Entry, Id, Outcome, Past, Refusal, Stored, VersionedStore};
use crate::config::diagnostic::stored_name;
use crate::period::date;

/// How many changes the history keeps.
pub(crate) const KEPT: u64 = 200;
/// How often a transaction is sent of which nobody knows whether it was carried out. It holds once at most.
const ATTEMPTS: u32 = 5;

/// The objects below a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    client: Client,
    prefix: Prefix,
}

/// All of them, as of a moment.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) objects: All,
    /// Keys below the prefix that are no objects.
    pub(crate) strange: Vec<String>,
    last: Last,
}

/// The last change.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    number: u64,
    /// The revision in which it was written; 0 where there was none.
    revision: i64,
}

impl Objects {
    pub(crate) fn new(client: Client, prefix: Prefix) -> Objects {
        Objects { client, prefix }
    }

    async fn last(&self) -> Result<Last, Failure> {
        let asked = RangeRequest { key: self.prefix.last(), ..RangeRequest::default() };
        let answer = self.client.range(asked).await?;
        let Some(kv) = answer.kvs.first() else { return Ok(Last::default()) };
        let number = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok());
        let wrong = || Failure::Refused(format!("the key {} has no number in it", self.prefix.last().escape_ascii()));
        Ok(Last { number: number.ok_or_else(wrong)?, revision: kv.mod_revision })
    }

    async fn is_ours(&self, number: u64, attempt: &str) -> Result<bool, Failure> {
        let asked = RangeRequest { key: self.prefix.change(number), ..RangeRequest::default() };
        let answer = self.client.range(asked).await?;
        let entry = answer.kvs.first().and_then(|kv| serde_json::from_slice::<Entry>(&kv.value).ok());
        Ok(entry.is_some_and(|entry| entry.attempt == attempt))
    }

    fn transaction(
        &self,
        held: &Held,
        changes: &[Change],
        author: &Author,
        attempt: &str,
        now: SystemTime,
    ) -> TxnRequest {
        let is = |key: Vec<u8>, revision: i64| Compare {
            result: 0,
            target: MOD,
            key,
            value: Some(Target::ModRevision(revision)),
        };
        let put =
            |key: Vec<u8>, value: Vec<u8>| RequestOp { request: Some(Op::Put(PutRequest { key, value, lease: 0 })) };
        let delete = |key: Vec<u8>, range_end: Vec<u8>| RequestOp {
            request: Some(Op::Delete(DeleteRangeRequest { key, range_end })),
        };
        let number = held.last.number.saturating_add(1);
        let mut request = TxnRequest { compare: vec![is(self.prefix.last(), held.last.revision)], success: Vec::new() };
        let mut objects = Vec::new();
        for change in changes {
            let Some(verb) = change.verb(&held.objects) else { continue };
            let (key, before) = (self.prefix.object(&change.id), held.objects.get(&change.id));
            request.compare.push(is(key.clone(), before.map_or(0, |stored| stored.version)));
            request.success.push(match &change.text {
                Some(text) => put(key, text.as_bytes().to_vec()),
                None => delete(key, Vec::new()),
            });
            objects.push(change.told(verb, &held.objects));
        }
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let Author { name, message } = author.clone();
        let entry = Entry { number, author: name, message, time: date(seconds), attempt: attempt.to_owned(), objects };
        // A value of plain data, which is always JSON.
        let entry = serde_json::to_vec(&entry).unwrap_or_default();
        request.success.push(put(self.prefix.change(number), entry));
        request.success.push(put(self.prefix.last(), number.to_string().into_bytes()));
        if let Some(oldest) = number.checked_sub(KEPT).filter(|oldest| *oldest > 0) {
            request.success.push(delete(self.prefix.history(), self.prefix.change(oldest.saturating_add(1))));
        }
        request
    }
}

impl VersionedStore for Objects {
    type Held = Held;

    fn objects(held: &Held) -> &All {
        &held.objects
    }

    fn name(id: &Id) -> Arc<str> {
        stored_name(&id.path())
    }

    async fn read(&self) -> Result<Held, Refusal> {
        // First: who commits what was found later is told if anything came between.
        let last = self.last().await?;
        let (_, kvs) = list(&self.client, self.prefix.objects()).await?;
        let (mut objects, mut strange) = (All::new(), Vec::new());
        for KeyValue { key, mod_revision, value, .. } in kvs {
            let found = self.prefix.path(&key).ok_or_else(String::new).and_then(Id::parse_path);
            match (found, String::from_utf8(value)) {
                (Ok(id), Ok(text)) => _ = objects.insert(id, Stored { text: text.into(), version: mod_revision }),
                _ => strange.push(String::from_utf8_lossy(&key).into_owned()),
            }
        }
        Ok(Held { objects, strange, last })
    }

    async fn history(&self) -> Result<Vec<Past>, Refusal> {
        let (_, kvs) = list(&self.client, self.prefix.history()).await?;
        let pasts = kvs.iter().rev().filter_map(|kv| {
            let entry = serde_json::from_slice(&kv.value).ok()?;
            Some(Past { entry, version: Some(kv.mod_revision) })
        });
        Ok(pasts.collect())
    }

    /// etcd keeps what is written as it is.
    async fn preview(&self, _held: &Held, changes: &[Change]) -> Result<Vec<Change>, Refusal> {
        Ok(changes.to_vec())
    }

    /// All of them or none. What changes nothing is left out.
    async fn commit(
        &self,
        held: &Held,
        changes: &[Change],
        author: &Author,
        now: SystemTime,
    ) -> Result<Outcome, Refusal> {
        let attempt = format!("{:016x}", fastrand::u64(..));
        let number = held.last.number.saturating_add(1);
        let request = self.transaction(held, changes, author, &attempt, now);
        let mut is_unclear = None;
        for _ in 0..ATTEMPTS {
            match self.client.txn(request.clone()).await {
                Ok(answer) if answer.succeeded => return Ok(Outcome::Committed(number)),
                // An earlier attempt may be the one that came between.
                Ok(_) if is_unclear.is_some() && self.is_ours(number, &attempt).await? => {
                    return Ok(Outcome::Committed(number));
                }
                Ok(_) => return Ok(Outcome::Conflict),
                Err(Failure::Refused(why)) if why.contains("too many operations") => {
                    let hint = "etcd takes 128 operations at a time unless its --max-txn-ops says otherwise";
                    return Err(Failure::Refused(format!("{why}: {} objects; {hint}", changes.len())).into());
                }
                Err(Failure::Unclear(why)) => is_unclear = Some(why),
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Failure::Unclear(is_unclear.unwrap_or_default()).into())
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Store(format!("etcd: {failure}"))
    }
}
