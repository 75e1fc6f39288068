//! What the rules of an `AuthorizationPolicy` ask for, typed; and what is wrong with them. One reading, for whoever checks
//! the object and for whoever enforces it.

use std::net::IpAddr;

use http::HeaderName;

use super::security::{Action, AuthorizationPolicy, Condition as When, Operation, Rule, Source};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, NO_PROXY, Severity, Span, Topic, quoted};

/// One condition: on one fact, with its values or without any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is on.
    pub fact: Fact,
    /// One of these, or none of them.
    pub values: Vec<Value>,
    /// None of them.
    pub is_negated: bool,
}

/// What a condition is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The peer's identity, without `spiffe://`.
    Principal,
    /// The namespace in it.
    Namespace,
    /// The service account in it.
    ServiceAccount,
    /// The trust domain in it.
    TrustDomain,
    /// The address of the peer.
    SourceIp,
    /// The address of the client.
    RemoteIp,
    /// The authority.
    Host,
    /// The port that was connected to.
    Port,
    /// The method.
    Method,
    /// The path.
    Path,
    /// A header.
    Header(String),
    /// The address that was connected to.
    DestinationIp,
    /// The name that TLS was asked for.
    ServerName,
    /// Issuer and subject of the request's token, as `iss/sub`.
    RequestPrincipal,
    /// A claim of that token, by the names that lead to it.
    Claim(Vec<String>),
    /// Something that nobody looks at yet, by its name: attributes of Envoy's filters.
    Unknown(String),
}

impl Fact {
    /// Whether it is one of requests, and not of their connections: where bytes are not looked into, nobody knows it.
    pub fn is_of_requests(&self) -> bool {
        use Fact::{Claim, Header, Host, Method, Path, RequestPrincipal};
        matches!(self, Claim(_) | Header(_) | Host | Method | Path | RequestPrincipal)
    }

    /// Whether it is one of who the client has proven to be.
    pub fn is_of_peers(&self) -> bool {
        matches!(self, Fact::Principal | Fact::Namespace | Fact::ServiceAccount | Fact::TrustDomain)
    }
}

/// What nobody knows of the connections to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// The names that clients ask for: no TLS is spoken.
    pub names: bool,
    /// Who clients are: none shows a certificate.
    pub peers: bool,
}

impl Unseen {
    /// Of plaintext.
    pub const ALL: Unseen = Unseen { names: true, peers: true };
}

impl Condition {
    /// Whether it never holds there: of who is not known, nothing does that lets in.
    fn is_lost(&self, unseen: Unseen, lets_in: bool) -> bool {
        match &self.fact {
            Fact::ServerName => unseen.names && !self.is_negated,
            fact if fact.is_of_peers() => unseen.peers && (lets_in || !self.is_negated),
            _ => false,
        }
    }
}

/// A value that a fact is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Any value.
    Present,
    /// This text.
    Exact(String),
    /// A text that starts so.
    Prefix(String),
    /// A text that ends so.
    Suffix(String),
    /// A path of this form, in Envoy's words: `*` for a segment, `**` for any number of them.
    Template(String),
    /// Addresses that begin with so many bits.
    Ip(IpAddr, u8),
    /// A port.
    Port(u16),
    /// A service account, in a namespace or in the policy's own.
    Account(Option<String>, String),
}

/// A rule: all that fits one of each, where there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Where from.
    pub from: Vec<Vec<Condition>>,
    /// What for.
    pub to: Vec<Vec<Condition>>,
    /// And what else.
    pub when: Vec<Condition>,
}

impl Conditions {
    /// Each of them, wherever it stands.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Condition> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }

    /// Whether it takes a token to fit, or not to.
    pub fn asks_for_tokens(&self) -> bool {
        self.all().any(|condition| matches!(condition.fact, Fact::RequestPrincipal | Fact::Claim(_)))
    }

    /// Whether it takes anything of a request to fit, or not to.
    pub fn ask_about_requests(&self) -> bool {
        self.all().any(|condition| condition.fact.is_of_requests())
    }

    /// The condition by which nobody fits a rule, which lets in or does not, where this is unknown; `None` where somebody may.
    pub fn lost(&self, unseen: Unseen, lets_in: bool) -> Option<&Condition> {
        let of_sources: Option<Vec<_>> = self.from.iter().map(|list| lost(list, unseen, lets_in)).collect();
        lost(&self.when, unseen, lets_in).or_else(|| of_sources?.first().copied())
    }

    /// Whether it may be for a server with one of these ports: it names one of them, or none at all.
    pub fn may_be_at(&self, ports: &[u16]) -> bool {
        let named = self.all().filter(|condition| condition.fact == Fact::Port && !condition.is_negated);
        let mut named = named.flat_map(|condition| &condition.values).peekable();
        named.peek().is_none() || named.any(|value| matches!(value, Value::Port(port) if ports.contains(port)))
    }

    /// Whether every connection fits, of whose requests nothing is known.
    pub fn fit_every_connection(&self) -> bool {
        let is_left_out = |conditions: &[Condition]| conditions.iter().all(|one| one.fact.is_of_requests());
        let fits = |lists: &[Vec<Condition>]| lists.is_empty() || lists.iter().any(|list| is_left_out(list));
        fits(&self.from) && fits(&self.to) && is_left_out(&self.when)
    }
}

fn lost(all: &[Condition], unseen: Unseen, lets_in: bool) -> Option<&Condition> {
    all.iter().find(|condition| condition.is_lost(unseen, lets_in))
}

/// The longest list of values: more are a mistake, and cost every request.
const MOST_VALUES: usize = 4096;

/// What is to be said about a field, and whether the object cannot stand because of it.
struct Said {
    path: String,
    severity: Severity,
    message: String,
}

/// Reads fields, and keeps what is to be said about them.
#[derive(Default)]
struct Reader {
    said: Vec<Said>,
    /// The lists that are on the address of the client.
    of_clients: Vec<String>,
    /// Every list that was read, by its path.
    written: Vec<(String, Condition)>,
}

/// What a rule asks for; `None` where it is wrong, which [`check`] says.
pub fn conditions(rule: &Rule) -> Option<Conditions> {
    let mut reader = Reader::default();
    let read = reader.rule("", rule);
    reader.said.iter().all(|said| said.severity < Severity::Error).then_some(read)
}

/// Each condition of a rule that is right, with its path in the rule: its values are in the order in which they are written.
pub fn written(rule: &Rule) -> Vec<(String, Condition)> {
    let mut reader = Reader::default();
    reader.rule("", rule);
    reader.written
}

/// Says what is wrong with the rules of a policy.
pub fn check(policy: &AuthorizationPolicy, d: &mut Decoder<'_>) {
    for (index, rule) in policy.rules.iter().enumerate() {
        let mut reader = Reader::default();
        let read = reader.rule(&format!("rules[{index}]."), rule);
        if policy.action == Action::Allow && read.from.iter().flatten().chain(&read.when).any(excludes_every_token) {
            let why = "lets nobody in: who brings no token is not known, and everybody else is excluded";
            reader.say(format!("rules[{index}]"), Severity::Warning, why);
        }
        for Said { path, severity, message } in reader.said {
            d.report_at(place(rule, &path), path, severity, Code::InvalidValue, message);
        }
        for path in reader.of_clients {
            let consequence = match policy.action {
                Action::Deny | Action::Custom => "a client that is meant passes, and others may be taken for it",
                Action::Allow => "a client that is meant is refused, and others may be taken for it",
                Action::Audit => "others are told of",
            };
            let message = format!("{NO_PROXY}, and {consequence}; there `ipBlocks` says the same without the doubt");
            d.report_at(place(rule, &path), path, Severity::Warning, Code::InvalidValue, message);
            d.amend(|finding| finding.about(Topic::ClientAddress));
        }
    }
}

/// `notRequestPrincipals: ["*"]`, which is for DENY.
fn excludes_every_token(condition: &Condition) -> bool {
    condition.fact == Fact::RequestPrincipal && condition.is_negated && condition.values.contains(&Value::Present)
}

/// Where a path of a rule is written, as near as it is known.
fn place(rule: &Rule, path: &str) -> Span {
    let index =
        |name: &str| -> Option<usize> { path.split_once(&format!(".{name}["))?.1.split_once(']')?.0.parse().ok() };
    let from = index("from").and_then(|index| Some(rule.from.as_ref()?.get(index)?.source.span));
    let to = index("to").and_then(|index| Some(rule.to.as_ref()?.get(index)?.operation.span));
    let when = index("when").and_then(|index| Some(rule.when.as_ref()?.get(index)?.span));
    from.or(to).or(when).unwrap_or(rule.span)
}

type List = Option<Vec<String>>;

impl Reader {
    fn say(&mut self, path: impl Into<String>, severity: Severity, message: impl Into<String>) {
        self.said.push(Said { path: path.into(), severity, message: message.into() });
    }

    fn rule(&mut self, at: &str, rule: &Rule) -> Conditions {
        let mut read = Conditions::default();
        for (name, is_empty) in [
            ("from", rule.from.as_ref().is_some_and(Vec::is_empty)),
            ("to", rule.to.as_ref().is_some_and(Vec::is_empty)),
            ("when", rule.when.as_ref().is_some_and(Vec::is_empty)),
        ] {
            if is_empty {
                self.say(format!("{at}{name}"), Severity::Error, "an empty list: take it out to mean everything");
            }
        }
        for (index, from) in rule.from.iter().flatten().enumerate() {
            let conditions = self.source(&format!("{at}from[{index}].source"), &from.source);
            read.from.push(conditions);
        }
        for (index, to) in rule.to.iter().flatten().enumerate() {
            let conditions = self.operation(&format!("{at}to[{index}].operation"), &to.operation);
            read.to.push(conditions);
        }
        for (index, when) in rule.when.iter().flatten().enumerate() {
            self.when(&format!("{at}when[{index}]"), when, &mut read.when);
        }
        read
    }

    fn source(&mut self, at: &str, source: &Source) -> Vec<Condition> {
        self.each(
            at,
            [
                ("principals", Fact::Principal, &source.principals),
                ("notPrincipals", Fact::Principal, &source.not_principals),
                ("requestPrincipals", Fact::RequestPrincipal, &source.request_principals),
                ("notRequestPrincipals", Fact::RequestPrincipal, &source.not_request_principals),
                ("namespaces", Fact::Namespace, &source.namespaces),
                ("notNamespaces", Fact::Namespace, &source.not_namespaces),
                ("serviceAccounts", Fact::ServiceAccount, &source.service_accounts),
                ("notServiceAccounts", Fact::ServiceAccount, &source.not_service_accounts),
                ("trustDomains", Fact::TrustDomain, &source.trust_domains),
                ("notTrustDomains", Fact::TrustDomain, &source.not_trust_domains),
                ("ipBlocks", Fact::SourceIp, &source.ip_blocks),
                ("notIpBlocks", Fact::SourceIp, &source.not_ip_blocks),
                ("remoteIpBlocks", Fact::RemoteIp, &source.remote_ip_blocks),
                ("notRemoteIpBlocks", Fact::RemoteIp, &source.not_remote_ip_blocks),
            ],
        )
    }

    fn operation(&mut self, at: &str, operation: &Operation) -> Vec<Condition> {
        self.each(
            at,
            [
                ("hosts", Fact::Host, &operation.hosts),
                ("notHosts", Fact::Host, &operation.not_hosts),
                ("ports", Fact::Port, &operation.ports),
                ("notPorts", Fact::Port, &operation.not_ports),
                ("methods", Fact::Method, &operation.methods),
                ("notMethods", Fact::Method, &operation.not_methods),
                ("paths", Fact::Path, &operation.paths),
                ("notPaths", Fact::Path, &operation.not_paths),
            ],
        )
    }

    fn each<const N: usize>(&mut self, at: &str, lists: [(&str, Fact, &List); N]) -> Vec<Condition> {
        let is_empty = lists.iter().all(|(_, _, list)| list.is_none());
        if is_empty {
            self.say(at, Severity::Error, "says nothing: take it out to mean everything");
        }
        let read = lists
            .into_iter()
            .filter_map(|(name, fact, list)| self.list(format!("{at}.{name}"), fact, list, name.starts_with("not")));
        read.collect()
    }

    fn when(&mut self, at: &str, when: &When, read: &mut Vec<Condition>) {
        if when.values.is_none() && when.not_values.is_none() {
            self.say(at, Severity::Error, "`values` or `notValues` is needed");
        }
        let fact = match fact(&when.key) {
            Ok(fact) => fact,
            Err(message) => return self.say(format!("{at}.key"), Severity::Error, message),
        };
        read.extend(self.list(format!("{at}.values"), fact.clone(), &when.values, false));
        read.extend(self.list(format!("{at}.notValues"), fact, &when.not_values, true));
    }

    fn list(&mut self, at: String, fact: Fact, list: &List, is_negated: bool) -> Option<Condition> {
        let list = list.as_ref()?;
        if list.is_empty() {
            self.say(at, Severity::Error, "an empty list: take it out to mean everything");
            return None;
        }
        if list.len() > MOST_VALUES {
            self.say(at, Severity::Error, format!("more than {MOST_VALUES} values"));
            return None;
        }
        if fact == Fact::RemoteIp {
            self.of_clients.push(at.clone());
        }
        let mut values = Vec::with_capacity(list.len());
        for (index, text) in list.iter().enumerate() {
            match value(&fact, text) {
                Ok((value, None)) => values.push(value),
                Ok((value, Some(warning))) => {
                    self.say(format!("{at}[{index}]"), Severity::Warning, format!("{}: {warning}", quoted(text)));
                    values.push(value);
                }
                Err(message) => {
                    self.say(format!("{at}[{index}]"), Severity::Error, format!("{}: {message}", quoted(text)));
                }
            }
        }
        let condition = Condition { fact, values, is_negated };
        self.written.push((at, condition.clone()));
        Some(condition)
    }
}

/// What a key of `when` is on (Istio: model.go).
fn fact(key: &str) -> Result<Fact, String> {
    if let Some(name) = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
        let lower = name.to_ascii_lowercase();
        return match lower.as_str() {
            ":authority" | "host" => Ok(Fact::Host),
            ":method" => Ok(Fact::Method),
            ":path" => Err("use `paths`, which have no query".to_owned()),
            _ if lower.starts_with("grpc-") || lower.starts_with(':') => {
                Err(format!("{} is not for policies", quoted(name)))
            }
            _ if HeaderName::from_bytes(lower.as_bytes()).is_ok() => Ok(Fact::Header(lower)),
            _ => Err(format!("{} is not the name of a header", quoted(name))),
        };
    }
    Ok(match key {
        "source.ip" => Fact::SourceIp,
        "remote.ip" => Fact::RemoteIp,
        "source.namespace" => Fact::Namespace,
        "source.serviceAccount" => Fact::ServiceAccount,
        "source.trustDomain" => Fact::TrustDomain,
        "source.principal" => Fact::Principal,
        "destination.ip" => Fact::DestinationIp,
        "destination.port" => Fact::Port,
        "connection.sni" => Fact::ServerName,
        "request.auth.principal" => Fact::RequestPrincipal,
        "request.auth.audiences" => Fact::Claim(vec!["aud".to_owned()]),
        "request.auth.presenter" => Fact::Claim(vec!["azp".to_owned()]),
        _ if key.starts_with("request.auth.claims") => Fact::Claim(claim(key)?),
        _ if key.starts_with("experimental.envoy.filters.") => Fact::Unknown(key.to_owned()),
        _ => return Err(format!("{} is not a key of Istio's", quoted(key))),
    })
}

/// The names of a claim: `request.auth.claims[a][b]` is `b` in `a`.
fn claim(key: &str) -> Result<Vec<String>, String> {
    let inside = key.strip_prefix("request.auth.claims[").and_then(|rest| rest.strip_suffix(']'));
    let names: Option<Vec<String>> = inside.map(|inside| inside.split("][").map(str::to_owned).collect());
    names
        .filter(|names| names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])))
        .ok_or_else(|| format!("{} is not request.auth.claims[NAME], or [NAME][NAME]", quoted(key)))
}

type Read = Result<(Value, Option<&'static str>), &'static str>;

/// A value of a fact, and what is to be said of it all the same.
fn value(fact: &Fact, text: &str) -> Read {
    if text.is_empty() {
        return Err("must not be empty");
    }
    match fact {
        Fact::SourceIp | Fact::RemoteIp | Fact::DestinationIp => ip(text).map(|value| (value, None)),
        Fact::Port => match text.parse() {
            Ok(port @ 1..) => Ok((Value::Port(port), None)),
            _ => Err("is not a port from 1 to 65535"),
        },
        Fact::ServiceAccount => account(text).map(|value| (value, None)),
        Fact::Path if text.contains("{*}") || text.contains("{**}") => template(text).map(|value| (value, None)),
        Fact::Path => {
            let is_path = text.starts_with(['/', '*']);
            let warning = "no path begins so, and it never matches";
            pattern(text, true).map(|(value, other)| (value, if is_path { other } else { Some(warning) }))
        }
        Fact::Method => {
            let (value, other) = pattern(text, false)?;
            let is_small = text.bytes().any(|byte| byte.is_ascii_lowercase());
            Ok((value, if is_small { Some("methods have capital letters, and it never matches") } else { other }))
        }
        Fact::Principal if text.starts_with("spiffe://") => Err("a principal is written without `spiffe://`"),
        Fact::RequestPrincipal => {
            let (value, other) = pattern(text, true)?;
            let is_one = text.contains(['/', '*']);
            Ok((value, if is_one { other } else { Some("it is written ISSUER/SUBJECT, and never matches") }))
        }
        Fact::Header(_) | Fact::ServerName | Fact::Claim(_) | Fact::Unknown(_) => pattern(text, true),
        Fact::Principal | Fact::Namespace | Fact::TrustDomain | Fact::Host => pattern(text, false),
    }
}

/// `*` at the start or the end stands for anything, and alone for any value that there is. In the middle it is a star, where
/// values have stars.
fn pattern(text: &str, has_stars: bool) -> Read {
    let value = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Value::Present,
        (Some(suffix), _) => Value::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => Value::Prefix(prefix.to_owned()),
        (None, None) => Value::Exact(text.to_owned()),
    };
    let rest = match &value {
        Value::Suffix(rest) | Value::Prefix(rest) | Value::Exact(rest) => rest,
        _ => "",
    };
    match (rest.contains('*'), has_stars) {
        (false, _) => Ok((value, None)),
        (true, true) => Ok((value, Some("a star that does not stand at one end alone is a star and no wildcard"))),
        (true, false) => Err("a wildcard stands at the start or at the end, and once"),
    }
}

fn ip(text: &str) -> Result<Value, &'static str> {
    const WRONG: &str = "is not an address or a CIDR block";
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| WRONG)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Ok(bits), |length| length.parse().map_err(|_| WRONG))?;
    if length > bits { Err(WRONG) } else { Ok(Value::Ip(address, length)) }
}

fn account(text: &str) -> Result<Value, &'static str> {
    if text.contains('*') {
        return Err("service accounts have no wildcards");
    }
    let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
    let is_name = |name: &str| !name.is_empty() && !name.contains('/');
    if !is_name(name) || !namespace.is_none_or(is_name) {
        return Err("is not NAMESPACE/NAME, or NAME");
    }
    Ok(Value::Account(namespace.map(str::to_owned), name.to_owned()))
}

/// Istio's templates: `{*}` is one segment, `{**}` any number of them, with nothing but literals behind it.
fn template(text: &str) -> Result<Value, &'static str> {
    let rest = text.strip_prefix('/').ok_or("a template begins with /")?;
    let mut has_many = false;
    for segment in rest.split('/') {
        match segment {
            "{*}" | "{**}" if has_many => return Err("behind {**} there are literals only"),
            "{**}" => has_many = true,
            "{*}" => {}
            literal if literal.contains(['*', '{', '}', '?', '#']) => {
                return Err("in a template, { } * ? and # are no parts of a segment");
            }
            _ => {}
        }
    }
    Ok(Value::Template(text.replace("{**}", "**").replace("{*}", "*")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_facts() {
        let exact = |text: &str| Value::Exact(text.to_owned());
        let cases: &[(Fact, &str, Option<Value>)] = &[
            (Fact::Path, "*", Some(Value::Present)),
            (Fact::Path, "/a*", Some(Value::Prefix("/a".into()))),
            (Fact::Path, "*/a", Some(Value::Suffix("/a".into()))),
            (Fact::Path, "/a*b", Some(exact("/a*b"))),
            (Fact::Path, "/a/{*}/b/{**}", Some(Value::Template("/a/*/b/**".into()))),
            (Fact::Path, "/{**}/a", Some(Value::Template("/**/a".into()))),
            (Fact::Path, "/{**}/{*}", None),
            (Fact::Path, "/a{*}", None),
            (Fact::Path, "/{*}/*", None),
            (Fact::Host, "a*b", None),
            (Fact::Host, "*a*", None),
            (Fact::Principal, "td/ns/a/sa/b", Some(exact("td/ns/a/sa/b"))),
            (Fact::Principal, "spiffe://td/ns/a/sa/b", None),
            (Fact::Namespace, "", None),
            (Fact::ServiceAccount, "a/b", Some(Value::Account(Some("a".into()), "b".into()))),
            (Fact::ServiceAccount, "b", Some(Value::Account(None, "b".into()))),
            (Fact::ServiceAccount, "a/*", None),
            (Fact::ServiceAccount, "a/b/c", None),
            (Fact::Port, "80", Some(Value::Port(80))),
            (Fact::Port, "0", None),
            (Fact::Port, "http", None),
            (Fact::SourceIp, "10.0.0.0/8", Some(Value::Ip("10.0.0.0".parse().unwrap(), 8))),
            (Fact::SourceIp, "::1", Some(Value::Ip("::1".parse().unwrap(), 128))),
            (Fact::SourceIp, "10.0.0.0/33", None),
            (Fact::SourceIp, "shop", None),
        ];
        for (fact, text, expected) in cases {
            assert_eq!(value(fact, text).ok().map(|(value, _)| value), *expected, "{fact:?} {text}");
        }
        // What never matches is said.
        for (fact, text) in
            [(Fact::Method, "get"), (Fact::Path, "admin"), (Fact::Path, "/a/*/b"), (Fact::RequestPrincipal, "me")]
        {
            assert!(value(&fact, text).is_ok_and(|(_, warning)| warning.is_some()), "{text}");
        }
    }

    #[test]
    fn keys_of_conditions() {
        assert_eq!(fact("request.headers[X-Role]"), Ok(Fact::Header("x-role".into())));
        assert_eq!(fact("request.headers[Host]"), Ok(Fact::Host));
        let claim = |names: &[&str]| Ok(Fact::Claim(names.iter().map(|name| (*name).to_owned()).collect()));
        assert_eq!(fact("request.auth.principal"), Ok(Fact::RequestPrincipal));
        assert_eq!(fact("request.auth.audiences"), claim(&["aud"]));
        assert_eq!(fact("request.auth.presenter"), claim(&["azp"]));
        assert_eq!(fact("request.auth.claims[group]"), claim(&["group"]));
        assert_eq!(fact("request.auth.claims[https://a.b/roles][x-y]"), claim(&["https://a.b/roles", "x-y"]));
        for inside in ["", "[", "[]", "[a", "a]", "[a][]", "[a]b[c]", "[[a]]", "[a]x"] {
            assert!(fact(&format!("request.auth.claims{inside}")).is_err(), "{inside}");
        }
        for key in ["request.headers[grpc-status]", "request.headers[:scheme]", "request.headers[a b]", "sourceip", ""]
        {
            assert!(fact(key).is_err(), "{key}");
        }
    }
}
