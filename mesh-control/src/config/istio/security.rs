//! `PeerAuthentication`, `RequestAuthentication` and `AuthorizationPolicy` (security.istio.io): who may talk to a workload,
//! and how.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, Uri};
use mesh_core::model::JwkSet;

use super::{authorization, check_labels};
use crate::config::decode::{Decoder, Text, keywords, message};
use crate::config::diagnostic::{Code, Origin, Severity, Span, quoted};
use crate::config::locate::locate;

/// What is said of keys in plaintext, where nobody has allowed them.
pub const PLAINTEXT_KEYS: &str = "keys are fetched over https:// only, unless mesh-control is told --jwks-allow-insecure: the \
                                  tokens of this issuer are refused";

message! {
    /// Whether connections must be mutual TLS.
    pub struct PeerAuthentication {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// For every port.
        mtls: MutualTls = "mtls",
        /// For ports of the workload, by number.
        port_level_mtls: BTreeMap<String, MutualTls> = "portLevelMtls",
    }
    /// A selection by labels.
    pub struct Selector {
        /// Labels that must all be there.
        match_labels: BTreeMap<String, String> = "matchLabels",
    }
    /// Mutual TLS.
    pub struct MutualTls {
        /// Whether.
        mode: MtlsMode = "mode",
    }
    /// Which tokens are good.
    pub struct RequestAuthentication {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The object whose workloads are meant.
        target_ref: Option<TargetRef> = "targetRef",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Who issues tokens.
        jwt_rules: Vec<JwtRule> = "jwtRules",
    }
    /// An object by its name.
    pub struct TargetRef {
        /// Its group; empty for `Service`.
        group: String = "group",
        /// Its kind.
        kind: Text = "kind" required,
        /// Its name.
        name: Text = "name" required,
        /// Its namespace, which must be the policy's.
        namespace: String = "namespace",
    }
    /// An issuer of tokens.
    pub struct JwtRule {
        /// Its name.
        issuer: String = "issuer",
        /// For whom its tokens are.
        audiences: Vec<String> = "audiences",
        /// Where its keys are.
        jwks_uri: Option<String> = "jwksUri" | "jwks_uri",
        /// Its keys.
        jwks: Option<String> = "jwks",
        /// Headers that have the token.
        from_headers: Vec<JwtHeader> = "fromHeaders",
        /// Query parameters that have the token.
        from_params: Vec<String> = "fromParams",
        /// Cookies that have the token.
        from_cookies: Vec<String> = "fromCookies",
        /// The header in which the application finds the payload.
        output_payload_to_header: Option<String> = "outputPayloadToHeader",
        /// Whether the application sees the token.
        forward_original_token: Option<bool> = "forwardOriginalToken",
        /// Headers in which the application finds claims.
        output_claim_to_headers: Vec<ClaimToHeader> = "outputClaimToHeaders",
        /// How long fetching keys may take.
        timeout: Option<Duration> = "timeout",
        /// Claims that are lists of words.
        space_delimited_claims: Vec<String> = "spaceDelimitedClaims",
    }
    /// A header that has a token.
    pub struct JwtHeader {
        /// Its name.
        name: String = "name" required,
        /// What stands before the token.
        prefix: String = "prefix",
    }
    /// A header with a claim.
    pub struct ClaimToHeader {
        /// Its name.
        header: String = "header",
        /// The claim.
        claim: String = "claim",
    }
    /// Who may do what.
    pub struct AuthorizationPolicy {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The object whose workloads are meant.
        target_ref: Option<TargetRef> = "targetRef",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Which requests.
        rules: Vec<Rule> = "rules",
        /// What happens to them.
        action: Action = "action",
        /// Who is asked.
        provider: Option<Provider> = "provider",
    }
    /// Which requests: all that fit in every part.
    pub struct Rule {
        /// From any of these.
        from: Option<Vec<From>> = "from",
        /// To any of these.
        to: Option<Vec<To>> = "to",
        /// If all of these hold.
        when: Option<Vec<Condition>> = "when",
    }
    /// Where a request comes from.
    pub struct From {
        /// All of this holds.
        source: Source = "source",
    }
    /// Where a request comes from.
    pub struct Source {
        /// Identities of certificates.
        principals: Option<Vec<String>> = "principals",
        /// None of these.
        not_principals: Option<Vec<String>> = "notPrincipals",
        /// Identities of tokens.
        request_principals: Option<Vec<String>> = "requestPrincipals",
        /// None of these.
        not_request_principals: Option<Vec<String>> = "notRequestPrincipals",
        /// Namespaces.
        namespaces: Option<Vec<String>> = "namespaces",
        /// None of these.
        not_namespaces: Option<Vec<String>> = "notNamespaces",
        /// Addresses of the peer.
        ip_blocks: Option<Vec<String>> = "ipBlocks",
        /// None of these.
        not_ip_blocks: Option<Vec<String>> = "notIpBlocks",
        /// Addresses of the client.
        remote_ip_blocks: Option<Vec<String>> = "remoteIpBlocks",
        /// None of these.
        not_remote_ip_blocks: Option<Vec<String>> = "notRemoteIpBlocks",
        /// Service accounts.
        service_accounts: Option<Vec<String>> = "serviceAccounts",
        /// None of these.
        not_service_accounts: Option<Vec<String>> = "notServiceAccounts",
        /// Trust domains.
        trust_domains: Option<Vec<String>> = "trustDomains",
        /// None of these.
        not_trust_domains: Option<Vec<String>> = "notTrustDomains",
    }
    /// What a request is for.
    pub struct To {
        /// All of this holds.
        operation: Operation = "operation",
    }
    /// What a request is for.
    pub struct Operation {
        /// Authorities.
        hosts: Option<Vec<String>> = "hosts",
        /// None of these.
        not_hosts: Option<Vec<String>> = "notHosts",
        /// Ports.
        ports: Option<Vec<String>> = "ports",
        /// None of these.
        not_ports: Option<Vec<String>> = "notPorts",
        /// Methods.
        methods: Option<Vec<String>> = "methods",
        /// None of these.
        not_methods: Option<Vec<String>> = "notMethods",
        /// Paths.
        paths: Option<Vec<String>> = "paths",
        /// None of these.
        not_paths: Option<Vec<String>> = "notPaths",
    }
    /// A condition.
    pub struct Condition {
        /// Of what.
        key: String = "key" required,
        /// One of these.
        values: Option<Vec<String>> = "values",
        /// None of these.
        not_values: Option<Vec<String>> = "notValues",
    }
    /// Who is asked.
    pub struct Provider {
        /// The name under which the mesh knows it.
        name: String = "name",
    }
}

keywords! {
    /// Whether connections must be mutual TLS.
    pub enum MtlsMode {
        /// As the wider policy says.
        Unset = "UNSET",
        /// They are not.
        Disable = "DISABLE",
        /// They may be.
        Permissive = "PERMISSIVE",
        /// They must be.
        Strict = "STRICT",
    }
    /// What happens to a request.
    pub enum Action {
        /// Only such requests are let in.
        Allow = "ALLOW",
        /// Such requests are refused.
        Deny = "DENY",
        /// Such requests are marked.
        Audit = "AUDIT",
        /// Somebody is asked about such requests.
        Custom = "CUSTOM",
    }
}

/// The annotation by which a policy is only tried.
pub const DRY_RUN: &str = "istio.io/dry-run";

impl PeerAuthentication {
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        check_selector(self.span, self.selector.as_ref(), d);
        let origin = Origin { source: d.source().clone(), span: self.span };
        let place = |field: &str| locate(&origin, field).span;
        for port in self.port_level_mtls.keys() {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                let message = format!("{} is not a port", quoted(port));
                let field = format!("portLevelMtls.{port}");
                d.report_at(place(&field), field, Severity::Error, Code::InvalidValue, message);
            }
        }
        if !self.port_level_mtls.is_empty() && selected(self.selector.as_ref()).is_empty() {
            let message = "ports can be told apart only where `selector` names the workloads";
            d.report_at(place("portLevelMtls"), "portLevelMtls", Severity::Error, Code::InvalidValue, message);
        }
    }
}

impl RequestAuthentication {
    /// What Istio's own validation refuses of one in this namespace.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), self.targets(), d);
        self.jwt_rules.iter().for_each(|rule| rule.check(d));
    }

    /// The objects whose workloads are meant.
    pub fn targets(&self) -> Vec<&TargetRef> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }
}

/// Headers of the connection and of framing.
const FRAMING: [&str; 7] = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];

impl JwtRule {
    /// Where the keys are, if that is written. An empty text says nothing, as in protobuf.
    pub fn jwks_uri(&self) -> Option<&str> {
        self.jwks_uri.as_deref().filter(|uri| !uri.is_empty())
    }

    /// The keys that count. Where both are written, they are fetched (Istio).
    pub fn written_keys(&self) -> Option<&str> {
        self.jwks.as_deref().filter(|_| self.jwks_uri().is_none())
    }

    /// What is wrong with a rule, and what of its keys is dropped.
    fn check(&self, d: &mut Decoder<'_>) {
        let mut say = |field: &str, severity, message: String| {
            d.report_at(self.span, format!("jwtRules.{field}"), severity, Code::InvalidValue, message);
        };
        if self.issuer.is_empty() {
            say("issuer", Severity::Error, "must not be empty".to_owned());
        }
        for (field, values) in
            [("audiences", &self.audiences), ("fromParams", &self.from_params), ("fromCookies", &self.from_cookies)]
        {
            if values.iter().any(String::is_empty) {
                say(field, Severity::Error, "must not be empty".to_owned());
            }
        }
        let from = self.from_headers.iter().map(|header| ("fromHeaders", &header.name));
        let to = self.output_claim_to_headers.iter().map(|claim| ("outputClaimToHeaders", &claim.header));
        let payload = self.output_payload_to_header.iter().map(|name| ("outputPayloadToHeader", name));
        for (field, name) in from.chain(to).chain(payload) {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                say(field, Severity::Error, format!("{} is not the name of a header", quoted(name)));
            }
        }
        // As the data plane has it (`mesh_core::xds::decode`).
        let is_framing = |name: &&String| FRAMING.contains(&name.to_ascii_lowercase().as_str());
        for header in self.output_claim_to_headers.iter().map(|claim| &claim.header).filter(is_framing) {
            say("outputClaimToHeaders", Severity::Error, format!("{} is not for claims", quoted(header)));
        }
        for (field, names) in [("fromParams", &self.from_params), ("fromCookies", &self.from_cookies)] {
            for name in names.iter().filter(|name| name.contains(['=', '&', ';', '%', '+', '#', ' '])) {
                say(field, Severity::Error, format!("{} is not a name that can be looked for", quoted(name)));
            }
        }
        if self.output_claim_to_headers.iter().any(|it| it.claim.is_empty()) {
            say("outputClaimToHeaders", Severity::Error, "a claim must not be empty".to_owned());
        }
        let is_https = |url: &str| {
            let uri: Option<Uri> = url.parse().ok();
            let host = uri.as_ref().and_then(Uri::authority).filter(|authority| !authority.as_str().contains('@'));
            host.and(uri.as_ref()?.scheme_str().filter(|scheme| ["http", "https"].contains(scheme)))
                .map(|it| it == "https")
        };
        match (self.jwks_uri(), self.written_keys()) {
            (Some(uri), _) => match is_https(uri) {
                Some(true) => {}
                Some(false) => {
                    say("jwksUri", Severity::Warning, PLAINTEXT_KEYS.to_owned());
                }
                None => {
                    say("jwksUri", Severity::Error, format!("{} is no URL that keys can be fetched from", quoted(uri)))
                }
            },
            (None, None) if is_https(&self.issuer) != Some(true) => {
                let why = format!(
                    "{} is no https:// URL, so that its keys cannot be discovered: its tokens are refused until `jwksUri` or \
                     `jwks` is written",
                    quoted(&self.issuer)
                );
                say("issuer", Severity::Warning, why);
            }
            _ => {}
        }
        if let Some(keys) = self.written_keys() {
            match JwkSet::parse(keys.as_bytes()) {
                Ok(set) => set.remarks().iter().for_each(|it| say("jwks", Severity::Warning, it.clone())),
                Err(invalid) => say("jwks", Severity::Error, invalid.reason),
            }
        }
    }
}

impl AuthorizationPolicy {
    /// What Istio's own validation refuses of one in this namespace, and rules that cannot mean what they say.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), self.targets(), d);
        self.check_action(d);
        authorization::check(self, d);
    }

    /// What cannot stand together with the action (Istio: ValidateAuthorizationPolicy).
    fn check_action(&self, d: &mut Decoder<'_>) {
        let action = match self.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom => "CUSTOM",
        };
        if self.provider.is_some() && self.action != Action::Custom {
            let message = format!("only `action: CUSTOM` asks somebody, and this is {action}");
            d.report_at(self.span, "provider", Severity::Error, Code::InvalidValue, message);
        }
        // Only ALLOW means something without rules: nobody is let in.
        if self.rules.is_empty() && self.action != Action::Allow {
            let severity = if self.action == Action::Audit { Severity::Warning } else { Severity::Error };
            let message = format!("{action} without rules is for no request; `rules: [{{}}]` is for every one");
            d.report_at(self.span, "rules", severity, Code::MissingField, message);
        }
    }

    /// The objects whose workloads are meant.
    pub fn targets(&self) -> Vec<&TargetRef> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }
}

/// The labels that a selector asks for: none means everybody.
pub fn selected(selector: Option<&Selector>) -> BTreeMap<String, String> {
    selector.map(|selector| selector.match_labels.clone()).unwrap_or_default()
}

pub(crate) fn check_selector(span: Span, selector: Option<&Selector>, d: &mut Decoder<'_>) {
    check_labels(&selected(selector), span, "selector.matchLabels", d);
}

const TARGETS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

/// Whether an object of this kind has endpoints that a policy can be for.
pub fn is_workload_target(kind: &str) -> bool {
    matches!(kind, "Service" | "ServiceEntry")
}

/// Whether an object of this kind is a gateway, or several.
pub fn is_gateway_target(kind: &str) -> bool {
    matches!(kind, "Gateway" | "GatewayClass")
}

/// What is wrong with whom an object is for.
pub(crate) fn check_whom<'t>(
    span: Span,
    namespace: &str,
    selector: Option<&Selector>,
    targets: impl IntoIterator<Item = &'t TargetRef>,
    d: &mut Decoder<'_>,
) {
    check_selector(span, selector, d);
    let mut targets = targets.into_iter().peekable();
    if selector.is_some() && targets.peek().is_some() {
        let message = "only one of `selector` and `targetRefs` can be set";
        d.report_at(span, "selector", Severity::Error, Code::InvalidValue, message);
    }
    for target in targets {
        if !target.namespace.is_empty() && target.namespace != namespace {
            let message = format!("{} is not the policy's own namespace, {namespace}", quoted(&target.namespace));
            d.report_at(target.name.span, "targetRefs", Severity::Error, Code::InvalidValue, message);
        }
        if !TARGETS.contains(&(target.group.as_str(), target.kind.as_str())) {
            let what = format!("{} of group {}", quoted(&target.kind), quoted(&target.group));
            let known = TARGETS.map(|(group, kind)| format!("{kind} of group {}", quoted(group))).join(", ");
            let message = format!("{what} is none of {known}");
            d.report_at(target.kind.span, "targetRefs", Severity::Error, Code::InvalidValue, message);
        }
    }
}
