//! Paths, names, settings and upload specs for tests of any `Remote`.

use std::path::Path;
use std::time::Duration;

use scpfs::path::Name;
use scpfs::path::RemotePath;
use scpfs::remote::DEFAULT_MAX_NAMES;
use scpfs::remote::Durability;
use scpfs::remote::Error;
use scpfs::remote::Expect;
use scpfs::remote::Placement;
use scpfs::remote::Reason;
use scpfs::remote::Settings;
use scpfs::remote::UploadSpec;
use scpfs::stat::Time;

/// The path below the root with these components.
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

/// Returns the settings of a mount of this directory.
pub fn settings(directory: impl AsRef<Path>) -> Settings {
    Settings {
        directory: directory.as_ref().as_os_str().as_encoded_bytes().to_vec(),
        max_connections: 3,
        max_names: DEFAULT_MAX_NAMES,
        timeout: Duration::from_secs(20),
        upload_deadline: Duration::ZERO,
        fails_fast: false,
    }
}

/// The reason of a refusal; panics if the request was not refused.
pub fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> Reason {
    result.unwrap_err().reason().expect("refused")
}

pub const MTIME: Time = Time {
    secs: 1_700_000_000,
    nanos: 123_456_000,
};

/// A spec without a conflict check, which replaces an existing file.
pub fn upload_spec(data: &[u8]) -> UploadSpec {
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
        is_exclusive: false,
        tag: 0x1234_abcd,
    }
}

/// Names with all bytes that a name can contain, and names that look like shell, options or
/// records.
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
