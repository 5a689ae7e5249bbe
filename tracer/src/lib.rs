//! The access log: which slice of which weight was read, when, and for how long.
//!
//! [`LogWriter`] keeps one 32-byte [`Record`] per access in a ring that is a mapped file. Adding a
//! record allocates, locks and formats nothing and makes no system call, so it can stand in a
//! callback that a model's graph runs thousands of times per token. What was added survives the
//! death of the process at any moment. When the ring is full the oldest records give way, or the log
//! stops ([`OnFull`]); either way the number of lost records is exact.
//!
//! [`LogReader`] reads a log back, while it is being written or after, and treats every kind of
//! damage as an error that names the file and the number. The file carries the table of tensors
//! ([`Tables`]), so it can be understood without the model.
//!
//! The format is described byte by byte in `docs/format.md`. Nothing here links llama.cpp, except the feature `record`: its
//! `Recorder` is the observer that records a context of `llama-rs`.
//!
//! # Example
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tracer::{Access, LogReader, LogWriter, Node, OnFull, Op, Tables, Tensor, WHOLE};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("run.ftrace");
//!
//! let tables = Tables {
//!     tensors: vec![Tensor {
//!         name: "output.weight".into(),
//!         offset_bytes: 4096,
//!         size_bytes: 1 << 20,
//!         ..Tensor::default()
//!     }],
//!     ..Tables::default()
//! };
//! let mut log = LogWriter::create(&path, &tables, 1 << 20, OnFull::Wrap)?;
//! let begin_ns = log.now_ns();
//! // The node is computed here.
//! let node = Node {
//!     time_ns: begin_ns,
//!     duration_ns: log.now_ns() - begin_ns,
//!     op: Op::MUL_MAT,
//!     ..Node::default()
//! };
//! log.push_node(&node, [Access { tensor: 0, slice: WHOLE, n_used: 1 }]);
//! log.finish()?;
//!
//! let reader = LogReader::open(&path)?;
//! for record in reader.records() {
//!     let record = record?;
//!     assert_eq!(reader.tables().tensors[record.tensor as usize].name, "output.weight");
//! }
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]
#![cfg_attr(
    loom,
    allow(
        dead_code,
        reason = "loom checks the ring; what maps files is left out"
    )
)]

#[cfg(not(loom))]
mod clock;
mod codec;
mod error;
#[cfg(not(loom))]
mod extents;
mod header;
mod join;
#[cfg(all(feature = "record", not(loom)))]
mod kernel;
#[cfg(not(loom))]
mod map;
mod marks;
mod model;
mod places;
mod reader;
mod record;
#[cfg(all(feature = "record", not(loom)))]
mod recorder;
mod ring;
mod source;
mod tables;
#[cfg(all(feature = "record", not(loom)))]
mod ticks;
mod totals;
#[cfg(not(loom))]
mod writer;

#[cfg(not(loom))]
pub use clock::Clock;
pub use error::Error;
#[cfg(not(loom))]
pub use extents::{Extent, ExtentFlags, extents, extents_of};
pub use header::{Header, OnFull, State, VERSION_MAJOR, VERSION_MINOR};
pub use join::{Cause, Join};
#[cfg(all(feature = "record", not(loom)))]
pub use kernel::{KernelCounts, KernelError, KernelOptions, page_cache_bytes};
pub use marks::{BlockRead, Fault, FaultsElsewhere, KernelMark, MARK_PAGE_BYTES, Resident};
pub use model::{SliceKind, tables};
pub use places::{Places, bytes_of};
pub use reader::{Chunks, LogReader, Records};
pub use record::{Access, Flags, NO_STEP, Node, Op, RECORD_BYTES, Record, WHOLE};
#[cfg(all(feature = "record", not(loom)))]
pub use recorder::Recorder;
pub use source::Source;
pub use tables::{
    EXTRA_NAME_BYTES_MAX, Extra, ExtraKind, MAX_TABLE_BYTES, ModelFile, Tables, Tensor,
};
pub use totals::{ByClass, PhaseTotals, Totals, WeightClass};
#[cfg(not(loom))]
pub use writer::{CAPACITY_BYTES_DEFAULT, LogWriter, Progress, Summary};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;
