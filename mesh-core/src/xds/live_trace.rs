//! How a control plane has live requests followed, over a stream of its own beside that of the resources: it sends all
//! [orders](WireOrder) that there are for a workload, as often as they change; the workload says that it follows them now, and sends
//! what it saw, hop by hop.
//!
//! The stream is opened where the head of the responses on a stream of xDS asks for it ([`TRACES`]), so that other control
//! planes never see it. When it ends, nothing is followed any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use http::uri::PathAndQuery;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::live_trace::{Condition, LiveTraces, Order, Where};
use crate::xds::backoff;
use crate::xds::channels::{Open, OpenStream, opened};
use crate::xds::clock::{now, sleep_until};
use crate::xds::task::Owned;

/// The service's name.
pub const SERVICE: &str = "mesh.trace.v1.LiveTraces";

/// The path of its only method.
pub const FOLLOW: &str = "/mesh.trace.v1.LiveTraces/Follow";

/// In the head of the responses on a stream of xDS: the server may want live requests to be followed.
pub const TRACES: &str = "x-mesh-traces";

/// The largest message, either way.
pub const MAX_MESSAGE: usize = 1 << 20;

/// What a workload says: first who it is, then what it follows, and hop after hop.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Followed {
    /// Who says it, in the first message.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// A hop as JSON; empty where something else is said.
    #[prost(string, tag = "2")]
    pub hop: String,
    /// How many hops were lost since the one before.
    #[prost(uint64, tag = "3")]
    pub lost: u64,
    /// The [`Orders::serial`] of what is followed from now on; 0 where nothing changed.
    #[prost(uint64, tag = "4")]
    pub heard: u64,
}

/// What a control plane wants followed: all of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Orders {
    /// All orders that there are for this workload.
    #[prost(message, repeated, tag = "1")]
    pub orders: Vec<WireOrder>,
    /// Which telling this is, for [`Followed::heard`].
    #[prost(uint64, tag = "2")]
    pub serial: u64,
}

/// An [`Order`] on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireOrder {
    /// The number of the trace.
    #[prost(fixed64, tag = "1")]
    pub trace: u64,
    /// Whether requests begin the trace here.
    #[prost(bool, tag = "2")]
    pub starts: bool,
    /// The host that they ask for.
    #[prost(string, tag = "3")]
    pub host: String,
    /// What has to be so besides: see [`Condition`].
    #[prost(string, repeated, tag = "4")]
    pub conditions: Vec<String>,
    /// How many of them.
    #[prost(uint32, tag = "5")]
    pub next: u32,
    /// When it is over, in milliseconds from now.
    #[prost(uint64, tag = "6")]
    pub left_ms: u64,
}

impl WireOrder {
    /// `None` where it has a condition that this process does not know: it must not begin with more than was asked for.
    fn read(self, now: Instant) -> Option<Order> {
        let until = now.checked_add(Duration::from_millis(self.left_ms))?;
        let order = Order::new(self.trace, until);
        if !self.starts {
            return Some(order);
        }
        let mut start = Where::to(&self.host);
        for text in &self.conditions {
            start = start.and(text.parse::<Condition>().ok()?);
        }
        Some(order.starting(start, self.next))
    }
}

/// One stream's word on whether its server may want requests followed, for as long as the stream lasts.
#[derive(Debug)]
pub(crate) struct Asked(OpenStream);

impl Asked {
    /// What the head of the stream's responses says of it.
    pub(crate) fn hear(&self, head: &MetadataMap, channel: &Channel) {
        self.0.set(head.contains_key(TRACES).then_some(channel));
    }
}

/// Follows what servers want followed, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Following {
    open: watch::Sender<Open>,
    _task: Owned,
}

impl Following {
    /// To be called inside a runtime.
    pub(crate) fn start(traces: Arc<LiveTraces>, node: Node, seed: u64) -> Following {
        let open = watch::Sender::new(None);
        let task = Owned::spawn(follow(traces, open.subscribe(), node, fastrand::Rng::with_seed(seed)));
        Following { open, _task: task }
    }

    /// For a new stream, by its number.
    pub(crate) fn asked(&self, stream: u64) -> Asked {
        Asked(OpenStream::new(&self.open, stream))
    }
}

async fn follow(traces: Arc<LiveTraces>, mut open: watch::Receiver<Open>, node: Node, mut random: fastrand::Rng) {
    let mut failures = 0_u32;
    while let Some((_, channel)) = opened(&mut open).await {
        let end = tokio::select! {
            end = converse(channel, &traces, &node, &mut failures) => Some(end),
            // A stream that has ended, or a new one.
            changed = open.changed() => match changed {
                Ok(()) => None,
                Err(_) => return,
            },
        };
        traces.set(Vec::new(), now());
        let Some(end) = end else { continue };
        tracing::debug!("no live request is followed: {}", end.err().unwrap_or_else(|| "the stream ended".to_owned()));
        failures = failures.saturating_add(1);
        _ = tokio::time::timeout(backoff::pause(failures, random.f64()), open.changed()).await;
    }
}

async fn converse(channel: Channel, traces: &Arc<LiveTraces>, node: &Node, failures: &mut u32) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel(1);
    let first = Followed { node: Some(node.clone()), ..Followed::default() };
    // There is room for one.
    _ = sender.try_send(first);
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    client.ready().await.map_err(|error| error.to_string())?;
    let codec = ProstCodec::<Followed, Orders>::default();
    let path = PathAndQuery::from_static(FOLLOW);
    let answer = client.streaming(tonic::Request::new(ReceiverStream::new(receiver)), path, codec).await;
    let mut orders = answer.map_err(|status| status.to_string())?.into_inner();
    let mut due = None;
    loop {
        tokio::select! {
            message = orders.message() => match message.map_err(|status| status.to_string())? {
                Some(message) => {
                    *failures = 0;
                    let now = now();
                    traces.set(message.orders.into_iter().filter_map(|order| order.read(now)).collect(), now);
                    due = traces.expire(now);
                    if sender.send(Followed { heard: message.serial, ..Followed::default() }).await.is_err() {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
            (hop, lost) = traces.next() => {
                if sender.send(Followed { hop, lost, ..Followed::default() }).await.is_err() {
                    return Ok(());
                }
            }
            () = sleep_until(due) => due = traces.expire(now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_with_a_condition_that_nobody_knows_begins_with_nothing() {
        let order = WireOrder { trace: 1, starts: true, next: 1, left_ms: 1000, ..WireOrder::default() };
        let now = Instant::now();
        assert!(order.clone().read(now).is_some());
        let strange = WireOrder { conditions: vec!["phase of-the-moon=full".to_owned()], ..order.clone() };
        assert_eq!(strange.read(now), None);
        assert!(WireOrder { left_ms: u64::MAX, ..order }.read(now).is_none_or(|order| order.until > now));
    }
}
