//! Foreign trust domains: whose roots vouch for their identities, in files that are followed while the server runs, or at endpoints
//! that are asked again and again (see [`endpoint`](super::endpoint)).
//!
//! Each domain has its own roots, and they vouch for nobody else. What cannot be used leaves in force what was said before, and
//! so does what is older than that: whoever puts it back lets in again who was revoked since. Where there is a state directory, what
//! is in force is kept there, so that a restart changes nothing of it. A file beside an endpoint counts until the first fetch.
//!
//! No domain can hold up another: neither by a copy of a root that the other one is about to use, nor by what its bundle weighs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail, ensure};
use arc_swap::ArcSwap;
use mesh_core::identity::TrustDomain;
use mesh_core::tls::{NewestLists, Revoked, SpiffeBundle, TrustBundles, pem_error};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::authority::{parsed, pem, since_epoch, validity};
use super::endpoint::{BundleEndpoint, EndpointProfile};
use super::files::{self, Present};
use super::plugged::{GONE, crl_pem, read};
use super::{FOREIGN_BYTES, lock};

/// The roots of a foreign trust domain, as a report tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustBundle {
    /// Whose identities they vouch for.
    pub trust_domain: TrustDomain,
    /// Where they are read from: a file, or a URL.
    pub source: String,
    /// How many are in force.
    pub roots: usize,
    /// When the last of them ends.
    pub ends: Option<SystemTime>,
    /// Its number, where it has SPIFFE's form.
    pub sequence: Option<u64>,
    /// Why what is in force is not what is there, or nothing is; or that another domain has a root of it, too.
    pub problem: Option<String>,
}

/// In PEM, by trust domain.
pub(super) type Roots = Arc<BTreeMap<String, String>>;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Federation {
    followed: Mutex<Vec<Followed>>,
    in_force: ArcSwap<BTreeMap<String, String>>,
    /// Something was fetched.
    offered: Notify,
}

/// What is somewhere, or why it could not be read.
type Found = Result<Vec<u8>, String>;

/// A trust domain, with a file, an endpoint, or both.
struct Followed {
    domain: TrustDomain,
    file: Option<PathBuf>,
    endpoint: Option<BundleEndpoint>,
    /// What was fetched last.
    fetched: Option<Found>,
    /// Whether what is in force was fetched: the file does not count any more.
    is_fetched: bool,
    /// Where what is in force is kept.
    kept: Option<PathBuf>,
    is_restored: bool,
    /// What was looked at last.
    seen: Option<Found>,
    /// What was said when it was good last.
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
    keys: Vec<Vec<u8>>,
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
    #[serde(default)]
    is_fetched: bool,
}

impl Federation {
    /// Follows these files and endpoints, and keeps what is in force in a state directory.
    ///
    /// # Errors
    /// Where a domain is named twice, or is the mesh's own; where nothing would vouch for an endpoint.
    pub(super) fn new(
        files: Vec<(TrustDomain, PathBuf)>,
        endpoints: Vec<BundleEndpoint>,
        state: Option<&Path>,
        own: &TrustDomain,
    ) -> anyhow::Result<Federation> {
        let mut followed: Vec<Followed> = Vec::new();
        let is_own = |domain: &TrustDomain| {
            ensure!(domain != own, "{domain} is the mesh's own trust domain: its authority alone vouches for it");
            Ok(())
        };
        for (domain, path) in files {
            is_own(&domain)?;
            ensure!(
                followed.iter().all(|other| other.domain != domain),
                "{domain} has two files; put all roots into one"
            );
            followed.push(Followed::new(domain, Some(path), state));
        }
        for endpoint in endpoints {
            let domain = endpoint.trust_domain.clone();
            is_own(&domain)?;
            let known = followed.iter().position(|other| other.domain == domain).unwrap_or_else(|| {
                followed.push(Followed::new(domain.clone(), None, state));
                followed.len() - 1
            });
            let Some(one) = followed.get_mut(known) else { continue };
            ensure!(one.endpoint.is_none(), "{domain} has two endpoints");
            one.endpoint = Some(endpoint);
        }
        for one in &followed {
            let Some(BundleEndpoint { profile: EndpointProfile::Spiffe(server), .. }) = &one.endpoint else { continue };
            let vouches = |other: &Followed| other.domain.as_str() == server.trust_domain();
            // One's own bundle cannot vouch for where it is fetched first.
            let is_known = |other: &Followed| vouches(other) && (other.domain != one.domain || other.file.is_some());
            ensure!(
                server.trust_domain() == own.as_str() || followed.iter().any(is_known),
                "nothing vouches for {server}, where the bundle of {} is: a first bundle of {} is needed",
                one.domain,
                server.trust_domain()
            );
        }
        Ok(Federation { followed: Mutex::new(followed), in_force: ArcSwap::default(), offered: Notify::new() })
    }

    /// All endpoints.
    pub(super) fn endpoints(&self) -> Vec<BundleEndpoint> {
        lock(&self.followed).iter().filter_map(|one| one.endpoint.clone()).collect()
    }

    /// What was fetched of a domain, for the next look.
    pub(super) fn offer(&self, domain: &TrustDomain, fetched: Found) {
        let mut followed = lock(&self.followed);
        let Some(one) = followed.iter_mut().find(|one| one.domain == *domain) else { return };
        match &fetched {
            Ok(_) => tracing::debug!(trust_domain = domain.as_str(), url = one.source(), "a bundle was fetched"),
            Err(why) if one.fetched.as_ref() != Some(&fetched) => {
                tracing::warn!(trust_domain = domain.as_str(), "a bundle cannot be fetched: {why}");
            }
            Err(_) => {}
        }
        one.fetched = Some(fetched);
        drop(followed);
        self.offered.notify_one();
    }

    /// Waits for what was fetched.
    pub(super) async fn offered(&self) {
        self.offered.notified().await;
    }

    /// Looks at the files, and at what was fetched, and tells whether other roots are in force than before. `own` are those of the mesh.
    pub(super) fn look(&self, own: &[CertificateDer<'static>], now: SystemTime) -> bool {
        let mut followed = lock(&self.followed);
        if pass(&mut followed, own, now) {
            // What stood in the way of others may be gone.
            for one in followed.iter_mut().filter(|one| one.problem.is_some()) {
                (one.seen, one.is_restored) = (None, false);
            }
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
        let followed = lock(&self.followed);
        let report = |one: &Followed| {
            let mut report = one.report(now);
            report.problem = report.problem.or_else(|| one.shares_with(&followed));
            report
        };
        followed.iter().map(report).collect()
    }
}

/// Looks at each once, and tells whether one says something else that is good.
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
        if !std::mem::replace(&mut one.is_restored, true) && one.good.is_none() {
            one.restore(&others, own, now);
        }
        let Some((found, is_fetched)) = one.found().filter(|(found, _)| one.seen.as_ref() != Some(found)) else {
            continue;
        };
        let taken = found
            .clone()
            .map_err(anyhow::Error::msg)
            .and_then(|text| one.good_of(&text, is_fetched, &others, own, now));
        one.seen = Some(found);
        let place = match (&one.file, is_fetched) {
            (Some(file), false) => file.display().to_string(),
            _ => one.source(),
        };
        let problem = taken.as_ref().err().map(|why| one.told(&format!("{place}: {why:#}")));
        match taken {
            Ok(good) => {
                tracing::info!(trust_domain = one.domain.as_str(), roots = good.roots.len(), "a foreign trust domain");
                one.newest.note(&good.lists);
                one.sequence = one.sequence.max(good.sequence);
                (one.good, one.is_fetched, one.written, is_news) = (Some(good), is_fetched, None, true);
            }
            Err(_) if problem != one.problem => tracing::error!("{}", problem.as_deref().unwrap_or_default()),
            Err(_) => {}
        }
        one.problem = problem;
    }
    is_news
}

/// The public keys of roots.
fn keys(roots: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    roots.iter().filter_map(|root| Some(parsed(root).ok()?.public_key().raw.to_vec())).collect()
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
        Ok(Good { keys: keys(&roots), roots, lists, revoked, sequence, size })
    }

    fn has_one_of(&self, keys: &[Vec<u8>]) -> bool {
        self.keys.iter().any(|key| keys.contains(key))
    }

    /// Verifiers do not look at when a root ends.
    fn live(&self, now: SystemTime) -> impl Iterator<Item = &CertificateDer<'static>> {
        let now = since_epoch(now);
        self.roots.iter().filter(move |root| validity(root).is_ok_and(|(_, ends)| ends > now))
    }

    /// Whether it may stand beside the roots of others. Where it has a root of those that are in force for its domain, it is that
    /// domain's next bundle, and taken whoever else has copied a root of it: otherwise one domain could keep another one from
    /// replacing its roots. A copy gives whoever made it nothing: it lets the other one name its workloads.
    fn check_beside(
        &self,
        in_force: Option<&Good>,
        others: &[(&str, &Good)],
        own: &[CertificateDer<'static>],
    ) -> anyhow::Result<()> {
        let goes_on = in_force.is_some_and(|before| self.has_one_of(&before.keys));
        let (own, of_others) = (keys(own), others.iter().filter(|_| !goes_on));
        for (other, keys) in of_others.map(|(domain, good)| (*domain, &good.keys)).chain([("the mesh", &own)]) {
            ensure!(
                !self.has_one_of(keys),
                "a root in it is one of {other}, too, so that either could name workloads of the other"
            );
        }
        let size = others.iter().map(|(_, good)| good.size).sum::<usize>() + self.size;
        // What grows beside others leaves free as much as it takes, so that there is room for what another one adds.
        let grows = in_force.is_none_or(|before| self.size > before.size);
        let spare = if grows && !others.is_empty() { self.size } else { 0 };
        ensure!(
            size + spare <= FOREIGN_BYTES,
            "it has {} bytes, and with it, the roots and the lists of revoked certificates of foreign trust domains have {size}; \
             {FOREIGN_BYTES} fit into what a workload is told, and what grows has to leave free as much as it takes",
            self.size
        );
        Ok(())
    }
}

impl Followed {
    fn new(domain: TrustDomain, file: Option<PathBuf>, state: Option<&Path>) -> Followed {
        let kept = state.map(|state| state.join(format!("last-good-trust-{domain}.json")));
        Followed {
            domain,
            file,
            endpoint: None,
            fetched: None,
            is_fetched: false,
            kept,
            is_restored: false,
            seen: None,
            good: None,
            sequence: None,
            newest: NewestLists::default(),
            problem: None,
            written: None,
        }
    }

    /// What there is to look at, and whether it was fetched. A file beside an endpoint counts until the first fetch.
    fn found(&self) -> Option<(Found, bool)> {
        match (&self.fetched, &self.file) {
            (Some(Ok(text)), _) => Some((Ok(text.clone()), true)),
            (_, Some(file)) if !self.is_fetched => Some((read(file), false)),
            _ => None,
        }
    }

    /// Where it is said who vouches for the domain.
    fn source(&self) -> String {
        match (&self.endpoint, &self.file) {
            (Some(endpoint), _) => endpoint.url.to_string(),
            (None, file) => file.iter().map(|file| file.display().to_string()).collect(),
        }
    }

    fn good_of(
        &self,
        text: &[u8],
        is_fetched: bool,
        others: &[(&str, &Good)],
        own: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> anyhow::Result<Good> {
        let good = parse(text, &self.domain, now)?;
        good.check_beside(self.good.as_ref(), others, own)?;
        // Without roots it trusts nobody, be it the latest or not.
        if good.roots.is_empty() {
            return Ok(good);
        }
        // The servers behind one endpoint may number otherwise what says the same.
        let says_the_same = is_fetched && self.good.as_ref().is_some_and(|before| before.roots == good.roots);
        match (self.sequence, good.sequence) {
            _ if says_the_same => {}
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
            // It was in force beside those of others.
            good.check_beside(Some(&good), others, own)?;
            Ok((good, kept.is_fetched))
        });
        match restored {
            Ok((good, _)) if good.live(now).next().is_none() => {}
            Ok((good, is_fetched)) => {
                self.is_fetched = is_fetched && self.endpoint.is_some();
                (self.good, self.written) = (Some(good), Some(Ok(())));
            }
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
            is_fetched: self.is_fetched,
        };
        let written = serde_json::to_vec(&text).map_err(std::io::Error::other);
        let written = written.and_then(|text| files::write(kept, &text, Present::Replace)).map_err(|error| {
            format!(
                "cannot write {}: after a restart, an older {} would be taken: {error}",
                kept.display(),
                self.source()
            )
        });
        if let Err(why) = &written
            && self.written.as_ref() != Some(&written)
        {
            tracing::error!("{why}");
        }
        self.written = Some(written);
    }

    /// What is wrong, and what is in force.
    fn told(&self, why: &str) -> String {
        let domain = &self.domain;
        match self.good {
            Some(_) => format!("{why}; the roots of {domain} are those that it had before"),
            None => format!("{why}; nobody of {domain} is trusted"),
        }
    }

    /// Who else has a root of it.
    fn shares_with(&self, all: &[Followed]) -> Option<String> {
        let shares = |other: &&Followed| {
            let both = self.good.as_ref().zip(other.good.as_ref());
            other.domain != self.domain && both.is_some_and(|(good, other)| good.has_one_of(&other.keys))
        };
        let other = &all.iter().find(shares)?.domain;
        let source = self.source();
        Some(format!(
            "{source}: a root in it is one of {other}, too, so that whoever has its key can name workloads of both"
        ))
    }

    /// Why it could not be fetched.
    fn unfetched(&self) -> Option<String> {
        match &self.fetched {
            Some(Err(why)) => Some(self.told(why)),
            None if self.endpoint.is_some() && self.good.is_none() && self.file.is_none() => {
                Some(self.told(&format!("{}: it was not fetched yet", self.source())))
            }
            Some(Ok(_)) | None => None,
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
        let stale = || stale().map(|why| format!("{}: {why}", self.source()));
        TrustBundle {
            trust_domain: self.domain.clone(),
            source: self.source(),
            roots: roots.len(),
            ends: ends.map(|ends| SystemTime::UNIX_EPOCH + Duration::from_secs(ends)),
            sequence: self.good.as_ref().and_then(|good| good.sequence),
            problem: (self.unfetched())
                .or_else(|| self.problem.clone())
                .or_else(stale)
                .or_else(|| self.written.clone()?.err()),
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
