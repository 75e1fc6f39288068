//! `RateLimit` (policy.mesh-control/v1alpha1): how many requests the workloads that it is for take, or make. An object of our
//! own, since Istio has none; what it comes to is Envoy's own local rate limit, or with a `service` its global one
//! (`rate_limit_service.rs`), and an `EnvoyFilter` that says one (`envoy_filter.rs`) comes to the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use mesh_core::limits::KeyedBuckets;
use mesh_core::model::{
    CelExpression, CelFault, ClientPart, DescriptorAction, GlobalRateLimit, LocalRateLimit, LocalRule,
    RateLimit as Counted, RestHeaders, SegmentTemplate, TokenBucket,
};
use mesh_core::request::miscased_method;

use super::rate_limit_service::Service;
use crate::config::decode::{At, Decode, Decoder, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::security::{Selector, TargetRef, check_whom};
use crate::config::node::Node;
use crate::config::schema::Schema;

/// How many values of keys are kept apart where nobody says it.
const KEYS: u32 = 10_000;

/// Envoy takes no shorter interval.
const SHORTEST: Duration = Duration::from_millis(50);

message! {
    /// The specification.
    pub struct RateLimitSpec {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Which of their requests.
        mode: WhoseRequests = "mode",
        /// Of those that they make, which: those to these hosts; absent means all.
        hosts: Vec<Text> = "hosts",
        /// What is counted, and how much of it there may be. A request has to be within all of them that are for it.
        rules: Vec<Rule> = "rules",
        /// Who counts; absent means each process by itself.
        service: Option<Service> = "service",
        /// Whether each connection has its own.
        per_connection: Option<bool> = "perConnection",
        /// How many values of the keys of a rule are kept apart at a time.
        max_keys: Option<At<u32>> = "maxKeys",
        /// What is answered.
        answer: Answer = "answer",
    }
    /// Some requests, and how many of them there may be.
    pub struct Rule {
        /// Its name, for metrics and people.
        name: Text = "name" required,
        /// Which requests; absent means all.
        matches: Match = "match",
        /// What they are told apart by: for each value there may be as many.
        by: Vec<Key> = "by",
        /// How many; absent means as many as the service says.
        limit: Option<Limit> = "limit",
        /// Whether it only counts.
        shadow: Option<bool> = "shadow",
    }
    /// Which requests; all of it has to hold.
    pub struct Match {
        /// Of this method.
        method: Option<Text> = "method",
        /// Whose path fits this template.
        path: Option<Text> = "path",
        /// Whose headers have exactly these values.
        headers: BTreeMap<String, String> = "headers",
    }
    /// What requests are told apart by: one of these.
    pub struct Key {
        /// The first value of a header.
        header: Option<Text> = "header",
        /// The first value of a query parameter.
        query: Option<Text> = "query",
        /// A claim of the request's token; `.` leads into an object.
        claim: Option<Text> = "claim",
        /// The first of these templates that its path fits.
        path_templates: Vec<Text> = "pathTemplates",
        /// Who the client is, by mutual TLS.
        client: Option<ClientWord> = "client",
        /// Where it connected from, or which part of it.
        remote_address: Option<RemoteAddress> = "remoteAddress",
        /// The method.
        method: Option<bool> = "method",
        /// What an expression of CEL comes to.
        expression: Option<Text> = "expression",
    }
    /// The address of the client.
    pub struct RemoteAddress {
        /// How many bits of an IPv4 address count.
        v4_bits: Option<At<u32>> = "v4Bits",
        /// How many bits of an IPv6 address count.
        v6_bits: Option<At<u32>> = "v6Bits",
    }
    /// So many in a time.
    pub struct Limit {
        /// How many.
        requests: At<u32> = "requests" required,
        /// In which time.
        per: At<Duration> = "per" required,
        /// How many at once; absent means as many as in that time.
        burst: Option<At<u32>> = "burst",
    }
    /// What is answered.
    pub struct Answer {
        /// The status of those that are over.
        status: Option<At<u16>> = "status",
        /// What answers tell of what is left.
        headers: RestWord = "headers",
    }
}

keywords! {
    /// Whose requests are meant, of a limit, a quota or rules.
    pub enum WhoseRequests {
        /// Those that workloads serve.
        Server = "SERVER",
        /// Those that they make.
        Client = "CLIENT",
    }
    /// What answers tell of what is left.
    pub enum RestWord {
        /// Nothing.
        None = "NONE",
        /// `RateLimit` and `RateLimit-Policy`.
        RateLimit = "RATE_LIMIT",
        /// `x-ratelimit-*`.
        XRateLimit = "X_RATE_LIMIT",
    }
    /// A part of who a client is.
    pub enum ClientWord {
        /// All of it.
        Principal = "PRINCIPAL",
        /// Its namespace.
        Namespace = "NAMESPACE",
        /// Its service account.
        ServiceAccount = "SERVICE_ACCOUNT",
    }
}

/// A rate limit, whoever wrote it.
#[derive(Clone, Debug, Default)]
pub struct RateLimit {
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
    /// What is to be done, on all ports or on one.
    pub limits: Vec<(Option<u16>, Counter)>,
    /// What requests are counted by that come to a port, or to any: for limits of other objects that do not say it.
    pub counted: Vec<(Option<u16>, Vec<Arc<Counted>>)>,
}

/// Who counts requests.
#[derive(Clone, Debug)]
pub enum Counter {
    /// Each process by itself.
    Process(Arc<LocalRateLimit>),
    /// A service that is asked.
    Service(Arc<GlobalRateLimit>),
}

impl Counter {
    /// What requests are counted by.
    pub fn counted(&self) -> &[Arc<Counted>] {
        match self {
            Counter::Process(limit) => &limit.rate_limits,
            Counter::Service(limit) => &limit.rate_limits,
        }
    }

    /// Whether others have to say what requests are counted by.
    pub fn is_open(&self) -> bool {
        let counts = match self {
            Counter::Process(limit) => !limit.rules.is_empty(),
            Counter::Service(_) => true,
        };
        counts && self.counted().is_empty()
    }

    /// The same, by these where it does not say what requests are counted by.
    pub fn or_by(mut self, counted: &[Arc<Counted>]) -> Counter {
        if self.is_open() {
            match &mut self {
                Counter::Process(limit) => Arc::make_mut(limit).rate_limits = counted.to_vec(),
                Counter::Service(limit) => Arc::make_mut(limit).rate_limits = counted.to_vec(),
            }
        }
        self
    }
}

impl Decode for RateLimit {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let spec = RateLimitSpec::decode(node, d)?;
        let mut faults = Vec::new();
        let limit = match &spec.service {
            Some(service) => Counter::Service(Arc::new(service.limit(&spec, &mut faults))),
            None => Counter::Process(Arc::new(spec.limit(&mut faults))),
        };
        report(&faults, d);
        if !faults.is_empty() {
            return None;
        }
        Some(RateLimit {
            span: spec.span,
            selector: spec.selector,
            target_refs: spec.target_refs,
            mode: spec.mode,
            hosts: spec.hosts.into_iter().map(|host| host.value).collect(),
            limits: vec![(None, limit)],
            counted: Vec::new(),
        })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        RateLimitSpec::fields(prefix, out);
    }

    fn schema() -> Schema {
        RateLimitSpec::schema()
    }
}

impl RateLimit {
    /// What is wrong with whom it is for.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), &self.target_refs, d);
    }
}

/// Where something is wrong, in which field, and what.
pub(super) type Fault = (Span, String, String);

/// Tells them.
pub(super) fn report(faults: &[Fault], d: &mut Decoder<'_>) {
    for (span, field, message) in faults {
        d.report_at(*span, field.clone(), Severity::Error, Code::InvalidValue, message.clone());
        if field.ends_with("match.method") {
            d.amend(|finding| match finding.written().and_then(miscased_method) {
                Some(meant) => finding.instead(meant),
                None => finding,
            });
        }
    }
}

/// Hosts are those of calls.
pub(super) fn check_mode(mode: WhoseRequests, hosts: &[Text], faults: &mut Vec<Fault>) {
    if let (WhoseRequests::Server, Some(host)) = (mode, hosts.first()) {
        faults.push((host.span, "hosts".to_owned(), "hosts are for mode CLIENT".to_owned()));
    }
}

/// Whether an earlier rule has the name of one, which is told.
pub(super) fn is_named_again<'r>(
    name: &Text,
    mut earlier: impl Iterator<Item = &'r Text>,
    at: &str,
    faults: &mut Vec<Fault>,
) -> bool {
    let is_again = earlier.any(|other| other.value == name.value);
    if is_again {
        faults.push((name.span, format!("{at}.name"), format!("another rule is named {}", quoted(name))));
    }
    is_again
}

/// What is wrong with whose requests are counted, and with what each rule tells them apart by.
pub(super) fn check_whose<'r>(
    (span, mode, hosts): (Span, WhoseRequests, &[Text]),
    rules: impl ExactSizeIterator<Item = &'r [Key]>,
    faults: &mut Vec<Fault>,
) {
    check_mode(mode, hosts, faults);
    if rules.len() == 0 {
        faults.push((span, "rules".to_owned(), "there is no rule".to_owned()));
    }
    let keys = rules.enumerate().flat_map(|(rule, by)| by.iter().enumerate().map(move |at| (rule, at)));
    for (rule, (index, key)) in keys.filter(|_| mode == WhoseRequests::Client) {
        if let Some(field) = key.of_servers() {
            let message =
                "known of requests that come in, and so for mode SERVER: no request that is made would be counted";
            faults.push((key.span, format!("rules[{rule}].by[{index}].{field}"), message.to_owned()));
        }
    }
}

impl RateLimitSpec {
    /// What each process counts by itself.
    fn limit(&self, faults: &mut Vec<Fault>) -> LocalRateLimit {
        let mut limit = LocalRateLimit::new("", None);
        (limit.is_exhaustion, limit.tells_when) = (true, true);
        limit.per_connection = self.per_connection.unwrap_or(false);
        if limit.per_connection && self.mode == WhoseRequests::Client {
            let message = "a client has no connection that its requests come by".to_owned();
            faults.push((self.span, "perConnection".to_owned(), message));
        }
        self.check(faults);
        limit.most_keys = self.max_keys.as_ref().map_or(KEYS, |keys| keys.value);
        if let Some(keys) = self.max_keys.as_ref().filter(|keys| !(1..=KeyedBuckets::MOST).contains(&keys.value)) {
            let message = format!("{} is not between 1 and {}", keys.value, KeyedBuckets::MOST);
            faults.push((keys.span, "maxKeys".to_owned(), message));
        }
        limit.tells = self.answer.headers.tells();
        limit.status = self.answer.status(faults);
        let mut ways = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{index}]");
            let Some((mut actions, mut read)) = rule.read(&at, faults) else { continue };
            if let Some((key, value)) = mark(&mut ways, &actions, &read) {
                actions.push(DescriptorAction::Constant { key: Arc::clone(&key), value: Arc::clone(&value) });
                read.entries.push((key, value));
            }
            let earlier = self.rules.iter().take(index).map(|other| &other.name);
            if !is_named_again(&rule.name, earlier, &at, faults)
                && let Some(other) = limit.rules.iter().find(|other| other.entries == read.entries)
            {
                faults.push((rule.span, at, counts_the_same(&other.name)));
            }
            // Rules that ask the same of requests share what is found out: only values differ.
            let counted = Counted::by(actions);
            if !limit.rate_limits.iter().any(|known| **known == counted) {
                limit.rate_limits.push(Arc::new(counted));
            }
            limit.rules.push(read);
        }
        if let Some(message) = too_many_buckets(&limit) {
            faults.push((self.max_keys.as_ref().map_or(self.span, |keys| keys.span), "maxKeys".to_owned(), message));
        }
        limit
    }

    /// What is wrong with it, whoever counts.
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        let keys = self.rules.iter().map(|rule| &*rule.by);
        check_whose((self.span, self.mode, &self.hosts), keys, faults);
    }
}

/// What is said of a limit that would keep more buckets than a process has room for.
pub(super) fn too_many_buckets(limit: &LocalRateLimit) -> Option<String> {
    let keyed = limit.rules.iter().filter(|rule| limit.per_connection || rule.is_keyed()).count();
    let keyed = keyed + usize::from(limit.per_connection && limit.bucket.is_some());
    let are_many = u64::from(limit.most_keys) * keyed as u64 > u64::from(KeyedBuckets::MOST);
    are_many.then(|| format!("{keyed} rules with keys, and {} values of each, are too many buckets", limit.most_keys))
}

/// How rules tell requests apart: what they ask of one, and of which answers they say the value; and an entry of their own.
type Way = (Vec<DescriptorAction>, Vec<bool>, Option<(Arc<str>, Arc<str>)>);

/// What a rule adds to its descriptors, so that they are not those of rules that tell requests apart by the same keys in another
/// way. Of such, only the rule with the very values would count, and for both of its descriptors.
fn mark(ways: &mut Vec<Way>, actions: &[DescriptorAction], rule: &LocalRule) -> Option<(Arc<str>, Arc<str>)> {
    let are_said: Vec<bool> = rule.entries.iter().map(|(_, value)| !value.is_empty()).collect();
    if let Some((.., mark)) = ways.iter().find(|(known, said, _)| known == actions && *said == are_said) {
        return mark.clone();
    }
    let keys = || actions.iter().map(DescriptorAction::key);
    let is_met = ways.iter().any(|(known, ..)| known.iter().map(DescriptorAction::key).eq(keys()));
    // No header, parameter or claim has a key like this.
    let mark = is_met.then(|| (format!("rule={}", rule.name).into(), Arc::clone(&rule.name)));
    ways.push((actions.to_vec(), are_said, mark.clone()));
    mark
}

/// What is said of a rule that an earlier one stands in the way of.
pub(super) fn counts_the_same(earlier: &str) -> String {
    format!(
        "the rule {} counts the same requests; a second limit on them, as one a second beside one an hour, is a RateLimit of its own",
        quoted(earlier)
    )
}

impl Answer {
    /// The status of those that are over.
    pub(super) fn status(&self, faults: &mut Vec<Fault>) -> StatusCode {
        status_of(self.status.as_ref(), "answer.status", StatusCode::TOO_MANY_REQUESTS, faults)
    }
}

/// The status of who is refused, as a field says it; the usual one where it says nothing, or none from 400 to 599, which is told.
pub(super) fn status_of(said: Option<&At<u16>>, field: &str, usual: StatusCode, faults: &mut Vec<Fault>) -> StatusCode {
    let Some(said) = said else { return usual };
    let code = said.value;
    StatusCode::from_u16(code).ok().filter(|_| (400..=599).contains(&code)).unwrap_or_else(|| {
        faults.push((said.span, field.to_owned(), format!("{code} is not a status from 400 to 599")));
        usual
    })
}

impl RestWord {
    pub(super) fn tells(self) -> RestHeaders {
        match self {
            RestWord::None => RestHeaders::None,
            RestWord::RateLimit => RestHeaders::RateLimit,
            RestWord::XRateLimit => RestHeaders::XRateLimit,
        }
    }
}

/// The entries of a descriptor, with their values where those are known.
pub(super) type Entries = Vec<(Arc<str>, Arc<str>)>;

impl Rule {
    /// What finds its requests, and its bucket.
    fn read(&self, at: &str, faults: &mut Vec<Fault>) -> Option<(Vec<DescriptorAction>, LocalRule)> {
        let before = faults.len();
        let (actions, entries) = self.described(at, faults);
        let Some(limit) = &self.limit else {
            faults.push((self.span, format!("{at}.limit"), "missing: without a service, a rule says it".to_owned()));
            return None;
        };
        let bucket = limit.bucket(&format!("{at}.limit"), faults)?;
        let mut rule = LocalRule::new(self.name.as_str(), entries, bucket);
        rule.is_shadow = self.shadow.unwrap_or(false);
        (faults.len() == before).then_some((actions, rule))
    }

    /// What its requests are counted by. Entries have a value where only requests with that are meant.
    pub(super) fn described(&self, at: &str, faults: &mut Vec<Fault>) -> (Vec<DescriptorAction>, Entries) {
        if self.name.is_empty() {
            faults.push((self.name.span, format!("{at}.name"), "a rule has a name".to_owned()));
        }
        let (mut actions, mut entries) = (Vec::new(), Entries::new());
        let is_for_all = self.by.is_empty() && self.matches.is_empty();
        let mut add = |action: DescriptorAction, key: &Arc<str>, value: &str| {
            actions.push(action);
            entries.push((Arc::clone(key), value.into()));
        };
        let header = |key: &Arc<str>, name: &str| DescriptorAction::Header {
            key: Arc::clone(key),
            name: name.into(),
            skip_if_absent: false,
        };
        if let Some(method) = &self.matches.method {
            let key = "method".into();
            if http::Method::from_bytes(method.as_bytes()).is_err() {
                faults.push((method.span, format!("{at}.match.method"), format!("{} is no method", quoted(method))));
            } else if let Some(meant) = miscased_method(method) {
                let message =
                    format!("no request has it, for methods are told apart by their case; did you mean `{meant}`?");
                faults.push((method.span, format!("{at}.match.method"), message));
            }
            add(header(&key, ":method"), &key, method);
        }
        if let Some(path) = &self.matches.path {
            let key = "path".into();
            let templates = templates(std::slice::from_ref(path), &format!("{at}.match.path"), faults);
            add(DescriptorAction::PathTemplate { key: Arc::clone(&key), templates }, &key, path);
        }
        for (name, value) in &self.matches.headers {
            let field = format!("{at}.match.headers[{name}]");
            if let Some(name) = header_name(name, self.matches.span, &field, faults) {
                if value.is_empty() {
                    let message = "an empty value is any: name it in `by`".to_owned();
                    faults.push((self.matches.span, field, message));
                }
                let key = name.as_str().into();
                add(header(&key, name.as_str()), &key, value);
            }
        }
        for action in keyed(&self.by, &format!("{at}.by"), faults) {
            let key = action.key().into();
            add(action, &key, "");
        }
        if is_for_all {
            let key = "generic_key".into();
            add(DescriptorAction::Constant { key: Arc::clone(&key), value: "all".into() }, &key, "all");
        }
        (actions, entries)
    }
}

impl Match {
    fn is_empty(&self) -> bool {
        self.method.is_none() && self.path.is_none() && self.headers.is_empty()
    }
}

impl Limit {
    fn bucket(&self, at: &str, faults: &mut Vec<Fault>) -> Option<TokenBucket> {
        let burst = self.burst.as_ref().unwrap_or(&self.requests);
        if *self.per < SHORTEST {
            faults.push((self.per.span, format!("{at}.per"), format!("shorter than {SHORTEST:?}")));
            return None;
        }
        let bucket = TokenBucket::new(**burst, *self.requests, *self.per);
        let wrong = |invalid: mesh_core::error::Invalid| match invalid.field.as_str() {
            "max_tokens" if self.burst.is_some() => (burst.span, format!("{at}.burst"), invalid.reason),
            "max_tokens" | "tokens_per_fill" => (self.requests.span, format!("{at}.requests"), invalid.reason),
            _ => (self.per.span, format!("{at}.per"), invalid.reason),
        };
        bucket.map_err(|invalid| faults.push(wrong(invalid))).ok()
    }
}

/// What requests are told apart by, in order.
pub(super) fn keyed(by: &[Key], at: &str, faults: &mut Vec<Fault>) -> Vec<DescriptorAction> {
    let mut found = Vec::new();
    for (index, key) in by.iter().enumerate() {
        let at = format!("{at}[{index}]");
        found.extend(key.actions(&at, faults));
        let parts = key.parts();
        let said: Vec<String> = parts.iter().filter(|(_, is_said)| *is_said).map(|(part, _)| quoted(part)).collect();
        let message = match said.as_slice() {
            [_] => continue,
            [] => format!("it has one of {}", parts.map(|(part, _)| part).join(", ")),
            several => format!("it has one of {}: each tells requests apart as an item of its own", several.join(", ")),
        };
        faults.push((key.span, at, message));
    }
    found
}

impl Key {
    /// What it may have, of which it has one thing, and whether it does.
    fn parts(&self) -> [(&'static str, bool); 8] {
        [
            ("header", self.header.is_some()),
            ("query", self.query.is_some()),
            ("claim", self.claim.is_some()),
            ("client", self.client.is_some()),
            ("remoteAddress", self.remote_address.is_some()),
            ("pathTemplates", !self.path_templates.is_empty()),
            ("method: true", self.method == Some(true)),
            ("expression", self.expression.is_some()),
        ]
    }

    /// Which field of it says something that only a server knows of a request.
    fn of_servers(&self) -> Option<&'static str> {
        let said = [
            ("claim", self.claim.is_some()),
            ("client", self.client.is_some()),
            ("remoteAddress", self.remote_address.is_some()),
            ("expression", self.read_expression().is_some_and(|read| read.is_ok_and(|it| it.needs_token()))),
        ];
        said.into_iter().find(|(_, is_said)| *is_said).map(|(field, _)| field)
    }

    fn read_expression(&self) -> Option<Result<CelExpression, CelFault>> {
        self.expression.as_ref().map(|text| CelExpression::key(text))
    }

    /// What it says: one, where it is right.
    fn actions(&self, at: &str, faults: &mut Vec<Fault>) -> Vec<DescriptorAction> {
        let mut found = Vec::new();
        let skip_if_absent = false;
        if let Some(header) = &self.header
            && let Some(name) = header_name(header, header.span, &format!("{at}.header"), faults)
        {
            let key: Arc<str> = name.as_str().into();
            found.push(DescriptorAction::Header { name: Arc::clone(&key), key, skip_if_absent });
        }
        if let Some(query) = &self.query {
            if query.is_empty() {
                faults.push((query.span, format!("{at}.query"), "a parameter has a name".to_owned()));
            }
            let (key, name) = (format!("query.{}", query.value).into(), query.as_str().into());
            found.push(DescriptorAction::Query { key, name, skip_if_absent });
        }
        if let Some(claim) = &self.claim {
            let key = format!("claim.{}", claim.value).into();
            let path: Vec<String> = claim.split('.').map(str::to_owned).collect();
            if path.iter().any(String::is_empty) {
                faults.push((claim.span, format!("{at}.claim"), format!("{} is no claim", quoted(claim))));
            }
            found.push(DescriptorAction::Claim { key, path, default: None, skip_if_absent });
        }
        if !self.path_templates.is_empty() {
            let templates = templates(&self.path_templates, &format!("{at}.pathTemplates"), faults);
            found.push(DescriptorAction::PathTemplate { key: "path".into(), templates });
        }
        if let Some(part) = self.client {
            let part = match part {
                ClientWord::Principal => ClientPart::Principal,
                ClientWord::Namespace => ClientPart::Namespace,
                ClientWord::ServiceAccount => ClientPart::ServiceAccount,
            };
            let key = format!("client.{}", part.name()).into();
            found.push(DescriptorAction::Client { key, part });
        }
        if let Some(address) = &self.remote_address {
            let mut bits = |bits: &Option<At<u32>>, most: u8, name: &str| match bits {
                None => most,
                Some(bits) => u8::try_from(bits.value).ok().filter(|bits| *bits <= most).unwrap_or_else(|| {
                    let message = format!("{} is more than {most} bits", bits.value);
                    faults.push((bits.span, format!("{at}.remoteAddress.{name}"), message));
                    most
                }),
            };
            let (v4_bits, v6_bits) = (bits(&address.v4_bits, 32, "v4Bits"), bits(&address.v6_bits, 128, "v6Bits"));
            found.push(match (v4_bits, v6_bits) {
                (32, 128) => DescriptorAction::RemoteAddress,
                _ => DescriptorAction::MaskedRemoteAddress { v4_bits, v6_bits },
            });
        }
        match self.read_expression() {
            None => {}
            Some(Ok(expression)) => {
                let (key, expression) = (format!("expression.{}", expression.text()).into(), Arc::new(expression));
                found.push(DescriptorAction::Expression { key, expression, skip_if_absent });
            }
            Some(Err(why)) => {
                let span = self.expression.as_ref().map_or(self.span, |text| text.span);
                faults.push((span, format!("{at}.expression"), why.to_string()));
            }
        }
        if self.method == Some(true) {
            let (key, name) = ("method".into(), ":method".into());
            found.push(DescriptorAction::Header { key, name, skip_if_absent });
        }
        found
    }
}

fn header_name(name: &str, span: Span, field: &str, faults: &mut Vec<Fault>) -> Option<HeaderName> {
    let read = HeaderName::from_bytes(name.as_bytes());
    read.map_err(|_| faults.push((span, field.to_owned(), format!("{} is no name of a header", quoted(name))))).ok()
}

fn templates(written: &[Text], field: &str, faults: &mut Vec<Fault>) -> Vec<(Arc<str>, SegmentTemplate)> {
    let read = written.iter().filter_map(|text| match SegmentTemplate::parse(text) {
        Ok(template) => Some((text.as_str().into(), template)),
        Err(reason) => {
            faults.push((text.span, field.to_owned(), format!("{}: {reason}", quoted(text))));
            None
        }
    });
    read.collect()
}
