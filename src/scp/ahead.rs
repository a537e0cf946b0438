//! When content may be sent before its acknowledgement.

/// Files up to this size are sent in one write, ahead of any acknowledgement. For larger ones the
/// round trip that waiting costs is nothing beside their content.
pub const MAX_AHEAD: u64 = 1 << 20;

/// How much content is sent at a time.
pub const CHUNK: usize = 256 << 10;

/// A name that no directory can hold. A sink whose target is one explicit path does not look at
/// the name in the record; one that finds a directory there cannot make anything in it.
pub const IMPOSSIBLE_NAME: &[u8] = &[b'-'; 1000];

/// Returns whether a sink would take content that begins with this byte for a record.
///
/// OpenSSH 9.2 scp.c `sink()`, and dropbear's: a line that begins with anything but C, D, T or 1 is
/// the last that it reads.
pub fn may_be_record(first: u8) -> bool {
    b"CDT\x01".contains(&first)
}
