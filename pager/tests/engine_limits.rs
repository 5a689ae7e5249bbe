//! What an engine does where the machine forbids the better way. Limits are set in this process, so it is one of its own.

mod child;
mod files;

use std::sync::Arc;

use child::{forbid_io_uring, give_up_capabilities};
use files::{Memory, engines, finish, folder, read, write_file};
use pager::engine::{
    EngineChoice, EngineError, EngineKind, EngineReport, ModelFiles, Preference, open_engine,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Opens an engine with a region of 16 MiB, reads the file into it, and looks at every byte.
fn report_and_read(preference: Preference) -> EngineReport {
    const SIZE: usize = 16 << 20;
    let folder = folder();
    let path = write_file(folder.path(), 0, SIZE as u64);
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    let mut memory = Memory::new(SIZE);
    let region = memory.region();
    let (mut engine, report) = open_engine(files, Some(region), preference).unwrap();
    let whole = read(&mut memory, 0, 0, SIZE, 0);
    // SAFETY: the memory is not looked at before the read has ended.
    unsafe { engine.submit(&[whole]) }.unwrap();
    assert!(finish(&mut *engine)[0].result.is_ok());
    memory.assert_holds(0, &whole, SIZE as u64);
    report
}

#[test]
fn where_io_uring_is_forbidden_threads_read() {
    let test = || {
        forbid_io_uring();
        let report = report_and_read(Preference::default());
        assert_eq!(report.kind, EngineKind::Threads);
        let text = report.to_string();
        assert!(
            text.contains("Operation not permitted") && text.contains("seccomp"),
            "{text}"
        );

        let folder = folder();
        let path = write_file(folder.path(), 0, 5000);
        let files = Arc::new(ModelFiles::open([&path]).unwrap());
        let uring = Preference {
            engine: EngineChoice::Uring,
            ..Preference::default()
        };
        let refused = open_engine(files, None, uring).unwrap_err();
        assert!(matches!(refused, EngineError::Refused { .. }), "{refused}");
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn where_memory_cannot_be_locked_buffers_are_not_registered() {
    if !engines().contains(&EngineChoice::Uring) {
        return;
    }
    let before = getrlimit(Resource::Memlock);
    let limit = Rlimit {
        current: Some(8 << 20),
        maximum: before.maximum,
    };
    setrlimit(Resource::Memlock, limit).unwrap();
    let test = || {
        // Whoever may lock memory has no limit; this thread gives that up.
        give_up_capabilities();
        let report = report_and_read(Preference::default());
        assert_eq!(report.registered_bytes, 0);
        let text = report.to_string();
        assert!(text.contains("ulimit -l"), "{text}");
        // What other programs of the user have locked counts too: not even the ring may have room.
        if report.kind == EngineKind::Uring {
            assert!(
                text.contains("16777216") && text.contains("8388608"),
                "{text}"
            );
        }
    };
    std::thread::spawn(test).join().unwrap();
}
