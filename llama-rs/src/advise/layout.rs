//! Which tensors of a model are read slice by slice with the same indices.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use gguf::ModelFiles;

/// A tensor of matrices in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Index of the file.
    pub(super) part: usize,
    /// Offset of the first matrix in the file.
    pub(super) offset: u64,
    /// Bytes of a matrix.
    pub(super) slice_bytes: u64,
    /// Number of matrices.
    pub(super) slices: u32,
}

impl Member {
    /// Bytes of all matrices.
    pub(super) fn bytes(&self) -> u64 {
        self.slice_bytes * u64::from(self.slices)
    }
}

/// Tensors that are read with the same indices, such as gate, up and down of a layer's experts, in the order of the
/// computation.
pub(super) type Group = Vec<Member>;

/// Where a tensor is: group and member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: usize,
    pub(super) member: usize,
}

/// The groups of a model, and where each tensor is, by name.
pub(super) fn groups(files: &ModelFiles) -> (Vec<Group>, HashMap<String, (Place, Member)>) {
    let mut experts: Vec<_> = files
        .tensors()
        .filter(|(_, tensor)| gguf::is_expert_name(&tensor.name) && tensor.dims.len() == 3)
        .collect();
    experts.sort_by_key(|(_, tensor)| projection_order(&tensor.name));

    let mut groups: Vec<Group> = Vec::new();
    let mut by_key: HashMap<String, usize> = HashMap::new();
    let mut places = HashMap::new();
    for (part, tensor) in experts {
        let group = match by_key.entry(group_key(&tensor.name)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                groups.push(Group::new());
                *new.insert(groups.len() - 1)
            }
        };
        let slices = tensor.dims[2];
        let member = Member {
            part,
            offset: tensor.offset,
            slice_bytes: tensor.size_bytes / slices.max(1),
            slices: u32::try_from(slices).unwrap_or(0),
        };
        let place = Place {
            group,
            member: groups[group].len(),
        };
        places.insert(tensor.name.clone(), (place, member.clone()));
        groups[group].push(member);
    }
    (groups, places)
}

/// Position of a projection in the computation of a layer; llama.cpp computes gate, up, down.
fn projection_order(name: &str) -> u8 {
    match name {
        _ if name.contains("_gate") => 0,
        _ if name.contains("_up_") => 1,
        _ => 2,
    }
}

/// The name without the projection: equal for tensors that are read with the same indices.
fn group_key(name: &str) -> String {
    name.replace("_gate_up_", "_")
        .replace("_gate_", "_")
        .replace("_up_", "_")
        .replace("_down_", "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_of_a_layer_share_a_key() {
        let key = group_key("blk.3.ffn_gate_exps.weight");
        assert_eq!(key, group_key("blk.3.ffn_up_exps.weight"));
        assert_eq!(key, group_key("blk.3.ffn_down_exps.weight"));
        assert_eq!(key, group_key("blk.3.ffn_gate_up_exps.weight"));
        assert_ne!(key, group_key("blk.4.ffn_gate_exps.weight"));
        assert_ne!(key, group_key("blk.3.ffn_gate_chexps.weight"));
        assert_ne!(key, group_key("blk.3.attn_v_exps.weight"));
    }

    #[test]
    fn order_follows_the_computation() {
        let mut names = ["ffn_down_exps", "ffn_up_exps", "ffn_gate_exps"];
        names.sort_by_key(|name| projection_order(name));
        assert_eq!(names, ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]);
        assert!(projection_order("ffn_gate_up_exps") < projection_order("ffn_down_exps"));
    }
}
