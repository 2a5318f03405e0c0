//! Browsing of services by DNS-SD (RFC 6763): builds the labels of instances, the names of service types, and
//! the strings of TXT records.

use std::{
    cell::Cell,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use hearsay_protocol::{Health, Provider};
use hickory_proto::rr::Name;

use crate::view::View;

/// The longest label (RFC 1035, section 2.3.4), in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// The longest string of a TXT record, in bytes.
const STRING_BYTES_MAX: usize = 255;
/// The strings of one TXT record. RFC 6763, section 6.2, recommends 1,300 bytes at most.
const TEXT_BYTES_MAX: usize = 1300;

/// The label of an instance: its id. One that is too long ends with a hash, so that it stays distinct.
pub(super) fn instance_label(id: &str) -> String {
    if id.len() <= LABEL_BYTES_MAX && !id.is_empty() {
        return id.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let end = format!("-{:016x}", hasher.finish());
    let start = id.floor_char_boundary(LABEL_BYTES_MAX - end.len());
    format!("{}{end}", &id[..start])
}

/// Whether a label in lower case is that of the instance with this id.
pub(super) fn is_instance_label(label: &str, id: &str) -> bool {
    match id.is_ascii() && id.len() <= LABEL_BYTES_MAX {
        true => label.eq_ignore_ascii_case(id),
        false => instance_label(id).to_lowercase() == label,
    }
}

/// `_web._tcp.<domain>` for each label of services with an instance that is not critical, at most `types_max`
/// of them. Services whose names need the same label are one type. Counts examined instances.
pub(super) fn service_types(
    view: &View,
    domain: &Name,
    types_max: usize,
    examined: &Cell<usize>,
) -> Vec<Name> {
    let labels: Vec<String> = view.read(|table| {
        let is_usable = |provider: &Arc<Provider>| {
            examined.set(examined.get() + 1);
            provider.instance.health != Health::Critical
        };
        let usable = table.service_labels().filter(|(_, service)| table.providers(service).any(is_usable));
        usable.map(|(label, _)| label.to_owned()).take(types_max).collect()
    });
    let name = |label: String| {
        let own = Name::from_labels([format!("_{label}").as_bytes(), b"_tcp".as_slice()]).ok()?;
        own.append_domain(domain).ok()
    };
    labels.into_iter().filter_map(name).collect()
}

/// The strings of an instance's TXT record, `key=value`; one empty string where there are none, because a TXT
/// record has at least one (RFC 6763, section 6.1). What does not fit is left out.
pub(super) fn text_strings(provider: &Provider) -> Vec<Vec<u8>> {
    let mut bytes_left = TEXT_BYTES_MAX;
    let mut strings = Vec::new();
    for (key, value) in &provider.instance.meta {
        let is_key = !key.is_empty() && key.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'=');
        let string = format!("{key}={value}").into_bytes();
        if is_key && string.len() <= STRING_BYTES_MAX && string.len() < bytes_left {
            bytes_left -= string.len() + 1;
            strings.push(string);
        }
    }
    if strings.is_empty() {
        strings.push(Vec::new());
    }
    strings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_id_is_a_label_that_no_other_id_has() {
        assert_eq!(instance_label("web-1"), "web-1");
        let long = ["é".repeat(60), format!("{}x", "é".repeat(60))];
        let labels = long.each_ref().map(|id| instance_label(id));
        assert_ne!(labels[0], labels[1]);
        assert!(labels.iter().all(|label| label.len() <= LABEL_BYTES_MAX && label.starts_with("éé")));
    }
}
