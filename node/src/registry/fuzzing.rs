//! Fuzzing of registrations: parses any bytes as a request, a file or Consul's form, and panics if an
//! accepted registration is out of bounds or could not be stored, stated or run.
//!
//! The fuzz target and the test below, which replays the target's corpus, call the same function, which
//! panics if a property does not hold.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use hearsay_protocol::{ID_CHARS_MAX, check_instance_size, check_service_name};

use super::{
    address::{HttpUrl, Target},
    checks::CheckKind,
    consul_input::{ConsulCheckInput, read_consul},
    files::watcher::parse_file,
    input::{self, RegistrationSource},
    instance::{largest, without_checks},
    registration::{CHECKS_MAX, META_VALUE_BYTES_MAX, REQUIRES_MAX, Registration, TAGS_BYTES_MAX},
};
use crate::go_duration;

/// Short form of the node's id.
const SUFFIX: &str = "abcdef";
/// The longest duration of a check.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parses the input as a request from one of several sources, or as a file, and checks the properties.
///
/// The first byte selects the source; the rest is the request body or the content of the file.
pub fn registration(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let this_machine = RegistrationSource::caller(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let source = match kind % 6 {
        0 => this_machine,
        1 => RegistrationSource::caller(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9))),
        // No process belongs to this user.
        2 => RegistrationSource::socket(u32::MAX - 1),
        3 => RegistrationSource::file(false),
        _ => RegistrationSource::file(true),
    };
    if kind % 6 < 3 {
        if let Ok(registration) = input::read(body, source, SUFFIX) {
            check_accepted(&registration, source);
        }
        return;
    }
    let Ok(content) = std::str::from_utf8(body) else { return };
    check_texts(content);
    let path = if kind % 6 == 4 { "web.json" } else { "web.toml" };
    for value in parse_file(Path::new(path), content).unwrap_or_default() {
        if let Ok(registration) = input::read_value(value, source, SUFFIX) {
            check_accepted(&registration, source);
        }
    }
}

/// Parses the input as a registration and as a check in Consul's form, and checks the properties.
pub fn consul_registration(body: &[u8]) {
    let elsewhere = RegistrationSource::caller(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)));
    for source in [RegistrationSource::caller(IpAddr::V4(Ipv4Addr::LOCALHOST)), elsewhere] {
        let Ok(registration) = read_consul(body, source, SUFFIX) else { continue };
        check_accepted(&registration, source);
        let fields = registration.consul.as_ref().expect("the fields are stored");
        assert!(fields.checks.keys().all(|id| registration.checks.iter().any(|check| check.id == *id)));
    }
    let Ok(input) = ConsulCheckInput::parse(body) else { return };
    let web = br#"{"Name":"web","Address":"10.0.0.9","Port":80}"#;
    let mut registration = read_consul(web, elsewhere, SUFFIX).expect("a valid registration");
    if let Ok((spec, _)) = input.of_registration(&registration, elsewhere) {
        assert!(!spec.id.is_empty());
        registration.checks = vec![spec];
        check_accepted(&registration, elsewhere);
    }
}

/// Checks that an accepted registration can be stored, stated and run, and is within bounds.
fn check_accepted(registration: &Registration, source: RegistrationSource) {
    let stored = serde_json::to_string(registration).expect("a registration is stored as JSON");
    let read = serde_json::from_str::<Registration>(&stored).expect("a stored registration is read");
    assert_eq!(&read, registration);

    assert_eq!(check_service_name("name", &registration.service), Ok(()));
    assert!((1..=ID_CHARS_MAX).contains(&registration.id.chars().count()), "{:?}", registration.id);
    assert!(!registration.id.chars().any(char::is_control), "{:?}", registration.id);
    assert!(registration.tags.iter().map(String::len).sum::<usize>() <= TAGS_BYTES_MAX);
    assert!(registration.requires.len() <= REQUIRES_MAX);
    // The path of the registered URL is an additional pair, which may be longer.
    let is_short = |(key, value): (&String, &String)| key == "path" || value.len() <= META_VALUE_BYTES_MAX;
    assert!(registration.meta.iter().all(is_short));

    let instance = without_checks(registration, "10.0.0.1");
    assert_eq!(instance.check_stated(), Ok(()), "other nodes take its URL");
    _ = check_instance_size(&largest(registration, "10.0.0.1"));
    if registration.port > 0 {
        let origin = registration.local_origin();
        assert!(HttpUrl::parse("url", &origin).is_ok(), "{origin:?} cannot be called");
        let address = registration.local_address();
        assert!(Target::parse("tcp", &address).is_ok(), "{address:?} cannot be connected to");
    }
    if let Some(updates) = &registration.updates {
        assert!(HttpUrl::parse("updates", updates).is_ok(), "{updates:?} cannot be called");
    }
    check_specs(registration, source);
}

fn check_specs(registration: &Registration, source: RegistrationSource) {
    assert!(registration.checks.len() <= CHECKS_MAX);
    let ids: BTreeSet<&str> = registration.checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(ids.len(), registration.checks.len(), "ids of checks are unique");
    for check in &registration.checks {
        assert_eq!(check.validate(), Ok(()), "an accepted check can run");
        assert!(check.timeout < check.interval && check.interval <= DURATION_MAX, "{check:?}");
        assert!(!check.timeout.is_zero(), "{check:?}");
        assert!(check.failures_before_critical > 0 && check.successes_before_passing > 0, "{check:?}");
        match check.kind {
            CheckKind::Exec { .. } => assert!(source.is_file && source.allow_exec, "{check:?}"),
            CheckKind::Process(_) => assert!(source.socket_uid.is_some(), "{check:?}"),
            _ => (),
        }
    }
}

/// Checks that parsed addresses and durations survive a round trip through their canonical spelling.
fn check_texts(text: &str) {
    if let Ok(target) = Target::parse("tcp", text) {
        assert_eq!(Target::parse("tcp", &target.to_string()), Ok(target));
    }
    if let Ok(url) = HttpUrl::parse("url", text) {
        let written = format!("{}://{}{}", url.scheme, url.authority, url.path);
        assert!(url.path.as_str().starts_with('/'), "{text:?}");
        let read = HttpUrl::parse("url", &written).expect("what is written is read");
        assert_eq!((read.scheme, read.target, read.authority), (url.scheme, url.target, url.authority));
        // `Uri` distinguishes an empty path from `/` in comparisons, but not in `as_str`.
        assert_eq!(read.path.as_str(), url.path.as_str(), "{written:?}");
    }
    // Longer durations have more digits than are parsed exactly.
    if let Some(duration) = go_duration::parse(text).filter(|duration| *duration <= DURATION_MAX) {
        let written = format!("{}ns", duration.as_nanos());
        assert!(go_duration::parse(&written).is_some(), "{text:?} is {written:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_registrations_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/registration");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{} files", files.len());
        for file in files {
            // The test harness shows this output only if the test fails: it names the failing file.
            println!("{}", file.display());
            super::registration(&fs::read(&file).unwrap());
        }
    }
}
