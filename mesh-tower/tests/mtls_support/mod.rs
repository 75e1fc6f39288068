//! Authorities, and the configuration of mutual TLS, for tests over real sockets.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::SpiffeId;
use mesh_core::model::{ClusterTls, Listener, ServerTls, UpstreamTls};
use mesh_core::resources::{Change, Resource};
use mesh_core::tls::Credentials;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

use super::server_support::{app_route, chain, listener};

pub const SERVER: &str = "spiffe://td/ns/shop/sa/server";
pub const CLIENT: &str = "spiffe://td/ns/shop/sa/client";

/// An authority in memory.
pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    pub fn credentials(&self, id: &str) -> Credentials {
        self.credentials_of(id, None, &[])
    }

    /// Those of a leaf that holds for so long, and that trust these authorities, too.
    pub fn credentials_of(&self, id: &str, life: Option<Duration>, others: &[&Authority]) -> Credentials {
        let roots: String = [self].iter().chain(others).map(|authority| authority.pem.as_str()).collect();
        self.signed(id, life, &roots)
    }

    /// Those that know that the authority has revoked the certificate with this serial number, as [`Credentials::serial`] tells it.
    pub fn credentials_but_for(&self, id: &str, serial: &str) -> Credentials {
        let bytes: Vec<u8> = serial.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let now = time::OffsetDateTime::now_utc();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes),
            revocation_time: now - Duration::from_secs(60),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + Duration::from_secs(3600),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap().pem().unwrap();
        self.signed(id, None, &format!("{}{list}", self.pem))
    }

    fn signed(&self, id: &str, life: Option<Duration>, roots: &str) -> Credentials {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(life) = life {
            let now = time::OffsetDateTime::now_utc();
            (params.not_before, params.not_after) = (now - Duration::from_secs(60), now + life);
        }
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Credentials::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes(), roots.as_bytes()).unwrap()
    }
}

pub fn id(id: &str) -> SpiffeId {
    id.parse().unwrap()
}

pub fn with_tls(address: SocketAddr, tls: ServerTls) -> Change {
    let mut only = chain(vec![app_route()], vec![]);
    only.tls = tls;
    listener(address, vec![only])
}

/// Istio's PERMISSIVE: mutual TLS for those who speak TLS, plaintext for the others.
pub fn permissive(address: SocketAddr) -> Change {
    let (mut secured, mut plain) = (chain(vec![app_route()], vec![]), chain(vec![app_route()], vec![]));
    secured.matches.is_tls = Some(true);
    secured.tls = ServerTls::Mutual;
    plain.matches.is_tls = Some(false);
    let mut change = listener(address, vec![secured, plain, chain(vec![], vec![])]);
    if let Change::Put(_, Resource::Listener(listener)) = &mut change
        && let Listener::Server(listener) = Arc::make_mut(listener)
    {
        listener.default_filter_chain = None;
    }
    change
}

pub fn mutual(peers: &[&str]) -> ClusterTls {
    ClusterTls::Mutual(Arc::new(UpstreamTls::with(peers.iter().map(|peer| id(peer)))))
}
