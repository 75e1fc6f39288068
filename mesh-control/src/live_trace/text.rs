//! A request for people: the causes, and then what each hop saw, in order.

use std::fmt::{self, Write};

use mesh_core::printable::printable;
use serde_json::Value;

use super::Traced;
use super::gather::text;

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut causes = self.causes.iter();
        writeln!(f, "cause: {}", printable(causes.next().map_or("nobody tells", String::as_str)))?;
        causes.try_for_each(|cause| writeln!(f, "       {}", printable(cause)))?;
        for hop in &self.hops {
            writeln!(f)?;
            write_hop(f, hop)?;
        }
        if !self.complete {
            writeln!(f, "\nnot everybody told what they saw: an endpoint may be outside of the mesh, or busy")?;
        }
        Ok(())
    }
}

fn write_hop(f: &mut fmt::Formatter<'_>, hop: &Value) -> fmt::Result {
    let depth = usize::try_from(hop.get("depth").and_then(Value::as_u64).unwrap_or_default()).unwrap_or_default();
    let indent = "  ".repeat(depth.min(32));
    let line = format!(
        "{} {}: {} {}{} -> {} {} in {} ms",
        text(hop, "side"),
        text(hop, "workload"),
        text(hop, "method"),
        text(hop, "authority"),
        text(hop, "path"),
        shown(hop.get("status")),
        text(hop, "flags"),
        shown(hop.get("took_ms")),
    );
    writeln!(f, "{indent}{}", printable(&line))?;
    let headers = hop.get("headers").and_then(Value::as_object);
    for name in ["x-request-id", "traceparent"] {
        if let Some(value) = headers.and_then(|headers| headers.get(name)?.as_str()) {
            writeln!(f, "{indent}             {name}: {}", printable(value))?;
        }
    }
    for event in hop.get("events").and_then(Value::as_array).into_iter().flatten() {
        let what = text(event, "what");
        writeln!(f, "{indent}  {:>7} ms {}{}", shown(event.get("ms")), printable(what), printable(&details(event)))?;
        if what == "routed" {
            write_route(f, &indent, event)?;
        }
    }
    Ok(())
}

/// The routes that were tried, the one that was taken, and who might answer there.
fn write_route(f: &mut fmt::Formatter<'_>, indent: &str, routed: &Value) -> fmt::Result {
    let Some(explanation) = routed.get("explanation") else { return Ok(()) };
    let indent = format!("{indent}             ");
    for over in explanation.get("passed_over").and_then(Value::as_array).into_iter().flatten() {
        let unmet = over.get("unmet").unwrap_or(&Value::Null);
        let why = format!("{}: {}, {}", text(unmet, "what"), text(unmet, "wanted"), text(unmet, "found"));
        writeln!(f, "{indent}not {}: {}", printable(&titled(over)), printable(&why))?;
    }
    if let Some(route) = explanation.get("route").filter(|route| !route.is_null()) {
        writeln!(f, "{indent}{}", printable(&titled(route)))?;
    }
    for cluster in explanation.get("clusters").and_then(Value::as_array).into_iter().flatten() {
        let is_chosen = if cluster.get("name") == routed.get("cluster") { " (chosen)" } else { "" };
        let name = printable(text(cluster, "name"));
        writeln!(f, "{indent}cluster {name}, weight {}{is_chosen}", shown(cluster.get("weight")))?;
    }
    for endpoint in routed.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
        let mut line = format!("endpoint {} {}", text(endpoint, "endpoint"), text(endpoint, "told"));
        for (field, is_bad_if, said) in [
            ("ejected", true, ", ejected"),
            ("reachable", false, ", cannot be reached"),
            ("takes_load", false, ", gets no requests"),
        ] {
            if endpoint.get(field).and_then(Value::as_bool) == Some(is_bad_if) {
                line += said;
            }
        }
        writeln!(f, "{indent}{}, {} in flight", printable(&line), shown(endpoint.get("in_flight")))?;
    }
    Ok(())
}

fn titled(route: &Value) -> String {
    let origin = text(route, "origin");
    let origin = if origin.is_empty() { String::new() } else { format!(" ({origin})") };
    format!("route {} {}{origin}", shown(route.get("position")), text(route, "name"))
}

/// What else an event says, but for the story of the route.
fn details(event: &Value) -> String {
    let mut said = String::new();
    for (name, value) in event.as_object().into_iter().flatten() {
        let is_said =
            !matches!(name.as_str(), "what" | "ms" | "explanation" | "endpoints" | "cluster") && !value.is_null();
        if is_said {
            let _ = write!(said, ", {}: {}", name.replace('_', " "), shown(Some(value)));
        }
    }
    said
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => printable(text),
        Some(Value::Null) | None => "-".to_owned(),
        Some(value) => printable(&value.to_string()),
    }
}
