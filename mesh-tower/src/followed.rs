//! What is told of a request that somebody follows through the mesh: see [`mesh_core::live_trace`].

use mesh_core::error::MeshError;
use mesh_core::request::RequestHead;
use mesh_core::view::{EndpointStatus, SelectedRoute, TargetView};
use serde_json::{Value, json};

use std::sync::Arc;

/// So many routes that were passed over, and so many endpoints, are told of.
const MOST: usize = 50;

/// Why it goes where it goes, and who might answer it there. Decides nothing: the source of random choices is a copy. Values of
/// headers are told of those that `tells` names.
#[cold]
pub(crate) fn route(
    view: &Arc<TargetView>,
    head: &RequestHead<'_>,
    mut random: fastrand::Rng,
    tells: &dyn Fn(&str) -> bool,
) -> Value {
    let found = SelectedRoute::find(view, head, &mut random.clone());
    let cluster = found.as_ref().ok().and_then(|(_, route)| route.cluster).map(|cluster| cluster.name().to_string());
    let mut explanation = view.explain(head, &mut random).discreet(head, tells).to_json();
    if let Some(passed_over) = explanation.get_mut("passed_over").and_then(Value::as_array_mut) {
        // The last ones are the nearest to the one that was found.
        passed_over.drain(..passed_over.len().saturating_sub(MOST));
    }
    let chosen = view.clusters().iter().filter(|one| cluster.as_deref() == Some(one.name().as_str()));
    let endpoints: Vec<Value> = chosen.flat_map(|one| one.endpoints()).take(MOST).map(|one| endpoint(&one)).collect();
    json!({"explanation": explanation, "cluster": cluster, "endpoints": endpoints})
}

fn endpoint(status: &EndpointStatus) -> Value {
    json!({
        "endpoint": status.endpoint.to_string(),
        "cluster": status.cluster.as_str(),
        "told": format!("{:?}", status.told),
        "checked": status.checked.map(|checked| format!("{checked:?}")),
        "priority": status.priority,
        "ejected": status.is_ejected,
        "reachable": status.is_reachable,
        "takes_load": status.takes_load,
        "in_flight": status.in_flight,
    })
}

/// What went wrong.
#[cold]
pub(crate) fn failure(error: &MeshError) -> Value {
    json!({"kind": format!("{:?}", error.kind()), "error": format!("{error:#}")})
}
