//! What is known of the endpoints of a cluster, for people and for metrics.

use std::fmt;
use std::sync::Arc;

use super::ClusterView;
use crate::health_check::Checked;
use crate::id::{ClusterName, EndpointId, Locality};
use crate::model::Health;

/// One endpoint of one cluster, as this process sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// The cluster; of an aggregate, the leaf.
    pub cluster: ClusterName,
    /// Who it is.
    pub endpoint: EndpointId,
    /// Where it is.
    pub locality: Locality,
    /// Its priority: 0 is used first.
    pub priority: u32,
    /// What the control plane says of its health.
    pub told: Health,
    /// What health checks say; `None` where it has none.
    pub checked: Option<Checked>,
    /// Whether outlier detection has put it out.
    pub is_ejected: bool,
    /// Whether it could be reached when somebody last tried.
    pub is_reachable: bool,
    /// Whether it gets requests. One of a lower priority gets none as long as those above can take them all.
    pub takes_load: bool,
    /// Requests in flight.
    pub in_flight: u32,
}

impl fmt::Display for EndpointStatus {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {:?}", self.cluster, self.endpoint, self.told)?;
        if let Some(checked) = self.checked.filter(|checked| *checked != Checked::Healthy) {
            write!(f, ", by its checks {checked:?}")?;
        }
        for (is_so, what) in [
            (self.is_ejected, ", ejected"),
            (!self.is_reachable, ", cannot be reached"),
            (!self.takes_load, ", gets no requests"),
        ] {
            if is_so {
                f.write_str(what)?;
            }
        }
        write!(f, ", {} in flight", self.in_flight)
    }
}

impl ClusterView {
    /// Each endpoint that the control plane lists, in its order.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let (mut all, taking_load) = (Vec::new(), self.taking_load());
        for leaf in self.leaves() {
            for locality in leaf.endpoints.iter().flat_map(|endpoints| &endpoints.localities) {
                for endpoint in &locality.endpoints {
                    let state = leaf.state.endpoint(&endpoint.id, endpoint.mutual_tls);
                    all.push(EndpointStatus {
                        cluster: leaf.cluster.name.clone(),
                        endpoint: endpoint.id.clone(),
                        locality: locality.locality.clone(),
                        priority: locality.priority,
                        told: endpoint.health,
                        checked: leaf.is_checked(endpoint).then(|| state.checked()),
                        is_ejected: leaf.cluster.outlier_detection.is_some() && state.is_ejected(),
                        is_reachable: state.is_reachable(),
                        takes_load: taking_load.contains(&Arc::as_ptr(&state)),
                        in_flight: state.in_flight(),
                    });
                }
            }
        }
        all
    }
}
