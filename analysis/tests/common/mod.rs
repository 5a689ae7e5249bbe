//! What the tests of this crate share.

use analysis::routing::RoutingTrace;

/// A trace of gpt-oss-20b from the test data beside the project, or nothing, with the reason printed.
pub(crate) fn shared_trace(name: &str) -> Option<RoutingTrace> {
    let path = model_shapes::local::shared_data(format!("routing/gpt-oss-20b.{name}.routes.u8"))?;
    Some(RoutingTrace::open(path).unwrap())
}
