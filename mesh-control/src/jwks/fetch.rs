//! One fetch of the keys of an issuer: from their URL, or from where the issuer says that they are.

use std::time::Duration;

use mesh_core::model::JwkSet;
use tokio::time::timeout;

use super::KeyFetching;
use crate::fetch::{self, Trust};
use crate::policy::tokens::KeySource;

/// Fetches keys.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher(fetch::Fetcher);

impl Fetcher {
    pub(crate) fn new(options: &KeyFetching) -> Fetcher {
        let fetcher = fetch::Fetcher::new(Trust::Web(options.roots.clone()));
        Fetcher(if options.allow_insecure { fetcher.insecure() } else { fetcher })
    }

    #[cfg(test)]
    pub(super) fn with_guard(self, guard: fetch::Guard) -> Fetcher {
        Fetcher(self.0.with_guard(guard))
    }

    /// The keys of a source.
    ///
    /// # Errors
    /// Why there are none, for an operator.
    pub(crate) async fn fetch(&self, source: &KeySource, limit: Duration) -> Result<JwkSet, String> {
        let fetched = timeout(limit, self.find(source)).await;
        fetched.unwrap_or_else(|_| Err(format!("{} did not answer within {limit:?}", source.url())))
    }

    async fn find(&self, source: &KeySource) -> Result<JwkSet, String> {
        let uri = match source {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Discovery(issuer) => jwks_uri(issuer, &self.0.get(&source.url()).await?)?,
        };
        let text = self.0.get(&uri).await?;
        JwkSet::parse(&text).map_err(|invalid| format!("{uri}: {}", invalid.reason))
    }
}

/// Where an issuer says that its keys are (OpenID Connect Discovery 1.0, 4.3: who answers has to be who was asked for).
fn jwks_uri(issuer: &str, document: &[u8]) -> Result<String, String> {
    let wrong = |what: &str| format!("the discovery document of {issuer} {what}");
    let document: serde_json::Value = serde_json::from_slice(document).map_err(|_| wrong("is no JSON"))?;
    let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
    match text("issuer") {
        Some(name) if name == issuer => {}
        other => return Err(wrong(&format!("is that of {other:?}"))),
    }
    text("jwks_uri").map(str::to_owned).ok_or_else(|| wrong("has no \"jwks_uri\""))
}
