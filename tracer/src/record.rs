//! One access, in 32 bytes.

/// Size of a record in the file and in memory.
pub const RECORD_BYTES: usize = 32;

/// The slice number of an access that reads all of a tensor.
pub const WHOLE: u32 = u32::MAX;

/// The step of what happened before the first decode call, such as page faults while the model was loaded.
pub const NO_STEP: u32 = u32::MAX;

/// One access: one operation reading one slice of one weight. Some operations are not accesses but
/// marks ([`Op::is_mark`]) that say where a step begins and which tokens it has; the functions that
/// build them say what each field holds then. What the kernel did is in marks, too: [`KernelMark`](crate::KernelMark).
///
/// All accesses of one node are adjacent and have the same time, duration, step, ubatch and node;
/// the last of them has [`Flags::LAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Record {
    /// When the node began: nanoseconds of `CLOCK_MONOTONIC` since the log's epoch.
    pub time_ns: u64,
    /// How long the node took, in nanoseconds; `u32::MAX` stands for 4.29 s or more.
    pub duration_ns: u32,
    /// Index into the log's tensor table; from its length on, into the extra tensors.
    pub tensor: u32,
    /// Index of the slice (a row or an expert), or [`WHOLE`].
    pub slice: u32,
    /// Number of the decode call, counted from 0; [`NO_STEP`] in marks from before the first.
    pub step: u32,
    /// How many tokens used the slice; `u16::MAX` stands for that many or more.
    pub n_used: u16,
    /// Number of the ubatch in its step, counted from 0.
    pub ubatch: u16,
    /// Number of the node in its ubatch's graph; `u16::MAX` stands for that or more.
    pub node: u16,
    /// What was computed.
    pub op: Op,
    /// Prompt or decode, and the place among the node's accesses.
    pub flags: Flags,
}

const _: () = assert!(size_of::<Record>() == RECORD_BYTES);
const _: () = assert!(std::mem::offset_of!(Record, duration_ns) == 8);
const _: () = assert!(std::mem::offset_of!(Record, n_used) == 24);
const _: () = assert!(std::mem::offset_of!(Record, flags) == 31);

impl Record {
    /// The mark of a decode call: `tensor` is the number of tokens in the batch, `slice` how many of
    /// them have logits.
    pub fn step_begin(
        time_ns: u64,
        step: u32,
        n_tokens: u32,
        n_outputs: u32,
        flags: Flags,
    ) -> Record {
        Record {
            time_ns,
            tensor: n_tokens,
            slice: n_outputs,
            step,
            op: Op::STEP_BEGIN,
            flags,
            ..Record::default()
        }
    }

    /// The mark of one token of a step, after [`Record::step_begin`]: `duration_ns` is its index in
    /// the batch, `tensor` its id, `slice` its position in the sequence (the last two are signed in
    /// llama.cpp; their bits are kept), and `n_used` the sequence (saturating).
    pub fn step_token(
        time_ns: u64,
        step: u32,
        index: u32,
        token: i32,
        position: i32,
        sequence: u32,
        flags: Flags,
    ) -> Record {
        Record {
            time_ns,
            duration_ns: index,
            tensor: token.cast_unsigned(),
            slice: position.cast_unsigned(),
            step,
            n_used: saturate_u16(sequence),
            op: Op::STEP_TOKEN,
            flags,
            ..Record::default()
        }
    }

    /// The mark of a ubatch: `tensor` is the index in the batch of its first token, `slice` the
    /// number of its tokens.
    pub fn ubatch_begin(
        time_ns: u64,
        step: u32,
        ubatch: u16,
        first_token: u32,
        n_tokens: u32,
        flags: Flags,
    ) -> Record {
        Record {
            time_ns,
            tensor: first_token,
            slice: n_tokens,
            step,
            ubatch,
            op: Op::UBATCH_BEGIN,
            flags,
            ..Record::default()
        }
    }

    /// The mark of the end of a decode call that began at `begin_ns`: `time_ns` is that beginning,
    /// `duration_ns` the duration of the call. A step without it was cut off.
    pub fn step_end(begin_ns: u64, duration_ns: u64, step: u32, flags: Flags) -> Record {
        Record {
            time_ns: begin_ns,
            duration_ns: saturate_u32(duration_ns),
            step,
            op: Op::STEP_END,
            flags,
            ..Record::default()
        }
    }

    /// The four little-endian words of the file.
    pub(crate) fn to_words(self) -> [u64; 4] {
        [
            self.time_ns,
            u64::from(self.duration_ns) | u64::from(self.tensor) << 32,
            u64::from(self.slice) | u64::from(self.step) << 32,
            u64::from(self.n_used)
                | u64::from(self.ubatch) << 16
                | u64::from(self.node) << 32
                | u64::from(self.op.0) << 48
                | u64::from(self.flags.0) << 56,
        ]
    }

    /// The record in 32 bytes of a file. Any bytes are a record.
    #[inline]
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Record {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (ids, place, rest) = (word(8), word(16), word(24));
        Record {
            time_ns: word(0),
            duration_ns: ids as u32,
            tensor: (ids >> 32) as u32,
            slice: place as u32,
            step: (place >> 32) as u32,
            n_used: rest as u16,
            ubatch: (rest >> 16) as u16,
            node: (rest >> 32) as u16,
            op: Op((rest >> 48) as u8),
            flags: Flags((rest >> 56) as u8),
        }
    }

    /// The record as in the file.
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        for (part, word) in bytes.chunks_exact_mut(8).zip(self.to_words()) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What the accesses of one node have in common.
#[derive(Debug, Clone, Copy, Default)]
pub struct Node {
    /// When it began, from [`Clock::now_ns`](crate::Clock::now_ns).
    pub time_ns: u64,
    /// How long it took, in nanoseconds.
    pub duration_ns: u64,
    /// Number of the decode call.
    pub step: u32,
    /// Number of the ubatch in the step.
    pub ubatch: u16,
    /// Number of the node in the graph.
    pub node: u32,
    /// What it computed.
    pub op: Op,
    /// Flags of every record; [`Flags::LAST`] is set by the writer.
    pub flags: Flags,
}

impl Node {
    /// The record of one of the node's accesses.
    #[inline]
    pub fn record(&self, access: Access) -> Record {
        Record {
            time_ns: self.time_ns,
            duration_ns: saturate_u32(self.duration_ns),
            tensor: access.tensor,
            slice: access.slice,
            step: self.step,
            n_used: saturate_u16(access.n_used),
            ubatch: self.ubatch,
            node: saturate_u16(self.node),
            op: self.op,
            flags: self.flags,
        }
    }
}

/// What one access reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Index of the tensor.
    pub tensor: u32,
    /// Index of the slice, or [`WHOLE`].
    pub slice: u32,
    /// How many tokens use it.
    pub n_used: u32,
}

pub(crate) fn saturate_u16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

pub(crate) fn saturate_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What an access computes, or which mark a record is. Numbers are those of the file and never
/// change their meaning; a reader must expect numbers that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Op(pub u8);

macro_rules! ops {
    ($($constant:ident = $number:literal $name:literal;)*) => {
        #[allow(missing_docs, reason = "each is ggml's operation of that name, or a mark of `Record`")]
        impl Op {
            $(pub const $constant: Op = Op($number);)*

            /// The name, as ggml spells it, or `None` for a number that this version does not know.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)*
                    _ => None,
                }
            }

            /// The operation of this name as `ggml_op_name` gives it; [`Op::OTHER`] for the rest.
            pub fn from_ggml_name(name: &str) -> Op {
                match name {
                    $($name => Op($number),)*
                    _ => Op::OTHER,
                }
            }
        }
    };
}

ops! {
    OTHER = 0 "OTHER";
    GET_ROWS = 1 "GET_ROWS";
    MUL_MAT = 2 "MUL_MAT";
    MUL_MAT_ID = 3 "MUL_MAT_ID";
    ADD_ID = 4 "ADD_ID";
    MUL = 5 "MUL";
    ADD = 6 "ADD";
    SUB = 7 "SUB";
    DIV = 8 "DIV";
    ROPE = 9 "ROPE";
    SOFT_MAX = 10 "SOFT_MAX";
    FLASH_ATTN_EXT = 11 "FLASH_ATTN_EXT";
    SSM_CONV = 12 "SSM_CONV";
    SSM_SCAN = 13 "SSM_SCAN";
    CPY = 14 "CPY";
    CONT = 15 "CONT";
    CONCAT = 16 "CONCAT";
    OUT_PROD = 17 "OUT_PROD";
    STEP_BEGIN = 240 "STEP_BEGIN";
    STEP_TOKEN = 241 "STEP_TOKEN";
    STEP_END = 242 "STEP_END";
    UBATCH_BEGIN = 243 "UBATCH_BEGIN";
    FAULT_MINOR = 244 "FAULT_MINOR";
    FAULT_MAJOR = 245 "FAULT_MAJOR";
    BLOCK_READ = 246 "BLOCK_READ";
    RESIDENT = 247 "RESIDENT";
    FAULTS_ELSEWHERE = 248 "FAULTS_ELSEWHERE";
}

impl Op {
    /// Whether the record is a mark rather than an access: every number from 240 on, so that a
    /// reader can skip marks that it does not know.
    pub fn is_mark(self) -> bool {
        self.0 >= 240
    }
}

/// Bits that go with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// The step is part of a prompt; without it, the step generates.
    pub const PROMPT: Flags = Flags(1);
    /// The last access of its node.
    pub const LAST: Flags = Flags(1 << 1);
    /// The node was computed fused with another; its time and duration are those of the group.
    pub const FUSED: Flags = Flags(1 << 2);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_laid_out_as_documented() {
        let record = Record {
            time_ns: 0x0807_0605_0403_0201,
            duration_ns: 0x0c0b_0a09,
            tensor: 0x100f_0e0d,
            slice: 0x1413_1211,
            step: 0x1817_1615,
            n_used: 0x1a19,
            ubatch: 0x1c1b,
            node: 0x1e1d,
            op: Op(0x1f),
            flags: Flags(0x20),
        };
        let bytes: Vec<u8> = (1..=32).collect();
        assert_eq!(record.to_bytes().as_slice(), bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_bytes_are_a_record_and_come_back(bytes: [u8; RECORD_BYTES]) {
            prop_assert_eq!(Record::from_bytes(&bytes).to_bytes(), bytes);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_saturate() {
        let node = Node {
            duration_ns: u64::MAX,
            node: 70_000,
            ..Node::default()
        };
        let record = node.record(Access {
            tensor: 0,
            slice: 0,
            n_used: 65_536,
        });
        assert_eq!(record.duration_ns, u32::MAX);
        assert_eq!(record.node, u16::MAX);
        assert_eq!(record.n_used, u16::MAX);
    }

    #[test]
    fn names_and_numbers_of_operations_agree() {
        for number in 0..=u8::MAX {
            if let Some(name) = Op(number).name() {
                assert_eq!(Op::from_ggml_name(name), Op(number));
            }
        }
        assert_eq!(Op::from_ggml_name("WIN_PART"), Op::OTHER);
    }

    #[test]
    fn token_ids_and_positions_keep_their_sign() {
        let record = Record::step_token(0, 0, 0, -1, -2, 70_000, Flags::PROMPT);
        assert_eq!(record.tensor.cast_signed(), -1);
        assert_eq!(record.slice.cast_signed(), -2);
        assert_eq!(record.n_used, u16::MAX);
    }
}
