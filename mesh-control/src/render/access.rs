//! Who may do what, as Envoy's RBAC filters (`envoy.config.rbac.v3`, gRFC A41): one that refuses, one that lets in, and for
//! the library one that only tells. The library's own decoder reads them for the data plane, and decides on them for
//! `mesh-control authz test`. Of a gateway's connections that nobody looks into they are network filters
//! (`envoy.extensions.filters.network.rbac.v3`), which say what is left of the same policies there.
//!
//! The library compares hosts, repeated headers and the parts of identities as they have to be (`mesh_core::authz`); for
//! others the same is said by expressions. What they cannot decide is a reason not to serve. Envoy's filters are written for
//! those who configure an Envoy by hand (`mesh-control authz render`).

mod token;

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, permission, principal};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, PathMatcher, StringMatcher, filter_state_matcher, path_matcher,
};
use envoy_types::pb::google::protobuf::{Any, UInt32Value};
use permission::Rule;
use principal::Identifier;
use prost::{Message, Name};

use super::authorizer;
use super::proto::{self, extension};
use crate::catalog::ClientClass;
use crate::policy::access::{Access, AccessRule, Condition, Effect, Fact, RulesByEffect, Value};

/// What every identity begins with.
const SPIFFE: &str = "spiffe://";

/// `envoy.extensions.filters.http.rbac.v3.RBAC` with its map in order, so that equal meaning has equal bytes.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(message, optional, tag = "1")]
    rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    shadow_rules_stat_prefix: String,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`, in the same way.
#[derive(Clone, PartialEq, Message)]
struct NetworkFilter {
    #[prost(message, optional, tag = "1")]
    rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    stat_prefix: String,
}

/// What a filter decides on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Requests,
    /// Connections that nobody looks into.
    Connections,
}

/// A filter by its name: what it enforces, and what it only tries.
type Named = (&'static str, Option<Rules>, Option<Rules>);

#[derive(Clone, PartialEq, Message)]
struct Rules {
    /// ALLOW is 0, DENY 1, LOG 2.
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    policies: BTreeMap<String, Policy>,
}

/// The filters of a server; `Err` says what the client cannot enforce.
pub(super) fn filters(access: &Access<'_>, class: ClientClass) -> Result<Vec<hcm::HttpFilter>, String> {
    if let Some((authorizer, _)) = access.asks.first().filter(|_| class == ClientClass::Grpc) {
        let name = &authorizer.name;
        return Err(format!("{name}: nobody is asked by gRPC's servers; every call fails until it is taken out"));
    }
    let mut asks = Vec::new();
    for (number, (authorizer, asked)) in access.asks.iter().enumerate() {
        let prefix = format!("mesh_custom_{number}_");
        let shadow_rules = Some(rules_of(asked, Effect::Ask, access, (class, Subject::Requests))?);
        let noted = Filter { rules: None, shadow_rules, shadow_rules_stat_prefix: prefix.clone() };
        asks.push(filter(format!("mesh.rbac.custom.{number}"), Rbac::type_url(), noted.encode_to_vec()));
        asks.push(authorizer::filter(format!("mesh.ext_authz.{number}"), authorizer, &prefix));
    }
    let filters = by_effect(access, (class, Subject::Requests))?.into_iter().map(|(name, rules, shadow_rules)| {
        let value = Filter { rules, shadow_rules, ..Filter::default() }.encode_to_vec();
        filter(name.to_owned(), Rbac::type_url(), value)
    });
    // CUSTOM, then DENY, then ALLOW.
    Ok(asks.into_iter().chain(filters).collect())
}

/// What is told of, then what refuses, then what lets in.
fn by_effect(access: &Access<'_>, (class, subject): (ClientClass, Subject)) -> Result<Vec<Named>, String> {
    let rules = |rules: &[&AccessRule], effect| rules_of(rules, effect, access, (class, subject));
    let of_effect = |of: &RulesByEffect<'_>, effect: Effect| match effect {
        Effect::Deny => (!of.deny.is_empty()).then(|| rules(&of.deny, effect)).transpose(),
        _ => of.allow.as_ref().map(|allow| rules(allow, effect)).transpose(),
    };
    // gRPC's servers have no use for what refuses nobody.
    let tells = class != ClientClass::Grpc;
    let mut filters = Vec::new();
    if tells && !access.audit.is_empty() {
        filters.push(("mesh.rbac.audit", Some(rules(&access.audit, Effect::Audit)?), None));
    }
    for (name, effect) in [("mesh.rbac.deny", Effect::Deny), ("mesh.rbac.allow", Effect::Allow)] {
        let enforced = of_effect(&access.enforced, effect)?;
        let tried = if tells { of_effect(&access.tried, effect)? } else { None };
        if enforced.is_some() || tried.is_some() {
            filters.push((name, enforced, tried));
        }
    }
    Ok(filters)
}

/// The filters of a gateway's connections that nobody looks into; `Err` says what has no form. As Istio has it of TCP: a rule that
/// lets in, or tells, by anything of a request is for no connection, and one that refuses is for all that the rest of it is for.
pub(super) fn of_connections(access: &Access<'_>, class: ClientClass) -> Result<Vec<listener::Filter>, String> {
    let filters = by_effect(access, (class, Subject::Connections))?;
    Ok(filters.into_iter().map(|(name, rules, tried)| network_filter(name, rules, tried)).collect())
}

/// The filter that lets no connection in.
pub(super) fn no_connections() -> listener::Filter {
    network_filter("mesh.rbac.allow", Some(Rules::default()), None)
}

fn network_filter(name: &str, rules: Option<Rules>, shadow_rules: Option<Rules>) -> listener::Filter {
    let value = NetworkFilter { rules, shadow_rules, stat_prefix: "tcp.".to_owned() }.encode_to_vec();
    let config = Any { type_url: network::Rbac::type_url(), value };
    listener::Filter { name: name.to_owned(), config_type: Some(listener::filter::ConfigType::TypedConfig(config)) }
}

fn filter(name: String, type_url: String, value: Vec<u8>) -> hcm::HttpFilter {
    let config_type = Some(hcm::http_filter::ConfigType::TypedConfig(Any { type_url, value }));
    hcm::HttpFilter { name, config_type, ..Default::default() }
}

/// What servers of this class cannot do of a rule, whoever it is for.
pub fn not_for(class: ClientClass, rule: &AccessRule, effect: Effect) -> Option<&'static str> {
    let access = Access::default();
    let (refuses, subject) = (matches!(effect, Effect::Deny | Effect::Ask), Subject::Requests);
    let render = Renderer { access: &access, class, refuses, subject };
    render.policy(rule).err()
}

/// What has a form for an Envoy that is told the rest over xDS, and none for one that is configured by hand.
pub(super) fn not_by_hand(access: &Access<'_>) -> Option<String> {
    if let Some((authorizer, _)) = access.asks.first() {
        return Some(format!(
            "{}: an AuthorizationPolicy (CUSTOM) has it asked, which has no form here: only policies that decide by themselves \
             are written",
            authorizer.name
        ));
    }
    let rules = |of: &RulesByEffect<'_>| {
        of.allow.iter().flatten().chain(&of.deny).map(|rule| (*rule).clone()).collect::<Vec<_>>()
    };
    let all =
        [rules(&access.enforced), rules(&access.tried), access.audit.iter().map(|rule| (*rule).clone()).collect()];
    let rule = all.into_iter().flatten().find(|rule| rule.conditions.asks_for_tokens())?;
    Some(format!("{}: a condition on tokens has no form here", rule.id))
}

fn rules_of(
    rules: &[&AccessRule],
    effect: Effect,
    access: &Access<'_>,
    (class, subject): (ClientClass, Subject),
) -> Result<Rules, String> {
    let action = match effect {
        Effect::Allow => 0,
        // Shadow rules that somebody is asked by note what DENY would be for.
        Effect::Deny | Effect::Ask => 1,
        Effect::Audit => 2,
    };
    let refuses = matches!(effect, Effect::Deny | Effect::Ask);
    let render = Renderer { access, class, refuses, subject };
    let sees_all = refuses || subject == Subject::Requests;
    let rules = rules.iter().filter(|rule| sees_all || !rule.conditions.ask_about_requests());
    let policies = rules.map(|rule| {
        let policy = render.policy(rule).map_err(|what| match class {
            ClientClass::Envoy => format!("{}: {what} has no form for an Envoy", rule.id),
            _ => format!(
                "{}: {what} cannot be enforced by gRPC's servers; every call fails until it is taken out",
                rule.id
            ),
        });
        Ok((rule.id.to_string(), policy?))
    });
    Ok(Rules { action, policies: policies.collect::<Result<_, String>>()? })
}

/// A condition is on who asks or on what is asked for.
enum Either {
    Who(Principal),
    What(Permission),
}

struct Renderer<'a> {
    access: &'a Access<'a>,
    class: ClientClass,
    /// Whether the rules refuse those that they are for.
    refuses: bool,
    subject: Subject,
}

impl Renderer<'_> {
    /// A rule; the error names what the client cannot do.
    fn policy(&self, rule: &AccessRule) -> Result<Policy, &'static str> {
        let (mut who, mut what) = (Vec::new(), Vec::new());
        for condition in &rule.conditions.when {
            match self.condition(condition)? {
                Either::Who(principal) => who.push(principal),
                Either::What(permission) => what.push(permission),
            }
        }
        let all = |conditions: &[Condition]| -> Result<(Vec<Principal>, Vec<Permission>), &'static str> {
            let (mut who, mut what) = (who.clone(), what.clone());
            for condition in conditions {
                match self.condition(condition)? {
                    Either::Who(principal) => who.push(principal),
                    Either::What(permission) => what.push(permission),
                }
            }
            Ok((who, what))
        };
        // Where nothing is said, everything is meant.
        let everything: &[Vec<Condition>] = &[Vec::new()];
        let or_everything =
            |lists: &'_ [Vec<Condition>]| if lists.is_empty() { everything.to_vec() } else { lists.to_vec() };
        let mut policy = Policy::default();
        for from in or_everything(&rule.conditions.from) {
            policy.principals.push(all_principals(all(&from)?.0));
        }
        for to in or_everything(&rule.conditions.to) {
            policy.permissions.push(all_permissions(all(&to)?.1));
        }
        Ok(policy)
    }

    fn condition(&self, condition: &Condition) -> Result<Either, &'static str> {
        // What lets in by it is left out as a whole.
        if self.subject == Subject::Connections && condition.fact.is_of_requests() {
            return Ok(Either::What(what(Rule::Any(true))));
        }
        let values = condition.values.iter();
        let is_peer = condition.fact.is_of_peers();
        let is_token = matches!(condition.fact, Fact::RequestPrincipal | Fact::Claim(_));
        // What of a token is no text may be meant all the same, and only the library refuses in such a doubt.
        let may_refuse = self.refuses != condition.is_negated;
        if is_token && (self.class == ClientClass::Grpc || self.class == ClientClass::Envoy && may_refuse) {
            return Err("a condition on tokens");
        }
        if is_peer || is_token || matches!(condition.fact, Fact::SourceIp | Fact::RemoteIp) {
            let any = any_principal(match &condition.fact {
                Fact::Claim(path) => vec![token::claim(path, &condition.values)],
                Fact::RequestPrincipal if self.refuses != condition.is_negated => values.map(token::whole).collect(),
                Fact::RequestPrincipal => values.map(token::by_parts).collect(),
                fact => {
                    let lets_in = self.refuses == condition.is_negated;
                    let who = values.map(|value| self.who(fact, value).map(|who| self.at_home(fact, who, lets_in)));
                    who.collect::<Result<Vec<_>, _>>()?
                }
            });
            return Ok(Either::Who(match condition.is_negated {
                false => any,
                // Who is not known is none of those that are let in but some.
                true if is_peer && !self.refuses => {
                    all_principals(vec![authenticated(starts(SPIFFE)), not_principal(any)])
                }
                true => not_principal(any),
            }));
        }
        let any = values.map(|value| self.what(condition, value)).collect::<Result<Vec<_>, _>>()?;
        let any = any_permission(any);
        Ok(Either::What(if condition.is_negated { not_permission(any) } else { any }))
    }

    /// A namespace or an account that lets in is one of the mesh's own: whoever runs a foreign domain calls its own as they like.
    fn at_home(&self, fact: &Fact, who: Principal, lets_in: bool) -> Principal {
        if !lets_in || self.access.home.is_empty() || !matches!(fact, Fact::Namespace | Fact::ServiceAccount) {
            return who;
        }
        let home = self.access.home.iter().map(|domain| self.part(&Fact::TrustDomain, &Value::Exact(domain.clone())));
        all_principals(vec![who, any_principal(home.collect())])
    }

    fn who(&self, fact: &Fact, value: &Value) -> Result<Principal, &'static str> {
        if let Value::Account(namespace, name) = value {
            let namespace = namespace.clone().unwrap_or_default();
            let parts = [(Fact::Namespace, namespace), (Fact::ServiceAccount, name.clone())];
            let parts = parts.map(|(fact, name)| self.part(&fact, &Value::Exact(name)));
            return Ok(all_principals(parts.into()));
        }
        Ok(match (fact, value) {
            (Fact::SourceIp, Value::Ip(ip, length)) => who(Identifier::DirectRemoteIp(cidr(*ip, *length))),
            (_, Value::Ip(ip, length)) => who(Identifier::RemoteIp(cidr(*ip, *length))),
            (Fact::Principal, Value::Exact(id)) => authenticated(exactly(&format!("{SPIFFE}{id}"))),
            (Fact::Principal, Value::Prefix(prefix)) => authenticated(starts(&format!("{SPIFFE}{prefix}"))),
            (Fact::Principal, Value::Suffix(suffix)) => authenticated(ends(suffix)),
            (Fact::Principal, _) => authenticated(starts(SPIFFE)),
            (fact, value) => self.part(fact, value),
        })
    }

    /// A part of an identity: for the library by itself, for others as an expression on the whole.
    fn part(&self, fact: &Fact, value: &Value) -> Principal {
        if self.class == ClientClass::Library {
            let key = match fact {
                Fact::Namespace => "mesh.peer.namespace",
                Fact::ServiceAccount => "mesh.peer.service_account",
                _ => "mesh.peer.trust_domain",
            };
            let matcher = Some(filter_state_matcher::Matcher::StringMatch(text(value)));
            return who(Identifier::FilterState(FilterStateMatcher { key: key.to_owned(), matcher }));
        }
        let any = "[^/]+";
        let name = match value {
            Value::Exact(name) => regex::escape(name),
            Value::Prefix(prefix) => format!("{}[^/]*", regex::escape(prefix)),
            Value::Suffix(suffix) => format!("[^/]*{}", regex::escape(suffix)),
            _ => any.to_owned(),
        };
        authenticated(expression(&match fact {
            Fact::Namespace => format!("{SPIFFE}{any}/ns/{name}/sa/{any}"),
            Fact::ServiceAccount => format!("{SPIFFE}{any}/ns/{any}/sa/{name}"),
            _ => format!("{SPIFFE}{name}/.+"),
        }))
    }

    fn what(&self, condition: &Condition, value: &Value) -> Result<Permission, &'static str> {
        let (is_library, is_grpc) = (self.class == ClientClass::Library, self.class == ClientClass::Grpc);
        // In doubt, what lets in has to hold of each value of a header, and so has what saves from a refusal.
        let needs_all = self.refuses == condition.is_negated;
        Ok(what(match (&condition.fact, value) {
            (Fact::DestinationIp, Value::Ip(ip, length)) => Rule::DestinationIp(cidr(*ip, *length)),
            (Fact::Port, Value::Port(port)) => return Ok(self.port(*port, condition.is_negated)),
            (Fact::Path, Value::Template(_)) if is_grpc => return Err("a path template"),
            (Fact::Path, Value::Template(template)) => {
                let config = UriTemplateMatchConfig { path_template: template.clone() };
                Rule::UriTemplate(extension("envoy.path.match.uri_template.uri_template_matcher", &config))
            }
            (Fact::Path, value) => {
                let test = if *value == Value::Present { starts("/") } else { text(value) };
                Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(test)) })
            }
            (Fact::ServerName, _) if is_grpc => return Err("connection.sni"),
            (Fact::ServerName, Value::Present) => {
                return Ok(not_permission(what(Rule::RequestedServerName(exactly("")))));
            }
            (Fact::ServerName, value) => Rule::RequestedServerName(text(value)),
            (Fact::Method, value) => Rule::Header(header(":method", text(value))),
            (Fact::Host, Value::Present) => Rule::Header(present(":authority")),
            (Fact::Host, value) if is_library => {
                Rule::Header(header(":authority", StringMatcher { ignore_case: true, ..text(value) }))
            }
            (Fact::Host, value) => Rule::Header(header(":authority", expression(&host_expression(value)))),
            // gRPC's servers see none of these.
            (Fact::Header(name), _) if is_grpc && (name.ends_with("-bin") || name == "te") => {
                return Err("a header that gRPC's servers do not see");
            }
            (Fact::Header(name), Value::Present) => Rule::Header(present(name)),
            // They join the values of a header that is sent twice: only a whole value that lets somebody in cannot be got
            // around so (hazard A11).
            (Fact::Header(_), value) if is_grpc && !(needs_all && matches!(value, Value::Exact(_))) => {
                return Err("a header of which a second value would get around the rule");
            }
            // Envoy looks at each value, and is content with one that fits: no other may be there.
            (Fact::Header(name), value) if !is_library && needs_all => {
                let others = header(name, expression(&others(value)));
                return Ok(all_permissions(vec![
                    what(Rule::Header(header(name, text(value)))),
                    not_permission(what(Rule::Header(others))),
                ]));
            }
            (Fact::Header(name), value) => Rule::Header(header(name, text(value))),
            _ => return Err("a condition"),
        }))
    }

    /// A port by the numbers that this server has. In doubt nobody is let in.
    fn port(&self, port: u16, is_negated: bool) -> Permission {
        let is_doubtful = self.access.doubtful_ports.as_ref().is_none_or(|ports| ports.contains(&port));
        let holds = self.access.ports.contains(&port) || (is_doubtful && self.refuses != is_negated);
        // At run time there is only the bound one.
        let (bound, other) = (self.access.bound, if port == self.access.bound { 0 } else { port });
        what(Rule::DestinationPort(u32::from(if holds { bound } else { other })))
    }
}

/// A host in any case, with a dot at the end and, unless one is asked for, with any port, for those who compare bytes.
fn host_expression(value: &Value) -> String {
    let (before, host, after) = match value {
        Value::Exact(host) => ("", host.as_str(), ""),
        Value::Prefix(host) => ("", host.as_str(), ".*"),
        Value::Suffix(host) => (".*", host.as_str(), ""),
        _ => (".*", "", ""),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match host.rsplit_once(':').filter(|(_, port)| is_port(port)) {
        Some((name, port)) => format!("(?i){before}{}\\.?:{port}{after}", regex::escape(name)),
        None => format!("(?i){before}{}{after}\\.?(:[0-9]*)?", regex::escape(host)),
    }
}

/// All texts but those of a value. RE2 has no expression for "not this one", so it is told byte by byte (which Envoy has it
/// look at): one that differs, or an end that comes too early or too late.
fn others(value: &Value) -> String {
    let (text, is_suffix, mut rest) = match value {
        Value::Exact(text) => (text, false, ".+".to_owned()),
        Value::Prefix(prefix) => (prefix, false, String::new()),
        Value::Suffix(suffix) => (suffix, true, String::new()),
        _ => return String::new(),
    };
    // From the byte that is compared last to the first one.
    let bytes: Vec<u8> = if is_suffix { text.bytes().collect() } else { text.bytes().rev().collect() };
    for byte in bytes {
        let (same, other) = (format!("\\x{byte:02x}"), format!("[^\\x{byte:02x}]"));
        rest = match (is_suffix, rest.is_empty()) {
            (false, true) => format!("(?:{other}.*)?"),
            (false, false) => format!("(?:{other}.*|{same}{rest})?"),
            (true, true) => format!("(?:.*{other})?"),
            (true, false) => format!("(?:.*{other}|{rest}{same})?"),
        };
    }
    format!("(?s){rest}")
}

/// A value as a matcher of texts.
fn text(value: &Value) -> StringMatcher {
    match value {
        Value::Exact(text) => exactly(text),
        Value::Prefix(prefix) => starts(prefix),
        Value::Suffix(suffix) => ends(suffix),
        _ => expression("(?s).+"),
    }
}

fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn exactly(text: &str) -> StringMatcher {
    matcher(MatchPattern::Exact(text.to_owned()))
}

fn starts(prefix: &str) -> StringMatcher {
    matcher(MatchPattern::Prefix(prefix.to_owned()))
}

fn ends(suffix: &str) -> StringMatcher {
    matcher(MatchPattern::Suffix(suffix.to_owned()))
}

fn expression(expression: &str) -> StringMatcher {
    matcher(MatchPattern::SafeRegex(proto::regex(expression)))
}

fn header(name: &str, test: StringMatcher) -> HeaderMatcher {
    header_matcher(name, HeaderMatchSpecifier::StringMatch(test))
}

fn present(name: &str) -> HeaderMatcher {
    header_matcher(name, HeaderMatchSpecifier::PresentMatch(true))
}

fn header_matcher(name: &str, specifier: HeaderMatchSpecifier) -> HeaderMatcher {
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn cidr(ip: std::net::IpAddr, length: u8) -> core::CidrRange {
    core::CidrRange { address_prefix: ip.to_string(), prefix_len: Some(UInt32Value { value: length.into() }) }
}

fn who(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn authenticated(name: StringMatcher) -> Principal {
    who(Identifier::Authenticated(principal::Authenticated { principal_name: Some(name) }))
}

fn not_principal(principal: Principal) -> Principal {
    who(Identifier::NotId(Box::new(principal)))
}

fn all_principals(mut ids: Vec<Principal>) -> Principal {
    match (ids.pop(), ids.is_empty()) {
        (None, _) => who(Identifier::Any(true)),
        (Some(only), true) => only,
        (Some(last), false) => {
            ids.push(last);
            who(Identifier::AndIds(principal::Set { ids }))
        }
    }
}

fn any_principal(mut ids: Vec<Principal>) -> Principal {
    match (ids.pop(), ids.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            ids.extend(last);
            who(Identifier::OrIds(principal::Set { ids }))
        }
    }
}

fn what(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn not_permission(permission: Permission) -> Permission {
    what(Rule::NotRule(Box::new(permission)))
}

fn all_permissions(mut rules: Vec<Permission>) -> Permission {
    match (rules.pop(), rules.is_empty()) {
        (None, _) => what(Rule::Any(true)),
        (Some(only), true) => only,
        (Some(last), false) => {
            rules.push(last);
            what(Rule::AndRules(permission::Set { rules }))
        }
    }
}

fn any_permission(mut rules: Vec<Permission>) -> Permission {
    match (rules.pop(), rules.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            rules.extend(last);
            what(Rule::OrRules(permission::Set { rules }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_with_a_dot_and_where_no_port_is_asked_for_with_any() {
        let exact = |host: &str| Value::Exact(host.to_owned());
        for (value, fit, others) in [
            (exact("shop"), &["shop", "SHOP", "shop.", "shop:80", "shop.:80", "shop:"][..], &["shop.x", "xshop"][..]),
            (exact("shop:80"), &["shop:80", "Shop.:80"], &["shop", "shop:8080", "shop:80:80"]),
            (Value::Prefix("shop:8".into()), &["shop:80", "shop.:8"], &["shop", "shop:9"]),
            (Value::Suffix(".a:80".into()), &["x.a:80", "x.a.:80"], &["x.a", "x.a:8080"]),
            (exact("[::1]"), &["[::1]", "[::1]:80"], &["[::1"]),
        ] {
            let expression = regex::Regex::new(&format!("^(?:{})$", host_expression(&value))).unwrap();
            for host in fit {
                assert!(expression.is_match(host), "{value:?} {host}");
            }
            for host in others {
                assert!(!expression.is_match(host), "{value:?} {host}");
            }
        }
    }

    #[test]
    fn all_texts_but_those_of_a_value() {
        let texts = ["", "a", "ab", "abc", "b", "ba", "cab", "a.", "ab\n", "\n", "AB", "ä", "abä", ".", "a+"];
        for value in ["ab", "a.", "ä", "b", "a+"].map(str::to_owned) {
            for value in [Value::Exact(value.clone()), Value::Prefix(value.clone()), Value::Suffix(value)] {
                let others = regex::bytes::Regex::new(&format!("(?-u)^(?:{})$", others(&value))).unwrap();
                for text in texts {
                    let fits = match &value {
                        Value::Exact(exact) => text == exact,
                        Value::Prefix(prefix) => text.starts_with(prefix.as_str()),
                        Value::Suffix(suffix) => text.ends_with(suffix.as_str()),
                        _ => unreachable!(),
                    };
                    assert_eq!(others.is_match(text.as_bytes()), !fits, "{value:?} {text:?}");
                }
            }
        }
    }
}
