//! Who is asked: a workload by its name, and what the configuration knows of it. One that it does not know is most likely
//! mistyped, and no policy would be for it.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail};

use super::{Workload, pair};
use crate::config::spelling::nearest;
use crate::plane::{Plane, Snapshot};

/// How many names are told where none is like the one that was given.
const FEW: usize = 5;

impl Workload {
    /// That of a command line: WORKLOAD/NAMESPACE, and labels in place of those that the configuration knows.
    pub(super) fn named(to: &str, labels: &[String], plane: &Plane) -> anyhow::Result<Workload> {
        let (name, namespace) = to
            .split_once('/')
            .filter(|(name, namespace)| !name.is_empty() && !namespace.is_empty())
            .ok_or_else(|| anyhow!("--to {to}: WORKLOAD/NAMESPACE is needed"))?;
        let given: BTreeMap<_, _> = labels.iter().map(|text| pair(text, '=')).collect::<Result<_, _>>()?;
        let labels = match given.is_empty() {
            true => plane.snapshot().labels_of(namespace, name),
            false => Some(given),
        };
        match labels {
            Some(labels) => Ok(Workload { namespace: namespace.to_owned(), labels }),
            None => bail!("--to {to}: {}", unknown(name, namespace, &plane.snapshot())),
        }
    }
}

/// That nobody is called so, and who may be meant.
fn unknown(name: &str, namespace: &str, snapshot: &Snapshot) -> String {
    let known: Vec<String> =
        snapshot.workloads().into_iter().map(|(name, namespace)| format!("{name}/{namespace}")).collect();
    let swapped = format!("{namespace}/{name}");
    let meant = match known.contains(&swapped) {
        true => format!("{swapped} is known: the workload comes before its namespace"),
        false => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            match nearest(&format!("{name}/{namespace}"), &known) {
                Some(near) => format!("did you mean {near}?"),
                None if known.is_empty() => "no workload is known".to_owned(),
                None => {
                    let more = if known.len() > FEW { ", ..." } else { "" };
                    format!("known are {}{more}", known.iter().take(FEW).copied().collect::<Vec<_>>().join(", "))
                }
            }
        }
    };
    format!(
        "no object of the configuration names this workload, and {meant}; its labels can be given by --label KEY=VALUE"
    )
}

/// That no object is in a namespace: it is most likely mistyped.
pub(super) fn foreign(namespace: &str, plane: &Plane) -> Option<String> {
    let known = plane.snapshot().namespaces();
    if known.contains(namespace) {
        return None;
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let meant = nearest(namespace, &known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    Some(format!("no object of the configuration is in the namespace {namespace:?}{meant}"))
}
