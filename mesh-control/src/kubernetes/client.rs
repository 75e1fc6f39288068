//! Requests to an API server: each over a connection of its own, so that one that hangs holds up no other, and with the
//! credential of this moment.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use mesh_core::printable::printable;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::access::{Access, Credential, Pem, Secret};
use crate::http1;

/// How long it may take until there is the head of an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest answer that is taken in one piece, and the longest line of a watch: etcd holds no object of more than 1.5 MiB.
const MOST_BYTES: usize = 256 << 20;
const LONGEST_LINE: usize = 16 << 20;
/// The longest reason why there is no answer.
const MOST_REASON: usize = 64 << 10;

/// What is sent: an object, a merge patch (RFC 7396), or an object for server-side apply, which is YAML and so may be JSON.
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Asks an API server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    access: Arc<Access>,
}

/// Why there is no answer, or none to go by.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no.
    Status(StatusCode, String),
    /// It did not say anything, or nothing that makes sense.
    Lost(anyhow::Error),
}

impl std::error::Error for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Status(status, why) => write!(f, "{status}: {why}"),
            Failure::Lost(error) => write!(f, "{error:#}"),
        }
    }
}

/// An answer that is still under way. Its connection ends with it.
pub(crate) struct Answer {
    response: Response<Incoming>,
    _driver: JoinSet<()>,
    buffer: Vec<u8>,
}

/// What a server says that answers line by line.
#[derive(Debug)]
pub(crate) enum Line {
    Whole(Vec<u8>),
    /// There is none any more, or the connection broke off.
    End,
    /// It is longer than an event can be.
    TooLong,
}

/// A server's words, for a log.
pub(super) fn in_words(message: &str) -> String {
    const LONGEST: usize = 300;
    printable(&message.chars().take(LONGEST).collect::<String>())
}

impl Client {
    pub(crate) fn new(access: Access) -> Client {
        Client { access: Arc::new(access) }
    }

    /// Who is asked.
    pub(crate) fn server(&self) -> String {
        self.access.server.to_string()
    }

    /// Asks for what is at a path, and takes it in one piece.
    pub(crate) async fn get(&self, path: &str, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::GET, path, Vec::new(), JSON).await?.whole().await }).await
    }

    /// Sends JSON to a path, and takes the answer in one piece.
    pub(crate) async fn post(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::POST, path, json, JSON).await?.whole().await }).await
    }

    /// Asks for something, and takes the answer in one piece, whatever its status.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        json: Vec<u8>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        within(limit, async {
            let answer = self.exchange(method, path, json, JSON).await.map_err(Failure::Lost)?;
            Ok((answer.response.status(), answer.whole().await?))
        })
        .await
    }

    /// Puts JSON in the place of what is at a path.
    pub(super) async fn put(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::PUT, path, json, JSON).await?.whole().await }).await
    }

    /// Changes what is at a path by a merge patch (RFC 7396).
    pub(crate) async fn patch(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::PATCH, path, json, MERGE).await?.whole().await }).await
    }

    /// Has an object be there as it is said, by server-side apply.
    pub(crate) async fn apply(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::PATCH, path, json, APPLY).await?.whole().await }).await
    }

    /// Takes away what is at a path, with the options in the JSON.
    pub(crate) async fn delete(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Bytes, Failure> {
        within(limit, async { self.open(Method::DELETE, path, json, JSON).await?.whole().await }).await
    }

    /// Begins a request; the answer's body is read as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<Answer, Failure> {
        within(PATIENCE, self.open(Method::GET, path, Vec::new(), JSON)).await
    }

    async fn open(&self, method: Method, path: &str, json: Vec<u8>, kind: &'static str) -> Result<Answer, Failure> {
        let answer = self.exchange(method, path, json, kind).await.map_err(Failure::Lost)?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.whole_within(MOST_REASON).await.unwrap_or_default();
        #[derive(Default, Deserialize)]
        struct Said {
            #[serde(default)]
            message: String,
        }
        let said: Said = serde_json::from_slice(&body).unwrap_or_default();
        Err(Failure::Status(status, in_words(&said.message)))
    }

    async fn exchange(&self, method: Method, path: &str, json: Vec<u8>, kind: &'static str) -> anyhow::Result<Answer> {
        let server = &self.access.server;
        let authority = server.authority().context("no host")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_plaintext = server.scheme_str() == Some("http");
        let port = authority.port_u16().unwrap_or(if is_plaintext { 80 } else { 443 });
        let base = server.path().trim_end_matches('/');
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "mesh-control");
        if !json.is_empty() {
            request = request.header(CONTENT_TYPE, kind);
        }
        let access = self.access.clone();
        let read = spawn_blocking(move || prepared(&access, is_plaintext)).await?;
        let (bearer, tls) = read?;
        if let Some(bearer) = bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(json.into()))?;
        let stream = http1::dial(host, port, |_| Ok(())).await?;
        // A watch may say nothing for a minute; whether anybody is still there shows within 30 s.
        let often = Duration::from_secs(5);
        let keepalive = TcpKeepalive::new().with_time(3 * often).with_interval(often).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let (response, driver) = match tls {
            None => http1::send(stream, request).await?,
            Some(config) => {
                let name = self.access.server_name.as_deref().unwrap_or(host);
                let name = ServerName::try_from(name.to_owned()).with_context(|| format!("{name} is no name"))?;
                let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
                http1::send(stream.with_context(|| format!("TLS with {authority}"))?, request).await?
            }
        };
        Ok(Answer { response, _driver: driver, buffer: Vec::new() })
    }
}

impl Answer {
    async fn whole(self) -> Result<Bytes, Failure> {
        self.whole_within(MOST_BYTES).await
    }

    async fn whole_within(self, most: usize) -> Result<Bytes, Failure> {
        http1::whole(self.response, most).await.map_err(Failure::Lost)
    }

    /// The next line, without its end. Half a line is none.
    pub(crate) async fn line(&mut self) -> Line {
        let mut searched = 0;
        loop {
            let found = self.buffer.get(searched..).and_then(|new| new.iter().position(|byte| *byte == b'\n'));
            if let Some(at) = found {
                let rest = self.buffer.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Line::Whole(line);
            }
            searched = self.buffer.len();
            if searched > LONGEST_LINE {
                return Line::TooLong;
            }
            match http1::frame(&mut self.response).await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) | Err(_) => return Line::End,
            }
        }
    }
}

async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(limit, asked).await.unwrap_or_else(|_| Err(Failure::Lost(anyhow!("no answer within {limit:?}"))))
}

/// What a request shows, and what its connection is secured by. Blocks, for it may read files.
fn prepared(access: &Access, is_plaintext: bool) -> anyhow::Result<(Option<HeaderValue>, Option<ClientConfig>)> {
    let token = match &access.credential {
        Credential::Token(Secret(token)) => Some(token.clone()),
        Credential::TokenFile(path) => {
            let read = std::fs::read(path).map(Zeroizing::new);
            Some(read.with_context(|| format!("cannot read {}", path.display()))?)
        }
        Credential::Certificate(..) => None,
    };
    let bearer = token.map(|token| {
        let line = Zeroizing::new([b"Bearer ", token.trim_ascii()].concat());
        let mut value = HeaderValue::from_bytes(&line).context("the token is none")?;
        value.set_sensitive(true);
        Ok::<_, anyhow::Error>(value)
    });
    let bearer = bearer.transpose()?;
    if is_plaintext {
        return Ok((bearer, None));
    }
    let mut roots = RootCertStore::empty();
    for root in certificates(&access.authority)? {
        roots.add(root).with_context(|| format!("an authority that vouches for {}", access.server))?;
    }
    ensure!(!roots.is_empty(), "no authority vouches for {}", access.server);
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match &access.credential {
        Credential::Certificate(certificate, key) => {
            let key = PrivateKeyDer::from_pem_slice(&read(key)?).context("the key of the client certificate")?;
            config.with_client_auth_cert(certificates(certificate)?, key)?
        }
        _ => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((bearer, Some(config)))
}

fn certificates(pem: &Pem) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = read(pem)?;
    CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().context("no certificate in PEM")
}

fn read(pem: &Pem) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    match pem {
        Pem::Here(Secret(bytes)) => Ok(bytes.clone()),
        Pem::In(path) => {
            let read = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
            Ok(Zeroizing::new(read?))
        }
    }
}
