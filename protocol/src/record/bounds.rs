//! Bounds of the fields in node headers and instances, the functions that check them, and their error
//! [`Invalid`].

/// Longest name of a node, service, role or zone, in characters (ASCII, so also in bytes).
pub const NAME_CHARS_MAX: usize = 128;
/// Tags of an instance, at most.
pub const TAGS_MAX: usize = 64;
/// Metadata pairs of an instance, at most.
pub const META_PAIRS_MAX: usize = 64;
/// Swarm addresses in a header, at most. Guess. A host with more addresses lists the first ones.
pub const ADDRESSES_MAX: usize = 16;

/// Error of a field that is out of bounds; a user reads it.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Name of the field, as a user writes it.
    pub field: &'static str,
    /// What is wrong with the field, and what is allowed.
    pub problem: String,
}

impl Invalid {
    /// Error of a field, with the problem and the allowed values.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// Longest instance id, in characters. Ids are longer than names, because the default id joins a name and an
/// address.
pub const ID_CHARS_MAX: usize = 256;

/// Checks a name: 1 to 128 characters, which are letters, digits, spaces, `-`, `_` or `.`.
///
/// # Errors
/// Names the field and the limit.
pub fn check_service_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    check_name(field, name, NAME_CHARS_MAX)?;
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || " -_.".contains(*c))) {
        None => Ok(()),
        Some(c) => Err(Invalid {
            field,
            problem: format!("{:?} is not allowed; use letters, digits, space, '-', '_' and '.'", c),
        }),
    }
}

/// Checks the length of a text, and that the text has no control character, which could break a log line or a
/// terminal.
pub(crate) fn check_name(field: &'static str, text: &str, chars_max: usize) -> Result<(), Invalid> {
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max {
        return Err(Invalid {
            field,
            problem: format!("has {chars} characters; 1 to {chars_max} are allowed"),
        });
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid { field, problem: "holds a control character".into() });
    }
    Ok(())
}

pub(crate) fn check_count(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count > max {
        return Err(Invalid { field, problem: format!("has {count} elements; at most {max} are allowed") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_field_and_which_limit_it_breaks() {
        assert!(check_service_name("name", "grade book-2_a.b").is_ok());
        let error = check_service_name("name", "a/b").unwrap_err().to_string();
        assert!(error.contains("name") && error.contains("'/'"), "{error}");
        let error = check_service_name("zone", &"x".repeat(129)).unwrap_err().to_string();
        assert!(error.contains("zone") && error.contains("128"), "{error}");
        assert!(check_service_name("name", "").is_err());
    }
}
