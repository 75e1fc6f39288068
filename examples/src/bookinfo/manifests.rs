//! The YAML of bookinfo, and directories of it that others wrote.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// One step of a tour: a configuration that is laid over the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Its name: that of a directory, or of a file.
    pub name: String,
    /// Its files, by name.
    pub files: Vec<(String, String)>,
}

macro_rules! files {
    ($dir:literal: $($file:literal),+) => {
        &[$(($file, include_str!(concat!("../../manifests/bookinfo/", $dir, "/", $file)))),+]
    };
}

/// Services and subsets.
const BASE: &[(&str, &str)] = files!("base": "services.yaml", "subsets.yaml");

/// Who may call whom, and how.
const SECURITY: &[(&str, &str)] = files!("security": "access.yaml", "front-door.yaml");

const TOUR: &[(&str, &[(&str, &str)])] = &[
    ("01-all-v1", files!("01-all-v1": "routes.yaml")),
    ("02-reviews-80-20", files!("02-reviews-80-20": "reviews.yaml")),
    ("03-jason-v2", files!("03-jason-v2": "reviews.yaml")),
    ("04-fault", files!("04-fault": "details.yaml", "ratings.yaml", "reviews.yaml")),
    ("05-back", files!("05-back": "routes.yaml")),
];

/// The services and their subsets, below every phase.
pub fn base() -> String {
    join(BASE.iter().copied()).text
}

/// Who may call whom, by the identities that mutual TLS proves: for a control plane that issues certificates.
pub fn security() -> String {
    join(SECURITY.iter().copied()).text
}

/// The rate limit service of bookinfo, `ratelimit`, which is its control plane: at this address.
pub fn counted_at(address: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: ratelimit}}
spec:
  hosts: [ratelimit.default.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 8081, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: {}, ports: {{grpc: {}}}}}]
",
        address.ip(),
        address.port()
    )
}

/// The phases of this project's own tour.
pub fn tour() -> Vec<Phase> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    TOUR.iter()
        .map(|(name, files)| Phase { name: (*name).to_owned(), files: files.iter().map(owned).collect() })
        .collect()
}

/// The phases in a directory: each file of YAML, and each directory of such files, in the order of their names.
///
/// # Errors
/// If the directory or a file cannot be read, or there is no phase.
pub fn read(dir: &Path) -> io::Result<Vec<Phase>> {
    let mut phases = Vec::new();
    for (name, path) in entries(dir)? {
        let files = match path.is_dir() {
            true => entries(&path)?.into_iter().filter(|(_, path)| path.is_file()).collect(),
            false => vec![(name.clone(), path)],
        };
        let mut texts = Vec::new();
        for (name, path) in files {
            if is_yaml(&path) {
                texts.push((name, std::fs::read_to_string(&path)?));
            }
        }
        if !texts.is_empty() {
            phases.push(Phase { name, files: texts });
        }
    }
    match phases.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "no file of YAML in it")),
        false => Ok(phases),
    }
}

fn entries(dir: &Path) -> io::Result<Vec<(String, std::path::PathBuf)>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') {
            entries.push((name, path));
        }
    }
    entries.sort();
    Ok(entries)
}

fn is_yaml(path: &Path) -> bool {
    matches!(path.extension().and_then(|extension| extension.to_str()), Some("yaml" | "yml" | "json"))
}

/// Several files as one text, so that they come into force together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The text.
    pub text: String,
    /// The first line of each file in it, and the file's name.
    starts: Vec<(usize, String)>,
}

impl Joined {
    /// The file that this line of the text comes from, and its line there; both count from 1.
    pub fn place(&self, line: usize) -> Option<(&str, usize)> {
        let (start, name) = self.starts.iter().rev().find(|(start, _)| *start <= line)?;
        Some((name, line - start + 1))
    }
}

impl Phase {
    /// All its files as one text.
    pub fn joined(&self) -> Joined {
        join(self.files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }
}

fn join<'f>(files: impl Iterator<Item = (&'f str, &'f str)>) -> Joined {
    let mut joined = Joined { text: String::new(), starts: Vec::new() };
    for (name, text) in files {
        if !joined.text.is_empty() {
            joined.text.push_str("---\n");
        }
        joined.starts.push((joined.text.lines().count() + 1, name.to_owned()));
        joined.text.push_str(text);
        if !joined.text.ends_with('\n') {
            joined.text.push('\n');
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_joined_text_leads_back_to_its_file() {
        let joined = join([("a.yaml", "one\ntwo"), ("b.yaml", "three\n")].into_iter());
        assert_eq!(joined.text, "one\ntwo\n---\nthree\n");
        assert_eq!(joined.place(2), Some(("a.yaml", 2)));
        assert_eq!(joined.place(4), Some(("b.yaml", 1)));
        assert_eq!(joined.place(0), None);
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(read(dir.path()).is_err());
        write("b.yaml", "b");
        write("notes.txt", "not YAML");
        write(".hidden.yaml", "hidden");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        write("a/2.yaml", "a2");
        write("a/1.yaml", "a1");
        let phases = read(dir.path()).unwrap();
        assert_eq!(phases.iter().map(|phase| &*phase.name).collect::<Vec<_>>(), ["a", "b.yaml"]);
        assert_eq!(phases[0].joined().text, "a1\n---\na2\n");
    }
}
