//! Who may do what, as Envoy's RBAC filter says it (`envoy.config.rbac.v3`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{HeaderTest, SegmentTemplate, StringTest};

/// The configuration of one RBAC filter. Without rules it lets everybody pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rbac {
    /// What is enforced.
    pub rules: Option<RbacRules>,
    /// What is only tried: it is told of, and never changes the verdict.
    pub shadow_rules: Option<RbacRules>,
    /// Under which prefix the decisions of the shadow rules are noted, for those who are asked by them.
    pub shadow_prefix: Arc<str>,
}

/// A set of policies, and what becomes of a request that one of them is for.
///
/// ```
/// use mesh_core::model::{RbacAction, RbacCondition, RbacPolicy, RbacRules};
///
/// // Nobody is let in but by a policy, and there is none.
/// let mut rules = RbacRules::new(RbacAction::Allow);
/// rules.policies.insert("everybody".into(), RbacPolicy::new([RbacCondition::Always], [RbacCondition::Always]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RbacRules {
    /// What a match means.
    pub action: RbacAction,
    /// The policies by name; the first one that matches, in this order, is the one that is told of.
    pub policies: BTreeMap<Arc<str>, RbacPolicy>,
}

impl RbacRules {
    /// A set without policies.
    pub fn new(action: RbacAction) -> Self {
        RbacRules { action, policies: BTreeMap::new() }
    }
}

/// What becomes of a request that a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    /// It is let in, and nothing else is.
    Allow,
    /// It is refused, and nothing else is.
    Deny,
    /// It is told of, and let in like everything else.
    Log,
}

/// One policy: a request that fits any of the permissions, from somebody who fits any of the principals.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RbacPolicy {
    /// What is asked for.
    pub permissions: Vec<RbacCondition>,
    /// Who asks.
    pub principals: Vec<RbacCondition>,
}

impl RbacPolicy {
    /// A policy for these.
    pub fn new(
        permissions: impl IntoIterator<Item = RbacCondition>,
        principals: impl IntoIterator<Item = RbacCondition>,
    ) -> Self {
        RbacPolicy { permissions: permissions.into_iter().collect(), principals: principals.into_iter().collect() }
    }
}

/// What a request or its caller must be like. Exhaustive: one more must not pass for one that always holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RbacCondition {
    /// Nothing is asked.
    Always,
    /// All of these.
    All(Vec<RbacCondition>),
    /// Any of these.
    Any(Vec<RbacCondition>),
    /// Not this.
    Not(Box<RbacCondition>),
    /// A header, or a pseudo-header that a request has.
    Header(HeaderTest),
    /// The path, without query and fragment.
    Path(StringTest),
    /// The path by its segments.
    PathTemplate(SegmentTemplate),
    /// The address that the client connected to.
    DestinationIp(IpPrefix),
    /// The port that it connected to: from the first to the last.
    DestinationPort(u16, u16),
    /// The address that it connected from.
    SourceIp(IpPrefix),
    /// The address of the client: the same, unless a proxy in front that is believed tells of another one.
    RemoteIp(IpPrefix),
    /// The name that it asked for by TLS; empty where it asked for none.
    ServerName(StringTest),
    /// Who the peer is by mutual TLS. Nobody who is not known by it fits.
    Peer(PeerTest),
    /// What the request's token says. No request without a good one fits.
    Token(TokenTest),
}

/// A test on the token of a request, which was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenTest {
    /// Issuer and subject, as `iss/sub`.
    Principal(StringTest),
    /// A claim, by the names that lead to it. A text that is a list of words for its issuer is a list here.
    Claim(Vec<String>, ClaimTest),
}

/// A test on the value of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimTest {
    /// It is there.
    Present,
    /// It is this text.
    Text(StringTest),
    /// It is a list, and one of its values passes.
    OneOf(Box<ClaimTest>),
    /// It passes any of these.
    Any(Vec<ClaimTest>),
}

/// A test on a peer's identity, part by part: no part can be taken for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTest {
    /// It is known.
    Known,
    /// The whole ID.
    Id(StringTest),
    /// Its trust domain.
    TrustDomain(StringTest),
    /// The namespace, of an ID of the form `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    Namespace(StringTest),
    /// The service account, of such an ID.
    ServiceAccount(StringTest),
}

/// The addresses that begin with the same bits.
///
/// ```
/// use mesh_core::model::IpPrefix;
///
/// let net = IpPrefix::new("10.1.2.3".parse()?, 16)?;
/// assert!(net.contains("10.1.0.9".parse()?) && !net.contains("10.2.0.9".parse()?));
/// // IPv4 is IPv4, in IPv6's clothes too.
/// assert!(net.contains("::ffff:10.1.0.9".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPrefix {
    network: IpAddr,
    length: u8,
}

impl IpPrefix {
    /// Those that begin like this one, for so many bits.
    ///
    /// # Errors
    /// More bits than an address has.
    pub fn new(network: IpAddr, length: u8) -> Result<Self, crate::error::Invalid> {
        let bits = if network.is_ipv4() { 32 } else { 128 };
        if length > bits {
            return Err(crate::error::Invalid::new(format!("more than {bits} bits")));
        }
        Ok(match network.to_canonical() {
            canonical if canonical != network && length >= 96 => IpPrefix { network: canonical, length: length - 96 },
            _ => IpPrefix { network, length },
        })
    }

    /// Whether an address begins so.
    pub fn contains(&self, ip: IpAddr) -> bool {
        use IpAddr::{V4, V6};
        let (network, ip, width): (u128, u128, u32) = match (self.network, ip.to_canonical()) {
            (V4(network), V4(ip)) => (u128::from(network.to_bits()), u128::from(ip.to_bits()), 32),
            (V6(network), V6(ip)) => (network.to_bits(), ip.to_bits(), 128),
            _ => return false,
        };
        let shift = width.saturating_sub(u32::from(self.length));
        network.checked_shr(shift).unwrap_or(0) == ip.checked_shr(shift).unwrap_or(0)
    }
}
