//! Traces as people have them: programs that the environment tells where spans go (`OTEL_*`), and somebody there who takes them
//! over OTLP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_examples::bookinfo::manifests;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver of OTLP, and what it got: spans with the names of the services that they are of.
#[derive(Clone, Debug, Default)]
struct Receiver(Arc<Mutex<Vec<(String, Span)>>>);

impl Receiver {
    fn take(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.0.lock().unwrap();
        for of_one in request.resource_spans {
            let name = text(&of_one.resource.unwrap().attributes, "service.name");
            let all = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.map(|span| (name.clone(), span)));
        }
    }

    /// Over `http/protobuf` or `grpc`; where it is.
    async fn start(&self, protocol: &str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = self.clone();
        if protocol == "grpc" {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(receiver));
            tokio::spawn(server.serve_with_incoming(incoming));
            return address;
        }
        let take = move |body: Bytes| async move {
            receiver.take(ExportTraceServiceRequest::decode(body).unwrap());
            ([("content-type", "application/x-protobuf")], ExportTraceServiceResponse::default().encode_to_vec())
        };
        let app = axum::Router::new().route("/v1/traces", axum::routing::post(take));
        tokio::spawn(axum::serve(listener, app).into_future());
        address
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let value = attributes.iter().find(|one| one.key == name).and_then(|one| one.value.clone());
    match value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
        other => format!("{other:?}"),
    }
}

/// A program that has its spans sent there.
fn traced(program: &str, arguments: &[&str], control: &Embedded, (receiver, protocol): (SocketAddr, &str)) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).args(["--control", &control.xds_addr().to_string()]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{receiver}"));
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).env("OTEL_TRACES_SAMPLER", "parentbased_always_on");
    command.env("OTEL_METRICS_EXPORTER", "none").env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Starts a service, and waits until it serves.
async fn serving(mut command: Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serves = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("serving") {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(PATIENCE, serves).await.expect("it serves");
    // Whoever prints more is not to fail for it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

/// Which services a span is a part of the work of, itself first.
fn services(spans: &HashMap<Vec<u8>, (String, Span)>, span: &Span) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = Some(&span.span_id);
    while let Some((service, span)) = next.and_then(|id| spans.get(id)) {
        chain.push(service.clone());
        next = Some(&span.parent_span_id);
    }
    chain
}

async fn a_page_is_one_whole_trace(protocol: &str) {
    let receiver = Receiver::default();
    let at = (receiver.start(protocol).await, protocol);
    let control = Embedded::start(Config::yaml(manifests::base()), Options::default()).await.unwrap();
    let mut children = Vec::new();
    for (app, version) in [("ratings", "v1"), ("details", "v1"), ("reviews", "v2"), ("productpage", "v1")] {
        let arguments = ["service", app, "--version", version];
        children.push(serving(traced(env!("CARGO_BIN_EXE_bookinfo"), &arguments, &control, at)).await);
    }
    // Until they know of each other. What nobody records begins no trace further on, either.
    let unsampled = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let arguments = ["http://productpage:9080/productpage", "-n", "20", "-H", unsampled];
    let warm = traced(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at).output();
    assert!(tokio::time::timeout(PATIENCE, warm).await.unwrap().unwrap().status.success());
    assert!(receiver.0.lock().unwrap().is_empty());
    // It ends at once, and so it sends what it has before.
    let arguments = ["http://productpage:9080/productpage", "-n", "3"];
    let ended = traced(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at).output();
    let output = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let roots = receiver.0.lock().unwrap().iter().filter(|(_, span)| span.parent_span_id.is_empty()).count();
    assert_eq!(roots, 3, "mesh-curl has ended, and told of its calls");
    // So do services that are told to leave.
    for child in &children {
        let id = child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }
    for mut child in children {
        tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    }

    let mut traces = HashMap::<Vec<u8>, HashMap<Vec<u8>, (String, Span)>>::new();
    for (service, span) in receiver.0.lock().unwrap().drain(..) {
        traces.entry(span.trace_id.clone()).or_default().insert(span.span_id.clone(), (service, span));
    }
    assert_eq!(traces.len(), 3);
    for spans in traces.values() {
        let servers = spans.values().filter(|(_, span)| span.kind() == SpanKind::Server);
        let mut chains: Vec<String> = servers.map(|(_, span)| services(spans, span).join(" ")).collect();
        chains.sort();
        // A client's span and that of its try, for each call.
        let (curl, page) = ("mesh-curl.default mesh-curl.default", "productpage.default");
        let (details, reviews) = ("details.default", "reviews.default");
        let expected = [
            format!("{details} {page} {page} {page} {curl}"),
            format!("{page} {curl}"),
            format!("ratings.default {reviews} {reviews} {reviews} {page} {page} {page} {curl}"),
            format!("{reviews} {page} {page} {page} {curl}"),
        ];
        assert_eq!(chains, expected);
        assert_eq!(spans.len(), 12, "{spans:#?}");
        let grpc: Vec<_> = spans.values().filter(|(_, span)| span.name == "bookinfo.v1.Ratings/Get").collect();
        assert_eq!(grpc.len(), 2, "what reviews asked, and what ratings answered");
        for (_, span) in grpc {
            assert_eq!(text(&span.attributes, "rpc.service"), "bookinfo.v1.Ratings");
            assert_eq!(text(&span.attributes, "grpc.status_code"), "0");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_bookinfo_is_one_whole_trace_over_http_protobuf() {
    a_page_is_one_whole_trace("http/protobuf").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_bookinfo_is_one_whole_trace_over_grpc() {
    a_page_is_one_whole_trace("grpc").await;
}

#[tokio::test]
async fn what_the_environment_says_of_traces_counts_or_is_refused() {
    let receiver = Receiver::default();
    let at = (receiver.start("http/protobuf").await, "http/protobuf");
    let control = Embedded::start(Config::yaml(manifests::base()), Options::default()).await.unwrap();
    for (name, value, is_good) in [
        ("OTEL_SDK_DISABLED", "true", true),
        ("OTEL_TRACES_EXPORTER", "none", true),
        ("OTEL_TRACES_EXPORTER", "x", false),
    ] {
        let arguments = ["http://productpage:9080/", "--timeout", "1s", "-o", "json"];
        let mut command = traced(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at);
        let output = tokio::time::timeout(PATIENCE, command.env(name, value).output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.contains("\"summary\""), is_good, "{said}");
        assert_eq!(said.contains("OTEL_TRACES_EXPORTER=x"), !is_good, "{said}");
    }
    assert!(receiver.0.lock().unwrap().is_empty());
}
