//! The objects that a user would write, which both edges are told.

use std::fmt::Write;

use serde_json::json;

use crate::door::Certificate;

/// The namespace of the gateways, and their label beside the one that says which of them it is.
pub(crate) const EDGE: &str = "istio-system";
pub(crate) const LABEL: &str = "istio=ingressgateway";
/// Which of them it is.
pub(crate) const PLANE: &str = "plane";
/// The host that a gateway shows a certificate for, and the one in plaintext.
pub(crate) const SECURED: &str = "secured.example";
pub(crate) const OPEN: &str = "open.example";

/// A Secret that Gateways name.
pub(crate) fn secret(name: &str, certificate: &Certificate) -> String {
    let data = json!({ "tls.crt": certificate.pem, "tls.key": certificate.key });
    let metadata = json!({ "name": name, "namespace": EDGE });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "stringData": data,
    });
    secret.to_string()
}

/// Where one of the gateways listens for the ports 80 and 443 of a Gateway.
pub(crate) fn listens(plane: &str, http: u16, https: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {plane}, namespace: {EDGE}}}\n\
         spec:\n  selector: {{{PLANE}: {plane}}}\n  ports:\n  \
         - {{name: http, port: 80, targetPort: {http}}}\n  - {{name: https, port: 443, targetPort: {https}}}\n"
    )
}

/// A service of the mesh: workloads of this label, at this port of its own, and at theirs by name, if it has one.
pub(crate) fn service(name: &str, port: u16, target: Option<&str>) -> String {
    let target = target.map(|target| format!(", targetPort: {target}")).unwrap_or_default();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}{target}}}]}}\n"
    )
}

/// A server outside of the mesh, in plaintext.
pub(crate) fn outside(port: u16) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: outside, namespace: bench}}\n\
         spec:\n  hosts: [{OPEN}]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP}}]\n  \
         endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]\n"
    )
}

/// A Gateway with one server in plaintext, for [`OPEN`], or one by the certificate of [`secret`] for [`SECURED`].
pub(crate) fn gateway(is_secured: bool) -> String {
    let server = match is_secured {
        true => format!(
            "{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [{SECURED}], \
             tls: {{mode: SIMPLE, credentialName: secured}}}}"
        ),
        false => format!("{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{OPEN}]}}"),
    };
    format!("{GATEWAY}  - {server}\n")
}

const GATEWAY: &str = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
    metadata: {name: edge, namespace: bench}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n";

/// Where a host's requests go, and what its answers have in [`REVISION`], if anything.
pub(crate) fn route(name: &str, host: &str, to: (&str, u16), revision: Option<usize>) -> String {
    let (service, port) = to;
    let revision = revision
        .map(|revision| format!("headers: {{response: {{set: {{{REVISION}: \"{revision}\"}}}}}}, "))
        .unwrap_or_default();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec:\n  hosts: [{host}]\n  gateways: [edge]\n  \
         http: [{{{revision}route: [{{destination: {{host: {service}, port: {{number: {port}}}}}}}]}}]\n"
    )
}

/// What tells by which version of its route a request was answered.
pub(crate) const REVISION: &str = "x-revision";

/// How many hosts a gateway has in the case `hosts`, and how many of them share a server with its certificate, and a file with their routes.
pub(crate) const HOSTS: usize = 10_000;
pub(crate) const OF_A_SERVER: usize = 1_000;
pub(crate) const OF_A_FILE: usize = 100;

/// One of them.
pub(crate) fn host(number: usize) -> String {
    format!("host-{number:05}.{}", domain(number / OF_A_SERVER))
}

/// What the hosts of a server end with.
pub(crate) fn domain(server: usize) -> String {
    format!("server-{server}.example")
}

/// The name of its Secret.
pub(crate) fn credential(server: usize) -> String {
    format!("server-{server}")
}

/// A Gateway that has them all.
pub(crate) fn many_hosts() -> String {
    let mut yaml = GATEWAY.to_owned();
    for server in 0..HOSTS / OF_A_SERVER {
        let hosts: Vec<String> = (0..OF_A_SERVER).map(|number| host(server * OF_A_SERVER + number)).collect();
        _ = writeln!(
            yaml,
            "  - port: {{number: 443, name: https-{server}, protocol: HTTPS}}\n    \
             tls: {{mode: SIMPLE, credentialName: {}}}\n    hosts: [{}]",
            credential(server),
            hosts.join(", ")
        );
    }
    yaml
}

/// The routes of one file: those of the hosts from `first` on, of which that one is of a revision of its own.
pub(crate) fn many_routes(first: usize, to: (&str, u16), revision: usize) -> String {
    let of_host = |number: usize| if number == first { revision } else { 0 };
    let numbers = first..first + OF_A_FILE;
    numbers.map(|it| route(&format!("host-{it:05}"), &host(it), to, Some(of_host(it)))).collect()
}
