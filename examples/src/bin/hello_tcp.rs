//! An echo server that speaks no HTTP, and its caller in one mesh, with the control plane in the same process.
//!
//! Who connects is known by mutual TLS, and a policy lets in the caller alone. `cargo run --bin hello_tcp`.

use anyhow::ensure;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::core::identity::SpiffeId;
use mesh_tower::{Bootstrap, Mesh};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: tcp-echo, port: 7}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]}]
";

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let control = Embedded::start(Config::yaml(CONFIG), Options::default().dev()).await?;

    // The server: each connection that it is handed has shown who it is, and the policies have let it in.
    let node = |id, account| Bootstrap::new("embedded").node_id(id).metadata("SERVICE_ACCOUNT", account);
    let mesh = control.source(node("echo-1", "echo").metadata("LABELS", json!({"app": "echo"})));
    let mesh = Mesh::builder().source(mesh).start()?;
    let mut listener = mesh.bind_tcp("127.0.0.1:0").await?;
    tokio::spawn(async move {
        while let Some((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                println!("from {}", io.connection().peer_identity().map_or("nobody", SpiffeId::as_str));
                let (mut reader, mut writer) = tokio::io::split(&mut io);
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    mesh.serving().await?;

    // The caller, with a mesh of its own.
    let caller = Mesh::builder().source(control.source(node("caller-1", "web"))).start()?;
    let mut stream = caller.connect("echo", 7).await?;
    stream.write_all(b"hello\n").await?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await?;
    print!("{}", String::from_utf8_lossy(&answer));

    // Anybody else.
    let stranger = Mesh::builder().source(control.source(node("stranger-1", "stranger"))).start()?;
    let mut stream = stranger.connect("echo", 7).await?;
    _ = stream.write_all(b"hello\n").await;
    ensure!(!matches!(stream.read(&mut answer).await, Ok(1..)), "a stranger was let in");
    println!("nobody else is let in");
    Ok(())
}
