//! Expressions of CEL (Common Expression Language) on one request that is over, as Istio's users write them in filters of
//! access logs and in tags of metrics: `response.code >= 400 && !request.url_path.startsWith('/healthz')`.
//!
//! Read once and strictly: what is not known, or cannot be compared, is a [`CelFault`] with its line and column, since an
//! expression that is half understood would leave out lines that somebody counts on. Evaluating one is a plain function of the
//! [`Facts`]: it ends, takes time in proportion to its length, and never fails louder than with `None`. Attributes are Envoy's.

mod attributes;
mod eval;
mod lex;
mod parse;

use std::fmt;
use std::sync::Arc;

pub(crate) use attributes::Nothing;
pub use attributes::{CelAttribute, Facts};
pub use eval::CelValue;

use eval::Node;

/// How long an expression may be, in bytes.
pub const LONGEST_EXPRESSION: usize = 4096;

/// An expression that was read, and means something.
#[derive(Clone)]
pub struct CelExpression {
    /// In the words of the standard.
    text: Arc<str>,
    root: Arc<Node>,
    needs_head: bool,
    looks_at_answer: bool,
    needs_token: bool,
    is_constant: bool,
}

/// Why an expression cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CelFault {
    /// The line, from 1.
    pub line: usize,
    /// The column, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for CelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for CelFault {}

impl CelExpression {
    /// Reads an expression that is true or false.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    ///
    /// ```
    /// use mesh_core::model::CelExpression;
    ///
    /// assert!(CelExpression::condition("response.code >= 400 || connection.mtls").is_ok());
    /// let fault = CelExpression::condition("response.cod >= 400").unwrap_err();
    /// assert_eq!((fault.line, fault.column), (1, 1));
    /// ```
    pub fn condition(text: &str) -> Result<CelExpression, CelFault> {
        parse::condition(text)
    }

    /// Reads the condition of a rule on requests, which is asked while a request is decided on, or where it is about the answer,
    /// when there is one. It may ask who the client is and what its tokens say.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    ///
    /// ```
    /// use mesh_core::model::CelExpression;
    ///
    /// assert!(CelExpression::rule("'ops' in request.auth.claims['groups'] && source.namespace == 'shop'").is_ok());
    /// assert!(CelExpression::rule("request.duration > duration('1s')").is_err());
    /// ```
    pub fn rule(text: &str) -> Result<CelExpression, CelFault> {
        parse::rule(text)
    }

    /// Reads an expression that a label of a metric is set to, when a request is over. It may ask who the client is and what its tokens
    /// say, too.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    ///
    /// ```
    /// use mesh_core::model::CelExpression;
    ///
    /// assert!(CelExpression::label("request.auth.claims['tier'] == 'gold' ? 'gold' : 'other'").is_ok());
    /// assert!(CelExpression::label("request.headers").is_err());
    /// ```
    pub fn label(text: &str) -> Result<CelExpression, CelFault> {
        parse::label(text)
    }

    /// Reads an expression that requests are told apart by, which is asked while a request is decided on. It may ask what a rule may
    /// that is not about the answer.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    ///
    /// ```
    /// use mesh_core::model::CelExpression;
    ///
    /// assert!(CelExpression::key("source.namespace + '/' + request.method").is_ok());
    /// assert!(CelExpression::key("response.code").is_err());
    /// // The port is another one with each connection.
    /// assert!(CelExpression::key("source.address").is_err());
    /// ```
    pub fn key(text: &str) -> Result<CelExpression, CelFault> {
        parse::key(text)
    }

    /// The expression in words that every reader of CEL knows: `has(request.headers['x'])`, which is common and taken here, is
    /// `('x' in request.headers)` there.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is of the heads of request or answer, which are kept only where somebody asks for them.
    pub fn needs_head(&self) -> bool {
        self.needs_head
    }

    /// Whether it asks about the answer.
    pub fn looks_at_answer(&self) -> bool {
        self.looks_at_answer
    }

    /// Whether it asks what the token of a request says.
    pub fn needs_token(&self) -> bool {
        self.needs_token
    }

    /// Whether it asks nothing, and so is the same for every request.
    pub fn is_constant(&self) -> bool {
        self.is_constant
    }

    /// Whether it is true of every request, or of none; `None` where it depends on that.
    pub fn always(&self) -> Option<bool> {
        self.is_constant.then(|| self.is_true(&Nothing)).flatten()
    }

    /// Whether it holds. Where a fact is missing that decides it, it does not (as in Envoy).
    pub fn holds(&self, facts: &dyn Facts) -> bool {
        matches!(self.root.value(facts), Some(CelValue::Bool(true)))
    }

    /// Whether it is true; `None` where a fact is missing that decides it.
    pub fn is_true(&self, facts: &dyn Facts) -> Option<bool> {
        match self.root.value(facts)? {
            CelValue::Bool(is_true) => Some(is_true),
            _ => None,
        }
    }

    /// Its value as a text; `None` where a fact is missing.
    pub fn show(&self, facts: &dyn Facts) -> Option<String> {
        self.root.value(facts).map(|value| value.to_string())
    }
}

impl PartialEq for CelExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CelExpression {}

impl fmt::Debug for CelExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
#[path = "cel/tests.rs"]
mod tests;
