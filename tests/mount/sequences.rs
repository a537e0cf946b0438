//! Sequences of calls that shells and ordinary programs make, and mmap.

use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;

use scpfs_testing::mounted::unmount;
use scpfs_testing::or_skip;
use scpfs_testing::wait::wait_until;

use crate::Mounted;

fn content(mounted: &Mounted, name: &str) -> String {
    String::from_utf8(fs::read(mounted.there(name)).unwrap()).unwrap()
}

#[test]
fn shell_redirections_are_on_the_host_when_they_return() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.sh(
        r#"
        echo x > new; test "$(cat "$THERE/new")" = x
        echo y > new; test "$(cat "$THERE/new")" = y
        echo z >> new; test "$(cat "$THERE/new")" = "$(printf 'y\nz')"
        { echo a; /bin/echo b; /bin/echo c; } > group; test "$(cat "$THERE/group")" = "$(printf 'a\nb\nc')"
        (exec 3>>f; (echo q >&3); echo r >&3); test "$(cat "$THERE/f")" = "$(printf 'q\nr')"
        dd if=/dev/zero of=dd bs=4096 count=3 conv=fsync 2>/dev/null; test "$(stat -c %s "$THERE/dd")" = 12288
        touch touched; test -e "$THERE/touched"
        install -m 751 /bin/true installed; cmp /bin/true "$THERE/installed"; test "$(stat -c %a "$THERE/installed")" = 751
        umask 027; echo > masked; test "$(stat -c %a "$THERE/masked")" = 640
        mkdir dir; test "$(stat -c %a "$THERE/dir")" = 750
        mv new dir/moved; test "$(cat "$THERE/dir/moved")" = "$(printf 'y\nz')"
        cp -r dir copy; test -e "$THERE/copy/moved"; rm -r copy; test ! -e "$THERE/copy"
        truncate -s 100 f; test "$(stat -c %s "$THERE/f")" = 100
        "#,
    );
}

#[test]
fn a_thread_may_close_what_another_opened() {
    let mounted = or_skip!(Mounted::new(&[]));
    let path = mounted.here("file");
    let file = std::thread::spawn(move || File::create(path).unwrap())
        .join()
        .unwrap();
    (&file).write_all(b"hello").unwrap();
    std::thread::spawn(move || drop(file)).join().unwrap();
    assert_eq!(content(&mounted, "file"), "hello");
}

#[test]
fn mmap_writes_reach_the_host() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.put("file", vec![b'.'; 10_000]);
    mounted.sh(r#"python3 -c "
import mmap, os
fd = os.open('file', os.O_RDWR)
m = mmap.mmap(fd, 10000)
assert m[5000] == 46
m[4000:4005] = b'hello'
m.flush()
os.fsync(fd)
m[9000:9003] = b'end'
os.close(fd)
m.close()
"
        "#);
    let is_there = |name: &str| {
        let data = fs::read(mounted.there(name)).unwrap();
        data.len() == 10_000 && &data[4000..4005] == b"hello" && &data[9000..9003] == b"end"
    };
    // Pages that are written after the last close are uploaded at release.
    wait_until("the last part is on the host", || is_there("file"));
}

#[test]
fn appenders_of_two_descriptors_do_not_overwrite_each_other() {
    let mounted = or_skip!(Mounted::new(&[]));
    let open = || {
        File::options()
            .append(true)
            .create(true)
            .open(mounted.here("log"))
            .unwrap()
    };
    let (mut one, mut two) = (open(), open());
    for n in 0..50 {
        writeln!(one, "one {n}").unwrap();
        writeln!(two, "two {n}").unwrap();
    }
    drop((one, two));
    assert_eq!(content(&mounted, "log").lines().count(), 100);
}

#[test]
fn holes_and_allocations_are_those_of_a_local_file() {
    let mounted = or_skip!(Mounted::new(&[]));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mounted.here("f"))
        .unwrap();
    file.write_all_at(b"end", 1 << 20).unwrap();
    let at = rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!(at > 0 && at <= 1 << 20, "{at}");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    let mut data = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut data).unwrap();
    assert_eq!(
        (data.len(), &data[1 << 20..(1 << 20) + 3]),
        (2 << 20, &b"end"[..])
    );
    drop(file);
    assert!(fs::read(mounted.there("f")).unwrap() == data);
}

#[test]
fn a_file_created_exclusively_is_there_at_once() {
    let mounted = or_skip!(Mounted::new(&[]));
    let create = || {
        File::options()
            .write(true)
            .create_new(true)
            .open(mounted.here("lock"))
    };
    let lock = create().unwrap();
    assert!(mounted.there("lock").exists());
    assert_eq!(create().unwrap_err().raw_os_error(), Some(libc::EEXIST));
    fs::write(mounted.there("other"), "").unwrap();
    drop(lock);
}

#[test]
fn a_copy_within_the_mount_happens_on_the_host() {
    let mounted = or_skip!(Mounted::new(&[]));
    mounted.sh(r#"
        head -c 5000000 /dev/urandom > "$THERE/from"
        cat from > /dev/null
        cp from to; cmp "$THERE/from" "$THERE/to"
        cmp from to
        cp -p from too; cmp "$THERE/from" "$THERE/too"
        test "$(stat -c %y from)" = "$(stat -c %y "$THERE/too")"
        "#);
}

#[test]
fn a_file_of_the_hosts_proc_can_be_read() {
    let mounted = or_skip!(Mounted::new(&[]));
    let mountpoint = mounted.aside("proc");
    fs::create_dir(&mountpoint).unwrap();
    let status = mounted
        .command()
        .arg("host:/proc/self")
        .arg(&mountpoint)
        .status()
        .unwrap();
    assert!(status.success());
    let text = fs::read_to_string(mountpoint.join("mounts"));
    unmount(&mountpoint);
    assert!(text.unwrap().contains(" / "));
}

#[test]
fn direct_reads_work() {
    let mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.there("file"), vec![7; 8192]).unwrap();
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(mounted.here("file"))
        .unwrap();
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    assert_eq!(data, vec![7; 8192]);
}
