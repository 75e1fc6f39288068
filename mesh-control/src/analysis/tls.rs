//! DestinationRules that ask for connections which the service's servers never take: every call would fail. What may work for
//! some workload is not mentioned.
//!
//! | the rule asks for | STRICT | PERMISSIVE | DISABLE | an endpoint outside of the mesh |
//! | --- | --- | --- | --- | --- |
//! | DISABLE | fails | works | works | may work |
//! | SIMPLE | fails | fails | fails | may work |
//! | MUTUAL, by names that no workload has | fails | fails | fails | may work |
//! | MUTUAL, by identities or by anybody | may work | may work | fails | may work |
//! | ISTIO_MUTUAL | works | works | fails | fails where nobody is known to answer |

use std::collections::{BTreeMap, BTreeSet};

use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::{Meta, Object, Objects};
use crate::config::istio::destination_rule::{ClientTls, DestinationRule, TrafficPolicy};
use crate::config::locate::locate;
use crate::policy::destination_rules::Around;
use crate::policy::route::ClusterKey;
use crate::policy::security::Served;
use crate::policy::traffic::{ForeignTls, Roots, ServerTls, Tls};
use crate::policy::view::View;
use crate::policy::{Cluster, Policy};
use crate::registry::host::{covers, in_namespace};
use crate::registry::protocol::Protocol;
use crate::registry::service::{Target, is_subset};
use crate::registry::{Service, ServicePort, WrittenEndpoint};

/// How many hosts a finding names.
const MOST: usize = 3;

/// `default` is how servers of the mesh take connections where no PeerAuthentication says anything, if that is known.
pub(super) fn check(objects: &Objects, policy: &Policy, default: Option<ServerTls>, found: &mut Vec<Diagnostic>) {
    for object in &objects.destination_rules {
        for setting in settings(&object.spec) {
            check_setting(object, &setting, policy, default, found);
        }
    }
    check_default(objects, policy, default, found);
}

/// What a rule says of TLS in one place, and for which clusters.
struct Setting<'a> {
    field: String,
    tls: &'a ClientTls,
    /// The subset that it is for.
    subset: &'a str,
    /// The port that it is for, where it is for one.
    port: Option<u16>,
    /// Ports that have settings of their own.
    except: Vec<u16>,
}

fn settings(spec: &DestinationRule) -> Vec<Setting<'_>> {
    let whole = spec.traffic_policy.iter().map(|policy| ("trafficPolicy".to_owned(), "", policy));
    let subsets = spec.subsets.iter().enumerate().filter_map(|(index, subset)| {
        let policy = subset.traffic_policy.as_ref()?;
        Some((format!("subsets[{index}].trafficPolicy"), subset.name.value.as_str(), policy))
    });
    whole.chain(subsets).flat_map(|(path, subset, policy)| in_policy(&path, subset, policy)).collect()
}

fn in_policy<'a>(path: &str, subset: &'a str, policy: &'a TrafficPolicy) -> Vec<Setting<'a>> {
    let with_own = policy.port_level_settings.iter().filter(|settings| settings.tls.is_some());
    let whole = policy.tls.iter().map(|tls| Setting {
        field: format!("{path}.tls.mode"),
        tls,
        subset,
        port: None,
        except: with_own.clone().map(|settings| settings.port.number.0).collect(),
    });
    let ports = policy.port_level_settings.iter().enumerate().filter_map(|(index, settings)| {
        let field = format!("{path}.portLevelSettings[{index}].tls.mode");
        Some(Setting {
            field,
            tls: settings.tls.as_ref()?,
            subset,
            port: Some(settings.port.number.0),
            except: Vec::new(),
        })
    });
    whole.chain(ports).collect()
}

fn check_setting(
    object: &Object<DestinationRule>,
    setting: &Setting<'_>,
    policy: &Policy,
    default: Option<ServerTls>,
    found: &mut Vec<Diagnostic>,
) {
    let asked = Tls::from(setting.tls);
    let mut failing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (view, service) in callers(object, policy) {
        let is_meant = |port: &&ServicePort| {
            setting.port.is_none_or(|number| number == port.number) && !setting.except.contains(&port.number)
        };
        for port in service.ports.iter().filter(is_meant) {
            let key = ClusterKey { host: service.host.clone(), port: port.number, subset: setting.subset.into() };
            // Another rule, or another setting of this one, may be what counts for it.
            let seen = policy.cluster(key, &view).filter(|seen| !seen.is_refused && seen.traffic.tls == asked);
            let Some(seen) = seen.filter(|seen| is_by(object, seen)) else { continue };
            if let Some(why) = why_all_fail(&asked, &seen, policy, default) {
                failing.entry(why).or_default().push(format!("{}:{}", service.host, port.number));
            }
        }
    }
    for (why, hosts) in failing {
        let message = format!("every call to {} fails: {why}", listed(&hosts));
        let origin = locate(&object.meta.origin, &setting.field);
        let finding = Diagnostic::at(&origin, Severity::Error, Code::Conflict, message);
        found.push(finding.istio("IST0113").object(object.meta.id()).field(setting.field.clone()));
    }
}

/// Clients without a rule, in a mesh where nothing but rules makes them call by mutual TLS (`enableAutoMtls: false`).
fn check_default(objects: &Objects, policy: &Policy, default: Option<ServerTls>, found: &mut Vec<Diagnostic>) {
    let Some(object) = objects.mesh_configs.last().filter(|_| !policy.mesh.auto_mtls) else { return };
    let mut failing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, service) in policy.services.iter().filter(|(_, service)| service.alias.is_none()) {
        let view = View::of_namespace(&service.namespace);
        for port in &service.ports {
            let key = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() };
            let seen = policy.cluster(key.clone(), &view).filter(|seen| !seen.is_refused);
            let is_silent = |seen: &Cluster<'_>| {
                seen.rule.is_none_or(|it| it.traffic_policy(&key, Around::default()).tls == Tls::Automatic)
            };
            let Some(seen) = seen.filter(is_silent) else { continue };
            if let Some(why) = why_all_fail(&Tls::Plaintext, &seen, policy, default) {
                failing.entry(why).or_default().push(format!("{}:{}", service.host, port.number));
            }
        }
    }
    for (why, hosts) in failing {
        let message =
            format!("every call to {} fails where no DestinationRule says ISTIO_MUTUAL: {why}", listed(&hosts));
        let origin = locate(&object.meta.origin, "enableAutoMtls");
        let finding = Diagnostic::at(&origin, Severity::Error, Code::Conflict, message);
        found.push(finding.istio("IST0113").object(object.meta.id()).field("enableAutoMtls"));
    }
}

fn listed(hosts: &[String]) -> String {
    let more = hosts.len().saturating_sub(MOST);
    let mut named: Vec<String> = hosts.iter().take(MOST).cloned().collect();
    named.extend((more > 0).then(|| format!("{more} more")));
    named.join(", ")
}

/// The services that a rule is for, each with a client that it may count for.
fn callers<'p>(object: &Object<DestinationRule>, policy: &'p Policy) -> Vec<(View, &'p Service)> {
    let own = &object.meta.namespace;
    let host = in_namespace(&object.spec.host, own);
    let selector = object.spec.workload_selector.as_ref().map(|selector| &selector.match_labels);
    let view = |namespace: &str| policy.view(&namespace.into(), selector.unwrap_or(&BTreeMap::new()));
    let named = object.spec.export_to.iter().map(|entry| entry.value.as_str());
    let named: Vec<&str> =
        std::iter::once(&**own).chain(named.filter(|name| !matches!(*name, "*" | "." | "~"))).collect();
    if !host.starts_with('*') {
        let found = |namespace: &&str| Some((view(namespace), &**policy.services.find(&host, namespace)?.1));
        return named.iter().find_map(found).into_iter().collect();
    }
    let covered = policy.services.iter().map(|(_, service)| &**service).filter(|service| covers(&host, &service.host));
    let seen = covered.filter_map(|service| {
        let mut namespaces = named.iter().copied().chain([&*service.namespace]);
        let is_seen = |namespace: &&str| {
            let known = policy.services.exact(&service.host, namespace);
            known.is_some_and(|(_, known)| known.namespace == service.namespace)
                && policy
                    .destination_rules
                    .find(&service.host, &service.namespace, &view(namespace))
                    .is_some_and(|rule| rule.host == host && rule.meta.namespace == *own)
        };
        Some((view(namespaces.find(is_seen)?), service))
    });
    seen.collect()
}

/// Whether it is this rule that counts for a cluster; rules of one host and namespace are one.
fn is_by(object: &Object<DestinationRule>, seen: &Cluster<'_>) -> bool {
    let host = in_namespace(&object.spec.host, &object.meta.namespace);
    seen.rule.is_some_and(|rule| rule.host == host && rule.meta.namespace == object.meta.namespace)
}

/// How the servers of some workloads take connections, and which object says so; `None` where nobody knows.
struct Server<'p> {
    tls: Option<ServerTls>,
    by: Option<&'p Meta>,
}

/// Why no server of a cluster takes what a client does, if none does.
fn why_all_fail(asked: &Tls, seen: &Cluster<'_>, policy: &Policy, default: Option<ServerTls>) -> Option<String> {
    if let Some(why) = nobody_answers(asked, seen, policy) {
        return Some(why);
    }
    let servers = servers(seen, policy, default);
    let mut reasons = BTreeSet::new();
    for server in &servers {
        let by = server.by.map_or_else(
            || "no PeerAuthentication says otherwise".to_owned(),
            |meta| format!("{} ({})", meta.id(), meta.origin),
        );
        reasons.insert((why_fails(asked, server.tls?, seen.port.protocol)?, by));
    }
    let by: BTreeSet<&str> = reasons.iter().map(|(_, by)| by.as_str()).collect();
    let by = by.into_iter().take(MOST).collect::<Vec<_>>().join(", ");
    let (why, _) = reasons.first()?;
    Some(why.replace('@', &by))
}

/// Why a server never takes what a client does; `@` is who says what it takes.
fn why_fails(asked: &Tls, server: ServerTls, protocol: Protocol) -> Option<String> {
    // There, the application may speak TLS itself.
    let is_opaque = matches!(protocol, Protocol::Https | Protocol::Tls | Protocol::Tcp);
    match (asked, server) {
        (Tls::Plaintext, ServerTls::Strict) => Some(
            "it goes out in plaintext, and the workloads take mutual TLS only (@); ISTIO_MUTUAL asks for it".to_owned(),
        ),
        (Tls::Mesh { .. }, ServerTls::Plaintext) => {
            Some("it asks for mutual TLS, and the workloads speak plaintext (@)".to_owned())
        }
        (Tls::Foreign(_), ServerTls::Plaintext) if !is_opaque => {
            Some("it asks for TLS, and the workloads speak plaintext (@)".to_owned())
        }
        (Tls::Foreign(tls), ServerTls::Strict | ServerTls::Permissive) => foreign(tls),
        _ => None,
    }
}

/// Why workloads of the mesh do not take a client that has TLS of its own.
fn foreign(tls: &ForeignTls) -> Option<String> {
    const INSTEAD: &str = "ISTIO_MUTUAL asks for the mesh's own";
    if tls.identity.is_none() {
        return Some(format!(
            "it shows no certificate, and the workloads take TLS only from those who show one of the mesh (@); {INSTEAD}"
        ));
    }
    let is_proven = tls.roots == Roots::Nobody || tls.names.iter().any(|name| name.starts_with("spiffe://"));
    (!is_proven).then(|| {
        format!(
            "the server has to prove a name, and the workloads prove identities (spiffe://...) only (@): write theirs in \
             subjectAltNames; {INSTEAD}"
        )
    })
}

/// Why nobody may answer calls by mutual TLS: of no endpoint is known who it is.
fn nobody_answers(asked: &Tls, seen: &Cluster<'_>, policy: &Policy) -> Option<String> {
    let service = seen.service;
    let Tls::Mesh { peers, .. } = asked else { return None };
    let mut written = policy.services.written(seen.id);
    let has_endpoints = service.discovery.is_of_caller() || policy.services.written(seen.id).next().is_some();
    let is_known = |written: &WrittenEndpoint| written.mutual_tls && written.identity.is_some();
    let is_answered =
        !peers.is_empty() || !service.peers.is_empty() || service.takes_registrations() || written.any(is_known);
    (has_endpoints && !is_answered).then(|| {
        format!(
            "it asks for mutual TLS, and nobody is known who may answer for {} ({}): write who may in subjectAltNames, here or \
             there, or serviceAccount at its endpoints, and there `location: MESH_INTERNAL` or their label \
             security.istio.io/tlsMode: istio",
            service.meta.id(),
            service.meta.origin
        )
    })
}

/// How all servers take connections that a cluster may have: those that are written down, and those that may register.
fn servers<'p>(seen: &Cluster<'_>, policy: &'p Policy, default: Option<ServerTls>) -> Vec<Server<'p>> {
    let service = seen.service;
    let labels = seen.labels.as_deref();
    let of = |served: Served<'_>| {
        let said = policy.security.mode_of(served, &policy.services);
        Server { tls: said.map(|(_, tls)| tls).or(default), by: said.map(|(meta, _)| meta) }
    };
    let mut all = Vec::new();
    if service.discovery.is_of_caller() {
        all.push(Server { tls: None, by: None });
    }
    for written in policy.services.written(seen.id) {
        let is_meant = labels.is_none_or(|labels| is_subset(labels, &written.labels));
        let Some(port) = written.port_for(&seen.port).filter(|_| is_meant) else { continue };
        // Of the others, nobody knows whether they are of the mesh; and of these, which may be of another one's making, what they do
        // where no PeerAuthentication says it.
        let said = of(Served { namespace: &written.namespace, labels: &written.labels, port });
        let is_told = written.mutual_tls && said.by.is_some();
        all.push(if is_told { said } else { Server { tls: None, by: None } });
    }
    if let Some(selector) = service.selector.as_ref().filter(|_| service.takes_registrations()) {
        let mut known = selector.clone();
        known.extend(labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        let (namespace, port) = (&service.namespace, seen.port.number);
        if policy.gateways.taken_at(namespace, &known, &policy.services, port).is_some() {
            // A gateway: no PeerAuthentication says how it takes connections.
            all.push(Server { tls: None, by: None });
        } else if is_subset(selector, &known) {
            all.extend(registered(service, &seen.port, &known, policy, &of));
        }
    }
    all
}

/// Those of workloads that may register, of which some labels are known: they may have any others that a PeerAuthentication
/// selects by, and where the port has a name, any port that one names.
fn registered<'p>(
    service: &Service,
    port: &ServicePort,
    known: &BTreeMap<String, String>,
    policy: &'p Policy,
    of: &impl Fn(Served<'_>) -> Server<'p>,
) -> Vec<Server<'p>> {
    let selections = policy.security.peer_selections(&service.namespace, known);
    let ports = match port.target {
        Target::Number(number) => [number].into(),
        Target::Name(_) => std::iter::once(0).chain(selections.ports).collect::<BTreeSet<u16>>(),
    };
    let more = selections.labels.into_iter().map(|labels| {
        let mut all = known.clone();
        all.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        all
    });
    let workloads: Vec<BTreeMap<String, String>> = std::iter::once(known.clone()).chain(more).collect();
    let each = workloads.iter().flat_map(|labels| ports.iter().map(move |port| (labels, *port)));
    each.map(|(labels, port)| of(Served { namespace: &service.namespace, labels, port })).collect()
}
