//! The gRPC side of the echo: the four kinds of method.

use axum::extract::Request;
use axum::response::Response;
use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Status, Streaming};

use super::proto::{EchoReply, EchoRequest, EchoTls};
use super::{BACKEND, Caller, Control, Identity, Tls, texts};
use crate::grpc;

/// The most replies that one request gets from `ServerStream`.
const MAX_REPLIES: u32 = 10_000;

pub(super) async fn unary(identity: Identity, request: Request) -> Response {
    grpc::unary(request, |request: tonic::Request<EchoRequest>| async {
        let (template, message) = admit(&identity, request).await?;
        Ok(reply(&identity, template.with(message.body, 0)))
    })
    .await
}

pub(super) async fn server_stream(identity: Identity, request: Request) -> Response {
    grpc::server_stream(request, |request: tonic::Request<EchoRequest>| async {
        let (template, message) = admit(&identity, request).await?;
        let count = message.count.clamp(1, MAX_REPLIES);
        let replies = stream::iter((0..count).map(move |index| Ok(template.with(message.body.clone(), index))));
        Ok(reply(&identity, replies))
    })
    .await
}

pub(super) async fn client_stream(identity: Identity, request: Request) -> Response {
    grpc::client_stream(request, |request: tonic::Request<Streaming<EchoRequest>>| async {
        let (template, messages) = admit(&identity, request).await?;
        let join = |(mut bodies, count): (String, u32), message: EchoRequest| async move {
            bodies.push_str(&message.body);
            Ok((bodies, count + 1))
        };
        let (bodies, count) = messages.try_fold((String::new(), 0), join).await?;
        Ok(reply(&identity, template.with(bodies, count)))
    })
    .await
}

pub(super) async fn bidi_stream(identity: Identity, request: Request) -> Response {
    grpc::bidi_stream(request, |request: tonic::Request<Streaming<EchoRequest>>| async {
        let (template, messages) = admit(&identity, request).await?;
        let replies =
            messages.zip(stream::iter(0..)).map(move |(message, index)| Ok(template.with(message?.body, index)));
        Ok(reply(&identity, replies))
    })
    .await
}

/// What all replies to one request have in common.
struct Template(EchoReply);

impl Template {
    fn with(&self, body: String, index: u32) -> EchoReply {
        EchoReply { body, index, ..self.0.clone() }
    }
}

/// Does what the request asks for, and prepares the answer.
async fn admit<M>(identity: &Identity, request: tonic::Request<M>) -> Result<(Template, M), Status> {
    let (metadata, extensions, message) = request.into_parts();
    let headers = metadata.into_headers();
    let control = Control::of(&headers, None).map_err(Status::invalid_argument)?;
    control.wait().await;
    control.grpc()?;
    let caller = Caller::current(&extensions);
    let tls = |tls: Tls| EchoTls {
        version: tls.version.unwrap_or_default(),
        alpn: tls.alpn.unwrap_or_default(),
        sni: tls.sni.unwrap_or_default(),
    };
    let template = EchoReply {
        name: identity.name.to_string(),
        version: identity.version.to_string(),
        backend: identity.backend.to_string(),
        peer: caller.peer.unwrap_or_default(),
        peer_address: caller.peer_address.map(|address| address.to_string()).unwrap_or_default(),
        tls: caller.tls.map(tls),
        claims: caller.claims.map(|claims| serde_json::Value::from(claims).to_string()).unwrap_or_default(),
        headers: texts(&headers).into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..EchoReply::default()
    };
    Ok((Template(template), message))
}

fn reply<T>(identity: &Identity, content: T) -> tonic::Response<T> {
    let mut response = tonic::Response::new(content);
    name_backend(response.metadata_mut(), identity);
    response
}

fn name_backend(metadata: &mut MetadataMap, identity: &Identity) {
    if let Ok(backend) = MetadataValue::try_from(&*identity.backend) {
        metadata.insert(BACKEND, backend);
    }
}
