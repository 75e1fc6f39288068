//! The validating webhook: an HTTPS port on which an API server asks whether objects may be stored.
//!
//! Whoever reaches the port may connect, and where no certificate is asked for, ask. An API server that is not answered stores what
//! it likes. So nobody can hold the port shut: who says nothing waits at the [`Door`], and of connections that are open, the newest
//! is always one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use mesh_core::identity::TrustDomain;
use mesh_core::request::client_of;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::config::Diagnostic;
use crate::kubernetes::webhook;
use crate::plane::Plane;
use crate::serve::clients::clock::now;
use crate::serve::clients::state::ServerState;
use crate::serve::io::door::{Door, accept};
use crate::serve::io::server::{Conn, Server};
use crate::serve::io::tls::{Reloading, TlsFiles};

/// An object of etcd's largest, twice: as it was and as it will be.
const MOST_BYTES: usize = 8 << 20;
/// Reviews at a time, each of which looks at the whole configuration; who comes then waits.
const REVIEWS: usize = 2;
/// Connections that are open at a time; see [`gives_way`].
const CONNECTIONS: usize = 64;
const STREAMS_PER_CONNECTION: u32 = 64;
/// How long a request may take, from the end of its head to the answer. The API server is told to wait for half of that.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the head of a request over HTTP/1 may take, the wait for it included.
const HEAD: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How old a connection may become. An API server makes another one then.
const AGE: Duration = Duration::from_secs(300);
/// How long a connection that has to go may take for what it has in hand.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Desk {
    plane: Plane,
    server: Arc<ServerState>,
    turns: Arc<Semaphore>,
}

/// A connection, for as long as nobody else needs its place: it ends with this.
struct Place {
    client: IpAddr,
    held: oneshot::Sender<()>,
}

/// Answers reviews at `/validate`, over TLS with these files, until it is told to stop. Where they have a `client_ca`, who asks
/// has to have a certificate of it. Who is turned away is told with the status of `server`. Returns the address bound.
///
/// # Errors
/// The files cannot be used, or the address is taken.
pub(crate) async fn listen(
    address: SocketAddr,
    files: TlsFiles,
    domain: TrustDomain,
    plane: Plane,
    server: &Server,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    // Who asks is an API server, which has no certificate of the mesh.
    let acceptor = Arc::new(Reloading::new(files, None, domain, now())?);
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (connections, incoming) = mpsc::channel(CONNECTIONS);
    let door = Door::new(connections, server.state().clone(), false);
    let told = server.state().clone();
    let task = tokio::spawn(async move {
        let accepting = async {
            while let Some((stream, peer)) = accept(&listener, &door.connections).await {
                let acceptor = acceptor.clone();
                door.let_in(stream, peer, move |door, stream, _| async move {
                    door.tls(acceptor.latest().await, stream, peer).await
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = serve(incoming, router(plane, told)) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
    Ok((bound, task))
}

fn router(plane: Plane, server: Arc<ServerState>) -> Router {
    let desk = Desk { plane, server, turns: Arc::new(Semaphore::new(REVIEWS)) };
    Router::new()
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .layer(middleware::from_fn(in_time))
        .with_state(desk)
}

/// Serves connections, of which each has its place.
async fn serve(mut incoming: mpsc::Receiver<Conn>, router: Router) {
    let (mut serving, mut places) = (JoinSet::new(), Vec::<Place>::new());
    while let Some(connection) = incoming.recv().await {
        while serving.try_join_next().is_some() {}
        places.retain(|place| !place.held.is_closed());
        let client = client_of(connection.peer.ip);
        let (held, ended) = oneshot::channel();
        places.push(Place { client, held });
        if places.len() > CONNECTIONS
            && let Some(at) = gives_way(places.iter().map(|place| place.client))
        {
            places.remove(at);
        }
        // Those that linger are no more than those that do not.
        if serving.len() >= 2 * CONNECTIONS {
            serving.join_next().await;
        }
        serving.spawn(serve_one(connection, ended, router.clone()));
    }
}

/// Serves a connection until its place is given to another one.
async fn serve_one(connection: Conn, ended: oneshot::Receiver<()>, router: Router) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        _ = ended => {}
        () = sleep(AGE) => {}
    }
    served.as_mut().graceful_shutdown();
    drop(timeout(LINGER, served).await);
}

/// Which of these connections gives way, named by their clients, the oldest first: the oldest of the client that has most.
fn gives_way(mut clients: impl Iterator<Item = IpAddr> + Clone) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    clients.clone().for_each(|client| *counts.entry(client).or_default() += 1);
    let most = counts.values().max()?;
    clients.position(|client| counts.get(&client) == Some(most))
}

async fn in_time(request: Request, next: Next) -> Response {
    let answered = timeout(REQUEST, next.run(request)).await;
    answered.unwrap_or_else(|_| (StatusCode::REQUEST_TIMEOUT, "it took too long\n").into_response())
}

async fn validate(State(desk): State<Desk>, body: Bytes) -> Response {
    let Ok(turn) = desk.turns.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let Desk { plane, server, .. } = desk;
    let answered = spawn_blocking(move || {
        let _turn = turn;
        webhook::answer(&body, |name, namespace, text| {
            let found = plane.review(&name, namespace, text);
            let is_good = !found.iter().flatten().any(Diagnostic::rejects_object);
            server.metrics.validated(is_good);
            found
        })
    });
    match answered.await {
        Ok(Ok(answer)) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Ok(Err(why)) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http1;
    use serde_json::{Value, json};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::serve::clients::feed::Feed;
    use crate::serve::io::server::Options;

    const LIMIT: Duration = Duration::from_secs(60);

    struct Webhook {
        address: SocketAddr,
        roots: RootCertStore,
        connector: TlsConnector,
        _server: Server,
        _stop: watch::Sender<bool>,
        _files: tempfile::TempDir,
    }

    impl Webhook {
        async fn start() -> Webhook {
            Webhook::start_for(None).await
        }

        /// Where who asks has to have a certificate of this authority.
        async fn start_for(client_ca: Option<&str>) -> Webhook {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            let files = tempfile::tempdir().expect("a directory");
            let (cert, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
            std::fs::write(&cert, made.cert.pem()).expect("written");
            std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).expect("a root");
            let clients = client_ca.map(|pem| {
                let path = files.path().join("clients.crt");
                std::fs::write(&path, pem).expect("written");
                path
            });
            let plane = Plane::empty();
            let server = Server::new(Feed::of(&plane), Arc::new(plane.clone()), &Options::default());
            let (stop, stopped) = watch::channel(false);
            let (free, domain) = ("127.0.0.1:0".parse().expect("an address"), TrustDomain::default());
            let tls = TlsFiles::new(cert, key).client_ca(clients);
            let listening = listen(free, tls, domain, plane, &server, stopped).await;
            let (address, _) = listening.expect("listening");
            let connector = connector(&roots, None);
            Webhook { address, roots, connector, _server: server, _stop: stop, _files: files }
        }

        async fn secured(&self) -> TlsStream<TcpStream> {
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = TcpStream::connect(self.address).await.expect("a connection");
            self.connector.connect(name, stream).await.expect("TLS")
        }

        /// Asks about an object that is wrong.
        async fn is_refused(&self) -> bool {
            self.asked_by(&self.connector).await.expect("an answer")
        }

        /// The same by somebody, who may get no answer.
        async fn asked_by(&self, connector: &TlsConnector) -> Option<bool> {
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = connector.connect(name, TcpStream::connect(self.address).await.ok()?).await.ok()?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            let driver = tokio::spawn(connection);
            let question = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "u", "kind": {"group": "networking.istio.io", "version": "v1", "kind": "VirtualService"},
                    "namespace": "shop", "object": {"metadata": {"name": "a"}, "spec": {"htpp": []}},
                },
            });
            let request = Request::post("/validate").header(header::HOST, "localhost");
            let request = request.body(Full::new(Bytes::from(question.to_string()))).expect("a request");
            let answer = sender.send_request(request).await.ok()?;
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            driver.abort();
            let answer: Value = serde_json::from_slice(&body).expect("JSON");
            Some(answer["response"]["allowed"] == false)
        }
    }

    /// What connects to a server whom these vouch for, and shows this certificate.
    fn connector(
        roots: &RootCertStore,
        shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> TlsConnector {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config =
            config.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots.clone());
        let config = match shown {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).expect("a certificate"),
        };
        TlsConnector::from(Arc::new(config))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_has_no_certificate_of_the_authority_that_is_named_may_not_ask() {
        let authority = || {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().expect("a key"))
                .expect("an authority")
        };
        let signed = |authority: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(["kube-apiserver".to_owned()]).expect("a name");
            let certificate = params.signed_by(&key, authority).expect("a certificate");
            (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
        };
        let (named, other) = (authority(), authority());
        let webhook = Webhook::start_for(Some(&named.pem())).await;
        for (shown, expected) in [(None, None), (Some(signed(&other)), None), (Some(signed(&named)), Some(true))] {
            let asked = webhook.asked_by(&connector(&webhook.roots, shown)).await;
            assert_eq!(asked, expected);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_says_nothing_does_not_hold_the_webhook_shut() {
        let webhook = Webhook::start().await;
        assert!(timeout(LIMIT, webhook.is_refused()).await.expect("an answer"));
        // They come as far as they can, and say nothing more.
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS + 6 {
            silent.push(timeout(LIMIT, webhook.secured()).await.expect("TLS"));
        }
        assert!(timeout(LIMIT, webhook.is_refused()).await.expect("an answer"), "beside silent connections");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_not_waited_for_for_ever() {
        let (_kept, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
        let request = Request::post("/validate").body(body).expect("a request");
        let plane = Plane::empty();
        let server = Server::new(Feed::of(&plane), Arc::new(plane.clone()), &Options::default());
        let answered = tower_service::Service::call(&mut router(plane, server.state().clone()), request);
        let answer = timeout(LIMIT, answered).await.expect("an answer").expect("an answer");
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn the_oldest_connection_of_whoever_has_most_gives_way() {
        let of = |clients: &[u8]| gives_way(clients.iter().map(|&last| IpAddr::from([10, 0, 0, last])));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1, 2, 2, 3]), Some(1));
        assert_eq!(of(&[1, 2, 3]), Some(0));
    }
}
