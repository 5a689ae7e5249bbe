//! Reads by threads that call `pread(2)`: for machines where `io_uring` is refused.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::slice;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ModelFiles;
use super::device::{Device, Outcome, Request};

const STACK_BYTES: usize = 128 << 10;

/// What the threads share.
#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    requests: VecDeque<Request>,
    closing: bool,
}

#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    ended: Receiver<Outcome>,
    /// What `wait` has received.
    received: Option<Outcome>,
    n_taken: usize,
}

impl Threads {
    pub(super) fn open(files: &Arc<ModelFiles>, depth: u16) -> io::Result<Self> {
        let (sender, ended) = channel();
        let mut threads = Threads {
            shared: Arc::default(),
            threads: Vec::with_capacity(usize::from(depth)),
            ended,
            received: None,
            n_taken: 0,
        };
        for index in 0..depth {
            let (shared, files, sender) = (
                Arc::clone(&threads.shared),
                Arc::clone(files),
                sender.clone(),
            );
            let thread = thread::Builder::new()
                .name(format!("pager-read-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared, &files, &sender))?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }
}

impl Device for Threads {
    fn start(&mut self, request: Request) -> Result<(), Request> {
        if self.n_taken >= self.threads.len() {
            return Err(request);
        }
        self.n_taken += 1;
        lock(&self.shared).requests.push_back(request);
        self.shared.changed.notify_one();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn collect(&mut self, outcomes: &mut Vec<Outcome>) -> io::Result<()> {
        let before = outcomes.len();
        outcomes.extend(self.received.take());
        outcomes.extend(self.ended.try_iter());
        self.n_taken -= outcomes.len() - before;
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.received.is_none() {
            match self.ended.recv_timeout(timeout) {
                Ok(outcome) => self.received = Some(outcome),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the threads that read have ended"));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        {
            let mut work = lock(&self.shared);
            work.closing = true;
            work.requests.clear();
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked is not writing to any target either.
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Work> {
    shared.work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's life: requests until the engine is dropped.
fn work(shared: &Shared, files: &ModelFiles, ended: &Sender<Outcome>) {
    loop {
        let request = {
            let idle = |work: &mut Work| work.requests.is_empty() && !work.closing;
            let mut work = shared
                .changed
                .wait_while(lock(shared), idle)
                .unwrap_or_else(PoisonError::into_inner);
            match work.requests.pop_front() {
                Some(request) => request,
                None => return,
            }
        };
        let outcome = Outcome {
            id: request.id,
            result: read(&request, files),
        };
        if ended.send(outcome).is_err() {
            return;
        }
    }
}

/// One `pread`, its errors as negated numbers.
fn read(request: &Request, files: &ModelFiles) -> i32 {
    let size = request.size_bytes as usize;
    // SAFETY: who made the request promised that the target is valid for writes of this size and touched by nobody else until the
    // outcome is there, and the slice ends before that. Its bytes may be uninitialized.
    let target = unsafe {
        slice::from_raw_parts_mut(request.target().as_ptr().cast::<MaybeUninit<u8>>(), size)
    };
    let fd = files.files()[request.file as usize].fd();
    match rustix::io::pread(fd, target, request.offset_bytes) {
        // At most `size`, which is 8 MiB.
        Ok((read, _)) => read.len() as i32,
        Err(error) => -error.raw_os_error(),
    }
}
