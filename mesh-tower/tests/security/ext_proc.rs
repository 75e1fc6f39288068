//! External processors from YAML to the answer: embedded control plane, the library's server, a processor that speaks gRPC, and bytes
//! over sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
use envoy_types::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::Mesh;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::limits_support;
use crate::shop::{ask, workload};

/// What a processor does with a head.
enum Says {
    Word(Response),
    Bytes(&'static [u8]),
    Nothing,
    /// It ends the call, with this status where there is one.
    Ends(Option<&'static str>),
}

/// A processor by script, and what it was shown.
struct Processor {
    at: SocketAddr,
    shown: Arc<Mutex<Vec<Request>>>,
    /// Streams that have begun, and that are over.
    streams: Arc<[AtomicUsize; 2]>,
}

impl Processor {
    async fn start(says: impl Fn(&Request) -> Says + Send + Sync + 'static) -> Processor {
        let (shown, streams) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::<[AtomicUsize; 2]>::default());
        let (says, all, counts) = (Arc::new(says), Arc::clone(&shown), Arc::clone(&streams));
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let (says, all, counts) = (Arc::clone(&says), Arc::clone(&all), Arc::clone(&counts));
            async move {
                assert_eq!(request.uri().path(), "/envoy.service.ext_proc.v3.ExternalProcessor/Process");
                counts[0].fetch_add(1, Ordering::SeqCst);
                let (to, answers) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
                tokio::spawn(async move {
                    converse(request.into_body(), &*says, &all, &to).await;
                    counts[1].fetch_add(1, Ordering::SeqCst);
                });
                let body = axum::body::Body::new(StreamBody::new(ReceiverStream::new(answers)));
                http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            }
        });
        Processor { at: limits_support::serve(app).await, shown, streams }
    }

    fn shown(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shown.lock().unwrap())
    }

    /// Waits until every stream that has begun is over.
    async fn is_idle(&self) {
        while self.streams[1].load(Ordering::SeqCst) < self.streams[0].load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }
}

async fn converse(
    mut body: axum::body::Body,
    says: &(impl Fn(&Request) -> Says + Send + Sync),
    shown: &Mutex<Vec<Request>>,
    to: &mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>,
) {
    let mut read = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { return };
        read.extend_from_slice(&data);
        while let Some(length) = read.get(1..5).map(|mut length| length.get_u32() as usize)
            && read.len() >= 5 + length
        {
            read.advance(5);
            let message = pb::ProcessingRequest::decode(read.split_to(length)).unwrap();
            let request = message.request.expect("a head");
            let said = says(&request);
            shown.lock().unwrap().push(request);
            let bytes = match said {
                Says::Word(response) => {
                    pb::ProcessingResponse { response: Some(response), ..Default::default() }.encode_to_vec()
                }
                Says::Bytes(bytes) => bytes.to_vec(),
                Says::Nothing => continue,
                Says::Ends(status) => {
                    if let Some(status) = status {
                        let trailers = http::HeaderMap::from_iter([(
                            http::HeaderName::from_static("grpc-status"),
                            http::HeaderValue::from_static(status),
                        )]);
                        let _ = to.send(Ok(Frame::trailers(trailers))).await;
                    }
                    return;
                }
            };
            let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
            let frame = Frame::data(Bytes::from([&[0], &length[..], &bytes].concat()));
            if to.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    }
}

fn yaml(port: u16, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: reviews, namespace: shop}}\n\
         spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 80, targetPort: 9080}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: processor, namespace: shop}}\n\
         spec: {{hosts: [processor.example.com], ports: [{{number: 9000, name: grpc, targetPort: {port}}}], \
         resolution: STATIC, endpoints: [{{address: 127.0.0.1}}]}}\n---\n\
         apiVersion: policy.mesh-control/v1alpha1\nkind: RequestRules\nmetadata: {{name: processed, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: reviews}}}}, \
         processor: {{host: processor.example.com, port: 9000{more}}}}}\n"
    )
}

/// A server of `reviews` that tells which headers it was sent, under a configuration.
async fn serve(yaml: String) -> (Embedded, Mesh, SocketAddr) {
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let mesh = workload(&control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let tell = |request: axum::extract::Request| async move {
        let headers = request.headers().iter();
        let lines = headers.map(|(name, value)| format!("{name}={}\n", String::from_utf8_lossy(value.as_bytes())));
        ([("x-server", "here")], lines.collect::<String>())
    };
    let app = axum::Router::new().fallback(tell).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (control, mesh, address)
}

fn set(name: &str, value: &str) -> core::HeaderValueOption {
    let header = core::HeaderValue { key: name.to_owned(), raw_value: value.as_bytes().to_vec(), ..Default::default() };
    core::HeaderValueOption { header: Some(header), ..Default::default() }
}

fn changed(set_headers: Vec<core::HeaderValueOption>, removed: &[&str]) -> pb::HeadersResponse {
    let remove_headers = removed.iter().map(|name| (*name).to_owned()).collect();
    let header_mutation = Some(pb::HeaderMutation { set_headers, remove_headers });
    pb::HeadersResponse { response: Some(pb::CommonResponse { header_mutation, ..Default::default() }) }
}

fn immediately(code: i32, body: &str) -> Response {
    let status = Some(HttpStatus { code });
    let headers = Some(pb::HeaderMutation { set_headers: vec![set("x-why", "because")], ..Default::default() });
    let body = body.as_bytes().to_vec();
    Response::ImmediateResponse(pb::ImmediateResponse { status, headers, body, ..Default::default() })
}

fn header<'r>(of: &'r pb::HttpHeaders, name: &str) -> Option<&'r [u8]> {
    let headers = &of.headers.as_ref().expect("it has some").headers;
    headers.iter().find(|header| header.key == name).map(|header| header.raw_value.as_slice())
}

fn path(request: &Request) -> String {
    match request {
        Request::RequestHeaders(of) => String::from_utf8_lossy(header(of, ":path").expect("one")).into_owned(),
        _ => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_changes_requests_and_answers_over_one_stream() {
    let processor = Processor::start(|request| {
        Says::Word(match request {
            Request::RequestHeaders(_) => Response::RequestHeaders(changed(
                vec![set("x-user", "alice"), set("host", "elsewhere"), set("x-envoy-attempt-count", "9")],
                &["x-secret"],
            )),
            _ => Response::ResponseHeaders(changed(vec![set("x-told", "hello"), set(":status", "203")], &["x-server"])),
        })
    })
    .await;
    let (_control, _mesh, address) = serve(yaml(processor.at.port(), ", timeout: 60s")).await;
    for _ in 0..2 {
        let (status, answer) = ask(address, "/a?b=c", "x-user: mallory\r\nx-secret: s\r\n").await;
        assert_eq!(status, 203, "{answer}");
        assert!(answer.contains("x-user=alice\n") && answer.contains("host=reviews\n"), "{answer}");
        assert!(!answer.contains("mallory") && !answer.contains("x-secret") && !answer.contains("x-envoy"), "{answer}");
        assert!(answer.contains("x-told: hello\r\n") && !answer.contains("x-server"), "{answer}");
        let shown = processor.shown();
        let [Request::RequestHeaders(asked), Request::ResponseHeaders(answered)] = &shown[..] else {
            panic!("{shown:?}")
        };
        for (name, value) in
            [(":method", "GET"), (":path", "/a?b=c"), (":authority", "reviews"), (":scheme", "http"), ("x-secret", "s")]
        {
            assert_eq!(header(asked, name), Some(value.as_bytes()), "{name}");
        }
        assert!(asked.end_of_stream && header(asked, "connection").is_none());
        assert_eq!(
            (header(answered, ":status"), header(answered, "x-server")),
            (Some(&b"200"[..]), Some(&b"here"[..]))
        );
    }
    processor.is_idle().await;
    assert_eq!(processor.streams[0].load(Ordering::SeqCst), 2, "one for each request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_answers_in_the_place_of_the_application() {
    let processor = Processor::start(|request| match (request, path(request).as_str()) {
        (Request::RequestHeaders(_), "/no") => Says::Word(immediately(418, "no tea")),
        (Request::RequestHeaders(_), _) => Says::Word(Response::RequestHeaders(pb::HeadersResponse::default())),
        _ => Says::Word(immediately(451, "not that")),
    })
    .await;
    let (_control, _mesh, address) = serve(yaml(processor.at.port(), ", timeout: 60s")).await;
    for (path, status, body) in [("/no", 418, "no tea"), ("/yes", 451, "not that")] {
        let (found, answer) = ask(address, path, "").await;
        assert_eq!(found, status, "{answer}");
        assert!(answer.ends_with(body) && answer.contains("x-why: because\r\n"), "{answer}");
    }
    // gRPC's callers get its status.
    let (status, answer) = ask(address, "/no", "content-type: application/grpc\r\n").await;
    assert!(status == 200 && answer.contains("grpc-message: no tea"), "{answer}");
    processor.is_idle().await;
}

/// Whatever a processor does but speak, by the path that is asked for.
fn wrongly(request: &Request) -> Says {
    match (request, path(request).as_str()) {
        (Request::RequestHeaders(_), "/garbage") => Says::Bytes(&[0xff; 9]),
        (Request::RequestHeaders(_), "/unknown") => Says::Bytes(&[0xfa, 0x7f, 0]),
        (Request::RequestHeaders(_), "/empty") => Says::Bytes(&[]),
        (Request::RequestHeaders(_), "/hangs-up") => Says::Ends(None),
        (Request::RequestHeaders(_), "/fails") => Says::Ends(Some("13")),
        (Request::RequestHeaders(_), "/nothing") => Says::Nothing,
        (Request::RequestHeaders(_), "/path") => {
            Says::Word(Response::RequestHeaders(changed(vec![set(":path", "/admin")], &[])))
        }
        (Request::RequestHeaders(_), "/body") => {
            let (status, body_mutation) = (ResponseStatus::ContinueAndReplace.into(), Some(Default::default()));
            let common = pb::CommonResponse { status, body_mutation, ..Default::default() };
            Says::Word(Response::RequestHeaders(pb::HeadersResponse { response: Some(common) }))
        }
        (Request::RequestHeaders(_), "/other") => Says::Word(Response::ResponseHeaders(pb::HeadersResponse::default())),
        (Request::RequestHeaders(_), "/half-said") => {
            Says::Word(Response::RequestHeaders(changed(vec![set("x-user", "alice")], &[])))
        }
        // Of answers it has no word.
        _ => Says::Ends(Some("14")),
    }
}

const WRONG: [&str; 9] =
    ["/garbage", "/unknown", "/empty", "/hangs-up", "/fails", "/path", "/body", "/other", "/half-said"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_processor_has_no_word_on_is_refused_and_passes_only_where_that_is_written() {
    let processor = Processor::start(wrongly).await;
    let (_control, mesh, address) = serve(yaml(processor.at.port(), ", timeout: 60s")).await;
    for path in WRONG {
        let (status, answer) = ask(address, path, "").await;
        assert_eq!(status, 500, "{path}: {answer}");
        assert!(!answer.contains("x-server"), "nobody sees what was not looked at: {answer}");
    }
    drop(mesh);
    let (_control, mesh, address) = serve(yaml(processor.at.port(), ", timeout: 60s, failureMode: ALLOW")).await;
    for path in WRONG {
        let (status, answer) = ask(address, path, "x-user: bob\r\n").await;
        assert_eq!(status, 200, "{path}: {answer}");
        let user = if path == "/half-said" { "alice" } else { "bob" };
        assert!(answer.contains(&format!("x-user={user}\n")) && answer.contains("x-server: here"), "{path}: {answer}");
    }
    drop(mesh);
    // Where nothing is said, it is over after that time.
    for (mode, expected) in [("DENY", 500), ("ALLOW", 200)] {
        let settings = format!(", timeout: 50ms, failureMode: {mode}");
        let (_control, _mesh, address) = serve(yaml(processor.at.port(), &settings)).await;
        assert_eq!(ask(address, "/nothing", "").await.0, expected, "{mode}");
    }
    processor.is_idle().await;
    // And one that is not there at all.
    let (_control, _mesh, address) = serve(yaml(1, ", timeout: 5s")).await;
    assert_eq!(ask(address, "/", "").await.0, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_is_shown_what_is_said_and_nothing_else() {
    let word = |request: &Request| {
        Says::Word(match request {
            Request::RequestHeaders(_) => Response::RequestHeaders(changed(vec![set("x-user", "alice")], &[])),
            _ => Response::ResponseHeaders(changed(vec![set("x-told", "hello")], &[])),
        })
    };
    let processor = Processor::start(word).await;
    for (more, is_request) in [(", response: false", true), (", request: false", false)] {
        let (_control, _mesh, address) = serve(yaml(processor.at.port(), &format!(", timeout: 60s{more}"))).await;
        let (status, answer) = ask(address, "/", "").await;
        assert_eq!(
            (status, answer.contains("x-user=alice"), answer.contains("x-told: hello")),
            (200, is_request, !is_request),
            "{answer}"
        );
        let shown = processor.shown();
        assert!(matches!(&shown[..], [Request::RequestHeaders(_)] if is_request) || !is_request, "{shown:?}");
        assert!(matches!(&shown[..], [Request::ResponseHeaders(_)] if !is_request) || is_request, "{shown:?}");
        processor.is_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_that_ends_its_call_well_has_consented_where_it_has_spoken_before() {
    let word = |request: &Request| match (request, path(request).as_str()) {
        (Request::RequestHeaders(_), "/spoken") => Says::Word(Response::RequestHeaders(changed(Vec::new(), &[]))),
        _ => Says::Ends(Some("0")),
    };
    let processor = Processor::start(word).await;
    let (_control, _mesh, address) = serve(yaml(processor.at.port(), ", timeout: 60s")).await;
    let (status, answer) = ask(address, "/spoken", "").await;
    assert!(status == 200 && answer.contains("x-server: here\r\n"), "{answer}");
    assert!(matches!(&processor.shown()[..], [Request::RequestHeaders(_), Request::ResponseHeaders(_)]));
    // One that is being stopped ends its calls so, too.
    assert_eq!(ask(address, "/", "").await.0, 500);
    processor.is_idle().await;
}
