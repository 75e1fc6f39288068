//! The services that the control plane knows, as the YAML that a user would write, and their names.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// The port of every service.
pub(crate) const PORT: u16 = 9080;

/// The host of a service.
pub(crate) fn host(service: usize) -> String {
    format!("service-{service:04}.shop.example")
}

/// The address of an endpoint of a service: this machine answers at all of them.
pub(crate) fn address(service: usize, endpoint: usize) -> Ipv4Addr {
    let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, octet(1 + service / 250), octet(service % 250), octet(1 + endpoint))
}

/// So many services with so many endpoints each, which listen on `port`.
pub(crate) fn services(services: usize, endpoints: usize, port: u16) -> String {
    (0..services).map(|number| service(number, endpoints, port)).collect()
}

/// One of them.
pub(crate) fn service(service: usize, endpoints: usize, port: u16) -> String {
    let mut yaml = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: service-{service:04}, namespace: shop}}\n\
         spec:\n  hosts: [{}]\n  ports: [{{name: http, number: {PORT}, protocol: HTTP}}]\n  \
         resolution: STATIC\n  location: MESH_INTERNAL\n  endpoints:\n",
        host(service)
    );
    for endpoint in 0..endpoints {
        _ = writeln!(yaml, "  - {{address: {}, ports: {{http: {port}}}}}", address(service, endpoint));
    }
    yaml
}

/// A service whose workloads register themselves: those of the label `app: moving-0`, if that is its number.
pub(crate) fn moving(number: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: moving-{number}, namespace: shop}}\n\
         spec: {{selector: {{app: moving-{number}}}, ports: [{{name: http, port: {PORT}}}]}}\n"
    )
}

/// Its host.
pub(crate) fn moving_host(number: usize) -> String {
    format!("moving-{number}.shop.svc.cluster.local")
}
