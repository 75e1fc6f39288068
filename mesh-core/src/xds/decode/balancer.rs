//! How an endpoint is chosen: `load_balancing_policy` (gRFC A52), else the older `lb_policy`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    cluster_provided::v3::ClusterProvided, least_request::v3::LeastRequest, random::v3::Random,
    round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
};
use envoy_types::pb::google::protobuf::{Any, UInt32Value};

use super::common::{TypedStruct, holds, type_name, unpack};
use super::notes::{Notes, ignored};
use crate::error::Invalid;
use crate::model::BalancerPolicy;

/// How deeply policies may be nested (gRFC A52).
const MAX_DEPTH: usize = 16;

/// The policy of a cluster.
pub(super) fn balancer(
    notes: &mut Notes<'_>,
    policy: Option<pb::LoadBalancingPolicy>,
    lb_policy: i32,
    lb_config: Option<LbConfig>,
    passes_through: bool,
) -> Result<BalancerPolicy, Invalid> {
    if let Some(policy) = policy {
        ignored!(notes; lb_config);
        return notes.field("load_balancing_policy", |notes| first_supported(notes, policy, passes_through, 1));
    }
    let not_yet = |name: &str| Err(Invalid::new(format!("{name} is not supported yet")).at("lb_policy"));
    let choices = match lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => notes.field("least_request_lb_config", |notes| {
            let pb::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = config;
            ignored!(notes; active_request_bias, slow_start_config);
            choices(choice_count)
        })?,
        Some(LbConfig::OriginalDstLbConfig(config)) => {
            if config != pb::cluster::OriginalDstLbConfig::default() {
                return Err(Invalid::new("not supported yet").at("original_dst_lb_config"));
            }
            2
        }
        other => {
            if !matches!(&other, Some(LbConfig::RoundRobinLbConfig(config)) if config.slow_start_config.is_none()) {
                ignored!(notes; other);
            }
            2
        }
    };
    match LbPolicy::try_from(lb_policy) {
        Ok(LbPolicy::ClusterProvided) if passes_through => Ok(BalancerPolicy::default()),
        Ok(LbPolicy::ClusterProvided) => not_yet("CLUSTER_PROVIDED for this type of cluster"),
        // Envoy insists on CLUSTER_PROVIDED for ORIGINAL_DST; the policy has nothing to choose from there.
        Ok(_) if passes_through => Err(Invalid::new("must be CLUSTER_PROVIDED").at("lb_policy")),
        Ok(LbPolicy::RoundRobin) => Ok(BalancerPolicy::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(BalancerPolicy::LeastRequest { choices }),
        Ok(LbPolicy::Random) => Ok(BalancerPolicy::Random),
        Ok(LbPolicy::RingHash) => not_yet("RING_HASH"),
        Ok(LbPolicy::Maglev) => not_yet("MAGLEV"),
        Ok(LbPolicy::LoadBalancingPolicyConfig) => Err(Invalid::new("missing").at("load_balancing_policy")),
        Err(_) => Err(Invalid::new("not a known value").at("lb_policy")),
    }
}

/// The first policy of the list that is supported; the others are for other clients.
fn first_supported(
    notes: &mut Notes<'_>,
    value: pb::LoadBalancingPolicy,
    passes_through: bool,
    depth: usize,
) -> Result<BalancerPolicy, Invalid> {
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
fn policy(
    notes: &mut Notes<'_>,
    any: &Any,
    passes_through: bool,
    depth: usize,
) -> Result<Option<BalancerPolicy>, Invalid> {
    if holds::<RoundRobin>(any) {
        let RoundRobin { slow_start_config, locality_lb_config } = unpack(any)?;
        ignored!(notes; slow_start_config, locality_lb_config);
        return Ok(Some(BalancerPolicy::RoundRobin));
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
        ignored!(notes;
            active_request_bias, slow_start_config, locality_lb_config, enable_full_scan, selection_method);
        return Ok(Some(BalancerPolicy::LeastRequest { choices: choices(choice_count)? }));
    }
    if holds::<Random>(any) {
        let Random { locality_lb_config } = unpack(any)?;
        ignored!(notes; locality_lb_config);
        return Ok(Some(BalancerPolicy::Random));
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
        return Ok(Some(BalancerPolicy::default()));
    }
    if let Some(custom) = TypedStruct::from_any(any)?
        && let Some(registered) = notes.options.custom_balancers.get(type_name(&custom.type_url))
    {
        if custom.value.is_some_and(|value| !value.fields.is_empty()) {
            notes.ignore("value");
        }
        return Ok(Some(BalancerPolicy::Custom(Arc::clone(registered))));
    }
    Ok(None)
}

/// How many endpoints least-request looks at: at least 2, and no more than 10 (gRFC A48).
fn choices(value: Option<UInt32Value>) -> Result<u32, Invalid> {
    match value.map_or(2, |value| value.value) {
        count @ (0 | 1) => Err(Invalid::new(format!("{count} is less than 2")).at("choice_count")),
        count => Ok(count.min(10)),
    }
}
