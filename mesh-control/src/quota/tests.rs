//! Clients as the library has them against sessions and accounts, in virtual time: messages that take their time, streams that
//! break, clients that vanish, and a period that ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::rate_limit_quota::v3::BucketId;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::BucketAction as Kind;
use envoy_types::pb::envoy::r#type::v3::rate_limit_strategy::Strategy;
use envoy_types::pb::google::protobuf;
use mesh_core::limits::{QuotaBucket, QuotaUsage};
use mesh_core::model::{DescriptorAction, ExpiredQuota, QuotaSettings, QuotaStrategy, RateLimit};
use mesh_core::xds::quota::Usage;
use proptest::prelude::*;

use super::account::Account;
use super::*;
use crate::period::Unit;

/// How long a message may be on its way.
const SLOWEST: u64 = 1000;
/// The steps in which time passes.
const STEP: u64 = 250;
/// When it begins: in the middle of a minute.
const BEGIN: u64 = 30_000;

struct Client {
    bucket: QuotaBucket,
    session: Session,
    reports: VecDeque<(u64, Usage)>,
    actions: VecDeque<(u64, BucketAction)>,
}

struct World {
    start: Instant,
    now: u64,
    limit: u64,
    settings: Arc<QuotaSettings>,
    account: Account,
    clients: Vec<Client>,
    sessions: u64,
    /// Of this minute.
    passed: Vec<u64>,
    refused: u64,
    /// What nobody was told of, since its stream broke or its client vanished.
    lost: u64,
    /// Whether clients say by which share they go.
    tells: bool,
}

impl World {
    fn new(clients: usize, limit: u64, unassigned: QuotaStrategy) -> World {
        let id = RateLimit::by(vec![DescriptorAction::Constant { key: "name".into(), value: "all".into() }]);
        let mut settings = QuotaSettings::new(id, Duration::from_secs(1));
        settings.unassigned = unassigned;
        let closed = ExpiredQuota::Fallback(QuotaStrategy::DenyAll);
        settings.expired = Some((closed, Duration::from_secs(24 * 60 * 60)));
        let mut world = World {
            start: Instant::now(),
            now: BEGIN,
            limit,
            settings: Arc::new(settings),
            account: Account::default(),
            clients: Vec::new(),
            sessions: 0,
            passed: vec![0; clients],
            refused: 0,
            lost: 0,
            tells: true,
        };
        world.clients = (0..clients).map(|_| world.client()).collect();
        world
    }

    fn client(&mut self) -> Client {
        self.sessions += 1;
        Client {
            bucket: QuotaBucket::new(&self.settings, self.at()),
            session: Session::new(self.sessions * 7919),
            reports: VecDeque::new(),
            actions: VecDeque::new(),
        }
    }

    /// The time of the clients.
    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn report(&mut self, client: usize, usage: QuotaUsage) {
        let one = [(QUOTA, "Quota shop/all"), (RULE, "all")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let usage = Usage {
            bucket_id: Some(BucketId { bucket: one.into() }),
            time_elapsed: Some(protobuf::Duration {
                seconds: i64::try_from(usage.elapsed.as_secs()).unwrap(),
                nanos: i32::try_from(usage.elapsed.subsec_nanos()).unwrap(),
            }),
            allowed: usage.allowed,
            denied: usage.denied,
            heard: if self.tells { usage.applied + 1 } else { 0 },
        };
        self.clients[client].reports.push_back((self.now, usage));
    }

    fn request(&mut self, client: usize) {
        let at = self.at();
        let verdict = self.clients[client].bucket.take(&self.settings, at);
        match verdict.is_within {
            true => self.passed[client] += 1,
            false => self.refused += 1,
        }
        if verdict.is_urgent {
            let usage = self.clients[client].bucket.report(at);
            self.report(client, usage);
        }
    }

    fn settle(&mut self, client: usize, asked: Vec<Question>) {
        for question in asked {
            let settled = self.account.settle(&question.2, self.now);
            let leased: u64 = self.account.leases.values().map(|lease| lease.tokens).sum();
            assert!(
                settled.granted == 0 || self.account.used + leased <= self.limit,
                "{settled:?} of {:?}",
                self.account
            );
            let now = Duration::from_millis(self.now);
            let actions = self.clients[client].session.settled(&question, &settled, now).into_iter();
            self.clients[client].actions.extend(actions.map(|action| (self.now, action)));
        }
    }

    fn limit(&self) -> QuotaLimit {
        QuotaLimit::new(self.limit, Unit::Minute, Duration::from_secs(1))
    }

    /// A message of the client arrives.
    fn hear(&mut self, client: usize) {
        let Some((_, usage)) = self.clients[client].reports.pop_front() else { return };
        let (limit, now) = (self.limit(), Duration::from_millis(self.now));
        let asked = self.clients[client].session.hear(&usage, |_| Some(limit), now);
        self.settle(client, asked.into_iter().collect());
    }

    /// A message of the service arrives.
    fn apply(&mut self, client: usize) {
        let at = self.at();
        let Some((_, action)) = self.clients[client].actions.pop_front() else { return };
        let bucket = &mut self.clients[client].bucket;
        match action.bucket_action.unwrap() {
            Kind::AbandonAction(_) => bucket.abandon(at),
            Kind::QuotaAssignmentAction(action) => {
                let strategy = match action.rate_limit_strategy.unwrap().strategy.unwrap() {
                    Strategy::TokenBucket(tokens) => {
                        let interval = tokens.fill_interval.unwrap();
                        let nanos = u32::try_from(interval.nanos).unwrap();
                        QuotaStrategy::Tokens {
                            max: tokens.max_tokens.into(),
                            per_fill: 1,
                            interval: Duration::new(u64::try_from(interval.seconds).unwrap(), nanos),
                        }
                    }
                    _ => QuotaStrategy::DenyAll,
                };
                let ttl = action.assignment_time_to_live.unwrap();
                let ttl = Duration::new(u64::try_from(ttl.seconds).unwrap(), u32::try_from(ttl.nanos).unwrap());
                let has_news = bucket.has_news();
                let mut usage = bucket.report(at);
                if bucket.assign(strategy, Some(ttl), at) || has_news {
                    usage.applied = bucket.applied();
                    self.report(client, usage);
                }
            }
        }
    }

    /// The stream breaks, and what is on it is lost; or the client is gone with all that it has not told.
    fn break_stream(&mut self, client: usize, is_gone: bool) {
        let lost: u64 = self.clients[client].reports.drain(..).map(|(_, usage)| usage.allowed).sum();
        self.lost += lost;
        if is_gone {
            let at = self.at();
            self.lost += self.clients[client].bucket.report(at).allowed;
            self.clients[client] = self.client();
            return;
        }
        self.sessions += 1;
        let (session, at) = (Session::new(self.sessions * 7919), self.at());
        let client_of = &mut self.clients[client];
        client_of.actions.clear();
        client_of.session = session;
        if client_of.bucket.restart(at) {
            let usage = client_of.bucket.report(at);
            self.report(client, usage);
        }
    }

    fn pass(&mut self, mut millis: u64) {
        while millis > 0 {
            let step = STEP.min(millis);
            millis -= step;
            let minute = self.now / 60_000;
            self.now += step;
            if self.now / 60_000 != minute {
                self.passed.fill(0);
            }
            for client in 0..self.clients.len() {
                let is_late = |sent: u64, now: u64| sent + SLOWEST <= now;
                while self.clients[client].reports.front().is_some_and(|(sent, _)| is_late(*sent, self.now)) {
                    self.hear(client);
                }
                while self.clients[client].actions.front().is_some_and(|(sent, _)| is_late(*sent, self.now)) {
                    self.apply(client);
                }
                let at = self.at();
                if self.clients[client].bucket.is_due(at) {
                    let usage = self.clients[client].bucket.report(at);
                    self.report(client, usage);
                }
                let (limit, now) = (self.limit(), Duration::from_millis(self.now));
                let (asked, abandoned) = self.clients[client].session.due(|_| Some(limit), now);
                let sent = self.now;
                self.clients[client].actions.extend(abandoned.into_iter().map(|action| (sent, action)));
                self.settle(client, asked);
            }
        }
    }

    /// All messages arrive, however many follow from them.
    fn settle_down(&mut self) {
        for client in 0..self.clients.len() {
            while !self.clients[client].reports.is_empty() || !self.clients[client].actions.is_empty() {
                self.hear(client);
                self.apply(client);
            }
        }
    }

    fn sum(&self) -> u64 {
        self.passed.iter().sum()
    }
}

proptest! {
    #[test]
    fn whatever_is_late_breaks_or_vanishes_no_more_pass_in_a_minute_than_the_quota_and_what_was_lost(
        steps in prop::collection::vec((0_usize..3, 0_u8..12, 1_u64..60, 0_u64..2000), 1..250),
        limit in 1_u64..200,
    ) {
        let mut world = World::new(3, limit, QuotaStrategy::DenyAll);
        for (client, step, number, wait) in steps {
            match step {
                0..=5 => (0..number).for_each(|_| world.request(client)),
                6 | 7 => world.hear(client),
                8 | 9 => world.apply(client),
                10 => world.break_stream(client, number % 2 == 0),
                _ => world.pass(wait * number / 4),
            }
            world.pass(wait / 4);
            prop_assert!(world.sum() <= limit + world.lost, "{} of {limit}", world.sum());
        }
    }
}

/// Requests of all clients, some a second each, for so long.
fn run(world: &mut World, seconds: u64, each: &[u64]) {
    for _ in 0..seconds * 10 {
        for (client, rate) in each.iter().enumerate() {
            (0..rate / 10).for_each(|_| world.request(client));
        }
        world.settle_down();
        world.pass(100);
    }
}

#[test]
fn all_of_it_is_used_and_shared_by_demand() {
    for (each, least) in
        [(&[100, 100, 100][..], [250, 250, 250]), (&[300, 30, 30], [400, 90, 90]), (&[100], [1000, 0, 0])]
    {
        let mut world = World::new(each.len(), 1000, QuotaStrategy::DenyAll);
        run(&mut world, 20, each);
        assert_eq!(world.sum(), 1000, "{each:?}: {:?}", world.passed);
        assert!(world.passed.iter().zip(least).all(|(passed, least)| *passed >= least), "{:?}", world.passed);
    }
}

#[test]
fn who_only_says_that_it_wants_much_keeps_little_from_who_has_requests() {
    const HOSTILE: usize = 24;
    let mut world = World::new(HOSTILE + 1, 10_000, QuotaStrategy::DenyAll);
    let mut most = 0;
    for round in 0..100 {
        for client in 0..HOSTILE {
            let at = world.at();
            let mut usage = world.clients[client].bucket.report(at);
            (usage.allowed, usage.denied) = (0, if round % 2 == 0 { 1 } else { 1_000_000 });
            world.report(client, usage);
        }
        world.settle_down();
        if round > 0 {
            (0..100).for_each(|_| {
                world.request(HOSTILE);
                world.settle_down();
            });
        }
        world.pass(100);
        let used = world.account.used;
        let held: u64 = world.account.leases.values().map(|lease| lease.tokens).sum();
        most = most.max(if used == 0 { held } else { 0 });
    }
    assert!((1..=2_500 + HOSTILE as u64).contains(&most), "{most} held by those who use nothing");
    assert!(world.passed[HOSTILE] > 7_000, "{}", world.passed[HOSTILE]);
}

#[test]
fn clients_that_do_not_say_by_which_share_they_go_use_all_of_it_and_no_more() {
    let mut world = World::new(3, 1000, QuotaStrategy::DenyAll);
    world.tells = false;
    run(&mut world, 25, &[100, 100, 100]);
    assert!((950..=1000).contains(&world.sum()), "{:?}", world.passed);
}

#[test]
fn who_is_within_the_quota_is_not_refused() {
    // One at a time at changing places, as a balancer sends them.
    let mut world = World::new(3, 60, QuotaStrategy::AllowAll);
    for request in 0..45 {
        world.request(request % 3);
        world.settle_down();
        world.pass(50);
    }
    assert_eq!((world.sum(), world.refused), (45, 0));
}

#[test]
fn a_client_that_dies_gives_its_share_back_after_its_time_and_one_that_leaves_at_once() {
    let mut world = World::new(2, 100, QuotaStrategy::DenyAll);
    world.request(0);
    world.settle_down();
    let held = |world: &World| world.account.leases.values().map(|lease| lease.tokens).sum::<u64>();
    assert_eq!(held(&world), 25);
    world.break_stream(0, true);
    let now = Duration::from_millis(world.now);
    let asked = world.clients[0].session.leave(now);
    world.settle(0, asked);
    assert_eq!(held(&world), 25, "nobody knows that it is gone");
    world.request(1);
    world.settle_down();
    assert_eq!(held(&world), 26);
    let asked = world.clients[1].session.leave(Duration::from_millis(world.now));
    world.settle(1, asked);
    assert_eq!(held(&world), 25, "the other one said that it leaves");
    world.clients[1] = world.client();
    world.pass(14_000);
    world.request(1);
    world.settle_down();
    assert_eq!(held(&world), 25, "all that is held is of who is there");
}

#[test]
fn what_a_broken_stream_told_is_settled_and_what_its_client_holds_stays_with_it() {
    let mut world = World::new(1, 100, QuotaStrategy::DenyAll);
    world.request(0);
    world.settle_down();
    world.request(0);
    let at = world.at();
    let usage = world.clients[0].bucket.report(at);
    world.report(0, usage);
    let (_, usage) = world.clients[0].reports.pop_front().unwrap();
    let (limit, now) = (world.limit(), Duration::from_millis(world.now));
    let session = &mut world.clients[0].session;
    // Nobody can be asked at that time.
    assert!(session.hear(&usage, |_| Some(limit), now).is_some());
    let rest = session.rest(now);
    assert_eq!(session.rest(now).len(), 0);
    world.settle(0, rest);
    let held: u64 = world.account.leases.values().map(|lease| lease.tokens).sum();
    assert_eq!((world.account.used, held), (1, 24));
}

/// Envoy 1.40 makes a token bucket that takes the place of another one as empty as that was.
#[test]
fn who_does_not_say_by_which_share_it_goes_is_told_of_none_before_the_next_one() {
    let mut world = World::new(1, 100, QuotaStrategy::DenyAll);
    let (at, limit, now) = (world.at(), world.limit(), Duration::from_millis(world.now));
    world.request(0);
    let usage = world.clients[0].bucket.report(at);
    world.report(0, usage);
    let (_, usage) = world.clients[0].reports.pop_front().unwrap();
    for (heard, expected) in [([1, 2], vec![true]), ([0, 0], vec![false, true])] {
        let [at_first, then] = heard;
        let (mut session, mut account) = (Session::new(7), Account::default());
        let mut tell = |heard, allowed| {
            let usage = Usage { heard, allowed, denied: 1, ..usage.clone() };
            let question = session.hear(&usage, |_| Some(limit), now).unwrap();
            let settled = account.settle(&question.2, world.now);
            let actions = session.settled(&question, &settled, now).into_iter();
            let is_share = |action: BucketAction| match action.bucket_action {
                Some(Kind::QuotaAssignmentAction(assigned)) => {
                    matches!(assigned.rate_limit_strategy.unwrap().strategy, Some(Strategy::TokenBucket(_)))
                }
                other => panic!("{other:?}"),
            };
            actions.map(is_share).collect::<Vec<_>>()
        };
        assert_eq!(tell(at_first, 0), [true], "there is nothing that it takes the place of");
        assert_eq!(tell(then, 0), [false; 0], "it has its share");
        assert_eq!(tell(then, 25), expected);
    }
}

#[test]
fn a_limit_that_is_raised_is_in_force_at_once_and_a_quota_that_is_gone_is_forgotten() {
    let mut world = World::new(1, 10, QuotaStrategy::DenyAll);
    run(&mut world, 5, &[100]);
    assert_eq!(world.sum(), 10);
    world.limit = 30;
    run(&mut world, 5, &[100]);
    assert_eq!(world.sum(), 30);
    let (asked, abandoned) = world.clients[0].session.due(|_| None, Duration::from_millis(world.now));
    assert_eq!((asked.len(), abandoned.len()), (0, 1));
}

#[test]
fn the_next_minute_begins_with_all_of_it() {
    let mut world = World::new(2, 50, QuotaStrategy::DenyAll);
    run(&mut world, 29, &[100, 100]);
    assert_eq!(world.sum(), 50);
    // Over the end of the minute.
    run(&mut world, 10, &[100, 100]);
    assert_eq!(world.sum(), 50);
}

fn identity(user: &str) -> Arc<Identity> {
    let by = BTreeMap::from([("x-user".to_owned(), user.to_owned())]);
    Arc::new(Identity { quota: "Quota shop/all".to_owned(), rule: "users".to_owned(), by })
}

fn question(user: &str, used: u64, holds: u64, lease: u64) -> Question {
    let identity = identity(user);
    let period = Unit::Month.period(NOW);
    let until = u64::try_from(NOW.as_millis()).unwrap() + 10_000;
    let ask = account::Ask { lease, period, limit: 100, used, holds, wants: true, demand: 0, shown: 4 * used, until };
    (identity.key(), identity, ask)
}

const NOW: Duration = Duration::from_secs(1_800_000_000);

#[tokio::test]
async fn a_server_that_is_killed_has_lost_nothing_of_what_it_granted() {
    let dir = tempfile::tempdir().unwrap();
    let quotas = Quotas::new(Store::in_dir(dir.path(), NOW).unwrap());
    let settled = quotas.settle(&[question("ada", 40, 0, 1), question("bob", 5, 0, 2)], NOW).await;
    assert_eq!(settled[0].as_ref().map(|settled| settled.granted), Ok(15));
    // Nothing is said to it: the next one begins with what is on the disk.
    let _killed = quotas;
    let quotas = Quotas::new(Store::in_dir(dir.path(), NOW).unwrap());
    let limit = |_: &str, _: &str| Some(QuotaLimit::new(100, Unit::Month, Duration::from_secs(1)));
    let shown: Vec<_> = quotas
        .status(limit, NOW)
        .identities
        .iter()
        .map(|one| (one.identity(), one.used, one.leased, one.left))
        .collect();
    assert_eq!(shown, [("x-user=ada".to_owned(), 40, 15, 45), ("x-user=bob".to_owned(), 5, 24, 71)]);
    // Who held it may be gone with the server: then it is free once its time is over, and shown so.
    let later = quotas.status(limit, NOW + Duration::from_secs(11)).identities;
    assert_eq!(later.iter().map(|one| (one.used, one.leased, one.left)).collect::<Vec<_>>(), [(40, 0, 60), (5, 0, 95)]);
    let settled = quotas.settle(&[question("ada", 1, 0, 3)], NOW).await;
    assert_eq!(settled[0].as_ref().map(|settled| (settled.used, settled.granted)), Ok((41, 11)));
    // A month later, nothing of it counts.
    drop(quotas);
    let later = NOW + Duration::from_secs(40 * 24 * 60 * 60);
    assert!(Quotas::new(Store::in_dir(dir.path(), later).unwrap()).status(limit, later).identities.is_empty());
}

#[tokio::test]
async fn metrics_have_the_quotas_of_identities_and_what_a_caller_sends_breaks_none_of_them() {
    let quotas = Quotas::new(Store::in_memory());
    let questions = [question("a\"d\\a\n", 100, 0, 1), question("bob", 5, 0, 2)];
    quotas.settle(&questions, NOW).await;
    quotas.note_denied(&questions[0], 7);
    let mut out = String::new();
    let limit = |_: &str, _: &str| Some(QuotaLimit::new(100, Unit::Month, Duration::from_secs(1)));
    quotas.write(limit, NOW, &mut out);
    for line in [
        r#"mesh_quota_used_requests{quota="Quota shop/all",rule="users",identity="x-user=a\"d\\a\n"} 100"#,
        r#"mesh_quota_denied_requests{quota="Quota shop/all",rule="users",identity="x-user=a\"d\\a\n"} 7"#,
        r#"mesh_quota_limit_requests{quota="Quota shop/all",rule="users",identity="x-user=bob"} 100"#,
        "mesh_quota_identities 2",
        "mesh_quota_identities_used_up 1",
    ] {
        assert!(out.lines().any(|one| one == line), "{line}: {out}");
    }
    let page = include_str!("../../../docs/quotas.md");
    for name in out.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let is_told = name.ends_with("_requests") || page.contains(&format!("`{name}`"));
        assert!(is_told, "{name} is not in the documentation");
    }
    // Of a quota that is gone nothing is told.
    assert!(quotas.status(|_, _| None, NOW).identities.is_empty());
}

#[tokio::test]
async fn what_lets_in_whoever_knows_it_is_shown_and_written_down_as_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let quotas = Quotas::new(Store::in_dir(dir.path(), NOW).unwrap());
    let of = |by: &[(&str, &str)]| {
        let by = by.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let identity = Arc::new(Identity { quota: "Quota shop/all".to_owned(), rule: "keys".to_owned(), by });
        (identity.key(), identity, question("ada", 3, 0, 1).2)
    };
    let secrets = [
        ("x-api-key", "hunter2"),
        ("Authorization", "Basic aHVudGVyMg=="),
        ("query.t", "eyJhbGciOi.hunter2"),
        // As long as a digest, and none.
        ("x-api-key", "#supersecret01234"),
    ];
    for secret in secrets {
        quotas.settle(&[of(&[secret, ("x-user", "ada")])], NOW).await;
    }
    quotas.settle(&[of(&[("x-api-key", "other")])], NOW).await;
    let open = [(":authority", "shop.example.com"), ("generic_key", "all")];
    for open in open {
        quotas.settle(&[of(&[open])], NOW).await;
    }
    let limit = |_: &str, _: &str| Some(QuotaLimit::new(100, Unit::Month, Duration::from_secs(1)));
    let (status, mut metrics) = (quotas.status(limit, NOW), String::new());
    quotas.write(limit, NOW, &mut metrics);
    let told = format!("{status:?}{metrics}{}", std::fs::read_to_string(dir.path().join("quotas.jsonl")).unwrap());
    assert!(secrets.iter().all(|(_, secret)| !told.contains(secret)), "{told}");
    assert!(told.contains("x-user=ada") && open.iter().all(|(_, value)| told.contains(value)), "{told}");
    let shown: std::collections::BTreeSet<String> = status.identities.iter().map(QuotaUse::identity).collect();
    assert_eq!(shown.len(), 7, "each is told from the others");
    // Each has its own account after a restart, too.
    drop(quotas);
    let quotas = Quotas::new(Store::in_dir(dir.path(), NOW).unwrap());
    let settled = quotas.settle(&[of(&[secrets[0], ("x-user", "ada")])], NOW).await;
    assert_eq!(settled[0].as_ref().map(|settled| settled.used), Ok(6));
    assert_eq!(quotas.status(limit, NOW).identities.len(), 7);
}

#[test]
fn no_two_identities_have_one_key_and_an_id_is_read_within_bounds() {
    let keys = [identity("ada"), identity("bob")].map(|identity| identity.key());
    assert_ne!(keys[0], keys[1]);
    let bucket: BTreeMap<String, String> = identity("ada").bucket().collect();
    assert_eq!(Identity::of(&bucket), Some(Identity::clone(&identity("ada"))));
    let without = bucket.iter().filter(|(key, _)| *key != RULE);
    assert_eq!(Identity::of(without), None);
    let many: BTreeMap<String, String> = (0..40).map(|number| (number.to_string(), String::new())).collect();
    assert_eq!(Identity::of(bucket.iter().chain(&many)), None);
    let long = BTreeMap::from([("x".to_owned(), "y".repeat(10_000))]);
    assert_eq!(Identity::of(bucket.iter().chain(&long)), None);
}

#[test]
fn identities_that_are_made_up_for_one_rule_leave_room_in_a_stream_for_those_of_others() {
    let mut session = Session::new(1);
    let limit = QuotaLimit::new(10, Unit::Day, Duration::from_secs(1));
    let mut is_heard = |rule: &str, user: usize| {
        let entries =
            [(QUOTA, "Quota shop/all".to_owned()), (RULE, rule.to_owned()), ("user", format!("{user:01000}"))];
        let bucket = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let usage = Usage { bucket_id: Some(BucketId { bucket }), allowed: 1, ..Usage::default() };
        session.hear(&usage, |_| Some(limit), Duration::from_secs(1_800_000_000)).is_some()
    };
    let flooded = (0..20_000).filter(|user| is_heard("flooded", *user)).count();
    assert!((5_000..10_000).contains(&flooded), "{flooded}");
    assert!(is_heard("other", 1));
}
