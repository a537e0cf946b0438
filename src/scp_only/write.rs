//! Uploads files, and creates files and directories.

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
use crate::scp_only::NOT_IN_SCP;
use crate::scp_only::ScpOnly;
use crate::scp_only::command::Direction;
use crate::scp_only::command::Options;
use crate::scp_only::is_same;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive;
use crate::scp_only::receive::Fetch;
use crate::scp_only::receive::Header;
use crate::scp_only::receive::Request;
use crate::scp_only::samples;
use crate::scp_only::samples::Hashing;
use crate::scp_only::send;
use crate::scp_only::send::ContentTiming;
use crate::scp_only::send::Sent;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Time;
use crate::stat::Version;

/// The file that the host has under the name of an upload.
enum Target {
    AsExpected {
        timing: ContentTiming,
        /// The permissions of the existing file.
        mode: Option<u32>,
    },
    /// The expected file was removed.
    Removed,
    /// Another version than the expected one.
    Conflict,
}

/// The content of a new, empty file.
struct EmptyContent;

impl Content for EmptyContent {
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
        let (stat, outcome) = match (self.check_target(path, spec)?, &spec.conflict_name) {
            (Target::AsExpected { timing, mode }, _) => {
                // A C record always sets a mode: send the existing one unless the spec changes it.
                let mode = mode.filter(|_| !spec.sets_mode).unwrap_or(spec.mode);
                let spec = UploadSpec {
                    mode,
                    ..spec.clone()
                };
                (
                    self.send_file(path, content, &spec, timing)?,
                    Outcome::AsPlanned,
                )
            }
            (Target::Removed, Some(_)) => (
                self.send_file(path, content, spec, ContentTiming::Ahead)?,
                Outcome::Recreated,
            ),
            (Target::Conflict, Some(name)) => {
                let beside = path.parent().unwrap_or_default().join(name);
                let spec = UploadSpec {
                    expect: Expect::Absent,
                    conflict_name: None,
                    ..spec.clone()
                };
                let Target::AsExpected { timing, .. } = self.check_target(&beside, &spec)? else {
                    return Err(conflict());
                };
                let stat = self.send_file(&beside, content, &spec, timing)?;
                (stat, Outcome::ConflictCopy)
            }
            (Target::Removed | Target::Conflict, None) => return Err(conflict()),
        };
        Ok(Uploaded {
            stat,
            is_overtaken: false,
            parent: None,
            outcome,
        })
    }

    /// Makes the conflict check of an upload. A race remains: others may change the file between
    /// the check and the upload, because SCP cannot do both in one request.
    fn check_target(&self, path: &RemotePath, spec: &UploadSpec) -> Result<Target> {
        const ACT: &str = "upload";
        if spec.expect == Expect::Anything && self.quirks.lock().is_openssh_scp() {
            return Ok(Target::AsExpected {
                timing: ContentTiming::AfterAck,
                mode: None,
            });
        }
        if let Expect::Version(version) = &spec.expect
            && let Some((is_same, mode)) = self.compare_with_sample(path, version)?
        {
            return Ok(if is_same {
                Target::AsExpected {
                    timing: ContentTiming::Ahead,
                    mode: Some(mode),
                }
            } else {
                Target::Conflict
            });
        }
        let found = match self.stat_path(ACT, path) {
            Ok(stat) if stat.kind == FileKind::Directory => {
                return Err(Self::request(ACT, path).refused(Reason::IsADirectory, b""));
            }
            Ok(stat) => Some(stat),
            Err(error) if error.reason() == Some(Reason::NotFound) => None,
            Err(error) => return Err(error),
        };
        let as_expected = Target::AsExpected {
            timing: ContentTiming::Ahead,
            mode: found.map(|stat| stat.mode),
        };
        Ok(match (&spec.expect, found) {
            (Expect::Anything, _) | (Expect::Absent, None) => as_expected,
            (Expect::Version(_), None) => Target::Removed,
            (Expect::Version(version), Some(stat)) if is_same(version, &stat) => as_expected,
            (_, Some(_)) => Target::Conflict,
        })
    }

    /// Compares the host's file with the sample of this version, attributes and content; returns
    /// whether they are equal, and the mode of the file. `None` if there is no sample or the
    /// attributes differ, so that a stat decides.
    fn compare_with_sample(
        &self,
        path: &RemotePath,
        version: &Version,
    ) -> Result<Option<(bool, u32)>> {
        let expected = self.samples.lock().expected_hash(path.as_bytes(), version);
        let Some(expected) = expected else {
            return Ok(None);
        };
        let mut hashing = Hashing::of_size(version.size);
        let header = match self.fetch_once(Self::request("upload", path), &mut hashing) {
            Ok(Fetch::Complete(header)) => header,
            Ok(Fetch::Refused(_)) => return Ok(None),
            Err(_) if hashing.has_other_size => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = self.stat_of(header);
        if !is_same(version, &stat) {
            return Ok(None);
        }
        let mode = stat.mode;
        Ok(Some((hashing.finish() == Some(expected), mode)))
    }

    /// Uploads content to a path without a conflict check; returns the new attributes if they are
    /// known.
    pub(super) fn send_file(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
        timing: ContentTiming,
    ) -> Result<Option<Stat>> {
        let request = Self::request("upload", path);
        let quirks = *self.quirks.lock();
        let name = record_name(&quirks, request)?;
        let timing = if spec.size <= MAX_AHEAD {
            timing
        } else {
            ContentTiming::AfterAck
        };
        let command = self.run(Direction::Upload, &quirks, Purpose::Transfer, request)?;
        let sent = send::upload(command, &quirks, request, &name, content, spec, timing);
        match sent? {
            Sent::Done => {
                let known = self.stat_after_acks(
                    &quirks,
                    Header {
                        kind: FileKind::File,
                        mode: spec.mode,
                        size: spec.size,
                        mtime: spec.mtime,
                        atime: spec.atime,
                    },
                );
                let stat = known.and_then(|stat| self.with_host_times(path, stat));
                if let Some(stat) = &stat {
                    let hash = samples::hash_of(content, spec.size);
                    self.note_sample(path, &stat.version(), hash);
                }
                Ok(stat)
            }
            Sent::Refused(text) => Err(refusal_error(request, &text)),
            Sent::Partial(text) => Err(Error::Partial {
                act: request.act,
                path: path.clone(),
                reason: receive::reason_for(&text, Reason::Other),
                text,
            }),
        }
    }

    /// Returns the attributes of an uploaded file if the host stores its mtime unchanged, `None` if
    /// that is not known. The first upload with an odd second asks the host.
    fn with_host_times(&self, path: &RemotePath, stat: Stat) -> Option<Stat> {
        let keeps_odd_seconds = *self.keeps_odd_seconds.lock();
        match keeps_odd_seconds {
            Some(true) => Some(stat),
            Some(false) => None,
            None if stat.mtime.secs % 2 == 0 => Some(stat),
            None => {
                let found = self.stat_path("upload", path).ok()?;
                *self.keeps_odd_seconds.lock() = Some(found.mtime == stat.mtime);
                Some(found)
            }
        }
    }

    /// Returns the attributes that acknowledged records have set, with times in whole seconds, as a
    /// source sends them. `None` unless the sink is OpenSSH's: only there an ack proves that the
    /// attributes were set.
    pub(super) fn stat_after_acks(&self, quirks: &Quirks, header: Header) -> Option<Stat> {
        let can_be_sent = |time: Time| time.secs >= 0;
        let seconds = |time: Time| Time { nanos: 0, ..time };
        let is_known =
            quirks.is_openssh_scp() && can_be_sent(header.mtime) && can_be_sent(header.atime);
        is_known.then(|| {
            self.stat_of(Header {
                mtime: seconds(header.mtime),
                atime: seconds(header.atime),
                ..header
            })
        })
    }

    /// [`crate::remote::Remote::create_new`]: a stat, then an upload. A race remains: a file that
    /// others create in between is truncated.
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
            conflict_name: None,
            is_exclusive: false,
            tag: 0,
        };
        match self.stat_path(ACT, path) {
            Ok(_) => return Err(Self::request(ACT, path).refused(Reason::Exists, b"")),
            Err(error) if error.reason() == Some(Reason::NotFound) => {}
            Err(error) => return Err(error),
        }
        let stat = self.send_file(path, &EmptyContent, &spec, ContentTiming::Ahead)?;
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
        let request = Self::request(ACT, path);
        let quirks = *self.quirks.lock();
        let now = self.clock.wall();
        let sent = if quirks.is_openssh_scp() {
            // The sink creates the path if it does not exist. Inside an existing directory it tries
            // to create the impossible name, and fails.
            let command = self.run(Direction::UploadDir, &quirks, Purpose::Metadata, request)?;
            let times = Some((now, now));
            send::directory(command, &quirks, request, IMPOSSIBLE_NAME, mode, times)?
        } else {
            match self.stat_path(ACT, path) {
                Ok(_) => return Err(request.refused(Reason::Exists, b"")),
                Err(error) if error.reason() == Some(Reason::NotFound) => {}
                Err(error) => return Err(error),
            }
            let parent = path.parent().unwrap_or_default();
            if self.stat_path(ACT, &parent)?.kind != FileKind::Directory {
                return Err(request.refused(Reason::NotADirectory, b""));
            }
            self.send_dir(&quirks, request, mode, None)?
        };
        match sent {
            Sent::Done => {}
            Sent::Refused(text) | Sent::Partial(text) => {
                return Err(self.make_dir_error(request, &text));
            }
        }
        let stat = self.stat_after_acks(
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

    /// Returns the error for a directory that could not be created.
    fn make_dir_error(&self, request: Request<'_>, text: &[u8]) -> Error {
        if memchr::memmem::find(text, IMPOSSIBLE_NAME).is_some() {
            return request.refused(Reason::Exists, b"");
        }
        let error = refusal_error(request, text);
        // A file has the name, or the name of a parent directory.
        let is_file = error.reason() == Some(Reason::NotADirectory);
        if is_file && self.stat_path(request.act, request.path).is_ok() {
            return request.refused(Reason::Exists, b"");
        }
        error
    }

    /// Sends a D record to the parent directory of the path.
    pub(super) fn send_dir(
        &self,
        quirks: &Quirks,
        request: Request<'_>,
        mode: u32,
        times: Option<(Time, Time)>,
    ) -> Result<Sent> {
        const ROOT: &str = "scp cannot change the mounted directory itself";
        const NEWLINE: &str = "its name has a newline, which an SCP record cannot contain";
        let unsupported = |why| Self::unsupported(request.act, request.path, why);
        if quirks.options == Options::Minimal {
            return Err(unsupported(NOT_IN_SCP));
        }
        let (Some(parent), Some(name)) = (request.path.parent(), request.path.name()) else {
            return Err(unsupported(ROOT));
        };
        if name.as_bytes().contains(&b'\n') {
            return Err(unsupported(NEWLINE));
        }
        let into = Self::request(request.act, &parent);
        // Not every server knows `-d`. OpenSSH's client sends it, and dropbear's scp is a fork of
        // it.
        let direction = if quirks.is_openssh_scp() {
            Direction::UploadIntoDir
        } else {
            Direction::UploadDir
        };
        let command = self.run(direction, quirks, Purpose::Metadata, into)?;
        send::directory(command, quirks, request, name.as_bytes(), mode, times)
    }

    pub(super) fn check_owner(
        &self,
        act: &'static str,
        path: &RemotePath,
        owner: Option<Owner>,
    ) -> Result<()> {
        const WHY: &str = "scp creates everything as the login user";
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

/// Returns the name for a C record. OpenSSH's sink ignores it, so it gets a name that cannot exist
/// in a directory; others get the name that OpenSSH's client would send, because some sinks need
/// it.
fn record_name(quirks: &Quirks, request: Request<'_>) -> Result<Vec<u8>> {
    const WHY: &str = "its name has a newline, which an SCP record cannot contain";
    if quirks.is_openssh_scp() {
        return Ok(IMPOSSIBLE_NAME.to_vec());
    }
    let name = request.path.name();
    let name = name.filter(|name| !name.as_bytes().contains(&b'\n'));
    let name = name.ok_or_else(|| ScpOnly::unsupported(request.act, request.path, WHY))?;
    Ok(name.as_bytes().to_vec())
}

/// Returns the error for a message of a sink, or of a login script before it.
pub(super) fn refusal_error(request: Request<'_>, text: &[u8]) -> Error {
    // The path is a directory, and the sink tried to create the record's name in it.
    if memchr::memmem::find(text, IMPOSSIBLE_NAME).is_some() {
        return request.refused(Reason::IsADirectory, b"");
    }
    request.refused(receive::reason_for(text, Reason::IsADirectory), text)
}
