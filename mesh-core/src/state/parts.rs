//! Endpoints with their states, in the parts in which they are configured: what stays as it was is not looked at again.

use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};

use foldhash::fast::FixedState;

use super::{ClusterState, EndpointState};
use crate::id::{Address, Locality};
use crate::list::List;
use crate::model::{Endpoint, Endpoints, Health};
use crate::outlier::Record;

/// Some endpoints of a locality, and their states.
#[derive(Clone, Debug)]
pub struct EndpointPart {
    endpoints: Arc<[Endpoint]>,
    states: Arc<[Arc<EndpointState>]>,
    plain_weight: Option<u32>,
    /// What outlier detection knows of them, put together where it is asked for.
    records: OnceLock<Arc<[Arc<Record>]>>,
    /// The hash of each of their addresses with the place of the endpoint, in order: put together where one is looked for.
    addresses: OnceLock<Arc<[(u64, usize)]>>,
}

/// An address, with its hash: it is looked for in many parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    address: &'a Address,
    hash: u64,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(address: &'a Address) -> Self {
        Wanted { address, hash: hash(address) }
    }
}

/// Addresses are the configuration's, so that their hashes need no secret.
fn hash(address: &Address) -> u64 {
    FixedState::default().hash_one(address)
}

/// Those of a cluster, by locality.
pub type EndpointParts = Vec<Vec<EndpointPart>>;

/// What is new among the endpoints of a cluster, with its locality.
pub(crate) type NewPart<'p> = (&'p Locality, &'p EndpointPart);

impl EndpointPart {
    fn new(endpoints: Arc<[Endpoint]>, states: Arc<[Arc<EndpointState>]>) -> Self {
        let is_plain = |endpoint: &Endpoint, weight| {
            endpoint.health.is_pickable() && endpoint.weight == weight && endpoint.goes_by_address()
        };
        let weight = endpoints.first().map(|endpoint| endpoint.weight);
        let plain_weight = weight.filter(|weight| endpoints.iter().all(|endpoint| is_plain(endpoint, *weight)));
        let (records, addresses) = (OnceLock::new(), OnceLock::new());
        EndpointPart { endpoints, states, plain_weight, records, addresses }
    }

    /// The same with the health that was found out of some of them.
    pub(crate) fn with_health(&self, mut found: impl FnMut(&Endpoint, &Arc<EndpointState>) -> Option<Health>) -> Self {
        let mut changed: Option<Vec<Endpoint>> = None;
        for (position, (endpoint, state)) in self.iter().enumerate() {
            if let Some(health) = found(endpoint, state)
                && let Some(endpoint) = changed.get_or_insert_with(|| self.endpoints.to_vec()).get_mut(position)
            {
                endpoint.health = health;
            }
        }
        match changed {
            Some(endpoints) => EndpointPart::new(endpoints.into(), Arc::clone(&self.states)),
            None => self.clone(),
        }
    }

    /// Whose health is another one in the same part as it was [found](EndpointPart::with_health).
    pub(crate) fn set_aside<'p>(&'p self, found: &'p EndpointPart) -> impl Iterator<Item = &'p Arc<EndpointState>> {
        let is_changed = !Arc::ptr_eq(&self.endpoints, &found.endpoints);
        let both = is_changed.then(|| self.iter().zip(&*found.endpoints)).into_iter().flatten();
        both.filter(|((endpoint, _), found)| endpoint.health != found.health).map(|((_, state), _)| state)
    }

    /// What outlier detection knows of each of them.
    pub(super) fn records(&self) -> &Arc<[Arc<Record>]> {
        self.records.get_or_init(|| self.states.iter().map(|state| Arc::clone(&state.record)).collect())
    }

    /// The endpoints that have an address, in order; mostly one at most.
    pub(crate) fn having<'p>(
        &'p self,
        wanted: Wanted<'_>,
    ) -> impl Iterator<Item = (&'p Endpoint, &'p Arc<EndpointState>)> {
        let all = self.addresses();
        let first = all.partition_point(|(hash, _)| *hash < wanted.hash);
        let same = all.iter().skip(first).take_while(move |(hash, _)| *hash == wanted.hash);
        let endpoints =
            same.filter_map(move |(_, place)| Some((self.endpoints.get(*place)?, self.states.get(*place)?)));
        endpoints.filter(move |(endpoint, _)| endpoint.id.addresses().contains(wanted.address))
    }

    pub(super) fn addresses(&self) -> &Arc<[(u64, usize)]> {
        self.addresses.get_or_init(|| {
            let all = self.endpoints.iter().enumerate();
            let all = all.flat_map(|(at, endpoint)| endpoint.id.addresses().iter().map(move |one| (hash(one), at)));
            let mut all: Vec<_> = all.collect();
            all.sort_unstable();
            all.into()
        })
    }

    /// What each of them weighs, where all weigh the same, may be picked, and are hashed by their addresses.
    pub fn plain_weight(&self) -> Option<u32> {
        self.plain_weight
    }

    /// The states alone.
    pub fn states(&self) -> &Arc<[Arc<EndpointState>]> {
        &self.states
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Each endpoint with its state.
    pub fn iter(&self) -> impl Iterator<Item = (&Endpoint, &Arc<EndpointState>)> + Clone {
        self.endpoints.iter().zip(&*self.states)
    }
}

impl ClusterState {
    /// These endpoints with their states, and which parts of them are not as they were, by locality and place. `before` are those
    /// that there were: a part that stays has the states that it had, and of another one those that stand where they stood.
    pub(crate) fn resolve(
        &self,
        endpoints: &Endpoints,
        before: Option<(&Endpoints, &[Vec<EndpointPart>])>,
    ) -> (EndpointParts, Vec<(usize, usize)>) {
        let list = |endpoints: &Endpoints| {
            List::of_parts(endpoints.localities.iter().flat_map(|locality| locality.endpoints.parts()).cloned())
        };
        let (listed_before, parts_before): (List<Endpoint>, Vec<(&Locality, &EndpointPart)>) = match before {
            Some((endpoints, parts)) => {
                let localities = endpoints.localities.iter().zip(parts);
                let parts = localities.flat_map(|(of, parts)| parts.iter().map(move |part| (&of.locality, part)));
                (list(endpoints), parts.collect())
            }
            None => (List::default(), Vec::new()),
        };
        let all = list(endpoints);
        let mut kept = all.shared_with(&listed_before).enumerate();
        let mut news = Vec::new();
        let by_locality = endpoints.localities.iter().enumerate().map(|(at, locality)| {
            let parts = locality.endpoints.parts().iter().zip(kept.by_ref()).enumerate();
            let parts = parts.map(|(place, (part, (position, kept)))| {
                if let Some((of, known)) = kept.and_then(|kept| parts_before.get(kept)) {
                    if **of != locality.locality {
                        news.push((at, place));
                    }
                    return EndpointPart::clone(known);
                }
                news.push((at, place));
                let there = parts_before.get(position).map(|(_, known)| *known);
                EndpointPart::new(Arc::clone(part), self.states_of(part, there))
            });
            parts.collect()
        });
        (by_locality.collect(), news)
    }

    /// The states of some endpoints; most may stand where `there` has them.
    fn states_of(&self, endpoints: &[Endpoint], there: Option<&EndpointPart>) -> Arc<[Arc<EndpointState>]> {
        let mut there = there.into_iter().flat_map(EndpointPart::iter);
        let state = |endpoint: &Endpoint| match there.next() {
            Some((same, state)) if (&same.id, same.mutual_tls) == (&endpoint.id, endpoint.mutual_tls) => {
                Arc::clone(state)
            }
            _ => self.endpoint(&endpoint.id, endpoint.mutual_tls),
        };
        endpoints.iter().map(state).collect()
    }
}
