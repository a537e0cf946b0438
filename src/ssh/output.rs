//! A buffer for the output of a command: bytes that were read from its channel and not consumed.
//!
//! It does not own the channel, and does not parse the output. The end of the output is reported to
//! the caller: each dialect decides whether it is an error.

use crate::ssh::Channel;
use crate::ssh::Error;

/// The size of one read, in bytes.
const READ_SIZE: usize = 256 << 10;

/// Buffers the output of one channel.
#[derive(Debug)]
pub struct Output {
    /// Bytes that were read; those from `start` on are not consumed yet.
    buf: Vec<u8>,
    // INVARIANT: `start <= buf.len()`.
    start: usize,
    /// Receives the bytes of one read.
    scratch: Box<[u8]>,
}

impl Output {
    /// Creates an empty buffer.
    pub fn new() -> Self {
        Self {
            buf: Vec::new(),
            start: 0,
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
        }
    }

    /// Returns the bytes that were read and not consumed.
    pub fn unread(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    /// Removes the first `n` bytes from [`Self::unread`]; all of them if it has fewer.
    pub fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n);
        if self.start >= self.buf.len() {
            self.buf.clear();
            self.start = 0;
        }
    }

    /// Waits for more output and appends it to [`Self::unread`]; returns the number of new bytes, 0
    /// at the end of the output. Blocks for at most the timeout of the channel.
    ///
    /// # Errors
    /// The error of [`Channel::read`]; [`Self::unread`] is unchanged.
    pub fn read_from(&mut self, channel: &mut dyn Channel) -> Result<usize, Error> {
        self.buf.drain(..self.start);
        self.start = 0;
        let n = channel.read(&mut self.scratch)?;
        self.buf
            .extend_from_slice(self.scratch.get(..n).unwrap_or_default());
        Ok(n)
    }

    /// Frees the buffer if its capacity is more than `max` bytes and all its bytes are consumed.
    pub fn shrink(&mut self, max: usize) {
        if self.unread().is_empty() && self.buf.capacity() > max {
            self.buf = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A channel of which each read returns the next part.
    #[derive(Debug)]
    struct Parts(std::vec::IntoIter<&'static [u8]>);

    impl Channel for Parts {
        fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
            let part = self.0.next().unwrap_or_default();
            buf[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }

        fn write_all(&mut self, _data: &[u8]) -> Result<(), Error> {
            Ok(())
        }

        fn discard_stderr(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn set_timeout(&mut self, _timeout: Duration) {}

        fn finish(self: Box<Self>) -> Result<Option<i32>, Error> {
            Ok(Some(0))
        }
    }

    #[test]
    fn output_is_kept_until_it_is_used() {
        let mut channel = Parts(vec![&b"one,"[..], b"two"].into_iter());
        let mut output = Output::new();
        assert_eq!(output.read_from(&mut channel).unwrap(), 4);
        output.consume(1);
        assert_eq!(output.unread(), b"ne,");
        assert_eq!(output.read_from(&mut channel).unwrap(), 3);
        assert_eq!(output.unread(), b"ne,two");
        output.shrink(0);
        assert_eq!(output.unread(), b"ne,two");
        output.consume(6);
        assert_eq!(output.unread(), b"");
        output.shrink(0);
        assert_eq!(output.read_from(&mut channel).unwrap(), 0);
        assert_eq!(output.unread(), b"");
    }
}
