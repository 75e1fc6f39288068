//! Why a request would go where it would go: the decision of the mesh's own view, said in words.

use std::time::Instant;

use http::Request;
use http::request::Parts;
use http::uri::Scheme;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request::{RequestHead, host_and_port};
use mesh_core::rewrite::complete_path;
use mesh_core::view::{Explanation, TargetView};

use crate::mesh::Mesh;
use crate::outbound;

impl Mesh {
    /// Why a request would go where it would go: the virtual host, the first condition that each route before its own did not
    /// hold by, its route, the clusters by weight, and the settings in force. Nothing is sent. It is what [`Mesh::client`]
    /// decides by, at this moment. Filters are not asked; a fault that is configured is said. A request to `https` stands for a
    /// connection on which the application speaks TLS itself ([`Mesh::connector`]), and goes by the rules on those, where there
    /// are any.
    ///
    /// The first view of a target is waited for as by a request, 20 s at most unless set otherwise. Dropping the future ends
    /// that. The text may have values of the request's headers in it; those that are credentials are left out.
    ///
    /// # Errors
    /// [`BadRequest`](mesh_core::error::ErrorKind::BadRequest) where the request names no target, or is no HTTP, and
    /// [`UnknownTarget`](mesh_core::error::ErrorKind::UnknownTarget) where nothing is known of it yet. That a target does not
    /// exist is an explanation.
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let source = Fixed::new().service("reviews:9080", ["127.0.0.1:8080".parse()?]);
    /// let mesh = Mesh::builder().source(source).start()?;
    ///
    /// let request = http::Request::get("http://reviews:9080/1").body(())?;
    /// let explained = mesh.explain(&request).await?;
    /// assert_eq!(explained.clusters[0].name.as_str(), "reviews:9080");
    /// assert!(explained.to_string().contains("route 0 default: path: prefix \"/\""), "{explained}");
    /// assert_eq!(explained.to_json()["clusters"][0]["balancer"]["policy"], "least request");
    /// # Ok(()) }
    /// ```
    pub async fn explain<B>(&self, request: &Request<B>) -> Result<Explanation, MeshError> {
        let mut head = head_of(request)?;
        let entry = outbound::entry(&self.outbound(None), &mut head)?;
        let view = entry.wait(Instant::now() + self.cold_start_wait()).await?;
        explained(&view, &head)
    }

    /// The same of a target that this process has asked for and knows: nothing is waited for.
    pub(crate) fn explain_known<B>(&self, request: &Request<B>) -> Result<Explanation, MeshError> {
        let head = head_of(request)?;
        let seen = RequestHead::of(&head)?;
        let target = host_and_port(seen.authority, seen.scheme)?;
        let view = self.store().find(&target).and_then(|entry| entry.peek());
        let unknown = || MeshError::new(ErrorKind::UnknownTarget, format!("nobody here has asked for {target}"));
        let view = view.ok_or_else(unknown)?;
        explained(&view, &head)
    }
}

fn head_of<B>(request: &Request<B>) -> Result<Parts, MeshError> {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method.clone_from(request.method());
    head.uri.clone_from(request.uri());
    head.headers.clone_from(request.headers());
    head.version = request.version();
    complete_path(&mut head.uri);
    outbound::refuse_scheme(&head.uri)?;
    Ok(head)
}

fn explained(view: &TargetView, head: &Parts) -> Result<Explanation, MeshError> {
    let seen = RequestHead::of(head)?;
    let mut random = fastrand::Rng::new();
    Ok(match view.connections().filter(|_| head.uri.scheme() == Some(&Scheme::HTTPS)) {
        Some(connections) => {
            let server_name = head.uri.host().unwrap_or_default();
            connections.explain(&RequestHead::with_authority(head, server_name), &mut random)
        }
        None => view.explain(&seen, &mut random),
    })
}
