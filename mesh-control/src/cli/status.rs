//! `mesh-control status`: who is connected, what they were sent, and what they said to it.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use mesh_core::printable::printable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Format, Printing};
use crate::config::store::Standing;
use crate::ratelimit::WITHOUT_RULES;
use crate::serve::status::Status;
use crate::serve::{ClientStatus, KindStatus};

/// The server that a command asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StatusServer {
    /// Where mesh-control serves its status.
    #[arg(long, aliases = ["addr", "control"], value_name = "HOST:PORT", default_value = "127.0.0.1:15014")]
    pub(super) status_addr: String,
}

/// Shows who is connected, what was sent to whom, and whether it was accepted.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: StatusServer,
    /// As JSON, the report has every name.
    #[command(flatten)]
    printing: Printing,
}

/// A report is an answer of a local server: it comes soon or not at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// No report is larger.
const MAX_REPORT: u64 = 256 << 20;

pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let format = args.printing.format();
    let path = if format == Format::Json { "/status?names=all" } else { "/status" };
    let body = get(&args.server.status_addr, path).await?;
    let text = match format {
        Format::Json => format!("{body}\n"),
        Format::Text => table(&serde_json::from_str(&body).context("not a status report")?, SystemTime::now()),
    };
    Ok(super::say(&text)?)
}

/// A path with a query, in which a value means nothing but itself.
pub(super) fn path(path: &str, query: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (at, (name, value)) in query.iter().enumerate() {
        let _ = write!(out, "{}{name}=", if at == 0 { '?' } else { '&' });
        for byte in value.bytes() {
            let _ = match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                    write!(out, "{}", char::from(byte))
                }
                _ => write!(out, "%{byte:02X}"),
            };
        }
    }
    out
}

/// What a page of the status says.
pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let answer = tokio::time::timeout(PATIENCE, ask(address, path)).await;
    answer.map_err(|_| anyhow::anyhow!("{address}: no answer in {PATIENCE:?}"))?
}

/// One GET over HTTP/1.0: the answer ends where the connection ends.
async fn ask(address: &str, path: &str) -> anyhow::Result<String> {
    let unreachable = || format!("cannot reach mesh-control's status at {address}");
    let mut stream = TcpStream::connect(address).await.with_context(unreachable)?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.with_context(unreachable)?;
    let mut answer = String::new();
    stream.take(MAX_REPORT).read_to_string(&mut answer).await.with_context(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{address}{path}: {}: {}", head.lines().next().unwrap_or_default(), body.trim());
    }
    Ok(body.to_owned())
}

const DAY: u64 = 24 * 3600;

const KINDS: [&str; 4] = ["lds", "rds", "cds", "eds"];

fn table(status: &Status, now: SystemTime) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "mesh-control {}: {}, {}, {}{}{}{}",
        status.version,
        count(status.services, "service"),
        count(status.clients.len(), "client"),
        count(status.workloads.len(), "workload"),
        if status.ready { "" } else { ", not ready" },
        status
            .config_stale_seconds
            .map(|age| format!(
                ", configuration {age:.0}s old ({})",
                status.config_stale_reason.as_deref().unwrap_or("-")
            ))
            .unwrap_or_default(),
        status.settling_seconds.map(|left| format!(", settling for {left:.1}s")).unwrap_or_default(),
    );
    authority(status, now, &mut out);
    clients(status, &mut out);
    refusals(status, &mut out);
    turned_away(status, &mut out);
    workloads(status, &mut out);
    wrong(status, &mut out);
    rate_limits(status, &mut out);
    if let Some(store) = &status.quotas_away {
        let _ = writeln!(out, "\n{}", quotas_away(store));
    }
    diagnostics(status, &mut out);
    out
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn authority(status: &Status, now: SystemTime, out: &mut String) {
    let Some(authority) = &status.authority else { return };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = |expires: u64| match expires.checked_sub(now) {
        Some(left) if left >= 2 * DAY => format!("{} days", left / DAY),
        Some(left) => format!("{} h", left / 3600),
        None => "expired".to_owned(),
    };
    let lists = authority.revoked.as_ref().filter(|revoked| revoked.lists > 0);
    let lists = lists.map_or("-".to_owned(), |revoked| {
        format!("{}, {}", count(revoked.lists, "list"), revoked.expires.map_or("-".to_owned(), left))
    });
    let heads = ["AUTHORITY", "ROOT EXPIRES IN", "CHAIN EXPIRES IN", "REVOKED BY"].map(str::to_owned);
    let (root, chain) = (left(authority.root_expires), left(authority.chain_expires));
    section(vec![heads, [authority.trust_domain.clone(), root, chain, lists]], out);
    let mut rows = vec![["TRUSTED DOMAIN", "ROOTS", "EXPIRE IN", "FROM"].map(str::to_owned)];
    rows.extend(authority.trust_bundles.iter().map(|bundle| {
        let ends = bundle.expires.map_or("-".to_owned(), left);
        [bundle.trust_domain.clone(), bundle.roots.to_string(), ends, bundle.source.clone()]
    }));
    section(rows, out);
    for problem in authority.problems() {
        let _ = writeln!(out, "{}", printable(&problem));
    }
}

fn clients(status: &Status, out: &mut String) {
    let mut rows = vec![["CLIENT", "CLASS", "PROTOCOL", "LDS", "RDS", "CDS", "EDS"].map(str::to_owned)];
    rows.extend(status.clients.iter().map(|client| {
        let [lds, rds, cds, eds] = KINDS.map(|kind| cell(client, kind));
        [short(&client.node), client.class.clone(), client.protocol.clone(), lds, rds, cds, eds]
    }));
    section(rows, out);
}

fn cell(client: &ClientStatus, kind: &str) -> String {
    let Some(KindStatus { state, subscribed, wildcard, .. }) = client.kinds.iter().find(|one| one.kind == kind) else {
        return "-".to_owned();
    };
    match (wildcard, subscribed) {
        (true, _) => format!("{state} {subscribed} (all)"),
        (false, 0) => "-".to_owned(),
        (false, _) => format!("{state} {subscribed}"),
    }
}

fn refusals(status: &Status, out: &mut String) {
    let mut rows = vec![["REFUSED BY", "TYPE", "AGO", "STANDS", "RESOURCES", "REASON"].map(str::to_owned)];
    for client in &status.clients {
        for kind in &client.kinds {
            if let Some(nack) = &kind.last_nack {
                rows.push([
                    short(&client.node),
                    kind.kind.clone(),
                    format!("{:.0}s", nack.seconds_ago),
                    if kind.state == "refused" { "yes" } else { "no" }.to_owned(),
                    nack.names.join(", "),
                    nack.text.clone(),
                ]);
            }
        }
    }
    section(rows, out);
}

fn turned_away(status: &Status, out: &mut String) {
    let mut rows = vec![["TURNED AWAY", "FROM", "REASON", "TIMES", "AGO", "WHY"].map(str::to_owned)];
    rows.extend(status.turned_away.iter().map(|one| {
        let node = match (&*one.node, &*one.port) {
            ("", "" | "xds") => "-".to_owned(),
            ("", port) => format!("({port})"),
            (node, _) => short(node),
        };
        let ago = format!("{:.0}s", one.seconds_ago);
        [node, one.peer.to_string(), one.reason.clone(), one.count.to_string(), ago, one.text.clone()]
    }));
    section(rows, out);
}

fn workloads(status: &Status, out: &mut String) {
    let mut rows = vec![["WORKLOAD", "ADDRESS", "STATE", "SERVES", "LABELS"].map(str::to_owned)];
    rows.extend(status.workloads.iter().map(|workload| {
        let labels: Vec<_> = workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = match workload.expires_seconds {
            Some(left) => format!("lost, gone in {left:.0}s"),
            None if workload.certificate == "claimed" => "connected, certificate claimed and not seen".to_owned(),
            None => "connected".to_owned(),
        };
        let state = match (&workload.group, &workload.health) {
            (None, _) => state,
            (Some(group), None) => format!("{state}, member of {group}"),
            (Some(group), Some(health)) => format!("{state}, member of {group}, {health}"),
        };
        let serves = match &workload.note {
            Some(note) if workload.serves.is_empty() => note.clone(),
            Some(note) => format!("{} ({note})", workload.serves.join(",")),
            None => workload.serves.join(","),
        };
        [short(&workload.node), workload.address.to_string(), state, serves, labels.join(",")]
    }));
    section(rows, out);
}

fn wrong(status: &Status, out: &mut String) {
    let mut rows = vec![["WRONG", "IN FORCE INSTEAD", "REASON"].map(str::to_owned)];
    rows.extend(status.wrong.iter().map(|one| {
        let known = Standing::ALL.into_iter().find(|standing| standing.as_str() == one.standing);
        let kind = one.object.as_deref().and_then(|object| object.split(' ').next()).unwrap_or_default();
        let instead = match known {
            Some(standing) => standing.instead(kind),
            None => &one.standing,
        };
        [one.object.clone().unwrap_or_else(|| one.file.clone()), instead.to_owned(), one.reason.clone()]
    }));
    section(rows, out);
}

/// How many domains without rules the table names; JSON has more.
const MOST_UNKNOWN_SHOWN: usize = 10;

fn rate_limits(status: &Status, out: &mut String) {
    let Some(limits) = &status.rate_limits else { return };
    let store = if limits.reached { limits.store.clone() } else { format!("{}, which is away", limits.store) };
    let _ =
        writeln!(out, "\nrate limits: counted in {store}, {} kept, {} not counted", limits.keys, limits.not_counted);
    if !limits.current {
        let instead = if limits.without_rules { WITHOUT_RULES } else { "the last good ones are in force" };
        let _ = writeln!(out, "the rules of rate limits are wrong, and {instead}:");
        for finding in &limits.findings {
            let _ = writeln!(out, "  {}", printable(finding));
        }
    }
    if limits.unknown_domain > 0 {
        let shown = limits.unknown_domains.iter().take(MOST_UNKNOWN_SHOWN);
        let mut names: Vec<String> = shown.map(|name| printable(name)).collect();
        match limits.unknown_domains.len().saturating_sub(names.len()) {
            0 if names.is_empty() => names.push("they have some by now".to_owned()),
            0 => {}
            more => names.push(format!("and {more} more")),
        }
        let names = names.join(", ");
        let _ = writeln!(out, "{} passed, as their domains had no rules: {names}", limits.unknown_domain);
    }
    let mut rows = vec![["RATE LIMIT", "RULE", "HITS", "OVER", "NEAR", "SHADOW"].map(str::to_owned)];
    rows.extend(limits.rules.iter().map(|rule| {
        let [hits, over, near, shadow] = [rule.hits, rule.over, rule.near, rule.shadow].map(|hits| hits.to_string());
        [rule.domain.clone(), rule.rule.clone(), hits, over, near, shadow]
    }));
    section(rows, out);
}

fn diagnostics(status: &Status, out: &mut String) {
    let mut rows = vec![["SEVERITY", "WHERE", "WHAT", "MESSAGE"].map(str::to_owned)];
    // What asks for nothing is for `validate` to say, and for those who read JSON.
    rows.extend(status.diagnostics.iter().filter(|one| one.severity != "info").map(|one| {
        let place = match (&one.file, one.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            (Some(file), None) => file.clone(),
            _ => "-".to_owned(),
        };
        let what = [one.object.as_deref(), one.field.as_deref()];
        [one.severity.clone(), place, what.into_iter().flatten().collect::<Vec<_>>().join(" "), one.message.clone()]
    }));
    section(rows, out);
}

/// `name.namespace` of an Istio node id; any other id as it is.
pub(super) fn short(node: &str) -> String {
    let name = node.split('~').nth(2).filter(|name| !name.is_empty()).unwrap_or(node);
    if name.is_empty() { "(no id)".to_owned() } else { name.to_owned() }
}

/// What is said where the quotas are kept in something that is away.
pub(super) fn quotas_away(store: &str) -> String {
    format!("quotas are kept in {store}, which is away: no shares are assigned")
}

/// Columns as wide as their widest cell; nothing at all without a row.
pub(super) fn section<const N: usize>(rows: Vec<[String; N]>, out: &mut String) {
    if rows.len() < 2 {
        return;
    }
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    out.push('\n');
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", printable(cell)));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{NackStatus, TurnedAwayStatus};

    #[test]
    fn the_table_says_who_refused_what_and_why() {
        let kind = |kind: &str, state: &str, nack| KindStatus {
            kind: kind.to_owned(),
            state: state.to_owned(),
            wildcard: false,
            subscribed: 2,
            names: Vec::new(),
            sent_version: String::new(),
            acked_version: String::new(),
            acked_seconds_ago: None,
            pending_seconds: None,
            unsent: 0,
            pushes: 1,
            nacks: 1,
            last_nack: nack,
        };
        let nack =
            NackStatus { text: "no such\u{1b}[2Jpolicy".to_owned(), names: vec!["b".to_owned()], seconds_ago: 3.0 };
        let status = Status {
            version: "0.1.0".to_owned(),
            started: 0,
            ready: true,
            config_stale_seconds: None,
            config_stale_reason: None,
            settling_seconds: None,
            services: 4,
            authority: None,
            certificates: Vec::new(),
            clients: vec![ClientStatus {
                node: "mesh~10.0.0.1~web-1.shop~shop.svc.cluster.local".to_owned(),
                class: "grpc".to_owned(),
                user_agent: "gRPC C-core".to_owned(),
                namespace: "shop".to_owned(),
                workload: "shop/web".to_owned(),
                labels: Default::default(),
                group: None,
                identity: None,
                certificate_serial: None,
                certificate_expires: None,
                peer: [10, 0, 0, 1].into(),
                protocol: "sotw".to_owned(),
                connected_since: 0,
                kinds: vec![kind("cds", "refused", Some(nack)), kind("lds", "synced", None)],
            }],
            turned_away: vec![TurnedAwayStatus {
                port: "xds".to_owned(),
                peer: [10, 0, 0, 2].into(),
                node: String::new(),
                reason: "no-certificate".to_owned(),
                text: "peer sent no certificates".to_owned(),
                count: 7,
                seconds_ago: 2.0,
            }],
            workloads: Vec::new(),
            diagnostics: Vec::new(),
            wrong: Vec::new(),
            rate_limits: None,
            quotas_away: Some("redis".to_owned()),
        };
        let table = table(&status, SystemTime::UNIX_EPOCH);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "mesh-control 0.1.0: 4 services, 1 client, 0 workloads");
        assert_eq!(
            lines[3].split_whitespace().collect::<Vec<_>>(),
            ["web-1.shop", "grpc", "sotw", "synced", "2", "-", "refused", "2", "-"]
        );
        assert!(lines[6].contains("web-1.shop") && lines[6].contains("no such [2Jpolicy"), "{table}");
        assert!(!table.contains('\u{1b}'));
        assert!(table.ends_with("\nquotas are kept in redis, which is away: no shares are assigned\n"), "{table}");
        let turned_away = lines[9].split_whitespace().collect::<Vec<_>>();
        assert_eq!(turned_away[..5], ["-", "10.0.0.2", "no-certificate", "7", "2s"], "{table}");
    }
}
