//! TLS by files (Envoy's data sources by `filename`), or by secrets that come over the same stream: with servers that need not be of the
//! mesh. Who vouches for these may be told, too.
//!
//! What names no certificate provider is this. What it asks for and this cannot do makes the cluster unusable.

use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;

use super::common::string_test;
use super::notes::Notes;
use super::tls::{Unusable, unset};
use super::tls_edge;
use crate::model::{ForeignTls, NameKind, NameTest, Roots, Sni, TlsVersions};

/// Whether a context says nothing of certificate providers.
pub(super) fn names_no_provider(context: &pb::UpstreamTlsContext) -> bool {
    #[expect(deprecated, reason = "istiod sends it to gRPC's clients")]
    let names_one = |common: &pb::CommonTlsContext| {
        common.tls_certificate_provider_instance.is_some()
            || common.tls_certificate_certificate_provider.is_some()
            || common.tls_certificate_certificate_provider_instance.is_some()
            || match &common.validation_context_type {
                Some(ValidationContextType::ValidationContext(context)) => {
                    context.ca_certificate_provider_instance.is_some()
                }
                Some(ValidationContextType::CombinedValidationContext(combined)) => {
                    let default = combined.default_validation_context.as_ref();
                    combined.validation_context_certificate_provider.is_some()
                        || combined.validation_context_certificate_provider_instance.is_some()
                        || default.is_some_and(|context| context.ca_certificate_provider_instance.is_some())
                }
                Some(ValidationContextType::ValidationContextCertificateProvider(_))
                | Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => true,
                Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) | None => false,
            }
    };
    context.common_tls_context.as_ref().is_none_or(|common| !names_one(common))
}

/// How servers are called that are in files.
pub(super) fn upstream(notes: &mut Notes<'_>, value: pb::UpstreamTlsContext) -> Result<ForeignTls, Unusable> {
    let pb::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        // It is never done.
        allow_renegotiation: _,
        // Nothing is resumed.
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = value;
    let sni = match (auto_host_sni, sni.is_empty()) {
        (true, true) => Sni::OfEndpoint,
        (true, false) => return Err("auto_host_sni beside sni is not supported".to_owned()),
        (false, true) => Sni::None,
        (false, false) => Sni::Fixed(sni.into()),
    };
    #[expect(deprecated, reason = "older servers send it")]
    let pb::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance: _,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider: _,
        tls_certificate_certificate_provider_instance: _,
        // What is spoken is agreed on by what is to be sent.
        alpn_protocols: _,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = common_tls_context.unwrap_or_default();
    unset(&[
        ("custom_tls_certificate_selector", custom_tls_certificate_selector.is_some()),
        ("custom_handshaker", custom_handshaker.is_some()),
        ("key_log", key_log.is_some()),
    ])?;
    let shown = secret("tls_certificate_sds_secret_configs", tls_certificate_sds_secret_configs)?;
    let (context, trusted) = match validation_context_type {
        Some(ValidationContextType::ValidationContext(context)) => (context, None),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let named = combined.validation_context_sds_secret_config.filter(|it| !it.name.is_empty());
            let trusted = secret("validation_context_sds_secret_config", named)?;
            (combined.default_validation_context.unwrap_or_default(), trusted)
        }
        Some(_) => return Err("only files are supported for those whom it trusts".to_owned()),
        None => return Err("it does not say whom to trust".to_owned()),
    };
    let is_leaf_only = context.only_verify_leaf_cert_crl;
    let (roots, revoked, names) = validation(notes, context, trusted)?;
    if names.is_empty() && !auto_sni_san_validation && roots == Roots::System {
        return Err(
            "it does not say whose certificate the server has to have, and anybody can have one of those whom the \
                    system trusts"
                .to_owned(),
        );
    }
    let mut tls = ForeignTls::with(sni, roots);
    tls.proves_sni = auto_sni_san_validation;
    // Envoy: validation by the name that was asked for takes the place of the others.
    tls.names = if auto_sni_san_validation { Vec::new() } else { names };
    tls.only_leaf_may_be_revoked = is_leaf_only;
    tls.material.revoked = revoked;
    tls.material.identity = identity(tls_certificates)?;
    if shown.is_some() && tls.material.identity.is_some() {
        return Err("tls_certificates beside tls_certificate_sds_secret_configs is not supported".to_owned());
    }
    tls.material.secret = shown;
    tls.versions = versions(tls_params.unwrap_or_default())?;
    Ok(tls)
}

type Validation = (Roots, Option<PathBuf>, Vec<NameTest>);

/// The one secret of a field, which comes over the same stream.
fn secret(field: &str, secrets: impl IntoIterator<Item = pb::SdsSecretConfig>) -> Result<Option<Arc<str>>, Unusable> {
    let mut secrets = secrets.into_iter();
    let Some(only) = secrets.next() else { return Ok(None) };
    if secrets.next().is_some() {
        return Err(format!("more than one of {field} is not supported"));
    }
    if tls_edge::is_own(&only.name) {
        return Err(format!("{field}: the mesh's own certificate is supported by certificate providers only"));
    }
    tls_edge::secret(only).map(Some).map_err(|invalid| format!("{field}: {invalid}"))
}

fn validation(
    notes: &mut Notes<'_>,
    value: pb::CertificateValidationContext,
    secret: Option<Arc<str>>,
) -> Result<Validation, Unusable> {
    #[expect(deprecated, reason = "older servers send it")]
    let pb::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance: _,
        system_root_certs,
        // Files are read for every connection.
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
        only_verify_leaf_cert_crl: _,
        max_verify_depth,
        suppress_client_ca_list: _,
    } = value;
    unset(&[
        ("verify_certificate_spki", !verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !verify_certificate_hash.is_empty()),
        ("require_signed_certificate_timestamp", require_signed_certificate_timestamp.is_some_and(|on| on.value)),
        ("allow_expired_certificate", allow_expired_certificate),
        ("custom_validator_config", custom_validator_config.is_some()),
        ("max_verify_depth", max_verify_depth.is_some()),
    ])?;
    let accepts_all = trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32;
    let roots = match (trusted_ca, system_root_certs, secret) {
        _ if accepts_all => Roots::Nobody,
        (None, None, Some(name)) => Roots::Secret(name),
        (_, _, Some(_)) => return Err("trusted_ca or system_root_certs beside a secret is not supported".to_owned()),
        (Some(_), Some(_), None) => return Err("trusted_ca beside system_root_certs is not supported".to_owned()),
        (Some(source), None, None) => authorities(source)?,
        (None, Some(_), None) => Roots::System,
        (None, None, None) => return Err("it does not say whom to trust".to_owned()),
    };
    let crl = crl.map(|file| filename("crl", file)).transpose()?;
    Ok((roots, crl, names(notes, match_typed_subject_alt_names, match_subject_alt_names)?))
}

/// The names that a certificate may have.
pub(super) fn names(
    notes: &mut Notes<'_>,
    typed: Vec<pb::SubjectAltNameMatcher>,
    untyped: Vec<StringMatcher>,
) -> Result<Vec<NameTest>, Unusable> {
    let mut names = Vec::new();
    for matcher in typed {
        let kind = match SanType::try_from(matcher.san_type) {
            Ok(SanType::Dns) => NameKind::Dns,
            Ok(SanType::Uri) => NameKind::Uri,
            Ok(SanType::Email) => NameKind::Email,
            Ok(SanType::IpAddress) => NameKind::Ip,
            _ => return Err("names are supported of the kinds DNS, URI, EMAIL and IP_ADDRESS".to_owned()),
        };
        let test = matcher.matcher.ok_or("a name has no matcher")?;
        names.push(NameTest::new(kind, string_test(notes, test).map_err(|invalid| invalid.to_string())?));
    }
    for matcher in untyped {
        let test = string_test(notes, matcher).map_err(|invalid| invalid.to_string())?;
        names.extend(NameKind::ALL.map(|kind| NameTest::new(kind, test.clone())));
    }
    Ok(names)
}

fn identity(certificates: Vec<pb::TlsCertificate>) -> Result<Option<(PathBuf, PathBuf)>, Unusable> {
    let mut certificates = certificates.into_iter();
    let Some(only) = certificates.next() else { return Ok(None) };
    if certificates.next().is_some() {
        return Err("more than one of tls_certificates is not supported".to_owned());
    }
    let pb::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // Files are read for every connection.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = only;
    unset(&[
        ("pkcs12", pkcs12.is_some()),
        ("private_key_provider", private_key_provider.is_some()),
        ("password", password.is_some()),
        ("ocsp_staple", ocsp_staple.is_some()),
        ("signed_certificate_timestamp", !signed_certificate_timestamp.is_empty()),
        ("tls_certificates.tls_params", tls_params.is_some()),
    ])?;
    let (Some(chain), Some(key)) = (certificate_chain, private_key) else {
        return Err("tls_certificates needs certificate_chain and private_key".to_owned());
    };
    Ok(Some((filename("certificate_chain", chain)?, filename("private_key", key)?)))
}

/// Who vouches for servers: in a file, or as a text.
fn authorities(value: core::DataSource) -> Result<Roots, Unusable> {
    use core::data_source::Specifier;
    let text = match value.specifier {
        Some(Specifier::Filename(path)) if !path.is_empty() => return Ok(Roots::File(path.into())),
        Some(Specifier::InlineString(text)) => text,
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).unwrap_or_default(),
        _ => String::new(),
    };
    match text.is_empty() {
        true => Err("trusted_ca is supported by filename, or inline in PEM".to_owned()),
        false => Ok(Roots::Text(text.into())),
    }
}

fn filename(field: &str, value: core::DataSource) -> Result<PathBuf, Unusable> {
    match value.specifier {
        Some(core::data_source::Specifier::Filename(path)) if !path.is_empty() => Ok(path.into()),
        _ => Err(format!("{field} is supported by filename only")),
    }
}

/// The versions between the two that are named. TLS 1.0 and 1.1 are not spoken whatever is written.
pub(super) fn versions(value: pb::TlsParameters) -> Result<TlsVersions, Unusable> {
    let pb::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    unset(&[
        ("tls_params.cipher_suites", !cipher_suites.is_empty()),
        ("tls_params.ecdh_curves", !ecdh_curves.is_empty()),
        ("tls_params.signature_algorithms", !signature_algorithms.is_empty()),
        ("tls_params.compliance_policies", !compliance_policies.is_empty()),
    ])?;
    let parsed = |value| TlsProtocol::try_from(value).map_err(|_| "tls_params: not a known version".to_owned());
    let is_from_13 = parsed(tls_minimum_protocol_version)? == TlsProtocol::TlSv13;
    match (is_from_13, parsed(tls_maximum_protocol_version)?) {
        (false, TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => Ok(TlsVersions::Both),
        (false, TlsProtocol::TlSv12) => Ok(TlsVersions::Tls12),
        (true, TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => Ok(TlsVersions::Tls13),
        _ => Err("tls_params: no version is left that is spoken".to_owned()),
    }
}
