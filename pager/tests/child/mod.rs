//! Tests in a process of their own: they may change it as a whole, and hang.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process of a test: its name.
const VARIABLE: &str = "PAGER_TEST_IN_CHILD";

/// Runs a part of the test called `name` in a process of its own, which may do to itself what it likes, and fails if that fails or
/// takes longer than two minutes.
#[track_caller]
pub(crate) fn in_child(name: &str, part: impl FnOnce()) {
    if std::env::var_os(VARIABLE).is_some_and(|test| test == name) {
        return part();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(VARIABLE, name)
        // Threads of a graph that spin for each other take for ever where tests run side by side.
        .env("OMP_WAIT_POLICY", "passive")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{name} ended with {status}");
            return;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes `io_uring_setup(2)` fail with `EPERM` in this thread and those that it starts, as container runtimes do.
pub(crate) fn forbid_io_uring() {
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump_if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = [
        line(load_number, 0, 0, 0),
        line(jump_if_equal, 0, 1, libc::SYS_io_uring_setup as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: seccomp(2) copies the program, which lives until it returns.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) != 0
    };
    assert!(!refused, "{}", std::io::Error::last_os_error());
}

/// As a process without privileges: it may lock no more memory than its limit says.
pub(crate) fn give_up_capabilities() {
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets).unwrap();
}
