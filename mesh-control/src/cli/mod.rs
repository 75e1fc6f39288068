//! The `mesh-control` command.
//!
//! Stdout is for what was asked for, stderr for the log. Each option can be given by the environment as well, `--xds-addr` as
//! `MESH_CONTROL_XDS_ADDR`, but for those of `bootstrap` (whose --token can) and `schema`, and the --output of `analyze`.

mod analyze;
mod authz;
mod bootstrap;
mod ca;
mod conformance;
mod describe;
mod directory;
mod etcd;
mod explain;
mod files;
mod import;
mod input;
mod install;
mod quota;
mod route;
mod schema;
mod secret;
mod serve;
mod shift;
mod status;
mod stored;
mod token;
mod top;
mod trace;
mod validate;
mod why;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::explain::workload::Named;

/// The control plane of the mesh: reads Istio's YAML, serves xDS.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
    /// How to log, on stderr. RUST_LOG says what is logged: everything from `info` up, if nothing else.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Validate(validate::Args),
    Analyze(Box<analyze::Args>),
    Authz(Box<authz::Args>),
    Bootstrap(Box<bootstrap::Args>),
    Ca(ca::Args),
    Conformance(conformance::Args),
    Import(import::Args),
    Install(install::Args),
    Status(status::Args),
    Top(top::Args),
    Quota(quota::Args),
    Apply(Box<stored::Apply>),
    Get(stored::Get),
    Delete(Box<stored::Delete>),
    Diff(stored::Diff),
    History(stored::History),
    Rollback(Box<stored::Rollback>),
    Describe(describe::Args),
    Explain(Box<explain::Args>),
    Route(Box<route::Args>),
    Shift(Box<shift::Args>),
    Schema(schema::Args),
    Token(token::Args),
    Trace(Box<trace::Args>),
    Why(why::Args),
    /// Prints the script with which a shell completes this command: `source <(mesh-control completions bash)`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How something is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To be read by people.
    #[default]
    Text,
    /// JSON; one object a line where there are many.
    Json,
}

/// The option of a command that prints.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Printing {
    /// How to print: text to read, or JSON.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// The same as --output json.
    #[arg(long, hide = true)]
    json: bool,
}

impl Printing {
    fn format(self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    /// Says that something has happened, as one line.
    fn say(self, text: &str, json: &impl Serialize) -> io::Result<()> {
        match self.format() {
            Format::Text => say(&format!("{text}\n")),
            Format::Json => say(&format!("{}\n", serde_json::to_string(json)?)),
        }
    }
}

/// The command line, with the names that options have in the environment. `bootstrap` has none but that of its secret,
/// and `schema` none: they print a file, and what is set for others must not change it.
fn line() -> clap::Command {
    fn by_environment(command: clap::Command) -> clap::Command {
        if ["bootstrap", "schema"].contains(&command.get_name()) {
            return command;
        }
        // It has more forms than others, which could not be said to those.
        let is_own = command.get_name() == "analyze";
        let command = command.mut_args(|option| match option.get_long() {
            Some("output") if is_own => option,
            Some(long) if !option.is_hide_set() => {
                let name = format!("mesh_control_{long}").replace('-', "_").to_ascii_uppercase();
                option.env(name)
            }
            _ => option,
        });
        command.mut_subcommands(by_environment)
    }
    by_environment(Line::command())
}

/// Runs the command that the process was started with. The exit code is 0 if it did what it was asked for,
/// 1 if it could not, 2 if the command line makes no sense, 3 where a command says that something is or would be refused;
/// `authz test` has 4, too.
pub fn main() -> ExitCode {
    let line = Line::from_arg_matches(&line().get_matches()).unwrap_or_else(|error| error.exit());
    match run(line) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: Line) -> anyhow::Result<ExitCode> {
    match line.command {
        Command::Serve(args) => {
            log(line.log_format);
            runtime()?.block_on(serve::run(&args))?;
        }
        Command::Validate(args) => return validate::run(&args),
        Command::Analyze(args) => return analyze::run(&args),
        Command::Schema(args) => schema::run(&args)?,
        Command::Authz(args) => return authz::run(&args),
        Command::Explain(args) => return explain::run(&args),
        Command::Why(args) => return why::run(&args),
        Command::Route(args) => return route::run(&args),
        Command::Bootstrap(args) => bootstrap::run(&args)?,
        Command::Ca(args) => ca::run(&args)?,
        Command::Conformance(args) => conformance::run(&args)?,
        Command::Shift(args) => return runtime()?.block_on(shift::run(&args)),
        Command::Import(args) => return import::run(&args),
        Command::Install(args) => install::run(&args)?,
        Command::Trace(args) => return runtime()?.block_on(trace::run(&args)),
        Command::Token(args) => token::run(&args)?,
        Command::Status(args) => runtime()?.block_on(status::run(&args))?,
        Command::Apply(args) => return runtime()?.block_on(stored::apply(&args)),
        Command::Get(args) => runtime()?.block_on(stored::get(&args))?,
        Command::Delete(args) => return runtime()?.block_on(stored::delete(&args)),
        Command::Diff(args) => return runtime()?.block_on(stored::diff(&args)),
        Command::History(args) => runtime()?.block_on(stored::history(&args))?,
        Command::Rollback(args) => return runtime()?.block_on(stored::rollback(&args)),
        Command::Quota(args) => runtime()?.block_on(quota::run(&args))?,
        Command::Top(args) => runtime()?.block_on(top::run(&args))?,
        Command::Describe(args) => runtime()?.block_on(describe::run(&args))?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut self::line(), "mesh-control", &mut script);
            say(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs to stderr, by `RUST_LOG`, or else from `info` up.
fn log(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        Format::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        Format::Json => log.json().init(),
    }
}

/// Prints what was asked for. Whoever has read enough and closed the pipe (`| head`) is no failure.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    unless_unread(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The same of JSON that people read, too. It is written as it is made: it may be about thousands of routes.
fn say_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let written = serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from);
    unless_unread(written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()))
}

/// What became of writing, where it matters: nobody misses what they do not read.
fn unless_unread(said: io::Result<()>) -> io::Result<()> {
    match said {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Tells what whoever asks about a workload should know of it.
fn tell(named: Named) -> Named {
    if let Some(note) = &named.note {
        eprintln!("mesh-control: {note}");
    }
    named
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        line().debug_assert();
    }

    /// The others print what is a file of its own: a policy, a bootstrap, a token, a script.
    #[test]
    fn every_command_that_prints_data_prints_it_for_programs_where_asked_to() {
        fn without(command: &clap::Command, place: &str, found: &mut Vec<String>) {
            for command in command.get_subcommands() {
                let place = format!("{place} {}", command.get_name());
                let options: Vec<_> = command.get_arguments().filter(|option| option.get_id() == "output").collect();
                if command.has_subcommands() {
                    without(command, &place, found);
                } else if let [option] = options[..] {
                    assert_eq!((option.get_short(), option.get_long()), (Some('o'), Some("output")), "{place}");
                    let forms = option.get_possible_values();
                    assert!(forms.iter().any(|form| form.get_name() == "json"), "{place}");
                } else {
                    found.push(place);
                }
            }
        }
        let mut found = Vec::new();
        without(&line(), "", &mut found);
        let files = [
            "authz render",
            "authz suggest",
            "bootstrap",
            "ca intermediate",
            "ca issue",
            "ca rotate-root",
            "completions",
            "schema",
            "token create",
        ];
        found.sort();
        assert_eq!(found.iter().map(|place| place.trim()).collect::<Vec<_>>(), files);
    }

    #[test]
    fn a_name_in_the_environment_means_the_same_to_every_command_that_reads_it() {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for command in line().get_subcommands() {
            for option in command.get_arguments() {
                let Some(name) = option.get_env().and_then(|name| name.to_str()) else { continue };
                let values = option.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
                let before = known.entry(name.to_owned()).or_insert_with(|| Vec::clone(&values));
                assert_eq!(*before, values, "{name}, read by {}, too", command.get_name());
            }
        }
        assert!(known.contains_key("MESH_CONTROL_FOR") && known.contains_key("MESH_CONTROL_TLS_CERT"));
        // Who asks is a workload to one command, and an identity to another.
        fn values(command: &clap::Command, name: &str, found: &mut BTreeSet<String>) {
            let options = command.get_arguments().filter(|option| option.get_env().is_some_and(|env| env == name));
            found.extend(
                options.flat_map(|option| option.get_value_names().unwrap_or_default()).map(ToString::to_string),
            );
            command.get_subcommands().for_each(|command| values(command, name, found));
        }
        let mut found = BTreeSet::new();
        values(&line(), "MESH_CONTROL_FROM", &mut found);
        assert!(!found.is_empty() && found.iter().all(|value| value.starts_with("NAMESPACE/")), "{found:?}");
    }
}
