//! What a gateway is told besides: chains by the names that clients ask for, and TLS by secrets.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::google::protobuf::BoolValue;

use super::*;
use crate::model::{Listener, Secret, ServerTls, TlsVersions};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{filter_chain, http_manager, pack, rds, same_stream, server_listener};

fn chain(names: &[&str]) -> pb::FilterChain {
    let server_names = names.iter().map(|&name| name.to_owned()).collect();
    let matches = pb::FilterChainMatch { server_names, ..Default::default() };
    pb::FilterChain { filter_chain_match: Some(matches), ..filter_chain(&http_manager(rds("r"))) }
}

fn listener(chains: Vec<pb::FilterChain>) -> pb::Listener {
    let listener = server_listener("edge", "0.0.0.0:443".parse().unwrap(), Default::default());
    pb::Listener { filter_chains: chains, default_filter_chain: None, ..listener }
}

fn named(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(same_stream()) }
}

fn of(context: tls::DownstreamTlsContext) -> ServerTls {
    let socket = core::transport_socket::ConfigType::TypedConfig(pack(&context));
    let socket = core::TransportSocket { name: "tls".to_owned(), config_type: Some(socket) };
    let chain = pb::FilterChain { transport_socket: Some(socket), ..chain(&["a"]) };
    let decoded = accept(ResourceType::Listener, &listener(vec![chain]));
    let Resource::Listener(listener) = decoded.resource else { panic!() };
    let Listener::Server(server) = &*listener else { panic!() };
    server.filter_chains[0].tls.clone()
}

#[test]
fn chains_are_told_apart_by_names_of_servers() {
    let decoded = accept(ResourceType::Listener, &listener(vec![chain(&["A.example", "*.b.example"]), chain(&[])]));
    let Resource::Listener(decoded) = decoded.resource else { panic!() };
    let Listener::Server(server) = &*decoded else { panic!() };
    let names: Vec<Vec<&str>> = server
        .filter_chains
        .iter()
        .map(|chain| chain.matches.server_names.iter().map(|name| &**name).collect())
        .collect();
    assert_eq!(names, [vec!["a.example", "*.b.example"], vec![]]);
    for (chains, why) in [
        (vec![chain(&["a", "b"]), chain(&["B"])], "overlaps with another filter chain"),
        (vec![chain(&["*"])], "is not the name of a server"),
        (vec![chain(&["a.*"])], "is not the name of a server"),
    ] {
        let refused = reject(ResourceType::Listener, &listener(chains)).to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn certificates_come_by_name_and_what_cannot_be_done_is_only_its_own_chains() {
    let certificates = || tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![named("kubernetes://ns/one"), named("kubernetes://ns/two")],
        ..Default::default()
    };
    let context = |common| tls::DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
    let ServerTls::Edge(simple) = of(context(certificates())) else { panic!() };
    let names: Vec<&str> = simple.certificates.iter().map(|name| &**name).collect();
    assert_eq!(names, ["kubernetes://ns/one", "kubernetes://ns/two"]);
    assert!(simple.clients.is_none() && !simple.requires_client && simple.versions == TlsVersions::Both);

    let by_secret = |name| Some(ValidationContextType::ValidationContextSdsSecretConfig(named(name)));
    let mutual = tls::CommonTlsContext {
        validation_context_type: by_secret("kubernetes://ns/one-cacert"),
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            ..Default::default()
        }),
        ..certificates()
    };
    let required = |common| tls::DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        ..context(common)
    };
    let ServerTls::Edge(mutual) = of(required(mutual)) else { panic!() };
    assert_eq!(mutual.clients.as_deref(), Some("kubernetes://ns/one-cacert"));
    assert!(mutual.requires_client && mutual.versions == TlsVersions::Tls13);

    // The workload's own certificate under Istio's names is the mesh's mutual TLS.
    let own = tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![named("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                validation_context_sds_secret_config: Some(named("ROOTCA")),
                default_validation_context: Some(Default::default()),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    assert_eq!(of(required(own.clone())), ServerTls::Mutual);

    let ciphers = tls::TlsParameters { cipher_suites: vec!["RC4".into()], ..Default::default() };
    for (context, why) in [
        (context(own), "shown to those alone who show one of the mesh"),
        (required(certificates()), "whose certificates clients have to show"),
        (context(tls::CommonTlsContext { tls_params: Some(ciphers), ..certificates() }), "cipher_suites"),
    ] {
        let ServerTls::Unusable(reason) = of(context) else { panic!("{why}") };
        assert!(reason.contains(why), "{reason}");
    }
}

#[test]
fn a_secret_is_taken_as_it_is_and_none_shows_its_key() {
    let inline = |text: &str| {
        let specifier = Some(core::data_source::Specifier::InlineBytes(text.as_bytes().to_vec()));
        Some(core::DataSource { specifier, ..Default::default() })
    };
    let secret = |r#type| {
        let decoded = accept(ResourceType::Secret, &tls::Secret { name: "s".to_owned(), r#type });
        let Resource::Secret(secret) = decoded.resource else { panic!() };
        secret
    };
    let pair = tls::TlsCertificate {
        certificate_chain: inline("a chain"),
        private_key: inline("a key"),
        ..Default::default()
    };
    let taken = secret(Some(tls::secret::Type::TlsCertificate(pair.clone())));
    assert_eq!(*taken, Secret::Certificate { chain: b"a chain".to_vec(), key: b"a key".to_vec() });
    assert!(!format!("{taken:?}").contains("key"), "{taken:?}");
    let roots = tls::CertificateValidationContext { trusted_ca: inline("roots"), ..Default::default() };
    let taken = secret(Some(tls::secret::Type::ValidationContext(roots)));
    assert_eq!(*taken, Secret::Authorities { roots: b"roots".to_vec(), revoked: None });
    // What cannot be honoured takes the place of what was there before.
    for unusable in [
        None,
        Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate { private_key: None, ..pair.clone() })),
        Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate { password: inline("p"), ..pair })),
    ] {
        assert!(matches!(&*secret(unusable), Secret::Unusable(_)));
    }
}
