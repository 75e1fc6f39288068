//! Facts about a book.

use std::future::ready;

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::echo::Identity;

pub(super) fn router(identity: Identity) -> Router {
    Router::new()
        .route("/details/{id}", get(move |Path(id): Path<u64>| ready(details(&identity, id))))
        .route("/health", get(|| async { "details is healthy" }))
}

fn details(identity: &Identity, id: u64) -> Json<Value> {
    Json(json!({
        "id": id,
        "title": "The Comedy of Errors",
        "author": "William Shakespeare",
        "year": 1594,
        "type": "paperback",
        "pages": 96,
        "language": "English",
        "isbn": "978-0-00-000000-2",
        "backend": identity.backend,
    }))
}
