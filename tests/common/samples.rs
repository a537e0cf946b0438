//! Small things that tests of any remote need.

use std::io;

use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::Content;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Receiver;
use scpfs::remote::UploadSpec;
use scpfs::stat::Time;

pub fn path(text: &str) -> RemotePath {
    path_of(text.as_bytes())
}

pub fn path_of(bytes: &[u8]) -> RemotePath {
    bytes
        .split(|&b| b == b'/')
        .fold(RemotePath::root(), |dir, part| {
            dir.join(&Name::new(part).unwrap())
        })
}

pub fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> Reason {
    result.unwrap_err().reason().expect("refused")
}

#[derive(Default)]
pub struct Buffer {
    pub begun: Vec<u64>,
    pub data: Vec<u8>,
}

impl Receiver for Buffer {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        self.begun.push(size);
        self.data.clear();
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.data.extend_from_slice(data);
        Ok(())
    }
}

pub struct Bytes<'a>(pub &'a [u8]);

impl Content for Bytes<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = &self.0[usize::try_from(offset).unwrap().min(self.0.len())..];
        let n = buf.len().min(rest.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

pub fn bytes(data: &[u8]) -> Bytes<'_> {
    Bytes(data)
}

pub const MTIME: Time = Time {
    secs: 1_700_000_000,
    nanos: 123_456_000,
};

pub fn plan(data: &[u8]) -> UploadSpec {
    UploadSpec {
        size: data.len() as u64,
        appends_to: None,
        mode: 0o640,
        sets_mode: true,
        mtime: MTIME,
        atime: MTIME,
        owner: None,
        expect: Expect::Anything,
        placement: Placement::Replace,
        durability: Durability::Lazy,
        conflict_name: None,
        tag: 0x1234_abcd,
    }
}

/// Names of every byte that a name can have, and some that are shell, options or records.
pub fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = (1..=255u8)
        .filter(|&b| b != b'/' && b != b'.')
        .map(|b| vec![b])
        .collect();
    for name in [
        "-rf",
        "--",
        "$(touch x)",
        "`touch x`",
        "a'b\"c\\",
        "a\nb",
        "\n",
        "a\n",
        " a ",
        "*",
        "~",
        "!!",
        "a\nC0644 9 evil",
        "#",
        "a=b",
        ".scpfs-0123456789abcdef.tmp.x",
        ".scpfs",
        "...",
        "%s%n",
        "a\rb\x1b[2J",
    ] {
        names.push(name.as_bytes().to_vec());
    }
    names.push(vec![b'x'; 255]);
    names.push(b"\xff\xfe\x80".to_vec());
    names.sort();
    names.dedup();
    names
}
