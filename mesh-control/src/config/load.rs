//! A directory of YAML, read again and again, of which the last good state is kept file by file.
//!
//! A file that is wrong, empty or unreadable does not take away what it said before, and a directory that
//! is suddenly empty takes away nothing at all: a bad edit or a lost mount must not change any route. What
//! is kept in spite of the files is always visible as a diagnostic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic, Severity, Source};
use super::file::{self, Meta, Object, Objects};
use super::node::MAX_FILE_BYTES;

const MOST_FILES: usize = 20_000;
const MOST_BYTES: u64 = 256 << 20;

/// What a directory holds at one moment.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// Texts by file name, or why one could not be read.
    pub files: BTreeMap<Arc<str>, Result<Arc<str>, String>>,
    /// What is to be said of entries that are not read.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads the files `*.yaml`, `*.yml` and `*.json` of a directory, not of those below it.
///
/// Hidden names are skipped. A symbolic link is followed if it ends inside the directory, which is how a
/// ConfigMap is mounted (`a.yaml` → `..data/a.yaml`, `..data` → `..2026_…`); nothing but regular files is
/// ever opened.
pub fn scan(dir: &Path) -> io::Result<Scan> {
    let root = dir.canonicalize()?;
    let mut scan = Scan::default();
    let mut bytes = 0;
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        let name: Arc<str> = printable(&entry.file_name().to_string_lossy()).into();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            let message = "a directory; only the files beside it are read";
            let note = Diagnostic::of_file(name, Severity::Info, Code::Ignored, message);
            scan.diagnostics.push(note);
            continue;
        }
        if !is_config_name(&name) {
            continue;
        }
        if scan.files.len() == MOST_FILES {
            return Err(io::Error::other(format!("more than {MOST_FILES} files")));
        }
        let text = read_file(&root, &entry.path());
        if let Ok(text) = &text {
            bytes += text.len() as u64;
        }
        if bytes > MOST_BYTES {
            return Err(io::Error::other(format!("more than {} MiB in all", MOST_BYTES >> 20)));
        }
        scan.files.insert(name, text);
    }
    Ok(scan)
}

/// A file's name may hold anything but a slash; what is printed may not.
fn printable(name: &str) -> String {
    let escaped = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    name.chars().map(escaped).collect()
}

/// Whether a file of this name is read.
pub fn is_config_name(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read_file(root: &Path, path: &Path) -> Result<Arc<str>, String> {
    let target = path.canonicalize().map_err(|error| error.to_string())?;
    if !target.starts_with(root) {
        return Err("a symbolic link that leaves the directory".to_owned());
    }
    // The target of the links is judged before it is opened: opening a FIFO would wait for its writer.
    let metadata = fs::symlink_metadata(&target).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20));
    }
    let mut bytes = Vec::new();
    File::open(&target)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    text_of(bytes)
}

/// The text of a file, or why there is none.
pub fn text_of(bytes: Vec<u8>) -> Result<Arc<str>, String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        format!("not UTF-8, from line {line} on")
    })?;
    Ok(text.into())
}

/// The state of every file, last good and current.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<Arc<str>, FileState>,
    notes: Vec<Diagnostic>,
    alarm: Option<Diagnostic>,
    allow_empty: bool,
}

#[derive(Debug, Default)]
struct FileState {
    seen: Option<Result<Arc<str>, String>>,
    /// Not of the directory: it was handed in as text.
    is_text: bool,
    good: Objects,
    diagnostics: Vec<Diagnostic>,
}

/// All objects of all files, each once.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Loaded {
    /// The objects.
    pub objects: Objects,
    /// What is to be said about the files and their objects.
    pub diagnostics: Vec<Diagnostic>,
}

impl Store {
    /// An empty store. With `allow_empty`, a directory that has been emptied is taken at its word.
    pub fn new(allow_empty: bool) -> Store {
        Store { allow_empty, ..Store::default() }
    }

    /// Takes in what a directory holds now. Returns whether anything is different.
    pub fn apply(&mut self, scan: io::Result<Scan>) -> bool {
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                let message = format!("the configuration directory cannot be read: {error}");
                return self.raise(message);
            }
        };
        let mut of_directory = self.files.values().filter(|file| !file.is_text);
        let held = of_directory.any(|file| !file.good.is_empty());
        if scan.files.is_empty() && held && !self.allow_empty {
            return self.raise("every configuration file is gone (if that is meant, restart)".to_owned());
        }
        let mut changed = self.alarm.take().is_some() || self.notes != scan.diagnostics;
        self.notes = scan.diagnostics;
        let before = self.files.len();
        self.files.retain(|name, file| file.is_text || scan.files.contains_key(name));
        changed |= self.files.len() != before;
        for (name, text) in scan.files {
            if !self.files.get(&name).is_some_and(|file| file.is_text) {
                changed |= self.set(name, text);
            }
        }
        changed
    }

    /// Takes in a text that is no file of the directory; one of the same name there is not read any more.
    /// Returns whether anything is different, and what is wrong with the text if it is.
    pub fn set_text(&mut self, name: &str, text: &str) -> (bool, Vec<Diagnostic>) {
        let name: Arc<str> = printable(name).into();
        let changed = self.set(name.clone(), Ok(text.into()));
        let Some(file) = self.files.get_mut(&name) else {
            return (changed, Vec::new());
        };
        file.is_text = true;
        let rejected = file.diagnostics.iter().any(Diagnostic::rejects_file);
        (changed, if rejected { file.diagnostics.clone() } else { Vec::new() })
    }

    fn set(&mut self, name: Arc<str>, text: Result<Arc<str>, String>) -> bool {
        let file = self.files.entry(name.clone()).or_default();
        if file.seen.as_ref() == Some(&text) {
            return false;
        }
        match &text {
            Err(error) => {
                let what = format!("cannot be read: {error}");
                file.diagnostics = vec![Diagnostic::of_file(name.clone(), Severity::Error, Code::File, what)];
                file.keep(&name);
            }
            // Editors empty a file before they write it: what it said goes away with the file only.
            Ok(text) if text.trim().is_empty() && !file.good.is_empty() => {
                file.diagnostics = Vec::new();
                file.keep(&name);
            }
            Ok(text) => {
                let parsed = file::read(Source { name: name.clone(), text: text.clone() });
                file.diagnostics = parsed.diagnostics;
                if parsed.rejected {
                    file.keep(&name);
                } else {
                    file.good = parsed.objects;
                }
            }
        }
        file.seen = Some(text);
        true
    }

    /// Forgets a text. Returns whether there was one.
    pub fn remove_text(&mut self, name: &str) -> bool {
        self.files.remove(name).is_some()
    }

    /// Everything that is in force. Of an object that is written twice the last one counts, in the order
    /// of the files' names, as if the files had been applied one after the other.
    pub fn loaded(&self) -> Loaded {
        let mut diagnostics: Vec<Diagnostic> = self.alarm.iter().cloned().collect();
        diagnostics.extend(self.notes.iter().cloned());
        for file in self.files.values() {
            diagnostics.extend(file.diagnostics.iter().cloned());
        }
        let all = || self.files.values().map(|file| &file.good);
        let found = &mut diagnostics;
        let objects = Objects {
            virtual_services: last_of_each(all().flat_map(|o| &o.virtual_services), found),
            destination_rules: last_of_each(all().flat_map(|o| &o.destination_rules), found),
            service_entries: last_of_each(all().flat_map(|o| &o.service_entries), found),
            workload_entries: last_of_each(all().flat_map(|o| &o.workload_entries), found),
            workload_groups: last_of_each(all().flat_map(|o| &o.workload_groups), found),
            services: last_of_each(all().flat_map(|o| &o.services), found),
        };
        Loaded { objects, diagnostics }
    }

    /// Files of which there is nothing to say, because there is nothing in them.
    pub fn silent_files(&self) -> impl Iterator<Item = &Arc<str>> {
        let silent = |file: &FileState| file.good.is_empty() && file.diagnostics.is_empty();
        self.files.iter().filter(move |(_, file)| silent(file)).map(|(name, _)| name)
    }

    fn raise(&mut self, what: String) -> bool {
        let message = format!("{what}; the last good state stays");
        let alarm = Diagnostic::of_file("", Severity::Error, Code::Vanished, message);
        let changed = self.alarm.as_ref() != Some(&alarm);
        self.alarm = Some(alarm);
        changed
    }
}

impl FileState {
    fn keep(&mut self, name: &Arc<str>) {
        let message = match self.good.len() {
            0 => return,
            1 => "the object that it held last stays in force".to_owned(),
            count => format!("the {count} objects that it held last stay in force"),
        };
        self.diagnostics.push(Diagnostic::of_file(name.clone(), Severity::Warning, Code::File, message));
    }
}

fn last_of_each<'a, T: 'a>(
    objects: impl Iterator<Item = &'a Arc<Object<T>>>,
    found: &mut Vec<Diagnostic>,
) -> Vec<Arc<Object<T>>> {
    let mut kept: Vec<Arc<Object<T>>> = Vec::new();
    let mut by_id: HashMap<(Arc<str>, Arc<str>), usize> = HashMap::new();
    let mut dropped: BTreeSet<usize> = BTreeSet::new();
    for object in objects {
        let key = (object.meta.namespace.clone(), object.meta.name.clone());
        if let Some(earlier) = by_id.insert(key, kept.len()) {
            found.extend(kept.get(earlier).map(|earlier| duplicate(&earlier.meta, &object.meta)));
            dropped.insert(earlier);
        }
        kept.push(object.clone());
    }
    let mut index = 0;
    kept.retain(|_| {
        index += 1;
        !dropped.contains(&(index - 1))
    });
    kept
}

fn duplicate(earlier: &Meta, later: &Meta) -> Diagnostic {
    let message = format!("written again in {}, which is the one that counts", later.origin);
    Diagnostic::at(&earlier.origin, Severity::Warning, Code::Duplicate, message).object(earlier.id())
}

/// Reads texts that are not files, by name; the same rules hold.
pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Store {
    let mut store = Store::new(true);
    for (name, text) in texts {
        store.set_text(name, text);
    }
    store
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_file_that_becomes_wrong_or_empty_keeps_its_last_good_state_visibly() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(false);
        fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
        fs::write(dir.path().join("b.yml"), service("t", 81)).unwrap();
        assert!(store.apply(scan(dir.path())));
        assert!(!store.apply(scan(dir.path())));
        assert_eq!(names(&store), ["s", "t"]);

        for (bad, starts) in [
            ("a: [", "a.yaml:1:4: error[syntax]"),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {prots: []}\n",
                "a.yaml:4:8: error[unknown-field]",
            ),
            ("", "a.yaml: warning[file]: the object that it held last stays in force"),
        ] {
            fs::write(dir.path().join("a.yaml"), bad).unwrap();
            assert!(store.apply(scan(dir.path())));
            assert_eq!(names(&store), ["s", "t"], "{bad}");
            assert!(said(&store)[0].starts_with(starts), "{:?}", said(&store));
            assert!(said(&store).iter().any(|line| line.contains("stays in force")), "{bad}");
        }

        fs::write(dir.path().join("a.yaml"), service("u", 82)).unwrap();
        assert!(store.apply(scan(dir.path())));
        assert_eq!((names(&store), said(&store).len()), (vec!["u".to_owned(), "t".to_owned()], 0));

        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(store.apply(scan(dir.path())));
        assert_eq!(names(&store), ["t"]);
    }

    #[test]
    fn a_directory_that_is_emptied_or_gone_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), SERVICE).unwrap();
        let mut store = Store::new(false);
        store.apply(scan(&path));

        fs::remove_file(path.join("a.yaml")).unwrap();
        assert!(store.apply(scan(&path)));
        assert_eq!(names(&store), ["s"]);
        assert!(said(&store)[0].starts_with("error[vanished]: every configuration file is gone"));
        assert!(!store.apply(scan(&path)), "the alarm is raised once");

        fs::remove_dir(&path).unwrap();
        assert!(store.apply(scan(&path)));
        assert_eq!(names(&store), ["s"]);
        assert!(said(&store)[0].contains("cannot be read"));

        fs::create_dir(&path).unwrap();
        fs::write(path.join("b.yaml"), service("t", 1)).unwrap();
        assert!(store.apply(scan(&path)));
        assert_eq!((names(&store), said(&store).len()), (vec!["t".to_owned()], 0));

        let mut trusting = Store::new(true);
        trusting.apply(scan(&path));
        fs::remove_file(path.join("b.yaml")).unwrap();
        assert!(trusting.apply(scan(&path)));
        assert!(names(&trusting).is_empty());
    }

    #[test]
    fn of_an_object_that_is_written_twice_the_last_counts() {
        let (first, second) = (service("s", 1), service("s", 2));
        let store = from_texts([("a.yaml", first.as_str()), ("b.yaml", second.as_str())]);
        let loaded = store.loaded();
        assert_eq!(loaded.objects.services.len(), 1);
        assert_eq!(loaded.objects.services[0].spec.ports[0].port.0, 2);
        assert_eq!(
            said(&store),
            [
                "a.yaml:1:1: warning[duplicate]: Service default/s: written again in b.yaml:1, which is the one that counts"
            ]
        );
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
        store.apply(scan(dir.path()));
        assert_eq!(names(&store), ["s"]);
        let said = said(&store).join("\n");
        for expected in [
            "out.yaml: error[file]: cannot be read: a symbolic link that leaves the directory",
            "dangling.yaml: error[file]",
            "loop.yaml: error[file]",
            "todir.yaml: error[file]: cannot be read: not a regular file",
            "utf16.yaml: error[file]: cannot be read: not UTF-8, from line 1 on",
            "sub: info[ignored]",
        ] {
            assert!(said.contains(expected), "{expected} not in\n{said}");
        }

        // The swap of `..data`.
        fs::create_dir(at("..v2")).unwrap();
        fs::write(at("..v2/a.yaml"), service("s2", 80)).unwrap();
        symlink("..v2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert!(store.apply(scan(dir.path())));
        assert_eq!(names(&store), ["s2"]);
    }
}
