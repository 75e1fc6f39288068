//! Who may know whom, held by reading the sources.
//!
//! Each crate's modules stand in layers; a file uses only layers below its own, and its own module. What cannot
//! follow that stands in `EXCEPTIONS`, with its reason. The same goes for what the crates may link, and for where
//! protobuf and tonic may be spoken of. Tests inside the sources are free.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of one crate, lowest layer first. A module is a path below `src`, with everything in it; the longest
/// one that fits a file is the file's. Modules of one layer do not use each other.
struct Crate {
    name: &'static str,
    layers: &'static [&'static [&'static str]],
}

const CRATES: [Crate; 4] = [
    Crate {
        name: "mesh-core",
        layers: &[
            &[
                "id",
                "grpc_timeout",
                "histogram",
                "list",
                "load_report",
                "printable",
                "recycled",
                "response_flags",
                "seldom",
            ],
            &["error"],
            &["request", "identity", "path", "proxy_protocol"],
            &["model", "workload"],
            &["matcher", "hashing", "outlier", "health_check", "resources", "rewrite", "tls", "trace"],
            &["state", "client_status", "jwt", "calls", "live_trace"],
            &["authz", "limits"],
            &["request_info"],
            &["balance", "filter", "retry", "telemetry"],
            &["view"],
            &["store"],
            &["fixed", "xds"],
            &["testing"],
        ],
    },
    Crate {
        name: "mesh-tower",
        layers: &[
            &[
                "body",
                "connection",
                "drain",
                "filters",
                "followed",
                "grpc_wire",
                "headers",
                "inherited",
                "io",
                "onward",
                "reply",
                "uri",
            ],
            &["access_log", "health", "telemetry", "trace", "transport"],
            &[
                "listeners",
                "outbound/mirror",
                "outbound/placement",
                "outbound/response_body",
                "outbound/rewrite",
                "threads",
            ],
            &["outbound/coalesced"],
            &["outbound/request"],
            &["outbound/attempt"],
            &["outbound/hedge", "outbound/route"],
            &["outbound"],
            &["unary"],
            &["processors", "rate_limits"],
            &["mesh"],
            &["client", "metrics", "server"],
            &["admin", "gateway", "otel"],
            &["bin"],
        ],
    },
    Crate {
        name: "mesh-tonic",
        layers: &[
            &["codec", "status", "health", "streams"],
            &["client_status", "deadline", "load_reports"],
            &["channel", "server"],
        ],
    },
    Crate {
        name: "mesh-control",
        layers: &[
            &["http1"],
            &["conformance", "fetch", "hex", "journal", "period"],
            &["ca", "calls", "catalog", "config/diagnostic"],
            &["config/node", "config/schema", "config/spelling"],
            &["config/decode", "config/locate"],
            &["config/istio", "config/support"],
            &["config/extensions", "config/gateway_api"],
            &["config/file"],
            &["config"],
            &["policy/locality"],
            &["policy/split", "policy/text", "policy/traffic", "policy/view"],
            &["policy/route"],
            &["registry"],
            &["policy"],
            &["render"],
            &["analysis", "jwks", "ratelimit", "shift"],
            &["quota"],
            &["plane"],
            &["explain", "kubernetes"],
            &["changes"],
            &["etcd"],
            &["live_trace"],
            &["serve/protocol"],
            &["serve/clients"],
            &["serve/io"],
            &["serve"],
            &["embedded"],
            &["cli"],
        ],
    },
];

/// A use of a module that its layer does not allow: who, whom, and why it is right all the same. There is none.
const EXCEPTIONS: [(&str, &str, &str, &str); 0] = [];

#[test]
fn a_file_uses_only_layers_below_its_own() {
    let mut faults = String::new();
    let mut used = BTreeSet::new();
    for krate in &CRATES {
        for file in sources(krate.name) {
            check_file(krate, &file, &mut used, &mut faults);
        }
    }
    for exception in EXCEPTIONS {
        if !used.contains(&(exception.0, exception.1, exception.2)) {
            writeln!(faults, "the exception {exception:?} is not used any more: take it out").expect("a string");
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn every_module_of_the_table_exists() {
    for krate in &CRATES {
        for module in krate.layers.iter().copied().flatten() {
            let path = root().join(krate.name).join("src").join(module);
            assert!(path.is_dir() || path.with_extension("rs").is_file(), "{}: no module {module}", krate.name);
        }
    }
}

/// The data plane and the control plane meet in the application, through xDS or a source, and nowhere else.
#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let allowed: [(&str, &[&str]); 4] = [
        ("mesh-core", &[]),
        ("mesh-tower", &["mesh-core"]),
        ("mesh-tonic", &["mesh-core", "mesh-tower"]),
        ("mesh-control", &["mesh-core"]),
    ];
    for (name, allowed) in allowed {
        let manifest = root().join(name).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let linked = text.split("[dev-dependencies]").next().unwrap_or_default();
        for (number, line) in linked.lines().enumerate() {
            let Some(dependency) = CRATES.iter().map(|krate| krate.name).find(|dependency| is_key(line, dependency))
            else {
                continue;
            };
            assert!(
                allowed.contains(&dependency),
                "{}:{}: {name} may not depend on {dependency}",
                shown(&manifest),
                number + 1
            );
        }
    }
}

/// Decoded once at the border: inside, the types are our own.
#[test]
fn protobuf_and_tonic_stay_at_the_border() {
    let rules: [(&str, &[&str]); 4] = [
        ("envoy_types", &["mesh-core/src/xds", "mesh-core/src/testing", "mesh-control/src"]),
        (
            "prost",
            &[
                "mesh-core/src/xds",
                "mesh-core/src/testing",
                "mesh-tower/src/otel/logs.rs",
                "mesh-tower/src/otel/otlp.rs",
                "mesh-control/src",
            ],
        ),
        ("opentelemetry_proto", &["mesh-tower/src/otel"]),
        ("tonic tonic_prost", &["mesh-core/src/xds", "mesh-core/src/testing", "mesh-tonic/src", "mesh-control/src"]),
    ];
    let mut faults = String::new();
    for file in CRATES.iter().flat_map(|krate| sources(krate.name)) {
        for (number, line) in code(&file) {
            for (words, homes) in rules {
                let at_home = homes.iter().any(|home| file.starts_with(root().join(home)));
                for word in words.split(' ').filter(|word| !at_home && names_crate(&line, word)) {
                    writeln!(faults, "{}:{number}: {word} belongs in {}", shown(&file), homes.join(", "))
                        .expect("a string");
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

/// `HeaderValue::to_str` fails on bytes that are legal in a header; a rule that then does not match lets the request
/// in (CVE-2026-73552).
#[test]
fn matchers_compare_bytes() {
    for file in [
        "matcher.rs",
        "matcher/index.rs",
        "matcher/unmet.rs",
        "filter/mod.rs",
        "filter/fault.rs",
        "limits/descriptor.rs",
        "view/routes.rs",
        "authz/condition.rs",
    ] {
        let file = root().join("mesh-core/src").join(file);
        for (number, line) in code(&file) {
            assert!(!line.contains(".to_str()"), "{}:{number}: match the bytes of a header's value", shown(&file));
        }
    }
}

/// What is rendered is the meaning of a configuration, not how it is written: Istio's types end in `policy`. A finding
/// needs to say where something is written.
#[test]
fn rendering_reads_no_configuration() {
    let render = root().join("mesh-control/src/render");
    let mut faults = String::new();
    for file in sources("mesh-control").iter().filter(|file| file.starts_with(&render)) {
        for (line, uses) in uses_in(&root().join("mesh-control/src"), file) {
            let parts: Vec<&str> = uses.iter().map(String::as_str).collect();
            if parts.first() == Some(&"config") && !parts.starts_with(&["config", "diagnostic"]) {
                writeln!(faults, "{}:{line}: {} is not for rendering", shown(file), parts.join("::"))
                    .expect("a string");
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

type Edge = (&'static str, &'static str, &'static str);

fn check_file(krate: &Crate, file: &Path, used: &mut BTreeSet<Edge>, faults: &mut String) {
    let source = root().join(krate.name).join("src");
    let path = module_of(&source, file);
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    // The roots only open the doors.
    if matches!(path.as_slice(), ["lib" | "main"]) {
        return;
    }
    let Some((own, own_layer)) = krate.place(&path) else {
        writeln!(faults, "{}: is in no layer: add it to the table of this test", shown(file)).expect("a string");
        return;
    };
    for (line, uses) in uses_in(&source, file) {
        let Some((other, layer)) = krate.place(&uses.iter().map(String::as_str).collect::<Vec<_>>()) else {
            continue;
        };
        if other == own || layer < own_layer {
            continue;
        }
        let exception = EXCEPTIONS.iter().find(|it| (it.0, it.1, it.2) == (krate.name, own, other));
        if let Some((name, from, to, _)) = exception {
            used.insert((name, from, to));
            continue;
        }
        writeln!(
            faults,
            "{}:{line}: {own} (layer {own_layer}) uses {other} (layer {layer}): only lower layers may be used",
            shown(file)
        )
        .expect("a string");
    }
}

impl Crate {
    /// The module of the table that a path belongs to, and its layer.
    fn place(&self, path: &[&str]) -> Option<(&'static str, usize)> {
        let entries =
            self.layers.iter().enumerate().flat_map(|(layer, modules)| modules.iter().map(move |it| (*it, layer)));
        let fits = |(module, _): &(&str, usize)| {
            let parts: Vec<&str> = module.split('/').collect();
            path.starts_with(&parts)
        };
        entries.filter(fits).max_by_key(|(module, _)| module.len())
    }
}

/// The module that a file is, below the crate's `src`.
fn module_of(source: &Path, file: &Path) -> Vec<String> {
    let path = file.strip_prefix(source).expect("a file of the crate").with_extension("");
    let mut path: Vec<String> = path.iter().map(|part| part.to_str().expect("a plain name").to_owned()).collect();
    path.pop_if(|last| last == "mod");
    path
}

/// Every path of its crate that a file uses, with the line where it stands.
fn uses_in(source: &Path, file: &Path) -> Vec<(usize, Vec<String>)> {
    let (lines, text): (Vec<usize>, Vec<String>) = code(file).into_iter().unzip();
    let text = text.join("\n");
    let module = module_of(source, file);
    let module: Vec<&str> = module.iter().map(String::as_str).collect();
    let at = |offset: usize| lines[text[..offset].matches('\n').count()];
    paths_in(&text, &module).into_iter().map(|(offset, uses)| (at(offset), uses)).collect()
}

/// Every path that starts at the crate's root or at a parent module, from the root, with where it stands.
fn paths_in(text: &str, module: &[&str]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (offset, _) in text.match_indices("crate::").chain(text.match_indices("super::")) {
        // `mesh_crate::` is another name, and the second `super::` of a row was read with the first.
        if text[..offset].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':') {
            continue;
        }
        let (prefix, rest) = match text[offset..].strip_prefix("crate::") {
            Some(rest) => (Vec::new(), rest),
            None => {
                let ups = text[offset..].split("super::").take_while(|between| between.is_empty()).count();
                let rest = &text[offset + ups * "super::".len()..];
                let parent = &module[..module.len().saturating_sub(ups)];
                (parent.iter().map(|part| (*part).to_owned()).collect(), rest)
            }
        };
        expand(rest, &prefix, offset, &mut found);
    }
    found
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand<'t>(text: &'t str, prefix: &[String], offset: usize, found: &mut Vec<(usize, Vec<String>)>) -> &'t str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, prefix, offset, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path: Vec<String> = prefix.iter().cloned().chain((!name.is_empty()).then(|| name.to_owned())).collect();
    match rest.strip_prefix("::") {
        Some(rest) => expand(rest, &path, offset, found),
        None => {
            found.push((offset, path));
            // `a as b`, `*`
            rest.trim_start_matches(|it: char| !matches!(it, ',' | '{' | '}' | ';' | '\n'))
        }
    }
}

/// The lines of a file that are neither comments nor tests, by number.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("a source file");
    let mut lines = Vec::new();
    let mut numbered = text.lines().enumerate().peekable();
    while let Some((index, line)) = numbered.next() {
        if line.trim() == "#[cfg(test)]" {
            let item = numbered.clone().map(|(_, line)| line).find(|line| !line.trim_start().starts_with("#["));
            // Tests in the file are its end; other items are one line, or stay.
            if item.is_some_and(|item| item.starts_with("mod ") && item.ends_with('{')) {
                break;
            }
        }
        if !line.trim_start().starts_with("//") {
            lines.push((index + 1, line.to_owned()));
        }
    }
    lines
}

/// The files of a crate, without those that only its tests have.
fn sources(krate: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&root().join(krate).join("src"), &mut files);
    let tests: Vec<PathBuf> = files.iter().flat_map(|file| test_modules(file)).collect();
    files.retain(|file| !tests.iter().any(|test| file == test || file.starts_with(test.with_extension(""))));
    assert!(!files.is_empty(), "{krate} has sources");
    files
}

/// The files of `#[cfg(test)] mod name;`.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).expect("a source file");
    let folder = file.parent().expect("a folder");
    let inner = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => folder.to_path_buf(),
        Some(stem) => folder.join(stem),
    };
    let mut found = Vec::new();
    for after in text.split("#[cfg(test)]").skip(1) {
        let mut path = None;
        for line in after.trim_start().lines() {
            if let Some(named) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                path = Some(folder.join(named));
            } else if let Some(name) = module_name(line) {
                found.push(path.unwrap_or_else(|| inner.join(name).with_extension("rs")));
                found.push(inner.join(name).join("mod.rs"));
                break;
            } else {
                break;
            }
        }
    }
    found
}

fn module_name(line: &str) -> Option<&str> {
    let line =
        ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line);
    line.strip_prefix("mod ")?.strip_suffix(';')
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn is_key(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
}

fn names_crate(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(|it| it.is_alphanumeric() || it == '_' || it == ':');
        !before && line[at + word.len()..].starts_with("::")
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
