//! Tests of rules for the source tree: size and names of files, allowed dependencies, no circular imports,
//! plain words, and documents that name only files that exist.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The source trees of the workspace. The gateway's is a crate below that of the plug-ins.
const SOURCE_TREES: [&str; 5] =
    ["protocol/src", "services/src", "services/gateway/src", "node/src", "tests/src"];

/// The trees of what ships.
const SHIPPED_TREES: [&str; 4] = ["protocol/src", "services/src", "services/gateway/src", "node/src"];

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

/// A path as the repository names it.
fn name(path: &Path) -> &str {
    path.strip_prefix(root()).unwrap().to_str().unwrap()
}

/// Files of these kinds that belong to the repository, build folders aside.
fn files(kinds: &[&str]) -> Vec<PathBuf> {
    fn add(folder: &Path, kinds: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if path.is_dir() {
                if !hidden && !path.ends_with("target") && !path.ends_with("secrets") {
                    add(&path, kinds, found);
                }
            } else if path.extension().is_some_and(|kind| kinds.iter().any(|k| kind == *k)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    add(&root(), kinds, &mut found);
    found.sort();
    found
}

/// The lines of a file, numbered, as `path:number`.
fn numbered(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let place = |number: usize| format!("{}:{}", name(path), number + 1);
    text.lines().enumerate().map(|(number, line)| (place(number), line.to_owned())).collect()
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
    let long = |path: &PathBuf| lines(path) > 600;
    let long: Vec<_> = all_sources().into_iter().filter(long).collect();
    assert!(long.is_empty(), "split: {long:?}");
    assert!(lines(&root().join("node/src/main.rs")) < 60);
    assert!(lines(&root().join("ARCHITECTURE.md")) <= 250);
    assert!(lines(&root().join("README.md")) <= 90);
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
    assert!(!tree("hearsay-services").contains("hearsay-gateway"));
    assert!(!tree("hearsay-gateway").contains("hearsay-node"));
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

#[test]
fn no_files_import_each_other() {
    for package in SOURCE_TREES {
        let files = module_files(&root().join(package));
        let imports = files.iter().map(|(module, path)| (module, imports(module, path, &files)));
        let mut imports: BTreeMap<&Module, BTreeSet<Module>> = imports.collect();
        // A file that imports no other, or that no other imports, is in no circle. Removing these until none
        // is left leaves the circles and the paths between them.
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

/// The modules of a crate that are files, without its head, its programs and its tests.
fn module_files(package: &Path) -> BTreeMap<Module, PathBuf> {
    let module = |path: PathBuf| {
        let name = path.strip_prefix(package).unwrap().with_extension("");
        let mut module: Module = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        module.pop_if(|last| last == "mod");
        let is_apart =
            ["lib", "main", "bin"].contains(&module[0].as_str()) || module.iter().any(|part| part == "tests");
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

#[test]
fn crates_show_each_other_few_modules() {
    let module = |line: &(String, String)| line.1.trim_start().starts_with("pub mod ");
    let trees = SHIPPED_TREES.iter().flat_map(|tree| sources(&root().join(tree)));
    let found: BTreeSet<String> =
        trees.flat_map(|path| numbered(&path)).filter(module).map(|l| l.0).collect();
    assert!(found.len() <= PUBLIC_MODULES, "{} `pub mod`: {found:#?}", found.len());
}

/// The most `pub mod` of the crates that ship.
const PUBLIC_MODULES: usize = 12;

#[test]
fn few_parts_of_what_ships_depend_on_a_feature() {
    let depends = |(_, line): &(String, String)| {
        let line = line.trim_start();
        line.starts_with("#[")
            && line.contains("cfg")
            && line.contains("feature = ")
            && !line.contains("\"sim\"")
    };
    let trees = SHIPPED_TREES.iter().flat_map(|tree| sources(&root().join(tree)));
    let found: BTreeSet<String> =
        trees.flat_map(|path| numbered(&path)).filter(depends).map(|l| l.0).collect();
    assert!(found.len() <= FEATURES, "{} `cfg(feature`: {found:#?}", found.len());
}

/// The goal of the project, the simulator's feature aside.
const FEATURES: usize = 2;

#[test]
fn no_two_public_types_of_a_crate_share_a_name() {
    for tree in SOURCE_TREES {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (place, line) in sources(&root().join(tree)).iter().flat_map(|path| numbered(path)) {
            let mut words = line.split_whitespace();
            let public = words.next() == Some("pub");
            let kind = words.next().unwrap_or_default();
            if public && ["struct", "enum", "trait", "type", "union"].contains(&kind) {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                let name: String = words.next().unwrap().chars().take_while(|c| is_name(*c)).collect();
                places.entry(name).or_default().push(place);
            }
        }
        places.retain(|_, places| places.len() > 1);
        assert!(places.is_empty(), "{tree}: {places:#?}");
    }
}

#[test]
fn one_file_of_a_crate_is_named_journal() {
    for tree in SHIPPED_TREES {
        let journals: Vec<_> =
            sources(&root().join(tree)).into_iter().filter(|path| path.ends_with("journal.rs")).collect();
        assert!(journals.len() <= 1, "{journals:?}");
    }
}

/// Words that make a reader look twice: each has a plain one in its place, such as "any client".
const BANNED: [&str; 12] = [
    "-manieth",
    "whoever",
    "whomever",
    "nobody",
    "somebody",
    "everybody",
    "anybody",
    "anew",
    "amid",
    "lately",
    "what is so",
    "told of",
];

#[test]
fn words_are_plain() {
    let mut found = Vec::new();
    let mut texts = files(&["rs", "md", "html", "js", "css", "toml", "yaml", "yml", "json", "py", "conf"]);
    texts.extend(
        ["tests/run", "deploy/build", "deploy/check", "deploy/package", "deploy/sbom"]
            .map(|p| root().join(p)),
    );
    for path in texts {
        // This file names them, and the lock file names crates.
        let is_apart = path.ends_with("promises.rs") || path.ends_with("package-lock.json");
        if is_apart {
            continue;
        }
        for (place, line) in numbered(&path) {
            found.extend(
                BANNED.iter().filter(|word| has_word(&line, word)).map(|word| format!("{place}: {word}")),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Whether a line has a word, or some words in a row, in any case. Part of a longer word does not count; the
/// exception is a suffix, which begins with a dash.
fn has_word(line: &str, word: &str) -> bool {
    let line = line.to_lowercase();
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = is_letter(line[..at].chars().next_back()) && !word.starts_with('-');
        !before && !is_letter(line[at + word.len()..].chars().next())
    })
}

#[test]
fn comments_fit_the_screen() {
    let is_long = |(_, line): &(String, String)| {
        let comment = line.trim_start();
        let is_row = ["/// |", "//! |"].iter().any(|row| comment.starts_with(row));
        comment.starts_with("//") && !is_row && line.chars().count() > 110
    };
    let lines = all_sources().into_iter().flat_map(|path| numbered(&path));
    let long: Vec<_> = lines.filter(is_long).map(|line| line.0).collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Documents that comments of another repository may name: of a library, with its address.
const FOREIGN_DOCUMENTS: [&str; 2] = ["peer-ids/peer-ids.md", "pnet/Private-Networks-PSK-V1.md"];

#[test]
fn what_comments_and_documents_cite_is_in_the_repository() {
    let documents: Vec<PathBuf> = files(&["md"]);
    let is_there = |cited: &str| {
        let cited = cited.trim_start_matches("../");
        FOREIGN_DOCUMENTS.iter().any(|foreign| cited.ends_with(foreign))
            || documents.iter().any(|document| document.ends_with(cited))
    };
    let mut missing = Vec::new();
    for (place, line) in all_sources().iter().flat_map(|path| numbered(path)) {
        if let Some((_, comment)) = line.split_once("//") {
            let is_path = |c: char| c.is_alphanumeric() || "./_-".contains(c);
            let words = comment.split(|c| !is_path(c)).map(|word| word.trim_end_matches('.'));
            let cited = words.filter(|word| word.ends_with(".md") && !is_there(word));
            missing.extend(cited.map(|word| format!("{place}: {word}")));
            if comment.contains("Design, section") {
                missing.push(place);
            }
        }
    }
    // Links of documents, to other files of the repository.
    for document in &documents {
        for (place, line) in numbered(document) {
            let links = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            let files = links.map(|(link, _)| link.split('#').next().unwrap());
            let here = files.filter(|file| !file.is_empty() && !file.contains("://"));
            let gone = here.filter(|file| !document.parent().unwrap().join(file).exists());
            missing.extend(gone.map(|file| format!("{place}: {file}")));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_code_that_documents_name_is_there() {
    let code = files(&["rs"]);
    let mut missing = Vec::new();
    for (place, line) in files(&["md"]).iter().flat_map(|path| numbered(path)) {
        // The history names files as they were; the map, rooms below a heading.
        let is_apart = place.starts_with("CHANGELOG.md") || place.starts_with("ARCHITECTURE.md");
        let named =
            line.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs") && !word.contains(' '));
        let gone = named.filter(|word| !is_apart && !code.iter().any(|path| path.ends_with(word)));
        missing.extend(gone.map(|word| format!("{place}: {word}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_room_is_on_the_map() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for tree in SOURCE_TREES {
        let package = tree.trim_end_matches("/src");
        let section = map.split("\n### ").find(|part| part.starts_with(&format!("`{package}/`")));
        let section = section.unwrap_or_else(|| panic!("ARCHITECTURE.md has no section `{package}/`"));
        let named: BTreeSet<&str> = section
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|word| word.trim_end_matches('/').trim_end_matches(".rs"))
            .collect();
        for entry in fs::read_dir(root().join(tree)).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            let is_room = path.is_dir() || path.extension().is_some_and(|kind| kind == "rs");
            let file = entry.file_name().into_string().unwrap();
            let room = file.trim_end_matches(".rs");
            if is_room && !["lib", "main"].contains(&room) && !named.contains(room) {
                missing.push(format!("{tree}/{file}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
