//! Metadata values.

use std::borrow::Cow;

/// The type of a metadata value, as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id, if there is one.
    pub fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        const ALL: [ValueType; 13] = [
            U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64,
        ];
        ALL.get(id as usize).copied()
    }

    /// Bytes of one value; `None` for strings and arrays, whose sizes vary.
    pub fn size_bytes(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// The format's own name of the type, for example `UINT32`.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "UINT8",
            I8 => "INT8",
            U16 => "UINT16",
            I16 => "INT16",
            U32 => "UINT32",
            I32 => "INT32",
            F32 => "FLOAT32",
            Bool => "BOOL",
            String => "STRING",
            Array => "ARRAY",
            U64 => "UINT64",
            I64 => "INT64",
            F64 => "FLOAT64",
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes that should be UTF-8 but need not be.
    String(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The string, if this is one and it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The string, if this is one, with replacement characters where it is not UTF-8.
    pub fn to_str_lossy(&self) -> Option<Cow<'_, str>> {
        match self {
            Value::String(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    /// The array, if this is one.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The number, if this is an integer of any width that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The number, if this is a floating point number; `F64` is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The truth value, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A number or truth value from its bytes in the file; `None` if the type is not of fixed size.
    pub(crate) fn from_fixed(kind: ValueType, b: &[u8]) -> Option<Value> {
        let value = match kind {
            ValueType::U8 => Value::U8(b[0]),
            ValueType::I8 => Value::I8(b[0] as i8),
            // llama.cpp takes every byte but 0 for true.
            ValueType::Bool => Value::Bool(b[0] != 0),
            ValueType::U16 => Value::U16(u16::from_le_bytes(b.try_into().ok()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(b.try_into().ok()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(b.try_into().ok()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(b.try_into().ok()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(b.try_into().ok()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(b.try_into().ok()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(b.try_into().ok()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(b.try_into().ok()?)),
            ValueType::String | ValueType::Array => return None,
        };
        Some(value)
    }

    /// Appends the value as it stands in a file, without its type.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.push(*v as u8),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::String(bytes) => {
                out.extend((bytes.len() as u64).to_le_bytes());
                out.extend(bytes);
            }
            Value::Array(array) => array.encode(out),
        }
    }
}

/// An array of metadata values of one type.
///
/// The elements stay as they are in the file: a vocabulary of 200,000 strings is one piece of
/// memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub(crate) element_type: ValueType,
    pub(crate) len: u64,
    pub(crate) payload: Payload,
}

/// An array's elements.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Payload {
    /// Numbers one after another, or strings each after its length in 8 bytes. Checked: `len`
    /// elements exactly.
    Bytes(Vec<u8>),
    /// Arrays in an array.
    Arrays(Vec<Array>),
}

impl Array {
    /// An array of strings.
    pub fn from_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Array {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for s in strings {
            bytes.extend((s.as_ref().len() as u64).to_le_bytes());
            bytes.extend(s.as_ref());
            len += 1;
        }
        Array {
            element_type: ValueType::String,
            len,
            payload: Payload::Bytes(bytes),
        }
    }

    /// Appends element type, length and elements as they stand in a file.
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.element_type as u32).to_le_bytes());
        out.extend(self.len.to_le_bytes());
        match &self.payload {
            Payload::Bytes(bytes) => out.extend(bytes),
            Payload::Arrays(items) => items.iter().for_each(|item| item.encode(out)),
        }
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// The number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, each as a value of its own.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let fixed = self.element_type.size_bytes();
        let (numbers, items) = match (&self.payload, fixed) {
            (Payload::Bytes(bytes), Some(size)) => (bytes.chunks_exact(size as usize), &[][..]),
            (Payload::Bytes(_), None) => ([].chunks_exact(1), &[][..]),
            (Payload::Arrays(items), _) => ([].chunks_exact(1), items.as_slice()),
        };
        numbers
            .filter_map(|b| Value::from_fixed(self.element_type, b))
            .chain(self.strings().map(|s| Value::String(s.to_vec())))
            .chain(items.iter().cloned().map(Value::Array))
    }

    /// The elements of an array of strings; nothing for other arrays.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = match (&self.payload, self.element_type) {
            (Payload::Bytes(bytes), ValueType::String) => bytes,
            _ => &[],
        };
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<8>()?;
            let (text, tail) = tail.split_at(u64::from_le_bytes(*length) as usize);
            rest = tail;
            Some(text)
        })
    }
}

macro_rules! numbers {
    ($($kind:ident $type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(v: $type) -> Value {
                Value::$kind(v)
            }
        }
        impl From<&[$type]> for Array {
            fn from(values: &[$type]) -> Array {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                Array {
                    element_type: ValueType::$kind,
                    len: values.len() as u64,
                    payload: Payload::Bytes(bytes),
                }
            }
        }
        impl From<&[$type]> for Value {
            fn from(values: &[$type]) -> Value {
                Value::Array(values.into())
            }
        }
    )*};
}
numbers!(U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, F32 f32, U64 u64, I64 i64, F64 f64);

impl From<bool> for Value {
    fn from(v: bool) -> Value {
        Value::Bool(v)
    }
}

impl From<&[bool]> for Array {
    fn from(values: &[bool]) -> Array {
        let bytes = values.iter().map(|&v| u8::from(v)).collect();
        Array {
            element_type: ValueType::Bool,
            len: values.len() as u64,
            payload: Payload::Bytes(bytes),
        }
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::String(v.into_bytes())
    }
}

impl From<Array> for Value {
    fn from(v: Array) -> Value {
        Value::Array(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_width_are_numbers() {
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::I32(7).as_u64(), Some(7));
        assert_eq!(Value::U8(7).as_u64(), Some(7));
        assert_eq!(Value::F32(7.0).as_u64(), None);
        assert_eq!(Value::F64(0.5).as_f32(), Some(0.5));
    }

    #[test]
    fn strings_need_not_be_text() {
        let v = Value::String(vec![b'a', 0xff]);
        assert_eq!(v.as_str(), None);
        assert_eq!(v.to_str_lossy().as_deref(), Some("a\u{fffd}"));
    }

    #[test]
    fn arrays_iterate() {
        let a = Array::from_strings(["x", "", "yz"]);
        assert_eq!(a.len(), 3);
        assert_eq!(a.strings().collect::<Vec<_>>(), [&b"x"[..], b"", b"yz"]);
        assert_eq!(a.iter().nth(2), Some(Value::from("yz")));

        let a = Array::from(&[1i32, -2][..]);
        assert_eq!(
            a.iter().collect::<Vec<_>>(),
            [Value::I32(1), Value::I32(-2)]
        );
        assert_eq!(a.strings().count(), 0);
    }
}
