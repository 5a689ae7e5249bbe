//! Types of the values in the KV cache.

use std::fmt;
use std::str::FromStr;

use gguf::GgmlType;
use llama_sys as sys;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::params::{ContextParams, FlashAttention};

/// The type in which the KV cache keeps keys or values: those that llama.cpp's `--cache-type-k` and `--cache-type-v` take.
///
/// The quantized ones hold blocks of 32 values, which must divide the size of a head. For heads of a multiple of 64 values
/// llama.cpp rotates what it quantizes: an [observer](crate::NodeObserver) sees the matrices as weights that are not in
/// the model's files. The CPU computes the rotation without reading them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is ggml's type of that name")]
pub enum KvType {
    F32,
    #[default]
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Iq4Nl,
    Q5_0,
    Q5_1,
}

impl KvType {
    /// All types, in the order of llama.cpp's help.
    pub const ALL: [KvType; 9] = [
        KvType::F32,
        KvType::F16,
        KvType::Bf16,
        KvType::Q8_0,
        KvType::Q4_0,
        KvType::Q4_1,
        KvType::Iq4Nl,
        KvType::Q5_0,
        KvType::Q5_1,
    ];

    /// The name that [`FromStr`] accepts: that of the type in ggml.
    pub fn as_str(self) -> &'static str {
        self.ggml_type().name().unwrap_or_default()
    }

    /// The type in ggml.
    pub fn ggml_type(self) -> GgmlType {
        match self {
            KvType::F32 => GgmlType::F32,
            KvType::F16 => GgmlType::F16,
            KvType::Bf16 => GgmlType::BF16,
            KvType::Q8_0 => GgmlType::Q8_0,
            KvType::Q4_0 => GgmlType::Q4_0,
            KvType::Q4_1 => GgmlType::Q4_1,
            KvType::Iq4Nl => GgmlType::IQ4_NL,
            KvType::Q5_0 => GgmlType::Q5_0,
            KvType::Q5_1 => GgmlType::Q5_1,
        }
    }

    /// Whether values are kept in blocks.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    fn block_elements(self) -> u32 {
        let elements = self.ggml_type().block_elements().unwrap_or(1);
        u32::try_from(elements).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        KvType::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                let names = KvType::ALL.map(KvType::as_str).join(", ");
                Error::parameter(
                    "type_k and type_v",
                    format!("{text:?} is not a type of the KV cache; use one of {names}"),
                )
            })
    }
}

/// Refuses values that need the fused kernel, and may not use it.
pub(crate) fn check_attention(params: &ContextParams) -> Result<()> {
    if params.type_v.is_quantized() && params.flash_attn == FlashAttention::Disabled {
        return Err(Error::parameter(
            "type_v",
            format!(
                "{} is quantized, which needs flash attention, and that is disabled",
                params.type_v
            ),
        ));
    }
    Ok(())
}

/// Refuses types whose blocks do not divide the heads of `model`: a head begins at the first value of a block.
pub(crate) fn check_heads(model: &Model, params: &ContextParams) -> Result<()> {
    for layer in 0.. {
        let Some((key, value)) = head_sizes(model, layer) else {
            break;
        };
        for (name, what, kind, size) in [
            ("type_k", "key", params.type_k, key),
            ("type_v", "value", params.type_v, value),
        ] {
            let block = kind.block_elements();
            if !size.is_multiple_of(block) {
                return Err(Error::parameter(
                    name,
                    format!(
                        "{kind} has blocks of {block} values, which do not divide the {size} of a head's {what} in layer {layer}; use f16, bf16 or f32"
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Elements of one head's key and value in a layer; `None` past the last layer.
fn head_sizes(model: &Model, layer: u32) -> Option<(u32, u32)> {
    let (mut key, mut value) = (0, 0);
    // SAFETY: the model is alive; the results are writable, and written when there is such a layer.
    let n_layer =
        unsafe { sys::faultline_model_head_sizes(model.raw(), layer, &mut key, &mut value) };
    (layer < n_layer).then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_cpp_and_round_trip() {
        let names = KvType::ALL.map(KvType::as_str).join(" ");
        assert_eq!(names, "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1");
        for kind in KvType::ALL {
            assert_eq!(kind.to_string().parse::<KvType>().unwrap(), kind);
            let in_blocks = !["f32", "f16", "bf16"].contains(&kind.as_str());
            assert_eq!(kind.is_quantized(), in_blocks, "{kind}");
        }
        let error = "q6_K".parse::<KvType>().unwrap_err().to_string();
        assert!(
            error.contains("\"q6_K\"") && error.contains("q8_0"),
            "{error}"
        );
    }

    #[test]
    fn quantized_values_need_flash_attention() {
        let params = |type_k, type_v| ContextParams {
            type_k,
            type_v,
            flash_attn: FlashAttention::Disabled,
            ..ContextParams::default()
        };
        let error = params(KvType::F16, KvType::Q4_1).check().unwrap_err();
        assert!(error.to_string().contains("q4_1"), "{error}");
        params(KvType::Q4_1, KvType::F32).check().unwrap();
    }
}
