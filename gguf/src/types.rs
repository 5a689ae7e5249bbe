//! The types of tensor elements that ggml knows: names and block sizes.

use std::fmt;

/// The type of a tensor's elements, as the number that stands in the file.
///
/// The number is kept as it is, so that a table entry of a type this build does not know can still
/// be shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GgmlType(pub u32);

/// One row of the table. `block_bytes` 0 marks an id that ggml has given up.
struct Row {
    id: u32,
    name: &'static str,
    block_elements: u32,
    block_bytes: u32,
}

const fn row(id: u32, name: &'static str, block_elements: u32, block_bytes: u32) -> Row {
    Row {
        id,
        name,
        block_elements,
        block_bytes,
    }
}

/// One past the largest id of the pinned ggml (`GGML_TYPE_COUNT`).
const COUNT: usize = 44;

/// Indexed by id; `llama-sys` has a test that holds it equal to ggml's own table.
const TABLE: [Row; COUNT] = [
    row(0, "f32", 1, 4),
    row(1, "f16", 1, 2),
    row(2, "q4_0", 32, 18),
    row(3, "q4_1", 32, 20),
    row(4, "q4_2 (removed)", 0, 0),
    row(5, "q4_3 (removed)", 0, 0),
    row(6, "q5_0", 32, 22),
    row(7, "q5_1", 32, 24),
    row(8, "q8_0", 32, 34),
    row(9, "q8_1", 32, 36),
    row(10, "q2_K", 256, 84),
    row(11, "q3_K", 256, 110),
    row(12, "q4_K", 256, 144),
    row(13, "q5_K", 256, 176),
    row(14, "q6_K", 256, 210),
    row(15, "q8_K", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(28, "f64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(30, "bf16", 1, 2),
    row(31, "q4_0_4_4 (removed)", 0, 0),
    row(32, "q4_0_4_8 (removed)", 0, 0),
    row(33, "q4_0_8_8 (removed)", 0, 0),
    row(34, "tq1_0", 256, 54),
    row(35, "tq2_0", 256, 66),
    row(36, "iq4_nl_4_4 (removed)", 0, 0),
    row(37, "iq4_nl_4_8 (removed)", 0, 0),
    row(38, "iq4_nl_8_8 (removed)", 0, 0),
    row(39, "mxfp4", 32, 17),
    row(40, "nvfp4", 64, 36),
    row(41, "q1_0", 128, 18),
    row(42, "q2_0", 64, 18),
    row(43, "f8_e4m3", 1, 1),
];

const _: () = {
    let mut i = 0;
    while i < COUNT {
        assert!(TABLE[i].id as usize == i, "the table is indexed by id");
        i += 1;
    }
};

impl GgmlType {
    /// 32-bit floating point.
    pub const F32: GgmlType = GgmlType(0);
    /// 16-bit floating point.
    pub const F16: GgmlType = GgmlType(1);
    /// Blocks of 32 4-bit numbers with a 16-bit scale.
    pub const Q4_0: GgmlType = GgmlType(2);
    /// Blocks of 32 4-bit numbers with a 16-bit scale and minimum.
    pub const Q4_1: GgmlType = GgmlType(3);
    /// Blocks of 32 5-bit numbers with a 16-bit scale.
    pub const Q5_0: GgmlType = GgmlType(6);
    /// Blocks of 32 5-bit numbers with a 16-bit scale and minimum.
    pub const Q5_1: GgmlType = GgmlType(7);
    /// Blocks of 32 8-bit numbers with a 16-bit scale.
    pub const Q8_0: GgmlType = GgmlType(8);
    /// Blocks of 256 2-bit numbers with 4-bit scales and minima.
    pub const Q2_K: GgmlType = GgmlType(10);
    /// Blocks of 256 4-bit numbers with 6-bit scales and minima.
    pub const Q4_K: GgmlType = GgmlType(12);
    /// Blocks of 256 5-bit numbers with 6-bit scales and minima.
    pub const Q5_K: GgmlType = GgmlType(13);
    /// Blocks of 256 6-bit numbers with 8-bit scales.
    pub const Q6_K: GgmlType = GgmlType(14);
    /// Blocks of 32 4-bit indices into a table of uneven steps, with a 16-bit scale.
    pub const IQ4_NL: GgmlType = GgmlType(20);
    /// Blocks of 256 4-bit indices into a table of uneven steps, with 6-bit scales.
    pub const IQ4_XS: GgmlType = GgmlType(23);
    /// 32-bit integers.
    pub const I32: GgmlType = GgmlType(26);
    /// The upper half of a 32-bit floating point number.
    pub const BF16: GgmlType = GgmlType(30);
    /// Blocks of 32 4-bit floating point numbers with an 8-bit exponent.
    pub const MXFP4: GgmlType = GgmlType(39);

    /// All ids that the table knows, removed ones included.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        (0..COUNT as u32).map(GgmlType)
    }

    fn row(self) -> Option<&'static Row> {
        TABLE.get(self.0 as usize)
    }

    /// ggml's name of the type, `None` for an unknown id. Ids that ggml has given up say so.
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|r| r.name)
    }

    /// True if tensors of this type can exist: the id is known and has not been given up.
    pub fn is_usable(self) -> bool {
        self.row().is_some_and(|r| r.block_bytes > 0)
    }

    /// Elements in one block: 1 for plain numbers. `None` for ids without a layout.
    pub fn block_elements(self) -> Option<u64> {
        self.row()
            .filter(|r| r.block_bytes > 0)
            .map(|r| u64::from(r.block_elements))
    }

    /// Bytes of one block. `None` for ids without a layout.
    pub fn block_bytes(self) -> Option<u64> {
        self.row()
            .filter(|r| r.block_bytes > 0)
            .map(|r| u64::from(r.block_bytes))
    }

    /// Bytes of a row of `ne0` elements. `None` if the row is not a whole number of blocks, the id
    /// has no layout, or the size does not fit.
    pub fn row_bytes(self, ne0: u64) -> Option<u64> {
        let (elements, bytes) = (self.block_elements()?, self.block_bytes()?);
        if !ne0.is_multiple_of(elements) {
            return None;
        }
        (ne0 / elements).checked_mul(bytes)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "unknown type {}", self.0),
        }
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GgmlType({}: {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_blocks() {
        assert_eq!(GgmlType::F16.row_bytes(3), Some(6));
        assert_eq!(GgmlType::MXFP4.row_bytes(2880), Some(1530));
        assert_eq!(GgmlType::MXFP4.row_bytes(33), None);
        assert_eq!(GgmlType::Q4_K.row_bytes(768), Some(432));
        assert_eq!(GgmlType::F32.row_bytes(u64::MAX / 2), None);
    }

    #[test]
    fn removed_and_unknown_ids_have_no_layout() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 44, u32::MAX] {
            let t = GgmlType(id);
            assert!(!t.is_usable(), "{t}");
            assert_eq!(
                (t.block_elements(), t.block_bytes(), t.row_bytes(0)),
                (None, None, None)
            );
        }
        assert_eq!(GgmlType(44).to_string(), "unknown type 44");
        assert_eq!(GgmlType(31).to_string(), "q4_0_4_4 (removed)");
    }
}
