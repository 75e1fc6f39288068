//! Programs of the library as processes. `mesh-sidecar`: the program beside it is a shell, and what it serves and calls is this test.
//! `mesh-gateway`: its control plane, its clients and what is behind it are this test.
#![cfg(unix)]

mod egress;
mod gateway;
mod gateway_api;
mod gateway_bytes;
mod gateway_tls;
mod gateway_web;
mod inbound;
mod life;
#[path = "../limits_support/mod.rs"]
mod limits_support;
mod outbound;
#[path = "../tls_support/mod.rs"]
mod tls_support;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::xds::Bootstrap;
use mesh_tower::{Mesh, MeshBuilder};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// What a machine with much to do may take.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it does not hang")
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {selector: {app: app}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: other}, ports: [{name: http, port: 80}]}
";

async fn control(more: &str) -> Embedded {
    Embedded::start(Config::yaml(format!("{STRICT}---\n{more}")), Options::default().dev()).await.unwrap()
}

/// A mesh of the test's own in the same process as the control plane.
fn mesh(control: &Embedded, name: &str) -> MeshBuilder {
    let labels = [("app".to_owned(), name.to_owned())].into();
    let bootstrap = Bootstrap::new("embedded").workload(name, "default", name, &labels, 1);
    Mesh::builder().source(control.source(bootstrap))
}

/// A process of `mesh-sidecar`, and what it says.
struct Sidecar {
    child: Child,
    /// What the program prints.
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Sidecar {
    /// One of this account, beside a shell that runs this.
    fn start(control: &Embedded, account: &str, options: &[&str], script: &str) -> Sidecar {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-sidecar"));
        command.args(["--control", &control.xds_addr().to_string(), "--name", account, "--service-account", account]);
        command.args(options).args(["--inbound", "127.0.0.1:0", "--", "sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.env("RUST_LOG", "warn,mesh_sidecar=debug").spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Sidecar { child, stdout, stderr }
    }

    /// The next line of the program.
    async fn line(&mut self) -> String {
        within(self.stdout.next_line()).await.unwrap().expect("a line")
    }

    /// Waits until it says this, and gives what comes after it.
    async fn says(&mut self, what: &str) -> String {
        loop {
            let line =
                within(self.stderr.next_line()).await.unwrap().unwrap_or_else(|| panic!("it never said {what:?}"));
            if let Some((_, after)) = line.split_once(what) {
                return after.to_owned();
            }
        }
    }

    async fn proxy(&mut self) -> SocketAddr {
        self.says("proxy at ").await.parse().unwrap()
    }

    /// Where others call the program, once it may be called.
    async fn ready(&mut self) -> SocketAddr {
        let line = self.says("ready: ").await;
        line.split(' ').next().unwrap().parse().unwrap()
    }

    fn signal(&self, name: &str) {
        kill(name, self.child.id().expect("it runs"));
    }

    async fn code(&mut self) -> Option<i32> {
        within(self.child.wait()).await.unwrap().code()
    }
}

fn kill(name: &str, id: u32) {
    let status = std::process::Command::new("kill").args(["-s", name, &id.to_string()]).status().unwrap();
    assert!(status.success());
}

/// What a program that is this test gets, connection by connection: a head is read, and this is answered.
async fn program(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    stream.write_all(answer(&head).as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// A head, to its empty line, byte by byte so that nothing behind it is read.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(bytes).unwrap())
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The whole answer to these bytes, after which the connection is closed.
async fn exchange(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Who is refused while he still sends may find the connection reset.
    _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}
