//! Decodes and checks one DNS request, and encodes its response: an [`Answer`] with flags, truncated to the
//! size that the client accepts.
//!
//! | request | response |
//! | --- | --- |
//! | shorter than a header, or itself a response | none: answering a response would start a loop |
//! | not readable, or not exactly one question | FORMERR |
//! | another operation than a query | NOTIMP |
//! | a version of EDNS other than 0 | BADVERS |
//! | a client that may not read, a zone transfer, another class than IN, a name of no zone of the cluster | REFUSED |
//!
//! A response over UDP has at most 512 bytes, with EDNS as many as the client takes, but no more than 1,232
//! unless it is on this machine: larger datagrams are fragmented on common paths. Where records do not fit,
//! the additional ones go first, without a sign (RFC 2181, section 9); then answers, with TC, so that the
//! client asks again over TCP.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, ResponseCode, emit_message_parts},
    rr::{DNSClass, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncoder},
};

use super::answer::{Answer, Source};

/// The largest response over UDP without EDNS (RFC 1035, section 4.2.1), in bytes.
const PLAIN_BYTES_MAX: u16 = 512;
/// The largest response over UDP to another machine, in bytes. As agreed on DNS Flag Day 2020.
const DATAGRAM_BYTES_MAX: u16 = 1232;
/// The largest response over UDP on this machine: what a datagram over IPv4 can carry, in bytes.
const LOOPBACK_BYTES_MAX: u16 = 65_507;
/// The byte of a message that has TC, and its bit there (RFC 1035, section 4.1.1).
const TRUNCATION: (usize, u8) = (2, 0x02);
/// The smallest record of an answer, in bytes: a compressed name (2), type, class, TTL and length (10), and
/// an address of IPv4 (4).
const RECORD_BYTES_MIN: usize = 16;

/// How a request arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Udp,
    /// Over UDP from a client that has used up its rate: it gets TC and no records.
    LimitedUdp,
    Tcp,
}

/// The client of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    pub(super) transport: Transport,
    /// Whether it gets records. A private node answers only clients of its machine.
    pub(super) may_read: bool,
}

/// A response to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Response {
    pub(super) bytes: Vec<u8>,
    pub(super) code: ResponseCode,
    pub(super) is_truncated: bool,
    /// Instances that were examined for it.
    pub(super) examined: usize,
}

/// The response to a request; `None` where there is none.
pub(super) fn respond(source: &Source, request: &[u8], client: Client) -> Option<Response> {
    let header = Header::read(&mut BinDecoder::new(request)).ok()?;
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    if header.counts.queries != 1 {
        // Not decoded: a few bytes can announce 65,535 questions, each with a name of 255 bytes.
        let is_query = header.metadata.op_code == OpCode::Query;
        let code = if is_query { ResponseCode::FormErr } else { ResponseCode::NotImp };
        return error(&header.metadata, code).finish(PLAIN_BYTES_MAX);
    }
    let Ok(message) = Message::from_vec(request) else {
        return error(&header.metadata, ResponseCode::FormErr).finish(PLAIN_BYTES_MAX);
    };
    let bytes_max = bytes_max(&message, client);
    let mut response = response_to(source, &message, client, bytes_max);
    if let Some(asked) = &message.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX).set_version(0);
        // A copy, also without DNSSEC (RFC 3225, section 3).
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        response.message.edns = Some(edns);
    }
    response.finish(bytes_max)
}

/// The bytes that a response may have.
fn bytes_max(request: &Message, client: Client) -> u16 {
    match (client.transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (_, None) => PLAIN_BYTES_MAX,
        (_, Some(edns)) if client.ip.is_loopback() => {
            edns.max_payload().clamp(PLAIN_BYTES_MAX, LOOPBACK_BYTES_MAX)
        }
        (_, Some(edns)) => edns.max_payload().clamp(PLAIN_BYTES_MAX, DATAGRAM_BYTES_MAX),
    }
}

fn response_to(source: &Source, request: &Message, client: Client, bytes_max: u16) -> Unfinished {
    let failed = |code| {
        let mut failed = error(&request.metadata, code);
        failed.message.queries.clone_from(&request.queries);
        failed
    };
    if request.metadata.op_code != OpCode::Query {
        return failed(ResponseCode::NotImp);
    }
    if request.version() != 0 {
        return failed(ResponseCode::BADVERS);
    }
    let [query] = request.queries.as_slice() else { return failed(ResponseCode::FormErr) };
    let is_transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if !client.may_read || is_transfer || query.query_class() != DNSClass::IN {
        return failed(ResponseCode::Refused);
    }
    if client.transport == Transport::LimitedUdp {
        let mut limited = failed(ResponseCode::NoError);
        limited.message.metadata.truncation = true;
        return limited;
    }
    // So many do not fit, so where a record is left out here, the response is truncated.
    let records_max = usize::from(bytes_max) / RECORD_BYTES_MIN;
    match source.answer(query.name(), query.query_type(), client.ip, records_max) {
        None => failed(ResponseCode::Refused),
        Some(Answer { code, answers, authorities, additionals, examined }) => {
            let mut response = failed(code);
            response.message.metadata.authoritative = true;
            response.message.answers = answers;
            response.message.authorities = authorities;
            response.message.additionals = additionals;
            response.is_over_tcp = client.transport == Transport::Tcp;
            response.examined = examined;
            response
        }
    }
}

/// A response without records.
fn error(request: &Metadata, code: ResponseCode) -> Unfinished {
    let mut metadata = Metadata::response_from_request(request);
    metadata.response_code = code;
    metadata.authoritative = false;
    metadata.recursion_available = false;
    let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    message.metadata = metadata;
    Unfinished { message, is_over_tcp: false, examined: 0 }
}

/// A response that may be too long.
struct Unfinished {
    message: Message,
    is_over_tcp: bool,
    examined: usize,
}

impl Unfinished {
    /// Encodes the response, with as many records as fit.
    fn finish(mut self, bytes_max: u16) -> Option<Response> {
        let bytes = match encode(&self.message, bytes_max) {
            Some(bytes) => bytes,
            None => {
                self.trim(bytes_max);
                encode(&self.message, bytes_max)?
            }
        };
        let metadata = self.message.metadata;
        Some(Response {
            bytes,
            code: metadata.response_code,
            is_truncated: metadata.truncation,
            examined: self.examined,
        })
    }

    /// Drops records from the end until the rest fits.
    fn trim(&mut self, bytes_max: u16) {
        let additionals = std::mem::take(&mut self.message.additionals);
        if self.fits(bytes_max) {
            let kept = longest(additionals.len(), |kept| {
                self.message.additionals = additionals[..kept].to_vec();
                self.fits(bytes_max)
            });
            self.message.additionals = additionals[..kept].to_vec();
            return;
        }
        let answers = std::mem::take(&mut self.message.answers);
        // A client over TCP has no way to get more, so it is not asked to repeat its request.
        self.message.metadata.truncation = !self.is_over_tcp;
        let kept = longest(answers.len(), |kept| {
            self.message.answers = answers[..kept].to_vec();
            self.fits(bytes_max)
        });
        self.message.answers = answers[..kept].to_vec();
    }

    fn fits(&self, bytes_max: u16) -> bool {
        encode(&self.message, bytes_max).is_some()
    }
}

/// The largest number up to `most` for which `fits` holds. It holds for 0, and for every number below one for
/// which it holds.
fn longest(most: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let (mut fitting, mut too_many) = (0, most + 1);
    while too_many - fitting > 1 {
        let middle = fitting.midpoint(too_many);
        if fits(middle) {
            fitting = middle;
        } else {
            too_many = middle;
        }
    }
    fitting
}

/// The message's bytes; `None` where it takes more than these.
fn encode(message: &Message, bytes_max: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PLAIN_BYTES_MAX.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(bytes_max);
    let Message { metadata, queries, answers, authorities, additionals, edns, .. } = message;
    // The encoder drops what does not fit, and marks that with TC. So TC of the message itself is set later.
    let mut unmarked = *metadata;
    unmarked.truncation = false;
    let header = emit_message_parts(
        &unmarked,
        &mut queries.iter(),
        &mut answers.iter(),
        &mut authorities.iter(),
        &mut additionals.iter(),
        edns.as_ref(),
        None,
        &mut encoder,
    );
    if header.ok()?.metadata.truncation {
        return None;
    }
    let (at, bit) = TRUNCATION;
    if metadata.truncation
        && let Some(flags) = bytes.get_mut(at)
    {
        *flags |= bit;
    }
    Some(bytes)
}
