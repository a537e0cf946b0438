//! Checks that no other user of this machine can redirect a path.
//!
//! Same rule as OpenSSH's `safe_path()` for `authorized_keys`: a directory of ours is unsafe if
//! another user can rename any of its parents. Symlinks are followed here, one at a time, so that
//! the directories that contain them are checked as well. Root is trusted.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

/// The limit of Linux for symlinks in one path; more are a loop.
const MAX_LINKS: u32 = 40;

/// Checks that `dir` belongs to `uid` and that only `uid` and root can replace it or its parents.
/// `dir` and the last of its parents may be missing.
///
/// A parent that everybody may write to is accepted if it is sticky, such as `/var/tmp`: the owner
/// of the next component, `uid` or root, is then the only one who can rename it.
///
/// # Errors
/// A component fails the check (the text names it and says why), or cannot be read.
pub fn check(dir: &Path, uid: u32) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let mut at = PathBuf::from("/");
    let mut was_shared_sticky = is_shared_sticky(&at, &fs::metadata(&at)?, uid, false)?;
    let mut rest: VecDeque<OsString> = names(&dir);
    let mut n_links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            was_shared_sticky = is_shared_sticky(&at, &fs::metadata(&at)?, uid, rest.is_empty())?;
            continue;
        }
        let next = at.join(name);
        let meta = match fs::symlink_metadata(&next) {
            Ok(meta) => meta,
            // The missing components will be created by us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let text = "it belongs to another user, who does not let you in";
                return Err(refusal(&next, text));
            }
            Err(error) => return Err(error),
        };
        let owner = meta.uid();
        let is_last = rest.is_empty();
        // A parent or a symlink may belong to root, which is trusted. In a sticky directory only
        // the owner of an entry, the owner of the directory and root can rename that entry.
        let may_belong_to_root = !is_last || meta.is_symlink();
        if owner != uid && !(may_belong_to_root && owner == 0) {
            let text = format!("it belongs to another user (uid {owner})");
            return Err(refusal(&next, &text));
        }
        if meta.is_symlink() {
            n_links += 1;
            if n_links > MAX_LINKS {
                return Err(refusal(&next, "too many levels of symbolic links"));
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
                was_shared_sticky = false;
            }
            let mut names = names(&target);
            names.append(&mut rest);
            rest = names;
            continue;
        }
        at = next;
        was_shared_sticky = is_shared_sticky(&at, &meta, uid, is_last)?;
    }
    if was_shared_sticky {
        return Err(refusal(
            &at,
            "everybody can create files in it; use a directory of your own",
        ));
    }
    Ok(())
}

/// Returns the components of a path in order, including `..`.
fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

/// Returns whether a directory is sticky and other users may create entries in it. They cannot
/// rename or remove entries of ours there.
///
/// # Errors
/// Other users can rename or remove entries of ours: the directory is writable for them and not
/// sticky, or it is the last component, which must not be writable for them at all.
fn is_shared_sticky(path: &Path, meta: &Metadata, uid: u32, is_last: bool) -> io::Result<bool> {
    let mode = meta.mode();
    // A group with the user's number has no other members on systems with one group per user.
    let is_own_group = meta.uid() == uid && meta.gid() == uid;
    let others = if is_own_group { 0o002 } else { 0o022 };
    if mode & others == 0 {
        return Ok(false);
    }
    if mode & 0o1000 == 0 || is_last {
        let text = format!(
            "others can write to it (mode {:04o}); run `chmod go-w` on it",
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
