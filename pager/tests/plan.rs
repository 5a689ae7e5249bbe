//! Slices and memory plans of the shapes of real models, and of files.

mod common;

use std::fs;

use common::slices_of;
use gguf::{ModelFiles, split_model};
use model_shapes::{Shape, generate};
use pager::plan::PartKind;
use pager::slices::Projection;
use pager::{Demand, MemoryPlan, Pages, SliceId, Slices};

const DEMAND: Demand = Demand {
    kv_bytes: 50 << 20,
    compute_bytes: 100 << 20,
    outputs_bytes: 1 << 20,
    process_bytes: 60 << 20,
    staging_bytes: 8 << 20,
    n_ubatch: 512,
};

fn shape(name: &str, n_used: u32) -> Slices {
    slices_of(&Shape::by_name(name).unwrap(), n_used)
}

fn plan(slices: &Slices, budget_bytes: u64) -> MemoryPlan {
    let plan = MemoryPlan::new(slices, budget_bytes, &DEMAND, Pages::default()).unwrap();
    let spent: u64 = plan.parts.iter().map(|part| part.size_bytes).sum();
    assert_eq!(spent + plan.unused_bytes(), budget_bytes);
    assert!(plan.budget_min_bytes <= budget_bytes);
    plan
}

/// The numbers lead to the bytes that the file's table names, whatever part of the model they are in.
#[test]
fn slices_of_files() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"] {
        let path = folder.path().join("model.gguf");
        generate(&Shape::by_name(name).unwrap(), &path, 1, &mut |_, _| ()).unwrap();
        let whole = ModelFiles::open(&path).unwrap();
        let parts = split_model(&whole, &folder.path().join(name), 3).unwrap();
        for model in [whole, ModelFiles::open(&parts[0]).unwrap()] {
            let slices = Slices::new(&model).unwrap();
            let metadata = model.metadata();
            let n_used = metadata.u32(&format!(
                "{}.expert_used_count",
                metadata.architecture().unwrap()
            ));
            assert_eq!(slices.n_experts_used(), n_used.unwrap());
            let (mut n_slices, mut covered_bytes) = (0, 0);
            for (index, (part, tensor)) in model.tensors().enumerate() {
                assert_eq!(slices.tensor(&tensor.name), Some(index));
                if !gguf::is_expert_name(&tensor.name) {
                    assert_eq!(slices.id(index, 0), None, "{}", tensor.name);
                    let mut ranges = slices.dense_ranges(4096).into_iter();
                    let inside = |range: &pager::slices::DenseRange| {
                        range.part == part
                            && range.offset <= tensor.offset
                            && tensor.offset + tensor.size_bytes <= range.offset + range.size_bytes
                    };
                    assert_eq!(ranges.by_ref().filter(inside).count(), 1, "{}", tensor.name);
                    covered_bytes += tensor.size_bytes;
                    continue;
                }
                let n_experts = *tensor.dims.last().unwrap() as u32;
                assert_eq!(slices.id(index, n_experts), None);
                for expert in 0..n_experts {
                    let id = slices.id(index, expert).unwrap();
                    let slice = slices.slice(id);
                    assert_eq!((slice.part, slice.expert), (part, expert));
                    assert_eq!(
                        slice.offset,
                        tensor.offset + u64::from(expert) * tensor.slice_bytes()
                    );
                    assert_eq!(slice.size_bytes, tensor.slice_bytes());
                    assert!(tensor.name.starts_with(&format!("blk.{}.", slice.layer)));
                    let pages = slice.pages(4096);
                    assert!(
                        pages.start <= slice.offset && slice.offset + slice.size_bytes <= pages.end
                    );
                    assert!(pages.start.is_multiple_of(4096) && pages.end.is_multiple_of(4096));
                    let expert: Vec<_> = slices.expert(id).collect();
                    assert!(expert.len() == 3 && expert.contains(&id));
                    assert!(
                        expert
                            .iter()
                            .all(|other| slices.slice(*other).expert == slice.expert)
                    );
                    n_slices += 1;
                }
            }
            assert_eq!(slices.len(), n_slices);
            assert_eq!(slices.dense_bytes(), covered_bytes);
            assert_eq!(
                slices.iter().map(|slice| slice.size_bytes).sum::<u64>(),
                slices.sparse_bytes()
            );
            let stacks = slices.sparse_tensors();
            assert!(
                stacks
                    .windows(2)
                    .all(|pair| pair[0].first < pair[1].first && pair[0].layer <= pair[1].layer)
            );
            assert_eq!(
                stacks
                    .iter()
                    .filter(|stack| stack.projection == Projection::Down)
                    .count()
                    * 3,
                stacks.len()
            );
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn dense_ranges_do_not_meet() {
    for (name, n_used) in [
        ("gpt-oss-20b", 4),
        ("qwen3-30b-a3b", 8),
        ("deepseek-v2-lite", 6),
    ] {
        let slices = shape(name, n_used);
        let ranges = slices.dense_ranges(4096);
        assert!(
            ranges
                .windows(2)
                .all(|pair| pair[0].offset + pair[0].size_bytes < pair[1].offset)
        );
        let bytes: u64 = ranges.iter().map(|range| range.size_bytes).sum();
        // Each border wastes less than a page.
        let waste = bytes - slices.dense_bytes();
        assert!(
            waste < 2 * 4096 * ranges.len() as u64 + (1 << 16),
            "{name}: {waste}"
        );
        for range in &ranges {
            let ordinary = range.size_bytes - range.huge_bytes(2 << 20);
            assert!(ordinary < 2 * (2 << 20), "{name}: {ordinary} in {range:?}");
        }
    }
}

#[test]
fn slots_of_real_shapes() {
    // Sizes of slots, and slots of the smallest class that a ubatch or a token needs.
    for (name, n_used, n_classes) in [
        ("gpt-oss-20b", 4, 1),
        ("qwen3-30b-a3b", 8, 2),
        ("deepseek-v2-lite", 6, 3),
    ] {
        let slices = shape(name, n_used);
        let plan = plan(&slices, slices.total_bytes() * 6 / 10);
        assert_eq!(plan.slots.len(), n_classes, "{name}: {:?}", plan.slots);
        assert!(
            plan.n_embedding_rows == 512 && slices.embedding().is_some(),
            "{name}"
        );
        let table = plan.pool_slices(&slices);
        assert_eq!(table.len(), slices.len());
        for (id, entry) in (0..).zip(&table) {
            let pages = slices.slice(SliceId(id)).pages(4096);
            assert!(pages.end - pages.start <= plan.slots[entry.class as usize].slot_bytes);
        }
        let shares = plan
            .slots
            .iter()
            .map(|class| f64::from(class.n_slots) / f64::from(class.n_slices));
        let (least, most) = shares.fold((1.0f64, 0.0f64), |(a, b), share| {
            (a.min(share), b.max(share))
        });
        assert!(
            most - least < 0.01 && least > 0.2,
            "{name}: {:?}",
            plan.slots
        );
        // No more than a slot of each class and the rounding of regions is left over.
        let left = plan
            .slots
            .iter()
            .map(|class| class.slot_bytes + (2 << 20))
            .sum::<u64>()
            + (1 << 20);
        assert!(
            plan.unused_bytes() <= 2 * left,
            "{name}: {}",
            plan.unused_bytes()
        );
        let waste = plan
            .slots
            .iter()
            .map(|class| class.slot_bytes * u64::from(class.n_slices))
            .sum::<u64>();
        assert!(
            waste as f64 <= slices.sparse_bytes() as f64 * 1.06,
            "{name}"
        );
    }
}

#[test]
fn enough_memory_holds_everything() {
    let slices = shape("gpt-oss-20b", 4);
    let plan = plan(&slices, slices.total_bytes() * 2);
    assert!(
        plan.slots
            .iter()
            .all(|class| class.n_slots == class.n_slices)
    );
    assert!(plan.unused_bytes() > slices.total_bytes() / 2);
}

/// The budget that the error names works, and one byte less does not.
#[test]
fn the_smallest_budget() {
    for (name, n_used) in [
        ("gpt-oss-20b", 4),
        ("qwen3-30b-a3b", 8),
        ("deepseek-v2-lite", 6),
        ("llama-dense", 0),
    ] {
        let slices = shape(name, n_used);
        let new = |budget_bytes| MemoryPlan::new(&slices, budget_bytes, &DEMAND, Pages::default());
        let error = new(1 << 20).unwrap_err();
        assert_eq!(
            MemoryPlan::budget_min_bytes(&slices, &DEMAND, Pages::default()),
            error.budget_min_bytes
        );
        let smallest = plan(&slices, error.budget_min_bytes);
        assert_eq!(smallest.budget_min_bytes, error.budget_min_bytes);
        assert!(
            smallest
                .slots
                .iter()
                .all(|class| class.n_slots >= class.n_slots_min && class.n_slots_min > 0)
        );
        let error = new(error.budget_min_bytes - 1).unwrap_err();
        assert_eq!(
            error.parts.iter().map(|part| part.size_bytes).sum::<u64>(),
            error.budget_min_bytes
        );
        let message = error.to_string();
        for expected in [
            "KV cache",
            "dense weights",
            "margin",
            "--budget",
            "too small",
        ] {
            assert!(message.contains(expected), "{name}: {message}");
        }
    }
}

#[test]
fn a_dense_model_is_streamed() {
    let slices = shape("llama-dense", 0);
    assert!(slices.is_empty());
    let all = plan(&slices, slices.total_bytes() * 2);
    assert_eq!(all.dense_stream, None);
    assert!(all.part_bytes(PartKind::DenseWeights) >= slices.dense_bytes());
    let mut streamed_before = 0;
    for percent in [90, 71, 50, 30] {
        let plan = plan(&slices, slices.total_bytes() * percent / 100);
        let stream = plan.dense_stream.clone().unwrap();
        assert!(stream.streamed_bytes > streamed_before, "{percent} %");
        streamed_before = stream.streamed_bytes;
        assert_eq!(plan.part_bytes(PartKind::DenseWeights), stream.size_bytes());
        let tensors = slices.dense_tensors();
        let streamed: Vec<_> = stream
            .streamed
            .iter()
            .map(|&index| &tensors[index])
            .collect();
        let bytes: u64 = streamed.iter().map(|tensor| tensor.size_bytes).sum();
        assert!(stream.streamed_bytes - bytes <= 2 * 4096 * streamed.len() as u64);
        let largest = streamed
            .iter()
            .map(|tensor| tensor.size_bytes)
            .max()
            .unwrap();
        assert!(stream.ring_bytes >= 2 * largest);
        // Not one matrix more than needed is streamed.
        assert!(plan.unused_bytes() < 2 * largest, "{percent} %: {plan}");
        // Evenly: each quarter of the layers has about a quarter of the bytes.
        for quarter in 0..4 {
            let is_in = |layer: Option<u32>| layer.is_some_and(|layer| layer / 8 == quarter);
            let bytes = streamed.iter().filter(|tensor| is_in(tensor.layer));
            let share = bytes.map(|tensor| tensor.size_bytes).sum::<u64>() as f64;
            let share = share / stream.streamed_bytes as f64;
            assert!((0.2..0.3).contains(&share), "{percent} %: {share}");
        }
    }
}

/// Experts and dense matrices at once: every token reads the latter, so what fits of them comes before all but the fewest slots.
#[test]
fn dense_weights_of_a_mixture_are_streamed_where_they_do_not_fit() {
    let slices = shape("gpt-oss-20b", 4).with_dense_on_demand();
    let plan = plan(&slices, 2_500_000_000);
    let stream = plan.dense_stream.clone().unwrap();
    assert!(stream.size_bytes() < slices.dense_bytes());
    assert!(
        plan.slots
            .iter()
            .all(|class| class.n_slots >= class.n_slots_min)
    );
    assert!(plan.unused_bytes() < stream.ring_bytes, "{plan}");
}

#[test]
fn a_plan_for_people_and_for_programs() {
    let slices = shape("gpt-oss-20b", 4);
    let plan = plan(&slices, 7_000_000_000);
    let text = plan.to_string();
    for expected in [
        "KV cache",
        "slots for experts",
        "unused",
        "slots of 4.2 MiB: ",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["slots"][0]["n_slots"], plan.slots[0].n_slots);
    assert_eq!(json["parts"][0]["kind"], "kv_cache");
}
