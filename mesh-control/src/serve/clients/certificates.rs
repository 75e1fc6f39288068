//! The desk of the certificate authority: who asks, whether they ask too often, and a line for the audit log whatever
//! becomes of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::identity::SpiffeId;

use crate::ca::{CertificateAuthority, DEFAULT_TTL, Issued, Pending, Refused, Tokens};
use crate::serve::clients::admission::Admission;
use crate::serve::clients::attest::{Attested, Caller, Claim, Denied, Method, attest, fits};

/// Certificates that one identity gets per second, after a burst of so many: what many replicas need that start or
/// renew at once, and what leaves the others most of a core.
const LIMIT: (u32, u32) = (50, 200);
/// Identities that are remembered before those that have not asked of late are forgotten.
const MANY: usize = 10_000;

/// The certificates that a server issues, and to whom.
///
/// ```
/// use std::sync::Arc;
/// use std::time::SystemTime;
///
/// use mesh_control::ca::CertificateAuthority;
/// use mesh_control::serve::{Certificates, Options};
///
/// let authority = CertificateAuthority::in_memory("cluster.local".parse()?, SystemTime::now())?;
/// let options = Options::default().certificates(Certificates::new(Arc::new(authority)));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Certificates {
    /// Who signs.
    pub authority: Arc<CertificateAuthority>,
    /// Development mode: whoever connects from this machine is who they say.
    pub dev: bool,
    /// The one-time tokens that are taken.
    pub tokens: Option<Tokens>,
    /// How long a certificate holds where the request does not say.
    pub ttl: Duration,
}

impl Certificates {
    /// Certificates of this authority, for those who have a live one of it.
    pub fn new(authority: Arc<CertificateAuthority>) -> Certificates {
        Certificates { authority, dev: false, tokens: None, ttl: DEFAULT_TTL }
    }

    /// Takes these one-time tokens, too.
    pub fn tokens(mut self, tokens: impl Into<Option<Tokens>>) -> Certificates {
        self.tokens = tokens.into();
        self
    }

    /// Gives certificates that hold for so long where the request does not say, instead of a day; seven days at most.
    pub fn ttl(mut self, ttl: Duration) -> Certificates {
        self.ttl = ttl;
        self
    }

    /// Whether everybody on this machine is who they say; see [`dev`](field@Self::dev).
    pub fn dev(mut self, dev: bool) -> Certificates {
        self.dev = dev;
        self
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub(crate) csr: String,
    pub(crate) ttl: i64,
    pub(crate) claim: Claim,
}

/// Why there is no certificate.
#[derive(Debug)]
pub(crate) enum Rejection {
    Denied(Denied),
    /// The same identity has asked too often.
    Throttled,
    Refused(Refused),
}

impl Rejection {
    fn reason(&self) -> String {
        match self {
            Rejection::Denied(Denied::Unauthenticated(why) | Denied::Forbidden(why)) => why.clone(),
            Rejection::Throttled => "this identity asks too often; try again later".to_owned(),
            Rejection::Refused(refused) => refused.to_string(),
        }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason())
    }
}

/// See the [module](self).
pub(crate) struct Desk {
    offers: Certificates,
    limits: Mutex<Limits>,
}

impl Desk {
    pub(crate) fn new(offers: Certificates) -> Desk {
        Desk { offers, limits: Mutex::default() }
    }

    pub(crate) fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.offers.authority
    }

    /// Answers an application, and notes it.
    pub(crate) fn apply(
        &self,
        application: &Application,
        caller: &Caller,
        now: (SystemTime, Instant),
    ) -> Result<Issued, Rejection> {
        let mut who = None;
        let answer = self.decide(application, caller, &mut who, now);
        let peer = caller.ip;
        let (identity, method) = match &who {
            Some((identity, method)) => (identity.as_str(), method.to_string()),
            None => ("", String::new()),
        };
        match &answer {
            Ok(issued) => tracing::info!(
                target: "mesh_control::audit",
                serial = issued.serial,
                identity,
                method,
                %peer,
                ttl = issued.ttl.as_secs(),
                "certificate issued"
            ),
            Err(rejection) => {
                let reason = rejection.reason();
                tracing::warn!(target: "mesh_control::audit", identity, method, %peer, reason, "certificate denied");
            }
        }
        answer
    }

    fn decide(
        &self,
        application: &Application,
        caller: &Caller,
        who: &mut Option<(SpiffeId, Method)>,
        (wall, now): (SystemTime, Instant),
    ) -> Result<Issued, Rejection> {
        let Certificates { authority, dev, .. } = &self.offers;
        let attested =
            attest(caller, &application.claim, &authority.trust_domain(), *dev).map_err(Rejection::Denied)?;
        let (identity, method, token) = match attested {
            Attested::Identity(identity, method) => (identity, method, None),
            Attested::ByToken(token) => {
                let pending = self.token(&token, wall).map_err(Rejection::Denied)?;
                (pending.identity.clone(), Method::Token, Some(pending))
            }
        };
        *who = Some((identity.clone(), method));
        if identity == SpiffeId::of_control_plane(&authority.trust_domain()) {
            let why = format!("{identity} is the control plane's own identity");
            return Err(Rejection::Denied(Denied::Forbidden(why)));
        }
        if token.is_some() {
            fits(&application.claim, &identity).map_err(Rejection::Denied)?;
        }
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything that takes long.
        if !limits.admit(&identity, now) {
            return Err(Rejection::Throttled);
        }
        drop(limits);
        let ttl = match application.ttl {
            0 => i64::try_from(self.offers.ttl.as_secs()).unwrap_or(i64::MAX),
            asked => asked,
        };
        let issued = authority.issue(&application.csr, &identity, ttl, wall).map_err(Rejection::Refused)?;
        // At last, so that a request that cannot be signed does not cost the token; the certificate is handed out to the
        // one who got as far as this.
        if let Some(pending) = token {
            spend(pending)?;
        }
        Ok(issued)
    }

    fn token(&self, token: &str, wall: SystemTime) -> Result<Pending, Denied> {
        let Some(tokens) = &self.offers.tokens else {
            return Err(Denied::Unauthenticated("this server takes no tokens: it has no --state-dir".to_owned()));
        };
        tokens.look(token, wall).map_err(|why| Denied::Unauthenticated(why.to_string()))
    }
}

fn spend(pending: Pending) -> Result<(), Rejection> {
    let unused = |why: &str| Rejection::Denied(Denied::Unauthenticated(why.to_owned()));
    match pending.spend() {
        Ok(true) => Ok(()),
        Ok(false) => Err(unused("the token was used meanwhile")),
        Err(why) => {
            tracing::error!("a token cannot be used up, so it counts for nothing: {why:#}");
            Err(unused("the token cannot be used up"))
        }
    }
}

/// How often each identity may ask.
#[derive(Debug, Default)]
struct Limits(HashMap<SpiffeId, Admission>);

impl Limits {
    fn admit(&mut self, identity: &SpiffeId, now: Instant) -> bool {
        if let Some(admission) = self.0.get_mut(identity) {
            return admission.admit(now).is_ok();
        }
        if self.0.len() >= MANY {
            self.0.retain(|_, admission| !admission.is_at_rest(now));
        }
        let (rate, burst) = LIMIT;
        let mut admission = Admission::new(rate, burst, Duration::ZERO);
        let admitted = admission.admit(now).is_ok();
        self.0.insert(identity.clone(), admission);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c14_an_identity_that_asks_too_often_is_throttled_and_the_others_are_not() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let id = |name: &str| format!("spiffe://td/ns/a/sa/{name}").parse().expect("an ID");
        let (greedy, modest) = (id("greedy"), id("modest"));
        let admitted = (0..1_000).filter(|_| limits.admit(&greedy, start)).count();
        assert!((200..=201).contains(&admitted), "{admitted}");
        assert!(limits.admit(&modest, start), "it has its own limit");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| limits.admit(&greedy, later)).count(), 50);
    }

    #[test]
    fn c14_identities_that_have_not_asked_of_late_are_forgotten() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for n in 0..MANY {
            limits.admit(&format!("spiffe://td/ns/a/sa/w{n}").parse().expect("an ID"), start);
        }
        limits.admit(&"spiffe://td/late".parse().expect("an ID"), start + Duration::from_secs(1));
        assert_eq!(limits.0.len(), 1);
    }
}
