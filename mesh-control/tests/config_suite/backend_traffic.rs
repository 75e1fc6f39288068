//! XBackendTrafficPolicies of Gateway API: how many retries Services get, and what their sessions stay by. What a client does with
//! either is shown by the tests of DestinationRules' budgets and of sessions by labels.

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::catalog::{Catalog, ClientClass, Kind};
use mesh_control::config::load::Scan;
use mesh_control::plane::{Plane, PlaneOptions};
use prost::Message;

use crate::support::{Seen, client, client_of, made_in, plane_from, policy_reasons};

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: labelled, namespace: shop, labels: {istio.io/persistent-session: own}}\n\
    spec: {selector: {app: labelled}, ports: [{name: http, port: 80}]}\n---\n";
const WEB: &str = "outbound|80||web.shop.svc.cluster.local";

/// A policy for a Service, made in this year; of no age without any.
fn policy(name: &str, year: &str, service: &str, spec: &str) -> String {
    let created = made_in(year);
    format!(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\n\
         metadata: {{name: {name}, namespace: shop{created}}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: {service}}}], {spec}}}\n---\n"
    )
}

/// Percent, how many in any case, and seconds.
fn budget(plane: &Plane, class: ClientClass) -> Option<(f64, u32, i64)> {
    let cluster = Seen::new(plane, client_of(class, "shop", &[])).cluster(WEB);
    let threshold = cluster.circuit_breakers?.thresholds.into_iter().next()?;
    let RetryBudget { budget_percent, min_retry_concurrency, budget_interval, .. } = threshold.retry_budget?;
    Some((budget_percent?.value, min_retry_concurrency?.value, budget_interval?.seconds))
}

/// What a client is told of the target of this Service.
fn told(plane: &Plane, service: &str) -> String {
    let name = format!("{service}.shop.svc.cluster.local:80");
    let found = plane.snapshot().resource(&client("shop"), Kind::Listener, &name).unwrap();
    String::from_utf8_lossy(&found.body).into_owned()
}

/// The cookie that carries sessions with `web`.
fn cookie(plane: &Plane) -> Option<Cookie> {
    let manager = Seen::new(plane, client("shop")).manager("web.shop.svc.cluster.local:80");
    let configs = manager.http_filters.into_iter().filter_map(|filter| match filter.config_type {
        Some(ConfigType::TypedConfig(config)) => Some(config),
        _ => None,
    });
    let config = configs.into_iter().find(|config| config.type_url.ends_with(".StatefulSession"))?;
    let state = StatefulSession::decode(&*config.value).unwrap().session_state?.typed_config?;
    CookieBasedSessionState::decode(&*state.value).unwrap().cookie
}

#[test]
fn a_service_gets_as_many_retries_as_the_policy_says_unless_a_rule_does() {
    let written = "retryConstraint: {budget: {percent: 30, interval: 20s}, minRetryRate: {count: 7}}";
    let plane = plane_from(&[SERVICES, &policy("p", "", "web", written)].concat());
    for class in [ClientClass::Library, ClientClass::Envoy] {
        assert_eq!(budget(&plane, class), Some((30.0, 7, 20)), "{class:?}");
    }
    let defaults = plane_from(&[SERVICES, &policy("p", "", "web", "retryConstraint: {}")].concat());
    assert_eq!(budget(&defaults, ClientClass::Library), Some((20.0, 10, 10)));
    let nothing = plane_from(&[SERVICES, &policy("p", "", "labelled", written)].concat());
    assert_eq!(budget(&nothing, ClientClass::Library), None);
    for (of_rule, expected) in [
        ("connectionPool: {http: {maxRetries: 5}}", None),
        ("retryBudget: {percent: 40, minRetryConcurrency: 2, budgetInterval: 5s}", Some((40.0, 2, 5))),
        ("loadBalancer: {simple: RANDOM}", Some((30.0, 7, 20))),
    ] {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{host: web, trafficPolicy: {{{of_rule}}}}}\n"
        );
        let plane = plane_from(&[SERVICES, &policy("p", "", "web", written), &rule].concat());
        assert_eq!(budget(&plane, ClientClass::Library), expected, "{of_rule}");
    }
}

#[test]
fn sessions_stay_by_what_the_policy_names_unless_the_service_does() {
    for (spec, expected, other) in [
        ("{}", "mesh-session-web.shop.svc.cluster.local", "stateful_session.header"),
        ("{sessionName: at}", "stateful_session.cookie", "mesh-session"),
        ("{sessionName: X-At, type: Header}", "x-at", "stateful_session.cookie"),
    ] {
        let text = [SERVICES, &policy("p", "", "web", &format!("sessionPersistence: {spec}"))].concat();
        let told = told(&plane_from(&text), "web");
        assert!(told.contains(expected) && !told.contains(other), "{spec}: {told}");
    }
    assert!(!told(&plane_from(SERVICES), "web").contains("stateful_session"));
    for (spec, life) in [
        ("{absoluteTimeout: 90m, cookieConfig: {lifetimeType: Permanent}}", Some(5400)),
        ("{absoluteTimeout: 500ms, cookieConfig: {lifetimeType: Permanent}}", Some(1)),
        ("{absoluteTimeout: 90m}", None),
    ] {
        let plane = plane_from(&[SERVICES, &policy("p", "", "web", &format!("sessionPersistence: {spec}"))].concat());
        let cookie = cookie(&plane).unwrap();
        assert_eq!((&*cookie.path, cookie.ttl.map(|ttl| ttl.seconds)), ("/", life), "{spec}");
        let is_reported =
            plane.diagnostics().iter().any(|one| one.message.contains("without a cookie that is `Permanent`"));
        assert_eq!(is_reported, life.is_none(), "{spec}");
    }
    let endless = policy("p", "", "web", "sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}");
    assert!(Plane::from_yaml(&[SERVICES, &endless].concat()).is_err(), "the schema wants it to end");
    let both = policy("p", "", "labelled", "sessionPersistence: {sessionName: other, type: Header}");
    let plane = plane_from(&[SERVICES, &both].concat());
    assert!(told(&plane, "labelled").contains("stateful_session.cookie"));
    let said = plane.diagnostics();
    assert!(said.iter().any(|one| one.message.contains("its own labels say what sessions stay by")), "{said:#?}");
}

#[test]
fn of_two_policies_for_a_service_the_older_counts_and_what_has_no_effect_is_told() {
    let share = |percent: u32| format!("retryConstraint: {{budget: {{percent: {percent}}}}}");
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n\
        spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}\n---\n";
    let pod = policy("pod", "", "web", &share(1)).replace("kind: Service", "kind: Pod");
    let text = [
        SERVICES.to_owned(),
        alias.to_owned(),
        policy("a", "2026", "web", &share(60)),
        policy("ageless", "", "web", &share(70)),
        policy("alias", "", "alias", &share(80)),
        policy("b", "2025", "web", &share(50)),
        policy("missing", "2024", "nobody", &share(1)),
        policy("named", "2024", "web", "sessionPersistence: {sessionName: 'a b'}"),
        pod,
    ];
    let plane = plane_from(&text.concat());
    let expected = [
        ("a", "Conflicted"),
        ("ageless", "Conflicted"),
        ("alias", "TargetNotFound"),
        ("b", "Accepted"),
        ("missing", "TargetNotFound"),
        ("named", "Invalid"),
        ("pod", "TargetNotFound"),
    ];
    assert_eq!(policy_reasons(&plane), expected.map(|(name, reason)| (name.to_owned(), vec![reason])));
    assert_eq!(budget(&plane, ClientClass::Library), Some((50.0, 10, 10)));
    for name in ["a", "ageless", "alias", "missing", "named", "pod"] {
        let id = format!("XBackendTrafficPolicy shop/{name}");
        let said = plane.diagnostics();
        assert!(said.iter().any(|one| one.object.as_deref() == Some(id.as_str())), "{name}: {said:#?}");
    }
}

#[test]
fn what_grpcs_clients_do_not_do_of_it_is_told_where_it_is_written() {
    let written = "retryConstraint: {}, sessionPersistence: {}";
    let text = [SERVICES, &policy("p", "", "web", written)].concat();
    let mut scan = Scan::default();
    scan.files.insert("a.yaml".into(), Ok(text.as_str().into()));
    let said = validate_scan(scan, Mesh { has_grpc: true, ..Mesh::default() }).diagnostics;
    let of_policy = said.iter().filter(|one| one.object.as_deref() == Some("XBackendTrafficPolicy shop/p"));
    let fields: Vec<_> = of_policy.filter_map(|one| one.field.as_deref()).collect();
    assert_eq!(fields, ["retryConstraint", "sessionPersistence"], "{said:#?}");
}

#[tokio::test]
async fn a_wrong_policy_is_told_and_its_services_are_called_as_without_it() {
    let good = policy("p", "", "web", "retryConstraint: {budget: {percent: 30}}");
    for wrong in [good.replace("percent: 30", "percent: 101"), good.replace("retryConstraint:", "retryConstrain:")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("good.yaml"), SERVICES).unwrap();
        std::fs::write(dir.path().join("wrong.yaml"), &wrong).unwrap();
        let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
        assert_eq!(plane.wrong().len(), 1, "{wrong}");
        assert_eq!(budget(&plane, ClientClass::Library), None);
        assert!(told(&plane, "web").contains("web.shop"));
    }
}
