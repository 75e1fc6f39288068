//! What people look at: details and reviews of a book, as a page and as JSON.

use std::time::{Duration, Instant};

use axum::extract::{Path, Query};
use axum::response::{Html, Redirect};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_tower::Client;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::onward::{Leg, Onward};
use super::{PORT, page};
use crate::echo::{BACKEND, Identity};

/// How long the page waits for each of its parts.
pub(super) const BUDGET: Duration = Duration::from_secs(3);

/// A product with all its parts, and what became of the calls that brought them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Product {
    /// Which instance put it together.
    pub backend: String,
    /// For whom.
    pub user: Option<String>,
    /// Facts about it.
    pub details: Part,
    /// What readers say.
    pub reviews: Part,
}

/// One part of a product.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    /// The call that brought it.
    pub call: Leg,
    /// What it brought.
    pub content: Option<Value>,
}

impl Product {
    /// Whether nothing is missing from it.
    pub fn is_complete(&self) -> bool {
        self.details.call.is_ok() && self.reviews.call.is_ok() && self.ratings().is_none_or(|call| call.is_ok())
    }

    /// The call for ratings, where reviews made one.
    pub fn ratings(&self) -> Option<Leg> {
        serde_json::from_value(self.reviews.content.as_ref()?.get("ratings")?.clone()).ok()
    }
}

pub(super) fn router(client: Client, identity: Identity) -> Router {
    let (for_page, page_identity) = (client.clone(), identity.clone());
    Router::new()
        .route("/", get(|| async { Redirect::to("/productpage") }))
        .route(
            "/productpage",
            get(async move |Query(visitor): Query<Visitor>, onward: Onward| {
                let onward = onward.with_user(visitor.user.as_deref().filter(|user| !user.is_empty()));
                Html(page::html(&assemble(&for_page, &page_identity, 0, &onward).await))
            }),
        )
        .route(
            "/api/v1/products/{id}",
            get(async move |Path(id): Path<u64>, onward: Onward| Json(assemble(&client, &identity, id, &onward).await)),
        )
        .route("/health", get(|| async { "productpage is healthy" }))
}

/// Who looks at the page.
#[derive(Deserialize)]
struct Visitor {
    user: Option<String>,
}

async fn assemble(client: &Client, identity: &Identity, id: u64, onward: &Onward) -> Product {
    let (details, reviews) = tokio::join!(part(client, "details", id, onward), part(client, "reviews", id, onward));
    Product { backend: identity.backend.to_string(), user: onward.user().map(str::to_owned), details, reviews }
}

/// Asks one service for its part. A part that is missing does not spoil the page.
async fn part(client: &Client, service: &str, id: u64, onward: &Onward) -> Part {
    let uri = format!("http://{service}:{PORT}/{service}/{id}");
    let (call, body) = fetch(client, &uri, onward, BUDGET).await;
    Part { call, content: body.and_then(|body| serde_json::from_slice(&body).ok()) }
}

/// A product as a caller of productpage sees it, on behalf of a user, and what became of that call.
pub async fn product(client: &Client, user: Option<&str>, budget: Duration) -> (Leg, Option<Product>) {
    let onward = Onward::default().with_user(user);
    let uri = format!("http://productpage:{PORT}/api/v1/products/0");
    let (call, body) = fetch(client, &uri, &onward, budget).await;
    (call, body.and_then(|body| serde_json::from_slice(&body).ok()))
}

/// Gets something from a service; the body only if the call succeeded.
async fn fetch(client: &Client, uri: &str, onward: &Onward, budget: Duration) -> (Leg, Option<Bytes>) {
    let started = Instant::now();
    let mut request = Request::new(Empty::<Bytes>::new());
    match uri.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => return (Leg { error: Some(format!("{error}")), ..Leg::ended(started, 400) }, None),
    }
    *request.headers_mut() = onward.headers().clone();
    request.extensions_mut().insert(onward.deadline(budget));
    let response = match client.request(request).await {
        Ok(response) => response,
        Err(error) => {
            let status = error.kind().http_status().as_u16();
            return (Leg { error: Some(error.to_string()), ..Leg::ended(started, status) }, None);
        }
    };
    let status = response.status().as_u16();
    let backend = response.headers().get(BACKEND).and_then(|backend| backend.to_str().ok()).map(str::to_owned);
    match response.into_body().collect().await {
        Ok(body) => {
            let call = Leg { backend, ..Leg::ended(started, status) };
            let body = body.to_bytes();
            match call.is_ok() {
                true => (call, Some(body)),
                false => (Leg { error: Some(String::from_utf8_lossy(&body).into_owned()), ..call }, None),
            }
        }
        Err(error) => (Leg { backend, error: Some(error.to_string()), ..Leg::ended(started, 502) }, None),
    }
}
