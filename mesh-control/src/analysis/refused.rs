//! What the data plane would refuse: every route and every cluster, asked of the judge that publishes them.
//!
//! Routes are judged whoever they are for, and clusters, as a client of their own namespace sees them. What other
//! clients see is judged by the same judge when they ask for it.

use crate::catalog::ClientClass;
use crate::config::diagnostic::Diagnostic;
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::view::View;
use crate::render::{self, judge::Judge};

pub(super) fn check(judge: &Judge, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for entry in policy.virtual_services.iter() {
        render::publishable(judge, policy, policy.routes_of_anybody(entry), found);
    }
    for routes in policy.gateway_routes.all_routes() {
        render::publishable(judge, policy, routes, found);
    }
    for (_, service) in policy.services.iter() {
        let view = View::of_namespace(&service.namespace);
        let rule = policy.destination_rules.find(&service.host, &service.namespace, &view);
        let subsets: Vec<&str> = rule.into_iter().flat_map(|rule| rule.subset_names()).collect();
        for port in &service.ports {
            for subset in std::iter::once("").chain(subsets.iter().copied()) {
                let key = ClusterKey { host: service.host.clone(), port: port.number, subset: subset.into() };
                let rendered =
                    render::render_cluster(judge, policy, ClientClass::Library, &view, &key.to_string(), false, &[]);
                found.extend(rendered.into_iter().flat_map(|rendered| rendered.refused));
            }
        }
    }
}
