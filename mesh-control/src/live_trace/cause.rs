//! Why a request went as it went, from what each hop tells: what decided comes first.
//!
//! A request that failed is followed to where it failed: through the endpoint that answered so, and through what that one's
//! handler asked of others. One that succeeded went where its route sends it, and where it was slow, one hop was.

use serde_json::Value;

use super::gather::{events, parent, text};

/// One side is slow that took so much of the whole time, and so many milliseconds.
const SLOW: (f64, f64) = (0.6, 100.0);

/// The reasons, the deciding one first. The first hop comes first.
pub(super) fn causes(hops: &[Value]) -> Vec<String> {
    let Some(first) = hops.first() else { return Vec::new() };
    let mut causes = Vec::new();
    match has_failed(first) {
        true => {
            failed(hops, first, &mut causes, 0);
            let routed = events(first, "routed").next_back();
            causes.extend(taken_over(first, routed).into_iter().chain(mirrored(first, routed)));
        }
        false => {
            went_well(hops, first, &mut causes);
            done_without(hops, &mut causes);
        }
    }
    retried(first, &mut causes);
    causes.dedup();
    causes
}

fn number(value: &Value, field: &str) -> f64 {
    value.get(field).and_then(Value::as_f64).unwrap_or_default()
}

fn status(hop: &Value) -> u64 {
    hop.get("status").and_then(Value::as_u64).unwrap_or_default()
}

fn has_failed(hop: &Value) -> bool {
    let grpc = hop.get("grpc_status").and_then(Value::as_u64);
    status(hop) == 0 || status(hop) >= 400 || grpc.is_some_and(|code| code != 0)
}

/// How it answered, in words.
fn answer(hop: &Value) -> String {
    match (status(hop), hop.get("grpc_status").and_then(Value::as_u64)) {
        (_, Some(code)) if code != 0 => format!("gRPC status {code}"),
        (0, _) => "no answer that anybody waited for".to_owned(),
        (status, _) => status.to_string(),
    }
}

/// Who it is.
fn who(hop: &Value) -> &str {
    match text(hop, "workload") {
        "" => "a workload",
        workload => workload,
    }
}

/// Those that a hop made, which of them where it is a client.
fn made<'h>(hops: &'h [Value], by: &Value, attempt: Option<u64>) -> impl DoubleEndedIterator<Item = &'h Value> {
    let id = text(by, "hop").to_owned();
    let is_meant = move |(hop, of): (&str, u64)| hop == id && attempt.is_none_or(|attempt| attempt == of);
    hops.iter().filter(move |hop| parent(hop).is_some_and(&is_meant))
}

/// The event that says why a hop failed.
fn failure(hop: &Value) -> Option<&Value> {
    events(hop, "failed").next_back()
}

fn failed(hops: &[Value], hop: &Value, causes: &mut Vec<String>, depth: usize) {
    if depth > 32 {
        return;
    }
    match text(hop, "side") {
        "client" => client_failed(hops, hop, causes, depth),
        _ => server_failed(hops, hop, causes, depth),
    }
}

fn client_failed(hops: &[Value], hop: &Value, causes: &mut Vec<String>, depth: usize) {
    let routed = events(hop, "routed").next_back();
    let route = routed.map(route_of).unwrap_or_default();
    let attempt = events(hop, "picked").next_back();
    let server =
        attempt.and_then(|attempt| made(hops, hop, attempt.get("attempt").and_then(Value::as_u64)).next_back());
    let endpoint = attempt.map_or("", |attempt| text(attempt, "endpoint"));
    let flags = text(hop, "flags");
    if flags.split(',').any(|flag| flag == "FI") {
        causes.push(format!("a fault that is injected answered {}: {}", answer(hop), setting(routed, "fault", &route)));
        return;
    }
    let Some(failure) = failure(hop) else {
        if let Some(why) = stood_in(hop, routed) {
            causes.push(why);
            causes.push(route);
            return;
        }
        if text(hop, "details") == "direct_response" {
            let body = routed.and_then(|routed| routed.pointer("/explanation/route/direct_response/body")?.as_str());
            let body = body.filter(|body| !body.is_empty()).map(|body| format!(" ({body})")).unwrap_or_default();
            causes.push(format!("the route answers {} itself{body}: {route}", answer(hop)));
            return;
        }
        if let Some(by) = answered_by(hop) {
            causes.push(format!("{by} answered {}: {route}", answer(hop)));
            return;
        }
        match server {
            Some(server) if has_failed(server) => failed(hops, server, causes, depth + 1),
            _ if endpoint.is_empty() => {
                causes.push(format!("it was answered with {}: {}", answer(hop), text(hop, "details")))
            }
            _ if status(hop) == 0 => causes.push(gave_up(hop, endpoint, server)),
            _ => causes.push(format!("endpoint {endpoint} answered {}, and did not tell why", answer(hop))),
        }
        causes.push(route);
        return;
    };
    let error = text(failure, "error");
    match text(failure, "kind") {
        "NoRoute" | "NoCluster" => {
            let has_route =
                routed.and_then(|routed| routed.pointer("/explanation/route")).is_some_and(Value::is_object);
            causes.push(match has_route {
                true => format!("the route that it finds refuses it: {error}; {route}"),
                false => format!("no route takes it: {error}"),
            });
            causes.extend(passed_over(routed));
        }
        "NoHealthyEndpoint" => {
            causes.push(format!("no endpoint can take it: {error}{}", endpoints(routed)));
            causes.push(route);
        }
        "Timeout" => {
            causes.push(too_late(hops, routed, error, endpoint, hop, server));
            causes.push(route);
        }
        "Overflow" => {
            causes.push(format!("a limit of the cluster: {error}{}", origin_of_cluster(routed, "circuit_breakers")));
            causes.push(route);
        }
        _ => {
            causes.push(match server {
                Some(server) => format!("{} has the request, and gave no answer: {error}", who(server)),
                None => error.to_owned(),
            });
            if let Some(server) = server.filter(|server| has_failed(server) && status(server) != 0) {
                failed(hops, server, causes, depth + 1);
            }
            causes.push(route);
        }
    }
}

fn server_failed(hops: &[Value], hop: &Value, causes: &mut Vec<String>, depth: usize) {
    if let Some(policy) = events(hop, "policy").next_back()
        && policy.get("allowed").and_then(Value::as_bool) == Some(false)
    {
        let peer = events(hop, "received").next().map_or("", |received| text(received, "peer"));
        let peer = if peer.is_empty() { "a client without an identity" } else { peer };
        causes.push(match text(policy, "policy") {
            "" => format!("{} answered {}: no policy lets in {peer}{}", who(hop), answer(hop), origin(policy)),
            name => format!("{} answered {}: {name} refuses {peer}{}", who(hop), answer(hop), origin(policy)),
        });
        return;
    }
    if let Some(authorizer) = events(hop, "authorizer").next() {
        let why = match text(authorizer, "no_answer") {
            "" => "an authorizer refused it".to_owned(),
            why => format!("an authorizer gave no answer: {why}"),
        };
        causes.push(format!("{} answered {}: {why}", who(hop), answer(hop)));
        return;
    }
    if let Some(direct) = events(hop, "answered by the configuration").next() {
        let why = text(direct, "body");
        causes.push(format!("{} answered {}, as its configuration says: {why}", who(hop), answer(hop)));
        return;
    }
    if let Some(failure) = failure(hop) {
        causes.push(format!("{} answered {}: {}", who(hop), answer(hop), text(failure, "error")));
        return;
    }
    if text(hop, "flags").split(',').any(|flag| flag == "FI") {
        causes.push(format!("a fault that {} injects answered {}", who(hop), answer(hop)));
        return;
    }
    if let Some(by) = answered_by(hop) {
        causes.push(format!("{} answered {} before its application: {by}", who(hop), answer(hop)));
        return;
    }
    // What it asked of others was there first.
    if let Some(onward) = made(hops, hop, None).rev().find(|made| has_failed(made)) {
        failed(hops, onward, causes, depth + 1);
    }
    let rewritten = rewritten(hops, hop).unwrap_or_default();
    causes.push(format!("the application of {} answered {} after {}{rewritten}", who(hop), answer(hop), took(hop)));
}

/// What answered a request on its way, so that nobody further on was asked: a limit, or a filter by its name, or by what it noted.
fn answered_by(hop: &Value) -> Option<String> {
    events(hop, "filter").find(|filter| text(filter, "outcome") == "answered")?;
    let noted = || match text(hop, "details") {
        // That one did is all that it says.
        "" | "filter_response" => "a filter".to_owned(),
        details => details.to_owned(),
    };
    Some(limit(hop).or_else(|| filter(hop)).unwrap_or_else(noted))
}

/// The limit that refused a request, by its name and its rule's. One that only counts does not.
fn limit(hop: &Value) -> Option<String> {
    let is = |limit: &Value, what: &str| limit.get(what).and_then(Value::as_bool);
    let is_over = |limit: &&Value| is(limit, "is_within") == Some(false) && is(limit, "is_enforced") == Some(true);
    let found =
        ["rate limit", "quota"].into_iter().find_map(|what| Some((what, events(hop, what).rev().find(is_over)?)));
    let (what, limit) = found?;
    let rule = match text(limit, "rule") {
        "" => String::new(),
        rule => format!(", rule {rule}"),
    };
    Some(format!("the {what} {}{rule}", text(limit, "limit")))
}

/// The filter of the application's own that answered, by its name.
fn filter(hop: &Value) -> Option<String> {
    let named = |filter: &&Value| text(filter, "outcome") == "answered" && !text(filter, "filter").is_empty();
    events(hop, "filter").rev().find(named).map(|filter| format!("the filter {}", text(filter, "filter")))
}

/// The answer that stands in for a service of which nobody is left.
fn stood_in(hop: &Value, routed: Option<&Value>) -> Option<String> {
    let event = events(hop, "fallback").next_back().filter(|event| event.get("status").is_some())?;
    let place = origin_of_cluster(routed, "fallback");
    Some(format!("the fallback{place} answered {}: {}", answer(hop), text(event, "error")))
}

/// Who took a request in the place of the service that it was for.
fn taken_over(hop: &Value, routed: Option<&Value>) -> Option<String> {
    let to = events(hop, "fallback").map(|event| text(event, "to")).rfind(|to| !to.is_empty())?;
    Some(format!("the fallback {to} took it{}: nobody else is there", origin_of_cluster(routed, "fallback")))
}

/// Where copies of a request went.
fn mirrored(hop: &Value, routed: Option<&Value>) -> Option<String> {
    let to = events(hop, "mirrored").next_back()?.get("to")?.as_array()?;
    let to: Vec<&str> = to.iter().filter_map(Value::as_str).collect();
    let place = routed.and_then(|routed| routed.pointer("/explanation/route/origins/mirrors")?.as_str());
    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
    Some(format!("a copy of it was sent to {}{place}", to.join(" and ")))
}

/// What a route has made of the path, where a server was asked for another one than its client.
fn rewritten(hops: &[Value], hop: &Value) -> Option<String> {
    let (of, _) = parent(hop)?;
    let client = hops.iter().find(|one| text(one, "hop") == of)?;
    let (asked, got) = (text(client, "path"), text(hop, "path"));
    let routed = events(client, "routed").next_back().filter(|_| asked != got)?;
    Some(format!(", to {got}, which is made of {asked}: {}", route_of(routed)))
}

/// What failed on the way of a request that did not: somebody did without it.
fn done_without(hops: &[Value], causes: &mut Vec<String>) {
    let failures = hops.iter().skip(1).filter(|hop| text(hop, "side") == "client" && has_failed(hop));
    for hop in failures.take(3) {
        let mut why = Vec::new();
        failed(hops, hop, &mut why, 0);
        causes.extend(why.first().map(|why| format!("a call of {} failed on the way: {why}", who(hop))));
    }
}

fn went_well(hops: &[Value], first: &Value, causes: &mut Vec<String>) {
    let whole = number(first, "took_ms");
    let is_most = |took: f64| took >= SLOW.1 && took >= whole * SLOW.0;
    let delayed = hops.iter().find(|hop| text(hop, "flags").split(',').any(|flag| flag == "DI"));
    if let Some(delayed) = delayed.filter(|_| whole >= SLOW.1) {
        let routed = events(delayed, "routed").next_back();
        let route = routed.map(route_of).unwrap_or_default();
        causes.push(format!("it was delayed by a fault that is injected: {}", setting(routed, "fault", &route)));
    } else if let Some(cut) = cut_short(hops) {
        causes.push(cut);
    } else if let Some(slow) = hops.iter().rev().find(|hop| is_most(number(hop, "took_ms"))) {
        causes.push(match text(slow, "side") {
            "server" => format!("the application of {} took {} of {whole:.0} ms", who(slow), took(slow)),
            _ => match events(slow, "picked").next_back() {
                Some(picked) => format!("endpoint {} took {} of {whole:.0} ms", text(picked, "endpoint"), took(slow)),
                None => format!("{} took {}", who(slow), took(slow)),
            },
        });
    }
    if let Some(routed) = events(first, "routed").next_back() {
        causes.extend(stood_in(first, Some(routed)).or_else(|| taken_over(first, Some(routed))));
        causes.extend(filter(first).map(|by| format!("{by} answered {}", answer(first))));
        causes.push(match (text(first, "details"), status(first)) {
            ("direct_response", 300..400) => format!("the route redirects it: {}", route_of(routed)),
            ("direct_response", status) => format!("the route answers {status} itself: {}", route_of(routed)),
            _ => route_of(routed),
        });
        if let Some(picked) = events(first, "picked").next_back() {
            let others = routed.get("endpoints").and_then(Value::as_array).map_or(0, Vec::len);
            causes.push(format!("endpoint {} was picked, of {others} that there are", text(picked, "endpoint")));
        }
        causes.extend(mirrored(first, Some(routed)));
        causes.extend(passed_over(Some(routed)));
    } else {
        causes.push(format!("{} answered {}", who(first), answer(first)));
    }
}

/// An answer that began and did not come to its end: by whom. What its caller left unread is nobody's fault.
fn cut_short(hops: &[Value]) -> Option<String> {
    let is_cut = |hop: &&Value| {
        hop.get("complete").and_then(Value::as_bool) == Some(false)
            && failure(hop).is_none()
            && text(hop, "details") != "downstream_remote_disconnect"
    };
    let cut = hops.iter().rev().find(is_cut)?;
    Some(match text(cut, "side") {
        "server" => format!("the answer of {} ended too early, after {}", who(cut), took(cut)),
        _ => format!("the answer to {} ended too early, after {}: {}", who(cut), took(cut), text(cut, "details")),
    })
}

/// Tries that came to nothing before the last one.
fn retried(hop: &Value, causes: &mut Vec<String>) {
    let all = hop.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let tries = all.iter().filter_map(|event| match text(event, "what") {
        "attempt failed" => Some(text(event, "error").to_owned()),
        "attempt answered" => Some(format!("status {}", number(event, "status"))),
        _ => None,
    });
    let mut tries: Vec<String> = tries.collect();
    // A last one that failed, too, is told of already.
    if failure(hop).is_some() && tries.len() as f64 >= number(hop, "attempts") {
        tries.pop();
    }
    if number(hop, "attempts") > 1.0 && !tries.is_empty() {
        causes.push(format!("{} attempts; before the last: {}", number(hop, "attempts"), tries.join("; ")));
    }
}

/// The route that was taken, and where it leads.
fn route_of(routed: &Value) -> String {
    let Some(route) = routed.pointer("/explanation/route").filter(|route| !route.is_null()) else {
        return format!(
            "no route was found{}",
            routed.pointer("/explanation/error").map(|e| format!(": {e}")).unwrap_or_default()
        );
    };
    let name = match text(route, "name") {
        "" => format!("route {}", number(route, "position")),
        name => format!("route {} {name}", number(route, "position")),
    };
    let clusters =
        routed.pointer("/explanation/clusters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let total: f64 = clusters.iter().map(|cluster| number(cluster, "weight")).sum();
    let to = clusters.iter().map(|cluster| match clusters.len() {
        1 => text(cluster, "name").to_owned(),
        _ => format!("{} % to {}", 100.0 * number(cluster, "weight") / total.max(1.0), text(cluster, "name")),
    });
    let to: Vec<String> = to.collect();
    let drawn = match (text(routed, "cluster"), text(route, "split_by")) {
        (cluster, by) if clusters.len() > 1 && !cluster.is_empty() => {
            match text(route, "this_request_goes_to") == cluster {
                true => {
                    let place = route.pointer("/origins/split_by").and_then(Value::as_str);
                    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
                    format!("; its {by}{place} leads to {cluster}")
                }
                false => format!("; {cluster} was drawn"),
            }
        }
        _ => String::new(),
    };
    let leads = if to.is_empty() { String::new() } else { format!(" sends it to {}{drawn}", to.join(", ")) };
    format!("{name}{}{leads}", origin(route))
}

fn origin(of: &Value) -> String {
    match text(of, "origin") {
        "" => String::new(),
        origin => format!(" ({origin})"),
    }
}

/// A setting of the route, and where it is written.
fn setting(routed: Option<&Value>, name: &str, route: &str) -> String {
    let place = routed.and_then(|routed| routed.pointer(&format!("/explanation/route/origins/{name}"))?.as_str());
    match place {
        Some(place) => format!("{name} of {route}, at {place}"),
        None => route.to_owned(),
    }
}

fn origin_of_cluster(routed: Option<&Value>, name: &str) -> String {
    let clusters = routed.and_then(|routed| routed.pointer("/explanation/clusters")?.as_array());
    let place =
        clusters.and_then(|all| all.iter().find_map(|cluster| cluster.pointer(&format!("/origins/{name}"))?.as_str()));
    place.map(|place| format!(" ({place})")).unwrap_or_default()
}

/// The routes that were passed over, the nearest first.
fn passed_over(routed: Option<&Value>) -> impl Iterator<Item = String> {
    let all = routed.and_then(|routed| routed.pointer("/explanation/passed_over")?.as_array());
    all.into_iter().flatten().rev().take(3).map(over)
}

/// A route that was passed over.
fn over(over: &Value) -> String {
    let unmet = over.get("unmet").cloned().unwrap_or_default();
    let unmet = format!("{}: {}, {}", text(&unmet, "what"), text(&unmet, "wanted"), text(&unmet, "found"));
    format!("not route {} {}{}: {unmet}", number(over, "position"), text(over, "name"), origin(over))
}

/// How the endpoints stand that there are.
fn endpoints(routed: Option<&Value>) -> String {
    let Some(all) = routed.and_then(|routed| routed.get("endpoints")?.as_array()) else { return String::new() };
    let subset = origin_of_cluster(routed, "subset");
    if all.is_empty() {
        return format!("; there is none{subset}");
    }
    let said = all.iter().take(5).map(|one| {
        let flag = |name: &str| one.get(name).and_then(Value::as_bool).unwrap_or_default();
        let mut said = format!("{} {}", text(one, "endpoint"), text(one, "told").to_lowercase());
        if flag("ejected") {
            said += ", ejected";
        }
        if !flag("reachable") {
            said += ", cannot be reached";
        }
        said
    });
    format!("; {}{subset}", said.collect::<Vec<_>>().join("; "))
}

/// Where the time went of a request that was too late.
fn too_late(
    hops: &[Value],
    routed: Option<&Value>,
    error: &str,
    endpoint: &str,
    hop: &Value,
    server: Option<&Value>,
) -> String {
    let is_try = events(hop, "attempt failed").next_back().is_some_and(|event| text(event, "kind") == "Timeout");
    let setting =
        |name: &str| routed.and_then(|routed| routed.pointer(&format!("/explanation/route/{name}"))?.as_str());
    let (name, gives) = match setting("per_try_timeout").filter(|_| is_try) {
        Some(_) => ("per_try_timeout", "gives each try"),
        None => ("timeout", "gives it"),
    };
    let limit = match (setting(name), setting(&format!("origins/{name}"))) {
        (Some(timeout), Some(place)) => format!("; its route {gives} {timeout} ({place})"),
        (Some(timeout), None) => format!("; its route {gives} {timeout}"),
        (None, _) => String::new(),
    };
    let waited = took(hop);
    let has_connection =
        events(hop, "connecting").next_back().is_none() || events(hop, "connected").next_back().is_some();
    match (endpoint, server) {
        ("", _) => format!("it was too late before there was an endpoint: {error}{limit}"),
        (_, Some(server)) => match waited_for(hops, server, 0) {
            Some(last) => format!(
                "the application of {} had not answered {}, at {endpoint}, after {waited}{limit}",
                who(last),
                who(server)
            ),
            None => format!("the application of {} at {endpoint} had not answered after {waited}{limit}", who(server)),
        },
        (_, None) if !has_connection => format!("endpoint {endpoint} had no connection after {waited}{limit}"),
        (_, None) => format!("endpoint {endpoint} had not answered after {waited}{limit}"),
    }
}

/// The last server in a row of those that waited for each other, where one did not answer either.
fn waited_for<'h>(hops: &'h [Value], server: &Value, depth: usize) -> Option<&'h Value> {
    let onward = made(hops, server, None).rev().find(|made| has_failed(made) && depth < 32)?;
    let next = made(hops, onward, None).rev().find(|made| status(made) == 0)?;
    waited_for(hops, next, depth + 1).or(Some(next))
}

fn gave_up(hop: &Value, endpoint: &str, server: Option<&Value>) -> String {
    let of = server.map(|server| format!(", of {}", who(server))).unwrap_or_default();
    format!("the caller gave it up after {}, while endpoint {endpoint}{of} had it", took(hop))
}

fn took(hop: &Value) -> String {
    format!("{:.1} ms", number(hop, "took_ms"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_try_is_none_of_those_before_it() {
        let tries =
            [json!({"what": "attempt answered", "status": 503}), json!({"what": "attempt failed", "error": "a"})];
        let last = [json!({"what": "attempt failed", "error": "b"}), json!({"what": "failed", "error": "b"})];
        let said = |events: Vec<Value>| {
            let mut causes = Vec::new();
            retried(&json!({"attempts": 3, "events": events}), &mut causes);
            causes
        };
        let expected = ["3 attempts; before the last: status 503; a"];
        assert_eq!(said(tries.to_vec()), expected);
        assert_eq!(said(tries.into_iter().chain(last).collect()), expected);
    }

    #[test]
    fn what_refused_a_request_is_named_on_both_sides() {
        let over = |what: &str, is_enforced: bool| json!({"what": what, "limit": "shop/users", "rule": "each", "is_within": false, "is_enforced": is_enforced});
        let answered = json!({"what": "filter", "outcome": "answered"});
        let named = json!({"what": "filter", "outcome": "answered", "filter": "acme.guard"});
        let cases = [
            ("request_rule[own]", vec![answered.clone()], "request_rule[own]"),
            ("filter_response", vec![answered.clone()], "a filter"),
            ("filter_response", vec![named], "the filter acme.guard"),
            ("request_rate_limited", vec![over("quota", true), answered.clone()], "the quota shop/users, rule each"),
            // A limit that only counts let it pass.
            ("concurrency_queue_full", vec![over("rate limit", false), answered], "concurrency_queue_full"),
        ];
        for (details, events, expected) in cases {
            for side in ["client", "server"] {
                let hop =
                    json!({"side": side, "workload": "shop/a", "status": 403, "details": details, "events": events});
                let mut causes = Vec::new();
                failed(std::slice::from_ref(&hop), &hop, &mut causes, 0);
                let said = match side {
                    "client" => format!("{expected} answered 403: "),
                    _ => format!("shop/a answered 403 before its application: {expected}"),
                };
                assert!(causes.iter().any(|cause| cause.starts_with(&said)), "{side} {details}: {causes:?}");
            }
        }
    }
}
