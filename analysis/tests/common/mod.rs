//! What the tests of this crate share.

use std::path::Path;

use analysis::routing::RoutingTrace;

/// A trace of gpt-oss-20b from the test data beside the project, or nothing, with the reason printed.
pub(crate) fn shared_trace(name: &str) -> Option<RoutingTrace> {
    let folder = std::env::var_os("FAULTLINE_SHARED_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        Into::into,
    );
    let path = folder
        .join("routing")
        .join(format!("gpt-oss-20b.{name}.routes.u8"));
    if path.is_file() {
        return Some(RoutingTrace::open(path).unwrap());
    }
    eprintln!(
        "skipped: {} is absent (FAULTLINE_SHARED_DATA names another folder)",
        path.display()
    );
    None
}
