//! The rows J1 to J12 of the hazards of tokens, and what is required of them.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;

use super::*;
use crate::model::{ClaimHeader, JwkSet, JwtRule, RouteMatch};
use crate::testing::TokenIssuer;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn provider(jwks: &str) -> JwtProvider {
    JwtProvider::new("https://issuer", JwkSet::parse(jwks.as_bytes()).expect("a set"))
}

/// As Istio asks for it: a token of any of these, or none.
fn authenticator<const N: usize>(providers: [JwtProvider; N]) -> Authenticator {
    let named = providers.into_iter().enumerate().map(|(index, it)| (Arc::from(format!("origins-{index}")), it));
    let mut config = JwtAuthentication { providers: named.collect(), ..JwtAuthentication::default() };
    let any = config.providers.keys().cloned().map(JwtRequirement::Provider);
    let requires = JwtRequirement::Any(any.chain([JwtRequirement::AllowMissing]).collect());
    config.rules = vec![JwtRule { matches: RouteMatch::any(), requires: Some(requires) }];
    config.bypass_cors_preflight = true;
    Authenticator::new(&config).expect("a filter")
}

fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let request = Request::get(format!("http://shop{uri}"));
    headers.iter().fold(request, |it, (name, value)| it.header(*name, *value)).body(()).unwrap().into_parts().0
}

fn ask(authenticator: &Authenticator, parts: &Parts) -> Result<Option<String>, Refusal> {
    let asked = authenticator.authenticate(&RequestHead::of(parts).unwrap(), now())?;
    Ok(asked.claims().and_then(Claims::principal).map(str::to_owned))
}

/// What becomes of a request with this token.
fn bearer(authenticator: &Authenticator, token: &str) -> Result<Option<String>, Refusal> {
    ask(authenticator, &parts("/", &[("authorization", &format!("Bearer {token}"))]))
}

fn kind(refusal: Refusal) -> (u16, String) {
    let error = MeshError::from(refusal);
    (error.kind().http_status().as_u16(), error.detail().to_owned())
}

const GOOD: &str = r#"{"iss":"https://issuer","sub":"me","aud":["shop","bar"]}"#;

#[test]
fn a_good_token_tells_who_calls_and_none_is_accepted() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    assert_eq!(bearer(&authenticator, &issuer.token(GOOD)), Ok(Some("https://issuer/me".to_owned())));
    assert_eq!(ask(&authenticator, &parts("/", &[])), Ok(None));
    assert_eq!(ask(&authenticator, &parts("/", &[("authorization", "Basic YTpi")])), Ok(None));
    let other = issuer.token(r#"{"iss":"https://other","sub":"me"}"#);
    assert_eq!(bearer(&authenticator, &other), Err(Refusal::UnknownIssuer));
    assert_eq!(kind(Refusal::UnknownIssuer), (401, "Jwt issuer is not configured".to_owned()));
    assert_eq!(bearer(&authenticator, &TokenIssuer::new("a").token(GOOD)), Err(Refusal::BadSignature));
}

#[test]
fn every_algorithm_is_checked_with_keys_of_its_own_type_alone() {
    let random = SystemRandom::new();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    // PKCS #1: a sequence of the modulus, of 257 bytes with the zero before it, and the exponent.
    let der = rsa.public_key().as_ref();
    let ed = Ed25519KeyPair::generate().unwrap();
    let rsa_key = format!(r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#, encode(&der[9..265]), encode(&der[267..270]));
    let ed_key = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, encode(ed.public_key().as_ref()));
    let signed =
        |alg: &str| format!("{}.{}", encode(format!(r#"{{"alg":"{alg}"}}"#).as_bytes()), encode(GOOD.as_bytes()));
    let by_rsa = |alg: &str, padding: &'static dyn signature::RsaEncoding| {
        let (message, mut bytes) = (signed(alg), vec![0; rsa.public_modulus_len()]);
        rsa.sign(padding, &random, message.as_bytes(), &mut bytes).unwrap();
        format!("{message}.{}", encode(&bytes))
    };
    let of_both = authenticator([provider(&format!("{{\"keys\":[{ed_key},{rsa_key}]}}"))]);
    let bound = rsa_key.replace("\"kty\"", "\"alg\":\"RS256\",\"kty\"");
    let of_bound = authenticator([provider(&format!("{{\"keys\":[{bound}]}}"))]);
    let edwards = format!("{}.{}", signed("EdDSA"), encode(ed.sign(signed("EdDSA").as_bytes()).as_ref()));
    for (token, is_bound) in [
        (by_rsa("RS256", &signature::RSA_PKCS1_SHA256), true),
        (by_rsa("RS384", &signature::RSA_PKCS1_SHA384), false),
        (by_rsa("RS512", &signature::RSA_PKCS1_SHA512), false),
        (by_rsa("PS256", &signature::RSA_PSS_SHA256), false),
        (by_rsa("PS384", &signature::RSA_PSS_SHA384), false),
        (by_rsa("PS512", &signature::RSA_PSS_SHA512), false),
        (edwards, false),
    ] {
        assert!(bearer(&of_both, &token).is_ok(), "{token}");
        let of_bound = bearer(&of_bound, &token);
        assert_eq!(of_bound.is_ok(), is_bound, "{token}");
        assert!(is_bound || of_bound == Err(Refusal::NoKey));
    }
    // The padding is that of the algorithm that the header names.
    assert_eq!(bearer(&of_both, &by_rsa("PS256", &signature::RSA_PKCS1_SHA256)), Err(Refusal::BadSignature));
}

#[test]
fn j1_none_symmetric_and_foreign_algorithms_are_refused_before_the_signature() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    let not_supported = Err(Refusal::Malformed("Jwt header [alg] is not supported"));
    for alg in ["none", "None", "HS256", "HS384", "HS512", "RS1", "ES512", "ES256K", "es256", ""] {
        let token = issuer.sign(&format!(r#"{{"alg":"{alg}","kid":"a"}}"#), GOOD);
        assert_eq!(bearer(&authenticator, &token), not_supported, "{alg}");
        let unsigned = token.rsplit_once('.').unwrap().0;
        assert_eq!(bearer(&authenticator, &format!("{unsigned}.")), not_supported, "{alg}");
    }
    assert_eq!(bearer(&authenticator, &issuer.sign(r#"{"alg":"ES384"}"#, GOOD)), Err(Refusal::NoKey));
    assert_eq!(bearer(&authenticator, &issuer.sign(r#"{"alg":"RS256"}"#, GOOD)), Err(Refusal::NoKey));
    for header in [r#"{}"#, r#"{"alg":7}"#, r#"{"alg":null}"#] {
        assert!(matches!(bearer(&authenticator, &issuer.sign(header, GOOD)), Err(Refusal::Malformed(_))), "{header}");
    }
}

#[test]
fn j2_a_key_is_chosen_by_issuer_kid_and_algorithm_and_by_nothing_in_the_token() {
    let (ours, theirs) = (TokenIssuer::new("ours"), TokenIssuer::new("theirs"));
    let mut other = provider(&theirs.jwks());
    other.issuer = "https://other".to_owned();
    let authenticator = authenticator([provider(&ours.jwks()), other]);
    // The other issuer's key, under its own name and under ours, for a token that says that it is ours.
    assert_eq!(bearer(&authenticator, &theirs.token(GOOD)), Err(Refusal::NoKey));
    assert_eq!(
        bearer(&authenticator, &theirs.sign(r#"{"alg":"ES256","kid":"ours"}"#, GOOD)),
        Err(Refusal::BadSignature)
    );
    let jwk = theirs.jwk();
    for header in [
        format!(r#"{{"alg":"ES256","jwk":{jwk}}}"#),
        r#"{"alg":"ES256","jku":"https://evil/jwks"}"#.to_owned(),
        r#"{"alg":"ES256","x5u":"https://evil/pem"}"#.to_owned(),
    ] {
        assert_eq!(bearer(&authenticator, &theirs.sign(&header, GOOD)), Err(Refusal::BadSignature), "{header}");
    }
    for header in
        [r#"{"alg":"ES256","crit":["exp"]}"#, r#"{"alg":"ES256","crit":[]}"#, r#"{"alg":"ES256","b64":false}"#]
    {
        assert!(matches!(bearer(&authenticator, &ours.sign(header, GOOD)), Err(Refusal::Malformed(_))), "{header}");
    }
    for kid in ["../../key".to_owned(), "k".repeat(40 << 10), String::new()] {
        let token = ours.sign(&format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), GOOD);
        assert_eq!(bearer(&authenticator, &token), Err(Refusal::NoKey));
    }
    let token = ours.sign(r#"{"alg":"ES256","kid":7}"#, GOOD);
    assert_eq!(bearer(&authenticator, &token), Err(Refusal::Malformed("Jwt header [kid] field is not a string")));
}

#[test]
fn j2_without_a_kid_ten_keys_are_tried() {
    let issuers: Vec<TokenIssuer> = (0..11).map(|index| TokenIssuer::new(&index.to_string())).collect();
    let keys: Vec<String> = issuers.iter().map(TokenIssuer::jwk).collect();
    let authenticator = authenticator([provider(&format!("{{\"keys\":[{}]}}", keys.join(",")))]);
    let without = |issuer: &TokenIssuer| bearer(&authenticator, &issuer.sign(r#"{"alg":"ES256"}"#, GOOD));
    assert!(without(&issuers[9]).is_ok());
    assert_eq!(without(&issuers[10]), Err(Refusal::BadSignature));
    assert!(bearer(&authenticator, &issuers[10].token(GOOD)).is_ok());
}

#[test]
fn j3_a_token_has_its_time_and_its_audience() {
    let issuer = TokenIssuer::new("a");
    let mut wants = provider(&issuer.jwks());
    wants.audiences = vec!["foo".to_owned(), "bar".to_owned()];
    let authenticator = authenticator([wants]);
    let with = |claims: &str| {
        let claims = format!(r#"{{"iss":"https://issuer","sub":"me",{claims}}}"#);
        bearer(&authenticator, &issuer.token(&claims)).err().map(kind)
    };
    let audience = Some((403, "Audiences in Jwt are not allowed".to_owned()));
    assert_eq!(with(r#""aud":"bar""#), None);
    assert_eq!(with(r#""aud":["x","foo"]"#), None);
    assert_eq!(with(r#""aud":["x"]"#), audience);
    assert_eq!(with(r#""aud":[]"#), audience);
    assert_eq!(with(r#""jti":"1""#), audience);
    let expired = Some((401, "Jwt is expired".to_owned()));
    let early = Some((401, "Jwt not yet valid".to_owned()));
    let at = |name: &str, time: u64| with(&format!(r#""aud":"bar","{name}":{time}"#));
    assert_eq!([at("exp", NOW - 60), at("exp", NOW - 61), at("exp", 0)], [None, expired.clone(), expired]);
    assert_eq!([at("nbf", NOW + 60), at("nbf", NOW + 61)], [None, early]);
    assert_eq!([at("exp", u64::MAX), at("nbf", 0)], [None, None]);
}

#[test]
fn a_token_whose_subject_is_a_workload_is_held_to_the_standard_of_jwt_svids() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    let refused = |claims: &str| {
        let claims = format!(r#"{{"iss":"https://issuer",{claims}}}"#);
        bearer(&authenticator, &issuer.token(&claims)).err().map(kind)
    };
    let wrong = |field: &str, what: &str| Some((401, format!("Jwt payload [{field}] field {what}")));
    let (web, end) = (r#""sub":"spiffe://td/ns/shop/sa/web""#, format!(r#""exp":{}"#, NOW + 60));
    assert_eq!(refused(&format!(r#"{web},"aud":"bar",{end}"#)), None);
    assert_eq!(refused(&format!(r#"{web},"aud":["bar"],{end}"#)), None);
    // Of whom nobody says that it is a workload, no more is asked than Istio asks.
    assert_eq!(refused(r#""sub":"me""#), None);
    let no_end = wrong("exp", "is required of a JWT-SVID");
    assert_eq!(refused(&format!(r#"{web},"aud":"bar""#)), no_end);
    let nobody = wrong("aud", "is required of a JWT-SVID");
    for audience in ["", r#","aud":[]"#, r#","aud":"""#, r#","aud":[""]"#] {
        assert_eq!(refused(&format!("{web}{audience},{end}")), nobody, "{audience}");
    }
    let no_id = wrong("sub", "of a JWT-SVID is not a SPIFFE ID");
    for subject in ["spiffe://", "spiffe://td", "spiffe://td/../web", "spiffe://TD/web", "spiffe://td/web?a"] {
        assert_eq!(refused(&format!(r#""sub":"{subject}","aud":"bar",{end}"#)), no_id, "{subject}");
    }
    let claims = format!(r#"{{"iss":"https://issuer",{web},"aud":"bar",{end}}}"#);
    for (typ, is_good) in [("JWT", true), ("jwt", true), ("JOSE", true), ("at+jwt", false), ("JWS", false)] {
        let header = format!(r#"{{"alg":"ES256","kid":"a","typ":"{typ}"}}"#);
        assert_eq!(bearer(&authenticator, &issuer.sign(&header, &claims)).is_ok(), is_good, "{typ}");
    }
}

#[test]
fn j4_a_malformed_claim_is_never_taken_for_an_absent_one() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    for claims in [
        r#""exp":"9999999999""#,
        r#""exp":9999999999.0"#,
        r#""exp":9999999999.5"#,
        r#""exp":1e400"#,
        r#""exp":1e10"#,
        r#""exp":-1"#,
        r#""exp":-0.0"#,
        r#""exp":18446744073709551616"#,
        r#""exp":null"#,
        r#""exp":true"#,
        r#""exp":[9999999999]"#,
        r#""nbf":"0""#,
        r#""nbf":0.5"#,
        r#""nbf":-1"#,
        r#""nbf":null"#,
        r#""iat":"now""#,
        r#""iat":-1"#,
        r#""aud":7"#,
        r#""aud":[7]"#,
        r#""aud":null"#,
    ] {
        let token = issuer.token(&format!(r#"{{"iss":"https://issuer","sub":"me",{claims}}}"#));
        let refused = bearer(&authenticator, &token);
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{claims}: {refused:?}");
    }
    for claims in [r#"{"iss":7}"#, r#"{"iss":"https://issuer","sub":7}"#, "[]", "7", "", "{", "\"x\""] {
        let refused = bearer(&authenticator, &issuer.token(claims));
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{claims}: {refused:?}");
    }
}

#[test]
fn j5_a_token_of_one_issuer_is_not_verified_with_the_key_of_another() {
    let (ours, theirs) = (TokenIssuer::new("k"), TokenIssuer::new("k"));
    let mut other = provider(&theirs.jwks());
    other.issuer = "https://other".to_owned();
    let authenticator = authenticator([provider(&ours.jwks()), other]);
    let of_other = r#"{"iss":"https://other","sub":"me"}"#;
    assert!(bearer(&authenticator, &theirs.token(of_other)).is_ok());
    assert_eq!(bearer(&authenticator, &ours.token(of_other)), Err(Refusal::BadSignature));
}

#[test]
fn j12_long_encrypted_and_repeated_tokens_are_refused() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    let good = issuer.token(GOOD);
    let long = issuer.token(&format!(r#"{{"iss":"https://issuer","sub":"{}"}}"#, "a".repeat(64 << 10)));
    for token in [
        &long,
        &format!("{good}.a.b"),
        &format!("{good}."),
        &format!("{good}="),
        &format!(" {good} {good}"),
        &format!("Bearer {good}"),
        "a",
        "..",
        "",
        ".....",
    ] {
        let refused = bearer(&authenticator, token);
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{refused:?}");
    }
    let bearer = format!("Bearer {good}");
    let twice = Err(Refusal::Malformed("Jwt is given more than once"));
    for (uri, headers) in [
        ("/", vec![("authorization", &*bearer), ("authorization", &*bearer)]),
        ("/", vec![("authorization", "Basic YTpi"), ("authorization", &*bearer)]),
        (&format!("/?access_token={good}"), vec![("authorization", &*bearer)]),
        (&format!("/?access_token={good}&access_token={good}"), vec![]),
    ] {
        assert_eq!(ask(&authenticator, &parts(uri, &headers)), twice, "{uri} {headers:?}");
    }
    assert!(ask(&authenticator, &parts("/", &[("authorization", &format!("bearer {good}"))])).unwrap().is_some());
}

#[test]
fn a_token_is_verified_once_until_it_expires_and_few_are_kept() {
    let issuer = TokenIssuer::new("a");
    let authenticator = authenticator([provider(&issuer.jwks())]);
    let cache = &authenticator.providers["origins-0"].verified;
    let token = issuer.token(&format!(r#"{{"iss":"https://issuer","sub":"me","exp":{NOW}}}"#));
    assert!(bearer(&authenticator, &token).is_ok());
    assert!(cache.get(&token).is_some());
    let request = parts("/", &[("authorization", &format!("Bearer {token}"))]);
    let late = now() + Duration::from_secs(61);
    let refused = authenticator.authenticate(&RequestHead::of(&request).unwrap(), late).map(|_| ());
    assert_eq!(refused, Err(Refusal::Expired));
    assert!(cache.get(&token).is_none());
    for index in 0..2_000 {
        assert!(
            bearer(&authenticator, &issuer.token(&format!(r#"{{"iss":"https://issuer","sub":"{index}"}}"#))).is_ok()
        );
    }
    assert!(cache.len() <= 1_024);
    // What is no good is not kept.
    let kept = cache.len();
    assert!(bearer(&authenticator, &format!("{token}A")).is_err());
    assert_eq!(cache.len(), kept);
}

#[test]
fn tokens_are_taken_away_and_headers_that_the_filter_sets_are_its_own() {
    let issuer = TokenIssuer::new("a");
    let mut config = provider(&issuer.jwks());
    config.locations = vec![
        TokenLocation::Header(HeaderName::from_static("x-token"), "JWT ".to_owned()),
        TokenLocation::Parameter("token".to_owned()),
        TokenLocation::Cookie("token".to_owned()),
    ];
    config.payload_header = Some(HeaderName::from_static("x-payload"));
    let claim = |header, path: &[&str]| ClaimHeader {
        header: HeaderName::from_static(header),
        path: path.iter().map(|name| (*name).to_owned()).collect(),
    };
    config.claim_headers = vec![
        claim("x-sub", &["sub"]),
        claim("x-level", &["a", "b"]),
        claim("x-list", &["list"]),
        claim("x-none", &["none"]),
        claim("x-bad", &["bad"]),
    ];
    let mut forwards = config.clone();
    forwards.forward = true;
    let token = issuer.token(r#"{"iss":"https://issuer","sub":"me","a":{"b":7},"list":[1],"bad":"a\nb"}"#);
    let spoofed = [("x-sub", "root"), ("x-none", "root"), ("x-payload", "root"), ("x-bad", "root")];
    let run = |config: &JwtProvider, uri: &str, headers: &[(&str, &str)]| {
        let authenticator = authenticator([config.clone()]);
        let mut parts = parts(uri, &[&spoofed, headers].concat());
        let head = RequestHead::of(&parts).unwrap();
        let known = authenticator.authenticate(&head, now()).unwrap();
        known.apply(&mut parts);
        parts
    };
    let cookies = format!("a=1; token={token}; tokens=2");
    let header = format!("JWT {token}");
    for (uri, headers) in [
        (format!("/x?a=1&token={token}&b=2"), vec![]),
        ("/x?a=1&b=2".to_owned(), vec![("x-token", &*header)]),
        ("/x?a=1&b=2".to_owned(), vec![("cookie", &*cookies)]),
    ] {
        let seen = run(&config, &uri, &headers);
        assert_eq!(seen.uri.to_string(), "http://shop/x?a=1&b=2");
        assert!(!format!("{seen:?}").contains(&token), "{seen:?}");
        assert_eq!(seen.headers["x-sub"], "me");
        assert_eq!(seen.headers["x-level"], "7");
        assert_eq!(seen.headers["x-list"], URL_SAFE_NO_PAD.encode("[1]"));
        assert_eq!(seen.headers["x-payload"], token.split('.').nth(1).unwrap());
        assert!(!seen.headers.contains_key("x-none") && !seen.headers.contains_key("x-bad"));
        assert_eq!(seen.extensions.get::<Claims>().and_then(Claims::subject), Some("me"));
        let seen = run(&forwards, &uri, &headers);
        assert_eq!(seen.uri.to_string(), format!("http://shop{uri}"));
        assert!(headers.iter().all(|(name, value)| seen.headers[*name] == value));
    }
    assert_eq!(run(&config, "/", &[("cookie", &cookies)]).headers["cookie"], "a=1; tokens=2");
    // Without a token, too.
    let seen = run(&config, "/", &[]);
    assert!(spoofed.iter().all(|(name, _)| !seen.headers.contains_key(*name)), "{seen:?}");
}

#[test]
fn requirements_are_met_as_envoy_has_it() {
    use JwtRequirement::{All, AllowMissing, AllowMissingOrFailed, Any, Provider};
    let (a, b) = (TokenIssuer::new("a"), TokenIssuer::new("b"));
    let of_b = JwtProvider { issuer: "https://b".to_owned(), ..provider(&b.jwks()) };
    let in_header = JwtProvider {
        locations: vec![TokenLocation::Header(HeaderName::from_static("x-b"), String::new())],
        ..of_b.clone()
    };
    let config = JwtAuthentication {
        providers: [("a", provider(&a.jwks())), ("b", of_b), ("c", in_header)]
            .map(|(name, provider)| (Arc::from(name), provider))
            .into(),
        ..JwtAuthentication::default()
    };
    let one = |name: &str| Provider(name.into());
    let (of_a, of_b) = (a.token(GOOD), b.token(r#"{"iss":"https://b","sub":"b"}"#));
    let (in_a, in_b, bad) = (format!("Bearer {of_a}"), format!("Bearer {of_b}"), "Bearer a.b.c".to_owned());
    let nothing: &[(&str, &str)] = &[];
    let [by_a, by_b, by_bad] = [&in_a, &in_b, &bad].map(|value| [("authorization", value.as_str())]);
    let both = [("authorization", in_a.as_str()), ("x-b", of_b.as_str())];
    let half = [("authorization", in_a.as_str()), ("x-b", "a.b.c")];
    for (requires, headers, passes) in [
        (one("a"), nothing, false),
        (one("a"), &by_a, true),
        (one("a"), &by_b, false),
        (Any(vec![one("a"), one("b")]), &by_b, true),
        (Any(vec![one("a"), one("b")]), nothing, false),
        (Any(vec![AllowMissing, one("a"), one("b")]), &by_b, true),
        (Any(vec![AllowMissing, one("a")]), &by_b, false),
        (Any(vec![AllowMissing, one("a")]), &by_bad, false),
        (Any(vec![AllowMissing]), &by_a, false),
        (AllowMissing, nothing, true),
        (AllowMissing, &by_b, true),
        (AllowMissing, &by_bad, false),
        (AllowMissingOrFailed, &by_bad, true),
        (All(vec![one("a"), one("c")]), &both, true),
        (All(vec![one("a"), one("c")]), &by_a, false),
        (All(vec![one("a"), AllowMissing]), &half, false),
        (All(vec![one("a"), Any(vec![one("c"), AllowMissing])]), &by_a, true),
        (All(vec![one("a"), Any(vec![one("c"), AllowMissing])]), &half, false),
    ] {
        let rule = JwtRule { matches: RouteMatch::any(), requires: Some(requires.clone()) };
        let authenticator = Authenticator::new(&JwtAuthentication { rules: vec![rule], ..config.clone() }).unwrap();
        let asked = ask(&authenticator, &parts("/", headers));
        assert_eq!(asked.is_ok(), passes, "{requires:?} {headers:?}: {asked:?}");
    }
    let unknown = JwtRule { matches: RouteMatch::any(), requires: Some(one("z")) };
    assert!(Authenticator::new(&JwtAuthentication { rules: vec![unknown], ..config }).is_err());
}

#[test]
fn a_preflight_carries_no_token_and_a_provider_without_keys_takes_none() {
    let issuer = TokenIssuer::new("a");
    let mut config = provider(&issuer.jwks());
    config.keys = Err("it is not fetched".into());
    let authenticator = authenticator([config]);
    let refused = bearer(&authenticator, &issuer.token(GOOD)).map_err(kind);
    assert_eq!(refused, Err((401, "Jwks remote fetch is failed".to_owned())));
    let mut preflight = parts("/", &[("authorization", "Bearer a"), ("origin", "http://a")]);
    preflight.method = Method::OPTIONS;
    assert!(ask(&authenticator, &preflight).is_err());
    preflight.headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"));
    assert_eq!(ask(&authenticator, &preflight), Ok(None));
}
