//! Many small files, or many directories, in one request.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use scpfs::clock::ManualClock;
use scpfs::remote::BatchReceiver;
use scpfs::remote::Error;
use scpfs::remote::KnownDirectory;
use scpfs::remote::KnownFile;
use scpfs::remote::ListEntry;
use scpfs::remote::Listing;
use scpfs::remote::Remote as _;
use scpfs::remote::SubListing;
use scpfs::shell::probe;
use scpfs::stat::Stat;
use scpfs::stat::Time;
use scpfs_testing::ability::has_scp;
use scpfs_testing::samples::path;

use crate::suite::Host;

/// Collects what a request for several files delivers. A file is named by its index in the request.
#[derive(Debug, Default)]
struct Contents {
    begun: Vec<(usize, Vec<u8>)>,
    valid: Vec<usize>,
    invalid: Vec<usize>,
}

impl BatchReceiver for Contents {
    fn begin(&mut self, index: usize, _size: u64) -> io::Result<()> {
        self.begun.push((index, Vec::new()));
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.begun.last_mut().unwrap().1.extend_from_slice(data);
        Ok(())
    }

    fn end(&mut self, index: usize, stat: Option<&Stat>) {
        match stat {
            Some(_) => self.valid.push(index),
            None => self.invalid.push(index),
        }
    }
}

impl Contents {
    fn valid(&self) -> Vec<(usize, &[u8])> {
        let mut valid: Vec<_> = self
            .begun
            .iter()
            .filter(|(index, _)| self.valid.contains(index))
            .map(|(index, data)| (*index, &data[..]))
            .collect();
        valid.sort_unstable();
        valid
    }
}

fn known(host: &Host, names: &[&str]) -> Vec<KnownFile> {
    let file = |name: &&str| KnownFile {
        path: path(name),
        version: host.remote.stat(&path(name)).unwrap().version(),
    };
    names.iter().map(file).collect()
}

fn fetched(host: &Host, files: &[KnownFile]) -> Contents {
    let mut contents = Contents::default();
    host.remote.fetch_many(files, &mut contents).unwrap();
    contents
}

/// Returns whether the host supports `fetch_many`; if not, checks that it reports `Unsupported`.
fn is_supported(host: &Host) -> bool {
    let is_supported = has_scp(&host.remote);
    assert_eq!(host.remote.facts().can_fetch_many, is_supported);
    if !is_supported {
        let error = host.remote.fetch_many(&[], &mut Contents::default());
        assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
    }
    is_supported
}

pub(crate) fn many_small_files_take_one_round_trip(host: &Host) {
    if !is_supported(host) {
        return;
    }
    fs::create_dir_all(host.at("a b/it's")).unwrap();
    let names = ["-rf $(x)", "a b/one", "a b/it's/one", "empty", "a b/two"];
    for name in names {
        let content = if name == "empty" { "" } else { name };
        fs::write(host.at(name), content).unwrap();
    }
    let files = known(host, &names);
    // For the first empty file of a filesystem, the shell dialect asks for the type of the
    // filesystem: in /proc, files have no blocks either. That round trip is not counted here.
    fetched(host, &files);
    let before = host.world.meter.trips();
    let contents = fetched(host, &files);
    assert_eq!(host.world.meter.trips() - before, 1);
    assert_eq!(
        contents.valid(),
        [
            (0, &b"-rf $(x)"[..]),
            (1, b"a b/one"),
            (2, b"a b/it's/one"),
            (3, b""),
            (4, b"a b/two")
        ]
    );
}

pub(crate) fn a_large_request_for_many_files_is_sent_in_chunks(host: &Host) {
    if !is_supported(host) {
        return;
    }
    let names: Vec<String> = (0..150).map(|n| format!("file {n}")).collect();
    for name in &names {
        fs::write(host.at(name), name).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let files = known(host, &names);
    let contents = fetched(host, &files);
    assert_eq!(contents.valid().len(), 150);
    for (index, data) in contents.valid() {
        assert_eq!(data, names[index].as_bytes());
    }
    // A request that follows on the connection gets its own answer.
    host.remote.stat(&path("file 7")).unwrap();
}

pub(crate) fn files_that_changed_are_left_out_of_a_request_for_many(host: &Host) {
    if !is_supported(host) {
        return;
    }
    fs::create_dir(host.at("d")).unwrap();
    let names = ["same", "d/same", "longer", "replaced", "d/last"];
    for name in names {
        fs::write(host.at(name), name).unwrap();
    }
    let files = known(host, &names);
    fs::write(host.at("longer"), "longer than before").unwrap();
    fs::write(host.at("new"), "replaced").unwrap();
    fs::rename(host.at("new"), host.at("replaced")).unwrap();
    let contents = fetched(host, &files);
    let valid = contents.valid();
    assert!(valid.contains(&(0, b"same")) && valid.contains(&(1, b"d/same")));
    assert!(valid.contains(&(4, b"d/last")));
    assert!(valid.iter().all(|(index, _)| *index != 2), "{contents:?}");
    if host.is_told_inodes() {
        assert_eq!(contents.valid.len(), 3, "{contents:?}");
    }
}

pub(crate) fn files_that_cannot_be_sent_do_no_harm_to_a_request_for_many(host: &Host) {
    if !is_supported(host) {
        return;
    }
    fs::create_dir(host.at("d")).unwrap();
    fs::create_dir(host.at("e")).unwrap();
    let names = ["first", "d/twin", "gone", "e/twin", "a\nb", "last"];
    for name in names {
        fs::write(host.at(name), name).unwrap();
    }
    let files = known(host, &names);
    fs::remove_file(host.at("gone")).unwrap();
    let contents = fetched(host, &files);
    for (index, data) in contents.valid() {
        assert_eq!(data, names[index].as_bytes(), "{contents:?}");
    }
    host.remote.stat(&path("first")).unwrap();
    // A FIFO in place of a file must not block the host.
    make_fifo(host, "gone");
    let contents = fetched(host, &files);
    assert!(contents.valid().is_empty(), "{contents:?}");
    fs::remove_file(host.at("gone")).unwrap();
    fs::create_dir(host.at("gone")).unwrap();
    let contents = fetched(host, &files);
    for (index, data) in contents.valid() {
        assert_eq!(data, names[index].as_bytes(), "{contents:?}");
    }
    host.remote.stat(&path("last")).unwrap();
}

fn make_fifo(host: &Host, name: &str) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        host.at(name),
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
}

pub(crate) fn a_file_of_proc_is_left_out_of_a_request_for_many(host: &Host) {
    if !is_supported(host) {
        return;
    }
    let mut settings = host.world.settings();
    settings.directory = b"/proc/sys/kernel".to_vec();
    let clock = Arc::new(ManualClock::new());
    let proc = probe::probe(host.world.transport(), &settings, clock).unwrap();
    let name = path("ostype");
    let version = proc.stat(&name).unwrap().version();
    let mut contents = Contents::default();
    let file = KnownFile {
        path: name,
        version,
    };
    proc.fetch_many(&[file], &mut contents).unwrap();
    assert!(contents.valid.is_empty(), "{contents:?}");
}

fn known_directory(host: &Host, name: &str) -> KnownDirectory {
    let stat = host.remote.stat(&path(name)).unwrap();
    KnownDirectory {
        path: path(name),
        id: stat.id.unwrap(),
    }
}

/// Sorts a listing by name, and clears the access times, which another listing may change.
fn comparable(mut listing: Listing) -> Listing {
    let stats = listing.entries.iter_mut();
    let stats = stats.filter_map(|entry| entry.listed.stat.as_mut());
    for stat in stats.chain([&mut listing.directory]) {
        stat.atime = Time::default();
    }
    let by_name = |a: &ListEntry, b: &ListEntry| a.name.as_bytes().cmp(b.name.as_bytes());
    listing.entries.sort_by(by_name);
    listing
}

pub(crate) fn a_tree_is_listed_as_its_directories_are(host: &Host) {
    let trees = listed_tree(host, 1000);
    let mut paths: Vec<&str> = Vec::new();
    for SubListing { path, listing } in &trees {
        paths.push(std::str::from_utf8(path.as_bytes()).unwrap());
        let single = host.remote.list(path).unwrap();
        assert_eq!(comparable(listing.clone()), comparable(single), "{path}");
    }
    paths.sort_unstable();
    let expected = if host.is_told_inodes() {
        &["one", "one/-rf $(x)", "one/a\nb", "one/a\nb/deep", "two"][..]
    } else {
        // Without `stat`, only the directories that are named.
        &["one", "two"]
    };
    assert_eq!(paths, expected);
}

pub(crate) fn a_tree_that_is_too_large_is_listed_in_part(host: &Host) {
    for max_names in [0, 1, 2, 4, 8] {
        let trees = listed_tree(host, max_names);
        assert!(trees.len() < 5, "{max_names}: {trees:?}");
        for SubListing { path, listing } in trees {
            let single = host.remote.list(&path).unwrap();
            assert_eq!(comparable(listing), comparable(single), "{path}");
        }
        fs::remove_dir_all(host.at("one")).unwrap();
        fs::remove_dir_all(host.at("two")).unwrap();
    }
}

/// Creates a tree of five directories and lists it in one round trip. Returns `None` if the host
/// does not support `list_trees`.
fn listed_tree(host: &Host, max_names: usize) -> Vec<SubListing> {
    fs::create_dir_all(host.at("one/a\nb/deep")).unwrap();
    fs::create_dir_all(host.at("one/-rf $(x)")).unwrap();
    fs::create_dir(host.at("two")).unwrap();
    for file in 0..10 {
        fs::write(host.at(&format!("one/a\nb/deep/file {file}")), "content").unwrap();
        fs::write(host.at(&format!("two/file {file}")), "content").unwrap();
    }
    symlink("nowhere", host.at("two/link")).unwrap();
    make_fifo(host, "two/fifo");
    let roots = ["one", "two"].map(|name| known_directory(host, name));
    let before = host.world.meter.trips();
    let trees = host.remote.list_trees(&roots, max_names).unwrap();
    assert_eq!(host.world.meter.trips() - before, 1);
    trees
}

pub(crate) fn a_root_of_a_tree_that_was_replaced_is_left_out(host: &Host) {
    listed_tree(host, 1000);
    let roots = ["one", "two"].map(|name| known_directory(host, name));
    fs::rename(host.at("one"), host.at("old")).unwrap();
    fs::rename(host.at("two"), host.at("one")).unwrap();
    let trees = host.remote.list_trees(&roots, 1000).unwrap();
    assert!(trees.is_empty(), "{trees:?}");
}
