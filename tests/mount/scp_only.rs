//! A mount of a scp-only host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::Mounted;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// A forced command of the kind that is in use for accounts which may only run scp.
const SCP_ONLY: &str = r#"ForceCommand case "$SSH_ORIGINAL_COMMAND" in "scp "*" -f "*|"scp "*" -t "*) eval "exec $SSH_ORIGINAL_COMMAND";; esac; echo "this account runs scp only"; exit 1"#;

fn mounted(args: &[&str]) -> Option<Mounted> {
    let sshd = Sshd::start(Options::default().line(SCP_ONLY))?;
    Mounted::on(sshd, args)
}

#[test]
fn programs_work_on_a_host_that_has_nothing_but_scp() {
    let mounted = or_skip!(mounted(&[]));
    assert!(mounted.log().contains("scp and no shell, with listings"));
    mounted.put("hello", "hello\n");
    mounted.sh(r#"
        # Fetch.
        test "$(cat hello)" = hello
        ls -la | grep -q 'hello$'
        # Upload under unusual names, and fetch again.
        mkdir "$ASIDE/tree" "$ASIDE/tree/sub" "$ASIDE/tree/it's \$(a) sub"
        printf 'a b' > "$ASIDE/tree/sub/a b"
        head -c 3000000 /dev/urandom > "$ASIDE/tree/big"
        : > "$ASIDE/tree/it's \$(a) sub/empty"
        chmod 750 "$ASIDE/tree/sub"
        chmod 640 "$ASIDE/tree/big"
        cp -r "$ASIDE/tree" tree
        diff -r "$ASIDE/tree" tree
        diff -r "$ASIDE/tree" "$THERE/tree"
        test "$(stat -c %a "$THERE/tree/sub" "$THERE/tree/big" | tr '\n' ' ')" = '750 640 '
        cp -r tree "$ASIDE/back"
        diff -r "$ASIDE/tree" "$ASIDE/back"
        # Overwrite an existing file.
        echo changed > hello
        test "$(cat "$THERE/hello")" = changed
        echo more >> hello
        test "$(tail -n 1 "$THERE/hello")" = more
        touch -d '2001-01-01 00:00:00 UTC' hello tree/sub
        test "$(stat -c %Y "$THERE/hello" "$THERE/tree/sub" | tr '\n' ' ')" = '978307200 978307200 '
        chmod 600 hello
        test "$(stat -c %a "$THERE/hello")" = 600
        df . > /dev/null
        "#);
    // The swap and backup files of the editor cannot be removed from a scp-only host.
    mounted.sh(r#"
        vim -u NONE --cmd 'set nowritebackup directory=$HOME' -es \
            -c 'normal Gosaved by vim' -c wq hello
        test "$(tail -n 1 "$THERE/hello")" = 'saved by vim'
        test "$(ls -A "$THERE" | tr '\n' ' ')" = 'hello tree '
        "#);
}

#[test]
fn operations_that_scp_cannot_do_are_refused_and_change_nothing() {
    let mounted = or_skip!(mounted(&["-o", "dialect=scp-only"]));
    mounted.put("file", "content");
    fs::create_dir(mounted.there("dir")).unwrap();
    let before = fs::metadata(mounted.there("file")).unwrap();
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    let here = |name: &str| mounted.here(name);
    for (what, result) in [
        ("rename", fs::rename(here("file"), here("other"))),
        ("unlink", fs::remove_file(here("file"))),
        ("rmdir", fs::remove_dir(here("dir"))),
        ("symlink", std::os::unix::fs::symlink("x", here("link"))),
        ("link", fs::hard_link(here("file"), here("link"))),
        (
            "chown",
            std::os::unix::fs::chown(here("file"), Some(7), None),
        ),
        ("truncate", truncate(&here("file"))),
    ] {
        assert_eq!(errno(result), libc::EOPNOTSUPP, "{what}");
    }
    let after = fs::metadata(mounted.there("file")).unwrap();
    assert_eq!(
        (before.ino(), before.ctime_nsec(), before.size()),
        (after.ino(), after.ctime_nsec(), after.size())
    );
    assert!(mounted.there("dir").exists());
}

/// Truncates by path, without opening the file.
fn truncate(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that outlives the call.
    let result = unsafe { libc::truncate(path.as_ptr(), 1) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
