//! Which pages of other origins may read answers (CORS, Envoy's `envoy.extensions.filters.http.cors.v3`).

use http::HeaderValue;

use super::{Fraction, StringTest};

/// What pages of other origins may do. What is not said here is said by the policy of the level above, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorsPolicy {
    /// Origins that may, as `https://a.example`. A test that `*` passes lets in every origin.
    pub allow_origins: Vec<StringTest>,
    /// Methods, comma-separated; `*` is the one that is asked for.
    pub allow_methods: Option<HeaderValue>,
    /// Headers of requests, comma-separated; `*` is those that are asked for.
    pub allow_headers: Option<HeaderValue>,
    /// Headers of answers that a page may read, comma-separated.
    pub expose_headers: Option<HeaderValue>,
    /// For how many seconds a browser may remember the answer to a preflight.
    pub max_age: Option<HeaderValue>,
    /// Whether cookies and the like may travel.
    pub allow_credentials: Option<bool>,
    /// Whether a page of a public network may call into a private one.
    pub allow_private_network_access: Option<bool>,
    /// Whether preflights of other origins travel on; they do where nobody says. Else the mesh answers them.
    pub forward_not_matching_preflights: Option<bool>,
    /// For how many requests; all where nobody says. The first level that has a policy decides.
    pub enabled: Option<Fraction>,
}

impl CorsPolicy {
    /// Pages of these origins may read answers.
    pub fn for_origins(allow_origins: Vec<StringTest>) -> Self {
        CorsPolicy { allow_origins, ..CorsPolicy::default() }
    }

    /// This policy, and where it says nothing, the one of a level above.
    pub fn or(self, above: &CorsPolicy) -> Self {
        let origins = if self.allow_origins.is_empty() { above.allow_origins.clone() } else { self.allow_origins };
        CorsPolicy {
            allow_origins: origins,
            allow_methods: self.allow_methods.or_else(|| above.allow_methods.clone()),
            allow_headers: self.allow_headers.or_else(|| above.allow_headers.clone()),
            expose_headers: self.expose_headers.or_else(|| above.expose_headers.clone()),
            max_age: self.max_age.or_else(|| above.max_age.clone()),
            allow_credentials: self.allow_credentials.or(above.allow_credentials),
            allow_private_network_access: self.allow_private_network_access.or(above.allow_private_network_access),
            forward_not_matching_preflights: self
                .forward_not_matching_preflights
                .or(above.forward_not_matching_preflights),
            enabled: self.enabled,
        }
    }

    /// Whether no request makes any difference to it.
    pub fn is_idle(&self) -> bool {
        self.allow_origins.is_empty() && self.forward_not_matching_preflights != Some(false)
    }
}
