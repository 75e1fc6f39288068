//! What a request must look like (`envoy.config.route.v3.RouteMatch`, gRFC A28, A63).
//!
//! A condition that cannot be tested makes the resource invalid: without it the route would take requests that it
//! was not meant for, and without the route they would fall through to the next one.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use http::HeaderName;

use super::common::{filled, fraction, regex, string_test, unpack};
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{Fraction, HeaderTest, PathTest, QueryTest, RouteMatch, SegmentTemplate, StringTest};

pub(super) fn route_match(notes: &mut Notes<'_>, value: pb::RouteMatch) -> Result<RouteMatch, Invalid> {
    let pb::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    for (name, is_set) in [
        ("cookies", !cookies.is_empty()),
        ("tls_context", tls_context.is_some()),
        ("dynamic_metadata", !dynamic_metadata.is_empty()),
        ("filter_state", !filter_state.is_empty()),
    ] {
        if is_set {
            return Err(Invalid::new("not supported yet").at(name));
        }
    }
    let ignore_case = case_sensitive.is_some_and(|sensitive| !sensitive.value);
    let specifier = path_specifier.ok_or_else(|| Invalid::new("no known path specifier"))?;
    Ok(RouteMatch {
        path: path(notes, specifier, ignore_case)?,
        headers: notes.each("headers", headers, header_test)?,
        query: notes.each("query_parameters", query_parameters, query_test)?,
        grpc: grpc.is_some(),
        fraction: notes.optional("runtime_fraction", runtime_fraction, |_, value| runtime(&value))?,
    })
}

fn path(
    notes: &mut Notes<'_>,
    specifier: pb::route_match::PathSpecifier,
    ignore_case: bool,
) -> Result<PathTest, Invalid> {
    use pb::route_match::PathSpecifier;
    match specifier {
        PathSpecifier::Prefix(value) => Ok(PathTest::Prefix { value, ignore_case }),
        PathSpecifier::Path(value) => Ok(PathTest::Exact { value, ignore_case }),
        PathSpecifier::SafeRegex(value) => {
            if ignore_case {
                notes.ignore("case_sensitive");
            }
            notes.field("safe_regex", |_| regex(&value)).map(PathTest::Regex)
        }
        PathSpecifier::PathSeparatedPrefix(value) => {
            let is_usable = value.len() > 1 && !value.ends_with('/') && !value.contains(['?', '#']);
            if !is_usable {
                let reason = format!("{value:?}: must not be empty, end in / or contain ? or #");
                return Err(Invalid::new(reason).at("path_separated_prefix"));
            }
            Ok(PathTest::Separated { value, ignore_case })
        }
        PathSpecifier::PathMatchPolicy(policy) => notes.field("path_match_policy", |_| template_policy(&policy)),
        PathSpecifier::ConnectMatcher(_) => Err(Invalid::new("not supported").at("connect_matcher")),
    }
}

pub(super) fn template_policy(policy: &core::TypedExtensionConfig) -> Result<PathTest, Invalid> {
    let any = policy.typed_config.as_ref().ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
    let config: UriTemplateMatchConfig = unpack(any).map_err(|invalid| invalid.at("typed_config"))?;
    SegmentTemplate::parse(&config.path_template)
        .map(PathTest::Template)
        .map_err(|reason| Invalid::new(format!("{:?}: {reason}", config.path_template)).at("path_template"))
}

/// One test on a header. A matcher without a known kind is invalid as in gRPC: a kind of a later release would
/// look the same, and "is present" is not what it means.
pub(super) fn header_test(notes: &mut Notes<'_>, value: pb::HeaderMatcher) -> Result<HeaderTest, Invalid> {
    use pb::header_matcher::HeaderMatchSpecifier as Kind;
    let pb::HeaderMatcher { name, invert_match: invert, treat_missing_header_as_empty, header_match_specifier } = value;
    let name = header_name(&name).map_err(|invalid| invalid.at("name"))?;
    let kind = header_match_specifier.ok_or_else(|| Invalid::new("no known match specifier"))?;
    let missing_is_empty = treat_missing_header_as_empty;
    let test = |test| HeaderTest::Value { name: Arc::clone(&name), test, invert, missing_is_empty };
    let ignore_case = false;
    Ok(match kind {
        Kind::ExactMatch(value) => test(StringTest::Exact { value, ignore_case }),
        Kind::PrefixMatch(value) => test(StringTest::Prefix { value: filled("prefix_match", value)?, ignore_case }),
        Kind::SuffixMatch(value) => test(StringTest::Suffix { value: filled("suffix_match", value)?, ignore_case }),
        Kind::ContainsMatch(value) => {
            test(StringTest::Contains { value: filled("contains_match", value)?, ignore_case })
        }
        Kind::SafeRegexMatch(value) => test(StringTest::Regex(notes.field("safe_regex_match", |_| regex(&value))?)),
        Kind::StringMatch(value) => test(notes.field("string_match", |notes| string_test(notes, value))?),
        Kind::RangeMatch(range) => {
            HeaderTest::Range { name, start: range.start, end: range.end, invert, missing_is_empty }
        }
        Kind::PresentMatch(present) => HeaderTest::Present { name, present: present != invert },
    })
}

/// The name of a header that is looked at, in lower case: a real one, or a pseudo-header that a request has.
///
/// # Errors
/// No request can have such a header.
///
/// ```
/// use mesh_core::xds::decode::header_name;
///
/// assert_eq!(header_name("X-Tenant").as_deref(), Ok("x-tenant"));
/// assert!(header_name(":path").is_ok() && header_name(":status").is_err());
/// ```
pub fn header_name(name: &str) -> Result<Arc<str>, Invalid> {
    if matches!(name, ":method" | ":path" | ":authority" | ":scheme") {
        return Ok(Arc::from(name));
    }
    HeaderName::from_bytes(name.as_bytes())
        .map(|name| Arc::from(name.as_str()))
        .map_err(|_| Invalid::new(format!("{name:?} is not a header name")))
}

pub(super) fn query_test(notes: &mut Notes<'_>, value: pb::QueryParameterMatcher) -> Result<QueryTest, Invalid> {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Kind;
    let pb::QueryParameterMatcher { name, query_parameter_match_specifier } = value;
    let name = filled("name", name)?;
    let test = match query_parameter_match_specifier {
        Some(Kind::StringMatch(value)) => Some(notes.field("string_match", |notes| string_test(notes, value))?),
        Some(Kind::PresentMatch(true)) | None => None,
        Some(Kind::PresentMatch(false)) => return Err(Invalid::new("false is not supported yet").at("present_match")),
    };
    Ok(QueryTest { name, test })
}

/// A fraction that could be overridden at run time; here the default always counts.
fn runtime(value: &core::RuntimeFractionalPercent) -> Result<Fraction, Invalid> {
    let default = value.default_value.as_ref().ok_or_else(|| Invalid::new("missing").at("default_value"))?;
    fraction(default).map_err(|invalid| invalid.at("default_value"))
}
