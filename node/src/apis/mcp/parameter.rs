//! [`Parameter`] of a tool: its JSON Schema for the agent, and the check of the argument by the same bounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::http::reentry::path_segment;

/// Kind and bounds of an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Text of 1 to this many characters, without control characters.
    Text(usize),
    /// Whole number.
    Number {
        /// Lower bound.
        min: u32,
        /// Upper bound.
        max: u32,
        /// Value of a missing argument.
        default: u32,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// True or false; a missing argument is false.
    Flag,
}

/// A parameter of a tool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    /// Name.
    pub(super) name: &'static str,
    /// Kind and bounds.
    pub(super) kind: Kind,
    /// Whether a call needs it.
    pub(super) is_required: bool,
    /// Meaning, for the agent.
    pub(super) description: &'static str,
}

impl Parameter {
    /// Returns a parameter that a call may leave out.
    pub(super) const fn optional(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self { name, kind, is_required: false, description }
    }

    /// Returns a parameter that a call needs.
    pub(super) const fn required(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self { name, kind, is_required: true, description }
    }

    fn schema(&self) -> Value {
        let description = self.description;
        match self.kind {
            Kind::Text(max) => {
                json!({ "type": "string", "minLength": 1, "maxLength": max, "description": description })
            }
            Kind::Number { min, max, default } => json!({
                "type": "integer", "minimum": min, "maximum": max, "default": default, "description": description,
            }),
            Kind::Choice(words) => json!({ "type": "string", "enum": words, "description": description }),
            Kind::Flag => json!({ "type": "boolean", "default": false, "description": description }),
        }
    }

    /// Checks an argument.
    fn check(&self, value: &Value) -> Result<(), String> {
        let name = self.name;
        match self.kind {
            Kind::Text(max) => {
                let text = value.as_str().ok_or_else(|| format!("{name}: must be a text"))?;
                let chars = text.chars().count();
                if chars == 0 || chars > max {
                    return Err(format!("{name}: has {chars} characters; 1 to {max} are allowed"));
                }
                match text.chars().any(char::is_control) {
                    true => Err(format!("{name}: holds a control character")),
                    false => Ok(()),
                }
            }
            Kind::Number { min, max, .. } => match whole(value) {
                Some(number) if (u64::from(min)..=u64::from(max)).contains(&number) => Ok(()),
                _ => Err(format!("{name}: must be a whole number from {min} to {max}")),
            },
            Kind::Choice(words) => match value.as_str() {
                Some(word) if words.contains(&word) => Ok(()),
                _ => Err(format!("{name}: must be one of {}", words.join(", "))),
            },
            Kind::Flag => match value {
                Value::Bool(_) => Ok(()),
                _ => Err(format!("{name}: must be true or false")),
            },
        }
    }
}

/// Returns a whole number. JSON Schema counts 5.0 as one.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=1e9).contains(number));
    value.as_u64().or_else(|| float().map(|number| number as u64))
}

/// Returns the input schema of a tool with these parameters.
pub(super) fn input_schema(parameters: &[Parameter]) -> Map<String, Value> {
    let properties: Map<String, Value> =
        parameters.iter().map(|parameter| (parameter.name.to_owned(), parameter.schema())).collect();
    let required: Vec<&str> =
        parameters.iter().filter(|parameter| parameter.is_required).map(|parameter| parameter.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), properties.into());
    schema.insert("required".to_owned(), required.into());
    schema.insert("additionalProperties".to_owned(), false.into());
    schema
}

/// The checked arguments of a call.
#[derive(Debug)]
pub(super) struct Arguments {
    parameters: &'static [Parameter],
    values: BTreeMap<&'static str, Value>,
}

impl Arguments {
    /// Checks the arguments of a call. A null counts as a missing argument, because some clients send it for
    /// one.
    ///
    /// # Errors
    /// Names the argument and its bounds.
    pub(super) fn read(
        parameters: &'static [Parameter],
        given: Option<Map<String, Value>>,
    ) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for (name, value) in given.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null()) {
            let Some(parameter) = parameters.iter().find(|parameter| parameter.name == name) else {
                let known: Vec<&str> = parameters.iter().map(|parameter| parameter.name).collect();
                let name: String = name.chars().take(64).collect();
                return Err(format!("{name:?} is no parameter of this tool; it has {}", known.join(", ")));
            };
            parameter.check(&value)?;
            values.insert(parameter.name, value);
        }
        let is_missing =
            |parameter: &&Parameter| parameter.is_required && !values.contains_key(parameter.name);
        match parameters.iter().find(is_missing) {
            Some(missing) => Err(format!("{}: is missing", missing.name)),
            None => Ok(Self { parameters, values }),
        }
    }

    /// Returns a text or word.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.as_str()
    }

    /// Returns a text that the tool needs; [`read`](Self::read) has checked that it is there.
    pub(super) fn required(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    /// Returns a text that the tool needs as a segment of a path.
    pub(super) fn segment(&self, name: &str) -> String {
        // No path has an empty segment, and no checked text is empty.
        path_segment(self.required(name)).unwrap_or_default()
    }

    /// Returns a number, or its default.
    pub(super) fn number(&self, name: &str) -> usize {
        let default = self.parameters.iter().find(|parameter| parameter.name == name);
        let default = match default.map(|parameter| parameter.kind) {
            Some(Kind::Number { default, .. }) => u64::from(default),
            _ => 0,
        };
        let number = self.values.get(name).and_then(whole).unwrap_or(default);
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    /// Returns a flag.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| *value == Value::Bool(true))
    }

    /// Returns the first of these arguments that was given.
    pub(super) fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.values.contains_key(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: &[Parameter] = &[
        Parameter::required("name", Kind::Text(4), "Name"),
        Parameter::optional("limit", Kind::Number { min: 1, max: 9, default: 5 }, "Limit"),
        Parameter::optional("state", Kind::Choice(&["on", "off"]), "State"),
        Parameter::optional("undo", Kind::Flag, "Undo"),
    ];

    fn read(given: Value) -> Result<Arguments, String> {
        Arguments::read(PARAMETERS, given.as_object().cloned())
    }

    #[test]
    fn an_argument_out_of_bounds_is_named_with_its_bounds() {
        for (given, words) in [
            (json!({}), ["name", "missing"]),
            (json!({ "name": null }), ["name", "missing"]),
            (json!({ "name": 5 }), ["name", "a text"]),
            (json!({ "name": "" }), ["name", "1 to 4"]),
            (json!({ "name": "ääääx" }), ["name", "1 to 4"]),
            (json!({ "name": "a\n" }), ["name", "control"]),
            (json!({ "name": "a", "limit": 0 }), ["limit", "1 to 9"]),
            (json!({ "name": "a", "limit": 10 }), ["limit", "1 to 9"]),
            (json!({ "name": "a", "limit": 1.5 }), ["limit", "whole"]),
            (json!({ "name": "a", "limit": -1 }), ["limit", "1 to 9"]),
            (json!({ "name": "a", "limit": 1e300 }), ["limit", "1 to 9"]),
            (json!({ "name": "a", "limit": "5" }), ["limit", "whole"]),
            (json!({ "name": "a", "state": "up" }), ["state", "on, off"]),
            (json!({ "name": "a", "undo": "yes" }), ["undo", "true or false"]),
            (json!({ "name": "a", "nmae": "a" }), ["nmae", "name, limit"]),
        ] {
            let error = read(given.clone()).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{given}: {error}");
        }
    }

    #[test]
    fn missing_arguments_have_their_defaults() {
        let arguments = read(json!({ "name": "ääää", "limit": null })).unwrap();
        assert_eq!((arguments.required("name"), arguments.number("limit")), ("ääää", 5));
        assert!(arguments.text("state").is_none() && !arguments.flag("undo"));
        let arguments = read(json!({ "name": "a", "limit": 7.0, "state": "on", "undo": true })).unwrap();
        assert_eq!((arguments.number("limit"), arguments.text("state")), (7, Some("on")));
        assert!(arguments.flag("undo") && arguments.first_of(&["x", "undo"]) == Some("undo"));
    }

    #[test]
    fn the_schema_states_the_bounds() {
        assert_eq!(
            Value::from(input_schema(PARAMETERS)),
            json!({ "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 4, "description": "Name" },
                "limit": { "type": "integer", "minimum": 1, "maximum": 9, "default": 5, "description": "Limit" },
                "state": { "type": "string", "enum": ["on", "off"], "description": "State" },
                "undo": { "type": "boolean", "default": false, "description": "Undo" },
            } })
        );
    }
}
