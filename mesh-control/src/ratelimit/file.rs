//! Rule files: what is written, strictly, and the rules that it comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::decode::{At, Decode, Decoder, Text, message};
use crate::config::diagnostic::{Code, Diagnostic, Severity, Source, Span, quoted};
use crate::config::node::{self, Node as Yaml, Value};
use crate::ratelimit::rules::{Domain, Level, Limit, Mode, Node, Rule, Rules, push_step};
use crate::ratelimit::stats::Stats;
use crate::ratelimit::window::{Algorithm, Unit};

message! {
    /// A file.
    struct File {
        domain: At<Word> = "domain" required,
        descriptors: Vec<Written> = "descriptors",
    }

    /// A key, perhaps with a value, and what it leads to.
    struct Written {
        key: At<Word> = "key" required,
        value: At<Word> = "value",
        rate_limit: Option<RateLimit> = "rate_limit",
        descriptors: Vec<Written> = "descriptors",
        shadow_mode: bool = "shadow_mode",
        quota_mode: bool = "quota_mode",
        detailed_metric: bool = "detailed_metric",
        value_to_metric: bool = "value_to_metric",
        share_threshold: bool = "share_threshold",
    }

    struct RateLimit {
        unit: Option<At<Unit>> = "unit",
        requests_per_unit: Option<At<u32>> = "requests_per_unit",
        unlimited: bool = "unlimited",
        name: Text = "name",
        replaces: Vec<Replaced> = "replaces",
        algorithm: Option<At<Algorithm>> = "algorithm",
    }

    struct Replaced {
        name: String = "name" required,
    }
}

/// Text that may be written without quotes though it looks like a number, as envoyproxy/ratelimit takes it.
#[derive(Clone, Debug, Default)]
struct Word(String);

impl Decode for Word {
    fn decode(node: &Yaml, d: &mut Decoder<'_>) -> Option<Self> {
        match &node.value {
            Value::Str(text) => Some(Word(text.clone())),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let (start, end) = (node.span.start as usize, node.span.end as usize);
                let text = d.source().text.get(start..end).map(str::trim).filter(|text| !text.is_empty());
                if text.is_none() {
                    d.wrong_type(node, "a string");
                }
                text.map(|text| Word(text.to_owned()))
            }
            _ => {
                d.wrong_type(node, "a string");
                None
            }
        }
    }
}

impl Decode for Unit {
    fn decode(node: &Yaml, d: &mut Decoder<'_>) -> Option<Self> {
        one_of(node, d, &Unit::ALL.map(|unit| (unit.as_str(), unit)))
    }
}

impl Decode for Algorithm {
    fn decode(node: &Yaml, d: &mut Decoder<'_>) -> Option<Self> {
        one_of(node, d, &[("fixed", Algorithm::Fixed), ("sliding", Algorithm::Sliding)])
    }
}

/// One of several words, in capitals or not.
fn one_of<T: Copy>(node: &Yaml, d: &mut Decoder<'_>, words: &[(&str, T)]) -> Option<T> {
    let Some(text) = node.as_str() else {
        d.wrong_type(node, "a string");
        return None;
    };
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    if found.is_none() {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        d.error(node.span, Code::InvalidValue, format!("{} is none of {}", quoted(text), known.join(", ")));
    }
    found.map(|(_, value)| *value)
}

/// Reads rule files into rules, and says what is wrong with them.
pub(super) fn read(files: &[Source], stats: &Stats) -> (Rules, Vec<Diagnostic>) {
    let (mut rules, mut found) = (Rules::default(), Vec::new());
    for source in files {
        let documents = match node::parse(source) {
            Ok(documents) => documents,
            Err(why) => {
                found.push(why);
                continue;
            }
        };
        let mut decoder = Decoder::new(source);
        for document in &documents {
            decoder.object(Arc::from(""));
            if document.get("kind").and_then(Yaml::as_str) == Some("ConfigMap") {
                let message = "a ConfigMap around a rule file: what stands under `data` is a file of its own here";
                decoder.report_at(document.span, "kind", Severity::Error, Code::InvalidValue, message);
                continue;
            }
            let Some(file) = File::decode(document, &mut decoder) else { continue };
            let domain = file.domain.value.0.as_str();
            if domain.is_empty() {
                let message = "a domain has a name: requests ask for it";
                decoder.report_at(file.domain.span, "domain", Severity::Error, Code::InvalidValue, message);
                continue;
            }
            if rules.domains.contains_key(domain) {
                let message = format!("the domain {} is already in another file, or in this one", quoted(domain));
                decoder.report_at(file.domain.span, "domain", Severity::Error, Code::Duplicate, message);
                continue;
            }
            if file.descriptors.is_empty() {
                let message = "a domain without rules: only limits that come with a question are counted";
                decoder.report_at(file.span, "descriptors", Severity::Info, Code::MissingField, message);
            }
            let name: Arc<str> = domain.into();
            let mut compiler = Compiler {
                d: &mut decoder,
                stats,
                domain: &name,
                paths: BTreeSet::new(),
                names: BTreeSet::new(),
                replaced: BTreeMap::new(),
                replaces: BTreeMap::new(),
            };
            let root = compiler.level(&file.descriptors, "");
            compiler.rings();
            compiler.unknown_names();
            let overrides = stats.of_rule(&(name.clone(), "(limits of requests)".into()));
            rules.domains.insert(domain.into(), Domain { name, root, overrides });
        }
        found.extend(decoder.into_found());
    }
    (rules, found)
}

/// What is known while one domain is compiled.
struct Compiler<'a, 's> {
    d: &'a mut Decoder<'s>,
    stats: &'a Stats,
    domain: &'a Arc<str>,
    /// What rules are called by their keys and values.
    paths: BTreeSet<String>,
    /// Names of rules.
    names: BTreeSet<String>,
    /// Names that rules replace, and where the first of them says so.
    replaced: BTreeMap<String, Span>,
    /// By the names of rules, the names that they replace.
    replaces: BTreeMap<String, BTreeSet<String>>,
}

impl Compiler<'_, '_> {
    fn error(&mut self, span: Span, path: &str, code: Code, message: impl Into<String>) {
        self.d.report_at(span, path, Severity::Error, code, message);
    }

    fn warning(&mut self, span: Span, path: &str, code: Code, message: impl Into<String>) {
        self.d.report_at(span, path, Severity::Warning, code, message);
    }

    fn level(&mut self, written: &[Written], above: &str) -> Level {
        let mut level = Level::default();
        for one in written {
            let (key, value) = (one.key.value.0.as_str(), one.value.value.0.as_str());
            let mut path = above.to_owned();
            push_step(&mut path, key, value);
            if key.is_empty() {
                self.error(one.key.span, above, Code::InvalidValue, "a descriptor has a key");
                continue;
            }
            if value.is_empty() && key.ends_with('*') {
                let message = "a wildcard in a key is not supported: it may end a value";
                self.error(one.key.span, &path, Code::InvalidValue, message);
            }
            let prefix = value.strip_suffix('*');
            if prefix.unwrap_or(value).contains('*') {
                let message = "only a `*` at the end of a value is a wildcard: this one is taken literally";
                self.warning(one.value.span, &path, Code::InvalidValue, message);
            }
            if one.share_threshold && prefix.is_none() {
                let message = "share_threshold is for a value that ends with `*`";
                self.error(one.span, &path, Code::InvalidValue, message);
            }
            let node = Node {
                rule: self.rule(one, &path),
                next: self.level(&one.descriptors, &path),
                value_to_metric: one.value_to_metric,
                is_shared: one.share_threshold,
            };
            let values = level.keys.entry(key.into()).or_default();
            let is_twice = match prefix {
                _ if value.is_empty() => values.any.replace(node).is_some(),
                None => values.exact.insert(value.into(), node).is_some(),
                Some(prefix) => {
                    let before = values.wildcards.iter().find(|(known, _)| prefix.starts_with(&**known));
                    let before = before.map(|(known, _)| known.clone());
                    values.wildcards.push((prefix.into(), node));
                    if let Some(known) = before.as_deref().filter(|known| *known != prefix) {
                        let message = format!("never found: {} comes before it", quoted(&format!("{known}*")));
                        self.warning(one.value.span, &path, Code::Conflict, message);
                    }
                    before.as_deref() == Some(prefix)
                }
            };
            if is_twice {
                self.error(one.span, &path, Code::Duplicate, "the same key and value twice");
            } else if one.rate_limit.is_some() && !self.paths.insert(path.clone()) {
                let message = "another rule is called so, too: metrics and status have both in one row, and envoyproxy/ratelimit takes no such file";
                self.warning(one.span, &path, Code::Duplicate, message);
            }
        }
        level
    }

    fn rule(&mut self, written: &Written, path: &str) -> Option<Rule> {
        let Some(limit) = &written.rate_limit else {
            if written.shadow_mode || written.quota_mode || written.detailed_metric {
                let message =
                    "shadow_mode, quota_mode and detailed_metric are without effect where there is no rate_limit";
                self.warning(written.span, path, Code::InvalidValue, message);
            }
            return None;
        };
        let name = limit.name.value.as_str();
        if !name.is_empty() {
            self.names.insert(name.to_owned());
        }
        for replaced in &limit.replaces {
            match replaced.name.as_str() {
                "" => self.error(replaced.span, path, Code::InvalidValue, "replaces a rule without a name"),
                own if own == name => self.error(replaced.span, path, Code::InvalidValue, "replaces itself"),
                other => {
                    self.replaced.entry(other.to_owned()).or_insert(replaced.span);
                    if !name.is_empty() {
                        self.replaces.entry(name.to_owned()).or_default().insert(other.to_owned());
                    }
                }
            }
        }
        let is_shadow = written.shadow_mode || written.quota_mode;
        Some(Rule {
            limit: self.limit(limit, path)?,
            mode: if is_shadow { Mode::Shadow } else { Mode::Enforced },
            name: (!name.is_empty()).then(|| name.into()),
            replaces: limit.replaces.iter().map(|replaced| replaced.name.as_str().into()).collect(),
            is_detailed: written.detailed_metric,
            stats: self.stats.of_rule(&(self.domain.clone(), path.into())),
        })
    }

    /// `Some(None)` where there is none.
    fn limit(&mut self, written: &RateLimit, path: &str) -> Option<Option<Limit>> {
        let RateLimit { unit, requests_per_unit, algorithm, .. } = written;
        if written.unlimited {
            let span = unit.as_ref().map(|unit| unit.span);
            let span = span.or_else(|| algorithm.as_ref().map(|algorithm| algorithm.span));
            match (span, requests_per_unit) {
                (Some(span), _) => {
                    let message = "unlimited, and a unit or an algorithm of a limit";
                    self.error(span, path, Code::InvalidValue, message);
                }
                (None, Some(requests)) => {
                    let message = "without effect, since it is unlimited";
                    self.warning(requests.span, path, Code::InvalidValue, message);
                }
                (None, None) => {}
            }
            return Some(None);
        }
        let (Some(unit), Some(requests)) = (unit, requests_per_unit) else {
            let missing = if unit.is_none() { "unit" } else { "requests_per_unit" };
            let message = format!("field `{missing}` is missing, and it is not unlimited");
            self.error(written.span, path, Code::MissingField, message);
            return None;
        };
        if requests.value == 0 {
            self.d.report_at(requests.span, path, Severity::Info, Code::InvalidValue, "lets nobody through");
        }
        let algorithm = algorithm.as_ref().map(|algorithm| algorithm.value).unwrap_or_default();
        Some(Some(Limit { requests: requests.value, unit: unit.value, algorithm }))
    }

    /// Rules of which each is replaced by another one of them: none would count a request that has them all.
    fn rings(&mut self) {
        let is_in_ring = |name: &&String| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![*name]);
            while let Some(one) = next.pop() {
                next.extend(self.replaces.get(one).into_iter().flatten().filter(|other| seen.insert(*other)));
            }
            seen.contains(name)
        };
        let found: Vec<(String, Span)> = self
            .replaces
            .keys()
            .filter(is_in_ring)
            .filter_map(|name| Some((name.clone(), *self.replaced.get(name)?)))
            .collect();
        for (name, span) in found {
            let message = format!(
                "{} and those that it replaces replace each other: a request with all of them is counted by none",
                quoted(&name)
            );
            self.warning(span, "replaces", Code::Conflict, message);
        }
    }

    fn unknown_names(&mut self) {
        for (name, span) in std::mem::take(&mut self.replaced) {
            if !self.names.contains(&name) {
                let message = format!("replaces {}, and no rule of this domain has that name", quoted(&name));
                self.warning(span, "replaces", Code::UnknownReference, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;

    fn said(text: &str) -> Vec<String> {
        let source = Source { name: "a.yaml".into(), text: text.into() };
        let (_, found) = read(&[source], &Stats::default());
        found.iter().map(ToString::to_string).collect()
    }

    fn rules(text: &str) -> Rules {
        let source = Source { name: "a.yaml".into(), text: text.into() };
        let (rules, found) = read(&[source], &Stats::default());
        let wrong: Vec<_> = found.iter().filter(|one| one.severity > Severity::Info).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        rules
    }

    fn path(rules: &Rules, entries: &[(&str, &str)]) -> Option<String> {
        let entries: Vec<Entry> =
            entries.iter().map(|(key, value)| Entry { key: (*key).to_owned(), value: (*value).to_owned() }).collect();
        Some(rules.domain("d")?.find(&entries)?.metric(&entries).1.to_string())
    }

    #[test]
    fn a_descriptor_finds_the_rule_of_its_values_then_of_a_wildcard_then_of_its_key() {
        let rules = rules(
            "
domain: d
descriptors:
- key: user
  rate_limit: {unit: second, requests_per_unit: 1}
- key: user
  value: admin
- key: user
  value: ada
  rate_limit: {unlimited: true}
- key: user
  value: bot*
  rate_limit: {unit: Minute, requests_per_unit: 2}
  descriptors:
  - key: path
    value: 404
    rate_limit: {unit: HOUR, requests_per_unit: 3, algorithm: sliding}
",
        );
        for (entries, expected) in [
            (&[("user", "eve")][..], Some("user")),
            (&[("user", "")], Some("user")),
            // Told apart, and without a limit.
            (&[("user", "admin")], None),
            (&[("user", "ada")], Some("user_ada")),
            (&[("user", "bot")], Some("user_bot*")),
            (&[("user", "bot-7")], Some("user_bot*")),
            (&[("user", "bot-7"), ("path", "404")], Some("user_bot*.path_404")),
            (&[("user", "bot-7"), ("path", "405")], None),
            // As many entries as levels, no more and no fewer.
            (&[("user", "eve"), ("path", "404")], None),
            (&[("path", "404")], None),
            (&[], None),
        ] {
            assert_eq!(path(&rules, entries).as_deref(), expected, "{entries:?}");
        }
        assert_eq!(rules.count(), 4);
        assert!(path(&Rules::default(), &[("user", "eve")]).is_none());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_place() {
        for (text, expected) in [
            ("descriptors: []\n", "a.yaml:1:1: error[missing-field]: field `domain` is missing"),
            ("domain: ''\n", "a.yaml:1:9: error[invalid-value]: domain: a domain has a name: requests ask for it"),
            (
                "domain: d\ndescriptors: [{key: a}]\n---\ndomain: d\n",
                "a.yaml:4:9: error[duplicate]: domain: the domain `d` is already in another file, or in this one",
            ),
            (
                "domain: d\n",
                "a.yaml:1:1: info[missing-field]: descriptors: a domain without rules: only limits that come with a question are counted",
            ),
            (
                "apiVersion: v1\nkind: ConfigMap\ndata:\n  a.yaml: |\n    domain: d\n",
                "a.yaml:1:1: error[invalid-value]: kind: a ConfigMap around a rule file: what stands under `data` is a file of its own here",
            ),
            (
                "domain: d\ndescriptor: []\ndescriptors: [{key: a}]\n",
                "a.yaml:2:1: error[unknown-field]: descriptor: unknown field; did you mean `descriptors`?",
            ),
            (
                "domain: d\ndescriptors:\n- value: a\n",
                "a.yaml:3:3: error[missing-field]: descriptors[0]: field `key` is missing",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n- key: a\n",
                "a.yaml:4:3: error[duplicate]: a: the same key and value twice",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a, value: b, rate_limit: {unit: day, requests_per_unit: 1}}\n- {key: a_b, rate_limit: {unit: day, requests_per_unit: 1}}\n",
                "a.yaml:4:3: warning[duplicate]: a_b: another rule is called so, too: metrics and status have both in one row, and envoyproxy/ratelimit takes no such file",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a, value: b*}\n- {key: a, value: b*}\n",
                "a.yaml:4:3: error[duplicate]: a_b*: the same key and value twice",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a, value: b*}\n- {key: a, value: bc*}\n",
                "a.yaml:4:19: warning[conflict]: a_bc*: never found: `b*` comes before it",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a, value: 'b*c'}\n",
                "a.yaml:3:19: warning[invalid-value]: a_b*c: only a `*` at the end of a value is a wildcard: this one is taken literally",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a, value: '*.b*'}\n",
                "a.yaml:3:19: warning[invalid-value]: a_*.b*: only a `*` at the end of a value is a wildcard: this one is taken literally",
            ),
            (
                "domain: d\ndescriptors:\n- {key: a*}\n",
                "a.yaml:3:9: error[invalid-value]: a*: a wildcard in a key is not supported: it may end a value",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: fortnight, requests_per_unit: 1}\n",
                "a.yaml:4:22: error[invalid-value]: descriptors[0].rate_limit.unit: `fortnight` is none of second, minute, hour, day, week, month, year",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {requests_per_unit: 1}\n",
                "a.yaml:4:15: error[missing-field]: a: field `unit` is missing, and it is not unlimited",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day}\n",
                "a.yaml:4:15: error[missing-field]: a: field `requests_per_unit` is missing, and it is not unlimited",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day, requests_per_unit: 4294967296}\n",
                "a.yaml:4:46: error[invalid-value]: descriptors[0].rate_limit.requests_per_unit: 4294967296 is not between 0 and 4294967295",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day, requests_per_unit: 0}\n",
                "a.yaml:4:46: info[invalid-value]: a: lets nobody through",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unlimited: true, unit: day}\n",
                "a.yaml:4:39: error[invalid-value]: a: unlimited, and a unit or an algorithm of a limit",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {name: x, unit: day, requests_per_unit: 1, replaces: [{name: x}]}\n",
                "a.yaml:4:69: error[invalid-value]: a: replaces itself",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: x}]}\n",
                "a.yaml:4:60: warning[unknown-reference]: replaces: replaces `x`, and no rule of this domain has that name",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  share_threshold: true\n",
                "a.yaml:3:3: error[invalid-value]: a: share_threshold is for a value that ends with `*`",
            ),
            (
                "domain: d\ndescriptors:\n- key: a\n  shadow_mode: true\n",
                "a.yaml:3:3: warning[invalid-value]: a: shadow_mode, quota_mode and detailed_metric are without effect where there is no rate_limit",
            ),
        ] {
            assert_eq!(said(text), [expected], "{text}");
        }
        assert!(said("domain: [\n")[0].contains("error[syntax]"));
    }

    /// Such rules were once taken in silence, and each of them was replaced.
    #[test]
    fn rules_that_replace_each_other_are_told() {
        let with = |replaced: [&str; 3]| {
            let rules = ["x", "v", "w"].iter().zip(replaced).map(|(name, other)| {
                format!(
                    "- {{key: {name}, rate_limit: {{name: {name}, unit: day, requests_per_unit: 1, replaces: [{{name: {other}}}]}}}}\n"
                )
            });
            said(&format!("domain: d\ndescriptors:\n{}", rules.collect::<String>()))
        };
        assert!(with(["v", "w", "none"]).iter().all(|one| one.contains("no rule of this domain")));
        let told = with(["v", "w", "x"]);
        assert!(told.len() == 3 && told.iter().all(|one| one.contains("warning[conflict]: replaces: ")), "{told:?}");
        assert_eq!(with(["v", "x", "v"]).len(), 2);
    }
}
