//! Filters that applications have compiled in, and rules on requests: which are for a workload, as a server and as a client, and
//! in which order.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::model::{ExtProc, OnFailure, Plugin};

use super::telemetry::Side;
use super::workloads::{is_for, is_one_of};
use crate::config::diagnostic::Span;
use crate::config::extensions::filter_schema::FilterSchema;
use crate::config::extensions::rate_limit::WhoseRequests;
use crate::config::extensions::request_rules::RequestRules;
use crate::config::file::{Governs, Meta, Object, Objects, Refused, Workloads, is_namespace};
use crate::config::istio::wasm_plugin::{Phase, WasmPlugin};
use crate::config::node::{Node, Value};
use crate::config::support::ObjectKind;
use crate::registry::Services;

/// All filters and rules.
#[derive(Debug, Default)]
pub struct Filters {
    /// Calls that something guards that is wrong are made all the same.
    pub is_lenient: bool,
    root: Arc<str>,
    /// In the order in which requests pass them.
    entries: Vec<Entry>,
    schemas: Schemas,
}

/// What the configurations of filters may be. One of a namespace is for its plugins, and one of the root namespace for those of all
/// that have none of their own.
#[derive(Debug, Default)]
pub struct Schemas {
    root: Arc<str>,
    /// By namespace and filter: the first of two.
    all: BTreeMap<(Arc<str>, String), Arc<Object<FilterSchema>>>,
    /// Those that are wrong, and why; the filter is `None` where nobody can tell it.
    wrong: BTreeMap<(Arc<str>, Option<String>), Arc<str>>,
}

impl Schemas {
    fn new(objects: &Objects, root: &Arc<str>) -> Schemas {
        let mut all = BTreeMap::new();
        for object in &objects.filter_schemas {
            let key = (Arc::clone(&object.meta.namespace), object.spec.filter.clone());
            all.entry(key).or_insert_with(|| Arc::clone(object));
        }
        let wrong = objects.refused.iter().filter_map(|refused| match &refused.governs {
            Governs::Plugins(filter) => Some(((Arc::clone(&refused.meta.namespace), filter.clone()), refused.answer())),
            _ => None,
        });
        Schemas { root: Arc::clone(root), all, wrong: wrong.collect() }
    }

    /// Why nobody can tell what a filter takes, where its schema is wrong, for plugins of a namespace.
    pub fn wrong(&self, namespace: &Arc<str>, filter: &str) -> Option<&Arc<str>> {
        let own = |of: &Arc<str>| self.all.contains_key(&(Arc::clone(of), filter.to_owned()));
        let named = |of: &Arc<str>| self.wrong.get(&(Arc::clone(of), Some(filter.to_owned())));
        let unnamed = |of: &Arc<str>| self.wrong.get(&(Arc::clone(of), None)).filter(|_| !own(of));
        let of = |of: &Arc<str>| named(of).or_else(|| unnamed(of));
        of(namespace).or_else(|| of(&self.root).filter(|_| !own(namespace)))
    }

    /// That of a filter, for plugins of a namespace.
    pub fn of(&self, namespace: &Arc<str>, filter: &str) -> Option<&Arc<Object<FilterSchema>>> {
        let of = |namespace: &Arc<str>| self.all.get(&(Arc::clone(namespace), filter.to_owned()));
        of(namespace).or_else(|| of(&self.root))
    }

    /// The namespace whose schemas are for all.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The filters that plugins of a namespace have one of.
    pub fn filters(&self, namespace: &str) -> impl Iterator<Item = &str> {
        let is_meant = move |of: &str| of == namespace || *of == *self.root;
        self.all.keys().filter(move |(of, _)| is_meant(of)).map(|(_, filter)| filter.as_str())
    }

    /// What a plugin says that its filter does not take: where, by the path below its configuration, and why.
    pub fn faults(&self, object: &Object<WasmPlugin>) -> Vec<(String, (Span, String))> {
        let name = object.spec.filter(&object.meta.name);
        if let Some(wrong) = self.wrong(&object.meta.namespace, name) {
            return vec![(
                String::new(),
                (object.spec.span, format!("nobody can tell what its filter takes: {wrong}")),
            )];
        }
        let Some(schema) = self.of(&object.meta.namespace, name) else { return Vec::new() };
        // Without one, a filter gets an empty one.
        let empty = || Node { span: object.spec.span, value: Value::Map(Vec::new()) };
        let config = object.spec.plugin_config.as_ref().map_or_else(empty, |config| config.0.clone());
        schema.spec.schema.faults(&config)
    }
}

#[derive(Debug)]
struct Entry {
    said: Said,
    workloads: Workloads,
    filter: FilterInForce,
}

/// The object that says one.
#[derive(Debug)]
enum Said {
    Plugin(Arc<Object<WasmPlugin>>),
    Rules(Arc<Object<RequestRules>>),
    /// One of calls that is wrong.
    Refused(Arc<Refused>),
}

/// Where in the order of all filters a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before anybody looks at tokens.
    BeforeTokens,
    /// Before anybody says who may do what.
    BeforePolicies,
    /// Right after that: rules.
    Rules,
    /// Before what counts and limits requests.
    BeforeMetrics,
    /// Right before the application, or the endpoint.
    Last,
}

/// One in force, and the object that says it.
#[derive(Clone, Debug)]
pub struct FilterInForce {
    /// The object.
    pub id: Arc<str>,
    /// Where it is.
    pub stage: Stage,
    /// What it is.
    pub kind: FilterKind,
}

/// What requests pass.
#[derive(Clone, Debug)]
pub enum FilterKind {
    /// A filter of the application's.
    Plugin(Arc<Plugin>),
    /// An external processor.
    Processor(Arc<ExtProc>),
    /// Rules, as the data plane reads them.
    Rules {
        /// Them.
        rules: Arc<serde_json::Value>,
        /// Whether one refuses requests.
        refuse: bool,
    },
}

/// A side of a workload, and where its requests are: the numbers of its port on a server or a gateway, the port of the host on a
/// client.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// Which side.
    pub side: Side,
    /// The numbers of the port.
    pub ports: &'a [u16],
    /// Whom a client calls; empty on others.
    pub host: &'a str,
}

impl Filters {
    /// Those of these objects.
    pub fn new(objects: &Objects, root: &Arc<str>) -> Filters {
        let schemas = Schemas::new(objects, root);
        let plugins = objects.wasm_plugins.iter().map(|object| Entry::of_plugin(object, objects, &schemas));
        let rules = objects.request_rules.iter().map(|object| Entry::of_rules(object, objects));
        let refused = objects.refused.iter().filter_map(Entry::of_refused);
        let mut entries: Vec<Entry> = plugins.chain(rules).chain(refused).collect();
        // Istio: push_context.go, extension.go.
        entries.sort_by(|a, b| {
            let order = |entry: &Entry| (entry.filter.stage, Reverse(entry.priority()));
            let name = |entry: &Entry| (entry.meta().name.clone(), entry.meta().namespace.clone());
            order(a).cmp(&order(b)).then_with(|| name(a).cmp(&name(b)))
        });
        Filters { is_lenient: false, root: Arc::clone(root), entries, schemas }
    }

    /// What the configurations of filters may be.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// The objects that say a filter.
    pub fn plugins(&self) -> impl Iterator<Item = &Arc<Object<WasmPlugin>>> {
        self.entries.iter().filter_map(|entry| match &entry.said {
            Said::Plugin(object) => Some(object),
            Said::Rules(_) | Said::Refused(_) => None,
        })
    }

    /// The objects that say rules.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Object<RequestRules>>> {
        self.entries.iter().filter_map(|entry| match &entry.said {
            Said::Plugin(_) | Said::Refused(_) => None,
            Said::Rules(object) => Some(object),
        })
    }

    /// All objects that say one.
    pub fn objects(&self) -> impl Iterator<Item = &Meta> {
        self.entries.iter().map(Entry::meta)
    }

    /// The places of those that are for a side of a workload. In the root namespace, labels are those of any namespace.
    pub fn of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        services: &Services,
        side: Side,
    ) -> Arc<[usize]> {
        let is_meant = |entry: &Entry| {
            let (own, whom) = (&*entry.meta().namespace, &entry.workloads);
            let is_refused = matches!(entry.said, Said::Refused(_));
            // Of a wrong one, the namespace may be what is wrong.
            let is_anywhere = is_refused && !is_namespace(own);
            entry.is_of(side)
                && !(is_refused && self.is_lenient)
                && (is_for(whom, (own, &self.root), namespace, labels, services)
                    || (is_anywhere && is_one_of(whom, namespace, labels, services)))
        };
        self.entries.iter().enumerate().filter(|(_, entry)| is_meant(entry)).map(|(place, _)| place).collect()
    }

    /// Those at these places that requests pass there.
    pub fn at(&self, places: &[usize], passing: Passing<'_>) -> Vec<FilterInForce> {
        let entries = places.iter().filter_map(|place| self.entries.get(*place));
        entries.filter(|entry| entry.is_passed(passing)).map(|entry| entry.filter.clone()).collect()
    }
}

impl Entry {
    fn of_plugin(object: &Arc<Object<WasmPlugin>>, objects: &Objects, schemas: &Schemas) -> Entry {
        let stage = match object.spec.phase {
            Phase::Authn => Stage::BeforeTokens,
            Phase::Authz => Stage::BeforePolicies,
            Phase::Stats => Stage::BeforeMetrics,
            Phase::Unspecified => Stage::Last,
        };
        let mut plugin = object.spec.plugin(&object.meta.name);
        if !schemas.faults(object).is_empty() {
            // No filter has this name: it cannot run, and is treated as one that cannot.
            let why = match schemas.wrong(&object.meta.namespace, &plugin.name) {
                Some(_) => "whose FilterSchema is wrong",
                None => "whose configuration its FilterSchema refuses",
            };
            plugin.name = format!("{}, {why}", plugin.name).into();
            plugin.config = "{}".into();
        }
        let kind = FilterKind::Plugin(Arc::new(plugin));
        Entry {
            said: Said::Plugin(Arc::clone(object)),
            workloads: objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets()),
            filter: FilterInForce { id: object.meta.id(), stage, kind },
        }
    }

    fn of_rules(object: &Arc<Object<RequestRules>>, objects: &Objects) -> Entry {
        let targets: Vec<_> = object.spec.target_refs.iter().collect();
        let kind = match &object.spec.processor {
            Some(processor) => FilterKind::Processor(Arc::clone(processor)),
            None => FilterKind::Rules { rules: Arc::clone(&object.spec.rules), refuse: object.spec.refuses },
        };
        Entry {
            said: Said::Rules(Arc::clone(object)),
            workloads: objects.workloads(&object.meta, object.spec.selector.as_ref(), &targets),
            filter: FilterInForce { id: object.meta.id(), stage: Stage::Rules, kind },
        }
    }

    /// No filter has its answer for a name: calls that pass it fail, as with one that is not registered.
    fn of_refused(object: &Arc<Refused>) -> Option<Entry> {
        let (workloads, _) = object.guards_calls()?;
        let mut plugin = Plugin::new(object.answer(), "{}");
        plugin.on_failure = OnFailure::Refuse;
        let kind = FilterKind::Plugin(Arc::new(plugin));
        Some(Entry {
            said: Said::Refused(Arc::clone(object)),
            workloads: workloads.clone(),
            filter: FilterInForce { id: object.id(), stage: Stage::BeforeTokens, kind },
        })
    }

    fn meta(&self) -> &Meta {
        match &self.said {
            Said::Refused(object) => &object.meta,
            Said::Plugin(object) => &object.meta,
            Said::Rules(object) => &object.meta,
        }
    }

    fn priority(&self) -> i32 {
        match &self.said {
            Said::Plugin(object) => object.spec.priority.unwrap_or(0),
            Said::Rules(_) | Said::Refused(_) => 0,
        }
    }

    fn is_of(&self, side: Side) -> bool {
        match &self.said {
            Said::Plugin(object) => object.spec.is_of(side.is_client()),
            Said::Rules(object) => (object.spec.mode == WhoseRequests::Client) == (side == Side::Client),
            Said::Refused(object) => match side {
                Side::Client => true,
                // Servers do not serve at all where one is for them.
                Side::Server => false,
                Side::Gateway => is_plugin_of_calls(object),
            },
        }
    }

    fn is_passed(&self, Passing { side, ports, host }: Passing<'_>) -> bool {
        let is_to = |hosts: &[String]| hosts.is_empty() || hosts.iter().any(|meant| **meant == *host);
        match &self.said {
            Said::Plugin(object) => object.spec.is_for(side.is_client(), ports),
            Said::Rules(object) => self.is_of(side) && is_to(&object.spec.hosts),
            // What comes to a gateway is for any host.
            Said::Refused(_) if side == Side::Gateway => self.is_of(side),
            Said::Refused(object) => self.is_of(side) && object.guards_calls().is_some_and(|(_, hosts)| is_to(hosts)),
        }
    }
}

/// Whether it is a wrong WasmPlugin that says `CLIENT` alone, which is for gateways, too. One for both sides keeps them from serving.
fn is_plugin_of_calls(refused: &Refused) -> bool {
    refused.meta.kind == ObjectKind::WasmPlugin && matches!(refused.governs, Governs::Calls { .. })
}

/// Why a server that cannot have its requests pass any of these must not serve, if it must not.
pub fn not_run(filters: &[FilterInForce]) -> Option<String> {
    filters.iter().find_map(|filter| match &filter.kind {
        FilterKind::Plugin(plugin) if plugin.on_failure == OnFailure::Pass => None,
        FilterKind::Plugin(plugin) => {
            Some(format!("{}: no filter of {:?} is run here (failStrategy)", filter.id, plugin.name))
        }
        FilterKind::Processor(processor) => {
            (!processor.fail_open).then(|| format!("{}: its processor is not asked here", filter.id))
        }
        FilterKind::Rules { refuse, .. } => refuse.then(|| format!("{}: its rules are not known here", filter.id)),
    })
}
