//! Who is let in at the servers of a gateway that look into nothing: policies as network filters, for an Envoy and for the library.

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use mesh_control::analysis::validate;
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::config::Severity;
use mesh_control::plane::Plane;
use mesh_core::authz::Connection;
use mesh_core::filter::FilterRegistry;
use mesh_core::identity::SpiffeId;
use mesh_core::model::Listener;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::state::States;
use mesh_core::view::RouteTable;
use mesh_core::xds::decode::{Options, decode};
use prost::Message;

use super::gateways::{WEB, edge, gateway, listener, plane, rules, secret};

const SELECTED: &str = "selector: {matchLabels: {istio: ingressgateway}}";
/// The filter that passes connections on.
const PROXY: &str = "envoy.filters.network.tcp_proxy";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: edges}}\n\
         spec: {{{SELECTED}, {spec}}}\n---\n"
    )
}

fn both() -> [Client; 2] {
    let mut library = edge();
    library.class = ClientClass::Library;
    [edge(), library]
}

/// The names of the filters of each chain of a listener.
fn filters(plane: &Plane, client: &Client, port: u16) -> Vec<String> {
    let listener = listener(plane, client, &format!("0.0.0.0_{port}"));
    let names =
        |chain: &pb::FilterChain| chain.filters.iter().map(|filter| filter.name.clone()).collect::<Vec<_>>().join(" ");
    listener.filter_chains.iter().map(names).collect()
}

/// Whether a connection is let in at port 81, by what the data plane makes of the listener.
fn is_let_in(plane: &Plane, client: &Client, (source, peer): (&str, Option<&SpiffeId>)) -> bool {
    let found = plane.snapshot().resource(client, Kind::Listener, "0.0.0.0_81").unwrap();
    let decoded = decode(ResourceType::Listener, &found.body, &Options::default()).unwrap();
    let Resource::Listener(listener) = decoded.resource else { panic!("it is a listener") };
    let Listener::Server(server) = &*listener else { panic!("it is a server's") };
    let chain = &server.filter_chains[0];
    assert!(chain.connections.is_some(), "{chain:?}");
    let (registry, states) = (FilterRegistry::default(), States::default());
    let table = RouteTable::compile(Arc::default(), &chain.http, &registry, &states, "edge").unwrap();
    let source = format!("{source}:5000").parse().unwrap();
    let destination = "10.0.0.1:81".parse().unwrap();
    table.verdict_on_bytes(Connection { peer, source, remote: source, destination, server_name: None }).is_allowed
}

fn tcp() -> String {
    let server = "{port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}";
    let to_web = "tcp: [{match: [{port: 81}], route: [{destination: {host: web}}]}]";
    [WEB.to_owned(), gateway("a", server), rules("t", "a", "'*'", to_web)].concat()
}

#[test]
fn what_policies_ask_of_connections_is_enforced_and_what_they_ask_of_requests_is_in_doubt() {
    let plane = plane(&tcp());
    let web: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let from = |what: &str| format!("from: [{{source: {{{what}}}}}]");
    let to = |what: &str| format!("to: [{{operation: {{{what}}}}}]");
    let when = |key: &str, values: &str| format!("when: [{{key: {key}, {values}}}]");
    let near = from("ipBlocks: [10.0.0.0/8]");
    const ALL: [bool; 3] = [true; 3];
    const NONE: [bool; 3] = [false; 3];
    const WEB_ALONE: [bool; 3] = [false, false, true];
    // Of somebody near, of somebody far, and of a workload that is near.
    for (action, rule, expected) in [
        ("ALLOW", String::new(), ALL),
        ("ALLOW", near.clone(), [true, false, true]),
        ("DENY", near.clone(), [false, true, false]),
        ("ALLOW", from("notIpBlocks: [10.0.0.0/8]"), [false, true, false]),
        ("ALLOW", from("remoteIpBlocks: [192.0.2.1]"), [false, true, false]),
        ("ALLOW", when("source.ip", "values: [192.0.2.0/24]"), [false, true, false]),
        ("ALLOW", from("principals: [cluster.local/ns/shop/sa/web]"), WEB_ALONE),
        ("ALLOW", from("namespaces: [shop]"), WEB_ALONE),
        ("ALLOW", from("serviceAccounts: [shop/web]"), WEB_ALONE),
        ("DENY", from("namespaces: [shop]"), [true, true, false]),
        // Who is not known is nobody else either.
        ("ALLOW", from("notPrincipals: [cluster.local/ns/shop/sa/other]"), WEB_ALONE),
        ("DENY", from("notPrincipals: [cluster.local/ns/shop/sa/web]"), WEB_ALONE),
        ("ALLOW", to("ports: ['81']"), ALL),
        ("ALLOW", to("ports: ['80']"), NONE),
        ("DENY", to("ports: ['81']"), NONE),
        ("DENY", to("notPorts: ['81']"), ALL),
        ("ALLOW", when("destination.ip", "values: [10.0.0.1]"), ALL),
        ("ALLOW", when("destination.ip", "values: [10.0.0.2]"), NONE),
        ("ALLOW", when("connection.sni", "values: ['*']"), NONE),
        ("DENY", when("connection.sni", "notValues: [a.example]"), NONE),
        ("ALLOW", to("methods: [GET]"), NONE),
        ("ALLOW", to("notMethods: [GET]"), NONE),
        ("ALLOW", format!("{near}, {}", to("paths: [/x]")), NONE),
        // Istio leaves out the whole rule.
        ("ALLOW", "to: [{operation: {hosts: [a.example]}}, {operation: {ports: ['81']}}]".to_owned(), NONE),
        ("ALLOW", from("requestPrincipals: ['*']"), NONE),
        ("ALLOW", when("'request.headers[x]'", "notValues: [a]"), NONE),
        ("DENY", format!("{near}, {}", to("paths: [/x]")), [false, true, false]),
        ("DENY", format!("{near}, {}", to("notMethods: [GET]")), [false, true, false]),
        ("DENY", to("methods: [GET], ports: ['80']"), ALL),
        ("DENY", from("notRequestPrincipals: ['*']"), NONE),
        ("DENY", when("'request.auth.claims[group]'", "notValues: [staff]"), NONE),
        ("AUDIT", to("paths: [/x]"), ALL),
        ("AUDIT", near.clone(), ALL),
    ] {
        plane.set_yaml("p.yaml", &policy("p", &format!("action: {action}, rules: [{{{rule}}}]"))).unwrap();
        for client in both() {
            let connections = [("10.1.1.1", None), ("192.0.2.1", None), ("10.1.1.1", Some(&web))];
            let let_in = connections.map(|connection| is_let_in(&plane, &client, connection));
            assert_eq!(let_in, expected, "{action} {rule} {:?}", client.class);
        }
    }
    let tried = policy("p", "rules: []").replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},");
    for (text, expected) in [(tried, true), (policy("p", "rules: []"), false), (policy("p", "rules: [{}]"), true)] {
        plane.set_yaml("p.yaml", &text).unwrap();
        assert_eq!(both().map(|client| is_let_in(&plane, &client, ("10.1.1.1", None))), [expected; 2], "{text}");
    }
}

#[test]
fn every_chain_that_is_not_looked_into_is_behind_the_filters_of_policies_and_no_other_one() {
    let servers = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, \
        {port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}, \
        {port: {number: 443, name: tls, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}, \
        {port: {number: 444, name: ends, protocol: TLS}, hosts: [c.example], tls: {mode: SIMPLE, credentialName: c}}";
    let routes = "tcp: [{match: [{port: 81}], route: [{destination: {host: web}}]}, \
        {match: [{port: 444}], route: [{destination: {host: web}}]}], \
        tls: [{match: [{sniHosts: [b.example]}], route: [{destination: {host: web}}]}]";
    let text = [
        WEB.to_owned(),
        secret("edges", "c", "c.example"),
        gateway("a", servers),
        rules("t", "a", "'*', b.example, c.example", routes),
    ];
    let plane = plane(&text.concat());
    let all = |client: &Client| [81, 443, 444].map(|port| filters(&plane, client, port));
    for client in both() {
        assert!(all(&client).iter().flatten().all(|names| names == PROXY), "{:?}", all(&client));
    }
    let near = "rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]";
    let policies = ["ALLOW", "DENY", "AUDIT"]
        .map(|action| policy(&action.to_ascii_lowercase(), &format!("action: {action}, {near}")));
    plane.set_yaml("p.yaml", &policies.concat()).unwrap();
    for client in both() {
        for names in all(&client) {
            // The last one is of names that no rule has, and leads nowhere.
            let (last, rest) = names.split_last().unwrap();
            let guarded = format!("mesh.rbac.audit mesh.rbac.deny mesh.rbac.allow {PROXY}");
            let guarded = |names: &String| *names == guarded;
            assert!(rest.iter().all(guarded) && (guarded(last) || last == PROXY && !rest.is_empty()), "{names:?}");
        }
        let http = filters(&plane, &client, 80);
        assert_eq!(http, ["envoy.filters.network.http_connection_manager"]);
    }
    let told = listener(&plane, &edge(), "0.0.0.0_81").filter_chains.remove(0);
    let Some(pb::filter::ConfigType::TypedConfig(deny)) = &told.filters[1].config_type else { panic!("{told:?}") };
    assert_eq!(deny.type_url, "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC");
    let deny = Rbac::decode(&*deny.value).unwrap();
    let rules = deny.rules.unwrap();
    assert_eq!((deny.stat_prefix.as_str(), rules.action), ("tcp.", 1));
    assert_eq!(rules.policies.keys().collect::<Vec<_>>(), ["AuthorizationPolicy/edges/deny#0"]);
}

#[test]
fn what_has_to_see_requests_closes_every_connection() {
    let plane = plane(&tcp());
    let asked = policy("p", "action: CUSTOM, provider: {name: nobody}, rules: [{to: [{operation: {ports: ['80']}}]}]");
    plane.set_yaml("p.yaml", &asked).unwrap();
    for client in both() {
        assert!(!is_let_in(&plane, &client, ("10.1.1.1", None)));
        let told = listener(&plane, &client, "0.0.0.0_81").encode_to_vec();
        assert!(String::from_utf8_lossy(&told).contains("BlackHoleCluster"));
    }
    plane.set_yaml("p.yaml", "").unwrap();
    assert!(is_let_in(&plane, &edge(), ("10.1.1.1", None)));
}

#[test]
fn a_request_authentication_closes_no_connection_and_who_asks_for_its_tokens_lets_nobody_in() {
    let plane = plane(&tcp());
    let tokens = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: t, namespace: edges}}\n\
         spec: {{{SELECTED}, jwtRules: [{{issuer: me, jwksUri: 'https://me.example/keys'}}]}}\n---\n"
    );
    for (policies, expected) in [
        (String::new(), true),
        (policy("p", "rules: [{to: [{operation: {ports: ['81']}}]}]"), true),
        (policy("p", "rules: [{to: [{operation: {ports: ['80']}}]}]"), false),
        (policy("p", "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"), false),
        (policy("p", "rules: [{from: [{source: {notRequestPrincipals: [me/you]}}]}]"), false),
        (policy("p", "rules: [{when: [{key: 'request.auth.claims[group]', values: [staff]}]}]"), false),
        (policy("p", "action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"), false),
        (policy("p", "action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]"), false),
        (policy("p", "action: DENY, rules: [{when: [{key: 'request.auth.claims[group]', values: [guest]}]}]"), false),
        (policy("p", "action: CUSTOM, provider: {name: nobody}, rules: [{}]"), false),
    ] {
        plane.set_yaml("p.yaml", &(tokens.clone() + &policies)).unwrap();
        for client in both() {
            assert_eq!(is_let_in(&plane, &client, ("10.1.1.1", None)), expected, "{policies} {:?}", client.class);
            let told = listener(&plane, &client, "0.0.0.0_81").encode_to_vec();
            let is_led = String::from_utf8_lossy(&told).contains("outbound|80||web.shop");
            assert_eq!(is_led, !policies.contains("CUSTOM"), "{policies}");
        }
    }
}

#[test]
fn connections_that_are_passed_on_by_their_own_name_end_where_requests_have_to_be_seen() {
    let server = "{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}";
    let plane = plane(&[WEB.to_owned(), gateway("a", server)].concat());
    for client in both() {
        let open = filters(&plane, &client, 443);
        assert!(open.iter().all(|names| names == PROXY), "{open:?}");
    }
    let asked = policy("p", "action: CUSTOM, provider: {name: nobody}, rules: [{}]");
    plane.set_yaml("p.yaml", &asked).unwrap();
    for client in both() {
        assert_eq!(filters(&plane, &client, 443), [format!("mesh.rbac.allow {PROXY}")]);
    }
}

#[test]
fn a_policy_says_at_which_servers_of_its_gateway_nobody_sees_what_it_asks_for() {
    let servers = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, \
        {port: {number: 81, name: tcp, protocol: TCP}, hosts: ['*']}, \
        {port: {number: 443, name: tls, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}, \
        {port: {number: 444, name: mesh, protocol: TLS}, hosts: [c.example], tls: {mode: ISTIO_MUTUAL}}";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n";
    let text = [gateway("a", servers), service.to_owned()].concat();
    let said = |kind: &str, namespace: &str, spec: &str| {
        let object = format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        );
        let said = validate([("a.yaml", text.as_str()), ("p.yaml", object.as_str())]);
        let of_servers = said.into_iter().filter(|finding| finding.message.contains(" of Gateway shop/a ("));
        of_servers
            .map(|finding| {
                let server = finding.message.split(' ').next().unwrap_or_default().to_owned();
                (server, finding.severity, finding.field.as_deref().unwrap_or_default().to_owned())
            })
            .collect::<Vec<_>>()
    };
    let at_all = |severity: Severity, field: &str| {
        ["servers[1]", "servers[2]", "servers[3]"]
            .map(|server| (server.to_owned(), severity, field.to_owned()))
            .to_vec()
    };
    let (error, warning) = (Severity::Error, Severity::Warning);
    let at = |servers: &[usize]| {
        let of = |index: &usize| (format!("servers[{index}]"), warning, "rules[0]".to_owned());
        servers.iter().map(of).collect::<Vec<_>>()
    };
    let peers = "from: [{source: {namespaces: [shop]}}, {source: {notPrincipals: ['*'], ipBlocks: [10.0.0.1]}}]";
    let asks_peers = format!("rules: [{{{peers}}}]");
    let sni = "rules: [{when: [{key: connection.sni, values: [b.example]}]}]";
    let paths = "rules: [{to: [{operation: {paths: [/x]}}]}]";
    let some = "rules: [{to: [{operation: {ports: ['81']}}]}, {to: [{operation: {paths: [/x], ports: ['80']}}]}]";
    let tokens = "jwtRules: [{issuer: me, jwksUri: 'https://me.example/keys'}]";
    const POLICY: &str = "AuthorizationPolicy";
    for (kind, namespace, spec, expected) in [
        // What is known of connections is enforced, and what is not known of any is for none.
        (POLICY, "edges", format!("{{{SELECTED}, {sni}}}"), at(&[0, 1])),
        (POLICY, "edges", format!("{{{SELECTED}, action: DENY, {sni}}}"), at(&[0, 1])),
        (POLICY, "edges", format!("{{{SELECTED}, {}}}", sni.replace("values", "notValues")), Vec::new()),
        (
            POLICY,
            "edges",
            format!("{{{SELECTED}, {}}}", sni.replace("{when", "{to: [{operation: {ports: ['81']}}], when")),
            at(&[1]),
        ),
        (
            POLICY,
            "edges",
            format!("{{{SELECTED}, {}}}", sni.replace("{when", "{to: [{operation: {ports: ['8080']}}], when")),
            at(&[0]),
        ),
        (POLICY, "edges", format!("{{{SELECTED}, {asks_peers}}}"), at(&[0, 1, 2])),
        (POLICY, "edges", format!("{{{SELECTED}, action: DENY, {asks_peers}}}"), Vec::new()),
        (
            POLICY,
            "edges",
            format!("{{{SELECTED}, action: DENY, {}}}", asks_peers.replace("notPrincipals", "principals")),
            at(&[0, 1, 2]),
        ),
        (POLICY, "edges", format!("{{{SELECTED}, {}}}", asks_peers.replace("notPrincipals: ['*'], ", "")), Vec::new()),
        (POLICY, "edges", format!("{{{SELECTED}}}"), Vec::new()),
        (POLICY, "edges", format!("{{{SELECTED}, {paths}}}"), at_all(error, "rules")),
        (POLICY, "edges", format!("{{{paths}}}"), at_all(error, "rules")),
        (POLICY, "istio-system", format!("{{{SELECTED}, {paths}}}"), at_all(error, "rules")),
        (POLICY, "edges", format!("{{{SELECTED}, action: DENY, {paths}}}"), at_all(error, "rules[0]")),
        (POLICY, "edges", format!("{{{SELECTED}, {some}}}"), at_all(warning, "rules[1]")),
        (POLICY, "edges", format!("{{{SELECTED}, action: DENY, {some}}}"), at_all(warning, "rules[1]")),
        ("RequestAuthentication", "edges", format!("{{{SELECTED}, {tokens}}}"), at_all(warning, "jwtRules")),
        // It only tells of requests, is for others, or for those of another namespace.
        (POLICY, "edges", format!("{{{SELECTED}, action: AUDIT, {paths}}}"), Vec::new()),
        (POLICY, "edges", format!("{{selector: {{matchLabels: {{app: web}}}}, {paths}}}"), Vec::new()),
        (POLICY, "shop", format!("{{{SELECTED}, {paths}}}"), Vec::new()),
        (POLICY, "shop", format!("{{{paths}}}"), Vec::new()),
    ] {
        assert_eq!(said(kind, namespace, &spec), expected, "{kind} {namespace} {spec}");
    }
}
