//! Transport sockets: how connections are secured. Certificates of who calls never travel over xDS, a resource names where they come from:
//! the mesh's own in gRPC's terms (gRFC A29), those of others by the client's files in Envoy's.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{BoolValue, Struct, Value, value::Kind};
use mesh_core::identity::SpiffeId;
use prost::{Message, Name};

use super::proto::{ads, any};
use super::{is_marked, secrets};
use crate::policy::Cluster;
use crate::policy::route::ServerName;
use crate::policy::traffic::{ForeignTls, Roots, SecretTls, Tls};
use crate::registry::WrittenEndpoint;

/// How a client is to secure its connections to a cluster.
#[derive(Debug, Default)]
pub(super) struct Security {
    /// To all endpoints alike.
    pub(super) socket: Option<core::TransportSocket>,
    /// By what the endpoint says of itself.
    pub(super) matches: Vec<TransportSocketMatch>,
}

/// What the rules and the mesh say of a cluster. In a mesh that `has_certificates`, endpoints that speak mutual TLS are
/// called by it, unless a rule wants it otherwise. `identities` are those who serve it so.
///
/// Files that a rule names are the client's own: it is told their names and reads them.
pub(super) fn upstream(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    has_certificates: bool,
    identities: &[SpiffeId],
) -> Security {
    let of_identities = || identities.iter().map(|id| id.as_str().to_owned()).collect();
    let for_all = |context| Security { socket: Some(socket(&context)), ..Security::default() };
    match &seen.traffic.tls {
        Tls::Plaintext => Security::default(),
        Tls::Automatic if !has_certificates || !is_marked(seen, written) => Security::default(),
        // Also where nobody is known to serve it so: an endpoint that is marked must not be called in plaintext meanwhile.
        Tls::Automatic => {
            let secured = socket(&mutual(own_sni(seen), of_identities(), has_certificates));
            Security { matches: where_marked(secured), ..Security::default() }
        }
        Tls::Mesh { sni, peers } => {
            let peers = if peers.is_empty() { of_identities() } else { peers.clone() };
            for_all(mutual(sni.clone().unwrap_or_else(|| own_sni(seen)), peers, has_certificates))
        }
        Tls::Foreign(tls) => for_all(foreign(seen, tls)),
        Tls::BySecret(by) => match seen.rule.filter(|_| seen.has_secret) {
            Some(rule) => for_all(by_secret(seen, &rule.meta.namespace, by, over_same_stream)),
            // It is for nobody. A client that is told of it refuses to call rather than call in plaintext.
            None => {
                let common = pb::CommonTlsContext {
                    tls_certificate_provider_instance: Some(instance(SECRETS, "")),
                    validation_context_type: validation(SECRETS, Vec::new()),
                    ..Default::default()
                };
                for_all(pb::UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() })
            }
        },
    }
}

/// Whether those who may answer are named for being endpoints, and by no rule.
pub(super) fn is_by_endpoints(seen: &Cluster<'_>) -> bool {
    let is_written = match &seen.traffic.tls {
        Tls::Automatic => false,
        Tls::Mesh { peers, .. } => !peers.is_empty(),
        Tls::Plaintext | Tls::Foreign(_) | Tls::BySecret(_) => true,
    };
    !is_written && seen.service.peers.is_empty()
}

/// What the rules and the mesh say of a cluster to a gRPC client, for all endpoints alike: gRPC cannot tell them apart. One
/// that has a certificate shows it wherever somebody serves by mutual TLS; endpoints that do not fail their calls. `None`
/// where it must not call, for it cannot do what a rule asks.
pub(super) fn of_grpc(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    may_have_certificate: bool,
    identities: &[SpiffeId],
) -> Option<Security> {
    let of_identities = || identities.iter().map(|id| id.as_str().to_owned()).collect();
    let mutual = |sni, peers| {
        let mut context = mutual(sni, peers, true);
        if let Some(pb::CommonTlsContext { validation_context_type: Some(kind), .. }) = &mut context.common_tls_context
            && let ValidationContextType::ValidationContext(validation) = kind
        {
            untyped(validation);
        }
        Some(Security { socket: Some(socket(&context)), ..Security::default() })
    };
    match &seen.traffic.tls {
        Tls::Plaintext => Some(Security::default()),
        Tls::Automatic if !may_have_certificate || !is_marked(seen, written) || identities.is_empty() => {
            Some(Security::default())
        }
        Tls::Automatic => mutual(own_sni(seen), of_identities()),
        Tls::Mesh { sni, peers } if may_have_certificate => {
            let peers = if peers.is_empty() { of_identities() } else { peers.clone() };
            // Without anybody to name, gRPC would take anybody.
            if peers.is_empty() { None } else { mutual(sni.clone().unwrap_or_else(|| own_sni(seen)), peers) }
        }
        Tls::Mesh { .. } | Tls::Foreign(_) | Tls::BySecret(_) => None,
    }
}

/// gRPC's clients read the names of peers in the older field, and take anybody where it is empty.
#[expect(deprecated, reason = "gRPC reads no other")]
fn untyped(validation: &mut pb::CertificateValidationContext) {
    let typed = std::mem::take(&mut validation.match_typed_subject_alt_names);
    validation.match_subject_alt_names = typed.into_iter().filter_map(|name| name.matcher).collect();
}

/// How a server takes connections by mutual TLS.
pub(super) fn downstream() -> core::TransportSocket {
    let common = pb::CommonTlsContext {
        tls_certificate_provider_instance: Some(instance(OWN, "default")),
        validation_context_type: validation(OWN, Vec::new()),
        ..Default::default()
    };
    socket(&pb::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    })
}

/// The provider of a workload's own certificate, by Istio's name.
const OWN: &str = "default";

/// A provider that nobody has: no authority gives certificates.
const NONE: &str = "the control plane issues no certificates";

/// A provider that nobody has either.
const SECRETS: &str = "secrets of Kubernetes (credentialName)";

/// What a file has.
pub(super) fn file(path: &str) -> core::DataSource {
    core::DataSource { specifier: Some(core::data_source::Specifier::Filename(path.to_owned())), ..Default::default() }
}

/// A certificate and its key, each in a file.
pub(super) fn of_files(certificate: &str, key: &str) -> pb::TlsCertificate {
    pb::TlsCertificate {
        certificate_chain: Some(file(certificate)),
        private_key: Some(file(key)),
        ..Default::default()
    }
}

/// TLS with a server that need not be of the mesh. It has to prove the name that it is asked for, unless a rule names others: Istio,
/// which lets the name of each request take its place, asks no proof of an `sni` that is written.
pub(super) fn foreign(seen: &Cluster<'_>, tls: &ForeignTls) -> pb::UpstreamTlsContext {
    let certificates = tls.identity.iter().map(|(certificate, key)| of_files(certificate, key));
    let accepts_any = tls.roots == Roots::Nobody;
    let context = pb::CertificateValidationContext {
        trusted_ca: match &tls.roots {
            Roots::File(path) => Some(file(path)),
            Roots::Text(text) => Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(text.to_string())),
                ..Default::default()
            }),
            Roots::System | Roots::Nobody => None,
        },
        system_root_certs: (tls.roots == Roots::System).then(Default::default),
        trust_chain_verification: match accepts_any {
            true => TrustChainVerification::AcceptUntrusted.into(),
            false => TrustChainVerification::VerifyTrustChain.into(),
        },
        crl: tls.revoked.as_deref().map(file),
        match_typed_subject_alt_names: tls.names.iter().map(|name| exact(kind_of(name), name.clone())).collect(),
        ..Default::default()
    };
    // Of a host that stands for many, only the call knows which it is.
    let is_of_many = seen.key.host.starts_with('*');
    let sni = tls.sni.clone().or_else(|| (!is_of_many).then(|| seen.key.host.to_string())).unwrap_or_default();
    pb::UpstreamTlsContext {
        common_tls_context: Some(pb::CommonTlsContext {
            tls_certificates: certificates.collect(),
            validation_context_type: Some(ValidationContextType::ValidationContext(context)),
            ..Default::default()
        }),
        auto_host_sni: sni.is_empty(),
        sni,
        auto_sni_san_validation: tls.names.is_empty() && !accepts_any,
        ..Default::default()
    }
}

/// The same by a Secret of this namespace: what would be in files has these names, and comes from where `told` says.
pub(super) fn by_secret(
    seen: &Cluster<'_>,
    namespace: &str,
    by: &SecretTls,
    told: impl Fn(String) -> pb::SdsSecretConfig,
) -> pb::UpstreamTlsContext {
    let tls = ForeignTls {
        sni: by.sni.clone(),
        roots: if by.verifies { Roots::System } else { Roots::Nobody },
        revoked: None,
        identity: None,
        names: by.names.clone(),
    };
    let mut context = foreign(seen, &tls);
    if let Some(common) = &mut context.common_tls_context {
        if by.is_mutual {
            common.tls_certificate_sds_secret_configs = vec![told(secrets::certificate_name(namespace, &by.name))];
        }
        if let Some(ValidationContextType::ValidationContext(own)) =
            common.validation_context_type.take_if(|_| by.verifies)
        {
            let own = pb::CertificateValidationContext { system_root_certs: None, ..own };
            let combined = CombinedCertificateValidationContext {
                default_validation_context: Some(own),
                validation_context_sds_secret_config: Some(told(secrets::authorities_name(namespace, &by.name))),
                ..Default::default()
            };
            common.validation_context_type = Some(ValidationContextType::CombinedValidationContext(combined));
        }
    }
    context
}

fn over_same_stream(name: String) -> pb::SdsSecretConfig {
    pb::SdsSecretConfig { name, sds_config: Some(ads()) }
}

/// Which kind of name in a certificate a name is.
fn kind_of(name: &str) -> SanType {
    match name {
        name if name.parse::<IpAddr>().is_ok() => SanType::IpAddress,
        name if name.contains(':') => SanType::Uri,
        name if name.contains('@') => SanType::Email,
        _ => SanType::Dns,
    }
}

pub(super) fn exact(kind: SanType, name: String) -> pb::SubjectAltNameMatcher {
    pb::SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(name)), ignore_case: false }),
        ..Default::default()
    }
}

/// Mutual TLS with the mesh's certificates.
fn mutual(sni: String, peers: Vec<String>, has_certificates: bool) -> pb::UpstreamTlsContext {
    let provider = if has_certificates { OWN } else { NONE };
    pb::UpstreamTlsContext {
        common_tls_context: Some(pb::CommonTlsContext {
            tls_certificate_provider_instance: Some(instance(provider, "default")),
            validation_context_type: validation(provider, peers),
            ..Default::default()
        }),
        sni,
        ..Default::default()
    }
}

/// By Istio's own scheme.
pub(super) fn own_sni(seen: &Cluster<'_>) -> String {
    ServerName(&seen.key).to_string()
}

fn instance(provider: &str, certificate: &str) -> pb::CertificateProviderPluginInstance {
    pb::CertificateProviderPluginInstance {
        instance_name: provider.to_owned(),
        certificate_name: certificate.to_owned(),
    }
}

fn validation(provider: &str, peers: Vec<String>) -> Option<ValidationContextType> {
    let peers = peers.into_iter().map(|peer| exact(SanType::Uri, peer));
    Some(ValidationContextType::ValidationContext(pb::CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance(provider, "ROOTCA")),
        match_typed_subject_alt_names: peers.collect(),
        ..Default::default()
    }))
}

pub(super) fn socket<M: Message + Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(context))),
    }
}

pub(super) fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

/// This way to endpoints that are marked for it, and plaintext to the others, under Istio's names (cluster_tls.go).
pub(super) fn where_marked(secured: core::TransportSocket) -> Vec<TransportSocketMatch> {
    let marked = Struct { fields: [("tlsMode".to_owned(), text("istio"))].into() };
    let plain = core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    };
    let one = |name: &str, fields, socket| TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(fields),
        transport_socket: Some(socket),
    };
    vec![one("tlsMode-istio", marked, secured), one("tlsMode-disabled", Struct::default(), plain)]
}
