//! What nobody can read at the first start: what may guard workloads guards them, and what may be a rule fails its hosts.

use std::fs;

use mesh_control::catalog::Kind;
use mesh_control::plane::{Plane, PlaneOptions};

use crate::support::{Seen, client, client_of};

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {ports: [{name: http, port: 80}], selector: {app: reviews}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: ratings, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n";

struct Started {
    plane: Plane,
    _dir: tempfile::TempDir,
}

/// A first start with the services and this file.
fn started(name: &str, bytes: &[u8], options: impl FnOnce(PlaneOptions) -> PlaneOptions) -> Started {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("services.yaml"), SERVICES).unwrap();
    fs::write(dir.path().join(name), bytes).unwrap();
    let plane = Plane::start(options(PlaneOptions::default().config_dir(dir.path()))).unwrap();
    Started { plane, _dir: dir }
}

impl Started {
    /// Why a workload of this namespace does not serve, if it does not.
    fn refusal(&self, namespace: &str, labels: &[(&str, &str)]) -> Option<String> {
        let client = client_of(mesh_control::catalog::ClientClass::Library, namespace, labels);
        let seen = Seen::new(&self.plane, client);
        let listener = seen.get(Kind::Listener, "xds.istio.io/grpc/lds/inbound/10.0.0.1:80").unwrap();
        let text = String::from_utf8_lossy(&listener.body).into_owned();
        text.contains("--allow-unenforced").then_some(text)
    }

    fn guarded(&self) -> Vec<&'static str> {
        ["shop", "default", "other"].into_iter().filter(|namespace| self.refusal(namespace, &[]).is_some()).collect()
    }

    fn routes(&self, target: &str) -> String {
        format!("{:?}", Seen::new(&self.plane, client("shop")).routes_of(target))
    }
}

const GUARD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: shop\nspec: {}\n";
const EVERYBODY: [&str; 3] = ["shop", "default", "other"];

#[tokio::test]
async fn what_may_guard_workloads_guards_its_namespace_or_else_everybody() {
    let replaced = |from: &str, to: &str| GUARD.replace(from, to);
    let no_metadata = replaced("metadata:\n  name: nobody\n  namespace: shop\n", "");
    let peer =
        replaced("AuthorizationPolicy", "PeerAuthentication").replace("spec: {}", "spec: {mtls: {mode: STRICT}}");
    let utf16: Vec<u8> = GUARD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let one = |text: &str| text.as_bytes().to_vec();
    let shop: &[&str] = &["shop"];
    for (bytes, expected) in [
        // The kind is mistyped.
        (one(&replaced("AuthorizationPolicy", "AuthorisationPolicy")), shop),
        (one(&replaced("AuthorizationPolicy", "authorizationpolicies")), shop),
        (one(&replaced("AuthorizationPolicy", "Policy")), shop),
        (one(&peer.replace("PeerAuthentication", "PeerAuthentification")), shop),
        (one(&replaced("AuthorizationPolicy", "[AuthorizationPolicy]")), shop),
        (one(&replaced("kind:", "knd:")), shop),
        (one(&replaced("kind: AuthorizationPolicy\n", "")), shop),
        // The version or the group is.
        (one(&replaced("security.istio.io/v1", "security.istio.io/v7")), shop),
        (one(&replaced("security.istio.io/v1", "security.istio/v1")), shop),
        (one(&replaced("security.istio.io/v1", "networking.istio.io/v1")), shop),
        (one(&replaced("security.istio.io/v1", "v1")), shop),
        (one(&replaced("security.istio.io/v1", "whatever/v1")), shop),
        (one(&replaced("apiVersion: security.istio.io/v1\n", "")), shop),
        (
            one(&replaced("security.istio.io/v1", "rbac.istio.io/v1alpha1")
                .replace("AuthorizationPolicy", "RbacConfig")),
            shop,
        ),
        // Who it is cannot be read.
        (one(&no_metadata), &EVERYBODY),
        (one(&replaced("  namespace: shop", "  namespace: [shop]")), &EVERYBODY),
        (one(&replaced("  namespace: shop", "namespace: shop")), shop),
        (one(&replaced("namespace: shop", "namspace: shop")), shop),
        (one(&replaced("metadata:", "metdata:")), shop),
        // The text is no YAML.
        (one(&replaced("spec: {}", "spec: {")), shop),
        (one(&replaced("spec: {}", "\tspec: {}")), shop),
        (one(&replaced("kind: ", "kind ")), shop),
        (one(&replaced("  namespace: shop\n", "").replace("spec: {}", "spec: {")), &EVERYBODY),
        (one(&replaced("namespace: shop", "namespace: istio-system").replace("spec: {}", "spec: {")), &EVERYBODY),
        (one(&format!("{GUARD}---\na: [\n")), shop),
        (one(&format!("{GUARD}--\n{}spec: {{\n", replaced("  namespace: shop\n", ""))), &EVERYBODY),
        (
            one(
                "{\"apiVersion\": \"security.istio.io/v1\", \"kind\": \"AuthorizationPolicy\", \"metadata\": {\"name\": \"a\", \"namespace\": \"shop\"}, \"spec\": {",
            ),
            shop,
        ),
        (utf16, shop),
        ([GUARD.as_bytes(), b"# \xff\n"].concat(), shop),
        // It is in a list that is wrong.
        (one(&format!("apiVersion: v1\nkind: List\nitmes:\n- {}\n", GUARD.trim_end().replace('\n', "\n  "))), shop),
    ] {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let started = started("guard.yaml", &bytes, |options| options);
        assert_eq!(started.guarded(), expected, "{text}");
        let why = started.refusal("shop", &[]).unwrap();
        assert!(why.contains("guard.yaml"), "{text}: {why}");
        assert!(!started.plane.wrong().is_empty(), "{text}");
        let said: Vec<String> = started.plane.diagnostics().iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line.contains("answer every request with 503")), "{text}: {said:?}");
        let allowed = self::started("guard.yaml", &bytes, |options| options.allow_unenforced(true));
        assert!(allowed.guarded().is_empty(), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_and_is_no_guard_by_its_text_guards_nobody() {
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [reviews]}\n";
    for text in [
        "a: [".to_owned(),
        "a: 1".to_owned(),
        rule.replace("spec: {", "spec: {{"),
        rule.replace(
            "metadata: {",
            "# not an AuthorizationPolicy\nmetadata: {annotations: {why: AuthorizationPolicy}, ",
        )
        .replace("spec: {", "spec: {{"),
        rule.replace("VirtualService", "VirtualServce"),
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {\n".to_owned(),
    ] {
        let started = started("broken.yaml", text.as_bytes(), |options| options);
        assert!(started.guarded().is_empty(), "{text}");
        assert!(!started.plane.wrong().is_empty(), "{text}");
    }
}

#[tokio::test]
async fn a_guard_that_becomes_unreadable_leaves_its_last_good_state_in_force() {
    // PERMISSIVE is in nobody's way: whoever is refused is so because of what cannot be read.
    let good = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let state = tempfile::tempdir().unwrap();
    let started = started("guard.yaml", good.as_bytes(), |options| options.state_dir(state.path()));
    assert!(started.guarded().is_empty());
    for broken in [
        good.replace("PeerAuthentication", "PeerAuthentification"),
        good.replace("spec: {", "spec: {{"),
        good.replace("apiVersion: security.istio.io/v1\n", ""),
        good.replace("metadata: {name: a, namespace: shop}\n", ""),
    ] {
        fs::write(started._dir.path().join("guard.yaml"), &broken).unwrap();
        started.plane.reload().await;
        assert!(started.guarded().is_empty(), "{broken}");
        assert!(!started.plane.wrong().is_empty(), "{broken}");
    }
}

fn rule(kind: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\n{spec}\n")
}

#[tokio::test]
async fn a_refused_rule_governs_what_its_mistyped_fields_name() {
    let http = "http: [{route: [{destination: {host: ratings}}]}]";
    let tls = "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}";
    for text in [
        rule("VirtualService", &format!("spec: {{hosts: reviews, {http}}}")),
        rule("VirtualService", &format!("spec: {{hostz: [reviews], {http}}}")),
        rule("VirtualService", &format!("spec: {{host: reviews, {http}}}")),
        rule("VirtualService", &format!("spec: {{hosts: [[reviews]], {http}}}")),
        rule("VirtualService", &format!("spec: {{names: [reviews], {http}}}")),
        rule("VirtualService", &format!("sepc: {{hosts: [reviews], {http}}}")),
        rule("VirtualService", &format!("specification: {{hosts: [reviews], {http}}}")),
        rule("VirtualService", &format!("spec:\nhosts: [reviews]\n{http}")),
        rule("VirtualServce", &format!("spec: {{hosts: [reviews], {http}}}")),
        rule("VirtualService", &format!("spec: {{hosts: [reviews], {http}}}"))
            .replace("networking.istio.io", "networking.istio"),
        rule("VirtualService", &format!("spec: {{hosts: [reviews], {http}}}"))
            .replace("apiVersion: networking.istio.io/v1\n", ""),
        rule("DestinationRule", &format!("spec: {{host: [reviews], {tls}}}")),
        rule("DestinationRule", &format!("spec: {{host: [ratings, reviews], {tls}}}")),
        rule("DestinationRule", &format!("spec: {{hosts: reviews, {tls}}}")),
        rule("DestinationRule", &format!("spec: {{name: reviews, {tls}}}")),
        rule("DestinationRule", &format!("sepc: {{host: reviews, {tls}}}")),
        rule("DestinatonRule", &format!("spec: {{host: reviews, {tls}}}")),
        rule("DestinationRule", &format!("spec: {{host: reviews, {tls}}}"))
            .replace("networking.istio.io", "networking.istoi.io"),
    ] {
        let started = started("rule.yaml", text.as_bytes(), |options| options);
        let routes = started.routes("reviews:80");
        assert!(routes.contains("is wrong, and no good state of it is known"), "{text}: {routes}");
    }
}

#[tokio::test]
async fn a_refused_policy_guards_those_whom_its_mistyped_fields_name() {
    let policy = |spec: &str| GUARD.replace("spec: {}", spec);
    let everybody = Some("all");
    for (spec, whom) in [
        ("spec: {selctor: {matchLabels: {app: reviews}}}", Some("reviews")),
        ("spec: {selector: {matchLabel: {app: reviews}}}", Some("reviews")),
        ("sepc: {selector: {matchLabels: {app: reviews}}}", Some("reviews")),
        ("spec: {targetRefs: {kind: Service, name: reviews}}", Some("reviews")),
        ("spec: {targetRef: [{kind: Service, name: reviews}]}", Some("reviews")),
        ("spec: {targetRefz: [{kind: Service, name: reviews}]}", Some("reviews")),
        ("spec: {selector: {app: reviews}}", everybody),
        ("spec: {whom: {matchLabels: {app: reviews}}}", everybody),
        ("spec: {selector: {matchLabels: {app: reviews}}, targetRefs: [{kind: Service, name: ratings}]}", everybody),
    ] {
        let started = started("guard.yaml", policy(spec).as_bytes(), |options| options);
        assert!(started.refusal("shop", &[("app", "reviews")]).is_some(), "{spec}");
        assert_eq!(started.refusal("shop", &[("app", "other")]).is_some(), whom == everybody, "{spec}");
    }
}
