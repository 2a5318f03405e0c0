//! What a scenario can do with a cluster, whatever the cluster is made of.

use std::time::{Duration, Instant};

/// How often a fact is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Which node of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRef(pub(crate) usize);

/// A cluster: processes in namespaces ([`Lab`](crate::Lab)), or swarms in one process ([`Swarms`](crate::Swarms)).
pub trait Cluster {
    /// Starts a node of this name that offers grading and finds the others.
    fn add(&mut self, name: &str) -> NodeRef;
    /// Ends a node without a word.
    fn crash(&mut self, node: NodeRef);
    /// Lets a node say goodbye and end.
    fn leave(&mut self, node: NodeRef);
    /// The name of a node.
    fn name_of(&self, node: NodeRef) -> String;
    /// The state in which a node sees a member of this name; of several, the one that is present.
    fn sees(&self, by: NodeRef, name: &str) -> Option<String>;
    /// The names of the nodes that a node lists as providers of grading, sorted.
    fn providers(&self, by: NodeRef) -> Vec<String>;
    /// The hash over everything a node knows.
    fn root(&self, by: NodeRef) -> Option<String>;
    /// What every node sees, for when a fact does not come true.
    fn describe(&self) -> String;

    /// Whether these nodes have equal root hashes.
    fn agree(&self, nodes: &[NodeRef]) -> bool {
        let hashes: Vec<_> = nodes.iter().map(|n| self.root(*n)).collect();
        hashes.iter().all(|h| h.is_some() && *h == hashes[0])
    }

    /// Whether each of these nodes lists exactly all of them as providers.
    fn all_list_all(&self, nodes: &[NodeRef]) -> bool {
        let mut names: Vec<String> = nodes.iter().map(|n| self.name_of(*n)).collect();
        names.sort();
        nodes.iter().all(|n| self.providers(*n) == names)
    }

    /// Waits for a fact.
    fn until(&self, bound: Duration, what: &str, fact: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !fact(self) {
            assert!(start.elapsed() < bound, "not within {bound:?}: {what}\n{}", self.describe());
            std::thread::sleep(POLL);
        }
        println!("{what}: {:?}", start.elapsed());
        start.elapsed()
    }

    /// Asserts that something stays true for as long as this: for claims that something does not happen.
    fn throughout(&self, time: Duration, what: &str, fact: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while start.elapsed() < time {
            assert!(fact(self), "no longer after {:?}: {what}\n{}", start.elapsed(), self.describe());
            std::thread::sleep(POLL * 10);
        }
    }
}
