//! The status of a server over HTTP, for people and for Prometheus: it changes nothing.
//!
//! Nobody has to prove anything to read it, so where it is reached from decides who reads it. A web page must not be a way
//! around that, with a name of its own that it lets point at this machine (DNS rebinding): requests say by an address, as
//! `localhost` or by a name that the operator gave whom they are for, or are refused.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{console, https, process};
use crate::live_trace::Wanted;
use crate::quota::QuotaStatus;
use crate::ratelimit::WITHOUT_RULES;
use crate::serve::clients::fleet::{KindStatus, NAMES};
use crate::serve::clients::graph::Graph;
use crate::serve::clients::status::{self, Inspect, Status};
use crate::serve::io::live_trace::{self, LiveTrace};
use crate::serve::io::server::Server;

/// Puts a report together. `all_names` lists every name that a client asks for, rather than the first
/// hundred of each kind.
pub fn report(server: &Server, inspect: &dyn Inspect, all_names: bool) -> Status {
    status::report(server.state(), inspect, if all_names { usize::MAX } else { NAMES })
}

/// What goes between services now.
pub fn graph(server: &Server, inspect: &dyn Inspect) -> Graph {
    status::graph(server.state(), inspect)
}

/// How quotas stand, where they are kept.
pub fn quotas(server: &Server) -> Option<QuotaStatus> {
    status::quotas(server.state())
}

/// The metrics as Prometheus text.
pub fn metrics(server: &Server, inspect: &dyn Inspect) -> String {
    let mut out = status::metrics(server.state(), inspect);
    process::write(&mut out);
    out
}

/// What there is to tell of.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) server: Arc<Server>,
    pub(super) inspect: Arc<dyn Inspect>,
}

/// Serves the status of `server` at `address` until `stop` turns true or its sender is gone. Returns the
/// address bound. Requests are for an address, for `localhost`, or for one of `names`; others are answered with 421.
pub async fn listen(
    address: SocketAddr,
    names: Vec<String>,
    server: Arc<Server>,
    inspect: Arc<dyn Inspect>,
    stop: watch::Receiver<bool>,
) -> io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let router = axum::Router::new()
        .merge(console::routes())
        .route("/status", get(status_page))
        .route("/metrics", get(metrics_page))
        .route("/calls", get(calls_page))
        .route("/trace", post(trace_page))
        .route("/debug/syncz", get(syncz))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "there are / (the console), /status, /metrics, /calls, /trace, /healthz, /ready, /debug/syncz\n",
            )
        })
        .with_state(Sources { server, inspect })
        .layer(middleware::from_fn_with_state(Arc::<[String]>::from(names), for_us))
        .layer(middleware::map_response(console::guarded));
    // Reports are read and gone: nothing is worth waiting for.
    https::listen_plaintext(address, router, stop).await
}

async fn for_us(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let own = request.uri().authority().map(Authority::as_str).map(Some);
    let headers = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().ok());
    let hosts: Option<Vec<&str>> = own.into_iter().chain(headers).collect();
    match stranger(hosts.as_deref(), request.version(), &names) {
        None => next.run(request).await,
        Some(why) => (StatusCode::MISDIRECTED_REQUEST, format!("{why}\n")).into_response(),
    }
}

/// Why a request for these hosts is not for us. `None` as hosts are some that are no text.
fn stranger(hosts: Option<&[&str]>, version: Version, names: &[String]) -> Option<String> {
    let help = "ask for the address or for localhost, or start mesh-control with --status-host NAME";
    match hosts {
        None => Some(format!("the Host of the request is no text: {help}")),
        // Checks of health are made so, and no browser's requests are.
        Some([]) if version < Version::HTTP_11 => None,
        Some([]) => Some(format!("the request has no Host: {help}")),
        Some(hosts) => {
            let host = hosts.iter().find(|host| !is_ours(host, names))?;
            Some(format!("this page is not served as {host:?}, which may be anybody's name for this machine: {help}"))
        }
    }
}

fn is_ours(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let is_v6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let is_literal = host.parse::<IpAddr>().is_ok()
        || host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).is_some_and(is_v6);
    let is_named = |name: &str| host.eq_ignore_ascii_case(name);
    // A user before the host is nobody's way to ask for a page.
    !authority.as_str().contains('@')
        && (is_literal || is_named("localhost") || names.iter().any(|name| is_named(name)))
}

#[derive(Deserialize)]
struct Detail {
    /// `all` lists every name, `none` lists none.
    #[serde(default)]
    names: String,
}

async fn status_page(State(sources): State<Sources>, Query(detail): Query<Detail>) -> Response {
    let names = match &*detail.names {
        "all" => usize::MAX,
        "none" => 0,
        _ => NAMES,
    };
    console::told(move || Json(status::report(sources.server.state(), &*sources.inspect, names))).await
}

async fn metrics_page(State(sources): State<Sources>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    console::told(move || (content_type, metrics(&sources.server, &*sources.inspect))).await
}

#[derive(Deserialize)]
struct Whose {
    /// NAMESPACE/NAME; all, unless it is said.
    workload: Option<String>,
}

/// Who called what, as JSON Lines.
async fn calls_page(State(sources): State<Sources>, Query(whose): Query<Whose>) -> impl IntoResponse {
    let Some(calls) = sources.server.calls() else {
        return (StatusCode::NOT_FOUND, "no records of calls are kept here\n").into_response();
    };
    let calls = Arc::clone(calls);
    // There may be many, and a report may be written to the disk meanwhile.
    console::told(move || {
        let workload = whose.workload.as_deref().map(|text| text.split_once('/').unwrap_or(("", text)));
        ([(header::CONTENT_TYPE, "application/jsonl")], calls.lines(workload))
    })
    .await
}

/// Follows live requests for as long as somebody reads. It takes JSON alone, so that no page of a browser can ask for it.
async fn trace_page(State(sources): State<Sources>, Json(wanted): Json<Wanted>) -> Response {
    match LiveTrace::start(&sources.server, Arc::clone(&sources.inspect), wanted) {
        Ok(trace) => {
            let lines = axum::body::Body::from_stream(live_trace::lines(trace));
            ([(header::CONTENT_TYPE, "application/jsonl")], lines).into_response()
        }
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    let is_ready = status::is_ready(sources.server.state(), &*sources.inspect);
    let unread = "not ready: correct what is `unread`, of which nobody can tell what it governs:\n";
    let mut text = if is_ready { "ready\n" } else { "" }.to_owned();
    if let Some(limits) = sources.server.state().rate_limits.as_ref().filter(|limits| limits.is_without_rules()) {
        text += &format!("not ready: rate limits: {WITHOUT_RULES}\n");
        limits.faults().iter().for_each(|fault| text += &format!("rate limits: {fault}\n"));
    }
    if !sources.inspect.is_ready() {
        text += unread;
    }
    if let Some((why, age)) = sources.inspect.stale() {
        text += &format!("stale: {why}; what it held {} s ago is in force\n", age.as_secs());
    }
    // What was in force last is, so nobody is let in whom this server would refuse elsewhere: it stays ready.
    let authority = sources.server.state().desk.as_ref().map(|desk| desk.status(SystemTime::now()));
    for problem in authority.iter().flat_map(|authority| authority.problems()) {
        text += &format!("{problem}\n");
    }
    for wrong in sources.inspect.wrong() {
        let what = wrong.object.unwrap_or(wrong.file);
        text += &format!("{}: {what}: {}\n", wrong.standing, wrong.reason);
    }
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

/// One client in the form of Istiod's `/debug/syncz`, which `istioctl proxy-status` reads.
#[derive(Serialize)]
struct Synced {
    proxy: String,
    istio_version: String,
    #[serde(flatten)]
    kinds: BTreeMap<String, String>,
}

async fn syncz(State(sources): State<Sources>) -> Response {
    console::told(move || {
        let status = report(&sources.server, &*sources.inspect, false);
        let syncs = status.clients.into_iter().map(|client| Synced {
            proxy: client.node,
            istio_version: client.user_agent,
            kinds: client.kinds.into_iter().flat_map(versions).collect(),
        });
        Json(syncs.collect::<Vec<_>>())
    })
    .await
}

fn versions(kind: KindStatus) -> [(String, String); 2] {
    let name = match &*kind.kind {
        "cds" => "cluster",
        "eds" => "endpoint",
        "lds" => "listener",
        _ => "route",
    };
    [(format!("{name}_sent"), kind.sent_version), (format!("{name}_acked"), kind.acked_version)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x23_a_name_is_ours_if_it_is_an_address_localhost_or_one_that_the_operator_gave() {
        let names = ["mesh-control.istio-system".to_owned()];
        for (host, expected) in [
            ("127.0.0.1:15014", true),
            ("192.0.2.7", true),
            ("[::1]:15014", true),
            ("[::1]", true),
            ("localhost", true),
            ("LocalHost:15014", true),
            ("mesh-control.istio-system:15014", true),
            ("MESH-CONTROL.istio-system", true),
            ("localhost.evil.example", false),
            ("evil.example:15014", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("evil.example@127.0.0.1", false),
            ("::1", false),
            ("[evil]", false),
            ("istio-system", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(is_ours(host, &names), expected, "{host}");
        }
        let stranger = |hosts: Option<&[&str]>, version| stranger(hosts, version, &names);
        assert!(stranger(Some(&[]), Version::HTTP_11).is_some() && stranger(None, Version::HTTP_10).is_some());
        assert_eq!(stranger(Some(&[]), Version::HTTP_10), None);
        assert!(stranger(Some(&["localhost", "evil.example"]), Version::HTTP_10).is_some(), "each of them");
        assert_eq!(stranger(Some(&["localhost", "127.0.0.1"]), Version::HTTP_11), None);
    }
}
