//! The state-of-the-world protocol as a machine: events in, requests and changes out, no I/O and no clock.
//!
//! Every request names everything that is wanted of its type, with the version accepted last and the nonce
//! received last. Rules 1 to 25 of `docs/xds-client-rules.md`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

use crate::resources::{ResourceKey, ResourceType};
use crate::xds::cache::{Cache, Step};
use crate::xds::decode::Options;
use crate::xds::intake::{self, Item, Taken};
use crate::xds::names::{ByKind, KINDS, kind_of, type_url};
use crate::xds::stream::Stream;

/// The machine of one server.
#[derive(Debug, Default)]
pub(crate) struct Sotw {
    stream: Stream,
    types: ByKind<Subscription>,
}

/// One type of resource.
#[derive(Debug, Default)]
struct Subscription {
    /// The version accepted last. It outlives the stream: it says what this client has, not what it was sent.
    version: String,
    /// The nonce received last on this stream.
    nonce: String,
    /// Whether this stream was ever asked for something of this type. Before that, an empty list of names would
    /// ask for everything there is.
    asked: bool,
}

impl Sotw {
    /// A stream is open: asks for everything that is wanted.
    pub(crate) fn opened(&mut self, cache: &Cache, step: &Step<'_>, node: &core::Node) -> Vec<DiscoveryRequest> {
        self.stream.open(node);
        for kind in KINDS {
            let subscription = self.types.of_mut(kind);
            subscription.nonce.clear();
            subscription.asked = false;
        }
        KINDS.into_iter().filter_map(|kind| self.ask(cache, step, kind)).collect()
    }

    /// The stream is gone.
    pub(crate) fn closed(&mut self) {
        self.stream.close();
    }

    /// These resources are wanted now, or not any more.
    pub(crate) fn changed(&mut self, cache: &Cache, step: &Step<'_>, keys: &[ResourceKey]) -> Vec<DiscoveryRequest> {
        if !self.stream.is_live() {
            return Vec::new();
        }
        self.stream.answered(keys);
        let is_touched = |kind: &ResourceType| keys.iter().any(|key| key.kind == *kind);
        KINDS.into_iter().filter(is_touched).filter_map(|kind| self.ask(cache, step, kind)).collect()
    }

    /// A response has arrived: takes it in, and acknowledges or rejects it.
    pub(crate) fn response(
        &mut self,
        cache: &mut Cache,
        step: &mut Step<'_>,
        response: DiscoveryResponse,
        options: &Options,
    ) -> (Taken, Option<DiscoveryRequest>) {
        let Some(kind) = kind_of(&response.type_url).filter(|kind| self.types.of(*kind).asked) else {
            // Answering would subscribe to something that nobody wants (rule 5).
            tracing::warn!(server = %step.server.uri, "response of type {:?}, which was not asked for", response.type_url);
            return (Taken::default(), None);
        };
        let version = response.version_info;
        let item = |any| Item { name: String::new(), version: version.clone(), any };
        let items = response.resources.into_iter().map(item).collect();
        let mut taken = intake::take_in(cache, step, kind, items, options);
        let reported = intake::take_errors(cache, step, kind, response.resource_errors);
        self.answer(kind, taken.named.iter().chain(&reported));
        delete_absent(cache, step, kind, &taken, &reported);
        self.stream.answered(&cache.note_answer(kind));
        let subscription = self.types.of_mut(kind);
        subscription.nonce = response.nonce;
        if taken.errors.is_empty() {
            subscription.version = version;
        }
        let error_detail = intake::error_detail(&taken.errors);
        taken.named.extend(reported);
        let request = self.request(cache, kind, error_detail);
        (taken, Some(request))
    }

    /// Time has passed.
    pub(crate) fn expire(&mut self, cache: &mut Cache, step: &mut Step<'_>) {
        self.stream.expire(cache, step);
    }

    /// When to call [`Self::expire`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.stream.next_deadline()
    }

    /// A request for everything that is wanted of a type, if the stream may be sent one.
    fn ask(&mut self, cache: &Cache, step: &Step<'_>, kind: ResourceType) -> Option<DiscoveryRequest> {
        let wants_something = cache.names(kind).next().is_some();
        let subscription = self.types.of_mut(kind);
        if !wants_something && !subscription.asked {
            return None;
        }
        subscription.asked = true;
        self.stream.await_answers(cache, kind, step);
        Some(self.request(cache, kind, None))
    }

    fn request(&mut self, cache: &Cache, kind: ResourceType, error_detail: Option<Status>) -> DiscoveryRequest {
        let node = self.stream.take_node();
        let subscription = self.types.of(kind);
        DiscoveryRequest {
            version_info: subscription.version.clone(),
            node,
            resource_names: cache.names(kind).map(|name| name.to_string()).collect(),
            type_url: type_url(kind).to_owned(),
            response_nonce: subscription.nonce.clone(),
            error_detail,
            ..Default::default()
        }
    }

    fn answer<'n>(&mut self, kind: ResourceType, names: impl Iterator<Item = &'n Arc<str>>) {
        let keys: Vec<ResourceKey> = names.map(|name| ResourceKey { kind, name: Arc::clone(name) }).collect();
        self.stream.answered(&keys);
    }
}

/// A response of listeners or clusters holds all that there are: what it lacks and was there is deleted. One of
/// routes or endpoints may hold any part of them (rule 15).
fn delete_absent(
    cache: &mut Cache,
    step: &mut Step<'_>,
    kind: ResourceType,
    taken: &Taken,
    reported: &HashSet<Arc<str>>,
) {
    if !matches!(kind, ResourceType::Listener | ResourceType::Cluster) || taken.has_unnamed {
        return;
    }
    let is_absent = |key: &&ResourceKey| !taken.named.contains(&key.name) && !reported.contains(&key.name);
    let absent: Vec<ResourceKey> = cache.present(kind).filter(is_absent).cloned().collect();
    for key in absent {
        if cache.is_seen(&key) {
            cache.delete(step, &key, None);
        }
    }
}

#[cfg(test)]
#[path = "tests/sotw.rs"]
mod tests;
