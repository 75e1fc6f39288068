//! Lists and watches one kind for good, and tells of every change, and of every time that nobody can.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Client, Failure, Line};
use super::kinds::Resource;
use super::known::{Change, Event, Known, Listed};
use super::list::{LIST, list_any};
use crate::config::source::Pauses;

/// For how long the server is asked to keep a watch, in seconds.
const WATCH: u64 = 290;
/// A watch that says nothing for this long is one that nobody serves: the server should have ended it.
const SILENCE: Duration = Duration::from_secs(330);

/// So many watches in a row may end within this time without a word.
const MOST_SILENT: u32 = 5;
const MUTE: Duration = Duration::from_secs(10);

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) pauses: Pauses,
    /// How often is looked whether a kind is there by now.
    pub(super) absent: Duration,
    /// How soon a list that nobody believes is made again.
    pub(super) doubted: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let pauses = Pauses { first: Duration::from_millis(200), longest: Duration::from_secs(3) };
        Pace { pauses, absent: Duration::from_secs(30), doubted: Duration::from_secs(3) }
    }
}

/// What becomes of a kind.
pub(super) struct News {
    /// Whose: its place among all that are followed.
    pub(super) of: usize,
    pub(super) what: What,
}

pub(super) enum What {
    /// All that it holds is known, with these changes, in this version of the kind.
    Listed(Vec<Change>, &'static str),
    Changed(Change, &'static str),
    /// It cannot be followed, for this reason.
    Lost(String),
    /// It can be again.
    Found,
}

/// One kind, in one namespace or in all.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) of: usize,
    pub(super) news: mpsc::Sender<News>,
    pub(super) pace: Pace,
}

/// Why a watch has ended.
enum Ended {
    /// In its time, or with what came over it read: it goes on from there.
    Normally {
        /// It said nothing.
        is_silent: bool,
    },
    Expired,
    Lost(String),
    /// Nobody wants to know any more.
    Unwanted,
}

impl Follower {
    /// Ends when nobody wants to know any more.
    pub(super) async fn run(self) {
        let mut known = Known::default();
        let mut failures = 0;
        loop {
            let listed = match list_any(&self.client, self.resource, self.namespace.as_deref()).await {
                Ok(Some((version, items, at))) => match known.list(items, at, Instant::now()) {
                    Ok(listed) => Ok((listed, version)),
                    Err(why) => Err(why),
                },
                Ok(None) => Ok((known.absent(Instant::now()), "")),
                Err(why) => Err(why),
            };
            let said = match listed {
                Ok((Listed::Taken(changes), version)) => {
                    if !self.tell(What::Listed(changes, version)).await {
                        return;
                    }
                    if version.is_empty() {
                        failures = 0;
                        self.await_group().await;
                        continue;
                    }
                    let listed = Instant::now();
                    if !self.watch_on(&mut known, version).await {
                        return;
                    }
                    // A server to which its own list is too old is not asked as fast as it answers.
                    if listed.elapsed() > self.pace.pauses.longest {
                        failures = 0;
                    } else {
                        sleep(self.pace.pauses.pause(failures, fastrand::f64())).await;
                        failures += 1;
                    }
                    continue;
                }
                Ok((Listed::Doubted, _)) => {
                    let why = self.about("there is suddenly none any more, which nobody believes yet");
                    let said = self.tell(What::Lost(why)).await;
                    sleep(self.pace.doubted).await;
                    said
                }
                Err(why) => {
                    let said = self.tell(What::Lost(self.about(&why))).await;
                    sleep(self.pace.pauses.pause(failures, fastrand::f64())).await;
                    failures += 1;
                    said
                }
            };
            if !said {
                return;
            }
        }
    }

    /// Watches until only a list can say what there is. Returns whether anybody wants to know.
    async fn watch_on(&self, known: &mut Known, version: &'static str) -> bool {
        let (mut failures, mut silent) = (0, 0);
        loop {
            let begun = Instant::now();
            match self.watch(known, version).await {
                Ended::Unwanted => return false,
                Ended::Expired => return true,
                Ended::Normally { is_silent } if !is_silent || begun.elapsed() > MUTE => {
                    (failures, silent) = (0, 0);
                    if begun.elapsed() <= self.pace.pauses.first {
                        sleep(self.pace.pauses.pause(0, fastrand::f64())).await;
                    }
                }
                // Somebody between may end every watch, so that no change would ever be heard of.
                Ended::Normally { .. } if silent >= MOST_SILENT => {
                    let why = self.about("every watch ends as soon as it begins");
                    let is_wanted = self.tell(What::Lost(why)).await;
                    sleep(self.pace.pauses.longest).await;
                    return is_wanted;
                }
                Ended::Normally { .. } => {
                    silent += 1;
                    sleep(self.pace.pauses.pause(0, fastrand::f64())).await;
                }
                Ended::Lost(why) => {
                    if !self.tell(What::Lost(self.about(&why))).await {
                        return false;
                    }
                    sleep(self.pace.pauses.pause(failures, fastrand::f64())).await;
                    failures += 1;
                    // It may be another server by now, or one that has lost its memory.
                    if failures > 3 {
                        return true;
                    }
                }
            }
        }
    }

    /// One watch, from what is known on.
    async fn watch(&self, known: &mut Known, version: &'static str) -> Ended {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH}&resourceVersion={}{}",
            self.resource.path(version, self.namespace.as_deref()),
            known.version,
            self.resource.selector(),
        );
        let mut answer = match self.client.stream(&path).await {
            Ok(answer) => answer,
            Err(Failure::Status(StatusCode::GONE | StatusCode::NOT_FOUND, _)) => return Ended::Expired,
            Err(failure) => return Ended::Lost(failure.to_string()),
        };
        if !self.tell(What::Found).await {
            return Ended::Unwanted;
        }
        let mut is_silent = true;
        loop {
            let line = match timeout(SILENCE, answer.line()).await {
                Ok(Line::Whole(line)) => line,
                // A watch ends now and then, and breaks off as often: what matters is whether the next one begins.
                Ok(Line::End) => return Ended::Normally { is_silent },
                // The next watch would begin with the same one.
                Ok(Line::TooLong) => {
                    let why = self.about("an event is too long to be one");
                    return if self.tell(What::Lost(why)).await { Ended::Expired } else { Ended::Unwanted };
                }
                Err(_) => return Ended::Lost(format!("nothing was heard for {SILENCE:?}")),
            };
            is_silent = false;
            match known.event(&line) {
                Ok(Event::Bookmark) => {}
                Ok(Event::Changed(change)) => {
                    if !self.tell(What::Changed(change, version)).await {
                        return Ended::Unwanted;
                    }
                }
                Ok(Event::Expired) => return Ended::Expired,
                Ok(Event::Failed(why)) | Err(why) => return Ended::Lost(why),
            }
        }
    }

    /// Waits until there may be such a kind. Of a group that is not there, one question is enough.
    async fn await_group(&self) {
        loop {
            sleep(self.pace.absent).await;
            let asked = self.client.get(&format!("/apis/{}", self.resource.group), LIST).await;
            if !matches!(asked, Err(Failure::Status(StatusCode::NOT_FOUND, _))) {
                return;
            }
        }
    }

    fn about(&self, why: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} of namespace {namespace}: {why}", self.resource.plural),
            None => format!("{}: {why}", self.resource.plural),
        }
    }

    async fn tell(&self, what: What) -> bool {
        self.news.send(News { of: self.of, what }).await.is_ok()
    }
}
