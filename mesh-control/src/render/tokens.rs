//! Which tokens are good, as Envoy's JWT filter, in Istio's words (Istio: policy_applier.go).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{DataSource, HttpUri, data_source};
use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use pb::jwt_provider::JwksSourceSpecifier;
use pb::jwt_requirement::RequiresType;
use prost::{Message, Name};

use super::proto;
use crate::catalog::ClientClass;
use crate::policy::tokens::{FetchedKeys, Keys, TokenRule};

/// `JwtAuthentication` with its map in order, so that equal meaning has equal bytes.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(btree_map = "string, message", tag = "1")]
    providers: BTreeMap<String, pb::JwtProvider>,
    #[prost(message, repeated, tag = "2")]
    rules: Vec<pb::RequirementRule>,
    #[prost(bool, tag = "4")]
    bypass_cors_preflight: bool,
}

/// The filter of a server, where any token is looked at; `Err` says what the client cannot do.
pub(super) fn filter(
    rules: &[&TokenRule],
    fetched: &FetchedKeys,
    class: ClientClass,
) -> Result<Option<hcm::HttpFilter>, String> {
    if rules.is_empty() {
        return Ok(None);
    }
    if class == ClientClass::Grpc {
        return Err(
            "gRPC's servers look at no token; every call fails until the RequestAuthentication is taken out or \
                    is for other workloads"
                .to_owned(),
        );
    }
    // In order, beyond ten as well.
    let name = |index: usize| format!("origins-{index:04}");
    let of = |index: usize| requirement(RequiresType::ProviderName(name(index)));
    let all = 0..rules.len();
    let missing = || requirement(RequiresType::AllowMissing(Default::default()));
    let each: Vec<_> = all.clone().map(|index| any(vec![of(index), missing()])).collect();
    // A token of any of them; or of each, where it is in a place of its own, a good one or none.
    let requires = match <[_; 1]>::try_from(each) {
        Ok([only]) => only,
        Err(each) => {
            let each = RequiresType::RequiresAll(pb::JwtRequirementAndList { requirements: each });
            any(all.map(of).chain([requirement(each)]).collect())
        }
    };
    let everything =
        RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    let value = Filter {
        providers: rules
            .iter()
            .enumerate()
            .map(|(index, rule)| (name(index), provider(rule, fetched, class)))
            .collect(),
        rules: vec![pb::RequirementRule {
            r#match: Some(everything),
            requirement_type: Some(pb::requirement_rule::RequirementType::Requires(requires)),
        }],
        bypass_cors_preflight: true,
    };
    let config = Any { type_url: pb::JwtAuthentication::type_url(), value: value.encode_to_vec() };
    Ok(Some(hcm::HttpFilter {
        name: "envoy.filters.http.jwt_authn".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }))
}

fn requirement(requires: RequiresType) -> pb::JwtRequirement {
    pb::JwtRequirement { requires_type: Some(requires) }
}

fn any(requirements: Vec<pb::JwtRequirement>) -> pb::JwtRequirement {
    requirement(RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements }))
}

fn provider(rule: &TokenRule, fetched: &FetchedKeys, class: ClientClass) -> pb::JwtProvider {
    let written = &rule.written;
    let headers = written.from_headers.iter();
    let claims = written.output_claim_to_headers.iter();
    let inline = |keys: &str| {
        let specifier = Some(data_source::Specifier::InlineString(keys.to_owned()));
        JwksSourceSpecifier::LocalJwks(DataSource { specifier, watched_directory: None })
    };
    let keys = match &rule.keys {
        Keys::Written(keys) => inline(keys),
        Keys::Elsewhere(source, timeout) => match fetched.get(source) {
            Some(keys) => inline(keys),
            // No key is known: no token of this issuer is good (Istio: jwks_resolver.go has a key that nobody has).
            None if class == ClientClass::Envoy => inline(r#"{"keys":[]}"#),
            // The library does not fetch them: it takes no token of this issuer.
            None => JwksSourceSpecifier::RemoteJwks(pb::RemoteJwks {
                http_uri: Some(HttpUri {
                    uri: source.url(),
                    timeout: Some(proto::duration(*timeout)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        },
    };
    let mut words = vec!["scope".to_owned(), "permission".to_owned()];
    words.extend(written.space_delimited_claims.iter().cloned());
    pb::JwtProvider {
        issuer: written.issuer.clone(),
        audiences: written.audiences.clone(),
        forward: written.forward_original_token.unwrap_or_default(),
        from_headers: headers
            .map(|header| pb::JwtHeader { name: header.name.clone(), value_prefix: header.prefix.clone() })
            .collect(),
        from_params: written.from_params.clone(),
        from_cookies: written.from_cookies.clone(),
        forward_payload_header: written.output_payload_to_header.clone().unwrap_or_default(),
        payload_in_metadata: "payload".to_owned(),
        normalize_payload_in_metadata: Some(pb::jwt_provider::NormalizePayload { space_delimited_claims: words }),
        claim_to_headers: claims
            .map(|it| pb::JwtClaimToHeader {
                header_name: it.header.clone(),
                claim_name: it.claim.clone(),
                ..Default::default()
            })
            .collect(),
        jwks_source_specifier: Some(keys),
        ..Default::default()
    }
}
