//! Programs that would use something after its end do not compile.

use std::path::Path;

#[test]
fn programs_that_outlive_their_owners_do_not_compile() {
    // The programs are compiled in a target folder of their own; this keeps llama.cpp from being compiled there, too.
    if std::env::var_os("LLAMA_SYS_BUILD_DIR").is_none() {
        let test = std::env::current_exe().expect("a path");
        let target = test.ancestors().nth(3).unwrap_or(Path::new("."));
        // SAFETY: this is the only test of this process, and it has started no thread yet.
        unsafe { std::env::set_var("LLAMA_SYS_BUILD_DIR", target.join("llama.cpp")) };
    }
    trybuild::TestCases::new().compile_fail("tests/fail/*.rs");
}
