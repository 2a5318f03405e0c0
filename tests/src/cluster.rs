//! [`Cluster`]: trait by which tests add and stop nodes, read what each node lists, and wait for facts. The
//! nodes are processes, or run within one process.

use std::time::{Duration, Instant};

/// Pause between two evaluations of a fact.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// Time by which a wait may exceed its bound. A bound is what an idle machine needs. Where builds run beside
/// the tests, a node can stand still for seconds, and nodes that are late wait longer for each other.
pub(crate) const SLACK: Duration = Duration::from_secs(15);

/// Index of a node in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRef(pub(crate) usize);

/// Cluster under test: processes in namespaces ([`Lab`](crate::Lab)), or swarms in one process
/// ([`Swarms`](crate::Swarms)).
pub trait Cluster {
    /// Starts a node of this name that offers grading and finds the others.
    fn add(&mut self, name: &str) -> NodeRef;
    /// Kills a node.
    fn crash(&mut self, node: NodeRef);
    /// Stops a node gracefully, so that it leaves the cluster first.
    fn leave(&mut self, node: NodeRef);
    /// Returns the name of a node.
    fn name_of(&self, node: NodeRef) -> String;
    /// Returns the state in which a node sees a member of this name. If several members have the name, a
    /// present one counts.
    fn sees(&self, by: NodeRef, name: &str) -> Option<String>;
    /// Returns the names of the nodes that a node lists as providers of grading, sorted.
    fn providers(&self, by: NodeRef) -> Vec<String>;
    /// Returns the root hash of a node's table.
    fn root(&self, by: NodeRef) -> Option<String>;
    /// Describes the view of every node, for failure messages.
    fn describe(&self) -> String;

    /// Returns whether these nodes have equal root hashes.
    fn agree(&self, nodes: &[NodeRef]) -> bool {
        let hashes: Vec<_> = nodes.iter().map(|n| self.root(*n)).collect();
        hashes.iter().all(|h| h.is_some() && *h == hashes[0])
    }

    /// Returns whether each of these nodes lists exactly all of them as providers.
    fn all_list_all(&self, nodes: &[NodeRef]) -> bool {
        let mut names: Vec<String> = nodes.iter().map(|n| self.name_of(*n)).collect();
        names.sort();
        nodes.iter().all(|n| self.providers(*n) == names)
    }

    /// Waits until a fact holds. Returns the time that it took. Fails `SLACK` after the bound.
    fn until(&self, bound: Duration, what: &str, fact: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !fact(self) {
            assert!(start.elapsed() < bound + SLACK, "not within {bound:?}: {what}\n{}", self.describe());
            std::thread::sleep(POLL);
        }
        let took = start.elapsed();
        let late = if took > bound { ": late" } else { "" };
        println!("{what}: {took:?}{late}");
        took
    }

    /// Asserts that a condition holds for this long. Only for claims that an event does not happen.
    fn throughout(&self, time: Duration, what: &str, fact: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while start.elapsed() < time {
            assert!(fact(self), "no longer after {:?}: {what}\n{}", start.elapsed(), self.describe());
            std::thread::sleep(POLL * 10);
        }
    }
}
