//! Reads the key file (`node.key`: the seed of a node's key, and the node's id), or creates it with a random
//! seed if it is missing.
//!
//! The id beside the seed reveals a flipped bit. Any seed is a valid key, so a flipped bit would otherwise
//! turn the node into another one.

use std::path::Path;

use hearsay_protocol::Identity;
use zeroize::Zeroizing;

use super::{error::StorageError, file, private_file::read_private, secret::Secret};

const PREFACE: &str = "\
# The secret key of a Hearsay node. A process that has it can pose as this node: keep it secret,
# and never use it for a second node.
";

/// Reads the seed, or creates one if the file does not exist.
pub(super) fn read_or_create(path: &Path) -> Result<Secret<[u8; 32]>, StorageError> {
    match read_private(path)? {
        Some(content) => parse(&content.text)
            .map_err(|problem| StorageError::Damaged { path: path.to_owned(), problem: problem.into() }),
        None => {
            let seed = Secret::random()?;
            file::write(path, render(&seed).as_bytes(), file::PRIVATE)
                .map_err(|source| StorageError::Unwritable { path: path.to_owned(), source })?;
            Ok(seed)
        }
    }
}

fn render(seed: &Secret<[u8; 32]>) -> Zeroizing<String> {
    let id = Identity::from_seed(seed.expose()).id();
    Zeroizing::new(format!("{PREFACE}seed {}\nid {id}\n", seed.to_hex().expose()))
}

fn parse(text: &str) -> Result<Secret<[u8; 32]>, &'static str> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim);
    let seed = field("seed")
        .and_then(Secret::from_hex)
        .ok_or("expected a line `seed` with 64 hexadecimal digits")?;
    let id = field("id").ok_or("expected a line `id`")?;
    if id != Identity::from_seed(seed.expose()).id().to_string() {
        return Err("its seed is not that of the id it names");
    }
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_it_was_written() {
        let seed = Secret::new([9; 32]);
        assert_eq!(parse(&render(&seed)), Ok(seed));
    }

    #[test]
    fn a_flipped_bit_or_a_torn_file_is_no_key() {
        let text = render(&Secret::new([9; 32]));
        assert!(parse(&text.replacen("0909", "0908", 1)).unwrap_err().contains("not that of the id"));
        for (end, _) in text.char_indices() {
            assert!(parse(&text[..end]).is_err() || text[end..].trim().is_empty(), "cut at {end}");
        }
    }
}
