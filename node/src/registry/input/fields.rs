//! [`Fields`]: reads the fields of a JSON object, whatever the case and separators of their keys.

use std::collections::BTreeMap;

use hearsay_protocol::Invalid;
use serde_json::{Map, Value};

/// Returns an error that names a field.
pub(in crate::registry) fn invalid(field: &'static str, problem: impl Into<String>) -> Invalid {
    Invalid::new(field, problem)
}

/// Checks the length of a string, and refuses control characters, which could break log lines and terminals.
pub(in crate::registry) fn check_text(
    field: &'static str,
    text: &str,
    chars_max: usize,
) -> Result<(), Invalid> {
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max {
        let problem = match chars_max {
            // The caller bounds the bytes.
            usize::MAX => "is empty".to_owned(),
            _ => format!("has {chars} characters; 1 to {chars_max} are allowed"),
        };
        return Err(invalid(field, problem));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "contains a control character; leave it out"));
    }
    Ok(())
}

/// The fields of one object, by normalised key.
pub(in crate::registry) struct Fields(BTreeMap<String, Value>);

impl Fields {
    /// Returns the fields of an object. `null` counts as absent. Two spellings of one key are an error.
    pub(in crate::registry) fn of(name: &'static str, value: Value) -> Result<Self, Invalid> {
        let Value::Object(object) = value else { return Err(invalid(name, "is not a JSON object")) };
        let mut fields = BTreeMap::new();
        for (key, value) in object {
            if value.is_null() {
                continue;
            }
            let normal = normalise(&key);
            if fields.insert(normal, value).is_some() {
                return Err(invalid(name, format!("has the key {key:?} in two spellings")));
            }
        }
        Ok(Self(fields))
    }

    /// Whether the object has this key (in normalised form).
    pub(in crate::registry) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Returns the value of a key.
    pub(in crate::registry) fn value(&self, key: &str) -> Option<Value> {
        self.0.get(key).cloned()
    }

    /// Returns the string under a key or one of its aliases.
    pub(in crate::registry) fn text(
        &self,
        field: &'static str,
        aliases: &[&'static str],
    ) -> Result<Option<String>, Invalid> {
        let mut found = None;
        for key in std::iter::once(&field).chain(aliases) {
            match self.0.get(&normalise(key)) {
                None => continue,
                Some(Value::String(_)) if found.is_some() => {
                    return Err(invalid(field, "is given twice, under two names; give one"));
                }
                Some(Value::String(text)) => found = Some(text.clone()),
                Some(other) => return Err(wrong_type(field, other, "a string")),
            }
        }
        Ok(found)
    }

    /// Returns an integer within bounds.
    pub(in crate::registry) fn integer(
        &self,
        field: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u64>, Invalid> {
        let Some(value) = self.0.get(&normalise(field)) else { return Ok(None) };
        match value.as_u64().filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong_type(field, value, &format!("a whole number from {min} to {max}"))),
        }
    }

    /// Returns a boolean.
    pub(in crate::registry) fn boolean(&self, field: &'static str) -> Result<Option<bool>, Invalid> {
        match self.0.get(&normalise(field)) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(field, other, "true or false")),
        }
    }

    /// Returns an array.
    pub(in crate::registry) fn array(&self, field: &'static str) -> Result<Option<Vec<Value>>, Invalid> {
        match self.0.get(&normalise(field)) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values.clone())),
            Some(other) => Err(wrong_type(field, other, "an array")),
        }
    }

    /// Returns an array of strings; empty if absent.
    pub(in crate::registry) fn texts(&self, field: &'static str) -> Result<Vec<String>, Invalid> {
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(field, &other, "an array of strings")),
        };
        self.array(field)?.unwrap_or_default().into_iter().map(text).collect()
    }

    /// Returns an object.
    pub(in crate::registry) fn object(
        &self,
        field: &'static str,
    ) -> Result<Option<Map<String, Value>>, Invalid> {
        match self.0.get(&normalise(field)) {
            None => Ok(None),
            Some(Value::Object(pairs)) => Ok(Some(pairs.clone())),
            Some(other) => Err(wrong_type(field, other, "an object of strings")),
        }
    }
}

fn normalise(key: &str) -> String {
    key.chars().filter(|c| *c != '_' && *c != '-').map(|c| c.to_ascii_lowercase()).collect()
}

fn wrong_type(field: &'static str, value: &Value, wanted: &str) -> Invalid {
    let start: String = value.to_string().chars().take(64).collect();
    invalid(field, format!("{start} is not {wanted}"))
}
