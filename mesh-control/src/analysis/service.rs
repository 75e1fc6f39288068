//! Services: endpoints that cannot be used, and what gRPC clients cannot do where gRPC is spoken.

use crate::catalog::ClientClass;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::policy::Policy;
use crate::policy::route::ClusterKey;
use crate::policy::view::View;
use crate::registry::protocol::Protocol;
use crate::registry::{Discovery, Service, ServiceId};
use crate::render;

pub(super) fn check(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for (id, service) in policy.services.iter() {
        check_grpc(policy, service, found);
        check_endpoints(policy, id, service, found);
    }
}

/// What a gRPC client of the service's own namespace cannot do, for ports that speak gRPC.
fn check_grpc(policy: &Policy, service: &Service, found: &mut Vec<Diagnostic>) {
    let view = View::of_namespace(&service.namespace);
    for port in service.ports.iter().filter(|port| port.protocol == Protocol::Grpc) {
        let key = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() };
        let name = key.to_string();
        let routes = render::render_routes(policy, ClientClass::Grpc, &view, &name);
        let cluster = render::render_cluster(policy, ClientClass::Grpc, &view, &name);
        for degraded in routes.into_iter().chain(cluster).flat_map(|rendered| rendered.degraded) {
            found.push(degraded.diagnostic());
        }
    }
}

/// Endpoints that are written down and cannot be used.
fn check_endpoints(policy: &Policy, id: ServiceId, service: &Service, found: &mut Vec<Diagnostic>) {
    for written in policy.services.written(id) {
        let mut say = |message: String| {
            let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(written.object.clone()).field("address"));
        };
        if service.discovery == Discovery::Registry && written.ip().is_none() {
            say(format!("a name, but {} takes addresses only; it is no endpoint", service.host));
            continue;
        }
        for port in service.ports.iter().filter(|port| written.is_of(port) && written.port_for(port).is_none()) {
            say(format!("it has no port for port {} of {}", port.number, service.host));
        }
    }
}
