//! What a graph is known to read: looked up once, used each time the graph is computed again.

use std::num::NonZeroU64;

use llama_rs::{GraphRef, NodeRef};

use crate::{Access, Op};

/// Graphs that are known: those of decoding, of prompts, and some to spare.
const N_PLANS: usize = 8;

/// One access of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) access: Access,
    /// Which of the nodes that are computed as one.
    pub(super) place: u16,
    pub(super) op: Op,
}

/// Where a node's accesses are in the plan.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: u32,
    count: u16,
    /// How many nodes were computed as one; 0 for nodes that are not known, or read what the indices say.
    n_nodes: u16,
}

impl Place {
    const UNKNOWN: Place = Place {
        first: 0,
        count: 0,
        n_nodes: 0,
    };
}

/// What the nodes of one graph read, as far as it is the same each time.
#[derive(Debug)]
struct Plan {
    id: Option<NonZeroU64>,
    n_tokens: u32,
    /// By index of the node.
    places: Vec<Place>,
    accesses: Vec<Planned>,
}

/// The plans of some graphs, one of which is being computed.
#[derive(Debug, Default)]
pub(super) struct Plans {
    plans: Vec<Plan>,
    current: usize,
}

impl Plans {
    /// A graph is computed now. Gives the number of its tokens, 0 where it looks none up.
    pub(super) fn begin(&mut self, graph: &GraphRef<'_>) -> u32 {
        let known = graph
            .id()
            .and_then(|id| self.plans.iter().position(|plan| plan.id == Some(id)));
        self.current = known.unwrap_or_else(|| {
            // Graphs without an id are not found again.
            let is_spent = self.plans.last().is_some_and(|plan| plan.id.is_none());
            if is_spent {
                self.plans.pop();
            } else if self.plans.len() == N_PLANS {
                self.plans.remove(0);
            }
            self.plans.push(Plan {
                id: graph.id(),
                n_tokens: n_tokens(graph.nodes()),
                places: vec![Place::UNKNOWN; graph.nodes().len()],
                accesses: Vec::new(),
            });
            self.plans.len() - 1
        });
        self.plans[self.current].n_tokens
    }

    /// What the nodes from `index` on read that are computed as one; `None` when that is not known.
    #[inline]
    pub(super) fn get(&self, index: usize, n_nodes: usize) -> Option<&[Planned]> {
        let plan = self.plans.get(self.current)?;
        let place = plan.places.get(index)?;
        if place.n_nodes == 0 || usize::from(place.n_nodes) != n_nodes {
            return None;
        }
        let first = place.first as usize;
        plan.accesses.get(first..first + usize::from(place.count))
    }

    /// Keeps what these nodes read each time.
    pub(super) fn learn(&mut self, index: usize, n_nodes: usize, accesses: &[Planned]) {
        let Some(plan) = self.plans.get_mut(self.current) else {
            return;
        };
        let numbers = (
            u32::try_from(plan.accesses.len()),
            u16::try_from(accesses.len()),
            u16::try_from(n_nodes),
        );
        if let (Some(place), (Ok(first), Ok(count), Ok(n_nodes))) =
            (plan.places.get_mut(index), numbers)
        {
            plan.accesses.extend_from_slice(accesses);
            *place = Place {
                first,
                count,
                n_nodes,
            };
        }
    }
}

/// Tokens of a graph: those that its first look-up in a weight, the token embedding, gives rows for.
fn n_tokens(nodes: &[NodeRef<'_>]) -> u32 {
    let looks_up = |node: &&NodeRef<'_>| {
        node.op() == "GET_ROWS" && node.source(0).is_some_and(|rows| rows.weight().is_some())
    };
    let n_tokens = nodes
        .iter()
        .find(looks_up)
        .map_or(0, |node| node.n_tokens());
    u32::try_from(n_tokens).unwrap_or(u32::MAX)
}

/// Whether what a node reads follows from its indices, and so is different each time.
pub(super) fn selects(node: NodeRef<'_>) -> bool {
    matches!(node.op(), "GET_ROWS" | "MUL_MAT_ID" | "ADD_ID")
}
