//! Looks after the endpoints of the clusters in use, whoever calls them: those that cannot be reached are dialled now and
//! then, those that have health checks are asked how they are, those that report their load out of band are listened to, outlier
//! detection gets its turn once an interval, and policies that
//! go by what endpoints report take that in.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::model::{Cluster, HealthCheck};
use mesh_core::state::{CheckedEndpoint, EndpointState};
use mesh_core::store::Targets;
use mesh_core::view::Leaf;
use tokio::task::JoinSet;

use super::check::check;
use super::orca::Reports;
use super::{Security, dial};

/// How often it is looked what is due. Pauses and intervals are as exact as that.
const PERIODS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How many endpoints are dialled or checked at a time, of either; others wait for the next look.
const MOST: usize = 100;

/// Goes on as long as it is polled: one task for the whole mesh, on its own runtime. What it has under way ends with it.
pub(crate) async fn look_after(targets: Targets) {
    let (mut dials, mut checks, mut reports) = (JoinSet::new(), JoinSet::new(), Reports::default());
    let mut random = fastrand::Rng::new();
    let mut pause = PERIODS.1;
    loop {
        tokio::time::sleep(PERIODS.0).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(PERIODS.0)) => {}
            // When the next one is due is known by now.
            Some(_) = checks.join_next() => {}
        }
        pause = PERIODS.1;
        while dials.try_join_next().is_some() {}
        while checks.try_join_next().is_some() {}
        let (now, mut seen, mut reporting) = (Instant::now(), HashSet::new(), Vec::new());
        let mut due = |next: Instant| pause = pause.min(next.saturating_duration_since(now));
        for entry in targets.list() {
            let Some(view) = entry.peek() else { continue };
            view.clusters().iter().for_each(|cluster| cluster.refresh(now));
            for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()) {
                // Where callers name the addresses, nobody but them dials any.
                if leaf.endpoints.is_none() || !seen.insert(Arc::as_ptr(&leaf.state)) {
                    continue;
                }
                if let Some(detection) = &leaf.cluster.outlier_detection {
                    due(leaf.state.sweep(detection, now, &mut random));
                }
                if let Some(config) = &leaf.cluster.health_check {
                    let free = MOST.saturating_sub(checks.len());
                    let (endpoints, next) = leaf.state.to_check(config, now, free, &mut random);
                    next.into_iter().for_each(&mut due);
                    for checked in endpoints {
                        checks.spawn(check_on(leaf.clone(), Arc::clone(config), checked));
                    }
                }
                if let Some((config, period)) =
                    leaf.cluster.balancer.load_weights().and_then(|config| Some((config, config.oob?)))
                {
                    reporting.push((leaf.clone(), Arc::clone(config), period));
                }
                for endpoint in leaf.state.to_look_for(now, MOST.saturating_sub(dials.len())) {
                    dials.spawn(look_for(Arc::clone(&leaf.cluster), endpoint));
                }
            }
        }
        reports.follow(reporting);
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

/// Asks an endpoint how it is: its state learns of it.
async fn check_on(leaf: Leaf, config: Arc<HealthCheck>, checked: CheckedEndpoint) {
    let CheckedEndpoint { endpoint, host, .. } = checked;
    let outcome = check(&leaf.cluster, &config, host.as_deref(), &endpoint).await;
    let detection = leaf.cluster.outlier_detection.as_ref();
    leaf.state.note_check(&config, detection, &endpoint, outcome, Instant::now(), &mut fastrand::Rng::new());
}
