//! Secret (`envoy.extensions.transport_sockets.tls.v3.Secret`): a certificate with its key, or whom to trust.
//!
//! Texts are taken as they are; `tls/edge.rs` finds out what they are worth. A secret that says what cannot be honoured is taken,
//! too, and cannot be used: a refused one would leave its predecessor in use. No error has a byte of a key in it.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;

use super::common::parse;
use super::tls::{Unusable, unset};
use crate::error::Invalid;
use crate::model::Secret;
use crate::resources::{Resource, ResourceType};
use crate::xds::names;

pub(super) fn decode(bytes: &[u8]) -> Result<(Arc<str>, Resource), Invalid> {
    let pb::Secret { name, r#type } = parse(bytes)?;
    let name = names::canonical(ResourceType::Secret, &name).map_err(|invalid| invalid.at("name"))?;
    let secret = match r#type {
        Some(Type::TlsCertificate(value)) => certificate(value),
        Some(Type::ValidationContext(value)) => authorities(value),
        Some(_) => Err("only tls_certificate and validation_context are supported".to_owned()),
        None => Err("it is empty".to_owned()),
    };
    let secret = secret.unwrap_or_else(|reason| Secret::Unusable(reason.into()));
    Ok((name, Resource::Secret(Arc::new(secret))))
}

fn certificate(value: pb::TlsCertificate) -> Result<Secret, Unusable> {
    let pb::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory: _,
        private_key_provider,
        password,
        // Nothing is stapled.
        ocsp_staple: _,
        signed_certificate_timestamp: _,
        tls_params,
    } = value;
    unset(&[
        ("pkcs12", pkcs12.is_some()),
        ("private_key_provider", private_key_provider.is_some()),
        ("password", password.is_some()),
        ("tls_params", tls_params.is_some()),
    ])?;
    let chain = certificate_chain.ok_or("certificate_chain is missing")?;
    let key = private_key.ok_or("private_key is missing")?;
    Ok(Secret::Certificate { chain: inline("certificate_chain", chain)?, key: inline("private_key", key)? })
}

fn authorities(value: pb::CertificateValidationContext) -> Result<Secret, Unusable> {
    #[expect(deprecated, reason = "older servers send it")]
    let pb::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        // No names of authorities are sent to clients anyway.
        suppress_client_ca_list: _,
    } = value;
    unset(&[
        ("ca_certificate_provider_instance", ca_certificate_provider_instance.is_some()),
        ("system_root_certs", system_root_certs.is_some()),
        ("verify_certificate_spki", !verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !verify_certificate_hash.is_empty()),
        ("match_typed_subject_alt_names", !match_typed_subject_alt_names.is_empty()),
        ("match_subject_alt_names", !match_subject_alt_names.is_empty()),
        ("require_signed_certificate_timestamp", require_signed_certificate_timestamp.is_some_and(|on| on.value)),
        ("allow_expired_certificate", allow_expired_certificate),
        ("trust_chain_verification", trust_chain_verification != 0),
        ("custom_validator_config", custom_validator_config.is_some()),
        ("only_verify_leaf_cert_crl", only_verify_leaf_cert_crl),
        ("max_verify_depth", max_verify_depth.is_some()),
    ])?;
    let roots = inline("trusted_ca", trusted_ca.ok_or("trusted_ca is missing")?)?;
    Ok(Secret::Authorities { roots, revoked: crl.map(|lists| inline("crl", lists)).transpose()? })
}

fn inline(field: &str, value: core::DataSource) -> Result<Vec<u8>, Unusable> {
    use core::data_source::Specifier;
    match value.specifier {
        Some(Specifier::InlineBytes(bytes)) if !bytes.is_empty() => Ok(bytes),
        Some(Specifier::InlineString(text)) if !text.is_empty() => Ok(text.into_bytes()),
        _ => Err(format!("{field} is supported inline only")),
    }
}
