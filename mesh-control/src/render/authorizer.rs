//! Who is asked, as Envoy's `ext_authz` filter with Istio's condition: it is asked about requests for which the shadow rules of
//! an RBAC filter before it have noted a policy.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use matcher::metadata_matcher::PathSegment;
use matcher::metadata_matcher::path_segment::Segment;
use matcher::string_matcher::MatchPattern;

use super::proto::{any, duration};
use crate::policy::access::Value;
use crate::policy::authorizer::{Authorizer, HttpQuestion};
use crate::policy::route::ClusterKey;

/// The filter; shadow rules note what they decide under this prefix.
pub(super) fn filter(name: String, authorizer: &Authorizer, prefix: &str) -> hcm::HttpFilter {
    let service = match &authorizer.http {
        Some(question) => pb::ext_authz::Services::HttpService(http(authorizer, question)),
        None => pb::ext_authz::Services::GrpcService(grpc(authorizer)),
    };
    let config = pb::ExtAuthz {
        transport_api_version: core::ApiVersion::V3.into(),
        failure_mode_allow: authorizer.fail_open,
        status_on_error: Some(HttpStatus { code: authorizer.status_on_error.into() }),
        filter_enabled_metadata: Some(matcher::MetadataMatcher {
            filter: "envoy.filters.http.rbac".to_owned(),
            path: vec![PathSegment { segment: Some(Segment::Key(format!("{prefix}shadow_effective_policy_id"))) }],
            value: Some(matcher::ValueMatcher {
                match_pattern: Some(matcher::value_matcher::MatchPattern::PresentMatch(true)),
            }),
            invert: false,
        }),
        // Over gRPC everything is shown.
        allowed_headers: authorizer.http.as_ref().map(|question| names(&question.shown)),
        with_request_body: authorizer.body.map(|body| pb::BufferSettings {
            max_request_bytes: body.most,
            allow_partial_message: body.allow_partial,
            pack_as_bytes: body.as_bytes,
        }),
        services: Some(service),
        ..Default::default()
    };
    let config_type = Some(hcm::http_filter::ConfigType::TypedConfig(any(&config)));
    hcm::HttpFilter { name, config_type, ..Default::default() }
}

fn http(authorizer: &Authorizer, question: &HttpQuestion) -> pb::HttpService {
    let added = question.added.iter().map(|(key, value)| core::HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..Default::default()
    });
    let some = |values: &[Value]| (!values.is_empty()).then(|| names(values));
    pb::HttpService {
        server_uri: Some(core::HttpUri {
            // The library's client calls it by this name, Envoy by the cluster's.
            uri: format!("http://{}", authorizer.target()),
            timeout: Some(duration(authorizer.timeout)),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster(authorizer))),
        }),
        path_prefix: question.path_prefix.clone(),
        authorization_request: Some(pb::AuthorizationRequest { headers_to_add: added.collect(), ..Default::default() }),
        authorization_response: Some(pb::AuthorizationResponse {
            allowed_upstream_headers: some(&question.to_upstream),
            allowed_client_headers: some(&question.to_client_on_deny),
            allowed_client_headers_on_success: some(&question.to_client_on_allow),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn grpc(authorizer: &Authorizer) -> core::GrpcService {
    let service = core::grpc_service::EnvoyGrpc {
        cluster_name: cluster(authorizer),
        authority: authorizer.target(),
        ..Default::default()
    };
    core::GrpcService {
        timeout: Some(duration(authorizer.timeout)),
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)),
        ..Default::default()
    }
}

fn cluster(authorizer: &Authorizer) -> String {
    ClusterKey { host: authorizer.host.as_str().into(), port: authorizer.port, subset: "".into() }.to_string()
}

/// Names of headers, in any case.
fn names(values: &[Value]) -> matcher::ListStringMatcher {
    let pattern = |value: &Value| match value {
        Value::Exact(name) => MatchPattern::Exact(name.clone()),
        Value::Prefix(name) => MatchPattern::Prefix(name.clone()),
        Value::Suffix(name) => MatchPattern::Suffix(name.clone()),
        _ => MatchPattern::SafeRegex(super::proto::regex(".+")),
    };
    let patterns = values.iter().map(|value| matcher::StringMatcher {
        match_pattern: Some(pattern(value)),
        // An expression takes no account of it, and names are in small letters.
        ignore_case: !matches!(value, Value::Present),
    });
    matcher::ListStringMatcher { patterns: patterns.collect() }
}
