//! Where a request goes on to that came to a gateway.

use std::sync::Arc;

use mesh_core::store::TargetEntry;

/// An extension of the request, which nobody else can make.
#[derive(Clone, Debug)]
pub(crate) struct Onward(pub(crate) Arc<TargetEntry>);
