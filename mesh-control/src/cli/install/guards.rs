//! What keeps mesh-control up, and whom away from it.

use super::Args;

/// Nodes are drained one replica after the other.
pub(super) fn disruption(args: &Args) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    format!(
        "\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {name}
  namespace: {namespace}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{app: {name}}}
"
    )
}

/// Workloads are anywhere, and the API server has no address that is known here; status is for those who are named.
pub(super) fn network(args: &Args, has_webhook: bool) -> String {
    let (name, namespace) = (args.name(), &args.namespace);
    let webhook = if has_webhook { "  - ports: [{protocol: TCP, port: 15017}]\n" } else { "" };
    let others = match args.status_namespaces.is_empty() {
        true => String::new(),
        false => {
            let names = args.status_namespaces.join(", ");
            format!(
                "    - namespaceSelector:\n        matchExpressions:\n        - {{key: kubernetes.io/metadata.name, operator: In, values: [{names}]}}\n"
            )
        }
    };
    format!(
        "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}
  namespace: {namespace}
spec:
  podSelector:
    matchLabels: {{app: {name}}}
  policyTypes: [Ingress]
  ingress:
  - ports: [{{protocol: TCP, port: 15012}}]
{webhook}  - ports: [{{protocol: TCP, port: 15014}}]
    from:
    - podSelector: {{}}
{others}"
    )
}
