//! Local directories that another user could replace.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::chown;
use std::path::Path;

use scpfs::owned_path::check;
use scpfs_testing::capability::Capability;
use scpfs_testing::capability::skip;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_below_one_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return skip(Capability::Root, "root for a directory of another user");
    }
    let base = tempfile::tempdir().unwrap();
    let theirs = base.path().join("theirs");
    let ours = theirs.join("ours");
    fs::create_dir_all(&ours).unwrap();
    check(&ours, 0).unwrap();
    chown(&theirs, Some(4242), None).unwrap();
    for mode in [0o755, 0o1777] {
        chmod(&theirs, mode);
        let text = check(&ours, 0).unwrap_err().to_string();
        assert!(text.contains("uid 4242"), "{text}");
    }
    // A directory that another user made in a sticky directory can be replaced by that user.
    chown(&theirs, Some(0), None).unwrap();
    chown(&ours, Some(4242), None).unwrap();
    check(&ours, 0).unwrap_err();
    check(&theirs.join("new"), 0).unwrap();
    // Root may own a directory above the last one, but not the last one itself.
    chmod(base.path(), 0o755);
    chown(&ours, Some(4242), None).unwrap();
    check(&ours, 4242).unwrap();
    check(&theirs, 4242).unwrap_err();
}
