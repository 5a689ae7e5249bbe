//! Whether the models of a configuration have room.

use crate::config::{Config, shown_bytes};
use crate::lifecycle::MemberSpec;

/// Whether every model fits alone, and those that are loaded at the start fit together.
pub(super) fn check_room(
    config: &Config,
    specs: &[MemberSpec],
    budget_bytes: u64,
) -> Result<(), String> {
    if let Some(spec) = specs.iter().find(|spec| spec.need_bytes > budget_bytes) {
        return Err(format!(
            "models.{}: it needs up to {}, but the budget of all models is {} (budget); a smaller n_ctx, repack = false or \
             prefetch = \"pager\" with a budget of its own need less",
            spec.name,
            shown_bytes(spec.need_bytes),
            shown_bytes(budget_bytes)
        ));
    }
    let preloaded = || {
        specs
            .iter()
            .filter(|spec| config.models[&spec.name].preload)
    };
    let (count, bytes) = (
        preloaded().count(),
        preloaded().map(|spec| spec.need_bytes).sum(),
    );
    if count > config.max_loaded || bytes > budget_bytes {
        return Err(format!(
            "preload: {count} models that need up to {} together are to be loaded at the start, but max_loaded is {} and the budget \
             {}",
            shown_bytes(bytes),
            config.max_loaded,
            shown_bytes(budget_bytes)
        ));
    }
    let groups: Vec<&String> = preloaded().filter_map(|spec| spec.group.as_ref()).collect();
    if let Some(twice) = groups
        .iter()
        .enumerate()
        .find(|(i, group)| groups[..*i].contains(group))
    {
        return Err(format!(
            "preload: two models of group {:?}, which may have one",
            twice.1
        ));
    }
    Ok(())
}
