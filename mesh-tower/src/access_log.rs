//! Access logs: a line for each request that ended, where the configuration or the application wants one. Lines are written by
//! a thread of their own, so that a slow disk holds up no request; what it cannot keep up with is left out and counted.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh_core::model::{AccessLog, LogFormat};
use mesh_core::request_info::{Interest, Observer, RequestInfo};
use mesh_core::telemetry::log_line;

/// How many lines wait for a log at most.
const WAITING: usize = 4096;
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

/// The access logs of a process.
#[derive(Default)]
pub(crate) struct AccessLogs {
    /// The application's own.
    own: Vec<AccessLog>,
    sinks: Vec<(LogFormat, Box<dyn LogSink>)>,
    /// Where files may be that the configuration names.
    directory: Option<PathBuf>,
    files: Mutex<HashMap<Arc<str>, Option<SyncSender<String>>>>,
    lost: Arc<AtomicU64>,
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

    /// Lines that were left out.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn send(&self, path: &Arc<str>, is_own: bool, line: String) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let file = files.entry(Arc::clone(path)).or_insert_with(|| {
            let is_allowed = is_own || self.is_allowed(path);
            if !is_allowed {
                tracing::warn!(
                    %path,
                    "the configuration wants an access log in a file, which the application has not allowed \
                     (access_log_files_in): nothing is written there"
                );
            }
            is_allowed.then(|| writer(path, &self.lost)).flatten()
        });
        let is_sent = file.as_ref().is_some_and(|file| file.try_send(line).is_ok());
        if !is_sent {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
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
        for log in request.access_logs() {
            self.send(&log.path, false, log_line(&log.format, request, took, now));
        }
        for log in &self.own {
            self.send(&log.path, true, log_line(&log.format, request, took, now));
        }
        for (format, sink) in &self.sinks {
            sink.write(&log_line(format, request, took, now));
        }
    }

    fn interest(&self) -> Interest {
        if self.own.is_empty() && self.sinks.is_empty() { Interest::Nothing } else { Interest::Head }
    }
}

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogs").field("own", &self.own).finish_non_exhaustive()
    }
}

/// Begins to write to a file; `None` if no thread can be had.
fn writer(path: &Arc<str>, lost: &Arc<AtomicU64>) -> Option<SyncSender<String>> {
    let (sender, lines) = sync_channel(WAITING);
    let (path, lost) = (Arc::clone(path), Arc::clone(lost));
    let spawned = std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&path, &lines, &lost));
    spawned.is_ok().then_some(sender)
}

fn write_all(path: &str, lines: &Receiver<String>, lost: &AtomicU64) {
    let mut file: Option<File> = None;
    let mut has_told = false;
    while let Ok(line) = lines.recv() {
        // What has come meanwhile goes with it.
        let mut block = line;
        let mut count = 1;
        while let Ok(line) = lines.try_recv() {
            block.push_str(&line);
            count += 1;
        }
        let written = match path {
            STDOUT => io::stdout().lock().write_all(block.as_bytes()).and_then(|()| io::stdout().flush()),
            STDERR => io::stderr().lock().write_all(block.as_bytes()),
            _ => append(&mut file, path, block.as_bytes()),
        };
        if let Err(error) = written {
            file = None;
            lost.fetch_add(count, Ordering::Relaxed);
            if !std::mem::replace(&mut has_told, true) {
                tracing::warn!(path, %error, "the access log cannot be written");
            }
        }
    }
}

/// A file that is not there any more is made anew: whoever turns logs over moves it away.
fn append(file: &mut Option<File>, path: &str, block: &[u8]) -> io::Result<()> {
    if !Path::new(path).exists() {
        *file = None;
    }
    let file = match file {
        Some(file) => file,
        None => file.insert(OpenOptions::new().append(true).create(true).open(path)?),
    };
    file.write_all(block)
}
