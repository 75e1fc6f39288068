//! Whose token a request carries, and whether it is good (`model/jwt.rs`; Envoy's `jwt_authn`). A plain function of the
//! providers, the request and `now`; a server asks it before anybody is told of a route.
//!
//! A token is verified with a key of its own issuer and of its own algorithm or not at all, and nothing that it says of
//! itself is fetched. A token that is no good is refused where it could have been left out, too.

mod cache;
mod claims;
mod place;
mod said;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use crate::error::{ErrorKind, Invalid, MeshError};
use crate::matcher::RouteIndex;
use crate::model::{JwtAuthentication, JwtProvider, JwtRequirement, TokenLocation};
use crate::request::RequestHead;
use cache::Cache;
pub use claims::Claims;
use claims::audiences;
pub(crate) use said::{InDoubt, claim, claim_has, claim_text, principal};
use token::{Times, Token};

/// Why a token is no good, in Envoy's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// It is malformed: how.
    Malformed(&'static str),
    /// Nobody knows who issued it.
    UnknownIssuer,
    /// It is for somebody else.
    WrongAudience,
    /// It is not good yet.
    NotYetValid,
    /// It is not good any more.
    Expired,
    /// Its issuer has no key for it.
    NoKey,
    /// Its signature is not that of its issuer.
    BadSignature,
    /// There are no keys of its issuer: why.
    NoKeys(Arc<str>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Missing => "Jwt is missing",
            Refusal::Malformed(how) => how,
            Refusal::UnknownIssuer => "Jwt issuer is not configured",
            Refusal::WrongAudience => "Audiences in Jwt are not allowed",
            Refusal::NotYetValid => "Jwt not yet valid",
            Refusal::Expired => "Jwt is expired",
            Refusal::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Refusal::BadSignature => "Jwt verification fails",
            // Where they are, is nothing for whoever calls; `why` is for logs.
            Refusal::NoKeys(_) => "Jwks remote fetch is failed",
        })
    }
}

impl From<Refusal> for MeshError {
    /// 403 for a token that is for somebody else, and 401 for everything else (Envoy).
    fn from(refusal: Refusal) -> MeshError {
        if refusal == Refusal::WrongAudience {
            return MeshError::new(ErrorKind::AccessDenied, refusal.to_string());
        }
        let challenge = match refusal {
            Refusal::Missing => HeaderValue::from_static("Bearer"),
            _ => HeaderValue::from_static("Bearer error=\"invalid_token\""),
        };
        MeshError::new(ErrorKind::Unauthenticated, refusal.to_string())
            .with_response_headers(HeaderMap::from_iter([(WWW_AUTHENTICATE, challenge)]))
    }
}

/// One JWT filter, compiled.
pub struct Authenticator {
    providers: BTreeMap<Arc<str>, Provider>,
    index: RouteIndex,
    rules: Vec<Option<JwtRequirement>>,
    bypass_cors_preflight: bool,
    /// Headers that nobody but this filter may set.
    outputs: Vec<HeaderName>,
}

struct Provider {
    config: JwtProvider,
    locations: Vec<TokenLocation>,
    words: Arc<[String]>,
    verified: Cache,
}

/// What a request is known by, and what is to be done to it.
pub struct Authenticated<'j> {
    authenticator: &'j Authenticator,
    tokens: Tokens<'j>,
}

/// The good tokens of a request.
#[derive(Default)]
struct Tokens<'j> {
    claims: Vec<Claims>,
    /// Whose each of them is, and in which of its places.
    places: Vec<(&'j Provider, usize)>,
}

impl<'j> Tokens<'j> {
    fn push(&mut self, provider: &'j Provider, location: usize, claims: Claims) {
        self.claims.push(claims);
        self.places.push((provider, location));
    }

    fn truncate(&mut self, length: usize) {
        self.claims.truncate(length);
        self.places.truncate(length);
    }
}

impl Authenticator {
    /// Compiles a filter's configuration.
    ///
    /// # Errors
    /// A requirement of a provider that there is not, and a rule that cannot be matched.
    pub fn new(config: &JwtAuthentication) -> Result<Self, Invalid> {
        let provider = |provider: &JwtProvider| Provider {
            config: provider.clone(),
            locations: match provider.locations.is_empty() {
                true => place::defaults(),
                false => provider.locations.clone(),
            },
            words: provider.space_delimited_claims.as_slice().into(),
            verified: Cache::default(),
        };
        let outputs = config.providers.values().flat_map(|provider| {
            provider.claim_headers.iter().map(|claim| &claim.header).chain(&provider.payload_header)
        });
        let outputs = outputs.cloned().collect();
        for rule in &config.rules {
            let mut named = Vec::new();
            rule.requires.iter().for_each(|requirement| providers_of(requirement, &mut named));
            if let Some(unknown) = named.iter().find(|name| !config.providers.contains_key(**name)) {
                return Err(Invalid::new(format!("there is no provider {unknown:?}")).at("rules"));
            }
        }
        Ok(Authenticator {
            providers: config.providers.iter().map(|(name, it)| (Arc::clone(name), provider(it))).collect(),
            index: RouteIndex::new(config.rules.iter().map(|rule| &rule.matches))?,
            rules: config.rules.iter().map(|rule| rule.requires.as_ref().map(spelled_out)).collect(),
            bypass_cors_preflight: config.bypass_cors_preflight,
            outputs,
        })
    }

    /// The claims that are lists of words in the tokens of an issuer; `None` where nobody knows it.
    pub fn word_lists_of(&self, issuer: &str) -> Option<Arc<[String]>> {
        let mut providers = self.providers.values();
        let is_of = |provider: &&Provider| provider.config.issuer.is_empty() || provider.config.issuer == issuer;
        providers.find(is_of).map(|provider| Arc::clone(&provider.words))
    }

    /// Looks for the tokens of a request, and at them.
    ///
    /// # Errors
    /// The reason why the request is to be refused.
    pub fn authenticate(&self, head: &RequestHead<'_>, now: SystemTime) -> Result<Authenticated<'_>, Refusal> {
        let mut tokens = Tokens::default();
        // No rule is for a share of the requests, so nothing is drawn.
        let rule = self.index.find(head, &mut fastrand::Rng::with_seed(0));
        let requirement = rule.and_then(|rule| self.rules.get(rule)?.as_ref());
        if let Some(requirement) = requirement.filter(|_| !(self.bypass_cors_preflight && is_preflight(head))) {
            let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
            Walk { authenticator: self, head, now }.satisfy(requirement, requirement, &mut tokens)?;
        }
        Ok(Authenticated { authenticator: self, tokens })
    }
}

impl Authenticated<'_> {
    /// What the request's token says; the last one counts where there are several (Envoy).
    pub fn claims(&self) -> Option<&Claims> {
        self.claims_of_all().last()
    }

    /// What all of its tokens say: what policies decide by.
    pub fn claims_of_all(&self) -> &[Claims] {
        &self.tokens.claims
    }

    /// Whether the request is to be changed at all.
    pub fn changes(&self) -> bool {
        !(self.tokens.claims.is_empty() && self.authenticator.outputs.is_empty())
    }

    /// Makes the request what the application may see: without tokens that are not forwarded, without headers that only
    /// this filter sets, and with those that it sets. [`Claims`] is an extension of it.
    pub fn apply(&self, head: &mut Parts) {
        for (provider, location) in self.tokens.places.iter().filter(|(provider, _)| !provider.config.forward) {
            if let Some(location) = provider.locations.get(*location) {
                place::remove(location, &mut head.headers, &mut head.uri);
            }
        }
        for name in &self.authenticator.outputs {
            head.headers.remove(name);
        }
        for ((provider, _), claims) in self.tokens.places.iter().zip(&self.tokens.claims) {
            let payload = provider.config.payload_header.iter().map(|name| (name, claims.payload()));
            let some = provider.config.claim_headers.iter().map(|it| (&it.header, claims.header(&it.path)));
            for (name, value) in payload.chain(some) {
                if let Some(value) = value {
                    head.headers.append(name, value);
                }
            }
        }
        head.extensions.remove::<Claims>();
        if let Some(claims) = self.claims() {
            head.extensions.insert(claims.clone());
        }
    }
}

/// One request on its way through what is required of it.
struct Walk<'j, 'r, 'h> {
    authenticator: &'j Authenticator,
    head: &'h RequestHead<'r>,
    now: u64,
}

impl<'j> Walk<'j, '_, '_> {
    /// Whether a requirement is met; `around` is the list of alternatives that it stands in, else the requirement itself.
    fn satisfy(
        &self,
        requirement: &JwtRequirement,
        around: &JwtRequirement,
        tokens: &mut Tokens<'j>,
    ) -> Result<(), Refusal> {
        match requirement {
            JwtRequirement::Provider(name) => match self.authenticator.providers.get(name) {
                Some(provider) => {
                    let (location, token) = place::find(&provider.locations, self.head)?.ok_or(Refusal::Missing)?;
                    tokens.push(provider, location, provider.verify(token, self.now)?);
                    Ok(())
                }
                None => Err(Refusal::UnknownIssuer),
            },
            JwtRequirement::All(all) => all.iter().try_for_each(|one| self.satisfy(one, one, tokens)),
            JwtRequirement::Any(any) => {
                let mut refusal = Refusal::Missing;
                for one in any {
                    let before = tokens.claims.len();
                    match self.satisfy(one, requirement, tokens) {
                        Ok(()) => return Ok(()),
                        Err(other) => {
                            tokens.truncate(before);
                            // The one that says most.
                            let rank = |refusal: &Refusal| match refusal {
                                Refusal::Missing => 0,
                                Refusal::UnknownIssuer => 1,
                                _ => 2,
                            };
                            if rank(&other) > rank(&refusal) {
                                refusal = other;
                            }
                        }
                    }
                }
                Err(refusal)
            }
            JwtRequirement::AllowMissing if matches!(around, JwtRequirement::Any(_)) => {
                let mut beside = Vec::new();
                providers_of(around, &mut beside);
                for (name, provider) in &self.authenticator.providers {
                    let is_asked = beside.is_empty() || beside.contains(&name);
                    if is_asked && place::find(&provider.locations, self.head)?.is_some() {
                        return Err(Refusal::Missing);
                    }
                }
                Ok(())
            }
            // Alone: whatever token there is, is good for one of those who would take it.
            JwtRequirement::AllowMissing => {
                let all = self.authenticator.providers.values();
                for provider in all.clone() {
                    let Some((_, token)) = place::find(&provider.locations, self.head)? else { continue };
                    let mut refusal = Refusal::UnknownIssuer;
                    let good = all.clone().find_map(|other| {
                        let found = place::find(&other.locations, self.head).ok().flatten();
                        let (location, _) = found.filter(|(_, same)| *same == token)?;
                        match other.verify(token, self.now) {
                            Ok(claims) => Some((other, location, claims)),
                            Err(why) => {
                                refusal = if why == Refusal::UnknownIssuer { refusal.clone() } else { why };
                                None
                            }
                        }
                    });
                    let (provider, location, claims) = good.ok_or(refusal)?;
                    tokens.push(provider, location, claims);
                }
                Ok(())
            }
            JwtRequirement::AllowMissingOrFailed => Ok(()),
        }
    }
}

impl Provider {
    fn verify(&self, token: &str, now: u64) -> Result<Claims, Refusal> {
        if let Some(claims) = self.verified.get(token) {
            return match self.check_times(claims.times(), now) {
                Ok(()) => Ok(claims),
                Err(refusal) => {
                    self.verified.remove(token);
                    Err(refusal)
                }
            };
        }
        let keys = self.config.keys.as_ref().map_err(|why| Refusal::NoKeys(Arc::clone(why)));
        let parsed = Token::parse(token)?;
        let issuer = parsed.claims.get("iss").and_then(serde_json::Value::as_str).unwrap_or_default();
        if !self.config.issuer.is_empty() && issuer != self.config.issuer {
            return Err(Refusal::UnknownIssuer);
        }
        parsed.check_svid()?;
        self.check_times(parsed.times, now)?;
        let is_wanted = |audience| self.config.audiences.iter().any(|wanted| wanted == audience);
        if !self.config.audiences.is_empty() && !audiences(&parsed.claims).any(is_wanted) {
            return Err(Refusal::WrongAudience);
        }
        parsed.verify(keys?)?;
        let claims = Claims::new(parsed.claims, parsed.times, parsed.payload, &self.words);
        self.verified.insert(token, &claims);
        Ok(claims)
    }

    fn check_times(&self, times: Times, now: u64) -> Result<(), Refusal> {
        let skew = self.config.clock_skew.as_secs();
        if times.begins.is_some_and(|begins| begins > now.saturating_add(skew)) {
            return Err(Refusal::NotYetValid);
        }
        let has_expired = match times.expires {
            // Nobody can mean it, and some take it for absent.
            Some(0) => true,
            Some(expires) => now > expires.saturating_add(skew),
            None => self.config.requires_expiration,
        };
        if has_expired { Err(Refusal::Expired) } else { Ok(()) }
    }
}

fn providers_of<'q>(requirement: &'q JwtRequirement, names: &mut Vec<&'q Arc<str>>) {
    match requirement {
        JwtRequirement::Provider(name) => names.push(name),
        JwtRequirement::Any(all) | JwtRequirement::All(all) => all.iter().for_each(|one| providers_of(one, names)),
        JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed => {}
    }
}

/// The same requirement, where leave to come without a token stands last in a list of alternatives: behind the providers
/// whose tokens are no good if they are there.
fn spelled_out(requirement: &JwtRequirement) -> JwtRequirement {
    use JwtRequirement::{All, AllowMissing, AllowMissingOrFailed, Any, Provider};
    match requirement {
        Provider(_) | AllowMissing | AllowMissingOrFailed => requirement.clone(),
        All(all) => All(all.iter().map(spelled_out).collect()),
        Any(all) => {
            let mut all: Vec<_> = all.iter().map(spelled_out).collect();
            all.sort_by_key(|one| matches!(one, AllowMissing | AllowMissingOrFailed));
            Any(all)
        }
    }
}

/// A preflight of CORS, as Envoy knows it.
fn is_preflight(head: &RequestHead<'_>) -> bool {
    let has = |name: HeaderName| head.headers.get(name).is_some_and(|value| !value.is_empty());
    head.method == Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuers = self.providers.values().map(|provider| &provider.config.issuer);
        f.debug_list().entries(issuers).finish()
    }
}

impl fmt::Debug for Authenticated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.claims_of_all()).finish()
    }
}
