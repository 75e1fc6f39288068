//! `mesh-control quota`: who has used how much of which quota.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde_json::json;

use super::status::{StatusServer, get, quotas_away, section};
use super::{Format, Printing};
use crate::config::diagnostic::quoted;
use crate::quota::{QuotaStatus, QuotaUse};

/// Shows how much of its quota each identity has used, and what is left: as far as this server was told, which other replicas
/// on one Redis may have been, too.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: StatusServer,
    /// Only those with this in the name of the quota or of the identity.
    #[arg(value_name = "TEXT")]
    filter: Option<String>,
    #[command(flatten)]
    printing: Printing,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let status = get(&args.server.status_addr, "/api/quotas").await?;
    let mut status: QuotaStatus = serde_json::from_str(&status).context("no quotas")?;
    let filter = args.filter.as_deref().filter(|_| !status.identities.is_empty());
    if let Some(text) = filter {
        status.identities.retain(|one| one.quota.contains(text) || one.identity().contains(text));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(super::say(&match args.printing.format() {
        Format::Json => format!("{:#}\n", json!(status)),
        Format::Text => table(&status, filter, now),
    })?)
}

/// What is read on a terminal; `filter` is what left out some.
fn table(status: &QuotaStatus, filter: Option<&str>, now: Duration) -> String {
    let mut out = String::new();
    if !status.reached {
        let _ = writeln!(out, "{}", quotas_away(&status.store));
    }
    if status.not_settled > 0 {
        let _ = writeln!(out, "{} reports could not be settled when they came", status.not_settled);
    }
    if status.identities.is_empty() {
        out += &match filter {
            Some(text) => format!("no quota that is in use has {} in its name or its identity\n", quoted(text)),
            None => "no quota is in use\n".to_owned(),
        };
        return out;
    }
    let mut rows =
        vec![["QUOTA", "RULE", "IDENTITY", "USED", "LEASED", "LEFT", "OF", "DENIED", "RESETS IN"].map(str::to_owned)];
    rows.extend(status.identities.iter().map(|one| row(one, now)));
    section(rows, &mut out);
    out.trim_start().to_owned()
}

fn row(one: &QuotaUse, now: Duration) -> [String; 9] {
    [
        one.quota.split_once(' ').map_or(&*one.quota, |(_, name)| name).to_owned(),
        one.rule.clone(),
        one.identity(),
        one.used.to_string(),
        one.leased.to_string(),
        one.left.to_string(),
        format!("{} {} {}", one.limit, if one.unit == "hour" { "an" } else { "a" }, one.unit),
        one.denied.to_string(),
        in_words(one.resets.saturating_sub(now.as_secs())),
    ]
}

/// `12d 5h`, `5h 3m`, `3m 7s` or `7s`.
fn in_words(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_who_used_how_much_and_when_there_is_more() {
        let status = json!({
            "store": "redis", "reached": false, "not_settled": 2,
            "identities": [{
                "quota": "Quota shop/reviews", "rule": "each-user", "by": {"x-user": "ada\u{1b}[2J", "method": "GET"},
                "limit": 100, "unit": "day", "used": 70, "leased": 10, "left": 20, "denied": 3, "resets": 11_000,
            }],
        });
        let said = |status: &serde_json::Value, filter| {
            table(&serde_json::from_value(status.clone()).unwrap(), filter, Duration::from_secs(3))
        };
        let table = said(&status, None);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("quotas are kept in redis, which is away"), "{table}");
        assert!(lines[1].starts_with("2 reports could not be settled"), "{table}");
        let cells: Vec<&str> = lines.last().unwrap().split("  ").filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells[..2], ["shop/reviews", "each-user"], "{table}");
        assert!(cells[2].starts_with("method=GET,x-user=ada") && !table.contains('\u{1b}'), "{table}");
        assert_eq!(
            cells[3..].iter().map(|cell| cell.trim()).collect::<Vec<_>>(),
            ["70", "10", "20", "100 a day", "3", "3h 3m"]
        );
        let mut hourly = status.clone();
        hourly["identities"][0]["unit"] = json!("hour");
        let hourly = said(&hourly, None);
        assert!(hourly.contains("100 an hour"), "{hourly}");
        let mut none = status.clone();
        (none["identities"], none["reached"], none["not_settled"]) = (json!([]), json!(true), json!(0));
        assert_eq!(said(&none, None), "no quota is in use\n");
        assert_eq!(said(&none, Some("bob")), "no quota that is in use has `bob` in its name or its identity\n");
        assert_eq!([7, 187, 90_000].map(in_words), ["7s", "3m 7s", "1d 1h"]);
    }
}
