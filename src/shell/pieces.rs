//! Uploading a large file in pieces, over several lanes at once.
//!
//! A server grants one channel a small window (2 MiB with OpenSSH), and no more than that travels
//! in one round trip; lanes together are as fast as the network. Each piece is read by a `dd` that
//! is told its exact length, so there is no SCP in here. Nothing but the last request touches the
//! final name: whatever fails before it changes nothing that anybody sees.
//!
//! The conversation on each lane, see `content.sh`:
//!
//! ```text
//! we:    begin_pieces; take_piece OFFSET LENGTH ..    first lane; another begins with join_pieces
//! host:  READY                                        dd has the file open
//! we:    content, take_piece ..                       the next request goes right behind the content
//! host:  READY                                        the piece before is complete as well
//! we:    content, a 0
//! host:  0
//! we:    finish_pieces ..                             first lane, once all lanes are done
//! ```

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::Scope;

use crate::path::RemotePath;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Result;
use crate::remote::TimePrecision;
use crate::remote::Uploaded;
use crate::scp::ahead::CHUNK;
use crate::shell::Lanes;
use crate::shell::Lent;
use crate::shell::Shell;
use crate::shell::content::How;
use crate::shell::content::Upload;
use crate::shell::lane::Lane;
use crate::shell::outcome::outcome;
use crate::shell::outcome::upload_failed;
use crate::shell::outcome::uploaded;
use crate::shell::quote::Line;
use crate::shell::status;
use crate::shell::transfer::lost;
use crate::ssh;
use crate::sync::Mutex;

const ACT: &str = "upload";

/// Files above this size go in pieces. Below it, one lane is done before others stand.
const MIN_FILE: u64 = 16 << 20;

/// How much `dd` reads and writes at a time, see `take_piece` in `content.sh`.
const BLOCK: u64 = 64 << 10;

/// Bounds of a piece but the last, multiples of [`BLOCK`]. Between two pieces a lane is idle for a
/// round trip, which is little beside the 16 that the largest takes with a window of 2 MiB.
const MIN_PIECE: u64 = 1 << 20;
const MAX_PIECE: u64 = 32 << 20;

/// The first piece of a lane, whose speed is not known.
const FIRST_PIECE: u64 = 4 << 20;

/// Towards the end pieces get smaller, so that no lane is waited for long; but not below this.
const LAST_PIECES: u64 = 4 << 20;

/// A shorter hole is sent as zeros: it costs less than a piece of its own.
const MIN_HOLE: u64 = 1 << 20;

/// A piece is to take about so long, because a lane can be given to somebody else only after it.
const PIECE_MILLIS: u64 = 1000;

impl Shell {
    /// Whether content is to go in pieces.
    pub(super) fn goes_in_pieces(&self, upload: &Upload<'_>) -> bool {
        // Without SCP only `touch` sets the time, and it should be able to.
        let is_exact = !self.tools.has_scp
            || self.facts.time_precision == TimePrecision::Nanos
            || upload.plan.mtime.nanos == 0;
        self.facts.can_take_pieces
            && is_exact
            && upload.size > MIN_FILE
            && upload.how != How::Direct
            && (self.lanes.max_transfers() > 1 || self.facts.can_take_holes)
    }

    /// Uploads content as [`crate::remote::Remote::upload`] does, over as many lanes as content may
    /// use and nobody waits for.
    pub(super) fn upload_in_pieces(
        &self,
        mut lane: Lent,
        upload: &Upload<'_>,
        content: &dyn Content,
    ) -> Result<Uploaded> {
        let Upload {
            path,
            temp,
            plan,
            how,
            size,
        } = *upload;
        let stamp = self.tools.stamp(plan.mtime);
        let begin = self.upload_line(path, temp, plan, how, &stamp);
        let pieces = Pieces {
            lanes: &self.lanes,
            path,
            begin: begin.raw("begin_pieces;"),
            temp: self.absolute(&temp.dir.join(&temp.name)),
            holder: OnceLock::new(),
            content,
            has_holes: self.facts.can_take_holes,
            size,
            next: Mutex::new(0),
            is_given_up: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        // The scope ends when all its threads have.
        thread::scope(|scope| {
            let result = pieces.send(&mut lane, Role::First(scope));
            pieces.note(result);
        });
        let failure = pieces.failure.lock().take();
        if let Some(error) = failure {
            pieces.clean_up(lane, &error);
            return Err(error);
        }
        let line = Line::new(&format!("finish_pieces {size}"))
            .arg(self.tools.stamp(plan.atime).as_bytes())
            .finish();
        let answer = lane.request(&line).map_err(|error| lost(ACT, error))?;
        let outcome = outcome(answer.status);
        if outcome.is_none() {
            // The shell ends after a failed upload, see `content.sh`.
            lane.set_broken();
        }
        drop(lane);
        match outcome {
            Some(outcome) => {
                self.note_unremovable(path, answer.status);
                Ok(uploaded(outcome, plan, &answer))
            }
            None => Err(upload_failed(path, answer.status, answer.body)),
        }
    }
}

/// What the threads of one upload share.
struct Pieces<'a> {
    lanes: &'a Lanes,
    path: &'a RemotePath,
    /// The line that the first lane gets before its first piece.
    begin: Line,
    /// The absolute name of the temporary file.
    temp: Vec<u8>,
    /// The process that has the temporary file open.
    holder: OnceLock<u32>,
    content: &'a dyn Content,
    /// Whether holes need not be sent.
    has_holes: bool,
    size: u64,
    /// Where the next piece begins.
    next: Mutex<u64>,
    /// Set with `failure`; looked at before each chunk.
    is_given_up: AtomicBool,
    failure: Mutex<Option<Error>>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    len: u64,
}

/// What a lane is in an upload.
#[derive(Clone, Copy)]
enum Role<'scope, 'env> {
    /// Makes the file, brings in helpers, stays to the end.
    First(&'scope Scope<'scope, 'env>),
    /// Goes when somebody else wants a lane.
    Helper,
}

impl<'env> Pieces<'env> {
    /// Takes the next piece, of about `wanted` bytes; `None` when nothing is left to do. A hole of
    /// more than [`MIN_HOLE`] bytes is left out.
    fn take(&self, wanted: u64) -> Option<Piece> {
        let mut next = self.next.lock();
        if self.is_given_up.load(Ordering::Relaxed) {
            return None;
        }
        let mut end = self.size;
        if self.has_holes {
            let data = self.content.data_after(*next, MIN_HOLE, self.size);
            *next = data.start;
            end = data.end;
        }
        let left = self.size - *next;
        if left == 0 {
            return None;
        }
        let n_lanes = self.lanes.max_transfers() as u64;
        let fair = (left / n_lanes).next_multiple_of(BLOCK).max(LAST_PIECES);
        let offset = *next;
        let len = wanted.min(fair).min(end - offset);
        *next += len;
        Some(Piece { offset, len })
    }

    fn is_anything_left(&self) -> bool {
        *self.next.lock() < self.size && !self.is_given_up.load(Ordering::Relaxed)
    }

    /// Sends pieces over one lane until none is left or the upload is given up. At the end the
    /// lane is between two requests, or broken.
    fn send<'scope>(&'scope self, lane: &mut Lane, role: Role<'scope, 'env>) -> Result<()> {
        let Some(mut piece) = self.take(FIRST_PIECE) else {
            return match role {
                // Nothing but a hole: the file is made all the same.
                Role::First(_) => {
                    let line = self.begin.clone().raw("answer 0").finish();
                    lane.send(&line).map_err(|error| lost(ACT, error))?;
                    self.await_status(lane, 0).map(drop)
                }
                Role::Helper => Ok(()),
            };
        };
        let line = match (role, self.holder.get()) {
            (Role::First(_), _) => self.begin.clone(),
            (Role::Helper, holder) => Line::new("join_pieces")
                .arg(&self.temp)
                .raw(&format!("{};", holder.copied().unwrap_or(0))),
        };
        let mut out = self.request(line, piece);
        loop {
            lane.send(&out).map_err(|error| lost(ACT, error))?;
            let ready = self.await_status(lane, status::READY)?;
            if self.holder.get().is_none() {
                let pid = std::str::from_utf8(ready.trim_ascii()).ok();
                self.holder
                    .get_or_init(|| pid.and_then(|pid| pid.parse().ok()).unwrap_or(0));
            }
            // It is not: it takes content now.
            lane.set_broken();
            let since = self.lanes.tick();
            self.send_all_but_last_chunk(lane, piece, role, &mut out)?;
            let gives_way = matches!(role, Role::Helper) && self.lanes.has_waiters();
            let elapsed = self.lanes.tick().saturating_sub(since);
            let following = if gives_way {
                None
            } else {
                self.take(next_len(piece.len, elapsed.as_millis()))
            };
            let Some(following) = following else {
                out.extend_from_slice(b"answer 0\n");
                self.send_content(lane, &out)?;
                return self.await_status(lane, 0).map(drop);
            };
            out.extend(self.request(Line::default(), following));
            piece = following;
        }
    }

    /// The rest of a line that makes the host receive a piece.
    fn request(&self, line: Line, piece: Piece) -> Vec<u8> {
        let Piece { offset, len } = piece;
        // What dd is to say in the end: how many whole and how many partial blocks there were.
        let (whole, partial) = (len / BLOCK, u64::from(len % BLOCK > 0));
        line.raw(&format!("receive_piece {offset} {len} {whole}+{partial}"))
            .finish()
    }

    /// Sends a piece and leaves its last chunk in `out`.
    fn send_all_but_last_chunk<'scope>(
        &'scope self,
        lane: &mut Lane,
        piece: Piece,
        role: Role<'scope, 'env>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let end = piece.offset + piece.len;
        let mut offset = piece.offset;
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                // Another lane has said why; this one cannot get back into step.
                return Err(upload_failed(self.path, status::INCOMPLETE, Vec::new()));
            }
            if let Role::First(scope) = role {
                self.bring_in_a_helper(scope);
            }
            let len = usize::try_from(end - offset).map_or(CHUNK, |left| left.min(CHUNK));
            out.resize(len, 0);
            self.read(out, offset)?;
            offset += len as u64;
            if offset == end {
                return Ok(());
            }
            self.send_content(lane, out)?;
        }
    }

    fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let local = |source| Error::Local {
            act: ACT,
            path: self.path.clone(),
            source,
        };
        while !buf.is_empty() {
            let n = self.content.read_at(buf, offset).map_err(local)?;
            if n == 0 {
                return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
            }
            buf = &mut buf[n..];
            offset += n as u64;
        }
        Ok(())
    }

    fn send_content(&self, lane: &mut Lane, data: &[u8]) -> Result<()> {
        match lane.send(data) {
            Ok(()) => Ok(()),
            Err(error @ crate::shell::lane::Error::Transport(ssh::Error::Timeout { .. })) => {
                Err(lost(ACT, error))
            }
            Err(error) => {
                // A host that gave up says why before it hangs up.
                match self.await_status(lane, status::READY) {
                    Err(refusal) if !refusal.is_connection_loss() => Err(refusal),
                    Err(_) | Ok(_) => Err(lost(ACT, error)),
                }
            }
        }
    }

    /// Reads an answer and returns its body; any status but `wanted` is an error and the end of the
    /// lane.
    fn await_status(&self, lane: &mut Lane, wanted: u32) -> Result<Vec<u8>> {
        let answer = lane.answer().map_err(|error| lost(ACT, error))?;
        if answer.status == wanted {
            return Ok(answer.body);
        }
        lane.set_broken();
        let status = if answer.status == 0 {
            status::INCOMPLETE
        } else {
            answer.status
        };
        Err(upload_failed(self.path, status, answer.body))
    }

    /// Starts a thread for one more lane if there is work and a lane for it.
    fn bring_in_a_helper<'scope>(&'scope self, scope: &'scope Scope<'scope, 'env>) {
        if !self.is_anything_left() {
            return;
        }
        let Some(lane) = self.lanes.lend_spare() else {
            return;
        };
        let helper = thread::Builder::new().name("scpfs-piece".to_owned());
        if let Err(error) = helper.spawn_scoped(scope, move || self.help(lane)) {
            log::debug!("no thread for one more connection: {error}");
        }
    }

    fn help(&self, mut lane: Lent) {
        // One that died while it was idle has not failed the upload.
        if lane.is_alive() {
            let result = self.send(&mut lane, Role::Helper);
            self.note(result);
        }
    }

    /// Keeps the error that says most: a refusal explains a lost connection, not the reverse.
    fn note(&self, result: Result<()>) {
        let Err(error) = result else {
            return;
        };
        let mut failure = self.failure.lock();
        let is_news = failure
            .as_ref()
            .is_none_or(|old| old.is_connection_loss() && !error.is_connection_loss());
        if is_news {
            *failure = Some(error);
        }
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Removes the temporary file of an upload that failed, if a lane is at hand. The host does so
    /// by itself when it sees that a connection is gone.
    fn clean_up(&self, lane: Lent, error: &Error) {
        let lane = if !lane.is_broken() {
            Some(lane)
        } else {
            drop(lane);
            // Where the network is gone, nobody should wait for one more deadline.
            (!error.is_connection_loss())
                .then(|| self.lanes.lend_spare())
                .flatten()
        };
        if let Some(mut lane) = lane {
            let line = Line::new("abandon_pieces").arg(&self.temp);
            if let Err(error) = lane.request(&line.finish()) {
                log::debug!("a temporary file may be left on the host: {error}");
            }
        }
    }
}

/// How large the next piece should be after one of `len` bytes took so long to send.
fn next_len(len: u64, elapsed_millis: u128) -> u64 {
    let elapsed = u64::try_from(elapsed_millis).unwrap_or(u64::MAX).max(1);
    let len = len.saturating_mul(PIECE_MILLIS) / elapsed;
    len.clamp(MIN_PIECE, MAX_PIECE).next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_takes_about_a_second() {
        const MIB: u64 = 1 << 20;
        for (len, millis, next) in [
            (4 * MIB, 0, MAX_PIECE),
            (4 * MIB, 100, MAX_PIECE),
            (4 * MIB, 1000, 4 * MIB),
            (16 * MIB, 4000, 4 * MIB),
            (4 * MIB, 60_000, MIN_PIECE),
            (3_000_000, 1000, 46 * BLOCK),
        ] {
            assert_eq!(next_len(len, millis), next, "{len} {millis}");
        }
    }
}
