//! A workload that a command is about: by its name, and what the configuration knows of it. One that it does not know is most
//! likely mistyped, and nothing would be for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{anyhow, bail};
use serde::Deserialize;

use crate::config::spelling::nearest;
use crate::plane::{Plane, Snapshot};

/// How many names are told where none is like the one that was given.
const FEW: usize = 5;

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// The two sides of `KEY=VALUE` or `NAME:VALUE`.
pub(crate) fn pair(text: &str, by: char) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once(by).ok_or_else(|| anyhow!("{text}: no {by} in it"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Workload {
    /// That of a command line, with its name: NAMESPACE/NAME, and labels in place of those that the configuration knows. The other
    /// way round is understood where the configuration knows a workload by that only.
    pub(crate) fn named(
        option: &str,
        to: &str,
        labels: &[String],
        plane: &Plane,
    ) -> anyhow::Result<(String, Workload)> {
        let is_name = |part: &str| !part.is_empty() && !part.contains('/');
        let (first, second) = to
            .split_once('/')
            .filter(|(first, second)| is_name(first) && is_name(second))
            .ok_or_else(|| anyhow!("{option} {to}: NAMESPACE/NAME is needed"))?;
        let given: BTreeMap<_, _> = labels.iter().map(|text| pair(text, '=')).collect::<Result<_, _>>()?;
        let snapshot = plane.snapshot();
        let (straight, turned) = match given.is_empty() {
            true => (snapshot.labels_of(first, second), snapshot.labels_of(second, first)),
            false => {
                let known = snapshot.namespaces();
                let is_turned = !known.contains(first) && known.contains(second);
                ((!is_turned).then(|| given.clone()), is_turned.then_some(given))
            }
        };
        let (namespace, name, labels) = match (straight, turned) {
            (Some(labels), turned) => {
                if turned.is_some() {
                    eprintln!(
                        "mesh-control: {option} {to} is {second} in namespace {first}; there is {first} in namespace {second}, too"
                    );
                }
                (first, second, labels)
            }
            (None, Some(labels)) => {
                eprintln!("mesh-control: {option} {to} is taken for {second}/{first}: the namespace comes first");
                (second, first, labels)
            }
            (None, None) => bail!("{option} {to}: {}", unknown(second, first, &snapshot)),
        };
        Ok((name.to_owned(), Workload { namespace: namespace.to_owned(), labels }))
    }
}

/// That nobody is called so, and who may be meant.
fn unknown(name: &str, namespace: &str, snapshot: &Snapshot) -> String {
    let known: Vec<String> =
        snapshot.workloads().into_iter().map(|(name, namespace)| format!("{namespace}/{name}")).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let near =
        nearest(&format!("{namespace}/{name}"), &known).or_else(|| nearest(&format!("{name}/{namespace}"), &known));
    let meant = match near {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "no workload is known".to_owned(),
        None => {
            let more = if known.len() > FEW { ", ..." } else { "" };
            format!("known are {}{more}", known.iter().take(FEW).copied().collect::<Vec<_>>().join(", "))
        }
    };
    format!(
        "no object of the configuration names this workload, and {meant}; its labels can be given by --label KEY=VALUE"
    )
}

/// That no object is in a namespace, of those that objects are in: it is most likely mistyped.
pub(crate) fn foreign(namespace: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.contains(namespace) {
        return None;
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let meant = nearest(namespace, &known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    Some(format!("no object of the configuration is in the namespace {namespace:?}{meant}"))
}
