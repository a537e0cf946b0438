//! What the host does not have, for whoever looks at the mount.

use std::sync::Arc;

use crate::cache::FileReport;
use crate::cache::FileState;
use crate::vfs::Error;
use crate::vfs::Vfs;

impl Vfs {
    /// Returns each file whose content is not on the host, by path. Never waits for the host.
    pub fn report(&self) -> Vec<FileReport> {
        let found: Vec<_> = {
            let tree = self.tree.lock();
            tree.inodes()
                .filter_map(|(ino, inode)| {
                    let entry = inode.entry.as_ref().filter(|_| inode.is_ours())?;
                    let is_lost = inode.place().is_some() && tree.place_path(ino).is_none();
                    // Without a name, and by our own doing: the content ends with its last handle.
                    let path = tree.place_path(ino);
                    let is_wanted = path.is_some() || is_lost;
                    is_wanted.then(|| (path, is_lost, Arc::clone(entry)))
                })
                .collect()
        };
        let mut reports: Vec<FileReport> = found
            .into_iter()
            .filter_map(|(path, is_kept, entry)| {
                let mut report = entry.report(path.unwrap_or_default())?;
                report.errno = entry.failure().map(|error| Error::from(error).errno());
                if is_kept {
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
