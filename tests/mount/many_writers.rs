//! Several writers of the same files at once: two mounts of one root, and programs on the host.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::IntoRawFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use scpfs::sync::Mutex;

use scpfs_testing::mounted::unmount;
use scpfs_testing::or_skip;

use crate::Mounted;

const FILES: &[&str] = &["a", "b", "c"];
const N_WRITERS: usize = 2;
const N_LINES: usize = 40;

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    let written = file.write_all(line.as_bytes());
    // SAFETY: the descriptor is ours alone and is not used after this.
    let closed = match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    written.and(closed)
}

#[test]
fn two_mounts_and_a_program_on_the_host_lose_no_line_that_was_closed() {
    let args = ["-o", "cache_timeout=1,timeout=20"];
    let mounted = or_skip!(Mounted::new(&args));
    for name in FILES {
        mounted.put(name, "base\n");
    }
    let other = mounted.aside("other");
    fs::create_dir(&other).unwrap();
    let source = format!("h:{}", mounted.there("").display());
    let mut command = mounted.command();
    command.arg(&source).arg(&other).args(args);
    assert!(command.status().unwrap().success());

    let acknowledged = Mutex::new(Vec::new());
    let n_stale = Mutex::new(0);
    let mut outside = Command::new("sh")
        .args(["-c", "for n in $(seq 300); do for f in a b c; do echo outside $n >> $f; done; sleep 0.02; done"])
        .current_dir(mounted.there(""))
        .spawn()
        .unwrap();
    thread::scope(|scope| {
        for (mount, dir) in [mounted.here(""), other.clone()].into_iter().enumerate() {
            for writer in 0..N_WRITERS {
                let (acknowledged, n_stale, dir) = (&acknowledged, &n_stale, dir.clone());
                scope.spawn(move || {
                    for n in 0..N_LINES {
                        let path = dir.join(FILES[(n + writer) % FILES.len()]);
                        let line = format!("mount {mount} writer {writer} line {n}\n");
                        match append(&path, &line) {
                            Ok(()) => acknowledged.lock().push(line),
                            // Another writer was first: the line is in a conflict copy.
                            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                                *n_stale.lock() += 1;
                            }
                            Err(error) => panic!("{line}: {error}"),
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        }
    });
    outside.kill().unwrap();
    outside.wait().unwrap();
    unmount(&other);

    let texts: Vec<(String, String)> = fs::read_dir(mounted.there(""))
        .unwrap()
        .map(|item| {
            let item = item.unwrap();
            let name = item.file_name().into_string().unwrap();
            (name, fs::read_to_string(item.path()).unwrap())
        })
        .collect();
    let lines = acknowledged.lock();
    eprintln!(
        "{} lines acknowledged, {} stale, {} files",
        lines.len(),
        n_stale.lock(),
        texts.len()
    );
    for line in &*lines {
        let is_there = texts.iter().any(|(_, text)| text.contains(line));
        assert!(is_there, "lost: {line}; log:\n{}", mounted.log());
    }
    assert!(!lines.is_empty());
    for (name, text) in &texts {
        assert!(!name.starts_with(".scpfs-"), "{name} is left");
        assert!(text.starts_with("base\n") && text.ends_with('\n'), "{name}");
        let mut lines: Vec<&str> = text.lines().collect();
        let n_lines = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), n_lines, "{name} is a mixture: {text}");
    }
}
