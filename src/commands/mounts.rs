//! `scpfs status` and `scpfs umount`: asks the daemons of mounts, and prints what they say.

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

use crate::clock::Clock as _;
use crate::clock::SystemClock;
use crate::config;
use crate::control::MAX_ANSWER;
use crate::control::PATIENCE;
use crate::control::message::Answer;
use crate::control::message::Draining;
use crate::control::message::NotStored;
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

/// How often a drain is looked at, and how often its progress is printed where lines stay.
const STEP: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How long a daemon that was told to end may take; it has a limit of its own.
const LAST_ANSWER: Duration = Duration::from_secs(3600);

/// How long another user's daemon may take for that.
const LAST_ANSWER_OF_OTHERS: Duration = Duration::from_secs(60);

/// How long all sockets of another user are asked in turn which of them is of the mount.
const FIRST_ANSWER_OF_OTHERS: Duration = Duration::from_secs(30);

/// How many bytes it may answer with.
const MAX_ANSWER_OF_OTHERS: u64 = 4 << 20;

/// Why a mount cannot be looked at or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing is mounted on {}", .0.display())]
    NotMounted(PathBuf),
    #[error("{} is not an scpfs mount; its type is {fstype}", path.display())]
    NotOurs { path: PathBuf, fstype: String },
    #[error(
        "the daemon of {} does not answer, or is another user's; `fusermount3 -u` (as root \
         `umount`) unmounts it all the same",
        .0.display()
    )]
    NoDaemon(PathBuf),
    #[error("{} is a dead mount; clear it with `scpfs umount`", .0.display())]
    Dead(PathBuf),
    #[error("{} is in use; `fuser -vm` names the programs, --force unmounts all the same", .0.display())]
    InUse(PathBuf),
    #[error("the daemon of {} says that it is unmounted, but it is still mounted", .0.display())]
    StillMounted(PathBuf),
    #[error("cannot read the list of mounts")]
    Mounts(#[source] io::Error),
    #[error("cannot speak with the daemon")]
    Conversation(#[source] io::Error),
    #[error("the daemon refuses: {0}")]
    Refused(String),
    #[error("cannot clear the dead mount")]
    Clear(#[source] attach::Error),
    #[error("cannot print")]
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
            | Self::Conversation(_)
            | Self::Refused(_)
            | Self::Clear(_) => ExitCode::CannotMount,
        }
    }
}

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Document {
    mounts: Vec<Status>,
}

/// Prints how a mount is, or all of this user; goes on for ever if it is to watch.
pub fn status(task: &config::Status, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let mountpoint = task.mountpoint.as_deref().map(resolve);
    let clears = task.watches && !task.as_json && io::stdout().is_terminal();
    loop {
        let mut mounts = match &mountpoint {
            None => all(sockets::find(&task.sockets)),
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
        thread::sleep(WATCH_EVERY);
    }
}

/// Uploads everything and unmounts; prints how far that is and what could not be uploaded.
pub fn umount(
    task: &config::Umount,
    fusermount: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let path = resolve(&task.mountpoint);
    let Served {
        mount, mut daemon, ..
    } = match find(&task.sockets, &path) {
        Ok(found) => found,
        Err(Error::Dead(path)) => return clear(task, &path, fusermount, out),
        Err(error) => return Err(error),
    };
    let left = drain(task, &mut daemon, out)?;
    if !left.is_empty() && !task.force {
        list(&left, out)?;
        let text = "still mounted; mend it and try again, or unmount with --force: what is left \
                    stays in the cache\n";
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
                "in use; it is out of sight, and ends with its last user\n",
            )?;
            left
        }
        Answer::InUse => return Err(Error::InUse(path)),
        answer => return Err(refused(answer)),
    };
    list(&left, out)?;
    if left.is_empty() {
        return Ok(ExitCode::Success);
    }
    print(out, "unmounted; what is left stays in the cache\n")?;
    Ok(ExitCode::NotUploaded)
}

/// Takes off what a daemon that is dead has left.
fn clear(
    task: &config::Umount,
    path: &Path,
    fusermount: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let fusermount = fusermount.filter(|_| task.sockets.uid != 0);
    let mount = mountinfo::topmost(path).map_err(Error::Mounts)?;
    let mount = mount.filter(|mount| mount.fstype.starts_with("fuse.scpfs"));
    let mount = mount.ok_or_else(|| Error::NotMounted(path.to_owned()))?;
    attach::detach_by_id(&mount.id, fusermount, WhenBusy::Hide).map_err(Error::Clear)?;
    let text = format!(
        "the daemon of {} was dead; the mountpoint is cleared\n",
        Escaped(path.as_os_str().as_bytes())
    );
    print(out, &text)?;
    Ok(ExitCode::Success)
}

/// Has everything uploaded; returns what is not, in the end or when there is no more time.
fn drain(
    task: &config::Umount,
    daemon: &mut Daemon,
    out: &mut dyn Write,
) -> Result<Vec<NotStored>, Error> {
    let clock = SystemClock::new();
    let is_terminal = io::stdout().is_terminal();
    let mut printed: Option<(Duration, String)> = None;
    let mut request = Request::Drain;
    loop {
        let progress = match daemon.ask(&request)? {
            Answer::Progress(progress) => progress,
            answer => return Err(refused(answer)),
        };
        request = Request::Progress;
        let now = clock.tick();
        let is_over = now >= task.timeout;
        if is_over || !progress.is_draining {
            if is_terminal && printed.is_some() {
                print(out, "\r\x1b[K")?;
            }
            return Ok(not_uploaded(progress, task.timeout));
        }
        let line = show::to_upload(&progress.files);
        let is_due = match &printed {
            None => now >= STEP,
            Some((at, before)) => {
                *before != line && (is_terminal || now.saturating_sub(*at) >= LINE_EVERY)
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
        thread::sleep(STEP);
    }
}

fn not_uploaded(progress: Draining, timeout: Duration) -> Vec<NotStored> {
    if !progress.is_draining {
        return progress.left;
    }
    let reason = format!("not within {} s", timeout.as_secs_f64());
    let files = progress.files.into_iter().map(|file| NotStored {
        path: file.path,
        message: file.message.unwrap_or_else(|| reason.clone()),
    });
    files.collect()
}

fn list(left: &[NotStored], out: &mut dyn Write) -> Result<(), Error> {
    for NotStored { path, message } in left {
        print(out, &format!("not uploaded: {path}: {message}\n"))?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Error> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Print)
}

fn refused(answer: Answer) -> Error {
    match answer {
        Answer::Failed { message } => Error::Refused(message),
        answer => Error::Refused(format!("unexpected answer {answer:?}")),
    }
}

/// Returns the path as `/proc/self/mountinfo` would have it, even if what is mounted there is
/// dead.
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
struct Served {
    mount: MountLine,
    status: Status,
    daemon: Daemon,
}

/// Waits until the kernel has no such mount any more.
///
/// # Errors
/// It still has, whatever the daemon said.
fn check_gone(path: &Path, mount: &MountLine) -> Result<(), Error> {
    let clock = SystemClock::new();
    while mountinfo::by_id(&mount.id)
        .map_err(Error::Mounts)?
        .is_some()
    {
        if clock.tick() >= PATIENCE {
            return Err(Error::StillMounted(path.to_owned()));
        }
        thread::sleep(STEP);
    }
    Ok(())
}

/// Finds the daemon of what is mounted on `path`.
fn find(places: &config::Sockets, path: &Path) -> Result<Served, Error> {
    let Some(mount) = mountinfo::topmost(path).map_err(Error::Mounts)? else {
        return Err(Error::NotMounted(path.to_owned()));
    };
    // Answers about a mount from any other user prove nothing.
    let owner = mount.owner.unwrap_or(places.uid);
    let clock = SystemClock::new();
    for stream in sockets::find_of(places, owner) {
        let is_foreign = owner != places.uid;
        let left = FIRST_ANSWER_OF_OTHERS.saturating_sub(clock.tick());
        if is_foreign && left.is_zero() {
            break;
        }
        let Ok(mut daemon) = Daemon::new(stream, is_foreign) else {
            continue;
        };
        if is_foreign {
            daemon.patience = daemon.patience.min(left);
        }
        if let Ok(Answer::Status(status)) = daemon.ask(&Request::Status)
            && status.mount_id.as_deref() == Some(mount.id.as_str())
        {
            let status = *status;
            daemon.patience = PATIENCE;
            return Ok(Served {
                mount,
                status,
                daemon,
            });
        }
    }
    Err(without_daemon(path, mount))
}

fn without_daemon(path: &Path, mount: MountLine) -> Error {
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

/// Asks each for its status; who does not answer is left out.
fn all(streams: Vec<UnixStream>) -> Vec<Status> {
    let ask = |stream| match Daemon::new(stream, false).ok()?.ask(&Request::Status) {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    };
    streams.into_iter().filter_map(ask).collect()
}

/// The daemon of a mount, on the other side of its control socket.
struct Daemon {
    reader: BufReader<UnixStream>,
    /// Whether it is another user's, who may want to keep root waiting.
    is_foreign: bool,
    /// How long an answer may take that is known at once.
    patience: Duration,
}

impl Daemon {
    fn new(stream: UnixStream, is_foreign: bool) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(stream),
            is_foreign,
            patience: PATIENCE,
        })
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        self.converse(request).map_err(Error::Conversation)
    }

    fn converse(&mut self, request: &Request) -> io::Result<Answer> {
        let limit = match request {
            Request::Unmount { .. } if self.is_foreign => LAST_ANSWER_OF_OTHERS,
            Request::Unmount { .. } => LAST_ANSWER,
            _ => self.patience,
        };
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text)?;
        let line = self.read_line(limit)?;
        let mut answer = serde_json::from_slice(&line)?;
        escape(&mut answer);
        Ok(serde_json::from_value(answer)?)
    }

    /// Reads a line within `limit`, in however many pieces it comes.
    fn read_line(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let clock = SystemClock::new();
        let max_len = if self.is_foreign {
            MAX_ANSWER_OF_OTHERS
        } else {
            MAX_ANSWER
        };
        let mut line = Vec::new();
        loop {
            let left = limit.saturating_sub(clock.tick());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.reader.get_mut().set_read_timeout(Some(left))?;
            let piece = self.reader.fill_buf()?;
            let end = memchr::memchr(b'\n', piece);
            let n = end.unwrap_or(piece.len());
            line.extend_from_slice(piece.get(..n).unwrap_or_default());
            let is_over = piece.is_empty() || line.len() as u64 > max_len;
            self.reader.consume(n + usize::from(end.is_some()));
            match end {
                Some(_) => return Ok(line),
                None if is_over => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }
}

/// Escapes whatever is received that could move a cursor or forge a line. A daemon escapes names
/// itself; backslashes stay as they are.
fn escape(answer: &mut Value) {
    match answer {
        Value::String(text) => *text = Printable(text).to_string(),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(fields) => fields.values_mut().for_each(escape),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
