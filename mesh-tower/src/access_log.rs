//! Access logs: a line for each request that ended, and for each connection that is not HTTP, where the configuration or the
//! application wants one. Lines are written by
//! a thread of their own, so that a slow disk holds up no request; what it cannot keep up with is left out and counted. The
//! threads end with their mesh, and what is under way by then is written first.

mod connection;

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::model::{AccessLog, LogDestination, LogFormat};
use mesh_core::request_info::{Direction, Interest, Observer, RequestInfo};
use mesh_core::telemetry::{Ended, LogLine, log_line};
use mesh_core::trace::TraceContext;
use serde_json::{Map, Value};

pub(crate) use connection::ConnectionLog;

/// How many lines wait for a log at most, and how many are written at a time.
const WAITING: usize = 4096;
/// How much of them waits at most, in bytes: a client may make each line as long as its headers may be.
const WAITING_BYTES: usize = 16 << 20;
const TOGETHER: usize = 512;
/// How long the end of a mesh waits for lines that are under way, at most.
const LAST_LINES: Duration = Duration::from_secs(1);
const STDOUT: &str = "/dev/stdout";
const STDERR: &str = "/dev/stderr";

/// Who takes the lines of an access log, each with its end.
pub trait LogSink: Send + Sync + 'static {
    /// A request, or a connection that is not HTTP, ended. Told on its task: must not block, and must not panic.
    fn write(&self, line: &str);
}

impl<F: Fn(&str) + Send + Sync + 'static> LogSink for F {
    fn write(&self, line: &str) {
        self(line);
    }
}

/// Begins to write, on the thread that goes on to do so: whatever that takes is made there, and ends there.
pub(crate) type Begin = Box<dyn FnOnce() -> io::Result<Write> + Send>;

/// Writes entries, waits until they are written, and says how many of them were not taken.
pub(crate) type Write = Box<dyn FnMut(Vec<Entry>) -> io::Result<u64>>;

/// An entry of an access log.
#[derive(Debug)]
#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "a file has lines, and nothing else"))]
pub(crate) struct Entry {
    pub(crate) line: LogLine,
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
    collector: Mutex<Option<Begin>>,
    /// What the node of this process says of itself.
    node: Map<String, Value>,
    /// By where they write, and whether that is a file which the application names and the configuration may not: neither has the
    /// other's. `None` for those that are not to be written.
    writers: Mutex<HashMap<(LogDestination, bool), Option<Writer>>>,
    lost: Arc<AtomicU64>,
}

/// The thread that writes to a destination.
struct Writer {
    entries: SyncSender<Sent>,
    /// How much waits.
    bytes: Arc<AtomicUsize>,
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
    pub(crate) fn collect_by(&mut self, begin: Begin) {
        self.collector = Mutex::new(Some(begin));
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

    fn send(&self, to: &LogDestination, is_own: bool, entry: Entry) {
        let is_private = is_own && matches!(to, LogDestination::File(path) if !self.is_allowed(path));
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = writers.entry((to.clone(), is_private)).or_insert_with(|| self.open(to, is_own));
        if !writer.as_ref().is_some_and(|writer| writer.take(entry)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins to write to one of them; `None` where it is not to be written.
    fn open(&self, to: &LogDestination, is_own: bool) -> Option<Writer> {
        let LogDestination::File(path) = to else {
            let collector = self.collector.lock().unwrap_or_else(PoisonError::into_inner).take();
            if collector.is_none() {
                tracing::warn!(
                    "an access log is to go to a collector of OpenTelemetry's, and the application has none \
                     (access_logs_from_env): nothing is sent"
                );
            }
            return writer("a collector", &self.lost, collector?);
        };
        if !is_own && !self.is_allowed(path) {
            tracing::warn!(
                %path,
                "the configuration wants an access log in a file, which the application has not allowed \
                 (access_log_files_in): nothing is written there"
            );
            return None;
        }
        let file = Arc::clone(path);
        let begin = move || -> io::Result<Write> {
            let mut open = None;
            Ok(Box::new(move |entries| write(&mut open, &file, &entries)))
        };
        writer(path, &self.lost, Box::new(begin))
    }

    /// Waits until the lines that were sent so far are written, or the time is over.
    pub(crate) fn flush(&self) {
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let marks: Vec<Receiver<()>> = writers
            .values()
            .flatten()
            .filter_map(|writer| {
                let (mark, written) = sync_channel(0);
                writer.entries.try_send(Sent::Mark(mark)).ok().map(|()| written)
            })
            .collect();
        drop(writers);
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

impl Writer {
    /// Whether there is room for an entry: then it waits.
    fn take(&self, entry: Entry) -> bool {
        let size = entry.line.size();
        // Added first: the thread that writes takes it off as soon as it has it.
        let has_room = self.bytes.fetch_add(size, Ordering::Relaxed).saturating_add(size) <= WAITING_BYTES;
        let is_sent = has_room && self.entries.try_send(Sent::Entry(entry)).is_ok();
        if !is_sent {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        is_sent
    }
}

impl Observer for AccessLogs {
    fn on_end(&self, request: &RequestInfo) {
        if request.access_logs().is_empty() && request.head().is_none() {
            return;
        }
        // What a gateway sends on has its line as it came.
        if request.is_at_edge() && request.direction() == Some(Direction::Outbound) {
            return;
        }
        let took = request.ended().saturating_duration_since(request.started);
        let now = SystemTime::now();
        let ended = Ended::new(request, took, now, &self.node);
        let has = |log: &&AccessLog| log.filter.as_ref().is_none_or(|filter| ended.is_in(filter));
        let entry = |log: &AccessLog| Entry {
            line: log_line(&log.format, request, took, now),
            ended: now,
            span: request.inherited.trace.context(),
        };
        for log in request.access_logs().iter().filter(has) {
            self.send(&log.to, false, entry(log));
        }
        for log in self.own.iter().filter(has) {
            self.send(&log.to, true, entry(log));
        }
        for (format, sink) in &self.sinks {
            sink.write(&log_line(format, request, took, now).to_string());
        }
    }

    fn interest(&self) -> Interest {
        if self.own.is_empty() && self.sinks.is_empty() { Interest::Nothing } else { Interest::Head }
    }
}

impl Drop for AccessLogs {
    fn drop(&mut self) {
        let writers = std::mem::take(self.writers.get_mut().unwrap_or_else(PoisonError::into_inner));
        // All of them end at once, and no disk is waited for longer than this.
        wait_for(writers.into_values().flatten().map(|writer| writer.done).collect());
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
fn writer(to: &str, lost: &Arc<AtomicU64>, begin: Begin) -> Option<Writer> {
    let (sender, entries) = sync_channel(WAITING);
    let (ends, done) = sync_channel(0);
    let (to, lost, bytes) = (to.to_owned(), Arc::clone(lost), Arc::<AtomicUsize>::default());
    let waiting = Arc::clone(&bytes);
    let write = move || {
        write_all(&to, &entries, (&waiting, &lost), begin);
        drop(ends);
    };
    let spawned = std::thread::Builder::new().name("access-log".into()).spawn(write);
    spawned.is_ok().then_some(Writer { entries: sender, bytes, done })
}

fn write_all(to: &str, sent: &Receiver<Sent>, (bytes, lost): (&AtomicUsize, &AtomicU64), begin: Begin) {
    // What cannot begin loses whatever it is given.
    let mut write = begin().unwrap_or_else(|why| Box::new(move |_| Err(io::Error::new(why.kind(), why.to_string()))));
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
        let count = entries.len() as u64;
        let size: usize = entries.iter().map(|entry| entry.line.size()).sum();
        let written = if entries.is_empty() { Ok(0) } else { write(entries) };
        bytes.fetch_sub(size, Ordering::Relaxed);
        lost.fetch_add(*written.as_ref().unwrap_or(&count), Ordering::Relaxed);
        if let Err(error) = written
            && !std::mem::replace(&mut has_told, true)
        {
            tracing::warn!(to, %error, "the access log cannot be written");
        }
    }
}

/// Writes to a file.
fn write(file: &mut Option<File>, path: &str, entries: &[Entry]) -> io::Result<u64> {
    let block: String = entries.iter().map(|entry| entry.line.to_string()).collect();
    let written = match path {
        STDOUT => io::stdout().lock().write_all(block.as_bytes()).and_then(|()| io::stdout().flush()),
        STDERR => io::stderr().lock().write_all(block.as_bytes()),
        _ => append(file, path, block.as_bytes()),
    };
    if written.is_err() {
        *file = None;
    }
    written.map(|()| 0)
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

    fn entry(line: &str) -> Entry {
        Entry { line: LogLine::Text(format!("{line}\n")), ended: SystemTime::UNIX_EPOCH, span: None }
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Logs for a collector that hangs until the sender is dropped, and how many lines it has taken.
    #[cfg(feature = "otel")]
    fn hanging() -> (AccessLogs, SyncSender<()>, Arc<AtomicU64>) {
        let (release, hangs) = sync_channel::<()>(0);
        let taken = Arc::new(AtomicU64::new(0));
        let mut logs = AccessLogs::default();
        logs.collect_by(Box::new({
            let taken = Arc::clone(&taken);
            move || {
                Ok(Box::new(move |entries: Vec<Entry>| {
                    _ = hangs.recv();
                    taken.fetch_add(entries.len() as u64, Ordering::Relaxed);
                    Ok(0)
                }))
            }
        }));
        (logs, release, taken)
    }

    #[cfg(feature = "otel")]
    #[test]
    fn a_collector_that_hangs_holds_nobody_up_and_what_it_misses_is_counted() {
        const ALL: u64 = 3 * WAITING as u64;
        let (logs, release, taken) = hanging();
        for _ in 0..ALL {
            logs.send(&LogDestination::Collector, false, entry(""));
        }
        let lost = logs.lost();
        assert!((ALL - (WAITING + TOGETHER + 1) as u64..=ALL - WAITING as u64).contains(&lost), "{lost}");
        // It goes on, and is given what waited before its mesh ends.
        drop(release);
        drop(logs);
        assert_eq!(taken.load(Ordering::Relaxed) + lost, ALL);
    }

    #[cfg(feature = "otel")]
    #[test]
    fn what_waits_for_a_collector_that_hangs_is_bounded_however_long_a_line_is() {
        const LONG: usize = 100_000;
        let (logs, release, taken) = hanging();
        let long = "x".repeat(LONG);
        (0..1000).for_each(|_| logs.send(&LogDestination::Collector, false, entry(&long)));
        let most = (WAITING_BYTES / LONG) as u64;
        assert_eq!(logs.lost(), 1000 - most);
        drop(release);
        drop(logs);
        assert_eq!(taken.load(Ordering::Relaxed), most);
    }

    #[test]
    fn what_is_for_a_collector_is_counted_as_lost_where_there_is_none() {
        let logs = AccessLogs::default();
        logs.send(&LogDestination::Collector, true, entry("a"));
        assert_eq!(logs.lost(), 1);
    }

    #[cfg(feature = "otel")]
    #[test]
    fn a_collector_that_cannot_begin_loses_all_that_it_is_given() {
        let mut logs = AccessLogs::default();
        logs.collect_by(Box::new(|| Err(io::Error::other("no more files"))));
        for _ in 0..3 {
            logs.send(&LogDestination::Collector, true, entry("a"));
            logs.flush();
        }
        assert_eq!(logs.lost(), 3);
    }

    #[test]
    fn a_file_that_the_application_names_is_its_own_whatever_the_configuration_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.log");
        let log = LogDestination::File(path.display().to_string().into());
        for is_own_first in [false, true] {
            let logs = AccessLogs::default();
            for is_own in [is_own_first, !is_own_first] {
                logs.send(&log, is_own, entry(if is_own { "own" } else { "forged" }));
            }
            assert_eq!(logs.lost(), 1);
        }
        assert_eq!(read(&path), "own\nown\n");
    }

    #[test]
    fn whatever_a_file_is_called_the_application_has_to_allow_it() {
        let logs = AccessLogs::default();
        for path in ["otlp:", "", "access.log"] {
            logs.send(&LogDestination::File(path.into()), false, entry("a"));
        }
        assert_eq!(logs.lost(), 3);
    }

    #[test]
    fn a_file_that_was_moved_away_or_replaced_is_opened_anew_and_the_last_lines_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let log = LogDestination::File(path.display().to_string().into());
        let logs = AccessLogs::default();
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
