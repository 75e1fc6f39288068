//! `Secret` of Kubernetes (v1): a certificate with its key, and authorities, for what names it in a `credentialName`.
//!
//! Its keys are Istio's (credentials/kube): those of type `kubernetes.io/tls`, and `cert`, `key`, `cacert` and `crl` of others.
//! No value of it is in a finding, in `Debug`, or in what an object keeps of the text that it was read from.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_core::tls::Revoked;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::certificate::Validity;
use zeroize::Zeroizing;

use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity, Topic};
use crate::config::node::{Node, Value};

/// The type of a Secret that has a certificate and its key.
const TLS: &str = "kubernetes.io/tls";
/// Other types that may have one.
const GENERIC: [&str; 2] = ["", "Opaque"];

/// A certificate and its key, those of the generic type first, as in Istio.
const IDENTITIES: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];
const AUTHORITIES: [&str; 2] = ["cacert", "ca.crt"];
const REVOKED: [&str; 2] = ["crl", "ca.crl"];

/// What Kubernetes allows a Secret, in bytes.
const MOST: usize = 1 << 20;

/// What a Secret says: PEM that was read once, so that it is known to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// A certificate with its chain, and the key.
    pub identity: Option<(Pem, Pem)>,
    /// Authorities.
    pub authorities: Option<Pem>,
    /// Lists of revoked certificates.
    pub revoked: Option<Pem>,
    /// From when and until when the certificate holds.
    validity: Option<Validity>,
}

impl Secret {
    /// That its certificate holds no more, or not yet. It is shown all the same: whether it will do is for clients to say.
    pub(crate) fn ended(&self, now: SystemTime) -> Option<(Topic, String)> {
        ended(self.validity.as_ref()?, now)
    }
}

/// Authorities that a ConfigMap has, under `ca.crt`: nothing about them is a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities(pub Arc<str>);

impl Authorities {
    /// Those of a ConfigMap; `None` where it has none that are good.
    pub fn of(document: &Node) -> Option<Authorities> {
        let text = document.get("data")?.get("ca.crt")?.as_str()?;
        authorities_fault(text.as_bytes()).is_none().then(|| Authorities(text.into()))
    }
}

/// A text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem(Arc<Zeroizing<Vec<u8>>>);

impl Pem {
    /// The text.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem")
    }
}

/// Whether a Secret has what a `credentialName` may name. Others are of no concern to the mesh.
pub fn is_of_tls(document: &Node) -> bool {
    let kind = document.get("type").and_then(Node::as_str).unwrap_or_default();
    let mut keys = [document.get("data"), document.get("stringData")].into_iter().flatten().flat_map(Node::entries);
    let generic = || GENERIC.contains(&kind) || kind.starts_with("istio.io/");
    // A `key` alone may be of anything.
    let is_known = |name: &str| matches!(name, "cert" | "tls.crt" | "tls.key") || AUTHORITIES.contains(&name);
    kind == TLS || generic() && keys.any(|(key, _)| is_known(&key.name))
}

/// Reads one; what is wrong is said without any value.
pub fn read(document: &Node, d: &mut Decoder<'_>) -> Secret {
    let values = Values::of(document, d);
    let identity = values.identity(document, d);
    let authorities = values.first(&AUTHORITIES).inspect(|(name, pem)| {
        if let Some(fault) = authorities_fault(pem.bytes()) {
            values.wrong(name, fault.to_owned(), d);
        }
    });
    let revoked = values.first(&REVOKED).inspect(|(name, pem)| match Revoked::from_pem(pem.bytes()) {
        Ok(lists) if !lists.is_empty() => {}
        _ => values.wrong(name, "no list of revoked certificates in PEM".to_owned(), d),
    });
    if identity.is_none() && authorities.is_none() {
        let wanted = "neither a certificate with its key (`tls.crt`, `tls.key`) nor authorities (`ca.crt`)";
        d.report_at(document.span, "data", Severity::Error, Code::MissingField, wanted);
    }
    let pem = |found: Option<(_, Pem)>| found.map(|(_, pem)| pem);
    let validity = identity.as_ref().and_then(|(chain, _)| validity(chain));
    Secret { identity, authorities: pem(authorities), revoked: pem(revoked), validity }
}

/// What is wrong with authorities.
fn authorities_fault(pem: &[u8]) -> Option<&'static str> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let Ok(read) = read else { return Some("not a certificate in PEM") };
    (RootCertStore::empty().add_parsable_certificates(read).0 == 0).then_some("no certificate of an authority")
}

/// The values of `data` and `stringData` by their keys; of both, the latter count.
struct Values<'n>(Vec<(&'n str, &'n Node, &'static str, Option<Pem>)>);

impl<'n> Values<'n> {
    fn of(document: &'n Node, d: &mut Decoder<'_>) -> Values<'n> {
        let mut values = Values(Vec::new());
        for field in ["stringData", "data"] {
            let Some(written) = document.get(field) else { continue };
            if !matches!(written.value, Value::Map(_)) {
                let message = format!("expected a mapping, found {}", written.type_name());
                d.report_at(written.span, field, Severity::Error, Code::WrongType, message);
            }
            for (key, value) in written.entries() {
                if value.value == Value::Null || values.0.iter().any(|(name, ..)| *name == key.name) {
                    continue;
                }
                values.0.push((key.name.as_str(), value, field, None));
                let Some(text) = value.as_str() else {
                    let message = format!("expected a string, found {}", value.type_name());
                    values.say(&key.name, Severity::Error, Code::WrongType, message, d);
                    continue;
                };
                let bytes = match field {
                    "data" => {
                        let text = Zeroizing::new(text.split_ascii_whitespace().collect::<String>());
                        STANDARD.decode(text.as_bytes())
                    }
                    _ => Ok(text.as_bytes().to_vec()),
                };
                match bytes {
                    Err(_) => values.wrong(&key.name, "not base64".to_owned(), d),
                    Ok(bytes) if bytes.len() > MOST => {
                        values.wrong(&key.name, format!("larger than {MOST} bytes"), d);
                    }
                    Ok(bytes) => {
                        if let Some((.., pem)) = values.0.last_mut() {
                            *pem = Some(Pem(Arc::new(Zeroizing::new(bytes))));
                        }
                    }
                }
            }
        }
        values
    }

    fn get(&self, name: &str) -> Option<Pem> {
        self.0.iter().find(|(known, ..)| *known == name)?.3.clone().filter(|pem| !pem.bytes().is_empty())
    }

    fn first(&self, names: &[&'static str]) -> Option<(&'static str, Pem)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// The certificate and its key, if they fit.
    fn identity(&self, document: &Node, d: &mut Decoder<'_>) -> Option<(Pem, Pem)> {
        let is_tls = document.get("type").and_then(Node::as_str) == Some(TLS);
        let of_pair = |(certificate, key): &(&'static str, &'static str)| {
            let is_meant = self.get(certificate).is_some() || (*key != "key" && self.get(key).is_some());
            is_meant.then_some((*certificate, *key))
        };
        let (certificate, key) = match IDENTITIES.iter().find_map(of_pair) {
            Some(names) => names,
            None if is_tls => ("tls.crt", "tls.key"),
            None => return None,
        };
        let (Some(chain), Some(private)) = (self.get(certificate), self.get(key)) else {
            for name in [certificate, key].into_iter().filter(|name| self.get(name).is_none()) {
                // What is there and cannot be read, has been told.
                if !self.0.iter().any(|(known, _, _, pem)| *known == name && pem.is_none()) {
                    let message = format!("{certificate} and {key} belong together, and one of them is missing");
                    d.report_at(document.span, format!("data.{name}"), Severity::Error, Code::MissingField, message);
                }
            }
            return None;
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.bytes()).collect();
        let certificates = certificates.ok().filter(|all| !all.is_empty());
        let read = PrivateKeyDer::from_pem_slice(private.bytes()).ok();
        if certificates.is_none() {
            self.wrong(certificate, "not a certificate in PEM".to_owned(), d);
        }
        if read.is_none() {
            self.wrong(key, "not a private key in PEM".to_owned(), d);
        }
        let over = validity(&chain).and_then(|validity| ended(&validity, SystemTime::now()));
        if let Some((topic, message)) = over {
            self.say(certificate, Severity::Warning, Code::InvalidValue, message, d);
            d.amend(|finding| finding.about(topic));
        }
        if let Err(error) = CertifiedKey::from_der(certificates?, read?, &aws_lc_rs::default_provider()) {
            self.wrong(certificate, format!("it cannot be used with {key}: {error}"), d);
        }
        Some((chain, private))
    }

    fn wrong(&self, name: &str, message: String, d: &mut Decoder<'_>) {
        self.say(name, Severity::Error, Code::InvalidValue, message, d);
    }

    fn say(&self, name: &str, severity: Severity, code: Code, message: String, d: &mut Decoder<'_>) {
        let Some((name, value, field, _)) = self.0.iter().find(|(known, ..)| *known == name) else { return };
        d.report_at(value.span, format!("{field}.{name}"), severity, code, message);
    }
}

/// From when and until when the first certificate of a chain holds.
fn validity(chain: &Pem) -> Option<Validity> {
    let leaf = CertificateDer::pem_slice_iter(chain.bytes()).next()?.ok()?;
    let (_, read) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    Some(read.validity().clone())
}

fn ended(validity: &Validity, now: SystemTime) -> Option<(Topic, String)> {
    let now = i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok()?;
    let (begin, end) = (validity.not_before, validity.not_after);
    match (begin.timestamp(), end.timestamp()) {
        (_, at) if at < now => {
            Some((Topic::CertificateEnded, format!("the certificate has ended at {end}: clients refuse it")))
        }
        (at, _) if at > now => {
            let message = format!("the certificate begins at {begin}: until then clients refuse it");
            Some((Topic::CertificateBegins, message))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;
    use crate::config::file::{self, Item};
    use crate::config::{Objects, Source};

    struct Made {
        chain: String,
        key: String,
    }

    fn made(is_ca: bool) -> Made {
        let mut params = CertificateParams::new(["api.example.com".to_owned()]).expect("a name");
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().expect("a key");
        Made { chain: params.self_signed(&key).expect("a certificate").pem(), key: key.serialize_pem() }
    }

    /// As it begins in `data`.
    fn beginning(text: &str) -> String {
        STANDARD.encode(text).chars().take(40).collect()
    }

    fn of(kind: &str, values: &[(&str, &str)]) -> String {
        let mut text =
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: api, namespace: shop}}\ntype: {kind}\ndata:\n");
        for (name, value) in values {
            text.push_str(&format!("  {name}: {}\n", STANDARD.encode(value)));
        }
        text
    }

    fn read_text(text: &str) -> (Objects, Vec<String>) {
        let file = file::read(Source { name: "t.yaml".into(), text: text.into() });
        let said = file.diagnostics.iter().map(|finding| finding.render()).collect();
        let mut objects = Objects::default();
        file.items.into_iter().for_each(|item| objects.push(item));
        (objects, said)
    }

    #[test]
    fn certificates_and_authorities_are_found_under_the_names_of_both_types() {
        let (own, root) = (made(false), made(true));
        let pair = [("tls.crt", own.chain.as_str()), ("tls.key", own.key.as_str())];
        let generic = [("cert", own.chain.as_str()), ("key", own.key.as_str()), ("cacert", root.chain.as_str())];
        for (text, has_identity, has_authorities) in [
            (of(TLS, &pair), true, false),
            (of("Opaque", &generic), true, true),
            (of("Opaque", &generic[2..]), false, true),
            (of(TLS, &[pair[0], pair[1], ("ca.crt", &root.chain)]), true, true),
        ] {
            let (objects, said) = read_text(&text);
            assert!(said.is_empty(), "{said:?}");
            let secret = &objects.secrets[0].spec;
            assert_eq!((secret.identity.is_some(), secret.authorities.is_some()), (has_identity, has_authorities));
            if let Some((_, key)) = &secret.identity {
                assert_eq!(key.bytes(), own.key.as_bytes());
            }
        }
        // As it is, and before what `data` says.
        let text = of(TLS, &[("tls.crt", &own.chain), ("tls.key", "nothing")]);
        let plain: String = own.key.lines().map(|line| format!("    {line}\n")).collect();
        let (objects, said) = read_text(&format!("{text}stringData:\n  tls.key: |\n{plain}"));
        assert!(said.is_empty() && objects.secrets.len() == 1, "{said:?}");
    }

    #[test]
    fn what_is_wrong_is_said_by_field_and_nothing_shows_a_value() {
        let (own, other) = (made(false), made(false));
        let crt = ("tls.crt", own.chain.as_str());
        let key = ("tls.key", own.key.as_str());
        for (text, expected) in [
            (of(TLS, &[crt]), "data.tls.key: tls.crt and tls.key belong together"),
            (of("Opaque", &[crt, ("tls.key", &other.key)]), "data.tls.crt: it cannot be used with tls.key"),
            (of(TLS, &[("tls.crt", "nothing"), key]), "data.tls.crt: not a certificate in PEM"),
            (of(TLS, &[crt, ("tls.key", &own.chain)]), "data.tls.key: not a private key in PEM"),
            (of("Opaque", &[("cacert", "nothing")]), "data.cacert: no certificate of an authority"),
            (of(TLS, &[crt, key, ("ca.crl", "nothing")]), "data.ca.crl: no list of revoked certificates"),
            (of(TLS, &[crt, key]).replace("tls.key: ", "tls.key: _"), "data.tls.key: not base64"),
            (of(TLS, &[crt, key]) + "  more: 5\n", "data.more: expected a string, found a number"),
            (of(TLS, &[crt, key]) + "spec: {}\n", "spec: unknown field"),
        ] {
            let (objects, said) = read_text(&text);
            assert!(objects.secrets.is_empty() && objects.refused.len() == 1, "{text}");
            assert!(said.iter().any(|said| said.contains(expected)), "{expected}: {said:?}");
            let shown = format!("{said:?} {:?}", objects.refused);
            for made in [&own, &other] {
                let inside = made.key.lines().nth(1).expect("a key");
                assert!(!shown.contains(inside) && !shown.contains(&beginning(&made.key)), "{shown}");
            }
        }
    }

    #[test]
    fn a_certificate_that_has_ended_or_not_begun_is_shown_and_told_of() {
        for (from, to, expected) in [
            (1990, 1991, Some("data.tls.crt: the certificate has ended at Jan  1 00:00:00 1991")),
            (2500, 2501, Some("data.tls.crt: the certificate begins at Jan  1 00:00:00 2500")),
            (1990, 2501, None),
        ] {
            let mut params = CertificateParams::new(["api.example.com".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
            let key = KeyPair::generate().expect("a key");
            let chain = params.self_signed(&key).expect("a certificate").pem();
            let (objects, said) = read_text(&of(TLS, &[("tls.crt", &chain), ("tls.key", &key.serialize_pem())]));
            assert!(objects.secrets.len() == 1 && objects.secrets[0].spec.identity.is_some());
            assert_eq!(said.len(), usize::from(expected.is_some()), "{said:?}");
            assert!(expected.is_none_or(|expected| said[0].contains(expected)), "{said:?}");
        }
    }

    #[test]
    fn a_secret_is_kept_without_its_text_and_no_finding_beside_it_shows_a_line_of_it() {
        let own = made(false);
        let secret = of(TLS, &[("tls.crt", &own.chain), ("tls.key", &own.key)]);
        let encoded = beginning(&own.key);
        let annotated =
            secret.replace("namespace: shop", &format!("namespace: shop, annotations: {{last: {encoded}}}"));
        let (objects, said) = read_text(&annotated);
        assert!(said.is_empty() && !format!("{objects:?}").contains(&encoded), "{said:?}");
        for wrong in ["---\nkind: Nothing\n", "---\n{\n"] {
            let (_, said) = read_text(&format!("{secret}{wrong}"));
            assert!(!said.is_empty() && !said.concat().contains(&encoded), "{said:?}");
        }
        // Of what is no certificate for the mesh, nothing is said but that.
        for text in [of("kubernetes.io/dockerconfigjson", &[("tls.key", "a")]), of("Opaque", &[("key", "a")])] {
            let file = file::read(Source { name: "t.yaml".into(), text: text.into() });
            assert!(file.items.iter().all(|item| !matches!(item, Item::Secret(_))) && !file.rejected);
            assert!(file.diagnostics[0].message.contains("of no concern"), "{:?}", file.diagnostics);
        }
    }
}
