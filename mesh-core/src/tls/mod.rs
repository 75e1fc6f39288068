//! Mutual TLS between workloads: whom to trust, who the peer is, and what to show it.
//!
//! rustls knows nothing of SPIFFE, so the checks of an X.509-SVID are here ([`svid`]): the peer's trust domain is read from
//! its leaf, and its chain verified against the roots of *that* domain and no others ([`TrustBundles`]). The key of a
//! workload is made in the process and does not leave it; no `Debug` shows it.

mod bundle;
mod chain;
mod credentials;
mod edge;
mod foreign;
mod handshake;
pub(crate) mod material;
mod peer;
mod pem;
mod provider;
mod revoked;
mod spiffe_bundle;
pub mod svid;

#[cfg(test)]
mod tests;

pub use bundle::{TrustBundles, fingerprint as roots_fingerprint, trust_fingerprint};
pub use credentials::{CertificateRequest, Credentials};
pub use edge::EdgeClient;
pub(crate) use edge::{ClientVerifier, certificate_end, client_verifier, edge_config};
pub use foreign::{ForeignPeer, foreign_config, foreign_name};
pub use handshake::{client_config, peer_identity, server_name, spiffe_config};
pub use material::{ForeignTrust, MaterialReader};
pub use peer::Peer;
pub use pem::pem_error;
pub use provider::Certificates;
pub use revoked::{NewestLists, Revoked};
pub use spiffe_bundle::{NewestBundles, SpiffeBundle, SpiffeBundleMap};
