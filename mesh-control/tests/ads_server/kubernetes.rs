//! Service account tokens of Kubernetes in the place of one-time tokens, with an API server of the test's own that answers as a
//! real one does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::SanType;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tonic::Code;

use crate::certificates::{NAMES, WEB, create, owner, plain, request};
use crate::certificates_process::Logged;
use crate::process::{output, text};
use crate::secured::Authority;
use crate::support::PATIENCE;

/// The status of a review, by the last part of the token.
fn status(token: &str, audiences: &Value) -> Value {
    let refused = |why: &str| json!({"user": {}, "error": format!("[invalid bearer token, {why}]")});
    let account = |extra: Value| {
        json!({"authenticated": true, "audiences": audiences, "user": {"username": "system:serviceaccount:shop:web",
            "uid": "1", "groups": ["system:serviceaccounts"], "extra": extra}})
    };
    match token.rsplit('.').next().unwrap() {
        "good" => account(json!({"authentication.kubernetes.io/pod-name": ["web-1"],
            "authentication.kubernetes.io/pod-uid": ["2"]})),
        "audience" => refused("token audiences [\"other\"] is invalid for the target audiences [\"istio-ca\"]"),
        "expired" => refused("service account token has expired"),
        "deleted" => refused("service account token has been invalidated"),
        // Nobody of the server's authenticators knows it.
        "issuer" => json!({"user": {}}),
        "legacy" => account(json!({})),
        other => panic!("{other}"),
    }
}

/// An API server that reviews tokens, and keeps what it was asked.
struct Api {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    dir: tempfile::TempDir,
}

impl Api {
    async fn start() -> Api {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (_, key, certificate) = authority.issue(SanType::IpAddress([127, 0, 0, 1].into()));
        std::fs::write(dir.path().join("ca.crt"), authority.0.pem()).unwrap();
        std::fs::write(dir.path().join("token"), "the-servers-own\n").unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<(String, Value)>>>::default());
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.ok()?;
                    let mut text = String::new();
                    let (head, review) = loop {
                        let mut some = [0; 4096];
                        let read = stream.read(&mut some).await.ok()?;
                        text += std::str::from_utf8(&some[..read]).ok()?;
                        if let Some((head, body)) = text.split_once("\r\n\r\n")
                            && let Ok(review) = serde_json::from_str::<Value>(body)
                        {
                            break (head.to_owned(), review);
                        }
                    };
                    let answer = match head.contains("Bearer the-servers-own") {
                        true => {
                            let token = review["spec"]["token"].as_str().unwrap();
                            ("201 Created", json!({"status": status(token, &review["spec"]["audiences"])}))
                        }
                        false => ("403 Forbidden", json!({"kind": "Status", "status": "Failure"})),
                    };
                    seen.lock().unwrap().push((head, review));
                    let (line, body) = (answer.0, answer.1.to_string());
                    let answer = format!("HTTP/1.1 {line}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.ok()
                });
            }
        });
        Api { address, asked, dir }
    }

    fn options(&self) -> Vec<String> {
        let file = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let url = format!("https://{}", self.address);
        let pairs = [
            ("--kubernetes-tokens", url),
            ("--kubernetes-ca", file("ca.crt")),
            ("--kubernetes-token-file", file("token")),
            ("--state-dir", file("state")),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c9_a_service_account_token_gives_a_certificate_of_its_account_and_a_wrong_one_none() {
    let (config, api) = (tempfile::tempdir().unwrap(), Api::start().await);
    let options = api.options();
    let control = Logged::start(config.path(), &options.iter().map(String::as_str).collect::<Vec<_>>());
    let ask = async |token: &str, names: &[(&str, &str)]| {
        let bearer = format!("Bearer {token}");
        let asked = create(plain(control.xds).await, request(names), Some(&bearer));
        tokio::time::timeout(PATIENCE, asked).await.expect("an answer")
    };
    let chain = ask("e30.e30.good", &[]).await.unwrap();
    assert_eq!(owner(&chain[0]), WEB);
    assert_eq!(owner(&ask("e30.e30.good", &NAMES).await.unwrap()[0]), WEB, "it is good more than once");
    let other = ask("e30.e30.good", &[("NAMESPACE", "pay"), ("SERVICE_ACCOUNT", "web")]).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied, "{other}");
    {
        let asked = api.asked.lock().unwrap();
        let (head, review) = &asked[0];
        assert!(head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews HTTP/1.1"), "{head}");
        assert_eq!(review["kind"], "TokenReview");
        assert_eq!(review["spec"], json!({"token": "e30.e30.good", "audiences": ["istio-ca"]}));
    }
    for (kind, why) in [
        ("audience", "is invalid for the target audiences"),
        ("expired", "has expired"),
        ("deleted", "has been invalidated"),
        ("issuer", "refuses the token"),
        ("legacy", "bound to no pod"),
    ] {
        let refused = ask(&format!("e30.e30.{kind}"), &[]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{kind}: {refused}");
        assert!(refused.message().contains(why), "{kind}: {refused}");
    }
    // A one-time token is looked for here, and shown to nobody.
    let reviews = api.asked.lock().unwrap().len();
    let refused = ask(&"0".repeat(64), &[]).await.unwrap_err();
    assert_eq!((refused.code(), api.asked.lock().unwrap().len()), (Code::Unauthenticated, reviews));
    // An API server that does not let mesh-control ask, or is not there, vouches for nobody.
    std::fs::write(api.dir.path().join("token"), "of nobody").unwrap();
    let refused = ask("e30.e30.good", &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    std::fs::write(api.dir.path().join("ca.crt"), Authority::new().0.pem()).unwrap();
    let refused = ask("e30.e30.good", &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let log = control.log();
    assert!(log.contains("403 Forbidden") && log.contains("\"method\":\"kubernetes\""), "{log}");
    for secret in ["e30.e30", "the-servers-own", "of nobody"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn an_api_server_is_asked_over_tls_alone_and_where_there_are_certificates_to_give() {
    let config = tempfile::tempdir().unwrap();
    let config = config.path().to_str().unwrap();
    for (options, why) in [
        (&["--kubernetes-tokens", "http://127.0.0.1:1", "--dev"][..], "https://"),
        (&["--kubernetes-tokens", "https://127.0.0.1:1"], "--state-dir"),
    ] {
        let free = ["serve", "--config", config, "--xds-addr", "127.0.0.1:0", "--status-addr", "none"];
        let refused = output(&[&free[..], options].concat());
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
    }
}
