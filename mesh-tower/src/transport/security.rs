//! Whether a cluster may be talked to as it stands: the one place that looks at its TLS.

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterTls};

/// Proof that a cluster's configuration lets requests travel in plaintext. Every way to a connection asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plaintext(());

impl Plaintext {
    /// The proof for a cluster that asks for no TLS.
    ///
    /// # Errors
    /// [`ErrorKind::Security`] where it asks for TLS, which cannot be had: nothing is sent in plaintext instead.
    #[inline]
    pub(crate) fn allowed(cluster: &Cluster) -> Result<Plaintext, MeshError> {
        match &cluster.tls {
            ClusterTls::None => Ok(Plaintext(())),
            ClusterTls::Unusable(reason) => Err(unusable(cluster, reason)),
        }
    }
}

#[cold]
fn unusable(cluster: &Cluster, reason: &str) -> MeshError {
    MeshError::new(ErrorKind::Security, format!("cluster {}: {reason}", cluster.name))
}
