//! Who is on the other end of a stream: the node of its first request, read with patience.
//!
//! A node is what a client claims about itself, in Istio's form where it comes from a bootstrap of ours or
//! of Istio's, in any form where a person wrote it. By its namespace and its labels a client is found by rules and by
//! what guards it: one that says them in a form that cannot be read is refused ([`unreadable`]), since nobody would
//! notice that it is taken for another. Whatever else does not read well is left out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::google::protobuf::value::Kind as Value;
use envoy_types::pb::google::protobuf::{Struct, Value as Wrapped};
use mesh_core::identity::SpiffeId;
use serde::Deserialize;

use crate::catalog::{Client, ClientClass, Sidecar, Topology};
use crate::config::istio::mesh_config::{ForwardClientCertDetails, MOST_FORWARDED_HOPS};

/// How connections come to a sidecar, in Istio's words.
const INTERCEPTION_MODE: &str = "INTERCEPTION_MODE";
/// Where a sidecar that binds addresses itself listens for its workload.
const OUTBOUND_IP: &str = "MESH_OUTBOUND_IP";

/// How many labels, addresses and ports one client may have.
const MANY: usize = 256;

/// Whether a node claims only what its owner's certificate says: the certificate decides who somebody is,
/// the node may repeat it or leave it out.
pub(crate) fn contradiction(node: &Node, identity: &SpiffeId) -> Option<String> {
    let Some((namespace, service_account)) = identity.workload() else {
        return Some(format!(
            "the certificate names nobody: {identity} is not spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
        ));
    };
    let empty = Struct::default();
    let metadata = node.metadata.as_ref().unwrap_or(&empty);
    let from_id = namespace_of_id(&node.id);
    let claims = [
        ("NAMESPACE", text(metadata, "NAMESPACE"), namespace),
        ("the namespace of its id", from_id, namespace),
        ("SERVICE_ACCOUNT", text(metadata, "SERVICE_ACCOUNT"), service_account),
    ];
    claims.into_iter().find_map(|(what, claimed, certified)| {
        let claimed = claimed.filter(|claimed| *claimed != certified)?;
        Some(format!("the node says {what} is {claimed:?}, its certificate says {certified:?}"))
    })
}

/// What in a node's metadata says who it is, and is not of the type that it has to be of.
pub(crate) fn unreadable(node: &Node) -> Option<String> {
    let metadata = node.metadata.as_ref()?;
    let fault = |key: &str, expected: &str| Some(format!("metadata of the node: {key} is not {expected}"));
    for key in ["NAMESPACE", "SERVICE_ACCOUNT", "AUTO_REGISTER_GROUP"] {
        if !matches!(field(metadata, key), None | Some(Value::NullValue(_) | Value::StringValue(_))) {
            return fault(key, "a string");
        }
    }
    if class(&node.user_agent_name) == ClientClass::Envoy
        && let Some(fault) = unreadable_sidecar(metadata)
    {
        return Some(fault);
    }
    if let Err(wrong) = topology(metadata) {
        return Some(format!("metadata of the node: PROXY_CONFIG.gatewayTopology{wrong} cannot be read"));
    }
    match field(metadata, "LABELS") {
        None | Some(Value::NullValue(_)) => None,
        Some(Value::StructValue(labels)) => {
            let is_text = |value: &Wrapped| matches!(value.kind, Some(Value::StringValue(_)));
            // The first by name: the order of the map is another one every time.
            let wrong = labels.fields.iter().filter(|(_, value)| !is_text(value)).map(|(key, _)| key).min()?;
            fault(&format!("LABELS.{}", brief(wrong)), "a string")
        }
        Some(_) => fault("LABELS", "an object of strings"),
    }
}

/// What a sidecar says of how connections come to it, in words that mean nothing here: what it would bind is anybody's guess.
fn unreadable_sidecar(metadata: &Struct) -> Option<String> {
    let mode = field(metadata, INTERCEPTION_MODE).filter(|mode| !matches!(mode, Value::NullValue(_)));
    if let Some(mode) = mode
        && !matches!(mode, Value::StringValue(mode) if matches!(&**mode, "" | "REDIRECT" | "NONE"))
    {
        return Some("metadata of the node: INTERCEPTION_MODE is neither REDIRECT nor NONE".to_owned());
    }
    let ip = field(metadata, OUTBOUND_IP).filter(|ip| !matches!(ip, Value::NullValue(_)));
    let is_own =
        |ip: &Value| matches!(ip, Value::StringValue(ip) if ip.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()));
    // On any other address, whoever reaches it would call in the name of the workload.
    let is_wrong = ip.is_some_and(|ip| !is_own(ip));
    is_wrong.then(|| "metadata of the node: MESH_OUTBOUND_IP is no loopback address".to_owned())
}

/// What an Envoy is a proxy for: that it is one beside a workload, and where, says its id (Istio: `sidecar~IP~...`).
fn sidecar(node: &Node, metadata: &Struct) -> Option<Sidecar> {
    let mut parts = node.id.split('~');
    let (kind, ip) = (parts.next()?, parts.next()?.parse::<IpAddr>().ok()?);
    let outbound_ip = text(metadata, OUTBOUND_IP).and_then(|ip| ip.parse().ok());
    (kind == "sidecar" && class(&node.user_agent_name) == ClientClass::Envoy).then(|| Sidecar {
        ip: ip.to_canonical(),
        outbound_ip: outbound_ip.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        redirects: text(metadata, INTERCEPTION_MODE) != Some("NONE"),
        is_privileged: text(metadata, "UNPRIVILEGED_POD") != Some("true"),
    })
}

/// What is in front of a gateway, as it says itself (Istio: `PROXY_CONFIG`, of the annotation `proxy.istio.io/config`).
///
/// # Errors
/// The field that cannot be read: whom the gateway believes would be anybody's guess.
fn topology(metadata: &Struct) -> Result<Topology, &'static str> {
    let config = match field(metadata, "PROXY_CONFIG") {
        None | Some(Value::NullValue(_)) => return Ok(Topology::default()),
        Some(Value::StructValue(config)) => config,
        Some(_) => return Err(""),
    };
    let written = match field(config, "gatewayTopology") {
        None | Some(Value::NullValue(_)) => return Ok(Topology::default()),
        Some(Value::StructValue(written)) => written,
        Some(_) => return Err(""),
    };
    let forwarded_hops = match field(written, "numTrustedProxies") {
        None | Some(Value::NullValue(_)) => None,
        Some(Value::NumberValue(number))
            if (0.0..=f64::from(MOST_FORWARDED_HOPS)).contains(number) && number.fract() == 0.0 =>
        {
            Some(*number as u32)
        }
        Some(_) => return Err(".numTrustedProxies"),
    };
    let client_cert = match field(written, "forwardClientCertDetails") {
        None | Some(Value::NullValue(_)) => None,
        Some(Value::StringValue(details)) => {
            let details = ForwardClientCertDetails::from_word(details).ok_or(".forwardClientCertDetails")?;
            details.forwarded()
        }
        Some(_) => return Err(".forwardClientCertDetails"),
    };
    let proxy_protocol = match field(written, "proxyProtocol") {
        None => None,
        Some(Value::StructValue(_)) => Some(true),
        // Istio has no words for a gateway that is behind none, where the settings of the mesh say it of all.
        Some(Value::BoolValue(false)) => Some(false),
        Some(_) => return Err(".proxyProtocol"),
    };
    Ok(Topology { forwarded_hops, client_cert, proxy_protocol })
}

/// Whether it is a gateway, as its id says (Istio: `router~IP~...`). gRPC's clients are none.
fn is_gateway(node: &Node) -> bool {
    node.id.starts_with("router~") && class(&node.user_agent_name) != ClientClass::Grpc
}

/// What a node says beyond what resources are rendered by: for telemetry and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// The workload's name (`WORKLOAD_NAME`, else `NAME`, else the one in its id).
    pub name: String,
    /// The cluster it is in (`CLUSTER_ID`).
    pub cluster: String,
    /// The WorkloadGroup that it says it belongs to (`AUTO_REGISTER_GROUP`).
    pub group: Option<String>,
    /// Its service account (`SERVICE_ACCOUNT`), `default` where it does not say.
    pub service_account: String,
    /// What it runs: `node.user_agent_name` and version.
    pub user_agent: String,
}

impl About {
    /// Reads a node.
    pub(crate) fn read(node: &Node) -> About {
        let empty = Struct::default();
        let metadata = node.metadata.as_ref().unwrap_or(&empty);
        let said = |key| text(metadata, key).filter(|text| !text.is_empty()).map(brief);
        let from_id = || node.id.split('~').nth(2).and_then(|name| name.rsplit_once('.')).map(|(name, _)| brief(name));
        let name = said("WORKLOAD_NAME").or_else(|| said("NAME")).or_else(from_id);
        About {
            name: name.unwrap_or_else(|| brief(&node.id)),
            cluster: said("CLUSTER_ID").unwrap_or_default(),
            group: said("AUTO_REGISTER_GROUP"),
            service_account: said("SERVICE_ACCOUNT").unwrap_or_else(|| "default".to_owned()),
            user_agent: match &node.user_agent_version_type {
                Some(UserAgentVersionType::UserAgentVersion(version)) => {
                    brief(&format!("{} {version}", node.user_agent_name))
                }
                _ => brief(&node.user_agent_name),
            },
        }
    }
}

fn brief(text: &str) -> String {
    text.chars().take(MANY).collect()
}

/// Reads a node.
pub(crate) fn read(node: &Node, peer_ip: IpAddr) -> Client {
    let empty = Struct::default();
    let metadata = node.metadata.as_ref().unwrap_or(&empty);
    let (locality, labels) = (node.locality.as_ref(), labels(metadata));
    Client {
        node_id: Arc::from(&*node.id),
        class: class(&node.user_agent_name),
        namespace: Arc::from(namespace(metadata, &node.id)),
        labels: Arc::new(labels.clone()),
        instance_ips: instance_ips(metadata),
        peer_ip: peer_ip.to_canonical(),
        ports: ports(metadata),
        locality: labelled_locality(&labels).unwrap_or_else(|| {
            [
                locality.map_or("", |locality| &locality.region).into(),
                locality.map_or("", |locality| &locality.zone).into(),
                locality.map_or("", |locality| &locality.sub_zone).into(),
            ]
        }),
        empty_means_all: !never_asks_for_all(&node.user_agent_name),
        group: text(metadata, "AUTO_REGISTER_GROUP").filter(|text| !text.is_empty()).map(|text| brief(text).into()),
        identity: None,
        sidecar: sidecar(node, metadata),
        is_gateway: is_gateway(node),
        topology: topology(metadata).unwrap_or_default(),
    }
}

/// The locality by Istio's labels, which go before the node's own. A label's value has no slashes: there are dots for them.
fn labelled_locality(labels: &BTreeMap<String, String>) -> Option<[Arc<str>; 3]> {
    let label = ["topology.istio.io/locality", "istio-locality"].iter().find_map(|name| labels.get(*name))?;
    let mut parts = label.splitn(3, if label.contains('/') { '/' } else { '.' }).map(Arc::<str>::from);
    Some(std::array::from_fn(|_| parts.next().unwrap_or_default()))
}

/// gRPC's clients of any language, and our library: an empty first list of theirs asks for nothing (grpc-go#7013).
fn never_asks_for_all(user_agent: &str) -> bool {
    let user_agent = user_agent.to_ascii_lowercase();
    user_agent == "mesh-core" || user_agent.starts_with("grpc")
}

// Who does not say is taken for gRPC: the subset that everybody accepts.
fn class(user_agent: &str) -> ClientClass {
    let user_agent = user_agent.to_ascii_lowercase();
    if user_agent == "mesh-core" {
        ClientClass::Library
    } else if user_agent.starts_with("envoy") {
        ClientClass::Envoy
    } else {
        ClientClass::Grpc
    }
}

fn namespace<'a>(metadata: &'a Struct, id: &'a str) -> &'a str {
    let claimed = text(metadata, "NAMESPACE");
    // `type~ip~name.namespace~namespace.svc.domain` (Istio's node id).
    let from_id = id.split('~').nth(3).and_then(|domain| domain.split('.').next());
    [claimed, from_id].into_iter().flatten().find(|name| is_label(name)).unwrap_or("default")
}

// `type~ip~name.namespace~namespace.svc.domain` (Istio's node id).
fn namespace_of_id(id: &str) -> Option<&str> {
    id.split('~').nth(3).and_then(|domain| domain.split('.').next())
}

fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(plain)
}

fn labels(metadata: &Struct) -> BTreeMap<String, String> {
    let Some(Value::StructValue(labels)) = field(metadata, "LABELS") else {
        return BTreeMap::new();
    };
    let pairs = labels.fields.iter().filter_map(|(key, value)| match &value.kind {
        Some(Value::StringValue(text)) => Some((key.clone(), text.clone())),
        _ => None,
    });
    // Sorted before they are cut: which ones stay must not depend on the order of a hash map.
    let sorted: BTreeMap<_, _> = pairs.collect();
    sorted.into_iter().take(MANY).collect()
}

fn instance_ips(metadata: &Struct) -> Vec<IpAddr> {
    let list = text(metadata, "INSTANCE_IPS").unwrap_or_default();
    let addresses = list.split(',').filter_map(|address| address.trim().parse::<IpAddr>().ok());
    addresses.map(|address| address.to_canonical()).take(MANY).collect()
}

#[derive(Deserialize)]
struct PodPort {
    #[serde(default)]
    name: String,
    #[serde(rename = "containerPort")]
    number: u16,
}

fn ports(metadata: &Struct) -> Vec<(String, u16)> {
    let text = text(metadata, "POD_PORTS").unwrap_or_default();
    let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Vec::new();
    };
    let ports = list.into_iter().filter_map(|port| serde_json::from_value::<PodPort>(port).ok());
    ports.filter(|port| !port.name.is_empty()).map(|port| (port.name, port.number)).take(MANY).collect()
}

fn text<'a>(metadata: &'a Struct, key: &str) -> Option<&'a str> {
    match field(metadata, key)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn field<'a>(metadata: &'a Struct, key: &str) -> Option<&'a Value> {
    metadata.fields.get(key).and_then(|Wrapped { kind }| kind.as_ref())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Locality;
    use mesh_core::model::ForwardedClientCert;

    use super::*;

    fn node(id: &str, metadata: &[(&str, Value)]) -> Node {
        let fields = metadata.iter().map(|(key, value)| ((*key).to_owned(), Wrapped { kind: Some(value.clone()) }));
        Node { id: id.to_owned(), metadata: Some(Struct { fields: fields.collect() }), ..Node::default() }
    }

    fn string(text: &str) -> Value {
        Value::StringValue(text.to_owned())
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    #[test]
    fn what_is_in_front_of_a_gateway_is_what_it_says_and_nothing_is_guessed() {
        let object = |fields: &[(&str, Value)]| {
            let fields =
                fields.iter().map(|(key, value)| ((*key).to_owned(), Wrapped { kind: Some(value.clone()) })).collect();
            Value::StructValue(Struct { fields })
        };
        let said = |topology: Value| node("router~", &[("PROXY_CONFIG", object(&[("gatewayTopology", topology)]))]);
        let details = |text: &str| object(&[("forwardClientCertDetails", string(text))]);
        let all = object(&[
            ("numTrustedProxies", Value::NumberValue(2.0)),
            ("forwardClientCertDetails", string("ALWAYS_FORWARD_ONLY")),
            ("proxyProtocol", object(&[])),
        ]);
        let client_cert = Some(ForwardedClientCert::AlwaysForwardOnly);
        let expected = Topology { forwarded_hops: Some(2), client_cert, proxy_protocol: Some(true) };
        assert_eq!(read(&said(all), PEER).topology, expected);
        for nothing in [said(object(&[])), node("router~", &[])] {
            assert_eq!(read(&nothing, PEER).topology, Topology::default());
        }
        // Of what it does not say, the settings of the mesh count.
        let of_mesh = Topology { forwarded_hops: Some(1), proxy_protocol: Some(true), ..Topology::default() };
        let own = Topology { forwarded_hops: Some(0), ..Topology::default() };
        let expected = Topology { forwarded_hops: Some(0), client_cert: None, proxy_protocol: Some(true) };
        assert_eq!(own.or(of_mesh), expected);
        let behind_none = read(&said(object(&[("proxyProtocol", Value::BoolValue(false))])), PEER).topology;
        assert_eq!(behind_none.or(of_mesh).proxy_protocol, Some(false));
        for wrong in [
            string("x"),
            object(&[("numTrustedProxies", Value::NumberValue(-1.0))]),
            object(&[("numTrustedProxies", Value::NumberValue(0.5))]),
            object(&[("numTrustedProxies", string("1"))]),
            object(&[("proxyProtocol", Value::BoolValue(true))]),
            // Nobody can tell whether it is asked for.
            object(&[("proxyProtocol", Value::NullValue(0))]),
            details("sanitize"),
        ] {
            assert!(unreadable(&said(wrong.clone())).is_some(), "{wrong:?}");
        }
        assert!(unreadable(&node("router~", &[("PROXY_CONFIG", string("{}"))])).is_some());
        assert_eq!(unreadable(&said(details("SANITIZE"))), None);
    }

    #[test]
    fn a_gateway_is_one_by_its_id_and_no_client_of_grpc_is() {
        for (id, agent, expected) in [
            ("router~10.0.0.1~edge.edges~edges.svc.cluster.local", "envoy", true),
            ("router~10.0.0.1~edge.edges~edges.svc.cluster.local", "mesh-core", true),
            ("router~10.0.0.1~edge.edges~edges.svc.cluster.local", "gRPC Go", false),
            ("sidecar~10.0.0.1~edge.edges~edges.svc.cluster.local", "envoy", false),
            ("mesh~10.0.0.1~router.edges~edges.svc.cluster.local", "mesh-core", false),
        ] {
            let mut node = node(id, &[]);
            node.user_agent_name = agent.to_owned();
            assert_eq!(read(&node, PEER).is_gateway, expected, "{id} {agent}");
        }
    }

    #[test]
    fn a_full_node_is_read() {
        let labels = Struct { fields: [("app".to_owned(), Wrapped { kind: Some(string("web")) })].into() };
        let mut node = node(
            "mesh~10.0.0.1~web-1.shop~shop.svc.cluster.local",
            &[
                ("NAMESPACE", string("checkout")),
                ("LABELS", Value::StructValue(labels)),
                ("INSTANCE_IPS", string("10.0.0.1, ::ffff:10.0.0.2,nonsense")),
                (
                    "POD_PORTS",
                    string(r#"[{"name":"http","containerPort":8080,"protocol":"TCP"},{"containerPort":1},7]"#),
                ),
            ],
        );
        node.user_agent_name = "gRPC C-core".to_owned();
        node.locality = Some(Locality { region: "r".into(), zone: "z".into(), sub_zone: String::new() });
        let client = read(&node, PEER);
        assert_eq!(client.class, ClientClass::Grpc);
        assert_eq!(&*client.namespace, "checkout");
        assert_eq!(client.labels.get("app").map(String::as_str), Some("web"));
        assert_eq!(client.instance_ips, [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
        assert_eq!(client.ports, [("http".to_owned(), 8080)]);
        assert_eq!(client.locality.each_ref().map(|part| &**part), ["r", "z", ""]);
    }

    #[test]
    fn the_namespace_comes_from_the_metadata_then_the_id_then_is_default() {
        let id = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";
        for (metadata, id, expected) in [
            (vec![("NAMESPACE", string("checkout"))], id, "checkout"),
            (vec![], id, "shop"),
            (vec![("NAMESPACE", string("Not A Label"))], id, "shop"),
            (vec![("NAMESPACE", Value::NumberValue(3.0))], "anything", "default"),
            (vec![], "", "default"),
            (vec![], "a~b~c~../..", "default"),
        ] {
            assert_eq!(&*read(&node(id, &metadata), PEER).namespace, expected);
        }
    }

    #[test]
    fn the_class_is_told_by_the_user_agent() {
        for (user_agent, expected) in [
            ("mesh-core", ClientClass::Library),
            ("gRPC C-core", ClientClass::Grpc),
            ("gRPC Node Pure JS", ClientClass::Grpc),
            ("envoy", ClientClass::Envoy),
            ("", ClientClass::Grpc),
            ("something else", ClientClass::Grpc),
        ] {
            assert_eq!(class(user_agent), expected, "{user_agent}");
        }
    }

    #[test]
    fn a_node_may_repeat_what_its_certificate_says_and_not_contradict_it() {
        let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an ID");
        let says = |id: &str, metadata: &[(&str, Value)]| contradiction(&node(id, metadata), &identity);
        let id = "mesh~10.0.0.1~web-1.shop~shop.svc.cluster.local";
        assert_eq!(says("", &[]), None);
        assert_eq!(says(id, &[("NAMESPACE", string("shop")), ("SERVICE_ACCOUNT", string("web"))]), None);
        assert!(says(id, &[("NAMESPACE", string("checkout"))]).is_some());
        assert!(says(id, &[("SERVICE_ACCOUNT", string("root"))]).is_some());
        assert!(says("mesh~10.0.0.1~web-1.pay~pay.svc.cluster.local", &[]).is_some());
        let nobody: SpiffeId = "spiffe://cluster.local/control".parse().expect("an ID");
        assert!(contradiction(&Node::default(), &nobody).is_some(), "no workload has this ID");
    }

    #[test]
    fn a_workload_is_called_what_it_says_or_what_its_id_says() {
        let id = "mesh~10.0.0.1~web-1.v2.shop~shop.svc.cluster.local";
        for (metadata, id, expected) in [
            (vec![("WORKLOAD_NAME", string("web")), ("NAME", string("web-1"))], id, "web"),
            (vec![("NAME", string("web-1"))], id, "web-1"),
            (vec![], id, "web-1.v2"),
            (vec![], "anything", "anything"),
        ] {
            assert_eq!(About::read(&node(id, &metadata)).name, expected);
        }
    }

    #[test]
    fn who_a_client_is_has_to_be_readable() {
        let labels = |value| {
            let fields = [("app", string("web")), ("version", value)];
            let fields = fields.map(|(key, kind)| (key.to_owned(), Wrapped { kind: Some(kind) }));
            Value::StructValue(Struct { fields: fields.into() })
        };
        let number = || Value::NumberValue(2.0);
        for (key, value, expected) in [
            ("LABELS", labels(string("2")), None),
            ("LABELS", Value::NullValue(0), None),
            ("LABELS", labels(number()), Some("LABELS.version is not a string")),
            ("LABELS", labels(Value::NullValue(0)), Some("LABELS.version is not a string")),
            ("LABELS", string("app=web"), Some("LABELS is not an object of strings")),
            ("NAMESPACE", number(), Some("NAMESPACE is not a string")),
            ("SERVICE_ACCOUNT", Value::BoolValue(true), Some("SERVICE_ACCOUNT is not a string")),
            ("AUTO_REGISTER_GROUP", number(), Some("AUTO_REGISTER_GROUP is not a string")),
            ("OTHER", number(), None),
        ] {
            let said = unreadable(&node("x", &[(key, value)]));
            assert_eq!(said, expected.map(|expected| format!("metadata of the node: {expected}")), "{key}");
        }
        assert_eq!(unreadable(&Node::default()), None);
    }

    #[test]
    fn a_sidecar_says_where_it_is_and_how_connections_come_to_it() {
        let envoy =
            |id: &str, metadata: &[(&str, Value)]| Node { user_agent_name: "envoy".into(), ..node(id, metadata) };
        let id = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";
        let of = |node: &Node| {
            read(node, PEER).sidecar.map(|it| (it.ip.to_string(), it.outbound_ip.to_string(), it.redirects))
        };
        let said = |ip: &str, outbound: &str, redirects| Some((ip.to_owned(), outbound.to_owned(), redirects));
        assert_eq!(of(&envoy(id, &[])), said("10.0.0.1", "127.0.0.1", true));
        assert_eq!(of(&envoy(id, &[("INTERCEPTION_MODE", string("NONE"))])), said("10.0.0.1", "127.0.0.1", false));
        let outbound = [("INTERCEPTION_MODE", string("NONE")), ("MESH_OUTBOUND_IP", string("127.0.0.9"))];
        assert_eq!(of(&envoy(id, &outbound)), said("10.0.0.1", "127.0.0.9", false));
        // Anything else is none: another kind of proxy, no address, another client.
        for other in ["router~10.0.0.1~a.b~b.svc.cluster.local", "sidecar~here~a.b~b.svc.cluster.local", "envoy"] {
            assert_eq!(of(&envoy(other, &[])), None, "{other}");
        }
        assert_eq!(of(&node(id, &[])), None);
        for (key, value) in [
            ("INTERCEPTION_MODE", string("TPROXY")),
            ("INTERCEPTION_MODE", Value::BoolValue(true)),
            ("MESH_OUTBOUND_IP", string("10.0.0.1")),
            ("MESH_OUTBOUND_IP", string("0.0.0.0")),
        ] {
            let metadata = [(key, value)];
            assert!(unreadable(&envoy(id, &metadata)).is_some_and(|why| why.contains(key)), "{key}");
            assert_eq!(unreadable(&node(id, &metadata)), None, "others have no such thing");
        }
    }

    #[test]
    fn malformed_metadata_is_left_out() {
        let metadata =
            [("LABELS", string("not a struct")), ("INSTANCE_IPS", Value::BoolValue(true)), ("POD_PORTS", string("{"))];
        let client = read(&node("x", &metadata), PEER);
        assert!(client.labels.is_empty() && client.instance_ips.is_empty() && client.ports.is_empty());
        assert_eq!(client.peer_ip, PEER);
    }
}
