//! What became of objects of a cluster, one by one: what a status says of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use super::Plane;
use crate::config::Diagnostic;
use crate::config::store::Standing;
use crate::policy::gateway_api::{GatewayStatus, ParentStatus, TargetStatus};

/// A text of an object of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// `Kind namespace/name`.
    pub(crate) id: String,
    /// The name of the text.
    pub(crate) name: Arc<str>,
    /// The text.
    pub(crate) text: Arc<str>,
}

/// What became of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What is in force instead, where it is wrong.
    pub(crate) standing: Option<Standing>,
    /// What there is to say of it, whoever asks for what.
    pub(crate) findings: Vec<Diagnostic>,
    /// Of a route of Gateway API: what became of it at each of its parents. Of one that is wrong that is its last good state.
    pub(crate) parents: Vec<ParentStatus>,
    /// Of a Gateway of Gateway API that is ours, or of a ListenerSet of one: what became of it, in the same way.
    pub(crate) gateway: Option<GatewayStatus>,
    /// Of a BackendTLSPolicy, or an XBackendTrafficPolicy: what became of it at each of its targets, in the same way.
    pub(crate) targets: Vec<TargetStatus>,
    /// The Gateways of Gateway API that are ours, and their ListenerSets, as findings name them.
    pub(crate) gateways: Arc<BTreeSet<Arc<str>>>,
}

impl Plane {
    /// What became of these objects, in their order. There is nothing to say of a text that is not known yet, or not any more.
    pub(crate) fn verdicts(&self, asked: &[Asked]) -> Vec<Option<Verdict>> {
        // What is compiled is what the store holds for as long as that is locked.
        let store = self.inner.store.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known: Vec<bool> = asked.iter().map(|one| store.holds(&one.name, &one.text)).collect();
        let compiled = self.inner.live().compiled.clone();
        drop(store);
        let wrong: HashMap<&str, Standing> =
            compiled.wrong.iter().map(|wrong| (&*wrong.file, wrong.standing)).collect();
        let mut findings: HashMap<&str, Vec<&Diagnostic>> = HashMap::new();
        for finding in &compiled.diagnostics {
            findings.entry(&finding.file).or_default().push(finding);
        }
        let mut parents: HashMap<&str, Vec<&ParentStatus>> = HashMap::new();
        for status in &compiled.policy.gateway_routes.statuses {
            parents.entry(&status.route).or_default().push(status);
        }
        let mut targets: HashMap<&str, Vec<&TargetStatus>> = HashMap::new();
        for status in compiled.policy.target_statuses() {
            targets.entry(&status.policy).or_default().push(status);
        }
        let gateways = &compiled.policy.gateway_routes.gateway_statuses;
        let gateways: HashMap<&str, &GatewayStatus> =
            gateways.iter().map(|status| (&*status.gateway, status)).collect();
        let names = Arc::new(gateways.values().map(|status| status.gateway.clone()).collect());
        let verdict = |one: &Asked| Verdict {
            standing: wrong.get(&*one.name).copied(),
            findings: findings.get(&*one.name).into_iter().flatten().copied().cloned().collect(),
            parents: parents.get(&*one.id).into_iter().flatten().copied().cloned().collect(),
            gateway: gateways.get(&*one.id).copied().cloned(),
            targets: targets.get(&*one.id).into_iter().flatten().copied().cloned().collect(),
            gateways: Arc::clone(&names),
        };
        asked.iter().zip(is_known).map(|(one, is_known)| is_known.then(|| verdict(one))).collect()
    }
}
