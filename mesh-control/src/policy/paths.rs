//! What servers make of the paths of their requests (Istio's `meshConfig.pathNormalization`).

use std::str::FromStr;

use mesh_core::path::{self, EscapedSlashes};

/// What servers make of the paths of requests before anything looks at them.
///
/// ```
/// use mesh_control::embedded::PathNormalization;
///
/// assert_eq!("MERGE_SLASHES".parse(), Ok(PathNormalization::MergeSlashes));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathNormalization {
    /// `Base`; and where policies guard a workload, its slashes are merged, and requests with an escaped one refused: an
    /// application may take `//admin` or `/%2Fadmin` for the `/admin` that a policy denies.
    #[default]
    Default,
    /// Paths stay as they were sent.
    None,
    /// RFC 3986: `.` and `..` are resolved, escapes of letters, digits and `-._~` decoded; and `\` is `/`.
    Base,
    /// `Base`, and slashes that follow each other are one.
    MergeSlashes,
    /// `MergeSlashes`, and `%2F` and `%5C` are slashes.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// What that means for a workload, which policies guard or not.
    pub(crate) fn of(self, is_guarded: bool) -> path::PathNormalization {
        match self {
            PathNormalization::Default if is_guarded => {
                let mut strict = path::PathNormalization::MERGE_SLASHES;
                strict.escaped_slashes = EscapedSlashes::Reject;
                strict
            }
            PathNormalization::None => path::PathNormalization::NONE,
            PathNormalization::Default | PathNormalization::Base => path::PathNormalization::BASE,
            PathNormalization::MergeSlashes => path::PathNormalization::MERGE_SLASHES,
            PathNormalization::DecodeAndMergeSlashes => path::PathNormalization::DECODE_AND_MERGE_SLASHES,
        }
    }
}

/// In Istio's words.
impl FromStr for PathNormalization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "DEFAULT" => Ok(PathNormalization::Default),
            "NONE" => Ok(PathNormalization::None),
            "BASE" => Ok(PathNormalization::Base),
            "MERGE_SLASHES" => Ok(PathNormalization::MergeSlashes),
            "DECODE_AND_MERGE_SLASHES" => Ok(PathNormalization::DecodeAndMergeSlashes),
            _ => Err("expected DEFAULT, NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES".to_owned()),
        }
    }
}
