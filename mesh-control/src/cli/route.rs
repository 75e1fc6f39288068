//! `mesh-control route test`: where requests go, many at a time, so that routing can be tested like code.

mod answer;
mod difference;
mod request;

use std::io::{self, BufWriter, Stdout, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::directory::Configuration;
use super::input::Lines;
use super::{Format, Printing, unless_unread};
use answer::{Answer, Deciders};
use difference::Difference;
use request::{Asked, NoRequest};

/// Works with routes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Test(Test),
}

/// Says where requests go, and what becomes of them on the way; or which answers change between two versions of the files.
///
/// The exit code is 0 when every line has its answer, and 1 when a line is no request, which is said in its place. With --against
/// it is 1, too, when an answer changes.
#[derive(Clone, Debug, clap::Args)]
struct Test {
    #[command(flatten)]
    configuration: Configuration,
    /// The requests, one JSON object a line; - is stdin. Each has `id`, `kind` (mesh, gateway, inbound), `source` {namespace,
    /// labels}, `host`, and as they are needed `gateway`, `protocol` (http, http2, grpc, tcp), `scheme`, `port`, `method`,
    /// `path`, `headers`, `tls`, `sni`, `alpn`, `address`.
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,
    /// The directory of the configuration as it was: only answers that are others with --config are printed, both of them. Then
    /// timeouts, retries, balancers, breakers, limits and the names of policies are part of an answer, too.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Test(args) = &args.command;
    test(args)
}

fn test(args: &Test) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let _entered = runtime.enter();
    let after = args.configuration.plane()?;
    let before = args.against.as_deref().map(|before| args.configuration.at(before).plane()).transpose()?;
    let mut after = Deciders::of(after.snapshot());
    let mut before = before.map(|before| Deciders::of(before.snapshot()).comparing());
    if before.is_some() {
        after = after.comparing();
    }
    let (mut is_good, mut asked, mut changed) = (true, 0_usize, 0_usize);
    let mut lines = Lines::of(&args.requests)?;
    let mut out = Out { to: BufWriter::with_capacity(OUT, io::stdout()), at_once: args.requests.as_os_str() == "-" };
    while let Some((place, line)) = lines.next_of_any_length()? {
        asked += 1;
        let request = match line.map_or_else(|| Err(NoRequest::too_long()), |line| Asked::read(&line)) {
            Ok(request) => request,
            Err(wrong) => {
                is_good = false;
                let answer = Answer::no_request(wrong.id, format!("{place}: {:#}", wrong.why));
                out.print(&answer, args.printing)?;
                continue;
            }
        };
        let answer = after.answer(&request);
        match &mut before {
            None => out.print(&answer, args.printing)?,
            Some(before) => {
                if let Some(difference) = Difference::between(&request, before.answer(&request), answer)? {
                    changed += 1;
                    match args.printing.format() {
                        Format::Json => out.say(&format!("{}\n", serde_json::to_string(&difference)?))?,
                        Format::Text => out.say(&difference.to_string())?,
                    }
                }
            }
        }
    }
    if before.is_some() && args.printing.format() == Format::Text {
        out.say(&format!("{changed} of {asked} answers change\n"))?;
    }
    out.flush()?;
    Ok(if is_good && changed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How much is printed at a time.
const OUT: usize = 64 * 1024;

/// What is printed: together, unless somebody may wait for each answer.
struct Out {
    to: BufWriter<Stdout>,
    at_once: bool,
}

impl Out {
    fn print(&mut self, answer: &Answer, printing: Printing) -> anyhow::Result<()> {
        match printing.format() {
            Format::Json => self.say(&format!("{}\n", serde_json::to_string(answer)?))?,
            Format::Text => self.say(&format!("{answer}\n"))?,
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        unless_unread(self.to.write_all(text.as_bytes()))?;
        if self.at_once { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_unread(self.to.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::Plane;
    use crate::render::RENDERED;

    #[test]
    fn a_thousand_requests_to_a_host_cost_its_routes_once() {
        let rules = (0..50)
            .map(|at| format!("  - match: [{{uri: {{prefix: /r{at}/}}}}]\n    directResponse: {{status: 404}}\n"));
        let plane = Plane::from_yaml(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec:\n  hosts: [a.example.com]\n  http:\n{}",
            rules.collect::<String>()
        ));
        let mut deciders = Deciders::of(plane.unwrap_or_else(|why| panic!("{why}")).snapshot());
        RENDERED.set(0);
        for at in 0..1_000 {
            let line = format!(
                r#"{{"id": {at}, "source": {{"namespace": "shop", "labels": {{"app": "web"}}}}, "host": "a.example.com", "path": "/r{}/"}}"#,
                at % 50
            );
            let answer =
                deciders.answer(&Asked::read(line.as_bytes()).unwrap_or_else(|wrong| panic!("{:#}", wrong.why)));
            assert_eq!(answer.outcome, answer::Outcome::Direct);
        }
        assert_eq!(RENDERED.get(), 50);
    }
}
