//! Secrets by their names: what a `credentialName` means.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Objects;
use crate::config::file::Object;
pub use crate::config::istio::secret::{Pem, Secret};

/// What the name of a Secret ends in that has authorities for one without the ending (Istio).
pub const AUTHORITIES: &str = "-cacert";

/// See the [module](self). Whoever asks has made sure that the namespace is one whose Secrets the client may have.
#[derive(Debug, Default)]
pub struct Secrets(BTreeMap<Arc<str>, OfNamespace>);

/// Those of a namespace, by their names.
type OfNamespace = BTreeMap<Arc<str>, Arc<Object<Secret>>>;

impl Secrets {
    pub(super) fn new(objects: &Objects) -> Secrets {
        let mut all = BTreeMap::<_, OfNamespace>::new();
        for secret in &objects.secrets {
            let of_namespace = all.entry(Arc::clone(&secret.meta.namespace)).or_default();
            of_namespace.insert(Arc::clone(&secret.meta.name), Arc::clone(secret));
        }
        Secrets(all)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<Secret>>> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// The Secret of a name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Secret> {
        Some(&self.0.get(namespace)?.get(name)?.spec)
    }

    /// The authorities for a name, and lists of what they revoked: those of the Secret `NAME-cacert`, if there is one, or else
    /// its own (Istio: kube/secrets.go).
    pub fn authorities(&self, namespace: &str, name: &str) -> Option<(&Pem, Option<&Pem>)> {
        let beside = self.get(namespace, &format!("{name}{AUTHORITIES}"));
        let secret = beside.or_else(|| self.get(namespace, name))?;
        Some((secret.authorities.as_ref()?, secret.revoked.as_ref()))
    }
}
