//! Private keys and tokens stand in nothing that anybody reads: logs, status, metrics, what is served, and `Debug`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use mesh_control::ca::{CertificateAuthority, TOKEN_TTL, Tokens};
use mesh_control::serve::{Certificates, Options};
use mesh_core::tls::{CertificateRequest, Credentials};
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;

use crate::certificates::{WEB, plain};
use crate::certificates_process::Logged;
use crate::process::{output, text};
use crate::renewal::{CALLER, SHOP, developing, get, mesh, serve};

/// The secret number of a P-256 key in PEM: the rest of the key is in its certificate, too.
pub(crate) fn scalar(pem: &[u8]) -> Vec<u8> {
    let key = pem::parse_many(pem).unwrap().into_iter().find(|block| block.tag().contains("PRIVATE KEY")).unwrap();
    let der = key.contents();
    // RFC 5915: version 1, and an octet string of 32 bytes.
    let before = [2, 1, 1, 4, 32];
    let at = der.windows(before.len()).position(|window| window == before).expect("an EC key") + before.len();
    der[at..at + 32].to_vec()
}

/// Every form in which somebody may have written these bytes, as long as a third of them is there. In PEM, a line ends behind
/// the first twelve.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for part in [&secret[..12], &secret[12..24]] {
        let joined = |format: &dyn Fn(&u8) -> String, by: &str| part.iter().map(format).collect::<Vec<_>>().join(by);
        forms.push(part.to_vec());
        for by in ["", ":"] {
            forms.push(joined(&|byte| format!("{byte:02x}"), by).into_bytes());
            forms.push(joined(&|byte| format!("{byte:02X}"), by).into_bytes());
        }
        for by in [",", ", "] {
            forms.push(joined(&|byte| byte.to_string(), by).into_bytes());
        }
        // Base64 at each of its three alignments, without what the neighbours have a part in.
        for skip in 0..3 {
            let text = pem::encode(&pem::Pem::new("X", &part[skip..skip + 9]));
            let line = text.lines().nth(1).expect("a line").trim().to_owned();
            forms.push(line.replace('+', "-").replace('/', "_").into_bytes());
            forms.push(line.into_bytes());
        }
    }
    forms
}

pub(crate) fn has(haystack: &[u8], secret: &[u8]) -> bool {
    forms(secret).iter().any(|form| haystack.windows(form.len()).any(|window| window == &form[..]))
}

fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("200 OK"), "{path}: {page}");
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_no_byte_of_a_private_key_is_in_logs_status_metrics_or_what_is_served() {
    let (config, state, out) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(config.path().join("shop.yaml"), SHOP).unwrap();
    let state_dir = state.path().to_str().unwrap();
    let control = Logged::saying("trace", "127.0.0.1:0", config.path(), &["--dev", "--state-dir", state_dir]);
    let (web, caller) = (mesh(developing(control.xds, "web")), mesh(developing(control.xds, "caller")));
    serve(&web).await;
    assert_eq!(get(&caller).await.as_deref(), Ok(CALLER));
    let issued = ["ca", "issue", "--identity", WEB, "--out", out.path().to_str().unwrap(), "--state-dir", state_dir];
    let issued = output(&issued);
    assert!(issued.status.success(), "{}", text(&issued.stderr));
    let made = output(&["token", "create", "--identity", WEB, "--state-dir", state_dir]);
    let token = text(&made.stdout).trim().to_owned();

    let mut seen = Vec::new();
    for path in ["/status", "/status?names=all", "/metrics", "/debug/syncz", "/ready"] {
        seen.extend(page(control.status, path).into_bytes());
    }
    let mut client = ClientStatusDiscoveryServiceClient::new(plain(control.xds).await);
    let told = client.fetch_client_status(ClientStatusRequest::default()).await.unwrap();
    seen.extend(format!("{told:?}").into_bytes());
    seen.extend(format!("{web:?} {:?} {:?}", web.certificates(), caller.certificates().current()).into_bytes());
    seen.extend(issued.stdout);
    seen.extend(control.log().into_bytes());
    assert!(seen.len() > 10_000, "something was looked through");
    let files = ["ca/root.pem", "ca/intermediate.pem"].map(|file| state.path().join(file));
    for file in files.into_iter().chain([out.path().join("key.pem")]) {
        let pem = std::fs::read(&file).unwrap();
        let secret = scalar(&pem);
        assert!(has(&pem, &secret), "it is found where it is: {}", file.display());
        assert!(!has(&seen, &secret), "{}", file.display());
    }
    assert!(!String::from_utf8_lossy(&seen).contains(&token));
}

#[test]
fn m17_no_debug_output_shows_a_key_or_a_token() {
    let (state, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = CertificateAuthority::own(Some(state.path()), "cluster.local".parse().unwrap(), now).unwrap();
    let authority = Arc::new(authority);
    let (key, issued) = authority.issue_with_key(&WEB.parse().unwrap(), 0, now).unwrap();
    let (roots, chain) = issued.chain.split_last().unwrap();
    let own = Credentials::from_pem(chain.concat().as_bytes(), key.as_bytes(), roots.as_bytes()).unwrap();
    let tokens = Tokens::of(state.path());
    let token = tokens.create(&WEB.parse().unwrap(), TOKEN_TTL, now).unwrap();
    let provider = format!(r#"{{"default": {{"plugin_name": "mesh_ca", "config": {{"token": "{}"}}}}}}"#, *token);
    let bootstrap = format!(
        r#"{{"xds_servers": [{{"server_uri": "127.0.0.1:1", "channel_creds": [{{"type": "insecure"}}]}}], "certificate_providers": {provider}}}"#
    );
    let bootstrap = Bootstrap::from_json(&bootstrap, "here").unwrap();
    let source = XdsSource::new(bootstrap.clone());
    let options = Options::default().certificates(Certificates::new(authority.clone()).tokens(tokens.clone()));
    let mut shown = String::new();
    let _ = write!(shown, "{authority:?} {issued:?} {tokens:?} {options:?} {bootstrap:?} {source:?} {own:?}");
    let _ = write!(shown, "{:?}", CertificateRequest::new().unwrap());
    let mesh = Mesh::builder().source(source).credentials(own);
    let _ = write!(shown, "{mesh:?}");
    let mesh = mesh.start().unwrap();
    let _ = write!(shown, "{mesh:?} {:?} {:?}", mesh.certificates(), mesh.client());
    assert!(shown.len() > 500 && !shown.contains(&**token), "{shown}");
    for pem in [key.as_bytes().to_vec(), std::fs::read(state.path().join("ca/root.pem")).unwrap()] {
        assert!(!has(shown.as_bytes(), &scalar(&pem)), "{shown}");
    }
}
