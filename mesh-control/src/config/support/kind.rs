//! The kinds of objects that are read, and what Kubernetes calls them: the one table of their names.

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ObjectKind {
    /// `VirtualService` of networking.istio.io.
    VirtualService,
    /// `DestinationRule` of networking.istio.io.
    DestinationRule,
    /// `ServiceEntry` of networking.istio.io.
    ServiceEntry,
    /// `WorkloadEntry` of networking.istio.io.
    WorkloadEntry,
    /// `WorkloadGroup` of networking.istio.io.
    WorkloadGroup,
    /// `Sidecar` of networking.istio.io.
    Sidecar,
    /// `Gateway` of networking.istio.io.
    Gateway,
    /// `Service` of Kubernetes.
    Service,
    /// `PeerAuthentication` of security.istio.io.
    PeerAuthentication,
    /// `RequestAuthentication` of security.istio.io.
    RequestAuthentication,
    /// `AuthorizationPolicy` of security.istio.io.
    AuthorizationPolicy,
    /// Istio's `MeshConfig`, in a ConfigMap or in a file of its own.
    MeshConfig,
    /// `Telemetry` of telemetry.istio.io.
    Telemetry,
    /// `HTTPRoute` of Kubernetes' Gateway API.
    HttpRoute,
    /// `GRPCRoute` of Kubernetes' Gateway API.
    GrpcRoute,
    /// `ReferenceGrant` of Kubernetes' Gateway API.
    ReferenceGrant,
    /// `Gateway` of Kubernetes' Gateway API.
    KubernetesGateway,
    /// `TLSRoute` of Kubernetes' Gateway API.
    TlsRoute,
    /// `TCPRoute` of Kubernetes' Gateway API.
    TcpRoute,
    /// `ListenerSet` of Kubernetes' Gateway API.
    ListenerSet,
    /// `BackendTLSPolicy` of Kubernetes' Gateway API.
    BackendTlsPolicy,
    /// `XBackendTrafficPolicy` of Kubernetes' Gateway API, of its experimental channel.
    BackendTrafficPolicy,
    /// `RateLimit` of policy.mesh-control, our own.
    RateLimit,
    /// `Overload` of policy.mesh-control, our own.
    Overload,
    /// `WasmPlugin` of extensions.istio.io.
    WasmPlugin,
    /// `RequestRules` of policy.mesh-control, our own.
    RequestRules,
    /// `FilterSchema` of policy.mesh-control, our own.
    FilterSchema,
    /// `Quota` of policy.mesh-control, our own.
    Quota,
    /// `EnvoyFilter` of networking.istio.io, where it says rate limits of workloads. It is none of [`Self::ALL`]: what of it is
    /// understood, `config::extensions::envoy_filter` says.
    EnvoyFilter,
    /// `Secret` of Kubernetes, where it has certificates. It is none of [`Self::ALL`]: it is read from files, no API has it to give,
    /// and its fields are none that say how anything is done.
    Secret,
    /// `ConfigMap` of Kubernetes, where it has authorities. It is none of [`Self::ALL`], as a Secret is not.
    ConfigMap,
    /// A kind that guards workloads elsewhere, of which nothing is known but whom it is for. It is none of [`Self::ALL`].
    Foreign(&'static str),
}

impl ObjectKind {
    /// All kinds of which each field is known.
    pub const ALL: [ObjectKind; 28] = [
        ObjectKind::VirtualService,
        ObjectKind::DestinationRule,
        ObjectKind::ServiceEntry,
        ObjectKind::WorkloadEntry,
        ObjectKind::WorkloadGroup,
        ObjectKind::Sidecar,
        ObjectKind::Gateway,
        ObjectKind::Service,
        ObjectKind::PeerAuthentication,
        ObjectKind::RequestAuthentication,
        ObjectKind::AuthorizationPolicy,
        ObjectKind::MeshConfig,
        ObjectKind::Telemetry,
        ObjectKind::HttpRoute,
        ObjectKind::GrpcRoute,
        ObjectKind::ReferenceGrant,
        ObjectKind::KubernetesGateway,
        ObjectKind::TlsRoute,
        ObjectKind::TcpRoute,
        ObjectKind::ListenerSet,
        ObjectKind::BackendTlsPolicy,
        ObjectKind::BackendTrafficPolicy,
        ObjectKind::RateLimit,
        ObjectKind::Overload,
        ObjectKind::WasmPlugin,
        ObjectKind::RequestRules,
        ObjectKind::FilterSchema,
        ObjectKind::Quota,
    ];

    /// Those that are our own.
    pub const OWN: [ObjectKind; 5] = [
        ObjectKind::RateLimit,
        ObjectKind::Overload,
        ObjectKind::Quota,
        ObjectKind::RequestRules,
        ObjectKind::FilterSchema,
    ];

    /// The word after `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            ObjectKind::VirtualService => "VirtualService",
            ObjectKind::DestinationRule => "DestinationRule",
            ObjectKind::ServiceEntry => "ServiceEntry",
            ObjectKind::WorkloadEntry => "WorkloadEntry",
            ObjectKind::WorkloadGroup => "WorkloadGroup",
            ObjectKind::Sidecar => "Sidecar",
            ObjectKind::Gateway | ObjectKind::KubernetesGateway => "Gateway",
            ObjectKind::Service => "Service",
            ObjectKind::PeerAuthentication => "PeerAuthentication",
            ObjectKind::RequestAuthentication => "RequestAuthentication",
            ObjectKind::AuthorizationPolicy => "AuthorizationPolicy",
            ObjectKind::MeshConfig => "MeshConfig",
            ObjectKind::Telemetry => "Telemetry",
            ObjectKind::HttpRoute => "HTTPRoute",
            ObjectKind::GrpcRoute => "GRPCRoute",
            ObjectKind::ReferenceGrant => "ReferenceGrant",
            ObjectKind::TlsRoute => "TLSRoute",
            ObjectKind::TcpRoute => "TCPRoute",
            ObjectKind::ListenerSet => "ListenerSet",
            ObjectKind::BackendTlsPolicy => "BackendTLSPolicy",
            ObjectKind::BackendTrafficPolicy => "XBackendTrafficPolicy",
            ObjectKind::RateLimit => "RateLimit",
            ObjectKind::Overload => "Overload",
            ObjectKind::WasmPlugin => "WasmPlugin",
            ObjectKind::RequestRules => "RequestRules",
            ObjectKind::FilterSchema => "FilterSchema",
            ObjectKind::Quota => "Quota",
            ObjectKind::EnvoyFilter => "EnvoyFilter",
            ObjectKind::Secret => "Secret",
            ObjectKind::ConfigMap => "ConfigMap",
            ObjectKind::Foreign(name) => name,
        }
    }

    /// What tells it from every other kind, of which one has the same name: by Istio's own word for it.
    pub const fn title(self) -> &'static str {
        match self {
            ObjectKind::KubernetesGateway => "KubernetesGateway",
            kind => kind.name(),
        }
    }

    /// Its group of Kubernetes' API: empty for the first one, which has no name, and where it is none of that API.
    pub const fn group(self) -> &'static str {
        self.api().0
    }

    /// The versions of it that are read, the best first; none where it is none of Kubernetes' API.
    pub const fn versions(self) -> &'static [&'static str] {
        self.api().1
    }

    /// What many of them are called in a path of Kubernetes' API.
    pub const fn plural(self) -> &'static str {
        self.api().2
    }

    /// Whether it is a kind of route of Gateway API.
    pub const fn is_gateway_route(self) -> bool {
        use ObjectKind::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute};
        matches!(self, HttpRoute | GrpcRoute | TlsRoute | TcpRoute)
    }

    /// Whether an object that says this of itself is one of this kind, in whichever version.
    pub fn is(self, api_version: &str, kind: &str) -> bool {
        self.name() == kind && self.group() == group_of(api_version)
    }

    const fn api(self) -> (&'static str, &'static [&'static str], &'static str) {
        const NETWORKING: &str = "networking.istio.io";
        const SECURITY: &str = "security.istio.io";
        const GATEWAY: &str = "gateway.networking.k8s.io";
        const GATEWAY_X: &str = "gateway.networking.x-k8s.io";
        const POLICY: &str = "policy.mesh-control";
        const FROM_ALPHA_3: &[&str] = &["v1", "v1beta1", "v1alpha3"];
        const FROM_BETA: &[&str] = &["v1", "v1beta1"];
        const FROM_ALPHA_2: &[&str] = &["v1", "v1beta1", "v1alpha2"];
        const ALPHA: &[&str] = &["v1alpha1"];
        match self {
            ObjectKind::VirtualService => (NETWORKING, FROM_ALPHA_3, "virtualservices"),
            ObjectKind::DestinationRule => (NETWORKING, FROM_ALPHA_3, "destinationrules"),
            ObjectKind::ServiceEntry => (NETWORKING, FROM_ALPHA_3, "serviceentries"),
            ObjectKind::WorkloadEntry => (NETWORKING, FROM_ALPHA_3, "workloadentries"),
            ObjectKind::WorkloadGroup => (NETWORKING, FROM_ALPHA_3, "workloadgroups"),
            ObjectKind::Sidecar => (NETWORKING, FROM_ALPHA_3, "sidecars"),
            ObjectKind::Gateway => (NETWORKING, FROM_ALPHA_3, "gateways"),
            ObjectKind::Service => ("", &["v1"], "services"),
            ObjectKind::Secret => ("", &["v1"], "secrets"),
            ObjectKind::ConfigMap => ("", &["v1"], "configmaps"),
            ObjectKind::PeerAuthentication => (SECURITY, FROM_BETA, "peerauthentications"),
            ObjectKind::RequestAuthentication => (SECURITY, FROM_BETA, "requestauthentications"),
            ObjectKind::AuthorizationPolicy => (SECURITY, FROM_BETA, "authorizationpolicies"),
            ObjectKind::Telemetry => ("telemetry.istio.io", &["v1", "v1alpha1"], "telemetries"),
            ObjectKind::HttpRoute => (GATEWAY, FROM_ALPHA_2, "httproutes"),
            ObjectKind::GrpcRoute => (GATEWAY, &["v1", "v1alpha2"], "grpcroutes"),
            ObjectKind::ReferenceGrant => (GATEWAY, FROM_ALPHA_2, "referencegrants"),
            ObjectKind::TlsRoute => (GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
            ObjectKind::TcpRoute => (GATEWAY, &["v1", "v1alpha2"], "tcproutes"),
            ObjectKind::ListenerSet => (GATEWAY, &["v1"], "listenersets"),
            ObjectKind::BackendTlsPolicy => (GATEWAY, &["v1", "v1alpha3"], "backendtlspolicies"),
            ObjectKind::BackendTrafficPolicy => (GATEWAY_X, ALPHA, "xbackendtrafficpolicies"),
            ObjectKind::KubernetesGateway => (GATEWAY, FROM_BETA, "gateways"),
            ObjectKind::RateLimit => (POLICY, ALPHA, "ratelimits"),
            ObjectKind::Overload => (POLICY, ALPHA, "overloads"),
            ObjectKind::RequestRules => (POLICY, ALPHA, "requestrules"),
            ObjectKind::FilterSchema => (POLICY, ALPHA, "filterschemas"),
            ObjectKind::Quota => (POLICY, ALPHA, "quotas"),
            ObjectKind::WasmPlugin => ("extensions.istio.io", ALPHA, "wasmplugins"),
            ObjectKind::EnvoyFilter => (NETWORKING, &["v1alpha3"], "envoyfilters"),
            ObjectKind::MeshConfig | ObjectKind::Foreign(_) => ("", &[], ""),
        }
    }
}

/// Whether an object of this group and kind is a Service of Kubernetes. Its group has no name, and is also called `core`.
pub fn is_core_service(group: &str, kind: &str) -> bool {
    matches!(group, "" | "core") && kind == "Service"
}

/// The group of an `apiVersion`: empty for the first one, which has no name.
pub fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_our_own_are_all_of_our_group() {
        let group = ObjectKind::RateLimit.group();
        let of_group: Vec<ObjectKind> = ObjectKind::ALL.into_iter().filter(|kind| kind.group() == group).collect();
        assert_eq!(of_group.len(), ObjectKind::OWN.len());
        assert!(of_group.iter().all(|kind| ObjectKind::OWN.contains(kind)), "{of_group:?}");
    }
}
