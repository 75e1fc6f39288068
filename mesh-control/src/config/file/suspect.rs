//! Documents of which nobody can tell what they are: whether one of them may guard workloads, or secure calls.
//!
//! What may be an object of security guards the namespace that is written in it, or else everybody. What it is comes from
//! its words: those after `kind:`, and where no kind can be read, any that name such an object. What may be the settings of the
//! mesh counts as those, which are wrong; a DestinationRule that speaks of TLS, as one that is wrong for its host; and a
//! BackendTLSPolicy, as one that is wrong for its targets.

use std::ops::Range;

use super::Meta;
use super::classify::{REQUEST_RULES, WASM_PLUGIN, guard_like, is_guarding_group};
use super::foreign::{Foreign, is_for_all};
use super::mesh_config;
use super::object::{is_name, is_namespace};
use super::refused::{FAIL_OPEN, Governs, Refused};
use super::workloads::Workloads;
use crate::config::diagnostic::{Diagnostic, Origin, Source, Span};
use crate::config::istio::names::host_fault;
use crate::config::node::{Node, Value};
use crate::config::spelling::{is_like, nearest};
use crate::config::support::ObjectKind;

/// A word of a document.
struct Word<'t> {
    /// The key that it is the value of.
    key: Option<&'t str>,
    text: &'t str,
    span: Span,
    /// Whether it belongs to the document itself, and not to something inside it.
    is_outer: bool,
    /// Whether it is all that its key has for a value: no tag, anchor or alias stands there, and nothing goes on in the next line.
    is_plain: bool,
}

/// What may guard workloads in a part of a text that is no YAML: one for each document, as they are divided by `---`.
pub(super) fn in_text(source: &Source, part: &Range<usize>, finding: &Diagnostic) -> Vec<Refused> {
    let found = |source: &Source, part| -> Vec<Refused> {
        documents(&source.text, part).iter().flat_map(|words| suspects(words, source, finding)).collect()
    };
    match source.text.contains('\0') {
        false => found(source, part),
        true => {
            let source = without_zeros(source);
            found(&source, &(0..source.text.len()))
        }
    }
}

/// In UTF-16, every other byte of most texts is zero.
fn without_zeros(source: &Source) -> Source {
    Source { name: source.name.clone(), text: source.text.replace('\0', "").into() }
}

/// What may guard workloads in a file that nobody can read. Where not even a kind is seen of it, it may be anything.
pub(super) fn in_remains(remains: &Source, finding: &Diagnostic) -> Vec<Refused> {
    let remains = without_zeros(remains);
    let whole = 0..remains.text.len();
    if documents(&remains.text, &whole).iter().flatten().any(|word| word.is_kind()) {
        return in_text(&remains, &whole, finding);
    }
    let meta = unknown(ObjectKind::AuthorizationPolicy, "", &remains, Span::default());
    vec![Refused::new(meta, Some(finding), Governs::Anything)]
}

/// The words of each document in a part of a text.
fn documents<'t>(text: &'t str, part: &Range<usize>) -> Vec<Vec<Word<'t>>> {
    let mut documents: Vec<Vec<Word<'_>>> = vec![Vec::new()];
    let mut start = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if line.starts_with("---") {
            documents.push(Vec::new());
        }
        let is_said = part.contains(&start) && !line.trim_start().starts_with('#');
        if let Some(document) = documents.last_mut().filter(|_| is_said) {
            words(line, number, start, document);
        }
        start += line.len();
    }
    documents
}

impl Word<'_> {
    fn is_kind(&self) -> bool {
        self.key.is_some_and(|key| nearest(key, &["kind"]).is_some())
    }
}

/// What these parts of a document, with their keys, may be: what guards workloads, or the settings of the mesh.
pub(super) fn in_nodes<'n>(
    parts: impl Iterator<Item = (Option<&'n str>, &'n Node)>,
    source: &Source,
    finding: &Diagnostic,
) -> Vec<Refused> {
    let mut words = Vec::new();
    parts.for_each(|(key, node)| walk(key, node, true, &mut words));
    suspects(&words, source, finding)
}

fn suspects(words: &[Word<'_>], source: &Source, finding: &Diagnostic) -> Vec<Refused> {
    let found = suspect(words, source, finding).into_iter().chain(settings(words, source, finding));
    found.chain(secured(words, source, finding)).collect()
}

/// Objects without which calls would go out in plaintext: a DestinationRule that may ask for TLS, and a BackendTLSPolicy.
fn secured(words: &[Word<'_>], source: &Source, finding: &Diagnostic) -> Vec<Refused> {
    let speaks_of_tls = words.iter().any(|word| word.text == "tls");
    let rule = speaks_of_tls.then(|| secured_by(ObjectKind::DestinationRule, words, source, finding)).flatten();
    let policy = secured_by(ObjectKind::BackendTlsPolicy, words, source, finding);
    rule.into_iter().chain(policy).collect()
}

/// An object of this kind, which may ask for TLS.
fn secured_by(kind: ObjectKind, words: &[Word<'_>], source: &Source, finding: &Diagnostic) -> Option<Refused> {
    let is_meant = |text: &str| is_like(text, kind.name());
    let of_kind = |word: &&Word<'_>| is_meant(word.text);
    let objects = || words.iter().filter(|word| word.is_kind()).filter(of_kind);
    let first = objects().next().or_else(|| words.iter().find(of_kind))?;
    if is_another(words, |kind| kind == "List" || is_meant(kind)) {
        return None;
    }
    let namespace = match words.iter().any(|word| is_namespace_key(word.text)) {
        true => namespace(words, is_meant).unwrap_or_default(),
        false => "default",
    };
    let hosts = match kind {
        ObjectKind::BackendTlsPolicy => targets(words, namespace, objects().count()),
        _ => hosts(words, namespace, objects().count()),
    };
    let governs = match hosts {
        Some(hosts) => Governs::Hosts { hosts, export_to: Vec::new(), selector: Default::default() },
        None => Governs::AnyHost,
    };
    Some(Refused::new(unknown(kind, namespace, source, first.span), Some(finding), governs))
}

/// The hosts of so many DestinationRules of a namespace, where all of them can be read.
fn hosts(words: &[Word<'_>], namespace: &str, count: usize) -> Option<Vec<String>> {
    let written: Vec<&Word<'_>> = words.iter().filter(|word| word.key == Some("host")).collect();
    // A short one belongs to its namespace.
    let is_read = |host: &Word<'_>| {
        host.is_plain && host_fault(host.text).is_none() && (host.text.contains('.') || !namespace.is_empty())
    };
    let are_read = !written.is_empty() && written.len() >= count && written.iter().all(|host| is_read(host));
    are_read.then(|| written.iter().map(|host| host.text.to_owned()).collect())
}

/// The targets of so many policies of a namespace, by their names, where all of them can be read.
fn targets(words: &[Word<'_>], namespace: &str, count: usize) -> Option<Vec<String>> {
    const OTHERS: [&str; 6] = ["validation", "options", "metadata", "spec", "status", "apiVersion"];
    let is_other = |word: &Word<'_>| word.key.is_none() && OTHERS.contains(&word.text);
    let (mut names, mut policies, mut rest) = (Vec::new(), 0, words);
    while let Some(at) = rest.iter().position(|word| word.text == "targetRefs") {
        let after = rest.get(at + 1..).unwrap_or_default();
        let end = after.iter().position(is_other).unwrap_or(after.len());
        let (own, behind) = after.split_at(end);
        let written: Vec<&Word<'_>> = own.iter().filter(|word| word.key == Some("name")).collect();
        // Each target has a kind and a name.
        let kinds = own.iter().filter(|word| word.is_kind()).count();
        let are_read = written.iter().all(|name| name.is_plain && is_name(name.text));
        if written.is_empty() || written.len() != kinds || !are_read {
            return None;
        }
        names.extend(written.iter().map(|name| name.text.to_owned()));
        (policies, rest) = (policies + 1, behind);
    }
    (policies > 0 && policies >= count && !namespace.is_empty()).then_some(names)
}

/// The settings of the mesh, where a document may be the ConfigMap that has them. Without them everything would fall to defaults:
/// the trust domain, the root namespace and the policies in it, whom policies ask.
fn settings(words: &[Word<'_>], source: &Source, finding: &Diagnostic) -> Option<Refused> {
    let is_config_map = |word: &&Word<'_>| is_like(word.text, "ConfigMap");
    let kind = words.iter().find(is_config_map).filter(|_| !is_another(words, |kind| is_like(kind, "ConfigMap")))?;
    let is_named = words.iter().any(|word| word.text == mesh_config::NAME);
    is_named.then(|| mesh_config::wrong(mesh_config::meta(source, kind.span), Some(finding)))
}

fn is_namespace_key(key: &str) -> bool {
    key != "namespaces" && nearest(key, &["namespace"]).is_some()
}

/// The namespace of a document's objects, where it is written. Each has to name its own, and all of them the same one.
fn namespace<'t>(words: &[Word<'t>], is_meant: impl Fn(&str) -> bool) -> Option<&'t str> {
    let of_kind = words.iter().filter(|word| word.is_kind() && word.text != "List");
    let objects = of_kind.filter(|word| word.is_outer || is_meant(word.text)).count();
    let written: Vec<&Word<'t>> = words.iter().filter(|word| word.key.is_some_and(is_namespace_key)).collect();
    let only = written.first().map(|word| word.text).filter(|only| is_namespace(only))?;
    let are_one = written.iter().all(|word| word.is_plain && word.text == only);
    (written.len() >= objects && are_one).then_some(only)
}

/// Whether a document says plainly that it is something else than what is asked about.
fn is_another(words: &[Word<'_>], is_meant: impl Fn(&str) -> bool) -> bool {
    let mut kinds = words.iter().filter(|word| word.is_outer && word.key == Some("kind")).peekable();
    kinds.peek().is_some() && kinds.all(|kind| kind.is_plain && !is_meant(kind.text))
}

fn suspect(words: &[Word<'_>], source: &Source, finding: &Diagnostic) -> Option<Refused> {
    let of_kind = || words.iter().filter(|word| word.is_kind());
    let guard = |word: &Word<'_>| Some((guard_like(word.text)?, word.span));
    let named = || words.iter().find_map(guard);
    let in_group = || words.iter().find(|word| is_guarding_group(word.text));
    let of_group = || Some((ObjectKind::AuthorizationPolicy, in_group()?.span));
    let foreign = |word: &Word<'_>| {
        let foreign = Foreign::by_words(word.text, words.iter().map(|word| word.text))?;
        Some((ObjectKind::Foreign(foreign.name()), word.span))
    };
    // Requests have to pass it, unless it says that they need not.
    let plugin = || of_kind().find(|word| word.text == WASM_PLUGIN && words.iter().all(|word| word.text != FAIL_OPEN));
    let found = of_kind().find_map(guard).or_else(|| of_kind().find_map(foreign));
    let rules = || of_kind().find(|word| word.text == REQUEST_RULES);
    let found = found.or_else(|| Some((ObjectKind::WasmPlugin, plugin()?.span)));
    let found = found.or_else(|| Some((ObjectKind::RequestRules, rules()?.span)));
    let (kind, span) = found.or_else(|| if is_another(words, |_| false) { None } else { named().or_else(of_group) })?;
    let written = namespace(words, |kind| guard_like(kind).is_some());
    let namespace = written.filter(|_| !is_for_all(kind)).unwrap_or_default();
    let everybody = Workloads::Labelled(Default::default());
    let governs = match kind {
        ObjectKind::WasmPlugin | ObjectKind::RequestRules => Governs::BothSides(everybody),
        _ => Governs::Workloads(everybody),
    };
    Some(Refused::new(unknown(kind, namespace, source, span), Some(finding), governs))
}

/// An object of no known name.
fn unknown(kind: ObjectKind, namespace: &str, source: &Source, span: Span) -> Meta {
    Meta {
        kind,
        namespace: namespace.into(),
        name: "".into(),
        labels: Default::default(),
        annotations: Default::default(),
        extensions: Default::default(),
        created: String::new(),
        origin: Origin { source: source.clone(), span },
    }
}

/// The words of one line. The first one behind a colon belongs to the word before it.
fn words<'t>(line: &'t str, number: u32, start: usize, into: &mut Vec<Word<'t>>) {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let mut is_outer = !line.starts_with([' ', '\t', '-', '{']);
    let (mut rest, mut column, mut key) = (line, 1, None);
    while let Some(at) = rest.find(is_word) {
        // `*.example.com` is one word.
        let (before, after) = rest.split_at(at);
        let is_wild = key == Some("host") && before.ends_with('*') && after.starts_with('.');
        let (before, after) = rest.split_at(at - usize::from(is_wild));
        // What is between braces lies deeper.
        is_outer &= !before.contains(['{', '[']);
        let length = after.find(|c| !(is_word(c) || is_wild && c == '*')).unwrap_or(after.len());
        let (text, after) = after.split_at(length);
        column += before.chars().count();
        let (first, end) = (start + line.len() - after.len() - text.len(), start + line.len() - after.len());
        let span = Span { line: number, column: small(column), start: small(first), end: small(end) };
        column += text.chars().count();
        let is_key = after.trim_start_matches(['"', '\'', ' ']).starts_with(':');
        let is_quote = |c: char| matches!(c, '"' | '\'' | ' ');
        let end_of_line = after.trim_start_matches(is_quote);
        let is_plain = before.trim_start_matches(is_quote).trim_start_matches(':').chars().all(is_quote)
            && (end_of_line.trim().is_empty() || end_of_line.starts_with(['#', ',', '}']));
        into.push(Word { key: key.filter(|_| !is_key), text, span, is_outer, is_plain });
        key = is_key.then_some(text);
        // Its value is in the next line, or is no word.
        if is_key && text == "kind" && !after.contains(is_word) {
            into.push(Word { key, text: "", span, is_outer, is_plain: false });
        }
        rest = after;
    }
}

fn walk<'n>(key: Option<&'n str>, node: &'n Node, is_outer: bool, into: &mut Vec<Word<'n>>) {
    match &node.value {
        Value::Str(text) => into.push(Word { key, text, span: node.span, is_outer, is_plain: true }),
        Value::Seq(items) => items.iter().for_each(|item| walk(key, item, is_outer && key.is_some(), into)),
        Value::Map(entries) => {
            for (name, value) in entries {
                into.push(Word { key: None, text: &name.name, span: name.span, is_outer: false, is_plain: true });
                walk(Some(&name.name), value, is_outer && key.is_none(), into);
            }
        }
        _ => {}
    }
}
