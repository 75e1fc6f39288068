//! RouteConfiguration (`envoy.config.route.v3`, gRFC A28): virtual hosts and their routes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf::value::Kind;
use http::StatusCode;

use super::action::{self, Inherited, unusable};
use super::after::{Before, Items, Known, Parts, take_apart};
use super::common::{filled, parse};
use super::headers::{self, mutations};
use super::notes::{Notes, ignored};
use super::{filter, rate_limits, retry, route_match};
use crate::error::Invalid;
use crate::id::{ClusterName, RouteName};
use crate::list::{List, Run};
use crate::model::{
    Forward, HeaderTest, Redirect, Route, RouteAction, RouteConfiguration, RouteMatch, StringTest, VirtualHost,
};
use crate::resources::{Resource, ResourceType};
use crate::xds::names;

/// A virtual host without its routes, and these; or what is malformed in it.
type Host<'b> = Result<(pb::VirtualHost, Items<'b, pb::Route, Arc<Route>>), Invalid>;

/// `virtual_hosts` of a `RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;
/// `routes` of a `VirtualHost`.
const ROUTES: u32 = 3;

pub(super) fn decode(notes: &mut Notes<'_>, bytes: &[u8]) -> Result<(Arc<str>, Resource), Invalid> {
    let Parts { rest, items } = take_apart(bytes, VIRTUAL_HOSTS)?;
    let hosts = items.into_iter().map(|host| -> Host<'_> {
        let Parts { rest, items } = take_apart(host, ROUTES)?;
        Ok((parse(&rest)?, Items::Encoded(items)))
    });
    named(notes, parse(&rest)?, hosts)
}

/// The same, with the routes of `before` in it that are as they were; `None` where that cannot be said. `known` is what that says.
pub(super) fn decode_after(
    notes: &mut Notes<'_>,
    bytes: &[u8],
    Before { bytes: before, noted, .. }: Before<'_>,
    known: &RouteConfiguration,
) -> Option<(Arc<str>, Resource)> {
    let (now, before) = (take_apart(bytes, VIRTUAL_HOSTS).ok()?, take_apart(before, VIRTUAL_HOSTS).ok()?);
    // What a route is depends on what stands above it.
    if now.rest != before.rest || before.items.len() != known.virtual_hosts.len() {
        return None;
    }
    let before = before.items.iter().zip(&known.virtual_hosts).enumerate().map(|(number, (host, known))| {
        let Parts { rest, items } = take_apart(host, ROUTES).ok()?;
        Some((rest, (items, &known.routes, number)))
    });
    let before = before.collect::<Option<HashMap<_, _>>>()?;
    let hosts = now.items.iter().map(|host| -> Host<'_> {
        let Parts { rest, items } = take_apart(host, ROUTES)?;
        let known = before.get(&rest);
        let known =
            known.map(|(items, list, number)| (items.as_slice(), Known { list: *list, number: *number, noted }));
        Ok((parse(&rest)?, Items::after(items, known)))
    });
    named(notes, parse(&now.rest).ok()?, hosts).ok()
}

/// The same of a message whose one virtual host has these routes.
pub(super) fn decode_message<'r>(
    notes: &mut Notes<'_>,
    mut value: pb::RouteConfiguration,
    routes: impl ExactSizeIterator<Item = pb::Route> + 'r,
) -> Result<(Arc<str>, Resource), Invalid> {
    let routes: Items<'r, pb::Route, Arc<Route>> = Items::Decoded(Box::new(routes));
    let hosts = std::mem::take(&mut value.virtual_hosts).into_iter().zip([routes]);
    named(notes, value, hosts.map(Ok))
}

fn named<'b>(
    notes: &mut Notes<'_>,
    value: pb::RouteConfiguration,
    hosts: impl IntoIterator<Item = Host<'b>>,
) -> Result<(Arc<str>, Resource), Invalid> {
    let name = names::canonical(ResourceType::Route, &value.name).map_err(|invalid| invalid.at("name"))?;
    let mut routes = with_hosts(notes, value, hosts).map_err(|invalid| invalid.of(&*name))?;
    routes.name = Some(RouteName::from(&*name));
    Ok((name, Resource::Route(Arc::new(routes))))
}

/// The name of a cluster, in canonical form.
pub(super) fn cluster_name(name: &str) -> Result<ClusterName, Invalid> {
    names::canonical(ResourceType::Cluster, name).map(ClusterName::from)
}

/// A route configuration, by itself or inside a listener.
pub(super) fn configuration(
    notes: &mut Notes<'_>,
    mut value: pb::RouteConfiguration,
) -> Result<RouteConfiguration, Invalid> {
    let hosts = std::mem::take(&mut value.virtual_hosts).into_iter().map(|mut host| {
        let routes = Items::Decoded(Box::new(std::mem::take(&mut host.routes).into_iter()));
        Ok((host, routes))
    });
    with_hosts(notes, value, hosts)
}

/// A route configuration of these virtual hosts.
fn with_hosts<'b>(
    notes: &mut Notes<'_>,
    value: pb::RouteConfiguration,
    hosts: impl IntoIterator<Item = Host<'b>>,
) -> Result<RouteConfiguration, Invalid> {
    let pb::RouteConfiguration {
        name: _,
        // They are `hosts`.
        virtual_hosts: _,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        // Of what may be said, not of what is done.
        max_direct_response_body_size_bytes: _,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = value;
    ignored!(notes;
        internal_only_headers, validate_clusters, request_mirror_policies,
        ignore_port_in_host_matching, ignore_path_parameters_in_path_matching);
    for (name, is_set) in [
        ("vhds", vhds.is_some()),
        ("vhost_header", !vhost_header.is_empty()),
        ("route_specifiers", !route_specifiers.is_empty()),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(name));
        }
    }
    let plugins = plugins(notes, cluster_specifier_plugins)?;
    let mut inherited = Inherited { plugins, retry: None, hedges: false };
    let mut virtual_hosts =
        notes.each("virtual_hosts", hosts, |notes, host| virtual_host(notes, host?, &mut inherited))?;
    unique_domains(&virtual_hosts)?;
    // The model has no filters of the whole configuration: the most specific override wins anyway.
    for (name, config) in filter::overrides(notes, typed_per_filter_config)? {
        for host in &mut virtual_hosts {
            host.filters.entry(Arc::clone(&name)).or_insert_with(|| config.clone());
        }
    }
    Ok(RouteConfiguration {
        name: None,
        virtual_hosts,
        mutations: mutations(
            notes,
            headers::Lists {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
        )?,
        most_specific_mutations_win: most_specific_header_mutations_wins,
    })
}

/// The cluster specifier plugins by name, with whether they are optional: none is supported.
fn plugins(notes: &mut Notes<'_>, values: Vec<pb::ClusterSpecifierPlugin>) -> Result<HashMap<String, bool>, Invalid> {
    let mut plugins = HashMap::new();
    notes.each("cluster_specifier_plugins", values, |notes, value| {
        let extension = value.extension.ok_or_else(|| Invalid::new("missing").at("extension"))?;
        if !value.is_optional {
            return Err(Invalid::new(format!("{:?} is not supported and not optional", extension.name)));
        }
        notes.ignore("extension");
        plugins.insert(extension.name, value.is_optional);
        Ok(())
    })?;
    Ok(plugins)
}

/// Envoy rejects a domain that two virtual hosts claim; gRPC takes one of them.
fn unique_domains(hosts: &[VirtualHost]) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for (index, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(domain.as_str()) {
                let reason = format!("the domain {domain:?} is listed twice");
                return Err(Invalid::new(reason).at(format!("virtual_hosts[{index}].domains")));
            }
        }
    }
    Ok(())
}

fn virtual_host(
    notes: &mut Notes<'_>,
    (value, routes): (pb::VirtualHost, Items<'_, pb::Route, Arc<Route>>),
    inherited: &mut Inherited,
) -> Result<VirtualHost, Invalid> {
    let pb::VirtualHost {
        name,
        domains,
        // They are `routes`.
        routes: _,
        matcher,
        require_tls,
        virtual_clusters: _,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        // Whoever answers is told of each try after the first.
        include_request_attempt_count: _,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = value;
    ignored!(notes;
        cors, include_attempt_count_in_response,
        retry_policy_typed_config, include_is_timeout_retry_header, per_request_buffer_limit_bytes,
        request_body_buffer_limit, request_mirror_policies);
    if matcher.is_some() {
        return Err(Invalid::new("not supported").at("matcher"));
    }
    if !route_specifiers.is_empty() {
        return Err(Invalid::new("not supported").at("route_specifiers"));
    }
    let domains = notes.each("domains", domains, |_, domain| self::domain(&domain))?;
    if domains.is_empty() {
        return Err(Invalid::new("a virtual host needs at least one").at("domains"));
    }
    inherited.retry = notes.optional("retry_policy", retry_policy, retry::policy)?;
    inherited.hedges = notes.optional("hedge_policy", hedge_policy, retry::hedges)?.unwrap_or_default();
    let routes = routes.decode(notes, "routes", |notes, route| self::route(notes, route, inherited).map(Arc::new))?;
    let routes = match pb::virtual_host::TlsRequirementType::try_from(require_tls) {
        Ok(pb::virtual_host::TlsRequirementType::None) => routes,
        Ok(pb::virtual_host::TlsRequirementType::All) => {
            routes.changed(vec![Run::New(vec![Arc::new(to_https())]), Run::Kept(0..routes.len())])
        }
        _ => {
            let action = unusable("require_tls is not supported for a part of the clients");
            let unusable = |route: &Arc<Route>| Arc::new(Route { action: action.clone(), ..Route::clone(route) });
            routes.iter().map(unusable).collect::<List<_>>()
        }
    };
    Ok(VirtualHost {
        name: Arc::from(name),
        rate_limits: rate_limits::rate_limits(notes, rate_limits)?,
        domains,
        routes,
        mutations: mutations(
            notes,
            headers::Lists {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
        )?,
        filters: filter::overrides(notes, typed_per_filter_config)?,
    })
}

/// What comes in plaintext is to come by TLS (Envoy: `require_tls`).
fn to_https() -> Route {
    let mut matches = RouteMatch::any();
    matches.headers.push(HeaderTest::Value {
        name: ":scheme".into(),
        test: StringTest::Exact { value: "http".to_owned(), ignore_case: true },
        invert: false,
        missing_is_empty: false,
    });
    let mut redirect = Redirect::new(StatusCode::MOVED_PERMANENTLY);
    redirect.scheme = Some("https".to_owned());
    Route::new(matches, RouteAction::Redirect(redirect))
}

/// A domain in lower case: `a.b`, `*.b`, `a.*` or `*`.
fn domain(text: &str) -> Result<String, Invalid> {
    let text = filled("domain", text.to_ascii_lowercase())?;
    let inner = text.strip_prefix('*').unwrap_or_else(|| text.strip_suffix('*').unwrap_or(&text));
    if inner.contains('*') {
        return Err(Invalid::new(format!("{text:?}: only one * at the start or the end")));
    }
    Ok(text)
}

fn route(notes: &mut Notes<'_>, value: pb::Route, inherited: &Inherited) -> Result<Route, Invalid> {
    let pb::Route {
        name,
        r#match,
        metadata,
        decorator: _,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = value;
    ignored!(notes; tracing, per_request_buffer_limit_bytes, request_body_buffer_limit);
    let matches = notes.required("match", r#match, route_match::route_match)?;
    let action = action::action(notes, action, inherited)?;
    let action = if route_specifiers.is_empty() { action } else { unusable("route_specifiers are not supported") };
    let action = match action {
        RouteAction::Forward(forward) => RouteAction::Forward(Forward {
            coalesces: metadata.is_some_and(|metadata| coalesces(&metadata)),
            ..forward
        }),
        other => other,
    };
    if let RouteAction::Unusable(reason) = &action {
        notes.ignore(&format!("action ({reason})"));
    }
    Ok(Route {
        name: Arc::from(name),
        matches,
        action,
        mutations: mutations(
            notes,
            headers::Lists {
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            },
        )?,
        filters: filter::overrides(notes, typed_per_filter_config)?,
    })
}

/// Whether identical requests of a route may be one: `mesh-control` says it in a text, which others pass over.
fn coalesces(metadata: &core::Metadata) -> bool {
    let text = metadata.filter_metadata.get("mesh-control").and_then(|fields| fields.fields.get("coalesce"));
    matches!(text.and_then(|text| text.kind.as_ref()), Some(Kind::StringValue(method)) if method == "get")
}
