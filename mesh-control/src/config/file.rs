//! One text, read into objects: which documents are ours, who they are, and what is wrong with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{Decode, Decoder, Opaque, Text, message};
use super::diagnostic::{Code, Diagnostic, Origin, Severity, Source, Span, quoted};
use super::istio::destination_rule::DestinationRule;
use super::istio::service::Service;
use super::istio::service_entry::ServiceEntry;
use super::istio::virtual_service::VirtualService;
use super::istio::workload_entry::WorkloadEntry;
use super::istio::workload_group::WorkloadGroup;
use super::node::{self, Node};
use super::support::{self, ObjectKind};

/// Who an object is and where it is written.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace, `default` where none is written.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp`, as exported from a cluster; empty in a file that a person wrote.
    pub created: String,
    /// Where it is written.
    pub origin: Origin,
}

impl Meta {
    /// `Kind namespace/name`.
    pub fn id(&self) -> Arc<str> {
        format!("{} {}/{}", self.kind.name(), self.namespace, self.name).into()
    }

    /// Objects that compete are taken in this order: the oldest first, then by name, then by namespace
    /// (Istio: virtualservice_controller.go, config.go). Files have no age, so the name decides.
    pub fn order(&self) -> (&str, &str, &str) {
        (&self.created, &self.name, &self.namespace)
    }
}

/// An object of some kind.
#[derive(Clone, Debug)]
pub struct Object<T> {
    /// Who it is.
    pub meta: Meta,
    /// What it says.
    pub spec: T,
}

/// Objects by kind.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// VirtualServices.
    pub virtual_services: Vec<Arc<Object<VirtualService>>>,
    /// DestinationRules.
    pub destination_rules: Vec<Arc<Object<DestinationRule>>>,
    /// ServiceEntries.
    pub service_entries: Vec<Arc<Object<ServiceEntry>>>,
    /// WorkloadEntries.
    pub workload_entries: Vec<Arc<Object<WorkloadEntry>>>,
    /// WorkloadGroups.
    pub workload_groups: Vec<Arc<Object<WorkloadGroup>>>,
    /// Services.
    pub services: Vec<Arc<Object<Service>>>,
}

impl Objects {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.virtual_services.len()
            + self.destination_rules.len()
            + self.service_entries.len()
            + self.workload_entries.len()
            + self.workload_groups.len()
            + self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a text says, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct ParsedFile {
    /// The text.
    pub source: Source,
    /// Its objects; none where it is rejected.
    pub objects: Objects,
    /// What is to be said about it.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether it is wrong as a whole.
    pub rejected: bool,
}

/// Reads one text.
pub fn read(source: Source) -> ParsedFile {
    let documents = match node::parse(&source) {
        Ok(documents) => documents,
        Err(error) => {
            return ParsedFile { source, objects: Objects::default(), diagnostics: vec![error], rejected: true };
        }
    };
    let mut d = Decoder::new(&source);
    let mut objects = Objects::default();
    for document in &documents {
        read_document(document, &source, &mut d, &mut objects);
    }
    let rejected = d.is_rejected();
    if rejected {
        objects = Objects::default();
    }
    let diagnostics = d.into_found();
    ParsedFile { source, objects, diagnostics, rejected }
}

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

/// What is to be done with a document.
enum Class {
    Read(ObjectKind),
    List,
    NotYet(Severity),
    Elsewhere,
    UnknownVersion(&'static str),
    UnknownKind,
}

const NETWORKING_KINDS: [(&str, ObjectKind); 5] = [
    ("VirtualService", ObjectKind::VirtualService),
    ("DestinationRule", ObjectKind::DestinationRule),
    ("ServiceEntry", ObjectKind::ServiceEntry),
    ("WorkloadEntry", ObjectKind::WorkloadEntry),
    ("WorkloadGroup", ObjectKind::WorkloadGroup),
];

/// The other kinds of the group without a name: a mistyped `Service` is not one of them.
const CORE_KINDS: [&str; 17] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Event",
    "LimitRange",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodList",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
];

fn classify(api_version: &str, kind: &str) -> Class {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    match group {
        "networking.istio.io" => {
            if let Some((_, read)) = NETWORKING_KINDS.iter().find(|(name, _)| *name == kind) {
                return match version {
                    "v1" | "v1beta1" | "v1alpha3" => Class::Read(*read),
                    _ => Class::UnknownVersion("v1, v1beta1 or v1alpha3"),
                };
            }
            match kind {
                "Gateway" | "Sidecar" | "EnvoyFilter" | "ProxyConfig" => Class::NotYet(Severity::Warning),
                _ => Class::UnknownKind,
            }
        }
        // Security that has no effect is never a mere warning.
        "security.istio.io" => match kind {
            "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => Class::NotYet(Severity::Error),
            _ => Class::UnknownKind,
        },
        "telemetry.istio.io" | "extensions.istio.io" | "install.istio.io" | "operator.istio.io" => {
            Class::NotYet(Severity::Warning)
        }
        "gateway.networking.k8s.io" | "gateway.networking.x-k8s.io" | "inference.networking.k8s.io" => match kind {
            "BackendTLSPolicy" => Class::NotYet(Severity::Error),
            _ => Class::NotYet(Severity::Warning),
        },
        "discovery.k8s.io" => Class::NotYet(Severity::Warning),
        "networking.k8s.io" if kind == "Ingress" => Class::NotYet(Severity::Warning),
        "networking.k8s.io" if kind == "NetworkPolicy" => Class::NotYet(Severity::Error),
        "" => match kind {
            "Service" if version == "v1" => Class::Read(ObjectKind::Service),
            "Service" => Class::UnknownVersion("v1"),
            "List" if version == "v1" => Class::List,
            "Endpoints" => Class::NotYet(Severity::Warning),
            _ if version == "v1" && CORE_KINDS.contains(&kind) => Class::Elsewhere,
            _ => Class::UnknownKind,
        },
        _ => Class::Elsewhere,
    }
}

fn read_document(document: &Node, source: &Source, d: &mut Decoder<'_>, objects: &mut Objects) {
    d.object("".into());
    let identity = (document.get("apiVersion"), document.get("kind"));
    let (Some(api_version), Some(kind_node)) = identity else {
        let message = "not an object: `apiVersion` and `kind` are needed";
        d.error(document.span, Code::MissingField, message);
        return;
    };
    let (Some(api_version_text), Some(kind)) = (api_version.as_str(), kind_node.as_str()) else {
        d.error(document.span, Code::WrongType, "`apiVersion` and `kind` are strings");
        return;
    };
    let class = classify(api_version_text, kind);
    d.object(loose_id(document, kind));
    match class {
        Class::Read(kind) => read_object(document, kind, source, d, objects),
        Class::List => {
            for item in document.get("items").map(Node::items).unwrap_or_default() {
                read_list_item(item, source, d, objects);
            }
        }
        Class::NotYet(severity) => {
            let message = format!("not supported yet: {kind} of {api_version_text} has no effect");
            d.report(kind_node.span, severity, Code::NotSupportedYet, message);
        }
        Class::Elsewhere => {
            let message = format!("{kind} of {api_version_text} is of no concern to the mesh");
            d.report(kind_node.span, Severity::Info, Code::Ignored, message);
        }
        Class::UnknownVersion(known) => {
            let message = format!("{kind} has no version {}; {known}", quoted(api_version_text));
            d.error(api_version.span, Code::InvalidValue, message);
        }
        Class::UnknownKind => {
            let message = format!("{} has no kind {}", quoted(api_version_text), quoted(kind));
            d.error(kind_node.span, Code::InvalidValue, message);
        }
    }
}

fn read_list_item(item: &Node, source: &Source, d: &mut Decoder<'_>, objects: &mut Objects) {
    if item.get("kind").and_then(Node::as_str) == Some("List") {
        d.error(item.span, Code::InvalidValue, "a List inside a List");
    } else {
        read_document(item, source, d, objects);
    }
}

/// `Kind namespace/name` of a document that may be wrong in every other way.
fn loose_id(document: &Node, kind: &str) -> Arc<str> {
    let metadata = document.get("metadata");
    let text = |name: &str| metadata.and_then(|node| node.get(name)).and_then(Node::as_str);
    let short = |text: &str| quoted(text).trim_matches('`').to_owned();
    let namespace = text("namespace").map_or_else(|| "default".to_owned(), short);
    match text("name") {
        Some(name) => format!("{} {namespace}/{}", short(kind), short(name)).into(),
        None => short(kind).into(),
    }
}

fn read_object(document: &Node, kind: ObjectKind, source: &Source, d: &mut Decoder<'_>, objects: &mut Objects) {
    if d.message(document, &["apiVersion", "kind", "metadata", "spec", "status"]).is_none() {
        return;
    }
    let Some(meta) = read_meta(document, kind, source, d) else {
        return;
    };
    d.object(meta.id());
    let Some(spec) = document.get("spec") else {
        // A WorkloadGroup or a Service may well be empty; the others say so in their own checks.
        d.error(document.span, Code::MissingField, "field `spec` is missing");
        return;
    };
    match kind {
        ObjectKind::VirtualService => keep(meta, spec, d, VirtualService::check, &mut objects.virtual_services),
        ObjectKind::DestinationRule => {
            keep(meta, spec, d, DestinationRule::check, &mut objects.destination_rules);
        }
        ObjectKind::ServiceEntry => keep(meta, spec, d, ServiceEntry::check, &mut objects.service_entries),
        ObjectKind::WorkloadEntry => {
            keep(meta, spec, d, |entry, d| entry.check("", d), &mut objects.workload_entries);
        }
        ObjectKind::WorkloadGroup => keep(meta, spec, d, WorkloadGroup::check, &mut objects.workload_groups),
        ObjectKind::Service => keep(meta, spec, d, Service::check, &mut objects.services),
    }
}

fn keep<T: Decode>(
    meta: Meta,
    spec: &Node,
    d: &mut Decoder<'_>,
    check: impl Fn(&T, &mut Decoder<'_>),
    into: &mut Vec<Arc<Object<T>>>,
) {
    support::report(meta.kind, spec, d);
    if let Some(spec) = T::decode(spec, d) {
        check(&spec, d);
        into.push(Arc::new(Object { meta, spec }));
    }
}

fn read_meta(document: &Node, kind: ObjectKind, source: &Source, d: &mut Decoder<'_>) -> Option<Meta> {
    let metadata: Metadata = d.required(document, "metadata")?;
    let namespace = metadata.namespace.as_ref().map_or("default", |text| text.value.as_str());
    let is_name = |text: &str, longest: usize| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        !text.is_empty() && text.len() <= longest && text.chars().all(allowed)
    };
    let mut fine = true;
    let mut check = |text: &str, longest: usize, span: Span, field: &'static str| {
        if !is_name(text, longest) {
            let message = format!("{} is not a name: lower-case letters, digits, `-` and `.`", quoted(text));
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
            fine = false;
        }
    };
    check(&metadata.name, 253, metadata.name.span, "metadata.name");
    if let Some(text) = &metadata.namespace {
        check(text, 63, text.span, "metadata.namespace");
    }
    if !fine {
        return None;
    }
    for key in metadata.annotations.keys() {
        let read = key == "networking.istio.io/exportTo" && kind == ObjectKind::Service;
        if key.contains("istio.io/") && !read {
            let message = format!("not supported yet: annotation {} has no effect", quoted(key));
            let field = "metadata.annotations";
            d.report_at(metadata.span, field, Severity::Warning, Code::NotSupportedYet, message);
        }
    }
    Some(Meta {
        kind,
        namespace: namespace.into(),
        name: metadata.name.value.as_str().into(),
        labels: metadata.labels,
        annotations: metadata.annotations,
        created: metadata.created,
        origin: Origin { source: source.clone(), span: document.span },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (ParsedFile, Vec<String>) {
        let file = read(Source { name: "t.yaml".into(), text: text.into() });
        let found = file.diagnostics.iter().map(ToString::to_string).collect();
        (file, found)
    }

    #[test]
    fn the_three_versions_of_a_kind_are_one() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let text = format!(
                "apiVersion: networking.istio.io/{version}\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: b}}\n"
            );
            let (file, found) = found(&text);
            assert!(found.is_empty(), "{found:?}");
            assert_eq!(&*file.objects.destination_rules[0].meta.id(), "DestinationRule default/a");
        }
        let (file, found) =
            found("apiVersion: networking.istio.io/v2\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: b}\n");
        assert!(file.rejected);
        assert!(found[0].starts_with("t.yaml:1:13: error[invalid-value]"), "{found:?}");
    }

    #[test]
    fn what_is_not_enforced_is_reported_by_field_with_its_position() {
        let (file, found) = found(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [b]
  gateways: [mesh, ingress]
  http:
  - corsPolicy:
      allowOrigins: [{exact: x}]
    retries: {attempts: 3, retryOn: '5xx,connect-failure', perTryTimeout: 1s}
    route:
    - destination: {host: b}
",
        );
        assert!(!file.rejected);
        assert_eq!(file.objects.virtual_services.len(), 1);
        assert_eq!(
            found,
            [
                "t.yaml:6:3: warning[not-supported-yet]: VirtualService default/a: gateways: not supported yet: gateways are not built; the rules apply inside the mesh",
                "t.yaml:8:5: warning[not-supported-yet]: VirtualService default/a: http[0].corsPolicy: not supported yet: no header of it is added or answered",
                "t.yaml:10:28: warning[not-supported-yet]: VirtualService default/a: http[0].retries.retryOn: not supported yet: 5xx; only connection failures and refused streams are retried",
                "t.yaml:10:60: warning[not-supported-yet]: VirtualService default/a: http[0].retries.perTryTimeout: not supported yet: a try lasts as long as the request may",
            ]
        );
    }

    #[test]
    fn kinds_that_are_not_built_are_reported_and_those_of_a_cluster_passed_over() {
        let (file, found) = found(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: x}\nspec: {}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: h}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: s}\n",
        );
        assert!(!file.rejected);
        let starts = [
            "t.yaml:2:7: info[ignored]: Deployment default/d:",
            "t.yaml:6:7: error[not-supported-yet]: AuthorizationPolicy x/p:",
            "t.yaml:11:7: warning[not-supported-yet]: HTTPRoute default/h:",
            "t.yaml:15:7: info[ignored]: ServiceAccount default/s:",
        ];
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_list_is_its_items() {
        let (file, found) = found(
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s}\n  spec: {ports: [{port: 80}]}\n",
        );
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(file.objects.services.len(), 1);
    }

    #[test]
    fn an_unknown_field_rejects_the_file_and_names_itself() {
        let (file, found) = found("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  port:\n  - port: 80\n");
        assert!(file.rejected && file.objects.is_empty());
        assert!(found[0].ends_with("Service default/s: port: unknown field; did you mean `ports`?"), "{found:?}");
        assert!(found[0].starts_with("t.yaml:5:3:"), "{found:?}");
    }

    #[test]
    fn a_document_without_a_kind_is_no_object() {
        for text in ["apiVersion: v1\nkind: Servce\n", "a: 1", "- 1", "just words", "apiVersion: 3\nkind: Service\n"] {
            let (file, found) = found(text);
            assert!(file.rejected, "{text}");
            assert_eq!(found.len(), 1, "{found:?}");
        }
    }
}
