//! Resource names: plain ones, and those of a federation (`xdstp://authority/type/id?context`, gRFC A47).
//!
//! Two spellings of one `xdstp` name are one resource, so every name is brought into its canonical form where it
//! enters: context parameters sorted by key, percent-encoding only where it is needed.

use std::sync::Arc;

use crate::error::Invalid;
use crate::resources::ResourceType;

const SCHEME: &str = "xdstp:";

/// The Protobuf type of a kind of resource, without a host.
pub(crate) fn type_name(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Listener => "envoy.config.listener.v3.Listener",
        ResourceType::Route => "envoy.config.route.v3.RouteConfiguration",
        ResourceType::Cluster => "envoy.config.cluster.v3.Cluster",
        ResourceType::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        ResourceType::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
    }
}

/// The type URL of a kind of resource.
pub(crate) fn type_url(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        ResourceType::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        ResourceType::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        ResourceType::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        ResourceType::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
    }
}

/// Every kind, in the order in which one leads to the next.
pub(crate) const KINDS: [ResourceType; 5] =
    [ResourceType::Listener, ResourceType::Route, ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Secret];

/// Something for every kind.
#[derive(Debug, Default)]
pub(crate) struct ByKind<T> {
    listener: T,
    route: T,
    cluster: T,
    endpoints: T,
    secret: T,
}

impl<T> ByKind<T> {
    pub(crate) fn of(&self, kind: ResourceType) -> &T {
        match kind {
            ResourceType::Listener => &self.listener,
            ResourceType::Route => &self.route,
            ResourceType::Cluster => &self.cluster,
            ResourceType::Endpoints => &self.endpoints,
            ResourceType::Secret => &self.secret,
        }
    }

    pub(crate) fn of_mut(&mut self, kind: ResourceType) -> &mut T {
        match kind {
            ResourceType::Listener => &mut self.listener,
            ResourceType::Route => &mut self.route,
            ResourceType::Cluster => &mut self.cluster,
            ResourceType::Endpoints => &mut self.endpoints,
            ResourceType::Secret => &mut self.secret,
        }
    }
}

/// The kind that a type URL names, if it is one of ours.
pub(crate) fn kind_of(url: &str) -> Option<ResourceType> {
    KINDS.into_iter().find(|kind| url == type_url(*kind))
}

/// Whether a name belongs to a federation.
pub(crate) fn is_federated(name: &str) -> bool {
    name.starts_with(SCHEME)
}

/// The authority of a federated name; `None` for a plain one.
pub(crate) fn authority(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(SCHEME)?.strip_prefix("//")?;
    Some(rest.split_once('/').map_or(rest, |(authority, _)| authority))
}

/// The canonical form of the name of a resource of this kind.
pub(crate) fn canonical(kind: ResourceType, name: &str) -> Result<Arc<str>, Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("the name is empty"));
    }
    if name == "*" {
        // It asks for everything there is, and names nothing ([`ResourceKey::all`](crate::resources::ResourceKey::all)).
        return Err(Invalid::new("the name \"*\" is reserved"));
    }
    if name.chars().any(char::is_control) {
        return Err(Invalid::new("the name has a control character"));
    }
    if !is_federated(name) {
        return Ok(Arc::from(name));
    }
    federated(kind, name).map_err(|reason| Invalid::new(format!("{name:?}: {reason}")))
}

fn federated(kind: ResourceType, name: &str) -> Result<Arc<str>, &'static str> {
    let rest = name.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix("//")).ok_or("expected xdstp://")?;
    if rest.contains('#') {
        return Err("directives (#) are not supported");
    }
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let (authority, path) = path.split_once('/').ok_or("expected xdstp://authority/type/id")?;
    let (of_type, id) = path.split_once('/').ok_or("expected xdstp://authority/type/id")?;
    if of_type != type_name(kind) {
        return Err("the type in the name is not that of the resource");
    }
    if id.is_empty() {
        return Err("the id is empty");
    }
    let mut canonical = format!("{SCHEME}//{authority}/{of_type}/");
    encode(&decode(id)?, b"/:@!$&'()*+,;=", &mut canonical);
    let mut parameters: Vec<(String, String)> = Vec::new();
    for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|part| !part.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        parameters.push((decode(key)?, decode(value)?));
    }
    parameters.sort();
    if parameters.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
        return Err("a context parameter is given twice");
    }
    for (index, (key, value)) in parameters.iter().enumerate() {
        canonical.push(if index == 0 { '?' } else { '&' });
        encode(key, b"/:@", &mut canonical);
        canonical.push('=');
        encode(value, b"/:@", &mut canonical);
    }
    Ok(Arc::from(canonical))
}

/// `text` as a part of the path of a federated name (A47: a target in a template of such a name).
pub(crate) fn encode_id(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    encode(text, b"/:@!$&'()*+,;=", &mut encoded);
    encoded
}

fn encode(text: &str, keep: &[u8], to: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            to.push(char::from(byte));
        } else {
            to.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err("malformed percent-encoding"),
        }
    }
    String::from_utf8(bytes).map_err(|_| "percent-encoding of something that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Result<String, String> {
        canonical(ResourceType::Cluster, name).map(|name| name.to_string()).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn client_rule_30_spellings_of_a_federated_name_are_one_name() {
        let cases = [
            ("outbound|80||a.b", "outbound|80||a.b"),
            ("xdstp://x/envoy.config.cluster.v3.Cluster/a", "xdstp://x/envoy.config.cluster.v3.Cluster/a"),
            (
                "xdstp://x/envoy.config.cluster.v3.Cluster/a?b=2&a=1",
                "xdstp://x/envoy.config.cluster.v3.Cluster/a?a=1&b=2",
            ),
            (
                "xdstp://x/envoy.config.cluster.v3.Cluster/%61/b%20c?k=%2F",
                "xdstp://x/envoy.config.cluster.v3.Cluster/a/b%20c?k=/",
            ),
            ("xdstp:///envoy.config.cluster.v3.Cluster/a?", "xdstp:///envoy.config.cluster.v3.Cluster/a"),
        ];
        for (name, expected) in cases {
            assert_eq!(cluster(name).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_canonical_name_is_its_own_canonical_form() {
        let once = cluster("xdstp://x/envoy.config.cluster.v3.Cluster/a%25b?k=%26&z=%3D").unwrap();
        assert_eq!(cluster(&once).as_deref(), Ok(once.as_str()));
    }

    #[test]
    fn names_that_cannot_be_asked_for() {
        for name in [
            "",
            "*",
            "a\nb",
            "xdstp:x",
            "xdstp://x/envoy.config.cluster.v3.Cluster",
            "xdstp://x/envoy.config.cluster.v3.Cluster/",
            "xdstp://x/envoy.config.listener.v3.Listener/a",
            "xdstp://x/envoy.config.cluster.v3.Cluster/a#alt=b",
            "xdstp://x/envoy.config.cluster.v3.Cluster/a?k=1&k=2",
            "xdstp://x/envoy.config.cluster.v3.Cluster/%f",
            "xdstp://x/envoy.config.cluster.v3.Cluster/%ff",
        ] {
            assert!(cluster(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_authority_of_a_name() {
        assert_eq!(authority("reviews:9080"), None);
        assert_eq!(authority("xdstp://east/envoy.config.cluster.v3.Cluster/a"), Some("east"));
        assert_eq!(authority("xdstp:///envoy.config.cluster.v3.Cluster/a"), Some(""));
    }
}
