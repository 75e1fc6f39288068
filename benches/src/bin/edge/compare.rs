//! Two edges that are asked the same, by turns, and what came of it.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use mesh_benches::Result;
use mesh_benches::clients::{Job, Version};
use mesh_benches::load::{self, Figures};
use mesh_benches::process::{Memory, mebibytes};
use mesh_benches::stats::{Ratio, median};

use crate::Args;
use crate::door::Door;
use crate::world::answered;

/// Sizes of bodies, each way.
const BODIES: [(usize, &str); 2] = [(256, "256B"), (16 << 10, "16KiB")];
/// Connections with one request at a time each.
const CONNECTIONS: [usize; 2] = [16, 256];

/// A gateway, or a pair of sidecars.
pub(crate) struct Edge {
    pub(crate) name: &'static str,
    /// Its own processes, and nobody else's.
    pub(crate) processes: Vec<u32>,
    /// Where it is asked, for each version of HTTP.
    pub(crate) doors: Vec<Door>,
}

/// What ours has to be beside the other one.
pub(crate) struct Bars {
    /// At least so many times as many requests for each second of a CPU.
    pub(crate) per_cpu: f64,
    /// At most so many times the p99.
    pub(crate) p99: Option<f64>,
    /// At most so many times the memory.
    pub(crate) memory: Option<f64>,
}

/// One of the two in one case.
struct Contender<'e> {
    edge: &'e Edge,
    door: &'e Door,
    job: Job<Full<Bytes>>,
    rounds: Vec<Measured>,
}

struct Measured {
    figures: Figures,
    /// Resident, in MiB.
    memory: f64,
}

struct Case<'e> {
    name: String,
    connections: usize,
    /// Ours, and the other one.
    contenders: [Contender<'e>; 2],
}

/// Measures both in every case, and prints what was seen; whether every bar is met.
pub(crate) async fn compare(ours: &Edge, theirs: &Edge, bars: &Bars, args: &Args) -> Result<bool> {
    for door in ours.doors.iter().chain(&theirs.doors) {
        answered(door).await?;
    }
    let mut cases = cases(ours, theirs)?;
    let time = Duration::from_secs_f64(args.seconds);
    for round in 0..args.rounds {
        eprintln!("round {} of {}: {} and {}, {} cases", round + 1, args.rounds, ours.name, theirs.name, cases.len());
        for case in &mut cases {
            // Each round begins with the other one, so that none is always after the same.
            for turn in 0..2 {
                let contender = &mut case.contenders[(round + turn) % 2];
                let measured = measure(contender, case.connections, time).await;
                let about = || format!("{} {}", case.name, contender.edge.name);
                contender.rounds.push(measured.with_context(about)?);
            }
        }
    }
    Ok(report(&cases, bars, args))
}

fn cases<'e>(ours: &'e Edge, theirs: &'e Edge) -> Result<Vec<Case<'e>>> {
    let mut cases = Vec::new();
    for doors in ours.doors.iter().zip(&theirs.doors) {
        let protocol = match doors.0.version {
            Version::Http1 => "http1",
            Version::Http2 => "http2",
        };
        for (size, body) in BODIES {
            for connections in CONNECTIONS {
                let contender = |edge, door: &'e Door| {
                    anyhow::Ok(Contender { edge, door, job: door.job(size)?, rounds: Vec::new() })
                };
                let contenders = [contender(ours, doors.0)?, contender(theirs, doors.1)?];
                cases.push(Case { name: format!("{protocol}/c{connections}/{body}"), connections, contenders });
            }
        }
    }
    Ok(cases)
}

async fn measure(contender: &Contender<'_>, connections: usize, time: Duration) -> Result<Measured> {
    let mut crew = contender.door.callers(&contender.job, connections).await?;
    let processes = &contender.edge.processes;
    let figures = load::measure(&mut crew, time, &[std::process::id()], processes).await?;
    Ok(Measured { figures, memory: resident(processes)? })
}

/// What these have together, in MiB.
pub(crate) fn resident(processes: &[u32]) -> Result<f64> {
    processes.iter().map(|process| anyhow::Ok(mebibytes(Memory::of(*process)?.resident))).sum()
}

/// Requests for each second of a CPU of the server's side.
pub(crate) fn per_cpu(figures: &Figures) -> f64 {
    1e6 / figures.server_cpu
}

impl Contender<'_> {
    fn values(&self, of: fn(&Measured) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }
}

fn report(cases: &[Case<'_>], bars: &Bars, args: &Args) -> bool {
    println!("\nMedians of {} interleaved rounds of {} s.\n", args.rounds, args.seconds);
    println!("| case | | requests/s | p99 µs | requests per CPU-second | resident MiB |");
    println!("|---|---|---:|---:|---:|---:|");
    for case in cases {
        for contender in &case.contenders {
            let of = |field: fn(&Measured) -> f64| median(&contender.values(field));
            println!(
                "| {} | {} | {:.0} | {:.0} | {:.0} | {:.1} |",
                case.name,
                contender.edge.name,
                of(|it| it.figures.rate),
                of(|it| it.figures.p99),
                of(|it| per_cpu(&it.figures)),
                of(|it| it.memory)
            );
        }
    }
    println!("\nOurs beside the other one: ratios, with the error of the median, and their bars.\n");
    println!("| case | requests/s | requests per CPU-second | p99 | resident memory |");
    println!("|---|---:|---:|---:|---:|");
    let mut is_met = true;
    for case in cases {
        let [ours, theirs] = &case.contenders;
        let ratio = |of: fn(&Measured) -> f64| Ratio::of(&ours.values(of), &theirs.values(of));
        let (rate, cpu) = (ratio(|it| it.figures.rate), ratio(|it| per_cpu(&it.figures)));
        let (p99, memory) = (ratio(|it| it.figures.p99), ratio(|it| it.memory));
        let at_least = format!("≥ {:.2}", bars.per_cpu);
        let cpu = judged(cpu, Some((at_least, cpu.may_reach(bars.per_cpu))), &mut is_met);
        let [p99, memory] = [(p99, bars.p99), (memory, bars.memory)].map(|(ratio, bar)| {
            judged(ratio, bar.map(|bar| (format!("≤ {bar:.2}"), ratio.may_stay_at(bar))), &mut is_met)
        });
        println!("| {} | {} | {cpu} | {p99} | {memory} |", case.name, judged(rate, None, &mut is_met));
    }
    is_met
}

/// A ratio, and its bar with whether it is met.
pub(crate) fn judged(ratio: Ratio, bar: Option<(String, bool)>, is_met: &mut bool) -> String {
    let shown = format!("{:.3} ± {:.3}", ratio.median, ratio.noise);
    match bar {
        None => shown,
        Some((bar, true)) => format!("{shown}, {bar}: met"),
        Some((bar, false)) => {
            *is_met = false;
            format!("{shown}, {bar}: **missed**")
        }
    }
}
