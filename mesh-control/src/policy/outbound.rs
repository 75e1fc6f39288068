//! Hosts that nothing describes: whether clients may call them (Istio's `outboundTrafficPolicy`).

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::Policy;
use super::view::View;
use crate::config::diagnostic::Origin;
use crate::registry::host::{candidates, split_port};

/// What becomes of a call to a host that no object describes. No object is stricter than it: it is no firewall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundTrafficPolicy {
    /// It passes: the client looks the name up by itself and connects.
    #[default]
    AllowAny,
    /// It fails.
    RegistryOnly,
}

impl Policy {
    /// What becomes of a call to this target, `host:port`, that is nothing for the client: whether it passes by all that is configured,
    /// or is refused. A name never passes that any object has something to say of which the client sees, whatever its ports are, and
    /// whether or not it is right; nor does one of a service of the cluster, whoever sees that. `None` where that is not known, for something cannot be read that may describe it.
    pub fn beside_the_mesh(&self, target: &str, view: &View) -> Option<OutboundTrafficPolicy> {
        let outbound = self.outbound(view);
        let is_meant = match outbound {
            OutboundTrafficPolicy::AllowAny => self.is_outside(target, view),
            OutboundTrafficPolicy::RegistryOnly => host_of(target).is_some(),
        };
        (is_meant && !self.is_held_back).then_some(outbound)
    }

    /// Why a call to a target that is nothing for the client is refused. Nobody is told of what they do not see.
    pub fn why_blocked(&self, target: &str, view: &View) -> String {
        match self.absence(target, view) {
            Some(why) if !self.is_outside(target, view) => why,
            why => {
                let why = why.as_deref().unwrap_or("no object describes it");
                format!("{why}, and such hosts are not called (REGISTRY_ONLY)")
            }
        }
    }

    fn is_outside(&self, target: &str, view: &View) -> bool {
        self.is_undescribed(target, view) || self.is_left_out(target, view).is_some()
    }

    /// What becomes of a client's calls to hosts that nothing describes.
    pub fn outbound(&self, view: &View) -> OutboundTrafficPolicy {
        self.scope(view).and_then(|scope| scope.outbound).unwrap_or(self.outbound)
    }

    /// Where that is written: by the client's Sidecar, or else by the mesh.
    pub fn place_of_outbound(&self, view: &View) -> Option<Origin> {
        let of_sidecar = || {
            let object = &self.scope(view)?.object;
            Some(object.meta.origin.at(object.spec.outbound_traffic_policy.as_ref()?.span))
        };
        let of_mesh = || {
            let object = self.mesh.object.as_ref()?;
            Some(object.meta.origin.at(object.spec.outbound_traffic_policy.as_ref()?.span))
        };
        of_sidecar().or_else(of_mesh)
    }

    /// Whether calls of any client to hosts that nothing describes pass.
    pub fn lets_any_pass(&self) -> bool {
        self.outbound == OutboundTrafficPolicy::AllowAny || self.sidecars.let_any_pass()
    }

    /// Lets none of them pass, whatever a Sidecar says, and does not say that nothing describes them: it is not known.
    pub fn hold_back(&mut self) {
        self.is_held_back = true;
        self.lately = Mutex::default();
        self.outbound = OutboundTrafficPolicy::RegistryOnly;
        self.sidecars.let_none_pass();
    }

    /// The host of a target that a client would see, were it not for its Sidecar.
    pub fn is_left_out(&self, target: &str, view: &View) -> Option<Arc<str>> {
        self.scope(view)?;
        let without = View { sidecar: None, ..view.clone() };
        let meant = self.resolve(target, &without)?.host;
        let is_refused = self.services.refused(&meant, &view.namespace).is_some();
        (!is_refused && self.resolve(target, view).is_none()).then_some(meant)
    }

    /// The same in words.
    pub fn hidden(&self, target: &str, view: &View) -> Option<String> {
        let (host, scope) = (self.is_left_out(target, view)?, self.scope(view)?);
        Some(format!("{} does not have {host} among the hosts of its egress", scope.object.meta.id()))
    }

    /// Whether no object that the client sees speaks of this target.
    pub fn is_undescribed(&self, target: &str, view: &View) -> bool {
        let is_described = |host: &String| {
            self.services.describes(host, &view.namespace)
                || self.virtual_services.describes(host, &view.namespace)
                || self.destination_rules.describes(host, view)
        };
        host_of(target).is_some_and(|host| !candidates(host, &view.namespace).iter().any(is_described))
    }
}

/// The host of a target, where it can be one.
fn host_of(target: &str) -> Option<&str> {
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let (host, _) = split_port(target)?;
    (host.parse::<IpAddr>().is_ok() || host.chars().all(in_a_name)).then_some(host)
}
