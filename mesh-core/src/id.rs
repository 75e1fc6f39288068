//! The names of things. Each is one shared string, cheap to clone and to compare.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it travels.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: AsRef<str> + ?Sized> From<&T> for $name {
            fn from(name: &T) -> Self {
                $name(Arc::from(name.as_ref()))
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                $name(Arc::from(name))
            }
        }

        impl From<Arc<str>> for $name {
            fn from(name: Arc<str>) -> Self {
                $name(name)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// What the application asks for, as it asks: `reviews:9080`, `xds:///orders`.
    Target
}
name! {
    /// A Listener resource.
    ListenerName
}
name! {
    /// A RouteConfiguration resource.
    RouteName
}
name! {
    /// A Cluster resource.
    ClusterName
}

/// Where one endpoint can be dialled. Exhaustive: one more is one more way to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name, resolved at every dial (LOGICAL_DNS), and its port.
    Host(Arc<str>, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(addr) => addr.fmt(f),
            Address::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Address::Socket(addr)
    }
}

/// The identity of an endpoint: the set of its addresses, in the order given (gRFC A61). State such as
/// connections and in-flight counts is keyed by it and outlives every configuration update.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(Arc<[Address]>);

impl EndpointId {
    /// An endpoint that has one address.
    pub fn new(address: impl Into<Address>) -> Self {
        EndpointId(Arc::from([address.into()]))
    }

    /// An endpoint that has several addresses, tried in this order. `None` for an empty list.
    pub fn from_addresses(addresses: Vec<Address>) -> Option<Self> {
        (!addresses.is_empty()).then(|| EndpointId(Arc::from(addresses)))
    }

    /// Every address, in the order in which it is tried; never empty.
    pub fn addresses(&self) -> &[Address] {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.first() {
            Some(first) => first.fmt(f),
            None => Ok(()),
        }
    }
}

/// Where a workload runs; an empty part means "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// For example `eu-west-1`.
    pub region: Arc<str>,
    /// For example `eu-west-1b`.
    pub zone: Arc<str>,
    /// For example a rack.
    pub sub_zone: Arc<str>,
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.region, self.zone, self.sub_zone)
    }
}

/// The address that a host name stands for when it is an IP literal, brackets of IPv6 allowed.
pub fn ip_literal(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).parse().ok()
}
