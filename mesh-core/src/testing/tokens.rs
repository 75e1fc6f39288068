//! An issuer of tokens, for tests.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Somebody who signs tokens with a key of P-256 (ES256).
///
/// ```
/// let issuer = mesh_core::testing::TokenIssuer::new("key-1");
/// let token = issuer.token(r#"{"iss": "me", "sub": "you"}"#);
/// assert_eq!(token.split('.').count(), 3);
/// assert!(mesh_core::model::JwkSet::parse(issuer.jwks().as_bytes()).is_ok());
/// ```
#[derive(Debug)]
pub struct TokenIssuer {
    key_id: String,
    key: EcdsaKeyPair,
}

impl TokenIssuer {
    /// With a new key of this name.
    ///
    /// # Panics
    /// Where no key can be made.
    pub fn new(key_id: &str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key of P-256");
        TokenIssuer { key_id: key_id.to_owned(), key }
    }

    /// The key, as a member of `keys`.
    pub fn jwk(&self) -> String {
        let point = self.key.public_key().as_ref();
        let part =
            |start: usize| URL_SAFE_NO_PAD.encode(point.iter().skip(start).take(32).copied().collect::<Vec<_>>());
        let (x, y) = (part(1), part(33));
        format!(r#"{{"kty":"EC","crv":"P-256","alg":"ES256","kid":"{}","x":"{x}","y":"{y}"}}"#, self.key_id)
    }

    /// The set of its one key.
    pub fn jwks(&self) -> String {
        format!("{{\"keys\":[{}]}}", self.jwk())
    }

    /// A token with these claims, which are JSON.
    pub fn token(&self, claims: &str) -> String {
        self.sign(&format!(r#"{{"alg":"ES256","kid":"{}"}}"#, self.key_id), claims)
    }

    /// A token with this header and these claims, whatever they are.
    ///
    /// # Panics
    /// Where nothing can be signed.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
