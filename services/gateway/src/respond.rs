//! Responses that the gateway makes itself: errors, the front page, and sign-in pages.

pub(crate) mod error_response;
pub(crate) mod front_page;
pub(crate) mod sign_in;
