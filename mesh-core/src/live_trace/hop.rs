//! What one process saw of a request on one side of it: what happened, in order, with how long after its start.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};

use super::{LiveTraces, Mark, Where};
use crate::request::RequestHead;

/// Which side of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Who makes it.
    Client,
    /// Who answers it.
    Server,
}

/// So many events are kept of a hop; of a longer story the end is missing.
pub const MOST_EVENTS: usize = 100;
/// So many headers are named.
const MOST_HEADERS: usize = 64;
/// The longest text of a request that is kept.
const LONGEST: usize = 1024;
/// The largest hop, in bytes of JSON. One that is larger loses its events.
pub const LARGEST_HOP: usize = 256 << 10;

/// Headers whose values are told: what the mesh itself reads, and what joins a request to other records of it.
const TOLD: [&str; 12] = [
    "content-type",
    "grpc-timeout",
    "grpc-previous-rpc-attempts",
    "host",
    "traceparent",
    "user-agent",
    "x-b3-traceid",
    "x-envoy-attempt-count",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-proto",
    "x-mesh-criticality",
    "x-request-id",
];

/// Never told, even where a condition is about it.
const SECRET: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-forwarded-client-cert"];

/// What one process sees of a request on one side.
#[derive(Clone, Debug)]
pub struct Hop {
    to: Arc<LiveTraces>,
    trace: u64,
    id: u64,
    started: Instant,
    /// The headers that a condition is about.
    asked: Vec<HeaderName>,
    said: Map<String, Value>,
    events: Vec<Value>,
}

/// How a hop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct End<'e> {
    /// The code of the answer; 0 for none.
    pub status: u16,
    /// gRPC's status, of a gRPC call.
    pub grpc_status: Option<u32>,
    /// Envoy's flags.
    pub flags: String,
    /// Envoy's words for why.
    pub details: &'e str,
    /// Whether its answer came to its end.
    pub is_complete: bool,
    /// Tries that were made.
    pub attempts: u32,
}

impl Hop {
    pub(super) fn new(
        to: Arc<LiveTraces>,
        trace: u64,
        side: Side,
        made_by: Option<Mark>,
        head: &RequestHead<'_>,
        start: Option<&Where>,
        (now, wall): (Instant, SystemTime),
    ) -> Self {
        let id = fastrand::u64(..);
        let parent = made_by.map(|mark| json!({"hop": format!("{:016x}", mark.hop), "attempt": mark.attempt}));
        let asked: Vec<HeaderName> = start.into_iter().flat_map(Where::headers).cloned().collect();
        let since_1970 = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let said = json!({
            "trace": format!("{trace:016x}"),
            "hop": format!("{id:016x}"),
            "parent": parent,
            "side": match side { Side::Client => "client", Side::Server => "server" },
            "started_us": u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX),
            "method": head.method.as_str(),
            "authority": short(head.authority),
            "path": short(head.path()),
            "headers": headers(head.headers, &asked),
        });
        let said = if let Value::Object(said) = said { said } else { Map::new() };
        Hop { to, trace, id, started: now, asked, said, events: Vec::new() }
    }

    /// What a request is marked with that this hop makes.
    pub fn mark(&self, attempt: u32) -> Mark {
        Mark::new(self.trace, self.id, attempt)
    }

    /// Whether the values of a header are told: what the mesh reads, or a condition is about, and no credential.
    pub fn tells_header(&self, name: &str) -> bool {
        is_told(name, &self.asked)
    }

    /// Notes what happens now, with what there is to say of it (an object).
    pub fn note(&mut self, what: &str, of_it: Value) {
        if self.events.len() >= MOST_EVENTS {
            return;
        }
        let mut event = if let Value::Object(fields) = of_it { fields } else { Map::new() };
        event.insert("what".to_owned(), what.into());
        event.insert("ms".to_owned(), millis(self.started.elapsed()).into());
        self.events.push(Value::Object(event));
    }

    /// Tells what is known of it by now, as `unfinished`.
    #[cold]
    pub fn tell_so_far(&self) {
        let mut said = self.said.clone();
        said.insert("unfinished".to_owned(), true.into());
        self.to.tell(whole(&said, &self.events));
    }

    /// It is over: tells it.
    pub(crate) fn end(mut self, end: &End<'_>) {
        self.said.insert("took_ms".to_owned(), millis(self.started.elapsed()).into());
        self.said.insert("status".to_owned(), end.status.into());
        self.said.insert("grpc_status".to_owned(), end.grpc_status.into());
        self.said.insert("flags".to_owned(), end.flags.as_str().into());
        self.said.insert("details".to_owned(), end.details.into());
        self.said.insert("complete".to_owned(), end.is_complete.into());
        self.said.insert("attempts".to_owned(), end.attempts.into());
        self.to.tell(whole(&self.said, &self.events));
    }
}

/// A hop as JSON, within its bound.
fn whole(said: &Map<String, Value>, events: &[Value]) -> String {
    let with = |events: &[Value]| {
        let mut whole = said.clone();
        whole.insert("events".to_owned(), Value::Array(events.to_vec()));
        Value::Object(whole).to_string()
    };
    let text = with(events);
    if text.len() > LARGEST_HOP { with(&[json!({"what": "too much to tell", "ms": 0.0})]) } else { text }
}

/// A time in milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

fn is_told(name: &str, asked: &[HeaderName]) -> bool {
    !SECRET.contains(&name) && (TOLD.contains(&name) || asked.iter().any(|asked| asked == name))
}

/// The headers by name; of those that nobody but the application reads, the values are left out.
fn headers(headers: &HeaderMap, asked: &[HeaderName]) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, value) in headers.iter().take(MOST_HEADERS) {
        let is_told = is_told(name.as_str(), asked) && !value.is_sensitive();
        let told = if is_told { short(&String::from_utf8_lossy(value.as_bytes())) } else { "...".to_owned() };
        all.entry(name.as_str()).or_insert_with(|| told.into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live_trace::Order;

    async fn told(request: http::Request<()>, wanted: Where, story: impl FnOnce(&mut Hop)) -> Value {
        let (traces, now) = (Arc::new(LiveTraces::default()), Instant::now());
        traces.set(vec![Order::new(1, now + Duration::from_secs(9)).starting(wanted, 1)], now);
        let (parts, ()) = request.into_parts();
        let head = RequestHead::of(&parts).unwrap();
        let mut hop = traces.begin(Side::Client, &head, || (None, now, SystemTime::now())).unwrap();
        story(&mut hop);
        let flags = "-".to_owned();
        hop.end(&End {
            status: 200,
            grpc_status: None,
            flags,
            details: "via_upstream",
            is_complete: true,
            attempts: 1,
        });
        serde_json::from_str(&traces.next().await.0).unwrap()
    }

    #[tokio::test]
    async fn a_hop_tells_what_the_mesh_reads_and_no_secret() {
        let request = http::Request::get("http://a/x?token=secret")
            .header("authorization", "Bearer secret")
            .header("cookie", "secret")
            .header("x-api-key", "secret")
            .header("x-request-id", "7")
            .header("end-user", "jason");
        let wanted = Where::to("a").and("header end-user".parse().unwrap());
        let wanted = wanted.and("header authorization".parse().unwrap());
        let told = told(request.body(()).unwrap(), wanted, |hop| hop.note("sent", json!({"attempt": 1}))).await;
        assert!(!told.to_string().contains("secret"), "{told}");
        assert_eq!((&told["headers"]["x-request-id"], &told["headers"]["end-user"]), (&"7".into(), &"jason".into()));
        assert_eq!(told["headers"]["authorization"], "...");
        assert_eq!((&told["events"][0]["what"], &told["path"]), (&"sent".into(), &"/x".into()));
    }

    #[tokio::test]
    async fn a_story_has_a_bound() {
        let request = || http::Request::get("http://a/").body(()).unwrap();
        let many = |hop: &mut Hop| (0..500).for_each(|_| hop.note("retry", json!({})));
        let many = told(request(), Where::to("a"), many).await;
        assert_eq!(many["events"].as_array().map(Vec::len), Some(MOST_EVENTS));
        let large = |hop: &mut Hop| hop.note("routed", json!({"text": "x".repeat(LARGEST_HOP)}));
        let large = told(request(), Where::to("a"), large).await;
        assert_eq!(large["events"][0]["what"], "too much to tell");
    }
}
