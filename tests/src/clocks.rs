//! [`LabClock`]: wall clock of nodes that a test sets or freezes. The nodes must be linked dynamically.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Wall clock of one node.
#[derive(Debug)]
pub struct LabClock {
    file: File,
    path: PathBuf,
    shim: PathBuf,
}

impl LabClock {
    /// Creates a clock that shows the right time, with its files in this directory. `None`: no C compiler is
    /// installed.
    pub fn new(dir: &Path, name: &str) -> Option<Self> {
        let (source, shim) = (dir.join("clock.c"), dir.join("clock.so"));
        if !shim.exists() {
            std::fs::write(&source, include_str!("clocks/shim.c")).expect("a place for the shim");
            let built =
                Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(&source).status();
            if !built.is_ok_and(|status| status.success()) {
                return None;
            }
        }
        let path = dir.join(format!("{name}.clock"));
        let file =
            File::options().create(true).truncate(true).write(true).open(&path).expect("a place for a clock");
        let clock = Self { file, path, shim };
        clock.set(0, 0);
        Some(clock)
    }

    /// Returns the environment variables that make a node use this clock.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [("LD_PRELOAD", utf8(&self.shim)), ("LAB_CLOCK", utf8(&self.path))]
    }

    /// Lets the clock run with this offset from the right time.
    pub fn run(&self, offset_ms: i64) {
        self.set(offset_ms, 0);
    }

    /// Stops the clock at this time, in milliseconds since 1970.
    pub fn freeze(&self, at_ms: i64) {
        self.set(0, at_ms);
    }

    fn set(&self, offset_ms: i64, frozen_at_ms: i64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&offset_ms.to_ne_bytes());
        bytes[8..].copy_from_slice(&frozen_at_ms.to_ne_bytes());
        self.file.write_all_at(&bytes, 0).expect("the clock can be set");
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of the lab are UTF-8")
}
