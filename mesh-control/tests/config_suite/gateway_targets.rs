//! Policies that name a Gateway of Gateway API, or a class of them: whose workloads they are for. That `mesh-gateway` enforces one over
//! sockets is shown by `mesh-tower/tests/sidecar/gateway_api.rs`.

use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::plane::{Plane, PlaneOptions};

use crate::gateways::{WEB, names, plane};

const EDGE: &str = "{group: gateway.networking.k8s.io, kind: Gateway, name: edge}";
const ISTIO: &str = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio}";
const TOKENS: &str = r#"jwtRules: [{issuer: https://a,
    jwks: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}]"#;
const DENY: &str = "action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]";

/// A `mesh-gateway` with these labels.
fn client(namespace: &str, labels: [(&str, &str); 1]) -> Client {
    let client = Client::new("edge", ClientClass::Library, [10, 0, 0, 1].into());
    client.namespace(namespace).labels(labels).gateway()
}

/// The workloads of this Gateway.
fn called(namespace: &str, name: &str) -> Client {
    client(namespace, [("gateway.networking.k8s.io/gateway-name", name)])
}

fn gateway(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{more}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n---\n"
    )
}

/// A service that selects `istio: ingressgateway`.
fn service(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: edge, namespace: {namespace}}}\n\
         spec: {{selector: {{istio: ingressgateway}}, ports: [{{name: http, port: 80}}]}}\n---\n"
    )
}

fn policy(kind: &str, namespace: &str, target: &str, spec: &str) -> String {
    let group = match kind {
        "AuthorizationPolicy" | "RequestAuthentication" => "security.istio.io/v1",
        "Telemetry" => "telemetry.istio.io/v1",
        "WasmPlugin" => "extensions.istio.io/v1alpha1",
        _ => "policy.mesh-control/v1alpha1",
    };
    format!(
        "apiVersion: {group}\nkind: {kind}\nmetadata: {{name: guard, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{target}], {spec}}}\n---\n"
    )
}

/// All that a gateway is told of its listeners.
fn told(plane: &Plane, client: &Client) -> Vec<Vec<u8>> {
    let snapshot = plane.snapshot();
    let listeners = snapshot.everything(client, Kind::Listener);
    let of = |name: &str| snapshot.resource(client, Kind::Listener, name).map(|found| found.body.to_vec());
    listeners.iter().filter_map(|name| of(name)).collect()
}

fn said(plane: &Plane) -> Vec<String> {
    plane.diagnostics().iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_that_names_a_gateway_or_a_class_is_for_its_workloads_alone() {
    let classes = "gatewayClassName: istio";
    let gateways = [
        WEB.to_owned(),
        service("shop"),
        gateway("shop", "edge", classes),
        gateway("shop", "other", "gatewayClassName: mesh-control"),
        gateway("far", "edge", classes),
        gateway("shop", "at-service", "gatewayClassName: istio, addresses: [{type: Hostname, value: edge}]"),
    ]
    .concat();
    let at_service = EDGE.replace("name: edge", "name: at-service");
    let all = [
        ("edge", called("shop", "edge")),
        ("other", called("shop", "other")),
        ("far", called("far", "edge")),
        ("at-service", client("shop", [("istio", "ingressgateway")])),
    ];
    for (namespace, target, guarded, finding) in [
        ("shop", EDGE, &["edge"][..], None),
        ("shop", &*EDGE.replace("name: edge", "name: other"), &["other"], None),
        ("far", EDGE, &["far"], None),
        ("shop", &at_service, &["at-service"], None),
        ("shop", &format!("{EDGE}, {at_service}"), &["edge", "at-service"], None),
        ("elsewhere", EDGE, &[], Some("there is no Gateway elsewhere/edge")),
        ("shop", &EDGE.replace("name: edge", "name: web"), &[], Some("there is no Gateway shop/web")),
        ("istio-system", ISTIO, &["edge", "far", "at-service"], None),
        ("istio-system", &ISTIO.replace("name: istio", "name: mesh-control"), &["other"], None),
        ("istio-system", &ISTIO.replace("name: istio", "name: nobody"), &[], Some("no Gateway is of class")),
        ("shop", ISTIO, &["edge", "at-service"], Some("only Gateways of this namespace are meant")),
    ] {
        let plane = plane(&(gateways.clone() + &policy("AuthorizationPolicy", namespace, target, DENY)));
        let denies = |client: &Client| {
            let [listener] = &*told(&plane, client) else { panic!("{client:?} does not listen at one port") };
            String::from_utf8_lossy(listener).contains("AuthorizationPolicy/")
        };
        let found: Vec<&str> = all.iter().filter(|(_, client)| denies(client)).map(|(name, _)| *name).collect();
        assert_eq!(found, guarded, "{namespace} {target}");
        let is_of_targets = |line: &String| line.contains("targetRefs") && !line.contains("info[");
        let of_targets: Vec<String> = said(&plane).into_iter().filter(is_of_targets).collect();
        match finding {
            Some(what) => assert!(of_targets.iter().any(|line| line.contains(what)), "{target}: {of_targets:?}"),
            None => assert!(of_targets.is_empty(), "{target}: {of_targets:?}"),
        }
    }
}

#[test]
fn each_kind_of_policy_is_for_the_gateway_that_it_names() {
    for (kind, spec) in [
        ("AuthorizationPolicy", DENY),
        ("RequestAuthentication", TOKENS),
        ("Telemetry", "accessLogging: [{providers: [{name: envoy}]}]"),
        ("WasmPlugin", "pluginName: acme.guard"),
        ("RequestRules", "rules: [{name: nobody, when: \"request.url_path == '/rule'\", deny: {}}]"),
        ("RateLimit", "rules: [{name: all, limit: {requests: 1, per: 1h}}]"),
        ("Quota", "rules: [{name: all, limit: {requests: 1, per: DAY}}]"),
        ("Overload", "concurrency: {max: 1}"),
    ] {
        let gateways =
            gateway("shop", "edge", "gatewayClassName: istio") + &gateway("shop", "other", "gatewayClassName: istio");
        let plane = plane(&gateways);
        let all = || ["edge", "other"].map(|name| told(&plane, &called("shop", name)));
        let [edge, other] = all();
        plane.set_yaml("p.yaml", policy(kind, "shop", EDGE, spec).as_str()).unwrap();
        let [guarded, unguarded] = all();
        assert!(guarded != edge && unguarded == other, "{kind}");
    }
}

#[tokio::test]
async fn a_gateway_is_not_served_whose_policies_have_no_say_where_its_workloads_are() {
    let address = "gatewayClassName: istio, addresses: [{type: Hostname, value: edge.edges.svc.cluster.local}]";
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: edge, namespace: edges}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Service}]}\n---\n";
    let text = WEB.to_owned() + &service("edges") + grant + &gateway("shop", "edge", address);
    let there = client("edges", [("istio", "ingressgateway")]);
    let telemetry = policy("Telemetry", "shop", EDGE, "accessLogging: [{providers: [{name: envoy}]}]");
    for (guard, is_served) in [
        (String::new(), true),
        (policy("AuthorizationPolicy", "shop", EDGE, DENY), false),
        (policy("RequestAuthentication", "shop", EDGE, TOKENS), false),
        (telemetry, true),
        (policy("AuthorizationPolicy", "shop", &EDGE.replace("name: edge", "name: other"), DENY), true),
        (policy("AuthorizationPolicy", "edges", EDGE, DENY), true),
        (policy("AuthorizationPolicy", "istio-system", ISTIO, DENY), true),
        // Nobody can tell whom it is for.
        (policy("AuthorizationPolicy", "shop", "{kind: 5}", DENY), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c.yaml"), text.clone() + &guard).unwrap();
        let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
        assert_eq!(!names(&plane, &there, Kind::Listener).is_empty(), is_served, "{guard}");
        let snapshot = plane.snapshot();
        let programmed = &snapshot.gateway_statuses()[0].conditions[1];
        assert_eq!((programmed.name, programmed.holds), ("Programmed", is_served), "{guard}: {programmed:?}");
        let is_named = guard.contains(EDGE) && guard.contains("namespace: shop");
        let tells = said(&plane).iter().any(|line| line.contains("its workloads are of another namespace"));
        assert_eq!(tells, is_named, "{guard}: {:?}", said(&plane));
    }
}

#[test]
fn an_envoy_that_is_a_gateway_answers_with_the_reason_what_it_cannot_hold_back_and_the_rest_is_told() {
    const SERVICE: &str = "service: {host: counts.shop.svc.cluster.local, port: 9000, domain: edge";
    const RULES: &str = "rules: [{name: all, limit: {requests: 1, per: MONTH}}]";
    let counted = |more: &str| format!("{SERVICE}{more}}}, rules: [{{name: all}}]");
    let gateways = gateway("shop", "edge", "gatewayClassName: istio");
    for (kind, spec, is_refused, line) in [
        ("Quota", RULES, false, "they let every request pass"),
        ("Quota", &format!("failureMode: DENY, {RULES}"), true, "every request to a server that it is for fails"),
        (
            "Quota",
            "failureMode: DENY, rules: [{name: all, shadow: true, limit: {requests: 1, per: DAY}}]",
            false,
            "they let",
        ),
        ("RateLimit", &counted(""), false, "they let every request pass"),
        ("RateLimit", &counted(", failureMode: DENY"), true, "every request to a server that it is for fails"),
        (
            "RateLimit",
            "rules: [{name: each, by: [{client: PRINCIPAL}], limit: {requests: 1, per: 1h}}]",
            false,
            "an Envoy cannot do this",
        ),
        (
            "RequestRules",
            "rules: [{name: all, headers: {request: {set: {x-a: b}}}}]",
            false,
            "an Envoy knows no such rules; requests pass unchanged",
        ),
        (
            "RequestRules",
            "rules: [{name: all, deny: {}}]",
            true,
            "an Envoy knows no such rules; every request there is answered with 503",
        ),
        (
            "WasmPlugin",
            "pluginName: acme.guard",
            true,
            "an Envoy that is a gateway runs no filters of others: every request there is answered with 503, unless",
        ),
        (
            "WasmPlugin",
            "pluginName: acme.guard, failStrategy: FAIL_OPEN",
            false,
            "an Envoy that is a gateway runs no filters of others: requests pass without it (FAIL_OPEN)",
        ),
    ] {
        // In its namespace as a whole, and by name: of the first nobody can tell before there is a gateway.
        for whom in ["", EDGE] {
            let text = policy(kind, "shop", EDGE, spec).replace(
                &format!("targetRefs: [{EDGE}],"),
                &match whom {
                    "" => String::new(),
                    target => format!("targetRefs: [{target}],"),
                },
            );
            let plane = plane(&gateways);
            plane.set_yaml("p.yaml", &text).unwrap();
            let mut envoy = called("shop", "edge");
            envoy.class = ClientClass::Envoy;
            let [listener] = &*told(&plane, &envoy) else { panic!("{text}") };
            let listener = String::from_utf8_lossy(listener);
            let answers = listener.contains("is run here")
                || listener.contains("known here")
                || listener.contains("counts by it here");
            assert_eq!(answers, is_refused, "{text}");
            let [ours] = &*told(&plane, &called("shop", "edge")) else { panic!("{text}") };
            assert!(String::from_utf8_lossy(ours).contains("shop/guard"), "{text}");
            let finding = "p.yaml:4:";
            let found = said(&plane);
            let is_told = |found: &String| found.starts_with(finding) && found.contains(line);
            assert!(found.iter().any(is_told), "{text}: {found:?}");
            // Nobody who is told of it runs it.
            assert!(
                kind != "WasmPlugin" || !found.iter().any(|line| line.contains("and not `mesh-gateway`")),
                "{found:?}"
            );
        }
    }
}

#[test]
fn what_is_about_calls_has_no_effect_at_a_gateway_which_is_told() {
    let istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: istio, namespace: shop}\n\
        spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\n";
    for (kind, spec, severity, field) in [
        ("RateLimit", "mode: CLIENT, rules: [{name: all, limit: {requests: 1, per: 1h}}]", "error", "mode"),
        ("Quota", "mode: CLIENT, rules: [{name: all, limit: {requests: 1, per: DAY}}]", "error", "mode"),
        ("RequestRules", "mode: CLIENT, rules: [{name: all, deny: {}}]", "error", "mode"),
        ("RequestRules", "mode: CLIENT, rules: [{name: all, headers: {request: {set: {x-a: b}}}}]", "warning", "mode"),
        ("Overload", "throttle: {}", "warning", "throttle"),
        ("Overload", "throttle: {}, concurrency: {max: 1}", "warning", "throttle"),
    ] {
        let by_name = policy(kind, "shop", EDGE, spec);
        let by_label =
            by_name.replace(&format!("targetRefs: [{EDGE}]"), "selector: {matchLabels: {istio: ingressgateway}}");
        let others = by_name.replace(&format!("targetRefs: [{EDGE}],"), "");
        for (text, is_told) in [(by_name, true), (by_label, true), (others, false)] {
            let plane = plane(&(istio.to_owned() + &gateway("shop", "edge", "gatewayClassName: istio")));
            plane.set_yaml("p.yaml", &text).unwrap();
            let finding = format!("{severity}[ignored]: {kind} shop/guard: {field}: a gateway has no calls of its own");
            let found = said(&plane);
            assert_eq!(
                found.iter().any(|line| line.starts_with("p.yaml:4:") && line.contains(&finding)),
                is_told,
                "{text}: {found:?}"
            );
        }
    }
}

/// It is Istio's own words that are taken so: what of our own says `CLIENT` is about calls.
#[test]
fn to_istios_kinds_a_gateway_is_a_client_of_which_server_alone_is_not_said() {
    let mut envoy = called("shop", "edge");
    envoy.class = ClientClass::Envoy;
    for (mode, is_for_it) in [("CLIENT", true), ("CLIENT_AND_SERVER", true), ("SERVER", false)] {
        for (kind, spec, is_for_envoys, severity) in [
            ("WasmPlugin", "pluginName: acme.guard, match: [{MODE}]", true, "error"),
            ("WasmPlugin", "pluginName: acme.guard, match: [{MODE, ports: [{number: 80}]}]", true, "error"),
            ("WasmPlugin", "pluginName: acme.guard, failStrategy: FAIL_OPEN, match: [{MODE}]", false, "warning"),
            ("Telemetry", "accessLogging: [{match: {MODE}, providers: [{name: envoy}]}]", true, "warning"),
            ("Telemetry", "metrics: [{overrides: [{match: {MODE}, disabled: true}]}]", false, "warning"),
            ("Telemetry", "tracing: [{match: {MODE}, randomSamplingPercentage: 7}]", false, "warning"),
        ] {
            let text = policy(kind, "shop", EDGE, &spec.replace("MODE", &format!("mode: {mode}")));
            let plane = plane(&gateway("shop", "edge", "gatewayClassName: istio"));
            let clients = [(called("shop", "edge"), is_for_it), (envoy.clone(), is_for_it && is_for_envoys)];
            let before = clients.each_ref().map(|(client, _)| told(&plane, client));
            plane.set_yaml("p.yaml", &text).unwrap();
            for ((client, changes), before) in clients.iter().zip(before) {
                assert_eq!(told(&plane, client) != before, *changes, "{text} {:?}", client.class);
            }
            let found = said(&plane);
            let apart = format!("{severity}[ignored]: {kind} shop/guard: ");
            let is_apart = |line: &String| line.contains(&apart) && line.contains("to Istio a gateway is a client");
            assert_eq!(found.iter().any(is_apart), !is_for_it, "{text}: {found:?}");
        }
    }
}

#[tokio::test]
async fn a_plugin_for_clients_that_is_wrong_lets_nobody_by_at_a_gateway() {
    for (spec, is_refused) in [
        ("phase: NEVER, match: [{mode: CLIENT}]", true),
        ("phase: NEVER, match: [{mode: CLIENT}], failStrategy: FAIL_OPEN", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = gateway("shop", "edge", "gatewayClassName: istio") + &policy("WasmPlugin", "shop", EDGE, spec);
        std::fs::write(dir.path().join("c.yaml"), text).unwrap();
        let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
        for class in [ClientClass::Library, ClientClass::Envoy] {
            let mut client = called("shop", "edge");
            client.class = class;
            let [listener] = &*told(&plane, &client) else { panic!("{spec}") };
            let refuses = String::from_utf8_lossy(listener).contains("no good state of it is known");
            assert_eq!(refuses, is_refused, "{spec} {class:?}");
        }
    }
}

#[test]
fn what_an_envoy_lacks_is_not_said_where_the_gateway_is_another_program() {
    let plane = plane(&gateway("shop", "edge", "gatewayClassName: istio"));
    plane.set_yaml("p.yaml", &policy("RequestRules", "shop", EDGE, "rules: [{name: all, deny: {}}]")).unwrap();
    let is_said = || said(&plane).iter().any(|line| line.contains("where the gateway is an Envoy"));
    assert!(is_said(), "nobody is there");
    told(&plane, &called("shop", "edge"));
    assert!(!is_said());
    let mut envoy = called("shop", "edge");
    envoy.class = ClientClass::Envoy;
    told(&plane, &envoy);
    assert!(is_said());
}

#[test]
fn labels_of_a_gateway_are_known_by_the_object_that_selects_them_or_by_a_gateway_that_has_them() {
    let of_istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: istio, namespace: shop}\n\
        spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\n";
    // A label that somebody has, with another value, in the namespace of the policy.
    let other = service("edges").replace("istio: ingressgateway", "istio: other");
    let guard = |value: &str| {
        policy("AuthorizationPolicy", "edges", EDGE, DENY)
            .replace(&format!("targetRefs: [{EDGE}]"), &format!("selector: {{matchLabels: {{istio: {value}}}}}"))
    };
    let plane = plane(&(of_istio.to_owned() + &other + &guard("ingressgateway")));
    let is_said = |what: &str| said(&plane).iter().any(|line| line.contains(what));
    assert!(!is_said("no workload that is known has istio"), "{:?}", said(&plane));
    assert!(is_said("mesh-gateway --label KEY=VALUE"), "{:?}", said(&plane));
    told(&plane, &client("edges", [("istio", "ingressgateway")]));
    assert!(!is_said("nothing here has these labels"), "{:?}", said(&plane));
    plane.set_yaml("c.yaml", &(of_istio.to_owned() + &other + &guard("nobody"))).unwrap();
    assert!(is_said("no workload that is known has istio: `nobody`"), "{:?}", said(&plane));
}

#[test]
fn each_half_of_an_overload_that_names_a_gateway_is_told_of() {
    let queue = "concurrency: {max: 1, queue: {max: 1, timeout: 1s}}";
    for (spec, of_throttle, of_queue) in [
        ("throttle: {}".to_owned(), true, false),
        (queue.to_owned(), false, true),
        (format!("throttle: {{}}, {queue}"), true, true),
    ] {
        let plane = plane(&gateway("shop", "edge", "gatewayClassName: istio"));
        plane.set_yaml("p.yaml", &policy("Overload", "shop", EDGE, &spec)).unwrap();
        let found = said(&plane);
        let of = |field: &str| found.iter().any(|line| line.contains(&format!("shop/guard: {field}: ")));
        assert_eq!((of("throttle"), of("concurrency.queue")), (of_throttle, of_queue), "{found:?}");
        let of_mesh_gateway = |line: &&String| line.contains("and not `mesh-gateway`");
        assert!(found.iter().filter(of_mesh_gateway).all(|line| line.contains("concurrency.queue")), "{found:?}");
    }
}

#[test]
fn a_policy_of_the_root_namespace_that_names_a_service_means_its_own() {
    let services = ["istio-system", "shop"].map(service).concat();
    let workload = |namespace: &str| {
        let client = Client::new("w", ClientClass::Library, [10, 0, 0, 1].into());
        client.namespace(namespace).labels([("istio", "ingressgateway")])
    };
    for (kind, spec) in [
        ("AuthorizationPolicy", DENY),
        ("RequestAuthentication", TOKENS),
        ("WasmPlugin", "pluginName: acme.guard"),
        ("RequestRules", "rules: [{name: nobody, when: \"request.url_path == '/rule'\", deny: {}}]"),
        ("RateLimit", "rules: [{name: all, limit: {requests: 1, per: 1h}}]"),
        ("Quota", "rules: [{name: all, limit: {requests: 1, per: DAY}}]"),
        ("Overload", "concurrency: {max: 1}"),
    ] {
        let plane = plane(&(services.clone() + &policy(kind, "istio-system", "{kind: Service, name: edge}", spec)));
        let is_for = |namespace: &str| {
            let name = "xds.istio.io/grpc/lds/inbound/0.0.0.0:80";
            let found = plane.snapshot().resource(&workload(namespace), Kind::Listener, name).unwrap();
            let text = String::from_utf8_lossy(&found.body).into_owned();
            text.contains("guard") || text.contains("jwt_authn")
        };
        assert!(is_for("istio-system"), "{kind}");
        assert!(!is_for("shop"), "{kind}");
    }
}

#[test]
fn the_group_of_what_a_policy_is_for_is_needed_and_not_called_without_effect() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: shop}\n\
        spec: {hosts: [api.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";
    let said = |api: &str, kind: &str, rest: &str, group: &str| {
        let target = format!("{{{group}kind: ServiceEntry, name: api}}");
        let object = format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{target}], {rest}}}\n"
        );
        let said = mesh_control::analysis::validate([("e.yaml", entry), ("p.yaml", object.as_str())]);
        said.iter().map(ToString::to_string).filter(|line| line.contains("targetRefs")).collect::<Vec<_>>()
    };
    for (api, kind, rest) in [
        ("security.istio.io/v1", "AuthorizationPolicy", "rules: [{}]"),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            "jwtRules: [{issuer: me, jwksUri: 'https://me.example/keys'}]",
        ),
        ("telemetry.istio.io/v1", "Telemetry", "accessLogging: [{disabled: true}]"),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "pluginName: acme.tenant"),
        ("policy.mesh-control/v1alpha1", "RateLimit", "rules: [{name: all, limit: {requests: 7, per: 1s}}]"),
    ] {
        assert_eq!(said(api, kind, rest, "group: networking.istio.io, "), [""; 0], "{kind}");
        let without = said(api, kind, rest, "");
        assert!(without.iter().any(|line| line.contains("`ServiceEntry` of group ``")), "{kind}: {without:?}");
    }
}
