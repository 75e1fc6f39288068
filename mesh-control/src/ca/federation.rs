//! Foreign trust domains: whose roots vouch for their identities, in files that are followed while the server runs.
//!
//! Each domain has its own roots, and they vouch for nobody else. What cannot be used leaves in force what the file said before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail, ensure};
use arc_swap::ArcSwap;
use mesh_core::identity::TrustDomain;
use mesh_core::tls::{Revoked, SpiffeBundle, TrustBundles, pem_error};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::authority::{parsed, pem, since_epoch, validity};
use super::lock;
use super::plugged::{crl_pem, read};

/// The roots of a foreign trust domain, as a report tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustBundle {
    /// Whose identities they vouch for.
    pub trust_domain: TrustDomain,
    /// Where they are read from.
    pub file: PathBuf,
    /// How many are in force.
    pub roots: usize,
    /// When the last of them ends.
    pub ends: Option<SystemTime>,
    /// Its number, where the file has SPIFFE's form.
    pub sequence: Option<u64>,
    /// Why what is in force is not what is there, or nothing is.
    pub problem: Option<String>,
}

/// In PEM, by trust domain.
pub(super) type Roots = Arc<BTreeMap<String, String>>;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Federation {
    followed: Mutex<Vec<Followed>>,
    in_force: ArcSwap<BTreeMap<String, String>>,
}

/// A file.
struct Followed {
    domain: TrustDomain,
    path: PathBuf,
    /// What was in it last, or why it could not be read.
    seen: Option<Result<Vec<u8>, String>>,
    /// What it said when it was good last.
    good: Option<Good>,
    problem: Option<String>,
}

struct Good {
    roots: Vec<CertificateDer<'static>>,
    revoked: String,
    revoked_end: Option<SystemTime>,
    sequence: Option<u64>,
}

impl Federation {
    /// Follows these files.
    ///
    /// # Errors
    /// Where a domain is named twice, or is the mesh's own.
    pub(super) fn new(files: Vec<(TrustDomain, PathBuf)>, own: &TrustDomain) -> anyhow::Result<Federation> {
        let mut followed: Vec<Followed> = Vec::new();
        for (domain, path) in files {
            ensure!(domain != *own, "{domain} is the mesh's own trust domain: its authority alone vouches for it");
            ensure!(
                followed.iter().all(|other| other.domain != domain),
                "{domain} has two files; put all roots into one"
            );
            followed.push(Followed { domain, path, seen: None, good: None, problem: None });
        }
        Ok(Federation { followed: Mutex::new(followed), in_force: ArcSwap::default() })
    }

    /// Looks at the files, and tells whether other roots are in force than before. `own` are those of the mesh.
    pub(super) fn look(&self, own: &[CertificateDer<'static>], now: SystemTime) -> bool {
        let mut followed = lock(&self.followed);
        for index in 0..followed.len() {
            let (before, rest) = followed.split_at_mut(index);
            let Some((one, after)) = rest.split_first_mut() else { break };
            let found = read(&one.path);
            if one.seen.as_ref() == Some(&found) {
                continue;
            }
            let others = before
                .iter()
                .chain(&*after)
                .filter_map(|other| Some((other.domain.as_str(), &other.good.as_ref()?.roots[..])));
            let others: Vec<_> = others.chain([("the mesh", own)]).collect();
            let taken = found.clone().map_err(anyhow::Error::msg).and_then(|text| one.good_of(&text, &others, now));
            one.seen = Some(found);
            one.problem = taken.as_ref().err().map(|why| one.told(&format!("{why:#}")));
            match (taken, &one.problem) {
                (Ok(good), _) => {
                    tracing::info!(
                        trust_domain = one.domain.as_str(),
                        roots = good.roots.len(),
                        "a foreign trust domain"
                    );
                    one.good = Some(good);
                }
                (Err(_), problem) => tracing::error!("{}", problem.as_deref().unwrap_or_default()),
            }
        }
        let in_force = followed.iter().filter_map(|one| {
            let good = one.good.as_ref()?;
            let roots: String = good.live(now).map(|root| pem(root)).collect();
            (!roots.is_empty()).then(|| (one.domain.to_string(), roots + &good.revoked))
        });
        let in_force: BTreeMap<String, String> = in_force.collect();
        let is_news = **self.in_force.load() != in_force;
        if is_news {
            self.in_force.store(Arc::new(in_force));
        }
        is_news
    }

    /// The roots in force.
    pub(super) fn roots(&self) -> Roots {
        self.in_force.load_full()
    }

    pub(super) fn report(&self, now: SystemTime) -> Vec<TrustBundle> {
        lock(&self.followed).iter().map(|one| one.report(now)).collect()
    }
}

impl Good {
    /// Verifiers do not look at when a root ends.
    fn live(&self, now: SystemTime) -> impl Iterator<Item = &CertificateDer<'static>> {
        let now = since_epoch(now);
        self.roots.iter().filter(move |root| validity(root).is_ok_and(|(_, ends)| ends > now))
    }
}

impl Followed {
    fn good_of(&self, text: &[u8], others: &[(&str, &[CertificateDer<'_>])], now: SystemTime) -> anyhow::Result<Good> {
        let good = parse(text, &self.domain, now)?;
        for root in &good.roots {
            let key = |certificate: &CertificateDer<'_>| Some(parsed(certificate).ok()?.public_key().raw.to_vec());
            let shared = others.iter().find(|(_, roots)| roots.iter().any(|other| key(other) == key(root)));
            if let Some((other, _)) = shared {
                bail!("a root in it is one of {other}, too, so that either could name workloads of the other");
            }
        }
        let before = self.good.as_ref().and_then(|good| good.sequence);
        if let (Some(before), Some(sequence)) = (before, good.sequence) {
            ensure!(sequence >= before, "its spiffe_sequence, {sequence}, is smaller than that in force, {before}");
        }
        Ok(good)
    }

    /// What is wrong with the file, and what is in force.
    fn told(&self, why: &str) -> String {
        let (path, domain) = (self.path.display(), &self.domain);
        match self.good {
            Some(_) => format!("{path}: {why}; the roots of {domain} are those that it had before"),
            None => format!("{path}: {why}; nobody of {domain} is trusted"),
        }
    }

    fn report(&self, now: SystemTime) -> TrustBundle {
        let live = |good: &Good| good.live(now).cloned().collect::<Vec<_>>();
        let roots = self.good.as_ref().map(live).unwrap_or_default();
        let ends = roots.iter().filter_map(|root| Some(validity(root).ok()?.1)).max();
        let stale = || match &self.good {
            Some(good) if good.roots.is_empty() => Some("the trust domain has revoked all its roots"),
            Some(_) if roots.is_empty() => Some("all roots in it have expired"),
            Some(good) if good.revoked_end.is_some_and(|end| end < now) => Some(
                "a list of revoked certificates in it has expired: whom it names stays revoked, and nobody knows who else is",
            ),
            _ => None,
        };
        let stale = || stale().map(|why| format!("{}: {why}", self.path.display()));
        TrustBundle {
            trust_domain: self.domain.clone(),
            file: self.path.clone(),
            roots: roots.len(),
            ends: ends.map(|ends| SystemTime::UNIX_EPOCH + Duration::from_secs(ends)),
            sequence: self.good.as_ref().and_then(|good| good.sequence),
            problem: self.problem.clone().or_else(stale),
        }
    }
}

/// Roots in PEM, with lists of revoked certificates beside them, or a bundle in SPIFFE's form.
fn parse(text: &[u8], domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Good> {
    let invalid = |invalid: mesh_core::error::Invalid| anyhow!("{invalid}");
    let is_json = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let good = if is_json {
        let bundle = SpiffeBundle::from_json(text).map_err(invalid)?;
        Good { roots: bundle.roots, revoked: String::new(), revoked_end: None, sequence: bundle.sequence }
    } else {
        let roots = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|error| anyhow!("malformed PEM: {}", pem_error(&error)))?;
        ensure!(!roots.is_empty(), "there is no certificate in it, and no bundle in SPIFFE's form (JSON)");
        let revoked = Revoked::from_pem(text).map_err(invalid)?;
        revoked.check(now).map_err(invalid)?;
        Good { roots, revoked: crl_pem(text)?, revoked_end: revoked.first_end(), sequence: None }
    };
    if !good.roots.is_empty() {
        ensure!(good.live(now).next().is_some(), "all its certificates have expired");
        // What workloads would make of it.
        let text: String = good.roots.iter().map(|root| pem(root)).collect();
        TrustBundles::new().add_pem(domain.clone(), text.as_bytes()).map_err(invalid)?;
    }
    Ok(good)
}
