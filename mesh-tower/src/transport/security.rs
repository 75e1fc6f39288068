//! How a cluster's endpoints may be talked to: the one place that looks at its TLS.

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterTls};

/// How the configuration wants connections to an endpoint secured. Every way to a connection asks for it, and only
/// [`Security::of`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Security(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plaintext,
    MutualTls,
}

impl Security {
    /// That of an endpoint of this cluster, which `is_marked` for mutual TLS or is not.
    ///
    /// # Errors
    /// [`ErrorKind::Security`] where the cluster asks for TLS that cannot be had: nothing is sent in plaintext instead.
    #[inline]
    pub(crate) fn of(cluster: &Cluster, is_marked: bool) -> Result<Security, MeshError> {
        match &cluster.tls {
            ClusterTls::None => Ok(Security(Kind::Plaintext)),
            ClusterTls::Mutual(_) => Ok(Security(Kind::MutualTls)),
            ClusterTls::MutualWhereMarked(_) if is_marked => Ok(Security(Kind::MutualTls)),
            ClusterTls::MutualWhereMarked(_) => Ok(Security(Kind::Plaintext)),
            ClusterTls::Unusable(reason) => Err(unusable(cluster, reason)),
        }
    }

    /// Whether nothing may travel in plaintext.
    #[inline]
    pub(crate) fn is_mutual_tls(self) -> bool {
        self.0 == Kind::MutualTls
    }
}

#[cold]
fn unusable(cluster: &Cluster, reason: &str) -> MeshError {
    MeshError::new(ErrorKind::Security, format!("cluster {}: {reason}", cluster.name))
}
