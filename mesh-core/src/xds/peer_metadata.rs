//! What Istio's proxies tell each other of themselves in headers (`x-envoy-peer-metadata`): a `Struct` of protobuf, in base64.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use prost::Message;

use crate::workload::{Workload, said};

const APP: &str = "app";
const VERSION: &str = "version";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// What a workload tells.
pub fn encode(workload: &Workload) -> String {
    let labels = [
        (APP, &workload.app),
        (VERSION, &workload.version),
        (CANONICAL_NAME, &workload.canonical_name),
        (CANONICAL_REVISION, &workload.canonical_revision),
    ];
    let labels = Value { kind: Some(Kind::StructValue(Struct { fields: texts(labels) })) };
    let own = [
        ("WORKLOAD_NAME", &workload.name),
        ("NAMESPACE", &workload.namespace),
        ("CLUSTER_ID", &workload.cluster),
        ("NAME", &pod(workload)),
        ("OWNER", &owner(workload)),
    ];
    let mut fields = texts(own);
    fields.insert("LABELS".to_owned(), labels);
    STANDARD.encode(Struct { fields }.encode_to_vec())
}

fn pod(workload: &Workload) -> Option<Arc<str>> {
    let name = workload.node.as_ref()?.split('~').nth(2)?;
    said(name.rsplit_once('.').map_or(name, |(name, _)| name))
}

/// Istio takes the kind of a workload from it.
fn owner(workload: &Workload) -> Option<Arc<str>> {
    let (namespace, name) = (workload.namespace.as_deref()?, workload.name.as_deref()?);
    Some(format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{name}").into())
}

fn texts<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a Option<Arc<str>>)>,
) -> std::collections::HashMap<String, Value> {
    let text = |(key, text): (&str, &Option<Arc<str>>)| {
        let kind = Kind::StringValue(text.as_deref()?.to_owned());
        Some((key.to_owned(), Value { kind: Some(kind) }))
    };
    texts.into_iter().filter_map(text).collect()
}

/// What somebody tells; `None` where that cannot be read.
pub fn decode(told: &[u8]) -> Option<Workload> {
    let told = Struct::decode(&*STANDARD.decode(told).ok()?).ok()?;
    let text_in = |fields: &Struct, key: &str| match &fields.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => said(text),
        _ => None,
    };
    let labels = match told.fields.get("LABELS").and_then(|labels| labels.kind.clone()) {
        Some(Kind::StructValue(labels)) => labels,
        _ => Struct::default(),
    };
    let text = |key| text_in(&told, key);
    Some(Workload::of_parts(text("WORKLOAD_NAME"), text("NAMESPACE"), text("CLUSTER_ID"), |key| text_in(&labels, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_back() {
        let mut own = Workload::of_endpoint("web-v1;shop;web;v1;east");
        own.node = Some("mesh~10.0.0.1~web-v1-7.shop~shop.svc.cluster.local".into());
        (own.app, own.version) = (Some("web".into()), Some("v1".into()));
        let told = encode(&own);
        assert!(http::HeaderValue::from_str(&told).is_ok());
        own.node = None;
        assert_eq!(decode(told.as_bytes()), Some(own));
    }

    #[test]
    fn what_is_no_struct_is_nothing() {
        for told in [&b"***"[..], b"AAAA", b"\xff", &STANDARD.encode([0xff; 40]).into_bytes()] {
            assert_eq!(decode(told), None, "{told:?}");
        }
        assert_eq!(decode(b""), Some(Workload::default()));
    }
}
