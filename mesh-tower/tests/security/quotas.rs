//! Quotas from YAML to the answer: embedded control planes, servers of the library that share a quota, and bytes over sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mesh_control::embedded::{Config, Embedded, Options, PlaneOptions};
use mesh_control::quota::QuotaUse;
use mesh_control::serve;
use mesh_tower::Mesh;
use tokio::task::AbortHandle;

use crate::shop::{ask, workload};

/// What a quota says of `reviews`.
fn quota(requests: u32, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: reviews, namespace: shop}}\n\
         spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 80, targetPort: 9080}}]}}\n---\n\
         apiVersion: policy.mesh-control/v1alpha1\nkind: Quota\nmetadata: {{name: calls, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: reviews}}}}, {rest} \
         rules: [{{name: each-user, by: [{{header: x-user}}], limit: {{requests: {requests}, per: MONTH}}}}]}}\n"
    )
}

async fn start(yaml: &str) -> Embedded {
    Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap()
}

/// A server of `reviews`.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let (mesh, address, _serving) = begin(control).await;
    (mesh, address)
}

/// The same, and the task that it is.
async fn begin(control: &Embedded) -> (Mesh, SocketAddr, AbortHandle) {
    let mesh = workload(control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = axum::Router::new().fallback(|| async { "here" }).layer(mesh.server_layer());
    let serving = tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (mesh, address, serving.abort_handle())
}

/// How the quota of a user stands.
fn of(control: &Embedded, user: &str) -> Option<QuotaUse> {
    control.quotas().unwrap().identities.into_iter().find(|one| one.by["x-user"] == user)
}

/// For how many seconds who is refused is sent away.
fn retry_after(answer: &str) -> u64 {
    let value =
        answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap_or_else(|| panic!("{answer}"));
    value.parse().unwrap()
}

/// Asks as a user at all places in turn until each refuses for the rest of the month; how often that was answered.
async fn use_up(places: &[SocketAddr], user: &str) -> u32 {
    let header = format!("x-user: {user}\r\n");
    let mut served = 0;
    for _ in 0..20_000 {
        let mut refused = 0;
        for place in places {
            let (status, answer) = ask(*place, "/", &header).await;
            match status {
                200 => served += 1,
                // Until there is a share, or for good; the end of a month may be near.
                429 => refused += usize::from(retry_after(&answer) > 1),
                _ => panic!("{answer}"),
            }
        }
        if refused == places.len() {
            return served;
        }
    }
    panic!("{served} were served, and there is no end of it");
}

#[tokio::test]
async fn two_processes_share_the_quota_of_each_user() {
    let control = start(&quota(40, "failureMode: DENY,")).await;
    let ((one, first), (_other, second)) = (serve(&control).await, serve(&control).await);
    // Each lets one pass before it has a share.
    let served = use_up(&[first, second], "ada").await;
    assert!((40..=42).contains(&served), "{served}");
    let ada = of(&control, "ada").unwrap();
    assert_eq!((ada.limit, ada.left, &*ada.unit), (40, 0, "month"));
    assert!((40..=42).contains(&ada.used) && ada.denied > 0, "{ada:?}");
    // Others have their own, and who says nothing of himself none.
    assert_eq!(ask(first, "/", "x-user: bob\r\n").await.0, 200);
    for _ in 0..50 {
        assert_eq!(ask(second, "/", "").await.0, 200);
    }
    let (status, answer) = ask(first, "/", "x-user: ada\r\n").await;
    assert!(status == 429 && answer.contains("x-envoy-ratelimited: true"), "{answer}");
    let grpc = ask(first, "/", "x-user: ada\r\ncontent-type: application/grpc\r\n").await.1;
    assert!(grpc.starts_with("HTTP/1.1 200") && grpc.contains("grpc-status: 8"), "{grpc}");
    let text = one.prometheus();
    let counted = "limit=\"Quota shop/calls\",rule=\"each-user\",verdict=\"over\"} ";
    assert!(text.lines().any(|line| line.contains(counted) && !line.ends_with(" 0")), "{text}");
    let text = control.metrics();
    let used = format!(
        "mesh_quota_used_requests{{quota=\"Quota shop/calls\",rule=\"each-user\",identity=\"x-user=ada\"}} {}",
        ada.used
    );
    assert!(text.contains(&used), "{text}");
}

#[tokio::test]
async fn a_quota_that_is_raised_has_more_at_once_and_one_that_only_counts_refuses_nobody() {
    let control = start(&quota(5, "failureMode: DENY, unassigned: 0,")).await;
    let (_mesh, address) = serve(&control).await;
    assert_eq!(use_up(&[address], "ada").await, 5);
    control.set_yaml("config.yaml", &quota(9, "failureMode: DENY, unassigned: 0,")).unwrap();
    let mut served = 0;
    for _ in 0..20_000 {
        served += u32::from(ask(address, "/", "x-user: ada\r\n").await.0 == 200);
        if served == 4 {
            break;
        }
    }
    assert_eq!(served, 4);
    assert!(use_up(&[address], "ada").await == 0, "and no more than that");
    let shadow =
        quota(1, "failureMode: DENY, answer: {status: 503},").replace("name: each-user", "name: tried, shadow: true");
    control.set_yaml("config.yaml", &shadow).unwrap();
    for _ in 0..20_000 {
        if ask(address, "/", "x-user: ada\r\n").await.0 == 200 {
            break;
        }
    }
    for _ in 0..20 {
        assert_eq!(ask(address, "/", "x-user: ada\r\n").await.0, 200);
    }
}

#[tokio::test]
async fn one_for_a_service_is_for_its_workloads_and_methods_are_told_apart() {
    let of_service = |service: &str| {
        let target = format!("targetRefs: [{{kind: Service, name: {service}}}]");
        let yaml = quota(1, "failureMode: DENY, unassigned: 0,");
        let yaml = yaml.replace("by: [{header: x-user}]", "by: [{method: true}]");
        let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\n\
                     spec: {selector: {app: other}, ports: [{name: http, port: 80}]}\n";
        format!("{}{other}", yaml.replace("selector: {matchLabels: {app: reviews}}", &target))
    };
    let control = start(&of_service("reviews")).await;
    let (_mesh, address) = serve(&control).await;
    assert_eq!(use_up(&[address], "ada").await, 1);
    let identities = control.quotas().unwrap().identities;
    assert!(identities.iter().all(|one| one.by["method"] == "GET" && one.used == 1), "{identities:?}");
    let control = start(&of_service("other")).await;
    let (_mesh, address) = serve(&control).await;
    for _ in 0..20 {
        assert_eq!(ask(address, "/", "").await.0, 200);
    }
}

#[tokio::test]
async fn where_nobody_assigns_shares_the_failure_mode_decides() {
    let without = || Options::default().serve(serve::Options::default().quotas(None));
    for (rest, passes) in [("", 20), ("failureMode: DENY,", 1), ("failureMode: DENY, unassigned: 3,", 3)] {
        let control = Embedded::start(Config::yaml(quota(5, rest)), without()).await.unwrap();
        let (_mesh, address) = serve(&control).await;
        let mut served = 0;
        for _ in 0..20 {
            served += u32::from(ask(address, "/", "x-user: ada\r\n").await.0 == 200);
        }
        assert_eq!(served, passes, "{rest}");
    }
}

/// A control plane with its configuration and its state on a disk.
async fn kept_in(dir: &Path, yaml: &str) -> Embedded {
    let config = dir.join("config");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("quota.yaml"), yaml).unwrap();
    let plane = PlaneOptions::default().state_dir(dir.join("state"));
    Embedded::start(Config::dir(config), Options::default().plane(plane)).await.unwrap()
}

#[tokio::test]
async fn a_restart_of_both_sides_loses_nothing_of_what_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = quota(30, "failureMode: DENY,");
    let control = kept_in(dir.path(), &yaml).await;
    let (mesh, address, serving) = begin(&control).await;
    let mut served = 0;
    for _ in 0..20_000 {
        served += u64::from(ask(address, "/", "x-user: ada\r\n").await.0 == 200);
        if served == 20 {
            break;
        }
    }
    // A process that leaves tells what it has not told yet, and gives back what it has not used.
    drop(mesh);
    serving.abort();
    let mut look = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..1000 {
        if of(&control, "ada").is_some_and(|ada| (ada.used, ada.leased) == (served, 0)) {
            break;
        }
        look.tick().await;
    }
    assert_eq!(of(&control, "ada").map(|ada| (ada.used, ada.left)), Some((20, 10)));
    control.shutdown().await;

    let control = kept_in(dir.path(), &yaml).await;
    assert_eq!(of(&control, "ada").map(|ada| (ada.used, ada.left)), Some((20, 10)));
    let (_mesh, address) = serve(&control).await;
    let more = use_up(&[address], "ada").await;
    assert!((10..=11).contains(&more), "{more}");
}
