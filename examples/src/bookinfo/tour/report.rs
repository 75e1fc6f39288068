//! A tour for people, as a table that moves, and for programs, as JSON.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::tally::describe;
use super::{Expectation, Outcome, Outlook, Tally};

/// Somebody who is told how a tour goes.
pub trait Reporter: Send {
    /// A phase begins.
    ///
    /// # Errors
    /// If nobody reads.
    fn begin(&mut self, phase: &str) -> io::Result<()>;

    /// So much was seen of it so far.
    fn progress(&mut self, outlook: &Outlook);

    /// It is over.
    ///
    /// # Errors
    /// If nobody reads.
    fn end(&mut self, outlook: &Outlook) -> io::Result<()>;

    /// The tour is over.
    ///
    /// # Errors
    /// If nobody reads.
    fn summary(&mut self, outlooks: &[Outlook]) -> io::Result<()>;
}

/// How often the table moves.
const FRAME: Duration = Duration::from_millis(250);

/// A table for people; on a terminal it moves.
pub struct Human<W> {
    out: W,
    is_live: bool,
    /// Lines that the next frame takes the place of.
    drawn: usize,
    last: Option<Instant>,
}

impl<W: Write> Human<W> {
    /// A table on this; `is_live` if it is a terminal.
    pub fn new(out: W, is_live: bool) -> Self {
        Human { out, is_live, drawn: 0, last: None }
    }

    fn draw(&mut self, frame: &str) -> io::Result<()> {
        if self.drawn > 0 {
            // Up to the first line of the frame before, and clear from there.
            write!(self.out, "\x1b[{}A\x1b[J", self.drawn)?;
        }
        // On a narrow terminal, lines are cut rather than wrapped: a frame has as many as were counted.
        let (cut, wrap) = if self.is_live { ("\x1b[?7l", "\x1b[?7h") } else { ("", "") };
        write!(self.out, "{cut}{frame}{wrap}")?;
        self.drawn = if self.is_live { frame.lines().count() } else { 0 };
        self.out.flush()
    }
}

impl<W: Write + Send> Reporter for Human<W> {
    fn begin(&mut self, phase: &str) -> io::Result<()> {
        writeln!(self.out, "\n{phase}")?;
        self.drawn = 0;
        self.last = Some(Instant::now());
        self.out.flush()
    }

    fn progress(&mut self, outlook: &Outlook) {
        if self.is_live && self.last.is_none_or(|last| last.elapsed() >= FRAME) {
            self.last = Some(Instant::now());
            // A terminal that is gone is noticed at the end of the phase.
            _ = self.draw(&table(outlook));
        }
    }

    fn end(&mut self, outlook: &Outlook) -> io::Result<()> {
        let mut frame = table(outlook);
        let ms = outlook.latencies.percentiles();
        let rate = outlook.pages as f64 / outlook.time.as_secs_f64().max(f64::MIN_POSITIVE);
        let Outlook { pages, failed, settled, .. } = outlook;
        _ = writeln!(
            frame,
            "  {pages} pages, {rate:.0} a second, {failed} failed; p50 {} ms, p99 {} ms; in force after {} ms",
            ms.p50,
            ms.p99,
            settled.as_millis(),
        );
        for (host, route) in &outlook.foreign {
            _ = match route {
                Ok(route) => writeln!(frame, "  {host} goes to {route}"),
                Err(error) => writeln!(frame, "  {host}: {error}"),
            };
        }
        outlook.reports.iter().for_each(|report| _ = writeln!(frame, "  reported: {report}"));
        for problem in &outlook.problems {
            _ = writeln!(frame, "  WRONG: {problem}");
        }
        if outlook.is_ok() {
            let reported = if outlook.reports.is_empty() { "" } else { ", or reported" };
            _ = writeln!(frame, "  ok: everything is as the files say{reported}");
        }
        self.draw(&frame)
    }

    fn summary(&mut self, outlooks: &[Outlook]) -> io::Result<()> {
        writeln!(self.out)?;
        for outlook in outlooks {
            let verdict = if outlook.is_ok() { "ok" } else { "WRONG" };
            writeln!(self.out, "{verdict:<6} {:<44} {:>6} pages", outlook.name, outlook.pages)?;
        }
        let wrong = outlooks.iter().filter(|outlook| !outlook.is_ok()).count();
        writeln!(self.out, "{} of {} phases as they should be", outlooks.len() - wrong, outlooks.len())?;
        self.out.flush()
    }
}

/// What was seen, and what was expected where that is known.
fn table(outlook: &Outlook) -> String {
    let mut table = format!(
        "  {:<12} {:<7} {:>6}  {:<34} {:<26} {:>9} {:>9}\n",
        "service", "for", "calls", "answered by", "expected", "p50 ms", "p99 ms"
    );
    for (edge, tally) in &outlook.seen {
        let (app, user) = edge;
        let ms = tally.latencies.percentiles();
        let wanted = outlook.expected.get(edge).map(wanted).unwrap_or_default();
        _ = writeln!(
            table,
            "  {:<12} {:<7} {:>6}  {:<34} {:<26} {:>9.1} {:>9.1}",
            app.name(),
            user.unwrap_or("anyone"),
            tally.calls(),
            answered(tally),
            wanted,
            ms.p50,
            ms.p99,
        );
    }
    table
}

fn answered(tally: &Tally) -> String {
    let share = |seen: u64| seen as f64 * 100.0 / tally.calls().max(1) as f64;
    let shares = tally.outcomes.iter().map(|(outcome, seen)| format!("{} {:.1} %", describe(outcome), share(*seen)));
    shares.collect::<Vec<_>>().join(", ")
}

fn wanted(expected: &Expectation) -> String {
    let word = |(outcome, share): (&Outcome, &f64)| match expected.weighted {
        true if *outcome == Outcome::Closed => describe(outcome),
        true => format!("{} {:.0} %", describe(outcome), share * 100.0),
        false => describe(outcome),
    };
    let join = if expected.weighted { ", " } else { " or " };
    let mut wanted = expected.outcomes.iter().map(word).collect::<Vec<_>>().join(join);
    if let Some((share, time)) = expected.delay {
        _ = write!(wanted, ", {:.0} % late by {time:?}", share * 100.0);
    }
    wanted
}

/// One JSON object a phase, and one with the totals.
pub struct Json<W>(pub W);

impl<W: Write> Json<W> {
    fn line(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.0, "{value}")?;
        self.0.flush()
    }
}

impl<W: Write + Send> Reporter for Json<W> {
    fn begin(&mut self, _phase: &str) -> io::Result<()> {
        Ok(())
    }

    fn progress(&mut self, _outlook: &Outlook) {}

    fn end(&mut self, outlook: &Outlook) -> io::Result<()> {
        let mut services = Map::new();
        for (edge, tally) in &outlook.seen {
            let by_user = services.entry(edge.0.name()).or_insert_with(|| json!({}));
            by_user[edge.1.unwrap_or("anyone")] = service(tally, outlook.expected.get(edge));
        }
        let foreign: Map<String, Value> = outlook
            .foreign
            .iter()
            .map(|(host, route)| match route {
                Ok(route) => (host.clone(), json!({ "route": route })),
                Err(error) => (host.clone(), json!({ "error": error })),
            })
            .collect();
        let rate = outlook.pages as f64 / outlook.time.as_secs_f64().max(f64::MIN_POSITIVE);
        self.line(&json!({
            "phase": outlook.name,
            "ok": outlook.is_ok(),
            "pages": outlook.pages,
            "failed": outlook.failed,
            "rate": (rate * 10.0).round() / 10.0,
            "ms": outlook.latencies.percentiles(),
            "settled_ms": outlook.settled.as_millis() as u64,
            "services": services,
            "hosts": foreign,
            "reports": outlook.reports,
            "problems": outlook.problems,
        }))
    }

    fn summary(&mut self, outlooks: &[Outlook]) -> io::Result<()> {
        let pages: u64 = outlooks.iter().map(|outlook| outlook.pages).sum();
        let wrong: Vec<&str> =
            outlooks.iter().filter(|outlook| !outlook.is_ok()).map(|outlook| outlook.name.as_str()).collect();
        let summary = json!({ "phases": outlooks.len(), "pages": pages, "ok": wrong.is_empty(), "wrong": wrong });
        self.line(&json!({ "summary": summary }))
    }
}

fn service(tally: &Tally, expected: Option<&Expectation>) -> Value {
    let seen: Map<String, Value> =
        tally.outcomes.iter().map(|(outcome, seen)| (describe(outcome), json!(seen))).collect();
    let expected = expected.map(|expected| {
        let shares: Map<String, Value> =
            expected.outcomes.iter().map(|(outcome, share)| (describe(outcome), json!(share))).collect();
        let delay = expected.delay.map(|(share, time)| json!({ "share": share, "ms": time.as_millis() as u64 }));
        json!({ "shares": shares, "weighted": expected.weighted, "delay": delay })
    });
    let errors: Map<String, Value> =
        tally.errors.iter().map(|(outcome, error)| (describe(outcome), json!(error))).collect();
    json!({
        "calls": tally.calls(),
        "answered": seen,
        "expected": expected,
        "errors": errors,
        "ms": tally.latencies.percentiles(),
    })
}
