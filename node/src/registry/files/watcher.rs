//! [`FileWatcher`]: registers the programs that `*.toml` and `*.json` files in `--services-dir` describe, and
//! follows changes of the files.
//!
//! A file contains `service` (one registration) or `services` (several), with the keys of `POST /services`;
//! service files of Consul are valid. Changed files are read again (inotify, and a scan every 30 s). Removing
//! a file removes its registrations. If a file is invalid, its last valid version stays in effect.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::FileState;
use crate::{
    registry::{
        change::Selector,
        handle::Registry,
        input::{self, RegistrationSource},
        record::Owner,
        registration::Registration,
        scope::Scope,
    },
    storage::read_file,
};

/// The largest file, in bytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of files that are read. Guess; each has at least one service.
const FILES_MAX: usize = 10_000;
/// Changes within this time cause one scan: an editor writes a file in several steps.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// Interval of scans without a change event: network file systems send none.
const SCAN_INTERVAL: Duration = Duration::from_secs(30);
/// Mode bits that let the group and others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Keeps the registrations of a directory's files up to date.
#[derive(Debug)]
pub(crate) struct FileWatcher {
    dir: PathBuf,
    allow_exec: bool,
    registry: Arc<Registry>,
}

impl FileWatcher {
    /// Returns a watcher of a directory. The states of its files are in [`Registry::files`].
    pub(crate) fn new(dir: PathBuf, allow_exec: bool, registry: Arc<Registry>) -> Self {
        Self { dir, allow_exec, registry }
    }

    /// Scans the directory at the start and after each change. Never returns.
    pub(crate) async fn run(self) {
        let (change_sender, mut changed) = mpsc::channel(1);
        let watching = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error means that events were lost.
            if event.as_ref().map_or(true, is_change) {
                // If the queue is full, the pending scan sees this change, too.
                _ = change_sender.try_send(());
            }
        });
        let watching = watching.and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        // Dropping the watcher would end its events.
        let _watcher = watching
            .inspect_err(|error| {
                tracing::warn!(%error, dir = %self.dir.display(), "the directory cannot be watched; changes of registration files are noticed only every 30 s");
            })
            .ok();
        loop {
            self.scan().await;
            tokio::select! {
                Some(()) = changed.recv() => {
                    tokio::time::sleep(SETTLE_TIME).await;
                    while changed.try_recv().is_ok() {}
                }
                () = tokio::time::sleep(SCAN_INTERVAL) => (),
            }
        }
    }

    /// Reads new and changed files, and removes the registrations of deleted ones.
    async fn scan(&self) {
        let paths = match list_files(&self.dir) {
            Ok(paths) => paths,
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "the directory of registration files cannot be read; its registrations stay as they are");
                return;
            }
        };
        let known: Vec<PathBuf> = self.registry.files().change(|files| files.keys().cloned().collect());
        for gone in known.into_iter().filter(|path| !paths.contains(path)) {
            let ids = self
                .registry
                .files()
                .change(|files| files.remove(&gone).map(|state| state.ids))
                .unwrap_or_default();
            self.deregister(&gone, ids).await;
            tracing::info!(file = %gone.display(), "a registration file was removed, and its registrations with it");
        }
        for path in paths {
            self.reload_file(path).await;
        }
    }

    async fn reload_file(&self, path: PathBuf) {
        let content = match read_file(&path, FILE_BYTES_MAX) {
            Ok(Some(content)) => content.text,
            // The file was removed after the listing.
            Ok(None) => return,
            Err(error) => return self.record_error(&path, None, error.to_string()),
        };
        let hash = blake3::hash(content.as_bytes());
        let before = self.registry.files().change(|files| files.get(&path).cloned()).unwrap_or_default();
        if before.hash == Some(hash) {
            return;
        }
        let source = RegistrationSource::file(self.allow_exec);
        let read = parse_file(&path, &content).and_then(|values| {
            let read = |value| input::read_value(value, source, self.registry.suffix());
            values.into_iter().map(|value| read(value).map_err(|error| error.to_string())).collect()
        });
        let registrations: Vec<Registration> = match read {
            Ok(registrations) => registrations,
            Err(error) => return self.record_error(&path, Some(hash), error),
        };
        if registrations.iter().any(Registration::has_exec)
            && let Err(error) = self.check_permissions(&path)
        {
            // No hash is recorded, so that the file is read again once its permissions are corrected.
            return self.record_error(&path, None, error);
        }
        let ids: BTreeSet<String> = registrations.iter().map(|r| r.id.clone()).collect();
        if ids.len() < registrations.len() {
            return self.record_error(
                &path,
                Some(hash),
                "two of its services have the same id; give each its own".into(),
            );
        }
        let (mut registered, mut errors) = (before.ids.clone(), Vec::new());
        for registration in registrations {
            let id = registration.id.clone();
            match self.registry.register(registration, Owner::File(path.clone()), Scope::All).await {
                Ok(_) => _ = registered.insert(id),
                Err(error) => errors.push(format!("{id:?}: {error}")),
            }
        }
        self.deregister(&path, before.ids.difference(&ids).cloned().collect()).await;
        registered.retain(|id| ids.contains(id));
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        match &error {
            None => {
                tracing::info!(file = %path.display(), services = registered.len(), "registered the services of a file")
            }
            Some(error) => {
                tracing::warn!(file = %path.display(), error, "some services of a file are not registered; the next scan tries again")
            }
        }
        // No hash is recorded after an error, so that the next scan tries failed registrations again.
        let hash = error.is_none().then_some(hash);
        self.registry.files().change(|files| files.insert(path, FileState { hash, ids: registered, error }));
    }

    /// Records why the newest version is not in effect. The last valid version stays.
    fn record_error(&self, path: &Path, hash: Option<blake3::Hash>, error: String) {
        self.registry.files().change(|files| {
            let state = files.entry(path.to_owned()).or_default();
            if state.error.as_ref() != Some(&error) {
                tracing::warn!(file = %path.display(), error, "a registration file is invalid; its last valid version stays in effect");
            }
            (state.hash, state.error) = (hash, Some(error));
        });
    }

    async fn deregister(&self, path: &Path, ids: BTreeSet<String>) {
        for id in ids {
            // An error means that a newer owner has the registration, or the node is stopping.
            _ = self.registry.deregister(Selector::Id(id), Owner::File(path.to_owned()), Scope::All).await;
        }
    }

    /// Requires that only root and the node's user can write a file with commands and its directory.
    fn check_permissions(&self, path: &Path) -> Result<(), String> {
        let own_uid = rustix::process::geteuid().as_raw();
        for place in [path, &self.dir] {
            let metadata = fs::metadata(place).map_err(|error| format!("{}: {error}", place.display()))?;
            if ![0, own_uid].contains(&metadata.uid()) || metadata.mode() & WRITABLE_BY_OTHERS != 0 {
                return Err(format!(
                    "it has exec checks, and other users can write {}; chown it to root and chmod go-w",
                    place.display()
                ));
            }
        }
        Ok(())
    }
}

/// Whether an event may mean a change. A scan itself causes events (open, read), which must not cause another
/// scan.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Returns the files to read, sorted.
fn list_files(dir: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_known = path.extension().is_some_and(|ending| ending == "toml" || ending == "json");
        if is_known && !is_hidden && path.is_file() && paths.len() < FILES_MAX {
            paths.insert(path);
        }
    }
    Ok(paths)
}

/// Describes a TOML error without quoting the file: it may be a wrong file with secrets, and the error is
/// public.
fn describe_toml(content: &str, error: &toml::de::Error) -> String {
    let line_of = |at: usize| content.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
    let line = error.span().map(|span| line_of(span.start));
    let place = line.map_or_else(String::new, |line| format!(" in line {line}"));
    format!("it is not TOML{place}: {}", error.message())
}

/// Parses a file into registrations.
pub(in crate::registry) fn parse_file(path: &Path, content: &str) -> Result<Vec<Value>, String> {
    let value: Value = match path.extension().is_some_and(|ending| ending == "json") {
        true => serde_json::from_str(content).map_err(|error| error.to_string())?,
        false => toml::from_str(content).map_err(|error| describe_toml(content, &error))?,
    };
    let Value::Object(mut object) = value else { return Err("it is not an object".into()) };
    let mut registrations = Vec::new();
    for key in ["service", "services"] {
        match object.remove(key) {
            Some(Value::Array(values)) => registrations.extend(values),
            Some(value @ Value::Object(_)) => registrations.push(value),
            Some(_) => return Err(format!("{key} is neither a registration nor an array of them")),
            None => (),
        }
    }
    match registrations.is_empty() {
        true => Err("it has neither service nor services; give one of them".into()),
        false => Ok(registrations),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, MetadataKind, ModifyKind, RemoveKind};
    use serde_json::json;

    use super::*;

    #[test]
    fn reading_is_no_change() {
        let is_change = |kind| is_change(&Event::new(kind));
        for read in [AccessKind::Open(AccessMode::Any), AccessKind::Close(AccessMode::Read), AccessKind::Any]
        {
            assert!(!is_change(EventKind::Access(read)), "{read:?}");
        }
        let mode = ModifyKind::Metadata(MetadataKind::Any);
        for changed in [
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            EventKind::Modify(mode),
            EventKind::Create(CreateKind::File),
            EventKind::Remove(RemoveKind::File),
            EventKind::Any,
        ] {
            assert!(is_change(changed), "{changed:?}");
        }
    }

    #[test]
    fn a_file_holds_one_service_or_several_in_either_format() {
        let parse_file = |name: &str, text: &str| parse_file(Path::new(name), text);
        let web = json!({"name": "web", "port": 80});
        for (name, text) in [
            ("a.toml", "[service]\nname = 'web'\nport = 80"),
            ("a.toml", "[[services]]\nname = 'web'\nport = 80"),
            ("a.json", r#"{"services":[{"name":"web","port":80}]}"#),
            ("a.json", r#"{"service":{"name":"web","port":80}}"#),
        ] {
            assert_eq!(parse_file(name, text).as_deref(), Ok(std::slice::from_ref(&web)), "{text}");
        }
        for (name, text) in [("a.json", r#"{"service":{"name":"we"#), ("a.toml", "x = 1"), ("a.json", "[]")] {
            assert!(parse_file(name, text).is_err(), "{text}");
        }
    }
}
