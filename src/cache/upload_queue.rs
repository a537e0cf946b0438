//! Uploads contents by themselves: those that were closed to be uploaded later, and those that could
//! not be uploaded before.
//!
//! One thread waits for the next one that is due; each is uploaded on a worker. Knows nothing of
//! paths: where a content goes is asked for when it goes.

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

/// How long after a failure the next attempt comes; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The longest pause while the host cannot be reached: the connections have a pause of their own, so
/// that asking costs nothing, and what is to be uploaded goes soon after the host is back.
const MAX_PAUSE_AWAY: Duration = Duration::from_secs(5);

/// More at once would only wait for connections.
const MAX_AT_ONCE: usize = 8;

/// The thread looks at the clock at least so often: a clock of a test is moved by hand.
const LOOK: Duration = Duration::from_millis(200);

/// What waits to be uploaded.
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
    target_of: Arc<dyn UploadTarget>,
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

    /// Has a content uploaded when `delay` has passed, or earlier if it is waiting already.
    pub(crate) fn add(
        &self,
        entry: &Arc<Entry>,
        target_of: &Arc<dyn UploadTarget>,
        delay: Duration,
    ) {
        let due = self.shared.clock.tick() + delay;
        self.shared.add(entry, target_of, due, 0);
    }

    /// Has a content uploaded again that could not be.
    pub(crate) fn retry(&self, entry: &Arc<Entry>, target_of: &Arc<dyn UploadTarget>) {
        let due = self.shared.clock.tick() + FIRST_PAUSE;
        self.shared.add(entry, target_of, due, 1);
    }

    /// Returns how often a content was tried, and when it will be next.
    pub(crate) fn plan_of(&self, entry: &Entry) -> Option<(u32, Duration)> {
        let queue = self.shared.queue.lock();
        let now = self.shared.clock.tick();
        let waiting = queue
            .waiting
            .iter()
            .find(|waiting| std::ptr::eq(&*waiting.entry, entry))?;
        Some((waiting.tries, waiting.due.saturating_sub(now)))
    }

    /// Ends it: nothing is uploaded by itself any more.
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
        target_of: &Arc<dyn UploadTarget>,
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
            // It is uploaded as it is then; what is closed meanwhile goes with it.
            Some(waiting) => waiting.due = waiting.due.min(due),
            None => queue.waiting.push(Waiting {
                entry: Arc::clone(entry),
                target_of: Arc::clone(target_of),
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

    /// The thread: as long as there is somebody to work for.
    fn run(shared: &Weak<Self>) {
        while let Some(shared) = shared.upgrade() {
            let mut queue = shared.queue.lock();
            if queue.is_closed {
                return;
            }
            let now = shared.clock.tick();
            let mut next = LOOK;
            let mut at = 0;
            while let Some(waiting) = queue.waiting.get(at) {
                if waiting.due > now {
                    next = next.min(waiting.due.saturating_sub(now));
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

    /// Uploads one content; queues it again if that failed and a retry may succeed.
    fn upload(self: Arc<Self>, waiting: Waiting) {
        let Waiting {
            entry,
            target_of,
            tries,
            ..
        } = waiting;
        let running = Running(Arc::clone(&self));
        // Content that is being written is uploaded when it is closed.
        let result = entry.upload_closed_content(&target_of);
        if let Err(error) = &result
            && may_succeed_later(error)
        {
            let is_away = matches!(error, Error::Remote(error) if error.is_connection_loss());
            let pause = FIRST_PAUSE
                .saturating_mul(1 << tries.min(16))
                .min(if is_away { MAX_PAUSE_AWAY } else { MAX_PAUSE });
            let due = self.clock.tick() + pause;
            self.queue.lock().add_again(Waiting {
                entry,
                target_of,
                due,
                tries: tries + 1,
            });
        }
        drop(running);
    }
}

impl Queue {
    /// Queues content whose upload failed. The failed upload has queued it for the first pause.
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
