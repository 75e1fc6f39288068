//! Rules 1 to 25 of `docs/xds-client-rules.md`, as far as they concern one stream.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::Any;

use super::Sotw;
use crate::resources::ResourceType;
use crate::testing::resources::{inline_listener, pack, routes_to};
use crate::xds::client_status::ResourceState;
use crate::xds::names::type_url;
use crate::xds::rig::{Cluster, Endpoints, Listener, Rig, Route, bad, garbage, good, resource_error};

fn rig() -> Rig<Sotw> {
    Rig::new(&[])
}

fn response(kind: ResourceType, version: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.into(),
        nonce: format!("nonce-{version}"),
        type_url: type_url(kind).into(),
        resources,
        ..Default::default()
    }
}

/// A request in one line: type, names, version, nonce, and whether it is a NACK.
fn line(request: &DiscoveryRequest) -> String {
    let kind = request.type_url.rsplit('.').next().unwrap();
    let nack = if request.error_detail.is_some() { " NACK" } else { "" };
    let names = request.resource_names.join(",");
    format!("{kind} [{names}] v={:?} n={:?}{nack}", request.version_info, request.response_nonce)
}

fn lines(requests: &[DiscoveryRequest]) -> Vec<String> {
    requests.iter().map(line).collect()
}

impl Rig<Sotw> {
    fn respond(&mut self, kind: ResourceType, version: &str, resources: Vec<Any>) -> String {
        match self.receive(response(kind, version, resources)) {
            Some(request) => line(&request),
            None => "nothing".to_owned(),
        }
    }

    /// The text of the NACK that a response must get.
    fn nack(&mut self, kind: ResourceType, version: &str, resources: Vec<Any>) -> String {
        self.receive(response(kind, version, resources)).unwrap().error_detail.expect("a NACK").message
    }
}

#[test]
fn client_rule_01_all_types_share_a_stream_whose_first_request_alone_has_the_node() {
    let mut rig = rig();
    assert!(rig.want(&[(Listener, "l"), (Cluster, "c")]).is_empty());
    let requests = rig.open();
    assert_eq!(lines(&requests), [r#"Listener [l] v="" n="""#, r#"Cluster [c] v="" n="""#]);
    assert_eq!(requests[0].node.as_ref().unwrap().id, "node-1");
    assert!(requests[1].node.is_none());
    assert!(rig.want(&[(Route, "r")])[0].node.is_none());
    assert!(rig.receive(response(Cluster, "1", vec![good(Cluster, "c", 1)])).unwrap().node.is_none());
    rig.close();
    assert!(rig.open()[0].node.is_some());
}

#[test]
fn client_rule_01_a_new_stream_starts_without_nonce_and_keeps_the_version() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "7", vec![good(Cluster, "c", 1)]);
    rig.close();
    assert_eq!(lines(&rig.open()), [r#"Cluster [c] v="7" n="""#]);
}

#[test]
fn all_listeners_come_without_their_names_and_go_by_not_being_there() {
    let mut rig = rig();
    rig.want(&[(Listener, "*")]);
    assert_eq!(lines(&rig.open()), [r#"Listener [*] v="" n="""#]);
    let two = ["a", "b"].map(|name| good(Listener, name, 1));
    assert!(rig.respond(Listener, "1", two.to_vec()).starts_with(r#"Listener [*] v="1""#));
    assert_eq!(rig.told(), ["put a", "put b"]);
    rig.respond(Listener, "2", vec![good(Listener, "b", 1)]);
    assert_eq!(rig.told(), ["absent a"]);
    rig.respond(Listener, "3", vec![]);
    assert_eq!(rig.told(), ["absent b"]);
}

#[test]
fn client_rule_02_a_type_that_nobody_wants_is_not_asked_for_on_a_new_stream() {
    let mut rig = rig();
    rig.want(&[(Listener, "l"), (Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    rig.interest(&[], &[(Cluster, "c")]);
    rig.close();
    assert_eq!(lines(&rig.open()), [r#"Listener [l] v="" n="""#]);
}

#[test]
fn client_rule_02_a_name_that_comes_and_goes_before_the_stream_asks_for_nothing() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.interest(&[], &[(Cluster, "c")]);
    assert!(rig.open().is_empty());
    assert!(rig.interest(&[], &[(Cluster, "c")]).is_empty());
}

#[test]
fn client_rule_03_a_change_is_the_full_list_with_the_latest_version_and_nonce() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    assert_eq!(lines(&rig.want(&[(Cluster, "b")])), [r#"Cluster [a,b] v="" n="""#]);
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1)]);
    assert_eq!(lines(&rig.want(&[(Cluster, "c")])), [r#"Cluster [a,b,c] v="1" n="nonce-1""#]);
    assert_eq!(lines(&rig.interest(&[], &[(Cluster, "b")])), [r#"Cluster [a,c] v="1" n="nonce-1""#]);
}

#[test]
fn client_rule_03_unsubscribing_the_last_name_sends_an_empty_list_and_keeps_the_nonce() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1)]);
    assert_eq!(lines(&rig.interest(&[], &[(Cluster, "a")])), [r#"Cluster [] v="1" n="nonce-1""#]);
    assert_eq!(lines(&rig.want(&[(Cluster, "b")])), [r#"Cluster [b] v="1" n="nonce-1""#]);
}

#[test]
fn client_rule_04_nonces_and_versions_are_per_type_and_a_nack_has_the_last_accepted_version() {
    let mut rig = rig();
    rig.want(&[(Listener, "l"), (Cluster, "c")]);
    rig.open();
    assert_eq!(rig.respond(Cluster, "1", vec![bad(Cluster, "c")]), r#"Cluster [c] v="" n="nonce-1" NACK"#);
    assert_eq!(rig.respond(Listener, "9", vec![good(Listener, "l", 1)]), r#"Listener [l] v="9" n="nonce-9""#);
    assert_eq!(rig.respond(Cluster, "2", vec![good(Cluster, "c", 1)]), r#"Cluster [c] v="2" n="nonce-2""#);
    assert_eq!(rig.respond(Cluster, "3", vec![bad(Cluster, "c")]), r#"Cluster [c] v="2" n="nonce-3" NACK"#);
    assert_eq!(rig.respond(Cluster, "4", vec![good(Cluster, "c", 2)]), r#"Cluster [c] v="4" n="nonce-4""#);
}

#[test]
fn client_rule_05_a_type_that_is_unknown_or_was_not_asked_for_is_neither_acknowledged_nor_rejected() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    assert_eq!(rig.respond(Listener, "1", vec![good(Listener, "l", 1)]), "nothing");
    let unknown =
        DiscoveryResponse { type_url: "type.googleapis.com/acme.Thing".into(), ..response(Cluster, "1", vec![]) };
    assert!(rig.receive(unknown).is_none());
    assert_eq!(rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]), r#"Cluster [c] v="1" n="nonce-1""#);
}

#[test]
fn client_rule_06_a_name_that_occurs_twice_is_rejected_and_the_others_are_applied() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    let twice = vec![good(Cluster, "a", 1), good(Cluster, "b", 1), good(Cluster, "a", 2)];
    assert_eq!(rig.nack(Cluster, "1", twice), "\"a\": listed twice in one response");
    assert_eq!(rig.told(), ["absent a", "put b"]);
}

fn wrapped(name: &str, resource: Any) -> Any {
    pack(&Resource { name: name.into(), version: "w".into(), resource: Some(resource), ..Default::default() })
}

#[test]
fn client_rule_07_a_wrapper_is_taken_off_and_its_name_must_agree() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    let resources = vec![wrapped("a", good(Cluster, "a", 1)), wrapped("x", good(Cluster, "b", 1))];
    assert_eq!(rig.nack(Cluster, "1", resources), "\"b\": the name on the wrapper is \"x\"");
    assert_eq!(rig.told(), ["put a", "absent b"]);
    assert_eq!(
        rig.respond(Cluster, "2", vec![wrapped("", good(Cluster, "b", 1))]),
        r#"Cluster [a,b] v="2" n="nonce-2""#
    );
}

#[test]
fn client_rule_08_what_was_not_asked_for_is_ignored_but_must_be_valid() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    let extra = vec![good(Cluster, "a", 1), good(Cluster, "other", 1)];
    assert_eq!(rig.respond(Cluster, "1", extra), r#"Cluster [a] v="1" n="nonce-1""#);
    assert_eq!(rig.told(), ["put a"]);
    assert!(rig.nack(Cluster, "2", vec![good(Cluster, "a", 2), bad(Cluster, "other")]).starts_with("\"other\": "));
    assert_eq!(rig.told(), ["put a"]);
}

#[test]
fn client_rule_13_the_timer_runs_for_15_s_and_only_on_a_live_stream() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.wait(100);
    assert_eq!((rig.told(), rig.machine.next_deadline()), (vec![], None));
    rig.open();
    rig.wait(14);
    rig.close();
    assert_eq!(rig.machine.next_deadline(), None);
    rig.wait(100);
    assert!(rig.told().is_empty());
    rig.open();
    let deadline = rig.now + Duration::from_secs(15);
    assert_eq!(rig.machine.next_deadline(), Some(deadline));
    rig.wait(14);
    assert!(rig.told().is_empty());
    rig.wait(1);
    assert_eq!(rig.told(), ["absent a"]);
    assert_eq!(rig.state(Cluster, "a"), ResourceState::DoesNotExist);
    assert_eq!(rig.elapsed(), Duration::from_secs(229));
}

#[test]
fn client_rule_13_a_server_whose_silence_is_a_fault_has_30_s() {
    let mut rig: Rig<Sotw> = Rig::new(&["resource_timer_is_transient_error"]);
    rig.want(&[(Cluster, "a")]);
    rig.open();
    rig.wait(29);
    assert!(rig.told().is_empty());
    rig.wait(1);
    assert_eq!(rig.state(Cluster, "a"), ResourceState::Timeout);
    assert!(rig.reasons()[0].contains("in 30 s"));
}

#[test]
fn client_rule_13_a_restarted_server_that_is_slow_blanks_nothing() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Endpoints, "e")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1)]);
    rig.respond(Endpoints, "1", vec![good(Endpoints, "e", 1)]);
    rig.told();
    rig.close();
    rig.open();
    assert_eq!(rig.machine.next_deadline(), None);
    rig.wait(3600);
    assert!(rig.told().is_empty());
    assert_eq!(rig.state(Cluster, "a"), ResourceState::Acked);
}

#[test]
fn client_rule_13_only_the_silence_about_a_name_counts() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a")]);
    rig.open();
    rig.wait(10);
    rig.want(&[(Cluster, "b"), (Cluster, "c")]);
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    rig.wait(5);
    assert_eq!(rig.told(), ["put c", "absent a"]);
    rig.interest(&[], &[(Cluster, "b")]);
    rig.wait(100);
    assert!(rig.told().is_empty());
}

#[test]
fn client_rule_14_a_resource_that_arrives_after_its_timer_fired_is_put() {
    let mut rig = rig();
    rig.want(&[(Endpoints, "e")]);
    rig.open();
    rig.wait(15);
    assert_eq!(rig.told(), ["absent e"]);
    rig.respond(Endpoints, "1", vec![good(Endpoints, "e", 1)]);
    assert_eq!(rig.told(), ["put e"]);
    assert_eq!(rig.state(Endpoints, "e"), ResourceState::Acked);
}

#[test]
fn client_rule_15_absence_means_deletion_for_listeners_and_clusters_only() {
    for (kind, expected) in [
        (Listener, ResourceState::DoesNotExist),
        (Cluster, ResourceState::DoesNotExist),
        (Route, ResourceState::Acked),
        (Endpoints, ResourceState::Acked),
    ] {
        let mut rig = rig();
        rig.want(&[(kind, "a"), (kind, "b")]);
        rig.open();
        rig.respond(kind, "1", vec![good(kind, "a", 1), good(kind, "b", 1)]);
        rig.respond(kind, "2", vec![good(kind, "b", 1)]);
        assert_eq!(rig.state(kind, "a"), expected);
        rig.respond(kind, "3", vec![]);
        assert_eq!(rig.state(kind, "b"), expected);
    }
}

#[test]
fn client_rule_15_absence_of_what_was_never_there_means_nothing_until_the_timer_fires() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1)]);
    assert_eq!(rig.state(Cluster, "b"), ResourceState::Requested);
    rig.wait(15);
    assert_eq!(rig.told(), ["put a", "absent b"]);
}

#[test]
fn client_rule_15_nothing_is_concluded_from_a_response_with_something_unreadable_in_it() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1), good(Cluster, "b", 1)]);
    assert!(rig.nack(Cluster, "2", vec![garbage(Cluster), good(Cluster, "b", 2)]).contains("malformed Protobuf"));
    assert_eq!(rig.state(Cluster, "a"), ResourceState::Acked);
    rig.told();
    // A bad resource that has a name is there, too.
    rig.nack(Cluster, "3", vec![bad(Cluster, "a")]);
    assert_eq!(rig.state(Cluster, "a"), ResourceState::Nacked);
    assert_eq!(rig.state(Cluster, "b"), ResourceState::DoesNotExist);
}

#[test]
fn client_rule_15_a_response_that_was_under_way_does_not_delete_what_is_wanted_again() {
    let mut rig: Rig<Sotw> = Rig::new(&["fail_on_data_errors"]);
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1), good(Cluster, "b", 1)]);
    rig.told();
    rig.interest(&[], &[(Cluster, "a")]);
    rig.want(&[(Cluster, "a")]);
    // The server answered the unsubscription before it saw the new subscription.
    rig.respond(Cluster, "2", vec![good(Cluster, "b", 2)]);
    assert_eq!(rig.told(), ["put a", "put b"]);
    rig.respond(Cluster, "3", vec![good(Cluster, "a", 1), good(Cluster, "b", 2)]);
    rig.respond(Cluster, "4", vec![good(Cluster, "b", 2)]);
    assert_eq!(rig.told(), ["absent a"]);
}

#[test]
fn client_rule_16_a_deleted_resource_stays_in_use() {
    let mut rig = rig();
    rig.want(&[(Listener, "l")]);
    rig.open();
    rig.respond(Listener, "1", vec![good(Listener, "l", 1)]);
    rig.told();
    rig.respond(Listener, "2", vec![]);
    rig.respond(Listener, "3", vec![]);
    assert!(rig.told().is_empty());
    let status = rig.status(Listener, "l");
    assert_eq!((status.state, status.version.as_str()), (ResourceState::DoesNotExist, "1"));
    assert!(status.error.unwrap().details.contains("the management server has none"));
    rig.respond(Listener, "4", vec![good(Listener, "l", 1)]);
    assert_eq!(rig.told(), ["put l"]);
    assert_eq!(rig.state(Listener, "l"), ResourceState::Acked);
    assert!(rig.status(Listener, "l").error.is_none());
}

#[test]
fn client_rule_16_a_deleted_resource_is_dropped_where_the_server_has_fail_on_data_errors() {
    let mut rig: Rig<Sotw> = Rig::new(&["fail_on_data_errors"]);
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    rig.respond(Cluster, "2", vec![]);
    assert_eq!(rig.told(), ["put c", "absent c"]);
    rig.respond(Cluster, "3", vec![]);
    assert!(rig.told().is_empty());
    rig.respond(Cluster, "4", vec![good(Cluster, "c", 1)]);
    assert_eq!(rig.told(), ["put c"]);
}

#[test]
fn client_rule_16_a_listener_that_lets_calls_pass_by_is_dropped_when_it_is_withdrawn() {
    let mut rig = rig();
    rig.want(&[(Listener, "l")]);
    rig.open();
    let passing = pack(&inline_listener("l", routes_to("allow_any", "PassthroughCluster")));
    let other = pack(&inline_listener("l", routes_to("allow_any", "c")));
    rig.respond(Listener, "1", vec![passing.clone()]);
    rig.respond(Listener, "2", vec![]);
    assert_eq!(rig.told(), ["put l", "absent l"]);
    rig.respond(Listener, "3", vec![passing]);
    rig.respond(Listener, "4", vec![other]);
    rig.respond(Listener, "5", vec![]);
    assert_eq!(rig.told(), ["put l", "put l"], "a description that is withdrawn stays in use");
}

#[test]
fn client_rule_17_an_identical_update_is_acknowledged_and_not_told_again() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    assert_eq!(rig.told(), ["put c"]);
    assert_eq!(rig.respond(Cluster, "2", vec![good(Cluster, "c", 1)]), r#"Cluster [c] v="2" n="nonce-2""#);
    assert!(rig.told().is_empty());
    assert_eq!(rig.status(Cluster, "c").version, "2");
    // Other bytes that mean the same: a field of no consequence is set.
    let mut other = crate::testing::resources::eds_cluster("c");
    other.alt_stat_name = "x".into();
    other.eds_cluster_config.as_mut().unwrap().service_name = "endpoints-1".into();
    rig.respond(Cluster, "3", vec![pack(&other)]);
    assert!(rig.told().is_empty());
}

#[test]
fn client_rule_17_after_a_nack_an_identical_update_is_told_again() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    rig.respond(Cluster, "2", vec![bad(Cluster, "c")]);
    assert_eq!(rig.told(), ["put c"]);
    rig.respond(Cluster, "3", vec![good(Cluster, "c", 1)]);
    assert_eq!(rig.told(), ["put c"]);
}

#[test]
fn client_rule_18_a_nack_without_a_good_version_is_told_once_and_with_one_not_at_all() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![bad(Cluster, "c")]);
    rig.respond(Cluster, "2", vec![bad(Cluster, "c")]);
    assert_eq!(rig.told(), ["absent c"]);
    rig.respond(Cluster, "3", vec![good(Cluster, "c", 1)]);
    rig.respond(Cluster, "4", vec![bad(Cluster, "c")]);
    assert_eq!(rig.told(), ["put c"]);
    let status = rig.status(Cluster, "c");
    assert_eq!((status.state, status.version.as_str()), (ResourceState::Nacked, "3"));
    assert_eq!(status.error.unwrap().version, "4");
}

#[test]
fn client_rule_18_who_comes_later_gets_the_good_version_although_an_error_came_after_it() {
    let mut rig = rig();
    rig.want(&[(Cluster, "c")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "c", 1)]);
    rig.respond(Cluster, "2", vec![bad(Cluster, "c")]);
    rig.interest(&[], &[(Cluster, "c")]);
    rig.told();
    rig.want(&[(Cluster, "c")]);
    assert_eq!(rig.told(), ["put c"]);
    assert!(rig.status(Cluster, "c").error.is_some());
}

#[test]
fn client_rule_19_and_20_good_resources_of_a_bad_response_are_applied_with_its_version() {
    let mut rig = rig();
    rig.want(&[(Cluster, "a"), (Cluster, "b")]);
    rig.open();
    let text = rig.nack(Cluster, "1", vec![good(Cluster, "a", 1), bad(Cluster, "b")]);
    assert_eq!(text, "\"b\": load_assignment: missing");
    assert_eq!(rig.told(), ["put a", "absent b"]);
    assert_eq!((rig.state(Cluster, "a"), rig.state(Cluster, "b")), (ResourceState::Acked, ResourceState::Nacked));
    assert_eq!(rig.status(Cluster, "a").version, "1");
}

#[test]
fn client_rule_19_hazard_x1_one_bad_cluster_of_a_hundred_holds_back_only_itself() {
    let mut rig = rig();
    let names: Vec<String> = (0..100).map(|n| format!("c{n:02}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (Cluster, name.as_str())).collect();
    rig.want(&wanted);
    rig.open();
    let all = |variant| names.iter().map(|name| good(Cluster, name, variant)).collect::<Vec<_>>();
    rig.respond(Cluster, "1", all(1));
    rig.told();
    let mut second = all(2);
    second[42] = bad(Cluster, "c42");
    assert_eq!(rig.nack(Cluster, "2", second), "\"c42\": load_assignment: missing");
    assert_eq!(rig.told().len(), 99);
    assert_eq!((rig.status(Cluster, "c42").version.as_str(), rig.status(Cluster, "c41").version.as_str()), ("1", "2"));
}

#[test]
fn client_rule_23_an_error_of_the_server_ends_the_wait_and_is_told() {
    for (code, feature, expected) in [
        (5, "", vec!["put b", "absent a"]),
        (7, "", vec!["put b", "absent a"]),
        (14, "", vec!["put b", "absent a"]),
        (5, "fail_on_data_errors", vec!["put b", "absent a", "absent b"]),
        (14, "fail_on_data_errors", vec!["put b", "absent a"]),
    ] {
        let mut rig: Rig<Sotw> = Rig::new(&[feature]);
        rig.want(&[(Endpoints, "a"), (Endpoints, "b")]);
        rig.open();
        rig.respond(Endpoints, "1", vec![good(Endpoints, "b", 1)]);
        let errors = vec![resource_error("a", code), resource_error("b", code), resource_error("", 5)];
        let request = rig.receive(DiscoveryResponse { resource_errors: errors, ..response(Endpoints, "2", vec![]) });
        assert!(request.unwrap().error_detail.is_none());
        assert_eq!(rig.told(), expected, "{code} {feature}");
        assert_eq!(rig.state(Endpoints, "a"), ResourceState::ReceivedError);
        assert_eq!(rig.state(Endpoints, "b"), ResourceState::ReceivedError);
        assert_eq!(rig.machine.next_deadline(), None);
    }
}

#[test]
fn client_rule_23_an_error_is_not_also_a_deletion() {
    let mut rig: Rig<Sotw> = Rig::new(&["fail_on_data_errors"]);
    rig.want(&[(Cluster, "a")]);
    rig.open();
    rig.respond(Cluster, "1", vec![good(Cluster, "a", 1)]);
    let errors = vec![resource_error("a", 14)];
    rig.receive(DiscoveryResponse { resource_errors: errors, ..response(Cluster, "2", vec![]) });
    assert_eq!(rig.told(), ["put a"]);
    assert_eq!(rig.state(Cluster, "a"), ResourceState::ReceivedError);
}

#[test]
fn client_rule_24_every_state_of_a_resource() {
    let mut rig: Rig<Sotw> = Rig::new(&["resource_timer_is_transient_error"]);
    rig.want(&[(Endpoints, "a"), (Endpoints, "b"), (Endpoints, "c"), (Endpoints, "d"), (Cluster, "e")]);
    assert_eq!(rig.state(Endpoints, "a"), ResourceState::Requested);
    rig.open();
    let resources = vec![good(Endpoints, "a", 1), bad(Endpoints, "b")];
    let errors = vec![resource_error("c", 5)];
    rig.receive(DiscoveryResponse { resource_errors: errors, ..response(Endpoints, "1", resources) });
    rig.respond(Cluster, "1", vec![good(Cluster, "e", 1)]);
    rig.respond(Cluster, "2", vec![]);
    rig.wait(30);
    let states = ["a", "b", "c", "d"].map(|name| rig.state(Endpoints, name));
    use ResourceState::*;
    assert_eq!(states, [Acked, Nacked, ReceivedError, Timeout]);
    assert_eq!(rig.state(Cluster, "e"), DoesNotExist);
}

#[test]
fn a_resource_that_is_wanted_again_soon_needs_no_answer() {
    let mut rig = rig();
    rig.want(&[(Endpoints, "e")]);
    rig.open();
    rig.respond(Endpoints, "1", vec![good(Endpoints, "e", 1)]);
    rig.interest(&[], &[(Endpoints, "e")]);
    rig.wait(4);
    rig.told();
    rig.want(&[(Endpoints, "e")]);
    assert_eq!((rig.told(), rig.machine.next_deadline()), (vec!["put e".to_owned()], None));
    rig.interest(&[], &[(Endpoints, "e")]);
    rig.wait(5);
    rig.want(&[(Endpoints, "e")]);
    assert!(rig.told().is_empty());
    assert!(rig.machine.next_deadline().is_some());
}
