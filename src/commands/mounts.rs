//! `scpfs status` and `scpfs umount`: asks the daemons of mounts, and prints their answers.

use std::fs;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::IsTerminal as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::clock::SystemClock;
use crate::config;
use crate::control::IO_TIMEOUT;
use crate::control::MAX_ANSWER;
use crate::control::message::Answer;
use crate::control::message::DrainProgress;
use crate::control::message::NotUploaded;
use crate::control::message::Request;
use crate::control::message::Status;
use crate::control::show;
use crate::control::sockets;
use crate::exit_code::ExitCode;
use crate::mount::attach;
use crate::mount::attach::WhenBusy;
use crate::mount::guard;
use crate::mount::mountinfo;
use crate::mount::mountinfo::MountLine;
use crate::path::Escaped;
use crate::path::Printable;

/// How often the progress of a drain is requested.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often the progress is printed if standard output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The interval of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit for the answer to [`Request::Unmount`]; the daemon has a shorter one of its own.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The same for the daemon of another user, which may want to keep root waiting.
const FOREIGN_UNMOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// The time limit for finding the daemon of a mount among all sockets of another user.
const FOREIGN_SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum size in bytes of an answer from another user's daemon.
const MAX_FOREIGN_ANSWER: u64 = 4 << 20;

/// Why `status` or `umount` failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing is mounted on {}", .0.display())]
    NotMounted(PathBuf),
    #[error("{} is not an scpfs mount; its type is {fstype}", path.display())]
    NotOurs { path: PathBuf, fstype: String },
    #[error(
        "the daemon of {} does not answer, or belongs to another user; unmount with \
         `fusermount3 -u` (as root `umount`)",
        .0.display()
    )]
    NoDaemon(PathBuf),
    #[error("{} is a dead mount; clear it with `scpfs umount`", .0.display())]
    Dead(PathBuf),
    #[error("{} is in use; `fuser -vm` lists the programs; --force unmounts it anyway", .0.display())]
    InUse(PathBuf),
    #[error("the daemon of {} reports that it is unmounted, but it is still mounted", .0.display())]
    StillMounted(PathBuf),
    #[error("cannot read the list of mounts")]
    Mounts(#[source] io::Error),
    #[error("cannot communicate with the daemon")]
    Socket(#[source] io::Error),
    #[error("the daemon reports an error: {0}")]
    Refused(String),
    #[error("cannot unmount the dead mount")]
    Clear(#[source] attach::Error),
    #[error("cannot write to standard output")]
    Print(#[source] io::Error),
}

impl Error {
    /// Returns the exit status of a command that fails with this error.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotMounted(_) | Self::NotOurs { .. } | Self::Print(_) => ExitCode::Failure,
            Self::NoDaemon(_)
            | Self::Dead(_)
            | Self::InUse(_)
            | Self::StillMounted(_)
            | Self::Mounts(_)
            | Self::Socket(_)
            | Self::Refused(_)
            | Self::Clear(_) => ExitCode::CannotMount,
        }
    }
}

/// The output of `status --json`.
#[derive(Debug, Serialize)]
struct Document {
    mounts: Vec<Status>,
}

/// Prints the status of one mount, or of all mounts of this user; with `--watch` again and again.
///
/// # Errors
/// Nothing is mounted there, the daemon does not answer, or the output cannot be written.
pub fn status(task: &config::Status, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let mountpoint = task.mountpoint.as_deref().map(resolve);
    let clears = task.watches && !task.as_json && io::stdout().is_terminal();
    loop {
        let mut mounts = match &mountpoint {
            None => status_of_all(sockets::connect_to_all(&task.sockets)),
            Some(path) => vec![find(&task.sockets, path)?.status],
        };
        mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        let text = if task.as_json {
            let document = Document { mounts };
            serde_json::to_string(&document).map_err(|error| Error::Print(error.into()))? + "\n"
        } else if mounts.is_empty() {
            "no scpfs mounts\n".to_owned()
        } else {
            let texts: Vec<String> = mounts.iter().map(show::status).collect();
            texts.join("\n")
        };
        let start = if clears { "\x1b[H\x1b[J" } else { "" };
        write!(out, "{start}{text}")
            .and_then(|()| out.flush())
            .map_err(Error::Print)?;
        if !task.watches {
            return Ok(ExitCode::Success);
        }
        thread::sleep(WATCH_INTERVAL);
    }
}

/// Drains and unmounts a mount; prints the progress and the files that could not be uploaded.
///
/// Returns [`ExitCode::NotUploaded`] if files are not uploaded; the mount stays unless `--force`
/// was given. Clears the mountpoint of a dead mount. Blocks.
///
/// # Errors
/// Nothing is mounted there, the daemon does not answer or fails, or the mount is in use.
pub fn umount(
    task: &config::Umount,
    fusermount: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let path = resolve(&task.mountpoint);
    let FoundMount {
        mount, mut daemon, ..
    } = match find(&task.sockets, &path) {
        Ok(found) => found,
        Err(Error::Dead(path)) => return clear_dead_mount(task, &path, fusermount, out),
        Err(error) => return Err(error),
    };
    let left = drain(task, &mut daemon, out)?;
    if !left.is_empty() && !task.force {
        print_not_uploaded(&left, out)?;
        let text = "still mounted: remove the cause and try again, or unmount with --force, which \
                    keeps these files in the cache\n";
        print(out, text)?;
        return Ok(ExitCode::NotUploaded);
    }
    let left = match daemon.ask(&Request::Unmount { force: task.force })? {
        Answer::Unmounted { left } => {
            check_gone(&path, &mount)?;
            left
        }
        Answer::Hidden => {
            check_gone(&path, &mount)?;
            print(
                out,
                "in use: unmounted lazily, ends when its last file is closed\n",
            )?;
            left
        }
        Answer::InUse => return Err(Error::InUse(path)),
        answer => return Err(answer_error(answer)),
    };
    print_not_uploaded(&left, out)?;
    if left.is_empty() {
        return Ok(ExitCode::Success);
    }
    print(
        out,
        "unmounted; these files stay in the cache, the next mount uploads them\n",
    )?;
    Ok(ExitCode::NotUploaded)
}

/// Unmounts a mount whose daemon has ended.
fn clear_dead_mount(
    task: &config::Umount,
    path: &Path,
    fusermount: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let fusermount = fusermount.filter(|_| task.sockets.uid != 0);
    let mount = mountinfo::topmost(path).map_err(Error::Mounts)?;
    let mount = mount.filter(|mount| mount.fstype.starts_with("fuse.scpfs"));
    let mount = mount.ok_or_else(|| Error::NotMounted(path.to_owned()))?;
    attach::detach_by_id(&mount.id, fusermount, WhenBusy::UnmountLazily).map_err(Error::Clear)?;
    let text = format!(
        "the daemon of {} was dead; the mountpoint is cleared\n",
        Escaped(path.as_os_str().as_bytes())
    );
    print(out, &text)?;
    Ok(ExitCode::Success)
}

/// Drains the mount, for at most `task.timeout`; returns the files that are not uploaded.
fn drain(
    task: &config::Umount,
    daemon: &mut Daemon,
    out: &mut dyn Write,
) -> Result<Vec<NotUploaded>, Error> {
    let clock = SystemClock::new();
    let is_terminal = io::stdout().is_terminal();
    let mut printed: Option<(Duration, String)> = None;
    let mut request = Request::Drain;
    loop {
        let progress = match daemon.ask(&request)? {
            Answer::Progress(progress) => progress,
            answer => return Err(answer_error(answer)),
        };
        request = Request::Progress;
        let now = clock.elapsed();
        let has_timed_out = now >= task.timeout;
        if has_timed_out || !progress.is_draining {
            if is_terminal && printed.is_some() {
                print(out, "\r\x1b[K")?;
            }
            return Ok(not_uploaded(progress, task.timeout));
        }
        let line = show::to_upload(&progress.files);
        let is_due = match &printed {
            None => now >= POLL_INTERVAL,
            Some((at, before)) => {
                *before != line && (is_terminal || now.saturating_sub(*at) >= LINE_INTERVAL)
            }
        };
        if is_due && !progress.files.is_empty() {
            if is_terminal {
                print(out, &format!("\r{line}\x1b[K"))?;
            } else {
                print(out, &format!("{line}\n"))?;
            }
            printed = Some((now, line));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn not_uploaded(progress: DrainProgress, timeout: Duration) -> Vec<NotUploaded> {
    if !progress.is_draining {
        return progress.left;
    }
    let reason = format!("timed out after {} s", timeout.as_secs_f64());
    let files = progress.files.into_iter().map(|file| NotUploaded {
        path: file.path,
        message: file.message.unwrap_or_else(|| reason.clone()),
    });
    files.collect()
}

fn print_not_uploaded(files: &[NotUploaded], out: &mut dyn Write) -> Result<(), Error> {
    for NotUploaded { path, message } in files {
        print(out, &format!("not uploaded: {path}: {message}\n"))?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Error> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Print)
}

fn answer_error(answer: Answer) -> Error {
    match answer {
        Answer::Failed { message } => Error::Refused(message),
        answer => Error::Refused(format!("unexpected answer {answer:?}")),
    }
}

/// Returns the absolute path without symlinks, as in `/proc/self/mountinfo`.
///
/// A dead mount cannot be resolved itself: then only its parent directory is.
fn resolve(path: &Path) -> PathBuf {
    let by_parent = || {
        let absolute = std::path::absolute(path).ok()?;
        let parent = fs::canonicalize(absolute.parent()?).ok()?;
        Some(parent.join(absolute.file_name()?))
    };
    fs::canonicalize(path)
        .ok()
        .or_else(by_parent)
        .unwrap_or_else(|| path.to_owned())
}

/// A mount whose daemon answers.
struct FoundMount {
    mount: MountLine,
    status: Status,
    daemon: Daemon,
}

/// Waits until the kernel lists the mount no more, for at most `IO_TIMEOUT`.
///
/// # Errors
/// [`Error::StillMounted`]: the daemon's answer was wrong.
fn check_gone(path: &Path, mount: &MountLine) -> Result<(), Error> {
    let clock = SystemClock::new();
    while mountinfo::by_id(&mount.id)
        .map_err(Error::Mounts)?
        .is_some()
    {
        if clock.elapsed() >= IO_TIMEOUT {
            return Err(Error::StillMounted(path.to_owned()));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Finds the daemon of the mount on `path`.
///
/// # Errors
/// Nothing is mounted there, it is no scpfs mount, or no daemon of its owner answers for it.
fn find(config: &config::Sockets, path: &Path) -> Result<FoundMount, Error> {
    let Some(mount) = mountinfo::topmost(path).map_err(Error::Mounts)? else {
        return Err(Error::NotMounted(path.to_owned()));
    };
    // Only the owner's daemon is asked: any other user could claim to serve the mount.
    let owner = mount.owner.unwrap_or(config.uid);
    let clock = SystemClock::new();
    for stream in sockets::connect_to_all_of(config, owner) {
        let is_foreign = owner != config.uid;
        let remaining = FOREIGN_SEARCH_TIMEOUT.saturating_sub(clock.elapsed());
        if is_foreign && remaining.is_zero() {
            break;
        }
        let Ok(mut daemon) = Daemon::new(stream, is_foreign) else {
            continue;
        };
        if is_foreign {
            daemon.timeout = daemon.timeout.min(remaining);
        }
        if let Ok(Answer::Status(status)) = daemon.ask(&Request::Status)
            && status.mount_id.as_deref() == Some(mount.id.as_str())
        {
            let status = *status;
            daemon.timeout = IO_TIMEOUT;
            return Ok(FoundMount {
                mount,
                status,
                daemon,
            });
        }
    }
    Err(no_daemon_error(path, mount))
}

fn no_daemon_error(path: &Path, mount: MountLine) -> Error {
    let path = path.to_owned();
    if !mount.fstype.starts_with("fuse.scpfs") {
        let fstype = mount.fstype;
        return Error::NotOurs { path, fstype };
    }
    if guard::is_dead(&path) {
        Error::Dead(path)
    } else {
        Error::NoDaemon(path)
    }
}

/// Returns the status of each daemon that answers.
fn status_of_all(streams: Vec<UnixStream>) -> Vec<Status> {
    let ask = |stream| match Daemon::new(stream, false).ok()?.ask(&Request::Status) {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    };
    streams.into_iter().filter_map(ask).collect()
}

/// The daemon of a mount, on the other side of its control socket.
struct Daemon {
    reader: BufReader<UnixStream>,
    /// The daemon belongs to another user: stricter limits apply.
    is_foreign: bool,
    /// The time limit for an answer to any request but [`Request::Unmount`].
    timeout: Duration,
}

impl Daemon {
    fn new(stream: UnixStream, is_foreign: bool) -> io::Result<Self> {
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(Self {
            reader: BufReader::new(stream),
            is_foreign,
            timeout: IO_TIMEOUT,
        })
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        self.round_trip(request).map_err(Error::Socket)
    }

    fn round_trip(&mut self, request: &Request) -> io::Result<Answer> {
        let limit = match request {
            Request::Unmount { .. } if self.is_foreign => FOREIGN_UNMOUNT_TIMEOUT,
            Request::Unmount { .. } => UNMOUNT_TIMEOUT,
            _ => self.timeout,
        };
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text)?;
        let line = self.read_line(limit)?;
        let mut answer = serde_json::from_slice(&line)?;
        escape(&mut answer);
        Ok(serde_json::from_value(answer)?)
    }

    /// Reads a line; `limit` is the time for the whole line, however slowly its bytes arrive.
    fn read_line(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let clock = SystemClock::new();
        let max_len = if self.is_foreign {
            MAX_FOREIGN_ANSWER
        } else {
            MAX_ANSWER
        };
        let mut line = Vec::new();
        loop {
            let remaining = limit.saturating_sub(clock.elapsed());
            if remaining.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.reader.get_mut().set_read_timeout(Some(remaining))?;
            let chunk = self.reader.fill_buf()?;
            let end = memchr::memchr(b'\n', chunk);
            let n = end.unwrap_or(chunk.len());
            line.extend_from_slice(chunk.get(..n).unwrap_or_default());
            let is_over = chunk.is_empty() || line.len() as u64 > max_len;
            self.reader.consume(n + usize::from(end.is_some()));
            match end {
                Some(_) => return Ok(line),
                None if is_over => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }
}

/// Escapes control characters in all texts of an answer, so that no daemon can control the terminal
/// or forge lines. Backslashes are left alone, because the daemon has escaped names already.
fn escape(answer: &mut Value) {
    match answer {
        Value::String(text) => *text = Printable(text).to_string(),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(fields) => fields.values_mut().for_each(escape),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
