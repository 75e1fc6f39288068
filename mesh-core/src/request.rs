//! The one view of a request that everything decides by: routing, filters, balancing, telemetry.
//!
//! A request is looked at once; `:path`, `:method`, `:authority` and `:scheme` are parts of this view and not
//! of the header map, so that a matcher cannot look for them in the wrong place.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use http::header::{COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, request::Parts};

use crate::error::{ErrorKind, MeshError};

/// Whether a header of this name says whom a request is for: in HTTP/2 `Host` is `:authority`, and it is one thing here.
pub(crate) fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

/// The method that is meant by one in another case: methods are told apart by it (RFC 9110, 9.1).
///
/// ```
/// use mesh_core::request::miscased_method;
///
/// assert_eq!(miscased_method("post"), Some("POST"));
/// assert!(miscased_method("POST").is_none() && miscased_method("purge").is_none());
/// ```
pub fn miscased_method(text: &str) -> Option<&'static str> {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    METHODS.into_iter().find(|known| *known != text && known.eq_ignore_ascii_case(text))
}

/// A borrowed view of a request's head.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'r> {
    /// The method.
    pub method: &'r Method,
    /// `http` or `https`.
    pub scheme: &'r str,
    /// Host and port as the caller wrote them.
    pub authority: &'r str,
    /// Path and query; `/` where there is none.
    pub path_and_query: &'r str,
    /// The headers, without the pseudo ones.
    pub headers: &'r HeaderMap,
}

impl<'r> RequestHead<'r> {
    /// The view of a request: its authority is the URI's, else the `Host` header's. More than one `Host`, or one
    /// that is not text, is a bad request.
    pub fn of(parts: &'r Parts) -> Result<Self, MeshError> {
        let authority = authority_of(&parts.uri, &parts.headers)?;
        Ok(Self::new(&parts.method, &parts.uri, &parts.headers, authority))
    }

    /// The view of a request that a server received, where nothing is taken for granted: its authority is well formed and
    /// has no user in it, and so is its `Host`, which HTTP/1.1 must have (RFC 9112, 3.2; RFC 9113, 8.3.1). HTTP/1.0
    /// without one has the empty authority: that of the default host. Where the target names an authority, that is the one,
    /// whatever `Host` says. The body of HTTP/1.1 has a length or is `chunked`, and nothing else: what else a
    /// `transfer-encoding` says, others may read as the end of the body in another place (RFC 9112, 6.1). Its target is a path, or has a scheme and an
    /// authority; that of CONNECT is an authority, and `*` stands for the server as a whole (RFC 9112, 3.2.4). Methods have
    /// no small letters, since some applications take `delete` for `DELETE`; and no value of HTTP/2 begins or ends with a
    /// blank (RFC 9113, 8.2.1), which some take off.
    pub fn received<B>(request: &'r Request<B>) -> Result<Self, MeshError> {
        let (method, uri, version) = (request.method(), request.uri(), request.version());
        let bad = |what: &str| MeshError::new(ErrorKind::BadRequest, what);
        let is_usual = *method == Method::GET || *method == Method::POST;
        if !is_usual && !is_method(method.as_str().as_bytes()) {
            return Err(bad("malformed method"));
        }
        // One look at all of them beats a look-up for each question.
        let (mut hosts, mut codings) = (Values::None, Values::None);
        for (name, value) in request.headers() {
            if *name == HOST {
                hosts.add(value);
            } else if *name == TRANSFER_ENCODING {
                codings.add(value);
            }
            if version == Version::HTTP_2 && has_outer_blank(value.as_bytes()) {
                return Err(bad("a header that begins or ends with a blank"));
            }
        }
        match codings {
            Values::None => {}
            Values::One(coding) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {}
            _ => return Err(bad("transfer-encoding is something else than chunked")),
        }
        let host = match hosts {
            Values::Several => return Err(bad("more than one Host header")),
            Values::One(host) => {
                let host = host.to_str().ok().filter(|host| split_authority(host).is_some());
                Some(host.ok_or_else(|| bad("malformed Host header"))?)
            }
            Values::None if version == Version::HTTP_11 => return Err(bad("no Host header")),
            Values::None => None,
        };
        let authority = match (uri.authority(), host) {
            (Some(authority), _) if split_authority(authority.as_str()).is_none() => {
                return Err(bad("malformed authority"));
            }
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host,
            (None, None) if version < Version::HTTP_11 => "",
            (None, None) => return Err(bad("no authority")),
        };
        let head = Self::new(method, uri, request.headers(), authority);
        let is_path = head.path_and_query.starts_with('/');
        if !is_path && (head.path_and_query != "*" || *method != Method::OPTIONS) {
            return Err(bad("the target is not a path"));
        }
        let is_authority = uri.authority().is_some() && uri.scheme().is_none();
        if version <= Version::HTTP_11 && is_authority != (*method == Method::CONNECT) {
            return Err(bad("the target is not of the method's form"));
        }
        Ok(head)
    }

    /// The same of the pieces of a request that was looked at before and is about to be changed. Where there is no one
    /// authority (HTTP/1.0 without `Host`), it is empty.
    pub fn of_parts(method: &'r Method, uri: &'r Uri, headers: &'r HeaderMap) -> Self {
        Self::new(method, uri, headers, authority_of(uri, headers).unwrap_or(""))
    }

    /// The view of a request whose authority is known from elsewhere, such as a gRPC target.
    pub fn with_authority(parts: &'r Parts, authority: &'r str) -> Self {
        Self::new(&parts.method, &parts.uri, &parts.headers, authority)
    }

    #[inline]
    fn new(method: &'r Method, uri: &'r Uri, headers: &'r HeaderMap, authority: &'r str) -> Self {
        RequestHead {
            method,
            scheme: uri.scheme_str().unwrap_or("http"),
            authority,
            path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()),
            headers,
        }
    }

    /// The path, without the query.
    pub fn path(&self) -> &'r str {
        self.path_and_query.get(..position_of(self.path_and_query, b'?')).unwrap_or_default()
    }

    /// The query, without its `?`.
    pub fn query(&self) -> Option<&'r str> {
        self.path_and_query.get(position_of(self.path_and_query, b'?') + 1..)
    }

    /// Whether the request carries gRPC, by its content type.
    pub fn is_grpc(&self) -> bool {
        is_grpc(self.headers)
    }
}

/// Where a byte is for the first time; the length where it is not. Paths and authorities are longer than what a search byte by
/// byte is good for, and shorter than what a search made for long texts is.
#[inline]
fn position_of(text: &str, of: u8) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (blocks, rest) = text.as_bytes().as_chunks::<8>();
    for (at, block) in blocks.iter().enumerate() {
        // A byte that was the one is zero now, and the lowest zero byte has the lowest of the bits that remain.
        let zero = u64::from_le_bytes(*block) ^ (ONES * u64::from(of));
        let found = zero.wrapping_sub(ONES) & !zero & (ONES << 7);
        if found != 0 {
            return at * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    blocks.len() * 8 + rest.iter().position(|byte| *byte == of).unwrap_or(rest.len())
}

/// The authority of a request: the URI's, else its only `Host` header.
fn authority_of<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Result<&'r str, MeshError> {
    if let Some(authority) = uri.authority() {
        return Ok(without_user(authority.as_str()));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let bad = |what: &str| Err(MeshError::new(ErrorKind::BadRequest, what));
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) if !host.is_empty() => Ok(host),
            _ => bad("malformed Host header"),
        },
        (None, _) => bad("no authority in the URI and no Host header"),
        (Some(_), Some(_)) => bad("more than one Host header"),
    }
}

/// An authority without `user:password@`: nobody on the way is to see it (RFC 9110, 4.2.4).
///
/// ```
/// use mesh_core::request::without_user;
///
/// assert_eq!(without_user("user:secret@a:80"), "a:80");
/// assert_eq!(without_user("a:80"), "a:80");
/// ```
#[inline]
pub fn without_user(authority: &str) -> &str {
    // As a rule there is none. Where there is one it may have an `@` of its own.
    let Some(rest) = authority.get(position_of(authority, b'@') + 1..) else { return authority };
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

/// The value of the first cookie of this name, without quotes around it, as Envoy reads it.
///
/// ```
/// use mesh_core::request::cookie;
///
/// let request = http::Request::builder().header("cookie", "a=1; user=\"bob\"").body(()).unwrap();
/// assert_eq!(cookie(request.headers(), "user"), Some(b"bob".as_slice()));
/// assert_eq!(cookie(request.headers(), "use"), None);
/// ```
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let value =
        pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// Whose connections are counted together: those of one address, and of IPv6 those of a network of 64 bits, for whoever has one has
/// all of its addresses.
///
/// ```
/// use mesh_core::request::client_of;
///
/// let client = |text: &str| client_of(text.parse().unwrap());
/// assert_eq!(client("2001:db8:1:2::7"), client("2001:db8:1:2:ffff::1"));
/// assert_ne!(client("2001:db8:1:2::7"), client("2001:db8:1:3::7"));
/// assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
/// ```
pub fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// Host and port of an authority, if it is one and has no user in it: the port as digits, and empty where there is nothing
/// after its colon. An IPv6 address keeps its brackets. Of what RFC 3986 (3.2.2) allows in names, `%` and the delimiters are
/// not: no name that anybody serves has them, and a comma is what two names have become on their way.
///
/// ```
/// use mesh_core::request::split_authority;
///
/// assert_eq!(split_authority("reviews:9080"), Some(("reviews", Some("9080"))));
/// assert_eq!(split_authority("[::1]"), Some(("[::1]", None)));
/// assert_eq!(split_authority("a:1:2"), None);
/// ```
pub fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => {
            let length = rest.find(']')?;
            rest.get(..length)?.parse::<Ipv6Addr>().ok()?;
            length + 2
        }
        None => authority.bytes().position(|byte| !is_of_name(byte)).unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at_checked(end).filter(|(host, _)| !host.is_empty())?;
    match rest.strip_prefix(':') {
        Some(port) => {
            // A sign is the only thing that a number may have and a port may not.
            let is_port = port.is_empty() || (!port.starts_with('+') && port.parse::<u16>().is_ok());
            is_port.then_some((host, Some(port)))
        }
        None => rest.is_empty().then_some((host, None)),
    }
}

/// Whether a host is this machine, so that nobody else can read what is sent there: `localhost`, or a loopback address, as a URL has it.
///
/// ```
/// use mesh_core::request::is_this_machine;
///
/// assert!(is_this_machine("[::1]") && !is_this_machine("localhost.example.com"));
/// ```
pub fn is_this_machine(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether a method is of those that servers know: no registered one has anything else in it, or is so long.
fn is_method(method: &[u8]) -> bool {
    method.len() <= 64 && method.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_'))
}

/// The values of a header that may have one.
enum Values<'r> {
    None,
    One(&'r HeaderValue),
    Several,
}

impl<'r> Values<'r> {
    fn add(&mut self, value: &'r HeaderValue) {
        *self = match self {
            Values::None => Values::One(value),
            Values::One(_) | Values::Several => Values::Several,
        };
    }
}

fn has_outer_blank(value: &[u8]) -> bool {
    matches!((value.first(), value.last()), (Some(b' ' | b'\t'), _) | (_, Some(b' ' | b'\t')))
}

fn is_of_name(byte: u8) -> bool {
    /// A table, since every request has such a name.
    static OF_NAME: [bool; 256] = {
        let (mut table, mut byte) = ([false; 256], 0u8);
        while byte.is_ascii() {
            table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~');
            byte += 1;
        }
        table
    };
    OF_NAME[usize::from(byte)]
}

/// Whether only a proxy may set a header of this name, in lower case: Envoy's own headers, that which says who an earlier
/// client was, and the mesh's own; also with underscores, which are hyphens to CGI and its like. A server takes them off the
/// requests of everybody but its trusted proxies.
pub fn is_reserved(name: &str) -> bool {
    let begins = |with: &str| {
        let mut bytes = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        with.bytes().all(|wanted| bytes.next() == Some(wanted))
    };
    const WHO: &str = "x-forwarded-client-cert";
    begins("x-envoy-") || begins("x-mesh-") || (name.len() == WHO.len() && begins(WHO))
}

/// Whether these headers are those of gRPC: a content type of `application/grpc`, alone or with `+` or `;`.
#[inline]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(http::header::CONTENT_TYPE) else { return false };
    let Some(rest) = value.as_bytes().strip_prefix(b"application/grpc") else { return false };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// Whether an authority ends in a port (RFC 3986, 3.2.3).
///
/// ```
/// use mesh_core::request::has_port;
///
/// assert!(has_port("[::1]:80") && !has_port("[::1]"));
/// ```
#[inline]
pub fn has_port(authority: &str) -> bool {
    let digits = authority.bytes().rev().take_while(u8::is_ascii_digit).count();
    let colon = authority.len().checked_sub(digits + 1).and_then(|at| authority.as_bytes().get(at));
    digits > 0 && colon == Some(&b':')
}

/// The name by which xDS knows an HTTP destination: host in lower case, and always a port.
///
/// ```
/// use mesh_core::request::host_and_port;
///
/// assert_eq!(host_and_port("Reviews.shop", "http").unwrap(), "reviews.shop:80");
/// assert_eq!(host_and_port("reviews:9080", "http").unwrap(), "reviews:9080");
/// assert!(host_and_port("reviews:x", "http").is_err());
/// ```
pub fn host_and_port<'a>(authority: &'a str, scheme: &str) -> Result<Cow<'a, str>, MeshError> {
    let malformed = || {
        MeshError::new(ErrorKind::BadRequest, format!("malformed authority {:?}", authority.escape_debug().to_string()))
    };
    let (host, port) = split_authority(authority).ok_or_else(malformed)?;
    match port {
        Some("") => Err(malformed()),
        Some(_) if host.bytes().any(|byte| byte.is_ascii_uppercase()) => Ok(Cow::Owned(authority.to_ascii_lowercase())),
        Some(_) => Ok(Cow::Borrowed(authority)),
        None => {
            let port = if scheme == "https" { 443 } else { 80 };
            Ok(Cow::Owned(format!("{}:{port}", host.to_ascii_lowercase())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(build: http::request::Builder) -> Parts {
        build.body(()).unwrap().into_parts().0
    }

    #[test]
    fn this_machine_is_known_by_each_of_its_names_and_by_no_other() {
        for here in ["localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "[::ffff:127.0.0.1]", "::ffff:127.0.0.2"] {
            assert!(is_this_machine(here), "{here}");
        }
        for elsewhere in [
            "",
            "0.0.0.0",
            "[::]",
            "10.0.0.1",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "127.1",
        ] {
            assert!(!is_this_machine(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn names_that_only_a_proxy_may_set_are_known_with_underscores_too() {
        for name in
            ["x-envoy-internal", "x_envoy_internal", "x-mesh-a", "x-forwarded-client-cert", "x_forwarded-client_cert"]
        {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["x-envoy", "x-forwarded-client-certs", "x-forwarded-for", "x-request-id", "envoy-x", ""] {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn the_authority_is_the_uris_else_the_host_headers() {
        let get = http::Request::builder();
        let cases = [
            (parts(get.uri("http://a:1/p")), Ok("a:1")),
            (parts(http::Request::get("http://u:p@a/p").header("host", "b")), Ok("a")),
            (parts(http::Request::get("/p").header("host", "b:2")), Ok("b:2")),
            (parts(http::Request::get("/p")), Err(())),
            (parts(http::Request::get("/p").header("host", "a").header("host", "b")), Err(())),
            (parts(http::Request::get("/p").header("host", "")), Err(())),
        ];
        for (parts, expected) in cases {
            assert_eq!(RequestHead::of(&parts).map(|head| head.authority).map_err(|_| ()), expected);
        }
    }

    #[test]
    fn a_server_takes_nothing_for_granted() {
        let get = |uri: &str, hosts: &[&str], version| {
            let mut request = Request::get(uri).version(version);
            for host in hosts {
                request = request.header("host", *host);
            }
            RequestHead::received(&request.body(()).unwrap()).map(|head| head.authority.to_owned()).map_err(|_| ())
        };
        let (one, none) = (Version::HTTP_11, Version::HTTP_10);
        for host in ["shop", "shop:80", "shop:", "Shop.example.", "10.0.0.1:80", "[::1]", "[::1]:80", "a_b~c", "xn--s"]
        {
            for version in [one, none, Version::HTTP_2] {
                assert_eq!(get("/", &[host], version), Ok(host.to_owned()));
            }
        }
        let wrong = [
            "",
            "sh op",
            "<x>",
            "shop/admin",
            "user@shop",
            "user:password@shop",
            "a,b",
            "shop:80:80",
            "shop?x",
            "shop#x",
            ":80",
            "shop:x",
            "shop:65536",
            "shop:+80",
            "[shop]",
            "[::1",
            "::1",
            "[::1]80",
            "[::1%25eth0]",
            "sh%6fp",
            "shöp",
        ];
        for host in wrong {
            for version in [one, none, Version::HTTP_2] {
                assert_eq!(get("/", &[host], version), Err(()), "{host}");
                assert_eq!(get("http://shop/", &[host], version), Err(()), "{host}");
            }
        }
        // (target, hosts, version) -> authority
        type Case = (&'static str, &'static [&'static str], Version, Result<&'static str, ()>);
        let cases: [Case; 13] = [
            ("/", &[], none, Ok("")),
            ("/", &[], one, Err(())),
            ("/", &[], Version::HTTP_2, Err(())),
            ("/", &["a", "a"], one, Err(())),
            ("/", &["a", "a"], none, Err(())),
            ("http://a/", &["b"], one, Ok("a")),
            ("http://a/", &[], one, Err(())),
            ("http://a/", &[], none, Ok("a")),
            ("http://a/", &[], Version::HTTP_2, Ok("a")),
            ("http://a/", &["b", "b"], Version::HTTP_2, Err(())),
            ("http://user@a/", &["a"], one, Err(())),
            ("http://user@a/", &[], Version::HTTP_2, Err(())),
            ("a:80", &["a"], one, Err(())),
        ];
        for (target, hosts, version, expected) in cases {
            assert_eq!(get(target, hosts, version), expected.map(str::to_owned), "{target} {hosts:?} {version:?}");
        }
    }

    #[test]
    fn a_target_has_the_form_of_its_method() {
        for (method, target, expected) in [
            (Method::OPTIONS, "*", true),
            (Method::GET, "*", false),
            (Method::CONNECT, "a:80", true),
            (Method::CONNECT, "/", false),
            (Method::CONNECT, "http://a/", false),
            (Method::GET, "?x", false),
        ] {
            let Ok(request) = Request::builder().method(&method).uri(target).header("host", "a").body(()) else {
                assert!(!expected, "{method} {target}");
                continue;
            };
            assert_eq!(RequestHead::received(&request).is_ok(), expected, "{method} {target}");
        }
    }

    /// Hazard A21, and RFC 9113, 8.2.1.
    #[test]
    fn a21_a_method_has_no_small_letters_and_a_value_of_http2_no_outer_blanks() {
        let received = |method: &str, value: &str, version| {
            let request = Request::builder().method(method).uri("http://a/").header("host", "a").header("x", value);
            RequestHead::received(&request.version(version).body(()).unwrap()).is_ok()
        };
        let long = "A".repeat(1024);
        for (method, expected) in [
            ("GET", true),
            ("VERSION-CONTROL", true),
            ("get", false),
            ("Delete", false),
            ("GE'T", false),
            (&long, false),
        ] {
            assert_eq!(received(method, "", Version::HTTP_11), expected, "{method}");
        }
        for (value, expected) in [("", true), ("a b", true), (" a", false), ("a\t", false), (" ", false)] {
            assert_eq!(received("GET", value, Version::HTTP_2), expected, "{value:?}");
            assert!(received("GET", value, Version::HTTP_11), "{value:?}");
        }
    }

    #[test]
    fn a_server_takes_no_transfer_coding_but_chunked_alone() {
        for (codings, expected) in [
            (&[][..], true),
            (&["chunked"], true),
            (&["Chunked "], true),
            (&["identity", "chunked"], false),
            (&["identity, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["gzip, chunked"], false),
            (&["chunked,"], false),
            (&["identity"], false),
            (&[""], false),
        ] {
            let mut request = Request::get("/").header("host", "a");
            for coding in codings {
                request = request.header("transfer-encoding", *coding);
            }
            assert_eq!(RequestHead::received(&request.body(()).unwrap()).is_ok(), expected, "{codings:?}");
        }
    }

    #[test]
    fn the_path_ends_at_the_first_question_mark() {
        for length in 0..40 {
            let path = format!("/{}", "a@>\u{bf}\u{ff}".repeat(8).chars().take(length).collect::<String>());
            assert_eq!(position_of(&path, b'?'), path.len(), "{path}");
            assert_eq!(position_of(&format!("{path}?b=1?c"), b'?'), path.len(), "{path}");
        }
    }

    #[test]
    fn the_user_of_an_authority_ends_at_the_last_at() {
        let host = "reviews.default.svc.cluster.local:9080";
        for length in 0..20 {
            let user = "u:s\u{e9}".repeat(4).chars().take(length).collect::<String>();
            assert_eq!(without_user(&format!("{user}@{host}")), host, "{user}");
            assert_eq!(without_user(&format!("{user}@{user}@{host}")), host, "{user}");
            assert_eq!(without_user(&format!("{user}@")), "", "{user}");
            assert_eq!(without_user(&user), user);
        }
    }

    #[test]
    fn a_malformed_authority_is_a_bad_request() {
        let malformed = [
            "", ":80", "a:", "a:99999", "a b", "a/b", "a:-1", "a:+1", "ä", "a:80:80", "u@a", "a,b", "[a]", "[::1",
            "::1",
        ];
        for authority in malformed {
            let error = host_and_port(authority, "http").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{authority}");
        }
        assert_eq!(host_and_port("[::1]", "https").unwrap(), "[::1]:443");
        assert_eq!(host_and_port("[::1]:80", "http").unwrap(), "[::1]:80");
    }

    #[test]
    fn a_port_is_what_follows_the_last_colon() {
        for (authority, expected) in [("a:80", true), ("[::1]:80", true), ("a", false), ("[::1]", false), ("a:", false)]
        {
            assert_eq!(has_port(authority), expected, "{authority}");
        }
        assert!(!has_port("80") && !has_port(""));
    }

    #[test]
    fn grpc_is_told_by_the_whole_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/html", false),
        ] {
            let parts = parts(http::Request::get("/").header("content-type", value));
            assert_eq!(is_grpc(&parts.headers), expected, "{value}");
        }
    }
}
