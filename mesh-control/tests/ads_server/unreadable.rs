//! An authority whose answer cannot be read: the workload says so, and goes on saying so.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use mesh_core::xds::Bootstrap;
use mesh_core::xds::istio_ca::{IstioCertificateRequest, IstioCertificateResponse, MAX_RESPONSE, SERVICE};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::renewal::mesh;
use crate::support::until;

/// It takes a token once, and its answer to that is longer than any.
#[derive(Clone, Default)]
struct Wordy(Arc<AtomicUsize>);

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl NamedService for Wordy {
    const NAME: &'static str = SERVICE;
}

impl tonic::codegen::Service<http::Request<Body>> for Wordy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wordy = self.clone();
        let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
        Box::pin(async move { Ok(Grpc::new(codec).unary(wordy, request).await) })
    }
}

impl UnaryService<IstioCertificateRequest> for Wordy {
    type Response = IstioCertificateResponse;
    type Future = Answer<Response<IstioCertificateResponse>, Status>;

    fn call(&mut self, _: Request<IstioCertificateRequest>) -> Self::Future {
        let is_first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            if !is_first {
                return Err(Status::unauthenticated("the token was used before"));
            }
            let cert_chain = vec!["-".repeat(MAX_RESPONSE + 1)];
            Ok(Response::new(IstioCertificateResponse { cert_chain, ..Default::default() }))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_read_is_told_as_such_also_when_its_token_is_spent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Wordy::default();
    let server = tonic::transport::Server::builder().add_service(asked.clone());
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    let provider = serde_json::json!({"plugin_name": "mesh_ca", "config": {"token": "t".repeat(64)}});
    let text = serde_json::json!({
        "xds_servers": [{"server_uri": address.to_string(), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "web"},
        "certificate_providers": {"default": provider},
    });
    let web = mesh(Bootstrap::from_json(&text.to_string(), "written").unwrap());
    let certificates = web.certificates().clone();
    let wanted = tokio::spawn(async move { certificates.get().await });
    until("it is told of the second try, too", || {
        let problem = web.certificates().problem().map(|problem| problem.to_string()).unwrap_or_default();
        asked.0.load(Ordering::Relaxed) > 1
            && problem.contains("the answer of the authority cannot be read")
            && problem.contains("the token was used before")
    })
    .await;
    wanted.abort();
}
