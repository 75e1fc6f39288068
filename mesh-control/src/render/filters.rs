//! Filters that applications have compiled in, as an own filter of Envoy's API: a `TypedStruct` of the type under which it is
//! registered, with what becomes of requests where it cannot run besides. Rules on requests are one of the library's own.
//!
//! Only the library is told of them. Envoys and gRPC's clients and servers would refuse the listener.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::model::{ExtProc, Plugin, REQUEST_RULES};
use mesh_core::xds::decode::PluginBesides;
use prost::Message;

use super::extensions::typed_struct;
use super::proto;
use crate::policy::filters::{FilterInForce, FilterKind, Stage};

/// Those of a stage, in their order.
pub fn at(filters: &[FilterInForce], stage: Stage) -> impl Iterator<Item = hcm::HttpFilter> + '_ {
    filters.iter().filter(move |filter| filter.stage == stage).map(filter)
}

/// One of them.
fn filter(FilterInForce { id, kind, .. }: &FilterInForce) -> hcm::HttpFilter {
    let config = match kind {
        FilterKind::Plugin(plugin) => any(plugin),
        FilterKind::Processor(processor) => external_processor(processor),
        FilterKind::Rules { rules, .. } => typed_struct(REQUEST_RULES, rules).typed_config.unwrap_or_default(),
    };
    hcm::HttpFilter {
        name: format!("mesh-control.filter/{id}"),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// An external processor, as Envoy's filter.
fn external_processor(processor: &ExtProc) -> Any {
    use pb::processing_mode::HeaderSendMode;
    let service = EnvoyGrpc { authority: processor.target.to_string(), ..Default::default() };
    let service =
        core::GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)), ..Default::default() };
    let mode = |is_shown| i32::from(if is_shown { HeaderSendMode::Send } else { HeaderSendMode::Skip });
    proto::any(&pb::ExternalProcessor {
        grpc_service: Some(service),
        failure_mode_allow: processor.fail_open,
        processing_mode: Some(pb::ProcessingMode {
            request_header_mode: mode(processor.request),
            response_header_mode: mode(processor.response),
            ..Default::default()
        }),
        message_timeout: Some(proto::duration(processor.timeout)),
        ..Default::default()
    })
}

fn any(plugin: &Plugin) -> Any {
    let config = serde_json::from_str(&plugin.config).unwrap_or_default();
    let mut any = typed_struct(&plugin.name, &config).typed_config.unwrap_or_default();
    any.value.extend(PluginBesides::from(plugin.on_failure).encode_to_vec());
    any
}
