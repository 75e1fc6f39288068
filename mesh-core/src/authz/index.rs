//! Which policies a request can be for at all. A policy that is for some peers, accounts, paths or namespaces, by their names or
//! by how those begin or end, is found by them; the others are always looked at.

use std::collections::{BTreeMap, HashMap};

use super::condition::Condition;
use super::seen::Seen;
use crate::model::{PeerTest, StringTest};

type ByText = HashMap<Box<str>, Vec<usize>, foldhash::fast::RandomState>;

/// The positions of policies by what they ask for, each list in order.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_peer: Texts,
    by_path: Texts,
    by_account: Texts,
    by_namespace: Texts,
    others: Vec<usize>,
}

/// What policies are found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Peer,
    Path,
    Account,
    Namespace,
}

const KEYS: [Key; 4] = [Key::Peer, Key::Path, Key::Account, Key::Namespace];

/// A text, or how it begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form<'c> {
    Whole(&'c str),
    Start(&'c str),
    End(&'c str),
}

/// Policies by the texts that they ask for.
#[derive(Debug, Default)]
struct Texts {
    whole: ByText,
    /// By their lengths: there are few.
    starts: BTreeMap<usize, ByText>,
    ends: BTreeMap<usize, ByText>,
}

impl Index {
    /// Of these policies, each by the conditions that it needs: by those that the fewest others have in common with it.
    pub(super) fn new<'c>(policies: impl Iterator<Item = [&'c Condition; 2]>) -> Self {
        let policies: Vec<Vec<(Key, Vec<Form<'c>>)>> = policies.map(choices).collect();
        let mut shared: HashMap<(Key, Form<'c>), usize> = HashMap::new();
        for (key, forms) in policies.iter().flatten() {
            forms.iter().for_each(|form| *shared.entry((*key, *form)).or_default() += 1);
        }
        let mut index = Index::default();
        for (position, choices) in policies.into_iter().enumerate() {
            let others =
                |(key, forms): &(Key, Vec<Form<'c>>)| forms.iter().filter_map(|form| shared.get(&(*key, *form))).max();
            let Some((key, forms)) = choices.into_iter().min_by_key(|choice| others(choice).copied()) else {
                index.others.push(position);
                continue;
            };
            let texts = match key {
                Key::Peer => &mut index.by_peer,
                Key::Path => &mut index.by_path,
                Key::Account => &mut index.by_account,
                Key::Namespace => &mut index.by_namespace,
            };
            forms.into_iter().for_each(|form| texts.add(form, position));
        }
        index
    }

    /// The first of the policies that a request can be for, where both it and its connection are known, that `holds`.
    pub(super) fn first(&self, seen: &Seen<'_>, holds: impl Fn(&usize) -> bool) -> Option<usize> {
        let peer = seen.connection.as_ref().and_then(|ends| ends.peer.as_ref());
        let workload = peer.and_then(|peer| peer.workload);
        let asked = [
            (&self.by_peer, peer.map(|peer| peer.id)),
            (&self.by_path, Some(seen.path())),
            (&self.by_account, workload.map(|(_, account)| account)),
            (&self.by_namespace, workload.map(|(namespace, _)| namespace)),
        ];
        let mut first = self.others.iter().copied().find(&holds);
        for (texts, text) in asked {
            let Some(text) = text else { continue };
            texts.each(text, |positions| {
                let before = |position: &usize| first.is_none_or(|first| *position < first);
                first = positions.iter().copied().take_while(before).find(&holds).or(first);
            });
        }
        first
    }
}

impl Texts {
    fn add(&mut self, form: Form<'_>, position: usize) {
        let (by, text) = match form {
            Form::Whole(text) => (&mut self.whole, text),
            Form::Start(text) => (self.starts.entry(text.len()).or_default(), text),
            Form::End(text) => (self.ends.entry(text.len()).or_default(), text),
        };
        let positions = by.entry(text.into()).or_default();
        if positions.last() != Some(&position) {
            positions.push(position);
        }
    }

    /// The lists of the policies that ask for this text.
    fn each<'i>(&'i self, text: &str, mut each: impl FnMut(&'i [usize])) {
        let mut find = |by: &'i ByText, part: Option<&str>| {
            // Most sets are found by one of the keys, and nothing is hashed for the others.
            if let Some(part) = part
                && !by.is_empty()
                && let Some(positions) = by.get(part)
            {
                each(positions);
            }
        };
        find(&self.whole, Some(text));
        self.starts.iter().for_each(|(length, by)| find(by, text.get(..*length)));
        let end = |length: &usize| text.len().checked_sub(*length).and_then(|start| text.get(start..));
        self.ends.iter().for_each(|(length, by)| find(by, end(length)));
    }
}

/// The keys that a policy can be found by, and the texts for each, by the conditions that it needs.
fn choices<'c>(needed: [&'c Condition; 2]) -> Vec<(Key, Vec<Form<'c>>)> {
    let of = |key| needed.iter().find_map(|condition| forms(condition, key)).map(|forms| (key, forms));
    KEYS.into_iter().filter_map(of).collect()
}

/// The texts without one of which a condition cannot hold; `None` where there is no such list.
fn forms(condition: &Condition, key: Key) -> Option<Vec<Form<'_>>> {
    match (condition, key) {
        (Condition::Peer(PeerTest::Id(test)), Key::Peer)
        | (Condition::Path(test), Key::Path)
        | (Condition::Peer(PeerTest::ServiceAccount(test)), Key::Account)
        | (Condition::Peer(PeerTest::Namespace(test)), Key::Namespace) => Some(vec![form(test)?]),
        (Condition::All(conditions), _) => conditions.iter().find_map(|condition| forms(condition, key)),
        (Condition::Any(conditions), _) => {
            let forms: Option<Vec<_>> = conditions.iter().map(|condition| forms(condition, key)).collect();
            Some(forms?.concat())
        }
        _ => None,
    }
}

fn form(test: &StringTest) -> Option<Form<'_>> {
    match test {
        StringTest::Exact { value, ignore_case: false } => Some(Form::Whole(value)),
        StringTest::Prefix { value, ignore_case: false } => Some(Form::Start(value)),
        StringTest::Suffix { value, ignore_case: false } => Some(Form::End(value)),
        _ => None,
    }
}
