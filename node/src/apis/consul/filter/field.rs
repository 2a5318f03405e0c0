//! Types of filter fields: a [`Field`] is a path in the JSON of an element, and a [`Kind`] decides which
//! operators it takes. The fields of each endpoint are listed in `apis/consul/fields.rs`.

/// The kind of a field, which decides the operators that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::apis::consul) enum Kind {
    /// A text: all operators.
    Text,
    /// A whole number: `==` and `!=`.
    Number,
    /// A list of texts: `in`, `contains`, `is empty`.
    Texts,
    /// A map of texts: as a list, for its keys. `Map.key` is the text under a key.
    Map,
}

/// A field: its path in the JSON of one element, and its kind.
pub(in crate::apis::consul) type Field = (&'static str, Kind);
