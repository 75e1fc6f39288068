//! What replicas write into a cluster, on the wire.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::elected::{ControllerName, Elected, LeaseName};
use super::super::lease::Timing;
use super::super::status::CONTROLLER;
use super::fake::Fake;
use super::{Follower, GOOD_RULE, WEB, follow, rule};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
";

/// One that stands for election, and looks at once whether it is its turn.
fn stand(follower: &Follower) -> Elected {
    stand_as(follower, ControllerName::default())
}

/// The same, which says it in the place of another controller.
fn stand_as(follower: &Follower, controller: ControllerName) -> Elected {
    let ms = Duration::from_millis;
    let timing = Timing { lease: ms(1000), held: ms(600), look: ms(20) };
    let lease: LeaseName = "mesh/control".parse().expect("a name");
    Elected::start_at(&follower.cluster, &follower.plane, lease, controller, timing, ms(10))
}

fn reconciled(status: &Value) -> (String, String, i64) {
    let condition = &status["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), status["observedGeneration"].as_i64().unwrap_or_default())
}

fn is(fake: &Fake, name: &str, status: &str, generation: i64) -> bool {
    let (found, _, of) = reconciled(&fake.status("virtualservices", name));
    (&*found, of) == (status, generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_replicas_writes_what_became_of_objects_and_another_one_goes_on_when_it_stops_or_dies() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&rule("good", GOOD_RULE));
    fake.apply(&rule("wrong", "{rout: []}"));
    fake.apply(ROUTE);
    let replicas = [follow(&fake).await, follow(&fake).await, follow(&fake).await];
    let (first, second) = (stand(&replicas[0]), stand(&replicas[1]));
    fake.until("all of them", |fake| {
        is(fake, "good", "True", 1) && is(fake, "wrong", "False", 1) && fake.status("httproutes", "r").is_object()
    })
    .await;
    let (_, reason, _) = reconciled(&fake.status("virtualservices", "wrong"));
    assert_eq!(reason, "FailsClosed");
    let parent = fake.status("httproutes", "r")["parents"][0].clone();
    assert_eq!(parent["controllerName"], CONTROLLER);
    assert_eq!(parent["parentRef"], json!({"group": "", "kind": "Service", "name": "web"}));
    assert_eq!(
        (&parent["conditions"][0]["type"], &parent["conditions"][0]["status"]),
        (&json!("Accepted"), &json!("True"))
    );

    // What is edited is looked at again, and nothing else is written.
    fake.apply(&rule("wrong", GOOD_RULE));
    fake.until("it is mended", |fake| is(fake, "wrong", "True", 2)).await;
    assert_eq!((fake.count("written virtualservices"), fake.count("written httproutes")), (3, 1));

    // Whichever of the two leads: the other one does in the end, and writes what is to be written, and nothing of it again.
    first.stop().await;
    fake.apply(&rule("good", "{rout: []}"));
    fake.until("the last good state", |fake| is(fake, "good", "False", 2)).await;
    assert_eq!(reconciled(&fake.status("virtualservices", "good")).1, "LastGoodState");
    let third = stand(&replicas[2]);
    drop(second);
    fake.apply(&rule("good", GOOD_RULE));
    fake.until("good again", |fake| is(fake, "good", "True", 3)).await;
    assert_eq!((fake.count("written virtualservices"), fake.count("written httproutes")), (5, 1));
    third.stop().await;
    let lease = fake.world().lease_of("control");
    assert_eq!(lease["spec"]["holderIdentity"], "", "it is left to the next one");
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_of_ours_say_whether_their_gateways_are_served_and_those_of_others_are_left_alone() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    for (name, controller) in
        [("mesh-control", CONTROLLER), ("istio", "istio.io/gateway-controller"), ("other", CONTROLLER)]
    {
        fake.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\n\
             spec: {{controllerName: {controller}}}\n"
        ));
    }
    let follower = follow(&fake).await;
    let elected = stand(&follower);
    fake.until("both of ours", |fake| fake.count("written gatewayclasses") == 2).await;
    for (name, expected) in [("mesh-control", Some("Accepted")), ("istio", None), ("other", Some("Unsupported"))] {
        let class = fake.world().class(name);
        assert_eq!(class["status"]["conditions"][0]["reason"].as_str(), expected, "{name}");
    }
    elected.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_istiod_wrote_is_taken_over_where_its_controller_is_this_one() {
    const ISTIOS: &str = "istio.io/gateway-controller";
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio}}\n\
         spec: {{controllerName: {ISTIOS}}}\n---\n{ROUTE}"
    ));
    let parent = json!({"group": "", "kind": "Service", "name": "web"});
    let old = |controller: &str| json!({"parentRef": parent, "controllerName": controller, "conditions": []});
    let mut route = fake.world().object("httproutes", "r");
    route["status"] = json!({"parents": [old(ISTIOS), old("other.example/controller"), old(CONTROLLER)]});
    fake.put(route);
    let follower = follow(&fake).await;
    let elected = stand_as(&follower, ISTIOS.parse().expect("a name"));
    fake.until("both", |fake| fake.count("written gatewayclasses") == 1 && fake.count("written httproutes") == 1).await;
    let class = fake.world().class("istio");
    assert_eq!(class["status"]["conditions"][0]["reason"], "Accepted");
    let parents = fake.status("httproutes", "r")["parents"].clone();
    let names: Vec<_> = parents.as_array().expect("parents").iter().map(|one| one["controllerName"].clone()).collect();
    assert_eq!(names, ["other.example/controller", ISTIOS]);
    elected.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_too_late_writes_into_the_newest_version() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&rule("a", GOOD_RULE));
    fake.world().too_late = 5;
    let follower = follow(&fake).await;
    let elected = stand(&follower);
    fake.until("it is written", |fake| is(fake, "a", "True", 1)).await;
    assert_eq!(fake.count("patch virtualservices"), 6);
    assert_eq!(fake.world().object("virtualservices", "a")["metadata"]["labels"], json!({"late": "0"}));
    elected.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_fought_with_nor_asked_again_and_again_for_what_may_not_be_done() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&rule("a", GOOD_RULE));
    fake.world().has_rival = true;
    let follower = follow(&fake).await;
    let elected = stand(&follower);
    fake.until("it is given up", |fake| fake.count("patch virtualservices") == 3).await;
    // Others are written all the same.
    fake.world().has_rival = false;
    fake.apply(&rule("b", GOOD_RULE));
    fake.until("another one", |fake| is(fake, "b", "True", 1)).await;
    assert_eq!(fake.count("patch virtualservices"), 4);
    // It is another one now, and worth a word.
    fake.apply(&rule("a", "{rout: []}"));
    fake.until("other words", |fake| is(fake, "a", "False", 2)).await;

    fake.world().is_forbidden = true;
    fake.apply(&rule("b", "{rout: []}"));
    fake.until("it is refused", |fake| fake.count("patch virtualservices") == 6).await;
    follower.until("it is followed all the same", |_| follower.plane.wrong().len() == 2).await;
    fake.world().is_forbidden = false;
    fake.apply(&rule("c", GOOD_RULE));
    fake.until("another one", |fake| is(fake, "c", "True", 1)).await;
    assert_eq!((fake.count("patch virtualservices"), is(&fake, "b", "False", 2)), (7, false), "later");
    elected.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_cannot_be_stored_keeps_no_other_one_from_being_written() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&rule("a-huge", GOOD_RULE));
    fake.apply(&rule("b", GOOD_RULE));
    fake.world().is_too_large = "a-huge";
    let follower = follow(&fake).await;
    let elected = stand(&follower);
    fake.until("the one behind it", |fake| is(fake, "b", "True", 1)).await;
    assert!(fake.status("virtualservices", "a-huge").is_null());
    elected.stop().await;
}
