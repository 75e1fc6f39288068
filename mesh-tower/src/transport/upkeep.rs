//! Looks after the endpoints of the clusters in use, whoever calls them: those that cannot be reached are dialled now and
//! then, those that have health checks are asked how they are, those that report their load out of band are listened to, outlier
//! detection gets its turn once an interval, and policies that
//! go by what endpoints report take that in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::id::ClusterName;
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

/// How many of one cluster may always be, whatever others have under way.
const OWN: usize = 10;

/// How many dials or checks of a cluster may begin that has `own` of `all` that are under way.
fn may_begin(own: usize, all: usize) -> usize {
    OWN.saturating_sub(own).max(MOST.saturating_sub(all))
}

/// Dials or checks that are under way. They end with it.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<()>,
    /// Each task holds that of its cluster.
    clusters: HashMap<ClusterName, Arc<()>>,
}

impl UnderWay {
    fn may_begin(&self, cluster: &Cluster) -> usize {
        let own = self.clusters.get(&cluster.name).map_or(0, |held| Arc::strong_count(held) - 1);
        may_begin(own, self.tasks.len())
    }

    fn begin(&mut self, cluster: &Cluster, task: impl Future<Output = ()> + Send + 'static) {
        let held = Arc::clone(self.clusters.entry(cluster.name.clone()).or_default());
        self.tasks.spawn(async move {
            let _held = held;
            task.await;
        });
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.clusters.retain(|_, held| Arc::strong_count(held) > 1);
    }
}

/// Goes on as long as it is polled: one task for the whole mesh, on its own runtime. What it has under way ends with it.
pub(crate) async fn look_after(targets: Targets) {
    let (mut dials, mut checks, mut reports) = (UnderWay::default(), UnderWay::default(), Reports::default());
    let mut random = fastrand::Rng::new();
    let mut pause = PERIODS.1;
    loop {
        tokio::time::sleep(PERIODS.0).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(PERIODS.0)) => {}
            // When the next one is due is known by now.
            Some(_) = checks.tasks.join_next() => {}
        }
        pause = PERIODS.1;
        dials.forget_ended();
        checks.forget_ended();
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
                    let most = checks.may_begin(&leaf.cluster);
                    let (endpoints, next) = leaf.state.to_check(config, now, most, &mut random);
                    next.into_iter().for_each(&mut due);
                    for checked in endpoints {
                        checks.begin(&leaf.cluster, check_on(leaf.clone(), Arc::clone(config), checked));
                    }
                }
                if let Some((config, period)) =
                    leaf.cluster.balancer.load_weights().and_then(|config| Some((config, config.oob?)))
                {
                    reporting.push((leaf.clone(), Arc::clone(config), period));
                }
                for endpoint in leaf.state.to_look_for(now, dials.may_begin(&leaf.cluster)) {
                    dials.begin(&leaf.cluster, look_for(Arc::clone(&leaf.cluster), endpoint));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_places_of_its_own_whatever_others_have_under_way() {
        let cases = [
            ((0, 0), 100),
            ((60, 60), 40),
            ((100, 100), 0),
            ((0, 95), 10),
            ((0, 100), 10),
            ((4, 100), 6),
            ((10, 100), 0),
            ((0, 1_000), 10),
        ];
        for ((own, all), expected) in cases {
            assert_eq!(may_begin(own, all), expected, "{own} of {all}");
        }
    }

    #[tokio::test]
    async fn what_is_under_way_is_counted_by_cluster_until_it_ends() {
        let cluster = |name: &str| Cluster::new(name, mesh_core::model::ClusterKind::PassThrough);
        let (hanging, other, mut checks) = (cluster("hanging"), cluster("other"), UnderWay::default());
        for _ in 0..MOST {
            checks.begin(&hanging, std::future::pending());
        }
        assert_eq!((checks.may_begin(&hanging), checks.may_begin(&other)), (0, OWN));
        checks.begin(&other, std::future::ready(()));
        assert_eq!(checks.may_begin(&other), OWN - 1);
        checks.tasks.join_next().await;
        checks.forget_ended();
        assert_eq!((checks.may_begin(&other), checks.clusters.len()), (OWN, 1));
    }
}
