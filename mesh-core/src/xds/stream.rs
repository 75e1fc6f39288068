//! What the state-of-the-world and the incremental protocol have in common: one stream of one server, and the
//! time it has to answer.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3 as core;

use crate::resources::ResourceType;
use crate::xds::cache::{Cache, Step};
use crate::xds::timers::Timers;

/// How long a server may keep silent about a resource before it is taken not to have it (gRFC A57).
const PATIENCE: Duration = Duration::from_secs(15);
/// The same where silence is taken for a fault of the server (gRFC A88).
const TRANSIENT_PATIENCE: Duration = Duration::from_secs(30);

/// One stream, or the lack of one.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    live: bool,
    node: Option<core::Node>,
    timers: Timers,
}

impl Stream {
    /// A new stream is open; its first request will carry the node.
    pub(crate) fn open(&mut self, node: &core::Node) {
        self.live = true;
        self.node = Some(node.clone());
    }

    /// The stream is gone. Nothing can arrive, so nothing can be late (rule 13).
    pub(crate) fn close(&mut self) {
        self.live = false;
        self.timers.clear();
    }

    /// Whether requests can be sent.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// The node, for the first request of the stream and no other (rule 1).
    pub(crate) fn take_node(&mut self) -> Option<core::Node> {
        self.node.take()
    }

    /// Names were asked for: the wait for those that nothing is known of begins, unless it had begun.
    pub(crate) fn await_answers(&mut self, cache: &Cache, kind: ResourceType, step: &Step<'_>) {
        let patience = if step.server.timer_is_transient() { TRANSIENT_PATIENCE } else { PATIENCE };
        for key in cache.awaited(kind) {
            self.timers.arm(key, step.now + patience);
        }
    }

    /// Ends the wait for whatever was answered in some way, or is not wanted any more.
    pub(crate) fn answered<'k>(&mut self, keys: impl IntoIterator<Item = &'k crate::resources::ResourceKey>) {
        for key in keys {
            self.timers.cancel(key);
        }
    }

    /// Reports what was waited for in vain.
    pub(crate) fn expire(&mut self, cache: &mut Cache, step: &mut Step<'_>) {
        while let Some(key) = self.timers.pop(step.now) {
            cache.time_out(step, &key);
        }
    }

    /// When a wait ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }
}
