//! What mesh-control has to say about a configuration: one finding, with its place in the file.
//!
//! Every reader and checker of YAML reports through [`Diagnostic`]; `validate`, the status page and the
//! log print it as one line (`Display`) or with the lines of the file it speaks of ([`Diagnostic::render`]).

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, renderer::DecorStyle};
use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Info,
    /// Something that was written has no effect, or not the effect one would expect.
    Warning,
    /// The object is wrong, or something that guards security has no effect.
    Error,
}

impl Severity {
    /// `info`, `warning` or `error`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What kind of finding it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// Not YAML, or more of it than the limits allow.
    Syntax,
    /// A field that the kind does not have.
    UnknownField,
    /// A value of another type than the field's.
    WrongType,
    /// A value of the right type that means nothing.
    InvalidValue,
    /// A field that must be there and is not.
    MissingField,
    /// A field that Istio has and this mesh does not enforce yet.
    NotSupportedYet,
    /// It guards workloads and cannot be enforced: those that it is for do not serve.
    Unenforced,
    /// It is enforced by a control plane that issues certificates, and fails closed with any other.
    NeedsCertificates,
    /// A kind that is of no concern to a mesh without a cluster (Deployment, ConfigMap, ...).
    Ignored,
    /// The same object twice.
    Duplicate,
    /// Two objects claim the same thing.
    Conflict,
    /// A name that nothing answers to.
    UnknownReference,
    /// A file that cannot be read, or is kept at its last good state.
    File,
    /// It looks like a part of the configuration, and is where nothing is read.
    NotRead,
    /// Everything disappeared at once; the last good state is kept.
    Vanished,
    /// The data plane would refuse it; what is published in its place is in the message.
    Refused,
    /// It is done as it is written, and lets somebody in between.
    Insecure,
    /// A gRPC client cannot do this; what it does instead is in the message.
    Degraded,
    /// It does what it says, and is better said otherwise.
    Advice,
}

impl Code {
    /// The name in kebab case, as printed and serialised.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Syntax => "syntax",
            Code::UnknownField => "unknown-field",
            Code::WrongType => "wrong-type",
            Code::InvalidValue => "invalid-value",
            Code::MissingField => "missing-field",
            Code::NotSupportedYet => "not-supported-yet",
            Code::Unenforced => "unenforced",
            Code::NeedsCertificates => "needs-certificates",
            Code::Ignored => "ignored",
            Code::Duplicate => "duplicate",
            Code::Conflict => "conflict",
            Code::UnknownReference => "unknown-reference",
            Code::File => "file",
            Code::NotRead => "not-read",
            Code::Vanished => "vanished",
            Code::Refused => "refused",
            Code::Insecure => "insecure",
            Code::Degraded => "degraded",
            Code::Advice => "advice",
        }
    }

    /// What Istio's analyzers call findings of this kind, unless one is of a kind of its own there: `IST0106`, that the schema of an
    /// object is not kept, `IST0133`, that it is not kept and that does no harm, `IST0101`, that a name leads nowhere.
    const fn istio(self, severity: Severity) -> Option<&'static str> {
        use Code::{InvalidValue, MissingField, Syntax, UnknownField, UnknownReference, WrongType};
        match (self, severity) {
            (Syntax | UnknownField | WrongType | InvalidValue | MissingField, Severity::Error) => Some("IST0106"),
            (Syntax | UnknownField | WrongType | InvalidValue | MissingField, _) => Some("IST0133"),
            (UnknownReference, _) => Some("IST0101"),
            _ => None,
        }
    }

    /// Whether an error of this kind makes its object unusable, so that its last good state stays.
    pub const fn rejects_object(self) -> bool {
        use Code::{InvalidValue, MissingField, Syntax, Unenforced, UnknownField, WrongType};
        matches!(self, Syntax | UnknownField | WrongType | InvalidValue | MissingField | Unenforced)
    }
}

/// What a finding is about, for code that decides by that. Its message is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// What Envoys that are gateways do not do.
    EnvoyGateways,
    /// A Gateway whose labels nothing in the configuration has.
    UnknownGateways,
    /// The address of a client, which behind a proxy is the proxy's.
    ClientAddress,
    /// A certificate that has ended.
    CertificateEnded,
    /// A certificate that has not begun yet.
    CertificateBegins,
}

/// One text and its name, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's name, relative to the configuration directory; of an object of a cluster, that of the resource.
    pub name: Arc<str>,
    /// Its content.
    pub text: Arc<str>,
}

/// Without the text: private keys may be in it.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the names of objects begin with that a Kubernetes cluster holds: no file is called so.
pub const RESOURCE: &str = "kubernetes:/";

/// What the names of objects begin with that etcd holds.
const STORED: &str = "etcd:/";

/// The name of the text of an object of etcd that is called so.
pub(crate) fn stored_name(path: &str) -> Arc<str> {
    format!("{STORED}/{path}").into()
}

/// Whether a text of this name is an object of a cluster, or of etcd, in JSON. Nobody wrote it like that, so that no line of it
/// says anything to anybody.
pub fn is_resource(name: &str) -> bool {
    is_of_kubernetes(name) || name.starts_with(STORED)
}

/// Whether a text of this name is an object of a Kubernetes cluster, which knows who serves its services.
pub fn is_of_kubernetes(name: &str) -> bool {
    name.starts_with(RESOURCE)
}

/// A place in a text: where it starts (1-based line and column, in characters) and which bytes it covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// 1-based line, 0 where unknown.
    pub line: u32,
    /// 1-based column in characters, 0 where unknown.
    pub column: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A place in a known text: what an object keeps of where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The text.
    pub source: Source,
    /// Where in the text.
    pub span: Span,
}

impl Origin {
    /// The same text, another place in it.
    pub fn at(&self, span: Span) -> Origin {
        Origin { source: self.source.clone(), span }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span.line {
            0 => f.write_str(&self.source.name),
            line => write!(f, "{}:{line}", self.source.name),
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// What kind of finding it is.
    pub code: Code,
    /// What Istio's analyzers call it (`IST0101`), where they know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub istio: Option<&'static str>,
    /// The file, relative to the configuration directory; empty where the finding is about all of them.
    pub file: Arc<str>,
    /// 1-based line, 0 where the finding is about the file as a whole.
    pub line: u32,
    /// 1-based column in characters, 0 where unknown.
    pub column: u32,
    /// `Kind namespace/name` of the object, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Arc<str>>,
    /// The path of the field, `http[0].route[1].weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Arc<str>>,
    /// What is the matter, in a few lower-case words.
    pub message: String,
    #[serde(skip)]
    topic: Option<Topic>,
    #[serde(skip)]
    excerpt: Option<Box<Excerpt>>,
}

/// Other words for a part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// The text that it is for.
    pub text: Arc<str>,
    /// Which bytes of it.
    pub range: Range<usize>,
    /// What belongs there.
    pub instead: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    text: Arc<str>,
    range: Range<usize>,
    /// What to write in its place, where that is clear.
    instead: Option<String>,
}

impl Diagnostic {
    /// The code of Istio's analyzers for it, or our own word for what they have none for: `IST0118`, `degraded`.
    pub fn known_as(&self) -> &'static str {
        self.istio.unwrap_or(self.code.as_str())
    }

    /// A finding at a place in a text.
    pub fn at(origin: &Origin, severity: Severity, code: Code, message: impl Into<String>) -> Diagnostic {
        let Origin { source, span } = origin;
        let excerpt = (span.line > 0).then(|| {
            let range = span.start as usize..span.end as usize;
            Box::new(Excerpt { text: source.text.clone(), range, instead: None })
        });
        Diagnostic {
            severity,
            code,
            istio: code.istio(severity),
            file: source.name.clone(),
            line: span.line,
            column: span.column,
            object: None,
            field: None,
            message: message.into(),
            topic: None,
            excerpt,
        }
    }

    /// A finding about a file as a whole, or about all files where the name is empty.
    pub fn of_file(
        file: impl Into<Arc<str>>,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic {
            severity,
            code,
            istio: code.istio(severity),
            file: file.into(),
            line: 0,
            column: 0,
            object: None,
            field: None,
            message: message.into(),
            topic: None,
            excerpt: None,
        }
    }

    /// The same finding, about this object.
    pub fn object(mut self, object: impl Into<Arc<str>>) -> Diagnostic {
        self.object = Some(object.into());
        self
    }

    /// The same finding, about this field; an empty one is the whole object.
    pub fn field(mut self, field: impl Into<Arc<str>>) -> Diagnostic {
        let field: Arc<str> = field.into();
        self.field = (!field.is_empty()).then_some(field);
        self
    }

    /// The same finding, by the code that Istio's analyzers have for it.
    pub fn istio(mut self, code: &'static str) -> Diagnostic {
        self.istio = Some(code);
        self
    }

    /// The same finding, about this.
    pub(crate) fn about(mut self, topic: Topic) -> Diagnostic {
        self.topic = Some(topic);
        self
    }

    /// What it is about, where code decides by that.
    pub(crate) fn topic(&self) -> Option<Topic> {
        self.topic
    }

    /// The same finding, with the one word, or value, that was meant in the place of the one at its place.
    pub fn instead(mut self, word: impl Into<String>) -> Diagnostic {
        if let Some(excerpt) = &mut self.excerpt {
            excerpt.instead = Some(word.into());
        }
        self
    }

    /// The one word, or value, that stands at its place, without its quotes.
    pub fn written(&self) -> Option<&str> {
        let Excerpt { text, range, .. } = self.excerpt.as_deref()?;
        let written = text.get(range.clone())?.trim();
        let quoted = |quote| written.strip_prefix(quote)?.strip_suffix(quote);
        Some(quoted('"').or_else(|| quoted('\'')).unwrap_or(written))
    }

    /// What to write where, if that is clear: what stands there is one word, or in quotes.
    pub fn fix(&self) -> Option<Fix> {
        let Excerpt { text, range, instead } = self.excerpt.as_deref()?;
        let instead = instead.as_ref()?;
        let written = text.get(range.clone())?;
        let start = range.start + (written.len() - written.trim_start().len());
        let written = written.trim();
        let quote = written.chars().next().filter(|c| matches!(c, '"' | '\''));
        let inside = match quote {
            Some(quote) => written.strip_prefix(quote)?.strip_suffix(quote)?,
            None => written,
        };
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.contains(['"', '\'', '\\', '\n', '#', '{', '}', '[', ']', ',', '&', '*', '!', '|', '>'])
        };
        // A value that is only to be quoted brings its quotes along.
        let is_quoted =
            quote.is_none() && instead.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(written);
        if !is_plain(inside) || !(is_quoted || is_plain(instead)) {
            return None;
        }
        let instead = match quote {
            Some(quote) => format!("{quote}{instead}{quote}"),
            None => instead.clone(),
        };
        Some(Fix { text: text.clone(), range: start..start + written.len(), instead })
    }

    /// The same finding, with the directory that its file is in.
    pub fn below(mut self, dir: &Path) -> Diagnostic {
        self.file = dir.join(&*self.file).display().to_string().into();
        self
    }

    /// Whether the finding makes its object unusable.
    pub fn rejects_object(&self) -> bool {
        self.severity == Severity::Error && self.code.rejects_object()
    }

    /// The place of it.
    pub fn span(&self) -> Span {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let range = self.excerpt.as_ref().map(|excerpt| excerpt.range.clone()).unwrap_or_default();
        Span { line: self.line, column: self.column, start: small(range.start), end: small(range.end) }
    }

    /// `file:line: field: message`, for whoever knows which object it is about.
    pub fn in_short(&self) -> String {
        let line = if self.line > 0 { format!("{}:", self.line) } else { String::new() };
        let field = self.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
        format!("{}:{line} {field}{}", self.file, self.message)
    }

    /// The finding with the lines of the file that it speaks of, for a terminal.
    pub fn render(&self) -> String {
        let shown = self.excerpt.as_ref().filter(|excerpt| !may_hold_secret(&excerpt.text));
        let Some(window) = shown.and_then(|excerpt| window(excerpt, self.line)) else {
            return self.to_string();
        };
        let level = match self.severity {
            Severity::Info => Level::INFO,
            Severity::Warning => Level::WARNING,
            Severity::Error => Level::ERROR,
        };
        let title = self.headline();
        let report = &[level.primary_title(title.as_str()).id(self.code.as_str()).element(
            Snippet::source(window.text)
                .line_start(window.first_line)
                .path(&*self.file)
                .fold(false)
                .annotation(AnnotationKind::Primary.span(window.range)),
        )];
        let mut rendered = Renderer::plain().decor_style(DecorStyle::Ascii).render(report);
        rendered.push('\n');
        rendered
    }

    fn headline(&self) -> String {
        let mut line = String::new();
        if let Some(object) = &self.object {
            line.push_str(object);
            line.push_str(": ");
        }
        if let Some(field) = &self.field {
            line.push_str(field);
            line.push_str(": ");
        }
        line.push_str(&self.message);
        line
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}[{}]: {}", self.severity.as_str(), self.code.as_str(), self.headline())
    }
}

/// What follows from it that nobody's `X-Forwarded-For` is believed.
pub const NO_PROXY: &str = "X-Forwarded-For is believed from nobody, but at gateways with a `gatewayTopology`, so that elsewhere for \
    `remoteIpBlocks` and `remote.ip` the client is whoever made the connection: behind a proxy, that is the proxy";

/// Where a gateway says what is in front of it.
pub const OWN_TOPOLOGY: &str = "a gateway says it of itself by `mesh-gateway --trusted-proxies` and `--proxy-protocol`, or the mesh's \
    settings of all by `defaultConfig.gatewayTopology`";

/// Text from outside, fit for one line of a message: short, and without control characters.
pub fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut out = String::from("`");
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}

/// Whether a text may have a Secret in it, or is that of one, which is kept nowhere. The lines around what is wrong beside it may
/// be of it, or it is what is wrong.
fn may_hold_secret(text: &str) -> bool {
    let mark = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
    let mut named = text.match_indices("Secret");
    text.is_empty()
        || named.any(|(at, _)| {
            let before = text.get(..at).unwrap_or_default().trim_end_matches(mark);
            before.strip_suffix(':').is_some_and(|before| before.trim_end_matches(mark).ends_with("kind"))
        })
}

struct Window<'a> {
    text: &'a str,
    first_line: usize,
    range: Range<usize>,
}

/// The lines around the excerpt: one before, one after, and no line longer than a terminal would bear.
fn window(excerpt: &Excerpt, line: u32) -> Option<Window<'_>> {
    const LONGEST: usize = 400;
    let text = &*excerpt.text;
    let start = floor_boundary(text, excerpt.range.start);
    let line_start = text.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
    let line_end = text.get(start..)?.find('\n').map_or(text.len(), |at| start + at);
    let end = floor_boundary(text, excerpt.range.end.clamp(start, line_end));
    if line_end - line_start > LONGEST {
        let from = floor_boundary(text, start.saturating_sub(60).max(line_start));
        let to = floor_boundary(text, (start + 120).min(line_end));
        let end = end.min(to).max(start);
        return Some(Window { text: text.get(from..to)?, first_line: line as usize, range: start - from..end - from });
    }
    let mut from = line_start;
    let mut first_line = line as usize;
    if line_start > 0 {
        let before = text.get(..line_start - 1)?.rfind('\n').map_or(0, |at| at + 1);
        if line_start - before <= LONGEST && first_line > 1 {
            from = before;
            first_line -= 1;
        }
    }
    let mut to = line_end;
    if line_end < text.len() {
        let rest = text.get(line_end + 1..)?;
        let after = rest.find('\n').unwrap_or(rest.len());
        if after <= LONGEST {
            to = line_end + 1 + after;
        }
    }
    Some(Window { text: text.get(from..to)?, first_line, range: start - from..end - from })
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str, line: u32, column: u32, range: Range<u32>) -> Origin {
        Origin {
            source: Source { name: "a.yaml".into(), text: text.into() },
            span: Span { line, column, start: range.start, end: range.end },
        }
    }

    #[test]
    fn a_finding_prints_as_one_line_and_with_its_excerpt() {
        let text = "spec:\n  hosst: reviews\n  http: []\n";
        let finding = Diagnostic::at(&origin(text, 2, 3, 8..13), Severity::Error, Code::UnknownField, "unknown field")
            .object("VirtualService default/reviews")
            .field("hosst");
        assert_eq!(
            finding.to_string(),
            "a.yaml:2:3: error[unknown-field]: VirtualService default/reviews: hosst: unknown field"
        );
        let rendered = finding.render();
        assert!(rendered.contains("a.yaml:2:3"), "{rendered}");
        assert!(rendered.contains("hosst: reviews"), "{rendered}");
        assert!(rendered.contains("^^^^^"), "{rendered}");
    }

    #[test]
    fn what_code_decides_by_is_told_to_nobody() {
        let finding = Diagnostic::at(&origin("a", 1, 1, 0..1), Severity::Warning, Code::Degraded, "nothing");
        let about = finding.clone().about(Topic::ClientAddress);
        assert_eq!((finding.topic(), about.topic()), (None, Some(Topic::ClientAddress)));
        assert_eq!((about.to_string(), about.render()), (finding.to_string(), finding.render()));
        let json = |finding: &Diagnostic| serde_json::to_string(finding).expect("plain data");
        assert_eq!(json(&about), json(&finding));
    }

    #[test]
    fn a_very_long_line_is_cropped_around_the_place() {
        let text = format!("a: {}\n", "é".repeat(5000));
        let finding = Diagnostic::at(&origin(&text, 1, 2000, 4001..4005), Severity::Error, Code::Syntax, "no");
        let rendered = finding.render();
        assert!(rendered.len() < 2000, "{}", rendered.len());
    }

    #[test]
    fn a_finding_about_a_whole_object_has_no_empty_field() {
        let finding = Diagnostic::at(&origin("a", 1, 1, 0..1), Severity::Warning, Code::Degraded, "nothing");
        let finding = finding.object("WasmPlugin a/b").field("");
        assert!(finding.field.is_none() && finding.to_string().ends_with("WasmPlugin a/b: nothing"), "{finding}");
    }

    #[test]
    fn a_place_outside_the_text_still_prints() {
        let finding = Diagnostic::at(&origin("a", 9, 9, 500..900), Severity::Info, Code::Ignored, "nothing");
        assert!(finding.render().contains("nothing"));
    }

    #[test]
    fn quoted_text_has_no_control_characters_and_an_end() {
        assert_eq!(quoted("a\u{1b}[31m\n"), "`a\\u{1b}[31m\\n`");
        assert!(quoted(&"x".repeat(1000)).chars().count() < 100);
    }
}
