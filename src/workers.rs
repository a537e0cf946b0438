//! A thread pool for blocking jobs. It starts a thread whenever none is idle, so that jobs that
//! wait for a slow host do not delay other jobs.
//!
//! Knows nothing of what the jobs do.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;

use crate::sync::Mutex;

/// How long an idle thread waits for a job before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Enough for every call depth of this program. Only the pages that a thread uses take memory.
const STACK_BYTES: usize = 512 << 10;

/// The largest number of threads, far more than one user's programs need. Further jobs wait in the
/// queue.
const MAX_THREADS: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A thread pool that grows on demand. A clone is another handle to the same pool.
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
    /// Idle threads without a queued job that is meant for them.
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

    /// Runs `job` on another thread. Returns at once; the job waits in the queue only if
    /// `MAX_THREADS` are busy or no thread can be started.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut counts = self.shared.counts.lock();
        if counts.idle > 0 {
            counts.idle -= 1;
        } else if counts.threads < MAX_THREADS {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new()
                .name("scpfs-worker".to_owned())
                .stack_size(STACK_BYTES);
            match thread.spawn(move || shared.work()) {
                Ok(_) => counts.threads += 1,
                // The job stays in the queue for the next idle thread.
                Err(error) => log::warn!("cannot start a thread: {error}"),
            }
        }
        // Send under the lock: a thread that is about to end then finds the job meant for it.
        // Sending cannot fail or block: `shared` owns the receiver, and the queue is unbounded.
        let sent = self.shared.queue.send(Box::new(job));
        drop(counts);
        debug_assert!(sent.is_ok());
    }
}

impl Shared {
    fn work(&self) {
        loop {
            match self.jobs.recv_timeout(IDLE_TIMEOUT) {
                Ok(job) => {
                    // A job that panics has said why; the thread goes on with the next one.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        log::error!("an internal error: a background job panicked");
                    }
                    self.counts.lock().idle += 1;
                }
                Err(_) => {
                    let mut counts = self.counts.lock();
                    // A job for this thread may have been queued after the timeout.
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
