//! Unusual names, missing permissions and files that change while they are fetched.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use scpfs_testing::or_skip;

use crate::Mounted;

/// Closes a file; returns the errno of close(2), or 0.
fn close(file: File) -> i32 {
    use std::os::fd::IntoRawFd as _;
    // SAFETY: `file` has given up the descriptor, and nothing else uses it.
    let result = unsafe { libc::close(file.into_raw_fd()) };
    if result == 0 {
        0
    } else {
        std::io::Error::last_os_error().raw_os_error().unwrap()
    }
}

#[test]
fn every_name_works_through_a_mount() {
    let mounted = or_skip!(Mounted::new(&[]));
    let mut names: Vec<Vec<u8>> = [
        "-rf",
        "$(touch x)",
        "a'b\"c\\",
        "new\nline",
        "\n",
        "*",
        "!!",
        "~",
        ".scpfs-0.tmp",
        ".scpfs-conflict",
        "a\nC0644 9 evil",
        "#x",
        " ",
        "a;b|c&d",
        "%s",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(vec![b'x'; 255]);
    names.push(b"bad\xff\xfeutf8".to_vec());
    names.extend(
        (1..=255u8)
            .filter(|b| !b"/.".contains(b))
            .map(|b| vec![b'b', b, b'e']),
    );
    for name in &names {
        let name = std::ffi::OsStr::from_bytes(name);
        let (here, there): (PathBuf, PathBuf) =
            (mounted.here("").join(name), mounted.there("").join(name));
        fs::write(&here, name.as_bytes()).unwrap();
        assert_eq!(fs::read(&there).unwrap(), name.as_bytes(), "{name:?}");
        assert_eq!(fs::read(&here).unwrap(), name.as_bytes(), "{name:?}");
    }
    let mut seen: Vec<Vec<u8>> = fs::read_dir(mounted.here(""))
        .unwrap()
        .map(|item| item.unwrap().file_name().as_bytes().to_vec())
        .collect();
    seen.sort();
    names.sort();
    names.dedup();
    assert_eq!(seen, names);
    assert_eq!(
        fs::read_dir(mounted.there("")).unwrap().count(),
        names.len()
    );
    for name in &names {
        fs::remove_file(mounted.here("").join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    let too_long = mounted.here(&"x".repeat(256));
    assert_eq!(
        fs::write(too_long, "").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn close_reports_a_denied_upload_and_keeps_the_content() {
    let mut mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.here("file"), "old content").unwrap();
    let mut file = File::options()
        .write(true)
        .open(mounted.here("file"))
        .unwrap();
    file.write_all(b"NEW").unwrap();
    // The administrator of the host makes the directory and the file read-only for the login user.
    let root = mounted.there("");
    for path in [&mounted.there("file"), &root] {
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(close(file), libc::EACCES);
    assert_eq!(fs::read(mounted.there("file")).unwrap(), b"old content");
    let log = mounted.log();
    let kept = log
        .lines()
        .find(|line| line.contains("is not uploaded on the host"))
        .unwrap();
    let kept = kept.rsplit("kept in ").next().unwrap();
    assert_eq!(fs::read(kept).unwrap(), b"NEW content");
    // Unmounting reports the failed upload, also by its exit status.
    let status = mounted.unmount();
    assert_eq!(status.code(), Some(6), "{}", mounted.log());
    assert!(mounted.log().contains("not uploaded: file"));
    assert_eq!(fs::read(kept).unwrap(), b"NEW content");
    mounted.start(&[]);
    // The next mount shows the content, retries the upload, and reports its failure.
    assert_eq!(fs::read(mounted.here("file")).unwrap(), b"NEW content");
    mounted.wait_until("the refusal is logged", |it| {
        it.log().contains("file is not uploaded on the host")
    });
    assert_eq!(mounted.unmount().code(), Some(6), "{}", mounted.log());
    assert_eq!(fs::read(kept).unwrap(), b"NEW content");
    // Once the host permits it, the next mount uploads the content.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(mounted.there("file"), fs::Permissions::from_mode(0o666)).unwrap();
    mounted.start(&[]);
    mounted.wait_until("the content is on the host", |it| {
        fs::read(it.there("file")).unwrap() == b"NEW content"
            && !std::path::Path::new(kept).exists()
    });
}

#[test]
fn a_directory_or_file_that_may_not_be_written_is_refused_at_once() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let open = || File::options().write(true).open(mounted.here("dir/file"));
    fs::create_dir(mounted.there("dir")).unwrap();
    fs::write(mounted.there("dir/file"), "x").unwrap();
    // Root owns both, and the login user is not root.
    let create = File::create(mounted.here("dir/new")).unwrap_err();
    assert_eq!(create.raw_os_error(), Some(libc::EACCES));
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EACCES));
    // A writable file in a read-only directory is written in place.
    fs::set_permissions(mounted.there("dir/file"), fs::Permissions::from_mode(0o666)).unwrap();
    let mut file = open().unwrap();
    file.write_all(b"written").unwrap();
    assert_eq!(close(file), 0, "{}", mounted.log());
    assert_eq!(fs::read(mounted.there("dir/file")).unwrap(), b"written");
}

#[test]
fn an_unreadable_file_or_directory_is_denied() {
    let mounted = or_skip!(Mounted::new(&[]));
    fs::write(mounted.there("secret"), "x").unwrap();
    fs::create_dir(mounted.there("closed")).unwrap();
    fs::write(mounted.there("closed/file"), "x").unwrap();
    for name in ["secret", "closed"] {
        fs::set_permissions(mounted.there(name), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let denied = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    denied(fs::read(mounted.here("secret")).unwrap_err());
    denied(
        fs::read_dir(mounted.here("closed"))
            .and_then(|mut d| d.next().unwrap())
            .unwrap_err(),
    );
    // The directory cannot be listed, but names in it can be looked up.
    assert_eq!(fs::read(mounted.here("closed/file")).unwrap(), b"x");
    assert_eq!(
        fs::metadata(mounted.here("closed/nope"))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ENOENT)
    );
}

#[test]
fn a_file_that_changes_while_it_is_fetched_is_never_a_mixture() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    let path = mounted.there("file");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (stop, path) = (std::sync::Arc::clone(&stop), path.clone());
        fs::write(&path, vec![0; 300_000]).unwrap();
        std::thread::spawn(move || {
            let mut n = 0u8;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                n = n.wrapping_add(1);
                // Each version is a new file of another size.
                let temp = path.with_extension("new");
                fs::write(&temp, vec![n; 200_000 + usize::from(n) * 1000]).unwrap();
                fs::rename(&temp, &path).unwrap();
            }
        })
    };
    for _ in 0..30 {
        match fs::read(mounted.here("file")) {
            Ok(data) => assert!(data.iter().all(|b| *b == data[0]), "a mixture"),
            // If three fetches in a row meet a change, the read fails.
            Err(error) => assert!(
                [libc::EIO, libc::ENOENT, libc::ESTALE].contains(&error.raw_os_error().unwrap())
            ),
        }
        fs::remove_file(mounted.here("nonexistent")).unwrap_err();
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(
        fs::read(mounted.here("file")).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
}

#[test]
fn output_at_login_changes_no_content() {
    let options = scpfs_testing::sshd::Options::default().account(scpfs_testing::sshd::NOISY);
    let sshd = or_skip!(scpfs_testing::sshd::Sshd::start(options));
    let mounted = or_skip!(Mounted::on(sshd, &[]));
    mounted.sh(r#"
        head -c 100000 /dev/urandom > "$ASIDE/x"; cp "$ASIDE/x" x; cmp "$ASIDE/x" "$THERE/x"
        mkdir d; mv x d/; cmp "$ASIDE/x" d/x; test "$(ls)" = d
        "#);
}
