//! Drives `scp::Source` over a command: contents and directories go out.

use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Result;
use crate::remote::UploadSpec;
use crate::remote::begins_like_record;
use crate::scp;
use crate::scp::Reply;
use crate::scp::Step;
use crate::scp::ahead::CHUNK;
use crate::scp_only::command::Options;
use crate::scp_only::link::Command;
use crate::scp_only::quirks::Answers;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive::About;
use crate::ssh;
use crate::stat::Time;

/// What a sink made of it.
#[derive(Debug)]
pub(super) enum Sent {
    Done,
    /// It refused before anything was written; its words.
    Refused(Vec<u8>),
    /// It gave up when it had begun to write.
    Broken(Vec<u8>),
}

/// The replies of a sink, in order.
struct Replies<'a> {
    command: &'a mut Command,
    source: &'a mut scp::Source,
    about: About<'a>,
    is_begun: bool,
    refused: Option<Vec<u8>>,
    /// Whether all that was sent has its reply, so that nothing more can come.
    is_answered: bool,
}

impl Replies<'_> {
    /// Sends what is queued.
    fn send(&mut self) -> Result<()> {
        self.check_turn()?;
        let out = self.source.take_output();
        self.is_answered = false;
        self.command
            .send(&out)
            .map_err(|source| unknown(self.about, source))
    }

    /// CVE-2020-12062: a sink that says two things of one step would have the second of them taken
    /// for the reply to the next, and what follows a record for its content.
    fn check_turn(&self) -> Result<()> {
        match (self.is_answered, self.command.unread().first()) {
            (true, Some(&byte)) => {
                let source = scp::ParseError::UnexpectedReply(byte);
                Err(self.about.protocol(source))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the replies to all that was queued; stops at a refusal.
    ///
    /// Where the command ends first, what it did is not known.
    fn wait(&mut self) -> Result<()> {
        while self.source.n_awaited() > 0 && self.refused.is_none() {
            if self.command.unread().is_empty()
                && !self
                    .command
                    .read_more()
                    .map_err(|source| unknown(self.about, source))?
            {
                let act = "waiting for an acknowledgement";
                return Err(unknown(self.about, ssh::Error::Closed { act }));
            }
            let step = self.source.step(self.command.unread());
            let (used, reply) = step.map_err(|source| self.about.protocol(source))?;
            self.command.consume(used);
            match reply {
                Some(Reply::Done(Step::File)) => self.is_begun = true,
                // Whatever comes before the first acknowledgement and is no reply of SCP's is
                // a text to be shown, never an acknowledgement.
                Some(Reply::Refused(_, text) | Reply::Fatal(text)) => self.refused = Some(text),
                Some(Reply::Done(_)) | None => {}
            }
        }
        self.is_answered = self.refused.is_none();
        Ok(())
    }
}

fn unknown(about: About<'_>, source: ssh::Error) -> Error {
    Error::OutcomeUnknown {
        act: about.act,
        source,
    }
}

/// When content may follow its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once. Only where the target was just seen not to be a directory: a sink that cannot
    /// open the file reads the content as records, and those can all name that one target.
    AtOnce,
    /// When the sink has opened the file.
    Acknowledged,
}

/// Uploads one file straight at the path that the command names: `scp -p -t` of it.
pub(super) fn upload(
    mut command: Command,
    quirks: &Quirks,
    about: About<'_>,
    name: &[u8],
    content: &dyn Content,
    spec: &UploadSpec,
    pace: Pace,
) -> Result<Sent> {
    let is_rcp = quirks.is_rcp();
    let is_at_once = is_rcp && pace == Pace::AtOnce && !begins_like_record(content, spec.size);
    let mut source = scp::Source::new(if is_at_once {
        scp::Pipelining::ToOneFile
    } else {
        scp::Pipelining::Never
    });
    let mut replies = Replies {
        command: &mut command,
        source: &mut source,
        about,
        is_begun: false,
        refused: None,
        is_answered: false,
    };
    // Everything up to the content may go in one write; who loses bytes that come early gets
    // one record at a time.
    if !is_rcp {
        replies.wait()?;
    }
    if quirks.options == Options::Full && replies.refused.is_none() {
        let exact = |time: Time| if is_rcp { time } else { whole_seconds(time) };
        replies.source.times(exact(spec.mtime), exact(spec.atime));
        if !is_rcp {
            replies.send()?;
            replies.wait()?;
        }
    }
    if replies.refused.is_none() {
        replies.source.file(spec.mode, spec.size, name);
        if !is_at_once {
            replies.send()?;
            replies.wait()?;
        }
    }
    if replies.refused.is_none() {
        send_content(&mut replies, content, spec)?;
        replies.source.end_file(Ok(()));
        if is_rcp {
            replies.source.end();
        }
        replies.send()?;
        replies.wait()?;
    }
    let (is_begun, refused) = (replies.is_begun, replies.refused.take());
    if refused.is_some() && is_rcp && !is_at_once && !is_begun {
        // It waits for another record.
        replies.source.end();
        replies.send()?;
    }
    end(command, quirks, is_at_once && refused.is_some());
    Ok(match refused {
        None => Sent::Done,
        Some(text) if is_begun => Sent::Broken(text),
        Some(text) => Sent::Refused(text),
    })
}

fn send_content(replies: &mut Replies<'_>, content: &dyn Content, spec: &UploadSpec) -> Result<()> {
    let about = replies.about;
    let local = |source| Error::Local {
        act: about.act,
        path: about.path.clone(),
        source,
    };
    replies.check_turn()?;
    replies.is_answered = false;
    let mut chunk = vec![0; CHUNK.min(usize::try_from(spec.size).unwrap_or(CHUNK))];
    let mut out = replies.source.take_output();
    let mut done = 0;
    while done < spec.size && !replies.command.is_deaf() {
        let want = usize::try_from(spec.size - done)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let buf = chunk.get_mut(..want).unwrap_or_default();
        let n = content.read_at(buf, done).map_err(local)?;
        if n == 0 || !replies.source.content(n as u64) {
            // The announced size cannot be reached; the connection goes, and with it the sink.
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(buf.get(..n).unwrap_or_default());
        done += n as u64;
        if done < spec.size {
            replies
                .command
                .send(&out)
                .map_err(|source| unknown(about, source))?;
            out.clear();
        }
    }
    replies
        .command
        .send(&out)
        .map_err(|source| unknown(about, source))
}

/// Makes a directory, or changes one that is there: a D record and its end.
pub(super) fn directory(
    mut command: Command,
    quirks: &Quirks,
    about: About<'_>,
    name: &[u8],
    mode: u32,
    times: Option<(Time, Time)>,
) -> Result<Sent> {
    let is_rcp = quirks.is_rcp();
    let mut source = scp::Source::new(scp::Pipelining::Never);
    let mut replies = Replies {
        command: &mut command,
        source: &mut source,
        about,
        is_begun: false,
        refused: None,
        is_answered: false,
    };
    let turn = |replies: &mut Replies<'_>| -> Result<bool> {
        if !is_rcp && replies.refused.is_none() {
            replies.send()?;
            replies.wait()?;
        }
        Ok(replies.refused.is_none())
    };
    if turn(&mut replies)? {
        if let Some((mtime, atime)) = times {
            let exact = |time: Time| if is_rcp { time } else { whole_seconds(time) };
            replies.source.times(exact(mtime), exact(atime));
        }
        if turn(&mut replies)? {
            replies.source.directory(mode, name);
            if turn(&mut replies)? {
                replies.source.end();
                turn(&mut replies)?;
            }
        }
    }
    if is_rcp {
        // A second end is the transfer's; after a refusal the first is.
        replies.source.end();
        replies.send()?;
        replies.wait()?;
    }
    let refused = replies.refused.take();
    end(command, quirks, false);
    Ok(refused.map_or(Sent::Done, Sent::Refused))
}

/// Ends a command in order.
fn end(command: Command, quirks: &Quirks, is_out_of_step: bool) {
    if is_out_of_step {
        // What was sent ahead is still being read.
        return;
    }
    if quirks.answers == Answers::Ahead {
        command.conclude();
    } else {
        command.finish();
    }
}

/// Servers of the wish kind take no fraction: `^T(\d{10}) 0 (\d{10}) 0$`.
fn whole_seconds(time: Time) -> Time {
    Time { nanos: 0, ..time }
}
