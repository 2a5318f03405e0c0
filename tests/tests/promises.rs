//! What the tree promises its readers.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(under).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn all_sources() -> Vec<PathBuf> {
    ["protocol", "services", "node", "tests"].iter().flat_map(|c| sources(&root().join(c))).collect()
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().lines().count()
}

fn tree(package: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", package, "-e", "normal", "--prefix", "none", "--all-features"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_file_outgrows_its_noun() {
    let long: Vec<_> = all_sources().into_iter().filter(|p| lines(p) > 600).collect();
    assert!(long.is_empty(), "split: {long:?}");
    assert!(lines(&root().join("node/src/main.rs")) < 60);
    assert!(lines(&root().join("ARCHITECTURE.md")) <= 300);
}

#[test]
fn no_file_is_a_drawer() {
    let drawers = ["utils.rs", "common.rs", "types.rs", "helpers.rs", "manager.rs"];
    let found: Vec<_> =
        all_sources().into_iter().filter(|p| drawers.iter().any(|d| p.ends_with(d))).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_protocol_depends_on_nothing_that_touches_the_system() {
    let tree = tree("hearsay-protocol");
    for forbidden in ["tokio ", "libp2p", "axum ", "mio ", "getrandom ", "socket2 ", "libc "] {
        let found: Vec<_> = tree.lines().filter(|l| l.starts_with(forbidden)).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn services_never_import_the_node() {
    assert!(!tree("hearsay-services").contains("hearsay-node"));
}

#[test]
fn one_module_names_bincode() {
    let names = |p: &PathBuf| {
        let text = fs::read_to_string(p).unwrap();
        text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("bincode::"))
    };
    let mut found: Vec<_> = sources(&root().join("protocol")).into_iter().filter(names).collect();
    found.extend(sources(&root().join("node/src")).into_iter().filter(names));
    assert_eq!(found, [root().join("protocol/src/wire/codec.rs")]);
}

/// Older parts whose files import each other, files and folders. Nothing is to be added.
const CIRCLES: [&str; 13] = [
    "node/src/driver",
    "node/src/journal",
    "node/src/registry/registrar",
    "node/src/storage",
    "protocol/src/core",
    "protocol/src/journal",
    "protocol/src/providers",
    "protocol/src/record",
    "protocol/src/sim",
    "protocol/src/state",
    "services/src/gateway",
    "services/src/log",
    "services/src/shipping",
];

#[test]
fn no_files_import_each_other() {
    for package in ["protocol/src", "services/src", "node/src", "tests/src"] {
        let mut files = module_files(&root().join(package));
        files.retain(|_, path| {
            let path = path.strip_prefix(root()).unwrap().with_extension("");
            !CIRCLES.iter().any(|older| path.starts_with(older))
        });
        let imports = files.iter().map(|(module, path)| (module, imports(module, path, &files)));
        let mut imports: BTreeMap<&Module, BTreeSet<Module>> = imports.collect();
        // What imports no other file, or is imported by none, is in no circle; the rest is circles and the ways between them.
        loop {
            let importers: BTreeSet<Module> = imports.keys().map(|module| (*module).clone()).collect();
            let imported: BTreeSet<Module> = imports.values().flatten().cloned().collect();
            imports.values_mut().for_each(|list| list.retain(|module| importers.contains(module)));
            imports.retain(|module, list| !list.is_empty() && imported.contains(*module));
            if imports.len() == importers.len() {
                break;
            }
        }
        let words = |(module, list): (&&Module, &BTreeSet<Module>)| {
            let list: Vec<_> = list.iter().map(|module| module.join("::")).collect();
            format!("{} imports {}", module.join("::"), list.join(", "))
        };
        let circles: Vec<_> = imports.iter().map(words).collect();
        assert!(circles.is_empty(), "{package}: {circles:#?}");
    }
}

/// The path of a module within its crate.
type Module = Vec<String>;

/// The modules of a crate that are files, but for its head and its programs.
fn module_files(package: &Path) -> BTreeMap<Module, PathBuf> {
    let module = |path: PathBuf| {
        let name = path.strip_prefix(package).unwrap().with_extension("");
        let mut module: Module = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        module.pop_if(|last| last == "mod");
        let is_apart = ["lib", "main", "bin"].contains(&module[0].as_str());
        (!is_apart).then_some((module, path))
    };
    sources(package).into_iter().filter_map(module).collect()
}

/// The files that a file imports with `use`, its tests aside.
fn imports(module: &Module, path: &Path, files: &BTreeMap<Module, PathBuf>) -> BTreeSet<Module> {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("\nmod tests {").next().unwrap();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let mut found = BTreeSet::new();
    while let Some(line) = lines.next() {
        let visible = line.strip_prefix("pub").and_then(|rest| rest.split_once(' ')).map(|(_, rest)| rest);
        let Some(first) = visible.unwrap_or(line).strip_prefix("use ") else { continue };
        let mut tree = first.to_owned();
        while !tree.ends_with(';') {
            tree.push_str(lines.next().unwrap());
        }
        let mut paths = Vec::new();
        expand("", tree.trim_end_matches(';'), &mut paths);
        found.extend(paths.iter().filter_map(|path| imported_file(module, path, files)));
    }
    found.remove(module);
    found
}

/// Spells out the paths of `a::{b, c::{d, e}}`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        return paths.push(format!("{prefix}{path}"));
    };
    let prefix = format!("{prefix}{}", head.trim());
    let (mut depth, mut start) = (0, 0);
    let rest = rest.rsplit_once('}').unwrap().0;
    for (at, character) in rest.char_indices().chain([(rest.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !rest[start..at].trim().is_empty() {
                    expand(&prefix, &rest[start..at], paths);
                }
                start = at + 1;
            }
            _ => (),
        }
    }
}

/// The file in which an imported path ends. `None`: the head of the crate, or another crate.
fn imported_file(module: &Module, path: &str, files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut place = match *parts.peek()? {
        "crate" => Module::new(),
        _ => module.clone(),
    };
    match *parts.peek()? {
        "crate" | "self" => _ = parts.next(),
        "super" => (),
        // A path of this edition begins with a module of the file or with another crate.
        child => {
            place.push(child.to_owned());
            files.contains_key(&place).then_some(())?;
            parts.next();
        }
    }
    while parts.next_if_eq(&"super").is_some() {
        place.pop();
    }
    for part in parts {
        place.push(part.to_owned());
        if !files.contains_key(&place) {
            place.pop();
            break;
        }
    }
    files.contains_key(&place).then_some(place)
}
