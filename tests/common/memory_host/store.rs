//! Uploads: the conflict check, and the placement of the content under its name or as a conflict
//! copy.

use std::io;

use crate::memory_host::LOGIN;
use crate::memory_host::tree::Body;
use crate::memory_host::tree::Done;
use crate::memory_host::tree::Node;
use crate::memory_host::tree::Tree;
use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Changed;
use scpfs::remote::Content;
use scpfs::remote::Expect;
use scpfs::remote::Outcome;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::UploadSpec;
use scpfs::remote::Uploaded;
use scpfs::stat::PERMISSIONS;
use scpfs::stat::Time;
use scpfs::stat::Version;

pub(crate) fn both(tree: &Tree, ino: u64, parent: u64) -> Done<Changed> {
    Ok(Changed {
        stat: Some(tree.stat(ino)?),
        parent: Some(tree.stat(parent)?),
    })
}

/// Whether `found` is the expected version. An mtime without a fraction may have a resolution of
/// one second, so that a second writer can have set the same one; then the ctime must be equal as
/// well.
fn is_same(expected: &Version, found: &Version) -> bool {
    let is_coarse = expected.mtime.nanos == 0 && expected.ctime.is_some();
    expected.same_content(found) && (!is_coarse || expected.ctime == found.ctime)
}

/// The result of the conflict check.
enum Verdict {
    Store(Outcome),
    Beside(Name),
    LeaveTheirs,
    Conflict,
}

fn judge(tree: &Tree, dir: u64, name: &Name, data: &[u8], plan: &UploadSpec) -> Done<Verdict> {
    let found = tree.child(dir, name);
    let version = found.map(|ino| tree.stat(ino)).transpose()?;
    let is_as_expected = match (&plan.expect, &version) {
        (Expect::Anything, _) | (Expect::Absent, None) => true,
        (Expect::Version(expected), Some(stat)) => is_same(expected, &stat.version()),
        (Expect::Absent, Some(_)) | (Expect::Version(_), None) => false,
    };
    if is_as_expected {
        return Ok(Verdict::Store(Outcome::AsPlanned));
    }
    let Some(conflict_name) = &plan.conflict_name else {
        return Ok(Verdict::Conflict);
    };
    let Some(ino) = found else {
        return Ok(Verdict::Store(Outcome::Recreated));
    };
    if matches!(&tree.node(ino)?.body, Body::File(theirs) if theirs == data) {
        return Ok(Verdict::LeaveTheirs);
    }
    if tree.child(dir, conflict_name).is_some() {
        return Ok(Verdict::Conflict);
    }
    Ok(Verdict::Beside(conflict_name.clone()))
}

/// Uploads content to a name; returns `None` if there is a conflict.
pub(crate) fn put(
    tree: &mut Tree,
    path: &RemotePath,
    data: Vec<u8>,
    plan: &UploadSpec,
    now: Time,
) -> Done<Option<Uploaded>> {
    let (dir, name) = tree.place(path)?;
    let found = tree.child(dir, &name);
    if let Some(ino) = found
        && matches!(tree.node(ino)?.body, Body::Directory(_))
    {
        return Err(Reason::IsADirectory);
    }
    let uploaded = |tree: &Tree, ino, outcome| -> Done<Option<Uploaded>> {
        let Changed { stat, parent } = both(tree, ino, dir)?;
        Ok(Some(Uploaded {
            stat,
            is_overtaken: false,
            parent,
            outcome,
        }))
    };
    let (name, outcome) = match (judge(tree, dir, &name, &data, plan)?, found) {
        (Verdict::Conflict, _) => return Ok(None),
        (Verdict::LeaveTheirs, Some(ino)) => return uploaded(tree, ino, Outcome::Same),
        (Verdict::LeaveTheirs, None) => return Ok(None),
        (Verdict::Beside(conflict_name), _) => (conflict_name, Outcome::ConflictCopy),
        (Verdict::Store(outcome), _) => (name, outcome),
    };
    let existing = tree
        .child(dir, &name)
        .filter(|_| plan.placement != Placement::Replace);
    let ino = match existing {
        Some(ino) => {
            let node = tree.node_mut(ino)?;
            node.body = Body::File(data);
            if plan.sets_mode {
                node.mode = plan.mode & PERMISSIONS;
            }
            node.ctime = now;
            ino
        }
        None => {
            let (mut mode, mut owner) = (plan.mode, plan.owner.unwrap_or(LOGIN));
            if let Some(replaced) = tree.child(dir, &name) {
                let replaced = tree.node(replaced)?;
                owner = replaced.owner;
                if !plan.sets_mode {
                    mode = replaced.mode;
                }
            }
            let ino = tree.add(Node::new(Body::File(data), mode, owner, now));
            tree.bind(dir, &name, ino, now)?;
            ino
        }
    };
    let node = tree.node_mut(ino)?;
    (node.mtime, node.atime) = (plan.mtime, plan.atime);
    uploaded(tree, ino, outcome)
}

pub(crate) fn read_all(content: &dyn Content, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut data = vec![0; size];
    let mut done = 0;
    while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match content.read_at(rest, done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(data)
}
