//! What requests take of quotas, told to the control plane by Envoy's protocol
//! (`envoy.service.rate_limit_quota.v3.RateLimitQuotaService`), which assigns shares of them: one stream for each domain, over the
//! connection of the stream of xDS, and none before a request is counted.
//!
//! What was on its way when a stream broke is lost to the service; all else is told over the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::BucketAction as Kind;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::{BucketId, RateLimitQuotaResponse};
use envoy_types::pb::google::protobuf;
use http::uri::PathAndQuery;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::limits::{Due, QuotaDomain, QuotaUsage, Quotas};
use crate::xds::backoff;
use crate::xds::channels::{Open, OpenStream, opened};
use crate::xds::clock::now;
use crate::xds::decode::assignment;

/// The service's name.
pub const SERVICE: &str = "envoy.service.rate_limit_quota.v3.RateLimitQuotaService";

/// The path of its only method.
pub const STREAM: &str = "/envoy.service.rate_limit_quota.v3.RateLimitQuotaService/StreamRateLimitQuotas";

/// The largest message, either way.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Envoy's `RateLimitQuotaUsageReports`, and who reports, in the first message of a stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UsageReports {
    /// The domain, in the first message of a stream.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// What was used.
    #[prost(message, repeated, tag = "2")]
    pub usages: Vec<Usage>,
    /// Who reports. Envoys do not say it.
    #[prost(message, optional, tag = "1000")]
    pub node: Option<Node>,
}

/// Envoy's `BucketQuotaUsage`, and by which assignment it was used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Usage {
    /// The bucket.
    #[prost(message, optional, tag = "1")]
    pub bucket_id: Option<BucketId>,
    /// In which time.
    #[prost(message, optional, tag = "2")]
    pub time_elapsed: Option<protobuf::Duration>,
    /// How many requests passed.
    #[prost(uint64, tag = "3")]
    pub allowed: u64,
    /// How many did not.
    #[prost(uint64, tag = "4")]
    pub denied: u64,
    /// How many assignments had come on this stream by the end of that time, plus one. Envoys do not say it (0).
    #[prost(uint64, tag = "1000")]
    pub heard: u64,
}

/// Usages of one message.
const MOST_USAGES: usize = 500;
/// How often it is looked for what is due: well below the shortest interval in use.
const LOOK: Duration = Duration::from_millis(250);
/// What comes at once is told together.
const TOGETHER: Duration = Duration::from_millis(10);

/// Reports for as long as it is held.
#[derive(Debug)]
pub(crate) struct Quoting {
    open: watch::Sender<Open>,
    leave: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Quoting {
    /// To be called inside a runtime.
    pub(crate) fn start(quotas: &Quotas, node: Node, seed: u64) -> Quoting {
        let (open, leave) = (watch::Sender::new(None), watch::Sender::new(false));
        let task = tokio::spawn(follow_all(quotas.domains(), open.subscribe(), leave.subscribe(), node, seed));
        Quoting { open, leave, task }
    }

    /// For a new stream, by its number.
    pub(crate) fn stream(&self, number: u64) -> OpenStream {
        OpenStream::new(&self.open, number)
    }

    /// Tells what is left, within this time.
    pub(crate) async fn end(mut self, patience: Duration) {
        self.leave.send_replace(true);
        _ = tokio::time::timeout(patience, &mut self.task).await;
    }
}

impl Drop for Quoting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One task for each domain; they end with this.
async fn follow_all(
    mut domains: watch::Receiver<BTreeMap<Arc<str>, Arc<QuotaDomain>>>,
    open: watch::Receiver<Open>,
    mut leave: watch::Receiver<bool>,
    node: Node,
    seed: u64,
) {
    let (mut tasks, mut followed) = (JoinSet::new(), Vec::<Arc<str>>::new());
    loop {
        let known: Vec<_> = domains.borrow_and_update().values().cloned().collect();
        for domain in known {
            if followed.contains(domain.name()) {
                continue;
            }
            followed.push(Arc::clone(domain.name()));
            let random = fastrand::Rng::with_seed(seed.wrapping_add(followed.len() as u64));
            tasks.spawn(follow(domain, open.clone(), leave.clone(), node.clone(), random));
        }
        tokio::select! {
            changed = domains.changed() => if changed.is_err() { break },
            () = is_left(&mut leave) => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn is_left(leave: &mut watch::Receiver<bool>) {
    // Whoever is gone has left.
    _ = leave.wait_for(|leaves| *leaves).await.map(drop);
}

async fn follow(
    domain: Arc<QuotaDomain>,
    mut open: watch::Receiver<Open>,
    mut leave: watch::Receiver<bool>,
    node: Node,
    mut random: fastrand::Rng,
) {
    let mut failures = 0_u32;
    loop {
        let (_, channel) = tokio::select! {
            () = is_left(&mut leave) => return,
            opened = opened(&mut open) => match opened {
                Some(opened) => opened,
                None => return,
            },
        };
        let leaves = leave.clone();
        let end = tokio::select! {
            end = converse(channel, &domain, &node, leaves, &mut failures) => end,
            // A stream that has ended, or a new one.
            changed = open.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if *leave.borrow() {
            return;
        }
        let reason = end.err().unwrap_or_else(|| "the stream ended".to_owned());
        tracing::debug!(domain = &**domain.name(), "no quotas are assigned: {reason}");
        failures = failures.saturating_add(1);
        let pause = tokio::time::timeout(backoff::pause(failures, random.f64()), open.changed());
        tokio::select! {
            _ = pause => {}
            () = is_left(&mut leave) => return,
        }
    }
}

async fn converse(
    channel: Channel,
    domain: &QuotaDomain,
    node: &Node,
    mut leave: watch::Receiver<bool>,
    failures: &mut u32,
) -> Result<(), String> {
    // No stream begins before there is something to report, which its first message has.
    let mut first = domain.restart(now());
    while first.is_empty() {
        tokio::select! {
            () = is_left(&mut leave) => return Ok(()),
            () = domain.news() => first = domain.urgent(now()),
        }
    }
    let rest = Taken(first.split_off(first.len().min(MOST_USAGES)));
    let first = Taken(first);
    let (sender, receiver) = mpsc::channel(1);
    let mut message = UsageReports { domain: domain.name().to_string(), ..reports(&first.0) };
    message.node = Some(node.clone());
    // There is room for one.
    _ = sender.try_send(message);
    let mut responses = open(channel, receiver).await?;
    first.told();
    if !tell(&sender, rest).await {
        return Ok(());
    }
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            biased;
            () = is_left(&mut leave) => {
                tell(&sender, Taken(domain.rest(now()))).await;
                drop(sender);
                // The service ends its side once it has read all of it.
                while let Ok(Some(_)) = responses.message().await {}
                return Ok(());
            }
            response = responses.message() => match response.map_err(|status| status.to_string())? {
                Some(response) => {
                    *failures = 0;
                    response.bucket_action.into_iter().filter_map(|action| apply(domain, action)).collect()
                }
                None => return Ok(()),
            },
            () = domain.news() => {
                tokio::time::sleep(TOGETHER).await;
                domain.urgent(now())
            }
            _ = look.tick() => domain.due(now()),
        };
        if !tell(&sender, Taken(due)).await {
            return Ok(());
        }
    }
}

async fn open(
    channel: Channel,
    messages: mpsc::Receiver<UsageReports>,
) -> Result<tonic::Streaming<RateLimitQuotaResponse>, String> {
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    client.ready().await.map_err(|error| error.to_string())?;
    let codec = ProstCodec::<UsageReports, RateLimitQuotaResponse>::default();
    let messages = tonic::Request::new(ReceiverStream::new(messages));
    let answer = client.streaming(messages, PathAndQuery::from_static(STREAM), codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}

/// Does what the service says of one bucket; what is to be reported for it at once.
fn apply(domain: &QuotaDomain, BucketAction { bucket_id, bucket_action }: BucketAction) -> Option<Due> {
    let id = bucket_id?.bucket;
    // It may be forgotten already.
    let kept = domain.find(id.iter().map(|(key, value)| (&**key, &**value)))?;
    let now = now();
    match bucket_action? {
        Kind::QuotaAssignmentAction(action) => {
            let (strategy, ttl) = match assignment(&action) {
                Ok(assignment) => assignment,
                Err(invalid) => {
                    tracing::debug!(domain = &**domain.name(), "an assignment makes no sense: {invalid}");
                    return None;
                }
            };
            // What was used by the assignment before is told together with it: no request is counted in between.
            let usage = kept.with(|bucket| {
                let has_news = bucket.has_news();
                let usage = bucket.report(now);
                let is_new = bucket.assign(strategy, ttl, now);
                (is_new || has_news).then(|| QuotaUsage { applied: bucket.applied(), ..usage })
            })?;
            Some((kept, usage))
        }
        Kind::AbandonAction(_) => {
            kept.with(|bucket| bucket.abandon(now));
            None
        }
    }
}

/// What was taken out of buckets to be told: what is not told in the end goes back into them.
struct Taken(Vec<Due>);

impl Taken {
    fn told(mut self) {
        self.0.clear();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for (kept, usage) in &self.0 {
            kept.with(|bucket| bucket.keep(usage));
        }
    }
}

/// Tells it; `false` where the stream has ended.
async fn tell(sender: &mpsc::Sender<UsageReports>, mut due: Taken) -> bool {
    while !due.0.is_empty() {
        let Ok(room) = sender.reserve().await else { return false };
        let some: Vec<Due> = due.0.drain(..due.0.len().min(MOST_USAGES)).collect();
        room.send(reports(&some));
    }
    true
}

fn reports(due: &[Due]) -> UsageReports {
    let usages = due.iter().map(|(kept, usage)| Usage {
        bucket_id: Some(BucketId {
            bucket: kept.id().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }),
        // More than nothing, by the protocol.
        time_elapsed: Some(protobuf::Duration {
            seconds: i64::try_from(usage.elapsed.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(usage.elapsed.subsec_nanos()).unwrap_or_default().max(1),
        }),
        allowed: usage.allowed,
        denied: usage.denied,
        heard: usage.applied.saturating_add(1),
    });
    UsageReports { usages: usages.collect(), ..UsageReports::default() }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tonic::transport::Endpoint;

    use super::*;
    use crate::limits::{Entry, Value};
    use crate::model::{DescriptorAction, QuotaSettings, RateLimit};

    /// A domain with so many buckets, each of which let one request pass.
    fn domain(buckets: usize, now: Instant) -> Arc<QuotaDomain> {
        let id = RateLimit::by(vec![DescriptorAction::Constant { key: "name".into(), value: "all".into() }]);
        let settings = Arc::new(QuotaSettings::new(id, Duration::from_secs(1)));
        let domain = Quotas::default().domain(&"shop".into());
        for user in 0..buckets {
            let user = user.to_string();
            domain.take(&[Entry { key: "user", value: Value::Borrowed(user.as_bytes()) }], &settings, now);
        }
        domain
    }

    fn untold(domain: &QuotaDomain, now: Instant) -> u64 {
        domain.rest(now).iter().map(|(_, usage)| usage.allowed).sum()
    }

    #[tokio::test]
    async fn what_no_stream_took_is_told_over_the_next_one() {
        let now = Instant::now();
        let all = MOST_USAGES + 20;
        let domain = domain(all, now);
        let (sender, mut receiver) = mpsc::channel(1);
        {
            let telling = tell(&sender, Taken(domain.restart(now)));
            tokio::select! {
                biased;
                _ = telling => panic!("there is room for one message alone"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(receiver.recv().await.map(|message| message.usages.len()), Some(MOST_USAGES));
        let rest = domain.rest(now);
        assert_eq!(rest.len(), 20, "another stream came before there was room for them");
        drop(receiver);
        assert!(!tell(&sender, Taken(rest)).await);
        assert_eq!(untold(&domain, now), 20, "the stream had ended");
    }

    #[tokio::test]
    async fn what_was_taken_for_a_stream_that_did_not_open_in_time_goes_back() {
        let now = Instant::now();
        let domain = domain(3, now);
        let (_leave, leaves) = watch::channel(false);
        let (mut failures, node) = (0, Node::default());
        let channel = Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
        {
            let conversation = converse(channel, &domain, &node, leaves, &mut failures);
            tokio::select! {
                biased;
                _ = conversation => panic!("nobody is dialled that soon"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(untold(&domain, now), 3);
    }
}
