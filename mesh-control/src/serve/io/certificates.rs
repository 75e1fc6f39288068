//! Istio's certificate service (`istio.v1.auth.IstioCertificateService`) on the wire. What becomes of a request is
//! decided in [`Desk`].

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use envoy_types::pb::google::protobuf::value::Kind;
use mesh_core::xds::istio_ca::{
    CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, NAMESPACE, SERVICE, SERVICE_ACCOUNT,
};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::ca::Refused;
use crate::serve::clients::attest::{Caller, Claim, Denied};
use crate::serve::clients::certificates::{Application, Desk, Rejection};
use crate::serve::clients::clock::now;
use crate::serve::io::server::Peer;

/// The largest request; what is in it is held to less.
const MAX_REQUEST: usize = 64 << 10;
/// The key under which Istio's node agents name the workload that they ask for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The certificate service as a tower service.
#[derive(Clone)]
pub(crate) struct CertificateService(pub(crate) Arc<Desk>);

impl NamedService for CertificateService {
    const NAME: &'static str = SERVICE;
}

impl tonic::codegen::Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let desk = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let peer = request.extensions().get::<Peer>().map(|peer| peer.ip);
            let create = CreateCertificate { desk: desk.clone(), is_read: Arc::default() };
            let is_read = create.is_read.clone();
            let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
            let answer = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST).unary(create, request).await;
            // What is no request, or too large, is refused before anybody has seen it.
            if let Some(peer) = peer.filter(|_| !is_read.load(Ordering::Relaxed)) {
                desk.unreadable(peer, "the request is larger than any, or no request");
            }
            Ok(answer)
        })
    }
}

struct CreateCertificate {
    desk: Arc<Desk>,
    /// Set as soon as the request was read.
    is_read: Arc<AtomicBool>,
}

impl UnaryService<IstioCertificateRequest> for CreateCertificate {
    type Response = IstioCertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<IstioCertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        self.is_read.store(true, Ordering::Relaxed);
        let desk = self.desk.clone();
        Box::pin(async move {
            let Some(peer) = request.extensions().get::<Peer>().cloned() else {
                return Err(Status::internal("a connection without an address"));
            };
            let wall = SystemTime::now();
            let read = bearer(request.metadata()).map(|bearer| caller(&desk, &peer, bearer, wall));
            let read = read.and_then(|caller| Ok((caller, application(request.into_inner())?)));
            let (caller, application) = read.inspect_err(|status| {
                desk.unreadable(peer.ip, status.message());
            })?;
            let reviewed = desk.review(&caller).await;
            let (caller, application) = (Arc::new(Caller { reviewed, ..caller }), Arc::new(application));
            let take = {
                let (desk, caller, application) = (desk.clone(), caller.clone(), application.clone());
                async move { desk.take(&application, &caller, &peer.asked, (wall, now())).await }
            };
            let turn = to_its_end(take).await?.map_err(|rejection| status(&rejection))?;
            if !turn.wait.is_zero() {
                tokio::time::sleep(turn.wait).await;
            }
            let serve = async move { desk.serve(&application, turn, &caller, SystemTime::now()).await };
            let issued = to_its_end(serve).await?.map_err(|rejection| status(&rejection))?;
            Ok(Response::new(IstioCertificateResponse {
                cert_chain: issued.chain,
                trust_bundles: (*issued.trust_bundles).clone(),
            }))
        })
    }
}

/// Does something that is noted when it is done, also where whoever asked is gone: a token may be used up by it.
async fn to_its_end<T: Send + 'static>(act: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(act).await.map_err(|_| Status::unavailable("the server stops"))
}

fn caller(desk: &Desk, peer: &Peer, bearer: Option<String>, wall: SystemTime) -> Caller {
    // A connection may last longer than the certificate that it was made with.
    let certificate = peer.chain.as_ref().map(|chain| {
        desk.authority().verify(chain, wall).map_err(|error| format!("{error:#}"))?;
        match &peer.identity {
            Some(Ok(identity)) => Ok(identity.clone()),
            Some(Err(anonymous)) => Err(anonymous.to_string()),
            None => Err("it was not read".to_owned()),
        }
    });
    Caller { ip: peer.ip, is_secured: peer.is_secured, certificate, bearer, reviewed: None }
}

/// The credential of the request. One that is there and cannot be read is not taken for none.
fn bearer(metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    match (token, values.next()) {
        (Some(token), None) if !token.is_empty() => Ok(Some(token)),
        _ => Err(Status::unauthenticated("authorization has to be one `Bearer TOKEN`")),
    }
}

fn application(request: IstioCertificateRequest) -> Result<Application, Status> {
    let fields = request.metadata.map(|metadata| metadata.fields).unwrap_or_default();
    let text = |key: &str| match fields.get(key).map(|value| &value.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(Status::invalid_argument(format!("{key} in the request's metadata has to be a name"))),
    };
    let claim = Claim {
        namespace: text(NAMESPACE)?,
        service_account: text(SERVICE_ACCOUNT)?,
        impersonates: fields.contains_key(IMPERSONATED),
    };
    Ok(Application { csr: request.csr, ttl: request.validity_duration, claim })
}

fn status(rejection: &Rejection) -> Status {
    let text = rejection.to_string();
    match rejection {
        Rejection::Unreadable(_) => Status::invalid_argument(text),
        Rejection::Denied(Denied::Unauthenticated(_)) => Status::unauthenticated(text),
        Rejection::Denied(Denied::Forbidden(_)) | Rejection::Refused(Refused::Identity(_)) => {
            Status::permission_denied(text)
        }
        Rejection::Throttled => Status::resource_exhausted(text),
        Rejection::Refused(Refused::Request(_)) => Status::invalid_argument(text),
        Rejection::Refused(Refused::Authority(_)) | Rejection::Unavailable(_) => Status::unavailable(text),
    }
}
