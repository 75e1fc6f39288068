//! The policy that lets in what was seen, and nothing else: one `AuthorizationPolicy` for a workload, from its records.
//!
//! Callers that do the same share a rule; what a form with `{*}` covers is not written again. What cannot be allowed so that
//! nothing else is allowed with it is left out, and told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use mesh_core::calls::{ANY, REST};
use mesh_core::identity::SpiffeId;

use super::{Record, Verdict, Workload};
use crate::period::date;

/// A policy for one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Suggestion {
    /// The policy as YAML, with what there is to say about it as comments.
    pub yaml: String,
    /// Calls that were let in and that it does not let in, each with the reason.
    pub left_out: Vec<String>,
    /// Calls that were refused and that it lets in: what decided about them is not in the records.
    pub let_in: Vec<String>,
}

/// The calls of one caller: for each set of methods the forms of paths.
type Operations = BTreeMap<BTreeSet<String>, BTreeSet<String>>;

/// A policy for the workload of these records, which are of one. With `allows_plaintext`, what callers without an identity did is
/// allowed to everybody.
///
/// # Errors
/// Where there is nothing that it could be written from, or for.
pub fn suggest(records: &[Record], allows_plaintext: bool) -> Result<Suggestion, String> {
    let workload = records.first().map(|record| &*record.workload).ok_or("no calls were recorded")?;
    let place = format!("{}/{}", workload.namespace, workload.name);
    let (key, value) = workload.selector().ok_or_else(|| {
        format!("{place} has no label `app` (or app.kubernetes.io/name) by which a policy could select it")
    })?;
    let mut left_out = Vec::new();
    // By who called: `None` is everybody.
    let mut callers: BTreeMap<Option<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let mut totals: BTreeMap<Option<String>, u64> = BTreeMap::new();
    let mut allow = |caller: Option<String>, record: &Record| {
        let paths = callers.entry(caller.clone()).or_default();
        paths.entry(record.path.to_string()).or_default().insert(record.method.to_string());
        *totals.entry(caller).or_default() += record.count;
    };
    for record in records.iter().filter(|record| record.lost > 0 || record.verdict == Verdict::Allow) {
        let identity = record.principal.as_deref().map(str::parse::<SpiffeId>);
        let mut leave = |why: &str| left_out.push(format!("{}: {why}", said(record)));
        match identity {
            _ if record.lost > 0 => leave("they found no place in the record, so nobody knows what they were"),
            _ if record.method.is_empty() || !record.path.starts_with('/') => {
                leave("no policy can name such a method or path");
            }
            Some(Err(_)) => leave("who called is no SPIFFE ID"),
            Some(Ok(id)) => {
                let principal = id.as_str().trim_start_matches("spiffe://").to_owned();
                allow(Some(principal), record);
            }
            None if allows_plaintext => allow(None, record),
            None => {
                leave("who called is not known, so no principal can be written; --allow-plaintext lets everybody do it")
            }
        }
    }
    if callers.is_empty() {
        let refusal = "a policy would refuse everybody";
        return Err(format!("no call to {place} that was let in can be allowed: {refusal}{}", listed(&left_out)));
    }
    // Who was refused by a rule still is, by that one.
    let refused = records.iter().filter(|record| record.verdict == Verdict::Deny && record.rule.is_none());
    let is_let_in = |record: &&Record| {
        let caller = record.principal.as_deref().map(|principal| principal.trim_start_matches("spiffe://").to_owned());
        let all = [callers.get(&caller), callers.get(&None)].into_iter().flatten().flatten();
        all.into_iter().any(|(form, methods)| methods.contains(&*record.method) && covers(form, &record.path))
    };
    let let_in: Vec<String> = refused.filter(is_let_in).map(said).collect();
    let mut yaml = header(&place, records, &left_out, &let_in);
    let name = format!("{}-callers", object_name(&workload.name));
    _ = write!(
        yaml,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n  \
         selector:\n    matchLabels:\n      {}: {}\n  action: ALLOW\n  rules:\n",
        quoted(&name),
        quoted(&workload.namespace),
        quoted(key),
        quoted(value)
    );
    // Callers that do the same share a rule.
    let mut rules: BTreeMap<Operations, BTreeSet<Option<String>>> = BTreeMap::new();
    for (caller, paths) in &callers {
        rules.entry(operations(paths)).or_default().insert(caller.clone());
    }
    for (operations, principals) in &rules {
        let total: u64 = principals.iter().filter_map(|caller| totals.get(caller)).sum();
        rule(&mut yaml, operations, principals, total);
    }
    Ok(Suggestion { yaml, left_out, let_in })
}

fn rule(yaml: &mut String, operations: &Operations, callers: &BTreeSet<Option<String>>, total: u64) {
    let principals: Vec<&str> = callers.iter().flatten().map(String::as_str).collect();
    if callers.contains(&None) {
        _ = write!(yaml, "  # {}, some of callers without an identity: EVERYBODY may do this\n  - to:\n", calls(total));
    } else {
        _ = write!(
            yaml,
            "  # {}\n  - from:\n    - source:\n        principals: {}\n    to:\n",
            calls(total),
            list(principals)
        );
    }
    for (methods, paths) in operations {
        let [methods, paths] = [methods, paths].map(|all| list(all.iter().map(String::as_str)));
        _ = write!(yaml, "    - operation:\n        methods: {methods}\n        paths: {paths}\n");
    }
}

/// Paths with the same methods together, without those that another one covers.
fn operations(paths: &BTreeMap<String, BTreeSet<String>>) -> Operations {
    let mut operations = Operations::new();
    for (path, methods) in paths {
        let is_covered = |method: &String| {
            let mut others = paths.iter().filter(|(other, methods)| *other != path && methods.contains(method));
            others.any(|(other, _)| covers(other, path))
        };
        let own: BTreeSet<String> = methods.iter().filter(|method| !is_covered(method)).cloned().collect();
        if !own.is_empty() {
            operations.entry(own).or_default().insert(path.clone());
        }
    }
    operations
}

/// Whether every path of one form is of the other one, too.
fn covers(form: &str, other: &str) -> bool {
    let (mut segments, mut others) = (form.split('/'), other.split('/'));
    loop {
        match (segments.next(), others.next()) {
            (None, None) => return true,
            (Some(REST), Some(_)) => return true,
            (Some(ANY), Some(segment)) if segment != REST && !segment.is_empty() => {}
            (Some(segment), Some(other)) if segment == other => {}
            _ => return false,
        }
    }
}

fn header(place: &str, records: &[Record], left_out: &[String], let_in: &[String]) -> String {
    let allowed = records.iter().filter(|record| record.lost == 0 && record.verdict == Verdict::Allow);
    let total: u64 = allowed.clone().map(|record| record.count).sum();
    let callers: BTreeSet<_> = allowed.clone().map(|record| &record.principal).collect();
    let seen = records.iter().filter(|record| record.count > 0);
    let first = seen.clone().map(|record| record.first).min().unwrap_or_default();
    let last = seen.map(|record| record.last).max().unwrap_or_default();
    let mut lines = vec![
        format!("Lets in what was seen at {place}, and nothing else: {} of {} callers,", calls(total), callers.len()),
        format!("from {} to {}.", date(first), date(last)),
        "What it would change: mesh-control authz preview FILE --config DIR".to_owned(),
    ];
    if !records.iter().all(|record| record.workload.is_proven) {
        lines.push(
            "The workload was not known by a certificate: any process that reaches mesh-control could say this of it."
                .to_owned(),
        );
    }
    let mut section = |title: &str, what: &[String]| {
        if !what.is_empty() {
            lines.push(String::new());
            lines.push(title.to_owned());
            lines.extend(what.iter().map(|one| format!("  {one}")));
        }
    };
    section("NOT LET IN, though it was:", left_out);
    section("LET IN, though it was refused: what decided is in no record (a token, a header, a host):", let_in);
    let by: BTreeSet<&str> = allowed.filter_map(|record| record.rule.as_deref()).collect();
    let by: Vec<String> = by.into_iter().map(str::to_owned).collect();
    section(
        "Let in until now by these. ALLOW policies add up, and what these ask beyond caller, method and path, this does not:",
        &by,
    );
    let refused: Vec<String> = records
        .iter()
        .filter(|record| record.lost == 0 && record.verdict == Verdict::Deny)
        .filter(|record| record.rule.is_some() || !let_in.contains(&said(record)))
        .map(|record| format!("{}: {}", said(record), record.rule.as_deref().unwrap_or("no rule was for it")))
        .collect();
    section("Refused, and still so:", &refused);
    // What breaks a line is not the same for everybody who reads YAML.
    let printable =
        |line: &String| line.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect::<String>();
    lines.iter().map(|line| format!("{}\n", format!("# {}", printable(line)).trim_end())).collect()
}

/// `3 calls of spiffe://td/ns/shop/sa/web: GET /a`.
fn said(record: &Record) -> String {
    let caller = record.principal.as_deref().unwrap_or("callers without an identity");
    match record.lost {
        0 => format!("{} of {caller}: {} {}", calls(record.count), record.method, record.path),
        lost => format!("{} of {caller}", calls(lost)),
    }
}

fn calls(count: u64) -> String {
    let mut digits = count.to_string();
    for at in (1..digits.len()).rev().filter(|at| (digits.len() - at).is_multiple_of(3)).collect::<Vec<_>>() {
        digits.insert(at, ',');
    }
    format!("{digits} call{}", if count == 1 { "" } else { "s" })
}

fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

/// A JSON string is one of YAML's, without what not everybody reads alike there.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            ' '..='~' => quoted.push(c),
            _ => _ = write!(quoted, "\\U{:08X}", u32::from(c)),
        }
    }
    quoted
}

fn list<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    format!("[{}]", texts.into_iter().map(quoted).collect::<Vec<_>>().join(", "))
}

/// A name that an object can have.
fn object_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().take(50).map(plain).collect();
    match name.trim_matches('-') {
        "" => "workload".to_owned(),
        name => name.to_owned(),
    }
}

/// The records of one workload, out of those of all: what is proven goes before what is not, and several service accounts are
/// told apart.
///
/// # Errors
/// Where there are none, or several.
pub fn of_workload(
    records: Vec<Record>,
    namespace: &str,
    name: &str,
    account: Option<&str>,
) -> Result<Vec<Record>, String> {
    let is_wanted = |workload: &Workload| {
        *workload.namespace == *namespace
            && *workload.name == *name
            && account.is_none_or(|account| *workload.service_account == *account)
    };
    let mut records: Vec<Record> = records.into_iter().filter(|record| is_wanted(&record.workload)).collect();
    if records.iter().any(|record| record.workload.is_proven) {
        records.retain(|record| record.workload.is_proven);
    }
    let accounts: BTreeSet<&str> = records.iter().map(|record| &*record.workload.service_account).collect();
    match accounts.len() {
        0 => Err(format!("no calls to {namespace}/{name} were recorded")),
        1 => Ok(records),
        _ => {
            let all = accounts.into_iter().collect::<Vec<_>>().join(", ");
            Err(format!(
                "several identities say that they are {namespace}/{name}, and one may not be: say which by \
                 --service-account: {all}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(principal: Option<&str>, method: &str, path: &str, verdict: &str) -> Record {
        let principal = principal.map(|account| format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        let line = serde_json::json!({
            "workload": {"namespace": "shop", "name": "reviews", "service_account": "reviews", "proven": true,
                         "labels": {"app": "reviews", "version": "v1"}},
            "principal": principal, "method": method, "path": path, "verdict": verdict, "count": 1200, "first": 0,
            "last": 1_795_903_500,
        });
        Record::parse(line.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn callers_that_do_the_same_share_a_rule_and_what_is_covered_is_not_written_twice() {
        let records = [
            record(Some("web"), "GET", "/reviews/7", "allow"),
            record(Some("web"), "GET", "/reviews/all", "allow"),
            record(Some("app"), "GET", "/reviews/8?secret", "allow"),
            record(Some("app"), "GET", "/reviews/all", "allow"),
            record(Some("admin"), "DELETE", "/reviews/7", "allow"),
            record(Some("admin"), "PUT", "/reviews/7", "allow"),
            record(Some("spy"), "GET", "/reviews/7", "deny"),
        ];
        let suggestion = suggest(&records, false).unwrap();
        assert_eq!(suggestion.left_out, Vec::<String>::new());
        assert_eq!(
            suggestion.yaml,
            r#"# Lets in what was seen at shop/reviews, and nothing else: 7,200 calls of 3 callers,
# from 1970-01-01T00:00:00Z to 2026-11-28T22:05:00Z.
# What it would change: mesh-control authz preview FILE --config DIR
#
# Refused, and still so:
#   1,200 calls of spiffe://cluster.local/ns/shop/sa/spy: GET /reviews/{*}: no rule was for it
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: "reviews-callers"
  namespace: "shop"
spec:
  selector:
    matchLabels:
      "app": "reviews"
  action: ALLOW
  rules:
  # 2,400 calls
  - from:
    - source:
        principals: ["cluster.local/ns/shop/sa/admin"]
    to:
    - operation:
        methods: ["DELETE", "PUT"]
        paths: ["/reviews/{*}"]
  # 4,800 calls
  - from:
    - source:
        principals: ["cluster.local/ns/shop/sa/app", "cluster.local/ns/shop/sa/web"]
    to:
    - operation:
        methods: ["GET"]
        paths: ["/reviews/{*}"]
"#
        );
    }

    #[test]
    fn calls_that_were_refused_and_would_be_let_in_are_told() {
        let by_token = |rule: Option<&str>, verdict: &str, principal| Record {
            rule: rule.map(Into::into),
            ..record(Some(principal), "GET", "/headers", verdict)
        };
        let records = [
            by_token(Some("AuthorizationPolicy/shop/by-token#0"), "allow", "web"),
            by_token(None, "deny", "web"),
            by_token(None, "deny", "spy"),
            by_token(Some("AuthorizationPolicy/shop/never#0"), "deny", "web"),
        ];
        let suggestion = suggest(&records, false).unwrap();
        assert_eq!(suggestion.let_in, ["1,200 calls of spiffe://cluster.local/ns/shop/sa/web: GET /headers"]);
        for said in [
            "# LET IN, though it was refused: what decided is in no record (a token, a header, a host):",
            "#   AuthorizationPolicy/shop/by-token#0",
            "sa/spy: GET /headers: no rule was for it",
            "sa/web: GET /headers: AuthorizationPolicy/shop/never#0",
        ] {
            assert!(suggestion.yaml.contains(said), "{said}: {}", suggestion.yaml);
        }
        assert_eq!(suggestion.yaml.matches("no rule was for it").count(), 1);
    }

    #[test]
    fn nothing_that_somebody_reports_begins_a_line_of_the_policy() {
        let open = "x\u{2028}---\u{2028}kind: AuthorizationPolicy\u{2029}a\u{85}b\nc";
        let mut told = record(Some("web"), "GET", "/a", "deny");
        told.rule = Some(open.into());
        let line = serde_json::to_string(&told).unwrap();
        assert_eq!(Record::parse(line.as_bytes()).unwrap().rule, None, "it is no name of a rule");
        let mut allowed = record(Some("web"), "GET", "/b", "allow");
        let labels = [("app".to_owned(), open.to_owned())].into();
        allowed.workload = Workload { labels, ..(*allowed.workload).clone() }.into();
        let suggestion = suggest(&[allowed, told], false).unwrap();
        assert!(suggestion.yaml.chars().all(|c| matches!(c, ' '..='~' | '\n')), "{}", suggestion.yaml);
        assert!(suggestion.yaml.contains(r"x\U00002028---"), "{}", suggestion.yaml);
        assert_eq!(suggestion.yaml.matches("kind: AuthorizationPolicy").count(), 3, "its own, and two in texts");
    }

    #[test]
    fn what_no_policy_can_allow_alone_is_left_out_and_told() {
        let mut lost = record(Some("web"), "", "", "allow");
        (lost.lost, lost.count) = (7, 0);
        let records = [
            record(Some("web"), "GET", "/a", "allow"),
            record(None, "GET", "/health", "allow"),
            record(Some("web"), "OPTIONS", "*", "allow"),
            record(Some("web"), "GE*", "/a", "allow"),
            lost,
        ];
        let suggestion = suggest(&records, false).unwrap();
        assert_eq!(suggestion.left_out.len(), 4, "{:?}", suggestion.left_out);
        assert!(!suggestion.yaml.contains("- \"*\"") && suggestion.yaml.contains("# NOT LET IN, though it was:"));
        let open = suggest(&records, true).unwrap();
        assert_eq!(open.left_out.len(), 3);
        assert!(open.yaml.contains("EVERYBODY") && open.yaml.contains("[\"/health\"]"), "{}", open.yaml);
        // A policy without rules would refuse everybody.
        let refused = suggest(&records[1..4], false).unwrap_err();
        assert!(refused.contains("refuse everybody") && refused.contains("--allow-plaintext"), "{refused}");
        assert!(suggest(&[], false).is_err());
    }

    #[test]
    fn who_is_not_proven_does_not_speak_for_who_is_and_two_accounts_are_told_apart() {
        let own = record(Some("web"), "GET", "/a", "allow");
        let with = |is_proven, account: &str| {
            let mut record = record(Some("spy"), "GET", "/spy", "allow");
            let workload = Workload { is_proven, service_account: account.into(), ..(*record.workload).clone() };
            record.workload = workload.into();
            record
        };
        let of = |all: &[&Record], account| {
            of_workload(all.iter().map(|record| (*record).clone()).collect(), "shop", "reviews", account)
        };
        assert_eq!(of(&[&own, &with(false, "reviews")], None), Ok(vec![own.clone()]));
        let refused = of(&[&own, &with(true, "web")], None).unwrap_err();
        assert!(refused.contains("reviews, web"), "{refused}");
        assert_eq!(of(&[&own, &with(true, "web")], Some("reviews")), Ok(vec![own.clone()]));
        assert!(of(&[&own], Some("other")).is_err());
        let unproven = suggest(&of(&[&with(false, "reviews")], None).unwrap(), false).unwrap();
        assert!(unproven.yaml.contains("was not known by a certificate"));
    }

    #[test]
    fn a_form_covers_what_it_says_and_no_more() {
        for (form, other, expected) in [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/{*}", true),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a/{**}", false),
            ("/a/{**}", "/a/b/c", true),
            ("/a/b", "/a/{*}", false),
        ] {
            assert_eq!(covers(form, other), expected, "{form} {other}");
        }
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
    }
}
