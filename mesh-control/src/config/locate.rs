//! Finds a field in the text that it was read from.

use super::diagnostic::{Origin, Span};
use super::node::{Key, Node, parse, parse_around, parse_item};

/// The place of a field of the object that an origin lies in: of as much of the path, such as `http[0].match.headers`, as
/// is written. In a list that the path gives no number for, the first item that has the field counts.
pub fn locate(origin: &Origin, path: &str) -> Origin {
    locate_all(origin, &[path]).pop().unwrap_or_else(|| origin.clone())
}

/// The places of several fields; the text is read once.
pub fn locate_all(origin: &Origin, paths: &[impl AsRef<str>]) -> Vec<Origin> {
    let documents = documents_around(origin);
    let object = object_in(&documents, origin);
    let place = |path: &str| {
        let under = |object| if path.starts_with("metadata.") { Some(object) } else { Node::get(object, "spec") };
        let found = object.and_then(under).and_then(|node| deepest(node, path));
        found.map_or_else(|| origin.clone(), |span| origin.at(span))
    };
    paths.iter().map(|path| place(path.as_ref())).collect()
}

/// The places of fields of a rule, as far as they are written: of one that an origin is at, and which has a place in its object,
/// `http[2]`. Nothing else is read of a rule in block style, however long the list is.
pub fn written_in(origin: &Origin, rule: &str, fields: &[&str]) -> Vec<Option<Origin>> {
    let place = |item: &Node, field: &str| whole(item, field).map(|(span, _)| origin.at(span));
    if let Some(item) = parse_item(&origin.source, origin.span) {
        return fields.iter().map(|field| place(&item, field)).collect();
    }
    let documents = documents_around(origin);
    let spec = object_in(&documents, origin).and_then(|object| object.get("spec"));
    let item = spec.and_then(|spec| whole(spec, rule)).map(|(_, item)| item);
    fields.iter().map(|field| place(item?, field)).collect()
}

fn documents_around(origin: &Origin) -> Vec<Node> {
    let byte = usize::try_from(origin.span.start).unwrap_or(0);
    parse_around(&origin.source, byte).or_else(|| parse(&origin.source).ok()).unwrap_or_default()
}

fn object_in<'n>(documents: &'n [Node], origin: &Origin) -> Option<&'n Node> {
    let mut objects = documents.iter().flat_map(|document| match document.get("items") {
        Some(items) => items.items(),
        None => std::slice::from_ref(document),
    });
    objects.rfind(|object| object.span.start <= origin.span.start)
}

/// The key, and the value, at the end of a path of which every step is written.
fn whole<'n>(from: &'n Node, path: &str) -> Option<(Span, &'n Node)> {
    let mut found = (from.span, from);
    for step in path.split('.') {
        let (name, index) = step_of(step);
        let (key, value) = entry(found.1, name)?;
        found = (key.span, value);
        if let Some(index) = index {
            let item = value.items().get(index)?;
            found = (item.span, item);
        }
    }
    Some(found)
}

/// A name, and the number of an item below it.
fn step_of(step: &str) -> (&str, Option<usize>) {
    match step.split_once('[') {
        Some((name, index)) => (name, index.trim_end_matches(']').parse().ok()),
        None => (step, None),
    }
}

fn deepest(from: &Node, path: &str) -> Option<Span> {
    let mut at = from;
    let mut found = None;
    for step in path.split('.') {
        let (name, index) = step_of(step);
        let Some((key, value)) = entry(at, name) else { break };
        (found, at) = (Some(key.span), value);
        if let Some(item) = index.and_then(|index| value.items().get(index)) {
            (found, at) = (Some(item.span), item);
        }
    }
    found
}

fn entry<'n>(node: &'n Node, name: &str) -> Option<&'n (Key, Node)> {
    let own = node.entries().iter().find(|(key, _)| key.name == name);
    own.or_else(|| node.items().iter().find_map(|item| entry(item, name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Source;

    #[test]
    fn a_field_is_found_as_far_as_it_is_written() {
        let text = "kind: A\nspec: {a: 1}\n---\nkind: B\nspec:\n  http:\n  - match:\n    - uri: x\n    - headers:\n        a: b\n  - rewrite: y\n";
        let source = Source { name: "t".into(), text: text.into() };
        let start = text.find("kind: B").unwrap() as u32;
        let origin = Origin { source, span: Span { line: 4, column: 1, start, end: start + 1 } };
        let line = |path: &str| locate(&origin, path).span.line;
        assert_eq!(line("http[0].match.headers"), 9);
        assert_eq!(line("http[1].rewrite"), 11);
        assert_eq!(line("http[1].retries.retryOn"), 11, "the rule, which has no such field");
        assert_eq!(line("nothing"), 4);
        let text = "kind: A\nmetadata:\n  annotations:\n    a/b: c\nspec: {}\n";
        let origin = Origin { source: Source { name: "t".into(), text: text.into() }, span: Span::default() };
        assert_eq!(locate(&origin, "metadata.annotations.a/b").span.line, 4);
    }

    #[test]
    fn fields_of_a_rule_are_where_they_are_written_in_block_style_and_in_any_other() {
        let block = "kind: A\nspec: {}\n---\nkind: B\nspec:\n  http:\n  - match: []\n    retries: {attempts: 2,\n              perTryTimeout: 1s}\n# a\n\n    text: |\n      - b\n    timeout: 1s\n  - fault: y\n---\nkind: C\n";
        let flow = "kind: B\nspec: {http: [{match: [],\n  retries: {attempts: 2, perTryTimeout: 1s}, timeout: 1s}, {fault: y}]}\n";
        let alias = "kind: B\nx: &x {attempts: 2}\nspec:\n  http:\n  - match: []\n    retries: *x\n    timeout: 1s\n";
        for (text, start, column, expected) in [
            (block, block.find("match").unwrap(), 5, [Some(8), Some(9), Some(14), None]),
            (flow, flow.find("{match").unwrap(), 15, [Some(3), Some(3), Some(3), None]),
            (alias, alias.find("match").unwrap(), 5, [Some(6), None, Some(7), None]),
        ] {
            let source = Source { name: "t".into(), text: text.into() };
            let line = 1 + text.get(..start).unwrap().matches('\n').count() as u32;
            let start = start as u32;
            let origin = Origin { source, span: Span { line, column, start, end: start + 1 } };
            let fields = ["retries", "retries.perTryTimeout", "timeout", "fault"];
            let lines = written_in(&origin, "http[0]", &fields).into_iter().map(|at| at.map(|at| at.span.line));
            assert_eq!(lines.collect::<Vec<_>>(), expected, "{text}");
        }
    }
}
