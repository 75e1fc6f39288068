//! What a `Sidecar` lets a client see: which hosts answer it.

use std::net::SocketAddr;

use mesh_control::analysis::validate;
use mesh_core::error::ErrorKind;

use crate::support::{World, server};

/// A host of a namespace.
fn host(name: &str, namespace: &str, port: u16, at: SocketAddr) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {}, namespace: {namespace}}}
spec:
  hosts: [{name}]
  resolution: STATIC
  ports: [{{number: {port}, name: http}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
",
        name.split('.').next().unwrap(),
        at.ip(),
        at.port()
    )
}

fn sidecar(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// One that has these hosts, and nothing else.
fn only(name: &str, namespace: &str, more: &str, hosts: &str) -> String {
    let spec = format!("{{{more}egress: [{{hosts: [{hosts}]}}], outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}}}");
    sidecar(name, namespace, &spec)
}

/// Which of the hosts answer.
async fn seen(world: &World) -> String {
    let mut seen = Vec::new();
    for name in ["a", "b", "c"] {
        match world.get(&format!("http://{name}.example.com/")).await {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::UnknownTarget, "{error}");
                continue;
            }
        }
        seen.push(name);
    }
    seen.join(" ")
}

#[tokio::test]
async fn a_client_sees_the_hosts_of_the_sidecar_that_is_for_it() {
    let at = server("v1").await;
    let hosts = [("a", "default"), ("b", "shop"), ("c", "other")];
    let services: String = hosts.map(|(name, of)| host(&format!("{name}.example.com"), of, 80, at)).concat();
    let selected = "workloadSelector: {labels: {app: caller}}, ";
    for (sidecars, expected) in [
        (String::new(), "a b c"),
        (sidecar("own", "default", "{}"), "a b c"),
        (only("own", "default", "", "'./*'"), "a"),
        (only("own", "default", "", "'*/*'"), "a b c"),
        (only("own", "default", "", "'~/*'"), ""),
        (only("own", "default", "", "'shop/*', './*'"), "a b"),
        (only("own", "default", "", "'*/c.example.com'"), "c"),
        (only("own", "default", "", "'shop/*.example.com'"), "b"),
        (only("own", "default", "", "'shop/c.example.com'"), ""),
        (only("own", "default", "", "'*/*', '~shop/*'"), "a c"),
        (only("own", "default", "", "'*/*', '~*/a.example.com'"), "b c"),
        (only("own", "default", "", "'*/*', '~*/A.example.com.'"), "b c"),
        (only("own", "default", "", "'shop/B.example.com.'"), "b"),
        // Of another namespace, or for other workloads.
        (only("theirs", "shop", "", "'~/*'"), "a b c"),
        (only("others", "default", "workloadSelector: {labels: {app: other}}, ", "'~/*'"), "a b c"),
        // That of the root namespace is for all that have none, and its own selector is of its own workloads.
        (only("all", "istio-system", "", "'shop/*'"), "b"),
        (only("all", "istio-system", selected, "'shop/*'"), "a b c"),
        // Its `.` is the namespace of the client, and not its own.
        (only("all", "istio-system", "", "'./*', 'istio-system/*'"), "a"),
        (only("all", "istio-system", "", "'*/*', '~./*'"), "b c"),
        ([only("all", "istio-system", "", "'~/*'"), only("own", "default", "", "'./*'")].concat(), "a"),
        ([only("aa", "default", "", "'./*'"), only("zz", "default", selected, "'other/*'")].concat(), "c"),
        // Of two for a whole namespace, the first one counts.
        ([only("zz", "default", "", "'other/*'"), only("aa", "default", "", "'./*'")].concat(), "a"),
    ] {
        let world = World::of("default", &[("app", "caller")], &format!("{services}{sidecars}")).await;
        assert_eq!(seen(&world).await, expected, "under {sidecars}");
    }
}

#[tokio::test]
async fn rules_of_a_namespace_that_is_not_seen_count_for_nothing() {
    let services = host("a.example.com", "default", 80, server("v1").await);
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\n\
                spec: {hosts: [a.example.com, only.example.com], http: [{directResponse: {status: 299}}]}\n";
    for (hosts, of_service, of_rule) in
        [("'*/*'", Some(299), Some(299)), ("'./*'", Some(200), None), ("'shop/*'", None, Some(299))]
    {
        let world = World::new(&format!("{services}{rule}{}", only("own", "default", "", hosts))).await;
        let status =
            async |name: &str| world.get(&format!("http://{name}.example.com/")).await.map(|it| it.status).ok();
        assert_eq!((status("a").await, status("only").await), (of_service, of_rule), "{hosts}");
    }
}

#[tokio::test]
async fn what_is_not_seen_is_as_if_nobody_had_described_it() {
    let (meshed, direct) = (server("meshed").await, server("direct").await);
    let services = host("localhost", "shop", direct.port(), meshed);
    let uri = format!("http://localhost:{}/", direct.port());
    for (policy, expected) in [
        ("", Ok("direct")),
        (", outboundTrafficPolicy: {mode: ALLOW_ANY}", Ok("direct")),
        (", outboundTrafficPolicy: {mode: REGISTRY_ONLY}", Err(ErrorKind::UnknownTarget)),
    ] {
        let spec = format!("{{egress: [{{hosts: ['./*']}}]{policy}}}");
        let world = World::new(&format!("{services}{}", sidecar("own", "default", &spec))).await;
        let answer = world.get(&uri).await.map(|answer| answer.body.lines().next().unwrap().to_owned());
        assert_eq!(answer.as_deref().map_err(|error| error.kind()), expected, "{policy}");
    }
    let world = World::new(&services).await;
    assert!(world.get(&uri).await.unwrap().body.starts_with("meshed"), "without a Sidecar");
    // A host of nobody passes, or not, as its own Sidecar says.
    let spec = "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    let world = World::new(&sidecar("own", "default", spec)).await;
    assert_eq!(world.get(&uri).await.unwrap_err().kind(), ErrorKind::UnknownTarget);
}

#[test]
fn two_sidecars_for_a_whole_namespace_are_told_of() {
    let text = [only("zz", "default", "", "'./*'"), only("aa", "default", "", "'./*'")].concat();
    let said: Vec<String> = validate([("t.yaml", text.as_str())]).iter().map(ToString::to_string).collect();
    let one = said.iter().filter(|line| line.contains("Sidecar default/zz: Sidecar default/aa (t.yaml:"));
    assert!(one.count() == 1 && said.iter().any(|line| line.contains("is for the whole namespace, too")), "{said:#?}");
    let bad = only("aa", "default", "", "a.example.com");
    let said: Vec<String> = validate([("t.yaml", bad.as_str())]).iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.contains("is not NAMESPACE/HOST")), "{said:#?}");
}

/// As rules of a VirtualService, which have the same effect.
#[tokio::test]
async fn routes_of_gateway_api_count_where_the_sidecar_has_the_hosts_of_their_namespace() {
    let host = host("a.example.com", "mesh", 80, server("a").await);
    let route = |namespace: &str, status: u16| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: a, namespace: {namespace}}}
spec:
  parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: a, namespace: mesh}}]
  rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{path: {{type: ReplaceFullPath, replaceFullPath: /x}}, statusCode: {status}}}}}]}}]
"
        )
    };
    for (hosts, expected) in [
        ("'*/*'", 302),
        ("mesh/*, ./*", 302),
        // Its own route is of no namespace that it has.
        ("mesh/*", 301),
        ("mesh/*, ~mesh/b.example.com", 301),
    ] {
        let yaml = format!("{host}{}{}{}", route("mesh", 301), route("shop", 302), only("few", "shop", "", hosts));
        let world = World::of("shop", &[], &yaml).await;
        assert_eq!(world.get("http://a.example.com/").await.unwrap().status, expected, "{hosts}");
    }
}

#[test]
fn hosts_of_the_meshs_own_sidecar_are_those_of_any_namespace() {
    let service = host("a.example.com", "shop", 80, "127.0.0.1:1".parse().unwrap());
    for (entry, expected) in [
        ("./*", None),
        ("./a.example.com", None),
        ("./b.example.net", Some("nothing of any namespace has such a host")),
        ("istio-system/a.example.com", Some("did you mean `shop/a.example.com`?")),
    ] {
        let text = format!("{service}{}", only("all", "istio-system", "", &format!("'{entry}'")));
        let found: Vec<String> = validate([("a.yaml", text.as_str())]).iter().map(ToString::to_string).collect();
        let told = found.iter().find(|one| one.contains("egress[0].hosts[0]"));
        assert_eq!(told.is_some(), expected.is_some(), "{entry}: {found:#?}");
        assert!(told.is_none_or(|told| told.contains(expected.unwrap())), "{entry}: {found:#?}");
    }
}

#[test]
fn hosts_of_a_sidecar_that_nothing_has_are_told() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: shop}\nspec: {hosts: [only.by.rule], http: [{directResponse: {status: 200}}]}\n";
    for (entry, expected) in [
        ("./reviews.shop.svc.cluster.local", None),
        ("'*/reviews.shop.svc.cluster.local'", None),
        ("shop/only.by.rule", None),
        ("./*.svc.cluster.local", None),
        ("./*", None),
        ("'*/*'", None),
        ("~/*", None),
        ("istio-system/*", None),
        ("./reviews", Some("did you mean `./reviews.shop.svc.cluster.local`?")),
        (
            "other/reviews.shop.svc.cluster.local",
            Some("nothing of namespace other has such a host; did you mean `./reviews.shop"),
        ),
        ("./revews.shop.svc.cluster.local", Some("did you mean `./reviews.shop.svc.cluster.local`?")),
        ("./*.example.com", Some("nothing of namespace shop has such a host")),
        ("shpo/*", Some("nothing of namespace shpo")),
    ] {
        let text = format!("{service}{}", sidecar("few", "shop", &format!("{{egress: [{{hosts: [{entry}]}}]}}")));
        let found: Vec<String> = validate([("a.yaml", text.as_str())]).iter().map(ToString::to_string).collect();
        let told: Vec<&String> =
            found.iter().filter(|one| one.contains("Sidecar shop/few: egress[0].hosts[0]")).collect();
        match expected {
            Some(expected) => assert!(told.len() == 1 && told[0].contains(expected), "{entry}: {found:#?}"),
            None => assert!(told.is_empty(), "{entry}: {found:#?}"),
        }
    }
}
