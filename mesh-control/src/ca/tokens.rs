//! One-time tokens: with one of them a workload that has no certificate yet gets its first.
//!
//! A token is 256 random bits. What is kept of it is a file that is called by its hash and says whom it is for and until
//! when, so that nobody who reads the directory has a token. Whoever removes the file has used the token: of several who
//! try at once, one succeeds. Replicas on one etcd keep the same of it there, and say there that it was used.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::identity::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authority::since_epoch;
use super::files::{self, Present};
use crate::hex::hex;

/// How long a token is good for unless it is said otherwise.
pub const TOKEN_TTL: Duration = Duration::from_secs(600);
/// How long one can be.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Where a state directory keeps them.
const DIRECTORY: &str = "tokens";
/// Where it keeps whose tokens it takes: that of the server which uses it.
const TRUST_DOMAIN: &str = "trust-domain";
/// What the files end with.
const EXTENSION: &str = "json";
/// Digits of a token.
const DIGITS: usize = 64;

/// The one-time tokens of a server.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use mesh_control::ca::Tokens;
///
/// let state = tempfile::tempdir()?;
/// let web = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
/// let token = Tokens::of(state.path()).create(&web, Duration::from_secs(60), SystemTime::now())?;
/// assert_eq!(token.len(), 64);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    identity: String,
    /// In seconds since 1970.
    expires: u64,
}

/// Why a token is not taken.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It was never made, or is used up.
    Unknown,
    Expired,
    /// What is kept of it cannot be read; the log says why.
    Broken,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Unknown => f.write_str("there is no such token, or it was used"),
            Unusable::Expired => f.write_str("the token has expired"),
            // A path is not for whoever has no proof of who they are; the log has it.
            Unusable::Broken => f.write_str("what is kept of the token cannot be used"),
        }
    }
}

/// A new token, and what is kept of it.
pub(crate) struct NewToken {
    pub(crate) token: Zeroizing<String>,
    /// What it is kept under: its hash.
    pub(crate) name: String,
    /// Whom it is for, and until when.
    pub(crate) record: Vec<u8>,
}

impl NewToken {
    /// Makes one, which is kept nowhere yet.
    ///
    /// # Errors
    /// Where `ttl` is zero or longer than [`MAX_TOKEN_TTL`], or nobody can be called so.
    pub(crate) fn make(identity: &SpiffeId, ttl: Duration, now: SystemTime) -> anyhow::Result<NewToken> {
        let most = MAX_TOKEN_TTL.as_secs();
        ensure!(
            (1..=most).contains(&ttl.as_secs()),
            "a token cannot be good for {} s: 1 to {most} s are possible",
            ttl.as_secs()
        );
        ensure!(
            identity.workload().is_some(),
            "{identity} is nobody's: a workload is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
        );
        let mut secret = Zeroizing::new([0; DIGITS / 2]);
        aws_lc_rs::rand::fill(&mut secret[..]).map_err(|_| anyhow!("the system has no randomness"))?;
        let token = Zeroizing::new(hex(&secret[..]));
        let record = Record { identity: identity.to_string(), expires: since_epoch(now).saturating_add(ttl.as_secs()) };
        Ok(NewToken { name: hash(&token), record: serde_json::to_vec(&record)?, token })
    }
}

/// What is kept of a token is kept under this; `None` where it has not the form of one.
pub(crate) fn token_name(token: &str) -> Option<String> {
    let is_token = token.len() == DIGITS && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_token.then(|| hash(token))
}

fn hash(token: &str) -> String {
    hex(digest(&SHA256, token.as_bytes()).as_ref())
}

/// A token that is good, and not used yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) identity: SpiffeId,
    /// What it is kept under.
    pub(crate) name: String,
    /// Until when it is good, in seconds since 1970.
    expires: u64,
    /// The file in which it is kept, if it is in one.
    path: Option<PathBuf>,
}

impl Tokens {
    /// The tokens in a server's state directory.
    pub fn of(state: &Path) -> Tokens {
        Tokens { dir: state.join(DIRECTORY) }
    }

    /// Makes a token with which whoever has it gets a certificate of this identity, once, and not after `ttl`.
    ///
    /// # Errors
    /// Where `ttl` is zero or longer than [`MAX_TOKEN_TTL`], or others can get at the directory; where there is no such state
    /// directory, nobody can be called so, or the server that uses it is of another trust domain.
    pub fn create(&self, identity: &SpiffeId, ttl: Duration, now: SystemTime) -> anyhow::Result<Zeroizing<String>> {
        let state = self.dir.parent().unwrap_or(&self.dir);
        ensure!(
            state.is_dir(),
            "there is no state directory {}: name the --state-dir of the server that is to take the token",
            state.display()
        );
        let made = NewToken::make(identity, ttl, now)?;
        if let Some(domain) = self.trust_domain()? {
            ensure!(
                identity.trust_domain() == domain,
                "{identity} is of another trust domain than {domain}, whose server uses {}",
                state.display()
            );
        }
        files::directory(&self.dir)?;
        self.forget_expired(now)?;
        let path = self.path(&made.name);
        let written = files::write(&path, &made.record, Present::Keep);
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(made.token)
    }

    /// Notes the trust domain of the server that takes these tokens: none is made for another one.
    ///
    /// # Errors
    /// Where others can get at the directory, or it cannot be written.
    pub fn keep_to(&self, domain: &TrustDomain) -> anyhow::Result<()> {
        files::directory(&self.dir)?;
        let path = self.dir.join(TRUST_DOMAIN);
        let written = files::write(&path, domain.as_str().as_bytes(), Present::Replace);
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// The trust domain of the server that takes these tokens; `None` while there was none.
    ///
    /// # Errors
    /// Where what is known of it cannot be read.
    pub fn trust_domain(&self) -> anyhow::Result<Option<String>> {
        let known = files::read(&self.dir.join(TRUST_DOMAIN))?;
        Ok(known.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whom a token is for. It is not used up by that.
    pub(crate) fn look(&self, token: &str, now: SystemTime) -> Result<Pending, Unusable> {
        // Before the first token is made, there is no directory.
        let Some(name) = token_name(token).filter(|_| self.dir.exists()) else { return Err(Unusable::Unknown) };
        let path = self.path(&name);
        let record = (|| {
            files::check_directory(&self.dir)?;
            read(&path)
        })();
        Pending::judge(name, Some(path), record, now)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(EXTENSION)
    }

    fn forget_expired(&self, now: SystemTime) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot read {}", self.dir.display()))? {
            let path = entry?.path();
            let is_record = path.extension().is_some_and(|extension| extension == EXTENSION);
            // What cannot be read stays, for somebody to look at.
            if is_record && matches!(read(&path), Ok(Some((_, expires))) if expires <= since_epoch(now)) {
                // Another process may be at it, too.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

impl Pending {
    /// Whom a token is for by what is kept of it elsewhere than in a file.
    pub(crate) fn of(name: String, record: Option<&[u8]>, now: SystemTime) -> Result<Pending, Unusable> {
        let parsed = record.map(|bytes| parse(bytes).with_context(|| name.clone())).transpose();
        Pending::judge(name, None, parsed, now)
    }

    fn judge(
        name: String,
        path: Option<PathBuf>,
        record: anyhow::Result<Option<(SpiffeId, u64)>>,
        now: SystemTime,
    ) -> Result<Pending, Unusable> {
        match record {
            Ok(None) => Err(Unusable::Unknown),
            Ok(Some((_, expires))) if expires <= since_epoch(now) => Err(Unusable::Expired),
            Ok(Some((identity, expires))) => Ok(Pending { identity, name, expires, path }),
            Err(why) => {
                tracing::error!("a token cannot be used: {why:#}");
                Err(Unusable::Broken)
            }
        }
    }

    /// How long it is good still.
    pub(crate) fn left(&self, now: SystemTime) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(since_epoch(now)))
    }

    /// Uses the token up, where it is in a file. False where somebody else has done so meanwhile.
    pub(crate) fn spend(self) -> anyhow::Result<bool> {
        let Some(path) = self.path else { return Ok(true) };
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
        // A crash must not bring it back.
        files::sync_directory_of(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        Ok(true)
    }
}

fn read(path: &Path) -> anyhow::Result<Option<(SpiffeId, u64)>> {
    let Some(bytes) = files::read(path)? else { return Ok(None) };
    parse(&bytes).map(Some).with_context(|| path.display().to_string())
}

fn parse(record: &[u8]) -> anyhow::Result<(SpiffeId, u64)> {
    let record: Record = serde_json::from_slice(record)?;
    Ok((record.identity.parse()?, record.expires))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::UNIX_EPOCH;

    use super::*;

    const NOW: u64 = 1_795_824_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn web() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an ID")
    }

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let state = tempfile::tempdir().expect("a directory");
        let tokens = Tokens::of(state.path());
        (state, tokens)
    }

    #[test]
    fn c8_a_token_is_good_once_for_one_identity_and_not_for_ever() {
        let (_state, tokens) = tokens();
        assert!(matches!(tokens.look(&"0".repeat(64), at(NOW)), Err(Unusable::Unknown)), "none was made yet");
        let token = tokens.create(&web(), TOKEN_TTL, at(NOW)).expect("made");
        assert!(matches!(tokens.look(&token, at(NOW + 600)), Err(Unusable::Expired)));
        let pending = tokens.look(&token, at(NOW + 599)).expect("it is good");
        assert_eq!(pending.identity, web());
        let again = tokens.look(&token, at(NOW)).expect("looking does not use it up");
        assert!(pending.spend().expect("ours"));
        assert!(!again.spend().expect("somebody else's"));
        assert!(matches!(tokens.look(&token, at(NOW)), Err(Unusable::Unknown)));
        for wrong in ["", "../../ca/root", &token.to_uppercase(), &token[1..], &format!("{}0", *token), &"0".repeat(64)]
        {
            assert!(matches!(tokens.look(wrong, at(NOW)), Err(Unusable::Unknown)), "{wrong}");
        }
        for ttl in [Duration::ZERO, MAX_TOKEN_TTL + Duration::from_secs(1), Duration::MAX] {
            assert!(tokens.create(&web(), ttl, at(NOW)).is_err(), "{ttl:?}");
        }
    }

    #[test]
    fn c8_of_a_thousand_who_use_a_token_at_once_one_succeeds() {
        let (_state, tokens) = tokens();
        let (tokens, token) = (&tokens, &tokens.create(&web(), TOKEN_TTL, at(NOW)).expect("made"));
        let start = &std::sync::Barrier::new(20);
        let spent: usize = std::thread::scope(|scope| {
            let race = move || {
                let all: Vec<_> = (0..50).filter_map(|_| tokens.look(token, at(NOW)).ok()).collect();
                start.wait();
                all.into_iter().filter_map(|pending| pending.spend().ok()).filter(|spent| *spent).count()
            };
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(race)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(spent, 1);
    }

    #[test]
    fn c8_what_is_kept_of_a_token_is_not_the_token() {
        let (state, tokens) = tokens();
        let token = tokens.create(&web(), TOKEN_TTL, at(NOW)).expect("made");
        let dir = state.path().join(DIRECTORY);
        let files: Vec<_> = fs::read_dir(&dir).expect("there").map(|entry| entry.expect("there").path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        let kept = format!("{} {}", file.display(), fs::read_to_string(file).expect("there"));
        assert!(!kept.contains(&**token) && kept.contains(web().as_str()), "{kept}");
        assert_eq!(fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).expect("there").permissions().mode() & 0o777, 0o700);
        tokens.create(&web(), TOKEN_TTL, at(NOW + 600)).expect("made");
        assert!(!file.exists(), "it has expired, and is forgotten");
    }

    #[test]
    fn a_token_that_others_could_have_made_or_that_is_broken_is_not_taken() {
        let (state, tokens) = tokens();
        let token = tokens.create(&web(), TOKEN_TTL, at(NOW)).expect("made");
        let dir = state.path().join(DIRECTORY);
        let refused = || matches!(tokens.look(&token, at(NOW)), Err(Unusable::Broken));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("ours");
        assert!(refused() && tokens.create(&web(), TOKEN_TTL, at(NOW)).is_err());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("ours");
        assert!(tokens.look(&token, at(NOW)).is_ok());
        for text in ["", "{}", "{\"identity\":\"spiffe://td\",\"expires\":9999999999}", "[1]"] {
            fs::write(tokens.path(&token_name(&token).expect("a token")), text).expect("written");
            assert!(refused(), "{text}");
        }
    }
}
