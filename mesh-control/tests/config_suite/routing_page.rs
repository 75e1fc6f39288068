//! `docs/routing.md`: what becomes of each field that says which requests go where, and what a client sees. It is made of the
//! table of support, and of [`SHOWN`]; `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite routing_page` writes it.

use std::fmt::Write as _;

use mesh_control::config::support::ObjectKind::{
    self, BackendTlsPolicy, BackendTrafficPolicy, Gateway, GrpcRoute, HttpRoute, KubernetesGateway, ListenerSet,
    ReferenceGrant, ServiceEntry, Sidecar, TcpRoute, TlsRoute, VirtualService, WorkloadEntry, WorkloadGroup,
};
use mesh_control::config::support::{Row, Support, by_envoy, is_own_row, row};

use crate::resilience::{Tests, assert_page, reported};
use crate::resilience_groups::Test;
use crate::support::testdata;

const HEAD: &str = "# Routing and visibility, field by field

Made by `mesh-control/tests/config_suite/routing_page.rs`; `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite routing_page`
writes it anew.

\"Honoured (1)\" is shown by what a request, a connection or a client experiences, in test 1 of [the list](#tests). What is reported is
a finding of `mesh-control validate` and of the log, with line and column; `validate --for grpc` has what gRPC's own clients do
instead. An Envoy beside a workload does what the library does, but where it says otherwise; what annotations ask of one is in
[envoy.md](envoy.md). What each way into the mesh makes of timeouts, retries, faults and mirrors is in [resilience.md](resilience.md).
";

const KINDS: [(ObjectKind, &str); 15] = [
    (
        VirtualService,
        "Rules of `http` are for requests, those of `tls` and `tcp` for `mesh.connect` and `mesh.connect_by_name`; gRPC's clients \
         make no such connections. What rules do at gateways is in [gateways.md](gateways.md).",
    ),
    (
        Gateway,
        "Istio's. \"This library\" is its listeners, routes and certificates as they are told; an Envoy that is a gateway serves by \
         the same ([gateways.md](gateways.md)).",
    ),
    (ServiceEntry, "Who calls one of its `addresses` calls the service, at its own ports."),
    (WorkloadEntry, "Alone, or as `endpoints` of a ServiceEntry."),
    (
        WorkloadGroup,
        "Members register themselves; `template` says the rest of them, and `probe` how they are checked \
         ([workload-groups.md](workload-groups.md)).",
    ),
    (
        Sidecar,
        "One that selects a workload goes before that of its namespace, and that before the one of the root namespace; of several, the \
         oldest counts. A host that is not among `egress.hosts` is to a client as if nobody had described it: `outboundTrafficPolicy` \
         decides. Rules (VirtualServices) of namespaces that are not among them do not count. It is no firewall.",
    ),
    (
        HttpRoute,
        "For requests to Services and ServiceEntries, its parents, and for those that come in by Gateways; parents of any other kind \
         are reported, and the rules do not apply there. What goes before what is in [gateway-api.md](gateway-api.md).",
    ),
    (GrpcRoute, "The same for calls of gRPC."),
    (
        TlsRoute,
        "For connections that come in by Gateways, by the name that TLS asks for; parents of any other kind are reported.",
    ),
    (TcpRoute, "The same for all connections of a listener."),
    (
        ReferenceGrant,
        "Lets routes of other namespaces refer to Services of its own, and Gateways and ListenerSets to Secrets.",
    ),
    (
        KubernetesGateway,
        "Gateway API's `Gateway`, of the classes `istio` and `mesh-control`: the same as one of Istio's \
         ([gateways.md](gateways.md#gateway-api)).",
    ),
    (ListenerSet, "Listeners that are added to those of a Gateway of Gateway API, which says whose it takes."),
    (
        BackendTlsPolicy,
        "How Services are called by TLS, by workloads and at gateways, where no DestinationRule says how \
         ([gateway-api.md](gateway-api.md#tls-behind-it)).",
    ),
    (
        BackendTrafficPolicy,
        "How many retries Services get, where no DestinationRule says anything of that, and what their sessions stay by, where \
         their labels do not ([gateway-api.md](gateway-api.md#retries-and-sessions)).",
    ),
];

/// Values of which the table of support reports something, where it does not of every value.
const SAMPLES: &[(ObjectKind, &str, &str)] = &[
    (Gateway, "servers.port.protocol", "UDP"),
    (VirtualService, "tls.match.destinationSubnets", "[10.0.0.0/8]"),
    (VirtualService, "tcp.match.destinationSubnets", "[10.0.0.0/8]"),
    (ServiceEntry, "ports.protocol", "UDP"),
    (ServiceEntry, "endpoints.address", "unix:///a.sock"),
    (ServiceEntry, "endpoints.network", "a"),
    (WorkloadEntry, "address", "unix:///a.sock"),
    (WorkloadEntry, "network", "a"),
    (WorkloadGroup, "template.network", "a"),
    (WorkloadGroup, "probe.httpGet.path", "/a b"),
    (WorkloadGroup, "probe.httpGet.host", "a.example.com"),
    (WorkloadGroup, "probe.httpGet.scheme", "HTTPS"),
    (WorkloadGroup, "probe.httpGet.httpHeaders.name", "Connection"),
    (WorkloadGroup, "probe.httpGet.httpHeaders.value", "\"a\\nb\""),
    (WorkloadGroup, "probe.tcpSocket.host", "a.example.com"),
    (HttpRoute, "rules.retry.attempts", "5"),
    (KubernetesGateway, "listeners.allowedRoutes.namespaces.selector.matchExpressions.key", "team"),
    (KubernetesGateway, "listeners.protocol", "UDP"),
    (KubernetesGateway, "listeners.tls.options", "{example.com/a: b}"),
    (KubernetesGateway, "listeners.allowedRoutes.namespaces.selector.matchLabels", "{a: b}"),
    (KubernetesGateway, "allowedListeners.namespaces.selector.matchExpressions.key", "team"),
    (KubernetesGateway, "allowedListeners.namespaces.selector.matchLabels", "{a: b}"),
    (ListenerSet, "listeners.allowedRoutes.namespaces.selector.matchExpressions.key", "team"),
    (ListenerSet, "listeners.allowedRoutes.namespaces.selector.matchLabels", "{a: b}"),
    (ListenerSet, "listeners.protocol", "UDP"),
    (BackendTlsPolicy, "options", "{example.com/a: b}"),
    (BackendTlsPolicy, "validation.wellKnownCACertificates", "Company"),
    (ListenerSet, "listeners.tls.options", "{example.com/a: b}"),
    (KubernetesGateway, "addresses.type", "IPAddress"),
    (KubernetesGateway, "tls.frontend.default.validation.mode", "AllowInsecureFallback"),
    (KubernetesGateway, "tls.frontend.perPort.tls.validation.mode", "AllowInsecureFallback"),
];

const TABLE: Test = (
    "mesh-control/tests/requests/table.rs",
    "every_enforced_field_of_a_virtual_service_makes_its_difference_to_a_request",
);
const CONNECTIONS: Test = (
    "mesh-control/tests/requests/connections.rs",
    "every_enforced_field_of_a_rule_on_connections_makes_its_difference_to_one",
);
const MIRRORS: &str = "mesh-control/tests/requests/mirroring.rs";
const OBJECTS: &str = "mesh-control/tests/requests/objects.rs";
const BALANCING: &str = "mesh-control/tests/requests/balancing.rs";
const SEEN: Test = ("mesh-control/tests/requests/sidecars.rs", "a_client_sees_the_hosts_of_the_sidecar_that_is_for_it");
/// What clients are told changes with the field.
const TOLD: Test =
    ("mesh-control/tests/config_suite/effects.rs", "every_field_that_is_enforced_changes_what_the_library_is_told");
const SUBSET: Test = ("mesh-control/tests/requests/calling.rs", "a_subset_is_where_a_rule_for_this_client_defines_it");
const TWO_ENTRIES: Test =
    (OBJECTS, "of_two_entries_for_a_host_the_one_of_the_clients_namespace_counts_else_the_oldest");
const IN_CAPITALS: Test = (OBJECTS, "a_host_is_the_same_in_capitals_and_with_a_dot_at_its_end_wherever_it_is_written");
const WHO_SEES: Test =
    (OBJECTS, "who_sees_what_says_nothing_of_it_and_what_is_called_that_nothing_describes_is_up_to_the_mesh");
const NEAR: Test = (BALANCING, "near_endpoints_go_first_where_outliers_are_detected");
const NAMES: Test = (
    "mesh-control/tests/config_suite/mutual_tls.rs",
    "an_endpoint_that_is_written_down_and_speaks_mutual_tls_is_not_called_in_plaintext",
);
const GROUP: Test =
    (OBJECTS_OF_CONFIG, "a_member_of_a_wrong_group_does_not_serve_where_its_labels_tell_what_guards_it");
const HEALTH_CHECKS: &str = "mesh-control/tests/ads_server/health_checks.rs";
const ASKED: Test = (HEALTH_CHECKS, "a_member_gets_requests_once_whoever_is_beside_it_reports_that_it_is_well");
const WELL: Test = (HEALTH_CHECKS, "a_member_that_uses_the_library_is_asked_by_it");
const GATEWAYS: &str = "mesh-control/tests/config_suite/gateways.rs";
const CERTIFICATES: Test =
    (GATEWAYS, "a_certificate_is_told_to_the_gateway_of_its_namespace_and_a_missing_one_closes_its_own_hosts_alone");
const KUBERNETES: &str = "mesh-control/tests/config_suite/kubernetes_gateways.rs";
const LISTENERS: Test = (KUBERNETES, "routes_come_to_the_listeners_that_let_them_in_for_the_hosts_that_both_have");
const CERTIFICATES_BY_GRANT: Test = (
    KUBERNETES,
    "a_certificate_of_another_namespace_is_shown_where_a_grant_says_so_and_what_is_missing_closes_its_own_hosts_alone",
);
const LISTENER_SETS: &str = "mesh-control/tests/config_suite/listener_sets.rs";
const ADDED: Test = (LISTENER_SETS, "listeners_of_a_listener_set_are_added_where_the_gateway_lets_its_namespace_in");
const ADDED_CERTIFICATES: Test =
    (LISTENER_SETS, "a_listener_set_shows_certificates_of_its_own_namespace_and_of_others_by_grants_to_its_own_kind");
const ADDED_AND_SERVED: Test =
    ("mesh-tower/tests/sidecar/gateway_api.rs", "a_listener_set_adds_a_host_with_its_own_certificate_to_a_gateway");
const BACKEND: Test = (
    "mesh-control/tests/config_suite/backend_tls.rs",
    "a_service_is_called_by_tls_as_the_policy_for_its_port_says_unless_a_rule_does",
);
const BACKEND_BY_AGE: Test = (
    "mesh-control/tests/config_suite/backend_tls.rs",
    "of_two_policies_for_a_target_the_older_counts_and_each_says_what_became_of_it",
);
const BACKEND_AND_CALLED: Test = (
    "mesh-tower/tests/sidecar/gateway_api.rs",
    "a_backend_is_called_by_tls_where_a_policy_says_so_and_not_at_all_where_that_cannot_be",
);
const RETRIED: Test = (
    "mesh-control/tests/config_suite/backend_traffic.rs",
    "a_service_gets_as_many_retries_as_the_policy_says_unless_a_rule_does",
);
const STICKY: Test = (
    "mesh-control/tests/config_suite/backend_traffic.rs",
    "sessions_stay_by_what_the_policy_names_unless_the_service_does",
);
const TRAFFIC_BY_AGE: Test = (
    "mesh-control/tests/config_suite/backend_traffic.rs",
    "of_two_policies_for_a_service_the_older_counts_and_what_has_no_effect_is_told",
);
const CONNECTED: Test =
    ("mesh-tower/tests/sidecar/gateway_api.rs", "connections_come_in_by_tcp_and_by_the_name_that_tls_asks_for");
const SERVED: Test = (
    "mesh-tower/tests/sidecar/gateway_api.rs",
    "a_gateway_of_gateway_api_serves_http_and_https_by_its_routes_and_follows_them",
);
const OBJECTS_OF_CONFIG: &str = "mesh-control/tests/config_suite/objects.rs";

const OBJECTS_OF_GATEWAY_API: &str = "mesh-control/tests/requests/gateway_api/grants.rs";
const RULES: &str = "mesh-control/tests/requests/gateway_api/rules.rs";
const CONFORMANCE: &str = "mesh-control/tests/requests/gateway_api/conformance.rs";
const CALLS: &str = "mesh-control/tests/requests/gateway_api/grpc.rs";
/// Every field with a usual, an empty, an extreme and a wrong value, and what requests experience.
const CORPUS: Test =
    ("examples/tests/corpus/main.rs", "what_validate_passes_is_accepted_and_does_what_is_written_down");
const GRANT: Test = (OBJECTS_OF_GATEWAY_API, "a_backend_of_another_namespace_is_reached_where_a_grant_there_says_so");
const PARENTS: Test = (OBJECTS_OF_GATEWAY_API, "a_route_is_for_the_port_of_its_parent_by_number_or_name");
const ORDER: Test = (RULES, "conditions_have_an_order_of_their_own_whatever_the_order_of_the_rules");
const MODIFIERS: Test = (CONFORMANCE, "http_route_request_header_modifier");

/// Which tests show fields, by what these begin with: the longest beginning counts.
const SHOWN: &[(ObjectKind, &str, &[Test])] = &[
    (VirtualService, "", &[TABLE]),
    (
        VirtualService,
        "http.corsPolicy",
        &[
            TABLE,
            (
                "mesh-control/tests/requests/cors.rs",
                "a_browser_is_told_who_may_ask_and_a_server_is_asked_only_by_who_may",
            ),
        ],
    ),
    (
        VirtualService,
        "http.corsPolicy.unmatchedPreflights",
        &[TABLE, ("mesh-control/tests/requests/cors.rs", "preflights_of_others_reach_the_server_or_not_as_is_written")],
    ),
    (
        VirtualService,
        "http.mirror",
        &[
            (MIRRORS, "a_copy_goes_to_the_subset_and_the_port_that_are_written"),
            (MIRRORS, "as_many_requests_are_copied_as_is_written"),
        ],
    ),
    (
        VirtualService,
        "http.mirrors",
        &[
            (MIRRORS, "a_copy_goes_to_the_subset_and_the_port_that_are_written"),
            (MIRRORS, "as_many_requests_are_copied_as_is_written"),
        ],
    ),
    (VirtualService, "http.mirrorPercent", &[(MIRRORS, "as_many_requests_are_copied_as_is_written")]),
    (VirtualService, "http.mirrorPercentage", &[(MIRRORS, "as_many_requests_are_copied_as_is_written")]),
    (
        VirtualService,
        "tls",
        &[
            CONNECTIONS,
            (
                "mesh-control/tests/requests/connections.rs",
                "a_name_of_a_server_finds_the_rule_that_is_for_it_most_closely",
            ),
        ],
    ),
    (VirtualService, "tcp", &[CONNECTIONS]),
    (Gateway, "", &[TOLD]),
    (
        Gateway,
        "servers.hosts",
        &[TOLD, (GATEWAYS, "gateways_are_merged_as_istio_merges_them_and_what_is_left_out_is_told")],
    ),
    (Gateway, "servers.tls.httpsRedirect", &[TOLD, (GATEWAYS, "plaintext_is_redirected_and_tls_passes_by_name")]),
    (Gateway, "servers.tls.mode", &[TOLD, (GATEWAYS, "plaintext_is_redirected_and_tls_passes_by_name")]),
    (Gateway, "servers.tls.credentialName", &[TOLD, CERTIFICATES]),
    (VirtualService, "gateways", &[TABLE, (GATEWAYS, "istios_own_bookinfo_gateway_drives_a_gateway_unchanged")]),
    (ServiceEntry, "", &[TOLD]),
    (ServiceEntry, "hosts", &[TWO_ENTRIES, IN_CAPITALS]),
    (ServiceEntry, "exportTo", &[WHO_SEES]),
    (
        ServiceEntry,
        "addresses",
        &[("mesh-control/tests/requests/connections.rs", "who_asks_for_an_address_of_a_service_reaches_the_service")],
    ),
    (ServiceEntry, "ports.number", &[TABLE]),
    (ServiceEntry, "ports.name", &[TABLE]),
    (ServiceEntry, "resolution", &[TWO_ENTRIES]),
    (ServiceEntry, "endpoints.address", &[TWO_ENTRIES]),
    (ServiceEntry, "endpoints.ports", &[TWO_ENTRIES, TABLE]),
    (ServiceEntry, "endpoints.labels", &[SUBSET]),
    (ServiceEntry, "endpoints.locality", &[NEAR]),
    (WorkloadEntry, "", &[TOLD]),
    (WorkloadGroup, "", &[TOLD]),
    (WorkloadGroup, "metadata.labels", &[TOLD, GROUP]),
    (WorkloadGroup, "probe", &[TOLD, ASKED, WELL]),
    (Sidecar, "", &[SEEN]),
    (
        Sidecar,
        "outboundTrafficPolicy",
        &[("mesh-control/tests/requests/sidecars.rs", "what_is_not_seen_is_as_if_nobody_had_described_it")],
    ),
    (HttpRoute, "", &[CORPUS]),
    (HttpRoute, "parentRefs", &[CORPUS, PARENTS]),
    (HttpRoute, "rules.matches", &[CORPUS, ORDER, (CONFORMANCE, "http_route_matching")]),
    (HttpRoute, "rules.matches.queryParams", &[CORPUS, (CONFORMANCE, "http_route_query_param_matching")]),
    (HttpRoute, "rules.backendRefs", &[CORPUS, (CONFORMANCE, "http_route_weight")]),
    (HttpRoute, "rules.backendRefs.namespace", &[CORPUS, GRANT]),
    (HttpRoute, "rules.backendRefs.filters", &[CORPUS, (CONFORMANCE, "http_route_backend_request_header_modifier")]),
    (HttpRoute, "rules.filters.requestHeaderModifier", &[CORPUS, MODIFIERS]),
    (
        HttpRoute,
        "rules.filters.responseHeaderModifier",
        &[CORPUS, (RULES, "hosts_are_rewritten_and_responses_get_their_headers")],
    ),
    (
        HttpRoute,
        "rules.filters.requestMirror",
        &[CORPUS, (RULES, "copies_go_where_a_mirror_says_and_one_that_is_none_is_left_out")],
    ),
    (HttpRoute, "rules.filters.requestRedirect", &[CORPUS, (CONFORMANCE, "http_route_redirect_scheme")]),
    (
        HttpRoute,
        "rules.filters.urlRewrite",
        &[CORPUS, (RULES, "what_takes_the_place_of_a_prefix_is_joined_with_one_slash")],
    ),
    (HttpRoute, "rules.filters.cors", &[CORPUS, (RULES, "pages_of_other_origins_are_told_what_they_may")]),
    (HttpRoute, "rules.timeouts", &[CORPUS, (RULES, "a_request_takes_no_longer_than_its_route_lets_it")]),
    (HttpRoute, "rules.retry", &[CORPUS, (RULES, "what_is_tried_again_is_what_the_route_says")]),
    (GrpcRoute, "", &[CORPUS, (CALLS, "calls_are_told_apart_by_service_method_and_headers")]),
    (GrpcRoute, "rules.backendRefs", &[CORPUS, (CONFORMANCE, "grpc_route_weight")]),
    (GrpcRoute, "rules.filters", &[CORPUS, (CONFORMANCE, "grpc_route_request_header_modifier")]),
    (GrpcRoute, "rules.filters.requestMirror", &[CORPUS, (CONFORMANCE, "grpc_route_request_mirror")]),
    (ReferenceGrant, "", &[CORPUS, GRANT]),
    (HttpRoute, "hostnames", &[LISTENERS]),
    (GrpcRoute, "hostnames", &[LISTENERS]),
    (TlsRoute, "", &[TOLD, CONNECTED]),
    (TcpRoute, "", &[TOLD, CONNECTED]),
    (KubernetesGateway, "", &[TOLD]),
    (KubernetesGateway, "listeners", &[TOLD, LISTENERS, SERVED]),
    (KubernetesGateway, "listeners.tls", &[TOLD, CERTIFICATES_BY_GRANT, SERVED]),
    (
        KubernetesGateway,
        "addresses",
        &[TOLD, (KUBERNETES, "a_gateway_with_an_address_is_the_workloads_of_that_service_wherever_they_are")],
    ),
    (KubernetesGateway, "tls", &[TOLD, (KUBERNETES, "clients_show_a_certificate_where_the_frontend_says_so")]),
    (KubernetesGateway, "allowedListeners", &[TOLD, ADDED]),
    (ListenerSet, "", &[TOLD, ADDED]),
    (BackendTlsPolicy, "", &[TOLD, BACKEND, BACKEND_AND_CALLED]),
    (BackendTlsPolicy, "targetRefs", &[TOLD, BACKEND_BY_AGE]),
    (BackendTrafficPolicy, "targetRefs", &[TOLD, TRAFFIC_BY_AGE]),
    (BackendTrafficPolicy, "retryConstraint", &[TOLD, RETRIED]),
    (BackendTrafficPolicy, "sessionPersistence", &[TOLD, STICKY]),
    (ListenerSet, "listeners", &[TOLD, ADDED, ADDED_AND_SERVED]),
    (ListenerSet, "listeners.tls", &[TOLD, ADDED_CERTIFICATES, ADDED_AND_SERVED]),
];

/// With those of the other page.
fn samples() -> Vec<(ObjectKind, &'static str, &'static str)> {
    [SAMPLES, crate::resilience::SAMPLES].concat()
}

/// Where no certificates are issued nobody is told of these.
const BY_IDENTITY: [&str; 4] = ["serviceAccount", "location", "subjectAltNames", "endpoints.serviceAccount"];

fn shown(kind: ObjectKind, field: &str) -> &'static [Test] {
    let begins = |prefix: &str| {
        prefix.is_empty() || field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if !matches!(kind, VirtualService | Gateway) && BY_IDENTITY.iter().any(|end| field.ends_with(end)) {
        return &[NAMES];
    }
    let of_kind = SHOWN.iter().filter(|(of, prefix, _)| *of == kind && begins(prefix));
    of_kind.max_by_key(|(_, prefix, _)| prefix.len()).map(|(.., tests)| *tests).unwrap_or_default()
}

fn library(kind: ObjectKind, field: &str, row: &Row, tests: &mut Tests) -> String {
    let what = format!("{} {field}", kind.name());
    match row.library {
        Support::Enforced => format!("honoured {}", tests.numbers(&what, shown(kind, field))),
        Support::NotYet(reason) => format!("reported: {reason}"),
        Support::Partly(judge) => format!(
            "honoured {}; reported: {}",
            tests.numbers(&what, shown(kind, field)),
            reported(kind, field, &samples(), judge)
        ),
        Support::Indifferent | Support::MostlyIndifferent(_) => {
            "noted: it says something of a proxy or a cluster".to_owned()
        }
        ref other => panic!("{what}: {other:?}"),
    }
}

fn grpc(kind: ObjectKind, field: &str, row: &Row) -> String {
    match (row.grpc, row.library) {
        (Support::Enforced, _) => "the same".to_owned(),
        (Support::NotYet(_), Support::NotYet(_)) => "the same".to_owned(),
        (Support::NotYet(instead), _) => format!("degraded: {instead}"),
        (Support::Partly(judge), Support::Partly(own)) if std::ptr::fn_addr_eq(judge, own) => "the same".to_owned(),
        (Support::Partly(judge), _) => format!("in part: {}", reported(kind, field, &samples(), judge)),
        (Support::Indifferent | Support::MostlyIndifferent(_), _) => "they have no need of it".to_owned(),
        (ref other, _) => panic!("{} {field}: {other:?}", kind.name()),
    }
}

fn page() -> String {
    let (mut page, mut tests) = (HEAD.to_owned(), Tests::default());
    for (kind, about) in KINDS {
        _ = write!(
            page,
            "\n## {}\n\n{about}\n\n| field | this library | an Envoy beside a workload | gRPC's own clients |\n\
             | --- | --- | --- | --- |\n",
            kind.title()
        );
        let text = std::fs::read_to_string(testdata("fields").join(format!("{}.txt", kind.title()))).unwrap();
        let mut fields: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        fields.sort_unstable();
        for field in fields {
            let row = row(kind, field).unwrap_or_else(|| panic!("{} {field} is in no column", kind.name()));
            let is_told = is_own_row(row, field) || !matches!(row.library, Support::Enforced);
            assert!(is_told, "{} {field} hides behind {}", kind.name(), row.path);
            let (library, grpc) = (library(kind, field, row, &mut tests), grpc(kind, field, row));
            let envoy = by_envoy(kind, field).unwrap_or("the same");
            _ = writeln!(page, "| `{field}` | {library} | {envoy} | {grpc} |");
        }
    }
    page + &tests.list()
}

#[test]
fn the_page_on_routing_has_every_field_and_says_what_becomes_of_it() {
    assert_page("docs/routing.md", &page(), "routing_page");
}
