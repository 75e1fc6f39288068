//! Changes that a route makes to a request and its response: headers, path, authority.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Forward;
use mesh_core::view::Routed;

pub(super) use crate::headers::apply;
use crate::reply::change_path;

/// Makes a request what its route wants the cluster to see.
pub(super) fn prepare(
    parts: &mut Parts,
    forward: &Forward,
    routed: &Routed<'_>,
    authority: Option<&Authority>,
) -> Result<(), MeshError> {
    apply(routed.request_changes, &mut parts.headers);
    if let Some(change) = &forward.path {
        let path = change_path(change, &routed.route.matches.path, parts.uri.path());
        let path = match parts.uri.query().filter(|_| !path.contains('?')) {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let path = PathAndQuery::try_from(path).map_err(|error| {
            MeshError::new(ErrorKind::BadRequest, "the rewritten path is malformed").caused_by(error)
        })?;
        edit(&mut parts.uri, |uri| uri.path_and_query = Some(path));
    }
    if let Some(host) = &forward.authority {
        parts.headers.insert(HOST, host.clone());
        edit(&mut parts.uri, |uri| (uri.scheme, uri.authority) = (None, None));
    } else if let Some(authority) = authority {
        edit(&mut parts.uri, |uri| {
            uri.scheme.get_or_insert(Scheme::HTTP);
            uri.authority = Some(authority.clone());
        });
    }
    Ok(())
}

/// The form of HTTP/1.1: path alone, and the authority in `Host`. `known` is the usual value, made before.
pub(super) fn to_http1(parts: &mut Parts, known: Option<&HeaderValue>) {
    parts.version = http::Version::HTTP_11;
    let Some(authority) = parts.uri.authority() else { return };
    let is = |host: &HeaderValue| host.as_bytes() == authority.as_str().as_bytes();
    if !parts.headers.get(HOST).is_some_and(is) {
        let host = match known.filter(|known| is(known)) {
            Some(known) => Ok(known.clone()),
            None => HeaderValue::from_str(authority.as_str().rsplit('@').next().unwrap_or_default()),
        };
        // An authority is always visible ASCII.
        if let Ok(host) = host {
            parts.headers.insert(HOST, host);
        }
    }
    if parts.method != http::Method::CONNECT {
        edit(&mut parts.uri, |uri| (uri.scheme, uri.authority) = (None, None));
    }
}

/// The form of HTTP/2: scheme and authority in the URI, and no `Host`.
pub(super) fn to_http2(parts: &mut Parts) -> Result<(), MeshError> {
    parts.version = http::Version::HTTP_2;
    let host = parts.headers.remove(HOST);
    if parts.uri.authority().is_some() && parts.uri.scheme().is_some() {
        return Ok(());
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|error| MeshError::new(ErrorKind::BadRequest, "malformed authority").caused_by(error))?,
        (None, None) => return Err(MeshError::new(ErrorKind::BadRequest, "no authority")),
    };
    edit(&mut parts.uri, |uri| {
        uri.scheme.get_or_insert(Scheme::HTTP);
        uri.authority = Some(authority);
    });
    Ok(())
}

/// Changes parts of a URI in place, without copying the others.
fn edit(uri: &mut Uri, change: impl FnOnce(&mut http::uri::Parts)) {
    let mut parts = std::mem::take(uri).into_parts();
    change(&mut parts);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    // Scheme and authority come and go together above, so the parts always fit.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, host: Option<&str>) -> Parts {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn http1_has_the_authority_in_host_and_http2_in_the_uri() {
        for (uri, host) in [("http://a:1/p?q", None), ("/p?q", Some("a:1")), ("http://a:1/p?q", Some("other"))] {
            let mut one = parts(uri, host);
            to_http1(&mut one, None);
            assert_eq!((one.uri.to_string().as_str(), one.headers[HOST].to_str().unwrap()), ("/p?q", "a:1"), "{uri}");
            let mut two = parts(uri, host);
            to_http2(&mut two).unwrap();
            assert_eq!((two.uri.to_string().as_str(), two.headers.get(HOST)), ("http://a:1/p?q", None), "{uri}");
        }
        assert!(to_http2(&mut parts("/p", None)).is_err());
    }
}
