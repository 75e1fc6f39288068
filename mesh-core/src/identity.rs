//! Who a workload is: SPIFFE IDs, to the letter of the standard (SPIFFE-ID, section 2).
//!
//! An ID is compared byte by byte, and never as a prefix of another one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Invalid;

/// The longest SPIFFE ID (SPIFFE-ID, 2.3), in bytes.
const MAX_ID: usize = 2048;

/// The longest name of a trust domain (SPIFFE-ID, 2.1), in bytes.
const MAX_TRUST_DOMAIN: usize = 255;

const SCHEME: &str = "spiffe://";

/// A trust domain: those whose certificates one authority vouches for.
///
/// ```
/// use mesh_core::identity::TrustDomain;
///
/// let domain: TrustDomain = "cluster.local".parse()?;
/// assert!("Cluster.local".parse::<TrustDomain>().is_err());
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Istio's default, `cluster.local`.
impl Default for TrustDomain {
    fn default() -> Self {
        TrustDomain(Arc::from("cluster.local"))
    }
}

impl FromStr for TrustDomain {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        check_trust_domain(name).map(|()| TrustDomain(Arc::from(name)))
    }
}

/// The ID of a workload: `spiffe://trust-domain/path`.
///
/// Istio's are `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
///
/// ```
/// use mesh_core::identity::SpiffeId;
///
/// let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
/// assert_eq!(id.trust_domain(), "cluster.local");
/// assert_eq!(id.workload(), Some(("shop", "web")));
/// assert!("spiffe://cluster.local/ns/../sa/web".parse::<SpiffeId>().is_err());
/// # Ok::<(), mesh_core::error::Invalid>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// That of a service account in a namespace, as Istio writes it.
    ///
    /// # Errors
    /// Where a name is not one that an ID can have.
    ///
    /// ```
    /// use mesh_core::identity::SpiffeId;
    ///
    /// let id = SpiffeId::of_workload(&"cluster.local".parse()?, "shop", "web")?;
    /// assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    /// # Ok::<(), mesh_core::error::Invalid>(())
    /// ```
    pub fn of_workload(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, Invalid> {
        check_segment(namespace).map_err(|invalid| invalid.at("namespace"))?;
        check_segment(service_account).map_err(|invalid| invalid.at("service account"))?;
        format!("{SCHEME}{}/ns/{namespace}/sa/{service_account}", domain.as_str()).parse()
    }

    /// That of the control plane, which no workload is given.
    pub fn of_control_plane(domain: &TrustDomain) -> Self {
        SpiffeId(Arc::from(format!("{SCHEME}{}/mesh-control", domain.as_str())))
    }

    /// The whole of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its trust domain.
    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    /// Its path, with the slash in front.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    /// Namespace and service account, where it is one of Istio's.
    pub fn workload(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().split('/').skip(1);
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return None;
        };
        Some((namespace, account))
    }

    fn parts(&self) -> (&str, &str) {
        let rest = self.0.strip_prefix(SCHEME).unwrap_or_default();
        rest.find('/').and_then(|slash| rest.split_at_checked(slash)).unwrap_or((rest, ""))
    }
}

impl FromStr for SpiffeId {
    type Err = Invalid;

    fn from_str(id: &str) -> Result<Self, Invalid> {
        if id.len() > MAX_ID {
            return Err(Invalid::new(format!("longer than {MAX_ID} bytes")));
        }
        // SPIFFE-ID, 2: parsers take the scheme in any case; X509-SVID leaves are compared as they are, in lower case.
        let rest = id.strip_prefix(SCHEME).ok_or_else(|| Invalid::new("does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| Invalid::new("has no path, so no workload has it"))?;
        check_trust_domain(domain)?;
        path.split('/').try_for_each(check_segment)?;
        Ok(SpiffeId(Arc::from(id)))
    }
}

/// SPIFFE-ID, 2.1: lower case, and neither user nor port.
fn check_trust_domain(name: &str) -> Result<(), Invalid> {
    let is_of_domain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.is_empty() {
        Err(Invalid::new("the trust domain is empty"))
    } else if name.len() > MAX_TRUST_DOMAIN {
        Err(Invalid::new(format!("the trust domain is longer than {MAX_TRUST_DOMAIN} bytes")))
    } else if !name.bytes().all(is_of_domain) {
        Err(Invalid::new("a trust domain has only a-z, 0-9, '.', '-' and '_'"))
    } else {
        Ok(())
    }
}

/// SPIFFE-ID, 2.2: no segment is empty, `.` or `..`, and nothing is escaped.
fn check_segment(segment: &str) -> Result<(), Invalid> {
    let is_of_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match segment {
        "" => Err(Invalid::new("a segment of the path is empty")),
        "." | ".." => Err(Invalid::new("a segment of the path is a dot segment")),
        _ if !segment.bytes().all(is_of_path) => {
            Err(Invalid::new("a path has only letters, digits, '.', '-' and '_' between slashes"))
        }
        _ => Ok(()),
    }
}

macro_rules! shown_as_text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}
shown_as_text!(TrustDomain SpiffeId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_id(text: &str) -> bool {
        text.parse::<SpiffeId>().is_ok()
    }

    /// Hazard M3.
    #[test]
    fn m3_an_id_is_what_the_standard_says_and_nothing_else() {
        for id in [
            "spiffe://example.org/a",
            "spiffe://1.2.3.4/service",
            "spiffe://trust_domain-1.x/A/b.c/_-.d/...",
            "spiffe://a/ns/b/sa/c",
        ] {
            assert!(is_id(id), "{id}");
        }
        for id in [
            "",
            "spiffe://",
            "spiffe:///path",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td/a/",
            "spiffe://td//a",
            "spiffe://td/a//b",
            "spiffe://td/.",
            "spiffe://td/a/../b",
            "spiffe://td/a/./b",
            "spiffe://TD/a",
            "spiffe://tD/a",
            "SPIFFE://td/a",
            "spiffe:/td/a",
            "http://td/a",
            "spiffe://user@td/a",
            "spiffe://user:password@td/a",
            "spiffe://td:80/a",
            "spiffe://[::1]/a",
            "spiffe://td/a?b",
            "spiffe://td/a?",
            "spiffe://td/a#b",
            "spiffe://td/a#",
            "spiffe://td/%41",
            "spiffe://t%64/a",
            "spiffe://td/a b",
            "spiffe://td/ä",
            "spiffe://tä/a",
            "spiffe://td/a\0",
            "spiffe://td/a\n",
            " spiffe://td/a",
        ] {
            assert!(!is_id(id), "{id:?}");
        }
    }

    #[test]
    fn m3_an_id_of_2048_bytes_is_one_and_a_longer_one_is_not() {
        let of = |length: usize| format!("spiffe://td/{}", "a".repeat(length - "spiffe://td/".len()));
        assert!(is_id(&of(MAX_ID)) && !is_id(&of(MAX_ID + 1)));
        let of = |length: usize| format!("spiffe://{}/a", "a".repeat(length));
        assert!(is_id(&of(MAX_TRUST_DOMAIN)) && !is_id(&of(MAX_TRUST_DOMAIN + 1)));
    }

    #[test]
    fn namespace_and_service_account_are_those_of_five_parts() {
        let workload = |id: &str| {
            let id: SpiffeId = id.parse().expect("an ID");
            id.workload().map(|(namespace, account)| (namespace.to_owned(), account.to_owned()))
        };
        assert_eq!(workload("spiffe://td/ns/shop/sa/web"), Some(("shop".into(), "web".into())));
        for other in ["spiffe://td/ns/shop/sa", "spiffe://td/ns/shop/sa/web/x", "spiffe://td/sa/web/ns/shop"] {
            assert_eq!(workload(other), None, "{other}");
        }
        let domain: TrustDomain = "td".parse().expect("a domain");
        for (namespace, account) in [("a/b", "c"), ("", "c"), ("a", "../c"), ("a", "c d")] {
            assert!(SpiffeId::of_workload(&domain, namespace, account).is_err(), "{namespace} {account}");
        }
    }

    /// The grammar of the standard, written down a second time.
    fn by_the_grammar(text: &str) -> bool {
        let Some((scheme, rest)) = text.split_once("://") else { return false };
        let mut parts = rest.split('/');
        let domain = parts.next().unwrap_or_default();
        let segments: Vec<&str> = parts.collect();
        let of = |text: &str, allowed: &str| !text.is_empty() && text.chars().all(|c| allowed.contains(c));
        let (small, large) = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        let others = "0123456789.-_";
        scheme == "spiffe"
            && text.len() <= 2048
            && domain.len() <= 255
            && of(domain, &format!("{small}{others}"))
            && !segments.is_empty()
            && segments
                .iter()
                .all(|segment| of(segment, &format!("{small}{large}{others}")) && *segment != "." && *segment != "..")
    }

    proptest! {
        #[test]
        fn m3_the_parser_agrees_with_the_grammar(text in "(spiffe://)?[a-zA-Z0-9._:@%?#/-]{0,24}") {
            prop_assert_eq!(is_id(&text), by_the_grammar(&text));
        }

        #[test]
        fn m3_no_text_is_a_panic(text in any::<String>()) {
            _ = is_id(&text);
        }
    }
}
