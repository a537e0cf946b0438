//! Random operations, the same ones on a mount and on a local directory: results, errnos and the
//! final state must be the same.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use scpfs_testing::or_skip;
use scpfs_testing::random::Random;

use crate::Mounted;

#[derive(Debug, Clone)]
enum Op {
    Open {
        slot: usize,
        path: String,
        flags: u64,
    },
    Close {
        slot: usize,
    },
    Write {
        slot: usize,
        at: u64,
        data: Vec<u8>,
    },
    Read {
        slot: usize,
        at: u64,
        len: usize,
    },
    SetLen {
        slot: usize,
        len: u64,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Stat {
        path: String,
    },
    List {
        path: String,
    },
    ReadAll {
        path: String,
    },
}

const N_SLOTS: usize = 4;

fn path(random: &mut Random) -> String {
    let name = |random: &mut Random| ["a", "b", "c", "d d"][random.index(4)];
    let first = name(random);
    match random.below(3) {
        0 => first.to_owned(),
        1 => format!("{first}/{}", name(random)),
        _ => format!("{first}/{}/{}", name(random), name(random)),
    }
}

fn operation(random: &mut Random) -> Op {
    let slot = random.index(N_SLOTS);
    let at = random.below(3) * random.below(40_000);
    match random.below(20) {
        0..=3 => Op::Open {
            slot,
            path: path(random),
            flags: random.below(8),
        },
        4 | 5 => Op::Close { slot },
        6 | 7 => {
            let byte = random.next_u64().to_le_bytes()[0];
            Op::Write {
                slot,
                at,
                data: vec![byte; random.index(9000)],
            }
        }
        8 => Op::Read {
            slot,
            at,
            len: random.index(20_000),
        },
        9 => Op::SetLen {
            slot,
            len: random.below(30_000),
        },
        10 | 11 => Op::Mkdir { path: path(random) },
        12 => Op::Rmdir { path: path(random) },
        13 => Op::Unlink { path: path(random) },
        14 | 15 => Op::Rename {
            from: path(random),
            to: path(random),
        },
        16 => Op::Link {
            from: path(random),
            to: path(random),
        },
        17 => match random.below(2) {
            0 => Op::Symlink {
                target: "a".to_owned(),
                path: path(random),
            },
            _ => Op::Chmod {
                path: path(random),
                mode: 0o700 | u32::try_from(random.below(0o100)).unwrap(),
            },
        },
        18 => match random.below(2) {
            0 => Op::Stat { path: path(random) },
            _ => Op::List { path: path(random) },
        },
        _ => Op::ReadAll { path: path(random) },
    }
}

/// One of the two filesystems: the mount or the local directory.
struct Side<'a> {
    root: &'a Path,
    open: [Option<File>; N_SLOTS],
}

impl Side<'_> {
    /// Performs an operation; returns its result as text.
    fn apply(&mut self, op: &Op) -> String {
        match self.try_apply(op) {
            Ok(text) => text,
            Err(error) => format!("errno {:?}", error.raw_os_error()),
        }
    }

    fn try_apply(&mut self, op: &Op) -> io::Result<String> {
        let at = |path: &str| self.root.join(path);
        let done = String::new();
        match op {
            Op::Open { slot, path, flags } => {
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                options.create(flags & 1 != 0).truncate(flags & 2 != 0);
                if flags & 4 != 0 && flags & 1 != 0 {
                    options.create_new(true);
                }
                let file = options.open(at(path))?;
                self.open[*slot] = Some(file);
                Ok(done)
            }
            Op::Close { slot } => {
                self.open[*slot] = None;
                Ok(done)
            }
            Op::Write { slot, at, data } => match &self.open[*slot] {
                Some(file) => file.write_all_at(data, *at).map(|()| done),
                None => Ok("not open".to_owned()),
            },
            Op::Read { slot, at, len } => match &self.open[*slot] {
                Some(file) => {
                    let mut buf = vec![0; *len];
                    let n = file.read_at(&mut buf, *at)?;
                    Ok(format!("{n} bytes, sum {}", sum(&buf[..n])))
                }
                None => Ok("not open".to_owned()),
            },
            Op::SetLen { slot, len } => match &self.open[*slot] {
                Some(file) => {
                    file.set_len(*len)?;
                    Ok(format!("{}", file.metadata()?.len()))
                }
                None => Ok("not open".to_owned()),
            },
            Op::Mkdir { path } => fs::create_dir(at(path)).map(|()| done),
            Op::Rmdir { path } => fs::remove_dir(at(path)).map(|()| done),
            Op::Unlink { path } => fs::remove_file(at(path)).map(|()| done),
            Op::Rename { from, to } => fs::rename(at(from), at(to)).map(|()| done),
            Op::Link { from, to } => fs::hard_link(at(from), at(to)).map(|()| done),
            Op::Symlink { target, path } => {
                std::os::unix::fs::symlink(target, at(path)).map(|()| done)
            }
            Op::Chmod { path, mode } => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)).map(|()| done)
            }
            Op::Stat { path } => describe(&at(path)),
            Op::List { path } => {
                let mut names = fs::read_dir(at(path))?
                    .map(|item| item.map(|item| format!("{:?}", item.file_name())))
                    .collect::<io::Result<Vec<_>>>()?;
                names.sort();
                Ok(names.join(" "))
            }
            Op::ReadAll { path } => {
                let data = fs::read(at(path))?;
                Ok(format!("{} bytes, sum {}", data.len(), sum(&data)))
            }
        }
    }
}

fn sum(data: &[u8]) -> u64 {
    data.iter()
        .fold(7, |sum, b| sum * 31 % 1_000_000_007 + u64::from(*b))
}

fn describe(path: &Path) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let size = if meta.is_dir() { 0 } else { meta.size() };
    // The link count of a directory differs between filesystems; only some count subdirectories.
    let nlink = if meta.is_dir() { 0 } else { meta.nlink() };
    Ok(format!(
        "{:?} {:o} {size} {nlink}",
        meta.file_type(),
        meta.mode()
    ))
}

/// Every name below a directory with its attributes and content.
fn whole(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for item in fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() {
                sum(&fs::read(&path).unwrap())
            } else {
                0
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            lines.push(format!("{name} {} {content}", describe(&path).unwrap()));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}

pub(crate) fn compare(mounted: &Mounted, seed: u64, n_ops: usize) {
    let (here, local) = (
        mounted.here(&format!("s{seed}")),
        mounted.aside(&format!("local{seed}")),
    );
    for dir in [&here, &local] {
        fs::create_dir(dir).unwrap();
    }
    let mut random = Random::new(seed);
    let mut one = Side {
        root: &here,
        open: Default::default(),
    };
    let mut two = Side {
        root: &local,
        open: Default::default(),
    };
    let mut done = Vec::new();
    for _ in 0..n_ops {
        let op = operation(&mut random);
        let (got, expected) = (one.apply(&op), two.apply(&op));
        let shown = format!("{op:?}").chars().take(120).collect::<String>();
        done.push(format!("{shown} -> {expected}"));
        let history = || done[done.len().saturating_sub(25)..].join("\n");
        assert_eq!(got, expected, "seed {seed}, after\n{}", history());
    }
    drop((one, two));
    assert_eq!(whole(&here), whole(&local), "seed {seed}");
    let there = mounted.there(&format!("s{seed}"));
    assert_eq!(whole(&there), whole(&local), "seed {seed}, on the host");
}

#[test]
fn random_operations_have_the_results_of_a_local_directory() {
    let mounted = or_skip!(Mounted::new(&[]));
    for seed in 1..=12 {
        compare(&mounted, seed, 400);
    }
}

#[test]
fn random_operations_without_caching_have_the_results_of_a_local_directory() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=0"]));
    for seed in 101..=103 {
        compare(&mounted, seed, 300);
    }
}
