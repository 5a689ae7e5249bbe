//! Reports of logs that are made here, against the same numbers computed in the plainest way.

mod naive;

use std::path::Path;

use analysis::log::Log;
use analysis::report::{self, Layout, Options, Question, Report};
use naive::Naive;
use tracer::{
    Access, BlockRead, Extent, ExtentFlags, Fault, Flags, KernelMark, LogReader, LogWriter,
    ModelFile, NO_STEP, Node, OnFull, Op, Record, Resident, Tables, Tensor, WHOLE,
};

const N_EXPERTS: u32 = 8;
const EMBEDDING: u32 = 0;
const OUTPUT: u32 = 1;
/// Of layer 0; those of layer 1 follow.
const ATTENTION: u32 = 2;
const UP: u32 = 3;
const BIAS: u32 = 4;
const PER_LAYER: u32 = 3;

fn tables() -> Tables {
    let mut at = 4096;
    let mut tensor = |name: &str, layer: i32, size_bytes: u64, n_slices: u32| {
        let begin = at;
        at += size_bytes.next_multiple_of(4096);
        Tensor {
            component: name.rsplit('.').nth(1).unwrap().to_owned(),
            name: name.to_owned(),
            offset_bytes: begin,
            size_bytes,
            slice_stride_bytes: size_bytes / u64::from(n_slices),
            n_slices,
            layer,
            ..Tensor::default()
        }
    };
    let mut tensors = vec![
        tensor("token_embd.weight", -1, 64_000, 100),
        tensor("output.weight", -1, 300_000, 1),
    ];
    for layer in 0..2 {
        let name = |rest: &str| format!("blk.{layer}.{rest}");
        tensors.push(tensor(&name("attn_q.weight"), layer, 10_000, 1));
        tensors.push(tensor(
            &name("ffn_up_exps.weight"),
            layer,
            320_000,
            N_EXPERTS,
        ));
        tensors.push(tensor(&name("ffn_up_exps.bias"), layer, 800, N_EXPERTS));
    }
    Tables {
        files: vec![ModelFile {
            path: "made-up.gguf".into(),
            size_bytes: at,
        }],
        tensors,
        ..Tables::default()
    }
}

struct Writer {
    log: LogWriter,
    time_ns: u64,
    random: u64,
    position: i32,
}

impl Writer {
    fn create(path: &Path, capacity_bytes: u64) -> Writer {
        Writer {
            log: LogWriter::create(path, &tables(), capacity_bytes, OnFull::Wrap).unwrap(),
            time_ns: 1_000,
            random: 42,
            position: 0,
        }
    }

    fn below(&mut self, n: u32) -> u32 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((self.random >> 33) % u64::from(n)) as u32
    }

    fn node(&mut self, step: u32, flags: Flags, op: Op, tensor: u32, slices: &[u32]) {
        self.time_ns += 1_000;
        let node = Node {
            time_ns: self.time_ns,
            duration_ns: 500 + u64::from(tensor),
            step,
            op,
            flags,
            ..Node::default()
        };
        let accesses = slices.iter().map(|&slice| Access {
            tensor,
            slice,
            n_used: 1,
        });
        self.log.push_node(&node, accesses);
    }

    /// A step that uses two experts of each layer, low numbers more often.
    fn step(&mut self, step: u32, n_tokens: u32, swapped: bool) {
        let flags = if n_tokens > 1 {
            Flags::PROMPT
        } else {
            Flags::default()
        };
        let begin_ns = self.time_ns;
        self.log
            .push(Record::step_begin(begin_ns, step, n_tokens, 1, flags));
        for index in 0..n_tokens {
            let position = self.position;
            self.log.push(Record::step_token(
                begin_ns, step, index, 5, position, 0, flags,
            ));
            self.position += 1;
        }
        self.log
            .push(Record::ubatch_begin(begin_ns, step, 0, 0, n_tokens, flags));
        let rows: Vec<u32> = (0..n_tokens).map(|_| self.below(100)).collect();
        self.node(step, flags, Op::GET_ROWS, EMBEDDING, &rows);
        for layer in 0..2 {
            let tensor = |id: u32| id + layer * PER_LAYER;
            self.node(step, flags, Op::MUL_MAT, tensor(ATTENTION), &[WHOLE]);
            let first = self.below(N_EXPERTS - 1).min(self.below(N_EXPERTS - 1));
            let experts = [first, first + 1 + self.below(N_EXPERTS - 1 - first)];
            let mut ops = [(Op::MUL_MAT_ID, tensor(UP)), (Op::ADD_ID, tensor(BIAS))];
            if swapped && layer == 1 {
                ops.reverse();
            }
            for (op, tensor) in ops {
                self.node(step, flags, op, tensor, &experts);
            }
        }
        self.node(step, flags, Op::MUL_MAT, OUTPUT, &[WHOLE]);
        self.time_ns += 2_000;
        let duration_ns = self.time_ns - begin_ns;
        self.log
            .push(Record::step_end(begin_ns, duration_ns, step, flags));
    }

    fn mark(&mut self, step: u32, mark: KernelMark) {
        self.log.push_mark(mark.record(step, Flags::default()));
    }

    fn block_read(&mut self, step: u32, offset_bytes: u64, size_bytes: u64, latency_ns: u32) {
        self.time_ns += 10;
        let read = BlockRead {
            time_ns: self.time_ns,
            latency_ns,
            file: 0,
            offset_bytes,
            size_bytes,
        };
        self.mark(step, KernelMark::BlockRead(read));
    }
}

fn answer(path: &Path, options: &Options) -> Report {
    report::read(&Log::open(path, None).unwrap(), options).unwrap()
}

fn answer_all(path: &Path) -> Report {
    answer(path, &Options::default())
}

fn check(path: &Path) -> Report {
    let report = answer_all(path);
    let naive = Naive::of(&LogReader::open(path).unwrap());
    naive.check(&serde_json::to_value(&report).unwrap());
    report
}

#[test]
fn every_answer_equals_the_plain_computation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    writer.step(0, 7, false);
    for step in 1..200 {
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let report = check(&path);
    let about = &report.about;
    assert_eq!((about.n_prompt_tokens, about.n_decode_tokens), (7, 199));
    assert!(about.remarks.is_empty(), "{:?}", about.remarks);
    // Two of eight experts, matrices and biases.
    let waste = report.waste.unwrap();
    assert_eq!(waste.expert_share_per_token, Some(0.25));
    let coverage: Vec<u64> = waste.coverage.iter().map(|at| at.n_tokens).collect();
    assert!(
        coverage.contains(&1) && coverage.contains(&100) && coverage.last() == Some(&199),
        "{coverage:?}"
    );
    let determinism = report.determinism.unwrap();
    assert_eq!((determinism.n_kinds, determinism.difference), (1, None));
    let experts = report.experts.unwrap();
    let full = experts.curves[0].points.last().unwrap();
    assert_eq!(full.capacity_share, 1.0);
    // Everything fits: only first uses miss.
    let n_used: u64 = experts.layers.iter().map(|layer| 8 - layer.n_cold).sum();
    let expected = 1.0 - n_used as f64 / (199.0 * 4.0);
    assert!((full.hit_share - expected).abs() < 1e-12);
}

#[test]
fn the_first_step_that_is_different_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    for step in 0..10 {
        writer.step(step, 1, step == 4 || step == 7);
    }
    writer.log.finish().unwrap();
    let determinism = check(&path).determinism.unwrap();
    assert_eq!((determinism.n_equal, determinism.n_kinds), (7, 2));
    assert_eq!(determinism.n_dense_equal, 9);
    let difference = determinism.difference.unwrap();
    assert_eq!((difference.step, difference.n_equal), (4, 5));
    assert_eq!(
        difference.expected,
        "MUL_MAT_ID of slices of blk.1.ffn_up_exps.weight"
    );
    assert_eq!(
        difference.found,
        "ADD_ID of slices of blk.1.ffn_up_exps.bias"
    );
}

#[test]
fn what_is_read_from_the_device_again_is_told_by_tensor_and_expert() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    let tables = tables();
    let up = &tables.tensors[UP as usize];
    let page = |bytes: u64| bytes / 4096 * 4096;
    // Loading reads all of it; then pages of expert 3 come again, twice.
    writer.block_read(NO_STEP, page(up.offset_bytes), 81 * 4096, 100);
    writer.step(0, 1, false);
    let third = page(up.offset_bytes + 3 * up.slice_stride_bytes) + 4096;
    writer.block_read(0, third, 8192, 300);
    writer.step(1, 1, false);
    writer.block_read(1, third, 8192, 200);
    let fault = |offset_bytes, is_major| {
        KernelMark::Fault(Fault {
            time_ns: 9,
            file: 0,
            offset_bytes,
            is_major,
        })
    };
    writer.mark(1, fault(third, true));
    writer.mark(1, fault(third + 5, true));
    writer.mark(1, fault(4096, false));
    for (time_ns, n_resident) in [(5, 3), (6, 2)] {
        let resident = Resident {
            time_ns,
            tensor: UP,
            n_resident,
            n_pages: 80,
        };
        writer.mark(1, KernelMark::Resident(resident));
    }
    writer.log.finish().unwrap();
    let report = check(&path);

    let reuse = report.reuse.unwrap();
    let delivery = reuse.delivery.unwrap();
    assert_eq!(delivery.delivered_bytes, 85 * 4096);
    assert_eq!(delivery.again_bytes, 4 * 4096);
    assert_eq!(delivery.decode_delivered_bytes, 4 * 4096);
    let most = &delivery.tensors[0];
    assert_eq!(
        (most.name.as_str(), most.again_bytes),
        (up.name.as_str(), 4 * 4096)
    );
    assert_eq!(most.share_of_again, 1.0);
    let most = &delivery.experts[0];
    assert_eq!(
        (most.name.as_str(), most.again_bytes),
        ("layer 0, expert 3", 4 * 4096)
    );
    let consumed = Naive::of(&LogReader::open(&path).unwrap()).consumed();
    assert_eq!(
        delivery.decode_amplification,
        Some(4.0 * 4096.0 / consumed as f64)
    );
    let again = reuse.faults.unwrap();
    assert_eq!(
        (again.n_major, again.n_again, again.again_by_kind.experts),
        (2, 1, 1)
    );

    let order = report.order.unwrap();
    let blocks = order
        .views
        .iter()
        .find(|view| view.name == "block reads")
        .unwrap();
    assert_eq!((blocks.order.gaps.backward, blocks.order.n_runs), (2, 3));
    assert_eq!(blocks.covered_bytes, Some(81 * 4096));
    let requests = order.requests.unwrap();
    let latency = requests.latency.unwrap();
    assert_eq!(
        (latency.min_ns, latency.median_ns, latency.max_ns),
        (100, 200, 300)
    );
    let faults = report.faults.unwrap();
    assert_eq!(faults.decode.major_faults.experts, 2);
    assert_eq!(faults.decode.minor_faults.embedding, 1);
    let resident: Vec<u64> = faults
        .residency
        .iter()
        .map(|s| s.resident_bytes.experts)
        .collect();
    assert_eq!(resident, [3 * 4096, 2 * 4096]);
}

#[test]
fn pieces_of_a_file_make_other_gaps_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    for step in 0..3 {
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let size_bytes = tables().files[0].size_bytes;
    let extent = |from: u64, to: u64, device| Extent {
        file_offset_bytes: from,
        device_offset_bytes: device,
        size_bytes: to - from,
        flags: ExtentFlags::default(),
    };
    let views = |extents: Vec<Extent>| {
        let options = Options {
            questions: vec![Question::Order],
            layout: Some(Layout::new(vec![extents])),
        };
        let report = answer(&path, &options);
        assert!(report.waste.is_none(), "only what was asked");
        let order = report.order.unwrap();
        let gaps = |name: &str| {
            let view = order.views.iter().find(|view| view.name == name).unwrap();
            view.order.gaps
        };
        (
            order.n_pieces,
            gaps("accesses"),
            gaps("accesses on the device"),
        )
    };
    let (n_pieces, in_file, on_device) = views(vec![extent(0, size_bytes, 1 << 30)]);
    assert_eq!(n_pieces, Some(1));
    assert_eq!(
        in_file, on_device,
        "one piece: the order is that of the file"
    );
    // The output is cut in two, whose halves are swapped.
    let middle = tables().tensors[OUTPUT as usize].offset_bytes + 131_072;
    let pieces = vec![
        extent(0, middle, 1 << 30),
        extent(middle, size_bytes, 1 << 20),
    ];
    let (n_pieces, in_file, on_device) = views(pieces);
    assert_eq!(n_pieces, Some(2));
    assert_eq!(
        on_device.total(),
        in_file.total() + 3,
        "each read of the output is two"
    );
    assert!(on_device.backward > in_file.backward);
}

#[test]
fn a_log_that_has_lost_its_beginning_says_what_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 200 << 10);
    for step in 0..2000 {
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let report = answer_all(&path);
    let about = &report.about;
    assert!(about.n_lost > 0 && about.n_cut_steps == 1, "{about:?}");
    assert!(
        about.remarks[0].contains("are missing"),
        "{:?}",
        about.remarks
    );
    let words = |question| {
        let sections = report.sections();
        let section = sections
            .into_iter()
            .find(|section| section.question == question);
        section.unwrap().cannot.join("\n")
    };
    assert!(
        words(Question::Waste).contains("that are missing read"),
        "{}",
        words(Question::Waste)
    );
    assert!(words(Question::Timeline).contains("lost its beginning"));
    assert!(words(Question::Faults).contains("--faults"));
    assert!(words(Question::Reuse).contains("--block"));
    assert!(words(Question::Order).contains("--model"));
    // The rest is answered, by whole steps.
    let naive = Naive::of(&LogReader::open(&path).unwrap());
    assert_eq!(
        report.determinism.as_ref().unwrap().n_compared + 1,
        naive.n_steps()
    );
    assert_eq!(
        report.waste.as_ref().unwrap().expert_share_per_token,
        Some(0.25)
    );
}

#[test]
fn an_empty_log_and_one_of_nothing_but_prompts_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    Writer::create(&path, 1 << 20).log.finish().unwrap();
    let report = answer_all(&path);
    assert!(report.about.remarks[0].contains("no accesses"));
    let text = report.markdown(None);
    assert!(
        text.contains("No answer") && !text.contains("NaN"),
        "{text}"
    );

    let mut writer = Writer::create(&path, 1 << 20);
    writer.step(0, 5, false);
    writer.log.finish().unwrap();
    let report = answer_all(&path);
    assert_eq!(report.experts.as_ref().unwrap().phase, "prompt");
    let text = report.markdown(None);
    assert!(
        text.contains("no whole step of the log generates one token"),
        "{text}"
    );
    assert!(!text.contains("NaN"), "{text}");
}

#[test]
fn records_that_contradict_the_tables_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    writer.step(0, 1, false);
    for (tensor, slice) in [(77, WHOLE), (UP, N_EXPERTS), (u32::MAX, 0)] {
        writer.node(0, Flags::default(), Op(17), tensor, &[slice]);
    }
    writer.log.push(Record {
        op: Op(255),
        tensor: u32::MAX,
        step: 3,
        ..Record::default()
    });
    writer.step(1, 1, false);
    writer.log.finish().unwrap();
    let report = answer_all(&path);
    let remarks = report.about.remarks.join("\n");
    assert!(
        remarks.contains("3 reads of tensors or slices"),
        "{remarks}"
    );
    assert_eq!(report.about.n_decode_tokens, 2);
}

#[test]
fn a_report_comes_back_from_its_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    for step in 0..20 {
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let report = answer_all(&path);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[test]
fn patterns_of_experts_equal_the_plain_computation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    for step in 0..300 {
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let experts = check(&path).experts.unwrap();
    assert!(experts.pairs.len() > 5);
    assert_eq!(experts.lags.len(), 6);
    assert_eq!(experts.prediction.unwrap().n, 2 * 300);
}

#[test]
fn a_step_that_is_longer_than_a_record_can_say_ends_with_its_last_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    let flags = Flags::default();
    let begin_ns = writer.time_ns;
    writer
        .log
        .push(Record::step_begin(begin_ns, 0, 1, 1, flags));
    writer.time_ns += 7_000_000_000;
    writer.node(0, flags, Op::MUL_MAT, OUTPUT, &[WHOLE]);
    let end_ns = writer.time_ns + 501;
    writer
        .log
        .push(Record::step_end(begin_ns, 8_000_000_000, 0, flags));
    writer.step(1, 1, false);
    writer.log.finish().unwrap();
    let timeline = answer_all(&path).timeline.unwrap();
    assert_eq!(timeline.tokens.unwrap().max_ns, end_ns - begin_ns);
    assert_eq!(timeline.longest, Some((0, end_ns - begin_ns)));
    assert_eq!(timeline.first_token_ns, Some(end_ns));
}

#[test]
fn skew_is_told_by_sequence_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut writer = Writer::create(&path, 1 << 20);
    for step in 0..90 {
        // The second conversation begins at position 0.
        if step == 30 {
            writer.position = 0;
        }
        writer.step(step, 1, false);
    }
    writer.log.finish().unwrap();
    let experts = check(&path).experts.unwrap();
    assert_eq!(experts.per_sequence.unwrap().n, 2);
}
