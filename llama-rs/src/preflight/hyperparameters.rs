//! Numbers that describe the network.

use gguf::{Gguf, Value};

use super::Verdict;

/// `LLAMA_MAX_LAYERS`.
const LAYERS_MAX: u64 = 512;
/// `LLAMA_MAX_EXPERTS`.
const EXPERTS_MAX: u64 = 1024;
/// Widest hidden state that is believed; the widest known one is 18432.
const EMBEDDING_MAX: u64 = 1 << 20;

/// Reads keys of one architecture.
struct Keys<'a> {
    metadata: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A number; `None` when the key is absent or an array with a value a layer, which llama.cpp checks.
    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let name = self.name(key);
        match self.metadata.get(&name) {
            None | Some(Value::Array(_)) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!(
                    "{name} is a {}, not a number of at least 0",
                    value.value_type().name()
                )),
            },
        }
    }

    /// A number that has to be there, in `1..=max`.
    fn required(&self, key: &str, max: u64) -> Result<u64, String> {
        let name = self.name(key);
        let Some(number) = self.number(key)? else {
            return Err(format!("the metadata key {name} is missing"));
        };
        if (1..=max).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{name} is {number}, outside 1..={max}"))
        }
    }
}

pub(super) fn check(metadata: &Gguf, architecture: &str) -> Verdict {
    let keys = Keys {
        metadata,
        architecture,
    };
    keys.required("context_length", u64::from(u32::MAX))?;
    keys.required("embedding_length", EMBEDDING_MAX)?;
    let layers = keys.required("block_count", LAYERS_MAX)?;
    if let Some(nextn) = keys
        .number("nextn_predict_layers")?
        .filter(|&nextn| nextn >= layers)
    {
        return Err(format!(
            "{architecture}.nextn_predict_layers is {nextn}, of {layers} layers"
        ));
    }
    check_experts(&keys)?;
    check_attention(&keys)?;
    check_epsilons(metadata, architecture)
}

fn check_experts(keys: &Keys<'_>) -> Verdict {
    let experts = keys.number("expert_count")?.unwrap_or(0);
    let Some(used) = keys.number("expert_used_count")? else {
        return Ok(());
    };
    let architecture = keys.architecture;
    if experts > EXPERTS_MAX {
        return Err(format!(
            "{architecture}.expert_count is {experts}, above {EXPERTS_MAX}"
        ));
    }
    if used > experts {
        return Err(format!(
            "{architecture}.expert_used_count is {used}, of {experts} experts"
        ));
    }
    if used == 0 && experts > 0 {
        return Err(format!(
            "{architecture}.expert_used_count is 0, of {experts} experts"
        ));
    }
    let groups = keys.number("expert_group_count")?.unwrap_or(0);
    if groups > 1 && (groups >= experts || !experts.is_multiple_of(groups)) {
        return Err(format!(
            "{architecture}.expert_group_count is {groups}, for {experts} experts"
        ));
    }
    Ok(())
}

fn check_attention(keys: &Keys<'_>) -> Verdict {
    let architecture = keys.architecture;
    // Networks without attention have no heads or 0 of them.
    let Some(heads) = keys
        .number("attention.head_count")?
        .filter(|&heads| heads > 0)
    else {
        return Ok(());
    };
    if let Some(heads_kv) = keys.number("attention.head_count_kv")?
        && (heads_kv > heads || (heads_kv > 0 && !heads.is_multiple_of(heads_kv)))
    {
        return Err(format!(
            "{architecture}.attention.head_count_kv is {heads_kv}, which does not divide {heads} heads"
        ));
    }
    if let Some(rotated) = keys.number("rope.dimension_count")?
        && !rotated.is_multiple_of(2)
    {
        return Err(format!(
            "{architecture}.rope.dimension_count is {rotated}; dimensions are rotated in pairs"
        ));
    }
    Ok(())
}

/// Norms assert on their epsilon while they compute.
fn check_epsilons(metadata: &Gguf, architecture: &str) -> Verdict {
    for (key, value) in metadata.kv() {
        let is_epsilon = key.ends_with("epsilon") && key.starts_with(architecture);
        if !is_epsilon {
            continue;
        }
        match value.as_f32() {
            Some(epsilon) if epsilon.is_finite() && epsilon >= 0.0 => {}
            Some(epsilon) => {
                return Err(format!(
                    "{key} is {epsilon}, not a finite number of at least 0"
                ));
            }
            None => {
                return Err(format!(
                    "{key} is a {}, not a number",
                    value.value_type().name()
                ));
            }
        }
    }
    Ok(())
}
