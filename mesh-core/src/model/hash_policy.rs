//! What a request is hashed by, so that those that are alike go to the same endpoint
//! (`envoy.config.route.v3.RouteAction.HashPolicy`, gRFC A42).

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::error::Invalid;
use crate::model::PathRewrite;
use crate::request::is_authority;

/// One of the things that a request is hashed by. A route's policies are all counted, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HashPolicy {
    /// What is hashed.
    pub key: HashKey,
    /// Where there is a hash after this policy, those after it are passed over.
    pub terminal: bool,
}

impl HashPolicy {
    /// By this, and by whatever else the route names.
    pub fn by(key: HashKey) -> Self {
        HashPolicy { key, terminal: false }
    }
}

/// What is hashed of a request. Exhaustive: whoever computes the hash has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// All values of a header, in whatever order they come.
    Header(HashedHeader, Option<PathRewrite>),
    /// The value of a cookie.
    Cookie(CookieKey),
    /// The first value of a query parameter, as it stands there.
    Query(String),
    /// The address of the process that makes the request: its requests go to one endpoint.
    SourceAddress,
    /// The client that makes the request (gRPC's `io.grpc.channel_id`).
    Channel,
}

/// A header that is hashed. Exhaustive, as [`HashKey`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the headers")]
pub enum HashedHeader {
    Real(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
}

impl HashedHeader {
    /// The header of this name; pseudo headers too.
    pub fn named(name: &str) -> Result<Self, Invalid> {
        Ok(match name {
            ":method" => HashedHeader::Method,
            ":path" => HashedHeader::Path,
            ":scheme" => HashedHeader::Scheme,
            name if is_authority(name) => HashedHeader::Authority,
            name => HashedHeader::Real(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| Invalid::new(format!("{name:?} is no header name")))?,
            ),
        })
    }
}

/// A cookie that is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CookieKey {
    /// Its name.
    pub name: String,
    /// What stands behind the value of one that is made for who has none; `None`: none is made.
    made: Option<String>,
}

impl CookieKey {
    /// A cookie of this name that is never made.
    pub fn new(name: impl Into<String>) -> Result<Self, Invalid> {
        let name = name.into();
        // RFC 6265: a token.
        let is_token = HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !is_token {
            return Err(Invalid::new(format!("{name:?} is no name of a cookie")).at("name"));
        }
        Ok(CookieKey { name, made: None })
    }

    /// The same, made for who has none: for `ttl`, or where that is zero, for as long as the caller's session lasts.
    /// An empty path is none. Of attributes, a value may be empty. It is `HttpOnly` in any case.
    pub fn made<'a>(
        mut self,
        ttl: Duration,
        path: &str,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Invalid> {
        let mut after = String::new();
        if ttl.as_secs() > 0 {
            after += &format!("; Max-Age={}", ttl.as_secs());
        }
        if !path.is_empty() {
            check(path).map_err(|invalid| invalid.at("path"))?;
            after += &format!("; Path={path}");
        }
        let mut is_http_only = false;
        for (name, value) in attributes {
            is_http_only |= name.eq_ignore_ascii_case("HttpOnly");
            check(name).and_then(|()| check(value)).map_err(|invalid| invalid.at("attributes"))?;
            after += &match value {
                "" => format!("; {name}"),
                value => format!("; {name}={value}"),
            };
        }
        if !is_http_only {
            after += "; HttpOnly";
        }
        self.made = Some(after);
        Ok(self)
    }

    /// Whether one is made for who has none.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// The `Set-Cookie` of a cookie with this value, which is hexadecimal.
    pub fn set_cookie(&self, value: &str) -> Option<HeaderValue> {
        let after = self.made.as_ref()?;
        HeaderValue::try_from(format!("{}=\"{value}\"{after}", self.name)).ok()
    }
}

/// What could begin another attribute, or end the header.
fn check(text: &str) -> Result<(), Invalid> {
    let is_fine = text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b';');
    if is_fine { Ok(()) } else { Err(Invalid::new(format!("{text:?} cannot stand in a cookie"))) }
}
