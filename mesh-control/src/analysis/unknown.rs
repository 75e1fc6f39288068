//! Hosts that nothing answers to: what they are called, and what was probably meant.

use std::collections::BTreeSet;

use crate::config::diagnostic::quoted;
use crate::config::spelling::{Names, nearest};
use crate::policy::Policy;
use crate::registry::host::{CLUSTER_DOMAIN, candidates};

/// Why a full host name is nobody's, for clients of this namespace.
pub(super) fn unknown_host(policy: &Policy, host: &str, client_namespace: &str) -> String {
    let message = format!("no service is called {host}");
    if let Some(meant) = entry_of_short_name(policy, host, client_namespace) {
        return format!("{message}; {meant}");
    }
    let names = candidates(host, client_namespace);
    let meant = names.iter().skip(1).find(|name| policy.services.exact(name, client_namespace).is_some());
    if let Some(meant) = meant {
        return format!("{message}; {meant} is");
    }
    let hidden = policy.services.iter().find(|(_, service)| &*service.host == host);
    if let Some((_, service)) = hidden {
        let origin = &service.meta.origin;
        return format!("{} ({origin}) is not exported to namespace {client_namespace}", service.meta.id());
    }
    match nearby(policy, host, client_namespace) {
        Some(meant) => format!("{message}; did you mean {}?", quoted(&meant)),
        None => message,
    }
}

/// What was probably meant by a host that nothing has, where hosts are written in full: what to add to the sentence.
pub(super) fn meant_in_full(policy: &Policy, host: &str, client_namespace: &str) -> String {
    let names = candidates(host, client_namespace);
    let is_there = |name: &&String| policy.services.exact(name, client_namespace).is_some();
    let meant = names.iter().find(is_there).cloned().or_else(|| {
        let seen = policy.services.iter().filter(|(_, service)| service.visibility.includes(client_namespace));
        let hosts: BTreeSet<&str> = seen.map(|(_, service)| &*service.host).collect();
        names.iter().find_map(|name| nearest(name, &hosts)).map(str::to_owned)
    });
    meant.map(|meant| format!("; did you mean {}?", quoted(&meant))).unwrap_or_default()
}

/// A host without dots that an object describes, and that a rule does not mean by that name: there, it is short for a service of
/// the rule's namespace (Istio: ResolveShortnameToFQDN).
pub(super) fn entry_of_short_name(policy: &Policy, host: &str, client_namespace: &str) -> Option<String> {
    let name = host.strip_suffix(&format!(".{client_namespace}.svc.{CLUSTER_DOMAIN}"))?;
    let (_, service) = policy.services.exact(name, client_namespace)?;
    let (id, origin) = (service.meta.id(), &service.meta.origin);
    Some(format!("in a rule, {} is short for that; did you mean `{name}.`, the host of {id} ({origin})?", quoted(name)))
}

/// The name that was probably meant, as the object would write it.
pub(super) fn nearby(policy: &Policy, host: &str, client_namespace: &str) -> Option<String> {
    Known::new(policy, client_namespace).nearby(host)
}

/// The hosts that clients of a namespace see, to look for several that were meant.
pub(super) struct Known<'a> {
    client_namespace: &'a str,
    hosts: Names<'a>,
    /// The services of the cluster among them: name and namespace.
    in_cluster: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Known<'a> {
    pub(super) fn new(policy: &'a Policy, client_namespace: &'a str) -> Known<'a> {
        let services = policy.services.iter().map(|(_, service)| &**service);
        let seen = services.filter(|service| service.visibility.includes(client_namespace));
        let hosts: BTreeSet<&str> = seen.map(|service| &*service.host).collect();
        let in_cluster = hosts.iter().filter_map(|host| parts(host)).collect();
        Known { client_namespace, hosts: Names::new(hosts), in_cluster }
    }

    /// See [`nearby`].
    pub(super) fn nearby(&self, host: &str) -> Option<String> {
        let Some((name, namespace)) = parts(host) else {
            return self.hosts.nearest(host).map(str::to_owned);
        };
        let written = |name: &str, namespace: &str| match namespace == self.client_namespace {
            true => name.to_owned(),
            false => format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        };
        let all = || self.in_cluster.iter().copied();
        let beside: BTreeSet<&str> = all().filter(|(_, other)| *other == namespace).map(|(name, _)| name).collect();
        let elsewhere: BTreeSet<&str> = all().filter(|(other, _)| *other == name).map(|(_, other)| other).collect();
        let typed = nearest(name, &beside).map(|name| written(name, namespace));
        let moved = || nearest(namespace, &elsewhere).or(elsewhere.first().copied());
        typed.or_else(|| moved().map(|namespace| written(name, namespace)))
    }
}

/// Name and namespace of a service of the cluster, out of its full name.
fn parts(host: &str) -> Option<(&str, &str)> {
    host.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?.split_once('.')
}
