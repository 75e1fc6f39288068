//! How workloads are called on the command line and in what a server tells.

use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use serde_json::Value;

use crate::identity::{claims, registers};
use crate::process::{Control, gone, output, text};
use crate::support::PATIENCE;

const GONE: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: gone, namespace: shop}\nspec:\n  \
     hosts: [gone.example.com]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  \
     endpoints: [{address: 192.0.2.1}]\n---\n\
     apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
     spec: {selector: {app: web}, ports: [{port: 80, name: http}]}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_called_the_same_by_all_commands_and_what_is_no_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), GONE).unwrap();
    let (_control, _, status) = Control::listening(dir.path());
    let said = |arguments: &[&str]| {
        let out = output(&[arguments, &["--status-addr", &status]].concat());
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };

    let describe = ["describe", "service", "gone.example.com"];
    for (name, expected) in [
        ("shop/web", ""),
        ("web/shop", "web/shop is taken for shop/web"),
        ("shop/nobody", "taken for a workload without labels"),
    ] {
        let (code, _, told) = said(&[&describe[..], &["--from", name]].concat());
        assert!(code == Some(0) && told.contains(expected) && told.is_empty() == expected.is_empty(), "{name}: {told}");
    }
    assert_eq!(said(&describe).2, "", "nobody asked for somebody");
    for name in ["web", "a/b/c", "SHOP/web", "shop/web&target=other:80", "shop/"] {
        for command in [
            &["describe", "service", "gone.example.com", "--from", name][..],
            &["trace", "--timeout", "3600", "--from", name],
            &["authz", "suggest", "--workload", name],
        ] {
            let (code, _, told) = said(command);
            assert!(code == Some(2) && told.contains("NAMESPACE/NAME is needed"), "{command:?}: {code:?} {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_finds_the_calls_of_a_workload_whose_name_is_not_that_of_its_node() {
    let dir = gone();
    let (_control, xds, status) = Control::listening(dir.path());
    let bootstrap = Bootstrap::new(xds.to_string())
        .node_id("mesh~127.0.0.1~web-7.shop~shop.svc.cluster.local")
        .metadata("NAMESPACE", "shop")
        .metadata("WORKLOAD_NAME", "web");
    let mesh = Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(PATIENCE).start().unwrap();
    let described = async {
        loop {
            // It fails, as it has to.
            _ = mesh.client().get("http://gone.example.com/x").await;
            let out = output(&["describe", "workload", "web-7.shop", "--status-addr", &status, "-o", "json"]);
            let Ok(said) = serde_json::from_str::<Value>(&text(&out.stdout)) else { continue };
            if said["calls"][0]["destination"] == "gone.example.com" {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(PATIENCE, described).await.expect("its calls are told");
    assert_eq!(said["calls"][0]["source"], "shop/web", "{said}");
}

/// A service, and a group of its workloads that are asked how they are.
const MEMBERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {tier: back}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec: {metadata: {labels: {tier: back}}, probe: {httpGet: {path: /, port: 8081}}}
";

#[tokio::test(flavor = "multi_thread")]
async fn describe_says_of_a_member_which_group_s_it_is_and_why_it_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), MEMBERS).unwrap();
    let (_control, xds, status) = Control::listening(dir.path());
    let (_stream, answer) = registers(xds, claims("reviews-1", &[("AUTO_REGISTER_GROUP", "vms")])).await;
    assert!(answer.is_ok(), "{answer:?}");
    let describe = |what: &str| {
        let out = output(&["describe", what, "reviews", "--status-addr", &status, "-o", "json"]);
        serde_json::from_str::<Value>(&text(&out.stdout)).unwrap_or_else(|_| panic!("{}", text(&out.stderr)))
    };
    // By its name without the number.
    let member = describe("workload");
    let facts = [&member["labels"]["tier"], &member["group"], &member["health"]];
    assert_eq!(facts.map(|fact| fact.as_str()), ["back", "vms", "unreported"].map(Some), "{member}");
    let service = describe("service");
    let one = &service["workloads"][0];
    assert_eq!((one["health"].as_str(), service["endpoints"].as_u64()), (Some("unreported"), Some(0)), "{service}");
    assert!(one["gets_nothing"].as_str().is_some_and(|why| why.contains("nobody has reported yet")), "{service}");
}

/// A service whose rule is wrong, and one that is right.
const WRONG: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken, namespace: shop}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}, weight: many}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: shop}
spec: {host: elsewhere.example.com, subsets: [{name: v1}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn describe_service_has_the_findings_of_the_rules_on_it_and_is_read_in_columns() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), WRONG).unwrap();
    let (_control, _, status) = Control::listening(dir.path());
    let describe = |more: &[&str]| {
        let out = output(&[&["describe", "service", "reviews", "--status-addr", &status], more].concat());
        text(&out.stdout)
    };
    let said: Value = serde_json::from_str(&describe(&["-o", "json"])).unwrap();
    let findings = said["findings"].as_array().unwrap();
    let told = |line: &Value, part: &str| line.as_str().unwrap().contains(part);
    assert!(
        findings.iter().any(|line| told(line, "shop.yaml:10: error[") && told(line, "VirtualService shop/broken: "))
    );
    assert!(!findings.iter().any(|line| told(line, "DestinationRule shop/other")), "{said}");
    let read = describe(&[]);
    let lines: Vec<&str> = read.lines().collect();
    assert!(lines[0].starts_with("  Service    reviews.shop.svc.cluster.local"), "{read}");
    for title in ["ROUTES TO reviews.shop.svc.cluster.local:80", "FINDINGS"] {
        assert!(lines.contains(&title), "{read}");
    }
}
