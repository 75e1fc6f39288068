//! Opens connections, and secures them where the configuration wants it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::error::{ErrorKind, Invalid, MeshError};
use mesh_core::id::Address;
use mesh_core::identity::SpiffeId;
use mesh_core::model::{Cluster, ClusterTls, ForeignTls, UpstreamTls};
use mesh_core::state::{ConnectionPermit, EndpointState, TlsChanges};
use mesh_core::tls::{
    Credentials, ForeignPeer, ForeignTrust, Peer, client_config, foreign_config, foreign_name, server_name,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Security;
use super::security::Secured;
use crate::io::{Bytes, Io, distrusted, ends_soon, outdated};

/// What a connection is to carry, as TLS names it: agreed on in the handshake, where there is one.
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// How long the network may take to make a connection, before the endpoint is taken for one that cannot be reached: until
/// it is, others are tried.
const SLOW: Duration = Duration::from_millis(250);

/// Opens a connection to the first address of the endpoint that accepts, within the cluster's timeout. Where it has to be
/// secured, the handshake is over and the peer is who it should be. `alpn` is what it will carry, where that is known.
/// The endpoint's state learns from it whether it can be reached.
pub(crate) async fn dial(
    cluster: &Cluster,
    endpoint: &EndpointState,
    security: Security,
    alpn: Option<&'static [u8]>,
    permit: ConnectionPermit,
) -> Result<Io, MeshError> {
    match open(cluster, endpoint, security, alpn).await {
        Ok(mut io) => {
            endpoint.note_reachable();
            if let Some(time) = cluster.max_connection_duration {
                io.retire_in(time);
            }
            io.hold(permit);
            Ok(io)
        }
        Err(Failed::Here(error)) => Err(error),
        Err(Failed::There(error)) => {
            if is_of_endpoint(&error) {
                endpoint.note_unreachable(Instant::now(), &mut fastrand::Rng::new());
            }
            Err(error)
        }
    }
}

/// Where a dial failed.
enum Failed {
    /// In this process: it lacks a certificate, or what its files should say.
    Here(MeshError),
    /// At the endpoint, or on the way to it.
    There(MeshError),
}

impl From<MeshError> for Failed {
    fn from(error: MeshError) -> Self {
        Failed::There(error)
    }
}

/// Whether a dial failed because of the endpoint or the way to it, and not for something that this process lacks: files,
/// ports, memory, a permission.
fn is_of_endpoint(error: &MeshError) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    error.kind() == ErrorKind::ConnectFailure && !causes.any(is_lack_of_this_process)
}

/// Whether an error is of something that this process lacks, which says nothing of the endpoint.
pub(super) fn is_lack_of_this_process(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, OutOfMemory, PermissionDenied};
    matches!(error.kind(), AddrNotAvailable | OutOfMemory | PermissionDenied)
        || error.raw_os_error().is_some_and(|code| OWN_LACKS.contains(&code))
}

/// ENFILE, EMFILE, ENOBUFS.
const OWN_LACKS: [i32; 3] = [23, 24, 105];

async fn open(
    cluster: &Cluster,
    endpoint: &EndpointState,
    security: Security,
    alpn: Option<&'static [u8]>,
) -> Result<Io, Failed> {
    let timeout = cluster.connect_timeout;
    match &cluster.tls {
        _ if !security.is_tls() => {
            let stream = within(timeout, connect(cluster, endpoint)).await?;
            Ok(Io::new(Bytes::Plaintext(stream), forbidden(endpoint.tls_changes(), Secured::No)))
        }
        ClusterTls::Mutual(tls) | ClusterTls::MutualWhereMarked(tls) => {
            let certificates = endpoint.certificates();
            let credentials = tokio::time::timeout(timeout, certificates.get()).await;
            let credentials = credentials.map_err(|_| Failed::Here(certificates.missing()))?;
            Ok(within(timeout, secure(cluster, endpoint, tls, &credentials, alpn)).await?)
        }
        ClusterTls::Foreign(tls) => {
            let trust = within(timeout, read(endpoint, tls)).await.map_err(Failed::Here)?;
            Ok(within(timeout, secure_foreign(cluster, endpoint, tls, &trust, alpn)).await?)
        }
        ClusterTls::None | ClusterTls::Unusable(_) => {
            Err(Failed::Here(MeshError::new(ErrorKind::Security, "TLS is wanted, and nothing says how")))
        }
    }
}

async fn within<T>(timeout: Duration, connecting: impl Future<Output = Result<T, MeshError>>) -> Result<T, MeshError> {
    let late = |_| failed(format!("cannot connect within {timeout:?}"));
    tokio::time::timeout(timeout, connecting).await.map_err(late)?
}

async fn connect(cluster: &Cluster, endpoint: &EndpointState) -> Result<TcpStream, MeshError> {
    let mut connecting = pin!(connect_to_first(endpoint));
    let stream = tokio::select! {
        biased;
        connected = &mut connecting => connected?,
        () = tokio::time::sleep(SLOW) => {
            endpoint.note_unreachable(Instant::now(), &mut fastrand::Rng::new());
            connecting.await?
        }
    };
    // A request is written in few pieces and its answer waited for: never hold the last piece back.
    let set = stream.set_nodelay(true);
    set.map_err(|error| failed("cannot set TCP_NODELAY".into()).caused_by(error))?;
    if let Some(keepalive) = &cluster.tcp_keepalive {
        let mut probes = TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            probes = probes.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            probes = probes.with_interval(interval);
        }
        if let Some(count) = keepalive.probes {
            probes = probes.with_retries(count);
        }
        // Values that the system does not take are no reason to do without the connection.
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&probes) {
            tracing::debug!(cluster = %cluster.name, %error, "the system does not take these TCP keepalive probes");
        }
    }
    Ok(stream)
}

async fn connect_to_first(endpoint: &EndpointState) -> Result<TcpStream, MeshError> {
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
}

async fn secure(
    cluster: &Cluster,
    endpoint: &EndpointState,
    tls: &UpstreamTls,
    credentials: &Arc<Credentials>,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let unusable = |invalid| MeshError::new(ErrorKind::Security, format!("mutual TLS: {invalid}"));
    let config = client_config(credentials, tls, alpn).map_err(unusable)?;
    let name = server_name(tls).map_err(unusable)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, connect(cluster, endpoint).await?).await;
    let stream = shaken.map_err(|error| failed("mutual TLS".into()).caused_by(error))?;
    let peer = Peer::server(stream.get_ref().1, credentials);
    let peer = peer.ok_or_else(|| failed("mutual TLS: the server has not shown who it is".into()))?;
    endpoint.note_principal(peer.id());
    let secured = Secured::Mutual { peer: peer.id().clone(), by_endpoints: tls.by_endpoints };
    let unwanted = forbidden(endpoint.tls_changes(), secured);
    let left = left(endpoint.tls_changes(), peer.id().clone());
    let certificates = endpoint.certificates();
    // The server closes it once our own certificate has expired, or when nobody vouches for that any more: the next request
    // goes by the newest one.
    let end = peer.next_check().map_or(credentials.not_after(), |end| end.min(credentials.not_after()));
    let (own, replaced) = (Arc::clone(credentials), Arc::clone(certificates));
    let replaceable = async move {
        tokio::select! {
            () = ends_soon(end) => {}
            () = replaced.replaced(&own) => {}
            () = left => {}
        }
    };
    let distrusted = distrusted(peer, Arc::clone(certificates));
    Ok(Io::of_client(Bytes::Tls(Box::new(stream.into())), replaceable, distrusted, unwanted))
}

/// What the files of a cluster say now.
async fn read(endpoint: &EndpointState, tls: &Arc<ForeignTls>) -> Result<Arc<ForeignTrust>, MeshError> {
    let (reader, own) = (Arc::clone(endpoint.certificates().material()), Arc::clone(tls));
    let read = tokio::task::spawn_blocking(move || reader.read(&own.material, SystemTime::now())).await;
    let read = read.map_err(|error| failed("TLS files were not read".into()).caused_by(error))?;
    read.map_err(unusable)
}

async fn secure_foreign(
    cluster: &Cluster,
    endpoint: &EndpointState,
    tls: &Arc<ForeignTls>,
    trust: &Arc<ForeignTrust>,
    alpn: Option<&'static [u8]>,
) -> Result<Io, MeshError> {
    let config = foreign_config(tls, trust, alpn).map_err(unusable)?;
    let host = endpoint.id().addresses().iter().find_map(|address| match address {
        Address::Host(host, _) => Some(&**host),
        Address::Socket(_) => None,
    });
    let name = foreign_name(tls, host).map_err(unusable)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name.clone(), connect(cluster, endpoint).await?).await;
    let stream = shaken.map_err(|error| failed("TLS".into()).caused_by(error))?;
    let peer = ForeignPeer::server(stream.get_ref().1, tls, trust, name);
    let peer = peer.ok_or_else(|| failed("TLS: the server has not shown who it is".into()))?;
    let unwanted = forbidden(endpoint.tls_changes(), Secured::Foreign(Arc::clone(tls)));
    let end = peer.next_check();
    let replaceable = async move {
        match end {
            Some(end) => ends_soon(end).await,
            None => std::future::pending().await,
        }
    };
    let outdated = outdated(peer, Arc::clone(endpoint.certificates().material()));
    Ok(Io::of_client(Bytes::Tls(Box::new(stream.into())), replaceable, outdated, unwanted))
}

fn unusable(invalid: Invalid) -> MeshError {
    MeshError::new(ErrorKind::Security, format!("TLS: {invalid}"))
}

/// Waits until the configuration does not want a connection any more, and tells why.
async fn forbidden(mut changes: TlsChanges, mut secured: Secured) -> Arc<str> {
    loop {
        let (tls, is_marked) = changes.next().await;
        if let Err(reason) = Security::allows(&tls, is_marked, &secured) {
            return reason;
        }
        secured.note(&tls);
    }
}

/// Waits until the peer of a connection is nobody any more who may answer for the service.
async fn left(mut changes: TlsChanges, peer: SpiffeId) {
    while !Security::has_left(&changes.next().await.0, &peer) {}
}

fn failed(what: String) -> MeshError {
    MeshError::new(ErrorKind::ConnectFailure, what)
}
