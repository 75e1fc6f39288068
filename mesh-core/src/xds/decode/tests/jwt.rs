//! JWT of servers: what is understood, and that nothing that is not is passed over.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{DataSource, HttpUri, data_source};
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Duration;
use pb::jwt_provider::JwksSourceSpecifier;
use pb::jwt_requirement::RequiresType;
use prost::Message;

use super::decode;
use crate::error::Invalid;
use crate::model::{FilterConfig, JwtAuthentication, JwtRequirement, Listener, TokenLocation};
use crate::resources::{Resource, ResourceType};
use crate::testing::TokenIssuer;
use crate::testing::resources::{
    api_listener_of, filter_chain, http_filter, http_manager, pack, route_to_application, routes, server_listener,
    virtual_host,
};
use crate::xds::decode::Options;

fn local(specifier: data_source::Specifier) -> Option<JwksSourceSpecifier> {
    Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier: Some(specifier), ..Default::default() }))
}

fn requirement(requires: RequiresType) -> pb::JwtRequirement {
    pb::JwtRequirement { requires_type: Some(requires) }
}

fn named() -> RequiresType {
    RequiresType::ProviderName("p".to_owned())
}

fn everything() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

fn provider() -> pb::JwtProvider {
    pb::JwtProvider {
        issuer: "me".to_owned(),
        jwks_source_specifier: local(data_source::Specifier::InlineString(TokenIssuer::new("a").jwks())),
        ..Default::default()
    }
}

fn filter(provider: pb::JwtProvider, requires: RequiresType) -> pb::JwtAuthentication {
    pb::JwtAuthentication {
        providers: HashMap::from([("p".to_owned(), provider)]),
        rules: vec![pb::RequirementRule {
            r#match: Some(everything()),
            requirement_type: Some(pb::requirement_rule::RequirementType::Requires(requirement(requires))),
        }],
        ..Default::default()
    }
}

fn manager(filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    let routes = routes("r", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
    let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes));
    manager.http_filters.splice(0..0, filters);
    manager
}

fn decoded_of(filters: Vec<hcm::HttpFilter>) -> Result<JwtAuthentication, Invalid> {
    let mut listener = server_listener("in", "127.0.0.1:80".parse().unwrap(), routes("r", vec![]));
    listener.filter_chains = vec![filter_chain(&manager(filters))];
    let decoded = decode(ResourceType::Listener, &listener.encode_to_vec(), &Options::default())?;
    let Resource::Listener(listener) = decoded.resource else { panic!("no listener") };
    let Listener::Server(server) = &*listener else { panic!("no server") };
    match &server.filter_chains[0].http.filters[0].config {
        FilterConfig::Jwt(config) => Ok((**config).clone()),
        other => panic!("{other:?}"),
    }
}

fn decoded(config: &pb::JwtAuthentication) -> Result<JwtAuthentication, Invalid> {
    decoded_of(vec![http_filter("jwt", pack(config))])
}

#[test]
fn what_istio_sends_is_understood() {
    let any = |requirements| RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements });
    let all = |requirements| RequiresType::RequiresAll(pb::JwtRequirementAndList { requirements });
    let missing = || requirement(RequiresType::AllowMissing(Default::default()));
    let mut value = provider();
    value.audiences = vec!["shop".to_owned()];
    value.from_headers = vec![pb::JwtHeader { name: "X-Token".to_owned(), value_prefix: "T ".to_owned() }];
    value.from_params = vec!["token".to_owned()];
    value.from_cookies = vec!["jwt".to_owned()];
    value.forward = true;
    value.forward_payload_header = "x-payload".to_owned();
    value.payload_in_metadata = "payload".to_owned();
    value.claim_to_headers = vec![pb::JwtClaimToHeader {
        header_name: "x-role".to_owned(),
        claim_name: "realm.role".to_owned(),
        ..Default::default()
    }];
    let requires = any(vec![
        requirement(named()),
        requirement(all(vec![requirement(any(vec![requirement(named()), missing()]))])),
    ]);
    let mut config = filter(value, requires);
    config.bypass_cors_preflight = true;
    let config = decoded(&config).unwrap();
    let read = &config.providers["p"];
    assert_eq!((read.issuer.as_str(), &read.audiences[..]), ("me", &["shop".to_owned()][..]));
    let locations = [
        TokenLocation::Header("x-token".parse().unwrap(), "T ".to_owned()),
        TokenLocation::Parameter("token".to_owned()),
        TokenLocation::Cookie("jwt".to_owned()),
    ];
    assert_eq!(read.locations, locations);
    assert!(read.forward && config.bypass_cors_preflight && read.keys.is_ok());
    assert_eq!(read.payload_header.as_ref().map(|name| name.as_str()), Some("x-payload"));
    assert_eq!(read.claim_headers[0].path, ["realm", "role"]);
    assert_eq!(read.clock_skew.as_secs(), 60);
    let p = || JwtRequirement::Provider("p".into());
    let each = JwtRequirement::All(vec![JwtRequirement::Any(vec![p(), JwtRequirement::AllowMissing])]);
    assert_eq!(config.rules[0].requires, Some(JwtRequirement::Any(vec![p(), each])));
}

#[test]
fn what_is_not_understood_refuses_the_listener() {
    let with = |change: fn(&mut pb::JwtProvider)| {
        let mut value = provider();
        change(&mut value);
        decoded(&filter(value, named())).map(|_| ())
    };
    assert_eq!(with(|_| {}), Ok(()));
    let cases: [fn(&mut pb::JwtProvider); 16] = [
        |it| it.subjects = Some(Default::default()),
        |it| it.max_lifetime = Some(Duration { seconds: 1, nanos: 0 }),
        |it| it.pad_forward_payload_header = true,
        |it| it.header_in_metadata = "a".to_owned(),
        |it| it.failed_status_in_metadata = "a".to_owned(),
        |it| it.jwks_source_specifier = None,
        |it| it.jwks_source_specifier = local(data_source::Specifier::Filename("/etc/keys".to_owned())),
        |it| it.jwks_source_specifier = local(data_source::Specifier::EnvironmentVariable("KEYS".to_owned())),
        |it| it.jwks_source_specifier = local(data_source::Specifier::InlineString("{}".to_owned())),
        |it| it.jwks_source_specifier = local(data_source::Specifier::InlineBytes(vec![0xff])),
        |it| it.from_headers = vec![pb::JwtHeader { name: "a b".to_owned(), ..Default::default() }],
        |it| it.from_params = vec![String::new()],
        |it| it.from_cookies = vec!["a=b".to_owned()],
        |it| it.forward_payload_header = ":path".to_owned(),
        |it| it.claim_to_headers = vec![pb::JwtClaimToHeader { header_name: "x".to_owned(), ..Default::default() }],
        |it| {
            let (header_name, claim_name) = ("host".to_owned(), "sub".to_owned());
            it.claim_to_headers = vec![pb::JwtClaimToHeader { header_name, claim_name, ..Default::default() }];
        },
    ];
    for (index, case) in cases.into_iter().enumerate() {
        assert!(with(case).is_err(), "{index}");
    }
    let good = filter(provider(), named());
    let whole: [fn(&mut pb::JwtAuthentication); 6] = [
        |it| it.filter_state_rules = Some(Default::default()),
        |it| drop(it.requirement_map.insert("a".to_owned(), requirement(named()))),
        |it| it.rules[0].r#match = None,
        |it| it.rules[0].r#match.as_mut().unwrap().runtime_fraction = Some(Default::default()),
        |it| {
            let name = pb::requirement_rule::RequirementType::RequirementName("a".to_owned());
            it.rules[0].requirement_type = Some(name);
        },
        |it| it.providers.clear(),
    ];
    for (index, case) in whole.into_iter().enumerate() {
        let mut config = good.clone();
        case(&mut config);
        assert!(decoded(&config).is_err(), "{index}");
    }
    for requires in [
        RequiresType::ProviderName(String::new()),
        RequiresType::ProviderName("other".to_owned()),
        RequiresType::ProviderAndAudiences(Default::default()),
        RequiresType::ExtractOnlyWithoutValidation(Default::default()),
        RequiresType::RequiresAny(Default::default()),
        RequiresType::RequiresAll(Default::default()),
    ] {
        assert!(decoded(&filter(provider(), requires.clone())).is_err(), "{requires:?}");
    }
    // A field of a later version (hazard A18), two filters, one that is turned off, and one on a client.
    let mut any = pack(&good);
    any.value.extend([0xf8, 0x07, 1]);
    assert!(decoded_of(vec![http_filter("jwt", any)]).is_err());
    let filter = |name| http_filter(name, pack(&good));
    assert!(decoded_of(vec![filter("a"), filter("b")]).unwrap_err().to_string().contains("a second JWT filter"));
    assert!(decoded_of(vec![hcm::HttpFilter { disabled: true, ..filter("a") }]).is_err());
    let client = api_listener_of("out", &manager(vec![filter("a")]));
    assert!(decode(ResourceType::Listener, &client.encode_to_vec(), &Options::default()).is_err());
}

#[test]
fn keys_that_would_have_to_be_fetched_are_none() {
    let mut value = provider();
    let http_uri = Some(HttpUri { uri: "https://me/keys".to_owned(), ..Default::default() });
    value.jwks_source_specifier =
        Some(JwksSourceSpecifier::RemoteJwks(pb::RemoteJwks { http_uri, ..Default::default() }));
    let config = decoded(&filter(value, named())).unwrap();
    let why = config.providers["p"].keys.as_ref().unwrap_err();
    assert_eq!(&**why, "the control plane has no keys from https://me/keys");
}
