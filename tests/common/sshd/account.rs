//! Accounts of this machine for the sessions of test servers.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::FlockOperation;
use rustix::fs::flock;

use super::command;
use super::run;

/// An account of this machine for sessions. It is created if it is missing, and is not removed.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    pub name: &'static str,
    pub shell: &'static str,
    /// Files in the home directory, for example `.bashrc`, with their content.
    pub files: &'static [(&'static str, &'static str)],
}

/// An account with a fast shell and no start-up files.
pub const PLAIN: Account = Account {
    name: "scpfs-test",
    shell: "/bin/dash",
    files: &[],
};

/// An account whose start-up files print text.
pub const NOISY: Account = Account {
    name: "scpfs-noisy",
    shell: "/bin/bash",
    files: &[(
        ".bashrc",
        "echo\necho 'Welcome to the machine!'\necho 'mind the gap' >&2\n",
    )],
};

/// The file with the password of all test accounts. The password is random, so that no account with
/// a known password remains on the machine.
pub(super) const PASSWORD_FILE: &str = "/run/scpfs-test-password";

pub fn home(account: Account) -> PathBuf {
    Path::new("/home").join(account.name)
}

/// Creates the account if it is missing. Several test processes may do that at the same time.
pub fn ensure_account(account: Account) {
    let lock = fs::File::create("/run/scpfs-test-account.lock").unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let exists = fs::read_to_string("/etc/passwd")
        .unwrap()
        .lines()
        .any(|line| line.split(':').next() == Some(account.name));
    if !exists {
        // No skeleton directory, because it would add start-up files.
        run(command("/usr/sbin/useradd")
            .args(["-m", "-k", "/var/empty-skeleton", "-s", account.shell, "-d"])
            .arg(home(account))
            .arg(account.name));
    }
    for (name, content) in account.files {
        let file = home(account).join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let has_password = Path::new(PASSWORD_FILE).exists();
    if !exists || !has_password {
        let password = if has_password {
            fs::read_to_string(PASSWORD_FILE).unwrap()
        } else {
            let mut random = [0; 16];
            getrandom::fill(&mut random).unwrap();
            let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options
                .open(PASSWORD_FILE)
                .unwrap()
                .write_all(password.as_bytes())
                .unwrap();
            password
        };
        for name in [PLAIN.name, NOISY.name, account.name] {
            set_password(name, &password);
        }
    }
}

fn set_password(user: &str, password: &str) {
    let is_there = fs::read_to_string("/etc/passwd")
        .unwrap()
        .lines()
        .any(|line| line.split(':').next() == Some(user));
    if !is_there {
        return;
    }
    let mut chpasswd = command("/usr/sbin/chpasswd")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = chpasswd.stdin.take().unwrap();
    writeln!(input, "{user}:{password}").unwrap();
    drop(input);
    assert!(chpasswd.wait().unwrap().success());
}
