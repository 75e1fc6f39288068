//! `WasmPlugin` (extensions.istio.io): a filter that workloads pass their requests through. Nothing is downloaded here: its name
//! selects a filter that the application has compiled in and registered under that name, and the rest of the object means what
//! it means in Istio (docs/filters.md).

use std::sync::Arc;

use mesh_core::model::{OnFailure, Plugin};

use super::security::{Selector, TargetRef, check_whom};
use crate::config::decode::{At, Decoder, Opaque, PortNumber, Raw, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity};

message! {
    /// The specification.
    pub struct WasmPlugin {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The object whose workloads are meant.
        target_ref: Option<TargetRef> = "targetRef",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Where a proxy gets the program.
        url: Option<Text> = "url",
        /// What the program has to be.
        sha256: Opaque = "sha256",
        /// When a proxy gets it again.
        image_pull_policy: PullPolicy = "imagePullPolicy",
        /// With which password.
        image_pull_secret: Opaque = "imagePullSecret",
        /// Who vouches for it.
        verification_key: Opaque = "verificationKey",
        /// What the filter is configured with.
        plugin_config: Option<Raw> = "pluginConfig",
        /// The name under which the filter is registered; absent means that of the object.
        plugin_name: Option<Text> = "pluginName",
        /// Where in the order of filters it comes.
        phase: Phase = "phase",
        /// What becomes of requests where it cannot run.
        fail_strategy: FailStrategy = "failStrategy",
        /// Of one phase, those with a higher one come first.
        priority: Option<i32> = "priority",
        /// What the machine that runs a program is like.
        vm_config: VmConfig = "vmConfig",
        /// Which requests pass it; absent means all.
        matches: Vec<TrafficSelector> = "match",
        /// What it looks at.
        kind: At<PluginType> = "type",
    }
    /// What the machine that runs a program is like.
    pub struct VmConfig {
        /// Its environment.
        env: Vec<Variable> = "env",
    }
    /// A variable of its environment.
    pub struct Variable {
        /// Its name.
        name: Opaque = "name",
        /// Where its value is from.
        value_from: Opaque = "valueFrom",
        /// Its value.
        value: Opaque = "value",
    }
    /// Some requests.
    pub struct TrafficSelector {
        /// Whose.
        mode: WorkloadMode = "mode",
        /// At these ports; absent means all.
        ports: Vec<PortSelector> = "ports",
    }
    /// A port.
    pub struct PortSelector {
        /// Its number.
        number: PortNumber = "number" required,
    }
}

keywords! {
    /// Where in the order of filters it comes.
    pub enum Phase {
        /// Last.
        Unspecified = "UNSPECIFIED_PHASE",
        /// Before Istio's filters that look at tokens.
        Authn = "AUTHN",
        /// Before Istio's filters that say who may do what.
        Authz = "AUTHZ",
        /// After those, and before the filters that count.
        Stats = "STATS",
    }
    /// What becomes of requests where it cannot run.
    pub enum FailStrategy {
        /// They are refused.
        Close = "FAIL_CLOSE",
        /// They pass.
        Open = "FAIL_OPEN",
        /// They are refused, and it is started anew.
        Reload = "FAIL_RELOAD",
    }
    /// When a proxy gets a program again.
    pub enum PullPolicy {
        /// As its name says.
        Unspecified = "UNSPECIFIED_POLICY",
        /// Never.
        IfNotPresent = "IfNotPresent",
        /// Whenever the object changes.
        Always = "Always",
    }
    /// Whose requests are meant.
    pub enum WorkloadMode {
        /// Nobody says it: both.
        Undefined = "UNDEFINED",
        /// Those that a workload makes.
        Client = "CLIENT",
        /// Those that it serves.
        Server = "SERVER",
        /// Both.
        Both = "CLIENT_AND_SERVER",
    }
    /// What it looks at.
    pub enum PluginType {
        /// Requests.
        Unspecified = "UNSPECIFIED_PLUGIN_TYPE",
        /// Requests.
        Http = "HTTP",
        /// Connections.
        Network = "NETWORK",
    }
}

impl WasmPlugin {
    /// The objects whose workloads are meant.
    pub fn targets(&self) -> Vec<&TargetRef> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }

    /// What is wrong with it.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), self.targets(), d);
        let mut error = |span, field: &'static str, message: &str| {
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
        };
        if self.kind.value == PluginType::Network {
            error(self.kind.span, "type", "filters here look at requests, not at connections");
        }
        if let Some(name) = self.plugin_name.as_ref().filter(|name| name.is_empty()) {
            error(name.span, "pluginName", "a filter has a name");
        }
        if let Some(config) = self.plugin_config.as_ref().filter(|config| config.0.type_name() != "a mapping") {
            error(config.0.span, "pluginConfig", "a mapping is expected");
        }
    }

    /// The name of its filter; `own` is that of the object.
    pub fn filter<'n>(&'n self, own: &'n str) -> &'n str {
        self.plugin_name.as_ref().map_or(own, |name| name.as_str())
    }

    /// The filter, as workloads are told of it; `own` is the name of the object.
    pub fn plugin(&self, own: &str) -> Plugin {
        let name = self.filter(own);
        let config = self.plugin_config.as_ref().map_or_else(|| "{}".to_owned(), |config| config.0.json().to_string());
        let mut plugin = Plugin::new(name, Arc::<str>::from(config));
        plugin.on_failure = match self.fail_strategy {
            FailStrategy::Close => OnFailure::Refuse,
            FailStrategy::Open => OnFailure::Pass,
            FailStrategy::Reload => OnFailure::Restart,
        };
        plugin
    }

    /// Whether any requests of a client, or of a server, pass it.
    pub fn is_of(&self, is_client: bool) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.mode.is_of(is_client))
    }

    /// Whether those do that are at a port with one of these numbers.
    pub fn is_for(&self, is_client: bool, numbers: &[u16]) -> bool {
        let is_at = |one: &TrafficSelector| {
            one.ports.is_empty() || one.ports.iter().any(|port| numbers.contains(&port.number.0))
        };
        self.matches.is_empty() || self.matches.iter().any(|one| one.mode.is_of(is_client) && is_at(one))
    }
}

impl WorkloadMode {
    fn is_of(self, is_client: bool) -> bool {
        match self {
            WorkloadMode::Client => is_client,
            WorkloadMode::Server => !is_client,
            WorkloadMode::Undefined | WorkloadMode::Both => true,
        }
    }
}
