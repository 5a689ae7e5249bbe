//! Nodes are only lent to an observer.

use llama_rs::{NodeObserver, NodeRef};

struct Keeping(Vec<&'static str>);

impl NodeObserver for Keeping {
    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        self.0.push(nodes[0].name());
    }
}

fn main() {}
