//! The tree of an object that is wrong, read with patience: fields whose names are nearly right, and texts wherever they are.

use std::collections::BTreeMap;

use crate::config::diagnostic::Span;
use crate::config::istio::names::host_fault;
use crate::config::node::{Key, Node, Value};
use crate::config::spelling::nearest;
use crate::config::support::ObjectKind;

/// The fields of a document.
pub(super) const DOCUMENT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// The fields of a kind's `spec`, as far as they can be taken for one another.
const fn fields(kind: ObjectKind) -> &'static [&'static str] {
    match kind {
        ObjectKind::VirtualService => &["hosts", "gateways", "http", "tls", "tcp", "exportTo"],
        ObjectKind::DestinationRule => &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"],
        ObjectKind::ServiceEntry => &[
            "hosts",
            "addresses",
            "ports",
            "location",
            "resolution",
            "endpoints",
            "workloadSelector",
            "exportTo",
            "subjectAltNames",
        ],
        ObjectKind::AuthorizationPolicy => &["selector", "targetRef", "targetRefs", "rules", "action", "provider"],
        ObjectKind::RequestAuthentication => &["selector", "targetRef", "targetRefs", "jwtRules"],
        ObjectKind::PeerAuthentication => &["selector", "mtls", "portLevelMtls"],
        ObjectKind::HttpRoute | ObjectKind::GrpcRoute => &["parentRefs", "useDefaultGateways", "hostnames", "rules"],
        ObjectKind::TlsRoute => &["parentRefs", "useDefaultGateways", "hostnames", "rules"],
        ObjectKind::TcpRoute => &["parentRefs", "useDefaultGateways", "rules"],
        ObjectKind::ListenerSet => &["parentRef", "listeners"],
        ObjectKind::BackendTlsPolicy => &["targetRefs", "validation", "options"],
        ObjectKind::BackendTrafficPolicy => &["targetRefs", "retryConstraint", "sessionPersistence"],
        ObjectKind::ReferenceGrant => &["from", "to"],
        ObjectKind::KubernetesGateway => {
            &["gatewayClassName", "listeners", "addresses", "infrastructure", "allowedListeners", "tls", "defaultScope"]
        }
        ObjectKind::Telemetry => &["selector", "targetRef", "targetRefs", "tracing", "metrics", "accessLogging"],
        ObjectKind::Sidecar => {
            &["workloadSelector", "ingress", "egress", "inboundConnectionPool", "outboundTrafficPolicy"]
        }
        ObjectKind::Gateway => &["selector", "servers"],
        ObjectKind::RateLimit => {
            &["selector", "targetRefs", "mode", "hosts", "rules", "service", "perConnection", "maxKeys", "answer"]
        }
        ObjectKind::Overload => &["selector", "targetRefs", "concurrency", "throttle"],
        ObjectKind::WasmPlugin => &[
            "selector",
            "targetRef",
            "targetRefs",
            "url",
            "sha256",
            "imagePullPolicy",
            "imagePullSecret",
            "verificationKey",
            "pluginConfig",
            "pluginName",
            "phase",
            "failStrategy",
            "priority",
            "vmConfig",
            "match",
            "type",
        ],
        ObjectKind::RequestRules => &["selector", "targetRefs", "mode", "hosts", "rules", "processor"],
        ObjectKind::FilterSchema => &["filter", "schema"],
        ObjectKind::Quota => {
            &["selector", "targetRefs", "mode", "hosts", "rules", "failureMode", "unassigned", "reportEvery", "answer"]
        }
        ObjectKind::EnvoyFilter => &["workloadSelector", "configPatches", "priority"],
        ObjectKind::Foreign(_) => &["workloadSelector", "selector", "targetRef", "targetRefs"],
        ObjectKind::Service
        | ObjectKind::WorkloadEntry
        | ObjectKind::WorkloadGroup
        | ObjectKind::MeshConfig
        | ObjectKind::Secret
        | ObjectKind::ConfigMap => &[],
    }
}

/// The value of a field, or of one that is most likely meant to be it.
pub(super) fn like<'n>(node: &'n Node, name: &str, known: &[&'static str]) -> Option<&'n Node> {
    node.get(name).or_else(|| {
        let mut written = node.entries().iter().filter(|(_, value)| value.value != Value::Null);
        written.find(|(key, _)| nearest(&key.name, known) == Some(name)).map(|(_, value)| value)
    })
}

/// What stands for the `spec` of a document: where there is none, its fields may have lost their indentation.
pub(super) struct Spec<'n> {
    fields: &'n Node,
    known: &'static [&'static str],
}

impl<'n> Spec<'n> {
    pub(super) fn of(document: &'n Node, kind: ObjectKind) -> Spec<'n> {
        Spec { fields: like(document, "spec", &DOCUMENT).unwrap_or(document), known: fields(kind) }
    }

    /// Where it is written.
    pub(super) fn span(&self) -> Span {
        self.fields.span
    }

    /// The value of a field of it.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        like(self.fields, name, self.known)
    }

    /// Whether it is a mapping whose every key is one of the kind's, or nearly.
    pub(super) fn is_known(&self) -> bool {
        let Value::Map(entries) = &self.fields.value else { return false };
        entries.iter().all(|(key, _)| nearest(&key.name, self.known).is_some())
    }

    /// Every text in it that can be a host.
    pub(super) fn named(&self) -> Vec<String> {
        let mut named = Vec::new();
        let is_field = |key: &Key| nearest(&key.name, &DOCUMENT).is_none();
        let fields = self.fields.entries().iter().filter(|(key, _)| is_field(key));
        fields.for_each(|(_, value)| collect(value, &mut named));
        named.retain(|text| host_fault(text).is_none());
        named.sort();
        named.dedup();
        named
    }
}

/// Blanks and capitals make a host or a name wrong, and leave no doubt which one is meant.
pub(super) fn plain(node: &Node) -> Option<String> {
    Some(plain_text(node.as_str()?)).filter(|text| !text.is_empty())
}

pub(super) fn plain_text(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

/// Strings, and whether there is nothing else.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) read: Vec<String>,
    pub(super) is_whole: bool,
}

impl Texts {
    /// Them, if there is nothing else.
    pub(super) fn all(self) -> Option<Vec<String>> {
        self.is_whole.then_some(self.read)
    }
}

/// The strings of a list, or of one string in its place.
pub(super) fn texts(list: &Node) -> Texts {
    let mut read = Vec::new();
    collect(list, &mut read);
    let is_whole = match &list.value {
        Value::Str(_) => true,
        Value::Seq(items) => items.iter().all(|item| plain(item).is_some()),
        _ => false,
    };
    Texts { read, is_whole }
}

/// Every word below a node, but for keys.
pub(super) fn collect(node: &Node, into: &mut Vec<String>) {
    match &node.value {
        Value::Str(text) => {
            let words = text.split(|c: char| c == ',' || c.is_whitespace());
            into.extend(words.filter(|word| !word.is_empty()).map(plain_text));
        }
        Value::Seq(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Map(entries) => entries.iter().for_each(|(_, value)| collect(value, into)),
        _ => {}
    }
}

/// Pairs of texts, if there is nothing else.
pub(super) fn labels(map: &Node) -> Option<BTreeMap<String, String>> {
    let Value::Map(entries) = &map.value else { return None };
    entries.iter().map(|(key, value)| Some((key.name.clone(), value.as_str()?.to_owned()))).collect()
}
