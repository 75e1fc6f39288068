//! A workload that a command is about: by its name, and what the configuration knows of it. One that it does not know is most
//! likely mistyped, and nothing would be for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{anyhow, bail};
use serde::Deserialize;

use crate::config::file::is_namespace;
use crate::config::spelling::nearest;
use crate::plane::Snapshot;

/// How many names are told where none is like the one that was given.
const FEW: usize = 5;

/// How a workload is called: NAMESPACE/NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for WorkloadName {
    type Err = String;

    fn from_str(text: &str) -> Result<WorkloadName, String> {
        let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let is_name = |name: &str| (1..=253).contains(&name.len()) && is_plain(name);
        match text.split_once('/') {
            Some((namespace, name)) if is_namespace(namespace) && is_name(name) => {
                Ok(WorkloadName { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Err(format!("NAMESPACE/NAME is needed, and {namespace:?} is no namespace"))
            }
            _ => Err("NAMESPACE/NAME is needed".to_owned()),
        }
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A workload that somebody asks about.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) workload: Workload,
    /// What whoever asks should know of it.
    pub(crate) note: Option<String>,
}

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
    /// That of a name, with labels in place of those that the configuration knows. The other way round is understood where the
    /// configuration knows a workload by that only. `option` is where the name was given.
    pub(crate) fn named(
        option: &str,
        to: &WorkloadName,
        labels: &[String],
        snapshot: &Snapshot,
    ) -> anyhow::Result<Named> {
        match Workload::known(option, to, labels, snapshot)? {
            Some(named) => Ok(named),
            None => bail!("{option} {to}: {}; its labels can be given by --label KEY=VALUE", unknown(to, snapshot)),
        }
    }

    /// The same of who only calls others: nobody has to describe those.
    pub(crate) fn caller(
        option: &str,
        from: &WorkloadName,
        labels: &[String],
        snapshot: &Snapshot,
    ) -> anyhow::Result<Named> {
        let unlabelled = || Named {
            name: from.name.clone(),
            workload: Workload { namespace: from.namespace.clone(), labels: BTreeMap::new() },
            note: Some(format!("{option} {from}: {}; taken for a workload without labels", unknown(from, snapshot))),
        };
        let named = Workload::known(option, from, labels, snapshot)?.unwrap_or_else(unlabelled);
        let Workload { namespace, labels } = &named.workload;
        if let Some(gateway) = snapshot.gateway_of(namespace, &named.name, labels) {
            // What it does by the routes of its Gateways is not what a client of its labels would.
            bail!(
                "{option} {from} is a gateway ({gateway}), which calls nobody of itself: `mesh-control explain --gateway` says what \
                 it does with a request, and `mesh-control trace` follows a live one through it"
            );
        }
        Ok(named)
    }

    /// The gateway of a name: that of a Gateway, or of a workload that Gateways select; with labels, the one that has them.
    pub(crate) fn gateway(
        option: &str,
        of: &WorkloadName,
        labels: &[String],
        snapshot: &Snapshot,
    ) -> anyhow::Result<Workload> {
        let WorkloadName { namespace, name } = of;
        let given: BTreeMap<_, _> = labels.iter().map(|text| pair(text, '=')).collect::<Result<_, _>>()?;
        if !given.is_empty() {
            if snapshot.gateway_of(namespace, name, &given).is_none() {
                bail!("{option} {of}: no Gateway selects these labels in namespace {namespace}");
            }
            return Ok(Workload { namespace: namespace.clone(), labels: given });
        }
        match snapshot.gateway_named(namespace, name) {
            Some((namespace, labels)) => Ok(Workload { namespace: namespace.to_string(), labels }),
            None => bail!(
                "{option} {of}: no Gateway is called so, and none selects a workload of this name; its labels can be given by \
                 --label KEY=VALUE"
            ),
        }
    }

    fn known(option: &str, to: &WorkloadName, labels: &[String], snapshot: &Snapshot) -> anyhow::Result<Option<Named>> {
        let (first, second) = (to.namespace.as_str(), to.name.as_str());
        let given: BTreeMap<_, _> = labels.iter().map(|text| pair(text, '=')).collect::<Result<_, _>>()?;
        let (straight, turned) = match given.is_empty() {
            true => (snapshot.labels_of(first, second), snapshot.labels_of(second, first)),
            false => {
                let known = snapshot.namespaces();
                let is_turned = !known.contains(first) && known.contains(second);
                ((!is_turned).then(|| given.clone()), is_turned.then_some(given))
            }
        };
        let named = |namespace: &str, name: &str, labels, note| Named {
            name: name.to_owned(),
            workload: Workload { namespace: namespace.to_owned(), labels },
            note,
        };
        Ok(match (straight, turned) {
            (Some(labels), turned) => {
                let both = || {
                    format!(
                        "{option} {to} is {second} in namespace {first}; there is {first} in namespace {second}, too"
                    )
                };
                Some(named(first, second, labels, turned.map(|_| both())))
            }
            (None, Some(labels)) => {
                let note = format!("{option} {to} is taken for {second}/{first}: the namespace comes first");
                Some(named(second, first, labels, Some(note)))
            }
            (None, None) => None,
        })
    }
}

/// That nobody is called so, and who may be meant.
fn unknown(of: &WorkloadName, snapshot: &Snapshot) -> String {
    let WorkloadName { namespace, name } = of;
    let known: Vec<String> =
        snapshot.workloads().into_iter().map(|(name, namespace)| format!("{namespace}/{name}")).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let near = nearest(&of.to_string(), &known).or_else(|| nearest(&format!("{name}/{namespace}"), &known));
    let meant = match near {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "no workload is known".to_owned(),
        None => {
            let more = if known.len() > FEW { ", ..." } else { "" };
            format!("known are {}{more}", known.iter().take(FEW).copied().collect::<Vec<_>>().join(", "))
        }
    };
    format!("no object of the configuration names this workload, and {meant}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_called_by_its_namespace_and_its_name() {
        for (text, expected) in [
            ("shop/web", ""),
            ("shop/Web_1.2", ""),
            ("web", "NAMESPACE/NAME is needed"),
            ("a/b/c", "NAMESPACE/NAME is needed"),
            ("/web", "NAMESPACE/NAME is needed"),
            ("shop/", "NAMESPACE/NAME is needed"),
            ("shop/web&target=b", "NAMESPACE/NAME is needed"),
            ("SHOP/web", "is no namespace"),
        ] {
            let why = text.parse::<WorkloadName>().map_or_else(
                |why| why,
                |name| {
                    assert_eq!(name.to_string(), text);
                    String::new()
                },
            );
            assert!(why.contains(expected) && why.is_empty() == expected.is_empty(), "{text}: {why}");
        }
    }
}
