//! What the tree promises its readers.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{
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
