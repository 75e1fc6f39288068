//! `Gateway` (networking.istio.io): at which ports a gateway listens, for which hosts, and how it takes connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::names::{host_fault, is_label};
use super::{check_labels, is_protocol};
use crate::config::decode::{Decoder, Opaque, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, quoted};

message! {
    /// The specification.
    pub struct Gateway {
        /// The workloads, of any namespace, that are this gateway; none are all gateways.
        selector: BTreeMap<String, String> = "selector",
        /// Where they listen.
        servers: Vec<Server> = "servers",
    }
    /// A port, with hosts that are served there.
    pub struct Server {
        /// The port.
        port: Port = "port" required,
        /// The address to listen at; empty is all of them.
        bind: Text = "bind",
        /// `HOST` or `NAMESPACE/HOST`: which hosts, of VirtualServices of which namespaces.
        hosts: Vec<Text> = "hosts",
        /// How connections are taken.
        tls: Option<ServerTls> = "tls",
        /// Istio does not read it either.
        default_endpoint: Opaque = "defaultEndpoint",
        /// What it is called in statistics.
        name: String = "name",
    }
    /// A port.
    pub struct Port {
        /// The number; where a Service selects the gateway, its port, whose target port is listened at.
        number: PortNumber = "number" required,
        /// What is spoken.
        protocol: Text = "protocol" required,
        /// The name.
        name: Text = "name" required,
        /// Istio does not read it either.
        target_port: Opaque = "targetPort",
    }
    /// How connections are taken.
    pub struct ServerTls {
        /// Requests in plaintext are sent to `https`.
        https_redirect: bool = "httpsRedirect",
        /// What becomes of TLS.
        mode: TlsMode = "mode",
        /// A file of the gateway.
        server_certificate: String = "serverCertificate",
        /// A file of the gateway.
        private_key: String = "privateKey",
        /// A file of the gateway: whose clients are let in.
        ca_certificates: String = "caCertificates",
        /// A file of the gateway: certificates of clients that are revoked.
        ca_crl: String = "caCrl",
        /// The Secret with the certificate and its key, in the namespace of the gateway.
        credential_name: Text = "credentialName",
        /// Several, of different kinds of keys.
        credential_names: Vec<Text> = "credentialNames",
        /// Files of the gateway, of different kinds of keys.
        tls_certificates: Vec<TlsCertificate> = "tlsCertificates",
        /// The Secret that says whose clients are let in, where it is another one.
        ca_cert_credential_name: Text = "caCertCredentialName",
        /// Names of clients that are let in; none are all that are vouched for.
        subject_alt_names: Vec<String> = "subjectAltNames",
        /// Keys of clients that are let in.
        verify_certificate_spki: Vec<String> = "verifyCertificateSpki",
        /// Certificates of clients that are let in.
        verify_certificate_hash: Vec<String> = "verifyCertificateHash",
        /// The oldest version of TLS.
        min_protocol_version: TlsVersion = "minProtocolVersion",
        /// The newest version of TLS.
        max_protocol_version: TlsVersion = "maxProtocolVersion",
        /// Ciphers, up to TLS 1.2.
        cipher_suites: Vec<Text> = "cipherSuites",
        /// Clients are let in whoever they are.
        insecure_skip_verify: bool = "insecureSkipVerify",
    }
    /// A certificate in files of the gateway.
    pub struct TlsCertificate {
        /// The chain.
        server_certificate: String = "serverCertificate",
        /// The key.
        private_key: String = "privateKey",
        /// Whose clients are let in; it stands for all of them in another place.
        ca_certificates: Opaque = "caCertificates",
    }
}

keywords! {
    /// What becomes of TLS.
    pub enum TlsMode {
        /// It goes on as it is, by the name that is asked for.
        Passthrough = "PASSTHROUGH",
        /// It ends here.
        Simple = "SIMPLE",
        /// It ends here, and clients show a certificate.
        Mutual = "MUTUAL",
        /// It goes on as it is, to the service that its name says.
        AutoPassthrough = "AUTO_PASSTHROUGH",
        /// Mutual TLS of the mesh.
        IstioMutual = "ISTIO_MUTUAL",
        /// It ends here, and clients may show a certificate.
        OptionalMutual = "OPTIONAL_MUTUAL",
    }
    /// A version of TLS.
    pub enum TlsVersion {
        /// What the gateway does.
        Auto = "TLS_AUTO",
        /// 1.0.
        V1_0 = "TLSV1_0",
        /// 1.1.
        V1_1 = "TLSV1_1",
        /// 1.2.
        V1_2 = "TLSV1_2",
        /// 1.3.
        V1_3 = "TLSV1_3",
    }
}

/// The ciphers that Istio lets be named (pkg/config/security): Envoy knows them.
pub const CIPHER_SUITES: [&str; 14] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
];

impl TlsMode {
    /// Whether TLS ends at the gateway.
    pub fn terminates(self) -> bool {
        !matches!(self, TlsMode::Passthrough | TlsMode::AutoPassthrough)
    }

    /// Whether clients may have to say who they are.
    pub fn asks_clients(self) -> bool {
        matches!(self, TlsMode::Mutual | TlsMode::OptionalMutual)
    }
}

impl Port {
    /// Whether what is spoken is this, however it is capitalised.
    pub fn speaks(&self, any_of: &[&str]) -> bool {
        any_of.iter().any(|name| name.eq_ignore_ascii_case(&self.protocol))
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.speaks(&["HTTPS", "TLS"])
    }

    /// Whether HTTP is spoken in plaintext.
    pub fn is_http(&self) -> bool {
        self.speaks(&["HTTP", "HTTP2", "GRPC", "GRPC-WEB"])
    }
}

impl ServerTls {
    /// The Secrets with certificates of the server.
    pub fn credentials(&self) -> impl Iterator<Item = &Text> {
        std::iter::once(&self.credential_name).chain(&self.credential_names).filter(|name| !name.is_empty())
    }

    /// The Secret that says whose clients are let in, if one does: that of its own, or else the first with a certificate.
    pub fn authorities(&self) -> Option<&Text> {
        std::iter::once(&self.ca_cert_credential_name).chain(self.credentials()).find(|name| !name.is_empty())
    }

    /// Files with certificates of the server, each with its key.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = std::iter::once((self.server_certificate.as_str(), self.private_key.as_str()));
        let more = self.tls_certificates.iter().map(|one| (one.server_certificate.as_str(), one.private_key.as_str()));
        own.chain(more).filter(|(certificate, _)| !certificate.is_empty())
    }
}

/// Whether the namespace of `NAMESPACE/HOST` in a Gateway of the namespace `gateway` lets in objects of the namespace `of`.
pub fn lets_in(written: &str, gateway: &str, of: &str) -> bool {
    match written {
        "*" => true,
        "." => of == gateway,
        namespace => of == namespace,
    }
}

/// Splits `NAMESPACE/HOST`; a host alone is that of VirtualServices of any namespace.
pub fn split_host(host: &str) -> (&str, &str) {
    host.split_once('/').unwrap_or(("*", host))
}

impl Gateway {
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        check_labels(&self.selector, self.span, "selector", d);
        if self.servers.is_empty() {
            let message = "at least one of `servers` is needed";
            d.report_at(self.span, "servers", Severity::Error, Code::MissingField, message);
        }
        let mut names = BTreeSet::new();
        for (index, server) in self.servers.iter().enumerate() {
            server.check(&format!("servers[{index}]"), d);
            if !names.insert(server.port.name.as_str()) {
                let message = format!("{} is also the name of another port", quoted(&server.port.name));
                let field = format!("servers[{index}].port.name");
                d.report_at(server.port.name.span, field, Severity::Error, Code::InvalidValue, message);
            }
        }
    }
}

impl Server {
    /// Whether requests are looked at, and not connections alone.
    pub fn takes_requests(&self) -> bool {
        let terminates = self.tls.as_ref().is_some_and(|tls| tls.mode.terminates());
        self.port.is_http() || (self.port.speaks(&["HTTPS"]) && terminates)
    }

    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        let mut error = |span, field: String, message: String| {
            d.report_at(span, format!("{path}.{field}"), Severity::Error, Code::InvalidValue, message);
        };
        if !is_protocol(&self.port.protocol) {
            let message = format!("{} is no protocol", quoted(&self.port.protocol));
            error(self.port.protocol.span, "port.protocol".into(), message);
        }
        if self.port.name.is_empty() {
            error(self.port.name.span, "port.name".into(), "a port has a name".into());
        }
        if !self.bind.is_empty() && self.bind.parse::<IpAddr>().is_err() {
            error(self.bind.span, "bind".into(), format!("{} is no address", quoted(&self.bind)));
        }
        if self.hosts.is_empty() {
            error(self.span, "hosts".into(), "at least one host is needed, such as `*`".into());
        }
        for (index, host) in self.hosts.iter().enumerate() {
            if let Some(message) = server_host_fault(host) {
                error(host.span, format!("hosts[{index}]"), message);
            }
        }
        let Some(tls) = &self.tls else {
            if self.port.is_tls() {
                error(self.span, "tls".into(), format!("{} needs to say how TLS is taken", self.port.protocol.value));
            }
            return;
        };
        // Of plaintext it says at most that it is redirected (Istio: validateServer).
        let is_bare =
            tls.mode == TlsMode::Passthrough && tls.files().next().is_none() && tls.credentials().next().is_none();
        if !(self.port.is_tls() || self.port.is_http() && is_bare) {
            let what = "only HTTPS and TLS have it, and HTTP `httpsRedirect` alone";
            error(tls.span, "tls".into(), what.into());
        }
        if self.port.is_tls() && tls.https_redirect {
            error(
                tls.span,
                "tls.httpsRedirect".into(),
                "it is for plaintext: what is TLS is not redirected to it".into(),
            );
        }
        if self.port.is_tls() {
            self.check_tls(tls, path, d);
        }
    }

    fn check_tls(&self, tls: &ServerTls, path: &str, d: &mut Decoder<'_>) {
        let mut say = |severity, span, field: &str, message: String| {
            d.report_at(span, format!("{path}.tls.{field}"), severity, Code::InvalidValue, message);
        };
        let has_secret = tls.credentials().next().is_some();
        let has_files = tls.files().next().is_some();
        if !tls.mode.terminates() && (has_secret || has_files) {
            let message =
                "TLS is passed on as it is (PASSTHROUGH, also where no mode is written), and no certificate is shown";
            say(Severity::Warning, tls.span, "mode", message.into());
        }
        if tls.mode == TlsMode::IstioMutual && (has_secret || has_files) {
            say(
                Severity::Error,
                tls.span,
                "mode",
                "ISTIO_MUTUAL shows the certificate of the mesh, and no other".into(),
            );
        }
        if tls.mode == TlsMode::IstioMutual {
            // TLS of the mesh is what it is: what asks for less or more of it is told to nobody.
            use Severity::{Error, Warning};
            let others = [
                (Error, "subjectAltNames", !tls.subject_alt_names.is_empty()),
                (Error, "verifyCertificateSpki", !tls.verify_certificate_spki.is_empty()),
                (Error, "verifyCertificateHash", !tls.verify_certificate_hash.is_empty()),
                (Error, "caCrl", !tls.ca_crl.is_empty()),
                (Warning, "cipherSuites", !tls.cipher_suites.is_empty()),
                (Warning, "minProtocolVersion", tls.min_protocol_version != TlsVersion::Auto),
                (Warning, "maxProtocolVersion", tls.max_protocol_version != TlsVersion::Auto),
            ];
            for (severity, field, _) in others.into_iter().filter(|(.., is_there)| *is_there) {
                say(
                    severity,
                    tls.span,
                    field,
                    "without effect: ISTIO_MUTUAL is TLS 1.3 of the mesh; MUTUAL has it".into(),
                );
            }
        }
        if tls.mode.terminates() && tls.mode != TlsMode::IstioMutual {
            if !has_secret && !has_files {
                let message = "`credentialName` is needed, or `serverCertificate` and `privateKey`";
                say(Severity::Error, tls.span, "mode", message.into());
            }
            if tls.files().any(|(_, key)| key.is_empty()) {
                say(Severity::Error, tls.span, "privateKey", "a certificate has a private key".into());
            }
            if tls.mode.asks_clients()
                && !has_secret
                && tls.ca_certificates.is_empty()
                && tls.ca_cert_credential_name.is_empty()
            {
                let message = "`caCertificates` are needed: nobody says whose clients are let in";
                say(Severity::Error, tls.span, "caCertificates", message.into());
            }
        }
        if tls.max_protocol_version != TlsVersion::Auto && tls.min_protocol_version > tls.max_protocol_version {
            say(Severity::Error, tls.span, "minProtocolVersion", "it is newer than `maxProtocolVersion`".into());
        }
        for (index, suite) in tls.cipher_suites.iter().enumerate() {
            if !CIPHER_SUITES.contains(&suite.as_str()) {
                let message = format!("{} is none of {}", quoted(suite), CIPHER_SUITES.join(", "));
                say(Severity::Error, suite.span, &format!("cipherSuites[{index}]"), message);
            }
        }
    }
}

/// What is wrong with a host of a server.
fn server_host_fault(written: &str) -> Option<String> {
    let (namespace, host) = split_host(written);
    let is_name = is_label(namespace) && !namespace.bytes().any(|byte| byte.is_ascii_uppercase());
    let is_namespace = matches!(namespace, "*" | ".") || is_name;
    if !is_namespace {
        return Some(format!("{} is not the name of a namespace", quoted(namespace)));
    }
    host_fault(host)
}
