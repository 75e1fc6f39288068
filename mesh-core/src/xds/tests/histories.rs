//! Arbitrary histories of a stream against a simple model of what must be known and what must have been said.
//!
//! The model is written from the rules, not from the machines: it keeps sets and maps of names, and knows nothing
//! of entries, timers or Protobuf. After every event it compares what the store was told, what was sent, and what
//! a server that reads the requests would think this client wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapper,
};
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;

use crate::model::{ClusterKind, RouteAction};
use crate::resources::{Change, Resource, ResourceKey, ResourceType};
use crate::xds::delta::Delta;
use crate::xds::names::{kind_of, type_url};
use crate::xds::rig::{Rig, bad, garbage, good};
use crate::xds::sotw::Sotw;

const NAMES: [&str; 3] = ["a", "b", "c"];
const VARIANTS: u16 = 2;

type Key = (usize, usize);

/// The kinds that may be wrong in themselves; secrets are found out later, and travel as these do.
const KINDS: [ResourceType; 4] =
    [ResourceType::Listener, ResourceType::Route, ResourceType::Cluster, ResourceType::Endpoints];

/// One event. Kinds and names are indices into [`KINDS`] and [`NAMES`].
#[derive(Clone, Debug)]
enum Event {
    Want(Key),
    Drop(Key),
    Open,
    Close,
    Respond { kind: usize, items: Vec<Item>, removed: Vec<usize> },
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Item {
    Good(usize, u16),
    Bad(usize),
    Garbage,
}

fn key() -> impl Strategy<Value = Key> {
    (0..KINDS.len(), 0..NAMES.len())
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        6 => (0..NAMES.len(), 0..VARIANTS).prop_map(|(name, variant)| Item::Good(name, variant)),
        2 => (0..NAMES.len()).prop_map(Item::Bad),
        1 => Just(Item::Garbage),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let removed = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(0..NAMES.len(), 1..3)];
    prop_oneof![
        6 => key().prop_map(Event::Want),
        3 => key().prop_map(Event::Drop),
        3 => Just(Event::Open),
        1 => Just(Event::Close),
        8 => (0..KINDS.len(), prop::collection::vec(item(), 0..4), removed)
            .prop_map(|(kind, items, removed)| Event::Respond { kind, items, removed }),
        3 => prop_oneof![Just(1), Just(4), Just(6), Just(15)].prop_map(Event::Wait),
    ]
}

/// What was sent, whichever the protocol.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    kind: usize,
    has_node: bool,
    version: String,
    nonce: String,
    is_nack: bool,
    names: BTreeSet<String>,
    removes: BTreeSet<String>,
    knows: BTreeMap<String, String>,
}

/// A machine of either protocol.
trait Machine {
    const DELTA: bool;
    fn open(&mut self) -> Vec<Sent>;
    fn close(&mut self);
    fn interest(&mut self, add: Option<Key>, remove: Option<Key>) -> Vec<Sent>;
    fn respond(&mut self, kind: usize, turn: usize, items: &[Item], removed: &[usize]) -> Vec<Sent>;
    fn wait(&mut self, seconds: u64);
    fn told(&mut self) -> Vec<Change>;
}

fn named((kind, name): Key) -> (ResourceType, &'static str) {
    (KINDS[kind], NAMES[name])
}

fn index(type_url: &str) -> usize {
    let kind = kind_of(type_url).expect("a known type");
    KINDS.iter().position(|known| *known == kind).expect("a known kind")
}

/// The samples, encoded once: histories are many.
static SAMPLES: LazyLock<BTreeMap<(usize, usize, u16), Any>> = LazyLock::new(|| {
    let mut samples = BTreeMap::new();
    for (kind, of_kind) in KINDS.into_iter().enumerate() {
        for (name, text) in NAMES.into_iter().enumerate() {
            for variant in 0..VARIANTS {
                samples.insert((kind, name, variant), good(of_kind, text, variant));
            }
            samples.insert((kind, name, VARIANTS), bad(of_kind, text));
        }
    }
    samples
});

fn any_of(kind: usize, item: Item) -> (&'static str, Any) {
    match item {
        Item::Good(name, variant) => (NAMES[name], SAMPLES[&(kind, name, variant)].clone()),
        Item::Bad(name) => (NAMES[name], SAMPLES[&(kind, name, VARIANTS)].clone()),
        Item::Garbage => ("", garbage(KINDS[kind])),
    }
}

impl Machine for Rig<Sotw> {
    const DELTA: bool = false;

    fn open(&mut self) -> Vec<Sent> {
        self.open().into_iter().map(sotw).collect()
    }

    fn close(&mut self) {
        self.close();
    }

    fn interest(&mut self, add: Option<Key>, remove: Option<Key>) -> Vec<Sent> {
        let (add, remove): (Vec<_>, Vec<_>) =
            (add.map(named).into_iter().collect(), remove.map(named).into_iter().collect());
        self.interest(&add, &remove).into_iter().map(sotw).collect()
    }

    fn respond(&mut self, kind: usize, turn: usize, items: &[Item], _: &[usize]) -> Vec<Sent> {
        let response = DiscoveryResponse {
            version_info: format!("v{turn}"),
            nonce: format!("n{turn}"),
            type_url: type_url(KINDS[kind]).into(),
            resources: items.iter().map(|item| any_of(kind, *item).1).collect(),
            ..Default::default()
        };
        self.receive(response).into_iter().map(sotw).collect()
    }

    fn wait(&mut self, seconds: u64) {
        self.wait(seconds);
    }

    fn told(&mut self) -> Vec<Change> {
        self.changes()
    }
}

impl Machine for Rig<Delta> {
    const DELTA: bool = true;

    fn open(&mut self) -> Vec<Sent> {
        self.open().into_iter().map(delta).collect()
    }

    fn close(&mut self) {
        self.close();
    }

    fn interest(&mut self, add: Option<Key>, remove: Option<Key>) -> Vec<Sent> {
        let (add, remove): (Vec<_>, Vec<_>) =
            (add.map(named).into_iter().collect(), remove.map(named).into_iter().collect());
        self.interest(&add, &remove).into_iter().map(delta).collect()
    }

    fn respond(&mut self, kind: usize, turn: usize, items: &[Item], removed: &[usize]) -> Vec<Sent> {
        let resource = |item: &Item| {
            let (name, any) = any_of(kind, *item);
            Wrapper { name: name.into(), version: format!("v{turn}"), resource: Some(any), ..Default::default() }
        };
        let response = DeltaDiscoveryResponse {
            nonce: format!("n{turn}"),
            type_url: type_url(KINDS[kind]).into(),
            resources: items.iter().map(resource).collect(),
            removed_resources: removed.iter().map(|name| NAMES[*name].to_owned()).collect(),
            ..Default::default()
        };
        self.receive(response).into_iter().map(delta).collect()
    }

    fn wait(&mut self, seconds: u64) {
        self.wait(seconds);
    }

    fn told(&mut self) -> Vec<Change> {
        self.changes()
    }
}

fn sotw(request: DiscoveryRequest) -> Sent {
    Sent {
        kind: index(&request.type_url),
        has_node: request.node.is_some(),
        version: request.version_info,
        nonce: request.response_nonce,
        is_nack: request.error_detail.is_some(),
        names: request.resource_names.into_iter().collect(),
        ..Sent::default()
    }
}

fn delta(request: DeltaDiscoveryRequest) -> Sent {
    Sent {
        kind: index(&request.type_url),
        has_node: request.node.is_some(),
        nonce: request.response_nonce,
        is_nack: request.error_detail.is_some(),
        names: request.resource_names_subscribe.into_iter().collect(),
        removes: request.resource_names_unsubscribe.into_iter().collect(),
        knows: request.initial_resource_versions.into_iter().collect(),
        ..Sent::default()
    }
}

/// What must be true, by the rules.
#[derive(Debug, Default)]
struct Model {
    delta: bool,
    fails_on_data_errors: bool,
    now: u64,
    turn: usize,
    live: bool,
    wanted: BTreeSet<Key>,
    /// The good version of a resource with its version, wanted or remembered.
    good: BTreeMap<Key, (u16, String)>,
    /// Remembered until.
    remembered: BTreeMap<Key, u64>,
    /// Wanted, and answered in some way.
    answered: BTreeSet<Key>,
    /// Wanted, and in a response since it is.
    seen: BTreeSet<Key>,
    /// The server says it has none.
    deleted: BTreeSet<Key>,
    /// Waited for until.
    awaited: BTreeMap<Key, u64>,
    /// Per type: the last accepted version, the last nonce, and whether the stream was asked.
    version: [String; 4],
    nonce: [String; 4],
    asked: [bool; 4],
    node_was_sent: bool,
    /// What a server thinks is wanted.
    server: [BTreeSet<String>; 4],
    /// What the store believes.
    told: BTreeMap<Key, Option<u16>>,
}

impl Model {
    fn names(&self, kind: usize) -> BTreeSet<String> {
        let of_kind = self.wanted.iter().filter(|(of, _)| *of == kind);
        of_kind.map(|(_, name)| NAMES[*name].to_owned()).collect()
    }

    /// The request that asks for everything of a type.
    fn full(&self, kind: usize) -> Sent {
        let mut sent = Sent { kind, names: self.names(kind), ..Sent::default() };
        if self.delta {
            for ((of, name), (_, version)) in &self.good {
                let known = (*of, *name);
                if *of == kind && self.wanted.contains(&known) && !self.deleted.contains(&known) {
                    sent.knows.insert(NAMES[*name].to_owned(), version.clone());
                }
            }
        } else {
            sent.version = self.version[kind].clone();
            sent.nonce = self.nonce[kind].clone();
        }
        sent
    }

    fn await_answers(&mut self, kind: usize) {
        for key in self.wanted.iter().filter(|(of, _)| *of == kind) {
            if !self.good.contains_key(key) && !self.answered.contains(key) {
                self.awaited.entry(*key).or_insert(self.now + 15);
            }
        }
    }

    fn opened(&mut self) -> Vec<Sent> {
        self.live = true;
        self.node_was_sent = false;
        self.nonce = Default::default();
        self.asked = Default::default();
        self.server = Default::default();
        let kinds: Vec<usize> = (0..KINDS.len()).filter(|kind| !self.names(*kind).is_empty()).collect();
        kinds.into_iter().map(|kind| self.asks(kind)).collect()
    }

    fn asks(&mut self, kind: usize) -> Sent {
        self.asked[kind] = true;
        self.await_answers(kind);
        self.full(kind)
    }

    fn closed(&mut self) {
        self.live = false;
        self.awaited.clear();
    }

    fn wants(&mut self, key: Key) -> Vec<Sent> {
        if !self.wanted.insert(key) {
            return vec![];
        }
        self.remembered.remove(&key);
        self.seen.remove(&key);
        let (kind, name) = key;
        if !self.live {
            return vec![];
        }
        if !self.delta || !self.asked[kind] {
            return vec![self.asks(kind)];
        }
        self.await_answers(kind);
        vec![Sent { kind, names: [NAMES[name].to_owned()].into(), ..Sent::default() }]
    }

    fn drops(&mut self, key: Key) -> Vec<Sent> {
        if !self.wanted.remove(&key) {
            return vec![];
        }
        self.told.remove(&key);
        self.awaited.remove(&key);
        if self.good.contains_key(&key) {
            self.remembered.insert(key, self.now + 5);
        } else {
            self.forgets(key);
        }
        let (kind, name) = key;
        match (self.live, self.delta) {
            (false, _) => vec![],
            (true, false) => vec![self.full(kind)],
            (true, true) => vec![Sent { kind, removes: [NAMES[name].to_owned()].into(), ..Sent::default() }],
        }
    }

    fn forgets(&mut self, key: Key) {
        self.good.remove(&key);
        self.answered.remove(&key);
        self.seen.remove(&key);
        self.deleted.remove(&key);
        self.remembered.remove(&key);
    }

    /// A data error: the good version is lost only where the server's features say so.
    fn loses(&mut self, key: Key) {
        if self.remembered.contains_key(&key) {
            self.forgets(key);
        } else if self.wanted.contains(&key) {
            self.answers(key);
            self.deleted.insert(key);
            if self.fails_on_data_errors {
                self.good.remove(&key);
            }
        }
    }

    fn answers(&mut self, key: Key) {
        if self.wanted.contains(&key) {
            self.answered.insert(key);
            self.seen.insert(key);
        } else if self.remembered.contains_key(&key) {
            self.answered.insert(key);
        }
        self.awaited.remove(&key);
    }

    fn responds(&mut self, kind: usize, items: &[Item], removed: &[usize]) -> Vec<Sent> {
        if !self.live || !self.asked[kind] {
            return vec![];
        }
        let version = format!("v{}", self.turn);
        let mut times = [0; NAMES.len()];
        for item in items {
            if let Item::Good(name, _) | Item::Bad(name) = item {
                times[*name] += 1;
            }
        }
        let mut is_bad = false;
        for item in items {
            match *item {
                Item::Good(name, variant) if times[name] == 1 => {
                    let key = (kind, name);
                    self.answers(key);
                    if self.wanted.contains(&key) || self.remembered.contains_key(&key) {
                        self.good.insert(key, (variant, version.clone()));
                        self.deleted.remove(&key);
                    }
                }
                Item::Good(name, _) | Item::Bad(name) => {
                    is_bad = true;
                    self.answers((kind, name));
                    // The resource is there again, in a version that does not work.
                    self.deleted.remove(&(kind, name));
                }
                Item::Garbage => is_bad = true,
            }
        }
        let has_garbage = items.iter().any(|item| matches!(item, Item::Garbage));
        if self.delta {
            for name in removed {
                match times[*name] {
                    0 => self.loses((kind, *name)),
                    _ => is_bad = true,
                }
            }
        } else if kind_is_complete(kind) && !has_garbage {
            for (name, times) in times.into_iter().enumerate() {
                let key = (kind, name);
                let is_known = self.good.contains_key(&key);
                if times == 0 && is_known && (self.seen.contains(&key) || self.remembered.contains_key(&key)) {
                    self.loses(key);
                }
            }
        }
        self.nonce[kind] = format!("n{}", self.turn);
        if !is_bad {
            self.version[kind] = version;
        }
        let mut sent = match self.delta {
            true => Sent { kind, nonce: self.nonce[kind].clone(), ..Sent::default() },
            false => self.full(kind),
        };
        sent.is_nack = is_bad;
        vec![sent]
    }

    fn waits(&mut self, seconds: u64) {
        self.now += seconds;
        let late: Vec<Key> =
            self.awaited.iter().filter(|(_, until)| **until <= self.now).map(|(key, _)| *key).collect();
        for key in late {
            self.awaited.remove(&key);
            self.answered.insert(key);
        }
        let old: Vec<Key> =
            self.remembered.iter().filter(|(_, until)| **until <= self.now).map(|(key, _)| *key).collect();
        for key in old {
            self.forgets(key);
        }
    }

    /// A server reads what was sent.
    fn server_reads(&mut self, sent: &Sent) {
        let names = &mut self.server[sent.kind];
        if self.delta {
            names.extend(sent.names.iter().cloned());
            names.retain(|name| !sent.removes.contains(name));
        } else {
            *names = sent.names.clone();
        }
    }

    fn store_hears(&mut self, change: &Change) {
        let (key, told) = match change {
            Change::Put(key, resource) => (key, Some(variant(resource))),
            Change::Absent(key, _) => (key, None),
        };
        let key = place(key);
        assert!(self.wanted.contains(&key), "told of {key:?}, which nobody wants");
        self.told.insert(key, told);
    }

    fn check(&self) {
        for key in &self.wanted {
            let told = self.told.get(key);
            match self.good.get(key) {
                Some((variant, _)) => assert_eq!(told, Some(&Some(*variant)), "{key:?} {self:#?}"),
                None if self.answered.contains(key) => assert_eq!(told, Some(&None), "{key:?} {self:#?}"),
                None => assert_eq!(told, None, "{key:?} {self:#?}"),
            }
        }
        for kind in 0..KINDS.len() {
            if self.live {
                assert_eq!(self.server[kind], self.names(kind), "{kind} {self:#?}");
            }
        }
    }
}

/// A response of this kind holds everything that there is (rule 15).
fn kind_is_complete(kind: usize) -> bool {
    matches!(KINDS[kind], ResourceType::Listener | ResourceType::Cluster)
}

fn place(key: &ResourceKey) -> Key {
    let kind = KINDS.iter().position(|kind| *kind == key.kind).expect("a known kind");
    (kind, NAMES.iter().position(|name| *name == &*key.name).expect("a known name"))
}

/// Which variant a resource is.
fn variant(resource: &Resource) -> u16 {
    let number = |text: &str| text.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
    match resource {
        Resource::Listener(listener) => number(listener.route_names()[0].as_str()),
        Resource::Route(routes) => match &routes.virtual_hosts[0].routes[0].action {
            RouteAction::Forward(forward) => number(forward.clusters.names().next().expect("a cluster").as_str()),
            other => panic!("{other:?}"),
        },
        Resource::Cluster(cluster) => match &cluster.kind {
            ClusterKind::Eds { service_name } => number(service_name),
            other => panic!("{other:?}"),
        },
        Resource::Endpoints(endpoints) => match endpoints.localities[0].endpoints[0].id.addresses() {
            [crate::id::Address::Socket(address)] => address.port() - 1,
            other => panic!("{other:?}"),
        },
        Resource::Secret(_) => panic!("nobody asks for secrets here"),
    }
}

fn replay<M: Machine>(mut machine: M, fails_on_data_errors: bool, history: &[Event]) {
    let mut model = Model { delta: M::DELTA, fails_on_data_errors, ..Model::default() };
    for event in history {
        model.turn += 1;
        let (sent, expected) = match event {
            Event::Want(key) => (machine.interest(Some(*key), None), model.wants(*key)),
            Event::Drop(key) => (machine.interest(None, Some(*key)), model.drops(*key)),
            Event::Open if !model.live => (machine.open(), model.opened()),
            Event::Close if model.live => {
                machine.close();
                model.closed();
                (vec![], vec![])
            }
            Event::Respond { kind, items, removed } if model.live => {
                (machine.respond(*kind, model.turn, items, removed), model.responds(*kind, items, removed))
            }
            Event::Open | Event::Close | Event::Respond { .. } => continue,
            Event::Wait(seconds) => {
                machine.wait(*seconds);
                model.waits(*seconds);
                (vec![], vec![])
            }
        };
        assert_eq!(sent.len(), expected.len(), "{sent:#?} {expected:#?}");
        for (sent, mut expected) in sent.into_iter().zip(expected) {
            expected.has_node = !std::mem::replace(&mut model.node_was_sent, true);
            assert_eq!(sent, expected, "after {event:?}");
            // Legal, whatever the model says: no first request without names, no request without a stream.
            assert!(model.live && (model.asked[sent.kind] || !sent.names.is_empty()));
            model.server_reads(&sent);
        }
        for change in machine.told() {
            model.store_hears(&change);
        }
        model.check();
    }
}

/// Long histories, and many: each is cheap because its resources were encoded before.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::with_cases(10_000) }
}

fn features(delta: bool, fails: bool) -> Vec<&'static str> {
    let all = [(delta, "delta"), (fails, "fail_on_data_errors")];
    all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_of_the_state_of_the_world_machine(
        fails in any::<bool>(),
        history in prop::collection::vec(event(), 1..30),
    ) {
        replay(Rig::<Sotw>::new(&features(false, fails)), fails, &history);
    }

    #[test]
    fn every_history_of_the_incremental_machine(
        fails in any::<bool>(),
        history in prop::collection::vec(event(), 1..30),
    ) {
        replay(Rig::<Delta>::new(&features(true, fails)), fails, &history);
    }
}
