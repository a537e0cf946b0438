//! When content may be sent before its acknowledgement.

/// The largest file, in bytes, whose content is sent before its C record is acknowledged. For a
/// larger file the round trip is short compared with the time that its content takes.
pub const MAX_AHEAD: u64 = 1 << 20;

/// How many bytes of content are sent in one write.
pub const CHUNK: usize = 256 << 10;

/// A name that no filesystem accepts. A sink whose target is one explicit file ignores the name in
/// the record. If the target is a directory, this name makes the sink fail instead of creating a
/// file in it.
pub const IMPOSSIBLE_NAME: &[u8] = &[b'-'; 1000];

/// Returns whether a sink that refused the C record would parse content with this first byte as a
/// record.
///
/// OpenSSH 9.2 scp.c `sink()`, and dropbear's: a line that begins with any other byte than C, D, T
/// or 1 ends the sink.
pub fn may_be_record(first: u8) -> bool {
    b"CDT\x01".contains(&first)
}
