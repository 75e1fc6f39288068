//! Which services there are and where they are reached: from `Service` and `ServiceEntry`, with endpoints
//! that are written down, selected by labels, told by a cluster, or registered by the workloads themselves.
//!
//! [`Services`] changes with the configuration; [`Endpoints`] changes with every workload that comes or
//! goes, and shares everything that a change does not touch.

pub mod discovered;
pub mod endpoints;
pub mod host;
pub mod live;
pub mod probe;
pub mod protocol;
pub mod service;
pub mod services;
pub(crate) mod told;
pub mod workload;

pub use discovered::{Discovered, ServiceName};
pub use endpoints::{Endpoint, ServiceEndpoints};
pub use live::{Endpoints, EndpointsSnapshot};
pub use service::{Discovery, Service, ServicePort, Visibility, WrittenEndpoint};
pub use services::{ServiceId, Services};
pub use workload::{Health, Workload};
