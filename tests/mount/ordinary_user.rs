//! A mount by a user who is not root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use scpfs_testing::mounted::can_mount;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// Makes /dev/fuse usable by everyone, as on most systems; restores its mode on drop.
struct OpenDevice(u32);

impl OpenDevice {
    fn new() -> Self {
        let mode = fs::metadata("/dev/fuse").unwrap().mode() & 0o7777;
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self(mode)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.0)).unwrap();
    }
}

#[test]
fn an_ordinary_user_mounts_uses_and_unmounts() {
    // The server needs root, and so does the switch to another user.
    let sshd = or_skip!(Sshd::start(Options::default()));
    if !can_mount() {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("scpfs-user-")
        .tempdir_in("/var/tmp")
        .unwrap();
    // With the mode of /var/tmp: only the owner of a file in it can rename or remove the file.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let program = dir.path().join("scpfs");
    fs::copy(env!("CARGO_BIN_EXE_scpfs"), &program).unwrap();
    let key = dir.path().join("key");
    fs::copy(sshd.client_key(), &key).unwrap();
    let as_user = |script: &str| {
        let output = Command::new("setpriv")
            .args([
                "--reuid",
                sshd.user(),
                "--regid",
                sshd.user(),
                "--init-groups",
                "--",
            ])
            .args(["sh", "-euc", script])
            .current_dir(dir.path())
            .env("HOME", dir.path().join("home"))
            .env("CONFIG", sshd.ssh_config())
            .env("KEY", &key)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            said,
        )
    };
    std::os::unix::fs::chown(&key, Some(fs::metadata(sshd.home()).unwrap().uid()), None).unwrap();
    as_user("mkdir home mnt host");
    let mount = "./scpfs -F \"$CONFIG\" -oIdentityFile=\"$KEY\" \"h:$PWD/host\" mnt";
    // If only root may open the device, the error message says so.
    let device = OpenDevice::new();
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o600)).unwrap();
    let (code, _, said) = as_user(mount);
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("you may not open /dev/fuse"), "{said}");
    let (code, out, said) = as_user(&format!(
        "{mount}
         echo hello > mnt/file; test \"$(cat host/file)\" = hello
         stat -c %U mnt/file
         grep \" $PWD/mnt \" /proc/self/mountinfo
         fusermount3 -u mnt; test ! -e mnt/file
         mkdir closed; chmod 700 closed
         {mount}; ls mnt; fusermount3 -u mnt"
    ));
    // The daemon is killed twice: once with a guard process, which unmounts, and once without.
    let (ends, told, complained) = as_user(&format!(
        "pid() {{ ./scpfs status --json mnt | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'; }}
         gone() {{ n=0; while grep -q \" $PWD/mnt \" /proc/self/mountinfo; do
             n=$((n+1)); test $n -lt 600; sleep 0.1; done; }}
         hidden() {{ (exec 3</proc/$$/$1) && ! (exec 3</proc/$daemon/$1) 2>/dev/null; }}
         {mount}; ./scpfs status; daemon=$(pid)
         hidden environ; hidden mem; hidden maps
         kill -9 $daemon; gone; ls mnt
         guard() {{ n=0; until pgrep -P $daemon scpfs-guard; do
             n=$((n+1)); test $n -lt 600; sleep 0.1; done; }}
         clear() {{ n=0; until ./scpfs umount mnt; do n=$((n+1)); test $n -lt 600; sleep 0.1; done; }}
         {mount}; daemon=$(pid); guard=$(guard); kill -9 $guard $daemon; clear; gone
         {mount}; echo new > mnt/file; ./scpfs umount mnt; gone; cat host/file"
    ));
    // Neither user may use the cache of the other.
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let (status, _, denial) = as_user(&format!(
        "{mount} -o cache_dir={}",
        closed.path().join("cache").display()
    ));
    assert_eq!(status, Some(5), "{denial}");
    assert!(denial.contains("belongs to another user"), "{denial}");
    let root = Command::new(&program)
        .arg("-F")
        .arg(sshd.ssh_config())
        .arg(format!("-oIdentityFile={}", key.display()))
        .arg(format!("h:{}", dir.path().join("host").display()))
        .arg(dir.path().join("mnt"))
        .env("HOME", dir.path().join("home"))
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    drop(device);
    assert_eq!(ends, Some(0), "{told}{complained}");
    assert!(told.contains("the mountpoint is cleared"), "{told}");
    assert!(told.ends_with("new\n"), "{told}");
    assert_eq!(root.status.code(), Some(5));
    let refusal = String::from_utf8_lossy(&root.stderr).into_owned();
    assert!(refusal.contains("belongs to another user"), "{refusal}");
    assert!(refusal.contains("-o cache_dir="), "{refusal}");
    assert_eq!(code, Some(0), "{said}{out}");
    assert!(
        out.contains("fuse.scpfs") && out.contains("nosuid"),
        "{out}"
    );
    assert!(out.starts_with(sshd.user()), "{out}");
}
