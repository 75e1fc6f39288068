//! A gRPC channel: the client of a generated stub, to one target, through the mesh.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_tower::client::{Follow, ResponseBody, ResponseFuture};
use mesh_tower::{Client, Mesh};
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tower_service::Service;

use crate::deadline::of_call;
use crate::status::{of_foreign_answer, status};

/// A channel to a target: `xds:///name:port`, `xds://authority/name`, `http://name:port` or plain `name:port`.
/// A target that makes no sense fails every call with the reason.
///
/// It is a [`tonic::client::GrpcService`], so that every generated client takes it. It never connects ahead and
/// is always ready; a call is balanced over the endpoints that the target has at that moment. Dropping a call
/// cancels it. A [`Repeat`](mesh_tower::Repeat) in the extensions of a `tonic::Request` says whether the call may be made more than
/// once. A call that is made while another is answered ends at the latest with that one's deadline (see
/// [`crate::deadline`]).
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::Mesh;
/// use tonic_health::pb::HealthCheckRequest;
/// use tonic_health::pb::health_client::HealthClient;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = Mesh::builder().source(Fixed::new()).start()?;
/// # let listener = server.bind("127.0.0.1:0").await?;
/// # let source = Fixed::new().service("greeter:50051", [listener.local_addr()]);
/// # let service = mesh_tonic::health::HealthService::new(&server).into_server();
/// # tokio::spawn(mesh_tonic::serve(listener, tonic::transport::Server::builder().add_service(service)));
/// let mesh = Mesh::builder().source(source).start()?;
/// let mut client = HealthClient::new(mesh_tonic::channel(&mesh, "xds:///greeter:50051"));
/// let answer = client.check(HealthCheckRequest::default()).await?;
/// assert_eq!(answer.into_inner().status().as_str_name(), "SERVING");
/// # Ok(()) }
/// ```
pub fn channel(mesh: &Mesh, target: &str) -> Channel {
    let name = name_of(target).map_err(|error| error.within(format_args!("target {target:?}")));
    Channel { client: name.and_then(|name| mesh.client_for(&name)), follows: false }
}

/// A gRPC channel: see [`channel`].
#[derive(Clone, Debug)]
pub struct Channel {
    client: Result<Client, MeshError>,
    follows: bool,
}

impl Channel {
    /// The same channel, whose responses say which endpoint they come from: so that streams can level out
    /// ([`crate::streams`]).
    #[must_use]
    pub fn following(self) -> Channel {
        Channel { follows: true, ..self }
    }
}

impl<B> Service<Request<B>> for Channel
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ChannelBody>;
    type Error = Status;
    type Future = ChannelFuture;

    /// Always ready: where a call goes is decided by the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> ChannelFuture {
        if self.follows {
            request.extensions_mut().insert(Follow);
        }
        let sent = match &self.client {
            Ok(client) => limit(&mut request).map(|()| client.request(request)),
            Err(error) => Err(status(error.clone())),
        };
        match sent {
            Ok(response) => ChannelFuture { state: State::Sent { response } },
            Err(status) => ChannelFuture { state: State::Failed { status: Some(status) } },
        }
    }
}

const _: () = {
    const fn is_channel<T: Clone + Send + Sync + tonic::client::GrpcService<tonic::body::Body>>() {}
    is_channel::<Channel>();
};

/// Sets the deadline of a call. With each try the mesh tells the server what is left of it.
fn limit<B>(request: &mut Request<B>) -> Result<(), Status> {
    let now = Instant::now();
    let Ok(deadline) = of_call(request.headers(), request.extensions(), now) else {
        return Err(Status::internal("malformed grpc-timeout"));
    };
    if let Some(deadline) = deadline {
        if deadline.0 <= now {
            return Err(Status::deadline_exceeded("the deadline had passed before the call was made"));
        }
        request.extensions_mut().insert(deadline);
    }
    Ok(())
}

/// The name by which the mesh knows a target.
fn name_of(target: &str) -> Result<String, MeshError> {
    let malformed = |reason: &str| MeshError::new(ErrorKind::BadRequest, reason);
    let (scheme, rest) = match target.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, target),
    };
    let (name, name_only) = match scheme {
        None | Some("http") => (rest.strip_suffix('/').unwrap_or(rest), rest),
        Some("xds") => {
            let (authority, name) = rest.split_once('/').ok_or_else(|| malformed("xds:/// needs three slashes"))?;
            // The authority of the control plane is a part of the name (gRFC A47).
            (if authority.is_empty() { name } else { target }, name)
        }
        Some("https") => return Err(malformed("https is not for a channel: the mesh secures its connections itself")),
        Some(scheme) => return Err(malformed(&format!("the scheme {scheme:?} is not one of xds, http"))),
    };
    let authority = name_only.strip_suffix('/').unwrap_or(name_only).parse::<Authority>();
    let authority = authority.map_err(|_| malformed("not a name or name:port"))?;
    let port = authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'));
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(malformed("not a name or name:port"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => Err(malformed("the port is no number up to 65535")),
        None if scheme == Some("http") => Ok(format!("{name}:80")),
        _ => Ok(name.to_owned()),
    }
}

pin_project! {
    /// A response to come.
    pub struct ChannelFuture {
        #[pin]
        state: State,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State {
        Sent {
            #[pin]
            response: ResponseFuture,
        },
        Failed {
            status: Option<Status>,
        },
    }
}

impl Future for ChannelFuture {
    type Output = Result<Response<ChannelBody>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Sent { response } => {
                let (mut head, body) = ready!(response.poll(cx)).map_err(status)?.into_parts();
                if let Some(status) = of_foreign_answer(&head) {
                    return Poll::Ready(Err(status));
                }
                drop_malformed_details(&mut head.headers);
                Poll::Ready(Ok(Response::from_parts(head, ChannelBody { body: Some(body) })))
            }
            StateProjection::Failed { status } => {
                Poll::Ready(Err(status.take().expect("a future is not polled after it returned")))
            }
        }
    }
}

impl fmt::Debug for ChannelFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelFuture")
    }
}

pin_project! {
    /// A response's body. What goes wrong with it is a [`Status`]. By default it is empty, which is what an interceptor
    /// needs to refuse a call.
    #[derive(Default)]
    pub struct ChannelBody {
        #[pin]
        body: Option<ResponseBody>,
    }
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = self.project().body.as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.poll_frame(cx)).map(|frame| {
            let mut frame = frame.map_err(status)?;
            if let Some(trailers) = frame.trailers_mut() {
                drop_malformed_details(trailers);
            }
            Ok(frame)
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl fmt::Debug for ChannelBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelBody")
    }
}

/// tonic's client panics over status details that are not base64, and a server may send anything.
fn drop_malformed_details(headers: &mut HeaderMap) {
    // There are few headers, and nearly never this one: looking at their names beats looking it up.
    if !headers.keys().any(|name| *name == Status::GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(details) = headers.get(Status::GRPC_STATUS_DETAILS) else { return };
    let mut alone = HeaderMap::with_capacity(1);
    alone.insert(Status::GRPC_STATUS_DETAILS, details.clone());
    let alone = MetadataMap::from_headers(alone);
    let details = alone.get_bin(Status::GRPC_STATUS_DETAILS.as_str());
    if details.is_none_or(|details| details.to_bytes().is_err()) {
        headers.remove(Status::GRPC_STATUS_DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_the_names_that_the_mesh_knows_them_by() {
        let table = [
            ("xds:///greeter:50051", Ok("greeter:50051")),
            ("xds:///greeter", Ok("greeter")),
            ("xds:///greeter.shop.svc.cluster.local:80", Ok("greeter.shop.svc.cluster.local:80")),
            ("xds:///[::1]:80", Ok("[::1]:80")),
            ("xds://authority/greeter:1", Ok("xds://authority/greeter:1")),
            ("http://greeter:50051", Ok("greeter:50051")),
            ("http://greeter:50051/", Ok("greeter:50051")),
            ("http://greeter", Ok("greeter:80")),
            ("http://[::1]", Ok("[::1]:80")),
            ("greeter:50051", Ok("greeter:50051")),
            ("greeter", Ok("greeter")),
            ("", Err("not a name or name:port")),
            ("xds:///", Err("not a name or name:port")),
            ("xds://greeter:50051", Err("xds:/// needs three slashes")),
            ("xds:///a/b", Err("not a name or name:port")),
            ("xds:///a b", Err("not a name or name:port")),
            ("xds:///user@a:1", Err("not a name or name:port")),
            ("xds:///:80", Err("not a name or name:port")),
            ("greeter:99999", Err("the port is no number up to 65535")),
            ("greeter:", Err("the port is no number up to 65535")),
            ("http://greeter:1/path", Err("not a name or name:port")),
            ("https://greeter:1", Err("https is not for a channel: the mesh secures its connections itself")),
            ("dns:///greeter", Err("the scheme \"dns\" is not one of xds, http")),
        ];
        for (target, expected) in table {
            let name = name_of(target).map_err(|error| error.to_string());
            assert_eq!(name, expected.map(str::to_owned).map_err(str::to_owned), "{target:?}");
        }
    }

    #[test]
    fn status_details_that_are_no_base64_are_dropped() {
        for (details, stays) in [("AAEC", true), ("AAECAw", true), ("AAECAw==", true), ("A", false), ("%%%%", false)] {
            let mut headers = HeaderMap::new();
            headers.insert(Status::GRPC_STATUS_DETAILS, details.parse().unwrap());
            drop_malformed_details(&mut headers);
            assert_eq!(headers.contains_key(Status::GRPC_STATUS_DETAILS), stays, "{details}");
            headers.insert(Status::GRPC_STATUS, "3".parse().unwrap());
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), tonic::Code::InvalidArgument);
        }
    }
}
