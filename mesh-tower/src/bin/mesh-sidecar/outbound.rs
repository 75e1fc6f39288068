//! The ports for the program's own calls, all of them on 127.0.0.1: a proxy, and services that have a port of their own.
//!
//! Requests are read by the library's server, with its rules of what a message is and its limits, and sent by the library's client:
//! routed, retried, balanced, secured and counted one by one. What is asked for by CONNECT, and ports of bytes, get a connection
//! that the mesh chose. Whoever reaches these ports calls in the name of the program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::header::VIA;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use mesh_tower::body::Body;
use mesh_tower::client::MeshStream;
use mesh_tower::core::id::Address;
use mesh_tower::core::request::is_grpc;
use mesh_tower::{Client, Mesh, reply, server};
use tokio::task::JoinSet;

use crate::carry::{as_it_came, carry_all};
use crate::forward::{self, Answer, Behind, Tunnels, refusal};
use crate::options::Listen;

/// The ports, and who serves them: they are closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Outbound {
    /// Where the proxy is.
    pub(crate) proxy: SocketAddr,
    _serving: JoinSet<()>,
}

/// What the requests of all ports have in common.
struct Shared {
    mesh: Mesh,
    client: Client,
    tunnels: Tunnels,
    /// The ports of this process: who asks for one of them asks for the asker.
    own: Vec<u16>,
    /// Those of them that carry bytes.
    of_bytes: Vec<u16>,
    /// By which it knows a request that it has sent before (RFC 9110, 7.6.3).
    via: HeaderValue,
}

impl Outbound {
    /// Binds the ports. `local` is a mesh that lets everybody in, since only this machine can.
    ///
    /// # Errors
    /// If one of them cannot be had.
    pub(crate) async fn bind(
        mesh: &Mesh,
        local: &Mesh,
        proxy: u16,
        listen: &[Listen],
        tunnels: &Tunnels,
    ) -> Result<Outbound, String> {
        let failed = |port: u16, error: io::Error| format!("port {port} of 127.0.0.1: {error}");
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let proxy = local.bind(at(proxy)).await.map_err(|error| failed(proxy, error))?;
        let address = proxy.local_addr();
        let (mut http, mut bytes) = (vec![(proxy, Face::Proxy)], Vec::new());
        let mut own = vec![address.port()];
        for Listen { port, service, is_tcp } in listen {
            let bound = match is_tcp {
                true => {
                    let bound = local.bind_tcp(at(*port)).await.map_err(|error| failed(*port, error))?;
                    let address = bound.local_addr();
                    bytes.push((bound, service.clone()));
                    address
                }
                false => {
                    let bound = local.bind(at(*port)).await.map_err(|error| failed(*port, error))?;
                    let address = bound.local_addr();
                    http.push((bound, Face::Service(service.clone())));
                    address
                }
            };
            own.push(bound.port());
            tracing::info!("{bound} is {service}");
        }
        let via = format!("1.1 mesh-sidecar-{:016x}", fastrand::u64(..));
        let via = HeaderValue::try_from(via).map_err(|error| error.to_string())?;
        let of_bytes = bytes.iter().map(|(bound, _)| bound.local_addr().port()).collect();
        let shared = Shared { mesh: mesh.clone(), client: mesh.client(), tunnels: tunnels.clone(), own, of_bytes, via };
        let shared = Arc::new(shared);
        let mut serving = JoinSet::new();
        for (listener, face) in http {
            let sender = Sender { shared: Arc::clone(&shared), face };
            let send = move |request| {
                let sent = sender.clone().send(request);
                async { sent.await.unwrap_or_else(|refused| *refused) }
            };
            let service = Behind::new(&local.server_layer(), as_it_came, send);
            let served = server::serve(listener, service).readable_bodies().into_future();
            serving.spawn(async move {
                if let Err(error) = served.await {
                    tracing::warn!("a port for calls is closed: {error}");
                }
            });
        }
        for (listener, service) in bytes {
            let shared = Arc::clone(&shared);
            serving
                .spawn(carry_all(tunnels.clone(), listener, move || Arc::clone(&shared).connect_to(service.clone())));
        }
        Ok(Outbound { proxy: address, _serving: serving })
    }
}

/// What a port is to the program.
#[derive(Clone, Debug)]
enum Face {
    Proxy,
    Service(Authority),
}

/// Sends what comes to a port.
#[derive(Clone)]
struct Sender {
    shared: Arc<Shared>,
    face: Face,
}

impl Sender {
    async fn send(self, mut request: Request<Body>) -> Result<Answer, Box<Answer>> {
        if let Some(malformed) = forward::malformed(&request) {
            return Ok(malformed);
        }
        let shared = &self.shared;
        if request.headers().get_all(VIA).iter().any(|via| shared.is_own_mark(via)) {
            return Err(refused(StatusCode::LOOP_DETECTED, "this request has come through here before"));
        }
        match &self.face {
            Face::Proxy if request.method() == Method::CONNECT => return shared.tunnel(request).await,
            Face::Proxy => shared.check_target(request.uri()).await?,
            Face::Service(service) => *request.uri_mut() = of_service(service, &request)?,
        }
        let is_grpc = is_grpc(request.headers());
        let upgrade = forward::prepare(&mut request);
        request.headers_mut().append(VIA, shared.via.clone());
        let answered = shared.client.request(request).await;
        Ok(forward::answer(answered, is_grpc, upgrade, &shared.tunnels, None))
    }
}

impl Shared {
    /// Whether a request came through here. Others may have put their marks beside ours.
    fn is_own_mark(&self, via: &HeaderValue) -> bool {
        via.as_bytes().split(|byte| *byte == b',').any(|mark| mark.trim_ascii() == self.via.as_bytes())
    }

    /// Whether a proxy may send this.
    async fn check_target(&self, uri: &Uri) -> Result<(), Box<Answer>> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            let what = "this is a proxy: it takes requests with a whole URL (GET http://host/path), and CONNECT";
            return Err(refused(StatusCode::BAD_REQUEST, what));
        };
        if *scheme != Scheme::HTTP {
            return Err(refused(StatusCode::BAD_REQUEST, "for https this proxy is asked by CONNECT"));
        }
        self.check_loop(authority.host(), authority.port_u16().unwrap_or(80)).await
    }

    /// # Errors
    /// Where a host and a port are this process.
    async fn check_loop(&self, host: &str, port: u16) -> Result<(), Box<Answer>> {
        match self.own.contains(&port) && is_here(host, port).await {
            true => Err(refused(StatusCode::LOOP_DETECTED, "this is the proxy itself")),
            false => Ok(()),
        }
    }

    /// Whether a connection that this process has made leads to one of its own ports of bytes. It would come in there, and have another
    /// one made, and so on; nobody can tell it from others by its bytes.
    async fn comes_back(&self) -> bool {
        for endpoint in self.mesh.endpoints().iter().filter(|endpoint| endpoint.in_flight > 0) {
            for address in endpoint.endpoint.addresses() {
                let (host, port) = match address {
                    Address::Socket(at) => (at.ip().to_string(), at.port()),
                    Address::Host(host, port) => (host.to_string(), *port),
                };
                if self.of_bytes.contains(&port) && is_here(&host, port).await {
                    return true;
                }
            }
        }
        false
    }

    /// Makes a connection of the one that a request came over.
    async fn tunnel(&self, mut request: Request<Body>) -> Result<Answer, Box<Answer>> {
        let target = request.uri().authority().and_then(|it| Some((it.host().to_owned(), it.port_u16()?)));
        let (host, port) = target.ok_or_else(|| refused(StatusCode::BAD_REQUEST, "CONNECT needs a host and a port"))?;
        self.check_loop(&host, port).await?;
        let room = self.tunnels.room(None).ok_or_else(|| Box::new(forward::too_many()))?;
        let connected = self.mesh.connect_by_host(&host, port).await;
        let stream = connected.map_err(|error| Box::new(reply::error(&error, false).map(Body::from)))?;
        let upgrade = hyper::upgrade::on(&mut request);
        self.tunnels.carry(room, async { Ok((forward::opened(upgrade).await?, stream)) });
        Ok(Answer::new(Body::empty()))
    }

    /// A connection for one that came to the port of a service.
    async fn connect_to(self: Arc<Self>, service: Authority) -> io::Result<MeshStream> {
        let (host, port) = (service.host(), service.port_u16().unwrap_or_default());
        if self.check_loop(host, port).await.is_err() {
            return Err(io::Error::other("the service is this port itself"));
        }
        if self.comes_back().await {
            tracing::warn!(
                "a connection to {service} is closed: one that is open already leads back to a port of this process"
            );
            return Err(io::Error::other("the service leads back to this process"));
        }
        self.mesh.connect_by_host(host, port).await.map_err(io::Error::other)
    }
}

/// Whether a host is this machine.
async fn is_here(host: &str, port: u16) -> bool {
    let is_here = |ip: IpAddr| ip.to_canonical().is_loopback() || ip.is_unspecified();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => is_here(ip),
        // Names of services need not be known to the system.
        Err(_) => tokio::net::lookup_host((host, port)).await.is_ok_and(|mut found| found.any(|it| is_here(it.ip()))),
    }
}

/// The URI of a request to a port that is a service. Whoever asks there for another host is mistaken, or a web page that was told
/// that its own name is this machine.
fn of_service<B>(service: &Authority, request: &Request<B>) -> Result<Uri, Box<Answer>> {
    if request.method() == Method::CONNECT {
        return Err(refused(StatusCode::METHOD_NOT_ALLOWED, "there is no proxy at this port"));
    }
    let header = || request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    let asked: Option<Authority> = request.uri().authority().cloned().or_else(header);
    let is_meant = |host: &str| {
        let is_local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        is_local || host.eq_ignore_ascii_case(service.host())
    };
    if asked.is_some_and(|asked| !is_meant(asked.host())) {
        return Err(refused(StatusCode::MISDIRECTED_REQUEST, &format!("this port is {service} and no other host")));
    }
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(service.clone()).path_and_query(path).build();
    uri.map_err(|_| refused(StatusCode::BAD_REQUEST, "malformed target"))
}

fn refused(status: StatusCode, why: &str) -> Box<Answer> {
    Box::new(refusal(status, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_a_service_is_no_other_host() {
        let reviews = Authority::from_static("reviews:9080");
        let asked = |host: &str, uri: &str| {
            let request = Request::get(uri).header("host", host).body(()).unwrap();
            of_service(&reviews, &request).map_err(|refused| refused.status().as_u16())
        };
        for host in ["localhost:8001", "127.0.0.1:8001", "[::1]:8001", "reviews", "REVIEWS:9080"] {
            assert_eq!(asked(host, "/a?b").unwrap(), "http://reviews:9080/a?b", "{host}");
        }
        assert_eq!(asked("evil.example", "/"), Err(421));
        // The target is the host, whatever `Host` says.
        assert_eq!(asked("localhost", "http://evil.example/"), Err(421));
    }
}
