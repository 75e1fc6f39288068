//! Looks after the endpoints of the clusters in use, whoever calls them: those that cannot be reached are dialled now and
//! then, and outlier detection gets its turn once an interval.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::model::Cluster;
use mesh_core::state::EndpointState;
use mesh_core::store::Targets;
use tokio::task::JoinSet;

use super::{Security, dial};

/// How often it is looked what is due. Pauses and intervals are as exact as that.
const PERIODS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How many endpoints are dialled at a time; others wait for the next look.
const MOST_DIALS: usize = 100;

/// Goes on as long as it is polled: one task for the whole mesh, on its own runtime. Dials end with it.
pub(crate) async fn look_after(targets: Targets) {
    let mut dials = JoinSet::new();
    let mut random = fastrand::Rng::new();
    let mut pause = PERIODS.1;
    loop {
        tokio::time::sleep(pause).await;
        pause = PERIODS.1;
        while dials.try_join_next().is_some() {}
        let (now, mut seen) = (Instant::now(), HashSet::new());
        for entry in targets.list() {
            let Some(view) = entry.peek() else { continue };
            for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()) {
                // Where callers name the addresses, nobody but them dials any.
                if leaf.endpoints.is_none() || !seen.insert(Arc::as_ptr(&leaf.state)) {
                    continue;
                }
                if let Some(detection) = &leaf.cluster.outlier_detection {
                    let next = leaf.state.sweep(detection, now, &mut random);
                    pause = pause.min(next.saturating_duration_since(now));
                }
                for endpoint in leaf.state.to_look_for(now, MOST_DIALS.saturating_sub(dials.len())) {
                    dials.spawn(look_for(Arc::clone(&leaf.cluster), endpoint));
                }
            }
        }
        pause = pause.max(PERIODS.0);
    }
}

/// Dials an endpoint to see whether it can be reached: its state learns of it. Nothing is sent; who shakes hands by TLS does so
/// here, too.
async fn look_for(cluster: Arc<Cluster>, endpoint: Arc<EndpointState>) {
    let Ok(security) = Security::of(&cluster, endpoint.is_mutual_tls()) else { return };
    let Some(permit) = endpoint.open(&cluster.circuit_breakers) else { return };
    if let Err(error) = dial(&cluster, &endpoint, security, None, permit).await {
        tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.id(), error = %format_args!("{error:#}"), "an endpoint still cannot be reached");
    }
}
