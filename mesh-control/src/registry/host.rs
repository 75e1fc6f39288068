//! Host names: short and full, exact and with a wildcard.

use std::collections::HashMap;
use std::net::IpAddr;

/// The domain under which Kubernetes services have their names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The full name of a Kubernetes service.
pub fn service_host(name: &str, namespace: &str) -> String {
    [name, ".", namespace, ".svc.", CLUSTER_DOMAIN].concat()
}

/// A host as an object writes it, in full: a name without a dot belongs to the object's namespace
/// (Istio: ResolveShortnameToFQDN); anything else stands for itself.
pub fn in_namespace(host: &str, namespace: &str) -> String {
    let is_short = !host.contains(['.', ':', '*']);
    if is_short { service_host(&plain(host), namespace) } else { plain(host) }
}

/// A host in the one form in which hosts are compared: names of DNS have no case, and may end in a dot.
pub fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The full names that a host can mean when a client of some namespace asks for it, the likeliest first.
pub fn candidates(host: &str, namespace: &str) -> Vec<String> {
    let host = plain(host);
    let mut names = vec![host.clone()];
    if host.parse::<IpAddr>().is_err() {
        match host.split('.').collect::<Vec<_>>().as_slice() {
            [name] => names.push(service_host(name, namespace)),
            [name, namespace] => names.push(service_host(name, namespace)),
            [_, _, "svc"] => names.push(format!("{host}.{CLUSTER_DOMAIN}")),
            _ => {}
        }
    }
    names
}

/// The shorter names by which a client of some namespace may call a service.
pub fn short_forms(host: &str, client_namespace: &str) -> Vec<String> {
    let suffix = format!(".svc.{CLUSTER_DOMAIN}");
    let Some(short) = host.strip_suffix(&suffix) else {
        return Vec::new();
    };
    let Some((name, namespace)) = short.split_once('.') else {
        return Vec::new();
    };
    let mut forms = Vec::new();
    if namespace == client_namespace {
        forms.push(name.to_owned());
    }
    forms.push(short.to_owned());
    forms.push(format!("{short}.svc"));
    forms
}

/// The name of a Kubernetes service, out of its full name.
pub fn name_in_cluster(host: &str) -> Option<&str> {
    let (name, rest) = host.split_once('.')?;
    let (_, domain) = rest.split_once('.')?;
    (domain.strip_prefix("svc.") == Some(CLUSTER_DOMAIN)).then_some(name)
}

/// Whether a host, possibly `*` or `*.suffix`, covers another.
pub fn covers(pattern: &str, host: &str) -> bool {
    pattern == host
        || pattern.strip_prefix('*').is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

/// Hosts among which those are found that have something in common with another one, without looking at all of them.
#[derive(Debug, Default)]
pub struct Hosts {
    all: Vec<String>,
    /// The places of those without a wildcard.
    exact: HashMap<String, Vec<usize>>,
    /// The places of those with one.
    wildcards: Vec<usize>,
}

impl Hosts {
    /// The places of those that cover this host, or that it covers, with what both have: the narrower of the two. In their order.
    pub fn shared<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let places: Vec<usize> = if host.starts_with('*') {
            (0..self.all.len()).collect()
        } else {
            // Without a wildcard, nothing but the same host is covered.
            let exact = self.exact.get(host).into_iter().flatten();
            let mut some: Vec<usize> = exact.chain(&self.wildcards).copied().collect();
            some.sort_unstable();
            some
        };
        places.into_iter().filter_map(move |place| {
            let own = self.all.get(place)?.as_str();
            let both = match () {
                () if covers(own, host) => host,
                () if covers(host, own) => own,
                () => return None,
            };
            Some((place, both))
        })
    }
}

impl FromIterator<String> for Hosts {
    fn from_iter<I: IntoIterator<Item = String>>(hosts: I) -> Hosts {
        let mut known = Hosts::default();
        for (place, host) in hosts.into_iter().enumerate() {
            match host.starts_with('*') {
                true => known.wildcards.push(place),
                false => known.exact.entry(host.clone()).or_default().push(place),
            }
            known.all.push(host);
        }
        known
    }
}

/// How specific a pattern is: exact before wildcard, longer before shorter.
pub fn specificity(pattern: &str) -> (bool, usize) {
    (!pattern.starts_with('*'), pattern.len())
}

/// `host:port`, as a target is written.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `host:port` or `host`, as a target is written; an IPv6 address with a port stands in brackets.
pub fn split_port(target: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match target.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return None,
            }
        }
        None => match target.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => (target, None),
            Some((host, port)) => (host, Some(port)),
            None => (target, None),
        },
    };
    if host.is_empty() {
        return None;
    }
    match port {
        Some(port) if port.bytes().all(|c| c.is_ascii_digit()) => match port.parse() {
            Ok(port) if port > 0 => Some((host, Some(port))),
            _ => None,
        },
        Some(_) => None,
        None => Some((host, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_belong_to_a_namespace() {
        assert_eq!(in_namespace("reviews", "shop"), "reviews.shop.svc.cluster.local");
        assert_eq!(in_namespace("Api.Example.com", "shop"), "api.example.com");
        assert_eq!(in_namespace("*", "shop"), "*");
        assert_eq!(in_namespace("Reviews", "shop"), "reviews.shop.svc.cluster.local");
        assert_eq!(in_namespace("Reviews.shop.svc.cluster.local.", "other"), "reviews.shop.svc.cluster.local");
        assert_eq!(in_namespace("*.Example.com.", "shop"), "*.example.com");
        for (asked, expected) in [
            ("reviews", "reviews.shop.svc.cluster.local"),
            ("reviews.other", "reviews.other.svc.cluster.local"),
            ("reviews.other.svc", "reviews.other.svc.cluster.local"),
        ] {
            assert_eq!(candidates(asked, "shop"), [asked, expected]);
        }
        assert_eq!(candidates("a.b.c.d.", "shop"), ["a.b.c.d"]);
        assert_eq!(candidates("10.0.0.1", "shop"), ["10.0.0.1"]);
    }

    #[test]
    fn a_service_is_called_by_shorter_names_too() {
        let host = "reviews.shop.svc.cluster.local";
        assert_eq!(short_forms(host, "shop"), ["reviews", "reviews.shop", "reviews.shop.svc"]);
        assert_eq!(short_forms(host, "other"), ["reviews.shop", "reviews.shop.svc"]);
        assert!(short_forms("api.example.com", "shop").is_empty());
    }

    #[test]
    fn wildcards_cover_longer_names_only() {
        assert!(covers("*", "a"));
        assert!(covers("*.x.com", "a.x.com"));
        assert!(covers("*.x.com", "a.b.x.com"));
        assert!(covers("*.x.com", "*.x.com"));
        assert!(covers("*.com", "*.x.com"));
        assert!(!covers("*.x.com", "x.com"));
        assert!(!covers("*.x.com", "*.com"));
        assert!(!covers("a", "b"));
        assert!(specificity("a.x") > specificity("*.very.long"));
        assert!(specificity("*.a.x") > specificity("*.x"));
    }

    #[test]
    fn hosts_are_found_as_by_looking_at_all_of_them() {
        let names = ["*.x.com", "a.x.com", "*", "b", "*.a.x.com", "a.x.com", "x.com", "*.org"];
        let hosts: Hosts = names.iter().map(|name| (*name).to_owned()).collect();
        for host in names.iter().chain(&["c.a.x.com", "c.org", "*.com", "*com", "org", ""]) {
            let narrower = |own: &&'static str| match () {
                () if covers(own, host) => Some(*host),
                () => Some(*own).filter(|own| covers(host, own)),
            };
            let each = names.iter().enumerate();
            let expected: Vec<_> = each.filter_map(|(place, own)| Some((place, narrower(own)?))).collect();
            assert_eq!(hosts.shared(host).collect::<Vec<_>>(), expected, "{host}");
        }
        let found: Vec<_> = hosts.shared("a.x.com").collect();
        assert_eq!(found, [(0, "a.x.com"), (1, "a.x.com"), (2, "a.x.com"), (5, "a.x.com")]);
    }

    #[test]
    fn targets_split_into_host_and_port() {
        assert_eq!(split_port("a:80"), Some(("a", Some(80))));
        assert_eq!(split_port("a"), Some(("a", None)));
        assert_eq!(split_port("[::1]:80"), Some(("::1", Some(80))));
        assert_eq!(split_port("[::1]"), Some(("::1", None)));
        assert_eq!(split_port("::1"), Some(("::1", None)));
        for bad in ["", ":80", "a:", "a:0", "a:70000", "a:b", "a:+1", "[::1", "[::1]80"] {
            assert_eq!(split_port(bad), None, "{bad}");
        }
    }
}
