//! BackendTLSPolicies of Gateway API: which Services are called by TLS, and whose certificate they have to have. It stands where a
//! DestinationRule says nothing of TLS. A policy that cannot be honoured closes its Services, rather than have them called in plaintext.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::gateway_api::{Condition, Fault, INVALID, TargetStatus, by_age, own_service};
use super::traffic::{ForeignTls, Roots};
use crate::config::diagnostic::Origin;
use crate::config::file::{Governs, Object, Objects, Refused};
use crate::config::gateway_api::LocalReference;
use crate::config::gateway_api::backend_tls_policy::{BackendTlsPolicy, PolicyTarget};
use crate::config::istio::secret::Authorities;
use crate::config::spelling::is_like;
use crate::config::support::{ObjectKind, SYSTEM};
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::host::service_host;
use crate::registry::{Service, Services};

/// Those that are in force.
#[derive(Debug, Default)]
pub struct BackendTls {
    by_host: HashMap<String, Vec<OfService>>,
    /// The policies, those that come first before the others.
    pub policies: Vec<Arc<Object<BackendTlsPolicy>>>,
    /// What became of each policy at each of its targets.
    pub statuses: Vec<TargetStatus>,
}

/// How a Service, or a port of it, is called.
#[derive(Debug)]
struct OfService {
    /// The name of the port; all that have none of their own where nothing is written.
    section: Option<String>,
    /// The policy.
    id: Arc<str>,
    /// Where that is written.
    origin: Origin,
    /// How; or why nobody can.
    says: Result<ForeignTls, Arc<str>>,
}

/// What policies refer to: the authorities of ConfigMaps, by namespace and name.
struct Lookup<'a>(BTreeMap<(&'a str, &'a str), &'a Authorities>);

impl BackendTls {
    /// Those of these objects, and what is to be said about them.
    pub fn new(objects: &Objects, services: &Services) -> (BackendTls, Vec<Diagnostic>) {
        let sorted = by_age(&objects.backend_tls_policies);
        let authorities = objects.authorities.iter();
        let lookup = Lookup(authorities.map(|one| ((&*one.meta.namespace, &*one.meta.name), &one.spec)).collect());
        let (mut all, mut closed, mut found) = (BackendTls::default(), Vec::new(), Vec::new());
        for object in &sorted {
            let says = lookup.compile(object);
            for (index, target) in object.spec.target_refs.iter().enumerate() {
                let fault = all.add(object, target, &says, services).err();
                if let Some((host, message)) = missed(object, target, services) {
                    let says = Err(format!("{} cannot be honoured: {message}", object.meta.id()).into());
                    let origin = object.meta.origin.at(object.spec.span);
                    closed.push((host, OfService { section: None, id: object.meta.id(), origin, says }));
                }
                all.report(object, index, (fault, &says), services, &mut found);
            }
        }
        // What another policy says of a port, or of the whole Service, is TLS, too.
        for (host, of_service) in closed {
            all.by_host.entry(host).or_default().push(of_service);
        }
        all.policies = sorted;
        for object in objects.refused.iter().filter(|object| object.meta.kind == ObjectKind::BackendTlsPolicy) {
            all.close(object, services);
        }
        (all, found)
    }

    /// Adds what a policy says of a target, unless there is none, or an older policy has it.
    fn add(
        &mut self,
        object: &Object<BackendTlsPolicy>,
        target: &PolicyTarget,
        says: &Result<ForeignTls, Fault>,
        services: &Services,
    ) -> Result<(), Fault> {
        let own = &*object.meta.namespace;
        let named = format!("{} {own}/{}", target.kind.value, target.name.value);
        if !target.is_service() {
            return Err(("TargetNotFound", format!("{named} is no Service")));
        }
        let host = service_host(&target.name.value, own);
        let service = own_service(services, own, &target.name.value).map(|(_, service)| service);
        let is_there = service.is_some_and(|service| {
            target.section().is_none_or(|section| service.ports.iter().any(|port| &*port.name == section))
        });
        if !is_there {
            return Err(("TargetNotFound", format!("there is no {named}, or no port of it of this name")));
        }
        let section = target.section().map(str::to_owned);
        let there = self.by_host.entry(host).or_default();
        if let Some(older) = there.iter().find(|older| older.section == section) {
            return Err(("Conflicted", format!("{} is for the same target, and comes first", older.id)));
        }
        let id = object.meta.id();
        let says = says.clone().map_err(|(_, message)| format!("{id} cannot be honoured: {message}").into());
        there.push(OfService { section, id, origin: object.meta.origin.at(object.spec.span), says });
        Ok(())
    }

    /// What a wrong policy may have said nobody knows.
    fn close(&mut self, object: &Refused, services: &Services) {
        let own = &*object.meta.namespace;
        let hosts: Vec<String> = match &object.governs {
            Governs::Hosts { hosts, .. } => hosts.iter().map(|name| service_host(name, own)).collect(),
            _ => {
                let all = services.iter().map(|(_, service)| service);
                // One of no known namespace may be of any.
                let is_own = |service: &&Arc<Service>| own.is_empty() || *service.namespace == *own;
                let own = all.filter(|service| service.meta.kind == ObjectKind::Service).filter(is_own);
                own.map(|service| service.host.to_string()).collect()
            }
        };
        for host in hosts {
            let origin = object.meta.origin.clone();
            let closed = OfService { section: None, id: object.id(), origin, says: Err(object.answer()) };
            // It may have been for any of its ports.
            self.by_host.insert(host, vec![closed]);
        }
    }

    fn report(
        &mut self,
        object: &Object<BackendTlsPolicy>,
        index: usize,
        (fault, says): (Option<Fault>, &Result<ForeignTls, Fault>),
        services: &Services,
        found: &mut Vec<Diagnostic>,
    ) {
        let target = object.spec.target_refs.get(index);
        let missed = target.and_then(|target| missed(object, target, services));
        let mut say = |severity, field: String, message: String| {
            let origin = object.meta.origin.at(object.spec.span);
            let finding = Diagnostic::at(&origin, severity, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field(field));
        };
        if let Some((reason, message)) = &fault {
            let (severity, effect) = match &missed {
                Some((host, _)) => {
                    (Severity::Error, format!("ports of {host} of which no other policy speaks are not called"))
                }
                None => (Severity::Warning, "without effect there".to_owned()),
            };
            let message = format!("{message}: {effect} (Accepted is False: {reason})");
            say(severity, format!("targetRefs[{index}]"), message);
        }
        let unresolved = says.as_ref().err().filter(|(reason, _)| *reason != INVALID);
        if let Err((reason, message)) = says
            && index == 0
        {
            let message = format!("{message}: its targets are not called ({reason})");
            let field = if object.spec.options.is_empty() { "validation" } else { "options" };
            say(Severity::Error, field.to_owned(), message);
        }
        let of_says = says.as_ref().err().map(|(reason, message)| match *reason {
            INVALID => (INVALID, message.clone()),
            _ => ("NoValidCACertificate", message.clone()),
        });
        self.statuses.push(TargetStatus {
            policy: object.meta.id(),
            target_ref: index,
            conditions: vec![
                Condition::of("Accepted", "Accepted", fault.or(of_says)),
                Condition::of("ResolvedRefs", "ResolvedRefs", unresolved.cloned()),
            ],
        });
    }

    /// How a port of a Service is called, or why it is not; `None` where no policy says so. What is for the port alone counts before
    /// what is for all of them.
    pub fn of(&self, host: &str, port: &str) -> Option<Result<&ForeignTls, &Arc<str>>> {
        Some(self.for_port(host, port)?.says.as_ref())
    }

    /// The policy that says so, and where that is written.
    pub fn place_of(&self, host: &str, port: &str) -> Option<(&Arc<str>, &Origin)> {
        self.for_port(host, port).map(|one| (&one.id, &one.origin))
    }

    fn for_port(&self, host: &str, port: &str) -> Option<&OfService> {
        let there = self.by_host.get(host)?;
        let own = there.iter().find(|one| one.section.as_deref() == Some(port));
        own.or_else(|| there.iter().find(|one| one.section.is_none()))
    }
}

/// The host of a Service that there is, and that a policy misses by what is most likely a typo, and what is wrong: without the policy
/// it would be called in plaintext.
fn missed(object: &Object<BackendTlsPolicy>, target: &PolicyTarget, services: &Services) -> Option<(String, String)> {
    let PolicyTarget { group, kind, name, .. } = target;
    let own = &*object.meta.namespace;
    let (_, service) = own_service(services, own, &name.value)?;
    let host = service.host.to_string();
    if !target.is_service() {
        let is_meant = matches!(&*group.trim().to_ascii_lowercase(), "" | "core" | "v1") && is_like(kind, "Service");
        let message = format!("Service {own}/{} is not meant by {} of group {group:?}", name.value, kind.value);
        return is_meant.then_some((host, message));
    }
    let section = target.section()?;
    let has_it = service.ports.iter().any(|port| &*port.name == section);
    let message = format!("no port of Service {own}/{} is called {section}", name.value);
    (!has_it).then_some((host, message))
}

impl Lookup<'_> {
    fn compile(&self, object: &Object<BackendTlsPolicy>) -> Result<ForeignTls, Fault> {
        let (validation, own) = (&object.spec.validation, &*object.meta.namespace);
        if let Some(option) = object.spec.options.keys().next() {
            return Err((INVALID, format!("option {option} is not known")));
        }
        let roots = match validation.well_known() {
            Some(SYSTEM) => Roots::System,
            Some(other) => return Err((INVALID, format!("nobody has authorities called {other}"))),
            None => {
                let texts = validation.ca_certificate_refs.iter().map(|reference| self.authorities(own, reference));
                Roots::Text(texts.collect::<Result<Vec<String>, Fault>>()?.join("\n").into())
            }
        };
        Ok(ForeignTls {
            sni: Some(validation.hostname.value.clone()),
            roots,
            revoked: None,
            identity: None,
            names: validation.subject_alt_names.iter().map(|name| name.name().to_owned()).collect(),
        })
    }

    /// The authorities that a ConfigMap of this namespace has. Of a Secret nothing is told but to who names it, and this is told to
    /// everybody who calls.
    fn authorities(&self, own: &str, reference: &LocalReference) -> Result<String, Fault> {
        let LocalReference { group, kind, name, .. } = reference;
        if !matches!(group.as_str(), "" | "core") || kind != "ConfigMap" {
            return Err((
                "InvalidKind",
                format!("{kind} of group {group:?} is no ConfigMap, and nothing else is read"),
            ));
        }
        let text = self.0.get(&(own, name.as_str())).map(|authorities| authorities.0.to_string());
        text.ok_or_else(|| ("InvalidCACertificateRef", format!("there is no {kind} {own}/{name} with a good `ca.crt`")))
    }
}
