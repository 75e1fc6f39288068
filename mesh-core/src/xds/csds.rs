//! What this client knows, as an answer of the client status discovery service (CSDS, gRFC A40).

use bytes::Bytes;
use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ClientStatusResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::check::timestamp;
use super::intake::USER_AGENT;
use super::names::type_url;
use crate::client_status::{ClientStatus, RawResource, ResourceState, ResourceStatus};
use crate::resources::ResourceType;

/// The answer to a question: a `ClientStatusResponse` to a `ClientStatusRequest`, in bytes.
///
/// # Errors
/// What cannot be read, or asks for a choice of nodes, of which there is one here.
pub(crate) fn answer(status: &ClientStatus, request: &[u8]) -> Result<Bytes, &'static str> {
    let request = ClientStatusRequest::decode(request).map_err(|_| "it is no ClientStatusRequest")?;
    if !request.node_matchers.is_empty() {
        return Err("node_matchers are not supported");
    }
    let node = Node { id: status.node_id.clone(), user_agent_name: USER_AGENT.to_owned(), ..Node::default() };
    let config = ClientConfig {
        node: Some(node),
        generic_xds_configs: status.resources.iter().map(resource).collect(),
        ..ClientConfig::default()
    };
    Ok(ClientStatusResponse { config: vec![config] }.encode_to_vec().into())
}

fn resource(resource: &ResourceStatus) -> GenericXdsConfig {
    let state = match resource.state {
        ResourceState::Requested => ClientResourceStatus::Requested,
        ResourceState::DoesNotExist => ClientResourceStatus::DoesNotExist,
        ResourceState::Acked => ClientResourceStatus::Acked,
        ResourceState::Nacked => ClientResourceStatus::Nacked,
        ResourceState::ReceivedError => ClientResourceStatus::ReceivedError,
        ResourceState::Timeout => ClientResourceStatus::Timeout,
    };
    // Keys are nobody's business. One that stands in another resource is refused, and of that the text would be shown.
    let may_be_shown = |raw: &&RawResource| resource.key.kind != ResourceType::Secret && !has_key(&raw.value);
    let shown = |raw: &Option<RawResource>| raw.as_ref().filter(may_be_shown).map(any);
    GenericXdsConfig {
        type_url: type_url(resource.key.kind).to_owned(),
        name: resource.key.name.to_string(),
        version_info: resource.version.clone(),
        xds_config: shown(&resource.raw),
        last_updated: resource.last_updated.map(timestamp),
        client_status: state.into(),
        error_state: resource.error.as_ref().map(|error| UpdateFailureState {
            failed_configuration: shown(&error.raw),
            last_update_attempt: Some(timestamp(error.at)),
            details: error.details.to_string(),
            version_info: error.version.clone(),
        }),
        ..GenericXdsConfig::default()
    }
}

fn has_key(bytes: &[u8]) -> bool {
    const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-----";
    bytes.windows(PRIVATE_KEY.len()).any(|part| part == PRIVATE_KEY)
}

fn any(raw: &RawResource) -> Any {
    Any { type_url: raw.type_url.to_owned(), value: raw.value.to_vec() }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use envoy_types::pb::envoy::r#type::matcher::v3::NodeMatcher;

    use super::*;
    use crate::client_status::ErrorState;
    use crate::resources::ResourceKey;

    #[test]
    fn resources_are_told_as_they_came_with_what_became_of_them_and_without_keys() {
        let raw = |value: &'static [u8]| RawResource { type_url: "type.example/T", value: value.into() };
        let of = |kind, name: &str| {
            let mut one = ResourceStatus::new(ResourceKey::new(kind, name));
            (one.state, one.version, one.raw) = (ResourceState::Nacked, "3".to_owned(), Some(raw(b"good")));
            one.last_updated = Some(UNIX_EPOCH + Duration::from_millis(5_500));
            let mut error = ErrorState::new("lb_policy: unknown", UNIX_EPOCH + Duration::from_secs(7));
            let bad: &[u8] = if name == "inline" { b"bad -----BEGIN PRIVATE KEY-----" } else { b"bad" };
            (error.version, error.raw) = ("4".to_owned(), Some(raw(bad)));
            one.error = Some(error);
            one
        };
        let mut status = ClientStatus { node_id: "web~1".to_owned(), ..ClientStatus::default() };
        let of_secret = of(ResourceType::Secret, "s");
        status.resources = vec![of(ResourceType::Cluster, "c"), of_secret, of(ResourceType::Listener, "inline")];
        let told = ClientStatusResponse::decode(answer(&status, &[]).unwrap()).unwrap();
        let [config] = &told.config[..] else { panic!("{told:?}") };
        assert_eq!(config.node.as_ref().unwrap().id, "web~1");
        let [cluster, secret, inline] = &config.generic_xds_configs[..] else { panic!("{config:?}") };
        assert_eq!(cluster.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!((cluster.name.as_str(), cluster.version_info.as_str(), cluster.client_status), ("c", "3", 4));
        assert_eq!(cluster.xds_config.as_ref().unwrap().value, b"good");
        let at = cluster.last_updated.as_ref().unwrap();
        assert_eq!((at.seconds, at.nanos), (5, 500_000_000));
        let error = cluster.error_state.as_ref().unwrap();
        assert_eq!((error.details.as_str(), error.version_info.as_str()), ("lb_policy: unknown", "4"));
        assert_eq!(error.failed_configuration.as_ref().unwrap().value, b"bad");
        assert_eq!((secret.name.as_str(), &secret.xds_config), ("s", &None));
        assert_eq!(secret.error_state.as_ref().unwrap().failed_configuration, None);
        assert_eq!(inline.xds_config.as_ref().unwrap().value, b"good");
        assert_eq!(inline.error_state.as_ref().unwrap().failed_configuration, None);

        let matching = ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..Default::default() };
        assert_eq!(answer(&status, &matching.encode_to_vec()), Err("node_matchers are not supported"));
        assert!(answer(&status, b"\xff").is_err());
    }
}
