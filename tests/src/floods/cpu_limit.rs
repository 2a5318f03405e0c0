//! [`CpuLimit`]: control group that limits processor time by `cpu.max` of version 2, or `cpu.cfs_quota_us` of
//! version 1 (<https://docs.kernel.org/admin-guide/cgroup-v2.html>,
//! <https://docs.kernel.org/scheduler/sched-bwc.html>).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Length of a period, in µs: the kernel's default.
const PERIOD_US: u32 = 100_000;
/// Mount point of the version 2 hierarchy, which has all controllers.
const UNIFIED: &str = "/sys/fs/cgroup";
/// Mount points of the `cpu` controller in version 1.
const CPU: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"];

/// Number of groups created by this process; distinguishes their names.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Control group whose processes share a fraction of one processor. Dropping a `CpuLimit` removes the group.
#[derive(Debug)]
pub struct CpuLimit(PathBuf);

impl CpuLimit {
    /// Creates a group with this percentage of one processor.
    ///
    /// # Errors
    /// The system has no such groups, or this process may not create one.
    pub fn create(percent: u32) -> Result<Self, String> {
        let quota = PERIOD_US / 100 * percent;
        let name = format!("hearsay-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let unified = Path::new(UNIFIED);
        let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "cpu") {
            // The controller may already be enabled, or the write may be refused. In the latter case the
            // group has no `cpu.max`.
            _ = fs::write(unified.join("cgroup.subtree_control"), "+cpu");
            return Self::create_in(unified, &name, &[("cpu.max", format!("{quota} {PERIOD_US}"))]);
        }
        let Some(parent) = CPU.iter().map(Path::new).find(|parent| parent.join("cpu.cfs_quota_us").exists())
        else {
            return Err("no control group has the controller cpu".to_owned());
        };
        let settings =
            [("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())];
        Self::create_in(parent, &name, &settings)
    }

    fn create_in(parent: &Path, name: &str, settings: &[(&str, String)]) -> Result<Self, String> {
        let folder = parent.join(name);
        let why = |error: io::Error| format!("{}: {error}", folder.display());
        fs::create_dir(&folder).map_err(why)?;
        let group = Self(folder.clone());
        for (file, value) in settings {
            fs::write(folder.join(file), value).map_err(why)?;
        }
        Ok(group)
    }

    /// Moves a process into the group. Its later children belong to the group, too.
    pub fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the process runs");
    }

    /// Returns the number of periods in which the group used up its share.
    pub fn throttled(&self) -> u64 {
        let statistics = fs::read_to_string(self.0.join("cpu.stat")).unwrap_or_default();
        let count = statistics.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse().ok());
        count.unwrap_or(0)
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // If the group cannot be removed, it has no process and costs nothing.
        _ = fs::remove_dir(&self.0);
    }
}
