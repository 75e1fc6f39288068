//! Which tokens are good for a server: the rules of the RequestAuthentications that are for its workload.

use mesh_core::model::JwkSet;

use crate::config::istio::security::{JwtRule, RequestAuthentication};

/// A rule that can be enforced as it is written.
#[derive(Clone, Debug)]
pub struct TokenRule {
    /// What it says.
    pub written: JwtRule,
    /// The public keys of its issuer, and nothing else of what was written.
    pub keys: String,
}

/// The rules of an object; `Err` says why it cannot be enforced. It is enforced as a whole or not at all.
pub fn token_rules(object: &RequestAuthentication) -> Result<Vec<TokenRule>, String> {
    object.jwt_rules.iter().map(token_rule).collect()
}

fn token_rule(rule: &JwtRule) -> Result<TokenRule, String> {
    let issuer = &rule.issuer;
    // Where both are written, Istio fetches.
    let keys = match (&rule.jwks_uri, &rule.jwks) {
        (Some(uri), _) => {
            return Err(format!("the keys of {issuer} are not fetched from {uri}: write them into `jwks`"));
        }
        (None, Some(keys)) => keys,
        (None, None) => return Err(format!("the keys of {issuer} are not looked for: write them into `jwks`")),
    };
    match JwkSet::parse(keys.as_bytes()) {
        Ok(set) => Ok(TokenRule { written: rule.clone(), keys: set.to_json() }),
        Err(invalid) => Err(format!("the keys of {issuer} cannot be used: {}", invalid.reason)),
    }
}
