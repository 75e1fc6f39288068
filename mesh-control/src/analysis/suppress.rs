//! Findings that nobody wants to be told: an annotation of their object says so (Istio: `galley.istio.io/analyze-suppress`), or
//! who asks (`analyze -S`).

use std::collections::HashMap;
use std::sync::Arc;

use super::Mesh;
use crate::config::diagnostic::Diagnostic;
use crate::config::file::{Objects, SUPPRESS};

/// What is left out.
pub(super) struct Suppressed<'m> {
    /// The codes that annotations name, with commas between them, by the object that has them.
    annotated: HashMap<Arc<str>, String>,
    /// `CODE`, or `CODE=OBJECT`.
    patterns: &'m [String],
}

impl Suppressed<'_> {
    pub(super) fn new<'m>(objects: &Objects, mesh: &'m Mesh) -> Suppressed<'m> {
        // Annotations are for who takes advice: what is wrong is never hidden from `validate`.
        let metas = objects.metas().filter(|_| mesh.takes_advice);
        let annotated = metas.filter_map(|meta| Some((meta.id(), meta.annotations.get(SUPPRESS)?.clone())));
        Suppressed { annotated: annotated.collect(), patterns: &mesh.suppress }
    }

    /// Whether a finding is left out.
    pub(super) fn has(&self, finding: &Diagnostic) -> bool {
        let codes = finding.object.as_ref().and_then(|object| self.annotated.get(object));
        let mut codes = codes.into_iter().flat_map(|codes| codes.split(',')).map(str::trim);
        codes.any(|code| is_like(code, finding.known_as()))
            || self.patterns.iter().any(|pattern| is_meant(pattern, finding))
    }
}

/// Whether `CODE`, or `CODE=OBJECT`, is for a finding.
fn is_meant(pattern: &str, finding: &Diagnostic) -> bool {
    let (code, object) = pattern.split_once('=').unwrap_or((pattern, "*"));
    let own = finding.object.as_deref().unwrap_or_default();
    // Istio's way to name an object: `Service web.shop`.
    let in_istio = own.split_once(' ').and_then(|(kind, name)| {
        let (namespace, name) = name.split_once('/')?;
        Some(format!("{kind} {name}.{namespace}"))
    });
    is_like(code, finding.known_as()) && (is_like(object, own) || in_istio.is_some_and(|name| is_like(object, &name)))
}

/// Whether a text is one that a pattern means, in which `*` is anything.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| text.strip_prefix(start)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((end, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::{Code, Severity};

    #[test]
    fn findings_are_left_out_by_code_and_object() {
        let finding = Diagnostic::of_file("a.yaml", Severity::Info, Code::Advice, "m")
            .istio("IST0118")
            .object("Service shop/web");
        for (pattern, expected) in [
            ("IST0118", true),
            ("IST0118=Service shop/web", true),
            ("IST0118=Service web.shop", true),
            ("IST0118=Service *.shop", true),
            ("IST0118=*", true),
            ("*=Service shop/*", true),
            ("IST0118=Service shop/we", false),
            ("IST0118=Service *.other", false),
            ("IST0119", false),
            ("", false),
        ] {
            assert_eq!(is_meant(pattern, &finding), expected, "{pattern}");
        }
        assert!(is_like("a*b*c", "a-b-c") && !is_like("a*b*c", "a-c-b") && !is_like("a*a", "a") && is_like("**", ""));
    }
}
