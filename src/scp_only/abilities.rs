//! What can be done with nothing but scp.

use crate::remote::ability;
use crate::remote::ability::Ability;
use crate::remote::ability::Extent;
use crate::remote::ability::Operation;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::quirks::Refusal;

const NO_WORD: &str = "SCP has no word for it";

pub(super) fn abilities(quirks: &Quirks) -> Vec<Ability> {
    let lists = quirks.refusal == Refusal::Skips;
    ability::all(|what| match what {
        Operation::List if lists => {
            Extent::Limited("symlinks are shown as what they lead to; FIFOs and the like are not")
        }
        Operation::List => {
            Extent::Impossible("its scp sends the contents as well; files are found by their names")
        }
        Operation::Stat => Extent::Limited("mode, size and whole seconds; no owner, no inode"),
        Operation::Read | Operation::Create => Extent::Full,
        Operation::Write => {
            Extent::Limited("straight to its name: a reader may see half, a cut leaves half")
        }
        Operation::CreateExclusively => {
            Extent::Limited("a moment passes between the look and the creation")
        }
        Operation::KeepBoth => {
            Extent::Limited("a change of the same size within a second is not seen above 64 KiB")
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
        | Operation::Pieces => Extent::Impossible(NO_WORD),
    })
}
