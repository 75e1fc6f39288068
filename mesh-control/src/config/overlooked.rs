//! What lies beside the files of a configuration and is not read, though somebody may think that it is: directories with
//! files of configuration in them, and objects in a file whose name is another one's.
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
/// The part of a file that says what it is.
const HEAD: u64 = 64 << 10;

/// What there is to say of an entry that is not read.
pub(super) fn look_at(path: &Path, name: &Arc<str>) -> Option<Diagnostic> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.is_dir() {
        return Some(of_directory(path, name));
    }
    let is_object = metadata.is_file().then(|| head(path).map_or(is_nearly_one(name), |text| is_like_object(&text)));
    let message = "not read: it looks like an object, and its name does not end in .yaml, .yml or .json; rename it, or move \
                   it to another directory";
    is_object?.then(|| Diagnostic::of_file(name.clone(), Severity::Warning, Code::NotRead, message))
}

fn of_directory(path: &Path, name: &Arc<str>) -> Diagnostic {
    let mut left = MOST_ENTRIES;
    match find(path, DEPTH, &mut left) {
        Some(file) => {
            let message = format!(
                "not read: a directory with files of configuration in it ({file}); only the files beside it are read: move \
                 them there, or the directory elsewhere"
            );
            Diagnostic::of_file(name.clone(), Severity::Warning, Code::NotRead, message)
        }
        None => {
            let message = "a directory; only the files beside it are read";
            Diagnostic::of_file(name.clone(), Severity::Info, Code::Ignored, message)
        }
    }
}

/// The first file of a configuration in a directory or below it. Links are not followed: they may lead around in a circle.
fn find(dir: &Path, depth: usize, left: &mut usize) -> Option<String> {
    let mut inner = Vec::new();
    for entry in fs::read_dir(dir).ok()? {
        *left = left.checked_sub(1)?;
        let Ok(entry) = entry else { continue };
        let name = printable(&entry.file_name().to_string_lossy());
        if name.starts_with('.') {
            continue;
        }
        if is_config_name(&name) {
            return Some(name);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            inner.push((name, entry.path()));
        }
    }
    let depth = depth.checked_sub(1)?;
    inner.sort();
    inner.into_iter().find_map(|(name, path)| Some(format!("{name}/{}", find(&path, depth, left)?)))
}

/// The beginning of a file; `None` where nobody may read it.
fn head(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(HEAD).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a text begins as objects do and has their words: a manual that shows objects begins otherwise.
fn is_like_object(text: &str) -> bool {
    let key = |line: &str| line.split_once(':').map(|(key, _)| key.trim_matches(['"', '\'', ' ']).to_owned());
    let is_said = |line: &&str| !line.trim().is_empty() && !line.starts_with(['#', '%']) && !line.starts_with("---");
    let first = text.trim_start_matches('\u{feff}').lines().find(is_said).unwrap_or_default();
    let begins = first.trim_start().starts_with('{')
        || key(first).is_some_and(|key| ["apiVersion", "kind", "metadata", "spec"].contains(&key.as_str()));
    begins && text.contains("apiVersion") && text.contains("kind")
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
    fn a_text_is_like_an_object_by_how_it_begins() {
        for (text, expected) in [
            ("# a policy\n---\napiVersion: v1\nkind: Service\n", true),
            ("kind: Service\napiVersion: v1\n", true),
            ("{\"apiVersion\": \"v1\", \"kind\": \"Service\"}", true),
            ("\u{feff}\"apiVersion\": v1\n\"kind\": Service\n", true),
            ("# How to\n\nWrite this:\n\napiVersion: v1\nkind: Service\n", false),
            ("kind: of\n", false),
            ("", false),
        ] {
            assert_eq!(is_like_object(text), expected, "{text}");
        }
        for (name, expected) in
            [("a.ymal", true), ("a.yaml.txt", true), ("a.YML~", true), ("a.txt", false), ("yaml", false)]
        {
            assert_eq!(is_nearly_one(name), expected, "{name}");
        }
    }
}
