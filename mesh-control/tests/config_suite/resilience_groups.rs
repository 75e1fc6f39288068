//! What each way into the mesh does with the fields that are honoured, and the tests that show it.

use Face::{No, Partly, Shown};
use mesh_control::config::support::ObjectKind::{self, DestinationRule, MeshConfig, VirtualService};

/// Its file, and its name.
pub(crate) type Test = (&'static str, &'static str);

/// What a way into the mesh does with a field.
#[derive(Clone, Copy)]
pub(crate) enum Face {
    /// It honours it: these tests show it by what a request, a server or a connection experiences.
    Shown(&'static [Test]),
    /// The same, and what of it they show, or how it honours it.
    Partly(&'static str, &'static [Test]),
    /// Why not.
    No(&'static str),
}

/// Fields of which the same is said.
pub(crate) struct Group {
    pub(crate) kind: ObjectKind,
    pub(crate) fields: &'static [&'static str],
    pub(crate) client: Face,
    pub(crate) layer: Face,
    pub(crate) connector: Face,
}

const fn group(kind: ObjectKind, fields: &'static [&'static str], client: Face, layer: Face, connector: Face) -> Group {
    Group { kind, fields, client, layer, connector }
}

const BALANCING: &str = "mesh-control/tests/requests/balancing.rs";
const BREAKERS: &str = "mesh-control/tests/requests/breakers.rs";
const CALLING: &str = "mesh-control/tests/requests/calling.rs";
const FACES: &str = "mesh-control/tests/requests/faces.rs";
const MIRRORING: &str = "mesh-control/tests/requests/mirroring.rs";
const OUTLIERS: &str = "mesh-control/tests/requests/outliers.rs";
const RETRIES: &str = "mesh-control/tests/requests/retries.rs";
const CONNECTOR: &str = "mesh-tower/tests/client/connector.rs";
const EDGES: &str = "mesh-tower/tests/client/edges.rs";
const LIMITS: &str = "mesh-tower/tests/retries/limits.rs";
const POLICIES: &str = "mesh-tower/tests/retries/policies.rs";
const EGRESS: &str = "mesh-tower/tests/security/egress.rs";
const TLS_FILES: &str = "mesh-tower/tests/security/tls_files.rs";

const TABLE: Test = (
    "mesh-control/tests/requests/table.rs",
    "every_enforced_field_of_a_virtual_service_makes_its_difference_to_a_request",
);
const TOLD: Test = (CONNECTOR, "what_a_connector_cannot_honour_is_said_once_for_each_target");
const UP_TO_THE_MESH: Test = (
    "mesh-control/tests/requests/objects.rs",
    "who_sees_what_says_nothing_of_it_and_what_is_called_that_nothing_describes_is_up_to_the_mesh",
);

const CLIENTS_OWN: Face = No("connections are those of the client below");
const CLIENTS_ABOVE: Face = No("the client above it has its own");
const NO_REQUESTS: Face = No("it sees no requests");
const SAID: Face = Partly("no, and says so", &[TOLD]);
const NO_TLS: Face = Partly(
    "no: calls fail, since the client below speaks no TLS of the mesh",
    &[("mesh-tower/tests/security/mtls.rs", "a_client_that_was_told_of_tls_never_falls_back_to_plaintext")],
);
const SUBSET: Test = (CALLING, "a_subset_is_where_a_rule_for_this_client_defines_it");
const PORT_AND_SUBSET: Test = (CALLING, "a_policy_is_for_its_port_and_its_subset");
const COOKIE: Test = (BALANCING, "who_has_no_cookie_is_given_one_that_leads_back");
const NEAR: Test = (BALANCING, "near_endpoints_go_first_where_outliers_are_detected");
const SHARES: Test = (BALANCING, "localities_have_the_shares_that_are_written");
const FAILS_OVER: Test = (BALANCING, "a_region_fails_over_to_the_one_that_is_named");
const TAKES_TURNS: Face = Partly(
    "yes; that turns are taken or not, and not what tells `RANDOM` from `LEAST_REQUEST`",
    &[(BALANCING, "round_robin_takes_turns_and_the_others_do_not")],
);
const PREFERS_ZONE: Test = (BALANCING, "requests_stay_in_the_own_zone_as_far_as_it_can_take_them");
const BEYOND_ZONES: Test = (BALANCING, "beyond_zones_regions_and_labels_rank_as_they_are_written");
const NO_LIFE: Test = (BALANCING, "a_cookie_without_a_life_is_looked_at_and_not_made");
const OF_SOURCE: Test = (BALANCING, "requests_of_one_process_go_to_one_endpoint_where_its_address_is_hashed");
const OF_QUERY: Test = (BALANCING, "requests_with_the_same_query_parameter_go_to_the_same_endpoint");
const STICKY: Test = (BALANCING, "requests_with_the_same_header_go_to_the_same_endpoint");
const MESH_SAYS_HOW: Test = (CALLING, "the_mesh_says_how_services_are_called_where_a_rule_does_not");
const SAME_BLOCK: Test =
    ("mesh-control/tests/config_suite/mesh_config.rs", "a_block_of_the_mesh_is_what_a_rule_that_says_the_same_is");
const AS_OF_A_RULE: Face = Partly("yes, as of a rule that says the same", &[SAME_BLOCK, MESH_SAYS_HOW]);
const LIKE_A_RULE: Face = Partly("as of a rule that says the same", &[SAME_BLOCK]);
const WARMED_UP: Face = Partly(
    "yes: that a new one takes less at first, and how its share grows in a test that sets the clock of the policy, of which all ways have one",
    &[
        (BALANCING, "an_endpoint_that_is_added_grows_into_its_share"),
        (BALANCING, "new_endpoints_are_warmed_up_with_round_robin_and_least_request"),
        ("mesh-core/src/balance/warmup.rs", "a_new_endpoint_grows_into_its_share"),
    ],
);
const OWN_PORT: Test = (FACES, "a_port_has_its_own_policy");
const UNDER_WAY: Test = (FACES, "as_many_retries_are_under_way_as_a_limit_or_a_budget_lets");
const EJECTS: Test = (FACES, "of_a_connector_failures_to_connect_eject_as_they_are_configured");
const TOO_FEW_LEFT: Test = (FACES, "a_connector_uses_those_that_fail_where_too_few_are_healthy");
const DIALS_AGAIN: Test = (FACES, "a_connector_tries_again_as_the_policy_has_it");
const GROWS_OLD: Test = (FACES, "a_connection_of_a_connector_ends_when_it_is_old");
const PASSED_BY: Face = Partly(
    "of no effect: a retry passes by whom no connection could be made to, whatever this says",
    &[(RETRIES, "who_is_found_by_a_hash_and_cannot_be_reached_is_not_asked_again")],
);
const ARE_PROBED: Face = Partly("yes; that there are probes, and not how many and when", &[PROBED]);
const PROVES: Test = (TLS_FILES, "a_server_that_does_not_prove_who_it_is_gets_no_request_and_the_reason_is_told");
const REVOKED: Test = (TLS_FILES, "m18_with_lists_of_revoked_certificates_each_authority_of_a_chain_needs_one");
const AUTOMATIC_OFF: Test = (
    "mesh-tower/tests/security/identities.rs",
    "where_the_mesh_turns_automatic_mtls_off_calls_are_plaintext_unless_a_rule_says_how",
);
const MESH_LOCALITY: Test = (BALANCING, "the_mesh_says_it_where_no_rule_does");
const ENDS: Test = (BREAKERS, "connections_end_when_they_are_old_or_idle_for_too_long");
const WAIT: Test = (BREAKERS, "requests_wait_for_one_of_the_connections_that_there_may_be_as_many_as_may_wait");
const SILENT: Test = (BREAKERS, "a_connection_is_given_up_when_it_takes_longer_than_it_may");
const PINGS: Test = (BREAKERS, "a_server_that_answers_no_pings_is_given_up");
const PROBED: Test = (BREAKERS, "idle_connections_are_probed_where_that_is_wanted");
const EACH_FAILURE: Test = (OUTLIERS, "each_kind_of_failure_counts_as_it_is_configured");
const ENDS_AT: Test = (OUTLIERS, "an_ejection_ends_with_the_interval_in_which_its_time_is_over");
const MOST_OUT: Test = (OUTLIERS, "no_more_endpoints_are_out_than_may_be");
const TOO_FEW: Test = (OUTLIERS, "where_too_few_are_healthy_those_that_fail_are_used_too");
const OUT: Test = (OUTLIERS, "an_endpoint_that_fails_so_often_in_a_row_gets_no_requests_until_its_time_is_over");
const OWN_CLIENT: Test = (OUTLIERS, "answers_count_that_a_client_of_the_applications_own_has");
const BUDGET: Test = (LIMITS, "a_budget_allows_a_share_of_the_requests_under_way_and_some_in_any_case");
const RULE_SAYS_HOW: Test =
    ("mesh-tower/tests/security/identities.rs", "a_destination_rule_says_how_to_call_whatever_the_server_wants");
const ANOTHER_NAME: Test = (TLS_FILES, "a_server_may_prove_another_name_where_a_rule_says_so");
const MUTUAL: Test = (TLS_FILES, "a_client_shows_its_certificate_where_the_mode_is_mutual_and_only_there");
const BY_BYTES: Test = ("mesh-tower/tests/security/mtls.rs", "both_sides_know_each_other_over_http1_and_http2");
const THROUGH_PROXY: Test =
    (EGRESS, "a_connection_goes_through_a_proxy_to_where_its_tunnel_leads_and_nothing_passes_where_it_refuses");
const BY_SECRET: Test =
    (EGRESS, "a_client_shows_the_certificate_of_a_secret_and_trusts_whom_that_says_where_a_rule_is_for_it");
const REQUESTS_PASS: Face = No("tunnels are for connections whose bytes are not HTTP, as in Istio");
const OF_MESH: Test =
    ("mesh-control/tests/config_suite/mesh_config.rs", "connections_take_as_long_as_the_mesh_says_where_no_rule_does");
const MESH_RETRIES: Test = (POLICIES, "the_meshs_own_default_holds_where_a_rule_says_nothing");
const LAYER_RETRIES: Test = (EDGES, "the_layer_tries_another_endpoint_where_one_refuses_and_says_what_failed");
const COPY_GOES: Test = (MIRRORING, "a_copy_goes_to_the_subset_and_the_port_that_are_written");
const COPIES: Test = (MIRRORING, "as_many_requests_are_copied_as_is_written");
const LAYER_COPIES: Test = (MIRRORING, "requests_of_the_applications_own_client_are_copied_too");
const BUDGET_OVER: Test = (RETRIES, "a_budget_with_a_time_has_requests_count_that_are_over");
const MESH_TIMES: Test = (RETRIES, "times_of_the_meshs_own_policy_hold_where_a_rule_says_nothing");
const ASKED_AGAIN: Test = (RETRIES, "who_is_found_by_a_hash_is_asked_again_unless_a_rule_wants_somebody_else");
const ELSEWHERE: Test = (RETRIES, "every_second_retry_goes_to_a_priority_that_was_not_tried");
const COMPARED: Test = ("interop/hashing.py", "compare");

pub(crate) const GROUPS: &[Group] = &[
    // Whose rule it is, and for whom.
    group(
        DestinationRule,
        &["host", "exportTo", "workloadSelector.matchLabels", "subsets.name", "subsets.labels"],
        Shown(&[SUBSET]),
        Shown(&[SUBSET]),
        Shown(&[SUBSET]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.portLevelSettings.port.number"],
        Shown(&[PORT_AND_SUBSET, (BALANCING, "a_port_and_a_subset_have_their_own_policy")]),
        Shown(&[(BALANCING, "a_port_and_a_subset_have_their_own_policy"), OWN_PORT]),
        Shown(&[OWN_PORT]),
    ),
    // Balancing.
    group(DestinationRule, &["trafficPolicy.loadBalancer.simple"], TAKES_TURNS, TAKES_TURNS, TAKES_TURNS),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.consistentHash.httpHeaderName"],
        Shown(&[STICKY]),
        Shown(&[STICKY]),
        SAID,
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
            "trafficPolicy.loadBalancer.consistentHash.httpCookie.path",
            "trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes.name",
            "trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes.value",
        ],
        Shown(&[COOKIE]),
        Shown(&[COOKIE]),
        SAID,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl"],
        Shown(&[COOKIE, NO_LIFE]),
        Shown(&[COOKIE, NO_LIFE]),
        SAID,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.consistentHash.useSourceIp"],
        Shown(&[OF_SOURCE]),
        Shown(&[OF_SOURCE]),
        SAID,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName"],
        Shown(&[OF_QUERY]),
        Shown(&[OF_QUERY]),
        SAID,
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
            "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        ],
        Partly("yes, as Envoy finds endpoints", &[COMPARED]),
        Shown(&[STICKY]),
        SAID,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.consistentHash.minimumRingSize"],
        Shown(&[STICKY, (BALANCING, "the_older_form_of_a_rings_size_makes_the_same_ring")]),
        Shown(&[STICKY]),
        SAID,
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.warmupDurationSecs",
            "trafficPolicy.loadBalancer.warmup.duration",
            "trafficPolicy.loadBalancer.warmup.minimumPercent",
            "trafficPolicy.loadBalancer.warmup.aggression",
        ],
        WARMED_UP,
        WARMED_UP,
        WARMED_UP,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.localityLbSetting.distribute.from"],
        Shown(&[NEAR, SHARES]),
        Shown(&[NEAR, SHARES]),
        Shown(&[NEAR, SHARES]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.loadBalancer.localityLbSetting.distribute.to"],
        Shown(&[SHARES]),
        Shown(&[SHARES]),
        Shown(&[SHARES]),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.localityLbSetting.failover.from",
            "trafficPolicy.loadBalancer.localityLbSetting.failover.to",
        ],
        Shown(&[FAILS_OVER]),
        Shown(&[FAILS_OVER]),
        Shown(&[FAILS_OVER]),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
            "trafficPolicy.loadBalancer.localityLbSetting.enabled",
        ],
        Shown(&[NEAR]),
        Shown(&[NEAR]),
        Shown(&[NEAR]),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.zoneAwareLbSetting.enabled",
            "trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize",
        ],
        Shown(&[PREFERS_ZONE, BEYOND_ZONES]),
        Shown(&[PREFERS_ZONE, BEYOND_ZONES]),
        Shown(&[PREFERS_ZONE, BEYOND_ZONES]),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.loadBalancer.zoneAwareLbSetting.failover.from",
            "trafficPolicy.loadBalancer.zoneAwareLbSetting.failover.to",
            "trafficPolicy.loadBalancer.zoneAwareLbSetting.failoverPriority",
        ],
        Shown(&[BEYOND_ZONES]),
        Shown(&[BEYOND_ZONES]),
        Shown(&[BEYOND_ZONES]),
    ),
    // Connections, and how many requests there may be.
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.tcp.connectTimeout"],
        Shown(&[SILENT]),
        CLIENTS_OWN,
        Shown(&[SILENT]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.tcp.maxConnections"],
        Shown(&[WAIT, (BREAKERS, "a_connection_that_fails_makes_room_for_those_who_wait")]),
        CLIENTS_OWN,
        Shown(&[(BREAKERS, "a_connector_makes_no_more_connections_than_there_may_be")]),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.connectionPool.tcp.tcpKeepalive.time",
            "trafficPolicy.connectionPool.tcp.tcpKeepalive.interval",
            "trafficPolicy.connectionPool.tcp.tcpKeepalive.probes",
        ],
        ARE_PROBED,
        CLIENTS_OWN,
        ARE_PROBED,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.tcp.maxConnectionDuration"],
        Shown(&[ENDS]),
        CLIENTS_OWN,
        Shown(&[GROWS_OLD]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.tcp.idleTimeout", "trafficPolicy.connectionPool.http.idleTimeout"],
        Shown(&[ENDS]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.maxRequestsPerConnection"],
        Shown(&[
            ("mesh-tower/tests/client/requests.rs", "a_connection_retires_after_its_number_of_requests"),
            (TLS_FILES, "files_are_read_anew_and_what_cannot_be_used_leaves_the_last_good_ones_in_force"),
        ]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.h2UpgradePolicy"],
        Shown(&[PORT_AND_SUBSET]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.useClientProtocol"],
        Shown(&[(BREAKERS, "the_clients_own_protocol_is_kept_where_that_is_wanted")]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.http2MaxRequests"],
        Shown(&[(BREAKERS, "never_more_requests_are_in_flight_than_the_limit_and_the_others_fail_at_once")]),
        Shown(&[(BREAKERS, "never_more_requests_are_in_flight_than_the_limit_and_the_others_fail_at_once")]),
        NO_REQUESTS,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.http1MaxPendingRequests"],
        Shown(&[WAIT]),
        No("requests wait in the client below"),
        NO_REQUESTS,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.maxConcurrentStreams"],
        Shown(&[WAIT]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.connectionPool.http.http2KeepAlive.interval",
            "trafficPolicy.connectionPool.http.http2KeepAlive.timeout",
        ],
        Shown(&[PINGS]),
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        DestinationRule,
        &["trafficPolicy.connectionPool.http.maxRetries"],
        Shown(&[(LIMITS, "there_are_never_more_retries_under_way_than_the_cluster_allows"), UNDER_WAY]),
        Shown(&[UNDER_WAY]),
        Shown(&[UNDER_WAY]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.retryBudget.percent", "trafficPolicy.retryBudget.minRetryConcurrency"],
        Shown(&[BUDGET, UNDER_WAY]),
        Shown(&[UNDER_WAY]),
        Shown(&[UNDER_WAY]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.retryBudget.budgetInterval"],
        Shown(&[BUDGET_OVER]),
        Shown(&[BUDGET_OVER]),
        Shown(&[DIALS_AGAIN]),
    ),
    // Endpoints that fail.
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.consecutive5xxErrors"],
        Shown(&[OUT, EACH_FAILURE]),
        Shown(&[OWN_CLIENT]),
        No("of connections, failures of the local origin count"),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.consecutiveGatewayErrors"],
        Shown(&[EACH_FAILURE]),
        Shown(&[EACH_FAILURE]),
        No("of connections, failures of the local origin count"),
    ),
    group(
        DestinationRule,
        &[
            "trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
            "trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        ],
        Shown(&[EACH_FAILURE]),
        Shown(&[EACH_FAILURE]),
        Shown(&[EJECTS]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.interval"],
        Shown(&[ENDS_AT]),
        Shown(&[ENDS_AT]),
        Shown(&[EJECTS]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.baseEjectionTime"],
        Shown(&[OUT]),
        Shown(&[OUT]),
        Shown(&[EJECTS]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.maxEjectionPercent"],
        Shown(&[MOST_OUT]),
        Shown(&[MOST_OUT]),
        Shown(&[EJECTS]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.outlierDetection.minHealthPercent"],
        Shown(&[TOO_FEW]),
        Shown(&[TOO_FEW]),
        Shown(&[TOO_FEW_LEFT]),
    ),
    // TLS.
    group(
        DestinationRule,
        &["trafficPolicy.tls", "trafficPolicy.tls.mode"],
        Shown(&[RULE_SAYS_HOW, MUTUAL]),
        NO_TLS,
        Shown(&[BY_BYTES, MUTUAL]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.tls.clientCertificate", "trafficPolicy.tls.privateKey"],
        Shown(&[MUTUAL]),
        NO_TLS,
        Shown(&[MUTUAL]),
    ),
    group(DestinationRule, &["trafficPolicy.tls.caCertificates"], Shown(&[PROVES]), NO_TLS, Shown(&[PROVES])),
    group(DestinationRule, &["trafficPolicy.tls.caCrl"], Shown(&[REVOKED]), NO_TLS, Shown(&[REVOKED])),
    group(DestinationRule, &["trafficPolicy.tls.credentialName"], Shown(&[BY_SECRET]), NO_TLS, Shown(&[BY_SECRET])),
    group(
        DestinationRule,
        &["trafficPolicy.tls.insecureSkipVerify", "trafficPolicy.tls.sni"],
        Shown(&[ANOTHER_NAME]),
        NO_TLS,
        Shown(&[ANOTHER_NAME]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.tls.subjectAltNames"],
        Shown(&[ANOTHER_NAME, RULE_SAYS_HOW]),
        NO_TLS,
        Shown(&[ANOTHER_NAME]),
    ),
    group(
        DestinationRule,
        &["trafficPolicy.tunnel.protocol", "trafficPolicy.tunnel.targetHost", "trafficPolicy.tunnel.targetPort"],
        REQUESTS_PASS,
        REQUESTS_PASS,
        Shown(&[THROUGH_PROXY]),
    ),
    // VirtualService.
    group(
        VirtualService,
        &["http.timeout"],
        Shown(&[TABLE, ("mesh-tower/tests/retries/tables.rs", "of_all_limits_of_time_the_nearest_holds")]),
        Shown(&[TABLE]),
        SAID,
    ),
    group(
        VirtualService,
        &["http.retries.attempts", "http.retries.retryOn"],
        Shown(&[TABLE, (POLICIES, "each_condition_is_about_its_own_outcomes_whatever_the_method")]),
        Shown(&[TABLE, LAYER_RETRIES]),
        Partly("of connections that cannot be made; of the rest it says so", &[DIALS_AGAIN]),
    ),
    group(
        VirtualService,
        &["http.retries.perTryTimeout"],
        Shown(&[TABLE, (LIMITS, "a_try_that_takes_too_long_is_given_up_and_made_again")]),
        Shown(&[TABLE]),
        SAID,
    ),
    group(
        VirtualService,
        &["http.retries.backoff"],
        Shown(&[TABLE, (POLICIES, "pauses_are_as_long_as_the_policy_says_and_as_servers_ask")]),
        Shown(&[TABLE]),
        Shown(&[DIALS_AGAIN]),
    ),
    group(
        VirtualService,
        &["http.retries.retryIgnorePreviousHosts"],
        Shown(&[TABLE, (RETRIES, "who_is_found_by_a_hash_is_asked_again_unless_a_rule_wants_somebody_else")]),
        Shown(&[TABLE]),
        PASSED_BY,
    ),
    group(
        VirtualService,
        &["http.retries.retryRemoteLocalities"],
        Shown(&[TABLE, (RETRIES, "every_second_retry_goes_to_a_priority_that_was_not_tried")]),
        Shown(&[TABLE]),
        Shown(&[DIALS_AGAIN]),
    ),
    group(
        VirtualService,
        &[
            "http.fault.delay.fixedDelay",
            "http.fault.delay.percent",
            "http.fault.delay.percentage.value",
            "http.fault.abort.httpStatus",
            "http.fault.abort.grpcStatus",
            "http.fault.abort.percent",
            "http.fault.abort.percentage.value",
        ],
        Shown(&[
            TABLE,
            ("mesh-tower/tests/retries/tables.rs", "faults_come_before_everything_but_the_callers_own_deadline"),
        ]),
        Shown(&[TABLE]),
        SAID,
    ),
    group(
        VirtualService,
        &["http.mirror.host", "http.mirrors.destination.host"],
        Shown(&[(MIRRORING, "a_copy_has_all_of_the_request_and_its_answer_is_nobodys"), COPY_GOES]),
        Shown(&[LAYER_COPIES]),
        SAID,
    ),
    group(
        VirtualService,
        &[
            "http.mirror.subset",
            "http.mirror.port.number",
            "http.mirrors.destination.subset",
            "http.mirrors.destination.port.number",
        ],
        Shown(&[COPY_GOES]),
        Shown(&[COPY_GOES]),
        SAID,
    ),
    group(
        VirtualService,
        &["http.mirrors.percentage.value", "http.mirrorPercent", "http.mirrorPercentage.value"],
        Shown(&[COPIES]),
        Shown(&[COPIES]),
        SAID,
    ),
    // Settings of the mesh.
    group(MeshConfig, &["connectTimeout"], Shown(&[OF_MESH, SILENT]), CLIENTS_OWN, Shown(&[SILENT])),
    group(
        MeshConfig,
        &["tcpKeepalive.time", "tcpKeepalive.interval", "tcpKeepalive.probes"],
        Shown(&[OF_MESH, PROBED]),
        CLIENTS_OWN,
        ARE_PROBED,
    ),
    group(
        MeshConfig,
        &["defaultHttpRetryPolicy.attempts", "defaultHttpRetryPolicy.retryOn"],
        Shown(&[MESH_RETRIES]),
        Shown(&[ASKED_AGAIN]),
        Partly("of connections that cannot be made; of the rest it says so", &[DIALS_AGAIN]),
    ),
    group(MeshConfig, &["defaultHttpRetryPolicy.perTryTimeout"], Shown(&[MESH_TIMES]), Shown(&[MESH_TIMES]), SAID),
    group(
        MeshConfig,
        &["defaultHttpRetryPolicy.backoff"],
        Shown(&[MESH_TIMES]),
        Shown(&[MESH_TIMES]),
        Shown(&[DIALS_AGAIN]),
    ),
    group(
        MeshConfig,
        &["defaultHttpRetryPolicy.retryIgnorePreviousHosts"],
        Shown(&[ASKED_AGAIN]),
        Shown(&[ASKED_AGAIN]),
        PASSED_BY,
    ),
    group(
        MeshConfig,
        &["defaultHttpRetryPolicy.retryRemoteLocalities"],
        Shown(&[ELSEWHERE]),
        Shown(&[ELSEWHERE]),
        Shown(&[DIALS_AGAIN]),
    ),
    group(
        MeshConfig,
        &[
            "localityLbSetting.distribute.from",
            "localityLbSetting.distribute.to",
            "localityLbSetting.enabled",
            "localityLbSetting.failoverPriority",
        ],
        Shown(&[MESH_LOCALITY]),
        Shown(&[MESH_LOCALITY]),
        Shown(&[MESH_LOCALITY]),
    ),
    group(
        MeshConfig,
        &[
            "zoneAwareLbSetting.enabled",
            "zoneAwareLbSetting.failover.from",
            "zoneAwareLbSetting.failover.to",
            "zoneAwareLbSetting.failoverPriority",
        ],
        Shown(&[BEYOND_ZONES]),
        Shown(&[BEYOND_ZONES]),
        Shown(&[BEYOND_ZONES]),
    ),
    group(
        MeshConfig,
        &["zoneAwareLbSetting.minClusterSize"],
        Shown(&[PREFERS_ZONE]),
        Shown(&[PREFERS_ZONE]),
        Shown(&[PREFERS_ZONE]),
    ),
    group(MeshConfig, &["h2UpgradePolicy"], Shown(&[MESH_SAYS_HOW]), CLIENTS_OWN, CLIENTS_ABOVE),
    group(
        MeshConfig,
        &[
            "defaultTrafficPolicy.connectionPool.http.http2MaxRequests",
            "defaultTrafficPolicy.connectionPool.http.maxRetries",
            "defaultTrafficPolicy.outlierDetection.consecutive5xxErrors",
            "defaultTrafficPolicy.outlierDetection.consecutiveGatewayErrors",
            "defaultTrafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
            "defaultTrafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
            "defaultTrafficPolicy.outlierDetection.interval",
            "defaultTrafficPolicy.outlierDetection.baseEjectionTime",
            "defaultTrafficPolicy.outlierDetection.maxEjectionPercent",
            "defaultTrafficPolicy.outlierDetection.minHealthPercent",
        ],
        AS_OF_A_RULE,
        LIKE_A_RULE,
        LIKE_A_RULE,
    ),
    group(
        MeshConfig,
        &[
            "defaultTrafficPolicy.connectionPool.tcp.maxConnections",
            "defaultTrafficPolicy.connectionPool.tcp.connectTimeout",
            "defaultTrafficPolicy.connectionPool.tcp.maxConnectionDuration",
            "defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.time",
            "defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.interval",
            "defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.probes",
        ],
        AS_OF_A_RULE,
        CLIENTS_OWN,
        LIKE_A_RULE,
    ),
    group(
        MeshConfig,
        &[
            "defaultTrafficPolicy.connectionPool.tcp.idleTimeout",
            "defaultTrafficPolicy.connectionPool.http.idleTimeout",
            "defaultTrafficPolicy.connectionPool.http.http1MaxPendingRequests",
            "defaultTrafficPolicy.connectionPool.http.maxRequestsPerConnection",
            "defaultTrafficPolicy.connectionPool.http.maxConcurrentStreams",
            "defaultTrafficPolicy.connectionPool.http.h2UpgradePolicy",
            "defaultTrafficPolicy.connectionPool.http.useClientProtocol",
            "defaultTrafficPolicy.connectionPool.http.http2KeepAlive.interval",
            "defaultTrafficPolicy.connectionPool.http.http2KeepAlive.timeout",
        ],
        AS_OF_A_RULE,
        CLIENTS_OWN,
        CLIENTS_ABOVE,
    ),
    group(
        MeshConfig,
        &["localityLbSetting.failover.from", "localityLbSetting.failover.to"],
        Shown(&[FAILS_OVER]),
        Shown(&[FAILS_OVER]),
        Shown(&[FAILS_OVER]),
    ),
    group(
        MeshConfig,
        &[
            "defaultServiceExportTo",
            "defaultVirtualServiceExportTo",
            "defaultDestinationRuleExportTo",
            "outboundTrafficPolicy.mode",
        ],
        Shown(&[UP_TO_THE_MESH]),
        Shown(&[UP_TO_THE_MESH]),
        Shown(&[UP_TO_THE_MESH]),
    ),
    group(
        MeshConfig,
        &["enableAutoMtls"],
        Shown(&[AUTOMATIC_OFF]),
        Partly(
            "calls to servers that speak it fail while it is on",
            &[("mesh-tower/tests/security/mtls.rs", "a_client_that_was_told_of_tls_never_falls_back_to_plaintext")],
        ),
        Shown(&[AUTOMATIC_OFF]),
    ),
];
