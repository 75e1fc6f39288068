//! TLS at the edge: by certificates that a control plane delivers as secrets, with clients that need not be of the mesh.

use std::fmt;
use std::sync::Arc;

use super::{NameTest, TlsVersions};

/// How a gateway shakes hands: what it shows and whom it asks for what, by the names of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EdgeTls {
    /// Certificates with their keys: the first that a client can take is shown.
    pub certificates: Vec<Arc<str>>,
    /// Whose certificates are taken from clients; `None`: they are asked for none.
    pub clients: Option<Arc<str>>,
    /// Whether a client has to show one. One that is shown has to be good in any case.
    pub requires_client: bool,
    /// A client's certificate has to have one of these names; where there are none, any will do.
    pub names: Vec<NameTest>,
    /// The versions that are spoken.
    pub versions: TlsVersions,
}

impl EdgeTls {
    /// With these certificates, and without asking clients for any.
    pub fn with(certificates: impl IntoIterator<Item = Arc<str>>) -> Self {
        EdgeTls {
            certificates: certificates.into_iter().collect(),
            clients: None,
            requires_client: false,
            names: Vec::new(),
            versions: TlsVersions::default(),
        }
    }

    /// All secrets that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        self.certificates.iter().chain(&self.clients)
    }
}

/// What a control plane delivers under the name of a secret, as it came: whether it is any good is found where it is used, so that
/// nobody else is kept from anything by it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Secret {
    /// A chain with the leaf first, and its key, in PEM.
    Certificate {
        /// The chain.
        chain: Vec<u8>,
        /// The key.
        key: Vec<u8>,
    },
    /// Who vouches for clients, and for whom no longer (lists of revoked certificates), in PEM.
    Authorities {
        /// The authorities.
        roots: Vec<u8>,
        /// The lists; with them, every authority of a chain needs one.
        revoked: Option<Vec<u8>>,
    },
    /// It cannot be used, and why.
    Unusable(Arc<str>),
}

/// Without a byte of the key.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Certificate { .. } => f.write_str("Certificate"),
            Secret::Authorities { .. } => f.write_str("Authorities"),
            Secret::Unusable(reason) => f.debug_tuple("Unusable").field(reason).finish(),
        }
    }
}
