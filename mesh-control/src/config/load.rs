//! What a directory of YAML holds at one moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::printable::is_unseen;

use super::diagnostic::Diagnostic;
use super::node::MAX_FILE_BYTES;
use super::overlooked;

/// How many entries of directories there may be, those among them that are not read: all of them are looked at whenever the
/// configuration is.
const MOST_ENTRIES: usize = 20_000;
const MOST_BYTES: u64 = 256 << 20;
/// How many directories may be in one another.
const DEPTH: usize = 16;

/// What a directory holds at one moment.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// Texts by file name, or why one could not be read.
    pub files: BTreeMap<Arc<str>, Result<Arc<str>, Unreadable>>,
    /// What is to be said of entries that are not read.
    pub diagnostics: Vec<Diagnostic>,
}

/// Why a file could not be read, and what is known of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Why.
    pub why: String,
    /// Its text, as far as it is UTF-8; empty where nothing of it is known.
    pub remains: Arc<str>,
}

impl From<String> for Unreadable {
    fn from(why: String) -> Unreadable {
        Unreadable { why, remains: "".into() }
    }
}

/// Which files of a directory are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Those in it. What lies below it may be copies that are out of force, so that nobody reads it without being asked.
    #[default]
    Directory,
    /// Those below it, too.
    Tree,
}

impl Reach {
    /// The whole tree, where somebody asks for it.
    pub fn recursive(is_asked: bool) -> Reach {
        if is_asked { Reach::Tree } else { Reach::Directory }
    }
}

/// Reads the files `*.yaml`, `*.yml` and `*.json` of a directory, and of those below it where the reach is the tree; capitals
/// make no difference. What else looks like a part of the configuration is a finding. A file below has its path for a name.
///
/// Hidden names are not read. A symbolic link is followed if it ends inside the directory, which is how a
/// ConfigMap is mounted (`a.yaml` → `..data/a.yaml`, `..data` → `..2026_…`), and to no directory: where the reach is the tree,
/// one to a directory is a file that cannot be read. Nothing but regular files is ever opened. What else has the name of such a file is one that cannot be read. A directory that cannot be looked into fails
/// all of it: nobody knows what was in it. So does one with too much in it.
pub fn scan(dir: &Path, reach: Reach) -> io::Result<Scan> {
    scan_some(dir, reach, MOST_ENTRIES)
}

/// The same, with so many entries at most.
fn scan_some(dir: &Path, reach: Reach, most: usize) -> io::Result<Scan> {
    let root = dir.canonicalize()?;
    let mut walk =
        Walk { root, reach, scan: Scan::default(), most, entries: 0, bytes: 0, looks: overlooked::MOST_LOOKS };
    let root = walk.root.clone();
    walk.directory(&root, "", DEPTH)?;
    // The order in which a directory tells its entries is no difference.
    walk.scan.diagnostics.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(walk.scan)
}

struct Walk {
    root: PathBuf,
    reach: Reach,
    scan: Scan,
    most: usize,
    entries: usize,
    bytes: u64,
    /// How many entries of directories that are not read may still be looked at.
    looks: usize,
}

impl Walk {
    /// Reads a directory whose names begin with `prefix`, and so many levels below it.
    fn directory(&mut self, dir: &Path, prefix: &str, levels: usize) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            self.entries += 1;
            if self.entries > self.most {
                return Err(io::Error::other(format!("more than {} files and other entries", self.most)));
            }
            let own = printable(&entry.file_name().to_string_lossy());
            // `..data` and its like are how a ConfigMap is mounted: what is in them is read by its links.
            if own.starts_with("..") {
                continue;
            }
            let (name, path): (Arc<str>, PathBuf) = (format!("{prefix}{own}").into(), entry.path());
            let is_hidden = own.starts_with('.');
            // A directory in the place of a file takes nothing away that the file held.
            if !is_hidden && is_config_name(&own) {
                self.file(&path, name)?;
            } else if !is_hidden && self.reach == Reach::Tree && entry.file_type()?.is_symlink() && path.is_dir() {
                // Nor does a link in the place of a directory: it cannot be read, as links that leave the directory.
                self.file(&path, name)?;
            } else if !is_hidden && self.reach == Reach::Tree && entry.file_type()?.is_dir() {
                match levels.checked_sub(1) {
                    Some(levels) => self.below(&path, &name, levels)?,
                    None => {
                        return Err(io::Error::other(format!("{name}: more than {DEPTH} directories in one another")));
                    }
                }
            } else {
                self.scan.diagnostics.extend(overlooked::look_at(&path, &own, &name, &mut self.looks));
            }
        }
        Ok(())
    }

    fn below(&mut self, path: &Path, name: &str, levels: usize) -> io::Result<()> {
        match self.directory(path, &format!("{name}/"), levels) {
            // It went away just now.
            Err(_) if is_gone(path) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    fn file(&mut self, path: &Path, name: Arc<str>) -> io::Result<()> {
        // What is replaced just now, itself or what its links lead to, is there at the second look.
        let text = read_file(&self.root, path).or_else(|_| read_file(&self.root, path));
        if text.is_err() && is_gone(path) {
            return Ok(());
        }
        self.bytes += text.as_ref().map_or(0, |text| text.len() as u64);
        if self.bytes > MOST_BYTES {
            return Err(io::Error::other(format!("more than {} MiB in all", MOST_BYTES >> 20)));
        }
        self.scan.files.insert(name, text);
        Ok(())
    }
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A file's name may hold anything but a slash; what is printed may not.
pub(super) fn printable(name: &str) -> String {
    let escaped = |c: char| {
        if is_unseen(c) { c.escape_default().to_string() } else { c.to_string() }
    };
    name.chars().map(escaped).collect()
}

/// Whether a file of this name is read.
pub fn is_config_name(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    let is_any =
        |known: &[&str]| extension.is_some_and(|one| known.iter().any(|other| one.eq_ignore_ascii_case(other)));
    is_any(&["yaml", "yml", "json"])
}

fn read_file(root: &Path, path: &Path) -> Result<Arc<str>, Unreadable> {
    let target = path.canonicalize().map_err(|error| error.to_string())?;
    if !target.starts_with(root) {
        return Err("a symbolic link that leaves the directory".to_owned().into());
    }
    read_regular(&target)
}

/// The text of a file that somebody named.
pub fn read_named(path: &Path) -> Result<Arc<str>, Unreadable> {
    read_regular(&path.canonicalize().map_err(|error| error.to_string())?)
}

fn read_regular(target: &Path) -> Result<Arc<str>, Unreadable> {
    // The target of the links is judged before it is opened: opening a FIFO would wait for its writer.
    let metadata = fs::symlink_metadata(target).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned().into());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20).into());
    }
    let mut bytes = Vec::new();
    File::open(target)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    text_of(bytes)
}

/// The text of a file, or why there is none.
pub fn text_of(bytes: Vec<u8>) -> Result<Arc<str>, Unreadable> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        let remains = String::from_utf8_lossy(error.as_bytes()).into();
        Unreadable { why: format!("not UTF-8, from line {line} on"), remains }
    })?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::store::Store;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n";

    fn service(name: &str, port: u16) -> String {
        SERVICE.replace("name: s", &format!("name: {name}")).replace("80", &port.to_string())
    }

    fn names(store: &Store) -> Vec<String> {
        store.loaded().objects.services.iter().map(|object| object.meta.name.to_string()).collect()
    }

    fn said(store: &Store) -> Vec<String> {
        store.loaded().diagnostics.iter().map(ToString::to_string).collect()
    }

    #[cfg(unix)]
    #[test]
    fn links_inside_the_directory_are_followed_and_nothing_but_regular_files_is_read() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.yaml"), service("secret", 9)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // A ConfigMap as the kubelet mounts it.
        fs::create_dir(at("..v1")).unwrap();
        fs::write(at("..v1/a.yaml"), SERVICE).unwrap();
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        // What must not be read.
        symlink(outside.path().join("secret.yaml"), at("out.yaml")).unwrap();
        symlink("nowhere.yaml", at("dangling.yaml")).unwrap();
        symlink("loop.yaml", at("loop.yaml")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        fs::create_dir(at("dir.yaml")).unwrap();
        symlink("sub", at("todir.yaml")).unwrap();
        fs::write(at(".hidden.yaml"), service("hidden", 9)).unwrap();
        fs::write(at("notes.txt"), "no yaml").unwrap();
        fs::write(at("utf16.yaml"), b"\xff\xfea\x00").unwrap();

        let mut store = Store::new(false);
        store.apply(scan(dir.path(), Reach::Directory));
        assert_eq!(names(&store), ["s"]);
        let said = said(&store).join("\n");
        for expected in [
            "out.yaml: error[file]: cannot be read: a symbolic link that leaves the directory",
            "dangling.yaml: error[file]",
            "loop.yaml: error[file]",
            "todir.yaml: error[file]: cannot be read: not a regular file",
            "utf16.yaml: error[file]: cannot be read: not UTF-8, from line 1 on",
            "sub: info[ignored]: a directory; only the files beside it are read",
            "dir.yaml: error[file]: cannot be read: not a regular file",
        ] {
            assert!(said.contains(expected), "{expected} not in\n{said}");
        }

        // As long as one of them is there, nothing is taken for gone.
        for name in ["out.yaml", "dangling.yaml", "loop.yaml", "todir.yaml", "utf16.yaml"] {
            fs::remove_file(at(name)).unwrap();
        }
        fs::remove_dir(at("dir.yaml")).unwrap();

        // The swap of `..data`.
        fs::create_dir(at("..v2")).unwrap();
        fs::write(at("..v2/a.yaml"), service("s2", 80)).unwrap();
        symlink("..v2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert!(store.apply(scan(dir.path(), Reach::Directory)));
        assert_eq!(names(&store), ["s2"]);
    }

    #[test]
    fn a_tree_is_read_where_somebody_asks_for_it_and_hidden_directories_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, name: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, service(name, 80)).unwrap();
        };
        for (path, name) in [("a.yaml", "a"), ("team/b.yaml", "b"), ("team/web/c.yaml", "c"), (".old/d.yaml", "d")] {
            write(path, name);
        }
        let mut store = Store::new(false);
        store.apply(scan(dir.path(), Reach::Directory));
        assert_eq!(names(&store), ["a"]);
        assert!(said(&store).join("\n").contains("team: warning[not-read]"), "{:?}", said(&store));
        let mut store = Store::new(false);
        store.apply(scan(dir.path(), Reach::Tree));
        assert_eq!(names(&store), ["a", "b", "c"]);
        let said = said(&store).join("\n");
        assert!(said.contains(".old: warning[not-read]") && !said.contains("team"), "{said}");
        // A link that takes the place of a directory, as Flux and git-sync change revisions, takes nothing away.
        #[cfg(unix)]
        {
            let at = |path: &str| dir.path().join(path);
            fs::rename(at("team/web"), at("team/..web")).unwrap();
            std::os::unix::fs::symlink("..web", at("team/web")).unwrap();
            store.apply(scan(dir.path(), Reach::Tree));
            assert_eq!(names(&store), ["a", "b", "c"]);
            let said = self::said(&store).join("\n");
            assert!(said.contains("team/web: error[file]: cannot be read: not a regular file"), "{said}");
            fs::remove_file(at("team/web")).unwrap();
            fs::rename(at("team/..web"), at("team/web")).unwrap();
        }
        // A file has its path for a name, and one that is there no more takes its objects along.
        fs::write(dir.path().join("team/web/c.yaml"), "kind: [").unwrap();
        store.apply(scan(dir.path(), Reach::Tree));
        assert!(store.loaded().diagnostics.iter().any(|finding| &*finding.file == "team/web/c.yaml"));
        fs::remove_dir_all(dir.path().join("team")).unwrap();
        store.apply(scan(dir.path(), Reach::Tree));
        assert_eq!(names(&store), ["a"]);
        // Nobody knows what would be further below.
        fs::create_dir_all(dir.path().join("d/".repeat(DEPTH + 1))).unwrap();
        assert!(scan(dir.path(), Reach::Tree).unwrap_err().to_string().contains("more than 16 directories"));
    }

    #[cfg(unix)]
    #[test]
    fn all_that_is_in_a_directory_counts_and_links_to_directories_lead_nowhere() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("team/.git")).unwrap();
        fs::write(at("team/notes.txt"), "no yaml").unwrap();
        fs::write(at("a.yaml"), SERVICE).unwrap();
        symlink(".", at("around")).unwrap();
        symlink("..", at("team/up")).unwrap();
        // In a tree the links are files that cannot be read.
        for (reach, count, files) in [(Reach::Directory, 3, 1), (Reach::Tree, 6, 3)] {
            assert_eq!(scan_some(dir.path(), reach, count).unwrap().files.len(), files, "{reach:?}");
            let error = scan_some(dir.path(), reach, count - 1).unwrap_err().to_string();
            assert!(error.contains("files and other entries"), "{error}");
        }
        // How much is looked through of what is not read has an end, too.
        let mut looks = 3;
        let mut look = |name: &str| overlooked::look_at(&at(name), name, &name.into(), &mut looks);
        assert!(look("team").unwrap().to_string().contains("a directory; only the files beside it are read"));
        assert!(look("team").unwrap().to_string().contains("not all of it was looked through"));
    }
}
