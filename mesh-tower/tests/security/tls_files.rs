//! TLS by files with servers outside of the mesh (`SIMPLE` and `MUTUAL` of a DestinationRule): from YAML to the server.

use std::time::Duration;

use crate::tls_support::{
    ANY, Authority, Foreign, HOST, OLD, Pair, ask, ask_over_connector, control, mesh, origination, put, rule,
    service_entry, tls,
};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use rcgen::SanType;
use tempfile::TempDir;
use time::OffsetDateTime;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct Files(TempDir);

impl Files {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = Files(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| dir.put(name, text));
        dir
    }

    fn put(&self, name: &str, text: &str) {
        put(&self.0.path().join(name), text);
    }

    /// The path of a file, for YAML.
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn simple(&self) -> String {
        format!("mode: SIMPLE, caCertificates: {}", self.path("ca.pem"))
    }

    fn mutual(&self) -> String {
        let [ca, chain, key] = ["ca.pem", "client.pem", "client.key"].map(|name| self.path(name));
        format!("mode: MUTUAL, caCertificates: {ca}, clientCertificate: {chain}, privateKey: {key}")
    }
}

/// Asks once, as a new client, under a rule; and over a connector, which comes to the same.
async fn once(port: u16, written: &str) -> Result<String, String> {
    let control = control(&origination(port, written)).await;
    let told = |answer: Result<String, MeshError>| {
        answer.map_err(|error| {
            assert!(matches!(error.kind(), ErrorKind::Security | ErrorKind::ConnectFailure), "{error:#}");
            format!("{error:#}")
        })
    };
    let asked = told(ask(&mesh(&control)).await);
    let connected = told(ask_over_connector(&mesh(&control), HOST).await);
    // What a client above a connector speaks is its own affair.
    let expected = asked.clone().map(|seen| seen.replace("alpn=http/1.1", "alpn=-"));
    assert_eq!(connected, expected, "{written}");
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_port_80_travels_as_tls_to_the_port_behind_it_and_asks_for_the_host() {
    let authority = Authority::named("outside");
    let files = Files::with(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), None, ANY)).await;
    let seen = once(server.port, &files.simple()).await.unwrap();
    let expected = format!("200 sni={HOST} alpn=http/1.1 version=TLSv1_3 certificate=false host={HOST} scheme=-");
    assert_eq!(seen, expected);
    // Outside of the mesh, servers may be old.
    server.set(tls(&authority.leaf(&[HOST]), None, OLD));
    assert!(once(server.port, &files.simple()).await.unwrap().contains("version=TLSv1_2"));
    // The whole service, and a subset of it.
    for policy in [
        rule(&format!("tls: {{{}}}", files.simple())),
        rule("tls: {mode: DISABLE}").replace(
            "spec: {",
            &format!("spec: {{subsets: [{{name: s, labels: {{}}, trafficPolicy: {{tls: {{{}}}}}}}], ", files.simple()),
        ) + &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: api}}\n\
             spec: {{hosts: [{HOST}], http: [{{route: [{{destination: {{host: {HOST}, subset: s}}}}]}}]}}\n"
        ),
    ] {
        let entry = service_entry(&format!("{{number: 80, name: http, protocol: HTTP, targetPort: {}}}", server.port));
        let control = control(&(entry + &policy)).await;
        assert!(ask(&mesh(&control)).await.unwrap().starts_with("200 sni=api.example.com"), "{policy}");
    }
}

/// Istio's older recipe: a route takes port 80 to port 443.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_from_port_80_to_the_port_of_https_originates_tls() {
    let authority = Authority::named("outside");
    let files = Files::with(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), None, ANY)).await;
    let ports = format!(
        "{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS, targetPort: {}}}",
        server.port
    );
    let route = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: api}}\n\
         spec: {{hosts: [{HOST}], http: [{{match: [{{port: 80}}], route: [{{destination: {{host: {HOST}, port: {{number: 443}}}}}}]}}]}}\n"
    );
    let rule = rule(&format!("portLevelSettings: [{{port: {{number: 443}}, tls: {{{}}}}}]", files.simple()));
    let control = control(&(service_entry(&ports) + &rule + &route)).await;
    let seen = ask(&mesh(&control)).await.unwrap();
    assert!(seen.starts_with("200 sni=api.example.com alpn=http/1.1"), "{seen}");
}

/// A service of the mesh by name, whose workload is known, and whose server is somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_itself_by_files_is_none_of_the_mesh_and_is_not_told_who_calls() {
    use http_body_util::BodyExt;
    let authority = Authority::named("outside");
    let files = Files::with(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), None, ANY)).await;
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: api}}\nspec: {{selector: {{app: api}}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: api}}\n\
         spec: {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{app: api}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api}}\n\
         spec: {{host: api, trafficPolicy: {{tls: {{{}, sni: {HOST}}}}}}}\n",
        server.port,
        files.simple(),
    );
    let control = control(&yaml).await;
    let labels = [("app".to_owned(), "shop".to_owned())].into();
    let bootstrap = Bootstrap::new("embedded").workload("shop", "default", "shop", &labels, 1);
    let mesh = Mesh::builder().source(control.source(bootstrap)).metrics().start().unwrap();
    let response = mesh.client().get("http://api/").await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let seen = String::from_utf8_lossy(&body);
    assert!(seen.contains(&format!("sni={HOST}")) && !seen.contains("told who calls"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_agreed_on_and_says_https() {
    let authority = Authority::named("outside");
    let files = Files::with(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), None, ANY)).await;
    let entry = service_entry(&format!("{{number: 80, name: http2, protocol: HTTP2, targetPort: {}}}", server.port));
    let control = control(&(entry + &rule(&format!("tls: {{{}}}", files.simple())))).await;
    let seen = ask(&mesh(&control)).await.unwrap();
    assert!(seen.contains("alpn=h2") && seen.ends_with(&format!("host={HOST} scheme=https")), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_prove_who_it_is_gets_no_request_and_the_reason_is_told() {
    let [authority, other] = ["outside", "other"].map(Authority::named);
    let files = Files::with(&[("ca.pem", &authority.pem), ("other.pem", &other.pem)]);
    let expired = |it: &mut rcgen::CertificateParams| {
        it.not_before = OffsetDateTime::now_utc() - Duration::from_secs(7200);
        it.not_after = OffsetDateTime::now_utc() - Duration::from_secs(3600);
    };
    let own = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let own = Pair { chain: own.cert.pem(), key: own.signing_key.serialize_pem() };
    let good = authority.leaf(&[HOST]);
    let other_names = format!("{}, subjectAltNames: [b.example.com, spiffe://a/b]", files.simple());
    let server = Foreign::start(tls(&good, None, ANY)).await;
    for (shown, written, reason) in [
        (authority.leaf(&["b.example.com"]), files.simple(), "it is not that of api.example.com"),
        (authority.leaf(&["*.example.org"]), files.simple(), "it is not that of"),
        (other.leaf(&[HOST]), files.simple(), "no trusted authority has signed it"),
        (own, files.simple(), "no trusted authority has signed it"),
        (good.clone(), "mode: SIMPLE".to_owned(), "no trusted authority has signed it"),
        (good.clone(), "mode: SIMPLE, caCertificates: system".to_owned(), "no trusted authority has signed it"),
        (authority.leaf_with(&[HOST], expired), files.simple(), "it has expired"),
        (good.clone(), format!("{}, sni: b.example.com", files.simple()), "it is not that of b.example.com"),
        (good.clone(), other_names, "none of the names that are wanted"),
        (good.clone(), format!("mode: SIMPLE, caCertificates: {}", files.path("gone.pem")), "gone.pem: No such file"),
        (good.clone(), format!("mode: SIMPLE, caCertificates: {}", files.path("")), "not a file"),
        (good.clone(), "mode: SIMPLE, caCertificates: /dev/zero".to_owned(), "/dev/zero: not a file"),
        (good.clone(), "mode: SIMPLE, credentialName: secret".to_owned(), "credentialName"),
    ] {
        server.set(tls(&shown, None, ANY));
        let error = once(server.port, &written).await.expect_err(&written);
        assert!(error.contains(reason), "{written}: {error}");
    }
    assert_eq!(*server.requests.borrow(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_prove_another_name_where_a_rule_says_so() {
    let authority = Authority::named("outside");
    let files = Files::with(&[("ca.pem", &authority.pem)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), None, ANY)).await;
    let uri = |it: &mut rcgen::CertificateParams| {
        it.subject_alt_names = vec![SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap())];
    };
    let address = |it: &mut rcgen::CertificateParams| {
        it.subject_alt_names = vec![SanType::IpAddress("192.0.2.1".parse().unwrap())];
    };
    for (shown, more, sni) in [
        (authority.leaf(&["*.example.com"]), "", HOST),
        (authority.leaf(&["b.example.com"]), "sni: b.example.com", "b.example.com"),
        (authority.leaf(&["b.example.com"]), "subjectAltNames: [a.example.com, b.example.com]", HOST),
        (authority.leaf(&["*.example.org"]), "sni: c.example.org, subjectAltNames: [b.example.org]", "c.example.org"),
        (authority.leaf_with(&[], uri), "subjectAltNames: [spiffe://td/ns/a/sa/b]", HOST),
        (authority.leaf_with(&[], address), "subjectAltNames: [192.0.2.1]", HOST),
    ] {
        server.set(tls(&shown, None, ANY));
        let seen = once(server.port, &format!("{}, {more}", files.simple())).await.expect(more);
        assert!(seen.starts_with(&format!("200 sni={sni} ")), "{more}: {seen}");
    }
    // A URI in a name of another kind is no URI.
    let mail = |it: &mut rcgen::CertificateParams| {
        it.subject_alt_names = vec![SanType::Rfc822Name("spiffe://td/ns/a/sa/b".try_into().unwrap())];
    };
    server.set(tls(&authority.leaf_with(&[], mail), None, ANY));
    once(server.port, &format!("{}, subjectAltNames: [spiffe://td/ns/a/sa/b]", files.simple())).await.unwrap_err();
    // Whoever wants it so trusts everybody.
    let own = rcgen::generate_simple_self_signed(vec!["somebody".to_owned()]).unwrap();
    server.set(tls(&Pair { chain: own.cert.pem(), key: own.signing_key.serialize_pem() }, None, ANY));
    assert!(once(server.port, "mode: SIMPLE, insecureSkipVerify: true").await.unwrap().starts_with("200 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_its_certificate_where_the_mode_is_mutual_and_only_there() {
    let [authority, clients] = ["outside", "clients"].map(Authority::named);
    let shown = clients.leaf(&["client"]);
    let files = Files::with(&[("ca.pem", &authority.pem), ("client.pem", &shown.chain), ("client.key", &shown.key)]);
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), Some(&clients), ANY)).await;
    for versions in [ANY, OLD] {
        server.set(tls(&authority.leaf(&[HOST]), Some(&clients), versions));
        assert!(once(server.port, &files.mutual()).await.unwrap().contains("certificate=true"));
        let control = control(&origination(server.port, &files.simple())).await;
        ask(&mesh(&control)).await.unwrap_err();
    }
    // Of two versions, by two ways.
    assert_eq!(*server.requests.borrow(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_anew_and_what_cannot_be_used_leaves_the_last_good_ones_in_force() {
    let [authority, clients, other] = ["outside", "clients", "other"].map(Authority::named);
    let shown = clients.leaf(&["client"]);
    let files = Files::with(&[("ca.pem", &authority.pem), ("client.pem", &shown.chain)]);
    let one_call = "connectionPool: {http: {maxRequestsPerConnection: 1}}";
    let server = Foreign::start(tls(&authority.leaf(&[HOST]), Some(&clients), ANY)).await;
    let yaml = service_entry(&format!("{{number: 80, name: http, protocol: HTTP, targetPort: {}}}", server.port))
        + &rule(&format!("{one_call}, tls: {{{}}}", files.mutual()));
    let control = control(&yaml).await;
    let mesh = mesh(&control);
    // The key is not there yet.
    let error = ask(&mesh).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Security, "{error:#}");
    assert!(format!("{error:#}").contains("client.key"), "{error:#}");
    files.put("client.key", &shown.key);
    ask(&mesh).await.unwrap();
    // Half of a pair, then nothing of use at all.
    let next = clients.leaf(&["client"]);
    for (name, text) in [("client.pem", &*next.chain), ("ca.pem", "-----BEGIN CERTIFICATE-----"), ("client.key", "")] {
        files.put(name, text);
        assert!(ask(&mesh).await.unwrap().contains("certificate=true"), "{name}");
    }
    // Another authority on both sides.
    let next = other.leaf(&["client"]);
    server.set(tls(&other.leaf(&[HOST]), Some(&other), ANY));
    ask(&mesh).await.unwrap_err();
    for (name, text) in [("client.pem", &next.chain), ("client.key", &next.key), ("ca.pem", &other.pem)] {
        files.put(name, text);
    }
    assert!(ask(&mesh).await.unwrap().contains("certificate=true"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_end_that_would_not_be_made_again() {
    let [authority, other] = ["outside", "other"].map(Authority::named);
    let files = Files::with(&[("ca.pem", &authority.pem), ("crl.pem", &authority.revoked(&[], 1))]);
    let server =
        Foreign::start(tls(&authority.leaf_with(&[HOST], |it| it.serial_number = Some(7.into())), None, ANY)).await;
    let with_list = format!("{}, caCrl: {}", files.simple(), files.path("crl.pem"));
    let control = control(&origination(server.port, &with_list)).await;
    let mesh = mesh(&control);
    let mut connections = server.connections.clone();
    let until = async |connections: &mut tokio::sync::watch::Receiver<usize>, count| {
        let there = connections.wait_for(|open| *open == count);
        tokio::time::timeout(PATIENCE, there).await.expect("in time").unwrap();
    };
    for (name, bad, reason, good) in [
        ("crl.pem", authority.revoked(&[7], 1), "has been revoked", authority.revoked(&[8], 1)),
        ("ca.pem", other.pem.clone(), "no trusted authority", authority.pem.clone()),
    ] {
        ask(&mesh).await.unwrap();
        until(&mut connections, 1).await;
        files.put(name, &bad);
        until(&mut connections, 0).await;
        let error = ask(&mesh).await.unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
        files.put(name, &good);
    }
    ask(&mesh).await.unwrap();
    until(&mut connections, 1).await;
    // The rule itself changes.
    control.set_yaml("config.yaml", "").unwrap();
    control.set_yaml("rule.yaml", &origination(server.port, &format!("{with_list}, sni: b.example.com"))).unwrap();
    until(&mut connections, 0).await;
}

/// Hazard M18: what is not known to be good is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m18_with_lists_of_revoked_certificates_each_authority_of_a_chain_needs_one() {
    let root = Authority::named("root");
    let below = root.below("below", 5);
    let shown = below.leaf_with(&[HOST], |it| it.serial_number = Some(7.into()));
    let shown = Pair { chain: format!("{}{}", shown.chain, below.pem), ..shown };
    let files = Files::with(&[("ca.pem", &root.pem)]);
    let server = Foreign::start(tls(&shown, None, ANY)).await;
    let written = format!("{}, caCrl: {}", files.simple(), files.path("crl.pem"));
    let other = Authority::named("other");
    for (lists, expected) in [
        (vec![root.revoked(&[1], 1), below.revoked(&[1], 1)], None),
        (vec![root.revoked(&[1], 1), below.revoked(&[7], 1)], Some("revoked")),
        (vec![root.revoked(&[5], 1), below.revoked(&[1], 1)], Some("revoked")),
        (vec![root.revoked(&[], 1)], Some("not known")),
        (vec![below.revoked(&[], 1)], Some("not known")),
        (vec![other.revoked(&[], 1)], Some("not known")),
        (vec![root.revoked(&[], -1), below.revoked(&[], 1)], Some("crl.pem: the list of revoked certificates of")),
        (
            vec!["-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n".to_owned()],
            Some("crl.pem: a list of revoked"),
        ),
        (vec![String::new()], Some("crl.pem: no list of revoked")),
    ] {
        files.put("crl.pem", &lists.concat());
        let answer = once(server.port, &written).await;
        match expected {
            None => assert!(answer.unwrap().starts_with("200 ")),
            Some(reason) => {
                let error = answer.unwrap_err();
                assert!(error.contains(reason), "{error}");
            }
        }
    }
    // What cannot be used leaves the last good list in force.
    files.put("crl.pem", &[root.revoked(&[1], 1), below.revoked(&[1], 1)].concat());
    let one_call = "connectionPool: {http: {maxRequestsPerConnection: 1}}";
    let yaml = service_entry(&format!("{{number: 80, name: http, protocol: HTTP, targetPort: {}}}", server.port))
        + &rule(&format!("{one_call}, tls: {{{written}}}"));
    let control = control(&yaml).await;
    let mesh = mesh(&control);
    ask(&mesh).await.unwrap();
    let problems = || mesh.certificates().problems(std::time::SystemTime::now());
    assert_eq!(problems(), Vec::<String>::new());
    files.put("crl.pem", &root.revoked(&[5], -1));
    ask(&mesh).await.unwrap();
    let told = problems();
    assert!(told.len() == 1 && told[0].contains("crl.pem") && told[0].contains("has expired"), "{told:?}");
    let later = mesh.certificates().problems(std::time::SystemTime::now() + Duration::from_secs(7200));
    assert_eq!(later, told);
    files.put("crl.pem", &[root.revoked(&[5], 1), below.revoked(&[1], 1)].concat());
    ask(&mesh).await.unwrap_err();
    assert_eq!(problems(), Vec::<String>::new());
    // It counts beyond its end, which is told.
    let later = mesh.certificates().problems(std::time::SystemTime::now() + Duration::from_secs(7200));
    assert!(later.len() == 1 && later[0].contains("crl.pem") && later[0].contains("has expired"), "{later:?}");
}
