//! gRPC in a mesh whose workloads have certificates, with tonic's own server.

use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::health::Health;
use serde_json::json;
use tonic::transport::Server;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec: {selector: {app: greeter}, ports: [{name: grpc, port: 50051}]}
";

fn mesh(control: &Embedded, app: &str) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{app}.default~default.svc.cluster.local"))
        .metadata("NAMESPACE", "default")
        .metadata("SERVICE_ACCOUNT", app)
        .metadata("LABELS", json!({"app": app}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonics_own_server_serves_by_mutual_tls() {
    let control = Embedded::start(Config::yaml(SERVICE), Options::default().dev()).await.unwrap();
    let server = mesh(&control, "greeter");
    let listener = server.bind("127.0.0.1:0").await.unwrap();
    let health = mesh_tonic::health::HealthService::new(&server).into_server();
    let router = Server::builder().layer(mesh_tonic::server_layer(&server)).add_service(health);
    tokio::spawn(mesh_tonic::serve(listener, router));
    server.serving().await.unwrap();
    let client = mesh(&control, "web");
    let ask = async || {
        let mut health = HealthClient::new(mesh_tonic::channel(&client, "xds:///greeter:50051"));
        health.check(HealthCheckRequest::default()).await
    };
    let mut last = None;
    let answered = async {
        loop {
            match ask().await {
                Ok(_) => return,
                Err(status) => last = Some(status),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), answered).await.is_ok(), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_application_refuses_is_a_status_of_grpc() {
    use mesh_tower::server::{Allow, AuthorizationRequest, Decision, Deny};
    let control = Embedded::start(Config::yaml(SERVICE), Options::default().dev()).await.unwrap();
    let server = mesh(&control, "greeter");
    let listener = server.bind("127.0.0.1:0").await.unwrap();
    let health = mesh_tonic::health::HealthService::new(&server).into_server();
    // It lets in one service account, refuses another one, and has no word on everybody else.
    let decide = |request: AuthorizationRequest| async move {
        let account = request.identity.and_then(|identity| Some(identity.workload()?.1.to_owned()));
        match account.as_deref() {
            Some("web") => Ok(Decision::from(Allow::new())),
            Some("guest") => Ok(Deny::new(http::StatusCode::UNAUTHORIZED).body("who are you").into()),
            _ => Err("nobody knows".into()),
        }
    };
    let layer = mesh_tonic::layer_of(server.server_layer().authorizer(decide));
    tokio::spawn(mesh_tonic::serve(listener, Server::builder().layer(layer).add_service(health)));
    server.serving().await.unwrap();
    let web = mesh(&control, "web");
    let ask = async |client: &Mesh| {
        let mut health = HealthClient::new(mesh_tonic::channel(client, "xds:///greeter:50051"));
        health.check(HealthCheckRequest::default()).await.map(drop)
    };
    let answered = async { while ask(&web).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("it is let in");
    for (account, code, message) in [
        ("guest", tonic::Code::Unauthenticated, "who are you"),
        ("stranger", tonic::Code::PermissionDenied, "authorization failed"),
    ] {
        let refused = ask(&mesh(&control, account)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, message), "{account}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonics_own_server_without_the_layer_answers_nobody_where_policies_are_for_it() {
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                  spec: {action: DENY, rules: [{to: [{operation: {paths: [/other]}}]}]}\n";
    let control = Embedded::start(Config::yaml(format!("{SERVICE}{policy}")), Options::default().dev()).await.unwrap();
    let client = mesh(&control, "web");
    for has_layer in [false, true] {
        let server = mesh(&control, "greeter");
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let health = mesh_tonic::health::HealthService::new(&server).into_server();
        match has_layer {
            true => {
                let router = Server::builder().layer(mesh_tonic::server_layer(&server)).add_service(health);
                tokio::spawn(mesh_tonic::serve(listener, router));
            }
            false => _ = tokio::spawn(mesh_tonic::serve(listener, Server::builder().add_service(health))),
        }
        server.serving().await.unwrap();
        let is_over = async {
            loop {
                let mut asked = HealthClient::new(mesh_tonic::channel(&client, "xds:///greeter:50051"));
                let is_answered = asked.check(HealthCheckRequest::default()).await.is_ok();
                assert!(has_layer || !is_answered);
                let is_told =
                    matches!(server.health().now(), Health::NotServing(why) if why.contains("Mesh::server_layer"));
                assert!(!has_layer || !is_told);
                if is_answered || is_told {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), is_over).await.is_ok(), "with the layer: {has_layer}");
        server.drain().begin().await;
    }
}
