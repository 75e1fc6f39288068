//! Documents of somebody else's, over HTTPS: the keys of issuers of tokens, and the bundles of foreign trust domains. A fetch has a
//! time, a size, few redirects, and goes to no address that the [`guard`] refuses. The address that was looked at is the one that is
//! dialled, so that a name which changes its mind is no way in. The [`schedule`] says when.

pub(crate) mod guard;
mod schedule;
mod under_way;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::error::Invalid;
use mesh_core::model::{FileTls, Roots, Sni};
use mesh_core::tls::{FileTrust, foreign_config, foreign_name};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

pub(crate) use schedule::{Good, Schedule, Wanted};
pub(crate) use under_way::UnderWay;

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 3;
/// How large a document may be: 1 MiB.
const MOST_BYTES: usize = 1 << 20;

pub(crate) type Guard = fn(IpAddr) -> Result<(), &'static str>;

/// By what a server proves that it is the one that is meant.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// By a certificate for the name of its host: of the authorities in this file, or of those of the system.
    Web(Option<PathBuf>),
    /// As this says, whatever the name of its host.
    By(Arc<ClientConfig>),
}

/// Fetches documents.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    trust: Trust,
    allows_plaintext: bool,
    guard: Guard,
    /// A host for which the guard is not asked.
    named: Option<String>,
}

impl Fetcher {
    /// From servers that prove who they are like this.
    pub(crate) fn new(trust: Trust) -> Fetcher {
        Fetcher { trust, allows_plaintext: false, guard: guard::check, named: None }
    }

    /// From anywhere, over plain HTTP, too.
    pub(crate) fn insecure(self) -> Fetcher {
        Fetcher { allows_plaintext: true, guard: |_| Ok(()), ..self }
    }

    /// Where the operator has written a URL with an address, or `localhost`, that is where it leads. What others have answers for,
    /// such as names, or redirects, does not lead there.
    pub(crate) fn by_operator(self, uri: &Uri) -> Fetcher {
        let host = uri.host().map(bare).filter(|host| *host == "localhost" || host.parse::<IpAddr>().is_ok());
        Fetcher { named: host.map(str::to_owned), ..self }
    }

    #[cfg(test)]
    pub(crate) fn with_guard(self, guard: Guard) -> Fetcher {
        Fetcher { guard, ..self }
    }

    /// What is at this URL.
    ///
    /// # Errors
    /// Why there is nothing, for an operator, and where.
    pub(crate) async fn get(&self, uri: &str) -> Result<Bytes, String> {
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
        let host = bare(authority.host());
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
        let (trust, host) = (self.trust.clone(), host.to_owned());
        let made = spawn_blocking(move || trust.tls(&host)).await.map_err(|error| error.to_string())?;
        let (config, name) = made.map_err(|invalid| format!("TLS: {invalid}"))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await
    }

    /// A connection to one of the addresses of a host that may be dialled.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses = lookup_host((host, port)).await.map_err(|error| format!("cannot look up {host}: {error}"))?;
        let mut why = format!("{host} has no address");
        for address in addresses {
            let allowed = if self.named.as_deref() == Some(host) { Ok(()) } else { (self.guard)(address.ip()) };
            why = match allowed {
                Err(kind) => format!("{host} is {}, {kind}: nothing is fetched from there", address.ip()),
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
    let too_large = || format!("more than {MOST_BYTES} bytes");
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > MOST_BYTES) {
        return Err(too_large());
    }
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the body ended early: {error}"))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > MOST_BYTES {
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

/// A host without the brackets of an address of IPv6.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

impl Trust {
    /// What a server is verified by. The file is read for every fetch, so that a new one counts.
    fn tls(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), Invalid> {
        let roots = match self {
            Trust::Web(None) | Trust::By(_) => Roots::System,
            Trust::Web(Some(path)) => Roots::File(path.clone()),
        };
        let tls = Arc::new(FileTls::with(Sni::Fixed(host.into()), roots));
        let name = foreign_name(&tls, None)?;
        if let Trust::By(config) = self {
            return Ok((config.clone(), name));
        }
        let trust = Arc::new(FileTrust::read(&tls.files, SystemTime::now())?);
        Ok((Arc::new(foreign_config(&tls, &trust, None)?), name))
    }
}
