//! Transport sockets: TLS with a certificate of the mesh's own, as gRPC has it (gRFC A29): certificates never come over
//! xDS, a resource names where they come from. TLS by files, with anybody else, is in `tls_foreign.rs`.
//!
//! What asks for TLS in a way that cannot be provided is not refused but kept, unusable: a refused resource would leave its
//! predecessor in use, in plaintext.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CertificateProviderInstance, CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::OcspStaplePolicy;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::protobuf::value::Kind;

use super::common::{holds, type_name, unpack};
use super::notes::Notes;
use super::{tls_edge, tls_foreign};
use crate::error::Invalid;
use crate::identity::SpiffeId;
use crate::model::{ClusterTls, ServerTls, UpstreamTls};

/// The key of an endpoint's metadata, and of a socket's match, that says whether it speaks the mesh's mutual TLS.
pub(super) const TLS_MODE: &str = "tlsMode";

/// The value that says that it does.
pub(super) const ISTIO: &str = "istio";

/// The certificate provider whose certificate is the workload's own.
const PROVIDER: &str = "default";

/// The longest name of a server (RFC 1035).
const MAX_SNI: usize = 255;

/// Why TLS cannot be provided.
pub(super) type Unusable = String;

/// The one transport socket of a cluster, whose peers are named for being its endpoints or are not.
pub(super) fn of_cluster(
    notes: &mut Notes<'_>,
    socket: core::TransportSocket,
    by_endpoints: bool,
) -> Result<ClusterTls, Invalid> {
    let Some(any) = config(&socket).filter(|any| !is_raw_buffer(any)) else {
        return Ok(if config(&socket).is_some() { ClusterTls::None } else { unusable(&socket, "no configuration") });
    };
    if !holds::<pb::UpstreamTlsContext>(any) {
        return Ok(unusable(&socket, &format!("{:?} is not supported", type_name(&any.type_url))));
    }
    let context: pb::UpstreamTlsContext = notes.field("typed_config", |_| unpack(any))?;
    if tls_foreign::names_no_provider(&context) {
        return notes.field("typed_config", |notes| {
            check_sni(&context.sni)?;
            Ok(match tls_foreign::upstream(notes, context) {
                Ok(tls) => ClusterTls::Foreign(Arc::new(tls)),
                Err(reason) => unusable(&socket, &reason),
            })
        });
    }
    Ok(match notes.field("typed_config", |_| upstream(context, by_endpoints))? {
        // A cluster whose last endpoint has left has nobody who may answer.
        Ok(tls) if tls.peers.is_empty() && !by_endpoints => unusable(&socket, "it does not say who the peer may be"),
        Ok(tls) => ClusterTls::Mutual(Arc::new(tls)),
        Err(reason) => unusable(&socket, &reason),
    })
}

/// Istio's automatic mTLS: the endpoints that are marked speak it, and the others plaintext. Nothing else is supported.
pub(super) fn of_endpoints(
    notes: &mut Notes<'_>,
    matches: Vec<TransportSocketMatch>,
    by_endpoints: bool,
) -> Result<ClusterTls, Invalid> {
    let is_marked = |one: &TransportSocketMatch| match &one.r#match {
        Some(fields) if fields.fields.len() == 1 => fields
            .fields
            .get(TLS_MODE)
            .is_some_and(|value| matches!(&value.kind, Some(Kind::StringValue(mode)) if mode == ISTIO)),
        _ => false,
    };
    let is_any = |one: &TransportSocketMatch| one.r#match.as_ref().is_none_or(|fields| fields.fields.is_empty());
    let is_plain = |one: &TransportSocketMatch| {
        one.transport_socket.as_ref().is_some_and(|socket| config(socket).is_some_and(is_raw_buffer))
    };
    match matches.as_slice() {
        [marked, rest] if is_marked(marked) && is_any(rest) && is_plain(rest) => {
            let socket = marked.transport_socket.clone().unwrap_or_default();
            let Some(any) = config(&socket).filter(|any| holds::<pb::UpstreamTlsContext>(any)) else {
                return Ok(unusable(&socket, "it is no TLS"));
            };
            // Where nobody is named, nobody is the right peer: those that are marked fail.
            Ok(match notes.field("transport_socket", |_| upstream(unpack(any)?, by_endpoints))? {
                Ok(tls) => ClusterTls::MutualWhereMarked(Arc::new(tls)),
                Err(reason) => unusable(&socket, &reason),
            })
        }
        _ => Err(Invalid::new("only a match on tlsMode: istio, followed by plaintext for the rest, is supported")),
    }
}

/// The transport socket of a filter chain.
pub(super) fn of_server(notes: &mut Notes<'_>, socket: core::TransportSocket) -> Result<ServerTls, Invalid> {
    let Some(any) = config(&socket) else { return Err(Invalid::new("missing").at("typed_config")) };
    if is_raw_buffer(any) {
        return Ok(ServerTls::None);
    }
    let refused = |reason: &str| ServerTls::Unusable(because(&socket, reason));
    if !holds::<pb::DownstreamTlsContext>(any) {
        return Ok(refused(&format!("{:?} is not supported", type_name(&any.type_url))));
    }
    notes.field("typed_config", |notes| {
        let (common, requires_client) = downstream(unpack(any)?)?;
        let tls = match tls_edge::is_by_secrets(&common) {
            true => notes.field("common_tls_context", |notes| tls_edge::of_secrets(notes, common, requires_client))?,
            false => mutual(common, requires_client),
        };
        Ok(tls.unwrap_or_else(|reason| refused(&reason)))
    })
}

/// Whether a socket is to be more than plaintext.
pub(super) fn is_asked_for(socket: &core::TransportSocket) -> bool {
    !config(socket).is_some_and(is_raw_buffer)
}

fn config(socket: &core::TransportSocket) -> Option<&Any> {
    match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Some(any),
        None => None,
    }
}

fn is_raw_buffer(any: &Any) -> bool {
    type_name(&any.type_url) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
}

fn unusable(socket: &core::TransportSocket, reason: &str) -> ClusterTls {
    ClusterTls::Unusable(because(socket, reason))
}

fn because(socket: &core::TransportSocket, reason: &str) -> Arc<str> {
    format!("transport_socket {:?}: {reason}", socket.name).into()
}

fn upstream(value: pb::UpstreamTlsContext, by_endpoints: bool) -> Result<Result<UpstreamTls, Unusable>, Invalid> {
    let pb::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation: _,
        // Nothing is resumed.
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = value;
    check_sni(&sni)?;
    if auto_host_sni || auto_sni_san_validation {
        return Ok(Err("names of servers by host are not supported yet".to_owned()));
    }
    Ok(common(common_tls_context.unwrap_or_default()).and_then(|names| {
        let peers: Result<Vec<SpiffeId>, Unusable> = names.into_iter().map(peer).collect();
        Ok(UpstreamTls { peers: peers?.into(), by_endpoints, sni: (!sni.is_empty()).then(|| sni.into()) })
    }))
}

fn check_sni(sni: &str) -> Result<(), Invalid> {
    let is_short = sni.len() <= MAX_SNI;
    is_short.then_some(()).ok_or_else(|| Invalid::new(format!("longer than {MAX_SNI} characters")).at("sni"))
}

/// What a server's context says of certificates and names, and whether clients have to show one, where everything else is what is
/// done anyway.
fn downstream(value: pb::DownstreamTlsContext) -> Result<(pb::CommonTlsContext, bool), Invalid> {
    let pb::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // Nothing is resumed by state that is kept, and TLS 1.3 has no ciphers to prefer.
        disable_stateful_session_resumption: _,
        session_timeout: _,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch: _,
        prefer_client_ciphers: _,
        session_ticket_keys_type: _,
    } = value;
    // gRFC A29: what no gRPC server can honour.
    if require_sni.is_some_and(|on| on.value) {
        return Err(Invalid::new("not supported").at("require_sni"));
    }
    if ocsp_staple_policy != OcspStaplePolicy::LenientStapling as i32 {
        return Err(Invalid::new("only LENIENT_STAPLING is supported").at("ocsp_staple_policy"));
    }
    let requires_client = require_client_certificate.is_some_and(|on| on.value);
    Ok((common_tls_context.unwrap_or_default(), requires_client))
}

/// Mutual TLS of the mesh, if that is what is asked for.
fn mutual(value: pb::CommonTlsContext, requires_client: bool) -> Result<ServerTls, Unusable> {
    if !requires_client {
        return Err("TLS without a certificate of the client is not supported yet".to_owned());
    }
    match common(value)?.as_slice() {
        [] => Ok(ServerTls::Mutual),
        _ => Err("names of clients are not supported: authorize them by policy".to_owned()),
    }
}

/// The names that the peer's certificate may have, where everything else is what the mesh does anyway.
fn common(value: pb::CommonTlsContext) -> Result<Vec<pb::SubjectAltNameMatcher>, Unusable> {
    #[expect(deprecated, reason = "istiod sends it to gRPC's clients")]
    let pb::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        // What is spoken is agreed on by what is to be sent.
        alpn_protocols: _,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = value;
    let own = tls_certificate_provider_instance
        .map(|instance| instance.instance_name)
        .or(tls_certificate_certificate_provider_instance.map(|instance| instance.instance_name));
    unset(&[
        ("tls_params", tls_params.is_some()),
        ("tls_certificates", !tls_certificates.is_empty()),
        ("tls_certificate_sds_secret_configs", !tls_certificate_sds_secret_configs.is_empty()),
        ("custom_tls_certificate_selector", custom_tls_certificate_selector.is_some()),
        ("tls_certificate_certificate_provider", tls_certificate_certificate_provider.is_some()),
        ("custom_handshaker", custom_handshaker.is_some()),
        ("key_log", key_log.is_some()),
    ])?;
    expect_provider("its own certificate", own)?;
    let (context, authority) = validation(validation_context_type)?;
    #[expect(deprecated, reason = "older servers send it")]
    let pb::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        mut match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl: _,
        max_verify_depth,
        // No names of authorities are sent to clients anyway.
        suppress_client_ca_list: _,
    } = context;
    unset(&[
        ("trusted_ca", trusted_ca.is_some()),
        ("system_root_certs", system_root_certs.is_some()),
        ("verify_certificate_spki", !verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !verify_certificate_hash.is_empty()),
        ("require_signed_certificate_timestamp", require_signed_certificate_timestamp.is_some_and(|on| on.value)),
        ("crl", crl.is_some()),
        ("allow_expired_certificate", allow_expired_certificate),
        ("trust_chain_verification", trust_chain_verification != 0),
        ("custom_validator_config", custom_validator_config.is_some()),
        ("max_verify_depth", max_verify_depth.is_some()),
    ])?;
    let authority = ca_certificate_provider_instance.map(|instance| instance.instance_name).or(authority);
    expect_provider("those whom it trusts", authority)?;
    let uri = pb::subject_alt_name_matcher::SanType::Uri as i32;
    let untyped = match_subject_alt_names.into_iter();
    match_typed_subject_alt_names.extend(untyped.map(|matcher| pb::SubjectAltNameMatcher {
        san_type: uri,
        matcher: Some(matcher),
        ..Default::default()
    }));
    Ok(match_typed_subject_alt_names)
}

/// Holds that none of these fields is set.
pub(super) fn unset(fields: &[(&str, bool)]) -> Result<(), Unusable> {
    match fields.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(format!("{field} is not supported")),
        None => Ok(()),
    }
}

/// How the peer is verified: the context, and the provider of the roots where the older fields name it.
fn validation(
    value: Option<ValidationContextType>,
) -> Result<(pb::CertificateValidationContext, Option<String>), Unusable> {
    let name = |instance: CertificateProviderInstance| instance.instance_name;
    match value {
        Some(ValidationContextType::ValidationContext(context)) => Ok((context, None)),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            #[expect(deprecated, reason = "istiod sends it to gRPC's clients")]
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = combined;
            if validation_context_sds_secret_config.is_some_and(|secret| !secret.name.is_empty()) {
                return Err("validation_context_sds_secret_config is not supported".to_owned());
            }
            if validation_context_certificate_provider.is_some() {
                return Err("validation_context_certificate_provider is not supported".to_owned());
            }
            let instance = validation_context_certificate_provider_instance.map(name);
            Ok((default_validation_context.unwrap_or_default(), instance))
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(instance)) => {
            Ok((pb::CertificateValidationContext::default(), Some(name(instance))))
        }
        Some(_) => Err("only certificate providers are supported for those whom it trusts".to_owned()),
        None => Err("it does not say whom to trust".to_owned()),
    }
}

fn expect_provider(what: &str, name: Option<String>) -> Result<(), Unusable> {
    match name.as_deref() {
        Some(PROVIDER) => Ok(()),
        Some(other) => Err(format!("there is no certificate provider {other:?} for {what}")),
        None => Err(format!("there is no certificate provider for {what}")),
    }
}

/// One who may be the peer. Only whole IDs are, so that no part of one passes for another.
fn peer(value: pb::SubjectAltNameMatcher) -> Result<SpiffeId, Unusable> {
    let is_uri = value.san_type == pb::subject_alt_name_matcher::SanType::Uri as i32;
    match value.matcher {
        Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(id)), ignore_case: false }) if is_uri => {
            id.parse().map_err(|error: Invalid| format!("the peer {id:?} is no SPIFFE ID: {error}"))
        }
        _ => Err("peers are supported by exact URI only".to_owned()),
    }
}
