//! How commands write files: each is there as a whole or not at all, also for who reads at the same time.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Replaces a file. The new one has its mode before there is anything in it, whatever stood there.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    replace(path, bytes, mode, false).with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces the text of somebody's file, which keeps its mode. Where a link leads to it, the link stays.
pub(super) fn rewrite(path: &Path, text: &str) -> anyhow::Result<()> {
    let rewritten = || {
        let path = path.canonicalize()?;
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        replace(&path, text.as_bytes(), mode, true)
    };
    rewritten().with_context(|| format!("cannot write {}", path.display()))
}

/// The new file has this mode, less what the process takes away of all that it makes (umask), unless it is to be exactly this.
fn replace(path: &Path, bytes: &[u8], mode: u32, is_exact: bool) -> io::Result<()> {
    // A hidden name is nobody's configuration, should the directory be one of it.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    if is_exact {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn who_reads_a_file_that_is_rewritten_sees_the_old_one_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a.yaml"), dir.path().join("link.yaml"));
        fs::write(&path, "old").unwrap();
        // No umask that is in use leaves this one as it is.
        fs::set_permissions(&path, Permissions::from_mode(0o646)).unwrap();
        symlink("a.yaml", &link).unwrap();
        let mut reader = fs::File::open(&link).unwrap();
        rewrite(&link, "new").unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!((&*seen, &*fs::read_to_string(&path).unwrap()), ("old", "new"));
        assert!(link.is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o646);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left there");
    }
}
