//! The cases of Gateway API's profiles for meshes, and how each is checked here: the one list that `mesh-control conformance
//! report` prints and docs/gateway-api.md shows. Nothing here was run by the official suite.

/// A case of a profile.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Its name in the official suite.
    pub name: &'static str,
    /// How it is checked here.
    pub check: Check,
}

/// How a case is checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// By a test of this project's own over sockets, the function of this name in
    /// `mesh-control/tests/requests/gateway_api/conformance.rs`.
    Test(&'static str),
    /// Not at all: why.
    None(&'static str),
}

const fn by(name: &'static str, test: &'static str) -> Case {
    Case { name, check: Check::Test(test) }
}

/// All cases, those of MESH-HTTP first.
pub const CASES: [Case; 25] = [
    by("MeshBasic", "mesh_basic"),
    by("MeshFrontend", "mesh_frontend"),
    by("MeshFrontendHostname", "mesh_frontend_hostname"),
    by("MeshPorts", "mesh_ports"),
    by("MeshTrafficSplit", "mesh_traffic_split"),
    by("MeshConsumerRoute", "mesh_consumer_route"),
    Case {
        name: "MeshClusterIPMatching",
        check: Check::None("clients of a library call services by their names, and an address of a cluster is none"),
    },
    by("MeshHTTPRouteMatching", "http_route_matching"),
    by("MeshHTTPRouteSimpleSameNamespace", "http_route_simple_same_namespace"),
    by("MeshHTTPRouteWeight", "http_route_weight"),
    by("MeshHTTPRouteRequestHeaderModifier", "http_route_request_header_modifier"),
    by("MeshHTTPRouteBackendRequestHeaderModifier", "http_route_backend_request_header_modifier"),
    by("MeshHTTPRouteRedirectHostAndStatus", "http_route_redirect_host_and_status"),
    by("MeshHTTPRoute303Redirect", "http_route_additional_redirect_statuses"),
    by("MeshHTTPRoute307Redirect", "http_route_additional_redirect_statuses"),
    by("MeshHTTPRoute308Redirect", "http_route_additional_redirect_statuses"),
    by("MeshHTTPRouteRedirectPath", "http_route_redirect_path"),
    by("MeshHTTPRouteRedirectPort", "http_route_redirect_port"),
    by("MeshHTTPRouteSchemeRedirect", "http_route_redirect_scheme"),
    by("MeshHTTPRouteRewritePath", "http_route_rewrite_path"),
    by("MeshHTTPRouteQueryParamMatching", "http_route_query_param_matching"),
    by("MeshHTTPRouteNamedRule", "http_route_named_rule"),
    by("MeshGRPCRouteWeight", "grpc_route_weight"),
    by("MeshGRPCRouteRequestHeaderModifier", "grpc_route_request_header_modifier"),
    by("MeshGRPCRouteRequestMirror", "grpc_route_request_mirror"),
];

impl Case {
    /// The profile that it is of.
    pub fn profile(&self) -> &'static str {
        if self.name.starts_with("MeshGRPCRoute") { "MESH-GRPC" } else { "MESH-HTTP" }
    }
}
