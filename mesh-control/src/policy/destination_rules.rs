//! Which DestinationRule is in force for a service, as a client sees it, and what it says of one port.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::locality::{self, LocalitySetting};
use super::mesh::MeshSettings;
use super::route::ClusterKey;
use super::traffic::{self, Balancer, Bound, ForeignTls, HashedBy, LocalOrigin, Roots, SecretTls, Tls, Warmup};
use super::view::View;
use crate::config::diagnostic::{Origin, Span};
use crate::config::file::{Governs, Meta, Object, Refused};
use crate::config::istio::destination_rule::{
    ClientTls, ConnectionPool, ConsistentHash, DestinationRule, H2UpgradePolicy, LoadBalancer, OutlierDetection,
    RetryBudget, SimpleLb, Subset, TcpKeepalive, TlsMode, TrafficPolicy, Tunnel, TunnelProtocol,
};
use crate::config::istio::mesh_config::DefaultTrafficPolicy;
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::Visibility;
use crate::registry::host::{covers, in_namespace, join, specificity};
use crate::registry::service::is_subset;

/// Rules for one host from one namespace, merged.
#[derive(Debug)]
pub struct MergedRule {
    /// The host in full.
    pub host: String,
    /// The first of the objects.
    pub meta: Meta,
    visibility: Visibility,
    selector: BTreeMap<String, String>,
    policy: Option<Placed<TrafficPolicy>>,
    subsets: Vec<Placed<Subset>>,
    /// Why nobody knows what it says: its object is wrong.
    refused: Option<Arc<str>>,
    /// Whether nobody knows its host either.
    is_for_any: bool,
}

/// A part of a rule, and the object that says it: a rule may be made of several.
#[derive(Clone, Debug)]
struct Placed<T> {
    part: T,
    origin: Origin,
}

/// All rules.
#[derive(Debug, Default)]
pub struct DestinationRules {
    /// The namespace whose rules are for everybody.
    root: Arc<str>,
    by_namespace: HashMap<Arc<str>, Vec<Arc<MergedRule>>>,
    /// The labels of clients that some rule asks for.
    pub label_keys: BTreeSet<String>,
}

/// What is written for one port of a service, or of a subset of it.
#[derive(Clone, Copy, Debug, Default)]
struct Settings<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTls>,
    /// Of the whole service or subset: ports have none of their own.
    retry_budget: Option<&'a RetryBudget>,
    /// The same.
    tunnel: Option<&'a Tunnel>,
}

impl DestinationRules {
    /// Those of these objects, and what is to be said about them. Of `refused`, those of this kind leave nobody a way to
    /// call their hosts.
    pub fn new(
        objects: &[Arc<Object<DestinationRule>>],
        refused: &[Arc<Refused>],
        root: &Arc<str>,
    ) -> (DestinationRules, Vec<Diagnostic>) {
        let mut sorted: Vec<&Arc<Object<DestinationRule>>> = objects.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let mut merged: HashMap<Arc<str>, Vec<MergedRule>> = HashMap::new();
        let mut label_keys = BTreeSet::new();
        let mut found = Vec::new();
        for object in sorted {
            let rule = single(object);
            label_keys.extend(rule.selector.keys().cloned());
            let rules = merged.entry(object.meta.namespace.clone()).or_default();
            // Rules for the same host are one rule (Istio: destination_rule.go): the first traffic policy
            // and the first subset of each name count.
            let same = rules.iter_mut().find(|other| {
                other.host == rule.host && other.visibility == rule.visibility && other.selector == rule.selector
            });
            match same {
                Some(earlier) => merge_into(earlier, rule, &mut found),
                None => rules.push(rule),
            }
        }
        for rule in refused.iter().flat_map(|object| refused_rules(object)) {
            label_keys.extend(rule.selector.keys().cloned());
            merged.entry(rule.meta.namespace.clone()).or_default().push(rule);
        }
        let by_namespace = merged
            .into_iter()
            .map(|(namespace, mut rules)| {
                // What is for some clients only goes before what is for all. A wrong one may say anything of its host, and that of
                // one without a host may be any.
                rules.sort_by_key(|rule| {
                    let is_right = rule.refused.is_none();
                    (!rule.is_for_any, Reverse(specificity(&rule.host)), is_right, rule.selector.is_empty())
                });
                (namespace, rules.into_iter().map(Arc::new).collect())
            })
            .collect();
        (DestinationRules { root: root.clone(), by_namespace, label_keys }, found)
    }

    /// The rule in force for a service: of the client's namespace, else of the service's, else of the root
    /// namespace (Istio: push_context.go); of one namespace, that of the most specific host. Of the root namespace's rules, those for
    /// its own clients alone go first there: the others are defaults, which the service's own rule replaces. One that is wrong, and
    /// of no known namespace, may be of any.
    pub fn find(&self, host: &str, service_namespace: &str, view: &View) -> Option<&Arc<MergedRule>> {
        let client = &*view.namespace;
        let is_of_root = *client == *self.root;
        let own = || {
            let mut rules = self.of_namespace(client).filter(|rule| !is_of_root || rule.is_private());
            rules.find(|rule| covers(&rule.host, host) && rule.is_for(&view.labels))
        };
        let exported = |namespace: &str| {
            self.of_namespace(namespace)
                .find(|rule| covers(&rule.host, host) && rule.selector.is_empty() && rule.visibility.includes(client))
        };
        let anywhere = self.of_namespace("").find(|rule| covers(&rule.host, host));
        anywhere.or_else(own).or_else(|| exported(service_namespace)).or_else(|| exported(&self.root))
    }

    /// The rules for this host in these namespaces and in the root namespace, whoever sees them.
    pub fn governing(&self, host: &str, namespaces: [&str; 2]) -> Vec<&Arc<MergedRule>> {
        let namespaces: BTreeSet<&str> = namespaces.into_iter().chain([&*self.root]).collect();
        let rules = namespaces.into_iter().flat_map(|namespace| self.of_namespace(namespace));
        rules.filter(|rule| covers(&rule.host, host)).collect()
    }

    /// Whether a rule of this namespace that is one of those names this Secret.
    pub fn name_secret(&self, namespace: &str, name: &str, is_one: impl Fn(&MergedRule) -> bool) -> bool {
        let is_named = |tls: &Option<ClientTls>| {
            tls.as_ref().and_then(|tls| tls.credential_name.as_deref()).is_some_and(|named| named == name)
        };
        let by = |policy: &TrafficPolicy| {
            is_named(&policy.tls) || policy.port_level_settings.iter().any(|port| is_named(&port.tls))
        };
        self.of_namespace(namespace).filter(|rule| is_one(rule)).any(|rule| {
            let of_subsets = rule.subsets.iter().filter_map(|subset| subset.part.traffic_policy.as_ref());
            rule.policy.iter().map(|policy| &policy.part).chain(of_subsets).any(by)
        })
    }

    /// The rules for this host, whoever they are for.
    pub fn of_host(&self, host: &str) -> impl Iterator<Item = &Arc<MergedRule>> {
        self.by_namespace.values().flatten().filter(move |rule| covers(&rule.host, host))
    }

    /// Whether any rule that this client sees says how this host is called: one of its own, or one that wants more than
    /// plaintext. What a rule for `*` says else is said of services that there are.
    pub fn describes(&self, host: &str, client: &View) -> bool {
        self.of_host(host).filter(|rule| rule.visibility.includes(&client.namespace)).any(|rule| rule.is_of_its_own())
    }

    /// The namespaces that have rules.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_namespace.keys()
    }

    fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<MergedRule>> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }
}

impl MergedRule {
    fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.is_empty() || is_subset(&self.selector, labels)
    }

    /// Whether it is for clients of its own namespace alone. One that nobody can read may be.
    fn is_private(&self) -> bool {
        self.is_for_some() || self.is_for_any || self.visibility.named().eq([&*self.meta.namespace])
    }

    /// Whether it is for some clients only, which are of its own namespace.
    pub fn is_for_some(&self) -> bool {
        !self.selector.is_empty()
    }

    /// The same, and whether clients with these labels are among them.
    pub fn is_for_those_with(&self, labels: &BTreeMap<String, String>) -> bool {
        self.is_for_some() && is_subset(&self.selector, labels)
    }

    /// Who sees it.
    pub fn visibility(&self) -> &Visibility {
        &self.visibility
    }

    /// Why nobody knows what it says, where its object is wrong.
    pub fn refused(&self) -> Option<&Arc<str>> {
        self.refused.as_ref()
    }

    /// Whether it is for one host, or such that nobody may pass it by: it asks for TLS or a tunnel, or nobody knows what it asks for.
    /// Mutual TLS of the mesh is about services of the mesh, where it stands for everything (`*`).
    fn is_of_its_own(&self) -> bool {
        let asks = |tls: &Option<ClientTls>| match tls.as_ref().and_then(|tls| tls.mode) {
            Some(TlsMode::Simple | TlsMode::Mutual) => true,
            Some(TlsMode::IstioMutual) => self.host != "*",
            Some(TlsMode::Disable) | None => false,
        };
        let policy = self.policy.as_ref().map(|policy| &policy.part);
        !self.host.starts_with('*')
            || self.refused.is_some()
            || policy.is_some_and(|policy| {
                let of_ports = || policy.port_level_settings.iter().any(|port| asks(&port.tls));
                asks(&policy.tls) || policy.tunnel.is_some() || of_ports()
            })
    }

    /// Whether it defines a subset of this name.
    pub fn has_subset(&self, name: &str) -> bool {
        self.subset(name).is_some()
    }

    /// The labels of the subset of this name: all of them must be there.
    pub fn labels_of(&self, subset: &str) -> Option<&BTreeMap<String, String>> {
        self.subset(subset).map(|subset| &subset.part.labels)
    }

    fn subset(&self, name: &str) -> Option<&Placed<Subset>> {
        self.subsets.iter().find(|subset| subset.part.name.value == name)
    }

    /// The names of all subsets.
    pub fn subset_names(&self) -> impl Iterator<Item = &str> {
        self.subsets.iter().map(|subset| subset.part.name.value.as_str())
    }

    /// How to call a cluster of the service: the whole of it, or the subset that the key names. `around` is what is said besides.
    pub fn traffic_policy(&self, key: &ClusterKey, around: Around<'_>) -> traffic::TrafficPolicy {
        traffic::TrafficPolicy {
            own_balancer: self.meta.extensions.load_balancer.clone(),
            subset: self.meta.extensions.endpoint_subset,
            health_check: self.meta.extensions.health_check.clone(),
            ..self.settings(key, self.subset_of(key)).traffic_policy(around)
        }
    }
}

/// What is said of calls besides a rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// Of near and far endpoints.
    pub locality: locality::Defaults<'a>,
    /// The blocks of a traffic policy that the mesh has where a rule has none of its own.
    pub baseline: Option<&'a DefaultTrafficPolicy>,
}

/// How to call a cluster that no rule is about.
pub fn without_rule(around: Around<'_>) -> traffic::TrafficPolicy {
    Settings::default().traffic_policy(around)
}

impl MergedRule {
    fn subset_of(&self, key: &ClusterKey) -> Option<&Placed<Subset>> {
        Some(&*key.subset).filter(|name| !name.is_empty()).and_then(|name| self.subset(name))
    }

    /// What is written for a cluster; without `subset`, for all of the service.
    fn settings<'r>(&'r self, key: &ClusterKey, subset: Option<&'r Placed<Subset>>) -> Settings<'r> {
        let of_rule = self.policy.as_ref().map(|policy| Settings::default().overridden_by(&policy.part, key.port));
        let of_rule = of_rule.unwrap_or_default();
        match subset.and_then(|subset| subset.part.traffic_policy.as_ref()) {
            Some(policy) => of_rule.overridden_by(policy, key.port),
            None => of_rule,
        }
    }

    /// Where the subset of a cluster and what counts for it is written: `subset`, and fields of a traffic policy.
    fn places(&self, key: &ClusterKey) -> Vec<(&'static str, Origin)> {
        let subset = self.subset_of(key);
        let (of_rule, settings) = (self.settings(key, None), self.settings(key, subset));
        // What is not what the rule says is what its subset says.
        let at = |span: Option<Span>, is_of_rule: bool| {
            let origin = match is_of_rule {
                true => self.policy.as_ref().map(|policy| &policy.origin),
                false => subset.map(|subset| &subset.origin),
            };
            Some(origin?.at(span?))
        };
        fn same<T>(one: Option<&T>, other: Option<&T>) -> bool {
            one.zip(other).is_some_and(|(one, other)| std::ptr::eq(one, other))
        }
        let pool = settings.connection_pool;
        let of_pool = |is_said: fn(&ConnectionPool) -> bool| {
            let pool = pool.filter(|pool| is_said(pool));
            at(pool.map(|pool| pool.span), same(pool, of_rule.connection_pool))
        };
        let places = [
            ("subset", at(subset.map(|subset| subset.part.name.span), false)),
            (
                "loadBalancer",
                at(settings.load_balancer.map(|it| it.span), same(settings.load_balancer, of_rule.load_balancer)),
            ),
            ("connectionPool", of_pool(|_| true)),
            ("connectTimeout", of_pool(limits_connecting)),
            ("h2UpgradePolicy", of_pool(upgrades)),
            (
                "outlierDetection",
                at(
                    settings.outlier_detection.map(|it| it.span),
                    same(settings.outlier_detection, of_rule.outlier_detection),
                ),
            ),
            ("tls", at(settings.tls.map(|it| it.span), same(settings.tls, of_rule.tls))),
            ("tunnel", at(settings.tunnel.map(|it| it.span), same(settings.tunnel, of_rule.tunnel))),
            (
                "retryBudget",
                at(settings.retry_budget.map(|it| it.span), same(settings.retry_budget, of_rule.retry_budget)),
            ),
        ];
        places.into_iter().filter_map(|(name, origin)| Some((name, origin?))).collect()
    }
}

/// Where what counts for a cluster is written: by the rule on it, or by the mesh where that says nothing (the same fields, those
/// of the mesh by their names there).
pub fn places(rule: Option<&MergedRule>, key: &ClusterKey, mesh: &MeshSettings) -> Vec<(&'static str, Origin)> {
    let mut places = rule.map(|rule| rule.places(key)).unwrap_or_default();
    let Some(object) = &mesh.object else { return places };
    let mut add = |field: &'static str, span: Option<Span>| {
        if !places.iter().any(|(other, _)| *other == field) {
            places.extend(span.map(|span| (field, object.meta.origin.at(span))));
        }
    };
    let spec = &object.spec;
    let is_ruled = rule.is_some_and(|rule| rule.settings(key, rule.subset_of(key)).connection_pool.is_some());
    let baseline = spec.default_traffic_policy.as_ref();
    if let Some(pool) = baseline.and_then(|baseline| baseline.connection_pool.as_ref()).filter(|_| !is_ruled) {
        add("connectionPool", Some(pool.span));
        add("connectTimeout", limits_connecting(pool).then_some(pool.span));
        add("h2UpgradePolicy", upgrades(pool).then_some(pool.span));
    }
    let detection = baseline.and_then(|baseline| baseline.outlier_detection.as_ref());
    add("outlierDetection", detection.map(|it| it.span));
    add("connectTimeout", spec.connect_timeout.as_ref().map(|it| it.span));
    add("h2UpgradePolicy", spec.h2_upgrade_policy.as_ref().map(|it| it.span));
    add("tls", spec.enable_auto_mtls.as_ref().filter(|it| !***it).map(|it| it.span));
    places
}

/// Whether it says how long establishing a connection may take.
fn limits_connecting(pool: &ConnectionPool) -> bool {
    pool.tcp.as_ref().is_some_and(|tcp| tcp.connect_timeout.is_some())
}

/// Whether it says if HTTP/1.1 becomes HTTP/2.
fn upgrades(pool: &ConnectionPool) -> bool {
    pool.http.as_ref().is_some_and(|http| http.h2_upgrade_policy != H2UpgradePolicy::Default)
}

impl<'a> Settings<'a> {
    /// What they say, with the mesh's own blocks where they have none.
    fn traffic_policy(self, around: Around<'a>) -> traffic::TrafficPolicy {
        let baseline = around.baseline;
        let pool = self.connection_pool.or_else(|| baseline?.connection_pool.as_ref());
        let detection = self.outlier_detection.or_else(|| baseline?.outlier_detection.as_ref());
        let balancer = self.load_balancer;
        traffic::TrafficPolicy {
            balancer: balancer.map(self::balancer).unwrap_or_default(),
            hashed_by: balancer.and_then(|balancer| hashed_by(balancer.consistent_hash.as_ref()?)),
            warmup: balancer.and_then(warmup),
            locality: LocalitySetting::of(balancer, around.locality, detection.is_some()),
            connection_pool: pool.map(connection_pool).unwrap_or_default(),
            outlier_detection: detection.map(outlier_detection),
            tls: self.tls.map(Tls::from).unwrap_or_default(),
            retry_budget: self.retry_budget.map(retry_budget),
            tunnel: self.tunnel.map(traffic::Tunnel::from),
            ..traffic::TrafficPolicy::default()
        }
    }

    /// These settings, with those of a policy in their place; a port's own settings inherit nothing but `tls`
    /// (Istio: mergeTrafficPolicy). Where Istio drops it, its automatic mTLS protects the call; here, nothing would.
    fn overridden_by(self, policy: &'a TrafficPolicy, port: u16) -> Settings<'a> {
        let retry_budget = policy.retry_budget.as_ref().or(self.retry_budget);
        let tunnel = policy.tunnel.as_ref().or(self.tunnel);
        let of_port = policy.port_level_settings.iter().find(|settings| settings.port.number.0 == port);
        match of_port {
            Some(settings) => Settings {
                load_balancer: settings.load_balancer.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                outlier_detection: settings.outlier_detection.as_ref(),
                tls: settings.tls.as_ref().or(policy.tls.as_ref()).or(self.tls),
                retry_budget,
                tunnel,
            },
            None => Settings {
                load_balancer: policy.load_balancer.as_ref().or(self.load_balancer),
                connection_pool: policy.connection_pool.as_ref().or(self.connection_pool),
                outlier_detection: policy.outlier_detection.as_ref().or(self.outlier_detection),
                tls: policy.tls.as_ref().or(self.tls),
                retry_budget,
                tunnel,
            },
        }
    }
}

fn balancer(written: &LoadBalancer) -> Balancer {
    if let Some(hash) = &written.consistent_hash {
        let positive = |size: Option<u64>| size.filter(|size| *size > 0);
        let table = hash.maglev.as_ref().map(|maglev| positive(maglev.table_size).unwrap_or(65_537));
        let ring = hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |ring| ring.minimum_ring_size);
        return table.map_or(Balancer::RingHash(positive(ring).unwrap_or(1024)), Balancer::Maglev);
    }
    match written.simple.unwrap_or(SimpleLb::Unspecified) {
        SimpleLb::Unspecified => Balancer::Unspecified,
        SimpleLb::LeastConn | SimpleLb::LeastRequest => Balancer::LeastRequest,
        SimpleLb::RoundRobin => Balancer::RoundRobin,
        SimpleLb::Random => Balancer::Random,
        SimpleLb::Passthrough => Balancer::Passthrough,
    }
}

fn hashed_by(written: &ConsistentHash) -> Option<HashedBy> {
    if let Some(name) = &written.http_header_name {
        return Some(HashedBy::Header(name.clone()));
    }
    if let Some(cookie) = &written.http_cookie {
        let attributes = cookie.attributes.iter().map(|attribute| (attribute.name.clone(), attribute.value.clone()));
        let (name, path) = (cookie.name.clone(), cookie.path.clone());
        return Some(HashedBy::Cookie { name, path, ttl: cookie.ttl, attributes: attributes.collect() });
    }
    if written.use_source_ip == Some(true) {
        return Some(HashedBy::SourceAddress);
    }
    written.http_query_parameter_name.clone().map(HashedBy::Query)
}

/// The older form counts where the newer is not written (Istio: cluster_traffic_policy.go).
fn warmup(written: &LoadBalancer) -> Option<Warmup> {
    let warmup = written.warmup.as_ref();
    let duration = warmup.map_or(written.warmup_duration_secs, |warmup| warmup.duration)?;
    (!duration.is_zero()).then(|| Warmup {
        duration,
        minimum_percent: warmup.and_then(|warmup| warmup.minimum_percent).unwrap_or(10.0),
        aggression: warmup.and_then(|warmup| warmup.aggression).unwrap_or(1.0),
    })
}

fn connection_pool(written: &ConnectionPool) -> traffic::ConnectionPool {
    let tcp = written.tcp.as_ref();
    let http = written.http.as_ref();
    traffic::ConnectionPool {
        connect_timeout: tcp.and_then(|tcp| tcp.connect_timeout),
        // Istio takes that of TCP where HTTP has none of its own (cluster_traffic_policy.go).
        idle_timeout: http.and_then(|http| http.idle_timeout).or(tcp.and_then(|tcp| tcp.idle_timeout)),
        tcp_idle_timeout: tcp.and_then(|tcp| tcp.idle_timeout),
        max_connection_duration: tcp.and_then(|tcp| tcp.max_connection_duration),
        tcp_keepalive: tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).map(traffic::TcpKeepalive::from),
        max_requests_per_connection: http.and_then(|http| http.max_requests_per_connection).map(bound),
        max_connections: tcp.and_then(|tcp| tcp.max_connections).map(bound).unwrap_or_default(),
        max_pending_requests: http.and_then(|http| http.http1_max_pending_requests).map(bound).unwrap_or_default(),
        max_requests: http.and_then(|http| http.http2_max_requests).map(bound).unwrap_or_default(),
        max_retries: http.and_then(|http| http.max_retries).map(bound).unwrap_or_default(),
        upgrades_to_http2: http.and_then(|http| match http.h2_upgrade_policy {
            H2UpgradePolicy::Default => None,
            H2UpgradePolicy::DoNotUpgrade => Some(false),
            H2UpgradePolicy::Upgrade => Some(true),
        }),
        as_caller: http.is_some_and(|http| http.use_client_protocol == Some(true)),
        max_concurrent_streams: http.and_then(|http| http.max_concurrent_streams).map(bound),
        http2_keepalive: http
            .and_then(|http| http.http2_keep_alive.as_ref())
            .and_then(|pings| Some((pings.interval?, pings.timeout?))),
    }
}

impl From<&TcpKeepalive> for traffic::TcpKeepalive {
    fn from(written: &TcpKeepalive) -> Self {
        let TcpKeepalive { probes, time, interval, .. } = *written;
        traffic::TcpKeepalive { probes, time, interval }
    }
}

impl From<&Tunnel> for traffic::Tunnel {
    fn from(written: &Tunnel) -> Self {
        traffic::Tunnel {
            authority: join(&written.target_host, written.target_port.0),
            by_post: written.protocol == TunnelProtocol::Post,
        }
    }
}

/// 0 and less mean no limit.
fn bound(written: i32) -> Bound {
    u32::try_from(written).ok().and_then(NonZeroU32::new).map_or(Bound::Unlimited, Bound::AtMost)
}

/// Envoy's defaults, which Istio takes (cluster_traffic_policy.go).
fn retry_budget(written: &RetryBudget) -> traffic::RetryBudget {
    let (percent, at_least) = (written.percent.unwrap_or(20.0), written.min_retry_concurrency.unwrap_or(3));
    let interval = written.budget_interval.filter(|interval| !interval.is_zero());
    traffic::RetryBudget { percent, at_least, interval }
}

fn outlier_detection(written: &OutlierDetection) -> traffic::OutlierDetection {
    traffic::OutlierDetection {
        consecutive_5xx: NonZeroU32::new(written.consecutive_5xx_errors.unwrap_or(5)),
        consecutive_gateway_errors: written.consecutive_gateway_errors.and_then(NonZeroU32::new),
        local_origin: match written.split_external_local_origin_errors.unwrap_or(false) {
            true => LocalOrigin::Failures(written.consecutive_local_origin_failures),
            false => LocalOrigin::Answers,
        },
        interval: written.interval,
        base_ejection_time: written.base_ejection_time,
        max_ejection_percent: written.max_ejection_percent,
        min_health_percent: written.min_health_percent.unwrap_or(0),
    }
}

impl From<&ClientTls> for Tls {
    fn from(written: &ClientTls) -> Tls {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let is_mutual = written.mode() == TlsMode::Mutual;
        match written.mode() {
            TlsMode::Disable => Tls::Plaintext,
            TlsMode::IstioMutual => Tls::Mesh { sni: text(&written.sni), peers: written.subject_alt_names.clone() },
            TlsMode::Simple | TlsMode::Mutual if let Some(name) = text(&written.credential_name) => {
                Tls::BySecret(Box::new(SecretTls {
                    name,
                    is_mutual,
                    verifies: written.insecure_skip_verify != Some(true),
                    sni: text(&written.sni),
                    names: written.subject_alt_names.clone(),
                }))
            }
            TlsMode::Simple | TlsMode::Mutual => Tls::Foreign(Box::new(ForeignTls {
                sni: text(&written.sni),
                roots: match text(&written.ca_certificates) {
                    _ if written.insecure_skip_verify == Some(true) => Roots::Nobody,
                    // Istio's word for it.
                    Some(file) if file != "system" => Roots::File(file),
                    _ => Roots::System,
                },
                revoked: text(&written.ca_crl),
                identity: text(&written.client_certificate).zip(text(&written.private_key)).filter(|_| is_mutual),
                names: written.subject_alt_names.clone(),
            })),
        }
    }
}

fn single(object: &Object<DestinationRule>) -> MergedRule {
    let Object { meta, spec } = object;
    let export_to = spec.export_to.iter().map(|text| text.value.as_str());
    MergedRule {
        host: in_namespace(&spec.host, &meta.namespace),
        meta: meta.clone(),
        visibility: Visibility::new(export_to, &meta.namespace),
        selector: spec.workload_selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default(),
        policy: spec.traffic_policy.clone().map(|part| Placed { part, origin: meta.origin.clone() }),
        subsets: spec.subsets.iter().map(|part| Placed { part: part.clone(), origin: meta.origin.clone() }).collect(),
        refused: None,
        is_for_any: false,
    }
}

/// What is known of a wrong object: its host, or those that it may be for.
fn refused_rules(object: &Refused) -> Vec<MergedRule> {
    let namespace = &object.meta.namespace;
    let (hosts, visibility, selector) = match &object.governs {
        _ if object.meta.kind != ObjectKind::DestinationRule => return Vec::new(),
        Governs::Hosts { hosts, export_to, selector } => {
            let hosts: Vec<String> = hosts.iter().map(|host| in_namespace(host, namespace)).collect();
            (hosts, Visibility::new(export_to.iter().map(String::as_str), namespace), selector.clone())
        }
        Governs::AnyHost => (vec!["*".to_owned()], Visibility::All, BTreeMap::new()),
        _ => return Vec::new(),
    };
    let rules = hosts.into_iter().map(|host| MergedRule {
        host,
        meta: object.meta.clone(),
        visibility: visibility.clone(),
        selector: selector.clone(),
        policy: None,
        subsets: Vec::new(),
        refused: Some(object.answer()),
        is_for_any: object.governs == Governs::AnyHost,
    });
    rules.collect()
}

fn merge_into(earlier: &mut MergedRule, later: MergedRule, found: &mut Vec<Diagnostic>) {
    let mut report = |message: String| {
        let origin = &later.meta.origin;
        let finding = Diagnostic::at(origin, Severity::Warning, Code::Conflict, message);
        found.push(finding.object(later.meta.id()));
    };
    let winner = format!("{} ({})", earlier.meta.id(), earlier.meta.origin);
    for key in earlier.meta.extensions.merge(later.meta.extensions.clone()) {
        report(format!("host {} has its annotation {key} from {winner} already", later.host));
    }
    match (&earlier.policy, &later.policy) {
        (Some(_), Some(_)) => {
            report(format!("host {} has its traffic policy from {winner} already", later.host));
        }
        (None, Some(policy)) => earlier.policy = Some(policy.clone()),
        _ => {}
    }
    for subset in later.subsets {
        let name = &subset.part.name;
        if earlier.has_subset(name) {
            report(format!("host {} has its subset `{}` from {winner} already", later.host, name.value));
        } else {
            earlier.subsets.push(subset);
        }
    }
}
