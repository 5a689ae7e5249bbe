//! Runs a command that cannot use `io_uring`, as many containers cannot.
//!
//! ```text
//! cargo run -p pager --example without_io_uring -- cargo test -p pager
//! ```

#[path = "../tests/child/mod.rs"]
mod child;

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or("which command?")?;
    child::forbid_io_uring();
    // Stays in force for whatever the process becomes and starts.
    Err(Command::new(program).args(arguments).exec().into())
}
