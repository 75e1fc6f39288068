//! Routes of Kubernetes' Gateway API that are attached to services (GAMMA), by what a request experiences.
//!
//! `conformance.rs` has a test for every case of the conformance profiles MESH-HTTP and MESH-GRPC; docs/gateway-api.md lists
//! them, and a test holds the list to what there is. `rules.rs` has what the profiles do not ask for.

mod conformance;
mod grants;
mod grpc;
mod objects;
mod rules;

use http::Request;
use mesh_core::error::MeshError;
use mesh_tower::body::Body;

use crate::support::{Answer, World, server};

/// The services `echo` (both versions), `echo-v1` and `echo-v2` of the namespace `mesh`, at 80, 8080 and, for gRPC, 7070.
async fn echo() -> String {
    let (v1, v2) = (server("v1").await, server("v2").await);
    let ports = "ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: grpc, port: 7070}]";
    let mut yaml = String::new();
    for (name, selector) in
        [("echo", "app: echo"), ("echo-v1", "app: echo, version: v1"), ("echo-v2", "app: echo, version: v2")]
    {
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: mesh}}\nspec: {{selector: {{{selector}}}, {ports}}}\n"
        );
    }
    for (version, at) in [("v1", v1), ("v2", v2)] {
        let (ip, port) = (at.ip(), at.port());
        yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: echo-{version}, namespace: mesh}}\n\
             spec: {{address: {ip}, labels: {{app: echo, version: {version}}}, ports: {{http: {port}, http-alt: {port}, grpc: {port}}}}}\n"
        );
    }
    yaml
}

/// An object of Gateway API; `more` is more of its metadata.
fn object(kind: &str, namespace: &str, name: &str, more: &str, spec: &str) -> String {
    let version = if kind == "ReferenceGrant" { "v1beta1" } else { "v1" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\nspec:\n{spec}\n"
    )
}

/// An HTTPRoute of the namespace `mesh` that is attached to a service of it.
fn http_route(name: &str, parent: &str, rules: &str) -> String {
    object("HTTPRoute", "mesh", name, "", &format!("  parentRefs: [{{{}}}]\n  rules:\n{rules}", of_kind(parent)))
}

/// The same of a GRPCRoute.
fn grpc_route(name: &str, parent: &str, rules: &str) -> String {
    object("GRPCRoute", "mesh", name, "", &format!("  parentRefs: [{{{}}}]\n  rules:\n{rules}", of_kind(parent)))
}

fn of_kind(parent: &str) -> String {
    format!("group: '', kind: Service, name: {parent}")
}

const V1: &str = "backendRefs: [{name: echo-v1, port: 80}]";
const V2: &str = "backendRefs: [{name: echo-v2, port: 80}]";

/// A client in the namespace of the services.
async fn world(yaml: &str) -> World {
    World::of("mesh", &[], yaml).await
}

/// Who answered, or the status of the failure.
fn who(answer: Result<Answer, MeshError>) -> String {
    match answer {
        Ok(answer) if answer.status == 200 => answer.body.lines().next().unwrap_or_default().to_owned(),
        Ok(answer) => answer.status.to_string(),
        Err(error) => error.kind().http_status().as_u16().to_string(),
    }
}

/// The request line as the server saw it, `GET /path`.
fn line(answer: &Answer) -> &str {
    answer.body.lines().nth(1).unwrap_or_default()
}

/// The values of a header as the server saw it.
fn got(answer: &Answer, name: &str) -> Vec<String> {
    let prefix = format!("{name}: ");
    answer.body.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

/// A call as gRPC makes it, without a message.
fn call(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

/// What is asked for in how many of so many requests.
async fn shares(world: &World, uri: &str, requests: usize) -> (usize, usize, usize) {
    let mut counted = (0, 0, 0);
    for _ in 0..requests {
        match who(world.get(uri).await).as_str() {
            "v1" => counted.0 += 1,
            "v2" => counted.1 += 1,
            _ => counted.2 += 1,
        }
    }
    counted
}
