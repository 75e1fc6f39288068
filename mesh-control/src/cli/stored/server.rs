//! A mesh-control that is asked for the objects, over its API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::changes::{All, Done, Entry, Listed, Refusal, Wanted};
use crate::kubernetes::{Access, Client};

/// A change waits for its turn, and for etcd.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Server {
    /// A mesh-control whose API is asked (its --api-addr), in the place of etcd: https://HOST:PORT.
    #[arg(long, value_name = "URL", conflicts_with = "etcd", requires = "server_ca")]
    server: Option<String>,
    /// The authority that vouches for that server, as PEM.
    #[arg(long, value_name = "FILE", requires = "server")]
    server_ca: Option<PathBuf>,
    /// A file with the token that the server is shown.
    #[arg(long, value_name = "FILE", requires = "server", conflicts_with_all = ["server_cert", "server_key"])]
    server_token_file: Option<PathBuf>,
    /// The certificate of the mesh that the server is shown, as PEM.
    #[arg(long, value_name = "FILE", requires_all = ["server", "server_key"])]
    server_cert: Option<PathBuf>,
    /// Its private key, as PEM.
    #[arg(long, value_name = "FILE", requires_all = ["server", "server_cert"])]
    server_key: Option<PathBuf>,
}

/// The API of a server.
pub(super) struct Api(Client);

impl Server {
    /// The API, where a server is named.
    pub(super) fn api(&self) -> anyhow::Result<Option<Api>> {
        let Some((server, ca)) = self.server.as_ref().zip(self.server_ca.as_ref()) else { return Ok(None) };
        let access = match (&self.server_token_file, self.server_cert.as_ref().zip(self.server_key.as_ref())) {
            (Some(token), _) => Access::of_files(server, ca, token),
            (None, Some((cert, key))) => Access::of_certificate(server, ca, cert, key),
            (None, None) => bail!("nobody says who asks: --server-token-file, or --server-cert and --server-key"),
        };
        Ok(Some(Api(Client::new(access.context("--server")?))))
    }
}

#[derive(Deserialize)]
struct History {
    changes: Vec<Entry>,
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

impl Api {
    /// All objects, and the names of what else is beside them.
    pub(super) async fn objects(&self) -> anyhow::Result<(All, Vec<String>)> {
        let Listed { objects, strange } = self.ask(Method::GET, "/v1/objects", Vec::new()).await?;
        let known = objects
            .into_iter()
            .map(|kept| kept.stored().map_err(|why| anyhow!("the server tells of an object that is none: {why}")));
        Ok((known.collect::<anyhow::Result<_>>()?, strange))
    }

    pub(super) async fn history(&self) -> anyhow::Result<Vec<Entry>> {
        let History { changes } = self.ask(Method::GET, "/v1/history", Vec::new()).await?;
        Ok(changes)
    }

    pub(super) async fn carry_out(&self, wanted: &Wanted) -> anyhow::Result<Done> {
        self.ask(Method::POST, "/v1/changes", serde_json::to_vec(wanted)?).await
    }

    async fn ask<A: DeserializeOwned>(&self, method: Method, path: &str, json: Vec<u8>) -> anyhow::Result<A> {
        let (status, body) = self.0.ask(method, path, json, PATIENCE).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .with_context(|| format!("{}{path} answers with something else", self.0.server()));
        }
        let said = serde_json::from_slice(&body).map_or_else(|_| String::new(), |Said { message }| message);
        Err(match status {
            StatusCode::UNPROCESSABLE_ENTITY => Refusal::Invalid(vec![said]).into(),
            StatusCode::CONFLICT => Refusal::Conflict(said).into(),
            StatusCode::NOT_FOUND => Refusal::Unknown(said).into(),
            _ => anyhow!("{}: {status}: {said}", self.0.server()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::changes::{VersionedStore, What};
    use crate::etcd::tests::one_member;
    use crate::kubernetes::tests::WEB;
    use crate::plane::Plane;
    use crate::serve::{self, Feed, TlsFiles, api};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_commands_ask_a_server_over_tls_in_the_name_of_a_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
            path
        };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert, key) = (file("tls.crt", &made.cert.pem()), file("tls.key", &made.signing_key.serialize_pem()));
        let tokens = file("tokens", "robot 0123456789abcdef\nother fedcba9876543210\n");
        let allowed = api::Allowed { writers: ["robot".to_owned()].into(), tokens: Some(tokens), ..Default::default() };
        let plane = Plane::empty();
        let served = serve::Server::new(Feed::of(&plane), Arc::new(plane.clone()), &serve::Options::default());
        let (_stop, stopped) = watch::channel(false);
        let (objects, put) = one_member().await;
        let of_etcd = objects.clone();
        let free = "127.0.0.1:0".parse().expect("an address");
        let listening = api::listen(free, TlsFiles::new(&cert, key), objects, allowed, &served, stopped).await;
        let (address, _task) = listening.expect("listening");
        let server = |token: &str| Server {
            server: Some(format!("https://localhost:{}", address.port())),
            server_ca: Some(cert.clone()),
            server_token_file: Some(file("token", token)),
            server_cert: None,
            server_key: None,
        };
        let asked_with = |token: &str| server(token).api().expect("an API").expect("a server");
        let api = asked_with("0123456789abcdef\n");
        let apply = |text: &str| {
            let what = What::Apply(BTreeMap::from([("a.yaml".to_owned(), text.to_owned())]));
            Wanted { what, message: String::new(), dry_run: false }
        };
        let done = api.carry_out(&apply(WEB)).await.expect("done");
        assert_eq!((done.number, done.objects[0].verb.as_str()), (Some(1), "created"));
        let (all, _) = api.objects().await.expect("objects");
        let [(id, stored)] = &all.iter().collect::<Vec<_>>()[..] else { panic!("{all:?}") };
        assert_eq!((id.to_string().as_str(), stored.version > 0), ("Service shop/web", true));
        assert_eq!(api.history().await.expect("a history")[0].author, "robot");
        // Whatever somebody wrote by hand, it is shown as from etcd itself, and takes nothing's place.
        for broken in ["{", "\"text\"", "[]", "null", "{}", &all.values().next().expect("an object").text] {
            put("/mesh/objects/services/shop/broken", broken);
            put("/mesh/objects/unheard/of", "{}");
            let held = of_etcd.read().await.expect("readable");
            let (shown, strange) = api.objects().await.expect("objects");
            assert_eq!((&shown, &strange), (&held.objects, &held.strange), "{broken}");
            assert_eq!((shown.len(), strange.len()), (2, 1), "{broken}");
        }
        let refused = api.carry_out(&apply(&WEB.replace("ports:", "prots:"))).await.expect_err("wrong");
        let Some(Refusal::Invalid(findings)) = refused.downcast_ref() else { panic!("{refused}") };
        assert!(findings[0].contains("a.yaml") && findings[0].contains("did you mean `ports`?"), "{findings:?}");
        let other = Server { server_ca: Some(file("other.crt", &other.cert.pem())), ..server("0123456789abcdef\n") };
        let unknown =
            other.api().expect("an API").expect("a server").objects().await.expect_err("nobody vouches for it");
        assert!(unknown.to_string().starts_with(&format!("TLS with localhost:{}", address.port())), "{unknown}");
        let stranger = asked_with("fedcba9876543210\n").objects().await.expect_err("not on the list");
        assert!(stranger.to_string().contains("other is not among those"), "{stranger}");
    }
}
