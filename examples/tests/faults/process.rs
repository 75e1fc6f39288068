//! Processes of a test: started, listened to, signalled, and never left behind.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Generous: it only bounds a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.args(arguments).env("RUST_LOG", "error");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo test --workspace` builds it", program.display());
        });
        let out = child.stdout.take().expect("stdout is a pipe");
        let name = format!("{} {}", program.file_name().unwrap_or_default().display(), arguments.join(" "));
        Process { name, child, lines: BufReader::new(out).lines() }
    }

    /// What follows these words in the next line that has them.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        let found = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some((_, rest)) = line.split_once(words) {
                    return rest.trim().to_owned();
                }
            }
            panic!("{} ended without saying {words:?}", self.name);
        };
        let said = tokio::time::timeout(PATIENCE, found).await;
        said.unwrap_or_else(|_| panic!("{} does not say {words:?}", self.name))
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.child.id().expect("the process runs").to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status().await.unwrap();
        assert!(status.success(), "cannot send {signal} to {}", self.name);
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end", self.name)).unwrap()
    }
}

/// A program of this package, or the control server beside it.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_bookinfo")).with_file_name(name)
}
