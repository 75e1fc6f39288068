//! `mesh-control top`: what goes between services now.

use anyhow::Context;
use serde_json::json;

use super::status::{StatusServer, get, section};
use super::{Format, Printing};
use crate::serve::status::{Edge, Graph};

/// Shows how many requests go from whom to which service now, how many fail, and how long they take: as workloads report it, of the
/// last 15 seconds.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: StatusServer,
    /// Only edges with this in the name of one of their ends.
    #[arg(value_name = "TEXT")]
    filter: Option<String>,
    #[command(flatten)]
    printing: Printing,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let mut edges = graph(&args.server.status_addr).await?.edges;
    if let Some(text) = &args.filter {
        edges.retain(|edge| edge.source.contains(text.as_str()) || edge.destination.contains(text.as_str()));
    }
    Ok(super::say(&match args.printing.format() {
        Format::Json => format!("{:#}\n", json!({ "edges": edges })),
        Format::Text => table(&edges),
    })?)
}

/// The graph that a server tells.
pub(super) async fn graph(status_addr: &str) -> anyhow::Result<Graph> {
    serde_json::from_str(&get(status_addr, "/api/graph").await?).context("not a graph")
}

/// What is read on a terminal.
fn table(edges: &[Edge]) -> String {
    if edges.is_empty() {
        return "no requests were reported lately\n".to_owned();
    }
    let mut rows =
        vec![["SOURCE", "DESTINATION", "REQ/S", "FAIL", "P50 MS", "P99 MS", "TLS", "CLIENT"].map(str::to_owned)];
    rows.extend(edges.iter().map(row));
    let mut out = String::new();
    section(rows, &mut out);
    out.trim_start().to_owned()
}

fn row(edge: &Edge) -> [String; 8] {
    let millis = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.1}"));
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    [
        edge.source.clone(),
        edge.destination.clone(),
        format!("{:.1}", edge.requests_per_second),
        percent(edge.error_rate),
        millis(edge.p50_ms),
        millis(edge.p99_ms),
        match edge.mutual_tls {
            None => "-".to_owned(),
            Some(1.0..) => "mutual".to_owned(),
            Some(0.0) => "none".to_owned(),
            Some(share) => percent(share),
        },
        edge.class.clone(),
    ]
}
