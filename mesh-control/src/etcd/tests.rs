//! etcd on the wire: a cluster of the test's own, planes that follow it, and sets of objects that are changed in it.

mod fake;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::commit::KEPT;
use super::follow::Pace;
use super::known::Subject;
use super::{Access, Client, Objects, Prefix, Replicas, SharedTokens, Store};
use crate::changes::{Author, Change, Documents, Done, Id, Outcome, Refusal, VersionedStore, Wanted, What, carry_out};
use crate::config::load::{Reach, scan};
use crate::config::source::{ConfigStore, Pauses};
use crate::config::store::{Standing, Update};
use crate::kubernetes::tests::{GOOD_RULE, WEB, outside, rule, told, until};
use crate::plane::{Plane, PlaneOptions, Snapshot, Synced};
use fake::Fake;

const LIMIT: Duration = Duration::from_secs(60);
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn prefix() -> Prefix {
    Prefix::parse("/mesh").expect("a prefix")
}

fn client(fake: &Fake) -> Client {
    let members: Vec<String> = fake.addresses.iter().map(|address| format!("http://{address}")).collect();
    Client::new(Access::new(&members).expect("members"))
}

fn objects(fake: &Fake) -> Objects {
    Objects::new(client(fake), prefix())
}

fn pace() -> Pace {
    let ms = Duration::from_millis;
    let pauses = Pauses { first: ms(2), longest: ms(40) };
    Pace { pauses, look: ms(20), patience: LIMIT, doubted: ms(20) }
}

fn store(fake: &Fake) -> Store {
    Store::of(client(fake), prefix(), Subject::objects(&prefix()), pace())
}

async fn follow(fake: &Fake) -> Plane {
    let synced = timeout(LIMIT, Synced::of(store(fake))).await.expect("known in time").expect("known");
    Plane::start_beside(PlaneOptions::default(), vec![synced]).expect("a plane")
}

/// An etcd of one member, and what puts a value of its own at a key. It is there for as long as that.
pub(crate) async fn one_member() -> (Objects, impl Fn(&str, &str)) {
    let fake = Fake::start(1).await;
    (objects(&fake), move |key: &str, value: &str| fake.put(key, value))
}

/// What two replicas know of tokens by an etcd of one member, and what has that answer nobody.
pub(crate) async fn two_replicas() -> ([SharedTokens; 2], impl Fn(bool)) {
    let fake = Fake::start(1).await;
    let replicas = [(), ()].map(|()| SharedTokens::new(client(&fake), prefix()));
    (replicas, move |is_away: bool| fake.world().failing = is_away.then_some(0).into_iter().collect())
}

fn apply_of(text: &str) -> Wanted {
    let what = What::Apply(BTreeMap::from([("a.yaml".to_owned(), text.to_owned())]));
    Wanted { what, message: String::new(), dry_run: false }
}

async fn apply(objects: &Objects, text: &str) -> Result<Done, Refusal> {
    timeout(LIMIT, carry_out(objects, &apply_of(text), "ann", NOW)).await.expect("in time")
}

async fn rollback(objects: &Objects, to: Option<u64>) -> Result<Done, Refusal> {
    let wanted = Wanted { what: What::Rollback(to), message: "oops".to_owned(), dry_run: false };
    timeout(LIMIT, carry_out(objects, &wanted, "bob", NOW)).await.expect("in time")
}

fn ids(plane: &Plane) -> Vec<String> {
    let mut ids: Vec<String> = plane.object_places().into_iter().map(|(id, _)| id).collect();
    ids.sort();
    ids
}

/// The same objects, from files and from etcd, to two replicas. That a cluster tells the same is held beside it.
#[tokio::test]
async fn what_etcd_holds_is_told_byte_by_byte_as_if_it_were_files() {
    for corpus in ["shop", "everything"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(corpus);
        let fake = Fake::start(1).await;
        let mut documents = Documents::read(&scan(&folder, Reach::Directory).expect("a corpus")).expect("objects");
        // What they were called in another store.
        documents.objects.values_mut().for_each(|written| written.version = None);
        let objects = objects(&fake);
        let held = objects.read().await.expect("readable");
        for changes in documents.changes(&held.objects).expect("changes").chunks(100) {
            let held = objects.read().await.expect("readable");
            let committed = objects.commit(&held, changes, &Author::default(), NOW).await;
            assert!(matches!(committed, Ok(Outcome::Committed(_))), "{committed:?}");
        }
        let of_files = Plane::start(PlaneOptions::default().config_dir(&folder)).expect("a plane");
        let (of_etcd, replica) = (follow(&fake).await, follow(&fake).await);
        assert_eq!(of_files.objects(), of_etcd.objects(), "{corpus}");
        for plane in [&of_files, &of_etcd, &replica] {
            for number in 1..4 {
                let address = format!("10.9.0.{number}:8080").parse().expect("an address");
                plane.register(outside(&format!("k{number}"), "catalog", "catalog", address));
            }
            plane.published().await;
        }
        let (files, etcd) = (told(&of_files), told(&of_etcd));
        assert_eq!(etcd, told(&replica), "{corpus}");
        assert!(files.len() > 100, "{corpus}: {}", files.len());
        assert_eq!(files.keys().collect::<Vec<_>>(), etcd.keys().collect::<Vec<_>>(), "{corpus}");
        for (name, encoded) in files {
            assert_eq!(Some(&encoded), etcd.get(&name), "{corpus}: {name}");
        }
    }
}

#[tokio::test]
async fn f28_whatever_happens_to_etcd_nothing_is_taken_for_gone_and_what_came_meanwhile_is_found() {
    let fake = Fake::start(3).await;
    let objects = objects(&fake);
    let all: String = ["a", "b", "c", "d"].iter().map(|name| format!("{}---", rule(name, GOOD_RULE))).collect();
    apply(&objects, &format!("{all}{WEB}")).await.expect("good");
    let plane = follow(&fake).await;
    assert_eq!(plane.objects(), 5);
    let (watched, mut snapshots) = (plane.clone(), plane.subscribe());
    let watching = tokio::spawn(async move {
        // Every state that anybody could have been served.
        let mut worst = usize::MAX;
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            worst = worst.min(snapshot.objects());
            if watched.stale().is_none() && snapshot.objects() >= 8 {
                break;
            }
        }
        worst
    });

    // Watches break off, and what was written meanwhile is told by the next ones.
    fake.cut();
    apply(&objects, &rule("e", GOOD_RULE)).await.expect("good");
    until(&plane, "e", |snapshot| snapshot.objects() == 6).await;

    // A member is lost: another one is watched, and nothing is listed anew.
    let [member] = fake.watched()[..] else { panic!("{:?}", fake.watched()) };
    fake.world().failing.insert(member);
    fake.cut();
    apply(&objects, &rule("f", GOOD_RULE)).await.expect("good");
    until(&plane, "f", |snapshot| snapshot.objects() == 7).await;
    assert!(!fake.watched().contains(&member));

    // All of them are, which is said.
    fake.world().failing.extend(0..3);
    fake.cut();
    let stale = async {
        while plane.stale().is_none() {
            fake.asked("refused", 1).await;
        }
    };
    timeout(LIMIT, stale).await.expect("it is said");
    let stale = plane.stale().expect("it is said");
    assert!(stale.why.contains("etcd cannot be followed") && stale.why.contains("as told"), "{stale:?}");
    assert_eq!(plane.objects(), 7);

    // It comes back with nothing that it held, and has forgotten what came before.
    fake.world().is_blank = true;
    fake.compact();
    fake.world().failing.clear();
    timeout(LIMIT, fake.asked("range", 6)).await.expect("it is asked");
    assert_eq!(plane.objects(), 7);

    // And then with it: what has gone meanwhile is gone, and the rest is there.
    fake.world().change(&[
        ("/mesh/objects/virtualservices.networking.istio.io/shop/a".to_owned(), None),
        ("/mesh/objects/services/shop/g".to_owned(), Some(json_of("g"))),
        ("/mesh/objects/services/shop/h".to_owned(), Some(json_of("h"))),
    ]);
    fake.world().is_blank = false;
    until(&plane, "g and h", |snapshot| snapshot.objects() == 8).await;
    assert!(!ids(&plane).contains(&"VirtualService shop/a".to_owned()), "{:?}", ids(&plane));

    // Another cluster, at an earlier revision, is looked at as a whole.
    {
        let mut world = fake.world();
        (world.cluster, world.revision) = (2, world.revision + 1);
    }
    fake.cut();
    fake.put("/mesh/objects/services/shop/i", &json_of("i"));
    until(&plane, "i", |snapshot| snapshot.objects() == 9).await;
    let found = async {
        while plane.stale().is_some() {
            fake.asked("range", 1).await;
        }
    };
    timeout(LIMIT, found).await.expect("it is found");
    let worst = timeout(LIMIT, watching).await.expect("ends").expect("ends");
    assert!(worst >= 5, "there were fewer: {worst}");
}

#[tokio::test]
async fn a_watch_that_ends_before_it_has_begun_is_said_at_once() {
    let fake = Fake::start(2).await;
    let mut store = store(&fake);
    let mut lost = async || match timeout(LIMIT, store.next()).await.expect("in time") {
        Some(Update::Resources { lost, .. }) => lost.unwrap_or_default(),
        other => panic!("{other:?}"),
    };
    assert_eq!(lost().await, "");
    fake.world().leaderless = 1;
    fake.cut();
    assert_eq!(lost().await, "etcd cannot be followed (etcdserver: no leader)");
    assert_eq!(lost().await, "");
}

fn json_of(name: &str) -> String {
    let text = WEB.replace("name: web,", &format!("name: {name},"));
    let wanted = Documents::read(&{
        let mut scan = crate::config::load::Scan::default();
        scan.files.insert("a.yaml".into(), Ok(text.into()));
        scan
    });
    let written = wanted.expect("good").objects.into_values().next().expect("one");
    written.text.to_string()
}

#[tokio::test]
async fn f1_nothing_is_known_before_etcd_has_answered_and_a_password_is_shown() {
    let fake = Fake::start(2).await;
    apply(&objects(&fake), WEB).await.expect("good");
    fake.world().failing.extend(0..2);
    let mut synced = Box::pin(Synced::of(store(&fake)));
    tokio::select! {
        _ = &mut synced => panic!("nobody knows what there is"),
        () = fake.asked("refused", 3) => {}
    }
    fake.world().password = Some("secret".to_owned());
    fake.world().failing.clear();
    tokio::select! {
        _ = &mut synced => panic!("nobody has said who asks"),
        () = fake.asked("refused", 3) => {}
    }
    let dir = tempfile::tempdir().expect("a directory");
    let members: Vec<String> = fake.addresses.iter().map(|address| format!("http://{address}")).collect();
    let with = |password: &str| {
        let file = dir.path().join(password);
        fs::write(&file, format!("{password}\n")).expect("written");
        let access = Access::new(&members).expect("members").user(Some(("root".to_owned(), file)));
        Objects::new(Client::new(access), prefix())
    };
    let held = timeout(LIMIT, with("secret").read()).await.expect("in time").expect("readable");
    assert_eq!(held.objects.len(), 1);
    let refused = timeout(LIMIT, with("other").read()).await.expect("in time").expect_err("another password");
    assert!(refused.to_string().contains("authentication failed"), "{refused}");
}

#[tokio::test]
async fn an_object_that_is_wrong_keeps_its_last_good_state_and_one_under_another_key_is_none() {
    let fake = Fake::start(1).await;
    let objects = objects(&fake);
    apply(&objects, &format!("{WEB}---{}", rule("a", GOOD_RULE))).await.expect("good");
    // Somebody writes to etcd without asking anybody.
    let policies = "/mesh/objects/authorizationpolicies.security.istio.io/shop";
    fake.put(&format!("{policies}/guard"), "{}");
    let plane = follow(&fake).await;
    let standing = |plane: &Plane| {
        let wrong = plane.wrong();
        let all = wrong.iter().map(|one| (one.object.as_deref().unwrap_or_default().to_owned(), one.standing));
        all.collect::<Vec<_>>()
    };
    let guard = ("AuthorizationPolicy shop/guard".to_owned(), Standing::FailsClosed);
    assert_eq!(standing(&plane), std::slice::from_ref(&guard));
    fake.put("/mesh/objects/virtualservices.networking.istio.io/shop/a", &json_of("a"));
    let held = ("VirtualService shop/a".to_owned(), Standing::Held);
    until(&plane, "a is held", |_| standing(&plane).contains(&held)).await;
    fake.delete(&format!("{policies}/guard"));
    until(&plane, "nothing guards", |_| standing(&plane) == std::slice::from_ref(&held)).await;
}

#[tokio::test]
async fn a_set_is_changed_as_a_whole_and_what_validate_refuses_is_refused() {
    let fake = Fake::start(1).await;
    let objects = objects(&fake);
    let done = apply(&objects, &format!("{WEB}---{}", rule("a", GOOD_RULE))).await.expect("good");
    let said: Vec<(&str, &str)> = done.objects.iter().map(|one| (one.object.as_str(), one.verb.as_str())).collect();
    assert_eq!(
        (said, done.number),
        (vec![("Service shop/web", "created"), ("VirtualService shop/a", "created")], Some(1))
    );
    // Both have come in one revision.
    let held = objects.read().await.expect("readable");
    let versions: Vec<i64> = held.objects.values().map(|stored| stored.version).collect();
    assert_eq!(versions[0], versions[1]);
    // The same once more changes nothing.
    let same = apply(&objects, WEB).await.expect("good");
    assert_eq!((same.number, same.objects[0].verb.as_str()), (None, "unchanged"));
    // One that is wrong keeps the other from coming, too.
    let wrong = format!("{}---{}", rule("b", GOOD_RULE), rule("a", "{route: [{destination: {host: wbe}}]}"));
    let Err(Refusal::Invalid(findings)) = apply(&objects, &wrong).await else { panic!("it is refused") };
    assert!(findings.iter().any(|one| one.contains("wbe") && one.contains("a.yaml")), "{findings:?}");
    for unreadable in ["kind: [", "apiVersion: v1\nkind: Service\nmetadata: {name: WEB}\n", &format!("{WEB}---{WEB}")] {
        assert!(matches!(apply(&objects, unreadable).await, Err(Refusal::Invalid(_))), "{unreadable}");
    }
    let dry = Wanted { dry_run: true, ..apply_of(&WEB.replace("port: 80", "port: 81")) };
    let dry = carry_out(&objects, &dry, "ann", NOW).await.expect("good");
    assert_eq!((dry.number, dry.objects[0].verb.as_str()), (None, "configured"));
    assert!(dry.objects[0].diff.contains("-    port: 80\n+    port: 81\n"), "{}", dry.objects[0].diff);
    assert_eq!(objects.read().await.expect("readable").objects, held.objects, "nothing has changed");
    // More than etcd takes at a time.
    let many: Vec<String> = (0..130).map(|number| WEB.replace("name: web,", &format!("name: web-{number},"))).collect();
    let Err(Refusal::Store(why)) = apply(&objects, &many.join("---")).await else { panic!("it is refused") };
    assert!(why.contains("--max-txn-ops"), "{why}");
}

#[tokio::test]
async fn two_who_change_something_at_a_time_do_not_undo_each_other() {
    let fake = Fake::start(1).await;
    let objects = objects(&fake);
    apply(&objects, WEB).await.expect("good");
    let held = objects.read().await.expect("readable");
    let id = Id::named("Service", "shop", "web").expect("a name");
    let version = held.objects[&id].version;
    // Somebody was faster, by the history or beside it: what was looked at is looked at again.
    let other = ("/mesh/objects/services/shop/web".to_owned(), Some(json_of("web").replace("8080", "9090")));
    fake.world().between = vec![other];
    let done = apply(&objects, &WEB.replace("8080", "7070")).await.expect("good");
    assert!(done.objects[0].diff.contains("-    targetPort: 9090"), "{}", done.objects[0].diff);
    // Unless a version was said.
    let versioned = WEB.replace("namespace: shop", &format!("namespace: shop, resourceVersion: '{version}'"));
    let Err(Refusal::Conflict(why)) = apply(&objects, &versioned).await else { panic!("it is refused") };
    assert!(why.contains("changed by somebody else"), "{why}");
    // A commit alone says so.
    let change = Change { id, text: Some(json_of("web").into()) };
    let stale = objects.commit(&held, &[change], &Author::default(), NOW).await.expect("answered");
    assert_eq!(stale, Outcome::Conflict);
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_made_once() {
    let fake = Fake::start(2).await;
    let objects = objects(&fake);
    fake.world().unanswered = 2;
    let done = apply(&objects, WEB).await.expect("good");
    assert_eq!(done.number, Some(1));
    assert_eq!(fake.keys("/mesh/history/").len(), 1);
    // And one that was lost for good is said to be unclear.
    fake.world().unanswered = 5;
    let Err(Refusal::Store(why)) = apply(&objects, &WEB.replace("80,", "81,")).await else { panic!("nobody knows") };
    assert!(why.contains("nobody knows whether it was done"), "{why}");
}

#[tokio::test]
async fn the_history_says_who_has_changed_what_and_a_change_can_be_taken_back() {
    let fake = Fake::start(1).await;
    let objects = objects(&fake);
    apply(&objects, &format!("{WEB}---{}", rule("a", GOOD_RULE))).await.expect("good");
    let first = objects.read().await.expect("readable").objects;
    let texts = |all: &crate::changes::All| all.values().map(|stored| stored.text.clone()).collect::<Vec<_>>();
    apply(&objects, &rule("a", "{directResponse: {status: 418}}")).await.expect("good");
    let delete = What::Delete(vec!["services/shop/web".to_owned()]);
    let wanted = Wanted { what: delete, message: "not needed".to_owned(), dry_run: false };
    carry_out(&objects, &wanted, "bob", NOW).await.expect("good");
    assert!(matches!(carry_out(&objects, &wanted, "bob", NOW).await, Err(Refusal::Unknown(_))), "it is gone");
    let history = objects.history().await.expect("readable");
    let said = |at: usize| {
        let entry = &history[at].entry;
        (entry.number, entry.author.as_str(), entry.message.as_str(), entry.objects[0].verb.as_str())
    };
    assert_eq!(
        (said(0), said(1), said(2)),
        ((3, "bob", "not needed", "deleted"), (2, "ann", "", "configured"), (1, "ann", "", "created"))
    );
    assert_eq!(history[0].entry.time, "1970-01-01T00:00:00Z");

    let done = rollback(&objects, Some(1)).await.expect("good");
    let said: Vec<(&str, &str)> = done.objects.iter().map(|one| (one.object.as_str(), one.verb.as_str())).collect();
    assert_eq!(
        (said, done.number),
        (vec![("Service shop/web", "created"), ("VirtualService shop/a", "configured")], Some(4))
    );
    assert_eq!(texts(&objects.read().await.expect("readable").objects), texts(&first));
    // That is a change, which can be taken back, too.
    assert_eq!(rollback(&objects, None).await.expect("good").number, Some(5));
    rollback(&objects, Some(2)).await.expect("good");
    // Where the state of then was wrong, it is refused.
    apply(&objects, &rule("a", GOOD_RULE)).await.expect("good");
    let deleted = carry_out(&objects, &wanted, "bob", NOW).await.expect("good").number;
    apply(&objects, WEB).await.expect("good");
    let Err(Refusal::Invalid(findings)) = rollback(&objects, deleted).await else { panic!("it is refused") };
    assert!(findings.iter().any(|one| one.contains("VirtualService shop/a")), "{findings:?}");
    // What somebody changed beside the history is not written over.
    fake.put("/mesh/objects/virtualservices.networking.istio.io/shop/a", "{}");
    let Err(Refusal::Conflict(why)) = rollback(&objects, Some(1)).await else { panic!("it is refused") };
    assert!(why.contains("VirtualService shop/a was changed by somebody who wrote no history"), "{why}");
}

#[tokio::test]
async fn the_history_has_a_bound() {
    let fake = Fake::start(1).await;
    let objects = objects(&fake);
    // As if there had been so many.
    let before = |number: u64| {
        let entry = serde_json::json!({"number": number, "author": "a", "time": "t", "objects": []});
        (format!("/mesh/history/{number:020}"), Some(entry.to_string()))
    };
    let mut all: Vec<_> = (1..KEPT).map(before).collect();
    all.push(("/mesh/last".to_owned(), Some((KEPT - 1).to_string())));
    fake.world().change(&all);
    for number in 0..4 {
        let held = objects.read().await.expect("readable");
        let id = Id::named("Service", "shop", "web").expect("a name");
        let change = Change { id, text: Some(format!("{{\"a\": {number}}}").into()) };
        objects.commit(&held, &[change], &Author::default(), NOW).await.expect("committed");
    }
    let history = objects.history().await.expect("readable");
    let numbers: Vec<u64> = history.iter().map(|past| past.entry.number).collect();
    assert_eq!((numbers.len() as u64, numbers[0], numbers[numbers.len() - 1]), (KEPT, KEPT + 3, 4));
    let Err(Refusal::Unknown(why)) = rollback(&objects, Some(2)).await else { panic!("it is forgotten") };
    assert!(why.contains("goes back to change 3"), "{why}");
}

#[tokio::test]
async fn a_workload_that_registers_at_one_replica_is_an_endpoint_of_all_until_its_lease_ends() {
    let fake = Fake::start(2).await;
    apply(&objects(&fake), WEB).await.expect("good");
    let replica = async || {
        let plane = follow(&fake).await;
        let others = Replicas::start_at(client(&fake), prefix(), plane.clone(), pace()).await;
        (plane, others)
    };
    let ((one, others), (two, _two)) = (replica().await, replica().await);
    let addresses = |snapshot: &Snapshot| {
        let endpoints = snapshot.endpoints_of("web", "shop", 80);
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    let at = |name: &str, address: &str| {
        outside(&format!("{name}@{address}"), "shop", "web", address.parse().expect("an address"))
    };
    one.register(at("a", "10.0.0.1:8080"));
    until(&two, "the first one", |snapshot| addresses(snapshot) == ["10.0.0.1:8080"]).await;
    two.register(at("b", "10.0.0.2:8080"));
    let both = ["10.0.0.1:8080", "10.0.0.2:8080"];
    until(&one, "both", |snapshot| addresses(snapshot) == both).await;
    // Whoever starts later knows both at once.
    let (three, _three) = replica().await;
    assert_eq!(addresses(&three.snapshot()), both);
    // All tell the same.
    assert_eq!(told(&one), told(&two));
    assert_eq!(told(&one), told(&three));
    // One that says goodbye is gone everywhere.
    two.unregister("b@10.0.0.2:8080");
    until(&one, "b gone", |snapshot| addresses(snapshot) == ["10.0.0.1:8080"]).await;
    until(&three, "b gone", |snapshot| addresses(snapshot) == ["10.0.0.1:8080"]).await;
    // A replica goes down without a word: its workload comes back to another one, and nobody is without it meanwhile.
    drop(others);
    let lease = fake.lease_of("/a@10.0.0.1:8080");
    two.register(at("a", "10.0.0.1:8080"));
    fake.asked("txn", 1).await;
    fake.expire(lease);
    two.register(at("c", "10.0.0.3:8080"));
    until(&three, "c", |snapshot| addresses(snapshot).contains(&"10.0.0.3:8080".to_owned())).await;
    assert_eq!(addresses(&three.snapshot()), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    // And one that is gone for good goes with its lease.
    two.unregister("a@10.0.0.1:8080");
    until(&three, "a gone", |snapshot| addresses(snapshot) == ["10.0.0.3:8080"]).await;
}

#[tokio::test]
async fn a_workload_that_says_too_much_of_itself_keeps_no_other_one_from_being_told_of() {
    let fake = Fake::start(1).await;
    apply(&objects(&fake), WEB).await.expect("good");
    let (one, two) = (follow(&fake).await, follow(&fake).await);
    let start = async |plane: &Plane| Replicas::start_at(client(&fake), prefix(), plane.clone(), pace()).await;
    let _both = (start(&one).await, start(&two).await);
    let at = |address: &str| outside(&format!("a@{address}"), "shop", "web", address.parse().expect("an address"));
    let mut large = at("10.0.0.1:8080");
    large.node = "x".repeat(2 << 20).into();
    one.register(large);
    one.register(at("10.0.0.2:8080"));
    let addresses = |snapshot: &Snapshot| {
        let endpoints = snapshot.endpoints_of("web", "shop", 80);
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    until(&one, "both", |snapshot| addresses(snapshot) == ["10.0.0.1:8080", "10.0.0.2:8080"]).await;
    until(&two, "the one that fits", |snapshot| addresses(snapshot) == ["10.0.0.2:8080"]).await;
}

#[tokio::test]
async fn c8_a_use_of_a_token_whose_answer_is_lost_is_noted_once_and_is_forgotten_with_its_lease() {
    let fake = Fake::start(3).await;
    let [ours, others] = [(), ()].map(|()| SharedTokens::new(client(&fake), prefix()));
    ours.keep("3a7b", b"{}", LIMIT).await.expect("kept");
    assert_eq!(others.find("3a7b").await, Ok(Some(b"{}".to_vec())));
    fake.world().unanswered = 1;
    assert_eq!(ours.spend("3a7b", LIMIT).await, Ok(true), "it was ours that was not answered");
    assert_eq!(others.spend("3a7b", LIMIT).await, Ok(false));
    assert_eq!(others.find("3a7b").await, Ok(None));
    // A token that etcd does not know, as those of a state directory are.
    assert_eq!(others.spend("5f0c", LIMIT).await, Ok(true));
    assert_eq!(fake.keys("/mesh/"), ["/mesh/used-tokens/3a7b", "/mesh/used-tokens/5f0c"]);
    fake.expire(fake.lease_of("/used-tokens/5f0c"));
    assert_eq!(fake.keys("/mesh/"), ["/mesh/used-tokens/3a7b"]);
}
