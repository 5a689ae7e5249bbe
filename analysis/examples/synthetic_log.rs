//! Writes a log of the shape of gpt-oss-20b with random experts, to measure what reading a large log costs:
//! `cargo run --release -p analysis --example synthetic_log -- big.ftrace 100000000`.

use std::error::Error;

use tracer::{
    Access, BlockRead, Fault, Flags, KernelMark, LogWriter, ModelFile, Node, OnFull, Op, Record,
    Tables, Tensor, WHOLE,
};

const N_LAYERS: u32 = 24;
const N_EXPERTS: u32 = 32;
const N_USED: u32 = 4;
const N_ROWS: u32 = 201_088;

/// Component, bytes, and whether it has a slice for each expert.
const LAYER: [(&str, u64, bool); 14] = [
    ("attn_norm.weight", 11_520, false),
    ("attn_q.weight", 12_533_760, false),
    ("attn_k.weight", 1_566_720, false),
    ("attn_v.weight", 1_566_720, false),
    ("attn_output.weight", 12_533_760, false),
    ("post_attention_norm.weight", 11_520, false),
    ("ffn_gate_inp.weight", 368_640, false),
    ("ffn_gate_exps.weight", 141_004_800, true),
    ("ffn_gate_exps.bias", 368_640, true),
    ("ffn_up_exps.weight", 141_004_800, true),
    ("ffn_up_exps.bias", 368_640, true),
    ("ffn_down_exps.weight", 141_004_800, true),
    ("ffn_down_exps.bias", 368_640, true),
    ("attn_sinks.weight", 256, false),
];

fn tables() -> Tables {
    let mut tensors = Vec::new();
    let mut at = 13 << 20;
    let mut add = |name: String, layer: i32, size_bytes: u64, n_slices: u32| {
        let (_, component) = name.rsplit_once("blk.").unwrap_or(("", &name));
        let component = component.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let component = component.split('.').next().unwrap_or_default().to_owned();
        tensors.push(Tensor {
            component,
            name,
            offset_bytes: at,
            size_bytes,
            slice_stride_bytes: size_bytes / u64::from(n_slices),
            n_slices,
            layer,
            ..Tensor::default()
        });
        at += size_bytes.next_multiple_of(32);
    };
    add("token_embd.weight".into(), -1, 615_329_280, N_ROWS);
    for layer in 0..N_LAYERS {
        for (name, size_bytes, is_experts) in LAYER {
            let n_slices = if is_experts { N_EXPERTS } else { 1 };
            add(
                format!("blk.{layer}.{name}"),
                layer as i32,
                size_bytes,
                n_slices,
            );
        }
    }
    add("output.weight".into(), -1, 615_329_280, 1);
    Tables {
        files: vec![ModelFile {
            path: "synthetic.gguf".into(),
            size_bytes: at,
        }],
        tensors,
        ..Tables::default()
    }
}

/// A generator of Knuth's, good enough for a log.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }

    /// Different experts, low numbers more often than high ones.
    fn experts(&mut self) -> [u32; N_USED as usize] {
        let mut experts = [0; N_USED as usize];
        for index in 0..experts.len() {
            loop {
                let expert = self.below(N_EXPERTS).min(self.below(N_EXPERTS));
                if !experts[..index].contains(&expert) {
                    experts[index] = expert;
                    break;
                }
            }
        }
        experts
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(n_records)) = (arguments.next(), arguments.next()) else {
        return Err("usage: synthetic_log LOG RECORDS".into());
    };
    let n_records: u64 = n_records.parse()?;
    let tables = tables();
    let size_bytes = n_records * tracer::RECORD_BYTES as u64 + (8 << 20);
    let mut log = LogWriter::create(&path, &tables, size_bytes, OnFull::Stop)?;
    let mut random = Random(1);
    let (mut n_written, mut time_ns) = (0, 1_000_000);
    for step in 0.. {
        if n_written >= n_records {
            break;
        }
        let begin_ns = time_ns;
        let flags = Flags::default();
        log.push_mark(Record::step_begin(begin_ns, step, 1, 1, flags));
        log.push_mark(Record::step_token(
            begin_ns,
            step,
            0,
            7,
            step.cast_signed(),
            0,
            flags,
        ));
        log.push_mark(Record::ubatch_begin(begin_ns, step, 0, 0, 1, flags));
        n_written += 4;
        let mut experts = random.experts();
        for (id, tensor) in (0..).zip(&tables.tensors) {
            if tensor.component == "attn_norm" {
                experts = random.experts();
            }
            time_ns += 20_000;
            let is_experts = tensor.n_slices == N_EXPERTS;
            let op = match (is_experts, tensor.name.ends_with(".bias")) {
                (true, true) => Op::ADD_ID,
                (true, false) => Op::MUL_MAT_ID,
                _ if tensor.n_slices == N_ROWS => Op::GET_ROWS,
                _ => Op::MUL_MAT,
            };
            let node = Node {
                time_ns,
                duration_ns: 15_000,
                step,
                op,
                ..Node::default()
            };
            let access = |slice| Access {
                tensor: id,
                slice,
                n_used: 1,
            };
            if is_experts {
                log.push_node(&node, experts.map(access));
                n_written += u64::from(N_USED);
            } else {
                let slice = match op {
                    Op::GET_ROWS => random.below(N_ROWS),
                    _ => WHOLE,
                };
                log.push_node(&node, [access(slice)]);
                n_written += 1;
            }
        }
        for _ in 0..16 {
            let tensor = &tables.tensors[random.below(tables.tensors.len() as u32) as usize];
            let offset_bytes = tensor.offset_bytes / 4096 * 4096;
            let fault = Fault {
                time_ns,
                file: 0,
                offset_bytes,
                is_major: true,
            };
            let read = BlockRead {
                time_ns,
                latency_ns: 50_000 + random.below(1_000_000),
                file: 0,
                offset_bytes,
                size_bytes: 128 << 10,
            };
            log.push_mark(KernelMark::Fault(fault).record(step, flags));
            log.push_mark(KernelMark::BlockRead(read).record(step, flags));
            n_written += 2;
        }
        log.push_mark(Record::step_end(begin_ns, time_ns - begin_ns, step, flags));
    }
    log.finish()?;
    Ok(())
}
