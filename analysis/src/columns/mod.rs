//! Tables with typed columns, as CSV and Parquet.

mod csv;
mod parquet;

use std::borrow::Cow;

pub(crate) use csv::CsvWriter;
pub(crate) use parquet::ParquetWriter;

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

/// A column that every row has.
pub(crate) const fn always(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        is_optional: false,
    }
}

/// A column that some rows lack.
pub(crate) const fn maybe(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        is_optional: true,
    }
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Missing,
    U64(u64),
    U32(u32),
    I32(i32),
    Text(Cow<'a, str>),
    Bool(bool),
}

impl<'a> Value<'a> {
    pub(crate) fn u64(value: Option<u64>) -> Value<'a> {
        value.map_or(Value::Missing, Value::U64)
    }

    pub(crate) fn u32(value: Option<u32>) -> Value<'a> {
        value.map_or(Value::Missing, Value::U32)
    }

    pub(crate) fn i32(value: Option<i32>) -> Value<'a> {
        value.map_or(Value::Missing, Value::I32)
    }

    pub(crate) fn text(value: Option<&'a str>) -> Value<'a> {
        value.map_or(Value::Missing, |text| Value::Text(text.into()))
    }

    /// Whether the value may stand in the column.
    #[cfg(test)]
    pub(crate) fn fits(&self, column: &Column) -> bool {
        match self {
            Value::Missing => column.is_optional,
            Value::U64(_) => matches!(column.kind, Kind::U64 | Kind::Address),
            Value::U32(_) => column.kind == Kind::U32,
            Value::I32(_) => column.kind == Kind::I32,
            Value::Text(_) => column.kind == Kind::Text,
            Value::Bool(_) => column.kind == Kind::Bool,
        }
    }
}
