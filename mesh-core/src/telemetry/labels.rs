//! The 25 labels of Istio's standard metrics.

use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::workload::Peer;

use super::registry::Reporter;

/// Their names, in the order of [`Labels`].
pub const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// What is not known.
const UNKNOWN: &str = "unknown";

/// The values of all labels of a series. None is ever missing: what is not known is `unknown`, and of revisions `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<[Arc<str>; LABELS.len()]>);

/// What of a request or a connection is told by its labels.
pub(super) struct Facts<'a> {
    pub(super) reporter: Reporter,
    pub(super) source: &'a Peer,
    pub(super) destination: &'a Peer,
    /// Host, name and namespace.
    pub(super) service: [&'a str; 3],
    pub(super) protocol: &'static str,
    pub(super) code: u16,
    /// `None` where it is not gRPC.
    pub(super) grpc_status: Option<u32>,
    pub(super) flags: String,
    pub(super) is_secured: bool,
}

impl Labels {
    pub(super) fn of(facts: Facts<'_>) -> Labels {
        let Facts { reporter, source, destination, service, protocol, code, grpc_status, flags, is_secured } = facts;
        let policy = match (reporter, is_secured) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, true) => "mutual_tls",
            (Reporter::Destination, false) => "none",
        };
        let known = |text: &str| Arc::from(if text.is_empty() { UNKNOWN } else { text });
        let [host, name, namespace] = service.map(known);
        let [a, b, c, d, e, f, g, h] = of_peer(source);
        let [i, j, k, l, m, n, o, p] = of_peer(destination);
        Labels(Arc::new([
            reporter.name().into(),
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            i,
            j,
            k,
            l,
            m,
            n,
            o,
            p,
            host,
            name,
            namespace,
            protocol.into(),
            code.to_string().into(),
            grpc_status.map(|status| status.to_string()).unwrap_or_default().into(),
            flags.into(),
            policy.into(),
        ]))
    }

    /// The labels of whatever there is no room for.
    pub(super) fn of_the_rest(reporter: Reporter) -> Labels {
        let rest = LABELS.map(|name| Arc::from(if name == "reporter" { reporter.name() } else { UNKNOWN }));
        Labels(Arc::new(rest))
    }

    /// Each label with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Arc<str>)> {
        LABELS.into_iter().zip(self.0.iter())
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }
}

/// Workload, namespace, principal, app, version, canonical service, canonical revision, cluster.
/// The most characters of what a peer says of itself that a label has: twice what a label of Kubernetes may have. Each
/// stands in a hundred lines of the page.
const LONGEST: usize = 126;

/// What a peer says of itself, as a label: without its end, where it is too long, and without what no terminal should see.
fn label(said: &Arc<str>) -> Arc<str> {
    let is_fine = said.len() <= LONGEST && !said.chars().any(char::is_control);
    if is_fine {
        return Arc::clone(said);
    }
    said.chars().filter(|character| !character.is_control()).take(LONGEST).collect::<String>().into()
}

fn of_peer(peer: &Peer) -> [Arc<str>; 8] {
    let Peer { workload, principal } = peer;
    let or = |text: &Option<Arc<str>>, default: &str| text.as_ref().map_or_else(|| default.into(), label);
    let of = |text| or(text, UNKNOWN);
    [
        of(&workload.name),
        of(&workload.namespace),
        principal.as_ref().map_or(UNKNOWN, SpiffeId::as_str).into(),
        of(&workload.app),
        of(&workload.version),
        of(&workload.canonical_name),
        or(&workload.canonical_revision, "latest"),
        of(&workload.cluster),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_is_a_label_of_bounded_length_without_control_characters() {
        for (said, expected) in [
            ("web", "web".to_owned()),
            ("a\u{1b}[31m\nb", "a[31mb".to_owned()),
            (&"é".repeat(200), "é".repeat(LONGEST)),
        ] {
            assert_eq!(*label(&said.into()), *expected);
        }
    }
}
