//! The rate limit service: the command over real sockets, and counters in something that speaks Redis's protocol.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::google::protobuf::UInt64Value;
use mesh_control::config::Severity;
use mesh_control::ratelimit::{NotCounted, RateLimits, Refusal, Store};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tonic::transport::Channel;

use crate::process::{Control, gone, output, page, text};
use crate::support::until;

#[tokio::test]
async fn what_the_page_asks_a_service_about_has_a_limit_there() {
    let page = include_str!("../../../docs/rate-limits.md");
    let mut blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let rules = blocks.find(|block| block.starts_with("domain: shop\n")).expect("a rule file");
    let limits = RateLimits::new(Store::in_memory(10));
    assert!(limits.apply_texts([("shop.yaml", rules)]).is_empty());
    let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
    let entries = vec![entry("method", "POST"), entry("path", "/export/**")];
    let asked = request(&[RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }]);
    let answer = limits.decide(&asked, Duration::from_secs(1_800_000_000)).await.unwrap();
    assert_eq!(answer.statuses[0].current_limit.as_ref().map(|limit| limit.requests_per_unit), Some(20));
}

/// A year has no end while a test runs, but for once.
const RULES: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: {unit: year, requests_per_unit: 2}
- key: user
  value: ada
  rate_limit: {unlimited: true}
- key: user
  value: bot*
  share_threshold: true
  rate_limit: {name: bots, unit: year, requests_per_unit: 3}
- key: seen
  shadow_mode: true
  detailed_metric: true
  rate_limit: {unit: year, requests_per_unit: 1}
- key: instead
  rate_limit: {unit: year, requests_per_unit: 9, replaces: [{name: bots}]}
- key: slides
  rate_limit: {unit: year, requests_per_unit: 2, algorithm: sliding}
";

pub(crate) fn descriptor(key: &str, value: &str) -> RateLimitDescriptor {
    let entries = vec![Entry { key: key.to_owned(), value: value.to_owned() }];
    RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
}

pub(crate) fn request(descriptors: &[RateLimitDescriptor]) -> RateLimitRequest {
    RateLimitRequest { domain: "shop".to_owned(), descriptors: descriptors.to_vec(), hits_addend: 0 }
}

/// `OK` or `OVER`, and what is left under each limit; `-` where there is none.
fn verdict(response: &RateLimitResponse) -> String {
    let left = response.statuses.iter().map(|status| match &status.current_limit {
        Some(_) => status.limit_remaining.to_string(),
        None if status.limit_remaining == u32::MAX => "unlimited".to_owned(),
        None => "-".to_owned(),
    });
    let code = if response.overall_code() == Code::OverLimit { "OVER" } else { "OK" };
    format!("{code} {}", left.collect::<Vec<_>>().join(" "))
}

struct Service {
    control: Control,
    client: RateLimitServiceClient<Channel>,
    status: SocketAddr,
    rules: tempfile::TempDir,
    _config: tempfile::TempDir,
}

impl Service {
    async fn start(rules: &str, more: &[&str]) -> Service {
        let (config, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(directory.path().join("shop.yaml"), rules).unwrap();
        let dir = directory.path().to_str().unwrap();
        let own = ["--ratelimit-addr", "127.0.0.1:0", "--ratelimit-config", dir];
        let mut control = Control::start(config.path(), &[&own, more].concat());
        control.address("xds listening on ");
        control.line();
        let address = control.address("rate limits listening on ");
        let status = control.address("status listening on ");
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let client = RateLimitServiceClient::new(channel);
        Service { control, client, status, rules: directory, _config: config }
    }

    async fn ask(&self, request: RateLimitRequest) -> Result<String, tonic::Status> {
        self.client.clone().should_rate_limit(request).await.map(|response| verdict(response.get_ref()))
    }

    async fn metrics(&self) -> String {
        self.told("/metrics").await
    }

    async fn told(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.status).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.status);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_answers_by_its_rules_and_tells_of_them() {
    let mut service = Service::start(RULES, &["--ratelimit-headers"]).await;
    for (descriptors, expected) in [
        (vec![descriptor("user", "eve")], "OK 1"),
        (vec![descriptor("user", "eve")], "OK 0"),
        (vec![descriptor("user", "eve")], "OVER 0"),
        (vec![descriptor("user", "mallory")], "OK 1"),
        (vec![descriptor("user", "ada"), descriptor("nothing", "of that name")], "OK unlimited -"),
        // One pot for all of them, and none where another rule takes its place.
        (vec![descriptor("user", "bot1")], "OK 2"),
        (vec![descriptor("user", "bot2"), descriptor("instead", "a")], "OK - 8"),
        (vec![descriptor("user", "bot2")], "OK 1"),
        (vec![descriptor("seen", "x")], "OK 0"),
        (vec![descriptor("seen", "x")], "OK 0"),
        (vec![descriptor("slides", "x")], "OK 1"),
        (vec![descriptor("slides", "x"), descriptor("user", "eve")], "OVER 0 0"),
        (vec![descriptor("slides", "x")], "OVER 0"),
    ] {
        assert_eq!(service.ask(request(&descriptors)).await.unwrap(), expected, "{descriptors:?}");
    }
    // Hits of the request, of a descriptor, given back, and a limit that the request brings along.
    let of = |hits: Option<u64>, is_negative_hits: bool| RateLimitDescriptor {
        hits_addend: hits.map(|value| UInt64Value { value }),
        is_negative_hits,
        limit: Some(RateLimitOverride { requests_per_unit: 10, unit: 6 }),
        ..descriptor("user", "own")
    };
    let hits = |descriptor: RateLimitDescriptor| RateLimitRequest { hits_addend: 4, ..request(&[descriptor]) };
    assert_eq!(service.ask(hits(of(None, false))).await.unwrap(), "OK 6");
    assert_eq!(service.ask(hits(of(Some(5), false))).await.unwrap(), "OK 1");
    assert_eq!(service.ask(hits(of(Some(0), false))).await.unwrap(), "OK 1");
    assert_eq!(service.ask(hits(of(Some(3), true))).await.unwrap(), "OK 4");
    assert_eq!(service.ask(hits(of(Some(u64::MAX), false))).await.unwrap(), "OVER 0");

    let response = service.client.should_rate_limit(request(&[descriptor("user", "eve")])).await.unwrap().into_inner();
    let headers = response.response_headers_to_add.iter().map(|header| (header.key.as_str(), header.value.as_str()));
    assert_eq!(headers.take(2).collect::<Vec<_>>(), [("ratelimit-limit", "2"), ("ratelimit-remaining", "0")]);
    assert!(response.statuses[0].duration_until_reset.as_ref().is_some_and(|until| until.seconds > 0));

    let metrics = service.metrics().await;
    for line in [
        r#"mesh_ratelimit_hits_total{domain="shop",rule="user"} 6"#,
        r#"mesh_ratelimit_over_limit_total{domain="shop",rule="user"} 3"#,
        r#"mesh_ratelimit_shadow_total{domain="shop",rule="seen_x"} 1"#,
        r#"mesh_ratelimit_hits_total{domain="shop",rule="user_bot*"} 2"#,
        "mesh_ratelimit_store_reached 1",
        "mesh_ratelimit_rules_current 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} in {metrics}");
    }
    let limits = service.told("/api/limits").await;
    let limits: serde_json::Value = serde_json::from_str(limits.split_once("\r\n\r\n").unwrap().1).unwrap();
    let rules = limits["service"]["rules"].as_array().unwrap();
    assert!(rules.iter().any(|rule| rule["rule"] == "user" && rule["hits"] == 6 && rule["over"] == 3), "{limits:#}");
    assert!(limits["quotas"]["identities"].is_array() && limits["objects"].is_array(), "{limits:#}");
    let table = text(&output(&["status", "--addr", &service.status.to_string()]).stdout);
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.starts_with(&["shop", "user"])).expect("a row for the rule");
    assert_eq!(row, ["shop", "user", "6", "3", "1", "0"], "{table}");
    service.control.signal("TERM");
    assert_eq!(service.control.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_rules_leave_the_last_good_ones_in_force_and_counters_outlive_every_change() {
    let service = Service::start(RULES, &[]).await;
    let write = |text: &str| std::fs::write(service.rules.path().join("shop.yaml"), text).unwrap();
    let table = || text(&output(&["status", "--addr", &service.status.to_string()]).stdout);
    let eve = || request(&[descriptor("user", "eve")]);
    assert_eq!(service.ask(eve()).await.unwrap(), "OK 1");
    write(&RULES.replace("unit: year, requests_per_unit: 2}", "unit: eon, requests_per_unit: 2}"));
    until("it is told of", || table().contains("shop.yaml:5:22: error[invalid-value]")).await;
    assert_eq!(service.ask(eve()).await.unwrap(), "OK 0", "the last good rules");
    write(&RULES.replace("unit: year, requests_per_unit: 2}", "unit: year, requests_per_unit: 5}"));
    until("it is right again", || !table().contains("are wrong")).await;
    assert_eq!(service.ask(eve()).await.unwrap(), "OK 2", "what was used is used");
    std::fs::remove_file(service.rules.path().join("shop.yaml")).unwrap();
    until("it is told of", || table().contains("all rule files are gone at once")).await;
    assert_eq!(service.ask(eve()).await.unwrap(), "OK 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_good_rules_or_with_a_request_that_makes_no_sense_there_is_no_verdict() {
    let service = Service::start("domain: shop\ndescriptors: [{key: a, rate_limit: {unit: day}}]\n", &[]).await;
    let why = service.ask(request(&[descriptor("a", "")])).await.unwrap_err();
    assert_eq!(why.code(), tonic::Code::Unavailable, "{why}");
    let in_force = "no rules are in force: questions are not answered";
    let ready = page(service.status, "/ready");
    assert!(ready.contains("503 ") && ready.contains(in_force) && ready.contains("shop.yaml:2:36: error"), "{ready}");
    let status = text(&output(&["status", "--addr", &service.status.to_string()]).stdout);
    assert!(status.contains(", not ready") && status.contains(in_force), "{status}");
    std::fs::write(service.rules.path().join("shop.yaml"), RULES).unwrap();
    let table = || text(&output(&["status", "--addr", &service.status.to_string()]).stdout);
    until("it is right", || !table().contains("are wrong")).await;
    assert!(page(service.status, "/ready").contains("200 OK"));
    let huge = RateLimitDescriptor { entries: vec![Entry::default(); 51], ..RateLimitDescriptor::default() };
    let unit = RateLimitOverride { requests_per_unit: 1, unit: 0 };
    let unknown_unit = RateLimitDescriptor { limit: Some(unit), ..descriptor("user", "eve") };
    for (request, code) in [
        (request(&[]), tonic::Code::InvalidArgument),
        (RateLimitRequest { domain: String::new(), ..request(&[descriptor("a", "")]) }, tonic::Code::InvalidArgument),
        (request(&vec![descriptor("a", ""); 101]), tonic::Code::InvalidArgument),
        (request(&[huge]), tonic::Code::InvalidArgument),
        (request(&[unknown_unit]), tonic::Code::InvalidArgument),
        (request(&[descriptor("a", &"x".repeat(300 << 10))]), tonic::Code::OutOfRange),
    ] {
        assert_eq!(service.ask(request).await.unwrap_err().code(), code);
    }
    let other = RateLimitRequest { domain: "other".to_owned(), ..request(&[descriptor("user", "eve")]) };
    for _ in 0..2 {
        assert_eq!(service.ask(other.clone()).await.unwrap(), "OK -", "a domain that nobody limits");
    }
    assert!(table().contains("2 passed, as their domains had no rules: other\n"), "{}", table());
    assert!(service.metrics().await.contains("\nmesh_ratelimit_unknown_domain_total 2\n"));
}

#[test]
fn a_strict_start_is_refused_for_wrong_rules() {
    let (config, rules) = (gone(), tempfile::tempdir().unwrap());
    std::fs::write(rules.path().join("shop.yaml"), "domain: shop\ndescriptor: []\n").unwrap();
    let own = ["--strict", "--ratelimit-addr", "127.0.0.1:0", "--ratelimit-config", rules.path().to_str().unwrap()];
    let why = Control::refused(config.path(), &own);
    assert!(why.contains("the rules of rate limits in") && why.contains("shop.yaml:2:1: error"), "{why}");
    std::fs::write(rules.path().join("shop.yaml"), RULES).unwrap();
    Control::start(config.path(), &own).address("xds listening on ");
}

#[tokio::test]
async fn a_domain_without_descriptors_counts_limits_that_come_with_a_question() {
    let limits = RateLimits::new(Store::in_memory(10));
    let said = limits.apply_texts([("shop.yaml", "domain: shop\n")]);
    assert!(said.iter().all(|one| one.severity == Severity::Info), "{said:?}");
    let own = RateLimitDescriptor {
        limit: Some(RateLimitOverride { requests_per_unit: 1, unit: 6 }),
        ..descriptor("user", "own")
    };
    let ask = async || verdict(&limits.decide(&request(std::slice::from_ref(&own)), NOW).await.unwrap());
    assert_eq!([ask().await, ask().await], ["OK 0", "OVER 0"]);
}

#[tokio::test]
async fn domains_without_rules_are_told_by_name_up_to_a_bound_and_until_they_have_some() {
    let limits = RateLimits::new(Store::in_memory(10));
    limits.apply_texts([("shop.yaml", RULES)]);
    let ask = async |domain: String| {
        let question = RateLimitRequest { domain, ..request(&[descriptor("user", "eve")]) };
        limits.decide(&question, NOW).await.unwrap();
    };
    ask("é".repeat(1000)).await;
    for number in 0..200 {
        ask(format!("d{number}")).await;
    }
    ask("d0".to_owned()).await;
    let status = limits.status();
    assert_eq!((status.unknown_domain, status.unknown_domains.len()), (202, 100));
    assert!(status.unknown_domains.contains(&"é".repeat(100)));
    limits.apply_texts([("shop.yaml", RULES), ("d0.yaml", "domain: d0\n")]);
    assert!(!limits.status().unknown_domains.contains(&"d0".to_owned()));
}

#[test]
fn addresses_and_options_that_do_not_go_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for (more, expected) in [
        (&["--ratelimit-addr", "127.0.0.1:0"][..], "--ratelimit-config"),
        (&["--ratelimit-addr", "0.0.0.0:0", "--ratelimit-config", dir], "reachable from other machines"),
        (&["--ratelimit-addr", "127.0.0.1:0", "--ratelimit-config", "/nowhere"], "cannot read --ratelimit-config"),
        (
            &["--ratelimit-addr", "127.0.0.1:0", "--ratelimit-config", dir, "--redis-url", "http://:s3cr3t@a"],
            "expected redis://",
        ),
    ] {
        let free = ["serve", "--config", dir, "--xds-addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"];
        let output = output(&[&free, more].concat());
        assert!(!output.status.success());
        let why = text(&output.stderr);
        // It stands in the log.
        assert!(why.contains(expected) && !why.contains("s3cr3t"), "{more:?}: {why}");
    }
    let why = output(&["bootstrap", "--token", "s3cr3t"]).stderr;
    assert!(text(&why).contains("64 hexadecimal digits") && !text(&why).contains("s3cr3t"), "{}", text(&why));
}

/// What speaks Redis's protocol, and counts as the script does in fixed windows.
struct FakeRedis {
    address: SocketAddr,
    counters: Arc<Mutex<HashMap<String, i64>>>,
    calls: Arc<AtomicUsize>,
    manner: Arc<Manner>,
    task: tokio::task::JoinHandle<()>,
}

/// How it answers.
#[derive(Default)]
struct Manner {
    is_silent: AtomicBool,
    /// With what has nothing to do with the question.
    is_mad: AtomicBool,
    is_full: AtomicBool,
}

impl FakeRedis {
    async fn start(address: SocketAddr, counters: Arc<Mutex<HashMap<String, i64>>>) -> FakeRedis {
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let (calls, manner) = (Arc::<AtomicUsize>::default(), Arc::<Manner>::default());
        let (kept, counted, own) = (counters.clone(), calls.clone(), manner.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(answer(stream, kept.clone(), counted.clone(), own.clone()));
            }
        });
        FakeRedis { address, counters, calls, manner, task }
    }

    async fn kill(self) -> (SocketAddr, Arc<Mutex<HashMap<String, i64>>>) {
        self.task.abort();
        let _ = self.task.await;
        (self.address, self.counters)
    }
}

async fn answer(
    stream: tokio::net::TcpStream,
    counters: Arc<Mutex<HashMap<String, i64>>>,
    calls: Arc<AtomicUsize>,
    manner: Arc<Manner>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let parts: usize = line.trim().strip_prefix('*').unwrap().parse().unwrap();
        let mut words = Vec::new();
        for _ in 0..parts {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            let mut word = vec![0; line.trim().strip_prefix('$').unwrap().parse::<usize>().unwrap() + 2];
            stream.read_exact(&mut word).await.unwrap();
            word.truncate(word.len() - 2);
            words.push(String::from_utf8_lossy(&word).into_owned());
        }
        let said = match words[0].to_ascii_uppercase().as_str() {
            "EVALSHA" if manner.is_silent.load(Ordering::Relaxed) => continue,
            "EVALSHA" if manner.is_full.load(Ordering::Relaxed) => {
                "-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_owned()
            }
            "EVALSHA" if manner.is_mad.load(Ordering::Relaxed) => "*1\r\n:-5\r\n".to_owned(),
            "SCRIPT" if manner.is_mad.load(Ordering::Relaxed) => format!("$40\r\n{}\r\n", "a".repeat(40)),
            "EVALSHA" => {
                calls.fetch_add(1, Ordering::Relaxed);
                let keys: usize = words[2].parse().unwrap();
                let mut counters = counters.lock().unwrap();
                let counts: Vec<String> = (0..keys)
                    .map(|at| {
                        let count = counters.entry(words[3 + at].clone()).or_default();
                        *count += words[3 + keys + 4 * at].parse::<i64>().unwrap();
                        format!(":{count}\r\n")
                    })
                    .collect();
                format!("*{}\r\n{}", counts.len(), counts.concat())
            }
            "SCRIPT" => {
                let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, words[2].as_bytes());
                let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("$40\r\n{hash}\r\n")
            }
            _ => "+OK\r\n".to_owned(),
        };
        stream.get_mut().write_all(said.as_bytes()).await.unwrap();
    }
}

/// Replicas with their counters in the same place.
async fn replica(address: SocketAddr) -> RateLimits {
    let limits = RateLimits::new(Store::in_redis(format!("redis://{address}").parse().unwrap(), 1000));
    assert!(limits.apply_texts([("shop.yaml", RULES)]).is_empty());
    until("it is connected", || limits.status().reached).await;
    limits
}

const NOW: Duration = Duration::from_secs(1_800_000_000);

#[tokio::test]
async fn replicas_share_their_counters_in_one_round_trip_and_ask_no_more_once_a_limit_is_over() {
    let redis = FakeRedis::start(([127, 0, 0, 1], 0).into(), Arc::default()).await;
    let (one, other) = (replica(redis.address).await, replica(redis.address).await);
    let both = request(&[descriptor("user", "eve"), descriptor("user", "mallory")]);
    let ask = async |limits: &RateLimits| verdict(&limits.decide(&both, NOW).await.unwrap());
    assert_eq!([ask(&one).await, ask(&other).await, ask(&one).await], ["OK 1 1", "OK 0 0", "OVER 0 0"]);
    assert_eq!(redis.calls.load(Ordering::Relaxed), 3, "a round trip for each, whatever it has in it");
    assert_eq!(ask(&one).await, "OVER 0 0");
    assert_eq!(redis.calls.load(Ordering::Relaxed), 3, "what is over is known here until its window ends");
    let next_year = NOW + Duration::from_secs(365 * 24 * 3600);
    assert_eq!(verdict(&one.decide(&both, next_year).await.unwrap()), "OK 1 1");
    // A limit that is raised is asked for again.
    assert!(
        one.apply_texts([("shop.yaml", &*RULES.replace("requests_per_unit: 2}", "requests_per_unit: 7}"))]).is_empty()
    );
    assert_eq!(ask(&one).await, "OK 3 3");
}

#[tokio::test]
async fn while_redis_is_away_there_is_no_verdict_and_when_it_is_back_there_is_one() {
    let redis = FakeRedis::start(([127, 0, 0, 1], 0).into(), Arc::default()).await;
    let limits = replica(redis.address).await;
    let eve = request(&[descriptor("user", "eve")]);
    assert_eq!(verdict(&limits.decide(&eve, NOW).await.unwrap()), "OK 1");
    let (address, counters) = redis.kill().await;
    until("it is noticed", || {
        let decided = futures_util::FutureExt::now_or_never(limits.decide(&eve, NOW));
        matches!(decided, Some(Err(Refusal::NotCounted(NotCounted::Away(_)))))
    })
    .await;
    // What no limit applies to needs no counter.
    let ada = request(&[descriptor("user", "ada")]);
    assert_eq!(verdict(&limits.decide(&ada, NOW).await.unwrap()), "OK unlimited");
    let redis = FakeRedis::start(address, counters).await;
    until("it is connected again", || limits.status().reached).await;
    assert_eq!(verdict(&limits.decide(&eve, NOW).await.unwrap()), "OK 0");

    // One that takes questions and says nothing.
    redis.manner.is_silent.store(true, Ordering::Relaxed);
    let decided = limits.decide(&eve, NOW).await;
    assert!(
        matches!(&decided, Err(Refusal::NotCounted(NotCounted::Away(why))) if why.contains("did not answer")),
        "{decided:?}"
    );
    assert!(limits.status().not_counted > 0);
}

/// It once panicked at the name of another script, and was not dialled any more; and a number below nothing was a very large one.
#[tokio::test]
async fn a_redis_that_answers_nonsense_is_away_until_it_makes_sense() {
    let redis = FakeRedis::start(([127, 0, 0, 1], 0).into(), Arc::default()).await;
    let limits = replica(redis.address).await;
    let eve = request(&[descriptor("user", "eve")]);
    redis.manner.is_mad.store(true, Ordering::Relaxed);
    let decided = limits.decide(&eve, NOW).await;
    assert!(matches!(decided, Err(Refusal::NotCounted(NotCounted::Away(_)))), "{decided:?}");
    let late = RateLimits::new(Store::in_redis(format!("redis://{}", redis.address).parse().unwrap(), 1000));
    assert!(late.apply_texts([("shop.yaml", RULES)]).is_empty());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!late.status().reached);
    redis.manner.is_mad.store(false, Ordering::Relaxed);
    until("it is connected", || late.status().reached).await;
    assert_eq!(verdict(&late.decide(&eve, NOW).await.unwrap()), "OK 1");
}

/// Its connection is as good as ever: nobody was told.
#[tokio::test]
async fn a_redis_that_is_full_is_away_until_it_has_room() {
    let redis = FakeRedis::start(([127, 0, 0, 1], 0).into(), Arc::default()).await;
    let limits = replica(redis.address).await;
    let eve = request(&[descriptor("user", "eve")]);
    redis.manner.is_full.store(true, Ordering::Relaxed);
    let decided = limits.decide(&eve, NOW).await;
    let is_full = |why: &str| why == "Redis says OOM";
    assert!(matches!(&decided, Err(Refusal::NotCounted(NotCounted::Away(why))) if is_full(why)), "{decided:?}");
    assert!(!limits.status().reached);
    redis.manner.is_full.store(false, Ordering::Relaxed);
    assert_eq!(verdict(&limits.decide(&eve, NOW).await.unwrap()), "OK 1");
    assert!(limits.status().reached);
}
