//! What rules on requests and rules on connections have in common: whom they are for, and where they lead.

use super::{Destination, HttpDestination, HttpRoute, MESH, RouteDestination, TcpRoute, TlsRoute, VirtualService};
use crate::config::decode::PortNumber;
use crate::config::diagnostic::Span;

/// A rule of any kind.
#[derive(Clone, Copy, Debug)]
pub enum AnyRoute<'a> {
    /// On requests.
    Http(&'a HttpRoute),
    /// On connections by TLS, by the name that they are for.
    Tls(&'a TlsRoute),
    /// On connections.
    Tcp(&'a TcpRoute),
}

/// What a condition of any kind says of whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyMatch<'a> {
    /// The gateways that it names, and `mesh`; empty means those of the object.
    pub gateways: Vec<&'a str>,
    /// The port that is being addressed.
    pub port: Option<u16>,
}

impl VirtualService {
    /// Whether it names a gateway.
    pub fn is_at_gateways(&self) -> bool {
        self.gateways.iter().any(|name| name.value != MESH)
    }

    /// Its rules of every kind, each with its place among those of its kind.
    pub fn routes(&self) -> impl Iterator<Item = (usize, AnyRoute<'_>)> {
        let http = self.http.iter().map(AnyRoute::Http).enumerate();
        let tls = self.tls.iter().map(AnyRoute::Tls).enumerate();
        let tcp = self.tcp.iter().map(AnyRoute::Tcp).enumerate();
        http.chain(tls).chain(tcp)
    }
}

impl<'a> AnyRoute<'a> {
    /// Its path, at this place among those of its kind: `http[0]`.
    pub fn path(self, index: usize) -> String {
        let kind = match self {
            AnyRoute::Http(_) => "http",
            AnyRoute::Tls(_) => "tls",
            AnyRoute::Tcp(_) => "tcp",
        };
        format!("{kind}[{index}]")
    }

    /// Where it is written.
    pub fn span(self) -> Span {
        match self {
            AnyRoute::Http(route) => route.span,
            AnyRoute::Tls(route) => route.span,
            AnyRoute::Tcp(route) => route.span,
        }
    }

    /// Whom its conditions are for.
    pub fn matches(self) -> Vec<AnyMatch<'a>> {
        fn of<'n>(gateways: impl Iterator<Item = &'n str>, port: Option<PortNumber>) -> AnyMatch<'n> {
            AnyMatch { gateways: gateways.collect(), port: port.map(|port| port.0) }
        }
        match self {
            AnyRoute::Http(route) => route
                .matches
                .iter()
                .map(|one| of(one.gateways.iter().map(|name| name.value.as_str()), one.port))
                .collect(),
            AnyRoute::Tls(route) => {
                route.matches.iter().map(|one| of(one.gateways.iter().map(String::as_str), one.port)).collect()
            }
            AnyRoute::Tcp(route) => {
                route.matches.iter().map(|one| of(one.gateways.iter().map(String::as_str), one.port)).collect()
            }
        }
    }

    /// Where it leads, in the order of its `route`.
    pub fn destinations(self) -> impl Iterator<Item = &'a Destination> {
        let (of_requests, of_connections): (&'a [HttpDestination], &'a [RouteDestination]) = match self {
            AnyRoute::Http(route) => (&route.route, &[]),
            AnyRoute::Tls(route) => (&[], &route.route),
            AnyRoute::Tcp(route) => (&[], &route.route),
        };
        let of_requests = of_requests.iter().map(|to| &to.destination);
        of_requests.chain(of_connections.iter().map(|to| &to.destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Text;
    use crate::config::istio::virtual_service::{HttpMatch, TlsMatch};

    #[test]
    fn rules_of_every_kind_say_whom_they_are_for_and_where_they_lead() {
        let text = |value: &str| Text { value: value.to_owned(), ..Text::default() };
        let to = |host: &str| Destination { host: text(host), ..Destination::default() };
        let http = |host: &str| HttpDestination { destination: to(host), ..HttpDestination::default() };
        let bytes = |host: &str| RouteDestination { destination: to(host), ..RouteDestination::default() };
        let condition = HttpMatch { gateways: vec![text("edge")], ..Default::default() };
        let on_port = TlsMatch { gateways: vec!["mesh".to_owned()], port: Some(PortNumber(443)), ..Default::default() };
        let object = VirtualService {
            gateways: vec![text("mesh"), text("edge")],
            http: vec![
                HttpRoute { route: vec![http("a"), http("b")], ..HttpRoute::default() },
                HttpRoute { matches: vec![condition], route: vec![http("c")], ..HttpRoute::default() },
            ],
            tls: vec![TlsRoute { matches: vec![on_port], route: vec![bytes("d")], ..TlsRoute::default() }],
            tcp: vec![TcpRoute { route: vec![bytes("e"), bytes("f")], ..TcpRoute::default() }],
            ..VirtualService::default()
        };
        let routes: Vec<(String, Vec<AnyMatch<'_>>, Vec<&str>)> = object
            .routes()
            .map(|(index, route)| {
                let hosts = route.destinations().map(|to| to.host.value.as_str()).collect();
                (route.path(index), route.matches(), hosts)
            })
            .collect();
        let is_for = |name: &'static str, port| vec![AnyMatch { gateways: vec![name], port }];
        let expected = [
            ("http[0]".to_owned(), vec![], vec!["a", "b"]),
            ("http[1]".to_owned(), is_for("edge", None), vec!["c"]),
            ("tls[0]".to_owned(), is_for("mesh", Some(443)), vec!["d"]),
            ("tcp[0]".to_owned(), vec![], vec!["e", "f"]),
        ];
        assert_eq!(routes, expected);
        assert!(object.is_at_gateways());
        assert!(!VirtualService { gateways: vec![text("mesh")], ..VirtualService::default() }.is_at_gateways());
    }
}
