//! Puts right in files what clearly is meant otherwise: only these words change, so that comments and layout stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::files;
use crate::config::Diagnostic;
use crate::config::diagnostic::Fix;

/// What is put right may let more be seen: of an object whose metadata are wrong, nothing else is read.
const ROUNDS: usize = 5;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    fixes: usize,
    files: BTreeSet<PathBuf>,
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "put right: {} in {} files", self.fixes, self.files.len())
    }
}

/// Writes what findings say clearly into their files, and says what is left then.
pub(super) fn repair(
    mut examine: impl FnMut() -> anyhow::Result<Vec<Diagnostic>>,
) -> anyhow::Result<(Vec<Diagnostic>, Repaired)> {
    let (mut found, mut repaired) = (examine()?, Repaired::default());
    for _ in 0..ROUNDS {
        let before = repaired.fixes;
        repaired.write(&found)?;
        if repaired.fixes == before {
            break;
        }
        found = examine()?;
    }
    Ok((found, repaired))
}

impl Repaired {
    /// A file that has changed meanwhile stays as it is.
    fn write(&mut self, found: &[Diagnostic]) -> anyhow::Result<()> {
        let mut by_file: BTreeMap<&str, Vec<Fix>> = BTreeMap::new();
        for finding in found {
            if let Some(fix) = finding.fix() {
                by_file.entry(&finding.file).or_default().push(fix);
            }
        }
        for (name, fixes) in by_file {
            let path = Path::new(name.strip_prefix("--mesh-config=").unwrap_or(name));
            let Ok(text) = fs::read_to_string(path) else { continue };
            let (better, count) = written(&text, fixes);
            if count > 0 {
                files::rewrite(path, &better)?;
                self.fixes += count;
                self.files.insert(path.to_owned());
            }
        }
        Ok(())
    }
}

/// A text with these words, and how many of them are in it now. Of two for one place, the first counts.
fn written(text: &str, mut fixes: Vec<Fix>) -> (String, usize) {
    fixes.retain(|fix| *fix.text == *text);
    fixes.sort_by_key(|fix| (fix.range.start, fix.range.end));
    let (mut out, mut end, mut count) = (String::with_capacity(text.len()), 0, 0);
    for fix in fixes.into_iter() {
        let Some(between) = text.get(end..fix.range.start) else { continue };
        out += between;
        out += &fix.instead;
        (end, count) = (fix.range.end, count + 1);
    }
    out += text.get(end..).unwrap_or_default();
    (out, count)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::analysis::validate;
    use crate::config::Severity;

    const WRONG: &str = "\
# The rule of the shop.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: web   # as the service
  labels: { version: 1, 'tier': \"gold\" }
spec:
  hosst: web.example.com
  trafficPolicy:
    tls: {mode: 'simple'}   # of the outside
---
apiVersion: policy.mesh-control/v1alpha1
kind: RateLimit
metadata: {name: calls}
spec:
  rules:
  - name: all
    match: {method: get}
    limit: {requests: 1, per: 1s}
";

    #[test]
    fn only_the_words_that_are_wrong_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.yaml");
        let name = path.display().to_string();
        let examine = || Ok(validate([(&*name, &*fs::read_to_string(&path).expect("read"))]));
        fs::write(&path, WRONG).expect("written");
        let mut reader = fs::File::open(&path).expect("open");
        let (left, repaired) = repair(examine).expect("written");
        let mut seen = String::new();
        reader.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, WRONG, "nobody sees half of a file");
        assert_eq!(repaired.to_string(), "put right: 4 in 1 files");
        let right = WRONG
            .replace("version: 1,", "version: \"1\",")
            .replace("hosst", "host")
            .replace("'simple'", "'SIMPLE'")
            .replace("get}", "GET}");
        assert_eq!(fs::read_to_string(&path).expect("read"), right);
        assert!(left.iter().all(|finding| finding.severity < Severity::Error), "{left:?}");
        // What somebody else has written meanwhile stays.
        let (_, repaired) = repair(|| Ok(validate([(&*name, WRONG)]))).expect("nothing to write");
        assert_eq!(repaired.fixes, 0);
        assert_eq!(fs::read_to_string(&path).expect("read"), right);
    }

    #[test]
    fn a_field_that_is_there_already_is_not_written_twice() {
        let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, hosst: b}\n";
        let found = validate([("a.yaml", text)]);
        assert!(!found.is_empty() && found.iter().all(|finding| finding.fix().is_none()), "{found:?}");
    }
}
