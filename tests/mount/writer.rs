//! A process that writes to a file and keeps it open.
//!
//! This is a separate process because a program that a test starts closes its copies of the test's
//! descriptors, and each close(2) uploads.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;

use scpfs_testing::wait::wait_until;

pub(crate) struct Writer {
    process: Child,
    input: Option<ChildStdin>,
}

impl Writer {
    /// Opens the file without truncating it, writes `data` at its start, and returns when `write()`
    /// has returned. Other programs may read the data earlier.
    ///
    /// # Panics
    ///
    /// Panics if this takes longer than a minute.
    pub(crate) fn start(path: &Path, data: &[u8]) -> Self {
        let mut process = Command::new("dd")
            .arg(format!("of={}", path.display()))
            .args(["conv=notrunc", "bs=64K"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = process.stdin.take().unwrap();
        input.write_all(data).unwrap();
        let writer = Self {
            process,
            input: Some(input),
        };
        wait_until(&format!("{} is written", path.display()), || {
            writer.offset(path) == Some(data.len())
        });
        writer
    }

    /// The offset of the descriptor, which the kernel advances when `write()` is done.
    fn offset(&self, path: &Path) -> Option<usize> {
        let process = format!("/proc/{}", self.process.id());
        // The process starts with another stdout, before the shell opens the file.
        let is_open = fs::read_link(format!("{process}/fd/1")).ok()? == path;
        let text = fs::read_to_string(format!("{process}/fdinfo/1")).ok()?;
        let offset = text.lines().find_map(|line| line.strip_prefix("pos:"))?;
        is_open.then(|| offset.trim().parse().ok())?
    }

    /// Lets the process close the file and exit; returns its exit status.
    pub(crate) fn close(mut self) -> ExitStatus {
        drop(self.input.take());
        self.process.wait().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.input.take());
        // Ends the process if the test has failed; after `close()` it is gone already.
        let _done = self.process.wait();
    }
}
