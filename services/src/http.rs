//! HTTP for plug-ins and nodes: client, problem documents, query parameters, path prefixes, pages, sources of
//! requests, signed requests, timeouts of writes, and headers of writes to the journal.

pub(crate) mod append;
pub(crate) mod client;
pub(crate) mod forwarded;
pub(crate) mod html;
pub(crate) mod parameters;
pub(crate) mod prefixes;
pub(crate) mod problem;
pub(crate) mod refusal;
pub(crate) mod signing;
pub(crate) mod source;
pub(crate) mod stall_timer;
pub(crate) mod write_stall;

pub use append::{HEARSAY_ACK, HEARSAY_TOKEN, IDEMPOTENCY_KEY, WriteOptions, await_tokens, with_receipt};
pub use client::{Call, CallError, CallLimits, Client, FailedAttempt, Reply, Stream, problem_detail};
pub use forwarded::Forwarded;
pub use html::{
    Asset, CONTENT_SECURITY_POLICY, ICON, Number, PageFrame, PageLink, STYLESHEET, Visible, render_page,
    web_address,
};
pub use parameters::Parameters;
pub use prefixes::{
    BUILT_IN, Effect, PrefixClash, RESERVED, SIGN_IN_PATHS, check_prefixes, covers, is_sign_in,
};
pub use problem::{PROBLEM_CONTENT_TYPE, Problem};
pub use refusal::{bare_response, bare_status_detail};
pub use signing::UnsignedRequest;
pub use source::{ConnectionHost, Source};
pub use stall_timer::{StallTimer, WriteTimeout};
pub use write_stall::{Ending, StreamEnd, WatchedBody, WatchedStream, watch_stream};
