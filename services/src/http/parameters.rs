//! [`Parameters`]: query parameters, parsed strictly. A misspelt, repeated or malformed parameter is an error
//! that names it. If `?heatlh=passing` were ignored, the response would answer another question.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::Problem;

/// Query parameters of a request.
#[derive(Debug)]
pub struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    /// Parses a query string with these known parameters.
    ///
    /// # Errors
    /// 400 for any other parameter.
    pub fn read(query: Option<&'a str>, known: &[&str]) -> Result<Self, Problem> {
        let pairs: Vec<_> = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_ref())) {
            None => Ok(Self(pairs)),
            Some((name, _)) if known.is_empty() => {
                Err(Problem::parameter(name, "this path has no parameters"))
            }
            Some((name, _)) => {
                let known = known.join(", ");
                Err(Problem::parameter(name, format_args!("unknown parameter; the known ones are {known}")))
            }
        }
    }

    /// Every parameter of a query string, for interfaces that ignore those that they do not know.
    pub fn pairs(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        form_urlencoded::parse(query.unwrap_or_default().as_bytes())
    }

    /// Returns all values of a parameter that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_ref())
    }

    /// Returns the value of a parameter that may be given once.
    ///
    /// # Errors
    /// 400 if it is repeated.
    pub fn single(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Problem::parameter(name, "may be given only once")),
        }
    }

    /// Parses the value of a parameter.
    ///
    /// # Errors
    /// 400 with `allowed`, a phrase such as `a number from 1 to 100`.
    pub fn parse<T: FromStr>(&self, name: &str, allowed: impl fmt::Display) -> Result<Option<T>, Problem> {
        let Some(text) = self.single(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Self::refuse(name, text, allowed))
    }

    /// A truth value as Go's `strconv.ParseBool` reads it; empty is true, as Consul has it.
    ///
    /// # Errors
    /// 400 for any other text.
    pub fn flag(name: &str, value: &str) -> Result<bool, Problem> {
        match value {
            "" | "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
            other => Err(Self::refuse(name, other, "true or false")),
        }
    }

    /// The problem of a malformed value.
    pub fn refuse(name: &str, value: &str, allowed: impl fmt::Display) -> Problem {
        // The start of a long value is enough to recognise it.
        let shown: String = value.chars().take(64).collect();
        Problem::parameter(name, format_args!("{shown:?} is not {allowed}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_parameter_is_named_with_those_that_are_known() {
        let problem = Parameters::read(Some("tag=a&heatlh=x"), &["tag", "health"]).unwrap_err();
        assert!(
            problem.detail().contains("heatlh") && problem.detail().contains("tag, health"),
            "{problem:?}"
        );
    }

    #[test]
    fn a_single_parameter_is_refused_twice_and_a_list_is_not() {
        let p = Parameters::read(Some("tag=a&tag=b%20c&limit=1&limit=2"), &["tag", "limit"]).unwrap();
        assert_eq!(p.all("tag").collect::<Vec<_>>(), ["a", "b c"]);
        assert!(p.single("limit").is_err());
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for (text, expected) in [("", true), ("1", true), ("True", true), ("0", false), ("false", false)] {
            assert_eq!(Parameters::flag("enable", text), Ok(expected), "{text}");
        }
        assert!(Parameters::flag("enable", "perhaps").unwrap_err().detail().starts_with("enable: "));
    }

    #[test]
    fn all_pairs_are_read_where_unknown_ones_are_ignored() {
        let pairs: Vec<_> = Parameters::pairs(Some("tag=a+b&what&x=%2F")).collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_ref(), v.as_ref())).collect();
        assert_eq!(pairs, [("tag", "a b"), ("what", ""), ("x", "/")]);
        assert_eq!(Parameters::pairs(None).count(), 0);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_told_what_is_allowed() {
        let p = Parameters::read(Some("limit=many"), &["limit"]).unwrap();
        let problem = p.parse::<u32>("limit", "a whole number").unwrap_err();
        assert_eq!(problem.detail(), "limit: \"many\" is not a whole number");
    }
}
