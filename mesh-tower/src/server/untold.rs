//! Reasons that are not for everybody: what a client without an identity is told in their place.

use mesh_core::error::ErrorKind;

/// What is told in the place of a reason of this kind, where that speaks of the configuration. What is wrong with a request
/// itself, or with its token, is for whoever sent it.
pub(super) fn instead(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NoRoute => Some(
            "this server has no route for the request: its log and `mesh-control status` say more, and it does itself to peers \
             with an identity",
        ),
        ErrorKind::NoListener | ErrorKind::NotServing | ErrorKind::NotServingYet | ErrorKind::Security => Some(
            "the mesh does not let this server answer: its log and `mesh-control status` say why, and it does itself to peers \
             with an identity",
        ),
        _ => None,
    }
}
