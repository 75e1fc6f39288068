//! Metrics by the names that gRPC's own clients have for them, besides those of calls ([`GrpcMetrics`]): of the client of the
//! control plane, of clusters, and of connections.
//!
//! [`GrpcMetrics`]: mesh_core::telemetry::GrpcMetrics

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mesh_core::client_status::{ClientStatus, ResourceState, ServerStatus};
use mesh_core::outlier::Ejections;
use mesh_core::resources::ResourceType;
use mesh_core::state::{LoadWeightCounts, SubchannelCounts};
use mesh_core::telemetry::{BOUNDS, Kind, MetricsWriter, Value};
use mesh_core::view::Leaf;

use crate::mesh::Mesh;

/// The clusters of which this is so, by name, each with the labels that all of its metrics have.
fn clusters(mesh: &Mesh, is_so: impl Fn(&Leaf) -> bool) -> Vec<(Leaf, [(&'static str, String); 2])> {
    let mut by_name = BTreeMap::new();
    for view in mesh.store().targets().list().filter_map(|entry| entry.peek()) {
        for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()).filter(|leaf| is_so(leaf)) {
            by_name.entry(leaf.cluster.name.to_string()).or_insert_with(|| leaf.clone());
        }
    }
    let labelled = by_name.into_iter().map(|(name, leaf)| {
        let target = leaf.state.target().map_or_else(String::new, |target| format!("xds:///{target}"));
        (leaf, [("grpc.target", target), ("grpc.lb.backend_service", name)])
    });
    labelled.collect()
}

/// The same labels, and more.
fn with<'l>(labels: &'l [(&'static str, String)], more: &[(&'static str, &'l str)]) -> Vec<(&'static str, &'l str)> {
    labels.iter().map(|(label, value)| (*label, value.as_str())).chain(more.iter().copied()).collect()
}

/// Clusters whose endpoints are balanced by their loads (gRFC A78, A89).
pub(super) fn load_weights(mesh: &Mesh, to: &mut dyn MetricsWriter) {
    let clusters = clusters(mesh, |leaf| leaf.cluster.balancer.load_weights().is_some());
    if clusters.is_empty() {
        return;
    }
    type Read = fn(&LoadWeightCounts) -> &AtomicU64;
    let counters: [(&str, &str, Read); 3] = [
        (
            "grpc.lb.wrr.rr_fallback",
            "Times that the loads of too few endpoints were known, so that they take turns.",
            |counts| &counts.fallbacks,
        ),
        (
            "grpc.lb.wrr.endpoint_weight_not_yet_usable",
            "Endpoints without a weight yet, whenever weights were taken in.",
            |counts| &counts.not_yet,
        ),
        (
            "grpc.lb.wrr.endpoint_weight_stale",
            "Endpoints whose weight was too old, whenever weights were taken in.",
            |counts| &counts.stale,
        ),
    ];
    for (name, help, read) in counters {
        to.family(name, Kind::Counter, help);
        for (leaf, labels) in &clusters {
            let count = read(&leaf.state.load_weights).load(Ordering::Relaxed);
            to.sample(&with(labels, &[]), count.into(), None);
        }
    }
    let help = "The weights of endpoints, whenever they were taken in.";
    to.family("grpc.lb.wrr.endpoint_weights", Kind::Histogram, help);
    for (leaf, labels) in &clusters {
        let (counts, sum) = leaf.state.load_weights.weights.read();
        let value = Value::Histogram { bounds: &BOUNDS, counts: &counts, sum };
        to.sample(&with(labels, &[]), value, None);
    }
}

/// What outlier detection made of endpoints (gRFC A91).
pub(super) fn ejections(mesh: &Mesh, to: &mut dyn MetricsWriter) {
    let clusters = clusters(mesh, |leaf| leaf.cluster.outlier_detection.is_some());
    if clusters.is_empty() {
        return;
    }
    /// Why they stayed, where they did, and how many they are.
    type Told<'t> = (Option<&'t str>, fn(&Ejections) -> u64);
    let mut tell = |name, help, reasons: &[Told<'_>]| {
        to.family(name, Kind::Counter, help);
        for (leaf, labels) in &clusters {
            for (method, counts) in leaf.state.ejections_by_reason() {
                for (reason, read) in reasons {
                    let method = Some(("grpc.lb.outlier_detection.detection_method", method.as_str()));
                    let reason = reason.map(|reason| ("grpc.lb.outlier_detection.unenforced_reason", reason));
                    let more: Vec<_> = method.into_iter().chain(reason).collect();
                    to.sample(&with(labels, &more), read(&counts).into(), None);
                }
            }
        }
    };
    let help = "Endpoints that outlier detection ejected.";
    tell("grpc.lb.outlier_detection.ejections_enforced", help, &[(None, |counts| counts.enforced)]);
    let help = "Endpoints that it took for outliers, and did not eject.";
    let reasons: [Told<'_>; 2] = [
        (Some("enforcement_percentage"), |counts| counts.spared),
        (Some("max_ejection_overflow"), |counts| counts.overflows),
    ];
    tell("grpc.lb.outlier_detection.ejections_unenforced", help, &reasons);
}

/// Connections over HTTP/2 (gRFC A94).
pub(super) fn connections(mesh: &Mesh, to: &mut dyn MetricsWriter) {
    /// What is told of one place, each with a label of its own where it has one.
    type Tell = fn(&SubchannelCounts<'_>, &mut dyn FnMut(Option<(&'static str, &'static str)>, u64));
    let mut tell = |name, kind, help, numbers: Tell| {
        let (mut is_begun, subchannels) = (false, mesh.store().subchannels());
        subchannels.each(|place| {
            if !std::mem::replace(&mut is_begun, true) {
                to.family(name, kind, help);
            }
            let labels = [
                ("grpc.target", place.target),
                ("grpc.lb.backend_service", &*place.backend.service),
                ("grpc.lb.locality", &*place.backend.locality),
            ];
            numbers(&place, &mut |more, number| {
                let labels: Vec<_> = labels.into_iter().chain(more).collect();
                let since: Option<Instant> = Some(place.since).filter(|_| kind == Kind::Counter);
                to.sample(&labels, number.into(), since);
            });
        });
    };
    let help = "Connections that were made.";
    tell("grpc.subchannel.connection_attempts_succeeded", Kind::Counter, help, |place, say| say(None, place.succeeded));
    let help = "Connections that could not be made.";
    tell("grpc.subchannel.connection_attempts_failed", Kind::Counter, help, |place, say| say(None, place.failed));
    let help = "Connections that ended, by the reason.";
    tell("grpc.subchannel.disconnections", Kind::Counter, help, |place, say| {
        for (reason, count) in place.ended.iter().filter(|(_, count)| *count > 0) {
            say(Some(("grpc.disconnect_error", reason)), *count);
        }
    });
    let help = "Connections that are open.";
    tell("grpc.subchannel.open_connections", Kind::Gauge, help, |place, say| {
        for (level, count) in place.open {
            say(Some(("grpc.security_level", level)), count);
        }
    });
}

/// The client of the control plane (gRFC A78). There is one for all targets.
pub(super) fn control_planes(status: &ClientStatus, to: &mut dyn MetricsWriter) {
    let mut of_servers = |name, kind, help, number: fn(&ServerStatus) -> u64| {
        to.family(name, kind, help);
        for server in &status.servers {
            to.sample(&[("grpc.xds.server", server.uri.as_str())], number(server).into(), None);
        }
    };
    let help = "Whether the stream to a control plane works.";
    of_servers("grpc.xds_client.connected", Kind::Gauge, help, |server| server.connected.into());
    let help = "Times that a control plane could not be reached, or broke off before it had answered.";
    of_servers("grpc.xds_client.server_failure", Kind::Counter, help, |server| server.failures);
    let help = "Resources of a control plane that were accepted.";
    of_servers("grpc.xds_client.resource_updates_valid", Kind::Counter, help, |server| server.accepted);
    let help = "Resources of a control plane that were rejected.";
    of_servers("grpc.xds_client.resource_updates_invalid", Kind::Counter, help, |server| server.rejected);
    let mut counts = BTreeMap::<[&str; 3], u64>::new();
    for resource in &status.resources {
        let of_type = match resource.key.kind {
            ResourceType::Listener => "envoy.config.listener.v3.Listener",
            ResourceType::Route => "envoy.config.route.v3.RouteConfiguration",
            ResourceType::Cluster => "envoy.config.cluster.v3.Cluster",
            ResourceType::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            _ => continue,
        };
        let state = match (resource.state, resource.version.is_empty()) {
            (ResourceState::Requested, _) => "requested",
            (ResourceState::DoesNotExist, _) => "does_not_exist",
            (ResourceState::Acked, _) => "acked",
            (ResourceState::Nacked, true) => "nacked",
            (ResourceState::Nacked, false) => "nacked_but_cached",
            (ResourceState::ReceivedError, _) => "received_error",
            (ResourceState::Timeout, _) => "timeout",
            _ => continue,
        };
        // Names that are of no federation are of this one.
        let name = resource.key.name.strip_prefix("xdstp://").and_then(|rest| rest.split('/').next());
        *counts.entry([name.unwrap_or("#old"), state, of_type]).or_default() += 1;
    }
    to.family("grpc.xds_client.resources", Kind::Gauge, "Resources by what is known of them.");
    for ([authority, state, of_type], count) in counts {
        let labels =
            [("grpc.xds.authority", authority), ("grpc.xds.cache_state", state), ("grpc.xds.resource_type", of_type)];
        to.sample(&labels, count.into(), None);
    }
}
