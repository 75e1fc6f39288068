//! What a sidecar leaves as it is: requests of its program, and connections that carry whatever bytes there are.

use std::io;

use http::Request;
use mesh_tower::body::Body;
use mesh_tower::server::{MeshTcpListener, ServerLayer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::forward::Tunnels;

/// Nothing is made of it.
pub(crate) fn as_it_came(_: &mut Request<Body>, _: &ServerLayer) {}

/// Carries the bytes of each connection that is let in to another end of its own, until nobody is let in any more.
pub(crate) async fn carry_all<F, B>(tunnels: Tunnels, mut listener: MeshTcpListener, other_end: impl Fn() -> F)
where
    F: Future<Output = io::Result<B>> + Send + 'static,
    B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    while let Some((io, peer)) = listener.accept().await {
        let Some(room) = tunnels.room(None) else {
            let port = listener.local_addr().port();
            tracing::warn!(%peer, port, "a connection is closed: as many are open as there may be");
            continue;
        };
        let other = other_end();
        tunnels.carry(room, async { Ok((io, other.await?)) });
    }
}
