//! Where a management server is.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::Invalid;
use crate::request::split_authority;

/// Where a server is, in gRPC's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `host:port`
    Host(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Place {
    /// The name that its certificate has to have.
    pub(crate) fn host(&self) -> &str {
        match self {
            Place::Host(authority) => {
                let host = split_authority(authority).map_or(authority.as_str(), |(host, _)| host);
                host.trim_start_matches('[').trim_end_matches(']')
            }
            Place::Unix(_) => "localhost",
        }
    }

    /// Parses `host:port`, `dns:host:port`, `dns:///host:port`, `ipv4:…`, `ipv6:…`, `passthrough:///…`,
    /// `unix:path` or `unix:///path`.
    pub(crate) fn parse(uri: &str) -> Result<Self, Invalid> {
        if let Some(path) = uri.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.is_empty() {
                true => Err(Invalid::new(format!("{uri:?}: expected a path"))),
                false => Ok(Place::Unix(path.into())),
            };
        }
        let rest = ["dns:", "ipv4:", "ipv6:", "passthrough:"]
            .into_iter()
            .find_map(|scheme| uri.strip_prefix(scheme))
            .unwrap_or(uri);
        let rest = rest.strip_prefix("///").unwrap_or(rest);
        if let Ok(address) = rest.parse::<SocketAddr>() {
            return Ok(Place::Host(address.to_string()));
        }
        let is_host = |host: &str| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        match rest.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Place::Host(rest.to_owned()))
            }
            _ => Err(Invalid::new(format!("{uri:?}: expected host:port"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_grpcs_notation() {
        let host = |host: &str| Some(Place::Host(host.to_owned()));
        for (uri, expected) in [
            ("mesh:15010", host("mesh:15010")),
            ("dns:///mesh.local:15010", host("mesh.local:15010")),
            ("dns:mesh:1", host("mesh:1")),
            ("ipv4:127.0.0.1:1", host("127.0.0.1:1")),
            ("ipv6:[::1]:1", host("[::1]:1")),
            ("[::1]:1", host("[::1]:1")),
            ("unix:a/b", Some(Place::Unix("a/b".into()))),
            ("unix:///a/b", Some(Place::Unix("/a/b".into()))),
            ("", None),
            ("mesh", None),
            ("mesh:", None),
            ("mesh:0", None),
            ("mesh:99999", None),
            (":1", None),
            ("http://mesh:1", None),
            ("unix:", None),
        ] {
            assert_eq!(Place::parse(uri).ok(), expected, "{uri}");
        }
    }

    #[test]
    fn the_name_in_a_certificate_is_the_host_without_its_port() {
        for (uri, expected) in [
            ("mesh.example:15012", "mesh.example"),
            ("dns:///mesh:15012", "mesh"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("ipv6:[::1]:1", "::1"),
            ("unix:a/b", "localhost"),
        ] {
            assert_eq!(Place::parse(uri).unwrap().host(), expected, "{uri}");
        }
    }
}
