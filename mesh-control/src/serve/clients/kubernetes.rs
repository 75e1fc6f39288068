//! Service account tokens of Kubernetes: whose a token is, as the API server says (TokenReview). What is asked and what an answer
//! means are plain functions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use hyper::body::Bytes;
use mesh_core::identity::{SpiffeId, TrustDomain};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::kubernetes::{Access, Client};

/// The audience that Istio's workloads ask for in the tokens that they show to a control plane.
pub const AUDIENCE: &str = "istio-ca";
/// Where a pod finds the authority of its API server.
pub const CA_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Where a pod finds its own token.
pub const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where an API server is asked.
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// How long a review may take, the wait for a turn included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reviews at a time: whoever sends nonsense costs the API server no more than that.
const AT_ONCE: usize = 32;
/// The longest token that is shown to the API server.
const LONGEST: usize = 16 << 10;
/// What a review says of a token that is bound to a pod.
const POD: &str = "authentication.kubernetes.io/pod-name";

/// The API server that says whose a service account token is.
#[derive(Clone, Debug)]
pub struct KubernetesTokens {
    client: Client,
    audience: Arc<str>,
    turns: Arc<Semaphore>,
}

impl KubernetesTokens {
    /// That of this address, `https://HOST:PORT`, which an authority in `ca_file` vouches for. It is asked with the token in
    /// `token_file`, whose account needs the right to create `tokenreviews` (`system:auth-delegator`); both files are read for
    /// every review. A token has to be meant for `audience`.
    ///
    /// # Errors
    /// It is no such address.
    pub fn new(
        api: &str,
        audience: &str,
        ca_file: impl Into<PathBuf>,
        token_file: impl Into<PathBuf>,
    ) -> anyhow::Result<KubernetesTokens> {
        let access = Access::of_files(api, &ca_file.into(), &token_file.into())?;
        ensure!(!audience.is_empty(), "an audience is needed: any token would do");
        Ok(KubernetesTokens {
            client: Client::new(access),
            audience: audience.into(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Whose a token is.
    ///
    /// # Errors
    /// Why it is nobody's, for whoever showed it.
    pub(crate) async fn review(&self, token: &str, domain: &TrustDomain) -> Result<SpiffeId, String> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        let answer = answer.map_err(|why| {
            tracing::warn!("the API server of Kubernetes cannot say whose a token is: {why}");
            "nobody can say now whose the token is; the log of mesh-control has the reason".to_owned()
        })?;
        owner(&answer, &self.audience, domain)
    }

    async fn ask(&self, token: &str) -> Result<Bytes, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let answer = self.client.post(REVIEWS, question(token, &self.audience), PATIENCE).await;
        answer.map_err(|failure| format!("{}: {failure}", self.client.server()))
    }
}

/// Whether a credential may be a service account token: a JWT. One-time tokens are none.
pub(crate) fn is_candidate(token: &str) -> bool {
    token.len() <= LONGEST && token.split('.').count() == 3 && token.split('.').all(|part| !part.is_empty())
}

fn question(token: &str, audience: &str) -> Vec<u8> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    });
    review.to_string().into_bytes()
}

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: User,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    error: String,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

/// Whose a token is by the API server's answer.
fn owner(answer: &[u8], audience: &str, domain: &TrustDomain) -> Result<SpiffeId, String> {
    let review: Review =
        serde_json::from_slice(answer).map_err(|_| "the API server's answer is no TokenReview".to_owned())?;
    let Status { authenticated, user, audiences, error } = review.status;
    if !authenticated {
        let why = if error.is_empty() { "nobody's that it knows" } else { &error };
        return Err(format!("the API server of Kubernetes refuses the token: {why}"));
    }
    // An API server that knows nothing of audiences names none, and has not looked at them.
    if !audiences.iter().any(|one| one == audience) {
        return Err(format!("the token is not for the audience {audience:?}"));
    }
    let account = user.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(format!("the token is that of {:?}, which is no service account", user.username));
    };
    // One that is bound to nothing never ends, and outlives the workload that it was made for.
    if !user.extra.get(POD).is_some_and(|pods| pods.iter().any(|pod| !pod.is_empty())) {
        return Err("the token is bound to no pod: a projected one (`serviceAccountToken`) is needed".to_owned());
    }
    SpiffeId::of_workload(domain, namespace, account).map_err(|why| format!("nobody can be called so: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c9_a_token_is_whose_the_api_server_says_if_it_is_for_us_and_bound_to_a_pod() {
        let domain = "cluster.local".parse().expect("a domain");
        let pod = json!({"authentication.kubernetes.io/pod-name": ["web-1"]});
        let of =
            |status: serde_json::Value| owner(json!({"status": status}).to_string().as_bytes(), "istio-ca", &domain);
        let good = |username: &str, audiences: serde_json::Value, extra: &serde_json::Value| {
            of(json!({"authenticated": true, "audiences": audiences, "user": {"username": username, "extra": extra}}))
        };
        let web = "system:serviceaccount:shop:web";
        let ours = || json!(["istio-ca", "other"]);
        assert_eq!(
            good(web, ours(), &pod).map(|id| id.to_string()),
            Ok("spiffe://cluster.local/ns/shop/sa/web".to_owned())
        );
        for (refused, why) in [
            (good(web, json!(["other"]), &pod), "audience"),
            (good(web, json!([]), &pod), "audience"),
            (good(web, ours(), &json!({})), "bound to no pod"),
            (good(web, ours(), &json!({POD: []})), "bound to no pod"),
            (good("system:node:one", ours(), &pod), "no service account"),
            (good("system:serviceaccount:shop", ours(), &pod), "no service account"),
            (good("system:serviceaccount:shop:a/b", ours(), &pod), "nobody can be called so"),
            (good("system:serviceaccount:shop:a:b", ours(), &pod), "nobody can be called so"),
            (of(json!({"user": {}})), "refuses the token"),
            (
                of(json!({"authenticated": false, "error": "it has expired", "audiences": ["istio-ca"]})),
                "it has expired",
            ),
            (owner(b"{}", "istio-ca", &domain), "no TokenReview"),
            (owner(b"<html>", "istio-ca", &domain), "no TokenReview"),
        ] {
            let refused = refused.expect_err(why);
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_one_time_token_is_not_shown_to_the_api_server() {
        for (token, expected) in
            [("a.b.c", true), (&"0".repeat(64), false), ("a.b", false), ("a..c", false), ("", false)]
        {
            assert_eq!(is_candidate(token), expected, "{token}");
        }
        assert!(!is_candidate(&format!("a.{}.c", "x".repeat(LONGEST))));
    }
}
