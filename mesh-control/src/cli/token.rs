//! `mesh-control token`: how a workload gets its first certificate.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use mesh_core::identity::SpiffeId;

use crate::ca::{TOKEN_TTL, Tokens};

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

/// Prints a new token. Whoever has it gets one certificate of the identity, from the server with this --state-dir; put it
/// into a bootstrap by `mesh-control bootstrap --token`.
#[derive(Clone, Debug, clap::Args)]
struct Create {
    /// Whom the certificate is for: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
    #[arg(long, value_name = "ID")]
    identity: SpiffeId,
    /// How long the token is good for: 10 minutes unless set, a day at most.
    #[arg(long, value_name = "SECONDS", value_parser = super::serve::seconds)]
    ttl: Option<Duration>,
    /// The --state-dir of the server.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Create(args) = &args.command;
    let tokens = Tokens::of(&args.state_dir);
    if tokens.trust_domain()?.is_none() {
        eprintln!(
            "mesh-control: no server has used {} yet, so that nobody knows whether it will be of the trust domain {}",
            args.state_dir.display(),
            args.identity.trust_domain()
        );
    }
    let token = tokens.create(&args.identity, args.ttl.unwrap_or(TOKEN_TTL), SystemTime::now())?;
    Ok(super::say(&format!("{}\n", *token))?)
}
