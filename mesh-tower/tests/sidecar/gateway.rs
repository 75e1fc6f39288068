//! `mesh-gateway`, over real sockets: its control plane says what a mesh-control would, in Envoy's words.

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{
    address, filter_chain, http_filter, http_manager, inline_cluster, pack, rds, route as to, route_of, routes,
    routes_to, virtual_host,
};
use prost::Message;
use tokio::sync::mpsc::{Receiver, channel};

use super::*;

/// A process of `mesh-gateway`, with the control plane that it asks.
pub(super) struct Gateway<C = ManagementServer> {
    pub(super) control: C,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Receiver<String>,
    /// What it said, and nobody waited for.
    said: Vec<String>,
}

impl<C> Gateway<C> {
    /// One that asks a control plane at this address.
    fn at(control: C, server: &str, options: &[&str]) -> Gateway<C> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-gateway"));
        command.args(["--control", server, "--name", "edge"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.env("RUST_LOG", "warn,mesh_gateway=debug,mesh_tower=debug").spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (told, stderr) = channel(1 << 16);
        // Whether or not somebody waits for a line: a process whose lines nobody takes stands still once the pipe is full.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Nobody waits for so many.
                _ = told.try_send(line);
            }
        });
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Gateway { control, child, stdout, stderr, said: Vec::new() }
    }

    /// Waits until it says this, and gives what comes after it.
    pub(super) async fn says(&mut self, what: &str) -> String {
        loop {
            if let Some(place) = self.said.iter().position(|line| line.contains(what)) {
                let line = self.said.remove(place);
                return line.split_once(what).unwrap().1.to_owned();
            }
            let line = within(self.stderr.recv()).await;
            self.said.push(line.unwrap_or_else(|| panic!("it never said {what:?}: {:?}", self.said)));
        }
    }

    /// Where it has bound the next listener.
    pub(super) async fn bound(&mut self) -> SocketAddr {
        let said = self.says("bound at ").await;
        said.split(' ').next().unwrap().parse().unwrap()
    }

    /// Where its admin port is.
    pub(super) async fn admin(&mut self) -> SocketAddr {
        self.says("admin at ").await.parse().unwrap()
    }
}

impl Gateway<Embedded> {
    /// One that asks a control plane of this process.
    pub(super) fn of(control: Embedded, options: &[&str]) -> Gateway<Embedded> {
        let server = control.xds_addr().to_string();
        Gateway::at(control, &server, options)
    }
}

impl Gateway {
    pub(super) async fn start(control: ManagementServer, options: &[&str]) -> Gateway {
        let server = control.listen().await.unwrap().to_string();
        Gateway::at(control, &server, options)
    }

    /// Its clusters are these addresses, and there is nothing more to know of them.
    pub(super) fn put_cluster(control: &ManagementServer, name: &str, at: SocketAddr) {
        let at = [(at.ip().to_string(), at.port())];
        let at: Vec<(&str, u16)> = at.iter().map(|(ip, port)| (ip.as_str(), *port)).collect();
        control.put(name, &inline_cluster(name, DiscoveryType::Static, &at));
    }
}

/// A listener of a gateway, at a free port of this machine.
pub(super) fn listener(name: &str, filter_chains: Vec<pb::FilterChain>) -> pb::Listener {
    let address = Some(address("127.0.0.1", 0));
    pb::Listener { name: name.to_owned(), address, filter_chains, ..Default::default() }
}

/// A chain whose routes have this name.
pub(super) fn chain(name: &str, routes: &str) -> pb::FilterChain {
    pb::FilterChain { name: name.to_owned(), ..filter_chain(&http_manager(rds(routes))) }
}

pub(super) fn get(host: &str, path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n")
}

/// Whoever asks in plaintext is sent to TLS.
fn secure_host() -> route::VirtualHost {
    let host = virtual_host("secure", &["secure.example", "secure.example:*"], vec![to("/", "one")]);
    route::VirtualHost { require_tls: route::virtual_host::TlsRequirementType::All.into(), ..host }
}

fn redirect(to: route::RedirectAction) -> route::Route {
    route_of("/", route::route::Action::Redirect(to))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_by_the_routes_of_their_listener_which_come_and_go_without_a_restart() {
    let control = ManagementServer::start();
    let one = program(|head| ok(&format!("one\n{head}"))).await;
    let two = program(|head| ok(&format!("two\n{head}"))).await;
    Gateway::put_cluster(&control, "one", one);
    Gateway::put_cluster(&control, "two", two);
    control.put(
        "http.80",
        &routes(
            "http.80",
            vec![
                virtual_host("shop", &["shop.example", "shop.example:*"], vec![to("/two", "two"), to("/", "one")]),
                secure_host(),
                virtual_host(
                    "old",
                    &["old.example"],
                    vec![redirect(route::RedirectAction {
                        host_redirect: "shop.example".to_owned(),
                        ..Default::default()
                    })],
                ),
            ],
        ),
    );
    control.put("edge", &listener("edge", vec![chain("http", "http.80")]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;

    let said = "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-envoy-retry-on: 5xx\r\nx-mesh-criticality: critical\r\n\
        x-forwarded-client-cert: URI=spiffe://cluster.local/ns/a/sa/admin\r\nproxy-connection: close\r\n";
    let answer = exchange(edge, &get("shop.example:8080", "/a?b=1", said)).await;
    assert_eq!(status(&answer), "200", "{answer}");
    let (_, seen) = answer.split_once("one\n").unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "GET /a?b=1 HTTP/1.1");
    // Who is outside is not believed, and what goes on is told where it came from.
    for line in ["host: shop.example:8080", "x-forwarded-for: 1.2.3.4, 127.0.0.1", "x-forwarded-proto: http"] {
        assert!(lines.contains(&line), "{line}: {seen}");
    }
    for name in ["x-envoy-retry-on", "x-mesh-criticality", "x-forwarded-client-cert", "proxy-connection"] {
        assert!(!seen.contains(name), "{name}: {seen}");
    }
    // Each request has an id of its own, whatever its client says.
    let mut ids = Vec::new();
    for said in ["", "x-request-id: mine\r\n", "x-request-id: a\r\nx-request-id: b\r\n"] {
        let answer = exchange(edge, &get("shop.example", "/a", said)).await;
        let of_it: Vec<String> =
            answer.lines().filter_map(|line| Some(line.strip_prefix("x-request-id: ")?.to_owned())).collect();
        let [id] = &*of_it else { panic!("{answer}") };
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4' && !ids.contains(id), "{id} {ids:?}");
        ids.push(id.clone());
    }
    assert!(exchange(edge, &get("SHOP.example", "/two", "")).await.contains("two\n"));
    let moved = exchange(edge, &get("old.example", "/x", "")).await;
    assert!(status(&moved) == "301" && moved.contains("location: http://shop.example/x\r\n"), "{moved}");
    let secured = exchange(edge, &get("secure.example:80", "/x?y", "")).await;
    assert!(status(&secured) == "301" && secured.contains("location: https://secure.example/x?y\r\n"), "{secured}");
    // Nobody else is here, and nothing is said of what is.
    let nobody = exchange(edge, &get("other.example", "/", "")).await;
    assert!(status(&nobody) == "404" && nobody.ends_with("the gateway has no answer"), "{nobody}");

    // The route changes under a connection that stays.
    let mut kept = TcpStream::connect(edge).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";
    let answered = async |kept: &mut TcpStream| {
        kept.write_all(ask.as_bytes()).await.unwrap();
        let head = within(head(kept)).await.unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        within(kept.read_exact(&mut body)).await.unwrap();
        String::from_utf8(body).unwrap()
    };
    assert!(answered(&mut kept).await.starts_with("one\n"));
    gateway.control.put("http.80", &routes_to("http.80", "two"));
    within(async {
        while !answered(&mut kept).await.starts_with("two\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // One listener more, and one less: that one ends with its last request.
    gateway.control.put("more", &listener("more", vec![chain("http", "http.80")]));
    let more = gateway.bound().await;
    assert!(exchange(more, &get("any.example", "/", "")).await.contains("two\n"));
    gateway.control.remove::<pb::Listener>("edge");
    gateway.says("closed").await;
    assert_eq!(within(kept.read(&mut [0; 1])).await.unwrap(), 0);
    assert!(TcpStream::connect(edge).await.is_err());
    assert!(exchange(more, &get("any.example", "/", "")).await.contains("two\n"));

    kill("TERM", gateway.child.id().unwrap());
    assert_eq!(within(gateway.child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_count_once_as_the_gateways_own_and_strangers_make_no_labels_up() {
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "one", program(|_| ok("one")).await);
    control.put("http.80", &routes("http.80", vec![virtual_host("shop", &["shop.example"], vec![to("/", "one")])]));
    control.put("edge", &listener("edge", vec![chain("http", "http.80")]));
    let mut gateway = Gateway::start(control, &["--admin-addr", "127.0.0.1:0"]).await;
    let edge = gateway.bound().await;
    for host in ["shop.example", "shop.example", "a.stranger", "b.stranger"] {
        exchange(edge, &get(host, "/", "")).await;
    }
    let admin = gateway.admin().await;
    // A request counts once it is over, which its client does not wait for.
    let counted = async {
        loop {
            let page = exchange(admin, &get(&admin.to_string(), "/metrics", "")).await;
            let lines = page.lines().filter_map(|line| line.strip_prefix("istio_requests_total{")?.rsplit_once("} "));
            let lines: Vec<_> = lines.map(|(labels, count)| (labels.to_owned(), count.parse().unwrap())).collect();
            if lines.iter().map(|(_, count)| count).sum::<u32>() == 4 {
                return (page, lines);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (page, lines) = within(counted).await;
    for (code, destination) in [("200", "one"), ("404", "unknown")] {
        let code = format!("response_code=\"{code}\"");
        let [(labels, 2)] = &lines.iter().filter(|(labels, _)| labels.contains(&code)).collect::<Vec<_>>()[..] else {
            panic!("{code}: {lines:?}");
        };
        let destination = format!("destination_service=\"{destination}\"");
        for label in ["reporter=\"source\"", "source_app=\"edge\"", &*destination] {
            assert!(labels.contains(label), "{label}: {labels}");
        }
    }
    assert!(!page.contains("stranger"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_one_line_of_the_access_log_which_tells_where_it_went() {
    let control = ManagementServer::start();
    let one = program(|_| ok("one")).await;
    Gateway::put_cluster(&control, "one", one);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Gateway::put_cluster(&control, "gone", nobody);
    let own = route::DirectResponseAction { status: 418, ..Default::default() };
    let own = route_of("/own", route::route::Action::DirectResponse(own));
    let hosts = vec![virtual_host("shop", &["shop.example"], vec![to("/gone", "gone"), own, to("/", "one")])];
    control.put("http.80", &routes("http.80", hosts));
    let columns = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% \
                   %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n";
    let manager = HttpConnectionManager { access_log: vec![to_stdout(columns)], ..http_manager(rds("http.80")) };
    control.put("edge", &listener("edge", vec![pb::FilterChain { name: "http".to_owned(), ..filter_chain(&manager) }]));
    let mut gateway = Gateway::start(control, &[]).await;
    let refused = TcpStream::connect(nobody).await.unwrap_err().to_string().replace(' ', "_");
    let edge = gateway.bound().await;
    for (path, expected) in [
        ("/a", format!("/a 200 - via_upstream one {one} 1 -")),
        ("/own", "/own 418 - direct_response - - 0 -".to_owned()),
        (
            "/gone",
            format!(
                "/gone 503 URX,UF upstream_reset_before_response_started{{connection_failure}} gone {nobody} 2 \
                 cannot_connect_to_{nobody}:_{refused}"
            ),
        ),
        // The next line is the next request's.
        ("/b", format!("/b 200 - via_upstream one {one} 1 -")),
    ] {
        exchange(edge, &get("shop.example", path, "")).await;
        assert_eq!(within(gateway.stdout.next_line()).await.unwrap().unwrap(), expected);
    }
}

fn to_stdout(format: &str) -> AccessLog {
    let specifier = Some(core::data_source::Specifier::InlineString(format.to_owned()));
    let format = core::DataSource { specifier, ..Default::default() };
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::TextFormatSource(format)),
        ..Default::default()
    };
    let file = FileAccessLog {
        path: "/dev/stdout".to_owned(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(format)),
    };
    let config_type = Some(access_log::ConfigType::TypedConfig(pack(&file)));
    AccessLog { name: "stdout".to_owned(), config_type, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_of_a_listener_decide_before_anything_goes_on() {
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "one", program(|_| ok("one")).await);
    let only_open = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(rbac::permission::Rule::UrlPath(prefix("/open"))) }],
        principals: vec![rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }],
        ..Default::default()
    };
    let rules = rbac::Rbac { policies: [("open".to_owned(), only_open)].into(), ..Default::default() };
    let mut manager = http_manager(rds("http.80"));
    manager.http_filters = vec![
        http_filter("rbac", pack(&Rbac { rules: Some(rules), ..Default::default() })),
        http_filter("router", pack(&Router::default())),
    ];
    manager.normalize_path = Some(BoolValue { value: true });
    control.put("http.80", &routes_to("http.80", "one"));
    control.put("edge", &listener("edge", vec![filter_chain(&manager)]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    for (path, expected) in
        [("/open/a", "200"), ("/admin", "403"), ("/open/../admin", "403"), ("/open/%2e%2e/admin", "403")]
    {
        assert_eq!(status(&exchange(edge, &get("a", path, "")).await), expected, "{path}");
    }
}

fn prefix(path: &str) -> envoy_types::pb::envoy::r#type::matcher::v3::PathMatcher {
    use envoy_types::pb::envoy::r#type::matcher::v3::{
        PathMatcher, StringMatcher, path_matcher::Rule, string_matcher::MatchPattern,
    };
    let pattern = Some(MatchPattern::Prefix(path.to_owned()));
    PathMatcher { rule: Some(Rule::Path(StringMatcher { match_pattern: pattern, ..Default::default() })) }
}

/// A gateway whose requests are let in where their client is of this network and who has connected is this machine, and which has them
/// in its access log.
async fn guarded_by_address(manager: HttpConnectionManager, filters: Vec<pb::ListenerFilter>) -> (Gateway, SocketAddr) {
    use rbac::principal::{Identifier, Set};
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "one", program(ok).await);
    let net = |ip: &str, length| core::CidrRange {
        address_prefix: ip.to_owned(),
        prefix_len: Some(UInt32Value { value: length }),
    };
    let ids = [Identifier::RemoteIp(net("192.0.2.0", 24)), Identifier::DirectRemoteIp(net("127.0.0.0", 8))];
    let ids = ids.map(|identifier| rbac::Principal { identifier: Some(identifier) }).into();
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) }],
        principals: vec![rbac::Principal { identifier: Some(Identifier::AndIds(Set { ids })) }],
        ..Default::default()
    };
    let rules = rbac::Rbac { policies: [("near".to_owned(), policy)].into(), ..Default::default() };
    let http_filters = vec![
        http_filter("rbac", pack(&Rbac { rules: Some(rules), ..Default::default() })),
        http_filter("router", pack(&Router::default())),
    ];
    let access_log = vec![to_stdout("%RESPONSE_CODE% %DOWNSTREAM_REMOTE_ADDRESS%\n")];
    let manager = HttpConnectionManager { http_filters, access_log, ..manager };
    control.put("http.80", &routes_to("http.80", "one"));
    let mut listener = listener("edge", vec![filter_chain(&manager)]);
    listener.listener_filters = filters;
    control.put("edge", &listener);
    let mut gateway = Gateway::start(control, &["--admin-addr", "127.0.0.1:0"]).await;
    let edge = gateway.bound().await;
    (gateway, edge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_who_the_proxies_in_front_say_where_they_are_believed() {
    let mut manager = http_manager(rds("http.80"));
    manager.use_remote_address = Some(BoolValue { value: true });
    manager.xff_num_trusted_hops = 2;
    manager.forward_client_cert_details = ForwardClientCertDetails::AlwaysForwardOnly as i32;
    let (mut gateway, edge) = guarded_by_address(manager, Vec::new()).await;
    let ask = async |said: &str| exchange(edge, &get("shop.example", "/", said)).await;
    let answer =
        ask("x-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 192.0.2.1, 10.0.0.9\r\nx-forwarded-proto: https\r\n\
        x-forwarded-client-cert: Hash=1\r\nx-envoy-external-address: 6.6.6.6\r\n")
        .await;
    assert_eq!(status(&answer), "200", "{answer}");
    for line in [
        "x-forwarded-for: 6.6.6.6, 192.0.2.1, 10.0.0.9, 127.0.0.1",
        "x-envoy-external-address: 192.0.2.1",
        "x-forwarded-proto: https",
        "x-forwarded-client-cert: Hash=1",
    ] {
        assert!(answer.lines().any(|said| said == line), "{line}: {answer}");
    }
    assert_eq!(within(gateway.stdout.next_line()).await.unwrap().unwrap(), "200 192.0.2.1:0");
    // What a client says before them is nobody's word, and where they say nothing, it is who has connected.
    for (said, client) in
        [("x-forwarded-for: 192.0.2.1, 6.6.6.6, 10.0.0.9\r\n", "403 6.6.6.6:0"), ("", "403 127.0.0.1:")]
    {
        assert_eq!(status(&ask(said).await), "403", "{said}");
        let line = within(gateway.stdout.next_line()).await.unwrap().unwrap();
        assert!(line.starts_with(client), "{line}");
    }
}

/// Every connection begins with a header of the PROXY protocol.
pub(super) fn proxy_protocol() -> Vec<pb::ListenerFilter> {
    let config_type = Some(pb::listener_filter::ConfigType::TypedConfig(pack(&ProxyProtocol::default())));
    vec![pb::ListenerFilter { name: "proxy".to_owned(), config_type, ..Default::default() }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancer_says_whose_a_connection_is_and_who_comes_past_it_is_not_let_in() {
    let (mut gateway, edge) = guarded_by_address(http_manager(rds("http.80")), proxy_protocol()).await;
    let binary = |ip: [u8; 4]| {
        let ends = [&ip[..], &[10, 0, 0, 1], &5000u16.to_be_bytes(), &443u16.to_be_bytes()].concat();
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &ends[..]].concat()
    };
    for (header, code, client) in [
        (b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\n".to_vec(), "200", "192.0.2.1:5000"),
        (binary([192, 0, 2, 7]), "200", "192.0.2.7:5000"),
        (binary([6, 6, 6, 6]), "403", "6.6.6.6:5000"),
    ] {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        // It may come in parts, and with what follows it.
        let (first, rest) = header.split_at(header.len() / 2);
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&[rest, get("shop.example", "/", "").as_bytes()].concat()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(status(&answer), code, "{answer}");
        let line = within(gateway.stdout.next_line()).await.unwrap().unwrap();
        assert_eq!(line, format!("{code} {client}"));
        let forwarded = format!("x-forwarded-for: {}\r\n", client.split(':').next().unwrap());
        assert_eq!(answer.contains(&forwarded), code == "200", "{answer}");
    }
    for past in
        [get("shop.example", "/", ""), format!("proxy TCP4 192.0.2.1 10.0.0.1 5000 443\r\n{}", get("a", "/", ""))]
    {
        assert_eq!(exchange(edge, &past).await, "");
    }
    // Both are counted, and the log says what they lack.
    gateway.says("it has to begin with a header of the PROXY protocol").await;
    let admin = gateway.admin().await;
    let metrics = exchange(admin, &get(&admin.to_string(), "/metrics", "")).await;
    assert!(metrics.contains("mesh_proxy_protocol_refused_total{reason=\"invalid\"} 2\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_is_on_the_loopback_unless_it_is_said_that_it_may_be_anywhere() {
    let at = ["--admin-addr", "0.0.0.0:0"];
    let answering = || {
        let control = ManagementServer::start();
        control.put("edge", &listener("edge", vec![chain("c", "routes")]));
        control
    };
    Gateway::start(answering(), &at).await.says("--admin-anywhere").await;
    let anywhere = [&at[..], &["--admin-anywhere"]].concat();
    Gateway::start(answering(), &anywhere).await.says("admin at 0.0.0.0:").await;
    let control = control("").await;
    Sidecar::start(&control, "shop", &at, "sleep 1000").says("--admin-anywhere").await;
    Sidecar::start(&control, "shop", &anywhere, "sleep 1000").says("admin at 0.0.0.0:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_told_of_and_the_others_go_on() {
    let control = ManagementServer::start();
    Gateway::put_cluster(&control, "one", program(|_| ok("one")).await);
    control.put("http.80", &routes_to("http.80", "one"));
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let mut first = listener("a-taken", vec![chain("http", "http.80")]);
    first.address = Some(address("127.0.0.1", at.port()));
    control.put("a-taken", &first);
    control.put("b-free", &listener("b-free", vec![chain("http", "http.80")]));
    let mut gateway = Gateway::start(control, &["--admin-addr", "127.0.0.1:0"]).await;
    let said = gateway.says("cannot be bound").await;
    assert!(said.contains("a-taken"), "{said}");
    let free = gateway.bound().await;
    assert_eq!(status(&exchange(free, &get("a", "/", "")).await), "200");
    let admin = gateway.admin().await;
    let page = |path: &str| get(&admin.to_string(), path, "");
    let ready = exchange(admin, &page("/ready")).await;
    assert!(status(&ready) == "200" && ready.contains(&format!("listener a-taken: {at} cannot be bound")), "{ready}");
    let metrics = exchange(admin, &page("/metrics")).await;
    assert!(metrics.contains("mesh_gateway_unbound_listeners 1\n"), "{metrics}");
    // It is bound once it can be.
    drop(taken);
    assert_eq!(gateway.bound().await, at);
    assert_eq!(status(&exchange(at, &get("a", "/", "")).await), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_pass_and_what_could_be_read_in_two_ways_does_not() {
    let control = ManagementServer::start();
    let behind = program(|head| match head.contains("\r\nupgrade: websocket\r\n") {
        true => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nHELLO".to_owned(),
        false => ok(&format!("seen {}", head.lines().next().unwrap())),
    })
    .await;
    Gateway::put_cluster(&control, "one", behind);
    control.put("http.80", &routes_to("http.80", "one"));
    control.put("edge", &listener("edge", vec![chain("http", "http.80")]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;

    let mut socket = TcpStream::connect(edge).await.unwrap();
    let ask = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    socket.write_all(ask.as_bytes()).await.unwrap();
    let switched = within(head(&mut socket)).await.unwrap();
    assert_eq!(status(&switched), "101", "{switched}");
    let mut hello = [0; 5];
    within(socket.read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"HELLO");

    // One that the connection does not name is no upgrade: a proxy in front may know of none.
    let unnamed = exchange(edge, &get("a", "/chat", "upgrade: websocket\r\n")).await;
    assert!(status(&unnamed) == "200" && unnamed.ends_with("seen GET /chat HTTP/1.1"), "{unnamed}");

    // The library's own rules hold at the edge: each of these is refused, and the request hidden in it is never seen.
    let hidden = "GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    for fields in [
        "content-length: +5",
        "content-length: 5, 6",
        "content-length: 5\r\ncontent-length: 6",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding : chunked",
        "host: b",
    ] {
        let answer = exchange(edge, &format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{hidden}")).await;
        assert!(status(&answer) == "400" && answer.matches("HTTP/1.1").count() == 1, "{fields}: {answer}");
    }
    // With what it cannot read, the connection ends.
    let named = exchange(edge, &format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n{hidden}")).await;
    assert!(status(&named) == "400" && named.matches("HTTP/1.1").count() == 1, "{named}");
    let connect = exchange(edge, "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\nconnection: close\r\n\r\n").await;
    assert!(matches!(status(&connect), "400" | "403" | "404" | "405"), "{connect}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_carried_as_they_are_where_a_chain_says_so() {
    let control = ManagementServer::start();
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Gateway::put_cluster(&control, "echo", echo.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    control.put("tcp", &listener("tcp", vec![bytes_to("echo", &[])]));
    let mut gateway = Gateway::start(control, &[]).await;
    let edge = gateway.bound().await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    // HTTP/2's preface, and then nothing like it.
    for said in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0; 100], b"\x16nothing of TLS"] {
        stream.write_all(said).await.unwrap();
        let mut back = vec![0; said.len()];
        within(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, said);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_one_line_of_the_access_log_with_its_bytes_and_why_it_was_closed() {
    let control = ManagementServer::start();
    let teller = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let teller_at = teller.local_addr().unwrap();
    Gateway::put_cluster(&control, "teller", teller_at);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = teller.accept().await {
            let mut said = [0; 5];
            _ = stream.read_exact(&mut said).await;
            _ = stream.write_all(b"good bye").await;
        }
    });
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Gateway::put_cluster(&control, "gone", gone);
    control.put("empty", &inline_cluster("empty", DiscoveryType::Static, &[]));
    let columns = "%REQ(:METHOD)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% \
                   %UPSTREAM_HOST% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n";
    let mut gateway = Gateway::start(control, &[]).await;
    let refused = TcpStream::connect(gone).await.unwrap_err().to_string().replace(' ', "_");
    for (cluster, host, received, sent) in
        [("teller", teller_at.to_string(), 5, 8), ("gone", gone.to_string(), 0, 0), ("empty", "-".to_owned(), 0, 0)]
    {
        gateway.control.put(cluster, &listener(cluster, vec![logged(bytes_to(cluster, &[]), columns)]));
        let edge = gateway.bound().await;
        let mut stream = TcpStream::connect(edge).await.unwrap();
        _ = stream.write_all(b"hello").await;
        // What is closed may be reset.
        _ = within(stream.read_to_end(&mut Vec::new())).await;
        drop(stream);
        let line = within(gateway.stdout.next_line()).await.unwrap().unwrap();
        let flags = line.split(' ').nth(3).unwrap();
        match cluster {
            "teller" => assert_eq!(flags, "-", "{line}"),
            "gone" => assert!(flags.ends_with("UF"), "{line}"),
            _ => assert_eq!(flags, "UH", "{line}"),
        }
        let reason = if cluster == "gone" { format!("cannot_connect_to_{gone}:_{refused}") } else { "-".to_owned() };
        assert_eq!(line, format!("- - 0 {flags} {received} {sent} {cluster} {host} {edge} {reason}"));
    }
}

/// The same chain, whose connections are logged so.
fn logged(mut chain: pb::FilterChain, columns: &str) -> pb::FilterChain {
    use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
    let Some(pb::filter::ConfigType::TypedConfig(any)) = chain.filters[0].config_type.take() else {
        panic!("{chain:?}")
    };
    let proxy = TcpProxy { access_log: vec![to_stdout(columns)], ..TcpProxy::decode(&*any.value).unwrap() };
    chain.filters[0].config_type = Some(pb::filter::ConfigType::TypedConfig(pack(&proxy)));
    chain
}

/// A chain whose connections go to this cluster, where they ask for these names.
pub(super) fn bytes_to(cluster: &str, names: &[&str]) -> pb::FilterChain {
    use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier};
    let proxy = TcpProxy {
        stat_prefix: "tcp".to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let filter =
        pb::Filter { name: "tcp".to_owned(), config_type: Some(pb::filter::ConfigType::TypedConfig(pack(&proxy))) };
    pb::FilterChain {
        name: format!("bytes-{cluster}"),
        filter_chain_match: Some(for_names(names)),
        filters: vec![filter],
        ..Default::default()
    }
}

/// Connections that ask for these names.
pub(super) fn for_names(names: &[&str]) -> pb::FilterChainMatch {
    pb::FilterChainMatch { server_names: names.iter().map(|&name| name.to_owned()).collect(), ..Default::default() }
}

/// What is asked for over the same stream.
pub(super) fn ads() -> Option<core::ConfigSource> {
    Some(mesh_core::testing::resources::same_stream())
}
