#![cfg(test)]
//! The number of programs that each operation starts on the host.

use std::fs;
use std::io;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::AttrChange;
use scpfs::remote::BatchReceiver;
use scpfs::remote::Durability;
use scpfs::remote::Expect;
use scpfs::remote::KnownDirectory;
use scpfs::remote::KnownFile;
use scpfs::remote::NewTime;
use scpfs::remote::Owner;
use scpfs::remote::Remote as _;
use scpfs::remote::RenameHow;
use scpfs::remote::UploadSpec;
use scpfs::shell::Shell;
use scpfs::stat::DeviceNumber;
use scpfs::stat::FileKind;
use scpfs::stat::Stat;
use scpfs_testing::content::Buffer;
use scpfs_testing::content::bytes;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::samples::MTIME;
use scpfs_testing::samples::path;
use scpfs_testing::samples::upload_spec;

const PROGRAMS: [&str; 27] = [
    "cat", "chmod", "chown", "cmp", "cp", "dd", "df", "find", "flock", "head", "id", "ln", "ls",
    "mkdir", "mkfifo", "mknod", "mv", "readlink", "rm", "rmdir", "scp", "sleep", "stat", "sync",
    "touch", "truncate", "xargs",
];

/// Changes an upload spec so that an existing file keeps its permissions.
fn keeping_mode(plan: UploadSpec) -> UploadSpec {
    UploadSpec {
        sets_mode: false,
        ..plan
    }
}

fn counted(world: &World, operation: impl FnOnce()) -> String {
    let log = world.root().with_file_name("started");
    fs::write(&log, "").unwrap();
    operation();
    let started = fs::read_to_string(&log).unwrap();
    let names: Vec<&str> = started.lines().collect();
    names.join(" ")
}

/// As [`counted`], but by name: the programs of a pipeline start in any order.
fn counted_in_pipeline(world: &World, operation: impl FnOnce()) -> String {
    let started = counted(world, operation);
    let mut names: Vec<&str> = started.split(' ').collect();
    names.sort_unstable();
    names.join(" ")
}

/// Discards what is fetched.
struct Discard;

impl BatchReceiver for Discard {
    fn begin(&mut self, _index: usize, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn data(&mut self, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _index: usize, stat: Option<&Stat>) {
        assert!(stat.is_some());
    }
}

fn operations(userland: Userland) -> Vec<(&'static str, String)> {
    let world = World::new(userland);
    let dir = world.root().parent().unwrap().to_owned();
    let is_gnu = matches!(userland, Userland::Gnu | Userland::NoScp | Userland::Bsd);
    let present: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|program| {
            dir.join("bin").join(program).symlink_metadata().is_ok()
                || is_gnu && Path::new("/usr/bin").join(program).exists()
        })
        .collect();
    let real = dir.join("real");
    fs::create_dir(&real).unwrap();
    for name in present {
        let there = dir.join("bin").join(name);
        if there.symlink_metadata().is_ok() {
            fs::rename(&there, real.join(name)).unwrap();
        } else {
            std::os::unix::fs::symlink(Path::new("/usr/bin").join(name), real.join(name)).unwrap();
        }
        let script = format!(
            "#!/bin/dash\necho {name} >>'{}/started'\nexec '{}' \"$@\"\n",
            dir.display(),
            real.join(name).display()
        );
        world.put(name, &script);
    }
    let shell: Shell = world.shell(Arc::new(ManualClock::new()));
    let at = |name: &str| world.root().join(name);
    let over = |name: &str, content: &[u8]| UploadSpec {
        expect: Expect::Version(shell.stat(&path(name)).unwrap().version()),
        ..upload_spec(content)
    };
    let new = UploadSpec {
        mode: 0o644,
        expect: Expect::Absent,
        ..upload_spec(b"content")
    };
    let mut found = Vec::new();
    let mut count =
        |what, operation: &mut dyn FnMut()| found.push((what, counted(&world, operation)));
    let upload = |name: &str, plan: &UploadSpec| {
        shell.upload(&path(name), &bytes(b"content"), plan).unwrap();
    };
    count("the first new file", &mut || upload("first", &new));
    count("a new file", &mut || upload("new", &new));
    let given = UploadSpec {
        owner: Some(Owner {
            uid: 1000,
            gid: 1000,
        }),
        ..new.clone()
    };
    count("a new file of somebody else's", &mut || {
        upload("given", &given);
    });
    fs::write(at("file"), "old").unwrap();
    let save = keeping_mode(over("file", b"content"));
    count("a save", &mut || upload("file", &save));
    let fsync = UploadSpec {
        durability: Durability::Fsync,
        ..keeping_mode(over("file", b"content"))
    };
    count("a save with fsync", &mut || upload("file", &fsync));
    let longer = UploadSpec {
        appends_to: Some(7),
        ..keeping_mode(over("file", b"content and more"))
    };
    count("an append", &mut || {
        shell
            .upload(&path("file"), &bytes(b"content and more"), &longer)
            .unwrap();
    });
    count("exclusive creation", &mut || {
        shell.create_new(&path("excl"), 0o644, None).unwrap();
    });
    count("mkdir", &mut || {
        shell.make_dir(&path("dir"), 0o755, None).unwrap();
    });
    count("mkfifo", &mut || {
        let device = DeviceNumber::default();
        shell
            .make_node(&path("fifo"), FileKind::Fifo, 0o644, device, None)
            .unwrap();
    });
    count("rename", &mut || {
        shell
            .rename(&path("excl"), &path("moved"), RenameHow::Replace)
            .unwrap();
    });
    count("rename without replacing", &mut || {
        shell
            .rename(&path("moved"), &path("excl"), RenameHow::NoReplace)
            .unwrap();
    });
    count("unlink", &mut || {
        shell.remove_file(&path("excl"), None).unwrap();
    });
    let change = AttrChange {
        mode: Some(0o600),
        ..AttrChange::default()
    };
    count("chmod", &mut || {
        shell.set_attr(&path("file"), &change).unwrap();
    });
    let change = AttrChange {
        mtime: Some(NewTime::At(MTIME)),
        ..AttrChange::default()
    };
    count("utimes", &mut || {
        shell.set_attr(&path("file"), &change).unwrap();
    });
    let known = shell.stat(&path("file")).unwrap().version();
    let change = AttrChange {
        expect: Some(known),
        ..change
    };
    count("utimes of a version that is compared", &mut || {
        shell.set_attr(&path("file"), &change).unwrap();
    });
    let known = shell.stat(&path("file")).unwrap().version();
    count("a fetch of a known version", &mut || {
        shell
            .fetch(&path("file"), Some(&known), &mut Buffer::default())
            .unwrap();
    });
    for n in 0..100 {
        fs::write(at(&format!("many{n}")), "content").unwrap();
    }
    let known = |n: usize| {
        let path = path(&format!("many{n}"));
        let version = shell.stat(&path).unwrap().version();
        KnownFile { path, version }
    };
    let files: Vec<KnownFile> = (0..100).map(known).collect();
    count("100 files that are read ahead", &mut || {
        shell.fetch_many(&files, &mut Discard).unwrap();
    });
    let root = KnownDirectory {
        path: path("dir"),
        id: shell.stat(&path("dir")).unwrap().id.unwrap(),
    };
    count("a copy", &mut || {
        shell.copy(&path("file"), &path("copy"), &new).unwrap();
    });
    let started = counted_in_pipeline(&world, || {
        let listed = shell.list_trees(slice::from_ref(&root), 1000).unwrap();
        assert_eq!(listed.len(), 1);
    });
    found.push(("a tree that is listed ahead", started));
    found
}

/// The programs of each operation: for GNU tools, for BusyBox with `stat`, and for BusyBox without.
const TABLE: [(&str, [&str; 3]); 19] = [
    // GNU `ls` asks once a minute whether the directory has a default ACL.
    (
        "the first new file",
        ["ls scp mv stat", "scp ln rm stat", "scp ln rm ls ls ls"],
    ),
    (
        "a new file",
        ["scp mv stat", "scp ln rm stat", "scp ln rm ls ls ls"],
    ),
    (
        "a new file of somebody else's",
        [
            "scp chown chmod mv stat",
            "scp chown chmod ln rm stat",
            "scp chown chmod ln rm ls ls ls",
        ],
    ),
    (
        "a save",
        [
            "scp flock stat cp mv stat",
            "scp stat chmod mv stat",
            "scp ls ls chmod mv ls ls ls",
        ],
    ),
    (
        "a save with fsync",
        [
            "scp sync flock stat cp mv sync stat",
            "scp sync stat chmod mv sync stat",
            "scp sync ls ls chmod mv sync ls ls ls",
        ],
    ),
    (
        "an append",
        [
            "scp flock stat cat touch rm stat",
            "scp stat cat touch rm stat",
            "scp ls ls cat touch rm ls ls ls",
        ],
    ),
    ("exclusive creation", ["stat", "stat", "ls ls ls"]),
    ("mkdir", ["mkdir stat", "mkdir stat", "mkdir ls ls ls"]),
    ("mkfifo", ["mkfifo stat", "mkfifo stat", "mkfifo ls ls ls"]),
    ("rename", ["mv stat", "mv stat", "mv ls ls ls"]),
    (
        "rename without replacing",
        ["mv stat", "ln rm stat", "ln rm ls ls ls"],
    ),
    ("unlink", ["rm stat", "rm stat", "rm ls ls ls"]),
    ("chmod", ["chmod stat", "chmod stat", "chmod ls ls ls"]),
    ("utimes", ["touch stat", "touch stat", "touch ls ls ls"]),
    (
        "utimes of a version that is compared",
        ["stat touch stat", "stat touch stat", "ls ls touch ls ls ls"],
    ),
    (
        "a fetch of a known version",
        ["scp stat", "scp stat", "scp ls ls ls"],
    ),
    // Each chunk has 64 files.
    (
        "100 files that are read ahead",
        [
            "scp stat scp stat",
            "scp stat scp stat",
            "scp ls ls ls scp ls ls ls",
        ],
    ),
    (
        "a copy",
        [
            "cp touch mv stat",
            "cat touch ln rm stat",
            "cat touch ln rm ls ls ls",
        ],
    ),
    (
        "a tree that is listed ahead",
        ["find head", "find head stat xargs", "find ls ls ls"],
    ),
];

#[test]
fn each_operation_starts_as_few_programs_as_the_table_says() {
    let mut wrong = Vec::new();
    for (at, userland) in [Userland::Gnu, Userland::BusyBox, Userland::OpenWrt]
        .into_iter()
        .enumerate()
    {
        if !userland.is_here() {
            continue;
        }
        let found = operations(userland);
        assert_eq!(found.len(), TABLE.len());
        for ((what, names), (expected, lists)) in found.iter().zip(TABLE) {
            assert_eq!(*what, expected);
            if names != lists[at] {
                wrong.push(format!("{userland:?}: {what}: {names}, not {}", lists[at]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
