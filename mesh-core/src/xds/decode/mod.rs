//! Bytes of a resource → the model, or [`Invalid`] with the path of the field.
//!
//! One file a resource. What cannot be honoured is never dropped silently: it makes the resource invalid where
//! ignoring it would send requests where nobody wanted them, makes the route or the TLS unusable where that is
//! the smaller harm, and is listed in [`Decoded::ignored`] otherwise. Rules: gRFC A27-A88, `envoy.*.v3`. The
//! functions take apart every message field by field, so that a field which appears in a new release of the
//! protocol has to be thought of before this compiles.

#![warn(clippy::indexing_slicing, clippy::string_slice)]
#![allow(deprecated, reason = "a deprecated field that is set is honoured or named, too")]

mod access_log;
mod action;
mod after;
mod balancer;
mod cluster;
mod common;
mod cors;
mod endpoint;
mod ext_authz;
mod ext_proc;
mod fault;
mod filter;
mod hashing;
mod headers;
mod health_check;
mod http_manager;
mod jwt;
mod limits;
mod listener;
mod local_rate_limit;
mod log_filter;
mod metadata;
mod metrics;
mod notes;
mod overload;
mod plugin;
mod quota;
mod rate_limit_service;
mod rate_limits;
mod rbac;
mod refused;
mod request_rules;
mod retry;
mod route;
mod route_match;
mod secret;
mod session;
mod shared;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod tls_edge;
mod tls_foreign;
mod tracing;

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;

use crate::error::Invalid;
use crate::filter::FilterRegistry;
use crate::resources::{Resource, ResourceType};
use crate::view::Extensions;
use crate::xds::names;

pub use after::Before;
pub use headers::changeable;
pub(crate) use health_check::health_check_alone;
pub use local_rate_limit::LocalRateLimitBesides;
pub use notes::Noted;
use notes::Notes;
pub use overload::{AdaptiveConcurrencyBesides, QueueBesides};
pub use plugin::PluginBesides;
pub(crate) use quota::assignment;
pub use quota::{CONTROL_PLANE, QuotaBesides};
pub use rate_limit_service::RateLimitBesides;
pub(crate) use refused::without_plaintext;
pub use request_rules::request_rule;
pub use route_match::header_name;

/// What a decoder must know of the application.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// The application's own filters. A filter whose `TypedStruct` has the type of one of them is passed on as
    /// [`crate::model::FilterConfig::Custom`], unless it cannot be made with that configuration.
    pub custom_filters: FilterRegistry,
    /// The names under which it registered balancers of its own.
    pub custom_balancers: BTreeSet<Arc<str>>,
}

impl From<&Extensions> for Options {
    fn from(extensions: &Extensions) -> Self {
        Options {
            custom_filters: extensions.filters.clone(),
            custom_balancers: extensions.balancers.keys().cloned().collect(),
        }
    }
}

/// A resource that was accepted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Decoded {
    /// Its name, in canonical form.
    pub name: Arc<str>,
    /// What it says.
    pub resource: Resource,
    /// The paths of fields that are set and have no effect here.
    pub ignored: Vec<String>,
    /// Those of them that are in items of long lists.
    pub noted: Noted,
}

/// Decodes one resource of this kind from its Protobuf bytes.
///
/// ```
/// use mesh_core::resources::ResourceType;
/// use mesh_core::xds::decode::{Options, decode};
///
/// // A cluster with nothing but a name.
/// let invalid = decode(ResourceType::Cluster, b"\x0a\x01a", &Options::default()).unwrap_err();
/// assert_eq!(invalid.to_string(), "\"a\": load_assignment: missing");
/// ```
///
/// # Errors
/// Why a client refuses it, with the field.
pub fn decode(kind: ResourceType, bytes: &[u8], options: &Options) -> Result<Decoded, Invalid> {
    let mut notes = Notes::new(options);
    let (name, resource) = match kind {
        ResourceType::Listener => listener::decode(&mut notes, bytes)?,
        ResourceType::Route => route::decode(&mut notes, bytes)?,
        ResourceType::Cluster => cluster::decode(&mut notes, bytes)?,
        ResourceType::Endpoints => endpoint::decode(&mut notes, bytes)?,
        ResourceType::Secret => secret::decode(bytes)?,
    };
    let (ignored, noted) = notes.into_ignored();
    Ok(Decoded { name, resource, ignored, noted })
}

/// The same of a route configuration that is no bytes yet, for whoever makes it and wants to know what clients read in it: its one
/// virtual host has these routes. Each is made when it is decoded, since there may be thousands.
///
/// # Errors
/// Why a client refuses it, with the field.
pub fn decode_routes(
    config: pb::RouteConfiguration,
    routes: impl ExactSizeIterator<Item = pb::Route>,
    options: &Options,
) -> Result<Decoded, Invalid> {
    let mut notes = Notes::new(options);
    let (name, resource) = route::decode_message(&mut notes, config, routes)?;
    let (ignored, noted) = notes.into_ignored();
    Ok(Decoded { name, resource, ignored, noted })
}

/// The same where a version of the resource is known: what is as it was there is shared with it, and not decoded again.
///
/// # Errors
/// As [`decode`].
pub fn decode_after(
    kind: ResourceType,
    bytes: &[u8],
    before: Option<Before<'_>>,
    options: &Options,
) -> Result<Decoded, Invalid> {
    match before.and_then(|before| sharing(kind, bytes, before, options)) {
        Some(decoded) => Ok(decoded),
        // What is wrong is told by the one that looks at everything.
        None => decode(kind, bytes, options),
    }
}

fn sharing(kind: ResourceType, bytes: &[u8], before: Before<'_>, options: &Options) -> Option<Decoded> {
    let mut notes = Notes::new(options);
    let (name, resource) = match (kind, before.resource) {
        (ResourceType::Route, Resource::Route(known)) => route::decode_after(&mut notes, bytes, before, known)?,
        (ResourceType::Endpoints, Resource::Endpoints(known)) => {
            endpoint::decode_after(&mut notes, bytes, before, known)?
        }
        _ => return None,
    };
    let (ignored, noted) = notes.into_ignored();
    Some(Decoded { name, resource, ignored, noted })
}

/// A resource out of a response, taken out of its `Resource` wrapper where it has one.
pub(crate) struct Unwrapped {
    /// The name on the wrapper; empty where there is none.
    pub(crate) name: String,
    /// The bytes of the resource itself.
    pub(crate) bytes: Vec<u8>,
}

/// Takes `any` out of its wrapper and checks its type (`envoy.service.discovery.v3.Resource`; the wrapper may
/// not hold another one).
pub(crate) fn unwrap(kind: ResourceType, any: Any) -> Result<Unwrapped, Invalid> {
    if any.type_url == names::type_url(kind) {
        return Ok(Unwrapped { name: String::new(), bytes: any.value });
    }
    if common::type_name(&any.type_url) != "envoy.service.discovery.v3.Resource" {
        return Err(Invalid::new(format!("type {:?} where {:?} was expected", any.type_url, names::type_url(kind))));
    }
    let wrapper: discovery::Resource = common::unpack(&any)?;
    let name = wrapper.name;
    match wrapper.resource {
        Some(inner) if inner.type_url == names::type_url(kind) => Ok(Unwrapped { name, bytes: inner.value }),
        Some(inner) => Err(Invalid::new(format!("type {:?} inside a Resource wrapper", inner.type_url)).of(name)),
        None => Err(Invalid::new("an empty Resource wrapper").of(name)),
    }
}

/// Decodes what came out of a wrapper, with what is known of it `before`; its name must be the one on the wrapper.
pub(crate) fn decode_named(
    kind: ResourceType,
    wrapper_name: &str,
    bytes: &[u8],
    before: Option<Before<'_>>,
    options: &Options,
) -> Result<Decoded, Invalid> {
    let decoded = decode_after(kind, bytes, before, options)?;
    if !wrapper_name.is_empty() && names::canonical(kind, wrapper_name).ok().as_ref() != Some(&decoded.name) {
        return Err(Invalid::new(format!("the name on the wrapper is {wrapper_name:?}")).of(&*decoded.name));
    }
    Ok(decoded)
}
