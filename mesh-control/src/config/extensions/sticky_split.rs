//! `mesh-control/sticky-split`: what a weighted split goes by, so that a user stays where they are.

use std::str::FromStr;

use http::HeaderName;

use super::Pairs;
use crate::config::diagnostic::quoted;

/// What tells users apart: `header=x-user` or `cookie=session`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickySplit {
    /// The value of a header, its name in lower case.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
}

impl FromStr for StickySplit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = Pairs::parse(text, &["header", "cookie"])?;
        match (pairs.get("header"), pairs.get("cookie")) {
            (Some(_), Some(_)) => Err("only one of `header` and `cookie` can be set".to_owned()),
            // Names of cookies are tokens, like those of headers (RFC 6265, 4.1.1), but for their case.
            (None, Some(name)) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(_) => Ok(StickySplit::Cookie(name.to_owned())),
                Err(_) => Err(format!("{} is not the name of a cookie", quoted(name))),
            },
            (header, None) => {
                let name = header.unwrap_or_default();
                match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(name) => Ok(StickySplit::Header(name.as_str().to_owned())),
                    Err(_) => Err(format!("{} is not the name of a header", quoted(name))),
                }
            }
        }
    }
}
