//! Lexer of filter expressions: splits the text into [`Token`]s.

use std::{fmt, iter::Peekable, str::Chars};

use super::error::FilterError;

/// A token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// A selector, a keyword, a number, or a value without quotes.
    Word(String),
    /// A selector with a key in brackets: `Meta["key"]`.
    Selector(String, String),
    /// A value in quotes or backquotes.
    Text(String),
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `(`
    Open,
    /// `)`
    Close,
}

impl Token {
    /// The text of a value.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Word(text) | Self::Text(text) => text,
            token => token.to_string(),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(text) => write!(f, "{text}"),
            Self::Selector(path, key) => write!(f, "{path}[{key:?}]"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Equal => f.write_str("=="),
            Self::NotEqual => f.write_str("!="),
            Self::Open => f.write_str("("),
            Self::Close => f.write_str(")"),
        }
    }
}

/// Splits an expression into tokens.
///
/// # Errors
/// Names the character that begins no token, or the quote that is not closed.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, FilterError> {
    let (mut rest, mut found) = (text.chars().peekable(), Vec::new());
    while let Some(&first) = rest.peek() {
        match first {
            ' ' | '\t' | '\r' | '\n' => _ = rest.next(),
            '(' => push_single(&mut rest, &mut found, Token::Open),
            ')' => push_single(&mut rest, &mut found, Token::Close),
            '=' | '!' => found.push(comparison(&mut rest)?),
            '"' | '`' => found.push(Token::Text(quoted(&mut rest)?)),
            '[' => {
                let key = bracketed(&mut rest)?;
                match found.pop() {
                    Some(Token::Word(path)) => found.push(Token::Selector(path, key)),
                    _ => return Err(FilterError("a bracket follows no selector".into())),
                }
            }
            _ if is_word_character(first) => found.push(Token::Word(word(&mut rest))),
            other => return Err(FilterError(format!("{other:?} has to stand in quotes"))),
        }
    }
    Ok(found)
}

fn push_single(rest: &mut Peekable<Chars<'_>>, found: &mut Vec<Token>, token: Token) {
    rest.next();
    found.push(token);
}

fn comparison(rest: &mut Peekable<Chars<'_>>) -> Result<Token, FilterError> {
    let token = if rest.next() == Some('!') { Token::NotEqual } else { Token::Equal };
    match rest.next() {
        Some('=') => Ok(token),
        _ => Err(FilterError("an operator is == or !=".into())),
    }
}

fn word(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut text = String::new();
    while let Some(character) = rest.next_if(|character| is_word_character(*character)) {
        text.push(character);
    }
    text
}

/// Letters, digits and the marks that names, versions and addresses hold.
fn is_word_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_-./:+@".contains(character)
}

/// A text in double quotes, with Go's short escapes, or in backquotes, without any.
fn quoted(rest: &mut Peekable<Chars<'_>>) -> Result<String, FilterError> {
    let quote = rest.next();
    let mut text = String::new();
    while let Some(character) = rest.next() {
        match character {
            _ if Some(character) == quote => return Ok(text),
            '\\' if quote == Some('"') => text.push(match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(escaped @ ('"' | '\\')) => escaped,
                _ => {
                    let problem = "a backslash stands before one of \\ \" n r t; backquotes take it as it is";
                    return Err(FilterError(problem.into()));
                }
            }),
            _ => text.push(character),
        }
    }
    Err(FilterError("a quote is not closed".into()))
}

fn bracketed(rest: &mut Peekable<Chars<'_>>) -> Result<String, FilterError> {
    rest.next();
    let is_quote = matches!(rest.peek(), Some('"' | '`'));
    let key = if is_quote { quoted(rest)? } else { String::new() };
    match rest.next() {
        Some(']') if is_quote => Ok(key),
        _ => Err(FilterError("brackets hold one key in quotes".into())),
    }
}
