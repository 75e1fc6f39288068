//! Bookinfo as a whole: real sockets, the embedded control plane.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use mesh_control::calls;
use mesh_control::embedded::{self, Config, Embedded};
use mesh_core::identity::SpiffeId;
use mesh_core::xds::Bootstrap;
use mesh_examples::bookinfo::manifests::{self, Phase};
use mesh_examples::bookinfo::tour::{self, Json, Options, Outlook};
use mesh_examples::bookinfo::{App, Bookinfo, Product, Service};
use mesh_tower::Mesh;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let options = Options { rate: 30.0, phase: Duration::from_secs(3), strict };
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
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {gatewayClassName: g, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    let tls = |mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: details}}\n\
             spec: {{host: details, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n"
        )
    };
    let phases = [
        phase("halves", &route("reviews", halves)),
        phase("nobody", &route("ratings", nobody)),
        phase("gateway", gateway),
        phase("tls", &tls("ISTIO_MUTUAL")),
        phase("plaintext", &tls("DISABLE")),
        phase("wrong", "kind: [VirtualService"),
    ];
    let (outlooks, _) = tour(&phases, false).await;
    for outlook in &outlooks {
        assert!(outlook.is_ok(), "{}: {:#?}", outlook.name, outlook.problems);
    }
    let [halves, nobody, gateway, tls, plaintext, wrong] = &outlooks[..] else { panic!("six phases") };
    assert!(halves.reports.is_empty() && nobody.reports.is_empty());
    let failed = nobody.seen[&(App::Ratings, None)].errors.values().next().unwrap();
    assert!(failed.contains("no healthy endpoint"), "{failed}");
    assert_eq!(gateway.reports.len(), 1);
    assert_eq!((&*gateway.reports[0].file, gateway.reports[0].line), ("file.yaml", 4));
    assert!(tls.reports.is_empty(), "{:?}", tls.reports);
    // It is the mesh's own TLS, which the mesh speaks anyway.
    let answered = tour::Outcome::Version("v1".into());
    assert!(tls.seen[&(App::Details, None)].outcomes.keys().all(|outcome| *outcome == answered));
    let closed = plaintext.seen[&(App::Details, None)].outcomes.keys();
    assert!(closed.len() > 0 && closed.into_iter().all(|outcome| matches!(outcome, tour::Outcome::Failed(_))));
    assert!(!wrong.reports.is_empty());
}

/// What a client without TLS gets of a port.
async fn in_plaintext(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: bookinfo\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset, where bytes that nobody read were thrown away, is an end, too.
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_gets_nothing_but_the_product_page() {
    let bookinfo = Bookinfo::start().await.unwrap();
    for running in bookinfo.services() {
        let answer = in_plaintext(running.address).await;
        match running.service.app {
            App::Productpage => assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("healthy"), "{answer}"),
            app => assert_eq!(answer, "", "{app}"),
        }
    }
    bookinfo.stop().await.unwrap();
}

/// A client of bookinfo, with a certificate of this authority for the account of the product page. It believes in both
/// authorities, so that whoever refuses is the server.
fn with_certificate_of(authority: &Embedded, bookinfo: &Bookinfo, dir: &std::path::Path) -> Mesh {
    let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage".parse().unwrap();
    let authority = authority.authority().expect("it has one");
    let (key, issued) = authority.issue_with_key(&id, 0, SystemTime::now()).unwrap();
    let (_, chain) = issued.chain.split_last().unwrap();
    let roots = authority.roots_pem() + &bookinfo.embedded().authority().unwrap().roots_pem();
    std::fs::write(dir.join("key.pem"), key.as_bytes()).unwrap();
    std::fs::write(dir.join("cert-chain.pem"), chain.concat()).unwrap();
    std::fs::write(dir.join("root-cert.pem"), roots).unwrap();
    let bootstrap = json!({
        "xds_servers": [{"server_uri": "embedded:1", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "foreign-1", "metadata": {"SERVICE_ACCOUNT": "bookinfo-productpage"}},
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
            "certificate_file": dir.join("cert-chain.pem"),
            "private_key_file": dir.join("key.pem"),
            "ca_certificate_file": dir.join("root-cert.pem"),
        }}},
    });
    let bootstrap = Bootstrap::from_json(&bootstrap.to_string(), "the test").unwrap();
    Mesh::builder().source(bookinfo.embedded().source(bootstrap)).cold_start_wait(PATIENCE).start().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_gets_nothing_whatever_name_is_in_it() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let foreign = Embedded::start(Config::yaml(""), embedded::Options::default().dev()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let calls = ["details:9080/details/0", "reviews:9080/reviews/0", "ratings:9080/ratings/0"];
    let own = with_certificate_of(bookinfo.embedded(), &bookinfo, dir.path());
    assert_eq!(own.client().get("http://reviews:9080/reviews/0").await.unwrap().status(), 200);
    let other = with_certificate_of(&foreign, &bookinfo, dir.path());
    for call in calls {
        let answer = other.client().get(format!("http://{call}")).await;
        assert!(answer.is_err(), "{call}: {answer:?}");
    }
    bookinfo.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_listed_may_not_call() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let callers = ["default", "bookinfo-productpage", "bookinfo-reviews"];
    let calls = ["details:9080/details/0", "reviews:9080/reviews/0", "ratings:9080/health"];
    let mut seen = Vec::new();
    for account in callers {
        let caller = bookinfo.caller_as("caller", account).unwrap();
        let mut statuses = Vec::new();
        for call in calls {
            statuses.push(caller.client().get(format!("http://{call}")).await.unwrap().status().as_u16());
        }
        seen.push(statuses);
    }
    assert_eq!(seen, [[403, 403, 403], [200, 200, 403], [403, 403, 200]]);
    bookinfo.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_are_suggested_from_its_traffic_take_the_place_of_its_own() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let client = bookinfo.caller("reader").unwrap().client();
    for _ in 0..40 {
        let response = client.get("http://productpage:9080/api/v1/products/0?user=jason").await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
    let gathered = bookinfo.embedded().server().calls().unwrap();
    let suggested = || {
        let of_app = |app: App| {
            let records = calls::of_workload(gathered.records(None), "default", app.name(), None)?;
            calls::suggest(&records, false)
        };
        App::ALL.into_iter().map(of_app).collect::<Result<Vec<_>, String>>()
    };
    let told = async {
        loop {
            if let Ok(suggestions) = suggested() {
                return suggestions;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let suggestions = tokio::time::timeout(PATIENCE, told).await.expect("all services have told who called them");
    let policies: Vec<&str> = suggestions.iter().map(|suggestion| suggestion.yaml.as_str()).collect();
    assert!(suggestions.iter().all(|suggestion| suggestion.left_out.is_empty()), "{policies:?}");
    let policies = policies.join("---\n");
    assert!(!policies.contains("jason"), "{policies}");
    // Its own are in this text.
    bookinfo.embedded().set_yaml("00-security.yaml", &policies).unwrap();
    let spy = bookinfo.caller_as("spy", "spy").unwrap().client();
    let refused = async {
        while spy.get("http://productpage:9080/api/v1/products/0").await.unwrap().status() != 403 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("they are in force");
    for _ in 0..40 {
        let response = client.get("http://productpage:9080/api/v1/products/0").await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let product: Product = serde_json::from_slice(&body).unwrap();
        assert!(product.is_complete(), "{product:?}");
    }
    bookinfo.stop().await.unwrap();
}

/// `examples/manifests/limits/local.yaml`.
#[tokio::test(flavor = "multi_thread")]
async fn each_reader_may_have_three_pages_by_one_file() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let file = include_str!("../manifests/limits/local.yaml");
    bookinfo.embedded().set_yaml("limits.yaml", file).unwrap();
    let client = bookinfo.caller("reader").unwrap().client();
    let ask = async |user: &str| client.get(&format!("http://productpage:9080/productpage?user={user}")).await.unwrap();
    let in_force = async {
        while !ask("nobody").await.headers().contains_key("ratelimit") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, in_force).await.expect("it is in force");
    for user in ["jason", "alice"] {
        for left in ["2", "1", "0"] {
            let response = ask(user).await;
            let told = response.headers()["ratelimit"].to_str().unwrap();
            assert!(response.status() == 200 && told.contains(&format!("r={left};")), "{user} {told}");
        }
        let response = ask(user).await;
        assert!(response.status() == 429 && response.headers().contains_key("retry-after"), "{user} {response:?}");
    }
    bookinfo.stop().await.unwrap();
}

/// `examples/manifests/limits/global.yaml`.
#[tokio::test(flavor = "multi_thread")]
async fn all_processes_of_reviews_count_each_reader_together_by_one_file() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let client = bookinfo.caller_as("reader", App::Productpage.service_account()).unwrap().client();
    let ask = async |user: &str| {
        let request = http::Request::get("http://reviews:9080/reviews/0").header("end-user", user);
        let response = client.request(request.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), serde_json::from_slice::<serde_json::Value>(&body).ok())
    };
    bookinfo.embedded().set_yaml("limits.yaml", include_str!("../manifests/limits/global.yaml")).unwrap();
    let is_counted = || bookinfo.embedded().status().rate_limits.is_some_and(|limits| limits.keys > 0);
    let in_force = async {
        // Each of the three versions hears of it by itself, and so many requests in a row pass by none of them.
        let mut refused = 0;
        while refused < 60 {
            refused = if ask("somebody").await.0 == 429 { refused + 1 } else { 0 };
        }
    };
    tokio::time::timeout(PATIENCE, in_force).await.expect("it is in force");
    assert!(is_counted());
    for user in ["jason", "alice"] {
        let mut versions = std::collections::BTreeSet::new();
        let mut statuses = Vec::new();
        for _ in 0..12 {
            let (status, review) = ask(user).await;
            statuses.push(status);
            if let Some(version) = review.and_then(|review| Some(review["version"].as_str()?.to_owned())) {
                versions.insert(version);
            }
        }
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 6, "{user} {statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 6, "{user} {statuses:?}");
        assert!(versions.len() > 1, "of several processes: {versions:?}");
    }
    bookinfo.stop().await.unwrap();
}

/// `examples/manifests/limits/quota.yaml`.
#[tokio::test(flavor = "multi_thread")]
async fn each_reader_has_a_quota_of_pages_by_one_file() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let file = include_str!("../manifests/limits/quota.yaml");
    bookinfo.embedded().set_yaml("quota.yaml", file).unwrap();
    let client = bookinfo.caller("reader").unwrap().client();
    let ask = async |user: &str| client.get(&format!("http://productpage:9080/productpage?user={user}")).await.unwrap();
    let is_known = |user: &str| {
        let quotas = bookinfo.embedded().quotas().unwrap();
        quotas.identities.into_iter().find(|one| one.by["query.user"] == user)
    };
    let in_force = async {
        while is_known("nobody").is_none() {
            ask("nobody").await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, in_force).await.expect("it is in force");
    let served = async {
        let (mut served, mut refused) = (0, 0);
        while refused == 0 {
            let response = ask("jason").await;
            match response.status().as_u16() {
                200 => served += 1,
                // Until there is a share, it is sent away for a second; then for the rest of the month.
                429 => refused += usize::from(response.headers()["retry-after"] != "1"),
                status => panic!("{status}"),
            }
        }
        served
    };
    let served = tokio::time::timeout(PATIENCE, served).await.expect("it is used up");
    assert!((5..=6).contains(&served), "{served}");
    let jason = is_known("jason").unwrap();
    assert_eq!((jason.limit, jason.used, jason.left), (5, served, 0));
    bookinfo.stop().await.unwrap();
}

/// `includeRequestBodyInCheck`, at a server of the examples' own.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_shown_the_bodies_of_requests_to_a_service() {
    let authorizer = axum::Router::new().fallback(|body: String| async move {
        if body == "bad" { http::StatusCode::FORBIDDEN } else { http::StatusCode::OK }
    });
    let bound = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = bound.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(bound, authorizer).await });
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders:\n    - name: authz\n      envoyExtAuthzHttp: {{service: authz.example.com, port: 8000, \
         includeRequestBodyInCheck: {{maxRequestBytes: 8}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: authz}}\n\
         spec: {{hosts: [authz.example.com], ports: [{{number: 8000, name: http, targetPort: {port}}}], \
         resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: details}}\n\
         spec: {{selector: {{app: details}}, ports: [{{name: http, port: 9080}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask}}\n\
         spec: {{action: CUSTOM, provider: {{name: authz}}, rules: [{{}}]}}\n"
    );
    let control = Embedded::start(Config::yaml(yaml), embedded::Options::default()).await.unwrap();
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~details.default~default.svc.cluster.local")
        .metadata("NAMESPACE", "default")
        .metadata("LABELS", json!({"app": "details"}));
    let mesh = Mesh::builder().source(control.source(bootstrap)).start().unwrap();
    let service = Service::new(App::Details, "v1").start(mesh, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    // A POST that is let in finds that there is nothing to post to.
    for (head, body, expected) in
        [("GET", "", "200"), ("POST", "bad", "403"), ("POST", "good", "405"), ("POST", "far too long", "413")]
    {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head} /details/0 HTTP/1.1\r\nhost: details\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{head} {body:?}: {answer}");
    }
}
