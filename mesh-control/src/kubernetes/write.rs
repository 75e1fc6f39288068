//! Writes what became of objects into their status, for as long as that is this replica's to do. What is there already is not written;
//! and nothing that goes wrong here is of any concern to who is served.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::attempts::{Attempts, May};
use super::client::Failure;
use super::elected::{ControllerName, clock};
use super::facts::Fact;
use super::follow::Pace;
use super::hub::Cluster;
use super::kinds::CLASS;
use super::objects::{text, text_name};
use super::status::{Wanted, class, foreign_controller, wanted};
use crate::period::date;
use crate::plane::{Asked, Plane};

/// How long changes are gathered before the next look, which is how often one is made at most.
pub(super) const GATHERED: Duration = Duration::from_millis(500);
/// How often is looked for what was refused, or is in doubt.
const AGAIN: Duration = Duration::from_secs(15);
/// Between two writes: 50 a second at most.
const APART: Duration = Duration::from_millis(20);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be written of which object.
type Due = Vec<(Arc<Fact>, Wanted)>;

/// Writes for good, while the Lease is held.
pub(super) async fn write(
    cluster: &Cluster,
    plane: &Plane,
    mut holds: watch::Receiver<Option<Instant>>,
    controller: &ControllerName,
    gathered: Duration,
) {
    let (mut attempts, mut failures) = (Attempts::default(), 0);
    let (mut of_classes, mut looked, mut told) = (Attempts::default(), None::<Instant>, HashSet::new());
    let mut snapshots = plane.subscribe();
    loop {
        // It is there for as long as this is.
        if holds.wait_for(|until| is_held(*until)).await.is_err() {
            return;
        }
        snapshots.mark_unchanged();
        let (facts, asked, own) = (cluster.clone(), plane.clone(), controller.clone());
        // What is there to compare is as much as the cluster holds.
        let Ok((names, due)) = spawn_blocking(move || look(&facts, &asked, &own)).await else { return };
        attempts.retain(&names.iter().map(|name| &**name).collect());
        match write_all(cluster, &mut attempts, due, &holds).await {
            Ok(()) => failures = 0,
            Err(why) => {
                if failures == 0 {
                    warn!("status cannot be written: {why}");
                }
                sleep(Pace::default().pauses.pause(failures, fastrand::f64())).await;
                failures += 1;
                continue;
            }
        }
        if looked.is_none_or(|at| at.elapsed() >= AGAIN) {
            looked = Some(Instant::now());
            if let Err(why) = write_classes(cluster, controller, &mut of_classes, &mut told, &holds).await {
                debug!("the status of GatewayClasses is not written: {why}");
            }
        }
        tokio::select! {
            _ = snapshots.changed() => {}
            () = cluster.facts_changed() => {}
            () = sleep(AGAIN) => {}
        }
        sleep(gathered).await;
    }
}

fn is_held(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() < until)
}

/// What belongs into every status, and is not there; and the names of all objects that have one.
fn look(cluster: &Cluster, plane: &Plane, controller: &ControllerName) -> (HashSet<Arc<str>>, Due) {
    let facts = cluster.facts();
    let asked: Vec<Asked> = facts.iter().map(|fact| fact.asked()).collect();
    let names = facts.iter().map(|fact| fact.text_name.clone()).collect();
    let (verdicts, now) = (plane.verdicts(&asked), date(clock().as_secs()));
    let due = facts.into_iter().zip(verdicts).filter_map(|(fact, verdict)| {
        let wanted = wanted(&fact, &verdict?, controller.as_str(), &now)?;
        Some((fact, wanted))
    });
    (names, due.collect())
}

/// Writes what became of GatewayClasses, as they are now: they are not followed. Of which of ours nobody says that here is `told` once.
///
/// # Errors
/// Why nothing can be written now.
async fn write_classes(
    cluster: &Cluster,
    controller: &ControllerName,
    attempts: &mut Attempts,
    told: &mut HashSet<Arc<str>>,
    holds: &watch::Receiver<Option<Instant>>,
) -> Result<(), Failure> {
    const VERSION: &str = "v1";
    let listed = match cluster.client().get(&CLASS.path(VERSION, None), PATIENCE).await {
        // There is no such kind, or it may not be seen.
        Err(Failure::Status(StatusCode::NOT_FOUND | StatusCode::FORBIDDEN, _)) => return Ok(()),
        listed => listed?,
    };
    let listed: Value = serde_json::from_slice(&listed).map_err(|error| Failure::Lost(error.into()))?;
    let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let facts: Vec<Arc<Fact>> = items.iter().filter_map(|item| class_fact(item, VERSION)).map(Arc::new).collect();
    attempts.retain(&facts.iter().map(|fact| &*fact.text_name).collect());
    for fact in &facts {
        if let Some(other) = foreign_controller(fact, controller.as_str())
            && told.insert(fact.text_name.clone())
        {
            warn!(
                "{} is of the controller {other}: its Gateways are served, and whether they are is for that one to say in its status; where \
                 it does not run any more, `--gateway-controller {other}` has it said in its place",
                fact.id()
            );
        }
    }
    let now = date(clock().as_secs());
    let due = facts.into_iter().filter_map(|fact| {
        let wanted = class(&fact, controller.as_str(), &now)?;
        Some((fact, wanted))
    });
    write_all(cluster, attempts, due.collect(), holds).await
}

fn class_fact(object: &Value, version: &'static str) -> Option<Fact> {
    let name = object.get("metadata")?.get("name")?.as_str()?;
    let name = ("".into(), name.into());
    let text = text(&CLASS, version, object);
    Some(Fact::of(&CLASS, version, &name, text_name(&CLASS, &name), text, object))
}

/// # Errors
/// Why nothing can be written now.
async fn write_all(
    cluster: &Cluster,
    attempts: &mut Attempts,
    due: Due,
    holds: &watch::Receiver<Option<Instant>>,
) -> Result<(), Failure> {
    for (fact, wanted) in due {
        if !is_held(*holds.borrow()) {
            return Ok(());
        }
        let name = &fact.text_name;
        match attempts.may(name, &fact.version, &wanted.words, Instant::now()) {
            May::Write => {}
            May::LastTime => warn!("{}: somebody else writes over its status; it is written once more", fact.id()),
            May::Wait | May::Never => continue,
        }
        let patch = json!({"metadata": {"resourceVersion": fact.version}, "status": wanted.patch});
        match cluster.client().patch(&fact.status_path(), patch.to_string().into(), PATIENCE).await {
            Ok(_) => debug!("{}: its status is written", fact.id()),
            // The newest is on its way here, and what belongs into that one is written then.
            Err(Failure::Status(StatusCode::CONFLICT, _)) => attempts.outdated(name),
            // What cannot be written of one object is in no other one's way, unless nothing can be.
            Err(Failure::Status(status, why))
                if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) =>
            {
                attempts.refused(name, Instant::now());
                // Of an object that is gone, that is said soon.
                if status != StatusCode::NOT_FOUND {
                    warn!("{}: its status is not written: {status}: {why}", fact.id());
                }
            }
            Err(failure) => {
                attempts.lost(name);
                return Err(failure);
            }
        }
        sleep(APART).await;
    }
    Ok(())
}
