//! `mesh-control/coalesce`: identical requests that are under way at the same time are one.

use std::str::FromStr;

use crate::config::diagnostic::quoted;

/// Which requests: `get`, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalesce;

impl FromStr for Coalesce {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "get" => Ok(Coalesce),
            other => Err(format!("{} is not `get`: no other requests can be one", quoted(other))),
        }
    }
}
