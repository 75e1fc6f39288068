//! Keys that tokens are verified with (JWKS, RFC 7517): read once, into what a signature can be checked with.
//!
//! Only public keys of the algorithms below are taken. Private members are dropped and reported, symmetric keys are never
//! used: whoever can read one can sign with it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::error::Invalid;

/// The largest set that is read, in bytes.
pub const MOST_JWKS_BYTES: usize = 1 << 20;

/// The most keys that a set may have.
pub const MOST_JWKS_KEYS: usize = 64;

/// An algorithm by which tokens are signed (RFC 7518, 3.3 to 3.5, and RFC 8037). There is none for symmetric keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwsAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl JwsAlgorithm {
    /// By its name in a header.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => JwsAlgorithm::Rs256,
            "RS384" => JwsAlgorithm::Rs384,
            "RS512" => JwsAlgorithm::Rs512,
            "PS256" => JwsAlgorithm::Ps256,
            "PS384" => JwsAlgorithm::Ps384,
            "PS512" => JwsAlgorithm::Ps512,
            "ES256" => JwsAlgorithm::Es256,
            "ES384" => JwsAlgorithm::Es384,
            "EdDSA" => JwsAlgorithm::EdDsa,
            _ => return None,
        })
    }
}

/// What a signature is checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// An RSA key, big-endian.
    Rsa {
        /// The modulus, of 2048 to 8192 bits.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// A point on P-256, uncompressed.
    P256(Vec<u8>),
    /// A point on P-384, uncompressed.
    P384(Vec<u8>),
    /// An Ed25519 key.
    Ed25519(Vec<u8>),
}

impl KeyMaterial {
    /// Whether signatures of an algorithm can be checked with it.
    pub fn fits(&self, algorithm: JwsAlgorithm) -> bool {
        use JwsAlgorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            KeyMaterial::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            KeyMaterial::P256(_) => algorithm == Es256,
            KeyMaterial::P384(_) => algorithm == Es384,
            KeyMaterial::Ed25519(_) => algorithm == EdDsa,
        }
    }
}

/// One public key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Jwk {
    /// Its name.
    pub id: Option<String>,
    /// The only algorithm that it is for, where it says so.
    pub algorithm: Option<JwsAlgorithm>,
    /// The key.
    pub material: KeyMaterial,
    /// The public members, as they were written.
    written: Map<String, Value>,
}

/// A set of public keys.
///
/// ```
/// use mesh_core::model::JwkSet;
///
/// let set = JwkSet::parse(br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "d": "c2VjcmV0",
///     "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#)?;
/// assert_eq!(set.keys().len(), 1);
/// assert_eq!(set.remarks(), ["keys[0]: the private member \"d\" is dropped: whoever reads it can sign tokens"]);
/// assert!(!set.to_json().contains("c2VjcmV0"));
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwkSet {
    keys: Vec<Jwk>,
    remarks: Vec<String>,
}

/// The members of private and symmetric keys (RFC 7518, 6.2.2, 6.3.2, 6.4.1).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// What is published of a key.
const PUBLIC: [&str; 10] = ["kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y"];

impl JwkSet {
    /// Reads a set. Keys that cannot be used are passed over, with a remark.
    ///
    /// # Errors
    /// A set that is too large, is none, or has no key that can be used.
    pub fn parse(text: &[u8]) -> Result<Self, Invalid> {
        if text.len() > MOST_JWKS_BYTES {
            return Err(Invalid::new(format!("a JWKS of more than {MOST_JWKS_BYTES} bytes")));
        }
        // The parser's own words could repeat what is written.
        let set: Value = serde_json::from_slice(text).map_err(|_| Invalid::new("a JWKS that is no JSON"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| Invalid::new("a JWKS without `keys`"))?;
        if keys.len() > MOST_JWKS_KEYS {
            return Err(Invalid::new(format!("a JWKS with more than {MOST_JWKS_KEYS} keys")));
        }
        let mut read = JwkSet::default();
        for (index, key) in keys.iter().enumerate() {
            for name in PRIVATE.iter().filter(|name| key.get(**name).is_some()) {
                let why = "is dropped: whoever reads it can sign tokens";
                read.remarks.push(format!("keys[{index}]: the private member {name:?} {why}"));
            }
            match jwk(key) {
                Ok(key) => read.keys.push(key),
                Err(reason) => read.remarks.push(format!("keys[{index}]: not used: {reason}")),
            }
        }
        if read.keys.is_empty() {
            let why = read.remarks.last().map_or("it has none", String::as_str);
            return Err(Invalid::new(format!("a JWKS without a key that can be used: {why}")));
        }
        Ok(read)
    }

    /// The keys.
    pub fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    /// What was dropped or passed over, and why.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The public keys as JSON: nothing else of what was read.
    pub fn to_json(&self) -> String {
        let keys = self.keys.iter().map(|key| Value::Object(key.written.clone())).collect();
        Value::Object(Map::from_iter([("keys".to_owned(), Value::Array(keys))])).to_string()
    }
}

fn jwk(key: &Value) -> Result<Jwk, String> {
    let key = key.as_object().ok_or("it is no object")?;
    let text = |name: &str| match key.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name:?} is no text")),
    };
    if text("use")?.is_some_and(|it| it != "sig") {
        return Err("it is not for signatures".to_owned());
    }
    if let Some(operations) = key.get("key_ops") {
        let may_verify = operations.as_array().is_some_and(|list| list.iter().any(|it| it == "verify"));
        if !may_verify {
            return Err("it is not for verifying".to_owned());
        }
    }
    let bytes = |name: &str| {
        let text = text(name)?.ok_or_else(|| format!("{name:?} is missing"))?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| format!("{name:?} is not base64url"))
    };
    let material = match (text("kty")?.ok_or("it has no \"kty\"")?, text("crv")?) {
        ("RSA", _) => rsa(bytes("n")?, bytes("e")?)?,
        ("EC", Some("P-256")) => KeyMaterial::P256(point(bytes("x")?, bytes("y")?, 32)?),
        ("EC", Some("P-384")) => KeyMaterial::P384(point(bytes("x")?, bytes("y")?, 48)?),
        ("OKP", Some("Ed25519")) => match bytes("x")? {
            key if key.len() == 32 => KeyMaterial::Ed25519(key),
            _ => return Err("\"x\" has not 32 bytes".to_owned()),
        },
        ("oct", _) => return Err("a symmetric key".to_owned()),
        _ => return Err("its type is not known".to_owned()),
    };
    let algorithm = match text("alg")? {
        None => None,
        Some(name) => match JwsAlgorithm::parse(name).filter(|algorithm| material.fits(*algorithm)) {
            Some(algorithm) => Some(algorithm),
            None => return Err("\"alg\" is not known, or not for keys of its type".to_owned()),
        },
    };
    let written = key
        .iter()
        .filter(|(name, _)| PUBLIC.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()));
    Ok(Jwk { id: text("kid")?.map(str::to_owned), algorithm, material, written: written.collect() })
}

fn rsa(n: Vec<u8>, e: Vec<u8>) -> Result<KeyMaterial, String> {
    let strip = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let (n, e) = (strip(n), strip(e));
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(format!("an RSA key of {bits} bits, which must have 2048 to 8192"));
    }
    // Those in use are 3, 17 and 65537. A large one costs time.
    let is_odd = e.last().is_some_and(|byte| byte % 2 == 1);
    if e.len() > 4 || !is_odd || e == [1] {
        return Err("an RSA key with an exponent that is none".to_owned());
    }
    Ok(KeyMaterial::Rsa { n, e })
}

fn point(x: Vec<u8>, y: Vec<u8>, length: usize) -> Result<Vec<u8>, String> {
    if x.len() != length || y.len() != length {
        return Err(format!("\"x\" and \"y\" must have {length} bytes"));
    }
    Ok([vec![4], x, y].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn parse(keys: &str) -> Result<JwkSet, Invalid> {
        JwkSet::parse(format!("{{\"keys\":[{keys}]}}").as_bytes())
    }

    #[test]
    fn j9_private_members_are_dropped_reported_and_never_written_again() {
        let key = ED.replace("\"kty\"", "\"d\":\"sesame\",\"p\":\"sesame\",\"q\":\"sesame\",\"kty\"");
        let set = parse(&key).expect("a set");
        assert_eq!(set.remarks().len(), 3, "{:?}", set.remarks());
        assert!(!format!("{set:?} {}", set.to_json()).contains("sesame"));
        assert_eq!(JwkSet::parse(set.to_json().as_bytes()).expect("a set").keys(), set.keys());
    }

    #[test]
    fn j10_a_set_has_a_size_and_a_number_of_keys() {
        let many = |count| vec![ED; count].join(",");
        assert_eq!(parse(&many(64)).expect("a set").keys().len(), 64);
        assert!(parse(&many(65)).unwrap_err().to_string().contains("more than 64 keys"));
        let large = format!("{ED}{}", " ".repeat(MOST_JWKS_BYTES));
        assert!(parse(&large).unwrap_err().to_string().contains("1048576 bytes"));
    }

    #[test]
    fn j10_keys_of_an_unknown_type_are_passed_over() {
        for other in [
            r#"{"kty":"new"}"#,
            r#"{}"#,
            "7",
            r#"{"kty":"oct","k":"c2VjcmV0"}"#,
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#,
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
            r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#,
            &ED.replace("\"kty\"", "\"use\":\"enc\",\"kty\""),
            &ED.replace("\"kty\"", "\"key_ops\":[\"sign\"],\"kty\""),
            &ED.replace("\"kty\"", "\"alg\":\"HS256\",\"kty\""),
            &ED.replace("\"kty\"", "\"alg\":\"RS256\",\"kty\""),
        ] {
            let set = parse(&format!("{other},{ED}")).expect("a set");
            assert_eq!((set.keys().len(), set.remarks().is_empty()), (1, false), "{other}");
            assert!(parse(other).is_err(), "{other}");
        }
        for wrong in [&b""[..], b"{}", b"[]", b"\xff", b"{\"keys\":{}}", b"{\"keys\":[]}"] {
            assert!(JwkSet::parse(wrong).is_err());
        }
    }
}
