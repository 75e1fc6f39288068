//! The settings of the whole mesh: those of `MeshConfig`, those that the control plane was started with, and those that only a
//! start takes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{SpiffeId, TrustDomain};

use super::outbound::OutboundTrafficPolicy;
use super::paths::PathNormalization;
use super::retry;
use super::route::Retry;
use super::traffic::{ServerTls, TcpKeepalive};
use crate::catalog::Topology;
use crate::config::decode::Text;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Span};
use crate::config::file::{Object, Objects};
use crate::config::istio::destination_rule::{LocalityLb, ZoneAwareLb};
use crate::config::istio::mesh_config::{
    DefaultTrafficPolicy, ForwardClientCertDetails, MeshConfig, MeshH2UpgradePolicy, NormalizationType, OutboundMode,
};
use crate::config::istio::service::EXPORT_TO;

/// The namespace whose objects are for everybody, where nothing else is said.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// What is said of the mesh outside of its configuration. What is `None` is left to that.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The trust domain.
    pub trust_domain: Option<TrustDomain>,
    /// Calls to hosts that nothing describes.
    pub outbound: Option<OutboundTrafficPolicy>,
    /// What servers make of paths.
    pub paths: Option<PathNormalization>,
    /// How servers take connections where no PeerAuthentication says anything; `None` where no certificates are issued.
    pub default_tls: Option<ServerTls>,
    /// Whether workloads trust identities of foreign domains.
    pub is_federated: bool,
}

/// What only a start takes: identities, certificates and who may do what hang on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The namespace whose objects are for everybody.
    pub root_namespace: Arc<str>,
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// What only a start takes.
    pub fixed: Fixed,
    /// Other names of the trust domain.
    pub aliases: Vec<TrustDomain>,
    /// Calls to hosts that nothing describes.
    pub outbound: OutboundTrafficPolicy,
    /// What servers make of paths.
    pub paths: PathNormalization,
    /// When a route tries again that does not say it; `None` for never.
    pub retry: Option<Retry>,
    /// Whether clients call by mutual TLS where no rule says how to call.
    pub auto_mtls: bool,
    /// Whether workloads trust identities of foreign domains.
    pub is_federated: bool,
    /// The object that says so, where there is one.
    pub object: Option<Arc<Object<MeshConfig>>>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        MeshSettings::new(&Objects::default(), &Given::default(), None).0
    }
}

impl MeshSettings {
    /// What is in front of gateways, as far as they do not say it of themselves.
    pub fn topology(&self) -> Topology {
        let config = self.object.as_ref().and_then(|object| object.spec.default_config.as_ref());
        let Some(written) = config.and_then(|config| config.gateway_topology.as_ref()) else {
            return Topology::default();
        };
        Topology {
            forwarded_hops: written.num_trusted_proxies,
            client_cert: written.forward_client_cert_details.and_then(ForwardClientCertDetails::forwarded),
            proxy_protocol: written.proxy_protocol.is_some().then_some(true),
        }
    }

    /// What is said of near and far endpoints, for services of which no rule says it.
    pub fn locality(&self) -> Option<&LocalityLb> {
        self.object.as_ref()?.spec.locality_lb_setting.as_ref()
    }

    /// Whether zones share requests, for services of which no rule says it.
    pub fn zones(&self) -> Option<&ZoneAwareLb> {
        self.object.as_ref()?.spec.zone_aware_lb_setting.as_ref()
    }

    /// How long establishing a connection may take where no rule says it.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.object.as_ref()?.spec.connect_timeout.as_deref().copied()
    }

    /// The probes of idle connections where no rule says it.
    pub fn tcp_keepalive(&self) -> Option<TcpKeepalive> {
        self.object.as_ref()?.spec.tcp_keepalive.as_ref().map(TcpKeepalive::from)
    }

    /// The blocks of a traffic policy for where a rule has none of its own.
    pub fn traffic_policy(&self) -> Option<&DefaultTrafficPolicy> {
        self.object.as_ref()?.spec.default_traffic_policy.as_ref()
    }

    /// Whether HTTP/1.1 becomes HTTP/2 where no rule says it.
    pub fn upgrades_to_http2(&self) -> Option<bool> {
        Some(**self.object.as_ref()?.spec.h2_upgrade_policy.as_ref()? == MeshH2UpgradePolicy::Upgrade)
    }

    /// The settings of these objects, and what is said against them: what was given goes before what they say, and what was
    /// `fixed` at the start stays.
    pub fn new(objects: &Objects, given: &Given, fixed: Option<&Fixed>) -> (MeshSettings, Vec<Diagnostic>) {
        let object = objects.mesh_configs.last().cloned();
        let spec = object.as_ref().map(|object| &object.spec);
        let mut found = Vec::new();
        let mut say = |span: Span, field: &str, message: String| {
            let Some(object) = &object else { return };
            let finding = Diagnostic::at(&object.meta.origin.at(span), Severity::Error, Code::Conflict, message);
            found.push(finding.object(object.meta.id()).field(field));
        };
        let contradicts =
            |option: &str, given: &str| format!("{option} says {given}, which counts; take one of the two out");
        let span = |text: Option<&Text>| text.map(|text| text.span).unwrap_or_default();
        let set = |text: Option<&'_ Text>| text.filter(|text| !text.is_empty()).map(|text| text.value.clone());

        let field = spec.and_then(|spec| spec.trust_domain.as_ref());
        let written: Option<TrustDomain> = set(field).and_then(|domain| domain.parse().ok());
        if let (Some(written), Some(given)) = (&written, &given.trust_domain)
            && written != given
        {
            say(span(field), "trustDomain", contradicts("--trust-domain", given.as_str()));
        }
        let trust_domain = given.trust_domain.clone().or(written).unwrap_or_default();
        let restart = |what: &str, old: &str| {
            format!("{what} stays {old} until mesh-control is started again: what hangs on it cannot change meanwhile")
        };
        if let Some(fixed) = fixed.filter(|fixed| fixed.trust_domain != trust_domain) {
            say(span(field), "trustDomain", restart("the trust domain", fixed.trust_domain.as_str()));
        }
        let field = spec.and_then(|spec| spec.root_namespace.as_ref());
        let root_namespace: Arc<str> = set(field).as_deref().unwrap_or(ROOT_NAMESPACE).into();
        if let Some(fixed) = fixed.filter(|fixed| fixed.root_namespace != root_namespace) {
            say(span(field), "rootNamespace", restart("the root namespace", &fixed.root_namespace));
        }

        let field = spec.and_then(|spec| spec.outbound_traffic_policy.as_ref());
        let written = field.map(|field| match field.mode {
            OutboundMode::RegistryOnly => OutboundTrafficPolicy::RegistryOnly,
            OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => OutboundTrafficPolicy::AllowAny,
        });
        let outbound = given.outbound.or(written).unwrap_or_default();
        if let (Some(field), Some(written)) = (field, written)
            && written != outbound
        {
            let word = match outbound {
                OutboundTrafficPolicy::AllowAny => "ALLOW_ANY",
                OutboundTrafficPolicy::RegistryOnly => "REGISTRY_ONLY",
            };
            say(field.span, "outboundTrafficPolicy.mode", contradicts("--outbound-traffic-policy", word));
        }
        let field = spec.and_then(|spec| spec.path_normalization.as_ref());
        let written = field.map(|field| match field.normalization {
            NormalizationType::Default => PathNormalization::Default,
            NormalizationType::None => PathNormalization::None,
            NormalizationType::Base => PathNormalization::Base,
            NormalizationType::MergeSlashes => PathNormalization::MergeSlashes,
            NormalizationType::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        });
        let paths = given.paths.or(written).unwrap_or_default();
        if let (Some(field), Some(written)) = (field, written)
            && written != paths
        {
            let message = contradicts("--path-normalization", &format!("{paths:?}"));
            say(field.span, "pathNormalization.normalization", message);
        }
        let aliases = spec.map(|spec| spec.trust_domain_aliases.iter()).into_iter().flatten();
        let settings = MeshSettings {
            fixed: fixed.cloned().unwrap_or(Fixed { trust_domain, root_namespace }),
            aliases: aliases.filter_map(|alias| alias.value.parse().ok()).collect(),
            outbound,
            paths,
            retry: retry::of(
                spec.and_then(|spec| spec.default_http_retry_policy.as_ref()),
                Some(&retry::default_policy()),
            ),
            auto_mtls: spec.and_then(|spec| spec.enable_auto_mtls.as_deref().copied()).unwrap_or(true),
            is_federated: given.is_federated,
            object,
        };
        (settings, found)
    }

    /// The trust domain and its other names, each once.
    pub fn trust_domains(&self) -> Vec<&str> {
        let mut domains = vec![self.fixed.trust_domain.as_str()];
        for alias in self.aliases.iter().map(TrustDomain::as_str) {
            if !domains.contains(&alias) {
                domains.push(alias);
            }
        }
        domains
    }

    /// These identities, and the same workloads in the other names of the trust domain: whoever serves may have one of either
    /// (Istio: ExpandWithTrustDomains).
    pub fn with_aliases<'i>(&self, identities: &'i [SpiffeId]) -> Cow<'i, [SpiffeId]> {
        if self.aliases.is_empty() {
            return identities.into();
        }
        let domains: Vec<&TrustDomain> = std::iter::once(&self.fixed.trust_domain).chain(&self.aliases).collect();
        let all = identities.iter().flat_map(|identity| {
            let is_ours = domains.iter().any(|domain| domain.as_str() == identity.trust_domain());
            let names = identity.workload().filter(|_| is_ours).into_iter().flat_map(|(namespace, account)| {
                domains.iter().filter_map(move |domain| SpiffeId::of_workload(domain, namespace, account).ok())
            });
            names.chain([identity.clone()])
        });
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The objects, exported to whom the mesh's defaults say where they say nothing of it themselves.
    pub(super) fn exported(&self, objects: &Objects) -> Option<Objects> {
        let spec = &self.object.as_ref()?.spec;
        let (services, virtual_services, rules) = (
            &spec.default_service_export_to,
            &spec.default_virtual_service_export_to,
            &spec.default_destination_rule_export_to,
        );
        if services.is_empty() && virtual_services.is_empty() && rules.is_empty() {
            return None;
        }
        let mut objects = objects.clone();
        let fill = |export_to: &mut Vec<Text>, default: &Vec<Text>| {
            if export_to.is_empty() {
                export_to.clone_from(default);
            }
        };
        for object in objects.virtual_services.iter_mut().filter(|_| !virtual_services.is_empty()) {
            fill(&mut Arc::make_mut(object).spec.export_to, virtual_services);
        }
        for object in objects.destination_rules.iter_mut().filter(|_| !rules.is_empty()) {
            fill(&mut Arc::make_mut(object).spec.export_to, rules);
        }
        if !services.is_empty() {
            for object in &mut objects.service_entries {
                fill(&mut Arc::make_mut(object).spec.export_to, services);
            }
            let words: Vec<&str> = services.iter().map(|entry| entry.value.as_str()).collect();
            for object in &mut objects.services {
                let annotations = &mut Arc::make_mut(object).meta.annotations;
                annotations.entry(EXPORT_TO.to_owned()).or_insert_with(|| words.join(","));
            }
        }
        Some(objects)
    }
}
