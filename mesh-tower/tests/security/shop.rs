//! Workloads of the namespace `shop`, by an embedded control plane, and requests to them over sockets.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_control::embedded::Embedded;
use mesh_core::xds::Bootstrap;
use mesh_tower::{Mesh, MeshBuilder};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The workload whose label `app` and account have this name.
pub(crate) fn workload(control: &Embedded, app: &str) -> Mesh {
    workload_with(control, app, |builder| builder)
}

/// The same, made so.
pub(crate) fn workload_with(control: &Embedded, app: &str, made: impl FnOnce(MeshBuilder) -> MeshBuilder) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{app}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("SERVICE_ACCOUNT", app)
        .metadata("LABELS", json!({"app": app}));
    let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10));
    made(builder).start().unwrap()
}

/// Status and text of the answer to a request for `reviews` with these header lines, over a connection of its own.
pub(crate) async fn ask(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("an answer").unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}
