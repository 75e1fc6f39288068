//! Objects that guard workloads in Istio, and that nobody enforces here: filters that are put into a proxy, and the kinds of
//! Istio's former security API. Workloads that they are for do not serve (`policy/security.rs`).

use super::classify::is_guarding_group;
use crate::config::diagnostic::quoted;
use crate::config::node::{Node, Value};
use crate::config::support::ObjectKind;

/// A kind of such objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It changes what a proxy does, in whatever way.
    EnvoyFilter,
    /// It is none of Istio's any more.
    Former {
        /// Its kind.
        kind: &'static str,
        /// Whether it is of no namespace, and for all of them.
        is_for_all: bool,
        /// What took its place.
        successor: &'static str,
    },
}

const TOKENS_AND_TLS: &str = "a PeerAuthentication (mutual TLS) and a RequestAuthentication (tokens)";
const RBAC: &str = "an AuthorizationPolicy";

/// The kinds of authentication.istio.io and rbac.istio.io, which Istio 1.6 took away.
const FORMER: [(&str, bool, &str); 6] = [
    ("Policy", false, TOKENS_AND_TLS),
    ("MeshPolicy", true, TOKENS_AND_TLS),
    ("ClusterRbacConfig", true, RBAC),
    ("RbacConfig", true, RBAC),
    ("ServiceRole", false, RBAC),
    ("ServiceRoleBinding", false, RBAC),
];

/// Filters of Envoy that decide who may do what.
const GUARDS: [&str; 8] =
    ["ext_authz", "rbac", "jwt_authn", "oauth2", "basic_auth", "api_key_auth", "csrf", "client_ssl_auth"];
/// Filters that may decide it: what they are for is in a program.
const PROGRAMS: [&str; 5] = ["lua", "wasm", "golang", "ext_proc", "dynamic_modules"];

/// What of an object is not enforced, and where it is written.
pub(super) struct Lack<'n> {
    pub(super) place: &'n Node,
    pub(super) field: String,
    pub(super) message: String,
}

impl Foreign {
    /// A kind of the former API, by the name that is written.
    pub(super) fn former(kind: &str) -> Option<Foreign> {
        let (kind, is_for_all, successor) = FORMER.into_iter().find(|(name, _, _)| *name == kind)?;
        Some(Foreign::Former { kind, is_for_all, successor })
    }

    /// What a kind may be by the words of its document, where these are all that is known of it.
    pub(super) fn by_words<'t>(kind: &str, mut words: impl Iterator<Item = &'t str>) -> Option<Foreign> {
        match kind {
            "EnvoyFilter" => {
                words.any(|word| is_one(word, &GUARDS) || is_one(word, &PROGRAMS)).then_some(Foreign::EnvoyFilter)
            }
            _ => Foreign::former(kind).filter(|_| words.any(is_guarding_group)),
        }
    }

    /// The word after `kind:`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Foreign::EnvoyFilter => "EnvoyFilter",
            Foreign::Former { kind, .. } => kind,
        }
    }

    /// Whether it is for the workloads of every namespace.
    pub(super) const fn is_for_all(self) -> bool {
        matches!(self, Foreign::Former { is_for_all: true, .. })
    }

    /// What of an object guards workloads, if anything does.
    pub(super) fn lack(self, document: &Node) -> Option<Lack<'_>> {
        match self {
            Foreign::EnvoyFilter => of_patches(document),
            Foreign::Former { kind, successor, .. } => {
                let message =
                    format!("{kind} was taken out of Istio in 1.6, and nobody reads it; write {successor} instead");
                Some(Lack { place: document.get("kind").unwrap_or(document), field: String::new(), message })
            }
        }
    }
}

/// Whether a kind is for the workloads of every namespace.
pub(super) fn is_for_all(kind: ObjectKind) -> bool {
    Foreign::former(kind.name()).is_some_and(Foreign::is_for_all)
}

/// The first patch that puts such a filter into a server. What is only for gateways, or for calls that go out, guards no
/// workload.
fn of_patches(document: &Node) -> Option<Lack<'_>> {
    let patches = document.get("spec").and_then(|spec| spec.get("configPatches"));
    let all = patches.map(Node::items).filter(|items| !items.is_empty());
    let Some(all) = all else { return filter_in(document, document, String::new()) };
    all.iter().enumerate().find_map(|(index, one)| {
        let word = |parent: &str, name: &str| one.get(parent)?.get(name)?.as_str();
        let is_elsewhere = matches!(word("match", "context"), Some("GATEWAY" | "SIDECAR_OUTBOUND"));
        let is_removed = word("patch", "operation") == Some("REMOVE");
        if is_elsewhere || is_removed {
            return None;
        }
        filter_in(one.get("patch").unwrap_or(one), one, format!("configPatches[{index}]"))
    })
}

fn filter_in<'n>(node: &Node, place: &'n Node, field: String) -> Option<Lack<'n>> {
    let name = named(node, &GUARDS).map(|name| format!("{name} decides who may do what"));
    let name = name.or_else(|| Some(format!("{} may decide who may do what", named(node, &PROGRAMS)?)))?;
    let message = format!("{name}, and no filter is put into a server");
    Some(Lack { place, field, message })
}

/// The first name or type of a filter of Envoy's that is one of these.
fn named(node: &Node, filters: &[&str]) -> Option<String> {
    match &node.value {
        Value::Str(text) => is_one(text, filters).then(|| quoted(text)),
        Value::Seq(items) => items.iter().find_map(|item| named(item, filters)),
        Value::Map(entries) => entries.iter().find_map(|(key, value)| {
            if is_one(&key.name, filters) { Some(quoted(&key.name)) } else { named(value, filters) }
        }),
        _ => None,
    }
}

/// Whether a name or a type is that of one of these filters.
fn is_one(text: &str, filters: &[&str]) -> bool {
    let mut words = text.split(['.', '/']);
    text.contains("envoy.") && words.any(|word| filters.contains(&word))
}
