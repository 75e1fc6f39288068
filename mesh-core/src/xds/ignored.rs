//! Fields that are set in a resource and have no effect here: each is said once, and counted.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::resources::ResourceKey;

/// How many pairs of resource and field are remembered. What comes after them is neither said nor counted; a resource's
/// own status has it all the same.
const MOST: usize = 10_000;

/// The fields that were met so far.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    met: HashSet<u64>,
    hasher: RandomState,
}

impl Ignored {
    /// Those of these fields of a resource that were not met before. A field is the same wherever in a list it stands:
    /// routes move.
    pub(crate) fn news<'f>(&mut self, key: &ResourceKey, fields: &'f [String]) -> Vec<&'f str> {
        let is_new =
            |field: &&str| self.met.len() < MOST && self.met.insert(self.hasher.hash_one((key, without_places(field))));
        fields.iter().map(String::as_str).filter(is_new).collect()
    }

    /// How many pairs of resource and field were met, 10,000 at most.
    pub(crate) fn count(&self) -> u64 {
        self.met.len() as u64
    }

    /// Nothing more is said from now on.
    pub(crate) fn is_full(&self) -> bool {
        self.met.len() >= MOST
    }
}

/// `virtual_hosts[0].routes[2].cors` without the numbers; and the line that stands for many without its own.
fn without_places(field: &str) -> String {
    if field.starts_with("and ") {
        return "and more".to_owned();
    }
    let mut inside = false;
    field
        .chars()
        .filter(|c| {
            inside = if inside { *c != ']' } else { *c == '[' };
            !(inside && c.is_ascii_digit())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::ResourceType;

    #[test]
    fn a_field_of_a_resource_is_news_once_wherever_it_stands() {
        let mut ignored = Ignored::default();
        let (a, b) = (ResourceKey::new(ResourceType::Route, "a"), ResourceKey::new(ResourceType::Route, "b"));
        let fields = ["routes[0].cors", "routes[1].cors", "http2_options", "http1_options", "and 3 more"];
        let fields = fields.map(str::to_owned);
        assert_eq!(ignored.news(&a, &fields), ["routes[0].cors", "http2_options", "http1_options", "and 3 more"]);
        assert!(ignored.news(&a, &["routes[7].cors".to_owned(), "and 9 more".to_owned()]).is_empty());
        assert_eq!(ignored.news(&b, &fields).len(), 4);
        assert_eq!(ignored.count(), 8);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut ignored = Ignored::default();
        let news = |number: usize| {
            let key = ResourceKey::new(ResourceType::Cluster, number.to_string());
            ignored.news(&key, &["circuit_breakers".to_owned()]).len()
        };
        assert_eq!((0..MOST + 100).map(news).sum::<usize>(), MOST);
        assert!(ignored.is_full());
    }
}
