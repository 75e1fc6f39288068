//! What the entries of members say, what is believed of those of other replicas, and what is to be written: the decisions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::{SpiffeId, TrustDomain};
use serde_json::{Map, Value, json};

use crate::catalog::TLS_MODE;
use crate::config::support::ObjectKind;
use crate::kubernetes::kinds::{self, Resource};
use crate::kubernetes::known::Name;
use crate::period::{comparable, date};
use crate::registry::Workload;
use crate::registry::told::{Told, elsewhere};

pub(super) const WORKLOAD_ENTRY: Resource = kinds::object(ObjectKind::WorkloadEntry);
/// What entries of ours are known by.
const LABEL: &str = "policy.mesh-control/registered";
/// Istio's annotations: of which group the workload is, with which control plane it is registered, and since when.
const GROUP: &str = "istio.io/autoRegistrationGroup";
const CONTROLLER: &str = "istio.io/workloadController";
const CONNECTED: &str = "istio.io/connectedAt";
/// What the workloads at the address have told, by their keys, and when they were seen to be registered last.
const TOLD: &str = "policy.mesh-control/workloads";
const SEEN: &str = "policy.mesh-control/seen-at";
/// What the names of replicas begin with.
pub(super) const REPLICA: &str = "mesh-control-";

/// How often an entry says that it is still so, and after which time it counts no more, in seconds. Each is a write.
const SEEN_AGAIN: u64 = 120;
const STALE: u64 = 360;
/// The longest name of an object.
const LONGEST: usize = 253;

/// Whether an object is an entry of ours.
pub(in crate::kubernetes) fn is_member(object: &Value) -> bool {
    object.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL)).is_some()
}

/// What an entry is to say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) group: Arc<str>,
    spec: Value,
    told: String,
}

impl Entry {
    /// What it says, however that is written.
    pub(super) fn words(&self) -> Value {
        json!([self.group, self.spec, self.told])
    }

    /// Makes an object say it in the name of this replica, and leaves whatever else others have written there.
    pub(super) fn say(&self, version: &str, object: &mut Value, replica: &str, now: u64) {
        let is_own = annotation(object, CONTROLLER) == replica;
        let since = annotation(object, CONNECTED).to_owned();
        let connected = if is_own && !since.is_empty() { since } else { date(now) };
        let of = |value: &Value, key: &str| value.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        let mut metadata = of(&*object, "metadata");
        let before = Value::from(metadata.clone());
        let (mut labels, mut annotations) = (of(&before, "labels"), of(&before, "annotations"));
        labels.insert(LABEL.to_owned(), "true".into());
        for (key, value) in [
            (GROUP, self.group.to_string()),
            (CONTROLLER, replica.to_owned()),
            (CONNECTED, connected),
            (TOLD, self.told.clone()),
            (SEEN, date(now)),
        ] {
            annotations.insert(key.to_owned(), value.into());
        }
        metadata.insert("labels".to_owned(), labels.into());
        metadata.insert("annotations".to_owned(), annotations.into());
        let version = format!("{}/{version}", WORKLOAD_ENTRY.group);
        if let Some(object) = object.as_object_mut() {
            object.insert("apiVersion".to_owned(), version.into());
            object.insert("kind".to_owned(), WORKLOAD_ENTRY.kind.into());
            object.insert("metadata".to_owned(), metadata.into());
            object.insert("spec".to_owned(), self.spec.clone());
        }
    }
}

/// Members at one address: their group, one of them as its group places it, and what each says.
type Together<'m> = (&'m Arc<str>, &'m Workload, BTreeMap<&'m str, Told>);

/// The entries of these members: each as it registered, and with what its group adds.
pub(super) fn wanted(members: &[(Arc<Workload>, Arc<Workload>)]) -> BTreeMap<Name, Entry> {
    let mut at: BTreeMap<Name, Together<'_>> = BTreeMap::new();
    for (own, placed) in members {
        let Some(group) = &own.group else { continue };
        let Some(name) = entry_name(group, own.address.ip()) else { continue };
        let (_, _, told) =
            at.entry((own.namespace.clone(), name.into())).or_insert_with(|| (group, &**placed, BTreeMap::new()));
        told.insert(&own.key, Told::of(own));
    }
    let entries = at.into_iter().map(|(name, (group, placed, told))| {
        // Plain data, which is always JSON.
        let told = serde_json::to_string(&told).unwrap_or_default();
        (name, Entry { group: group.clone(), spec: spec(placed), told })
    });
    entries.collect()
}

/// The same under the names that this replica has for them. Where another one has other workloads at an address, what is of these is
/// beside its entry: two that wrote over each other would not come to an end.
pub(super) fn beside(
    wanted: BTreeMap<Name, Entry>,
    there: &BTreeMap<Name, Value>,
    own: &str,
    now: u64,
) -> BTreeMap<Name, Entry> {
    let id = own.strip_prefix(REPLICA).unwrap_or(own);
    let places = wanted.into_iter().map(|(name, entry)| {
        let beside: Name = (name.0.clone(), format!("{}-{id}", name.1).into());
        let is_beside = match there.get(&name) {
            Some(object) => is_of_others(object, &entry, own, now),
            None => there.contains_key(&beside),
        };
        (if is_beside && beside.1.len() <= LONGEST { beside } else { name }, entry)
    });
    places.collect()
}

/// Whether an entry is one that another replica sees to, of none of these workloads.
fn is_of_others(object: &Value, entry: &Entry, own: &str, now: u64) -> bool {
    let told = |text: &str| serde_json::from_str::<BTreeMap<String, Value>>(text).unwrap_or_default();
    let (theirs, these) = (told(annotation(object, TOLD)), told(&entry.told));
    let is_apart = !theirs.is_empty() && theirs.keys().all(|key| !these.contains_key(key));
    is_apart && annotation(object, CONTROLLER) != own && !is_older(object, STALE, now)
}

/// Istio's name of an entry; `None` where it is too long for one. Where the end of the group's name may be taken for the beginning of
/// an address of IPv6, that is written in full: `vms-2001` at `db8::1` is not `vms` at `2001:db8::1`. So is one with dots, which another
/// one of IPv4 may end with.
fn entry_name(group: &str, address: IpAddr) -> Option<String> {
    let is_part = |text: &str| text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_open = group.rsplit_once('-').is_some_and(|(_, last)| is_part(last));
    let mut name = match address {
        IpAddr::V6(address) if is_open || address.to_ipv4_mapped().is_some() => {
            address.segments().iter().fold(group.to_owned(), |name, part| format!("{name}-{part:04x}"))
        }
        _ => format!("{group}-{address}").replace(':', "-"),
    };
    if name.ends_with('-') {
        // `fe80::`
        name.push('0');
    }
    (name.len() <= LONGEST).then_some(name)
}

fn spec(workload: &Workload) -> Value {
    let mut labels: BTreeMap<&str, &str> =
        workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if workload.identity.is_some() {
        labels.insert(TLS_MODE, "istio");
    }
    let mut spec = Map::new();
    spec.insert("address".to_owned(), workload.address.ip().to_string().into());
    spec.insert("labels".to_owned(), json!(labels));
    if let Some((_, account)) = workload.identity.as_ref().and_then(SpiffeId::workload) {
        spec.insert("serviceAccount".to_owned(), account.into());
    }
    if workload.weight > 1 {
        spec.insert("weight".to_owned(), workload.weight.into());
    }
    if workload.locality.iter().any(|part| !part.is_empty()) {
        spec.insert("locality".to_owned(), workload.locality.join("/").trim_end_matches('/').into());
    }
    if !workload.ports.is_empty() {
        let ports: BTreeMap<&str, u16> = workload.ports.iter().map(|(name, port)| (name.as_str(), *port)).collect();
        spec.insert("ports".to_owned(), json!(ports));
    }
    spec.into()
}

fn annotation<'v>(object: &'v Value, key: &str) -> &'v str {
    let annotations = object.pointer("/metadata/annotations");
    annotations.and_then(|all| all.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Whether nobody has seen to an entry for that long.
fn is_older(object: &Value, seconds: u64, now: u64) -> bool {
    let seen = comparable(annotation(object, SEEN));
    seen.is_none() || seen < comparable(&date(now.saturating_sub(seconds)))
}

/// The workloads that other replicas have registered, by their keys here, and what is told that does not count.
pub(super) fn heard(
    there: &BTreeMap<Name, Value>,
    own: &str,
    now: u64,
    domain: &TrustDomain,
) -> (BTreeMap<Arc<str>, Workload>, Vec<String>) {
    let (mut all, mut doubts) = (BTreeMap::new(), Vec::new());
    for ((namespace, name), object) in there {
        let replica = annotation(object, CONTROLLER);
        // A key that is made of it must not be one that a workload has which registers here.
        let is_replica =
            replica.strip_prefix(REPLICA).is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !is_replica || replica == own || is_older(object, STALE, now) {
            continue;
        }
        let told: BTreeMap<Arc<str>, Told> = match serde_json::from_str(annotation(object, TOLD)) {
            Ok(told) => told,
            Err(why) => {
                doubts.push(format!(
                    "WorkloadEntry {namespace}/{name}: what another replica tells cannot be read: {why}"
                ));
                continue;
            }
        };
        for (registered, told) in told {
            // Nobody takes the place of a workload of another namespace, whatever he calls his own.
            let key: Arc<str> = elsewhere(&registered, &format!("{replica} in {namespace}")).into();
            match told.workload(&key).and_then(|workload| believed(workload, namespace, object, domain)) {
                Ok(workload) => _ = all.insert(key, workload),
                Err(why) => {
                    doubts.push(format!("WorkloadEntry {namespace}/{name}: a workload of it does not count: {why}"));
                }
            }
        }
    }
    (all, doubts)
}

/// A workload of an entry, if it is one that whoever may write the entry may speak of.
fn believed(workload: Workload, namespace: &str, object: &Value, domain: &TrustDomain) -> Result<Workload, String> {
    let address = object.pointer("/spec/address").and_then(Value::as_str).unwrap_or_default();
    let is_of_namespace =
        |id: &SpiffeId| id.trust_domain() == domain.as_str() && id.workload().is_some_and(|(of, _)| of == namespace);
    if *workload.namespace != *namespace || !workload.identity.as_ref().is_none_or(is_of_namespace) {
        return Err("it is of another namespace".to_owned());
    }
    if workload.group.as_deref() != Some(annotation(object, GROUP)) {
        return Err("it is of another group".to_owned());
    }
    if workload.address.ip().to_string() != address || workload.is_gateway {
        return Err("it is not at the address of the entry, or is a gateway".to_owned());
    }
    Ok(workload)
}

/// Whether this replica has seen to an entry not long ago: if it is to be put again, it says something else by now.
pub(super) fn is_seen_to(object: &Value, own: &str, now: u64) -> bool {
    annotation(object, CONTROLLER) == own && !is_older(object, SEEN_AGAIN, now)
}

/// Something to be written.
#[derive(Debug, PartialEq)]
pub(super) enum Step<'a> {
    Make(&'a Name, &'a Entry),
    Put(&'a Name, &'a Entry, &'a Value),
    Remove(&'a Name, &'a Value),
}

/// What is to be written so that these are the entries of this replica, of those that are there.
pub(super) fn steps<'a>(
    wanted: &'a BTreeMap<Name, Entry>,
    there: &'a BTreeMap<Name, Value>,
    own: &str,
    now: u64,
) -> Vec<Step<'a>> {
    let is_own = |object: &Value| annotation(object, CONTROLLER) == own;
    let is_so = |entry: &Entry, object: &Value| {
        is_seen_to(object, own, now)
            && annotation(object, GROUP) == &*entry.group
            && annotation(object, TOLD) == entry.told
            && object.get("spec") == Some(&entry.spec)
    };
    let needed = wanted.iter().filter_map(|(name, entry)| match there.get(name) {
        None => Some(Step::Make(name, entry)),
        Some(object) => (!is_so(entry, object)).then_some(Step::Put(name, entry, object)),
    });
    let is_over = |object: &Value| is_own(object) || is_older(object, STALE, now);
    let over = there.iter().filter(|(name, object)| !wanted.contains_key(*name) && is_over(object));
    needed.chain(over.map(|(name, object)| Step::Remove(name, object))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const OWN: &str = "mesh-control-1";
    const OTHER: &str = "mesh-control-2";
    const NOW: u64 = 1_800_000_000;

    fn member(key: &str, address: &str) -> (Arc<Workload>, Arc<Workload>) {
        let mut own = Workload::new(key, "shop", "vm", address.parse().expect("an address"));
        (own.group, own.weight) = (Some("vms".into()), 3);
        own.identity = Some("spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id"));
        own.ports = vec![("http".to_owned(), 8080)];
        let placed = own.clone().labelled([("app", "web")]);
        (Arc::new(own), Arc::new(placed))
    }

    fn name(name: &str) -> Name {
        ("shop".into(), name.into())
    }

    /// An entry as a replica has written it at a time.
    fn written(entry: &Entry, replica: &str, at: u64) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"}});
        entry.say("v1", &mut object, replica, at);
        object
    }

    #[test]
    fn an_entry_says_what_istios_does_and_its_workloads_are_to_others_what_they_are_here() {
        let members = [member("vm@10.0.0.7:8080", "10.0.0.7:8080"), member("vm@10.0.0.7:9090", "10.0.0.7:9090")];
        let wanted = wanted(&members);
        assert_eq!(wanted.keys().collect::<Vec<_>>(), [&name("vms-10.0.0.7")], "one for an address");
        let entry = &wanted[&name("vms-10.0.0.7")];
        let spec = json!({
            "address": "10.0.0.7", "labels": {"app": "web", "security.istio.io/tlsMode": "istio"},
            "serviceAccount": "web", "weight": 3, "ports": {"http": 8080},
        });
        assert_eq!(entry.spec, spec);
        let object = written(entry, OTHER, NOW);
        let said = [GROUP, CONTROLLER, CONNECTED].map(|key| annotation(&object, key));
        assert_eq!(said, ["vms", OTHER, "2027-01-15T08:00:00Z"]);
        assert!(is_member(&object));

        let there = BTreeMap::from([(name("vms-10.0.0.7"), object.clone())]);
        let domain = TrustDomain::default();
        let (all, doubts) = heard(&there, OWN, NOW, &domain);
        assert!(doubts.is_empty(), "{doubts:?}");
        let expected: Vec<Workload> = members.iter().map(|(own, _)| Workload::clone(own)).collect();
        let all: Vec<Workload> = all.into_values().collect();
        assert_eq!(all.len(), 2);
        for (there, here) in all.iter().zip(&expected) {
            assert!(there.key.ends_with(" at replica mesh-control-2 in shop"), "{}", there.key);
            assert_eq!(*there, Workload { key: there.key.clone(), ..here.clone() });
        }
        assert!(heard(&there, OTHER, NOW, &domain).0.is_empty(), "it is its own");
        assert!(heard(&there, OWN, NOW + STALE + 1, &domain).0.is_empty(), "nobody has seen to it");
    }

    #[test]
    fn of_an_entry_no_more_is_believed_than_who_may_write_it_may_say() {
        let wanted = wanted(&[member("vm@10.0.0.7:8080", "10.0.0.7:8080")]);
        let entry = &wanted[&name("vms-10.0.0.7")];
        let domain = TrustDomain::default();
        let count = |namespace: &str, entry: &Entry, replica: &str| {
            let there = BTreeMap::from([((namespace.into(), "a".into()), written(entry, replica, NOW))]);
            heard(&there, OWN, NOW, &domain).0.len()
        };
        assert_eq!(count("shop", entry, OTHER), 1);
        assert_eq!(count("pay", entry, OTHER), 0);
        assert_eq!(count("shop", entry, "mesh-control-x@10.0.0.7:8080"), 0);
        let told = |from: &str, to: &str| Entry { told: entry.told.replace(from, to), ..entry.clone() };
        for other in [
            told("\"is_gateway\":false", "\"is_gateway\":true"),
            told("10.0.0.7:8080\",\"ports", "10.0.0.8:8080\",\"ports"),
            told("/ns/shop/", "/ns/pay/"),
            told("cluster.local", "elsewhere"),
            told("\"group\":\"vms\"", "\"group\":\"others\""),
            told("{", "["),
        ] {
            assert_ne!(other.told, entry.told);
            assert_eq!(count("shop", &other, OTHER), 0, "{}", other.told);
        }
    }

    #[test]
    fn workloads_of_one_address_that_are_at_two_replicas_have_an_entry_each() {
        let first = wanted(&[member("vm@10.0.0.7:8080", "10.0.0.7:8080")]);
        let second = wanted(&[member("vm@10.0.0.7:9090", "10.0.0.7:9090")]);
        let (usual, other) = (name("vms-10.0.0.7"), name("vms-10.0.0.7-1"));
        let names = |wanted: &BTreeMap<Name, Entry>, there: (&Name, &Value), now: u64| -> Vec<Name> {
            let there = BTreeMap::from([(there.0.clone(), there.1.clone())]);
            beside(wanted.clone(), &there, OWN, now).into_keys().collect()
        };
        let others = written(&first[&usual], OTHER, NOW);
        assert_eq!(names(&second, (&usual, &others), NOW), std::slice::from_ref(&other));
        let own = written(&second[&usual], OWN, NOW);
        assert_eq!(names(&second, (&other, &own), NOW), std::slice::from_ref(&other), "it stays where it is");
        assert_eq!(names(&second, (&usual, &own), NOW), std::slice::from_ref(&usual));
        // It came here from there, or nobody sees to it any more.
        assert_eq!(names(&first, (&usual, &others), NOW), std::slice::from_ref(&usual));
        assert_eq!(names(&second, (&usual, &others), NOW + STALE + 1), [usual]);
    }

    #[test]
    fn nobody_takes_the_place_of_a_workload_of_another_namespace() {
        let told = |namespace: &str| {
            let (own, placed) = member("vm@10.0.0.7:8080", "10.0.0.7:8080");
            let of = |workload: &Workload| {
                Arc::new(Workload { namespace: namespace.into(), identity: None, ..workload.clone() })
            };
            let wanted = wanted(&[(of(&own), of(&placed))]);
            let (name, entry) = wanted.first_key_value().expect("an entry");
            (name.clone(), written(entry, OTHER, NOW))
        };
        let there = BTreeMap::from([told("shop"), told("zoo")]);
        let (all, doubts) = heard(&there, OWN, NOW, &TrustDomain::default());
        assert!(doubts.is_empty(), "{doubts:?}");
        let namespaces: Vec<&str> = all.values().map(|workload| &*workload.namespace).collect();
        assert_eq!(namespaces, ["shop", "zoo"]);
    }

    #[test]
    fn a_replica_writes_its_own_entries_and_takes_away_those_and_what_nobody_sees_to() {
        let wanted = wanted(&[member("vm@10.0.0.7:8080", "10.0.0.7:8080")]);
        let (own, other) = (name("vms-10.0.0.7"), name("vms-10.0.0.9"));
        let entry = &wanted[&own];
        let with = |all: &[(&Name, Value)]| -> BTreeMap<Name, Value> {
            all.iter().map(|(name, object)| ((*name).clone(), object.clone())).collect()
        };
        assert_eq!(steps(&wanted, &BTreeMap::new(), OWN, NOW), [Step::Make(&own, entry)]);
        let there = with(&[(&own, written(entry, OWN, NOW)), (&other, written(entry, OTHER, NOW))]);
        assert!(steps(&wanted, &there, OWN, NOW + 1).is_empty(), "another's is its own affair");
        assert_eq!(steps(&wanted, &there, OWN, NOW + SEEN_AGAIN + 1), [Step::Put(&own, entry, &there[&own])]);
        let stale = [Step::Put(&own, entry, &there[&own]), Step::Remove(&other, &there[&other])];
        assert_eq!(steps(&wanted, &there, OWN, NOW + STALE + 1), stale);
        // It came here from another replica, and goes.
        let there = with(&[(&own, written(entry, OTHER, NOW))]);
        assert_eq!(steps(&wanted, &there, OWN, NOW), [Step::Put(&own, entry, &there[&own])]);
        let (none, there) = (BTreeMap::new(), with(&[(&own, written(entry, OWN, NOW))]));
        assert_eq!(steps(&none, &there, OWN, NOW), [Step::Remove(&own, &there[&own])]);
        assert!(steps(&none, &there, OTHER, NOW).is_empty());
    }

    #[test]
    fn a_name_is_one_that_an_object_can_have() {
        let of = |group: &str, address: &str| entry_name(group, address.parse().expect("an address"));
        assert_eq!(of("vms", "10.0.0.7").as_deref(), Some("vms-10.0.0.7"));
        assert_eq!(of("vms", "fe80::1").as_deref(), Some("vms-fe80--1"));
        assert_eq!(of("vms", "fe80::").as_deref(), Some("vms-fe80--0"));
        assert_eq!(of(&"g".repeat(250), "10.0.0.7"), None);
        assert_eq!(of("vms-v2", "2001:db8::1").as_deref(), Some("vms-v2-2001-db8--1"));
    }

    #[test]
    fn entries_of_two_groups_never_have_one_name() {
        let full = "vms-2001-0db8-0000-0000-0000-0000-0000-0001";
        let of = |group: &str, address: &str| entry_name(group, address.parse().expect("an address"));
        assert_eq!(of("vms-2001", "db8::1").as_deref(), Some("vms-2001-0db8-0000-0000-0000-0000-0000-0000-0001"));
        let groups = ["vms", "vms-2001", "vms-2001-db8", "vms-2001-db8--1", "vms---ffff", "vms-10.0.0.7", full];
        let addresses = [
            "2001:db8::1",
            "db8::1",
            "1::",
            "::1",
            "::",
            "0:1::",
            "::ffff:10.0.0.7",
            "::10.0.0.7",
            "10.0.0.7",
            "1:2:3:4:5:6:7:8",
        ];
        let names = groups.iter().flat_map(|group| addresses.iter().map(|address| of(group, address)));
        let (all, different): (Vec<_>, BTreeSet<_>) = names.map(|name| (name.clone(), name)).unzip();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }
}
