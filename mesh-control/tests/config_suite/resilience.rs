//! `docs/resilience.md`: what becomes of each field of resilience and balancing, for each way into the mesh. It is made of
//! the table of support, and of [`GROUPS`]; `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite resilience`
//! writes it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use mesh_control::config::Source;
use mesh_control::config::node::{self, Node};
use mesh_control::config::support::ObjectKind::{self, DestinationRule, MeshConfig, VirtualService};
use mesh_control::config::support::{Row, Support, is_own_row, row};

use crate::resilience_groups::{Face, GROUPS, Group, Test};
use crate::support::testdata;

const HEAD: &str = "# Resilience and balancing, field by field

Made by `mesh-control/tests/config_suite/resilience.rs`; `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite resilience`
writes it anew.

Every field of a DestinationRule; timeouts, retries, faults and mirrors of a VirtualService; and the settings of the mesh that say
how calls are made. \"Client\" is `mesh.client()` and `mesh_tonic::channel`, \"layer\" is `mesh.client_layer()` around a client that
exists already, \"connector\" is `mesh.connector()` below one. What is reported is a finding of `mesh-control validate` and of the log,
with line and column; `validate --for grpc` has what gRPC's own clients do instead.

\"Yes (1)\" is shown by what a request, a server or a connection experiences, in test 1 of [the list](#tests).
\"No, and says so\": once for each target, in the log. Where a face leaves something to the client above or below it, nothing is logged.

Headers of an application for its Envoy (`x-envoy-upstream-rq-timeout-ms`, `x-envoy-max-retries`, `x-envoy-retry-on`) have no effect: see
[From a running Istio](migration.md#mixed-operation).
";

const REQUESTS: &str = "Of a rule of `http`. Retries go by the rule alone, whatever the method, as in Envoy. A request that must not be sent twice says so in its
extensions: with `mesh_tower::Repeat::Never` there is one try; with `Repeat::IfUnprocessed` it is sent again only where it was certainly
not processed.

```rust
let request = http::Request::post(\"http://payments/charge\").extension(mesh_tower::Repeat::IfUnprocessed);
```";

const OF_ALL: &str = "`mesh` of the ConfigMap `istio`, or the file of `--mesh-config`, which has the text of `mesh` and nothing around it. It counts where no
rule says otherwise:

```yaml
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    connectTimeout: 2s
    defaultHttpRetryPolicy: {attempts: 2, perTryTimeout: 500ms, retryOn: 'connect-failure,refused-stream,unavailable,503'}
    defaultTrafficPolicy:
      outlierDetection: {consecutive5xxErrors: 5, interval: 5s, baseEjectionTime: 30s}
```

`mesh-control explain` names the line of each setting that a request gets from there.";

const KINDS: [(ObjectKind, &str, &str); 3] = [
    (
        DestinationRule,
        "DestinationRule",
        "A `trafficPolicy` means the same for the whole service, for a subset, and in `portLevelSettings` of either. What is said of \
         ISTIO_MUTUAL is where the control plane issues no certificates. Near and far (`localityLbSetting`,
`zoneAwareLbSetting`) is seen from the process that calls, which says where it is by `node.locality` of its bootstrap file
(`mesh-control bootstrap --locality REGION/ZONE/SUBZONE`), or in code by `bootstrap.node.locality`.",
    ),
    (VirtualService, "VirtualService", REQUESTS),
    (MeshConfig, "MeshConfig", OF_ALL),
];

/// Fields that have a row of their own, above those of the protos that have one, too.
const ABOVE: &[(ObjectKind, &str)] = &[(DestinationRule, "trafficPolicy.tls")];

/// Values of which the table of support reports something.
pub(crate) const SAMPLES: &[(ObjectKind, &str, &str)] = &[
    (DestinationRule, "trafficPolicy.loadBalancer.simple", "PASSTHROUGH"),
    (DestinationRule, "trafficPolicy.loadBalancer.simple", "RANDOM"),
    (DestinationRule, "trafficPolicy.tls", "{mode: ISTIO_MUTUAL}"),
    (DestinationRule, "trafficPolicy.tls", "{mode: SIMPLE}"),
    (DestinationRule, "trafficPolicy.tunnel.protocol", "POST"),
    (VirtualService, "http.retries.attempts", "5"),
    (VirtualService, "http.retries.retryOn", "5xx"),
    (VirtualService, "http.retries.retryOn", "retriable-headers"),
    (VirtualService, "http.retries.retryOn", "http3-post-connect-failure"),
    (MeshConfig, "defaultHttpRetryPolicy.attempts", "5"),
    (MeshConfig, "defaultHttpRetryPolicy.retryOn", "5xx"),
    (MeshConfig, "defaultHttpRetryPolicy.retryOn", "retriable-headers"),
    (MeshConfig, "enableAutoMtls", "false"),
];

/// What is about something else: which requests a rule is for and where they go, who proxies are, what they write down,
/// and who trusts whom.
const ELSEWHERE: &[(ObjectKind, &[&str])] = &[
    (
        VirtualService,
        &[
            "exportTo",
            "gateways",
            "hosts",
            "http.name",
            "http.match",
            "http.route",
            "http.headers",
            "http.redirect",
            "http.directResponse",
            "http.delegate",
            "http.rewrite",
            "http.corsPolicy",
            "tls",
            "tcp",
        ],
    ),
    (
        MeshConfig,
        &[
            "trustDomain",
            "trustDomainAliases",
            "rootNamespace",
            "pathNormalization",
            "meshMTLS",
            "tlsDefaults",
            "extensionProviders",
            "caCertificates",
            "ca",
            "certificates",
            "verifyCertificateAtClient",
            "compliancePolicy",
            "serviceSettings",
            "serviceScopeConfigs",
            "serviceEntryVisibility",
            "discoverySelectors",
            "configSources",
            "defaultConfig",
            "inboundTrafficPolicy",
            "proxyListenPort",
            "proxyInboundListenPort",
            "proxyHttpPort",
            "protocolDetectionTimeout",
            "ingressClass",
            "ingressService",
            "ingressControllerMode",
            "ingressSelector",
            "enableTracing",
            "accessLogFile",
            "accessLogFormat",
            "accessLogEncoding",
            "enableEnvoyAccessLogService",
            "disableEnvoyListenerLog",
            "defaultProviders",
            "enablePrometheusMerge",
            "inboundClusterStatName",
            "outboundClusterStatName",
            "dnsRefreshRate",
        ],
    ),
];

/// The fields of the protos, as far as they are about this; those of a traffic policy once, wherever it stands.
fn fields(kind: ObjectKind) -> Vec<String> {
    let path = testdata("fields").join(format!("{}.txt", kind.name()));
    let text = std::fs::read_to_string(path).unwrap();
    let mut fields = Vec::new();
    for field in text.lines().filter(|line| !line.starts_with('#')) {
        let once = once(field);
        if !is_elsewhere(kind, field) && !fields.contains(&once) {
            fields.push(once);
        }
    }
    fields.sort();
    fields
}

/// The path of a field of a traffic policy without the place of the policy.
fn once(field: &str) -> String {
    let field = field.strip_prefix("subsets.").filter(|rest| rest.starts_with("trafficPolicy.")).unwrap_or(field);
    match field.strip_prefix("trafficPolicy.portLevelSettings.") {
        Some(rest) if rest != "port.number" => format!("trafficPolicy.{rest}"),
        _ => field.to_owned(),
    }
}

fn is_elsewhere(kind: ObjectKind, field: &str) -> bool {
    let covers = |prefix: &str| field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    ELSEWHERE.iter().any(|(of, prefixes)| *of == kind && prefixes.iter().any(|prefix| covers(prefix)))
}

fn group(kind: ObjectKind, field: &str) -> Option<&'static Group> {
    let mut found = GROUPS.iter().filter(|group| group.kind == kind && group.fields.contains(&field));
    let first = found.next();
    assert!(found.next().is_none(), "{} {field} is in two groups", kind.name());
    first
}

/// What the table of support reports of a field whatever its value, or of the samples of it.
pub(crate) fn reported(
    kind: ObjectKind,
    field: &str,
    samples: &[(ObjectKind, &str, &str)],
    judge: fn(&Node) -> Option<String>,
) -> String {
    let judged = |sample: &str| {
        let text = format!("value: {sample}");
        let parsed = node::parse(&Source { name: "sample".into(), text: text.into() }).unwrap();
        judge(&parsed[0].entries()[0].1)
    };
    if let Some(said) = judged("null") {
        return said;
    }
    let of_field = samples.iter().filter(|(of, path, _)| *of == kind && *path == field);
    let said: Vec<String> = of_field
        .filter_map(|(_, _, sample)| {
            let said = judged(sample)?;
            // Some begin with the value.
            let said = said.strip_prefix(sample).and_then(|rest| rest.strip_prefix("; ")).unwrap_or(&said);
            Some(format!("`{sample}`: {said}"))
        })
        .collect();
    assert!(!said.is_empty(), "{} {field}: some of its values are reported: give one of them in SAMPLES", kind.name());
    said.join("; ")
}

fn library(kind: ObjectKind, field: &str, row: &Row) -> String {
    match row.library {
        Support::Enforced => "honoured".to_owned(),
        Support::NotYet(reason) => format!("reported: {reason}"),
        Support::Indifferent => "noted: it is about proxies, and there is none here".to_owned(),
        Support::Partly(judge) => format!("honoured; reported: {}", reported(kind, field, SAMPLES, judge)),
        ref other => panic!("{} {field}: say in ELSEWHERE that it is about something else: {other:?}", kind.name()),
    }
}

fn grpc(kind: ObjectKind, field: &str, row: &Row) -> String {
    match row.grpc {
        Support::Enforced => "yes".to_owned(),
        _ if matches!(row.library, Support::NotYet(_) | Support::Indifferent) => "no".to_owned(),
        Support::NotYet(instead) => format!("no: {instead}"),
        Support::Partly(judge) => format!("in part: {}", reported(kind, field, SAMPLES, judge)),
        Support::Indifferent => "they have no need of it".to_owned(),
        ref other => panic!("{} {field}: {other:?}", kind.name()),
    }
}

/// The tests that were named, by their numbers.
#[derive(Default)]
pub(crate) struct Tests(Vec<Test>);

impl Tests {
    fn face(&mut self, what: &str, face: Face) -> String {
        let text = match face {
            Face::Shown(tests) => format!("yes {}", self.numbers(what, tests)),
            Face::Partly(text, tests) => format!("{text} {}", self.numbers(what, tests)),
            Face::No(reason) => format!("no: {reason}"),
        };
        let is_empty = matches!(face, Face::Partly("", _) | Face::No(""));
        assert!(!is_empty, "{what}: a column is empty");
        text
    }

    /// The part of a page that names them.
    pub(crate) fn list(&self) -> String {
        let tests = self.0.iter().enumerate();
        let lines: String =
            tests.map(|(number, (file, name))| format!("{}. `{name}` in [{file}](../{file})\n", number + 1)).collect();
        format!("\n## Tests\n\n{lines}")
    }

    pub(crate) fn numbers(&mut self, what: &str, tests: &[Test]) -> String {
        assert!(!tests.is_empty(), "{what}: no test is named");
        let numbers: Vec<String> = tests
            .iter()
            .map(|test| {
                let known = self.0.iter().position(|known| known == test);
                let at = known.unwrap_or_else(|| {
                    assert_is_there(test);
                    self.0.push(*test);
                    self.0.len() - 1
                });
                (at + 1).to_string()
            })
            .collect();
        format!("({})", numbers.join(", "))
    }
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn assert_is_there((file, name): &Test) {
    let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    // Rust's, and Python's.
    let is_there = ["fn", "def"].iter().any(|word| text.contains(&format!("{word} {name}(")));
    assert!(is_there, "there is no test {name} in {file}");
}

fn line(kind: ObjectKind, field: &str, tests: &mut Tests) -> String {
    let what = format!("{} {field}", kind.name());
    let row = row(kind, field).unwrap_or_else(|| panic!("{what} has no row in config/support"));
    let is_reported = matches!(row.library, Support::NotYet(_) | Support::Indifferent);
    assert!(is_reported || is_own_row(row, field), "{what} hides behind {}", row.path);
    let faces = match (group(kind, field), is_reported) {
        (None, true) => ["no", "no", "no"].map(str::to_owned),
        (Some(group), false) => [group.client, group.layer, group.connector].map(|face| tests.face(&what, face)),
        (None, false) => panic!("{what} is honoured: say in GROUPS which face does, and which test shows it"),
        (Some(_), true) => panic!("{what} is in GROUPS, and reported as not supported"),
    };
    let [client, layer, connector] = faces;
    let (library, grpc) = (library(kind, field, row), grpc(kind, field, row));
    format!("| `{field}` | {library} | {client} | {layer} | {connector} | {grpc} |\n")
}

fn page() -> String {
    let (mut page, mut tests) = (HEAD.to_owned(), Tests::default());
    let mut lines = BTreeSet::new();
    for (kind, title, about) in KINDS {
        _ = write!(
            page,
            "\n## {title}\n\n{about}\n\n| field | this library | client | layer | connector | gRPC's own clients |\n\
             | --- | --- | --- | --- | --- | --- |\n"
        );
        let above = ABOVE.iter().filter(|(of, _)| *of == kind).map(|(_, field)| (*field).to_owned());
        let mut fields = fields(kind);
        fields.extend(above);
        fields.sort();
        for field in fields {
            page += &line(kind, &field, &mut tests);
            lines.insert((kind, field));
        }
    }
    for group in GROUPS {
        for field in group.fields {
            assert!(lines.contains(&(group.kind, (*field).to_owned())), "{} has no field {field}", group.kind.name());
        }
    }
    page + &tests.list()
}

/// Holds a page to what the tables say, or writes it where that is asked for.
#[expect(clippy::disallowed_methods, reason = "a test, which writes the page where it is told to")]
pub(crate) fn assert_page(path: &str, page: &str, test: &str) {
    let file = root().join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, page).unwrap();
    }
    let is = std::fs::read_to_string(&file).unwrap_or_default();
    let differing = page.lines().zip(is.lines()).find(|(wanted, is)| wanted != is);
    assert!(
        page == is,
        "{path} is not what the tables say: UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite {test} writes it. \
         First difference: {differing:#?}"
    );
}

#[test]
fn the_example_of_settings_of_the_mesh_is_right() {
    let example = OF_ALL.split("```").find_map(|part| part.strip_prefix("yaml\n")).unwrap();
    let found = mesh_control::analysis::validate([("mesh.yaml", example)]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_page_on_resilience_has_every_field_and_says_what_each_face_does_and_which_test_shows_it() {
    assert_page("docs/resilience.md", &page(), "resilience");
}

/// What says the same of a field wherever a traffic policy stands may be told once.
#[test]
fn a_traffic_policy_means_the_same_wherever_it_stands() {
    let kind = DestinationRule;
    let text = std::fs::read_to_string(testdata("fields").join("DestinationRule.txt")).unwrap();
    for field in text.lines().filter(|line| !line.starts_with('#')) {
        let told = |field: &str| row(kind, field).map(|row| (row.path, format!("{:?} {:?}", row.library, row.grpc)));
        assert_eq!(told(field), told(&once(field)), "{field}");
    }
}

/// What a row above some fields reports of them together has a line of its own.
#[test]
fn what_is_reported_of_several_fields_together_is_told() {
    for (kind, ..) in KINDS {
        for field in fields(kind) {
            let mut above = field.as_str();
            while let Some((parent, _)) = above.rsplit_once('.') {
                above = parent;
                let own = row(kind, above).filter(|row| is_own_row(row, above));
                let is_partly = own.is_some_and(|row| matches!(row.library, Support::Partly(_)));
                assert!(!is_partly || ABOVE.contains(&(kind, above)), "{} {above} belongs into ABOVE", kind.name());
            }
        }
    }
}
