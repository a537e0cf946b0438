//! Requests to a malicious host, and checks of the resulting errors and log lines.

use std::io;
use std::sync::Once;
use std::time::Duration;

use scpfs::path::RemotePath;
use scpfs::remote::Error;
use scpfs::remote::Receiver;
use scpfs::remote::Remote;
use scpfs::remote::Settings;
use scpfs::stat::FileId;
use scpfs::stat::Time;
use scpfs::stat::Version;
use scpfs::sync::Mutex;

use crate::samples;
use crate::samples::path;

pub fn settings() -> Settings {
    Settings {
        max_connections: 1,
        timeout: Duration::from_secs(1),
        ..samples::settings("/srv")
    }
}

/// Log lines with control characters, which a terminal could obey.
static UNFIT: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Judge;

impl log::Log for Judge {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if record.target().starts_with("scpfs") && !is_fit(&text) {
            UNFIT.lock().push(text);
        }
    }

    fn flush(&self) {}
}

/// Checks all log lines from now on, see [`assert_log_is_fit`].
pub fn judge_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Judge).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

pub fn assert_log_is_fit() {
    let unfit = UNFIT.lock();
    assert!(unfit.is_empty(), "{unfit:?}");
}

/// The longest message. In a longer one, the cause of the error would be hard to find.
const MAX_MESSAGE: usize = 8 << 10;

fn is_fit(text: &str) -> bool {
    text.len() < MAX_MESSAGE
        && !text
            .chars()
            .any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c))
}

/// Formats an error and its causes as one line. Panics if the line could act on a terminal.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    assert!(is_fit(&text), "not fit for a terminal: {text:?}");
    text
}

/// Receives content like a disk with room for [`ROOM`] bytes.
#[derive(Debug, Default)]
pub struct SmallDisk {
    pub data: Vec<u8>,
    pub announced: u64,
}

const ROOM: usize = 8 << 20;

impl Receiver for SmallDisk {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        (self.announced, self.data) = (size, Vec::new());
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        if self.data.len() + data.len() > ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}

/// A request to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Stat,
    List,
    Fetch,
    ReadLink,
    FsStat,
    MakeDir,
}

impl Ask {
    /// Makes the request; returns the answer as one line, which for files starts with the kind.
    pub fn of(self, remote: &dyn Remote) -> Result<String, Error> {
        let at = path("file");
        Ok(match self {
            Self::Stat => {
                let stat = remote.stat(&at)?;
                format!("{:?} {:o} {}", stat.kind, stat.mode, stat.size)
            }
            Self::List => {
                let listing = remote.list(&RemotePath::root())?;
                let names = listing.entries.iter().map(|entry| {
                    let mode = entry.stat.map_or(0, |stat| stat.mode);
                    format!("{:?} {mode:o} {}", entry.kind, entry.name)
                });
                names.collect::<Vec<_>>().join(", ")
            }
            Self::Fetch => {
                let mut disk = SmallDisk::default();
                // The version that the scripted shell reports, so that one request is enough.
                let time = Time { secs: 1, nanos: 0 };
                let known = Version {
                    size: 2,
                    mtime: time,
                    ctime: Some(time),
                    id: Some(FileId { dev: 1, ino: 42 }),
                };
                let fetched = remote.fetch(&at, Some(&known), &mut disk)?;
                assert_eq!(
                    disk.data.len() as u64,
                    disk.announced,
                    "only what is whole counts"
                );
                let mode = fetched.stat.mode;
                format!("{mode:o} {}", String::from_utf8_lossy(&disk.data))
            }
            Self::ReadLink => String::from_utf8_lossy(&remote.read_link(&at)?).into_owned(),
            Self::FsStat => format!("{:?}", remote.fs_stat(&RemotePath::root())?),
            Self::MakeDir => format!("{:?}", remote.make_dir(&at, 0o755, None)?),
        })
    }
}
