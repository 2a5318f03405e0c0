//! Content coding of request bodies (RFC 9110, section 8.4): gzip and zstd are decoded, once, for every path.
//!
//! A body decodes to what it would be without its coding: so the same limit holds for it, the same memory pays for it, and no handler sees
//! a difference. A small body that decodes to a large one is cut off at the limit; nothing beyond it is ever in memory.

use std::{io::Read, sync::Arc};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use tokio::sync::Semaphore;

use super::body_room::{Refusal, Room, charge};

/// The codings that are decoded, for `Accept-Encoding` in the answer to any other (RFC 9110, section 12.5.3).
pub(super) const CODINGS: &str = "gzip, zstd";
/// Members of one gzip body. Each costs a window that is set up anew, so a body of empty ones would cost a thousand times its size; shippers
/// that join files send a few.
const GZIP_MEMBERS_MAX: usize = 1000;
/// The largest window of a zstd frame, as a power of two: 8 MiB, which RFC 9659 sets for content codings.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Bytes decoded at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// A content coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// The coding of a body.
    ///
    /// # Errors
    /// It is another one, or there are several.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut coding = Self::Identity;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| Refusal::UnknownCoding)?;
            for name in value.split(',').map(str::trim) {
                let next = match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    // RFC 9110, section 8.4.1.3: the same.
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(Refusal::UnknownCoding),
                };
                if coding != Self::Identity {
                    return Err(Refusal::UnknownCoding);
                }
                coding = next;
            }
        }
        Ok(coding)
    }

    /// Decodes a whole body to at most `max` bytes, which are charged to `room`.
    ///
    /// # Errors
    /// It is more, there is no room for it, or it is no whole stream of this coding.
    pub(super) fn decode(
        self,
        body: &[u8],
        max: usize,
        room: &Arc<Semaphore>,
    ) -> Result<(Bytes, Room), Refusal> {
        let mut decoded = Decoded { bytes: Vec::new(), max, room, taken: None };
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
                    return Err(Refusal::Undecodable);
                }
            }
            Self::Zstd => {
                let undecodable = |_| Refusal::Undecodable;
                let mut frames = zstd::stream::read::Decoder::with_buffer(body).map_err(undecodable)?;
                frames.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(undecodable)?;
                decoded.read(&mut frames)?;
            }
        }
        Ok((Bytes::from(decoded.bytes), decoded.taken))
    }
}

/// What was decoded so far.
struct Decoded<'a> {
    bytes: Vec<u8>,
    max: usize,
    room: &'a Arc<Semaphore>,
    taken: Room,
}

impl Decoded<'_> {
    fn read(&mut self, mut source: impl Read) -> Result<(), Refusal> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let read = source.read(&mut piece).map_err(|_| Refusal::Undecodable)?;
            if read == 0 {
                return Ok(());
            }
            if self.max - self.bytes.len() < read {
                return Err(Refusal::TooLarge(self.max));
            }
            charge(&mut self.taken, read, self.room)?;
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

    fn decode(coding: Coding, body: &[u8], max: usize) -> Result<Vec<u8>, Refusal> {
        let room = Arc::new(Semaphore::new(1 << 20));
        let (bytes, taken) = coding.decode(body, max, &room)?;
        assert_eq!(room.available_permits(), (1 << 20) - bytes.len(), "what is held is charged");
        drop(taken);
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
            assert_eq!(decode(coding, &bomb, 1 << 20), Err(Refusal::TooLarge(1 << 20)));
        }
        assert_eq!(decode(Coding::Gzip, &gzip(&[7; 1000]), 1000).map(|body| body.len()), Ok(1000));
        assert_eq!(decode(Coding::Gzip, &gzip(&[7; 1001]), 1000), Err(Refusal::TooLarge(1000)));
    }

    #[test]
    fn where_there_is_no_room_nothing_is_held() {
        let room = Arc::new(Semaphore::new(10));
        let refused = Coding::Gzip.decode(&gzip(&[7; 11]), 1000, &room).map(|_| ());
        assert_eq!((refused, room.available_permits()), (Err(Refusal::NoRoom), 10));
    }

    #[test]
    fn what_is_no_whole_stream_is_refused() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let whole = if coding == Coding::Gzip { gzip(b"hello") } else { zstd(b"hello") };
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 0x40;
            for broken in [&b"hello"[..], b"", &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
                let decoded = decode(coding, broken, 1000);
                // A stream of no frames is whole.
                let is_nothing = broken.is_empty() && decoded == Ok(Vec::new());
                assert!(decoded == Err(Refusal::Undecodable) || is_nothing, "{coding:?} {broken:?}");
            }
            assert_ne!(decode(coding, &flipped, 1000), Ok(b"hello".to_vec()));
        }
        let members = gzip(b"").repeat(GZIP_MEMBERS_MAX + 1);
        assert_eq!(decode(Coding::Gzip, &members, 1000), Err(Refusal::Undecodable));
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(24).unwrap();
        wide.write_all(&[0; 100]).unwrap();
        assert_eq!(decode(Coding::Zstd, &wide.finish().unwrap(), 1000), Err(Refusal::Undecodable));
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
            assert_eq!(of(values), Err(Refusal::UnknownCoding), "{values:?}");
        }
    }
}
