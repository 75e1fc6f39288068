//! The settings of the mesh: in the ConfigMap `istio` among the files, under `mesh`, or in a file of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::object::{is_name, is_namespace, read_meta, read_spec};
use super::{Governs, Item, Meta, Object, ParsedFile, Reader, Refused};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Diagnostic, Origin, Severity, Source, Span};
use crate::config::istio::mesh_config::MeshConfig;
use crate::config::istio::secret::Authorities;
use crate::config::node::{self, Key, Node, Value};
use crate::config::support::ObjectKind;

/// Where Istio keeps them.
const NAMESPACE: &str = "istio-system";
pub(super) const NAME: &str = "istio";
/// What the name of a file of settings alone begins with: the option that names it.
const OPTION: &str = "--mesh-config=";

/// What a file of settings is called in findings.
pub fn mesh_file_name(path: &std::path::Path) -> Arc<str> {
    format!("{OPTION}{}", path.display()).into()
}

/// Whether a text of this name holds the settings of the mesh, and nothing else.
pub fn is_mesh_file(name: &str) -> bool {
    name.starts_with(OPTION)
}

impl Reader<'_> {
    /// A ConfigMap is of no concern to the mesh, unless it has the mesh's settings, or authorities.
    pub(super) fn config_map(&mut self, document: &Node, kind: &Node, d: &mut Decoder<'_>) {
        let metadata = |name: &str| document.get("metadata").and_then(|metadata| metadata.get(name)?.as_str());
        let (namespace, name) = (metadata("namespace").unwrap_or("default"), metadata("name").unwrap_or_default());
        let settings = document.get("data").and_then(|data| {
            data.entries().iter().find(|(key, value)| key.name == "mesh" && value.value != Value::Null)
        });
        let is_like_one = name == NAME || name.starts_with("istio-");
        let Some((key, value)) = settings.filter(|_| is_like_one) else {
            if name == NAME && namespace == NAMESPACE {
                let meta = meta(self.source, document.span);
                d.object(meta.id());
                d.error(kind.span, Code::MissingField, "no text in data.mesh, which holds the settings of the mesh");
                self.items.push(refused(meta, d.take_rejection().as_ref()));
                return;
            }
            let authorities = Authorities::of(document).filter(|_| is_name(name) && is_namespace(namespace));
            if let Some(spec) = authorities {
                return match read_meta(document, ObjectKind::ConfigMap, self.source, d) {
                    Some(meta) if !d.is_rejected() => {
                        self.items.push(Item::Authorities(Arc::new(Object { meta, spec })));
                    }
                    _ => self.unread(document, d),
                };
            }
            return d.report(kind.span, Severity::Info, Code::Ignored, "ConfigMap of v1 is of no concern to the mesh");
        };
        let read = value.as_str().map(|text| inner(self.source, key, value, text));
        let roots_here = |settings: &Node| settings.get("rootNamespace").and_then(Node::as_str) == Some(namespace);
        let is_root = namespace == NAMESPACE || matches!(&read, Some(Ok(Some(settings))) if roots_here(settings));
        if name != NAME || !is_root {
            let message = format!(
                "without effect: the settings of the mesh are read from the ConfigMap {NAME} of namespace {NAMESPACE}, or \
                 of the root namespace that it names"
            );
            return d.report(kind.span, Severity::Warning, Code::Ignored, message);
        }
        let meta = meta(self.source, document.span);
        d.object(meta.id());
        let item = match read {
            None => {
                d.wrong_type(value, "a string");
                None
            }
            Some(Err(finding)) => {
                d.error(value.span, Code::Syntax, format!("data.mesh is no YAML: {}", finding.message));
                None
            }
            Some(Ok(settings)) => settings_of(meta.clone(), settings, d),
        };
        self.items.push(item.unwrap_or_else(|| refused(meta, d.take_rejection().as_ref())));
    }
}

/// A file that holds the settings and nothing else.
pub(super) fn read_file(mut file: ParsedFile) -> ParsedFile {
    let mut documents = match node::parse(&file.source) {
        Ok(documents) => documents,
        Err(error) => return unreadable(file, error),
    };
    let source = file.source.clone();
    let mut d = Decoder::new(&source);
    let settings = documents.pop();
    if settings.is_none() {
        let message = "the file is empty: it says nothing of the mesh";
        file.diagnostics.push(Diagnostic::of_file(source.name.clone(), Severity::Warning, Code::File, message));
        return file;
    }
    let span = settings.as_ref().map(|settings| settings.span).unwrap_or_default();
    let meta = meta(&source, span);
    d.object(meta.id());
    if !documents.is_empty() {
        d.error(span, Code::InvalidValue, "a second document: the settings of a mesh are one");
    }
    let item = if d.is_rejected() { None } else { settings_of(meta.clone(), settings, &mut d) };
    file.rejected = item.is_none();
    file.items.push(item.unwrap_or_else(|| refused(meta, d.take_rejection().as_ref())));
    file.diagnostics = d.into_found();
    file
}

/// Of such a file that cannot be read, it is known what it is.
pub(super) fn unreadable(mut file: ParsedFile, why: Diagnostic) -> ParsedFile {
    file.items.push(refused(meta(&file.source, Span::default()), Some(&why)));
    file.diagnostics.push(why);
    file.rejected = true;
    file
}

fn settings_of(meta: Meta, settings: Option<Node>, d: &mut Decoder<'_>) -> Option<Item> {
    let mut settings = settings.unwrap_or(Node { span: meta.origin.span, value: Value::Map(Vec::new()) });
    as_protojson(&mut settings);
    let object = read_spec(meta, &settings, d, MeshConfig::check)?;
    (!d.is_rejected()).then_some(Item::MeshConfig(object))
}

/// Istio reads its settings by protobuf's rules for JSON: a field may have its name in the proto (`trust_domain`), and a number
/// may be a string.
fn as_protojson(node: &mut Node) {
    match &mut node.value {
        Value::Seq(items) => items.iter_mut().for_each(as_protojson),
        Value::Map(entries) => {
            let written: BTreeSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
            for (key, value) in entries {
                // A field that is written by both names is one too many.
                let name = camel_case(&key.name);
                if !written.contains(&name) {
                    key.name = name;
                }
                match (key.name.as_str(), value.as_str().map(str::parse)) {
                    // Its keys are names of headers, or those of lines of JSON.
                    ("includeAdditionalHeadersInCheck" | "labels", _) => {}
                    // Its keys are names of tags.
                    ("customTags", _) => {
                        if let Value::Map(tags) = &mut value.value {
                            tags.iter_mut().for_each(|(_, tag)| as_protojson(tag));
                        }
                    }
                    ("port", Some(Ok(port))) => value.value = Value::Int(port),
                    _ => as_protojson(value),
                }
            }
        }
        _ => {}
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name + letters.as_str()
    })
}

fn refused(meta: Meta, finding: Option<&Diagnostic>) -> Item {
    Item::Refused(Arc::new(wrong(meta, finding)))
}

/// Settings that are wrong, or that nobody can read.
pub(super) fn wrong(meta: Meta, finding: Option<&Diagnostic>) -> Refused {
    Refused { is_whole: true, is_identified: true, ..Refused::new(meta, finding, Governs::Nothing) }
}

/// Who they are.
pub(super) fn meta(source: &Source, span: Span) -> Meta {
    Meta {
        kind: ObjectKind::MeshConfig,
        namespace: NAMESPACE.into(),
        name: NAME.into(),
        labels: Default::default(),
        annotations: Default::default(),
        extensions: Default::default(),
        created: String::new(),
        origin: Origin { source: source.clone(), span },
    }
}

/// The YAML inside a string, with the places of the file that the string is in. Where nobody can tell these, everything is
/// where the string is.
fn inner(source: &Source, key: &Key, value: &Node, text: &str) -> Result<Option<Node>, Diagnostic> {
    // It is YAML whatever it is in.
    let parse = |text: String| node::parse(&Source { name: Arc::default(), text: text.into() });
    let mut documents = parse(text.to_owned())?;
    if documents.len() > 1 {
        let origin = Origin { source: source.clone(), span: value.span };
        return Err(Diagnostic::at(&origin, Severity::Error, Code::Syntax, "several documents"));
    }
    let Some(mut document) = documents.pop() else { return Ok(None) };
    // A literal block is in the file as it is in the string: without everything around it, the file says the same.
    if let Some(mut placed) = block(source, key).and_then(|text| parse(text).ok())
        && let (Some(placed), true) = (placed.pop(), placed.is_empty())
        && is_same(&placed, &document)
    {
        return Ok(Some(placed));
    }
    place(&mut document, value.span);
    Ok(Some(document))
}

/// A file with nothing in it but the literal block under a key.
fn block(source: &Source, key: &Key) -> Option<String> {
    let (line, column) = (usize::try_from(key.span.line).ok()?, usize::try_from(key.span.column).ok()?);
    let indentation = |text: &str| text.len() - text.trim_start_matches(' ').len();
    let mut is_inside = true;
    let lines = source.text.split_inclusive('\n').enumerate().map(|(index, text)| {
        is_inside &= index < line || text.trim().is_empty() || indentation(text) >= column;
        if index >= line && is_inside {
            return text.to_owned();
        }
        // As many bytes as before: places are told by them, too.
        text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
    });
    source.text.split('\n').nth(line.checked_sub(1)?)?.trim_end().contains('|').then(|| lines.collect())
}

fn is_same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Seq(a), Value::Seq(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((key, a), (other, b))| key.name == other.name && is_same(a, b))
        }
        (a, b) => a == b,
    }
}

fn place(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.value {
        Value::Seq(items) => items.iter_mut().for_each(|item| place(item, span)),
        Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            key.span = span;
            place(value, span);
        }),
        _ => {}
    }
}
