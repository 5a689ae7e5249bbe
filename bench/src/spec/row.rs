//! One row of the results.

use serde::{Deserialize, Serialize};

use super::{CacheState, Engine, LoadMode, Mode};
use crate::size::format_bytes;

/// One row of the results: everything that distinguishes it from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    #[serde(default)]
    pub(crate) engine: Engine,
    /// What happens at load. Stock and other programs read everything.
    pub(crate) mode: Mode,
    pub(crate) cache: CacheState,
    /// llama.cpp's `use_extra_bufts`: weights may be copied into a layout that suits the vector units.
    pub(crate) repack: bool,
    /// Whether the slice provider `Advise` is attached.
    pub(crate) advise: bool,
    /// Limit of the memory group the process runs in, page cache included.
    pub(crate) budget_bytes: Option<u64>,
    /// Readahead of the device during the run; `None` leaves it as it is.
    pub(crate) readahead_bytes: Option<u64>,
    /// What the pager evicts, by name; `None`: its default, or no pager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    /// What the pager reads ahead, by name; `None`: its default, or no pager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lookahead: Option<String>,
    /// Whether the pager reads what an earlier run needed before it is asked for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) replay: bool,
    /// Without a limit, for rows under other conditions to be related to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) is_reference: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Row {
    /// Rows that may be compared as a ratio: everything but the way of loading is equal.
    pub(crate) fn same_conditions(&self, other: &Row) -> bool {
        self.cache == other.cache
            && self.budget_bytes == other.budget_bytes
            && self.readahead_bytes == other.readahead_bytes
    }

    /// Rows whose logits must be equal byte by byte. Repacked kernels round differently, and experts that the kernel reads on
    /// demand are never repacked: then the modes that leave them to it agree only with themselves.
    pub(crate) fn same_arithmetic(&self, other: &Row) -> bool {
        let repacks_all = |row: &Row| matches!(row.mode, Mode::Eager | Mode::Pager);
        self.repack == other.repack
            && (!self.repack || self.mode == other.mode || repacks_all(self) && repacks_all(other))
    }

    /// Whether speeds are also related to another row's, though conditions differ: to a reference's, and to a baseline's at the same budget
    /// with another readahead.
    pub(crate) fn is_set_against(&self, other: &Row) -> bool {
        let same_budget = self.budget_bytes == other.budget_bytes && self.cache == other.cache;
        let is_baseline = self.engine == Engine::Faultline && other.engine != Engine::Faultline;
        !self.is_reference
            && (other.is_reference || is_baseline && same_budget && !self.same_conditions(other))
    }

    /// Whether the program needs memory of its own for the whole of a model.
    pub(crate) fn is_all_in_memory(&self) -> bool {
        matches!(self.engine, Engine::Stock(LoadMode::None | LoadMode::Dio))
    }

    /// Whether the slice provider is what the mode brings along: attached for selective only.
    pub(crate) fn default_advise(&self) -> bool {
        self.advise == (self.mode == Mode::Selective)
    }

    /// What the row is called in tables: the prefetch mode, or the baseline.
    pub(crate) fn name(&self) -> String {
        match &self.engine {
            Engine::Faultline => self.mode.to_string(),
            Engine::Stock(load_mode) => format!("stock {}", load_mode.as_str()),
            Engine::Command(name) => name.clone(),
        }
    }

    /// A short name for progress lines, legends and messages.
    pub(crate) fn label(&self) -> String {
        let mut label = format!("{} {}", self.name(), self.cache.as_str());
        if self.repack {
            label.push_str(" repack");
        }
        if !self.default_advise() {
            label.push_str(if self.advise { " advise" } else { " no-advise" });
        }
        if let Some(policy) = &self.policy {
            label.push_str(&format!(" {policy}"));
        }
        if let Some(lookahead) = &self.lookahead {
            label.push_str(&format!(" ahead {lookahead}"));
        }
        if self.replay {
            label.push_str(" replay");
        }
        if let Some(bytes) = self.budget_bytes {
            label.push_str(&format!(" in {}", format_bytes(bytes)));
        }
        if let Some(bytes) = self.readahead_bytes {
            label.push_str(&format!(" ra {}", format_bytes(bytes)));
        }
        label
    }
}
