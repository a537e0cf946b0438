//! The abilities of a host, from its tools.

use crate::remote::Facts;
use crate::remote::TimePrecision;
use crate::remote::ability;
use crate::remote::ability::Ability;
use crate::remote::ability::Extent;
use crate::remote::ability::Operation;
use crate::shell::tools::Tools;
use crate::shell::tools::Userland;

/// Returns every operation and how far the host can do it.
pub(super) fn abilities(facts: &Facts, tools: &Tools) -> Vec<Ability> {
    let has_stat = tools.userland != Userland::Ls;
    ability::all(|what| match what {
        Operation::Stat if !has_stat => {
            Extent::Limited("from ls, which prints whole seconds on many hosts")
        }
        Operation::Read | Operation::Write if !tools.has_scp => {
            Extent::Limited("without scp, by the host's cat and dd")
        }
        Operation::DetectConflicts if !has_stat => {
            Extent::Limited("a change of the same size within a second may be missed")
        }
        Operation::Exchange if !facts.can_exchange => {
            Extent::Impossible("the host's mv has no --exchange")
        }
        Operation::Times if facts.time_precision == TimePrecision::Seconds => {
            Extent::Limited("whole seconds, for times more precise than microseconds")
        }
        Operation::Owner if facts.uid != 0 => Extent::Limited("the login user is not root"),
        Operation::Socket => Extent::Limited("where the host has perl or python3"),
        Operation::Flush => Extent::Limited("where the host has `sync FILE` or `fsync`"),
        Operation::Pieces if !facts.can_take_pieces => {
            Extent::Impossible("the host's dd cannot count bytes; one connection is used")
        }
        _ => Extent::Full,
    })
}
