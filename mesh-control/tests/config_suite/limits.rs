//! What is said of rate limits that a service counts, with its place.

use mesh_control::analysis::validate;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: limits, namespace: shop}
spec: {selector: {app: limits}, ports: [{name: grpc, port: 8081}]}
";

/// The findings of a text hold these, one each in this order, besides that nothing is limited meanwhile.
fn check(text: &str, expected: &[&str]) {
    let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text)]);
    let found = found.iter().map(ToString::to_string).filter(|line| !line.ends_with("nothing is limited by it"));
    let found: Vec<String> = found.collect();
    let holds = found.iter().zip(expected).all(|(finding, part)| finding.contains(part));
    assert!(holds && found.len() == expected.len(), "{text}: {found:#?}");
}

fn rate_limit(service: &str, rules: &str) -> String {
    format!(
        "apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: calls, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  service: {service}\n  rules: [{rules}]\n"
    )
}

const SERVICE: &str = "{host: limits.shop.svc.cluster.local, port: 8081, domain: shop}";

#[test]
fn what_has_no_effect_beside_a_service_is_an_error_and_one_that_cannot_be_asked_is_told() {
    let all = "{name: all, limit: {requests: 1, per: 1s}}";
    check(&rate_limit(SERVICE, all), &[]);
    for (rules, expected) in [
        (
            "{name: a, limit: {requests: 1, per: 90s}}",
            "t.yaml:7:47: error[invalid-value]: RateLimit shop/calls: rules[0].limit.per: ",
        ),
        ("{name: a, limit: {requests: 1, per: 1s, burst: 2}}", "rules[0].limit.burst: without effect"),
        ("{name: a, shadow: true}", "rules[0].shadow: the service says"),
        ("{name: a, limit: {requests: 0, per: 1s}}", "rules[0].limit.requests: must be at least 1"),
        ("{name: a}, {name: a, by: [{method: true}]}", "rules[1].name: another rule is named `a`"),
        ("{name: a}, {name: b}", "rules[1]: the rule `a` counts the same requests"),
    ] {
        check(&rate_limit(SERVICE, rules), &[expected]);
    }
    // What a service takes for one is told, and what it tells apart is not.
    let twice =
        "warning[conflict]: RateLimit shop/calls: rules[1]: of some requests it makes the same descriptor as rules[0]";
    for (rules, expected) in [
        ("{name: a, match: {method: PUT}}, {name: b, by: [{method: true}]}", Some(twice)),
        ("{name: a, by: [{pathTemplates: [/a, /b]}]}, {name: b, match: {path: /a}}", Some(twice)),
        ("{name: a, match: {path: /a}}, {name: b, match: {path: /b}}", None),
        ("{name: a, by: [{header: u}]}, {name: b, by: [{header: u}, {method: true}]}", None),
        (
            "{name: a, match: {method: PUT}, limit: {requests: 1, per: 1s}}, {name: b, by: [{method: true}], limit: {requests: 5, per: 1h}}",
            None,
        ),
        (
            "{name: a, match: {method: PUT}, limit: {requests: 1, per: 1h}}, {name: b, by: [{method: true}], limit: {requests: 5, per: 1h}}",
            Some(twice),
        ),
    ] {
        check(&rate_limit(SERVICE, rules), &Vec::from_iter(expected));
    }
    let keys = rate_limit(SERVICE, all).replace("rules:", "maxKeys: 5\n  perConnection: true\n  rules:");
    check(&keys, &["perConnection: without effect", "maxKeys: without effect"]);
    check(&rate_limit(&SERVICE.replace("limits.shop", "-"), all), &["t.yaml:6:19: error[invalid-value]"]);
    let gone = "warning[unknown-reference]: RateLimit shop/calls: service: \"limits.shop.svc.cluster.local:9\"";
    check(&rate_limit(&SERVICE.replace("8081", "9"), all), &[gone]);
    check(&rate_limit(&SERVICE.replace("limits", "web").replace("8081", "80"), all), &["speaks no gRPC"]);
}

#[test]
fn a_rule_file_of_a_service_among_objects_is_told_where_it_belongs() {
    let rules = "domain: shop\ndescriptors:\n- key: user\n  rate_limit: {unit: minute, requests_per_unit: 5}\n";
    check(rules, &["not an object: rules of a rate limit service are for `--ratelimit-config`"]);
}

fn envoy_filter(name: &str, patches: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  workloadSelector: {{labels: {{app: web}}}}\n  configPatches: [{patches}]\n"
    )
}

/// A filter that is put into a chain, and what is counted by.
fn patches(context: &str, cluster: &str) -> [String; 2] {
    let filter = format!(
        "{{applyTo: HTTP_FILTER, match: {{context: {context}}}, patch: {{operation: INSERT_BEFORE, value: {{\
         name: envoy.filters.http.ratelimit, typed_config: {{\
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit, domain: shop, \
         rate_limit_service: {{grpc_service: {{envoy_grpc: {{cluster_name: '{cluster}'}}}}, transport_api_version: V3}}}}}}}}}}"
    );
    let counted = format!(
        "{{applyTo: VIRTUAL_HOST, match: {{context: {context}}}, patch: {{operation: MERGE, value: \
         {{rate_limits: [{{actions: [{{remote_address: {{}}}}]}}]}}}}}}"
    );
    [filter, counted]
}

#[test]
fn envoy_filters_for_global_limits_are_read_whole_or_not_at_all() {
    const CLUSTER: &str = "outbound|8081||limits.shop.svc.cluster.local";
    let [filter, counted] = patches("SIDECAR_INBOUND", CLUSTER);
    let both = format!("{}{}", envoy_filter("a", &filter), envoy_filter("b", &counted));
    check(&both, &[]);
    check(&envoy_filter("a", &format!("{filter}, {counted}")), &[]);
    check(&envoy_filter("a", &filter), &["configPatches: nothing says what requests are counted by"]);
    check(&envoy_filter("a", &counted), &["configPatches: no rate limit is counted by this"]);
    check(
        &both.replace("limits.shop", "other.shop"),
        &["configPatches: \"other.shop.svc.cluster.local:8081\" gives no answers"],
    );
    let text = envoy_filter("a", &format!("{}, {counted}", filter.replace(CLUSTER, "rate_limit_cluster")));
    let expected = "the cluster `rate_limit_cluster`: outbound|PORT||HOST is expected";
    check(&text, &[&format!("and so nothing of this EnvoyFilter is in force: {expected}")]);
    // What is not known of it.
    let unknown = filter.replace("domain: shop", "domain: shop, stages: 3");
    check(&envoy_filter("a", &format!("{unknown}, {counted}")), &["error[unknown-field]"]);
    // Gateways are none of ours.
    for patch in patches("GATEWAY", CLUSTER) {
        check(&envoy_filter("a", &patch), &["t.yaml:"]);
    }
}

fn own(rest: &str) -> String {
    format!(
        "apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: calls, namespace: shop}}\nspec:\n  {rest}\n"
    )
}

#[test]
fn a_host_that_is_not_written_in_full_is_told_with_what_was_meant() {
    let rules = "rules: [{name: a, limit: {requests: 1, per: 1s}}]";
    for host in ["web", "web.shop", "wbe.shop.svc.cluster.local"] {
        let told = format!(
            "nothing has the host \"{host}\": it is for calls to exactly that name outside of the mesh alone; did you mean `web.shop.svc.cluster.local`?"
        );
        check(&own(&format!("mode: CLIENT\n  hosts: [{host}]\n  {rules}")), &[&told]);
        let throttle = own(&format!("throttle: {{hosts: [{host}]}}")).replace("kind: RateLimit", "kind: Overload");
        check(&throttle, &[&told]);
    }
    let called =
        own("mode: CLIENT\n  hosts: [web]\n  rules: [{name: a, deny: {}}]").replace("RateLimit", "RequestRules");
    let told = "nothing has the host \"web\": it is for calls to exactly that name outside of the mesh alone; did you mean `web.shop.svc.cluster.local`?";
    check(&called, &[told]);
    let routed = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\n\
                  spec: {hosts: [shop.example.com], http: [{route: [{destination: {host: web}}]}]}\n";
    check(&format!("{}{routed}", own(&format!("mode: CLIENT\n  hosts: [shop.example.com]\n  {rules}"))), &[]);
    let meant = "since nothing has it: the failure mode decides; did you mean `limits.shop.svc.cluster.local`?";
    check(&rate_limit(&SERVICE.replace(".shop.svc.cluster.local", ""), "{name: a}"), &[meant]);
    let asked = own("processor: {host: limits.shop, port: 8081}").replace("RateLimit", "RequestRules");
    check(&asked, &[meant]);
    check(
        &own(&format!("mode: CLIENT\n  hosts: [nothing.like.it]\n  {rules}")),
        &["it is for calls to exactly that name outside of the mesh alone"],
    );
}

/// Each was once taken in silence.
#[test]
fn a_rule_of_our_own_that_can_never_count_is_told() {
    let rule = |rest: &str| format!("rules: [{{name: a, {rest}, limit: {{requests: 1, per: 1s}}}}]");
    for key in ["claim: sub", "client: NAMESPACE", "remoteAddress: {}"] {
        let rules = rule(&format!("by: [{{method: true}}, {{{key}}}]"));
        let field = key.split(':').next().unwrap();
        let expected = format!(
            "error[invalid-value]: RateLimit shop/calls: rules[0].by[1].{field}: known of requests that come in"
        );
        check(&own(&format!("mode: CLIENT\n  {rules}")), &[&expected]);
    }
    check(&own(&rule("by: [{client: NAMESPACE}]")), &[]);
    let get = "rules[0].match.method: no request has it, for methods are told apart by their case; did you mean `GET`?";
    check(&own(&rule("match: {method: get}")), &[get]);
    let sliding = "{name: a, by: [{header: u}], limit: {requests: 1, per: 1s}}, {name: b, by: [{header: u}], limit: {requests: 9, per: 1h}}";
    let hint = "rules[1]: the rule `a` counts the same requests; a second limit on them, as one a second beside one an hour, is a RateLimit of its own";
    check(&own(&format!("rules: [{sliding}]")), &[hint]);
    check(&own(&format!("service: {SERVICE}\n  rules: [{sliding}]")), &[hint]);
    let second = own("rules: [{name: b, by: [{header: u}], limit: {requests: 9, per: 1h}}]").replace("calls", "more");
    check(&format!("{}---\n{second}", own(&rule("by: [{header: u}]"))), &[]);
}

#[test]
fn an_item_tells_requests_apart_by_one_thing() {
    let rule = |by: &str| own(&format!("rules: [{{name: a, by: [{by}], limit: {{requests: 1, per: 1s}}}}]"));
    let several =
        "rules[0].by[0]: it has one of `header`, `method: true`: each tells requests apart as an item of its own";
    check(&rule("{header: u, method: true}"), &[several]);
    let none = "rules[0].by[0]: it has one of header, query, claim, client, remoteAddress, pathTemplates, method: true, expression";
    check(&rule("{method: false}"), &[none]);
    // What is wrong with the one thing is all that is told.
    check(&rule("{header: 'a b'}"), &["rules[0].by[0].header: `a b` is no name of a header"]);
    check(&rule("{expression: request.id}"), &["rules[0].by[0].expression: line 1, column 1: request.id is new"]);
}

#[test]
fn what_goes_by_a_claim_is_told_where_nobody_looks_at_tokens() {
    let looks = |namespace: &str, selector: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: {namespace}}}\n\
             spec: {{{selector}jwtRules: [{{issuer: me, jwksUri: 'https://me.example.com/keys'}}]}}\n"
        )
    };
    for (kind, rule, field) in [
        ("RateLimit", "{name: a, by: [{claim: sub}], limit: {requests: 1, per: 1s}}", "rules"),
        ("Quota", "{name: a, by: [{claim: sub}], limit: {requests: 1, per: DAY}}", "rules[0].by"),
        ("RateLimit", "{name: a, by: [{expression: request.auth.claims.sub}], limit: {requests: 1, per: 1s}}", "rules"),
        (
            "Quota",
            "{name: a, by: [{expression: request.auth.claims.sub}], limit: {requests: 1, per: DAY}}",
            "rules[0].by",
        ),
        ("RequestRules", "{name: a, when: 'request.auth.claims.sub == \"me\"', deny: {}}", "rules[0].when"),
        ("RequestRules", "{name: a, when: '!has(request.auth.principal)', deny: {}}", "rules[0].when"),
        ("AuthorizationPolicy", "{when: [{key: 'request.auth.claims[sub]', values: [me]}]}", "rules"),
        ("AuthorizationPolicy", "{from: [{source: {requestPrincipals: [me/you]}}]}", "rules"),
    ] {
        let object = |selector: &str| {
            let object = own(&format!("{selector}rules: [{rule}]")).replace("RateLimit", kind);
            match kind {
                "AuthorizationPolicy" => object.replace("policy.mesh-control/v1alpha1", "security.istio.io/v1"),
                _ => object,
            }
        };
        let told = format!(
            "warning[unknown-reference]: {kind} shop/calls: {field}: no RequestAuthentication is for these workloads"
        );
        let web = "selector: {matchLabels: {app: web}}\n  ";
        check(&object(""), &[&told]);
        check(&format!("{}{}", object(""), looks("shop", "")), &[]);
        check(&format!("{}{}", object(web), looks("istio-system", "")), &[]);
        check(&format!("{}{}", object(web), looks("other", "")), &[&told]);
        check(&format!("{}{}", object(web), looks("shop", "selector: {matchLabels: {app: limits}}, ")), &[&told]);
        check(&format!("{}{}", object(web), looks("shop", "selector: {matchLabels: {app: web}}, ")), &[]);
        let none = looks("shop", "").replace("{issuer: me, jwksUri: 'https://me.example.com/keys'}", "");
        check(&format!("{}{none}", object(web)), &[&told]);
    }
    check(
        &own("rules: [{name: a, when: request.method == 'GET', deny: {}}]").replace("RateLimit", "RequestRules"),
        &[],
    );
}

#[test]
fn a_selector_with_a_value_that_no_workload_has_is_told() {
    let limit = |mode: &str, value: &str| {
        own(&format!(
            "mode: {mode}\n  selector: {{matchLabels: {{app: {value}}}}}\n  rules: [{{name: a, limit: {{requests: 1, per: 1s}}}}]"
        ))
    };
    let named = "selector.matchLabels.app: no workload that is known has app: `wbe`; did you mean `web`?";
    check(&limit("SERVER", "wbe"), &[&format!("warning[unknown-reference]: RateLimit shop/calls: {named}")]);
    check(&limit("CLIENT", "wbe"), &[&format!("warning[unknown-reference]: RateLimit shop/calls: {named}")]);
    let other = "no workload that is known has app: `batch-job`; there are `limits`, `web`";
    check(
        &limit("SERVER", "batch-job"),
        &[&format!("warning[unknown-reference]: RateLimit shop/calls: selector.matchLabels.app: {other}")],
    );
    // Who only calls has no service.
    check(&limit("CLIENT", "batch-job"), &["info[unknown-reference]"]);
    check(&limit("SERVER", "web"), &[]);
    // What nobody says anything of may well be there.
    check(&limit("SERVER", "web").replace("app:", "team:"), &[]);
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\n\
                 spec: {address: 10.0.0.1, labels: {app: batch-job}}\n";
    check(&format!("{}{entry}", limit("SERVER", "batch-job")), &[]);
    for (kind, rule) in
        [("Quota", "{name: a, limit: {requests: 1, per: DAY}}"), ("RequestRules", "{name: a, deny: {}}")]
    {
        let object = |mode: &str, value: &str| {
            let object = limit(mode, value).replace("RateLimit", kind);
            object.replace("{name: a, limit: {requests: 1, per: 1s}}", rule)
        };
        check(&object("CLIENT", "wbe"), &[&format!("warning[unknown-reference]: {kind} shop/calls: {named}")]);
        check(&object("SERVER", "batch-job"), &["warning[unknown-reference]"]);
        check(&object("CLIENT", "batch-job"), &["info[unknown-reference]"]);
        check(&object("SERVER", "web"), &[]);
    }
    let plugin = |mode: &str| {
        format!(
            "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: calls, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: batch-job}}}}, match: [{{mode: {mode}}}]}}\n"
        )
    };
    check(
        &plugin("SERVER"),
        &[&format!("warning[unknown-reference]: WasmPlugin shop/calls: selector.matchLabels.app: {other}")],
    );
    check(&plugin("CLIENT_AND_SERVER"), &["info[unknown-reference]: WasmPlugin"]);
    check(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: wbe}}}\n",
        &["AuthorizationPolicy shop/web: selector.matchLabels.app: no workload that is known has app: `wbe`"],
    );
}

const SHARES: &str =
    "filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}, ";

/// A local filter with so much in it.
fn local(rest: &str) -> String {
    format!(
        "{{applyTo: HTTP_FILTER, match: {{context: SIDECAR_INBOUND}}, patch: {{operation: INSERT_BEFORE, value: {{\
         name: envoy.filters.http.local_ratelimit, typed_config: {{\
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, \
         {rest}}}}}}}}}"
    )
}

fn merged(to: &str, value: &str) -> String {
    format!("{{applyTo: {to}, match: {{context: SIDECAR_INBOUND}}, patch: {{operation: MERGE, value: {value}}}}}")
}

const BUCKET: &str = "token_bucket: {max_tokens: 5, fill_interval: 60s}";

#[test]
fn local_limits_of_envoy_filters_that_can_never_count_are_told() {
    check(&envoy_filter("a", &local(&format!("{SHARES}{BUCKET}"))), &[]);
    // The data plane has room for 1,048,576 buckets in all, and refuses more.
    let keyed = |key: &str| format!("{{entries: [{{key: {key}}}], {BUCKET}}}");
    let many = |most: u32| {
        format!("{SHARES}{BUCKET}, max_dynamic_descriptors: {most}, descriptors: [{}, {}]", keyed("a"), keyed("b"))
    };
    let by = "{request_headers: {header_name: a, descriptor_key: a}}]}, {actions: [{request_headers: {header_name: b, descriptor_key: b}}";
    let by = merged("VIRTUAL_HOST", &format!("{{rate_limits: [{{actions: [{by}]}}]}}"));
    check(&envoy_filter("a", &format!("{}, {by}", local(&many(500_000)))), &[]);
    let told = "max_dynamic_descriptors: not supported, and so nothing of this EnvoyFilter is in force: 2 rules with keys, and 600000 values";
    check(&envoy_filter("a", &format!("{}, {by}", local(&many(600_000)))), &[told]);
    // 0 %, as in Envoy.
    let none = "patch.value.filter_enabled: filter_enabled is not set, which is 0 % of requests, as in Envoy: no request is counted";
    check(&envoy_filter("a", &local(BUCKET)), &[none]);
    let (enabled, _) = SHARES.split_at(SHARES.find("filter_enforced").unwrap());
    check(&envoy_filter("a", &local(&format!("{enabled}{BUCKET}"))), &["filter_enforced is not set, which is 0 %"]);
    // A key of what runs, and nothing that it is: Envoy knows of no other value.
    for (said, told) in [
        (
            "{runtime_key: a}",
            "error[missing-field]: EnvoyFilter shop/a: configPatches[0].patch.value.typed_config.filter_enabled: field `default_value` is missing",
        ),
        (
            "{runtime_key: a, default_value: {denominator: HUNDRED}}",
            "filter_enabled.default_value.numerator is not set, which is 0 %",
        ),
        ("{default_value: {}}", "filter_enabled.default_value.numerator is not set, which is 0 %"),
    ] {
        let all = "filter_enabled: {default_value: {numerator: 100}}";
        let shares = SHARES.replace(all, &format!("filter_enabled: {said}"));
        assert_ne!(shares, SHARES);
        check(&envoy_filter("a", &local(&format!("{shares}{BUCKET}"))), &[told]);
    }
    // None on purpose.
    let tried = SHARES.replace(
        "filter_enforced: {default_value: {numerator: 100}}",
        "filter_enforced: {default_value: {numerator: 0}}",
    );
    check(&envoy_filter("a", &local(&format!("{tried}{BUCKET}"))), &[]);
    // The documented shape: the filter is there for what routes say.
    let of_route = format!(
        "{{typed_per_filter_config: {{envoy.filters.http.local_ratelimit: {{\
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, \
         {SHARES}{BUCKET}}}}}}}"
    );
    check(&envoy_filter("a", &format!("{}, {}", local(""), merged("HTTP_ROUTE", &of_route))), &[]);
    let unset = of_route.replace(SHARES, "");
    let told = format!("configPatches[1].{none}");
    check(&envoy_filter("a", &format!("{}, {}", local(""), merged("HTTP_ROUTE", &unset))), &[&told]);
}

#[test]
fn a_status_of_an_envoy_filter_that_is_not_the_one_in_force_is_told() {
    let of = |status: &str| envoy_filter("a", &local(&format!("{SHARES}{BUCKET}, status: {{code: {status}}}")));
    for good in ["503", "599", "TooManyRequests"] {
        check(&of(good), &[]);
    }
    check(&of("200"), &["configPatches[0].patch.value.status.code: 200 is below 400: it is 429, as in Envoy"]);
    check(&of("999"), &["configPatches[0].patch.value.typed_config.status.code: 999 is no status"]);
    let [filter, counted] = patches("SIDECAR_INBOUND", "outbound|8081||limits.shop.svc.cluster.local");
    let statuses = "rate_limited_status: {code: 302}, status_on_error: {code: 100}, domain:";
    check(
        &envoy_filter("a", &format!("{}, {counted}", filter.replace("domain:", statuses))),
        &["rate_limited_status.code: 302 is below 400: it is 429", "status_on_error.code: 100 is below 200: it is 500"],
    );
}

#[test]
fn fields_that_istio_and_envoy_know_are_not_called_unknown() {
    let [filter, counted] = patches("SIDECAR_INBOUND", "outbound|8081||limits.shop.svc.cluster.local");
    let whole = envoy_filter("a", &format!("{filter}, {counted}"));
    for (what, with, field) in [
        ("spec:\n", "spec:\n  targetRefs: [{kind: Service, name: web}]\n", "targetRefs"),
        ("context: S", "proxy: {proxyVersion: '1.*'}, context: S", "configPatches[0].match.proxy"),
        ("context: S", "listener: {name: virtualInbound}, context: S", "configPatches[0].match.listener.name"),
        (
            "context: S",
            "routeConfiguration: {vhost: {route: {name: first}}}, context: S",
            "configPatches[0].match.routeConfiguration.vhost.route.name",
        ),
        ("domain:", "stage: 1, domain:", "configPatches[0].patch.value.typed_config.stage"),
        ("{actions:", "{stage: 1, actions:", "configPatches[1].patch.value.rate_limits[0].stage"),
        ("{actions:", "{hitsAddend: {number: 2}, actions:", "configPatches[1].patch.value.rate_limits[0].hits_addend"),
        (
            "{remote_address: {}}",
            "{remote_address: {}}, {masked_remote_address: {v4_prefix_mask_len: 8}}",
            "configPatches[1].patch.value.rate_limits[0].actions[1].masked_remote_address",
        ),
        (
            "{remote_address: {}}",
            "{remote_address: {}}, {queryParameterValueMatch: {descriptor_value: a}}",
            "configPatches[1].patch.value.rate_limits[0].actions[1].query_parameter_value_match",
        ),
        (
            "{remote_address: {}}",
            "{remote_address: {}}, {remote_address_match: {descriptor_value: a}}",
            "configPatches[1].patch.value.rate_limits[0].actions[1].remote_address_match",
        ),
        (
            "{remote_address: {}}",
            "{remote_address: {}}, {metadata: {descriptor_key: a}}",
            "configPatches[1].patch.value.rate_limits[0].actions[1].metadata",
        ),
    ] {
        let text = whole.replacen(what, with, 1);
        assert_ne!(text, whole);
        check(
            &text,
            &[&format!("error[not-supported-yet]: EnvoyFilter shop/a: {field}: not supported, and so nothing")],
        );
    }
    // What is written as it is without being written.
    check(&whole.replace("{actions:", "{stage: 0, actions:"), &[]);
}

/// Protobuf's JSON has each field by two names, and nobody may write both.
#[test]
fn fields_of_envoy_are_read_by_either_of_their_names() {
    let camel = "filterEnabled: {defaultValue: {numerator: 100}}, filterEnforced: {defaultValue: {numerator: 100}}, ";
    let bucket = "tokenBucket: {maxTokens: 5, fillInterval: 60s}";
    let both = |rest: &str| envoy_filter("a", &local(rest).replace("typed_config", "typedConfig"));
    check(&both(&format!("{camel}{bucket}")), &[]);
    check(&both(&format!("{camel}{bucket}, {BUCKET}")), &["tokenBucket: unknown field"]);
    let without = "patch.value.filter_enabled: filter_enabled is not set";
    check(&both(bucket), &[without]);
    let by = "{route: {rateLimits: [{actions: [{requestHeaders: {headerName: x-user, descriptorKey: usr}}]}]}}";
    let limit = format!("{camel}{bucket}, descriptors: [{{entries: [{{key: user}}], {bucket}}}]");
    let told = "no action makes the descriptor `user`";
    check(&envoy_filter("a", &format!("{}, {}", local(&limit), merged("HTTP_ROUTE", by))), &[told]);
}

/// The usual slip: the port of the container, or of a proxy, in the place of that of the Service.
#[test]
fn what_other_workloads_have_is_nothing_for_a_limit() {
    let at = |port: u16, patch: String| {
        let host = format!("context: SIDECAR_INBOUND, routeConfiguration: {{vhost: {{name: 'inbound|http|{port}'}}}}");
        patch.replace("context: SIDECAR_INBOUND", &host)
    };
    let limit = format!(
        "{{typed_per_filter_config: {{envoy.filters.http.local_ratelimit: {{\
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, \
         {SHARES}{BUCKET}}}}}}}"
    );
    let of = |port: u16| envoy_filter("a", &format!("{}, {}", local(""), at(port, merged("HTTP_ROUTE", &limit))));
    check(&of(80), &[]);
    // It is the port of `limits`.
    let told = "configPatches: no service of these workloads has a port 8081, so that nothing is counted there";
    check(&of(8081), &[told]);
    check(&of(8081).replace("app: web", "tier: back"), &[]);
    check(&of(8081).replace("workloadSelector: {labels: {app: web}}", "priority: 0"), &[]);
    // What requests are counted by is said for others.
    let filter = local(&format!("{SHARES}{BUCKET}, descriptors: [{{entries: [{{key: user}}], {BUCKET}}}]"));
    let by = "{rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}]}";
    let counted = envoy_filter("b", &merged("VIRTUAL_HOST", by));
    let filter = envoy_filter("a", &filter);
    check(&format!("{filter}{counted}"), &[]);
    check(
        &format!("{filter}{}", counted.replace("app: web", "app: limits")),
        &["nothing says what requests are counted by", "no rate limit is counted by this"],
    );
}

#[test]
fn values_of_envoy_that_are_messages_are_read_as_such_too() {
    let bucket = |fill: &str| {
        format!("{SHARES}token_bucket: {{maxTokens: 5, tokensPerFill: {{value: 5}}, fillInterval: {fill}}}")
    };
    for fill in ["{seconds: 60}", "{seconds: 1, nanos: 500000000}", "{nanos: 50000000}"] {
        check(&envoy_filter("a", &local(&bucket(fill))), &[]);
    }
    for (fill, told) in [
        ("{seconds: 60, minutes: 1}", "fill_interval: expected a duration"),
        ("{nanos: 1000000000}", "fill_interval: expected a duration"),
        ("{seconds: -1}", "fill_interval: expected a duration"),
        ("{}", "fill_interval: expected a duration"),
        ("{nanos: 49000000}", "fill_interval: shorter than 50ms"),
    ] {
        check(&envoy_filter("a", &local(&bucket(fill))), &[told]);
    }
    let more = bucket("60s").replace("{value: 5}", "{value: 5, more: 1}");
    check(&envoy_filter("a", &local(&more)), &["tokens_per_fill: expected"]);
}

/// Whatever comes in is handed on, by the one route `default`.
#[test]
fn every_route_of_what_comes_in_is_one_that_hands_on() {
    let [filter, counted] = patches("SIDECAR_INBOUND", "outbound|8081||limits.shop.svc.cluster.local");
    let of = |route: &str| {
        let routes = format!("context: SIDECAR_INBOUND, routeConfiguration: {{vhost: {{route: {{{route}}}}}}}");
        envoy_filter("a", &format!("{filter}, {}", counted.replace("context: SIDECAR_INBOUND", &routes)))
    };
    for route in ["action: ANY", "action: ROUTE", "name: default", "name: default, action: ROUTE"] {
        check(&of(route), &[]);
    }
    check(&of("action: REDIRECT"), &["match.routeConfiguration.vhost.route.action: not supported"]);
}

/// The documented shape: one filter for every port, and the routes of one port that say what it counts by.
#[test]
fn a_filter_is_counted_where_the_routes_of_one_port_say_by_what() {
    let at = |patch: String, port: u16| {
        let host = format!("context: SIDECAR_INBOUND, routeConfiguration: {{vhost: {{name: 'inbound|http|{port}'}}}}");
        patch.replace("context: SIDECAR_INBOUND", &host)
    };
    let by = |key: &str| {
        let action = format!("{{request_headers: {{header_name: x-user, descriptor_key: {key}}}}}");
        at(merged("HTTP_ROUTE", &format!("{{route: {{rate_limits: [{{actions: [{action}]}}]}}}}")), 80)
    };
    let [global, _] = patches("SIDECAR_INBOUND", "outbound|8081||limits.shop.svc.cluster.local");
    check(&envoy_filter("a", &format!("{global}, {}", by("user"))), &[]);
    let process = local(&format!("{SHARES}{BUCKET}, descriptors: [{{entries: [{{key: user}}], {BUCKET}}}]"));
    let one = envoy_filter("a", &format!("{process}, {}", by("user")));
    check(&one, &[]);
    // What another object says for other workloads changes nothing for this one.
    let other = envoy_filter("b", &merged("VIRTUAL_HOST", "{rate_limits: [{actions: [{remote_address: {}}]}]}"));
    check(&format!("{one}{other}"), &[]);
    // A port of its own that nobody counts by is another matter.
    let of_port = "context: SIDECAR_INBOUND, listener: {portNumber: 8081}";
    let own = process.replace("context: SIDECAR_INBOUND", of_port);
    check(
        &envoy_filter("a", &format!("{}, {own}", by("user"))),
        &[
            "configPatches: no service of these workloads has a port 8081",
            "configPatches: nothing says what requests are counted by",
        ],
    );
    // Envoy has both filters there. The first one of them was once of no effect.
    let twice = "patch: not supported, and so nothing of this EnvoyFilter is in force: a second filter of this name in the chain of one port";
    for (first, second) in [(&process, &own), (&own, &process), (&own, &own), (&process, &process)] {
        let told = format!("configPatches[2].{twice}");
        check(&envoy_filter("a", &format!("{first}, {}, {second}", by("user"))), &[&told]);
    }
    check(&format!("{one}{}", envoy_filter("b", &local(&format!("{SHARES}{BUCKET}")))), &[]);
    check(
        &envoy_filter("a", &format!("{process}, {}", by("usr"))),
        &["configPatches: no action makes the descriptor `user`"],
    );
}

#[test]
fn a_descriptor_that_no_action_makes_is_told() {
    let limit = |entries: &str| format!("{SHARES}{BUCKET}, descriptors: [{{entries: [{entries}], {BUCKET}}}]");
    let by = |actions: &str| merged("VIRTUAL_HOST", &format!("{{rate_limits: [{{actions: [{actions}]}}]}}"));
    let both =
        |entries: &str, actions: &str| envoy_filter("a", &format!("{}, {}", local(&limit(entries)), by(actions)));
    let header = "{request_headers: {header_name: x-user, descriptor_key: user}}";
    let path = "{request_headers: {header_name: ':path', descriptor_key: path, skip_if_absent: true}}";
    let constant = "{generic_key: {descriptor_value: slow}}";
    for (entries, actions) in [
        ("{key: user, value: jo}", header),
        ("{key: user}", header),
        ("{key: path, value: /}, {key: user}", &format!("{path}, {header}")),
        ("{key: user}", &format!("{path}, {header}")),
        ("{key: generic_key, value: slow}", constant),
    ] {
        check(&both(entries, actions), &[]);
    }
    let nothing = |entries: &str| {
        format!("configPatches: no action makes the descriptor `{entries}`, so that its limit never counts")
    };
    for (entries, actions, told) in [
        ("{key: usr, value: jo}", header, "usr=jo"),
        ("{key: user}, {key: path}", &*format!("{path}, {header}"), "user, path"),
        ("{key: generic_key, value: fast}", constant, "generic_key=fast"),
        ("{key: m, value: get}", "{request_headers: {header_name: ':method', descriptor_key: m}}", "m=get"),
    ] {
        check(&both(entries, actions), &[&nothing(told)]);
    }
    // Nobody says what is counted: no service is asked in any case.
    check(
        &envoy_filter("a", &local(&limit("{key: user}"))),
        &[
            "configPatches: nothing says what requests are counted by (`rate_limits` of virtual hosts), so that no descriptor is counted",
        ],
    );
    let method = "{header_value_match: {descriptor_value: r, headers: [{name: ':method', exact_match: get}]}}";
    check(&both("{key: header_match, value: r}", method), &["no request has the method `get`; did you mean `GET`?"]);
}

#[test]
fn what_stands_at_another_level_of_a_patch_is_told() {
    let limits = "rate_limits: [{actions: [{remote_address: {}}]}]";
    let [filter, _] = patches("SIDECAR_INBOUND", "outbound|8081||limits.shop.svc.cluster.local");
    for (patch, told) in [
        (
            merged("HTTP_ROUTE", &format!("{{{limits}}}")),
            "[1].patch.value.rate_limits: not supported, and so nothing of this EnvoyFilter is in force: a route has `rate_limits` under `route`",
        ),
        (
            merged("VIRTUAL_HOST", &format!("{{route: {{{limits}}}}}")),
            "[1].patch.value.route.rate_limits: not supported, and so nothing of this EnvoyFilter is in force: a virtual host has `rate_limits` at its top",
        ),
    ] {
        check(&envoy_filter("a", &format!("{filter}, {patch}")), &[told]);
    }
    for (to, value) in [("HTTP_ROUTE", format!("{{route: {{{limits}}}}}")), ("VIRTUAL_HOST", format!("{{{limits}}}"))] {
        check(&envoy_filter("a", &format!("{filter}, {}", merged(to, &value))), &[]);
    }
    let beside = filter.replace("typed_config:", &format!("{limits}, typed_config:"));
    check(
        &envoy_filter("a", &beside),
        &[
            "patch.value.rate_limits: not supported, and so nothing of this EnvoyFilter is in force: it stands beside typed_config, and belongs into it",
        ],
    );
    for (matcher, told) in [
        ("exact_match: a, prefix_match: b", "two matches in one header matcher"),
        ("string_match: {exact: a, suffix: b}", "two matches in one header matcher"),
        ("present_match: true, exact_match: a", "two matches in one header matcher"),
        ("safe_regex_match: {regex: a}, string_match: {safe_regex: {regex: a}}", "two matches in one header matcher"),
        ("invert_match: true", "a header matcher that says no match"),
        ("safe_regex_match: {regex: '('}", "what is no expression of RE2"),
        ("safe_regex_match: {google_re2: {}}", "safe_regex_match: field `regex` is missing"),
    ] {
        let action = format!("{{header_value_match: {{descriptor_value: x, headers: [{{name: h, {matcher}}}]}}}}");
        let patch = merged("VIRTUAL_HOST", &format!("{{rate_limits: [{{actions: [{action}]}}]}}"));
        check(&envoy_filter("a", &format!("{filter}, {patch}")), &[told]);
    }
    for action in [
        "request_headers: {header_name: ':status', descriptor_key: x}",
        "header_value_match: {descriptor_value: x, headers: [{name: ':status', exact_match: a}]}",
        "header_value_match: {descriptor_value: x, headers: [{name: a b, present_match: false}]}",
    ] {
        let patch = merged("VIRTUAL_HOST", &format!("{{rate_limits: [{{actions: [{{{action}}}]}}]}}"));
        check(&envoy_filter("a", &format!("{filter}, {patch}")), &["in force: what is no name of a header"]);
    }
}

/// The data plane refuses each of these, with all of the server that it is for.
#[test]
fn what_the_data_plane_would_refuse_of_an_envoy_filter_is_told_before() {
    let by = |action: &str| {
        let limits =
            format!("rate_limits: [{{actions: [{action}]}}], descriptors: [{{entries: [{{key: k}}], {BUCKET}}}]");
        envoy_filter("a", &local(&format!("{SHARES}{BUCKET}, {limits}")))
    };
    check(&by("{request_headers: {header_name: x, descriptor_key: k}}"), &[]);
    for action in [
        "{request_headers: {header_name: x, descriptor_key: ''}}",
        "{query_parameters: {query_parameter_name: '', descriptor_key: k}}",
        "{query_parameters: {query_parameter_name: x, descriptor_key: ''}}",
        "{generic_key: {descriptor_value: ''}}",
        "{header_value_match: {descriptor_value: '', headers: [{name: x, exact_match: a}]}}",
        "{header_value_match: {descriptor_value: a, headers: [{name: x, prefix_match: ''}]}}",
        "{header_value_match: {descriptor_value: a, headers: [{name: x, string_match: {contains: ''}}]}}",
    ] {
        check(&by(action), &["in force: an empty name, key or value"]);
    }
    // As in protobuf: it is `generic_key`.
    let unsaid = by("{generic_key: {descriptor_key: '', descriptor_value: a}}")
        .replace("{key: k}", "{key: generic_key, value: a}");
    check(&unsaid, &[]);
    let limit = |rest: &str| envoy_filter("a", &local(&format!("{SHARES}{BUCKET}, {rest}")));
    check(&limit(&format!("descriptors: [{{entries: [{{key: '', value: v}}], {BUCKET}}}]")), &["or without a key"]);
    for most in ["0", "1048577", "4294967295"] {
        check(
            &limit(&format!("max_dynamic_descriptors: {most}")),
            &[&format!(
                "max_dynamic_descriptors: not supported, and so nothing of this EnvoyFilter is in force: {most} buckets"
            )],
        );
    }
    check(&limit("max_dynamic_descriptors: 1048576"), &[]);
    for name in ["content-length", "Connection", "host"] {
        let header = format!("response_headers_to_add: [{{header: {{key: {name}, value: a}}}}]");
        check(&limit(&header), &[&format!("in force: the header `{name}`, with this value")]);
    }
}

#[test]
fn a_limit_that_no_envoy_filter_is_read_for_is_told_with_what_says_it() {
    let inserted = |name: &str| {
        envoy_filter(
            "a",
            &format!(
                "{{applyTo: HTTP_FILTER, match: {{context: GATEWAY}}, patch: {{operation: INSERT_BEFORE, value: {{name: {name}}}}}}}"
            ),
        )
    };
    for (name, told) in [
        ("ratelimit", "a RateLimit with a `service` is for what envoy.filters.http.ratelimit does"),
        (
            "adaptive_concurrency",
            "an Overload with a `concurrency` is for what envoy.filters.http.adaptive_concurrency does",
        ),
        ("admission_control", "an Overload with a `throttle` is for what envoy.filters.http.admission_control does"),
        ("rate_limit_quota", "a Quota is for what envoy.filters.http.rate_limit_quota does"),
        ("compressor", "not supported yet: EnvoyFilter of networking.istio.io/v1alpha3 has no effect"),
    ] {
        check(&inserted(&format!("envoy.filters.http.{name}")), &[told]);
    }
}

/// As those of Envoy Gateway and of Kuadrant, which are written for routes and gateways that may be served here.
#[test]
fn what_another_controller_attaches_to_gateway_api_is_a_warning() {
    let policy = |targets: &str| {
        format!(
            "apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {{{targets}}}\n"
        )
    };
    let route = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: web";
    let told = "warning[not-supported-yet]: BackendTrafficPolicy shop/a: BackendTrafficPolicy of gateway.envoyproxy.io/v1alpha1 has no effect here: it is for another controller of `HTTPRoute web`";
    check(&policy(&format!("targetRefs: [{{{route}}}]")), &[&format!("t.yaml:4:21: {told}")]);
    check(&policy(&format!("targetRef: {{{route}}}")), &[told]);
    check(&policy(&format!("targetRefs: [{{group: '', kind: Service, name: web}}, {{{route}}}]")), &[told]);
    for other in ["targetRefs: [{group: apps, kind: Deployment, name: web}]", "targetRef: web", "a: 1"] {
        check(&policy(other), &["info[ignored]"]);
    }
}

fn quota(rest: &str, rule: &str) -> String {
    format!(
        "apiVersion: policy.mesh-control/v1alpha1\nkind: Quota\nmetadata: {{name: calls, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  {rest}\n  rules: [{rule}]\n"
    )
}

#[test]
fn a_quota_that_cannot_count_is_told_with_its_place() {
    let rule = |by: &str, limit: &str| format!("{{name: all, by: [{by}], limit: {{{limit}}}}}");
    let good = rule("{header: x-user}", "requests: 5, per: DAY");
    check(&quota("failureMode: DENY", &good), &[]);
    for (rest, rule, expected) in [
        (
            "mode: SERVER",
            rule("", "requests: 0, per: DAY"),
            "t.yaml:7:49: error[invalid-value]: Quota shop/calls: rules[0].limit.requests: must be at least 1",
        ),
        ("mode: SERVER", rule("", "requests: 1, per: YEAR"), "rules[0].limit.per: "),
        ("mode: SERVER", rule("", "requests: 1"), "rules[0].limit: field `per` is missing"),
        ("mode: SERVER", rule("{query: ''}", "requests: 1, per: DAY"), "rules[0].by[0].query: a parameter has a name"),
        ("mode: SERVER", rule("{header: x}, {header: X}", "requests: 1, per: DAY"), "rules[0].by: `x` is said twice"),
        ("unassigned: 1", good.clone(), "unassigned: without effect"),
        ("reportEvery: 50ms", good.clone(), "reportEvery: not between"),
        ("hosts: [limits.shop.svc.cluster.local]", good.clone(), "hosts: hosts are for mode CLIENT"),
        ("answer: {status: 200}", good.clone(), "answer.status: 200 is not a status"),
    ] {
        check(&quota(rest, &rule), &[expected]);
    }
    for key in ["claim: sub", "client: NAMESPACE", "remoteAddress: {}"] {
        let field = key.split(':').next().unwrap();
        let expected =
            format!("error[invalid-value]: Quota shop/calls: rules[0].by[0].{field}: known of requests that come in");
        check(&quota("mode: CLIENT", &rule(&format!("{{{key}}}"), "requests: 5, per: DAY")), &[&expected]);
    }
    let get = "{name: all, match: {method: get}, limit: {requests: 1, per: DAY}}";
    check(&quota("mode: SERVER", get), &["rules[0].match.method: no request has it, for methods are told apart"]);
    check(
        &quota("mode: CLIENT\n  hosts: [gone.example.com]", &good),
        &["warning[unknown-reference]: Quota shop/calls: hosts: nothing has the host \"gone.example.com\""],
    );
}

#[test]
fn a_weight_of_a_caller_that_there_can_never_be_is_told() {
    let queue = |by: &str, caller: &str| {
        let text = own(&format!("concurrency: {{max: 10, queue: {{max: 5, by: [{by}], weights: {{'{caller}': 2}}}}}}"));
        text.replace("kind: RateLimit", "kind: Overload")
    };
    for (by, known, unknown, what) in [
        ("{client: NAMESPACE}", "shop", "shop/sa", "namespace"),
        ("{method: true}", "GET", "get", "method"),
        ("{pathTemplates: [/a, '/b/*']}", "/b/*", "/b/c", "template of `by`"),
    ] {
        check(&queue(by, known), &[]);
        let told =
            format!("concurrency.queue.weights[{unknown}]: `{unknown}` is no {what}, and no caller is called so");
        check(&queue(by, unknown), &[&told]);
    }
}
