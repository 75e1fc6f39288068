//! What the data plane would refuse: every route, every cluster and every limit of servers, asked of the judge that publishes them.
//!
//! Routes are judged whoever they are for, and clusters, as a client of their own namespace sees them. What other
//! clients see is judged by the same judge when they ask for it.

use crate::catalog::ClientClass;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
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
    for limit in policy.limits.of_servers() {
        let Err(invalid) = render::verdict_on_limit(judge, &limit) else { continue };
        let Some(meta) = policy.limits.objects().find(|meta| meta.id() == limit.id) else { continue };
        // The steps before are the same for every limit.
        let field = invalid.field.rsplit("typed_config.").next().unwrap_or_default();
        let what = format!(
            "refused by the data plane: {field}: {}; servers that it is for answer every request with 503 and this reason",
            invalid.reason
        );
        found.push(Diagnostic::at(&meta.origin, Severity::Error, Code::Refused, what).object(meta.id()));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_core::model::LocalRateLimit;

    use super::*;
    use crate::policy::limits::{Limit, LimitInForce};

    #[test]
    fn a_limit_is_judged_as_the_server_that_it_is_for() {
        let verdict = |most_keys: u32| {
            let mut limit = LocalRateLimit::new("l", None);
            limit.most_keys = most_keys;
            let limit = LimitInForce { id: "RateLimit shop/a".into(), limit: Limit::Rate(Arc::new(limit)) };
            render::verdict_on_limit(&Judge::default(), &limit)
        };
        verdict(20).expect("it is accepted");
        let invalid = verdict(0).expect_err("there is room for no bucket");
        assert!(invalid.field.ends_with("max_dynamic_descriptors"), "{invalid}");
    }
}
