//! What lies beside the files of a configuration and is not read, though somebody may think that it is: directories with
//! files of configuration in them or that cannot be looked into, and objects in a file whose name is another one's, is hidden, or
//! says that they are packed.
//!
//! How loud it is told goes by whether it may have been meant. An object is meant, whatever its file is called, and so is
//! configuration by its name that nobody can read: warnings. Hidden names without an object belong to editors and other tools,
//! and directories without configuration to anybody: nothing, or a note.
//!
//! Nobody is asked to give such files up: they may be copies that are meant to be out of force. They are never passed over in
//! silence, since what guards a workload may be in one.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic, Severity};
use super::load::{is_config_name, printable};
use super::spelling::nearest;

/// How far a directory is searched, in levels and in entries: it is looked at whenever the configuration is.
const DEPTH: usize = 8;
const MOST_ENTRIES: usize = 4_096;
/// How many entries all such directories of a configuration may have together to be looked at.
pub(super) const MOST_LOOKS: usize = 16 * MOST_ENTRIES;
/// The part of a file that says what it is.
const HEAD: u64 = 64 << 10;

/// What there is to say of an entry that is not read. `own` is its name in its directory, `name` that in findings; `looks` is how
/// many entries of directories may still be looked at.
pub(super) fn look_at(path: &Path, own: &str, name: &Arc<str>, looks: &mut usize) -> Option<Diagnostic> {
    let warn = |message: &str| Some(Diagnostic::of_file(name.clone(), Severity::Warning, Code::NotRead, message));
    let metadata = fs::metadata(path).ok()?;
    if metadata.is_dir() {
        return of_directory(path, own, name, looks);
    }
    if !metadata.is_file() {
        return None;
    }
    let head = head(path);
    if own.starts_with('.') {
        // Those of editors and of other systems have such names, too, and no object in them.
        let is_meant = is_config_name(own) && head.as_ref().is_none_or(|head| head.is_configuration());
        let message = "not read: it looks like configuration, and its name begins with a dot; rename it, or move it to another directory";
        return is_meant.then(|| warn(message)).flatten();
    }
    match head {
        Some(head) if head.is_configuration() => warn(
            "not read: it looks like configuration, and its name does not end in .yaml, .yml or .json; rename it, or move it to \
             another directory",
        ),
        Some(head) if !head.is_text && is_nearly_one(own) => warn(
            "not read: by its name it is configuration, and it is no text: it may be packed or encrypted; unpack it, or move it to \
             another directory",
        ),
        None if is_nearly_one(own) => warn(
            "not read: by its name it is configuration, and nobody here may read it, nor is it one of .yaml, .yml or .json; rename \
             it, or move it to another directory",
        ),
        _ => None,
    }
}

/// What a directory, or what is below it, has in it.
enum Inside {
    /// A file of a configuration.
    File(String),
    /// Nothing.
    Nothing,
    /// Nobody may look into all of it: why.
    Closed(String),
    /// More than is looked through.
    Large,
    /// More levels than are looked into.
    Deep,
}

fn of_directory(path: &Path, own: &str, name: &Arc<str>, looks: &mut usize) -> Option<Diagnostic> {
    let most = MOST_ENTRIES.min(*looks);
    let mut left = most;
    let warning = |message: String| Diagnostic::of_file(name.clone(), Severity::Warning, Code::NotRead, message);
    let info = |message: &str| Diagnostic::of_file(name.clone(), Severity::Info, Code::Ignored, message);
    let is_hidden = own.starts_with('.');
    let inside = find(path, DEPTH, is_hidden, &mut left);
    *looks -= most - left;
    match inside {
        Inside::File(file) => Some(warning(format!(
            "not read: a directory with files of configuration in it ({file}); only the files beside it are read: read it, too \
             (--recursive), or move them there, or the directory elsewhere"
        ))),
        Inside::Closed(why) => Some(warning(format!(
            "not read: a directory that cannot be looked into ({why}), so that nobody knows what is in it; only the files beside it \
             are read: move it elsewhere"
        ))),
        Inside::Nothing | Inside::Large | Inside::Deep if is_hidden => None,
        Inside::Deep => Some(warning(format!(
            "not read: a directory with more than {DEPTH} levels of others in it, into which nobody has looked; only the files beside \
             it are read: read it, too (--recursive), or move it elsewhere"
        ))),
        Inside::Nothing => Some(info("a directory; only the files beside it are read")),
        Inside::Large => {
            Some(info("a directory; only the files beside it are read, and not all of it was looked through"))
        }
    }
}

/// The first file of a configuration in a directory or below it. Links are not followed: they may lead around in a circle. What
/// other tools keep in hidden directories has such names, too: there, `is_hidden`, it takes an object.
fn find(dir: &Path, depth: usize, is_hidden: bool, left: &mut usize) -> Inside {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return Inside::Closed(error.to_string()),
    };
    let mut inner = Vec::new();
    for entry in entries {
        let Some(fewer) = left.checked_sub(1) else { return Inside::Large };
        *left = fewer;
        let Ok(entry) = entry else { continue };
        let name = printable(&entry.file_name().to_string_lossy());
        let kind = entry.file_type();
        if name.starts_with('.') && !is_hidden {
            continue;
        }
        let is_object = || {
            kind.as_ref().is_ok_and(|kind| kind.is_file())
                && head(&entry.path()).is_some_and(|it| it.is_configuration())
        };
        if is_config_name(&name) && (!is_hidden || is_object()) {
            return Inside::File(name);
        }
        if kind.is_ok_and(|kind| kind.is_dir()) {
            inner.push((name, entry.path()));
        }
    }
    let Some(depth) = depth.checked_sub(1) else {
        return if inner.is_empty() { Inside::Nothing } else { Inside::Deep };
    };
    inner.sort();
    let mut worst = Inside::Nothing;
    for (name, path) in inner {
        match find(&path, depth, is_hidden, left) {
            Inside::File(file) => return Inside::File(format!("{name}/{file}")),
            Inside::Closed(why) => worst = Inside::Closed(format!("{name}: {why}")),
            Inside::Large => return Inside::Large,
            Inside::Deep if matches!(worst, Inside::Nothing) => worst = Inside::Deep,
            Inside::Deep | Inside::Nothing => {}
        }
    }
    worst
}

/// The part of a file that says what it is.
struct Head {
    text: String,
    is_text: bool,
}

impl Head {
    fn is_configuration(&self) -> bool {
        self.is_text && is_like_configuration(&self.text)
    }
}

/// The beginning of a file; `None` where nobody may read it.
fn head(path: &Path) -> Option<Head> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(HEAD).read_to_end(&mut bytes).ok()?;
    // The last character may be cut in two.
    let is_utf8 = std::str::from_utf8(&bytes).map_or_else(|error| error.error_len().is_none(), |_| true);
    let is_text = is_utf8 && !bytes.contains(&0);
    Some(Head { text: String::from_utf8_lossy(&bytes).into_owned(), is_text })
}

/// Whether a text begins as objects do, or rules of rate limits, and has their words: a manual that shows some begins otherwise.
fn is_like_configuration(text: &str) -> bool {
    let key = |line: &str| line.split_once(':').map(|(key, _)| key.trim_matches(['"', '\'', ' ']).to_owned());
    let is_said = |line: &&str| !line.trim().is_empty() && !line.starts_with(['#', '%']) && !line.starts_with("---");
    let first = text.trim_start_matches('\u{feff}').lines().find(is_said).unwrap_or_default();
    let begins_with = |keys: &[&str]| key(first).is_some_and(|key| keys.contains(&key.as_str()));
    let has = |words: &[&str]| words.iter().all(|word| text.contains(word));
    let is_json = first.trim_start().starts_with('{');
    let is_object =
        (is_json || begins_with(&["apiVersion", "kind", "metadata", "spec"])) && has(&["apiVersion", "kind"]);
    is_object || (is_json || begins_with(&["domain", "descriptors"])) && has(&["domain", "descriptors"])
}

/// Whether a name has an ending that is read, or one nearly like it, somewhere: `a.ymal`, `a.yaml.txt`, `a.yml~`.
fn is_nearly_one(name: &str) -> bool {
    let endings = name.split(['.', '~']).skip(1);
    endings.map(str::to_ascii_lowercase).any(|ending| nearest(&ending, &["yaml", "yml", "json"]).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_nobody_can_look_into_is_a_warning_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["gone", ".gone"] {
            // Whoever may do everything may look into every directory that there is.
            let told = of_directory(&dir.path().join(name), name, &name.into(), &mut { MOST_LOOKS }).unwrap();
            assert_eq!((told.severity, told.code), (Severity::Warning, Code::NotRead));
            assert!(told.message.contains("cannot be looked into"), "{told}");
        }
    }

    #[test]
    fn a_directory_that_is_deeper_than_anybody_looks_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        for (levels, expected) in [(DEPTH, Severity::Info), (DEPTH + 1, Severity::Warning)] {
            let path = dir.path().join(levels.to_string());
            fs::create_dir_all((0..levels).fold(path.clone(), |path, _| path.join("d"))).unwrap();
            let told = of_directory(&path, "d", &"d".into(), &mut { MOST_LOOKS }).unwrap();
            assert_eq!(told.severity, expected, "{told}");
        }
    }

    #[test]
    fn a_text_is_like_configuration_by_how_it_begins() {
        for (text, expected) in [
            ("# a policy\n---\napiVersion: v1\nkind: Service\n", true),
            ("kind: Service\napiVersion: v1\n", true),
            ("{\"apiVersion\": \"v1\", \"kind\": \"Service\"}", true),
            ("\u{feff}\"apiVersion\": v1\n\"kind\": Service\n", true),
            ("# How to\n\nWrite this:\n\napiVersion: v1\nkind: Service\n", false),
            ("kind: of\n", false),
            ("# limits\n---\ndomain: shop\ndescriptors:\n- key: user\n", true),
            ("{\"domain\": \"shop\", \"descriptors\": []}", true),
            ("domain: shop\n", false),
            ("", false),
        ] {
            assert_eq!(is_like_configuration(text), expected, "{text}");
        }
        for (name, expected) in
            [("a.ymal", true), ("a.yaml.txt", true), ("a.YML~", true), ("a.txt", false), ("yaml", false)]
        {
            assert_eq!(is_nearly_one(name), expected, "{name}");
        }
    }
}
