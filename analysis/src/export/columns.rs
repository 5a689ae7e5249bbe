//! The columns of CSV and Parquet, in one place.

use std::borrow::Cow;

use tracer::{Flags, WHOLE};

use crate::log::{Access, op_name, phase};

/// A column of an exported table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Whether a value may be missing.
    pub is_optional: bool,
}

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned 64-bit numbers.
    U64,
    /// Unsigned 64-bit numbers that text shows in hexadecimal.
    Address,
    /// Unsigned 32-bit numbers.
    U32,
    /// Signed 32-bit numbers.
    I32,
    /// Texts.
    Text,
    /// `true` or `false`.
    Bool,
}

const fn always(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        is_optional: false,
    }
}

const fn maybe(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        is_optional: true,
    }
}

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

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Missing,
    U64(u64),
    U32(u32),
    I32(i32),
    Text(Cow<'a, str>),
    Bool(bool),
}

impl<'a> Value<'a> {
    fn u64(value: Option<u64>) -> Value<'a> {
        value.map_or(Value::Missing, Value::U64)
    }

    fn u32(value: Option<u32>) -> Value<'a> {
        value.map_or(Value::Missing, Value::U32)
    }

    fn i32(value: Option<i32>) -> Value<'a> {
        value.map_or(Value::Missing, Value::I32)
    }

    fn text(value: Option<&'a str>) -> Value<'a> {
        value.map_or(Value::Missing, |text| Value::Text(text.into()))
    }
}

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
                let fits = match value {
                    Value::Missing => column.is_optional,
                    Value::U64(_) => matches!(column.kind, Kind::U64 | Kind::Address),
                    Value::U32(_) => column.kind == Kind::U32,
                    Value::I32(_) => column.kind == Kind::I32,
                    Value::Text(_) => column.kind == Kind::Text,
                    Value::Bool(_) => column.kind == Kind::Bool,
                };
                assert!(fits, "{}: {value:?}", column.name);
            }
        }
    }
}
