//! TLS by a certificate of the server's own authority, on the port where others speak plaintext: a workload that has a
//! certificate of the mesh, and so its roots, comes back with it over the address that its bootstrap names.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use mesh_core::identity::SpiffeId;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::ca::CertificateAuthority;
use crate::serve::io::tls::{Audience, acceptor};
use crate::serve::io::verifier::Anchors;

/// The certificate of the server, as long as it is good.
pub(crate) struct OwnTls {
    audience: Audience,
    authority: Arc<CertificateAuthority>,
    present: Mutex<Option<Present>>,
}

struct Present {
    acceptor: TlsAcceptor,
    /// The roots, and the lists of revoked certificates.
    trust: Trust,
    renewed_at: SystemTime,
}

type Trust = (Vec<CertificateDer<'static>>, Vec<CertificateRevocationListDer<'static>>);

impl OwnTls {
    pub(crate) fn new(authority: Arc<CertificateAuthority>) -> OwnTls {
        OwnTls::for_audience(Audience::Mesh, authority)
    }

    pub(crate) fn for_audience(audience: Audience, authority: Arc<CertificateAuthority>) -> OwnTls {
        OwnTls { audience, authority, present: Mutex::default() }
    }

    /// What the next connection is accepted with; where there is nothing, it is told.
    pub(crate) fn latest_or_told(&self, now: SystemTime) -> Option<TlsAcceptor> {
        let latest = self.latest(now);
        latest.inspect_err(|why| tracing::error!("the server has no certificate of its own authority: {why:#}")).ok()
    }

    /// What the next connection is accepted with.
    fn latest(&self, now: SystemTime) -> anyhow::Result<TlsAcceptor> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = (self.authority.roots(), self.authority.revoked());
        if let Some(present) = present.as_ref().filter(|present| present.trust == trust && now < present.renewed_at) {
            return Ok(present.acceptor.clone());
        }
        let made = self.make(trust, now)?;
        let acceptor = made.acceptor.clone();
        *present = Some(made);
        Ok(acceptor)
    }

    fn make(&self, trust: Trust, now: SystemTime) -> anyhow::Result<Present> {
        let domain = self.authority.trust_domain();
        let (key, issued) = self.authority.issue_with_key(&SpiffeId::of_control_plane(&domain), 0, now)?;
        let (_, chain) = issued.chain.split_last().context("the chain is empty")?;
        let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
        let chain = chain.collect::<Result<Vec<_>, _>>().context("the server's own chain")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the server's own key")?;
        let (own, revoked) = trust.clone();
        let anchors = Anchors { own, revoked, operators: Vec::new() };
        let acceptor = acceptor(self.audience, chain, key, &domain, anchors)?;
        // As soon as a workload would.
        Ok(Present { acceptor, trust, renewed_at: now + issued.ttl / 2 })
    }
}

/// The first byte of a TLS handshake (RFC 8446, 5.1).
pub(crate) const HANDSHAKE: u8 = 0x16;
