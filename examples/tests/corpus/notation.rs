//! Reads `interop/corpus`: for every field of every kind a manifest with a hole, and values for it. The notation is told in
//! `interop/README.md`; `interop/corpus.py` reads the same files.

use std::fs;
use std::path::PathBuf;

use mesh_control::config::support::ObjectKind;

/// One manifest and what is expected of it.
#[derive(Debug)]
pub(crate) struct Case {
    /// Names its objects and its host.
    pub(crate) name: String,
    /// The kind of object.
    pub(crate) kind: String,
    /// The path of the field, without indexes and keys of maps.
    pub(crate) field: String,
    /// The value, as it is written.
    pub(crate) value: String,
    /// What `validate` says.
    pub(crate) outcome: Outcome,
    /// All its objects.
    pub(crate) text: String,
    /// The `host:port` that a client asks for.
    pub(crate) target: String,
    /// What a client experiences.
    pub(crate) requests: Vec<Exchange>,
}

/// What `validate` says of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing.
    Ok,
    /// No error, and a warning at the field.
    Warn,
    /// An error at the field.
    Error,
    /// That it is right, and guards workloads, which is not enforced: an error at `spec`, and none elsewhere.
    Unenforced,
    /// It is not written down.
    Any,
}

/// A request and what it comes to.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// `GET /path name=value`.
    pub(crate) request: String,
    /// `v1 name=value`, a status, or a kind of error.
    pub(crate) answer: String,
}

/// The services behind the routes, with the ports of their servers.
pub(crate) fn base(ports: [u16; 2]) -> String {
    expand(&read("base.yaml"), "up", ports)
}

/// Every case of every kind.
pub(crate) fn all(ports: [u16; 2]) -> Vec<Case> {
    ObjectKind::ALL.into_iter().flat_map(|kind| of_kind(kind.title(), ports)).collect()
}

impl Case {
    /// Whether it is the settings of a mesh, of which there is one object.
    pub(crate) fn is_of_mesh(&self) -> bool {
        self.kind == ObjectKind::MeshConfig.name()
    }
}

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../interop/corpus").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn of_kind(kind: &str, ports: [u16; 2]) -> Vec<Case> {
    let text = read(&format!("{kind}.txt"));
    let (head, cases) = text.split_once("===\n").expect("cases");
    let (about, manifest) = head.split_once("---\n").expect("a manifest");
    let target = about.lines().find_map(|line| line.strip_prefix("target: ")).expect("a target");
    let mut all = Vec::new();
    let mut places: Vec<(String, String)> = Vec::new();
    for line in cases.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(line) = line.strip_prefix("  ") else {
            let (field, template) = line.split_once(": ").expect("a field and its manifest");
            places = places_of(field, template);
            continue;
        };
        let mut parts = line.split(" // ");
        let (outcome, value) = parts.next().and_then(|part| part.split_once(' ')).expect("an outcome and a value");
        let outcome = match outcome {
            "ok" => Outcome::Ok,
            "warn" => Outcome::Warn,
            "error" => Outcome::Error,
            "unenforced" => Outcome::Unenforced,
            "any" => Outcome::Any,
            other => panic!("{kind}: {other} is no outcome"),
        };
        let requests: Vec<&str> = parts.collect();
        for (field, template) in &places {
            let initials: String = kind.chars().filter(char::is_ascii_uppercase).collect();
            let name = format!("{}{}", initials.to_lowercase(), all.len());
            let full = |text: &str| expand(text, &name, ports);
            let requests = requests.iter().map(|exchange| {
                let (request, answer) = exchange.split_once(" -> ").expect("a request and an answer");
                Exchange { request: full(request), answer: full(answer) }
            });
            all.push(Case {
                kind: kind.to_owned(),
                field: field.clone(),
                value: full(value),
                outcome,
                text: full(&manifest.replace("$SPEC", &template.replace('@', value))),
                target: full(target),
                requests: requests.collect(),
                name: name.clone(),
            });
        }
    }
    all
}

/// A traffic policy stands in four places.
fn places_of(field: &str, template: &str) -> Vec<(String, String)> {
    let Some(policy) = template.strip_prefix("$POLICY") else {
        return vec![(field.to_owned(), template.to_owned())];
    };
    let inside = policy.strip_prefix('{').expect("a policy");
    let of_port = format!("{{portLevelSettings: [{{port: {{number: 80}}, {inside}]}}");
    let below = |parent: &str| field.replacen("trafficPolicy", parent, 1);
    let rule = |policy: &str| format!("{{$R, subsets: [$S], trafficPolicy: {policy}}}");
    let subset =
        |policy: &str| format!("{{$R, subsets: [{{name: s, labels: {{version: v1}}, trafficPolicy: {policy}}}]}}");
    vec![
        (field.to_owned(), rule(policy)),
        (below("trafficPolicy.portLevelSettings"), rule(&of_port)),
        (below("subsets.trafficPolicy"), subset(policy)),
        (below("subsets.trafficPolicy.portLevelSettings"), subset(&of_port)),
    ]
}

/// What the words with a `$` stand for, in the order in which they are replaced, and `{{x*3}}` for `xxx`.
fn expand(text: &str, name: &str, [first, second]: [u16; 2]) -> String {
    const WORDS: &str = include_str!("../../../interop/corpus/words.txt");
    let mut text = text.to_owned();
    for (word, meaning) in WORDS.lines().filter_map(|line| line.split_once(' ')) {
        text = text.replace(word, meaning);
    }
    text = text.replace("$NAME", name);
    text = text.replace("$PORT1", &first.to_string()).replace("$PORT2", &second.to_string());
    text = text.replace("$P", "ports: [{number: 80, name: http}]");
    while let Some((before, rest)) = text.split_once("{{").filter(|(_, rest)| rest.get(1..2) == Some("*")) {
        let (times, after) = rest.split_once("}}").expect("a repetition");
        let (what, times) = times.split_once('*').expect("a repetition");
        text = format!("{before}{}{after}", what.repeat(times.parse().expect("a number")));
    }
    text
}
