//! One-time tokens of replicas on one etcd: made once, known to all of them, and good at one.
//!
//! Each token has a key with whom it is for, and another one as soon as it was used. Who makes that one has used the token: etcd
//! does so for one of several who try. It is made for tokens of state directories, too, so that a copy of such a directory, or a
//! backup, brings none back. Both end with a lease, and later than the token.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::keys::Prefix;
use super::link::{Client, Failure};
use super::proto::{Compare, DeleteRangeRequest, MOD, Op, PutRequest, RangeRequest, RequestOp, Target, TxnRequest};

/// How long an answer may take, the wait for a turn included. A token takes two, and a workload waits 10 s: it is to hear what became
/// of the token that it has used up.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions at a time: whoever sends nonsense costs etcd no more than that.
const AT_ONCE: usize = 32;
/// How often a use is tried of which nobody knows whether it was noted. It is noted once at most.
const ATTEMPTS: u32 = 3;
/// For how long more than the token is good: clocks of replicas differ.
const LONGER: Duration = Duration::from_secs(3600);

/// The tokens in an etcd.
#[derive(Clone, Debug)]
pub(crate) struct SharedTokens {
    client: Client,
    prefix: Prefix,
    turns: Arc<Semaphore>,
}

impl SharedTokens {
    pub(crate) fn new(client: Client, prefix: Prefix) -> SharedTokens {
        SharedTokens { client, prefix, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Keeps a new token.
    pub(crate) async fn keep(&self, name: &str, record: &[u8], ttl: Duration) -> Result<(), Failure> {
        let lease = self.client.grant(seconds(ttl)).await?;
        let put = PutRequest { key: self.prefix.token(name), value: record.to_vec(), lease };
        let success = vec![RequestOp { request: Some(Op::Put(put)) }];
        self.client.txn(TxnRequest { compare: Vec::new(), success }).await.map(drop)
    }

    /// What is kept of a token. A member that is cut off from the others does not answer: what it knows may be used up.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.in_turn(self.value(self.prefix.token(name))).await
    }

    /// Notes that a token was used that is good for so long still. False where it was used before.
    pub(crate) async fn spend(&self, name: &str, left: Duration) -> Result<bool, Failure> {
        self.in_turn(self.try_to_spend(name, left)).await
    }

    async fn try_to_spend(&self, name: &str, left: Duration) -> Result<bool, Failure> {
        let attempt = format!("{:016x}", fastrand::u64(..)).into_bytes();
        let mut why = String::new();
        for _ in 0..ATTEMPTS {
            match self.note(name, &attempt, left).await {
                // It may have been an attempt of ours that was not answered.
                Ok(false) => return Ok(self.value(self.prefix.used_token(name)).await? == Some(attempt)),
                Err(Failure::Lost(lost) | Failure::Unclear(lost)) => why = lost,
                noted => return noted,
            }
        }
        Err(Failure::Unclear(why))
    }

    async fn note(&self, name: &str, attempt: &[u8], left: Duration) -> Result<bool, Failure> {
        let key = self.prefix.used_token(name);
        // First, so that whoever shows a used token time and again leaves no leases behind.
        if self.value(key.clone()).await?.is_some() {
            return Ok(false);
        }
        let lease = self.client.grant(seconds(left)).await?;
        let is_unused = Compare { result: 0, target: MOD, key: key.clone(), value: Some(Target::ModRevision(0)) };
        let used = Op::Put(PutRequest { key, value: attempt.to_vec(), lease });
        let forget = Op::Delete(DeleteRangeRequest { key: self.prefix.token(name), range_end: Vec::new() });
        let success = [used, forget].map(|op| RequestOp { request: Some(op) }).to_vec();
        Ok(self.client.txn(TxnRequest { compare: vec![is_unused], success }).await?.succeeded)
    }

    async fn value(&self, key: Vec<u8>) -> Result<Option<Vec<u8>>, Failure> {
        let answer = self.client.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(answer.kvs.into_iter().next().map(|kv| kv.value))
    }

    async fn in_turn<T>(&self, ask: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let asked = async {
            let _turn = self.turns.acquire().await.map_err(|error| Failure::Lost(error.to_string()))?;
            ask.await
        };
        let late = |_| Failure::Unclear(format!("no answer within {PATIENCE:?}"));
        timeout(PATIENCE, asked).await.map_err(late)?
    }
}

fn seconds(left: Duration) -> i64 {
    i64::try_from(left.saturating_add(LONGER).as_secs()).unwrap_or(i64::MAX)
}
