//! [`MessageCodec`] of request-response protocols: reads and writes the bytes of one message in each
//! direction of a stream, up to the size limit.

use std::io;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use hearsay_protocol::wire::MESSAGE_BYTES_MAX;
use libp2p::{StreamProtocol, request_response};

/// Codec of whole messages as bytes. The core decodes them.
#[derive(Debug, Clone, Copy)]
pub struct MessageCodec;

impl MessageCodec {
    /// Reads a message to the end of the stream. A message over the limit is an error.
    async fn read<T: futures::AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.take(MESSAGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
        // A peer that does not answer closes the stream. That is not an empty message.
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message over the limit"));
        }
        Ok(bytes)
    }

    async fn write<T: futures::AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
        io.write_all(bytes).await?;
        io.close().await
    }
}

impl request_response::Codec for MessageCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        Self::read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        Self::read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        Self::write(io, &request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Vec<u8>) -> io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        Self::write(io, &response).await
    }
}
