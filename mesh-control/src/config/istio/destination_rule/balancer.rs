//! What of a load balancer's settings cannot stand together, or cannot be.

use std::time::Duration;

use http::HeaderName;
use mesh_core::balance::MOST_POINTS;

use super::{ConsistentHash, Failover, LoadBalancer, LocalityLb, SimpleLb, Warmup, ZoneAwareLb};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity, Span, quoted};

/// The most points on a ring, and the least size of a table that is too large (Envoy).
const MAX_RING: u64 = 8 << 20;
const MAX_TABLE: u64 = 5_000_011;

struct Check<'c, 'd> {
    path: &'c str,
    d: &'c mut Decoder<'d>,
}

pub(super) fn check(balancer: &LoadBalancer, path: &str, d: &mut Decoder<'_>) {
    let mut check = Check { path, d };
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            check.error(balancer.span, "", "only one of `simple` and `consistentHash` can be set");
        }
        check.hash(hash);
    }
    if let Some(warmup) = &balancer.warmup {
        check.warmup(warmup);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check_locality(setting, &format!("{path}.loadBalancer.localityLbSetting"), check.d);
    }
    if let Some(setting) = &balancer.zone_aware_lb_setting {
        check.zones(balancer, setting);
    }
    if balancer.warmup.is_some() && balancer.warmup_duration_secs.is_some() {
        let message = "without effect: `warmup` counts";
        check.say(balancer.span, "warmupDurationSecs", Severity::Warning, Code::Ignored, message);
    }
    let warms = balancer.warmup.is_some() || balancer.warmup_duration_secs.is_some();
    let ignores = match (&balancer.consistent_hash, balancer.simple) {
        (Some(_), _) => Some("consistentHash"),
        (None, Some(SimpleLb::Random)) => Some("RANDOM"),
        _ => None,
    };
    if let Some(policy) = ignores.filter(|_| warms) {
        let field = if balancer.warmup.is_some() { "warmup" } else { "warmupDurationSecs" };
        let message = format!("without effect with {policy}: new endpoints take their full share at once");
        check.say(balancer.span, field, Severity::Warning, Code::Ignored, &message);
    }
}

/// What of a preference for near endpoints cannot be.
pub(in crate::config::istio) fn check_locality(setting: &LocalityLb, path: &str, d: &mut Decoder<'_>) {
    let LocalityLb { distribute, failover, failover_priority, enabled, .. } = setting;
    let written = [
        ("distribute", !distribute.is_empty()),
        ("failover", !failover.is_empty()),
        ("failoverPriority", !failover_priority.is_empty()),
    ];
    say_disabled(*enabled, &written, setting.span, path, d);
    let mut error = |span: Span, field: &str, message: &str| {
        d.report_at(span, format!("{path}.{field}"), Severity::Error, Code::InvalidValue, message);
    };
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        error(setting.span, "failover", "only one of `distribute` and `failover` can be set");
    }
    if !setting.distribute.is_empty() && !setting.failover_priority.is_empty() {
        error(setting.span, "failoverPriority", "only one of `distribute` and `failoverPriority` can be set");
    }
    for (index, distribute) in setting.distribute.iter().enumerate() {
        let field = format!("distribute[{index}]");
        if !is_locality(&distribute.from) {
            error(distribute.span, &format!("{field}.from"), NO_LOCALITY);
        }
        // Istio refuses them, too (validateLocalities): which share is meant would be a matter of order.
        let earlier = setting.distribute.iter().take(index).map(|earlier| &earlier.from);
        if let Some(earlier) = earlier.into_iter().find(|earlier| overlap(earlier, &distribute.from)) {
            let message = format!("{} covers some of the same, and is written before", quoted(earlier));
            error(distribute.span, &format!("{field}.from"), &message);
        }
        let pairs = distribute
            .to
            .keys()
            .enumerate()
            .flat_map(|(at, to)| distribute.to.keys().skip(at + 1).map(move |other| (to, other)));
        if let Some((one, other)) = pairs.into_iter().find(|(one, other)| overlap(one, other)) {
            let message = format!("{} and {} cover some of the same", quoted(one), quoted(other));
            error(distribute.span, &format!("{field}.to"), &message);
        }
        if distribute.to.keys().any(|to| !is_locality(to)) {
            error(distribute.span, &format!("{field}.to"), NO_LOCALITY);
        }
        let sum: u64 = distribute.to.values().map(|share| u64::from(*share)).sum();
        if sum != 100 || distribute.to.values().any(|share| *share == 0) {
            let message = format!("shares have to be 1 at least, and 100 together: they are {sum}");
            error(distribute.span, &format!("{field}.to"), &message);
        }
    }
    check_failover(&setting.failover, path, d);
    let mut error = |field: &str, message: &str| {
        d.report_at(setting.span, format!("{path}.{field}"), Severity::Error, Code::InvalidValue, message);
    };
    for (index, label) in setting.failover_priority.iter().enumerate() {
        let field = format!("failoverPriority[{index}]");
        let name = label.split_once('=').map_or(label.as_str(), |(name, _)| name);
        if name.is_empty() {
            error(&field, NO_LABEL);
        }
        if !setting.failover.is_empty() && TOPOLOGY.contains(&name) {
            error(&field, "cannot be set beside `failover`, which ranks by it");
        }
    }
}

/// What of zones that share requests cannot be.
pub(in crate::config::istio) fn check_zones(setting: &ZoneAwareLb, path: &str, d: &mut Decoder<'_>) {
    let ZoneAwareLb { failover, failover_priority, min_cluster_size, enabled, .. } = setting;
    let written = [
        ("failover", !failover.is_empty()),
        ("failoverPriority", !failover_priority.is_empty()),
        ("minClusterSize", min_cluster_size.is_some()),
    ];
    say_disabled(*enabled, &written, setting.span, path, d);
    check_failover(&setting.failover, path, d);
    let mut error = |field: &str, message: &str| {
        d.report_at(setting.span, format!("{path}.{field}"), Severity::Error, Code::InvalidValue, message);
    };
    for (index, label) in setting.failover_priority.iter().enumerate() {
        let field = format!("failoverPriority[{index}]");
        match label.split_once('=').map_or(label.as_str(), |(name, _)| name) {
            "" => error(&field, NO_LABEL),
            name if TOPOLOGY.contains(&name) => error(&field, "regions and zones are ranked without it"),
            _ => {}
        }
    }
    if setting.min_cluster_size == Some(0) {
        error("minClusterSize", "has to be 1 at least");
    }
}

fn check_failover(failovers: &[Failover], path: &str, d: &mut Decoder<'_>) {
    let is_region = |text: &str| !text.is_empty() && !text.contains(['*', '/']);
    for (index, failover) in failovers.iter().enumerate() {
        let mut error = |field: &str, message: &str| {
            let path = format!("{path}.failover[{index}].{field}");
            d.report_at(failover.span, path, Severity::Error, Code::InvalidValue, message);
        };
        for (field, region) in [("from", &failover.from), ("to", &failover.to)] {
            if !is_region(region) {
                error(field, "not a region: no `/` and no `*` in it");
            }
        }
        if failovers.iter().take(index).any(|earlier| earlier.from == failover.from) {
            error("from", "written before: a region fails over to one other");
        }
        if failover.from == failover.to {
            error("to", "the same region");
        }
    }
}

const NO_LABEL: &str = "not a label: `name`, or `name=value`";

const NO_LOCALITY: &str =
    "not a locality: `region`, `region/zone` or `region/zone/subzone`, with `*` for its last part";

const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

fn is_locality(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let Some((last, before)) = parts.split_last() else { return false };
    parts.len() <= 3
        && before.iter().all(|part| !part.is_empty() && !part.contains('*'))
        && !last.is_empty()
        && (*last == "*" || !last.contains('*'))
}

/// What is written of a preference that is off.
fn say_disabled(enabled: Option<bool>, written: &[(&str, bool)], span: Span, path: &str, d: &mut Decoder<'_>) {
    for (field, _) in written.iter().filter(|(_, is_written)| *is_written && enabled == Some(false)) {
        let message = "without effect: `enabled` is false";
        d.report_at(span, format!("{path}.{field}"), Severity::Warning, Code::Ignored, message);
    }
}

impl Check<'_, '_> {
    fn say(&mut self, span: Span, field: &str, severity: Severity, code: Code, message: &str) {
        let dot = if field.is_empty() { "" } else { "." };
        self.d.report_at(span, format!("{}.loadBalancer{dot}{field}", self.path), severity, code, message);
    }

    fn error(&mut self, span: Span, field: &str, message: &str) {
        self.say(span, field, Severity::Error, Code::InvalidValue, message);
    }

    fn zones(&mut self, balancer: &LoadBalancer, setting: &ZoneAwareLb) {
        check_zones(setting, &format!("{}.loadBalancer.zoneAwareLbSetting", self.path), self.d);
        if balancer.locality_lb_setting.is_some() {
            let message = "only one of `localityLbSetting` and `zoneAwareLbSetting` can be set";
            self.error(setting.span, "zoneAwareLbSetting", message);
        }
        if balancer.consistent_hash.is_some() && setting.enabled != Some(false) {
            let message = "only regions are told apart: with `consistentHash`, zones share nothing";
            self.say(setting.span, "zoneAwareLbSetting", Severity::Warning, Code::Ignored, message);
        }
    }

    fn hash(&mut self, hash: &ConsistentHash) {
        let keys = [
            ("httpHeaderName", hash.http_header_name.is_some()),
            ("httpCookie", hash.http_cookie.is_some()),
            ("useSourceIp", hash.use_source_ip == Some(true)),
            ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
        ];
        let mut written = keys.into_iter().filter(|(_, is_written)| *is_written).map(|(name, _)| name);
        match (written.next(), written.next()) {
            (Some(first), Some(second)) => {
                let message = format!("only one of `{first}` and `{second}` can be set");
                self.error(hash.span, "consistentHash", &message);
            }
            (None, _) => {
                let message = "nothing is named to hash by: each request goes to any endpoint";
                self.say(hash.span, "consistentHash", Severity::Warning, Code::Ignored, message);
            }
            _ => {}
        }
        let is_name = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
        let is_pseudo = |name: &str| matches!(name, ":method" | ":path" | ":authority" | ":scheme");
        if hash.http_header_name.as_deref().is_some_and(|name| !is_name(name) && !is_pseudo(name)) {
            self.error(hash.span, "consistentHash.httpHeaderName", "not the name of a header");
        }
        if hash.http_query_parameter_name.as_deref() == Some("") {
            self.error(hash.span, "consistentHash.httpQueryParameterName", "no name");
        }
        if let Some(cookie) = &hash.http_cookie {
            if !is_name(&cookie.name) {
                self.error(cookie.span, "consistentHash.httpCookie.name", "not the name of a cookie");
            }
            let is_text = |text: &str| text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b';');
            if !is_text(&cookie.path) {
                self.error(cookie.span, "consistentHash.httpCookie.path", "not the path of a cookie");
            }
            if cookie.attributes.iter().any(|one| one.name.is_empty() || !is_text(&one.name) || !is_text(&one.value)) {
                self.error(cookie.span, "consistentHash.httpCookie.attributes", "not an attribute of a cookie");
            }
        }
        self.sizes(hash);
    }

    fn sizes(&mut self, hash: &ConsistentHash) {
        let older = hash.minimum_ring_size.filter(|size| *size > 0);
        let algorithms = [
            ("minimumRingSize", older.is_some()),
            ("ringHash", hash.ring_hash.is_some()),
            ("maglev", hash.maglev.is_some()),
        ];
        let mut written = algorithms.into_iter().filter(|(_, is_written)| *is_written).map(|(name, _)| name);
        if let (Some(first), Some(second)) = (written.next(), written.next()) {
            let message = format!("only one of `{first}` and `{second}` can be set");
            self.error(hash.span, "consistentHash", &message);
        }
        let ring = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size);
        for (field, size) in [("minimumRingSize", older), ("ringHash.minimumRingSize", ring)] {
            let field = format!("consistentHash.{field}");
            match size {
                Some(size) if size > MAX_RING => self.error(hash.span, &field, &format!("more than {MAX_RING}")),
                Some(size) if size > MOST_POINTS => {
                    let message = format!("mesh-core's clients have {MOST_POINTS} at most");
                    self.say(hash.span, &field, Severity::Warning, Code::Ignored, &message);
                }
                _ => {}
            }
        }
        if let Some(maglev) = &hash.maglev {
            let size = maglev.table_size.unwrap_or(0);
            let is_prime = size > 1
                && size < MAX_TABLE
                && (2..).take_while(|part| part * part <= size).all(|part| !size.is_multiple_of(part));
            if !is_prime {
                let message = format!("has to be a prime number less than {MAX_TABLE}, such as 65537");
                self.error(maglev.span, "consistentHash.maglev.tableSize", &message);
            }
        }
    }

    fn warmup(&mut self, warmup: &Warmup) {
        if warmup.duration.is_none_or(|duration| duration < Duration::from_millis(1)) {
            self.error(warmup.span, "warmup.duration", "has to be set, and 1ms at least");
        }
        if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            self.error(warmup.span, "warmup.minimumPercent", "has to be from 0 to 100");
        }
        if warmup.aggression.is_some_and(|aggression| !(1.0..=1_000_000.0).contains(&aggression)) {
            self.error(warmup.span, "warmup.aggression", "has to be 1 at least");
        }
    }
}

/// Whether there are localities that both name, each as `region/zone/subzone` with `*` or nothing for any rest.
fn overlap(one: &str, other: &str) -> bool {
    let mut parts = one.split('/').zip(other.split('/'));
    parts.all(|(one, other)| one == other || [one, other].contains(&"*") || one.is_empty() || other.is_empty())
}
