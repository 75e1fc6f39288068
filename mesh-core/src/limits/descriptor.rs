//! The descriptors of a request: what it is counted by (`envoy.config.route.v3.RateLimit.Action`). Nothing is allocated:
//! values are those of the request, and what has to be written first is short.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::error::Invalid;
use crate::identity::SpiffeId;
use crate::jwt::Claims;
use crate::matcher::{Field, header_matches, template_matches};
use crate::model::{CelExpression, ClientPart, DescriptorAction, HeaderTest, LimitOverride, QueryTest, RateLimit};
use crate::request::RequestHead;

/// What expressions come to for a request.
pub trait Tells {
    /// What one comes to, as a text; `None` where nothing is known of what it asks for.
    fn tell(&self, expression: &CelExpression) -> Option<String>;
}

/// What is known of a request that is to be counted.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct LimitedRequest<'r> {
    /// Its head.
    pub head: RequestHead<'r>,
    /// The service that this process is; empty where nobody said.
    pub source_cluster: &'r str,
    /// Where its route sends it; empty on a server.
    pub destination_cluster: &'r str,
    /// Where its client connected from.
    pub remote: Option<IpAddr>,
    /// Who its client is.
    pub client: Option<&'r SpiffeId>,
    /// What its tokens say.
    pub tokens: &'r [Claims],
    /// What expressions come to; `None`: nothing.
    pub tells: Option<&'r dyn Tells>,
}

impl fmt::Debug for LimitedRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedRequest").field("head", &self.head).field("client", &self.client).finish_non_exhaustive()
    }
}

impl<'r> LimitedRequest<'r> {
    /// A request of which its head is known.
    pub fn new(head: RequestHead<'r>) -> Self {
        let (remote, client, tells) = (None, None, None);
        LimitedRequest { head, source_cluster: "", destination_cluster: "", remote, client, tokens: &[], tells }
    }
}

/// What a request is counted by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptor<'r> {
    /// Its entries, in the order of the actions.
    pub entries: Entries<'r>,
    /// How many hits the request is; `None`: as many as the filter says.
    pub hits: Option<u64>,
    /// Whether they are given back.
    pub gives_back: bool,
    /// The limit that its route says.
    pub limit: Option<LimitOverride>,
}

/// The entries of a descriptor.
pub type Entries<'r> = SmallVec<[Entry<'r>; 4]>;

/// The values of a descriptor's entries.
pub(super) type Values<'r> = SmallVec<[&'r [u8]; 4]>;

/// One entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'r> {
    /// Its key.
    pub key: &'r str,
    /// Its value.
    pub value: Value<'r>,
}

/// Longer texts are told by their hash.
const LONGEST_TEXT: usize = 256;

/// The value of an entry: bytes, since headers need not be text.
#[derive(Clone, Debug)]
pub enum Value<'r> {
    /// As the request or the configuration has it.
    Borrowed(&'r [u8]),
    /// Written for it.
    Made(SmallVec<[u8; 64]>),
}

impl Value<'_> {
    /// Its bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Value::Borrowed(bytes) => bytes,
            Value::Made(bytes) => bytes,
        }
    }

    /// As text, for those who know text only. What is none, and what is longer than 256 bytes, is told by its hash: whoever sends
    /// it takes no more room than others do.
    pub fn to_text(&self) -> Cow<'_, str> {
        let bytes = self.as_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) if text.len() <= LONGEST_TEXT => Cow::Borrowed(text),
            _ => Cow::Owned(format!("#{:016x}{:016x}", xxh64(bytes, 0), xxh64(bytes, 1))),
        }
    }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value<'_> {}

/// Makes the descriptor of each request.
#[derive(Clone, Debug)]
pub struct DescriptorMaker {
    actions: Box<[Action]>,
    limit: Arc<RateLimit>,
}

/// An action, with what it takes to carry it out. As in the model otherwise.
#[derive(Clone, Debug)]
enum Action {
    Header(Arc<str>, Field, bool),
    HeaderMatch(Arc<str>, Arc<str>, bool, Box<[(Field, HeaderTest)]>),
    Other(DescriptorAction),
}

/// What an action comes to.
enum Yield<'r> {
    Entry(Entry<'r>),
    /// Nothing, and the others count.
    Skipped,
    /// Nothing, and there is no descriptor.
    Nothing,
}

impl DescriptorMaker {
    /// By this configuration; the unusable name of a header is invalid.
    pub fn new(limit: &Arc<RateLimit>) -> Result<Self, Invalid> {
        let actions = limit.actions.iter().map(|action| {
            Ok(match action {
                DescriptorAction::Header { key, name, skip_if_absent } => {
                    Action::Header(Arc::clone(key), Field::named(name)?, *skip_if_absent)
                }
                DescriptorAction::HeaderMatch { key, value, expects, tests } => {
                    let tests = tests.iter().map(|test| Ok((Field::of(test)?, test.clone())));
                    let tests = tests.collect::<Result<_, Invalid>>()?;
                    Action::HeaderMatch(Arc::clone(key), Arc::clone(value), *expects, tests)
                }
                other => Action::Other(other.clone()),
            })
        });
        Ok(DescriptorMaker { actions: actions.collect::<Result<_, Invalid>>()?, limit: Arc::clone(limit) })
    }

    /// What it was made of.
    pub fn config(&self) -> &Arc<RateLimit> {
        &self.limit
    }

    /// What a request is counted by; `None` where an action yields nothing, or all are skipped.
    #[inline]
    pub fn describe<'r>(&'r self, request: &LimitedRequest<'r>) -> Option<Descriptor<'r>> {
        let mut entries = Entries::new();
        let RateLimit { hits, gives_back, limit, .. } = &*self.limit;
        self.fill(request, &mut entries).then_some(Descriptor {
            entries,
            hits: *hits,
            gives_back: *gives_back,
            limit: *limit,
        })
    }

    /// Adds the entries of a request; whether it has a descriptor of them.
    #[inline]
    pub(super) fn fill<'r>(&'r self, request: &LimitedRequest<'r>, entries: &mut Entries<'r>) -> bool {
        for action in &self.actions {
            match action.entry(request) {
                Yield::Entry(entry) => entries.push(entry),
                Yield::Skipped => {}
                Yield::Nothing => return false,
            }
        }
        !entries.is_empty()
    }

    /// Whether its values are all that there is to be found out about a request, and need not be written.
    pub(super) fn is_plain(&self) -> bool {
        self.actions.iter().all(Action::is_plain)
    }

    /// How many entries a descriptor of its has, if nothing is skipped.
    pub(super) fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether it may ask whom a request is for: it does, unless it is known not to.
    pub(super) fn needs_authority(&self) -> bool {
        let does_not = |action: &Action| {
            matches!(
                action,
                Action::Header(_, Field::Header(_) | Field::Method | Field::Path, _)
                    | Action::Other(DescriptorAction::Constant { .. })
            )
        };
        !self.actions.iter().all(does_not)
    }

    /// The value of a request's descriptor, of a plain one with one entry.
    #[inline]
    pub(super) fn value<'r>(&'r self, request: &LimitedRequest<'r>) -> Option<&'r [u8]> {
        self.actions.first()?.value(request)
    }

    /// The values of a request's descriptor, of a plain one; whether it has one.
    #[inline]
    pub(super) fn values<'r>(&'r self, request: &LimitedRequest<'r>, values: &mut Values<'r>) -> bool {
        for action in &self.actions {
            match action.value(request) {
                Some(value) => values.push(value),
                None => return false,
            }
        }
        !values.is_empty()
    }

    /// The keys that every descriptor has; `None` where they differ from request to request.
    pub(super) fn keys(&self) -> Option<impl Iterator<Item = &str> + Clone> {
        let actions = &self.limit.actions;
        (!actions.iter().any(DescriptorAction::may_be_absent)).then(|| actions.iter().map(DescriptorAction::key))
    }
}

impl Action {
    #[inline]
    fn entry<'r>(&'r self, request: &LimitedRequest<'r>) -> Yield<'r> {
        match self {
            Action::Header(key, _, skip) => Yield::of_optional(key, self.value(request), *skip),
            Action::HeaderMatch(key, ..) => Yield::of_optional(key, self.value(request), false),
            Action::Other(action) => other(action, request),
        }
    }

    /// Whether its value is the request's or its own, as it stands, and nothing is skipped.
    fn is_plain(&self) -> bool {
        matches!(
            self,
            Action::Header(_, _, false) | Action::HeaderMatch(..) | Action::Other(DescriptorAction::Constant { .. })
        )
    }

    /// The value of a plain one.
    #[inline]
    fn value<'r>(&'r self, request: &LimitedRequest<'r>) -> Option<&'r [u8]> {
        match self {
            Action::Header(_, field, _) => field.first_value(&request.head),
            Action::HeaderMatch(_, value, expects, tests) => {
                let passes = tests.iter().all(|(field, test)| header_matches(field, test, &request.head));
                (passes == *expects).then_some(value.as_bytes())
            }
            Action::Other(DescriptorAction::Constant { value, .. }) => Some(value.as_bytes()),
            Action::Other(_) => None,
        }
    }
}

fn other<'r>(action: &'r DescriptorAction, request: &LimitedRequest<'r>) -> Yield<'r> {
    let filled = |key, value: &'r str| if value.is_empty() { Yield::Nothing } else { Yield::of(key, value.as_bytes()) };
    match action {
        DescriptorAction::SourceCluster => filled("source_cluster", request.source_cluster),
        DescriptorAction::DestinationCluster => filled("destination_cluster", request.destination_cluster),
        DescriptorAction::Query { key, name, skip_if_absent } => match parameter(name, request.head.query()) {
            Some(Cow::Borrowed(value)) => Yield::of(key, value),
            Some(Cow::Owned(value)) => Yield::Entry(Entry { key, value: Value::Made(SmallVec::from_vec(value)) }),
            None => Yield::absent(*skip_if_absent),
        },
        DescriptorAction::RemoteAddress => match request.remote {
            Some(ip) => Yield::written("remote_address", format_args!("{}", ip.to_canonical())),
            None => Yield::Nothing,
        },
        DescriptorAction::MaskedRemoteAddress { v4_bits, v6_bits } => {
            match request.remote.map(|ip| ip.to_canonical()) {
                Some(ip) => masked(ip, *v4_bits, *v6_bits),
                None => Yield::Nothing,
            }
        }
        DescriptorAction::RemoteAddressMatch { key, value, ranges, invert } => {
            let is_of_one = request.remote.map(|ip| ranges.iter().any(|range| range.contains(ip)));
            if is_of_one == Some(!invert) { Yield::of(key, value.as_bytes()) } else { Yield::Nothing }
        }
        DescriptorAction::Constant { key, value } => Yield::of(key, value.as_bytes()),
        DescriptorAction::QueryMatch { key, value, expects, tests } => {
            let passes = tests.iter().all(|test| parameter_passes(test, request.head.query()));
            if passes == *expects { Yield::of(key, value.as_bytes()) } else { Yield::Nothing }
        }
        DescriptorAction::Claim { key, path, default, skip_if_absent } => {
            let claim = request.tokens.iter().find_map(|claims| claimed(claims.find(path)?));
            let claim = claim.or_else(|| Some(Value::Borrowed(default.as_deref()?.as_bytes())));
            claim.map_or_else(|| Yield::absent(*skip_if_absent), |value| Yield::Entry(Entry { key, value }))
        }
        DescriptorAction::Client { key, part } => {
            let workload = request.client.and_then(SpiffeId::workload);
            match (part, request.client, workload) {
                (ClientPart::Principal, Some(client), _) => Yield::of(key, client.as_str().as_bytes()),
                (ClientPart::Namespace, _, Some((namespace, _))) => Yield::of(key, namespace.as_bytes()),
                (ClientPart::ServiceAccount, _, Some((namespace, account))) => {
                    Yield::written(key, format_args!("{namespace}/{account}"))
                }
                _ => Yield::Nothing,
            }
        }
        DescriptorAction::Expression { key, expression, skip_if_absent } => {
            let told = request.tells.and_then(|tells| tells.tell(expression)).filter(|text| !text.is_empty());
            let made = |text: String| Yield::Entry(Entry { key, value: Value::Made(text.into_bytes().into()) });
            told.map_or_else(|| Yield::absent(*skip_if_absent), made)
        }
        DescriptorAction::PathTemplate { key, templates } => {
            let path = request.head.path();
            let fits = templates.iter().find(|(_, template)| template_matches(template, path));
            fits.map_or(Yield::Nothing, |(text, _)| Yield::of(key, text.as_bytes()))
        }
        // These were made into actions of their own.
        DescriptorAction::Header { .. } | DescriptorAction::HeaderMatch { .. } => Yield::Nothing,
    }
}

impl<'r> Yield<'r> {
    fn of(key: &'r str, value: &'r [u8]) -> Self {
        Yield::Entry(Entry { key, value: Value::Borrowed(value) })
    }

    fn of_optional(key: &'r str, value: Option<&'r [u8]>, skip_if_absent: bool) -> Self {
        value.map_or_else(|| Yield::absent(skip_if_absent), |value| Yield::of(key, value))
    }

    fn absent(is_skipped: bool) -> Self {
        if is_skipped { Yield::Skipped } else { Yield::Nothing }
    }

    fn written(key: &'r str, text: std::fmt::Arguments<'_>) -> Self {
        let mut bytes = Written(SmallVec::new());
        // It takes everything.
        _ = bytes.write_fmt(text);
        Yield::Entry(Entry { key, value: Value::Made(bytes.0) })
    }
}

/// What a claim says. Unlike Envoy's, limits count by what is no text, too, as JSON has it: who has a number for a name is not to be
/// without a limit.
fn claimed(claim: &serde_json::Value) -> Option<Value<'_>> {
    use serde_json::Value as Json;
    match claim {
        Json::Null => None,
        Json::String(text) => (!text.is_empty()).then_some(Value::Borrowed(text.as_bytes())),
        other => Some(Value::Made(other.to_string().into_bytes().into())),
    }
}

struct Written(SmallVec<[u8; 64]>);

impl std::fmt::Write for Written {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// The network of an address, as `10.1.0.0/16`.
fn masked<'r>(ip: IpAddr, v4_bits: u8, v6_bits: u8) -> Yield<'r> {
    let key = "masked_remote_address";
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(v4_bits.into())).unwrap_or(0);
            let network = std::net::Ipv4Addr::from_bits(ip.to_bits() & mask);
            Yield::written(key, format_args!("{network}/{v4_bits}"))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(v6_bits.into())).unwrap_or(0);
            let network = std::net::Ipv6Addr::from_bits(ip.to_bits() & mask);
            Yield::written(key, format_args!("{network}/{v6_bits}"))
        }
    }
}

/// The first query parameter of a name. Limits read name and value without their escapes, as Envoy's do: who may write a name in
/// two ways would have a bucket for each. Routes read them as they are written, there as here.
fn parameter<'r>(wanted: &str, query: Option<&'r str>) -> Option<Cow<'r, [u8]>> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let is_meant = |name: &str| name == wanted || (name.contains('%') && *decoded(name) == *wanted.as_bytes());
    pairs.find(|(name, _)| is_meant(name)).map(|(_, value)| decoded(value))
}

/// Whether a query passes a test on one parameter.
fn parameter_passes(test: &QueryTest, query: Option<&str>) -> bool {
    match (&test.test, parameter(&test.name, query)) {
        (None, value) => value.is_some(),
        (Some(_), None) => false,
        (Some(test), Some(value)) => test.is_match(&value),
    }
}

/// A query parameter without its escapes; what is none stays as it is. `+` is no blank, as in Envoy.
fn decoded(value: &str) -> Cow<'_, [u8]> {
    if !value.contains('%') {
        return Cow::Borrowed(value.as_bytes());
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(bytes)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Parts;
    use serde_json::json;

    use super::*;
    use crate::model::{HeaderTest, IpPrefix, QueryTest, SegmentTemplate, StringTest, TemplatePart};

    fn head(uri: &str, headers: &[(&str, &[u8])]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// `key=value` of each entry.
    fn described(actions: Vec<DescriptorAction>, request: &LimitedRequest<'_>) -> Option<String> {
        let maker = DescriptorMaker::new(&Arc::new(RateLimit::by(actions))).unwrap();
        let descriptor = maker.describe(request)?;
        let entries = descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value.to_text()));
        Some(entries.collect::<Vec<_>>().join(" "))
    }

    fn header(key: &str, name: &str, skip_if_absent: bool) -> DescriptorAction {
        DescriptorAction::Header { key: key.into(), name: name.into(), skip_if_absent }
    }

    fn query(name: &str) -> DescriptorAction {
        DescriptorAction::Query { key: "q".into(), name: name.into(), skip_if_absent: false }
    }

    fn constant(value: &str) -> DescriptorAction {
        DescriptorAction::Constant { key: "generic_key".into(), value: value.into() }
    }

    #[test]
    fn what_is_no_text_or_long_is_told_by_its_hash() {
        let (text, none, other) = (Value::Borrowed(b"jo"), Value::Borrowed(b"\xff"), Value::Borrowed(b"\xfe"));
        assert_eq!(text.to_text(), "jo");
        assert_ne!(none.to_text(), other.to_text());
        let long = vec![b'a'; 50_000];
        assert_eq!((Value::Borrowed(&long).to_text().len(), none.to_text().len()), (33, 33));
    }

    #[test]
    fn an_action_that_yields_nothing_drops_its_descriptor_and_one_that_is_skipped_keeps_the_rest() {
        let parts =
            head("http://h/p?a=1&b=%41%4&b=2&c", &[("user", b"jo"), ("user", b"mo"), ("empty", b""), ("raw", b"\xff")]);
        let request = LimitedRequest::new(RequestHead::of(&parts).unwrap());
        for (actions, expected) in [
            (vec![header("u", "user", false)], Some("u=jo")),
            (vec![header("u", "User", false), constant("x")], Some("u=jo generic_key=x")),
            (vec![header("e", "empty", false)], Some("e=")),
            (vec![header("r", "raw", false)], Some("r=#95634172a60b75440d3fb8190a01a270")),
            (vec![header("n", "none", false), constant("x")], None),
            (vec![header("n", "none", true), constant("x")], Some("generic_key=x")),
            (vec![header("n", "none", true)], None),
            (vec![header("m", ":method", false), header("p", ":path", false)], Some("m=GET p=/p?a=1&b=%41%4&b=2&c")),
            (vec![query("a")], Some("q=1")),
            (vec![query("b")], Some("q=A%4")),
            (vec![query("c")], Some("q=")),
            (vec![query("d")], None),
            (vec![DescriptorAction::SourceCluster], None),
            (vec![DescriptorAction::RemoteAddress], None),
        ] {
            assert_eq!(described(actions.clone(), &request).as_deref(), expected, "{actions:?}");
        }
    }

    #[test]
    fn clients_are_known_by_their_addresses_identities_and_tokens() {
        let parts = head("http://h/users/7", &[]);
        let client = "spiffe://cluster.local/ns/shop/sa/web".parse::<SpiffeId>().unwrap();
        let claims = json!({
            "sub": "me", "level": 3, "none": "", "nothing": null, "groups": ["a", "b"], "org": {"team": "red"}
        });
        let tokens = [Claims::unverified(claims.as_object().unwrap().clone(), &[].into())];
        let request = LimitedRequest {
            source_cluster: "web.shop",
            destination_cluster: "outbound|80||reviews",
            remote: Some("10.1.2.3".parse().unwrap()),
            client: Some(&client),
            tokens: &tokens,
            ..LimitedRequest::new(RequestHead::of(&parts).unwrap())
        };
        let claim = |path: &[&str], default: Option<&str>| DescriptorAction::Claim {
            key: "c".into(),
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            default: default.map(Arc::from),
            skip_if_absent: false,
        };
        let of = |part| DescriptorAction::Client { key: "w".into(), part };
        let near = |invert| DescriptorAction::RemoteAddressMatch {
            key: "near".into(),
            value: "yes".into(),
            ranges: vec![IpPrefix::new("10.0.0.0".parse().unwrap(), 8).unwrap()],
            invert,
        };
        let template = SegmentTemplate { parts: vec![TemplatePart::Literal("users".to_owned()), TemplatePart::One] };
        let template =
            DescriptorAction::PathTemplate { key: "t".into(), templates: vec![("/users/{id}".into(), template)] };
        for (action, expected) in [
            (DescriptorAction::SourceCluster, Some("source_cluster=web.shop")),
            (DescriptorAction::DestinationCluster, Some("destination_cluster=outbound|80||reviews")),
            (DescriptorAction::RemoteAddress, Some("remote_address=10.1.2.3")),
            (
                DescriptorAction::MaskedRemoteAddress { v4_bits: 16, v6_bits: 64 },
                Some("masked_remote_address=10.1.0.0/16"),
            ),
            (DescriptorAction::MaskedRemoteAddress { v4_bits: 0, v6_bits: 0 }, Some("masked_remote_address=0.0.0.0/0")),
            (near(false), Some("near=yes")),
            (near(true), None),
            (claim(&["sub"], None), Some("c=me")),
            (claim(&["org", "team"], None), Some("c=red")),
            (claim(&["level"], Some("anybody")), Some("c=3")),
            (claim(&["org"], None), Some("c={\"team\":\"red\"}")),
            (claim(&["groups"], None), Some("c=[\"a\",\"b\"]")),
            (claim(&["nothing"], None), None),
            (claim(&["none"], None), None),
            (claim(&["absent"], Some("anybody")), Some("c=anybody")),
            (of(ClientPart::Principal), Some("w=spiffe://cluster.local/ns/shop/sa/web")),
            (of(ClientPart::Namespace), Some("w=shop")),
            (of(ClientPart::ServiceAccount), Some("w=shop/web")),
            (template, Some("t=/users/{id}")),
        ] {
            assert_eq!(described(vec![action.clone()], &request).as_deref(), expected, "{action:?}");
        }
        let v6 = LimitedRequest { remote: Some("2001:db8:1:2:3::7".parse().unwrap()), ..request };
        let masked = DescriptorAction::MaskedRemoteAddress { v4_bits: 32, v6_bits: 64 };
        assert_eq!(described(vec![masked], &v6).as_deref(), Some("masked_remote_address=2001:db8:1:2::/64"));
    }

    #[test]
    fn constants_stand_for_tests_that_pass_or_do_not() {
        let parts = head("http://h/?v=2", &[("end-user", b"jason")]);
        let request = LimitedRequest::new(RequestHead::of(&parts).unwrap());
        let is = |value: &str| StringTest::Exact { value: value.into(), ignore_case: false };
        let header = |value: &str, expects| {
            let test =
                HeaderTest::Value { name: "end-user".into(), test: is(value), invert: false, missing_is_empty: false };
            DescriptorAction::HeaderMatch { key: "h".into(), value: "x".into(), expects, tests: vec![test] }
        };
        let query = |value: &str, expects| {
            let tests = vec![QueryTest::new("v", Some(is(value)))];
            DescriptorAction::QueryMatch { key: "q".into(), value: "x".into(), expects, tests }
        };
        for (action, expected) in [
            (header("jason", true), Some("h=x")),
            (header("jason", false), None),
            (header("other", true), None),
            (header("other", false), Some("h=x")),
            (query("2", true), Some("q=x")),
            (query("3", true), None),
            (query("3", false), Some("q=x")),
        ] {
            assert_eq!(described(vec![action.clone()], &request).as_deref(), expected, "{action:?}");
        }
    }

    #[test]
    fn a_parameter_is_the_same_however_it_is_escaped() {
        let of = |uri: &str, action: DescriptorAction| {
            let parts = head(uri, &[]);
            described(vec![action], &LimitedRequest::new(RequestHead::of(&parts).unwrap()))
        };
        for uri in ["http://h/?user=jo", "http://h/?%75ser=jo", "http://h/?a&%75%73%65%72=%6ao&user=mo"] {
            assert_eq!(of(uri, query("user")).as_deref(), Some("q=jo"), "{uri}");
            let is_jo = StringTest::Exact { value: "jo".into(), ignore_case: false };
            let tests = vec![QueryTest::new("user", Some(is_jo))];
            let matched = DescriptorAction::QueryMatch { key: "q".into(), value: "x".into(), expects: true, tests };
            assert_eq!(of(uri, matched).as_deref(), Some("q=x"), "{uri}");
        }
        assert_eq!(of("http://h/?%2575ser=jo", query("user")), None, "an escape is read once");
    }

    #[test]
    fn hits_and_a_limit_of_the_routes_own_go_along() {
        let parts = head("http://h/", &[]);
        let limit = LimitOverride { requests: 7, unit: crate::model::LimitUnit::Hour };
        let config = RateLimit { hits: Some(3), limit: Some(limit), ..RateLimit::by(vec![constant("x")]) };
        let maker = DescriptorMaker::new(&Arc::new(config)).unwrap();
        let described = maker.describe(&LimitedRequest::new(RequestHead::of(&parts).unwrap())).unwrap();
        assert_eq!((described.hits, described.limit), (Some(3), Some(limit)));
    }
}
