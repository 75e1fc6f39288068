//! What is watched in a cluster: the one table, from which permissions follow, too.

use std::collections::BTreeSet;

use crate::config::support::ObjectKind;
use crate::policy::mesh::ROOT_NAMESPACE;

/// A kind of object, and what it is watched for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// Empty for Kubernetes' own first group.
    pub(crate) group: &'static str,
    /// The versions that are read, the best first.
    pub(crate) versions: &'static [&'static str],
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    /// What tells its kind from every other.
    pub(crate) title: &'static str,
    pub(crate) use_: Use,
}

/// What a kind is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is an object of the configuration, and of a kind that a cluster need not have.
    Object,
    /// A Service is one, too, and says how to read its EndpointSlices.
    Service,
    /// It holds the settings of the mesh.
    Settings,
    /// It says who serves a service.
    Slice,
    /// It says who an endpoint is.
    Pod,
    /// It says where an endpoint is.
    Node,
    /// It says which Gateways are whose; nobody follows it.
    Class,
}

/// A kind of which objects are read.
const fn read(kind: ObjectKind, use_: Use) -> Resource {
    let (group, versions, plural) = (kind.group(), kind.versions(), kind.plural());
    Resource { group, versions, plural, kind: kind.name(), title: kind.title(), use_ }
}

/// A kind of objects of the configuration.
pub(super) const fn object(kind: ObjectKind) -> Resource {
    read(kind, Use::Object)
}

const fn own(plural: &'static str, kind: &'static str, use_: Use) -> Resource {
    Resource { group: "", versions: &["v1"], plural, kind, title: kind, use_ }
}

/// Every kind that is watched.
pub(crate) const RESOURCES: [Resource; 32] = [
    read(ObjectKind::Service, Use::Service),
    own("configmaps", "ConfigMap", Use::Settings),
    own("pods", "Pod", Use::Pod),
    own("nodes", "Node", Use::Node),
    Resource {
        group: "discovery.k8s.io",
        versions: &["v1"],
        plural: "endpointslices",
        kind: "EndpointSlice",
        title: "EndpointSlice",
        use_: Use::Slice,
    },
    object(ObjectKind::VirtualService),
    object(ObjectKind::DestinationRule),
    object(ObjectKind::ServiceEntry),
    object(ObjectKind::WorkloadEntry),
    object(ObjectKind::WorkloadGroup),
    object(ObjectKind::Sidecar),
    object(ObjectKind::Gateway),
    // What it guards, or limits, is not let go because nobody looked.
    object(ObjectKind::EnvoyFilter),
    object(ObjectKind::WasmPlugin),
    object(ObjectKind::PeerAuthentication),
    object(ObjectKind::RequestAuthentication),
    object(ObjectKind::AuthorizationPolicy),
    object(ObjectKind::Telemetry),
    object(ObjectKind::HttpRoute),
    object(ObjectKind::GrpcRoute),
    object(ObjectKind::ReferenceGrant),
    object(ObjectKind::KubernetesGateway),
    object(ObjectKind::TlsRoute),
    object(ObjectKind::TcpRoute),
    object(ObjectKind::ListenerSet),
    object(ObjectKind::BackendTlsPolicy),
    object(ObjectKind::BackendTrafficPolicy),
    object(ObjectKind::RateLimit),
    object(ObjectKind::Overload),
    object(ObjectKind::Quota),
    object(ObjectKind::RequestRules),
    object(ObjectKind::FilterSchema),
];

/// GatewayClasses. Nothing that is in force depends on one, so that they are not watched: whoever writes statuses looks at them now and
/// then.
pub(crate) const CLASS: Resource = Resource {
    group: "gateway.networking.k8s.io",
    versions: &["v1"],
    plural: "gatewayclasses",
    kind: "GatewayClass",
    title: "GatewayClass",
    use_: Use::Class,
};

/// The name of the ConfigMap in the root namespace that the settings are in.
pub(crate) const SETTINGS: &str = "istio";

impl Resource {
    /// Whether its objects are in namespaces.
    pub(crate) fn is_namespaced(&self) -> bool {
        !matches!(self.use_, Use::Node | Use::Class)
    }

    /// The namespaces of which it is watched where these are wanted, or all; `None` is all of them. Objects of the root
    /// namespace are for every namespace, so that they are never left out.
    pub(crate) fn namespaces<'n>(&self, wanted: &'n [String]) -> BTreeSet<Option<&'n str>> {
        let root = Some(ROOT_NAMESPACE);
        match self.use_ {
            Use::Settings => [root].into(),
            _ if wanted.is_empty() || !self.is_namespaced() => [None].into(),
            Use::Object => wanted.iter().map(|name| Some(name.as_str())).chain([root]).collect(),
            _ => wanted.iter().map(|name| Some(name.as_str())).collect(),
        }
    }

    /// Whether a cluster may do without the kind.
    pub(super) fn may_be_absent(&self) -> bool {
        self.use_ == Use::Object
    }

    /// Whether its objects say what became of them (`status`). What a ReferenceGrant lets in, others tell of.
    pub(crate) fn has_status(&self) -> bool {
        self.use_ == Use::Object && self.kind != ObjectKind::ReferenceGrant.name()
    }

    /// Where its objects of a version are, those of one namespace or all.
    pub(crate) fn path(&self, version: &str, namespace: Option<&str>) -> String {
        let root = match self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match namespace.filter(|_| self.is_namespaced()) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// Which of them, as a part of a query.
    pub(super) fn selector(&self) -> &'static str {
        match self.use_ {
            Use::Settings => "&fieldSelector=metadata.name%3Distio",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;
    use crate::config::schemas::custom_resource;
    use crate::config::{Code, Source};

    #[test]
    fn every_kind_that_is_read_is_watched_and_those_of_our_own_by_the_names_of_their_definitions() {
        for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::MeshConfig) {
            let resource = RESOURCES
                .iter()
                .find(|resource| resource.title == kind.title())
                .unwrap_or_else(|| panic!("{}", kind.title()));
            if let Some(definition) = custom_resource(kind) {
                assert!(
                    definition.contains(&format!("name: {}.{}\n", resource.plural, resource.group)),
                    "{definition}"
                );
            }
        }
    }

    /// A kind that is watched and not read would be a promise that nobody keeps.
    #[test]
    fn every_object_that_is_watched_is_read() {
        for resource in RESOURCES.iter().filter(|resource| matches!(resource.use_, Use::Object | Use::Service)) {
            for version in resource.versions {
                let group = if resource.group.is_empty() { String::new() } else { format!("{}/", resource.group) };
                let text = format!("apiVersion: {group}{version}\nkind: {}\nmetadata: {{name: a}}\n", resource.kind);
                let file = file::read(Source { name: "t.yaml".into(), text: text.into() });
                let is_foreign = resource.kind == "EnvoyFilter";
                let unknown = |code: Code| matches!(code, Code::NotSupportedYet | Code::Ignored);
                let is_read = file.diagnostics.iter().all(|finding| !unknown(finding.code));
                assert!(is_read || is_foreign, "{resource:?} {version}: {:?}", file.diagnostics);
                assert!(file.diagnostics.iter().all(|one| !one.message.contains("has no version")), "{resource:?}");
            }
        }
    }
}
