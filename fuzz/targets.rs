//! What reads bytes from outside, one function for each parser: it must not panic, hang or eat memory, and what it takes
//! must be what an obvious check takes, too. Fuzzers call these (`fuzz/run`), and a test of `examples/` with every saved
//! input.

use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::google::protobuf::Any;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use mesh_control::ca::CertificateAuthority;
use mesh_control::calls::Record;
use mesh_control::live_trace::Traced;
use mesh_control::ratelimit::{RateLimits, Store};
use mesh_core::authz::Connection;
use mesh_core::authz::external::{Answer, is_fixed};
use mesh_core::filter::{Decision, Filter, FilterRegistry, Processed, RequestRulesFilter};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::jwt::Authenticator;
use mesh_core::limits::{DescriptorMaker, LimitedRequest, LocalBuckets, LocalLimiter};
use mesh_core::live_trace::{Condition, Mark};
use mesh_core::load_report::{BINARY, LoadReport, asked_interval};
use mesh_core::model::{
    CelAttribute, CelExpression, CelValue, DescriptorAction, Facts, FilterConfig, FullRegex, HeaderTarget, HeaderText,
    HttpManager, JwkSet, Listener, LoadWeights, LocalRateLimit, LocalRule, QueryTest, RateLimit, Refusal, RequestRule,
    RequestRules, RouteSource, TokenBucket, Tracing,
};
use mesh_core::path::PathNormalization;
use mesh_core::printable::is_unseen;
use mesh_core::proxy_protocol::{LONGEST, Parsed, parse};
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::state::States;
use mesh_core::testing::resources::{
    filter_chain, http_filter, http_manager, route_to_application, routes, server_listener, virtual_host,
};
use mesh_core::tls::{Credentials, SpiffeBundle, SpiffeBundleMap, TrustBundles, svid};
use mesh_core::trace::{Tables, Trace};
use mesh_core::view::RouteTable;
use mesh_core::xds::Bootstrap;
use mesh_core::xds::access_log::{self, Entry};
use mesh_core::xds::check::grpc_answer;
use mesh_core::xds::decode::{Options, decode};
use mesh_core::xds::{ext_proc, rate_limit};
use mesh_core::{calls, grpc_timeout, request};
use prost::Message;

/// A parser under a fuzzer.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz_targets/` and of its directory in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("api_change", api_change),
    ("authorizer", authorizer),
    ("bootstrap", bootstrap),
    ("calls", calls),
    ("cel", cel),
    ("certificate_request", certificate_request),
    ("cluster", cluster),
    ("credentials", credentials),
    ("descriptors", descriptors),
    ("endpoints", endpoints),
    ("etcd_answers", etcd_answers),
    ("etcd_value", etcd_value),
    ("ext_proc", processor),
    ("grpc_timeout", timeout),
    ("header_text", header_text),
    ("istio_yaml", istio_yaml),
    ("jwks", jwks),
    ("jwt", jwt),
    ("jwt_filter", jwt_filter),
    ("listener", listener),
    ("live_trace", live_trace),
    ("load_report", load_report),
    ("path", path),
    ("proxy_protocol", proxy_protocol),
    ("rate_limit_answer", rate_limit_answer),
    ("rate_limits", rate_limits),
    ("rbac_filter", rbac_filter),
    ("regex", regex),
    ("request_head", request_head),
    ("route", route),
    ("spiffe_id", spiffe_id),
    ("svid", certificate),
    ("trace", trace),
    ("trust_bundle", trust_bundle),
];

/// A path, an entry of an access log, and a line of records: of each path a policy can say the form, and nothing else is kept.
pub fn calls(data: &[u8]) {
    let check = |path: &str| {
        let rest = path.replace("/{**}", "").replace("/{*}", "");
        assert!(path.is_empty() || path.starts_with('/'), "{path}");
        assert!(!rest.contains(['*', '{', '}', '?', '#', '%', '@', ' ']) && rest.is_ascii(), "{path}");
        assert_eq!(calls::template(path, false), path, "its form is itself");
    };
    if let Ok(text) = std::str::from_utf8(data) {
        check(&calls::template(text, false));
        let method = calls::template(text, true);
        assert_eq!(calls::template(&method, true), method, "its form is itself");
    }
    if let Ok(entry) = envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry::decode(data)
        && let Some(Entry::Calls(counted)) = access_log::decode(&entry, 1_000)
    {
        assert!(counted.first <= counted.last && counted.last <= 1_000 && counted.count > 0);
        assert!(counted.key.method.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
    if let Ok(record) = Record::parse(data) {
        _ = mesh_control::calls::suggest(&[record], true);
    }
}

/// The mark of a live trace in a header, a condition on requests, and what processes tell of one: a hop on each line.
pub fn live_trace(data: &[u8]) {
    if let Some(mark) = Mark::parse(data) {
        assert_eq!(Mark::parse(mark.to_string().as_bytes()), Some(mark));
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(condition) = text.parse::<Condition>() {
        assert_eq!(condition.to_string().parse::<Condition>().as_ref(), Ok(&condition), "{text}");
    }
    let hops = text.lines().take(64).filter_map(|line| serde_json::from_str(line).ok());
    if let Some(traced) = Traced::of(hops) {
        let printable = |line: &str| !line.contains(is_unseen);
        assert!(traced.to_string().lines().all(printable), "{traced}");
    }
}

/// What a server says of its load, in each of its forms: what is taken is the same in every other one, and is no weight that
/// would upset a balancer.
pub fn load_report(data: &[u8]) {
    let check = |report: LoadReport| {
        let numbers = [report.cpu_utilization, report.application_utilization, report.requests_per_second];
        assert!(numbers.iter().all(|number| number.is_finite() && *number >= 0.0), "{report:?}");
        assert_eq!(LoadReport::from_binary(&report.to_binary()), Some(report.clone()));
        let weight = LoadWeights::default().weight(&report);
        assert!(weight.is_none_or(|weight| weight.is_finite() && weight > 0.0), "{report:?}");
    };
    LoadReport::from_binary(data).into_iter().for_each(check);
    _ = asked_interval(data);
    if let Ok(text) = std::str::from_utf8(data) {
        LoadReport::from_text(text).into_iter().for_each(check);
    }
    if let Ok(value) = HeaderValue::from_bytes(data) {
        let headers = HeaderMap::from_iter([(BINARY, value)]);
        LoadReport::of(&headers).into_iter().for_each(check);
    }
}

/// What an external processor says of a head: it changes neither framing nor what the mesh itself says, and an answer of it is one.
pub fn processor(data: &[u8]) {
    let is_free = |name: &HeaderName| {
        !is_fixed(name) && !["x-envoy-", "x-mesh-"].iter().any(|own| name.as_str().starts_with(own))
    };
    let is_of_answer = |status: StatusCode| (200..=599).contains(&status.as_u16());
    for is_response in [false, true] {
        let Ok(Some(said)) = ext_proc::decode(data, is_response) else { continue };
        match said.processed {
            Processed::Pass(changes, status) => {
                assert!(changes.iter().all(|change| is_free(change.name())), "{changes:?}");
                assert!(status.is_none_or(|status| is_response && is_of_answer(status)), "{status:?}");
            }
            Processed::Answer(reply, _) => {
                assert!(is_of_answer(reply.status), "{reply:?}");
                assert!(reply.headers.iter().flat_map(|headers| headers.keys()).all(is_free), "{reply:?}");
            }
        }
    }
}

/// What an authorizer says of a request: it lets in with one status only, and sets and takes off nothing that is fixed.
pub fn authorizer(data: &[u8]) {
    use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
    let Ok(answer) = grpc_answer(data) else { return };
    let said = CheckResponse::decode(data).expect("it was read");
    let is_ok = said.status.is_some_and(|status| status.code == 0);
    match answer {
        Answer::Allow(changes) => {
            let mut all = changes.request.iter().chain(&changes.response);
            assert!(is_ok && !all.any(|change| is_fixed(change.name())), "{changes:?}");
        }
        Answer::Deny(denial) => {
            assert!(!is_ok && (300..=599).contains(&denial.status.as_u16()), "{denial:?}");
            assert!(!denial.headers.keys().any(is_fixed), "{denial:?}");
        }
    }
}

/// What a rate limit service says of a request: nothing that is fixed is set, and no window is over after its end.
pub fn rate_limit_answer(data: &[u8]) {
    use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitResponse;
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
    let Ok(answer) = rate_limit::decode(data) else { return };
    let said = RateLimitResponse::decode(data).expect("it was read");
    assert_eq!(answer.is_over, said.overall_code() == Code::OverLimit);
    assert!(answer.left.iter().all(|left| left.full_in <= left.window), "{answer:?}");
    let mut names = answer.request_headers.keys().chain(answer.response_headers.keys());
    assert!(!names.any(is_fixed), "{answer:?}");
}

/// What a request is counted by: its path and query in the first line, headers in the others. Whatever comes, a bucket of one for
/// each value lets one pass and refuses the next one, however many other rules there are, and a service is told short text.
pub fn descriptors(data: &[u8]) {
    let mut lines = data.splitn(8, |byte| *byte == b'\n');
    let Some(uri) = lines.next().and_then(|line| Uri::try_from(line).ok()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (Some(name), Some(value)) = (line.get(..at), line.get(at + 1..)) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let of = |name: &str| -> Arc<str> { name.into() };
    let key = || of("k");
    let header = |skip_if_absent| DescriptorAction::Header { key: of("h"), name: of("user"), skip_if_absent };
    let query = |skip_if_absent| DescriptorAction::Query { key: of("q"), name: of("user"), skip_if_absent };
    let tests = vec![QueryTest::new("user", None)];
    let asked = DescriptorAction::QueryMatch { key: key(), value: of("asked"), expects: true, tests };
    let limits = [vec![header(false)], vec![query(false)], vec![header(true), query(true)], vec![asked, header(true)]];
    let minute = Duration::from_secs(60);
    let (Ok(bucket), now) = (TokenBucket::new(1, 1, minute), Instant::now()) else { return };
    let parts = (Method::GET, uri, headers);
    let head = RequestHead::of_parts(&parts.0, &parts.1, &parts.2);
    let request = LimitedRequest::new(head);
    for actions in limits {
        let maker = DescriptorMaker::new(&Arc::new(RateLimit::by(actions))).expect("good names");
        let Some(descriptor) = maker.describe(&request) else { continue };
        assert!(descriptor.entries.iter().all(|entry| entry.value.to_text().len() <= 256));
        let rule = |value: &str| {
            let entries = descriptor.entries.iter().map(|entry| (of(entry.key), of(value))).collect();
            LocalRule::new("rule", entries, bucket)
        };
        for others in [0, 16] {
            let mut config = LocalRateLimit::new("limit", None);
            (config.most_keys, config.rules) = (16, vec![rule("")]);
            config.rules.extend((0..others).map(|other| rule(&format!("user-{other}"))));
            let limiter = LocalLimiter::new(&config, &Arc::new(LocalBuckets::new(now)), |_| Arc::default(), now);
            let plan = limiter.plan([maker.clone()]);
            let passed = [(); 2].map(|()| limiter.take(&plan, &request, None, now).map(|verdict| verdict.is_within));
            assert_eq!(passed, [Some(true), Some(false)]);
        }
    }
}

/// An identity, held to the words of the SPIFFE-ID standard by a check that reads like it.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let is_segment = |segment: &str| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(is_known)
    };
    let is_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    // That of a workload has a path; a trust domain's own ID has none (SPIFFE-ID, 2).
    let by_the_standard = text.len() <= 2048
        && text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).is_some_and(|(domain, path)| {
            (1..=255).contains(&domain.len()) && domain.bytes().all(is_domain) && path.split('/').all(is_segment)
        });
    let read = text.parse::<SpiffeId>();
    assert_eq!(read.is_ok(), by_the_standard, "{text:?}");
    if let Ok(id) = read {
        assert_eq!(id.as_str(), text);
    }
}

/// A leaf that a peer shows.
pub fn certificate(data: &[u8]) {
    let _ = svid::serial(data);
    if let Ok(id) = svid::identity(data) {
        assert!(id.as_str().starts_with("spiffe://"));
    }
}

/// What asks the authority for a certificate. Whatever stands in it, the certificate has the identity that was proven.
pub fn certificate_request(data: &[u8]) {
    static AUTHORITY: LazyLock<(CertificateAuthority, SpiffeId)> = LazyLock::new(|| {
        let domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
        let id = SpiffeId::of_workload(&domain, "default", "web").expect("an identity");
        (CertificateAuthority::in_memory(domain, now()).expect("an authority"), id)
    });
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (authority, id) = &*AUTHORITY;
    if let Ok(issued) = authority.issue(text, id, 0, now()) {
        let leaf = issued.chain.first().and_then(|pem| pem::parse(pem).ok()).expect("a certificate");
        assert_eq!(svid::identity(leaf.contents()).as_ref(), Ok(id));
    }
}

/// Roots of a trust domain, in PEM and in SPIFFE's form, and of several: what is a bundle by itself is one among others, too.
pub fn trust_bundle(data: &[u8]) {
    let bundle = SpiffeBundle::from_json(data).ok();
    let _ = SpiffeBundleMap::from_json(data);
    let among = [&br#"{"trust_domains": {"a": "#[..], data, b"}}"].concat();
    if let Some(bundle) = bundle {
        let map = SpiffeBundleMap::from_json(&among).expect("it is one by itself");
        assert!(map.domains.values().eq([&bundle]));
    }
    let _ = TrustBundles::new().add_pem("a".parse().expect("a trust domain"), data);
}

/// Chain, key and roots, each in PEM, with a zero byte between.
pub fn credentials(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (chain, key, roots) = (next(), next(), next());
    if let Ok(credentials) = Credentials::from_pem(chain, key, roots) {
        let shown = format!("{credentials:?}").into_bytes();
        assert!(!key.windows(40).any(|secret| shown.windows(40).any(|window| window == secret)), "a key is shown");
    }
}

/// Keys of an issuer.
pub fn jwks(data: &[u8]) {
    if let Ok(keys) = JwkSet::parse(data) {
        let again = JwkSet::parse(keys.to_json().as_bytes()).expect("what is printed is what is read");
        assert_eq!(again.keys().len(), keys.keys().len());
    }
}

/// A token. The key that signed the only good one is gone, so that no other can be.
pub fn jwt(data: &[u8]) {
    let good = include_bytes!("jwt/token");
    assert!(!is_good_token(data) || data.trim_ascii() == good.trim_ascii(), "a forged token was taken");
}

/// Whether a token is one of the issuer's.
pub fn is_good_token(data: &[u8]) -> bool {
    static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
        let filter = include_bytes!("jwt/filter.bin");
        let config =
            server_with("type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", filter);
        let filters = config.expect("a filter").filters;
        let found = filters.iter().find_map(|filter| match &filter.config {
            FilterConfig::Jwt(jwt) => Authenticator::new(jwt).ok(),
            _ => None,
        });
        found.expect("an authenticator")
    });
    let Ok(value) = HeaderValue::from_bytes(&[b"Bearer ", data.trim_ascii()].concat()) else { return false };
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
    let head = RequestHead::of_parts(&Method::GET, root(), &headers);
    AUTHENTICATOR.authenticate(&head, now()).is_ok_and(|found| found.claims().is_some())
}

/// The first bytes of a connection: a header ends where it says, whatever comes after it and however it is cut.
pub fn proxy_protocol(data: &[u8]) {
    if let Ok(Parsed::Header { length, client }) = parse(data) {
        assert!(length <= data.len() && length <= LONGEST);
        assert_eq!(parse(&data[..length]), Ok(Parsed::Header { length, client }));
        assert_eq!(parse(&data[..length - 1]), Ok(Parsed::Incomplete));
    }
}

/// A request's path, in all modes: what comes out stays as it is, and has nothing left to resolve.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let modes = [
        PathNormalization::NONE,
        PathNormalization::BASE,
        PathNormalization::MERGE_SLASHES,
        PathNormalization::DECODE_AND_MERGE_SLASHES,
    ];
    for (mode, is_guarded) in modes.iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let Ok(canonical) = mode.canonical(text, is_guarded) else { continue };
        assert_eq!(mode.canonical(&canonical, is_guarded).as_deref().ok(), Some(&*canonical), "{mode:?} of {text:?}");
        if mode.resolve && canonical.starts_with('/') {
            assert!(canonical.split('/').all(|part| part != "." && part != ".."), "{mode:?} of {text:?}");
            assert!(!canonical.contains('\\'), "{mode:?} of {text:?}");
        }
        if mode.merge_slashes && canonical.starts_with('/') {
            assert!(!canonical.contains("//"), "{mode:?} of {text:?}");
        }
    }
}

/// Method, target, `Host` and a header, a line each, of HTTP/1.1 and of HTTP/2.
pub fn request_head(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (method, target, host, value) = (next(), next(), next(), next());
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let request = Request::builder().method(method).uri(target).version(version).header(header::HOST, host);
        let Ok(request) = request.header("x", value).body(()) else { continue };
        if let Ok(head) = RequestHead::received(&request) {
            assert!(!head.authority.contains('@'), "a user in {:?}", head.authority);
            assert!(!head.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()));
            let _ = (request::has_port(head.authority), request::host_and_port(head.authority, head.scheme));
            assert!(request::split_authority(head.authority).is_some() || head.authority.is_empty());
        }
    }
}

/// `grpc-timeout`: what is printed of what was read is read again.
pub fn timeout(data: &[u8]) {
    if let Some(read) = grpc_timeout::parse(data) {
        assert!(grpc_timeout::parse(grpc_timeout::format(read).as_bytes()).is_some());
    }
}

/// What is read is read again in the words of the standard, and means the same; what is not has a place in the text.
pub fn cel(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match CelExpression::label(text) {
        Ok(expression) => {
            let again = CelExpression::label(expression.text()).expect("the standard's words are read, too");
            assert_eq!(again.text(), expression.text());
            assert_eq!(again.show(&NoFacts), expression.show(&NoFacts));
            assert_eq!(CelExpression::condition(text).is_ok(), CelExpression::condition(expression.text()).is_ok());
        }
        Err(fault) => assert!((1..=text.lines().count().max(1) + 1).contains(&fault.line), "{fault}"),
    }
    rule(text);
}

/// A condition of a rule on requests decides on a request, whatever that is, or leaves it undecided.
fn rule(text: &str) {
    let Ok(when) = CelExpression::rule(text) else { return };
    let mut rule = RequestRule::new("fuzzed");
    rule.when = Some(when);
    rule.deny = Some(Refusal::new(http::StatusCode::FORBIDDEN, text.to_owned()));
    let filter = RequestRulesFilter::new(&Arc::new(RequestRules::new(vec![rule])));
    let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
    let request = http::Request::get("/a?b=c").header("host", "web").header("x", text.as_bytes());
    let Ok(request) = request.header("twice", "1").header("twice", "2").body(()) else { return };
    let decided = filter.on_request(&mut info, &mut request.into_parts().0);
    assert!(matches!(decided, Decision::Continue | Decision::Reply(_)));
}

/// A request of which nothing is known.
struct NoFacts;

impl Facts for NoFacts {
    fn get(&self, _: CelAttribute) -> Option<CelValue<'_>> {
        None
    }

    fn entry(&self, _: CelAttribute, _: &str) -> Option<std::borrow::Cow<'_, str>> {
        None
    }
}

/// Headers of a trace, names and values in lines of their own: what is handed on of them says the same.
pub fn trace(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    while let (Some(name), Some(value)) = (lines.next(), lines.next()) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let came = Trace::of_headers(&headers);
    let mut told = HeaderMap::new();
    came.tell(None, Tables::Kept, &mut told);
    assert_eq!(Trace::of_headers(&told).context(), came.context());
    let mut next = came;
    if let Some(begun) = next.begin(&Tracing::default(), &headers, &mut fastrand::Rng::with_seed(1)) {
        let mut told = HeaderMap::new();
        next.tell(Some(begun.context), Tables::Kept, &mut told);
        assert_eq!(Trace::of_headers(&told).context(), Some(begun.context));
    }
}

/// A value with `%...%` in it.
pub fn header_text(data: &[u8]) {
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("a"))]);
    let head = RequestHead::of_parts(&Method::GET, root(), &headers);
    for target in [HeaderTarget::Request, HeaderTarget::Response] {
        if let Ok(HeaderText::Format(format)) = HeaderText::parse(data, target, true) {
            let _ = format.of_request(&head, Version::HTTP_2);
            let _ = format.of_response(http::StatusCode::OK, &headers);
        }
    }
}

/// An expression of RE2.
pub fn regex(data: &[u8]) {
    if let Some(regex) = std::str::from_utf8(data).ok().and_then(|text| FullRegex::new(text).ok()) {
        let _ = regex.is_match(b"/reviews/1");
        let _ = regex.is_match(data);
    }
}

/// gRPC's bootstrap.
pub fn bootstrap(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Bootstrap::from_json(text, "fuzz");
    }
}

/// LDS, and the routes that stand in it, asked for.
pub fn listener(data: &[u8]) {
    let Ok(decoded) = decode(ResourceType::Listener, data, &Options::default()) else { return };
    let Resource::Listener(listener) = decoded.resource else { return };
    match &*listener {
        Listener::Api(api) => ask(&api.http),
        Listener::Server(server) => server.chains().for_each(|chain| ask(&chain.http)),
        _ => {}
    }
}

/// RDS, asked for.
pub fn route(data: &[u8]) {
    let Ok(decoded) = decode(ResourceType::Route, data, &Options::default()) else { return };
    let Resource::Route(routes) = decoded.resource else { return };
    ask(&HttpManager::new(RouteSource::Inline(routes)));
}

/// CDS.
pub fn cluster(data: &[u8]) {
    let _ = decode(ResourceType::Cluster, data, &Options::default());
}

/// EDS.
pub fn endpoints(data: &[u8]) {
    let _ = decode(ResourceType::Endpoints, data, &Options::default());
}

/// RBAC of a server, asked for.
pub fn rbac_filter(data: &[u8]) {
    let config = server_with("type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", data);
    config.iter().for_each(ask);
}

/// JWT of a server, asked for.
pub fn jwt_filter(data: &[u8]) {
    let config = server_with("type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", data);
    config.iter().for_each(ask);
}

/// The body of a change that the API is asked for.
pub fn api_change(data: &[u8]) {
    mesh_control::fuzz::wanted(data);
}

/// A key in etcd below the prefix of objects, and its value, with a line feed between them.
pub fn etcd_value(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n') else { return };
    let (path, value) = data.split_at(at);
    if let Ok(path) = std::str::from_utf8(path) {
        mesh_control::fuzz::value(path, &value[1..]);
    }
}

/// Answers of etcd to a watch, each behind a byte that is its size.
pub fn etcd_answers(mut data: &[u8]) {
    let mut answers = Vec::new();
    while let Some((size, rest)) = data.split_first() {
        let (answer, rest) = rest.split_at(usize::from(*size).min(rest.len()));
        answers.push(answer);
        data = rest;
    }
    mesh_control::fuzz::answers(answers);
}

/// Objects as Istio's users write them, from the text to what the data plane says of it.
pub fn istio_yaml(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = mesh_control::analysis::validate([("fuzz.yaml", text)]);
    }
}

/// A rule file and a question about a request, with a zero between them: what is answered has a status for each descriptor, and
/// what is over in one of them is over.
pub fn rate_limits(data: &[u8]) {
    use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
    let (rules, question) = data.iter().position(|byte| *byte == 0).map_or((data, &[][..]), |at| data.split_at(at));
    let Ok(rules) = std::str::from_utf8(rules) else { return };
    let limits = RateLimits::new(Store::in_memory(100));
    limits.apply_texts([("fuzz.yaml", rules)]);
    let Ok(request) = RateLimitRequest::decode(question.get(1..).unwrap_or_default()) else { return };
    for second in [0, 0, 1, 59, 60, 1_800_000_000] {
        let decided = std::pin::pin!(limits.decide(&request, Duration::from_secs(second)));
        let Poll::Ready(Ok(answer)) = decided.poll(&mut Context::from_waker(Waker::noop())) else { continue };
        assert_eq!(answer.statuses.len(), request.descriptors.len());
        let is_over = answer.statuses.iter().any(|status| status.code() == Code::OverLimit);
        assert_eq!(answer.overall_code() == Code::OverLimit, is_over);
    }
    let mut told = String::new();
    limits.write(&mut told);
    assert!(!told.lines().any(str::is_empty), "a value broke the text of metrics");
}

/// The day on which the saved token is good.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn root() -> &'static Uri {
    static ROOT: LazyLock<Uri> = LazyLock::new(|| Uri::from_static("http://reviews:9080/a/b?c=d"));
    &ROOT
}

/// A server's listener with this filter, if the decoder takes it.
fn server_with(type_url: &str, config: &[u8]) -> Option<HttpManager> {
    let routes = routes("", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
    let mut manager = http_manager(RouteSpecifier::RouteConfig(routes.clone()));
    let any = Any { type_url: type_url.to_owned(), value: config.to_vec() };
    manager.http_filters.insert(0, http_filter("fuzz", any));
    let mut resource = server_listener("server", ([127, 0, 0, 1], 80).into(), routes);
    resource.default_filter_chain = Some(filter_chain(&manager));
    let decoded = decode(ResourceType::Listener, &resource.encode_to_vec(), &Options::default()).ok()?;
    let Resource::Listener(listener) = decoded.resource else { return None };
    let Listener::Server(server) = &*listener else { return None };
    server.chains().next().map(|chain| chain.http.clone())
}

/// Compiles what was taken, and asks it for some requests, as a server does and as a client does.
fn ask(http: &HttpManager) {
    let RouteSource::Inline(routes) = &http.routes else { return };
    let states = States::default();
    let table = RouteTable::compile(Arc::clone(routes), http, &FilterRegistry::default(), &states, "fuzz");
    let Ok(table) = table else { return };
    let mut random = fastrand::Rng::with_seed(1);
    let peer: SpiffeId = "spiffe://cluster.local/ns/default/sa/web".parse().expect("an identity");
    let connection = Connection {
        peer: Some(&peer),
        source: ([127, 0, 0, 1], 4000).into(),
        remote: ([192, 0, 2, 1], 4000).into(),
        destination: ([127, 0, 0, 1], 80).into(),
        server_name: Some("reviews"),
    };
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        (header::COOKIE, HeaderValue::from_bytes(b"a=\xff").expect("a value")),
    ]);
    for (method, target) in [(Method::GET, root().clone()), (Method::POST, Uri::from_static("http://[::1]/"))] {
        let head = RequestHead::of_parts(&method, &target, &headers);
        if let Some(tokens) = table.authenticator() {
            let _ = tokens.authenticate(&head, now());
        }
        let _ = table.admit(&head, Some(connection), &[], &mut random).into_route();
        let _ = table.admit(&head, None, &[], &mut random).into_route();
        let _ = table.find(&head, &mut random);
        let _ = table.verdict_on_bytes(connection);
    }
}
