//! Bookinfo as a whole: real sockets, the embedded control plane.

use std::time::Duration;

use http_body_util::BodyExt;
use mesh_examples::bookinfo::manifests::{self, Phase};
use mesh_examples::bookinfo::tour::{self, Json, Options, Outlook};
use mesh_examples::bookinfo::{App, Bookinfo, Product};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_put_together_from_all_services() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let client = bookinfo.caller("reader").unwrap().client();
    let mut versions = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let response = client.get("http://productpage:9080/api/v1/products/0").await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let product: Product = serde_json::from_slice(&body).unwrap();
        assert!(product.details.call.is_ok() && product.reviews.call.is_ok(), "{product:?}");
        let version = product.reviews.call.version("reviews").unwrap().to_owned();
        match product.ratings() {
            None => assert_eq!(version, "v1"),
            Some(ratings) => assert!(ratings.is_ok() && ratings.version("ratings") == Some("v1"), "{ratings:?}"),
        }
        versions.insert(version);
    }
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), ["v1", "v2", "v3"]);
    let page = client.get("http://productpage:9080/productpage?user=jason").await.unwrap();
    let page = page.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8_lossy(&page);
    assert!(page.contains("for <b>jason</b>") && page.contains("William Shakespeare"), "{page}");
    bookinfo.stop().await.unwrap();
}

async fn tour(phases: &[Phase], strict: bool) -> (Vec<Outlook>, Vec<Value>) {
    let bookinfo = Bookinfo::start().await.unwrap();
    let options = Options { rate: 60.0, phase: Duration::from_secs(2), strict };
    let mut out = Vec::new();
    let outlooks = tour::run(&bookinfo, phases, options, &mut Json(&mut out)).await.unwrap();
    bookinfo.stop().await.unwrap();
    let text = String::from_utf8(out).unwrap();
    (outlooks, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_sees_what_its_files_say() {
    let (outlooks, lines) = tour(&manifests::tour(), true).await;
    for outlook in &outlooks {
        assert!(outlook.is_ok(), "{}: {:#?}", outlook.name, outlook.problems);
        assert!(outlook.pages >= 80 && outlook.failed == 0, "{}: {} pages", outlook.name, outlook.pages);
    }
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[5]["summary"]["ok"], true);
    let fault = &lines[3];
    assert_eq!(fault["phase"], "04-fault");
    assert_eq!(
        fault["services"]["details"]["jason"]["answered"]["failed 555"],
        fault["services"]["details"]["jason"]["calls"]
    );
    assert!(fault["services"]["ratings"]["jason"]["ms"]["p50"].as_f64().unwrap() >= 398.0);
}

fn phase(name: &str, text: &str) -> Phase {
    Phase { name: name.into(), files: vec![("file.yaml".into(), text.into())] }
}

fn route(app: &str, http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {app}}}\n\
         spec: {{hosts: [{app}], http: {http}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_others_take_effect_or_are_reported() {
    let halves = "[{route: [{destination: {host: reviews, subset: v1}, weight: 50},
                            {destination: {host: reviews, subset: v3}, weight: 50}]}]";
    let nobody = "[{route: [{destination: {host: ratings, subset: v2}}]}]";
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: []}\n";
    let tls = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: details}\n\
               spec: {host: details, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n";
    let phases = [
        phase("halves", &route("reviews", halves)),
        phase("nobody", &route("ratings", nobody)),
        phase("gateway", gateway),
        phase("tls", tls),
        phase("wrong", "kind: [VirtualService"),
    ];
    let (outlooks, _) = tour(&phases, false).await;
    for outlook in &outlooks {
        assert!(outlook.is_ok(), "{}: {:#?}", outlook.name, outlook.problems);
    }
    let [halves, nobody, gateway, tls, wrong] = &outlooks[..] else { panic!("five phases") };
    assert!(halves.reports.is_empty() && nobody.reports.is_empty());
    let failed = nobody.seen[&(App::Ratings, None)].errors.values().next().unwrap();
    assert!(failed.contains("no healthy endpoint"), "{failed}");
    assert_eq!(gateway.reports.len(), 1);
    assert_eq!((&*tls.reports[0].file, tls.reports[0].line), ("file.yaml", 4));
    assert!(tls.seen[&(App::Details, None)].outcomes.keys().all(|outcome| matches!(outcome, tour::Outcome::Failed(_))));
    assert!(!wrong.reports.is_empty());
}
