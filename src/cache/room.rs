//! Free space on the host, checked before large uploads.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::cache::Cache;
use crate::path::RemotePath;
use crate::remote::Expect;
use crate::remote::Placement;
use crate::remote::UploadSpec;
use crate::stat::FsStat;

/// The free space is checked before more bytes than this are sent: a round trip costs little in
/// comparison.
const MIN_CHECKED: u64 = 16 << 20;

impl Cache {
    /// Returns whether large content needs more space than is free on the host, so that none of it
    /// is sent. Makes one request. Holes count as free. The size before compression counts, so an
    /// upload to a filesystem that compresses may be refused although it would fit.
    pub(super) fn lacks_room(&self, path: &RemotePath, file: &File, spec: &UploadSpec) -> bool {
        let facts = self.remote.facts();
        let sent = spec.size - spec.appends_to.unwrap_or(0).min(spec.size);
        if sent <= MIN_CHECKED || spec.placement == Placement::Direct || facts.uploads_in_place {
            return false;
        }
        let dir = path.parent().unwrap_or_default();
        let (Ok(fs), Ok(meta)) = (self.remote.fs_stat(&dir), file.metadata()) else {
            return false;
        };
        // Only root may use the blocks that the filesystem reserves, statvfs(3).
        let free = if facts.uid == 0 {
            fs.blocks_free
        } else {
            fs.blocks_available
        };
        let needed = meta.blocks().saturating_mul(512).min(sent);
        fs.blocks > 0 && needed > bytes(&fs, free)
    }

    /// Returns whether the content certainly fits in place of the existing file. Makes two
    /// requests.
    pub(super) fn fits_in_place(&self, path: &RemotePath, spec: &UploadSpec) -> bool {
        let is_there = matches!(spec.expect, Expect::Version(_) | Expect::Anything);
        let remote = &self.remote;
        let (true, Ok(stat), Ok(fs)) = (is_there, remote.stat(path), remote.fs_stat(path)) else {
            return false;
        };
        let occupied = stat.blocks.saturating_mul(512).min(stat.size);
        spec.size <= occupied.saturating_add(bytes(&fs, fs.blocks_available))
    }
}

fn bytes(fs: &FsStat, blocks: u64) -> u64 {
    blocks.saturating_mul(fs.block_size.into())
}
