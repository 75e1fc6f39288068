//! DestinationRules, by what a request experiences.

use mesh_core::error::ErrorKind;

use crate::support::{Face, World, mesh_settings, rules, server, service};

const POOL: &str = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
const V2: &str = "subsets: [{name: v2, labels: {v: v2}}]";

/// `web.example.com` of two versions, a DestinationRule in the namespace `default`, and a route to `v2`.
async fn world(client: &str, rule: &str) -> World {
    world_with(client, rule, "").await
}

/// The same, and these documents.
async fn world_with(client: &str, rule: &str, more: &str) -> World {
    let endpoints = [("v1", server("v1").await), ("v2", server("v2").await)];
    let services = service("web", &endpoints);
    // Without the helper's own rule.
    let (entry, _) = services.rsplit_once("\n---\n").unwrap();
    let rule = format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{{rule}}}\n"
    );
    let route = rules("  - route: [{destination: {host: web.example.com, subset: v2}}]\n");
    World::of(client, &[("app", "caller")], &format!("{entry}{rule}{route}{more}")).await
}

#[tokio::test]
async fn a_subset_is_where_a_rule_for_this_client_defines_it() {
    let web = "host: web.example.com";
    for (client, with, without) in [
        ("default", format!("{web}, {V2}"), format!("host: two.example.com, {V2}")),
        ("other", format!("{web}, exportTo: ['*'], {V2}"), format!("{web}, exportTo: ['.'], {V2}")),
        (
            "default",
            format!("{web}, workloadSelector: {{matchLabels: {{app: caller}}}}, {V2}"),
            format!("{web}, workloadSelector: {{matchLabels: {{app: nobody}}}}, {V2}"),
        ),
        ("default", format!("{web}, {V2}"), format!("{web}, subsets: [{{name: v3, labels: {{v: v2}}}}]")),
        ("default", format!("{web}, {V2}"), format!("{web}, subsets: [{{name: v2, labels: {{v: v9}}}}]")),
    ] {
        let (mut found, mut missed) = (world(client, &with).await, world(client, &without).await);
        for face in Face::ALL {
            (found.face, missed.face) = (face, face);
            let answer = found.get("http://web.example.com/").await.unwrap();
            assert!(answer.body.starts_with("v2\n"), "{face:?} {with}: {answer:?}");
            let error = missed.get("http://web.example.com/").await.unwrap_err();
            // One that is defined, and that nobody is in, is a cluster without endpoints.
            let expected = if without.contains("v: v9") { ErrorKind::NoHealthyEndpoint } else { ErrorKind::NoCluster };
            assert_eq!(error.kind(), expected, "{face:?} {without}: {error}");
        }
    }
}

#[tokio::test]
async fn a_policy_is_for_its_port_and_its_subset() {
    for (rule, upgraded) in [
        (V2.to_owned(), false),
        (format!("trafficPolicy: {{{POOL}}}, {V2}"), true),
        (format!("trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, {POOL}}}]}}, {V2}"), true),
        (format!("trafficPolicy: {{{POOL}, portLevelSettings: [{{port: {{number: 80}}}}]}}, {V2}"), false),
        (format!("trafficPolicy: {{portLevelSettings: [{{port: {{number: 81}}, {POOL}}}]}}, {V2}"), false),
        (format!("subsets: [{{name: v2, labels: {{v: v2}}, trafficPolicy: {{{POOL}}}}}]"), true),
        (format!("{V2}, trafficPolicy: {{connectionPool: {{http: {{h2UpgradePolicy: DO_NOT_UPGRADE}}}}}}"), false),
    ] {
        let world = world("default", &format!("host: web.example.com, {rule}")).await;
        let answer = world.get("http://web.example.com/").await.unwrap();
        assert_eq!(answer.body.contains("\nHTTP/2.0\n"), upgraded, "{rule}: {answer:?}");
    }
}

/// The blocks of a traffic policy that the mesh has stand where a rule has none of its own, and give way block by block.
#[tokio::test]
async fn the_mesh_says_how_services_are_called_where_a_rule_does_not() {
    let pool = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let of_mesh = format!("defaultTrafficPolicy: {{{pool}}}");
    let (up, down) = ("h2UpgradePolicy: UPGRADE", "h2UpgradePolicy: DO_NOT_UPGRADE");
    let http = |policy: &str| format!("trafficPolicy: {{connectionPool: {{http: {{{policy}}}}}}}, {V2}");
    let port = |settings: &str| {
        format!("trafficPolicy: {{{pool}, portLevelSettings: [{{port: {{number: 80}}{settings}}}]}}, {V2}")
    };
    // (settings of the mesh, rule) -> whether HTTP/1.1 becomes HTTP/2
    for (mesh, rule, upgraded) in [
        (&*of_mesh, V2.to_owned(), true),
        (&of_mesh, format!("trafficPolicy: {{outlierDetection: {{}}}}, {V2}"), true),
        (&of_mesh, http("maxRetries: 3"), false),
        (&of_mesh, http(down), false),
        // What a port does not say, it has of the mesh.
        (&of_mesh, port(""), true),
        (&of_mesh, port(", connectionPool: {}"), false),
        (up, V2.to_owned(), true),
        (up, http("maxRetries: 3"), true),
        (up, http(down), false),
        (down, V2.to_owned(), false),
        (down, http(up), true),
        (up, http("useClientProtocol: true"), false),
    ] {
        let settings = mesh_settings(mesh);
        let world = world_with("default", &format!("host: web.example.com, {rule}"), &settings).await;
        let answer = world.get("http://web.example.com/").await.unwrap();
        assert_eq!(answer.body.contains("\nHTTP/2.0\n"), upgraded, "{mesh}: {rule}: {answer:?}");
    }
}
