//! A connection through an HTTP proxy (RFC 9110, 9.3.6).

use std::sync::Arc;

use crate::error::Invalid;

/// What a proxy is asked to connect to, by CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tunnel {
    /// A host and a port.
    pub authority: Arc<str>,
}

impl Tunnel {
    /// To there.
    ///
    /// # Errors
    /// Where it is not a host and a port: what it is goes to the proxy as it is.
    pub fn to(authority: &str) -> Result<Self, Invalid> {
        let is_plain = authority.parse::<http::uri::Authority>().is_ok_and(|read| {
            read.port_u16().is_some_and(|port| port > 0) && !read.as_str().contains('@') && !read.host().is_empty()
        });
        match is_plain && !authority.contains('%') {
            true => Ok(Tunnel { authority: authority.into() }),
            false => Err(Invalid::new(format!("{authority:?} is not a host and a port"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_asked_for_a_host_and_a_port_and_nothing_else() {
        for good in ["db.example.com:5432", "10.0.0.1:1", "[2001:db8::1]:443"] {
            assert_eq!(&*Tunnel::to(good).unwrap().authority, good);
        }
        for bad in ["", "host", "host:0", ":443", "user@host:1", "a:1\r\nX: y", "%REQUESTED_SERVER_NAME%:443", "a/b:1"]
        {
            assert!(Tunnel::to(bad).is_err(), "{bad:?}");
        }
    }
}
