//! `ReferenceGrant` (gateway.networking.k8s.io): which routes of other namespaces may refer to objects of its own.

use super::{fault, is_namespace};
use crate::config::decode::{Decoder, Text, message};
use crate::config::diagnostic::quoted;

message! {
    /// The specification.
    pub struct ReferenceGrant {
        /// Who may refer.
        from: Vec<GrantedFrom> = "from" required,
        /// To what.
        to: Vec<GrantedTo> = "to" required,
    }
    /// Objects that may refer.
    pub struct GrantedFrom {
        /// Their group.
        group: String = "group" required,
        /// Their kind.
        kind: Text = "kind" required,
        /// Their namespace.
        namespace: Text = "namespace" required,
    }
    /// Objects that may be referred to.
    pub struct GrantedTo {
        /// Their group.
        group: String = "group" required,
        /// Their kind.
        kind: Text = "kind" required,
        /// The name of the only one; all of the namespace where nothing is written.
        name: Option<Text> = "name",
    }
}

impl ReferenceGrant {
    /// What both grant.
    pub fn and(&self, other: &ReferenceGrant) -> ReferenceGrant {
        let is_same = |a: &GrantedFrom, b: &GrantedFrom| {
            (&a.group, &a.kind.value, &a.namespace.value) == (&b.group, &b.kind.value, &b.namespace.value)
        };
        let from = self.from.iter().filter(|from| other.from.iter().any(|other| is_same(from, other)));
        let to = self.to.iter().flat_map(|to| {
            let alike =
                other.to.iter().filter(|other| (&to.group, &to.kind.value) == (&other.group, &other.kind.value));
            alike.filter_map(|other| match (&to.name, &other.name) {
                (Some(own), Some(name)) if own.value != name.value => None,
                (None, Some(_)) => Some(other.clone()),
                _ => Some(to.clone()),
            })
        });
        ReferenceGrant { span: self.span, from: from.cloned().collect(), to: to.collect() }
    }

    /// What the schema refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        for (field, is_empty) in [("from", self.from.is_empty()), ("to", self.to.is_empty())] {
            if is_empty {
                fault(d, self.span, field.to_owned(), "at least one is needed");
            }
        }
        for (index, from) in self.from.iter().enumerate() {
            if !is_namespace(&from.namespace) {
                let message = format!("{} is not the name of a namespace", quoted(&from.namespace));
                fault(d, from.namespace.span, format!("from[{index}].namespace"), message);
            }
        }
        let kinds = self.from.iter().map(|from| &from.kind).chain(self.to.iter().map(|to| &to.kind));
        for kind in kinds.filter(|kind| kind.is_empty()) {
            fault(d, kind.span, "from".to_owned(), "an empty kind is none");
        }
        for (index, to) in self.to.iter().enumerate() {
            if let Some(name) = to.name.as_ref().filter(|name| name.is_empty()) {
                let message = "an empty name is none; without `name` it is for all of them";
                fault(d, name.span, format!("to[{index}].name"), message);
            }
        }
    }
}
