//! What a gateway is told: which of its names there are, and what each of them is made of. An Envoy and a program of this project are
//! told the same, but for clusters, of which each has its own form, for what requests pass, of which an Envoy does less, and for how they
//! are traced and counted, of which it is told nothing. A program calls whom it asks about requests as every client of the mesh does, by
//! listeners and routes of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::snapshot::{Compiled, Peers, Snapshot};
use crate::analysis;
use crate::catalog::{Client, ClientClass, Encoded, Kind};
use crate::policy::Policy;
use crate::policy::gateways::{Address, Listening};
use crate::policy::route::Written;
use crate::policy::security::Served;
use crate::policy::telemetry::Side;
use crate::policy::traffic::ServerTls;
use crate::registry::protocol::Protocol;
use crate::registry::service::Target;
use crate::render::envoy::{self, Edge, EdgeRoutes, Inbound};
use crate::render::{self, BLACK_HOLE};

/// Who a gateway is, as far as Gateways go: its namespace, its labels, and its ports by name.
pub(super) type Who = (Arc<str>, BTreeMap<String, String>, Vec<(String, u16)>);

/// What a gateway is told, but for what depends on who has proven what.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By the names of their listeners.
    listening: BTreeMap<String, (Address, Listening)>,
    routes: BTreeMap<String, Encoded>,
    clusters: BTreeSet<String>,
    secrets: BTreeSet<String>,
    /// Tables of routes whose requests may be gRPC-Web.
    grpc_web: BTreeSet<String>,
}

impl Told {
    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.listening.len() + self.routes.len() + self.clusters.len() + self.secrets.len()
    }

    pub(super) fn of(compiled: &Compiled, (namespace, labels, ports): &Who) -> Told {
        let policy = &compiled.policy;
        let view = policy.gateway_view(namespace, labels);
        let (listening, _) = policy.gateways.of(namespace, labels, ports, &policy.services);
        let secrets = envoy::edge_secrets(namespace, listening.values());
        let mut told = Told { secrets, ..Told::default() };
        for (address, at) in listening {
            let EdgeRoutes { tables, clusters, grpc_web } =
                envoy::edge_routes(&compiled.judge, policy, &view, address, &at);
            told.clusters.extend(clusters);
            told.grpc_web.extend(grpc_web);
            for (name, table) in tables {
                compiled.note(table.refused);
                told.routes.insert(name, table.encoded);
            }
            told.listening.insert(listener_name(address), (address, at));
        }
        told.clusters.insert(BLACK_HOLE.to_owned());
        told
    }
}

impl Snapshot {
    fn gateway(&self, client: &Client) -> Arc<Told> {
        let who = (client.namespace.clone(), self.labels(client), client.ports.clone());
        self.compiled.gateway(&who, client.class)
    }

    /// Of each route of a host in a table of a gateway's routes, in its order, the rule that it is made of.
    pub(crate) fn gateway_rules(&self, client: &Client, table: &str, host: &str) -> Vec<Option<Written>> {
        let policy = &self.compiled.policy;
        let view = policy.gateway_view(&client.namespace, &client.labels);
        let told = self.gateway(client);
        let mut all = told.listening.values();
        let found = all.find_map(|(address, at)| envoy::edge_rules(policy, &view, *address, at, (table, host)));
        found.unwrap_or_default()
    }

    /// The listener of a gateway that takes what clients send to this port: one that a Gateway calls so, or a Service that leads to the
    /// gateway, or else the one that is bound there. With the port that it is bound to.
    pub(crate) fn gateway_listener(&self, client: &Client, port: u16) -> Option<(String, u16)> {
        let (told, labels) = (self.gateway(client), self.labels(client));
        let find = |is_it: &dyn Fn(Address, &Listening) -> bool| {
            let found = told.listening.iter().find(|(_, (address, at))| is_it(*address, at));
            found.map(|(name, (address, _))| (name.clone(), address.1))
        };
        let services = self.compiled.policy.services.iter().map(|(_, service)| service);
        let mut leading = services.filter(|service| service.namespace == client.namespace && service.selects(&labels));
        let target = leading.find_map(|service| service.port(port)).map(|port| &port.target);
        find(&|_, at| at.servers.iter().any(|served| served.port == port))
            .or_else(|| find(&|(_, bound), _| target == Some(&Target::Number(bound))))
            .or_else(|| find(&|(_, bound), _| bound == port))
    }

    pub(super) fn gateway_names(&self, client: &Client, kind: Kind) -> Vec<Arc<str>> {
        let told = self.gateway(client);
        let others = match kind {
            Kind::Cluster | Kind::Endpoints => self.asked_by_edge(client, &told),
            Kind::Listener | Kind::Route | Kind::Secret => BTreeSet::new(),
        };
        let names: BTreeSet<&String> = match kind {
            Kind::Listener => told.listening.keys().collect(),
            Kind::Route => told.routes.keys().collect(),
            Kind::Cluster | Kind::Endpoints => told.clusters.iter().chain(&others).collect(),
            Kind::Secret => told.secrets.iter().collect(),
        };
        // A name may stand in a route and have nothing behind it.
        let names = names.into_iter().filter(|name| self.gateway_resource(client, kind, name).is_some());
        names.map(|name| name.as_str().into()).collect()
    }

    pub(super) fn gateway_resource(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        let policy = &self.compiled.policy;
        let view = policy.gateway_view(&client.namespace, &client.labels);
        match kind {
            Kind::Listener => {
                let told = self.gateway(client);
                let Some((address, at)) = told.listening.get(name) else {
                    // One of its own that is gone is absent: whatever else it were told of that name, it would not close it.
                    let is_own = is_bound(name) || name.starts_with(render::listener::SERVER_PREFIX);
                    return if is_own { None } else { self.as_client(client, kind, name) };
                };
                let labels = self.labels(client);
                let guarded = self.guards_of_edge(client, &labels, address.1);
                let filters =
                    self.filters_of(client, Served { namespace: &client.namespace, labels: &labels, port: address.1 });
                if client.class == ClientClass::Envoy {
                    let ids = guarded.limits.iter().map(|limit| Arc::clone(&limit.id));
                    let ids = ids.chain(filters.iter().map(|filter| Arc::clone(&filter.id))).collect();
                    self.compiled.note(analysis::lost_at_edge(policy, &ids));
                }
                let telemetry = match client.class {
                    ClientClass::Library => {
                        let applied = policy.telemetries.of(&client.namespace, &labels, &policy.services);
                        render::telemetry(policy, applied, Side::Gateway)
                    }
                    ClientClass::Grpc | ClientClass::Envoy => render::listener::Telemetry::default(),
                };
                let edge = Edge {
                    namespace: &client.namespace,
                    may_have_secrets: self.may_have_secrets(client),
                    has_certificate: self.may_have_certificate(client),
                    class: client.class,
                    guarded: &guarded,
                    topology: client.topology.or(policy.mesh.topology()),
                    filters: &filters,
                    telemetry,
                    keys: &self.keys,
                    grpc_web: &told.grpc_web,
                };
                Some(envoy::edge_listener(policy, &view, name, *address, at, &edge, policy.paths))
            }
            Kind::Route => {
                let told = self.gateway(client);
                told.routes.get(name).cloned().or_else(|| self.as_client(client, kind, name))
            }
            Kind::Cluster => {
                let identities = self.identities(&view, name).unwrap_or_default();
                let peers = Peers { may_have_certificate: self.may_have_certificate(client), identities };
                self.compiled.resource(client.class, view, kind, name, peers)
            }
            Kind::Endpoints => self.endpoints(&view, client, name),
            // Of its own namespace, and what its own Gateways name, or a rule that is for it: nobody else's.
            Kind::Secret => {
                let is_its_own = self.may_have_secrets(client) && self.gateway(client).secrets.contains(name);
                if !is_its_own {
                    return self.named_secret(client, name);
                }
                Some(render::encode(name, &render::secrets::secret(policy, name)?))
            }
        }
    }

    /// What a gateway of the library calls others by, of itself: those who decide about requests, or count them.
    fn as_client(&self, client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        let view = self.compiled.policy.gateway_view(&client.namespace, &client.labels);
        let is_library = client.class == ClientClass::Library;
        is_library.then(|| self.compiled.resource(client.class, view, kind, name, Peers::default())).flatten()
    }

    /// Every cluster that there is for a gateway, where it asks or tells somebody besides those that its routes lead to: who may
    /// do what, who counts requests, where they are logged. An Envoy refuses a listener that names a cluster which is not there.
    fn asked_by_edge(&self, client: &Client, told: &Told) -> BTreeSet<String> {
        let (policy, labels) = (&self.compiled.policy, self.labels(client));
        let asks = told.listening.values().any(|((_, port), _)| {
            let guarded = self.guards_of_edge(client, &labels, *port);
            !guarded.access.asks.is_empty() || !guarded.limits.is_empty() || !guarded.logs.is_empty()
        });
        let view = policy.gateway_view(&client.namespace, &client.labels);
        if asks { render::names(policy, &view, Kind::Cluster) } else { BTreeSet::new() }
    }

    /// Whether a gateway is told the Secrets of its namespace.
    fn may_have_secrets(&self, client: &Client) -> bool {
        self.has_proven_namespace(&client.namespace, client.identity.as_ref())
    }

    /// What guards a port of a gateway. Who connects is nobody of the mesh, so that it is not held to mutual TLS.
    fn guards_of_edge<'a>(&'a self, client: &Client, labels: &BTreeMap<String, String>, port: u16) -> Inbound<'a> {
        let served = Served { namespace: &client.namespace, labels, port };
        let refusal = self.not_guarded(client, served, true);
        Inbound { refusal, tls: ServerTls::Plaintext, ..self.inbound(client, labels, port, Protocol::Http) }
    }

    /// Where a gateway is an endpoint of the services that select it: at those of their target ports that it listens at.
    pub(super) fn gateway_addresses(&self, client: &Client) -> BTreeSet<SocketAddr> {
        let Policy { services, .. } = &self.compiled.policy;
        let own = reached_at(client);
        let served =
            services.served_ports(&client.namespace, client.group.as_ref(), &client.labels, &client.ports, own);
        let told = self.gateway(client);
        let bound = told.listening.values().map(|(address, _)| *address);
        // Where it is, it says itself: a Gateway, which may be another namespace's, has nobody call another address.
        let is_own = |ip: IpAddr| ip.is_unspecified() || ip == own;
        let bound = bound.filter(|(ip, port)| is_own(*ip) && served.registered.contains_key(port));
        bound.map(|(_, port)| SocketAddr::new(own, port)).collect()
    }

    /// A cluster that leads nowhere, in the place of one that a gateway refused: as for sidecars.
    pub(super) fn gateway_instead(&self, client: &Client, name: &str) -> Option<Encoded> {
        let view = self.compiled.policy.gateway_view(&client.namespace, &client.labels);
        self.asks_for_tls(&view, name).then(|| render::leads_nowhere(name))
    }
}

/// What a listener of a gateway is called: by where it is bound.
fn listener_name((ip, port): Address) -> String {
    format!("{ip}_{port}")
}

/// Whether this is the name of such a listener, which is none of a host with a port.
fn is_bound(name: &str) -> bool {
    let parts = name.rsplit_once('_');
    parts.is_some_and(|(ip, port)| ip.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok())
}

/// Where others reach a gateway: at the address that its id names (Istio: `router~IP~...`), or where its stream comes from, if that
/// one is what a program calls its own that knows no other.
fn reached_at(client: &Client) -> IpAddr {
    let named = client.node_id.split('~').nth(1).and_then(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    let named = named.filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    named.or_else(|| client.instance_ips.first().copied()).unwrap_or(client.peer_ip)
}
