//! One object: who it is, by its `metadata`, and what it says, by its `spec`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Item, Meta, Object, SUPPRESS, is_topology};
use crate::config::decode::{Decode, Decoder, Opaque, Text, message};
use crate::config::diagnostic::{Code, NO_PROXY, OWN_TOPOLOGY, Origin, Severity, Source, Span, quoted};
use crate::config::extensions::filter_schema::FilterSchema;
use crate::config::extensions::overload::Overload;
use crate::config::extensions::quota::Quota;
use crate::config::extensions::rate_limit::RateLimit;
use crate::config::extensions::request_rules::RequestRules;
use crate::config::extensions::{self, envoy_filter};
use crate::config::gateway_api::backend_tls_policy::BackendTlsPolicy;
use crate::config::gateway_api::backend_traffic_policy::BackendTrafficPolicy;
use crate::config::gateway_api::connection_route::{TcpRoute, TlsRoute};
use crate::config::gateway_api::gateway::KubernetesGateway;
use crate::config::gateway_api::grpc_route::GrpcRoute;
use crate::config::gateway_api::http_route::HttpRoute;
use crate::config::gateway_api::listener_set::ListenerSet;
use crate::config::gateway_api::reference_grant::ReferenceGrant;
use crate::config::istio::destination_rule::DestinationRule;
use crate::config::istio::gateway::Gateway;
use crate::config::istio::names::export_faults;
use crate::config::istio::secret::{self, Secret};
use crate::config::istio::security::{AuthorizationPolicy, DRY_RUN, PeerAuthentication, RequestAuthentication};
use crate::config::istio::service::{self, EXPORT_TO, Service, exported_to};
use crate::config::istio::service_entry::ServiceEntry;
use crate::config::istio::sidecar::Sidecar;
use crate::config::istio::telemetry::Telemetry;
use crate::config::istio::virtual_service::VirtualService;
use crate::config::istio::wasm_plugin::WasmPlugin;
use crate::config::istio::workload_entry::WorkloadEntry;
use crate::config::istio::workload_group::WorkloadGroup;
use crate::config::node::Node;
use crate::config::support::{self, ObjectKind};
use crate::period::comparable;

message! {
    /// The part of an object that every kind has.
    pub struct Metadata {
        /// Its name.
        name: Text = "name" required,
        /// Its namespace.
        namespace: Option<Text> = "namespace",
        /// Its labels.
        labels: BTreeMap<String, String> = "labels",
        /// Its annotations.
        annotations: BTreeMap<String, String> = "annotations",
        /// When a cluster made it.
        created: String = "creationTimestamp",
        /// Of a cluster.
        generation: Opaque = "generation",
        /// Of a cluster.
        resource_version: Opaque = "resourceVersion",
        /// Of a cluster.
        uid: Opaque = "uid",
        /// Of a cluster.
        managed_fields: Opaque = "managedFields",
        /// Of a cluster.
        owner_references: Opaque = "ownerReferences",
        /// Of a cluster.
        finalizers: Opaque = "finalizers",
        /// Of a cluster.
        self_link: Opaque = "selfLink",
        /// Of a cluster.
        deletion_timestamp: Opaque = "deletionTimestamp",
        /// Of a cluster.
        deletion_grace_period_seconds: Opaque = "deletionGracePeriodSeconds",
    }
}

pub(super) fn read_object(document: &Node, kind: ObjectKind, source: &Source, d: &mut Decoder<'_>) -> Option<Item> {
    d.message(document, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let meta = read_meta(document, kind, source, d)?;
    d.object(meta.id());
    let Some(spec) = document.get("spec") else {
        // A WorkloadGroup or a Service may well be empty; the others say so in their own checks.
        d.error(document.span, Code::MissingField, "field `spec` is missing");
        return None;
    };
    let namespace = meta.namespace.clone();
    Some(match kind {
        ObjectKind::VirtualService => Item::VirtualService(read_spec(meta, spec, d, VirtualService::check)?),
        ObjectKind::DestinationRule => Item::DestinationRule(read_spec(meta, spec, d, DestinationRule::check)?),
        ObjectKind::ServiceEntry => Item::ServiceEntry(read_spec(meta, spec, d, ServiceEntry::check)?),
        ObjectKind::WorkloadEntry => {
            Item::WorkloadEntry(read_spec(meta, spec, d, |entry: &WorkloadEntry, d| entry.check("", d))?)
        }
        ObjectKind::WorkloadGroup => Item::WorkloadGroup(read_spec(meta, spec, d, WorkloadGroup::check)?),
        ObjectKind::Sidecar => Item::Sidecar(read_spec(meta, spec, d, Sidecar::check)?),
        ObjectKind::Gateway => Item::Gateway(read_spec(meta, spec, d, Gateway::check)?),
        ObjectKind::Service => Item::Service(read_spec(meta, spec, d, Service::check)?),
        ObjectKind::PeerAuthentication => {
            Item::PeerAuthentication(read_spec(meta, spec, d, PeerAuthentication::check)?)
        }
        ObjectKind::RequestAuthentication => {
            Item::RequestAuthentication(read_spec(meta, spec, d, |policy: &RequestAuthentication, d| {
                policy.check(&namespace, d)
            })?)
        }
        ObjectKind::HttpRoute => Item::HttpRoute(read_spec(meta, spec, d, HttpRoute::check)?),
        ObjectKind::GrpcRoute => Item::GrpcRoute(read_spec(meta, spec, d, GrpcRoute::check)?),
        ObjectKind::TlsRoute => Item::TlsRoute(read_spec(meta, spec, d, TlsRoute::check)?),
        ObjectKind::TcpRoute => Item::TcpRoute(read_spec(meta, spec, d, TcpRoute::check)?),
        ObjectKind::ReferenceGrant => Item::ReferenceGrant(read_spec(meta, spec, d, ReferenceGrant::check)?),
        ObjectKind::KubernetesGateway => Item::KubernetesGateway(read_spec(meta, spec, d, KubernetesGateway::check)?),
        ObjectKind::ListenerSet => Item::ListenerSet(read_spec(meta, spec, d, ListenerSet::check)?),
        ObjectKind::BackendTlsPolicy => Item::BackendTlsPolicy(read_spec(meta, spec, d, BackendTlsPolicy::check)?),
        ObjectKind::BackendTrafficPolicy => {
            Item::BackendTrafficPolicy(read_spec(meta, spec, d, BackendTrafficPolicy::check)?)
        }
        ObjectKind::Telemetry => {
            Item::Telemetry(read_spec(meta, spec, d, |object: &Telemetry, d| object.check(&namespace, d))?)
        }
        ObjectKind::RateLimit => {
            Item::RateLimit(read_spec(meta, spec, d, |limit: &RateLimit, d| limit.check(&namespace, d))?)
        }
        ObjectKind::Overload => {
            Item::Overload(read_spec(meta, spec, d, |overload: &Overload, d| overload.check(&namespace, d))?)
        }
        ObjectKind::WasmPlugin => {
            Item::WasmPlugin(read_spec(meta, spec, d, |plugin: &WasmPlugin, d| plugin.check(&namespace, d))?)
        }
        ObjectKind::RequestRules => {
            Item::RequestRules(read_spec(meta, spec, d, |rules: &RequestRules, d| rules.check(&namespace, d))?)
        }
        ObjectKind::FilterSchema => Item::FilterSchema(read_spec(meta, spec, d, |_: &FilterSchema, _| {})?),
        ObjectKind::Quota => Item::Quota(read_spec(meta, spec, d, |quota: &Quota, d| quota.check(&namespace, d))?),
        ObjectKind::EnvoyFilter => {
            let limit = envoy_filter::read(spec, d)?;
            Item::RateLimit(Arc::new(Object { meta, spec: limit }))
        }
        // They are no objects of their own: `mesh_config`, `foreign`; or have no `spec`: `secret`.
        ObjectKind::MeshConfig | ObjectKind::Secret | ObjectKind::ConfigMap | ObjectKind::Foreign(_) => return None,
        ObjectKind::AuthorizationPolicy => {
            Item::AuthorizationPolicy(read_spec(meta, spec, d, |policy: &AuthorizationPolicy, d| {
                policy.check(&namespace, d)
            })?)
        }
    })
}

pub(super) fn read_secret(document: &Node, source: &Source, d: &mut Decoder<'_>) -> Option<Object<Secret>> {
    d.message(document, &["apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"])?;
    let meta = read_meta(document, ObjectKind::Secret, source, d)?;
    d.object(meta.id());
    d.conceal();
    let spec = secret::read(document, d);
    // One of them may be the whole object once more (kubectl's `last-applied-configuration`).
    Some(Object { meta: Meta { annotations: BTreeMap::new(), ..meta }, spec })
}

pub(super) fn read_spec<T: Decode>(
    meta: Meta,
    spec: &Node,
    d: &mut Decoder<'_>,
    check: impl Fn(&T, &mut Decoder<'_>),
) -> Option<Arc<Object<T>>> {
    support::report(meta.kind, spec, d);
    let spec = T::decode(spec, d)?;
    check(&spec, d);
    Some(Arc::new(Object { meta, spec }))
}

/// Whether an object can have this name.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.len() <= 253 && text.chars().all(allowed)
}

/// Whether a namespace can have this name.
pub fn is_namespace(text: &str) -> bool {
    is_name(text) && text.len() <= 63
}

pub(super) fn read_meta(document: &Node, kind: ObjectKind, source: &Source, d: &mut Decoder<'_>) -> Option<Meta> {
    let metadata: Metadata = d.required(document, "metadata")?;
    let namespace = metadata.namespace.as_ref().map_or("default", |text| text.value.as_str());
    let mut fine = true;
    let mut check = |is_fine: bool, text: &str, span: Span, field: &'static str| {
        if !is_fine {
            let message = format!("{} is not a name: lower-case letters, digits, `-` and `.`", quoted(text));
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
            fine = false;
        }
    };
    check(is_name(&metadata.name), &metadata.name, metadata.name.span, "metadata.name");
    if let Some(text) = &metadata.namespace {
        check(is_namespace(text), text, text.span, "metadata.namespace");
    }
    if !fine {
        return None;
    }
    for key in metadata.annotations.keys() {
        let read = match kind {
            ObjectKind::Service => key == EXPORT_TO,
            ObjectKind::AuthorizationPolicy => key == DRY_RUN,
            _ => false,
        } || key == SUPPRESS;
        if key.contains("istio.io/") && !read {
            let mut message = format!("not supported yet: annotation {} has no effect", quoted(key));
            if metadata.annotations.get(key).is_some_and(|value| is_topology(key, value)) {
                message = format!("{message}: {OWN_TOPOLOGY}; {NO_PROXY}");
            }
            let field = "metadata.annotations";
            d.report_at(metadata.span, field, Severity::Warning, Code::NotSupportedYet, message);
        }
    }
    let extensions = document.get("metadata").map(|node| extensions::read(kind, node, d)).unwrap_or_default();
    if kind == ObjectKind::Service {
        for (_, message) in export_faults(exported_to(&metadata.annotations)) {
            let field = format!("metadata.annotations.{EXPORT_TO}");
            d.report_at(metadata.span, field, Severity::Error, Code::InvalidValue, message);
            d.amend(|finding| finding.istio("IST0125"));
        }
    }
    if matches!(kind, ObjectKind::Service | ObjectKind::ServiceEntry)
        && let Err((label, message)) = service::session(&metadata.labels)
    {
        let field = format!("metadata.labels.{label}");
        d.report_at(metadata.span, field, Severity::Error, Code::InvalidValue, message);
    }
    let created = comparable(&metadata.created);
    if created.is_none() && !metadata.created.is_empty() {
        let message = format!(
            "{} is no time (RFC 3339): the object is younger than all that have one",
            quoted(&metadata.created)
        );
        d.report_at(metadata.span, "metadata.creationTimestamp", Severity::Warning, Code::InvalidValue, message);
    }
    Some(Meta {
        kind,
        namespace: namespace.into(),
        name: metadata.name.value.as_str().into(),
        labels: metadata.labels,
        annotations: metadata.annotations,
        extensions,
        created: created.unwrap_or_default(),
        origin: Origin { source: source.clone(), span: document.span },
    })
}
