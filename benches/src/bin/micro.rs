//! What single decisions cost: finding a route, picking an endpoint, compiling a view, taking in an update,
//! issuing a certificate, knowing a token again, writing down a call.
//!
//! ```text
//! cargo run --release --bin micro
//! ```
//!
//! Ends with status 1 if a bar is missed by more than twice: less than that may be the machine's noise.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use http::request::Parts;
use mesh_benches::Result;
use mesh_benches::fixtures::{Played, Routes, account, cluster, endpoints, guarded, limited, limited_request, random};
use mesh_benches::process::machine;
use mesh_benches::stats::median;
use mesh_control::ca::CertificateAuthority;
use mesh_core::authz::Connection;
use mesh_core::balance::PickArgs;
use mesh_core::calls::{Call, Recorder, seconds};
use mesh_core::id::EndpointId;
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::jwt::Authenticator;
use mesh_core::limits::{Epoch, KeyedBuckets, Rate};
use mesh_core::list::{List, Run};
use mesh_core::model::{
    BalancerPolicy, Endpoint, Forward, JwkSet, JwtAuthentication, JwtProvider, JwtRequirement, JwtRule, Route,
    RouteAction, RouteMatch, TokenBucket,
};
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::resources::{Change, Resource, ResourceType, Update};
use mesh_core::testing::TokenIssuer;
use mesh_core::testing::resources::{endpoints as load_assignment, lb_endpoint, route, routes, virtual_host};
use mesh_core::tls::CertificateRequest;
use mesh_core::xds::decode::{Before, Options, decode, decode_after};
use prost::Message;

/// Sizes of route tables, smallest first.
const ROUTES: [usize; 3] = [1, 100, 10_000];
/// Sizes of clusters, smallest first.
const ENDPOINTS: [usize; 3] = [3, 100, 10_000];
/// What a decision among the most may cost, in nanoseconds.
const FIND_BAR: f64 = 2000.0;
const PICK_BAR: f64 = 200.0;
/// A verdict on a request that only the last policy lets in.
const ADMIT_BAR: f64 = 1000.0;
/// A thousand certificates a second.
const ISSUE_BAR: f64 = 1e6;
/// A token that was verified before.
const TOKEN_BAR: f64 = 500.0;
/// A call that is written down.
const RECORD_BAR: f64 = 50.0;
/// Taking from the three buckets that are for a request.
const LIMIT_BAR: f64 = 100.0;
/// How far an hour of ten thousand keys a second may be from what the limit says.
const LIMIT_ERROR: f64 = 0.02;
/// How much more than the smallest case the largest may cost.
const GROWTH_BAR: f64 = 3.0;

fn main() -> Result<ExitCode> {
    println!("{}. Medians, one thread.\n", machine());
    println!("| decision | among | ns | bar |");
    println!("|---|---:|---:|---|");
    let mut worst: f64 = 0.0;
    for (kind, name) in [(Routes::Exact, "exact"), (Routes::Prefix, "prefix"), (Routes::Mixed, "mixed with headers")] {
        let times = ROUTES.map(|count| find(kind, count));
        worst = worst.max(show(&format!("find a route: {name}"), ROUTES, times, FIND_BAR)?);
    }
    let policies = [
        (BalancerPolicy::least_request(2), "least request"),
        (BalancerPolicy::RoundRobin, "round robin"),
        (BalancerPolicy::Random, "random"),
    ];
    for (policy, name) in policies {
        let times = ENDPOINTS.map(|count| pick(policy.clone(), count));
        worst = worst.max(show(&format!("pick: {name}"), ENDPOINTS, times, PICK_BAR)?);
    }
    for (by_account, name) in [(true, "accounts by name"), (false, "accounts by pattern")] {
        let admit = admit(100, by_account)?;
        worst = worst.max(admit / ADMIT_BAR);
        println!("| let a request in: {name} | 100 policies | {admit:.0} | ≤ {ADMIT_BAR:.0} |");
    }
    let (compile, update) = (compile(1000, 100)?, update(1000, 100)?);
    println!("| compile a view | 1,000 clusters × 100 | {compile:.0} | |");
    println!("| one endpoint changes, until visible | 1,000 clusters × 100 | {update:.0} | |");
    println!("| one endpoint changes, until visible | 1 cluster × 100 | {:.0} | |", self::update(1, 100)?);
    println!("| one endpoint changes, until visible | 1 cluster × 10,000 | {:.0} | |", update_endpoint(10_000)?);
    for (what, of) in
        [("says something else", Edit::Action), ("is for other requests", Edit::Match), ("is new", Edit::New)]
    {
        println!("| one route {what}, until visible | 10,000 routes | {:.0} | |", update_route(10_000, of)?);
    }
    for (what, kind) in [("route", ResourceType::Route), ("endpoint", ResourceType::Endpoints)] {
        let (alone, after) = decoded(kind, 10_000)?;
        println!("| one {what} changes: the resource, decoded by itself | 10,000 {what}s | {alone:.0} | |");
        println!("| the same, decoded after the one before | 10,000 {what}s | {after:.0} | |");
    }
    let issue = issue()?;
    worst = worst.max(issue / ISSUE_BAR);
    println!("| issue a certificate, the request checked | | {issue:.0} | ≤ {ISSUE_BAR:.0} |");
    let token = token()?;
    worst = worst.max(token / TOKEN_BAR);
    println!("| check a token that was verified before | | {token:.0} | ≤ {TOKEN_BAR:.0} |");
    let recorded = record();
    worst = worst.max(recorded / RECORD_BAR);
    println!("| record a call: paths that came before | 512 forms | {recorded:.1} | ≤ {RECORD_BAR:.0} |");
    println!("| record a call: a new number in each path | 512 forms | {:.1} | |", record_numbers());
    let (alone, together) = (limit(1)?, limit(2)?);
    worst = worst.max(alone / LIMIT_BAR);
    println!("| check a local limit | 100 rules, 3 apply | {alone:.0} | ≤ {LIMIT_BAR:.0} |");
    println!("| the same, two threads at once, each its own keys | 100 rules, 3 apply | {together:.0} | |");
    let (error, keys, each) = an_hour()?;
    worst = worst.max(error / LIMIT_ERROR);
    println!(
        "| an hour of 10,000 distinct keys a second, {:.2} % off | {keys} places | {each:.0} | ≤ 2 % |",
        error * 100.0
    );
    println!("\nWorst bar: {worst:.2} of what is allowed.");
    Ok(if worst > 2.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the rows of one decision; how much of its bars the largest case uses up.
fn show(name: &str, sizes: [usize; 3], times: [Result<f64>; 3], bar: f64) -> Result<f64> {
    let [small, middle, large] = times;
    let (small, middle, large) = (small?, middle?, large?);
    let used = (large / bar).max(large / small / GROWTH_BAR);
    println!("| {name} | {} | {small:.1} | |", sizes[0]);
    println!("| {name} | {} | {middle:.1} | |", sizes[1]);
    let verdict = if used <= 1.0 { "pass" } else { "**fail**" };
    let growth = large / small;
    println!(
        "| {name} | {} | {large:.1} | {verdict}: ≤ {bar} ns, {growth:.1} (≤ {GROWTH_BAR}) × the smallest |",
        sizes[2]
    );
    Ok(used)
}

/// Finding a route with requests for all parts of the table.
fn find(kind: Routes, count: usize) -> Result<f64> {
    const REQUESTS: usize = 1024;
    let view = kind.view(count)?;
    let mut random = fastrand::Rng::with_seed(1);
    let requests: Vec<Parts> = (0..REQUESTS).map(|_| kind.request(random.usize(0..count))).collect::<Result<_>>()?;
    let heads: Vec<RequestHead<'_>> = requests.iter().map(RequestHead::of).collect::<Result<_, _>>()?;
    for head in &heads {
        view.find(head, &mut random)?;
    }
    Ok(time(|turn| {
        let head = &heads[turn % REQUESTS];
        black_box(view.find(black_box(head), &mut random).is_ok());
    }))
}

/// Letting a request in that no policy but the last one is for.
fn admit(policies: usize, by_account: bool) -> Result<f64> {
    let table = guarded(policies, by_account)?;
    let peer: SpiffeId = account(policies - 1).parse().context("an ID")?;
    let (source, destination) = (SocketAddr::from(([10, 0, 0, 1], 5000)), SocketAddr::from(([10, 0, 0, 2], 8080)));
    let connection = Connection { peer: Some(&peer), source, remote: source, destination, server_name: None };
    let parts = Routes::Prefix.request(0)?;
    let head = RequestHead::of(&parts)?;
    let mut random = random();
    table.admit(&head, Some(connection), &[], &mut random).into_route()?;
    Ok(time(|_| {
        let admission = table.admit(black_box(&head), Some(black_box(connection)), &[], &mut random);
        black_box(admission.into_route().is_ok());
    }))
}

/// Asking a limit with a hundred rules about requests of which three are for each, on so many threads at once.
fn limit(threads: usize) -> Result<f64> {
    let filter = limited(100)?;
    let info = RequestInfo::new(Instant::now(), random());
    let requests = |thread: usize| -> Result<Vec<Parts>> {
        (0..64).map(|user| limited_request(2 + thread * 49 + user % 49, thread * 64 + user)).collect()
    };
    let requests: Vec<_> = (0..threads).map(requests).collect::<Result<_>>()?;
    let run = |requests: &[Parts]| {
        let info = RequestInfo::new(info.started, random());
        time(|turn| {
            black_box(filter.check(&info, black_box(&requests[turn % requests.len()])));
        })
    };
    let times: Vec<f64> = std::thread::scope(|scope| {
        let all: Vec<_> = requests.iter().map(|requests| scope.spawn(|| run(requests))).collect();
        all.into_iter().filter_map(|one| one.join().ok()).collect()
    });
    Ok(median(&times))
}

/// An hour in which ten thousand different keys come every second, a thousand of them again and again, who ask for twice what they
/// may: how far what they get is from that, how many buckets there are, and what one request costs.
fn an_hour() -> Result<(f64, usize, f64)> {
    const KNOWN: u64 = 1000;
    const OTHERS: u64 = 9000;
    let (start, rate) = (Instant::now(), Rate::from(TokenBucket::new(20, 1, Duration::from_secs(1))?));
    let (epoch, keys) = (Epoch::new(start), KeyedBuckets::new(20_000));
    let hash = |key: u64| {
        let mixed = key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    let (mut within, mut asked) = (0_u64, 0_u64);
    for half in 0..7200_u64 {
        let now = epoch.ticks(start + Duration::from_millis(500 * half));
        let mut take = |key: u64| {
            asked += 1;
            keys.get(hash(key)).take(&rate, 1, now).is_within
        };
        within += (0..KNOWN).filter(|key| take(*key)).count() as u64;
        let first = KNOWN + half * OTHERS / 2;
        anyhow::ensure!((first..first + OTHERS / 2).all(take), "a key that came once was refused");
    }
    let (expected, time) = ((KNOWN * (20 + 3600)) as f64, start.elapsed());
    Ok(((within as f64 / expected - 1.0).abs(), keys.room(), time.as_nanos() as f64 / asked as f64))
}

/// Picking an endpoint, and letting it go.
fn pick(policy: BalancerPolicy, count: usize) -> Result<f64> {
    let cluster = cluster(policy, count);
    let mut random = random();
    cluster.pick(&mut PickArgs::new(&mut random), || "")?;
    Ok(time(|_| {
        black_box(cluster.pick(&mut PickArgs::new(&mut random), || "").is_ok());
    }))
}

/// From the last missing endpoints to the view.
fn compile(clusters: usize, each: usize) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..9 {
        let (mut played, wanted) = Played::new(clusters)?;
        let assign = |(group, key)| Played::assign(key, endpoints(group, each));
        let changes = wanted.subscribe.into_iter().enumerate().map(assign).collect();
        let start = Instant::now();
        played.sink.apply(Update { changes });
        times.push(start.elapsed().as_nanos() as f64);
        anyhow::ensure!(played.view().is_some(), "the view is not complete");
    }
    Ok(median(&times))
}

/// From a changed endpoint, decoded, to the view that has it.
fn update(clusters: usize, each: usize) -> Result<f64> {
    let (mut played, wanted) = Played::new(clusters)?;
    let keys = wanted.subscribe;
    let all = keys.iter().cloned().enumerate();
    let changes = all.map(|(group, key)| Played::assign(key, endpoints(group, each))).collect();
    played.sink.apply(Update { changes });
    let mut before = played.view().context("the view is not complete")?;
    let mut times = Vec::new();
    for turn in 0..201 {
        let group = turn % keys.len();
        // By turns one endpoint less and all of them again.
        let count = if (turn / keys.len()).is_multiple_of(2) { each - 1 } else { each };
        let update = Update { changes: vec![Played::assign(keys[group].clone(), endpoints(group, count))] };
        let start = Instant::now();
        played.sink.apply(update);
        let view = played.view();
        times.push(start.elapsed().as_nanos() as f64);
        let view = view.context("the view is gone")?;
        anyhow::ensure!(!std::sync::Arc::ptr_eq(&view, &before), "the update is not visible");
        before = view;
    }
    Ok(median(&times))
}

/// The same among many, of which the others are those of the configuration before.
fn update_endpoint(count: usize) -> Result<f64> {
    let (mut played, wanted) = Played::new(1)?;
    let key = wanted.subscribe.first().cloned().context("endpoints are wanted")?;
    let all = endpoints(0, count);
    let first = Endpoint::new(EndpointId::new(SocketAddr::from(([192, 0, 2, 1], 80))));
    let mut other = all.clone();
    for locality in &mut other.localities {
        locality.endpoints = locality.endpoints.replaced(|at, _| (at == count / 2).then(|| first.clone()));
    }
    let all = [all, other].map(Arc::new);
    let change = |turn: usize| Change::Put(key.clone(), Resource::Endpoints(Arc::clone(&all[turn % 2])));
    visible(&mut played, change)
}

/// What is different of one route.
#[derive(Clone, Copy)]
enum Edit {
    Action,
    Match,
    New,
}

/// From a changed route among many to the view that has it. The others are those of the configuration before.
fn update_route(count: usize, edit: Edit) -> Result<f64> {
    let (mut played, wanted) = Played::new(1)?;
    let key = wanted.subscribe.first().cloned().context("endpoints are wanted")?;
    played.sink.apply(Update { changes: vec![Played::assign(key, endpoints(0, 3))] });
    let route = |position: usize| {
        let mut route = Routes::Prefix.route(position);
        route.action = RouteAction::Forward(Forward::to("cluster-0000"));
        route
    };
    let routes: List<Arc<Route>> = (0..count).map(|position| Arc::new(route(position))).collect();
    let (mut other, at) = (route(count / 2), count / 2);
    match edit {
        Edit::Action => other.name = "other".into(),
        Edit::Match | Edit::New => other.matches = Routes::Exact.route(count / 2).matches,
    }
    let behind = if matches!(edit, Edit::New) { at } else { at + 1 };
    let runs = vec![Run::Kept(0..at), Run::New(vec![Arc::new(other)]), Run::Kept(behind..count)];
    let all = [routes.changed(runs), routes];
    visible(&mut played, |turn| Played::routed(&all[turn % 2]))
}

/// From a change to the view that has it.
fn visible(played: &mut Played, change: impl Fn(usize) -> Change) -> Result<f64> {
    played.sink.apply(Update { changes: vec![change(1)] });
    let mut before = played.view().context("the view is not complete")?;
    let mut times = Vec::new();
    for turn in 0..200 {
        let changes = vec![change(turn)];
        let start = Instant::now();
        played.sink.apply(Update { changes });
        let view = played.view();
        times.push(start.elapsed().as_nanos() as f64);
        let view = view.context("the view is gone")?;
        anyhow::ensure!(!Arc::ptr_eq(&view, &before), "the update is not visible");
        before = view;
    }
    Ok(median(&times))
}

/// A resource with many items, of which one is another than in the version before: decoded by itself, and with what is known.
fn decoded(kind: ResourceType, count: u16) -> Result<(f64, f64)> {
    let bytes = |changed: u16| match kind {
        ResourceType::Route => {
            let route = |number| route(&format!("/api/v1/service-{number:05}/"), "all");
            let all = (0..count).map(|at| route(if at == changed { u32::from(at) + 20_000 } else { u32::from(at) }));
            routes("routes", vec![virtual_host("all", &["*"], all.collect())]).encode_to_vec()
        }
        _ => {
            let endpoint = |at: u16| lb_endpoint("10.0.0.1", 1 + if at == changed { at + 20_000 } else { at });
            let mut assignment = load_assignment("endpoints", &[]);
            assignment.endpoints[0].lb_endpoints = (0..count).map(endpoint).collect();
            assignment.encode_to_vec()
        }
    };
    let versions = [bytes(count / 2), bytes(count / 3)];
    let options = Options::default();
    let known = decode(kind, &versions[0], &options)?;
    let before = Some(Before { bytes: &versions[0], resource: &known.resource, noted: &known.noted });
    let (mut alone, mut after) = (Vec::new(), Vec::new());
    for _ in 0..51 {
        for (before, times) in [(None, &mut alone), (before, &mut after)] {
            let start = Instant::now();
            let decoded = decode_after(kind, black_box(&versions[1]), before, &options)?;
            times.push(start.elapsed().as_nanos() as f64);
            anyhow::ensure!(decoded.resource != known.resource, "nothing has changed");
        }
    }
    Ok((median(&alone), median(&after)))
}

/// A request to sign a P-256 key: read, checked and signed.
fn issue() -> Result<f64> {
    let now = SystemTime::now();
    let authority = CertificateAuthority::in_memory(TrustDomain::default(), now)?;
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
    let request = CertificateRequest::new()?;
    authority.issue(request.csr(), &identity, 0, now)?;
    Ok(time(|_| {
        black_box(authority.issue(black_box(request.csr()), &identity, 0, now).is_ok());
    }))
}

/// A request whose token was verified before: found, and its times looked at again.
fn token() -> Result<f64> {
    let issuer = TokenIssuer::new("key-1");
    let keys = Arc::new(JwkSet::parse(issuer.jwks().as_bytes())?);
    let mut config = JwtAuthentication::default();
    config.providers.insert("idp".into(), JwtProvider::new("https://idp.example", keys));
    let requires = JwtRequirement::Any(vec![JwtRequirement::Provider("idp".into()), JwtRequirement::AllowMissing]);
    config.rules.push(JwtRule { matches: RouteMatch::any(), requires: Some(requires) });
    let authenticator = Authenticator::new(&config)?;
    let groups: Vec<String> = (0..20).map(|number| format!("\"group-{number}\"")).collect();
    let claims = format!(
        r#"{{"iss":"https://idp.example","sub":"me","aud":"shop","exp":4102444800,"groups":[{}]}}"#,
        groups.join(",")
    );
    let request = http::Request::get("http://shop/cart")
        .header("authorization", format!("Bearer {}", issuer.token(&claims)))
        .body(())?;
    let head = RequestHead::of_parts(request.method(), request.uri(), request.headers());
    let now = SystemTime::now();
    anyhow::ensure!(authenticator.authenticate(&head, now).is_ok_and(|known| known.claims().is_some()), "a good token");
    Ok(time(|_| {
        black_box(authenticator.authenticate(black_box(&head), now).is_ok());
    }))
}

const CALLERS: [&str; 4] = [
    "spiffe://cluster.local/ns/shop/sa/productpage",
    "spiffe://cluster.local/ns/shop/sa/reviews",
    "spiffe://cluster.local/ns/shop/sa/ratings",
    "spiffe://cluster.local/ns/shop/sa/details",
];

/// A call that policies let in.
fn call<'c>(principal: &'c str, path: &'c str) -> Call<'c> {
    let rule = Some("AuthorizationPolicy/shop/reviews-callers#0");
    Call { principal: Some(principal), port: 9080, is_grpc: false, method: "GET", path, is_allowed: true, rule }
}

/// Writing down calls of four callers to 128 paths each.
fn record() -> f64 {
    let recorder = Recorder::default();
    recorder.set_on(true);
    let mut random = random();
    let word = |number: usize| char::from(b'g' + (number % 12) as u8);
    let paths: Vec<String> =
        (0..128).map(|number| format!("/{}{}/api/v1/products", word(number), word(number / 12))).collect();
    time(|turn| {
        let call = call(CALLERS[turn % CALLERS.len()], &paths[turn / CALLERS.len() % paths.len()]);
        recorder.record(black_box(&call), &mut random, || seconds(SystemTime::now()));
    })
}

/// The same with paths that never come again, but for their form.
fn record_numbers() -> f64 {
    let recorder = Recorder::default();
    recorder.set_on(true);
    let mut random = random();
    let paths: Vec<String> = (0..100_000).map(|number| format!("/api/v1/products/{number}/reviews")).collect();
    time(|turn| {
        let call = call(CALLERS[turn % CALLERS.len()], &paths[turn % paths.len()]);
        recorder.record(black_box(&call), &mut random, || seconds(SystemTime::now()));
    })
}

/// Nanoseconds of one call: the median of many batches, each long against the clock's own cost.
fn time(mut one: impl FnMut(usize)) -> f64 {
    let mut batch = |size: usize| {
        let start = Instant::now();
        (0..size).for_each(&mut one);
        start.elapsed()
    };
    let mut size = 64;
    while batch(size) < Duration::from_micros(500) {
        size *= 2;
    }
    let times: Vec<f64> = (0..201).map(|_| batch(size).as_nanos() as f64 / size as f64).collect();
    median(&times)
}
