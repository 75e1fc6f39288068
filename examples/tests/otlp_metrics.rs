//! Metrics and access logs as people have them: programs that the environment tells where they go (`OTEL_*`), and somebody there
//! who takes them over OTLP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::telemetry::{BOUNDS, LABELS};
use mesh_examples::bookinfo::manifests;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric};
use prost::Message;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver of OTLP: the last that each service said, by the metric's name.
#[derive(Clone, Debug, Default)]
struct Receiver(Arc<Mutex<BTreeMap<(String, String), Metric>>>);

impl Receiver {
    fn take(&self, request: ExportMetricsServiceRequest) {
        let mut all = self.0.lock().unwrap();
        for of_one in request.resource_metrics {
            let service = texts(&of_one.resource.unwrap().attributes)["service.name"].clone();
            for metric in of_one.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                all.insert((service.clone(), metric.name.clone()), metric);
            }
        }
    }

    /// Over `http/protobuf` or `grpc`; where it is. Who asks says the password.
    async fn start(&self, protocol: &str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = self.clone();
        if protocol == "grpc" {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(receiver));
            tokio::spawn(server.serve_with_incoming(incoming));
            return address;
        }
        let take = move |headers: http::HeaderMap, body: Bytes| async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["password"], "so so");
            receiver.take(ExportMetricsServiceRequest::decode(body).unwrap());
            ([("content-type", "application/x-protobuf")], ExportMetricsServiceResponse::default().encode_to_vec())
        };
        let app = axum::Router::new().route("/v1/metrics", axum::routing::post(take));
        tokio::spawn(axum::serve(listener, app).into_future());
        address
    }

    fn get(&self, service: &str, name: &str) -> Metric {
        let all = self.0.lock().unwrap();
        all.get(&(service.to_owned(), name.to_owned())).unwrap_or_else(|| panic!("{service} has no {name}")).clone()
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        if request.metadata().get("password").is_none_or(|password| password != "so so") {
            return Err(tonic::Status::unauthenticated("no password"));
        }
        self.take(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A receiver of access logs: each record, and whose it is.
#[derive(Clone, Debug, Default)]
struct Logs(Arc<Mutex<Vec<(String, LogRecord)>>>);

impl Logs {
    fn take(&self, request: ExportLogsServiceRequest) {
        for of_one in request.resource_logs {
            let service = texts(&of_one.resource.unwrap().attributes)["service.name"].clone();
            let records = of_one.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            self.0.lock().unwrap().extend(records.map(|record| (service.clone(), record)));
        }
    }

    async fn start(&self, protocol: &str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, logs) = (listener.local_addr().unwrap(), self.clone());
        if protocol == "grpc" {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(LogsServiceServer::new(logs));
            tokio::spawn(server.serve_with_incoming(incoming));
        } else {
            let take = move |body: Bytes| async move {
                logs.take(ExportLogsServiceRequest::decode(body).unwrap());
                ExportLogsServiceResponse::default().encode_to_vec()
            };
            let app = axum::Router::new().route("/v1/logs", axum::routing::post(take));
            tokio::spawn(axum::serve(listener, app).into_future());
        }
        address
    }
}

#[tonic::async_trait]
impl LogsService for Logs {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        self.take(request.into_inner());
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.clone(), text(one.value.clone()))).collect()
}

/// A program that has its metrics sent there.
fn counted(program: &str, arguments: &[&str], control: &Embedded, (receiver, protocol): (SocketAddr, &str)) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).args(["--control", &control.xds_addr().to_string()]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{receiver}"));
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).env("OTEL_EXPORTER_OTLP_HEADERS", "password=so%20so");
    command.env("OTEL_TRACES_EXPORTER", "none");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Starts a service, and waits until it serves; where its admin port is.
async fn serving(mut command: Command) -> (Child, String, Lines<BufReader<ChildStdout>>) {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut admin = String::new();
    let serves = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some(address) = line.strip_prefix("admin listening on ") {
                admin = address.to_owned();
            }
            if line.contains("serving") {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(PATIENCE, serves).await.expect("it serves");
    (child, admin, lines)
}

async fn output(mut command: Command) -> String {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one counter of requests, as this side tells of it.
fn requests(receiver: &Receiver, service: &str, reporter: &str) -> u64 {
    let metric = receiver.get(service, "istio_requests_total");
    let Some(Data::Sum(sum)) = metric.data else { panic!("{metric:?}") };
    assert!(sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative);
    let [point] = &sum.data_points[..] else { panic!("{sum:?}") };
    assert!(0 < point.start_time_unix_nano && point.start_time_unix_nano <= point.time_unix_nano);
    let labels = texts(&point.attributes);
    assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), LABELS.into_iter().collect());
    assert_eq!(labels["reporter"], reporter);
    assert_eq!(labels["source_workload"], "mesh-curl-v1");
    assert_eq!(labels["destination_service"], "details.default.svc.cluster.local");
    match point.value {
        Some(Number::AsInt(count)) => u64::try_from(count).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn metrics_come_over(protocol: &str) {
    let receiver = Receiver::default();
    let at = (receiver.start(protocol).await, protocol);
    let control = Embedded::start(Config::yaml(manifests::base()), Options::default()).await.unwrap();
    let arguments = ["service", "details", "--admin-addr", "127.0.0.1:0"];
    let (mut details, admin, _lines) = serving(counted(env!("CARGO_BIN_EXE_bookinfo"), &arguments, &control, at)).await;
    // It ends at once, and so it sends what it has before.
    let arguments = ["http://details:9080/details/0", "-n", "3"];
    output(counted(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at)).await;
    assert_eq!(requests(&receiver, "mesh-curl.default", "source"), 3);
    let metric = receiver.get("mesh-curl.default", "istio_request_duration_milliseconds");
    let Some(Data::Histogram(histogram)) = metric.data else { panic!("{metric:?}") };
    assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
    let [point] = &histogram.data_points[..] else { panic!("{histogram:?}") };
    assert_eq!((&*point.explicit_bounds, point.bucket_counts.len()), (&BOUNDS[..], BOUNDS.len() + 1));
    assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (3, 3));
    assert!(point.sum.unwrap() > 0.0);

    // So does a service that is told to leave. The names are those of the page for Prometheus.
    let page = reqwest::get(format!("http://{admin}/stats/prometheus")).await.unwrap().text().await.unwrap();
    let id = details.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    tokio::time::timeout(PATIENCE, details.wait()).await.unwrap().unwrap();
    assert_eq!(requests(&receiver, "details.default", "destination"), 3);
    let mut names = BTreeSet::new();
    let mut family = "";
    for line in page.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(begun) => family = begun.split(' ').next().unwrap(),
            None if line.starts_with('#') => {}
            // What gRPC has named has its own names there; and nothing is known of any resource when it leaves.
            None => match family.strip_prefix("grpc_xds_client_") {
                Some("resources") => {}
                Some(name) => _ = names.insert(format!("grpc.xds_client.{}", name.trim_end_matches("_total"))),
                None => _ = names.insert(family.to_owned()),
            },
        }
    }
    // Not known in the first moment.
    names.insert("mesh_xds_last_update_age_seconds".to_owned());
    let sent = receiver.0.lock().unwrap();
    let sent: BTreeSet<_> = sent.keys().filter(|(of, _)| of == "details.default").map(|(_, name)| name).collect();
    assert_eq!(sent, names.iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_over_http_protobuf() {
    metrics_come_over("http/protobuf").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_over_grpc() {
    metrics_come_over("grpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_or_is_gone_keeps_no_request_and_no_end() {
    let receiver = Receiver::default();
    let at = (receiver.start("http/protobuf").await, "http/protobuf");
    let control = Embedded::start(Config::yaml(manifests::base()), Options::default()).await.unwrap();
    let (_details, ..) = serving(counted(env!("CARGO_BIN_EXE_bookinfo"), &["service", "details"], &control, at)).await;
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, why) in [(hanging.local_addr().unwrap(), "no answer within"), (gone, "Connection refused")] {
        for protocol in ["http/protobuf", "grpc"] {
            let arguments = ["http://details:9080/details/0", "-n", "50"];
            let mut command = counted(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, (address, protocol));
            command.env("OTEL_METRIC_EXPORT_INTERVAL", "1").env("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "100");
            let said = output(command).await;
            assert_eq!(said.matches("metrics were not sent").count(), 1, "{said}");
            assert!(said.contains(why), "{said}");
        }
    }
    assert!(receiver.0.lock().unwrap().is_empty());
}

const COLLECTED: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: otel
      envoyOtelAls: {service: otel.example.com, port: 4317, logFormat: {text: '%REQ(:METHOD)% %REQ(:PATH)%', labels: {code: '%RESPONSE_CODE%', to: '%REQ(:AUTHORITY)%'}}}
    defaultProviders: {accessLogging: [otel]}
";

#[tokio::test(flavor = "multi_thread")]
async fn access_logs_that_the_settings_want_at_a_collector_arrive_from_both_sides() {
    for protocol in ["http/protobuf", "grpc"] {
        let logs = Logs::default();
        let at = (logs.start(protocol).await, protocol);
        let yaml = format!("{}{COLLECTED}", manifests::base());
        let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
        let quiet = |mut command: Command| {
            command.env("OTEL_METRICS_EXPORTER", "none");
            command
        };
        let service = counted(env!("CARGO_BIN_EXE_bookinfo"), &["service", "details"], &control, at);
        let (mut details, ..) = serving(quiet(service)).await;
        let arguments = [
            "http://details:9080/details/0?secret",
            "-n",
            "3",
            "-H",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ];
        // What ends sends what it has before.
        output(quiet(counted(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at))).await;
        let id = details.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        tokio::time::timeout(PATIENCE, details.wait()).await.unwrap().unwrap();
        let logs = logs.0.lock().unwrap();
        for service in ["mesh-curl.default", "details.default"] {
            let of_it: Vec<&LogRecord> = logs.iter().filter(|(of, _)| of == service).map(|(_, log)| log).collect();
            assert_eq!(of_it.len(), 3, "{protocol} {service}: {logs:?}");
            for record in of_it {
                let body = record.body.clone().and_then(|body| body.value);
                assert_eq!(body, Some(Value::StringValue("GET /details/0?secret".to_owned())), "{protocol} {service}");
                let attributes = texts(&record.attributes);
                assert_eq!((&*attributes["code"], &*attributes["to"]), ("Some(IntValue(200))", "details:9080"));
                assert!(record.time_unix_nano > 0, "{record:?}");
                // A server reads of which trace a request is; a client that records none does not look.
                assert!(service != "details.default" || record.trace_id[..2] == [0x4b, 0xf9], "{record:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_the_environment_says_of_metrics_counts_or_is_refused() {
    let receiver = Receiver::default();
    let at = (receiver.start("http/protobuf").await, "http/protobuf");
    let control = Embedded::start(Config::yaml(manifests::base()), Options::default()).await.unwrap();
    for (value, is_good) in [("none", true), ("prometheus", true), ("x", false)] {
        let arguments = ["http://details:9080/", "--timeout", "1s", "-o", "json"];
        let mut command = counted(env!("CARGO_BIN_EXE_mesh-curl"), &arguments, &control, at);
        let output = tokio::time::timeout(PATIENCE, command.env("OTEL_METRICS_EXPORTER", value).output());
        let output = output.await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.contains("\"summary\""), is_good, "{said}");
        assert_eq!(said.contains("OTEL_METRICS_EXPORTER=x"), !is_good, "{said}");
    }
    assert!(receiver.0.lock().unwrap().is_empty());
}
