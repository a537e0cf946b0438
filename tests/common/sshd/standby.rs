//! A server that is prepared, and starts on request.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use scpfs::sync::Mutex;

use super::SSHD;
use super::command;
use crate::wait::PATIENCE;

/// No process may be started while a program writes to a mount, so a shell is started earlier and
/// waits for a line on its stdin.
#[derive(Debug)]
pub(super) struct Standby {
    /// The shell, which becomes `unshare`.
    child: Child,
    listens: mpsc::Receiver<()>,
}

impl Standby {
    pub(super) fn new(dir: &Path, log: &Arc<Mutex<String>>) -> Self {
        // Mounts of tests would stay busy in the namespace of the server, so their copies are
        // unmounted.
        let script = "sed -n 's/^\\([^ ]* \\)\\{4\\}\\([^ ]*\\) .* - fuse\\.scpfs .*/\\2/p' \
            /proc/self/mountinfo | while read -r copy; do umount -l \"$copy\"; done
        if [ -e \"$1/pam\" ]; then mount --bind \"$1/pam\" /etc/pam.d/sshd || exit 1; fi
        exec \"$2\" -D -e -f \"$1/sshd_config\"";
        let mut child = command("/bin/sh")
            .args(["-c", "read -r word && exec \"$@\" </dev/null", "sh"])
            .args(["unshare", "--mount", "--propagation", "private", "--pid"])
            .args(["--fork", "--kill-child", "--mount-proc"])
            .args(["/bin/sh", "-c", script, "sh"])
            .arg(dir)
            .arg(SSHD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, listens) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let writer = Arc::clone(log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let is_listening = line.starts_with("Server listening on ");
                writer.lock().push_str(&format!("{line}\n"));
                if is_listening {
                    sender.send(()).unwrap_or_default();
                }
            }
        });
        Self { child, listens }
    }

    /// Starts the server; returns `None` if its port is in use.
    pub(super) fn start(mut self, log: &Mutex<String>) -> Option<Child> {
        writeln!(self.child.stdin.take().unwrap()).unwrap();
        // The sender is dropped when the server ends, so that the wait ends as well.
        if self.listens.recv_timeout(PATIENCE).is_ok() {
            return Some(self.child);
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let text = log.lock().clone();
        assert!(
            text.contains("Address already in use"),
            "sshd does not start:\n{text}"
        );
        None
    }
}
