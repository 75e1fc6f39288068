//! Transport sockets whose certificates and roots Envoy is told by its secret discovery service, under Istio's names
//! (Istio: cluster_tls.go, authn/utils).

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::google::protobuf::BoolValue;
use mesh_core::identity::SpiffeId;

use super::super::is_marked;
use super::super::proto::{ads, duration};
use super::super::tls::{Security, by_secret, exact, foreign, own_sni, socket, where_marked};
use crate::policy::Cluster;
use crate::policy::traffic::{ForeignTls, Roots, SecretTls, Tls};
use crate::registry::WrittenEndpoint;

/// The static cluster of a bootstrap that serves secrets, by Istio's name.
const SDS: &str = "sds-grpc";
/// What connections inside of the mesh carry, in Istio's words.
pub(super) const IN_MESH: [&str; 2] = ["istio-peer-exchange", "istio"];
/// How long what was in force before, which may be plaintext, goes on where a secret does not come. From then on, what takes its
/// place lets nothing through until the secret is there.
const WARMING: Duration = Duration::from_secs(5);
/// Where a system has whom it trusts (Debian's place).
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// A name that no certificate has: without any name, Envoy would take anybody.
const NOBODY: &str = "spiffe://nobody.invalid/";

/// How an Envoy is to secure its connections to a cluster; `None` where it must not call, since it cannot do what a rule asks.
pub(super) fn upstream(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    may_have_certificate: bool,
    identities: &[SpiffeId],
) -> Option<Security> {
    let of_identities = || identities.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
    let is_http2 = seen.is_http2();
    match &seen.traffic.tls {
        Tls::Plaintext => Some(Security::default()),
        Tls::Automatic if !may_have_certificate || !is_marked(seen, written) => Some(Security::default()),
        Tls::Automatic => {
            let secured = socket(&mutual(own_sni(seen), of_identities(), is_http2));
            Some(Security { matches: where_marked(secured), ..Security::default() })
        }
        Tls::Mesh { sni, peers } if may_have_certificate => {
            let peers = if peers.is_empty() { of_identities() } else { peers.clone() };
            let context = mutual(sni.clone().unwrap_or_else(|| own_sni(seen)), peers, is_http2);
            Some(Security { socket: Some(socket(&context)), ..Security::default() })
        }
        Tls::Foreign(tls) => {
            let context = foreign_server(seen, tls, is_http2);
            Some(Security { socket: Some(socket(&context)), ..Security::default() })
        }
        // It proves who it is to be given the Secret, which is for those that the rule names, or a gateway.
        Tls::BySecret(by) if may_have_certificate => {
            let rule = seen.rule.filter(|_| seen.has_secret)?;
            let context = of_secret(seen, &rule.meta.namespace, by, is_http2);
            Some(Security { socket: Some(socket(&context)), ..Security::default() })
        }
        Tls::Mesh { .. } | Tls::BySecret(_) => None,
    }
}

/// Envoy's own words where it has others than the library: the roots of the system are a file.
fn foreign_server(seen: &Cluster<'_>, tls: &ForeignTls, is_http2: bool) -> pb::UpstreamTlsContext {
    let mut context = foreign(seen, tls);
    if let Some(common) = &mut context.common_tls_context {
        common.alpn_protocols = is_http2.then(|| "h2".to_owned()).into_iter().collect();
        if tls.roots == Roots::System
            && let Some(ValidationContextType::ValidationContext(validation)) = &mut common.validation_context_type
        {
            validation.system_root_certs = None;
            let specifier = Some(core::data_source::Specifier::Filename(SYSTEM_ROOTS.to_owned()));
            validation.trusted_ca = Some(core::DataSource { specifier, ..Default::default() });
        }
    }
    context
}

/// The same by a Secret: what would be in files comes from the server of secrets.
fn of_secret(seen: &Cluster<'_>, namespace: &str, by: &SecretTls, is_http2: bool) -> pb::UpstreamTlsContext {
    let mut context = by_secret(seen, namespace, by, |name| secret(&name));
    if let Some(common) = &mut context.common_tls_context {
        common.alpn_protocols = is_http2.then(|| "h2".to_owned()).into_iter().collect();
    }
    context
}

/// Mutual TLS with one of these peers.
fn mutual(sni: String, mut peers: Vec<String>, is_http2: bool) -> pb::UpstreamTlsContext {
    if peers.is_empty() {
        peers.push(NOBODY.to_owned());
    }
    let names = peers.into_iter().map(|peer| exact(SanType::Uri, peer)).collect();
    let mut common = common(names);
    common.alpn_protocols = IN_MESH.iter().copied().chain(is_http2.then_some("h2")).map(str::to_owned).collect();
    pb::UpstreamTlsContext { common_tls_context: Some(common), sni, ..Default::default() }
}

/// How a sidecar takes connections by mutual TLS. HTTP is told apart by its first bytes where a client says none of its names:
/// what it does say, Envoy believes.
pub(super) fn downstream(alpn: &[&str]) -> core::TransportSocket {
    let mut common = common(Vec::new());
    common.alpn_protocols = alpn.iter().map(|&name| name.to_owned()).collect();
    socket(&pb::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    })
}

/// The workload's own certificate, and whom it trusts: workloads speak TLS 1.3.
fn common(names: Vec<pb::SubjectAltNameMatcher>) -> pb::CommonTlsContext {
    let validation = pb::CertificateValidationContext { match_typed_subject_alt_names: names, ..Default::default() };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    pb::CommonTlsContext {
        tls_params: Some(pb::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    }
}

/// What mesh-control tells a gateway of: it is in the same stream as what names it, so that nobody waits for it.
pub(super) fn told(name: String) -> pb::SdsSecretConfig {
    pb::SdsSecretConfig {
        name,
        sds_config: Some(core::ConfigSource { initial_fetch_timeout: Some(duration(WARMING)), ..ads() }),
    }
}

fn secret(name: &str) -> pb::SdsSecretConfig {
    let service = core::grpc_service::EnvoyGrpc { cluster_name: SDS.to_owned(), ..Default::default() };
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)),
            ..Default::default()
        }],
        ..Default::default()
    };
    pb::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: Some(duration(WARMING)),
            resource_api_version: core::ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            ..Default::default()
        }),
    }
}
