//! Uploads of large files in pieces, over several connections at once.
//!
//! A server grants a channel a small window (2 MiB with OpenSSH), which limits a connection to one
//! window per round trip; several connections together use the whole bandwidth. A `dd` that knows
//! the exact length reads each piece, so that no SCP is needed. Only the last request touches the
//! final name: a failure before it changes no file that others see.
//!
//! The conversation on each connection, see `content.sh`:
//!
//! ```text
//! we:    begin_pieces; receive_piece OFFSET LENGTH ..  first connection; join_pieces on the others
//! host:  READY                                         dd has the file open
//! we:    content, receive_piece ..                     the next request follows the content directly
//! host:  READY                                         the previous piece is complete as well
//! we:    content, answer 0
//! host:  0
//! we:    finish_pieces ..                              first connection, when all others are done
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
use crate::shell::Lent;
use crate::shell::Pool;
use crate::shell::Shell;
use crate::shell::content::Method;
use crate::shell::content::Upload;
use crate::shell::outcome::outcome;
use crate::shell::outcome::upload_failed;
use crate::shell::outcome::uploaded;
use crate::shell::quote::Line;
use crate::shell::resident::ResidentShell;
use crate::shell::status;
use crate::shell::transfer::request_failed;
use crate::ssh;
use crate::sync::Mutex;

const ACT: &str = "upload";

/// Larger files are uploaded in pieces. A smaller one is complete before further connections are
/// open.
const MIN_FILE: u64 = 16 << 20;

/// The block size of `dd`, see `receive_piece` in `content.sh`.
const BLOCK: u64 = 64 << 10;

/// Bounds of the length of all pieces but the last; multiples of [`BLOCK`]. Between two pieces a
/// connection is idle for one round trip. That is little compared with the 16 round trips that the
/// longest piece takes with a window of 2 MiB.
const MIN_PIECE: u64 = 1 << 20;
const MAX_PIECE: u64 = 32 << 20;

/// The length of the first piece on a connection, whose speed is not known.
const FIRST_PIECE: u64 = 4 << 20;

/// Pieces get shorter towards the end, so that all connections finish at about the same time, but
/// not shorter than this.
const LAST_PIECES: u64 = 4 << 20;

/// A shorter hole is sent as zeros: it costs less than a piece of its own.
const MIN_HOLE: u64 = 1 << 20;

/// The time that a piece should take. Another user of the pool can get the connection only after a
/// piece.
const PIECE_MILLIS: u64 = 1000;

impl Shell {
    /// Returns whether to upload in pieces.
    pub(super) fn uses_pieces(&self, upload: &Upload<'_>) -> bool {
        // Pieces are sent without SCP, so that only `touch` sets the mtime. If it cannot set this one
        // exactly, SCP does.
        let is_exact = !self.tools.has_scp
            || self.facts.time_precision == TimePrecision::Nanos
            || upload.spec.mtime.nanos == 0;
        self.facts.can_take_pieces
            && is_exact
            && upload.size > MIN_FILE
            && upload.method != Method::Direct
            && (self.pool.max_transfers() > 1 || self.facts.can_take_holes)
    }

    /// Uploads content as [`crate::remote::Remote::upload`] does, over all connections that a
    /// transfer may use and that no other caller waits for.
    pub(super) fn upload_in_pieces(
        &self,
        mut resident: Lent,
        upload: &Upload<'_>,
        content: &dyn Content,
    ) -> Result<Uploaded> {
        let Upload {
            path,
            temp,
            spec,
            method,
            size,
        } = *upload;
        let stamp = self.tools.stamp(spec.mtime);
        let begin = self.upload_line(path, temp, spec, method, &stamp);
        let pieces = Pieces {
            pool: &self.pool,
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
        // The scope ends when all its threads have ended.
        thread::scope(|scope| {
            let result = pieces.send(&mut resident, Role::First(scope));
            pieces.note(result);
        });
        let failure = pieces.failure.lock().take();
        if let Some(error) = failure {
            pieces.clean_up(resident, &error);
            return Err(error);
        }
        let line = Line::new(&format!("finish_pieces {size}"))
            .arg(self.tools.stamp(spec.atime).as_bytes())
            .finish();
        let answer = resident
            .request(&line)
            .map_err(|error| request_failed(ACT, error))?;
        let outcome = outcome(answer.status);
        if outcome.is_none() {
            // The shell exits after a failed upload, see `fail` in `content.sh`.
            resident.set_broken();
        }
        drop(resident);
        match outcome {
            Some(outcome) => {
                self.note_temp_not_removed(path, answer.status);
                Ok(uploaded(outcome, spec, &answer))
            }
            None => Err(upload_failed(path, answer.status, answer.body)),
        }
    }
}

/// State that the threads of one upload share.
struct Pieces<'a> {
    pool: &'a Pool,
    path: &'a RemotePath,
    /// The line that the first resident shell gets before its first piece.
    begin: Line,
    /// The absolute path of the temporary file.
    temp: Vec<u8>,
    /// The PID of the shell that has the temporary file open.
    holder: OnceLock<u32>,
    content: &'a dyn Content,
    /// Whether holes need not be sent.
    has_holes: bool,
    size: u64,
    /// The offset of the next piece.
    next: Mutex<u64>,
    /// Set together with `failure`; checked before each chunk.
    is_given_up: AtomicBool,
    failure: Mutex<Option<Error>>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    len: u64,
}

/// The role of a connection in an upload.
#[derive(Clone, Copy)]
enum Role<'scope, 'env> {
    /// Creates the file, starts helpers, and stays to the end.
    First(&'scope Scope<'scope, 'env>),
    /// Returns its connection if another caller waits for one.
    Helper,
}

impl<'env> Pieces<'env> {
    /// Takes the next piece, of about `wanted` bytes; `None` if nothing is left or the upload was
    /// given up. Skips holes of more than [`MIN_HOLE`] bytes.
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
        let n_connections = self.pool.max_transfers() as u64;
        let fair = (left / n_connections)
            .next_multiple_of(BLOCK)
            .max(LAST_PIECES);
        let offset = *next;
        let len = wanted.min(fair).min(end - offset);
        *next += len;
        Some(Piece { offset, len })
    }

    fn has_more(&self) -> bool {
        *self.next.lock() < self.size && !self.is_given_up.load(Ordering::Relaxed)
    }

    /// Sends pieces over one connection until none is left or the upload is given up. Afterwards
    /// the resident shell waits for a request, or is broken.
    fn send<'scope>(
        &'scope self,
        resident: &mut ResidentShell,
        role: Role<'scope, 'env>,
    ) -> Result<()> {
        let Some(mut piece) = self.take(FIRST_PIECE) else {
            return match role {
                // The content is one hole: no piece is sent, but the file must be created.
                Role::First(_) => {
                    let line = self.begin.clone().raw("answer 0").finish();
                    resident
                        .send(&line)
                        .map_err(|error| request_failed(ACT, error))?;
                    self.await_status(resident, 0).map(drop)
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
            resident
                .send(&out)
                .map_err(|error| request_failed(ACT, error))?;
            let ready = self.await_status(resident, status::READY)?;
            if self.holder.get().is_none() {
                let pid = std::str::from_utf8(ready.trim_ascii()).ok();
                self.holder
                    .get_or_init(|| pid.and_then(|pid| pid.parse().ok()).unwrap_or(0));
            }
            // Reading the answer cleared this, but the shell now reads content.
            resident.set_broken();
            let since = self.pool.tick();
            self.send_all_but_last_chunk(resident, piece, role, &mut out)?;
            let returns_early = matches!(role, Role::Helper) && self.pool.has_waiters();
            let elapsed = self.pool.tick().since(since);
            let following = if returns_early {
                None
            } else {
                self.take(next_len(piece.len, elapsed.as_millis()))
            };
            let Some(following) = following else {
                out.extend_from_slice(b"answer 0\n");
                self.send_content(resident, &out)?;
                return self.await_status(resident, 0).map(drop);
            };
            out.extend(self.request(Line::default(), following));
            piece = following;
        }
    }

    /// Returns `line` with the command that receives a piece.
    fn request(&self, line: Line, piece: Piece) -> Vec<u8> {
        let Piece { offset, len } = piece;
        // The numbers of full and of partial blocks that dd must report.
        let (whole, partial) = (len / BLOCK, u64::from(len % BLOCK > 0));
        line.raw(&format!("receive_piece {offset} {len} {whole}+{partial}"))
            .finish()
    }

    /// Sends a piece except its last chunk, which is left in `out`.
    fn send_all_but_last_chunk<'scope>(
        &'scope self,
        resident: &mut ResidentShell,
        piece: Piece,
        role: Role<'scope, 'env>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let end = piece.offset + piece.len;
        let mut offset = piece.offset;
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                // Another connection has noted the error. This one is in the middle of a piece and
                // must be dropped.
                return Err(upload_failed(self.path, status::INCOMPLETE, Vec::new()));
            }
            if let Role::First(scope) = role {
                self.start_helper(scope);
            }
            let len = usize::try_from(end - offset).map_or(CHUNK, |left| left.min(CHUNK));
            out.resize(len, 0);
            self.read(out, offset)?;
            offset += len as u64;
            if offset == end {
                return Ok(());
            }
            self.send_content(resident, out)?;
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

    fn send_content(&self, resident: &mut ResidentShell, data: &[u8]) -> Result<()> {
        match resident.send(data) {
            Ok(()) => Ok(()),
            Err(error @ crate::shell::resident::Error::Transport(ssh::Error::Timeout { .. })) => {
                Err(request_failed(ACT, error))
            }
            Err(error) => {
                // A host that ends an upload sends the reason before it closes the channel.
                match self.await_status(resident, status::READY) {
                    Err(refusal) if !refusal.is_connection_loss() => Err(refusal),
                    Err(_) | Ok(_) => Err(request_failed(ACT, error)),
                }
            }
        }
    }

    /// Reads an answer and returns its body.
    ///
    /// # Errors
    ///
    /// Any status but `wanted`; the resident shell is then broken.
    fn await_status(&self, resident: &mut ResidentShell, wanted: u32) -> Result<Vec<u8>> {
        let answer = resident
            .read_answer()
            .map_err(|error| request_failed(ACT, error))?;
        if answer.status == wanted {
            return Ok(answer.body);
        }
        resident.set_broken();
        let status = if answer.status == 0 {
            status::INCOMPLETE
        } else {
            answer.status
        };
        Err(upload_failed(self.path, status, answer.body))
    }

    /// Starts a thread for one more connection, if there is work and a connection for it.
    fn start_helper<'scope>(&'scope self, scope: &'scope Scope<'scope, 'env>) {
        if !self.has_more() {
            return;
        }
        let Some(resident) = self.pool.lend_spare() else {
            return;
        };
        let helper = thread::Builder::new().name("scpfs-piece".to_owned());
        if let Err(error) = helper.spawn_scoped(scope, move || self.help(resident)) {
            log::debug!("cannot start a thread for one more connection: {error}");
        }
    }

    fn help(&self, mut resident: Lent) {
        // A connection that died while it was idle is no failure of the upload.
        if resident.is_alive() {
            let result = self.send(&mut resident, Role::Helper);
            self.note(result);
        }
    }

    /// Records a failure. A refusal replaces a lost connection, because it is the cause; not the
    /// reverse.
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

    /// Removes the temporary file of a failed upload, if a connection is free. Otherwise the host
    /// does it when it notices the broken connection.
    fn clean_up(&self, resident: Lent, error: &Error) {
        let resident = if !resident.is_broken() {
            Some(resident)
        } else {
            drop(resident);
            // If the network is down, do not wait for another deadline.
            (!error.is_connection_loss())
                .then(|| self.pool.lend_spare())
                .flatten()
        };
        if let Some(mut resident) = resident {
            let line = Line::new("abandon_pieces").arg(&self.temp);
            if let Err(error) = resident.request(&line.finish()) {
                log::debug!("a temporary file may be left on the host: {error}");
            }
        }
    }
}

/// Returns the length of the next piece, after one of `len` bytes took `elapsed_millis`.
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
