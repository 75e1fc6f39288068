//! STRICT_DNS clusters: their names are looked up again and again, and every address is an endpoint.
//!
//! A name that cannot be looked up keeps the addresses it had. Each is looked up by itself, and what is known is told without those
//! that have not answered yet; that none can be found is told when all have. Which names are slow is known whatever becomes of the
//! clusters that have them. Where a name has addresses of both families, the
//! IPv4 ones are used: a server that listens on one family only usually listens on that one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::id::{Address, EndpointId};
use crate::model::{ClusterKind, Endpoint, Endpoints};
use crate::resources::{Change, Resource, ResourceKey, ResourceType};
use crate::state::lock;
use crate::xds::task::Owned;

/// The prefix of keys that are answered here and by no server.
const PREFIX: &str = "dns:";
/// The shortest time between two look-ups, whatever a cluster says.
const MIN_REFRESH: Duration = Duration::from_millis(100);
/// A look-up that takes longer is slow.
const SLOW: Duration = Duration::from_secs(1);

/// How many names the system is asked for at a time, by the whole process: each keeps a thread until it is answered.
static PLACES: Places = Places { usual: Semaphore::const_new(100), slow: Semaphore::const_new(20) };

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// How names are looked up; the system's resolver by default.
#[derive(Clone, Default)]
pub struct Resolver {
    own: Option<Arc<LookUp>>,
    paces: Paces,
}

type LookUp = dyn Fn(&str) -> Lookup + Send + Sync;

impl Resolver {
    /// A resolver that asks `lookup` for the addresses of a name.
    pub fn new<F, L>(lookup: F) -> Self
    where
        F: Fn(&str) -> L + Send + Sync + 'static,
        L: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Resolver { own: Some(Arc::new(move |name| Box::pin(lookup(name)))), paces: Paces::default() }
    }

    /// The addresses of a name.
    #[expect(clippy::disallowed_methods, reason = "it runs on a thread that may block")]
    async fn look_up(&self, name: Arc<str>) -> io::Result<Vec<IpAddr>> {
        match &self.own {
            Some(lookup) => lookup(&name).await,
            None => {
                let ask =
                    |name: &str| (name, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
                PLACES.run(&self.paces, name, ask).await
            }
        }
    }
}

/// How long look-ups of names take: kept by name, since a configuration that comes meanwhile asks anew.
#[derive(Clone, Debug, Default)]
struct Paces(Arc<Mutex<HashMap<Arc<str>, Pace>>>);

/// What is known of a name that has been asked for, unless it is fast.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// It has not answered since then.
    Asked(Instant),
    /// It was slow the last time.
    Slow,
}

impl Paces {
    fn begin(&self, name: &Arc<str>, now: Instant) {
        lock(&self.0).entry(Arc::clone(name)).or_insert(Pace::Asked(now));
    }

    fn end(&self, name: &str, took: Duration) {
        let mut paces = lock(&self.0);
        match paces.get_mut(name) {
            Some(pace) if took > SLOW => *pace = Pace::Slow,
            _ => _ = paces.remove(name),
        }
    }

    fn is_slow(&self, name: &str, now: Instant) -> bool {
        match lock(&self.0).get(name) {
            Some(Pace::Asked(since)) => now.saturating_duration_since(*since) > SLOW,
            Some(Pace::Slow) => true,
            None => false,
        }
    }

    /// Forgets a name that a cluster has no more. Where another has it, that finds out again.
    fn forget(&self, name: &str) {
        lock(&self.0).remove(name);
    }
}

/// Room for look-ups that block. Names that are known to be slow have few places of their own: those that hang hold up each other
/// and nobody else.
struct Places {
    usual: Semaphore,
    slow: Semaphore,
}

impl Places {
    /// Runs a look-up once there is a place for it, which it keeps until it ends, even if nobody waits for it any more.
    async fn run(
        &'static self,
        paces: &Paces,
        name: Arc<str>,
        ask: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> io::Result<Vec<IpAddr>> {
        let places = if paces.is_slow(&name, Instant::now()) { &self.slow } else { &self.usual };
        let place = places.acquire().await.map_err(io::Error::other)?;
        let (paces, began) = (paces.clone(), Instant::now());
        paces.begin(&name, began);
        let asked = spawn_blocking(move || {
            let _place = place;
            let found = ask(&name);
            // Here, since whoever asked may be gone.
            paces.end(&name, began.elapsed());
            found
        });
        asked.await?
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The cluster whose addresses a key stands for.
pub(crate) fn cluster_of(key: &ResourceKey) -> Option<&str> {
    match key.kind {
        ResourceType::Endpoints => key.name.strip_prefix(PREFIX),
        _ => None,
    }
}

/// The clusters whose names are being looked up.
pub(crate) struct Dns {
    resolver: Resolver,
    clusters: HashMap<String, Names>,
    answers: mpsc::Sender<Answer>,
    incoming: mpsc::Receiver<Answer>,
    /// Tells the answers of a task from those of the one that replaced it.
    turns: u64,
}

/// One cluster.
struct Names {
    endpoints: Endpoints,
    refresh: Duration,
    known: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Why names could not be looked up the last time.
    failures: BTreeMap<Arc<str>, String>,
    delivered: Option<Change>,
    turn: u64,
    _task: Option<Owned>,
}

/// What some names of a cluster came to.
pub(crate) struct Answer {
    cluster: String,
    turn: u64,
    hosts: Vec<(Arc<str>, io::Result<Vec<IpAddr>>)>,
}

impl Dns {
    pub(crate) fn new(resolver: Resolver) -> Self {
        // Every task sends what it has and then waits: a full queue holds a task back, and loses nothing.
        let (answers, incoming) = mpsc::channel(16);
        Dns { resolver, clusters: HashMap::new(), answers, incoming, turns: 0 }
    }

    /// The next answer.
    pub(crate) async fn recv(&mut self) -> Option<Answer> {
        self.incoming.recv().await
    }

    /// Somebody wants the addresses of a cluster.
    pub(crate) fn subscribe(&mut self, cluster: &str, kind: Option<&ClusterKind>) {
        let names = Names {
            endpoints: Endpoints::default(),
            refresh: MIN_REFRESH,
            known: HashMap::new(),
            failures: BTreeMap::new(),
            delivered: None,
            turn: 0,
            _task: None,
        };
        self.clusters.entry(cluster.to_owned()).or_insert(names);
        if let Some(kind) = kind {
            self.update(cluster, kind);
        }
    }

    /// Nobody wants them any more.
    pub(crate) fn unsubscribe(&mut self, cluster: &str) {
        if let Some(names) = self.clusters.remove(cluster) {
            hosts(&names.endpoints).iter().for_each(|host| self.resolver.paces.forget(host));
        }
    }

    /// A cluster was received: if its names are wanted, the new ones are looked up at once.
    pub(crate) fn update(&mut self, cluster: &str, kind: &ClusterKind) {
        let (Some(names), ClusterKind::StrictDns { endpoints, refresh }) = (self.clusters.get_mut(cluster), kind)
        else {
            return;
        };
        let refresh = (*refresh).max(MIN_REFRESH);
        if names.turn > 0 && names.endpoints == *endpoints && names.refresh == refresh {
            return;
        }
        self.turns += 1;
        let (before, hosts) = (self::hosts(&names.endpoints), hosts(endpoints));
        before.difference(&hosts).for_each(|host| self.resolver.paces.forget(host));
        names.known.retain(|host, _| hosts.contains(host));
        names.failures.clear();
        names.endpoints = endpoints.clone();
        names.refresh = refresh;
        names.turn = self.turns;
        let task = Task {
            cluster: cluster.to_owned(),
            turn: self.turns,
            hosts: hosts.into_iter().collect(),
            refresh,
            resolver: self.resolver.clone(),
            answers: self.answers.clone(),
        };
        names._task = Some(Owned::spawn(task.run()));
    }

    /// Takes in an answer; what the store is to be told of it.
    pub(crate) fn answered(&mut self, answer: Answer) -> Option<Change> {
        let names = self.clusters.get_mut(&answer.cluster).filter(|names| names.turn == answer.turn)?;
        for (host, result) in answer.hosts {
            let failure = match result {
                Ok(addresses) if !addresses.is_empty() => {
                    names.failures.remove(&host);
                    names.known.insert(host, one_family(addresses));
                    continue;
                }
                Ok(_) => format!("{host}: no addresses"),
                Err(error) => format!("{host}: {error}"),
            };
            tracing::warn!("cluster {}: {failure}", answer.cluster);
            names.failures.insert(host, failure);
        }
        let key = ResourceKey::new(ResourceType::Endpoints, format!("{PREFIX}{}", answer.cluster));
        let endpoints = resolved(&names.endpoints, &names.known);
        let all = hosts(&names.endpoints).len();
        let change = if endpoints.is_empty() && all > 0 {
            if names.failures.len() < all {
                // Others have not answered yet.
                return None;
            }
            let failures: Vec<&str> = names.failures.values().map(String::as_str).collect();
            let reason = format!("cluster {}: no name can be resolved: {}", answer.cluster, failures.join("; "));
            Change::Absent(key, reason.into())
        } else {
            Change::Put(key, Resource::Endpoints(Arc::new(endpoints)))
        };
        if names.delivered.as_ref() == Some(&change) {
            return None;
        }
        names.delivered = Some(change.clone());
        Some(change)
    }
}

/// The names among the addresses.
fn hosts(endpoints: &Endpoints) -> BTreeSet<Arc<str>> {
    endpoints
        .iter()
        .flat_map(|endpoint| endpoint.id.addresses())
        .filter_map(|address| match address {
            Address::Host(host, _) => Some(Arc::clone(host)),
            Address::Socket(_) => None,
        })
        .collect()
}

/// The endpoints with every name replaced by its addresses. An address that two names have is one endpoint.
fn resolved(endpoints: &Endpoints, known: &HashMap<Arc<str>, Vec<IpAddr>>) -> Endpoints {
    let mut seen = HashSet::new();
    let mut endpoints = endpoints.clone();
    for locality in &mut endpoints.localities {
        let addresses = locality
            .endpoints
            .iter()
            .flat_map(|endpoint| addresses(endpoint, known).into_iter().map(move |address| (endpoint, address)));
        let found = addresses.filter(|(_, address)| seen.insert(address.clone()));
        locality.endpoints =
            found.map(|(endpoint, address)| Endpoint { id: EndpointId::new(address), ..endpoint.clone() }).collect();
    }
    endpoints
}

fn addresses(endpoint: &Endpoint, known: &HashMap<Arc<str>, Vec<IpAddr>>) -> Vec<Address> {
    let mut addresses = Vec::new();
    for address in endpoint.id.addresses() {
        match address {
            Address::Socket(_) => addresses.push(address.clone()),
            Address::Host(host, port) => {
                let ips = known.get(host).into_iter().flatten();
                addresses.extend(ips.map(|ip| Address::Socket((*ip, *port).into())));
            }
        }
    }
    addresses
}

/// The IPv4 addresses, else the IPv6 ones, each once and in order.
fn one_family(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let all: BTreeSet<IpAddr> = addresses.into_iter().collect();
    let v4: Vec<IpAddr> = all.iter().copied().filter(IpAddr::is_ipv4).collect();
    if v4.is_empty() { all.into_iter().collect() } else { v4 }
}

/// Looks the names of one cluster up, again and again.
struct Task {
    cluster: String,
    turn: u64,
    hosts: Vec<Arc<str>>,
    refresh: Duration,
    resolver: Resolver,
    answers: mpsc::Sender<Answer>,
}

impl Task {
    /// Each name goes its own way, so that one which hangs holds up no other; what comes in together is told together.
    async fn run(self) {
        let mut lookups = JoinSet::new();
        for host in &self.hosts {
            lookups.spawn(look_up(self.resolver.clone(), Arc::clone(host), None));
        }
        loop {
            let mut hosts = Vec::new();
            // Where there are no names, the addresses are told once.
            let mut ended = lookups.join_next().await;
            while let Some(looked_up) = ended {
                if let Ok((host, result)) = looked_up {
                    let pause = Some(self.refresh);
                    lookups.spawn(look_up(self.resolver.clone(), Arc::clone(&host), pause));
                    hosts.push((host, result));
                }
                ended = lookups.try_join_next();
            }
            let answer = Answer { cluster: self.cluster.clone(), turn: self.turn, hosts };
            if self.answers.send(answer).await.is_err() || lookups.is_empty() {
                return;
            }
        }
    }
}

/// Looks a name up after a pause: the name, and its addresses.
async fn look_up(resolver: Resolver, host: Arc<str>, pause: Option<Duration>) -> (Arc<str>, io::Result<Vec<IpAddr>>) {
    if let Some(pause) = pause {
        sleep(pause).await;
    }
    let name = Arc::clone(&host);
    let mut lookup = JoinSet::new();
    lookup.spawn(async move { resolver.look_up(name).await });
    // A resolver of the application's own may panic: then it has no answer, and is asked again.
    match lookup.join_next().await {
        Some(Ok(result)) => (host, result),
        _ => (host, Err(io::Error::other("the resolver panicked"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::model::LocalityEndpoints;

    fn cluster(hosts: &[(&str, u16)]) -> ClusterKind {
        let endpoint = |(host, port): &(&str, u16)| {
            let address = match host.parse::<IpAddr>() {
                Ok(ip) => Address::Socket((ip, *port).into()),
                Err(_) => Address::Host((*host).into(), *port),
            };
            Endpoint::new(EndpointId::new(address))
        };
        let endpoints = hosts.iter().map(endpoint).collect();
        let locality = LocalityEndpoints { locality: Default::default(), weight: None, priority: 0, endpoints };
        let endpoints = Endpoints { localities: vec![locality], ..Endpoints::default() };
        ClusterKind::StrictDns { endpoints, refresh: Duration::from_secs(60) }
    }

    #[tokio::test]
    async fn a_resolver_that_panics_has_no_answer() {
        let resolver = Resolver::new(|name| {
            let name = name.to_owned();
            async move {
                assert_eq!(name, "other", "it knows no other name");
                Ok(Vec::new())
            }
        });
        let (host, result) = look_up(resolver, "a".into(), None).await;
        assert_eq!((&*host, result.is_err()), ("a", true));
    }

    type Table = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

    /// A resolver whose answers can be changed.
    fn scripted() -> (Resolver, Table) {
        let table = Table::default();
        let answers = Arc::clone(&table);
        let resolver = Resolver::new(move |name| {
            let answer = answers.lock().unwrap().get(name).cloned();
            async move { answer.ok_or_else(|| io::Error::other("no such name")) }
        });
        (resolver, table)
    }

    fn shown(change: Option<Change>) -> String {
        match change {
            None => "nothing".to_owned(),
            Some(Change::Absent(key, reason)) => format!("{} absent: {reason}", key.name),
            Some(Change::Put(_, Resource::Endpoints(endpoints))) => {
                endpoints.iter().map(|endpoint| endpoint.id.to_string()).collect::<Vec<_>>().join(" ")
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_up_again_and_keep_their_last_good_addresses() {
        let (resolver, table) = scripted();
        let set = |name: &str, ips: &[&str]| {
            table.lock().unwrap().insert(name.to_owned(), ips.iter().map(|ip| ip.parse().unwrap()).collect());
        };
        let mut dns = Dns::new(resolver);
        dns.subscribe("c", Some(&cluster(&[("a.b", 80), ("10.9.9.9", 81), ("gone", 82)])));
        set("a.b", &["10.0.0.2", "::1", "10.0.0.1"]);
        let mut next = async || {
            let answer = dns.recv().await.unwrap();
            shown(dns.answered(answer))
        };
        assert_eq!(next().await, "10.0.0.1:80 10.0.0.2:80 10.9.9.9:81");
        table.lock().unwrap().clear();
        assert_eq!(next().await, "nothing");
        set("a.b", &["10.0.0.3"]);
        assert_eq!(next().await, "10.0.0.3:80 10.9.9.9:81");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_of_which_no_name_was_ever_found_is_absent() {
        let (resolver, _) = scripted();
        let mut dns = Dns::new(resolver);
        dns.subscribe("c", Some(&cluster(&[("a.b", 80)])));
        let answer = dns.recv().await.unwrap();
        let expected = "dns:c absent: cluster c: no name can be resolved: a.b: no such name";
        assert_eq!(shown(dns.answered(answer)), expected);
    }

    /// A resolver for which `hangs` never answers, `late` does after a minute, `gone` does not exist, and others count how often
    /// they were looked up.
    fn various() -> Resolver {
        let turns = Arc::new(Mutex::new(HashMap::<String, u8>::new()));
        Resolver::new(move |name| {
            let (name, turns) = (name.to_owned(), Arc::clone(&turns));
            async move {
                match &*name {
                    "hangs" => std::future::pending().await,
                    "late" => sleep(Duration::from_secs(60)).await,
                    "gone" => return Err(io::Error::other("no such name")),
                    _ => {}
                }
                let mut turns = turns.lock().unwrap();
                let turn = turns.entry(name).or_default();
                *turn += 1;
                Ok(vec![IpAddr::from([10, 0, 0, *turn])])
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_never_answers_holds_up_no_other() {
        let mut dns = Dns::new(various());
        dns.subscribe("c", Some(&cluster(&[("good", 80), ("hangs", 81), ("gone", 82)])));
        let began = Instant::now();
        let mut next = async || {
            let answer = dns.recv().await.unwrap();
            shown(dns.answered(answer))
        };
        assert_eq!(next().await, "10.0.0.1:80");
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(next().await, "10.0.0.2:80");
        assert!(began.elapsed() < Duration::from_secs(61), "looked up again in time");
    }

    #[tokio::test(start_paused = true)]
    async fn that_no_name_can_be_found_is_told_when_all_have_answered() {
        let mut dns = Dns::new(various());
        dns.subscribe("c", Some(&cluster(&[("gone", 80), ("late", 81)])));
        let mut told = Vec::new();
        while told.last().is_none_or(|told| told == "nothing") {
            let answer = dns.recv().await.unwrap();
            told.push(shown(dns.answered(answer)));
        }
        assert_eq!(told[0], "nothing");
        assert_eq!(told.last().unwrap(), "10.0.0.1:81");
    }

    #[tokio::test]
    async fn names_that_hang_hold_up_each_other_and_nobody_else() {
        static PLACES: Places = Places { usual: Semaphore::const_new(1), slow: Semaphore::const_new(1) };
        let paces = Paces::default();
        let hang = |name: &str| {
            let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
            let wait = move |_: &str| {
                _ = ended.recv();
                Err(io::Error::other("no answer"))
            };
            let (paces, name) = (paces.clone(), Arc::from(name));
            paces.begin(&name, Instant::now());
            paces.end(&name, 2 * SLOW);
            (end, tokio::spawn(async move { PLACES.run(&paces, name, wait).await }))
        };
        let [(end, first), (_, second)] = [hang("a"), hang("b")];
        tokio::task::yield_now().await;
        assert_eq!(PLACES.slow.available_permits(), 0);
        let ip = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(PLACES.run(&paces, "c".into(), move |_| Ok(vec![ip])).await.unwrap(), [ip]);
        // It keeps its place as long as it keeps its thread, whoever still waits for it.
        first.abort();
        _ = first.await;
        assert_eq!(PLACES.slow.available_permits(), 0);
        drop(end);
        assert!(second.await.unwrap().is_err());
    }

    #[test]
    fn a_name_is_slow_as_long_as_it_was_so_the_last_time_or_does_not_answer() {
        let (paces, now) = (Paces::default(), Instant::now());
        let name = Arc::<str>::from("a");
        let is_slow = |after: Duration| paces.is_slow("a", now + after);
        paces.begin(&name, now);
        assert!(!is_slow(SLOW) && is_slow(2 * SLOW), "it has not answered");
        // Whoever asks again meanwhile does not make it any faster.
        paces.begin(&name, now + 2 * SLOW);
        assert!(is_slow(2 * SLOW));
        paces.end("a", 3 * SLOW);
        paces.begin(&name, now + 3 * SLOW);
        assert!(is_slow(3 * SLOW), "the last time");
        paces.end("a", SLOW);
        assert!(!is_slow(9 * SLOW) && lock(&paces.0).is_empty());
        paces.begin(&name, now);
        paces.forget("a");
        paces.end("a", 3 * SLOW);
        assert!(lock(&paces.0).is_empty(), "nobody wants it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_hangs_is_known_to_when_its_cluster_changes_and_forgotten_with_it() {
        let mut dns = Dns::new(various());
        dns.subscribe("c", Some(&cluster(&[("hangs", 80)])));
        let hangs = Arc::<str>::from("hangs");
        dns.resolver.paces.begin(&hangs, Instant::now());
        dns.resolver.paces.end("hangs", 2 * SLOW);
        let is_slow = |dns: &Dns| dns.resolver.paces.is_slow("hangs", Instant::now());
        dns.update("c", &cluster(&[("hangs", 80), ("good", 81)]));
        assert!(is_slow(&dns));
        dns.update("c", &cluster(&[("good", 81)]));
        assert!(!is_slow(&dns));
        dns.update("c", &cluster(&[("hangs", 80)]));
        dns.resolver.paces.begin(&hangs, Instant::now());
        dns.resolver.paces.end("hangs", 2 * SLOW);
        dns.unsubscribe("c");
        assert!(!is_slow(&dns));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_cluster_is_looked_up_at_once_and_old_answers_are_dropped() {
        let (resolver, table) = scripted();
        table.lock().unwrap().insert("x".to_owned(), vec!["10.0.0.1".parse().unwrap()]);
        let mut dns = Dns::new(resolver);
        dns.subscribe("c", Some(&cluster(&[("a", 1)])));
        let stale = dns.recv().await.unwrap();
        dns.update("c", &cluster(&[("x", 1)]));
        assert_eq!(shown(dns.answered(stale)), "nothing");
        let answer = dns.recv().await.unwrap();
        assert_eq!(shown(dns.answered(answer)), "10.0.0.1:1");
        dns.unsubscribe("c");
        assert!(dns.clusters.is_empty());
    }

    #[test]
    fn an_address_of_two_names_is_one_endpoint() {
        let ClusterKind::StrictDns { endpoints, .. } = cluster(&[("a", 1), ("b", 1), ("b", 2)]) else { panic!() };
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let known = [(Arc::from("a"), vec![ip]), (Arc::from("b"), vec![ip])].into();
        assert_eq!(resolved(&endpoints, &known).len(), 2);
    }
}
