//! What readers say about a book. Version 1 shows no stars; version 2 black ones, any other red ones, which it
//! asks ratings for over gRPC.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use http::uri::PathAndQuery;
use mesh_tonic::Channel;
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

pub(super) fn router(mesh: &Mesh, identity: Identity) -> Router {
    let color = match &*identity.version {
        "v1" => None,
        "v2" => Some("black"),
        _ => Some("red"),
    };
    let stars = color.map(|color| (color, mesh_tonic::channel(mesh, &format!("xds:///ratings:{PORT}"))));
    Router::new()
        .route("/reviews/{id}", get(move |id, onward| reviews(stars.clone(), identity.clone(), id, onward)))
        .route("/health", get(|| async { "reviews are healthy" }))
}

/// Reviews, with stars of this color from this channel.
async fn reviews(
    stars: Option<(&'static str, Channel)>,
    identity: Identity,
    Path(id): Path<u64>,
    onward: Onward,
) -> Json<Value> {
    let color = stars.as_ref().map(|(color, _)| *color);
    let (leg, stars) = match stars {
        None => (None, Ok(HashMap::new())),
        Some((_, channel)) => {
            let (leg, answer) = ratings(channel, id, &onward).await;
            (Some(leg), answer.map(|reply| reply.stars))
        }
    };
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
async fn ratings(channel: Channel, id: u64, onward: &Onward) -> (Leg, Result<ratings::GetReply, Status>) {
    let started = Instant::now();
    let mut request = Request::new(ratings::GetRequest { product: id.to_string() });
    *request.metadata_mut() = MetadataMap::from_headers(onward.headers().clone());
    request.extensions_mut().insert(onward.deadline(BUDGET));
    let path = PathAndQuery::from_static(ratings::GET);
    let answer = tonic::client::Grpc::new(channel).unary(request, path, ProstCodec::default()).await;
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
