//! The path that a policy decides by, that a route is found by, and that the application sees are one, whatever a client
//! writes: hazards A1 to A8, A21, A22 and A26, by bytes over sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server_support::within;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_control::embedded::{Config, Embedded, Options, PathNormalization, PlaneOptions};
use mesh_core::model::PathTest;
use mesh_core::xds::Bootstrap;
use mesh_tower::server::{Allow, AuthorizationRequest};
use mesh_tower::{Mesh, server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::service_fn;
use tower_layer::Layer;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

/// The method and the target of each request that the application saw.
type Seen = Arc<Mutex<Vec<String>>>;

struct World {
    _control: Option<Embedded>,
    _mesh: Mesh,
    address: SocketAddr,
    seen: Seen,
}

async fn serve(mesh: &Mesh) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let app = {
        let seen = Arc::clone(&seen);
        service_fn(move |request: Request<Incoming>| {
            let target = request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned();
            seen.lock().unwrap().push(target.clone());
            std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(target)))))
        })
    };
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    (address, seen)
}

/// A policy that refuses these paths.
fn deny(paths: &str) -> String {
    authorization(&format!("{{action: DENY, rules: [{{to: [{{operation: {{paths: [{paths}]}}}}]}}]}}"))
}

fn authorization(spec: &str) -> String {
    format!("---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

impl World {
    async fn new(policy: &str, normalization: PathNormalization) -> World {
        let options = Options::default().plane(PlaneOptions::default().path_normalization(normalization));
        let control = Embedded::start(Config::yaml(format!("{REVIEWS}{policy}")), options).await.unwrap();
        let bootstrap = Bootstrap::new("embedded")
            .node_id("mesh~127.0.0.1~reviews.default~default.svc.cluster.local")
            .metadata("NAMESPACE", "default")
            .metadata("LABELS", json!({"app": "reviews"}));
        let mesh = Mesh::builder().source(control.source(bootstrap));
        let mesh = mesh.cold_start_wait(Duration::from_secs(10)).start().unwrap();
        let (address, seen) = serve(&mesh).await;
        within(mesh.serving()).await.unwrap();
        World { _control: Some(control), _mesh: mesh, address, seen }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Sends the start of a request by HTTP/1.1; the status, and what the application saw.
    async fn http1(&self, line: &str) -> (u16, Option<String>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        _ = within(stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{line}: {answer}")), self.take().pop())
    }

    /// The same by HTTP/2. A connection that is broken off counts as 400.
    async fn http2(&self, method: &str, path: &str) -> (u16, Option<String>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut fields = vec![(":method", method), (":scheme", "http"), (":authority", "reviews"), (":path", path)];
        if method == "CONNECT" {
            fields.retain(|(name, _)| matches!(*name, ":method" | ":authority"));
        }
        stream.write_all(&frames(&fields)).await.unwrap();
        let status = within(status_of(&mut stream)).await;
        (status, self.take().pop())
    }

    /// A GET over both protocols.
    async fn get(&self, path: &str) -> (u16, Option<String>) {
        let one = self.http1(&format!("GET {path}")).await;
        let two = self.http2("GET", path).await;
        assert_eq!(one, two, "{path}");
        one
    }

    /// Each path has this status, and is this one to the application.
    async fn check(&self, cases: &[(&str, u16, &str)]) {
        for (path, status, seen) in cases {
            let expected = (*status, (*status == 200).then(|| (*seen).to_owned()));
            assert_eq!(self.get(path).await, expected, "{path}");
        }
    }
}

/// The frames of a connection that asks once, without a library that would refuse to.
fn frames(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal that is not indexed, with a name and no Huffman code (RFC 7541, 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes()[1..]);
    // HEADERS with END_STREAM and END_HEADERS.
    bytes.extend_from_slice(&[1, 5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes
}

/// The status in the first HEADERS frame.
async fn status_of(stream: &mut TcpStream) -> u16 {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return 400;
        }
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
        if stream.read_exact(&mut payload).await.is_err() {
            return 400;
        }
        match (head[3], payload.as_slice()) {
            (1, block) => return status_in(block),
            // RST_STREAM and GOAWAY.
            (3 | 7, _) => return 400,
            _ => {}
        }
    }
}

fn status_in(block: &[u8]) -> u16 {
    // Indexed in the static table (RFC 7541, A), or a literal with the name of an entry of it.
    match block {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48 | 0x08, 3, a, b, c, ..] => std::str::from_utf8(&[*a, *b, *c]).unwrap().parse().unwrap(),
        // `403` by Huffman's code (RFC 7541, B): 011010, 00000, 011001, and ones.
        [0x48 | 0x08, 0x83, 0x68, 0x0c, 0xff, ..] => 403,
        other => panic!("{other:x?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_denied_path_is_denied_however_it_is_written() {
    let world = World::new(&deny("/admin, /secret/*"), PathNormalization::Default).await;
    world
        .check(&[
            ("/admin", 403, ""),
            ("//admin", 403, ""),
            ("/%61dmin", 403, ""),
            ("/x/../admin", 403, ""),
            ("/x/%2e%2E/admin", 403, ""),
            ("/\\admin", 403, ""),
            ("/x\\..\\admin", 403, ""),
            ("/./admin", 403, ""),
            ("/secret//x", 403, ""),
            ("/public/..//secret/x?y=/../", 403, ""),
            ("/%2Fadmin", 400, ""),
            ("/%5cadmin", 400, ""),
            ("/x%2f..%2fadmin", 400, ""),
            ("/admin/", 200, "/admin/"),
            ("//x/./y?z=//%2e", 200, "/x/y?z=//%2e"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a2_each_mode_of_istio_has_its_own_paths() {
    let cases = [
        ("/a/../admin", ["/a/../admin", "/admin", "/admin", "/admin"]),
        ("/a//b", ["/a//b", "/a//b", "/a/b", "/a/b"]),
        ("/a%2fb%5Cc", ["/a%2fb%5Cc", "/a%2fb%5Cc", "/a%2fb%5Cc", "/a/b/c"]),
        ("/%7Ex\\y", ["/%7Ex\\y", "/~x/y", "/~x/y", "/~x/y"]),
        ("/..;/admin", ["/..;/admin"; 4]),
    ];
    let modes = ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"];
    for (position, mode) in modes.into_iter().enumerate() {
        let world = World::new("", mode.parse().unwrap()).await;
        for (path, expected) in cases {
            world.check(&[(path, 200, expected[position])]).await;
        }
    }
    // Istio's default, where nothing is guarded.
    let world = World::new("", PathNormalization::Default).await;
    for (path, expected) in cases {
        world.check(&[(path, 200, expected[1])]).await;
    }
}

/// The canonical form of `/admin%XX`.
fn canonical(byte: u8, decodes_slashes: bool) -> String {
    match byte {
        b'/' | b'\\' if decodes_slashes => "/admin/".to_owned(),
        b'-' | b'.' | b'_' | b'~' => format!("/admin{}", char::from(byte)),
        _ if byte.is_ascii_alphanumeric() => format!("/admin{}", char::from(byte)),
        _ => format!("/admin%{byte:02x}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a2_of_every_escape_the_path_authorized_is_the_path_seen() {
    for (mode, decodes) in [(PathNormalization::Base, false), (PathNormalization::DecodeAndMergeSlashes, true)] {
        let denied: Vec<String> = (1..=255u8).step_by(2).map(|byte| canonical(byte, decodes)).collect();
        let listed: Vec<String> = denied.iter().map(|path| format!("'{path}'")).collect();
        let world = World::new(&deny(&listed.join(", ")), mode).await;
        for byte in 1..=255u8 {
            let expected = canonical(byte, decodes);
            let status = if denied.contains(&expected) { 403 } else { 200 };
            world.check(&[(&format!("/admin%{byte:02x}"), status, &expected)]).await;
        }
    }
}

#[tokio::test]
async fn a2_of_every_escape_the_path_routed_is_the_path_seen() {
    let (player, source) = crate::server_support::played();
    let mesh = Mesh::builder().source(source).start().unwrap();
    let (address, seen) = serve(&mesh).await;
    let routed: Vec<String> = (1..=255u8).step_by(2).map(|byte| canonical(byte, true)).collect();
    let routes = routed.iter().map(|path| {
        let mut route = crate::server_support::app_route();
        route.matches.path = PathTest::Exact { value: path.as_str().into(), ignore_case: false };
        route
    });
    let mut chain = crate::server_support::chain(routes.collect(), vec![]);
    chain.http.paths = mesh_core::path::PathNormalization::DECODE_AND_MERGE_SLASHES;
    player.send(crate::server_support::listener(address, vec![chain]));
    within(mesh.serving()).await.unwrap();
    let world = World { _control: None, _mesh: mesh, address, seen };
    for byte in 1..=255u8 {
        let expected = canonical(byte, true);
        let status = if routed.contains(&expected) { 200 } else { 404 };
        world.check(&[(&format!("/admin%{byte:02x}"), status, &expected)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_to_a5_what_follows_a_path_does_not_hide_it() {
    let world = World::new(&deny("/admin, '/p;x=y/action;foo=bar'"), PathNormalization::Default).await;
    // A3 and A4: fragment and query.
    world
        .check(&[("/admin#x", 403, ""), ("/admin?x", 403, ""), ("/admin?", 403, ""), ("/admin?/../x#y", 403, "")])
        .await;
    // A5: parameters of segments are part of the path.
    world
        .check(&[
            ("/p;x=y/action;foo=bar", 403, ""),
            ("/./p;x=y//action;foo=bar", 403, ""),
            ("/admin;x=y/action;foo=bar", 200, "/admin;x=y/action;foo=bar"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a6_what_is_no_path_reaches_nobody() {
    for policy in [String::new(), deny("/pkg.Svc/Method, /y")] {
        let world = World::new(&policy, PathNormalization::Default).await;
        for path in ["pkg.Svc/Method", "", "*", "http://x/y", "\\admin", "/a b", "/a\tb", "/a\0b"] {
            assert_eq!(world.http2("GET", path).await, (400, None), "{path:?}");
        }
        for line in ["GET pkg.Svc/Method", "GET *", "GET ?x", "GET \\admin"] {
            assert_eq!(world.http1(line).await, (400, None), "{line}");
        }
        // Clients write the root without its slash, and it is given one before anybody looks at it.
        assert_eq!(world.http2("GET", "?x").await, (200, Some("/?x".to_owned())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a7_a_star_is_a_character_of_a_path() {
    let world = World::new(&deny("'/a/{*}'"), PathNormalization::Default).await;
    world.check(&[("/a/b*c", 403, ""), ("/a/*", 403, ""), ("/a/b/c", 200, "/a/b/c")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a8_escapes_are_decoded_once_and_none_is_a_null() {
    for mode in [PathNormalization::Default, PathNormalization::None, PathNormalization::DecodeAndMergeSlashes] {
        let world = World::new(&deny("/admin"), mode).await;
        world.check(&[("/a%00b", 400, ""), ("/admin%00", 400, "")]).await;
        world.check(&[("/%252e%252e/admin", 200, "/%252e%252e/admin")]).await;
        let overlong = if mode == PathNormalization::None { "/%c0%2e/admin" } else { "/%c0./admin" };
        world.check(&[("/%c0%2e/admin", 200, overlong), ("/%c0%ae%c0%ae/admin", 200, "/%c0%ae%c0%ae/admin")]).await;
        let status = if mode == PathNormalization::None { 200 } else { 400 };
        world.check(&[("/%2%65%2%65/admin", status, "/%2%65%2%65/admin")]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a21_a_method_is_in_capitals_or_refused() {
    let policy = authorization("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}");
    let world = World::new(&policy, PathNormalization::Default).await;
    let long = "A".repeat(100);
    for (method, expected) in [("DELETE", 403), ("delete", 400), ("Delete", 400), ("GET'", 400), (&*long, 400)] {
        assert_eq!(world.http1(&format!("{method} /")).await, (expected, None), "{method}");
        assert_eq!(world.http2(method, "/").await, (expected, None), "{method}");
    }
    for method in ["", "GET ", "GET\t", " DELETE"] {
        assert_eq!(world.http2(method, "/").await, (400, None), "{method:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a22_connect_has_no_path_and_is_refused_where_policies_guard() {
    for policy in [deny("/admin"), authorization("{rules: [{to: [{operation: {paths: ['/*']}}]}]}")] {
        let world = World::new(&policy, PathNormalization::Default).await;
        assert_eq!(world.http1("CONNECT reviews:80").await, (403, None), "{policy}");
        assert_eq!(world.http2("CONNECT", "").await, (403, None), "{policy}");
        assert_eq!(world.get("/x").await, (200, Some("/x".to_owned())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a26_dot_segments_with_parameters_are_refused_where_policies_guard() {
    let paths = ["/user/..;x=y/admin", "/user/..;/admin", "/.;/admin", "/user/%2e%2e;x/admin", "/user/..%3b/admin"];
    let world = World::new(&deny("/admin"), PathNormalization::Default).await;
    for path in paths {
        assert_eq!(world.get(path).await, (400, None), "{path}");
    }
    world.check(&[("/user/...;x/admin", 200, "/user/...;x/admin")]).await;
}

/// RFC 9112, 3.2.2, and RFC 9113, 8.3.1: the target's authority is the host, whatever `Host` says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_that_is_decided_by_is_the_one_host_that_the_application_sees() {
    let policy = authorization("{action: DENY, rules: [{to: [{operation: {hosts: [admin.example]}}]}]}");
    let control = Embedded::start(Config::yaml(format!("{REVIEWS}{policy}")), Options::default()).await.unwrap();
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~reviews.default~default.svc.cluster.local")
        .metadata("NAMESPACE", "default")
        .metadata("LABELS", json!({"app": "reviews"}));
    let mesh = Mesh::builder().source(control.source(bootstrap)).start().unwrap();
    let seen = Seen::default();
    // Every host that somebody could go by.
    let hosts = |uri: Option<&str>, headers: &http::HeaderMap| {
        let named = headers.get_all("host").iter().map(|host| host.to_str().unwrap());
        uri.into_iter().chain(named).collect::<Vec<_>>().join(" ")
    };
    let (asked, served) = (Arc::clone(&seen), Arc::clone(&seen));
    let decide = move |request: AuthorizationRequest| {
        asked.lock().unwrap().push(hosts(Some(&request.authority), &request.headers));
        std::future::ready(Ok(Allow::new().into()))
    };
    let app = service_fn(move |request: Request<Incoming>| {
        served.lock().unwrap().push(hosts(request.uri().host(), request.headers()));
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))))
    });
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    tokio::spawn(server::serve(bound, mesh.server_layer().authorizer(decide).layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    let world = World { _control: Some(control), _mesh: mesh, address, seen };
    let only_public = |seen: &str| seen.split(' ').all(|host| host == "public.example");
    // (authority of the target, hosts, status)
    let cases = [
        ("public.example", &["admin.example"][..], 200),
        ("public.example", &["public.example"], 200),
        ("admin.example", &["public.example"], 403),
        ("", &["admin.example"], 403),
        ("", &["public.example"], 200),
        ("public.example", &["public.example", "admin.example"], 400),
        ("", &["public.example", "public.example"], 400),
    ];
    for (authority, hosts, status) in cases {
        let scheme = if authority.is_empty() { "" } else { "http://" };
        let named: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        let one = format!("GET {scheme}{authority}/a HTTP/1.1\r\n{named}connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(one.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(&*status.to_string()), "{authority} {hosts:?}");
        let seen = world.take();
        assert!(seen.iter().all(|seen| only_public(seen)) || status == 403, "{authority} {hosts:?}: {seen:?}");
        assert!((seen.len() == 2) == (status == 200), "{authority} {hosts:?}: {seen:?}");
        let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/a")];
        if !authority.is_empty() {
            fields.push((":authority", authority));
        }
        fields.extend(hosts.iter().map(|host| ("host", *host)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&frames(&fields)).await.unwrap();
        assert_eq!(within(status_of(&mut stream)).await, status, "HTTP/2 {authority} {hosts:?}");
        let seen = world.take();
        assert!(seen.iter().all(|seen| only_public(seen)) || status == 403, "HTTP/2 {authority} {hosts:?}: {seen:?}");
    }
}
