//! Fetch, upload and copy of whole files.

use std::ops::Range;

use crate::clock::Tick;
use crate::path::Name;
use crate::path::RemotePath;
use crate::remote::Changed;
use crate::remote::Content;
use crate::remote::Durability;
use crate::remote::Error;
use crate::remote::Expect;
use crate::remote::Fetched;
use crate::remote::Placement;
use crate::remote::Reason;
use crate::remote::Receiver;
use crate::remote::Remote as _;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::Uploaded;
use crate::shell::Lent;
use crate::shell::Shell;
use crate::shell::TEMP_PREFIX;
use crate::shell::TEMP_SUFFIX;
use crate::shell::answer;
use crate::shell::creation_mask;
use crate::shell::outcome::check;
use crate::shell::outcome::fetch_refused;
use crate::shell::outcome::one_stat;
use crate::shell::outcome::outcome;
use crate::shell::outcome::owner_text;
use crate::shell::outcome::refused;
use crate::shell::outcome::upload_failed;
use crate::shell::outcome::uploaded;
use crate::shell::plain;
use crate::shell::quote::Line;
use crate::shell::resident::MAX_CONTENT;
use crate::shell::status;
use crate::shell::tools::Userland;
use crate::shell::transfer;
use crate::shell::transfer::Fetch;
use crate::shell::transfer::request_failed;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Version;

/// How often a file is fetched if it changes during the fetch. The last content is returned as
/// unstable.
const MAX_FETCHES: u32 = 3;

impl Shell {
    /// Returns a random name for a temporary file beside `path`, and hides it from listings.
    fn new_temp(&self, path: &RemotePath, spec: &UploadSpec) -> Result<Temp<'_>> {
        let random = || {
            let number = getrandom::u32().map_err(|e| Error::UnexpectedReply {
                act: "upload",
                detail: format!("cannot get random numbers: {e}"),
            })?;
            let name = format!("{:08x}{number:08x}", spec.tag);
            Ok([TEMP_PREFIX, name.as_bytes(), TEMP_SUFFIX].concat())
        };
        let dir = path.parent().unwrap_or_default();
        let name = Name::new(&random()?).map_err(|e| Error::UnexpectedReply {
            act: "upload",
            detail: e.to_string(),
        })?;
        self.temporaries.begin(&dir, &name);
        Ok(Temp {
            shell: self,
            dir,
            name,
        })
    }

    /// Begins the line of an upload: assigns the variables that `content.sh` describes. `stamp` is
    /// the option of `touch` from [`Self::stamp`].
    pub(super) fn upload_line(
        &self,
        path: &RemotePath,
        temp: &Temp<'_>,
        spec: &UploadSpec,
        method: Method,
        stamp: &str,
    ) -> Line {
        let expected = match &spec.expect {
            Expect::Anything => "-".to_owned(),
            Expect::Absent => "0".to_owned(),
            Expect::Version(version) => self
                .tools
                .userland
                .version_text(version)
                .unwrap_or_else(|| "?".to_owned()),
        };
        let beside = spec
            .conflict_name
            .as_ref()
            .map_or_else(Vec::new, |name| self.absolute(&temp.dir.join(name)));
        let yes = |is: bool| if is { "y" } else { "''" };
        // Only a file that needs no new owner is created with all its permissions.
        let mask = if spec.expect == Expect::Absent && spec.owner.is_none() {
            creation_mask(spec.mode | 0o200)
        } else {
            0o077
        };
        let minute = self.pool.tick().since(Tick::ZERO).as_secs() / 60;
        Line::new(&format!("method={}", method.word()))
            .assign("temp", &self.absolute(&temp.dir.join(&temp.name)))
            .assign("path", &self.absolute(path))
            .assign("parent", &self.parent_of(path))
            .assign("expected", expected.as_bytes())
            .assign("owner", owner_text(spec.owner).as_bytes())
            .raw(&format!("mode={:04o}", spec.mode))
            .raw(&format!("sets_mode={}", yes(spec.sets_mode)))
            .raw(&format!("mask={mask:03o}"))
            .assign("stamp", stamp.as_bytes())
            .raw(&format!(
                "durable={}",
                yes(spec.durability == Durability::Fsync)
            ))
            .assign("conflict_copy", &beside)
            .raw(&format!("exclusive={}", yes(spec.is_exclusive)))
            .raw(&format!("minute={minute};"))
    }

    /// Returns how this host is to place the content.
    fn method(&self, spec: &UploadSpec) -> Method {
        match spec.placement {
            Placement::Direct => Method::Direct,
            _ if spec.appends_to.is_some() && self.tools.has_descriptors => Method::Append,
            Placement::InPlace => Method::InPlace,
            Placement::Replace => Method::Replace,
        }
    }

    /// Returns the option of `touch` that sets the mtime; empty if the T record of SCP sets it
    /// exactly.
    fn stamp(&self, spec: &UploadSpec) -> String {
        let mtime = spec.mtime;
        let fits_record = mtime.truncate_to_micros() == mtime && mtime.secs >= 0;
        if fits_record {
            String::new()
        } else {
            self.tools.stamp(mtime)
        }
    }

    /// Implements [`crate::remote::Remote::fetch`].
    pub(super) fn fetch_file(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut known = known.copied();
        let whole = self.absolute(path);
        // The scp of dropbear sends no file whose path has a newline (scp.c source()).
        let by_scp = self.tools.has_scp && !whole.contains(&b'\n');
        let helper = if by_scp { "fetch_scp" } else { "fetch_plain" };
        let line = Line::new(helper).arg(&whole).finish();
        for n_left in (0..MAX_FETCHES).rev() {
            let mut resident = self.lend_for_transfer(ACT, known.map_or(u64::MAX, |it| it.size))?;
            let fetch = if by_scp {
                transfer::fetch(&mut resident, &line, path, receiver)?
            } else {
                let (before, fetch) = plain::fetch(&mut resident, &line, path, receiver)?;
                known = before.map(|stat| stat.version());
                fetch
            };
            drop(resident);
            let (size, answer) = match fetch {
                Fetch::Complete { size, answer } => (size, answer),
                Fetch::Refused { text, .. }
                    if crate::remote::reason_of(&text) == Reason::Changed && n_left > 0 =>
                {
                    let stat = self.stat(path)?;
                    if self.has_wrong_size(path, &stat)? {
                        return self.fetch_unsized(path, receiver);
                    }
                    continue;
                }
                Fetch::Refused { text, answer } => return Err(fetch_refused(path, &text, &answer)),
            };
            let stat = one_stat(ACT, &answer.body)?;
            if self.has_wrong_size(path, &stat)? {
                return self.fetch_unsized(path, receiver);
            }
            // `known` is the version before the fetch, and `stat` the one after it: if they are
            // equal, the content is of that version.
            let is_stable =
                stat.size == size && known.is_some_and(|k| k.same_content(&stat.version()));
            if is_stable || n_left == 0 {
                return Ok(Fetched {
                    stat,
                    may_write: answer.status != status::UNWRITABLE,
                    is_stable,
                });
            }
            known = Some(stat.version());
        }
        Err(refused(ACT, path, Reason::Changed, b""))
    }

    /// Implements [`crate::remote::Remote::upload`].
    pub(super) fn upload_file(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        spec: &UploadSpec,
    ) -> Result<Uploaded> {
        let spec = &self.adjusted_spec(path, spec);
        let temp = self.new_temp(path, spec)?;
        let method = self.method(spec);
        let skipped = match method {
            Method::Append => spec.appends_to.unwrap_or(0),
            Method::Replace | Method::InPlace | Method::Direct => 0,
        };
        let content = &Tail { content, skipped };
        let size = spec.size.saturating_sub(skipped);
        let resident = self.lend_for_transfer("upload", size)?;
        let upload = Upload {
            path,
            temp: &temp,
            spec,
            method,
            size,
        };
        let uploaded = if self.uses_pieces(&upload) {
            self.upload_in_pieces(resident, &upload, content)
        } else {
            self.upload_at_once(resident, &upload, content)
        };
        uploaded.map_err(|error| match error {
            // The target is unchanged, but a temporary file may be left.
            Error::Disconnected { act, source } => Error::OutcomeUnknown { act, source },
            error => error,
        })
    }

    /// Changes the placement to direct in directories where temporary files cannot be removed,
    /// because each upload would leave one.
    fn adjusted_spec(&self, path: &RemotePath, spec: &UploadSpec) -> UploadSpec {
        let dir = path.parent().unwrap_or_default();
        let mut spec = spec.clone();
        if self.dirs_without_removal.lock().contains(&dir) {
            spec.placement = Placement::Direct;
        }
        spec
    }

    /// Remembers the directory if an upload could not remove its temporary file.
    pub(super) fn note_temp_not_removed(&self, path: &RemotePath, status: u32) {
        if status == status::TEMP_NOT_REMOVED {
            let dir = path.parent().unwrap_or_default();
            log::warn!(
                "a temporary file is left in {dir}: the host permits no removal in this directory"
            );
            self.dirs_without_removal.lock().insert(dir);
        }
    }

    /// Uploads content over one connection.
    fn upload_at_once(
        &self,
        mut resident: Lent,
        upload: &Upload<'_>,
        content: &dyn Content,
    ) -> Result<Uploaded> {
        let Upload {
            path,
            temp,
            spec,
            method,
            size,
        } = *upload;
        // The SCP records set permissions, which a direct upload must not change.
        let upload = if self.tools.has_scp && method != Method::Direct {
            let line = self.upload_line(path, temp, spec, method, &self.stamp(spec));
            let creates_with_mode = spec.expect == Expect::Absent && spec.owner.is_none();
            let head = transfer::Head {
                size,
                mode: if creates_with_mode {
                    spec.mode & 0o777
                } else {
                    0o600
                },
                times: Some((spec.mtime, spec.atime)),
            };
            let line = line.raw(&format!("upload_scp {size}")).finish();
            transfer::upload(&mut resident, &line, path, content, &head)?
        } else {
            let stamp = self.tools.stamp(spec.mtime);
            let line = self
                .upload_line(path, temp, spec, method, &stamp)
                .raw(&format!("upload_plain {size}"))
                .arg(self.tools.stamp(spec.atime).as_bytes());
            plain::upload(&mut resident, &line.finish(), path, content, size)?
        };
        let outcome = outcome(upload.answer.status);
        if outcome.is_none() {
            // The shell exits after a failed upload, see `fail` in `content.sh`.
            resident.set_broken();
        }
        drop(resident);
        if let Some(outcome) = outcome {
            if !upload.is_acknowledged {
                return Err(Error::UnexpectedReply {
                    act: "upload",
                    detail: "success without an acknowledgement of the content".to_owned(),
                });
            }
            self.note_temp_not_removed(path, upload.answer.status);
            return Ok(uploaded(outcome, spec, &upload.answer));
        }
        let text = upload.refused.unwrap_or(upload.answer.body);
        Err(upload_failed(path, upload.answer.status, text))
    }

    /// Implements [`crate::remote::Remote::copy`].
    pub(super) fn copy_file(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        spec: &UploadSpec,
    ) -> Result<Changed> {
        const ACT: &str = "copy";
        let spec = &self.adjusted_spec(to, spec);
        if spec.placement == Placement::Direct {
            return Err(refused(ACT, to, Reason::NotSupported, b""));
        }
        let temp = self.new_temp(to, spec)?;
        let method = self.method(spec);
        // A copy has no T record to set the mtime.
        let stamp = self.tools.stamp(spec.mtime);
        let line = self
            .upload_line(to, &temp, spec, method, &stamp)
            .raw("copy_file")
            .arg(&self.absolute(from));
        let mut resident = self.lend_for_transfer(ACT, spec.size)?;
        let answer = resident
            .request(&line.finish())
            .map_err(|error| request_failed(ACT, error))?;
        let outcome = outcome(answer.status);
        if outcome.is_none() {
            resident.set_broken();
        }
        drop(resident);
        let Some(outcome) = outcome else {
            return Err(upload_failed(to, answer.status, answer.body));
        };
        self.note_temp_not_removed(to, answer.status);
        Ok(uploaded(outcome, spec, &answer).changed())
    }

    /// Returns whether the size of this file is unrelated to its content, as in `/proc` and `/sys`.
    ///
    /// Asks the host once for each device.
    pub(super) fn has_wrong_size(&self, path: &RemotePath, stat: &Stat) -> Result<bool> {
        let is_odd = stat.kind == FileKind::File && stat.blocks == 0;
        let Some(id) = stat.id.filter(|_| is_odd) else {
            return Ok(false);
        };
        if let Some(&lies) = self.wrong_size_devices.lock().get(&id.dev) {
            return Ok(lies);
        }
        let name = self.absolute(path);
        let answer = self.query(
            "stat",
            Line::new("print_fs_type").arg(&name).raw("; answer $?"),
        )?;
        check("stat", path, &answer)?;
        // Filesystems with wrong sizes, and their magic numbers on Linux.
        let liars: [(&[u8], &[u8]); 7] = [
            (b"proc", b"9fa0"),
            (b"sysfs", b"62656572"),
            (b"debugfs", b"64626720"),
            (b"tracefs", b"74726163"),
            (b"cgroup", b"27e0eb"),
            (b"cgroup2", b"63677270"),
            (b"securityfs", b"73636673"),
        ];
        let lies = match self.tools.userland {
            Userland::Ls => answer::mounts::filesystem_type(&answer.body, &name)
                .is_some_and(|kind| liars.iter().any(|(liar, _)| kind == *liar)),
            _ => {
                let magic = answer.body.trim_ascii();
                liars.iter().any(|(_, liar)| magic == *liar)
            }
        };
        self.wrong_size_devices.lock().insert(id.dev, lies);
        Ok(lies)
    }

    /// Fetches a file by `cat`, because its size is not known before.
    fn fetch_unsized(&self, path: &RemotePath, receiver: &mut dyn Receiver) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut resident = self.lend_for_transfer(ACT, u64::MAX)?;
        let line = Line::new("fetch_unsized")
            .arg(&self.absolute(path))
            .finish();
        let content = resident
            .request_long(&line, MAX_CONTENT)
            .map_err(|error| request_failed(ACT, error))?;
        check(ACT, path, &content)?;
        let local = |source| Error::Local {
            act: ACT,
            path: path.clone(),
            source,
        };
        receiver.begin(content.body.len() as u64).map_err(local)?;
        receiver.data(&content.body).map_err(local)?;
        drop(resident);
        Ok(Fetched {
            stat: self.stat(path)?,
            may_write: true,
            is_stable: false,
        })
    }
}

/// How content is put into its place: the variable `method` of `content.sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Replace,
    InPlace,
    Append,
    Direct,
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::InPlace => "in_place",
            Self::Append => "append",
            Self::Direct => "direct",
        }
    }
}

/// An upload in progress.
pub(super) struct Upload<'a> {
    pub(super) path: &'a RemotePath,
    pub(super) temp: &'a Temp<'a>,
    pub(super) spec: &'a UploadSpec,
    pub(super) method: Method,
    /// How many bytes are sent.
    pub(super) size: u64,
}

/// Content without its first `skipped` bytes.
struct Tail<'a> {
    content: &'a dyn Content,
    skipped: u64,
}

impl Content for Tail<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.content.read_at(buf, offset + self.skipped)
    }

    fn data_after(&self, offset: u64, min_hole: u64, end: u64) -> Range<u64> {
        let skipped = self.skipped;
        let data = self
            .content
            .data_after(offset + skipped, min_hole, end + skipped);
        data.start - skipped..data.end - skipped
    }
}

/// The name of a temporary file. It is hidden from listings until this is dropped.
pub(super) struct Temp<'a> {
    shell: &'a Shell,
    pub(super) dir: RemotePath,
    pub(super) name: Name,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        self.shell.temporaries.end(&self.name);
    }
}
