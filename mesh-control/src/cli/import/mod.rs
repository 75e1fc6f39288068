//! `mesh-control import`: what of an Istio that runs acts the same here, what does not, and why. The tables of support and
//! `validate` are the judges; nothing is decided here.

mod installation;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use mesh_core::printable::printable;
use serde::Serialize;
use serde_json::Value;

use super::{Format, Printing, validate};
use crate::analysis::{Mesh, validate_scan};
use crate::config::file::mesh_file_name;
use crate::config::load::{Reach, Scan};
use crate::config::node::{self, Node};
use crate::config::support::{self, Becomes, ObjectKind};
use crate::config::yaml::yaml;
use crate::config::{Code, Diagnostic, Severity, Source};
use installation::Here;

/// Says of what a running Istio has, field by field, what acts the same here, what has no effect, and what is different and why:
/// `kubectl get virtualservices,destinationrules,... -A -o yaml | mesh-control import -`. IstioOperators and Helm's values are read, too;
/// the settings of the mesh that are found are printed. Nothing is changed. The exit code is 1 if something would be refused.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files and directories, `-` for stdin: objects as `kubectl get -o yaml` prints them, and IstioOperators.
    #[arg(value_name = "PATH", required_unless_present = "values")]
    paths: Vec<PathBuf>,
    /// Reads directories below these, too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Helm's values of Istio's charts (`helm get values -a istiod`). May be given several times, or as a list with commas.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    values: Vec<PathBuf>,
    #[command(flatten)]
    printing: Printing,
}

/// What becomes of something that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Same,
    NoEffect,
    Differs,
    /// Nobody here knows it.
    Unknown,
}

/// A field, of all objects in which the same becomes of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Field {
    kind: &'static str,
    path: String,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    objects: BTreeSet<String>,
}

/// A part of the installation.
#[derive(Debug, Serialize)]
struct Part {
    place: String,
    path: String,
    verdict: Verdict,
    why: &'static str,
}

/// The settings of the mesh, where they were found.
#[derive(Debug, Serialize)]
struct Settings {
    place: String,
    settings: Value,
}

/// All there is to say.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Import {
    /// How many of each kind.
    objects: BTreeMap<String, usize>,
    /// Those that count.
    mesh_config: Option<Settings>,
    /// Where others were found, which say something else.
    other_mesh_configs: Vec<String>,
    fields: Vec<Field>,
    installation: Vec<Part>,
    /// What `validate` says besides.
    findings: Vec<Diagnostic>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut scan = Scan::default();
    for path in &args.paths {
        validate::read(path, Reach::recursive(args.recursive), &mut scan)?;
    }
    let mut values = Scan::default();
    for path in &args.values {
        validate::read(path, Reach::Directory, &mut values)?;
    }
    let import = import(scan, values);
    let is_fine = import.findings.iter().all(|finding| finding.severity < Severity::Error);
    match args.printing.format() {
        Format::Json => super::say_json(&import)?,
        Format::Text => super::say(&text(&import))?,
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn import(mut scan: Scan, values: Scan) -> Import {
    let mut import = Import::default();
    let mut read = Read::default();
    for (name, documents) in documents(&scan) {
        documents.iter().for_each(|document| read.document(&name, document));
    }
    for (name, documents) in documents(&values) {
        for values in &documents {
            read.settings(format!("{name}: meshConfig"), values.get("meshConfig"));
            read.parts(&name, "", values, installation::of_values);
        }
    }
    // What cannot be read is told by whoever reads it.
    scan.files.extend(values.files.into_iter().filter(|(_, text)| text.is_err()));
    let is_read_already = read.live.is_some();
    let counts = read.live.take().or_else(|| (!read.settings.is_empty()).then(|| read.settings.remove(0)));
    if let Some(counts) = counts {
        let name = mesh_file_name(std::path::Path::new(&counts.place));
        let source = Source { name: name.clone(), text: yaml(&counts.settings).into() };
        let documents = node::parse(&source).unwrap_or_default();
        documents.iter().for_each(|settings| read.fields(ObjectKind::MeshConfig, "the mesh", settings));
        if !is_read_already {
            scan.files.insert(name, Ok(source.text));
        }
        let others = read.settings.iter().filter(|other| other.settings != counts.settings);
        import.other_mesh_configs = others.map(|other| other.place.clone()).collect();
        import.mesh_config = Some(counts);
    }
    let field = |((verdict, kind, path, why), objects)| Field { kind, path, verdict, why, objects };
    import.fields = read.fields.into_iter().map(field).collect();
    import.objects = read.objects;
    import.installation = read.installation;
    // As mesh-control is run in the place of istiod: it issues certificates, and who has none yet is let in.
    let mesh = Mesh::issuing();
    let is_told = |finding: &Diagnostic| {
        let is_field = finding.code == Code::NotSupportedYet && finding.field.is_some();
        let is_operator = finding.object.as_ref().is_some_and(|object| object.starts_with(OPERATOR));
        finding.severity == Severity::Info || is_field || is_operator
    };
    import.findings = validate_scan(scan, mesh).diagnostics.into_iter().filter(|finding| !is_told(finding)).collect();
    import
}

const OPERATOR: &str = "IstioOperator";

/// The documents of each text that can be read.
fn documents(scan: &Scan) -> Vec<(Arc<str>, Vec<Node>)> {
    let texts = scan.files.iter().filter_map(|(name, text)| Some((name, text.as_ref().ok()?)));
    let read = texts.map(|(name, text)| {
        let documents = node::parse(&Source { name: name.clone(), text: text.clone() });
        (name.clone(), documents.unwrap_or_default())
    });
    read.collect()
}

/// What was read so far.
#[derive(Default)]
struct Read {
    objects: BTreeMap<String, usize>,
    fields: BTreeMap<(Verdict, &'static str, String, Option<String>), BTreeSet<String>>,
    installation: Vec<Part>,
    settings: Vec<Settings>,
    /// What istiod itself goes by.
    live: Option<Settings>,
}

impl Read {
    fn document(&mut self, file: &str, document: &Node) {
        let text = |node: &Node, name: &str| node.get(name).and_then(Node::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text(document, "apiVersion"), text(document, "kind"));
        if kind == "List" {
            return document
                .get("items")
                .map(Node::items)
                .unwrap_or_default()
                .iter()
                .for_each(|one| self.document(file, one));
        }
        *self.objects.entry(kind.clone()).or_default() += usize::from(!kind.is_empty());
        let metadata = |name: &str| document.get("metadata").map(|of| text(of, name)).unwrap_or_default();
        let id = format!("{}/{}", metadata("namespace"), metadata("name"));
        let spec = document.get("spec");
        match (&*kind, spec) {
            ("ConfigMap", _) if metadata("name") == "istio" => {
                let settings = document.get("data").and_then(|data| data.get("mesh")).and_then(Node::as_str);
                let source = settings.map(|text| Source { name: file.into(), text: text.into() });
                let read = source.and_then(|source| node::parse(&source).ok()?.pop());
                let place = format!("ConfigMap {id}");
                self.live = read.map(|settings| Settings { place, settings: settings.json() }).or(self.live.take());
            }
            (OPERATOR, Some(spec)) => {
                let place = format!("{OPERATOR} {id}");
                self.settings(format!("{place}: spec.meshConfig"), spec.get("meshConfig"));
                let values = spec.get("values").and_then(|values| values.get("meshConfig"));
                self.settings(format!("{place}: spec.values.meshConfig"), values);
                self.parts(&place, "", spec, installation::of_operator);
            }
            (_, Some(spec)) => {
                let is_it = |read: &ObjectKind| read.is(&version, &kind) && !read.versions().is_empty();
                if let Some(read) = ObjectKind::ALL.into_iter().find(is_it) {
                    self.fields(read, &id, spec);
                }
            }
            _ => {}
        }
    }

    /// Notes what becomes of each field.
    fn fields(&mut self, kind: ObjectKind, id: &str, spec: &Node) {
        support::walk(kind, spec, &mut |written| {
            let (verdict, why) = match written.becomes {
                Becomes::Enforced => (Verdict::Same, None),
                Becomes::Idle => (Verdict::NoEffect, None),
                Becomes::Instead(instead) => (Verdict::Differs, Some(instead)),
            };
            let field = (verdict, kind.title(), written.path.to_owned(), why);
            self.fields.entry(field).or_default().insert(id.to_owned());
        });
    }

    fn settings(&mut self, place: String, settings: Option<&Node>) {
        self.settings.extend(settings.map(|settings| Settings { place, settings: settings.json() }));
    }

    /// Notes what becomes of each part of an installation: of what is written, as far down as rows tell it apart.
    fn parts(&mut self, place: &str, above: &str, node: &Node, row: fn(&str) -> Option<Here>) {
        for (key, value) in node.entries() {
            let path = if above.is_empty() { key.name.clone() } else { format!("{above}.{}", key.name) };
            if value.value == node::Value::Null || path == "meshConfig" || path == "values.meshConfig" {
                continue;
            }
            if !value.entries().is_empty() {
                self.parts(place, &path, value, row);
                continue;
            }
            let (verdict, why) = match row(&path) {
                Some(Here::Same(why)) => (Verdict::Same, why),
                Some(Here::Idle(why)) => (Verdict::NoEffect, why),
                Some(Here::Differs(why)) => (Verdict::Differs, why),
                None => (Verdict::Unknown, "it is none of those that are known here: nothing is taken from it"),
            };
            self.installation.push(Part { place: place.to_owned(), path, verdict, why });
        }
    }
}

/// How many objects are named before it is said how many more there are.
const NAMED: usize = 3;

fn text(import: &Import) -> String {
    let mut out = String::new();
    let objects = import.objects.iter().map(|(kind, count)| format!("{kind} {count}"));
    _ = writeln!(out, "objects: {}", objects.collect::<Vec<_>>().join(", "));
    match &import.mesh_config {
        None => out += "\nno settings of the mesh were found: those of Istio's ConfigMap istio count, or defaults\n",
        Some(Settings { place, settings }) => {
            _ = write!(out, "\nsettings of the mesh, of {place}; for `serve --mesh-config`, or the ConfigMap istio:\n");
            out.extend(yaml(settings).lines().map(|line| format!("  {line}\n")));
            for other in &import.other_mesh_configs {
                _ = writeln!(out, "  # {other} says something else, and does not count");
            }
        }
    }
    for (verdict, title) in [
        (Verdict::Same, "acts the same"),
        (Verdict::NoEffect, "has no effect here, and nothing is lost"),
        (Verdict::Differs, "is different"),
        (Verdict::Unknown, "is not known"),
    ] {
        let mut lines = Vec::new();
        let mut same: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for field in import.fields.iter().filter(|field| field.verdict == verdict) {
            match &field.why {
                None => same.entry(field.kind).or_default().push(&field.path),
                Some(why) => lines.push(format!("{} {}: {why} ({})", field.kind, field.path, named(&field.objects))),
            }
        }
        lines.splice(0..0, same.into_iter().map(|(kind, paths)| format!("{kind}: {}", paths.join(", "))));
        let parts = import.installation.iter().filter(|part| part.verdict == verdict);
        lines.extend(parts.map(|part| format!("{}: {}: {}", part.place, part.path, part.why)));
        if !lines.is_empty() {
            _ = writeln!(out, "\n{title}:");
            out.extend(lines.iter().map(|line| format!("  {}\n", printable(line))));
        }
    }
    if !import.findings.is_empty() {
        out += "\nand of the objects as a whole (`validate`):\n";
        out.extend(import.findings.iter().map(|finding| format!("  {finding}\n")));
    }
    out
}

fn named(objects: &BTreeSet<String>) -> String {
    let first: Vec<&str> = objects.iter().take(NAMED).map(String::as_str).collect();
    let more = objects.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    first.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(texts: &[(&str, &str)]) -> Scan {
        let mut scan = Scan::default();
        scan.files.extend(texts.iter().map(|(name, text)| ((*name).into(), Ok((*text).into()))));
        scan
    }

    const LIVE: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: reviews, namespace: shop}
  spec: {ports: [{name: http, port: 9080}], selector: {app: reviews}}
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: reviews, namespace: shop}
  spec:
    host: reviews
    trafficPolicy:
      connectionPool: {http: {http2MaxRequests: 10}}
      proxyProtocol: {version: V2}
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: reviews, namespace: shop}
  spec: {hosts: [reviews], http: [{timeout: 1s, route: [{destination: {host: nobody}}]}]}
";
    const INSTALLED: &str = "
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: installed, namespace: istio-system}
spec:
  profile: default
  revision: blue
  meshConfig: {trustDomain: shop.example, tlsDefaults: {minProtocolVersion: TLSV1_3}, accessLogFile: /dev/stdout}
  components: {pilot: {k8s: {replicaCount: 3, nodeSelector: {a: b}}}, ingressGateways: [{name: in, enabled: true}]}
  values: {global: {proxy: {privileged: false}}, pilto: {a: 1}}
";

    #[test]
    fn every_field_has_the_verdict_of_the_tables_and_every_part_one_of_its_own() {
        let all = import(scan(&[("live.yaml", LIVE), ("operator.yaml", INSTALLED)]), Scan::default());
        let field = |kind: &str, path: &str| {
            let mut found = all.fields.iter().filter(|field| field.kind == kind && field.path == path);
            let found = found.next().unwrap_or_else(|| panic!("{kind} {path} in {:?}", all.fields));
            (found.verdict, found.why.is_some())
        };
        for (kind, path, expected) in [
            ("VirtualService", "http.timeout", (Verdict::Same, false)),
            ("DestinationRule", "trafficPolicy.connectionPool.http.http2MaxRequests", (Verdict::Same, false)),
            ("DestinationRule", "trafficPolicy.proxyProtocol", (Verdict::Differs, true)),
            ("MeshConfig", "trustDomain", (Verdict::Same, false)),
            ("MeshConfig", "tlsDefaults", (Verdict::Differs, true)),
        ] {
            assert_eq!(field(kind, path), expected, "{kind} {path}");
        }
        let part = |path: &str| all.installation.iter().find(|part| part.path == path).map(|part| part.verdict);
        for (path, expected) in [
            ("revision", Verdict::Same),
            ("components.pilot.k8s.replicaCount", Verdict::Same),
            ("components.pilot.k8s.nodeSelector.a", Verdict::Differs),
            ("components.ingressGateways", Verdict::Differs),
            ("values.global.proxy.privileged", Verdict::NoEffect),
            ("values.pilto.a", Verdict::Unknown),
        ] {
            assert_eq!(part(path), Some(expected), "{path}");
        }
        // Of what goes beyond a field, `validate` is the judge; what was said of fields is not said again.
        let findings: Vec<String> = all.findings.iter().map(ToString::to_string).collect();
        assert!(findings.iter().any(|finding| finding.contains("nobody")), "{findings:?}");
        assert!(
            !findings.iter().any(|finding| finding.contains("proxyProtocol") || finding.contains(OPERATOR)),
            "{findings:?}"
        );
        let text = text(&all);
        assert!(text.contains("IstioOperator istio-system/installed: spec.meshConfig"), "{text}");
        assert!(text.contains("  trustDomain: shop.example\n"), "{text}");
    }

    #[test]
    fn the_settings_that_istiod_goes_by_count_and_others_are_told() {
        let config_map = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'trustDomain: live.example'}
";
        let values = scan(&[("v.yaml", "meshConfig: {trustDomain: live.example}\nglobal: {meshID: a}\n")]);
        let all = import(scan(&[("live.yaml", config_map), ("operator.yaml", INSTALLED)]), values);
        let settings = all.mesh_config.expect("settings");
        assert_eq!(
            (&*settings.place, &settings.settings["trustDomain"]),
            ("ConfigMap istio-system/istio", &"live.example".into())
        );
        assert_eq!(all.other_mesh_configs, ["IstioOperator istio-system/installed: spec.meshConfig"]);
        assert_eq!(all.findings, [], "one place of settings is read, and not two");
        assert!(all.installation.iter().any(|part| part.path == "global.meshID" && part.verdict == Verdict::Differs));
    }
}
