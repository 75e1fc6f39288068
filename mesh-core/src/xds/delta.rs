//! The incremental protocol as a machine: events in, requests and changes out, no I/O and no clock.
//!
//! A request names only what changed; every resource has a version of its own; what the server deletes, it says.
//! Rules 33 to 35 of `docs/xds-client-rules.md`. Names are spelled out, but for a gateway's, which asks for
//! every listener that there is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, ResourceError,
};

use crate::error::Invalid;
use crate::resources::{ResourceKey, ResourceType};
use crate::xds::cache::{Cache, Step};
use crate::xds::decode::Options;
use crate::xds::intake::{self, Item, Taken};
use crate::xds::names::{ByKind, KINDS, canonical, kind_of, type_url};
use crate::xds::stream::Stream;

/// How large a request may become, in bytes. gRPC servers read 4 MiB unless they are told otherwise, and one that does
/// not read the first request of a stream would refuse every stream.
const MAX_REQUEST: usize = 3 << 20;
/// What Protobuf adds to a name or a version, in bytes, at most.
const FRAME: usize = 8;

/// The machine of one server.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    stream: Stream,
    /// By type, what this stream was asked for; `None` before its first request.
    asked: ByKind<Option<BTreeSet<Arc<str>>>>,
}

impl Delta {
    /// A stream is open: asks for everything that is wanted, and says what is known already.
    pub(crate) fn opened(&mut self, cache: &Cache, step: &Step<'_>, node: &core::Node) -> Vec<DeltaDiscoveryRequest> {
        self.stream.open(node);
        self.asked = Default::default();
        KINDS.into_iter().flat_map(|kind| self.first(cache, step, kind)).collect()
    }

    /// The stream is gone.
    pub(crate) fn closed(&mut self) {
        self.stream.close();
    }

    /// These resources are wanted now, or not any more.
    pub(crate) fn changed(
        &mut self,
        cache: &Cache,
        step: &Step<'_>,
        keys: &[ResourceKey],
    ) -> Vec<DeltaDiscoveryRequest> {
        if !self.stream.is_live() {
            return Vec::new();
        }
        self.stream.answered(keys);
        KINDS.into_iter().flat_map(|kind| self.change(cache, step, kind, keys)).collect()
    }

    /// A response has arrived: takes it in, and acknowledges or rejects it.
    pub(crate) fn response(
        &mut self,
        cache: &mut Cache,
        step: &mut Step<'_>,
        response: DeltaDiscoveryResponse,
        options: &Options,
    ) -> (Taken, Option<DeltaDiscoveryRequest>) {
        let kind = kind_of(&response.type_url);
        let Some(kind) = kind.filter(|kind| self.asked.of(*kind).is_some()) else {
            tracing::warn!(server = %step.server.uri, "response of type {:?}, which was not asked for", response.type_url);
            return (Taken::default(), None);
        };
        let mut missing = Vec::new();
        let items = response.resources.into_iter().filter_map(|resource| item(resource, &mut missing)).collect();
        let mut taken = intake::take_in(cache, step, kind, items, options);
        taken.errors.extend(missing);
        let removed = response.removed_resource_names.into_iter().map(|name| name.name);
        let removed: Vec<String> = removed.chain(response.removed_resources).collect();
        let names: HashSet<&str> = removed.iter().map(String::as_str).collect();
        // What is said of a name that is removed is why it is.
        let name_of = |error: &ResourceError| error.resource_name.as_ref().map(|name| name.name.clone());
        let (reasons, errors): (Vec<_>, Vec<_>) = response
            .resource_errors
            .into_iter()
            .partition(|error| name_of(error).is_some_and(|name| names.contains(name.as_str())));
        let reasons =
            reasons.iter().filter_map(|error| Some((name_of(error)?, error.error_detail.as_ref()?.message.clone())));
        delete(cache, step, kind, &mut taken, removed.iter(), &reasons.collect());
        taken.named.extend(intake::take_errors(cache, step, kind, errors));
        let answered: Vec<ResourceKey> =
            taken.named.iter().map(|name| ResourceKey { kind, name: Arc::clone(name) }).collect();
        self.stream.answered(&answered);
        self.stream.answered(&cache.note_answer(kind));
        let request = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail: intake::error_detail(&taken.errors),
            ..self.request(kind)
        };
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

    /// The first request of a type on a stream: all names, and the versions of what is known. Nothing where
    /// nothing is wanted: a first request without names would ask for everything there is (rule 34).
    fn first(&mut self, cache: &Cache, step: &Step<'_>, kind: ResourceType) -> Vec<DeltaDiscoveryRequest> {
        let names: BTreeSet<Arc<str>> = cache.names(kind).cloned().collect();
        if names.is_empty() {
            return Vec::new();
        }
        let subscribe: Vec<Arc<str>> = names.iter().cloned().collect();
        let versions: HashMap<&str, &str> = cache.versions(kind, step.index).collect();
        *self.asked.of_mut(kind) = Some(names);
        self.stream.await_answers(cache, kind, step);
        let mut requests = self.divided(kind, subscribe, &versions, Vec::new());
        if let Some(first) = requests.first_mut() {
            // What is gone meanwhile, the server can say only of what it knows to be here.
            let all = cache.names_of_all(kind).filter_map(|name| Some((name, versions.get(&**name)?)));
            first
                .initial_resource_versions
                .extend(all.map(|(name, version)| (name.to_string(), (*version).to_owned())));
        }
        requests
    }

    /// A later request: only what changed. A name that is wanted again is asked for again even if the server
    /// still knows of it, since that makes it send the resource.
    fn change(
        &mut self,
        cache: &Cache,
        step: &Step<'_>,
        kind: ResourceType,
        keys: &[ResourceKey],
    ) -> Vec<DeltaDiscoveryRequest> {
        let touched: BTreeSet<&Arc<str>> = keys.iter().filter(|key| key.kind == kind).map(|key| &key.name).collect();
        if touched.is_empty() {
            return Vec::new();
        }
        let Some(asked) = self.asked.of_mut(kind) else { return self.first(cache, step, kind) };
        let wanted: HashSet<&Arc<str>> = cache.names(kind).collect();
        let (subscribe, mut unsubscribe): (Vec<_>, Vec<_>) =
            touched.into_iter().cloned().partition(|name| wanted.contains(name));
        asked.extend(subscribe.iter().cloned());
        unsubscribe.retain(|name| asked.remove(name));
        self.stream.await_answers(cache, kind, step);
        self.divided(kind, subscribe, &HashMap::new(), unsubscribe)
    }

    /// As many requests as it takes for none to be larger than a server must be able to read. The versions of what is
    /// known go with the names, in each of them.
    fn divided(
        &mut self,
        kind: ResourceType,
        subscribe: Vec<Arc<str>>,
        versions: &HashMap<&str, &str>,
        unsubscribe: Vec<Arc<str>>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let (mut requests, mut bytes) = (Vec::<DeltaDiscoveryRequest>::new(), MAX_REQUEST);
        let names = unsubscribe.into_iter().map(|name| (name, false));
        for (name, wanted) in names.chain(subscribe.into_iter().map(|name| (name, true))) {
            let version = versions.get(&*name).filter(|_| wanted);
            let size = FRAME + name.len() + version.map_or(0, |version| 2 * FRAME + name.len() + version.len());
            bytes += size;
            if bytes > MAX_REQUEST {
                bytes = size;
                requests.push(self.request(kind));
            }
            let Some(request) = requests.last_mut() else { continue };
            if let Some(version) = version {
                request.initial_resource_versions.insert(name.to_string(), (*version).to_owned());
            }
            match wanted {
                true => request.resource_names_subscribe.push(name.to_string()),
                false => request.resource_names_unsubscribe.push(name.to_string()),
            }
        }
        requests
    }

    fn request(&mut self, kind: ResourceType) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: self.stream.take_node(),
            type_url: type_url(kind).to_owned(),
            ..Default::default()
        }
    }
}

/// A resource of a response. One without content but with a time to live only says that it lives on.
fn item(resource: Resource, missing: &mut Vec<String>) -> Option<Item> {
    let Resource { name, version, resource: any, ttl, .. } = resource;
    match any {
        Some(any) => Some(Item { name, version, any }),
        None => {
            if ttl.is_none() {
                missing.push(Invalid::new("missing").at("resource").of(name).to_string());
            }
            None
        }
    }
}

/// Deletes what the server says it has no more, of any type (rule 33).
fn delete<'n>(
    cache: &mut Cache,
    step: &mut Step<'_>,
    kind: ResourceType,
    taken: &mut Taken,
    removed: impl Iterator<Item = &'n String>,
    reasons: &HashMap<String, String>,
) {
    let sent = taken.named.clone();
    for name in removed {
        let why = reasons.get(name).map(String::as_str);
        match canonical(kind, name) {
            Ok(name) if sent.contains(&name) => {
                let invalid = Invalid::new("both sent and removed in one response").of(&*name);
                taken.errors.push(invalid.to_string());
            }
            Ok(name) => {
                cache.delete(step, &ResourceKey { kind, name: Arc::clone(&name) }, why);
                taken.named.insert(name);
            }
            // Nothing of such a name was ever asked for.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
#[path = "tests/delta.rs"]
mod tests;
