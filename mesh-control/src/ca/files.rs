//! Files with secrets: read only where nobody else could have read or written them, written so that there is the old
//! content or the new one, whatever happens.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// The largest file that is read.
const MOST: u64 = 1 << 20;

/// Makes a directory for secrets if need be, and holds it to its rules: ours, and nobody else's business.
pub(crate) fn directory(path: &Path) -> anyhow::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", path.display()));
        }
        _ => {}
    }
    check_directory(path)
}

/// Whether a directory is one that nobody else can look into or put files in.
pub(crate) fn check_directory(path: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(found.is_dir(), "{} is not a directory, or a link to one: name the directory itself", path.display());
    check_owner(path, &found)?;
    let mode = found.mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "{} has the mode {mode:04o}, so that others get at the private keys in it: chmod 700 {}",
        path.display(),
        path.display()
    );
    Ok(())
}

/// Reads a secret. `None` where there is no such file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    let shown = path.display();
    let mut options = OpenOptions::new();
    // A pipe would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
            return Err(error).with_context(|| format!("{shown} is a link: put the file itself there"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    let found = file.metadata().with_context(|| format!("cannot read {shown}"))?;
    ensure!(found.is_file(), "{shown} is no file");
    let mode = found.mode() & 0o777;
    if !is_mounted(&found) {
        check_owner(path, &found)?;
        ensure!(
            mode & 0o077 == 0,
            "{shown} has the mode {mode:04o}, so that others can read the private key: chmod 600 {shown}"
        );
    }
    ensure!(found.len() <= MOST, "{shown} is larger than {MOST} bytes");
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(found.len())?.saturating_add(1)));
    file.take(MOST).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    Ok(Some(bytes))
}

/// Whether a file is as Kubernetes mounts a Secret for a group of a Pod's own: nobody but root can change it, and nobody but
/// that group, of which this process is, can read it.
fn is_mounted(found: &fs::Metadata) -> bool {
    let own = |group: u32| {
        let others = rustix::process::getgroups().unwrap_or_default();
        rustix::process::getegid().as_raw() == group || others.iter().any(|one| one.as_raw() == group)
    };
    found.uid() == 0 && found.mode() & 0o777 == 0o440 && own(found.gid())
}

fn check_owner(path: &Path, found: &fs::Metadata) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if found.uid() == own {
        return Ok(());
    }
    bail!("{0} belongs to user {1}, and this is user {own}: chown {own} {0}", path.display(), found.uid())
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// It is replaced.
    Replace,
    /// It stays, and writing fails with `AlreadyExists`.
    Keep,
}

/// Writes a secret into a directory that passed [`directory`].
pub(crate) fn write(path: &Path, bytes: &[u8], present: Present) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system has no randomness"))?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{:016x}.new", u64::from_ne_bytes(random)));
    let new = directory.join(name);
    let written = write_new(&new, bytes).and_then(|()| match present {
        Present::Replace => fs::rename(&new, path),
        // A link is made or fails, and never replaces.
        Present::Keep => fs::hard_link(&new, path).and_then(|()| fs::remove_file(&new)),
    });
    if written.is_err() {
        // It is ours, and of no use to anybody.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync_directory_of(path)
}

/// Makes what happened to a file's name last.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
