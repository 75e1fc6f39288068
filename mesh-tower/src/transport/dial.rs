//! Opens connections, and secures them where the configuration wants it.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::Address;
use mesh_core::identity::SpiffeId;
use mesh_core::model::{Cluster, UpstreamTls};
use mesh_core::state::{EndpointState, TlsChanges};
use mesh_core::tls::{Credentials, Peer, client_config, server_name};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Security;
use crate::io::{Bytes, Io, distrusted};

/// What a connection is to carry, as TLS names it: agreed on in the handshake, where there is one.
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// Opens a connection to the first address of the endpoint that accepts, within the cluster's timeout. Where it has to be
/// secured, the handshake is over and the peer is who it should be. `alpn` is what it will carry, where that is known.
pub(crate) async fn dial(
    cluster: &Cluster,
    endpoint: &EndpointState,
    security: Security,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let timeout = cluster.connect_timeout;
    match (security.is_mutual_tls(), cluster.tls.upstream()) {
        (false, _) => {
            let stream = within(timeout, connect(endpoint)).await?;
            Ok(Io::new(Bytes::Plaintext(stream), forbidden(endpoint.tls_changes(), None)))
        }
        (true, None) => Err(MeshError::new(ErrorKind::Security, "mutual TLS is wanted, and nothing says how")),
        (true, Some(tls)) => {
            let certificates = endpoint.certificates();
            let credentials = tokio::time::timeout(timeout, certificates.get()).await;
            let credentials = credentials.map_err(|_| certificates.missing())?;
            within(timeout, secure(endpoint, tls, &credentials, alpn)).await
        }
    }
}

async fn within<T>(timeout: Duration, connecting: impl Future<Output = Result<T, MeshError>>) -> Result<T, MeshError> {
    let late = |_| failed(format!("cannot connect within {timeout:?}"));
    tokio::time::timeout(timeout, connecting).await.map_err(late)?
}

async fn connect(endpoint: &EndpointState) -> Result<TcpStream, MeshError> {
    let mut last = None;
    for address in endpoint.id().addresses() {
        let opened = match address {
            Address::Socket(socket) => TcpStream::connect(socket).await,
            Address::Host(host, port) => TcpStream::connect((&**host, *port)).await,
        };
        match opened {
            Ok(stream) => {
                // A request is written in few pieces and its answer waited for: never hold the last piece back.
                let set = stream.set_nodelay(true);
                set.map_err(|error| failed("cannot set TCP_NODELAY".into()).caused_by(error))?;
                return Ok(stream);
            }
            Err(error) => last = Some(failed(format!("cannot connect to {address}")).caused_by(error)),
        }
    }
    Err(last.unwrap_or_else(|| failed("the endpoint has no address".into())))
}

async fn secure(
    endpoint: &EndpointState,
    tls: &UpstreamTls,
    credentials: &Credentials,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let unusable = |invalid| MeshError::new(ErrorKind::Security, format!("mutual TLS: {invalid}"));
    let config = client_config(credentials, tls, alpn).map_err(unusable)?;
    let name = server_name(tls).map_err(unusable)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, connect(endpoint).await?).await;
    let stream = shaken.map_err(|error| failed("mutual TLS".into()).caused_by(error))?;
    let peer = Peer::server(stream.get_ref().1, credentials);
    let peer = peer.ok_or_else(|| failed("mutual TLS: the server has not shown who it is".into()))?;
    let unwanted = forbidden(endpoint.tls_changes(), Some(peer.id().clone()));
    // The server closes it once our own certificate has expired.
    let end = peer.next_check().map_or(credentials.not_after(), |end| end.min(credentials.not_after()));
    let distrusted = distrusted(peer, Arc::clone(endpoint.certificates()));
    Ok(Io::until(end, Bytes::Tls(Box::new(stream.into())), async move {
        tokio::select! {
            reason = unwanted => reason,
            reason = distrusted => reason,
        }
    }))
}

/// Waits until the configuration does not want a connection any more, and tells why.
async fn forbidden(mut changes: TlsChanges, peer: Option<SpiffeId>) -> Arc<str> {
    loop {
        let (tls, is_marked) = changes.next().await;
        if let Err(reason) = Security::allows(&tls, is_marked, peer.as_ref()) {
            return reason;
        }
    }
}

fn failed(what: String) -> MeshError {
    MeshError::new(ErrorKind::ConnectFailure, what)
}
