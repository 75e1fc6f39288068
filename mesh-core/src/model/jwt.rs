//! Which tokens are good, as Envoy's JWT filter says it (`envoy.extensions.filters.http.jwt_authn.v3`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::model::{JwkSet, RouteMatch};

/// The configuration of one JWT filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JwtAuthentication {
    /// Who issues tokens, by the name that requirements use.
    pub providers: BTreeMap<Arc<str>, JwtProvider>,
    /// What is required of which requests: the first rule that matches counts, and none requires nothing.
    pub rules: Vec<JwtRule>,
    /// Whether preflights of CORS, which carry no tokens, pass.
    pub bypass_cors_preflight: bool,
}

/// An issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JwtProvider {
    /// What `iss` must be; empty for anything.
    pub issuer: String,
    /// One of these must be in `aud`, where there are any.
    pub audiences: Vec<String>,
    /// Its keys, or why there are none: then none of its tokens is good.
    pub keys: Result<Arc<JwkSet>, Arc<str>>,
    /// Where its tokens are; empty for `Authorization: Bearer` and the query parameter `access_token`.
    pub locations: Vec<TokenLocation>,
    /// Whether the application sees the token.
    pub forward: bool,
    /// A header in which the application finds the payload, as base64url.
    pub payload_header: Option<HeaderName>,
    /// Headers in which it finds claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims that are lists of words.
    pub space_delimited_claims: Vec<String>,
    /// How wrong clocks may be.
    pub clock_skew: Duration,
    /// Whether a token has to have `exp`.
    pub requires_expiration: bool,
}

impl JwtProvider {
    /// An issuer with these keys, and Envoy's defaults for the rest.
    pub fn new(issuer: impl Into<String>, keys: impl Into<Arc<JwkSet>>) -> Self {
        JwtProvider {
            issuer: issuer.into(),
            audiences: Vec::new(),
            keys: Ok(keys.into()),
            locations: Vec::new(),
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            space_delimited_claims: Vec::new(),
            clock_skew: Duration::from_secs(60),
            requires_expiration: false,
        }
    }
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenLocation {
    /// In a header, behind a prefix, whose case does not count.
    Header(HeaderName, String),
    /// In a query parameter.
    Parameter(String),
    /// In a cookie.
    Cookie(String),
}

/// A header that is made of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The header.
    pub header: HeaderName,
    /// The claim, and the names inside it.
    pub path: Vec<String>,
}

/// What is required of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// Of which.
    pub matches: RouteMatch,
    /// What; `None` for nothing.
    pub requires: Option<JwtRequirement>,
}

/// What is required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtRequirement {
    /// A good token of this provider.
    Provider(Arc<str>),
    /// Any of these.
    Any(Vec<JwtRequirement>),
    /// All of these.
    All(Vec<JwtRequirement>),
    /// No token where the providers beside it would look for one.
    AllowMissing,
    /// Nothing.
    AllowMissingOrFailed,
}
