//! What is otherwise than usual of Istio's metrics: which are not there, and whose labels are others (Telemetry's `metrics`,
//! told as the configuration of Istio's filter `istio.stats`).

use std::fmt;
use std::sync::Arc;

use super::CelExpression;
use crate::error::Invalid;

macro_rules! metrics {
    ($($name:literal),* $(,)?) => {
        /// Istio's metrics, in the words of its statistics.
        pub const METRIC_NAMES: [&str; 10] = [$($name),*];
        /// The same to Prometheus: `istio_` stands before each.
        pub const PROMETHEUS_NAMES: [&str; 10] = [$(concat!("istio_", $name)),*];
    };
}

metrics![
    "requests_total",
    "request_duration_milliseconds",
    "request_bytes",
    "response_bytes",
    "request_messages_total",
    "response_messages_total",
    "tcp_sent_bytes_total",
    "tcp_received_bytes_total",
    "tcp_connections_opened_total",
    "tcp_connections_closed_total",
];

/// Some of them, by their places in [`METRIC_NAMES`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MetricSet(u16);

impl MetricSet {
    /// Every one.
    pub const ALL: MetricSet = MetricSet((1 << METRIC_NAMES.len()) - 1);

    /// The one at this place.
    pub const fn one(place: usize) -> MetricSet {
        MetricSet(1 << place)
    }

    /// Whether the one at this place is among them.
    #[inline]
    pub fn has(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    /// These, and those.
    pub const fn with(self, others: MetricSet) -> MetricSet {
        MetricSet(self.0 | others.0)
    }

    /// Those of these that are among others.
    pub const fn within(self, others: MetricSet) -> MetricSet {
        MetricSet(self.0 & others.0)
    }

    /// As a number.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The same from a number.
    pub fn of_bits(bits: u16) -> MetricSet {
        MetricSet(bits & Self::ALL.0)
    }
}

impl fmt::Debug for MetricSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(METRIC_NAMES.iter().enumerate().filter(|(place, _)| self.has(*place))).finish()
    }
}

/// What becomes of a label: what it is set to, or `None` where it is taken off.
pub type LabelRule = (Arc<str>, Option<CelExpression>);

/// What is otherwise than usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricRules {
    groups: Vec<MetricGroup>,
    needs_head: bool,
    needs_token: bool,
}

/// Metrics whose labels are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricGroup {
    /// Which they are.
    pub metrics: MetricSet,
    /// What becomes of their labels, by name.
    pub labels: Vec<LabelRule>,
}

impl MetricRules {
    /// Rules for these metrics, each by its place: not there, or with these changes of labels. The others are as usual.
    ///
    /// # Errors
    /// For what cannot be the name of a label.
    ///
    /// ```
    /// use mesh_core::model::{METRIC_NAMES, MetricRules};
    ///
    /// let without_version = vec![("source_version".into(), None)];
    /// let rules = MetricRules::new([(0, Some(without_version)), (1, None)])?;
    /// assert_eq!(rules.groups().len(), 2, "the first one, and the eight that nothing is said of");
    /// # Ok::<(), mesh_core::error::Invalid>(())
    /// ```
    pub fn new(rules: impl IntoIterator<Item = (usize, Option<Vec<LabelRule>>)>) -> Result<MetricRules, Invalid> {
        let (mut groups, mut named) = (Vec::<MetricGroup>::new(), MetricSet::default());
        let mut add =
            |metrics: MetricSet, labels: Vec<LabelRule>| match groups.iter_mut().find(|it| it.labels == labels) {
                Some(group) => group.metrics = group.metrics.with(metrics),
                None => groups.push(MetricGroup { metrics, labels }),
            };
        for (place, labels) in rules {
            named = named.with(MetricSet::one(place));
            let Some(mut labels) = labels else { continue };
            if let Some((name, _)) = labels.iter().find(|(name, _)| !is_metric_label(name)) {
                return Err(Invalid::new(format!("{name:?} cannot be the name of a label")));
            }
            labels.sort_by(|(a, _), (b, _)| a.cmp(b));
            add(MetricSet::one(place), labels);
        }
        let rest = MetricSet(MetricSet::ALL.0 & !named.0);
        if rest != MetricSet::default() {
            add(rest, Vec::new());
        }
        let expressions = groups.iter().flat_map(|group| &group.labels).filter_map(|(_, value)| value.as_ref());
        let needs_head = expressions.clone().any(CelExpression::needs_head);
        let needs_token = expressions.clone().any(CelExpression::needs_token);
        Ok(MetricRules { groups, needs_head, needs_token })
    }

    /// Metrics that are there, by what becomes of their labels.
    pub fn groups(&self) -> &[MetricGroup] {
        &self.groups
    }

    /// Whether labels are of the heads of request or answer.
    pub fn needs_head(&self) -> bool {
        self.needs_head
    }

    /// Whether labels are of what tokens say.
    pub fn needs_token(&self) -> bool {
        self.needs_token
    }
}

/// Whether Prometheus takes it as the name of a label; `le` is that of buckets.
pub fn is_metric_label(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !name.starts_with("__");
    begins_well && name != "le" && name.len() <= 128 && name.chars().all(is_fine)
}
