//! What is said of filters that applications have compiled in: of their configurations, by the schemas that they declare, and of
//! what others than the library cannot do.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::catalog::{Client, ClientClass, Kind};
use mesh_control::config::load::Scan;
use mesh_control::plane::Plane;

use crate::support::{Seen, client_of};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
";

/// As an application prints it (`MeshBuilder::filter_schemas`).
const SCHEMAS: &str = r#"{
  "apiVersion": "v1",
  "items": [
    {
      "apiVersion": "policy.mesh-control/v1alpha1",
      "kind": "FilterSchema",
      "metadata": {"name": "acme.tenant", "namespace": "shop"},
      "spec": {
        "filter": "acme.tenant",
        "schema": {
          "type": "object", "required": ["header"], "additionalProperties": false,
          "properties": {"header": {"type": "string"}, "known": {"type": "array", "items": {"type": "string"}}}
        }
      }
    }
  ],
  "kind": "List"
}"#;

fn plugin(spec: &str) -> String {
    format!(
        "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name}\nspec: {spec}\n",
        name = "{name: p, namespace: shop}"
    )
}

/// The findings of a text hold these, one each in this order.
#[track_caller]
fn check(files: &[(&str, &str)], expected: &[&str]) {
    let found = validate([&[("0-services.yaml", SERVICE)], files].concat());
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let holds = found.iter().zip(expected).all(|(finding, part)| finding.contains(part));
    assert!(holds && found.len() == expected.len(), "{files:?}: {found:#?}");
}

#[test]
fn a_configuration_is_held_to_the_schema_that_its_filter_declares() {
    let with = |spec: &str, expected: &[&str]| {
        check(&[("1-schemas.json", SCHEMAS), ("t.yaml", &plugin(spec))], expected);
    };
    with("{pluginName: acme.tenant, pluginConfig: {header: x-tenant, known: [a]}}", &[]);
    with(
        "{pluginName: acme.tenant, pluginConfig: {headr: x-tenant, known: [a, 7]}}",
        &[
            "t.yaml:4:47: error[invalid-value]: WasmPlugin shop/p: pluginConfig: field `header` is missing; every request is answered with 500",
            "t.yaml:4:48: error[invalid-value]: WasmPlugin shop/p: pluginConfig.headr: unknown field; there are header, known",
            "t.yaml:4:76: error[invalid-value]: WasmPlugin shop/p: pluginConfig.known[1]: expected string, found a number",
        ],
    );
    with("{pluginName: acme.tenant}", &["WasmPlugin shop/p: pluginConfig: field `header` is missing"]);
    with(
        "{pluginName: acme.tennant, pluginConfig: {}}",
        &[
            "t.yaml:4:8: warning[unknown-reference]: WasmPlugin shop/p: pluginName: no FilterSchema says that there is a filter \
           \"acme.tennant\"; there are acme.tenant: where it is not registered, every request is answered with 500",
        ],
    );
    // Who declares nothing is told of nothing.
    check(&[("t.yaml", &plugin("{pluginName: other, pluginConfig: {a: 1}}"))], &[]);
}

#[test]
fn a_schema_is_for_its_namespace_and_one_of_the_root_namespace_for_those_that_have_none() {
    let in_namespace = |namespace: &str, header: &str| {
        SCHEMAS
            .replace("\"namespace\": \"shop\"", &format!("\"namespace\": {namespace:?}"))
            .replace("\"required\": [\"header\"]", &format!("\"required\": [{header:?}]"))
    };
    let with = plugin("{pluginName: acme.tenant, pluginConfig: {header: x}}");
    let (root, other) = (in_namespace("istio-system", "known"), in_namespace("other", "known"));
    check(
        &[("1.json", &other), ("t.yaml", &with)],
        &[
            "warning[unknown-reference]: FilterSchema other/acme.tenant: filter: it is for plugins of the namespace other, of which \
           none names the filter \"acme.tenant\", and WasmPlugin shop/p (t.yaml:1) is not held to it: one of the root namespace \
           (istio-system) is for all",
        ],
    );
    check(&[("1.json", &other)], &[]);
    check(&[("1.json", &other), ("2.json", SCHEMAS), ("t.yaml", &with)], &[]);
    check(&[("1.json", &root), ("t.yaml", &with)], &["field `known` is missing"]);
    check(&[("1.json", &root), ("2.json", SCHEMAS), ("t.yaml", &with)], &[]);
}

#[test]
fn a_schema_that_is_wrong_or_a_second_one_is_told() {
    let wrong = SCHEMAS.replace("\"array\"", "\"list\"");
    check(
        &[("1-schemas.json", &wrong)],
        &["error[invalid-value]: FilterSchema shop/acme.tenant: schema: `list` is no type"],
    );
    check(
        &[("1-schemas.json", &wrong), ("t.yaml", &plugin("{pluginName: acme.tenant}"))],
        &[
            "`list` is no type",
            "pluginConfig: nobody can tell what its filter takes: FilterSchema shop/acme.tenant is wrong",
        ],
    );
    let second = SCHEMAS.replace("\"name\": \"acme.tenant\"", "\"name\": \"second\"");
    check(
        &[("1-schemas.json", SCHEMAS), ("2-schemas.json", &second)],
        &["warning[conflict]: FilterSchema shop/second: FilterSchema shop/acme.tenant (1-schemas.json:4) says what"],
    );
}

#[test]
fn what_is_a_programs_own_is_told_field_by_field() {
    let own = "url: oci://a, sha256: b, imagePullPolicy: Always, imagePullSecret: c, verificationKey: d";
    let spec = format!("{{pluginName: p, {own}, vmConfig: {{env: [{{name: A, valueFrom: HOST}}]}}}}");
    let expected = [
        "url: not supported yet: nothing is downloaded",
        "sha256: not supported yet",
        "imagePullPolicy: not supported yet",
        "imagePullSecret: not supported yet",
        "verificationKey: not supported yet",
        "vmConfig.env[0].name: not supported yet",
        "vmConfig.env[0].valueFrom: not supported yet",
    ];
    check(&[("t.yaml", &plugin(&spec))], &expected);
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_that_it_keeps_its_workloads_from_serving() {
    for (spec, expected) in [
        (
            "{pluginName: p, type: NETWORK}",
            "t.yaml:4:29: error[invalid-value]: WasmPlugin shop/p: type: filters here look at requests",
        ),
        ("{pluginName: p, phase: FIRST}", "`FIRST` is none of UNSPECIFIED_PHASE, AUTHN, AUTHZ, STATS"),
        ("{pluginName: p, pluginConfig: [1]}", "pluginConfig: a mapping is expected"),
        ("{pluginName: ''}", "pluginName: a filter has a name"),
        ("{pluginName: p, match: [{ports: [{number: 0}]}]}", "0 is not between 1 and 65535"),
        ("{pluginName: p, fail: x, match: [{mode: SERVER}]}", "fail: unknown field"),
    ] {
        let found = validate([("t.yaml", &*plugin(spec))]);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|finding| finding.contains(expected)), "{spec}: {found:#?}");
        assert!(found.iter().any(|finding| finding.contains("answer every request with 503")), "{spec}: {found:#?}");
    }
}

#[test]
fn what_does_not_hold_where_one_is_wrong_is_told() {
    let own = |kind: &str, spec: &str| {
        plugin(spec).replace("extensions.istio.io", "policy.mesh-control").replace("WasmPlugin", kind)
    };
    for (text, expected) in [
        (
            plugin("{phase: NEVER}"),
            "answer every request with 503 and the reason, and each of their calls fails with 500,",
        ),
        (plugin("{phase: NEVER, match: [{mode: SERVER}]}"), "answer every request with 503 and the reason, unless"),
        (
            plugin("{phase: NEVER, match: [{mode: CLIENT}]}"),
            "all workloads of namespace shop have each of their calls fail",
        ),
        (plugin("{phase: NEVER, failStrategy: FAIL_OPEN}"), "until it is right, requests pass without it (FAIL_OPEN)"),
        (own("RequestRules", "{mode: CLIENT, hosts: [a.b]}"), "have each of their calls to a.b fail with 500"),
        (own("RateLimit", "{rulse: []}"), "until it is right, nothing is limited by it"),
        (own("Overload", "{rulse: []}"), "until it is right, nothing is limited by it"),
        (own("Quota", "{rulse: []}"), "until it is right, nothing is limited by it"),
    ] {
        let found = validate([("t.yaml", &*text)]);
        let found = found.iter().map(ToString::to_string).filter(|line| line.contains("error[unenforced]"));
        let found: Vec<String> = found.collect();
        assert!(matches!(found.as_slice(), [only] if only.contains(expected)), "{text}: {found:#?}");
    }
}

#[test]
fn who_runs_no_filters_of_others_is_told_of() {
    let found = |spec: &str, mesh: Mesh| {
        let mut scan = Scan::default();
        scan.files.insert("t.yaml".into(), Ok(format!("{SERVICE}---\n{}", plugin(spec)).into()));
        let found = validate_scan(scan, mesh).diagnostics;
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let grpc = || Mesh { has_grpc: true, ..Mesh::default() };
    let envoys = || Mesh { has_envoys: true, ..Mesh::default() };
    for mesh in [grpc as fn() -> Mesh, envoys] {
        let told = found("{pluginName: p}", mesh());
        assert!(
            told.contains(
                "that it is for fails, unless `failStrategy` is FAIL_OPEN; what clients call does not pass it"
            ),
            "{told}"
        );
        let told = found("{pluginName: p, failStrategy: FAIL_OPEN, match: [{mode: SERVER}]}", mesh());
        assert!(told.ends_with("requests to servers pass without it"), "{told}");
        let told = found("{pluginName: p, match: [{mode: CLIENT}]}", mesh());
        assert!(told.contains("it runs no filters of others; what clients call does not pass it"), "{told}");
    }
    assert_eq!(found("{pluginName: p}", Mesh::default()), "");
}

/// They would refuse a listener with a filter that they do not know; and one that requests have to pass must not be passed over.
#[test]
fn others_are_told_of_no_filter_and_do_not_serve_where_requests_have_to_pass_one() {
    const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/10.0.0.1:80";
    let told = |client: Client, name: &str, objects: &str| {
        let plane = Plane::empty();
        plane.set_yaml("t.yaml", &format!("{SERVICE}---\n{objects}")).unwrap();
        let listener = Seen::new(&plane, client).get(Kind::Listener, name).expect("a listener");
        String::from_utf8_lossy(&listener.body).into_owned()
    };
    let of = |class| client_of(class, "shop", &[("app", "web")]);
    let rules = |rule: &str| {
        let spec = format!("{{rules: [{rule}]}}");
        plugin(&spec).replace("extensions.istio.io", "policy.mesh-control").replace("WasmPlugin", "RequestRules")
    };
    let any = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: any}\n".to_owned();
    let envoy = || of(ClientClass::Envoy).sidecar([10, 0, 0, 1], false);
    let plain_grpc = told(of(ClientClass::Grpc), INBOUND, &any);
    let plain_envoy = told(envoy(), "10.0.0.1_80", &any);
    for (objects, serves) in [
        (plugin("{pluginName: p}"), false),
        (plugin("{pluginName: p, phase: AUTHN, failStrategy: FAIL_RELOAD}"), false),
        (plugin("{pluginName: p, failStrategy: FAIL_OPEN}"), true),
        (plugin("{pluginName: p, match: [{mode: CLIENT}]}"), true),
        (plugin("{pluginName: p, match: [{ports: [{number: 81}]}]}"), true),
        (rules("{name: a, deny: {}}"), false),
        (rules("{name: a, headers: {request: {set: {a: b}}}}"), true),
    ] {
        let host = "web.shop.svc.cluster.local:80";
        let library = [INBOUND, host].map(|name| told(of(ClientClass::Library), name, &objects));
        let is_told = library.iter().any(|listener| listener.contains("mesh-control.filter/"));
        assert_eq!(is_told, !objects.contains("number: 81"), "{objects}");
        let grpc = told(of(ClientClass::Grpc), INBOUND, &objects);
        assert_eq!(grpc == plain_grpc, serves, "{objects}");
        let envoy = told(envoy(), "10.0.0.1_80", &objects);
        assert_eq!(envoy == plain_envoy, serves, "{objects}");
        let calls = told(of(ClientClass::Grpc), host, &objects);
        for other in [grpc, envoy, calls] {
            assert!(!other.contains("mesh-control.filter/"), "{objects}");
        }
    }
}
