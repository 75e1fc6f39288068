//! Where an API server is, who vouches for it, and by what it is told who asks: from a kubeconfig file, or as every Pod finds it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use serde::Deserialize;
use zeroize::Zeroizing;

/// The name of its API server in every cluster.
const IN_CLUSTER: &str = "https://kubernetes.default.svc";

/// How to reach an API server.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(super) server: Uri,
    /// The name that its certificate has to be of, where it is not that of its address.
    pub(super) server_name: Option<String>,
    /// Who vouches for it, as PEM.
    pub(super) authority: Pem,
    pub(super) credential: Credential,
}

/// What shows an API server who asks.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// A bearer token.
    Token(Secret),
    /// One that is replaced now and then.
    TokenFile(PathBuf),
    /// A certificate and its key, as PEM.
    Certificate(Pem, Pem),
}

/// PEM, here or in a file that is read for every connection.
#[derive(Clone, Debug)]
pub(super) enum Pem {
    Here(Secret),
    In(PathBuf),
}

/// Nothing that is printed.
#[derive(Clone)]
pub(super) struct Secret(pub(super) Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named<ContextOf>>,
    #[serde(default)]
    clusters: Vec<Named<ClusterOf>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    of: T,
}

#[derive(Deserialize)]
struct ContextOf {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterOf {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
    username: Option<serde::de::IgnoredAny>,
}

impl Access {
    /// As a Pod has it: by the files of its service account.
    pub(crate) fn of_pod(ca: &Path, token: &Path) -> anyhow::Result<Access> {
        Access::of_files(IN_CLUSTER, ca, token)
    }

    /// A server at `https://HOST:PORT` that an authority in `ca` vouches for, asked with the token in `token`. Both files are read
    /// for every connection.
    ///
    /// # Errors
    /// It is no such address.
    pub(crate) fn of_files(server: &str, ca: &Path, token: &Path) -> anyhow::Result<Access> {
        Access::to(server, Pem::In(ca.to_owned()), Credential::TokenFile(token.to_owned()))
    }

    /// The same, asked with the certificate and the key in these files.
    ///
    /// # Errors
    /// It is no such address.
    pub(crate) fn of_certificate(server: &str, ca: &Path, certificate: &Path, key: &Path) -> anyhow::Result<Access> {
        let credential = Credential::Certificate(Pem::In(certificate.to_owned()), Pem::In(key.to_owned()));
        Access::to(server, Pem::In(ca.to_owned()), credential)
    }

    /// As the current context of a kubeconfig file says it.
    ///
    /// # Errors
    /// The file cannot be read, or it asks for something that is not done here.
    pub(crate) fn of_kubeconfig(file: &Path) -> anyhow::Result<Access> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        Access::of_text(&text, folder).with_context(|| format!("{}", file.display()))
    }

    fn of_text(text: &str, folder: &Path) -> anyhow::Result<Access> {
        let config: Kubeconfig = serde_saphyr::from_str(text).map_err(|error| {
            // Its words have the lines around the place, and with them tokens and keys.
            let place = error.location().map(|at| format!(", line {} column {}", at.line(), at.column()));
            anyhow!("no kubeconfig{}", place.unwrap_or_default())
        })?;
        let context = find(&config.contexts, "context", &config.current_context)?;
        let cluster = find(&config.clusters, "cluster", &context.cluster)?;
        let none = User::default();
        let user = if context.user.is_empty() { &none } else { find(&config.users, "user", &context.user)? };
        let refuse = |is_asked: bool, what: &str| {
            ensure!(
                !is_asked,
                "{what} is not done here: whoever is on the way could read what is sent, or nobody knows who asks"
            );
            Ok(())
        };
        refuse(cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify")?;
        refuse(cluster.proxy_url.is_some(), "proxy-url")?;
        if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
            bail!(
                "the user {:?} proves who it is by a program, or a password, which is not done here: give it a token \
                 (`kubectl create token`) or a client certificate",
                context.user
            );
        }
        let pem = |file: &Option<PathBuf>, data: &Option<String>, what: &str| {
            Ok::<_, anyhow::Error>(match (file, data) {
                (_, Some(data)) => {
                    let bytes = STANDARD.decode(data.trim()).with_context(|| format!("{what}-data is no base64"))?;
                    Some(Pem::Here(Secret(Zeroizing::new(bytes))))
                }
                (Some(file), None) => Some(Pem::In(folder.join(file))),
                (None, None) => None,
            })
        };
        let authority =
            pem(&cluster.certificate_authority, &cluster.certificate_authority_data, "certificate-authority")?;
        let certificate = pem(&user.client_certificate, &user.client_certificate_data, "client-certificate")?;
        let key = pem(&user.client_key, &user.client_key_data, "client-key")?;
        let credential = match (&user.token_file, &user.token, certificate.zip(key)) {
            (Some(file), ..) => Credential::TokenFile(folder.join(file)),
            (None, Some(token), _) => Credential::Token(Secret(Zeroizing::new(token.clone().into_bytes()))),
            (None, None, Some((certificate, key))) => Credential::Certificate(certificate, key),
            (None, None, None) => bail!("the user {:?} has neither a token nor a client certificate", context.user),
        };
        let authority = authority.context("no certificate-authority: nobody vouches for the API server")?;
        let access = Access::to(&cluster.server, authority, credential)?;
        Ok(Access { server_name: cluster.tls_server_name.clone(), ..access })
    }

    fn to(server: &str, authority: Pem, credential: Credential) -> anyhow::Result<Access> {
        let uri: Uri = server.parse().with_context(|| format!("{server} is no URL"))?;
        ensure!(
            uri.scheme_str() == Some("https") && uri.host().is_some() && uri.query().is_none(),
            "{server}: https://HOST:PORT is needed, since tokens go there"
        );
        Ok(Access { server: uri, server_name: None, authority, credential })
    }

    /// Of a server of a test, which speaks no TLS.
    #[cfg(test)]
    pub(super) fn of_test(address: std::net::SocketAddr) -> Access {
        let token = Secret(Zeroizing::new(b"t".to_vec()));
        Access {
            server: format!("http://{address}").parse().expect("a URL"),
            server_name: None,
            authority: Pem::Here(token.clone()),
            credential: Credential::Token(token),
        }
    }
}

fn find<'t, T>(all: &'t [Named<T>], what: &str, name: &str) -> anyhow::Result<&'t T> {
    let found = all.iter().find(|one| one.name == name).map(|one| &one.of);
    found.with_context(|| format!("there is no {what} {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: kind
contexts: [{name: other, context: {cluster: b, user: b}}, {name: kind, context: {cluster: a, user: a, namespace: x}}]
clusters: [{name: a, cluster: {server: 'https://127.0.0.1:6443', certificate-authority: ca.crt}}]
users: [{name: a, user: {client-certificate-data: YQ==, client-key: a.key}}]
";

    #[test]
    fn the_current_context_says_who_asks_whom() {
        let access = Access::of_text(GOOD, Path::new("/home/me/.kube")).expect("good");
        assert_eq!(access.server.to_string(), "https://127.0.0.1:6443/");
        assert!(matches!(&access.authority, Pem::In(path) if path == Path::new("/home/me/.kube/ca.crt")));
        let Credential::Certificate(Pem::Here(certificate), Pem::In(key)) = &access.credential else {
            panic!("{access:?}")
        };
        assert_eq!((certificate.0.as_slice(), key.as_path()), (b"a".as_slice(), Path::new("/home/me/.kube/a.key")));
        let token = GOOD.replace("client-certificate-data: YQ==", "token: hidden");
        let access = Access::of_text(&token, Path::new("")).expect("good");
        assert!(!format!("{access:?}").contains("hidden"));
    }

    #[test]
    fn what_is_said_of_a_wrong_file_has_no_secret_in_it() {
        let token = GOOD.replace("client-certificate-data: YQ==", "token: hidden");
        for wrong in [("client-key: a.key", "client-key: [a.key]"), ("token: hidden", "token: hidden, token: hidden")] {
            let error = Access::of_text(&token.replace(wrong.0, wrong.1), Path::new("")).expect_err("wrong");
            let said = format!("{error:#} {error:?}");
            assert!(said.contains("line 7") && !said.contains("hidden"), "{said}");
        }
    }

    #[test]
    fn what_would_be_weaker_than_it_looks_is_refused() {
        for (from, to, why) in [
            ("certificate-authority: ca.crt", "insecure-skip-tls-verify: true", "insecure-skip-tls-verify"),
            ("certificate-authority: ca.crt", "{}", "kubeconfig"),
            (", certificate-authority: ca.crt", "", "vouches"),
            ("https://", "http://", "https://"),
            ("client-certificate-data: YQ==, client-key: a.key", "exec: {command: aws}", "by a program"),
            ("client-certificate-data: YQ==, client-key: a.key", "", "neither"),
            ("current-context: kind", "current-context: gone", "no context"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            let error = Access::of_text(&text, Path::new("")).expect_err(why);
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }
}
