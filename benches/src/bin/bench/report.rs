//! What was measured, as tables and as JSON, and whether the mesh keeps its bars.

use std::collections::BTreeMap;

use mesh_benches::load::Figures;
use mesh_benches::process::{Memory, mebibytes};
use mesh_benches::stats::{Ratio, median};
use serde_json::{Value, json};

use crate::cases::Contender;

/// Whom the mesh must not be slower than.
const BARS: [&str; 3] = ["pooled", "channel", "balance_list"];

/// What telemetry may cost each side, in nanoseconds of processor time for each request.
const TELEMETRY: f64 = 300.0;

/// A side with its telemetry on, beside the same without, in the same rounds.
struct Telemetry<'a> {
    case: &'a str,
    side: &'static str,
    nanoseconds: Ratio,
}

/// The mesh beside another, in the same case and rounds.
struct Comparison<'a> {
    case: &'a str,
    mesh: &'static str,
    other: &'static str,
    rate: Ratio,
    p99: Ratio,
    cpu: Ratio,
    /// Whether it keeps its bar; `None` where there is none.
    passed: Option<bool>,
}

/// Prints two tables; whether every bar is kept.
pub(crate) fn tables(contenders: &[Contender], machine: &str, seconds: f64) -> bool {
    let rounds = contenders.first().map_or(0, |contender| contender.rounds.len());
    println!("{machine}. Medians of {rounds} interleaved rounds of {seconds} s. CPU in µs a request.\n");
    println!("| case | client | requests/s | p50 µs | p99 µs | p99.9 µs | client CPU | server CPU |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for contender in contenders {
        let of = |field: fn(&Figures) -> f64| median_of(contender, field);
        println!(
            "| {} | {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            contender.case,
            contender.name,
            of(|it| it.rate),
            of(|it| it.p50),
            of(|it| it.p99),
            of(|it| it.p999),
            of(|it| it.client_cpu),
            of(|it| it.server_cpu)
        );
    }
    let comparisons = compare(contenders);
    if !comparisons.is_empty() {
        println!(
            "\nThe mesh compared: ratios to the other, with the error of the median. CPU is of both sides together.\n"
        );
        println!("| case | | against | requests/s | p99 | CPU | bar |");
        println!("|---|---|---|---:|---:|---:|---|");
    }
    for it in &comparisons {
        let show = |ratio: Ratio| format!("{:.3} ± {:.3}", ratio.median, ratio.noise);
        let bar = it.passed.map_or("", |passed| if passed { "pass" } else { "**fail**" });
        let (rate, p99, cpu) = (show(it.rate), show(it.p99), show(it.cpu));
        println!("| {} | {} | {} | {rate} | {p99} | {cpu} | {bar} |", it.case, it.mesh, it.other);
    }
    let telemetry = telemetry(contenders);
    if !telemetry.is_empty() {
        println!(
            "\nTelemetry: nanoseconds of processor time that it costs a side for each request, with the error of the median.\n"
        );
        println!("| case | side | ns | bar |");
        println!("|---|---|---:|---|");
    }
    for it in &telemetry {
        let Ratio { median, noise } = it.nanoseconds;
        let bar = if it.is_met() { "pass" } else { "**fail**" };
        println!("| {} | {} | {median:.0} ± {noise:.0} | {bar}: ≤ {TELEMETRY:.0} |", it.case, it.side);
    }
    for (name, bytes) in pairs(contenders) {
        println!("\nResident memory of the pair of {name}, after all that: {:.1} MiB.", mebibytes(bytes));
    }
    passed(&comparisons, &telemetry)
}

/// What there is beside clients and servers, and the memory of both processes of a pair.
fn pairs(contenders: &[Contender]) -> BTreeMap<&'static str, u64> {
    let memory = |processes: &[u32]| processes.first().and_then(|id| Memory::of(*id).ok());
    let pairs = contenders.iter().filter(|it| it.client.len() > 1);
    let of_pair = |it: &Contender| Some((it.name, memory(&it.client)?.resident + memory(&it.server)?.resident));
    pairs.filter_map(of_pair).collect()
}

/// Prints everything as one JSON object; whether every bar is kept.
pub(crate) fn json(contenders: &[Contender], machine: &str, seconds: f64) -> bool {
    let (comparisons, telemetry) = (compare(contenders), telemetry(contenders));
    let measured = |it: &Contender| json!({ "case": it.case, "client": it.name, "rounds": it.rounds });
    let ratio = |ratio: Ratio| json!({ "median": ratio.median, "noise": ratio.noise });
    let compared = |it: &Comparison<'_>| {
        json!({
            "case": it.case, "mesh": it.mesh, "against": it.other, "passed": it.passed,
            "rate": ratio(it.rate), "p99": ratio(it.p99), "cpu": ratio(it.cpu),
        })
    };
    let costs = |it: &Telemetry<'_>| json!({ "case": it.case, "side": it.side, "passed": it.is_met(), "nanoseconds": ratio(it.nanoseconds) });
    let all = json!({
        "machine": machine,
        "seconds": seconds,
        "measured": contenders.iter().map(measured).collect::<Vec<Value>>(),
        "compared": comparisons.iter().map(compared).collect::<Vec<Value>>(),
        "telemetry": telemetry.iter().map(costs).collect::<Vec<Value>>(),
    });
    println!("{all}");
    passed(&comparisons, &telemetry)
}

fn passed(comparisons: &[Comparison<'_>], telemetry: &[Telemetry<'_>]) -> bool {
    comparisons.iter().all(|comparison| comparison.passed != Some(false)) && telemetry.iter().all(Telemetry::is_met)
}

impl Telemetry<'_> {
    fn is_met(&self) -> bool {
        self.nanoseconds.may_stay_at(TELEMETRY)
    }
}

/// What telemetry costs each side, where a case has it on and off.
fn telemetry(contenders: &[Contender]) -> Vec<Telemetry<'_>> {
    let client: fn(&Figures) -> f64 = |it| it.client_cpu * 1000.0;
    let server: fn(&Figures) -> f64 = |it| it.server_cpu * 1000.0;
    let mut costs = Vec::new();
    for case in contenders.chunk_by(|a, b| a.case == b.case) {
        let find = |name: &str| case.iter().find(|contender| contender.name == name);
        for (side, off, on, time) in
            [("client", "mesh", "observed", client), ("server", "server", "observed server", server)]
        {
            if let (Some(off), Some(on)) = (find(off), find(on)) {
                let nanoseconds = Ratio::beyond(&values(on, time), &values(off, time));
                costs.push(Telemetry { case: &on.case, side, nanoseconds });
            }
        }
    }
    costs
}

/// The mesh's client beside every other client; the mesh on both sides, where it was measured, and pairs of `mesh-sidecar` beside
/// the sidecars, and by mutual TLS beside itself in plaintext.
fn compare(contenders: &[Contender]) -> Vec<Comparison<'_>> {
    let mut comparisons = Vec::new();
    for case in contenders.chunk_by(|a, b| a.case == b.case) {
        let find = |name: &str| case.iter().find(|contender| contender.name == name);
        for other in case {
            let mesh = match other.name {
                "mesh" | "mesh both" | "mesh both mTLS" | "mesh-sidecars" | "mesh-sidecars mTLS" => continue,
                "observed" | "server" | "observed server" => continue,
                "mesh both open" => find("mesh both mTLS"),
                "sidecars" => find("mesh both").or_else(|| find("mesh")),
                _ => find("mesh"),
            };
            comparisons.extend(mesh.map(|mesh| comparison(mesh, other)));
            if other.name == "sidecars" {
                let pairs = ["mesh-sidecars", "mesh-sidecars mTLS"].into_iter().filter_map(find);
                comparisons.extend(pairs.map(|pair| comparison(pair, other)));
            }
        }
    }
    comparisons
}

fn comparison<'a>(mesh: &'a Contender, other: &'a Contender) -> Comparison<'a> {
    let ratio = |field: fn(&Figures) -> f64| Ratio::of(&values(mesh, field), &values(other, field));
    let (rate, p99) = (ratio(|it| it.rate), ratio(|it| it.p99));
    let kept = rate.may_reach(1.0) && p99.may_stay_at(1.0);
    Comparison {
        case: &mesh.case,
        mesh: mesh.name,
        other: other.name,
        rate,
        p99,
        cpu: ratio(|it| it.client_cpu + it.server_cpu),
        passed: BARS.contains(&other.name).then_some(kept),
    }
}

fn values(contender: &Contender, field: fn(&Figures) -> f64) -> Vec<f64> {
    contender.rounds.iter().map(field).collect()
}

fn median_of(contender: &Contender, field: fn(&Figures) -> f64) -> f64 {
    median(&values(contender, field))
}
