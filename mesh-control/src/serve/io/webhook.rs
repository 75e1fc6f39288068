//! The validating webhook: an HTTPS port on which an API server asks whether objects may be stored.
//!
//! Whoever reaches the port may connect, and where no certificate is asked for, ask. An API server that is not answered stores what
//! it likes, so nobody can hold the port shut (see [`https`]).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{StatusCode, header};
use mesh_core::identity::TrustDomain;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::config::Diagnostic;
use crate::kubernetes::webhook;
use crate::plane::Plane;
use crate::serve::clients::clock::now;
use crate::serve::clients::refusals::Port;
use crate::serve::clients::state::ServerState;
use crate::serve::io::https;
use crate::serve::io::server::Server;
use crate::serve::io::tls::{Reloading, TlsFiles};

/// An object of etcd's largest, twice: as it was and as it will be.
const MOST_BYTES: usize = 8 << 20;
/// Reviews at a time, each of which looks at the whole configuration; who comes then waits.
const REVIEWS: usize = 2;

#[derive(Clone)]
struct Desk {
    plane: Plane,
    server: Arc<ServerState>,
    turns: Arc<Semaphore>,
}

/// Answers reviews at `/validate`, over TLS with these files, until it is told to stop. Where they have a `client_ca`, who asks
/// has to have a certificate of it. Returns the address bound.
///
/// # Errors
/// The files cannot be used, or the address is taken.
pub(crate) async fn listen(
    address: SocketAddr,
    files: TlsFiles,
    domain: TrustDomain,
    plane: Plane,
    server: &Server,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    // Who asks is an API server, which has no certificate of the mesh.
    let acceptor = Reloading::new(files, None, domain, now())?;
    https::listen((Port::Admission, address), acceptor.following(), router(plane, server.state().clone()), server, stop)
        .await
}

fn router(plane: Plane, server: Arc<ServerState>) -> Router {
    let desk = Desk { plane, server, turns: Arc::new(Semaphore::new(REVIEWS)) };
    let router = Router::new().route("/validate", post(validate)).layer(DefaultBodyLimit::max(MOST_BYTES));
    https::in_time(router, https::REQUEST, https::late).with_state(desk)
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
    use std::time::Duration;

    use http::Request;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use serde_json::{Value, json};
    use tokio::net::TcpStream;
    use tokio::time::timeout;
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
        for _ in 0..2 * https::CONNECTIONS + 6 {
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
        let mut router = router(plane, server.state().clone());
        let answered = tower_service::Service::call(&mut router, request);
        let answer = timeout(LIMIT, answered).await.expect("an answer").expect("an answer");
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
