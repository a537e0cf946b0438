//! The dirty files that `scpfs status` lists.

use std::sync::Arc;

use crate::cache::FileReport;
use crate::cache::FileState;
use crate::vfs::Error;
use crate::vfs::Vfs;

impl Vfs {
    /// Returns a report of each dirty file, sorted by path. Does not block for the host.
    pub fn report(&self) -> Vec<FileReport> {
        let found: Vec<_> = {
            let tree = self.tree.lock();
            tree.inodes()
                .filter_map(|(ino, inode)| {
                    let entry = inode.entry.as_ref().filter(|_| inode.is_dirty())?;
                    let has_lost_directory = inode.current_or_last_link().is_some()
                        && tree.current_or_last_path(ino).is_none();
                    // An inode that was removed here has no path: its content ends with its last
                    // handle.
                    let path = tree.current_or_last_path(ino);
                    let is_reported = path.is_some() || has_lost_directory;
                    is_reported.then(|| (path, has_lost_directory, Arc::clone(entry)))
                })
                .collect()
        };
        let mut reports: Vec<FileReport> = found
            .into_iter()
            .filter_map(|(path, has_lost_directory, entry)| {
                let mut report = entry.report(path.unwrap_or_default())?;
                report.errno = entry.failure().map(|error| Error::from(error).errno());
                if has_lost_directory {
                    report.state = FileState::Kept;
                }
                Some(report)
            })
            .collect();
        reports.extend(self.unsaved_reports());
        reports.sort_by(|a, b| a.path.cmp(&b.path));
        reports
    }
}
