//! `mesh-control authz suggest`: a policy from what was seen.

use std::process::ExitCode;

use anyhow::anyhow;

use super::records::From;
use crate::calls::{of_workload, suggest};
use crate::explain::workload::WorkloadName;

/// Writes the AuthorizationPolicy that lets in the calls to a workload that were seen, and nothing else.
///
/// Workloads of the library record who called what: identity, method, the form of the path, and verdict; neither bodies nor
/// queries nor headers. What has to be left out stands in the policy's comments and on stderr. The exit code is 0 if the policy
/// lets in all that was and nothing that was refused, and else 3.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Whose server was called: its namespace, and the value of its label `app` (or what Istio puts before that).
    #[arg(long, value_name = "NAMESPACE/NAME")]
    workload: WorkloadName,
    /// Its service account, where several say that they are this workload.
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Lets everybody do what callers without an identity did, who cannot be named.
    #[arg(long)]
    allow_plaintext: bool,
    #[command(flatten)]
    from: From,
}

/// Something that was let in would not be.
pub(super) const REFUSES: u8 = 3;

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let WorkloadName { namespace, name } = &args.workload;
    let mut records = Vec::new();
    args.from.each(Some(&args.workload), |record| {
        records.push(record);
        Ok(())
    })?;
    let records = of_workload(records, namespace, name, args.service_account.as_deref()).map_err(|why| anyhow!(why))?;
    let suggestion = suggest(&records, args.allow_plaintext).map_err(|why| anyhow!(why))?;
    super::super::say(&suggestion.yaml)?;
    for left_out in &suggestion.left_out {
        eprintln!("mesh-control: not let in, though it was: {left_out}");
    }
    for let_in in &suggestion.let_in {
        eprintln!("mesh-control: let in, though it was refused, by what is in no record: {let_in}");
    }
    let is_the_same = suggestion.left_out.is_empty() && suggestion.let_in.is_empty();
    Ok(if is_the_same { ExitCode::SUCCESS } else { ExitCode::from(REFUSES) })
}
