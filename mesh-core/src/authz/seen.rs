//! A request as conditions look at it: what several of them ask for is worked out once.

use std::cell::OnceCell;
use std::net::SocketAddr;

use smallvec::SmallVec;

use super::AccessRequest;
use crate::jwt::Claims;
use crate::request::RequestHead;

/// A request and its connection.
pub(super) struct Seen<'r> {
    pub(super) head: Option<RequestHead<'r>>,
    pub(super) connection: Option<Ends<'r>>,
    /// What its tokens say.
    pub(super) tokens: &'r [Claims],
    path: &'r str,
    host: OnceCell<Host<'r>>,
}

/// The two ends of a connection.
pub(super) struct Ends<'r> {
    pub(super) peer: Option<Peer<'r>>,
    pub(super) source: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) server_name: &'r str,
}

/// A peer, by parts.
pub(super) struct Peer<'r> {
    pub(super) id: &'r str,
    pub(super) trust_domain: &'r str,
    /// Namespace and service account.
    pub(super) workload: Option<(&'r str, &'r str)>,
}

/// The forms of an authority that mean the same host.
pub(super) struct Host<'r> {
    written: &'r [u8],
    /// Without port and without the dot at the end.
    name: &'r [u8],
    /// Name and port, where the dot stood between them.
    joined: Option<SmallVec<[u8; 128]>>,
}

impl<'r> Seen<'r> {
    pub(super) fn new(request: &AccessRequest<'r>) -> Self {
        let path = request.head.map_or("", |head| head.path());
        Seen {
            head: request.head,
            connection: request.connection.map(|connection| Ends {
                peer: connection.peer.map(|id| Peer {
                    id: id.as_str(),
                    trust_domain: id.trust_domain(),
                    workload: id.workload(),
                }),
                source: connection.source,
                remote: connection.remote,
                destination: connection.destination,
                server_name: connection.server_name.unwrap_or_default(),
            }),
            tokens: request.tokens,
            // No URI of `http` has a fragment; one that had would be no part of the path.
            path: path.split_once('#').map_or(path, |(path, _)| path),
            host: OnceCell::new(),
        }
    }

    /// The path, without query and fragment.
    pub(super) fn path(&self) -> &'r str {
        self.path
    }

    pub(super) fn host(&self) -> Option<&Host<'r>> {
        let head = self.head.as_ref()?;
        Some(self.host.get_or_init(|| Host::new(head.authority)))
    }
}

impl<'r> Host<'r> {
    fn new(authority: &'r str) -> Self {
        // The colons of an IPv6 address are inside its brackets.
        let colon =
            authority.rfind(':').filter(|colon| !authority.get(*colon..).is_some_and(|rest| rest.contains(']')));
        let (host, port) = match colon.and_then(|colon| authority.split_at_checked(colon)) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => (authority, None),
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        let joined = port.filter(|_| name.len() < host.len()).map(|port| {
            let mut joined = SmallVec::from_slice(name.as_bytes());
            joined.push(b':');
            joined.extend_from_slice(port.as_bytes());
            joined
        });
        Host { written: authority.as_bytes(), name: name.as_bytes(), joined }
    }

    /// Whether any of its forms passes.
    pub(super) fn any(&self, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        test(self.name)
            || (self.written.len() != self.name.len() && test(self.written))
            || self.joined.as_ref().is_some_and(|joined| test(joined))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_a_host() {
        for (authority, expected) in [
            ("shop", &["shop"][..]),
            ("shop.", &["shop", "shop."]),
            ("shop:80", &["shop", "shop:80"]),
            ("shop.:80", &["shop", "shop.:80", "shop:80"]),
            ("shop:", &["shop", "shop:"]),
            ("[::1]", &["[::1]"]),
            ("[::1]:80", &["[::1]", "[::1]:80"]),
            ("", &[""]),
        ] {
            let mut forms = Vec::new();
            _ = Host::new(authority).any(|form| {
                forms.push(String::from_utf8_lossy(form).into_owned());
                false
            });
            assert_eq!(forms, expected, "{authority}");
        }
    }
}
