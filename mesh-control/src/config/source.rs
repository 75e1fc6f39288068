//! Where a configuration comes from: one seam for a directory, a cluster and etcd.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;

use super::file::mesh_file_name;
use super::load::{self, Reach, Scan};
use super::store::Update;
use super::watch::Watcher;

/// How long objects have to be quiet before they are taken in, and how long that is waited for at most (Istio's debounce).
pub(crate) const QUIET: Duration = Duration::from_millis(100);
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a place is left alone after something went wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Pauses {
    /// After so many failures in a row, with `random` from 0 to 1.
    pub(crate) fn pause(self, failures: u32, random: f64) -> Duration {
        self.first.saturating_mul(1 << failures.min(8)).min(self.longest).mul_f64(0.5 + random / 2.0)
    }
}

/// A place that holds objects of the configuration, and tells of every change. Whatever becomes of the place itself, what it
/// held last stays in force: only what it says is gone is gone.
pub(crate) trait ConfigStore: Send + 'static {
    /// What it is, for people.
    fn name(&self) -> String;

    /// What has changed, once something has: since the scan that a directory was read with first, and of a cluster or
    /// etcd, of which nothing is known at first, all that there is. `None` once it has ended.
    fn next(&mut self) -> BoxFuture<'_, Option<Update>>;
}

/// A directory of files, or a tree of them, and the file with the settings of the mesh where that is another one.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    reach: Reach,
    settings: Option<PathBuf>,
}

impl Directory {
    pub(crate) fn new(dir: &Path, reach: Reach, settings: Option<&Path>) -> Directory {
        Directory { dir: dir.to_owned(), reach, settings: settings.map(Path::to_owned) }
    }

    /// What it is, for people.
    pub(crate) fn name(&self) -> String {
        format!("the directory {}", self.dir.display())
    }

    /// What it holds now.
    pub(crate) fn scan(&self) -> io::Result<Scan> {
        let mut scan = load::scan(&self.dir, self.reach)?;
        if let Some(file) = &self.settings {
            scan.files.insert(mesh_file_name(file), load::read_named(file));
        }
        Ok(scan)
    }

    /// Watches it, where it is there. Whoever scans it afterwards misses nothing.
    pub(crate) fn watch(self) -> io::Result<WatchedDirectory> {
        fs::metadata(&self.dir)?;
        let settings = self.settings.as_deref().map(|file| Watcher::new(folder(file), Reach::Directory));
        let watchers = [Watcher::new(&self.dir, self.reach)].into_iter().chain(settings).collect();
        Ok(WatchedDirectory { directory: self, watchers })
    }
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A directory that is watched. It is scanned once before it is followed, by whoever has to know at once whether it can be read.
pub(crate) struct WatchedDirectory {
    directory: Directory,
    watchers: Vec<Watcher>,
}

impl WatchedDirectory {
    pub(crate) fn scan(&self) -> io::Result<Scan> {
        self.directory.scan()
    }
}

impl ConfigStore for WatchedDirectory {
    fn name(&self) -> String {
        self.directory.name()
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Update>> {
        Box::pin(async {
            let changed = self.watchers.iter().map(|watcher| Box::pin(watcher.changed()));
            futures_util::future::select_all(changed).await;
            let directory = self.directory.clone();
            // It ends with the runtime only.
            let scan = spawn_blocking(move || directory.scan()).await.ok()?;
            Some(Update::Directory(scan))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let pauses = Pauses { first: Duration::from_millis(200), longest: Duration::from_secs(3) };
        assert_eq!(
            [0, 1, 4, 9, 99].map(|failures| pauses.pause(failures, 1.0).as_millis()),
            [200, 400, 3000, 3000, 3000]
        );
        assert_eq!(pauses.pause(0, 0.0), Duration::from_millis(100));
    }

    #[tokio::test]
    async fn what_is_written_after_the_first_scan_is_noticed_without_a_poll() {
        let (dir, beside) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let settings = beside.path().join("mesh.yaml");
        fs::write(&settings, "").expect("written");
        let watched = Directory::new(dir.path(), Reach::Directory, Some(&settings)).watch().expect("a directory");
        let scan = watched.scan().expect("readable");
        assert_eq!(scan.files.len(), 1, "the settings alone");
        fs::write(dir.path().join("late.yaml"), "a: 1").expect("written");
        fs::write(&settings, "a: 1").expect("written");
        assert_eq!(watched.watchers.len(), 2);
        for watcher in &watched.watchers {
            let noticed = tokio::time::timeout(Duration::from_secs(30), watcher.noticed());
            noticed.await.expect("the operating system tells");
        }
    }
}
