//! A Kubernetes cluster whose objects are read and changed.

use std::path::PathBuf;

use anyhow::Context;

use crate::changes::ClusterObjects;
use crate::cli::serve::namespace;
use crate::kubernetes::{Access, Client};
use crate::serve::kubernetes::{CA_FILE, TOKEN_FILE};

/// The cluster, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Kubernetes {
    /// The objects of a Kubernetes cluster, in the place of those of etcd. In a Pod, its service account is who asks.
    #[arg(short = 'k', long, conflicts_with_all = ["etcd", "server"])]
    kubernetes: bool,
    /// Reaches that cluster as the current context of this file says. Without it, as a Pod does: at
    /// https://kubernetes.default.svc, by --kubernetes-ca and --kubernetes-token-file.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// The authority that vouches for its API server, as PEM.
    #[arg(long, value_name = "FILE", default_value = CA_FILE)]
    kubernetes_ca: PathBuf,
    /// The token by which it is asked.
    #[arg(long, value_name = "FILE", default_value = TOKEN_FILE)]
    kubernetes_token_file: PathBuf,
    /// The namespace in which the history of that cluster is, as ConfigMaps.
    #[arg(long, value_name = "NAMESPACE", default_value = "mesh-system", value_parser = namespace)]
    history_namespace: String,
}

impl Kubernetes {
    /// Its objects, where a cluster is asked for.
    pub(super) fn objects(&self) -> anyhow::Result<Option<ClusterObjects>> {
        if !self.kubernetes {
            return Ok(None);
        }
        let access = match &self.kubeconfig {
            Some(file) => Access::of_kubeconfig(file).context("--kubeconfig")?,
            None => Access::of_pod(&self.kubernetes_ca, &self.kubernetes_token_file)?,
        };
        Ok(Some(ClusterObjects::new(Client::new(access), &self.history_namespace)))
    }
}
