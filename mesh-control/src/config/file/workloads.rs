//! The workloads that a policy is for: by their labels, or as those of objects that it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Meta, Objects};
use crate::config::istio::security::{Selector, TargetRef, is_gateway_target, is_workload_target, selected};

/// The workloads that an object of security is for. In the root namespace, labels are those of any namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workloads {
    /// Those of its namespace with these labels; without labels, all.
    Labelled(BTreeMap<String, String>),
    /// Those of any of these.
    OfTargets(Vec<Target>),
}

/// An object that has workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A service of the policy's namespace, by its name: its endpoints.
    Service(String),
    /// A Gateway of Gateway API.
    Gateway(GatewayTarget),
}

/// A Gateway of Gateway API, by what tells its workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayTarget {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: String,
    /// The Services at whose addresses it is; without any, it is the workloads with the label of its name.
    pub addresses: Vec<String>,
}

impl Target {
    /// The name of the object.
    pub fn name(&self) -> &str {
        match self {
            Target::Service(name) => name,
            Target::Gateway(gateway) => &gateway.name,
        }
    }
}

impl Objects {
    /// Those of a policy, which has a selector or targets. Workloads with the label of a Gateway are its own even where it
    /// is elsewhere, or not there, as with Istio.
    pub fn workloads(&self, meta: &Meta, selector: Option<&Selector>, targets: &[&TargetRef]) -> Workloads {
        if targets.is_empty() {
            return Workloads::Labelled(selected(selector));
        }
        let mut all = Vec::new();
        for target in targets {
            let name = &target.name.value;
            match target.kind.as_str() {
                kind if is_workload_target(kind) => all.push(Target::Service(name.clone())),
                kind if is_gateway_target(kind) => self.add_gateways(meta, kind == "GatewayClass", name, &mut all),
                _ => {}
            }
        }
        Workloads::OfTargets(all)
    }

    fn add_gateways(&self, meta: &Meta, is_class: bool, name: &str, all: &mut Vec<Target>) {
        let of = |namespace: &Arc<str>, name: &str, addresses: Vec<String>| {
            Target::Gateway(GatewayTarget { namespace: Arc::clone(namespace), name: name.to_owned(), addresses })
        };
        if !is_class {
            all.push(of(&meta.namespace, name, Vec::new()));
        }
        for gateway in &self.kubernetes_gateways {
            let (own, spec) = (&gateway.meta, &gateway.spec);
            let is_meant = match is_class {
                true => spec.gateway_class_name.as_str() == name,
                false => own.namespace == meta.namespace && *own.name == *name,
            };
            if !is_meant {
                continue;
            }
            if is_class {
                all.push(of(&own.namespace, &own.name, Vec::new()));
            }
            let services = spec.addresses.iter().filter(|address| address.kind() == "Hostname");
            let services: Vec<String> = services.map(|address| address.value.value.clone()).collect();
            if !services.is_empty() {
                all.push(of(&own.namespace, &own.name, services));
            }
        }
    }

    /// All policies for workloads, and the objects that they name.
    pub fn targets(&self) -> impl Iterator<Item = (&Meta, Vec<&TargetRef>)> {
        let access = self.authorization_policies.iter().map(|object| (&object.meta, object.spec.targets()));
        let tokens = self.request_authentications.iter().map(|object| (&object.meta, object.spec.targets()));
        let plugins = self.wasm_plugins.iter().map(|object| (&object.meta, object.spec.targets()));
        let rules = self.request_rules.iter().map(|object| (&object.meta, object.spec.target_refs.iter().collect()));
        let rates = self.rate_limits.iter().map(|object| (&object.meta, object.spec.target_refs.iter().collect()));
        let overloads = self.overloads.iter().map(|object| (&object.meta, object.spec.target_refs.iter().collect()));
        let quotas = self.quotas.iter().map(|object| (&object.meta, object.spec.target_refs.iter().collect()));
        let telemetries = self.telemetries.iter().map(|object| (&object.meta, object.spec.targets()));
        let of_istio = access.chain(tokens).chain(plugins).chain(telemetries);
        of_istio.chain(rules).chain(rates).chain(overloads).chain(quotas)
    }
}
