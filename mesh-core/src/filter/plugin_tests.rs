use std::sync::atomic::AtomicUsize;

use super::*;
use crate::filter::FilterRegistry;
use crate::model::FilterConfig;

/// Panics where its request wants it, and counts those that have passed it.
#[derive(Debug, Default)]
struct Fragile(AtomicUsize);

impl Filter for Fragile {
    fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let panics = |at: &str| head.headers.get("panic").is_some_and(|value| value == at);
        assert!(!panics("request"), "as it is told");
        if panics("callout") {
            return Decision::Callout(Box::pin(async { panic!("as it is told") }));
        }
        if panics("resume") {
            let resume: Resume = Box::new(|_, _| panic!("as it is told"));
            return Decision::Callout(Box::pin(async { resume }));
        }
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        head.headers.insert("count", count.into());
        Decision::Continue
    }

    fn on_response(&self, _: &mut RequestInfo, head: &mut response::Parts) {
        assert!(!head.headers.contains_key("panic"), "as it is told");
    }

    fn on_end(&self, _: &RequestInfo) {
        panic!("whatever happens");
    }
}

fn registry() -> FilterRegistry {
    let mut registry = FilterRegistry::default();
    let factory: FilterFactory = Arc::new(|config, _| match config {
        "{}" => Ok(Arc::new(Fragile::default())),
        "panic" => panic!("as it is told"),
        _ => Err(Invalid::new("not empty")),
    });
    registry.register("fragile", factory);
    registry
}

fn built(name: &str, config: &str, on_failure: OnFailure) -> Option<Arc<dyn Filter>> {
    let mut plugin = Plugin::new(name, config);
    plugin.on_failure = on_failure;
    let states = States::default();
    let config = FilterConfig::Plugin(Arc::new(plugin));
    registry().build(&config, &states.filter("place", &"p".into())).expect("it says itself what becomes of requests")
}

fn info(now: Instant) -> RequestInfo {
    RequestInfo::new(now, fastrand::Rng::with_seed(1))
}

/// The status of the answer of a filter that panics at this point, and the count of one that lets pass.
fn outcome(filter: &dyn Filter, now: Instant, panics: &str) -> Result<String, u16> {
    let (mut head, ()) = http::Request::get("/").header("panic", panics).body(()).unwrap().into_parts();
    let mut info = info(now);
    let mut decision = filter.on_request(&mut info, &mut head);
    while let Decision::Callout(mut callout) = decision {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(resume) = callout.as_mut().poll(&mut cx) else { panic!("nothing is waited for") };
        decision = resume(&mut info, &mut head);
    }
    match decision {
        Decision::Reply(reply) => Err(reply.status.as_u16()),
        _ => Ok(head.headers.get("count").map_or("passed", |count| count.to_str().unwrap()).to_owned()),
    }
}

#[test]
fn a_filter_that_cannot_be_made_is_what_the_configuration_says() {
    for (name, config) in [("unknown", "{}"), ("fragile", "[]"), ("fragile", "panic")] {
        for on_failure in [OnFailure::Refuse, OnFailure::Restart] {
            let filter = built(name, config, on_failure).expect("a filter that refuses");
            assert_eq!(outcome(&*filter, Instant::now(), "").unwrap_err(), 500, "{name} {config}");
        }
        assert!(built(name, config, OnFailure::Pass).is_none(), "{name} {config}");
    }
}

#[test]
fn a_configuration_that_it_does_not_take_leaves_the_one_before_in_force() {
    let (states, name) = (States::default(), Arc::from("p"));
    let build = |filter: &str, config: &str, on_failure| {
        let plugin = Arc::new(Plugin { on_failure, ..Plugin::new(filter, config) });
        registry().build(&FilterConfig::Plugin(plugin), &states.filter("place", &name)).unwrap()
    };
    for on_failure in [OnFailure::Refuse, OnFailure::Pass] {
        let good = build("fragile", "{}", on_failure).unwrap();
        assert_eq!(outcome(&*good, Instant::now(), ""), Ok("1".into()));
        let wrong = build("fragile", "[]", on_failure).expect("it goes on");
        assert_eq!(outcome(&*wrong, Instant::now(), ""), Ok("2".into()));
        // Another filter under the name of the same object is another one.
        let other = build("unknown", "{}", on_failure).map(|filter| outcome(&*filter, Instant::now(), ""));
        assert_eq!(other, (on_failure == OnFailure::Refuse).then_some(Err(500)));
    }
}

#[test]
fn a_filter_that_panics_is_what_the_configuration_says() {
    let now = Instant::now();
    for at in ["request", "callout", "resume"] {
        let refusing = built("fragile", "{}", OnFailure::Refuse).unwrap();
        assert_eq!(outcome(&*refusing, now, at), Err(500), "{at}");
        assert_eq!(outcome(&*refusing, now, ""), Ok("1".into()), "the others pass it");
        let passing = built("fragile", "{}", OnFailure::Pass).unwrap();
        assert_eq!(outcome(&*passing, now, at), Ok("passed".into()), "{at}");
    }
}

#[test]
fn it_is_made_anew_where_that_is_wanted_and_once_a_second_at_most() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let filter = built("fragile", "{}", OnFailure::Restart).unwrap();
    assert_eq!(outcome(&*filter, now, ""), Ok("1".into()));
    assert_eq!(outcome(&*filter, now, "request"), Err(500));
    assert_eq!(outcome(&*filter, now, ""), Ok("1".into()), "it counts from the beginning");
    assert_eq!(outcome(&*filter, now, "request"), Err(500));
    assert_eq!(outcome(&*filter, now + second / 2, ""), Err(500), "too soon");
    assert_eq!(outcome(&*filter, now + second, ""), Ok("1".into()));
}

#[test]
fn an_answer_that_it_panics_at_is_sent_only_where_that_is_allowed() {
    let answer = |on_failure| {
        let filter = built("fragile", "{}", on_failure).unwrap();
        let (mut head, ()) = http::Response::builder().header("panic", "1").body(()).unwrap().into_parts();
        let mut info = info(Instant::now());
        filter.on_end(&info);
        catch_unwind(AssertUnwindSafe(|| filter.on_response(&mut info, &mut head))).is_ok()
    };
    assert!(answer(OnFailure::Pass));
    assert!(!answer(OnFailure::Refuse) && !answer(OnFailure::Restart));
}

/// The one that panicked was ended, and those that were under way with it were once sent as they were.
#[test]
fn an_answer_is_not_sent_past_a_filter_that_does_not_run_any_more() {
    let filter = built("fragile", "{}", OnFailure::Restart).unwrap();
    let is_sent = |panics: bool, is_refused: bool| {
        let answer = http::Response::builder();
        let answer = if panics { answer.header("panic", "1") } else { answer };
        let (mut head, ()) = answer.body(()).unwrap().into_parts();
        let mut info = info(Instant::now());
        if is_refused {
            let (mut head, ()) = http::Request::new(()).into_parts();
            assert!(matches!(filter.on_request(&mut info, &mut head), Decision::Reply(_)));
        }
        catch_unwind(AssertUnwindSafe(|| filter.on_response(&mut info, &mut head))).is_ok()
    };
    assert!(!is_sent(true, false));
    assert!(is_sent(false, false), "it is made anew, and sees it");
    assert!(!is_sent(true, false));
    assert!(!is_sent(false, false), "too soon to be made anew");
    assert!(is_sent(false, true), "its own answer");
}
