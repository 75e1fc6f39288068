//! An authority that somebody else runs: an intermediate of theirs, in files as Istio names them (`cacerts`). These are followed
//! while the server runs, so that an intermediate is replaced before it ends; lists of revoked certificates survive a restart in
//! the state directory.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::identity::TrustDomain;
use mesh_core::tls::{NewestLists, Revoked, pem_error};
use rustix::fs::OFlags;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use super::authority::{Authority, block, check_signing, common_name, is_key_of, since_epoch, validity};
use super::files::{self, Present};
use super::key::Key;
use super::signer::Signer;

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";
const REVOKED: &str = "ca-crl.pem";
/// Under which name a state directory has the lists that were in force last.
const KEPT: &str = "last-good-crl.pem";

/// That there is nothing of that name.
pub(super) const GONE: &str = "there is no such file";
/// The largest file that is read.
const MOST: u64 = 16 << 20;
/// A certificate that ends this soon is worth a word, unless it is one of those that hold for weeks.
const SOON: u64 = 30 * 24 * 3600;

/// Something to be said about a file of such a directory.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) path: PathBuf,
    /// Whether the authority cannot be used, so that no server starts with it.
    pub(crate) is_error: bool,
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

/// What is in the files of an authority, without its lists: a hash of each, or why it cannot be read.
type Found = [Result<Vec<u8>, String>; 4];

/// The directory, what of it is in force, and what was last found in its lists of revoked certificates.
pub(super) struct Plugged {
    dir: PathBuf,
    /// Which files the authority in force is of.
    in_force: Found,
    /// Why those that are there by now are not in force.
    unusable: Option<String>,
    path: PathBuf,
    /// Where the lists that are in force are kept, so that nobody's revocation ends with the process.
    kept: Option<PathBuf>,
    /// What is in the file, or why it could not be read.
    seen: Result<Vec<u8>, String>,
    /// How new the lists were that were in force.
    newest: NewestLists,
    /// Why what is there is not in force.
    problem: Option<String>,
    /// What was kept, or why it could not be.
    written: Option<Result<String, String>>,
}

impl Plugged {
    /// Reads `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, and `ca-crl.pem` where there is one, of a directory.
    /// Where there is none, or none that can be used, the lists count that were in force last, if they were kept in `state`.
    pub(super) fn open(
        dir: &Path,
        state: Option<&Path>,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> anyhow::Result<(Authority, Plugged)> {
        // First, so that whatever is replaced meanwhile is found to be.
        let mut plugged = Plugged::new(dir);
        let (authority, found) = usable(dir, domain, now)?;
        for finding in found {
            tracing::warn!("{finding}");
        }
        plugged.kept = state.map(|state| state.join(KEPT));
        let remembered = plugged.remembered(&authority, now);
        let found = plugged.look(&authority, now);
        if let Ok(Some(revoking)) = found {
            if let Err(why) = remembered {
                tracing::warn!(
                    "nobody knows whether the lists of revoked certificates are older than those before: {why:#}"
                );
            }
            return Ok((revoking, plugged));
        }
        match (remembered?, found) {
            (Some(revoking), found) => {
                let path = plugged.path.display();
                let why =
                    found.err().map_or_else(|| format!("{path}: {GONE}, and there was one"), |why| format!("{why:#}"));
                tracing::error!("revoked certificates are those of before the start: {why}");
                plugged.problem = Some(why);
                Ok((revoking, plugged))
            }
            (None, Err(why)) => Err(why),
            (None, Ok(_)) => Ok((authority, plugged)),
        }
    }

    fn new(dir: &Path) -> Plugged {
        Plugged {
            dir: dir.to_owned(),
            in_force: hashes(dir),
            unusable: None,
            path: dir.join(REVOKED),
            kept: None,
            seen: Err(GONE.to_owned()),
            newest: NewestLists::default(),
            problem: None,
            written: None,
        }
    }

    /// The authority with the lists that are there by now; `None` where they are as they were.
    ///
    /// # Errors
    /// What is wrong with the file, once.
    pub(super) fn look(&mut self, present: &Authority, now: SystemTime) -> anyhow::Result<Option<Authority>> {
        let found = read(&self.path);
        if found == self.seen {
            return Ok(None);
        }
        self.seen.clone_from(&found);
        let context = || format!("{} cannot be used", self.path.display());
        let next = found.map_err(anyhow::Error::msg).with_context(context).and_then(|text| {
            let (revoked, lists) = lists(&text).with_context(context)?;
            let checked = revoked.check(now).and_then(|()| self.newest.check(&revoked));
            checked.map_err(|invalid| anyhow!("{invalid}")).with_context(context)?;
            let next = present.revoking(lists, revoked.first_end(), now).with_context(context)?;
            self.newest.note(&revoked);
            Ok(next)
        });
        self.problem = next.as_ref().err().map(|why| format!("{why:#}"));
        next.map(Some)
    }

    /// The authority that is in the directory by now, with its lists; `None` where it is the one in force.
    ///
    /// # Errors
    /// Why what is there cannot be in force, once.
    pub(super) fn replaced(&mut self, present: &Authority, now: SystemTime) -> anyhow::Result<Option<Authority>> {
        let found = hashes(&self.dir);
        if found == self.in_force {
            self.unusable = None;
            return Ok(None);
        }
        let before = (self.seen.clone(), self.problem.clone());
        let next = usable(&self.dir, present.domain(), now).and_then(|(next, _)| self.with_lists(next, present, now));
        match next {
            Ok(next) => {
                (self.in_force, self.unusable) = (found, None);
                Ok(Some(next))
            }
            Err(why) => {
                // What was found of the lists is about the one in force.
                (self.seen, self.problem) = before;
                let told = Some(format!("{why:#}"));
                let is_known = self.unusable == told;
                self.unusable = told;
                if is_known { Ok(None) } else { Err(why) }
            }
        }
    }

    /// A new authority with the lists in the file, or else with those in force: nobody whom they name is let in by another signer.
    fn with_lists(&mut self, next: Authority, present: &Authority, now: SystemTime) -> anyhow::Result<Authority> {
        let in_force = present.revoked();
        if in_force.is_empty() && read(&self.path).is_err_and(|why| why == GONE) {
            return Ok(next);
        }
        // What was seen before was held against another signer.
        self.seen = Err(String::new());
        match self.look(&next, now) {
            Ok(Some(revoking)) => Ok(revoking),
            Err(why) if in_force.is_empty() => Err(why),
            _ => next
                .revoking(in_force.to_vec(), present.revoked_end(), now)
                .context("neither the lists of revoked certificates in the directory nor those in force are for it"),
        }
    }

    /// What is wrong with the authority itself: what is there is not in force, or a certificate ends soon.
    pub(super) fn fault(&self, present: &Authority, now: SystemTime) -> Option<String> {
        let chain = present.chain().iter().zip(std::iter::once(CERTIFICATE).chain(std::iter::repeat(CHAIN)));
        // Of several roots, one that goes may stay until nobody has a certificate of it.
        let last = present.roots().iter().max_by_key(|root| validity(root).map_or(0, |(_, ends)| ends));
        let mut all = chain.chain(last.map(|root| (root, ROOT)));
        let ending = all.find_map(|(one, name)| ends_soon(one, &self.dir.join(name), since_epoch(now)));
        self.unusable.clone().or_else(|| ending.map(|finding| finding.to_string()))
    }

    /// The authority with the lists that were kept. They count beyond their end: who is on them stays revoked.
    fn remembered(&mut self, present: &Authority, now: SystemTime) -> anyhow::Result<Option<Authority>> {
        let Some(kept) = self.kept.as_deref().filter(|kept| fs::symlink_metadata(kept).is_ok()) else {
            return Ok(None);
        };
        let read = read(kept).map_err(anyhow::Error::msg).and_then(|text| {
            let (revoked, lists) = lists(&text)?;
            let next = present.revoking(lists, revoked.first_end(), now)?;
            self.newest.note(&revoked);
            Ok(next)
        });
        let read = read.with_context(|| {
            let (path, kept) = (self.path.display(), kept.display());
            format!(
                "{path} is not there, or cannot be used, and {kept}, the lists of revoked certificates that were in force last, \
                 cannot be used in its place: put lists of this authority into {path}, or remove {kept} if nobody is revoked \
                 any more"
            )
        });
        read.map(Some)
    }

    /// Keeps the lists that are in force for the next start.
    pub(super) fn keep(&mut self, present: &Authority) {
        let Some(kept) = &self.kept else { return };
        let text = present.revoked_pem();
        if text.is_empty() || self.written.as_ref().is_some_and(|written| written.as_ref() == Ok(&text)) {
            return;
        }
        let written = files::write(kept, text.as_bytes(), Present::Replace).map(|()| text).map_err(|error| {
            format!(
                "cannot write {}: a start without {} would revoke nobody: {error}",
                kept.display(),
                self.path.display()
            )
        });
        if let Err(why) = &written
            && self.written.as_ref().and_then(|before| before.as_ref().err()) != Some(why)
        {
            tracing::error!("{why}");
        }
        self.written = Some(written);
    }

    /// Its lists of revoked certificates.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Why what is in force is not what is there, or would not be there after a restart.
    pub(super) fn problem(&self) -> Option<String> {
        let unkept = self.written.as_ref().and_then(|written| written.as_ref().err());
        self.problem.as_ref().or(unkept).cloned()
    }
}

/// Everything there is to say about the directory of a plugged-in authority, as a server would find it.
pub(crate) fn findings(dir: &Path, domain: &TrustDomain, now: SystemTime) -> Vec<Finding> {
    let (authority, mut found) = examine(dir, domain, now);
    let path = dir.join(REVOKED);
    let looked = match &authority {
        Some(authority) => Plugged::new(dir).look(authority, now).map(drop),
        // What there is to say without one.
        None => match read(&path) {
            Err(why) if why == GONE => Ok(()),
            text => text
                .map_err(anyhow::Error::msg)
                .and_then(|text| lists(&text)?.0.check(now).map_err(|invalid| anyhow!("{invalid}"))),
        },
    };
    found.extend(looked.err().map(|why| Finding { path, is_error: true, message: format!("{why:#}") }));
    found
}

/// The authority of a directory, without its lists of revoked certificates, and what there is to say about it all the same.
fn usable(dir: &Path, domain: &TrustDomain, now: SystemTime) -> anyhow::Result<(Authority, Vec<Finding>)> {
    let (authority, found) = examine(dir, domain, now);
    let Some(authority) = authority else {
        let faults = found.iter().filter(|finding| finding.is_error).map(ToString::to_string);
        bail!("the authority in {} cannot be used: {}", dir.display(), faults.collect::<Vec<_>>().join("; "));
    };
    Ok((authority, found))
}

fn hashes(dir: &Path) -> Found {
    [KEY, CERTIFICATE, CHAIN, ROOT].map(|name| -> Result<Vec<u8>, String> {
        let text = read(&dir.join(name)).map(Zeroizing::new)?;
        Ok(digest(&SHA256, &text).as_ref().to_vec())
    })
}

/// An intermediate for a replica, as files of this layout, the key first.
pub(super) fn files_of(intermediate: &Signer, roots: &str) -> [(&'static str, Zeroizing<String>); 4] {
    let certificate = intermediate.certificate_pem();
    [
        (KEY, intermediate.key_pem()),
        (CERTIFICATE, Zeroizing::new(certificate.clone())),
        (CHAIN, Zeroizing::new(certificate)),
        (ROOT, Zeroizing::new(roots.to_owned())),
    ]
}

/// How the authority in a directory is called; `None` where there is none.
///
/// # Errors
/// There is something of one, and nobody knows whose.
pub(crate) fn called(dir: &Path) -> anyhow::Result<Option<String>> {
    let is_there = |name| fs::symlink_metadata(dir.join(name)).is_ok();
    if !is_there(KEY) && !is_there(CERTIFICATE) {
        return Ok(None);
    }
    let path = dir.join(CERTIFICATE);
    let named = certificates(&path).and_then(|all| common_name(all.first().context("there is none")?));
    named.map(Some).with_context(|| path.display().to_string())
}

/// The authority of a directory, without its lists of revoked certificates, and all that there is to say about its files. `None`
/// where an error is among that.
fn examine(dir: &Path, domain: &TrustDomain, now: SystemTime) -> (Option<Authority>, Vec<Finding>) {
    let [key_at, own_at, chain_at, root_at] = [KEY, CERTIFICATE, CHAIN, ROOT].map(|name| dir.join(name));
    let (mut found, seconds) = (Vec::new(), since_epoch(now));
    let key = files::read(&key_at).and_then(|text| Key::from_pem(&text.context(GONE)?));
    let key = noted(&mut found, &key_at, key);
    let own = certificates(&own_at).and_then(|mut all| {
        ensure!(all.len() == 1, "one certificate is expected, and there are {}", all.len());
        all.pop().context("there is none")
    });
    let own = noted(&mut found, &own_at, own);
    let above = noted(&mut found, &chain_at, certificates(&chain_at)).unwrap_or_default();
    let roots = certificates(&root_at).and_then(|roots| {
        ensure!(!roots.is_empty(), "there is no certificate in it");
        Ok(roots)
    });
    let roots = noted(&mut found, &root_at, roots).unwrap_or_default();

    // Istio's chain may be empty, begin with the authority's own certificate, or go up to the root.
    let mut chain: Vec<(CertificateDer<'static>, &Path)> = own.into_iter().map(|own| (own, &*own_at)).collect();
    for certificate in above {
        if chain.iter().all(|(known, _)| *known != certificate) {
            chain.push((certificate, &chain_at));
        }
    }
    for (below, (certificate, path)) in chain.iter().enumerate() {
        let checked = check_signing(certificate, below, domain, seconds);
        let checked = checked.with_context(|| format!("certificate {} of the chain", below + 1));
        if noted(&mut found, path, checked).is_some() {
            found.extend(ends_soon(certificate, path, seconds));
        }
    }
    if let (Some(key), Some((own, _))) = (&key, chain.first().filter(|(_, path)| *path == own_at)) {
        noted(&mut found, &key_at, is_key_of(key, own));
    }
    let below = chain.iter().filter(|(certificate, _)| !roots.contains(certificate)).count();
    let checked: Vec<_> = roots.iter().map(|root| check_signing(root, below, domain, seconds)).collect();
    let is_one_good = checked.iter().any(Result::is_ok);
    for (root, checked) in roots.iter().zip(checked) {
        match checked {
            Ok(()) => found.extend(ends_soon(root, &root_at, seconds)),
            // One that has ended may stay in a bundle for a while: it is handed out to nobody.
            Err(why) => {
                let message = format!("the root: {why:#}");
                found.push(Finding { path: root_at.clone(), is_error: !is_one_good, message });
            }
        }
    }
    let (Some(key), true) = (key, found.iter().all(|finding| !finding.is_error)) else { return (None, found) };
    let chain = chain.into_iter().map(|(certificate, _)| certificate).collect();
    let authority = Authority::new(domain.clone(), key, chain, roots, now);
    (noted(&mut found, &chain_at, authority), found)
}

/// What was had, or else what is wrong with the file.
fn noted<T>(found: &mut Vec<Finding>, path: &Path, had: anyhow::Result<T>) -> Option<T> {
    let note = |why: anyhow::Error| {
        found.push(Finding { path: path.to_owned(), is_error: true, message: format!("{why:#}") });
    };
    had.map_err(note).ok()
}

fn ends_soon(certificate: &[u8], path: &Path, now: u64) -> Option<Finding> {
    let (begins, ends) = validity(certificate).ok()?;
    let left = ends.saturating_sub(now);
    let message = format!("a certificate in it ends in {} days", left / (24 * 3600));
    (left < SOON.min(ends.saturating_sub(begins) / 5)).then(|| Finding {
        path: path.to_owned(),
        is_error: false,
        message,
    })
}

/// The lists in a text, as they are read and as they are handed on.
fn lists(text: &[u8]) -> anyhow::Result<(Revoked, Vec<CertificateRevocationListDer<'static>>)> {
    let revoked = Revoked::from_pem(text).map_err(|invalid| anyhow!("{invalid}"))?;
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| anyhow!(pem_error(&error)))?;
    ensure!(!lists.is_empty(), "there is no list of revoked certificates in it");
    Ok((revoked, lists))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = read(path).map_err(|why| anyhow!("it cannot be read: {why}"))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>();
    certificates.map_err(|error| anyhow!("it is malformed PEM: {}", pem_error(&error)))
}

/// The lists of revoked certificates in a text, in PEM and nothing else.
pub(super) fn crl_pem(text: &[u8]) -> anyhow::Result<String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| anyhow!(pem_error(&error)))?;
    Ok(lists.iter().map(|list| block("X509 CRL", list)).collect())
}

/// What a file holds, or why it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe would be waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_ok() => {
            return Err("it is a link to nothing".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(GONE.to_owned()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let mut bytes = Vec::new();
    let read = file.metadata().and_then(|found| match found.is_file() {
        true => file.take(MOST + 1).read_to_end(&mut bytes),
        false => Err(io::Error::other("it is no regular file")),
    });
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > MOST => Err(format!("it is larger than {MOST} bytes")),
        Ok(_) => Ok(bytes),
    }
}
