//! Content in memory: content to upload, and a receiver for fetches.

use std::io;

use scpfs::remote::Content;
use scpfs::remote::Receiver;

/// Collects fetched content, and counts how often a fetch has begun.
#[derive(Debug, Default)]
pub struct Buffer {
    pub begun: Vec<u64>,
    pub data: Vec<u8>,
}

impl Receiver for Buffer {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        self.begun.push(size);
        self.data.clear();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.data.extend_from_slice(data);
        Ok(())
    }
}

/// Content to upload.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Content for Bytes<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = &self.0[usize::try_from(offset).unwrap().min(self.0.len())..];
        let n = buf.len().min(rest.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

pub fn bytes(data: &[u8]) -> Bytes<'_> {
    Bytes(data)
}
