//! What a correct management server answers, in both variants of the protocol; and how an answer is spoilt.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource, ResourceError,
    ResourceName,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;

/// A resource as it is served.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Served {
    pub(crate) version: u64,
    pub(crate) any: Any,
}

/// Everything that is served, by type URL and name.
pub(crate) type World = BTreeMap<String, BTreeMap<String, Served>>;

/// A response of either variant.
#[derive(Clone, Debug)]
pub enum Answer {
    /// State of the world.
    Sotw(DiscoveryResponse),
    /// Incremental.
    Delta(DeltaDiscoveryResponse),
}

/// What can be wrong with one response.
#[derive(Clone, Debug)]
pub enum Flaw {
    /// Every resource is in it twice.
    DuplicateNames,
    /// The type URL is of nothing that anybody knows.
    UnknownType,
    /// The resources are of another type than the response.
    WrongType,
    /// The bytes of the resources are no Protobuf.
    BadBytes,
    /// The last resource is left out.
    Partial,
    /// The nonce is that of the response before.
    StaleNonce,
    /// There is so much more in it, in bytes.
    Padded(usize),
    /// It is sent after the one that follows it.
    AfterTheNext,
    /// It is never sent.
    Lost,
}

impl Answer {
    /// The response with this flaw. `AfterTheNext` and `Lost` are not about its content.
    pub(crate) fn spoilt(mut self, flaw: &Flaw, previous_nonce: &str) -> Self {
        let (resources, type_url, nonce): (Vec<&mut Any>, &mut String, &mut String) = match &mut self {
            Answer::Sotw(response) => {
                (response.resources.iter_mut().collect(), &mut response.type_url, &mut response.nonce)
            }
            Answer::Delta(response) => {
                let resources = response.resources.iter_mut().filter_map(|resource| resource.resource.as_mut());
                (resources.collect(), &mut response.type_url, &mut response.nonce)
            }
        };
        match flaw {
            Flaw::UnknownType => *type_url = "type.googleapis.com/acme.Unknown".to_owned(),
            Flaw::WrongType => {
                for any in resources {
                    any.type_url = "type.googleapis.com/envoy.config.core.v3.Node".to_owned();
                }
            }
            Flaw::BadBytes => {
                for any in resources {
                    any.value = vec![0xff; 8];
                }
            }
            Flaw::StaleNonce => *nonce = previous_nonce.to_owned(),
            Flaw::Padded(size) => {
                let padding = Any { type_url: "padding".to_owned(), value: vec![0; *size] };
                match &mut self {
                    Answer::Sotw(response) => response.resources.push(padding),
                    Answer::Delta(response) => {
                        response.resources.push(Resource { resource: Some(padding), ..Default::default() });
                    }
                }
            }
            Flaw::DuplicateNames => match &mut self {
                Answer::Sotw(response) => response.resources.extend(response.resources.clone()),
                Answer::Delta(response) => response.resources.extend(response.resources.clone()),
            },
            Flaw::Partial => match &mut self {
                Answer::Sotw(response) => drop(response.resources.pop()),
                Answer::Delta(response) => drop(response.resources.pop()),
            },
            Flaw::AfterTheNext | Flaw::Lost => {}
        }
        self
    }

    pub(crate) fn nonce(&self) -> &str {
        match self {
            Answer::Sotw(response) => &response.nonce,
            Answer::Delta(response) => &response.nonce,
        }
    }
}

/// The server's side of one state-of-the-world stream.
#[derive(Debug, Default)]
pub(crate) struct SotwState {
    types: BTreeMap<String, SotwType>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct SotwType {
    names: BTreeSet<String>,
    nonce: String,
    sent: Option<BTreeMap<String, u64>>,
}

impl SotwState {
    /// A request: what is due after it.
    pub(crate) fn asked(&mut self, request: &DiscoveryRequest, world: &World, reports: bool) -> Vec<Answer> {
        let subscription = self.types.entry(request.type_url.clone()).or_default();
        if !request.response_nonce.is_empty() && request.response_nonce != subscription.nonce {
            return Vec::new();
        }
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        let gained = names.difference(&subscription.names).next().is_some();
        subscription.names = names;
        if gained {
            subscription.sent = None;
        }
        self.due(world, reports)
    }

    /// Everything that differs from what was sent.
    pub(crate) fn due(&mut self, world: &World, reports: bool) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (type_url, subscription) in &mut self.types {
            let of_type = world.get(type_url);
            let present: BTreeMap<&String, &Served> =
                of_type.into_iter().flatten().filter(|(name, _)| is_wanted(&subscription.names, name)).collect();
            let versions: BTreeMap<String, u64> =
                present.iter().map(|(name, served)| ((*name).clone(), served.version)).collect();
            if subscription.names.is_empty() || subscription.sent.as_ref() == Some(&versions) {
                continue;
            }
            let missing = subscription.names.iter().filter(|name| *name != "*" && !versions.contains_key(*name));
            let resource_errors: Vec<ResourceError> =
                if reports { missing.map(|name| not_found(name)).collect() } else { Vec::new() };
            let is_first_and_empty = versions.is_empty() && subscription.sent.is_none() && resource_errors.is_empty();
            subscription.sent = Some(versions);
            if is_first_and_empty {
                continue;
            }
            self.nonces += 1;
            subscription.nonce = format!("s{}", self.nonces);
            let newest = of_type.into_iter().flatten().map(|(_, served)| served.version).max();
            answers.push(Answer::Sotw(DiscoveryResponse {
                version_info: newest.unwrap_or_default().to_string(),
                resources: present.values().map(|served| served.any.clone()).collect(),
                type_url: type_url.clone(),
                nonce: subscription.nonce.clone(),
                resource_errors,
                ..Default::default()
            }));
        }
        answers
    }
}

/// Whether a name was asked for, or everything.
fn is_wanted(names: &BTreeSet<String>, name: &str) -> bool {
    names.contains(name) || names.contains("*")
}

fn not_found(name: &str) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.to_owned(), ..Default::default() }),
        error_detail: Some(Status { code: 5, message: "there is none".to_owned(), details: Vec::new() }),
    }
}

/// The server's side of one incremental stream.
#[derive(Debug, Default)]
pub(crate) struct DeltaState {
    types: BTreeMap<String, DeltaType>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct DeltaType {
    names: BTreeSet<String>,
    /// What the client has; `None` = it was told that there is none.
    sent: BTreeMap<String, Option<String>>,
}

impl DeltaState {
    /// A request: what is due after it.
    pub(crate) fn asked(&mut self, request: &DeltaDiscoveryRequest, world: &World) -> Vec<Answer> {
        let subscription = self.types.entry(request.type_url.clone()).or_default();
        for name in &request.resource_names_unsubscribe {
            subscription.names.remove(name);
            subscription.sent.remove(name);
        }
        for name in &request.resource_names_subscribe {
            // Whoever asks again gets it again.
            subscription.sent.remove(name);
            subscription.names.insert(name.clone());
        }
        for (name, version) in &request.initial_resource_versions {
            subscription.sent.insert(name.clone(), Some(version.clone()));
        }
        self.due(world)
    }

    /// Everything that differs from what the client has.
    pub(crate) fn due(&mut self, world: &World) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (type_url, subscription) in &mut self.types {
            let (mut resources, mut removed) = (Vec::new(), Vec::new());
            let mut names = subscription.names.clone();
            if names.remove("*") {
                // All that there are, and those that the client has from before.
                names.extend(world.get(type_url).into_iter().flatten().map(|(name, _)| name.clone()));
                names.extend(subscription.sent.keys().cloned());
            }
            for name in &names {
                let served = world.get(type_url).and_then(|of_type| of_type.get(name));
                let version = served.map(|served| served.version.to_string());
                if subscription.sent.get(name) == Some(&version) {
                    continue;
                }
                subscription.sent.insert(name.clone(), version.clone());
                match served {
                    Some(served) => resources.push(Resource {
                        name: name.clone(),
                        version: version.unwrap_or_default(),
                        resource: Some(served.any.clone()),
                        ..Default::default()
                    }),
                    None => removed.push(name.clone()),
                }
            }
            if !resources.is_empty() || !removed.is_empty() {
                self.nonces += 1;
                answers.push(Answer::Delta(DeltaDiscoveryResponse {
                    resources,
                    removed_resources: removed,
                    type_url: type_url.clone(),
                    nonce: format!("d{}", self.nonces),
                    ..Default::default()
                }));
            }
        }
        answers
    }
}
