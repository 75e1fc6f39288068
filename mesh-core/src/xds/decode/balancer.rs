//! How an endpoint is chosen: `load_balancing_policy` (gRFC A52), else the older `lb_policy`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
    cluster_provided::v3::ClusterProvided,
    common::v3::{ConsistentHashingLbConfig, SlowStartConfig},
    least_request::v3::LeastRequest,
    maglev::v3::Maglev,
    random::v3::Random,
    random_subsetting::v3::RandomSubsetting,
    ring_hash::v3::RingHash,
    round_robin::v3::RoundRobin,
    wrr_locality::v3::WrrLocality,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{self, Any, Duration, UInt32Value};

use super::common::{TypedStruct, duration, holds, percent, positive, type_name, unpack};
use super::hashing;
use super::notes::{Notes, ignored};
use crate::error::Invalid;
use crate::model::{BalancerPolicy, ConsistentHashing, LoadWeights, PEAK_EWMA, SlowStart};

/// How deeply policies may be nested (gRFC A52).
const MAX_DEPTH: usize = 16;

/// Where the older form says what is hashed of endpoints.
const HASHING: &str = "common_lb_config.consistent_hashing_lb_config";

/// A policy, and how new endpoints come to their share under it.
type Chosen = (BalancerPolicy, Option<SlowStart>);

/// The older places of a policy.
pub(super) struct Older {
    pub(super) lb_policy: i32,
    pub(super) lb_config: Option<LbConfig>,
    pub(super) hashing: Option<pb::cluster::common_lb_config::ConsistentHashingLbConfig>,
}

/// The policy of a cluster.
pub(super) fn balancer(
    notes: &mut Notes<'_>,
    policy: Option<pb::LoadBalancingPolicy>,
    older: Older,
    passes_through: bool,
) -> Result<Chosen, Invalid> {
    let Older { lb_policy, lb_config, hashing } = older;
    if let Some(policy) = policy {
        ignored!(notes; lb_config);
        notes.ignore_if_set(HASHING, &hashing);
        return notes.field("load_balancing_policy", |notes| first_supported(notes, policy, passes_through, 1));
    }
    let policy = LbPolicy::try_from(lb_policy).map_err(|_| Invalid::new("not a known value").at("lb_policy"))?;
    if matches!(policy, LbPolicy::RingHash | LbPolicy::Maglev) && !passes_through {
        return Ok((older_hashing(notes, policy, lb_config, hashing)?, None));
    }
    notes.ignore_if_set(HASHING, &hashing);
    let mut chosen = match lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => notes.field("least_request_lb_config", |notes| {
            let pb::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = config;
            let slow_start = slow_start_config.map(|config| {
                let pb::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = config;
                (slow_start_window, aggression, min_weight_percent)
            });
            least_request(notes, choice_count, active_request_bias, slow_start)
        })?,
        Some(LbConfig::OriginalDstLbConfig(config)) => {
            if config != pb::cluster::OriginalDstLbConfig::default() {
                return Err(Invalid::new("not supported yet").at("original_dst_lb_config"));
            }
            Chosen::default()
        }
        Some(LbConfig::RoundRobinLbConfig(config)) => notes.field("round_robin_lb_config", |notes| {
            let config = config.slow_start_config.map(|config| {
                let pb::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = config;
                (slow_start_window, aggression, min_weight_percent)
            });
            Ok((BalancerPolicy::default(), notes.optional("slow_start_config", config, slow_start)?.flatten()))
        })?,
        other => {
            ignored!(notes; other);
            Chosen::default()
        }
    };
    let invalid = |what: &str| Err(Invalid::new(what).at("lb_policy"));
    chosen.0 = match policy {
        LbPolicy::ClusterProvided if passes_through => BalancerPolicy::default(),
        LbPolicy::ClusterProvided => return invalid("CLUSTER_PROVIDED is not supported for this type of cluster"),
        // Envoy insists on CLUSTER_PROVIDED for ORIGINAL_DST; the policy has nothing to choose from there.
        _ if passes_through => return invalid("must be CLUSTER_PROVIDED"),
        LbPolicy::RoundRobin => BalancerPolicy::RoundRobin,
        LbPolicy::LeastRequest => chosen.0,
        LbPolicy::Random => return Ok((BalancerPolicy::Random, None)),
        LbPolicy::RingHash | LbPolicy::Maglev => chosen.0,
        LbPolicy::LoadBalancingPolicyConfig => return Err(Invalid::new("missing").at("load_balancing_policy")),
    };
    Ok(chosen)
}

fn older_hashing(
    notes: &mut Notes<'_>,
    policy: LbPolicy,
    config: Option<LbConfig>,
    hashing: Option<pb::cluster::common_lb_config::ConsistentHashingLbConfig>,
) -> Result<BalancerPolicy, Invalid> {
    let hashing = hashing.map(|value| hashing::consistent(value.use_hostname_for_hashing, value.hash_balance_factor));
    let hashing = hashing.transpose().map_err(|invalid| invalid.at(HASHING))?.unwrap_or_default();
    match (policy, config) {
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            notes.field("maglev_lb_config", |_| hashing::maglev(config.table_size, hashing))
        }
        (LbPolicy::Maglev, other) => {
            ignored!(notes; other);
            hashing::maglev(None, hashing)
        }
        (_, Some(LbConfig::RingHashLbConfig(config))) => notes.field("ring_hash_lb_config", |notes| {
            let pb::cluster::RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = config;
            // The older message counts its functions from zero.
            let function = hash_function.checked_add(1).unwrap_or(hash_function);
            hashing::ring(notes, function, minimum_ring_size, maximum_ring_size, hashing)
        }),
        (_, other) => {
            ignored!(notes; other);
            hashing::ring(notes, 0, None, None, hashing)
        }
    }
}

/// The first policy of the list that is supported; the others are for other clients.
fn first_supported(
    notes: &mut Notes<'_>,
    value: pb::LoadBalancingPolicy,
    passes_through: bool,
    depth: usize,
) -> Result<Chosen, Invalid> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("nested deeper than {MAX_DEPTH}")));
    }
    let mut unsupported = Vec::new();
    for policy in value.policies {
        let Some(any) = policy.typed_extension_config.and_then(|config| config.typed_config) else {
            return Err(Invalid::new("a policy without typed_config").at("policies"));
        };
        let name = type_name(&any.type_url).to_owned();
        match notes.entry("policies", &name, |notes| self::policy(notes, &any, passes_through, depth))? {
            Some(policy) => return Ok(policy),
            None => unsupported.push(name),
        }
    }
    match unsupported.is_empty() {
        true => Err(Invalid::new("no policy is given").at("policies")),
        false => Err(Invalid::new(format!("{} is not supported yet", unsupported.join(", "))).at("policies")),
    }
}

/// One policy; `None` where it is not supported.
fn policy(notes: &mut Notes<'_>, any: &Any, passes_through: bool, depth: usize) -> Result<Option<Chosen>, Invalid> {
    if holds::<RoundRobin>(any) {
        let RoundRobin { slow_start_config, locality_lb_config } = unpack(any)?;
        ignored!(notes; locality_lb_config);
        let slow_start = notes.optional("slow_start_config", slow_start_config.map(parts), slow_start)?.flatten();
        return Ok(Some((BalancerPolicy::RoundRobin, slow_start)));
    }
    if holds::<LeastRequest>(any) {
        let LeastRequest {
            choice_count,
            active_request_bias,
            slow_start_config,
            locality_lb_config,
            enable_full_scan,
            selection_method,
        } = unpack(any)?;
        ignored!(notes; locality_lb_config, enable_full_scan, selection_method);
        return least_request(notes, choice_count, active_request_bias, slow_start_config.map(parts)).map(Some);
    }
    if holds::<ClientSideWeightedRoundRobin>(any) {
        return weighted_by_load(notes, unpack(any)?).map(Some);
    }
    if holds::<RandomSubsetting>(any) {
        return random_subset(notes, unpack(any)?, passes_through, depth);
    }
    if holds::<Random>(any) {
        let Random { locality_lb_config } = unpack(any)?;
        ignored!(notes; locality_lb_config);
        return Ok(Some((BalancerPolicy::Random, None)));
    }
    if holds::<RingHash>(any) {
        let value = unpack(any)?;
        return ring_hash(notes, value).map(|policy| Some((policy, None)));
    }
    if holds::<Maglev>(any) {
        let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config: _ } = unpack(any)?;
        let hashing = notes.optional("consistent_hashing_lb_config", consistent_hashing_lb_config, consistent)?;
        return Ok(Some((hashing::maglev(table_size, hashing.unwrap_or_default())?, None)));
    }
    if holds::<WrrLocality>(any) {
        // Localities are always chosen by weight first, which is all that this wrapper asks for.
        let WrrLocality { endpoint_picking_policy } = unpack(any)?;
        return notes
            .required("endpoint_picking_policy", endpoint_picking_policy, |notes, inner| {
                first_supported(notes, inner, passes_through, depth + 1)
            })
            .map(Some);
    }
    if holds::<ClusterProvided>(any) && passes_through {
        return Ok(Some(Chosen::default()));
    }
    if let Some(own) = TypedStruct::from_any(any)?.filter(|own| type_name(&own.type_url) == PEAK_EWMA) {
        return peak_ewma(&own).map(|policy| Some((policy, None)));
    }
    if let Some(custom) = TypedStruct::from_any(any)? {
        let name = type_name(&custom.type_url);
        let Some(registered) = notes.options.custom_balancers.get(name) else {
            notes.ignore(name);
            return Ok(None);
        };
        if custom.value.is_some_and(|value| !value.fields.is_empty()) {
            notes.ignore("value");
        }
        return Ok(Some((BalancerPolicy::Custom(Arc::clone(registered)), None)));
    }
    Ok(None)
}

/// gRFC A68.
fn random_subset(
    notes: &mut Notes<'_>,
    value: RandomSubsetting,
    passes_through: bool,
    depth: usize,
) -> Result<Option<Chosen>, Invalid> {
    let RandomSubsetting { subset_size, child_policy } = value;
    let size = match subset_size.map(|size| size.value) {
        None | Some(0) => return Err(Invalid::new("must be more than zero").at("subset_size")),
        Some(size) => size,
    };
    let (child, slow_start) = notes.required("child_policy", child_policy, |notes, inner| {
        first_supported(notes, inner, passes_through, depth + 1)
    })?;
    if matches!(child, BalancerPolicy::Custom(_)) {
        return Err(Invalid::new("a policy of the application's own is not supported here").at("child_policy"));
    }
    Ok(Some((BalancerPolicy::RandomSubset { size, child: Box::new(child) }, slow_start)))
}

/// How long it takes until an answer counts for a third, where nothing is said: as elsewhere (Finagle, Linkerd).
const DECAY: std::time::Duration = std::time::Duration::from_secs(10);

fn peak_ewma(own: &TypedStruct) -> Result<BalancerPolicy, Invalid> {
    let mut decay = DECAY;
    for (name, value) in own.value.iter().flat_map(|value| &value.fields) {
        let seconds = match (name.as_str(), &value.kind) {
            ("decay", Some(protobuf::value::Kind::NumberValue(seconds))) => *seconds,
            ("decay", _) => return Err(Invalid::new("not a number of seconds").at("decay")),
            _ => return Err(Invalid::new("not a known field").at(name)),
        };
        if !(0.001..=86_400.0).contains(&seconds) {
            return Err(Invalid::new("must be from 1 ms to a day, in seconds").at("decay"));
        }
        decay = std::time::Duration::from_secs_f64(seconds);
    }
    Ok(BalancerPolicy::PeakEwma { decay })
}

/// gRFC A58 and A114. Periods are bounded as there.
fn weighted_by_load(notes: &mut Notes<'_>, value: ClientSideWeightedRoundRobin) -> Result<Chosen, Invalid> {
    let ClientSideWeightedRoundRobin {
        enable_oob_load_report,
        oob_reporting_period,
        blackout_period,
        weight_expiration_period,
        weight_update_period,
        error_utilization_penalty,
        metric_names_for_computing_utilization,
        slow_start_config,
        oob_reporting_config,
    } = value;
    // gRPC has no more of it.
    ignored!(notes; oob_reporting_config);
    let mut config = LoadWeights::default();
    if let Some(period) = notes.optional("blackout_period", blackout_period, |_, value| duration(&value))? {
        config.blackout = period;
    }
    if let Some(period) =
        notes.optional("weight_expiration_period", weight_expiration_period, |_, value| duration(&value))?
    {
        config.expiration = period;
    }
    if let Some(period) = notes.optional("weight_update_period", weight_update_period, |_, value| duration(&value))? {
        config.update_period = period.max(std::time::Duration::from_millis(100));
    }
    config.error_penalty = match error_utilization_penalty.map_or(1.0, |penalty| penalty.value) {
        penalty if (0.0..=1_000_000.0).contains(&penalty) => (f64::from(penalty) * 1000.0).round() as u32,
        penalty => {
            return Err(Invalid::new(format!("{penalty} is not from 0 to 1000000")).at("error_utilization_penalty"));
        }
    };
    let period = notes.optional("oob_reporting_period", oob_reporting_period, |_, value| positive(&value))?;
    // gRFC A58: ten seconds where nothing is said.
    let period = period.unwrap_or(std::time::Duration::from_secs(10));
    config.oob = enable_oob_load_report.is_some_and(|enabled| enabled.value).then_some(period);
    config.metrics = metric_names_for_computing_utilization.into_iter().map(Arc::from).collect();
    let slow_start = notes.optional("slow_start_config", slow_start_config.map(parts), slow_start)?.flatten();
    Ok((BalancerPolicy::WeightedByLoad(Arc::new(config)), slow_start))
}

#[expect(deprecated, reason = "older control planes say it here")]
fn ring_hash(notes: &mut Notes<'_>, value: RingHash) -> Result<BalancerPolicy, Invalid> {
    let RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config: _,
    } = value;
    let hashing = match notes.optional("consistent_hashing_lb_config", consistent_hashing_lb_config, consistent)? {
        Some(hashing) => hashing,
        None => hashing::consistent(use_hostname_for_hashing, hash_balance_factor)?,
    };
    hashing::ring(notes, hash_function, minimum_ring_size, maximum_ring_size, hashing)
}

fn consistent(notes: &mut Notes<'_>, value: ConsistentHashingLbConfig) -> Result<ConsistentHashing, Invalid> {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = value;
    ignored!(notes; hash_policy);
    hashing::consistent(use_hostname_for_hashing, hash_balance_factor)
}

fn least_request(
    notes: &mut Notes<'_>,
    choice_count: Option<UInt32Value>,
    bias: Option<RuntimeDouble>,
    start: Option<SlowStartParts>,
) -> Result<Chosen, Invalid> {
    let bias = notes.optional("active_request_bias", bias, |_, value| thousandths(&value))?.unwrap_or(1000);
    let slow_start = notes.optional("slow_start_config", start, slow_start)?.flatten();
    Ok((BalancerPolicy::LeastRequest { choices: choices(choice_count)?, bias }, slow_start))
}

/// Window, aggression and least share of a slow start, of which there are two messages alike.
type SlowStartParts = (Option<Duration>, Option<RuntimeDouble>, Option<Percent>);

fn parts(config: SlowStartConfig) -> SlowStartParts {
    let SlowStartConfig { slow_start_window, aggression, min_weight_percent } = config;
    (slow_start_window, aggression, min_weight_percent)
}

/// `None` where there is no window.
fn slow_start(notes: &mut Notes<'_>, parts: SlowStartParts) -> Result<Option<SlowStart>, Invalid> {
    let (window, aggression, least) = parts;
    let Some(window) = notes.optional("slow_start_window", window, |_, window| duration(&window))? else {
        return Ok(None);
    };
    let mut slow_start = SlowStart::over(window);
    if let Some(aggression) = notes.optional("aggression", aggression, |_, value| thousandths(&value))? {
        if aggression == 0 {
            return Err(Invalid::new("must be more than zero").at("aggression"));
        }
        slow_start.aggression = aggression;
    }
    if let Some(least) = notes.optional("min_weight_percent", least, |_, value| percent(&value))? {
        slow_start.min_percent = least.round() as u8;
    }
    Ok((!window.is_zero()).then_some(slow_start))
}

/// A number that is not negative, and no more than a million.
fn thousandths(value: &RuntimeDouble) -> Result<u32, Invalid> {
    match value.default_value {
        number if (0.0..=1_000_000.0).contains(&number) => Ok((number * 1000.0).round() as u32),
        number => Err(Invalid::new(format!("{number} is not from 0 to 1000000")).at("default_value")),
    }
}

/// How many endpoints least-request looks at: at least 2, and no more than 10 (gRFC A48).
fn choices(value: Option<UInt32Value>) -> Result<u32, Invalid> {
    match value.map_or(2, |value| value.value) {
        count @ (0 | 1) => Err(Invalid::new(format!("{count} is less than 2")).at("choice_count")),
        count => Ok(count.min(10)),
    }
}
