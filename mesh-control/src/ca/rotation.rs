//! How one root takes the place of another: by dates alone, so that a restart, or a second look, comes to the same.
//!
//! Whoever has a live certificate got the roots with it, and it is at most [`MAX_TTL`] old. So roots that were handed out
//! for longer than that are known to everybody, and what was signed longer ago than that is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use mesh_core::identity::TrustDomain;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::authority::{Authority, MAX_TTL, is_issued_by, pem, since_epoch};
use super::files::{self, Present};
use super::signer::Signer;

/// The root: its key and its certificate.
pub(super) const ROOT: &str = "root.pem";
/// The root that is to take its place, likewise.
pub(super) const NEXT: &str = "next-root.pem";
/// The intermediate that signs, likewise.
pub(super) const INTERMEDIATE: &str = "intermediate.pem";
/// How long each phase lasts. A server that runs looks at its directory every hour, so a day more is enough.
const PHASE: Duration = Duration::from_secs(MAX_TTL.as_secs() + 24 * 3600);

/// How far a new root has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is handed out beside the old one, which signs.
    Announced,
    /// It signs; the old one is handed out beside it.
    Signing,
    /// The old one is not needed any more.
    Alone,
}

/// Where a root that was made at `made` stands, in seconds since 1970.
fn phase(made: u64, now: u64) -> Phase {
    match now.saturating_sub(made) / PHASE.as_secs() {
        0 => Phase::Announced,
        1 => Phase::Signing,
        _ => Phase::Alone,
    }
}

/// The roots of an authority of our own, and where they are kept, if anywhere.
pub(super) struct SelfSigned {
    domain: TrustDomain,
    dir: Option<PathBuf>,
    root: Signer,
    next: Option<Signer>,
}

impl SelfSigned {
    /// That of a directory, made where there is none; or one that is kept nowhere.
    pub(super) fn open(domain: &TrustDomain, dir: Option<PathBuf>, now: SystemTime) -> anyhow::Result<SelfSigned> {
        let make = || Signer::root(domain, now);
        let root = match &dir {
            Some(dir) => {
                files::directory(dir)?;
                kept(&dir.join(ROOT), make)?
            }
            None => make()?,
        };
        let mut own = SelfSigned { domain: domain.clone(), dir, root, next: None };
        own.settle(now)?;
        Ok(own)
    }

    /// Takes in what has changed with time, or by another process.
    pub(super) fn settle(&mut self, now: SystemTime) -> anyhow::Result<()> {
        if self.next.is_none()
            && let Some(dir) = &self.dir
        {
            self.next = load(&dir.join(NEXT))?;
        }
        let (made, ends) = self.root.life()?;
        let seconds = since_epoch(now);
        // Istio's share: the last fifth, which is two years of ten.
        let is_old = seconds >= ends.saturating_sub(ends.saturating_sub(made) / 5);
        if self.next.is_none() && is_old && seconds < ends {
            self.announce(now)?;
        }
        let Some((made, _)) = self.next.as_ref().map(Signer::life).transpose()? else { return Ok(()) };
        if phase(made, seconds) == Phase::Alone
            && let Some(next) = self.next.take()
        {
            if let Some(dir) = &self.dir {
                replace(&dir.join(ROOT), &next)?;
                remove(&dir.join(NEXT))?;
            }
            self.root = next;
            tracing::info!("the root of the certificate authority was replaced");
        }
        Ok(())
    }

    /// Makes a root that is to take the place of the present one, unless there is one already.
    pub(super) fn announce(&mut self, now: SystemTime) -> anyhow::Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        let make = || Signer::root(&self.domain, now);
        self.next = Some(match &self.dir {
            Some(dir) => kept(&dir.join(NEXT), make)?,
            None => make()?,
        });
        tracing::info!("the certificate authority hands out a new root beside the present one");
        Ok(())
    }

    /// What signs intermediates.
    fn signing(&self, now: SystemTime) -> anyhow::Result<&Signer> {
        Ok(match &self.next {
            Some(next) if phase(next.life()?.0, since_epoch(now)) != Phase::Announced => next,
            _ => &self.root,
        })
    }

    /// What relying parties are given: both roots, while there are two.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.root.certificate().clone()];
        let next = self.next.iter().map(|next| next.certificate().clone());
        // A process that died between two steps left the same root twice.
        roots.extend(next.filter(|next| next != self.root.certificate()));
        roots
    }

    /// Whether an authority is what there should be now.
    pub(super) fn is_current(&self, authority: &Authority, now: SystemTime) -> anyhow::Result<bool> {
        let is_under = authority.is_under(self.signing(now)?.certificate());
        Ok(!authority.is_due(now) && is_under && authority.roots() == self.roots())
    }

    /// The authority with the intermediate that was kept; where there is none that can be used, with a new one.
    pub(super) fn authority(&self, now: SystemTime) -> anyhow::Result<Authority> {
        let Some(dir) = &self.dir else { return self.renewed(now) };
        let path = dir.join(INTERMEDIATE);
        match load(&path)? {
            Some(kept) if is_issued_by(kept.certificate(), self.signing(now)?.certificate()) => {
                match kept.under(self.roots(), &self.domain, now) {
                    Ok(authority) => Ok(authority),
                    // The server was off for longer than its intermediate lived.
                    Err(why) => {
                        tracing::warn!("{} is replaced: {why:#}", path.display());
                        self.renewed(now)
                    }
                }
            }
            _ => self.renewed(now),
        }
    }

    /// A new intermediate for a replica that is called so, and the roots that it hands out, in PEM.
    pub(super) fn intermediate_of(
        &self,
        replica: &str,
        life: Duration,
        now: SystemTime,
    ) -> anyhow::Result<(Signer, String)> {
        let root = self.signing(now)?;
        let left = Duration::from_secs(root.life()?.1.saturating_sub(since_epoch(now)));
        ensure!(
            life < left,
            "an intermediate ends before its root, which ends in {} s, and not in {} s",
            left.as_secs(),
            life.as_secs()
        );
        let next = root.intermediate_of(replica, life.as_secs(), &self.domain, now)?;
        Ok((next, self.roots().iter().map(|root| pem(root)).collect()))
    }

    /// The authority with a new intermediate, which is kept before it signs.
    pub(super) fn renewed(&self, now: SystemTime) -> anyhow::Result<Authority> {
        let next = self.signing(now)?.intermediate(&self.domain, now)?;
        let kept = self.dir.as_ref().map(|dir| (dir.join(INTERMEDIATE), next.to_pem()));
        let authority = next.under(self.roots(), &self.domain, now)?;
        if let Some((path, text)) = kept {
            let written = files::write(&path, text.as_bytes(), Present::Replace);
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(authority)
    }
}

fn load(path: &Path) -> anyhow::Result<Option<Signer>> {
    let text = files::read(path)?;
    let signer = text.map(|text| Signer::from_pem(&text)).transpose();
    signer.with_context(|| path.display().to_string())
}

/// The signer in a file. Where there is none, one is made; of several processes that do so at once, the first wins.
fn kept(path: &Path, make: impl FnOnce() -> anyhow::Result<Signer>) -> anyhow::Result<Signer> {
    if let Some(signer) = load(path)? {
        return Ok(signer);
    }
    let signer = make()?;
    match files::write(path, signer.to_pem().as_bytes(), Present::Keep) {
        Ok(()) => Ok(signer),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            load(path)?.ok_or_else(|| anyhow!("{} came and went", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

fn replace(path: &Path, signer: &Signer) -> anyhow::Result<()> {
    let written = files::write(path, signer.to_pem().as_bytes(), Present::Replace);
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path).and_then(|()| files::sync_directory_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
