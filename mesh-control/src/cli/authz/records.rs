//! Where `authz suggest` and `authz preview` have their records from: the server that gathers them, or a file.

use std::io::Cursor;
use std::path::PathBuf;

use anyhow::Context;

use super::super::{runtime, status};
use crate::calls::Record;
use crate::cli::input::Lines;
use crate::explain::workload::WorkloadName;

/// Where the records are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct From {
    /// Where mesh-control serves its status, and with it the records that it has gathered.
    #[arg(
        long,
        alias = "control",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:15014",
        conflicts_with = "records"
    )]
    status_addr: String,
    /// Records in a regular file, as `/calls` of that address gives them, one JSON object a line; - is stdin.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
}

impl From {
    /// Hands out every record, or those of one workload.
    pub(super) fn each(
        &self,
        workload: Option<&WorkloadName>,
        mut take: impl FnMut(Record) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut lines = match &self.records {
            Some(file) => Lines::of(file)?,
            None => {
                let path = match workload {
                    Some(name) => status::path("/calls", &[("workload", &name.to_string())]),
                    None => "/calls".to_owned(),
                };
                let text = runtime()?.block_on(status::get(&self.status_addr, &path))?;
                Lines::read(self.status_addr.clone(), Cursor::new(text))
            }
        };
        while let Some((place, line)) = lines.next_line()? {
            let record = Record::parse(&line).with_context(|| format!("{place}: no record of calls"))?;
            let of = &record.workload;
            if workload.is_none_or(|wanted| *of.namespace == *wanted.namespace && *of.name == *wanted.name) {
                take(record)?;
            }
        }
        Ok(())
    }
}
