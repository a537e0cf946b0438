//! The queue of background uploads: write-back, and retries of failed uploads with back-off.
//!
//! One thread waits for the next upload that is due; each upload runs on a worker. The queue has no
//! paths: an upload asks the layer above for its path when it begins.

use std::fmt;
use std::sync::Arc;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use crate::cache::Error;
use crate::cache::UploadTarget;
use crate::cache::entry::Entry;
use crate::cache::upload::may_succeed_later;
use crate::clock::Clock;
use crate::clock::Tick;
use crate::sync::Condvar;
use crate::sync::Mutex;
use crate::workers::Workers;

/// The delay before the first retry; it doubles with each failure, up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// The longest back-off while the host is unreachable. The connection has its own back-off, so that
/// a retry costs nothing, and uploads resume soon after the host is reachable again.
const MAX_BACKOFF_OFFLINE: Duration = Duration::from_secs(5);

/// The most uploads at the same time: more would only wait for a connection.
const MAX_AT_ONCE: usize = 8;

/// The thread looks at the clock at least this often, because tests advance the clock by hand.
const MAX_SLEEP: Duration = Duration::from_millis(200);

/// The queue, and the thread that serves it.
pub(crate) struct Uploads {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    workers: Workers,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    n_running: usize,
    has_thread: bool,
    is_closed: bool,
}

struct Waiting {
    entry: Arc<Entry>,
    upload_target: Arc<dyn UploadTarget>,
    due: Tick,
    tries: u32,
}

impl Uploads {
    pub(crate) fn new(clock: Arc<dyn Clock>, workers: Workers) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock,
                workers,
                queue: Mutex::new(Queue::default()),
                changed: Condvar::new(),
            }),
        }
    }

    /// Queues an upload that is due after `delay`, or earlier if it is in the queue already.
    pub(crate) fn add(
        &self,
        entry: &Arc<Entry>,
        upload_target: &Arc<dyn UploadTarget>,
        delay: Duration,
    ) {
        let due = self.shared.clock.tick() + delay;
        self.shared.add(entry, upload_target, due, 0);
    }

    /// Queues the first retry of a failed upload.
    pub(crate) fn retry(&self, entry: &Arc<Entry>, upload_target: &Arc<dyn UploadTarget>) {
        let due = self.shared.clock.tick() + FIRST_BACKOFF;
        self.shared.add(entry, upload_target, due, 1);
    }

    /// Returns how many attempts have failed, and the time until the next one.
    pub(crate) fn schedule_of(&self, entry: &Entry) -> Option<(u32, Duration)> {
        let queue = self.shared.queue.lock();
        let now = self.shared.clock.tick();
        let waiting = queue
            .waiting
            .iter()
            .find(|waiting| std::ptr::eq(&*waiting.entry, entry))?;
        Some((waiting.tries, waiting.due.since(now)))
    }

    /// Stops the queue: no upload is started any more. Does not wait for running uploads.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut queue = self.shared.queue.lock();
            queue.is_closed = true;
            std::mem::take(&mut queue.waiting)
        };
        self.shared.changed.notify_all();
        drop(waiting);
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads")
            .field("waiting", &self.shared.queue.lock().waiting.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn add(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        upload_target: &Arc<dyn UploadTarget>,
        due: Tick,
        tries: u32,
    ) {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            return;
        }
        let known = queue
            .waiting
            .iter_mut()
            .find(|waiting| Arc::ptr_eq(&waiting.entry, entry));
        match known {
            // One upload sends the content as it is when it begins.
            Some(waiting) => waiting.due = waiting.due.min(due),
            None => queue.waiting.push(Waiting {
                entry: Arc::clone(entry),
                upload_target: Arc::clone(upload_target),
                due,
                tries,
            }),
        }
        if !queue.has_thread {
            let shared = Arc::downgrade(self);
            let thread = thread::Builder::new().name("scpfs-upload".to_owned());
            match thread.spawn(move || Self::run(&shared)) {
                Ok(_) => queue.has_thread = true,
                Err(error) => log::warn!("cannot upload in the background: {error}"),
            }
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// The thread of the queue, until the queue is dropped or closed.
    fn run(shared: &Weak<Self>) {
        while let Some(shared) = shared.upgrade() {
            let mut queue = shared.queue.lock();
            if queue.is_closed {
                return;
            }
            let now = shared.clock.tick();
            let mut next = MAX_SLEEP;
            let mut at = 0;
            while let Some(waiting) = queue.waiting.get(at) {
                if waiting.due > now {
                    next = next.min(waiting.due.since(now));
                    at += 1;
                } else if queue.n_running < MAX_AT_ONCE {
                    let waiting = queue.waiting.swap_remove(at);
                    queue.n_running += 1;
                    let worker = Arc::clone(&shared);
                    shared.workers.run(move || worker.upload(waiting));
                } else {
                    break;
                }
            }
            if queue.waiting.is_empty() {
                shared.changed.wait(&mut queue);
            } else {
                shared.changed.wait_for(&mut queue, next);
            }
        }
    }

    /// Uploads one entry; queues it again if that failed and a retry may succeed.
    fn upload(self: Arc<Self>, waiting: Waiting) {
        let Waiting {
            entry,
            upload_target,
            tries,
            ..
        } = waiting;
        let running = Running(Arc::clone(&self));
        // Content that was changed since the last close is uploaded after the next close.
        let result = entry.upload_closed_content(&upload_target);
        if let Err(error) = &result
            && may_succeed_later(error)
        {
            let is_offline = matches!(error, Error::Remote(error) if error.is_connection_loss());
            let backoff = FIRST_BACKOFF
                .saturating_mul(1 << tries.min(16))
                .min(if is_offline {
                    MAX_BACKOFF_OFFLINE
                } else {
                    MAX_BACKOFF
                });
            let due = self.clock.tick() + backoff;
            self.queue.lock().add_again(Waiting {
                entry,
                upload_target,
                due,
                tries: tries + 1,
            });
        }
        drop(running);
    }
}

impl Queue {
    /// Sets the back-off of an entry whose upload failed. The failed upload has queued it already,
    /// with the first back-off.
    fn add_again(&mut self, again: Waiting) {
        if self.is_closed {
            return;
        }
        let is_it = |it: &&mut Waiting| Arc::ptr_eq(&it.entry, &again.entry);
        match self.waiting.iter_mut().find(is_it) {
            Some(waiting) => (waiting.due, waiting.tries) = (again.due, again.tries),
            None => self.waiting.push(again),
        }
    }
}

/// Counts one upload as running until it is dropped, however the upload ends.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.queue.lock().n_running -= 1;
        self.0.changed.notify_all();
    }
}
