//! What a gateway does with a message: whoever is outside is not believed, and what goes on is told where it came from.
//!
//! As Istio's gateways have it where nothing else is said: no proxy in front of it is trusted (`numTrustedProxies: 0`), so that the
//! client is who has connected. `x-forwarded-for` gets its address, `x-forwarded-proto` is what it spoke, and what is known of its
//! certificate is in `x-forwarded-client-cert`, anew. So is `x-request-id`: strangers do not choose what requests are found by. Where the
//! configuration has proxies in front believed (`EdgeTrust`), the client is who they say that it is.

use std::net::{IpAddr, SocketAddr};

use http::header::{COOKIE, HOST};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use mesh_tower::body::Body;
use mesh_tower::core::model::{EdgeTrust, ForwardedClientCert};
use mesh_tower::core::request::is_grpc;
use mesh_tower::core::request_info::EXPECTED_TIMEOUT;
use mesh_tower::core::trace::{REQUEST_ID, new_request_id};
use mesh_tower::server::{ClientAddress, ConnectionInfo, ServerLayer};
use mesh_tower::{Client, Mesh, MeshError};

use crate::compress::Asked;
use crate::forward::{self, Answer, Behind, Tunnels, XFCC};
use crate::grpc_web::Web;

/// Who is said to have asked, and how, along the way.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The address of the client, as Envoy tells it: to a gateway all are outside.
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// What a server of the mesh heeds of those who call it, before it takes it off: how long they wait, and who they say they are, for
/// which they are told who answers. Outside that is nobody's to say or to know.
const HEEDED: [HeaderName; 3] = [
    EXPECTED_TIMEOUT,
    HeaderName::from_static("x-envoy-peer-metadata"),
    HeaderName::from_static("x-envoy-peer-metadata-id"),
];

/// Sends requests on.
#[derive(Clone)]
pub(crate) struct Edge {
    client: Client,
    tunnels: Tunnels,
    compresses: bool,
}

impl Edge {
    /// `compresses`: answers, for clients that read it.
    pub(crate) fn new(mesh: &Mesh, compresses: bool) -> Self {
        Edge { client: mesh.gateway_client(), tunnels: Tunnels::default(), compresses }
    }

    /// A server that decides by its listener, and sends on what is let in.
    pub(crate) fn behind(self, layer: &ServerLayer) -> Behind {
        Behind::new(layer, cleanse, move |request| self.clone().send_on(request))
    }

    async fn send_on(self, mut request: Request<Body>) -> Answer {
        if let Some(refused) = forward::not_for_a_server(&request) {
            return refused;
        }
        let asked = if self.compresses { Asked::of(&request) } else { None };
        let web = request.extensions_mut().remove::<Web>();
        if let Some(web) = web {
            request = web.request(request);
        }
        let is_grpc = is_grpc(request.headers());
        let upgrade = forward::prepare(&mut request);
        forward::tell_caller(request.headers_mut(), None);
        let seen = request.extensions_mut().remove::<Seen>();
        if let Some(seen) = &seen {
            seen.tell(request.headers_mut());
        }
        let answered = self.client.request(request).await.map_err(|error| untold(&error));
        let answer = forward::answer(answered, is_grpc, upgrade, &self.tunnels, seen.map(|seen| seen.client));
        let answer = match web {
            Some(web) => web.answer(answer),
            None => answer,
        };
        match asked {
            Some(asked) => asked.answer(answer).await,
            None => answer,
        }
    }
}

/// What those outside are told in the place of a reason that speaks of the mesh: its kind, which its status says, too.
fn untold(error: &MeshError) -> MeshError {
    tracing::debug!("a request failed: {error:#}");
    let told = MeshError::new(error.kind(), "the gateway has no answer");
    match error.response_headers() {
        Some(headers) => told.with_response_headers(headers.clone()),
        None => told,
    }
}

/// What is known of a request as it came.
#[derive(Clone)]
struct Seen {
    /// Who has sent it.
    client: IpAddr,
    /// What becomes of what was said of certificates.
    certificates: ForwardedClientCert,
    /// What was said of them, where it goes on.
    said: Option<HeaderValue>,
}

impl Seen {
    fn new(headers: &mut HeaderMap, connection: &ConnectionInfo, trust: EdgeTrust) -> Self {
        let has_shown = connection.tls().is_some_and(|tls| tls.fingerprint.is_some());
        let goes_on = match trust.client_cert {
            ForwardedClientCert::AlwaysForwardOnly => true,
            ForwardedClientCert::ForwardOnly | ForwardedClientCert::AppendForward => has_shown,
            ForwardedClientCert::Sanitize | ForwardedClientCert::SanitizeSet => false,
        };
        if goes_on && headers.contains_key(XFCC) {
            join(headers, XFCC, b",");
        }
        Seen {
            client: believed(headers, trust.proxies).unwrap_or(connection.peer.ip()).to_canonical(),
            certificates: trust.client_cert,
            said: headers.get(XFCC).filter(|_| goes_on).cloned(),
        }
    }

    /// Tells it where the request goes on. What is known of the client's own certificate stands there already.
    fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(EXTERNAL_ADDRESS, as_text(self.client));
        let own = headers.remove(XFCC);
        let said = self.said.clone();
        let told = match (self.certificates, said, own) {
            (ForwardedClientCert::Sanitize, ..) => None,
            (ForwardedClientCert::SanitizeSet, _, own) => own,
            (ForwardedClientCert::AppendForward, Some(said), Some(own)) => {
                HeaderValue::from_bytes(&[said.as_bytes(), b",", own.as_bytes()].concat()).ok()
            }
            (ForwardedClientCert::AppendForward, said, own) => said.or(own),
            (ForwardedClientCert::ForwardOnly | ForwardedClientCert::AlwaysForwardOnly, said, _) => said,
        };
        if let Some(told) = told {
            headers.insert(XFCC, told);
        }
    }
}

/// Makes a request what is known of it, before anybody decides by it.
fn cleanse(request: &mut Request<Body>, layer: &ServerLayer) {
    let (connection, trust) = (ConnectionInfo::current(), layer.edge_trust());
    let is_tls = connection.as_deref().is_some_and(|connection| connection.tls().is_some());
    let spoken = spoken(request.headers(), is_tls, trust);
    let scheme = if spoken == "https" { Scheme::HTTPS } else { Scheme::HTTP };
    let is_http2 = request.version() == Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(spoken));
    let seen = connection.as_deref().map(|connection| Seen::new(headers, connection, trust));
    if let Some(connection) = &connection {
        append(headers, FORWARDED_FOR, &as_text(connection.peer.ip().to_canonical()));
    }
    HEEDED.iter().for_each(|name| _ = headers.remove(name));
    headers.insert(REQUEST_ID, new_request_id(&mut fastrand::Rng::new()));
    if is_http2 {
        join_cookies(headers);
    }
    if let (Some(seen), Some(connection)) = (seen, &connection) {
        if seen.client != connection.peer.ip().to_canonical() {
            // Its port nobody knows.
            request.extensions_mut().insert(ClientAddress(SocketAddr::new(seen.client, 0)));
        }
        request.extensions_mut().insert(seen);
    }
    if let Some(uri) = absolute(request, scheme) {
        *request.uri_mut() = uri;
    }
    // Policies see what the client says; it is gRPC where it goes on.
    if let Some(web) = Web::of(request)
        && layer.translates_grpc_web()
    {
        request.extensions_mut().insert(web);
    }
}

/// The client, as so many proxies in front tell it: each has added at the end who it got the request from. `None` where they have not.
fn believed(headers: &HeaderMap, proxies: u32) -> Option<IpAddr> {
    let before = usize::try_from(proxies.checked_sub(1)?).ok()?;
    let fields = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut said = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    std::str::from_utf8(said.nth(before)?.trim_ascii()).ok()?.parse().ok()
}

/// What the client speaks: as the proxies in front tell it, where they are believed and do.
fn spoken(headers: &HeaderMap, is_tls: bool, trust: EdgeTrust) -> &'static str {
    let mut said = headers.get_all(FORWARDED_PROTO).iter().filter(|_| trust.proxies > 0);
    match (said.next().map(HeaderValue::as_bytes), said.next()) {
        (Some(b"https"), None) => "https",
        (Some(b"http"), None) => "http",
        _ if is_tls => "https",
        _ => "http",
    }
}

fn as_text(ip: IpAddr) -> HeaderValue {
    HeaderValue::try_from(ip.to_string()).expect("an address is visible ASCII")
}

/// Adds to what a list has; it stays one field.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    headers.append(&name, value.clone());
    join(headers, name, b", ");
}

/// Browsers send each cookie by itself over HTTP/2; to everybody else they are one field (RFC 9113, 8.2.3), which routes match on.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        join(headers, COOKIE, b"; ");
    }
}

/// Makes all fields of this name one.
fn join(headers: &mut HeaderMap, name: HeaderName, by: &[u8]) {
    let all: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(all) = HeaderValue::from_bytes(&all.join(by)) {
        headers.insert(name, all);
    }
}

/// The target with the scheme that the client speaks, whatever it says; and with the host, where there is one that can be read. What
/// is malformed stays, to be refused.
fn absolute(request: &Request<Body>, scheme: Scheme) -> Option<Uri> {
    let uri = request.uri();
    if *request.method() == Method::CONNECT || uri.scheme().is_some_and(|said| *said == scheme) {
        return None;
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let authority = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), ..) => authority.clone(),
        (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok()?,
        _ => return None,
    };
    let mut parts = uri.clone().into_parts();
    (parts.scheme, parts.authority) = (Some(scheme), Some(authority));
    parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_the_scheme_that_is_spoken_and_the_host_that_is_asked_for() {
        let made = |uri: &str, hosts: &[&str], scheme: Scheme| {
            let mut request = Request::get(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            absolute(&request.body(Body::empty()).unwrap(), scheme).map(|uri| uri.to_string())
        };
        assert_eq!(made("/a?b", &["shop"], Scheme::HTTPS).as_deref(), Some("https://shop/a?b"));
        assert_eq!(made("http://shop/a", &["other"], Scheme::HTTPS).as_deref(), Some("https://shop/a"));
        assert_eq!(made("https://shop/a", &[], Scheme::HTTPS), None);
        // Whose host cannot be told is refused as it came.
        for hosts in [&[][..], &["a", "b"], &["a b"]] {
            assert_eq!(made("/", hosts, Scheme::HTTP), None, "{hosts:?}");
        }
    }

    #[test]
    fn cookies_are_one_field_however_many_there_were() {
        for (said, expected) in [(&["a=1"][..], "a=1"), (&["a=1", "b=2", "c=3; d=4"], "a=1; b=2; c=3; d=4")] {
            let mut headers: HeaderMap = said.iter().map(|cookie| (COOKIE, HeaderValue::from_static(cookie))).collect();
            join_cookies(&mut headers);
            let all: Vec<_> = headers.get_all(COOKIE).iter().collect();
            assert_eq!(all, [expected]);
        }
        let mut none = HeaderMap::new();
        join_cookies(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn the_client_is_who_as_many_proxies_as_are_believed_say_that_it_is() {
        let two = [
            (FORWARDED_FOR, HeaderValue::from_static("6.6.6.6, 1.2.3.4")),
            (FORWARDED_FOR, "10.0.0.9".parse().unwrap()),
        ];
        let headers = HeaderMap::from_iter(two);
        for (proxies, expected) in
            [(0, None), (1, Some("10.0.0.9")), (2, Some("1.2.3.4")), (3, Some("6.6.6.6")), (4, None), (u32::MAX, None)]
        {
            assert_eq!(believed(&headers, proxies), expected.map(|ip| ip.parse().unwrap()), "{proxies}");
        }
        let unreadable = HeaderMap::from_iter([(FORWARDED_FOR, HeaderValue::from_static("1.2.3.4, unknown"))]);
        assert_eq!(believed(&unreadable, 1), None);
    }

    #[test]
    fn the_client_is_the_last_of_those_who_are_said_to_have_asked() {
        let mut headers = HeaderMap::new();
        append(&mut headers, FORWARDED_FOR, &HeaderValue::from_static("10.0.0.1"));
        assert_eq!(headers[FORWARDED_FOR], "10.0.0.1");
        let said = ["1.2.3.4", "5.6.7.8, 9.9.9.9"].map(|said| (FORWARDED_FOR, HeaderValue::from_static(said)));
        let mut headers = HeaderMap::from_iter(said.clone());
        headers.append(FORWARDED_FOR, said[1].1.clone());
        append(&mut headers, FORWARDED_FOR, &HeaderValue::from_static("10.0.0.1"));
        let all: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
        assert_eq!(all.len(), 1);
        assert!(all[0].to_str().unwrap().ends_with("5.6.7.8, 9.9.9.9, 10.0.0.1"), "{all:?}");
    }
}
