//! The corpus: every field of every kind with a usual, an empty, an extreme and a wrong value. What `validate` passes, the
//! data plane accepts, and a request experiences what is written down. `interop/run.py` asks gRPC's own clients the same.

mod mutual;
mod notation;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use futures_util::{StreamExt, stream};
use mesh_control::analysis::validate;
use mesh_control::config::support::ObjectKind;
use mesh_control::config::{Code, Diagnostic, Severity};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::client_status::ResourceState;
use mesh_core::xds::Bootstrap;
use mesh_tower::{Client, Mesh};
use notation::{Case, Exchange, Outcome};

/// What is said of a case by itself.
fn findings(case: &Case) -> Vec<Diagnostic> {
    let base = notation::base([1, 2]);
    let found = validate([("base.yaml", base.as_str()), ("case.yaml", case.text.as_str())]);
    found.into_iter().filter(|finding| &*finding.file == "case.yaml").collect()
}

fn passes(case: &Case) -> bool {
    findings(case).iter().all(|finding| finding.severity != Severity::Error)
}

/// Whether a finding is at the case's field, at a part of it, or at what it is a part of.
fn is_at(finding: &Diagnostic, case: &Case) -> bool {
    let Some(field) = &finding.field else { return false };
    let names: Vec<&str> = field.split(['[', ']']).step_by(2).collect();
    let found = names.concat();
    let is_inside = |inner: &str, outer: &str| {
        inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
    };
    finding.line > 0 && (is_inside(&found, &case.field) || is_inside(&case.field, &found))
}

/// Whether the errors are that the whole of an object is not enforced, and no other.
fn is_unenforced(found: &[Diagnostic]) -> bool {
    let errors: Vec<_> = found.iter().filter(|finding| finding.severity == Severity::Error).collect();
    let is_of_all = |finding: &Diagnostic| {
        matches!(finding.code, Code::Unenforced | Code::NeedsCertificates)
            && finding.field.as_deref() == Some("spec")
            && finding.line > 0
    };
    !errors.is_empty() && errors.into_iter().all(is_of_all)
}

#[test]
fn validate_says_of_every_case_what_is_written_down() {
    let cases = notation::all([1, 2]);
    assert!(cases.len() >= 200, "{}", cases.len());
    let mut faults = Vec::new();
    for case in &cases {
        let found = findings(case);
        let is_there = |severity| found.iter().any(|finding| finding.severity == severity && is_at(finding, case));
        let none_above = |severity| found.iter().all(|finding| finding.severity <= severity);
        let holds = match case.outcome {
            Outcome::Ok => none_above(Severity::Info),
            Outcome::Warn => none_above(Severity::Warning) && is_there(Severity::Warning),
            Outcome::Error => is_there(Severity::Error),
            Outcome::Unenforced => is_unenforced(&found),
            Outcome::Any => true,
        };
        if !holds {
            let told: Vec<String> = found.iter().map(ToString::to_string).collect();
            let value: String = case.value.chars().take(60).collect();
            faults.push(format!("{} {} {}: {value}: {told:#?}", case.kind, case.field, case.name));
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

#[test]
fn every_field_of_every_kind_stands_in_the_corpus() {
    let cases = notation::all([1, 2]);
    let mut missing = Vec::new();
    for kind in ObjectKind::ALL {
        let file = format!("../mesh-control/testdata/fields/{}.txt", kind.title());
        let fields = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the fields");
        for field in fields.lines() {
            let mut own = cases.iter().filter(|case| case.kind == kind.title());
            let is_in = |case: &Case| {
                field == case.field || field.strip_prefix(&case.field).is_some_and(|rest| rest.starts_with('.'))
            };
            if !own.any(is_in) {
                missing.push(format!("{} {field}", kind.title()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A server that tells in its answer who it is and what it got.
async fn serve(version: &'static str) -> u16 {
    let answer = move |request: Request| async move {
        let mut headers = HeaderMap::new();
        headers.insert("x-version", HeaderValue::from_static(version));
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        headers.insert("x-path", HeaderValue::try_from(path).expect("a path"));
        for name in request.headers().keys() {
            let values: Vec<&[u8]> = request.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect();
            let name = HeaderName::try_from(format!("x-got-{name}")).expect("a name");
            headers.insert(name, HeaderValue::from_bytes(&values.join(&b","[..])).expect("a value"));
        }
        headers
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    port
}

/// A client of the namespace `corpus`.
fn mesh(control: &Embedded) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~corpus.corpus~corpus.svc.cluster.local")
        .metadata("NAMESPACE", "corpus")
        .metadata("LABELS", serde_json::json!({"tier": "gold"}));
    let mesh = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(60));
    mesh.start().expect("a mesh")
}

/// Whether an answer is what is written down; if not, what it is.
async fn experience(client: &Client, case: &Case, exchange: &Exchange) -> Result<(), String> {
    let mut words = exchange.request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = http::Request::builder()
        .method(Method::from_bytes(method.as_bytes()).expect("a method"))
        .uri(format!("http://{}{path}", case.target));
    for header in words {
        let (name, value) = header.split_once('=').expect("a header");
        request = request.header(name, value);
    }
    let sent = client.request(request.body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a request"));
    let mut expected = exchange.answer.split(' ');
    let head = expected.next().unwrap_or_default();
    let response = match sent.await {
        Ok(response) => response,
        Err(error) if format!("{:?}", error.kind()) == head => return Ok(()),
        Err(error) => return Err(format!("{:?}: {error:#}", error.kind())),
    };
    let header = |name: &str| {
        let value = response.headers().get(name).map_or(&b"-"[..], HeaderValue::as_bytes);
        String::from_utf8_lossy(value).into_owned()
    };
    let version = header("x-version");
    let is_head = match head {
        "either" => matches!(version.as_str(), "v1" | "v2"),
        // What a rule removes cannot be looked at.
        "v1" if exchange.answer.contains("r:x-version=-") => response.status() == 200 && header("x-path") != "-",
        "v1" | "v2" => version == head,
        status => response.status().as_str() == status,
    };
    let is_told = expected.all(|word| match word.split_once('=') {
        Some(("path", path)) => header("x-path") == path,
        Some((name, value)) => match (name.strip_prefix("h:"), name.strip_prefix("r:")) {
            (Some(name), _) => header(&format!("x-got-{name}")) == value,
            (_, Some(name)) => header(name) == value,
            _ => panic!("{word}"),
        },
        None => panic!("{word}"),
    });
    if is_head && is_told { Ok(()) } else { Err(format!("{} {:?}", response.status(), response.headers())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_validate_passes_is_accepted_and_does_what_is_written_down() {
    let ports = [serve("v1").await, serve("v2").await];
    let (of_mesh, passed): (Vec<Case>, Vec<Case>) =
        notation::all(ports).into_iter().filter(passes).partition(Case::is_of_mesh);
    let base = notation::base(ports);
    let texts: Vec<&str> = std::iter::once(base.as_str()).chain(passed.iter().map(|case| case.text.as_str())).collect();
    let control = Embedded::start(Config::yaml(texts.join("\n---\n")), Options::default()).await.expect("started");
    let (mesh, mut faults) = (mesh(&control), Vec::new());
    let client = &mesh.client();
    let plain = [Exchange { request: "GET /".to_owned(), answer: "anything".to_owned() }];
    let asked = passed.iter().flat_map(|case| {
        let exchanges = if case.requests.is_empty() { &plain[..] } else { &case.requests[..] };
        exchanges.iter().map(move |exchange| (case, exchange))
    });
    let answers = stream::iter(asked).map(|(case, exchange)| async move {
        let result = experience(client, case, exchange).await;
        // An answer that nobody wrote down may be any, but for one: a host that is not known was refused.
        let is_known = |told: &String| !told.starts_with("UnknownTarget");
        match result {
            Err(told) if exchange.answer != "anything" || !is_known(&told) => {
                let value: String = case.value.chars().take(60).collect();
                let wanted = format!("{} -> {}", exchange.request, exchange.answer);
                Some(format!("{} {} {}: {value}: {wanted}: {told}", case.kind, case.field, case.name))
            }
            _ => None,
        }
    });
    faults.extend(answers.buffer_unordered(32).collect::<Vec<_>>().await.into_iter().flatten());
    for resource in mesh.client_status().resources.iter().filter(|resource| resource.state == ResourceState::Nacked) {
        faults.push(format!("refused: {:?}: {:?}", resource.key, resource.error));
    }
    let told = control.status();
    for finding in told.diagnostics.iter().filter(|finding| finding.code == "refused") {
        faults.push(format!("rendered otherwise: {finding:?}"));
    }
    for kind in told.clients.iter().flat_map(|client| &client.kinds).filter(|kind| kind.nacks > 0) {
        faults.push(format!("refused by a client: {kind:?}"));
    }
    control.shutdown().await;
    for case in &of_mesh {
        faults.extend(experience_of_mesh(&base, case).await);
    }
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), passed.len() + of_mesh.len(), faults.join("\n"));
}

/// What is wrong with the answers in a mesh of these settings.
async fn experience_of_mesh(base: &str, case: &Case) -> Vec<String> {
    if case.requests.is_empty() {
        return Vec::new();
    }
    let text = format!("{base}\n---\n{}", case.text);
    let control = Embedded::start(Config::yaml(text), Options::default()).await.expect("started");
    let client = mesh(&control).client();
    let mut faults = Vec::new();
    for exchange in &case.requests {
        if let Err(told) = experience(&client, case, exchange).await {
            faults.push(format!("{} {}: {} -> {}: {told}", case.kind, case.name, exchange.request, exchange.answer));
        }
    }
    control.shutdown().await;
    faults
}

/// Envoy has this fact, and a library in the caller's own process does not: Istio takes it, and the data plane cannot.
const ONE_BAD_ROUTE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: corpus}
spec:
  hosts: [shop.corpus.example]
  http:
  - match: [{uri: {prefix: /bad}}]
    headers:
      request:
        set:
          x-from: \"%DOWNSTREAM_REMOTE_ADDRESS%\"
    route: [{destination: {host: up.corpus.example, port: {number: 80}, subset: v1}}]
  - route: [{destination: {host: up.corpus.example, port: {number: 80}, subset: v1}}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_the_data_plane_would_refuse_answers_with_the_reason_and_the_others_of_its_host_work() {
    let base = notation::base([serve("v1").await, serve("v2").await]);
    let control = Embedded::start(Config::yaml(base), Options::default()).await.expect("started");
    control.set_yaml("shop.yaml", ONE_BAD_ROUTE).expect("it is one route that is wrong");
    let mesh = mesh(&control);
    let answer = |path: &'static str| {
        let answer = mesh.client().get(format!("http://shop.corpus.example{path}"));
        async move {
            let response = answer.await.expect("an answer");
            let status = response.status();
            let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
            (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        }
    };
    let (status, reason) = answer("/bad/1").await;
    assert_eq!(status, 503);
    assert!(reason.contains("VirtualService corpus/shop: http[0]: %DOWNSTREAM_REMOTE_ADDRESS% is not"), "{reason}");
    assert_eq!(answer("/").await.0, 200);
    let told = control.status().diagnostics;
    let refused: Vec<_> = told.iter().filter(|finding| finding.code == "refused").collect();
    let places: Vec<_> = refused.iter().map(|it| (it.field.as_deref(), it.line, it.column)).collect();
    let value = Some("http[0].headers.request.set[x-from]");
    assert_eq!(places, [(Some("http[0]"), Some(7), Some(5)), (value, Some(11), Some(19))], "{refused:#?}");
    assert!(refused.iter().all(|finding| finding.severity == "error"));
    let faulty: Vec<_> =
        mesh.client_status().resources.iter().filter(|it| it.state == ResourceState::Nacked).cloned().collect();
    assert!(faulty.is_empty(), "{faulty:?}");
}
