//! Plug-ins in the HTTP server: dispatch of requests to them, the node as they see it, and the source of a
//! write.

pub(crate) mod dispatch;
pub(crate) mod host;
pub(crate) mod source;
