//! Bundles in SPIFFE's own form (SPIFFE Trust Domain and Bundle, 4): the roots of one trust domain as a set of JWKs; and those of
//! several domains in one file (gRFC A87).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::error::Invalid;
use crate::identity::TrustDomain;

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
        Self::of(&json(text)?)
    }

    fn of(json: &Json) -> Result<Self, Invalid> {
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

/// The bundles of several trust domains, each of which vouches for its own domain alone: what gRPC reads where its bootstrap says
/// `spiffe_trust_bundle_map_file`.
///
/// ```
/// use mesh_core::tls::SpiffeBundleMap;
///
/// let map = SpiffeBundleMap::from_json(br#"{"trust_domains": {"a.example": {"keys": []}}}"#)?;
/// assert_eq!(map.domains.len(), 1);
/// assert!(SpiffeBundleMap::from_json(br#"{"trust_domains": {"A": {"keys": []}}}"#).is_err());
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpiffeBundleMap {
    /// By the names of their domains.
    pub domains: BTreeMap<TrustDomain, SpiffeBundle>,
}

impl SpiffeBundleMap {
    /// Reads one.
    ///
    /// # Errors
    /// The key that is wrong. One domain that is makes all of it so.
    pub fn from_json(text: &[u8]) -> Result<Self, Invalid> {
        let json = json(text)?;
        let domains = json.get("trust_domains").and_then(Json::as_object);
        let domains = domains.ok_or_else(|| Invalid::new("missing, or no object").at("trust_domains"))?;
        let read = domains.iter().map(|(name, bundle)| {
            let at = |invalid: Invalid| invalid.at(format!("trust_domains[{name:?}]"));
            Ok((name.parse().map_err(at)?, SpiffeBundle::of(bundle).map_err(at)?))
        });
        Ok(SpiffeBundleMap { domains: read.collect::<Result<_, Invalid>>()? })
    }
}

/// How new the bundles were that were in force: an older one does not come back (SPIFFE Trust Domain and Bundle, 4.1.1).
#[derive(Clone, Debug, Default)]
pub struct NewestBundles(BTreeMap<TrustDomain, u64>);

impl NewestBundles {
    /// Whether none of these is older than what was in force of its domain.
    ///
    /// # Errors
    /// The first one that is.
    pub fn check(&self, map: &SpiffeBundleMap) -> Result<(), Invalid> {
        map.domains.iter().try_for_each(|(domain, bundle)| match (self.0.get(domain), bundle.sequence) {
            (Some(newest), Some(sequence)) if sequence < *newest => {
                let why = format!("{sequence} is smaller than {newest}, which was in force");
                Err(Invalid::new(why).at("spiffe_sequence").at(format!("trust_domains[{:?}]", domain.as_str())))
            }
            _ => Ok(()),
        })
    }

    /// These are in force now.
    pub fn note(&mut self, map: &SpiffeBundleMap) {
        for (domain, bundle) in &map.domains {
            if let Some(sequence) = bundle.sequence {
                let newest = self.0.entry(domain.clone()).or_default();
                *newest = sequence.max(*newest);
            }
        }
    }
}

fn json(text: &[u8]) -> Result<Json, Invalid> {
    serde_json::from_slice(text).map_err(|error| Invalid::new(format!("not JSON: {error}")))
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

    #[test]
    fn a_map_of_bundles_is_read_whole_or_refused_with_the_domain_and_never_goes_back() {
        let read = |text: &str| SpiffeBundleMap::from_json(text.as_bytes()).map_err(|invalid| invalid.to_string());
        let of = |a: u64, b: &str| {
            let key = r#"{"use": "x509-svid", "kty": "EC", "x5c": ["MAA="]}"#;
            let map = format!(
                r#"{{"trust_domains": {{"a.example": {{"keys": [{key}], "spiffe_sequence": {a}}}, "b.example": {{"keys": [{key}]{b}}}}}}}"#
            );
            read(&map).expect("a map")
        };
        let mut newest = NewestBundles::default();
        let first = of(2, "");
        assert_eq!(first.domains.keys().map(TrustDomain::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        newest.check(&first).expect("nothing was there before");
        newest.note(&first);
        newest.check(&of(2, r#", "spiffe_sequence": 0"#)).expect("the same, and one that had no number");
        newest.note(&of(3, ""));
        let older = newest.check(&first).expect_err("it is older").to_string();
        assert!(older.contains(r#"trust_domains["a.example"].spiffe_sequence: 2 is smaller than 3"#), "{older}");
        for (text, key) in [
            ("", "not JSON"),
            (r#"{"keys": []}"#, "trust_domains"),
            (r#"{"trust_domains": []}"#, "trust_domains"),
            (r#"{"trust_domains": {"": {"keys": []}}}"#, r#"trust_domains[""]"#),
            (r#"{"trust_domains": {"spiffe://a": {"keys": []}}}"#, r#"trust_domains["spiffe://a"]"#),
            (r#"{"trust_domains": {"a": {"keys": []}, "b": {}}}"#, r#"trust_domains["b"].keys"#),
            (r#"{"trust_domains": {"a": {"keys": [{"use": "x509-svid"}]}}}"#, r#"trust_domains["a"].keys[0].kty"#),
        ] {
            let refused = read(text).expect_err("it is wrong");
            assert!(refused.contains(key), "{text}: {refused}");
        }
    }
}
