//! Two mounts of one root at the same time.

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use scpfs_testing::or_skip;

use crate::Mounted;

/// A second mount of the same root, in the background; unmounted on drop.
struct Second<'a> {
    mounted: &'a Mounted,
    point: PathBuf,
}

impl<'a> Second<'a> {
    fn of(mounted: &'a Mounted, options: &str) -> Self {
        let point = mounted.aside("second");
        fs::create_dir(&point).unwrap();
        // Named as by the first mount, so that both have the same root string.
        let root = mounted.aside("host");
        let mut mount = mounted.command();
        mount.arg(format!("host:{}", root.display())).arg(&point);
        assert!(mount.args(["-o", options]).status().unwrap().success());
        Self { mounted, point }
    }

    fn here(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        let words = ["umount", "--force", self.point.to_str().unwrap()];
        let _ended = self.mounted.control(&words).status();
    }
}

#[test]
fn two_mounts_have_own_caches_and_see_closed_content_of_each_other() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let second = Second::of(&mounted, "cache_timeout=0");
    let caches = fs::read_dir(mounted.aside("home/.cache/scpfs")).unwrap();
    assert_eq!(caches.count(), 2);
    for n in 0..10 {
        fs::write(mounted.here("file"), format!("first {n}")).unwrap();
        let seen = fs::read_to_string(second.here("file")).unwrap();
        assert_eq!(seen, format!("first {n}"));
        fs::write(second.here("file"), format!("second {n}")).unwrap();
        let seen = fs::read_to_string(mounted.here("file")).unwrap();
        assert_eq!(seen, format!("second {n}"));
    }
    let output = mounted.control(&["status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for point in [mounted.aside("mnt"), second.point.clone()] {
        assert!(
            text.contains(&format!(" on {} ", point.display())),
            "{text}"
        );
    }
}

/// Appends to a file, waits for a line on stdin, and prints whether fsync succeeds. This is a
/// separate process: if this process held the descriptor, a program that another test starts would
/// close its copy, and each close(2) uploads.
const APPEND: &str = r#"
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(fd, b"late\n")
print("written", flush=True)
sys.stdin.readline()
try:
    os.fsync(fd)
except OSError:
    print("refused")
else:
    print("done")
"#;

#[test]
fn two_mounts_that_change_one_file_overwrite_nothing() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let second = Second::of(&mounted, "cache_timeout=0");
    mounted.put("file", "base\n");
    let mut late = Command::new("python3")
        .args(["-c", APPEND])
        .arg(second.here("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(late.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "written");
    fs::write(mounted.here("file"), "early\n").unwrap();
    late.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "refused");
    late.wait().unwrap();
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"early\n");
}
