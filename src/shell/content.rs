//! Contents: how files come and go.

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
use crate::shell::lane::MAX_CONTENT;
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
use crate::shell::status;
use crate::shell::tools::Flavour;
use crate::shell::transfer;
use crate::shell::transfer::Fetch;
use crate::shell::transfer::lost;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Version;

/// How often a file is fetched that changes while it is sent, before its content is taken as it
/// is.
const MAX_FETCHES: u32 = 3;

impl Shell {
    fn new_temp(&self, path: &RemotePath, plan: &UploadSpec) -> Result<Temp<'_>> {
        let random = || {
            let number = getrandom::u32().map_err(|e| Error::UnexpectedReply {
                act: "upload",
                detail: format!("no random numbers: {e}"),
            })?;
            let name = format!("{:08x}{number:08x}", plan.tag);
            Ok([TEMP_PREFIX, name.as_bytes(), TEMP_SUFFIX].concat())
        };
        let dir = path.parent().unwrap_or_default();
        let name = Name::new(&random()?).map_err(|e| Error::UnexpectedReply {
            act: "upload",
            detail: e.to_string(),
        })?;
        self.temps.begin(&dir, &name);
        Ok(Temp {
            shell: self,
            dir,
            name,
        })
    }

    /// Begins the line of an upload: the variables that `content.sh` describes. `stamp` is what
    /// `touch` is told, see [`Self::stamp`].
    pub(super) fn upload_line(
        &self,
        path: &RemotePath,
        temp: &Temp<'_>,
        plan: &UploadSpec,
        how: How,
        stamp: &str,
    ) -> Line {
        let expected = match &plan.expect {
            Expect::Anything => "-".to_owned(),
            Expect::Absent => "0".to_owned(),
            Expect::Version(version) => self
                .tools
                .flavour
                .version_text(version)
                .unwrap_or_else(|| "?".to_owned()),
        };
        let beside = plan
            .conflict_name
            .as_ref()
            .map_or_else(Vec::new, |name| self.absolute(&temp.dir.join(name)));
        let yes = |is: bool| if is { "y" } else { "''" };
        // It is made with all permissions only where it is the owner's from the beginning.
        let mask = if plan.expect == Expect::Absent && plan.owner.is_none() {
            creation_mask(plan.mode | 0o200)
        } else {
            0o077
        };
        let minute = self.lanes.tick().saturating_sub(Tick::ZERO).as_secs() / 60;
        Line::new(&format!("method={}", how.word()))
            .assign("temp", &self.absolute(&temp.dir.join(&temp.name)))
            .assign("path", &self.absolute(path))
            .assign("parent", &self.parent_of(path))
            .assign("expected", expected.as_bytes())
            .assign("owner", owner_text(plan.owner).as_bytes())
            .raw(&format!("mode={:04o}", plan.mode))
            .raw(&format!("sets_mode={}", yes(plan.sets_mode)))
            .raw(&format!("mask={mask:03o}"))
            .assign("stamp", stamp.as_bytes())
            .raw(&format!(
                "durable={}",
                yes(plan.durability == Durability::Fsync)
            ))
            .assign("conflict_copy", &beside)
            .raw(&format!("minute={minute};"))
    }

    /// How content gets to its place on this host.
    fn how(&self, plan: &UploadSpec) -> How {
        match plan.placement {
            Placement::Direct => How::Direct,
            _ if plan.appends_to.is_some() && self.tools.has_descriptors => How::Append,
            Placement::InPlace => How::InPlace,
            Placement::Replace => How::Replace,
        }
    }

    /// What `touch` is to be told after an upload; empty where the T record says it all.
    fn stamp(&self, plan: &UploadSpec) -> String {
        let mtime = plan.mtime;
        let fits_record = mtime.truncate_to_micros() == mtime && mtime.secs >= 0;
        if fits_record {
            String::new()
        } else {
            self.tools.stamp(mtime)
        }
    }

    /// [`crate::remote::Remote::fetch`]
    pub(super) fn fetch_file(
        &self,
        path: &RemotePath,
        known: Option<&Version>,
        receiver: &mut dyn Receiver,
    ) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut known = known.copied();
        let whole = self.absolute(path);
        // dropbear's scp sends no file whose path has a newline (scp.c source()).
        let by_scp = self.tools.has_scp && !whole.contains(&b'\n');
        let helper = if by_scp { "fetch_scp" } else { "fetch_plain" };
        let line = Line::new(helper).arg(&whole).finish();
        for n_left in (0..MAX_FETCHES).rev() {
            let mut lane = self.content_lane(ACT, known.map_or(u64::MAX, |it| it.size))?;
            let fetch = if by_scp {
                transfer::fetch(&mut lane, &line, path, receiver)?
            } else {
                let (before, fetch) = plain::fetch(&mut lane, &line, path, receiver)?;
                known = before.map(|stat| stat.version());
                fetch
            };
            drop(lane);
            let (size, answer) = match fetch {
                Fetch::Complete { size, answer } => (size, answer),
                Fetch::Refused { text, .. }
                    if crate::remote::reason_of(&text) == Reason::Changed && n_left > 0 =>
                {
                    let stat = self.stat(path)?;
                    if self.size_lies(path, &stat)? {
                        return self.fetch_unsized(path, receiver);
                    }
                    continue;
                }
                Fetch::Refused { text, answer } => return Err(fetch_refused(path, &text, &answer)),
            };
            let stat = one_stat(ACT, &answer.body)?;
            if self.size_lies(path, &stat)? {
                return self.fetch_unsized(path, receiver);
            }
            // The version before is the caller's, the version after is here: if they are the
            // same, so is the content between.
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

    /// [`crate::remote::Remote::upload`]
    pub(super) fn upload_file(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &UploadSpec,
    ) -> Result<Uploaded> {
        let plan = &self.without_temp(path, plan);
        let temp = self.new_temp(path, plan)?;
        let how = self.how(plan);
        let skipped = match how {
            How::Append => plan.appends_to.unwrap_or(0),
            How::Replace | How::InPlace | How::Direct => 0,
        };
        let content = &Rest { content, skipped };
        let size = plan.size.saturating_sub(skipped);
        let lane = self.content_lane("upload", size)?;
        let upload = Upload {
            path,
            temp: &temp,
            plan,
            how,
            size,
        };
        let uploaded = if self.goes_in_pieces(&upload) {
            self.upload_in_pieces(lane, &upload, content)
        } else {
            self.upload_at_once(lane, &upload, content)
        };
        uploaded.map_err(|error| match error {
            // The final name has what it had, but part of the content may be beside it.
            Error::Disconnected { act, source } => Error::OutcomeUnknown { act, source },
            error => error,
        })
    }

    /// Has content go straight into files of directories in which a temporary file can be made but
    /// not removed: each upload would leave one.
    fn without_temp(&self, path: &RemotePath, plan: &UploadSpec) -> UploadSpec {
        let dir = path.parent().unwrap_or_default();
        let mut plan = plan.clone();
        if self.unremovable.lock().contains(&dir) {
            plan.placement = Placement::Direct;
        }
        plan
    }

    /// Notes that the temporary file of an upload could not be removed.
    pub(super) fn note_unremovable(&self, path: &RemotePath, status: u32) {
        if status == status::TEMP_NOT_REMOVED {
            let dir = path.parent().unwrap_or_default();
            log::warn!(
                "a temporary file is left in {dir}: the host lets nobody remove names there"
            );
            self.unremovable.lock().insert(dir);
        }
    }

    fn upload_at_once(
        &self,
        mut lane: Lent,
        upload: &Upload<'_>,
        content: &dyn Content,
    ) -> Result<Uploaded> {
        let Upload {
            path,
            temp,
            plan,
            how,
            size,
        } = *upload;
        // The SCP records set permissions, which a direct upload must not change.
        let upload = if self.tools.has_scp && how != How::Direct {
            let line = self.upload_line(path, temp, plan, how, &self.stamp(plan));
            let is_born_with_mode = plan.expect == Expect::Absent && plan.owner.is_none();
            let head = transfer::Head {
                size,
                mode: if is_born_with_mode {
                    plan.mode & 0o777
                } else {
                    0o600
                },
                times: Some((plan.mtime, plan.atime)),
            };
            let line = line.raw(&format!("upload_scp {size}")).finish();
            transfer::upload(&mut lane, &line, path, content, &head)?
        } else {
            let stamp = self.tools.stamp(plan.mtime);
            let line = self
                .upload_line(path, temp, plan, how, &stamp)
                .raw(&format!("upload_plain {size}"))
                .arg(self.tools.stamp(plan.atime).as_bytes());
            plain::upload(&mut lane, &line.finish(), path, content, size)?
        };
        let outcome = outcome(upload.answer.status);
        if outcome.is_none() {
            // The shell ends after a failed upload, see `helpers.sh`.
            lane.set_broken();
        }
        drop(lane);
        if let Some(outcome) = outcome {
            if !upload.is_acknowledged {
                return Err(Error::UnexpectedReply {
                    act: "upload",
                    detail: "it reports success without an acknowledgement".to_owned(),
                });
            }
            self.note_unremovable(path, upload.answer.status);
            return Ok(uploaded(outcome, plan, &upload.answer));
        }
        let text = upload.refused.unwrap_or(upload.answer.body);
        Err(upload_failed(path, upload.answer.status, text))
    }

    /// [`crate::remote::Remote::copy`]
    pub(super) fn copy_file(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        plan: &UploadSpec,
    ) -> Result<Changed> {
        const ACT: &str = "copy";
        let plan = &self.without_temp(to, plan);
        if plan.placement == Placement::Direct {
            return Err(refused(ACT, to, Reason::NotSupported, b""));
        }
        let temp = self.new_temp(to, plan)?;
        let how = self.how(plan);
        // No T record sets the time of a copy.
        let stamp = self.tools.stamp(plan.mtime);
        let line = self
            .upload_line(to, &temp, plan, how, &stamp)
            .raw("copy_file")
            .arg(&self.absolute(from));
        let mut lane = self.content_lane(ACT, plan.size)?;
        let answer = lane
            .request(&line.finish())
            .map_err(|error| lost(ACT, error))?;
        let outcome = outcome(answer.status);
        if outcome.is_none() {
            lane.set_broken();
        }
        drop(lane);
        let Some(outcome) = outcome else {
            return Err(upload_failed(to, answer.status, answer.body));
        };
        self.note_unremovable(to, answer.status);
        Ok(uploaded(outcome, plan, &answer).changed())
    }

    /// Whether the size of this file says nothing about its content, as in `/proc` and `/sys`.
    fn size_lies(&self, path: &RemotePath, stat: &Stat) -> Result<bool> {
        let is_odd = stat.kind == FileKind::File && stat.blocks == 0;
        let Some(id) = stat.id.filter(|_| is_odd) else {
            return Ok(false);
        };
        if let Some(&lies) = self.lying_devices.lock().get(&id.dev) {
            return Ok(lies);
        }
        let name = self.absolute(path);
        let answer = self.ask(
            "stat",
            Line::new("print_fs_type").arg(&name).raw("; answer $?"),
        )?;
        check("stat", path, &answer)?;
        // The types that lie, with their magic numbers on Linux.
        let liars: [(&[u8], &[u8]); 7] = [
            (b"proc", b"9fa0"),
            (b"sysfs", b"62656572"),
            (b"debugfs", b"64626720"),
            (b"tracefs", b"74726163"),
            (b"cgroup", b"27e0eb"),
            (b"cgroup2", b"63677270"),
            (b"securityfs", b"73636673"),
        ];
        let lies = match self.tools.flavour {
            Flavour::Ls => answer::mounts::filesystem_type(&answer.body, &name)
                .is_some_and(|kind| liars.iter().any(|(liar, _)| kind == *liar)),
            _ => {
                let magic = answer.body.trim_ascii();
                liars.iter().any(|(_, liar)| magic == *liar)
            }
        };
        self.lying_devices.lock().insert(id.dev, lies);
        Ok(lies)
    }

    /// Receives a file by `cat`: for content whose length nobody knows before.
    fn fetch_unsized(&self, path: &RemotePath, receiver: &mut dyn Receiver) -> Result<Fetched> {
        const ACT: &str = "fetch";
        let mut lane = self.content_lane(ACT, u64::MAX)?;
        let line = Line::new("fetch_unsized")
            .arg(&self.absolute(path))
            .finish();
        let content = lane
            .request_long(&line, MAX_CONTENT)
            .map_err(|error| lost(ACT, error))?;
        check(ACT, path, &content)?;
        let local = |source| Error::Local {
            act: ACT,
            path: path.clone(),
            source,
        };
        receiver.begin(content.body.len() as u64).map_err(local)?;
        receiver.data(&content.body).map_err(local)?;
        drop(lane);
        Ok(Fetched {
            stat: self.stat(path)?,
            may_write: true,
            is_stable: false,
        })
    }
}

/// How content gets to its place; the variable `how` of `content.sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Replace,
    InPlace,
    Append,
    Direct,
}

impl How {
    fn word(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::InPlace => "in_place",
            Self::Append => "append",
            Self::Direct => "direct",
        }
    }
}

/// An upload under way.
pub(super) struct Upload<'a> {
    pub(super) path: &'a RemotePath,
    pub(super) temp: &'a Temp<'a>,
    pub(super) plan: &'a UploadSpec,
    pub(super) how: How,
    /// How many bytes travel.
    pub(super) size: u64,
}

/// Content without its first bytes.
struct Rest<'a> {
    content: &'a dyn Content,
    skipped: u64,
}

impl Content for Rest<'_> {
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

/// The name of an upload under way.
pub(super) struct Temp<'a> {
    shell: &'a Shell,
    pub(super) dir: RemotePath,
    pub(super) name: Name,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        self.shell.temps.end(&self.name);
    }
}
