//! The 25 labels of Istio's standard metrics.

use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::model::{CelExpression, LabelRule, Nothing};
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

/// The values of all labels of a series. None is ever missing: what is not known is `unknown`, and of revisions `latest`;
/// unless a rule takes it off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    standard: Arc<[Arc<str>; LABELS.len()]>,
    others: Option<Arc<Others>>,
}

/// What is otherwise than usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Others {
    /// Labels that are not there, by their places.
    removed: u32,
    /// Labels that are there besides, by their names.
    added: Vec<(Arc<str>, Arc<str>)>,
}

/// What rules make of the labels of a request: each by its name with its value, or without where it is taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LabelChanges(pub(super) Vec<(Arc<str>, Option<Arc<str>>)>);

impl LabelChanges {
    /// What these rules make of them; `value` says what an expression comes to.
    pub(super) fn of(rules: &[LabelRule], value: impl Fn(&CelExpression) -> Option<String>) -> LabelChanges {
        let shown = |rule: &CelExpression| match value(rule).filter(|text| !text.is_empty()) {
            Some(text) => label(&text.into()),
            None => UNKNOWN.into(),
        };
        LabelChanges(rules.iter().map(|(name, rule)| (Arc::clone(name), rule.as_ref().map(shown))).collect())
    }

    /// The same, with nothing of the request in it.
    pub(super) fn unknown(rules: &[LabelRule]) -> LabelChanges {
        let constant = |rule: &CelExpression| rule.is_constant().then(|| rule.show(&Nothing)).flatten();
        LabelChanges::of(rules, constant)
    }
}

/// What of a request or a connection is told by its labels.
pub(super) struct Told<'a> {
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
    pub(super) fn of(told: Told<'_>) -> Labels {
        let Told { reporter, source, destination, service, protocol, code, grpc_status, flags, is_secured } = told;
        let policy = match (reporter, is_secured) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, true) => "mutual_tls",
            (Reporter::Destination, false) => "none",
        };
        let known = |text: &str| Arc::from(if text.is_empty() { UNKNOWN } else { text });
        let [host, name, namespace] = service.map(known);
        let [a, b, c, d, e, f, g, h] = of_peer(source);
        let [i, j, k, l, m, n, o, p] = of_peer(destination);
        let standard = Arc::new([
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
        ]);
        Labels { standard, others: None }
    }

    /// The labels of whatever there is no room for.
    pub(super) fn of_the_rest(reporter: Reporter) -> Labels {
        let rest = LABELS.map(|name| Arc::from(if name == "reporter" { reporter.name() } else { UNKNOWN }));
        Labels { standard: Arc::new(rest), others: None }
    }

    /// The same with these changes.
    pub(super) fn changed(mut self, changes: &LabelChanges) -> Labels {
        if changes.0.is_empty() {
            return self;
        }
        let mut others = Others::default();
        let standard = Arc::make_mut(&mut self.standard);
        for (name, value) in &changes.0 {
            let place = LABELS.iter().position(|label| **label == **name);
            match (place.and_then(|place| Some((place, standard.get_mut(place)?))), value) {
                (Some((_, standard)), Some(value)) => *standard = Arc::clone(value),
                (Some((place, standard)), None) => {
                    others.removed |= 1 << place;
                    *standard = "".into();
                }
                (None, Some(value)) => others.added.push((Arc::clone(name), Arc::clone(value))),
                (None, None) => {}
            }
        }
        self.others = (others != Others::default()).then(|| Arc::new(others));
        self
    }

    /// Each label with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<str>)> {
        let removed = self.others.as_ref().map_or(0, |others| others.removed);
        let is_there = move |place: &usize| removed & (1 << place) == 0;
        let standard = LABELS.into_iter().zip(self.standard.iter()).enumerate();
        let standard = standard.filter(move |(place, _)| is_there(place)).map(|(_, label)| label);
        let added = self.others.iter().flat_map(|others| &others.added);
        standard.chain(added.map(|(name, value)| (&**name, value)))
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }
}

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

/// Workload, namespace, principal, app, version, canonical service, canonical revision, cluster.
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
