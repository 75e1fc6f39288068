//! Envoy's response flags: what went wrong with a request on its way, in the short codes of its access logs.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of flags. Written as Envoy writes them: `URX,UF`, and `-` for none.
///
/// ```
/// use mesh_core::response_flags::ResponseFlags;
///
/// let flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::RETRY_LIMIT_EXCEEDED;
/// assert_eq!(flags.to_string(), "URX,UF");
/// assert_eq!(ResponseFlags::NONE.to_string(), "-");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

/// The flags with their codes, in the order in which they are written: that a route's retries were not enough is known
/// before what the last one came to, and the others stand in Envoy's order.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $code:literal $bit:literal),+ $(,)?) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Position { $($name),+ }

        impl ResponseFlags {
            $($(#[$doc])* pub const $name: ResponseFlags = ResponseFlags(1 << Position::$name as u32);)+

            const CODES: &[&str] = &[$($code),+];
            const ENVOYS: &[u32] = &[$($bit),+];
        }
    };
}

flags! {
    /// All tries of the retry policy failed.
    RETRY_LIMIT_EXCEEDED = "URX" 0x8000,
    /// The cluster has no healthy endpoint.
    NO_HEALTHY_UPSTREAM = "UH" 0x2,
    /// No answer in time.
    UPSTREAM_REQUEST_TIMEOUT = "UT" 0x4,
    /// This process reset the stream, or would not serve it.
    LOCAL_RESET = "LR" 0x8,
    /// The endpoint reset the stream.
    UPSTREAM_REMOTE_RESET = "UR" 0x10,
    /// No connection to the endpoint.
    UPSTREAM_CONNECTION_FAILURE = "UF" 0x20,
    /// The connection ended under the request.
    UPSTREAM_CONNECTION_TERMINATION = "UC" 0x40,
    /// A circuit breaker was open.
    UPSTREAM_OVERFLOW = "UO" 0x80,
    /// No route.
    NO_ROUTE_FOUND = "NR" 0x100,
    /// Delayed on purpose.
    DELAY_INJECTED = "DI" 0x200,
    /// Aborted on purpose.
    FAULT_INJECTED = "FI" 0x400,
    /// Too many requests of its kind.
    RATE_LIMITED = "RL" 0x800,
    /// An external authorizer refused it.
    UNAUTHORIZED_EXTERNAL_SERVICE = "UAEX" 0x1000,
    /// A rate limit service gave no answer.
    RATE_LIMIT_SERVICE_ERROR = "RLSE" 0x2000,
    /// The caller gave it up.
    DOWNSTREAM_CONNECTION_TERMINATION = "DC" 0x4000,
    /// Nothing moved for too long.
    STREAM_IDLE_TIMEOUT = "SI" 0x10000,
    /// It was no good HTTP.
    DOWNSTREAM_PROTOCOL_ERROR = "DPE" 0x40000,
    /// It lasted longer than a stream may.
    MAX_STREAM_DURATION_REACHED = "UMSDR" 0x80000,
    /// The route's cluster does not exist.
    NO_CLUSTER_FOUND = "NC" 0x1000000,
    /// There was too much to do.
    OVERLOAD_MANAGER = "OM" 0x2000000,
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: ResponseFlags = ResponseFlags(0);

    /// Whether all flags of `other` are in it.
    pub fn contains(self, other: ResponseFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// As a number, for hashing: it means nothing outside of this process.
    #[inline]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// As Envoy's own number, in which each flag has its bit (`response.flags` of an expression).
    pub fn envoys_bits(self) -> u32 {
        let flags = Self::ENVOYS.iter().enumerate().filter(|(position, _)| self.0 & (1 << position) != 0);
        flags.fold(0, |bits, (_, bit)| bits | bit)
    }

    /// The codes, in order.
    pub fn codes(self) -> impl Iterator<Item = &'static str> {
        Self::CODES.iter().enumerate().filter(move |(position, _)| self.0 & (1 << position) != 0).map(|(_, code)| *code)
    }
}

impl BitOr for ResponseFlags {
    type Output = ResponseFlags;

    fn bitor(self, other: ResponseFlags) -> ResponseFlags {
        ResponseFlags(self.0 | other.0)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (position, code) in self.codes().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            f.write_str(code)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_flags_are_written_in_envoys_order() {
        let both = ResponseFlags::FAULT_INJECTED | ResponseFlags::DELAY_INJECTED;
        assert_eq!(both.to_string(), "DI,FI");
        let last = ResponseFlags::NO_CLUSTER_FOUND | ResponseFlags::RETRY_LIMIT_EXCEEDED;
        assert_eq!(last.to_string(), "URX,NC");
        assert!(last.contains(ResponseFlags::NO_CLUSTER_FOUND) && !both.contains(last));
    }
}
