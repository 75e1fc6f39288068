//! Conditions on the token of a request. What a token does not say is said by nobody: such a request fits no condition,
//! and behind a `not` it is refused, as somebody is who is not known by mutual TLS.

use serde_json::Value;

use crate::jwt::Claims;
use crate::model::{ClaimTest, StringTest, TokenTest};

/// Whether the tokens of a request pass a test. Of several, all have to fit what lets in, and one is enough for what
/// refuses.
pub(super) fn holds(test: &TokenTest, tokens: &[Claims], doubt: bool, refuses: bool) -> bool {
    // Nobody fits, and behind a `not` everybody is refused: by a policy that lets in, too.
    let absent = doubt && !refuses;
    let one = |claims: &Claims| match test {
        TokenTest::Principal(test) => {
            claims.principal().map_or(absent, |principal| test.is_match(principal.as_bytes()))
        }
        TokenTest::Claim(path, test) => match claims.find(path) {
            None | Some(Value::Null) => absent,
            Some(value) => on_claim(test, value, claims.is_words(path), doubt),
        },
    };
    match tokens {
        [] => absent,
        [only] => one(only),
        several if doubt => several.iter().any(one),
        several => several.iter().all(one),
    }
}

/// What is no text may be taken for the one that it is written as: that is in doubt.
fn on_claim(test: &ClaimTest, value: &Value, is_words: bool, doubt: bool) -> bool {
    match (test, value) {
        (ClaimTest::Present, _) => true,
        (ClaimTest::Any(tests), _) => tests.iter().any(|test| on_claim(test, value, is_words, doubt)),
        (ClaimTest::Text(_), Value::String(_)) if is_words => false,
        (ClaimTest::Text(test), Value::String(text)) => test.is_match(text.as_bytes()),
        (ClaimTest::Text(test), Value::Bool(_) | Value::Number(_)) => doubt && is_written(test, value),
        // A list is not a text for sure, and what is in it is looked at by another test.
        (ClaimTest::Text(_), _) => doubt && value.is_object(),
        (ClaimTest::OneOf(test), Value::Array(list)) => list.iter().any(|value| match value {
            Value::Array(_) => doubt,
            value => on_claim(test, value, false, doubt),
        }),
        (ClaimTest::OneOf(test), Value::String(words)) if is_words => {
            words.split(' ').any(|word| !word.is_empty() && on_word(test, word))
        }
        (ClaimTest::OneOf(_), _) => false,
    }
}

fn on_word(test: &ClaimTest, word: &str) -> bool {
    match test {
        ClaimTest::Present => true,
        ClaimTest::Text(test) => test.is_match(word.as_bytes()),
        ClaimTest::Any(tests) => tests.iter().any(|test| on_word(test, word)),
        ClaimTest::OneOf(_) => false,
    }
}

fn is_written(test: &StringTest, value: &Value) -> bool {
    test.is_match(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::authz::{AccessRequest, Authorizer, verdict};
    use crate::model::{Rbac, RbacAction, RbacCondition, RbacPolicy, RbacRules};

    fn exact(value: &str) -> StringTest {
        StringTest::Exact { value: value.to_owned(), ignore_case: false }
    }

    fn claim(path: &[&str], test: ClaimTest) -> RbacCondition {
        RbacCondition::Token(TokenTest::Claim(path.iter().map(|name| (*name).to_owned()).collect(), test))
    }

    /// As a value of `request.auth.claims` is rendered.
    fn text(path: &[&str], value: &str) -> RbacCondition {
        let text = || ClaimTest::Text(exact(value));
        claim(path, ClaimTest::Any(vec![ClaimTest::OneOf(Box::new(text())), text()]))
    }

    /// Whether requests with these tokens are let in by ALLOW of a condition, and by DENY of it.
    fn both(condition: &RbacCondition, tokens: &[Value]) -> (bool, bool) {
        let words: Arc<[String]> = Arc::new(["scope".to_owned()]);
        let tokens: Vec<Claims> =
            tokens.iter().map(|it| Claims::unverified(it.as_object().expect("claims").clone(), &words)).collect();
        let uri = "/".parse().expect("a path");
        let headers = http::HeaderMap::new();
        let head = Some(crate::request::RequestHead::of_parts(&http::Method::GET, &uri, &headers));
        let let_in = |action| {
            let mut rules = RbacRules::new(action);
            rules.policies.insert("p".into(), RbacPolicy::new([RbacCondition::Always], [condition.clone()]));
            let filter = Authorizer::new(&Rbac { rules: Some(rules), ..Rbac::default() }).expect("valid");
            verdict(&[Arc::new(filter)], &AccessRequest { head, connection: None, tokens: &tokens }).is_allowed
        };
        (let_in(RbacAction::Allow), let_in(RbacAction::Deny))
    }

    const YES: (bool, bool) = (true, false);
    const NO: (bool, bool) = (false, true);
    const DOUBT: (bool, bool) = (false, false);

    fn not(condition: RbacCondition) -> RbacCondition {
        RbacCondition::Not(Box::new(condition))
    }

    #[test]
    fn what_a_token_does_not_say_fits_nothing_and_is_refused_behind_a_not() {
        let principal = || RbacCondition::Token(TokenTest::Principal(exact("me/you")));
        let anybody = || {
            RbacCondition::Token(TokenTest::Principal(StringTest::Prefix { value: String::new(), ignore_case: false }))
        };
        let group = || text(&["group"], "cook");
        for tokens in [vec![], vec![json!({})], vec![json!({"iss": "me", "group": null})]] {
            for condition in [principal(), anybody(), group(), claim(&["group"], ClaimTest::Present)] {
                assert_eq!(both(&condition, &tokens), NO, "{condition:?} {tokens:?}");
                assert_eq!(both(&not(condition.clone()), &tokens), DOUBT, "not {condition:?} {tokens:?}");
                assert_eq!(both(&not(not(condition.clone())), &tokens), NO, "not not {condition:?} {tokens:?}");
            }
        }
        let token = [json!({"iss": "me", "sub": "you", "group": "cook"})];
        for condition in [principal(), anybody(), group(), claim(&["group"], ClaimTest::Present)] {
            assert_eq!((both(&condition, &token), both(&not(condition.clone()), &token)), (YES, NO), "{condition:?}");
        }
    }

    #[test]
    fn a_claim_is_a_text_a_list_or_words_and_what_is_none_of_them_is_in_doubt() {
        for (value, expected) in [
            (json!("cook"), YES),
            (json!("cook guest"), NO),
            (json!("Cook"), NO),
            (json!(["guest", "cook"]), YES),
            (json!(["guest"]), NO),
            (json!([]), NO),
            (json!([["cook"]]), DOUBT),
            (json!([{"a": "cook"}]), DOUBT),
            (json!({"a": "cook"}), DOUBT),
        ] {
            let token = [json!({"group": value, "realm": {"role": value}})];
            assert_eq!(both(&text(&["group"], "cook"), &token), expected, "{value}");
            assert_eq!(both(&text(&["realm", "role"], "cook"), &token), expected, "{value}");
            let negated = if expected == DOUBT { DOUBT } else { (!expected.0, !expected.1) };
            assert_eq!(both(&not(text(&["group"], "cook")), &token), negated, "not {value}");
        }
        // Only for its issuer, and only by itself.
        let words = [json!({"scope": "read  write", "in": {"scope": "read write"}})];
        for (condition, expected) in [
            (text(&["scope"], "write"), YES),
            (text(&["scope"], "read  write"), NO),
            (text(&["scope"], ""), NO),
            (text(&["in", "scope"], "write"), NO),
            (text(&["in", "scope"], "read write"), YES),
            (claim(&["scope"], ClaimTest::Text(exact("write"))), NO),
        ] {
            assert_eq!(both(&condition, &words), expected, "{condition:?}");
        }
        for (value, written) in [(json!(true), "true"), (json!(7), "7"), (json!([7]), "7")] {
            assert_eq!(both(&text(&["a"], written), &[json!({"a": value})]), DOUBT, "{value}");
            assert_eq!(both(&text(&["a"], "other"), &[json!({"a": value})]), NO, "{value}");
        }
    }

    #[test]
    fn of_several_tokens_one_is_enough_to_be_refused_and_all_are_needed_to_be_let_in() {
        let (cook, guest) = (json!({"group": "cook"}), json!({"group": "guest"}));
        for tokens in [[cook.clone(), guest.clone()], [guest.clone(), cook.clone()], [cook.clone(), json!({})]] {
            assert_eq!(both(&text(&["group"], "cook"), &tokens), DOUBT, "{tokens:?}");
            assert_eq!(both(&not(text(&["group"], "cook")), &tokens), DOUBT, "{tokens:?}");
        }
        assert_eq!(both(&text(&["group"], "cook"), &[cook.clone(), cook]), YES);
    }
}
