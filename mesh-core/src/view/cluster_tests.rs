//! A cluster that shares with the one before it picks as one that is compiled from nothing, over random changes.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::health_check::CheckOutcome;
use crate::id::Locality;
use crate::list::Run;
use crate::model::{
    ConsistentHashing, HashFunction, HealthCheck, LocalityEndpoints, OutlierDetection, Probe, TcpProbe,
};
use crate::outlier::Outcome;

fn cluster(balancer: BalancerPolicy, ejects: bool, checks: bool) -> Arc<Cluster> {
    let mut cluster = Cluster::new("c", ClusterKind::Eds { service_name: "c".into() });
    let detection = OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() };
    let check = HealthCheck::new(Probe::Tcp(TcpProbe::default()), std::time::Duration::from_secs(10));
    cluster.balancer = balancer;
    cluster.outlier_detection = ejects.then_some(detection);
    cluster.health_check = checks.then(|| Arc::new(check));
    Arc::new(cluster)
}

/// A cluster of these endpoints, after the one that there was.
fn compile(
    (cluster, state): (&Arc<Cluster>, &Arc<ClusterState>),
    endpoints: &Endpoints,
    previous: Option<&ClusterView>,
) -> ClusterView {
    let leaf = Leaf::new(Arc::clone(cluster), Some(Arc::new(endpoints.clone())), Arc::clone(state));
    ClusterView::compile("c".into(), vec![leaf], &Extensions::default(), previous)
}

/// Who is picked, and how often, level by level; who is not; and where some hashes lead.
fn said(view: &ClusterView) -> Vec<String> {
    let level = |level: &crate::balance::Level| {
        let set = &level.endpoints;
        let one = |at: usize| {
            let key = set.hash_key(at, true);
            format!("{}/{}/{key}/{}", set.get(at).expect("it is there").id(), set.exact_weight(at), set.locality(at))
        };
        format!("{:?} {:?} {}", level.priority(), (0..set.len()).map(one).collect::<Vec<_>>(), set.is_equal())
    };
    let taking_load: Vec<_> = view.levels.taking_load().map(|level| level.priority()).collect();
    let set_aside: Vec<_> = view.set_aside.iter().map(|endpoint| endpoint.id()).collect();
    let picked = (0..16_u64).map(|number| {
        let mut random = fastrand::Rng::with_seed(number);
        let hash = Some(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let picked = view.levels.pick(&mut PickArgs { hash, ..PickArgs::new(&mut random) });
        picked.map(|(level, endpoint)| (level.priority(), endpoint.id().to_string()))
    });
    let besides =
        [format!("{taking_load:?} {set_aside:?} {}", view.known()), format!("{:?}", picked.collect::<Vec<_>>())];
    view.levels.iter().map(level).chain(besides).collect()
}

/// Something that is found out of an endpoint between two configurations.
#[derive(Clone, Copy, Debug)]
enum Event {
    Lost,
    Reached,
    Checked(CheckOutcome),
    Ejected,
}

fn any_event() -> impl Strategy<Value = (Index, Event)> {
    use CheckOutcome::{Degraded, Failed, Passed};
    let event = proptest::sample::select(vec![
        Event::Lost,
        Event::Reached,
        Event::Checked(Passed),
        Event::Checked(Degraded),
        Event::Checked(Failed),
        Event::Ejected,
    ]);
    (any::<Index>(), event)
}

fn happen(view: &ClusterView, at: Index, event: Event) {
    let (leaf, all) = (&view.leaves[0], view.parts[0].iter().flatten().flat_map(EndpointPart::iter));
    let all: Vec<_> = all.map(|(_, state)| state).collect();
    if all.is_empty() {
        return;
    }
    let (one, now, random) = (all[at.index(all.len())], Instant::now(), &mut fastrand::Rng::with_seed(1));
    match event {
        Event::Lost => one.note_unreachable(now, random),
        Event::Reached => one.note_reachable(),
        Event::Checked(outcome) => {
            if let Some(config) = &leaf.cluster.health_check {
                leaf.state.note_check(config, None, one, outcome, now, random);
            }
        }
        Event::Ejected => {
            if let Some(config) = &leaf.cluster.outlier_detection {
                (0..5).for_each(|_| leaf.state.note_outcome(config, one, Outcome::Status(500), || now, random));
            }
        }
    }
}

fn any_balancer() -> impl Strategy<Value = BalancerPolicy> {
    let (function, hashing) = (HashFunction::Xx, ConsistentHashing::default());
    let ring = BalancerPolicy::RingHash { min_size: 100, max_size: 1_000, function, hashing };
    let subset = BalancerPolicy::RandomSubset { size: 5, child: Box::new(ring.clone()) };
    let table = BalancerPolicy::Maglev { table_size: 251, hashing };
    proptest::sample::select(vec![BalancerPolicy::default(), ring, table, subset])
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))))
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let health = prop_oneof![9 => Just(Health::Unknown), 1 => Just(Health::Unhealthy), 1 => Just(Health::Degraded)];
    let weight = prop_oneof![9 => Just(1), 1 => 1..4_u32];
    (1..500_u16, health, weight, proptest::option::weighted(0.05, Just("h")), proptest::bool::weighted(0.1)).prop_map(
        |(port, health, weight, hostname, mutual_tls)| {
            let hostname = hostname.map(Into::into);
            Endpoint { health, weight, hostname, mutual_tls, ..endpoint(port) }
        },
    )
}

/// One thing that is different in the next configuration; places are taken modulo what there is.
#[derive(Clone, Debug)]
enum Edit {
    Endpoints { locality: Index, at: Index, removed: usize, added: Vec<Endpoint> },
    Weight(Index, Option<u32>),
    Move(Index),
    Name(Index, &'static str),
    Swap(Index, Index),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    let endpoints = (place(), place(), 0..3_usize, proptest::collection::vec(any_endpoint(), 0..3));
    prop_oneof![
        5 => endpoints.prop_map(|(locality, at, removed, added)| Edit::Endpoints { locality, at, removed, added }),
        1 => (place(), proptest::option::of(1..3_u32)).prop_map(|(at, weight)| Edit::Weight(at, weight)),
        1 => place().prop_map(Edit::Move),
        1 => (place(), prop_oneof![Just("x"), Just("y")]).prop_map(|(at, name)| Edit::Name(at, name)),
        1 => (place(), place()).prop_map(|(one, other)| Edit::Swap(one, other)),
    ]
}

fn make(edit: Edit, localities: &mut [LocalityEndpoints]) {
    let count = localities.len();
    match edit {
        Edit::Endpoints { locality, at, removed, added } => {
            let list = &mut localities[locality.index(count)].endpoints;
            let at = at.index(list.len() + 1);
            let behind = (at + removed).min(list.len());
            *list = list.changed(vec![Run::Kept(0..at), Run::New(added), Run::Kept(behind..list.len())]);
        }
        Edit::Weight(at, weight) => localities[at.index(count)].weight = weight,
        Edit::Move(at) => localities[at.index(count)].priority ^= 1,
        Edit::Name(at, name) => localities[at.index(count)].locality.zone = name.into(),
        Edit::Swap(one, other) => localities.swap(one.index(count), other.index(count)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_shared_picks_as_what_would_be_compiled_from_nothing(
        lists in proptest::collection::vec(proptest::collection::vec(any_endpoint(), 0..150), 1..4),
        edits in proptest::collection::vec((
            proptest::collection::vec(any_edit(), 0..4),
            proptest::collection::vec(any_event(), 0..3),
        ), 1..6),
        balancer in any_balancer(),
        (ejects, checks) in any::<(bool, bool)>(),
    ) {
        let localities = lists.into_iter().map(|list| LocalityEndpoints::new(Locality::default(), list));
        let mut endpoints = Endpoints::new(localities.collect());
        let (cluster, state) = (cluster(balancer, ejects, checks), Arc::<ClusterState>::default());
        let of = (&cluster, &state);
        let mut view = compile(of, &endpoints, None);
        for (edits, events) in edits {
            edits.into_iter().for_each(|edit| make(edit, &mut endpoints.localities));
            events.into_iter().for_each(|(at, event)| happen(&view, at, event));
            view = compile(of, &endpoints, Some(&view));
            prop_assert_eq!(said(&view), said(&compile(of, &endpoints, None)));
            let all = || view.parts[0].iter().flatten().flat_map(EndpointPart::iter);
            for (endpoint, _) in all().step_by(37) {
                let listed = view.listed(&endpoint.id.addresses()[0]).map(|listed| Arc::as_ptr(listed.state));
                let first = all().find(|(first, _)| first.id == endpoint.id).map(|(_, state)| Arc::as_ptr(state));
                prop_assert_eq!(listed, first);
                let same = all().map(|(one, _)| one).find(|one| one.id == endpoint.id);
                prop_assert_eq!(view.endpoint_of(0, &endpoint.id), same);
            }
            // Each endpoint has its own state, secured as it is marked.
            for (endpoint, part) in endpoints.iter().zip(view.parts[0].iter().flatten().flat_map(EndpointPart::iter)) {
                let (known, state) = part;
                prop_assert_eq!(endpoint, known);
                prop_assert_eq!((state.id(), state.is_mutual_tls()), (&endpoint.id, endpoint.mutual_tls));
            }
        }
    }
}

#[test]
fn one_changed_endpoint_of_thousands_leaves_all_parts_but_one_as_they_are() {
    let list: List<Endpoint> = (1..=10_000).map(endpoint).collect();
    let of = |list: &List<Endpoint>| {
        let mut locality = LocalityEndpoints::new(Locality::default(), Vec::new());
        locality.endpoints = list.clone();
        Endpoints::new(vec![locality])
    };
    let (cluster, state) = (cluster(BalancerPolicy::default(), false, false), Arc::<ClusterState>::default());
    let settings = (&cluster, &state);
    let first = compile(settings, &of(&list), None);
    let states = |view: &ClusterView| -> List<Arc<EndpointState>> {
        List::of_parts(view.parts[0][0].iter().map(|part| Arc::clone(part.states())))
    };
    for changed in [
        list.replaced(|at, _| (at == 5_000).then(|| endpoint(20_000))),
        list.replaced(|at, one| (at == 5_000).then(|| Endpoint { health: Health::Unhealthy, ..one.clone() })),
    ] {
        let second = compile(settings, &of(&changed), Some(&first));
        assert_eq!(states(&second).shared_with(&states(&first)).flatten().count(), list.parts().len() - 1);
        assert_eq!(said(&second), said(&compile(settings, &of(&changed), None)));
    }
}

#[test]
fn endpoints_of_which_nothing_was_told_are_not_looked_at_again() {
    let endpoints = Endpoints::fixed((1..=1_000_u16).map(|port| std::net::SocketAddr::from(([10, 0, 0, 1], port))));
    let mut changed = endpoints.clone();
    let list = &mut changed.localities[0].endpoints;
    *list = list.replaced(|at, _| (at == 999).then(|| endpoint(20_000)));
    let (cluster, state) = (cluster(BalancerPolicy::default(), true, true), Arc::<ClusterState>::default());
    let first = compile((&cluster, &state), &endpoints, None);
    let all: Vec<_> = first.parts[0].iter().flatten().flat_map(EndpointPart::iter).map(|(_, state)| state).collect();
    let (config, random) = (cluster.outlier_detection.as_ref().expect("it has one"), &mut fastrand::Rng::with_seed(1));
    for _ in 0..5 {
        state.note_outcome(config, all[0], Outcome::Status(500), Instant::now, random);
    }
    all[500].note_unwell();
    // Where the endpoints of each part are as they were found: those of two parts are copies.
    let places = |view: &ClusterView| -> Vec<*const Endpoint> {
        let parts = view.found[0].as_ref().expect("it looks at them").parts.iter().flatten();
        parts.map(|part| std::ptr::from_ref(part.iter().next().expect("none is empty").0)).collect()
    };
    let shared = |one: &ClusterView, other: &ClusterView| {
        places(one).iter().zip(places(other)).filter(|(one, other)| **one == *other).count()
    };
    let second = compile((&cluster, &state), &endpoints, Some(&first));
    let parts = places(&second).len();
    assert_eq!(second.set_aside.len(), 2);
    assert_eq!(shared(&second, &first), parts - 2);
    let third = compile((&cluster, &state), &changed, Some(&second));
    assert_eq!(third.set_aside.len(), 2);
    assert_eq!(shared(&third, &second), parts - 1, "with the two that were copied");
    second.set_aside[0].note_unwell();
    let fourth = compile((&cluster, &state), &changed, Some(&third));
    assert_eq!(shared(&fourth, &third), parts - 2, "something was told");
}
