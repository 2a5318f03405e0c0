//! Parts: splits an instance that does not fit into one entry, and joins it again.
//!
//! The instance's own entry has all fields, and as many tags, metadata pairs and check summaries as fit. The
//! rest is packed into `Part` entries, numbered from 0. The instance's own entry states the number and the
//! hash of the parts ([`Overflow`]). So a receiver knows when it has all parts, in any order of arrival, and
//! never joins parts of two states of the instance. A node that does not know parts relays them undecoded,
//! and lists the instance from its own entry alone.
//!
//! Tags and metadata come first and check summaries last. Checks change their status often. Such a change
//! then affects only the instance's own entry and its last parts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    bounds::{ID_CHARS_MAX, Invalid, TAGS_MAX, check_name},
    entry::ENTRY_BYTES_MAX,
    instance::{CheckSummary, Instance, Overflow},
};
use crate::wire::codec;

/// Largest encoded instance in bytes, parts included.
pub(crate) const INSTANCE_BYTES_MAX: usize = 64 * 1024;
/// Parts of an instance, at most. A new part begins only when the next element does not fit, so two
/// consecutive parts together hold more than one part's room. 64 KiB therefore need at most 20 parts.
pub(crate) const PARTS_MAX: u16 = 32;
/// Bytes of an entry besides its value and the instance's id: node and signature (96 bytes), incarnation and
/// version (18), kind and number of the key (7), lengths (12).
const ENTRY_OVERHEAD: usize = 140;
/// Room for a value in an entry with the longest id: each of its characters takes at most four bytes.
const VALUE_BYTES_MAX: usize = ENTRY_BYTES_MAX - ENTRY_OVERHEAD - 4 * ID_CHARS_MAX;
/// Room for elements in a part, besides the lengths of its three lists.
const PART_ROOM: usize = VALUE_BYTES_MAX - 9;
/// Bytes by which the lengths of three lists grow while an entry is filled: a length takes one byte, or three
/// above 250.
const LENGTHS: usize = 3 * 2;

/// Value of a `Part` entry. New fields are only appended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Part {
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
    checks: Vec<CheckSummary>,
}

/// Values of an instance's entries: of its own entry, and of its parts in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stated {
    pub(crate) value: Vec<u8>,
    pub(crate) parts: Vec<Vec<u8>>,
}

/// Checks that an instance can be stated: its fields are within their bounds, and it takes at most 64 KiB in
/// all. Unlike [`Instance::check`], this allows tags that fit only into parts.
///
/// # Errors
/// Names the first field that is out of bounds.
pub fn check_instance_size(instance: &Instance) -> Result<(), Invalid> {
    split(instance).map(|_| ())
}

/// Splits an instance into its own entry and its parts. Ignores its `overflow`.
///
/// # Errors
/// The instance is out of bounds: see [`check_instance_size`].
pub(crate) fn split(instance: &Instance) -> Result<Stated, Invalid> {
    instance.check_stated()?;
    let mut own = Instance { overflow: None, ..instance.clone() };
    check_whole(&own)?;
    let value = own.encode();
    let one_entry_may_carry_tags =
        instance.tags.len() <= TAGS_MAX && instance.tags.iter().all(|tag| is_short(tag));
    if value.len() <= VALUE_BYTES_MAX && one_entry_may_carry_tags {
        return Ok(Stated { value, parts: Vec::new() });
    }

    (own.tags, own.meta, own.checks) = Default::default();
    own.overflow = Some(Overflow { parts: PARTS_MAX, hash: [0; 16] });
    let fixed = own.encode().len() + LENGTHS;
    let Some(mut room) = VALUE_BYTES_MAX.checked_sub(fixed) else {
        let problem = format!(
            "take {fixed} bytes together with url and requires; at most {VALUE_BYTES_MAX} are allowed"
        );
        return Err(Invalid { field: "ports", problem });
    };
    // The instance's own entry takes the first elements of each list, and the parts continue the list.
    let mut fits = |bytes: usize| room.checked_sub(bytes).inspect(|left| room = *left).is_some();
    let may_take = |tag: &&String| is_short(tag);
    let tags = instance.tags.iter().take(TAGS_MAX).take_while(may_take);
    let tags = tags.take_while(|tag| fits(encoded_len(tag))).count();
    let meta = instance.meta.iter().take_while(|pair| fits(encoded_len(pair))).count();
    let checks = instance.checks.iter().take_while(|check| fits(encoded_len(check))).count();
    own.tags = instance.tags.iter().take(tags).cloned().collect();
    own.meta = instance.meta.iter().take(meta).map(|(k, v)| (k.clone(), v.clone())).collect();
    own.checks = instance.checks.iter().take(checks).cloned().collect();

    let mut packer = Packer::default();
    for tag in instance.tags.iter().skip(tags) {
        packer.part_with_room(encoded_len(tag)).tags.push(tag.clone());
    }
    for pair in instance.meta.iter().skip(meta) {
        packer.part_with_room(encoded_len(&pair)).meta.insert(pair.0.clone(), pair.1.clone());
    }
    for check in instance.checks.iter().skip(checks) {
        packer.part_with_room(encoded_len(check)).checks.push(check.clone());
    }
    let parts: Vec<Vec<u8>> = packer.parts.iter().map(codec::encode).collect();
    let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    own.overflow = Some(Overflow { parts: count, hash: hash(parts.iter().map(Vec::as_slice)) });
    Ok(Stated { value: own.encode(), parts })
}

/// Joins an instance with its parts. `None` while a part is missing or belongs to another state of the
/// instance. Also `None` if the joined instance is out of bounds: nodes relay parts unchecked, because nodes
/// that do not know parts relay them, too.
pub(crate) fn join<'a>(own: Instance, part: impl Fn(u16) -> Option<&'a [u8]>) -> Option<Instance> {
    let Some(overflow) = own.overflow.clone() else { return Some(own) };
    if overflow.parts > PARTS_MAX {
        return None;
    }
    let values: Vec<&[u8]> = (0..overflow.parts).map(part).collect::<Option<_>>()?;
    if hash(values.iter().copied()) != overflow.hash {
        return None;
    }
    let mut whole = Instance { overflow: None, ..own };
    for value in values {
        let (part, _) = codec::decode_prefix::<Part>(value).ok()?;
        whole.tags.extend(part.tags);
        whole.meta.extend(part.meta);
        whole.checks.extend(part.checks);
    }
    check_whole(&whole).is_ok().then_some(whole)
}

/// Checks the bounds of an instance and of everything in its parts.
fn check_whole(instance: &Instance) -> Result<(), Invalid> {
    let bytes = instance.encode().len();
    if bytes > INSTANCE_BYTES_MAX {
        let problem = format!("takes {bytes} bytes; at most {INSTANCE_BYTES_MAX} are allowed");
        return Err(Invalid { field: "instance", problem });
    }
    let fits = |field, bytes| {
        let problem = format!("an element takes {bytes} bytes; at most {PART_ROOM} are allowed");
        if bytes > PART_ROOM { Err(Invalid { field, problem }) } else { Ok(()) }
    };
    for tag in &instance.tags {
        check_name("tags", tag, PART_ROOM)?;
        fits("tags", encoded_len(tag))?;
    }
    instance.meta.iter().try_for_each(|pair| fits("meta", encoded_len(&pair)))?;
    // The other fields have the bounds of an instance without parts.
    Instance { tags: Vec::new(), ..instance.clone() }.check()
}

fn is_short(tag: &str) -> bool {
    tag.chars().count() <= ID_CHARS_MAX
}

fn encoded_len<T: Serialize>(value: &T) -> usize {
    codec::encode(value).len()
}

/// First 16 bytes of the BLAKE3 hash over the values of all parts.
fn hash<'a>(values: impl Iterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    values.for_each(|value| _ = hasher.update(value));
    let mut hash = [0; 16];
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    hash
}

/// Fills parts one after the other.
#[derive(Default)]
struct Packer {
    parts: Vec<Part>,
    /// Bytes of the last part's elements.
    filled: usize,
}

impl Packer {
    /// The last part, or a new one if the element does not fit into it. Counts the element's bytes.
    fn part_with_room(&mut self, bytes: usize) -> &mut Part {
        self.filled += bytes;
        if self.filled > PART_ROOM || self.parts.is_empty() {
            self.parts.push(Part::default());
            self.filled = bytes;
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole() -> impl Strategy<Value = Instance> {
        let tags = prop::collection::vec(("[a-zé]{1,20}", 1usize..120), 0..90);
        let tags = tags.prop_map(|tags| {
            tags.into_iter().map(|(tag, times)| tag.repeat(times).chars().take(500).collect()).collect()
        });
        let meta = prop::collection::btree_map("[a-z]{1,20}", "[ -~]{0,300}", 0..60);
        let check = ("[a-z:]{1,40}", "[a-z ]{0,40}", "[ -~\n]{0,256}", any::<u32>());
        let check = check.prop_map(|(id, name, output, took_ms)| CheckSummary {
            id,
            name,
            kind: "http".into(),
            output,
            took_ms,
            ..CheckSummary::default()
        });
        (tags, meta, prop::collection::vec(check, 0..17)).prop_map(|(tags, meta, checks)| Instance {
            service: "web".into(),
            address: "10.0.0.1".into(),
            port: 80,
            url: "http://10.0.0.1:80".into(),
            tags,
            meta,
            checks,
            ..Instance::default()
        })
    }

    fn join_all(stated: &Stated) -> Option<Instance> {
        join(Instance::decode(&stated.value).unwrap(), |n| {
            stated.parts.get(usize::from(n)).map(Vec::as_slice)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_split_is_joined_to_the_same(whole in whole()) {
            prop_assume!(check_instance_size(&whole).is_ok());
            let stated = split(&whole).unwrap();
            let own = Instance::decode(&stated.value).unwrap();
            prop_assert_eq!(own.check(), Ok(()), "older nodes take the instance's own entry");
            prop_assert!(stated.parts.len() <= usize::from(PARTS_MAX));
            for value in stated.parts.iter().chain([&stated.value]) {
                prop_assert!(value.len() <= VALUE_BYTES_MAX);
            }
            prop_assert_eq!(join_all(&stated), Some(whole));
        }

        #[test]
        fn garbage_parts_do_no_harm(
            whole in whole(), garbage in prop::collection::vec(any::<u8>(), 0..200), n in any::<prop::sample::Index>()
        ) {
            prop_assume!(check_instance_size(&whole).is_ok());
            let mut stated = split(&whole).unwrap();
            prop_assume!(!stated.parts.is_empty());
            let n = n.index(stated.parts.len());
            stated.parts[n] = garbage;
            prop_assert_eq!(join_all(&stated), None);
            // The instance is refused even if its owner states the right hash.
            let mut own = Instance::decode(&stated.value).unwrap();
            own.overflow = Some(Overflow {
                parts: u16::try_from(stated.parts.len()).unwrap(),
                hash: hash(stated.parts.iter().map(Vec::as_slice)),
            });
            stated.value = own.encode();
            prop_assert!(join_all(&stated).is_none_or(|joined| check_whole(&joined).is_ok()));
        }
    }

    fn tagged(tags: Vec<String>) -> Instance {
        Instance {
            service: "web".into(),
            address: "10.0.0.1".into(),
            url: "http://10.0.0.1".into(),
            tags,
            ..Instance::default()
        }
    }

    #[test]
    fn what_fits_into_an_entry_has_no_parts() {
        let small = tagged((0..64).map(|n| n.to_string()).collect());
        let stated = split(&small).unwrap();
        assert_eq!((stated.value, stated.parts.len()), (small.encode(), 0));
        for large in [
            tagged((0..65).map(|n| n.to_string()).collect()),
            tagged(vec!["x".repeat(257)]),
            tagged((0..40).map(|n| format!("{n:0200}")).collect()),
        ] {
            assert_eq!(split(&large).unwrap().parts.len(), 1);
        }
    }

    #[test]
    fn a_change_of_a_checks_status_leaves_the_parts_before_it_as_they_are() {
        let mut large = tagged((0..300).map(|n| format!("{n:0100}")).collect());
        large.checks = vec![CheckSummary { id: "c".into(), ..CheckSummary::default() }];
        let before = split(&large).unwrap();
        large.tags[70] = format!("{:0100}", 1000);
        large.checks[0].output = "refused".into();
        let after = split(&large).unwrap();
        let changed = before.parts.iter().zip(&after.parts).filter(|(a, b)| a != b).count();
        assert!(before.parts.len() > 3 && changed <= 1, "{changed} of {}", before.parts.len());
    }

    #[test]
    fn what_no_entry_can_hold_is_refused_by_name() {
        let problem = |instance: &Instance| check_instance_size(instance).unwrap_err().to_string();
        let many = tagged((0..700).map(|n| format!("{n:0100}")).collect());
        assert!(problem(&many).contains("at most 65536"), "{}", problem(&many));
        let long = tagged(vec!["x".repeat(8000)]);
        assert!(problem(&long).contains("tags"), "{}", problem(&long));
        let named = Instance { requires: vec!["x".repeat(128); 64], ..tagged(vec![]) };
        assert!(problem(&named).contains("requires"), "{}", problem(&named));
    }

    #[test]
    fn more_parts_than_there_can_be_are_not_waited_for() {
        let overflow = Some(Overflow { parts: PARTS_MAX + 1, hash: hash(std::iter::empty()) });
        assert_eq!(join(Instance { overflow, ..tagged(vec![]) }, |_| Some(b"")), None);
    }
}
