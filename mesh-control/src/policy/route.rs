//! Routes as a client is to follow them: conditions on requests alone, and what happens to those that meet them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::{RetryBackOff, RetryCondition};

use super::split::Part;
use super::text::{TextMatch, TextMatches};
use super::traffic::HashedBy;
use crate::config::diagnostic::Origin;

/// One route.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Route {
    /// Its name, for logs and statistics.
    pub name: String,
    /// Which requests.
    pub condition: Condition,
    /// What happens.
    pub action: Action,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// Which pages of other origins may read the answer.
    pub cors: Option<Box<Cors>>,
    /// Changes to headers: before those of the only destination, after those of one of several.
    pub headers: HeaderChanges,
    /// Where it is written; `None` for the default route of a service.
    pub written: Option<Written>,
}

/// Where a route is written.
#[derive(Clone, Debug)]
pub struct Written {
    /// `VirtualService namespace/name`.
    pub object: Arc<str>,
    /// The rule, `http[2]`.
    pub field: Arc<str>,
    /// The place in the file.
    pub origin: Origin,
}

impl Written {
    /// All of that in words: `file:line, VirtualService namespace/name http[2]`.
    pub(crate) fn place(&self) -> String {
        [&*self.origin.to_string(), ", ", &*self.object, " ", &*self.field].concat()
    }
}

/// Conditions on a request that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// On the path; `Present` means any.
    pub path: TextMatch,
    /// Compare exact paths and prefixes without case.
    pub ignore_path_case: bool,
    /// On the method.
    pub method: Option<TextMatch>,
    /// On the scheme.
    pub scheme: Option<TextMatch>,
    /// On the authority.
    pub authority: Option<TextMatch>,
    /// On headers, by lower-case name; of a header's values, any.
    pub headers: TextMatches,
    /// On headers that must not match; a missing one counts as empty.
    pub without_headers: TextMatches,
    /// On query parameters.
    pub query: TextMatches,
}

impl Condition {
    /// Whether any path will do.
    pub fn has_any_path(&self) -> bool {
        match &self.path {
            TextMatch::Present => true,
            TextMatch::Prefix(prefix) => prefix == "/" || prefix.is_empty(),
            TextMatch::Regex(regex) => regex == ".*",
            TextMatch::Exact(_) => false,
        }
    }

    /// Whether every request meets it, so that no later route is ever reached.
    pub fn is_catch_all(&self) -> bool {
        self.has_any_path()
            && self.method.is_none()
            && self.scheme.is_none()
            && self.authority.is_none()
            && self.headers.is_empty()
            && self.without_headers.is_empty()
            && self.query.is_empty()
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// It goes to one of these.
    Forward(Forward),
    /// The answer is a redirect.
    Redirect(RedirectTo),
    /// The answer is this.
    Respond(Response),
    /// It fails, and this is why.
    Fail(Arc<str>),
}

/// Where a request goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Forward {
    /// One or more targets; with several, every weight is above 0.
    pub targets: Vec<Target>,
    /// The new path.
    pub rewrite: PathRewrite,
    /// The new authority.
    pub authority: Option<String>,
    /// For the whole request, retries included.
    pub timeout: Option<Duration>,
    /// When to try again; `None` if never.
    pub retry: Option<Retry>,
    /// What requests are hashed by, each once: what the rules on the destinations ask for.
    pub hashed_by: Vec<HashedBy>,
    /// Whether identical GETs that are under way at the same time are one.
    pub coalesces: bool,
    /// How targets share users, where a split does not go by chance.
    pub sticky_split: Option<Box<StickySplit>>,
    /// Who gets a copy, and of how many requests in a million: never none.
    pub mirrors: Vec<(ClusterKey, u32)>,
}

/// A split that goes by who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySplit {
    /// What tells who it is.
    pub by: HashedBy,
    /// Who is whose: a destination is a position among the targets.
    pub parts: Vec<Part>,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The cluster.
    pub cluster: ClusterKey,
    /// Its share.
    pub weight: u32,
    /// Changes to headers.
    pub headers: HeaderChanges,
    /// The new authority, where the route has none.
    pub authority: Option<String>,
    /// Whether another cluster stands in for it where it has nothing healthy.
    pub falls_back: bool,
}

impl Target {
    /// The cluster that requests go to, by name: with the one that stands in for it, where there is one.
    pub fn cluster_name(&self) -> String {
        self.cluster.named(if self.falls_back { "fallback" } else { "outbound" })
    }
}

/// The name of a cluster together with the one that stands in for it: `fallback|port|subset|host`.
#[derive(Clone, Copy, Debug)]
pub struct FallbackName<'a>(pub &'a ClusterKey);

impl FallbackName<'_> {
    /// The cluster that something stands in for, by the name of both together.
    pub fn parse(name: &str) -> Option<ClusterKey> {
        ClusterKey::parse(&format!("outbound|{}", name.strip_prefix("fallback|")?))
    }
}

impl std::fmt::Display for FallbackName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.named("fallback"))
    }
}

/// The name that connections of mutual TLS ask for (Istio: `outbound_.port_.subset_.host`). A gateway that passes them on by it has a
/// cluster of the same name: of the endpoints that speak mutual TLS themselves.
#[derive(Clone, Copy, Debug)]
pub struct ServerName<'a>(pub &'a ClusterKey);

impl ServerName<'_> {
    /// The cluster whose endpoints are asked for.
    pub fn parse(name: &str) -> Option<ClusterKey> {
        let mut parts = name.strip_prefix("outbound_.")?.splitn(3, "_.");
        let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
        ClusterKey::parse(&format!("outbound|{port}|{subset}|{host}"))
    }
}

impl std::fmt::Display for ServerName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterKey { host, port, subset } = self.0;
        write!(f, "outbound_.{port}_.{subset}_.{host}")
    }
}

/// Who answers where a cluster has nothing healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Another cluster.
    To(ClusterKey),
    /// This is the answer.
    Respond(Response),
}

/// What an outbound cluster is of (Istio: `outbound|port|subset|host`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The full host name.
    pub host: Arc<str>,
    /// The port of the service.
    pub port: u16,
    /// The subset, empty for all of it.
    pub subset: Arc<str>,
}

impl ClusterKey {
    /// Reads a name as Istio writes it.
    pub fn parse(name: &str) -> Option<ClusterKey> {
        let mut parts = name.split('|');
        let (direction, port, subset, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_plain = !port.starts_with(['+', '0']);
        let port: u16 = port.parse().ok().filter(|port| *port > 0 && is_plain)?;
        if direction != "outbound" || host.is_empty() || parts.next().is_some() {
            return None;
        }
        Some(ClusterKey { host: host.into(), port, subset: subset.into() })
    }

    /// A name, with what it begins with.
    fn named(&self, begins: &str) -> String {
        [begins, "|", &self.port.to_string(), "|", &*self.subset, "|", &*self.host].concat()
    }
}

impl std::fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.named("outbound"))
    }
}

/// How the path changes before the request leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathRewrite {
    /// Not at all.
    #[default]
    None,
    /// The part that matched becomes this.
    Matched(String),
    /// What the expression matches becomes this, with `\1` for groups.
    Regex(String, String),
}

/// When to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Retries after the first try.
    pub attempts: NonZeroU32,
    /// What is tried again.
    pub conditions: Vec<RetryCondition>,
    /// HTTP statuses that are tried again.
    pub statuses: Vec<u32>,
    /// The limit of each try.
    pub per_try_timeout: Option<Duration>,
    /// The pauses between tries; the client's own where no rule says so.
    pub backoff: Option<RetryBackOff>,
    /// Whether a retry looks for an endpoint that was not tried yet; it does where nobody says.
    pub avoids_tried: Option<bool>,
    /// Whether retries go to other priorities than those that were tried.
    pub leaves_priorities: bool,
    /// Whether a try that takes too long goes on beside the next one.
    pub hedges: bool,
}

/// A redirect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedirectTo {
    /// The new path.
    pub path: Option<String>,
    /// What replaces the matched prefix.
    pub prefix: Option<String>,
    /// The new authority.
    pub authority: Option<String>,
    /// The new port.
    pub port: Option<u16>,
    /// The new scheme.
    pub scheme: Option<String>,
    /// The status.
    pub status: u32,
}

impl RedirectTo {
    /// The port that a scheme has where none is written; of no scheme, that of requests in the mesh.
    pub fn standard_port(scheme: Option<&str>) -> u16 {
        if scheme == Some("https") { 443 } else { 80 }
    }
}

/// An answer that is given at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u32,
    /// The body.
    pub body: Body,
}

/// A body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// None.
    Empty,
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A pause, for so many millionths of the requests.
    pub delay: Option<(Duration, u32)>,
    /// An error, for so many millionths of the requests.
    pub abort: Option<(AbortWith, u32)>,
}

impl Faults {
    /// Whether nothing goes wrong.
    pub fn is_none(&self) -> bool {
        self.delay.is_none() && self.abort.is_none()
    }
}

/// Which pages of other origins may read answers, and what they may ask for. Lists are as a browser is told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Origins.
    pub origins: Vec<TextMatch>,
    /// Methods.
    pub methods: String,
    /// Headers of requests.
    pub headers: String,
    /// Headers of answers that a page may read.
    pub exposed: String,
    /// How long a browser may remember that.
    pub max_age: Option<Duration>,
    /// Whether cookies and the like may travel.
    pub credentials: Option<bool>,
    /// Whether preflights of other origins travel on; they do where nobody says.
    pub forwards_others: Option<bool>,
}

/// The error of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AbortWith {
    /// An HTTP status.
    Http(u32),
    /// A gRPC status.
    Grpc(u32),
}

/// Changes to the headers of requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Of requests.
    pub request: Changes,
    /// Of responses.
    pub response: Changes,
}

/// Changes to headers: remove, then replace, then append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names.
    pub remove: Vec<String>,
    /// Names and values.
    pub set: Vec<(String, String)>,
    /// Names and values.
    pub add: Vec<(String, String)>,
}

impl HeaderChanges {
    /// Whether nothing changes.
    pub fn is_none(&self) -> bool {
        *self == HeaderChanges::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_istios_byte_for_byte() {
        let key = ClusterKey { host: "foo.ns.svc.cluster.local".into(), port: 8080, subset: "v1".into() };
        assert_eq!(key.to_string(), "outbound|8080|v1|foo.ns.svc.cluster.local");
        assert_eq!(ClusterKey::parse(&key.to_string()), Some(key));
        for bad in [
            "",
            "outbound",
            "outbound|80|x",
            "outbound|80||",
            "outbound|0||a",
            "outbound|080||a",
            "outbound|+80||a",
            "inbound|80||a",
            "outbound|80||a|b",
            "outbound|70000||a",
        ] {
            assert_eq!(ClusterKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_servers_are_istios_byte_for_byte() {
        for (subset, name) in
            [("", "outbound_.80_._.foo.ns.svc.cluster.local"), ("v1", "outbound_.80_.v1_.foo.ns.svc.cluster.local")]
        {
            let key = ClusterKey { host: "foo.ns.svc.cluster.local".into(), port: 80, subset: subset.into() };
            assert_eq!(ServerName(&key).to_string(), name);
            assert_eq!(ServerName::parse(name), Some(key));
        }
        for bad in
            ["", "outbound_.80_._.", "outbound_.80_.foo", "outbound_.0_._.a", "outbound|80||a", "outbound_.80_.|_.a"]
        {
            assert_eq!(ServerName::parse(bad), None, "{bad}");
        }
    }
}
