//! Where a request that lasts is, for who may want it elsewhere.

use std::fmt;
use std::sync::Arc;

use mesh_core::balance::Loads;
use mesh_core::id::ClusterName;
use mesh_core::state::EndpointState;
use mesh_core::store::TargetEntry;

/// In the extensions of a request: its response is to have a [`Placement`] in its own.
#[derive(Clone, Copy, Debug)]
pub struct Follow;

/// The endpoint that answers a request, and what there is beside it: in the extensions of a response whose request had
/// [`Follow`] in its own.
#[derive(Clone)]
pub struct Placement {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) target: Arc<TargetEntry>,
    pub(super) cluster: ClusterName,
}

impl Placement {
    /// The endpoint that answers.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }

    /// What the mesh of this process has under way there and beside it, in the configuration of this moment.
    pub fn loads(&self) -> Loads {
        let view = self.target.view();
        let cluster = view.as_ref().and_then(|view| view.clusters().iter().find(|other| *other.name() == self.cluster));
        // A route that leads elsewhere by now moves nobody: what it says is for requests that begin.
        cluster.map_or(Loads::Alone, |cluster| cluster.loads_of(&self.endpoint))
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement").field("endpoint", self.endpoint.id()).field("cluster", &self.cluster).finish()
    }
}
