//! Access logs: a line for each request that ended, where the configuration or the application wants one. Lines are written by
//! a thread of their own, so that a slow disk holds up no request; what it cannot keep up with is left out and counted. The
//! threads end with their mesh, and what is under way by then is written first.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::model::{AccessLog, LogFormat};
use mesh_core::request_info::{Interest, Observer, RequestInfo};
use mesh_core::telemetry::{Ended, log_line};
use mesh_core::trace::TraceContext;
use serde_json::{Map, Value};

/// How many lines wait for a log at most, and how many are written at a time.
const WAITING: usize = 4096;
const TOGETHER: usize = 512;
/// How long the end of a mesh waits for lines that are under way, at most.
const LAST_LINES: Duration = Duration::from_secs(1);
const STDOUT: &str = "/dev/stdout";
const STDERR: &str = "/dev/stderr";

/// Who takes the lines of an access log, each with its end.
pub trait LogSink: Send + Sync + 'static {
    /// A request ended. Told on the request's task: must not block, and must not panic.
    fn write(&self, line: &str);
}

impl<F: Fn(&str) + Send + Sync + 'static> LogSink for F {
    fn write(&self, line: &str) {
        self(line);
    }
}

/// Sends entries to a collector, and waits until it has them. It gets its own thread.
pub(crate) type Collect = Box<dyn FnMut(&[Entry]) -> io::Result<()> + Send>;

/// An entry of an access log.
#[derive(Debug)]
#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "a file has lines, and nothing else"))]
pub(crate) struct Entry {
    /// With its end.
    pub(crate) line: String,
    /// Whether that is an object of JSON.
    pub(crate) is_json: bool,
    /// When the request ended.
    pub(crate) ended: SystemTime,
    /// The span that it was, or was made for.
    pub(crate) span: Option<TraceContext>,
}

/// The access logs of a process.
#[derive(Default)]
pub(crate) struct AccessLogs {
    /// The application's own.
    own: Vec<AccessLog>,
    sinks: Vec<(LogFormat, Box<dyn LogSink>)>,
    /// Where files may be that the configuration names.
    directory: Option<PathBuf>,
    /// Who takes what is not for a file, until its thread begins.
    collector: Mutex<Option<Collect>>,
    /// What the node of this process says of itself.
    node: Map<String, Value>,
    /// `None` for those that are not to be written.
    files: Mutex<HashMap<Arc<str>, Option<Writer>>>,
    lost: Arc<AtomicU64>,
}

/// A file that is written to.
struct Writer {
    lines: SyncSender<Sent>,
    /// Ends with the thread that writes.
    done: Receiver<()>,
}

/// What is sent to the thread that writes.
enum Sent {
    Entry(Entry),
    /// Dropped when everything is written that was sent before.
    Mark(SyncSender<()>),
}

impl AccessLogs {
    pub(crate) fn add(&mut self, log: AccessLog) {
        self.own.push(log);
    }

    pub(crate) fn add_sink(&mut self, format: LogFormat, sink: Box<dyn LogSink>) {
        self.sinks.push((format, sink));
    }

    pub(crate) fn allow(&mut self, directory: PathBuf) {
        self.directory = Some(directory);
    }

    /// What is for a collector goes there.
    #[cfg(feature = "otel")]
    pub(crate) fn collect_by(&mut self, collector: Collect) {
        self.collector = Mutex::new(Some(collector));
    }

    /// They are those of a process of this node.
    pub(crate) fn of_node(mut self, node: Map<String, Value>) -> Self {
        self.node = node;
        self
    }

    /// Lines that were left out.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn send(&self, path: &Arc<str>, is_own: bool, entry: Entry) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let file = files.entry(Arc::clone(path)).or_insert_with(|| self.open(path, is_own));
        let is_sent = file.as_ref().is_some_and(|file| file.lines.try_send(Sent::Entry(entry)).is_ok());
        if !is_sent {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins to write to one of them; `None` where it is not to be written.
    fn open(&self, path: &Arc<str>, is_own: bool) -> Option<Writer> {
        if &**path == AccessLog::COLLECTOR {
            let collector = self.collector.lock().unwrap_or_else(PoisonError::into_inner).take();
            if collector.is_none() {
                tracing::warn!(
                    "an access log is to go to a collector of OpenTelemetry's, and the application has none \
                     (access_logs_from_env): nothing is sent"
                );
            }
            return writer(path, &self.lost, collector?);
        }
        if !is_own && !self.is_allowed(path) {
            tracing::warn!(
                %path,
                "the configuration wants an access log in a file, which the application has not allowed \
                 (access_log_files_in): nothing is written there"
            );
            return None;
        }
        let (file, mut open) = (Arc::clone(path), None);
        writer(path, &self.lost, Box::new(move |entries| write(&mut open, &file, entries)))
    }

    /// Waits until the lines that were sent so far are written, or the time is over.
    pub(crate) fn flush(&self) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let marks: Vec<Receiver<()>> = files
            .values()
            .flatten()
            .filter_map(|writer| {
                let (mark, written) = sync_channel(0);
                writer.lines.try_send(Sent::Mark(mark)).ok().map(|()| written)
            })
            .collect();
        drop(files);
        wait_for(marks);
    }

    /// Whoever writes the configuration must not be able to add to any file of this machine.
    fn is_allowed(&self, path: &str) -> bool {
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        let is_below =
            |directory: &PathBuf| Path::new(path).components().all(plain) && Path::new(path).starts_with(directory);
        path == STDOUT || path == STDERR || self.directory.as_ref().is_some_and(is_below)
    }
}

impl Observer for AccessLogs {
    fn on_end(&self, request: &RequestInfo) {
        if request.access_logs().is_empty() && request.head().is_none() {
            return;
        }
        let (took, now) = (request.started.elapsed(), SystemTime::now());
        let ended = Ended::new(request, took, now, &self.node);
        let has = |log: &&AccessLog| log.filter.as_ref().is_none_or(|filter| ended.is_in(filter));
        let entry = |log: &AccessLog| Entry {
            line: log_line(&log.format, request, took, now),
            is_json: matches!(log.format, LogFormat::Json(_)),
            ended: now,
            span: request.inherited.trace.context(),
        };
        for log in request.access_logs().iter().filter(has) {
            self.send(&log.path, false, entry(log));
        }
        for log in self.own.iter().filter(has) {
            self.send(&log.path, true, entry(log));
        }
        for (format, sink) in &self.sinks {
            sink.write(&log_line(format, request, took, now));
        }
    }

    fn interest(&self) -> Interest {
        if self.own.is_empty() && self.sinks.is_empty() { Interest::Nothing } else { Interest::Head }
    }
}

impl Drop for AccessLogs {
    fn drop(&mut self) {
        let files = std::mem::take(self.files.get_mut().unwrap_or_else(PoisonError::into_inner));
        // All of them end at once, and no disk is waited for longer than this.
        wait_for(files.into_values().flatten().map(|writer| writer.done).collect());
    }
}

/// Waits until all of these have ended, or the time is over.
fn wait_for(all: Vec<Receiver<()>>) {
    let until = Instant::now() + LAST_LINES;
    for one in all {
        _ = one.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogs").field("own", &self.own).finish_non_exhaustive()
    }
}

/// Begins to write; `None` if no thread can be had.
fn writer(path: &Arc<str>, lost: &Arc<AtomicU64>, write: Collect) -> Option<Writer> {
    let (sender, lines) = sync_channel(WAITING);
    let (ends, done) = sync_channel(0);
    let (path, lost) = (Arc::clone(path), Arc::clone(lost));
    let write = move || {
        write_all(&path, &lines, &lost, write);
        drop(ends);
    };
    let spawned = std::thread::Builder::new().name("access-log".into()).spawn(write);
    spawned.is_ok().then_some(Writer { lines: sender, done })
}

fn write_all(path: &str, sent: &Receiver<Sent>, lost: &AtomicU64, mut write: Collect) {
    let mut has_told = false;
    while let Ok(first) = sent.recv() {
        let (mut entries, mut marks) = (Vec::new(), Vec::new());
        // What has come meanwhile goes with it.
        for one in std::iter::once(first).chain(sent.try_iter().take(TOGETHER)) {
            match one {
                Sent::Entry(entry) => entries.push(entry),
                Sent::Mark(mark) => marks.push(mark),
            }
        }
        let written = if entries.is_empty() { Ok(()) } else { write(&entries) };
        if let Err(error) = written {
            lost.fetch_add(entries.len() as u64, Ordering::Relaxed);
            if !std::mem::replace(&mut has_told, true) {
                tracing::warn!(path, %error, "the access log cannot be written");
            }
        }
    }
}

/// Writes to a file.
fn write(file: &mut Option<File>, path: &str, entries: &[Entry]) -> io::Result<()> {
    let block: String = entries.iter().map(|entry| entry.line.as_str()).collect();
    let written = match path {
        STDOUT => io::stdout().lock().write_all(block.as_bytes()).and_then(|()| io::stdout().flush()),
        STDERR => io::stderr().lock().write_all(block.as_bytes()),
        _ => append(file, path, block.as_bytes()),
    };
    if written.is_err() {
        *file = None;
    }
    written
}

/// A file that is not there any more, or is another one by now, is opened anew: whoever turns logs over moves it away.
fn append(file: &mut Option<File>, path: &str, block: &[u8]) -> io::Result<()> {
    let is_there = |file: &File| {
        let (Ok(own), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
        is_same(&own, &named)
    };
    if !file.as_ref().is_some_and(is_there) {
        *file = None;
    }
    let file = match file {
        Some(file) => file,
        None => file.insert(OpenOptions::new().append(true).create(true).open(path)?),
    };
    file.write_all(block)
}

#[cfg(unix)]
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Elsewhere nobody moves a file away that is open.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[cfg(feature = "otel")]
    #[test]
    fn a_collector_that_hangs_holds_nobody_up_and_what_it_misses_is_counted() {
        const ALL: u64 = 3 * WAITING as u64;
        let (release, hangs) = sync_channel::<()>(0);
        let taken = Arc::new(AtomicU64::new(0));
        let mut logs = AccessLogs::default();
        logs.collect_by(Box::new({
            let taken = Arc::clone(&taken);
            move |entries: &[Entry]| {
                _ = hangs.recv();
                taken.fetch_add(entries.len() as u64, Ordering::Relaxed);
                Ok(())
            }
        }));
        let (collector, lost) = (Arc::from(AccessLog::COLLECTOR), Arc::clone(&logs.lost));
        for _ in 0..ALL {
            let entry = Entry { line: String::new(), is_json: false, ended: SystemTime::UNIX_EPOCH, span: None };
            logs.send(&collector, false, entry);
        }
        let lost = lost.load(Ordering::Relaxed);
        assert!((ALL - (WAITING + TOGETHER + 1) as u64..=ALL - WAITING as u64).contains(&lost), "{lost}");
        // It goes on, and is given what waited before its mesh ends.
        drop(release);
        drop(logs);
        assert_eq!(taken.load(Ordering::Relaxed) + lost, ALL);
    }

    #[test]
    fn what_is_for_a_collector_is_counted_as_lost_where_there_is_none() {
        let logs = AccessLogs::default();
        let entry = Entry { line: "a".to_owned(), is_json: false, ended: SystemTime::UNIX_EPOCH, span: None };
        logs.send(&Arc::from(AccessLog::COLLECTOR), true, entry);
        assert_eq!(logs.lost(), 1);
    }

    #[test]
    fn a_file_that_was_moved_away_or_replaced_is_opened_anew_and_the_last_lines_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let log: Arc<str> = path.display().to_string().into();
        let logs = AccessLogs::default();
        let entry =
            |line: &str| Entry { line: format!("{line}\n"), is_json: false, ended: SystemTime::UNIX_EPOCH, span: None };
        let send = |line: &str| {
            logs.send(&log, true, entry(line));
            logs.flush();
        };
        send("first");
        std::fs::rename(&path, &moved).unwrap();
        send("second");
        assert_eq!((read(&moved).as_str(), read(&path).as_str()), ("first\n", "second\n"));
        // As logrotate does it: another file is there before the next line.
        std::fs::rename(&path, &moved).unwrap();
        std::fs::write(&path, "").unwrap();
        send("third");
        assert_eq!((read(&moved).as_str(), read(&path).as_str()), ("second\n", "third\n"));
        logs.send(&log, true, entry("last"));
        drop(logs);
        assert_eq!(read(&path), "third\nlast\n");
    }
}
