//! Virtual time: `now` is an argument.

use proptest::prelude::*;

use super::*;
use crate::model::{FailurePercentage, SuccessRate};

const SECOND: Duration = Duration::from_secs(1);

/// A cluster of so many endpoints.
struct Rig {
    config: OutlierDetection,
    hosts: Vec<Arc<Record>>,
    detector: Detector,
    now: Instant,
    random: fastrand::Rng,
}

impl Rig {
    /// All may be ejected, one interval is 10 s, the first time out 30 s.
    fn new(hosts: usize, set: impl FnOnce(&mut OutlierDetection)) -> Rig {
        let mut config = OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() };
        set(&mut config);
        let hosts: Vec<Arc<Record>> = (0..hosts).map(|_| Arc::default()).collect();
        let mut detector = Detector::default();
        detector.set_hosts(hosts.clone().into());
        Rig { config, hosts, detector, now: Instant::now(), random: fastrand::Rng::with_seed(1) }
    }

    fn note(&mut self, host: usize, outcome: Outcome) {
        for reason in self.hosts[host].note(&self.config, outcome).into_iter().flatten() {
            self.detector.eject(&self.config, &self.hosts[host], reason, self.now, &mut self.random);
        }
    }

    fn notes(&mut self, host: usize, outcome: Outcome, times: usize) {
        (0..times).for_each(|_| self.note(host, outcome));
    }

    /// The end of an interval, after so many seconds.
    fn sweep(&mut self, seconds: u32) {
        self.now += SECOND * seconds;
        self.detector.sweep(&self.config, self.now, &mut self.random);
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_ejected()).collect()
    }
}

#[test]
fn so_many_failures_in_a_row_eject() {
    use Outcome::{LocalFailure, LocalTimeout, Status};
    type Set = fn(&mut OutlierDetection);
    let all: Set = |_| {};
    let gateway: Set = |config| {
        config.consecutive_5xx.enforcing = 0;
        config.consecutive_gateway_failure.enforcing = 100;
    };
    let split: Set = |config| config.split_external_local_origin_errors = true;
    let of_five: Set = |config| config.consecutive_5xx.failures = 0;
    // (configuration, outcomes of one endpoint, whether that ejects it)
    let cases: &[(Set, &[Outcome], bool)] = &[
        (all, &[Status(500); 5], true),
        (all, &[Status(500); 4], false),
        (all, &[Status(500), Status(502), Status(503), LocalFailure, LocalTimeout], true),
        (all, &[Status(500), Status(500), Status(200), Status(500), Status(500), Status(500)], false),
        (all, &[Status(404); 9], false),
        (all, &[Status(600); 9], false),
        (of_five, &[Status(500); 9], false),
        (gateway, &[Status(500); 9], false),
        (gateway, &[Status(502), Status(503), Status(504), LocalFailure, LocalTimeout], true),
        (gateway, &[Status(502), Status(502), Status(502), Status(502), Status(500), Status(502)], false),
        (split, &[LocalFailure; 5], true),
        (split, &[LocalFailure, LocalTimeout, LocalFailure, LocalTimeout, LocalFailure], true),
        (split, &[LocalFailure, LocalFailure, Status(500), LocalFailure, LocalFailure, LocalFailure], false),
        (split, &[Status(500); 5], true),
        // They count apart.
        (split, &[Status(500), Status(500), LocalFailure, Status(500), LocalFailure, Status(500)], false),
    ];
    for (set, outcomes, expected) in cases {
        let mut rig = Rig::new(1, set);
        outcomes.iter().for_each(|outcome| rig.note(0, *outcome));
        assert_eq!(!rig.ejected().is_empty(), *expected, "{outcomes:?}");
    }
}

#[test]
fn grpc_statuses_count_as_the_http_statuses_that_stand_for_them() {
    let failures: Vec<u32> =
        (0..=17).filter(|code| matches!(Outcome::of_grpc(*code), Outcome::Status(500..))).collect();
    assert_eq!(
        failures,
        [2, 4, 12, 13, 14, 15, 17],
        "UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS"
    );
}

#[test]
fn an_endpoint_is_out_longer_each_time_up_to_the_longest_and_good_intervals_make_up_for_it() {
    let mut rig = Rig::new(2, |config| config.max_ejection_time = SECOND * 80);
    for time in [30, 60, 80, 80] {
        rig.notes(0, Outcome::Status(500), 5);
        assert_eq!(rig.ejected(), [0]);
        rig.sweep(time - 1);
        assert_eq!(rig.ejected(), [0], "before {time} s");
        rig.sweep(1);
        assert!(rig.ejected().is_empty(), "after {time} s");
        rig.notes(0, Outcome::Status(500), 4);
        assert!(rig.ejected().is_empty(), "it begins anew");
        rig.note(0, Outcome::Status(200));
    }
    (0..3).for_each(|_| rig.sweep(10));
    rig.notes(0, Outcome::Status(500), 5);
    rig.sweep(30);
    assert!(rig.ejected().is_empty(), "three times are made up for by three intervals");
}

#[test]
fn no_more_than_some_are_out_and_one_where_that_is_wanted() {
    for (percent, always, hosts, expected) in
        [(10, false, 5, 0), (10, true, 5, 1), (20, false, 5, 1), (50, false, 5, 2), (100, false, 5, 5), (0, true, 1, 1)]
    {
        let mut rig = Rig::new(hosts, |config| {
            (config.max_ejection_percent, config.always_eject_one_host) = (percent, always);
        });
        (0..hosts).for_each(|host| rig.notes(host, Outcome::Status(500), 5));
        assert_eq!(rig.ejected().len(), expected, "{percent} % of {hosts}");
        assert_eq!(rig.detector.ejections() + rig.detector.overflows(), hosts as u64);
    }
}

#[test]
fn what_is_detected_counts_as_often_as_is_said() {
    let mut rig = Rig::new(1000, |config| config.consecutive_5xx.enforcing = 30);
    (0..1000).for_each(|host| rig.notes(host, Outcome::Status(500), 5));
    assert!((250..350).contains(&rig.ejected().len()), "{}", rig.ejected().len());
}

/// Five endpoints with 100 requests in an interval each, of which so many failed.
fn interval(rig: &mut Rig, failures: [usize; 5], outcome: Outcome) {
    for (host, failed) in failures.into_iter().enumerate() {
        // Never five in a row.
        for request in 0..100 {
            rig.note(
                host,
                if request % 100 * failed / 100 < (request + 1) * failed / 100 {
                    outcome
                } else {
                    Outcome::Status(200)
                },
            );
        }
    }
    rig.sweep(10);
}

#[test]
fn who_succeeds_far_less_often_than_the_others_is_ejected() {
    for (failures, expected) in [
        ([0, 0, 0, 0, 50], vec![4]),
        ([0, 0, 0, 0, 0], vec![]),
        ([50, 50, 50, 50, 50], vec![]),
        ([10, 12, 14, 16, 18], vec![]),
    ] {
        let mut rig = Rig::new(5, |config| config.consecutive_5xx.enforcing = 0);
        interval(&mut rig, failures, Outcome::Status(500));
        assert_eq!(rig.ejected(), expected, "{failures:?}");
    }
    // Not for rates of the past, of few requests, or of few endpoints, nor where it is not enforced.
    let mut rig = Rig::new(5, |config| config.consecutive_5xx.enforcing = 0);
    rig.notes(4, Outcome::Status(500), 99);
    interval(&mut rig, [0; 5], Outcome::Status(500));
    rig.sweep(10);
    let mut strict = Rig::new(5, |config| {
        config.consecutive_5xx.enforcing = 0;
        config.success_rate = SuccessRate { minimum_hosts: 6, ..config.success_rate };
    });
    interval(&mut strict, [0, 0, 0, 0, 50], Outcome::Status(500));
    assert!(strict.ejected().is_empty());
    let mut off = Rig::new(5, |config| {
        config.consecutive_5xx.enforcing = 0;
        config.success_rate.enforcing = 0;
    });
    interval(&mut off, [0, 0, 0, 0, 50], Outcome::Status(500));
    assert!(off.ejected().is_empty());
}

#[test]
fn who_fails_as_often_as_the_threshold_is_ejected() {
    let rule = FailurePercentage { threshold: 40, enforcing: 100, ..OutlierDetection::default().failure_percentage };
    let only = |split| {
        move |config: &mut OutlierDetection| {
            config.consecutive_5xx.enforcing = 0;
            config.consecutive_local_origin_failure.enforcing = 0;
            (config.success_rate.enforcing, config.success_rate.enforcing_local_origin) = (0, 0);
            config.failure_percentage = FailurePercentage { enforcing_local_origin: 100, ..rule };
            config.split_external_local_origin_errors = split;
        }
    };
    for (outcome, split) in
        [(Outcome::Status(503), false), (Outcome::LocalFailure, false), (Outcome::LocalTimeout, true)]
    {
        let mut rig = Rig::new(5, only(split));
        interval(&mut rig, [39, 40, 41, 0, 100], outcome);
        assert_eq!(rig.ejected(), [1, 2, 4], "{outcome:?}");
        rig.sweep(10);
        assert_eq!(rig.ejected(), [1, 2, 4], "they are out for 30 s");
        rig.sweep(20);
        assert!(rig.ejected().is_empty());
    }
    let mut rig = Rig::new(5, only(false));
    (0..5).for_each(|host| rig.notes(host, Outcome::Status(500), 49));
    rig.sweep(10);
    assert!(rig.ejected().is_empty(), "50 requests are enough, and 49 are not");
}

#[test]
fn an_endpoint_that_is_not_of_the_cluster_any_more_is_left_alone() {
    let mut rig = Rig::new(2, |_| {});
    rig.detector.set_hosts(vec![Arc::clone(&rig.hosts[1])].into());
    rig.notes(0, Outcome::Status(500), 5);
    assert!(rig.ejected().is_empty());
}

#[test]
fn where_detection_ends_everybody_is_back_and_what_is_under_way_ejects_nobody() {
    let mut rig = Rig::new(2, |_| {});
    rig.notes(0, Outcome::Status(500), 5);
    assert_eq!(rig.ejected(), [0]);
    rig.detector.end();
    rig.notes(1, Outcome::Status(500), 5);
    assert!(rig.ejected().is_empty());
}

#[derive(Clone, Debug)]
enum Event {
    Outcome(usize, Outcome),
    Sweep(u32),
    Hosts(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        (100u16..600).prop_map(Outcome::Status),
        Just(Outcome::Status(503)),
        Just(Outcome::LocalFailure),
        Just(Outcome::LocalTimeout),
    ];
    prop_oneof![
        20 => (0usize..8, outcome).prop_map(|(host, outcome)| Event::Outcome(host, outcome)),
        3 => (1u32..40).prop_map(Event::Sweep),
        1 => (1usize..=8).prop_map(Event::Hosts),
    ]
}

proptest! {
    #[test]
    fn never_more_are_out_than_may_be_and_everybody_comes_back(
        events in proptest::collection::vec(event(), 1..400),
        percent in 0u32..=100,
        split: bool,
        seed: u64,
    ) {
        let mut rig = Rig::new(8, |config| {
            config.max_ejection_percent = percent;
            config.split_external_local_origin_errors = split;
            config.consecutive_5xx.failures = 3;
            config.max_ejection_time_jitter = SECOND;
        });
        rig.random = fastrand::Rng::with_seed(seed);
        let mut known = 8;
        for event in events {
            let before = rig.ejected().len();
            match event {
                Event::Outcome(host, outcome) => rig.note(host, outcome),
                Event::Sweep(seconds) => rig.sweep(seconds),
                Event::Hosts(count) => {
                    known = count;
                    rig.detector.set_hosts(rig.hosts.iter().take(count).cloned().collect());
                }
            }
            let out = rig.ejected().iter().filter(|host| **host < known).count();
            if rig.ejected().len() > before {
                prop_assert!(out * 100 <= percent as usize * known, "{out} of {known}");
            }
        }
        rig.detector.set_hosts(rig.hosts.clone().into());
        rig.sweep(302);
        prop_assert!(rig.ejected().is_empty());
    }
}
