//! The codes of Istio's analyzers: which of them are findings here, and why the others are not. `docs/analyze.md` is made of it.

/// What becomes of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It is reported, for this.
    Reported(&'static str),
    /// There is nothing of the kind here.
    NotApplicable(&'static str),
    /// It is not reported yet.
    NotYet(&'static str),
}

use Answer::{NotApplicable, NotYet, Reported};

const NO_SIDECAR: &str = "no sidecar is injected: the mesh is in the process";
const NO_GATEWAY: &str = "a selector has its effect on gateways of Gateway API, as a `targetRef` has";
const CLUSTER: &str = "about an installation of Istio in a cluster";
const FILTERS: &str =
    "of EnvoyFilters only rate limits are read, whose order is fixed; whatever else is in one is an error";

/// Each code, its name in Istio, and what becomes of it.
pub const CODES: &[(&str, &str, Answer)] = &[
    ("IST0001", "InternalError", NotApplicable("a failure of the program is no finding")),
    ("IST0002", "Deprecated", Reported("fields with a newer name")),
    (
        "IST0101",
        "ReferencedResourceNotFound",
        Reported("hosts, ports, subsets, delegates, gateways, providers, targets, callers that there are not"),
    ),
    ("IST0102", "NamespaceNotInjected", NotApplicable(NO_SIDECAR)),
    ("IST0103", "PodMissingProxy", NotApplicable(NO_SIDECAR)),
    ("IST0104", "GatewayPortNotOnWorkload", NotApplicable("retired; see IST0162")),
    ("IST0105", "IstioProxyImageMismatch", NotApplicable("retired; see IST0158")),
    (
        "IST0106",
        "SchemaValidationError",
        Reported("no YAML, unknown fields, wrong types, wrong values, missing fields"),
    ),
    ("IST0107", "MisplacedAnnotation", Reported("`mesh-control/` annotations on another kind")),
    (
        "IST0108",
        "UnknownAnnotation",
        Reported("`mesh-control/` annotations that there are not; those of Istio that are not read are told as such"),
    ),
    (
        "IST0109",
        "ConflictingMeshGatewayVirtualServiceHosts",
        Reported("VirtualServices of one host, with the one that counts"),
    ),
    (
        "IST0110",
        "ConflictingSidecarWorkloadSelectors",
        Reported("Sidecars that select the same workloads, with the one that counts"),
    ),
    (
        "IST0111",
        "MultipleSidecarsWithoutWorkloadSelectors",
        Reported("Sidecars of one namespace, with the one that counts"),
    ),
    (
        "IST0112",
        "VirtualServiceDestinationPortSelectorRequired",
        Reported("where a call to one of the rule's ports finds no such port; else the port that is called is the one"),
    ),
    ("IST0113", "MTLSPolicyConflict", Reported("DestinationRules by which every call fails")),
    (
        "IST0116",
        "DeploymentAssociatedToMultipleServices",
        Reported("services with workloads in common, and two protocols for one of their ports"),
    ),
    ("IST0118", "PortNameIsNotUnderNamingConvention", Reported("ports that say no protocol")),
    (
        "IST0119",
        "JwtFailureDueToInvalidServicePortPrefix",
        Reported("tokens for workloads with ports that carry no requests"),
    ),
    ("IST0122", "InvalidRegexp", Reported("expressions that are none, or too large")),
    ("IST0123", "NamespaceMultipleInjectionLabels", NotApplicable(NO_SIDECAR)),
    ("IST0125", "InvalidAnnotation", Reported("annotations whose value is wrong")),
    ("IST0126", "UnknownMeshNetworksServiceRegistry", NotApplicable("there are no networks of the mesh")),
    ("IST0127", "NoMatchingWorkloadsFound", Reported("selectors with a value that no workload is known by")),
    (
        "IST0128",
        "NoServerCertificateVerificationDestinationLevel",
        Reported("`insecureSkipVerify`; without it, servers are verified by the machine's roots"),
    ),
    ("IST0129", "NoServerCertificateVerificationPortLevel", Reported("the same of a port")),
    ("IST0130", "VirtualServiceUnreachableRule", Reported("rules that an earlier one takes all requests from")),
    ("IST0131", "VirtualServiceIneffectiveMatch", Reported("conditions that an earlier one takes all requests from")),
    ("IST0132", "VirtualServiceHostNotFoundInGateway", Reported("rules for a Gateway that has none of their hosts")),
    ("IST0133", "SchemaWarning", Reported("values without the effect that they seem to have")),
    (
        "IST0134",
        "ServiceEntryAddressesRequired",
        NotApplicable("connections are made by name, and need no address to be told apart"),
    ),
    ("IST0135", "DeprecatedAnnotation", NotYet("annotations of Istio that are not read are told, without a code")),
    ("IST0136", "AlphaAnnotation", NotYet("annotations of Istio that are not read are told, without a code")),
    (
        "IST0137",
        "DeploymentConflictingPorts",
        NotApplicable("a workload listens by its own ports: several services may stand before one"),
    ),
    ("IST0138", "GatewayDuplicateCertificate", NotYet("two servers that show one certificate are not told")),
    ("IST0139", "InvalidWebhook", NotApplicable(CLUSTER)),
    (
        "IST0140",
        "IngressRouteRulesNotAffected",
        NotYet("subsets of rules for the mesh are not compared with rules of a Gateway that call the same host"),
    ),
    ("IST0141", "InsufficientPermissions", NotApplicable(CLUSTER)),
    ("IST0142", "UnsupportedKubernetesVersion", NotApplicable(CLUSTER)),
    ("IST0143", "LocalhostListener", NotApplicable("workloads say themselves where they listen")),
    ("IST0144", "InvalidApplicationUID", NotApplicable(NO_SIDECAR)),
    (
        "IST0145",
        "ConflictingGateways",
        Reported("servers of Gateways that cannot be at one port, or have one host by TLS"),
    ),
    ("IST0146", "ImageAutoWithoutInjectionWarning", NotApplicable(NO_SIDECAR)),
    ("IST0147", "ImageAutoWithoutInjectionError", NotApplicable(NO_SIDECAR)),
    ("IST0148", "NamespaceInjectionEnabledByDefault", NotApplicable(NO_SIDECAR)),
    (
        "IST0149",
        "JwtClaimBasedRoutingWithoutRequestAuthN",
        NotYet(
            "conditions on claims of a token are reported, with or without a RequestAuthentication: they never hold",
        ),
    ),
    (
        "IST0150",
        "ExternalNameServiceTypeInvalidPortName",
        NotApplicable("an alias stands for a name, whatever its ports are called"),
    ),
    ("IST0151", "EnvoyFilterUsesRelativeOperation", NotApplicable(FILTERS)),
    ("IST0152", "EnvoyFilterUsesReplaceOperationIncorrectly", NotApplicable(FILTERS)),
    ("IST0153", "EnvoyFilterUsesAddOperationIncorrectly", NotApplicable(FILTERS)),
    ("IST0154", "EnvoyFilterUsesRemoveOperationIncorrectly", NotApplicable(FILTERS)),
    ("IST0155", "EnvoyFilterUsesRelativeOperationWithProxyVersion", NotApplicable(FILTERS)),
    ("IST0156", "UnsupportedGatewayAPIVersion", NotApplicable(CLUSTER)),
    ("IST0157", "InvalidTelemetryProvider", Reported("access logs for which nobody names a provider")),
    ("IST0158", "PodsIstioProxyImageMismatchInNamespace", NotApplicable(NO_SIDECAR)),
    (
        "IST0159",
        "ConflictingTelemetryWorkloadSelectors",
        Reported("Telemetries for the same workloads, with the one that counts"),
    ),
    (
        "IST0160",
        "MultipleTelemetriesWithoutWorkloadSelectors",
        Reported("Telemetries of one namespace, with the one that counts"),
    ),
    ("IST0161", "InvalidGatewayCredential", Reported("certificates that no Secret has")),
    ("IST0162", "GatewayPortNotDefinedOnService", NotYet("a port that no Service leads to is listened at as it is")),
    ("IST0163", "InvalidExternalControlPlaneConfig", NotApplicable(CLUSTER)),
    ("IST0164", "ExternalControlPlaneAddressIsNotAHostname", NotApplicable(CLUSTER)),
    ("IST0166", "IneffectiveSelector", NotApplicable(NO_GATEWAY)),
    ("IST0167", "IneffectivePolicy", NotApplicable("there is no ambient mode")),
    ("IST0168", "UnknownUpgradeCompatibility", NotApplicable(CLUSTER)),
    ("IST0169", "UpdateIncompatibility", NotApplicable(CLUSTER)),
    ("IST0170", "MultiClusterInconsistentService", NotApplicable("the files of one mesh are one configuration")),
    ("IST0171", "NegativeConditionStatus", NotApplicable("files have no status")),
    (
        "IST0173",
        "DestinationRuleSubsetNotSelectPods",
        Reported("subsets of services whose endpoints are all written down; of others, workloads may come"),
    ),
    ("IST0174", "UnknownDestinationRuleHost", Reported("DestinationRules for hosts that there are not")),
];

/// Istio's name for a code.
pub fn name(code: &str) -> Option<&'static str> {
    CODES.iter().find(|(known, ..)| *known == code).map(|(_, name, _)| *name)
}
