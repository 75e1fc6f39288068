//! TLS to a management server, with `tls` channel credentials (gRFC A65): its certificate has to be of the authority in
//! a file, and name the host that was dialled; the client shows its own where the bootstrap names one, or else the one that it
//! has as a workload.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::error::Invalid;
use crate::identity::{SpiffeId, TrustDomain};
use crate::model::{ForeignTls, Roots, Sni, UpstreamTls};
use crate::tls::{self as mutual, Credentials, MaterialReader};
use crate::xds::bootstrap::ClientTlsFiles;

/// What is spoken over it.
const HTTP2: &[u8] = b"h2";

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// TLS over a connection to `host`, with the workload's own certificate where there is one and the files name none.
pub(crate) async fn by_files(
    reader: &Arc<MaterialReader>,
    files: &ClientTlsFiles,
    host: &str,
    io: Box<dyn Io>,
    workload: Option<Arc<Credentials>>,
) -> io::Result<Box<dyn Io>> {
    let mut tls = ForeignTls::with(Sni::Fixed(host.into()), Roots::File(files.ca_certificate.clone()));
    tls.material.identity.clone_from(&files.identity);
    let (tls, reader) = (Arc::new(tls), Arc::clone(reader));
    let own = Arc::clone(&tls);
    let trust = tokio::task::spawn_blocking(move || reader.read(&own.material, SystemTime::now())).await;
    let failed = |invalid: Invalid| io::Error::other(format!("TLS with {host}: {invalid}"));
    let trust = trust.map_err(io::Error::other)?.map_err(failed)?;
    let mut config = mutual::foreign_config(&tls, &trust, Some(HTTP2)).map_err(failed)?;
    if let Some(workload) = workload.filter(|_| files.identity.is_none()) {
        config.client_auth_cert_resolver = workload.client_certificate();
    }
    let name = mutual::foreign_name(&tls, None).map_err(failed)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, io).await;
    let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("TLS with {host}: {error}")))?;
    Ok(Box::new(stream))
}

/// Mutual TLS with a mesh-control that is its own authority: by the roots that came with the workload's certificate.
pub(crate) async fn of_the_mesh(workload: &Credentials, io: Box<dyn Io>) -> io::Result<Box<dyn Io>> {
    let failed = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"));
    let domain: TrustDomain = workload.id().trust_domain().parse().map_err(|error| failed(&error))?;
    let peers = UpstreamTls::with([SpiffeId::of_control_plane(&domain)]);
    let config = mutual::client_config(workload, &peers, Some(HTTP2)).map_err(|error| failed(&error))?;
    let name = mutual::server_name(&peers).map_err(|error| failed(&error))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, io).await;
    Ok(Box::new(stream.map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}")))?))
}

#[cfg(test)]
mod tests {
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// What dialling a management server by this name comes to, whose certificate is for `*.example.com`.
    async fn dial(host: &str) -> io::Result<()> {
        let certified = rcgen::generate_simple_self_signed(["*.example.com".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let authority = dir.path().join("ca.pem");
        std::fs::write(&authority, certified.cert.pem()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut server = server.with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
        server.alpn_protocols = vec![HTTP2.to_vec()];
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let accepting = TlsAcceptor::from(Arc::new(server)).accept(theirs);
        let (reader, files) = (Arc::<MaterialReader>::default(), ClientTlsFiles::new(authority));
        let (dialled, _) = tokio::join!(by_files(&reader, &files, host, Box::new(ours), None), accepting);
        dialled.map(|_| ())
    }

    #[tokio::test]
    async fn m13_a_wildcard_stands_for_one_label_and_no_more() {
        dial("a.example.com").await.unwrap();
        for host in ["a.b.example.com", "example.com", "aexample.com", "a.example.com.evil.org"] {
            let refused = dial(host).await.unwrap_err().to_string();
            assert!(refused.contains("it is not that of"), "{host}: {refused}");
        }
    }
}
