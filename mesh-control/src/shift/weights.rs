//! The weights of one VirtualService between the subsets of one host, where they are written: read, and written back with
//! nothing else of the text changed, comments and formatting included.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

use crate::config::diagnostic::{Source, Span};
use crate::config::node::{self, Node, Value};
use crate::registry::host::{candidates, in_namespace};

/// Which weights are meant.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The host that is divided, as a client in `namespace` calls it.
    pub(crate) host: String,
    /// The namespace of short names.
    pub(crate) namespace: String,
    /// The subset that is shifted to.
    pub(crate) to: String,
    /// Only rules of this VirtualService, `NAMESPACE/NAME`.
    pub(crate) virtual_service: Option<String>,
    /// Only rules (`http[].name`) of this name.
    pub(crate) route: Option<String>,
}

/// The rules of one VirtualService that divide the host, in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Written {
    /// `NAMESPACE/NAME` of the VirtualService.
    pub(crate) id: String,
    /// The full names by which workloads may report the calls to the host.
    pub(crate) hosts: Vec<String>,
    /// The rules.
    pub(crate) rules: Vec<Rule>,
}

/// A rule whose destinations are subsets of the host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    /// Where it begins.
    pub(crate) line: u32,
    /// The weight of each destination.
    pub(crate) weights: Vec<u32>,
    /// Where each is written.
    spans: Vec<Span>,
    /// Which of them is shifted to.
    to: usize,
}

impl Rule {
    /// The share of the subset in percent, rounded up: what is there already.
    pub(crate) fn share(&self) -> u32 {
        let total: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        let own = self.weights.get(self.to).copied().unwrap_or_default();
        u32::try_from((u64::from(own) * 100).div_ceil(total.max(1))).unwrap_or(100)
    }

    /// The weights with which the subset has this share in percent, and the others divide the rest as they do now: 100 in all.
    pub(crate) fn weights_at(&self, percent: u32) -> Vec<u32> {
        let rest = u64::from(100_u32.saturating_sub(percent));
        let others = || self.weights.iter().enumerate().filter(|(at, _)| *at != self.to);
        let total: u64 = others().map(|(_, weight)| u64::from(*weight)).sum();
        let mut weights: Vec<u32> = vec![percent; self.weights.len()];
        let mut lost = Vec::new();
        let mut given = 0;
        for (at, weight) in others() {
            let exact = rest * u64::from(*weight);
            let share = exact.checked_div(total).unwrap_or_default();
            given += share;
            lost.push((exact.checked_rem(total).unwrap_or_default(), at));
            if let Some(place) = weights.get_mut(at) {
                *place = u32::try_from(share).unwrap_or(100);
            }
        }
        // What rounding took goes to those that lost most.
        lost.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let left = usize::try_from(rest.saturating_sub(given)).unwrap_or_default();
        for (_, at) in lost.into_iter().take(left) {
            if let Some(place) = weights.get_mut(at) {
                *place += 1;
            }
        }
        weights
    }
}

/// Every VirtualService of a text that divides the host between subsets, one of them the wanted one.
///
/// # Errors
/// Where the text cannot be read, or a weight is written so that it cannot be replaced: the place, and what to write.
pub(crate) fn find(source: &Source, wanted: &Wanted) -> Result<Vec<Written>, String> {
    // What does not say so has nothing to be found.
    if !source.text.contains("VirtualService") {
        return Ok(Vec::new());
    }
    let documents = node::parse(source).map_err(|wrong| wrong.to_string())?;
    let mut found = Vec::new();
    for document in &documents {
        let of_list = document.get("items").map_or(&[][..], Node::items);
        for object in std::iter::once(document).chain(of_list) {
            found.extend(rules_of(&source.text, object, wanted).map_err(|fault| format!("{}:{fault}", source.name))?);
        }
    }
    Ok(found)
}

fn rules_of(source: &str, object: &Node, wanted: &Wanted) -> Result<Option<Written>, String> {
    let text = |node: Option<&Node>| node.and_then(Node::as_str).map(str::to_owned);
    if text(object.get("kind")).as_deref() != Some("VirtualService") {
        return Ok(None);
    }
    let meta = |name: &str| text(object.get("metadata").and_then(|meta| meta.get(name)));
    let namespace = meta("namespace").unwrap_or_else(|| "default".to_owned());
    let id = format!("{namespace}/{}", meta("name").unwrap_or_default());
    if wanted.virtual_service.as_ref().is_some_and(|only| *only != id) {
        return Ok(None);
    }
    let meant = candidates(&in_namespace(&wanted.host, &wanted.namespace), &wanted.namespace);
    let is_meant =
        |host: String| candidates(&in_namespace(&host, &namespace), &namespace).iter().any(|name| meant.contains(name));
    let mut rules = Vec::new();
    for rule in object.get("spec").and_then(|spec| spec.get("http")).map_or(&[][..], Node::items) {
        if wanted.route.is_some() && text(rule.get("name")) != wanted.route {
            continue;
        }
        let Some(route) = rule.get("route") else { continue };
        let destinations = route.items();
        let of = |node: &Node, name: &str| text(node.get("destination").and_then(|at| at.get(name)));
        let Some(to) = destinations.iter().position(|one| of(one, "subset").as_ref() == Some(&wanted.to)) else {
            continue;
        };
        if destinations.len() > 1 && destinations.iter().all(|one| of(one, "host").is_some_and(is_meant)) {
            // What another place refers to would change with it, unseen.
            let spec = object.get("spec");
            let above = [Some(object), spec, spec.and_then(|spec| spec.get("http")), Some(rule), Some(route)];
            let whole = above.into_iter().flatten().chain(destinations);
            if let Some(anchored) = whole
                .chain(destinations.iter().filter_map(|one| one.get("weight")))
                .find(|node| has_anchor(source, node.span))
            {
                let Span { line, column, .. } = anchored.span;
                return Err(format!(
                    "{line}:{column}: this has an anchor (`&`), so that another place may mean the same weight"
                ));
            }
            rules.push(weights_of(source, rule, destinations, to)?);
        }
    }
    Ok((!rules.is_empty()).then_some(Written { id, hosts: meant, rules }))
}

fn weights_of(text: &str, rule: &Node, destinations: &[Node], to: usize) -> Result<Rule, String> {
    let mut found = Rule { line: rule.span.line, weights: Vec::new(), spans: Vec::new(), to };
    for destination in destinations {
        let place = |span: Span| format!("{}:{}", span.line, span.column);
        let Some(weight) = destination.get("weight") else {
            let at = place(destination.span);
            return Err(format!("{at}: this destination has no weight; write one, `weight: 0` for none"));
        };
        let value = match weight.value {
            Value::Int(value) => u32::try_from(value).ok(),
            _ => None,
        };
        let Some(value) = value else {
            return Err(format!("{}: weight is no whole number", place(weight.span)));
        };
        if !is_number(text, weight.span) {
            return Err(format!("{}: the weight is not written as a plain number", place(weight.span)));
        }
        found.weights.push(value);
        found.spans.push(weight.span);
    }
    Ok(found)
}

/// The text with these weights, a list of them for each rule.
///
/// # Errors
/// Where what stands in a place is no number: the text is another one than it was read from.
pub(crate) fn replaced(text: &str, written: &Written, weights: &[Vec<u32>]) -> Result<String, String> {
    let places = written.rules.iter().zip(weights).flat_map(|(rule, weights)| rule.spans.iter().zip(weights));
    let mut places: Vec<(&Span, &u32)> = places.collect();
    places.sort_by_key(|(span, _)| span.start);
    let (mut out, mut from) = (String::with_capacity(text.len() + 16), 0);
    for (span, weight) in places {
        let before = text.get(from..span.start as usize).filter(|_| is_number(text, *span));
        let before = before.ok_or_else(|| format!("line {}: there is no weight any more", span.line))?;
        out.push_str(before);
        out.push_str(&weight.to_string());
        from = span.end as usize;
    }
    out.push_str(text.get(from..).unwrap_or_default());
    Ok(out)
}

/// Whether what stands in a place has a name by which others refer to it.
fn has_anchor(text: &str, span: Span) -> bool {
    let before = text.get(..span.start as usize).unwrap_or_default().trim_end();
    let word = before.rsplit(|c: char| c.is_whitespace() || ",:[{".contains(c)).next();
    word.is_some_and(|word| word.starts_with('&') && word.len() > 1)
}

/// Whether what stands in a place is a number in digits, and no reference to one.
fn is_number(text: &str, span: Span) -> bool {
    let written = text.get(span.start as usize..span.end as usize);
    written.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}   # ours
spec:
  hosts: [reviews]
  http:
  - name: tests
    match: [{headers: {end-user: {exact: jason}}}]
    route:
    - destination: {host: reviews, subset: v2}
  - name: all
    route:
    - destination: {host: reviews, subset: v1}
      weight: 90  # most
    - destination: {host: reviews.default.svc.cluster.local, subset: v2}
      weight: 0
    - {destination: {host: reviews, subset: v3}, weight: 10}
";

    fn source(text: &str) -> Source {
        Source { name: "a.yaml".into(), text: text.into() }
    }

    fn wanted() -> Wanted {
        let (host, namespace, to) = ("reviews".to_owned(), "default".to_owned(), "v2".to_owned());
        Wanted { host, namespace, to, virtual_service: None, route: None }
    }

    #[test]
    fn weights_are_replaced_and_nothing_else() {
        let found = find(&source(TEXT), &wanted()).unwrap();
        let [written] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(written.id, "default/reviews");
        assert_eq!(written.hosts, ["reviews.default.svc.cluster.local"]);
        let [rule] = written.rules.as_slice() else { panic!("{written:?}") };
        assert_eq!((&rule.weights, rule.share(), rule.line), (&vec![90, 0, 10], 0, 11));
        let text = replaced(TEXT, written, &[rule.weights_at(25)]).unwrap();
        let expected =
            TEXT.replace("90  # most", "68  # most").replace("weight: 0\n", "weight: 25\n").replace("10}", "7}");
        assert_eq!(text, expected);
        let again = find(&source(&text), &wanted()).unwrap();
        assert_eq!(replaced(&text, &again[0], &[vec![90, 0, 10]]).unwrap(), TEXT, "and back");
    }

    #[test]
    fn shares_are_of_a_hundred_and_the_others_keep_their_proportions() {
        let rule = |weights: &[u32]| Rule { line: 1, weights: weights.to_vec(), spans: vec![], to: 0 };
        for (weights, percent, expected) in [
            (&[0, 100][..], 5, vec![5, 95]),
            (&[0, 1, 1], 5, vec![5, 48, 47]),
            (&[0, 1, 1, 1], 0, vec![0, 34, 33, 33]),
            (&[10, 20, 70], 100, vec![100, 0, 0]),
            (&[0, 4_000_000_000, 200_000_000], 50, vec![50, 48, 2]),
        ] {
            let got = rule(weights).weights_at(percent);
            assert_eq!((got.iter().sum::<u32>(), &got), (100, &expected), "{weights:?}");
        }
        assert_eq!(rule(&[1, 999]).share(), 1, "what it has is not nothing");
        assert_eq!(rule(&[0, 0]).share(), 0);
    }

    #[test]
    fn what_is_meant_is_found_and_nothing_beside_it() {
        let count = |text: &str, wanted: &Wanted| find(&source(text), wanted).unwrap().len();
        assert_eq!(count(TEXT, &Wanted { to: "v4".to_owned(), ..wanted() }), 0);
        assert_eq!(count(TEXT, &Wanted { host: "ratings".to_owned(), ..wanted() }), 0);
        assert_eq!(count(TEXT, &Wanted { namespace: "other".to_owned(), ..wanted() }), 0);
        assert_eq!(count(TEXT, &Wanted { host: "reviews.default".to_owned(), ..wanted() }), 1);
        assert_eq!(count(TEXT, &Wanted { route: Some("tests".to_owned()), ..wanted() }), 0);
        assert_eq!(count(TEXT, &Wanted { route: Some("all".to_owned()), ..wanted() }), 1);
        assert_eq!(count(TEXT, &Wanted { virtual_service: Some("default/other".to_owned()), ..wanted() }), 0);
        let listed = format!("kind: List\nitems:\n- {}", TEXT.replace('\n', "\n  "));
        assert_eq!(count(&listed, &wanted()), 1);
        assert_eq!(count("kind: Service\n: [", &wanted()), 0, "of no concern");
    }

    #[test]
    fn weights_that_cannot_be_replaced_are_told_with_their_place() {
        let fault = |from: &str, to: &str| find(&source(&TEXT.replace(from, to)), &wanted()).unwrap_err();
        assert_eq!(
            fault("      weight: 0\n", ""),
            "a.yaml:15:7: this destination has no weight; write one, `weight: 0` for none"
        );
        assert_eq!(fault("weight: 0\n", "weight: many\n"), "a.yaml:16:15: weight is no whole number");
        for (from, to) in [
            ("weight: 90 ", "weight: &w 90 "),
            (
                "    - destination: {host: reviews, subset: v1}",
                "    - &d\n      destination: {host: reviews, subset: v1}",
            ),
            ("  - name: all", "  - &r\n    name: all"),
        ] {
            assert!(fault(from, to).contains("has an anchor"), "{to}");
        }
        let alias = TEXT.replace("weight: 0\n", "weight: *w\n").replace("# ours", "\nx: &w 0");
        let fault = find(&source(&alias), &wanted()).unwrap_err();
        assert_eq!(fault, "a.yaml:17:15: the weight is not written as a plain number");
        let written = find(&source(TEXT), &wanted()).unwrap().remove(0);
        assert!(replaced(&TEXT.replace("weight: 0", "wait: 0"), &written, &[vec![1, 2, 3]]).is_err());
    }
}
