//! Requests and responses as bytes. The resources were encoded when the catalog was made and are shared by all streams;
//! here they are only copied into the frame, between the few fields that differ per stream. A stream that is idle keeps no buffer
//! of either, which is why this is not tonic's `Streaming` and its encoder: they keep those of the largest message.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::catalog::{Encoded, Kind};
use crate::serve::io::blocks::Blocks;
use crate::serve::protocol::session::{Response, Variant};

/// The largest response: one resource that is larger is an error on our side, not a reason to run the
/// client out of memory.
const MAX_RESPONSE: usize = 64 << 20;
/// What gRPC puts in front of each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Resources of so many bytes are shared with other streams.
const LARGE: usize = 16 << 10;

/// The requests in a body.
#[derive(Debug)]
pub(crate) struct Requests<Q> {
    /// None, once there are no more.
    body: Option<Body>,
    /// What has come of the next one.
    buffer: BytesMut,
    max: usize,
    of: PhantomData<fn() -> Q>,
}

impl<Q: Message + Default> Requests<Q> {
    /// None of them is larger than this.
    pub(crate) fn new(body: Body, max: usize) -> Requests<Q> {
        Requests { body: Some(body), buffer: BytesMut::new(), max, of: PhantomData }
    }

    /// The next one, until the client sends no more or one of them is an error. Nothing is lost where it is not waited for.
    pub(crate) async fn message(&mut self) -> Result<Option<Q>, Status> {
        let next = self.next().await;
        if !matches!(next, Ok(Some(_))) {
            self.body = None;
            self.buffer = BytesMut::new();
        }
        next
    }

    async fn next(&mut self) -> Result<Option<Q>, Status> {
        loop {
            if let Some(request) = self.take()? {
                return Ok(Some(request));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    // Trailers end them.
                    Err(_) => return Ok(None),
                },
                // The client has gone.
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a request")),
            }
        }
    }

    /// The next one, if all of it has come.
    fn take(&mut self) -> Result<Option<Q>, Status> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::internal("a request is compressed, and no encoding was named"));
        }
        if length > self.max {
            return Err(Status::out_of_range(format!(
                "a request of {length} bytes is too large: {} are allowed",
                self.max
            )));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let request = Q::decode(message).map_err(|error| Status::invalid_argument(format!("request: {error}")))?;
        self.buffer.advance(PREFIX + length);
        if self.buffer.is_empty() {
            // What is left of it would be kept for as long as the stream is there.
            self.buffer = BytesMut::new();
        }
        Ok(Some(request))
    }
}

/// The body that responses are sent in, until there are no more or one of them is an error. Each has a buffer of its own, which goes
/// with it, but for the resources of a large one, which is shared.
pub(crate) fn responses(responses: mpsc::Receiver<Result<Box<Response>, Status>>, blocks: Arc<Blocks>) -> Body {
    let frames = stream::unfold(Some((responses, blocks, None)), |state| async move {
        let (mut responses, blocks, rest) = state?;
        if let Some(rest) = rest {
            return Some((Ok(Frame::data(rest)), Some((responses, blocks, None))));
        }
        let next = responses.recv().await.unwrap_or_else(|| Err(Status::ok("")));
        Some(match next.and_then(|response| message(*response, &blocks)) {
            Ok((own, rest)) => (Ok::<_, Status>(Frame::data(own)), Some((responses, blocks, rest))),
            Err(status) => (trailers(&status).map(Frame::trailers), None),
        })
    });
    Body::new(StreamBody::new(frames))
}

/// A response as a message of gRPC; where it is large, its resources by themselves, behind the rest.
fn message(response: Response, blocks: &Blocks) -> Result<(Bytes, Option<Bytes>), Status> {
    let Response { variant, kind, .. } = response;
    let (own, resources) = (own_len(&response), resources_len(variant, kind, &response.resources));
    let length = own + resources;
    let told = u32::try_from(length).ok().filter(|_| length <= MAX_RESPONSE);
    let told = told.ok_or_else(|| Status::out_of_range(format!("a response of {length} bytes is too large")))?;
    let is_shared = resources >= LARGE;
    let mut buf = BytesMut::with_capacity(PREFIX + if is_shared { own } else { length });
    buf.put_u8(0);
    buf.put_u32(told);
    encode_own(&response, &mut buf);
    if !is_shared {
        encode_resources(variant, kind, &response.resources, &mut buf);
        return Ok((buf.freeze(), None));
    }
    let rest = blocks.of(variant, kind, response.resources, |all| {
        let mut bytes = Vec::with_capacity(resources);
        encode_resources(variant, kind, all, &mut bytes);
        bytes
    });
    Ok((buf.freeze(), Some(rest)))
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

/// `google.rpc.Code.NOT_FOUND`
const NOT_FOUND: u64 = 5;
const NOT_FOUND_TEXT: &str = "mesh-control knows no such resource";

// Field numbers of DiscoveryResponse and DeltaDiscoveryResponse; those of the first five are the same.
const VERSION: u32 = 1;
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED_RESOURCES: u32 = 6;
/// `resource_errors` of either.
const RESOURCE_ERRORS: u32 = 7;
const DELTA_RESOURCE_ERRORS: u32 = 9;

/// What differs per stream. The order of fields is free: the resources come last.
fn encode_own(response: &Response, buf: &mut impl BufMut) {
    text(VERSION, &response.version, buf);
    text(TYPE_URL, response.kind.type_url(), buf);
    text(NONCE, &response.nonce, buf);
    for name in &response.absent {
        match response.variant {
            Variant::Sotw => put_error(RESOURCE_ERRORS, name, reason(response, name), buf),
            Variant::Delta => text(REMOVED_RESOURCES, name, buf),
        }
    }
    if response.variant == Variant::Delta {
        response.reasons.iter().for_each(|(name, reason)| put_error(DELTA_RESOURCE_ERRORS, name, reason, buf));
    }
}

fn encode_resources(variant: Variant, kind: Kind, resources: &[Encoded], buf: &mut impl BufMut) {
    let type_url = kind.type_url();
    for resource in resources {
        head(RESOURCES, resource_len(variant, type_url, resource), buf);
        match variant {
            Variant::Sotw => put_any(type_url, &resource.body, buf),
            Variant::Delta => {
                text(1, &resource.version, buf);
                head(2, any_len(type_url, &resource.body), buf);
                put_any(type_url, &resource.body, buf);
                text(3, &resource.name, buf);
            }
        }
    }
}

fn resources_len(variant: Variant, kind: Kind, resources: &[Encoded]) -> usize {
    let type_url = kind.type_url();
    resources.iter().map(|resource| field_len(RESOURCES, resource_len(variant, type_url, resource))).sum()
}

fn resource_len(variant: Variant, type_url: &str, resource: &Encoded) -> usize {
    let any = any_len(type_url, &resource.body);
    match variant {
        Variant::Sotw => any,
        Variant::Delta => text_len(1, &resource.version) + field_len(2, any) + text_len(3, &resource.name),
    }
}

fn own_len(response: &Response) -> usize {
    let absent = response.absent.iter().map(|name| match response.variant {
        Variant::Sotw => field_len(RESOURCE_ERRORS, error_len(name, reason(response, name))),
        Variant::Delta => text_len(REMOVED_RESOURCES, name),
    });
    let reasons = response.reasons.iter().filter(|_| response.variant == Variant::Delta);
    let reasons = reasons.map(|(name, reason)| field_len(DELTA_RESOURCE_ERRORS, error_len(name, reason)));
    text_len(VERSION, &response.version)
        + text_len(TYPE_URL, response.kind.type_url())
        + text_len(NONCE, &response.nonce)
        + absent.sum::<usize>()
        + reasons.sum::<usize>()
}

fn any_len(type_url: &str, body: &[u8]) -> usize {
    text_len(1, type_url) + bytes_len(2, body)
}

fn put_any(type_url: &str, body: &[u8], buf: &mut impl BufMut) {
    text(1, type_url, buf);
    bytes(2, body, buf);
}

// ResourceError { resource_name: ResourceName { name }, error_detail: Status { code, message } }
fn error_len(name: &str, reason: &str) -> usize {
    field_len(1, text_len(1, name)) + field_len(2, status_len(reason))
}

fn status_len(reason: &str) -> usize {
    key_len(1) + encoded_len_varint(NOT_FOUND) + text_len(2, reason)
}

fn put_error(tag: u32, name: &str, reason: &str, buf: &mut impl BufMut) {
    head(tag, error_len(name, reason), buf);
    head(1, text_len(1, name), buf);
    text(1, name, buf);
    head(2, status_len(reason), buf);
    encode_key(1, WireType::Varint, buf);
    encode_varint(NOT_FOUND, buf);
    text(2, reason, buf);
}

fn reason<'r>(response: &'r Response, name: &str) -> &'r str {
    response.reasons.get(name).map_or(NOT_FOUND_TEXT, String::as_str)
}

fn text(tag: u32, text: &str, buf: &mut impl BufMut) {
    bytes(tag, text.as_bytes(), buf);
}

fn text_len(tag: u32, text: &str) -> usize {
    bytes_len(tag, text.as_bytes())
}

// Fields of their default value are left out (protobuf, "field presence").
fn bytes(tag: u32, bytes: &[u8], buf: &mut impl BufMut) {
    if !bytes.is_empty() {
        head(tag, bytes.len(), buf);
        buf.put_slice(bytes);
    }
}

fn bytes_len(tag: u32, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { field_len(tag, bytes.len()) }
}

fn head(tag: u32, len: usize, buf: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
    use futures_util::FutureExt;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn responses() -> impl Strategy<Value = Response> {
        let resource = ("[a-z|:./]{0,200}", "[0-9a-f]{0,16}", vec(any::<u8>(), 0..300));
        let parts = (any::<bool>(), 0..Kind::ALL.len(), "[0-9a-f]{0,16}", "[0-9a-f-]{0,20}");
        (parts, vec(resource, 0..20), vec("[a-z|:./]{1,200}", 0..20)).prop_map(
            |((delta, kind, version, nonce), resources, absent)| Response {
                variant: if delta { Variant::Delta } else { Variant::Sotw },
                kind: Kind::ALL[kind],
                version,
                nonce,
                resources: resources
                    .into_iter()
                    .map(|(name, version, body)| Encoded {
                        name: name.into(),
                        version: version.into(),
                        body: Bytes::from(body),
                        self_registered: false,
                        endpoints: 0,
                    })
                    .collect(),
                reasons: absent.iter().step_by(2).map(|name| (name.as_str().into(), format!("not {name}"))).collect(),
                absent: absent.into_iter().map(Into::into).collect(),
            },
        )
    }

    #[test]
    fn a_large_response_is_the_same_message_in_two_pieces_of_which_streams_share_the_second() {
        let response = |nonce: &str, large: usize| Response {
            variant: Variant::Delta,
            kind: Kind::Cluster,
            version: "1".to_owned(),
            nonce: nonce.to_owned(),
            resources: vec![Encoded::new("a", "1", vec![7_u8; large]), Encoded::new("b", "1", vec![8_u8; 9])],
            absent: vec!["c".into()],
            reasons: [("c".into(), "why".to_owned())].into(),
        };
        let blocks = Arc::<Blocks>::default();
        for large in [LARGE, 1] {
            let (own, rest) = message(response("7-1", large), &blocks).expect("a message");
            let (_, other) = message(response("9-1", large), &blocks).expect("a message");
            assert_eq!(rest.as_ref().map(|rest| rest.as_ptr()), other.as_ref().map(|other| other.as_ptr()));
            assert_eq!(rest.is_some(), large == LARGE);
            // As it is sent.
            let (sender, receiver) = mpsc::channel(1);
            sender.try_send(Ok(Box::new(response("7-1", large)))).expect("there is room");
            drop(sender);
            let body = super::responses(receiver, Arc::clone(&blocks)).collect().now_or_never().expect("all is there");
            let sent = body.expect("no error").to_bytes();
            assert_eq!(sent, [&own[..], &rest.unwrap_or_default()[..]].concat());
            assert_eq!(u32::from_be_bytes([sent[1], sent[2], sent[3], sent[4]]) as usize, sent.len() - PREFIX);
            let read = DeltaDiscoveryResponse::decode(&sent[PREFIX..]).expect("a DeltaDiscoveryResponse");
            let names: Vec<&str> = read.resources.iter().map(|resource| &*resource.name).collect();
            assert_eq!((&*read.nonce, names, read.removed_resources), ("7-1", vec!["a", "b"], vec!["c".to_owned()]));
        }
    }

    /// A request for names that take so many bytes, as a client sends it.
    fn sent(bytes: usize) -> Vec<u8> {
        let request = DiscoveryRequest { resource_names: vec!["n".repeat(bytes)], ..DiscoveryRequest::default() };
        let mut sent = vec![0];
        sent.put_u32(u32::try_from(request.encoded_len()).unwrap());
        request.encode(&mut sent).unwrap();
        sent
    }

    /// The requests of a body that comes in these pieces.
    fn requests<D: Into<Bytes>>(pieces: impl IntoIterator<Item = D>) -> Requests<DiscoveryRequest> {
        let frames: Vec<_> = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(piece.into()))).collect();
        Requests::new(Body::new(StreamBody::new(stream::iter(frames))), 100_000)
    }

    /// How long the names of the next request are.
    fn next(requests: &mut Requests<DiscoveryRequest>) -> Result<Option<usize>, Code> {
        let next = requests.message().now_or_never().expect("it does not wait");
        next.map(|request| request.map(|request| request.resource_names[0].len())).map_err(|status| status.code())
    }

    #[test]
    fn requests_are_read_however_their_bytes_come_and_leave_no_buffer_behind() {
        let all = [sent(50_000), sent(7), sent(0), sent(30_000), sent(7)].concat();
        for size in [1, 4, 5, 6, 1_000, 16_384, all.len()] {
            let mut requests = requests(all.chunks(size).map(Bytes::copy_from_slice));
            for expected in [50_000, 7, 0, 30_000, 7] {
                assert_eq!(next(&mut requests), Ok(Some(expected)), "in pieces of {size}");
            }
            assert_eq!(requests.buffer.capacity(), 0, "in pieces of {size}");
            assert_eq!(next(&mut requests), Ok(None));
            assert_eq!(next(&mut requests), Ok(None));
        }
        let mut requests = requests([sent(50_000), sent(7)]);
        assert_eq!(next(&mut requests), Ok(Some(50_000)));
        assert_eq!(requests.buffer.capacity(), 0);
        assert_eq!(next(&mut requests), Ok(Some(7)));
    }

    #[test]
    fn what_is_no_request_ends_them() {
        let mut compressed = sent(7);
        compressed[0] = 1;
        let (cut, garbage) = (sent(7)[..9].to_vec(), vec![0, 0, 0, 0, 2, 0xff, 0xff]);
        for (pieces, code) in [
            (vec![compressed, sent(3)], Code::Internal),
            (vec![cut], Code::Internal),
            (vec![sent(100_000), sent(3)], Code::OutOfRange),
            (vec![garbage, sent(3)], Code::InvalidArgument),
        ] {
            let mut requests = requests([vec![sent(3)], pieces].concat());
            assert_eq!(next(&mut requests), Ok(Some(3)));
            assert_eq!(next(&mut requests), Err(code));
            assert_eq!(next(&mut requests), Ok(None), "{code:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_message_it_stands_for(response in responses()) {
            let mut buf = Vec::new();
            encode_own(&response, &mut buf);
            let own = own_len(&response);
            prop_assert_eq!(buf.len(), own);
            encode_resources(response.variant, response.kind, &response.resources, &mut buf);
            let resources = resources_len(response.variant, response.kind, &response.resources);
            prop_assert_eq!(buf.len(), own + resources);
            match response.variant {
                Variant::Sotw => {
                    let read = DiscoveryResponse::decode(&*buf).expect("a DiscoveryResponse");
                    prop_assert_eq!(read.encoded_len(), buf.len());
                    prop_assert_eq!(&read.version_info, &response.version);
                    prop_assert_eq!(&read.nonce, &response.nonce);
                    prop_assert_eq!(&read.type_url, response.kind.type_url());
                    prop_assert_eq!(read.resources.len(), response.resources.len());
                    for (any, resource) in read.resources.iter().zip(&response.resources) {
                        prop_assert_eq!(&any.type_url, response.kind.type_url());
                        prop_assert_eq!(&any.value[..], &resource.body[..]);
                    }
                    for (error, name) in read.resource_errors.iter().zip(&response.absent) {
                        prop_assert_eq!(&error.resource_name.as_ref().expect("a name").name, &**name);
                        let status = error.error_detail.as_ref().expect("a status");
                        prop_assert_eq!((status.code, &*status.message), (5, reason(&response, name)));
                    }
                }
                Variant::Delta => {
                    let read = DeltaDiscoveryResponse::decode(&*buf).expect("a DeltaDiscoveryResponse");
                    prop_assert_eq!(read.encoded_len(), buf.len());
                    prop_assert_eq!(&read.nonce, &response.nonce);
                    for (read, resource) in read.resources.iter().zip(&response.resources) {
                        prop_assert_eq!(&read.name, &*resource.name);
                        prop_assert_eq!(&read.version, &*resource.version);
                        prop_assert_eq!(&read.resource.as_ref().expect("a body").value[..], &resource.body[..]);
                    }
                    let absent: Vec<&str> = response.absent.iter().map(|name| &**name).collect();
                    prop_assert_eq!(&read.removed_resources, &absent);
                    prop_assert_eq!(read.resource_errors.len(), response.reasons.len());
                    for (error, (name, reason)) in read.resource_errors.iter().zip(&response.reasons) {
                        prop_assert_eq!(&error.resource_name.as_ref().expect("a name").name, &**name);
                        prop_assert_eq!(&error.error_detail.as_ref().expect("a status").message, reason);
                    }
                }
            }
        }
    }
}
