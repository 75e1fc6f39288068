//! What nobody can read at the first start: what may guard workloads guards them, and what may be a rule fails its hosts.

use std::fs;
use std::path::Path;
use std::process::Command;

use mesh_control::catalog::Kind;
use mesh_control::config::store::Standing;
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
            // It is for all.
            &EVERYBODY,
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
        (one(&format!("{GUARD}--\n{}spec: {{\n", replaced("  namespace: shop\n", ""))), &EVERYBODY),
        // Nor can its kind be read in a text that is no YAML.
        (one(&replaced("kind: ", "kind: &k ").replace("spec: {}", "spec: {")), shop),
        (one(&replaced("kind: ", "kind: !!str ").replace("spec: {}", "spec: {")), shop),
        (one(&replaced("kind: ", "kind: >-\n  ").replace("spec: {}", "spec: {")), shop),
        (
            one(&format!("x: &k AuthorizationPolicy\n{}", replaced("kind: AuthorizationPolicy", "kind: *k"))
                .replace("spec: {}", "spec: {")),
            shop,
        ),
        (
            one(&format!(
                "apiVersion: v1\nkind: Service\n{}",
                replaced("kind: ", "kind: &k ").replace("spec: {}", "spec: {")
            )),
            &EVERYBODY,
        ),
        (
            one(&replaced("kind: A", "kind: \"\\x41").replace("Policy\n", "Policy\"\n").replace("spec: {}", "spec: {")),
            shop,
        ),
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

/// Makes a file that nobody can read at a path.
type Spoil = fn(&Path);

fn spoilt() -> Vec<(&'static str, Spoil)> {
    use std::os::unix::fs::symlink;
    vec![
        ("a dangling link", |path| symlink("nowhere.yaml", path).unwrap()),
        ("a link in a circle", |path| symlink(path, path).unwrap()),
        ("a link that leaves the directory", |path| symlink("/dev/null", path).unwrap()),
        ("a FIFO", |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a file that is too large", |path| fs::write(path, format!("{GUARD}#{}\n", "x".repeat(17 << 20))).unwrap()),
        ("a file that is encrypted", |path| fs::write(path, b"\0GITCRYPT\0\x9f\xb1\x02\xff\x17\xd8").unwrap()),
        ("a file of others", |path| {
            fs::write(path, GUARD).unwrap();
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        }),
    ]
}

#[tokio::test]
async fn a_file_that_nobody_can_read_at_a_start_guards_everybody_and_is_told_with_its_name() {
    for (what, spoil) in spoilt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(dir.path().join("services.yaml"), SERVICES).unwrap();
        spoil(&path);
        // Whoever runs as root reads everything.
        if what == "a file of others" && fs::File::open(&path).is_ok() {
            continue;
        }
        let start = |allow| {
            let options = PlaneOptions::default().config_dir(dir.path()).allow_unenforced(allow);
            Started { plane: Plane::start(options).unwrap(), _dir: tempfile::tempdir().unwrap() }
        };
        let started = start(false);
        assert_eq!(started.guarded(), EVERYBODY, "{what}");
        let why = started.refusal("shop", &[]).unwrap();
        assert!(why.contains("nobody can tell what guards this workload: a.yaml: cannot be read: "), "{what}: {why}");
        let wrong = started.plane.wrong();
        let [wrong] = wrong.as_slice() else { panic!("{what}: {wrong:?}") };
        assert_eq!((&*wrong.file, wrong.standing), ("a.yaml", Standing::Unread), "{what}");
        let said: Vec<String> = started.plane.diagnostics().iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line.starts_with("a.yaml: error[file]: cannot be read: ")), "{what}: {said:?}");
        let everybody = said.iter().find(|line| line.contains("all workloads of every namespace answer"));
        assert!(everybody.is_some_and(|line| line.contains("each of their calls fails")), "{what}: {said:?}");
        let report = mesh_control::analysis::validate_dir(dir.path()).unwrap();
        assert_eq!((report.objects, report.wrong, report.unreadable), (2, 0, 1), "{what}");
        assert!(start(true).guarded().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_file_that_becomes_unreadable_leaves_what_is_in_force_as_it_is() {
    // PERMISSIVE is in nobody's way; a wrong one is in the way of all.
    let good = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let wrong = good.replace("PERMISSIVE", "PERMISIVE");
    let broken = GUARD.replace("spec: {}", "spec: {");
    let other = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\nspec: {host: reviews}\n";
    let shop: &[&str] = &["shop"];
    for (text, guarded) in
        [("# nothing\n", &[][..]), (good, &[]), (other, &[]), (&wrong, shop), (&broken, shop), (GUARD, &[])]
    {
        for (what, spoil) in spoilt() {
            let started = started("a.yaml", text.as_bytes(), |options| options);
            let objects = started.plane.objects();
            assert_eq!(started.guarded(), guarded, "{text}");
            let path = started._dir.path().join("a.yaml");
            fs::remove_file(&path).unwrap();
            spoil(&path);
            if what == "a file of others" && fs::File::open(&path).is_ok() {
                continue;
            }
            started.plane.reload().await;
            assert_eq!((started.guarded().as_slice(), started.plane.objects()), (guarded, objects), "{what}: {text}");
            assert!(!started.plane.wrong().is_empty(), "{what}: {text}");
        }
        // So does a new one beside it.
        let started = started("a.yaml", text.as_bytes(), |options| options);
        fs::create_dir(started._dir.path().join("new.yaml")).unwrap();
        started.plane.reload().await;
        assert_eq!(started.guarded(), guarded, "{text}");
        assert!(started.plane.wrong().iter().any(|wrong| &*wrong.file == "new.yaml"), "{text}");
    }
}

/// A guard that is wrong, and has no good state, guards until it is right, however it is wrong.
#[tokio::test]
async fn a_wrong_guard_goes_on_guarding_while_its_text_becomes_worse() {
    let broken = GUARD.replace("spec: {}", "spec: {");
    let started = started("a.yaml", broken.as_bytes(), |options| options);
    let path = started._dir.path().join("a.yaml");
    for worse in
        ["a: [", "", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n---\na: ["]
    {
        fs::write(&path, worse).unwrap();
        started.plane.reload().await;
        assert_eq!(started.guarded(), ["shop"], "{worse}");
    }
    fs::write(&path, GUARD).unwrap();
    started.plane.reload().await;
    assert!(started.guarded().is_empty() && started.plane.wrong().is_empty());
}

#[tokio::test]
async fn a_document_that_is_no_yaml_leaves_the_others_of_its_file_as_they_are() {
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let wrong = "apiVersion: v1\nkind: Service\nmetadata: {name: wrong, namespace: shop}\nspec: {prots: []}\n";
    for broken in ["a: [", "a: \"", "a:\n\tb: 1", "a: 1\nb: 1\nb: 2", "a: *nobody", "a: b: c"] {
        let text = format!("# é\n{peer}---\n{broken}\n---\n{GUARD}---\n{wrong}");
        let started = started("many.yaml", text.as_bytes(), |options| options);
        // The policy is in force, and not a wrong one.
        assert!(started.guarded().is_empty(), "{broken}");
        assert_eq!(started.plane.objects(), 4, "{broken}");
        let wrong: Vec<_> = started.plane.wrong().into_iter().map(|wrong| (wrong.object, wrong.standing)).collect();
        let expected = [(Some("Service shop/wrong".into()), Standing::FailsClosed), (None, Standing::Unread)];
        assert_eq!(wrong, expected, "{broken}");
        let said: Vec<String> = started.plane.diagnostics().iter().map(ToString::to_string).collect();
        let line = text.lines().position(|line| line.contains("prots")).unwrap() + 1;
        assert!(
            said.iter().any(|one| one.starts_with(&format!("many.yaml:{line}:8: error[unknown-field]"))),
            "{said:?}"
        );
        let first = text.lines().position(|line| line == "---").unwrap() + 2;
        let lines: Vec<usize> = (0..4).map(|more| first + more).collect();
        let is_placed = |one: &String| lines.iter().any(|line| one.starts_with(&format!("many.yaml:{line}:")));
        assert!(said.iter().any(|one| is_placed(one) && one.contains("error[syntax]")), "{broken}: {said:?}");
    }
    // What is broken guards its own namespace.
    let broken = GUARD.replace("spec: {}", "spec: {").replace("namespace: shop", "namespace: other");
    let started = started("many.yaml", format!("{peer}---\n{broken}---\n{}", GUARD).as_bytes(), |options| options);
    assert_eq!(started.guarded(), ["other"]);
    let why = started.refusal("other", &[]).unwrap();
    assert!(why.contains("AuthorizationPolicy without a name in other is wrong"), "{why}");
}

#[tokio::test]
async fn what_is_not_read_and_looks_like_a_part_of_the_configuration_is_a_warning() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let deep = elsewhere.path().join("far/below");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("a.yaml"), GUARD).unwrap();
    fs::write(at("services.yaml"), SERVICES).unwrap();
    for name in ["a.yaml.txt", "a.ymal", "a.yml~", "policy", "a.yaml.bak"] {
        fs::write(at(name), format!("# mine\n---\n{GUARD}")).unwrap();
    }
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/a.yml"), GUARD).unwrap();
    symlink("sub", at("linked")).unwrap();
    symlink(elsewhere.path(), at("outside")).unwrap();
    // Nobody takes these for objects.
    fs::write(at("README.md"), format!("# How to\n\nLike this:\n\n```\n{GUARD}```\n")).unwrap();
    fs::write(at("notes.txt"), "buy milk\n").unwrap();
    fs::write(at(".hidden.bak"), GUARD).unwrap();
    fs::create_dir(at("empty")).unwrap();
    // Hidden, packed, and closed: these may have been meant.
    fs::write(at(".deny.yaml"), GUARD).unwrap();
    fs::create_dir_all(at(".off/now")).unwrap();
    fs::write(at(".off/now/deny.yaml"), GUARD).unwrap();
    fs::write(at("deny.yaml.gz"), b"\x1f\x8b\x08\x00\x00").unwrap();
    fs::create_dir_all(at("closed/inner")).unwrap();
    // And these are what other tools leave.
    fs::write(at(".editor.yaml"), "indent: 2\n").unwrap();
    fs::write(at("._services.yaml"), b"\x00\x05\x16\x07").unwrap();
    fs::write(at("logo.png"), b"\x89PNG\x00").unwrap();
    fs::create_dir_all(at(".github/workflows")).unwrap();
    fs::write(at(".github/workflows/ci.yaml"), "on: push\n").unwrap();
    fs::create_dir(at("..2026")).unwrap();
    fs::write(at("..2026/a.yaml"), GUARD).unwrap();
    // Who may do everything looks into it all the same.
    fs::set_permissions(at("closed/inner"), fs::Permissions::from_mode(0o000)).unwrap();
    let is_closed = fs::read_dir(at("closed/inner")).is_err();
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let started = Started {
        plane: Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap(),
        _dir: tempfile::tempdir().unwrap(),
    };
    let said = started.plane.diagnostics();
    let warned: Vec<&str> = said.iter().filter(|one| one.code.as_str() == "not-read").map(|one| &*one.file).collect();
    let mut expected = vec![".deny.yaml", ".off", "a.yaml.bak", "a.yaml.txt", "a.ymal", "a.yml~"];
    expected.extend(is_closed.then_some("closed"));
    expected.extend(["deny.yaml.gz", "linked", "outside", "policy", "sub"]);
    assert_eq!(warned, expected);
    let of = |name: &str| said.iter().find(|one| &*one.file == name).unwrap().to_string();
    assert!(of("outside").contains("(far/below/a.yaml)"), "{}", of("outside"));
    assert!(of("empty").contains("info[ignored]"), "{}", of("empty"));
    assert!(of(".off").contains("(now/deny.yaml)"), "{}", of(".off"));
    if is_closed {
        assert!(of("closed").contains("cannot be looked into (inner: Permission denied"), "{}", of("closed"));
    }
    fs::set_permissions(at("closed/inner"), fs::Permissions::from_mode(0o700)).unwrap();
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

/// Calls that it secures would go out in plaintext without it.
#[tokio::test]
async fn what_may_be_a_rule_for_tls_closes_its_hosts_or_else_all_that_it_may_be_for() {
    let rule = rule("DestinationRule", "spec: {host: reviews, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let broken = rule.replace("spec: {", "spec: {{");
    let full = "host: reviews.shop.svc.cluster.local";
    let (its, all, none) = ((true, false), (true, true), (false, false));
    for (text, closed) in [
        (broken.clone(), its),
        (broken.replace("host: reviews", full), its),
        (broken.replace("host: reviews", "host: 'reviews'"), its),
        (broken.replace("DestinationRule", "DestinatonRule"), its),
        (broken.replace("kind: ", "kind: &k "), its),
        (rule.replace("host: reviews", "host: reviews, host: reviews"), its),
        (rule.replace("networking.istio.io/v1", "v1"), its),
        (format!("apiVersion: v1\nkind: List\nitmes:\n- {}\n", rule.trim_end().replace('\n', "\n  ")), its),
        (broken.replace("host: reviews", "host: '*.shop.svc.cluster.local'"), all),
        (rule.replace("host: reviews", "host: *.shop.svc.cluster.local"), all),
        // Which host it is for cannot be read.
        (broken.replace("host: reviews", "host: &h reviews"), all),
        (broken.replace("host: reviews", "hosts: reviews"), all),
        // Nor of which namespace it is.
        (broken.replace("namespace: shop", "namespace: &n shop").replace("host: reviews", full), its),
        (broken.replace("namespace: shop", "namespace: &n shop"), all),
        (broken.replace("{name: a, namespace: shop}", "\n  name: a\n  namespace:\n    shop"), all),
        // It is another host in another namespace.
        (broken.replace(", namespace: shop", ""), none),
        (broken.replace("tls: {mode: ISTIO_MUTUAL}", "retryBudget: {percent: 1}"), none),
        (broken.replace("DestinationRule", "VirtualService"), none),
    ] {
        let started = started("rule.yaml", text.as_bytes(), |options| options);
        let is_closed = |target: &str| {
            started.routes(target).contains("DestinationRule ") && started.routes(target).contains("rule.yaml:")
        };
        assert_eq!((is_closed("reviews:80"), is_closed("ratings:80")), closed, "{text}");
        assert!(!started.plane.wrong().is_empty() && started.guarded().is_empty(), "{text}");
    }
}

/// A BackendTLSPolicy for a Service.
fn backend_policy(name: &str, service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: {service}}}], validation: {{hostname: a.internal, wellKnownCACertificates: System}}}}\n"
    )
}

#[tokio::test]
async fn what_may_be_a_policy_for_tls_closes_its_services_or_else_all_that_it_may_be_for() {
    let policy = backend_policy("a", "reviews");
    let broken = policy.replace("spec: {", "spec: {{");
    let (its, all, none) = ((true, false), (true, true), (false, false));
    for (text, closed) in [
        (broken.clone(), its),
        (broken.replace("name: reviews", "name: 'reviews'"), its),
        (broken.replace("BackendTLSPolicy", "BackendTLSPolcy"), its),
        (broken.replace("kind: BackendTLSPolicy", "kind: &k BackendTLSPolicy"), its),
        (policy.replace("gateway.networking.k8s.io/v1", "v1"), its),
        (policy.replace("gateway.networking.k8s.io/v1", "gateway.networking.k8s/v1"), its),
        (broken.replace("}], validation", "}, {group: '', kind: Service, name: ratings}], validation"), all),
        // Which Services it is for cannot be read.
        (broken.replace("name: reviews", "name: &n reviews"), all),
        (broken.replace("name: reviews", "nmae: reviews"), all),
        (broken.replace("targetRefs", "targetRef"), all),
        // Nor of which namespace it is.
        (broken.replace("namespace: shop", "namespace: &n shop"), all),
        // It is of another one.
        (broken.replace(", namespace: shop", ""), none),
        (broken.replace("kind: BackendTLSPolicy", "kind: HTTPRoute"), none),
    ] {
        let started = started("policy.yaml", text.as_bytes(), |options| options);
        let is_closed = |target: &str| {
            started.routes(target).contains("BackendTLSPolicy ") && started.routes(target).contains("policy.yaml:")
        };
        assert_eq!((is_closed("reviews:80"), is_closed("ratings:80")), closed, "{text}");
        assert!(!started.plane.wrong().is_empty(), "{text}");
    }
}

#[tokio::test]
async fn what_was_closed_for_tls_is_so_when_its_file_becomes_unreadable_and_after_a_restart() {
    let secured = |host: &str| format!("spec: {{host: {host}, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}}}");
    let policy = backend_policy("b", "ratings").replace("hostname", "hotsname");
    let wrong = rule("DestinationRule", &secured("ratings")).replace("name: a", "name: b").replace("mode", "mdoe");
    closed_over_a_restart("BackendTLSPolicy", &backend_policy("a", "reviews"), &policy).await;
    closed_over_a_restart("DestinationRule", &rule("DestinationRule", &secured("reviews")), &wrong).await;
}

/// An object of this kind that is good, for `reviews`, and one that is wrong, for `ratings`, are so when their file is no YAML any more.
async fn closed_over_a_restart(kind: &str, good: &str, wrong: &str) {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = || {
        let options = PlaneOptions::default().config_dir(dir.path()).state_dir(state.path());
        Started { plane: Plane::start(options).unwrap(), _dir: tempfile::tempdir().unwrap() }
    };
    let are_closed = |started: &Started| {
        ["reviews:80", "ratings:80"].map(|target| started.routes(target).contains(&format!("{kind} ")))
    };
    let text = format!("{good}---\n{wrong}");
    fs::write(dir.path().join("services.yaml"), SERVICES).unwrap();
    fs::write(dir.path().join("policies.yaml"), &text).unwrap();
    let mut plane = start();
    assert_eq!(are_closed(&plane), [false, true]);
    fs::write(dir.path().join("policies.yaml"), text.replace("spec: {", "spec: {{")).unwrap();
    plane.plane.reload().await;
    assert_eq!(are_closed(&plane), [false, true], "what was good stays in force");
    drop(plane);
    plane = start();
    assert_eq!(are_closed(&plane), [false, true]);
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

const GRANTED: &str = "---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: other}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: front}]
  rules:
  - {matches: [{path: {value: /reviews}}], backendRefs: [{name: reviews, namespace: shop, port: 80}]}
  - {matches: [{path: {value: /ratings}}], backendRefs: [{name: ratings, namespace: shop, port: 80}]}
---
";

/// One edit may narrow a grant and mistype it.
#[tokio::test]
async fn a_grant_that_becomes_wrong_grants_what_its_text_still_says_of_its_last_good_state() {
    let grant = |from: &str, to: &str| {
        let from = format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}}{from}");
        format!(
            "{GRANTED}apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: a, namespace: shop}}\n\
             spec:\n  from: [{from}]\n  to: [{to}]\n"
        )
    };
    let (all, only) = ("{group: '', kind: Service}", "{group: '', kind: Service, name: reviews}");
    let wrong = ", {group: gateway.networking.k8s.io, kind: HTTPRoute, namspace: third}";
    for (good, then, expected) in [
        (all, grant(wrong, all), &["reviews", "ratings"][..]),
        (all, grant(wrong, only), &["reviews"]),
        (all, grant("", &format!("{only}, {{group: '', kind: Service, nam: ratings}}")), &["reviews"]),
        (only, grant(wrong, all), &["reviews"]),
        (all, grant("", all).replace("  to:", "  too:"), &["reviews", "ratings"]),
        (all, grant("", all).replace("kind: HTTPRoute, namespace: other}]", "kind: HTTPRoute, namespac: other}]"), &[]),
        (
            all,
            grant("", all).replace("kind: HTTPRoute, namespace: other}]", "kind: [HTTPRoute], namespace: other}]"),
            &[],
        ),
        // Of what nobody can read, the last good state stays.
        (all, grant("", only).replace("spec:", "spec: {"), &["reviews", "ratings"]),
    ] {
        let started = started("grant.yaml", grant("", good).as_bytes(), |options| options);
        fs::write(started._dir.path().join("grant.yaml"), &then).unwrap();
        started.plane.reload().await;
        assert!(!started.plane.wrong().is_empty(), "{then}");
        let routes = format!("{:?}", Seen::new(&started.plane, client("other")).routes_of("front.other:80"));
        let granted = ["reviews", "ratings"].into_iter().filter(|name| routes.contains(&format!("||{name}.shop.svc")));
        assert_eq!(granted.collect::<Vec<_>>(), expected, "{good}, then {then}");
    }
}

/// It may be attached to any service of its namespace, and as a consumer's to any that is called from there.
#[tokio::test]
async fn a_wrong_route_of_which_nobody_can_read_what_it_is_attached_to_fails_what_it_may_be_attached_to() {
    let route = |spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: a, namespace: shop}}\n{spec}\n"
        )
    };
    let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: other}\nspec: {ports: [{name: http, port: 80}]}\n";
    let parent = "group: '', kind: Service";
    for (spec, is_any) in [
        ("spec: {parentRefs: 5}".to_owned(), true),
        ("spec: {parentRefs: [5]}".to_owned(), true),
        (format!("spec: {{parentRefs: [{{{parent}}}]}}"), true),
        (format!("spec: {{parentRefs: [{{{parent}, name: {{}}}}]}}"), true),
        (format!("spec: {{parentRefs: [{{{parent}, name: reviews, namespace: [5]}}]}}"), true),
        (format!("spec: {{attachedTo: [{{{parent}, name: reviews}}], rules: []}}"), true),
        ("spec: 5".to_owned(), true),
        // What is attached to nothing, to something else, or to something plainly.
        ("spec: {rulez: []}".to_owned(), false),
        ("spec: {parentRefs: [], rulez: []}".to_owned(), false),
        ("spec: {parentRefs: [{name: gateway}], rulez: []}".to_owned(), false),
        (format!("spec: {{parentRefs: [{{{parent}, name: others}}], rulez: []}}"), false),
    ] {
        let started = started("route.yaml", format!("{}{other}", route(&spec)).as_bytes(), |options| options);
        let fails = |namespace: &str, target: &str| {
            let routes = Seen::new(&started.plane, client(namespace)).routes_of(target);
            format!("{routes:?}").contains("HTTPRoute shop/a is wrong")
        };
        assert_eq!(fails("shop", "reviews:80"), is_any, "{spec}");
        assert_eq!(fails("other", "reviews.shop:80"), is_any, "{spec}: a producer's");
        assert_eq!(fails("shop", "other.other:80"), is_any, "{spec}: a consumer's");
        assert!(!fails("other", "other:80"), "{spec}: neither");
        assert!(!started.plane.wrong().is_empty(), "{spec}");
    }
}
