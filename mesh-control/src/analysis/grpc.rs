//! What gRPC's own clients cannot do, at the field that asks for it.

use crate::catalog::ClientClass;
use crate::config::diagnostic::Diagnostic;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::view::View;
use crate::registry::protocol::Protocol;
use crate::render;

/// Looks at every port that may speak gRPC as a client of the service's own namespace does.
pub(super) fn check(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for (_, service) in policy.services.iter() {
        let view = View::of_namespace(&service.namespace);
        let never = |protocol| matches!(protocol, Protocol::Https | Protocol::Tls | Protocol::Tcp);
        for port in service.ports.iter().filter(|port| !never(port.protocol)) {
            let name = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() }.to_string();
            let routes = render::render_routes(policy, ClientClass::Grpc, &view, &name);
            let cluster = render::render_cluster(policy, ClientClass::Grpc, &view, &name, false, &[]);
            for degraded in routes.into_iter().chain(cluster).flat_map(|rendered| rendered.degraded) {
                let (origin, field) = degraded.place();
                found.push(degraded.diagnostic_at(&locate(origin, field)));
            }
        }
    }
}
