//! The certificate authority in status reports and metrics: when it ends, whom it has revoked, whom it trusts besides.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::ca::CertificateAuthority;
use crate::serve::clients::fleet::unix;
use crate::serve::clients::metrics::{family, single};

/// The certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuthorityStatus {
    /// Whose identities it vouches for.
    pub trust_domain: String,
    /// Unix time in seconds at which the root ends that it signs under.
    pub root_expires: u64,
    /// Unix time in seconds at which the first certificate of its chain ends.
    pub chain_expires: u64,
    /// Why what is in the files of a plugged-in authority is not in force, or that a certificate of it ends soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Lists of revoked certificates, where there are some, or should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<RevokedStatus>,
    /// The foreign trust domains whose identities are trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_bundles: Vec<TrustBundleStatus>,
    /// Whom Envoys are not told to trust, and why, where there are some or may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<String>,
}

/// Which foreign roots an Envoy is not told: it looks at lists of revoked certificates, or at the trust domain that a root is for, and
/// not at both. What it is not told it does not trust.
pub(crate) fn untold<'f>(revoked: &str, foreign: &'f BTreeMap<String, String>) -> impl Iterator<Item = &'f str> {
    let has_lists = !revoked.is_empty();
    foreign.iter().filter(move |(_, pem)| has_lists || pem.contains(LIST)).map(|(domain, _)| domain.as_str())
}

/// The same in words.
pub(crate) fn told_of(authority: &CertificateAuthority) -> Option<String> {
    let (own, foreign) = authority.trusted();
    let untold: Vec<_> = untold(&own.revoked_pem(), &foreign).collect();
    (!untold.is_empty()).then(|| {
        format!(
            "Envoys trust nobody of {}: they look at lists of revoked certificates, or at the trust domain that a root is for, and \
             not at both, so that ROOTCA has none of these roots; leave ca-crl.pem, the lists in the bundle, or --trust-bundle out",
            untold.join(", ")
        )
    })
}

/// What a list of revoked certificates is called in PEM.
const LIST: &str = "X509 CRL";

impl AuthorityStatus {
    /// What there is to say of an authority, and of the secrets of Envoys, where there are some.
    pub(crate) fn of(authority: &CertificateAuthority, has_envoys: bool, now: SystemTime) -> AuthorityStatus {
        let (root_expires, chain_expires) = authority.ends();
        let revoked = authority.revocation(now).map(|lists| RevokedStatus {
            file: lists.file.display().to_string(),
            lists: lists.lists,
            expires: lists.ends.map(unix),
            problem: lists.problem,
        });
        let trust_bundles = authority.federated(now).into_iter().map(|bundle| TrustBundleStatus {
            trust_domain: bundle.trust_domain.to_string(),
            source: bundle.source,
            roots: bundle.roots,
            expires: bundle.ends.map(unix),
            sequence: bundle.sequence,
            problem: bundle.problem,
        });
        let (trust_domain, trust_bundles) = (authority.trust_domain().to_string(), trust_bundles.collect());
        let secrets = has_envoys.then(|| told_of(authority)).flatten();
        let problem = authority.fault(now);
        AuthorityStatus { trust_domain, root_expires, chain_expires, problem, revoked, trust_bundles, secrets }
    }

    /// Appends it as Prometheus text, by Istio's names where it has them.
    pub(crate) fn write(&self, out: &mut String, now: SystemTime) {
        let (revoked, trust_bundles) = (&self.revoked, &self.trust_bundles);
        let now = unix(now);
        for (name, what, ends) in
            [("root_cert", "root", self.root_expires), ("cert_chain", "chain", self.chain_expires)]
        {
            let timestamp = format!("citadel_server_{name}_expiry_timestamp");
            single(out, &timestamp, "gauge", &format!("When the {what} that signs expires, in Unix time."), ends);
            let seconds = format!("citadel_server_{name}_expiry_seconds");
            let left = ends.saturating_sub(now);
            single(out, &seconds, "gauge", &format!("Seconds until the {what} that signs expires."), left);
        }
        let help = "Whether the files of a plugged-in authority are not in force, or a certificate of it ends soon.";
        single(out, "mesh_ca_wrong", "gauge", help, self.problem.is_some().into());
        let lists = revoked.as_ref().map_or(0, |revoked| revoked.lists as u64);
        single(out, "mesh_ca_crl_lists", "gauge", "Lists of revoked certificates in force.", lists);
        let is_wrong = revoked.as_ref().is_some_and(|revoked| revoked.problem.is_some());
        let help = "Whether lists of revoked certificates are missing, cannot be used or have expired.";
        single(out, "mesh_ca_crl_wrong", "gauge", help, is_wrong.into());
        let help = "Whether Envoys are not told of all whom to trust.";
        single(out, "mesh_sds_trust_wrong", "gauge", help, self.secrets.is_some().into());
        if let Some(expires) = revoked.as_ref().and_then(|revoked| revoked.expires) {
            let help = "When the first list of revoked certificates expires, in Unix time.";
            single(out, "mesh_ca_crl_expiry_timestamp", "gauge", help, expires);
        }
        if trust_bundles.is_empty() {
            return;
        }
        let name = "mesh_trust_bundle_wrong";
        family(
            out,
            name,
            "gauge",
            "Whether the roots of a foreign trust domain are not those in its file or at its endpoint, or none are.",
        );
        for TrustBundleStatus { trust_domain, problem, .. } in trust_bundles {
            let _ = writeln!(out, "{name}{{trust_domain=\"{trust_domain}\"}} {}", u8::from(problem.is_some()));
        }
        let name = "mesh_trust_bundle_expiry_timestamp";
        family(
            out,
            name,
            "gauge",
            "When the last root of a foreign trust domain expires, in Unix time; 0 without one.",
        );
        for TrustBundleStatus { trust_domain, expires, .. } in trust_bundles {
            let _ = writeln!(out, "{name}{{trust_domain=\"{trust_domain}\"}} {}", expires.unwrap_or_default());
        }
    }

    /// All that keeps it, or will keep it, from signing, trusting and revoking as it should.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        let revoked = self.revoked.iter().filter_map(|revoked| revoked.problem.as_ref());
        let bundles = self.trust_bundles.iter().filter_map(|bundle| bundle.problem.as_ref());
        let revoked = revoked.map(|problem| format!("revoked certificates: {problem}"));
        let bundles = bundles.map(|problem| format!("trust bundle: {problem}"));
        let own = self.problem.iter().map(|problem| format!("certificate authority: {problem}"));
        own.chain(revoked).chain(bundles).chain(self.secrets.iter().map(|problem| format!("secrets: {problem}")))
    }
}

/// The roots of a foreign trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrustBundleStatus {
    /// Whose identities they vouch for.
    pub trust_domain: String,
    /// Where they are read from: a file, or a URL.
    pub source: String,
    /// How many are in force.
    pub roots: usize,
    /// Unix time in seconds at which the last of them ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// `spiffe_sequence` of the bundle in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Why what is in force is not what is there, or nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Lists of revoked certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RevokedStatus {
    /// Where they are read from.
    pub file: String,
    /// How many are in force.
    pub lists: usize,
    /// Unix time in seconds at which the first of them ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Why those in force are not those that should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
