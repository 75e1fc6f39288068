//! `mesh-control/sticky-split`: who makes a request decides which destination it goes to.

use std::collections::BTreeSet;

use crate::support::{Answer, World, server, web};

/// Versions of `web.example.com` with these weights, and what a split among them goes by.
async fn world(by: &str, weights: &[(&'static str, u32)]) -> World {
    world_with("{}", by, weights).await
}

/// The same under a traffic policy.
async fn world_with(policy: &str, by: &str, weights: &[(&'static str, u32)]) -> World {
    let mut endpoints = Vec::new();
    for name in ["v1", "v2", "v3"] {
        endpoints.push((name, server(name).await));
    }
    let destinations: String = weights
        .iter()
        .map(|(subset, weight)| {
            format!("\n    - {{destination: {{host: web.example.com, subset: {subset}}}, weight: {weight}}}")
        })
        .collect();
    let rules = format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: web
  annotations:
    mesh-control/sticky-split: {by}
spec:
  hosts: [web.example.com]
  http:
  - route:{destinations}
"
    );
    let host = "  host: web.example.com\n";
    let web = web(&endpoints).replace(host, &format!("{host}  trafficPolicy: {policy}\n"));
    World::new(&format!("{web}{rules}")).await
}

/// Which version each of these users gets.
async fn versions(world: &World, users: usize, header: impl Fn(usize) -> (&'static str, String)) -> Vec<String> {
    let mut versions = Vec::new();
    for user in 0..users {
        let (name, value) = header(user);
        let answer = world.with("http://web.example.com/", &[(name, &value)]).await.unwrap();
        versions.push(answer.body.lines().next().unwrap_or_default().to_owned());
    }
    versions
}

#[tokio::test]
async fn moving_a_tenth_of_the_weight_moves_a_tenth_of_the_users_and_nobody_back() {
    const USERS: usize = 300;
    let user = |user| ("x-user", format!("user-{user}"));
    let before = versions(&world("header=x-user", &[("v1", 90), ("v2", 10)]).await, USERS, user).await;
    // The order in which they are written, and one more that takes no load yet, move nobody.
    let same = versions(&world("header=X-User", &[("v2", 10), ("v1", 90), ("v3", 0)]).await, USERS, user).await;
    assert_eq!(before, same);
    let after = versions(&world("header=x-user", &[("v1", 80), ("v2", 20)]).await, USERS, user).await;
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(from, to)| *from == "v1" && *to == "v2"), "{moved:?}");
    assert!((USERS / 20..USERS / 5).contains(&moved.len()), "{} of {USERS}", moved.len());
}

#[tokio::test]
async fn a_cookie_tells_users_apart_and_who_has_none_is_split_by_chance() {
    let world = world("cookie=session", &[("v1", 50), ("v2", 25), ("v3", 25)]).await;
    let mut taken = BTreeSet::new();
    for session in 0..20 {
        let cookie = |_| ("cookie", format!("theme=dark; session={session}"));
        let versions: BTreeSet<_> = versions(&world, 3, cookie).await.into_iter().collect();
        assert_eq!(versions.len(), 1, "session {session}");
        taken.extend(versions);
    }
    assert_eq!(taken.len(), 3);
    let nobody: BTreeSet<_> = versions(&world, 60, |_| ("cookie", "theme=dark".into())).await.into_iter().collect();
    assert_eq!(nobody.len(), 3, "by chance");
    let answer = world.get("http://web.example.com/").await.unwrap();
    assert_eq!(answer.header("set-cookie"), None, "none is made");
}

#[tokio::test]
async fn who_is_given_the_cookie_by_a_destination_stays_from_the_first_request_on() {
    const URL: &str = "http://web.example.com/";
    let policy = "{loadBalancer: {consistentHash: {httpCookie: {name: session, ttl: 60s}}}}";
    let world = world_with(policy, "cookie=session", &[("v1", 50), ("v2", 25), ("v3", 25)]).await;
    let version = |answer: &Answer| answer.body.lines().next().unwrap_or_default().to_owned();
    let mut taken = BTreeSet::new();
    for _ in 0..60 {
        let first = world.get(URL).await.unwrap();
        let (cookie, _) = first.header("set-cookie").unwrap().split_once(';').unwrap();
        for _ in 0..2 {
            let again = world.with(URL, &[("cookie", cookie)]).await.unwrap();
            assert_eq!((version(&again), again.header("set-cookie")), (version(&first), None), "{cookie}");
        }
        taken.insert(version(&first));
    }
    assert_eq!(taken.len(), 3, "by chance: {taken:?}");
}
