//! Foreign trust domains: whose roots vouch for their identities, in files that are followed while the server runs.
//!
//! Each domain has its own roots, and they vouch for nobody else. What cannot be used leaves in force what the file said before, and
//! so does what is older than that: whoever puts it back lets in again who was revoked since. Where there is a state directory, what
//! is in force is kept there, so that a restart changes nothing of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail, ensure};
use arc_swap::ArcSwap;
use mesh_core::identity::TrustDomain;
use mesh_core::tls::{NewestLists, Revoked, SpiffeBundle, TrustBundles, pem_error};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::authority::{parsed, pem, since_epoch, validity};
use super::files::{self, Present};
use super::plugged::{GONE, crl_pem, read};
use super::{FOREIGN_BYTES, lock};

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
    /// Where what is in force is kept.
    kept: Option<PathBuf>,
    /// What was in it last, or why it could not be read.
    seen: Option<Result<Vec<u8>, String>>,
    /// What it said when it was good last.
    good: Option<Good>,
    /// The largest number that was in force.
    sequence: Option<u64>,
    /// How new the lists of revoked certificates were that were in force.
    newest: NewestLists,
    problem: Option<String>,
    /// Whether what is in force is kept, or why it cannot be.
    written: Option<Result<(), String>>,
}

struct Good {
    roots: Vec<CertificateDer<'static>>,
    lists: Revoked,
    revoked: String,
    sequence: Option<u64>,
    /// How much of an answer to a workload it takes.
    size: usize,
}

/// What is in force of a domain, as a state directory has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    trust_domain: String,
    spiffe_sequence: Option<u64>,
    /// In PEM.
    roots: String,
    /// In PEM.
    revoked: String,
}

impl Federation {
    /// Follows these files, and keeps what is in force in a state directory.
    ///
    /// # Errors
    /// Where a domain is named twice, or is the mesh's own.
    pub(super) fn new(
        files: Vec<(TrustDomain, PathBuf)>,
        state: Option<&Path>,
        own: &TrustDomain,
    ) -> anyhow::Result<Federation> {
        let mut followed: Vec<Followed> = Vec::new();
        for (domain, path) in files {
            ensure!(domain != *own, "{domain} is the mesh's own trust domain: its authority alone vouches for it");
            ensure!(
                followed.iter().all(|other| other.domain != domain),
                "{domain} has two files; put all roots into one"
            );
            let kept = state.map(|state| state.join(format!("last-good-trust-{domain}.json")));
            followed.push(Followed {
                domain,
                path,
                kept,
                seen: None,
                good: None,
                sequence: None,
                newest: NewestLists::default(),
                problem: None,
                written: None,
            });
        }
        Ok(Federation { followed: Mutex::new(followed), in_force: ArcSwap::default() })
    }

    /// Looks at the files, and tells whether other roots are in force than before. `own` are those of the mesh.
    pub(super) fn look(&self, own: &[CertificateDer<'static>], now: SystemTime) -> bool {
        let mut followed = lock(&self.followed);
        if pass(&mut followed, own, now) {
            // What stood in the way of others may be gone.
            followed.iter_mut().filter(|one| one.problem.is_some()).for_each(|one| one.seen = None);
            pass(&mut followed, own, now);
        }
        // Before it counts, so that nobody who was refused is let in after a crash.
        followed.iter_mut().for_each(Followed::keep);
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

/// Looks at each file once, and tells whether one says something else that is good.
fn pass(followed: &mut [Followed], own: &[CertificateDer<'static>], now: SystemTime) -> bool {
    let mut is_news = false;
    for index in 0..followed.len() {
        let (before, rest) = followed.split_at_mut(index);
        let Some((one, after)) = rest.split_first_mut() else { break };
        let others: Vec<(&str, &Good)> = before
            .iter()
            .chain(&*after)
            .filter_map(|other| Some((other.domain.as_str(), other.good.as_ref()?)))
            .collect();
        let found = read(&one.path);
        if one.seen.as_ref() == Some(&found) {
            continue;
        }
        if one.seen.is_none() && one.good.is_none() {
            one.restore(&others, own, now);
        }
        let taken = found.clone().map_err(anyhow::Error::msg).and_then(|text| one.good_of(&text, &others, own, now));
        one.seen = Some(found);
        let problem = taken.as_ref().err().map(|why| one.told(&format!("{why:#}")));
        match taken {
            Ok(good) => {
                tracing::info!(trust_domain = one.domain.as_str(), roots = good.roots.len(), "a foreign trust domain");
                one.newest.note(&good.lists);
                one.sequence = one.sequence.max(good.sequence);
                (one.good, one.written, is_news) = (Some(good), None, true);
            }
            Err(_) if problem != one.problem => tracing::error!("{}", problem.as_deref().unwrap_or_default()),
            Err(_) => {}
        }
        one.problem = problem;
    }
    is_news
}

impl Good {
    /// What workloads would make of it is tried.
    fn new(
        domain: &TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        (lists, revoked): (Revoked, String),
        sequence: Option<u64>,
    ) -> anyhow::Result<Good> {
        let text: String = roots.iter().map(|root| pem(root)).collect();
        if !roots.is_empty() {
            let tried = TrustBundles::new().add_pem(domain.clone(), text.as_bytes());
            tried.map_err(|invalid| anyhow!("{invalid}"))?;
        }
        let size = domain.as_str().len() + text.len() + revoked.len();
        Ok(Good { roots, lists, revoked, sequence, size })
    }

    /// Verifiers do not look at when a root ends.
    fn live(&self, now: SystemTime) -> impl Iterator<Item = &CertificateDer<'static>> {
        let now = since_epoch(now);
        self.roots.iter().filter(move |root| validity(root).is_ok_and(|(_, ends)| ends > now))
    }

    /// Whether it may stand beside the roots of others.
    fn check_beside(&self, others: &[(&str, &Good)], own: &[CertificateDer<'static>]) -> anyhow::Result<()> {
        let of_others = others.iter().map(|(domain, good)| (*domain, &good.roots[..]));
        for (other, roots) in of_others.chain([("the mesh", own)]) {
            let key = |certificate: &CertificateDer<'_>| Some(parsed(certificate).ok()?.public_key().raw.to_vec());
            let is_shared = |root| roots.iter().any(|other| key(other) == key(root));
            ensure!(
                !self.roots.iter().any(is_shared),
                "a root in it is one of {other}, too, so that either could name workloads of the other"
            );
        }
        let size = others.iter().map(|(_, good)| good.size).sum::<usize>() + self.size;
        ensure!(
            size <= FOREIGN_BYTES,
            "with it, the roots and the lists of revoked certificates of foreign trust domains have {size} bytes, and \
             {FOREIGN_BYTES} fit into what a workload is told"
        );
        Ok(())
    }
}

impl Followed {
    fn good_of(
        &self,
        text: &[u8],
        others: &[(&str, &Good)],
        own: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> anyhow::Result<Good> {
        let good = parse(text, &self.domain, now)?;
        good.check_beside(others, own)?;
        // Without roots it trusts nobody, be it the latest or not.
        if good.roots.is_empty() {
            return Ok(good);
        }
        match (self.sequence, good.sequence) {
            (Some(before), None) => {
                bail!("it has no spiffe_sequence, and that in force is {before}: nobody knows which is the later one")
            }
            (Some(before), Some(sequence)) if sequence < before => {
                bail!("its spiffe_sequence, {sequence}, is smaller than that in force, {before}")
            }
            _ => {}
        }
        self.newest.check(&good.lists).map_err(|invalid| anyhow!("{invalid}"))?;
        Ok(good)
    }

    /// Puts in force what was kept, as long as nothing is known of the file. It counts beyond its end.
    fn restore(&mut self, others: &[(&str, &Good)], own: &[CertificateDer<'static>], now: SystemTime) {
        let Some(kept) = self.kept.as_deref() else { return };
        let text = match read(kept) {
            Err(why) if why == GONE => return,
            text => text.map_err(anyhow::Error::msg),
        };
        let restored = text.and_then(|text| {
            let kept: Kept = serde_json::from_slice(&text)?;
            ensure!(kept.trust_domain == self.domain.as_str(), "it is of {}", kept.trust_domain);
            let roots = CertificateDer::pem_slice_iter(kept.roots.as_bytes()).collect::<Result<Vec<_>, _>>()?;
            let lists = Revoked::from_pem(kept.revoked.as_bytes()).map_err(|invalid| anyhow!("{invalid}"))?;
            // Whatever becomes of the roots, nothing that is older takes their place.
            self.newest.note(&lists);
            self.sequence = kept.spiffe_sequence;
            let good = Good::new(&self.domain, roots, (lists, kept.revoked), kept.spiffe_sequence)?;
            good.check_beside(others, own)?;
            Ok(good)
        });
        match restored {
            Ok(good) if good.live(now).next().is_none() => {}
            Ok(good) => (self.good, self.written) = (Some(good), Some(Ok(()))),
            Err(why) => tracing::error!("{} cannot be used: {why:#}", kept.display()),
        }
    }

    /// Keeps what is in force for the next start.
    fn keep(&mut self) {
        let (Some(kept), Some(good)) = (&self.kept, &self.good) else { return };
        if self.written == Some(Ok(())) {
            return;
        }
        let text = Kept {
            trust_domain: self.domain.to_string(),
            spiffe_sequence: self.sequence,
            roots: good.roots.iter().map(|root| pem(root)).collect(),
            revoked: good.revoked.clone(),
        };
        let written = serde_json::to_vec(&text).map_err(std::io::Error::other);
        let written = written.and_then(|text| files::write(kept, &text, Present::Replace)).map_err(|error| {
            format!(
                "cannot write {}: after a restart, an older {} would be taken: {error}",
                kept.display(),
                self.path.display()
            )
        });
        if let Err(why) = &written
            && self.written.as_ref() != Some(&written)
        {
            tracing::error!("{why}");
        }
        self.written = Some(written);
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
            Some(good) if good.lists.first_end().is_some_and(|end| end < now) => Some(
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
            problem: self.problem.clone().or_else(stale).or_else(|| self.written.clone()?.err()),
        }
    }
}

/// Roots in PEM, with lists of revoked certificates beside them, or a bundle in SPIFFE's form.
fn parse(text: &[u8], domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Good> {
    let invalid = |invalid: mesh_core::error::Invalid| anyhow!("{invalid}");
    let is_json = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let good = if is_json {
        let bundle = SpiffeBundle::from_json(text).map_err(invalid)?;
        Good::new(domain, bundle.roots, Default::default(), bundle.sequence)?
    } else {
        let roots = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|error| anyhow!("malformed PEM: {}", pem_error(&error)))?;
        let lists = Revoked::from_pem(text).map_err(invalid)?;
        ensure!(!roots.is_empty(), "there is no certificate in it, and no bundle in SPIFFE's form (JSON)");
        lists.check(now).map_err(invalid)?;
        Good::new(domain, roots, (lists, crl_pem(text)?), None)?
    };
    if !good.roots.is_empty() {
        ensure!(good.live(now).next().is_some(), "all its certificates have expired");
    }
    Ok(good)
}
