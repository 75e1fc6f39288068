//! Finds a field in the text that it was read from.

use super::diagnostic::{Origin, Span};
use super::node::{Key, Node, parse};

/// The place of a field of the object that an origin lies in: of as much of the path, such as `http[0].match.headers`, as
/// is written. In a list that the path gives no number for, the first item that has the field counts.
pub fn locate(origin: &Origin, path: &str) -> Origin {
    locate_all(origin, &[path]).pop().unwrap_or_else(|| origin.clone())
}

/// The places of several fields; the text is read once.
pub fn locate_all(origin: &Origin, paths: &[impl AsRef<str>]) -> Vec<Origin> {
    let documents = parse(&origin.source).unwrap_or_default();
    let mut objects = documents.iter().flat_map(|document| match document.get("items") {
        Some(items) => items.items(),
        None => std::slice::from_ref(document),
    });
    let object = objects.rfind(|object| object.span.start <= origin.span.start);
    let place = |path: &str| {
        let under = |object| if path.starts_with("metadata.") { Some(object) } else { Node::get(object, "spec") };
        let found = object.and_then(under).and_then(|node| deepest(node, path));
        found.map_or_else(|| origin.clone(), |span| origin.at(span))
    };
    paths.iter().map(|path| place(path.as_ref())).collect()
}

fn deepest(from: &Node, path: &str) -> Option<Span> {
    let mut at = from;
    let mut found = None;
    for step in path.split('.') {
        let (name, index) = match step.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
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
}
