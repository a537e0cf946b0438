//! The operations that this dialect supports, for display.

use crate::remote::ability;
use crate::remote::ability::Ability;
use crate::remote::ability::Extent;
use crate::remote::ability::Operation;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::quirks::Refusal;

const NOT_IN_SCP: &str = "not part of SCP";

pub(super) fn abilities(quirks: &Quirks) -> Vec<Ability> {
    let lists = quirks.refusal == Refusal::Skips;
    ability::all(|what| match what {
        Operation::List if lists => {
            Extent::Limited("symlinks are shown as their targets; FIFOs and devices are left out")
        }
        Operation::List => {
            Extent::Impossible("its scp would send all content; files can be opened by name")
        }
        Operation::Stat => Extent::Limited("mode, size and whole seconds; no owner, no inode"),
        Operation::Read | Operation::Create => Extent::Full,
        Operation::Write => {
            Extent::Limited("in place: readers may see part, a lost connection leaves part")
        }
        Operation::CreateExclusively => Extent::Limited("not atomic: the host is asked first"),
        Operation::DetectConflicts => {
            Extent::Limited("above 64 KiB, a change of the same size within a second is missed")
        }
        Operation::MakeDirectory => Extent::Full,
        Operation::Mode | Operation::Times => {
            Extent::Limited("directories, and small files by uploading them again")
        }
        Operation::Truncate => Extent::Limited("while the file is open here, with the next upload"),
        Operation::FreeSpace => Extent::Limited("a made-up size"),
        Operation::Flush => Extent::Limited("uploaded, but not flushed"),
        Operation::Remove
        | Operation::Rename
        | Operation::Exchange
        | Operation::Symlink
        | Operation::HardLink
        | Operation::Owner
        | Operation::Fifo
        | Operation::Socket
        | Operation::Copy
        | Operation::Pieces => Extent::Impossible(NOT_IN_SCP),
    })
}
