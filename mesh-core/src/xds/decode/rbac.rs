//! RBAC (`envoy.extensions.filters.http.rbac.v3`, `envoy.config.rbac.v3`, gRFC A41), of requests and of connections
//! (`envoy.extensions.filters.network.rbac.v3`).
//!
//! What is not known here, or cannot be decided here, makes the resource invalid, whatever it is: a policy that was
//! understood by halves lets somebody in who was meant to stay out, or keeps nobody out.

use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::common::{string_test, unpack};
use super::metadata;
use super::notes::{Notes, ignored};
use super::route_match::{header_test, template_policy};
use crate::authz::Authorizer;
use crate::error::Invalid;
use crate::model::{
    FilterConfig, IpPrefix, PathTest, PeerTest, Rbac, RbacAction, RbacCondition, RbacPolicy, RbacRules, StringTest,
};

/// The filter state in which the parts of a peer's identity are, each by itself: what `authenticated` has no words for.
const TRUST_DOMAIN: &str = "mesh.peer.trust_domain";
const NAMESPACE: &str = "mesh.peer.namespace";
const SERVICE_ACCOUNT: &str = "mesh.peer.service_account";

/// A listener's filter.
pub(super) fn rbac(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    filter(notes, complete(any)?)
}

/// A filter of connections. What it asks about requests is in doubt ([`verdict_on_bytes`](crate::view::RouteTable::verdict_on_bytes)).
pub(super) fn of_connections(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    let network::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix: _,
        // Nothing that is decided by changes with the bytes.
        enforcement_type: _,
        delay_deny,
    } = complete(any)?;
    not_by_matchers(&matcher, &shadow_matcher)?;
    ignored!(notes; delay_deny);
    built(notes, rules, shadow_rules, shadow_rules_stat_prefix)
}

/// What a virtual host, a route or a weighted cluster has in its place; without a filter, it is turned off.
pub(super) fn rbac_per_route(notes: &mut Notes<'_>, any: &Any) -> Result<FilterConfig, Invalid> {
    let http::RbacPerRoute { rbac } = complete(any)?;
    Ok(notes.optional("rbac", rbac, filter)?.unwrap_or(FilterConfig::Disabled))
}

/// A message all of whose fields are known here. One that is not would be dropped by the decoder without a word, and
/// written again the message is shorter by it (hazard A18).
pub(super) fn complete<M: Message + Name + Default>(any: &Any) -> Result<M, Invalid> {
    let message: M = unpack(any)?;
    if message.encoded_len() == any.value.len() {
        Ok(message)
    } else {
        Err(Invalid::new("a security filter with a field that is not known here"))
    }
}

fn filter(notes: &mut Notes<'_>, value: http::Rbac) -> Result<FilterConfig, Invalid> {
    let http::Rbac {
        rules,
        rules_stat_prefix: _,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = value;
    not_by_matchers(&matcher, &shadow_matcher)?;
    ignored!(notes; track_per_rule_stats);
    built(notes, rules, shadow_rules, shadow_rules_stat_prefix)
}

fn not_by_matchers<M>(matcher: &Option<M>, shadow_matcher: &Option<M>) -> Result<(), Invalid> {
    for (name, is_set) in [("matcher", matcher.is_some()), ("shadow_matcher", shadow_matcher.is_some())] {
        if is_set {
            return Err(Invalid::new("not supported").at(name));
        }
    }
    Ok(())
}

fn built(
    notes: &mut Notes<'_>,
    rules: Option<pb::Rbac>,
    shadow_rules: Option<pb::Rbac>,
    shadow_prefix: String,
) -> Result<FilterConfig, Invalid> {
    let rbac = Rbac {
        rules: notes.optional("rules", rules, self::rules)?,
        shadow_rules: notes.optional("shadow_rules", shadow_rules, self::rules)?,
        shadow_prefix: shadow_prefix.into(),
    };
    Authorizer::new(&rbac)?;
    Ok(FilterConfig::Rbac(Arc::new(rbac)))
}

fn rules(notes: &mut Notes<'_>, value: pb::Rbac) -> Result<RbacRules, Invalid> {
    let pb::Rbac { action, policies, audit_logging_options } = value;
    let action = match pb::rbac::Action::try_from(action) {
        Ok(pb::rbac::Action::Allow) => RbacAction::Allow,
        Ok(pb::rbac::Action::Deny) => RbacAction::Deny,
        Ok(pb::rbac::Action::Log) => RbacAction::Log,
        Err(_) => return Err(Invalid::new("not a known value").at("action")),
    };
    if let Some(audit) = audit_logging_options {
        // gRFC A59: one that is needed and not known.
        if audit.logger_configs.iter().any(|logger| !logger.is_optional) {
            return Err(Invalid::new("not supported").at("audit_logging_options.logger_configs"));
        }
        notes.ignore("audit_logging_options");
    }
    let mut rules = RbacRules::new(action);
    for (name, policy) in policies {
        let policy = notes.entry("policies", &name, |notes| self::policy(notes, policy))?;
        rules.policies.insert(name.into(), policy);
    }
    Ok(rules)
}

fn policy(notes: &mut Notes<'_>, value: pb::Policy) -> Result<RbacPolicy, Invalid> {
    let pb::Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    for (name, is_set) in [
        ("condition", condition.is_some()),
        ("checked_condition", checked_condition.is_some()),
        ("cel_config", cel_config.is_some()),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(name));
        }
    }
    let permissions = several("permissions", notes.each("permissions", permissions, permission)?)?;
    let principals = several("principals", notes.each("principals", principals, principal)?)?;
    Ok(RbacPolicy { permissions, principals })
}

fn permission(notes: &mut Notes<'_>, value: pb::Permission) -> Result<RbacCondition, Invalid> {
    use pb::permission::Rule;
    match value.rule.ok_or_else(|| Invalid::new("no known rule"))? {
        Rule::AndRules(set) => notes.field("and_rules", |notes| {
            several("rules", notes.each("rules", set.rules, permission)?).map(RbacCondition::All)
        }),
        Rule::OrRules(set) => notes.field("or_rules", |notes| {
            several("rules", notes.each("rules", set.rules, permission)?).map(RbacCondition::Any)
        }),
        Rule::NotRule(rule) => {
            notes.field("not_rule", |notes| Ok(RbacCondition::Not(Box::new(permission(notes, *rule)?))))
        }
        Rule::Any(is_any) => any(is_any),
        Rule::Header(test) => notes.field("header", |notes| header_test(notes, test)).map(RbacCondition::Header),
        Rule::UrlPath(path) => notes.field("url_path", |notes| url_path(notes, path)),
        Rule::UriTemplate(template) => notes.field("uri_template", |_| uri_template(&template)),
        Rule::DestinationIp(range) => {
            notes.field("destination_ip", |_| prefix(&range)).map(RbacCondition::DestinationIp)
        }
        Rule::DestinationPort(port) => match u16::try_from(port) {
            Ok(port) => Ok(RbacCondition::DestinationPort(port, port)),
            Err(_) => Err(Invalid::new(format!("{port} is not a port")).at("destination_port")),
        },
        Rule::DestinationPortRange(range) => {
            match (u16::try_from(range.start), u16::try_from(range.end.saturating_sub(1))) {
                (Ok(first), Ok(last)) if first <= last => Ok(RbacCondition::DestinationPort(first, last)),
                _ => Err(Invalid::new("not a range of ports").at("destination_port_range")),
            }
        }
        Rule::RequestedServerName(test) => {
            notes.field("requested_server_name", |notes| string_test(notes, test)).map(RbacCondition::ServerName)
        }
        Rule::Metadata(test) => notes.field("metadata", |notes| metadata::metadata(notes, test)),
        Rule::SourcedMetadata(test) => notes.field("sourced_metadata", |notes| metadata::sourced(notes, test)),
        Rule::Matcher(_) => Err(Invalid::new("not supported").at("matcher")),
    }
}

fn principal(notes: &mut Notes<'_>, value: pb::Principal) -> Result<RbacCondition, Invalid> {
    use pb::principal::Identifier;
    match value.identifier.ok_or_else(|| Invalid::new("no known identifier"))? {
        Identifier::AndIds(set) => notes
            .field("and_ids", |notes| several("ids", notes.each("ids", set.ids, principal)?).map(RbacCondition::All)),
        Identifier::OrIds(set) => notes
            .field("or_ids", |notes| several("ids", notes.each("ids", set.ids, principal)?).map(RbacCondition::Any)),
        Identifier::NotId(id) => {
            notes.field("not_id", |notes| Ok(RbacCondition::Not(Box::new(principal(notes, *id)?))))
        }
        Identifier::Any(is_any) => any(is_any),
        Identifier::Authenticated(it) => notes.field("authenticated", |notes| {
            let test = notes.optional("principal_name", it.principal_name, string_test)?;
            Ok(RbacCondition::Peer(test.map_or(PeerTest::Known, PeerTest::Id)))
        }),
        // Who has connected, and who is behind that. The two are one unless a gateway believes who is in front (gRFC A41).
        Identifier::SourceIp(range) => notes.field("source_ip", |_| prefix(&range)).map(RbacCondition::SourceIp),
        Identifier::DirectRemoteIp(range) => {
            notes.field("direct_remote_ip", |_| prefix(&range)).map(RbacCondition::SourceIp)
        }
        Identifier::RemoteIp(range) => notes.field("remote_ip", |_| prefix(&range)).map(RbacCondition::RemoteIp),
        Identifier::Header(test) => notes.field("header", |notes| header_test(notes, test)).map(RbacCondition::Header),
        Identifier::UrlPath(path) => notes.field("url_path", |notes| url_path(notes, path)),
        Identifier::FilterState(state) => notes.field("filter_state", |notes| part_of_peer(notes, state)),
        Identifier::Metadata(test) => notes.field("metadata", |notes| metadata::metadata(notes, test)),
        Identifier::SourcedMetadata(test) => notes.field("sourced_metadata", |notes| metadata::sourced(notes, test)),
        Identifier::Custom(_) => Err(Invalid::new("not supported").at("custom")),
    }
}

/// A list that must not be empty: nobody can tell whether nothing or everything was meant.
fn several(name: &'static str, conditions: Vec<RbacCondition>) -> Result<Vec<RbacCondition>, Invalid> {
    if conditions.is_empty() { Err(Invalid::new("the list is empty").at(name)) } else { Ok(conditions) }
}

fn any(is_any: bool) -> Result<RbacCondition, Invalid> {
    if is_any { Ok(RbacCondition::Always) } else { Err(Invalid::new("must be true").at("any")) }
}

fn url_path(notes: &mut Notes<'_>, value: matcher::PathMatcher) -> Result<RbacCondition, Invalid> {
    let Some(matcher::path_matcher::Rule::Path(test)) = value.rule else {
        return Err(Invalid::new("no known rule"));
    };
    notes.field("path", |notes| string_test(notes, test)).map(RbacCondition::Path)
}

fn uri_template(template: &core::TypedExtensionConfig) -> Result<RbacCondition, Invalid> {
    let any = template.typed_config.as_ref().ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
    complete::<UriTemplateMatchConfig>(any).map_err(|invalid| invalid.at("typed_config"))?;
    match template_policy(template)? {
        PathTest::Template(template) => Ok(RbacCondition::PathTemplate(template)),
        _ => Err(Invalid::new("not a template")),
    }
}

fn part_of_peer(notes: &mut Notes<'_>, value: matcher::FilterStateMatcher) -> Result<RbacCondition, Invalid> {
    use matcher::filter_state_matcher::Matcher;
    let part: fn(StringTest) -> PeerTest = match value.key.as_str() {
        TRUST_DOMAIN => PeerTest::TrustDomain,
        NAMESPACE => PeerTest::Namespace,
        SERVICE_ACCOUNT => PeerTest::ServiceAccount,
        other => return Err(Invalid::new(format!("{other:?} is not known")).at("key")),
    };
    match value.matcher {
        Some(Matcher::StringMatch(test)) => {
            let test = notes.field("string_match", |notes| string_test(notes, test))?;
            Ok(RbacCondition::Peer(part(test)))
        }
        _ => Err(Invalid::new("only string_match is supported")),
    }
}

pub(super) fn prefix(range: &core::CidrRange) -> Result<IpPrefix, Invalid> {
    let ip: IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| Invalid::new(format!("{:?} is not an IP address", range.address_prefix)).at("address_prefix"))?;
    let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
    let length = u8::try_from(length).map_err(|_| Invalid::new("more than 128 bits").at("prefix_len"))?;
    IpPrefix::new(ip, length).map_err(|invalid| invalid.at("prefix_len"))
}
