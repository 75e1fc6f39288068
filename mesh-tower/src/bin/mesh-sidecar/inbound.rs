//! The port in front of the program: the mesh's own server, whose application is the program.
//!
//! Connections, routes, policies and telemetry are the library's. A request that was let in goes to the program over the library's
//! client, by a configuration that knows nothing but the program's port. The program is told who calls as by Istio's sidecar, in
//! `x-forwarded-client-cert`; what callers say there never reaches it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, Version};
use mesh_tower::body::Body;
use mesh_tower::client::SentHost;
use mesh_tower::core::request::is_grpc;
use mesh_tower::{Client, Mesh};
use tokio::net::TcpStream;

use crate::carry::as_it_came;
use crate::forward::{self, Answer, Behind, Tunnels};
use crate::options::AppProtocol;

/// How often a program that does not answer yet is tried.
const AGAIN: Duration = Duration::from_millis(20);

/// Where a program serves.
pub(crate) fn program_at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Waits until a program takes connections.
pub(crate) async fn answers(program: SocketAddr) {
    // Somebody has to ask: no program says it to those whom it does not know.
    while TcpStream::connect(program).await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// Says so where a program can be called past the mesh. On Linux all of 127.0.0.0/8 is this machine, and only a socket of every
/// address answers at another one than its own.
pub(crate) async fn warn_if_open(program: SocketAddr) {
    let other = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), program.port()));
    if TcpStream::connect(other).await.is_ok() {
        tracing::warn!(
            "the program listens on every address: whoever reaches one calls it past the mesh. Let it listen on {program}"
        );
    }
}

/// Hands requests to the program, in the mesh's name for whoever called.
#[derive(Clone)]
pub(crate) struct ToProgram {
    mesh: Mesh,
    program: Client,
    protocol: AppProtocol,
    tunnels: Tunnels,
}

impl ToProgram {
    pub(crate) fn new(mesh: &Mesh, program: Client, protocol: AppProtocol, tunnels: &Tunnels) -> Self {
        ToProgram { mesh: mesh.clone(), program, protocol, tunnels: tunnels.clone() }
    }

    /// The server in front of the program.
    pub(crate) fn into_server(self) -> Behind {
        let layer = self.mesh.server_layer();
        Behind::new(&layer, as_it_came, move |request| self.clone().hand_over(request))
    }

    async fn hand_over(self, mut request: Request<Body>) -> Answer {
        if let Some(refused) = forward::not_for_a_server(&request) {
            return refused;
        }
        let is_grpc = is_grpc(request.headers());
        let upgrade = forward::prepare(&mut request);
        forward::tell_caller(request.headers_mut(), self.mesh.certificates().current().as_ref().map(|own| own.id()));
        // The host that was asked for; the program is where it goes.
        let host = match request.uri().authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => request.headers().get(HOST).cloned(),
        };
        if let Some(host) = host {
            request.extensions_mut().insert(SentHost(host));
        }
        *request.version_mut() = match self.protocol {
            AppProtocol::Http2 => Version::HTTP_2,
            _ if is_grpc => Version::HTTP_2,
            _ => Version::HTTP_11,
        };
        let answered = self.program.request(request).await;
        forward::answer(answered, is_grpc, upgrade, &self.tunnels, None)
    }
}
