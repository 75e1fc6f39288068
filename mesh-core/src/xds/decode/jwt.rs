//! JWT (`envoy.extensions.filters.http.jwt_authn.v3`). As with RBAC, what is not known here makes the resource invalid: no
//! token is taken for good because of a field that was passed over.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use http::HeaderName;

use super::common::filled;
use super::notes::{Notes, ignored};
use super::rbac::complete;
use super::route_match::route_match;
use crate::error::Invalid;
use crate::jwt::Authenticator;
use crate::model::{
    ClaimHeader, FilterConfig, JwkSet, JwtAuthentication, JwtProvider, JwtRequirement, JwtRule, TokenLocation,
};

/// A listener's filter.
pub(super) fn jwt(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    let pb::JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix: _,
    } = complete(any)?;
    unsupported([
        ("filter_state_rules", filter_state_rules.is_some()),
        ("requirement_map", !requirement_map.is_empty()),
    ])?;
    ignored!(notes; strip_failure_response);
    let mut config = JwtAuthentication { bypass_cors_preflight, ..JwtAuthentication::default() };
    for (name, provider) in providers {
        let provider = notes.entry("providers", &name, |notes| self::provider(notes, provider))?;
        config.providers.insert(name.into(), provider);
    }
    config.rules = notes.each("rules", rules, rule)?;
    Authenticator::new(&config)?;
    Ok(FilterConfig::Jwt(Arc::new(config)))
}

pub(super) fn unsupported<const N: usize>(fields: [(&str, bool); N]) -> Result<(), Invalid> {
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(Invalid::new("not supported").at(name)),
        None => Ok(()),
    }
}

fn provider(notes: &mut Notes<'_>, value: pb::JwtProvider) -> Result<JwtProvider, Invalid> {
    let pb::JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata: _,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        jwt_cache_config,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = value;
    unsupported([
        ("subjects", subjects.is_some()),
        ("max_lifetime", max_lifetime.is_some()),
        ("pad_forward_payload_header", pad_forward_payload_header),
        ("header_in_metadata", !header_in_metadata.is_empty()),
        ("failed_status_in_metadata", !failed_status_in_metadata.is_empty()),
    ])?;
    ignored!(notes; jwt_cache_config, clear_route_cache);
    let mut locations = notes.each("from_headers", from_headers, |_, header| {
        Ok(TokenLocation::Header(header_name("name", &header.name)?, header.value_prefix))
    })?;
    locations.extend(notes.each("from_params", from_params, |_, name| place(name).map(TokenLocation::Parameter))?);
    locations.extend(notes.each("from_cookies", from_cookies, |_, name| place(name).map(TokenLocation::Cookie))?);
    let payload_header = match forward_payload_header.as_str() {
        "" => None,
        name => Some(header_name("forward_payload_header", name)?),
    };
    Ok(JwtProvider {
        audiences,
        locations,
        forward,
        payload_header,
        claim_headers: notes.each("claim_to_headers", claim_to_headers, claim_header)?,
        space_delimited_claims: normalize_payload_in_metadata.map(|it| it.space_delimited_claims).unwrap_or_default(),
        clock_skew: match clock_skew_seconds {
            0 => Duration::from_secs(60),
            seconds => Duration::from_secs(seconds.into()),
        },
        requires_expiration: require_expiration,
        keys: keys(jwks_source_specifier)?,
        issuer,
    })
}

/// The keys that stand in the configuration. Nobody looks for them elsewhere: who sends the configuration fetches them, and
/// until then no token is good.
fn keys(source: Option<pb::jwt_provider::JwksSourceSpecifier>) -> Result<Result<Arc<JwkSet>, Arc<str>>, Invalid> {
    use core::data_source::Specifier;
    use pb::jwt_provider::JwksSourceSpecifier::{LocalJwks, RemoteJwks};
    let parse = |text: &[u8]| JwkSet::parse(text).map(|set| Ok(Arc::new(set))).map_err(|it| it.at("local_jwks"));
    match source {
        Some(LocalJwks(source)) => match source.specifier {
            Some(Specifier::InlineString(text)) => parse(text.as_bytes()),
            Some(Specifier::InlineBytes(bytes)) => parse(&bytes),
            Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) | None => {
                Err(Invalid::new("only inline keys are supported").at("local_jwks"))
            }
        },
        Some(RemoteJwks(remote)) => {
            let uri = remote.http_uri.map(|it| it.uri).unwrap_or_default();
            Ok(Err(format!("the control plane has no keys from {uri}").into()))
        }
        None => Err(Invalid::new("no known source of keys")),
    }
}

fn header_name(field: &'static str, name: &str) -> Result<HeaderName, Invalid> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Invalid::new(format!("{name:?} is not the name of a header")).at(field))
}

/// A name as it stands in a query or a cookie.
fn place(name: String) -> Result<String, Invalid> {
    let is_name = !name.is_empty() && !name.bytes().any(|byte| b"=&;%+# ".contains(&byte));
    if is_name { Ok(name) } else { Err(Invalid::new(format!("{name:?} is not a name that can be looked for"))) }
}

fn claim_header(_: &mut Notes<'_>, value: pb::JwtClaimToHeader) -> Result<ClaimHeader, Invalid> {
    let pb::JwtClaimToHeader { header_name: name, claim_name, claim_path } = value;
    let header = header_name("header_name", &name)?;
    let is_framing = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];
    if is_framing.contains(&header.as_str()) {
        return Err(Invalid::new(format!("{name:?} is not for claims")).at("header_name"));
    }
    let path: Vec<String> = match claim_path.is_empty() {
        true => filled("claim_name", claim_name)?.split('.').map(str::to_owned).collect(),
        false => claim_path.into_iter().map(|segment| segment.key).collect(),
    };
    Ok(ClaimHeader { header, path })
}

fn rule(notes: &mut Notes<'_>, value: pb::RequirementRule) -> Result<JwtRule, Invalid> {
    use pb::requirement_rule::RequirementType;
    let pb::RequirementRule { r#match, requirement_type } = value;
    let matches = notes.required("match", r#match, route_match)?;
    if matches.fraction.is_some() {
        return Err(Invalid::new("not supported").at("match.runtime_fraction"));
    }
    let requires = match requirement_type {
        None => None,
        Some(RequirementType::Requires(it)) => Some(notes.field("requires", |notes| requirement(notes, it))?),
        Some(RequirementType::RequirementName(_)) => {
            return Err(Invalid::new("not supported").at("requirement_name"));
        }
    };
    Ok(JwtRule { matches, requires })
}

fn requirement(notes: &mut Notes<'_>, value: pb::JwtRequirement) -> Result<JwtRequirement, Invalid> {
    use pb::jwt_requirement::RequiresType;
    let several = |list: Vec<JwtRequirement>| match list.is_empty() {
        true => Err(Invalid::new("the list is empty").at("requirements")),
        false => Ok(list),
    };
    match value.requires_type.ok_or_else(|| Invalid::new("no known requirement"))? {
        RequiresType::ProviderName(name) => Ok(JwtRequirement::Provider(filled("provider_name", name)?.into())),
        RequiresType::RequiresAny(any) => notes.field("requires_any", |notes| {
            several(notes.each("requirements", any.requirements, requirement)?).map(JwtRequirement::Any)
        }),
        RequiresType::RequiresAll(all) => notes.field("requires_all", |notes| {
            several(notes.each("requirements", all.requirements, requirement)?).map(JwtRequirement::All)
        }),
        RequiresType::AllowMissing(_) => Ok(JwtRequirement::AllowMissing),
        RequiresType::AllowMissingOrFailed(_) => Ok(JwtRequirement::AllowMissingOrFailed),
        RequiresType::ProviderAndAudiences(_) => Err(Invalid::new("not supported").at("provider_and_audiences")),
        RequiresType::ExtractOnlyWithoutValidation(_) => {
            Err(Invalid::new("not supported").at("extract_only_without_validation"))
        }
    }
}
