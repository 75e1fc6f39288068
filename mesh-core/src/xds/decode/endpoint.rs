//! ClusterLoadAssignment (`envoy.config.endpoint.v3`, gRFC A27, A61): endpoints by priority and locality.
//!
//! gRPC and Envoy disagree on a locality without a weight: gRPC skips it, Envoy looks at weights only where a
//! cluster asks for them. Here it depends on the assignment: where no locality has a weight, all are kept and
//! none is weighted (Envoy's rule for HTTP); where one has, those without are skipped (gRPC's rule).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf::value::Kind;

use super::after::{Before, Items, Known, Parts, take_apart};
use super::common::{address, fraction, parse};
use super::health_check::{self, OwnCheck};
use super::notes::{Notes, ignored};
use super::tls::{ISTIO, TLS_MODE};
use crate::error::Invalid;
use crate::id::{Address, EndpointId, Locality};
use crate::model::{Endpoint, Endpoints, Health, LocalityEndpoints};
use crate::resources::{Resource, ResourceType};
use crate::xds::names;

/// The highest priority number, as in Envoy.
const MAX_PRIORITY: u32 = 128;

/// Localities without their endpoints, and these.
type Localities<'b> = Vec<(pb::LocalityLbEndpoints, Items<'b, pb::LbEndpoint, Endpoint>)>;

pub(super) fn decode(notes: &mut Notes<'_>, bytes: &[u8]) -> Result<(Arc<str>, Resource), Invalid> {
    let mut value: pb::ClusterLoadAssignment = parse(bytes)?;
    let localities = all_of(&mut value);
    named(notes, value, localities)
}

/// The same, with the endpoints of `before` in it that are as they were; `None` where that cannot be said. `known` is what that says.
pub(super) fn decode_after(
    notes: &mut Notes<'_>,
    bytes: &[u8],
    Before { bytes: before, noted, .. }: Before<'_>,
    known: &Endpoints,
) -> Option<(Arc<str>, Resource)> {
    const ENDPOINTS: u32 = 2;
    const LB_ENDPOINTS: u32 = 2;
    let (now, before) = (take_apart(bytes, ENDPOINTS).ok()?, take_apart(before, ENDPOINTS).ok()?);
    // One without a weight may have been skipped.
    if before.items.len() != known.localities.len() {
        return None;
    }
    let before = before.items.iter().map(|locality| take_apart(locality, LB_ENDPOINTS));
    let before = before.collect::<Result<Vec<_>, _>>().ok()?;
    let localities = now.items.iter().enumerate().map(|(at, locality)| {
        let Parts { rest, items } = take_apart(locality, LB_ENDPOINTS).ok()?;
        let known = before.get(at).zip(known.localities.get(at));
        let known =
            known.map(|(before, known)| (before.items.as_slice(), Known { list: &known.endpoints, number: at, noted }));
        Some((parse(&rest).ok()?, Items::after(items, known)))
    });
    let localities: Localities<'_> = localities.collect::<Option<_>>()?;
    named(notes, parse(&now.rest).ok()?, localities).ok()
}

/// The localities of an assignment.
fn all_of(value: &mut pb::ClusterLoadAssignment) -> Localities<'static> {
    let localities = std::mem::take(&mut value.endpoints).into_iter();
    let parts = localities.map(|mut locality| (std::mem::take(&mut locality.lb_endpoints), locality));
    parts.map(|(endpoints, locality)| (locality, Items::Decoded(Box::new(endpoints.into_iter())))).collect()
}

fn named(
    notes: &mut Notes<'_>,
    value: pb::ClusterLoadAssignment,
    localities: Localities<'_>,
) -> Result<(Arc<str>, Resource), Invalid> {
    let name =
        names::canonical(ResourceType::Endpoints, &value.cluster_name).map_err(|invalid| invalid.at("cluster_name"))?;
    let endpoints = with_localities(notes, value, localities, false).map_err(|invalid| invalid.of(&*name))?;
    Ok((name, Resource::Endpoints(Arc::new(endpoints))))
}

/// An assignment, by itself or inside a cluster. Host names are allowed only where somebody resolves them.
pub(super) fn assignment(
    notes: &mut Notes<'_>,
    mut value: pb::ClusterLoadAssignment,
    may_be_host: bool,
) -> Result<Endpoints, Invalid> {
    let localities = all_of(&mut value);
    with_localities(notes, value, localities, may_be_host)
}

fn with_localities(
    notes: &mut Notes<'_>,
    value: pb::ClusterLoadAssignment,
    localities: Localities<'_>,
    may_be_host: bool,
) -> Result<Endpoints, Invalid> {
    // Its endpoints are `localities`.
    let pb::ClusterLoadAssignment { cluster_name: _, endpoints: _, named_endpoints, policy } = value;
    ignored!(notes; named_endpoints);
    let is_weighted =
        localities.iter().any(|(locality, _)| locality.load_balancing_weight.is_some_and(|w| w.value > 0));
    let gone: Vec<&Endpoint> = localities.iter().flat_map(|(_, endpoints)| endpoints.gone()).collect();
    let gone: HashSet<&Address> = gone.into_iter().flat_map(|endpoint| endpoint.id.addresses()).collect();
    let mut seen = Seen::default();
    let localities = notes.each("endpoints", localities, |notes, locality| {
        self::locality(notes, locality, is_weighted, may_be_host, &mut seen)
    })?;
    let localities: Vec<LocalityEndpoints> = localities.into_iter().flatten().collect();
    // Those that were not decoded again differ from each other and from those that are gone, and may not differ from those that
    // were.
    let all = localities.iter().flat_map(|locality| &locality.endpoints).flat_map(|endpoint| endpoint.id.addresses());
    let may_be_twice = seen.iter().any(|address| !gone.contains(address));
    if may_be_twice && all.filter(|address| seen.contains(*address)).count() > seen.len() {
        return Err(Invalid::new("an address is listed twice").at("endpoints"));
    }
    check(&localities).map_err(|invalid| invalid.at("endpoints"))?;
    let (drop_per_million, overprovisioning_percent) =
        notes.optional("policy", policy, self::policy)?.unwrap_or_default();
    Ok(Endpoints { localities, drop_per_million, overprovisioning_percent })
}

/// The addresses that were decoded.
type Seen = HashSet<Address, foldhash::fast::RandomState>;

/// What can only be said of all localities together.
fn check(localities: &[LocalityEndpoints]) -> Result<(), Invalid> {
    let mut weights: BTreeMap<u32, u64> = BTreeMap::new();
    let mut seen = HashSet::new();
    for LocalityEndpoints { locality, weight, priority, .. } in localities {
        if !seen.insert((*priority, locality)) {
            return Err(Invalid::new(format!("the locality {locality} is listed twice at priority {priority}")));
        }
        *weights.entry(*priority).or_default() += u64::from(weight.unwrap_or_default());
    }
    for (expected, (priority, weight)) in (0..).zip(weights) {
        if priority != expected {
            return Err(Invalid::new(format!("priority {expected} is missing below {priority}")));
        }
        if weight > u64::from(u32::MAX) {
            return Err(Invalid::new(format!("the weights at priority {priority} add up to more than 4294967295")));
        }
    }
    Ok(())
}

/// `None` where the locality is skipped.
fn locality(
    notes: &mut Notes<'_>,
    (value, endpoints): (pb::LocalityLbEndpoints, Items<'_, pb::LbEndpoint, Endpoint>),
    is_weighted: bool,
    may_be_host: bool,
    seen: &mut Seen,
) -> Result<Option<LocalityEndpoints>, Invalid> {
    use pb::locality_lb_endpoints::LbConfig;
    let pb::LocalityLbEndpoints {
        locality,
        metadata: _,
        // They are `endpoints`.
        lb_endpoints: _,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = value;
    ignored!(notes; proximity);
    let weight = load_balancing_weight.map(|weight| weight.value).filter(|weight| *weight > 0);
    if is_weighted && weight.is_none() {
        notes.ignore("(a locality without a weight)");
        return Ok(None);
    }
    if priority > MAX_PRIORITY {
        return Err(Invalid::new(format!("more than {MAX_PRIORITY}")).at("priority"));
    }
    let locality = match locality {
        Some(core::Locality { region, zone, sub_zone }) => {
            Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() }
        }
        None if is_weighted => return Err(Invalid::new("missing").at("locality")),
        None => Locality::default(),
    };
    let endpoints = match lb_config {
        None => endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) if endpoints.is_empty() => {
            Items::Decoded(Box::new(list.lb_endpoints.into_iter()))
        }
        Some(LbConfig::LoadBalancerEndpoints(_)) => {
            return Err(Invalid::new("excludes lb_endpoints").at("load_balancer_endpoints"));
        }
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(Invalid::new("not supported").at("leds_cluster_locality_config"));
        }
    };
    let endpoints =
        endpoints.decode(notes, "lb_endpoints", |notes, value| lb_endpoint(notes, value, may_be_host, seen))?;
    if endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum::<u64>() > u64::from(u32::MAX) {
        return Err(Invalid::new("the weights add up to more than 4294967295").at("lb_endpoints"));
    }
    Ok(Some(LocalityEndpoints { locality, weight, priority, endpoints }))
}

fn lb_endpoint(
    notes: &mut Notes<'_>,
    value: pb::LbEndpoint,
    may_be_host: bool,
    seen: &mut Seen,
) -> Result<Endpoint, Invalid> {
    use pb::lb_endpoint::HostIdentifier;
    let pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = value;
    let endpoint = match host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName(_)) => return Err(Invalid::new("not supported").at("endpoint_name")),
        None => return Err(Invalid::new("missing").at("endpoint")),
    };
    let weight = match load_balancing_weight {
        None => 1,
        Some(weight) if weight.value > 0 => weight.value,
        Some(_) => return Err(Invalid::new("must be more than zero").at("load_balancing_weight")),
    };
    let (id, hostname, check) = notes.field("endpoint", |notes| self::endpoint(notes, endpoint, may_be_host))?;
    for address in id.addresses() {
        if !seen.insert(address.clone()) {
            return Err(Invalid::new(format!("the address {address} is listed twice")).at("endpoint"));
        }
    }
    let metadata = string_metadata(metadata);
    let mode = metadata.get("envoy.transport_socket_match").and_then(|fields| fields.get(TLS_MODE));
    let mutual_tls = mode.is_some_and(|mode| &**mode == ISTIO);
    let (is_unchecked, check_host) = check;
    let (health, is_checked) = (health(health_status), !is_unchecked);
    Ok(Endpoint { id, health, weight, hostname, mutual_tls, is_checked, check_host, metadata })
}

fn endpoint(
    notes: &mut Notes<'_>,
    value: pb::Endpoint,
    may_be_host: bool,
) -> Result<(EndpointId, Option<Arc<str>>, OwnCheck), Invalid> {
    let pb::Endpoint { address: first, health_check_config, hostname, additional_addresses, observability_name: _ } =
        value;
    let check = notes.optional("health_check_config", health_check_config, health_check::of_endpoint)?;
    let mut addresses = vec![notes.required("address", first, |notes, first| address(notes, first, may_be_host))?];
    addresses.extend(notes.each("additional_addresses", additional_addresses, |notes, additional| {
        notes.required("address", additional.address, |notes, value| address(notes, value, may_be_host))
    })?);
    let id = EndpointId::from_addresses(addresses).ok_or_else(|| Invalid::new("missing").at("address"))?;
    Ok((id, (!hostname.is_empty()).then(|| Arc::from(hostname)), check.unwrap_or_default()))
}

/// A health state that is not known is not healthy.
pub(super) fn health(status: i32) -> Health {
    match core::HealthStatus::try_from(status) {
        Ok(core::HealthStatus::Unknown) => Health::Unknown,
        Ok(core::HealthStatus::Healthy) => Health::Healthy,
        Ok(core::HealthStatus::Degraded) => Health::Degraded,
        Ok(core::HealthStatus::Draining) => Health::Draining,
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    }
}

/// The entries whose values are strings.
fn string_metadata(metadata: Option<core::Metadata>) -> BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<str>>> {
    let mut namespaces = BTreeMap::new();
    for (namespace, fields) in metadata.into_iter().flat_map(|metadata| metadata.filter_metadata) {
        let strings: BTreeMap<Arc<str>, Arc<str>> = fields
            .fields
            .into_iter()
            .filter_map(|(key, value)| match value.kind {
                Some(Kind::StringValue(value)) => Some((Arc::from(key), Arc::from(value))),
                _ => None,
            })
            .collect();
        if !strings.is_empty() {
            namespaces.insert(Arc::from(namespace), strings);
        }
    }
    namespaces
}

fn policy(
    notes: &mut Notes<'_>,
    value: pb::cluster_load_assignment::Policy,
) -> Result<(Vec<u32>, Option<u32>), Invalid> {
    let pb::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = value;
    ignored!(notes; endpoint_stale_after, weighted_priority_health);
    let drops = notes.each("drop_overloads", drop_overloads, |notes, drop| {
        notes
            .required("drop_percentage", drop.drop_percentage, |_, share| fraction(&share))
            .map(|share| share.per_million())
    })?;
    let overprovisioning = match overprovisioning_factor.map(|factor| factor.value) {
        Some(0) => return Err(Invalid::new("must be more than zero").at("overprovisioning_factor")),
        factor => factor,
    };
    Ok((drops, overprovisioning))
}
