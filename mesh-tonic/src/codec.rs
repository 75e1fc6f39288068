//! gRPC for those who read and write messages themselves, or do not know their schema.

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Messages as they are on the wire, each of them one [`Bytes`]. A message of any size that tonic lets through is copied once.
///
/// ```
/// use bytes::Bytes;
/// use http::uri::PathAndQuery;
/// use mesh_tonic::codec::Raw;
///
/// # async fn ask(channel: mesh_tonic::Channel) -> Result<(), tonic::Status> {
/// let mut grpc = tonic::client::Grpc::new(channel);
/// let method = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
/// // A message without a field is no bytes.
/// let answer: Bytes = grpc.unary(tonic::Request::new(Bytes::new()), method, Raw).await?.into_inner();
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
