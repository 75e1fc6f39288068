//! A cluster on the wire: an API server of the test's own, and planes that follow it.

mod changed;
mod fake;
mod members;
mod written;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::follow::Pace;
use super::{Access, Client, Cluster};
use crate::catalog::{self, Catalog, ClientClass, Encoded, Kind};
use crate::config::source::Pauses;
use crate::config::store::Standing;
use crate::plane::{Plane, PlaneOptions, Snapshot, Synced};
use crate::registry::workload::Health;
use crate::registry::{Endpoint, Workload};
use crate::serve::{Feed, Options, Server};
use fake::Fake;

const LIMIT: Duration = Duration::from_secs(60);

struct Follower {
    plane: Plane,
    cluster: Cluster,
    telling: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.telling.abort();
    }
}

fn cluster_of(fake: &Fake, namespaces: &[&str]) -> Cluster {
    let namespaces: Vec<String> = namespaces.iter().map(|&name| name.to_owned()).collect();
    let ms = Duration::from_millis;
    let pace = Pace { pauses: Pauses { first: ms(2), longest: ms(40) }, absent: ms(20), doubted: ms(20) };
    Cluster::follow_at(&Client::new(Access::of_test(fake.address)), &namespaces, pace)
}

async fn follow(fake: &Fake) -> Follower {
    follow_with(fake, PlaneOptions::default()).await
}

async fn follow_with(fake: &Fake, options: PlaneOptions) -> Follower {
    follow_in(fake, &[], options).await
}

async fn follow_in(fake: &Fake, namespaces: &[&str], options: PlaneOptions) -> Follower {
    let cluster = cluster_of(fake, namespaces);
    let synced = timeout(LIMIT, Synced::of(cluster.clone())).await.expect("known in time").expect("known");
    let plane = Plane::start_beside(options, vec![synced]).expect("a plane");
    let telling = tokio::spawn(cluster.tell(&plane));
    Follower { plane, cluster, telling }
}

impl Follower {
    /// Waits until a snapshot is like this.
    async fn until(&self, what: &str, is_so: impl FnMut(&Snapshot) -> bool) {
        until(&self.plane, what, is_so).await;
    }

    fn addresses(&self) -> Vec<String> {
        addresses(&self.plane.snapshot())
    }
}

/// Waits until a snapshot is like this.
pub(crate) async fn until(plane: &Plane, what: &str, mut is_so: impl FnMut(&Snapshot) -> bool) {
    let mut snapshots = plane.subscribe();
    let found = timeout(LIMIT, snapshots.wait_for(|snapshot| is_so(snapshot))).await;
    found.unwrap_or_else(|_| panic!("not in time: {what}")).expect("a plane");
}

/// Where `web` of `shop` is served.
fn endpoints(snapshot: &Snapshot) -> Vec<Endpoint> {
    snapshot.endpoints_of("web", "shop", 80)
}

fn addresses(snapshot: &Snapshot) -> Vec<String> {
    endpoints(snapshot).iter().map(|endpoint| endpoint.address.to_string()).collect()
}

pub(crate) const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn slice(endpoints: &str) -> String {
    slice_at(endpoints, 8080)
}

fn slice_at(endpoints: &str, port: u16) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{endpoints}]
"
    )
}

fn at(address: &str) -> String {
    format!("{{addresses: [{address}]}}")
}

pub(crate) fn rule(name: &str, body: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: shop}}
spec: {{hosts: [{name}.example.com], http: [{body}]}}
"
    )
}

pub(crate) const GOOD_RULE: &str = "{route: [{destination: {host: web}}]}";

/// A workload outside of the cluster.
pub(crate) fn outside(key: &str, namespace: &str, app: &str, address: SocketAddr) -> Workload {
    let workload = Workload::new(key, namespace, key, address).labelled([("app", app), ("version", "v2")]);
    Workload { group: Some("vms".into()), ..workload }
}

/// Everything that some clients can be told.
pub(crate) fn told(plane: &Plane) -> BTreeMap<String, Encoded> {
    let snapshot = plane.snapshot();
    let mut told = BTreeMap::new();
    let client = |class, namespace: &str| catalog::Client::new("n", class, [127, 0, 0, 1].into()).namespace(namespace);
    for namespace in ["default", "shop"] {
        let envoy = client(ClientClass::Envoy, namespace).sidecar([10, 0, 0, 9], false);
        for kind in Kind::ALL {
            for name in snapshot.everything(&envoy, kind) {
                told.extend(
                    snapshot.resource(&envoy, kind, &name).map(|it| (format!("envoy {namespace} {kind:?} {name}"), it)),
                );
            }
        }
        for class in [ClientClass::Library, ClientClass::Grpc] {
            let client = client(class, namespace);
            for service in plane.services() {
                for port in service.ports {
                    let mut names = vec![(Kind::Listener, format!("{}:{}", service.host, port.number))];
                    for subset in ["", "v1", "v2"] {
                        let name = format!("outbound|{}|{subset}|{}", port.number, service.host);
                        names.extend([Kind::Route, Kind::Cluster, Kind::Endpoints].map(|kind| (kind, name.clone())));
                    }
                    for (kind, name) in names {
                        let found = snapshot.resource(&client, kind, &name);
                        told.extend(found.map(|it| (format!("{class:?} {namespace} {kind:?} {name}"), it)));
                    }
                }
            }
        }
    }
    told
}

/// The same objects, from files and from a cluster, to two replicas.
#[tokio::test]
async fn what_a_cluster_holds_is_told_byte_by_byte_as_if_it_were_files() {
    for corpus in ["shop", "everything"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(corpus);
        let fake = Fake::start().await;
        for file in fs::read_dir(&folder).expect("a corpus") {
            fake.apply(&fs::read_to_string(file.expect("a file").path()).expect("text"));
        }
        let of_files = Plane::start(PlaneOptions::default().config_dir(&folder)).expect("a plane");
        let (of_cluster, replica) = (follow(&fake).await, follow(&fake).await);
        assert_eq!(of_files.objects(), of_cluster.plane.objects(), "{corpus}");
        for plane in [&of_files, &of_cluster.plane, &replica.plane] {
            for number in 1..4 {
                let address = format!("10.9.0.{number}:8080").parse().expect("an address");
                plane.register(outside(&format!("k{number}"), "catalog", "catalog", address));
            }
            plane.published().await;
        }
        let (files, cluster) = (told(&of_files), told(&of_cluster.plane));
        assert_eq!(cluster, told(&replica.plane), "{corpus}");
        assert!(files.len() > 100, "{corpus}: {}", files.len());
        assert_eq!(files.keys().collect::<Vec<_>>(), cluster.keys().collect::<Vec<_>>(), "{corpus}");
        for (name, encoded) in files {
            assert_eq!(Some(&encoded), cluster.get(&name), "{corpus}: {name}");
        }
    }
}

#[tokio::test]
async fn endpoints_come_and_go_as_the_cluster_says() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&slice(&at("10.0.0.1")));
    let follower = follow(&fake).await;
    assert_eq!(follower.addresses(), ["10.0.0.1:8080"]);

    let two = format!("{}, {{addresses: [10.0.0.2], targetRef: {{kind: Pod, name: web-2}}}}", at("10.0.0.1"));
    fake.apply(&slice(&two));
    follower.until("a second one", |snapshot| addresses(snapshot).len() == 2).await;
    fake.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web, version: v2, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: seller, nodeName: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
",
    );
    let has_place = |snapshot: &Snapshot| endpoints(snapshot).pop().is_some_and(|it| &*it.locality[1] == "z");
    follower.until("its pod and node", has_place).await;
    let second = endpoints(&follower.plane.snapshot()).pop().expect("two");
    assert_eq!((second.labels["version"].as_str(), second.mutual_tls), ("v2", true));
    let identity = second.identity.map(|identity| identity.to_string());
    assert_eq!(identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/seller"));

    // One that is not ready is not called, whatever it says itself, and nobody is called because they say so themselves, but
    // for workloads outside of the cluster.
    let own = |key: &str, address: &str| outside(key, "shop", "web", address.parse().expect("an address"));
    let pod = |key: &str, address: &str| Workload { group: None, ..own(key, address) };
    for workload in [pod("a", "10.0.0.1:8080"), own("b", "10.0.0.3:8080"), pod("c", "10.0.0.4:8080")] {
        follower.plane.register(workload);
    }
    follower.until("the one outside", |snapshot| addresses(snapshot).len() == 3).await;
    fake.apply(&slice(&format!("{{addresses: [10.0.0.1], conditions: {{ready: false}}}}, {}", at("10.0.0.2"))));
    follower.until("without the first", |snapshot| addresses(snapshot) == ["10.0.0.2:8080", "10.0.0.3:8080"]).await;

    // A service that changes keeps them.
    fake.apply(&WEB.replace("port: 80,", "port: 81,"));
    follower.until("another port", |snapshot| addresses(snapshot).is_empty()).await;
    fake.apply(WEB);
    follower.until("the port again", |snapshot| addresses(snapshot).len() == 2).await;
    fake.delete("endpointslices", "shop", "web-1");
    follower.until("the slice gone", |snapshot| addresses(snapshot) == ["10.0.0.3:8080"]).await;
    fake.delete("services", "shop", "web");
    follower.until("the service gone", |snapshot| endpoints(snapshot).is_empty()).await;
}

#[tokio::test]
async fn f1_nothing_is_known_before_everything_is() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&slice(&at("10.0.0.1")));
    for missing in ["endpointslices", "pods", "authorizationpolicies", "configmaps"] {
        fake.world().failing.insert(missing.to_owned());
        let cluster = cluster_of(&fake, &[]);
        let mut synced = Box::pin(Synced::of(cluster));
        let what = format!("list {missing}");
        tokio::select! {
            _ = &mut synced => panic!("nobody knows what there is of {missing}"),
            () = fake.asked(&what, 3) => {}
        }
        fake.world().failing.clear();
        assert!(timeout(LIMIT, synced).await.expect("known in time").is_some());
    }
    // A server that has just started knows no kinds but its own: that there is none is believed when it is ready.
    fake.world().absent.insert("virtualservices".to_owned());
    fake.world().failing.insert("readyz".to_owned());
    let mut synced = Box::pin(Synced::of(cluster_of(&fake, &[])));
    tokio::select! {
        _ = &mut synced => panic!("nobody knows whether there is such a kind"),
        () = fake.asked("list readyz", 2) => {}
    }
    fake.world().failing.clear();
    assert!(timeout(LIMIT, synced).await.expect("known in time").is_some());
}

#[tokio::test]
async fn f30_whatever_happens_to_the_server_nothing_is_taken_for_gone_and_what_came_meanwhile_is_found() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&slice(&at("10.0.0.1")));
    for name in ["a", "b", "c", "d"] {
        fake.apply(&rule(name, GOOD_RULE));
    }
    let follower = follow(&fake).await;
    let objects = follower.plane.objects();
    assert_eq!((objects, follower.addresses().len()), (5, 1));
    let plane = follower.plane.clone();
    let mut snapshots = plane.subscribe();
    let watching = tokio::spawn(async move {
        // Every state that anybody could have been served.
        let mut worst = usize::MAX;
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            worst = worst.min(snapshot.objects()).min(4 + addresses(&snapshot).len());
        }
        worst
    });

    // Watches break off, and what was written meanwhile is told by the next ones.
    fake.cut();
    fake.apply(&rule("e", GOOD_RULE));
    follower.until("e", |snapshot| snapshot.objects() == 6).await;

    // The server is away, and is said to be.
    fake.world().failing.insert("*".to_owned());
    fake.cut();
    fake.asked("watch virtualservices", 2).await;
    let stale = async {
        while follower.plane.stale().is_none() {
            fake.asked("list virtualservices", 1).await;
        }
    };
    timeout(LIMIT, stale).await.expect("it is said");
    let stale = follower.plane.stale().expect("it is said");
    assert!(stale.why.contains("Kubernetes cannot be followed") && stale.why.contains("503"), "{stale:?}");

    // It comes back without anything that it held.
    fake.world().is_blank = true;
    fake.compact();
    fake.world().failing.clear();
    fake.asked("list virtualservices", 2).await;
    assert_eq!((follower.plane.objects(), follower.addresses().len()), (6, 1));

    // And then with it, and more; what has gone meanwhile is gone.
    {
        fake.delete("virtualservices", "shop", "a");
        fake.apply(&rule("f", GOOD_RULE));
        fake.apply(&slice(&format!("{}, {}", at("10.0.0.1"), at("10.0.0.2"))));
        fake.world().is_blank = false;
    }
    let ids = || follower.plane.object_places().into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    let is_new =
        |snapshot: &Snapshot| addresses(snapshot).len() == 2 && ids().contains(&"VirtualService shop/f".to_owned());
    follower.until("f", is_new).await;
    assert!(!ids().contains(&"VirtualService shop/a".to_owned()), "{:?}", ids());
    let found = async {
        while follower.plane.stale().is_some() {
            fake.cut();
            fake.asked("watch services", 1).await;
        }
    };
    timeout(LIMIT, found).await.expect("it is found");

    drop((follower, plane));
    let worst = timeout(LIMIT, watching).await.expect("ends").expect("ends");
    assert!(worst >= objects, "there were fewer: {worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_watches_end_at_once_what_changes_is_found_by_lists_and_it_is_said() {
    let fake = Fake::start().await;
    fake.apply(&rule("a", GOOD_RULE));
    let follower = follow(&fake).await;
    fake.world().is_mute = true;
    fake.cut();
    fake.asked("watch virtualservices", 3).await;
    fake.apply(&rule("b", GOOD_RULE));
    follower.until("b", |snapshot| snapshot.objects() == 2).await;
    let said = async {
        while follower.plane.stale().is_none_or(|stale| !stale.why.contains("every watch ends")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, said).await.expect("it is said");
}

#[tokio::test]
async fn an_object_that_is_wrong_keeps_its_last_good_state_and_stops_no_other() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&rule("a", GOOD_RULE));
    let wrong = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec: {acton: DENY}
";
    fake.apply(wrong);
    let follower = follow(&fake).await;
    let standing = |plane: &Plane| {
        let wrong = plane.wrong();
        let all = wrong.iter().map(|one| (one.object.as_deref().unwrap_or_default().to_owned(), one.standing));
        all.collect::<Vec<_>>()
    };
    // What was never good fails what it governs.
    let guard = ("AuthorizationPolicy shop/guard".to_owned(), Standing::FailsClosed);
    assert_eq!(standing(&follower.plane), std::slice::from_ref(&guard));

    fake.apply(&rule("a", "{rout: []}"));
    fake.apply(&rule("b", GOOD_RULE));
    follower.until("b beside what is wrong", |snapshot| snapshot.objects() == 3).await;
    let held = ("VirtualService shop/a".to_owned(), Standing::Held);
    assert_eq!(standing(&follower.plane), [guard.clone(), held]);
    let found = follower.plane.diagnostics();
    assert!(
        found
            .iter()
            .any(|one| one.to_string().starts_with("kubernetes://virtualservices/shop/a: error[unknown-field]"))
    );

    // What is deleted is gone, however wrong it was, and whatever else is.
    fake.delete("virtualservices", "shop", "a");
    follower.until("a gone", |snapshot| snapshot.objects() == 2).await;
    assert_eq!(standing(&follower.plane), [guard]);
    fake.delete("authorizationpolicies", "shop", "guard");
    follower.until("all is well", |_| follower.plane.wrong().is_empty()).await;
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_picked_up_and_an_older_version_of_it_will_do() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.world().absent.extend(["httproutes".to_owned(), "ratelimits".to_owned()]);
    let follower = follow(&fake).await;
    assert_eq!(follower.plane.objects(), 1);
    fake.apply(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
",
    );
    fake.world().absent.remove("httproutes");
    follower.until("the route", |snapshot| snapshot.objects() == 2).await;
}

#[tokio::test]
async fn of_some_namespaces_what_is_for_the_whole_mesh_counts_too() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    let object = |kind: &str, group: &str, namespace: &str, spec: &str| {
        format!("apiVersion: {group}v1\nkind: {kind}\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {spec}\n")
    };
    for namespace in ["istio-system", "pay"] {
        fake.apply(&object("AuthorizationPolicy", "security.istio.io/", namespace, "{}"));
        fake.apply(&object("Service", "", namespace, "{ports: [{port: 80}]}"));
    }
    // Twice the same, and the root namespace itself, are followed once.
    let follower = follow_in(&fake, &["shop", "shop"], PlaneOptions::default()).await;
    let found = follower.plane.services().into_iter().map(|service| service.host.to_string()).collect::<Vec<_>>();
    assert_eq!((follower.plane.objects(), &*found), (2, &["web.shop.svc.cluster.local".to_owned()][..]));
    let follower = follow_in(&fake, &["istio-system"], PlaneOptions::default()).await;
    assert_eq!(follower.plane.objects(), 2, "its policy and its Service");
}

#[tokio::test]
async fn settings_of_the_mesh_are_known_before_anything_is_in_force() {
    let fake = Fake::start().await;
    fake.apply(
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'trustDomain: example.org'}
",
    );
    let follower = follow(&fake).await;
    assert_eq!(follower.plane.trust_domain().to_string(), "example.org");
    assert!(follower.cluster.client().server().contains("127.0.0.1"));
}

#[tokio::test]
async fn beside_a_directory_both_count_and_an_empty_one_takes_nothing_away() {
    let fake = Fake::start().await;
    fake.apply(WEB);
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::write(dir.path().join("a.yaml"), rule("a", GOOD_RULE)).expect("written");
    let options = || PlaneOptions::default().config_dir(dir.path()).state_dir(state.path());
    let follower = follow_with(&fake, options()).await;
    assert_eq!(follower.plane.objects(), 2);
    // What the state remembers of the cluster is no part of the directory.
    follower.plane.leave_state();
    drop(follower);
    let follower = follow_with(&fake, options()).await;
    assert_eq!((follower.plane.objects(), follower.plane.wrong().len()), (2, 0));
    fake.delete("services", "shop", "web");
    follower.until("the service gone", |snapshot| snapshot.objects() == 1).await;
    assert!(endpoints(&follower.plane.snapshot()).iter().all(|one| one.health == Health::Healthy));
}

/// From a cluster over xDS to sockets.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_where_the_cluster_says_and_none_is_lost_when_that_changes() {
    let serve = async |name: &'static str| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let app = axum::Router::new().fallback(move || async move { name });
        (port, tokio::spawn(async move { drop(axum::serve(listener, app).await) }))
    };
    let ((first, one), (second, two)) = (serve("one").await, serve("two").await);
    let fake = Fake::start().await;
    fake.apply(WEB);
    fake.apply(&slice_at(&at("127.0.0.1"), first));
    let follower = follow(&fake).await;
    let plane = follower.plane.clone();
    let server = Server::new(Feed::of(&plane), Arc::new(plane.clone()), &Options::default());
    let xds = server.listen("127.0.0.1:0".parse().expect("an address")).await.expect("listening");
    let bootstrap = Bootstrap::new(xds.to_string()).node_id("n").metadata("NAMESPACE", "shop");
    let mesh = Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(LIMIT).start().expect("a mesh");
    let call = async |path: &str| {
        let request = Request::get(format!("http://web{path}")).body(Body::empty()).expect("a request");
        let answer = mesh.client().request(request).await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.expect("a body").to_bytes())
    };
    assert_eq!(call("/").await, (200, "one".into()));

    // The new one takes over, and nobody notices.
    fake.apply(&slice_at(&at("127.0.0.1"), second));
    let taken_over = async {
        loop {
            let (status, body) = call("/").await;
            assert_eq!(status, 200);
            if body == "two" {
                return;
            }
        }
    };
    timeout(LIMIT, taken_over).await.expect("in time");

    let tea = "{match: [{uri: {prefix: /tea}}], directResponse: {status: 418}}";
    fake.apply(&rule("web", &format!("{tea}, {GOOD_RULE}")).replace("web.example.com", "web"));
    let in_force = async { while call("/tea").await.0 != 418 {} };
    timeout(LIMIT, in_force).await.expect("in time");
    assert_eq!(call("/").await, (200, "two".into()));
    server.shutdown().await;
    one.abort();
    two.abort();
}
