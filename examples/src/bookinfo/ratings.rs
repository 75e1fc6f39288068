//! How many stars readers gave: over gRPC, and over plain HTTP on the same port.
//!
//! ```proto
//! package bookinfo.v1;
//! message GetRequest { string product = 1; }
//! message GetReply   { string product = 1; map<string, uint32> stars = 2; string backend = 3; }
//! service Ratings    { rpc Get(GetRequest) returns (GetReply); }
//! ```

use std::collections::HashMap;
use std::future::ready;

use axum::extract::{Path, Request};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tonic::metadata::MetadataValue;
use tonic::{Response, Status};

use crate::echo::{BACKEND, Identity};
use crate::grpc;

/// The path of the gRPC method.
pub const GET: &str = "/bookinfo.v1.Ratings/Get";

/// Which product.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct GetRequest {
    /// Its id; a message with one string is read as this one.
    #[prost(string, tag = "1")]
    pub product: String,
}

/// Its ratings.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetReply {
    /// Its id.
    #[prost(string, tag = "1")]
    pub product: String,
    /// From 1 to 5, by reader.
    #[prost(map = "string, uint32", tag = "2")]
    pub stars: HashMap<String, u32>,
    /// Which instance answered.
    #[prost(string, tag = "3")]
    pub backend: String,
}

pub(super) fn router(identity: Identity) -> Router {
    let rpc = identity.clone();
    Router::new()
        .route(GET, post(move |request| over_grpc(rpc.clone(), request)))
        .route("/ratings/{id}", get(move |Path(id): Path<u64>| ready(over_http(&identity, id))))
        .route("/health", get(|| async { "ratings is healthy" }))
}

fn stars() -> [(&'static str, u32); 2] {
    [("Reader1", 5), ("Reader2", 4)]
}

async fn over_grpc(identity: Identity, request: Request) -> axum::response::Response {
    grpc::unary(request, |request: tonic::Request<GetRequest>| async {
        let stars = stars().map(|(reader, stars)| (reader.to_owned(), stars)).into();
        let product = request.into_inner().product;
        let mut response = Response::new(GetReply { product, stars, backend: identity.backend.to_string() });
        if let Ok(backend) = MetadataValue::try_from(&*identity.backend) {
            response.metadata_mut().insert(BACKEND, backend);
        }
        Ok::<_, Status>(response)
    })
    .await
}

fn over_http(identity: &Identity, id: u64) -> Json<Value> {
    let stars: HashMap<_, _> = stars().into();
    Json(json!({ "id": id, "ratings": stars, "backend": identity.backend }))
}
