//! What the policies of Gateway API that are for Services share: in which order they count, and which Services they name.

use std::sync::Arc;

use crate::config::file::Object;
use crate::config::support::ObjectKind;
use crate::registry::host::service_host;
use crate::registry::{Service, ServiceId, Services};

/// The reason of a policy that asks for something that nobody here does.
pub(in crate::policy) const INVALID: &str = "Invalid";

/// Policies in the order in which they count: the oldest first, those without an age last, and then by namespace and name, as Gateway
/// API has it.
pub(in crate::policy) fn by_age<S>(objects: &[Arc<Object<S>>]) -> Vec<Arc<Object<S>>> {
    let mut sorted = objects.to_vec();
    sorted.sort_by(|a, b| a.meta.order_by_namespace().cmp(&b.meta.order_by_namespace()));
    sorted
}

/// The Service of this name in a policy's own namespace.
pub(in crate::policy) fn own_service<'s>(
    services: &'s Services,
    own: &str,
    name: &str,
) -> Option<(ServiceId, &'s Arc<Service>)> {
    let found = services.exact(&service_host(name, own), own);
    found.filter(|(_, service)| service.meta.kind == ObjectKind::Service && *service.namespace == *own)
}
