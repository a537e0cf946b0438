//! Contents without SCP, for hosts that have a shell but no `scp`.
//!
//! What comes is framed by the lane's token, which no content can hold; what goes is counted by
//! its reader on the host. As with SCP a shell whose upload failed ends, so that content is never
//! read as commands.
//!
//! ```text
//! we:    fc PATH                  host:  attributes READY content READY attributes STATUS
//! we:    upload_plain SIZE .., content      host:  READY attributes STATUS
//! ```

use crate::path::RemotePath;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Receiver;
use crate::scp::ahead::CHUNK;
use crate::scp::ahead::MAX_AHEAD;
use crate::shell::lane::Lane;
use crate::shell::outcome::one_stat;
use crate::shell::status;
use crate::shell::transfer::Fetch;
use crate::shell::transfer::Upload;
use crate::shell::transfer::lost;
use crate::stat::Stat;

/// Sends `line`, which runs `fc` of `helpers/content.sh`, and takes the file: one round trip.
///
/// The attributes are those that the file had before its content.
pub(super) fn fetch(
    lane: &mut Lane,
    line: &[u8],
    path: &RemotePath,
    receiver: &mut dyn Receiver,
) -> Result<(Option<Stat>, Fetch), Error> {
    const ACT: &str = "fetch";
    let local = |source| Error::Local {
        act: ACT,
        path: path.clone(),
        source,
    };
    lane.send(line).map_err(|e| lost(ACT, e))?;
    let head = lane.frame().map_err(|e| lost(ACT, e))?;
    if head.status != status::READY {
        lane.rest_is_none().map_err(|e| lost(ACT, e))?;
        let text = head.body.clone();
        return Ok((None, Fetch::Refused { text, answer: head }));
    }
    let before = one_stat(ACT, &head.body)?;
    receiver.begin(before.size).map_err(local)?;
    let mut n_received = 0u64;
    loop {
        let (n, is_last) = lane.before_frame();
        let data = lane.unread().get(..n).unwrap_or_default();
        // What a file has grown by is not taken.
        let room = before.size.saturating_sub(n_received);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let taken = data.get(..n.min(room)).unwrap_or(data);
        if !taken.is_empty() {
            receiver.data(taken).map_err(local)?;
        }
        n_received += n as u64;
        lane.consume(n);
        if is_last {
            break;
        }
        lane.read_more()
            .map_err(|source| Error::OutcomeUnknown { act: ACT, source })?;
    }
    lane.frame().map_err(|e| lost(ACT, e))?;
    let answer = lane.answer().map_err(|e| lost(ACT, e))?;
    let fetch = if answer.status != 0 && answer.status != status::UNWRITABLE {
        let text = answer.body.clone();
        Fetch::Refused { text, answer }
    } else if n_received != before.size {
        // As the source of SCP says it.
        let text = b": Broken pipe".to_vec();
        Fetch::Refused { text, answer }
    } else {
        let size = n_received;
        Fetch::Complete { size, answer }
    };
    Ok((Some(before), fetch))
}

/// Sends `line`, which runs `upload_plain` of `helpers/content.sh`, and the content: one round trip for up
/// to [`MAX_AHEAD`] bytes, two for more.
pub(super) fn upload(
    lane: &mut Lane,
    line: &[u8],
    path: &RemotePath,
    content: &dyn Content,
    size: u64,
) -> Result<Upload, Error> {
    const ACT: &str = "upload";
    let local = |source| Error::Local {
        act: ACT,
        path: path.clone(),
        source,
    };
    let is_small = size <= MAX_AHEAD;
    let mut out = line.to_vec();
    if !is_small {
        lane.send(&out).map_err(|e| lost(ACT, e))?;
        out.clear();
        let ready = lane.frame().map_err(|e| lost(ACT, e))?;
        lane.set_broken();
        if ready.status != status::READY {
            return Ok(refused(ready));
        }
    }
    let mut chunk = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut left = size;
    while left > 0 {
        let want = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = content
            .read_at(&mut chunk[..want], size - left)
            .map_err(local)?;
        if n == 0 {
            // The host waits for more: the lane is dropped and with it the transfer.
            lane.set_broken();
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(&chunk[..n]);
        left -= n as u64;
        if !is_small {
            if let Err(error) = lane.send(&out) {
                // A host that gave up says why before it hangs up.
                let answer = lane.answer().map_err(|_| lost(ACT, error))?;
                return Ok(refused(answer));
            }
            out.clear();
        }
    }
    if is_small {
        let sent = lane.send(&out);
        let ready = match (lane.frame(), sent) {
            (Ok(ready), _) => ready,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(lost(ACT, error)),
        };
        if ready.status != status::READY {
            return Ok(refused(ready));
        }
    }
    let answer = lane.answer().map_err(|e| lost(ACT, e))?;
    Ok(Upload {
        refused: None,
        is_acknowledged: true,
        answer,
    })
}

/// An upload that the host ended.
fn refused(answer: crate::shell::lane::Answer) -> Upload {
    Upload {
        refused: None,
        is_acknowledged: false,
        answer,
    }
}
