//! One cluster: ready to pick from.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::Extensions;
use crate::balance::{Levels, Loads, PickArgs, built_in};
use crate::error::{ErrorKind, MeshError};
use crate::health_check::Checked;
use crate::id::{Address, ClusterName, EndpointId};
use crate::list::List;
use crate::model::{BalancerPolicy, Cluster, ClusterKind, DirectResponse, Endpoint, Endpoints, Health};
use crate::request_info::Pinned;
use crate::state::{ClusterState, EndpointPart, EndpointParts, EndpointState, InFlight, NewPart, Wanted};

/// One cluster, compiled: ready to pick from.
#[derive(Debug)]
pub struct ClusterView {
    name: ClusterName,
    leaves: Vec<Leaf>,
    levels: Levels,
    /// Why it cannot be used at all.
    unusable: Option<Arc<str>>,
    /// The endpoints of each leaf with their states.
    parts: Vec<EndpointParts>,
    /// The same with what was found out of their health, where there was anything to find out.
    found: Vec<Option<Found>>,
    /// Those of endpoints that are not picked.
    set_aside: Vec<Arc<EndpointState>>,
}

/// An endpoint as the control plane lists it, with the leaf and the priority that it is of.
#[derive(Clone, Copy, Debug)]
struct Listed<'v> {
    leaf: usize,
    priority: u32,
    endpoint: &'v Endpoint,
    state: &'v Arc<EndpointState>,
}

/// What a compiled cluster was made of. An aggregate has several leaves, any other cluster one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leaf {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its endpoints; `None` where the caller's own address is dialled.
    pub endpoints: Option<Arc<Endpoints>>,
    /// What outlives this view.
    pub state: Arc<ClusterState>,
}

impl Leaf {
    /// This cluster with these endpoints.
    pub fn new(cluster: Arc<Cluster>, endpoints: Option<Arc<Endpoints>>, state: Arc<ClusterState>) -> Self {
        Leaf { cluster, endpoints, state }
    }

    /// Its endpoints with their states, and which parts of them are to be noted; `previous` is what the cluster was until now.
    fn resolve(&self, previous: Option<&ClusterView>) -> (EndpointParts, Vec<(usize, usize)>) {
        let Some(endpoints) = &self.endpoints else { return Default::default() };
        let before = previous.and_then(|previous| {
            let (leaf, place) = previous.find(self)?;
            Some((leaf, &**leaf.endpoints.as_ref()?, previous.parts.get(place)?))
        });
        let (parts, news) =
            self.state.resolve(endpoints, before.map(|(_, endpoints, parts)| (endpoints, parts.as_slice())));
        // What was noted under another word of the cluster is noted anew.
        if before.is_some_and(|(leaf, ..)| Arc::ptr_eq(&leaf.cluster, &self.cluster)) {
            return (parts, news);
        }
        let all = parts.iter().enumerate().flat_map(|(at, parts)| (0..parts.len()).map(move |place| (at, place)));
        let all = all.collect();
        (parts, all)
    }

    /// Takes in what endpoints are said to be that are not as they were.
    fn note(&self, endpoints: &Endpoints, parts: &[Vec<EndpointPart>], news: &[(usize, usize)]) {
        let new_part = |(at, place): &(usize, usize)| -> Option<NewPart<'_>> {
            Some((&endpoints.localities.get(*at)?.locality, parts.get(*at)?.get(*place)?))
        };
        let news: Vec<NewPart<'_>> = news.iter().filter_map(new_part).collect();
        self.state.note_marks(&news);
        self.state.note_reported(&self.cluster, &news);
        self.state.note_backends(&news);
        for (endpoint, state) in news.iter().flat_map(|(_, part)| part.iter()) {
            if let Some(told) = endpoint.metadata.get("istio").and_then(|istio| istio.get("workload")) {
                state.note_workload(told);
            }
        }
    }

    /// Whether health checks say anything of an endpoint: the cluster has some, and the endpoint is not left out of them.
    pub(super) fn is_checked(&self, endpoint: &Endpoint) -> bool {
        self.cluster.health_check.is_some() && endpoint.is_checked
    }

    /// Its endpoints, with what this process found out of their health: who is ejected, who fails health checks, and, where
    /// `reach_counts`, who cannot be reached; `None` where there is nothing to find out. `before` are those of the same cluster in
    /// the view before, as they were configured and found: of parts that stay, that holds until anything is told.
    fn found(
        &self,
        parts: &[Vec<EndpointPart>],
        reach_counts: bool,
        before: Option<(&[Vec<EndpointPart>], &Found)>,
    ) -> Option<Found> {
        let can_eject = self.cluster.outlier_detection.is_some();
        let has_checks = self.cluster.health_check.is_some();
        if !(can_eject || has_checks || (reach_counts && self.state.has_unreachable())) {
            return None;
        }
        // First: what is told from here on is for the next view.
        let told = self.state.told();
        let mut all = parts.iter().flatten().flat_map(EndpointPart::iter);
        // Where nobody is known to be well, as at the beginning, those of whom nothing is known are as good as any.
        let unchecked = has_checks
            .then(|| all.any(|(one, state)| self.is_checked(one) && state.checked() == Checked::Healthy))
            .filter(|is_known| *is_known)
            .map(|_| if self.cluster.priorities.ignores_unchecked { Health::Draining } else { Health::Unhealthy });
        let found = |endpoint: &Endpoint, state: &Arc<EndpointState>| {
            if !matches!(endpoint.health, Health::Unknown | Health::Healthy | Health::Degraded) {
                return None;
            }
            let checked = self.is_checked(endpoint).then(|| state.checked());
            Some(match (checked, unchecked) {
                _ if reach_counts && !state.is_reachable() => Health::Unreachable,
                _ if can_eject && state.is_ejected() => Health::Unhealthy,
                (Some(Checked::Unhealthy), _) => Health::Unhealthy,
                (Some(Checked::Never), Some(health)) => health,
                (Some(Checked::Degraded), _) => Health::Degraded,
                _ => return None,
            })
        };
        let holds =
            |known: &Found| (known.told, known.unchecked, known.reach_counts) == (told, unchecked, reach_counts);
        let listed =
            |parts: &[Vec<EndpointPart>]| List::of_parts(parts.iter().flatten().map(|part| Arc::clone(part.states())));
        let (before, known): (List<Arc<EndpointState>>, Vec<&EndpointPart>) = match before {
            Some((before, known)) if holds(known) => (listed(before), known.parts.iter().flatten().collect()),
            _ => (List::default(), Vec::new()),
        };
        // A part has its states to itself, so that they tell which it is.
        let all = listed(parts);
        let mut kept = all.shared_with(&before);
        let by_locality = parts.iter().map(|parts| {
            let parts = parts.iter().map(|part| match kept.next().flatten().and_then(|at| known.get(at)) {
                Some(known) => EndpointPart::clone(known),
                None => part.with_health(found),
            });
            parts.collect()
        });
        Some(Found { parts: by_locality.collect(), told, unchecked, reach_counts })
    }
}

/// What was found out of the health of a leaf's endpoints when a view was made.
#[derive(Debug)]
struct Found {
    parts: EndpointParts,
    /// How often anything had been told of them.
    told: u64,
    /// What those are whom nobody has checked yet.
    unchecked: Option<Health>,
    /// Whether those that could not be reached were left out.
    reach_counts: bool,
}

/// A chosen endpoint. It counts as a request in flight until dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pick<'v> {
    /// The cluster that the endpoint belongs to: for an aggregate, the leaf.
    pub cluster: &'v Arc<Cluster>,
    /// Which of [`ClusterView::leaves`] that is.
    pub leaf: usize,
    /// Which of the leaf's priorities it was picked from.
    pub priority: u32,
    /// The endpoint, counted in.
    pub in_flight: InFlight,
}

impl ClusterView {
    /// Compiles a cluster from its leaves; `previous` is what the cluster was until now.
    pub fn compile(
        name: ClusterName,
        leaves: Vec<Leaf>,
        extensions: &Extensions,
        previous: Option<&ClusterView>,
    ) -> Self {
        let (parts, news): (Vec<_>, Vec<_>) = leaves.iter().map(|leaf| leaf.resolve(previous)).unzip();
        for ((leaf, parts), news) in leaves.iter().zip(&parts).zip(&news) {
            if let Some(endpoints) = &leaf.endpoints {
                leaf.note(endpoints, parts, news);
            }
        }
        let mut compiled = Self::levels(&leaves, &parts, extensions, previous, true);
        // Where nobody can be reached, everybody is tried: one of them may be back.
        let has_answer = leaves.last().is_some_and(|leaf| leaf.cluster.fallback.is_some());
        let has_unreachable = || leaves.iter().any(|leaf| leaf.state.has_unreachable());
        if compiled.0.taking_load().next().is_none() && !has_answer && has_unreachable() {
            compiled = Self::levels(&leaves, &parts, extensions, previous, false);
        }
        let (levels, unusable, found) = compiled;
        let both = parts.iter().zip(&found).filter_map(|(parts, found)| Some((parts, &found.as_ref()?.parts)));
        let both = both.flat_map(|(parts, found)| parts.iter().flatten().zip(found.iter().flatten()));
        let set_aside = both.flat_map(|(part, found)| part.set_aside(found)).cloned().collect();
        ClusterView { name, leaves, levels, unusable, parts, found, set_aside }
    }

    fn levels(
        leaves: &[Leaf],
        parts: &[EndpointParts],
        extensions: &Extensions,
        previous: Option<&ClusterView>,
        reach_counts: bool,
    ) -> (Levels, Option<Arc<str>>, Vec<Option<Found>>) {
        let (mut levels, mut unusable, mut all_found) = (Levels::default(), None, Vec::new());
        for (position, (leaf, parts)) in leaves.iter().zip(parts).enumerate() {
            let balancer = match &leaf.cluster.balancer {
                BalancerPolicy::Custom(name) => extensions.balancers.get(name).cloned(),
                policy => built_in(policy, leaf.cluster.slow_start),
            };
            let found = match (balancer, &leaf.endpoints) {
                (Some(balancer), Some(endpoints)) => {
                    let before = previous.and_then(|previous| Some((previous, previous.find(leaf)?)));
                    if leaf.cluster.outlier_detection.is_none()
                        && before.is_some_and(|(_, (before, _))| before.cluster.outlier_detection.is_some())
                    {
                        leaf.state.end_detection();
                    }
                    let same = before.filter(|(_, (before, _))| Arc::ptr_eq(&before.cluster, &leaf.cluster));
                    let same = same.and_then(|(previous, (_, place))| {
                        Some((previous.parts.get(place)?.as_slice(), previous.found.get(place)?.as_ref()?))
                    });
                    let found = leaf.found(parts, reach_counts, same);
                    let parts_found = found.as_ref().map_or(parts, |found| &found.parts);
                    levels.add_leaf(
                        position,
                        (endpoints, parts_found),
                        leaf.cluster.priorities,
                        &balancer,
                        &leaf.state,
                    );
                    let all = || parts.iter().flatten();
                    leaf.state.set_checked(match leaf.cluster.health_check {
                        Some(_) => all().cloned().collect(),
                        None => Vec::new(),
                    });
                    if leaf.cluster.outlier_detection.is_some() {
                        leaf.state.set_hosts(all());
                    }
                    found
                }
                (Some(_), None) => None,
                (None, _) => {
                    let name = custom_name(&leaf.cluster.balancer);
                    unusable = Some(format!("no balancer is registered by the name {name}").into());
                    None
                }
            };
            all_found.push(found);
        }
        levels.settle(previous.map(|previous| &previous.levels));
        (levels, unusable, all_found)
    }

    /// The leaf that is the same cluster, and its place.
    fn find(&self, leaf: &Leaf) -> Option<(&Leaf, usize)> {
        let place = self.leaves.iter().position(|known| Arc::ptr_eq(&known.state, &leaf.state))?;
        Some((self.leaves.get(place)?, place))
    }

    /// A cluster that cannot be used, and why.
    pub fn unusable(name: ClusterName, reason: Arc<str>) -> Self {
        ClusterView {
            name,
            leaves: Vec::new(),
            levels: Levels::default(),
            unusable: Some(reason),
            parts: Vec::new(),
            found: Vec::new(),
            set_aside: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// What it was made of.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Why it cannot be used at all, if it cannot.
    pub fn why_unusable(&self) -> Option<&Arc<str>> {
        self.unusable.as_ref()
    }

    /// Whether it was compiled from these very inputs.
    pub fn is_of(&self, leaves: &[Leaf]) -> bool {
        let same_endpoints = |a: &Option<Arc<Endpoints>>, b: &Option<Arc<Endpoints>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.unusable.is_none()
            && self.leaves.len() == leaves.len()
            && self
                .leaves
                .iter()
                .zip(leaves)
                .all(|(a, b)| Arc::ptr_eq(&a.cluster, &b.cluster) && same_endpoints(&a.endpoints, &b.endpoints))
    }

    /// The answer to a request for which there is no healthy endpoint.
    pub fn fallback(&self) -> Option<&DirectResponse> {
        self.leaves.last()?.cluster.fallback.as_deref()
    }

    /// Has policies take in what is known of endpoints by now.
    pub fn refresh(&self, now: Instant) {
        self.levels.refresh(now);
    }

    /// Whether an endpoint takes load now.
    pub fn may_pick(&self, endpoint: &EndpointState) -> bool {
        self.passes_through() || self.levels.taking_load().any(|level| level.endpoints.contains(endpoint))
    }

    /// An endpoint of one of its leaves, by that one's place, as the control plane lists it.
    pub fn endpoint_of(&self, leaf: usize, id: &EndpointId) -> Option<&Endpoint> {
        let wanted = Wanted::new(id.addresses().first()?);
        let mut all = self.parts.get(leaf)?.iter().flatten().flat_map(|part| part.having(wanted));
        all.find(|(endpoint, _)| endpoint.id == *id).map(|(endpoint, _)| endpoint)
    }

    /// What a client has under way on an endpoint, and beside it.
    pub fn loads_of(&self, endpoint: &EndpointState) -> Loads {
        Loads::of(endpoint, &self.levels)
    }

    /// Who takes load now.
    pub(super) fn taking_load(&self) -> HashSet<*const EndpointState> {
        let sets = self.levels.taking_load().map(|level| &level.endpoints);
        sets.flat_map(|set| (0..set.len()).filter_map(|at| set.get(at).map(Arc::as_ptr))).collect()
    }

    /// Whether requests go to the address that the caller asked for.
    pub fn passes_through(&self) -> bool {
        matches!(self.leaves.as_slice(), [Leaf { endpoints: None, .. }])
    }

    /// Chooses an endpoint. `authority` is what the caller asked for; only a pass-through cluster asks for it.
    #[inline]
    pub fn pick<'a>(
        &self,
        args: &mut PickArgs<'_>,
        authority: impl FnOnce() -> &'a str,
    ) -> Result<Pick<'_>, MeshError> {
        if let Some(pinned) = args.pinned
            && let Some(pick) = self.pick_pinned(pinned, args.tried)?
        {
            return Ok(pick);
        }
        // The answer that stands in is for when nobody is left: a retry may know that before the next view does.
        let is_answered = !args.tried.is_empty() && self.fallback().is_some() && self.levels.are_lost();
        if !is_answered
            && let Some((level, endpoint)) = self.levels.pick(args)
            && let Some(leaf) = self.leaves.get(level.leaf)
        {
            let max = leaf.cluster.circuit_breakers.max_requests;
            return match endpoint.enter_within(max) {
                Some(in_flight) => {
                    let (leaf_of, priority) = level.priority();
                    Ok(Pick { cluster: &leaf.cluster, leaf: leaf_of, priority, in_flight })
                }
                None => Err(overflow(&leaf.cluster, max)),
            };
        }
        self.pick_without_endpoints(authority())
    }

    /// The endpoint that a request belongs to, if it may be called: the configuration says in which state of health. One
    /// that was tried is not tried again.
    #[cold]
    fn pick_pinned(&self, pinned: &Pinned, tried: &[Arc<EndpointState>]) -> Result<Option<Pick<'_>>, MeshError> {
        let Some(address) = &pinned.address else { return Ok(None) };
        let listed = self.listed(address);
        let may_call = |listed: &Listed<'_>| {
            let Some(leaf) = self.leaves.get(listed.leaf) else { return false };
            let cluster = &leaf.cluster;
            let fails = leaf.is_checked(listed.endpoint) && listed.state.checked() == Checked::Unhealthy;
            let is_ejected = cluster.outlier_detection.is_some() && listed.state.is_ejected();
            let was_tried = tried.iter().any(|tried| Arc::ptr_eq(tried, listed.state));
            cluster.session_health.contains(&listed.endpoint.health)
                && listed.state.is_reachable()
                && !(fails || is_ejected || was_tried)
        };
        match (listed.filter(may_call), listed.and_then(|listed| self.leaves.get(listed.leaf))) {
            (Some(listed), Some(leaf)) => {
                let max = leaf.cluster.circuit_breakers.max_requests;
                let in_flight = listed.state.enter_within(max).ok_or_else(|| overflow(&leaf.cluster, max))?;
                let (leaf_of, priority) = (listed.leaf, listed.priority);
                Ok(Some(Pick { cluster: &leaf.cluster, leaf: leaf_of, priority, in_flight }))
            }
            _ if pinned.is_strict => {
                let what = format!("the session's endpoint {address} is not there any more, or may not be called");
                let error = MeshError::new(ErrorKind::NoHealthyEndpoint, what);
                Err(error.within(format_args!("cluster {}", self.name)))
            }
            _ => Ok(None),
        }
    }

    /// The endpoint that has an address. Where several do, the one of the leaf that goes first, and listed first, counts.
    fn listed(&self, address: &Address) -> Option<Listed<'_>> {
        let wanted = Wanted::new(address);
        self.leaves.iter().zip(&self.parts).enumerate().find_map(|(number, (leaf, parts))| {
            let mut localities = leaf.endpoints.iter().flat_map(|endpoints| &endpoints.localities).zip(parts);
            localities.find_map(|(locality, parts)| {
                let (endpoint, state) = parts.iter().flat_map(|part| part.having(wanted)).next()?;
                Some(Listed { leaf: number, priority: locality.priority, endpoint, state })
            })
        })
    }

    #[cold]
    fn pick_without_endpoints(&self, authority: &str) -> Result<Pick<'_>, MeshError> {
        let error = |kind, what: &str| MeshError::new(kind, what).within(format_args!("cluster {}", self.name));
        if let Some(reason) = &self.unusable {
            return Err(error(ErrorKind::NoCluster, reason));
        }
        if let [Leaf { cluster, endpoints: None, state }] = self.leaves.as_slice() {
            let id = address_of(authority).map(EndpointId::new);
            let id =
                id.ok_or_else(|| error(ErrorKind::BadRequest, "the authority is no address to pass through to"))?;
            let max = cluster.circuit_breakers.max_requests;
            let endpoint = state.visit(&id);
            state.note_visited(cluster, &endpoint);
            let in_flight = endpoint.enter_within(max).ok_or_else(|| overflow(cluster, max))?;
            return Ok(Pick { cluster, leaf: 0, priority: 0, in_flight });
        }
        if let [Leaf { cluster, .. }] = self.leaves.as_slice()
            && cluster.leads_nowhere()
        {
            return Err(error(ErrorKind::NoCluster, "nothing describes what it would be made of"));
        }
        Err(error(ErrorKind::NoHealthyEndpoint, &format!("no healthy endpoint ({})", self.known())))
    }

    /// How many endpoints there are, and what keeps them from being picked.
    fn known(&self) -> String {
        let known: usize = self.leaves.iter().filter_map(|leaf| leaf.endpoints.as_ref()).map(|all| all.len()).sum();
        let count = |wanted: fn(&EndpointState) -> bool| self.set_aside.iter().filter(|one| wanted(one)).count();
        let mut text = format!("{known} known");
        for (count, what) in [
            (count(EndpointState::is_ejected), "ejected"),
            (count(|endpoint| endpoint.checked() == Checked::Unhealthy), "failing health checks"),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}

/// The failure of a request above the limit of its cluster.
#[cold]
fn overflow(cluster: &Cluster, max: u32) -> MeshError {
    let what = format!("{max} requests are in flight, which is its limit (circuit breaker max_requests)");
    MeshError::new(ErrorKind::Overflow, what).within(format_args!("cluster {}", cluster.name))
}

/// The name of a policy of the application's own.
fn custom_name(policy: &BalancerPolicy) -> &str {
    match policy {
        BalancerPolicy::Custom(name) => name,
        BalancerPolicy::RandomSubset { child, .. } => custom_name(child),
        _ => "",
    }
}

/// The address that an authority with a port stands for.
fn address_of(authority: &str) -> Option<Address> {
    if let Ok(socket) = authority.parse() {
        return Some(Address::Socket(socket));
    }
    let (host, port) = authority.rsplit_once(':')?;
    Some(Address::Host(host.into(), port.parse().ok()?))
}

impl Cluster {
    /// The endpoints that a cluster brings itself, where it does.
    pub fn inline_endpoints(&self) -> Option<&Endpoints> {
        match &self.kind {
            ClusterKind::Static(endpoints) | ClusterKind::LogicalDns(endpoints) => Some(endpoints),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
