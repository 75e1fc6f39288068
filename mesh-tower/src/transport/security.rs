//! How a cluster's endpoints may be talked to: the one place that looks at its TLS.

use std::sync::Arc;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::identity::SpiffeId;
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

    /// Whether a connection to an endpoint, which `is_marked` for mutual TLS or is not, may go on now that its cluster is to
    /// be secured in this way. `peer` is who the endpoint is, where the connection is secured.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn allows(tls: &ClusterTls, is_marked: bool, peer: Option<&SpiffeId>) -> Result<(), Arc<str>> {
        let upstream = match tls {
            ClusterTls::Unusable(reason) => return Err(Arc::clone(reason)),
            ClusterTls::None => return Ok(()),
            ClusterTls::MutualWhereMarked(_) if peer.is_none() && !is_marked => return Ok(()),
            ClusterTls::Mutual(upstream) | ClusterTls::MutualWhereMarked(upstream) => upstream,
        };
        match peer {
            None => Err("mutual TLS is required by now".into()),
            Some(peer) if upstream.peers.contains(peer) => Ok(()),
            Some(peer) => Err(format!("the peer is {peer}, who may not answer for the service any more").into()),
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

#[cfg(test)]
mod tests {
    use mesh_core::model::UpstreamTls;

    use super::*;

    #[test]
    fn a_connection_goes_on_while_it_is_what_the_cluster_asks_for() {
        let [a, b]: [SpiffeId; 2] = ["spiffe://td/a", "spiffe://td/b"].map(|id| id.parse().unwrap());
        let of = |peers: &[&SpiffeId]| Arc::new(UpstreamTls::with(peers.iter().map(|peer| (*peer).clone())));
        let mutual = |peers: &[&SpiffeId]| ClusterTls::Mutual(of(peers));
        let marked = |peers: &[&SpiffeId]| ClusterTls::MutualWhereMarked(of(peers));
        let cases = [
            (ClusterTls::None, false, None, true),
            (ClusterTls::None, false, Some(&a), true),
            (mutual(&[&a, &b]), false, Some(&a), true),
            (mutual(&[&b]), false, Some(&a), false),
            (mutual(&[]), true, Some(&a), false),
            (mutual(&[&a]), false, None, false),
            (marked(&[&a]), true, Some(&a), true),
            (marked(&[&b]), true, Some(&a), false),
            (marked(&[&a]), false, None, true),
            (marked(&[&a]), true, None, false),
            (ClusterTls::Unusable("no".into()), false, None, false),
            (ClusterTls::Unusable("no".into()), true, Some(&a), false),
        ];
        for (tls, is_marked, peer, expected) in cases {
            assert_eq!(Security::allows(&tls, is_marked, peer).is_ok(), expected, "{tls:?} {is_marked} {peer:?}");
        }
    }
}
