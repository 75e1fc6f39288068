//! One token (RFC 7515, 7519): taken apart, and its signature checked. Nothing in a token says where a key is: `jku`,
//! `x5u` and `jwk` are not looked at.

use aws_lc_rs::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::Refusal;
use super::claims::audiences;
use crate::identity::SpiffeId;
use crate::model::{JwkSet, JwsAlgorithm, KeyMaterial};

/// The longest token that is looked at, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// How many keys are tried for one signature.
const MOST_KEYS: usize = 10;

/// A token, taken apart. Nothing of it is to be believed before its signature is checked.
pub(super) struct Token<'t> {
    signed: &'t str,
    algorithm: JwsAlgorithm,
    key_id: Option<String>,
    /// Whether its header says that it is something else than a token.
    is_foreign: bool,
    signature: Vec<u8>,
    /// The payload, encoded.
    pub(super) payload: &'t str,
    /// The claims.
    pub(super) claims: Map<String, Value>,
    pub(super) times: Times,
}

/// When a token is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) expires: Option<u64>,
    pub(super) begins: Option<u64>,
}

impl<'t> Token<'t> {
    /// Takes a token apart. What is malformed is never taken for absent (hazard J4).
    pub(super) fn parse(token: &'t str) -> Result<Self, Refusal> {
        const FORM: Refusal =
            Refusal::Malformed("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections");
        if token.len() > MOST_BYTES {
            return Err(Refusal::Malformed("Jwt is longer than 64 KiB"));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FORM);
        };
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        let header = object(header, "Jwt header is an invalid Base64url encoded", "Jwt header is an invalid JSON")?;
        let (algorithm, key_id) = read_header(&header)?;
        let is_type = |kind: &str| ["JWT", "JOSE"].iter().any(|known| kind.eq_ignore_ascii_case(known));
        let is_foreign = header.get("typ").is_some_and(|kind| !kind.as_str().is_some_and(is_type));
        let claims = object(payload, "Jwt payload is an invalid Base64url encoded", "Jwt payload is an invalid JSON")?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| Refusal::Malformed("Jwt signature is an invalid Base64url encoded"))?;
        let times = read_claims(&claims)?;
        Ok(Token { signed, algorithm, key_id, is_foreign, signature, payload, claims, times })
    }

    /// A token whose subject is a workload is a JWT-SVID, and has to be what that standard demands (JWT-SVID, 2.3 and 3): it says
    /// whom it is for, and when it ends.
    pub(super) fn check_svid(&self) -> Result<(), Refusal> {
        let subject = self.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if !subject.starts_with("spiffe://") {
            return Ok(());
        }
        let wrong = |what| Err(Refusal::Malformed(what));
        if self.is_foreign {
            return wrong("Jwt header [typ] of a JWT-SVID is neither JWT nor JOSE");
        }
        if subject.parse::<SpiffeId>().is_err() {
            return wrong("Jwt payload [sub] field of a JWT-SVID is not a SPIFFE ID");
        }
        if !audiences(&self.claims).any(|audience| !audience.is_empty()) {
            return wrong("Jwt payload [aud] field is required of a JWT-SVID");
        }
        if self.times.expires.is_none() {
            return wrong("Jwt payload [exp] field is required of a JWT-SVID");
        }
        Ok(())
    }

    /// Checks the signature with the keys that are for it.
    pub(super) fn verify(&self, keys: &JwkSet) -> Result<(), Refusal> {
        let fits = keys.keys().iter().filter(|key| {
            key.material.fits(self.algorithm)
                && key.algorithm.is_none_or(|algorithm| algorithm == self.algorithm)
                && self.key_id.as_ref().is_none_or(|id| key.id.as_ref().is_none_or(|own| own == id))
        });
        let mut fits = fits.take(MOST_KEYS).peekable();
        if fits.peek().is_none() {
            return Err(Refusal::NoKey);
        }
        let message = self.signed.as_bytes();
        let is_good = fits.any(|key| is_signed(self.algorithm, &key.material, message, &self.signature));
        if is_good { Ok(()) } else { Err(Refusal::BadSignature) }
    }
}

fn object(part: &str, bad_base64: &'static str, bad_json: &'static str) -> Result<Map<String, Value>, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed(bad_base64))?;
    serde_json::from_slice(&bytes).map_err(|_| Refusal::Malformed(bad_json))
}

fn read_header(header: &Map<String, Value>) -> Result<(JwsAlgorithm, Option<String>), Refusal> {
    // What is critical, nobody here knows; and what is signed is what was sent (RFC 7797).
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(Refusal::Malformed("Jwt header has [crit] or [b64], which are not supported"));
    }
    let Some(Value::String(algorithm)) = header.get("alg") else {
        return Err(Refusal::Malformed("Jwt header [alg] field is required and must be a string"));
    };
    let algorithm = JwsAlgorithm::parse(algorithm).ok_or(Refusal::Malformed("Jwt header [alg] is not supported"))?;
    match header.get("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(id)) => Ok((algorithm, Some(id.clone()))),
        Some(_) => Err(Refusal::Malformed("Jwt header [kid] field is not a string")),
    }
}

fn read_claims(claims: &Map<String, Value>) -> Result<Times, Refusal> {
    let wrong = |what| Err(Refusal::Malformed(what));
    let is_text = |name: &str| claims.get(name).is_none_or(Value::is_string);
    if !is_text("iss") {
        return wrong("Jwt payload [iss] field is not a string");
    }
    if !is_text("sub") {
        return wrong("Jwt payload [sub] field is not a string");
    }
    let is_audience = match claims.get("aud") {
        None | Some(Value::String(_)) => true,
        Some(Value::Array(list)) => list.iter().all(Value::is_string),
        Some(_) => false,
    };
    if !is_audience {
        return wrong("Jwt payload [aud] field is not a string or string list");
    }
    let time = |name: &str, what: &'static str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(Refusal::Malformed(what)),
    };
    time("iat", "Jwt payload [iat] field is not a positive 64 bit integer")?;
    Ok(Times {
        expires: time("exp", "Jwt payload [exp] field is not a positive 64 bit integer")?,
        begins: time("nbf", "Jwt payload [nbf] field is not a positive 64 bit integer")?,
    })
}

fn is_signed(algorithm: JwsAlgorithm, key: &KeyMaterial, message: &[u8], signature: &[u8]) -> bool {
    match key {
        KeyMaterial::Rsa { n, e } => rsa(algorithm)
            .is_some_and(|parameters| RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()),
        KeyMaterial::P256(point) => check(&signature::ECDSA_P256_SHA256_FIXED, point, message, signature),
        KeyMaterial::P384(point) => check(&signature::ECDSA_P384_SHA384_FIXED, point, message, signature),
        KeyMaterial::Ed25519(key) => check(&signature::ED25519, key, message, signature),
    }
}

fn check(algorithm: &'static dyn VerificationAlgorithm, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

fn rsa(algorithm: JwsAlgorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        JwsAlgorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        JwsAlgorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        JwsAlgorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        JwsAlgorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        JwsAlgorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        JwsAlgorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        JwsAlgorithm::Es256 | JwsAlgorithm::Es384 | JwsAlgorithm::EdDsa => return None,
    })
}
