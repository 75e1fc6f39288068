//! Opens connections, and secures them where the configuration wants it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::error::{ErrorKind, Invalid, MeshError};
use mesh_core::id::Address;
use mesh_core::model::{Cluster, ClusterTls, FileTls, UpstreamTls};
use mesh_core::state::{EndpointState, TlsChanges};
use mesh_core::tls::{
    Credentials, FileTrust, ForeignPeer, Peer, client_config, foreign_config, foreign_name, server_name,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Security;
use super::security::Secured;
use crate::io::{Bytes, Io, distrusted, ends_soon, outdated};

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
    match &cluster.tls {
        _ if !security.is_tls() => {
            let stream = within(timeout, connect(endpoint)).await?;
            Ok(Io::new(Bytes::Plaintext(stream), forbidden(endpoint.tls_changes(), Secured::No)))
        }
        ClusterTls::Mutual(tls) | ClusterTls::MutualWhereMarked(tls) => {
            let certificates = endpoint.certificates();
            let credentials = tokio::time::timeout(timeout, certificates.get()).await;
            let credentials = credentials.map_err(|_| certificates.missing())?;
            within(timeout, secure(endpoint, tls, &credentials, alpn)).await
        }
        ClusterTls::Files(tls) => {
            let trust = within(timeout, read(endpoint, tls)).await?;
            within(timeout, secure_by_files(endpoint, tls, &trust, alpn)).await
        }
        ClusterTls::None | ClusterTls::Unusable(_) => {
            Err(MeshError::new(ErrorKind::Security, "TLS is wanted, and nothing says how"))
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
    credentials: &Arc<Credentials>,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let unusable = |invalid| MeshError::new(ErrorKind::Security, format!("mutual TLS: {invalid}"));
    let config = client_config(credentials, tls, alpn).map_err(unusable)?;
    let name = server_name(tls).map_err(unusable)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, connect(endpoint).await?).await;
    let stream = shaken.map_err(|error| failed("mutual TLS".into()).caused_by(error))?;
    let peer = Peer::server(stream.get_ref().1, credentials);
    let peer = peer.ok_or_else(|| failed("mutual TLS: the server has not shown who it is".into()))?;
    let unwanted = forbidden(endpoint.tls_changes(), Secured::Mutual(peer.id().clone()));
    let certificates = endpoint.certificates();
    // The server closes it once our own certificate has expired, or when nobody vouches for that any more: the next request
    // goes by the newest one.
    let end = peer.next_check().map_or(credentials.not_after(), |end| end.min(credentials.not_after()));
    let (own, replaced) = (Arc::clone(credentials), Arc::clone(certificates));
    let replaceable = async move {
        tokio::select! {
            () = ends_soon(end) => {}
            () = replaced.replaced(&own) => {}
        }
    };
    let distrusted = distrusted(peer, Arc::clone(certificates));
    Ok(Io::of_client(Bytes::Tls(Box::new(stream.into())), replaceable, distrusted, unwanted))
}

/// What the files of a cluster say now.
async fn read(endpoint: &EndpointState, tls: &Arc<FileTls>) -> Result<Arc<FileTrust>, MeshError> {
    let (reader, own) = (Arc::clone(endpoint.certificates().files()), Arc::clone(tls));
    let read = tokio::task::spawn_blocking(move || reader.read(&own.files, SystemTime::now())).await;
    let read = read.map_err(|error| failed("TLS files were not read".into()).caused_by(error))?;
    read.map_err(unusable)
}

async fn secure_by_files(
    endpoint: &EndpointState,
    tls: &Arc<FileTls>,
    trust: &Arc<FileTrust>,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let config = foreign_config(tls, trust, alpn).map_err(unusable)?;
    let host = endpoint.id().addresses().iter().find_map(|address| match address {
        Address::Host(host, _) => Some(&**host),
        Address::Socket(_) => None,
    });
    let name = foreign_name(tls, host).map_err(unusable)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name.clone(), connect(endpoint).await?).await;
    let stream = shaken.map_err(|error| failed("TLS".into()).caused_by(error))?;
    let peer = ForeignPeer::server(stream.get_ref().1, tls, trust, name);
    let peer = peer.ok_or_else(|| failed("TLS: the server has not shown who it is".into()))?;
    let unwanted = forbidden(endpoint.tls_changes(), Secured::Files(Arc::clone(tls)));
    let end = peer.next_check();
    let replaceable = async move {
        match end {
            Some(end) => ends_soon(end).await,
            None => std::future::pending().await,
        }
    };
    let outdated = outdated(peer, Arc::clone(endpoint.certificates().files()));
    Ok(Io::of_client(Bytes::Tls(Box::new(stream.into())), replaceable, outdated, unwanted))
}

fn unusable(invalid: Invalid) -> MeshError {
    MeshError::new(ErrorKind::Security, format!("TLS: {invalid}"))
}

/// Waits until the configuration does not want a connection any more, and tells why.
async fn forbidden(mut changes: TlsChanges, secured: Secured) -> Arc<str> {
    loop {
        let (tls, is_marked) = changes.next().await;
        if let Err(reason) = Security::allows(&tls, is_marked, &secured) {
            return reason;
        }
    }
}

fn failed(what: String) -> MeshError {
    MeshError::new(ErrorKind::ConnectFailure, what)
}
