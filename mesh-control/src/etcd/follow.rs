//! The objects in etcd as a source of configuration: a list of all of them, a watch from there on, and a look now and then at
//! whether whoever serves the watch is still one of them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Streaming;
use tracing::{info, warn};

use super::keys::{Prefix, end_of};
use super::known::{Event, Known, Listed, Subject};
use super::link::{Client, Failure, Member, failure};
use super::proto::{KeyValue, RangeRequest, ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::config::source::{ConfigStore, LONGEST_WAIT, Pauses, QUIET};
use crate::config::store::{Resources, Update};

/// Objects of one answer.
const PAGE: i64 = 100;
/// So many watches in a row may end soon after they began.
const MOST_BRIEF: u32 = 3;

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) pauses: Pauses,
    /// How often the member that serves the watch is asked whether it is one of a cluster that has a leader. A process that was
    /// stopped keeps its connections, and says nothing.
    pub(super) look: Duration,
    /// How long that may take.
    pub(super) patience: Duration,
    /// How soon a list that nobody believes is made again.
    pub(super) doubted: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let pauses = Pauses { first: ms(100), longest: s(3) };
        Pace { pauses, look: s(2), patience: s(3), doubted: s(3) }
    }
}

/// The objects below a prefix, followed for as long as somebody asks for the next change.
pub(crate) struct Store {
    client: Client,
    prefix: Prefix,
    subject: Subject,
    pace: Pace,
    known: Known,
    /// Whether all that there is was known once.
    is_synced: bool,
    watch: Option<Watch>,
    /// When something may be tried again, and how often it has failed in a row.
    rest: Instant,
    failures: u32,
    /// What has changed since the last look of whoever keeps the objects, and what that was told last.
    changed: Resources,
    lost: Option<String>,
    is_told: bool,
}

/// A watch, and who serves it.
struct Watch {
    member: Member,
    prefix: Prefix,
    begun: Instant,
    /// Whether it has begun: a member that knows no leader takes it, and ends it.
    is_created: bool,
    answers: Streaming<WatchResponse>,
    /// The next look at whether the member is well, or the one that is under way.
    look: BoxFuture<'static, Result<(), Failure>>,
}

impl Store {
    /// The objects of the configuration.
    pub(crate) fn new(client: Client, prefix: Prefix) -> Store {
        let subject = Subject::objects(&prefix);
        Store::of(client, prefix, subject, Pace::default())
    }

    /// What keys are about, at this pace.
    pub(super) fn of(client: Client, prefix: Prefix, subject: Subject, pace: Pace) -> Store {
        let known = Known::new(subject.clone());
        Store {
            client,
            prefix,
            subject,
            pace,
            known,
            is_synced: false,
            watch: None,
            rest: Instant::now(),
            failures: 0,
            changed: Resources::new(),
            lost: None,
            is_told: false,
        }
    }

    /// One step further: a list, the begin of a watch, or an answer of it. May be given up while there is a watch.
    async fn step(&mut self) {
        let Some(watch) = &mut self.watch else {
            sleep_until(self.rest).await;
            if let Err(failure) = self.begin().await {
                self.rest();
                self.lose(failure.to_string());
            }
            return;
        };
        let done = watch.next(self.pace).await.and_then(|answer| match answer {
            Some(answer) => self.take(answer),
            None => Ok(()),
        });
        let Err(failure) = done else { return };
        let Some(watch) = self.watch.take() else { return };
        self.client.leave(&watch.member).await;
        // A watch breaks off now and then, and goes on elsewhere: what matters is whether the next one begins, and lasts.
        if watch.begun.elapsed() > self.pace.pauses.longest {
            self.failures = 0;
        }
        self.rest();
        if !watch.is_created || self.failures > MOST_BRIEF {
            self.lose(failure.to_string());
        }
    }

    /// Waits before the next attempt, the longer the more have failed.
    fn rest(&mut self) {
        self.rest = Instant::now() + self.pace.pauses.pause(self.failures, fastrand::f64());
        self.failures += 1;
    }

    fn lose(&mut self, why: String) {
        if self.lost.as_ref() != Some(&why) {
            match self.is_synced {
                true => warn!("etcd cannot be followed, and what it held last is in force: {why}"),
                false => warn!("what etcd holds is not known yet, and nothing is served: {why}"),
            }
        }
        self.is_told &= self.lost.as_ref() == Some(&why);
        self.lost = Some(why);
    }

    fn find(&mut self) {
        if self.lost.take().is_some() {
            info!("etcd can be followed");
            self.is_told = false;
        }
    }

    /// Lists, where that is needed, and begins to watch.
    async fn begin(&mut self) -> Result<(), Failure> {
        if self.known.needs_list() {
            let (header, kvs) = list(&self.client, self.subject.root.clone()).await?;
            match self.known.list(header, &kvs, Instant::now()) {
                Listed::Taken(changed) => {
                    if !self.is_synced {
                        info!(
                            keys = kvs.len(),
                            revision = header.revision,
                            "what etcd holds below {} is known",
                            self.subject.root.escape_ascii()
                        );
                    }
                    (self.is_synced, self.is_told) = (true, false);
                    self.changed.extend(changed);
                }
                Listed::Doubted => {
                    self.lose("there is suddenly no object any more, which nobody believes yet".to_owned());
                    self.rest = Instant::now() + self.pace.doubted;
                    return Ok(());
                }
            }
        }
        let member = self.client.member().await?;
        self.known.rewatch();
        let key = self.subject.root.clone();
        let range_end = end_of(&key);
        let start_revision = self.known.revision.saturating_add(1);
        let asked = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, fragment: true };
        match member.watch(asked).await {
            Ok(answers) => {
                let look = look(member.clone(), self.prefix.clone(), self.pace);
                let (prefix, begun) = (self.prefix.clone(), Instant::now());
                self.watch = Some(Watch { member, prefix, begun, is_created: false, answers, look });
                Ok(())
            }
            Err(failure) => {
                self.client.leave(&member).await;
                Err(failure)
            }
        }
    }

    fn take(&mut self, answer: WatchResponse) -> Result<(), Failure> {
        let is_created = answer.created && !answer.canceled;
        match self.known.event(answer) {
            Event::Silent => {}
            Event::Changed(changed) => {
                self.changed.extend(changed);
                self.is_told = false;
            }
            Event::Expired(why) => {
                info!("all objects are listed anew: {why}");
                self.known.expire();
                self.watch = None;
                // A server to which its own list is too old is not asked as fast as it answers.
                self.rest = Instant::now() + self.pace.pauses.pause(0, fastrand::f64());
                return Ok(());
            }
            Event::Failed(why) => return Err(Failure::Lost(why)),
        }
        if is_created {
            self.find();
        }
        Ok(())
    }
}

impl Watch {
    /// The next answer; `None` where only the member was looked at.
    async fn next(&mut self, pace: Pace) -> Result<Option<WatchResponse>, Failure> {
        tokio::select! {
            biased;
            answer = self.answers.message() => match answer {
                Ok(Some(answer)) => {
                    self.is_created |= answer.created && !answer.canceled;
                    Ok(Some(answer))
                }
                Ok(None) => Err(Failure::Lost("the watch has ended".to_owned())),
                Err(status) => Err(failure(&status)),
            },
            looked = &mut self.look => {
                looked?;
                if !self.is_created {
                    return Err(Failure::Lost("the watch does not begin".to_owned()));
                }
                self.look = look(self.member.clone(), self.prefix.clone(), pace);
                Ok(None)
            }
        }
    }
}

/// After a pause, whether a member can say what there is now, which it has to ask the leader about.
fn look(member: Member, prefix: Prefix, pace: Pace) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        tokio::time::sleep(pace.look).await;
        let asked = RangeRequest { key: prefix.last(), keys_only: true, ..RangeRequest::default() };
        let answered = tokio::time::timeout(pace.patience, member.range(asked)).await;
        answered.unwrap_or_else(|_| Err(Failure::Lost(format!("no answer within {:?}", pace.patience)))).map(|_| ())
    })
}

/// All keys that begin with this and their values, as of one revision.
pub(super) async fn list(client: &Client, prefix: Vec<u8>) -> Result<(ResponseHeader, Vec<KeyValue>), Failure> {
    let range_end = end_of(&prefix);
    let mut asked = RangeRequest { key: prefix, range_end, limit: PAGE, ..RangeRequest::default() };
    let (mut first, mut all) = (None, Vec::new());
    loop {
        let answer = client.range(asked.clone()).await?;
        let header = *first.get_or_insert(answer.header.unwrap_or_default());
        let next = answer.kvs.last().map(|kv| [kv.key.as_slice(), &[0]].concat());
        all.extend(answer.kvs);
        match next.filter(|_| answer.more) {
            // What comes meanwhile is in none of the pages.
            Some(key) => (asked.key, asked.revision) = (key, header.revision),
            None => return Ok((header, all)),
        }
    }
}

impl ConfigStore for Store {
    fn name(&self) -> String {
        format!("etcd at {}, below {}", self.client.name(), self.prefix)
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Update>> {
        Box::pin(async move {
            while self.is_told || !self.is_synced {
                self.step().await;
            }
            let until = Instant::now() + LONGEST_WAIT;
            let mut quiet = Instant::now() + QUIET;
            while self.watch.is_some() {
                let before = self.changed.len();
                if timeout_at(quiet.min(until), self.step()).await.is_err() {
                    break;
                }
                if self.changed.len() != before {
                    quiet = Instant::now() + QUIET;
                }
            }
            self.is_told = true;
            let changed = std::mem::take(&mut self.changed);
            let lost = self.lost.as_ref().map(|why| format!("etcd cannot be followed ({why})"));
            Some(Update::Resources { changed, lost })
        })
    }
}
