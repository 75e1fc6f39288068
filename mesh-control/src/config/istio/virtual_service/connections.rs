//! Rules on connections whose bytes are not HTTP (`tls`, `tcp`): what Istio's validation refuses of them.

use std::net::IpAddr;

use super::{RouteDestination, VirtualService};
use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::istio::names::{host_fault, is_label};

/// An address and how many of its bits count: `10.0.0.0/8`, or an address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet(IpAddr, u32);

impl Subnet {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Subnet> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let is_plain = |bits: &str| bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|count| *count <= most && is_plain(bits))?,
            None => most,
        };
        Some(Subnet(address, bits))
    }

    /// How many bits count.
    pub fn bits(&self) -> u32 {
        self.1
    }

    /// The only address of it, where it has one only.
    pub fn address(&self) -> Option<IpAddr> {
        let all = if self.0.is_ipv4() { 32 } else { 128 };
        (self.1 == all).then_some(self.0)
    }

    /// Whether every address is one of it.
    pub fn is_everywhere(&self) -> bool {
        self.1 == 0
    }

    /// Whether an address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |own: u128, other: u128, width: u32| {
            let unlooked = width.saturating_sub(self.1);
            own.checked_shr(unlooked).unwrap_or(0) == other.checked_shr(unlooked).unwrap_or(0)
        };
        match (self.0, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same(u32::from(own).into(), u32::from(other).into(), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.into(), other.into(), 128),
            _ => false,
        }
    }
}

/// Checks the rules on connections of an object.
pub(super) fn check(object: &VirtualService, d: &mut Decoder<'_>) {
    let mut checker = Checker { d };
    for (index, rule) in object.tls.iter().enumerate() {
        let path = format!("tls[{index}]");
        if rule.matches.is_empty() {
            checker.error(rule.span, &path, "a condition (`match` with `sniHosts`) is needed");
        }
        for (position, condition) in rule.matches.iter().enumerate() {
            let path = format!("{path}.match[{position}]");
            if condition.sni_hosts.is_empty() {
                checker.error(condition.span, &path, "at least one of `sniHosts` is needed");
            }
            for name in &condition.sni_hosts {
                let path = format!("{path}.sniHosts");
                if let Some(message) = host_fault(name) {
                    checker.error(condition.span, &path, message);
                } else if !object.hosts.iter().any(|host| covers(host, name)) {
                    let message = format!("{} is none of the object's `hosts`", quoted(name));
                    checker.error(condition.span, &path, message);
                }
            }
            checker.subnets(condition.span, &path, &condition.destination_subnets);
        }
        checker.destinations(rule.span, &path, &rule.route);
    }
    for (index, rule) in object.tcp.iter().enumerate() {
        let path = format!("tcp[{index}]");
        for (position, condition) in rule.matches.iter().enumerate() {
            checker.subnets(condition.span, &format!("{path}.match[{position}]"), &condition.destination_subnets);
        }
        checker.destinations(rule.span, &path, &rule.route);
    }
}

/// Whether a host of an object, which may begin with a wildcard, stands for a name, which may, too.
fn covers(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        Some(suffix) => name.len() >= suffix.len() && name.ends_with(suffix),
        None => host.eq_ignore_ascii_case(name),
    }
}

struct Checker<'c, 'd> {
    d: &'c mut Decoder<'d>,
}

impl Checker<'_, '_> {
    fn error(&mut self, span: Span, path: &str, message: impl Into<String>) {
        self.d.report_at(span, path, Severity::Error, Code::InvalidValue, message);
    }

    fn subnets(&mut self, span: Span, path: &str, subnets: &[String]) {
        for text in subnets.iter().filter(|text| Subnet::parse(text).is_none()) {
            let message = format!("{} is neither an address nor a subnet such as 10.0.0.0/8", quoted(text));
            self.error(span, &format!("{path}.destinationSubnets"), message);
        }
    }

    fn destinations(&mut self, span: Span, path: &str, route: &[RouteDestination]) {
        if route.is_empty() {
            self.error(span, path, "field `route` is missing");
            return;
        }
        let mut total: i64 = 0;
        for (index, destination) in route.iter().enumerate() {
            let (to, path) = (&destination.destination, format!("{path}.route[{index}]"));
            if let Some(message) = host_fault(&to.host) {
                self.error(to.host.span, &format!("{path}.destination.host"), message);
            }
            if let Some(subset) = to.subset.as_ref().filter(|subset| !(subset.is_empty() || is_label(subset))) {
                let message = format!("{} is not the name of a subset", quoted(subset));
                self.error(subset.span, &format!("{path}.destination.subset"), message);
            }
            if let Some(weight) = &destination.weight {
                total += i64::from(weight.value);
                if weight.value < 0 {
                    self.error(weight.span, &format!("{path}.weight"), "less than 0");
                }
            }
        }
        if route.len() > 1 && total == 0 {
            self.error(span, &format!("{path}.route"), "no destination has a weight above 0");
        }
        if total > i64::from(u32::MAX) {
            self.error(span, &format!("{path}.route"), "the weights add up to more than 4294967295");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_the_addresses_whose_first_bits_are_its_own() {
        for (subnet, address, expected) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("::/0", "2001:db9::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            assert_eq!(
                Subnet::parse(subnet).unwrap().contains(address.parse().unwrap()),
                expected,
                "{subnet} {address}"
            );
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "::/129", "a/8"] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
    }
}
