//! A Gateway of Gateway API, served by `mesh-gateway` over real sockets: all that it is told is what a mesh-control makes of the objects.

use envoy_types::pb::envoy::service::ext_proc::v3 as ext_proc;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use prost::Message;

use super::gateway::{Gateway, get};
use super::gateway_tls::Caller;
use super::limits_support;
use super::tls_support::{ANY, Authority, Foreign, Pair, tls as tls_of};
use super::*;

pub(super) const EDGE: [&str; 2] = ["--label", "gateway.networking.k8s.io/gateway-name=edge"];

/// A port that nobody has.
pub(super) async fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port()
}

/// A service whose only endpoint is there.
pub(super) fn service(name: &str, at: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\n\
         spec: {{address: {}, ports: {{http: {}}}, labels: {{app: {name}}}}}\n---\n",
        at.ip(),
        at.port()
    )
}

/// The same of a service whose connections nobody looks into.
pub(super) fn service_of_bytes(name: &str, at: SocketAddr) -> String {
    service(name, at).replace("name: http, port", "name: tcp, port").replace("{http:", "{tcp:")
}

/// A Gateway where bytes come in: by TCP at a port, and at another by TLS, which passes or, for one name, ends there.
pub(super) fn gateway_of_bytes(tcp: u16, tls: u16) -> String {
    let listeners = format!(
        "{{gatewayClassName: istio, listeners: [{{name: tcp, port: {tcp}, protocol: TCP}}, \
         {{name: passes, port: {tls}, protocol: TLS, hostname: '*.example', tls: {{mode: Passthrough}}}}, \
         {{name: ends, port: {tls}, protocol: TLS, hostname: ends.example, tls: {{certificateRefs: [{{name: ends}}]}}}}]}}"
    );
    object("Gateway", "edge", &listeners)
}

/// A route from one of its listeners to a service.
pub(super) fn route_of_bytes(kind: &str, listener: &str, hosts: &str, to: &str) -> String {
    let spec = format!(
        "{{parentRefs: [{{name: edge, sectionName: {listener}}}], {hosts}rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]}}"
    );
    object(kind, listener, &spec)
}

pub(super) fn secret(name: &str, pair: &Pair) -> String {
    let of = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let (chain, key) = (of(&pair.chain), of(&pair.key));
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{chain}  tls.key: |\n{key}---\n"
    )
}

pub(super) fn object(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

pub(super) async fn control(text: &str) -> Embedded {
    Embedded::start(Config::yaml(text), Options::default().dev()).await.unwrap()
}

pub(super) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_of_gateway_api_serves_http_and_https_by_its_routes_and_follows_them() {
    let one = program(|head| ok(&format!("one\n{head}"))).await;
    let two = program(|_| ok("two")).await;
    let (ca, others) = (Authority::named("root"), Authority::named("others"));
    let (http, https) = (free_port().await, free_port().await);
    let listeners = format!(
        "{{gatewayClassName: istio, listeners: [{{name: http, port: {http}, protocol: HTTP, hostname: '*.example'}}, \
         {{name: https, port: {https}, protocol: HTTPS, hostname: shop.example, tls: {{certificateRefs: [{{name: shop}}]}}}}, \
         {{name: broken, port: {https}, protocol: HTTPS, hostname: broken.example, tls: {{certificateRefs: [{{name: nobody}}]}}}}]}}"
    );
    let route = |rules: &str| {
        object(
            "HTTPRoute",
            "shop",
            &format!("{{parentRefs: [{{name: edge}}], hostnames: [shop.example], rules: [{rules}]}}"),
        )
    };
    let rules = "{matches: [{path: {value: /two}}], backendRefs: [{name: two, port: 80}]}, \
        {matches: [{path: {type: Exact, value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]}, \
        {filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-edge, value: here}]}}], backendRefs: [{name: one, port: 80}]}";
    let services = service("one", one) + &service("two", two);
    let text =
        [services, secret("shop", &ca.leaf(&["shop.example"])), object("Gateway", "edge", &listeners), route(rules)];
    let control = control(&text.concat()).await;
    let mut gateway = Gateway::of(control, &EDGE);
    let mut bound = [gateway.bound().await.port(), gateway.bound().await.port()];
    bound.sort_unstable();
    let mut expected = [http, https];
    expected.sort_unstable();
    assert_eq!(bound, expected);

    let answer = exchange(local(http), &get("shop.example", "/", "")).await;
    assert!(status(&answer) == "200" && answer.contains("one\n") && answer.contains("x-edge: here"), "{answer}");
    assert!(exchange(local(http), &get("shop.example", "/two/x", "")).await.ends_with("two"));
    let moved = exchange(local(http), &get("shop.example", "/old", "")).await;
    assert!(
        status(&moved) == "302" && moved.contains(&format!("location: http://shop.example:{http}/new\r\n")),
        "{moved}"
    );
    for host in ["other.example", "shop.elsewhere"] {
        assert_eq!(status(&exchange(local(http), &get(host, "/", "")).await), "404", "{host}");
    }
    let (code, body) = Caller::new(&ca).ask(local(https), "shop.example", "shop.example").await.unwrap();
    assert!(code == 200 && body.starts_with("one"), "{code} {body}");
    assert!(Caller::new(&ca).ask(local(https), "broken.example", "broken.example").await.is_err());
    assert!(
        Caller::new(&others).ask(local(https), "shop.example", "shop.example").await.is_err(),
        "it is another's certificate"
    );

    // A route that comes later is there without a restart, and one that goes is gone.
    let late = route(rules)
        .replace("name: shop}", "name: late}")
        .replace("hostnames: [shop.example]", "hostnames: [late.example]");
    gateway.control.set_yaml("late.yaml", &late).unwrap();
    let reaches = async |host: &str, wanted: &str| {
        while status(&exchange(local(http), &get(host, "/", "")).await) != wanted {
            tokio::task::yield_now().await;
        }
    };
    within(reaches("late.example", "200")).await;
    gateway.control.set_yaml("late.yaml", "").unwrap();
    within(reaches("late.example", "404")).await;
    assert_eq!(status(&exchange(local(http), &get("shop.example", "/", "")).await), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_proven_nothing_says_which_secret_it_lacks_and_why() {
    let ca = Authority::named("root");
    let https = free_port().await;
    let listeners = format!(
        "{{gatewayClassName: istio, listeners: [{{name: https, port: {https}, protocol: HTTPS, hostname: shop.example, \
         tls: {{certificateRefs: [{{name: shop}}]}}}}]}}"
    );
    let text = secret("shop", &ca.leaf(&["shop.example"])) + &object("Gateway", "edge", &listeners);
    let control = Embedded::start(Config::yaml(text), Options::default()).await.unwrap();
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    let why = gateway.says("handshakes of a filter chain fail reason=").await;
    assert!(why.contains("kubernetes://default/shop") && why.contains("has proven of which namespace it is"), "{why}");
    let refused = Caller::new(&ca).ask(local(https), "shop.example", "shop.example").await.unwrap_err();
    assert!(refused.contains("InternalError"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_answers_and_what_it_sends_on_are_counted_as_istio_has_clients_count() {
    let http = free_port().await;
    let listeners = format!("{{gatewayClassName: istio, listeners: [{{name: http, port: {http}, protocol: HTTP}}]}}");
    let route = "{parentRefs: [{name: edge}], \
        rules: [{matches: [{path: {value: /one}}], backendRefs: [{name: one, port: 80}]}]}";
    let telemetry = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: edge}\n\
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], metrics: [{overrides: [\
        {match: {mode: CLIENT, metric: REQUEST_COUNT}, tagOverrides: {request_protocol: {operation: REMOVE}, edge: {value: \"'told'\"}}}, \
        {match: {mode: SERVER}, disabled: true}]}]}\n---\n";
    let refusal = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge}\n\
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], action: DENY, \
        rules: [{to: [{operation: {paths: [/no]}}]}]}\n---\n";
    let text = [
        service("one", program(|_| ok("one")).await),
        object("Gateway", "edge", &listeners),
        object("HTTPRoute", "one", route),
        telemetry.to_owned(),
        refusal.to_owned(),
    ];
    let control = control(&text.concat()).await;
    let [label, name] = EDGE;
    let mut gateway = Gateway::of(control, &[label, name, "--admin-addr", "127.0.0.1:0"]);
    gateway.bound().await;
    let admin = gateway.admin().await;
    for (path, expected) in [("/one", "200"), ("/two", "404"), ("/no", "403")] {
        assert_eq!(status(&exchange(local(http), &get("a.example", path, "")).await), expected, "{path}");
    }
    // A request counts once it is over, which its client does not wait for.
    let counted = async {
        loop {
            let page = exchange(admin, &get(&admin.to_string(), "/metrics", "")).await;
            let lines: Vec<String> =
                page.lines().filter(|line| line.starts_with("istio_requests_total{")).map(str::to_owned).collect();
            if lines.len() == 3 {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for line in within(counted).await {
        assert!(line.contains("edge=\"told\"") && !line.contains("request_protocol="), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_set_adds_a_host_with_its_own_certificate_to_a_gateway() {
    let (one, two) = (program(|_| ok("one")).await, program(|_| ok("two")).await);
    let ca = Authority::named("root");
    let (http, https) = (free_port().await, free_port().await);
    let own = format!(
        "{{gatewayClassName: istio, allowedListeners: {{namespaces: {{from: Same}}}}, \
         listeners: [{{name: http, port: {http}, protocol: HTTP}}]}}"
    );
    let more = format!(
        "{{parentRef: {{name: edge}}, listeners: [{{name: http, port: {http}, protocol: HTTP, hostname: more.example}}, \
         {{name: https, port: {https}, protocol: HTTPS, hostname: more.example, tls: {{certificateRefs: [{{name: more}}]}}}}]}}"
    );
    let route = |name: &str, parent: &str| {
        let spec = format!("{{parentRefs: [{parent}], rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]}}");
        object("HTTPRoute", name, &spec)
    };
    let text = [
        service("one", one) + &service("two", two),
        secret("more", &ca.leaf(&["more.example"])),
        object("Gateway", "edge", &own),
        object("ListenerSet", "more", &more),
        route("one", "{name: edge}"),
        route("two", "{kind: ListenerSet, name: more}"),
    ];
    let control = control(&text.concat()).await;
    let [label, name] = EDGE;
    let mut gateway = Gateway::of(control, &[label, name, "--admin-addr", "127.0.0.1:0"]);
    gateway.bound().await;
    gateway.bound().await;
    let admin = gateway.admin().await;
    for (host, expected) in [("any.example", "one"), ("more.example", "two")] {
        let answer = exchange(local(http), &get(host, "/", "")).await;
        assert!(status(&answer) == "200" && answer.ends_with(expected), "{host}: {answer}");
    }
    let (code, body) = Caller::new(&ca).ask(local(https), "more.example", "more.example").await.unwrap();
    assert!(code == 200 && body == "two", "{code} {body}");

    // Without it, its port is closed, and what the gateway has of its own goes on.
    let rest = [&text[0], &text[1], &text[2], &text[4]].map(String::as_str).concat();
    gateway.control.set_yaml("config.yaml", &rest).unwrap();
    within(async {
        while TcpStream::connect(local(https)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let answer = exchange(local(http), &get("any.example", "/", "")).await;
    assert!(status(&answer) == "200" && answer.ends_with("one"), "{answer}");
    let ready = exchange(admin, &get(&admin.to_string(), "/ready", "")).await;
    assert_eq!(status(&ready), "200", "{ready}");
}

/// A ConfigMap with an authority.
fn authorities(name: &str, ca: &Authority) -> String {
    let pem = ca.pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  ca.crt: |\n{pem}---\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_called_by_tls_where_a_policy_says_so_and_not_at_all_where_that_cannot_be() {
    let (ours, others) = (Authority::named("ours"), Authority::named("others"));
    let backend = Foreign::start(tls_of(&ours.leaf(&["raw.example"]), None, ANY)).await;
    let port = free_port().await;
    let spec = format!("{{gatewayClassName: istio, listeners: [{{name: http, port: {port}, protocol: HTTP}}]}}");
    let policy = |hostname: &str, by: &str| {
        let to = "targetRefs: [{group: '', kind: Service, name: raw}]";
        let by = format!("caCertificateRefs: [{{group: '', kind: ConfigMap, name: {by}}}]");
        object("BackendTLSPolicy", "raw", &format!("{{{to}, validation: {{hostname: {hostname}, {by}}}}}"))
    };
    let objects = [
        service("raw", local(backend.port)),
        authorities("ours", &ours),
        authorities("others", &others),
        object("Gateway", "edge", &spec),
        object("HTTPRoute", "raw", "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: raw, port: 80}]}]}"),
    ];
    let control = control(&objects.concat()).await;
    control.set_yaml("policy.yaml", &policy("raw.example", "ours")).unwrap();
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    let ask = async || exchange(local(port), &get("any", "/", "")).await;
    for (hostname, by) in [("raw.example", "others"), ("other.example", "ours"), ("raw.example", "nobody")] {
        within(async {
            while status(&ask().await) != "200" {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let answer = ask().await;
        assert!(status(&answer) == "200" && answer.contains("sni=raw.example"), "{answer}");
        gateway.control.set_yaml("policy.yaml", &policy(hostname, by)).unwrap();
        within(async {
            while status(&ask().await) == "200" {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let answer = ask().await;
        assert!(status(&answer).starts_with('5'), "{hostname} {by}: {answer}");
        gateway.control.set_yaml("policy.yaml", &policy("raw.example", "ours")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_gateways_at_one_address_the_closer_host_answers_for_its_own_names() {
    let (one, two) = (program(|_| ok("one")).await, program(|_| ok("two")).await);
    let port = free_port().await;
    let workloads = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: edge}}\n\
         spec: {{selector: {{gateway.networking.k8s.io/gateway-name: edge}}, ports: [{{name: http, port: {port}}}]}}\n---\n"
    );
    let gateway = |name: &str, host: &str| {
        let address = "{type: Hostname, value: edge.default.svc.cluster.local}";
        let listener = format!("{{name: http, port: {port}, protocol: HTTP{host}}}");
        let spec = format!("{{gatewayClassName: istio, addresses: [{address}], listeners: [{listener}]}}");
        object("Gateway", name, &spec)
    };
    let route = |name: &str, gateway: &str, rest: &str| {
        let rules = format!("rules: [{{{rest}backendRefs: [{{name: {name}, port: 80}}]}}]");
        let spec = format!("{{parentRefs: [{{name: {gateway}}}], hostnames: [a.example, b.example], {rules}}}");
        object("HTTPRoute", name, &spec)
    };
    let text = [
        service("one", one) + &service("two", two),
        workloads,
        gateway("a-wide", ""),
        gateway("close", ", hostname: a.example"),
        route("one", "a-wide", ""),
        route("two", "close", "matches: [{path: {value: /two}}], "),
    ];
    let control = control(&text.concat()).await;
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    assert!(exchange(local(port), &get("b.example", "/", "")).await.ends_with("one"));
    assert!(exchange(local(port), &get("a.example", "/two", "")).await.ends_with("two"));
    assert_eq!(status(&exchange(local(port), &get("a.example", "/", "")).await), "404");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_come_in_by_tcp_and_by_the_name_that_tls_asks_for() {
    let bytes = program(|_| ok("bytes")).await;
    let (ca, raw) = (Authority::named("root"), Authority::named("raw"));
    let outside = Foreign::start(tls_of(&raw.leaf(&["raw.example"]), None, ANY)).await;
    let (tcp, tls) = (free_port().await, free_port().await);
    let text = [
        service_of_bytes("bytes", bytes),
        service_of_bytes("raw", local(outside.port)),
        secret("ends", &ca.leaf(&["ends.example"])),
        gateway_of_bytes(tcp, tls),
        route_of_bytes("TCPRoute", "tcp", "", "bytes"),
        route_of_bytes("TLSRoute", "passes", "hostnames: [raw.example], ", "raw"),
        route_of_bytes("TLSRoute", "ends", "", "bytes"),
    ];
    let control = control(&text.concat()).await;
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    gateway.bound().await;
    let mut stream = TcpStream::connect(local(tcp)).await.unwrap();
    stream.write_all(get("any", "/", "").as_bytes()).await.unwrap();
    assert_eq!(status(&within(head(&mut stream)).await.unwrap()), "200");
    let (code, body) = Caller::new(&ca).ask(local(tls), "ends.example", "ends.example").await.unwrap();
    assert!(code == 200 && body == "bytes", "{code} {body}");
    assert_eq!(Caller::new(&raw).ask(local(tls), "raw.example", "raw.example").await.unwrap().0, 200);
    assert!(Caller::new(&raw).ask(local(tls), "nobody.example", "nobody.example").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_names_the_gateway_refuses_there_and_is_followed() {
    let one = program(|_| ok("one")).await;
    let port = free_port().await;
    let spec = format!("{{gatewayClassName: istio, listeners: [{{name: http, port: {port}, protocol: HTTP}}]}}");
    let route = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: one, port: 80}]}]}";
    let deny = |target: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: guard}}\n\
             spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: {target}}}], action: DENY, \
             rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}\n---\n"
        )
    };
    let others =
        object("Gateway", "other", "{gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}");
    let objects = [service("one", one), object("Gateway", "edge", &spec), others, object("HTTPRoute", "one", route)];
    let control = control(&objects.concat()).await;
    control.set_yaml("guard.yaml", &deny("edge")).unwrap();
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    let told = async |path: &str| status(&exchange(local(port), &get("any", path, "")).await).to_owned();
    assert_eq!(told("/admin").await, "403");
    assert_eq!(told("/").await, "200");
    // Another's is not for it.
    gateway.control.set_yaml("guard.yaml", &deny("other")).unwrap();
    within(async {
        while told("/admin").await != "200" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A policy of our own, or of Istio's, that names the gateway.
fn policy(group: &str, kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: {group}/v1alpha1\nkind: {kind}\nmetadata: {{name: guard}}\n\
         spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}], {spec}}}\n---\n"
    )
}

/// A service outside of the mesh that speaks gRPC.
fn outside(name: &str, at: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
         spec: {{hosts: [{name}.example.com], location: MESH_EXTERNAL, resolution: STATIC, \
         ports: [{{number: 9000, name: grpc, targetPort: {}}}], endpoints: [{{address: {}}}]}}\n---\n",
        at.port(),
        at.ip()
    )
}

/// An external processor that refuses everything with 451.
async fn refusing() -> SocketAddr {
    let status = Some(HttpStatus { code: 451 });
    let word = ext_proc::processing_response::Response::ImmediateResponse(ext_proc::ImmediateResponse {
        status,
        ..Default::default()
    });
    let word = ext_proc::ProcessingResponse { response: Some(word), ..Default::default() }.encode_to_vec();
    let length = u32::try_from(word.len()).unwrap().to_be_bytes();
    let frame = [&[0], &length[..], &word].concat();
    let app = axum::Router::new().fallback(async move || ([("content-type", "application/grpc")], frame));
    limits_support::serve(app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_rules_and_filters_that_name_the_gateway_take_effect_there() {
    const OURS: &str = "policy.mesh-control";
    let one = program(ok).await;
    let counts = limits_support::limits("domain: edge\ndescriptors: []\n").await;
    let port = free_port().await;
    let spec = format!("{{gatewayClassName: istio, listeners: [{{name: http, port: {port}, protocol: HTTP}}]}}");
    let route = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: one, port: 80}]}]}";
    let objects = [
        service("one", one),
        object("Gateway", "edge", &spec),
        object("HTTPRoute", "one", route),
        outside("counts", counts),
        outside("processor", refusing().await),
    ];
    let control = control(&objects.concat()).await;
    let mut gateway = Gateway::of(control, &EDGE);
    gateway.bound().await;
    let told = async || status(&exchange(local(port), &get("any", "/", "x-user: ada\r\n")).await).to_owned();
    let rule = "rules: [{name: each, by: [{header: x-user}], limit: {requests: 2, per: ";
    let service = "service: {host: counts.example.com, port: 9000, domain: edge, timeout: 30s, failureMode: DENY}, ";
    for (guard, expected) in [
        (policy(OURS, "RateLimit", &format!("{rule}1h}}}}]")), "429"),
        (policy(OURS, "RateLimit", &format!("{service}{rule}1h}}}}]")), "429"),
        (policy(OURS, "Quota", &format!("failureMode: DENY, {rule}MONTH}}}}]")), "429"),
        (
            policy(
                OURS,
                "RequestRules",
                "rules: [{name: ada, when: \"request.headers['x-user'] == 'ada'\", deny: {}}]",
            ),
            "403",
        ),
        (policy(OURS, "RequestRules", "processor: {host: processor.example.com, port: 9000, timeout: 30s}"), "451"),
        // It has no filter of that name.
        (policy("extensions.istio.io", "WasmPlugin", "pluginName: acme.guard"), "500"),
        // To Istio it is a client.
        (policy("extensions.istio.io", "WasmPlugin", "pluginName: acme.guard, match: [{mode: CLIENT}]"), "500"),
    ] {
        gateway.control.set_yaml("guard.yaml", "").unwrap();
        // What was there before let two pass at most.
        let mut passed = 0;
        within(async {
            while passed < 3 {
                passed = if told().await == "200" { passed + 1 } else { 0 };
            }
        })
        .await;
        gateway.control.set_yaml("guard.yaml", &guard).unwrap();
        let mut seen = String::from("200");
        within(async {
            while seen == "200" {
                seen = told().await;
            }
        })
        .await;
        assert_eq!(seen, expected, "{guard}");
    }
}
