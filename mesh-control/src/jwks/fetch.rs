//! One fetch of keys, over HTTPS: within a time, up to a size, with few redirects, and from no address that the guard
//! refuses. The address that was looked at is the one that is dialled, so that a name which changes its mind is no way in.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::error::Invalid;
use mesh_core::model::{FileTls, JwkSet, MOST_JWKS_BYTES, Roots, Sni};
use mesh_core::tls::{FileTrust, foreign_config, foreign_name};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{KeyFetching, guard};
use crate::policy::tokens::KeySource;

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 3;

type Guard = fn(IpAddr) -> Result<(), &'static str>;

/// Fetches keys.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    roots: Option<PathBuf>,
    allows_plaintext: bool,
    guard: Guard,
}

impl Fetcher {
    pub(crate) fn new(options: &KeyFetching) -> Fetcher {
        let guard: Guard = if options.allow_insecure { |_| Ok(()) } else { guard::check };
        Fetcher { roots: options.roots.clone(), allows_plaintext: options.allow_insecure, guard }
    }

    #[cfg(test)]
    pub(super) fn with_guard(self, guard: Guard) -> Fetcher {
        Fetcher { guard, ..self }
    }

    /// The keys of a source.
    ///
    /// # Errors
    /// Why there are none, for an operator.
    pub(crate) async fn fetch(&self, source: &KeySource, limit: Duration) -> Result<JwkSet, String> {
        let fetched = timeout(limit, self.find(source)).await;
        fetched.unwrap_or_else(|_| Err(format!("{} did not answer within {limit:?}", source.url())))
    }

    async fn find(&self, source: &KeySource) -> Result<JwkSet, String> {
        let uri = match source {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Discovery(issuer) => jwks_uri(issuer, &self.get(&source.url()).await?)?,
        };
        let text = self.get(&uri).await?;
        JwkSet::parse(&text).map_err(|invalid| format!("{uri}: {}", invalid.reason))
    }

    async fn get(&self, uri: &str) -> Result<Bytes, String> {
        let mut uri: Uri = uri.parse().map_err(|_| format!("{uri} is no URL"))?;
        for _ in 0..=MOST_REDIRECTS {
            let at = |what: String| format!("{uri}: {what}");
            let (response, _driver) = self.ask(&uri).await.map_err(at)?;
            match response.status() {
                StatusCode::OK => return body(response).await.map_err(|what| format!("{uri}: {what}")),
                status if status.is_redirection() => {
                    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
                    uri = redirected(&uri, to).ok_or_else(|| at(format!("{status} to {to:?}, which is no URL")))?;
                }
                status => return Err(at(format!("answered {status}"))),
            }
        }
        Err(format!("{uri}: more than {MOST_REDIRECTS} redirects"))
    }

    /// One request. The connection ends with what drives it.
    async fn ask(&self, uri: &Uri) -> Result<(Response<Incoming>, JoinSet<()>), String> {
        let is_plaintext = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => false,
            Some(scheme) if *scheme == Scheme::HTTP && self.allows_plaintext => true,
            _ => return Err("only https:// is fetched".to_owned()),
        };
        let authority = uri.authority().filter(|it| !it.as_str().contains('@')).ok_or("no host, or more than that")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if is_plaintext { 80 } else { 443 });
        let stream = self.dial(host, port).await?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "mesh-control")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        if is_plaintext {
            return exchange(stream, request).await;
        }
        let (roots, host) = (self.roots.clone(), host.to_owned());
        let made = spawn_blocking(move || tls(roots.as_deref(), &host)).await.map_err(|error| error.to_string())?;
        let (config, name) = made.map_err(|invalid| format!("TLS: {invalid} (--jwks-roots names the authorities)"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await
    }

    /// A connection to one of the addresses of a host that may be dialled.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses = lookup_host((host, port)).await.map_err(|error| format!("cannot look up {host}: {error}"))?;
        let mut why = format!("{host} has no address");
        for address in addresses {
            why = match (self.guard)(address.ip()) {
                Err(kind) => format!("{host} is {}, {kind}: no keys are fetched from there", address.ip()),
                Ok(()) => match TcpStream::connect(SocketAddr::new(address.ip(), port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => format!("cannot connect to {host} ({address}): {error}"),
                },
            };
        }
        Err(why)
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(Response<Incoming>, JoinSet<()>), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("HTTP: {error}"))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await.map_err(|error| format!("HTTP: {error}"))?;
    Ok((response, driver))
}

/// The whole body, or none of it.
async fn body(response: Response<Incoming>) -> Result<Bytes, String> {
    if let Some(coding) = response.headers().get(CONTENT_ENCODING) {
        return Err(format!("the body is encoded ({coding:?}), which nobody asked for"));
    }
    let too_large = || format!("more than {MOST_JWKS_BYTES} bytes");
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > MOST_JWKS_BYTES) {
        return Err(too_large());
    }
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the body ended early: {error}"))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > MOST_JWKS_BYTES {
                return Err(too_large());
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.into())
}

/// Where a redirect leads: to a URL, or to another path of the same host.
fn redirected(from: &Uri, to: &str) -> Option<Uri> {
    if !to.starts_with('/') {
        return to.parse().ok().filter(|uri: &Uri| uri.scheme().is_some());
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(to.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Where an issuer says that its keys are (OpenID Connect Discovery 1.0, 4.3: who answers has to be who was asked for).
fn jwks_uri(issuer: &str, document: &[u8]) -> Result<String, String> {
    let wrong = |what: &str| format!("the discovery document of {issuer} {what}");
    let document: serde_json::Value = serde_json::from_slice(document).map_err(|_| wrong("is no JSON"))?;
    let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
    match text("issuer") {
        Some(name) if name == issuer => {}
        other => return Err(wrong(&format!("is that of {other:?}"))),
    }
    text("jwks_uri").map(str::to_owned).ok_or_else(|| wrong("has no \"jwks_uri\""))
}

/// What a server is verified by. The file is read for every fetch, so that a new one counts.
fn tls(roots: Option<&Path>, host: &str) -> Result<(ClientConfig, ServerName<'static>), Invalid> {
    let roots = roots.map_or(Roots::System, |path| Roots::File(path.to_owned()));
    let tls = Arc::new(FileTls::with(Sni::Fixed(host.into()), roots));
    let trust = Arc::new(FileTrust::read(&tls.files, SystemTime::now())?);
    Ok((foreign_config(&tls, &trust, None)?, foreign_name(&tls, None)?))
}
