//! Whether the host has room for content, as far as it tells.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::cache::Cache;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::remote::Placement;
use crate::remote::UploadSpec;
use crate::stat::FsStat;

/// The host is asked for its free space before more bytes than this are sent: a round trip is little
/// beside them.
const MIN_ASKED: u64 = 16 << 20;

impl Cache {
    /// Returns whether large content needs more room than the host says is free, so that none of it
    /// is sent. Asks the host. Holes take no room, here as there. The size before compression
    /// counts, so a filesystem that compresses is refused content that it could have uploaded.
    pub(super) fn lacks_room(&self, path: &RemotePath, file: &File, plan: &UploadSpec) -> bool {
        let facts = self.remote.facts();
        let sent = plan.size - plan.appends_to.unwrap_or(0).min(plan.size);
        if sent <= MIN_ASKED || plan.placement == Placement::Direct || facts.uploads_in_place {
            return false;
        }
        let dir = path.parent().unwrap_or_default();
        let (Ok(fs), Ok(meta)) = (self.remote.fs_stat(&dir), file.metadata()) else {
            return false;
        };
        // Root alone may use what the filesystem keeps back.
        let free = if facts.uid == 0 {
            fs.blocks_free
        } else {
            fs.blocks_available
        };
        let needed = meta.blocks().saturating_mul(512).min(sent);
        fs.blocks > 0 && needed > bytes(&fs, free)
    }

    /// Returns whether the content certainly has room where the file is that it replaces. Asks the
    /// host.
    pub(super) fn fits_in_place(&self, path: &RemotePath, plan: &UploadSpec) -> bool {
        let is_there = matches!(plan.expect, Expect::Version(_) | Expect::Anything);
        let remote = &self.remote;
        let (true, Ok(stat), Ok(fs)) = (is_there, remote.stat(path), remote.fs_stat(path)) else {
            return false;
        };
        let occupied = stat.blocks.saturating_mul(512).min(stat.size);
        plan.size <= occupied.saturating_add(bytes(&fs, fs.blocks_available))
    }
}

fn bytes(fs: &FsStat, blocks: u64) -> u64 {
    blocks.saturating_mul(fs.block_size.into())
}
