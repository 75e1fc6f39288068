//! The commands that read and change the objects of a store: `apply`, `get`, `delete`, `diff`, `history`, `rollback`. They ask etcd
//! itself, or a mesh-control that asks it for them, or a Kubernetes cluster.

mod change;
mod cluster;
mod server;
mod show;

pub(super) use change::{Apply, Delete, Diff, Rollback, apply, delete, diff, rollback};
pub(super) use show::{Get, History, get, history};

use std::time::SystemTime;

use anyhow::{Context, bail};

use super::etcd::Etcd;
use crate::changes::{All, ClusterObjects, Done, Entry, Refusal, VersionedStore, Wanted, carry_out};
use crate::etcd::Objects;

/// The store that a command is about.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Place {
    #[command(flatten)]
    etcd: Etcd,
    #[command(flatten)]
    server: server::Server,
    #[command(flatten)]
    cluster: cluster::Kubernetes,
}

/// Whoever is asked.
enum Store {
    Etcd(Objects),
    Server(server::Api),
    Cluster(ClusterObjects),
}

/// As whom something is changed, and how.
#[derive(Clone, Copy, Debug)]
struct By<'a> {
    /// Who that is, where somebody says so.
    author: Option<&'a str>,
    /// Whether fields of a cluster's objects are taken over that somebody else has applied.
    forces: bool,
}

impl Place {
    fn store(&self) -> anyhow::Result<Store> {
        if let Some(api) = self.server.api()? {
            return Ok(Store::Server(api));
        }
        if let Some(objects) = self.cluster.objects()? {
            return Ok(Store::Cluster(objects));
        }
        let client = self.etcd.client().context("--etcd")?;
        let client = client.context("nobody says where the objects are: --etcd, --server or --kubernetes is needed")?;
        Ok(Store::Etcd(Objects::new(client, self.etcd.prefix())))
    }

    /// All objects, and the names of what else is beside them.
    async fn objects(&self) -> anyhow::Result<(All, Vec<String>)> {
        match self.store()? {
            Store::Etcd(objects) => {
                let held = objects.read().await.context("cannot read the objects in etcd")?;
                Ok((held.objects, held.strange))
            }
            Store::Server(api) => api.objects().await,
            Store::Cluster(objects) => {
                let seen = objects.read().await.context("cannot read the objects of the cluster")?;
                Ok((seen.objects, seen.strange))
            }
        }
    }

    /// The changes that are known, the newest first.
    async fn history(&self) -> anyhow::Result<Vec<Entry>> {
        match self.store()? {
            Store::Etcd(objects) => entries(&objects).await.context("cannot read the history in etcd"),
            Store::Server(api) => api.history().await,
            Store::Cluster(objects) => entries(&objects).await.context("cannot read the history in the cluster"),
        }
    }

    async fn carry_out(&self, wanted: &Wanted, by: By<'_>) -> anyhow::Result<Done> {
        let now = SystemTime::now();
        match self.store()? {
            Store::Etcd(objects) => Ok(carry_out(&objects, wanted, &self.author(by.author), now).await?),
            Store::Server(_) if by.author.is_some() => bail!("--author: a server knows itself who asks"),
            Store::Server(api) => api.carry_out(wanted).await,
            Store::Cluster(_) if by.author.is_some() => bail!("--author: a cluster knows itself who asks"),
            Store::Cluster(objects) => {
                // Nobody changes anything who only asks what would become of it.
                let author = if wanted.dry_run { String::new() } else { objects.who().await? };
                Ok(carry_out(&objects.forces(by.forces), wanted, &author, now).await?)
            }
        }
    }

    /// Who changes something, where nobody says so.
    #[expect(clippy::disallowed_methods, reason = "a command is asked for by somebody whose name is there")]
    fn author(&self, named: Option<&str>) -> String {
        let known = named.or_else(|| self.etcd.user()).map(str::to_owned);
        known.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// The changes that a store keeps, the newest first.
async fn entries<S: VersionedStore>(store: &S) -> Result<Vec<Entry>, Refusal> {
    Ok(store.history().await?.into_iter().map(|past| past.entry).collect())
}
