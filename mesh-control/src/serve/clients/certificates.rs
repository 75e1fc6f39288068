//! The desk of the certificate authority: who asks, whether they ask too often, and a line for the audit log whatever
//! becomes of it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::identity::SpiffeId;
use zeroize::Zeroizing;

use crate::ca::{CertificateAuthority, DEFAULT_TTL, Issued, Pending, Refused, Tokens, Unusable, token_name};
use crate::etcd::{Failure, SharedTokens};
use crate::serve::clients::admission::{Admission, Crowded};
use crate::serve::clients::attest::{Attested, Caller, Claim, Denied, Method, attest, fits};
use crate::serve::clients::authority::AuthorityStatus;
use crate::serve::clients::issued::{IssuedBook, IssuedStatus};
use crate::serve::clients::kubernetes::{KubernetesTokens, is_candidate};
use crate::serve::clients::metrics::{family, single};

/// Certificates that one connection gets per second, after a burst of so many. A workload makes a connection for each.
const OF_A_CONNECTION: (u32, u32) = (50, 200);
/// Certificates that one identity gets per second, after a burst of so many: two thousand replicas that start or renew at
/// once have theirs within five seconds, and the others most of a core.
const OF_AN_IDENTITY: (u32, u32) = (400, 200);
/// How long a request waits for its turn; who would have to wait longer is sent away.
const PATIENCE: Duration = Duration::from_secs(6);
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
    /// Those that all replicas know, and which tokens were used at one of them.
    pub(crate) shared_tokens: Option<SharedTokens>,
    /// Who says whose service account tokens of Kubernetes are.
    pub kubernetes: Option<KubernetesTokens>,
    /// How long a certificate holds where the request does not say.
    pub ttl: Duration,
    /// Whether a workload that has proven who it is gets a key of the server's making, over Envoy's secret discovery service.
    pub hands_out_keys: bool,
}

impl Certificates {
    /// Certificates of this authority, for those who have a live one of it.
    pub fn new(authority: Arc<CertificateAuthority>) -> Certificates {
        Certificates {
            authority,
            dev: false,
            tokens: None,
            shared_tokens: None,
            kubernetes: None,
            ttl: DEFAULT_TTL,
            hands_out_keys: false,
        }
    }

    /// Takes these one-time tokens, too.
    pub fn tokens(mut self, tokens: impl Into<Option<Tokens>>) -> Certificates {
        self.tokens = tokens.into();
        self
    }

    /// Takes the one-time tokens that all replicas know, too, and has each token used at one replica.
    pub(crate) fn shared_tokens(mut self, tokens: Option<SharedTokens>) -> Certificates {
        self.shared_tokens = tokens;
        self
    }

    /// Takes service account tokens of Kubernetes, too.
    pub fn kubernetes(mut self, tokens: impl Into<Option<KubernetesTokens>>) -> Certificates {
        self.kubernetes = tokens.into();
        self
    }

    /// Gives certificates that hold for so long where the request does not say, instead of a day; seven days at most.
    pub fn ttl(mut self, ttl: Duration) -> Certificates {
        self.ttl = ttl;
        self
    }

    /// Whether keys of the server's making are handed out; see [`hands_out_keys`](field@Self::hands_out_keys).
    pub fn hands_out_keys(mut self, hands_out: bool) -> Certificates {
        self.hands_out_keys = hands_out;
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
    /// It is no request, or its credential none.
    Unreadable(String),
    Denied(Denied),
    /// The same identity has asked too often.
    Throttled,
    Refused(Refused),
    /// Who has to be asked does not answer now.
    Unavailable(String),
}

impl Rejection {
    fn reason(&self) -> String {
        match self {
            Rejection::Unreadable(why) | Rejection::Unavailable(why) => why.clone(),
            Rejection::Denied(Denied::Unauthenticated(why) | Denied::Forbidden(why)) => why.clone(),
            Rejection::Throttled => "this identity asks too often; try again later".to_owned(),
            Rejection::Refused(refused) => refused.to_string(),
        }
    }

    /// One of [`REASONS`].
    fn word(&self) -> &'static str {
        match self {
            Rejection::Unreadable(_) => "unreadable",
            Rejection::Denied(Denied::Unauthenticated(_)) => "unauthenticated",
            Rejection::Denied(Denied::Forbidden(_)) => "forbidden",
            Rejection::Throttled => "throttled",
            Rejection::Refused(Refused::Request(_)) => "request",
            Rejection::Refused(Refused::Identity(_)) => "identity",
            Rejection::Refused(Refused::Authority(_)) => "authority",
            Rejection::Unavailable(_) => "unavailable",
        }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason())
    }
}

/// How often one connection has asked.
#[derive(Debug)]
pub(crate) struct Asked(Mutex<Admission>);

impl Default for Asked {
    fn default() -> Self {
        let (rate, burst) = OF_A_CONNECTION;
        Asked(Mutex::new(Admission::new(rate, burst, Duration::ZERO)))
    }
}

impl Asked {
    fn admit(&self, now: Instant) -> Result<(), Rejection> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.admit(now).map(drop).map_err(|_| Rejection::Throttled)
    }
}

/// Somebody whose turn it is, after a while.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) wait: Duration,
    identity: SpiffeId,
    method: Method,
    token: Option<Pending>,
}

/// See the [module](self).
pub(crate) struct Desk {
    offers: Certificates,
    limits: Mutex<Limits>,
    counts: Counts,
    book: IssuedBook,
    /// Streams on which Envoys are told whom to trust.
    envoys: AtomicU64,
}

impl Desk {
    pub(crate) fn new(offers: Certificates) -> Desk {
        Desk {
            offers,
            limits: Mutex::default(),
            counts: Counts::default(),
            book: IssuedBook::default(),
            envoys: AtomicU64::new(0),
        }
    }

    pub(crate) fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.offers.authority
    }

    /// Whose the token of a caller is, where it may be one of Kubernetes.
    pub(crate) async fn review(&self, caller: &Caller) -> Option<Result<SpiffeId, String>> {
        let kubernetes = self.offers.kubernetes.as_ref()?;
        let token = caller.token().filter(|token| is_candidate(token))?;
        Some(kubernetes.review(token, &self.authority().trust_domain()).await)
    }

    /// Takes an application: who it is of, and when it is their turn. A rejection is noted.
    pub(crate) async fn take(
        &self,
        application: &Application,
        caller: &Caller,
        asked: &Asked,
        now: (SystemTime, Instant),
    ) -> Result<Turn, Rejection> {
        let mut who = None;
        let taken = self.decide(application, caller, asked, &mut who, now).await;
        taken.inspect_err(|rejection| self.note(who.as_ref(), caller.ip, rejection))
    }

    /// Signs for somebody whose turn has come, and notes it.
    pub(crate) async fn serve(
        &self,
        application: &Application,
        turn: Turn,
        caller: &Caller,
        wall: SystemTime,
    ) -> Result<Issued, Rejection> {
        let Turn { identity, method, token, .. } = turn;
        let issued = self.issue(application, &identity, token, wall).await;
        match &issued {
            Ok(issued) => self.issued(issued, &identity, method, caller.ip, wall),
            Err(rejection) => self.note(Some(&(identity, method)), caller.ip, rejection),
        }
        issued
    }

    /// Whether private keys leave the server.
    pub(crate) fn hands_out_keys(&self) -> bool {
        self.offers.hands_out_keys
    }

    /// When it is somebody's turn whose certificate says who they are, and who asks for a key besides.
    pub(crate) fn turn_of(
        &self,
        identity: &SpiffeId,
        peer: IpAddr,
        asked: &Asked,
        now: Instant,
    ) -> Result<Duration, Rejection> {
        Counts::add(&self.counts.requests);
        let turn = asked.admit(now).and_then(|()| self.wait(identity, now));
        turn.inspect_err(|rejection| self.note(Some(&(identity.clone(), Method::Secret)), peer, rejection))
    }

    /// A new key and a certificate for somebody whose turn has come, and notes it.
    pub(crate) fn hand_out(
        &self,
        identity: &SpiffeId,
        peer: IpAddr,
        wall: SystemTime,
    ) -> Result<(Zeroizing<String>, Issued), Rejection> {
        let ttl = i64::try_from(self.offers.ttl.as_secs()).unwrap_or(i64::MAX);
        let made = self.authority().issue_with_key(identity, ttl, wall).map_err(Rejection::Refused);
        match &made {
            Ok((_, issued)) => self.issued(issued, identity, Method::Secret, peer, wall),
            Err(rejection) => self.note(Some(&(identity.clone(), Method::Secret)), peer, rejection),
        }
        made
    }

    /// Notes a request that cannot be read.
    pub(crate) fn unreadable(&self, peer: IpAddr, why: &str) -> Rejection {
        Counts::add(&self.counts.requests);
        let rejection = Rejection::Unreadable(why.to_owned());
        self.note(None, peer, &rejection);
        rejection
    }

    fn issued(&self, issued: &Issued, identity: &SpiffeId, method: Method, peer: IpAddr, wall: SystemTime) {
        self.book.note(identity, &issued.serial, wall + issued.ttl);
        Counts::add(&self.counts.issued);
        tracing::info!(
            target: "mesh_control::audit",
            serial = issued.serial,
            identity = identity.as_str(),
            method = method.to_string(),
            %peer,
            ttl = issued.ttl.as_secs(),
            "certificate issued"
        );
    }

    /// Before anything that takes long.
    fn wait(&self, identity: &SpiffeId, now: Instant) -> Result<Duration, Rejection> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.admit(identity, now).map_err(|_| Rejection::Throttled)
    }

    fn note(&self, who: Option<&(SpiffeId, Method)>, peer: IpAddr, rejection: &Rejection) {
        self.counts.rejected(rejection);
        let (identity, method) = match who {
            Some((identity, method)) => (identity.as_str(), method.to_string()),
            None => ("", String::new()),
        };
        let reason = rejection.reason();
        tracing::warn!(target: "mesh_control::audit", identity, method, %peer, reason, "certificate denied");
    }

    async fn decide(
        &self,
        application: &Application,
        caller: &Caller,
        asked: &Asked,
        who: &mut Option<(SpiffeId, Method)>,
        (wall, now): (SystemTime, Instant),
    ) -> Result<Turn, Rejection> {
        Counts::add(&self.counts.requests);
        let Certificates { authority, dev, .. } = &self.offers;
        let attested =
            attest(caller, &application.claim, &authority.trust_domain(), *dev).map_err(Rejection::Denied)?;
        let (identity, method, token) = match attested {
            Attested::Identity(identity, method) => (identity, method, None),
            Attested::ByToken(token) => {
                // Before anybody is asked about it: a token that is made up costs as much.
                asked.admit(now)?;
                let pending = self.token(token, wall).await?;
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
        if token.is_none() {
            asked.admit(now)?;
        }
        let wait = self.wait(&identity, now)?;
        Ok(Turn { wait, identity, method, token })
    }

    async fn issue(
        &self,
        application: &Application,
        identity: &SpiffeId,
        token: Option<Pending>,
        wall: SystemTime,
    ) -> Result<Issued, Rejection> {
        let ttl = match application.ttl {
            0 => i64::try_from(self.offers.ttl.as_secs()).unwrap_or(i64::MAX),
            asked => asked,
        };
        let issued = self.authority().issue(&application.csr, identity, ttl, wall).map_err(Rejection::Refused)?;
        // At last, so that a request that cannot be signed does not cost the token; the certificate is handed out to the
        // one who got as far as this.
        if let Some(pending) = token {
            self.spend(pending, wall).await?;
        }
        Ok(issued)
    }

    /// Whom a token is for: one of the state directory, or else one that all replicas know.
    async fn token(&self, token: String, wall: SystemTime) -> Result<Pending, Rejection> {
        let Certificates { tokens, shared_tokens, .. } = &self.offers;
        if tokens.is_none() && shared_tokens.is_none() {
            return Err(unauthenticated("this server takes no tokens: it has neither --state-dir nor --etcd"));
        }
        let mut looked = Err(Unusable::Unknown);
        if let Some(tokens) = tokens.clone() {
            let shown = token.clone();
            looked = by_files(move || tokens.look(&shown, wall)).await?;
        }
        let is_unknown = matches!(looked, Err(Unusable::Unknown));
        if let (true, Some(shared), Some(name)) = (is_unknown, shared_tokens, token_name(&token)) {
            let record = shared.find(&name).await.map_err(|failure| away(&failure))?;
            looked = Pending::of(name, record.as_deref(), wall);
        }
        looked.map_err(|why| unauthenticated(&why.to_string()))
    }

    /// Uses a token up, at all replicas before it is here: a use that only this one knows would leave it good at others.
    async fn spend(&self, pending: Pending, wall: SystemTime) -> Result<(), Rejection> {
        let is_first = match &self.offers.shared_tokens {
            Some(shared) => {
                let spent = shared.spend(&pending.name, pending.left(wall)).await;
                spent.map_err(|failure| away(&failure))?
            }
            None => true,
        };
        // One that was used elsewhere is of no use here, either.
        match by_files(|| pending.spend()).await? {
            Ok(true) if is_first => Ok(()),
            Ok(_) => Err(unauthenticated("the token was used meanwhile")),
            Err(why) => {
                tracing::error!("a token cannot be used up, so it counts for nothing: {why:#}");
                Err(unauthenticated("the token cannot be used up"))
            }
        }
    }

    /// The certificates that hold, of each identity the last one.
    pub(crate) fn held(&self, now: SystemTime) -> Vec<IssuedStatus> {
        self.book.report(now)
    }

    /// What there is to say of the authority.
    pub(crate) fn status(&self, now: SystemTime) -> AuthorityStatus {
        let has_envoys = self.offers.hands_out_keys || self.envoys.load(Ordering::Relaxed) > 0;
        AuthorityStatus::of(self.authority(), has_envoys, now)
    }

    /// An Envoy asks whom to trust, or leaves.
    pub(crate) fn note_envoy(&self, is_here: bool) {
        match is_here {
            true => self.envoys.fetch_add(1, Ordering::Relaxed),
            false => self.envoys.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// Appends what was issued and what was not as Prometheus text, by Istio's names where it has them.
    pub(crate) fn write(&self, out: &mut String, now: SystemTime) {
        self.counts.write(out);
        self.status(now).write(out, now);
    }
}

/// What became of all requests.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    issued: AtomicU64,
    rejected: [AtomicU64; REASONS.len()],
}

/// Why there was no certificate, in one word.
const REASONS: [&str; 8] =
    ["unreadable", "unauthenticated", "forbidden", "throttled", "request", "identity", "authority", "unavailable"];

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn rejected(&self, rejection: &Rejection) {
        let index = REASONS.iter().position(|reason| *reason == rejection.word());
        index.and_then(|index| self.rejected.get(index)).iter().for_each(|counter| Counts::add(counter));
    }

    fn write(&self, out: &mut String) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |words: &[&str]| -> u64 {
            let counts = REASONS.iter().zip(&self.rejected).filter(|(reason, _)| words.contains(reason));
            counts.map(|(_, counter)| get(counter)).sum()
        };
        let unknown = of(&["unauthenticated", "forbidden"]);
        for (name, help, value) in [
            ("csr_count", "Requests for a certificate.", get(&self.requests)),
            ("success_cert_issuance_count", "Certificates issued.", get(&self.issued)),
            ("authentication_failure_count", "Requests of somebody who could not prove who they are.", unknown),
            (
                "csr_parsing_err_count",
                "Requests that could not be read or signed as they are.",
                of(&["request", "unreadable"]),
            ),
            ("id_extraction_err_count", "Requests for an identity of another trust domain.", of(&["identity"])),
            ("csr_sign_err_count", "Requests that the authority could not sign.", of(&["authority"])),
        ] {
            single(out, &format!("citadel_server_{name}"), "counter", help, value);
        }
        let name = "mesh_certificates_denied_total";
        family(out, name, "counter", "Requests for a certificate that were denied, by reason.");
        for (reason, counter) in REASONS.iter().zip(&self.rejected) {
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {}", get(counter));
        }
    }
}

/// Does something that looks at files.
async fn by_files<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Rejection> {
    let done = tokio::task::spawn_blocking(act).await;
    done.map_err(|_| Rejection::Unavailable("the server stops".to_owned()))
}

fn unauthenticated(why: &str) -> Rejection {
    Rejection::Denied(Denied::Unauthenticated(why.to_owned()))
}

/// Nobody knows whether a token was used at another replica: it counts for nothing until somebody does.
fn away(failure: &Failure) -> Rejection {
    tracing::warn!("etcd cannot say whether a token was used, so that it counts for nothing now: {failure}");
    let why =
        "etcd cannot be asked now whether the token was used: try again, and with a new token if it is refused then";
    Rejection::Unavailable(why.to_owned())
}

/// How often each identity may ask.
#[derive(Debug, Default)]
struct Limits(HashMap<SpiffeId, Admission>);

impl Limits {
    /// How long this one waits for its turn.
    fn admit(&mut self, identity: &SpiffeId, now: Instant) -> Result<Duration, Crowded> {
        if let Some(admission) = self.0.get_mut(identity) {
            return admission.admit(now);
        }
        if self.0.len() >= MANY {
            self.0.retain(|_, admission| !admission.is_at_rest(now));
        }
        let (rate, burst) = OF_AN_IDENTITY;
        let mut admission = Admission::new(rate, burst, PATIENCE);
        let admitted = admission.admit(now);
        self.0.insert(identity.clone(), admission);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::ca::{NewToken, TOKEN_TTL};
    use crate::etcd::tests::two_replicas;

    async fn ask(desk: &Desk, token: &str, wall: SystemTime) -> Result<Issued, Rejection> {
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().expect("a key"));
        let csr = csr.expect("a request").pem().expect("PEM");
        let application = Application { csr, ttl: 0, claim: Claim::default() };
        let caller = Caller {
            ip: [127, 0, 0, 1].into(),
            is_secured: false,
            certificate: None,
            bearer: Some(token.to_owned()),
            reviewed: None,
        };
        let turn = desk.take(&application, &caller, &Asked::default(), (wall, Instant::now())).await?;
        desk.serve(&application, turn, &caller, wall).await
    }

    fn used(asked: &Result<Issued, Rejection>) -> bool {
        matches!(asked, Err(Rejection::Denied(Denied::Unauthenticated(why))) if why.contains("was used"))
    }

    #[tokio::test]
    async fn c8_a_token_that_was_used_at_one_replica_is_refused_at_all_others() {
        let (shared, set_away) = two_replicas().await;
        let (wall, web) = (SystemTime::now(), "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an ID"));
        let authority = CertificateAuthority::in_memory("cluster.local".parse().expect("a domain"), wall);
        let authority = Arc::new(authority.expect("made"));
        let states = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
        let desks: Vec<_> = std::iter::zip(&states, &shared)
            .map(|(state, shared)| {
                let offers = Certificates::new(authority.clone()).tokens(Tokens::of(state.path()));
                Desk::new(offers.shared_tokens(Some(shared.clone())))
            })
            .collect();
        let made = || NewToken::make(&web, TOKEN_TTL, wall).expect("made");

        // Made once, it is good at any of them, and used at one.
        for (first, second) in [(0, 1), (1, 0)] {
            let NewToken { token, name, record } = made();
            shared[0].keep(&name, &record, TOKEN_TTL).await.expect("kept");
            let issued = ask(&desks[first], &token, wall).await.expect("it is good");
            assert_eq!(issued.chain.len(), 3);
            let again = [ask(&desks[second], &token, wall).await, ask(&desks[first], &token, wall).await];
            assert!(again.iter().all(used), "{again:?}");
        }
        let NewToken { token, name, record } = made();
        shared[0].keep(&name, &record, TOKEN_TTL).await.expect("kept");
        let late = ask(&desks[0], &token, wall + TOKEN_TTL).await;
        assert!(late.is_err_and(|why| why.to_string().contains("expired")));
        // Of many who bring it to both at once, one succeeds.
        let all = (0..40).map(|number: usize| ask(&desks[number % 2], &token, wall));
        let all = futures_util::future::join_all(all).await;
        assert_eq!(all.iter().filter(|asked| asked.is_ok()).count(), 1);

        // A copy of a state directory brings none back.
        let token = Tokens::of(states[0].path()).create(&web, TOKEN_TTL, wall).expect("made");
        let [from, to] = [&states[0], &states[1]].map(|state| state.path().join("tokens"));
        crate::ca::files::directory(&to).expect("made");
        for file in std::fs::read_dir(&from).expect("there") {
            let file = file.expect("there");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
        // While etcd is away nobody knows, and the token counts later.
        set_away(true);
        for token in [&*token, &*made().token] {
            let asked = ask(&desks[0], token, wall).await;
            assert!(matches!(&asked, Err(Rejection::Unavailable(why)) if why.contains("try again")), "{asked:?}");
        }
        set_away(false);
        ask(&desks[0], &token, wall).await.expect("it is good");
        let again = ask(&desks[1], &token, wall).await;
        assert!(used(&again), "{again:?}");
    }

    #[test]
    fn c14_a_connection_that_asks_too_often_is_throttled() {
        let (asked, start) = (Asked::default(), Instant::now());
        let admitted = |at| (0..1_000).filter(|_| asked.0.lock().expect("ours").admit(at).is_ok()).count();
        assert!((200..=201).contains(&admitted(start)));
        assert_eq!(admitted(start + Duration::from_secs(1)), 50);
    }

    #[test]
    fn two_thousand_replicas_of_one_identity_have_their_turn_within_ten_seconds_and_no_flood_has() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let id = |name: &str| format!("spiffe://td/ns/a/sa/{name}").parse().expect("an ID");
        let (many, modest) = (id("many"), id("modest"));
        let waits: Vec<_> = (0..2_000).map(|_| limits.admit(&many, start)).collect();
        assert!(waits.iter().all(|wait| wait.is_ok_and(|wait| wait < Duration::from_secs(10))), "{:?}", waits.last());
        assert!((0..8_000).any(|_| limits.admit(&many, start).is_err()), "c14: a flood is sent away");
        assert_eq!(limits.admit(&modest, start), Ok(Duration::ZERO), "it has its own limit");
    }

    #[test]
    fn c14_identities_that_have_not_asked_of_late_are_forgotten() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for n in 0..MANY {
            let _ = limits.admit(&format!("spiffe://td/ns/a/sa/w{n}").parse().expect("an ID"), start);
        }
        let late = "spiffe://td/late".parse().expect("an ID");
        limits.admit(&late, start + Duration::from_secs(1)).expect("admitted");
        assert_eq!(limits.0.len(), 1);
    }
}
