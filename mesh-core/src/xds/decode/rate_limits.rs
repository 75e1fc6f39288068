//! What requests are counted by (`envoy.config.route.v3.RateLimit`), and the entries of our own, which Envoy has no action
//! for: extensions that are a `TypedStruct`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{self as core, TypedExtensionConfig};
use envoy_types::pb::envoy::config::route::v3::RateLimit as RateLimitProto;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier as Kind, meta_data::Source};
use envoy_types::pb::envoy::config::route::v3::rate_limit::r#override::OverrideSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action, HitsAddend, Override, XRateLimitOption};
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::Descriptor as ExprDescriptor;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::descriptor::ExprSpecifier;
use envoy_types::pb::envoy::r#type::metadata::v3::MetadataKey;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use envoy_types::pb::google::protobuf::UInt32Value;
use envoy_types::pb::xds::core::v3::CidrRange;
use prost::Name as _;
use serde_json::Value as Json;

use super::common::{TypedStruct, filled, type_name};
use super::metadata::{JWT, PAYLOAD};
use super::notes::{Notes, ignored};
use super::rbac::prefix;
use super::route_match::{header_name, header_test, query_test};
use crate::error::Invalid;
use crate::model::{
    CLIENT_ENTRY, CelExpression, ClientPart, DescriptorAction, LAST_STAGE, LimitOverride, LimitUnit, MOST_HITS,
    PATH_ENTRY, RateLimit, SegmentTemplate,
};

/// The rate limits of a route, a virtual host or a filter; those that nothing can be counted by are noted and left out.
pub(super) fn rate_limits(notes: &mut Notes<'_>, values: Vec<RateLimitProto>) -> Result<Vec<Arc<RateLimit>>, Invalid> {
    let limits = notes.each("rate_limits", values, rate_limit)?;
    Ok(limits.into_iter().flatten().map(Arc::new).collect())
}

/// One of them; `None` where nothing can be counted by it, which is noted.
pub(super) fn rate_limit(notes: &mut Notes<'_>, value: RateLimitProto) -> Result<Option<RateLimit>, Invalid> {
    let RateLimitProto { stage, disable_key, actions, limit, hits_addend, apply_on_stream_done, x_ratelimit_option } =
        value;
    // It names a setting of Envoy's runtime, and there is none here: it stays on.
    ignored!(notes; disable_key);
    let stage = self::stage(stage.map_or(0, |stage| stage.value))?;
    if actions.is_empty() {
        return Err(Invalid::new("the list is empty").at("actions"));
    }
    let actions = notes.each("actions", actions, action)?;
    let hits = notes.optional("hits_addend", hits_addend, hits)?;
    if apply_on_stream_done {
        // It counts what is over. Counted at its beginning, it would refuse what it is not meant to.
        notes.ignore("apply_on_stream_done, and so the whole entry");
        return Ok(None);
    }
    let tells_rest = match XRateLimitOption::try_from(x_ratelimit_option) {
        Ok(XRateLimitOption::Unspecified) => None,
        Ok(XRateLimitOption::Off) => Some(false),
        Ok(XRateLimitOption::DraftVersion03) => Some(true),
        Err(_) => return Err(Invalid::new("not a known value").at("x_ratelimit_option")),
    };
    let actions: Option<Vec<_>> = actions.into_iter().collect();
    let (Some(actions), Some((hits, gives_back))) = (actions, hits.unwrap_or(Some((None, false)))) else {
        return Ok(None);
    };
    let limit = notes.optional("limit", limit, limit_override)?.flatten();
    Ok(Some(RateLimit { stage, hits, gives_back, limit, tells_rest, ..RateLimit::by(actions) }))
}

/// A stage, of a filter or of what it goes by.
pub(super) fn stage(stage: u32) -> Result<u8, Invalid> {
    let stage = u8::try_from(stage).ok().filter(|stage| *stage <= LAST_STAGE);
    stage.ok_or_else(|| Invalid::new(format!("more than {LAST_STAGE}")).at("stage"))
}

/// How many hits, and whether they are given back; `None` where that is not known here.
fn hits(notes: &mut Notes<'_>, value: HitsAddend) -> Result<Option<(Option<u64>, bool)>, Invalid> {
    let HitsAddend { number, format, is_negative_hits } = value;
    match (number, format.as_str()) {
        (Some(_), format) if !format.is_empty() => Err(Invalid::new("number and format exclude each other")),
        (Some(number), _) if number.value > MOST_HITS => {
            Err(Invalid::new(format!("more than {MOST_HITS}")).at("number"))
        }
        (number, "") => Ok(Some((number.map(|number| number.value), is_negative_hits))),
        (_, _) => {
            notes.ignore("format, and so the whole entry");
            Ok(None)
        }
    }
}

fn limit_override(notes: &mut Notes<'_>, value: Override) -> Result<Option<LimitOverride>, Invalid> {
    match value.override_specifier {
        Some(OverrideSpecifier::RateLimit(value)) => {
            let unit = unit(value.unit).map_err(|invalid| invalid.at("unit"))?;
            Ok(Some(LimitOverride { requests: value.requests_per_unit, unit }))
        }
        Some(OverrideSpecifier::DynamicMetadata(_)) => {
            notes.ignore("dynamic_metadata");
            Ok(None)
        }
        None => Err(Invalid::new("no known kind of override")),
    }
}

/// A unit of time in which requests are counted.
pub(super) fn unit(value: i32) -> Result<LimitUnit, Invalid> {
    match RateLimitUnit::try_from(value) {
        Ok(RateLimitUnit::Second) => Ok(LimitUnit::Second),
        Ok(RateLimitUnit::Minute) => Ok(LimitUnit::Minute),
        Ok(RateLimitUnit::Hour) => Ok(LimitUnit::Hour),
        Ok(RateLimitUnit::Day) => Ok(LimitUnit::Day),
        Ok(RateLimitUnit::Month) => Ok(LimitUnit::Month),
        Ok(RateLimitUnit::Year) => Ok(LimitUnit::Year),
        Ok(RateLimitUnit::Unknown) | Err(_) => Err(Invalid::new("not a known unit")),
    }
}

/// One entry; `None` where nothing can be found out for it here, which is noted.
fn action(notes: &mut Notes<'_>, value: Action) -> Result<Option<DescriptorAction>, Invalid> {
    let key = |key: String, default: &str| Arc::from(if key.is_empty() { default } else { &*key });
    Ok(Some(match value.action_specifier.ok_or_else(|| Invalid::new("no known kind of action"))? {
        Kind::SourceCluster(_) => DescriptorAction::SourceCluster,
        Kind::DestinationCluster(_) => DescriptorAction::DestinationCluster,
        Kind::RemoteAddress(_) => DescriptorAction::RemoteAddress,
        Kind::RequestHeaders(value) => notes.field("request_headers", |_| {
            Ok::<_, Invalid>(DescriptorAction::Header {
                name: header_name(&value.header_name).map_err(|invalid| invalid.at("header_name"))?,
                key: filled("descriptor_key", value.descriptor_key)?.into(),
                skip_if_absent: value.skip_if_absent,
            })
        })?,
        Kind::QueryParameters(value) => notes.field("query_parameters", |_| {
            Ok::<_, Invalid>(DescriptorAction::Query {
                name: filled("query_parameter_name", value.query_parameter_name)?.into(),
                key: filled("descriptor_key", value.descriptor_key)?.into(),
                skip_if_absent: value.skip_if_absent,
            })
        })?,
        Kind::MaskedRemoteAddress(value) => notes.field("masked_remote_address", |_| {
            Ok::<_, Invalid>(DescriptorAction::MaskedRemoteAddress {
                v4_bits: bits(value.v4_prefix_mask_len, 32, "v4_prefix_mask_len")?,
                v6_bits: bits(value.v6_prefix_mask_len, 128, "v6_prefix_mask_len")?,
            })
        })?,
        Kind::GenericKey(value) => notes.field("generic_key", |notes| {
            // Only where a formatter made an empty text, which none does here.
            notes.ignore_if_set("default_value", &value.default_value);
            Ok::<_, Invalid>(DescriptorAction::Constant {
                key: key(value.descriptor_key, "generic_key"),
                value: filled("descriptor_value", value.descriptor_value)?.into(),
            })
        })?,
        Kind::HeaderValueMatch(value) => notes.field("header_value_match", |notes| {
            notes.ignore_if_set("default_value", &value.default_value);
            let tests = notes.each("headers", value.headers, header_test)?;
            some("headers", &tests)?;
            Ok(DescriptorAction::HeaderMatch {
                key: key(value.descriptor_key, "header_match"),
                value: filled("descriptor_value", value.descriptor_value)?.into(),
                expects: value.expect_match.is_none_or(|expects| expects.value),
                tests,
            })
        })?,
        Kind::QueryParameterValueMatch(value) => notes.field("query_parameter_value_match", |notes| {
            notes.ignore_if_set("default_value", &value.default_value);
            let tests = notes.each("query_parameters", value.query_parameters, query_test)?;
            some("query_parameters", &tests)?;
            Ok(DescriptorAction::QueryMatch {
                key: key(value.descriptor_key, "query_match"),
                value: filled("descriptor_value", value.descriptor_value)?.into(),
                expects: value.expect_match.is_none_or(|expects| expects.value),
                tests,
            })
        })?,
        Kind::RemoteAddressMatch(value) => {
            return notes.field("remote_address_match", |notes| {
                if value.descriptor_value.contains('%') {
                    notes.ignore("descriptor_value with commands, and so the whole entry");
                    return Ok(None);
                }
                notes.ignore_if_set("default_value", &value.default_value);
                let matcher = value.address_matcher.ok_or_else(|| Invalid::new("missing").at("address_matcher"))?;
                let ranges = notes.field("address_matcher", |notes| {
                    let ranges = notes.each("ranges", matcher.ranges, |_, range| {
                        let CidrRange { address_prefix, prefix_len } = range;
                        let prefix_len = prefix_len.map(|length| UInt32Value { value: length.value });
                        prefix(&core::CidrRange { address_prefix, prefix_len })
                    })?;
                    some("ranges", &ranges).map(|()| ranges)
                })?;
                Ok(Some(DescriptorAction::RemoteAddressMatch {
                    key: key(value.descriptor_key, "remote_address_match"),
                    value: filled("descriptor_value", value.descriptor_value)?.into(),
                    ranges,
                    invert: matcher.invert_match,
                }))
            });
        }
        Kind::DynamicMetadata(value) => {
            return notes.field("dynamic_metadata", |notes| {
                claim(notes, value.descriptor_key, value.metadata_key, value.default_value, false)
            });
        }
        Kind::Metadata(value) => {
            return notes.field("metadata", |notes| {
                if value.source != Source::Dynamic as i32 {
                    notes.ignore("source, and so the whole entry");
                    return Ok(None);
                }
                let skips = value.skip_if_absent;
                claim(notes, value.descriptor_key, value.metadata_key, value.default_value, skips)
            });
        }
        Kind::Extension(value) => return notes.field("extension", |notes| extension(notes, &value)),
    }))
}

fn some<T>(name: &'static str, list: &[T]) -> Result<(), Invalid> {
    if list.is_empty() { Err(Invalid::new("the list is empty").at(name)) } else { Ok(()) }
}

/// How many bits of an address count; unset is all.
fn bits(value: Option<UInt32Value>, most: u8, name: &'static str) -> Result<u8, Invalid> {
    let bits = value.map_or(Some(most), |bits| u8::try_from(bits.value).ok().filter(|bits| *bits <= most));
    bits.ok_or_else(|| Invalid::new(format!("more than {most} bits")).at(name))
}

/// What is in metadata that a JWT filter left there. Of other metadata nobody knows anything here.
fn claim(
    notes: &mut Notes<'_>,
    key: String,
    from: Option<MetadataKey>,
    default: String,
    skip_if_absent: bool,
) -> Result<Option<DescriptorAction>, Invalid> {
    let key = filled("descriptor_key", key)?.into();
    let MetadataKey { key: filter, path } = from.ok_or_else(|| Invalid::new("missing").at("metadata_key"))?;
    let path = path.into_iter().map(|part| match part.segment {
        Some(Segment::Key(key)) if !key.is_empty() => Ok(Some(key)),
        // Into a list, where there is no text to count by.
        Some(Segment::Index(_)) => Ok(None),
        _ => Err(Invalid::new("a segment without a key").at("metadata_key.path")),
    });
    let path: Vec<String> = path.collect::<Result<Option<_>, _>>()?.unwrap_or_default();
    let default = (!default.is_empty()).then(|| Arc::from(default));
    match (filter.as_str(), path.split_first()) {
        (JWT, Some((payload, claim @ [_, ..]))) if payload == PAYLOAD => {
            Ok(Some(DescriptorAction::Claim { key, path: claim.to_vec(), default, skip_if_absent }))
        }
        _ => {
            notes.ignore("metadata_key, which nobody fills, and so the whole entry");
            Ok(None)
        }
    }
}

/// An entry of our own.
fn extension(notes: &mut Notes<'_>, value: &TypedExtensionConfig) -> Result<Option<DescriptorAction>, Invalid> {
    let any = value.typed_config.as_ref().ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
    let own = TypedStruct::from_any(any)?;
    let name = type_name(own.as_ref().map_or(&any.type_url, |own| &own.type_url));
    let json = |own: &TypedStruct| own.value.as_ref().map_or(Ok(Json::Null), super::common::struct_json);
    let text = |json: &Json, name: &'static str| match json.get(name).and_then(Json::as_str) {
        Some(text) if !text.is_empty() => Ok(Arc::<str>::from(text)),
        _ => Err(Invalid::new("must be a text that is not empty").at(name)),
    };
    match own {
        Some(own) if name == CLIENT_ENTRY => {
            let json = json(&own)?;
            let part = text(&json, "part")?;
            let part =
                ClientPart::named(&part).ok_or_else(|| Invalid::new(format!("{part:?} is not known")).at("part"));
            Ok(Some(DescriptorAction::Client { key: text(&json, "key")?, part: part? }))
        }
        Some(own) if name == PATH_ENTRY => {
            let json = json(&own)?;
            let written = json.get("templates").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            some("templates", written)?;
            let templates = notes.each("templates", written, |_, text| {
                let text = text.as_str().ok_or_else(|| Invalid::new("must be a text"))?;
                let read =
                    SegmentTemplate::parse(text).map_err(|reason| Invalid::new(format!("{text:?}: {reason}")))?;
                Ok((Arc::from(text), read))
            })?;
            Ok(Some(DescriptorAction::PathTemplate { key: text(&json, "key")?, templates }))
        }
        None if name == ExprDescriptor::full_name() => {
            let ExprDescriptor { descriptor_key, skip_if_error, expr_specifier } = super::common::parse(&any.value)?;
            let key = filled("descriptor_key", descriptor_key)?.into();
            let Some(ExprSpecifier::Text(text)) = expr_specifier else {
                notes.ignore("an expression that is not a text, and so the whole entry");
                return Ok(None);
            };
            match CelExpression::key(&text) {
                Ok(expression) => {
                    let (expression, skip_if_absent) = (Arc::new(expression), skip_if_error);
                    Ok(Some(DescriptorAction::Expression { key, expression, skip_if_absent }))
                }
                Err(why) => {
                    notes.ignore(&format!("text ({why}), and so the whole entry"));
                    Ok(None)
                }
            }
        }
        _ => {
            notes.ignore(&format!("({name}), and so the whole entry"));
            Ok(None)
        }
    }
}
