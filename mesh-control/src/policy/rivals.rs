//! VirtualServices and routes of Gateway API for the same host: which of them count for a client (Istio: push_context.go).

use super::gateway_api::{Table, goes_before};
use super::route::Route;
use super::view::View;
use super::virtual_services::Entry;
use super::{Policy, gateway_api};
use crate::config::file::Meta;
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};

/// The rules that are in force for an address.
enum Ruled<'a> {
    /// Routes of Gateway API. The entry has the host as well, and loses.
    Table(Table<'a>, Option<&'a Entry>),
    /// Those of a VirtualService. The routes of the table lose.
    VirtualService(Vec<Route>, Option<(Table<'a>, &'a Entry)>),
}

impl Policy {
    /// The routes that rules give to a host: those of Gateway API where there are some, unless a VirtualService goes before
    /// them; else those of a VirtualService.
    pub(super) fn ruled(&self, host: &str, port: u16, view: &View) -> Vec<Route> {
        match self.rules_for(host, port, view) {
            Ruled::Table(table, _) => table.routes(),
            Ruled::VirtualService(routes, _) => routes,
        }
    }

    fn rules_for(&self, host: &str, port: u16, view: &View) -> Ruled<'_> {
        let Some(table) = self.gateway_table(host, port, view) else {
            return Ruled::VirtualService(self.of_virtual_service(host, port, view), None);
        };
        let entry = self.virtual_services.find(host, self.sight(view));
        let rival = entry.map(|entry| &**entry).filter(|entry| entry.hosts.iter().any(|own| own == host));
        let Some(rival) = rival else { return Ruled::Table(table, None) };
        let is_first = !table.is_consumer && table.meta().is_some_and(|meta| goes_before(rival, meta));
        let routes = if is_first { self.of_virtual_service(host, port, view) } else { Vec::new() };
        match routes.is_empty() {
            true => Ruled::Table(table, Some(rival)),
            false => Ruled::VirtualService(routes, Some((table, rival))),
        }
    }

    pub(super) fn gateway_table(&self, host: &str, port: u16, view: &View) -> Option<gateway_api::Table<'_>> {
        let (_, service) = self.services.find(host, &view.namespace)?;
        self.gateway_routes.find(&service.host, port, self.sight(view))
    }

    /// What is to be said of hosts that objects of both kinds are for.
    pub(super) fn rivals(&self) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for (host, ports, clients) in self.gateway_routes.attached() {
            if !self.virtual_services.has_exact(host) {
                continue;
            }
            // What only some clients see counts for them.
            for client in clients {
                let view = View::of_namespace(client);
                for port in &ports {
                    let mut say =
                        |winner: &Meta, loser: &Meta, clients: &str| found.push(conflict(host, winner, loser, clients));
                    match self.rules_for(host, *port, &view) {
                        Ruled::Table(table, Some(rival)) => {
                            let clients =
                                if table.is_consumer { format!("clients of {client}") } else { "it".to_owned() };
                            table.meta().into_iter().for_each(|winner| say(winner, &rival.meta, &clients));
                        }
                        Ruled::VirtualService(_, Some((table, rival))) => {
                            table.metas().for_each(|loser| say(&rival.meta, loser, "it"));
                        }
                        _ => {}
                    }
                }
            }
        }
        found.sort_by(|a: &Diagnostic, b| (&a.object, &a.message).cmp(&(&b.object, &b.message)));
        found.dedup();
        found
    }
}

fn conflict(host: &str, winner: &Meta, loser: &Meta, clients: &str) -> Diagnostic {
    let message =
        format!("host {host} is also that of {} ({}), whose rules count for {clients}", winner.id(), winner.origin);
    let field = if loser.kind == ObjectKind::VirtualService { "hosts" } else { "parentRefs" };
    Diagnostic::at(&loser.origin, Severity::Warning, Code::Conflict, message).object(loser.id()).field(field)
}
