//! A test for every rule of the server checklist that the two state machines carry; the table of rules is
//! in `docs/xds-server-rules.md`.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc;

use crate::catalog::{ClientClass, Kind};
use crate::serve::protocol::session::{Answer, Response, Variant};
use crate::serve::protocol::tests::fixture::{PACE, Shelf, Talk, delta_request, said, strings, told};

use Kind::{Cluster, Endpoints, Listener, Route};

fn whole(version: &str) -> Shelf {
    Shelf::default()
        .with(Cluster, "a", version)
        .with(Endpoints, "a", version)
        .with(Listener, "l", version)
        .with(Route, "r", version)
}

/// A delta client that holds `l`, `r`, `a` and the endpoints of `a`, and has accepted them.
fn settled_delta(shelf: &Shelf) -> Talk {
    let mut talk = Talk::delta(shelf);
    for (kind, name) in [(Listener, "l"), (Route, "r"), (Cluster, "a"), (Endpoints, "a")] {
        let answers = talk.subscribe(kind, &[name]);
        talk.finish(answers);
    }
    talk
}

/// The same for a state-of-the-world client.
fn settled_sotw(shelf: &Shelf) -> (Talk, Vec<Response>) {
    let mut talk = Talk::sotw(shelf);
    let mut last = Vec::new();
    for (kind, name) in [(Listener, "l"), (Route, "r"), (Cluster, "a"), (Endpoints, "a")] {
        let answers = talk.ask(kind, &[name], None);
        last.extend(talk.finish(answers));
    }
    (talk, last)
}

#[test]
fn server_rule_01_a_change_travels_clusters_endpoints_listeners_routes_and_the_last_two_wait_for_what_they_refer_to() {
    for mut talk in [settled_delta(&whole("1")), settled_sotw(&whole("1")).0] {
        let sent = talk.publish(&whole("2"));
        assert_eq!(told(&sent), ["Cluster a=2", "Endpoints a=2"]);
        assert!(talk.ack(&sent[1]).is_empty(), "the cluster is not acknowledged");
        let mut sent = talk.ack(&sent[0]);
        for expected in ["Listener l=2", "Route r=2"] {
            assert_eq!(told(&sent), [expected]);
            sent = talk.ack(&sent[0]);
        }
        assert!(sent.is_empty());
    }
}

#[test]
fn server_rule_01_a_client_that_neither_acks_nor_nacks_holds_back_the_next_kind_for_the_grace_only() {
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("2"));
    talk.ack(&sent[1]);
    assert!(talk.wait(PACE.grace - Duration::from_millis(1)).is_empty());
    assert_eq!(told(&talk.wait(Duration::from_millis(1))), ["Listener l=2"]);
}

#[test]
fn server_rule_01_a_refused_cluster_does_not_hold_back_the_good_rest() {
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("2"));
    talk.ack(&sent[1]);
    assert_eq!(told(&talk.nack(&sent[0], "no such policy")), ["Listener l=2"]);
}

#[test]
fn server_rule_02_a_cluster_is_removed_only_after_the_route_without_it_is_acked_and_all_is_quiet() {
    for mut talk in [settled_delta(&whole("1")), settled_sotw(&whole("1")).0] {
        let next = whole("1").with(Route, "r", "2").without(Cluster, "a").without(Endpoints, "a");
        let sent = talk.publish(&next);
        assert_eq!(told(&sent), ["Route r=2"]);
        assert!(talk.ack(&sent[0]).is_empty(), "the client still has to find the new cluster");
        let removed = talk.wait(PACE.linger);
        assert_eq!(told(&removed), ["Cluster !a", "Endpoints !a"]);
    }
}

#[test]
fn server_rule_02_a_removal_waits_no_longer_than_the_grace_for_a_silent_client() {
    let mut talk = settled_delta(&whole("1"));
    talk.publish(&whole("1").with(Route, "r", "2").without(Cluster, "a"));
    assert!(talk.wait(PACE.grace - Duration::from_millis(1)).is_empty());
    assert_eq!(told(&talk.wait(Duration::from_millis(1))), ["Cluster !a"]);
}

#[test]
fn server_rule_02_a_refused_route_keeps_the_clusters_that_the_old_one_uses() {
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("1").with(Route, "r", "2").without(Cluster, "a"));
    assert!(talk.nack(&sent[0], "bad regex").is_empty());
    assert!(talk.wait(10 * PACE.grace).is_empty());
    let good = talk.publish(&whole("1").with(Route, "r", "3").without(Cluster, "a"));
    assert_eq!(told(&good), ["Route r=3"]);
    assert!(talk.ack(&good[0]).is_empty());
    assert_eq!(told(&talk.wait(PACE.linger)), ["Cluster !a"]);
}

#[test]
fn server_rule_02_a_route_refused_by_itself_stays_so_when_one_refused_with_it_is_accepted() {
    let both = |r: &str, q: &str| whole("1").with(Route, "r", r).with(Route, "q", q);
    let mut talk = Talk::open(Variant::Delta, ClientClass::Library, &both("1", "1"), Duration::ZERO);
    for (kind, names) in [(Listener, vec!["l"]), (Route, vec!["q", "r"]), (Cluster, vec!["a"])] {
        let answers = talk.subscribe(kind, &names);
        talk.finish(answers);
    }
    let sent = talk.publish(&both("2", "2").without(Cluster, "a"));
    assert!(talk.nack(&sent[0], "bad regex").is_empty());
    assert!(talk.wait(PACE.nack_pause).is_empty());
    let alone = talk.publish(&both("3", "2").without(Cluster, "a"));
    assert_eq!(told(&alone), ["Route r=3"]);
    assert!(talk.nack(&alone[0], "bad regex").is_empty());
    assert!(talk.wait(PACE.nack_pause).is_empty());
    let other = talk.publish(&both("3", "3").without(Cluster, "a"));
    assert_eq!(told(&other), ["Route q=3"]);
    assert!(talk.ack(&other[0]).is_empty());
    assert!(talk.wait(10 * PACE.grace).is_empty(), "`r` still uses it");
    let good = talk.publish(&both("4", "3").without(Cluster, "a"));
    assert!(talk.ack(&good[0]).is_empty());
    assert_eq!(told(&talk.wait(PACE.linger)), ["Cluster !a"]);
}

#[test]
fn server_rule_02_each_refused_route_keeps_the_clusters_until_it_is_accepted_itself() {
    // (what the refusal says, whether accepting `r` settles that of `q` too)
    let cases = [
        ("r: bad regex; q: bad regex", false),
        // It names neither, and `q`, if it was not the cause, is never sent again.
        ("bad regex", true),
    ];
    for (text, settles_all) in cases {
        for variant in [Variant::Delta, Variant::Sotw] {
            let both = |r: &str, q: &str| whole("1").with(Route, "r", r).with(Route, "q", q);
            let mut talk = Talk::open(variant, ClientClass::Grpc, &both("1", "1"), Duration::ZERO);
            for (kind, names) in [(Listener, vec!["l"]), (Route, vec!["q", "r"]), (Cluster, vec!["a"])] {
                let answers = match variant {
                    Variant::Delta => talk.subscribe(kind, &names),
                    Variant::Sotw => talk.ask(kind, &names, None),
                };
                talk.finish(answers);
            }
            let sent = talk.publish(&both("2", "2").without(Cluster, "a"));
            assert_eq!(told(&sent), ["Route q=2 r=2"]);
            assert!(talk.nack(&sent[0], text).is_empty());
            assert!(talk.wait(10 * PACE.grace).is_empty());
            let good = talk.publish(&both("3", "2").without(Cluster, "a"));
            assert_eq!(told(&good), ["Route r=3"]);
            assert!(talk.ack(&good[0]).is_empty());
            let after = talk.wait(10 * PACE.grace);
            if settles_all {
                assert_eq!(told(&after), ["Cluster !a"]);
                continue;
            }
            assert!(after.is_empty(), "{variant:?}: `q` still uses it: {:?}", told(&after));
            let good = talk.publish(&both("3", "3").without(Cluster, "a"));
            assert_eq!(told(&good), ["Route q=3"]);
            assert!(talk.ack(&good[0]).is_empty());
            assert_eq!(told(&talk.wait(PACE.linger)), ["Cluster !a"]);
        }
    }
}

#[test]
fn server_rule_02_a_whole_set_response_repeats_a_cluster_whose_removal_is_held_back() {
    let (mut talk, held) = settled_sotw(&whole("1"));
    let next = whole("1").with(Route, "r", "2").without(Cluster, "a").with(Cluster, "b", "1");
    let route = talk.publish(&next);
    assert_eq!(told(&route), ["Route r=2"]);
    talk.ack(&route[0]);
    let cluster = held.iter().find(|response| response.kind == Cluster);
    let answer = talk.ask(Cluster, &["a", "b"], cluster);
    assert_eq!(told(&answer), ["Cluster a=1 b=1"], "leaving `a` out would delete it");
    talk.ack(&answer[0]);
    assert_eq!(told(&talk.wait(PACE.linger)), ["Cluster b=1 !a"]);
}

#[test]
fn server_rule_02_a_reconnecting_client_keeps_a_cluster_that_is_gone_until_it_has_the_new_route() {
    let next = whole("2").without(Cluster, "a").with(Cluster, "b", "1");
    let mut talk = Talk::sotw(&next);
    talk.send_sotw(&DiscoveryRequest {
        type_url: Cluster.type_url().to_owned(),
        resource_names: strings(&["a"]),
        version_info: "an earlier server's".to_owned(),
        ..DiscoveryRequest::default()
    });
    assert!(talk.drain().is_empty(), "a response without `a` would delete it");
    let route = talk.ask(Route, &["r"], None);
    talk.ack(&route[0]);
    assert_eq!(told(&talk.wait(PACE.linger)), ["Cluster !a"]);
}

#[test]
fn server_rule_02_what_comes_back_before_it_was_removed_is_never_removed() {
    let mut talk = settled_delta(&whole("1"));
    assert!(talk.publish(&whole("1").without(Cluster, "a")).is_empty());
    assert!(talk.publish(&whole("1")).is_empty());
    assert!(talk.wait(10 * PACE.grace).is_empty());
}

#[test]
fn server_rule_03_envoy_gets_endpoints_again_after_its_cluster_changed_though_they_did_not() {
    for variant in [Variant::Sotw, Variant::Delta] {
        for (class, expected) in [(ClientClass::Envoy, vec!["Endpoints a=1"]), (ClientClass::Grpc, vec![])] {
            let mut talk = Talk::open(variant, class, &whole("1"), Duration::ZERO);
            for kind in [Cluster, Endpoints] {
                let answers = match variant {
                    Variant::Sotw => talk.ask(kind, &["a"], None),
                    Variant::Delta => talk.subscribe(kind, &["a"]),
                };
                talk.finish(answers);
            }
            let sent = talk.publish(&whole("1").with(Cluster, "a", "2"));
            // An Envoy answers for the cluster once it has them.
            assert_eq!(told(&sent), [&["Cluster a=2"], &expected[..]].concat(), "{class:?} {variant:?}");
        }
    }
}

#[test]
fn server_rule_03_envoy_gets_the_endpoints_of_a_cluster_that_warms_though_the_next_change_of_clusters_waits_for_its_answer()
 {
    for variant in [Variant::Sotw, Variant::Delta] {
        let shelf = |clusters: &str| {
            ["a", "b"]
                .iter()
                .fold(Shelf::default(), |shelf, name| shelf.with(Cluster, name, clusters).with(Endpoints, name, "1"))
        };
        let mut talk = Talk::open(variant, ClientClass::Envoy, &shelf("1"), Duration::ZERO);
        for kind in [Cluster, Endpoints] {
            let answers = match variant {
                Variant::Sotw => talk.ask(kind, &["a", "b"], None),
                Variant::Delta => talk.subscribe(kind, &["a", "b"]),
            };
            talk.finish(answers);
        }
        // It has not yet answered for endpoints of its own accord when one of its clusters changes, and then the other.
        let endpoints = talk.publish(&shelf("1").with(Endpoints, "a", "2"));
        assert_eq!(told(&endpoints), ["Endpoints a=2"]);
        let sent = talk.publish(&shelf("1").with(Endpoints, "a", "2").with(Cluster, "a", "2"));
        assert!(told(&sent)[0].starts_with("Cluster a=2") && sent.len() == 1, "{variant:?} {:?}", told(&sent));
        let newest = shelf("2").with(Endpoints, "a", "2").with(Endpoints, "b", "2");
        assert!(talk.publish(&newest).is_empty());
        let awaited = talk.ack(&endpoints[0]);
        assert_eq!(told(&awaited), ["Endpoints a=2"], "{variant:?}: those of b belong to its next cluster");
        assert!(talk.ack(&awaited[0]).is_empty());
        let rest = talk.ack(&sent[0]);
        let (first, second) = (told(&rest)[0].clone(), told(&rest)[1].clone());
        assert!(first.starts_with("Cluster ") && first.ends_with("b=2"), "{variant:?} {first}");
        assert!(second.starts_with("Endpoints ") && second.contains("b=2"), "{variant:?} {second}");
    }
}

#[test]
fn server_rule_04_a_reference_without_a_target_holds_nothing_back() {
    let mut talk = Talk::delta(&Shelf::default().with(Route, "names a cluster that is not there", "1"));
    assert_eq!(told(&talk.subscribe(Route, &["names a cluster that is not there"])).len(), 1);
    assert_eq!(told(&talk.subscribe(Cluster, &["missing"])), ["Cluster !missing"]);
}

#[test]
fn server_rule_05_nonces_of_a_kind_only_grow_and_carry_their_stream() {
    let mut talk = Talk::delta(&whole("1"));
    let mut numbers = Vec::new();
    for _ in 0..3 {
        for response in talk.subscribe(Cluster, &["a"]) {
            let (tag, number) = response.nonce.split_once('-').expect("tag and number");
            assert_eq!(tag, "beef");
            numbers.push(number.parse::<u64>().expect("a number"));
        }
    }
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(talk.subscribe(Endpoints, &["a"])[0].nonce, "beef-1", "every kind counts for itself");
}

#[test]
fn server_rule_05_a_stale_nonce_is_ignored_in_sotw_but_its_subscription_applies_in_delta() {
    let shelf = whole("1").with(Cluster, "b", "1");
    let mut talk = Talk::sotw(&shelf);
    let first = talk.ask(Cluster, &["a"], None);
    let second = talk.ask(Cluster, &["a", "b"], Some(&first[0]));
    assert_eq!(told(&second), ["Cluster a=1 b=1"]);
    let heard = talk.answer(&first[0], Some("too late"));
    assert_eq!(heard.answer, None);
    assert!(talk.ask(Cluster, &[], Some(&first[0])).is_empty());
    assert!(talk.session.ledger(Cluster).0.is_subscribed("b"), "a stale list changes nothing");

    let mut talk = Talk::delta(&shelf);
    talk.subscribe(Cluster, &["a"]);
    let stale =
        DeltaDiscoveryRequest { response_nonce: "beef-77".to_owned(), ..delta_request(Cluster, &["b"], &["a"]) };
    assert_eq!(talk.send_delta(&stale).answer, None);
    assert_eq!(told(&talk.drain()), ["Cluster b=1"]);
    assert!(!talk.session.ledger(Cluster).0.is_subscribed("a"));
}

#[test]
fn server_rule_05_what_a_stale_list_left_out_is_sent_again_when_the_next_list_has_it() {
    let mut talk = Talk::sotw(&whole("1"));
    let first = talk.ask(Endpoints, &["a"], None);
    let second = talk.ask(Endpoints, &["a", "b"], Some(&first[0]));
    assert_eq!(told(&second), ["Endpoints !b"]);
    assert!(talk.ask(Endpoints, &["b"], Some(&first[0])).is_empty(), "stale, and `a` is dropped");
    assert!(talk.ask(Endpoints, &["a", "b"], Some(&first[0])).is_empty(), "stale");
    assert_eq!(told(&talk.ask(Endpoints, &["a", "b"], Some(&second[0]))), ["Endpoints a=1"]);
}

#[test]
fn server_rule_05_a_nonce_of_another_stream_is_not_an_answer() {
    let mut talk = Talk::delta(&whole("1"));
    talk.subscribe(Cluster, &["a"]);
    let foreign = DeltaDiscoveryRequest { response_nonce: "cafe-1".to_owned(), ..delta_request(Cluster, &[], &[]) };
    assert_eq!(talk.send_delta(&foreign).answer, None);
}

#[test]
fn server_rule_06_sotw_answers_the_first_request_a_gained_name_and_a_changed_version_and_nothing_else() {
    let shelf = whole("1").with(Route, "s", "1");
    let mut talk = Talk::sotw(&shelf);
    let first = talk.ask(Route, &["r"], None);
    assert_eq!(told(&first), ["Route r=1"], "never answered");
    assert!(talk.ack(&first[0]).is_empty(), "an ACK is no question");
    let gained = talk.ask(Route, &["r", "s"], Some(&first[0]));
    assert_eq!(told(&gained), ["Route s=1"], "a gained name");
    assert!(talk.ask(Route, &["s"], Some(&gained[0])).is_empty(), "a lost name is no question");
    let again = talk.ask(Route, &["r", "s"], Some(&gained[0]));
    assert_eq!(told(&again), ["Route r=1"], "given up and asked for again, though its version is the same");
    talk.ack(&again[0]);
    assert!(talk.publish(&shelf).is_empty(), "the same versions");
    assert_eq!(told(&talk.publish(&shelf.with(Route, "s", "2"))), ["Route s=2"], "a changed version");
}

#[test]
fn server_rule_06_a_whole_set_kind_is_always_sent_whole() {
    let shelf = whole("1").with(Cluster, "b", "1").with(Listener, "m", "1");
    let mut talk = Talk::sotw(&shelf);
    for (kind, names) in [(Cluster, ["a", "b"]), (Listener, ["l", "m"])] {
        let first = talk.ask(kind, &names[..1], None);
        let second = talk.ask(kind, &names, Some(&first[0]));
        assert_eq!(second[0].resources.len(), 2, "what is left out of {kind:?} counts as deleted");
        talk.ack(&second[0]);
    }
    let sent = talk.publish(&shelf.without(Listener, "l"));
    assert_eq!(told(&sent), ["Listener m=1 !l"]);
}

#[test]
fn server_rule_07_an_unknown_name_is_answered_at_once_remembered_and_pushed_when_it_is_created() {
    for kind in Kind::ALL {
        let mut talk = Talk::delta(&Shelf::default());
        let answer = talk.subscribe(kind, &["later"]);
        assert_eq!(said(&answer[0]), ["!later"]);
        talk.ack(&answer[0]);
        assert_eq!(said(&talk.publish(&Shelf::default().with(kind, "later", "1"))[0]), ["later=1"]);

        let mut talk = Talk::sotw(&Shelf::default());
        let answer = talk.ask(kind, &["later"], None);
        assert_eq!(said(&answer[0]), ["!later"]);
        talk.ack(&answer[0]);
        assert_eq!(said(&talk.publish(&Shelf::default().with(kind, "later", "1"))[0]), ["later=1"]);
    }
}

#[test]
fn server_rule_08_a_subset_of_what_exists_is_answered_without_waiting_for_the_rest_to_be_asked_for() {
    let shelf = whole("1").with(Cluster, "b", "1").with(Cluster, "c", "1");
    assert_eq!(told(&Talk::sotw(&shelf).ask(Cluster, &["b"], None)), ["Cluster b=1"]);
    assert_eq!(told(&Talk::sotw(&shelf).ask(Cluster, &["b", "not there"], None)), ["Cluster b=1 !not there"]);
    assert_eq!(told(&Talk::delta(&shelf).subscribe(Cluster, &["c"])), ["Cluster c=1"]);
}

#[test]
fn server_rule_09_a_name_subscribed_again_in_delta_is_sent_again() {
    let mut talk = settled_delta(&whole("1"));
    assert_eq!(told(&talk.subscribe(Cluster, &["a"])), ["Cluster a=1"]);
    talk.unsubscribe(Cluster, &["a"]);
    assert_eq!(told(&talk.subscribe(Cluster, &["a"])), ["Cluster a=1"]);
    assert_eq!(told(&talk.subscribe(Cluster, &["nowhere"])), ["Cluster !nowhere"]);
    assert_eq!(told(&talk.subscribe(Cluster, &["nowhere"])), ["Cluster !nowhere"]);
}

#[test]
fn server_rule_09_a_name_in_both_lists_of_a_request_ends_up_subscribed_and_answered() {
    let mut talk = settled_delta(&whole("1"));
    talk.send_delta(&delta_request(Cluster, &["a"], &["a"]));
    assert_eq!(told(&talk.drain()), ["Cluster a=1"]);
}

#[test]
fn server_rule_10_an_empty_first_request_means_everything_for_envoy_and_nothing_for_grpc_and_the_library() {
    let shelf = whole("1").with(Cluster, "b", "1");
    for variant in [Variant::Sotw, Variant::Delta] {
        for class in [ClientClass::Envoy, ClientClass::Grpc, ClientClass::Library] {
            for (kind, everything) in [(Cluster, "Cluster a=1 b=1"), (Listener, "Listener l=1"), (Route, "")] {
                let mut talk = Talk::open(variant, class, &shelf, Duration::ZERO);
                let answers = match variant {
                    Variant::Sotw => talk.ask(kind, &[], None),
                    Variant::Delta => talk.subscribe(kind, &[]),
                };
                match class == ClientClass::Envoy && !everything.is_empty() {
                    true => assert_eq!(told(&answers), [everything]),
                    false => assert!(answers.is_empty(), "{class:?} {kind:?}"),
                }
            }
        }
    }
}

#[test]
fn server_rule_10_a_wildcard_client_gets_what_is_created_and_loses_what_is_removed() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut talk = Talk::open(variant, ClientClass::Envoy, &whole("1"), Duration::ZERO);
        let answers = match variant {
            Variant::Sotw => talk.ask(Cluster, &["*"], None),
            Variant::Delta => talk.subscribe(Cluster, &["*"]),
        };
        talk.finish(answers);
        let created = talk.publish(&whole("1").with(Cluster, "b", "1"));
        assert!(told(&created)[0].contains("b=1"));
        talk.finish(created);
        let removed = talk.publish(&whole("1"));
        assert!(removed.is_empty(), "held back");
        assert!(told(&talk.wait(PACE.linger))[0].contains("!b"));
    }
}

#[test]
fn server_rule_10_a_wildcard_with_nothing_to_give_is_answered_all_the_same() {
    let mut talk = Talk::open(Variant::Sotw, ClientClass::Envoy, &Shelf::default(), Duration::ZERO);
    assert_eq!(told(&talk.ask(Cluster, &[], None)), ["Cluster "]);
}

#[test]
fn server_rule_10_an_explicit_name_given_up_under_a_wildcard_is_sent_again() {
    let mut talk = Talk::open(Variant::Delta, ClientClass::Envoy, &whole("1"), Duration::ZERO);
    let answers = talk.subscribe(Cluster, &["*", "a"]);
    talk.finish(answers);
    assert_eq!(told(&talk.unsubscribe(Cluster, &["a"])), ["Cluster a=1"]);
    assert!(talk.unsubscribe(Cluster, &["*"]).is_empty());
    assert!(talk.publish(&whole("2")).is_empty(), "nothing is subscribed to any more");
}

#[test]
fn server_rule_11_on_reconnect_only_differences_and_removals_are_sent() {
    let shelf = Shelf::default().with(Cluster, "same", "1").with(Cluster, "changed", "2").with(Cluster, "new", "1");
    let mut talk = Talk::delta(&shelf);
    let brought = [("same", "1"), ("changed", "1"), ("gone", "1")];
    talk.send_delta(&DeltaDiscoveryRequest {
        initial_resource_versions: brought.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        ..delta_request(Cluster, &["same", "changed", "gone", "new"], &[])
    });
    let answers = talk.drain();
    let all = talk.finish(answers);
    assert_eq!(told(&all), ["Cluster new=1", "Cluster changed=2", "Cluster !gone"]);
}

#[test]
fn server_rule_11_versions_are_equal_on_every_replica() {
    let [one, other] = [1, 2].map(|_| {
        let answer = Talk::sotw(&whole("1").with(Cluster, "b", "1")).ask(Cluster, &["b", "a"], None);
        answer[0].version.clone()
    });
    assert_eq!(one, other);
}

#[test]
fn server_rule_12_every_stream_carries_the_same_bytes() {
    let shelf = whole("1");
    let one = Talk::delta(&shelf).subscribe(Cluster, &["a"]);
    let other = Talk::sotw(&shelf).ask(Cluster, &["a"], None);
    assert_eq!(one[0].resources[0].body.as_ptr(), other[0].resources[0].body.as_ptr());
}

#[test]
fn server_rule_13_a_slow_client_skips_to_the_newest_version() {
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("2").without(Listener, "l").without(Route, "r"));
    for version in 3..1000 {
        assert!(talk.publish(&whole(&version.to_string())).is_empty(), "the first push is not answered yet");
    }
    assert_eq!(told(&talk.ack(&sent[0])), ["Cluster a=999"]);
}

#[test]
fn server_rule_13_large_answers_are_divided() {
    let mut shelf = Shelf::default();
    let names: Vec<String> = (0..64).map(|n| format!("cluster-{n:02}")).collect();
    for name in &names {
        shelf.put(Endpoints, name, "1").body = bytes::Bytes::from(vec![0; 16 << 10]);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut talk = Talk::delta(&shelf);
    let answers = talk.subscribe(Endpoints, &names);
    assert!(answers.len() > 1 && answers.iter().all(|answer| answer.resources.len() <= 16));
    let total: usize = talk.finish(answers).iter().map(|answer| answer.resources.len()).sum();
    assert_eq!(total, 64);
}

#[test]
fn server_rule_13_the_first_answer_to_a_wildcard_has_every_cluster() {
    let mut shelf = Shelf::default();
    let put = |shelf: &mut Shelf, version: &str| {
        for n in 0..64 {
            shelf.put(Cluster, &format!("cluster-{n:02}"), version).body = bytes::Bytes::from(vec![0; 16 << 10]);
        }
    };
    put(&mut shelf, "1");
    let mut talk = Talk::delta(&shelf);
    let first = talk.subscribe(Cluster, &["*"]);
    assert_eq!(first.iter().map(|answer| answer.resources.len()).collect::<Vec<_>>(), [64]);
    assert!(talk.ack(&first[0]).is_empty());
    put(&mut shelf, "2");
    let changed = talk.publish(&shelf);
    assert!(changed.iter().all(|answer| answer.resources.len() <= 16), "what changes later is divided");
}

#[test]
fn server_rule_15_a_nack_is_told_by_its_error_detail_and_kept_with_text_and_names() {
    for mut talk in [settled_delta(&whole("1")), settled_sotw(&whole("1")).0] {
        let sent = talk.publish(&whole("2"));
        let heard = talk.answer(&sent[0], Some("cluster \"a\": no such policy"));
        assert_eq!(heard.answer, Some(Answer::Nack(Cluster, "cluster \"a\": no such policy".to_owned())));
        let reports = talk.session.reports();
        let report = reports.iter().find(|report| report.kind == Cluster).expect("subscribed");
        let nack = report.nack.as_ref().expect("refused");
        assert_eq!((&*nack.text, &*nack.names[0]), ("cluster \"a\": no such policy", "a"));
        assert!(report.refused && report.names[0].refused);
        assert_ne!(report.acked_version, report.sent_version);
    }
}

#[test]
fn server_rule_15_a_nacked_version_is_sent_again_only_when_it_changed_or_was_subscribed_to_again() {
    for mut talk in [settled_delta(&whole("1")), settled_sotw(&whole("1")).0] {
        let next = whole("1").with(Route, "r", "2");
        let sent = talk.publish(&next);
        assert!(talk.nack(&sent[0], "bad regex").is_empty());
        assert!(talk.wait(10 * PACE.grace).is_empty());
        assert!(talk.publish(&next).is_empty(), "the same version in a newer catalog");
        assert_eq!(told(&talk.publish(&whole("1").with(Route, "r", "3"))), ["Route r=3"]);
    }
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("1").with(Route, "r", "2"));
    talk.nack(&sent[0], "bad regex");
    assert_eq!(told(&talk.subscribe(Route, &["r"])), ["Route r=2"]);
}

#[test]
fn server_rule_15_while_a_kind_is_refused_it_is_pushed_at_most_once_a_second() {
    let mut talk = settled_delta(&whole("1"));
    let sent = talk.publish(&whole("1").with(Route, "r", "2"));
    talk.nack(&sent[0], "bad regex");
    assert!(talk.publish(&whole("1").with(Route, "r", "3")).is_empty());
    let next = talk.publish(&whole("1").with(Route, "r", "4"));
    assert!(next.is_empty());
    let next = talk.wait(PACE.nack_pause);
    assert_eq!(told(&next), ["Route r=4"]);
    talk.ack(&next[0]);
    assert_eq!(told(&talk.publish(&whole("1").with(Route, "r", "5"))), ["Route r=5"], "accepted: no pause any more");
}

/// An Envoy that cannot read the files of a cluster goes on with the one before, which may be plaintext.
#[test]
fn server_rule_15_what_must_not_be_called_as_before_gives_way_to_another_until_it_changes() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let shelf = |version: &str| Shelf::default().with(Cluster, "a", version).or_instead("a", "nowhere");
        let mut talk = Talk::open(variant, ClientClass::Envoy, &shelf("1"), Duration::ZERO);
        let answers = match variant {
            Variant::Sotw => talk.ask(Cluster, &["a"], None),
            Variant::Delta => talk.subscribe(Cluster, &["a"]),
        };
        talk.finish(answers);
        let sent = talk.publish(&shelf("2"));
        assert_eq!(told(&sent), ["Cluster a=2"]);
        talk.nack(&sent[0], "Error adding/updating cluster(s) a: Failed to load /etc/ca.pem");
        let other = talk.wait(PACE.nack_pause);
        assert_eq!(told(&other), ["Cluster a=nowhere"], "{variant:?}");
        assert!(talk.ack(&other[0]).is_empty());
        let report = talk.session.reports().into_iter().find(|report| report.kind == Cluster).unwrap();
        assert!(report.refused && report.nack.is_some(), "that it takes another is no word on this one");
        assert!(talk.publish(&shelf("2").with(Route, "r", "1")).is_empty(), "{variant:?}: nothing new");
        let sent = talk.publish(&shelf("3"));
        assert_eq!(told(&sent), ["Cluster a=3"], "{variant:?}: another version is another try");
        talk.finish(sent);
        let report = talk.session.reports().into_iter().find(|report| report.kind == Cluster).unwrap();
        assert!(!report.refused);
    }
}

#[test]
fn server_rule_20_a_first_request_may_carry_a_nack_a_foreign_nonce_and_the_version_of_another_replica() {
    let mut talk = Talk::sotw(&whole("1"));
    talk.send_sotw(&DiscoveryRequest {
        type_url: Cluster.type_url().to_owned(),
        resource_names: strings(&["a"]),
        version_info: "of another replica".to_owned(),
        response_nonce: "17".to_owned(),
        error_detail: Some(rpc::Status { code: 3, message: "what I refused before".to_owned(), details: Vec::new() }),
        ..DiscoveryRequest::default()
    });
    assert_eq!(told(&talk.drain()), ["Cluster a=1"]);
}

#[test]
fn server_rule_20_an_empty_list_unsubscribes_from_everything_and_is_no_wildcard() {
    for class in [ClientClass::Grpc, ClientClass::Envoy] {
        let mut talk = Talk::open(Variant::Sotw, class, &whole("1"), Duration::ZERO);
        let first = talk.ask(Listener, &["l"], None);
        assert!(talk.ask(Listener, &[], Some(&first[0])).is_empty());
        assert!(talk.publish(&whole("2")).is_empty());
        assert_eq!(told(&talk.ask(Listener, &["l"], Some(&first[0]))), ["Listener l=2"]);
    }
}

#[test]
fn server_rule_20_names_are_opaque_and_unknown_types_are_left_alone() {
    let name = "xdstp://authority/envoy.config.cluster.v3.Cluster/a?z=1&b=2";
    let mut talk = Talk::delta(&Shelf::default().with(Cluster, name, "1"));
    assert_eq!(talk.subscribe(Cluster, &[name]).len(), 1);
    let unknown = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned(),
        ..delta_request(Cluster, &["x"], &[])
    };
    assert_eq!(talk.send_delta(&unknown), crate::serve::protocol::session::Heard::default());
    assert!(talk.drain().is_empty());
}

#[test]
fn server_rule_21_known_faults_of_other_servers() {
    // go-control-plane#399, #608: the second resource asked for is never sent.
    let shelf = whole("1").with(Endpoints, "b", "1");
    let mut talk = Talk::sotw(&shelf);
    let first = talk.ask(Endpoints, &["a"], None);
    talk.ack(&first[0]);
    assert_eq!(told(&talk.ask(Endpoints, &["a", "b"], Some(&first[0]))), ["Endpoints b=1"]);

    // java-control-plane#339: a list that was already on its way carries no nonce.
    let mut talk = Talk::sotw(&shelf);
    talk.ask(Endpoints, &["a"], None);
    talk.send_sotw(&DiscoveryRequest {
        type_url: Endpoints.type_url().to_owned(),
        resource_names: strings(&["a", "b"]),
        ..DiscoveryRequest::default()
    });
    assert!(talk.session.ledger(Endpoints).0.is_subscribed("b"));

    // go-control-plane#526, grpc-java#12782: an empty request before any name is neither an error nor a wildcard.
    let mut talk = Talk::sotw(&shelf);
    assert!(talk.ask(Endpoints, &[], None).is_empty());
    assert_eq!(told(&talk.ask(Endpoints, &["a"], None)), ["Endpoints a=1"]);

    // go-control-plane#1318: the removal of the only resource is told.
    let mut talk = settled_delta(&whole("1"));
    assert_eq!(told(&talk.publish(&whole("1").without(Listener, "l"))), ["Listener !l"]);
}

#[test]
fn while_settling_a_client_is_never_given_fewer_endpoints_than_it_brought_along() {
    let settle = Duration::from_secs(5);
    let some = Shelf::default().with_workloads("a", "some-1");
    let all = Shelf::default().with_workloads("a", "all-3");

    let mut talk = Talk::open(Variant::Delta, ClientClass::Library, &some, settle);
    talk.send_delta(&DeltaDiscoveryRequest {
        initial_resource_versions: [("a".to_owned(), "all-3".to_owned())].into(),
        ..delta_request(Endpoints, &["a"], &[])
    });
    assert!(talk.drain().is_empty());
    assert!(talk.publish(&all).is_empty(), "what the client has");
    assert!(talk.publish(&some).is_empty());
    assert_eq!(told(&talk.wait(settle)), ["Endpoints a=some-1"], "settled: that is what there is");

    let mut talk = Talk::open(Variant::Sotw, ClientClass::Grpc, &some, settle);
    talk.send_sotw(&DiscoveryRequest {
        type_url: Endpoints.type_url().to_owned(),
        resource_names: strings(&["a"]),
        version_info: "before".to_owned(),
        ..DiscoveryRequest::default()
    });
    assert!(talk.drain().is_empty());
    assert!(talk.publish(&all).is_empty());
    assert_eq!(told(&talk.wait(settle)), ["Endpoints a=all-3"]);
}

#[test]
fn while_settling_a_client_is_told_of_a_change_as_soon_as_there_are_as_many_endpoints_as_it_had() {
    let settle = Duration::from_secs(4);
    let endpoints = |version: &str| Shelf::default().with_workloads("a", version);
    let resume = |has: &str| {
        let mut talk = Talk::open(Variant::Delta, ClientClass::Library, &endpoints("none-0"), settle);
        talk.send_delta(&DeltaDiscoveryRequest {
            initial_resource_versions: [("a".to_owned(), has.to_owned())].into(),
            ..delta_request(Endpoints, &["a"], &[])
        });
        assert!(talk.drain().is_empty());
        talk
    };
    // One of two was replaced while mesh-control was down, and one came in addition.
    let mut talk = resume("old-2");
    assert!(talk.publish(&endpoints("one-1")).is_empty());
    let replaced = talk.publish(&endpoints("new-2"));
    assert_eq!(told(&replaced), ["Endpoints a=new-2"]);
    assert!(talk.ack(&replaced[0]).is_empty());
    assert_eq!(told(&talk.publish(&endpoints("more-3"))), ["Endpoints a=more-3"]);
    // A version of an earlier release does not say how many there were.
    let mut talk = resume("0123456789abcdef");
    assert!(talk.publish(&endpoints("new-9")).is_empty());
    assert_eq!(told(&talk.wait(settle)), ["Endpoints a=new-9"]);
}

#[test]
fn while_a_crowd_waits_for_its_turn_settling_goes_on() {
    let settle = Duration::from_secs(4);
    let some = Shelf::default().with_workloads("a", "some-1");
    let mut talk = Talk::open(Variant::Delta, ClientClass::Library, &some, settle);
    talk.send_delta(&DeltaDiscoveryRequest {
        initial_resource_versions: [("a".to_owned(), "all-3".to_owned())].into(),
        ..delta_request(Endpoints, &["a"], &[])
    });
    let longer = talk.now + 2 * settle;
    talk.session.on_settling(longer);
    assert!(talk.wait(settle).is_empty());
    assert_eq!(talk.session.wakes_at(talk.now), Some(longer));
    assert_eq!(told(&talk.wait(settle)), ["Endpoints a=some-1"]);
}

#[test]
fn while_settling_a_fresh_client_is_answered_as_soon_as_there_is_an_endpoint() {
    let settle = Duration::from_secs(5);
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut talk = Talk::open(variant, ClientClass::Library, &Shelf::default().with_workloads("a", ""), settle);
        let answers = match variant {
            Variant::Sotw => talk.ask(Endpoints, &["a"], None),
            Variant::Delta => talk.subscribe(Endpoints, &["a"]),
        };
        assert!(answers.is_empty());
        assert_eq!(told(&talk.publish(&Shelf::default().with_workloads("a", "one-1"))), ["Endpoints a=one-1"]);
        let mut talk = Talk::open(variant, ClientClass::Library, &Shelf::default().with_workloads("a", ""), settle);
        match variant {
            Variant::Sotw => talk.ask(Endpoints, &["a"], None),
            Variant::Delta => talk.subscribe(Endpoints, &["a"]),
        };
        assert_eq!(told(&talk.wait(settle)), ["Endpoints a="], "settled without any");
    }
}

#[test]
fn a_server_listener_is_reported_as_joined_and_left() {
    let name = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080";
    let mut talk = Talk::delta(&Shelf::default());
    let heard = talk.send_delta(&delta_request(Listener, &[name, "reviews:9080"], &[]));
    assert_eq!(heard.joined, [Arc::<str>::from(name)]);
    let heard = talk.send_delta(&delta_request(Listener, &[name], &[]));
    assert!(heard.joined.is_empty(), "subscribed again is not joined again");
    let heard = talk.send_delta(&delta_request(Listener, &[], &[name, "reviews:9080"]));
    assert_eq!(heard.left, [Arc::<str>::from(name)]);

    let mut talk = Talk::sotw(&Shelf::default());
    let first = talk.ask(Listener, &["reviews:9080", name], None);
    let heard = talk.send_sotw(&DiscoveryRequest {
        type_url: Listener.type_url().to_owned(),
        resource_names: strings(&["reviews:9080"]),
        response_nonce: first[0].nonce.clone(),
        ..DiscoveryRequest::default()
    });
    assert_eq!(heard.left, [Arc::<str>::from(name)]);
}

#[test]
fn a_stream_that_asks_for_too_much_is_found_out() {
    let mut talk = Talk::delta(&Shelf::default());
    let name = "x".repeat(1 << 20);
    let names: Vec<String> = (0..33).map(|n| format!("{n}{name}")).collect();
    let heard = talk.send_delta(&DeltaDiscoveryRequest {
        type_url: Cluster.type_url().to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    });
    assert!(heard.overfull);
}
