//! Who is let in where `mesh-gateway` looks into nothing: policies decide on the connection alone, from YAML to sockets.

use mesh_core::testing::TokenIssuer;

use super::gateway::Gateway;
use super::gateway_api::{
    EDGE, control, free_port, gateway_of_bytes, local, object, route_of_bytes, secret, service_of_bytes,
};
use super::gateway_tls::Caller;
use super::tls_support::{ANY, Authority, Foreign, tls as tls_of};
use super::*;

/// Speaks first, and then sends back what it gets.
async fn teller() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                _ = writer.write_all(b"hello").await;
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

/// A connection from an address of this machine, once it has heard who is behind; `None` where it is closed before.
async fn heard(client: &str, edge: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    let mut stream = within(socket.connect(edge)).await.unwrap();
    within(stream.read_exact(&mut [0; 5])).await.ok()?;
    Some(stream)
}

/// Whether what is sent comes back; not where the connection is closed.
async fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 5];
    stream.write_all(b"again").await.is_ok() && within(stream.read_exact(&mut back)).await.is_ok()
}

/// One look at how a connection fares: that nothing comes of it for so long is an answer, too.
async fn soon<F: Future>(look: F) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_secs(5), look).await.ok()
}

/// Waits until these are let in, and no others, by a policy.
async fn until<const N: usize>(policy: &str, expected: [bool; N], let_in: &impl AsyncFn() -> [bool; N]) {
    let mut seen = None;
    let comes = Box::pin(async {
        loop {
            let now = let_in().await;
            if now == expected {
                return;
            }
            seen = Some(now);
            tokio::task::yield_now().await;
        }
    });
    if tokio::time::timeout(Duration::from_secs(60), comes).await.is_err() {
        panic!("{seen:?} at last, and not {expected:?}, by {policy:?}");
    }
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: guard}}\n\
         spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}], {spec}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_on_connections_before_who_is_behind_hears_of_them_and_end_those_that_are_let_in_no_more() {
    let (ca, raw) = (Authority::named("root"), Authority::named("raw"));
    let outside = Foreign::start(tls_of(&raw.leaf(&["a.example", "b.example"]), None, ANY)).await;
    let (tcp, tls) = (free_port().await, free_port().await);
    let text = [
        service_of_bytes("teller", teller().await),
        service_of_bytes("bytes", program(|_| ok("bytes")).await),
        service_of_bytes("raw", local(outside.port)),
        secret("ends", &ca.leaf(&["ends.example"])),
        gateway_of_bytes(tcp, tls),
        route_of_bytes("TCPRoute", "tcp", "", "teller"),
        route_of_bytes("TLSRoute", "passes", "hostnames: [a.example, b.example], ", "raw"),
        route_of_bytes("TLSRoute", "ends", "", "bytes"),
    ];
    let mut gateway = Gateway::of(control(&text.concat()).await, &EDGE);
    gateway.bound().await;
    gateway.bound().await;

    // By TCP from two addresses, and by TLS from the first: two names that pass, and one where it ends.
    let let_in = async || {
        let by_tcp = async |client: &str| soon(Box::pin(heard(client, local(tcp)))).await.flatten().is_some();
        let by_name = async |ca: &Authority, name: &str| {
            soon(Box::pin(Caller::new(ca).ask(local(tls), name, name))).await.is_some_and(|said| said.is_ok())
        };
        [
            by_tcp("127.0.0.1").await,
            by_tcp("127.0.0.2").await,
            by_name(&raw, "a.example").await,
            by_name(&raw, "b.example").await,
            by_name(&ca, "ends.example").await,
        ]
    };
    let sni = |names: &str| format!("when: [{{key: connection.sni, values: [{names}]}}]");
    let from = |what: &str| format!("from: [{{source: {{{what}}}}}]");
    let to = |what: &str| format!("to: [{{operation: {{{what}}}}}]");
    const ALL: [bool; 5] = [true; 5];
    const NONE: [bool; 5] = [false; 5];
    for (spec, expected) in [
        (format!("rules: [{{{}}}]", from("ipBlocks: [127.0.0.1]")), [true, false, true, true, true]),
        ("rules: []".to_owned(), NONE),
        (format!("action: DENY, rules: [{{{}}}]", from("ipBlocks: [127.0.0.2/32]")), [true, false, true, true, true]),
        (format!("rules: [{{{}}}]", from("remoteIpBlocks: [127.0.0.2]")), [false, true, false, false, false]),
        (format!("rules: [{{{}}}]", to(&format!("ports: ['{tcp}']"))), [true, true, false, false, false]),
        (format!("rules: [{{{}}}]", sni("a.example, ends.example")), [false, false, true, false, true]),
        (format!("action: DENY, rules: [{{{}}}]", sni("b.example")), [true, true, true, false, true]),
        // Nobody has shown a certificate of the mesh.
        (format!("rules: [{{{}}}]", from("namespaces: [default]")), NONE),
        (format!("action: DENY, rules: [{{{}}}]", from("notNamespaces: [default]")), NONE),
        ("action: AUDIT, rules: [{}]".to_owned(), ALL),
        // A rule that lets in by requests lets nobody in, by what else it has neither.
        (format!("rules: [{{to: [{{operation: {{methods: [GET]}}}}, {{operation: {{ports: ['{tcp}']}}}}]}}]"), NONE),
        (format!("rules: [{{{}, {}}}]", from("ipBlocks: [127.0.0.1]"), to("notPaths: [/x]")), NONE),
        // One that refuses by them refuses by the rest.
        (
            format!("action: DENY, rules: [{{{}}}]", to(&format!("paths: [/x], ports: ['{tcp}']"))),
            [false, false, true, true, true],
        ),
        // Nobody can be asked about them.
        ("action: CUSTOM, provider: {name: nobody}, rules: [{}]".to_owned(), NONE),
        ("action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]".to_owned(), NONE),
        ("action: AUDIT, rules: [{to: [{operation: {paths: [/x]}}]}]".to_owned(), ALL),
    ] {
        // Each from nothing: what the one before has closed proves nothing of this one.
        for (text, expected) in [(String::new(), ALL), (policy(&spec), expected)] {
            gateway.control.set_yaml("guard.yaml", &text).unwrap();
            until(&text, expected, &let_in).await;
        }
    }

    // No token is looked at there, and who asks for one lets nobody in.
    let tokens = format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens}}\n\
         spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}], \
         jwtRules: [{{issuer: me, jwks: '{}'}}]}}\n",
        TokenIssuer::new("k").jwks()
    );
    let second = format!("action: DENY, rules: [{{{}}}]", from("ipBlocks: [127.0.0.2/32]"));
    let known = format!("rules: [{{{}}}]", from("requestPrincipals: ['*']"));
    for (spec, expected) in [(&second, [true, false, true, true, true]), (&known, NONE)] {
        let text = policy(spec) + &tokens;
        gateway.control.set_yaml("guard.yaml", &text).unwrap();
        until(&text, expected, &let_in).await;
    }
    gateway.control.set_yaml("guard.yaml", &tokens).unwrap();
    until(&tokens, ALL, &let_in).await;

    let mut kept = heard("127.0.0.1", local(tcp)).await.unwrap();
    let mut other = heard("127.0.0.2", local(tcp)).await.unwrap();
    assert!(echoes(&mut kept).await && echoes(&mut other).await);
    let deny = format!("action: DENY, rules: [{{{}}}]", from("ipBlocks: [127.0.0.1]"));
    gateway.control.set_yaml("guard.yaml", &policy(&deny)).unwrap();
    let end = within(kept.read(&mut [0; 1])).await;
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert!(echoes(&mut other).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_by_the_name_that_a_client_asks_for_where_any_name_is_passed_on() {
    let raw = Authority::named("raw");
    let outside = Foreign::start(tls_of(&raw.leaf(&["a.example", "b.example"]), None, ANY)).await;
    let port = free_port().await;
    let listeners = format!(
        "{{gatewayClassName: istio, listeners: [{{name: any, port: {port}, protocol: TLS, tls: {{mode: Passthrough}}}}]}}"
    );
    let route = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: raw, port: 80}]}]}";
    let text = [
        service_of_bytes("raw", local(outside.port)),
        object("Gateway", "edge", &listeners),
        object("TLSRoute", "any", route),
    ];
    let mut gateway = Gateway::of(control(&text.concat()).await, &EDGE);
    gateway.bound().await;

    let let_in = async || {
        let by_name = async |name: &str| {
            soon(Box::pin(Caller::new(&raw).ask(local(port), name, name))).await.is_some_and(|said| said.is_ok())
        };
        [by_name("a.example").await, by_name("b.example").await]
    };
    for (action, values, expected) in [
        ("DENY", "values", [true, false]),
        ("DENY", "notValues", [false, true]),
        ("ALLOW", "values", [false, true]),
        ("ALLOW", "notValues", [true, false]),
    ] {
        let spec = format!("action: {action}, rules: [{{when: [{{key: connection.sni, {values}: [b.example]}}]}}]");
        // Each from nothing: what the one before has closed proves nothing of this one.
        for (text, expected) in [(String::new(), [true; 2]), (policy(&spec), expected)] {
            gateway.control.set_yaml("guard.yaml", &text).unwrap();
            until(&text, expected, &let_in).await;
        }
    }
}
