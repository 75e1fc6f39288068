//! `mesh-control install`: the objects that run mesh-control in a Kubernetes cluster, with the permissions that it needs and no
//! other.

#[cfg(test)]
mod chart;
mod guards;
#[cfg(test)]
mod image;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::serve::namespace;
use super::{Format, Printing};
use crate::config::schemas::custom_resource;
use crate::config::support::ObjectKind;
use crate::kubernetes::ControllerName;
use crate::kubernetes::kinds::{CLASS, RESOURCES, Resource, SETTINGS, Use};
use crate::policy::mesh::ROOT_NAMESPACE;

const NAME: &str = "mesh-control";

/// Prints the objects that run mesh-control in a Kubernetes cluster, as YAML for `kubectl apply -f -`. Two Secrets are for you to
/// make in the namespace first: `mesh-control-tls` (tls.crt, tls.key: the certificate of mesh-control.NAMESPACE.svc) and
/// `cacerts` (Istio's: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem).
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The image with mesh-control in it, by a tag or a digest.
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    image: String,
    /// The namespace that it runs in.
    #[arg(long, value_name = "NAMESPACE", default_value = "mesh-system", value_parser = namespace)]
    namespace: String,
    /// A name for this revision, which everything is named after then: it runs beside others, and workloads say by their label
    /// istio.io/rev which one they are told by (docs/kubernetes.md).
    #[arg(long, value_name = "REVISION", value_parser = revision)]
    revision: Option<String>,
    /// How many of it.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    replicas: u16,
    /// The processor time that each is promised.
    #[arg(long, value_name = "QUANTITY", default_value = "100m", value_parser = quantity)]
    cpu: String,
    /// The memory that each is promised.
    #[arg(long, value_name = "QUANTITY", default_value = "128Mi", value_parser = quantity)]
    memory: String,
    /// The memory that none gets more of.
    #[arg(long, value_name = "QUANTITY", default_value = "1Gi", value_parser = quantity)]
    memory_limit: String,
    /// A Secret of yours in the namespace whose `url` is that of the Redis which replicas count in (`serve --redis-url`).
    #[arg(long, value_name = "SECRET", value_parser = namespace)]
    redis_secret: Option<String>,
    /// A namespace from which status and metrics (15014) may be asked for, beside its own: where Prometheus is. May be given several
    /// times, or as a list with commas.
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', value_parser = namespace)]
    status_namespaces: Vec<String>,
    /// A namespace whose objects and services are served, in place of all. Of others there are no permissions then but for the
    /// objects of istio-system, which are for the whole mesh, and for nodes. May be given several times, or as a list with commas.
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', value_parser = namespace)]
    kubernetes_namespaces: Vec<String>,
    /// As which controller of Gateway API it says what became of objects (`serve --gateway-controller`).
    #[arg(long, value_name = "DOMAIN/PATH")]
    gateway_controller: Option<ControllerName>,
    /// Has the API server ask whether objects may be stored: who vouches for the certificate in mesh-control-tls, as PEM.
    #[arg(long, value_name = "FILE")]
    webhook_ca: Option<PathBuf>,
    /// Whose certificate the API server must have that asks, as PEM: how it gets one is in docs/kubernetes.md. Without it, whoever
    /// reaches the webhook may ask.
    #[arg(long, value_name = "FILE", requires = "webhook_ca")]
    webhook_client_ca: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let ca = args.webhook_ca.as_deref().map(certificate).transpose()?;
    let clients = args.webhook_client_ca.as_deref().map(certificate).transpose()?;
    let text = manifests(args, ca.map(|ca| Webhook { ca, clients }).as_ref());
    match args.printing.format() {
        Format::Text => super::say(&text)?,
        Format::Json => {
            let items: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).context("what is printed")?;
            super::say(&format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": items})))?;
        }
    }
    Ok(())
}

impl Args {
    /// What everything is called that is of one revision.
    fn name(&self) -> String {
        self.revision.as_ref().map_or_else(|| NAME.to_owned(), |revision| format!("{NAME}-{revision}"))
    }
}

/// What there is to know of the webhook, in PEM.
struct Webhook {
    /// Who vouches for it.
    ca: String,
    /// Who vouches for those who may ask it.
    clients: Option<String>,
}

/// A certificate, or several, as PEM.
fn certificate(path: &Path) -> anyhow::Result<String> {
    let pem = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(pem.starts_with("-----BEGIN CERTIFICATE"), "{} is no certificate in PEM", path.display());
    ensure!(!pem.contains("PRIVATE KEY"), "{} has a private key in it, which is nobody else's", path.display());
    Ok(pem)
}

fn manifests(args: &Args, webhook: Option<&Webhook>) -> String {
    let clients = webhook.and_then(|webhook| webhook.clients.as_deref());
    let mut all: Vec<String> = ObjectKind::OWN.into_iter().filter_map(custom_resource).collect();
    all.extend([namespace_and_account(args), permissions(args), lease(args), service(args, webhook.is_some())]);
    all.extend(clients.map(|pem| webhook_clients(args, pem)));
    all.push(deployment(args, webhook.is_some(), clients.is_some()));
    all.extend([guards::disruption(args), guards::network(args, webhook.is_some())]);
    all.extend(webhook.map(|webhook| validation(args, &STANDARD.encode(&webhook.ca))));
    all.join("---\n")
}

/// Where the Deployment finds who vouches for those who may ask the webhook.
fn webhook_clients(args: &Args, pem: &str) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    let pem: String = pem.lines().map(|line| format!("    {}\n", line.trim_end())).collect();
    format!(
        "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}-webhook-clients
  namespace: {namespace}
data:
  ca.crt: |
{pem}"
    )
}

fn namespace_and_account(args: &Args) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    format!(
        "\
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels:
    pod-security.kubernetes.io/enforce: restricted
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: {namespace}
"
    )
}

/// What is watched may be listed and watched, where it is watched, and of what has a status that may be changed; classes of Gateways may
/// be listed. Two things may be made: the question whose a token is, and WorkloadEntries, for members of WorkloadGroups.
fn permissions(args: &Args) -> String {
    let mut places: BTreeMap<Option<&str>, Vec<&Resource>> = BTreeMap::from([(None, Vec::new())]);
    for resource in &RESOURCES {
        for namespace in resource.namespaces(&args.kubernetes_namespaces) {
            places.entry(namespace).or_default().push(resource);
        }
    }
    let roles = places.into_iter().map(|(namespace, watched)| {
        let (kind, place) = match namespace {
            None => ("ClusterRole", String::new()),
            Some(namespace) => ("Role", format!("  namespace: {namespace}\n")),
        };
        let name = args.name();
        format!("{}---\n{}", role(kind, &name, &place, &watched), binding(kind, &name, &place, args))
    });
    roles.collect::<Vec<_>>().join("---\n")
}

fn role(kind: &str, name: &str, place: &str, watched: &[&Resource]) -> String {
    let mut text =
        format!("apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n{place}rules:\n");
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in watched.iter().filter(|resource| resource.use_ != Use::Settings) {
        groups.entry(resource.group).or_default().push(resource.plural);
    }
    for (group, plurals) in groups {
        let plurals = plurals.join(", ");
        let _ = write!(text, "- apiGroups: [{group:?}]\n  resources: [{plurals}]\n  verbs: [list, watch]\n");
    }
    let mut statuses: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in watched.iter().filter(|resource| resource.has_status()) {
        statuses.entry(resource.group).or_default().push(format!("{}/status", resource.plural));
    }
    for (group, plurals) in statuses {
        let plurals = plurals.join(", ");
        let _ = write!(text, "- apiGroups: [{group:?}]\n  resources: [{plurals}]\n  verbs: [patch]\n");
    }
    let is_watched = |kind: ObjectKind| watched.iter().any(|resource| resource.title == kind.title());
    for (kind, verbs) in [(ObjectKind::WorkloadEntry, "create, delete, update"), (ObjectKind::WorkloadGroup, "get")] {
        if is_watched(kind) {
            let (group, plural) = (kind.group(), kind.plural());
            let _ = write!(text, "- apiGroups: [{group:?}]\n  resources: [{plural}]\n  verbs: [{verbs}]\n");
        }
    }
    for settings in watched.iter().filter(|resource| resource.use_ == Use::Settings) {
        let _ = write!(
            text,
            "- apiGroups: [\"\"]\n  resources: [{}]\n  resourceNames: [{SETTINGS}]\n  verbs: [list, watch]\n",
            settings.plural
        );
    }
    if kind == "ClusterRole" {
        text += "- apiGroups: [authentication.k8s.io]\n  resources: [tokenreviews]\n  verbs: [create]\n";
        let (group, plural) = (CLASS.group, CLASS.plural);
        for (resource, verb) in [(plural.to_owned(), "list"), (format!("{plural}/status"), "patch")] {
            let _ = write!(text, "- apiGroups: [{group:?}]\n  resources: [{resource}]\n  verbs: [{verb}]\n");
        }
    }
    text
}

fn binding(kind: &str, name: &str, place: &str, args: &Args) -> String {
    let (account, namespace) = (args.name(), &args.namespace);
    format!(
        "\
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}Binding
metadata:
  name: {name}
{place}roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {kind}
  name: {name}
subjects:
- kind: ServiceAccount
  name: {account}
  namespace: {namespace}
"
    )
}

/// By which the one of the replicas is elected that writes. It is there from the start, so that nobody needs to make any.
fn lease(args: &Args) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    let place = format!("  namespace: {namespace}\n");
    format!(
        "\
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata:
  name: {name}
  namespace: {namespace}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {name}-lease
  namespace: {namespace}
rules:
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{name}]
  verbs: [get, update]
---
{}",
        binding("Role", &format!("{name}-lease"), &place, args),
    )
}

fn service(args: &Args, has_webhook: bool) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    let webhook = if has_webhook { "  - {name: https-webhook, port: 443, targetPort: 15017}\n" } else { "" };
    format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  selector: {{app: {name}}}
  ports:
  - {{name: grpc-xds, port: 15012, targetPort: 15012}}
  - {{name: http-status, port: 15014, targetPort: 15014}}
{webhook}"
    )
}

fn deployment(args: &Args, has_webhook: bool, has_clients: bool) -> String {
    let Args { namespace, image, replicas, kubernetes_namespaces: only, cpu, memory, memory_limit, .. } = args;
    let name = args.name();
    let mut options = String::new();
    if !only.is_empty() {
        let _ = writeln!(options, "        - --kubernetes-namespaces={}", only.join(","));
    }
    if let Some(controller) = &args.gateway_controller {
        let _ = writeln!(options, "        - --gateway-controller={}", controller.as_str());
    }
    if has_webhook {
        options += "        - --admission-addr=0.0.0.0:15017\n";
    }
    let (mut mounts, mut volumes) = (String::new(), String::new());
    if has_clients {
        options += "        - --admission-client-ca=/etc/mesh-control/webhook-clients/ca.crt\n";
        mounts += "        - {name: webhook-clients, mountPath: /etc/mesh-control/webhook-clients, readOnly: true}\n";
        let _ = writeln!(volumes, "      - {{name: webhook-clients, configMap: {{name: {name}-webhook-clients}}}}");
    }
    let redis = args.redis_secret.as_ref().map(|secret| {
        format!(
            "        env:\n        - {{name: MESH_CONTROL_REDIS_URL, valueFrom: {{secretKeyRef: {{name: {secret}, key: url}}}}}}\n"
        )
    });
    let port = if has_webhook { "        - {name: webhook, containerPort: 15017}\n" } else { "" };
    let files = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"].map(|file| {
        // Each by itself: a key that is a link to somewhere is not read.
        format!(
            "        - {{name: cacerts, mountPath: /etc/mesh-control/ca/{file}, subPath: {file}, readOnly: true}}\n"
        )
    });
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  namespace: {namespace}
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      serviceAccountName: {name}
      # Variables of the Service would look like options.
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        seccompProfile: {{type: RuntimeDefault}}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels: {{app: {name}}}
      containers:
      - name: mesh-control
        image: {image}
        args:
        - serve
        - --kubernetes
        - --kubernetes-lease={namespace}/{name}
        - --kubernetes-workload-entries
{options}        - --kubernetes-tokens=https://kubernetes.default.svc
        - --ca-dir=/etc/mesh-control/ca
        - --tls-cert=/etc/mesh-control/tls/tls.crt
        - --tls-key=/etc/mesh-control/tls/tls.key
        - --xds-addr=none
        - --secure-addr=0.0.0.0:15012
        - --status-addr=0.0.0.0:15014
{redis}        ports:
        - {{name: xds, containerPort: 15012}}
        - {{name: status, containerPort: 15014}}
{port}        readinessProbe:
          httpGet: {{path: /ready, port: status}}
        livenessProbe:
          httpGet: {{path: /healthz, port: status}}
        resources:
          requests: {{cpu: {cpu}, memory: {memory}}}
          limits: {{memory: {memory_limit}}}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {{drop: [ALL]}}
        volumeMounts:
        - {{name: tls, mountPath: /etc/mesh-control/tls, readOnly: true}}
{files}{mounts}      volumes:
      # 288 is 0440: for the group of this Pod alone.
      - name: tls
        secret: {{secretName: {name}-tls, defaultMode: 288}}
      - name: cacerts
        secret: {{secretName: cacerts, defaultMode: 288}}
{volumes}",
        files = files.concat(),
        redis = redis.unwrap_or_default(),
    )
}

/// Has the API server ask.
fn validation(args: &Args, ca: &str) -> String {
    let Args { namespace, kubernetes_namespaces: only, .. } = args;
    let name = args.name();
    let mut rules: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for resource in RESOURCES.iter().filter(|resource| resource.use_ == Use::Object) {
        let (versions, plurals) = rules.entry(resource.group).or_default();
        versions.extend(
            resource.versions.iter().filter(|version| !versions.contains(version)).copied().collect::<Vec<_>>(),
        );
        plurals.push(resource.plural);
    }
    let mut text = format!(
        "\
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: {name}-{namespace}
webhooks:
- name: validation.{name}.{namespace}.svc
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
  # What is wrong and gets in leaves the last good state of its object in force.
  failurePolicy: Ignore
  clientConfig:
    service: {{name: {name}, namespace: {namespace}, path: /validate, port: 443}}
    caBundle: {ca}
"
    );
    if !only.is_empty() {
        let namespaces: BTreeSet<&str> = only.iter().map(String::as_str).chain([ROOT_NAMESPACE]).collect();
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        let _ = write!(
            text,
            "  namespaceSelector:\n    matchExpressions:\n    - {{key: kubernetes.io/metadata.name, operator: In, values: [{}]}}\n",
            namespaces.join(", ")
        );
    }
    text += "  rules:\n";
    for (group, (versions, plurals)) in rules {
        let _ = write!(
            text,
            "  - apiGroups: [{group}]\n    apiVersions: [{}]\n    resources: [{}]\n    operations: [CREATE, UPDATE]\n",
            versions.join(", "),
            plurals.join(", ")
        );
    }
    text
}

/// A part of names of Kubernetes, short enough to stand at the end of one.
fn revision(text: &str) -> Result<String, String> {
    let revision = namespace(text)?;
    if revision.len() <= 40 { Ok(revision) } else { Err("a revision has 40 characters at most".to_owned()) }
}

/// An amount in Kubernetes' words: a number, and what of.
fn quantity(text: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let is_number = number.parse::<f64>().is_ok_and(|number| number > 0.0)
        && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match is_number && ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&unit) {
        true => Ok(text.to_owned()),
        false => Err("expected an amount in Kubernetes' words, such as 500m or 1Gi".to_owned()),
    }
}

fn image(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./-_:@".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("expected the name of an image".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use crate::config::node::{self, Node};

    const CLIENTS: &str = "-----BEGIN CERTIFICATE-----\r\nQ0E=\r\n-----END CERTIFICATE-----\n";

    /// What is printed where no option says anything.
    pub(super) fn defaults() -> Args {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        <Line as clap::Parser>::parse_from(["install", "--image", "registry.example/mesh-control:1"]).args
    }

    fn printed(namespaces: &[&str], webhook: bool) -> Vec<Node> {
        let args =
            Args { kubernetes_namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(), ..defaults() };
        let webhook = webhook.then(|| Webhook { ca: "CA".to_owned(), clients: Some(CLIENTS.to_owned()) });
        let text = manifests(&args, webhook.as_ref());
        node::parse(&Source { name: "t.yaml".into(), text: text.into() }).expect("YAML")
    }

    fn kinds(objects: &[Node]) -> Vec<&str> {
        objects.iter().map(|object| object.get("kind").and_then(Node::as_str).expect("a kind")).collect()
    }

    /// What the roles of a kind allow: where, what, and how.
    fn rules<'n>(objects: &'n [Node], kind: &str) -> Vec<(&'n str, Vec<&'n str>, Vec<&'n str>)> {
        let texts = |rule: &'n Node, key: &str| {
            rule.get(key).map(Node::items).unwrap_or_default().iter().filter_map(Node::as_str).collect()
        };
        let roles = objects.iter().filter(|one| one.get("kind").and_then(Node::as_str) == Some(kind));
        let rules = roles.flat_map(|role| {
            let metadata = role.get("metadata").expect("metadata");
            let place = metadata.get("namespace").and_then(Node::as_str).unwrap_or_default();
            role.get("rules").expect("rules").items().iter().map(move |rule| (place, rule))
        });
        rules.map(|(place, rule)| (place, texts(rule, "resources"), texts(rule, "verbs"))).collect()
    }

    #[test]
    fn what_is_watched_may_be_watched_and_nothing_else_may_be_done() {
        let all = printed(&[], false);
        let roles = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
        let lease = ["Lease", "Role", "RoleBinding"];
        let expected = [
            &["Namespace", "ServiceAccount"],
            &roles[..],
            &lease,
            &["Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"],
        ]
        .concat();
        let (definitions, rest) = all.split_at(ObjectKind::OWN.len());
        assert!(kinds(definitions).iter().all(|kind| *kind == "CustomResourceDefinition"), "{definitions:?}");
        assert_eq!(kinds(rest), expected);
        let (wide, local) = (rules(&all, "ClusterRole"), rules(&all, "Role"));
        let settings = ("istio-system", vec!["configmaps"], vec!["list", "watch"]);
        assert_eq!(local, [settings.clone(), ("mesh-system", vec!["leases"], vec!["get", "update"])]);
        let local = [settings];
        let mut allowed: Vec<&str> =
            wide.iter().chain(&local).flat_map(|(_, resources, _)| resources.clone()).collect();
        let with_status = RESOURCES.iter().filter(|resource| resource.has_status());
        let statuses: Vec<String> = with_status.map(|resource| format!("{}/status", resource.plural)).collect();
        let mut expected: Vec<&str> = RESOURCES.iter().map(|resource| resource.plural).collect();
        expected.extend(statuses.iter().map(String::as_str));
        expected.extend(["tokenreviews", "gatewayclasses", "gatewayclasses/status"]);
        expected.extend(["workloadentries", "workloadgroups"]);
        allowed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(allowed, expected);
        assert!(!allowed.contains(&"referencegrants/status") && allowed.contains(&"httproutes/status"));
        for (_, resources, verbs) in &wide {
            let expected: &[&str] = match resources[0] {
                "tokenreviews" => &["create"],
                "gatewayclasses" => &["list"],
                "workloadentries" => &["create", "delete", "update"],
                "workloadgroups" => &["get"],
                // And of those nothing else.
                one if one.ends_with("/status") => &["patch"],
                _ => &["list", "watch"],
            };
            assert_eq!(verbs, expected, "{resources:?}");
            assert!(verbs != &["patch"] || resources.iter().all(|one| one.ends_with("/status")), "{resources:?}");
        }
    }

    #[test]
    fn of_some_namespaces_nothing_is_to_be_seen_of_others_but_what_is_for_the_whole_mesh() {
        let all = printed(&["shop", "pay"], true);
        let count = |kind: &str| kinds(&all).iter().filter(|one| **one == kind).count();
        assert_eq!([count("Role"), count("RoleBinding"), count("ValidatingWebhookConfiguration")], [4, 4, 1]);
        let wide = rules(&all, "ClusterRole");
        let wide: Vec<&str> = wide.iter().flat_map(|(_, resources, _)| resources.clone()).collect();
        assert_eq!(wide, ["nodes", "tokenreviews", "gatewayclasses", "gatewayclasses/status"]);
        let roles = rules(&all, "Role");
        let is_allowed = |place: &str, plural: &str| {
            roles.iter().any(|(of, resources, _)| *of == place && resources.contains(&plural))
        };
        for (place, plural, expected) in [
            ("shop", "virtualservices", true),
            ("shop", "virtualservices/status", true),
            ("istio-system", "virtualservices/status", true),
            ("mesh-system", "leases", true),
            ("shop", "leases", false),
            ("shop", "services", true),
            ("shop", "workloadentries", true),
            ("shop", "configmaps", false),
            ("istio-system", "peerauthentications", true),
            ("istio-system", "configmaps", true),
            ("istio-system", "services", false),
            ("istio-system", "pods", false),
        ] {
            assert_eq!(is_allowed(place, plural), expected, "{plural} of {place}");
        }
        // The root namespace may be one of those that are named.
        let named = printed(&["istio-system"], false);
        let plurals = rules(&named, "Role").into_iter().flat_map(|(_, resources, _)| resources);
        assert_eq!(plurals.filter(|plural| *plural == "peerauthentications").count(), 1);
    }

    #[test]
    fn revisions_have_nothing_in_common_but_what_is_for_all_of_them() {
        let names = |revision: Option<&str>| -> BTreeSet<String> {
            let args = Args { revision: revision.map(str::to_owned), ..defaults() };
            let webhook = Webhook { ca: "CA".to_owned(), clients: Some(CLIENTS.to_owned()) };
            let text = manifests(&args, Some(&webhook));
            let all = node::parse(&Source { name: "t.yaml".into(), text: text.into() }).expect("YAML");
            let of = |one: &Node, field: &str| Some(one.get("metadata")?.get(field)?.as_str()?.to_owned());
            let name = |one: &Node| {
                format!("{} {:?} {:?}", kinds(std::slice::from_ref(one))[0], of(one, "namespace"), of(one, "name"))
            };
            all.iter().map(name).collect()
        };
        let (blue, green, plain) = (names(Some("blue")), names(Some("green")), names(None));
        let is_shared = |name: &&String| {
            blue.contains(*name) && green.contains(*name) || plain.contains(*name) && blue.contains(*name)
        };
        let shared: Vec<&String> = blue.iter().chain(&plain).filter(is_shared).collect();
        assert!(
            shared.iter().all(|name| name.starts_with("CustomResourceDefinition") || name.starts_with("Namespace")),
            "{shared:?}"
        );
        assert_eq!((blue.len(), green.len()), (plain.len(), plain.len()));
    }

    #[test]
    fn who_may_ask_the_webhook_is_where_mesh_control_looks() {
        let all = printed(&[], true);
        let is_of = |kind: &'static str| move |one: &&Node| one.get("kind").and_then(Node::as_str) == Some(kind);
        let map = all.iter().find(is_of("ConfigMap")).expect("a ConfigMap");
        let pem = map.get("data").and_then(|data| data.get("ca.crt")?.as_str());
        assert_eq!(pem, Some(&*CLIENTS.replace('\r', "")));
        let pod = all.iter().find(is_of("Deployment")).and_then(|all| all.get("spec")?.get("template")?.get("spec"));
        let pod = pod.expect("a Pod");
        let container = pod.get("containers").and_then(|all| all.items().first()).expect("a container");
        let has = |list: Option<&Node>, key: &str, value: &str| {
            let is_it = |one: &Node| one.get(key).and_then(Node::as_str) == Some(value);
            list.is_some_and(|list| list.items().iter().any(is_it))
        };
        let options: Vec<_> = container.get("args").expect("options").items().iter().filter_map(Node::as_str).collect();
        assert!(options.contains(&"--admission-client-ca=/etc/mesh-control/webhook-clients/ca.crt"), "{options:?}");
        assert!(has(container.get("volumeMounts"), "mountPath", "/etc/mesh-control/webhook-clients"));
        assert!(has(pod.get("volumes"), "name", "webhook-clients"));
        assert!(!kinds(&printed(&[], false)).contains(&"ConfigMap"));
    }

    #[test]
    fn the_api_server_asks_about_every_object_that_is_read() {
        let all = printed(&["shop"], true);
        let webhook = all.last().and_then(|all| all.get("webhooks")?.items().first()).expect("a webhook");
        let asked = webhook.get("rules").expect("rules").items().iter().filter_map(|rule| rule.get("resources"));
        let mut asked: Vec<&str> = asked.flat_map(Node::items).filter_map(Node::as_str).collect();
        let objects = RESOURCES.iter().filter(|resource| resource.use_ == Use::Object);
        let mut expected: Vec<&str> = objects.map(|resource| resource.plural).collect();
        asked.sort_unstable();
        expected.sort_unstable();
        assert_eq!(asked, expected);
        let selector = webhook.get("namespaceSelector").and_then(|selector| selector.get("matchExpressions"));
        let values = selector.and_then(|all| all.items().first()?.get("values")).expect("namespaces");
        let values: Vec<&str> = values.items().iter().filter_map(Node::as_str).collect();
        assert_eq!(values, ["istio-system", "shop"]);
    }
}
