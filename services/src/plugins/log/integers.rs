//! Converts unsigned numbers to SQLite's signed integers and back.

use crate::journal::Seq;

/// Maps `u64` to `i64` so that the order is preserved.
pub(super) fn sortable(number: u64) -> i64 {
    (number ^ (1 << 63)).cast_signed()
}

/// Inverse of [`sortable`].
pub(super) fn unsortable(number: i64) -> u64 {
    number.cast_unsigned() ^ (1 << 63)
}

/// A sequence number as an SQLite integer. No feed reaches the greatest one.
pub(super) fn signed(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_order_in_the_database() {
        let numbers = [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX];
        assert!(numbers.windows(2).all(|w| sortable(w[0]) < sortable(w[1])));
        assert!(numbers.iter().all(|n| unsortable(sortable(*n)) == *n));
    }
}
