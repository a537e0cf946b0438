//! The flags of `open(2)`, validated.

use libc::c_int;

use crate::vfs::Error;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags {
    pub reads: bool,
    pub writes: bool,
    pub appends: bool,
    pub truncates: bool,
    /// `O_EXCL`: the file must not exist yet.
    pub is_exclusive: bool,
}

impl OpenFlags {
    /// Parses the flags of `open(2)`.
    ///
    /// # Errors
    /// The access mode is not read-only, write-only or read-write.
    pub fn new(bits: c_int) -> Result<Self, Error> {
        let (reads, writes) = match bits & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            libc::O_RDWR => (true, true),
            _ => return Err(Error::InvalidArgument),
        };
        let has = |flag: c_int| bits & flag != 0;
        Ok(Self {
            reads,
            writes,
            appends: writes && has(libc::O_APPEND),
            truncates: has(libc::O_TRUNC),
            is_exclusive: has(libc::O_EXCL),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_mode_is_one_of_three() {
        assert!(OpenFlags::new(libc::O_ACCMODE).is_err());
        let flags = OpenFlags::new(libc::O_WRONLY | libc::O_APPEND | libc::O_TRUNC).unwrap();
        assert!(!flags.reads && flags.writes && flags.appends && flags.truncates);
        assert!(
            !OpenFlags::new(libc::O_RDONLY | libc::O_APPEND)
                .unwrap()
                .appends
        );
    }
}
