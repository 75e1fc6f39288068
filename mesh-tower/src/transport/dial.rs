//! Opens connections.

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::Address;
use mesh_core::model::Cluster;
use mesh_core::state::EndpointState;
use tokio::net::TcpStream;

use super::Plaintext;

/// Opens a TCP connection to the first address of the endpoint that accepts, within the cluster's timeout.
pub(crate) async fn dial(
    cluster: &Cluster,
    endpoint: &EndpointState,
    _allowed: Plaintext,
) -> Result<TcpStream, MeshError> {
    let failed = |what: String| MeshError::new(ErrorKind::ConnectFailure, what);
    let try_all = async {
        let mut last = None;
        for address in endpoint.id().addresses() {
            let opened = match address {
                Address::Socket(socket) => TcpStream::connect(socket).await,
                Address::Host(host, port) => TcpStream::connect((&**host, *port)).await,
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(failed(format!("cannot connect to {address}")).caused_by(error)),
            }
        }
        Err(last.unwrap_or_else(|| failed("the endpoint has no address".into())))
    };
    let timeout = cluster.connect_timeout;
    let stream = tokio::time::timeout(timeout, try_all)
        .await
        .unwrap_or_else(|_| Err(failed(format!("cannot connect within {timeout:?}"))))?;
    // A request is written in few pieces and its answer waited for: never hold the last piece back.
    stream.set_nodelay(true).map_err(|error| failed("cannot set TCP_NODELAY".into()).caused_by(error))?;
    Ok(stream)
}
