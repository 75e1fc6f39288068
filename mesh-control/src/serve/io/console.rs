//! The console: what this server knows, for people with a browser, read only. A page, its scripts and its style, all of which are
//! in the program, and what they ask for as JSON.
//!
//! Who may read it is who may read the status ([`admin`](super::admin)), on whose port it is.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::admin::{self, Sources};
use crate::serve::clients::status::{Inspect, Question};

/// Every file: its path, its type, what is in it.
const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("console/index.html")),
    ("/console/console.css", "text/css; charset=utf-8", include_str!("console/console.css")),
    ("/console/icon.svg", "image/svg+xml", include_str!("console/icon.svg")),
    ("/console/main.js", SCRIPT, include_str!("console/main.js")),
    ("/console/dom.js", SCRIPT, include_str!("console/dom.js")),
    ("/console/graph.js", SCRIPT, include_str!("console/graph.js")),
    ("/console/layout.js", SCRIPT, include_str!("console/layout.js")),
    ("/console/tables.js", SCRIPT, include_str!("console/tables.js")),
    ("/console/limits.js", SCRIPT, include_str!("console/limits.js")),
    ("/console/explain.js", SCRIPT, include_str!("console/explain.js")),
];
const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What browsers are told of every answer: it is nothing but what it says it is, in no frame, and runs nothing but the files above.
/// What clients call themselves is in these pages.
pub(super) const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Questions that are worked out at a time: each renders resources, and whoever reaches the port may ask.
static ASKED: Semaphore = Semaphore::const_new(2);
/// The same of what is told of all that is known.
static TOLD: Semaphore = Semaphore::const_new(2);

/// The pages, and what they ask for.
pub(super) fn routes() -> Router<Sources> {
    let pages = FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
        router.route(path, get(move || async move { (headers, content) }))
    });
    pages
        .route("/api/graph", get(graph))
        .route("/api/quotas", get(quotas))
        .route("/api/limits", get(limits))
        .route("/api/objects", get(objects))
        .route("/api/routes", get(routes_of))
        .route("/api/explain", get(explain))
}

/// Adds to an answer what browsers are told of all.
pub(super) async fn guarded(mut answer: Response) -> Response {
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn graph(State(sources): State<Sources>) -> Response {
    told(move || Json(admin::graph(&sources.server, &*sources.inspect))).await
}

async fn quotas(State(sources): State<Sources>) -> Response {
    told(move || Json(admin::quotas(&sources.server))).await
}

/// The kinds of objects that limit requests.
const LIMITS: [&str; 4] = ["RateLimit ", "Quota ", "Overload ", "EnvoyFilter "];

/// What limits requests, and how that is used as far as this server sees it: what it counts as a service, and quotas.
async fn limits(State(sources): State<Sources>) -> Response {
    told(move || {
        let mut objects = sources.inspect.objects();
        objects.retain(|one| LIMITS.iter().any(|kind| one.object.starts_with(kind)));
        let service = sources.server.state().rate_limits.as_ref().map(|limits| limits.status());
        Json(json!({ "objects": objects, "service": service, "quotas": admin::quotas(&sources.server) }))
    })
    .await
}

async fn objects(State(sources): State<Sources>) -> Response {
    told(move || Json(json!({ "objects": sources.inspect.objects(), "services": sources.inspect.service_list() })))
        .await
}

#[derive(Deserialize)]
struct Routes {
    /// NAMESPACE/NAME of who calls.
    from: String,
    /// HOST:PORT.
    target: String,
}

async fn routes_of(State(sources): State<Sources>, Query(asked): Query<Routes>) -> Response {
    work_out(sources, move |inspect| inspect.routes(&asked.from, &asked.target)).await
}

async fn explain(State(sources): State<Sources>, Query(question): Query<Question>) -> Response {
    work_out(sources, move |inspect| inspect.explain(&question)).await
}

async fn work_out(
    sources: Sources,
    answer: impl FnOnce(&dyn Inspect) -> Result<Value, String> + Send + 'static,
) -> Response {
    let inspect = Arc::clone(&sources.inspect);
    match in_turn(&ASKED, move || answer(&*inspect)).await {
        Some(Ok(answer)) => Json(answer).into_response(),
        Some(Err(why)) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// A page of what is known, which may be much.
pub(super) async fn told<P: IntoResponse>(make: impl FnOnce() -> P + Send + 'static) -> Response {
    let page = in_turn(&TOLD, move || make().into_response()).await;
    page.unwrap_or_else(|| StatusCode::SERVICE_UNAVAILABLE.into_response())
}

/// Makes something when it is its turn, which takes as long as it takes: streams must not wait for it. It has its turn until it is made,
/// whether somebody still waits for it or not: others could ask and leave, again and again.
async fn in_turn<T: Send + 'static>(turns: &'static Semaphore, make: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let turn = turns.acquire().await.ok()?;
    let made = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        make()
    });
    made.await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_asks_and_leaves_keeps_his_turn_until_what_he_asked_for_is_made() {
        static TURNS: Semaphore = Semaphore::const_new(1);
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ends) = sync_channel::<()>(0);
        let asked = tokio::spawn(in_turn(&TURNS, move || {
            _ = begin.send(());
            _ = ends.recv();
        }));
        begun.await.unwrap();
        asked.abort();
        _ = asked.await;
        let next = tokio::time::timeout(Duration::from_millis(50), in_turn(&TURNS, || ())).await;
        assert!(next.is_err(), "it is made still");
        drop(end);
        assert_eq!(in_turn(&TURNS, || 7).await, Some(7));
    }

    #[test]
    fn every_answer_in_json_is_in_the_documentation() {
        let (source, page) = (include_str!("console.rs"), include_str!("../../../../docs/console.md"));
        let mut paths = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
        assert!(paths.clone().any(|path| path == "/api/limits"));
        let missing = paths.find(|path| !page.contains(&format!("`{path}`")) && !page.contains(&format!("`{path}?")));
        assert_eq!(missing, None);
    }
}
