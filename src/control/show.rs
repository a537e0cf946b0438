//! Formats the status of a mount as text for people.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crate::control::message::ConflictStatus;
use crate::control::message::FileStatus;
use crate::control::message::ReadAheadStatus;
use crate::control::message::Status;
use crate::path::Escaped;
use crate::stat::Civil;
use crate::stat::Time;

/// The maximum number of files shown per mount; `--json` has no limit.
const MAX_FILES: usize = 50;

/// Returns a local path as text with control characters escaped.
pub fn path_text(path: &Path) -> String {
    Escaped(path.as_os_str().as_bytes()).to_string()
}

/// Returns a date and a time of day in UTC: `2026-01-31 23:59Z`.
pub fn date(time: Time) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        ..
    } = time.civil();
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}Z")
}

/// Returns the status of a mount as lines of text.
pub fn status(status: &Status) -> String {
    let mut text = format!(
        "{} on {} (pid {}, up {}, scpfs {})\n",
        status.source,
        status.mountpoint,
        status.pid,
        duration(Duration::from_secs(status.uptime_seconds)),
        status.version
    );
    let connection = &status.connection;
    let state = match connection.away_seconds {
        None => connection.state.clone(),
        Some(secs) => format!(
            "{} for {}",
            connection.state,
            duration(Duration::from_secs(secs))
        ),
    };
    let round_trip = connection
        .round_trip_ms
        .map_or_else(String::new, |ms| format!(", round trip {ms:.1} ms"));
    let cache = &status.cache;
    let (limit, opens) = (size(cache.limit), cache.hits.saturating_add(cache.misses));
    let rows = [
        (
            "connection",
            format!(
                "{state}, {} of {} connections{round_trip}",
                connection.lanes_open, connection.lanes_max
            ),
        ),
        ("host", status.host.clone()),
        (
            "cache",
            format!(
                "{} of {limit}, {} of {opens} opens without a fetch, in {}",
                size(cache.bytes),
                cache.hits,
                cache.directory
            ),
        ),
        ("read ahead", read_ahead(&cache.read_ahead)),
        ("not uploaded", not_uploaded(&status.files)),
    ];
    for (name, value) in rows {
        if value.is_empty() {
            continue;
        }
        // Writing into a string cannot fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    }
    if let Some(refusal) = &connection.refusal {
        let _ = writeln!(text, "  {:<11} {refusal}", "refused");
    }
    for file in status.files.iter().take(MAX_FILES) {
        let _ = writeln!(text, "    {:<10} {}", file.state, file_text(file));
    }
    if let Some(more @ 1..) = status.files.len().checked_sub(MAX_FILES) {
        let _ = writeln!(text, "    and {more} more");
    }
    for conflict in &status.conflicts {
        let secs = conflict.at;
        let at = date(Time { secs, nanos: 0 });
        let ConflictStatus { path, kept_as, .. } = conflict;
        let _ = writeln!(text, "  conflict    {path}: yours is {kept_as}, since {at}");
    }
    if !status.left.is_empty() {
        let left = count(status.left.len());
        let _ = writeln!(
            text,
            "  left        {left} of earlier mounts; see `scpfs recover`"
        );
    }
    text
}

/// Returns how much was read ahead; empty if nothing was.
fn read_ahead(counts: &ReadAheadStatus) -> String {
    let ReadAheadStatus {
        files,
        bytes,
        used,
        wasted,
    } = *counts;
    if files == 0 {
        return String::new();
    }
    let bytes = size(bytes);
    format!("{files} files, {bytes}: {used} opened, {wasted} dropped unopened")
}

/// Returns the progress of uploads: `3 files, 12.3 of 40.0 MiB to upload`.
pub fn to_upload(files: &[FileStatus]) -> String {
    let (all, sent) = sums(files);
    let files = count(files.len());
    format!("{files}, {} to upload", part(sent, all))
}

fn not_uploaded(files: &[FileStatus]) -> String {
    if files.is_empty() {
        return "nothing".to_owned();
    }
    let (all, sent) = sums(files);
    format!("{}, {}", count(files.len()), size(all - sent))
}

fn sums(files: &[FileStatus]) -> (u64, u64) {
    // The daemon of another user may send any numbers: saturate.
    let sum = |of: fn(&FileStatus) -> u64| files.iter().map(of).fold(0, u64::saturating_add);
    let (all, sent) = (sum(|file| file.size), sum(|file| file.sent));
    (all, sent.min(all))
}

fn file_text(file: &FileStatus) -> String {
    let bytes = if file.state == "uploading" {
        part(file.sent, file.size)
    } else {
        size(file.size)
    };
    let mut text = format!("{}  {bytes}", file.path);
    if let Some(message) = &file.message {
        let errno = file.errno.as_deref().unwrap_or("error");
        let _ = write!(text, ": {errno}: {message}");
    }
    if file.tries > 0 {
        let _ = write!(text, "; tried {} times", file.tries);
    }
    if let Some(secs) = file.next_try_seconds {
        let _ = write!(
            text,
            "; next retry in {}",
            duration(Duration::from_secs(secs))
        );
    }
    if file.state == "kept"
        && let Some(id) = &file.id
    {
        let _ = write!(text, "; in content/{id} of the cache");
    }
    text
}

/// Returns a number of files: `1 file`, `3 files`.
fn count(n: usize) -> String {
    match n {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    }
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

fn unit(bytes: u64) -> (&'static str, u64) {
    UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit)
        .unwrap_or(("B", 1))
}

fn in_unit(bytes: u64, (_, unit): (&str, u64)) -> String {
    if unit == 1 {
        return bytes.to_string();
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Returns a size with its unit: `40.0 MiB`, `17 B`.
pub fn size(bytes: u64) -> String {
    let unit = unit(bytes);
    format!("{} {}", in_unit(bytes, unit), unit.0)
}

/// Returns two sizes with the unit of the second: `12.3 of 40.0 MiB`.
fn part(some: u64, all: u64) -> String {
    let unit = unit(all);
    format!(
        "{} of {} {}",
        in_unit(some, unit),
        in_unit(all, unit),
        unit.0
    )
}

fn duration(time: Duration) -> String {
    let secs = time.as_secs();
    let (days, hours, mins) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match (days, hours, mins) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{mins} min {} s", secs % 60),
        (0, ..) => format!("{hours} h {mins} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_formatted_with_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (40 << 20, "40.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(part(12_900_000, 40 << 20), "12.3 of 40.0 MiB");
        for (secs, text) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (7380, "2 h 3 min"),
            (200_000, "2 d 7 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn to_upload_returns_one_line() {
        let file = FileStatus {
            path: "a".to_owned(),
            state: "uploading".to_owned(),
            size: 20 << 20,
            sent: 10 << 20,
            errno: None,
            message: None,
            tries: 0,
            next_try_seconds: None,
            id: None,
        };
        let line = to_upload(&[file.clone(), file]);
        assert_eq!(line, "2 files, 20.0 of 40.0 MiB to upload");
        assert_eq!(to_upload(&[]), "0 files, 0 of 0 B to upload");
    }
}
