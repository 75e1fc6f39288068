//! The options by which commands reach etcd.

use std::path::PathBuf;

use crate::etcd::{Access, Client, Prefix};

/// Where etcd is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Etcd {
    /// The members of an etcd (3.4 or later) that holds the objects, as a list with commas: https://HOST:PORT. When one of them does not answer, the next
    /// one is asked. http:// is for addresses of this machine alone.
    #[arg(long = "etcd", value_name = "URL", value_delimiter = ',', id = "etcd")]
    members: Vec<String>,
    /// What the keys in etcd begin with.
    #[arg(long, value_name = "PATH", default_value = "/mesh", value_parser = Prefix::parse)]
    etcd_prefix: Prefix,
    /// The authority that vouches for the members of etcd, as PEM; those of the system unless set.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// The certificate that etcd is shown, as PEM.
    #[arg(long, value_name = "FILE", requires_all = ["etcd", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// Its private key, as PEM.
    #[arg(long, value_name = "FILE", requires_all = ["etcd", "etcd_cert"])]
    etcd_key: Option<PathBuf>,
    /// A user of etcd, where its authentication is on.
    #[arg(long, value_name = "NAME", requires_all = ["etcd", "etcd_password_file"])]
    etcd_user: Option<String>,
    /// The file with that user's password.
    #[arg(long, value_name = "FILE", requires_all = ["etcd", "etcd_user"])]
    etcd_password_file: Option<PathBuf>,
}

impl Etcd {
    /// A client, where there is an etcd.
    pub(super) fn client(&self) -> anyhow::Result<Option<Client>> {
        if self.members.is_empty() {
            return Ok(None);
        }
        let access = Access::new(&self.members)?
            .ca(self.etcd_ca.clone())
            .identity(self.etcd_cert.clone().zip(self.etcd_key.clone()))
            .user(self.etcd_user.clone().zip(self.etcd_password_file.clone()));
        Ok(Some(Client::new(access)))
    }

    /// What its keys begin with.
    pub(super) fn prefix(&self) -> Prefix {
        self.etcd_prefix.clone()
    }

    /// Which user of etcd asks.
    pub(super) fn user(&self) -> Option<&str> {
        self.etcd_user.as_deref()
    }

    pub(super) fn is_named(&self) -> bool {
        !self.members.is_empty()
    }
}
