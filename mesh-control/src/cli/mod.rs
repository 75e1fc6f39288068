//! The `mesh-control` command.

mod bootstrap;
mod serve;
mod status;
mod validate;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// The control server of the mesh: reads Istio's YAML, serves xDS.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Validate(validate::Args),
    Bootstrap(Box<bootstrap::Args>),
    Status(status::Args),
}

/// Runs the command that the process was started with. The exit code is 0 if it did what it was asked for,
/// 1 if it could not, 2 if the command line makes no sense.
pub fn main() -> ExitCode {
    match run(Line::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            log();
            runtime()?.block_on(serve::run(&args))?;
        }
        Command::Validate(args) => return validate::run(&args),
        Command::Bootstrap(args) => bootstrap::run(&args)?,
        Command::Status(args) => runtime()?.block_on(status::run(&args))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs to stderr, by `RUST_LOG`, or else from `info` up: stdout is for what was asked for.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(io::stderr).init();
}

/// Prints what was asked for. Whoever has read enough and closed the pipe (`| head`) is no failure.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Line::command().debug_assert();
    }
}
