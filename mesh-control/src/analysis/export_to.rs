//! Objects that are exported to namespaces in which no object is: only clients could be there.

use std::collections::BTreeSet;

use crate::config::decode::Text;
use crate::config::diagnostic::{Code, Diagnostic, Origin, Severity, quoted};
use crate::config::file::{Meta, Objects};
use crate::config::istio::service::{EXPORT_TO, exported_to};
use crate::config::spelling::nearest;

pub(super) fn check(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let known: BTreeSet<&str> = objects.metas().map(|meta| &*meta.namespace).collect();
    let mut say = |meta: &Meta, origin: &Origin, field: String, name: &str| {
        if matches!(name, "*" | "." | "~") || known.contains(name) {
            return;
        }
        let meant = nearest(name, &known).map(|meant| format!("; did you mean {}?", quoted(meant)));
        let message = format!("no object is in namespace {name}{}", meant.unwrap_or_default());
        let finding = Diagnostic::at(origin, Severity::Info, Code::UnknownReference, message);
        found.push(finding.object(meta.id()).field(field));
    };
    let mut list = |meta: &Meta, export_to: &[Text]| {
        for (index, entry) in export_to.iter().enumerate() {
            say(meta, &meta.origin.at(entry.span), format!("exportTo[{index}]"), entry);
        }
    };
    objects.virtual_services.iter().for_each(|object| list(&object.meta, &object.spec.export_to));
    objects.destination_rules.iter().for_each(|object| list(&object.meta, &object.spec.export_to));
    objects.service_entries.iter().for_each(|object| list(&object.meta, &object.spec.export_to));
    for meta in objects.services.iter().map(|object| &object.meta) {
        for name in exported_to(&meta.annotations) {
            say(meta, &meta.origin, format!("metadata.annotations.{EXPORT_TO}"), name);
        }
    }
}
