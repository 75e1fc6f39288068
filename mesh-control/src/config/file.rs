//! One text, read into objects: which documents are ours, who they are, and what is wrong with them.
//!
//! An object is right or wrong by itself. One that is wrong is left out and the others of the text are not; what is
//! still known of it is kept (`refused.rs`), so that what it governs can fail closed.

mod classify;
mod closed;
mod foreign;
mod mesh_config;
mod object;
mod pods;
mod refused;
mod spec;
mod suspect;
mod workloads;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::decode::Decoder;
use super::diagnostic::{
    Code, Diagnostic, NO_PROXY, OWN_TOPOLOGY, Origin, Severity, Source, Span, is_resource, quoted,
};
use super::extensions::filter_schema::FilterSchema;
use super::extensions::overload::Overload;
use super::extensions::quota::Quota;
use super::extensions::rate_limit::RateLimit;
use super::extensions::request_rules::RequestRules;
use super::extensions::{self, Extensions, envoy_filter};
use super::gateway_api::backend_tls_policy::BackendTlsPolicy;
use super::gateway_api::backend_traffic_policy::BackendTrafficPolicy;
use super::gateway_api::connection_route::{TcpRoute, TlsRoute};
use super::gateway_api::gateway::KubernetesGateway;
use super::gateway_api::grpc_route::GrpcRoute;
use super::gateway_api::http_route::HttpRoute;
use super::gateway_api::listener_set::ListenerSet;
use super::gateway_api::reference_grant::ReferenceGrant;
use super::istio::destination_rule::DestinationRule;
use super::istio::gateway::Gateway;
use super::istio::mesh_config::MeshConfig;
use super::istio::secret::{self, Authorities, Secret};
use super::istio::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use super::istio::service::Service;
use super::istio::service_entry::ServiceEntry;
use super::istio::sidecar::Sidecar;
use super::istio::telemetry::Telemetry;
use super::istio::virtual_service::VirtualService;
use super::istio::wasm_plugin::WasmPlugin;
use super::istio::workload_entry::WorkloadEntry;
use super::istio::workload_group::WorkloadGroup;
use super::node::{self, Node, Value};
use super::support::ObjectKind;
use classify::{Class, classify, is_foreign, without_version};
pub use closed::{Closes, Listens};
pub use mesh_config::{is_mesh_file, mesh_file_name};
pub use object::{Metadata, is_namespace};
use object::{read_object, read_secret};
pub use pods::PodLabels;
pub use refused::{AtGateways, Governs, Parent, Refused};
pub use workloads::{GatewayTarget, Target, Workloads};

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
    /// What annotations of our own say.
    pub extensions: Extensions,
    /// `creationTimestamp`, as exported from a cluster, in UTC to the nanosecond, so that texts compare as times do; empty in a file
    /// that a person wrote, and where it is no time.
    pub created: String,
    /// Where it is written.
    pub origin: Origin,
}

impl Meta {
    /// `Kind namespace/name`.
    pub fn id(&self) -> Arc<str> {
        format!("{} {}/{}", self.kind.title(), self.namespace, self.name).into()
    }

    /// What the older of two has less of: whether nothing is said of its age, and since when it is there. The only order by age that
    /// there is. What has none, or a time that is none, is younger than all that have one, and takes nothing away from them: it is what a
    /// file says that a cluster does not have yet. (In Istio, no time is before any other.) Of two of the same age, the specification of
    /// their kind says which goes first.
    pub fn age(&self) -> Age<'_> {
        (self.created.is_empty(), &self.created)
    }

    /// Objects of Istio that compete are taken in this order: the oldest first, then by name, then by namespace
    /// (virtualservice_controller.go, config.go).
    pub fn order(&self) -> (Age<'_>, &str, &str) {
        (self.age(), &self.name, &self.namespace)
    }

    /// The same of Gateway API's: the oldest first, then by namespace, then by name.
    pub fn order_by_namespace(&self) -> (Age<'_>, &str, &str) {
        (self.age(), &self.namespace, &self.name)
    }

    /// What tells it from every other object.
    pub fn key(&self) -> ObjectKey {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

/// How old an object is: see [`Meta::age`].
pub type Age<'m> = (bool, &'m str);

/// What tells an object from every other: kind, namespace, name.
pub type ObjectKey = (ObjectKind, Arc<str>, Arc<str>);

/// An object of some kind.
#[derive(Clone, Debug)]
pub struct Object<T> {
    /// Who it is.
    pub meta: Meta,
    /// What it says.
    pub spec: T,
}

/// The kinds of object: where each has its place in [`Objects`].
macro_rules! objects {
    ($($(#[$doc:meta])* $field:ident: $kind:ident,)*) => {
        /// Objects by kind.
        #[derive(Clone, Debug, Default)]
        pub struct Objects {
            $($(#[$doc])* pub $field: Vec<Arc<Object<$kind>>>,)*
            /// Those that are wrong, and have no last good state that could stand in for them.
            pub refused: Vec<Arc<Refused>>,
            /// Workloads that documents beside them make.
            pub pods: Vec<PodLabels>,
        }

        /// One object of any kind.
        #[derive(Clone, Debug)]
        pub enum Item {
            $($(#[$doc])* $kind(Arc<Object<$kind>>),)*
            /// One that is wrong.
            Refused(Arc<Refused>),
        }

        impl Objects {
            /// How many are in force; those that are wrong are not.
            pub fn len(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Who they are, those that are wrong among them.
            pub fn metas(&self) -> impl Iterator<Item = &Meta> {
                let refused = self.refused.iter().map(|object| &object.meta);
                refused $(.chain(self.$field.iter().map(|object| &object.meta)))*
            }

            /// Leaves those out that are of other namespaces.
            pub fn retain_namespace(&mut self, namespace: &str) {
                $(self.$field.retain(|object| *object.meta.namespace == *namespace);)*
                self.refused.retain(|object| *object.meta.namespace == *namespace);
                self.pods.retain(|pods| *pods.namespace == *namespace);
            }

            /// Adds one.
            pub fn push(&mut self, item: Item) {
                match item {
                    $(Item::$kind(object) => self.$field.push(object),)*
                    Item::Refused(object) => self.refused.push(object),
                }
            }
        }

        impl Item {
            /// Who it is.
            pub fn meta(&self) -> &Meta {
                match self {
                    $(Item::$kind(object) => &object.meta,)*
                    Item::Refused(object) => &object.meta,
                }
            }
        }
    };
}

objects! {
    /// VirtualServices.
    virtual_services: VirtualService,
    /// DestinationRules.
    destination_rules: DestinationRule,
    /// ServiceEntries.
    service_entries: ServiceEntry,
    /// WorkloadEntries.
    workload_entries: WorkloadEntry,
    /// WorkloadGroups.
    workload_groups: WorkloadGroup,
    /// Sidecars.
    sidecars: Sidecar,
    /// Gateways.
    gateways: Gateway,
    /// Services.
    services: Service,
    /// PeerAuthentications.
    peer_authentications: PeerAuthentication,
    /// RequestAuthentications.
    request_authentications: RequestAuthentication,
    /// AuthorizationPolicies.
    authorization_policies: AuthorizationPolicy,
    /// Settings of the mesh: there is one object of them at most.
    mesh_configs: MeshConfig,
    /// Telemetries.
    telemetries: Telemetry,
    /// HTTPRoutes.
    http_routes: HttpRoute,
    /// GRPCRoutes.
    grpc_routes: GrpcRoute,
    /// ReferenceGrants.
    reference_grants: ReferenceGrant,
    /// Gateways of Gateway API.
    kubernetes_gateways: KubernetesGateway,
    /// TLSRoutes.
    tls_routes: TlsRoute,
    /// TCPRoutes.
    tcp_routes: TcpRoute,
    /// ListenerSets.
    listener_sets: ListenerSet,
    /// BackendTLSPolicies.
    backend_tls_policies: BackendTlsPolicy,
    /// XBackendTrafficPolicies.
    backend_traffic_policies: BackendTrafficPolicy,
    /// RateLimits, and EnvoyFilters that say the same.
    rate_limits: RateLimit,
    /// Overloads.
    overloads: Overload,
    /// WasmPlugins.
    wasm_plugins: WasmPlugin,
    /// RequestRules.
    request_rules: RequestRules,
    /// FilterSchemas.
    filter_schemas: FilterSchema,
    /// Quotas.
    quotas: Quota,
    /// Secrets that hold certificates.
    secrets: Secret,
    /// ConfigMaps that hold authorities.
    authorities: Authorities,
}

impl Item {
    /// Whether it guards workloads.
    pub(super) fn guards(&self) -> bool {
        refused::is_guard(self.meta().kind)
    }
}

impl Objects {
    /// Whether none is in force.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a text says, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct ParsedFile {
    /// The text.
    pub source: Source,
    /// Its objects, right and wrong, in the order in which they are written.
    pub items: Vec<Item>,
    /// Workloads that other documents in it make.
    pub pods: Vec<PodLabels>,
    /// What is wrong with documents of which nobody can tell which object they are.
    pub unread: Vec<Diagnostic>,
    /// What is to be said about it.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether anything in it is wrong.
    pub rejected: bool,
}

impl ParsedFile {
    fn empty(source: Source) -> ParsedFile {
        ParsedFile {
            source,
            items: Vec::new(),
            pods: Vec::new(),
            unread: Vec::new(),
            diagnostics: Vec::new(),
            rejected: false,
        }
    }

    /// Nothing of the text can be read; what may guard workloads does all the same.
    fn unreadable(mut self, why: Diagnostic, suspects: Vec<Refused>) -> ParsedFile {
        self.items.extend(suspects.into_iter().map(|refused| Item::Refused(Arc::new(refused))));
        self.unread.push(why.clone());
        self.diagnostics.push(why);
        self.rejected = true;
        self
    }
}

/// What may be in a text that is none: of a file that cannot be read, as much as is known of it.
pub(super) fn read_remains(remains: Source, why: Diagnostic) -> ParsedFile {
    if is_mesh_file(&remains.name) {
        return mesh_config::unreadable(ParsedFile::empty(remains), why);
    }
    let suspects = suspect::in_remains(&remains, &why);
    ParsedFile::empty(remains).unreadable(why, suspects)
}

/// Reads one text.
pub fn read(source: Source) -> ParsedFile {
    let mut file = ParsedFile::empty(source);
    if is_mesh_file(&file.source.name) {
        return mesh_config::read_file(file);
    }
    let foreign = is_foreign(&file.source.name);
    let whole = 0..file.source.text.len();
    let parts = match node::parse(&file.source) {
        Ok(documents) if foreign && documents.iter().all(|document| document.get("kind").is_none()) => {
            file.diagnostics.push(other_tools(&file.source));
            return file;
        }
        Ok(documents) => vec![(whole, Ok(documents))],
        // `tsconfig.json` has comments, which YAML does not know.
        Err(_) if foreign && !file.source.text.contains("apiVersion") => {
            file.diagnostics.push(other_tools(&file.source));
            return file;
        }
        Err(error) => node::parse_each(&file.source).unwrap_or_else(|| vec![(whole, Err(error))]),
    };
    let mut d = Decoder::new(&file.source);
    let mut reader = Reader { source: &file.source, items: Vec::new(), pods: Vec::new(), unread: Vec::new() };
    let mut diagnostics = Vec::new();
    for (bytes, read) in parts {
        match read {
            Ok(documents) => documents.iter().for_each(|document| reader.document(document, &mut d)),
            Err(error) => {
                reader.unreadable(&bytes, &error);
                diagnostics.push(error);
            }
        }
    }
    let Reader { items, pods, unread, .. } = reader;
    diagnostics.extend(d.into_found());
    if is_resource(&file.source.name) {
        // A cluster writes its defaults into every object, and acts by them itself.
        diagnostics.retain(|finding| finding.severity != Severity::Info);
    }
    file.rejected = !unread.is_empty() || items.iter().any(|item| matches!(item, Item::Refused(_)));
    ParsedFile { items, pods, unread, diagnostics, ..file }
}

fn other_tools(source: &Source) -> Diagnostic {
    let message = "by its name it is another tool's file, and nothing in it is an object";
    Diagnostic::of_file(source.name.clone(), Severity::Info, Code::Ignored, message)
}

/// Reads the documents of one text, each by itself.
struct Reader<'s> {
    source: &'s Source,
    items: Vec<Item>,
    pods: Vec<PodLabels>,
    unread: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn document(&mut self, document: &Node, d: &mut Decoder<'_>) {
        d.object("".into());
        let identity = (document.get("apiVersion"), document.get("kind"));
        let (Some(api_version), Some(kind_node)) = identity else {
            let message = match (document.get("domain"), document.get("descriptors")) {
                (Some(_), Some(_)) => "not an object: rules of a rate limit service are for `--ratelimit-config`",
                _ => "not an object: `apiVersion` and `kind` are needed",
            };
            d.error(document.span, Code::MissingField, message);
            return self.unidentified(document, d);
        };
        let (Some(api_version_text), Some(kind)) = (api_version.as_str(), kind_node.as_str()) else {
            d.error(document.span, Code::WrongType, "`apiVersion` and `kind` are strings");
            return self.unidentified(document, d);
        };
        let class = match classify(api_version_text, kind) {
            Class::Foreign(_) if kind == "EnvoyFilter" && envoy_filter::is_limit(document) => {
                Class::Read(ObjectKind::EnvoyFilter)
            }
            class => class,
        };
        d.object(loose_id(document, kind));
        if !matches!(class, Class::Read(_) | Class::List | Class::UnknownVersion(..) | Class::Mistyped(_)) {
            idle_extensions(document, kind, d);
        }
        if matches!(class, Class::Elsewhere(_)) {
            self.pods.extend(pods::of(document, kind));
        }
        match class {
            Class::Read(kind) => match read_object(document, kind, self.source, d) {
                Some(item) if !d.is_rejected() => self.items.push(item),
                _ => self.refused(document, kind, d),
            },
            Class::List => self.list(document, d),
            Class::ConfigMap => self.config_map(document, kind_node, d),
            Class::Secret if secret::is_of_tls(document) => self.secret(document, d),
            Class::Secret => {
                let message = "Secret of v1 is of no concern to the mesh: it has no certificates";
                d.report(kind_node.span, Severity::Info, Code::Ignored, message);
            }
            Class::Foreign(foreign) if let Some(lack) = foreign.lack(document) => {
                d.report_at(
                    lack.place.span,
                    lack.field.clone(),
                    Severity::Error,
                    Code::Unenforced,
                    lack.message.clone(),
                );
                let Some(finding) = d.take_rejection() else { return };
                let refused = refused::foreign(document, foreign, self.source, &finding);
                self.items.push(Item::Refused(Arc::new(refused)));
            }
            Class::Foreign(_) if let Some(instead) = envoy_filter::instead(document) => {
                let message = format!("not supported yet: {kind} of {api_version_text} has no effect; {instead}");
                d.report(kind_node.span, Severity::Warning, Code::NotSupportedYet, message);
            }
            Class::Foreign(_) => self.not_yet((kind, api_version_text), kind_node.span, Severity::Warning, d),
            Class::NotYet(severity) => self.not_yet((kind, api_version_text), kind_node.span, severity, d),
            Class::Elsewhere(_) if let Some(span) = topology_of(document) => {
                let message = format!("annotation {} is not read: {OWN_TOPOLOGY}; {NO_PROXY}", quoted(PROXY_CONFIG));
                d.report(span, Severity::Warning, Code::NotSupportedYet, message);
            }
            Class::Elsewhere(_) if let Some((span, name)) = idle_of_namespace(document, kind) => {
                let message = format!(
                    "annotation {} has no effect on a Namespace: `spec.trafficDistribution` of its Services has",
                    quoted(name)
                );
                d.report(span, Severity::Warning, Code::NotSupportedYet, message);
            }
            Class::Elsewhere(_) if let Some((span, target)) = attached_to(document) => {
                let message = format!(
                    "{kind} of {api_version_text} has no effect here: it is for another controller of {target}"
                );
                d.report(span, Severity::Warning, Code::NotSupportedYet, message);
            }
            Class::Elsewhere(why) => {
                let message = format!("{kind} of {api_version_text} {why}");
                d.report(kind_node.span, Severity::Info, Code::Ignored, message);
            }
            Class::UnknownVersion(read) => {
                let known = match read.versions() {
                    [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
                    versions => versions.concat(),
                };
                let message = format!("{kind} has no version {}; {known}", quoted(api_version_text));
                d.error(api_version.span, Code::InvalidValue, message);
                self.refused(document, read, d);
            }
            Class::Mistyped(meant) => {
                let article = if meant.name().starts_with(['A', 'E', 'H', 'I', 'O', 'U']) { "an" } else { "a" };
                let message = format!(
                    "{} has no kind {}; it is taken for {article} {} that is wrong",
                    quoted(api_version_text),
                    quoted(kind),
                    meant.name()
                );
                d.error(kind_node.span, Code::InvalidValue, message);
                self.refused(document, meant, d);
            }
            Class::UnknownKind => {
                let message = format!("{} has no kind {}", quoted(api_version_text), quoted(kind));
                d.error(kind_node.span, Code::InvalidValue, message);
                self.unread(document, d);
            }
        }
    }

    fn not_yet(&self, (kind, version): (&str, &str), span: Span, severity: Severity, d: &mut Decoder<'_>) {
        let message = format!("not supported yet: {kind} of {version} has no effect");
        d.report(span, severity, Code::NotSupportedYet, message);
    }

    fn list(&mut self, document: &Node, d: &mut Decoder<'_>) {
        // A list that is wrong in itself may have been meant to hold anything.
        d.message(document, &["apiVersion", "kind", "metadata", "items"]);
        let Some(items) = document.get("items") else {
            d.error(document.span, Code::MissingField, "field `items` is missing");
            return self.unread(document, d);
        };
        let is_list = matches!(items.value, Value::Seq(_));
        if !is_list {
            d.wrong_type(items, "a list");
        }
        let entries = document.entries().iter().map(|(key, value)| (Some(key.name.as_str()), value));
        self.unread_parts(entries.filter(|(key, _)| !is_list || *key != Some("items")), d);
        for item in items.items() {
            if item.get("kind").and_then(Node::as_str) == Some("List") {
                d.error(item.span, Code::InvalidValue, "a List inside a List");
                self.unread(item, d);
            } else {
                self.document(item, d);
            }
        }
    }

    /// An object of this kind is wrong.
    fn refused(&mut self, document: &Node, kind: ObjectKind, d: &mut Decoder<'_>) {
        self.refused_of(document, kind, self.source, d);
    }

    fn refused_of(&mut self, document: &Node, kind: ObjectKind, source: &Source, d: &mut Decoder<'_>) {
        let Some(finding) = d.take_rejection() else { return };
        match refused::read(document, kind, source, &finding) {
            Some(refused) => {
                // It may be any object, so that none of the text can be taken for gone.
                if !refused.is_identified || !refused.is_whole {
                    self.unread.push(finding);
                }
                self.items.push(Item::Refused(Arc::new(refused)));
            }
            None => self.unread.push(finding),
        }
    }

    /// A Secret. What is kept of it, and said of it, is without its text.
    fn secret(&mut self, document: &Node, d: &mut Decoder<'_>) {
        let source = Source { name: self.source.name.clone(), text: "".into() };
        d.conceal();
        match read_secret(document, &source, d) {
            Some(object) if !d.is_rejected() => self.items.push(Item::Secret(Arc::new(object))),
            _ => {
                let written = self.items.len();
                self.refused_of(document, ObjectKind::Secret, &source, d);
                for item in self.items.iter_mut().skip(written) {
                    if let Item::Refused(refused) = item {
                        Arc::make_mut(refused).meta.annotations.clear();
                    }
                }
            }
        }
    }

    /// A document that does not say in full what it is.
    fn unidentified(&mut self, document: &Node, d: &mut Decoder<'_>) {
        match refused::kind(document).and_then(without_version) {
            Some(kind) => self.refused(document, kind, d),
            None => self.unread(document, d),
        }
    }

    /// A document may be any object.
    fn unread(&mut self, document: &Node, d: &mut Decoder<'_>) {
        self.unread_parts([(None, document)].into_iter(), d);
    }

    /// A part of the text is no YAML.
    fn unreadable(&mut self, bytes: &Range<usize>, why: &Diagnostic) {
        let suspects = suspect::in_text(self.source, bytes, why);
        self.items.extend(suspects.into_iter().map(|refused| Item::Refused(Arc::new(refused))));
        self.unread.push(why.clone());
    }

    /// These parts of a document may be any object.
    fn unread_parts<'n>(&mut self, parts: impl Iterator<Item = (Option<&'n str>, &'n Node)>, d: &mut Decoder<'_>) {
        let Some(finding) = d.take_rejection() else { return };
        let suspects = suspect::in_nodes(parts, self.source, &finding);
        self.items.extend(suspects.into_iter().map(|refused| Item::Refused(Arc::new(refused))));
        self.unread.push(finding);
    }
}

/// Settings of our own on an object of a kind that has none.
fn idle_extensions(document: &Node, kind: &str, d: &mut Decoder<'_>) {
    let annotations = document.get("metadata").and_then(|node| node.get("annotations"));
    for (key, _) in annotations.map(Node::entries).unwrap_or_default() {
        if key.name.starts_with(extensions::PREFIX) {
            let message = format!("without effect: no setting of a {} is read from it", quoted(kind));
            let field = format!("metadata.annotations.{}", quoted(&key.name).trim_matches('`'));
            d.report_at(key.span, field, Severity::Warning, Code::Ignored, message);
        }
    }
}

/// The annotation that says which findings of `analyze` are not to be told.
pub const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Settings of one workload's proxy, as an annotation.
const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// Whether an annotation says how many proxies are in front of a workload.
fn is_topology(key: &str, value: &str) -> bool {
    key == PROXY_CONFIG && ["gatewayTopology", "numTrustedProxies"].iter().any(|word| value.contains(word))
}

/// The same of a Pod, or of what makes Pods, which is of no concern otherwise.
fn topology_of(document: &Node) -> Option<Span> {
    let template = document.get("spec").and_then(|spec| spec.get("template"));
    let found = [Some(document), template].into_iter().flatten().find_map(|one| {
        let entries = one.get("metadata")?.get("annotations")?.entries();
        entries.iter().find(|(key, value)| value.as_str().is_some_and(|value| is_topology(&key.name, value)))
    });
    found.map(|(key, _)| key.span)
}

/// What an object of another controller is attached to of Gateway API, as its policies are: it may guard or limit what is served here.
fn attached_to(document: &Node) -> Option<(Span, String)> {
    let spec = document.get("spec")?;
    let targets = spec.get("targetRefs").map_or(&[][..], Node::items);
    targets.iter().chain(spec.get("targetRef")).find_map(|target| {
        let word = |name: &str| target.get(name).and_then(Node::as_str);
        let is_of_it = word("group") == Some(ObjectKind::HttpRoute.group());
        is_of_it.then(|| (target.span, quoted(&[word("kind"), word("name")].map(Option::unwrap_or_default).join(" "))))
    })
}

/// What Istio reads of a Namespace for the services in it, where it has that.
fn idle_of_namespace<'n>(document: &'n Node, kind: &str) -> Option<(Span, &'n str)> {
    const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
    let annotations =
        document.get("metadata").and_then(|node| node.get("annotations")).filter(|_| kind == "Namespace")?;
    let (key, _) = annotations.entries().iter().find(|(key, _)| *key.name == *TRAFFIC_DISTRIBUTION)?;
    Some((key.span, &key.name))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (ParsedFile, Vec<String>) {
        let file = read(Source { name: "t.yaml".into(), text: text.into() });
        let found = file.diagnostics.iter().map(ToString::to_string).collect();
        (file, found)
    }

    fn objects(file: ParsedFile) -> Objects {
        let mut objects = Objects::default();
        file.items.into_iter().for_each(|item| objects.push(item));
        objects
    }

    #[test]
    fn the_three_versions_of_a_kind_are_one() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let text = format!(
                "apiVersion: networking.istio.io/{version}\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: b}}\n"
            );
            let (file, found) = found(&text);
            assert!(found.is_empty(), "{found:?}");
            assert_eq!(&*objects(file).destination_rules[0].meta.id(), "DestinationRule default/a");
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
  - match: [{statPrefix: a}]
    retries: {attempts: 3, retryOn: '5xx,retriable-headers', retryRemoteLocalities: true}
    route:
    - destination: {host: b}
",
        );
        assert!(!file.rejected);
        assert_eq!(objects(file).virtual_services.len(), 1);
        assert_eq!(
            found,
            [
                "t.yaml:8:14: warning[not-supported-yet]: VirtualService default/a: http[0].match[0].statPrefix: not supported yet: statistics carry the route's name only",
                "t.yaml:9:28: warning[not-supported-yet]: VirtualService default/a: http[0].retries.retryOn: not supported yet: retriable-headers; there is no field that names the headers",
            ]
        );
    }

    #[test]
    fn kinds_that_are_not_built_are_reported_and_those_of_a_cluster_passed_over() {
        let (file, found) = found(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: BackendLBPolicy\nmetadata: {name: p, namespace: x}\nspec: {}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: h}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: s}\n",
        );
        assert!(!file.rejected);
        let starts = [
            "t.yaml:2:7: info[ignored]: Deployment default/d:",
            "t.yaml:6:7: warning[not-supported-yet]: BackendLBPolicy x/p:",
            "t.yaml:11:7: warning[not-supported-yet]: UDPRoute default/h:",
            "t.yaml:15:7: info[ignored]: NetworkPolicy default/s:",
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
        assert_eq!(objects(file).services.len(), 1);
    }

    #[test]
    fn an_unknown_field_rejects_the_object_and_names_itself() {
        let (file, found) = found("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  port:\n  - port: 80\n");
        assert!(file.rejected);
        let objects = objects(file);
        assert_eq!((objects.len(), objects.refused.len()), (0, 1));
        assert!(found[0].ends_with("Service default/s: port: unknown field; did you mean `ports`?"), "{found:?}");
        assert!(found[0].starts_with("t.yaml:5:3:"), "{found:?}");
    }

    /// Istio's resource definitions have two fields by two names.
    #[test]
    fn a_field_of_two_names_is_read_by_either_and_not_by_both() {
        let mirror = |fields: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\n\
                 spec: {{hosts: [b], http: [{{route: [{{destination: {{host: b}}}}], mirror: {{host: c}}, {fields}}}]}}\n"
            )
        };
        let tokens = |fields: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: a}}\n\
                 spec: {{jwtRules: [{{issuer: me, {fields}}}]}}\n"
            )
        };
        let (file, said) = found(&mirror("mirror_percent: 7"));
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(objects(file).virtual_services[0].spec.http[0].mirror_percent, Some(7));
        let uri = "https://me.example.com/keys";
        let (file, said) = found(&tokens(&format!("jwks_uri: '{uri}'")));
        assert!(said.is_empty(), "{said:?}");
        let rule = &objects(file).request_authentications[0].spec.jwt_rules[0];
        assert_eq!(rule.jwks_uri.as_deref(), Some(uri));
        for (text, names) in [
            (mirror("mirror_percent: 7, mirrorPercent: 7"), "`mirrorPercent` and `mirror_percent`"),
            (tokens("jwksUri: 'https://a/a', jwks_uri: 'https://a/a'"), "`jwksUri` and `jwks_uri`"),
        ] {
            let (file, said) = found(&text);
            assert!(file.rejected && said.len() == 1 && said[0].contains(names), "{said:?}");
        }
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
