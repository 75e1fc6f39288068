//! Two meshes of two trust domains that trust each other by files: who may call whom, and who may not.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use mesh_core::request_info::Deadline;
use mesh_core::tls::Credentials;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use mesh_tower::body::Body;

use crate::certificates_process::{Logged, plug_in};
use crate::process::{output, page, text};
use crate::renewal::{mesh, serve};
use crate::secured::Authority;
use crate::support::{PATIENCE, until};

pub(crate) const A: &str = "a.example";
pub(crate) const B: &str = "b.example";

/// A mesh-control of one trust domain.
pub(crate) struct Realm {
    domain: &'static str,
    pub(crate) control: Logged,
    dirs: Dirs,
}

struct Dirs {
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    ca: tempfile::TempDir,
}

impl Realm {
    /// It trusts others by these files.
    fn start(domain: &'static str, root: &Authority, yaml: &str, others: &[(&str, &Path)]) -> Realm {
        let others: Vec<String> = others.iter().map(|(other, file)| format!("{other}={}", file.display())).collect();
        let others = others.iter().flat_map(|other| ["--trust-bundle", other]);
        Realm::with(domain, root, yaml, &others.collect::<Vec<_>>())
    }

    /// With these options.
    pub(crate) fn with(domain: &'static str, root: &Authority, yaml: &str, more: &[&str]) -> Realm {
        let [config, state, ca] = [(), (), ()].map(|()| tempfile::tempdir().unwrap());
        plug_in(ca.path(), &root.intermediate(), &[root]);
        fs::write(config.path().join("config.yaml"), yaml).unwrap();
        Realm::of(domain, Dirs { config, state, ca }, more)
    }

    fn of(domain: &'static str, dirs: Dirs, more: &[&str]) -> Realm {
        let (state, ca) = (dirs.state.path().to_str().unwrap(), dirs.ca.path().to_str().unwrap());
        let own = [
            "--trust-domain",
            domain,
            "--state-dir",
            state,
            "--ca-dir",
            ca,
            "--settle",
            "0",
            "--trust-bundle-least-refresh",
            "1",
        ];
        let control = Logged::start(dirs.config.path(), &[&own[..], more].concat());
        Realm { domain, control, dirs }
    }

    /// Ends it, and starts another one in its place.
    pub(crate) fn again(self, more: &[&str]) -> Realm {
        let Realm { domain, control, dirs } = self;
        drop(control);
        Realm::of(domain, dirs, more)
    }

    /// What its status says of the first foreign domain.
    pub(crate) fn trusted(&self) -> serde_json::Value {
        let status = output(&["status", "--addr", &self.control.status.to_string(), "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["authority"]["trust_bundles"][0].clone()
    }

    pub(crate) fn workload(&self, account: &str) -> Mesh {
        let identity = format!("spiffe://{}/ns/shop/sa/{account}", self.domain);
        let state = self.dirs.state.path().to_str().unwrap();
        let made = output(&["token", "create", "--identity", &identity, "--state-dir", state]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let (token, server) = (text(&made.stdout).trim().to_owned(), self.control.xds.to_string());
        let label = format!("app={account}");
        let who = ["--namespace", "shop", "--name", account, "--service-account", account, "--label", &label];
        let made = output(&[&["bootstrap", "--server", &server, "--token", &token], &who[..]].concat());
        mesh(Bootstrap::from_json(&text(&made.stdout), "printed").unwrap())
    }

    /// A workload with files, as gRPC's own programs have them, and why it has none.
    fn issued(&self, dir: &Path, more: &[&str]) -> Result<Mesh, String> {
        let identity = format!("spiffe://{}/ns/shop/sa/caller", self.domain);
        let place = ["--ca-dir", self.dirs.ca.path().to_str().unwrap(), "--out", dir.to_str().unwrap()];
        let made = output(&[&["ca", "issue", "--identity", &identity], &place[..], more].concat());
        if !made.status.success() {
            return Err(text(&made.stderr));
        }
        let who = ["--namespace", "shop", "--service-account", "caller", "--certificates", dir.to_str().unwrap()];
        let made = output(&[&["bootstrap", "--server", &self.control.xds.to_string()], &who[..]].concat());
        Ok(mesh(Bootstrap::from_json(&text(&made.stdout), "printed").unwrap()))
    }

    fn put(&self, name: &str, yaml: &str) {
        let (new, path) = (self.dirs.config.path().join("new"), self.dirs.config.path().join(name));
        fs::write(&new, yaml).unwrap();
        fs::rename(new, path).unwrap();
    }
}

/// The other mesh's workload, as this mesh is told of it.
pub(crate) fn abroad(port: u16, identity: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [web.abroad]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  subjectAltNames: ['{identity}']
  endpoints: [{{address: 127.0.0.1, labels: {{security.istio.io/tlsMode: istio}}}}]
"
    )
}

pub(crate) async fn get(client: &Mesh) -> Result<String, String> {
    let deadline = Deadline(Instant::now() + Duration::from_secs(8));
    let request = http::Request::get("http://web.abroad/").extension(deadline).body(Body::empty()).unwrap();
    let response = client.client().request(request).await.map_err(|error| format!("{error:#}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() { Ok(body) } else { Err(format!("{status}: {body}")) }
}

pub(crate) async fn becomes(client: &Mesh, expected: impl Fn(&Result<String, String>) -> bool) {
    let reached = async { while !expected(&get(client).await) {} };
    tokio::time::timeout(PATIENCE, reached).await.expect("in time");
}

/// SPIFFE's form of a bundle.
pub(crate) fn json_of(root: &Authority, sequence: u64) -> String {
    let root: String = root.0.pem().lines().filter(|line| !line.starts_with("-----")).collect();
    format!(
        r#"{{"keys": [{{"use": "x509-svid", "kty": "EC", "x5c": ["{root}"]}}], "spiffe_sequence": {sequence},
            "spiffe_refresh_hint": 60}}"#
    )
}

pub(crate) fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

pub(crate) const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn m6_a_client_of_one_trust_domain_calls_a_server_of_another_and_neither_authority_vouches_for_the_other() {
    let (root_a, root_b) = (Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (of_a, of_b) = (files.path().join("a.pem"), files.path().join("b.json"));
    put(&of_a, &root_a.0.pem());
    put(&of_b, &json_of(&root_b, 7));
    let b = Realm::start(B, &root_b, WEB, &[(A, &of_a)]);
    let web = b.workload("web");
    let port = serve(&web).await.port();
    let identity = format!("spiffe://{B}/ns/shop/sa/web");
    let a = Realm::start(A, &root_a, &abroad(port, &identity), &[(B, &of_b)]);
    let caller = a.workload("caller");
    let told = get(&caller).await;
    assert_eq!(told.as_deref(), Ok("spiffe://a.example/ns/shop/sa/caller"));

    // Secure naming: somebody else of the other domain is not the one who was meant, nor is one of the same name here.
    for (other, why) in [(format!("spiffe://{B}/ns/shop/sa/other"), B), (format!("spiffe://{A}/ns/shop/sa/web"), B)] {
        a.put("config.yaml", &abroad(port, &other));
        becomes(&caller, |told| told.as_ref().is_err_and(|error| error.contains(why))).await;
    }
    a.put("config.yaml", &abroad(port, &identity));
    becomes(&caller, Result::is_ok).await;

    // Whoever has the authority of B names a workload of A: B's servers ask A's roots.
    let named = "spiffe://a.example/ns/shop/sa/caller";
    let signed_by = |realm: &Realm, root: &Authority| {
        let (ca, out) = (realm.dirs.ca.path(), files.path().join("forged"));
        let place = ["--out", out.to_str().unwrap(), "--ca-dir", ca.to_str().unwrap()];
        let made = output(&[&["ca", "issue", "--identity", named], &place[..]].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        let foreign = [(B.to_owned(), root_b.0.pem())].into();
        let roots = root.0.pem();
        let credentials =
            Credentials::with_foreign(&read("cert-chain.pem"), &read("key.pem"), roots.as_bytes(), &foreign).unwrap();
        let bootstrap = Bootstrap::new(a.control.xds.to_string()).node_id("nobody").metadata("NAMESPACE", "shop");
        let builder = Mesh::builder().source(XdsSource::new(bootstrap)).credentials(credentials);
        builder.cold_start_wait(PATIENCE).start().unwrap()
    };
    assert_eq!(get(&signed_by(&a, &root_a)).await.as_deref(), Ok(named), "by its own authority");
    get(&signed_by(&b, &root_b)).await.expect_err("by the other one");
    // Nor has a mesh its own domain from a file, or a root two domains.
    let config = a.dirs.config.path().to_str().unwrap();
    let refused =
        output(&["serve", "--config", config, "--dev", "--trust-domain", B, "--trust-bundle", "b.example=b.pem"]);
    assert!(text(&refused.stderr).contains("own trust domain"), "{}", text(&refused.stderr));

    // A policy that lets in a namespace means one of its own mesh.
    let rule = |from: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{rules: [{{from: [{{source: {{{from}}}}}]}}]}}\n"
        )
    };
    b.put("policy.yaml", &rule("namespaces: [shop]"));
    becomes(&caller, |told| told.as_ref().is_err_and(|error| error.contains("403"))).await;
    b.put("policy.yaml", &rule("principals: [a.example/ns/shop/sa/caller]"));
    becomes(&caller, Result::is_ok).await;
    // One that refuses means everybody's, and one that spares them its own.
    for from in ["namespaces: [shop]", "notNamespaces: [shop]"] {
        b.put("policy.yaml", &rule(from).replace("{rules", "{action: DENY, rules"));
        becomes(&caller, |told| told.as_ref().is_err_and(|error| error.contains("403"))).await;
        b.put("policy.yaml", &rule("principals: [a.example/ns/shop/sa/caller]"));
        becomes(&caller, Result::is_ok).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_of_a_foreign_domain_are_followed_and_a_file_that_cannot_be_used_leaves_the_last_good_ones() {
    let (root_a, root_b, other) = (Authority::signing(), Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (of_a, of_b) = (files.path().join("a.pem"), files.path().join("b.json"));
    put(&of_b, &json_of(&root_b, 7));
    // At its start there is none.
    let b = Realm::start(B, &root_b, WEB, &[(A, &of_a)]);
    let ready = || page(b.control.status, "/ready");
    assert!(
        ready().contains("200 OK") && ready().contains("a.pem: there is no such file; nobody of a.example is trusted")
    );
    let web = b.workload("web");
    let port = serve(&web).await.port();
    let a = Realm::start(A, &root_a, &abroad(port, &format!("spiffe://{B}/ns/shop/sa/web")), &[(B, &of_b)]);
    let caller = a.workload("caller");
    get(&caller).await.unwrap_err();
    put(&of_a, &root_a.0.pem());
    becomes(&caller, Result::is_ok).await;
    until("it is told", || !ready().contains("trust bundle")).await;

    for (text, why) in
        [("nothing", "no certificate"), ("{\"keys\": 1}", "keys"), (&*root_b.0.pem(), "one of the mesh, too")]
    {
        put(&of_a, text);
        until("it is told", || ready().contains(why)).await;
        assert!(ready().contains("200 OK") && ready().contains("a.pem") && ready().contains("that it had before"));
        assert!(
            page(b.control.status, "/metrics").contains("\nmesh_trust_bundle_wrong{trust_domain=\"a.example\"} 1\n")
        );
        assert!(get(&caller).await.is_ok(), "the last good ones are in force");
    }
    let bundle = b.trusted();
    assert_eq!((&bundle["trust_domain"], &bundle["roots"]), (&A.into(), &1.into()), "{bundle}");
    let shown = text(&output(&["status", "--addr", &b.control.status.to_string()]).stdout);
    assert!(shown.contains("TRUSTED DOMAIN") && shown.contains("a.pem"), "{shown}");

    // An older bundle does not come back.
    put(&of_b, &json_of(&other, 6));
    until("it is told", || page(a.control.status, "/ready").contains("spiffe_sequence, 6, is smaller than")).await;
    assert!(get(&caller).await.is_ok());
    // Other roots end what was made by those before, and no roots at all end the trust.
    put(&of_a, &other.0.pem());
    becomes(&caller, Result::is_err).await;
    put(&of_a, &root_a.0.pem());
    becomes(&caller, Result::is_ok).await;
    put(&of_a, "{\"keys\": []}");
    becomes(&caller, Result::is_err).await;
    assert!(ready().contains("revoked all its roots"), "{}", ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn m6_a_program_with_files_trusts_each_domain_of_its_bundle_map_by_its_own_roots() {
    let (root_a, root_b) = (Authority::signing(), Authority::signing());
    let files = tempfile::tempdir().unwrap();
    let (of_a, of_b) = (files.path().join("a.pem"), files.path().join("b.json"));
    put(&of_a, &root_a.0.pem());
    put(&of_b, &json_of(&root_b, 7));
    let b = Realm::start(B, &root_b, WEB, &[(A, &of_a)]);
    let web = b.workload("web");
    let port = serve(&web).await.port();
    let a = Realm::start(A, &root_a, &abroad(port, &format!("spiffe://{B}/ns/shop/sa/web")), &[]);
    let (dir, wrong) = (files.path().join("caller"), files.path().join("wrong.pem"));
    let trust = |file: &Path| format!("{B}={}", file.display());

    let told = get(&a.issued(&dir, &[]).unwrap()).await.unwrap_err();
    assert!(told.contains(B), "nobody of the other domain is known: {told}");
    assert!(!dir.join("trust-bundles.json").exists());
    let told = get(&a.issued(&dir, &["--trust-bundle", &trust(&of_b)]).unwrap()).await;
    assert_eq!(told.as_deref(), Ok("spiffe://a.example/ns/shop/sa/caller"));
    // The roots of another domain vouch for nobody of this one.
    put(&wrong, &root_a.0.pem());
    let Err(refused) = a.issued(&dir, &["--trust-bundle", &trust(&wrong)]) else { panic!("they are the mesh's own") };
    assert!(refused.contains("one of the mesh, too"), "{refused}");
    put(&wrong, &Authority::signing().0.pem());
    get(&a.issued(&dir, &["--trust-bundle", &trust(&wrong)]).unwrap()).await.unwrap_err();
    // Half a map is none.
    let caller = a.issued(&dir, &["--trust-bundle", &trust(&of_b)]).unwrap();
    let map = dir.join("trust-bundles.json");
    put(&map, &fs::read_to_string(&map).unwrap().replace("x5c", "x5"));
    get(&caller).await.unwrap_err();
    let problem = caller.certificates().problem().expect("a reason").to_string();
    assert!(problem.contains("trust-bundles.json") && problem.contains("x5c"), "{problem}");
    // Who is not named any more is not trusted any more.
    get(&a.issued(&dir, &[]).unwrap()).await.unwrap_err();
    assert!(!fs::read_to_string(&map).unwrap().contains(B));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_reads_what_it_is_told_of_whom_to_trust_beyond_the_four_mebibytes_of_grpc() {
    let root = Authority::signing();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.custom_extensions =
        vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![7; 40_000])];
    let large = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    let files = tempfile::tempdir().unwrap();
    let of_b = files.path().join("b.pem");
    put(&of_b, &large.repeat((5 << 20) / large.len()));
    let a = Realm::start(A, &root, WEB, &[(B, &of_b)]);
    assert!(!page(a.control.status, "/ready").contains("trust bundle"));
    let web = a.workload("web");
    let certificates = web.certificates();
    tokio::time::timeout(PATIENCE, certificates.get()).await.expect("a certificate");
    assert_eq!(certificates.problem().map(|problem| problem.to_string()), None);
}
