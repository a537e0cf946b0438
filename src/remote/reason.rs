//! Classifies error texts of programs on the host: neither a shell nor scp gives error numbers.

use crate::remote::Reason;

/// Returns the reason that a program's error text gives, by the words of `strerror` in it.
///
/// With `LC_ALL=C` the texts of glibc, musl and uClibc differ in few words. Only the end of the
/// last line counts, so that a file name cannot forge a reason.
pub fn reason_of(text: &[u8]) -> Reason {
    let Some(line) = text.split(|&b| b == b'\n').rfind(|line| !line.is_empty()) else {
        return Reason::Other;
    };
    let line = line.trim_ascii_end();
    let tail = memchr::memmem::rfind(line, b": ").map_or(line, |at| line.get(at..).unwrap_or(line));
    let has = |needle: &[u8]| memchr::memmem::find(tail, needle).is_some();
    let table: [(&[u8], Reason); 38] = [
        (b"No such file or directory", Reason::NotFound),
        (b"File exists", Reason::Exists),
        (b"cannot overwrite directory", Reason::Exists),
        (b"cannot overwrite non-directory", Reason::NotADirectory),
        (b"Permission denied", Reason::AccessDenied),
        (b"ermission denied", Reason::AccessDenied),
        (b"Operation not permitted", Reason::NotPermitted),
        (b"Not a directory", Reason::NotADirectory),
        (b"not a regular file", Reason::IsADirectory),
        (b"Is a directory", Reason::IsADirectory),
        (b"' is a directory", Reason::IsADirectory),
        (b"Directory not empty", Reason::NotEmpty),
        (b"Too many links", Reason::TooManyLinks),
        (b"File name too long", Reason::NameTooLong),
        (b"Filename too long", Reason::NameTooLong),
        (b"name too long", Reason::NameTooLong),
        (b"Too many levels of symbolic links", Reason::SymlinkLoop),
        (b"Symbolic link loop", Reason::SymlinkLoop),
        (b"Read-only file system", Reason::ReadOnly),
        (b"No space left on device", Reason::NoSpace),
        (b"Disk quota exceeded", Reason::QuotaExceeded),
        (b"Quota exceeded", Reason::QuotaExceeded),
        (b"File too large", Reason::FileTooLarge),
        // A shell's message about a program that SIGXFSZ killed.
        (b"File size limit exceeded", Reason::FileTooLarge),
        (b"Invalid cross-device link", Reason::CrossDevice),
        (b"Cross-device link", Reason::CrossDevice),
        (b"Device or resource busy", Reason::Busy),
        (b"Resource busy", Reason::Busy),
        (b"Text file busy", Reason::TextBusy),
        (b"Invalid argument", Reason::InvalidArgument),
        (b"to a subdirectory of itself", Reason::InvalidArgument),
        (b"not supported", Reason::NotSupported),
        (b"Function not implemented", Reason::NotSupported),
        // A filesystem whose directories cannot be flushed.
        (b"Bad file descriptor", Reason::NotSupported),
        (b"No such device", Reason::NoSuchDevice),
        (b"Input/output error", Reason::InputOutput),
        (b"Stale file handle", Reason::Stale),
        (b"Broken pipe", Reason::Changed),
    ];
    table
        .iter()
        .find(|(needle, _)| has(needle))
        .map_or(Reason::Other, |&(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_reads_the_end_of_the_last_line() {
        for (text, reason) in [
            (
                &b"mkdir: cannot create directory 'x': File exists\n"[..],
                Reason::Exists,
            ),
            (
                b"rm: cannot remove 'No such file or directory': Permission denied",
                Reason::AccessDenied,
            ),
            (b"scp: /x: No space left on device", Reason::NoSpace),
            (
                b"rmdir: failed to remove 'd': Directory not empty",
                Reason::NotEmpty,
            ),
            (b"something else", Reason::Other),
            (b"", Reason::Other),
        ] {
            assert_eq!(reason_of(text), reason, "{}", String::from_utf8_lossy(text));
        }
    }
}
