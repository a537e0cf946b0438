//! Whose a cache directory is. Contents of one user in a directory of another would be readable
//! by the wrong one, or unusable for the right one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Checks that `dir` is ours to use, or to make in `base`.
///
/// A base in which everybody may make something, such as `/var/tmp`, is as good as one's own.
pub(super) fn check(base: &Path, dir: &Path) -> io::Result<()> {
    check_for(rustix::process::geteuid().as_raw(), base, dir)
}

/// The same for the user `uid`.
fn check_for(uid: u32, base: &Path, dir: &Path) -> io::Result<()> {
    if let Some(owner) = owner(dir)? {
        return refuse_unless(owner == uid, owner);
    }
    match fs::metadata(base) {
        Ok(meta) if meta.mode() & 0o022 == 0 => refuse_unless(meta.uid() == uid, meta.uid()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(explain(error)),
    }
}

/// Returns whose `dir` is, not following a link that somebody else may have put there.
fn owner(dir: &Path) -> io::Result<Option<u32>> {
    match fs::symlink_metadata(dir) {
        Ok(meta) => Ok(Some(meta.uid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain(error)),
    }
}

fn refuse_unless(is_ours: bool, owner: u32) -> io::Result<()> {
    if is_ours {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "it belongs to another user (uid {owner})"
    )))
}

fn explain(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        io::Error::new(
            error.kind(),
            "it belongs to another user, who does not let you in",
        )
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_of_another_user_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("key");
        check(base.path(), &dir).unwrap();
        check(
            &base.path().join("missing"),
            &base.path().join("missing/key"),
        )
        .unwrap();
        fs::create_dir(&dir).unwrap();
        check(base.path(), &dir).unwrap();
        // The same as another user sees it.
        let owner = rustix::process::geteuid().as_raw();
        let another = owner + 1;
        let refusal = format!("it belongs to another user (uid {owner})");
        let error = check_for(another, base.path(), &dir).unwrap_err();
        assert_eq!(error.to_string(), refusal);
        let other = base.path().join("other");
        let error = check_for(another, base.path(), &other).unwrap_err();
        assert_eq!(error.to_string(), refusal);
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        check_for(another, base.path(), &other).unwrap();
    }
}
