//! [`Secret`]: a key or token that is never printed and is wiped when it is dropped. Creates random ones,
//! converts them to and from hexadecimal digits, and compares tokens in constant time.

use std::fmt;

use zeroize::Zeroize;

/// A secret value. Code that needs it calls [`Secret::expose`], which is easy to search for.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// Returns the value. Callers must neither print nor copy it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<[u8; 32]> {
    /// Creates a secret of 256 random bits from the operating system.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Formats the secret as 64 hexadecimal digits.
    pub(crate) fn to_hex(&self) -> Secret<String> {
        // Reserved in advance: a growing string would leave unwiped copies of its beginning.
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        Secret(hex)
    }

    /// Parses 64 hexadecimal digits; `None` for any other text.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut secret = Self([0; 32]);
        for (byte, pair) in secret.0.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(secret)
    }
}

impl Secret<String> {
    /// Whether a presented secret equals this one. The comparison takes constant time.
    pub fn matches(&self, presented: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), presented.as_bytes());
        let difference = ours.iter().zip(theirs).fold(0, |sum, (a, b)| sum | (a ^ b));
        ours.len() == theirs.len() && std::hint::black_box(difference) == 0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl<T: Zeroize + PartialEq> PartialEq for Secret<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Zeroize + Clone> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_nothing_of_a_secret() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "(secret)");
    }

    #[test]
    fn hexadecimal_digits_give_back_what_was_written() {
        let secret = Secret::new([0xa5; 32]);
        assert_eq!(Secret::from_hex(secret.to_hex().expose()), Some(secret));
        assert_eq!(Secret::from_hex(&"g".repeat(64)), None);
        assert_eq!(Secret::from_hex(&"+f".repeat(32)), None);
        // 64 bytes, yet not 64 characters: must be refused, not sliced apart.
        assert_eq!(Secret::from_hex(&"ä".repeat(32)), None);
        assert_eq!(Secret::from_hex("a5"), None);
    }

    #[test]
    fn a_token_matches_only_itself() {
        let token = Secret::new("abc".to_owned());
        assert!(token.matches("abc"));
        for wrong in ["abd", "ab", "abcd", ""] {
            assert!(!token.matches(wrong), "{wrong}");
        }
    }
}
