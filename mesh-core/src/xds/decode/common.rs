//! Parts that several resources share: `Any`, durations, fractions, strings, addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3 as types;
use envoy_types::pb::google::protobuf;
use http::StatusCode;
use prost::{Message, Name};

use super::notes::Notes;
use crate::error::Invalid;
use crate::id::Address;
use crate::model::{Fraction, FullRegex, StringTest};

/// The longest duration that Protobuf allows, in seconds (10,000 years).
const MAX_SECONDS: i64 = 315_576_000_000;

/// A type URL without its host.
pub(super) fn type_name(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// Whether an `Any` holds an `M`.
pub(super) fn holds<M: Name>(any: &protobuf::Any) -> bool {
    type_name(&any.type_url).strip_prefix(M::PACKAGE).and_then(|rest| rest.strip_prefix('.')) == Some(M::NAME)
}

/// The message inside an `Any`, which must be an `M`.
pub(super) fn unpack<M: Message + Name + Default>(any: &protobuf::Any) -> Result<M, Invalid> {
    if !holds::<M>(any) {
        return Err(Invalid::new(format!("type {:?} where {}.{} was expected", any.type_url, M::PACKAGE, M::NAME)));
    }
    parse(&any.value)
}

/// A message from its bytes.
pub(super) fn parse<M: Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(|error| Invalid::new(format!("malformed Protobuf: {error}")))
}

/// A duration that is not negative.
pub(super) fn duration(value: &protobuf::Duration) -> Result<Duration, Invalid> {
    let (seconds, nanos) = (u64::try_from(value.seconds), u32::try_from(value.nanos));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if value.seconds <= MAX_SECONDS && nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(Invalid::new("a negative or malformed duration")),
    }
}

/// A duration that is more than zero.
pub(super) fn positive(value: &protobuf::Duration) -> Result<Duration, Invalid> {
    match duration(value)? {
        Duration::ZERO => Err(Invalid::new("must be more than zero")),
        value => Ok(value),
    }
}

/// A share of requests.
pub(super) fn fraction(value: &types::FractionalPercent) -> Result<Fraction, Invalid> {
    use types::fractional_percent::DenominatorType;
    let denominator = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Invalid::new("not a known value").at("denominator")),
    };
    Ok(Fraction::new(value.numerator, denominator))
}

/// The code of a status from `least` to 599; `None` for any other.
pub(super) fn status_from(least: u16, value: &types::HttpStatus) -> Option<StatusCode> {
    let code = u16::try_from(value.code).ok().filter(|code| (least..=599).contains(code))?;
    StatusCode::from_u16(code).ok()
}

/// The share of requests that a runtime setting says; there is no runtime here, so its default. `None` where it says none.
pub(super) fn runtime_share(
    notes: &mut Notes<'_>,
    name: &'static str,
    value: Option<core::RuntimeFractionalPercent>,
) -> Result<Option<Fraction>, Invalid> {
    notes.optional(name, value.and_then(|share| share.default_value), |_, share| fraction(&share))
}

/// A percentage from 0 to 100.
pub(super) fn percent(value: &types::Percent) -> Result<f64, Invalid> {
    if (0.0..=100.0).contains(&value.value) { Ok(value.value) } else { Err(Invalid::new("must be between 0 and 100")) }
}

/// A regular expression that must match the whole subject.
pub(super) fn regex(value: &matcher::RegexMatcher) -> Result<FullRegex, Invalid> {
    if value.regex.is_empty() {
        return Err(Invalid::new("the expression is empty").at("regex"));
    }
    FullRegex::new(&value.regex).map_err(|invalid| invalid.at("regex"))
}

/// A test on a string.
pub(super) fn string_test(notes: &mut Notes<'_>, value: matcher::StringMatcher) -> Result<StringTest, Invalid> {
    use matcher::string_matcher::MatchPattern;
    let matcher::StringMatcher { ignore_case, match_pattern } = value;
    match match_pattern {
        Some(MatchPattern::Exact(value)) => Ok(StringTest::Exact { value, ignore_case }),
        Some(MatchPattern::Prefix(value)) => Ok(StringTest::Prefix { value: filled("prefix", value)?, ignore_case }),
        Some(MatchPattern::Suffix(value)) => Ok(StringTest::Suffix { value: filled("suffix", value)?, ignore_case }),
        Some(MatchPattern::Contains(value)) => {
            Ok(StringTest::Contains { value: filled("contains", value)?, ignore_case })
        }
        Some(MatchPattern::SafeRegex(value)) => {
            if ignore_case {
                notes.ignore("ignore_case");
            }
            notes.field("safe_regex", |_| regex(&value)).map(StringTest::Regex)
        }
        Some(MatchPattern::Custom(_)) => Err(Invalid::new("not supported").at("custom")),
        None => Err(Invalid::new("no match pattern")),
    }
}

/// A string that is not empty.
pub(super) fn filled(name: &'static str, value: String) -> Result<String, Invalid> {
    if value.is_empty() { Err(Invalid::new("must not be empty").at(name)) } else { Ok(value) }
}

/// A TCP address. Host names are allowed only where somebody will resolve them.
pub(super) fn address(notes: &mut Notes<'_>, value: core::Address, may_be_host: bool) -> Result<Address, Invalid> {
    use core::address::Address as Kind;
    match value.address {
        Some(Kind::SocketAddress(value)) => {
            notes.field("socket_address", |notes| socket_address(notes, value, may_be_host))
        }
        Some(Kind::Pipe(_)) => Err(Invalid::new("not supported").at("pipe")),
        Some(Kind::EnvoyInternalAddress(_)) => Err(Invalid::new("not supported").at("envoy_internal_address")),
        None => Err(Invalid::new("missing").at("socket_address")),
    }
}

fn socket_address(notes: &mut Notes<'_>, value: core::SocketAddress, may_be_host: bool) -> Result<Address, Invalid> {
    use core::socket_address::PortSpecifier;
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = value;
    if protocol != core::socket_address::Protocol::Tcp as i32 {
        return Err(Invalid::new("only TCP is supported").at("protocol"));
    }
    let port = match port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_| Invalid::new(format!("{port} is not a port")).at("port_value"))?
        }
        Some(PortSpecifier::NamedPort(_)) => return Err(Invalid::new("not supported").at("named_port")),
        None => return Err(Invalid::new("missing").at("port_value")),
    };
    if !resolver_name.is_empty() {
        return Err(Invalid::new("not supported").at("resolver_name"));
    }
    super::notes::ignored!(notes; ipv4_compat, network_namespace_filepath);
    match address.parse::<IpAddr>() {
        Ok(ip) => Ok(Address::Socket((ip, port).into())),
        Err(_) if address.is_empty() => Err(Invalid::new("must not be empty").at("address")),
        Err(_) if may_be_host => Ok(Address::Host(host_name(&address)?, port)),
        Err(_) => Err(Invalid::new(format!("{address:?} is not an IP address")).at("address")),
    }
}

/// A DNS name: it goes to the resolver as it is.
fn host_name(name: &str) -> Result<Arc<str>, Invalid> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if name.len() <= 253 && name.bytes().all(is_plain) {
        Ok(Arc::from(name))
    } else {
        Err(Invalid::new(format!("{name:?} is not a host name")).at("address"))
    }
}

/// That a resource is to be fetched over the same stream: gRPC knows no other source.
pub(super) fn same_stream(source: Option<&core::ConfigSource>) -> Result<(), Invalid> {
    use core::config_source::ConfigSourceSpecifier;
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        _ => Err(Invalid::new("must be ads or self")),
    }
}

/// `xds.type.v3.TypedStruct` and its older twin of `udpa`: a message of a type that only its user knows.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypedStruct {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<protobuf::Struct>,
}

impl TypedStruct {
    /// The one in an `Any`, if that is what it holds.
    pub(super) fn from_any(any: &protobuf::Any) -> Result<Option<Self>, Invalid> {
        match type_name(&any.type_url) {
            "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct" => parse(&any.value).map(Some),
            _ => Ok(None),
        }
    }

    /// Its value as JSON, keys sorted.
    pub(super) fn json(&self) -> Result<Arc<str>, Invalid> {
        let value = self.value.as_ref().map_or_else(|| Ok(serde_json::Map::new().into()), struct_json)?;
        Ok(Arc::from(value.to_string()))
    }
}

/// As JSON, keys sorted.
pub(super) fn struct_json(value: &protobuf::Struct) -> Result<serde_json::Value, Invalid> {
    let mut fields: Vec<_> = value.fields.iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    let fields = fields.into_iter().map(|(key, value)| Ok((key.clone(), value_json(value)?)));
    Ok(serde_json::Value::Object(fields.collect::<Result<_, Invalid>>()?))
}

fn value_json(value: &protobuf::Value) -> Result<serde_json::Value, Invalid> {
    use protobuf::value::Kind;
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.as_str().into(),
        // Every number is a double on the wire; whole ones are shown as such.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => (*value as i64).into(),
        Some(Kind::NumberValue(value)) => {
            serde_json::Number::from_f64(*value).ok_or_else(|| Invalid::new("not a finite number"))?.into()
        }
        Some(Kind::StructValue(value)) => struct_json(value)?,
        Some(Kind::ListValue(list)) => {
            serde_json::Value::Array(list.values.iter().map(value_json).collect::<Result<_, _>>()?)
        }
    })
}
