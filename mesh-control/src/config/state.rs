//! The last good state on disk, so that it survives a restart: of every object, the text in which it was good last.
//!
//! One file, replaced as a whole, in a directory that one server locks and that belongs to one configuration. What it holds counts only for objects that the configuration still has, and only while
//! they are wrong there. Whatever else is in it is reported and put aside; it is never a reason not to start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::diagnostic::{Code, Diagnostic, Severity, Source};
use super::file::{self, Item, ObjectKey};

const FILE: &str = "last-good.json";
const KEYS: &str = "jwks.json";
const MOST_KEYS_BYTES: u64 = 64 << 20;
/// What the file says that it is.
const FORMAT: &str = "mesh-control last good state, version 1";
/// Twice as much as a configuration can have.
const MOST_BYTES: u64 = 512 << 20;

/// An object as it was when it was good.
#[derive(Clone, Debug)]
pub(super) struct Good {
    /// The text that it is of.
    pub(super) file: Arc<str>,
    /// The object.
    pub(super) item: Item,
}

/// Where the last good state is kept.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    /// The configuration that it is of.
    owner: Option<Arc<str>>,
    /// Locked as long as it is open.
    _dir: File,
    /// What is there now, as far as it is known.
    written: Option<Vec<u8>>,
    read: Option<Diagnostic>,
    write: Option<Diagnostic>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    format: String,
    /// The configuration directory.
    #[serde(default)]
    owner: Option<Arc<str>>,
    files: BTreeMap<Arc<str>, Vec<SavedText>>,
}

#[derive(Serialize, Deserialize)]
struct SavedText {
    text: Arc<str>,
    /// `Kind namespace/name` of those that were good in it and not later.
    objects: BTreeSet<Arc<str>>,
}

impl State {
    /// The state of a configuration in this directory, which is made if need be, and what it holds. Fails where the
    /// directory is inside the configuration's own, is of another one, or where another server uses it.
    pub(super) fn open(dir: &Path, config: Option<&Path>) -> io::Result<(State, BTreeMap<ObjectKey, Good>)> {
        let config = config.map(Path::canonicalize).transpose()?;
        let refused = |why: String| io::Error::other(format!("the state directory {} {why}", dir.display()));
        if let Some(config) = config.as_ref().filter(|config| is_inside(dir, config)) {
            return Err(refused(format!("is inside the configuration directory {}", config.display())));
        }
        fs::create_dir_all(dir)?;
        let lock = File::open(dir)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused("is in use by another server".to_owned())),
            Err(TryLockError::Error(error)) => return Err(refused(format!("cannot be locked: {error}"))),
        }
        let owner: Option<Arc<str>> = config.map(|config| config.display().to_string().into());
        let path = dir.join(FILE);
        let mut state = State { path, owner, _dir: lock, written: None, read: None, write: None };
        let good = match read(&state.path) {
            Ok(Some(Saved { owner: Some(other), .. })) if state.owner.as_ref() != Some(&other) => {
                return Err(refused(format!("is of the configuration in {other}; give each its own, or empty it")));
            }
            Ok(saved) => saved.map(restored).unwrap_or_default(),
            Err(why) => {
                let aside = state.path.with_extension("ignored.json");
                let message = format!("the last good state in {} is ignored: {why}", state.path.display());
                let message = match fs::rename(&state.path, &aside) {
                    Ok(()) => format!("{message}; it was put aside as {}", aside.display()),
                    Err(_) => message,
                };
                state.read = Some(Diagnostic::of_file("", Severity::Warning, Code::File, message));
                BTreeMap::new()
            }
        };
        Ok((state, good))
    }

    /// What is to be said about it.
    pub(super) fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.read.iter().chain(&self.write)
    }

    /// Keys of issuers that were fetched: they are public, and there are few.
    pub(super) fn read_keys(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path.with_file_name(KEYS)).ok()?;
        file.take(MOST_KEYS_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(super) fn write_keys(&self, bytes: &[u8]) -> io::Result<()> {
        replace(&self.path.with_file_name(KEYS), bytes)
    }

    /// Puts these in the place of what it holds.
    pub(super) fn write<'g>(&mut self, good: impl Iterator<Item = &'g Good>) {
        let mut files: BTreeMap<Arc<str>, Vec<SavedText>> = BTreeMap::new();
        for Good { file, item } in good {
            let (text, id) = (&item.meta().origin.source.text, item.meta().id());
            let texts = files.entry(file.clone()).or_default();
            match texts.iter_mut().find(|saved| saved.text == *text) {
                Some(saved) => drop(saved.objects.insert(id)),
                None => texts.push(SavedText { text: text.clone(), objects: [id].into() }),
            }
        }
        let saved = Saved { format: FORMAT.to_owned(), owner: self.owner.clone(), files };
        let written = serde_json::to_vec(&saved).map_err(io::Error::other).and_then(|bytes| {
            if self.written.as_ref() != Some(&bytes) {
                replace(&self.path, &bytes)?;
                self.written = Some(bytes);
            }
            Ok(())
        });
        self.write = written.err().map(|error| {
            let message = format!("the last good state cannot be kept in {}: {error}", self.path.display());
            Diagnostic::of_file("", Severity::Error, Code::File, message)
        });
    }
}

/// Whether a directory is this one or below it, or will be once it is made.
fn is_inside(dir: &Path, outer: &Path) -> bool {
    let Ok(dir) = std::path::absolute(dir) else { return false };
    let existing = dir.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    existing.is_some_and(|existing| existing.starts_with(outer))
}

fn read(path: &Path) -> Result<Option<Saved>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("larger than {} MiB", MOST_BYTES >> 20));
    }
    let saved: Saved = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match saved.format == FORMAT {
        true => Ok(Some(saved)),
        false => Err("it is of another version, or no state of mesh-control".to_owned()),
    }
}

/// The objects, read anew from the texts in which they were good.
fn restored(saved: Saved) -> BTreeMap<ObjectKey, Good> {
    let mut good = BTreeMap::new();
    for (file, texts) in saved.files {
        for SavedText { text, objects } in texts {
            let parsed = file::read(Source { name: file.clone(), text });
            let items = parsed.items.into_iter().filter(|item| !matches!(item, Item::Refused(_)));
            let items = items.filter(|item| objects.contains(&item.meta().id()));
            good.extend(items.map(|item| (item.meta().key(), Good { file: file.clone(), item })));
        }
    }
    good
}

/// Puts a file in the place of another one, so that there is one or the other whatever happens.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    // A new one: what is there may be a link to something else.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options.open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
