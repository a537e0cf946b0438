//! The flags of `open(2)` as a type that has already refused nonsense.

use libc::c_int;

use crate::vfs::Error;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags {
    pub reads: bool,
    pub writes: bool,
    pub appends: bool,
    pub truncates: bool,
    /// `O_EXCL`: there must not have been a file.
    pub is_exclusive: bool,
    /// `O_DIRECT`: the kernel is not to keep pages.
    pub is_direct: bool,
}

impl OpenFlags {
    /// # Errors
    /// The access mode is none of the three.
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
            is_direct: has(libc::O_DIRECT),
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
