//! Asks authorizers about a request, those of policies and then the application's own for every request: carries questions
//! and answers, which `mesh_core::authz::external` makes and reads.
//!
//! They are called by the mesh's own client, so as their services are to be called: balanced, and by mutual TLS where they
//! speak it. No answer in time is no.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
#[cfg(feature = "xds")]
use std::time::SystemTime;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Limited};
use mesh_core::authz::external::{Answer, Asker, CheckedChanges, Denial, PARTIAL_BODY, http_answer, http_question};
use mesh_core::authz::{AccessRequest, Connection};
use mesh_core::filter::Reply;
use mesh_core::id::ListenerName;
use mesh_core::jwt::Claims;
use mesh_core::model::{CheckProtocol, CheckedBody, ExtAuthz, HttpCheck};
use mesh_core::request::RequestHead;
use mesh_core::request_info::Deadline;
use mesh_core::view::RouteTable;
#[cfg(feature = "xds")]
use mesh_core::xds::check::{CHECK, GrpcQuestion};
use tokio::sync::Semaphore;

use crate::body::Body;
use crate::mesh::Mesh;
use crate::outbound::ResponseBody;
use crate::reply;
use crate::server::authorizer::{AuthorizationRequest, Authorizers, Own, ShownBody};
#[cfg(feature = "xds")]
use crate::unary;
use crate::uri::SentHost;

/// The longest body of an answer: more is not read.
const MOST_BYTES: usize = 64 << 10;

/// What all authorizers say together: what they want changed, or the first refusal.
pub(super) type Answers = Pin<Box<dyn Future<Output = Result<CheckedChanges, Box<Denial>>> + Send>>;

/// A question to an authorizer.
pub(super) struct Question {
    config: Arc<ExtAuthz>,
    permits: Arc<Semaphore>,
    /// The rule by which it is asked.
    rule: String,
    ask: Ask,
}

/// How an authorizer is asked.
enum Ask {
    /// By a call; or why it cannot be.
    Call(Result<Call, String>),
    /// In this process.
    Own(Own, Box<AuthorizationRequest>),
    /// In this process, by this name.
    Named(Arc<str>),
}

/// A question to who is called.
enum Call {
    Http(Box<Request<Body>>),
    #[cfg(feature = "xds")]
    Grpc(Box<GrpcQuestion>),
}

impl Question {
    /// How much of the body it has in it.
    pub(super) fn body(&self) -> Option<&CheckedBody> {
        self.config.body.as_ref()
    }

    /// Shows the body: its first bytes, so many at most, and whether they are not all.
    pub(super) fn show(&mut self, shown: impl Fn(usize) -> (Bytes, bool)) {
        let Some(wanted) = &self.config.body else { return };
        let (bytes, is_partial) = shown(wanted.most);
        match &mut self.ask {
            Ask::Call(Ok(Call::Http(request))) => {
                *request.body_mut() = Body::from(bytes);
                let value = HeaderValue::from_static(if is_partial { "true" } else { "false" });
                request.headers_mut().insert(HeaderName::from_static(PARTIAL_BODY), value);
            }
            #[cfg(feature = "xds")]
            Ask::Call(Ok(Call::Grpc(question))) => question.show(&bytes, is_partial, wanted.as_bytes),
            Ask::Own(_, request) => request.body = Some(ShownBody { bytes, is_partial }),
            Ask::Call(Err(_)) | Ask::Named(_) => {}
        }
    }

    /// Whom a name in this process stands for. He is asked about the request as the application will see it.
    pub(super) fn resolve(
        &mut self,
        authorizers: &Authorizers,
        head: &RequestHead<'_>,
        connection: Option<&Connection<'_>>,
        tokens: &[Claims],
    ) {
        if let Ask::Named(name) = &self.ask
            && let Some(own) = authorizers.named.get(&**name)
        {
            let (own, request) = own.question(head, connection, tokens);
            self.ask = Ask::Own(own, Box::new(request));
        }
    }
}

/// The questions about a request, in order. `is_asked` is told of each authorizer whether it is asked.
pub(super) fn questions(
    routes: &RouteTable,
    head: &RequestHead<'_>,
    version: Version,
    connection: Option<&Connection<'_>>,
    tokens: &[Claims],
    mut is_asked: impl FnMut(bool),
) -> Vec<Question> {
    let access = AccessRequest { head: Some(*head), connection: connection.copied(), tokens };
    let questions = routes.askers().iter().filter_map(|asker| {
        let rule = asker.asked_by(&access);
        is_asked(rule.is_some());
        Some(Question {
            config: Arc::clone(asker.config()),
            permits: Arc::clone(asker.permits()),
            rule: rule?.to_owned(),
            ask: match &asker.config().protocol {
                CheckProtocol::Http(check) => Ask::Call(by_http(asker, check, head, version)),
                CheckProtocol::Grpc => Ask::Call(by_grpc(asker, head, version, connection)),
                CheckProtocol::InProcess(name) => Ask::Named(Arc::clone(name)),
            },
        })
    });
    questions.collect()
}

fn by_http(asker: &Asker, check: &HttpCheck, head: &RequestHead<'_>, version: Version) -> Result<Call, String> {
    let mut question = http_question(asker, check, head, version)?.map(|()| Body::empty());
    // Of the host that was asked for, whoever is asked.
    let host = HeaderValue::from_str(head.authority).map_err(|error| error.to_string())?;
    question.headers_mut().remove(HOST);
    question.extensions_mut().insert(SentHost(host));
    Ok(Call::Http(Box::new(question)))
}

#[cfg(feature = "xds")]
#[allow(clippy::unnecessary_wraps, reason = "without xDS there is none")]
fn by_grpc(
    asker: &Asker,
    head: &RequestHead<'_>,
    version: Version,
    connection: Option<&Connection<'_>>,
) -> Result<Call, String> {
    let question = mesh_core::xds::check::grpc_question(asker, head, version, connection, SystemTime::now());
    Ok(Call::Grpc(Box::new(question)))
}

#[cfg(not(feature = "xds"))]
fn by_grpc(_: &Asker, _: &RequestHead<'_>, _: Version, _: Option<&Connection<'_>>) -> Result<Call, String> {
    Err("this program was built without xDS, and speaks no gRPC to authorizers".to_owned())
}

/// Asks all of them, one after the other, and the application's own authorizer last; the first that refuses decides.
pub(super) fn ask(
    mesh: Mesh,
    listener: ListenerName,
    questions: Vec<Question>,
    own: Option<(Own, AuthorizationRequest)>,
) -> Answers {
    Box::pin(async move {
        let mut all = CheckedChanges::default();
        for question in questions {
            let Question { config, permits, rule, ask } = question;
            let authorizer = &*config.target;
            let answer = match ask {
                Ask::Call(call) => {
                    let answer = tokio::time::timeout(config.timeout, one(&mesh, &config, &permits, call));
                    answer.await.unwrap_or_else(|_| Err(format!("no answer within {:?}", config.timeout)))
                }
                Ask::Own(own, request) => own.word(*request, config.timeout, &listener).await,
                // It is no authorizer that fails, so that `failOpen` says nothing of it.
                Ask::Named(name) => {
                    let why = format!("the application has no authorizer {name:?} (`ServerLayer::named_authorizer`)");
                    tracing::warn!(%listener, policy = rule, why, "nobody is asked about a request, which is refused");
                    let body = format!("external authorization failed: {why}");
                    return Err(Box::new(Denial::without_answer(config.status_on_error, body, why)));
                }
            };
            match answer {
                Ok(Answer::Allow(changes)) => {
                    all.request.extend(changes.request);
                    all.response.extend(changes.response);
                }
                Ok(Answer::Deny(denial)) => {
                    tracing::debug!(%listener, authorizer, policy = rule, status = %denial.status, "an authorizer refused");
                    return Err(Box::new(denial));
                }
                Err(why) if config.fail_open => {
                    all.is_unchecked = true;
                    tracing::warn!(%listener, authorizer, policy = rule, why, "no word, and the request passes: failOpen");
                }
                Err(why) => {
                    tracing::warn!(%listener, authorizer, policy = rule, why, "no word, and the request is refused");
                    let body = &b"external authorization failed"[..];
                    return Err(Box::new(Denial::without_answer(config.status_on_error, body, why)));
                }
            }
        }
        if let Some((own, request)) = own {
            all.request.extend(own.ask(request, &listener).await?.request);
        }
        Ok(all)
    })
}

async fn one(
    mesh: &Mesh,
    config: &ExtAuthz,
    permits: &Semaphore,
    call: Result<Call, String>,
) -> Result<Answer, String> {
    let mut request = match call? {
        Call::Http(request) => *request,
        #[cfg(feature = "xds")]
        Call::Grpc(question) => unary::call(&config.target, CHECK, &question.encode())?,
    };
    // Waiting for a turn is waiting for an answer.
    let _turn = permits.acquire().await.map_err(|error| error.to_string())?;
    if let Some(deadline) = Instant::now().checked_add(config.timeout) {
        request.extensions_mut().insert(Deadline(deadline));
    }
    let client = mesh.client_for(&config.target).map_err(|error| format!("{error:#}"))?;
    let response = client.request(request).await.map_err(|error| format!("{error:#}"))?;
    match &config.protocol {
        CheckProtocol::Http(check) => by_http_said(check, response).await,
        CheckProtocol::Grpc => by_grpc_said(response).await,
        CheckProtocol::InProcess(_) => Err("it is not called".to_owned()),
    }
}

async fn by_http_said(check: &HttpCheck, response: Response<ResponseBody>) -> Result<Answer, String> {
    let (head, mut body) = response.into_parts();
    let answer = http_answer(check, head.status, &head.headers, Bytes::new())?;
    if matches!(answer, Answer::Deny(_)) {
        // What is told to the client of a refusal; one whose body cannot be read is one all the same.
        let body = Limited::new(body, MOST_BYTES).collect().await.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
        return http_answer(check, head.status, &head.headers, body);
    }
    // What lets in has to be whole, though nobody reads its body.
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| format!("its answer: {error:#}"))?;
    }
    Ok(answer)
}

#[cfg(feature = "xds")]
async fn by_grpc_said(response: Response<ResponseBody>) -> Result<Answer, String> {
    mesh_core::xds::check::grpc_answer(&unary::message(response, MOST_BYTES).await?)
}

#[cfg(not(feature = "xds"))]
async fn by_grpc_said(_: Response<ResponseBody>) -> Result<Answer, String> {
    Err("this program was built without xDS".to_owned())
}

/// A refusal, in the client's own tongue.
pub(super) fn refusal(denial: Denial, is_grpc: bool) -> Response<Bytes> {
    let mut response = reply::filter(Reply::new(denial.status, denial.body), is_grpc);
    if !is_grpc {
        if denial.headers.contains_key(http::header::CONTENT_TYPE) {
            response.headers_mut().remove(http::header::CONTENT_TYPE);
        }
        response.headers_mut().extend(denial.headers);
    }
    response
}
