//! What becomes of the fields of WasmPlugin.

use super::Support::{NotYet, Partly};
use super::{Row, Tables, both, http_only, workloads};
use crate::config::node::Node;

pub(super) const TABLES: Tables =
    &[("", PLUGIN), ("targetRef", TARGET), ("targetRefs", TARGET), ("vmConfig.env", VARIABLE), ("match", MATCH)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers run no filters of others";

const NO_VM: &str = "a filter is a part of the application, and has its environment; say it in `pluginConfig`";
const NOT_LOADED: &str = "nothing is downloaded";

const PLUGIN: &[Row] = &[
    http_only("selector.matchLabels", NOTHING),
    both(
        "url",
        NotYet("nothing is downloaded: the filter is the one that the application has registered under the name"),
    ),
    both("sha256", NotYet(NOT_LOADED)),
    both("imagePullPolicy", NotYet(NOT_LOADED)),
    both("imagePullSecret", NotYet(NOT_LOADED)),
    both("verificationKey", NotYet(NOT_LOADED)),
    http_only("pluginConfig", NOTHING),
    http_only("pluginName", NOTHING),
    http_only("phase", NOTHING),
    http_only("failStrategy", NOTHING),
    http_only("priority", NOTHING),
    Row { path: "type", library: Partly(network), grpc: NotYet(NOTHING) },
];

/// It is an error.
fn network(_: &Node) -> Option<String> {
    None
}

const TARGET: &[Row] = &workloads(NOTHING);

const VARIABLE: &[Row] = &[both("name", NotYet(NO_VM)), both("valueFrom", NotYet(NO_VM)), both("value", NotYet(NO_VM))];

const MATCH: &[Row] = &[http_only("mode", NOTHING), http_only("ports.number", NOTHING)];
