//! A parsed filter expression, and its evaluation over the JSON of one element.

use regex::Regex;
use serde_json::Value;

/// An expression that has been parsed.
#[derive(Debug)]
pub(in crate::apis::consul) struct Filter(pub(super) Expression);

/// A node of the syntax tree.
#[derive(Debug)]
pub(super) enum Expression {
    Any(Vec<Expression>),
    All(Vec<Expression>),
    Not(Box<Expression>),
    Test(Test),
}

/// A comparison of one field.
#[derive(Debug)]
pub(super) struct Test {
    /// The path of the field, with dots.
    pub(super) field: &'static str,
    /// The key in a map.
    pub(super) key: Option<String>,
    pub(super) condition: Condition,
    pub(super) is_negated: bool,
}

/// The condition of a test, before its negation.
#[derive(Debug)]
pub(super) enum Condition {
    Equals(String),
    EqualsNumber(i64),
    /// An element of a list, a key of a map, or a part of a text.
    Contains(String),
    Matches(Regex),
    IsEmpty,
}

impl Filter {
    /// Returns whether the JSON of an element satisfies the expression.
    pub(in crate::apis::consul) fn accepts(&self, element: &Value) -> bool {
        self.0.holds(element)
    }
}

impl Expression {
    fn holds(&self, element: &Value) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.holds(element)),
            Self::All(parts) => parts.iter().all(|part| part.holds(element)),
            Self::Not(inner) => !inner.holds(element),
            Self::Test(test) => test.holds_below(test.field, element),
        }
    }
}

impl Test {
    /// Follows the rest of the path. A list of objects satisfies the test if one of its objects does:
    /// `Checks.Status != "passing"` accepts an instance with a check that does not pass.
    fn holds_below(&self, path: &str, value: &Value) -> bool {
        if path.is_empty() {
            return self.holds_at(value);
        }
        if let Value::Array(elements) = value {
            return elements.iter().any(|element| self.holds_below(path, element));
        }
        let (step, rest) = path.split_once('.').unwrap_or((path, ""));
        self.holds_below(rest, value.get(step).unwrap_or(&Value::Null))
    }

    /// Compares a value. A key that a map does not have equals, contains and matches nothing, and is empty.
    fn holds_at(&self, value: &Value) -> bool {
        let value = match &self.key {
            Some(key) => value.get(key).unwrap_or(&Value::Null),
            None => value,
        };
        let holds = match (&self.condition, value) {
            (Condition::Equals(text), Value::String(found)) => found == text,
            (Condition::EqualsNumber(number), found) => found.as_i64() == Some(*number),
            (Condition::Contains(part), Value::String(found)) => found.contains(part.as_str()),
            (Condition::Contains(text), Value::Array(found)) => {
                found.iter().any(|element| element.as_str() == Some(text))
            }
            (Condition::Contains(key), Value::Object(found)) => found.contains_key(key),
            (Condition::Matches(pattern), Value::String(found)) => pattern.is_match(found),
            (Condition::IsEmpty, Value::Null) => true,
            (Condition::IsEmpty, Value::String(found)) => found.is_empty(),
            (Condition::IsEmpty, Value::Array(found)) => found.is_empty(),
            (Condition::IsEmpty, Value::Object(found)) => found.is_empty(),
            _ => false,
        };
        holds != self.is_negated
    }
}
