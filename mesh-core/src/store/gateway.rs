//! What the store has for gateways: which listeners there are, the certificates of their chains, and where their requests go on to.

use std::sync::Arc;
use std::time::SystemTime;

use super::assemble::{Assembly, UserId, UserKind, Walk};
use super::server::{ChainView, Edge};
use super::{Origin, TargetEntry};
use crate::error::Invalid;
use crate::id::ListenerName;
use crate::model::{EdgeTls, FilterChain, Listener, RouteSource, Secret};
use crate::resources::{Change, Known, Resource, ResourceKey, ResourceType};
use crate::state::lock;
use crate::tls::{certificate_end, client_verifier, edge_config};

/// What keeps a secret from a gateway that should have it.
const SHOWN: &str = "if there is one, the control plane tells it to a gateway that has proven of which namespace it is, by a token or a \
                     certificate of the mesh (`mesh-control bootstrap --token`, or --tls-cert), and this one may not have";

impl Assembly {
    /// Tells the gateway which listeners there are.
    pub(super) fn note_listeners(&self, changes: &[Change]) {
        let Some(listeners) = &self.gateway else { return };
        let is_listener = |key: &ResourceKey| key.kind == ResourceType::Listener && !key.is_all();
        listeners.send_if_modified(|listeners| {
            let mut is_news = false;
            for change in changes {
                match change {
                    Change::Put(key, Resource::Listener(listener)) => {
                        let Listener::Server(server) = &**listener else { continue };
                        let before = listeners.insert(ListenerName::from(&*key.name), server.address);
                        is_news |= before != Some(server.address);
                    }
                    Change::Absent(key, _) if is_listener(key) => {
                        is_news |= listeners.remove(&ListenerName::from(&*key.name)).is_some();
                    }
                    _ => {}
                }
            }
            is_news
        });
    }

    /// Forgets routes of gateways that no listener leads to any more.
    pub(super) fn forget_onward(&mut self) {
        let gone: Vec<Arc<str>> = {
            let mut onward = lock(&self.onward);
            // Held by this map and by its user; whoever else wants it is a listener, or one of its requests.
            let is_gone = |entry: &Arc<TargetEntry>| Arc::strong_count(entry) <= 2;
            let gone = onward.iter().filter(|(_, entry)| is_gone(entry)).map(|(place, _)| Arc::clone(place)).collect();
            onward.retain(|_, entry| !is_gone(entry));
            gone
        };
        for place in gone {
            self.remove(&UserId::Onward(place));
        }
    }

    /// How clients shake hands by these rules. Nothing waits for a secret: until it is there, only its own chain lacks it.
    pub(super) fn edge(&mut self, tls: &Arc<EdgeTls>, present: Option<&ChainView>, walk: &mut Walk) -> Arc<Edge> {
        let known: Vec<_> = tls.secrets().map(|name| (name, self.resources.secret(name))).collect();
        walk.needs.extend(tls.secrets().map(|name| ResourceKey::new(ResourceType::Secret, Arc::clone(name))));
        let is_waiting = known.iter().any(|(_, known)| matches!(known, Known::Unknown));
        let content = |(name, known): (&Arc<str>, Known<Arc<Secret>>)| -> Result<Arc<Secret>, Arc<str>> {
            match known {
                Known::Present(secret) => Ok(secret),
                Known::Absent(reason) => Err(format!("{reason}; {SHOWN}").into()),
                Known::Unknown => Err(format!("secret {name:?} is not known yet").into()),
            }
        };
        let secrets: Vec<_> = known.into_iter().map(content).collect();
        let is_same = |edge: &&Arc<Edge>| edge.tls == *tls && edge.secrets == secrets;
        let before = present.and_then(|present| present.edge.as_ref());
        if let Some(edge) = before.filter(is_same) {
            return Arc::clone(edge);
        }
        let secret = |wanted: &str| match tls.secrets().zip(&secrets).find(|(name, _)| ***name == *wanted) {
            Some((_, Ok(secret))) => Ok(Arc::clone(secret)),
            Some((_, Err(reason))) => Err(Invalid::new(&**reason)),
            None => Err(Invalid::new(format!("secret {wanted:?} is not one of its own"))),
        };
        let clients = client_verifier(tls, secret, SystemTime::now());
        let config = clients.clone().and_then(|clients| edge_config(tls, secret, clients)).map(Arc::new);
        let config = config.map_err(|invalid| {
            let reason: Arc<str> = invalid.to_string().into();
            match is_waiting {
                // As at every start.
                true => tracing::info!(%reason, "handshakes of a filter chain fail as yet"),
                false => tracing::warn!(%reason, "handshakes of a filter chain fail"),
            }
            reason
        });
        if config.is_ok() && before.is_some_and(|before| before.config.is_err()) {
            tracing::info!(secrets = ?tls.certificates, "handshakes of a filter chain do not fail any more");
        }
        let clients = clients.map_err(|invalid| invalid.to_string().into());
        // Without a configuration, none is shown.
        let shown = tls.certificates.iter().zip(&secrets).filter(|_| config.is_ok());
        let ends = shown.filter_map(|(name, secret)| Some((Arc::clone(name), certificate_end(secret.as_ref().ok()?)?)));
        let ends = ends.collect();
        Arc::new(Edge { tls: Arc::clone(tls), secrets, config, ends, clients })
    }

    /// Where the requests, or the connections, of a gateway's chain go on to.
    pub(super) fn onward(&mut self, chain: &FilterChain, place: &str) -> Arc<TargetEntry> {
        let routes = match &chain.connections {
            Some(connections) => RouteSource::Inline(Arc::clone(connections)),
            None => chain.http.routes.clone(),
        };
        let place: Arc<str> = match &routes {
            RouteSource::Named(name) => format!("routes {name}").into(),
            RouteSource::Inline(_) => format!("routes of {place}").into(),
        };
        let present = lock(&self.onward).get(&place).cloned();
        if let Some(present) = present.filter(|entry| matches!(&entry.origin, Origin::Routes(own) if *own == routes)) {
            return present;
        }
        let entry = Arc::new(TargetEntry::onward(&place, routes));
        lock(&self.onward).insert(Arc::clone(&place), Arc::clone(&entry));
        self.remove(&UserId::Onward(Arc::clone(&place)));
        self.add(UserId::Onward(place), UserKind::Target(Arc::clone(&entry)));
        entry
    }
}
