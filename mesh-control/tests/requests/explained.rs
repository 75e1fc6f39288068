//! What a mesh says of a request before it is made is what the request then experiences.

use http::Request;
use mesh_core::error::ErrorKind;

use crate::support::{World, rules, server, web};

const RULES: &str = "  - name: gold
    match: [{headers: {x-tier: {exact: gold}}}]
    timeout: 2s
    route: [{destination: {host: web.example.com, subset: v2}}]
  - name: old
    match: [{uri: {prefix: /old/}}]
    redirect: {uri: /new/}
  - name: others
    rewrite: {uri: /inside/}
    match: [{uri: {prefix: /web/}}]
    route: [{destination: {host: web.example.com, subset: v1}}]
";

fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

#[tokio::test]
async fn what_is_explained_is_what_a_request_experiences() {
    let services = web(&[("v1", server("v1").await), ("v2", server("v2").await)]);
    let world = World::new(&format!("{services}{}", rules(RULES))).await;
    for (path, headers, route, to) in [
        ("/a", &[("x-tier", "gold")][..], "gold", "v2"),
        ("/web/1", &[("x-tier", "silver")], "others", "v1"),
        ("/web/1", &[], "others", "v1"),
    ] {
        let uri = format!("http://web.example.com{path}");
        let explained = world.mesh.explain(&request(&uri, headers)).await.unwrap();
        let choice = explained.route.as_ref().unwrap();
        assert_eq!((&*choice.route.name, explained.passed_over.len()), (route, choice.position), "{explained}");
        let [cluster] = explained.clusters.as_slice() else { panic!("{explained}") };
        assert_eq!((cluster.endpoints, cluster.leaves.len()), (Some((1, 1)), 1), "{explained}");
        assert!(cluster.name.as_str().contains(&format!("|{to}|")), "{explained}");
        let answer = world.with(&uri, headers).await.unwrap();
        assert_eq!((&*world.route(), answer.body.lines().next()), (route, Some(to)), "{explained}");
    }
    let explained = world.mesh.explain(&request("http://web.example.com/old/1", &[])).await.unwrap();
    let answer = world.get("http://web.example.com/old/1").await.unwrap();
    assert_eq!(explained.to_json()["route"]["becomes"].as_str(), answer.header("location"));
    let explained = world.mesh.explain(&request("http://web.example.com/none", &[("x-tier", "tin")])).await.unwrap();
    let said: Vec<String> = explained.passed_over.iter().map(|over| over.unmet.to_string()).collect();
    assert_eq!(said[0], r#"header x-tier: exact "gold", request has "tin""#);
    assert_eq!(said[2], r#"path: prefix "/web/", request has "/none""#);
    let error = world.get("http://web.example.com/none").await.unwrap_err();
    assert_eq!(
        explained.error.as_ref().map(|error| (error.kind(), error.detail())),
        Some((error.kind(), error.detail()))
    );
}

#[tokio::test]
async fn a_target_that_does_not_exist_is_an_explanation_and_none_is_an_error() {
    let world = World::registry_only(&web(&[("v1", server("v1").await)])).await;
    let explained = world.mesh.explain(&request("http://nobody.example.com/", &[])).await.unwrap();
    assert_eq!(explained.error.map(|error| error.kind()), Some(ErrorKind::UnknownTarget));
    assert_eq!(world.mesh.explain(&request("/", &[])).await.unwrap_err().kind(), ErrorKind::BadRequest);
}

#[tokio::test]
async fn tls_of_the_application_is_explained_by_the_rules_on_connections() {
    let db = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.example.com], resolution: STATIC, ports: [{number: 5433, name: tls, protocol: TLS}], endpoints: [{address: 127.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db.example.com, '*.db.example.com']
  tls: [{match: [{sniHosts: ['*.db.example.com']}], route: [{destination: {host: db.example.com}}]}]
";
    let world = World::new(db).await;
    let explained = world.mesh.explain(&request("https://replica.db.example.com:5433/", &[])).await.unwrap();
    let choice = explained.route.as_ref().unwrap_or_else(|| panic!("{explained}"));
    assert_eq!((&*choice.route.name, explained.clusters.len()), ("tls[0].match[0]", 1), "{explained}");
    let explained = world.mesh.explain(&request("https://db.example.com:5433/", &[])).await.unwrap();
    assert_eq!(explained.error.as_ref().map(|error| error.kind()), Some(ErrorKind::NoRoute), "{explained}");
}
