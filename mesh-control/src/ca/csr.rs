//! Requests to sign a key (PKCS#10). Of a request, the key counts and nothing else: whoever asks is who the attestation
//! says, and what the certificate may be used for is not theirs to choose.

use anyhow::{Context, anyhow, ensure};
use rcgen::SubjectPublicKeyInfo;
use tokio_rustls::rustls::pki_types::CertificateSigningRequestDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;

use super::key;

/// The largest request, in bytes. One with an RSA key of 4096 bits and many names has some 3 KiB.
const MOST: usize = 16 << 10;

/// The key that a request in PEM is for, proven to be the requester's.
pub(crate) fn public_key(pem: &str) -> anyhow::Result<SubjectPublicKeyInfo> {
    ensure!(pem.len() <= MOST, "the request is larger than {MOST} bytes");
    let der = only_block(pem)?;
    let malformed = || anyhow!("the request is no PKCS#10");
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| malformed())?;
    ensure!(rest.is_empty(), "there is something behind the request");
    let spki = &request.certification_request_info.subject_pki;
    // Before the signature: a key of 16,384 bits takes long to verify with.
    key::check(spki)?;
    let hashes = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
        OID_PKCS1_RSASSAPSS,
    ];
    let algorithm = &request.signature_algorithm.algorithm;
    ensure!(hashes.contains(algorithm), "the request is signed by an algorithm that is not accepted: use SHA-256");
    request.verify_signature().map_err(|_| anyhow!("the request is not signed by its own key"))?;
    SubjectPublicKeyInfo::from_der(spki.raw).context("its key is malformed")
}

/// The contents of a text that is one block of PEM and nothing else.
fn only_block(pem: &str) -> anyhow::Result<CertificateSigningRequestDer<'static>> {
    let text = pem.trim();
    ensure!(text.matches("-----BEGIN ").count() == 1, "the request has to be one block of PEM");
    let is_alone = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"].iter().any(|label| {
        let inner = text.strip_prefix(&format!("-----BEGIN {label}-----"));
        inner.is_some_and(|inner| inner.ends_with(&format!("-----END {label}-----")))
    });
    ensure!(is_alone, "there is something around the request, or it is no CERTIFICATE REQUEST");
    // Other tools call it NEW CERTIFICATE REQUEST.
    let text = text.replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST");
    CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| anyhow!("the request is malformed PEM"))
}
