//! Hosts that nothing describes: whether clients may call them (Istio's `outboundTrafficPolicy`).

use std::net::IpAddr;

use super::Policy;
use super::view::View;
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
    /// Whether a call to this target, `host:port`, passes by all that is configured. A name that any object has something
    /// to say of does not, whoever may see that object, whatever its ports are, and whether or not it is right.
    pub fn passes_by(&self, target: &str, view: &View) -> bool {
        self.outbound == OutboundTrafficPolicy::AllowAny && self.is_undescribed(target, view)
    }

    /// Whether no object speaks of this target.
    pub fn is_undescribed(&self, target: &str, view: &View) -> bool {
        let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
        let in_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = |host: &str| is_address(host) || host.chars().all(in_a_name);
        let is_described = |host: &String| {
            self.services.describes(host)
                || self.virtual_services.describes(host)
                || self.destination_rules.describes(host)
        };
        split_port(target)
            .is_some_and(|(host, _)| is_name(host) && !candidates(host, &view.namespace).iter().any(is_described))
    }
}
