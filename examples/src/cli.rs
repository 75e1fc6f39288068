//! What every program here does the same way: its options, its log, its lines, its signals.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

/// How something is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// To be read by people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The options of a program that prints and logs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Printing {
    /// How to print: text to read, or one JSON object a line.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// The same as --output json.
    #[arg(long, hide = true)]
    json: bool,
    /// How to log, on stderr. RUST_LOG says what is logged: warnings and errors, if nothing else.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: Format,
}

impl Printing {
    /// How to print.
    pub fn format(self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    /// Starts to log to stderr. Stdout is for what was asked for.
    pub fn log(self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        match self.log_format {
            Format::Text => log.with_ansi(io::stderr().is_terminal()).init(),
            Format::Json => log.json().init(),
        }
    }

    /// Says on stdout, at once, that something has happened: somebody may be waiting for it.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn say(self, text: impl std::fmt::Display, json: &impl Serialize) -> io::Result<()> {
        match self.format() {
            Format::Text => say(text),
            Format::Json => say(serde_json::to_string(json)?),
        }
    }
}

/// The command line, and what the environment says instead: `--concurrency` of `mesh-curl` is `MESH_CURL_CONCURRENCY`.
pub fn parse<P: Parser>() -> P {
    let command = P::command();
    let prefix = command.get_name().to_owned();
    let matches = by_environment(command, &prefix).get_matches();
    P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn by_environment(command: clap::Command, prefix: &str) -> clap::Command {
    let command = command.mut_args(|option| match option.get_long() {
        Some(long) if !option.is_hide_set() => {
            let name = format!("{prefix}_{long}").replace('-', "_").to_ascii_uppercase();
            option.env(name)
        }
        _ => option,
    });
    command.mut_subcommands(|command| by_environment(command, prefix))
}

/// Writes a line to stdout at once: somebody may be waiting for it.
///
/// # Errors
/// If nobody reads.
pub fn say(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// SIGINT and SIGTERM.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Signals this soon after the first are the same one: `timeout` tells a process and then its group.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

impl Signals {
    /// Takes them over: from here on they do not end the process.
    ///
    /// # Errors
    /// If the signals cannot be had.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Ready when the process is told to end.
    pub async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// After the first: ready when the process is told to end once more.
    pub async fn second(&mut self) {
        after(Instant::now() + SAME_SIGNAL, async || self.first().await).await;
    }
}

/// Ready with the first signal after this time.
async fn after(time: Instant, mut next: impl AsyncFnMut()) {
    loop {
        next().await;
        if Instant::now() > time {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn signals_within_a_quarter_of_a_second_are_the_same_one() {
        let told = Instant::now();
        after(told + SAME_SIGNAL, async || tokio::time::sleep(Duration::from_millis(100)).await).await;
        assert_eq!(told.elapsed(), Duration::from_millis(300));
    }
}
