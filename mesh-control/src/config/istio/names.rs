//! Names as Istio's validation takes them (pkg/config/validation/agent): labels of DNS, and hosts with a `*` in front.

use std::collections::BTreeMap;

use crate::config::diagnostic::quoted;

/// Whether a text is one label of a DNS name: at most 63 letters, digits and `-` inside.
pub fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    text.len() <= 63 && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-') && !text.is_empty()
}

/// Whether a text is a DNS name without a wildcard; it may end in a dot.
pub fn is_domain(text: &str) -> bool {
    text.len() <= 255 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

/// What is wrong with a host: it is a DNS name whose first label may be `*` or start with it, or an IP address.
pub fn host_fault(host: &str) -> Option<String> {
    let is_wildcard = |host: &str| match host.strip_prefix('*') {
        None => is_domain(host),
        Some("") => true,
        Some(rest) => match rest.strip_prefix('.') {
            Some(domain) => is_domain(domain),
            None => is_domain(rest.strip_prefix('-').unwrap_or(rest)),
        },
    };
    let is_host = host.parse::<std::net::IpAddr>().is_ok() || is_wildcard(host);
    (!is_host).then(|| format!("{} is not a host", quoted(host)))
}

/// What is wrong with the labels of a selector, which has no wildcards: whoever writes one means more than it selects.
pub fn selector_fault(labels: &BTreeMap<String, String>) -> Option<String> {
    let (key, value) = labels.iter().find(|(key, value)| key.is_empty() || key.contains('*') || value.contains('*'))?;
    let pair = quoted(&format!("{key}: {value}"));
    Some(match key.as_str() {
        "" => format!("{pair} names no label"),
        _ => format!("{pair} has a wildcard, and labels are compared as they are"),
    })
}

/// A label of a selector that is there without a value: few workloads have such one.
pub fn empty_label(labels: &BTreeMap<String, String>) -> Option<String> {
    let (key, _) = labels.iter().find(|(_, value)| value.is_empty())?;
    Some(format!("{} has no value: only workloads whose own label is empty are selected", quoted(key)))
}

/// What is wrong with the entries of an `exportTo`, by their indexes: each is `*`, `.` or the name of a namespace, and who
/// says everybody or nobody (`~`) says nothing else (pkg/config/validation: validateExportTo).
pub fn export_faults<'a>(entries: impl Iterator<Item = &'a str> + Clone) -> Vec<(usize, String)> {
    let is_namespace = |text: &str| is_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let count = entries.clone().count();
    let fault = |(index, entry): (usize, &'a str)| match entry {
        "*" if count > 1 => Some("`*` is everybody: nothing else can be set beside it".to_owned()),
        "~" if count > 1 => Some("`~` is nobody: nothing else can be set beside it".to_owned()),
        _ if entries.clone().take(index).any(|earlier| earlier == entry) => {
            Some(format!("{} is written twice", quoted(entry)))
        }
        "*" | "." | "~" => None,
        name if is_namespace(name) => None,
        other => Some(format!("{} is none of `*`, `.` and the name of a namespace", quoted(other))),
    };
    entries.clone().enumerate().filter_map(|(index, entry)| Some((index, fault((index, entry))?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_of_dns_with_a_wildcard_in_front() {
        for host in ["a", "a.b-c.d", "A.b", "*", "*.a.b", "*a.b", "*-a.b", "a.b.", "10.0.0.1", "::1"] {
            assert_eq!(host_fault(host), None, "{host}");
        }
        let long = "a".repeat(64);
        for host in ["", ".", "a..b", "a b", "a.*.b", "a/b", "a:80", "-a", "a-", "hö.x", "a_b", "*.", "a\tb", &long] {
            assert!(host_fault(host).is_some(), "{host}");
        }
    }

    #[test]
    fn an_object_is_exported_to_everybody_to_nobody_or_to_namespaces() {
        let faults = |entries: &[&str]| -> Vec<usize> {
            export_faults(entries.iter().copied()).into_iter().map(|(index, _)| index).collect()
        };
        for fine in [&[][..], &["*"], &["."], &["~"], &["a", "b-2"], &[".", "a"]] {
            assert_eq!(faults(fine), [0; 0], "{fine:?}");
        }
        let long = "a".repeat(64);
        for bad in ["", " ", "./", "..", "a.b", "A", "a b", "a*", "-a", "**", &long] {
            assert_eq!(faults(&[bad]), [0], "{bad}");
        }
        assert_eq!(faults(&["*", "prod"]), [0]);
        assert_eq!(faults(&["prod", "~"]), [1]);
        assert_eq!(faults(&["a", "b", "a"]), [2]);
    }
}
