//! Faults that somebody planted, each followed by `mesh-control trace` over real sockets: what is said first has to name it.
//!
//! One mesh has nearly all of them, each behind a host or a path of its own, since starting a mesh takes longer than asking it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use mesh_control::embedded::Config;
use mesh_control::live_trace::{Traced, Wanted};
use mesh_tower::body::Body;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::followed::World;
use crate::support::{mesh_settings, nobody};
use crate::upstream::PATIENCE;

/// What happens before the request that is followed.
enum Before {
    Nothing,
    /// So many requests like it are made.
    Calls(usize),
    /// A request to the same host is under way, and stays so.
    Hanging,
    /// It is made until the endpoint is ejected.
    Ejected,
}

/// What is planted, what is asked for, and what the first cause has to name.
struct Case {
    planted: &'static str,
    before: Before,
    uri: String,
    headers: &'static [(&'static str, &'static str)],
    expected: Vec<String>,
}

/// All that one mesh has.
#[derive(Default)]
struct Plot {
    yaml: String,
    cases: Vec<Case>,
}

impl Plot {
    fn write(&mut self, yaml: &str) {
        self.yaml += yaml;
    }

    /// A request to `host/path`, and what has to be said of it first.
    fn ask(&mut self, planted: &'static str, uri: &str, expected: &[&str]) -> &mut Case {
        let expected = expected.iter().map(|part| (*part).to_owned()).collect();
        let uri = format!("http://{uri}");
        self.cases.push(Case { planted, before: Before::Nothing, uri, headers: &[], expected });
        self.cases.last_mut().expect("it is there")
    }

    /// A host of its own with these rules, for whose requests the application `reviews` is there.
    fn routed(&mut self, planted: &'static str, host: &str, path: &str, http: &str, expected: &[&str]) -> &mut Case {
        self.write(&shelf(host));
        self.write(&virtual_service(host, http));
        self.ask(planted, &format!("{host}{path}"), expected)
    }

    /// A host outside of the mesh, which is this server.
    fn outside(&mut self, planted: &'static str, host: &str, at: SocketAddr, expected: &[&str]) -> &mut Case {
        self.write(&entry(host, Some(at)));
        self.ask(planted, &format!("{host}/"), expected)
    }

    /// A policy that selects `reviews`, and what it says of itself.
    fn refused(&mut self, planted: &'static str, name: &str, rule: &str, expected: &[&str]) -> &mut Case {
        self.write(&format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: reviews}}}}, action: DENY, rules: [{rule}]}}\n"
        ));
        self.ask(planted, &format!("reviews/{name}"), expected)
    }
}

impl Case {
    fn after(&mut self, before: Before) -> &mut Case {
        self.before = before;
        self
    }

    fn with(&mut self, headers: &'static [(&'static str, &'static str)]) {
        self.headers = headers;
    }

    /// What is wrong with what is said of it.
    async fn fault(&self, world: &World) -> Option<String> {
        let is_about = |cluster: &str| self.uri.split('/').nth(2).is_some_and(|host| cluster.contains(host));
        let endpoints = || world.web.endpoints().into_iter().filter(|one| is_about(one.cluster.as_str()));
        let mut hanging = None;
        match self.before {
            Before::Nothing => {}
            Before::Calls(count) => {
                for _ in 0..count {
                    world.get(&self.uri, self.headers).await;
                }
            }
            Before::Hanging => {
                let request = Request::get(&self.uri).body(Body::empty()).unwrap();
                let before = world.hanging.load(Ordering::Relaxed);
                hanging = Some(tokio::spawn(world.web.client().request(request)));
                let is_there = async {
                    // It has its place at the server, and not only on its way there.
                    while world.hanging.load(Ordering::Relaxed) == before {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(PATIENCE, is_there).await.expect("it is under way");
            }
            Before::Ejected => {
                let is_out = async {
                    while !endpoints().any(|one| one.is_ejected) {
                        world.get(&self.uri, self.headers).await;
                    }
                };
                tokio::time::timeout(PATIENCE, is_out).await.expect("it is ejected");
            }
        }
        let traced = world.follow(Wanted::to("").from("shop/web"), &self.uri, self.headers).await;
        if let Some(hanging) = hanging {
            hanging.abort();
        }
        let first = self.first(&traced);
        let is_named = self.expected.iter().all(|part| first.contains(part));
        (!is_named).then(|| format!("{}: {:?} in\n{traced}", self.planted, self.expected))
    }

    /// The first cause, on a machine that has time for other things: of what took long only where that is expected.
    fn first<'t>(&self, traced: &'t Traced) -> &'t str {
        let is_slow = self.expected.iter().any(|part| part.ends_with(" took"));
        let is_meant = |cause: &&String| is_slow || !cause.contains(" took ");
        traced.causes.iter().find(is_meant).map_or("", String::as_str)
    }
}

/// A service that `reviews` answers for.
fn shelf(host: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 80}}]}}\n"
    )
}

fn virtual_service(host: &str, http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec:\n  hosts: [{host}]\n  http:\n{http}"
    )
}

fn destination_rule(host: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec: {{host: {host}, {spec}}}\n"
    )
}

fn entry(host: &str, at: Option<SocketAddr>) -> String {
    let endpoint = at.map(|at| format!("{{address: {}, ports: {{http: {}}}}}", at.ip(), at.port()));
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {host}, namespace: shop}}\n\
         spec: {{hosts: [{host}], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{}]}}\n",
        endpoint.unwrap_or_default()
    )
}

/// A server that does this with each connection, for as long as the test lasts.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    at
}

/// One that answers so, after a while.
async fn answering(answer: &'static str, after: Duration) -> SocketAddr {
    server(move |mut stream| async move {
        let mut head = [0; 4096];
        while matches!(stream.read(&mut head).await, Ok(1..)) {
            tokio::time::sleep(after).await;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// One whose certificate ended long ago, and the root that has signed it.
async fn expired(host: &str) -> (SocketAddr, String) {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_key = KeyPair::generate().unwrap();
    let pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::new(root, root_key);
    let mut leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2020, 2, 1);
    let key = KeyPair::generate().unwrap();
    let chain = leaf.signed_by(&key, &issuer).unwrap().pem();
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
    let at = server(move |stream| {
        let accepted = acceptor.accept(stream);
        async move { _ = accepted.await }
    });
    (at.await, pem)
}

/// Asks for all of them, one after the other.
async fn reveal(plot: &Plot, config: Config) {
    let world = World::start_from(config).await;
    let mut wrong = Vec::new();
    for case in &plot.cases {
        wrong.extend(case.fault(&world).await);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), plot.cases.len(), wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_route_is_the_first_thing_that_is_said() {
    let mut plot = Plot::default();
    let to = |host: &str| format!("    route: [{{destination: {{host: {host}}}}}]\n");
    plot.routed(
        "a weight that is wrong",
        "weight",
        "/x",
        "  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 100}\n    - {destination: {host: reviews, subset: v9}, weight: 0}\n",
        &["sends it to outbound|80|v1|reviews", "VirtualService shop/weight http[0]"],
    );
    plot.routed(
        "a subset without endpoints",
        "dead",
        "/x",
        "  - route: [{destination: {host: reviews, subset: v9}}]\n",
        &["no endpoint can take it", "|v9|reviews", "config.yaml:"],
    );
    plot.routed(
        "a subset that nothing defines",
        "undefined",
        "/x",
        "  - route: [{destination: {host: reviews, subset: v7}}]\n",
        &["v7", "VirtualService shop/undefined http[0]"],
    );
    let only = format!("  - match: [{{uri: {{prefix: /v2}}}}]\n{}", to("norule"));
    plot.routed("no rule for the request", "norule", "/x", &only, &["no route takes it"]);
    for (planted, host, condition) in [
        ("a header that nobody sends", "header", "headers: {end-user: {exact: jason}}"),
        ("a method that nobody uses", "method", "method: {exact: PUT}"),
        ("a query that is another one", "query", "queryParams: {v: {exact: '2'}}"),
        ("a path that is misspelt", "prefix", "uri: {prefix: /revews}"),
        ("an expression that does not fit", "regex", "uri: {regex: '/[0-9]+'}"),
        ("labels that the caller does not have", "labels", "sourceLabels: {app: shop}"),
    ] {
        let rules = format!("  - match: [{{{condition}}}]\n{}  - directResponse: {{status: 404}}\n", to(host));
        let expected = ["the route answers 404 itself", &format!("VirtualService shop/{host} http[1]")];
        plot.routed(planted, host, "/reviews/x", &rules, &expected);
    }
    let shadowed =
        format!("  - directResponse: {{status: 410}}\n  - match: [{{uri: {{prefix: /x}}}}]\n{}", to("shadow"));
    plot.routed(
        "a rule that another one goes before",
        "shadow",
        "/x",
        &shadowed,
        &["the route answers 410 itself", "VirtualService shop/shadow http[0]"],
    );
    let rewritten =
        format!("  - match: [{{uri: {{exact: /there}}}}]\n    rewrite: {{uri: /missing}}\n{}", to("rewrite"));
    plot.routed(
        "a path that is rewritten wrongly",
        "rewrite",
        "/there",
        &rewritten,
        &[
            "shop/reviews-v1 answered 404",
            "to /missing, which is made of /there",
            "VirtualService shop/rewrite http[0]",
        ],
    );
    plot.routed(
        "a redirect",
        "redirect",
        "/x",
        "  - redirect: {uri: /y}\n",
        &["the route redirects it", "VirtualService shop/redirect http[0]"],
    );
    plot.routed(
        "an answer of the route's own",
        "direct",
        "/x",
        "  - directResponse: {status: 404, body: {string: gone}}\n",
        &["the route answers 404 itself (gone)", "VirtualService shop/direct http[0]"],
    );
    plot.routed(
        "a rule whose delegate is none",
        "delegate",
        "/x",
        "  - delegate: {name: nobody}\n",
        &["the route answers 503 itself", "nobody", "VirtualService shop/delegate http[0]"],
    );
    let timeout = format!("  - timeout: 300ms\n{}", to("late"));
    plot.routed(
        "a timeout that is too short",
        "late",
        "/hang",
        &timeout,
        &["the application of shop/reviews-v1", "had not answered", "300ms"],
    );
    let tries = format!("  - retries: {{attempts: 1, perTryTimeout: 100ms}}\n    timeout: 1s\n{}", to("try"));
    plot.routed("a try's time that is too short", "try", "/hang", &tries, &["reviews-v1", "gives each try 100ms"]);
    let again = format!("  - retries: {{attempts: 2, retryOn: 5xx}}\n{}", to("again"));
    plot.routed(
        "retries that were all used",
        "again",
        "/broken",
        &again,
        &["the application of shop/reviews-v1 answered 500"],
    );
    let delay = format!("  - fault: {{delay: {{fixedDelay: 150ms, percentage: {{value: 100}}}}}}\n{}", to("delay"));
    plot.routed(
        "a delay that is injected",
        "delay",
        "/x",
        &delay,
        &["delayed by a fault that is injected", "VirtualService shop/delay"],
    );
    let abort = format!("  - fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n{}", to("abort"));
    plot.routed(
        "a fault that is injected",
        "abort",
        "/x",
        &abort,
        &["a fault that is injected answered 418", "VirtualService shop/abort http[0]"],
    );
    plot.routed(
        "a port that the service does not have",
        "port",
        "/x",
        "  - route: [{destination: {host: reviews, port: {number: 81}}}]\n",
        &["81", "VirtualService shop/port http[0]"],
    );
    plot.routed(
        "a destination that nothing describes",
        "typo",
        "/x",
        "  - route: [{destination: {host: revews}}]\n",
        &["revews", "VirtualService shop/typo http[0]"],
    );
    for (planted, host, rules) in [
        ("a route of Gateway API to nobody", "gapi", "backendRefs: [{name: nobody, port: 80}]"),
        (
            "a filter of Gateway API that nobody has",
            "gfilter",
            "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}], backendRefs: [{name: reviews, port: 80}]",
        ),
        ("a backend that nobody grants", "grant", "backendRefs: [{name: vault, namespace: bank, port: 80}]"),
    ] {
        plot.write(&shelf(host));
        plot.write(&format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {host}, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: {host}}}], rules: [{{{rules}}}]}}\n"
        ));
        plot.ask(planted, &format!("{host}/x"), &["the route answers 500 itself", &format!("HTTPRoute shop/{host}")]);
    }
    plot.write(&virtual_service(
        "ratings",
        &format!(
            "  - match: [{{uri: {{prefix: /fault}}}}]\n    fault: {{abort: {{httpStatus: 503, percentage: {{value: 100}}}}}}\n{}{}",
            to("ratings"),
            format_args!("  - {}", to("ratings").trim_start())
        ),
    ));
    plot.ask(
        "a fault two hops away",
        "reviews/stars/fault",
        &["a fault that is injected answered 503", "VirtualService shop/ratings http[0]"],
    );
    let config = Config::yaml(plot.yaml.clone());
    reveal(&plot, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_or_does_not_answer_is_the_first_thing_that_is_said() {
    let mut plot = Plot::default();
    let dir = tempfile::tempdir().unwrap();
    plot.outside("an endpoint that is not there", "gone.example.com", nobody().await, &["refused"]);
    let closing = server(|stream| async move { drop(stream) }).await;
    plot.outside("an endpoint that closes", "closing.example.com", closing, &["closing.example.com", "connection"]);
    let garbage = answering("SSH-2.0-OpenSSH_9.2\r\n\r\n", Duration::ZERO).await;
    plot.outside("an endpoint that speaks no HTTP", "ssh.example.com", garbage, &["ssh.example.com", "HTTP"]);
    let silent = server(|stream| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(stream);
    });
    plot.outside(
        "an endpoint that is silent",
        "silent.example.com",
        silent.await,
        &["had not answered after", "300ms"],
    );
    let timeout = "  - timeout: 300ms\n    route: [{destination: {host: silent.example.com}}]\n";
    plot.write(&virtual_service("silent.example.com", timeout));
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let slow = answering(ok, Duration::from_millis(300)).await;
    plot.outside("an endpoint that is slow", "slow.example.com", slow, &["endpoint 127.0.0.1", " took"]);
    let failing = answering("HTTP/1.1 502 Bad\r\ncontent-length: 0\r\n\r\n", Duration::ZERO).await;
    plot.outside("an endpoint that fails", "failing.example.com", failing, &["endpoint 127.0.0.1", "answered 502"]);
    let half = answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", Duration::ZERO).await;
    plot.outside(
        "a plaintext endpoint that is called by mutual TLS",
        "plain.example.com",
        half,
        &["plain.example.com"],
    );
    plot.write(&destination_rule("plain.example.com", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"));
    let (ended, root) = expired("expired.example.com").await;
    let file = dir.path().join("root.pem");
    std::fs::write(&file, root).unwrap();
    plot.outside("a certificate that has expired", "expired.example.com", ended, &["expired.example.com", "expired"]);
    plot.write(&destination_rule(
        "expired.example.com",
        &format!("trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}", file.display()),
    ));
    plot.write(&entry("empty.example.com", None));
    plot.ask("a service without endpoints", "empty.example.com/", &["no endpoint can take it", "there is none"]);
    plot.write(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: dns, namespace: shop}\n\
         spec: {hosts: [dns.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: nowhere.invalid}]}\n",
    );
    plot.ask("a name that is not found", "dns.example.com/", &["nowhere.invalid"]);
    plot.write("---\napiVersion: v1\nkind: Service\nmetadata: {name: ghost, namespace: shop}\nspec: {selector: {app: ghost}, ports: [{name: http, port: 80}]}\n");
    plot.ask("a service that selects nobody", "ghost/", &["no endpoint can take it", "there is none"]);
    plot.ask("a host that nobody knows", "nowhere.shop.svc.cluster.local/", &["nowhere"]);
    for (planted, host, tls, expected) in [
        ("plaintext to a server that speaks TLS alone", "disable", "mode: DISABLE", "connection"),
        (
            "a name that the server does not have",
            "names",
            "mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/other']",
            "sa/other",
        ),
        (
            "a file of a certificate that is not there",
            "files",
            "mode: MUTUAL, caCertificates: /nowhere/ca.pem, clientCertificate: /nowhere/c.pem, privateKey: /nowhere/k.pem",
            "/nowhere/",
        ),
        ("TLS without a name to ask for", "simple", "mode: SIMPLE", "simple"),
    ] {
        plot.write(&shelf(host));
        plot.write(&destination_rule(host, &format!("trafficPolicy: {{tls: {{{tls}}}}}")));
        plot.ask(planted, &format!("{host}/x"), &[&format!("outbound|80||{host}.shop"), expected]);
    }
    plot.write(&shelf("full"));
    plot.write(&destination_rule("full", "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}"));
    plot.ask("a limit that is too small", "full/hang", &["a limit of the cluster", "max_requests", "config.yaml:"])
        .after(Before::Hanging);
    plot.write(&shelf("ejected"));
    plot.write(&destination_rule(
        "ejected",
        "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2, interval: 50ms, baseEjectionTime: 1h, maxEjectionPercent: 100}}",
    ));
    plot.ask("an endpoint that is ejected", "ejected/broken", &["no endpoint can take it", "ejected"])
        .after(Before::Ejected);
    let config = Config::yaml(plot.yaml.clone());
    reveal(&plot, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refuses_a_request_or_fails_it_is_the_first_thing_that_is_said() {
    let mut plot = Plot::default();
    let refuses = |name: &str| format!("AuthorizationPolicy/shop/{name}#0 refuses");
    for (planted, name, rule) in [
        ("a policy that refuses a path", "path", "{to: [{operation: {paths: [/path]}}]}"),
        ("a policy that refuses a method", "get", "{to: [{operation: {paths: [/get], methods: [GET]}}]}"),
        (
            "a policy that refuses a namespace",
            "space",
            "{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/space]}}]}",
        ),
        (
            "a policy that refuses all accounts but one",
            "others",
            "{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/root]}}], to: [{operation: {paths: [/others]}}]}",
        ),
        (
            "a policy that wants a token",
            "token",
            "{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {paths: [/token]}}]}",
        ),
        ("a policy on hosts", "host", "{to: [{operation: {paths: [/host], hosts: [reviews]}}]}"),
        (
            "a policy on addresses",
            "address",
            "{from: [{source: {ipBlocks: [127.0.0.0/8]}}], to: [{operation: {paths: [/address]}}]}",
        ),
    ] {
        plot.refused(planted, name, rule, &[&refuses(name), "sa/web"]);
    }
    let guest = "{to: [{operation: {paths: [/role]}}], when: [{key: 'request.headers[x-role]', values: [guest]}]}";
    plot.refused("a policy that refuses a header", "role", guest, &[&refuses("role"), "sa/web"])
        .with(&[("x-role", "guest")]);
    plot.write(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: ratings}}\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]\n  \
         - to: [{operation: {notPaths: [/closed]}}]\n",
    );
    plot.ask(
        "a policy that lets in others",
        "reviews/stars/closed",
        &["no policy lets in", "sa/reviews", "ratings-v1"],
    );
    plot.write(&mesh_settings(
        "extensionProviders:\n- name: gate\n  envoyExtAuthzHttp: {service: gate.example.com, port: 80}\n",
    ));
    plot.write(&entry("gate.example.com", Some(nobody().await)));
    plot.write(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: gate, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, action: CUSTOM, provider: {name: gate}, rules: [{to: [{operation: {paths: [/gate]}}]}]}\n",
    );
    plot.ask(
        "an authorizer that is not there",
        "reviews/gate",
        &["reviews-v1 answered 403: an authorizer gave no answer", "refused"],
    );
    plot.write(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: tokens, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}'}]}\n",
    );
    plot.ask("a token that is none", "reviews/x", &["reviews-v1 answered 401", "Jwt"])
        .with(&[("authorization", "Bearer x.y.z")]);
    // {"alg":"EdDSA"} {"iss":"b"}
    plot.ask("a token of another issuer", "reviews/x", &["reviews-v1 answered 401", "issuer"])
        .with(&[("authorization", "Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJiIn0.AAAA")]);
    plot.write(
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RequestRules\nmetadata: {name: closed, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, rules: [{name: nobody, when: \"request.url_path == '/rule'\", deny: {}}]}\n",
    );
    plot.ask(
        "a rule on requests that refuses",
        "reviews/rule",
        &["shop/reviews-v1 answered 403 before its application: request_rule[nobody]"],
    );
    let limit = |name: &str, more: &str| {
        format!(
            "---\napiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{{more}, rules: [{{name: all, match: {{path: /{name}}}, limit: {{requests: 1, per: 1h}}}}]}}\n"
        )
    };
    plot.write(&limit("limited", "selector: {matchLabels: {app: reviews}}"));
    plot.ask("a limit that is used up", "reviews/limited", &["shop/reviews-v1 answered 429", "limited", "rule all"])
        .after(Before::Calls(1));
    plot.write(&limit("own", "selector: {matchLabels: {app: web}}, mode: CLIENT"));
    plot.ask("a client's own limit", "reviews/own", &["answered 429", "own", "rule all"]).after(Before::Calls(1));
    for (planted, path, expected) in [
        ("an application that is broken", "/broken", "the application of shop/reviews-v1 answered 500"),
        ("an application that does not know the path", "/missing", "the application of shop/reviews-v1 answered 404"),
        ("an application that has enough", "/busy", "the application of shop/reviews-v1 answered 429"),
        ("an application that cuts its answer", "/cut", "the answer of shop/reviews-v1 ended too early"),
        ("an application that panics", "/panic", "shop/reviews-v1 has the request, and gave no answer"),
        (
            "an application two hops away that is broken",
            "/stars/broken",
            "the application of shop/ratings-v1 answered 500",
        ),
    ] {
        plot.ask(planted, &format!("reviews{path}"), &[expected]);
    }
    plot.ask("an application that is slow", "reviews/slow", &["the application of shop/reviews-v1", " took"]);
    plot.ask("one two hops away that is slow", "reviews/stars/slow", &["the application of shop/ratings-v1", " took"]);
    plot.write(&shelf("patient"));
    plot.write(&virtual_service("patient", "  - timeout: 300ms\n    route: [{destination: {host: patient}}]\n"));
    plot.ask(
        "one two hops away that hangs",
        "patient/stars/hang",
        &["the application of shop/ratings-v1 had not answered shop/reviews-v1", "300ms"],
    );
    let config = Config::yaml(plot.yaml.clone());
    reveal(&plot, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_wrong_or_hide_others_are_the_first_thing_that_is_said() {
    let mut plot = Plot::default();
    plot.write(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: wrong, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: ratings}}, acton: DENY}\n",
    );
    plot.ask(
        "a policy that is wrong",
        "reviews/stars",
        &["shop/ratings-v1 answered 503, as its configuration says", "AuthorizationPolicy shop/wrong"],
    );
    plot.write(&shelf("broken"));
    plot.write(&virtual_service("broken", "  - rout: [{destination: {host: broken}}]\n"));
    plot.ask("a VirtualService that is wrong", "broken/x", &["VirtualService", "broken", "route"]);
    plot.write(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: web, namespace: shop}\n\
         spec: {workloadSelector: {labels: {app: web}}, egress: [{hosts: ['*/reviews.shop.svc.cluster.local', '*/ratings.shop.svc.cluster.local', '*/broken.shop.svc.cluster.local', '*/busy.shop.svc.cluster.local']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n",
    );
    plot.write(&shelf("hidden"));
    plot.ask("a Sidecar that hides a service", "hidden.shop.svc.cluster.local/x", &["REGISTRY_ONLY", "hidden.shop"]);
    plot.ask(
        "a host outside that nobody allows",
        "elsewhere.example.com/x",
        &["REGISTRY_ONLY", "elsewhere.example.com"],
    );
    plot.write(
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: Overload\nmetadata: {name: small, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: reviews}}, concurrency: {max: 1}}\n",
    );
    plot.write(&shelf("busy"));
    plot.ask(
        "a server that has no place",
        "busy/hang",
        &["shop/reviews-v1 answered 503 before its application", "reached_concurrency_limit"],
    )
    .after(Before::Hanging);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("planted.yaml"), format!("{}{}", crate::followed::SERVICES, plot.yaml)).unwrap();
    reveal(&plot, Config::dir(dir.path())).await;
}
