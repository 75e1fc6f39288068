//! `grpc.health.v1`, told by the mesh: NOT_SERVING while the configuration is not known or says no, and from the
//! moment that the drain begins.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use mesh_tower::Mesh;
use mesh_tower::health::{Health, HealthWatch};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The health service of a mesh, for the server as a whole (the empty name) and for each service named here.
/// Its watch streams end with the drain, so that they do not hold it up.
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tonic::health::HealthService;
/// use mesh_tower::Mesh;
/// use tonic_health::pb::HealthCheckRequest;
/// use tonic_health::pb::health_server::Health;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let _listener = mesh.bind("127.0.0.1:0").await?;
/// mesh.serving().await?;
/// let health = HealthService::new(&mesh).named("shop.Greeter");
/// let request = tonic::Request::new(HealthCheckRequest { service: "shop.Greeter".into() });
/// assert_eq!(health.check(request).await?.into_inner().status().as_str_name(), "SERVING");
/// // For a server: `Server::builder().add_service(health.into_server())`.
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HealthService {
    mesh: Mesh,
    services: Arc<HashSet<String>>,
}

impl HealthService {
    /// The health of this mesh.
    pub fn new(mesh: &Mesh) -> Self {
        HealthService { mesh: mesh.clone(), services: Arc::new(HashSet::from([String::new()])) }
    }

    /// Answers for this service too.
    pub fn named(mut self, service: &str) -> Self {
        Arc::make_mut(&mut self.services).insert(service.to_owned());
        self
    }

    /// Answers for the service of a generated server too.
    pub fn with<S: NamedService>(self) -> Self {
        self.named(S::NAME)
    }

    /// The service to add to a tonic server.
    pub fn into_server(self) -> HealthServer<HealthService> {
        HealthServer::new(self)
    }
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthService").field("services", &self.services).finish_non_exhaustive()
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn status_of(health: &Health) -> ServingStatus {
    match health {
        Health::Serving => ServingStatus::Serving,
        Health::Starting | Health::NotServing(_) | Health::Draining => ServingStatus::NotServing,
    }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !self.services.contains(service) {
            return Err(Status::not_found(format!("no service is called {service:?} here")));
        }
        Ok(Response::new(answer(status_of(&self.mesh.health().now()))))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<WatchStream>, Status> {
        // The specification wants a stream even for a name that is not known: it might be, later.
        let known = self.services.contains(&request.get_ref().service);
        let health = known.then(|| self.mesh.health());
        Ok(Response::new(WatchStream { drained: Box::pin(self.mesh.drained()), next: Box::pin(next(health, None)) }))
    }
}

/// The status of a service as it changes.
pub struct WatchStream {
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    next: Pin<Box<dyn Future<Output = (Option<HealthWatch>, ServingStatus)> + Send>>,
}

/// The next status that is not the last one; of a service that is not known there is but one.
async fn next(health: Option<HealthWatch>, last: Option<ServingStatus>) -> (Option<HealthWatch>, ServingStatus) {
    let Some(mut health) = health else {
        return match last {
            None => (None, ServingStatus::ServiceUnknown),
            Some(_) => std::future::pending().await,
        };
    };
    loop {
        let status = status_of(&health.now());
        if Some(status) != last {
            return (Some(health), status);
        }
        health.changed().await;
    }
}

impl Stream for WatchStream {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready((health, status)) = self.next.as_mut().poll(cx) {
            self.next = Box::pin(next(health, Some(status)));
            return Poll::Ready(Some(Ok(answer(status))));
        }
        self.drained.as_mut().poll(cx).map(|()| None)
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchStream")
    }
}
