//! Fetches many small files by few programs: one `scp` for each chunk of files, and one look at
//! the versions of all of them.
//!
//! Chunks are pipelined: the request for the next chunk is sent before the answer to the last one
//! has arrived. This is safe because a fetch changes nothing on the host, and because the number
//! of acknowledgements that go ahead is exactly what `scp -f` reads for these files. If it reads
//! fewer, because a file is missing, the shell's `read` drops the rest, which are NUL bytes.
//!
//! A content belongs to a file if `scp` names it as requested, in the order of the request, and if
//! the file still has the requested version afterwards.

use std::collections::HashMap;

use crate::path::RemotePath;
use crate::pool::Purpose;
use crate::remote::BatchReceiver;
use crate::remote::Error;
use crate::remote::KnownFile;
use crate::remote::Result;
use crate::scp;
use crate::scp::Event;
use crate::shell::Lent;
use crate::shell::Shell;
use crate::shell::outcome::stats;
use crate::shell::quote::Line;
use crate::shell::resident::Answer;
use crate::shell::transfer::request_failed;
use crate::stat::FileKind;
use crate::stat::Stat;

const ACT: &str = "fetch";

/// A chunk ends before it would exceed one of these. A file is available to programs when its
/// chunk has arrived.
const MAX_CHUNK_FILES: usize = 64;
const MAX_CHUNK_BYTES: u64 = 1 << 20;

/// The content of a file that has grown by at most so much is read and discarded.
const MAX_EXCESS: u64 = 1 << 20;

/// The number of chunks in flight: one that arrives, and the next one.
const MAX_IN_FLIGHT: usize = 2;

impl Shell {
    /// Implements [`crate::remote::Remote::fetch_many`].
    pub(super) fn fetch_files(
        &self,
        files: &[KnownFile],
        receiver: &mut dyn BatchReceiver,
    ) -> Result<()> {
        if !self.facts.can_fetch_many {
            return Err(Error::Unsupported {
                act: ACT,
                path: RemotePath::root(),
                why: "the host has no scp",
            });
        }
        let chunks = chunks(files);
        // As small transfers, so that they never wait for large ones.
        let mut resident = self.pool.lend_live(Purpose::SmallTransfer, ACT)?;
        let mut unsized_or_empty = Vec::new();
        let mut n_sent = 0;
        for (n, chunk) in chunks.iter().enumerate() {
            while n_sent < chunks.len().min(n + MAX_IN_FLIGHT) {
                let request = self.chunk_request(files, &chunks[n_sent]);
                resident
                    .send(&request)
                    .map_err(|error| request_failed(ACT, error))?;
                n_sent += 1;
            }
            let is_last = n + 1 == chunks.len();
            let received = receive(&mut resident, files, chunk, is_last, receiver)?;
            for (index, stat) in received.complete {
                // In /proc and /sys files have no blocks, and a size that is not that of the
                // content.
                if stat.kind == FileKind::File && stat.blocks == 0 {
                    unsized_or_empty.push((index, stat));
                } else {
                    receiver.end(index, Some(&stat));
                }
            }
            for index in received.invalid {
                receiver.end(index, None);
            }
        }
        // The question about the filesystem may need this connection.
        drop(resident);
        for (index, stat) in unsized_or_empty {
            let is_exact = matches!(self.has_wrong_size(&files[index].path, &stat), Ok(false));
            receiver.end(index, is_exact.then_some(&stat));
        }
        Ok(())
    }

    /// Returns the line that fetches a chunk, and all acknowledgements.
    fn chunk_request(&self, files: &[KnownFile], chunk: &[usize]) -> Vec<u8> {
        let mut line = Line::new("fetch_files");
        let mut last_dir = None;
        for &index in chunk {
            let path = &files[index].path;
            let mut dir = self.parent_of(path);
            if dir.last() != Some(&b'/') {
                dir.push(b'/');
            }
            if last_dir.as_ref() != Some(&dir) {
                line = line.arg(&dir);
                last_dir = Some(dir);
            }
            line = line.arg(file_name(path));
        }
        let mut request = line.finish();
        // One for the start; three for each file: its T record, its C record and its content.
        request.resize(request.len() + 1 + 3 * chunk.len(), 0);
        request
    }
}

fn file_name(path: &RemotePath) -> &[u8] {
    let bytes = path.as_bytes();
    bytes.rsplit(|&b| b == b'/').next().unwrap_or(bytes)
}

/// Splits the files into chunks, by their indices. Leaves out paths with a newline: the scp of
/// dropbear does not send them (scp.c, `source`).
fn chunks(files: &[KnownFile]) -> Vec<Vec<usize>> {
    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let mut n_bytes = 0;
    for (index, file) in files.iter().enumerate() {
        if file.path.as_bytes().contains(&b'\n') || file.path.is_root() {
            continue;
        }
        n_bytes += file.version.size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < MAX_CHUNK_FILES && n_bytes <= MAX_CHUNK_BYTES => {
                chunk.push(index);
            }
            _ => {
                chunks.push(vec![index]);
                n_bytes = file.version.size;
            }
        }
    }
    chunks
}

/// The files of one chunk that were received, by their indices.
struct Received {
    /// With the requested version.
    complete: Vec<(usize, Stat)>,
    /// The receiver got content that is not known to be of the requested version.
    invalid: Vec<usize>,
}

/// Receives the contents of a chunk and its answer.
fn receive(
    resident: &mut Lent,
    files: &[KnownFile],
    chunk: &[usize],
    is_last: bool,
    receiver: &mut dyn BatchReceiver,
) -> Result<Received> {
    let mut sink = scp::Sink::new(scp::Scope::Files(chunk.len() as u64), true);
    let mut order = Order::new(files, chunk);
    // The file whose content arrives; `None` if it belongs to none.
    let mut current = None;
    let mut whole = Vec::new();
    let mut invalid = Vec::new();
    while !(sink.is_between_records() && resident.is_at_frame()) {
        let (used, event) = sink
            .step(resident.unread())
            .map_err(|source| Error::Protocol {
                act: ACT,
                path: RemotePath::root(),
                source,
            })?;
        if used == 0 && event.is_none() {
            resident
                .read_more()
                .map_err(|source| Error::OutcomeUnknown { act: ACT, source })?;
            continue;
        }
        let local = |index: usize| {
            move |source| Error::Local {
                act: ACT,
                path: files[index].path.clone(),
                source,
            }
        };
        match event {
            Some(Event::File { size, name, .. }) => {
                let index = order.take(&name);
                let known = index.map_or(0, |index| files[index].version.size);
                if size > known.saturating_add(MAX_EXCESS) {
                    // The connection is dropped: nothing else ends the transfer.
                    let detail = "a file is much larger than it was".to_owned();
                    return Err(Error::UnexpectedReply { act: ACT, detail });
                }
                current = index.filter(|_| size == known);
                if let Some(index) = current {
                    receiver.begin(index, size).map_err(local(index))?;
                }
                sink.accept();
            }
            Some(Event::Data(data)) => {
                if let Some(index) = current {
                    receiver.data(data).map_err(local(index))?;
                }
            }
            Some(Event::FileEnd(result)) => match current.take() {
                Some(index) if result.is_ok() => whole.push(index),
                index => invalid.extend(index),
            },
            Some(Event::Warning(_)) => order.has_warning = true,
            // The frame follows.
            Some(Event::Fatal(_)) => {
                resident.consume(used);
                break;
            }
            Some(Event::Directory { .. } | Event::DirectoryEnd) | None => {}
        }
        resident.consume(used);
    }
    resident
        .read_frame()
        .map_err(|error| request_failed(ACT, error))?;
    let answer = if is_last {
        resident.read_answer()
    } else {
        resident.read_frame()
    };
    let answer: Answer = answer.map_err(|error| request_failed(ACT, error))?;
    // A file that is gone has no line: then it is not known which line is whose.
    let stats = stats(&answer.body, chunk.len()).unwrap_or_default();
    let now: HashMap<usize, Stat> = chunk.iter().copied().zip(stats).collect();
    let mut complete = Vec::new();
    for index in whole {
        match now.get(&index) {
            Some(stat) if stat.version().same_content(&files[index].version) => {
                complete.push((index, *stat));
            }
            _ => invalid.push(index),
        }
    }
    invalid.extend(current);
    Ok(Received { complete, invalid })
}

/// Finds out which of the requested files a C record announces.
struct Order<'a> {
    files: &'a [KnownFile],
    chunk: &'a [usize],
    /// The position in `chunk` of the next file.
    next: usize,
    /// Whether the host has reported an error: files may be missing from there on.
    has_warning: bool,
}

impl<'a> Order<'a> {
    fn new(files: &'a [KnownFile], chunk: &'a [usize]) -> Self {
        Self {
            files,
            chunk,
            next: 0,
            has_warning: false,
        }
    }

    /// Returns the file that a record with this name belongs to; `None` if that is not certain.
    fn take(&mut self, name: &[u8]) -> Option<usize> {
        let is_named = |&&index: &&usize| file_name(&self.files[index].path) == name;
        let position = if self.has_warning {
            // Files may be missing: only a name that occurs once shows which one this is.
            let mut positions = (0..self.chunk.len()).filter(|&at| is_named(&&self.chunk[at]));
            let position = positions.next().filter(|_| positions.next().is_none());
            position.filter(|&position| position >= self.next)?
        } else {
            Some(self.next).filter(|&next| self.chunk.get(next).is_some_and(|it| is_named(&it)))?
        };
        self.next = position + 1;
        Some(self.chunk[position])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Name;
    use crate::stat::Time;
    use crate::stat::Version;

    fn files(paths: &[&str]) -> Vec<KnownFile> {
        let file = |path: &&str| KnownFile {
            path: path.split('/').fold(RemotePath::root(), |dir, name| {
                dir.join(&Name::new(name.as_bytes()).unwrap())
            }),
            version: Version {
                size: 300 << 10,
                mtime: Time::default(),
                ctime: None,
                id: None,
            },
        };
        paths.iter().map(file).collect()
    }

    #[test]
    fn a_chunk_is_bounded_in_files_and_in_bytes() {
        let large = files(&["a", "b", "c", "d", "e\nf", "g"]);
        assert_eq!(chunks(&large), [vec![0, 1, 2], vec![3, 5]]);
        let mut many = files(&["a"; 100]);
        for file in &mut many {
            file.version.size = 1;
        }
        let lengths: Vec<usize> = chunks(&many).iter().map(Vec::len).collect();
        assert_eq!(lengths, [64, 36]);
        assert!(chunks(&[]).is_empty());
    }

    #[test]
    fn content_belongs_to_the_next_file_of_the_request() {
        let files = files(&["d/a", "d/b", "e/a"]);
        let chunk = [0, 1, 2];
        let mut order = Order::new(&files, &chunk);
        assert_eq!(order.take(b"a"), Some(0));
        assert_eq!(order.take(b"a"), None, "the next file is b");
        assert_eq!(order.take(b"b"), Some(1));
        assert_eq!(order.take(b"a"), Some(2));
        assert_eq!(order.take(b"a"), None, "more files than requested");
    }

    #[test]
    fn after_an_error_only_a_unique_name_is_certain() {
        let files = files(&["d/a", "d/b", "e/a", "e/c"]);
        let chunk = [0, 1, 2, 3];
        let mut order = Order::new(&files, &chunk);
        order.has_warning = true;
        assert_eq!(order.take(b"a"), None, "two files have this name");
        assert_eq!(order.take(b"c"), Some(3));
        assert_eq!(order.take(b"b"), None, "it was due before");
        assert_eq!(order.take(b"x"), None);
    }
}
