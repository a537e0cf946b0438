//! Hosts that accept connections and data but do not answer.

use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use scpfs_testing::or_skip;
use scpfs_testing::proxy::Proxy;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

use crate::Mounted;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Added to each deadline, because the machine may be busy.
const MARGIN: Duration = Duration::from_secs(5);

/// The longest time of a call that does not need the host, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(2500);

const ARGS: &[&str] = &["-o", "timeout=3,cache_timeout=1"];

/// How the host becomes silent.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Its processes are stopped: its kernel still accepts connections and data.
    Server,
    /// The proxy passes no data, and delivers it when the silence ends.
    Network,
}

struct Hole {
    mounted: Mounted,
    proxy: Proxy,
    way: Way,
}

impl Hole {
    fn new(way: Way) -> Option<Self> {
        let sshd = Sshd::start(Options::default())?;
        let proxy = Proxy::before(&sshd);
        let mounted = Mounted::on(sshd, ARGS)?;
        Some(Self {
            mounted,
            proxy,
            way,
        })
    }

    fn begin(&self) {
        match self.way {
            Way::Server => self.mounted.sshd.freeze(),
            Way::Network => self.proxy.stall(),
        }
    }

    fn end(&self) {
        self.mounted.sshd.thaw();
        self.proxy.heal();
    }

    /// Runs a call that must return by a deadline.
    fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        what: &str,
        op: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (told, answer) = mpsc::channel();
        let begun = Instant::now();
        thread::spawn(move || told.send(op()).unwrap_or_default());
        let result = answer.recv_timeout(limit);
        if result.is_err() {
            self.end();
            panic!("{what} hangs; log:\n{}", self.mounted.log());
        }
        eprintln!(
            "{:?}: {what} took {} ms",
            self.way,
            begun.elapsed().as_millis()
        );
        result.unwrap()
    }

    /// Runs a call that cannot succeed now, and must fail by the deadline.
    fn fails<T: Send + 'static>(
        &self,
        what: &str,
        op: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) {
        let result = self.within(TIMEOUT + MARGIN, what, op);
        let errno = result.err().map(|error| error.raw_os_error());
        let fine = [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::EIO];
        assert!(
            fine.iter().any(|e| errno == Some(Some(*e))),
            "{what}: {errno:?}"
        );
    }

    /// Waits until the file on the host has this content, without a call to the mount.
    fn gets(&mut self, name: &str, content: &[u8]) {
        self.mounted.wait_until(name, |mounted| {
            fs::read(mounted.there(name)).is_ok_and(|data| data == content)
        });
    }
}

fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is ours alone and is not used after this.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn write_new(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.write_all_at(b"new", 0)?;
    close(file)
}

fn no_call_hangs(way: Way) {
    let mut hole = or_skip!(Hole::new(way));
    for name in ["file", "known", "unknown"] {
        hole.mounted.put(name, "content");
    }
    for name in ["dir", "other"] {
        fs::create_dir(hole.mounted.there(name)).unwrap();
        fs::write(hole.mounted.there(name).join("inside"), "content").unwrap();
    }
    let pid = hole.mounted.pid();
    let options = File::options().read(true).write(true).clone();
    // One descriptor for all threads: closing a duplicate would upload the file.
    let file = Arc::new(options.open(hole.mounted.here("file")).unwrap());
    assert_eq!(fs::read(hole.mounted.here("known")).unwrap(), b"content");
    hole.begin();

    let reader = Arc::clone(&file);
    let mut buf = [0; 7];
    let read = hole.within(AT_ONCE, "read of an open file", move || {
        reader.read_exact_at(&mut buf, 0).map(|()| buf)
    });
    assert_eq!(read.unwrap(), *b"content");
    let writer = Arc::clone(&file);
    let written = hole.within(AT_ONCE, "write", move || writer.write_all_at(b"written", 0));
    written.unwrap();
    let file = Arc::into_inner(file).unwrap();
    hole.fails("close", move || close(file));
    thread::sleep(Duration::from_millis(1100));
    let at = |name: &str| hole.mounted.here(name);
    let (unknown, inside, new) = (at("unknown"), at("dir/inside"), at("new"));
    let (dir, other, root) = (at("dir"), at("other"), at(""));
    hole.fails("stat", move || fs::metadata(unknown));
    hole.fails("open", move || File::open(inside));
    hole.fails("readdir", move || fs::read_dir(dir).map(Iterator::count));
    hole.fails("mkdir", move || fs::create_dir(other.join("made")));
    hole.fails("statfs", move || Ok(rustix::fs::statfs(&root)?));
    hole.fails("create, write and close", move || write_new(&new));
    // The same calls, all at the same time.
    let names = ["unknown", "dir/inside", "other/inside", "known", "nothing"];
    let threads: Vec<_> = names
        .iter()
        .map(|name| {
            let path = hole.mounted.here(name);
            thread::spawn(move || fs::metadata(path))
        })
        .collect();
    let begun = Instant::now();
    for thread in threads {
        thread.join().unwrap().unwrap_err();
    }
    assert!(begun.elapsed() < TIMEOUT + MARGIN);
    assert_no_task_of_this_process_is_stuck();

    thread::sleep(Duration::from_secs(2));
    hole.end();
    hole.gets("file", b"written");
    let path = hole.mounted.here("unknown");
    hole.mounted.wait_until("it works again", |_| {
        fs::read(&path).is_ok_and(|data| data == b"content")
    });
    assert_eq!(pid, hole.mounted.pid());
    fs::write(hole.mounted.here("after"), "after").unwrap();
    assert_eq!(fs::read(hole.mounted.there("after")).unwrap(), b"after");
}

#[test]
fn no_call_hangs_on_a_server_that_stops() {
    no_call_hangs(Way::Server);
}

#[test]
fn no_call_hangs_on_a_network_that_passes_nothing() {
    no_call_hangs(Way::Network);
}

/// The tasks of a process with their state, as in `/proc/PID/stat`; none if it is gone.
fn tasks(pid: u32) -> Vec<(PathBuf, char)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let state = |task: PathBuf| {
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        Some((task, state))
    };
    let paths = tasks.flatten().map(|task| task.path());
    paths.filter_map(state).collect()
}

/// The tasks of a process in state D, which only the answer to their FUSE request ends.
fn stuck(pid: u32) -> HashSet<PathBuf> {
    let in_the_kernel = |(task, state)| (state == 'D').then_some(task);
    tasks(pid).into_iter().filter_map(in_the_kernel).collect()
}

/// Asserts that no task of this process stays in state D; each task may be in it for a moment.
fn assert_no_task_of_this_process_is_stuck() {
    let mut left = stuck(std::process::id());
    let begun = Instant::now();
    while !left.is_empty() {
        assert!(begun.elapsed() < TIMEOUT + MARGIN, "they hang: {left:?}");
        thread::sleep(Duration::from_millis(100));
        let now = stuck(std::process::id());
        left.retain(|task| now.contains(task));
    }
}

/// Programs whose calls need the host, because nothing is cached.
fn programs(hole: &Hole) -> Vec<Child> {
    let start = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(hole.mounted.here(""));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    vec![
        start(&["cat", "unknown"]),
        start(&["stat", "dir/inside"]),
        start(&["ls", "other"]),
        start(&["mkdir", "third/made"]),
        start(&["sh", "-c", "echo new >fourth/made"]),
        start(&["df", "."]),
    ]
}

/// A process that waits for a FUSE answer can be interrupted. Once it is killed, it waits in state
/// D, which only the answer ends.
fn no_program_stays_in_the_kernel(way: Way) {
    let mut hole = or_skip!(Hole::new(way));
    hole.mounted.put("unknown", "content");
    for name in ["dir", "other", "third", "fourth"] {
        fs::create_dir(hole.mounted.there(name)).unwrap();
        fs::write(hole.mounted.there(name).join("inside"), "content").unwrap();
    }
    hole.begin();
    let begun = Instant::now();
    let mut killed = programs(&hole);
    let mut left = programs(&hole);
    thread::sleep(Duration::from_secs(1));
    for program in &mut killed {
        program.kill().unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    let is_stuck = |program: &&Child| !stuck(program.id()).is_empty();
    let n_stuck = killed.iter().filter(is_stuck).count();
    let is_soon = begun.elapsed() < TIMEOUT;

    thread::sleep((TIMEOUT + MARGIN).saturating_sub(begun.elapsed()));
    let all = killed.iter().chain(&left);
    // Ended programs are zombies, because they have not been waited for.
    let still_there: Vec<_> = all
        .flat_map(|program| tasks(program.id()))
        .filter(|(_, state)| *state != 'Z')
        .collect();
    assert_no_task_of_this_process_is_stuck();
    hole.end();
    eprintln!("{way:?}: {n_stuck} killed programs were in state D before the deadline");
    let log = hole.mounted.log();
    assert!(still_there.is_empty(), "{still_there:?}; log:\n{log}");
    // Otherwise the check could not detect a program that hangs.
    assert!(n_stuck >= 4 || !is_soon, "{n_stuck}; log:\n{log}");
    for program in killed.iter_mut().chain(&mut left) {
        program.wait().unwrap();
    }
    let path = hole.mounted.here("unknown");
    hole.mounted.wait_until("it works again", |_| {
        fs::read(&path).is_ok_and(|data| data == b"content")
    });
}

#[test]
fn killed_programs_end_by_the_deadline_while_the_server_is_stopped() {
    no_program_stays_in_the_kernel(Way::Server);
}

#[test]
fn killed_programs_end_by_the_deadline_while_the_network_is_down() {
    no_program_stays_in_the_kernel(Way::Network);
}

#[test]
fn a_mount_of_a_silent_host_can_be_ended_and_loses_nothing() {
    for (way, signal) in [(Way::Server, Signal::TERM), (Way::Network, Signal::INT)] {
        let mut hole = or_skip!(Hole::new(way));
        hole.mounted.put("file", "content");
        let file = File::options()
            .write(true)
            .open(hole.mounted.here("file"))
            .unwrap();
        hole.begin();
        file.write_all_at(b"written", 0).unwrap();
        hole.fails("close", move || close(file));
        let begun = Instant::now();
        hole.mounted.signal(signal);
        let status = hole.mounted.wait();
        let took = begun.elapsed();
        eprintln!("{way:?}: the end took {} ms", took.as_millis());
        assert!(took < 3 * TIMEOUT + MARGIN, "{took:?}");
        assert_eq!(status.code(), Some(6), "{}", hole.mounted.log());
        assert!(!hole.mounted.is_mounted());
        hole.end();
        hole.mounted.start(ARGS);
        assert_eq!(fs::read(hole.mounted.here("file")).unwrap(), b"written");
        hole.mounted.wait_until("the content is on the host", |it| {
            fs::read(it.there("file")).unwrap() == b"written"
        });
    }
}

/// A host that is silent for less than the deadline causes no error.
#[test]
fn silence_shorter_than_the_deadline_causes_no_error() {
    for way in [Way::Server, Way::Network] {
        let hole = or_skip!(Hole::new(way));
        for n in 0..3 {
            hole.mounted.put(&format!("old{n}"), "content");
        }
        for n in 0..3 {
            hole.begin();
            let (old, new) = (format!("old{n}"), hole.mounted.here(&format!("new{n}")));
            let old = hole.mounted.here(&old);
            let reader = thread::spawn(move || fs::read(old));
            let writer = thread::spawn(move || write_new(&new));
            thread::sleep(Duration::from_secs(1));
            hole.end();
            assert_eq!(reader.join().unwrap().unwrap(), b"content");
            writer.join().unwrap().unwrap();
            let there = hole.mounted.there(&format!("new{n}"));
            assert_eq!(fs::read(there).unwrap(), b"new");
        }
    }
}

#[test]
#[ignore = "takes more than two minutes"]
fn a_mount_outlives_a_silence_of_a_minute() {
    for way in [Way::Server, Way::Network] {
        let mut hole = or_skip!(Hole::new(way));
        hole.mounted.put("file", "content");
        let file = File::create(hole.mounted.here("file")).unwrap();
        hole.begin();
        file.write_all_at(b"written", 0).unwrap();
        hole.fails("close", move || close(file));
        thread::sleep(Duration::from_secs(60));
        hole.end();
        hole.gets("file", b"written");
        fs::write(hole.mounted.here("file"), "again").unwrap();
        assert_eq!(fs::read(hole.mounted.there("file")).unwrap(), b"again");
    }
}

/// Idle connections are probed before a request that is not idempotent. The probes must not run one
/// after the other, each for the whole deadline.
#[test]
fn idle_connections_do_not_add_their_deadlines_up() {
    let hole = or_skip!(Hole::new(Way::Network));
    for n in 0..16 {
        hole.mounted.put(&format!("file{n}"), vec![7; 1 << 20]);
    }
    let readers: Vec<_> = (0..16)
        .map(|n| {
            let path = hole.mounted.here(&format!("file{n}"));
            thread::spawn(move || fs::read(path))
        })
        .collect();
    for reader in readers {
        reader.join().unwrap().unwrap();
    }
    thread::sleep(Duration::from_secs(11));
    hole.begin();
    let made = hole.mounted.here("made");
    hole.fails("mkdir", move || fs::create_dir(made));
    hole.end();
}

/// A network that works again delivers requests that were sent before, and a resumed server carries
/// them out, although a newer upload has replaced the file meanwhile.
#[test]
fn an_upload_that_arrives_late_does_not_replace_a_newer_one() {
    for way in [Way::Network, Way::Server] {
        arrives_late(way);
    }
}

fn arrives_late(way: Way) {
    let hole = or_skip!(Hole::new(way));
    let path = hole.mounted.here("file");
    for begun_anew in [true, false] {
        let mut options = File::options();
        options.write(true).create(true).truncate(begun_anew);
        fs::write(&path, "first").unwrap();
        let file = options.open(&path).unwrap();
        file.write_all_at(b"second", 0).unwrap();
        match way {
            Way::Network => hole.proxy.stall_present(),
            Way::Server => hole.mounted.sshd.freeze_sessions(),
        }
        hole.fails("close", move || close(file));
        let mut result = Err(io::ErrorKind::NotConnected.into());
        for _ in 0..200 {
            let file = options.open(&path).and_then(|file| {
                file.write_all_at(b"third, longer", 0)?;
                Ok(file)
            });
            result = file.and_then(close);
            if result.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        result.unwrap();
        let there = hole.mounted.there("file");
        assert_eq!(fs::read(&there).unwrap(), b"third, longer");
        hole.end();
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(100));
            assert_eq!(fs::read(&there).unwrap(), b"third, longer", "{begun_anew}");
        }
    }
}
