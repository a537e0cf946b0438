//! Contents: how files come and go.

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
use crate::remote::StorePlan;
use crate::remote::Stored;
use crate::remote::lane::MAX_CONTENT;
use crate::remote::lanes::Lent;
use crate::remote::shell::Shell;
use crate::remote::shell::TEMP_PREFIX;
use crate::remote::shell::TEMP_SUFFIX;
use crate::remote::shell::answer;
use crate::remote::shell::outcome::changed;
use crate::remote::shell::outcome::check;
use crate::remote::shell::outcome::fetch_refused;
use crate::remote::shell::outcome::one_stat;
use crate::remote::shell::outcome::outcome;
use crate::remote::shell::outcome::owner_text;
use crate::remote::shell::outcome::refused;
use crate::remote::shell::outcome::stored;
use crate::remote::shell::outcome::surprise;
use crate::remote::shell::plain;
use crate::remote::shell::quote::Line;
use crate::remote::shell::tools::Flavour;
use crate::remote::transfer;
use crate::remote::transfer::Fetch;
use crate::remote::transfer::lost;
use crate::stat::FileKind;
use crate::stat::Stat;
use crate::stat::Version;

/// How often a file is fetched that changes while it is sent, before its content is taken as it
/// is.
const MAX_FETCHES: u32 = 3;

impl Shell {
    fn new_temp(&self, path: &RemotePath, plan: &StorePlan) -> Result<Temp<'_>> {
        let random = || {
            let number = getrandom::u32().map_err(|e| Error::Surprise {
                act: "store",
                detail: format!("no random numbers: {e}"),
            })?;
            let name = format!("{:08x}{number:08x}", plan.tag);
            Ok([TEMP_PREFIX, name.as_bytes(), TEMP_SUFFIX].concat())
        };
        let dir = path.parent().unwrap_or_default();
        let name = Name::new(&random()?).map_err(|e| Error::Surprise {
            act: "store",
            detail: e.to_string(),
        })?;
        self.temps.begin(&dir, &name);
        Ok(Temp {
            shell: self,
            dir,
            name,
        })
    }

    /// The line of `w` and `cpy` after their names, see `helpers.sh`.
    ///
    /// `stamp` is what `touch` is to be told, see [`Self::stamp`].
    pub(super) fn place(
        &self,
        line: Line,
        path: &RemotePath,
        temp: &Temp<'_>,
        plan: &StorePlan,
        stamp: &str,
    ) -> Line {
        let how = match plan.placement {
            Placement::Replace => "replace",
            Placement::InPlace => "inplace",
            Placement::Direct => "direct",
        };
        let expected = match &plan.expect {
            Expect::Anything => "-".to_owned(),
            Expect::Absent => "0".to_owned(),
            Expect::Version(version) => self
                .tools
                .flavour
                .version_text(version)
                .unwrap_or_else(|| "?".to_owned()),
        };
        let keep_as = plan
            .keep_as
            .as_ref()
            .map_or_else(Vec::new, |name| self.absolute(&temp.dir.join(name)));
        line.raw(how)
            .arg(&self.absolute(&temp.dir.join(&temp.name)))
            .arg(&self.absolute(path))
            .arg(&self.parent_of(path))
            .arg(expected.as_bytes())
            .arg(owner_text(plan.owner).as_bytes())
            .raw(&format!("{:04o}", plan.mode))
            .arg(stamp.as_bytes())
            .raw(if plan.durability == Durability::Fsync {
                "y"
            } else {
                "''"
            })
            .arg(&keep_as)
    }

    /// What `touch` is to be told after an upload; empty where the T record says it all.
    fn stamp(&self, plan: &StorePlan) -> String {
        let mtime = plan.mtime;
        let fits_record = mtime.to_micros() == mtime && mtime.secs >= 0;
        let has_record = plan.placement != Placement::Direct;
        if fits_record && has_record {
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
        let helper = if by_scp { "f" } else { "fc" };
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
                    if answer::reason_of(&text) == Reason::Changed && n_left > 0 =>
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
                return Ok(Fetched { stat, is_stable });
            }
            known = Some(stat.version());
        }
        Err(refused(ACT, path, Reason::Changed, b""))
    }

    /// [`crate::remote::Remote::store`]
    pub(super) fn store_file(
        &self,
        path: &RemotePath,
        content: &dyn Content,
        plan: &StorePlan,
    ) -> Result<Stored> {
        let temp = self.new_temp(path, plan)?;
        let lane = self.content_lane("store", plan.size)?;
        let stored = if self.goes_in_pieces(plan) {
            self.store_in_pieces(lane, path, &temp, content, plan)
        } else {
            self.store_at_once(lane, path, &temp, content, plan)
        };
        stored.map_err(|error| match error {
            // The final name has what it had, but part of the content may be beside it.
            Error::Disconnected { act, source } => Error::OutcomeUnknown { act, source },
            error => error,
        })
    }

    fn store_at_once(
        &self,
        mut lane: Lent,
        path: &RemotePath,
        temp: &Temp<'_>,
        content: &dyn Content,
        plan: &StorePlan,
    ) -> Result<Stored> {
        const ACT: &str = "store";
        let store = if self.tools.has_scp {
            let stamp = self.stamp(plan);
            let line = self.place(Line::new("w"), path, temp, plan, &stamp);
            transfer::store(&mut lane, &line.finish(), path, content, plan)?
        } else {
            let line = Line::new(&format!("wx {}", plan.size))
                .arg(self.tools.stamp(plan.atime).as_bytes());
            let stamp = self.tools.stamp(plan.mtime);
            let line = self.place(line, path, temp, plan, &stamp);
            plain::store(&mut lane, &line.finish(), path, content, plan)?
        };
        let outcome = outcome(store.answer.status);
        if outcome.is_none() {
            // The shell ends after a failed store, see `helpers.sh`.
            lane.set_broken();
        }
        drop(lane);
        if let Some(outcome) = outcome {
            if !store.is_acknowledged && store.refused.is_none() {
                return Err(Error::Surprise {
                    act: ACT,
                    detail: "it reports success without an acknowledgement".to_owned(),
                });
            }
            return Ok(stored(outcome, &store.answer.body));
        }
        match (store.answer.status, store.refused) {
            (answer::CONFLICT, _) => Err(Error::Conflict {
                act: ACT,
                path: path.clone(),
            }),
            (answer::PARTIAL, text) if store.is_begun => {
                let text = text.unwrap_or(store.answer.body);
                Err(Error::Partial {
                    act: ACT,
                    path: path.clone(),
                    reason: answer::reason_of(&text),
                    text,
                })
            }
            (_, Some(text)) => Err(refused(ACT, path, answer::reason_of(&text), &text)),
            (_, None) => {
                check(ACT, path, &store.answer)?;
                Err(surprise(ACT, &store.answer.body))
            }
        }
    }

    /// [`crate::remote::Remote::copy`]
    pub(super) fn copy_file(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        plan: &StorePlan,
    ) -> Result<Changed> {
        const ACT: &str = "copy";
        let temp = self.new_temp(to, plan)?;
        let line = Line::new("cpy").arg(&self.absolute(from));
        // No T record sets the time of a copy.
        let stamp = self.tools.stamp(plan.mtime);
        let line = self.place(line, to, &temp, plan, &stamp);
        let mut lane = self.content_lane(ACT, plan.size)?;
        let answer = lane
            .request(&line.finish())
            .map_err(|error| lost(ACT, error))?;
        let is_done = outcome(answer.status).is_some();
        if !is_done {
            lane.set_broken();
        }
        drop(lane);
        if answer.status == answer::CONFLICT {
            return Err(Error::Conflict {
                act: ACT,
                path: to.clone(),
            });
        }
        if !is_done {
            check(ACT, to, &answer)?;
        }
        changed(&answer.body)
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
        let answer = self.ask("stat", Line::new("ft").arg(&name).raw("; a $?"))?;
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
        let line = Line::new("pc").arg(&self.absolute(path)).finish();
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
            is_stable: false,
        })
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
