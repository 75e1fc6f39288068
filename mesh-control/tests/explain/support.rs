//! A directory of files, and the command in it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Two services in `shop`, one outside of the mesh, and rules for `reviews`.
pub(crate) const SHOP: &str = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec: {hosts: [api.example.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {v: v1}}, {name: v2, labels: {v: v2}}]}
";

/// Gateways to that: one of Istio's with a server of each kind, and one of Gateway API.
pub(crate) const EDGE: &str = r"---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: edges}
spec: {selector: {istio: edge}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}
  - {port: {number: 80, name: to-https, protocol: HTTP}, hosts: [secure.example], tls: {httpsRedirect: true}}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 443, name: https-own, protocol: HTTPS}, hosts: [own.example], tls: {mode: SIMPLE, credentialName: own}}
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [raw.example], tls: {mode: PASSTHROUGH}}
  - {port: {number: 5432, name: db, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example, secure.example, own.example, raw.example]
  gateways: [public]
  http:
  - name: gold
    match: [{headers: {x-tier: {exact: gold}}}]
    rewrite: {uri: /gold/}
    route: [{destination: {host: ratings}}]
  - name: all
    route: [{destination: {host: reviews}}]
  tls: [{match: [{sniHosts: [raw.example]}], route: [{destination: {host: ratings}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example]
  gateways: [public]
  tcp: [{match: [{port: 5432}], route: [{destination: {host: ratings}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: shop}
spec: {parentRefs: [{name: front}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}
";

/// A VirtualService of `shop/reviews` with these rules.
pub(crate) fn rules(http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: shop}}\nspec:\n  hosts: [reviews]\n  http:\n{http}"
    )
}

/// A directory with one file.
pub(crate) fn dir_of(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.yaml"), yaml).unwrap();
    dir
}

/// The command with these arguments, with something on stdin.
pub(crate) fn run(arguments: &[&str], at: &Path, stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(arguments).current_dir(at).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who does not read it has said why.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// The answers to these requests, and the exit code.
pub(crate) fn answers(dir: &Path, requests: &[&str], more: &[&str]) -> (Vec<Value>, Option<i32>) {
    let mut arguments = vec!["route", "test", "--config", ".", "--requests", "-", "-o", "json"];
    arguments.extend(more);
    let output = run(&arguments, dir, &requests.join("\n"));
    let out = String::from_utf8(output.stdout).unwrap();
    let answers = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (answers, output.status.code())
}

/// What `explain` says, as JSON, of a request of `shop/reviews` that goes somewhere: METHOD and URL, with more options.
pub(crate) fn explained(dir: &Path, request: &[&str]) -> Value {
    let arguments = [&["explain", "--config", ".", "--from", "shop/reviews", "-o", "json"], request].concat();
    let output = run(&arguments, dir, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether an answer has all of this; what else it has is not looked at.
pub(crate) fn has(answer: &Value, expected: &Value) -> bool {
    match (answer, expected) {
        (Value::Object(answer), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| has(answer.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(answer), Value::Array(expected)) => {
            answer.len() == expected.len()
                && answer.iter().zip(expected).all(|(answer, expected)| has(answer, expected))
        }
        (answer, expected) => answer == expected,
    }
}
