//! Which tokens are good for a server: the rules of the RequestAuthentications that are for its workload.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::JwkSet;
use serde::{Deserialize, Serialize};

use crate::config::istio::security::{JwtRule, RequestAuthentication};

/// How long fetching keys may take where nothing is said (Istio).
const TIMEOUT: Duration = Duration::from_secs(5);

/// A rule that can be enforced as it is written.
#[derive(Clone, Debug)]
pub struct TokenRule {
    /// What it says.
    pub written: JwtRule,
    /// The keys of its issuer.
    pub keys: Keys,
}

/// The keys of an issuer.
#[derive(Clone, Debug)]
pub enum Keys {
    /// They are written down: the public ones, and nothing else of what was written.
    Written(String),
    /// They are to be fetched from there, within this time.
    Elsewhere(KeySource, Duration),
}

/// Where keys are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// From this URL.
    Uri(String),
    /// From where this issuer says (OpenID Connect Discovery 1.0).
    Discovery(String),
}

impl KeySource {
    /// What is asked first.
    pub fn url(&self) -> String {
        match self {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Discovery(issuer) => {
                format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer))
            }
        }
    }
}

/// Keys that were fetched, as JSON.
pub type FetchedKeys = BTreeMap<KeySource, Arc<str>>;

/// The rules of an object; `Err` says why it cannot be enforced. It is enforced as a whole or not at all.
pub fn token_rules(object: &RequestAuthentication) -> Result<Vec<TokenRule>, String> {
    object.jwt_rules.iter().map(token_rule).collect()
}

fn token_rule(rule: &JwtRule) -> Result<TokenRule, String> {
    let keys = match (rule.written_keys(), rule.jwks_uri()) {
        (Some(keys), _) => JwkSet::parse(keys.as_bytes())
            .map(|set| Keys::Written(set.to_json()))
            .map_err(|invalid| format!("the keys of {} cannot be used: {}", rule.issuer, invalid.reason))?,
        (None, uri) => {
            let source = match uri {
                Some(uri) => KeySource::Uri(uri.to_owned()),
                None => KeySource::Discovery(rule.issuer.clone()),
            };
            Keys::Elsewhere(source, rule.timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUT))
        }
    };
    Ok(TokenRule { written: rule.clone(), keys })
}
