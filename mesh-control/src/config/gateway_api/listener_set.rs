//! `ListenerSet` (gateway.networking.k8s.io): listeners that are added to those of a Gateway, by others than its owner.

use super::gateway::{Listener, check_listeners};
use super::{check_name, check_namespace};
use crate::config::decode::{Decoder, Text, message};
use crate::config::support::is_gateway_kind;

message! {
    /// The specification.
    pub struct ListenerSet {
        /// The Gateway.
        parent_ref: ParentGateway = "parentRef" required,
        /// Where it listens besides.
        listeners: Vec<Listener> = "listeners" required,
    }
    /// A Gateway.
    pub struct ParentGateway {
        /// Its group; that of Gateways where nothing is written.
        group: Option<Text> = "group",
        /// Its kind; `Gateway` where nothing is written.
        kind: Option<Text> = "kind",
        /// Its name.
        name: Text = "name" required,
        /// Its namespace; the ListenerSet's own where nothing is written.
        namespace: Option<Text> = "namespace",
    }
}

impl ParentGateway {
    /// Whether it is a Gateway.
    pub fn is_gateway(&self) -> bool {
        let group = self.group.as_ref().map(|group| group.value.as_str());
        is_gateway_kind(group, self.kind.as_ref().map(|kind| kind.value.as_str()))
    }

    /// Whether it is the Gateway of this namespace and name, to a ListenerSet of the namespace `own`.
    pub fn is(&self, own: &str, namespace: &str, name: &str) -> bool {
        self.is_gateway() && self.namespace(own) == namespace && *self.name.value == *name
    }

    /// Its namespace, to a ListenerSet of the namespace `own`.
    pub fn namespace<'n>(&'n self, own: &'n str) -> &'n str {
        self.namespace.as_ref().map_or(own, |namespace| namespace.value.as_str())
    }
}

impl ListenerSet {
    /// What the schema refuses, but for listeners that are in each other's way: those are told one by one.
    pub fn check(&self, d: &mut Decoder<'_>) {
        check_name(&self.parent_ref.name, "parentRef", d);
        check_namespace(&self.parent_ref.namespace, "parentRef", d);
        check_listeners(&self.listeners, self.span, d);
    }
}
