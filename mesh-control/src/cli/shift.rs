//! `mesh-control shift`: moves the weights of a VirtualService to one subset, step by step.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::directory::Directory;
use super::serve::Signals;
use super::status::StatusServer;
use super::{Printing, files};
use crate::analysis::{Mesh, validate_scan};
use crate::config::Severity;
use crate::config::decode::parse_duration;
use crate::config::diagnostic::Source;
use crate::config::load::{self, Reach};
use crate::serve::status::Graph;
use crate::shift::weights::{self, Wanted, Written};
use crate::shift::{Next, Plan, Seen, Shift};

/// How often it is looked at what workloads report.
const LOOK: Duration = Duration::from_secs(1);
/// How long it may be that the weights cannot be read: an editor may be writing the file.
const UNREADABLE: Duration = Duration::from_secs(30);
/// How often a person is told how it goes.
const TELL: Duration = Duration::from_secs(15);

/// Moves the weights of a VirtualService to one subset step by step, as long as the calls to it do well; else all weights become
/// what they were.
///
/// The weights are written in the files of --config, which the server reads: nothing else of the file changes. What is
/// called well is known from what workloads report to the server. A change of the weights by somebody else ends it, and stays.
/// Ctrl-C and SIGTERM roll back. The exit code is 0 if the shift was finished, 3 if it was rolled back, 1 if it could not be
/// done or somebody else took over.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The host whose calls are divided, as a client of --namespace has it: `reviews`.
    host: String,
    /// The subset that gets the calls.
    #[arg(long, value_name = "SUBSET")]
    to: String,
    /// Its shares in percent, one after the other.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "5,25,50,100")]
    steps: Vec<u32>,
    /// How long each step lasts.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    every: Duration,
    /// The share of failed requests that is too much: 5xx, or a gRPC status other than OK, or no answer.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = percent)]
    max_error_rate: f64,
    /// The time that 99 of 100 requests may take.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_p99: Option<Duration>,
    /// So many requests have to be seen in a step; it lasts until they are.
    #[arg(long, value_name = "N", default_value_t = 100)]
    min_requests: u64,
    #[command(flatten)]
    directory: Directory,
    /// The namespace of the host.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// The VirtualService with the weights, where there are several.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    virtual_service: Option<String>,
    /// Only the rules of this name (`http[].name`); without it all that divide the host.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    #[command(flatten)]
    server: StatusServer,
    /// Where to add what was done and why, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Says what would be written, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    printing: Printing,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or_else(|| "not a time such as 30s, 5m or 250ms".to_owned())
}

/// `1%` and `1` are one of a hundred.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    let share = number.filter(|number| (0.0..100.0).contains(number));
    share.map(|number| number / 100.0).ok_or_else(|| "not a share from 0% to below 100%".to_owned())
}

/// One thing that was done.
#[derive(Debug, Serialize)]
struct Event<'a> {
    /// Seconds since 1970.
    time: u64,
    virtual_service: &'a str,
    host: &'a str,
    subset: &'a str,
    /// `step`, `finished`, `rolled_back`, `left`.
    event: &'static str,
    /// Of the subset in percent, from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u32>,
    /// What was seen in the step that ended.
    requests: u64,
    failures: u64,
    p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The weights, where they are written.
struct File {
    path: PathBuf,
    written: Written,
}

impl File {
    /// The one place of the configuration where the weights are.
    fn find(args: &Args, wanted: &Wanted) -> anyhow::Result<File> {
        let dir = &args.directory.config;
        let scan = load::scan(dir, Reach::recursive(args.directory.recursive))
            .with_context(|| format!("cannot read {}", dir.display()))?;
        let mut found = Vec::new();
        for (name, text) in &scan.files {
            let Ok(text) = text else { continue };
            let source = Source { name: name.clone(), text: text.clone() };
            let written = weights::find(&source, wanted).map_err(anyhow::Error::msg)?;
            found.extend(written.into_iter().map(|written| File { path: dir.join(&**name), written }));
        }
        let file = match found.len() {
            0 => bail!(
                "no VirtualService in {} divides {} between subsets, `{}` among them; the rule has to have both, with a weight \
                 each",
                dir.display(),
                args.host,
                args.to
            ),
            1 => found.remove(0),
            _ => {
                let ids: Vec<&str> = found.iter().map(|file| file.written.id.as_str()).collect();
                bail!(
                    "several VirtualServices divide {}: say which by --virtual-service: {}",
                    args.host,
                    ids.join(", ")
                )
            }
        };
        let object = format!("VirtualService {}", file.written.id);
        let report = validate_scan(scan, Mesh::default());
        let wrong = |finding: &&crate::config::Diagnostic| {
            finding.severity == Severity::Error && finding.object.as_deref() == Some(object.as_str())
        };
        match report.diagnostics.iter().find(wrong) {
            Some(finding) => bail!("{object} is wrong, so that its weights mean nothing: {finding}"),
            None => Ok(file),
        }
    }

    /// What is there now.
    fn read(&self, wanted: &Wanted) -> anyhow::Result<(Source, Option<Written>)> {
        let text = load::read_named(&self.path)
            .map_err(|wrong| anyhow!("cannot read {}: {}", self.path.display(), wrong.why))?;
        let source = Source { name: self.path.display().to_string().into(), text };
        let found = weights::find(&source, wanted).map_err(anyhow::Error::msg)?;
        let same = found.into_iter().find(|written| written.id == self.written.id);
        Ok((source, same.filter(|written| written.rules.len() == self.written.rules.len())))
    }

    /// Writes these weights in place of those. `false` where others are there.
    fn replace(&self, wanted: &Wanted, present: &[Vec<u32>], new: &[Vec<u32>]) -> anyhow::Result<bool> {
        let (source, found) = self.read(wanted)?;
        let Some(written) = found.filter(|written| are(written, present)) else { return Ok(false) };
        let text = weights::replaced(&source.text, &written, new).map_err(anyhow::Error::msg)?;
        files::rewrite(&self.path, &text)?;
        Ok(true)
    }

    fn weights(&self) -> Vec<Vec<u32>> {
        self.written.rules.iter().map(|rule| rule.weights.clone()).collect()
    }

    fn weights_at(&self, share: u32) -> Vec<Vec<u32>> {
        self.written.rules.iter().map(|rule| rule.weights_at(share)).collect()
    }
}

fn are(written: &Written, weights: &[Vec<u32>]) -> bool {
    written.rules.iter().map(|rule| &rule.weights).eq(weights)
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = Wanted {
        host: args.host.clone(),
        namespace: args.namespace.clone(),
        to: args.to.clone(),
        virtual_service: args.virtual_service.clone(),
        route: args.route.clone(),
    };
    let plan = Plan {
        steps: args.steps.clone(),
        every: args.every,
        max_error_rate: args.max_error_rate,
        max_p99: args.max_p99,
        min_requests: args.min_requests,
    };
    let file = File::find(args, &wanted)?;
    for rule in &file.written.rules {
        plan.check(rule.share()).map_err(|fault| anyhow!("{}:{}: {fault}", file.path.display(), rule.line))?;
    }
    if args.dry_run {
        super::say(&dry(args, &file))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(history) = &args.history {
        let opened = OpenOptions::new().append(true).create(true).open(history);
        opened.with_context(|| format!("cannot write {}", history.display()))?;
    }
    let mut running = Running { args, wanted, present: file.weights(), file, share: None, seen: Seen::default() };
    running.go(plan).await
}

/// What would be written.
fn dry(args: &Args, file: &File) -> String {
    let mut text = String::new();
    for rule in &file.written.rules {
        text += &format!("{}:{}: {:?}", file.path.display(), rule.line, rule.weights);
        for step in &args.steps {
            text += &format!(" -> {:?}", rule.weights_at(*step));
        }
        text += "\n";
    }
    text
}

/// A shift under way.
struct Running<'a> {
    args: &'a Args,
    wanted: Wanted,
    file: File,
    /// What is written now.
    present: Vec<Vec<u32>>,
    /// The share of the subset, where it is ours.
    share: Option<u32>,
    /// Of the present step.
    seen: Seen,
}

impl Running<'_> {
    async fn go(&mut self, plan: Plan) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::new()?;
        // Nothing is begun that nobody could end.
        self.look().await?;
        let mut shift = Shift::new(plan, Instant::now());
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut unread) = (Instant::now(), None::<Instant>);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = signals.next() => return self.roll_back("stopped by a signal".to_owned()),
            }
            match self.file.read(&self.wanted) {
                Ok((_, Some(written))) if are(&written, &self.present) => unread = None,
                Ok((_, Some(_))) => return Ok(self.leave("somebody else changed the weights")),
                _ if unread.get_or_insert_with(Instant::now).elapsed() < UNREADABLE => continue,
                Ok((_, None)) => return Ok(self.leave("the weights are not there any more")),
                Err(error) => return Ok(self.leave(&format!("{error:#}"))),
            }
            let seen = self.look().await.ok();
            self.seen = seen.as_ref().map_or(self.seen, |seen| shift.in_step(seen));
            let next = shift.next(seen, Instant::now());
            match next {
                Next::Wait | Next::TooFew if told.elapsed() < TELL => {}
                Next::Wait | Next::TooFew => {
                    told = Instant::now();
                    self.progress(seen.is_some(), next == Next::TooFew);
                }
                Next::Step(share) => {
                    let weights = self.file.weights_at(share);
                    match self.write(&weights) {
                        Ok(true) => self.share = Some(share),
                        Ok(false) => return Ok(self.leave("somebody else changed the weights")),
                        Err(error) => return self.roll_back(format!("{error:#}")),
                    }
                    self.tell("step", None);
                    told = Instant::now();
                }
                Next::RollBack(fault) => return self.roll_back(fault.to_string()),
                Next::Done => {
                    self.tell("finished", None);
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }

    /// What workloads report of the calls to the subset.
    async fn look(&self) -> anyhow::Result<Seen> {
        let graph = super::top::graph(&self.args.server.status_addr).await?;
        Ok(seen(&graph, &self.file.written.hosts, &self.args.to))
    }

    fn write(&mut self, weights: &[Vec<u32>]) -> anyhow::Result<bool> {
        let is_done = self.file.replace(&self.wanted, &self.present, weights)?;
        if is_done {
            self.present = weights.to_vec();
        }
        Ok(is_done)
    }

    fn roll_back(&mut self, reason: String) -> anyhow::Result<ExitCode> {
        if self.share.is_some() && !self.write(&self.file.weights())? {
            return Ok(self.leave("somebody else changed the weights"));
        }
        self.share = None;
        self.tell("rolled_back", Some(reason));
        Ok(ExitCode::from(3))
    }

    /// The weights are somebody else's by now.
    fn leave(&self, why: &str) -> ExitCode {
        self.tell("left", Some(format!("{why}; what is in {} stays as it is", self.file.path.display())));
        ExitCode::FAILURE
    }

    fn progress(&self, is_seen: bool, too_few: bool) {
        let why = match (is_seen, too_few) {
            (false, _) => format!(", {} does not answer", self.args.server.status_addr),
            (true, true) => format!(", waiting for {}", self.args.min_requests),
            (true, false) => String::new(),
        };
        eprintln!("{} %: {}{why}", self.share.unwrap_or_default(), seen_text(&self.seen));
    }

    /// Says what was done. That nobody can be told of it ends nothing: somebody has to look after the weights.
    fn tell(&self, event: &'static str, reason: Option<String>) {
        let Seen { requests, failures, p99, .. } = self.seen;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (host, subset) = (self.args.host.as_str(), self.args.to.as_str());
        let event = Event {
            time,
            virtual_service: &self.file.written.id,
            host,
            subset,
            event,
            share: self.share,
            requests,
            failures,
            p99_ms: p99.map(|p99| p99.as_secs_f64() * 1e3),
            reason,
        };
        if let Some(history) = &self.args.history
            && let Err(error) = append(history, &event)
        {
            eprintln!("mesh-control: cannot write {}: {error:#}", history.display());
        }
        let what = match (event.event, self.share) {
            ("step", Some(share)) => format!("{host}: {subset} gets {share} %"),
            ("finished", _) => format!("{host}: finished, {}", seen_text(&self.seen)),
            ("rolled_back", _) => format!("{host}: rolled back, {subset} has what it had"),
            _ => format!("{host}: given up"),
        };
        let reason = event.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        if let Err(error) = self.args.printing.say(&format!("{what}{reason}"), &event) {
            eprintln!("mesh-control: {what}{reason} ({error})");
        }
    }
}

fn append(path: &Path, event: &Event<'_>) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(file.write_all(format!("{}\n", serde_json::to_string(event)?).as_bytes())?)
}

fn seen_text(seen: &Seen) -> String {
    let p99 = seen.p99.map(|p99| format!(", 99 of 100 within {p99:.1?}")).unwrap_or_default();
    format!("{} requests, {} failed{p99}", seen.requests, seen.failures)
}

/// What a graph says of the calls to a subset. The slowest callers speak for all.
fn seen(graph: &Graph, hosts: &[String], subset: &str) -> Seen {
    let edges = graph.edges.iter();
    let edges = edges.filter(|edge| edge.subset.as_deref() == Some(subset) && hosts.contains(&edge.service));
    edges.fold(Seen::default(), |all, edge| {
        let p99 = edge.p99_ms.and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok());
        Seen {
            requests: all.requests.saturating_add(edge.requests),
            failures: all.failures.saturating_add(edge.failures),
            p99: all.p99.max(p99),
            is_called: all.is_called || edge.requests_per_second > 0.0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percents() {
        assert_eq!(percent("1%"), Ok(0.01));
        assert_eq!(percent("0.5 %"), Ok(0.005));
        assert_eq!(percent("2"), Ok(0.02));
        for wrong in ["", "%", "100%", "-1", "much"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
