//! Rules 9, 22, 30 to 32 of `docs/xds-client-rules.md`: servers, their failures and fallback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;

use super::{Action, End, Outcome, Request, Response, Session};
use crate::resources::{Change, Progress, ResourceKey, ResourceType};
use crate::xds::bootstrap::{Node, Server};
use crate::xds::names::type_url;
use crate::xds::rig::{Cluster, Listener, good};

struct Bench {
    session: Session,
    now: Instant,
    told: Vec<String>,
    reasons: Vec<String>,
}

fn bench(servers: &[&str]) -> Bench {
    let servers: Vec<Server> = servers.iter().map(|uri| Server::new(*uri)).collect();
    let (node, now) = (Node { id: "node-1".into(), ..Node::default() }, Instant::now());
    let session = Session::new(&servers, &node, Arc::default(), now, 1);
    Bench { session, now, told: Vec::new(), reasons: Vec::new() }
}

fn keys(names: &[(ResourceType, &str)]) -> Vec<ResourceKey> {
    names.iter().map(|(kind, name)| ResourceKey::new(*kind, *name)).collect()
}

impl Bench {
    fn take(&mut self, outcome: Outcome) -> Vec<String> {
        for change in outcome.changes {
            match change {
                Change::Put(key, _) => self.told.push(format!("put {}", key.name)),
                Change::Absent(key, reason) => {
                    self.told.push(format!("absent {}", key.name));
                    self.reasons.push(reason.to_string());
                }
            }
        }
        let shown = |action| match action {
            Action::Connect(index) => format!("connect {index}"),
            Action::Disconnect(index) => format!("disconnect {index}"),
            Action::Send(index, request) => match *request {
                Request::Sotw(request) => {
                    let kind = request.type_url.rsplit('.').next().unwrap().to_owned();
                    format!("{index}: {kind} [{}] v={:?}", request.resource_names.join(","), request.version_info)
                }
                Request::Delta(_) => format!("{index}: delta"),
            },
        };
        outcome.actions.into_iter().map(shown).collect()
    }

    fn want(&mut self, names: &[(ResourceType, &str)]) -> Vec<String> {
        let progress = Progress { subscribe: keys(names), unsubscribe: vec![] };
        let outcome = self.session.interest(&progress, self.now);
        self.take(outcome)
    }

    fn drop_interest(&mut self, names: &[(ResourceType, &str)]) -> Vec<String> {
        let progress = Progress { subscribe: vec![], unsubscribe: keys(names) };
        let outcome = self.session.interest(&progress, self.now);
        self.take(outcome)
    }

    fn opened(&mut self, server: usize) -> Vec<String> {
        let outcome = self.session.opened(server, self.now);
        self.take(outcome)
    }

    fn closed(&mut self, server: usize) -> Vec<String> {
        let outcome = self.session.closed(server, End::Closed("reset".into()), self.now);
        self.take(outcome)
    }

    fn refused(&mut self, server: usize) -> Vec<String> {
        let outcome = self.session.closed(server, End::Refused("connection refused".into()), self.now);
        self.take(outcome)
    }

    fn responds(&mut self, server: usize, kind: ResourceType, version: &str, resources: Vec<Any>) -> Vec<String> {
        let response = Response::Sotw(DiscoveryResponse {
            version_info: version.into(),
            nonce: version.into(),
            type_url: type_url(kind).into(),
            resources,
            ..Default::default()
        });
        let outcome = self.session.response(server, response, self.now);
        self.take(outcome)
    }

    /// Runs until the next attempt to connect; how long that took.
    fn reconnect(&mut self) -> Duration {
        let start = self.now;
        while self.next().1 != ["connect 0"] {}
        self.now - start
    }

    /// Runs to the next deadline.
    fn next(&mut self) -> (Duration, Vec<String>) {
        let at = self.session.next_deadline().expect("a deadline");
        let waited = at.saturating_duration_since(self.now);
        self.now = self.now.max(at);
        let outcome = self.session.tick(self.now);
        (waited, self.take(outcome))
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

#[test]
fn nothing_is_connected_before_something_is_wanted() {
    let mut bench = bench(&["a:1"]);
    assert_eq!(bench.session.next_deadline(), None);
    assert_eq!(bench.want(&[(Listener, "l")]), ["connect 0"]);
    assert!(bench.want(&[(Cluster, "c")]).is_empty());
    assert_eq!(bench.opened(0), [r#"0: Listener [l] v="""#, r#"0: Cluster [c] v="""#]);
}

#[test]
fn client_rule_09_failures_back_off_and_a_response_resets_it() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Listener, "l")]);
    let mut waits = Vec::new();
    for _ in 0..5 {
        bench.opened(0);
        bench.closed(0);
        waits.push(bench.reconnect().as_secs_f64());
    }
    assert!(waits[0] < 1.3 && waits[4] > 5.0, "{waits:?}");
    bench.opened(0);
    bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
    bench.closed(0);
    assert!(bench.reconnect() < Duration::from_millis(1300));
}

#[test]
fn a_server_that_has_nothing_new_to_tell_is_connected_and_does_not_fail_when_its_stream_ends() {
    let mut bench = bench(&["a:1"]);
    let stands = |bench: &Bench| bench.session.servers().next().map(|server| (server.connected, server.failures));
    bench.want(&[(Listener, "l")]);
    bench.opened(0);
    bench.session.taken(0);
    assert_eq!(stands(&bench), Some((false, 0)), "it has told nothing yet");
    bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
    assert_eq!(stands(&bench), Some((true, 0)));
    bench.closed(0);
    for (after, failures) in [(1, 1), (60, 1), (1, 2)] {
        bench.reconnect();
        bench.opened(0);
        assert_eq!(stands(&bench).map(|(connected, _)| connected), Some(false));
        bench.session.taken(0);
        assert_eq!(stands(&bench).map(|(connected, _)| connected), Some(true));
        bench.now += Duration::from_secs(after);
        bench.closed(0);
        assert_eq!(stands(&bench), Some((false, failures)), "after {after} s");
    }
}

#[test]
fn client_rule_09_a_message_that_cannot_be_read_backs_off_although_others_were_answered() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Listener, "l")]);
    let mut last = Duration::ZERO;
    for _ in 0..6 {
        bench.opened(0);
        bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
        let outcome = bench.session.closed(0, End::Unreadable("too large".into()), bench.now);
        bench.take(outcome);
        last = bench.reconnect();
    }
    assert!(last > Duration::from_secs(8), "{last:?}");
}

#[test]
fn client_rule_22_a_listener_that_nobody_answers_for_is_absent_and_what_is_known_is_kept() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Listener, "l"), (Cluster, "c")]);
    let start = bench.now;
    bench.refused(0);
    // A control plane that is started a moment after the application fails no request.
    while bench.told.is_empty() {
        if bench.next().1 == ["connect 0"] {
            bench.refused(0);
        }
    }
    assert_eq!((bench.told(), bench.now - start), (vec!["absent l".to_owned()], Duration::from_secs(15)));
    let reason = &bench.reasons[0];
    for part in ["listener l", "connection refused", "a:1", "node-1"] {
        assert!(reason.contains(part), "{reason}");
    }
    // It is told once, and who asks now learns it now.
    bench.want(&[(Listener, "m")]);
    assert_eq!(bench.told(), ["absent m"]);
    bench.reconnect();
    bench.opened(0);
    bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
    assert_eq!(bench.told(), ["put l"]);
    bench.closed(0);
    for _ in 0..20 {
        bench.next();
        bench.refused(0);
    }
    assert!(bench.told().is_empty());
}

#[test]
fn client_rule_22_an_outage_of_the_past_is_no_reason_to_fail() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Listener, "l")]);
    bench.refused(0);
    bench.drop_interest(&[(Listener, "l")]);
    while bench.session.next_deadline().is_some() {
        bench.next();
    }
    assert_eq!(bench.want(&[(Listener, "l")]), ["connect 0"]);
    assert!(bench.told().is_empty());
}

#[test]
fn client_rule_32_a_stream_that_ends_after_a_response_is_no_error() {
    let mut bench = bench(&["a:1", "b:1"]);
    bench.want(&[(Listener, "l"), (Listener, "m")]);
    bench.opened(0);
    bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
    assert!(bench.closed(0).is_empty());
    assert_eq!(bench.told(), ["put l"]);
    assert_eq!(bench.session.servers().next().unwrap().error, None);
    assert_eq!(bench.next().1, ["connect 0"]);
}

#[test]
fn client_rule_31_the_next_server_is_asked_when_the_first_fails_and_something_is_unknown() {
    let mut bench = bench(&["a:1", "b:1", "c:1"]);
    bench.want(&[(Listener, "l")]);
    assert_eq!(bench.refused(0), ["connect 1"]);
    assert!(bench.told().is_empty());
    assert_eq!(bench.refused(1), ["connect 2"]);
    assert!(bench.told().is_empty());
    assert_eq!(bench.opened(2), [r#"2: Listener [l] v="""#]);
    bench.responds(2, Listener, "9", vec![good(Listener, "l", 1)]);
    assert_eq!(bench.told(), ["put l"]);
    // A name more is asked of the server in use.
    assert_eq!(bench.want(&[(Listener, "m")]), [r#"2: Listener [l,m] v="9""#]);
}

#[test]
fn client_rule_31_errors_are_told_only_when_every_server_has_failed() {
    let mut bench = bench(&["a:1", "b:1"]);
    bench.want(&[(Listener, "l")]);
    bench.refused(0);
    bench.now += Duration::from_secs(100);
    bench.session.tick(bench.now);
    assert!(bench.told().is_empty());
    bench.refused(1);
    bench.now += Duration::from_secs(15);
    let outcome = bench.session.tick(bench.now);
    bench.take(outcome);
    assert_eq!(bench.told(), ["absent l"]);
}

#[test]
fn client_rule_31_nothing_falls_back_while_everything_is_known() {
    let mut bench = bench(&["a:1", "b:1"]);
    bench.want(&[(Listener, "l"), (Listener, "none")]);
    bench.opened(0);
    bench.responds(0, Listener, "1", vec![good(Listener, "l", 1)]);
    // That a resource does not exist is known as well.
    bench.next();
    assert_eq!(bench.told(), ["put l", "absent none"]);
    bench.closed(0);
    bench.next();
    assert!(bench.refused(0).is_empty());
    // Something unknown is wanted while the first server is down.
    assert_eq!(bench.want(&[(Listener, "new")]), ["connect 1"]);
}

#[test]
fn client_rule_31_the_first_answer_of_a_better_server_sends_the_others_away() {
    let mut bench = bench(&["a:1", "b:1"]);
    bench.want(&[(Listener, "l")]);
    bench.refused(0);
    bench.opened(1);
    bench.responds(1, Listener, "b1", vec![good(Listener, "l", 1)]);
    assert_eq!(bench.next().1, ["connect 0"]);
    // An open stream is not enough; versions of one server mean nothing to the other.
    assert_eq!(bench.opened(0), [r#"0: Listener [l] v="""#]);
    let actions = bench.responds(0, Listener, "a1", vec![good(Listener, "l", 2)]);
    assert_eq!(actions, [r#"0: Listener [l] v="a1""#, "disconnect 1"]);
    assert_eq!(bench.told(), ["put l", "put l"]);
    assert!(bench.responds(1, Listener, "b2", vec![good(Listener, "l", 1)]).is_empty());
    // Next time it works the same way.
    bench.closed(0);
    bench.want(&[(Listener, "m")]);
    bench.next();
    assert_eq!(bench.refused(0), ["connect 1"]);
}

#[test]
fn a_session_that_nobody_wants_anything_of_does_not_reconnect() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Listener, "l")]);
    bench.opened(0);
    assert_eq!(bench.drop_interest(&[(Listener, "l")]), [r#"0: Listener [] v="""#]);
    bench.closed(0);
    assert_eq!(bench.session.next_deadline(), None);
    assert_eq!(bench.want(&[(Listener, "l")]), ["connect 0"]);
}

#[test]
fn hazard_x2_a_version_that_is_rejected_again_and_again_causes_one_request_each() {
    let mut bench = bench(&["a:1"]);
    bench.want(&[(Cluster, "c")]);
    bench.opened(0);
    for version in ["1", "1", "2"] {
        let actions = bench.responds(0, Cluster, version, vec![crate::xds::rig::bad(Cluster, "c")]);
        assert_eq!(actions.len(), 1);
    }
    assert_eq!(bench.told(), ["absent c"]);
    assert_eq!(bench.session.servers().next().unwrap().rejected, 3);
}
