#![cfg(test)]
//! The `shell` dialect through real connections: another server, login shells, start-up files.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scpfs::clock::SystemClock;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Remote as _;
use scpfs::remote::RenameHow;
use scpfs::remote::UploadSpec;
use scpfs::shell::Shell;
use scpfs::shell::probe;
use scpfs::ssh::settings::Settings;
use scpfs::stat::Time;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::dropbear::Dropbear;
use scpfs_testing::or_skip;
use scpfs_testing::samples;
use scpfs_testing::samples::upload_spec;
use scpfs_testing::sshd::Account;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;
use scpfs_testing::sshd::command;
use scpfs_testing::sshd::run;
use scpfs_testing::wait::wait_until;

use crate::script::unattended;

/// A directory of this machine that belongs to the login user.
struct Root(PathBuf);

impl Root {
    fn new(user: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("scpfs-root-")
            .tempdir()
            .unwrap();
        let root = Self(dir.keep());
        run(command("chown").arg(user).arg(&root.0));
        root
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn connect(settings: Settings, root: &Path) -> Result<Shell, probe::Error> {
    let probe_settings = scpfs::remote::Settings {
        max_connections: 2,
        timeout: settings.timeout,
        ..samples::settings(root)
    };
    let transport = Arc::new(unattended(settings));
    probe::probe(transport, &probe_settings, Arc::new(SystemClock::new()))
}

/// A name that contains every byte that a name can contain.
fn every_byte() -> RemotePath {
    let bytes: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
    RemotePath::root().join(&Name::new(&bytes).unwrap())
}

/// Uploads, lists, fetches, renames and removes a file of this size.
fn works(shell: &Shell, root: &Path, size: usize) {
    let path = every_byte();
    let name = path.name().unwrap();
    let data: Vec<u8> = (0..=255).cycle().take(size).collect();
    let time = Time {
        secs: 1_700_000_000,
        nanos: 0,
    };
    let spec = UploadSpec {
        mtime: time,
        atime: time,
        expect: Expect::Absent,
        ..upload_spec(&data)
    };
    let uploaded = shell
        .upload(&path, &bytes(&data), &spec)
        .unwrap()
        .stat
        .unwrap();
    let on_host = root.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
    assert!(fs::read(on_host).unwrap() == data);
    let listing = shell.list(&RemotePath::root()).unwrap();
    let [entry] = &listing.entries[..] else {
        panic!("{listing:?}");
    };
    assert_eq!(entry.name, name);
    assert_eq!(entry.stat.unwrap().version(), uploaded.version());
    assert_eq!((uploaded.mode, uploaded.mtime), (0o640, time));
    let mut fetched = Buffer::default();
    shell
        .fetch(&path, Some(&uploaded.version()), &mut fetched)
        .unwrap();
    assert!(fetched.data == data);
    let again = UploadSpec {
        expect: Expect::Version(uploaded.version()),
        ..spec
    };
    shell.upload(&path, &bytes(&data), &again).unwrap();
    let moved = RemotePath::root().join(&Name::new(b"moved").unwrap());
    shell.rename(&path, &moved, RenameHow::Replace).unwrap();
    shell.remove_file(&moved, None).unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

#[test]
fn dropbear_serves_files() {
    let dropbear = or_skip!(Dropbear::start());
    let root = Root::new(dropbear.user());
    let shell = connect(dropbear.settings(), &root.0).unwrap();
    assert!(shell.facts().summary.contains("server dropbear"));
    // Sizes around the window of 24 KiB that dropbear grants, and around the largest size that is
    // sent before the C record is acknowledged.
    for size in [0, 1, 24_575, 24_576, 24_577, 1 << 20, (1 << 20) + 1] {
        works(&shell, &root.0, size);
    }
    // dropbear's scp sends no file with a newline in its name.
    let odd = RemotePath::root().join(&Name::new(b"-rf $(x)\n").unwrap());
    fs::write(root.0.join("-rf $(x)\n"), "odd").unwrap();
    let mut odd_content = Buffer::default();
    shell.fetch(&odd, None, &mut odd_content).unwrap();
    assert_eq!(odd_content.data, b"odd");
    // Enough names that the listing exceeds the window as well.
    for n in 0..2000 {
        fs::write(root.0.join(format!("file {n}")), "x").unwrap();
    }
    let listing = shell.list(&RemotePath::root()).unwrap();
    assert_eq!(listing.entries.len(), 2001);
    shell.close();
}

/// Login shells, and start-up files of them that print.
const LOGIN_SHELLS: &[Account] = &[
    Account {
        name: "scpfs-csh",
        shell: "/bin/csh",
        files: &[(".cshrc", "echo 'welcome!'\necho\n")],
    },
    Account {
        name: "scpfs-tcsh",
        shell: "/bin/tcsh",
        files: &[(".tcshrc", "echo -n 'no newline'\n")],
    },
    Account {
        name: "scpfs-fish",
        shell: "/usr/bin/fish",
        files: &[(
            ".config/fish/config.fish",
            "echo; printf 'C0644 6 hello.txt\\nhello\\n\\0'\n",
        )],
    },
    Account {
        name: "scpfs-zsh",
        shell: "/bin/zsh",
        files: &[(".zshenv", "print -n '\\033[2J'; print error >&2\n")],
    },
    Account {
        name: "scpfs-mksh",
        shell: "/bin/mksh",
        files: &[],
    },
    Account {
        name: "scpfs-ksh93",
        shell: "/bin/ksh93",
        files: &[],
    },
];

#[test]
fn every_login_shell_starts_the_same_resident_shell() {
    for &account in LOGIN_SHELLS {
        if !Path::new(account.shell).exists() {
            skip(Capability::Shells, account.shell);
            continue;
        }
        let sshd = or_skip!(Sshd::start(Options::default().account(account)));
        let root = Root::new(sshd.user());
        let shell = connect(sshd.settings(), &root.0);
        let shell = shell.unwrap_or_else(|error| panic!("{}: {error}", account.shell));
        works(&shell, &root.0, 70_000);
        shell.close();
    }
}

/// Runs `check` with an account that has this `.bashrc`.
fn with_bashrc(name: &'static str, text: &'static str, check: impl FnOnce(&Sshd, &Path)) {
    let files: &'static [(&str, &str)] = Box::leak(Box::new([(".bashrc", text)]));
    let account = Account {
        name,
        shell: "/bin/bash",
        files,
    };
    if let Some(sshd) = Sshd::start(Options::default().account(account)) {
        let root = Root::new(sshd.user());
        check(&sshd, &root.0);
    }
}

#[test]
fn a_megabyte_of_errors_at_login_does_no_harm() {
    // The errors are not read for half a second, and they use the same window as the output.
    let text = "yes mind the gap | head -c 3000000 >&2\nprintf '\\0\\1\\2'\nsleep 0.5\n";
    with_bashrc("scpfs-loud", text, |sshd, root| {
        let shell = connect(sshd.settings(), root).unwrap();
        works(&shell, root, 70_000);
        shell.close();
    });
}

#[test]
fn output_of_a_login_that_exits_is_reported() {
    let text = "printf '\\033[31mThis account is closed.\\033[0m\\n' >&2\nexit 1\n";
    with_bashrc("scpfs-closed", text, |sshd, root| {
        let text = connect(sshd.settings(), root).unwrap_err().to_string();
        assert!(text.contains("This account is closed."), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    });
}

#[test]
fn login_that_waits_for_input_fails_with_its_output() {
    let text = "printf 'Your token: '\nread token\n";
    with_bashrc("scpfs-asking", text, |sshd, root| {
        let settings = Settings {
            timeout: Duration::from_secs(6),
            ..sshd.settings()
        };
        let text = connect(settings, root).unwrap_err().to_string();
        assert!(text.contains("but said: Your token:"), "{text}");
    });
}

/// Regression: a rename that arrived after its deadline was carried out after the request that
/// replaced it.
#[test]
fn a_request_that_was_given_up_is_not_carried_out_later() {
    let sshd = or_skip!(Sshd::start(Options::default()));
    let root = Root::new(sshd.user());
    let mut settings = sshd.settings();
    settings.timeout = Duration::from_millis(1500);
    let shell = connect(settings, &root.0).unwrap();
    let at = |name: &str| root.0.join(name);
    let path = |name: &str| RemotePath::root().join(&Name::new(name.as_bytes()).unwrap());
    fs::write(at("from"), "late").unwrap();
    let stopped = sshd.session_processes();
    sshd.freeze_sessions();
    let error = shell
        .rename(&path("from"), &path("to"), RenameHow::Replace)
        .unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    fs::write(at("to"), "newer").unwrap();
    shell.stat(&path("to")).unwrap();
    sshd.thaw_sessions();
    for (pid, _) in stopped {
        let over = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        wait_until(&format!("process {pid} has ended"), over);
    }
    assert_eq!(fs::read(at("to")).unwrap(), b"newer");
    assert_eq!(fs::read(at("from")).unwrap(), b"late");
}
