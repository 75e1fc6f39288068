//! Lists and watches one kind for good, and tells of every change, and of every time that nobody can.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Client, Failure};
use super::kinds::Resource;
use super::known::{Change, Event, Known, Listed};

/// Objects of one answer.
const PAGE: u32 = 500;
/// How long a list may take, page by page.
const LIST: Duration = Duration::from_secs(60);
/// For how long the server is asked to keep a watch, in seconds.
const WATCH: u64 = 290;
/// A watch that says nothing for this long is one that nobody serves: the server should have ended it.
const SILENCE: Duration = Duration::from_secs(330);

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The first pause after something went wrong, and the longest.
    pub(super) pauses: (Duration, Duration),
    /// How often is looked whether a kind is there by now.
    pub(super) absent: Duration,
    /// How soon a list that nobody believes is made again.
    pub(super) doubted: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let pauses = (Duration::from_millis(200), Duration::from_secs(3));
        Pace { pauses, absent: Duration::from_secs(30), doubted: Duration::from_secs(3) }
    }
}

impl Pace {
    /// How long to wait after so many failures in a row, with `random` from 0 to 1.
    fn pause(self, failures: u32, random: f64) -> Duration {
        let (first, longest) = self.pauses;
        first.saturating_mul(1 << failures.min(8)).min(longest).mul_f64(0.5 + random / 2.0)
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

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

/// Why a watch has ended.
enum Ended {
    /// In its time, or with what came over it read: it goes on from there.
    Normally,
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
            let listed = match self.list_any().await {
                Ok(Some((version, items, at))) => match known.list(items, at, Instant::now()) {
                    Ok(listed) => Ok((listed, version)),
                    Err(why) => Err(why),
                },
                Ok(None) => Ok((known.absent(Instant::now()), "")),
                Err(why) => Err(why),
            };
            let said = match listed {
                Ok((Listed::Taken(changes), version)) => {
                    failures = 0;
                    if !self.tell(What::Listed(changes, version)).await {
                        return;
                    }
                    if version.is_empty() {
                        self.await_group().await;
                        continue;
                    }
                    if !self.watch_on(&mut known, version).await {
                        return;
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
                    sleep(self.pace.pause(failures, fastrand::f64())).await;
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
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            match self.watch(known, version).await {
                Ended::Unwanted => return false,
                Ended::Expired => return true,
                Ended::Normally if begun.elapsed() > self.pace.pauses.0 => failures = 0,
                Ended::Normally => sleep(self.pace.pause(0, fastrand::f64())).await,
                Ended::Lost(why) => {
                    if !self.tell(What::Lost(self.about(&why))).await {
                        return false;
                    }
                    sleep(self.pace.pause(failures, fastrand::f64())).await;
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
        loop {
            let line = match timeout(SILENCE, answer.line()).await {
                Ok(Ok(Some(line))) => line,
                // A watch ends now and then, and breaks off as often: what matters is whether the next one begins.
                Ok(Ok(None) | Err(_)) => return Ended::Normally,
                Err(_) => return Ended::Lost(format!("nothing was heard for {SILENCE:?}")),
            };
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

    /// All that there is, in the best version that is served; `None` where none is.
    async fn list_any(&self) -> Result<Option<(&'static str, Vec<Value>, String)>, String> {
        for version in self.resource.versions {
            match self.list(version).await {
                Ok((items, at)) => return Ok(Some((version, items, at))),
                Err(Failure::Status(StatusCode::NOT_FOUND, _)) if self.resource.may_be_absent() => {}
                Err(failure) => return Err(failure.to_string()),
            }
        }
        // While it starts, a server does not know its kinds yet.
        match self.client.get("/readyz", LIST).await {
            Ok(_) => Ok(None),
            Err(failure) => Err(format!("nobody can tell whether there is such a kind: {failure}")),
        }
    }

    async fn list(&self, version: &str) -> Result<(Vec<Value>, String), Failure> {
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let path = format!(
                "{}?limit={PAGE}{}{}",
                self.resource.path(version, self.namespace.as_deref()),
                self.resource.selector(),
                if next.is_empty() { String::new() } else { format!("&continue={next}") },
            );
            let bytes = match self.client.get(&path, LIST).await {
                // The pages that are left have grown too old: from the beginning.
                Err(Failure::Status(StatusCode::GONE, _)) if !next.is_empty() => {
                    (items, next) = Default::default();
                    continue;
                }
                answer => answer?,
            };
            let list: List = serde_json::from_slice(&bytes).map_err(|error| Failure::Lost(error.into()))?;
            items.extend(list.items.into_iter().flatten());
            if list.metadata.next.is_empty() {
                return Ok((items, list.metadata.resource_version));
            }
            next = list.metadata.next;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let pauses: Vec<u128> =
            [0, 1, 4, 9, 99].map(|failures| Pace::default().pause(failures, 1.0).as_millis()).to_vec();
        assert_eq!(pauses, [200, 400, 3000, 3000, 3000]);
        assert_eq!(Pace::default().pause(0, 0.0), Duration::from_millis(100));
    }
}
