//! The programs that are meant to be read, run as a user runs them.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Runs a program to its end, which must be a good one, and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
    let output = output.expect("the program ends").expect("the program starts");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{out}\n{errors}", output.status);
    out.into_owned()
}

#[tokio::test]
async fn hello_http_says_hello_through_a_route_of_yaml() {
    let out = run(env!("CARGO_BIN_EXE_hello_http"), &[]).await;
    let web = "from spiffe://cluster.local/ns/default/sa/web";
    assert_eq!(out, format!("200 OK hello, world, {web}\n200 OK hello, mesh, {web}\n"));
}

#[tokio::test]
async fn hello_grpc_calls_a_tonic_service_with_a_generated_client() {
    let out = run(env!("CARGO_BIN_EXE_hello_grpc"), &[]).await;
    assert_eq!(out, "greeter is SERVING\n");
}

#[tokio::test]
async fn hello_tcp_sends_bytes_by_mutual_tls_to_a_server_that_lets_in_the_caller_alone() {
    let out = run(env!("CARGO_BIN_EXE_hello_tcp"), &[]).await;
    assert_eq!(out, "from spiffe://cluster.local/ns/default/sa/web\nhello\nnobody else is let in\n");
}

#[tokio::test]
async fn own_filter_is_configured_in_yaml_and_says_what_it_takes() {
    let out = run(env!("CARGO_BIN_EXE_own_filter"), &[]).await;
    assert_eq!(out, "400 which tenant?\n200 hello\n403 nobody knows that tenant\n");
    let schemas = run(env!("CARGO_BIN_EXE_own_filter"), &["schemas"]).await;
    let text = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\n\
                spec: {pluginName: acme.tenant, pluginConfig: {header: 5, known: []}}\n";
    let found = mesh_control::analysis::validate([("a.json", schemas.as_str()), ("b.yaml", text)]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected = "b.yaml:4:56: error[invalid-value]: WasmPlugin default/a: pluginConfig.header: expected string, found a number; \
         every request is answered with 500";
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn existing_clients_get_the_mesh_below_or_around_them() {
    let out = run(env!("CARGO_BIN_EXE_existing_client"), &[]).await;
    assert_eq!(out, "below:  hello, connector, by mutual TLS\naround: hello, layer, in plaintext\n");
}

#[tokio::test]
async fn reqwest_keeps_its_builder_url_timeout_and_json() {
    // Cargo builds examples with the tests, and does not say where: beside the folder that this test is in.
    let test = std::env::current_exe().expect("this test is a program");
    let program = test.ancestors().nth(2).expect("it is in a folder of cargo's").join("examples/hello_reqwest");
    assert!(program.exists(), "first: cargo build -p mesh-examples --example hello_reqwest");
    let out = run(program.to_str().expect("a name in UTF-8"), &[]).await;
    assert_eq!(out, "three books: 21 EUR\ntoo late: true\nmissing: 404 Not Found\n");
}

#[tokio::test]
async fn every_program_explains_itself() {
    for program in [env!("CARGO_BIN_EXE_mesh-echo"), env!("CARGO_BIN_EXE_mesh-curl"), env!("CARGO_BIN_EXE_bookinfo")] {
        let help = run(program, &["--help"]).await;
        assert!(help.contains("Usage:") && help.lines().count() > 20, "{program}:\n{help}");
    }
}
