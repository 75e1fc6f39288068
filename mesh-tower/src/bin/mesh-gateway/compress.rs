//! Answers, compressed for clients that say that they read it (`--compress`).
//!
//! How long an answer is then says something of what is in it: who makes a browser ask again and again, and whose words stand in the
//! answer, finds out a secret that stands beside them (BREACH). So nothing is compressed unless whoever runs the gateway says so.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderValue, Request};
use mesh_tower::body::Body;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::forward::Answer;

/// The codings that there are.
const CODINGS: [&[u8]; 2] = [b"br", b"gzip"];

/// What is worth it: texts. Pictures and archives are compressed, and streams of events are not to be held up.
const TYPES: [&[u8]; 13] = [
    b"application/javascript",
    b"application/json",
    b"application/manifest+json",
    b"application/wasm",
    b"application/xhtml+xml",
    b"application/xml",
    b"image/svg+xml",
    b"text/css",
    b"text/csv",
    b"text/html",
    b"text/javascript",
    b"text/plain",
    b"text/xml",
];

/// What is shorter fits into one packet anyway.
const LEAST: u64 = 1024;

/// Which codings a client reads: a request that has nothing but that.
pub(crate) struct Asked(Request<()>);

impl Asked {
    /// What a request says, where it names one that there is.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Asked> {
        let said = request.headers().get_all(ACCEPT_ENCODING);
        let mut names = said.iter().flat_map(words);
        if !names.any(|name| CODINGS.iter().any(|coding| name.eq_ignore_ascii_case(coding))) {
            return None;
        }
        let mut asked = Request::new(());
        asked.headers_mut().extend(said.iter().map(|value| (ACCEPT_ENCODING, value.clone())));
        Some(Asked(asked))
    }

    /// The answer as the client gets it.
    pub(crate) async fn answer(self, answer: Answer) -> Answer {
        if !is_worth_it(answer.headers()) {
            return answer;
        }
        let layer = CompressionLayer::new().compress_when(SizeAbove::new(LEAST));
        let Ok(answer) = layer.layer(Given(Some(answer))).call(self.0).await;
        let mut answer = answer.map(Body::new);
        if answer.headers().contains_key(CONTENT_ENCODING) {
            weaken(answer.headers_mut());
        }
        answer
    }
}

/// The words of a list, without what is said of each.
fn words(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let listed = value.as_bytes().split(|byte| *byte == b',');
    listed.map(|one| one.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii())
}

/// Whether an answer may be compressed (RFC 9110, 7.7), is not yet, and is a text.
fn is_worth_it(headers: &HeaderMap) -> bool {
    let may_be = || {
        let mut said = headers.get_all(CACHE_CONTROL).iter().flat_map(words);
        !said.any(|word| word.eq_ignore_ascii_case(b"no-transform"))
    };
    let of_type = headers.get(CONTENT_TYPE).and_then(|value| words(value).next()).unwrap_or_default();
    let is_text = TYPES.iter().any(|text| of_type.eq_ignore_ascii_case(text));
    is_text && !headers.contains_key(CONTENT_ENCODING) && may_be()
}

/// The bytes are others than those that the tag was strong for (RFC 9110, 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let tag = headers.get(ETAG).map(HeaderValue::as_bytes).filter(|tag| !tag.starts_with(b"W/"));
    if let Some(weak) = tag.and_then(|tag| HeaderValue::from_bytes(&[&b"W/"[..], tag].concat()).ok()) {
        headers.insert(ETAG, weak);
    }
}

/// An answer that is there.
struct Given(Option<Answer>);

impl Service<Request<()>> for Given {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(self.0.take().unwrap_or_else(|| Answer::new(Body::empty()))))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn a_client_names_a_coding_that_there_is() {
        for (said, expected) in [
            (&["gzip"][..], true),
            (&["zstd, BR;q=0.5"], true),
            (&["identity", "deflate, gzip"], true),
            (&["zstd"], false),
            (&["identity;q=0"], false),
            (&["*"], false),
            (&["gzipped"], false),
            (&[], false),
        ] {
            let mut request = Request::new(());
            request.headers_mut().extend(said.iter().map(|one| (ACCEPT_ENCODING, HeaderValue::from_static(one))));
            assert_eq!(Asked::of(&request).is_some(), expected, "{said:?}");
        }
    }

    #[test]
    fn texts_are_worth_it_that_are_not_compressed_and_may_be() {
        const HTML: (HeaderName, &str) = (CONTENT_TYPE, "text/HTML; charset=utf-8");
        for (said, expected) in [
            (&[HTML][..], true),
            (&[HTML, (CACHE_CONTROL, "private, max-age=1")], true),
            (&[HTML, (CACHE_CONTROL, "private, No-Transform")], false),
            (&[HTML, (CONTENT_ENCODING, "zstd")], false),
            (&[(CONTENT_TYPE, "text/event-stream")], false),
            (&[(CONTENT_TYPE, "application/grpc-web-text+proto")], false),
            (&[(CONTENT_TYPE, "image/png")], false),
            (&[], false),
        ] {
            let field = |(name, value): &(HeaderName, &'static str)| (name.clone(), HeaderValue::from_static(value));
            assert_eq!(is_worth_it(&said.iter().map(field).collect()), expected, "{said:?}");
        }
    }

    #[test]
    fn a_strong_tag_is_weak_for_other_bytes() {
        for (said, expected) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\"")] {
            let mut headers = HeaderMap::from_iter([(ETAG, HeaderValue::from_static(said))]);
            weaken(&mut headers);
            assert_eq!(headers[ETAG], expected);
        }
    }
}
