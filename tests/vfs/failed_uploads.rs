//! Uploads and writes that fail in the middle, and how the next upload continues.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scpfs::cache::RecoveryOutcome;
use scpfs::cache::Step;
use scpfs::cache::Steps;
use scpfs::path::RemotePath;
use scpfs::remote::Error;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::UploadSpec;
use scpfs::remote::retry::Retry;
use scpfs::ssh;
use scpfs::sync::Mutex;
use scpfs::vfs::Opened;
use scpfs::vfs::SetAttr;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::vfs_mount::Around;
use scpfs_testing::vfs_mount::CX;
use scpfs_testing::vfs_mount::Mount;
use scpfs_testing::vfs_mount::Setup;
use scpfs_testing::wait::wait_until;

use crate::faulty::Fate;
use crate::faulty::Faulty;

/// How an upload fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The host refuses it and changes nothing.
    Refused(Reason),
    /// The host reports an error in the middle, and this is the content of the file then.
    Partial(&'static [u8]),
    /// The connection breaks, and this is the content of the file then.
    Lost(&'static [u8]),
    /// The host carries it out, the answer is lost, and the host cannot be reached afterwards.
    Unheard,
    /// The host carries it out, and only the answer is lost.
    UnheardOnce,
}

/// Determines how the next uploads end; those after them succeed.
#[derive(Debug)]
struct Script {
    file: PathBuf,
    ends: Mutex<VecDeque<End>>,
    /// How the upload in flight ends, if its answer is to be lost.
    unheard: Mutex<Option<End>>,
    is_away: AtomicBool,
    refuses_to_clean_up: AtomicBool,
    plans: Mutex<Vec<UploadSpec>>,
    /// Runs when an upload begins.
    at_upload: Mutex<Option<fn(&Path)>>,
    has_acted: AtomicBool,
}

impl Script {
    fn new(world: &World, ends: &[End]) -> Arc<Self> {
        Arc::new(Self {
            file: world.root().join("file"),
            ends: Mutex::new(ends.iter().copied().collect()),
            unheard: Mutex::new(None),
            is_away: AtomicBool::new(false),
            refuses_to_clean_up: AtomicBool::new(false),
            plans: Mutex::new(Vec::new()),
            at_upload: Mutex::new(None),
            has_acted: AtomicBool::new(false),
        })
    }

    fn come_back(&self) {
        self.is_away.store(false, Ordering::SeqCst);
    }

    /// Overwrites the file in place with part of an upload, which keeps its inode.
    fn leave(&self, part: &[u8]) {
        fs::write(&self.file, part).unwrap();
    }
}

impl Fate for Script {
    fn before(&self, _: &'static str) -> bool {
        !self.is_away.load(Ordering::SeqCst)
    }

    fn after(&self, act: &'static str) -> bool {
        if act != "upload" {
            return true;
        }
        let Some(end) = self.unheard.lock().take() else {
            return true;
        };
        // The host stopped after the rename and before the flush.
        drop(fs::remove_file(syncs_of(&self.file)));
        self.is_away.store(end == End::Unheard, Ordering::SeqCst);
        false
    }

    fn answers(&self) -> bool {
        !self.is_away.load(Ordering::SeqCst)
    }

    fn uploads(&self, plan: &UploadSpec) {
        self.plans.lock().push(plan.clone());
        let act = self.at_upload.lock().take();
        if let Some(act) = act {
            act(&self.file);
            self.has_acted.store(true, Ordering::SeqCst);
        }
    }

    fn upload_error(&self, path: &RemotePath) -> Option<Error> {
        if self.is_away.load(Ordering::SeqCst) {
            return None;
        }
        let (act, path, text) = ("upload", path.clone(), Vec::new());
        match self.ends.lock().pop_front()? {
            End::Refused(reason) => Some(Error::Refused {
                act,
                path,
                reason,
                text,
            }),
            End::Partial(part) => {
                self.leave(part);
                Some(Error::Partial {
                    act,
                    path,
                    reason: Reason::NoSpace,
                    text,
                })
            }
            End::Lost(part) => {
                self.leave(part);
                let source = ssh::Error::Closed { act: "waiting" };
                Some(Error::OutcomeUnknown { act, source })
            }
            end @ (End::Unheard | End::UnheardOnce) => {
                *self.unheard.lock() = Some(end);
                None
            }
        }
    }

    fn clean_up_error(&self, dir: &RemotePath) -> Option<Error> {
        let refuses = self.refuses_to_clean_up.load(Ordering::SeqCst);
        refuses.then(|| Error::Refused {
            act: "clean up",
            path: dir.clone(),
            reason: Reason::AccessDenied,
            text: Vec::new(),
        })
    }
}

/// Which layer sees the faults: the cache, or the layer that retries requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Cache,
    Retry,
}

fn mount_with(world: &Arc<World>, script: &Arc<Script>, layer: Layer) -> Mount {
    let fate = Arc::clone(script) as Arc<dyn Fate>;
    let around: Around = match layer {
        Layer::Cache => Box::new(|remote| Faulty::around(remote, fate)),
        Layer::Retry => Box::new(|remote| Arc::new(Retry::new(Faulty::new(remote, fate)))),
    };
    let setup = Setup {
        around,
        ..Setup::default()
    };
    Mount::on(Arc::clone(world), setup)
}

fn scripted(ends: &[End], layer: Layer) -> (Mount, Arc<Script>) {
    let world = Arc::new(World::new(Userland::Gnu));
    let script = Script::new(&world, ends);
    (mount_with(&world, &script, layer), script)
}

/// Opens the file and appends to it.
fn open_and_append(mount: &Mount, data: &[u8]) -> Opened {
    let opened = mount.open("file", libc::O_WRONLY | libc::O_APPEND).unwrap();
    mount.vfs.write(&CX, opened.fh, 0, data).unwrap();
    opened
}

fn mode_of(mount: &Mount) -> u32 {
    let meta = fs::metadata(mount.at("file")).unwrap();
    meta.permissions().mode() & 0o7777
}

fn inode_of(mount: &Mount) -> u64 {
    fs::metadata(mount.at("file")).unwrap().ino()
}

fn set(mount: &Mount, set: SetAttr) {
    let ino = mount.find("file").unwrap().ino;
    mount.vfs.setattr(&CX, ino, None, &set).unwrap();
}

/// The file to which the wrapped `sync` writes its arguments.
fn syncs_of(file: &Path) -> PathBuf {
    file.parent().unwrap().with_file_name("syncs")
}

/// Replaces the `sync` of the host by a script that writes its arguments to a file. Returns the
/// path of that file.
fn note_syncs(world: &World) -> PathBuf {
    let log = world.root().with_file_name("syncs");
    let script = format!(
        "#!/bin/dash\necho \"$*\" >>'{}'\nexec /usr/bin/sync \"$@\"\n",
        log.display()
    );
    world.put("sync", &script);
    log
}

/// Regression: chmod after an upload of unknown outcome had no effect on the host, and returned 0:
/// resolving the upload compared only size and mtime, and the file stayed readable by everyone.
#[test]
fn chmod_after_an_upload_of_unknown_outcome_reaches_the_host() {
    for is_killed in [false, true] {
        let (mount, script) = scripted(&[End::Unheard], Layer::Cache);
        mount.write("file", b"secret").unwrap_err();
        let private = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        set(&mount, private);
        assert_eq!(mode_of(&mount), 0o644);
        let mount = if is_killed {
            Mount::on(mount.crash(), Setup::default())
        } else {
            script.come_back();
            let left = mount.vfs.drain();
            assert!(left.is_empty(), "{left:?}");
            mount
        };
        assert_eq!(mode_of(&mount), 0o600, "killed: {is_killed}");
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"secret");
        assert_eq!(mount.names("").unwrap(), ["file"]);
    }
}

/// Regression: `fsync` returned 0 although the answer to the upload was lost before the host had
/// flushed it.
#[test]
fn fsync_after_an_upload_of_unknown_outcome_flushes_file_and_directory() {
    let world = Arc::new(World::new(Userland::Gnu));
    let log = note_syncs(&world);
    for layer in [Layer::Cache, Layer::Retry] {
        let script = Script::new(&world, &[]);
        let mount = mount_with(&world, &script, layer);
        fs::write(mount.at("file"), "old").unwrap();
        mount.age();
        let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        script.ends.lock().push_back(match layer {
            Layer::Cache => End::Unheard,
            Layer::Retry => End::UnheardOnce,
        });
        if layer == Layer::Cache {
            mount.vfs.flush(&CX, opened.fh).unwrap_err();
            script.come_back();
        }
        mount.vfs.fsync(&CX, opened.fh).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
        let noted = fs::read_to_string(&log).unwrap_or_default();
        for path in [mount.at("file"), world.root()] {
            let line = format!("-- {}", path.display());
            let is_flushed = noted.lines().any(|it| it == line);
            assert!(is_flushed, "{layer:?}, {line}: {noted}");
        }
        mount.close(&opened).unwrap();
        fs::remove_file(&log).unwrap();
        fs::remove_file(mount.at("file")).unwrap();
        mount.crash();
    }
}

/// Regression: after an append that filled the disk, the whole file was uploaded in place. This
/// removed what programs on the host had appended, and the file was incomplete meanwhile.
#[test]
fn append_that_failed_in_the_middle_continues_where_it_ended() {
    for (end, layer) in [
        (End::Partial(b"old,ne"), Layer::Cache),
        (End::Lost(b"old,ne"), Layer::Cache),
        (End::Lost(b"old,ne"), Layer::Retry),
    ] {
        let (mount, script) = scripted(&[end], layer);
        fs::write(mount.at("file"), "old,").unwrap();
        let inode = inode_of(&mount);
        // A program on the host has the file open.
        let open = fs::OpenOptions::new().append(true).open(mount.at("file"));
        let opened = open_and_append(&mount, b"new,");
        let result = mount.vfs.flush(&CX, opened.fh);
        let case = format!("{end:?} {layer:?}");
        assert_eq!(result.is_ok(), layer == Layer::Retry, "{case}: {result:?}");
        let closed = mount.close(&opened);
        assert!(closed.is_ok(), "{case}: {closed:?}");
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"old,new,", "{case}");
        assert_eq!(inode_of(&mount), inode, "{case}");
        open.unwrap().write_all(b"theirs").unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"old,new,theirs");
        let plans = script.plans.lock();
        let appends: Vec<_> = plans.iter().map(|plan| plan.appends_to).collect();
        assert_eq!(appends, [Some(4), Some(6)], "{case}");
    }
}

#[test]
fn append_by_others_after_a_partial_append_is_kept() {
    let (mount, _) = scripted(&[End::Partial(b"old,ne")], Layer::Cache);
    fs::write(mount.at("file"), "old,").unwrap();
    let opened = open_and_append(&mount, b"new,");
    mount.vfs.flush(&CX, opened.fh).unwrap_err();
    let mut theirs = fs::OpenOptions::new()
        .append(true)
        .open(mount.at("file"))
        .unwrap();
    theirs.write_all(b"theirs,").unwrap();
    let error = mount.close(&opened).unwrap_err();
    assert_eq!(error.errno(), libc::ESTALE);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old,netheirs,");
    assert_eq!(
        fs::read(mount.at(&mount.beside("file"))).unwrap(),
        b"old,new,"
    );
}

/// Regression: if the host had no room for an append, the whole file was uploaded again.
#[test]
fn an_append_that_has_no_room_leaves_the_file_alone() {
    let ends = [End::Refused(Reason::NoSpace)];
    let (mount, script) = scripted(&ends, Layer::Cache);
    fs::write(mount.at("file"), "old,").unwrap();
    let opened = open_and_append(&mount, b"new,");
    let error = mount.vfs.flush(&CX, opened.fh).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old,");
    mount.close(&opened).unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"old,new,");
    for plan in &*script.plans.lock() {
        assert_ne!(plan.placement, Placement::Direct);
    }
}

/// Regression: if the host had no room for a second copy, the upload was done in place. If it ended
/// right after truncating the file, the empty file was taken for a change by others.
#[test]
fn a_file_that_an_upload_without_room_has_emptied_is_filled_by_the_next() {
    for ends in [
        &[End::Refused(Reason::NoSpace), End::Partial(b"")][..],
        &[End::Refused(Reason::NoSpace), End::Lost(b"")],
        // The host could not replace the file atomically, and wrote into it.
        &[End::Partial(b"")],
    ] {
        for is_killed in [false, true] {
            let (mount, script) = scripted(ends, Layer::Cache);
            fs::write(mount.at("file"), "the old content").unwrap();
            let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
            mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
            if is_killed {
                // No attempt before the crash may repair the file.
                script.ends.lock().push_back(End::Refused(Reason::NoSpace));
            }
            mount.vfs.flush(&CX, opened.fh).unwrap_err();
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"");
            let case = format!("{ends:?}, killed: {is_killed}");
            let mount = if is_killed {
                Mount::on(mount.crash(), Setup::default())
            } else {
                let closed = mount.close(&opened);
                assert!(closed.is_ok(), "{case}: {closed:?}");
                mount
            };
            assert_eq!(fs::read(mount.at("file")).unwrap(), b"new", "{case}");
            assert_eq!(mount.names("").unwrap(), ["file"], "{case}");
        }
    }
}

/// Regression: an attempt of unknown outcome left a partial upload, the host refused the retry, and
/// the refusal hid the partial upload: a later upload took it for a change by others.
#[test]
fn refused_retry_does_not_hide_a_partial_upload() {
    for reason in [Reason::AccessDenied, Reason::NoSpace] {
        let ends = [End::Lost(b"ne"), End::Refused(reason)];
        let (mount, _) = scripted(&ends, Layer::Retry);
        fs::write(mount.at("file"), "the old content").unwrap();
        fs::hard_link(mount.at("file"), mount.at("other")).unwrap();
        let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        let error = mount.vfs.flush(&CX, opened.fh).unwrap_err();
        assert_ne!(error.errno(), libc::ESTALE, "{reason:?}");
        let closed = mount.close(&opened);
        assert!(closed.is_ok(), "{reason:?}: {closed:?}");
        assert_eq!(fs::read(mount.at("other")).unwrap(), b"new");
        assert_eq!(mount.names("").unwrap(), ["file", "other"]);
    }
}

/// Regression: if the host could not search the directory for temporary files, every retry of an
/// upload failed.
#[test]
fn upload_is_resolved_if_the_host_cannot_search_for_its_temporary_file() {
    let (mount, script) = scripted(&[End::UnheardOnce], Layer::Retry);
    script.refuses_to_clean_up.store(true, Ordering::SeqCst);
    mount.write("file", b"new").unwrap();
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
}

/// Writes only the first bytes to the local disk, and then fails.
#[derive(Debug)]
struct ShortWrite {
    content: PathBuf,
    is_due: AtomicBool,
}

impl Steps for ShortWrite {
    fn before(&self, step: Step) -> io::Result<()> {
        if step != Step::WriteContent || !self.is_due.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        for item in fs::read_dir(&self.content)? {
            let item = item?;
            if item.file_name().as_encoded_bytes().starts_with(b"d-") {
                let file = fs::OpenOptions::new().write(true).open(item.path())?;
                file.write_all_at(b"XX", 0)?;
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

/// Regression: a write that failed after its first bytes changed the content, which was still
/// recorded as unchanged: the next upload sent only the appended bytes.
#[test]
fn close_after_a_failed_write_uploads_the_part_that_it_changed() {
    let world = Arc::new(World::new(Userland::Gnu));
    fs::write(world.root().join("file"), "old,").unwrap();
    let steps = Arc::new(ShortWrite {
        content: world.cache_base().join("key/content"),
        is_due: AtomicBool::new(false),
    });
    let setup = Setup {
        steps: Arc::clone(&steps) as Arc<dyn Steps>,
        ..Setup::default()
    };
    let mount = Mount::on(world, setup);
    steps_dir_exists(&mount, &steps);
    let opened = mount.open("file", libc::O_RDWR).unwrap();
    steps.is_due.store(true, Ordering::SeqCst);
    let error = mount.vfs.write(&CX, opened.fh, 0, b"XXXX").unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    mount.vfs.write(&CX, opened.fh, 4, b"new,").unwrap();
    mount.close(&opened).unwrap();
    assert_eq!(mount.read("file").unwrap(), b"XXd,new,");
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"XXd,new,");
}

fn steps_dir_exists(mount: &Mount, steps: &ShortWrite) {
    assert_eq!(mount.cache.disk().dir().join("content"), steps.content);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let to = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_dir(&item.path(), &to);
        } else {
            fs::copy(item.path(), to).unwrap();
        }
    }
}

/// Regression: each retry recorded the content as not persisted, although the local disk had it and
/// the host had part of it: after a power failure it was kept and not uploaded.
#[test]
fn content_is_uploaded_after_a_power_failure_during_the_second_try() {
    for end in [End::Partial(b"ne"), End::Partial(b"")] {
        let (mount, script) = scripted(&[end, End::Refused(Reason::InputOutput)], Layer::Cache);
        fs::write(mount.at("file"), "the old content").unwrap();
        let opened = mount.open("file", libc::O_WRONLY | libc::O_TRUNC).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        mount.vfs.flush(&CX, opened.fh).unwrap_err();
        // Copies the local disk in the middle of the second attempt.
        *script.at_upload.lock() = Some(|file| {
            let dir = file.parent().unwrap().parent().unwrap();
            copy_dir(&dir.join("cache"), &dir.join("cache at that moment"));
        });
        mount.vfs.flush(&CX, opened.fh).unwrap_err();
        assert!(script.has_acted.load(Ordering::SeqCst));
        let world = mount.crash();
        let cache = world.cache_base();
        fs::remove_dir_all(&cache).unwrap();
        fs::rename(cache.with_file_name("cache at that moment"), &cache).unwrap();
        let setup = Setup {
            boot: "another boot",
            ..Setup::default()
        };
        let mount = Mount::on(world, setup);
        let [recovered] = &mount.recovered[..] else {
            panic!("{:?}", mount.recovered)
        };
        assert!(
            matches!(recovered.outcome, RecoveryOutcome::Uploaded),
            "{recovered}"
        );
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
    }
}

/// The local disk refuses to truncate a file while this is set.
#[derive(Debug, Default)]
struct NoCut(AtomicBool);

impl Steps for NoCut {
    fn before(&self, step: Step) -> io::Result<()> {
        if step == Step::TruncateContent && self.0.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

/// Regression: a failed `truncate(2)` of a waiting upload left the file recorded as being written:
/// it was no longer uploaded, and after a crash it was only kept.
#[test]
fn content_that_waits_is_still_uploaded_after_a_truncation_that_failed() {
    for is_killed in [false, true] {
        let world = Arc::new(World::new(Userland::Gnu));
        // `close(2)` makes two attempts: one in flush and one in release.
        let script = Script::new(&world, &[End::Refused(Reason::InputOutput); 2]);
        let fate = Arc::clone(&script) as Arc<dyn Fate>;
        let steps = Arc::new(NoCut::default());
        let setup = Setup {
            steps: Arc::clone(&steps) as Arc<dyn Steps>,
            around: Box::new(|remote| Faulty::around(remote, fate)),
            ..Setup::default()
        };
        let mount = Mount::on(Arc::clone(&world), setup);
        let (attr, opened) = mount.create("file", libc::O_WRONLY).unwrap();
        mount.vfs.write(&CX, opened.fh, 0, b"new").unwrap();
        mount.close(&opened).unwrap_err();
        assert_eq!(fs::read(mount.at("file")).unwrap_or_default(), b"");
        steps.0.store(true, Ordering::SeqCst);
        let size = SetAttr {
            size: Some(1),
            ..SetAttr::default()
        };
        script
            .ends
            .lock()
            .push_back(End::Refused(Reason::InputOutput));
        mount.vfs.setattr(&CX, attr.ino, None, &size).unwrap_err();
        steps.0.store(false, Ordering::SeqCst);
        let mount = if is_killed {
            Mount::on(mount.crash(), Setup::default())
        } else {
            // The retry runs in the background: no close() follows.
            mount.clock.advance(Duration::from_secs(600));
            wait_until("the content is uploaded", || {
                fs::read(mount.at("file")).is_ok_and(|data| data == b"new")
            });
            mount
        };
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"new");
    }
}
