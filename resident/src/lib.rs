//! What is in memory, by the kernel's account: [which pages of a file](cached_pages) the page cache has, and
//! [what a process holds](Status).
#![deny(missing_docs)]

mod file;
mod mappings;
mod status;

pub use file::{cached_pages, count, is_told, mincore_file, mincore_mapped};
pub use mappings::anonymous_outside;
pub use status::{Status, kib_field};
