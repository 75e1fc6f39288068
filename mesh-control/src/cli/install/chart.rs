//! `helm/`: the chart, which is what `install` prints with expressions in the place of values. What an option adds stands there under
//! the condition that it is set, which is found by printing without it: so the two cannot differ.
//! `UPDATE_DOCS=1 cargo test -p mesh-control --lib chart` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::tests::defaults;
use super::{Args, STANDARD, Webhook, manifests};
use crate::config::Source;
use crate::config::node::{self, Node};
use crate::config::schemas::custom_resource;
use crate::config::support::ObjectKind;
use crate::policy::mesh::ROOT_NAMESPACE;
use base64::Engine as _;

/// What stands for a value while it is printed.
const NAMESPACE: &str = "chart-namespace";
const REVISION: &str = "chart-revision";
const WATCHED: &str = "chart-watched";
const CA: &str = "chart-ca";
const CONTROLLER: &str = "chart/controller";
const REPLICAS: u16 = 60_999;

/// What may be set, and the condition that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    Webhook,
    WebhookClients,
    Redis,
    StatusNamespaces,
    Namespaces,
    GatewayController,
}

const OPTIONS: [(Set, &str); 6] = [
    (Set::Webhook, "$.Values.webhook.ca"),
    (Set::WebhookClients, "$.Values.webhook.clientCa"),
    (Set::Redis, "$.Values.redisSecret"),
    (Set::StatusNamespaces, "$.Values.statusNamespaces"),
    (Set::Namespaces, "$.Values.kubernetesNamespaces"),
    (Set::GatewayController, "$.Values.gatewayController"),
];

/// What is printed with everything set but this.
fn printed(without: &[Set], watched: &str) -> Vec<(Key, String)> {
    let has = |option| !without.contains(&option);
    let listed = |option, name: &str| if has(option) { vec![name.to_owned()] } else { Vec::new() };
    let args = Args {
        image: "chart-image".to_owned(),
        namespace: NAMESPACE.to_owned(),
        revision: Some(REVISION.to_owned()),
        replicas: REPLICAS,
        cpu: "chart-cpu".to_owned(),
        memory: "chart-memory".to_owned(),
        memory_limit: "chart-limit".to_owned(),
        redis_secret: has(Set::Redis).then(|| "chart-redis".to_owned()),
        status_namespaces: listed(Set::StatusNamespaces, "chart-status"),
        kubernetes_namespaces: listed(Set::Namespaces, watched),
        gateway_controller: has(Set::GatewayController).then(|| CONTROLLER.parse().expect("a name")),
        ..defaults()
    };
    let clients = has(Set::WebhookClients).then(|| "chart-clients\n".to_owned());
    let webhook = has(Set::Webhook).then(|| Webhook { ca: CA.to_owned(), clients });
    let text = manifests(&args, webhook.as_ref());
    text.split("---\n").map(|text| (Key::of(text), text.to_owned())).collect()
}

/// Which object it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: String,
    namespace: String,
    name: String,
}

impl Key {
    fn of(text: &str) -> Key {
        let object = node::parse(&Source { name: "t.yaml".into(), text: text.into() }).expect("YAML");
        let field = |of: &Node, name: &str| of.get(name).and_then(Node::as_str).unwrap_or_default().to_owned();
        let metadata = object[0].get("metadata").expect("metadata");
        Key { kind: field(&object[0], "kind"), namespace: field(metadata, "namespace"), name: field(metadata, "name") }
    }

    /// Of the cluster as a whole, or made by Helm.
    fn is_elsewhere(&self) -> bool {
        ["CustomResourceDefinition", "Namespace"].contains(&self.kind.as_str())
    }

    /// What may be done where goes by the namespaces that are watched.
    fn is_permission(&self) -> bool {
        self.kind.contains("Role")
    }
}

fn template() -> String {
    let mut out =
        String::from("# Made of what `mesh-control install` prints: mesh-control/src/cli/install/chart.rs.\n");
    let without: BTreeMap<Set, BTreeMap<Key, String>> =
        OPTIONS.iter().map(|(option, _)| (*option, printed(&[*option], WATCHED).into_iter().collect())).collect();
    permissions(&mut out);
    for (key, text) in printed(&[], WATCHED).into_iter().filter(|(key, _)| !key.is_elsewhere() && !key.is_permission())
    {
        let text = format!("---\n{text}");
        let mut needs = vec![Vec::new(); text.lines().count()];
        for (option, condition) in OPTIONS {
            let other = without[&option].get(&key).map(|text| format!("---\n{text}")).unwrap_or_default();
            let mut others = other.lines().peekable();
            for (line, needs) in text.lines().zip(&mut needs) {
                if others.next_if_eq(&line).is_none() {
                    needs.push(condition);
                }
            }
            assert_eq!(others.next(), None, "{option:?} does more to {key:?} than to add lines");
        }
        let mut open: &[&str] = &[];
        for (line, needs) in text.lines().zip(&needs) {
            if open != needs.as_slice() {
                close(&mut out, open);
                match needs[..] {
                    [] => {}
                    [one] => _ = writeln!(out, "{{{{- if {one} }}}}"),
                    _ => _ = writeln!(out, "{{{{- if and {} }}}}", needs.join(" ")),
                }
                open = needs;
            }
            _ = writeln!(out, "{line}");
        }
        close(&mut out, open);
    }
    filled(&out)
}

fn close(out: &mut String, open: &[&str]) {
    if !open.is_empty() {
        out.push_str("{{- end }}\n");
    }
}

/// In all namespaces, or in each that is watched and, for what is for the whole mesh, in the root namespace, which may be one of them.
fn permissions(out: &mut String) {
    let of = |without: &[Set], watched| -> Vec<(Key, String)> {
        printed(without, watched).into_iter().filter(|(key, _)| key.is_permission()).collect()
    };
    let root: BTreeMap<Key, String> = of(&[], ROOT_NAMESPACE).into_iter().collect();
    out.push_str("{{- if $.Values.kubernetesNamespaces }}\n");
    for (key, text) in of(&[], WATCHED) {
        if key.namespace == WATCHED {
            _ = write!(
                out,
                "{{{{- range $.Values.kubernetesNamespaces }}}}\n{{{{- if ne . \"{ROOT_NAMESPACE}\" }}}}\n---\n{}{{{{- end }}}}\n{{{{- end }}}}\n",
                text.replace(WATCHED, "{{ . }}")
            );
            continue;
        }
        match root.get(&key).filter(|other| **other != text) {
            Some(other) => {
                _ = write!(
                    out,
                    "{{{{- if has \"{ROOT_NAMESPACE}\" $.Values.kubernetesNamespaces }}}}\n---\n{other}{{{{- else }}}}\n---\n{text}{{{{- end }}}}\n"
                );
            }
            None => _ = write!(out, "---\n{text}"),
        }
    }
    out.push_str("{{- else }}\n");
    for (_, text) in of(&[Set::Namespaces], WATCHED) {
        _ = write!(out, "---\n{text}");
    }
    out.push_str("{{- end }}\n");
}

/// With expressions in the place of what stands for them.
fn filled(text: &str) -> String {
    let sorted = format!("{WATCHED}, {ROOT_NAMESPACE}");
    let all = format!("append $.Values.kubernetesNamespaces \"{ROOT_NAMESPACE}\" | uniq | sortAlpha | join \", \"");
    let ca = STANDARD.encode(CA);
    let values = [
        (format!("mesh-control-{REVISION}"), "include \"mesh-control.name\" $".to_owned()),
        (NAMESPACE.to_owned(), "$.Release.Namespace".to_owned()),
        ("chart-image".to_owned(), "$.Values.image".to_owned()),
        (REPLICAS.to_string(), "$.Values.replicas".to_owned()),
        ("chart-cpu".to_owned(), "$.Values.resources.requests.cpu".to_owned()),
        ("chart-memory".to_owned(), "$.Values.resources.requests.memory".to_owned()),
        ("chart-limit".to_owned(), "$.Values.resources.limits.memory".to_owned()),
        ("chart-redis".to_owned(), "$.Values.redisSecret".to_owned()),
        (CONTROLLER.to_owned(), "$.Values.gatewayController".to_owned()),
        ("chart-status".to_owned(), "join \", \" $.Values.statusNamespaces".to_owned()),
        (ca, "$.Values.webhook.ca | b64enc".to_owned()),
        (
            "    chart-clients".to_owned(),
            "$.Values.webhook.clientCa | replace \"\\r\" \"\" | trim | indent 4".to_owned(),
        ),
        (sorted, all),
        (WATCHED.to_owned(), "join \",\" $.Values.kubernetesNamespaces".to_owned()),
    ];
    values.into_iter().fold(text.to_owned(), |text, (stands, expression)| {
        assert!(text.contains(&stands), "{stands} is nowhere");
        text.replace(&stands, &format!("{{{{ {expression} }}}}"))
    })
}

#[test]
fn the_chart_that_is_checked_in_is_what_install_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm");
    let definitions = ObjectKind::OWN
        .into_iter()
        .filter_map(|kind| Some((format!("crds/{}.policy.mesh-control.yaml", kind.plural()), custom_resource(kind)?)));
    #[expect(clippy::disallowed_methods, reason = "whether to write is asked of whoever runs it")]
    let is_written = std::env::var_os("UPDATE_DOCS").is_some();
    for (file, text) in definitions.chain([("templates/mesh-control.yaml".to_owned(), template())]) {
        let path = root.join(&file);
        if is_written {
            std::fs::write(&path, &text).expect("written");
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(checked_in == text, "{file} is old: UPDATE_DOCS=1 cargo test -p mesh-control --lib chart");
    }
}

#[test]
fn the_values_of_the_chart_are_the_defaults_of_install() {
    let read = |file: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("helm").join(file)).expect(file)
    };
    let values: serde_json::Value = serde_saphyr::from_str(&read("values.yaml")).expect("YAML");
    let Args { replicas, cpu, memory, memory_limit, .. } = defaults();
    assert_eq!(values["replicas"], replicas);
    let resources = serde_json::json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_limit}});
    assert_eq!(values["resources"], resources);
    for unset in ["image", "revision", "redisSecret", "gatewayController"] {
        assert_eq!(values[unset], "", "{unset}");
    }
    for unset in ["kubernetesNamespaces", "statusNamespaces"] {
        assert_eq!(values[unset], serde_json::json!([]), "{unset}");
    }
    // Every value is known to the schema, which lets no other be set.
    let schema: serde_json::Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let keys = |of: &serde_json::Value| of.as_object().map(|of| of.keys().cloned().collect::<BTreeSet<_>>());
    assert_eq!(keys(&values), keys(&schema["properties"]));
    assert_eq!(schema["additionalProperties"], false);
    let chart: serde_json::Value = serde_saphyr::from_str(&read("Chart.yaml")).expect("YAML");
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&env!("CARGO_PKG_VERSION").into(), &env!("CARGO_PKG_VERSION").into())
    );
}
