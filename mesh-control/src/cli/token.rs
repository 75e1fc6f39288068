//! `mesh-control token`: how a workload gets its first certificate.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Subcommand;
use mesh_core::identity::SpiffeId;
use zeroize::Zeroizing;

use super::etcd::Etcd;
use crate::ca::{NewToken, TOKEN_TTL, Tokens};
use crate::etcd::SharedTokens;

/// Works with one-time tokens, by which workloads without a certificate prove who they are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Create(Create),
}

/// Prints a new token. Whoever has it gets one certificate of the identity, from the server with this --state-dir, or from any of
/// those with this --etcd; put it into a bootstrap by `mesh-control bootstrap --token`.
#[derive(Clone, Debug, clap::Args)]
struct Create {
    /// Whom the certificate is for: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
    #[arg(long, value_name = "ID")]
    identity: SpiffeId,
    /// How long the token is good for: 10 minutes unless set, a day at most.
    #[arg(long, value_name = "SECONDS", value_parser = super::serve::seconds)]
    ttl: Option<Duration>,
    /// The --state-dir of the server, which alone takes the token. With --etcd, all replicas take it, and it is not kept here.
    #[arg(long, value_name = "DIR", required_unless_present = "etcd")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    etcd: Etcd,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Create(args) = &args.command;
    let (ttl, now) = (args.ttl.unwrap_or(TOKEN_TTL), SystemTime::now());
    let token = match (args.etcd.client().context("--etcd")?, &args.state_dir) {
        (Some(client), _) => {
            let NewToken { token, name, record } = NewToken::make(&args.identity, ttl, now)?;
            let tokens = SharedTokens::new(client, args.etcd.prefix());
            super::runtime()?.block_on(tokens.keep(&name, &record, ttl)).context("cannot keep the token in etcd")?;
            token
        }
        (None, Some(dir)) => of_state_dir(args, dir, ttl, now)?,
        (None, None) => bail!("nobody says which server is to take the token: --state-dir or --etcd is needed"),
    };
    Ok(super::say(&format!("{}\n", *token))?)
}

fn of_state_dir(args: &Create, dir: &Path, ttl: Duration, now: SystemTime) -> anyhow::Result<Zeroizing<String>> {
    let tokens = Tokens::of(dir);
    if tokens.trust_domain()?.is_none() {
        eprintln!(
            "mesh-control: no server has used {} yet, so that nobody knows whether it will be of the trust domain {}",
            dir.display(),
            args.identity.trust_domain()
        );
    }
    tokens.create(&args.identity, ttl, now)
}
