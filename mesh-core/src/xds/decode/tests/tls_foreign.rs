//! TLS by files, as a control plane of another kind may send it.

use std::path::PathBuf;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::clusters::{tls, with};
use crate::model::{ClusterTls, ForeignTls, NameKind, Roots, Sni, StringTest, TlsVersions};
use crate::testing::resources::{pack, same_stream};

fn file(name: &str) -> core::DataSource {
    core::DataSource { specifier: Some(core::data_source::Specifier::Filename(name.to_owned())), ..Default::default() }
}

/// A context that is good, changed.
fn context(
    change: impl FnOnce(&mut pb::UpstreamTlsContext, &mut pb::CommonTlsContext, &mut pb::CertificateValidationContext),
) -> pb::UpstreamTlsContext {
    let mut upstream = pb::UpstreamTlsContext { sni: "a.example".to_owned(), ..Default::default() };
    let mut common = pb::CommonTlsContext::default();
    let mut validation = pb::CertificateValidationContext { trusted_ca: Some(file("ca.pem")), ..Default::default() };
    change(&mut upstream, &mut common, &mut validation);
    common.validation_context_type.get_or_insert(ValidationContextType::ValidationContext(validation));
    upstream.common_tls_context = Some(common);
    upstream
}

fn decoded(context: &pb::UpstreamTlsContext) -> Result<ForeignTls, String> {
    match with(|cluster| cluster.transport_socket = Some(tls("tls", pack(context)))).tls {
        ClusterTls::Foreign(tls) => Ok(ForeignTls::clone(&tls)),
        ClusterTls::Unusable(reason) => Err(reason.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_are_named_and_everything_that_is_set_counts() {
    let plain = decoded(&context(|_, _, _| {})).unwrap();
    assert_eq!(plain.sni, Sni::Fixed("a.example".into()));
    assert_eq!((&plain.material.roots, plain.proves_sni), (&Roots::File("ca.pem".into()), false));
    let full = decoded(&context(|upstream, common, validation| {
        (upstream.sni, upstream.auto_host_sni, upstream.auto_sni_san_validation) = (String::new(), true, true);
        common.tls_certificates = vec![pb::TlsCertificate {
            certificate_chain: Some(file("chain.pem")),
            private_key: Some(file("key.pem")),
            watched_directory: Some(core::WatchedDirectory { path: "/certs".to_owned(), ..Default::default() }),
            ..Default::default()
        }];
        common.tls_params =
            Some(pb::TlsParameters { tls_minimum_protocol_version: TlsProtocol::TlSv13.into(), ..Default::default() });
        validation.crl = Some(file("crl.pem"));
        validation.only_verify_leaf_cert_crl = true;
        (validation.trusted_ca, validation.system_root_certs) = (None, Some(Default::default()));
    }))
    .unwrap();
    assert_eq!((full.sni, full.proves_sni, full.versions), (Sni::OfEndpoint, true, TlsVersions::Tls13));
    assert_eq!((full.material.roots, full.only_leaf_may_be_revoked), (Roots::System, true));
    assert_eq!(full.material.identity, Some((PathBuf::from("chain.pem"), PathBuf::from("key.pem"))));
    assert_eq!(full.material.revoked, Some(PathBuf::from("crl.pem")));
    let named = decoded(&context(|_, _, validation| {
        let matcher = StringMatcher { match_pattern: Some(MatchPattern::Suffix(".b".into())), ignore_case: true };
        validation.match_typed_subject_alt_names = vec![pb::SubjectAltNameMatcher {
            san_type: pb::subject_alt_name_matcher::SanType::Dns.into(),
            matcher: Some(matcher),
            ..Default::default()
        }];
    }))
    .unwrap();
    let [name] = named.names.as_slice() else { panic!("{:?}", named.names) };
    assert_eq!((name.kind, &name.test), (NameKind::Dns, &StringTest::Suffix { value: ".b".into(), ignore_case: true }));
    let any = decoded(&context(|_, _, validation| validation.trust_chain_verification = 1)).unwrap();
    assert_eq!(any.material.roots, Roots::Nobody);
}

#[test]
fn secrets_of_the_same_stream_stand_in_for_files() {
    let named = |name: &str| pb::SdsSecretConfig { name: name.to_owned(), sds_config: Some(same_stream()) };
    let by = |shown: Vec<pb::SdsSecretConfig>, trusted: pb::SdsSecretConfig, own: pb::CertificateValidationContext| {
        decoded(&context(|_, common, _| {
            common.tls_certificate_sds_secret_configs = shown;
            common.validation_context_type = Some(ValidationContextType::CombinedValidationContext(
                pb::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(own),
                    validation_context_sds_secret_config: Some(trusted),
                    ..Default::default()
                },
            ));
        }))
    };
    let none = pb::CertificateValidationContext::default;
    let both = by(vec![named("own")], named("roots"), none()).unwrap();
    assert_eq!((both.material.secret.as_deref(), &both.material.roots), (Some("own"), &Roots::Secret("roots".into())));
    assert_eq!(both.material.secrets().map(|name| &**name).collect::<Vec<_>>(), ["own", "roots"]);
    let server = by(vec![], named("roots"), none()).unwrap();
    assert_eq!((server.material.secret, server.material.identity), (None, None));
    let system = pb::CertificateValidationContext { system_root_certs: Some(Default::default()), ..none() };
    for (shown, trusted, own, reason) in [
        (vec![named("a"), named("b")], named("roots"), none(), "more than one"),
        (vec![named("default")], named("roots"), none(), "the mesh's own"),
        (vec![], named("ROOTCA"), none(), "the mesh's own"),
        // Whoever else would tell it.
        (
            vec![pb::SdsSecretConfig { name: "a".to_owned(), ..Default::default() }],
            named("roots"),
            none(),
            "sds_config",
        ),
        (vec![], named("roots"), system, "beside a secret"),
    ] {
        let said = by(shown, trusted, own).expect_err(reason);
        assert!(said.contains(reason), "{reason}: {said}");
    }
}

#[test]
fn what_cannot_be_done_makes_the_cluster_unusable() {
    type Change = fn(&mut pb::UpstreamTlsContext, &mut pb::CommonTlsContext, &mut pb::CertificateValidationContext);
    let inline = |text: &str| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };
    let cases: [(&str, Change); 11] = [
        ("whom to trust", |_, _, it| it.trusted_ca = None),
        ("anybody", |_, _, it| (it.trusted_ca, it.system_root_certs) = (None, Some(Default::default()))),
        ("beside", |_, _, it| it.system_root_certs = Some(Default::default())),
        ("allow_expired_certificate", |_, _, it| it.allow_expired_certificate = true),
        ("verify_certificate_hash", |_, _, it| it.verify_certificate_hash = vec!["a".to_owned()]),
        ("tls_certificate_sds_secret_configs", |_, it, _| {
            it.tls_certificate_sds_secret_configs = vec![Default::default()];
        }),
        ("only files", |_, it, _| {
            let secret = ValidationContextType::ValidationContextSdsSecretConfig(Default::default());
            it.validation_context_type = Some(secret);
        }),
        ("private_key", |_, it, _| it.tls_certificates = vec![Default::default()]),
        ("more than one", |_, it, _| it.tls_certificates = vec![Default::default(), Default::default()]),
        ("no version", |_, it, _| {
            let maximum = TlsProtocol::TlSv11.into();
            it.tls_params = Some(pb::TlsParameters { tls_maximum_protocol_version: maximum, ..Default::default() });
        }),
        ("auto_host_sni", |it, _, _| it.auto_host_sni = true),
    ];
    for (reason, change) in cases {
        let said = decoded(&context(change)).expect_err(reason);
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let told = decoded(&context(|_, _, it| it.trusted_ca = Some(inline("a")))).unwrap();
    assert_eq!(told.material.roots, Roots::Text("a".into()));
    for nothing in [inline(""), core::DataSource::default()] {
        let said = decoded(&context(|_, _, it| it.trusted_ca = Some(nothing.clone()))).unwrap_err();
        assert!(said.contains("trusted_ca is supported by filename, or inline"), "{said}");
    }
    // A connection is for all requests of its cluster.
    let by_request = with(|cluster| {
        let options = http::HttpProtocolOptions {
            upstream_http_protocol_options: Some(core::UpstreamHttpProtocolOptions {
                auto_san_validation: true,
                ..Default::default()
            }),
            upstream_protocol_options: Some(http::http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
                http::http_protocol_options::ExplicitHttpConfig {
                    protocol_config: Some(
                        http::http_protocol_options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                            Default::default(),
                        ),
                    ),
                },
            )),
            ..Default::default()
        };
        cluster.typed_extension_protocol_options.insert("http".to_owned(), pack(&options));
        cluster.transport_socket = Some(tls("tls", pack(&context(|_, _, _| {}))));
    });
    assert!(
        matches!(&by_request.tls, ClusterTls::Unusable(reason) if reason.contains("auto_sni")),
        "{:?}",
        by_request.tls
    );
}
