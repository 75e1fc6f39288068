//! ListenerSets: which Gateways take their listeners in, whose listeners go first, and what becomes of those that are wrong.

use std::collections::BTreeMap;

use mesh_control::catalog::Kind;
use mesh_control::config::store::Standing;
use mesh_control::plane::Plane;
use mesh_control::policy::gateway_api::GatewayStatus;

use crate::gateways::{WEB, chains, clusters_of, edge, hosts, names, plane, secret};
use crate::kubernetes_gateways::{
    RULES, WORKLOADS, accepted, aged, at_address, gateway_of_shop, http, https, is_strangers, object, route, stranger,
    told, with_wrong,
};

/// A Gateway that lets ListenerSets in, from there.
fn allowing(from: &str, listeners: &str) -> String {
    let allowed = format!("allowedListeners: {{namespaces: {{{from}}}}}");
    object("Gateway", "shop", "edge", &format!("{{gatewayClassName: istio, {allowed}, listeners: [{listeners}]}}"))
}

fn set(namespace: &str, name: &str, listeners: &str) -> String {
    let spec = format!("{{parentRef: {{name: edge, namespace: shop}}, listeners: [{listeners}]}}");
    object("ListenerSet", namespace, name, &spec)
}

/// The status of a Gateway or a ListenerSet, by its kind, namespace and name.
fn status(plane: &Plane, id: &str) -> Option<GatewayStatus> {
    plane.snapshot().gateway_statuses().iter().find(|status| *status.gateway == *id).cloned()
}

/// Accepted and Conflicted of each listener.
fn taken(status: &GatewayStatus) -> Vec<String> {
    status.listeners.iter().map(|listener| told(&listener.conditions[..2])).collect()
}

const GOOD: &str = "Accepted=true:Accepted Conflicted=false:NoConflicts";

#[test]
fn listeners_of_a_listener_set_are_added_where_the_gateway_lets_its_namespace_in() {
    let own = http("http", "");
    let rest = [
        WEB.to_owned(),
        set("guest", "more", &http("http", ", hostname: more.example")),
        route("HTTPRoute", "guest", "own", "{kind: ListenerSet, name: more}", "", "/own"),
        route("HTTPRoute", "guest", "section", "{kind: ListenerSet, name: more, sectionName: other}", "", "/section"),
        route("HTTPRoute", "shop", "gateway", "{name: edge}", "", "/gateway"),
    ]
    .concat();
    let of = |gateway: &str| {
        let plane = plane(&[gateway, &rest].concat());
        let found = hosts(&plane, &gateway_of_shop(), "http.80");
        let found = found.into_iter().map(|(name, host)| (name, host.routes.len())).collect::<Vec<_>>();
        let set = status(&plane, "ListenerSet guest/more").unwrap();
        let attached = status(&plane, "KubernetesGateway shop/edge").unwrap().attached_listener_sets;
        (found, accepted(&plane), told(&set.conditions), attached)
    };
    let routes = |own: &str| {
        let all = [("gateway 0", "Accepted"), ("own 0", own), ("section 0", "NoMatchingParent")];
        BTreeMap::from(all.map(|(name, reason)| (name.to_owned(), reason.to_owned())))
    };
    let both = vec![("*:80".to_owned(), 2), ("more.example:80".to_owned(), 2)];
    let named =
        |name: &str| format!("from: Selector, selector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}");
    for from in ["from: All", &named("guest")] {
        let (found, accepted, said, attached) = of(&allowing(from, &own));
        assert_eq!((found, accepted), (both.clone(), routes("Accepted")), "{from}");
        let expected = ("Accepted=true:Accepted Programmed=true:Programmed", Some(1));
        assert_eq!((said.as_str(), attached), expected, "{from}");
    }
    let unsaid = object("Gateway", "shop", "edge", &format!("{{gatewayClassName: istio, listeners: [{own}]}}"));
    let denied = ["from: Same", "from: None", "", &named("other")].map(|from| allowing(from, &own));
    for gateway in denied.into_iter().chain([unsaid]) {
        let (found, accepted, said, attached) = of(&gateway);
        assert_eq!(found, both[..1], "{gateway}");
        assert_eq!(accepted, routes("NoMatchingParent"), "{gateway}");
        assert_eq!((said.as_str(), attached), ("Accepted=false:NotAllowed Programmed=false:NotAllowed", Some(0)));
    }
    // Of a Gateway that is another controller's nothing is said.
    let foreign = allowing("from: All", &own).replace("gatewayClassName: istio", "gatewayClassName: other");
    let plane = plane(&[foreign, rest].concat());
    assert!(plane.snapshot().gateway_statuses().is_empty());
    let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.contains("ListenerSet guest/more: parentRef: there is no Gateway shop/edge")));
}

#[test]
fn of_listeners_in_each_others_way_the_gateways_own_is_served_and_then_that_of_the_oldest_listener_set() {
    let of = |name: &str| {
        let all = [http("a", ", hostname: a.example"), http("b", &format!(", hostname: {name}.example"))];
        set("shop", name, &all.join(", "))
    };
    let text = [
        WEB.to_owned(),
        allowing("from: Same", &http("own", ", hostname: own.example")),
        of("ageless"),
        aged(of("late"), "2026"),
        aged(of("early"), "2024"),
        aged(set("shop", "rival", &http("own", ", hostname: own.example")), "2023"),
        // What is left out itself is in nobody's way.
        aged(set("shop", "raw", "{name: raw, port: 80, protocol: TCP}"), "2022"),
        route("HTTPRoute", "shop", "r", "{kind: ListenerSet, name: late}", "", "/"),
    ];
    let plane = plane(&text.concat());
    let states = |name: &str| taken(&status(&plane, name).unwrap());
    let not = |reason: &str| format!("Accepted=false:{reason} Conflicted=true:{reason}");
    assert_eq!(states("KubernetesGateway shop/edge"), [GOOD]);
    assert_eq!(states("ListenerSet shop/early"), [GOOD, GOOD]);
    for younger in ["ListenerSet shop/late", "ListenerSet shop/ageless"] {
        assert_eq!(states(younger), [not("HostnameConflict"), GOOD.to_owned()], "{younger}");
    }
    assert_eq!(states("ListenerSet shop/rival"), [not("HostnameConflict")]);
    assert_eq!(states("ListenerSet shop/raw"), [not("ProtocolConflict")]);
    let rival = status(&plane, "ListenerSet shop/rival").unwrap();
    assert_eq!(told(&rival.conditions), "Accepted=false:ListenersNotValid Programmed=false:Invalid");
    assert_eq!(status(&plane, "KubernetesGateway shop/edge").unwrap().attached_listener_sets, Some(3));
    let found = hosts(&plane, &gateway_of_shop(), "http.80");
    let found: Vec<(&str, usize)> = found.iter().map(|(name, host)| (name.as_str(), host.routes.len())).collect();
    let none = ["a.example:80", "ageless.example:80", "early.example:80"].map(|name| (name, 0));
    // The route is attached to both listeners, and one of them is not served.
    let expected = [&none[..], &[("late.example:80", 1), ("own.example:80", 0)]].concat();
    assert_eq!(found, expected);
}

#[test]
fn a_listener_set_shows_certificates_of_its_own_namespace_and_of_others_by_grants_to_its_own_kind() {
    let refer = |name: &str, to: &str| https(name, &format!("{name}.example"), &format!("certificateRefs: [{to}]"));
    let grant = |kind: &str, namespace: &str, secret: &str| {
        let from = format!("{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {namespace}}}");
        let to = format!("{{group: '', kind: Secret, name: {secret}}}");
        object("ReferenceGrant", "vault", secret, &format!("{{from: [{from}], to: [{to}]}}"))
    };
    let text = [
        secret("guest", "own", "own.example"),
        secret("vault", "granted", "granted.example"),
        secret("vault", "gateways", "gateways.example"),
        secret("shop", "shops", "shops.example"),
        grant("ListenerSet", "guest", "granted"),
        grant("Gateway", "shop", "gateways"),
        allowing("from: All", &http("http", "")),
        set(
            "guest",
            "more",
            &[
                refer("own", "{name: own}"),
                refer("granted", "{name: granted, namespace: vault}"),
                refer("gateways", "{name: gateways, namespace: vault}"),
                refer("shops", "{name: shops, namespace: shop}"),
            ]
            .join(", "),
        ),
    ];
    let plane = plane(&text.concat());
    let client = gateway_of_shop();
    let expected = [("own", true), ("granted", true), ("gateways", false), ("shops", false)]
        .map(|(name, is_served)| (vec![format!("{name}.example")], is_served));
    assert_eq!(chains(&plane, &client, "0.0.0.0_443"), expected);
    assert_eq!(names(&plane, &client, Kind::Secret), "kubernetes://guest/own kubernetes://vault/granted");
    let set = status(&plane, "ListenerSet guest/more").unwrap();
    let resolved = set.listeners.iter().map(|listener| listener.conditions[2].reason);
    let expected = ["ResolvedRefs", "ResolvedRefs", "RefNotPermitted", "RefNotPermitted"];
    assert_eq!(resolved.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_wrong_route_at_a_listener_set_fails_the_hosts_that_only_it_has() {
    let good = [
        WEB.to_owned(),
        allowing("from: All", &http("http", "")),
        set("guest", "more", &http("http", ", hostname: '*.more.example'")),
        route("HTTPRoute", "guest", "good", "{kind: ListenerSet, name: more}", "good.more.example", "/"),
    ];
    let wrong = route("HTTPRoute", "guest", "wrong", "{kind: ListenerSet, name: more}", "a.more.example", "/");
    let (_dir, plane) = with_wrong(&good.concat(), &wrong.replace("rules", "ruels"));
    let found = hosts(&plane, &gateway_of_shop(), "http.80");
    assert_eq!(clusters_of(&found["a.more.example:80"]), ["500"]);
    assert_eq!(found["good.more.example:80"].routes.len(), 1);
    assert_eq!(found["*:80"].routes.len(), 0);
}

#[test]
fn a_listener_set_is_as_old_as_it_is_itself_and_no_older_than_its_gateway() {
    for (gateway, set_of_it, istio, expected) in [
        ("2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2024-01-01T00:00:00Z", true),
        ("2020-01-01T00:00:00Z", "2022-01-01T00:00:00Z", "2024-01-01T00:00:00Z", false),
        ("2023-01-01T00:00:00Z", "2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z", true),
        // By the time that it is, and not by how it is written; what is none is no age.
        ("2020-01-01T00:00:00Z", "2024-01-01T00:30:00+01:00", "2024-01-01T00:00:00Z", false),
        ("2020-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "0", false),
    ] {
        let at = |text: String, time: &str| text.replace("}\nspec", &format!(", creationTimestamp: '{time}'}}\nspec"));
        let text = [
            WEB.to_owned(),
            at(allowing("from: All", &http("other", ", hostname: other.example")), gateway),
            at(set("shop", "more", &http("http", ", hostname: a.example")), set_of_it),
            at(stranger("gateway.networking.k8s.io/gateway-name: edge"), istio),
            RULES.to_owned(),
            route("HTTPRoute", "shop", "own", "{kind: ListenerSet, name: more}", "", "/own"),
        ];
        let (found, said) = is_strangers(&text.concat(), &gateway_of_shop());
        assert_eq!(found, expected, "{gateway} {set_of_it} {istio}: {said:#?}");
        let is_none = said.iter().any(|line| line.contains("metadata.creationTimestamp") && line.contains("no time"));
        assert_eq!(is_none, istio == "0", "{said:#?}");
    }
}

#[tokio::test]
async fn a_wrong_listener_set_keeps_its_hosts_and_serves_nothing_there() {
    let base = http("base", ", hostname: base.example");
    let of = |victim: &str| {
        let certificate = "certificateRefs: [{name: c}]";
        let evil = [
            http("e", ", hostname: a.example"),
            http("w", ", hostname: '*.example'"),
            https("s", "a.example", certificate),
        ];
        let good = [
            WEB.to_owned(),
            secret("evil", "c", "a.example"),
            allowing("from: All", &base),
            aged(set("evil", "evil", &evil.join(", ")), "2025"),
            route("HTTPRoute", "evil", "evil", "{kind: ListenerSet, name: evil}", "a.example, b.example", "/"),
        ];
        let victim = [http("v", victim), https("s", "a.example", certificate)];
        with_wrong(&good.concat(), &aged(set("guest", "victim", &victim.join(", ")), "2024"))
    };
    // Its TLS is refused, its requests are answered with 503, and others go on.
    let (_dir, plane) = of(", hostname: a.example, allowdRoutes: {}");
    let found = hosts(&plane, &gateway_of_shop(), "http.80");
    assert_eq!(clusters_of(&found["a.example:80"]), ["503"]);
    assert!(!found["b.example:80"].routes.is_empty() && found.contains_key("base.example:80"), "{found:?}");
    assert_eq!(chains(&plane, &gateway_of_shop(), "0.0.0.0_443"), [(vec!["a.example".to_owned()], false)]);
    assert_eq!(plane.wrong()[0].standing, Standing::FailsClosed);
    assert_eq!(status(&plane, "ListenerSet guest/victim").map(|status| taken(&status)), None);
    // Where it would listen cannot be read of one of its listeners.
    let (_dir, plane) = of(", hostname: [{a: 1}]");
    let said = plane.diagnostics();
    assert!(said.iter().any(|one| one.message.contains("others may have its hosts")), "{said:#?}");
}

#[tokio::test]
async fn the_listener_sets_that_a_wrong_gateway_lets_in_keep_their_hosts_as_it_keeps_its_own() {
    let certificate = "certificateRefs: [{name: c}]";
    let of_set = [http("http", ", hostname: a.example"), https("s", "a.example", certificate)];
    let wide = [http("wide", ", hostname: '*.example'"), https("s", "*.example", certificate)];
    let good = [
        WEB.to_owned(),
        WORKLOADS.to_owned(),
        secret("shop", "c", "*.example"),
        secret("guest", "c", "a.example"),
        at_address("other", &wide.join(", ")),
        route("HTTPRoute", "shop", "other", "{name: other}", "a.example, b.example", "/"),
        set("guest", "more", &of_set.join(", ")),
        route("HTTPRoute", "guest", "own", "{kind: ListenerSet, name: more}", "", "/own"),
    ]
    .concat();
    let of = |allowed: &str| {
        let wrong = at_address("edge", &http("own", ", hostname: own.example, allowdRoutes: {}"));
        with_wrong(&good, &wrong.replace("gatewayClassName: istio,", &format!("gatewayClassName: istio, {allowed}")))
    };
    let client = edge().namespace("shop");
    let found = |plane: &Plane, host: &str| clusters_of(&hosts(plane, &client, "http.80")[host]);
    let by_tls = |plane: &Plane| {
        let closed = |(names, is_tls): &(Vec<String>, bool)| names.as_slice() == ["a.example"] && !is_tls;
        chains(plane, &client, "0.0.0.0_443").iter().any(closed)
    };
    for (allowed, is_kept, is_told) in [
        ("allowedListeners: {namespaces: {from: All}},", true, false),
        // It lets nobody in, or nobody can tell whom.
        ("allowedListeners: {namespaces: {from: Same}},", false, false),
        ("", false, false),
        ("allowedListeners: {namespaces: {from: Everybody}},", false, true),
    ] {
        let (_dir, plane) = of(allowed);
        assert_eq!(found(&plane, "own.example:80"), ["503"], "{allowed}");
        assert_ne!(found(&plane, "b.example:80"), ["503"], "{allowed}");
        assert_eq!(found(&plane, "a.example:80") == ["503"], is_kept, "{allowed}");
        assert_eq!(by_tls(&plane), is_kept, "{allowed}");
        let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
        let has = |text: &str| said.iter().any(|line| line.contains(text));
        assert!(has("ListenerSet guest/more: parentRef: Gateway shop/edge is wrong"), "{allowed}: {said:#?}");
        assert_eq!(has("others may have its hosts"), is_told, "{allowed}: {said:#?}");
        assert!(status(&plane, "ListenerSet guest/more").is_none());
    }
}
