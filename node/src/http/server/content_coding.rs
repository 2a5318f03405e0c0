//! [`Coding`] of a request body (RFC 9110, section 8.4): gzip and zstd are decoded before any handler.
//!
//! The size limit and the memory budget hold for the decoded body as for a body without coding. Decoding
//! stops at the limit, so a small body that decodes to a large one never takes more memory than the limit.

use std::{io::Read, sync::Arc};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use tokio::sync::Semaphore;

use crate::http::server::body_budget::{BodyPermit, BodyRefusal, charge};

/// Supported codings, as `Accept-Encoding` of a 415 response (RFC 9110, section 12.5.3).
pub(crate) const CODINGS: &str = "gzip, zstd";
/// Maximum number of members of one gzip body. Each member allocates a window, so a body of empty members
/// would cost a thousand times its size. Log shippers that concatenate files send a few.
const GZIP_MEMBERS_MAX: usize = 1000;
/// Largest window of a zstd frame, as a power of two: 8 MiB (RFC 9659).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Bytes decoded in one step.
const PIECE_BYTES: usize = 16 * 1024;

/// A content coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// Reads the coding from `Content-Encoding`.
    ///
    /// # Errors
    /// The coding is not supported, or there are several.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, BodyRefusal> {
        let mut coding = Self::Identity;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| BodyRefusal::UnknownCoding)?;
            for name in value.split(',').map(str::trim) {
                let next = match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    // `x-gzip` is equivalent to `gzip`: RFC 9110, section 8.4.1.3.
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(BodyRefusal::UnknownCoding),
                };
                if coding != Self::Identity {
                    return Err(BodyRefusal::UnknownCoding);
                }
                coding = next;
            }
        }
        Ok(coding)
    }

    /// Decodes a body to at most `max` bytes, which are charged to `budget`.
    ///
    /// # Errors
    /// The decoded body is larger, the budget is exhausted, or the stream is incomplete or malformed.
    pub(crate) fn decode(
        self,
        body: &[u8],
        max: usize,
        budget: &Arc<Semaphore>,
    ) -> Result<(Bytes, BodyPermit), BodyRefusal> {
        let mut decoded = Decoded { bytes: Vec::new(), max, budget, permit: None };
        match self {
            Self::Identity => decoded.read(body)?,
            Self::Gzip => {
                let mut rest = body;
                for _ in 0..GZIP_MEMBERS_MAX {
                    let mut member = GzDecoder::new(rest);
                    decoded.read(&mut member)?;
                    rest = member.into_inner();
                    if rest.is_empty() {
                        break;
                    }
                }
                if !rest.is_empty() {
                    return Err(BodyRefusal::Undecodable);
                }
            }
            Self::Zstd => {
                let undecodable = |_| BodyRefusal::Undecodable;
                let mut frames = zstd::stream::read::Decoder::with_buffer(body).map_err(undecodable)?;
                frames.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(undecodable)?;
                decoded.read(&mut frames)?;
            }
        }
        Ok((Bytes::from(decoded.bytes), decoded.permit))
    }
}

/// The decoded part of a body.
struct Decoded<'a> {
    bytes: Vec<u8>,
    max: usize,
    budget: &'a Arc<Semaphore>,
    permit: BodyPermit,
}

impl Decoded<'_> {
    fn read(&mut self, mut source: impl Read) -> Result<(), BodyRefusal> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let read = source.read(&mut piece).map_err(|_| BodyRefusal::Undecodable)?;
            if read == 0 {
                return Ok(());
            }
            if self.max - self.bytes.len() < read {
                return Err(BodyRefusal::TooLarge(self.max));
            }
            charge(&mut self.permit, read, self.budget)?;
            self.bytes.extend_from_slice(&piece[..read]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::http::HeaderValue;

    use super::*;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(body: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(body, 3).unwrap()
    }

    fn decode(coding: Coding, body: &[u8], max: usize) -> Result<Vec<u8>, BodyRefusal> {
        let room = Arc::new(Semaphore::new(1 << 20));
        let (bytes, permit) = coding.decode(body, max, &room)?;
        assert_eq!(room.available_permits(), (1 << 20) - bytes.len(), "what is held is charged");
        drop(permit);
        assert_eq!(room.available_permits(), 1 << 20);
        Ok(bytes.to_vec())
    }

    #[test]
    fn a_body_comes_back_and_several_parts_are_one() {
        let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for (coding, parts) in [
            (Coding::Gzip, [gzip(&body), gzip(b""), gzip(b"end")]),
            (Coding::Zstd, [zstd(&body), zstd(b""), zstd(b"end")]),
        ] {
            assert_eq!(decode(coding, &parts.concat(), 1 << 20), Ok([&body[..], b"end"].concat()));
        }
    }

    #[test]
    fn a_body_that_grows_is_cut_off_at_the_limit() {
        let zeros = vec![0; 64 << 20];
        for (coding, bomb) in [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd(&zeros))] {
            assert!(bomb.len() < 100_000);
            assert_eq!(decode(coding, &bomb, 1 << 20), Err(BodyRefusal::TooLarge(1 << 20)));
        }
        assert_eq!(decode(Coding::Gzip, &gzip(&[7; 1000]), 1000).map(|body| body.len()), Ok(1000));
        assert_eq!(decode(Coding::Gzip, &gzip(&[7; 1001]), 1000), Err(BodyRefusal::TooLarge(1000)));
    }

    #[test]
    fn where_there_is_no_room_nothing_is_held() {
        let room = Arc::new(Semaphore::new(10));
        let refused = Coding::Gzip.decode(&gzip(&[7; 11]), 1000, &room).map(|_| ());
        assert_eq!((refused, room.available_permits()), (Err(BodyRefusal::NoMemory), 10));
    }

    #[test]
    fn what_is_no_whole_stream_is_refused() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let whole = if coding == Coding::Gzip { gzip(b"hello") } else { zstd(b"hello") };
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 0x40;
            for broken in [&b"hello"[..], b"", &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
                let decoded = decode(coding, broken, 1000);
                // No bytes at all are a complete zstd stream without frames.
                let is_nothing = broken.is_empty() && decoded == Ok(Vec::new());
                assert!(decoded == Err(BodyRefusal::Undecodable) || is_nothing, "{coding:?} {broken:?}");
            }
            assert_ne!(decode(coding, &flipped, 1000), Ok(b"hello".to_vec()));
        }
        let members = gzip(b"").repeat(GZIP_MEMBERS_MAX + 1);
        assert_eq!(decode(Coding::Gzip, &members, 1000), Err(BodyRefusal::Undecodable));
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(24).unwrap();
        wide.write_all(&[0; 100]).unwrap();
        assert_eq!(decode(Coding::Zstd, &wide.finish().unwrap(), 1000), Err(BodyRefusal::Undecodable));
    }

    #[test]
    fn one_known_coding_is_taken_and_any_other_refused() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers)
        };
        for (values, coding) in [
            (&[][..], Coding::Identity),
            (&["identity"], Coding::Identity),
            (&["GZIP"], Coding::Gzip),
            (&["x-gzip, identity"], Coding::Gzip),
            (&[" zstd "], Coding::Zstd),
        ] {
            assert_eq!(of(values), Ok(coding), "{values:?}");
        }
        for values in [&["br"][..], &["deflate"], &["gzip, gzip"], &["gzip", "zstd"], &["gzip, br"]] {
            assert_eq!(of(values), Err(BodyRefusal::UnknownCoding), "{values:?}");
        }
    }
}
