//! What became of objects of the configuration and of workloads, counted by kind: Istiod's `pilot_k8s_cfg_events` and
//! `pilot_k8s_reg_events`, which dashboards draw.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::config::file::Meta;

/// How often something came (`add`), changed (`update`) and went (`delete`), by its kind.
pub(crate) type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Each object with its kind and a hash of its text.
    known: HashMap<Arc<str>, (&'static str, u64)>,
    pub(super) of_objects: Counts,
    pub(super) of_workloads: Counts,
}

impl Events {
    /// Takes in all objects that there are now.
    pub(super) fn note<'m>(&mut self, metas: impl Iterator<Item = &'m Meta>) {
        let mut all: Vec<&Meta> = metas.collect();
        all.sort_by(|a, b| {
            (&a.origin.source.name, a.origin.span.start).cmp(&(&b.origin.source.name, b.origin.span.start))
        });
        let mut now = HashMap::with_capacity(all.len());
        for (at, meta) in all.iter().enumerate() {
            // An object's text goes on to where the next one of the same file begins.
            let (source, start) = (&meta.origin.source, meta.origin.span.start);
            let next = all.get(at + 1).filter(|next| next.origin.source.name == source.name);
            let end = next.map_or(source.text.len(), |next| next.origin.span.start as usize);
            let text = source.text.get(start as usize..end).unwrap_or(&source.text);
            now.insert(meta.id(), (meta.kind.name(), xxh3_64(text.as_bytes())));
        }
        let mut count = |kind, event| *self.of_objects.entry((kind, event)).or_default() += 1;
        for (id, (kind, hash)) in &now {
            match self.known.get(id) {
                None => count(kind, "add"),
                Some((_, before)) if before != hash => count(kind, "update"),
                Some(_) => {}
            }
        }
        for (kind, _) in self.known.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, known)| known) {
            count(kind, "delete");
        }
        self.known = now;
    }

    /// Counts what became of a workload, or of a service's endpoints in a cluster.
    pub(super) fn note_workload(&mut self, kind: &'static str, event: &'static str) {
        *self.of_workloads.entry((kind, event)).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::plane::Plane;

    #[test]
    fn objects_that_come_change_and_go_are_counted_each_by_itself() {
        let service = |name: &str, port: u16| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
            )
        };
        let plane = Plane::empty();
        let counts = |text: &str| {
            plane.set_yaml("a.yaml", text).unwrap_or_else(|why| panic!("{why}"));
            let [of_objects, _] = plane.events();
            ["add", "update", "delete"].map(|event| of_objects.get(&("Service", event)).copied().unwrap_or_default())
        };
        assert_eq!(counts(&(service("a", 80) + &service("b", 80))), [2, 0, 0]);
        // One of two in the same file, and a line that moves the other one.
        assert_eq!(counts(&format!("# more\n\n{}{}", service("a", 81), service("b", 80))), [2, 1, 0]);
        assert_eq!(counts(&(service("b", 80) + &service("c", 80))), [3, 1, 1]);
    }
}
