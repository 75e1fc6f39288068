//! AuthorizationPolicy from YAML to the answer: embedded control plane, the library's server, and bytes over sockets.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options, PlaneOptions};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

fn named(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn policy(spec: &str) -> String {
    named("p", "shop", spec)
}

fn mesh(control: &Embedded, account: &str, namespace: &str) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{account}.{namespace}~{namespace}.svc.cluster.local"))
        .metadata("NAMESPACE", namespace)
        .metadata("SERVICE_ACCOUNT", account)
        .metadata("LABELS", json!({"app": account}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

/// A server of `reviews` that lets everybody in whom the mesh lets in.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let mesh = mesh(control, "reviews", "shop");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = axum::Router::new().fallback(|| async { "welcome" }).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (mesh, address)
}

async fn start(policies: &str, options: Options) -> Embedded {
    Embedded::start(Config::yaml(format!("{REVIEWS}{policies}")), options).await.unwrap()
}

/// Sends a request's head on a connection, and reads the answer: its status and its body.
async fn ask(stream: &mut TcpStream, head: &str) -> (u16, String) {
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        loop {
            if let Some((head, body)) = answer.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
                    return;
                }
            }
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{head}: {answer}");
            answer += &String::from_utf8_lossy(&buffer[..count]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A request without more than it needs.
fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: reviews")
}

/// Under these policies, each request has its status.
async fn check_all(policies: &str, requests: &[(&str, u16)]) {
    let control = start(policies, Options::default()).await;
    let (_server, address) = serve(&control).await;
    for (head, expected) in requests {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = if head.starts_with('/') { get(head) } else { (*head).to_owned() };
        let (status, body) = ask(&mut stream, &head).await;
        assert_eq!(status, *expected, "{head}\n{policies}: {body}");
        match expected {
            403 => assert_eq!(body, "RBAC: access denied"),
            200 => assert_eq!(body, "welcome"),
            _ => {}
        }
    }
}

/// The same of one condition, which `ALLOW` and `DENY` have alike: the requests that it is for, and those that it is not for.
async fn check_rule(rule: &str, fits: &[&str], others: &[&str]) {
    for (action, of_fits, of_others) in [("ALLOW", 200, 403), ("DENY", 403, 200)] {
        let requests: Vec<_> =
            fits.iter().map(|head| (*head, of_fits)).chain(others.iter().map(|head| (*head, of_others))).collect();
        check_all(&policy(&format!("{{action: {action}, rules: [{rule}]}}")), &requests).await;
    }
}

fn to(operation: &str) -> String {
    format!("{{to: [{{operation: {{{operation}}}}}]}}")
}

fn from(source: &str) -> String {
    format!("{{from: [{{source: {{{source}}}}}]}}")
}

fn when(key: &str, values: &str) -> String {
    format!("{{when: [{{key: '{key}', {values}}}]}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_without_rules_lets_nobody_in_and_deny_goes_before_allow() {
    let deny_admin = named("deny", "shop", "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}");
    let allow_all = named("allow", "shop", "{rules: [{}]}");
    let nobody = named("nobody", "shop", "{}");
    for (policies, root, admin) in [
        (String::new(), 200, 200),
        (nobody.clone(), 403, 403),
        (named("nobody", "istio-system", "{}"), 403, 403),
        (named("nobody", "other", "{}"), 200, 200),
        (format!("{nobody}{allow_all}"), 200, 200),
        (allow_all.clone(), 200, 200),
        (format!("{allow_all}{deny_admin}"), 200, 403),
        (deny_admin.clone(), 200, 403),
        (named("deny", "shop", "{action: DENY, rules: [{}]}"), 403, 403),
        (named("audit", "shop", "{action: AUDIT, rules: [{}]}"), 200, 200),
        (named("some", "shop", "{selector: {matchLabels: {app: reviews}}}"), 403, 403),
        (named("some", "shop", "{selector: {matchLabels: {app: other}}}"), 200, 200),
        (named("some", "istio-system", "{selector: {matchLabels: {app: reviews}}}"), 403, 403),
        (named("some", "shop", "{targetRefs: [{kind: Service, name: reviews, group: ''}]}"), 403, 403),
    ] {
        check_all(&policies, &[("/", root), ("/admin", admin), ("/admin?x", admin)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_no_answer() {
    let dry = |spec: &str| {
        policy(spec).replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}")
    };
    let allow_all = named("allow", "shop", "{rules: [{}]}");
    let nobody = named("nobody", "shop", "{}");
    for spec in ["{}", "{action: DENY, rules: [{}]}", "{rules: [{}]}"] {
        check_all(&dry(spec), &[("/", 200)]).await;
        check_all(&format!("{}{allow_all}", dry(spec)), &[("/", 200)]).await;
        check_all(&format!("{}{nobody}", dry(spec)), &[("/", 403)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policies_refuse_or_would_is_counted_by_the_names_of_their_rules() {
    let to = |path: &str| format!("{{to: [{{operation: {{paths: [{path}]}}}}]}}");
    let tried = named("try", "shop", &format!("{{action: DENY, rules: [{}]}}", to("/old*")))
        .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let policies = [
        named("open", "shop", &format!("{{rules: [{}, {}]}}", to("/old"), to("/new*"))),
        named("shut", "shop", &format!("{{action: DENY, rules: [{}, {}]}}", to("/x"), to("/new/secret"))),
        named("told", "shop", &format!("{{action: AUDIT, rules: [{}]}}", to("/new"))),
        tried,
    ];
    let control = start(&policies.concat(), Options::default()).await;
    let (server, address) = serve(&control).await;
    for (path, status) in [("/new", 200), ("/new/secret", 403), ("/new/secret", 403), ("/else", 403), ("/old", 200)] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut stream, &get(path)).await.0, status, "{path}");
    }
    let text = server.prometheus();
    let count = |rule: &str, decision: &str| {
        let start = format!("mesh_policy_decisions_total{{rule=\"{rule}\",decision=\"{decision}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map(|count| count.parse::<u64>().unwrap())
    };
    let of = |name: &str| format!("AuthorizationPolicy/shop/{name}");
    assert_eq!(count(&of("shut#1"), "denied"), Some(2), "{text}");
    assert_eq!(count("none", "denied"), Some(1));
    assert_eq!((count(&of("try#0"), "would_deny"), count("none", "would_allow")), (Some(1), Some(4)));
    assert_eq!(count(&of("told#0"), "audited"), Some(1));
    assert_eq!(count(&of("open#0"), "denied"), None);
}

/// Only where somebody may be refused, doubt is a reason to refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_tells_of_requests_refuses_no_form_of_them() {
    let tried = policy("{rules: [{to: [{operation: {paths: [/b]}}]}]}")
        .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let audited = policy("{action: AUDIT, rules: [{to: [{operation: {paths: [/b]}}]}]}");
    for (policies, expected) in [(String::new(), 200), (tried, 200), (audited, 200), (policy("{rules: [{}]}"), 400)] {
        check_all(&policies, &[("/a/..;/b", expected), ("/a%2Fb", expected), ("/b", 200)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_and_paths() {
    let method = |method: &str| format!("{method} / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 0");
    let (delete, post) = (method("DELETE"), method("POST"));
    check_rule(&to("methods: [DELETE]"), &[&delete], &["/", &post]).await;
    check_rule(&to("methods: ['*']"), &[&delete, "/"], &[]).await;
    check_rule(&to("notMethods: [DELETE]"), &["/", &post], &[&delete]).await;
    // A21: never a way around.
    check_all(
        &policy("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}"),
        &[(&method("delete"), 400)],
    )
    .await;
    // A3, A4.
    let admin = ["/admin", "/admin?x", "/admin?", "/admin#x"];
    check_rule(&to("paths: [/admin]"), &admin, &["/", "/admin/", "/?/admin"]).await;
    check_rule(&to("notPaths: [/admin]"), &["/", "/admin/"], &admin).await;
    check_rule(&to("paths: [/admin*, '*.css']"), &["/admin", "/administrator", "/a.css", "/b/.css?x"], &["/", "/a"])
        .await;
    check_rule(&to("paths: ['*']"), &["/", "/a"], &[]).await;
    // A7.
    check_rule(&to("paths: ['/a/{*}/c']"), &["/a/b/c", "/a/*/c", "/a/b*/c"], &["/a/c", "/a//c", "/a/b/b/c"]).await;
    check_rule(&to("paths: ['/a/{**}']"), &["/a/b", "/a/b/c", "/a/"], &["/", "/b/a"]).await;
    check_rule(
        &to("paths: [/a], methods: [GET]"),
        &["/a"],
        &["/", "POST /a HTTP/1.1\r\nhost: reviews\r\ncontent-length: 0"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_and_headers() {
    let host = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}");
    // A9.
    let hosts = ["reviews", "REVIEWS", "reviews.", "reviews:80", "Reviews.:80", "reviews:"].map(host);
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let (other, below) = (host("ratings"), host("a.reviews:80"));
    check_rule(&to("hosts: [reviews]"), &hosts, &[&other, &below]).await;
    check_rule(&to("notHosts: [reviews]"), &[&other, &below], &hosts).await;
    check_rule(&to("hosts: ['*.Reviews']"), &[&below], &[&other, "/"]).await;
    check_rule(&to("hosts: ['rev*']"), &hosts, &[&other]).await;
    check_rule(&when("request.headers[host]", "values: [reviews]"), &hosts, &[&other]).await;
    // A12: the name of a header has no case.
    let role = |values: &[&str]| {
        let lines: String = values.iter().map(|value| format!("\r\nx-role: {value}")).collect();
        get("/") + &lines
    };
    let (admin, user, none) = (role(&["admin"]), role(&["user"]), role(&[]));
    check_rule(&when("request.headers[X-Role]", "values: [admin]"), &[&admin], &[&user, &none]).await;
    check_rule(&when("request.headers[x-role]", "values: ['ad*', '*er']"), &[&admin, &user], &[&none]).await;
    check_rule(&when("request.headers[x-role]", "values: ['*']"), &[&admin, &user], &[&none]).await;
    check_rule(&when("request.headers[x-role]", "notValues: [admin]"), &[&user, &none], &[&admin]).await;
    check_rule(&when("request.headers[x-role]", "notValues: ['*']"), &[&none], &[&admin]).await;
    // A11: in doubt nobody is let in.
    let both = role(&["user", "admin"]);
    for (action, value) in [("DENY", "admin"), ("DENY", "user"), ("ALLOW", "user"), ("ALLOW", "admin")] {
        let rule = when("request.headers[x-role]", &format!("values: [{value}]"));
        check_all(&policy(&format!("{{action: {action}, rules: [{rule}]}}")), &[(&both, 403)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_and_addresses() {
    let everything: [(&str, &[&str], &[&str]); 6] = [
        ("ports", &["9080"], &["80", "1"]),
        ("ipBlocks", &["127.0.0.0/8", "127.0.0.1"], &["10.0.0.0/8", "::/0"]),
        ("remoteIpBlocks", &["127.0.0.0/8"], &["10.0.0.0/8"]),
        ("source.ip", &["127.0.0.1"], &["10.0.0.1"]),
        ("destination.ip", &["127.0.0.1"], &["10.0.0.1"]),
        ("destination.port", &["9080"], &["80"]),
    ];
    for (field, fitting, other) in everything {
        let rule = |is_negated: bool, value: &str| {
            let negated = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
            let name = if is_negated { &negated } else { field };
            match field {
                "ports" => to(&format!("{name}: ['{value}']")),
                _ if field.contains('.') => {
                    when(field, &format!("{}: ['{value}']", if is_negated { "notValues" } else { "values" }))
                }
                _ => from(&format!("{name}: ['{value}']")),
            }
        };
        for value in fitting {
            check_rule(&rule(false, value), &["/"], &[]).await;
            check_rule(&rule(true, value), &[], &["/"]).await;
        }
        for value in other {
            check_rule(&rule(false, value), &[], &["/"]).await;
            check_rule(&rule(true, value), &["/"], &[]).await;
        }
    }
    check_rule(&when("connection.sni", "values: [reviews]"), &[], &["/"]).await;
    check_rule(&when("connection.sni", "notValues: [reviews]"), &["/"], &[]).await;
}

/// Hazard A25.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a25_in_plaintext_nobody_is_known_and_nobody_is_let_in_for_not_being_somebody() {
    for (field, value) in [
        ("principals", "cluster.local/ns/shop/sa/web"),
        ("principals", "*"),
        ("namespaces", "shop"),
        ("serviceAccounts", "shop/web"),
        ("trustDomains", "cluster.local"),
    ] {
        let negated = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
        check_rule(&from(&format!("{field}: ['{value}']")), &[], &["/"]).await;
        for action in ["ALLOW", "DENY"] {
            let rule = from(&format!("{negated}: ['{value}']"));
            check_all(&policy(&format!("{{action: {action}, rules: [{rule}]}}")), &[("/", 403)]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_mutual_tls_a_peer_is_known_by_every_part_of_its_name() {
    let dev = || Options::default().dev();
    // Each fits `web` of the namespace `shop`, and not `guest` of `other`.
    for (field, value) in [
        ("principals", "cluster.local/ns/shop/sa/web"),
        ("principals", "cluster.local/ns/shop/*"),
        ("principals", "*/sa/web"),
        ("namespaces", "shop"),
        ("namespaces", "sh*"),
        ("namespaces", "*op"),
        ("serviceAccounts", "shop/web"),
        ("serviceAccounts", "web"),
        ("source.principal", "cluster.local/ns/shop/sa/web"),
        ("source.namespace", "shop"),
        ("source.serviceAccount", "shop/web"),
    ] {
        let rule = |is_negated: bool| match field.contains('.') {
            true => when(field, &format!("{}: ['{value}']", if is_negated { "notValues" } else { "values" })),
            false if is_negated => from(&format!("not{}{}: ['{value}']", field[..1].to_uppercase(), &field[1..])),
            false => from(&format!("{field}: ['{value}']")),
        };
        for (action, is_negated, web, guest) in
            [("ALLOW", false, 200, 403), ("DENY", false, 403, 200), ("ALLOW", true, 403, 200), ("DENY", true, 200, 403)]
        {
            let policies = policy(&format!("{{action: {action}, rules: [{}]}}", rule(is_negated)));
            let control = start(&policies, dev()).await;
            let (_server, _) = serve(&control).await;
            for (account, namespace, expected) in [("web", "shop", web), ("guest", "other", guest)] {
                let client = mesh(&control, account, namespace);
                let response = client.client().get("http://reviews.shop/").await.unwrap();
                assert_eq!(response.status(), expected, "{account} under {policies}");
            }
        }
    }
    let control = start(&policy(&format!("{{rules: [{}]}}", from("trustDomains: [cluster.local]"))), dev()).await;
    let (_server, _) = serve(&control).await;
    let response = mesh(&control, "web", "shop").client().get("http://reviews.shop/").await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_is_refused_has_grpcs_status() {
    let control = start(&policy("{}"), Options::default()).await;
    let (_server, _) = serve(&control).await;
    let client = mesh(&control, "web", "shop");
    let call = http::Request::post("http://reviews.shop/a.B/C").header("content-type", "application/grpc");
    let response = client.client().request(call.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap();
    assert_eq!((response.status().as_u16(), header("grpc-status")), (200, "7"));
    assert_eq!(header("grpc-message"), "RBAC: access denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_live_connection_sees_the_policy_of_its_moment() {
    let control = start("", Options::default()).await;
    let (_server, address) = serve(&control).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut stream, &get("/")).await.0, 200);
    for (policies, expected) in [(policy("{}"), 403), (policy("{rules: [{}]}"), 200), (policy("{action: ALLOW}"), 403)]
    {
        control.set_yaml("policy.yaml", &policies).unwrap();
        let settled = async {
            while ask(&mut stream, &get("/")).await.0 != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the policy is in force");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h10_what_is_left_of_a_body_that_was_refused_unread_is_no_request() {
    let control = start(&policy(&format!("{{rules: [{}]}}", to("paths: [/open]"))), Options::default()).await;
    let (_server, address) = serve(&control).await;
    let smuggled = format!("{}\r\n\r\n", get("/open"));
    let shut = format!("{}\r\nconnection: close\r\n\r\n", get("/open"));
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    // All of the body, which is read and forgotten, or too much of it, whose end nobody waits for.
    for (framing, body) in [
        (format!("content-length: {}", smuggled.len()), smuggled.clone()),
        ("transfer-encoding: chunked".to_owned(), chunked),
        (format!("content-length: {}", 1_u64 << 40), smuggled.clone()),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST /closed HTTP/1.1\r\nhost: reviews\r\n{framing}\r\n\r\n");
        stream.write_all(format!("{head}{body}{shut}").as_bytes()).await.unwrap();
        let mut answers = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answers));
        _ = read.await.expect("the connection ends");
        let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        // The request behind it is answered or not, and the body never is.
        assert!(matches!(statuses[..], ["403"] | ["403", "200"]), "{framing}: {answers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_enforced_is_enforced_whatever_else_is_allowed_not_to_be() {
    let lax = Options::default().plane(PlaneOptions::default().allow_unenforced(true));
    let control = start(&policy("{action: DENY, rules: [{}]}"), lax).await;
    let (_server, _) = serve(&control).await;
    let response = mesh(&control, "web", "shop").client().get("http://reviews.shop/").await.unwrap();
    assert_eq!(response.status(), 403);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"RBAC: access denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_is_wrong_or_asks_for_what_nobody_looks_at_lets_nobody_in_and_says_why() {
    for (spec, why) in [
        (format!("{{action: DENY, rules: [{}]}}", from("ipBlocks: [shop]")), "is not an address or a CIDR block"),
        (format!("{{rules: [{}]}}", from("principals: []")), "an empty list"),
        (format!("{{rules: [{}]}}", to("ports: [http]")), "is not a port"),
        ("{rules: [{from: []}]}".to_owned(), "an empty list"),
        ("{rules: [{to: [{operation: {}}]}]}".to_owned(), "says nothing"),
        (format!("{{rules: [{}]}}", to("hosts: ['a*b']")), "a wildcard stands at"),
        (format!("{{rules: [{}]}}", to("paths: ['/{**}/{*}']")), "there are literals only"),
        (format!("{{rules: [{}]}}", when("source.ipp", "values: [a]")), "is not a key of Istio's"),
        (format!("{{rules: [{}]}}", when("request.headers[grpc-status]", "values: [a]")), "is not for policies"),
        (format!("{{rules: [{}]}}", when("request.headers[a]", "")), "is needed"),
        (format!("{{rules: [{}]}}", when("experimental.envoy.filters.a[b]", "values: [a]")), "not looked at"),
        (
            format!("{{rules: [{}]}}", when("request.auth.claims[a][", "values: [a]")),
            "is not request.auth.claims[NAME]",
        ),
        ("{action: CUSTOM, provider: {name: opa}, rules: [{}]}".to_owned(), "no extension provider `opa`"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), format!("{REVIEWS}{}", policy(&spec))).unwrap();
        let control = Embedded::start(Config::dir(dir.path()), Options::default()).await.unwrap();
        let (_server, address) = serve(&control).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (status, body) = ask(&mut stream, &get("/")).await;
        assert_eq!(status, 503, "{spec}: {body}");
        assert!(body.contains(why) && body.contains("AuthorizationPolicy shop/p"), "{spec}: {body}");
    }
}

/// Who rewrites is a client; the server decides on the path that it gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a24_a_rewrite_to_a_denied_path_is_denied_by_the_server_that_gets_it() {
    const REWRITE: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
        metadata: {name: v, namespace: shop}\nspec:\n  hosts: [reviews]\n  http:\n\
        \x20 - {match: [{uri: {prefix: /public}}], rewrite: {uri: /admin}, route: [{destination: {host: reviews}}]}\n\
        \x20 - {route: [{destination: {host: reviews}}]}\n";
    let deny = policy("{action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}");
    let control = start(&(deny + REWRITE), Options::default()).await;
    let (_server, _) = serve(&control).await;
    let client = mesh(&control, "client", "shop").client();
    for (path, expected) in [("/public", 403), ("/public/x", 403), ("/admin", 403), ("/other", 200)] {
        let status = async {
            loop {
                // The client may not have heard of the server yet.
                match client.get(format!("http://reviews.shop{path}")).await {
                    Ok(response) => return response.status().as_u16(),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let status = tokio::time::timeout(Duration::from_secs(20), status).await.expect("an answer");
        assert_eq!(status, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a19_no_policy_is_met_by_a_header_that_only_a_proxy_may_set() {
    let rule = |name: &str| {
        policy(&format!("{{action: ALLOW, rules: [{{when: [{{key: 'request.headers[{name}]', values: ['yes']}}]}}]}}"))
    };
    for (name, expected) in [("x-envoy-internal", 403), ("x-forwarded-client-cert", 403), ("x-other", 200)] {
        check_all(&rule(name), &[(&format!("{}\r\n{name}: yes", get("/")), expected)]).await;
    }
}
