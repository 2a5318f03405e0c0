//! Filter expressions of `?filter=`, and their grammar.
//!
//! The language is that of Consul: <https://developer.hashicorp.com/consul/api-docs/features/filtering>.
//! Each path has its own [`Field`]s. A selector of another path is an error: a filter must not be ignored,
//! because its client would take the unfiltered list for the filtered one.
//!
//! ```text
//! expression = conjunction { "or" conjunction }
//! conjunction = term { "and" term }
//! term = "not" term | "(" expression ")" | test
//! test = selector ("==" | "!=" | ["not"] ("contains" | "matches")) value
//!      | selector "is" ["not"] "empty"
//!      | value ["not"] "in" selector
//! selector = word { "[" string "]" }
//! value = word | string
//! ```

mod error;
mod expression;
mod field;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

pub(super) use expression::Filter;
pub(super) use field::{Field, Kind};
#[cfg(any(test, fuzzing))]
pub(super) use parser::EXPRESSION_BYTES_MAX;
pub(super) use parser::parse;
