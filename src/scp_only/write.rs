//! What changes the host: files are uploaded, files and directories are made.

use std::io;

use crate::path::RemotePath;
use crate::pool::Purpose;
use crate::remote::Changed;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Expect;
use crate::remote::Outcome;
use crate::remote::Owner;
use crate::remote::Placement;
use crate::remote::Reason;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::scp::ahead::IMPOSSIBLE_NAME;
use crate::scp::ahead::MAX_AHEAD;
use crate::scp_only::NO_WORD;
use crate::scp_only::ScpOnly;
use crate::scp_only::command::Direction;
use crate::scp_only::command::Options;
use crate::scp_only::is_same;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive;
use crate::scp_only::receive::About;
use crate::scp_only::receive::Fetch;
use crate::scp_only::receive::Header;
use crate::scp_only::samples;
use crate::scp_only::samples::Hashing;
use crate::scp_only::send;
use crate::scp_only::send::Pace;
use crate::scp_only::send::Sent;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// What is at the name that an upload is for.
enum Place {
    AsExpected {
        pace: Pace,
        /// The permissions of the file that is there.
        mode: Option<u32>,
    },
    /// Somebody removed the file that was expected.
    Gone,
    /// Somebody put something else there.
    Taken,
}

/// The content of a new file.
struct Nothing;

impl Content for Nothing {
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> io::Result<usize> {
        Ok(0)
    }
}

impl ScpOnly {
    /// [`crate::remote::Remote::upload`]
    pub(super) fn upload_file(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded> {
        const ACT: &str = "upload";
        self.check_owner(ACT, path, spec.owner)?;
        let conflict = || Error::Conflict {
            act: ACT,
            path: path.clone(),
        };
        let (stat, outcome) = match (self.place(path, spec)?, &spec.keep_as) {
            (Place::AsExpected { pace, mode }, _) => {
                // The record sets a mode in any case: what was not set here stays what it is.
                let mode = mode.filter(|_| !spec.sets_mode).unwrap_or(spec.mode);
                let spec = UploadSpec {
                    mode,
                    ..spec.clone()
                };
                (self.put(path, content, &spec, pace)?, Outcome::AsPlanned)
            }
            (Place::Gone, Some(_)) => (
                self.put(path, content, spec, Pace::AtOnce)?,
                Outcome::Recreated,
            ),
            (Place::Taken, Some(name)) => {
                let beside = path.parent().unwrap_or_default().join(name);
                let spec = UploadSpec {
                    expect: Expect::Absent,
                    keep_as: None,
                    ..spec.clone()
                };
                let Place::AsExpected { pace, .. } = self.place(&beside, &spec)? else {
                    return Err(conflict());
                };
                let stat = self.put(&beside, content, &spec, pace)?;
                (stat, Outcome::KeptBeside)
            }
            (Place::Gone | Place::Taken, None) => return Err(conflict()),
        };
        Ok(Uploaded {
            stat,
            is_overtaken: false,
            parent: None,
            outcome,
        })
    }

    /// Looks whether the host has what the spec expects. Somebody may change it before the content
    /// arrives: there is no doing both in one step.
    fn place(&self, path: &RemotePath, spec: &UploadSpec) -> Result<Place> {
        const ACT: &str = "upload";
        if spec.expect == Expect::Anything && self.quirks.lock().is_rcp() {
            return Ok(Place::AsExpected {
                pace: Pace::Acknowledged,
                mode: None,
            });
        }
        if let Expect::Version(version) = &spec.expect
            && let Some((is_same, mode)) = self.compare(path, version)?
        {
            return Ok(if is_same {
                Place::AsExpected {
                    pace: Pace::AtOnce,
                    mode: Some(mode),
                }
            } else {
                Place::Taken
            });
        }
        let found = match self.look(ACT, path) {
            Ok(stat) if stat.kind == FileKind::Directory => {
                return Err(Self::about(ACT, path).refused(Reason::IsADirectory, b""));
            }
            Ok(stat) => Some(stat),
            Err(error) if error.reason() == Some(Reason::NotFound) => None,
            Err(error) => return Err(error),
        };
        let as_expected = Place::AsExpected {
            pace: Pace::AtOnce,
            mode: found.map(|stat| stat.mode),
        };
        Ok(match (&spec.expect, found) {
            (Expect::Anything, _) | (Expect::Absent, None) => as_expected,
            (Expect::Version(_), None) => Place::Gone,
            (Expect::Version(version), Some(stat)) if is_same(version, &stat) => as_expected,
            (_, Some(_)) => Place::Taken,
        })
    }

    /// Compares what the host has with what was seen of this version, attributes and content;
    /// `None` where that was not noted, or where it differs in a way that a look shows as well. The
    /// mode that it has is returned too.
    fn compare(&self, path: &RemotePath, version: &Version) -> Result<Option<(bool, u32)>> {
        let expected = self.samples.lock().expected(path.as_bytes(), version);
        let Some(expected) = expected else {
            return Ok(None);
        };
        let mut hashing = Hashing::of_size(version.size);
        let header = match self.fetch_once(Self::about("upload", path), &mut hashing) {
            Ok(Fetch::Complete(header)) => header,
            Ok(Fetch::Refused(_)) => return Ok(None),
            Err(_) if hashing.is_other => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = self.stat_of(header);
        if !is_same(version, &stat) {
            return Ok(None);
        }
        let mode = stat.mode;
        Ok(Some((hashing.finish() == Some(expected), mode)))
    }

    /// Uploads content at a path, whatever is there; returns the attributes it has then, where
    /// they need not be asked for.
    pub(super) fn put(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
        pace: Pace,
    ) -> Result<Option<Stat>> {
        let about = Self::about("upload", path);
        let quirks = *self.quirks.lock();
        let name = record_name(&quirks, about)?;
        let pace = if spec.size <= MAX_AHEAD {
            pace
        } else {
            Pace::Acknowledged
        };
        let command = self.run(Direction::Upload, &quirks, Purpose::Transfer, about)?;
        let sent = send::upload(command, &quirks, about, &name, content, spec, pace);
        match sent? {
            Sent::Done => {
                let known = self.known_after(
                    &quirks,
                    Header {
                        kind: FileKind::File,
                        mode: spec.mode,
                        size: spec.size,
                        mtime: spec.mtime,
                        atime: spec.atime,
                    },
                );
                let stat = known.and_then(|stat| self.as_kept(path, stat));
                if let Some(stat) = &stat {
                    let hash = samples::hash_of(content, spec.size);
                    self.note_sample(path, &stat.version(), hash);
                }
                Ok(stat)
            }
            Sent::Refused(text) => Err(refused(about, &text)),
            Sent::Broken(text) => Err(Error::Partial {
                act: about.act,
                path: path.clone(),
                reason: receive::reason_for(&text, Reason::Other),
                text,
            }),
        }
    }

    /// What is known of a file that was just uploaded, with its time as the host's filesystem keeps
    /// it; asks for the first time that shows how it does.
    fn as_kept(&self, path: &RemotePath, stat: Stat) -> Option<Stat> {
        let keeps_seconds = *self.keeps_seconds.lock();
        match keeps_seconds {
            Some(true) => Some(stat),
            Some(false) => None,
            None if stat.mtime.secs % 2 == 0 => Some(stat),
            None => {
                let kept = self.look("upload", path).ok()?;
                *self.keeps_seconds.lock() = Some(kept.mtime == stat.mtime);
                Some(kept)
            }
        }
    }

    /// The attributes that acknowledged records have given a file: with the sink whose code is
    /// known, what was acknowledged is so. A source will tell the times in seconds.
    pub(super) fn known_after(&self, quirks: &Quirks, header: Header) -> Option<Stat> {
        let is_told = |time: Time| time.secs >= 0;
        let seconds = |time: Time| Time { nanos: 0, ..time };
        let is_known = quirks.is_rcp() && is_told(header.mtime) && is_told(header.atime);
        is_known.then(|| {
            self.stat_of(Header {
                mtime: seconds(header.mtime),
                atime: seconds(header.atime),
                ..header
            })
        })
    }

    /// [`crate::remote::Remote::create_new`]: looks, then makes. Who makes the same file between
    /// the two has it emptied.
    pub(super) fn create_file(
        &self,
        path: &RemotePath,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        const ACT: &str = "create";
        self.check_owner(ACT, path, owner)?;
        let now = self.clock.wall();
        let spec = UploadSpec {
            size: 0,
            appends_to: None,
            mode,
            sets_mode: true,
            mtime: now,
            atime: now,
            owner: None,
            expect: Expect::Absent,
            placement: Placement::Direct,
            durability: Durability::Lazy,
            keep_as: None,
            tag: 0,
        };
        match self.look(ACT, path) {
            Ok(_) => return Err(Self::about(ACT, path).refused(Reason::Exists, b"")),
            Err(error) if error.reason() == Some(Reason::NotFound) => {}
            Err(error) => return Err(error),
        }
        let stat = self.put(path, &Nothing, &spec, Pace::AtOnce)?;
        Ok(Changed { stat, parent: None })
    }

    /// [`crate::remote::Remote::make_dir`]
    pub(super) fn create_dir(
        &self,
        path: &RemotePath,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<Changed> {
        const ACT: &str = "create";
        self.check_owner(ACT, path, owner)?;
        let about = Self::about(ACT, path);
        let quirks = *self.quirks.lock();
        let now = self.clock.wall();
        let sent = if quirks.is_rcp() {
            // The path is made if nothing is there; in a directory that is there already, the
            // name cannot be made.
            let command = self.run(Direction::MakeDir, &quirks, Purpose::Metadata, about)?;
            let times = Some((now, now));
            send::directory(command, &quirks, about, IMPOSSIBLE_NAME, mode, times)?
        } else {
            match self.look(ACT, path) {
                Ok(_) => return Err(about.refused(Reason::Exists, b"")),
                Err(error) if error.reason() == Some(Reason::NotFound) => {}
                Err(error) => return Err(error),
            }
            let parent = path.parent().unwrap_or_default();
            if self.look(ACT, &parent)?.kind != FileKind::Directory {
                return Err(about.refused(Reason::NotADirectory, b""));
            }
            self.send_dir(&quirks, about, mode, None)?
        };
        match sent {
            Sent::Done => {}
            Sent::Refused(text) | Sent::Broken(text) => {
                return Err(self.not_made(about, &text));
            }
        }
        let stat = self.known_after(
            &quirks,
            Header {
                kind: FileKind::Directory,
                mode,
                size: 0,
                mtime: now,
                atime: now,
            },
        );
        Ok(Changed { stat, parent: None })
    }

    /// Why a directory could not be made.
    fn not_made(&self, about: About<'_>, text: &[u8]) -> Error {
        if memchr::memmem::find(text, IMPOSSIBLE_NAME).is_some() {
            return about.refused(Reason::Exists, b"");
        }
        let error = refused(about, text);
        // A file is in the way: at the name, or above it.
        let is_file = error.reason() == Some(Reason::NotADirectory);
        if is_file && self.look(about.act, about.path).is_ok() {
            return about.refused(Reason::Exists, b"");
        }
        error
    }

    /// Sends a D record into the directory that holds the path.
    pub(super) fn send_dir(
        &self,
        quirks: &Quirks,
        about: About<'_>,
        mode: u32,
        times: Option<(Time, Time)>,
    ) -> Result<Sent> {
        const ROOT: &str = "the directory that is mounted cannot be named from above it";
        const NEWLINE: &str = "its name has a newline, which a record of SCP cannot hold";
        let unsupported = |why| Self::unsupported(about.act, about.path, why);
        if quirks.options == Options::Minimal {
            return Err(unsupported(NO_WORD));
        }
        let (Some(parent), Some(name)) = (about.path.parent(), about.path.name()) else {
            return Err(unsupported(ROOT));
        };
        if name.as_bytes().contains(&b'\n') {
            return Err(unsupported(NEWLINE));
        }
        let into = Self::about(about.act, &parent);
        // Not every server knows `-d`; OpenSSH's client sends it, and dropbear's scp is a fork.
        let direction = if quirks.is_rcp() {
            Direction::IntoDir
        } else {
            Direction::MakeDir
        };
        let command = self.run(direction, quirks, Purpose::Metadata, into)?;
        send::directory(command, quirks, about, name.as_bytes(), mode, times)
    }

    pub(super) fn check_owner(
        &self,
        act: &'static str,
        path: &RemotePath,
        owner: Option<Owner>,
    ) -> Result<()> {
        const WHY: &str = "scp gives everything to the login user";
        let ours = Owner {
            uid: self.facts.uid,
            gid: self.facts.gid,
        };
        if owner.is_none_or(|owner| owner == ours) {
            Ok(())
        } else {
            Err(Self::unsupported(act, path, WHY))
        }
    }
}

/// The name for a C record: one that no directory can hold, where the sink does not look at it;
/// elsewhere the name that OpenSSH's client would send, because some sinks want it.
fn record_name(quirks: &Quirks, about: About<'_>) -> Result<Vec<u8>> {
    const WHY: &str = "its name has a newline, which a record of SCP cannot hold";
    if quirks.is_rcp() {
        return Ok(IMPOSSIBLE_NAME.to_vec());
    }
    let name = about.path.name();
    let name = name.filter(|name| !name.as_bytes().contains(&b'\n'));
    let name = name.ok_or_else(|| ScpOnly::unsupported(about.act, about.path, WHY))?;
    Ok(name.as_bytes().to_vec())
}

/// What a sink refused, or what somebody printed before it could speak.
pub(super) fn refused(about: About<'_>, text: &[u8]) -> Error {
    // The path is a directory, in which the record's name cannot be made.
    if memchr::memmem::find(text, IMPOSSIBLE_NAME).is_some() {
        return about.refused(Reason::IsADirectory, b"");
    }
    about.refused(receive::reason_for(text, Reason::IsADirectory), text)
}
