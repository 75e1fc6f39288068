//! The metrics of a mesh: Istio's standard metrics, and what is so now of its clusters, its certificate, its
//! configuration and itself.

mod grpc;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mesh_core::client_status::ResourceState;
use mesh_core::model::MetricRules;
use mesh_core::store::ServerState;
use mesh_core::telemetry::{Exposition, Kind, Metrics, MetricsWriter, Reporter, Value, write_standard};

use crate::listeners::Headless;
use crate::mesh::Mesh;

/// What is so of a cluster now.
#[derive(Default)]
struct Cluster {
    requests: u32,
    retries: u32,
    pending: u32,
    connections: u32,
    overflows: u64,
    retried: u64,
    opened: u64,
    lost: u64,
    ejected: u64,
    kept: u64,
    /// All, those that get requests, ejected ones, unreachable ones, those that fail their checks.
    endpoints: [u64; 5],
}

/// Each of them once: there are few that differ, and many targets that share them.
fn distinct(all: impl Iterator<Item = Option<Arc<MetricRules>>>) -> Vec<Option<Arc<MetricRules>>> {
    let mut distinct = Vec::new();
    for rules in all {
        if !distinct.contains(&rules) {
            distinct.push(rules);
        }
    }
    distinct
}

impl Mesh {
    /// All metrics, as a text for Prometheus, for a server of the application's own. Istio's standard ones are in it where
    /// the mesh keeps them: see [`MeshBuilder::metrics`](crate::MeshBuilder::metrics).
    ///
    /// ```
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::Mesh;
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics().start()?;
    /// assert!(mesh.prometheus().contains("istio_build{component=\"proxy\""));
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn prometheus(&self) -> String {
        let mut text = Exposition::default();
        self.write_metrics(&mut text);
        text.finish()
    }

    /// The same in any other form.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    /// use mesh_tower::core::telemetry::{Kind, MetricsWriter, Value};
    ///
    /// /// The names of all that only grows.
    /// #[derive(Default)]
    /// struct Counters(Vec<&'static str>);
    ///
    /// impl MetricsWriter for Counters {
    ///     fn family(&mut self, name: &'static str, kind: Kind, _: &'static str) {
    ///         self.0.extend((kind == Kind::Counter).then_some(name));
    ///     }
    ///
    ///     fn sample(&mut self, _: &[(&str, &str)], _: Value<'_>, _: Option<Instant>) {}
    /// }
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics().start()?;
    /// let mut counters = Counters::default();
    /// mesh.write_metrics(&mut counters);
    /// assert!(counters.0.contains(&"mesh_cluster_retries_total"));
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn write_metrics(&self, to: &mut dyn MetricsWriter) {
        if let Some(telemetry) = self.telemetry() {
            self.tell_rules(telemetry.metrics());
            write_standard(&telemetry.metrics().gather(Instant::now()), to);
            let help = "Kinds of requests that found no room for a series of their own.";
            to.family("mesh_telemetry_without_room_total", Kind::Counter, help);
            to.sample(&[], telemetry.metrics().without_room().into(), None);
            if let Some(calls) = telemetry.grpc() {
                calls.write(to);
                grpc::ejections(self, to);
                grpc::connections(self, to);
            }
        }
        to.family("istio_build", Kind::Gauge, "The version of this library.");
        to.sample(&[("component", "proxy"), ("tag", env!("CARGO_PKG_VERSION"))], Value::Count(1), None);
        self.clusters(to);
        self.limits(to);
        self.policies(to);
        self.itself(to);
        self.configuration(to);
    }

    /// What the configuration says by now of how requests are counted.
    fn tell_rules(&self, metrics: &Metrics) {
        let targets = self.store().targets().list();
        // What a gateway sends on is counted as its listeners say.
        let views = targets.filter(|target| !target.is_onward()).filter_map(|target| target.peek());
        // Of a target that does not exist nobody says anything.
        let views = views.filter(|view| !view.is_failure() || view.is_blocked());
        let of_views = views.map(|view| view.metrics().cloned());
        let listeners = self.listeners().load();
        let states = listeners.iter().map(|listener| Arc::clone(&listener.state()));
        let chains = states.flat_map(|state| match &*state {
            ServerState::Serving(view) => {
                view.chains.iter().map(|chain| (chain.onward.is_some(), chain.metrics.clone())).collect()
            }
            ServerState::Waiting | ServerState::NotServing(_) => Vec::new(),
        });
        let (of_gateways, of_servers): (Vec<_>, Vec<_>) = chains.partition(|(is_of_gateway, _)| *is_of_gateway);
        let rules = |chains: Vec<(bool, Option<Arc<MetricRules>>)>| chains.into_iter().map(|(_, rules)| rules);
        metrics.set_rules(Reporter::Source, distinct(of_views.chain(rules(of_gateways))));
        metrics.set_rules(Reporter::Destination, distinct(rules(of_servers)));
    }

    fn clusters(&self, to: &mut dyn MetricsWriter) {
        let mut clusters = BTreeMap::<String, Cluster>::new();
        for entry in self.store().targets().list() {
            let Some(view) = entry.peek() else { continue };
            for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()) {
                let usage = leaf.state.usage();
                let cluster = clusters.entry(leaf.cluster.name.to_string()).or_default();
                (cluster.requests, cluster.retries) = (usage.requests(), usage.retries());
                (cluster.pending, cluster.connections) = (usage.pending(), usage.connections());
                cluster.overflows = usage.overflows();
                (cluster.retried, cluster.opened, cluster.lost) = (usage.retried(), usage.opened(), usage.lost());
                (cluster.ejected, cluster.kept) = leaf.state.ejections();
            }
        }
        for endpoint in self.endpoints() {
            let cluster = clusters.entry(endpoint.cluster.to_string()).or_default();
            let fails = endpoint.checked == Some(mesh_core::health_check::Checked::Unhealthy);
            let states = [true, endpoint.takes_load, endpoint.is_ejected, !endpoint.is_reachable, fails];
            for (count, is_so) in cluster.endpoints.iter_mut().zip(states) {
                *count += u64::from(is_so);
            }
        }
        type Read = fn(&Cluster) -> u64;
        let families: [(&str, Kind, &str, Read); 10] = [
            ("mesh_cluster_requests_active", Kind::Gauge, "Requests in flight.", |one| one.requests.into()),
            ("mesh_cluster_retries_active", Kind::Gauge, "Retries in flight.", |one| one.retries.into()),
            ("mesh_cluster_requests_pending", Kind::Gauge, "Requests that wait for a connection.", |one| {
                one.pending.into()
            }),
            ("mesh_cluster_connections_active", Kind::Gauge, "Connections.", |one| one.connections.into()),
            ("mesh_cluster_overflows_total", Kind::Counter, "Times that a circuit breaker was in the way.", |one| {
                one.overflows
            }),
            ("mesh_cluster_retries_total", Kind::Counter, "Retries.", |one| one.retried),
            ("mesh_cluster_connections_total", Kind::Counter, "Connections that were begun.", |one| one.opened),
            (
                "mesh_cluster_unreachable_total",
                Kind::Counter,
                "Times that an endpoint could not be reached any more.",
                |one| one.lost,
            ),
            ("mesh_cluster_ejections_total", Kind::Counter, "Endpoints that outlier detection ejected.", |one| {
                one.ejected
            }),
            (
                "mesh_cluster_ejections_overflow_total",
                Kind::Counter,
                "Times that it did not, since too many were out.",
                |one| one.kept,
            ),
        ];
        for (name, kind, help, read) in families {
            to.family(name, kind, help);
            for (cluster, one) in &clusters {
                to.sample(&[("cluster", cluster.as_str())], read(one).into(), None);
            }
        }
        grpc::load_weights(self, to);
        to.family("mesh_cluster_endpoints", Kind::Gauge, "Endpoints, by what this process knows of them.");
        for (cluster, one) in &clusters {
            for (state, count) in
                ["known", "taking_load", "ejected", "unreachable", "failing_checks"].into_iter().zip(one.endpoints)
            {
                to.sample(&[("cluster", cluster.as_str()), ("state", state)], count.into(), None);
            }
        }
    }

    /// Rate limits: by their names, their rules, and what was said of requests.
    fn limits(&self, to: &mut dyn MetricsWriter) {
        let help = "Requests that a rate limit was for, by what it said of them.";
        to.family("mesh_ratelimit_requests_total", Kind::Counter, help);
        self.store().limited().each(|limit, rule, counts| {
            let verdicts = [("within", counts.within()), ("over", counts.over()), ("shadow", counts.shadow())];
            for (verdict, count) in verdicts {
                to.sample(&[("limit", limit), ("rule", rule), ("verdict", verdict)], count.into(), None);
            }
        });
    }

    /// What policies decided, by the names of their rules.
    fn policies(&self, to: &mut dyn MetricsWriter) {
        let help = "Requests and connections that policies refused, would have refused or let in (dry run), or told of (AUDIT).";
        to.family("mesh_policy_decisions_total", Kind::Counter, help);
        self.store().decided().each(|rule, decision, count| {
            to.sample(&[("rule", rule), ("decision", decision.as_str())], count.into(), None);
        });
    }

    fn itself(&self, to: &mut dyn MetricsWriter) {
        let certificates = self.certificates();
        let seconds = |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (own, shown) = (certificates.current(), self.shown_certificates());
        if own.is_some() || !shown.is_empty() {
            let help = "When this process's certificate expires, and of a gateway those that it shows, by their secrets, in seconds \
                        since 1970.";
            to.family("mesh_certificate_expiry_timestamp_seconds", Kind::Gauge, help);
            if let Some(own) = own {
                to.sample(&[], seconds(own.not_after()).into(), None);
            }
            for (secret, end) in &shown {
                to.sample(&[("secret", &**secret)], seconds(*end).into(), None);
            }
        }
        let problems = certificates.problems(SystemTime::now()).len();
        to.family("mesh_certificate_problems", Kind::Gauge, "What is wrong with certificates and TLS files.");
        to.sample(&[], (problems as u64).into(), None);
        if let Some(problems) = self.listeners().problems() {
            let help = "Listeners of this gateway whose address cannot be bound.";
            to.family("mesh_gateway_unbound_listeners", Kind::Gauge, help);
            to.sample(&[], (problems.len() as u64).into(), None);
        }
        let help = "Connections that were closed since they did not begin with a header of the PROXY protocol.";
        to.family("mesh_proxy_protocol_refused_total", Kind::Counter, help);
        for why in Headless::ALL {
            to.sample(&[("reason", why.as_str())], self.listeners().headless(why).into(), None);
        }
        let unchecked = self.passed_unchecked();
        let help = "Requests that passed although no authorizer answered (failOpen).";
        to.family("mesh_requests_unchecked_total", Kind::Counter, help);
        to.sample(&[], unchecked.into(), None);
        to.family("mesh_access_log_lost_total", Kind::Counter, "Lines of access logs that were left out.");
        to.sample(&[], self.lost_log_lines().into(), None);
        if let Some(rejected) = self.rejected_points() {
            let help = "Numbers of metrics that a collector was sent and did not take.";
            to.family("mesh_metric_points_rejected_total", Kind::Counter, help);
            to.sample(&[], rejected.into(), None);
        }
        if let Some(tracer) = self.tracer() {
            let help = "Spans that were left out, since whoever gets them was too slow or gone, or did not take them.";
            to.family("mesh_trace_spans_dropped_total", Kind::Counter, help);
            to.sample(&[], tracer.dropped().into(), None);
        }
    }

    /// When the certificates end that a gateway shows, by their secrets.
    fn shown_certificates(&self) -> BTreeMap<Arc<str>, SystemTime> {
        let (mut shown, listeners) = (BTreeMap::new(), self.listeners().load());
        for listener in listeners.as_slice() {
            let state = listener.state();
            let ServerState::Serving(view) = &**state else { continue };
            for edge in view.chains.iter().filter_map(|chain| chain.edge.as_ref()) {
                shown.extend(edge.ends.iter().cloned());
            }
        }
        shown
    }

    fn configuration(&self, to: &mut dyn MetricsWriter) {
        let status = self.client_status();
        if status.servers.is_empty() {
            return;
        }
        to.family("mesh_xds_connected", Kind::Gauge, "Whether a stream to the control plane is open.");
        for server in &status.servers {
            to.sample(&[("server", server.uri.as_str())], u64::from(server.connected).into(), None);
        }
        let help = "How long ago the control plane last told something, in seconds.";
        to.family("mesh_xds_last_update_age_seconds", Kind::Gauge, help);
        for server in &status.servers {
            if let Some(at) = server.last_ack {
                to.sample(&[("server", server.uri.as_str())], at.elapsed().as_secs_f64().into(), None);
            }
        }
        to.family("mesh_xds_failures_total", Kind::Counter, "Times that the control plane could not be reached.");
        for server in &status.servers {
            to.sample(&[("server", server.uri.as_str())], server.failures.into(), None);
        }
        let rejected = status.resources.iter().filter(|resource| resource.state == ResourceState::Nacked).count();
        let help = "Resources whose last version was rejected; an older one stays in use.";
        to.family("mesh_xds_resources_rejected", Kind::Gauge, help);
        to.sample(&[], (rejected as u64).into(), None);
        to.family("mesh_xds_resources", Kind::Gauge, "Resources that are subscribed to.");
        to.sample(&[], (status.resources.len() as u64).into(), None);
        grpc::control_planes(&status, to);
    }
}
