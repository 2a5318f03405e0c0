//! Query parameters, read strictly: a parameter that is misspelt, doubled or unreadable is an error that names it, because an
//! ignored `?heatlh=passing` answers another question than the one that was asked.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::Problem;

/// The parameters of one request.
#[derive(Debug)]
pub struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    /// Reads a query string of which these parameters are known.
    ///
    /// # Errors
    /// 400 for any other parameter.
    pub fn read(query: Option<&'a str>, known: &[&str]) -> Result<Self, Problem> {
        let pairs: Vec<_> = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_ref())) {
            None => Ok(Self(pairs)),
            Some((name, _)) if known.is_empty() => {
                Err(Problem::parameter(name, "no parameter is known here"))
            }
            Some((name, _)) => {
                let known = known.join(", ");
                Err(Problem::parameter(name, format_args!("unknown parameter; known here are {known}")))
            }
        }
    }

    /// Every value of a parameter that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_ref())
    }

    /// The value of a parameter that stands alone.
    ///
    /// # Errors
    /// 400 where it is repeated.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Problem::parameter(name, "may be given only once")),
        }
    }

    /// The value, as another type.
    ///
    /// # Errors
    /// 400 with `allowed`, a phrase such as `a number from 1 to 100`.
    pub fn parse<T: FromStr>(&self, name: &str, allowed: impl fmt::Display) -> Result<Option<T>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Self::refuse(name, text, allowed))
    }

    /// The problem of a value that cannot be read.
    pub fn refuse(name: &str, value: &str, allowed: impl fmt::Display) -> Problem {
        // What a client sends may be long; the start of it is enough to recognise it.
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
        assert!(p.one("limit").is_err());
    }

    #[test]
    fn a_value_that_cannot_be_read_is_told_what_is_allowed() {
        let p = Parameters::read(Some("limit=many"), &["limit"]).unwrap();
        let problem = p.parse::<u32>("limit", "a whole number").unwrap_err();
        assert_eq!(problem.detail(), "limit: \"many\" is not a whole number");
    }
}
