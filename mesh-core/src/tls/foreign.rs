//! Servers that need not be of the mesh: how a client shakes hands with them, and whether it would again.
//!
//! Who they are is a matter of names and of the authorities in files, and TLS 1.2 may be spoken.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::CommonState;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{ClientConfig, Resumption};
use tokio_rustls::rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use webpki::{EndEntityCert, RevocationCheckDepth};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::chain::{Side, Trust, reason};
use super::credentials::PROVIDER;
use super::handshake::{refused, signatures};
use super::material::ForeignTrust;
use super::peer::Shown;
use crate::error::Invalid;
use crate::model::{ForeignTls, NameKind, NameTest, Roots, Sni, StringTest, TlsVersions};

/// How a client shakes hands with a server outside of the mesh, by what its files say. `alpn` is what it will speak, where
/// that is known.
///
/// # Errors
/// Where rustls refuses the configuration.
pub fn foreign_config(
    tls: &Arc<ForeignTls>,
    trust: &Arc<ForeignTrust>,
    alpn: Option<&[u8]>,
) -> Result<ClientConfig, Invalid> {
    let versions: &[&SupportedProtocolVersion] = match tls.versions {
        TlsVersions::Both => &[&TLS13, &TLS12],
        TlsVersions::Tls12 => &[&TLS12],
        TlsVersions::Tls13 => &[&TLS13],
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(versions)
        .map_err(|error| Invalid::new(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { tls: Arc::clone(tls), trust: Arc::clone(trust) }));
    let mut config = match &trust.key {
        Some(key) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key)))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = tls.sni != Sni::None;
    Ok(config)
}

/// Which name is asked for, of an endpoint that is known by `host` or only by its address.
///
/// # Errors
/// Where there is none, and the server has to prove it; or it is no name.
pub fn foreign_name(tls: &ForeignTls, host: Option<&str>) -> Result<ServerName<'static>, Invalid> {
    let name = match &tls.sni {
        Sni::Fixed(name) => Some(&**name),
        Sni::OfEndpoint => host,
        Sni::None => None,
    };
    match name {
        Some(name) => ServerName::try_from(name.to_owned())
            .map_err(|_| Invalid::new(format!("{name:?} is no name of a server")).at("sni")),
        None if tls.proves_sni => Err(Invalid::new("no name is known that the server could prove").at("sni")),
        // It goes nowhere: without a name in the configuration none is sent, and an address never is.
        None => Ok(ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into())),
    }
}

/// The server of an established connection: what it showed, and by which files that was good.
pub struct ForeignPeer {
    shown: Shown,
    verifier: Verifier,
    name: ServerName<'static>,
}

impl ForeignPeer {
    /// The server of a connection that was made by these files, asking for this name.
    pub fn server(
        connection: &CommonState,
        tls: &Arc<ForeignTls>,
        trust: &Arc<ForeignTrust>,
        name: ServerName<'static>,
    ) -> Option<Self> {
        let shown = Shown::new(connection.peer_certificates()?);
        Some(ForeignPeer { shown, verifier: Verifier { tls: Arc::clone(tls), trust: Arc::clone(trust) }, name })
    }

    /// Whether the handshake would succeed once more, by what the files say by now.
    ///
    /// # Errors
    /// Why it would not.
    pub fn check(&mut self, trust: &Arc<ForeignTrust>, now: SystemTime) -> Result<(), Invalid> {
        if self.accepts_any() {
            return Ok(());
        }
        if trust.is_same(&self.verifier.trust) && !self.shown.has_one_that_ended(now) {
            return Ok(());
        }
        self.verifier.trust = Arc::clone(trust);
        let (leaf, intermediates) = self.shown.split()?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.verifier.verify(leaf, intermediates, &self.name, UnixTime::since_unix_epoch(since_epoch))?;
        self.shown.forget_ended(now);
        Ok(())
    }

    /// When the next certificate that it showed has expired, so that it has to be looked at again.
    pub fn next_check(&self) -> Option<SystemTime> {
        if self.accepts_any() { None } else { self.shown.next_end() }
    }

    fn accepts_any(&self) -> bool {
        self.verifier.tls.material.roots == Roots::Nobody
    }

    /// By which files.
    pub fn tls(&self) -> &Arc<ForeignTls> {
        &self.verifier.tls
    }
}

impl fmt::Debug for ForeignPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignPeer").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Verifier {
    tls: Arc<ForeignTls>,
    trust: Arc<ForeignTrust>,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Invalid> {
        let about = |why: &str| Invalid::new(format!("the certificate of the server: {why}"));
        if let Some(anchors) = &self.trust.anchors {
            let depth = match self.tls.only_leaf_may_be_revoked {
                true => RevocationCheckDepth::EndEntity,
                false => RevocationCheckDepth::Chain,
            };
            let trust = Trust { anchors, revoked: &self.trust.revoked, depth };
            let algorithms = &PROVIDER.signature_verification_algorithms;
            trust.verify(leaf, intermediates, Side::Server, now, algorithms).map_err(|why| about(&why))?;
        }
        if self.tls.proves_sni {
            let leaf = EndEntityCert::try_from(leaf).map_err(|error| about(&reason(&error)))?;
            let wrong = |_| about(&format!("it is not that of {}", name.to_str()));
            return leaf.verify_is_valid_for_subject_name(name).map_err(wrong);
        }
        match self.tls.names.as_slice() {
            [] => Ok(()),
            wanted => has_one_of(leaf, wanted).map_err(|invalid| about(&invalid.reason)),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verify(leaf, intermediates, name, now);
        verified.map(|()| ServerCertVerified::assertion()).map_err(|invalid| refused(&invalid))
    }

    signatures!(tls12 and tls13);
}

/// Whether a certificate has one of these names. What cannot be parsed in it, may be any.
pub(super) fn has_one_of(leaf: &[u8], wanted: &[NameTest]) -> Result<(), Invalid> {
    let unreadable = || Invalid::new("a name in it cannot be parsed");
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Invalid::new("it cannot be parsed"))?;
    let mut has = false;
    for extension in certificate.extensions() {
        let names = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => names,
            ParsedExtension::ParseError { .. } => return Err(unreadable()),
            _ => continue,
        };
        for name in &names.general_names {
            let found = match name {
                GeneralName::DNSName(name) => (NameKind::Dns, (*name).to_owned()),
                GeneralName::URI(uri) => (NameKind::Uri, (*uri).to_owned()),
                GeneralName::RFC822Name(name) => (NameKind::Email, (*name).to_owned()),
                GeneralName::IPAddress(bytes) => (NameKind::Ip, ip(bytes).ok_or_else(unreadable)?),
                GeneralName::Invalid(..) => return Err(unreadable()),
                _ => continue,
            };
            has |= wanted.iter().any(|test| test.kind == found.0 && fits(&test.test, found.0, &found.1));
        }
    }
    has.then_some(()).ok_or_else(|| {
        let wanted: Vec<String> = wanted.iter().take(3).map(|wanted| format!("{:?}", wanted.test)).collect();
        Invalid::new(format!("it has none of the names that are wanted: {}", wanted.join(", ")))
    })
}

fn ip(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
}

/// Whether a name that is in a certificate passes a test. A wildcard in the certificate is one for whole names only, and
/// stands for one label (RFC 6125, 6.4.3).
fn fits(test: &StringTest, kind: NameKind, found: &str) -> bool {
    match (test, kind) {
        (StringTest::Exact { value, .. }, NameKind::Dns) => {
            let under = |parent: &str| value.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent));
            found.eq_ignore_ascii_case(value)
                || found.strip_prefix("*.").is_some_and(|parent| !value.starts_with('*') && under(parent))
        }
        (StringTest::Exact { value, .. }, NameKind::Ip) => {
            value.parse::<IpAddr>().is_ok_and(|wanted| wanted.to_string() == found)
        }
        (test, _) => test.is_match(found.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_in_a_certificate_stands_for_one_label_of_a_whole_name() {
        let exact = |value: &str| StringTest::Exact { value: value.into(), ignore_case: false };
        let dns = |test: &StringTest, found: &str| fits(test, NameKind::Dns, found);
        for (wanted, found, expected) in [
            ("a.example.com", "A.example.com", true),
            ("a.example.com", "*.example.com", true),
            ("a.b.example.com", "*.example.com", false),
            ("example.com", "*.example.com", false),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "*.com", false),
            ("a.example.com", "b.example.com", false),
        ] {
            assert_eq!(dns(&exact(wanted), found), expected, "{wanted} {found}");
        }
        let suffix = StringTest::Suffix { value: ".example.com".into(), ignore_case: false };
        assert!(dns(&suffix, "a.b.example.com") && !dns(&suffix, "example.com"));
        assert!(fits(&exact("0:0::1"), NameKind::Ip, "::1") && !fits(&exact("::2"), NameKind::Ip, "::1"));
        assert!(!fits(&exact("A"), NameKind::Uri, "a"));
    }
}
