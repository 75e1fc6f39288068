//! What an Envoy beside a workload makes of a field otherwise than the library: it is told the same, in the same words. What hangs
//! on an annotation, or on files, is reported where it is written (`analysis::envoy`).

use super::ObjectKind;
use super::ObjectKind::{DestinationRule, HttpRoute, ServiceEntry, Sidecar, VirtualService, WorkloadGroup};

const PORT: &str = "a `Location` names the port, also the standard one of its scheme";
const QUERY: &str = "behind a query of the rule's own, that of the request follows a second `?`, and no `&`";
const TYPES: &str = "several `content-type` of a request are one value to it, joined by commas";
const STATUS: &str =
    "in an answer that it gives itself, `%RESPONSE_CODE%` is 0; answers to preflights and of faults have none of them";
const FILTERS: &str = "answers to preflights and of faults have none of them";

/// By what fields begin with.
const DIFFERENCES: &[(ObjectKind, &str, &str)] = &[
    (VirtualService, "http.match.headers", TYPES),
    (VirtualService, "http.match.withoutHeaders", TYPES),
    (VirtualService, "http.redirect.port", PORT),
    (VirtualService, "http.redirect.derivePort", PORT),
    (VirtualService, "http.redirect.prefixRewrite", QUERY),
    (VirtualService, "http.rewrite.uri", QUERY),
    (VirtualService, "http.headers.response.add", STATUS),
    (VirtualService, "http.headers.response.set", STATUS),
    (VirtualService, "tcp", "of two services at one port that are not HTTP, it calls the first one"),
    (VirtualService, "tls", "TLS of the application's own has to name the service, or what is in `sniHosts`"),
    (DestinationRule, "trafficPolicy.tunnel.protocol", "`POST`: it asks proxies by POST, too"),
    (
        ServiceEntry,
        "resolution",
        "`NONE`: it looks the host up; with a wildcard it goes where the connection was going. `DYNAMIC_DNS`: of bytes that are \
         neither HTTP nor TLS nobody can tell it the host",
    ),
    (
        Sidecar,
        "outboundTrafficPolicy.mode",
        "`ALLOW_ANY`: it goes where the connection was going; where nothing redirects connections, it answers 503",
    ),
    (
        WorkloadGroup,
        "probe.grpc",
        "a member is healthy while it is connected: its health discovery asks by HTTP and TCP",
    ),
    (HttpRoute, "rules.matches.headers", TYPES),
    (HttpRoute, "rules.filters.responseHeaderModifier", FILTERS),
    (HttpRoute, "rules.filters.requestRedirect.port", PORT),
    (HttpRoute, "rules.filters.requestRedirect.scheme", PORT),
];

/// What an Envoy makes of a field otherwise than the library, if it does.
pub fn by_envoy(kind: ObjectKind, field: &str) -> Option<&'static str> {
    let begins = |prefix: &str| field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let found = DIFFERENCES.iter().filter(|(of, prefix, _)| *of == kind && begins(prefix));
    found.max_by_key(|(_, prefix, _)| prefix.len()).map(|(.., what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::support::row;

    #[test]
    fn fields_that_an_envoy_treats_in_its_own_way_are_fields() {
        for (kind, prefix, _) in DIFFERENCES {
            let fields = format!("{}/testdata/fields/{}.txt", env!("CARGO_MANIFEST_DIR"), kind.name());
            let fields = std::fs::read_to_string(&fields).unwrap();
            let mut known =
                fields.lines().filter(|field| by_envoy(*kind, field).is_some() && field.starts_with(prefix));
            assert!(known.any(|field| row(*kind, field).is_some()), "{} {prefix}", kind.name());
        }
    }
}
