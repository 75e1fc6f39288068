//! Whether a change may be: what `validate` says of all objects as they would be then, the changed ones among those that are there.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::{All, Id};
use crate::analysis::{Mesh, validate_scan};
use crate::config::load::Scan;
use crate::config::{Diagnostic, Severity};

/// Why objects may not be put among those that are there: the errors in their files, and those of others that were none before. Files
/// are given as they are written, so that what is said has its place in them; those that are there are called by `name`.
pub(super) fn refused(
    all: &All,
    files: Scan,
    written: &BTreeSet<Id>,
    name: impl Fn(&Id) -> Arc<str>,
) -> Vec<Diagnostic> {
    // Nobody here knows whether the server issues certificates; it says so itself.
    let mesh = Mesh::issuing;
    let scan = |is_kept: &dyn Fn(&Id) -> bool| {
        let kept = all.iter().filter(|(id, _)| is_kept(id));
        let mut scan = Scan::default();
        scan.files.extend(kept.map(|(id, stored)| (name(id), Ok(stored.text.clone()))));
        scan
    };
    let before = validate_scan(scan(&|_| true), mesh()).diagnostics;
    let known: HashSet<String> = before.iter().map(ToString::to_string).collect();
    let own: BTreeSet<Arc<str>> = files.files.keys().cloned().collect();
    let mut after = scan(&|id| !written.contains(id));
    after.files.extend(files.files);
    let mut found = validate_scan(after, mesh()).diagnostics;
    found.retain(|finding| finding.severity == Severity::Error);
    found.retain(|finding| own.contains(&finding.file) || !known.contains(&finding.to_string()));
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Documents, Stored};
    use super::*;
    use crate::config::diagnostic::stored_name;

    fn files(text: &str) -> Scan {
        let mut scan = Scan::default();
        scan.files.insert("a.yaml".into(), Ok(text.into()));
        scan
    }

    /// What is said of a text beside another one that is there already.
    fn said(there: &str, text: &str) -> Vec<String> {
        let documents = Documents::read(&files(there)).expect("good").objects.into_iter();
        let all: All = documents.map(|(id, it)| (id, Stored { text: it.text, version: 1 })).collect();
        let written = Documents::read(&files(text)).map(|it| it.objects.into_keys().collect()).unwrap_or_default();
        refused(&all, files(text), &written, |id| stored_name(&id.path())).iter().map(ToString::to_string).collect()
    }

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n";

    fn rule(body: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\nspec: {body}\n"
        )
    }

    #[test]
    fn what_validate_refuses_is_refused_beside_what_is_there() {
        let good = rule("{hosts: [web], http: [{route: [{destination: {host: web}}]}]}");
        let to_nobody = rule("{hosts: [web], http: [{route: [{destination: {host: wbe}}]}]}");
        assert_eq!(said(WEB, &good), Vec::<String>::new());
        assert!(said("", &good).join("\n").contains("web"), "without the service: {:?}", said("", &good));
        let found = said(WEB, &to_nobody);
        assert!(found.iter().any(|one| one.starts_with("a.yaml:4:")), "{found:?}");
        assert!(said(WEB, &rule("{hosts: [web], htpp: []}")).join("\n").contains("http"));
        // What was wrong before, and is no part of it, is in nobody's way.
        let broken = format!("{WEB}---\n{}", to_nobody.replace("name: web", "name: other"));
        assert_eq!(said(&broken, &good), Vec::<String>::new());
        // And it can be mended.
        assert_eq!(said(&format!("{WEB}---\n{to_nobody}"), &good), Vec::<String>::new());
        // What it breaks elsewhere is its own doing.
        let moved = WEB.replace("port: 80", "port: 81");
        let ported = rule("{hosts: [web], http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}");
        let found = said(&format!("{WEB}---\n{ported}"), &moved);
        assert!(found.iter().any(|one| one.starts_with("etcd://virtualservices")), "{found:?}");
    }
}
