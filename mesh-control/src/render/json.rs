//! RBAC filters as the JSON that Envoy reads, for those who configure one by hand (`mesh-control authz render`). What
//! `access.rs` writes has a form here; anything else is an error, and never left out.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission, principal};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};
use envoy_types::pb::google::protobuf::Any;
use hcm::http_connection_manager::PathWithEscapedSlashesAction;
use permission::Rule;
use principal::Identifier;
use prost::{Message, Name};
use serde_json::{Map, Value, json};

type Written = Result<Value, String>;

/// A connection manager's filters, and what it makes of paths before them.
pub(super) fn manager(manager: &hcm::HttpConnectionManager) -> Written {
    let slashes = PathWithEscapedSlashesAction::try_from(manager.path_with_escaped_slashes_action);
    let filters = manager.http_filters.iter().map(filter);
    Ok(json!({
        "normalize_path": manager.normalize_path.is_some_and(|normalize| normalize.value),
        "merge_slashes": manager.merge_slashes,
        "path_with_escaped_slashes_action": slashes.map_err(|error| error.to_string())?.as_str_name(),
        "http_filters": filters.collect::<Result<Vec<_>, _>>()?,
    }))
}

fn filter(filter: &hcm::HttpFilter) -> Written {
    let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(format!("the filter {} has no configuration", filter.name));
    };
    let rbac: Rbac = unpacked(config)?;
    let mut fields = Map::from_iter([("@type".to_owned(), config.type_url.clone().into())]);
    for (name, of) in [("rules", &rbac.rules), ("shadow_rules", &rbac.shadow_rules)] {
        if let Some(of) = of {
            fields.insert(name.to_owned(), rules(of)?);
        }
    }
    Ok(json!({"name": filter.name, "typed_config": fields}))
}

fn unpacked<M: Message + Name + Default>(any: &Any) -> Result<M, String> {
    if any.type_url != M::type_url() {
        return Err(format!("{} has no form here", any.type_url));
    }
    M::decode(&*any.value).map_err(|error| error.to_string())
}

fn rules(rules: &Rules) -> Written {
    let policies = rules.policies.iter().map(|(name, it)| Ok((name.clone(), policy(it)?)));
    let policies: Map<_, _> = policies.collect::<Result<_, String>>()?;
    Ok(json!({"action": rules.action().as_str_name(), "policies": policies}))
}

fn policy(policy: &Policy) -> Written {
    Ok(json!({
        "permissions": each(&policy.permissions, what)?,
        "principals": each(&policy.principals, who)?,
    }))
}

fn each<T>(list: &[T], write: impl Fn(&T) -> Written) -> Written {
    list.iter().map(write).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn what(permission: &Permission) -> Written {
    let rule = permission.rule.as_ref().ok_or("a permission without a rule")?;
    Ok(match rule {
        Rule::Any(any) => json!({"any": any}),
        Rule::AndRules(set) => json!({"and_rules": {"rules": each(&set.rules, what)?}}),
        Rule::OrRules(set) => json!({"or_rules": {"rules": each(&set.rules, what)?}}),
        Rule::NotRule(rule) => json!({"not_rule": what(rule)?}),
        Rule::Header(header) => json!({"header": self::header(header)?}),
        Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(test)) }) => {
            json!({"url_path": {"path": text(test)?}})
        }
        Rule::DestinationIp(range) => json!({"destination_ip": cidr(range)}),
        Rule::DestinationPort(port) => json!({"destination_port": port}),
        Rule::RequestedServerName(test) => json!({"requested_server_name": text(test)?}),
        Rule::UriTemplate(core::TypedExtensionConfig { name, typed_config: Some(config) }) => {
            let template: UriTemplateMatchConfig = unpacked(config)?;
            let config = json!({"@type": config.type_url, "path_template": template.path_template});
            json!({"uri_template": {"name": name, "typed_config": config}})
        }
        other => return Err(format!("{other:?} has no form here")),
    })
}

fn who(principal: &Principal) -> Written {
    let identifier = principal.identifier.as_ref().ok_or("a principal without an identifier")?;
    Ok(match identifier {
        Identifier::Any(any) => json!({"any": any}),
        Identifier::AndIds(set) => json!({"and_ids": {"ids": each(&set.ids, who)?}}),
        Identifier::OrIds(set) => json!({"or_ids": {"ids": each(&set.ids, who)?}}),
        Identifier::NotId(id) => json!({"not_id": who(id)?}),
        Identifier::Authenticated(principal::Authenticated { principal_name: Some(name) }) => {
            json!({"authenticated": {"principal_name": text(name)?}})
        }
        Identifier::DirectRemoteIp(range) => json!({"direct_remote_ip": cidr(range)}),
        Identifier::RemoteIp(range) => json!({"remote_ip": cidr(range)}),
        other => return Err(format!("{other:?} has no form here")),
    })
}

fn header(header: &HeaderMatcher) -> Written {
    let (name, is_plain) = (&header.name, !header.invert_match && !header.treat_missing_header_as_empty);
    match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(test)) if is_plain => {
            Ok(json!({"name": name, "string_match": text(test)?}))
        }
        Some(HeaderMatchSpecifier::PresentMatch(present)) if is_plain => {
            Ok(json!({"name": name, "present_match": present}))
        }
        _ => Err(format!("{header:?} has no form here")),
    }
}

fn text(test: &StringMatcher) -> Written {
    let (key, value) = match &test.match_pattern {
        Some(MatchPattern::Exact(text)) => ("exact", json!(text)),
        Some(MatchPattern::Prefix(text)) => ("prefix", json!(text)),
        Some(MatchPattern::Suffix(text)) => ("suffix", json!(text)),
        Some(MatchPattern::SafeRegex(regex)) => ("safe_regex", json!({"regex": regex.regex})),
        _ => return Err(format!("{test:?} has no form here")),
    };
    let mut fields = Map::from_iter([(key.to_owned(), value)]);
    if test.ignore_case {
        fields.insert("ignore_case".to_owned(), true.into());
    }
    Ok(fields.into())
}

fn cidr(range: &core::CidrRange) -> Value {
    json!({"address_prefix": range.address_prefix, "prefix_len": range.prefix_len.unwrap_or_default().value})
}
