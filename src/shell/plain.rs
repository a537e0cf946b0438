//! Fetch and upload without SCP, for hosts that have a shell but no `scp`.
//!
//! Fetched content ends at the token, which no content can contain. For an upload the host counts
//! the bytes that it reads. As with SCP, the shell exits after a failed upload, so that it never
//! reads content as commands.
//!
//! ```text
//! we:    fetch_plain PATH             host:  attributes READY content READY attributes STATUS
//! we:    upload_plain SIZE .., content       host:  READY attributes STATUS
//! ```

use crate::path::RemotePath;
use crate::remote::Content;
use crate::remote::Error;
use crate::remote::Receiver;
use crate::scp::ahead::CHUNK;
use crate::scp::ahead::MAX_AHEAD;
use crate::shell::outcome::one_stat;
use crate::shell::resident::ResidentShell;
use crate::shell::status;
use crate::shell::transfer::Fetch;
use crate::shell::transfer::Upload;
use crate::shell::transfer::request_failed;
use crate::stat::Stat;

/// Sends `line`, which runs `fetch_plain` of `helpers/content.sh`, and receives the file: one round
/// trip.
///
/// Returns the attributes from before the content, unless the host refused.
pub(super) fn fetch(
    resident: &mut ResidentShell,
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
    resident.send(line).map_err(|e| request_failed(ACT, e))?;
    let head = resident.read_frame().map_err(|e| request_failed(ACT, e))?;
    if head.status != status::READY {
        resident
            .expect_end_of_answer()
            .map_err(|e| request_failed(ACT, e))?;
        let text = head.body.clone();
        return Ok((None, Fetch::Refused { text, answer: head }));
    }
    let before = one_stat(ACT, &head.body)?;
    receiver.begin(before.size).map_err(local)?;
    let mut n_received = 0u64;
    loop {
        let (n, is_last) = resident.before_frame();
        let data = resident.unread().get(..n).unwrap_or_default();
        // Bytes beyond the announced size, from a file that has grown, are dropped.
        let room = before.size.saturating_sub(n_received);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let taken = data.get(..n.min(room)).unwrap_or(data);
        if !taken.is_empty() {
            receiver.data(taken).map_err(local)?;
        }
        n_received += n as u64;
        resident.consume(n);
        if is_last {
            break;
        }
        resident
            .read_more()
            .map_err(|source| Error::OutcomeUnknown { act: ACT, source })?;
    }
    resident.read_frame().map_err(|e| request_failed(ACT, e))?;
    let answer = resident.read_answer().map_err(|e| request_failed(ACT, e))?;
    let fetch = if answer.status != 0 && answer.status != status::UNWRITABLE {
        let text = answer.body.clone();
        Fetch::Refused { text, answer }
    } else if n_received != before.size {
        // The error message of the source of SCP.
        let text = b": Broken pipe".to_vec();
        Fetch::Refused { text, answer }
    } else {
        let size = n_received;
        Fetch::Complete { size, answer }
    };
    Ok((Some(before), fetch))
}

/// Sends `line`, which runs `upload_plain` of `helpers/content.sh`, and the content: one round trip
/// for at most [`MAX_AHEAD`] bytes, two for more.
pub(super) fn upload(
    resident: &mut ResidentShell,
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
        resident.send(&out).map_err(|e| request_failed(ACT, e))?;
        out.clear();
        let ready = resident.read_frame().map_err(|e| request_failed(ACT, e))?;
        resident.set_broken();
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
            // The host waits for more: dropping the connection ends the transfer.
            resident.set_broken();
            return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.extend_from_slice(&chunk[..n]);
        left -= n as u64;
        if !is_small {
            if let Err(error) = resident.send(&out) {
                // A host that ends an upload sends the reason before it closes the channel.
                let answer = resident
                    .read_answer()
                    .map_err(|_| request_failed(ACT, error))?;
                return Ok(refused(answer));
            }
            out.clear();
        }
    }
    if is_small {
        let sent = resident.send(&out);
        let ready = match (resident.read_frame(), sent) {
            (Ok(ready), _) => ready,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(request_failed(ACT, error)),
        };
        if ready.status != status::READY {
            return Ok(refused(ready));
        }
    }
    let answer = resident.read_answer().map_err(|e| request_failed(ACT, e))?;
    Ok(Upload {
        refused: None,
        is_acknowledged: true,
        answer,
    })
}

/// Returns the result of an upload that the host ended.
fn refused(answer: crate::shell::resident::Answer) -> Upload {
    Upload {
        refused: None,
        is_acknowledged: false,
        answer,
    }
}
