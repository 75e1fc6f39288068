//! `RequestRules` (policy.mesh-control/v1alpha1): rules on requests without code. A condition in CEL, and what becomes of those
//! requests: they are refused, or headers of theirs and of their answers change; or an external processor that says it. An object of
//! our own, since Istio has none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::{CelExpression, ExtProc, RequestRule};
use mesh_core::xds::decode::request_rule;
use serde_json::{Map, Value as Json, json};

use super::rate_limit::{Fault, WhoseRequests, check_mode, is_named_again, report};
use super::rate_limit_service::{FailureMode, called_at};
use crate::config::decode::{At, Decode, Decoder, PortNumber, Text, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::security::{Selector, TargetRef, check_whom};
use crate::config::node::Node;
use crate::config::schema::Schema;

message! {
    /// The specification.
    pub struct RequestRulesSpec {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Which of their requests.
        mode: WhoseRequests = "mode",
        /// Of those that they make, which: those to these hosts; absent means all.
        hosts: Vec<Text> = "hosts",
        /// The rules, in the order in which requests pass them.
        rules: Vec<Rule> = "rules",
        /// In the place of rules, who is shown requests and answers, and says what becomes of them.
        processor: Option<Processor> = "processor",
    }
    /// An external processor, of Envoy's protocol.
    pub struct Processor {
        /// A host of the mesh, by its full name.
        host: Text = "host" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// How long it may take for each head; absent means 200 ms.
        timeout: Option<At<Duration>> = "timeout",
        /// What becomes of what it has no word on; absent means that it is refused.
        failure_mode: Option<FailureMode> = "failureMode",
        /// Whether it is shown the heads of requests; absent means that it is.
        request: Option<bool> = "request",
        /// Whether it is shown the heads of their answers; absent means that it is.
        response: Option<bool> = "response",
    }
    /// What becomes of some requests.
    pub struct Rule {
        /// Its name, for logs and people.
        name: Text = "name" required,
        /// Which requests: those of which this holds, in CEL; absent means all.
        when: Option<Text> = "when",
        /// They pass: the rules after it are not asked about them.
        allow: Option<At<bool>> = "allow",
        /// They are refused.
        deny: Option<Deny> = "deny",
        /// Their headers change, and those of their answers.
        headers: Headers = "headers",
    }
    /// How requests are refused.
    pub struct Deny {
        /// The status.
        status: Option<At<u16>> = "status",
        /// What is said.
        body: Option<String> = "body",
    }
    /// Changes to headers.
    pub struct Headers {
        /// Of requests.
        request: Changes = "request",
        /// Of their answers.
        response: Changes = "response",
    }
    /// Changes to headers of one direction.
    pub struct Changes {
        /// They have this value, and no other.
        set: BTreeMap<String, String> = "set",
        /// They are taken off.
        remove: Vec<String> = "remove",
    }
}

/// Rules on requests.
#[derive(Clone, Debug, Default)]
pub struct RequestRules {
    /// Where it is written.
    pub span: Span,
    /// The workloads; absent means all of the namespace.
    pub selector: Option<Selector>,
    /// The objects whose workloads are meant.
    pub target_refs: Vec<TargetRef>,
    /// Whose requests.
    pub mode: WhoseRequests,
    /// Of a client's, those to these hosts; none for all.
    pub hosts: Vec<String>,
    /// The rules, as the data plane reads them.
    pub rules: Arc<Json>,
    /// Whether one of them refuses requests.
    pub refuses: bool,
    /// Those that ask what tokens say, by their places.
    pub of_tokens: Vec<usize>,
    /// In the place of rules, who says what becomes of requests.
    pub processor: Option<Arc<ExtProc>>,
}

impl Decode for RequestRules {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let spec = RequestRulesSpec::decode(node, d)?;
        let mut faults = Vec::new();
        check_mode(spec.mode, &spec.hosts, &mut faults);
        match &spec.processor {
            None if spec.rules.is_empty() => {
                faults.push((spec.span, "rules".to_owned(), "there is no rule".to_owned()));
            }
            Some(processor) if !spec.rules.is_empty() => {
                let message = "beside rules: an object of its own says it, and their names in which order they come";
                faults.push((processor.span, "processor".to_owned(), message.to_owned()));
            }
            Some(processor) if spec.mode == WhoseRequests::Client => {
                let message = "a processor is shown requests that come in, and so for mode SERVER";
                faults.push((processor.span, "processor".to_owned(), message.to_owned()));
            }
            _ => {}
        }
        let processor = spec.processor.as_ref().map(|processor| Arc::new(processor.read(&mut faults)));
        let (mut rules, mut of_tokens) = (Vec::new(), Vec::new());
        let mut refused_by: Option<&Rule> = None;
        for (index, rule) in spec.rules.iter().enumerate() {
            let at = format!("rules[{index}]");
            if rule.name.is_empty() {
                faults.push((rule.name.span, format!("{at}.name"), "a rule has a name".to_owned()));
            }
            is_named_again(&rule.name, spec.rules.iter().take(index).map(|other| &other.name), &at, &mut faults);
            if let Some(allow) = rule.allows().filter(|_| index + 1 == spec.rules.len()) {
                faults.push((allow.span, format!("{at}.allow"), "there is no rule after it".to_owned()));
            }
            let json = rule.json();
            let read = request_rule(&json);
            if let Ok(read) = &read {
                if let Some((severity, code, message)) = idle(read, refused_by) {
                    d.report_at(rule.place("when"), at.clone(), severity, code, message);
                }
                if read.deny.is_some() && always(read) == Some(true) {
                    refused_by = refused_by.or(Some(rule));
                }
            }
            match read {
                Ok(read) if !read.when.as_ref().is_some_and(CelExpression::needs_token) => {}
                Ok(_) if spec.mode == WhoseRequests::Client => {
                    let message = "claims are known of requests that come in, and so for mode SERVER: of one that is made \
                                   nobody has looked at a token";
                    faults.push((rule.place("when"), format!("{at}.when"), message.to_owned()));
                }
                Ok(_) => of_tokens.push(index),
                Err(invalid) => {
                    faults.push((rule.place(&invalid.field), format!("{at}.{}", invalid.field), invalid.reason));
                }
            }
            rules.push(json);
        }
        report(&faults, d);
        faults.is_empty().then(|| RequestRules {
            span: spec.span,
            selector: spec.selector,
            target_refs: spec.target_refs,
            mode: spec.mode,
            hosts: spec.hosts.into_iter().map(|host| host.value).collect(),
            refuses: spec.rules.iter().any(|rule| rule.deny.is_some())
                || processor.as_ref().is_some_and(|processor| !processor.fail_open),
            rules: Arc::new(json!({"rules": rules})),
            of_tokens,
            processor,
        })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        RequestRulesSpec::fields(prefix, out);
    }

    fn schema() -> Schema {
        RequestRulesSpec::schema()
    }
}

/// Whether a rule is for every request, or for none, whatever comes; `None` where that is for requests to say.
fn always(rule: &RequestRule) -> Option<bool> {
    rule.when.as_ref().map_or(Some(true), CelExpression::always)
}

/// What is said of a rule that is for no request: none is left by an earlier one that refuses every request, or it says so itself.
fn idle(rule: &RequestRule, refused_by: Option<&Rule>) -> Option<(Severity, Code, String)> {
    if rule.looks_at_answer() {
        return None;
    }
    match (refused_by, always(rule)) {
        (Some(first), _) => {
            let message = format!("never asked: {} refuses every request", quoted(&first.name));
            Some((Severity::Warning, Code::Conflict, message))
        }
        // As a rule, somebody has taken it out of force so.
        (None, Some(false)) => Some((Severity::Info, Code::Advice, "it is for no request, whatever comes".to_owned())),
        (None, _) => None,
    }
}

impl RequestRules {
    /// What is wrong with whom it is for.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), &self.target_refs, d);
    }
}

impl Processor {
    fn read(&self, faults: &mut Vec<Fault>) -> ExtProc {
        let (address, timeout) = called_at(&self.host, self.port, self.timeout.as_ref(), "processor", faults);
        let mut config = ExtProc::new(address);
        config.timeout = timeout.unwrap_or(config.timeout);
        config.fail_open = self.failure_mode == Some(FailureMode::Allow);
        (config.request, config.response) = (self.request.unwrap_or(true), self.response.unwrap_or(true));
        if !(config.request || config.response) {
            faults.push((self.span, "processor".to_owned(), "it is shown neither requests nor answers".to_owned()));
        }
        config
    }
}

impl Rule {
    /// As the data plane reads it.
    fn json(&self) -> Json {
        let mut rule = Map::from_iter([("name".to_owned(), Json::from(self.name.as_str()))]);
        let mut put = |name: &str, value: Json| drop(rule.insert(name.to_owned(), value));
        if let Some(when) = &self.when {
            put("when", when.as_str().into());
        }
        if self.allows().is_some() {
            put("allow", true.into());
        }
        if let Some(deny) = &self.deny {
            let status = deny.status.iter().map(|status| ("status".to_owned(), status.value.into()));
            let body = deny.body.iter().map(|body| ("body".to_owned(), body.as_str().into()));
            put("deny", Json::Object(status.chain(body).collect()));
        }
        for (side, changes) in [("request", &self.headers.request), ("response", &self.headers.response)] {
            if !(changes.set.is_empty() && changes.remove.is_empty()) {
                put(side, json!({"set": changes.set, "remove": changes.remove}));
            }
        }
        Json::Object(rule)
    }

    /// That it allows, where it does.
    fn allows(&self) -> Option<&At<bool>> {
        self.allow.as_ref().filter(|allow| allow.value)
    }

    /// Where a field is written, or else the rule.
    fn place(&self, field: &str) -> Span {
        let when = || self.when.as_ref().map(|when| when.span);
        let status = || Some(self.deny.as_ref()?.status.as_ref()?.span);
        let place = match field {
            "when" => when(),
            "allow" => self.allows().map(|allow| allow.span),
            "deny.status" => status(),
            "headers" => Some(self.headers.span),
            _ => None,
        };
        place.unwrap_or(self.span)
    }
}
