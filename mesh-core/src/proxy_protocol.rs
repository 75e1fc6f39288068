//! The PROXY protocol, versions 1 and 2: by its header a load balancer tells, before the first byte of a connection, whose
//! connection it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::Invalid;

/// How long a header may be, in bytes, with everything that a load balancer adds. What is longer is refused.
pub const LONGEST: usize = 4096;
/// How long one of version 1 may be, in bytes, with its end: what its specification says.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY ";

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parsed {
    /// The beginning of a header, of which more is to come.
    Incomplete,
    /// A header.
    Header {
        /// How many bytes it has.
        length: usize,
        /// Who the client is; `None` where the load balancer speaks for itself (LOCAL), or does not know (UNKNOWN).
        client: Option<SocketAddr>,
    },
}

/// Reads the first bytes of a connection.
///
/// # Errors
/// Where they are no header, or one that does not tell what it has to.
///
/// ```
/// use mesh_core::proxy_protocol::{Parsed, parse};
///
/// let client = Some("192.0.2.1:5000".parse()?);
/// let line = b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\n";
/// assert_eq!(parse(line), Ok(Parsed::Header { length: line.len(), client }));
/// assert_eq!(parse(b"PROXY TCP4 192.0"), Ok(Parsed::Incomplete));
/// assert!(parse(b"GET / HTTP/1.1\r\n").is_err());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, expected)| byte == expected);
    match (begins(SIGNATURE), begins(LINE)) {
        (true, _) => binary(bytes),
        (false, true) => line(bytes),
        (false, false) => Err(Invalid::new("no header of the PROXY protocol")),
    }
}

/// Version 1.
fn line(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let window = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() < LONGEST_LINE {
            true => Ok(Parsed::Incomplete),
            false => Err(Invalid::new("its line has no end")),
        };
    };
    let text = window.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let text = text.ok_or_else(|| Invalid::new("its line is no text"))?;
    let mut words = text.split(' ').skip(1);
    let length = end + 2;
    let is_v4 = match words.next() {
        Some("UNKNOWN") => return Ok(Parsed::Header { length, client: None }),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(Invalid::new("its protocol is not TCP4, TCP6 or UNKNOWN")),
    };
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words.as_slice() else {
        return Err(Invalid::new("its line has not six words"));
    };
    let address = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == is_v4);
    // No sign, and no zero before another digit.
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    match (address(source), address(destination), port(source_port), port(destination_port)) {
        (Some(ip), Some(_), Some(port), Some(_)) => {
            Ok(Parsed::Header { length, client: Some(SocketAddr::new(ip, port)) })
        }
        _ => Err(Invalid::new("its addresses or ports are none")),
    }
}

/// Version 2.
fn binary(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let Some((&[version, family, high, low], rest)) =
        bytes.get(SIGNATURE.len()..).and_then(|rest| rest.split_first_chunk::<4>())
    else {
        return Ok(Parsed::Incomplete);
    };
    let said = usize::from(u16::from_be_bytes([high, low]));
    let length = SIGNATURE.len() + 4 + said;
    if length > LONGEST {
        return Err(Invalid::new(format!("its header has more than {LONGEST} bytes")));
    }
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Err(Invalid::new("its version or its command is not known")),
    };
    let Some(said) = rest.get(..said) else { return Ok(Parsed::Incomplete) };
    let missing = || Invalid::new("its addresses are not all there");
    let client = match family {
        _ if is_local => None,
        // Of a connection that nobody knows of.
        0x00 => None,
        0x11 => {
            let (&[a, b, c, d], rest) = said.split_first_chunk::<4>().ok_or_else(missing)?;
            Some((IpAddr::V4(Ipv4Addr::new(a, b, c, d)), rest.get(4..8).ok_or_else(missing)?))
        }
        0x21 => {
            let (ip, rest) = said.split_first_chunk::<16>().ok_or_else(missing)?;
            Some((IpAddr::V6(Ipv6Addr::from(*ip)), rest.get(16..20).ok_or_else(missing)?))
        }
        _ => return Err(Invalid::new("it is of no connection of TCP")),
    };
    // The port of the client comes before that of the load balancer.
    let client = client.map(|(ip, ports)| {
        let port = ports.first_chunk::<2>().map_or(0, |port| u16::from_be_bytes(*port));
        SocketAddr::new(ip, port)
    });
    Ok(Parsed::Header { length, client })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u8, family: u8, said: &[u8]) -> Vec<u8> {
        let length = u16::try_from(said.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version, family], &length, said].concat()
    }

    fn client_of(bytes: &[u8]) -> Option<SocketAddr> {
        // What comes after it is none of it.
        let Ok(Parsed::Header { length, client }) = parse(&[bytes, b"GET /"].concat()) else { panic!("{bytes:?}") };
        assert_eq!(length, bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(Parsed::Incomplete), "{end} of {bytes:?}");
        }
        client
    }

    #[test]
    fn a_header_tells_who_the_client_is_or_that_nobody_knows() {
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(client_of(b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 443\r\n"), at("192.0.2.1:5000"));
        assert_eq!(client_of(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n"), at("[2001:db8::1]:0"));
        assert_eq!(client_of(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client_of(b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n"), None);
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x13, 0x88, 1, 187];
        assert_eq!(client_of(&header(0x21, 0x11, &v4)), at("192.0.2.1:5000"));
        // What load balancers add is passed over.
        assert_eq!(client_of(&header(0x21, 0x11, &[&v4[..], &[4; 300]].concat())), at("192.0.2.1:5000"));
        let v6 = [Ipv6Addr::LOCALHOST.octets(), [1; 16]].concat();
        assert_eq!(client_of(&header(0x21, 0x21, &[&v6[..], &[0, 80, 0, 81]].concat())), at("[::1]:80"));
        assert_eq!(client_of(&header(0x21, 0x00, &[1, 2])), None);
        assert_eq!(client_of(&header(0x20, 0x11, &v4)), None, "it checks whether somebody is there");
    }

    #[test]
    fn what_is_no_header_or_could_be_read_in_two_ways_is_refused() {
        let lines: [&[u8]; 12] = [
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
            b"PROXY\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n",
            b"PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 +1 65536\r\n",
            b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
            b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
        ];
        let endless = [LINE, &[b'a'; LONGEST_LINE]].concat();
        let others = [
            endless,
            header(0x11, 0x11, &[0; 12]),
            header(0x22, 0x11, &[0; 12]),
            header(0x21, 0x12, &[0; 12]),
            header(0x21, 0x31, &[0; 216]),
            header(0x21, 0x11, &[0; 11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x11, &[0; LONGEST]),
        ];
        for bytes in lines.iter().copied().chain(others.iter().map(Vec::as_slice)) {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
