//! An etcd that does what it is told: revisions, pages, watches, transactions, compaction, and everything that goes wrong. Several
//! members share one store, as those of a cluster do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response as HttpResponse;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::proto::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, DELETE, Event, KeyValue, LEASE_GRANT, LEASE_KEEP_ALIVE,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, Op, PUT, RANGE, RangeRequest,
    RangeResponse, ResponseHeader, TXN, Target, TxnRequest, TxnResponse, WATCH, WatchCreateRequest, WatchRequest,
    WatchResponse,
};

type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

pub(super) struct World {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// Every change.
    log: Vec<Event>,
    /// Up to which revision that has been forgotten.
    compacted: i64,
    /// Members that answer nothing but 14, UNAVAILABLE.
    pub(super) failing: BTreeSet<usize>,
    /// How many watches are taken and ended, as where a member knows no leader.
    pub(super) leaderless: usize,
    /// Whether lists are empty, as of a store that has lost everything.
    pub(super) is_blank: bool,
    /// How many transactions are carried out, and then not answered.
    pub(super) unanswered: usize,
    /// What comes between a look at the objects and the next transaction.
    pub(super) between: Vec<(String, Option<String>)>,
    /// The password of `root`, where its authentication is on.
    pub(super) password: Option<String>,
    watchers: Vec<(usize, Answers)>,
    /// Keys by their lease; how many there were.
    leases: BTreeMap<i64, BTreeSet<String>>,
    granted: i64,
}

#[derive(Clone)]
pub(super) struct Fake {
    world: Arc<Mutex<World>>,
    /// Counts requests.
    asked: Arc<watch::Sender<BTreeMap<&'static str, u64>>>,
    pub(super) addresses: Vec<SocketAddr>,
    _tasks: Arc<Tasks>,
}

struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// One member.
#[derive(Clone)]
struct Member {
    fake: Arc<Mutex<World>>,
    asked: Arc<watch::Sender<BTreeMap<&'static str, u64>>>,
    number: usize,
}

impl Fake {
    pub(super) async fn start(members: usize) -> Fake {
        let world = World {
            cluster: 1,
            revision: 1,
            log: Vec::new(),
            compacted: 0,
            failing: BTreeSet::new(),
            leaderless: 0,
            is_blank: false,
            unanswered: 0,
            between: Vec::new(),
            password: None,
            watchers: Vec::new(),
            leases: BTreeMap::new(),
            granted: 0,
        };
        let (world, asked) = (Arc::new(Mutex::new(world)), Arc::new(watch::Sender::default()));
        let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..members {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            addresses.push(listener.local_addr().expect("an address"));
            let member = Member { fake: world.clone(), asked: asked.clone(), number };
            // Etcd does so, too: an answer would wait for the acknowledgement of the one before, 40 ms.
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("set"));
            let router = Router::new().fallback(answer).with_state(member);
            tasks.push(tokio::spawn(async move { drop(axum::serve(listener, router).await) }));
        }
        Fake { world, asked, addresses, _tasks: Arc::new(Tasks(tasks)) }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many more requests of a kind to be answered.
    pub(super) async fn asked(&self, what: &'static str, more: u64) {
        let mut counts = self.asked.subscribe();
        let of = |counts: &BTreeMap<&str, u64>| counts.get(what).copied().unwrap_or_default();
        let before = of(&counts.borrow());
        counts.wait_for(|counts| of(counts) >= before + more).await.expect("a server");
    }

    /// As by etcdctl.
    pub(super) fn put(&self, key: &str, value: &str) {
        self.world().change(&[(key.to_owned(), Some(value.to_owned()))]);
    }

    pub(super) fn delete(&self, key: &str) {
        self.world().change(&[(key.to_owned(), None)]);
    }

    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let world = self.world();
        let live = world.at(world.revision);
        let keys = live.keys().filter_map(|key| String::from_utf8(key.clone()).ok());
        keys.filter(|key| key.starts_with(prefix)).collect()
    }

    /// Ends every watch.
    pub(super) fn cut(&self) {
        self.world().watchers.clear();
    }

    /// Forgets all changes so far, and ends every watch.
    pub(super) fn compact(&self) {
        let mut world = self.world();
        world.compacted = world.revision;
        world.watchers.clear();
    }

    /// The lease of the one key that ends like this.
    pub(super) fn lease_of(&self, end: &str) -> i64 {
        let world = self.world();
        let mut with = world.leases.iter().filter(|(_, keys)| keys.iter().any(|key| key.ends_with(end)));
        let (Some((lease, _)), None) = (with.next(), with.next()) else { panic!("not one of {end}") };
        *lease
    }

    /// Ends a lease, and with it its keys.
    pub(super) fn expire(&self, lease: i64) {
        let mut world = self.world();
        let keys = world.leases.remove(&lease).expect("a lease");
        let live = world.at(world.revision);
        let gone: Vec<_> =
            keys.into_iter().filter(|key| live.contains_key(key.as_bytes())).map(|key| (key, None)).collect();
        world.change(&gone);
    }

    /// Which members have watchers.
    pub(super) fn watched(&self) -> Vec<usize> {
        self.world().watchers.iter().filter(|(_, watcher)| !watcher.is_closed()).map(|(member, _)| *member).collect()
    }
}

impl World {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.cluster, member_id: 1, revision: self.revision })
    }

    /// What there was at a revision.
    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, KeyValue> {
        let mut live = BTreeMap::new();
        for event in &self.log {
            let kv = event.kv.clone().expect("a key");
            match event.kind {
                _ if kv.mod_revision > revision => break,
                PUT => drop(live.insert(kv.key.clone(), kv)),
                _ => drop(live.remove(&kv.key)),
            }
        }
        live
    }

    /// Changes keys in one revision.
    pub(super) fn change(&mut self, changes: &[(String, Option<String>)]) {
        self.revision += 1;
        let events = changes.iter().map(|(key, value)| Event {
            kind: if value.is_some() { PUT } else { DELETE },
            kv: Some(KeyValue {
                key: key.clone().into_bytes(),
                mod_revision: self.revision,
                value: value.clone().unwrap_or_default().into_bytes(),
                ..KeyValue::default()
            }),
        });
        let events: Vec<Event> = events.collect();
        self.log.extend(events.clone());
        let answer = WatchResponse { header: self.header(), events, ..WatchResponse::default() };
        self.watchers.retain(|(_, watcher)| watcher.try_send(Ok(answer.clone())).is_ok());
    }

    fn range(&self, asked: &RangeRequest) -> Result<RangeResponse, Status> {
        if asked.revision != 0 && asked.revision <= self.compacted {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        let live = self.at(if asked.revision == 0 { self.revision } else { asked.revision });
        let is_in = |key: &Vec<u8>| match asked.range_end.is_empty() {
            true => *key == asked.key,
            false => *key >= asked.key && *key < asked.range_end,
        };
        let found: Vec<KeyValue> = live.into_values().filter(|kv| is_in(&kv.key) && !self.is_blank).collect();
        // Whatever is asked for, pages are small.
        let limit = if asked.limit == 0 { usize::MAX } else { 3 };
        let more = found.len() > limit;
        Ok(RangeResponse { header: self.header(), kvs: found.into_iter().take(limit).collect(), more })
    }

    fn txn(&mut self, asked: &TxnRequest) -> Result<TxnResponse, Status> {
        let between = std::mem::take(&mut self.between);
        if !between.is_empty() {
            self.change(&between);
        }
        if asked.success.len() > 128 {
            return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
        }
        let live = self.at(self.revision);
        let succeeded = asked.compare.iter().all(|compare| {
            let Some(Target::ModRevision(wanted)) = compare.value else { return false };
            live.get(&compare.key).map_or(0, |kv| kv.mod_revision) == wanted
        });
        if succeeded {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            let mut changes = Vec::new();
            for op in &asked.success {
                match op.request.as_ref().expect("an operation") {
                    Op::Put(put) => {
                        if put.lease != 0 {
                            let Some(keys) = self.leases.get_mut(&put.lease) else {
                                return Err(Status::not_found("etcdserver: requested lease not found"));
                            };
                            keys.insert(text(&put.key));
                        }
                        changes.push((text(&put.key), Some(text(&put.value))));
                    }
                    Op::Delete(delete) => {
                        let is_in = |key: &&Vec<u8>| match delete.range_end.is_empty() {
                            true => **key == delete.key,
                            false => **key >= delete.key && **key < delete.range_end,
                        };
                        changes.extend(live.keys().filter(is_in).map(|key| (text(key), None)));
                    }
                }
            }
            self.change(&changes);
        }
        if self.unanswered > 0 {
            self.unanswered -= 1;
            return Err(Status::unavailable("the member is gone"));
        }
        Ok(TxnResponse { header: self.header(), succeeded })
    }

    fn watch(&mut self, member: usize, asked: &WatchCreateRequest, answers: Answers) {
        if self.leaderless > 0 {
            self.leaderless -= 1;
            answers.try_send(Err(Status::unavailable("etcdserver: no leader"))).expect("room");
            return;
        }
        let send = |answer: WatchResponse| answers.try_send(Ok(answer)).expect("room");
        let own = |change: &dyn Fn(&mut WatchResponse)| {
            let mut answer = WatchResponse { header: self.header(), ..WatchResponse::default() };
            change(&mut answer);
            answer
        };
        send(own(&|answer| answer.created = true));
        if asked.start_revision <= self.compacted {
            send(own(&|answer| (answer.canceled, answer.compact_revision) = (true, self.compacted)));
            return;
        }
        let is_new = |event: &&Event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= asked.start_revision);
        let events: Vec<Event> = self.log.iter().filter(is_new).cloned().collect();
        if !events.is_empty() {
            send(own(&|answer| answer.events.clone_from(&events)));
        }
        self.watchers.push((member, answers));
    }
}

struct Method<F>(F);

impl<F, Q, A> UnaryService<Q> for Method<F>
where
    F: FnMut(Q) -> Result<A, Status>,
{
    type Response = A;
    type Future = std::future::Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        std::future::ready((self.0)(request.into_inner()).map(Response::new))
    }
}

struct Watching(Member);

impl StreamingService<WatchRequest> for Watching {
    type Response = WatchResponse;
    type ResponseStream = ReceiverStream<Result<WatchResponse, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let member = self.0.clone();
        Box::pin(async move {
            let first = request.into_inner().message().await?.expect("a request");
            let (answers, told) = mpsc::channel(1000);
            let asked = first.create_request.expect("a watch");
            member.fake.lock().expect("a lock").watch(member.number, &asked, answers);
            member.count("watch");
            Ok(Response::new(ReceiverStream::new(told)))
        })
    }
}

struct Keeping(Member);

impl StreamingService<LeaseKeepAliveRequest> for Keeping {
    type Response = LeaseKeepAliveResponse;
    type ResponseStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<LeaseKeepAliveRequest>>) -> Self::Future {
        let member = self.0.clone();
        Box::pin(async move {
            let LeaseKeepAliveRequest { id } = request.into_inner().message().await?.expect("a request");
            let ttl = i64::from(member.fake.lock().expect("a lock").leases.contains_key(&id));
            let (answers, told) = mpsc::channel(1);
            answers.try_send(Ok(LeaseKeepAliveResponse { id, ttl })).expect("room");
            Ok(Response::new(ReceiverStream::new(told)))
        })
    }
}

impl Member {
    fn count(&self, what: &'static str) {
        self.asked.send_modify(|counts| *counts.entry(what).or_default() += 1);
    }
}

async fn answer(State(member): State<Member>, request: http::Request<Body>) -> HttpResponse {
    let (path, world) = (request.uri().path().to_owned(), member.fake.clone());
    let world = || world.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = path == AUTHENTICATE
        || world().password.is_none()
        || request.headers().get("token").is_some_and(|token| token == "the-token");
    let request = request.map(tonic::body::Body::new);
    let refusal = match () {
        () if world().failing.contains(&member.number) => Some(Status::unavailable("as told")),
        () if !is_known => Some(Status::unauthenticated("etcdserver: invalid auth token")),
        () => None,
    };
    if let Some(status) = refusal {
        member.count("refused");
        return status.into_http::<tonic::body::Body>().map(Body::new);
    }
    match path.as_str() {
        RANGE => {
            let answer = |asked: RangeRequest| world().range(&asked);
            let codec = ProstCodec::<RangeResponse, RangeRequest>::default();
            let answer = Grpc::new(codec).unary(Method(answer), request).await;
            member.count("range");
            answer.map(Body::new)
        }
        TXN => {
            let answer = |asked: TxnRequest| world().txn(&asked);
            let codec = ProstCodec::<TxnResponse, TxnRequest>::default();
            let answer = Grpc::new(codec).unary(Method(answer), request).await;
            member.count("txn");
            answer.map(Body::new)
        }
        AUTHENTICATE => {
            let answer = |asked: AuthenticateRequest| match Some(&asked.password) == world().password.as_ref() {
                true => Ok(AuthenticateResponse { token: "the-token".to_owned() }),
                false => {
                    Err(Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password"))
                }
            };
            let codec = ProstCodec::<AuthenticateResponse, AuthenticateRequest>::default();
            Grpc::new(codec).unary(Method(answer), request).await.map(Body::new)
        }
        LEASE_GRANT => {
            let answer = |_: LeaseGrantRequest| {
                let mut world = world();
                world.granted += 1;
                let id = world.granted;
                world.leases.insert(id, BTreeSet::new());
                Ok(LeaseGrantResponse { id })
            };
            let codec = ProstCodec::<LeaseGrantResponse, LeaseGrantRequest>::default();
            Grpc::new(codec).unary(Method(answer), request).await.map(Body::new)
        }
        LEASE_KEEP_ALIVE => {
            let codec = ProstCodec::<LeaseKeepAliveResponse, LeaseKeepAliveRequest>::default();
            Grpc::new(codec).streaming(Keeping(member), request).await.map(Body::new)
        }
        WATCH => {
            let codec = ProstCodec::<WatchResponse, WatchRequest>::default();
            Grpc::new(codec).streaming(Watching(member), request).await.map(Body::new)
        }
        other => panic!("{other}"),
    }
}
