//! `mesh-control/endpoint-subset`: how many endpoints of a service each client calls.

use std::num::NonZeroU32;
use std::str::FromStr;

use super::Pairs;
use crate::config::diagnostic::quoted;

/// So many endpoints for each client, as `size=20`; which ones differs from one client to another (gRFC A68).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointSubset {
    /// How many.
    pub size: NonZeroU32,
}

impl FromStr for EndpointSubset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = Pairs::parse(text, &["size"])?;
        let size = pairs.get("size").unwrap_or_default();
        let wrong = |_| format!("size {} is not a number from 1 on", quoted(size));
        size.parse().map(|size| EndpointSubset { size }).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_from_one_on() {
        assert_eq!("size=20".parse::<EndpointSubset>().unwrap().size.get(), 20);
        for (text, message) in [
            ("size=0", "size `0` is not a number from 1 on"),
            ("size=many", "size `many` is not a number from 1 on"),
            ("count=1", "`count` is none of size"),
        ] {
            assert_eq!(text.parse::<EndpointSubset>().unwrap_err(), message, "{text}");
        }
    }
}
