//! The parser of filter expressions: recursive descent, bounded in length and depth.

use regex::{Regex, RegexBuilder};

use super::{
    error::FilterError,
    expression::{Condition, Expression, Filter, Test},
    field::{Field, Kind},
    lexer::{Token, tokens},
};

/// The longest expression, in bytes.
pub(in crate::apis::consul) const EXPRESSION_BYTES_MAX: usize = 4096;
/// The most parentheses and `not`s around one test. The parser recurses once for each.
const DEPTH_MAX: usize = 32;
/// The memory of a compiled pattern, in bytes. Guess: a pattern for names is a few kilobytes.
const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// The operators, without their negation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    Equals,
    Contains,
    Matches,
    IsEmpty,
}

/// Parses an expression over the fields of an endpoint.
///
/// # Errors
/// Names the unexpected token, the unknown selector, or the bound.
pub(in crate::apis::consul) fn parse(text: &str, fields: &[Field]) -> Result<Filter, FilterError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let problem = format!("has {} bytes; at most {EXPRESSION_BYTES_MAX} are allowed", text.len());
        return Err(FilterError(problem));
    }
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, fields, depth: 0 };
    let expression = parser.expression()?;
    match parser.tokens.first() {
        None => Ok(Filter(expression)),
        Some(token) => Err(FilterError(format!("{token} is not expected; join tests by and, or"))),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    fields: &'a [Field],
    depth: usize,
}

impl Parser<'_> {
    fn expression(&mut self) -> Result<Expression, FilterError> {
        let first = self.conjunction()?;
        let mut all = vec![first];
        while self.take_word("or") {
            all.push(self.conjunction()?);
        }
        Ok(single_or(all, Expression::Any))
    }

    fn conjunction(&mut self) -> Result<Expression, FilterError> {
        let first = self.term()?;
        let mut all = vec![first];
        while self.take_word("and") {
            all.push(self.term()?);
        }
        Ok(single_or(all, Expression::All))
    }

    fn term(&mut self) -> Result<Expression, FilterError> {
        let is_open = self.tokens.first() == Some(&Token::Open);
        let is_not = self.is_word("not");
        if !is_open && !is_not {
            return self.test();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let problem = format!("has more than {DEPTH_MAX} parentheses and nots around one test");
            return Err(FilterError(problem));
        }
        self.tokens = &self.tokens[1..];
        let term = if is_not {
            Expression::Not(Box::new(self.term()?))
        } else {
            let inner = self.expression()?;
            self.expect(&Token::Close)?;
            inner
        };
        self.depth -= 1;
        Ok(term)
    }

    fn test(&mut self) -> Result<Expression, FilterError> {
        let operand = self.operand()?;
        if self.take(&Token::Equal) {
            let value = self.value()?;
            return self.build(&operand, Operator::Equals, value, false);
        }
        if self.take(&Token::NotEqual) {
            let value = self.value()?;
            return self.build(&operand, Operator::Equals, value, true);
        }
        if self.take_word("is") {
            let is_negated = self.take_word("not");
            if !self.take_word("empty") {
                return Err(self.unexpected("is empty or is not empty"));
            }
            return self.build(&operand, Operator::IsEmpty, String::new(), is_negated);
        }
        let is_negated = self.take_word("not");
        if self.take_word("in") {
            let selector = self.operand()?;
            return self.build(&selector, Operator::Contains, operand.into_text(), is_negated);
        }
        for (word, operator) in [("contains", Operator::Contains), ("matches", Operator::Matches)] {
            if self.take_word(word) {
                let value = self.value()?;
                return self.build(&operand, operator, value, is_negated);
            }
        }
        Err(self.unexpected("one of ==, !=, in, not in, contains, matches, is empty"))
    }

    /// A selector or a value, whichever the operator makes of it.
    fn operand(&mut self) -> Result<Token, FilterError> {
        match self.tokens.split_first() {
            Some((token @ (Token::Word(_) | Token::Text(_) | Token::Selector(..)), rest)) => {
                self.tokens = rest;
                Ok(token.clone())
            }
            _ => Err(self.unexpected("a selector or a value")),
        }
    }

    fn value(&mut self) -> Result<String, FilterError> {
        match self.operand()? {
            Token::Selector(..) => Err(FilterError("a value in brackets has to be quoted".into())),
            token => Ok(token.into_text()),
        }
    }

    fn build(
        &self,
        selector: &Token,
        operator: Operator,
        value: String,
        is_negated: bool,
    ) -> Result<Expression, FilterError> {
        let (field, kind, key) = self.select(selector)?;
        let condition = match (operator, kind) {
            (Operator::Equals, Kind::Text) => Condition::Equals(value),
            (Operator::Equals, Kind::Number) => match value.parse() {
                Ok(number) => Condition::EqualsNumber(number),
                Err(_) => {
                    return Err(FilterError(format!("{value:?} is no whole number, as {field} is")));
                }
            },
            (Operator::Contains, Kind::Text | Kind::Texts | Kind::Map) => Condition::Contains(value),
            (Operator::IsEmpty, Kind::Text | Kind::Texts | Kind::Map) => Condition::IsEmpty,
            (Operator::Matches, Kind::Text) => Condition::Matches(pattern(&value)?),
            (operator, _) => {
                return Err(FilterError(format!("{field} takes no operator {operator:?}")));
            }
        };
        Ok(Expression::Test(Test { field, key, condition, is_negated }))
    }

    /// Finds the field that a selector names, its kind and the key in a map.
    fn select(&self, selector: &Token) -> Result<(&'static str, Kind, Option<String>), FilterError> {
        let (path, bracketed) = match selector {
            Token::Word(path) => (path.as_str(), None),
            Token::Selector(path, key) => (path.as_str(), Some(key.clone())),
            token => return Err(FilterError(format!("{token} is a value; a selector stands there"))),
        };
        for (name, kind) in self.fields {
            if path == *name {
                return match (kind, bracketed) {
                    (kind, None) => Ok((name, *kind, None)),
                    (Kind::Map, Some(key)) => Ok((name, Kind::Text, Some(key))),
                    (_, Some(_)) => Err(FilterError(format!("{name} has no keys"))),
                };
            }
            let below = path.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            if let (Kind::Map, Some(key), None) = (kind, below, &bracketed)
                && !key.is_empty()
            {
                return Ok((name, Kind::Text, Some(key.to_owned())));
            }
        }
        let known: Vec<&str> = self.fields.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        Err(FilterError(format!("{selector} is no selector of this path; it has {known}")))
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.tokens.first(), Some(Token::Word(found)) if found == word)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is_there = self.is_word(word);
        if is_there {
            self.tokens = &self.tokens[1..];
        }
        is_there
    }

    fn take(&mut self, token: &Token) -> bool {
        let is_there = self.tokens.first() == Some(token);
        if is_there {
            self.tokens = &self.tokens[1..];
        }
        is_there
    }

    fn expect(&mut self, token: &Token) -> Result<(), FilterError> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(&token.to_string())) }
    }

    fn unexpected(&self, expected: &str) -> FilterError {
        FilterError(match self.tokens.first() {
            Some(token) => format!("{expected} is expected, and there is {token}"),
            None => format!("{expected} is expected, and the expression ends"),
        })
    }
}

fn single_or(mut all: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match (all.len(), all.pop()) {
        (1, Some(single)) => single,
        (_, last) => {
            all.extend(last);
            join(all)
        }
    }
}

/// Compiles a pattern. The engine takes linear time, so its memory is the only bound.
fn pattern(text: &str) -> Result<Regex, FilterError> {
    let compiled = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    compiled.map_err(|error| FilterError(format!("{text:?} is no pattern: {error}")))
}
