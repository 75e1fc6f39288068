//! TLS of a gateway: its certificates, and those whom it trusts, by names of secrets that come over the same stream (Envoy's SDS).
//!
//! The workload's own certificate under Istio's names (`default`, `ROOTCA`) is the mesh's mutual TLS. What is asked for and cannot
//! be done makes the chain unusable, and no other one.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};

use super::common::same_stream;
use super::notes::Notes;
use super::tls::{Unusable, unset};
use super::{tls_foreign, tls_foreign::names};
use crate::error::Invalid;
use crate::model::{EdgeTls, ServerTls};

/// Istio's names of what a workload shows, and of whom it trusts.
const OWN: &str = "default";
const OWN_ROOTS: &str = "ROOTCA";

/// Whether a context names secrets.
pub(super) fn is_by_secrets(context: &pb::CommonTlsContext) -> bool {
    !context.tls_certificate_sds_secret_configs.is_empty()
}

/// How clients shake hands with the gateway.
pub(super) fn of_secrets(
    notes: &mut Notes<'_>,
    value: pb::CommonTlsContext,
    requires_client: bool,
) -> Result<Result<ServerTls, Unusable>, Invalid> {
    #[expect(deprecated, reason = "older servers send it")]
    let pb::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        // HTTP/2 and HTTP/1.1 are, in this order.
        alpn_protocols: _,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = value;
    let checked = unset(&[
        ("tls_certificates", !tls_certificates.is_empty()),
        ("tls_certificate_provider_instance", tls_certificate_provider_instance.is_some()),
        ("custom_tls_certificate_selector", custom_tls_certificate_selector.is_some()),
        ("tls_certificate_certificate_provider", tls_certificate_certificate_provider.is_some()),
        ("tls_certificate_certificate_provider_instance", tls_certificate_certificate_provider_instance.is_some()),
        ("custom_handshaker", custom_handshaker.is_some()),
        ("key_log", key_log.is_some()),
    ]);
    if let Err(reason) = checked {
        return Ok(Err(reason));
    }
    let secrets = tls_certificate_sds_secret_configs;
    let (clients, context) = match validation(validation_context_type) {
        Ok(validation) => validation,
        Err(reason) => return Ok(Err(reason)),
    };
    let is_own = |secret: &pb::SdsSecretConfig, own: &str| secret.name == own;
    if secrets.iter().any(|secret| is_own(secret, OWN)) {
        let trusts_own = clients.as_ref().is_some_and(|secret| is_own(secret, OWN_ROOTS));
        let has_names = context.is_some_and(|context| context != pb::CertificateValidationContext::default());
        return Ok(match secrets.len() == 1 && trusts_own && requires_client && !has_names {
            true => Ok(ServerTls::Mutual),
            false => Err("the mesh's own certificate is shown to those alone who show one of the mesh".to_owned()),
        });
    }
    let certificates = notes.each("tls_certificate_sds_secret_configs", secrets, |_, secret| self::secret(secret))?;
    let mut tls = EdgeTls::with(certificates);
    tls.clients = notes.optional("validation_context_sds_secret_config", clients, |_, secret| self::secret(secret))?;
    tls.requires_client = requires_client;
    if requires_client && tls.clients.is_none() {
        return Ok(Err("it does not say whose certificates clients have to show".to_owned()));
    }
    Ok((|| {
        tls.versions = tls_foreign::versions(tls_params.unwrap_or_default())?;
        if let Some(context) = context {
            tls.names = of_clients(notes, context)?;
        }
        Ok(ServerTls::Edge(Arc::new(tls)))
    })())
}

type Validation = (Option<pb::SdsSecretConfig>, Option<pb::CertificateValidationContext>);

/// The secret with those whom it trusts, and what else is said of clients.
fn validation(value: Option<ValidationContextType>) -> Result<Validation, Unusable> {
    match value {
        None => Ok((None, None)),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => Ok((Some(secret), None)),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            #[expect(deprecated, reason = "older servers send it")]
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = combined;
            unset(&[
                ("validation_context_certificate_provider", validation_context_certificate_provider.is_some()),
                (
                    "validation_context_certificate_provider_instance",
                    validation_context_certificate_provider_instance.is_some(),
                ),
            ])?;
            Ok((validation_context_sds_secret_config, default_validation_context))
        }
        Some(_) => Err("only secrets are supported for those whom it trusts".to_owned()),
    }
}

/// The names that clients may have, where nothing else is said of them beside the secret.
fn of_clients(
    notes: &mut Notes<'_>,
    mut context: pb::CertificateValidationContext,
) -> Result<Vec<crate::model::NameTest>, Unusable> {
    let typed = std::mem::take(&mut context.match_typed_subject_alt_names);
    #[expect(deprecated, reason = "older servers send it")]
    let untyped = std::mem::take(&mut context.match_subject_alt_names);
    context.suppress_client_ca_list = false;
    match context == pb::CertificateValidationContext::default() {
        true => names(notes, typed, untyped),
        false => Err("default_validation_context: only names are supported".to_owned()),
    }
}

/// Whether this is the name of what is a workload's own.
pub(super) fn is_own(name: &str) -> bool {
    matches!(name, OWN | OWN_ROOTS)
}

/// The name of a secret that comes over the same stream.
pub(super) fn secret(value: pb::SdsSecretConfig) -> Result<Arc<str>, Invalid> {
    same_stream(value.sds_config.as_ref()).map_err(|invalid| invalid.at("sds_config"))?;
    crate::xds::names::canonical(crate::resources::ResourceType::Secret, &value.name)
        .map_err(|invalid| invalid.at("name"))
}
