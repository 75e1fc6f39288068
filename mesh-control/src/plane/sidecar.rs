//! What an Envoy beside a workload is told: which of its names there are, and what each of them is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::snapshot::{Peers, Snapshot};
use crate::catalog::{Catalog, Client, ClientClass, Encoded, Kind, Sidecar, WORKLOAD_IP};
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::security::Served;
use crate::policy::telemetry::Side;
use crate::policy::traffic::{ServerTls, Tls};
use crate::policy::view::View;
use crate::registry::protocol::Protocol;
use crate::registry::services::ServedPorts;
use crate::render::envoy::{self, INBOUND_PASSTHROUGH, Inbound, Outbound, VIRTUAL_INBOUND, VIRTUAL_OUTBOUND};
use crate::render::{self, BLACK_HOLE, Degraded, PASSTHROUGH};

/// A listener of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerOf {
    /// Of calls to this port, or to any.
    Outbound(Option<u16>),
    /// Of calls to this port of the workload, or to any.
    Inbound(Option<u16>),
}

impl Snapshot {
    pub(super) fn sidecar_resource(
        &self,
        client: &Client,
        sidecar: &Sidecar,
        kind: Kind,
        name: &str,
    ) -> Option<Encoded> {
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        match kind {
            Kind::Listener => self.sidecar_listener(client, sidecar, &view, name),
            Kind::Route => self.compiled.resource(ClientClass::Envoy, view, kind, name, Peers::default()),
            Kind::Cluster if name == INBOUND_PASSTHROUGH => {
                sidecar.redirects.then(|| render::encode(name, &envoy::inbound_cluster(sidecar, None)))
            }
            Kind::Cluster if let Some(port) = envoy::inbound_port(name) => {
                let protocol = *self.inbound_ports(client, sidecar).get(&port)?;
                Some(render::encode(name, &envoy::inbound_cluster(sidecar, Some((port, protocol)))))
            }
            Kind::Cluster => {
                let identities = self.identities(&view, name).unwrap_or_default();
                let peers = Peers { may_have_certificate: self.may_have_certificate(client), identities };
                self.compiled.resource(ClientClass::Envoy, view, kind, name, peers)
            }
            Kind::Endpoints => self.endpoints(&view, client, name),
            Kind::Secret => None,
        }
    }

    pub(super) fn sidecar_names(&self, client: &Client, sidecar: &Sidecar, kind: Kind) -> Vec<Arc<str>> {
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        let outbound = self.compiled.outbound(&view);
        let inbound = self.inbound_ports(client, sidecar);
        let names: BTreeSet<String> = match kind {
            Kind::Route => outbound.with_routes().map(|port| port.to_string()).collect(),
            Kind::Listener => {
                self.note_unbound(client, sidecar, &view, &outbound);
                self.listeners(client, sidecar, &outbound, &inbound).into_keys().collect()
            }
            Kind::Cluster => {
                let special = [BLACK_HOLE, PASSTHROUGH].map(str::to_owned);
                let passthrough = sidecar.redirects.then(|| INBOUND_PASSTHROUGH.to_owned());
                let own = inbound.keys().map(|port| envoy::inbound_cluster_name(*port));
                outbound.clusters.iter().cloned().chain(special).chain(passthrough).chain(own).collect()
            }
            Kind::Endpoints => outbound.clusters.clone(),
            Kind::Secret => BTreeSet::new(),
        };
        // A name may stand in a route and have nothing behind it.
        let names = names.into_iter().filter(|name| self.resource(client, kind, name).is_some());
        names.map(Arc::from).collect()
    }

    /// A cluster that leads nowhere, in the place of one that is called by TLS and that the sidecar refused: its files may not be
    /// there, and the cluster that it has is perhaps called in plaintext.
    pub(super) fn sidecar_instead(&self, client: &Client, name: &str) -> Option<Encoded> {
        let view = self.compiled.policy.view(&client.namespace, &client.labels);
        self.asks_for_tls(&view, name).then(|| render::leads_nowhere(name))
    }

    /// Whether a cluster is called by TLS because a rule says so.
    pub(super) fn asks_for_tls(&self, view: &View, name: &str) -> bool {
        let seen = ClusterKey::parse(name).and_then(|key| self.compiled.policy.cluster(key, view));
        seen.is_some_and(|seen| !matches!(seen.traffic.tls, Tls::Plaintext | Tls::Automatic))
    }

    /// Where a sidecar serves for its workload, as an endpoint that comes and goes with it.
    pub(super) fn sidecar_addresses(&self, client: &Client, sidecar: &Sidecar) -> Result<BTreeSet<SocketAddr>, String> {
        let ports = self.served_ports(client, sidecar).registered;
        if sidecar.is_where_its_workload_is()
            && let Some(port) = ports.keys().next()
        {
            return Err(format!(
                "its sidecar cannot listen at {}, where the workload itself listens at port {port}: its node id has to name \
                 another address (`mesh-control bootstrap --envoy sidecar --ip`)",
                sidecar.ip
            ));
        }
        Ok(ports.into_keys().map(|port| SocketAddr::new(sidecar.ip, port)).collect())
    }

    fn served_ports(&self, client: &Client, sidecar: &Sidecar) -> ServedPorts {
        let Policy { services, .. } = &self.compiled.policy;
        services.served_ports(&client.namespace, client.group.as_ref(), &client.labels, &client.ports, sidecar.ip)
    }

    /// The ports at which the sidecar stands for its workload.
    fn inbound_ports(&self, client: &Client, sidecar: &Sidecar) -> BTreeMap<u16, Protocol> {
        if sidecar.is_where_its_workload_is() { BTreeMap::new() } else { self.served_ports(client, sidecar).all() }
    }

    /// All listeners, by name.
    fn listeners(
        &self,
        client: &Client,
        sidecar: &Sidecar,
        outbound: &Outbound,
        inbound: &BTreeMap<u16, Protocol>,
    ) -> BTreeMap<String, ListenerOf> {
        if sidecar.redirects {
            let ports = outbound.ports().map(|port| (format!("0.0.0.0_{port}"), ListenerOf::Outbound(Some(port))));
            let all = [(VIRTUAL_OUTBOUND, ListenerOf::Outbound(None)), (VIRTUAL_INBOUND, ListenerOf::Inbound(None))];
            return ports.chain(all.map(|(name, of)| (name.to_owned(), of))).collect();
        }
        let name = |ip: IpAddr, port: u16| format!("{ip}_{port}");
        let may_bind = |port: &u16| sidecar.is_privileged || *port >= 1024;
        let own = self.served_ports(client, sidecar).all();
        let ports = outbound.ports().filter(|port| may_bind(port) && is_free(sidecar, &own, *port));
        let outbound = ports.map(|port| (name(sidecar.outbound_ip, port), ListenerOf::Outbound(Some(port))));
        let inbound = inbound.keys().filter(|port| may_bind(port));
        let inbound = inbound.map(|port| (name(sidecar.ip, *port), ListenerOf::Inbound(Some(*port))));
        outbound.chain(inbound).collect()
    }

    /// Which services cannot be called through a sidecar that binds addresses itself, as findings.
    fn note_unbound(&self, client: &Client, sidecar: &Sidecar, view: &View, outbound: &Outbound) {
        if sidecar.redirects {
            return;
        }
        let own = self.served_ports(client, sidecar).all();
        let lost = outbound.ports().filter_map(|port| {
            let why = if !sidecar.is_privileged && port < 1024 {
                "it may not bind ports below 1024 (UNPRIVILEGED_POD)"
            } else if !is_free(sidecar, &own, port) {
                "the workload beside it listens there itself; give it another address to be called at (MESH_OUTBOUND_IP)"
            } else {
                return None;
            };
            Some((port, format!("calls to port {port} have no listener at {}: {why}", sidecar.outbound_ip)))
        });
        let policy = &self.compiled.policy;
        for (port, what) in lost {
            let services = outbound.at(policy, view, port);
            self.compiled.note(services.map(|service| render::lost_at_sidecar(service, what.clone())));
        }
    }

    fn sidecar_listener(&self, client: &Client, sidecar: &Sidecar, view: &View, name: &str) -> Option<Encoded> {
        let policy = &self.compiled.policy;
        let outbound = self.compiled.outbound(view);
        let ports = self.inbound_ports(client, sidecar);
        let of = *self.listeners(client, sidecar, &outbound, &ports).get(name)?;
        let only = match of {
            ListenerOf::Outbound(port) => {
                let rendered = envoy::outbound_listener(policy, view, &outbound, sidecar, name, port)?;
                self.compiled.note(rendered.degraded.iter().map(Degraded::diagnostic));
                return Some(rendered.encoded);
            }
            ListenerOf::Inbound(only) => only,
        };
        self.note_lost(client, sidecar);
        let labels = self.labels(client);
        let written = match only {
            Some(_) => BTreeSet::new(),
            None => policy.security.peer_selections(&client.namespace, &labels).ports,
        };
        let others = written
            .into_iter()
            .filter(|port| !ports.contains_key(port))
            .map(|port| Inbound { is_of_service: false, ..self.inbound(client, &labels, port, Protocol::Tcp) });
        let others: Vec<Inbound<'_>> = others.collect();
        let ports = ports.into_iter().filter(|(port, _)| only.is_none_or(|only| only == *port));
        let ports = ports.map(|(port, protocol)| self.inbound(client, &labels, port, protocol));
        let ports: Vec<Inbound<'_>> = ports.chain(others).collect();
        for port in ports.iter().filter(|port| port.shuts_connections()) {
            let what = "connections are closed where policies guard what is not HTTP";
            self.note_ports(client, sidecar, port.port, what);
        }
        // A port that no service has is guarded by what guards any port, unless a PeerAuthentication names it.
        let any = Inbound { is_of_service: false, ..self.inbound(client, &labels, 0, Protocol::Tcp) };
        let passes = !any.is_shut() && any.tls != ServerTls::Strict;
        Some(envoy::inbound_listener(name, sidecar, &ports, &self.keys, policy.paths, passes))
    }

    pub(super) fn inbound<'a>(
        &'a self,
        client: &Client,
        labels: &BTreeMap<String, String>,
        port: u16,
        protocol: Protocol,
    ) -> Inbound<'a> {
        let policy = &self.compiled.policy;
        let Policy { services, security, telemetries, .. } = policy;
        let served = Served { namespace: &client.namespace, labels, port };
        let applied = telemetries.of(&client.namespace, labels, services);
        let view = policy.view(&client.namespace, &client.labels);
        Inbound {
            port,
            is_of_service: true,
            protocol,
            refusal: self.not_served(client, served),
            access: security.access(served, services, self.compiled.allow_unenforced),
            tokens: security.tokens(served, services),
            tls: self.taken_by(client, served),
            logs: render::envoy_logs(policy, &view, applied, Side::serving(client.is_gateway)),
            limits: self.limits_of(client, served),
        }
    }

    /// What the sidecar cannot do for its workload, as a finding at the service.
    fn note_lost(&self, client: &Client, sidecar: &Sidecar) {
        let unknown = self.served_ports(client, sidecar).unknown;
        self.compiled.note(unknown.into_iter().map(|(service, port)| {
            let what = format!(
                "{} says no number for the target port of port {}, and serves nobody there (POD_PORTS of its node names ports)",
                client.node_id, port.number
            );
            render::lost_at_sidecar(&service, what)
        }));
    }

    fn note_ports(&self, client: &Client, sidecar: &Sidecar, port: u16, what: &str) {
        let Policy { services, .. } = &self.compiled.policy;
        let labels = self.labels(client);
        let own = services.iter().map(|(_, service)| service).filter(|service| service.namespace == client.namespace);
        let selecting = own.filter(|service| service.selects(&labels));
        let what = format!("at {}:{port} {what}", sidecar.ip);
        self.compiled.note(selecting.map(|service| render::lost_at_sidecar(service, what.clone())));
    }
}

/// Whether a sidecar that binds addresses itself can listen at a port for its workload: neither the workload does, at `own` ports,
/// nor it itself for those who call the workload.
fn is_free(sidecar: &Sidecar, own: &BTreeMap<u16, Protocol>, port: u16) -> bool {
    let is_taken = sidecar.outbound_ip == WORKLOAD_IP || sidecar.outbound_ip == sidecar.ip;
    !(is_taken && own.contains_key(&port))
}
