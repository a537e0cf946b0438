//! Parser of the listings of several directories and all that is below them; pure.
//!
//! `find` prints a directory before its names, and all that is below a directory before the next
//! name. So a directory is listed completely when a name that is not below it follows, or when
//! `find` came to its end. After a failure it may have given up; then only errors that name a
//! directory show that it went on.

#![warn(clippy::indexing_slicing)]

use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::ListEntry;
use crate::remote::Listing;
use crate::remote::SubListing;
use crate::shell::answer::lines;
use crate::shell::answer::stat::GnuRecord;
use crate::shell::answer::stat::mark_of;
use crate::shell::answer::stat::split_marked_record;
use crate::stat::FileId;
use crate::stat::FileKind;
use crate::stat::Stat;

/// A directory that `find` was to begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub path: RemotePath,
    /// Its path on the host.
    pub absolute: Vec<u8>,
    pub id: FileId,
}

/// The complete listings of an answer, and the error messages of the programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ParsedTrees {
    /// A directory comes before those below it.
    pub listings: Vec<SubListing>,
    pub error_text: Vec<u8>,
}

/// Parses what `list_trees` of `helpers/gnu.sh` prints. `None` if it is malformed.
pub fn parse_gnu_trees(body: &[u8], listing_mark: &[u8], roots: &[Root]) -> Option<ParsedTrees> {
    let (records, error_text) = split_errors(body, listing_mark)?;
    let mut trees = Trees::new(roots);
    let mut used = 0;
    let mut end_of_find = None;
    let mut ends = memchr::memchr_iter(0, records);
    while let (Some(middle), Some(end)) = (ends.next(), ends.next()) {
        let record = records.get(used..middle)?;
        let target = records.get(middle + 1..end)?;
        used = end + 1;
        if end_of_find.is_some() {
            return None;
        }
        if let Some(status) = record.strip_prefix(b"end ") {
            end_of_find = match status {
                b"0" => Some(true),
                b"1" => Some(false),
                // A signal, for example.
                _ => break,
            };
            continue;
        }
        let record = GnuRecord::parse(record)?;
        match usize::try_from(record.depth).ok()? {
            0 => trees.begin(|root| Some(root.id) == record.stat.id, record.stat),
            depth => trees.add(depth, record.stat, record.entry(target)?)?,
        }
    }
    Some(trees.end(end_of_find, error_text))
}

/// Parses what `list_trees` of `helpers/busybox.sh` and `helpers/bsd.sh` print. `None` if it is
/// malformed.
pub fn parse_marked_trees(body: &[u8], listing_mark: &[u8], roots: &[Root]) -> Option<ParsedTrees> {
    let (records, error_text) = split_errors(body, listing_mark)?;
    let mark = mark_of(listing_mark);
    let mut starts = memchr::memmem::find_iter(records, &mark).peekable();
    let mut paths: Vec<(Stat, &[u8])> = Vec::new();
    while let Some(start) = starts.next() {
        let end = starts.peek().copied().unwrap_or(records.len());
        let record = records.get(start + mark.len()..end)?.strip_prefix(b" ")?;
        paths.push(split_marked_record(record)?);
    }
    // Without the path at the end of the output, the last path may be one that was cut, and have the
    // attributes of another file.
    let end_of_find = match paths.pop() {
        Some((_, b"//")) => Some(true),
        Some((_, b"///")) => Some(false),
        _ => None,
    };
    let mut trees = Trees::new(roots);
    let mut top: &[u8] = b"";
    for (stat, path) in paths {
        if let Some(root) = roots.iter().find(|root| root.absolute == path) {
            top = &root.absolute;
            trees.begin(|it| it.absolute == path && Some(it.id) == stat.id, stat);
            continue;
        }
        let below = path.strip_prefix(top)?.strip_prefix(b"/")?;
        let depth = below.split(|&b| b == b'/').count();
        let name = below.rsplit(|&b| b == b'/').next()?;
        if !trees.is_at(depth, below.strip_suffix(name)?) {
            return None;
        }
        let entry = ListEntry::new(Name::new(name).ok()?, stat.kind, Some(stat), None);
        trees.add(depth, stat, entry)?;
    }
    Some(trees.end(end_of_find, error_text))
}

/// Splits an answer at GS, the listing mark and `!`.
fn split_errors<'a>(body: &'a [u8], listing_mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mark = [&mark_of(listing_mark)[..], b"!"].concat();
    let at = memchr::memmem::find(body, &mark)?;
    Some((body.get(..at)?, body.get(at + mark.len()..)?))
}

/// Collects entries into listings.
struct Trees<'a> {
    roots: &'a [Root],
    /// The directories that contain the last name, from the root on. Empty below a directory that
    /// is not a root.
    open: Vec<SubListing>,
    complete: Vec<SubListing>,
}

impl<'a> Trees<'a> {
    fn new(roots: &'a [Root]) -> Self {
        Self {
            roots,
            open: Vec::new(),
            complete: Vec::new(),
        }
    }

    /// Closes the directories that are at `depth` or deeper: no name of them follows.
    fn close(&mut self, depth: usize) {
        let closed = self.open.split_off(depth.min(self.open.len()));
        self.complete.extend(closed);
    }

    /// Begins a root. Without one that matches, the names below it are left out.
    fn begin(&mut self, is_it: impl Fn(&Root) -> bool, stat: Stat) {
        self.close(0);
        let root = self.roots.iter().find(|root| is_it(root));
        if let Some(root) = root.filter(|_| stat.kind == FileKind::Directory) {
            self.open.push(empty(root.path.clone(), stat));
        }
    }

    /// Returns whether the directories above a name at `depth` are those of `dir`, which is relative
    /// to the root and ends with a slash, or is empty.
    fn is_at(&self, depth: usize, dir: &[u8]) -> bool {
        if self.open.is_empty() {
            return true;
        }
        let above = self.open.iter().skip(1).take(depth - 1);
        let mut path = Vec::new();
        for it in above {
            let name = it.path.as_bytes().rsplit(|&b| b == b'/').next();
            path.extend_from_slice(name.unwrap_or_default());
            path.push(b'/');
        }
        path == dir
    }

    /// Adds a name at `depth` below the root. `None` if no directory contains it.
    fn add(&mut self, depth: usize, stat: Stat, entry: ListEntry) -> Option<()> {
        if self.open.is_empty() {
            return Some(());
        }
        self.close(depth);
        if self.open.len() != depth {
            return None;
        }
        let dir = self.open.last_mut()?;
        let path = dir.path.join(&entry.name);
        let dir_device = dir.listing.directory.id.map(|id| id.dev);
        dir.listing.entries.push(entry);
        // `find -xdev` prints a mountpoint, and nothing below it.
        let is_same_device = stat.id.map(|id| id.dev) == dir_device;
        if stat.kind == FileKind::Directory && is_same_device {
            self.open.push(empty(path, stat));
        }
        Some(())
    }

    /// Ends the output. `end_of_find` is whether `find` succeeded, if it came to its end.
    fn end(mut self, end_of_find: Option<bool>, error_text: &[u8]) -> ParsedTrees {
        let is_complete = match end_of_find {
            None => false,
            Some(true) => true,
            // Each error is about one directory: it was left out, and `find` went on.
            Some(false) => self.names_a_directory_in_each_line(error_text),
        };
        if is_complete {
            self.close(0);
        }
        let mut listings = std::mem::take(&mut self.complete);
        // A directory is complete after those below it.
        listings.sort_by_key(|it| it.path.depth());
        if !error_text.trim_ascii().is_empty() {
            listings.retain(|it| {
                let path = self.absolute(&it.path);
                path.is_some_and(|path| is_plain(&path) && !is_named(&path, error_text))
            });
        }
        ParsedTrees {
            listings,
            error_text: error_text.to_vec(),
        }
    }

    fn names_a_directory_in_each_line(&self, error_text: &[u8]) -> bool {
        let directories = self.open.iter().chain(&self.complete);
        let paths: Vec<Vec<u8>> = directories
            .filter_map(|it| self.absolute(&it.path))
            .filter(|path| is_plain(path))
            .collect();
        // Without a message, it may have been killed.
        let mut lines = lines(error_text).peekable();
        lines.peek().is_some() && lines.all(|line| paths.iter().any(|path| is_named(path, line)))
    }

    /// Returns the path on the host of `path`, which the path of a root shows the beginning of.
    fn absolute(&self, path: &RemotePath) -> Option<Vec<u8>> {
        let root = self.roots.first()?;
        let prefix = root.absolute.strip_suffix(root.path.as_bytes())?;
        Some([prefix, path.as_bytes()].concat())
    }
}

fn empty(path: RemotePath, directory: Stat) -> SubListing {
    let entries = Vec::new();
    SubListing {
        path,
        listing: Listing { directory, entries },
    }
}

/// Returns whether an error message is about this path; perhaps also if it is about one that begins
/// in the same way, but not if it is about a name below it.
fn is_named(path: &[u8], error_text: &[u8]) -> bool {
    memchr::memmem::find_iter(error_text, path)
        .any(|at| error_text.get(at + path.len()) != Some(&b'/'))
}

/// Returns whether error messages contain a path as it is, without escapes.
fn is_plain(path: &[u8]) -> bool {
    path.iter()
        .all(|&byte| (b' '..=b'~').contains(&byte) && !b"'\"\\`".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &[u8] = b"TOK";

    fn path(text: &str) -> RemotePath {
        text.split('/')
            .filter(|name| !name.is_empty())
            .fold(RemotePath::root(), |dir, name| {
                dir.join(&Name::new(name.as_bytes()).unwrap())
            })
    }

    fn root(text: &str, ino: u64) -> Root {
        Root {
            path: path(text),
            absolute: format!("/r/{text}").into_bytes(),
            id: FileId { dev: 1, ino },
        }
    }

    /// One record of GNU find.
    fn gnu(kind: &str, dev: u64, ino: u64, depth: usize, name: &str) -> String {
        format!("{kind} 755 0 0 1 0 0 {dev} {ino} 1.0 1.0 1.0 {depth} {name}\0\0")
    }

    /// One record of BusyBox stat.
    fn marked(mode: &str, dev: u64, ino: u64, path: &str) -> String {
        format!("\x1dTOK {mode} 0 0 1 0 0 {dev} {ino} 0 0 1.0 1.0 1.0 {path}\n")
    }

    /// Each listing as its path and names.
    fn shown(parsed: Option<ParsedTrees>) -> Vec<String> {
        let listings = parsed.unwrap().listings;
        assert!(listings.is_sorted_by_key(|it| it.path.depth()));
        let mut shown: Vec<String> = listings
            .iter()
            .map(|it| {
                let names = it
                    .listing
                    .entries
                    .iter()
                    .map(|entry| entry.name.to_string());
                format!("{}: {}", it.path, names.collect::<Vec<_>>().join(" "))
            })
            .collect();
        shown.sort();
        shown
    }

    fn gnu_records() -> Vec<String> {
        vec![
            gnu("d", 1, 10, 0, "a"),
            gnu("d", 1, 11, 1, "b"),
            gnu("f", 1, 12, 2, "f"),
            gnu("f", 1, 13, 1, "g"),
            gnu("d", 2, 2, 1, "mountpoint"),
            gnu("d", 1, 20, 0, "c"),
            gnu("d", 1, 21, 1, "empty"),
            "end 0\0\0".to_owned(),
        ]
    }

    fn marked_records() -> Vec<String> {
        vec![
            marked("41ed", 1, 10, "/r/a"),
            marked("41ed", 1, 11, "/r/a/b"),
            marked("81ed", 1, 12, "/r/a/b/f"),
            marked("81ed", 1, 13, "/r/a/g"),
            marked("41ed", 2, 2, "/r/a/mountpoint"),
            marked("41ed", 1, 20, "/r/c"),
            marked("41ed", 1, 21, "/r/c/empty"),
            marked("41ed", 1, 2, "//"),
        ]
    }

    const ALL: [&str; 4] = ["a/b: f", "a: b g mountpoint", "c/empty: ", "c: empty"];

    type Parse = fn(&[u8], &[u8], &[Root]) -> Option<ParsedTrees>;

    fn both() -> [(Vec<String>, Parse); 2] {
        [
            (gnu_records(), parse_gnu_trees),
            (marked_records(), parse_marked_trees),
        ]
    }

    fn body(records: &[String], errors: &str) -> Vec<u8> {
        format!("{}\x1dTOK!{errors}", records.concat()).into_bytes()
    }

    #[test]
    fn directories_below_a_root_are_listed_but_other_filesystems_are_not() {
        let roots = [root("a", 10), root("c", 20)];
        for (records, parse) in both() {
            assert_eq!(shown(parse(&body(&records, ""), MARK, &roots)), ALL);
        }
    }

    #[test]
    fn a_listing_that_is_cut_gives_no_directory_that_was_not_complete() {
        let roots = [root("a", 10), root("c", 20)];
        // `stat` may have printed a path that was cut last, so that one record more is needed.
        for ((records, parse), n_extra) in both().into_iter().zip([0, 1]) {
            for n in 0..records.len() {
                let listed = shown(parse(&body(&records[..n], ""), MARK, &roots));
                let expected: &[&str] = match n.saturating_sub(n_extra) {
                    0..=3 => &[],
                    4 | 5 => &ALL[..1],
                    _ => &ALL[..2],
                };
                assert_eq!(listed, expected, "after {n} records");
            }
        }
        // GNU find is cut anywhere, also within a record.
        let whole = gnu_records().concat();
        for n in 0..whole.len() {
            let cut = [&whole.as_bytes()[..n], b"\x1dTOK!"].concat();
            let listed = shown(parse_gnu_trees(&cut, MARK, &roots));
            let is_part = listed.iter().all(|it| ALL[..2].contains(&&it[..]));
            assert!(is_part, "{n}: {listed:?}");
        }
    }

    /// `stat` of a path that was cut may find another file, for example a root.
    #[test]
    fn a_path_that_was_cut_is_no_name() {
        let roots = [root("a", 10), root("c", 20)];
        for cut in ["/r", "/r/a", "/r/c"] {
            let mut records = marked_records();
            records.truncate(3);
            records.push(marked("41ed", 1, 2, cut));
            let parsed = parse_marked_trees(&body(&records, ""), MARK, &roots);
            assert!(shown(parsed).is_empty(), "{cut}");
        }
    }

    #[test]
    fn a_root_that_is_another_directory_now_is_left_out() {
        let roots = [root("a", 99), root("c", 20)];
        for (records, parse) in both() {
            assert_eq!(shown(parse(&body(&records, ""), MARK, &roots)), ALL[2..]);
        }
    }

    /// The records, with the end after a failure of `find`.
    fn failed(mut records: Vec<String>) -> Vec<String> {
        let end = records.pop().unwrap();
        let end = end.replace("end 0", "end 1").replace("//", "///");
        records.push(end);
        records
    }

    /// FreeBSD, for example, says `fts_read`, and ends with 1 as after a directory that it may not read.
    #[test]
    fn a_search_that_gave_up_is_not_complete() {
        let roots = [root("a", 10), root("c", 20)];
        for why in [
            "find: fts_read: No such file or directory\n",
            "find: out of memory\n",
        ] {
            for (mut records, parse) in both() {
                let end = records.pop().unwrap();
                records.truncate(3);
                records.push(end);
                let listed = shown(parse(&body(&failed(records), why), MARK, &roots));
                assert!(listed.is_empty(), "{why}: {listed:?}");
            }
        }
    }

    #[test]
    fn a_directory_that_an_error_names_is_left_out() {
        let roots = [root("a", 10), root("c", 20)];
        for (records, parse) in both() {
            let records = failed(records);
            let denied = "find: '/r/c/empty': Permission denied\n";
            let listed = shown(parse(&body(&records, denied), MARK, &roots));
            assert_eq!(listed, [ALL[0], ALL[1], ALL[3]]);
        }
    }

    #[test]
    fn what_is_no_listing_is_rejected() {
        let roots = [root("a", 10)];
        for parse in [parse_gnu_trees, parse_marked_trees] {
            for body in [&b""[..], b"\x1dTOK", b"sh: find: not found\0\0\x1dTOK!"] {
                let parsed = parse(body, MARK, &roots);
                assert!(parsed.is_none_or(|it| it.listings.is_empty()), "{body:?}");
            }
        }
        let too_deep = [gnu("d", 1, 10, 0, "a"), gnu("f", 1, 11, 3, "f")];
        assert_eq!(parse_gnu_trees(&body(&too_deep, ""), MARK, &roots), None);
    }
}
