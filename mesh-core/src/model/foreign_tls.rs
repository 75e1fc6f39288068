//! TLS with servers that need not be of the mesh: what is shown and who is trusted stands in files of the workload, or in secrets that
//! a control plane delivers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StringTest;

/// TLS with the endpoints of a cluster, by files that this process reads, or by secrets that it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForeignTls {
    /// What is read.
    pub material: TlsMaterial,
    /// The certificate has to have one of these names; where there are none, any will do that `proves_sni` lets pass.
    pub names: Vec<NameTest>,
    /// The certificate has to be that of the name that is asked for.
    pub proves_sni: bool,
    /// Whether only the server's own certificate has to be on no list of revoked ones.
    pub only_leaf_may_be_revoked: bool,
    /// The name that is asked for.
    pub sni: Sni,
    /// The versions that are spoken.
    pub versions: TlsVersions,
}

impl ForeignTls {
    /// With the server of this name, whose certificate has to be its own and of one of these authorities.
    pub fn with(sni: Sni, roots: Roots) -> Self {
        ForeignTls {
            material: TlsMaterial { roots, revoked: None, identity: None, secret: None },
            names: Vec::new(),
            proves_sni: true,
            only_leaf_may_be_revoked: false,
            sni,
            versions: TlsVersions::default(),
        }
    }
}

/// What a [`ForeignTls`] goes by: files, what is told in the place of one, all of them PEM, or secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TlsMaterial {
    /// Who vouches for servers.
    pub roots: Roots,
    /// Lists of revoked certificates. With them, every authority of a chain needs one.
    pub revoked: Option<PathBuf>,
    /// What the client shows: its certificate with its chain, and the key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name of the secret with what the client shows, where that is in no file.
    pub secret: Option<Arc<str>>,
}

impl TlsMaterial {
    /// The names of all secrets.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        let roots = match &self.roots {
            Roots::Secret(name) => Some(name),
            Roots::System | Roots::File(_) | Roots::Text(_) | Roots::Nobody => None,
        };
        self.secret.iter().chain(roots)
    }

    /// Where lists of revoked certificates are, or may be.
    pub(crate) fn lists(&self) -> Option<&Path> {
        let in_secret = match &self.roots {
            Roots::Secret(name) => Some(Path::new(&**name)),
            Roots::System | Roots::File(_) | Roots::Text(_) | Roots::Nobody => None,
        };
        self.revoked.as_deref().or(in_secret)
    }
}

/// Who vouches for servers. Exhaustive: one more is one more way to trust.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Roots {
    /// Those whom the system trusts.
    System,
    /// The authorities in this file.
    File(PathBuf),
    /// The authorities in the secret of this name, with their lists of revoked certificates.
    Secret(Arc<str>),
    /// The authorities in this text, which is PEM.
    Text(Arc<str>),
    /// Nobody has to: any certificate will do.
    Nobody,
}

/// Which name is asked for (SNI).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// None.
    None,
    /// This one.
    Fixed(Arc<str>),
    /// That of the endpoint, where it is known by a name.
    OfEndpoint,
}

/// The versions of TLS that are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 only.
    Tls12,
    /// 1.3 only.
    Tls13,
}

/// A test on one of the names in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameTest {
    /// Which kind of name.
    pub kind: NameKind,
    /// What it has to be.
    pub test: StringTest,
}

impl NameTest {
    /// A name of this kind that is exactly this.
    pub fn exact(kind: NameKind, name: impl Into<String>) -> Self {
        NameTest { kind, test: StringTest::Exact { value: name.into(), ignore_case: false } }
    }

    /// A test on the names of one kind.
    pub fn new(kind: NameKind, test: StringTest) -> Self {
        NameTest { kind, test }
    }
}

/// The kinds of names in a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A host.
    Dns,
    /// A URI.
    Uri,
    /// An address of mail.
    Email,
    /// An IP address.
    Ip,
}

impl NameKind {
    /// All kinds.
    pub const ALL: [NameKind; 4] = [NameKind::Dns, NameKind::Uri, NameKind::Email, NameKind::Ip];
}
