//! The columns of an access in CSV and Parquet, in one place.

use tracer::{Flags, WHOLE};

use crate::columns::{Column, Kind, Value, always, maybe};
use crate::log::{Access, op_name, phase};

/// The columns in their order.
pub const COLUMNS: [Column; 22] = [
    always("timestamp", Kind::U64),
    maybe("token", Kind::U64),
    maybe("tensor_name", Kind::Text),
    maybe("data_ptr", Kind::Address),
    maybe("bytes_accessed", Kind::U64),
    maybe("slice", Kind::U32),
    maybe("slice_kind", Kind::Text),
    always("n_used", Kind::U32),
    always("step", Kind::U32),
    always("ubatch", Kind::U32),
    always("node", Kind::U32),
    always("op", Kind::Text),
    always("phase", Kind::Text),
    always("duration_ns", Kind::U32),
    maybe("layer", Kind::I32),
    maybe("component", Kind::Text),
    maybe("file", Kind::U32),
    maybe("file_offset_bytes", Kind::U64),
    always("fused", Kind::Bool),
    maybe("n_tokens", Kind::U32),
    maybe("token_id", Kind::I32),
    maybe("position", Kind::I32),
];

/// The values of an access, in the order of [`COLUMNS`].
pub(super) fn row<'a>(access: &Access<'a>) -> [Value<'a>; COLUMNS.len()] {
    let (record, weight, token) = (&access.record, access.weight, access.token);
    let bytes = access.bytes();
    let slice = (record.slice != WHOLE).then_some(record.slice);
    [
        Value::U64(record.time_ns),
        Value::u64(token.map(|token| token.index)),
        Value::text(weight.map(|weight| weight.name.as_str())),
        Value::u64(bytes.address),
        Value::u64(bytes.size_bytes),
        Value::u32(slice),
        Value::text(weight.map(|weight| weight.slice_kind(record))),
        Value::U32(record.n_used.into()),
        Value::U32(record.step),
        Value::U32(record.ubatch.into()),
        Value::U32(record.node.into()),
        Value::Text(op_name(record.op)),
        Value::text(Some(phase(record))),
        Value::U32(record.duration_ns),
        Value::i32(weight.and_then(|weight| weight.layer)),
        Value::text(weight.map(|weight| weight.component.as_str())),
        Value::u32(bytes.in_file.map(|(file, _)| file)),
        Value::u64(bytes.in_file.map(|(_, offset_bytes)| offset_bytes)),
        Value::Bool(record.flags.has(Flags::FUSED)),
        Value::u32(token.map(|token| token.n_tokens)),
        Value::i32(token.and_then(|token| token.id)),
        Value::i32(token.and_then(|token| token.position)),
    ]
}

#[cfg(test)]
mod tests {
    use tracer::{Op, Record};

    use super::*;
    use crate::log::Token;

    #[test]
    fn values_have_the_type_of_their_column() {
        let known = Access {
            sequence: 0,
            record: Record {
                op: Op(77),
                slice: 5,
                ..Record::default()
            },
            weight: None,
            token: Some(Token {
                index: 1,
                n_tokens: 1,
                id: Some(-1),
                position: Some(0),
            }),
        };
        let unknown = Access {
            token: None,
            ..known
        };
        for access in [known, unknown] {
            for (column, value) in COLUMNS.iter().zip(row(&access)) {
                assert!(value.fits(column), "{}: {value:?}", column.name);
            }
        }
    }
}
