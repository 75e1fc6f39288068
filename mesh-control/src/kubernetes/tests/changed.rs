//! Objects of a cluster that are applied, deleted and taken back by commands.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::json;

use super::fake::Fake;
use super::{Access, Client, GOOD_RULE, WEB, rule};
use crate::changes::{All, ClusterObjects, Done, Past, Refusal, VersionedStore, Wanted, What, carry_out};

const OTHER_RULE: &str = "{directResponse: {status: 418}}";

fn objects(fake: &Fake) -> ClusterObjects {
    ClusterObjects::new(Client::new(Access::of_test(fake.address)), "mesh")
}

async fn change(objects: &ClusterObjects, what: What, dry_run: bool) -> Result<Done, Refusal> {
    let wanted = Wanted { what, message: "why".to_owned(), dry_run };
    carry_out(objects, &wanted, &objects.who().await?, SystemTime::UNIX_EPOCH).await
}

fn file(text: &str) -> What {
    What::Apply(BTreeMap::from([("a.yaml".to_owned(), text.to_owned())]))
}

async fn apply(objects: &ClusterObjects, text: &str) -> Result<Done, Refusal> {
    change(objects, file(text), false).await
}

async fn history(objects: &ClusterObjects) -> Vec<Past> {
    objects.history().await.expect("readable")
}

fn verbs(done: &Done) -> Vec<(&str, &str)> {
    done.objects.iter().map(|one| (one.object.as_str(), one.verb.as_str())).collect()
}

fn is_there(fake: &Fake, name: &str) -> bool {
    fake.world().object("virtualservices", name).is_object()
}

#[tokio::test]
async fn objects_are_applied_and_what_the_cluster_adds_is_no_difference() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    let all = format!("{WEB}---{}", rule("a", GOOD_RULE));
    let created = [("Service shop/web", "created"), ("VirtualService shop/a", "created")];
    let dry = change(&objects, file(&all), true).await.expect("good");
    assert_eq!((verbs(&dry), dry.number, is_there(&fake, "a")), (created.to_vec(), None, false));
    let done = apply(&objects, &all).await.expect("good");
    assert_eq!((verbs(&done), done.number), (created.to_vec(), Some(1)));
    assert_eq!(fake.world().object("services", "web")["spec"]["clusterIP"], "10.0.0.1");

    let again = apply(&objects, &all).await.expect("good");
    assert!(again.number.is_none() && again.objects.iter().all(|one| one.diff.is_empty()), "{again:?}");
    let other = change(&objects, file(&rule("a", OTHER_RULE)), true).await.expect("good");
    assert!(other.objects[0].diff.contains("+  - directResponse:"), "{}", other.objects[0].diff);
    assert_eq!(
        (fake.count("apply services"), fake.count("apply virtualservices")),
        (1, 1),
        "nothing was written again"
    );
    // It is of the version that somebody has seen, or not changed.
    let of_version = |version: i64| {
        rule("a", OTHER_RULE).replace("namespace: shop", &format!("namespace: shop, resourceVersion: '{version}'"))
    };
    let Err(Refusal::Conflict(_)) = apply(&objects, &of_version(1)).await else { panic!("it is another one") };
    let held = objects.read().await.expect("readable").objects;
    let version = held.iter().find(|(id, _)| &*id.name == "a").map(|(_, stored)| stored.version).expect("it is there");
    assert_eq!(apply(&objects, &of_version(version)).await.expect("good").number, Some(2));
}

#[tokio::test]
async fn what_validate_or_the_cluster_refuses_is_refused_as_a_whole() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    let Err(Refusal::Invalid(_)) = apply(&objects, &rule("a", GOOD_RULE)).await else { panic!("there is no web") };
    // Somebody else has put it there.
    fake.apply(WEB);
    let Err(Refusal::Invalid(why)) = apply(&objects, &rule("a", "{rout: []}")).await else { panic!("it is wrong") };
    assert!(why.join("").contains("a.yaml"), "{why:?}");
    assert_eq!(fake.count("try virtualservices"), 0, "nobody was asked");

    let both = format!("{}---{}", rule("a", GOOD_RULE), rule("b", GOOD_RULE));
    fake.world().is_refused = "b";
    let Err(Refusal::Invalid(why)) = apply(&objects, &both).await else { panic!("it is refused") };
    assert!(why[0].starts_with("VirtualService shop/b: "), "{why:?}");
    assert!(!is_there(&fake, "a") && history(&objects).await.is_empty());
    fake.world().is_refused = "";
    assert_eq!(apply(&objects, &both).await.expect("good").number, Some(1));
}

#[tokio::test]
async fn what_somebody_else_has_applied_is_not_written_over_unless_that_is_asked_for() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    fake.apply(&format!("{WEB}---{}", rule("a", GOOD_RULE)));
    fake.world().is_others = "a";
    let Err(Refusal::Conflict(why)) = apply(&objects, &rule("a", OTHER_RULE)).await else { panic!("it is refused") };
    assert!(why.contains("VirtualService shop/a") && why.contains("--force-conflicts"), "{why}");
    assert!(history(&objects).await.is_empty());
    // What somebody makes at the same time is not taken over.
    fake.world().too_late = 1;
    let done = apply(&objects.forces(true), &rule("a", OTHER_RULE)).await.expect("good");
    assert_eq!((verbs(&done), done.number), (vec![("VirtualService shop/a", "configured")], Some(1)));
    assert_eq!(fake.count("apply virtualservices"), 2, "the first one came too late");
}

#[tokio::test]
async fn what_somebody_else_makes_in_the_same_moment_is_looked_at_again() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    fake.apply(WEB);
    let rival = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "a", "namespace": "shop", "labels": {"by": "somebody"}},
        "spec": {"hosts": ["web"], "http": [{"directResponse": {"status": 500}}]},
    });
    fake.world().rival = Some(rival.clone());
    fake.world().is_others = "a";
    let Err(Refusal::Conflict(why)) = apply(&objects, &rule("a", GOOD_RULE)).await else { panic!("it is another's") };
    assert!(why.contains("VirtualService shop/a") && why.contains("--force-conflicts"), "{why}");
    let there = fake.world().object("virtualservices", "a");
    assert_eq!(there["spec"], rival["spec"], "nothing was mixed into it");
    assert!(history(&objects).await.is_empty());

    // Where its fields may be changed it is known for what it is: an object that was there.
    let rival = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "b", "namespace": "shop"}, "spec": {"hosts": ["web"]},
    });
    fake.world().rival = Some(rival);
    let done = apply(&objects, &rule("b", GOOD_RULE)).await.expect("good");
    assert_eq!((verbs(&done), done.number), (vec![("VirtualService shop/b", "configured")], Some(1)));
}

#[tokio::test]
async fn what_somebody_else_deletes_in_the_same_moment_is_looked_at_again() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    let text = format!("{WEB}---{}", rule("a", GOOD_RULE));
    apply(&objects, &text).await.expect("good");
    fake.world().is_deleted = "a";
    let done = apply(&objects, &rule("a", OTHER_RULE)).await.expect("good");
    assert_eq!((verbs(&done), done.number), (vec![("VirtualService shop/a", "created")], Some(2)));
    let past = history(&objects).await.remove(0).entry;
    assert_eq!((past.objects[0].verb.as_str(), &past.objects[0].before), ("created", &None), "it is what it became");

    // What is to be of a version that somebody has seen is not made anew.
    let held = objects.read().await.expect("readable").objects;
    let version = held.iter().find(|(id, _)| &*id.name == "a").map(|(_, stored)| stored.version).expect("it is there");
    let seen =
        rule("a", GOOD_RULE).replace("namespace: shop", &format!("namespace: shop, resourceVersion: '{version}'"));
    fake.world().is_deleted = "a";
    let Err(Refusal::Conflict(why)) = apply(&objects, &seen).await else { panic!("it is gone") };
    assert!(why.contains("there is none") && !is_there(&fake, "a"), "{why}");
}

#[tokio::test]
async fn a_change_that_breaks_off_is_told_and_can_be_taken_back() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    fake.apply(WEB);
    fake.world().is_broken = "b";
    let both = format!("{}---{}", rule("a", GOOD_RULE), rule("b", GOOD_RULE));
    let Err(Refusal::Store(why)) = apply(&objects, &both).await else { panic!("it breaks off") };
    assert!(why.contains("in part") && why.contains("VirtualService shop/b"), "{why}");
    assert!(is_there(&fake, "a") && !is_there(&fake, "b"));
    fake.world().is_broken = "";
    let done = change(&objects, What::Rollback(None), false).await.expect("good");
    assert_eq!(done.number, Some(2));
    assert!(!is_there(&fake, "a") && !is_there(&fake, "b"));
}

#[tokio::test]
async fn the_history_says_who_has_changed_what_and_a_change_can_be_taken_back() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    let texts = |all: &All| all.values().map(|stored| stored.text.clone()).collect::<Vec<_>>();
    apply(&objects, &format!("{WEB}---{}", rule("a", GOOD_RULE))).await.expect("good");
    let first = objects.read().await.expect("readable").objects;
    apply(&objects, &rule("a", OTHER_RULE)).await.expect("good");
    let delete = || What::Delete(vec!["services/shop/web".to_owned()]);
    change(&objects, delete(), false).await.expect("good");
    assert!(matches!(change(&objects, delete(), false).await, Err(Refusal::Unknown(_))), "it is gone");
    let said: Vec<_> = history(&objects).await.into_iter().map(|past| past.entry).collect();
    let said: Vec<_> = said.iter().map(|it| (it.number, &*it.author, &*it.message, &*it.objects[0].verb)).collect();
    assert_eq!(said, [(3, "ann", "why", "deleted"), (2, "ann", "why", "configured"), (1, "ann", "why", "created")]);

    // A status makes another version of an object, and no other object.
    let object = fake.world().object("virtualservices", "a");
    fake.put(object);
    let done = change(&objects, What::Rollback(Some(1)), false).await.expect("good");
    let expected = vec![("Service shop/web", "created"), ("VirtualService shop/a", "configured")];
    assert_eq!((verbs(&done), done.number), (expected, Some(4)));
    assert_eq!(texts(&objects.read().await.expect("readable").objects), texts(&first));
    // What somebody changed beside the history is not written over.
    fake.apply(&rule("a", "{directResponse: {status: 500}}"));
    let Err(Refusal::Conflict(why)) = change(&objects, What::Rollback(Some(2)), false).await else { panic!("refused") };
    assert!(why.contains("VirtualService shop/a was changed by somebody who wrote no history"), "{why}");
}

#[tokio::test]
async fn the_history_has_a_bound() {
    let fake = Fake::start().await;
    let objects = objects(&fake);
    for number in 1..=60 {
        let entry = json!({"number": number, "author": "a", "time": "t", "objects": []});
        fake.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("mesh-control-change-{number}"), "namespace": "mesh"},
            "data": {"change": entry.to_string()},
        }));
    }
    assert_eq!(apply(&objects, WEB).await.expect("good").number, Some(61));
    let numbers: Vec<u64> = history(&objects).await.iter().map(|past| past.entry.number).collect();
    assert_eq!((numbers.len(), numbers[0], numbers[49]), (50, 61, 12));
}
