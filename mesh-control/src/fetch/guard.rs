//! Which addresses may be fetched from. A `jwksUri` is written by whoever may write a `RequestAuthentication`, and a redirect by
//! somebody else altogether; neither must make the control plane ask its own machine, or the metadata service of its cloud.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services that have no link-local address: Alibaba's, Azure's, Oracle's; and Amazon's by IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether an address may be dialled; the error says what it is.
pub(crate) fn check(ip: IpAddr) -> Result<(), &'static str> {
    let ip = plain(ip);
    let kind = match ip {
        _ if METADATA.contains(&ip) => Some("a metadata address"),
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_unspecified() => Some("no address"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("a link-local address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(ip) if ip.is_broadcast() || ip.octets().starts_with(&[0]) => Some("no address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    kind.map_or(Ok(()), Err)
}

/// The address of IPv4 that one of IPv6 stands for: mapped, translated (RFC 6052), compatible (RFC 4291), or 6to4 (RFC 3056).
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let of = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high, low].map(u16::to_be_bytes);
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => of(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        _ => IpAddr::V6(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard J8.
    #[test]
    fn j8_the_own_machine_and_metadata_services_are_not_asked() {
        for address in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert!(check(address.parse().expect("an address")).is_err(), "{address}");
        }
        // An issuer in the cluster has a private one.
        for address in
            ["10.0.0.1", "172.16.0.1", "192.168.0.1", "8.8.8.8", "fd00::1", "2001:db8::1", "64:ff9b::808:808"]
        {
            assert_eq!(check(address.parse().expect("an address")), Ok(()), "{address}");
        }
    }
}
