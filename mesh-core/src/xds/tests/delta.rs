//! Rules 33 to 35 of `docs/xds-client-rules.md`, and those of the other protocol that hold for this one too.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, ResourceName,
};
use envoy_types::pb::google::protobuf::{Any, Duration};

use super::Delta;
use crate::resources::ResourceType;
use crate::xds::client_status::ResourceState;
use crate::xds::names::type_url;
use crate::xds::rig::{Cluster, Endpoints, Listener, Rig, Route, bad, garbage, good, resource_error};

fn rig() -> Rig<Delta> {
    Rig::new(&["delta"])
}

fn resource(name: &str, version: &str, any: Any) -> Resource {
    Resource { name: name.into(), version: version.into(), resource: Some(any), ..Default::default() }
}

fn response(kind: ResourceType, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        nonce: nonce.into(),
        type_url: type_url(kind).into(),
        resources,
        removed_resources: removed.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

/// A request in one line: type, what is added and removed, what is known, nonce, and whether it is a NACK.
fn line(request: &DeltaDiscoveryRequest) -> String {
    let kind = request.type_url.rsplit('.').next().unwrap();
    let mut line = kind.to_owned();
    for (sign, names) in [("+", &request.resource_names_subscribe), ("-", &request.resource_names_unsubscribe)] {
        for name in names {
            line += &format!(" {sign}{name}");
        }
    }
    let mut versions: Vec<_> = request.initial_resource_versions.iter().collect();
    versions.sort();
    for (name, version) in versions {
        line += &format!(" {name}@{version}");
    }
    if !request.response_nonce.is_empty() {
        line += &format!(" n={}", request.response_nonce);
    }
    if request.error_detail.is_some() {
        line += " NACK";
    }
    line
}

fn lines(requests: &[DeltaDiscoveryRequest]) -> Vec<String> {
    requests.iter().map(line).collect()
}

impl Rig<Delta> {
    fn respond(&mut self, kind: ResourceType, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> String {
        match self.receive(response(kind, nonce, resources, removed)) {
            Some(request) => line(&request),
            None => "nothing".to_owned(),
        }
    }

    fn nack(&mut self, kind: ResourceType, resources: Vec<Resource>, removed: &[&str]) -> String {
        let request = self.receive(response(kind, "n", resources, removed)).unwrap();
        request.error_detail.expect("a NACK").message
    }
}

#[test]
fn client_rule_33_requests_name_only_what_changed_and_have_a_nonce_only_in_answers() {
    let mut rig = rig();
    rig.want(&[(Listener, "l"), (Cluster, "a")]);
    let requests = rig.open();
    assert_eq!(lines(&requests), ["Listener +l", "Cluster +a"]);
    assert!(requests[0].node.is_some() && requests[1].node.is_none());
    assert_eq!(lines(&rig.want(&[(Cluster, "b"), (Cluster, "c")])), ["Cluster +b +c"]);
    let resources = vec![resource("a", "1", good(Cluster, "a", 1))];
    assert_eq!(rig.respond(Cluster, "n1", resources, &[]), "Cluster n=n1");
    assert_eq!(lines(&rig.interest(&[(Cluster, "d")], &[(Cluster, "b")])), ["Cluster +d -b"]);
    assert_eq!(lines(&rig.interest(&[], &[(Cluster, "never")])), [] as [&str; 0]);
}

#[test]
fn client_rule_33_a_new_stream_says_what_is_known_and_asks_for_everything() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b"), (Cluster, "c"), (Cluster, "d")]);
    rig.open();
    let resources = ["a", "b", "c"].map(|name| resource(name, "1", good(Cluster, name, 1)));
    rig.respond(Cluster, "n1", resources.to_vec(), &[]);
    rig.respond(Cluster, "n2", vec![resource("b", "2", bad(Cluster, "b"))], &["c"]);
    rig.close();
    // The version of b that works is its first; c is deleted on the server, so that a new one must be sent.
    let requests = rig.open();
    assert_eq!(lines(&requests), ["Cluster +a +b +c +d a@1 b@1"]);
    assert!(requests[0].node.is_some());
    assert_eq!(requests[0].response_nonce, "");
}

#[test]
fn all_listeners_come_without_their_names_and_go_when_the_server_says_so() {
    let mut rig = rig();
    rig.want(&[(Listener, "*")]);
    assert_eq!(lines(&rig.open()), ["Listener +*"]);
    let resources = ["a", "b", "c"].map(|name| resource(name, "1", good(Listener, name, 1)));
    assert_eq!(rig.respond(Listener, "n1", resources.to_vec(), &[]), "Listener n=n1");
    assert_eq!(rig.told(), ["put a", "put b", "put c"]);
    // Whoever wants one of them has it, and asks for nothing.
    assert_eq!(lines(&rig.want(&[(Listener, "a")])), [] as [&str; 0]);
    assert_eq!(rig.told(), ["put a"]);
    rig.respond(Listener, "n2", vec![], &["b"]);
    assert_eq!(rig.told(), ["absent b"]);
    // What is refused has its last good version, and what is gone meanwhile the server can say.
    rig.respond(Listener, "n3", vec![resource("c", "2", bad(Listener, "c"))], &[]);
    assert!(rig.told().is_empty());
    rig.close();
    assert_eq!(lines(&rig.open()), ["Listener +* a@1 c@1"]);
    assert_eq!(lines(&rig.interest(&[], &[(Listener, "*")])), ["Listener -*"]);
    rig.respond(Listener, "n4", vec![resource("a", "3", good(Listener, "a", 3))], &[]);
    assert!(rig.told().is_empty());
}

#[test]
fn client_rule_33_removed_resources_are_deleted_whatever_their_type() {
    for kind in [Listener, Route, Cluster, Endpoints] {
        for (features, expected) in
            [(["delta", ""], vec!["put a"]), (["delta", "fail_on_data_errors"], vec!["put a", "absent a"])]
        {
            let mut rig: Rig<Delta> = Rig::new(&features);
            rig.want(&[(kind, "a")]);
            rig.open();
            rig.respond(kind, "n1", vec![resource("a", "1", good(kind, "a", 1))], &[]);
            rig.respond(kind, "n2", vec![], &["a", "unknown", ""]);
            assert_eq!(rig.told(), expected, "{kind} {features:?}");
            assert_eq!(rig.state(kind, "a"), ResourceState::DoesNotExist);
            rig.respond(kind, "n3", vec![resource("a", "1", good(kind, "a", 1))], &[]);
            assert_eq!(rig.told(), ["put a"]);
        }
    }
}

#[test]
fn client_rule_33_a_server_that_says_there_is_none_ends_the_wait_at_once() {
    let mut rig = rig();
    rig.want(&[(Listener, "a"), (Listener, "b")]);
    rig.open();
    let names = vec![ResourceName { name: "b".into(), ..Default::default() }];
    let answer =
        DeltaDiscoveryResponse { removed_resource_names: names, ..response(Listener, "n", vec![], &["a", "a"]) };
    assert!(rig.receive(answer).unwrap().error_detail.is_none());
    assert_eq!(rig.told(), ["absent b", "absent a"]);
    assert_eq!(rig.machine.next_deadline(), None);
    rig.respond(Listener, "n2", vec![resource("a", "1", good(Listener, "a", 1))], &[]);
    assert_eq!(rig.told(), ["put a"]);
}

#[test]
fn client_rule_33_good_resources_of_a_bad_response_are_applied() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b"), (Cluster, "c")]);
    rig.open();
    let resources = vec![
        resource("a", "1", good(Cluster, "a", 1)),
        resource("b", "1", bad(Cluster, "b")),
        resource("c", "1", garbage(Cluster)),
    ];
    let text = rig.nack(Cluster, resources, &[]);
    assert!(text.contains("\"b\": load_assignment: missing") && text.contains("\"c\": name: malformed"), "{text}");
    assert_eq!(rig.told(), ["absent c", "put a", "absent b"]);
    let states = ["a", "b", "c"].map(|name| rig.state(Cluster, name));
    assert_eq!(states, [ResourceState::Acked, ResourceState::Nacked, ResourceState::Nacked]);
}

#[test]
fn client_rule_33_a_name_twice_or_both_sent_and_removed_is_rejected() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    let twice = vec![resource("a", "1", good(Cluster, "a", 1)), resource("a", "2", good(Cluster, "a", 2))];
    assert_eq!(rig.nack(Cluster, twice, &[]), "\"a\": listed twice in one response");
    let both = vec![resource("b", "1", good(Cluster, "b", 1))];
    assert_eq!(rig.nack(Cluster, both, &["b"]), "\"b\": both sent and removed in one response");
    assert_eq!(rig.state(Cluster, "b"), ResourceState::Acked);
}

#[test]
fn client_rule_33_a_resource_beside_another_name_is_rejected() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    let text = rig.nack(Cluster, vec![resource("x", "1", good(Cluster, "a", 1))], &[]);
    assert_eq!(text, "\"a\": the name on the wrapper is \"x\"");
    let empty = Resource { name: "a".into(), ..Default::default() };
    assert_eq!(rig.nack(Cluster, vec![empty], &[]), "\"a\": resource: missing");
    let alive = Resource { name: "a".into(), ttl: Some(Duration::default()), ..Default::default() };
    assert_eq!(rig.respond(Cluster, "n", vec![alive], &[]), "Cluster n=n");
}

#[test]
fn client_rule_34_nothing_ever_asks_for_everything() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.interest(&[], &[(Cluster, "a")]);
    assert!(rig.open().is_empty());
    // The first request of a type on a live stream has names, too.
    assert_eq!(lines(&rig.want(&[(Cluster, "a")])), ["Cluster +a"]);
    assert_eq!(lines(&rig.interest(&[], &[(Cluster, "a")])), ["Cluster -a"]);
    rig.close();
    assert!(rig.open().is_empty());
}

#[test]
fn client_rule_35_a_resource_that_is_wanted_again_is_asked_for_again_and_not_waited_for() {
    let mut rig = rig();
    rig.want(&[(Endpoints, "e")]);
    rig.open();
    rig.respond(Endpoints, "n", vec![resource("e", "1", good(Endpoints, "e", 1))], &[]);
    rig.interest(&[], &[(Endpoints, "e")]);
    rig.told();
    assert_eq!(lines(&rig.want(&[(Endpoints, "e")])), ["ClusterLoadAssignment +e"]);
    assert_eq!(rig.told(), ["put e"]);
    assert_eq!(rig.machine.next_deadline(), None);
    // The server does not send it again: the one that is known stays in use.
    rig.wait(3600);
    assert!(rig.told().is_empty());
    // It does: nothing changes.
    rig.respond(Endpoints, "n2", vec![resource("e", "1", good(Endpoints, "e", 1))], &[]);
    assert!(rig.told().is_empty());
    assert_eq!(rig.state(Endpoints, "e"), ResourceState::Acked);
}

#[test]
fn client_rule_35_what_is_forgotten_is_waited_for() {
    let mut rig = rig();
    rig.want(&[(Endpoints, "e")]);
    rig.open();
    rig.respond(Endpoints, "n", vec![resource("e", "1", good(Endpoints, "e", 1))], &[]);
    rig.interest(&[], &[(Endpoints, "e")]);
    rig.wait(5);
    rig.want(&[(Endpoints, "e")]);
    rig.told();
    rig.wait(15);
    assert_eq!(rig.told(), ["absent e"]);
}

#[test]
fn client_rule_05_holds_for_the_incremental_protocol() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    assert_eq!(rig.respond(Listener, "n", vec![], &[]), "nothing");
    let unknown = DeltaDiscoveryResponse { type_url: "x/acme.Thing".into(), ..Default::default() };
    assert!(rig.receive(unknown).is_none());
}

#[test]
fn client_rule_13_holds_for_the_incremental_protocol() {
    let mut rig = rig();
    rig.want(&[(Route, "r")]);
    rig.open();
    rig.wait(10);
    rig.close();
    rig.wait(100);
    assert!(rig.told().is_empty());
    rig.open();
    rig.wait(15);
    assert_eq!(rig.told(), ["absent r"]);
}

#[test]
fn client_rule_17_and_18_hold_for_the_incremental_protocol() {
    let mut rig = rig();
    rig.want(&[(Route, "r")]);
    rig.open();
    rig.respond(Route, "1", vec![resource("r", "1", bad(Route, "r"))], &[]);
    rig.respond(Route, "2", vec![resource("r", "2", bad(Route, "r"))], &[]);
    rig.respond(Route, "3", vec![resource("r", "3", good(Route, "r", 1))], &[]);
    rig.respond(Route, "4", vec![resource("r", "4", good(Route, "r", 1))], &[]);
    assert_eq!(rig.told(), ["absent r", "put r"]);
    assert_eq!(rig.status(Route, "r").version, "4");
}

#[test]
fn client_rule_23_holds_for_the_incremental_protocol() {
    let mut rig = rig();
    rig.want(&[(Route, "r")]);
    rig.open();
    let errors = vec![resource_error("r", 5)];
    rig.receive(DeltaDiscoveryResponse { resource_errors: errors, ..response(Route, "n", vec![], &[]) });
    assert_eq!(rig.told(), ["absent r"]);
    assert_eq!(rig.state(Route, "r"), ResourceState::ReceivedError);
    assert_eq!(rig.machine.next_deadline(), None);
}

#[test]
fn versions_are_told_to_the_server_that_they_came_from_only() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    rig.respond(Cluster, "n", vec![resource("a", "1", good(Cluster, "a", 1))], &[]);
    let of = |server| rig.cache.versions(Cluster, server).collect::<HashMap<_, _>>();
    assert_eq!(of(0), [("a", "1")].into());
    assert!(of(1).is_empty());
}
