//! Arbitrary histories against both state machines: whatever a client asks, answers, forgets or loses, it
//! ends with exactly what the newest catalog says about its subscriptions, and never loses a cluster that
//! a route it still uses may need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::catalog::{ClientClass, Encoded, Kind};
use crate::serve::protocol::session::{Opening, Response, Session, Variant};
use crate::serve::protocol::tests::fixture::{PACE, Shelf, client};
use crate::serve::protocol::{delta, sotw};

const NAMES: [&str; 4] = ["n0", "n1", "n2", "n3"];
const SETTLE: Duration = Duration::from_secs(3);

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Subscribe(Kind, usize),
    Unsubscribe(Kind, usize),
    /// Answers the oldest response; a NACK names one of its resources, if it has any.
    Ack,
    Nack(usize),
    /// Answers a response once more that was answered before, or one of another stream.
    StaleAck(Kind),
    Change(Kind, usize, Option<u8>),
    /// The stream breaks and is opened again, with or without a restart of the server.
    Reconnect {
        restarted: bool,
    },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = || (0..Kind::ALL.len()).prop_map(|at| Kind::ALL[at]);
    let name = || 0..NAMES.len();
    vec(
        prop_oneof![
            4 => (kind(), name()).prop_map(|(kind, name)| Step::Subscribe(kind, name)),
            2 => (kind(), name()).prop_map(|(kind, name)| Step::Unsubscribe(kind, name)),
            8 => Just(Step::Ack),
            2 => (0..8usize).prop_map(Step::Nack),
            1 => kind().prop_map(Step::StaleAck),
            6 => (kind(), name(), prop_oneof![1 => Just(None), 3 => (0..6u8).prop_map(Some)])
                .prop_map(|(kind, name, version)| Step::Change(kind, name, version)),
            1 => any::<bool>().prop_map(|restarted| Step::Reconnect { restarted }),
            2 => (1..4000u64).prop_map(Step::Wait),
        ],
        1..48,
    )
}

type Key = (Kind, &'static str);

/// A client that does what the protocol says, and the stream that it talks to.
struct World {
    variant: Variant,
    session: Session,
    shelf: Shelf,
    now: Instant,
    streams: u32,
    settles_at: Instant,
    subscribed: BTreeSet<Key>,
    /// Names that this stream already had a request for, per kind.
    opened: BTreeSet<Kind>,
    /// What the client works with.
    held: BTreeMap<Key, String>,
    /// What it works with from an earlier stream.
    brought: BTreeMap<Key, String>,
    /// What the server last said: a version, or that it does not exist.
    offered: BTreeMap<Key, Option<String>>,
    refused: BTreeSet<Key>,
    inbox: VecDeque<Response>,
    /// The newest response that was answered, per kind.
    answered: BTreeMap<Kind, (String, String)>,
    accepted_before: BTreeSet<Kind>,
    vanished: BTreeMap<Key, Instant>,
}

impl World {
    fn new(variant: Variant) -> World {
        let shelf = Shelf::default();
        let now = Instant::now();
        let session = open(variant, &shelf, now, now, 1);
        World {
            variant,
            session,
            shelf,
            now,
            streams: 1,
            settles_at: now,
            subscribed: BTreeSet::new(),
            opened: BTreeSet::new(),
            held: BTreeMap::new(),
            brought: BTreeMap::new(),
            offered: BTreeMap::new(),
            refused: BTreeSet::new(),
            inbox: VecDeque::new(),
            answered: BTreeMap::new(),
            accepted_before: BTreeSet::new(),
            vanished: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Subscribe(kind, name) => {
                let name = NAMES[name];
                if !self.subscribed.insert((kind, name)) && self.variant == Variant::Delta {
                    // Who asks for a name again has forgotten what it was.
                    self.forget((kind, name));
                }
                self.ask(kind, &[name], &[]);
            }
            Step::Unsubscribe(kind, name) => {
                let key = (kind, NAMES[name]);
                if self.subscribed.remove(&key) {
                    self.forget(key);
                    self.brought.remove(&key);
                    self.offered.remove(&key);
                    self.refused.remove(&key);
                    self.ask(kind, &[], &[key.1]);
                }
            }
            Step::Ack => self.answer(None),
            Step::Nack(at) => self.answer(Some(at)),
            Step::StaleAck(kind) => self.stale(kind),
            Step::Change(kind, name, version) => self.change((kind, NAMES[name]), version),
            Step::Reconnect { restarted } => self.reconnect(restarted),
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
        }
        self.receive();
    }

    /// Works no longer with a name, nor with what is on its way where the next answer will tell of it anew.
    fn forget(&mut self, key: Key) {
        self.held.remove(&key);
        for sent in self.inbox.iter_mut().filter(|sent| sent.kind == key.0) {
            sent.resources.retain(|resource| *resource.name != *key.1);
        }
    }

    fn change(&mut self, key: Key, version: Option<u8>) {
        let known = self.shelf.items.contains_key(&(key.0, key.1.to_owned()));
        match version {
            Some(version) => {
                // Several versions have as many endpoints as each other.
                let (is_endpoints, count) = (key.0 == Kind::Endpoints, usize::from(version / 2));
                let suffix = if is_endpoints { format!("-{count}") } else { String::new() };
                let resource = self.shelf.put(key.0, key.1, &format!("v{version}{suffix}"));
                resource.self_registered = is_endpoints;
                resource.endpoints = count;
                self.vanished.remove(&key);
            }
            None => {
                self.shelf = std::mem::take(&mut self.shelf).without(key.0, key.1);
                if known {
                    self.vanished.insert(key, self.now);
                }
            }
        }
        let catalog = self.shelf.arc();
        if !self.session.passes_over(&catalog) {
            self.session.on_catalog(catalog, self.now);
        }
    }

    fn reconnect(&mut self, restarted: bool) {
        self.streams += 1;
        if restarted {
            self.settles_at = self.now + SETTLE;
        }
        self.session = open(self.variant, &self.shelf, self.now, self.settles_at, self.streams);
        self.opened.clear();
        self.inbox.clear();
        self.answered.clear();
        self.offered.clear();
        self.refused.clear();
        self.brought = self.held.clone();
        for kind in Kind::ALL {
            let names: Vec<&str> = self.names(kind).collect();
            // A client does not repeat an empty list on a new stream.
            if !names.is_empty() {
                self.ask(kind, &names, &[]);
            }
        }
    }

    fn names(&self, kind: Kind) -> impl Iterator<Item = &'static str> {
        self.subscribed.iter().filter(move |(of, _)| *of == kind).map(|(_, name)| *name)
    }

    fn ask(&mut self, kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) {
        let first = self.opened.insert(kind);
        match self.variant {
            Variant::Sotw => self.send_sotw(kind, None),
            Variant::Delta => {
                let brought =
                    self.brought.iter().filter(|((of, name), _)| first && *of == kind && subscribe.contains(name));
                let request = DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    initial_resource_versions: brought
                        .map(|((_, name), version)| ((*name).to_owned(), version.clone()))
                        .collect(),
                    resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
                    resource_names_unsubscribe: unsubscribe.iter().map(|name| (*name).to_owned()).collect(),
                    ..DeltaDiscoveryRequest::default()
                };
                delta::on_request(&mut self.session, &request, self.now);
            }
        }
    }

    fn send_sotw(&mut self, kind: Kind, error: Option<rpc::Status>) {
        let (version, nonce) = self.answered.get(&kind).cloned().unwrap_or_else(|| {
            let before = self.accepted_before.contains(&kind);
            (if before { "of another stream".to_owned() } else { String::new() }, String::new())
        });
        let request = DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            version_info: version,
            resource_names: self.names(kind).map(str::to_owned).collect(),
            response_nonce: nonce,
            error_detail: error,
            ..DiscoveryRequest::default()
        };
        sotw::on_request(&mut self.session, &request, self.now);
    }

    fn receive(&mut self) {
        for turn in 0.. {
            assert!(turn < 200, "no end of responses");
            let Some(response) = self.session.next(self.now) else {
                break;
            };
            self.check_removals(&response);
            self.check_settling(&response);
            self.inbox.push_back(response);
        }
        assert!(self.session.wakes_at(self.now).is_none_or(|at| at > self.now), "wakes without a cause");
        assert!(self.inbox.len() < 64, "responses pile up");
    }

    /// Nothing that a route may still refer to is withdrawn before that route was replaced.
    fn check_removals(&self, response: &Response) {
        if !matches!(response.kind, Kind::Cluster | Kind::Endpoints) {
            return;
        }
        for name in &response.absent {
            let key = self.key(response.kind, name);
            if !self.held.contains_key(&key) || (self.brought.contains_key(&key) && !self.can_tell(response.kind)) {
                continue;
            }
            let using = self.subscribed.iter().filter(|(kind, _)| matches!(kind, Kind::Listener | Kind::Route));
            for using in using {
                let Some(newest) = self.version(*using) else {
                    // What disappeared itself is withdrawn just before, on the same stream, where that can be said.
                    let gone =
                        |sent: &Response| sent.kind == using.0 && sent.absent.iter().any(|name| **name == *using.1);
                    let is_known =
                        self.variant == Variant::Sotw || !self.held.contains_key(using) || self.inbox.iter().any(gone);
                    assert!(is_known, "{key:?} withdrawn before {using:?}");
                    continue;
                };
                assert!(!self.refused.contains(using), "{key:?} withdrawn although {using:?} is refused");
                let is_newest = self.held.get(using) == Some(&newest);
                let waited = self.vanished.get(&key).is_none_or(|at| self.now >= *at + PACE.grace);
                assert!(is_newest || waited, "{key:?} withdrawn before {using:?} was replaced");
            }
        }
    }

    /// While mesh-control settles, endpoints that a client brought along do not become fewer.
    fn check_settling(&self, response: &Response) {
        if response.kind != Kind::Endpoints || self.now >= self.settles_at {
            return;
        }
        for resource in &response.resources {
            let key = self.key(response.kind, &resource.name);
            let brought = self.brought.get(&key).filter(|_| self.can_tell(key.0));
            let unsaid = !self.offered.contains_key(&key) && !self.inbox.iter().any(|sent| sent.kind == response.kind);
            if let (Some(brought), true) = (brought, unsaid) {
                // An incremental client says which version it has of each; for the other, all stay as they are.
                let fewer = match self.variant {
                    Variant::Delta => Some(resource.endpoints) < Encoded::endpoints_of(brought),
                    Variant::Sotw => *brought != *resource.version,
                };
                assert!(!fewer, "{key:?} became fewer while settling: {brought}, {}", resource.version);
            }
        }
    }

    /// Whether the client can tell a new stream that it brings something along: in SotW, one that has only ever refused
    /// cannot, although it may work with a part of what it refused.
    fn can_tell(&self, kind: Kind) -> bool {
        self.variant == Variant::Delta || self.accepted_before.contains(&kind)
    }

    fn key(&self, kind: Kind, name: &str) -> Key {
        (kind, NAMES.into_iter().find(|one| *one == name).expect("a name of the test"))
    }

    fn version(&self, (kind, name): Key) -> Option<String> {
        self.shelf.items.get(&(kind, name.to_owned())).map(|resource| resource.version.to_string())
    }

    fn answer(&mut self, refuse: Option<usize>) {
        let Some(response) = self.inbox.pop_front() else {
            return;
        };
        let kind = response.kind;
        let bad = refuse.and_then(|at| {
            let all = response.resources.len();
            (all > 0).then(|| self.key(kind, &response.resources[at % all].name))
        });
        self.apply(&response, bad);
        let error =
            bad.map(|(_, name)| rpc::Status { code: 3, message: format!("{name} is bad"), details: Vec::new() });
        if error.is_none() {
            self.accepted_before.insert(kind);
        }
        self.answered.insert(kind, (response.version.clone(), response.nonce.clone()));
        match self.variant {
            Variant::Sotw => self.send_sotw(kind, error),
            Variant::Delta => {
                let request = DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    response_nonce: response.nonce,
                    error_detail: error,
                    ..DeltaDiscoveryRequest::default()
                };
                delta::on_request(&mut self.session, &request, self.now);
            }
        }
    }

    fn apply(&mut self, response: &Response, bad: Option<Key>) {
        let kind = response.kind;
        let mut given = BTreeSet::new();
        for resource in &response.resources {
            let key = self.key(kind, &resource.name);
            assert!(given.insert(key), "{key:?} twice in a response");
            if !self.subscribed.contains(&key) {
                continue;
            }
            self.offered.insert(key, Some(resource.version.to_string()));
            if bad == Some(key) {
                self.refused.insert(key);
            } else {
                self.held.insert(key, resource.version.to_string());
                self.refused.remove(&key);
            }
        }
        let left_out = self.variant == Variant::Sotw && matches!(kind, Kind::Listener | Kind::Cluster);
        let subscribed: Vec<Key> = self.names(kind).map(|name| (kind, name)).collect();
        for key in subscribed {
            let absent = response.absent.iter().any(|name| **name == *key.1);
            if absent || (left_out && !given.contains(&key) && self.held.contains_key(&key)) {
                self.offered.insert(key, None);
                self.held.remove(&key);
                self.refused.remove(&key);
            }
        }
    }

    fn stale(&mut self, kind: Kind) {
        let nonce = match self.answered.get(&kind) {
            Some((_, nonce)) if self.inbox.iter().any(|response| response.kind == kind) => nonce.clone(),
            _ => "feed-1".to_owned(),
        };
        match self.variant {
            Variant::Sotw if self.answered.contains_key(&kind) => {
                let request = DiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    response_nonce: nonce,
                    ..DiscoveryRequest::default()
                };
                sotw::on_request(&mut self.session, &request, self.now);
            }
            Variant::Sotw => {}
            Variant::Delta => {
                let request = DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    response_nonce: nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                delta::on_request(&mut self.session, &request, self.now);
            }
        }
    }

    /// Answers everything, waits wherever the server waits, and looks at what the client has.
    fn finish(mut self) {
        self.rest();
        for key in &self.refused {
            // Removals may be held back as long as the refusal of a listener or route stands.
            let newest = self.version(*key);
            assert!(self.offered.get(key) == Some(&newest) || newest.is_none(), "{key:?} was not offered anew");
        }
        let refused: Vec<Key> = self.refused.iter().copied().collect();
        for (kind, name) in refused {
            if self.version((kind, name)).is_some() {
                self.shelf.put(kind, name, "fixed");
            }
        }
        self.session.on_catalog(self.shelf.arc(), self.now);
        self.rest();
        assert!(self.refused.is_empty());
        let held: BTreeMap<Key, String> = self.held.clone();
        let newest = self.subscribed.iter().filter_map(|key| Some((*key, self.version(*key)?)));
        assert_eq!(held, newest.collect());
    }

    fn rest(&mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "the session does not come to rest");
            self.receive();
            if !self.inbox.is_empty() {
                self.answer(None);
            } else if let Some(at) = self.session.wakes_at(self.now) {
                self.now = at;
            } else {
                break;
            }
        }
    }
}

fn open(variant: Variant, shelf: &Shelf, now: Instant, settles_at: Instant, tag: u32) -> Session {
    let class = match variant {
        Variant::Sotw => ClientClass::Grpc,
        Variant::Delta => ClientClass::Library,
    };
    let opening = Opening {
        client: client(class),
        catalog: shelf.arc(),
        pace: PACE,
        settles_at,
        tag,
        interner: Default::default(),
    };
    Session::new(variant, opening, now)
}

fn play(variant: Variant, steps: &[Step]) {
    let mut world = World::new(variant);
    steps.iter().for_each(|step| world.step(step));
    world.finish();
}

/// Histories that once went wrong, one in some hundred thousand.
mod known {
    use super::Kind::{Cluster, Endpoints, Listener, Route};
    use super::Step::{Ack, Change, Nack, Reconnect, StaleAck, Subscribe, Wait};
    use super::{Variant, play};

    #[test]
    fn what_a_client_has_forgotten_need_not_be_held_back_from_removal() {
        let gone = [Change(Endpoints, 0, Some(0)), Subscribe(Endpoints, 0), Ack, Change(Endpoints, 0, None)];
        let pending = [Subscribe(Listener, 2), Ack, Wait(500), Change(Listener, 2, Some(0))];
        play(Variant::Delta, &[&gone[..], &pending, &[Subscribe(Endpoints, 0)]].concat());
    }

    #[test]
    fn silence_counts_from_the_removal_and_not_from_the_response_that_was_not_answered() {
        let asked =
            [Change(Route, 2, Some(0)), Change(Cluster, 0, Some(0)), Subscribe(Cluster, 0), Subscribe(Route, 2)];
        let silent = [Wait(1479), Ack, Change(Cluster, 0, None), Wait(3521), Wait(500)];
        for variant in [Variant::Sotw, Variant::Delta] {
            play(variant, &[&asked[..], &silent].concat());
        }
    }

    #[test]
    fn what_a_refusal_does_not_name_was_accepted() {
        let asked = [Subscribe(Endpoints, 0), Subscribe(Cluster, 0), Subscribe(Route, 0), Ack, Subscribe(Route, 2)];
        let back = [Subscribe(Cluster, 2), Ack, Reconnect { restarted: false }, Change(Cluster, 2, Some(0))];
        let refused = [Change(Route, 0, Some(0)), Ack, Nack(0), Wait(1000), StaleAck(Route), Change(Route, 2, Some(0))];
        play(Variant::Sotw, &[&asked[..], &back, &refused, &[Ack, Nack(1)]].concat());
    }

    #[test]
    fn an_acceptance_counts_although_a_newer_response_is_on_its_way() {
        let all = [Change(Route, 0, Some(0)), Change(Route, 1, Some(0)), Change(Cluster, 0, Some(0))];
        let asked = [Subscribe(Route, 0), Ack, Subscribe(Route, 1), Ack, Subscribe(Cluster, 0), Ack];
        let refused = [Change(Route, 0, Some(1)), Nack(0), Wait(1000), Change(Route, 0, Some(2))];
        let stalled = [Wait(5000), Change(Route, 1, Some(1)), Ack, Ack, Change(Cluster, 0, None)];
        play(Variant::Sotw, &[&all[..], &asked, &refused, &stalled].concat());
    }

    #[test]
    fn server_rule_02_a_listener_that_waits_for_its_turn_goes_before_the_cluster_of_a_silent_client() {
        let gone = [Subscribe(Cluster, 1), Ack, Change(Cluster, 1, Some(0)), Change(Cluster, 1, None)];
        let asked = [Subscribe(Cluster, 2), Change(Listener, 0, Some(0)), Subscribe(Cluster, 2), Ack];
        let listener = [Subscribe(Listener, 0), Ack, Ack, Wait(2281), Ack];
        let silent = [Subscribe(Cluster, 0), Change(Listener, 0, None), Wait(2719)];
        play(Variant::Delta, &[&gone[..], &asked, &listener, &silent].concat());
    }

    #[test]
    fn a_refusal_counts_although_a_newer_response_is_on_its_way() {
        let asked = [Change(Endpoints, 1, Some(0)), Subscribe(Route, 0), Ack, Reconnect { restarted: false }];
        let refused = [Change(Route, 0, Some(0)), Subscribe(Endpoints, 1), Wait(3347), Change(Endpoints, 1, None)];
        play(Variant::Sotw, &[&asked[..], &refused, &[Subscribe(Route, 1), Wait(1653), Nack(0)]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_a_sotw_client_has_the_newest_view_of_its_subscriptions(steps in steps()) {
        play(Variant::Sotw, &steps);
    }

    #[test]
    fn after_any_history_a_delta_client_has_the_newest_view_of_its_subscriptions(steps in steps()) {
        play(Variant::Delta, &steps);
    }
}
