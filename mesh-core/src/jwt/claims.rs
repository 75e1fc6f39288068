//! What a good token says.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::token::Times;

/// The claims of a token that was verified. An extension of the request, for handlers; cheap to clone.
///
/// ```
/// use mesh_core::jwt::Claims;
///
/// fn handle(request: http::Request<()>) -> String {
///     match request.extensions().get::<Claims>() {
///         Some(claims) => format!("hello {}", claims.subject().unwrap_or("nobody")),
///         None => "hello whoever you are".to_owned(),
///     }
/// }
/// # assert_eq!(handle(http::Request::new(())), "hello whoever you are");
/// ```
#[derive(Clone)]
pub struct Claims(Arc<Inner>);

struct Inner {
    claims: Map<String, Value>,
    times: Times,
    /// `iss/sub`.
    principal: Option<String>,
    /// As it was signed.
    payload: Box<str>,
    /// Claims that are lists of words for the issuer.
    words: Arc<[String]>,
}

impl Claims {
    /// Claims of a token that nobody has looked at: for tests of handlers, and for those who try out policies.
    /// `words` are the claims whose text is a list of words, as in `spaceDelimitedClaims`.
    ///
    /// ```
    /// use mesh_core::jwt::Claims;
    /// use serde_json::json;
    ///
    /// let claims = json!({"iss": "https://issuer", "sub": "me", "scope": "read write"});
    /// let claims = Claims::unverified(claims.as_object().unwrap().clone(), &["scope".to_owned()].into());
    /// assert_eq!(claims.principal(), Some("https://issuer/me"));
    /// ```
    pub fn unverified(claims: Map<String, Value>, words: &Arc<[String]>) -> Self {
        Claims::new(claims, Times { expires: None, begins: None }, "", words)
    }

    pub(super) fn new(claims: Map<String, Value>, times: Times, payload: &str, words: &Arc<[String]>) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let principal = text("iss").zip(text("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}"));
        Claims(Arc::new(Inner { claims, times, principal, payload: payload.into(), words: Arc::clone(words) }))
    }

    pub(super) fn times(&self) -> Times {
        self.0.times
    }

    /// Who issued the token.
    pub fn issuer(&self) -> Option<&str> {
        self.get(&["iss"])?.as_str()
    }

    /// Whom it is about.
    pub fn subject(&self) -> Option<&str> {
        self.get(&["sub"])?.as_str()
    }

    /// Issuer and subject, as `iss/sub`: what `requestPrincipals` compare.
    pub fn principal(&self) -> Option<&str> {
        self.0.principal.as_deref()
    }

    /// For whom it is.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        audiences(&self.0.claims)
    }

    /// A claim, by the names that lead to it.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        find(&self.0.claims, path.iter().copied())
    }

    pub(crate) fn find(&self, path: &[String]) -> Option<&Value> {
        find(&self.0.claims, path.iter().map(String::as_str))
    }

    /// Whether the text of a claim is a list of words: such claims stand at the top (Envoy).
    pub(crate) fn is_words(&self, path: &[String]) -> bool {
        matches!(path, [only] if self.0.words.contains(only))
    }

    /// All claims.
    pub fn all(&self) -> &Map<String, Value> {
        &self.0.claims
    }

    /// The payload as a header has it: base64url of JSON, as it was signed.
    pub(super) fn payload(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0.payload).ok()
    }

    /// A claim as a header has it (Envoy): text as it is, lists and objects as base64url of JSON. `None` where there is no
    /// such claim, or none that a header can have.
    pub(super) fn header(&self, path: &[String]) -> Option<HeaderValue> {
        let text = match self.find(path)? {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            value @ (Value::Bool(_) | Value::Number(_)) => value.to_string(),
            value => URL_SAFE_NO_PAD.encode(value.to_string()),
        };
        HeaderValue::try_from(text).ok()
    }
}

fn find<'c, 'p>(claims: &'c Map<String, Value>, path: impl Iterator<Item = &'p str>) -> Option<&'c Value> {
    let mut path = path;
    let first = claims.get(path.next()?)?;
    path.try_fold(first, |value, name| value.as_object()?.get(name))
}

/// For whom a token is, in either of the two forms.
pub(super) fn audiences(claims: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let audience = claims.get("aud");
    let list = audience.and_then(Value::as_array).into_iter().flatten();
    audience.and_then(Value::as_str).into_iter().chain(list.filter_map(Value::as_str))
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("principal", &self.0.principal).finish_non_exhaustive()
    }
}
