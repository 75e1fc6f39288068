//! Bundles in SPIFFE's own form (SPIFFE Trust Domain and Bundle, 4): the roots of one trust domain as a set of JWKs.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::error::Invalid;

/// What such a bundle says of X.509. Keys for other uses (`jwt-svid`) are passed over, as the standard wants it.
///
/// ```
/// use mesh_core::tls::SpiffeBundle;
///
/// // It has revoked all its keys.
/// let bundle = SpiffeBundle::from_json(br#"{"keys": [], "spiffe_sequence": 7}"#)?;
/// assert_eq!((bundle.roots.len(), bundle.sequence), (0, Some(7)));
/// assert!(SpiffeBundle::from_json(br#"{"spiffe_sequence": 7}"#).is_err());
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpiffeBundle {
    /// The roots. None where the trust domain has revoked them all.
    pub roots: Vec<CertificateDer<'static>>,
    /// Of two bundles of a trust domain, the later one has the larger number.
    pub sequence: Option<u64>,
    /// How often it should be looked for a later one.
    pub refresh_hint: Option<Duration>,
}

impl SpiffeBundle {
    /// Reads one. Whether its certificates are those of authorities is not looked at.
    ///
    /// # Errors
    /// The key that is wrong. One entry that is makes all of it so: nobody knows whose root would be left out.
    pub fn from_json(text: &[u8]) -> Result<Self, Invalid> {
        let json: Json = serde_json::from_slice(text).map_err(|error| Invalid::new(format!("not JSON: {error}")))?;
        let whole = |key: &str| match json.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => {
                value.as_u64().map(Some).ok_or_else(|| Invalid::new("not a whole number").at(key.to_owned()))
            }
        };
        let (sequence, refresh_hint) = (whole("spiffe_sequence")?, whole("spiffe_refresh_hint")?);
        let keys = json.get("keys").and_then(Json::as_array);
        let keys = keys.ok_or_else(|| Invalid::new("missing, or no list").at("keys"))?;
        let mut roots = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let at = |invalid: Invalid| invalid.at(format!("keys[{index}]"));
            if !key.is_object() {
                return Err(at(Invalid::new("not an object")));
            }
            if key.get("use").and_then(Json::as_str) == Some("x509-svid") {
                roots.push(root(key).map_err(at)?);
            }
        }
        if roots.is_empty() && !keys.is_empty() {
            return Err(Invalid::new("none of them is for `x509-svid`").at("keys"));
        }
        Ok(SpiffeBundle { roots, sequence, refresh_hint: refresh_hint.map(Duration::from_secs) })
    }
}

/// The one certificate of a JWK (RFC 7517, 4.7).
fn root(key: &Json) -> Result<CertificateDer<'static>, Invalid> {
    if !matches!(key.get("kty").and_then(Json::as_str), Some("RSA" | "EC" | "OKP")) {
        return Err(Invalid::new("must be RSA, EC or OKP").at("kty"));
    }
    let chain = key.get("x5c").and_then(Json::as_array).map(Vec::as_slice);
    let Some([Json::String(only)]) = chain else {
        return Err(Invalid::new("must be a list of one certificate").at("x5c"));
    };
    let der = STANDARD.decode(only).map_err(|_| Invalid::new("not base64").at("x5c"))?;
    Ok(CertificateDer::from(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_read_whole_or_refused_with_the_key() {
        let read = |text: &str| SpiffeBundle::from_json(text.as_bytes()).map_err(|invalid| invalid.to_string());
        let bundle = read(
            r#"{"keys": [{"use": "jwt-svid", "kid": "a"}, {"kty": "EC"}, {"use": "x509-svid", "kty": "EC", "x5c": ["MAA="]}],
                "spiffe_sequence": 12, "spiffe_refresh_hint": 300, "more": {}}"#,
        );
        let bundle = bundle.expect("a bundle");
        assert_eq!(bundle.roots, [CertificateDer::from(vec![0x30, 0])]);
        assert_eq!((bundle.sequence, bundle.refresh_hint), (Some(12), Some(Duration::from_secs(300))));
        for (text, key) in [
            ("", "not JSON"),
            ("[]", "keys"),
            (r#"{"keys": {}}"#, "keys"),
            (r#"{"keys": [1]}"#, "keys[0]"),
            (r#"{"keys": [{"use": "jwt-svid"}]}"#, "x509-svid"),
            (r#"{"keys": [{"use": "x509-svid", "x5c": ["MAA="]}]}"#, "kty"),
            (r#"{"keys": [{"use": "x509-svid", "kty": "EC"}]}"#, "x5c"),
            (r#"{"keys": [{"use": "x509-svid", "kty": "EC", "x5c": []}]}"#, "x5c"),
            (r#"{"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["MAA=", "MAA="]}]}"#, "x5c"),
            (r#"{"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["*"]}]}"#, "x5c"),
            (r#"{"keys": [], "spiffe_sequence": -1}"#, "spiffe_sequence"),
            (r#"{"keys": [], "spiffe_refresh_hint": "300"}"#, "spiffe_refresh_hint"),
        ] {
            let refused = read(text).expect_err("it is wrong");
            assert!(refused.contains(key), "{text}: {refused}");
        }
    }
}
