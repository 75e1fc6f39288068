//! What Istio says of services in metadata, and matchers of dynamic metadata, where RBAC asks for what a JWT filter left there (`envoy.type.matcher.v3`): the payload of
//! a token under `payload`, as Istio has its sidecars do it, and the attributes of Istio's own filter before that. Other
//! metadata there is none, so that nobody can tell what was meant.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::rbac::v3::{MetadataSource, SourcedMetadata};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::value::Kind;
use matcher::value_matcher::MatchPattern;

use super::common::string_test;
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{ClaimTest, RbacCondition, ServiceNames, TokenTest};

/// Who verifies tokens in Envoy, and where it leaves what they say.
pub(super) const JWT: &str = "envoy.filters.http.jwt_authn";
pub(super) const PAYLOAD: &str = "payload";

/// What did so for Istio.
const ISTIO: &str = "istio_authn";

pub(super) fn sourced(notes: &mut Notes<'_>, value: SourcedMetadata) -> Result<RbacCondition, Invalid> {
    let SourcedMetadata { metadata_matcher, metadata_source } = value;
    if metadata_source != i32::from(MetadataSource::Dynamic) {
        return Err(Invalid::new("not supported").at("metadata_source"));
    }
    notes.required("metadata_matcher", metadata_matcher, metadata)
}

pub(super) fn metadata(notes: &mut Notes<'_>, value: matcher::MetadataMatcher) -> Result<RbacCondition, Invalid> {
    use matcher::metadata_matcher::path_segment::Segment;
    let matcher::MetadataMatcher { filter, path, value, invert } = value;
    let path: Option<Vec<String>> =
        path.into_iter().map(|part| part.segment.map(|Segment::Key(key)| key).filter(|key| !key.is_empty())).collect();
    let path = path.ok_or_else(|| Invalid::new("a segment without a key").at("path"))?;
    let test = notes.required("value", value, claim_test)?;
    let (first, rest) = path.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let condition = RbacCondition::Token(match (filter.as_str(), first, rest) {
        (JWT, PAYLOAD, [_, ..]) | (ISTIO, "request.auth.claims", [_, ..]) => TokenTest::Claim(rest.to_vec(), test),
        (ISTIO, "request.auth.audiences", []) => TokenTest::Claim(vec!["aud".to_owned()], test),
        (ISTIO, "request.auth.presenter", []) => TokenTest::Claim(vec!["azp".to_owned()], test),
        (ISTIO, "request.auth.principal", []) => match test {
            ClaimTest::Text(test) => TokenTest::Principal(test),
            _ => return Err(Invalid::new("only string_match is supported for a principal").at("value")),
        },
        (JWT | ISTIO, ..) => return Err(Invalid::new(format!("{path:?} is not known of {filter}")).at("path")),
        _ => return Err(Invalid::new(format!("nobody knows what {filter:?} leaves there")).at("filter")),
    });
    Ok(if invert { RbacCondition::Not(Box::new(condition)) } else { condition })
}

fn claim_test(notes: &mut Notes<'_>, value: matcher::ValueMatcher) -> Result<ClaimTest, Invalid> {
    use matcher::list_matcher::MatchPattern::OneOf;
    let unsupported = |name: &'static str| Err(Invalid::new("not supported").at(name));
    match value.match_pattern.ok_or_else(|| Invalid::new("no match pattern"))? {
        MatchPattern::StringMatch(test) => {
            notes.field("string_match", |notes| string_test(notes, test)).map(ClaimTest::Text)
        }
        MatchPattern::PresentMatch(true) => Ok(ClaimTest::Present),
        MatchPattern::ListMatch(list) => match list.match_pattern {
            Some(OneOf(test)) => notes.field("list_match.one_of", |notes| claim_test(notes, *test)),
            None => Err(Invalid::new("no match pattern").at("list_match")),
        }
        .map(|test| ClaimTest::OneOf(Box::new(test))),
        MatchPattern::OrMatch(or) => {
            let tests = notes.field("or_match", |notes| notes.each("value_matchers", or.value_matchers, claim_test))?;
            match tests.is_empty() {
                true => Err(Invalid::new("the list is empty").at("or_match.value_matchers")),
                false => Ok(ClaimTest::Any(tests)),
            }
        }
        MatchPattern::PresentMatch(false) => Err(Invalid::new("must be true").at("present_match")),
        MatchPattern::NullMatch(_) => unsupported("null_match"),
        MatchPattern::DoubleMatch(_) => unsupported("double_match"),
        MatchPattern::BoolMatch(_) => unsupported("bool_match"),
    }
}

/// A text that `mesh-control` says to this library, and others pass over.
pub(super) fn own_text<'m>(metadata: &'m Metadata, key: &str) -> Option<&'m str> {
    match &metadata.filter_metadata.get("mesh-control")?.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// How Istio calls the service behind a cluster or a listener: `filter_metadata.istio.services`, of which the first counts.
pub(super) fn istio_service(metadata: &Metadata) -> Option<ServiceNames> {
    let istio = &metadata.filter_metadata.get("istio")?.fields;
    let Some(Kind::ListValue(services)) = &istio.get("services")?.kind else { return None };
    let Some(Kind::StructValue(service)) = &services.values.first()?.kind else { return None };
    let text = |key: &str| match service.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.as_str(),
        _ => "",
    };
    let mut names = ServiceNames::new(text("host"), text("name"), text("namespace"));
    names.is_external =
        matches!(istio.get("external").and_then(|value| value.kind.as_ref()), Some(Kind::BoolValue(true)));
    Some(names)
}
