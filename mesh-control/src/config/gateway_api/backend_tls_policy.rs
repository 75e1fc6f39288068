//! `BackendTLSPolicy` (gateway.networking.k8s.io): that a Service is called by TLS, and whose certificate it has to have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{LocalReference, TargetRef, check_targets, fault, hostname_fault};
use crate::config::decode::{Decoder, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, quoted};
use crate::config::support::is_core_service;

message! {
    /// The specification.
    pub struct BackendTlsPolicy {
        /// The Services.
        target_refs: Vec<PolicyTarget> = "targetRefs" required,
        /// Whose certificate they have to have.
        validation: BackendValidation = "validation" required,
        /// What an implementation lets be said.
        options: BTreeMap<String, String> = "options",
    }
    /// A Service of the policy's own namespace, or a port of it.
    pub struct PolicyTarget {
        /// Its group.
        group: String = "group" required,
        /// Its kind.
        kind: Text = "kind" required,
        /// Its name.
        name: Text = "name" required,
        /// The name of one of its ports; all of them where nothing is written.
        section_name: Option<Text> = "sectionName",
    }
    /// Whose certificate a server has to have.
    pub struct BackendValidation {
        /// Objects with authorities that have to vouch for it.
        ca_certificate_refs: Vec<LocalReference> = "caCertificateRefs",
        /// Authorities that a system has.
        well_known_ca_certificates: Option<Text> = "wellKnownCACertificates",
        /// The name that is asked for, which has to be in the certificate where no others are written.
        hostname: Text = "hostname" required,
        /// Names of which one has to be in the certificate.
        subject_alt_names: Vec<SubjectAltName> = "subjectAltNames",
    }
    /// A name in a certificate.
    pub struct SubjectAltName {
        /// What it is.
        kind: NameType = "type",
        /// A host.
        hostname: Option<Text> = "hostname",
        /// A URI.
        uri: Option<Text> = "uri",
    }
}

keywords! {
    /// What a name in a certificate is.
    pub enum NameType {
        /// A host.
        Hostname = "Hostname",
        /// A URI.
        Uri = "URI",
    }
}

impl PolicyTarget {
    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        is_core_service(&self.group, &self.kind.value)
    }

    fn target_ref(&self) -> TargetRef<'_> {
        TargetRef {
            span: self.span,
            group: &self.group,
            kind: &self.kind.value,
            name: &self.name,
            section: self.section(),
        }
    }

    /// The name of its port, where one is meant.
    pub fn section(&self) -> Option<&str> {
        self.section_name.as_ref().map(|name| name.value.as_str()).filter(|name| !name.is_empty())
    }
}

impl SubjectAltName {
    /// The name.
    pub fn name(&self) -> &str {
        let written = match self.kind {
            NameType::Hostname => &self.hostname,
            NameType::Uri => &self.uri,
        };
        written.as_ref().map_or("", |text| text.value.as_str())
    }
}

impl BackendValidation {
    /// The word for authorities of a system, where one is written.
    pub fn well_known(&self) -> Option<&str> {
        self.well_known_ca_certificates.as_ref().map(|word| word.value.as_str()).filter(|word| !word.is_empty())
    }
}

impl BackendTlsPolicy {
    /// What the schema refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        let targets: Vec<TargetRef<'_>> = self.target_refs.iter().map(PolicyTarget::target_ref).collect();
        check_targets(self.span, &targets, "the same target twice: each has a port of its own", d);
        self.validation.check(d);
    }
}

impl BackendValidation {
    fn check(&self, d: &mut Decoder<'_>) {
        let host = &self.hostname;
        if host.starts_with('*') || host.parse::<IpAddr>().is_ok() || hostname_fault(host).is_some() {
            let message = format!("{} is not the name of a host", quoted(host));
            fault(d, host.span, "validation.hostname".to_owned(), message);
        }
        if self.ca_certificate_refs.is_empty() == self.well_known().is_none() {
            let message = "either `caCertificateRefs` or `wellKnownCACertificates` is needed, and not both";
            d.report_at(self.span, "validation", Severity::Error, Code::InvalidValue, message);
        }
        for (index, name) in self.subject_alt_names.iter().enumerate() {
            let (own, other) = match name.kind {
                NameType::Hostname => ("hostname", &name.uri),
                NameType::Uri => ("uri", &name.hostname),
            };
            if name.name().is_empty() || other.as_ref().is_some_and(|text| !text.is_empty()) {
                let message = format!("a name of this type has a `{own}`, and nothing else");
                fault(d, name.span, format!("validation.subjectAltNames[{index}]"), message);
            }
        }
    }
}
