//! SCP servers without a shell. Each command is a thread.
//!
//! A server takes paths literally from the command, as appliances do, and works on a real
//! directory.

use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use scpfs::clock::Clock;
use scpfs::clock::ManualClock;
use scpfs::scp_only::ScpOnly;
use scpfs::scp_only::probe;
use scpfs::ssh::Aborter;
use scpfs::ssh::Channel;
use scpfs::ssh::Connection;
use scpfs::ssh::Error;
use scpfs::ssh::Transport;
use scpfs::sync::Mutex;
use tempfile::TempDir;

use crate::samples::settings;

/// Behaviours of SCP servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Omits a refused entry and continues, like descendants of rcp.
    Skipping,
    /// Like `Skipping`, but a path ends at the first blank.
    Splitting,
    /// Sends the content of a refused file nevertheless, like Apache MINA.
    Insisting,
    /// Ends the transfer at the first refusal, like proftpd.
    HangingUp,
    /// A network device: no options, no directories, one command for each connection.
    Device,
    /// A login script prints a line before the protocol starts.
    Noisy,
    /// A restricted shell behind OpenSSH: a command with a character that is not permitted ends
    /// without output.
    Restricted,
    /// OpenSSH's scp on a filesystem whose mtimes are even seconds, like FAT.
    Fat,
    /// A forced `scp -t`, whatever the client requests.
    Receiving,
}

#[derive(Debug)]
pub struct ScpServer {
    kind: Kind,
    /// The number of bytes of content that were sent.
    pub n_content: Arc<AtomicU64>,
    /// The commands that were started.
    pub commands: Arc<Mutex<Vec<String>>>,
}

impl ScpServer {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            n_content: Arc::default(),
            commands: Arc::default(),
        }
    }
}

/// A server in this process, and the directory that it serves.
pub struct Appliance {
    pub dir: TempDir,
    pub server: Arc<ScpServer>,
}

impl Appliance {
    pub fn new(kind: Kind) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("scpfs-appliance-")
            .tempdir()
            .unwrap();
        Self {
            dir,
            server: Arc::new(ScpServer::new(kind)),
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Connects to the server and probes it.
    pub fn probe(&self) -> Result<ScpOnly, probe::Error> {
        self.probe_with(Arc::new(ManualClock::new()))
    }

    pub fn probe_with(&self, clock: Arc<dyn Clock>) -> Result<ScpOnly, probe::Error> {
        let transport = Arc::clone(&self.server) as Arc<dyn Transport>;
        probe::probe(transport, &settings(&self.dir), clock)
    }

    pub fn n_content(&self) -> u64 {
        self.server.n_content.load(Ordering::SeqCst)
    }
}

impl Transport for ScpServer {
    fn connect(&self) -> Result<Box<dyn Connection>, Error> {
        Ok(Box::new(ServerConnection {
            kind: self.kind,
            n_commands: 0,
            n_content: Arc::clone(&self.n_content),
            commands: Arc::clone(&self.commands),
        }))
    }
}

#[derive(Debug)]
struct ServerConnection {
    kind: Kind,
    n_commands: u32,
    n_content: Arc<AtomicU64>,
    commands: Arc<Mutex<Vec<String>>>,
}

impl Connection for ServerConnection {
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error> {
        let refused = |detail: &str| Error::Failed {
            act: "starting a command",
            detail: detail.to_owned(),
        };
        self.n_commands += 1;
        if self.kind == Kind::Device && self.n_commands > 1 {
            return Err(refused("one command for each connection"));
        }
        self.commands.lock().push(command.to_owned());
        if !command.starts_with("scp ") {
            return Err(refused("the request was denied"));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = Session {
            kind: self.kind,
            input: BufReader::new(theirs.try_clone().unwrap()),
            output: theirs,
            n_content: Arc::clone(&self.n_content),
        };
        let command = command.to_owned();
        // The thread ends with its channel.
        thread::spawn(move || session.run(&command));
        Ok(Box::new(ServerChannel { stream: ours }))
    }

    fn aborter(&self) -> Aborter {
        Aborter::new(|| {})
    }

    fn keepalive(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn banner(&self) -> &str {
        if matches!(self.kind, Kind::Fat | Kind::Restricted) {
            "SSH-2.0-OpenSSH_9.2"
        } else {
            "SSH-2.0-Appliance_1.0"
        }
    }
}

#[derive(Debug)]
struct ServerChannel {
    stream: UnixStream,
}

impl Channel for ServerChannel {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        self.stream.read(buf).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Err(Error::Timeout {
                act: "reading",
                timeout: Duration::ZERO,
            }),
            // The session closed its socket with unread input, which resets the connection.
            _ => Ok(0),
        })
    }

    fn write_all(&mut self, data: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(data)
            .map_err(|_| Error::Closed { act: "writing" })
    }

    fn discard_stderr(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    fn finish(self: Box<Self>) -> Result<Option<i32>, Error> {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ended = (&self.stream).read_to_end(&mut rest);
        Ok(Some(0))
    }
}

/// One command.
struct Session {
    kind: Kind,
    input: BufReader<UnixStream>,
    output: UnixStream,
    n_content: Arc<AtomicU64>,
}

/// The parsed options of an `scp` command.
#[derive(Default)]
struct Asked {
    is_recursive: bool,
    with_times: bool,
    receives: bool,
    path: String,
}

fn parse(command: &str, kind: Kind) -> Asked {
    let mut asked = Asked::default();
    let mut rest = command.strip_prefix("scp ").unwrap();
    loop {
        let (word, after) = rest.split_once(' ').unwrap();
        match word {
            "-p" => asked.with_times = true,
            "-r" => asked.is_recursive = true,
            "-f" | "-t" => {
                asked.receives = word == "-t";
                let words = matches!(kind, Kind::Splitting | Kind::Device);
                let path = if words {
                    after.split(' ').next().unwrap()
                } else {
                    after
                };
                asked.path = path.to_owned();
                return asked;
            }
            other => panic!("an option that no server knows: {other}"),
        }
        rest = after;
    }
}

/// An answer of the client.
#[derive(PartialEq, Eq)]
enum Reply {
    Accepted,
    Refused,
}

impl Session {
    fn run(mut self, command: &str) {
        let is_listed = |c: char| c.is_ascii_alphanumeric() || " /._-".contains(c);
        if self.kind == Kind::Restricted && !command.chars().all(is_listed) {
            return;
        }
        let asked = parse(command, self.kind);
        // The client may disconnect at any time.
        let _ended = self.serve(&asked);
    }

    fn serve(&mut self, asked: &Asked) -> io::Result<()> {
        if self.kind == Kind::Noisy {
            self.output
                .write_all(b"Welcome to \x1b[1mthe appliance\n")?;
        }
        if self.kind == Kind::Device && (asked.with_times || asked.is_recursive) {
            return self.complain("-p -r -d options not supported");
        }
        let path = Path::new(&asked.path);
        if asked.receives || self.kind == Kind::Receiving {
            return self.receive(path, asked);
        }
        if self.reply()? == Reply::Refused {
            return Ok(());
        }
        self.send(path, asked)?;
        Ok(())
    }

    fn complain(&mut self, text: &str) -> io::Result<()> {
        self.output
            .write_all(format!("\x01scp: {text}\n").as_bytes())
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        if byte[0] == 0 {
            return Ok(Reply::Accepted);
        }
        let mut line = Vec::new();
        self.input.read_until(b'\n', &mut line)?;
        Ok(Reply::Refused)
    }

    /// Waits for a reply; returns whether to send what was announced.
    fn is_wanted(&mut self) -> io::Result<bool> {
        match (self.reply()?, self.kind) {
            (Reply::Accepted, _) | (Reply::Refused, Kind::Insisting) => Ok(true),
            (Reply::Refused, Kind::HangingUp) => Err(io::ErrorKind::ConnectionAborted.into()),
            (Reply::Refused, _) => Ok(false),
        }
    }

    fn send(&mut self, path: &Path, asked: &Asked) -> io::Result<()> {
        let shown = path.display();
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => {
                let text = error.to_string();
                let text = text.split(" (os").next().unwrap();
                return self.complain(&format!("{shown}: {text}"));
            }
        };
        let is_sent = meta.is_file() || (meta.is_dir() && asked.is_recursive);
        if !is_sent {
            return self.complain(&format!("{shown}: not a regular file"));
        }
        if asked.with_times {
            let secs = |time: io::Result<std::time::SystemTime>| {
                time.unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs()
            };
            let line = format!("T{} 0 {} 0\n", secs(meta.modified()), secs(meta.accessed()));
            self.output.write_all(line.as_bytes())?;
            if !self.is_wanted()? {
                return Ok(());
            }
        }
        let mode = meta.permissions().mode() & 0o7777;
        let name = path.file_name().unwrap_or_default().to_str().unwrap();
        if meta.is_dir() {
            self.output
                .write_all(format!("D{mode:04o} 0 {name}\n").as_bytes())?;
            if !self.is_wanted()? {
                return Ok(());
            }
            for item in fs::read_dir(path)? {
                self.send(&item?.path(), asked)?;
            }
            self.output.write_all(b"E\n")?;
            self.reply()?;
            return Ok(());
        }
        let size = meta.len();
        self.output
            .write_all(format!("C{mode:04o} {size} {name}\n").as_bytes())?;
        if !self.is_wanted()? {
            return Ok(());
        }
        let n = io::copy(&mut File::open(path)?, &mut self.output)?;
        self.n_content.fetch_add(n, Ordering::SeqCst);
        self.output.write_all(b"\0")?;
        self.reply()?;
        Ok(())
    }

    fn receive(&mut self, path: &Path, asked: &Asked) -> io::Result<()> {
        self.output.write_all(b"\0")?;
        let mut times = None;
        let mut dirs = vec![path.to_owned()];
        loop {
            let mut line = String::new();
            if self.input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end_matches('\n');
            let (kind, rest) = line.split_at(1);
            match kind {
                "T" => {
                    // Servers of this kind accept only whole seconds.
                    let fields: Vec<&str> = rest.split(' ').collect();
                    let is_exact = matches!(self.kind, Kind::Fat | Kind::Restricted);
                    assert!(is_exact || (fields[1], fields[3]) == ("0", "0"), "{line}");
                    let mtime: u64 = fields[0].parse().unwrap();
                    let mtime = if self.kind == Kind::Fat {
                        mtime & !1
                    } else {
                        mtime
                    };
                    times = Some((mtime, fields[2].parse().unwrap()));
                    self.output.write_all(b"\0")?;
                }
                "E" => {
                    self.output.write_all(b"\0")?;
                    dirs.pop();
                    if dirs.is_empty() {
                        return Ok(());
                    }
                }
                "C" | "D" => {
                    let mut fields = rest.splitn(3, ' ');
                    let mode = u32::from_str_radix(fields.next().unwrap(), 8).unwrap();
                    let size: u64 = fields.next().unwrap().parse().unwrap();
                    let name = fields.next().unwrap();
                    let target = dirs.last().unwrap();
                    let target = if target.is_dir() {
                        target.join(name)
                    } else {
                        target.clone()
                    };
                    let made = if kind == "D" {
                        assert!(asked.is_recursive);
                        self.take_dir(&target, mode)
                    } else {
                        self.take_file(&target, mode, size)
                    };
                    if let Err(error) = made {
                        let text = error.to_string();
                        let text = text.split(" (os").next().unwrap();
                        self.complain(&format!("{}: {text}", target.display()))?;
                        continue;
                    }
                    if asked.with_times {
                        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
                    }
                    if let Some((mtime, atime)) = times.take() {
                        let time = |secs| UNIX_EPOCH + Duration::from_secs(secs);
                        File::open(&target)?.set_times(
                            fs::FileTimes::new()
                                .set_modified(time(mtime))
                                .set_accessed(time(atime)),
                        )?;
                    }
                    self.output.write_all(b"\0")?;
                    if kind == "D" {
                        dirs.push(target);
                    }
                }
                _ => return self.complain("protocol error"),
            }
        }
    }

    fn take_dir(&mut self, target: &Path, mode: u32) -> io::Result<()> {
        if !target.is_dir() {
            fs::create_dir(target)?;
        }
        fs::set_permissions(target, fs::Permissions::from_mode(mode | 0o700))
    }

    fn take_file(&mut self, target: &Path, mode: u32, size: u64) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode | 0o200)
            .open(target)?;
        self.output.write_all(b"\0")?;
        io::copy(&mut (&mut self.input).take(size), &mut file)?;
        file.set_len(size)?;
        self.reply().map(drop)
    }
}
