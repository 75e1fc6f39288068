//! Where things are in etcd, below one prefix: objects by what Kubernetes calls them, who has changed what, and the number of the
//! last change.
//!
//! ```text
//! /mesh/objects/virtualservices.networking.istio.io/shop/reviews    an object, as JSON
//! /mesh/history/00000000000000000007                                the seventh change
//! /mesh/last                                                        7
//! /mesh/workloads/5f0c…/sidecar~10.0.0.1~web@10.0.0.1:8080          a workload that is registered at a replica
//! /mesh/tokens/3a7b…                                                a one-time token, by its hash: whom it is for
//! /mesh/used-tokens/3a7b…                                           that it was used
//! ```

use std::sync::Arc;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::changes::Id;

/// What all keys begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(Arc<str>);

impl Prefix {
    /// # Errors
    /// It is none: `/mesh`, `/teams/a/mesh`.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Prefix> {
        let text = text.trim_end_matches('/');
        let is_path = text.starts_with('/') && text.len() > 1 && !text.contains("//");
        ensure!(is_path && !text.chars().any(char::is_control), "expected a path, as /mesh");
        Ok(Prefix(text.into()))
    }

    /// What the keys of objects begin with.
    pub(super) fn objects(&self) -> Vec<u8> {
        format!("{}/objects/", self.0).into_bytes()
    }

    /// What the keys of changes begin with.
    pub(super) fn history(&self) -> Vec<u8> {
        format!("{}/history/", self.0).into_bytes()
    }

    /// The key of a change. Numbers are in order as texts, too.
    pub(super) fn change(&self, number: u64) -> Vec<u8> {
        format!("{}/history/{number:020}", self.0).into_bytes()
    }

    /// The key of the number of the last change. Whoever changes anything changes this, so that no two change at a time.
    pub(super) fn last(&self) -> Vec<u8> {
        format!("{}/last", self.0).into_bytes()
    }

    /// The key of an object.
    pub(super) fn object(&self, id: &Id) -> Vec<u8> {
        [self.objects(), id.path().into_bytes()].concat()
    }

    /// What an object is called below this prefix; `None` where it is no key of one.
    pub(super) fn path<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        below(&self.objects(), key)
    }

    /// What the keys of workloads begin with.
    pub(super) fn workloads(&self) -> Vec<u8> {
        format!("{}/workloads/", self.0).into_bytes()
    }

    /// The key of what is kept of a one-time token.
    pub(super) fn token(&self, name: &str) -> Vec<u8> {
        format!("{}/tokens/{name}", self.0).into_bytes()
    }

    /// The key that says that it was used.
    pub(super) fn used_token(&self, name: &str) -> Vec<u8> {
        format!("{}/used-tokens/{name}", self.0).into_bytes()
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is left of a key behind these bytes.
pub(super) fn below<'k>(root: &[u8], key: &'k [u8]) -> Option<&'k str> {
    std::str::from_utf8(key.strip_prefix(root)?).ok().filter(|path| !path.is_empty())
}

/// The end of the range of all keys that begin with this.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys there are.
    vec![0]
}

/// The text of an object that is called so. One that is not what its key says is wrong, and stays that object: whoever may write
/// its key alone takes nothing else away, and lets nothing go that it guards.
pub(super) fn text(path: &str, value: &[u8]) -> Arc<str> {
    let Ok(id) = Id::parse_path(path) else {
        // Of a kind that nobody knows: what it says is read as a file would be.
        return String::from_utf8_lossy(value).into();
    };
    let wrong = |why: String| -> Arc<str> {
        let version = id.api_version(id.resource.versions.first().copied().unwrap_or_default());
        let metadata = json!({"namespace": id.namespace, "name": id.name});
        json!({"apiVersion": version, "kind": id.resource.kind, "metadata": metadata, "spec": why}).to_string().into()
    };
    let object = match serde_json::from_slice::<Value>(value) {
        Ok(object) => object,
        Err(error) => return wrong(format!("the value of the key is no JSON: {error}")),
    };
    match Id::of(&object) {
        Ok(own) if own == id => object.to_string().into(),
        Ok(own) => wrong(format!("the value of the key is another object: {own}")),
        Err(why) => wrong(format!("the value of the key is no object: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::stored_name;
    use crate::config::{Source, file};

    #[test]
    fn a_range_has_all_that_begins_with_its_prefix_and_nothing_else() {
        assert_eq!(end_of(b"/mesh/objects/"), b"/mesh/objects0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), [0]);
        let prefix = Prefix::parse("/mesh/").expect("a prefix");
        assert_eq!(prefix.path(b"/mesh/objects/services/shop/web"), Some("services/shop/web"));
        for other in [&b"/mesh/history/1"[..], b"/meshes/objects/a", b"/mesh/objects/", b"/mesh/objects/\xff"] {
            assert_eq!(prefix.path(other), None);
        }
        for wrong in ["", "/", "mesh", "//mesh", "/a//b", "/a\n"] {
            assert!(Prefix::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_value_that_is_not_what_its_key_says_is_that_object_and_wrong() {
        let path = "authorizationpolicies.security.istio.io/shop/deny";
        let policy = |name: &str| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"namespace": "shop", "name": name}, "spec": {"action": "DENY", "rules": [{}]},
            })
        };
        let read = |value: &str| {
            let text = text(path, value.as_bytes());
            file::read(Source { name: stored_name(path), text })
        };
        assert!(!read(&policy("deny").to_string()).rejected);
        for wrong in ["", "{", "[]", "{}", "null", &policy("other").to_string()] {
            let file = read(wrong);
            assert!(file.rejected, "{wrong}");
            let [item] = &file.items[..] else { panic!("{wrong}: {:?}", file.items) };
            assert_eq!(item.meta().id().to_string(), "AuthorizationPolicy shop/deny", "{wrong}");
        }
    }
}
