//! Two mounts of one root at the same time.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use scpfs_testing::or_skip;

use crate::Mounted;

/// A second mount of the same root, in the background; taken off when it is dropped.
struct Second<'a> {
    mounted: &'a Mounted,
    point: PathBuf,
}

impl<'a> Second<'a> {
    fn of(mounted: &'a Mounted, options: &str) -> Self {
        let point = mounted.aside("second");
        fs::create_dir(&point).unwrap();
        // As the first is mounted, so that it is the same root by name as well.
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
fn each_has_a_cache_of_its_own_and_sees_what_the_other_closed() {
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

#[test]
fn two_mounts_that_change_one_file_overwrite_nothing() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let second = Second::of(&mounted, "cache_timeout=0");
    mounted.put("file", "base\n");
    let mut late = File::options()
        .append(true)
        .open(second.here("file"))
        .unwrap();
    late.write_all(b"late\n").unwrap();
    fs::write(mounted.here("file"), "early\n").unwrap();
    late.sync_all().unwrap_err();
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"early\n");
}
