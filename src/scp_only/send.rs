//! Drives `scp::Source` over a command: sends content and directories.

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
use crate::scp_only::connection::Command;
use crate::scp_only::quirks::Acks;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::receive::Request;
use crate::ssh;
use crate::stat::Time;

/// How a sink took a transfer.
#[derive(Debug)]
pub(super) enum Sent {
    Done,
    /// It refused before it wrote anything; its message.
    Refused(Vec<u8>),
    /// It failed after it began to write; its message.
    Partial(Vec<u8>),
}

/// The replies of a sink, in order.
struct Replies<'a> {
    command: &'a mut Command,
    source: &'a mut scp::Source,
    request: Request<'a>,
    /// Whether the sink has opened the file.
    has_begun: bool,
    refused: Option<Vec<u8>>,
    /// Whether every step that was sent has its reply, so that no further byte may arrive.
    is_answered: bool,
}

impl<'a> Replies<'a> {
    fn new(command: &'a mut Command, source: &'a mut scp::Source, request: Request<'a>) -> Self {
        Self {
            command,
            source,
            request,
            has_begun: false,
            refused: None,
            is_answered: false,
        }
    }

    /// Sends the queued records.
    fn send(&mut self) -> Result<()> {
        self.check_turn()?;
        let out = self.source.take_output();
        self.is_answered = false;
        self.command
            .send(&out)
            .map_err(|source| unknown_outcome(self.request, source))
    }

    /// Checks that the sink has not replied twice to one step. Otherwise the second reply would
    /// count as the reply to the next step, and the sink could take later records for content
    /// (CVE-2020-12062).
    fn check_turn(&self) -> Result<()> {
        match (self.is_answered, self.command.unread().first()) {
            (true, Some(&byte)) => {
                let source = scp::ParseError::UnexpectedReply(byte);
                Err(self.request.protocol(source))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the replies to all queued steps; stops at a refusal.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the command ends first.
    fn wait(&mut self) -> Result<()> {
        while self.source.n_awaited() > 0 && self.refused.is_none() {
            if self.command.unread().is_empty()
                && !self
                    .command
                    .read_more()
                    .map_err(|source| unknown_outcome(self.request, source))?
            {
                let act = "waiting for an acknowledgement";
                return Err(unknown_outcome(self.request, ssh::Error::Closed { act }));
            }
            let step = self.source.step(self.command.unread());
            let (used, reply) = step.map_err(|source| self.request.protocol(source))?;
            self.command.consume(used);
            match reply {
                Some(Reply::Done(Step::File)) => self.has_begun = true,
                // Any text before the first ack that is not a reply is an error message, never an
                // ack.
                Some(Reply::Refused(_, text) | Reply::Fatal(text)) => self.refused = Some(text),
                Some(Reply::Done(_)) | None => {}
            }
        }
        self.is_answered = self.refused.is_none();
        Ok(())
    }
}

fn unknown_outcome(request: Request<'_>, source: ssh::Error) -> Error {
    Error::OutcomeUnknown {
        act: request.act,
        source,
    }
}

/// When content may follow its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentTiming {
    /// At once. Allowed only if the target was just seen not to be a directory: a sink that cannot
    /// open the file reads the content as records, and those can only name the target itself.
    Ahead,
    /// After the sink has opened the file.
    AfterAck,
}

/// Uploads one file in place, at the path in the command: `scp -p -t`.
pub(super) fn upload(
    mut command: Command,
    quirks: &Quirks,
    request: Request<'_>,
    name: &[u8],
    content: &dyn Content,
    spec: &UploadSpec,
    timing: ContentTiming,
) -> Result<Sent> {
    let is_openssh_scp = quirks.is_openssh_scp();
    let sends_ahead =
        is_openssh_scp && timing == ContentTiming::Ahead && !begins_like_record(content, spec.size);
    let mut source = scp::Source::new(if sends_ahead {
        scp::Pipelining::ToOneFile
    } else {
        scp::Pipelining::Never
    });
    let mut replies = Replies::new(&mut command, &mut source, request);
    // All up to the content may go in one write. Sinks other than OpenSSH's may lose bytes that
    // arrive early, so they get one record at a time.
    if !is_openssh_scp {
        replies.wait()?;
    }
    if quirks.options == Options::Full && replies.refused.is_none() {
        let to_send = |time| time_to_send(quirks, time);
        replies
            .source
            .times(to_send(spec.mtime), to_send(spec.atime));
        if !is_openssh_scp {
            replies.send()?;
            replies.wait()?;
        }
    }
    if replies.refused.is_none() {
        replies.source.file(spec.mode, spec.size, name);
        if !sends_ahead {
            replies.send()?;
            replies.wait()?;
        }
    }
    if replies.refused.is_none() {
        send_content(&mut replies, content, spec)?;
        replies.source.end_file(Ok(()));
        if is_openssh_scp {
            replies.source.end();
        }
        replies.send()?;
        replies.wait()?;
    }
    let (has_begun, refused) = (replies.has_begun, replies.refused.take());
    if refused.is_some() && is_openssh_scp && !sends_ahead && !has_begun {
        // The sink waits for another record.
        replies.source.end();
        replies.send()?;
    }
    end_transfer(command, quirks, sends_ahead && refused.is_some());
    Ok(match refused {
        None => Sent::Done,
        Some(text) if has_begun => Sent::Partial(text),
        Some(text) => Sent::Refused(text),
    })
}

fn send_content(replies: &mut Replies<'_>, content: &dyn Content, spec: &UploadSpec) -> Result<()> {
    let request = replies.request;
    let local = |source| Error::Local {
        act: request.act,
        path: request.path.clone(),
        source,
    };
    replies.check_turn()?;
    replies.is_answered = false;
    let mut chunk = vec![0; CHUNK.min(usize::try_from(spec.size).unwrap_or(CHUNK))];
    let mut out = replies.source.take_output();
    let mut done = 0;
    while done < spec.size && !replies.command.is_input_closed() {
        let want = usize::try_from(spec.size - done)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let buf = chunk.get_mut(..want).unwrap_or_default();
        let n = content.read_at(buf, done).map_err(local)?;
        if n == 0 || !replies.source.content(n as u64) {
            // The content is shorter than announced. Dropping the connection ends the sink.
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(buf.get(..n).unwrap_or_default());
        done += n as u64;
        if done < spec.size {
            replies
                .command
                .send(&out)
                .map_err(|source| unknown_outcome(request, source))?;
            out.clear();
        }
    }
    replies
        .command
        .send(&out)
        .map_err(|source| unknown_outcome(request, source))
}

/// Creates a directory, or changes an existing one: sends a D record and its end.
pub(super) fn directory(
    mut command: Command,
    quirks: &Quirks,
    request: Request<'_>,
    name: &[u8],
    mode: u32,
    times: Option<(Time, Time)>,
) -> Result<Sent> {
    let is_openssh_scp = quirks.is_openssh_scp();
    let mut source = scp::Source::new(scp::Pipelining::Never);
    let mut replies = Replies::new(&mut command, &mut source, request);
    let flush_in_turn = |replies: &mut Replies<'_>| -> Result<bool> {
        if !is_openssh_scp && replies.refused.is_none() {
            replies.send()?;
            replies.wait()?;
        }
        Ok(replies.refused.is_none())
    };
    if flush_in_turn(&mut replies)? {
        if let Some((mtime, atime)) = times {
            let to_send = |time| time_to_send(quirks, time);
            replies.source.times(to_send(mtime), to_send(atime));
        }
        if flush_in_turn(&mut replies)? {
            replies.source.directory(mode, name);
            if flush_in_turn(&mut replies)? {
                replies.source.end();
                flush_in_turn(&mut replies)?;
            }
        }
    }
    if is_openssh_scp {
        // The second E record ends the transfer; after a refusal the first one does.
        replies.source.end();
        replies.send()?;
        replies.wait()?;
    }
    let refused = replies.refused.take();
    end_transfer(command, quirks, false);
    Ok(refused.map_or(Sent::Done, Sent::Refused))
}

/// Waits for the end of a command, so that its connection can be used again.
fn end_transfer(command: Command, quirks: &Quirks, is_out_of_step: bool) {
    if is_out_of_step {
        // The sink is still reading the content that was sent ahead; drop the connection.
        return;
    }
    if quirks.acks == Acks::Ahead {
        command.wait_for_end();
    } else {
        command.finish();
    }
}

/// Returns the time as a T record may have it: for OpenSSH's scp as it is, otherwise without its
/// fraction, which servers of the wish kind do not accept: `^T(\d{10}) 0 (\d{10}) 0$`.
fn time_to_send(quirks: &Quirks, time: Time) -> Time {
    if quirks.is_openssh_scp() {
        time
    } else {
        Time { nanos: 0, ..time }
    }
}
