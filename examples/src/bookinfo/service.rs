//! One service of bookinfo: started, serving, and stopped without losing a request.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use mesh_core::error::MeshError;
use mesh_tower::{Mesh, server};
use tokio::task::JoinHandle;
use tower::Layer;

use super::{details, productpage, ratings, reviews};
use crate::echo::{BACKEND, Identity};
use crate::node::Workload;

/// The four services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum App {
    /// What people look at.
    Productpage,
    /// Facts about a book.
    Details,
    /// What readers say about it.
    Reviews,
    /// How many stars they gave.
    Ratings,
}

impl App {
    /// All of them, callers before those that they call.
    pub const ALL: [App; 4] = [App::Productpage, App::Details, App::Reviews, App::Ratings];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            App::Productpage => "productpage",
            App::Details => "details",
            App::Reviews => "reviews",
            App::Ratings => "ratings",
        }
    }

    /// Its service account, as in Istio's bookinfo.
    pub fn service_account(self) -> &'static str {
        match self {
            App::Productpage => "bookinfo-productpage",
            App::Details => "bookinfo-details",
            App::Reviews => "bookinfo-reviews",
            App::Ratings => "bookinfo-ratings",
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for App {
    type Err = String;

    fn from_str(text: &str) -> Result<App, String> {
        let known = || App::ALL.map(App::name).join(", ");
        App::ALL
            .into_iter()
            .find(|app| app.name() == text)
            .ok_or_else(|| format!("no such service; there are {}", known()))
    }
}

/// One version of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Which service.
    pub app: App,
    /// Its version. Reviews differ by it: `v1` shows no stars, `v2` black ones, any other red ones.
    pub version: String,
}

impl Service {
    /// This version of a service.
    pub fn new(app: App, version: &str) -> Self {
        Service { app, version: version.to_owned() }
    }

    /// What runs in a bookinfo: one of each, and three versions of reviews.
    pub fn all() -> Vec<Service> {
        let versions = |app| match app {
            App::Reviews => &["v1", "v2", "v3"][..],
            _ => &["v1"],
        };
        App::ALL
            .into_iter()
            .flat_map(|app| versions(app).iter().map(move |version| Service::new(app, version)))
            .collect()
    }

    /// How it presents itself to the control plane.
    pub fn workload(&self) -> Workload {
        Workload::new(self.app.name(), &self.version).service_account(self.app.service_account())
    }

    fn router(&self, mesh: &Mesh, identity: &Identity) -> Router {
        match self.app {
            App::Productpage => productpage::router(mesh.client(), identity.clone()),
            App::Details => details::router(identity.clone()),
            App::Reviews => reviews::router(mesh, identity.clone()),
            App::Ratings => ratings::router(identity.clone()),
        }
    }

    /// Serves at this address, in this mesh. Returns when the control plane lets it serve.
    ///
    /// # Errors
    /// If the address cannot be had, or the control plane does not let it serve in time.
    pub async fn start(&self, mesh: Mesh, listen: SocketAddr) -> io::Result<Running> {
        let listener = mesh.bind(listen).await?;
        let address = listener.local_addr();
        let identity = Identity::new(self.app.name(), &self.version, address);
        let backend = identity.header();
        let name = move |mut response: Response| {
            response.headers_mut().insert(BACKEND, backend.clone());
            std::future::ready(response)
        };
        let app = self.router(&mesh, &identity).layer(axum::middleware::map_response(name));
        let app = mesh_tonic::server_layer(&mesh).layer(app);
        let serving = server::serve(listener, app).readable_bodies().deadline(GIVE_UP);
        let serving = tokio::spawn(serving.into_future());
        mesh.serving().await.map_err(io::Error::other)?;
        Ok(Running { service: self.clone(), address, mesh, serving })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.app, self.version)
    }
}

/// How long a service that stops waits for its last requests.
const GIVE_UP: Duration = Duration::from_secs(15);

/// A service that serves. Dropping it ends it at once.
#[derive(Debug)]
pub struct Running {
    /// Which it is.
    pub service: Service,
    /// Where it serves.
    pub address: SocketAddr,
    /// Its own mesh.
    pub mesh: Mesh,
    serving: JoinHandle<Result<(), MeshError>>,
}

impl Running {
    /// Leaves without losing a request: tells the control plane, then waits for the last one.
    ///
    /// # Errors
    /// If requests had to be cut.
    pub async fn stop(mut self) -> io::Result<()> {
        self.mesh.drain().begin().await;
        self.ended().await
    }

    /// Waits until it has drained, for whatever reason.
    ///
    /// # Errors
    /// If requests had to be cut.
    pub async fn ended(&mut self) -> io::Result<()> {
        let ended = match (&mut self.serving).await {
            Ok(result) => result.map_err(io::Error::other),
            Err(error) => Err(io::Error::other(error)),
        };
        self.mesh.flush_telemetry().await;
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bookinfo_is_six_services() {
        let names: Vec<String> = Service::all().iter().map(Service::to_string).collect();
        let expected = ["productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"];
        assert_eq!(names, expected);
        assert_eq!("reviews".parse(), Ok(App::Reviews));
        assert!("review".parse::<App>().is_err());
    }
}
