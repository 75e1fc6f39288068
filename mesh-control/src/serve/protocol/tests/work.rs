//! What a change costs: those whom it concerns, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::watch;

use crate::catalog::{Catalog, Changes, Client, ClientClass, Encoded, Kind};
use crate::plane::{Plane, Snapshot};
use crate::registry::Workload;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::fleet::{ClientStream, Fleet, Limits};
use crate::serve::clients::node::About;
use crate::serve::protocol::delta;
use crate::serve::protocol::ledger::Interner;
use crate::serve::protocol::session::{Opening, Response, Session, Variant};
use crate::serve::protocol::tests::fixture::{PACE, client, delta_request};

/// A snapshot that counts how often it is asked for a resource.
struct Counted {
    snapshot: Arc<Snapshot>,
    asked: Arc<AtomicUsize>,
}

impl Catalog for Counted {
    fn resource(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.snapshot.resource(client, kind, name)
    }

    fn everything(&self, client: &Client, kind: Kind) -> Vec<Arc<str>> {
        self.snapshot.everything(client, kind)
    }

    fn changes(&self, client: &Client, kind: Kind, since: u64) -> Changes<'_> {
        self.snapshot.changes(client, kind, since)
    }

    fn revision(&self, kind: Kind) -> Option<u64> {
        self.snapshot.revision(kind)
    }
}

const SERVICES: usize = 100;
const CLIENTS: usize = 200;
const CALLED: usize = 20;

fn plane() -> Plane {
    let service = |n: usize| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: shop}}\n\
             spec: {{selector: {{app: s{n}}}, ports: [{{port: 80, name: http}}]}}\n"
        )
    };
    let plane = Plane::from_yaml(&(0..SERVICES).map(service).collect::<String>()).unwrap();
    (0..SERVICES).for_each(|n| plane.register(endpoint(n, 1)));
    plane
}

fn endpoint(service: usize, number: usize) -> Workload {
    let app = format!("s{service}");
    let address = format!("10.0.{service}.{number}:80").parse().unwrap();
    Workload::new(&format!("{app}-{number}"), "shop", &app, address).labelled([("app", app.as_str())])
}

fn counted(plane: &Plane, asked: &Arc<AtomicUsize>) -> Arc<dyn Catalog> {
    Arc::new(Counted { snapshot: plane.snapshot(), asked: asked.clone() })
}

/// A stream that holds the endpoints of some services, of all that was told.
fn open(
    catalog: Arc<dyn Catalog>,
    who: Client,
    services: impl Iterator<Item = usize>,
    interner: &Arc<Interner>,
) -> Session {
    let now = Instant::now();
    let opening = Opening { client: who, catalog, pace: PACE, settles_at: now, tag: 7, interner: interner.clone() };
    let mut session = Session::new(Variant::Delta, opening, now);
    let names: Vec<String> = services.map(|n| format!("outbound|80||s{n}.shop.svc.cluster.local")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    delta::on_request(&mut session, &delta_request(Kind::Endpoints, &names, &[]), now);
    drain(&mut session);
    session
}

/// Takes what there is, and accepts it.
fn drain(session: &mut Session) -> Vec<Response> {
    let now = Instant::now();
    let mut all = Vec::new();
    while let Some(response) = session.next(now) {
        let mut answer = delta_request(response.kind, &[], &[]);
        answer.response_nonce.clone_from(&response.nonce);
        delta::on_request(session, &answer, now);
        all.push(response);
    }
    all
}

#[test]
fn a_change_that_concerns_three_clients_wakes_three_streams() {
    let (plane, asked, interner) = (plane(), Arc::<AtomicUsize>::default(), Arc::<Interner>::default());
    let first = counted(&plane, &asked);
    let (source, catalogs) = watch::channel(first.clone());
    // Outside of a runtime, a plane makes its catalogs at once.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let feed = runtime.block_on(async { Feed::new(catalogs, Arc::clone) });
    let fleet = Fleet::new(Limits { streams: CLIENTS, name_bytes: usize::MAX });
    // The last service is called by three alone.
    let streams: Vec<Arc<ClientStream>> = (0..CLIENTS)
        .map(|number| {
            let called = (0..CALLED).map(|call| (number * CALLED + call) % (SERVICES - 1));
            let more = (number < 3).then_some(SERVICES - 1);
            let session = open(first.clone(), client(ClientClass::Library), called.chain(more), &interner);
            fleet.enter(session, About::read(&Node::default()), None).unwrap()
        })
        .collect();
    let mut news: Vec<_> = streams.iter().map(|stream| stream.news()).collect();
    let mut woken = || {
        let woken = news.iter_mut().map(|one| (one.has_changed().unwrap(), one.mark_unchanged()).0);
        woken.filter(|is_woken| *is_woken).count()
    };
    plane.register(endpoint(SERVICES - 1, 2));
    asked.store(0, Ordering::Relaxed);
    source.send_replace(counted(&plane, &asked));
    runtime.block_on(fleet.tell(&feed));
    assert_eq!((woken(), asked.load(Ordering::Relaxed)), (3, 0));
    // The others have the new catalog all the same, and are owed nothing.
    assert_eq!(Arc::strong_count(&first), 1 + 3);
    let told: usize = streams.iter().map(|stream| drain(&mut stream.session()).len()).sum();
    assert_eq!(told, 0);
    for stream in &streams[..3] {
        stream.session().on_catalog(feed.latest(), Instant::now());
        assert_eq!(drain(&mut stream.session()).len(), 1);
    }
    assert_eq!(Arc::strong_count(&first), 1);
    // A change of the configuration may concern all.
    plane
        .set_yaml("more.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec: {ports: [{port: 80}]}\n")
        .unwrap();
    source.send_replace(counted(&plane, &asked));
    runtime.block_on(fleet.tell(&feed));
    assert_eq!(woken(), CLIENTS);
}

#[test]
fn a_change_that_concerns_three_clients_costs_work_for_three() {
    let (plane, asked, interner) = (plane(), Arc::<AtomicUsize>::default(), Arc::<Interner>::default());
    // The last service is called by three alone.
    let mut sessions: Vec<Session> = (0..CLIENTS)
        .map(|number| {
            let called = (0..CALLED).map(|call| (number * CALLED + call) % (SERVICES - 1));
            let more = (number < 3).then_some(SERVICES - 1);
            open(counted(&plane, &asked), client(ClientClass::Library), called.chain(more), &interner)
        })
        .collect();
    for number in 2..5 {
        plane.register(endpoint(SERVICES - 1, number));
        asked.store(0, Ordering::Relaxed);
        let catalog = counted(&plane, &asked);
        let told: Vec<Response> = sessions
            .iter_mut()
            .flat_map(|session| {
                session.on_catalog(catalog.clone(), Instant::now());
                drain(session)
            })
            .collect();
        assert_eq!(told.len(), 3);
        // Once to see that it is another version, and once to send it.
        assert_eq!(asked.load(Ordering::Relaxed), 6);
        // It was encoded once.
        let bodies: Vec<_> = told.iter().map(|response| response.resources[0].body.as_ptr()).collect();
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    }
    // Whoever has missed more than is remembered looks at everything, and so does everybody where the configuration changes.
    (5..60).for_each(|number| plane.register(endpoint(0, number)));
    plane
        .set_yaml("more.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec: {ports: [{port: 80}]}\n")
        .unwrap();
    asked.store(0, Ordering::Relaxed);
    sessions[5].on_catalog(counted(&plane, &asked), Instant::now());
    assert_eq!(asked.load(Ordering::Relaxed), CALLED);
}

#[test]
fn a_client_of_the_service_that_changed_looks_at_everything_since_zones_go_by_it() {
    let (plane, asked, interner) = (plane(), Arc::<AtomicUsize>::default(), Arc::<Interner>::default());
    let own = client(ClientClass::Library).labels([("app", "s3")]);
    let mut session = open(counted(&plane, &asked), own, 10..20, &interner);
    plane.register(endpoint(3, 2));
    asked.store(0, Ordering::Relaxed);
    session.on_catalog(counted(&plane, &asked), Instant::now());
    assert_eq!(asked.load(Ordering::Relaxed), 10);
}

/// What many clients hold alike is there once, and still is when it has changed for all of them. That holds for names too of
/// which there is nothing.
#[test]
fn what_clients_hold_alike_is_shared() {
    let (plane, asked, interner) = (plane(), Arc::<AtomicUsize>::default(), Arc::<Interner>::default());
    let session = || open(counted(&plane, &asked), client(ClientClass::Library), 0..SERVICES + 50, &interner);
    let first = session();
    let leaves = interner.leaves();
    assert!(leaves > 0);
    let mut sessions: Vec<Session> = (0..50).map(|_| session()).chain([first]).collect();
    assert_eq!(interner.leaves(), leaves);
    plane.register(endpoint(3, 2));
    for session in &mut sessions {
        session.on_catalog(counted(&plane, &asked), Instant::now());
        assert_eq!(drain(session).len(), 1);
    }
    assert_eq!(interner.leaves(), leaves);
    // Of a name there may be what was told of it before, until the next sweep.
    assert!(interner.count() <= 2 * (SERVICES + 50) + 1, "{}", interner.count());
}
