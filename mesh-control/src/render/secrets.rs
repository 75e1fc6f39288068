//! Secrets of Kubernetes as clients are told them, by Envoy's secret discovery service or over the stream of everything else, under
//! Istio's names.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use mesh_core::identity::SpiffeId;

use crate::policy::Policy;
use crate::policy::destination_rules::MergedRule;
use crate::policy::secrets::{AUTHORITIES, Pem};

/// What the name of a Secret begins with: its namespace and its own name follow.
const KUBERNETES: &str = "kubernetes://";

/// The name of the certificate and key in a Secret.
pub(super) fn certificate_name(namespace: &str, name: &str) -> String {
    format!("{KUBERNETES}{namespace}/{name}")
}

/// The name of the authorities for it.
pub(super) fn authorities_name(namespace: &str, name: &str) -> String {
    format!("{KUBERNETES}{namespace}/{name}{AUTHORITIES}")
}

/// Whether this is the name of a Secret, and not of what is a workload's own.
pub fn is_secret(name: &str) -> bool {
    name.starts_with(KUBERNETES)
}

/// Whether a rule of its own namespace names the Secret of this name: others are for nobody beside a workload.
pub fn is_named(policy: &Policy, name: &str) -> bool {
    rule_of(name).is_some_and(|(namespace, name)| policy.destination_rules.name_secret(namespace, name, |_| true))
}

/// Whether such a rule is for the workloads of this namespace with these labels. To gateways, as in Istio, it need not say so.
pub fn is_for(policy: &Policy, own: &str, labels: &BTreeMap<String, String>, is_gateway: bool, name: &str) -> bool {
    let is_one = |rule: &MergedRule| rule.is_for_those_with(labels) || (is_gateway && !rule.is_for_some());
    rule_of(name).is_some_and(|(namespace, name)| {
        namespace == own && policy.destination_rules.name_secret(namespace, name, is_one)
    })
}

/// The namespace of a Secret, and what a rule calls it.
fn rule_of(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix(KUBERNETES)?.split_once('/')?;
    Some((namespace, name.strip_suffix(AUTHORITIES).unwrap_or(name)))
}

/// The namespace of the Secret of this name.
pub fn namespace_of(name: &str) -> Option<&str> {
    rule_of(name).map(|(namespace, _)| namespace)
}

/// Whether a workload may have a Secret by this name: those of its own namespace.
pub fn may_have(workload: &SpiffeId, name: &str) -> bool {
    namespace_of(name).zip(workload.workload()).is_some_and(|(namespace, (own, _))| namespace == own)
}

/// What a Secret says by this name, where there is one that says it.
pub fn secret(policy: &Policy, name: &str) -> Option<pb::Secret> {
    let (namespace, of) = name.strip_prefix(KUBERNETES)?.split_once('/')?;
    let says = match of.strip_suffix(AUTHORITIES) {
        Some(of) => {
            let (roots, revoked) = policy.secrets.authorities(namespace, of)?;
            pb::secret::Type::ValidationContext(pb::CertificateValidationContext {
                trusted_ca: Some(inline(roots)),
                crl: revoked.map(inline),
                ..Default::default()
            })
        }
        None => {
            let (chain, key) = policy.secrets.get(namespace, of)?.identity.as_ref()?;
            pb::secret::Type::TlsCertificate(pb::TlsCertificate {
                certificate_chain: Some(inline(chain)),
                private_key: Some(inline(key)),
                ..Default::default()
            })
        }
    };
    Some(pb::Secret { name: name.to_owned(), r#type: Some(says) })
}

fn inline(pem: &Pem) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(pem.bytes().to_vec())), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_may_have_the_secrets_of_its_namespace_and_no_others() {
        let web: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an identity");
        let other: SpiffeId = "spiffe://cluster.local/web".parse().expect("an identity");
        for (name, expected) in [
            (certificate_name("shop", "api"), true),
            (authorities_name("shop", "api"), true),
            (certificate_name("pay", "api"), false),
            ("kubernetes://api".to_owned(), false),
            ("default".to_owned(), false),
        ] {
            assert_eq!(may_have(&web, &name), expected, "{name}");
            assert!(!may_have(&other, &name), "{name}");
        }
    }
}
