//! A request's URI and authority: their form on the wire. And texts with the escapes of URLs.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Uri, Version};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request::{host_and_port, without_user};
use mesh_core::rewrite::edit;

/// The host that a request is sent with, in place of that of its target: an extension of it. Where it goes is not changed by it, nor
/// which route it takes. For what stands between a client and a server, and is neither.
///
/// ```
/// use http::{HeaderValue, Request};
/// use http_body_util::BodyExt;
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use mesh_tower::body::Body;
/// use mesh_tower::client::SentHost;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address: std::net::SocketAddr = listener.local_addr()?;
/// # let host = |headers: http::HeaderMap| async move { headers["host"].to_str().unwrap_or_default().to_owned() };
/// # tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/", axum::routing::get(host))).await });
/// let mesh = Mesh::builder().source(Fixed::new().service("program:80", [address])).start()?;
/// let asked = Request::get("/").extension(SentHost(HeaderValue::from_static("shop.example"))).body(Body::empty())?;
/// let response = mesh.client_for("program:80")?.request(asked).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "shop.example");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SentHost(pub HeaderValue);

/// The form of HTTP/1.1: path alone, and the authority in `Host`. `known` is the usual value, made before.
pub(crate) fn to_http1(head: &mut Parts, known: Option<&HeaderValue>) -> Result<(), MeshError> {
    head.version = Version::HTTP_11;
    if head.method == Method::CONNECT {
        to_authority_form(&mut head.uri)?;
    }
    let Some(authority) = head.uri.authority() else { return Ok(()) };
    let host = match known.filter(|known| known.as_bytes() == authority.as_str().as_bytes()) {
        Some(known) => Ok(known.clone()),
        None => HeaderValue::from_str(authority.as_str()),
    };
    // An authority is always visible ASCII.
    if let Ok(host) = host {
        head.headers.insert(HOST, host);
    }
    if head.method != Method::CONNECT {
        let path = std::mem::take(&mut head.uri).into_parts().path_and_query;
        // An empty path calls itself `/`, and would be written as nothing.
        head.uri = path.filter(|path| path.as_str() != "/").map(Uri::from).unwrap_or_default();
    }
    Ok(())
}

/// The form of CONNECT: the authority alone, always with a port (RFC 9112, 3.2.3).
#[cold]
fn to_authority_form(uri: &mut Uri) -> Result<(), MeshError> {
    let Some(authority) = uri.authority() else {
        return Err(MeshError::new(ErrorKind::BadRequest, "CONNECT needs a host and a port, not a path"));
    };
    let name = host_and_port(authority.as_str(), uri.scheme_str().unwrap_or("http"))?.into_owned();
    *uri = Uri::from(Authority::try_from(name).map_err(malformed)?);
    Ok(())
}

/// Puts another path in the place of the one that there is; the query stays.
#[cold]
pub(crate) fn set_path(uri: &mut Uri, path: &str) -> Result<(), MeshError> {
    let changed = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let changed = changed.map_err(|error| MeshError::new(ErrorKind::BadRequest, "malformed path").caused_by(error))?;
    edit(uri, |uri| uri.path_and_query = Some(changed));
    Ok(())
}

fn malformed(error: http::uri::InvalidUri) -> MeshError {
    MeshError::new(ErrorKind::BadRequest, "malformed authority").caused_by(error)
}

/// The form of HTTP/2: scheme and authority in the URI, and no `Host`.
pub(crate) fn to_http2(head: &mut Parts) -> Result<(), MeshError> {
    head.version = Version::HTTP_2;
    let host = head.headers.remove(HOST);
    let uri = &head.uri;
    if uri.authority().is_some() && uri.scheme().is_some() {
        return Ok(());
    }
    let authority = match (uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(malformed)?,
        (None, None) => return Err(MeshError::new(ErrorKind::BadRequest, "no authority")),
    };
    edit(&mut head.uri, |uri| uri.authority = Some(authority));
    Ok(())
}

/// Takes `user:password@` out of the URI.
pub(crate) fn strip_user(head: &mut Parts) -> Result<(), MeshError> {
    let Some(text) = head.uri.authority().map(Authority::as_str) else { return Ok(()) };
    let host = without_user(text);
    if host == text {
        return Ok(());
    }
    let host = Authority::try_from(host).map_err(malformed)?;
    edit(&mut head.uri, |uri| uri.authority = Some(host));
    Ok(())
}

/// A text without the escapes of a URL (`%2F`); `None` where one is malformed. `+` is no blank.
pub(crate) fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut decoded, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, host: Option<&str>) -> Parts {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn http1_has_the_authority_in_host_and_http2_in_the_uri() {
        for (uri, host) in [("http://a:1/p?q", None), ("/p?q", Some("a:1")), ("http://a:1/p?q", Some("other"))] {
            let mut one = head(uri, host);
            to_http1(&mut one, None).unwrap();
            let form = (one.uri.to_string(), one.headers[HOST].to_str().unwrap().to_owned());
            assert_eq!(form, ("/p?q".into(), "a:1".into()), "{uri}");
            let mut two = head(uri, host);
            to_http2(&mut two).unwrap();
            assert_eq!((two.uri.to_string().as_str(), two.headers.get(HOST)), ("http://a:1/p?q", None), "{uri}");
        }
        assert!(to_http2(&mut head("/p", None)).is_err());
    }

    #[test]
    fn nobody_is_told_of_user_and_password() {
        let mut request = head("http://user:secret@a:1/p", None);
        strip_user(&mut request).unwrap();
        assert_eq!(request.uri, "http://a:1/p");
    }
}
