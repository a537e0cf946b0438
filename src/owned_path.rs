//! Whether another user of this machine could change what a path leads to.
//!
//! As OpenSSH's `safe_path()` does for `authorized_keys`: a directory of our own is worth nothing
//! below one in which somebody else can rename it. Links on the way are followed by hand, so that
//! the directories that hold them count as well. Root can change everything and is trusted.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

/// As Linux: more links than this on the way lead in a circle.
const MAX_LINKS: u32 = 40;

/// Checks that `dir`, or the directory that is to be made there, is `uid`'s and that only `uid` and
/// root can put something else in its place.
///
/// A directory that everybody may write to is fine on the way if it is sticky, such as `/var/tmp`,
/// and what comes next in it is `uid`'s.
///
/// # Errors
/// The first directory that is not, and what to do; or it cannot be looked at.
pub fn check(dir: &Path, uid: u32) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let mut at = PathBuf::from("/");
    let mut is_public = is_shared(&at, &fs::metadata(&at)?, uid, false)?;
    let mut rest: VecDeque<OsString> = names(&dir);
    let mut n_links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            is_public = is_shared(&at, &fs::metadata(&at)?, uid, rest.is_empty())?;
            continue;
        }
        let next = at.join(name);
        let meta = match fs::symlink_metadata(&next) {
            Ok(meta) => meta,
            // The rest is to be made, and is ours then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let text = "it belongs to another user, who does not let you in";
                return Err(refusal(&next, text));
            }
            Err(error) => return Err(error),
        };
        let owner = meta.uid();
        let is_last = rest.is_empty();
        // In a sticky directory its owner alone, and root, can rename what is there.
        let may_be_roots = !is_last || meta.is_symlink();
        if owner != uid && !(may_be_roots && owner == 0) {
            let text = format!("it belongs to another user (uid {owner})");
            return Err(refusal(&next, &text));
        }
        if meta.is_symlink() {
            n_links += 1;
            if n_links > MAX_LINKS {
                return Err(refusal(&next, "its links lead in a circle"));
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
                is_public = false;
            }
            let mut names = names(&target);
            names.append(&mut rest);
            rest = names;
            continue;
        }
        at = next;
        is_public = is_shared(&at, &meta, uid, is_last)?;
    }
    if is_public {
        return Err(refusal(&at, "everybody can make files in it"));
    }
    Ok(())
}

/// The names of a path in turn, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

/// Returns whether everybody may make names in a directory, but change none of another user's.
///
/// # Errors
/// Others can change names of ours in it.
fn is_shared(path: &Path, meta: &Metadata, uid: u32, is_last: bool) -> io::Result<bool> {
    let mode = meta.mode();
    // A group of the user's number is the user's alone, on systems where each user has one.
    let is_own_group = meta.uid() == uid && meta.gid() == uid;
    let others = if is_own_group { 0o002 } else { 0o022 };
    if mode & others == 0 {
        return Ok(false);
    }
    if mode & 0o1000 == 0 || is_last {
        let text = format!(
            "others can write to it (mode {:04o}); `chmod go-w` it",
            mode & 0o7777
        );
        return Err(refusal(path, &text));
    }
    Ok(true)
}

fn refusal(path: &Path, text: &str) -> io::Error {
    io::Error::other(format!("{}: {text}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_of_ours_below_one_that_others_can_change_is_refused() {
        let uid = rustix::process::geteuid().as_raw();
        let base = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(base.path()).unwrap();
        let (a, b) = (base.join("a"), base.join("a/b"));
        fs::create_dir_all(&b).unwrap();
        chmod(&a, 0o755);
        chmod(&b, 0o700);
        let deep = b.join("c/d");
        check(&deep, uid).unwrap();
        check(&b, uid).unwrap();
        for (mode, is_fine) in [
            (0o777, false),
            (0o757, false),
            (0o1777, true),
            (0o755, true),
        ] {
            chmod(&a, mode);
            for path in [&b, &deep] {
                let result = check(path, uid);
                assert_eq!(result.is_ok(), is_fine, "{mode:o}: {result:?}");
                if let Err(error) = result {
                    let text = error.to_string();
                    assert!(text.starts_with(&format!("{}: ", a.display())), "{text}");
                    assert!(text.contains("chmod"), "{text}");
                }
            }
        }
        // The directory itself must not be shared at all.
        chmod(&b, 0o1777);
        check(&b, uid).unwrap_err();
        chmod(&b, 0o700);
        // A link counts as much as the directory that holds it.
        let open = base.join("open");
        fs::create_dir(&open).unwrap();
        symlink(&b, open.join("link")).unwrap();
        check(&open.join("link"), uid).unwrap();
        check(&open.join("link/../b/c"), uid).unwrap();
        chmod(&open, 0o777);
        check(&open.join("link"), uid).unwrap_err();
        symlink("loop", base.join("loop")).unwrap();
        check(&base.join("loop"), uid).unwrap_err();
    }
}
