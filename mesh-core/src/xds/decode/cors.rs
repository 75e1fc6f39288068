//! Cross-origin requests (`envoy.extensions.filters.http.cors.v3`).

use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;
use http::HeaderValue;

use super::common::{fraction, string_test};
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::CorsPolicy;

pub(super) fn policy(notes: &mut Notes<'_>, value: pb::CorsPolicy) -> Result<CorsPolicy, Invalid> {
    let pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        // What would be only counted: nothing is counted here.
        shadow_enabled: _,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = value;
    let enabled = notes.optional("filter_enabled", filter_enabled, |_, share| {
        // Envoy takes a share without a value for none.
        Ok(share.default_value.map(|share| fraction(&share)).transpose()?.unwrap_or_default())
    })?;
    let mut policy =
        CorsPolicy::for_origins(notes.each("allow_origin_string_match", allow_origin_string_match, string_test)?);
    policy.allow_methods = header("allow_methods", &allow_methods)?;
    policy.allow_headers = header("allow_headers", &allow_headers)?;
    policy.expose_headers = header("expose_headers", &expose_headers)?;
    policy.max_age = header("max_age", &max_age)?;
    policy.allow_credentials = allow_credentials.map(|it| it.value);
    policy.allow_private_network_access = allow_private_network_access.map(|it| it.value);
    policy.forward_not_matching_preflights = forward_not_matching_preflights.map(|it| it.value);
    policy.enabled = enabled;
    Ok(policy)
}

/// The value of a header; an empty one is none.
fn header(field: &str, text: &str) -> Result<Option<HeaderValue>, Invalid> {
    let value = || HeaderValue::from_str(text).map_err(|_| Invalid::new("not the value of a header").at(field));
    (!text.is_empty()).then(value).transpose()
}
