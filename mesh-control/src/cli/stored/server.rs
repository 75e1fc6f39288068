//! A mesh-control that is asked for the objects, over its API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::changes::{All, Done, Entry, Id, Refusal, Stored, Wanted, unversioned};
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
struct Objects {
    objects: Vec<Value>,
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
    pub(super) async fn objects(&self) -> anyhow::Result<All> {
        let Objects { objects } = self.ask(Method::GET, "/v1/objects", Vec::new()).await?;
        let known = objects.into_iter().map(|object| {
            let id = Id::of(&object).map_err(|why| anyhow!("the server tells of an object that is none: {why}"))?;
            let (text, version) = unversioned(object);
            Ok((id, Stored { text, version }))
        });
        known.collect()
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
