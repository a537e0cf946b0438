//! Fetches a part of a large file, with the version that it is of.
//!
//! ```text
//! we:    fetch_blocks PATH FIRST COUNT      host:  attributes READY content READY attributes STATUS
//! ```

use crate::path::RemotePath;
use crate::pool::Purpose;
use crate::remote::BLOCK;
use crate::remote::Error;
use crate::remote::Reason;
use crate::remote::Result;
use crate::shell::Shell;
use crate::shell::outcome::fetch_refused;
use crate::shell::outcome::one_stat;
use crate::shell::outcome::refused;
use crate::shell::outcome::unexpected_reply;
use crate::shell::quote::Line;
use crate::shell::status;
use crate::shell::transfer::request_failed;
use crate::stat::Stat;

const ACT: &str = "fetch";

/// How often blocks are fetched if the file changes meanwhile.
const MAX_FETCHES: u32 = 3;

/// Windows of at most so many bytes never wait for large transfers.
const SMALL: u64 = 1 << 20;

impl Shell {
    /// Implements [`crate::remote::Remote::fetch_blocks`].
    pub(super) fn fetch_part(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        let mut result = self.fetch_part_once(path, first, n_blocks);
        for _ in 1..MAX_FETCHES {
            match &result {
                Err(error) if error.reason() == Some(Reason::Changed) => {
                    result = self.fetch_part_once(path, first, n_blocks);
                }
                _ => break,
            }
        }
        result
    }

    fn fetch_part_once(
        &self,
        path: &RemotePath,
        first: u64,
        n_blocks: u64,
    ) -> Result<(Stat, Vec<u8>)> {
        let failed = |error| request_failed(ACT, error);
        let max_bytes = n_blocks.saturating_mul(BLOCK);
        let line = Line::new("fetch_blocks")
            .arg(&self.absolute(path))
            .raw(&format!("{first} {n_blocks}"));
        let purpose = if max_bytes <= SMALL {
            Purpose::SmallTransfer
        } else {
            Purpose::Transfer
        };
        let mut resident = self.pool.lend_live(purpose, ACT)?;
        resident.send(&line.finish()).map_err(failed)?;
        let head = resident.read_frame().map_err(failed)?;
        if head.status != status::READY {
            resident.expect_end_of_answer().map_err(failed)?;
            return Err(fetch_refused(path, &head.body, &head));
        }
        let before = one_stat(ACT, &head.body)?;
        let mut data = Vec::new();
        loop {
            let (n, is_last) = resident.before_frame();
            data.extend_from_slice(resident.unread().get(..n).unwrap_or_default());
            if data.len() as u64 > max_bytes {
                resident.set_broken();
                return Err(unexpected_reply(ACT, b"more content than requested"));
            }
            resident.consume(n);
            if is_last {
                break;
            }
            resident
                .read_more()
                .map_err(|source| Error::OutcomeUnknown { act: ACT, source })?;
        }
        resident.read_frame().map_err(failed)?;
        let answer = resident.read_answer().map_err(failed)?;
        drop(resident);
        if answer.status != 0 {
            return Err(fetch_refused(path, &answer.body, &answer));
        }
        let after = one_stat(ACT, &answer.body)?;
        let expected = before
            .size
            .saturating_sub(first.saturating_mul(BLOCK))
            .min(max_bytes);
        let is_stable = before.version().same_content(&after.version());
        // A log that was appended to: what was there before is the older version.
        let has_grown = before.id.is_some() && before.id == after.id && before.size < after.size;
        if !(is_stable || has_grown) || (data.len() as u64) < expected {
            return Err(refused(ACT, path, Reason::Changed, b""));
        }
        data.truncate(usize::try_from(expected).unwrap_or(usize::MAX));
        Ok((before, data))
    }
}
