//! Documents of somebody else's, over HTTPS: the keys of issuers of tokens, and the bundles of foreign trust domains. A fetch has a
//! time, a size, few redirects, and goes to no address that the [`guard`] refuses. The address that was looked at is the one that is
//! dialled, so that a name which changes its mind is no way in. The [`schedule`] says when.

pub(crate) mod guard;
mod schedule;
mod under_way;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{ACCEPT, CONTENT_ENCODING, HOST, LOCATION, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use mesh_core::error::Invalid;
use mesh_core::model::{ForeignTls, Roots, Sni};
use mesh_core::tls::{ForeignTrust, foreign_config, foreign_name};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

pub(crate) use schedule::{Good, Schedule, Wanted};
pub(crate) use under_way::UnderWay;

use crate::http1;

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
        let is_named = self.named.as_deref() == Some(host);
        let may = |ip| if is_named { Ok(()) } else { (self.guard)(ip) };
        let stream = http1::dial(host, port, may).await.map_err(in_words)?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "mesh-control")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        if is_plaintext {
            return http1::send(stream, request).await.map_err(in_words);
        }
        let (trust, host) = (self.trust.clone(), host.to_owned());
        let made = spawn_blocking(move || trust.tls(&host)).await.map_err(|error| error.to_string())?;
        let (config, name) = made.map_err(|invalid| format!("TLS: {invalid}"))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        http1::send(stream.map_err(|error| format!("TLS: {error}"))?, request).await.map_err(in_words)
    }
}

/// The whole body, or none of it.
async fn body(response: Response<Incoming>) -> Result<Bytes, String> {
    if let Some(coding) = response.headers().get(CONTENT_ENCODING) {
        return Err(format!("the body is encoded ({coding:?}), which nobody asked for"));
    }
    http1::whole(response, MOST_BYTES).await.map_err(in_words)
}

fn in_words(error: anyhow::Error) -> String {
    format!("{error:#}")
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
        let tls = Arc::new(ForeignTls::with(Sni::Fixed(host.into()), roots));
        let name = foreign_name(&tls, None)?;
        if let Trust::By(config) = self {
            return Ok((config.clone(), name));
        }
        let trust = Arc::new(ForeignTrust::read(&tls.material, SystemTime::now())?);
        Ok((Arc::new(foreign_config(&tls, &trust, None)?), name))
    }
}
