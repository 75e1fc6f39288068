//! How a cluster's endpoints may be talked to: the one place that looks at its TLS.

use std::sync::Arc;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::identity::SpiffeId;
use mesh_core::model::{Cluster, ClusterTls, ForeignTls};

/// How the configuration wants connections to an endpoint secured. Every way to a connection asks for it, and only
/// [`Security::of`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Security(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plaintext,
    Tls,
}

/// How a connection was secured, when it was made.
#[derive(Clone, Debug)]
pub(super) enum Secured {
    /// It was not.
    No,
    /// By mutual TLS with this peer, who was named the last time for being an endpoint, or by a rule.
    Mutual { peer: SpiffeId, by_endpoints: bool },
    /// By TLS with a server that need not be of the mesh.
    Foreign(Arc<ForeignTls>),
}

impl Secured {
    /// Takes in why its peer is named by now, if it is.
    pub(super) fn note(&mut self, tls: &ClusterTls) {
        if let (Some(upstream), Secured::Mutual { peer, by_endpoints }) = (tls.upstream(), self)
            && upstream.peers.contains(peer)
        {
            *by_endpoints = upstream.by_endpoints;
        }
    }
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
            ClusterTls::Mutual(_) | ClusterTls::Foreign(_) => Ok(Security(Kind::Tls)),
            ClusterTls::MutualWhereMarked(_) if is_marked => Ok(Security(Kind::Tls)),
            ClusterTls::MutualWhereMarked(_) => Ok(Security(Kind::Plaintext)),
            ClusterTls::Unusable(reason) => Err(unusable(cluster, reason)),
        }
    }

    /// Whether this peer may be sent nothing new, now that its cluster is to be secured in this way.
    pub(super) fn has_left(tls: &ClusterTls, peer: &SpiffeId) -> bool {
        tls.upstream().is_some_and(|upstream| !upstream.peers.contains(peer))
    }

    /// Whether a connection to an endpoint, which `is_marked` for mutual TLS or is not, may go on now that its cluster is to
    /// be secured in this way.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn allows(tls: &ClusterTls, is_marked: bool, secured: &Secured) -> Result<(), Arc<str>> {
        match (tls, secured) {
            (ClusterTls::Unusable(reason), _) => Err(Arc::clone(reason)),
            (ClusterTls::None, _) => Ok(()),
            (ClusterTls::MutualWhereMarked(_), Secured::No) if !is_marked => Ok(()),
            (
                ClusterTls::Mutual(upstream) | ClusterTls::MutualWhereMarked(upstream),
                Secured::Mutual { peer, by_endpoints },
            ) => {
                // Who was named for being an endpoint, and is none by now, may answer what it was asked.
                let has_left = *by_endpoints && upstream.by_endpoints;
                match upstream.peers.contains(peer) || has_left {
                    true => Ok(()),
                    false => Err(format!("the peer is {peer}, who may not answer for the service any more").into()),
                }
            }
            (ClusterTls::Mutual(_) | ClusterTls::MutualWhereMarked(_), _) => {
                Err("mutual TLS is required by now".into())
            }
            (ClusterTls::Foreign(wanted), Secured::Foreign(made)) if wanted == made => Ok(()),
            (ClusterTls::Foreign(_), _) => {
                Err("TLS by other files or secrets, or with another name, is required by now".into())
            }
        }
    }

    /// Whether nothing may travel in plaintext.
    #[inline]
    pub(crate) fn is_tls(self) -> bool {
        self.0 == Kind::Tls
    }
}

#[cold]
fn unusable(cluster: &Cluster, reason: &str) -> MeshError {
    MeshError::new(ErrorKind::Security, format!("cluster {}: {reason}", cluster.name))
}

#[cfg(test)]
mod tests {
    use mesh_core::model::{Roots, Sni, UpstreamTls};

    use super::*;

    #[test]
    fn a_connection_goes_on_while_it_is_what_the_cluster_asks_for() {
        let [a, b]: [SpiffeId; 2] = ["spiffe://td/a", "spiffe://td/b"].map(|id| id.parse().unwrap());
        let of = |peers: &[&SpiffeId]| Arc::new(UpstreamTls::with(peers.iter().map(|peer| (*peer).clone())));
        let mutual = |peers: &[&SpiffeId]| ClusterTls::Mutual(of(peers));
        let marked = |peers: &[&SpiffeId]| ClusterTls::MutualWhereMarked(of(peers));
        let by_rule = |peer: &SpiffeId| Secured::Mutual { peer: peer.clone(), by_endpoints: false };
        let foreign = |name: &str| Arc::new(ForeignTls::with(Sni::Fixed(name.into()), Roots::System));
        for (tls, secured, expected) in [
            (ClusterTls::Foreign(foreign("a")), Secured::Foreign(foreign("a")), true),
            (ClusterTls::Foreign(foreign("a")), Secured::Foreign(foreign("b")), false),
            (ClusterTls::Foreign(foreign("a")), Secured::No, false),
            (ClusterTls::Foreign(foreign("a")), by_rule(&a), false),
            (mutual(&[&a]), Secured::Foreign(foreign("a")), false),
            (marked(&[&a]), Secured::Foreign(foreign("a")), false),
            (ClusterTls::None, Secured::Foreign(foreign("a")), true),
        ] {
            assert_eq!(Security::allows(&tls, false, &secured).is_ok(), expected, "{tls:?} {secured:?}");
        }
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
            let secured = peer.map_or(Secured::No, by_rule);
            assert_eq!(Security::allows(&tls, is_marked, &secured).is_ok(), expected, "{tls:?} {is_marked} {peer:?}");
        }
    }

    #[test]
    fn an_endpoint_that_left_answers_what_it_was_asked_unless_a_rule_names_who_may_answer() {
        let [a, b]: [SpiffeId; 2] = ["spiffe://td/a", "spiffe://td/b"].map(|id| id.parse().unwrap());
        for (was_by_endpoints, by_endpoints, expected) in
            [(true, true, true), (true, false, false), (false, true, false), (false, false, false)]
        {
            for peers in [vec![], vec![b.clone()]] {
                let mut upstream = UpstreamTls::with(peers);
                upstream.by_endpoints = by_endpoints;
                let upstream = Arc::new(upstream);
                let secured = Secured::Mutual { peer: a.clone(), by_endpoints: was_by_endpoints };
                for tls in [ClusterTls::Mutual(upstream.clone()), ClusterTls::MutualWhereMarked(upstream.clone())] {
                    assert_eq!(Security::allows(&tls, true, &secured).is_ok(), expected, "{tls:?} {secured:?}");
                    assert!(Security::has_left(&tls, &a), "{tls:?}");
                }
            }
        }
        assert!(!Security::has_left(&ClusterTls::Mutual(Arc::new(UpstreamTls::with([a.clone()]))), &a));
    }
}
