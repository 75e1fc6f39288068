use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use super::*;
use crate::error::ErrorKind;
use crate::id::{ClusterName, EndpointId};
use crate::model::{CelExpression, LabelRule};
use crate::request_info::Observers;
use crate::response_flags::ResponseFlags;
use crate::state::ClusterState;
use crate::telemetry::{BoundHistograms, Exposition, LABELS, write_standard};

fn metrics(now: Instant) -> Metrics {
    let mut own = Workload::of_endpoint("web-v1;shop;web;v1;east");
    own.app = Some("web".into());
    Metrics::new(Arc::new(OwnWorkload::new(own)), Arc::default(), now)
}

fn reviews() -> Arc<ServiceNames> {
    Arc::new(ServiceNames::new("reviews.shop.svc.cluster.local", "reviews", "shop"))
}

fn request(now: Instant, direction: Direction) -> RequestInfo {
    let mut request = RequestInfo::new(now, fastrand::Rng::with_seed(1));
    request.observe(&Observers::from([]), direction, &Method::GET);
    request
}

fn answered(now: Instant, endpoint: &Arc<EndpointState>, service: &Arc<ServiceNames>, status: u16) -> RequestInfo {
    let mut request = request(now, Direction::Outbound);
    request.note_route(&"r".into(), Some(&ClusterName::from("outbound|80||reviews")));
    request.note_service(Some(service));
    request.note_attempt(endpoint);
    request.note_response(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), true);
    request.note_complete();
    request
}

fn endpoint(cluster: &ClusterState, at: &str, workload: &str) -> Arc<EndpointState> {
    let endpoint = cluster.endpoint(&EndpointId::new(at.parse::<std::net::SocketAddr>().unwrap()), false);
    endpoint.note_workload(&workload.into());
    endpoint
}

#[test]
fn requests_count_by_the_labels_that_the_process_has_when_they_end() {
    let now = Instant::now();
    let (metrics, cluster, service) = (metrics(now), ClusterState::default(), reviews());
    let reviews = endpoint(&cluster, "10.0.0.1:80", "reviews-v2;shop;reviews;v2;");
    metrics.record(&answered(now, &reviews, &service, 200), now);
    metrics.own().note_labels(&[("app", "legacy".into())]);
    metrics.record(&answered(now, &reviews, &service, 200), now);
    let of_app = |app: &str| {
        let all = metrics.gather(now);
        let found = all.iter().find(|series| series.labels.get("source_app") == Some(app)).expect("a series");
        (found.labels.get("source_workload").map(str::to_owned), found.requests.load(Ordering::Relaxed))
    };
    assert_eq!(of_app("web"), (Some("web-v1".to_owned()), 1));
    assert_eq!(of_app("legacy"), (Some("web-v1".to_owned()), 1));
}

#[test]
fn requests_that_are_alike_are_one_series_with_all_labels() {
    let now = Instant::now();
    let (metrics, cluster, service) = (metrics(now), ClusterState::default(), reviews());
    let both = ["10.0.0.1:80", "10.0.0.2:80"].map(|at| endpoint(&cluster, at, "reviews-v2;shop;reviews;v2;"));
    for one in &both {
        metrics.record(&answered(now, one, &service, 200), now + Duration::from_millis(7));
    }
    metrics.record(&answered(now, &both[0], &service, 503), now);
    let all = metrics.gather(now);
    assert_eq!(all.len(), 2);
    let good = all.iter().find(|series| series.labels.get("response_code") == Some("200")).unwrap();
    assert_eq!(good.requests.load(Ordering::Relaxed), 2);
    let shown: Vec<_> = LABELS.iter().map(|name| good.labels.get(name).unwrap()).collect();
    assert_eq!(
        shown,
        [
            "source",
            "web-v1",
            "shop",
            "unknown",
            "web",
            "unknown",
            "web",
            "v1",
            "east",
            "reviews-v2",
            "shop",
            "unknown",
            "unknown",
            "unknown",
            "reviews",
            "v2",
            "unknown",
            "reviews.shop.svc.cluster.local",
            "reviews",
            "shop",
            "http",
            "200",
            "",
            "-",
            "unknown",
        ]
    );
    let mut text = Exposition::default();
    write_standard(&all, &mut text);
    let text = text.finish();
    let bucket = text.lines().find(|line| line.starts_with("istio_request_duration_milliseconds_bucket{"));
    assert!(bucket.unwrap().contains("le=\"0.5\""));
    let count = text.lines().filter(|line| line.starts_with("istio_request_duration_milliseconds_bucket{"));
    assert_eq!(count.count(), 2 * 20);
}

#[test]
fn failures_have_the_code_that_is_made_of_them_and_envoys_flags() {
    let now = Instant::now();
    let metrics = metrics(now);
    let mut failed = request(now, Direction::Outbound);
    failed.note_authority("nobody:80");
    failed.note_flags(ResponseFlags::RETRY_LIMIT_EXCEEDED);
    failed.note_error(ErrorKind::ConnectFailure);
    metrics.record(&failed, now);
    let mut call = request(now, Direction::Outbound);
    call.is_grpc = true;
    call.note_error(ErrorKind::NoHealthyEndpoint);
    metrics.record(&call, now);
    metrics.record(&request(now, Direction::Inbound), now);
    let shown = |series: &Arc<Series>| {
        ["reporter", "destination_service", "response_code", "grpc_response_status", "response_flags"]
            .map(|name| series.labels.get(name).unwrap().to_owned())
    };
    let mut all: Vec<_> = metrics.gather(now).iter().map(shown).collect();
    all.sort();
    assert_eq!(
        all,
        [
            ["destination", "unknown", "0", "", "DC"],
            ["source", "nobody:80", "503", "", "URX,UF"],
            ["source", "unknown", "200", "14", "UH"],
        ]
    );
}

#[test]
fn a_day_of_churn_among_ten_thousand_endpoints_leaves_no_more_than_there_are() {
    const ENDPOINTS: u32 = 10_000;
    const REPLICAS: u32 = 10;
    let began = Instant::now();
    let (metrics, service, cluster) = (metrics(began), reviews(), ClusterState::default());
    let fresh = |number: u32| {
        let at = std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + number), 80));
        endpoint(&cluster, &at.to_string(), &format!("w{};shop;;;", number / REPLICAS))
    };
    let mut present: std::collections::VecDeque<_> = (0..ENDPOINTS).map(fresh).collect();
    let call = |one: &Arc<EndpointState>, now| metrics.record(&answered(now, one, &service, 200), now);
    present.iter().for_each(|one| call(one, began));
    // Every quarter of an hour 500 endpoints of 50 workloads are replaced; it is scraped once a minute.
    for quarter in 1..=96 {
        let now = began + Duration::from_secs(900 * quarter);
        for number in 0..500 {
            present.pop_front();
            present.push_back(fresh(ENDPOINTS + 500 * (quarter as u32 - 1) + number));
        }
        present.iter().skip(ENDPOINTS as usize - 1_000).for_each(|one| call(one, now));
        let sizes = [60, 301].map(|later| metrics.gather(now + Duration::from_secs(later)).len());
        let ways: usize = metrics.ways.iter().map(|shard| shard.read().unwrap().len()).sum();
        assert_eq!(sizes[1], (ENDPOINTS / REPLICAS) as usize, "{quarter}");
        assert!(sizes[0] <= sizes[1] + 50 && ways == ENDPOINTS as usize, "{quarter}: {sizes:?}, {ways} ways");
    }
    assert_eq!(metrics.without_room(), 0);
    drop(present);
    assert_eq!(metrics.gather(began + Duration::from_secs(86_400 * 2)).len(), 0);
}

#[test]
fn names_that_clients_make_up_for_a_server_take_no_room() {
    let now = Instant::now();
    let metrics = metrics(now);
    for number in 0..100 {
        let mut request = request(now, Direction::Inbound);
        request.note_authority(&format!("h{number}:80"));
        metrics.record(&request, now);
    }
    let ways: usize = metrics.ways.iter().map(|shard| shard.read().unwrap().len()).sum();
    assert_eq!((ways, metrics.gather(now).len()), (1, 1));
}

#[test]
fn an_endpoint_of_which_more_is_known_has_another_series_from_then_on() {
    let now = Instant::now();
    let (metrics, cluster, service) = (metrics(now), ClusterState::default(), reviews());
    let one = endpoint(&cluster, "10.0.0.1:80", "reviews-v1;shop;reviews;v1;");
    metrics.record(&answered(now, &one, &service, 200), now);
    one.note_workload(&"reviews-v2;shop;reviews;v2;".into());
    metrics.record(&answered(now, &one, &service, 200), now);
    metrics.record(&answered(now, &one, &service, 200), now);
    let counts: Vec<_> = metrics.gather(now).iter().map(|series| series.requests.load(Ordering::Relaxed)).collect();
    assert_eq!(counts, [1, 2]);
}

/// Which codes the answers had, and how large they were.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<(String, u64)>>>);

#[derive(Debug)]
struct OfCode(Heard, String);

impl Histograms for Heard {
    fn bind(&self, labels: &Labels) -> Box<dyn BoundHistograms> {
        Box::new(OfCode(self.clone(), labels.get("response_code").unwrap_or_default().to_owned()))
    }
}

impl BoundHistograms for OfCode {
    fn record(&self, sample: &Sample, metrics: MetricSet) {
        assert_eq!(metrics, MetricSet::ALL);
        let OfCode(Heard(all), code) = self;
        all.lock().unwrap().push((code.clone(), sample.response_bytes));
    }
}

#[test]
fn histograms_of_somebody_elses_are_told_of_each_request_by_its_series() {
    let now = Instant::now();
    let (metrics, cluster, service, heard) = (metrics(now), ClusterState::default(), reviews(), Heard::default());
    metrics.record_in(Arc::new(heard.clone()));
    let one = endpoint(&cluster, "10.0.0.1:80", "reviews-v1;shop;reviews;v1;");
    for (status, bytes) in [(200, 5), (503, 7), (200, 9)] {
        let mut request = answered(now, &one, &service, status);
        request.note_response_data(&bytes::Bytes::from(vec![b'x'; bytes]));
        metrics.record(&request, now);
    }
    let expected = [("200", 5_u64), ("503", 7), ("200", 9)].map(|(code, bytes)| (code.to_owned(), bytes));
    assert_eq!(*heard.0.lock().unwrap(), expected);
}

#[test]
fn what_there_is_no_room_for_counts_as_one() {
    let now = Instant::now();
    let metrics = metrics(now);
    for number in 0..MOST_SERIES + 100 {
        let mut request = request(now, Direction::Outbound);
        request.note_authority(&format!("h{number}:80"));
        metrics.record(&request, now);
    }
    let all = metrics.gather(now);
    assert_eq!((all.len(), metrics.without_room()), (MOST_SERIES + 1, 100));
    let rest = all.iter().find(|series| series.labels.get("source_workload") == Some("unknown")).unwrap();
    assert_eq!(rest.requests.load(Ordering::Relaxed), 100);
}

#[test]
fn connections_that_are_not_http_have_series_of_their_own() {
    let now = Instant::now();
    let metrics = metrics(now);
    let mut ends = Ends::new(Reporter::Destination);
    let service = reviews();
    (ends.service, ends.is_secured) = (Some(&service), true);
    let found = metrics.connection(&ends, None, now);
    let (series, metrics_of_it) = &found[0];
    assert_eq!((found.len(), *metrics_of_it), (1, MetricSet::ALL));
    series.opened.fetch_add(1, Ordering::Relaxed);
    assert!(Arc::ptr_eq(series, &metrics.connection(&ends, None, now)[0].0));
    let shown = ["request_protocol", "response_code", "connection_security_policy"].map(|name| series.labels.get(name));
    assert_eq!(shown, [Some("tcp"), Some("0"), Some("mutual_tls")]);
    let mut text = Exposition::default();
    write_standard(&metrics.gather(now), &mut text);
    let text = text.finish();
    assert!(text.contains("istio_tcp_connections_opened_total{") && !text.contains("istio_requests_total"), "{text}");
}

/// Of a metric, by its place: its labels that are otherwise, or that there is none of it.
type Rule<'a> = (usize, Option<&'a [(&'a str, Option<&'a str>)]>);

/// Rules for these metrics, by their places: `None` for one that is not there, else labels with what they are set to.
fn rules(all: &[Rule<'_>]) -> Arc<MetricRules> {
    let label = |(name, value): &(&str, Option<&str>)| -> LabelRule {
        ((*name).into(), value.map(|text| CelExpression::label(text).unwrap()))
    };
    let rules = all.iter().map(|(place, labels)| (*place, labels.map(|labels| labels.iter().map(label).collect())));
    Arc::new(MetricRules::new(rules).unwrap())
}

fn page(metrics: &Metrics, now: Instant) -> String {
    let mut text = Exposition::default();
    write_standard(&metrics.gather(now), &mut text);
    text.finish()
}

fn asked(now: Instant, rules: &Arc<MetricRules>, user: &str) -> RequestInfo {
    let mut request = request(now, Direction::Outbound);
    request.note_authority("reviews:80");
    let user = http::HeaderValue::from_bytes(user.as_bytes()).unwrap();
    request.note_head("/", http::Version::HTTP_11, &[("x-user".parse().unwrap(), user)].into_iter().collect());
    request.note_metric_rules(rules);
    request.note_response(StatusCode::OK, &HeaderMap::new(), true);
    request.note_complete();
    request
}

#[test]
fn rules_take_metrics_and_labels_away_and_add_labels() {
    let now = Instant::now();
    let metrics = metrics(now);
    let changes: &[_] = &[
        ("source_app", None),
        ("response_code", Some("'x' + string(response.code)")),
        ("user", Some("request.headers['x-user']")),
    ];
    let rules = rules(&[(0, Some(changes)), (1, None)]);
    metrics.record(&asked(now, &rules, "a\"}\\é"), now);
    metrics.record(&asked(now, &rules, "a\"}\\é"), now);
    let page = page(&metrics, now);
    let line = page.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    for part in ["response_code=\"x200\"", "user=\"a\\\"}\\\\é\"", "source_version=\"unknown\"", "} 2"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("source_app=") && !page.contains("istio_request_duration_milliseconds"), "{page}");
    let other = page.lines().find(|line| line.starts_with("istio_request_bytes_count{")).unwrap();
    assert!(other.contains("source_app=\"web\"") && !other.contains("user="), "{other}");
}

#[test]
fn what_no_rule_in_force_has_any_more_is_gone_at_the_second_look_and_what_is_counted_meanwhile_goes_on() {
    let now = Instant::now();
    let metrics = metrics(now);
    let (team, none) = (rules(&[(0, Some(&[("team", Some("'a'"))]))]), rules(&[(0, None)]));
    let has = |part: &str| {
        page(&metrics, now).lines().any(|line| line.starts_with("istio_requests_total{") && line.contains(part))
    };
    metrics.record(&asked(now, &team, "u"), now);
    metrics.set_rules(Reporter::Destination, vec![None]);
    metrics.set_rules(Reporter::Source, vec![None, Some(Arc::clone(&team))]);
    assert!(has("team=\"a\"") && has("team=\"a\""));
    // Written otherwise, and the same: the count goes on.
    metrics.set_rules(Reporter::Source, vec![Some(rules(&[(0, Some(&[("team", Some("'a' + ''"))]))]))]);
    assert!(has("} 1"));
    metrics.record(&asked(now, &rules(&[(0, Some(&[("team", Some("'a' + ''"))]))]), "u"), now);
    assert!(has("} 2") && has("} 2"));
    metrics.set_rules(Reporter::Source, vec![Some(Arc::clone(&none))]);
    assert!(has("team") && !has("team"));
    assert!(page(&metrics, now).contains("istio_request_bytes_count{"), "the others have the labels that they had");
    metrics.set_rules(Reporter::Source, vec![None]);
    metrics.record(&asked(now, &rules(&[]), "u"), now);
    assert!(has("} 1"));
    metrics.set_rules(Reporter::Source, vec![Some(none)]);
    assert!(!has(""), "one of its metrics, at once");
}

#[test]
fn values_of_labels_that_clients_make_up_are_bounded_and_make_room_an_hour_later() {
    let now = Instant::now();
    let metrics = metrics(now);
    let rules = rules(&[(0, Some(&[("user", Some("request.headers['x-user']"))]))]);
    for number in 0..MOST_VALUES + 50 {
        metrics.record(&asked(now, &rules, &format!("u{number}")), now);
    }
    let unknown = |now| {
        let page = page(&metrics, now);
        let line =
            page.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains("user=\"unknown\""));
        line.map(|line| line.rsplit_once(' ').unwrap().1.to_owned())
    };
    assert_eq!((unknown(now).as_deref(), metrics.without_room()), (Some("50"), 50));
    let later = now + Duration::from_secs(u64::from(IDLE) + 1);
    metrics.record(&asked(later, &rules, "late"), later);
    assert!(page(&metrics, later).contains("user=\"late\""));
}

#[test]
fn a_connection_counts_by_rules_too() {
    let now = Instant::now();
    let metrics = metrics(now);
    let (opened, closed) = (8, 9);
    let rules = rules(&[(opened, None), (closed, Some(&[("team", Some("'a'")), ("user", Some("request.host"))]))]);
    let found = metrics.connection(&Ends::new(Reporter::Source), Some(&rules), now);
    for (series, metrics) in found.iter().filter(|(_, metrics)| metrics.has(closed)) {
        assert!(!metrics.has(opened));
        series.closed.fetch_add(1, Ordering::Relaxed);
    }
    let page = page(&metrics, now);
    assert!(page.contains("team=\"a\",user=\"unknown\"} 1") && !page.contains("connections_opened"), "{page}");
}

#[test]
fn a_gateway_counts_what_it_answers_as_its_own_and_what_it_sends_on_once_and_takes_no_label_from_strangers() {
    let now = Instant::now();
    let (metrics, cluster, service) = (metrics(now), ClusterState::default(), reviews());
    let at_edge = |mut request: RequestInfo, authority: &str| {
        request.note_edge();
        request.note_authority(authority);
        request
    };
    // It refuses one, finds no route for others, and sends one on, which both of its sides see.
    let mut refused = at_edge(request(now, Direction::Inbound), "shop.example");
    refused.note_error(ErrorKind::AccessDenied);
    metrics.record(&refused, now);
    for stranger in ["a.example", "b.example"] {
        let mut nowhere = at_edge(request(now, Direction::Outbound), stranger);
        nowhere.note_error(ErrorKind::NoRoute);
        metrics.record(&nowhere, now);
    }
    let endpoint = endpoint(&cluster, "10.0.0.1:80", "reviews-v2;shop;reviews;v2;");
    metrics.record(&at_edge(answered(now, &endpoint, &service, 200), "shop.example"), now);
    let mut served = at_edge(request(now, Direction::Inbound), "shop.example");
    served.note_response(StatusCode::OK, &HeaderMap::new(), true);
    served.note_complete();
    metrics.record(&served, now);

    let told = |series: &Arc<Series>| {
        let label = |name| series.labels.get(name).unwrap().to_owned();
        let labels = ["reporter", "source_workload", "destination_service", "response_code"].map(label);
        (labels.join(" "), series.requests.load(Ordering::Relaxed))
    };
    let mut all: Vec<_> = metrics.gather(now).iter().map(told).collect();
    all.sort();
    let expected = [
        ("source web-v1 reviews.shop.svc.cluster.local 200", 1),
        ("source web-v1 unknown 403", 1),
        ("source web-v1 unknown 404", 2),
    ];
    assert_eq!(all, expected.map(|(labels, count)| (labels.to_owned(), count)));
}
