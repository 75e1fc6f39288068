//! `mesh-control/fallback`: who answers where a service has nothing healthy.

use std::str::FromStr;

use super::Pairs;
use crate::config::diagnostic::quoted;
use crate::config::istio::names::is_label;

/// Another service, or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// `host=other.shop.svc:8080, subset=v1`.
    Service {
        /// The host, as a client would call it, with a port or without.
        target: String,
        /// The subset, empty for all of it.
        subset: String,
    },
    /// `status=503, body=closed for today`.
    Response {
        /// The status.
        status: u16,
        /// The body, to the end of the value.
        body: String,
    },
}

impl FromStr for Fallback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A body may have commas in it.
        let (text, body) = match text.split_once("body=") {
            Some((before, body)) => (before.trim_end().trim_end_matches(','), Some(body.trim())),
            None => (text, None),
        };
        if text.is_empty() && body.is_some() {
            return Err("`body` has to come last, after `status`: it goes to the end of the value".to_owned());
        }
        let pairs = Pairs::parse(text, &["host", "subset", "status"])?;
        match (pairs.get("host"), pairs.get("status")) {
            (Some(_), Some(_)) => Err("only one of `host` and `status` can be set".to_owned()),
            (None, None) => Err("either `host` or `status` has to be set".to_owned()),
            (Some(_), None) if body.is_some() => Err("`body` belongs to `status`".to_owned()),
            (Some(host), None) => {
                let subset = pairs.get("subset").unwrap_or_default();
                if !subset.is_empty() && !is_label(subset) {
                    return Err(format!("{} is not the name of a subset", quoted(subset)));
                }
                Ok(Fallback::Service { target: host.to_owned(), subset: subset.to_owned() })
            }
            (None, Some(_)) if pairs.get("subset").is_some() => Err("`subset` belongs to `host`".to_owned()),
            (None, Some(status)) => {
                let known = status.parse().ok().filter(|status| (200..600).contains(status));
                let status = known.ok_or_else(|| format!("{} is not a status from 200 to 599", quoted(status)))?;
                Ok(Fallback::Response { status, body: body.unwrap_or_default().to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_service_or_an_answer() {
        let service = |target: &str, subset: &str| Fallback::Service { target: target.into(), subset: subset.into() };
        let response = |status, body: &str| Fallback::Response { status, body: body.into() };
        for (text, expected) in [
            ("host=other.shop.svc:8080, subset=v1", service("other.shop.svc:8080", "v1")),
            ("host=other", service("other", "")),
            ("status=503", response(503, "")),
            ("status=200, body={\"items\": [], \"of\": 0}", response(200, "{\"items\": [], \"of\": 0}")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert_eq!(
            "body={\"a\":1}, status=200".parse::<Fallback>().unwrap_err(),
            "`body` has to come last, after `status`: it goes to the end of the value"
        );
        for text in [
            "",
            "body=x",
            "status=99",
            "status=600",
            "status=ok",
            "host=a, status=503",
            "host=a, body=x",
            "status=503, subset=a",
            "host=a, subset=-",
            "hots=a",
            "host=",
        ] {
            assert!(text.parse::<Fallback>().is_err(), "{text}");
        }
    }
}
