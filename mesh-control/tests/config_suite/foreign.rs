//! What guards workloads in Istio and is not enforced here: the workloads that it is for do not serve, with the reason.

use mesh_control::catalog::{ClientClass, Kind};
use mesh_control::config::store::Standing;
use mesh_control::config::{Code, Severity};
use mesh_control::plane::{Plane, PlaneOptions};

use crate::support::{Seen, client_of};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n";

fn started(text: &str, allow: bool) -> Plane {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), format!("{SERVICE}---\n{text}")).unwrap();
    Plane::start(PlaneOptions::default().config_dir(dir.path()).allow_unenforced(allow)).unwrap()
}

/// Who does not serve, and why one of them does not.
fn refused(plane: &Plane) -> (Vec<&'static str>, String) {
    let (mut names, mut why) = (Vec::new(), String::new());
    for (name, namespace, app) in [("web", "shop", "web"), ("till", "shop", "till"), ("other", "other", "web")] {
        let seen = Seen::new(plane, client_of(ClientClass::Library, namespace, &[("app", app)]));
        let listener = seen.get(Kind::Listener, "xds.istio.io/grpc/lds/inbound/10.0.0.1:80").unwrap();
        let text = String::from_utf8_lossy(&listener.body).into_owned();
        if text.contains("--allow-unenforced") {
            names.push(name);
            why = text;
        }
    }
    (names, why)
}

fn filter(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: f, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn patch(at: &str, context: &str, operation: &str, value: &str) -> String {
    format!(
        "{{configPatches: [{{applyTo: {at}, match: {{context: {context}}}, patch: {{operation: {operation}, value: {value}}}}}]}}"
    )
}

fn typed(name: &str, kind: &str) -> String {
    format!("{{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.{kind}}}}}")
}

#[tokio::test]
async fn a_filter_that_decides_who_may_do_what_keeps_the_workloads_that_it_is_for_from_serving() {
    let authz = typed("mine", "http.ext_authz.v3.ExtAuthz");
    let inbound = |value: &str| patch("HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", value);
    let shop: &[&str] = &["web", "till"];
    let of_web = |spec: String| spec.replacen('{', "{workloadSelector: {labels: {app: web}}, ", 1);
    for (text, expected) in [
        (filter("shop", &inbound(&authz)), shop),
        (filter("shop", &of_web(inbound(&authz))), &["web"]),
        (filter("shop", &inbound(&authz).replacen('{', "{targetRefs: [{kind: Service, name: web}], ", 1)), &["web"]),
        (filter("istio-system", &inbound(&authz)), &["web", "till", "other"]),
        (filter("istio-system", &of_web(inbound(&authz))), &["web", "other"]),
        (filter("shop", &inbound(&typed("envoy.filters.http.rbac", "http.rbac.v3.RBAC"))), shop),
        (filter("shop", &inbound(&typed("a", "http.jwt_authn.v3.JwtAuthentication"))), shop),
        (filter("shop", &inbound(&typed("a", "http.oauth2.v3.OAuth2"))), shop),
        (filter("shop", &inbound(&typed("a", "http.lua.v3.Lua"))), shop),
        (filter("shop", &inbound(&typed("a", "http.wasm.v3.Wasm"))), shop),
        (filter("shop", &patch("NETWORK_FILTER", "ANY", "INSERT_FIRST", &typed("a", "network.rbac.v3.RBAC"))), shop),
        (
            filter("shop", &patch("HTTP_FILTER", "SIDECAR_INBOUND", "MERGE", "{name: envoy.filters.http.ext_authz}")),
            shop,
        ),
        (
            filter("shop", &patch("LISTENER", "ANY", "MERGE", &format!("{{filter_chains: [{{filters: [{authz}]}}]}}"))),
            shop,
        ),
        (filter("shop", &inbound(&authz).replace("configPatches", "configPatchs")), shop),
        // They guard no workload.
        (filter("shop", &inbound(&typed("a", "http.local_ratelimit.v3.LocalRateLimit"))), &[]),
        (filter("shop", &patch("HTTP_FILTER", "GATEWAY", "INSERT_BEFORE", &authz)), &[]),
        (filter("shop", &patch("HTTP_FILTER", "SIDECAR_OUTBOUND", "INSERT_BEFORE", &authz)), &[]),
        (filter("shop", &patch("HTTP_FILTER", "ANY", "REMOVE", &authz)), &[]),
    ] {
        let plane = started(&text, false);
        let (names, why) = refused(&plane);
        assert_eq!(names, expected, "{text}");
        let said = plane.diagnostics();
        if expected.is_empty() {
            let is_told = |code, severity| said.iter().any(|one| one.code == code && one.severity == severity);
            assert!(is_told(Code::NotSupportedYet, Severity::Warning), "{text}: {said:?}");
            continue;
        }
        assert!(
            why.contains(" shop/f guards this workload, and is not enforced: a.yaml:")
                || why.contains(" istio-system/f guards"),
            "{why}"
        );
        let wrong = plane.wrong();
        assert!(wrong.len() == 1 && wrong[0].standing == Standing::FailsClosed, "{text}: {wrong:?}");
        // The cause is told before what comes of it.
        let of_it: Vec<String> =
            said.iter().filter(|one| one.code == Code::Unenforced).map(ToString::to_string).collect();
        let [cause, effect] = of_it.as_slice() else { panic!("{text}: {of_it:?}") };
        assert!(cause.contains("decide") && effect.contains("answer every request with 503"), "{of_it:?}");
        assert!(refused(&started(&text, true)).0.is_empty(), "{text}");
    }
}

#[tokio::test]
async fn what_may_be_such_an_object_guards_although_its_text_is_no_yaml() {
    let authz = patch("HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", &typed("a", "http.ext_authz.v3.ExtAuthz"));
    let fault = patch("HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", &typed("a", "http.fault.v3.HTTPFault"));
    let plugin = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: f, namespace: shop}\nspec: {phase: AUTHZ, url: x\n";
    let former = "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {name: default}\nspec: {\n";
    for (text, expected) in [
        (filter("shop", &authz).replace("spec: {", "spec: {{"), &["web", "till"][..]),
        (filter("shop", &fault).replace("spec: {", "spec: {{"), &[]),
        (plugin.to_owned(), &["web", "till"]),
        (plugin.replace("AUTHZ", "STATS"), &["web", "till"]),
        (plugin.replace("AUTHZ", "STATS, failStrategy: FAIL_OPEN"), &[]),
        (former.to_owned(), &["web", "till", "other"]),
    ] {
        let plane = started(&text, false);
        assert_eq!((refused(&plane).0.as_slice(), plane.objects()), (expected, 1), "{text}");
        assert!(plane.wrong().iter().any(|wrong| wrong.standing == Standing::Unread), "{text}");
    }
}

#[tokio::test]
async fn kinds_that_istio_took_away_guard_their_workloads_and_their_successors_are_named() {
    let everybody: &[&str] = &["web", "till", "other"];
    let object = |group: &str, kind: &str, metadata: &str| {
        format!("apiVersion: {group}/v1alpha1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{}}\n")
    };
    let own = "name: web, namespace: shop";
    for (text, expected, successor) in [
        (object("rbac.istio.io", "ClusterRbacConfig", "name: default"), everybody, "write an AuthorizationPolicy"),
        (object("rbac.istio.io", "ServiceRole", own), &["web", "till"], "write an AuthorizationPolicy"),
        (object("rbac.istio.io", "ServiceRoleBinding", own), &["web", "till"], "write an AuthorizationPolicy"),
        (object("authentication.istio.io", "Policy", own), &["web", "till"], "write a PeerAuthentication"),
        (object("authentication.istio.io", "MeshPolicy", "name: default"), everybody, "write a PeerAuthentication"),
    ] {
        // One that has its name and its namespace is another object.
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\nspec: {rules: [{}]}\n";
        let plane = started(&format!("{policy}---\n{text}"), false);
        let (names, why) = refused(&plane);
        assert_eq!((names.as_slice(), plane.objects()), (expected, 2), "{text}");
        assert!(why.contains("was taken out of Istio in 1.6") && why.contains(successor), "{text}: {why}");
        let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
        assert!(said[0].contains(successor) && said[1].contains("503"), "{text}: {said:?}");
    }
    let mistyped = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicies\nmetadata: {name: web}\nspec: {}\n";
    let said = started(mistyped, false).diagnostics();
    assert!(said[0].message.ends_with("it is taken for an AuthorizationPolicy that is wrong"), "{said:?}");
    assert!(said[1].code == Code::Unenforced && said[1].line == said[0].line, "{said:?}");
}
