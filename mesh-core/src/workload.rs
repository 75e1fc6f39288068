//! Who a workload is to telemetry: Istio's names of it, and where they come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};

use crate::identity::SpiffeId;

/// How long a name may be that somebody else says: that of a Kubernetes object, which a DNS name is at most.
const LONGEST: usize = 253;

/// Labels that say the canonical name, the first one that is there (Istio: pkg/kube/labels).
const NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// The same of the revision.
const REVISIONS: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// All labels that something of a [`Workload`] is made of.
pub const LABELS: [&str; 6] = {
    let ([canonical, name, app], [revision, kubernetes, version]) = (NAMES, REVISIONS);
    [canonical, name, app, revision, kubernetes, version]
};

/// A workload, as the labels of Istio's metrics have it. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Workload {
    /// The workload's own name, such as that of a Deployment.
    pub name: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its label `app`.
    pub app: Option<Arc<str>>,
    /// Its label `version`.
    pub version: Option<Arc<str>>,
    /// The name of the service that it belongs to.
    pub canonical_name: Option<Arc<str>>,
    /// Which revision of that it is.
    pub canonical_revision: Option<Arc<str>>,
    /// The cluster that it is in.
    pub cluster: Option<Arc<str>>,
    /// The id of its node, where that is known: this process's own.
    pub node: Option<Arc<str>>,
}

impl Workload {
    /// What the metadata of an endpoint says: `workload;namespace;canonical name;canonical revision;cluster`.
    ///
    /// ```
    /// use mesh_core::workload::Workload;
    ///
    /// let reviews = Workload::of_endpoint("reviews-v2;default;reviews;v2;");
    /// assert_eq!((reviews.name.as_deref(), reviews.canonical_revision.as_deref()), (Some("reviews-v2"), Some("v2")));
    /// assert_eq!(reviews.cluster, None);
    /// ```
    pub fn of_endpoint(text: &str) -> Workload {
        let mut parts = text.split(';').map(said);
        let mut next = || parts.next().flatten();
        Workload {
            name: next(),
            namespace: next(),
            canonical_name: next(),
            canonical_revision: next(),
            cluster: next(),
            ..Workload::default()
        }
    }

    /// What the metadata of a node says (`WORKLOAD_NAME`, `NAMESPACE`, `LABELS`, `CLUSTER_ID`), in the form that Istio's agent
    /// writes. `id` is the node's: `type~ip~name.namespace~namespace.svc.domain` has a name and a namespace, too.
    pub fn of_node(id: &str, metadata: &Map<String, Value>) -> Workload {
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).and_then(said);
        let label = |key: &str| metadata.get("LABELS")?.get(key)?.as_str().and_then(said);
        let pod = || id.split('~').nth(2).and_then(|name| name.rsplit_once('.')).and_then(|(name, _)| said(name));
        let domain = || id.split('~').nth(3).and_then(|domain| domain.split('.').next()).and_then(said);
        let own = Workload::of_parts(
            text("WORKLOAD_NAME").or_else(|| text("NAME")).or_else(pod),
            text("NAMESPACE").or_else(domain),
            text("CLUSTER_ID"),
            label,
        );
        Workload { node: said(id), ..own }
    }

    /// A workload of this name, namespace and cluster with these labels.
    pub fn of_parts(
        name: Option<Arc<str>>,
        namespace: Option<Arc<str>>,
        cluster: Option<Arc<str>>,
        label: impl Fn(&str) -> Option<Arc<str>>,
    ) -> Workload {
        Workload {
            app: label("app"),
            version: label("version"),
            canonical_name: canonical_name(&label).map(|(_, name)| name).or_else(|| name.clone()),
            canonical_revision: canonical_revision(&label),
            name,
            namespace,
            cluster,
            node: None,
        }
    }
}

/// Who this process is: by what its node says, or by the labels that the control plane knows it by, those of its WorkloadGroup
/// among them.
#[derive(Debug, Default)]
pub struct OwnWorkload {
    said: Workload,
    known: ArcSwap<Workload>,
    version: AtomicU32,
}

impl OwnWorkload {
    /// By what its node says.
    pub fn new(said: Workload) -> OwnWorkload {
        OwnWorkload { known: ArcSwap::from_pointee(said.clone()), said, version: AtomicU32::new(0) }
    }

    /// Who it is by now.
    pub fn get(&self) -> Arc<Workload> {
        self.known.load_full()
    }

    /// Another number for each time that it is somebody else, for who keeps what was made of it.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The control plane knows it by these of the [`LABELS`]; where it says none, what the node says is in force.
    pub fn note_labels(&self, labels: &[(&'static str, Arc<str>)]) {
        let Workload { node, name, namespace, cluster, .. } = self.said.clone();
        let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| Arc::clone(value));
        let now = match labels {
            [] => self.said.clone(),
            _ => Workload { node, ..Workload::of_parts(name, namespace, cluster, label) },
        };
        if *self.known.load_full() != now {
            self.known.store(Arc::new(now));
            self.version.fetch_add(1, Ordering::Release);
        }
    }
}

/// The canonical name that labels say, with the label that says it.
///
/// ```
/// use mesh_core::workload::canonical_name;
///
/// let label = |key: &str| (key == "app").then_some("web");
/// assert_eq!(canonical_name(label), Some(("app", "web")));
/// ```
pub fn canonical_name<T>(label: impl Fn(&str) -> Option<T>) -> Option<(&'static str, T)> {
    NAMES.into_iter().find_map(|key| Some((key, label(key)?)))
}

/// The canonical revision that labels say.
///
/// ```
/// use mesh_core::workload::canonical_revision;
///
/// let label = |key: &str| (key == "version").then_some("v2");
/// assert_eq!(canonical_revision(label), Some("v2"));
/// ```
pub fn canonical_revision<T>(label: impl Fn(&str) -> Option<T>) -> Option<T> {
    REVISIONS.into_iter().find_map(label)
}

/// A name that somebody says, unless it is empty; of one that is too long the beginning.
pub fn said(text: &str) -> Option<Arc<str>> {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= LONGEST).last()?;
    text.get(..end).map(Arc::from)
}

/// How workloads tell each other who they are, in a header (`x-envoy-peer-metadata`).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Introductions {
    /// What a workload tells.
    pub encode: fn(&Workload) -> String,
    /// What somebody tells; `None` where that cannot be read.
    pub decode: fn(&[u8]) -> Option<Workload>,
}

impl Introductions {
    /// By these.
    pub fn new(encode: fn(&Workload) -> String, decode: fn(&[u8]) -> Option<Workload>) -> Self {
        Introductions { encode, decode }
    }
}

/// The other end of a request, as telemetry knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// The workload.
    pub workload: Workload,
    /// Who it is by its certificate.
    pub principal: Option<SpiffeId>,
}

impl Peer {
    /// A workload that has shown, or not, who it is. A namespace that it claims and its certificate does not have is not its
    /// own, and neither is anything else that it claims.
    pub fn new(workload: Workload, principal: Option<SpiffeId>) -> Peer {
        let Some((namespace, _)) = principal.as_ref().and_then(SpiffeId::workload) else {
            return Peer { workload, principal };
        };
        let is_own = workload.namespace.as_deref().is_none_or(|claimed| claimed == namespace);
        let mut workload = if is_own { workload } else { Workload::default() };
        workload.namespace = Some(namespace.into());
        Peer { workload, principal }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_says_who_its_workload_is_by_its_metadata_or_else_by_its_id() {
        let id = "mesh~10.0.0.1~web-1.shop~shop.svc.cluster.local";
        let said = |metadata: Value| Workload::of_node(id, metadata.as_object().unwrap());
        let full = said(json!({"WORKLOAD_NAME": "web", "NAMESPACE": "shop", "CLUSTER_ID": "east",
            "LABELS": {"app": "web", "version": "v2", "app.kubernetes.io/name": "frontend"}}));
        let texts = [&full.name, &full.namespace, &full.app, &full.version, &full.canonical_name];
        assert_eq!(texts.map(|text| text.as_deref().unwrap()), ["web", "shop", "web", "v2", "frontend"]);
        assert_eq!((full.canonical_revision.as_deref(), full.cluster.as_deref()), (Some("v2"), Some("east")));
        let bare = said(json!({"LABELS": 7}));
        let texts = [&bare.name, &bare.namespace, &bare.canonical_name].map(|text| text.as_deref().unwrap());
        assert_eq!(texts, ["web-1", "shop", "web-1"]);
        assert_eq!((bare.app, bare.canonical_revision), (None, None));
        assert_eq!(Workload::of_node("", &Map::new()), Workload::default());
    }

    #[test]
    fn the_labels_that_the_control_plane_knows_count_until_it_knows_none() {
        let metadata = json!({"WORKLOAD_NAME": "vm-1", "NAMESPACE": "shop", "LABELS": {"version": "v1"}});
        let said = Workload::of_node("vm~1", metadata.as_object().unwrap());
        let own = OwnWorkload::new(said.clone());
        assert_eq!((*own.get() == said, own.version()), (true, 0));
        own.note_labels(&[("app", "legacy".into()), ("version", "v2".into())]);
        let known = own.get();
        let texts = [&known.name, &known.namespace, &known.app, &known.version, &known.canonical_name, &known.node];
        let texts = texts.map(|text| text.as_deref().unwrap());
        assert_eq!(texts, ["vm-1", "shop", "legacy", "v2", "legacy", "vm~1"]);
        assert_eq!((known.canonical_revision.as_deref(), own.version()), (Some("v2"), 1));
        own.note_labels(&[("app", "legacy".into()), ("version", "v2".into())]);
        assert_eq!(own.version(), 1, "it is who it was");
        own.note_labels(&[]);
        assert_eq!((*own.get() == said, own.version()), (true, 2));
    }

    #[test]
    fn a_name_is_cut_between_two_characters() {
        let long = "é".repeat(200);
        assert_eq!(super::said(&long).unwrap().len(), 252);
        assert_eq!(super::said(""), None);
    }

    #[test]
    fn nobody_claims_a_namespace_that_its_certificate_does_not_have() {
        let claim = |namespace: &str| Workload::of_endpoint(&format!("web;{namespace};web;v1;"));
        let principal: Option<SpiffeId> = Some("spiffe://td/ns/shop/sa/web".parse().unwrap());
        let own = Peer::new(claim("shop"), principal.clone());
        assert_eq!(own.workload.name.as_deref(), Some("web"));
        let other = Peer::new(claim("pay"), principal);
        assert_eq!((other.workload.name, other.workload.namespace.as_deref()), (None, Some("shop")));
        assert_eq!(Peer::new(claim("pay"), None).workload.namespace.as_deref(), Some("pay"));
    }
}
