//! What readers say about a book. Version 1 shows no stars; version 2 black ones, any other red ones, which it
//! asks ratings for over gRPC.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use mesh_tower::Mesh;
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::onward::{Leg, Onward};
use super::{PORT, ratings};
use crate::echo::{BACKEND, Identity};
use crate::grpc;

/// How long a review waits for its stars: reviews without stars are better than no reviews.
pub(super) const BUDGET: Duration = Duration::from_secs(1);

const REVIEWS: [(&str, &str); 2] = [
    ("Reader1", "Two pairs of twins and a day of mistaken identities: I laughed at every one of them."),
    ("Reader2", "Light, quick and very funny, though there is less behind it than in the later plays."),
];

pub(super) fn router(mesh: Mesh, identity: Identity) -> Router {
    Router::new()
        .route("/reviews/{id}", get(move |id, onward| reviews(mesh.clone(), identity.clone(), id, onward)))
        .route("/health", get(|| async { "reviews are healthy" }))
}

async fn reviews(mesh: Mesh, identity: Identity, Path(id): Path<u64>, onward: Onward) -> Json<Value> {
    let color = match &*identity.version {
        "v1" => None,
        "v2" => Some("black"),
        _ => Some("red"),
    };
    let mut stars = Ok(HashMap::new());
    let mut leg = None;
    if color.is_some() {
        let (ended, answer) = ratings(&mesh, id, &onward).await;
        stars = answer.map(|reply| reply.stars);
        leg = Some(ended);
    }
    let reviews = REVIEWS.map(|(reader, text)| {
        let rating = match (color, &stars) {
            (None, _) => None,
            (Some(_), Err(_)) => Some(json!({ "error": "ratings are unavailable" })),
            (Some(color), Ok(stars)) => stars.get(reader).map(|stars| json!({ "stars": stars, "color": color })),
        };
        json!({ "reader": reader, "text": text, "rating": rating })
    });
    Json(json!({
        "id": id,
        "version": identity.version,
        "backend": identity.backend,
        "reviews": reviews,
        "ratings": leg,
    }))
}

/// Asks for the stars.
async fn ratings(mesh: &Mesh, id: u64, onward: &Onward) -> (Leg, Result<ratings::GetReply, Status>) {
    let started = Instant::now();
    let answer = match mesh.client_for(&format!("xds:///ratings:{PORT}")) {
        Ok(channel) => {
            let mut request = Request::new(ratings::GetRequest { product: id.to_string() });
            *request.metadata_mut() = MetadataMap::from_headers(onward.headers().clone());
            request.extensions_mut().insert(onward.deadline(BUDGET));
            let path = http::uri::PathAndQuery::from_static(ratings::GET);
            tonic::client::Grpc::new(channel).unary(request, path, ProstCodec::default()).await
        }
        Err(error) => Err(Status::internal(error.to_string())),
    };
    match answer {
        Ok(response) => {
            let backend = response.metadata().get(BACKEND).and_then(|backend| backend.to_str().ok());
            let leg = Leg { backend: backend.map(str::to_owned), ..Leg::ended(started, "OK") };
            (leg, Ok(response.into_inner()))
        }
        Err(status) => {
            let error = Some(status.message().to_owned());
            (Leg { error, ..Leg::ended(started, grpc::code_name(status.code())) }, Err(status))
        }
    }
}
