//! Threads for work that may wait: as many as there is work, because whatever waits for a slow
//! host must not keep anything else from running.
//!
//! Knows nothing of the work.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;

use crate::sync::Mutex;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(20);

/// Enough for every call depth of this program; a thread costs what it touches of it.
const STACK: usize = 512 << 10;

/// Far more than a person's processes; beyond it work queues up.
const MAX_THREADS: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads that grows with its work. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Sender<Job>,
    jobs: Receiver<Job>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    threads: usize,
    /// Threads that wait for a job and are not promised to one.
    idle: usize,
}

impl Workers {
    pub fn new() -> Self {
        let (queue, jobs) = crossbeam_channel::unbounded();
        Self {
            shared: Arc::new(Shared {
                queue,
                jobs,
                counts: Mutex::new(Counts::default()),
            }),
        }
    }

    /// Runs `job` on another thread, at once unless there are very many.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut counts = self.shared.counts.lock();
        if counts.idle > 0 {
            counts.idle -= 1;
        } else if counts.threads < MAX_THREADS {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new()
                .name("scpfs-worker".to_owned())
                .stack_size(STACK);
            match thread.spawn(move || shared.work()) {
                Ok(_) => counts.threads += 1,
                // The job waits for one of the others.
                Err(error) => log::warn!("cannot start a thread: {error}"),
            }
        }
        // Under the lock, so that a thread that is about to leave sees the job it was promised.
        // The receiver lives as long as the sender does, and the queue has no bound.
        let sent = self.shared.queue.send(Box::new(job));
        drop(counts);
        debug_assert!(sent.is_ok());
    }
}

impl Shared {
    fn work(&self) {
        loop {
            match self.jobs.recv_timeout(IDLE) {
                Ok(job) => {
                    // A job that panics has said why; the thread goes on with the next one.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        log::error!("an internal error: a background job panicked");
                    }
                    self.counts.lock().idle += 1;
                }
                Err(_) => {
                    let mut counts = self.counts.lock();
                    // A job may have been promised to this thread meanwhile.
                    if self.jobs.is_empty() {
                        counts.threads -= 1;
                        counts.idle = counts.idle.saturating_sub(1);
                        return;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.shared.counts.lock().threads)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each panic ended a thread that was counted on for ever.
    #[test]
    fn a_job_that_panics_takes_no_thread_away() {
        let workers = Workers::new();
        for _ in 0..2 * MAX_THREADS {
            workers.run(|| panic!("as a bug would"));
        }
        let (done, wait) = crossbeam_channel::bounded(1);
        workers.run(move || done.send(()).unwrap());
        wait.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn work_that_waits_does_not_keep_other_work_from_running() {
        let workers = Workers::new();
        let (unblock, blocked) = crossbeam_channel::bounded::<()>(0);
        for _ in 0..100 {
            let blocked = blocked.clone();
            workers.run(move || assert!(blocked.recv().is_err()));
        }
        let (done, wait) = crossbeam_channel::bounded(1);
        workers.run(move || done.send(()).unwrap());
        wait.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(unblock);
    }
}
