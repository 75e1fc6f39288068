//! Members of WorkloadGroups that replicas tell each other of, on the wire.

use std::time::Duration;

use serde_json::json;

use super::super::members::Members;
use super::fake::Fake;
use super::{Follower, WEB, addresses, follow, outside};
use crate::registry::Workload;

const GROUP: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec: {template: {labels: {app: web}}}
";
const KEY: &str = "vm@10.0.0.7:8080";

/// One that registers for `web` at this address.
fn member_at(address: &str) -> Workload {
    outside(&format!("vm@{address}"), "shop", "web", address.parse().expect("an address"))
}

fn member() -> Workload {
    member_at("10.0.0.7:8080")
}

/// A cluster with the service and the group.
async fn shop() -> Fake {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(GROUP);
    fake
}

/// Two replicas that follow it and tell each other, and a member that the first one has told the second of.
async fn two_replicas_of_a_member(fake: &Fake) -> (Follower, Follower, [Members; 2]) {
    let (first, second) = (follow(fake).await, follow(fake).await);
    let telling = [&first, &second].map(|one| Members::start(&one.cluster, &one.plane, true));
    first.plane.register(member());
    second.until("it is heard of", |snapshot| addresses(snapshot) == ["10.0.0.7:8080"]).await;
    (first, second, telling)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_is_known_to_all_replicas_while_it_is_registered_with_one() {
    let fake = shop().await;
    let (first, second, _telling) = two_replicas_of_a_member(&fake).await;
    let entry = fake.world().object("workloadentries", "vms-10.0.0.7");
    let owner = json!([{
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "name": "vms", "uid": "u", "controller": true,
    }]);
    assert_eq!(entry["metadata"]["ownerReferences"], owner);
    assert_eq!(entry["metadata"]["annotations"]["istio.io/autoRegistrationGroup"], "vms");
    assert_eq!(entry["spec"]["labels"]["app"], "web");

    // It goes to the other replica, and is gone from the first.
    second.plane.register(member());
    first.plane.unregister(KEY);
    let controller = entry["metadata"]["annotations"]["istio.io/workloadController"].clone();
    fake.until("it is taken over", |fake| {
        let now = fake.world().object("workloadentries", "vms-10.0.0.7");
        let now = &now["metadata"]["annotations"]["istio.io/workloadController"];
        now.is_string() && *now != controller
    })
    .await;
    first.until("it is heard of", |snapshot| addresses(snapshot) == ["10.0.0.7:8080"]).await;
    second.plane.unregister(KEY);
    first.until("it is gone", |snapshot| addresses(snapshot).is_empty()).await;
    fake.until("its entry is gone", |fake| fake.world().object("workloadentries", "vms-10.0.0.7").is_null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_somebody_else_is_left_alone_and_who_may_not_write_hears() {
    let fake = shop().await;
    // By chance it has the name.
    fake.apply(
        "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vms-10.0.0.7, namespace: shop}
spec: {address: 10.0.0.8, labels: {app: web}}
",
    );
    let (first, second) = (follow(&fake).await, follow(&fake).await);
    let _telling =
        [(&first, true), (&second, false)].map(|(one, writes)| Members::start(&one.cluster, &one.plane, writes));
    let before = fake.world().object("workloadentries", "vms-10.0.0.7");
    first.plane.register(member());
    fake.until("it is tried", |fake| fake.count("make workloadentries") == 1).await;
    assert_eq!(fake.world().object("workloadentries", "vms-10.0.0.7")["spec"], before["spec"]);
    first.plane.register(member_at("10.0.0.9:8080"));
    let both = ["10.0.0.8:8080", "10.0.0.9:8080"];
    second.until("the other one is heard of", |snapshot| addresses(snapshot) == both).await;
    second.plane.register(member_at("10.0.0.6:8080"));
    first.plane.unregister("vm@10.0.0.9:8080");
    fake.until("its entry is gone", |fake| fake.world().object("workloadentries", "vms-10.0.0.9").is_null()).await;
    assert_eq!(fake.count("make workloadentries"), 2, "one of them may not write");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_could_not_be_made_since_another_replica_was_first_is_taken_over() {
    let fake = shop().await;
    let entry = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vms-10.0.0.7, namespace: shop}
spec: {address: 10.0.0.7, labels: {app: web}}
";
    fake.apply(entry);
    let first = follow(&fake).await;
    let _telling = Members::start(&first.cluster, &first.plane, true);
    first.plane.register(member());
    fake.until("it is tried", |fake| fake.count("make workloadentries") == 1).await;
    // Only now it is heard that it is one of another replica.
    let label = "namespace: shop, labels: {policy.mesh-control/registered: 'true'}";
    fake.apply(&entry.replace("namespace: shop", label));
    fake.until("it is taken over", |fake| {
        let now = fake.world().object("workloadentries", "vms-10.0.0.7");
        now["metadata"]["annotations"]["istio.io/workloadController"].is_string()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_with_members_at_one_address_do_not_write_over_each_other() {
    let fake = shop().await;
    let (_first, second, _telling) = two_replicas_of_a_member(&fake).await;
    second.plane.register(member_at("10.0.0.7:9090"));
    fake.until("there is another entry", |fake| fake.count("make workloadentries") == 2).await;
    assert_eq!(fake.count("put workloadentries"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_a_webhook_changes_is_written_again_a_few_times_and_for_what_its_workloads_say() {
    let fake = shop().await;
    fake.world().has_webhook = true;
    let first = follow(&fake).await;
    let _telling = Members::start_at(&first.cluster, &first.plane, true, Duration::from_millis(20));
    let entry = |fake: &Fake| fake.world().object("workloadentries", "vms-10.0.0.7")["metadata"].clone();
    first.plane.register(member());
    fake.until("it is put", |fake| fake.count("put workloadentries") == 3).await;
    let left = entry(&fake)["resourceVersion"].clone();
    first.plane.register(member_at("10.0.0.9:8080"));
    fake.until("so is the other one", |fake| fake.count("put workloadentries") == 6).await;
    assert_eq!(entry(&fake)["resourceVersion"], left, "it is left as the webhook has it");

    first.plane.register(Workload { weight: 7, ..member() });
    fake.until("what is new is written", |fake| {
        let told = entry(fake)["annotations"]["policy.mesh-control/workloads"].clone();
        told.as_str().is_some_and(|told| told.contains("\"weight\":7"))
    })
    .await;
}
