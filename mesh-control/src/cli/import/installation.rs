//! What an installation of Istio says besides the settings of the mesh (the `spec` of an IstioOperator, Helm's values): what stands here
//! in the place of each part. What has no row is told as not known.

/// What becomes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// There is the same: where.
    Same(&'static str),
    /// It is about what this mesh does not have; nothing is lost.
    Idle(&'static str),
    /// What is different.
    Differs(&'static str),
}

use Here::{Differs, Idle, Same};

const COUNT: &str = "`install --replicas`, `replicas` of the chart";
const RESOURCES: &str = "`install --cpu`, `--memory` and `--memory-limit`, `resources` of the chart";
const REVISION: &str = "`install --revision`, `revision` of the chart; a workload says by its label which one it is told by (docs/kubernetes.md)";
const SIDECARS: &str =
    "it is about sidecars: those that stay go on with istiod, and a workload of the library has none";
const GATEWAYS: &str = "gateways stay Istio's, and go on with istiod (docs/migration.md)";
const SCALING: &str = "there is no autoscaler: `replicas` says how many";
const ONE_CLUSTER: &str = "a mesh is one cluster and one network here";
const IMAGE: &str = "the image of mesh-control is named by itself: `install --image`, `image` of the chart";
const ENVIRONMENT: &str = "istiod's own switches (PILOT_...) are not read: each option of `mesh-control serve` has a name in the environment of its own";
const DEFINITIONS: &str = "Istio's CustomResourceDefinitions stay: objects are read from them";
const SECRETS: &str = "name them in the service account mesh-control";
const PLACE: &str = "where Pods of istiod run is not taken over: patch the Deployment";

/// Below `spec` of an IstioOperator, but for `meshConfig` and `values`.
const OPERATOR: &[(&str, Here)] = &[
    ("profile", Differs("of all components, there is mesh-control alone; profiles are Istio's")),
    ("installPackagePath", Idle("charts are Istio's")),
    ("hub", Differs(IMAGE)),
    ("tag", Differs(IMAGE)),
    ("revision", Same(REVISION)),
    ("namespace", Same("`install --namespace`, the namespace of the release")),
    ("compatibilityVersion", Differs("an Istio of one version is followed, that of the support tables")),
    ("components.base", Same(DEFINITIONS)),
    ("components.pilot.enabled", Idle("there is always a control plane")),
    ("components.pilot.k8s.replicaCount", Same(COUNT)),
    ("components.pilot.k8s.resources", Same(RESOURCES)),
    ("components.pilot.k8s.hpaSpec", Differs(SCALING)),
    ("components.pilot.k8s.podDisruptionBudget", Same("there is a PodDisruptionBudget: one replica after the other")),
    ("components.pilot.k8s.env", Differs(ENVIRONMENT)),
    ("components.pilot", Differs(PLACE)),
    ("components.ingressGateways", Differs(GATEWAYS)),
    ("components.egressGateways", Differs(GATEWAYS)),
    ("components.cni", Idle(SIDECARS)),
    (
        "components.ztunnel",
        Differs("there is no ambient mode: workloads of the library speak mutual TLS by themselves, and not HBONE"),
    ),
    ("unvalidatedValues", Differs("it is passed on to Istio's charts, and not looked at")),
];

/// Helm's values, but for `meshConfig`: of istiod's chart, and of the former one chart for all (`pilot`, `gateways`).
const VALUES: &[(&str, Here)] = &[
    ("revision", Same(REVISION)),
    ("defaultRevision", Differs("no revision is the default: a workload names the one that it is told by")),
    ("revisionTags", Differs("a revision has one name, that of its Service")),
    ("profile", Differs("of all components, there is mesh-control alone; profiles are Istio's")),
    ("compatibilityVersion", Differs("an Istio of one version is followed, that of the support tables")),
    (
        "global.istioNamespace",
        Same("`install --namespace`, the namespace of the release; the root namespace is that of the mesh's settings"),
    ),
    ("global.hub", Differs(IMAGE)),
    ("global.tag", Differs(IMAGE)),
    ("global.variant", Differs(IMAGE)),
    ("global.imagePullPolicy", Differs(IMAGE)),
    ("global.imagePullSecrets", Differs(SECRETS)),
    ("global.proxy", Idle(SIDECARS)),
    ("global.proxy_init", Idle(SIDECARS)),
    ("global.waypoint", Idle(SIDECARS)),
    ("global.meshID", Differs(ONE_CLUSTER)),
    ("global.multiCluster", Differs(ONE_CLUSTER)),
    ("global.network", Differs(ONE_CLUSTER)),
    ("global.meshNetworks", Differs(ONE_CLUSTER)),
    ("global.externalIstiod", Differs(ONE_CLUSTER)),
    ("global.remotePilotAddress", Differs(ONE_CLUSTER)),
    ("global.caAddress", Differs("certificates are of mesh-control's own authority (Secret cacerts, as Istio's)")),
    ("global.caName", Differs("certificates are of mesh-control's own authority (Secret cacerts, as Istio's)")),
    (
        "global.pilotCertProvider",
        Differs("the certificate of mesh-control is in the Secret mesh-control-tls, and yours to make"),
    ),
    ("global.sds.token.aud", Same("`serve --kubernetes-audience`")),
    ("global.jwtPolicy", Same("tokens are bound to a Pod, as third-party-jwt")),
    ("global.logging", Same("RUST_LOG in the environment of mesh-control")),
    ("global.logAsJson", Same("`--log-format json`")),
    ("global.configValidation", Same("`install --webhook-ca`, `webhook.ca` of the chart")),
    ("global.defaultPodDisruptionBudget", Same("there is a PodDisruptionBudget: one replica after the other")),
    ("global.networkPolicy", Same("there is a NetworkPolicy")),
    ("pilot.replicaCount", Same(COUNT)),
    ("pilot.resources", Same(RESOURCES)),
    ("pilot.autoscaleEnabled", Differs(SCALING)),
    ("pilot.autoscaleMin", Differs(SCALING)),
    ("pilot.autoscaleMax", Differs(SCALING)),
    ("pilot.cpu", Differs(SCALING)),
    ("pilot.memory", Differs(SCALING)),
    ("pilot.env", Differs(ENVIRONMENT)),
    ("pilot.traceSampling", Differs("spans are sampled as the mesh's settings and Telemetry objects say")),
    ("pilot.cni", Idle(SIDECARS)),
    ("pilot.hub", Differs(IMAGE)),
    ("pilot.tag", Differs(IMAGE)),
    ("pilot.image", Differs(IMAGE)),
    ("pilot", Differs(PLACE)),
    ("replicaCount", Same(COUNT)),
    ("resources", Same(RESOURCES)),
    ("autoscaleEnabled", Differs(SCALING)),
    ("autoscaleMin", Differs(SCALING)),
    ("autoscaleMax", Differs(SCALING)),
    ("env", Differs(ENVIRONMENT)),
    ("sidecarInjectorWebhook", Idle(SIDECARS)),
    ("istio_cni", Idle(SIDECARS)),
    ("cni", Idle(SIDECARS)),
    (
        "ztunnel",
        Differs("there is no ambient mode: workloads of the library speak mutual TLS by themselves, and not HBONE"),
    ),
    ("telemetry", Same("metrics in Istio's words are always there; Telemetry objects say more")),
    ("base", Same(DEFINITIONS)),
    ("istiodRemote", Differs(ONE_CLUSTER)),
    ("gateways", Differs(GATEWAYS)),
    ("experimental", Differs("it is Istio's, and not looked at")),
];

/// What becomes of a part of an IstioOperator's `spec`, by its path.
pub(super) fn of_operator(path: &str) -> Option<Here> {
    match path.strip_prefix("values.") {
        Some(path) => of_values(path),
        None => of(OPERATOR, path),
    }
}

/// What becomes of a value of Helm's, by its path.
pub(super) fn of_values(path: &str) -> Option<Here> {
    of(VALUES, path)
}

/// The row of the path, or of the nearest one above.
fn of(table: &[(&str, Here)], path: &str) -> Option<Here> {
    let covers = |row: &str| path.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    table.iter().filter(|(row, _)| covers(row)).max_by_key(|(row, _)| row.len()).map(|(_, here)| *here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_row_counts() {
        assert_eq!(of_operator("components.pilot.k8s.replicaCount"), Some(Same(COUNT)));
        assert_eq!(of_operator("components.pilot.k8s.nodeSelector"), Some(Differs(PLACE)));
        assert_eq!(of_operator("values.pilot.env.PILOT_TRACE_SAMPLING"), Some(Differs(ENVIRONMENT)));
        assert_eq!(of_values("global.proxy.resources.limits"), Some(Idle(SIDECARS)));
        assert_eq!(of_values("globals.proxy"), None);
    }
}
