//! Consistent hashing: the sizes of rings and tables (gRFC A42, `envoy.extensions.load_balancing_policies`), and what
//! requests are hashed by (`RouteAction.hash_policy`).

use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy as HashPolicyProto;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie, Header, PolicySpecifier};
use envoy_types::pb::google::protobuf::{UInt32Value, UInt64Value};

use super::action::path_rewrite_regex;
use super::common::duration;
use super::notes::{Notes, ignored};
use crate::balance::MOST_POINTS;
use crate::error::Invalid;
use crate::model::{BalancerPolicy, ConsistentHashing, CookieKey, HashFunction, HashKey, HashPolicy, HashedHeader};

/// The most hashes on a ring that may be asked for (Envoy, gRFC A42).
const MAX_RING: u64 = 8 << 20;

/// The most entries of a table (Envoy).
const MAX_TABLE: u64 = 5_000_011;

/// The state that gRPC's clients keep, and Envoy's not (gRFC A42).
const CHANNEL_ID: &str = "io.grpc.channel_id";

/// A ring of hashes. Of the functions, 1 is xxHash64 and 2 is Murmur2, as in the newer of the two messages.
pub(super) fn ring(
    notes: &mut Notes<'_>,
    function: i32,
    minimum: Option<UInt64Value>,
    maximum: Option<UInt64Value>,
    hashing: ConsistentHashing,
) -> Result<BalancerPolicy, Invalid> {
    let function = match function {
        0 | 1 => HashFunction::Xx,
        2 => HashFunction::Murmur2,
        other => return Err(Invalid::new(format!("{other} is not a known value")).at("hash_function")),
    };
    let size = |value: Option<UInt64Value>, default: u64, field| match value.map_or(default, |size| size.value) {
        size if size > MAX_RING => Err(Invalid::new(format!("more than {MAX_RING}")).at(field)),
        size => Ok(size),
    };
    let min_size = size(minimum, 1024, "minimum_ring_size")?;
    let max_size = size(maximum, MAX_RING, "maximum_ring_size")?;
    if min_size > max_size {
        return Err(Invalid::new(format!("more than maximum_ring_size, {max_size}")).at("minimum_ring_size"));
    }
    if min_size > MOST_POINTS {
        notes.ignore(&format!("minimum_ring_size (above {MOST_POINTS})"));
    }
    Ok(BalancerPolicy::RingHash { min_size, max_size, function, hashing })
}

/// Maglev's table.
pub(super) fn maglev(size: Option<UInt64Value>, hashing: ConsistentHashing) -> Result<BalancerPolicy, Invalid> {
    let table_size = size.map_or(65_537, |size| size.value);
    let invalid = |what: String| Err(Invalid::new(what).at("table_size"));
    if table_size > MAX_TABLE {
        return invalid(format!("more than {MAX_TABLE}"));
    }
    let is_prime = table_size > 1
        && (2..).take_while(|part| part * part <= table_size).all(|part| !table_size.is_multiple_of(part));
    if !is_prime {
        return invalid(format!("{table_size} is not a prime number"));
    }
    Ok(BalancerPolicy::Maglev { table_size, hashing })
}

/// What is hashed of endpoints, and how much one may get.
pub(super) fn consistent(by_hostname: bool, balance: Option<UInt32Value>) -> Result<ConsistentHashing, Invalid> {
    match balance.map(|factor| factor.value) {
        Some(percent @ 0..100) => Err(Invalid::new(format!("{percent} is less than 100")).at("hash_balance_factor")),
        balance_percent => Ok(ConsistentHashing { by_hostname, balance_percent }),
    }
}

/// One thing that requests are hashed by; `None` where it can never be there.
pub(super) fn hash_policy(notes: &mut Notes<'_>, value: HashPolicyProto) -> Result<Option<HashPolicy>, Invalid> {
    let HashPolicyProto { terminal, policy_specifier } = value;
    let key = match policy_specifier {
        Some(PolicySpecifier::Header(header)) => notes.field("header", |notes| {
            let Header { header_name, regex_rewrite } = header;
            let named = HashedHeader::named(&header_name).map_err(|invalid| invalid.at("header_name"))?;
            let rewrite = notes.optional("regex_rewrite", regex_rewrite, |_, value| path_rewrite_regex(value))?;
            Ok(HashKey::Header(named, rewrite))
        })?,
        Some(PolicySpecifier::Cookie(value)) => notes.field("cookie", cookie(value))?,
        Some(PolicySpecifier::QueryParameter(query)) if query.name.is_empty() => {
            return Err(Invalid::new("missing").at("query_parameter.name"));
        }
        Some(PolicySpecifier::QueryParameter(query)) => HashKey::Query(query.name),
        Some(PolicySpecifier::ConnectionProperties(connection)) if connection.source_ip => HashKey::SourceAddress,
        Some(PolicySpecifier::ConnectionProperties(_)) => return Ok(None),
        Some(PolicySpecifier::FilterState(state)) if state.key == CHANNEL_ID => HashKey::Channel,
        Some(PolicySpecifier::FilterState(state)) => {
            ignored!(notes; state);
            return Ok(None);
        }
        // gRFC A42: passed over.
        None => {
            notes.ignore("policy_specifier");
            return Ok(None);
        }
    };
    Ok(Some(HashPolicy { key, terminal }))
}

fn cookie(value: Cookie) -> impl FnOnce(&mut Notes<'_>) -> Result<HashKey, Invalid> {
    move |notes| {
        let Cookie { name, ttl, path, attributes } = value;
        let key = CookieKey::new(name)?;
        let Some(ttl) = notes.optional("ttl", ttl, |_, value| duration(&value))? else {
            return Ok(HashKey::Cookie(key));
        };
        let attributes = attributes.iter().map(|attribute| (attribute.name.as_str(), attribute.value.as_str()));
        key.made(ttl, &path, attributes).map(HashKey::Cookie)
    }
}
