//! Keys: those that the authority signs with, and which ones it signs for.

use std::fmt;

use anyhow::{Context, anyhow, ensure};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::{Zeroize, Zeroizing};

/// A private key. It is wiped when it is dropped, and nothing prints it.
pub(crate) struct Key(KeyPair);

impl Key {
    /// A new one: ECDSA P-256.
    pub(crate) fn generate() -> anyhow::Result<Key> {
        Ok(Key(KeyPair::generate().context("cannot make a key")?))
    }

    /// Reads the first private key of a PEM text. Errors say nothing of the text.
    pub(crate) fn from_pem(pem: &[u8]) -> anyhow::Result<Key> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| anyhow!("there is no private key in it"))?;
        KeyPair::try_from(&der).map(Key).map_err(|_| anyhow!("its private key cannot be used"))
    }

    /// The key in PEM (PKCS#8).
    pub(crate) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Sizes of RSA keys, in bits.
const RSA: std::ops::RangeInclusive<usize> = 2048..=4096;
/// The smallest public exponent of RSA (FIPS 186-5).
const SMALLEST_EXPONENT: u64 = 65_537;

/// Whether a key is one of those that are signed for and trusted: P-256, P-384, Ed25519, RSA of 2048 to 4096 bits.
/// Looks at no more than the sizes, so that a key of any size costs nothing.
pub(crate) fn check(key: &SubjectPublicKeyInfo<'_>) -> anyhow::Result<()> {
    let (algorithm, parameters) = (&key.algorithm.algorithm, &key.algorithm.parameters);
    let point = &*key.subject_public_key.data;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let length = match curve {
            Some(curve) if curve == OID_EC_P256 => 65,
            Some(curve) if curve == OID_NIST_EC_P384 => 97,
            _ => anyhow::bail!("a key of this curve is not accepted: use P-256, P-384, Ed25519 or RSA"),
        };
        // SEC 1, 2.3.3: uncompressed.
        ensure!(point.len() == length && point.first() == Some(&4), "the point of its key is malformed");
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { anyhow::bail!("its RSA key is malformed") };
        let modulus = rsa.modulus.iter().skip_while(|byte| **byte == 0);
        let mut bytes = modulus.clone();
        let bits = bytes.next().map_or(0, |first| 8 - first.leading_zeros() as usize + 8 * bytes.count());
        let (least, most) = (RSA.start(), RSA.end());
        ensure!(RSA.contains(&bits), "an RSA key of {bits} bits is not accepted: use {least} to {most}");
        let exponent = rsa.try_exponent().unwrap_or_default();
        ensure!(
            exponent >= SMALLEST_EXPONENT && exponent % 2 == 1,
            "an RSA key with this exponent is not accepted: use {SMALLEST_EXPONENT}"
        );
    } else if *algorithm == OID_SIG_ED25519 {
        ensure!(point.len() == 32, "its Ed25519 key is malformed");
    } else {
        anyhow::bail!("a key of this algorithm is not accepted: use P-256, P-384, Ed25519 or RSA");
    }
    Ok(())
}
