//! A cluster that shares with the one before it picks as one that is compiled from nothing, over random changes.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::id::Locality;
use crate::list::{List, Run};
use crate::model::LocalityEndpoints;

/// A cluster of these endpoints, after the one that there was.
fn compile(state: &Arc<ClusterState>, endpoints: &Endpoints, previous: Option<&ClusterView>) -> ClusterView {
    let kind = ClusterKind::Eds { service_name: "c".into() };
    let cluster =
        previous.map_or_else(|| Arc::new(Cluster::new("c", kind)), |view| Arc::clone(&view.leaves[0].cluster));
    let leaf = Leaf::new(cluster, Some(Arc::new(endpoints.clone())), Arc::clone(state));
    ClusterView::compile("c".into(), vec![leaf], &Extensions::default(), previous)
}

/// Who is picked, and how often, level by level.
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
    view.levels.iter().map(level).chain([format!("{taking_load:?}")]).collect()
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
        edits in proptest::collection::vec(proptest::collection::vec(any_edit(), 1..4), 1..6),
    ) {
        let localities = lists.into_iter().map(|list| LocalityEndpoints::new(Locality::default(), list));
        let mut endpoints = Endpoints::new(localities.collect());
        let state = Arc::<ClusterState>::default();
        let mut view = compile(&state, &endpoints, None);
        for edits in edits {
            edits.into_iter().for_each(|edit| make(edit, &mut endpoints.localities));
            view = compile(&state, &endpoints, Some(&view));
            prop_assert_eq!(said(&view), said(&compile(&state, &endpoints, None)));
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
    let state = Arc::<ClusterState>::default();
    let first = compile(&state, &of(&list), None);
    let states = |view: &ClusterView| -> List<Arc<EndpointState>> {
        List::of_parts(view.parts[0][0].iter().map(|part| Arc::clone(part.states())))
    };
    for changed in [
        list.replaced(|at, _| (at == 5_000).then(|| endpoint(20_000))),
        list.replaced(|at, one| (at == 5_000).then(|| Endpoint { health: Health::Unhealthy, ..one.clone() })),
    ] {
        let second = compile(&state, &of(&changed), Some(&first));
        assert_eq!(states(&second).shared_with(&states(&first)).flatten().count(), list.parts().len() - 1);
        assert_eq!(said(&second), said(&compile(&state, &of(&changed), None)));
    }
}
